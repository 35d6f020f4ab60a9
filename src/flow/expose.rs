//! The owner of the bytes tells of regions in which they lie, and the taker Reads them.

use std::collections::VecDeque;

use http_body::Body;

use super::{BoxError, Feed, FlowError, Limits, Link, MOST_REGIONS, checked};
use crate::fabric::{Access, RemoteAddress};
use crate::header::TransferId;
use crate::memory::Source;
use crate::message::Message;

/// Lets the peer read the whole body; `read` counts as it goes. `first`, where there is one, is a region that the peer knows
/// already. On an error the connection must be dropped.
pub async fn expose<B>(
    link: &Link,
    limits: Limits,
    id: TransferId,
    first: Option<Source>,
    feed: &mut Feed<B>,
    read: &mut u64,
) -> Result<(), FlowError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let result = async {
        let length = feed.length();
        let mut shown = first.as_ref().map_or(0, |first| first.length() as u64);
        let mut regions: VecDeque<(u64, Source)> = first.into_iter().map(|first| (shown, first)).collect();
        let window = limits.window.min(MOST_REGIONS);
        let mut ended = false;
        let mut pace = limits.pace();
        while *read < length {
            if shown < length && regions.len() < window {
                let load = tokio::select! {
                    biased;
                    load = feed.next(limits.chunk) => load.map_err(FlowError::Body)?,
                    error = link.channel.closed() => return Err(FlowError::Lost(error)),
                };
                let source = link.buffers.source(load, Access::REMOTE_READ).map_err(FlowError::Register)?;
                let at = RemoteAddress { stag: source.region().stag(), to: source.region().base() };
                let bytes = source.length() as u64;
                shown += bytes;
                regions.push_back((shown, source));
                pace.completed(link.channel.send(Message::Region { id, at, bytes })).await?;
                continue;
            }
            if shown == length && !ended {
                feed.end().await.map_err(FlowError::Body)?;
                ended = true;
            }
            match pace.receive(&link.channel).await? {
                message @ Message::Credit { id: theirs, bytes } => {
                    let before =
                        std::mem::replace(read, checked(message, (theirs, bytes), id, *read, shown)?);
                    pace.moved(*read - before);
                    // It has all of a region, or it has nothing to say.
                    if !regions.iter().any(|(end, _)| *end == bytes) {
                        return Err(FlowError::Protocol(format!(
                            "its Credit of {bytes} is in the middle of a region"
                        )));
                    }
                }
                // As long as nothing is read; what is, is not given back.
                Message::Decline { id: theirs } if theirs == id && *read == 0 => {
                    return Err(FlowError::Declined);
                }
                other => {
                    return Err(FlowError::Protocol(format!("it sent {other:?} where a Credit was due")));
                }
            }
            while regions.front().is_some_and(|(end, _)| *end <= *read) {
                regions.pop_front();
            }
        }
        // What was read while the file changed is no body.
        feed.end().await.map_err(FlowError::Body)
    };
    let result = result.await;
    result.map_err(|error| feed.blame(error))
}
