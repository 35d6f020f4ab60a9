//! The owner of the bytes Writes them into a region of the taker's.

use std::collections::VecDeque;

use http_body::Body;
use tokio::time::timeout;

use super::{BoxError, Feed, FlowError, Limits, Link, Pace, STEPS, checked};
use crate::fabric::{Access, BoxFuture, FabricError, RemoteAddress};
use crate::header::TransferId;
use crate::memory::{Load, Source};
use crate::message::Message;

/// Where the bytes go.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The transfer.
    pub id: TransferId,
    /// Where the region begins.
    pub at: RemoteAddress,
    /// Its bytes. A body that is longer is written round and round, as the taker makes room.
    pub room: u64,
}

/// A Write under way. The completion comes first, so that it is dropped before the memory is let go.
type InFlight = (BoxFuture<'static, Result<(), FabricError>>, Source);

/// Moves the whole body, and tells when it is there. `written` counts as it goes. On an error the connection must be
/// dropped. The first Write is posted before anything is waited for.
pub async fn write<B>(
    link: &Link,
    limits: Limits,
    target: Target,
    feed: &mut Feed<B>,
    written: &mut u64,
) -> Result<(), FlowError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let result = async {
        let length = feed.length();
        let (pace, window) = (limits.pace(), VecDeque::new());
        let mut writer =
            Writer { link, limits, pace, target, window, posted: 0, told: 0, credit: 0, written };
        // A body that fits needs no room made; one that does not leaves some for what is on its way.
        let chunk = match usize::try_from(target.room.div_ceil(4).max(1)) {
            Ok(quarter) if length > target.room => limits.chunk.min(quarter),
            _ => limits.chunk,
        };
        let mut kept: Option<Load> = None;
        while writer.posted < length {
            let load = match kept.take() {
                Some(load) => load,
                None => tokio::select! {
                    biased;
                    load = feed.next(chunk) => load.map_err(FlowError::Body)?,
                    error = link.channel.closed() => return Err(FlowError::Lost(error)),
                },
            };
            let (now, later) = writer.fitting(load)?;
            kept = later;
            writer.post(now, length).await?;
        }
        // What is read as it leaves can have changed until it leaves, and sendfile(2) lends pages to the socket still after that.
        if feed.leaves_unread() {
            writer.complete().await?;
        }
        tokio::select! {
            biased;
            end = timeout(limits.stall, feed.end()) => end
                .unwrap_or_else(|_| Err("it does not end where its length says".into()))
                .map_err(FlowError::Body)?,
            error = link.channel.closed() => return Err(FlowError::Lost(error)),
        }
        // It comes behind the Writes, and may leave with them.
        let done = link.channel.send(Message::Done { id: target.id, bytes: length });
        writer.complete().await?;
        writer.pace.completed(done).await
    };
    let result = result.await;
    result.map_err(|error| feed.blame(error))
}

struct Writer<'a> {
    link: &'a Link,
    limits: Limits,
    pace: Pace,
    target: Target,
    window: VecDeque<InFlight>,
    posted: u64,
    told: u64,
    credit: u64,
    written: &'a mut u64,
}

impl Writer<'_> {
    /// What lies before the region's end, and the rest, which belongs at its beginning.
    fn fitting(&self, load: Load) -> Result<(Load, Option<Load>), FlowError> {
        let room = self.target.room;
        let Some(offset) = self.posted.checked_rem(room) else {
            return Err(FlowError::Protocol("its region has no room".into()));
        };
        let here = usize::try_from(room - offset).unwrap_or(usize::MAX);
        if load.length() <= here {
            return Ok((load, None));
        }
        Ok(match load {
            Load::Bytes(mut now) => {
                let later = now.split_off(here);
                (Load::Bytes(now), Some(Load::Bytes(later)))
            }
            Load::File { file, offset, length } => (
                Load::File { file: file.clone(), offset, length: here },
                Some(Load::File { file, offset: offset + here as u64, length: length - here }),
            ),
        })
    }

    async fn post(&mut self, load: Load, length: u64) -> Result<(), FlowError> {
        let bytes = load.length() as u64;
        let Target { id, at, room } = self.target;
        if self.posted + bytes > self.credit.saturating_add(room) {
            self.tell().await?;
            while self.posted + bytes > self.credit + room {
                match self.pace.receive(&self.link.channel).await? {
                    message @ Message::Credit { id: theirs, bytes } => {
                        self.credit = checked(message, (theirs, bytes), id, self.credit, self.posted)?;
                    }
                    other => {
                        return Err(FlowError::Protocol(format!("it sent {other:?} where a Credit was due")));
                    }
                }
            }
        }
        if self.window.len() >= self.limits.window {
            self.complete_oldest().await?;
        }
        let source = self.link.buffers.source(load, Access::LOCAL_READ).map_err(FlowError::Register)?;
        let to = RemoteAddress { stag: at.stag, to: at.to + self.posted % room };
        self.posted += bytes;
        self.window.push_back((self.link.channel.write(&source, to), source));
        // Nobody takes anything before the end if all of it fits.
        if length > room && self.posted < length && self.posted - self.told >= room.div_ceil(STEPS) {
            self.tell().await?;
        }
        Ok(())
    }

    /// Tells how much is written. Writes and Sends arrive in the order of their posting.
    async fn tell(&mut self) -> Result<(), FlowError> {
        if self.posted > self.told {
            self.told = self.posted;
            let progress = Message::Progress { id: self.target.id, bytes: self.posted };
            self.pace.completed(self.link.channel.send(progress)).await?;
        }
        Ok(())
    }

    async fn complete(&mut self) -> Result<(), FlowError> {
        while !self.window.is_empty() {
            self.complete_oldest().await?;
        }
        Ok(())
    }

    async fn complete_oldest(&mut self) -> Result<(), FlowError> {
        if let Some((completion, source)) = self.window.pop_front() {
            self.pace.completed(completion).await?;
            self.pace.moved(source.length() as u64);
            *self.written += source.length() as u64;
        }
        Ok(())
    }
}
