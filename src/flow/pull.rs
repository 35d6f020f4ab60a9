//! The taker's side of Reads: gets the bytes from the regions that the owner tells of.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{FlowError, Limits, Link, MOST_REGIONS, Pace};
use crate::fabric::{Access, BoxFuture, FabricError, RemoteAddress};
use crate::header::{Advert, TransferId};
use crate::memory::Sink;
use crate::message::Message;

/// A body that lies in regions of the peer's.
pub(super) struct Pull {
    id: TransferId,
    length: u64,
    /// Bytes told of, asked for, and taken.
    told: u64,
    asked: u64,
    taken: u64,
    regions: VecDeque<Part>,
    reads: VecDeque<Read>,
    /// What is to be said and handed out next, so that a wait that is given up loses neither.
    owed: Option<Message>,
    ready: Option<Bytes>,
}

/// What is left of a region.
struct Part {
    at: RemoteAddress,
    left: u64,
}

/// A Read under way. The completion comes first, so that it is dropped before the memory is let go.
struct Read {
    completion: BoxFuture<'static, Result<(), FabricError>>,
    sink: Sink,
    /// Whether it is the last of its region.
    last: bool,
}

impl Pull {
    /// A body of `length` bytes, which begins in `first` where that is told already.
    pub(super) fn new(id: TransferId, first: Option<Advert>, length: u64) -> Self {
        let first = first.map(|Advert { at, maxlen }| Part { at, left: maxlen.min(length) });
        let told = first.as_ref().map_or(0, |part| part.left);
        let regions = first.into_iter().filter(|part| part.left > 0).collect();
        Self {
            id,
            length,
            told,
            asked: 0,
            taken: 0,
            regions,
            reads: VecDeque::new(),
            owed: None,
            ready: None,
        }
    }

    /// Bytes that are taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// See [`Intake::next`](super::Intake::next).
    pub(super) async fn next(
        &mut self,
        link: &Link,
        limits: Limits,
        pace: &mut Pace,
    ) -> Result<Option<Bytes>, FlowError> {
        loop {
            if let Some(credit) = self.owed.take() {
                pace.completed(link.channel.send(credit)).await?;
            }
            if let Some(bytes) = self.ready.take() {
                return Ok(Some(bytes));
            }
            self.ask(link, limits)?;
            if self.taken == self.length {
                return Ok(None);
            }
            let more = self.told < self.length && self.regions.len() < MOST_REGIONS;
            let Some(read) = self.reads.front_mut() else {
                let message = pace.receive(&link.channel).await?;
                self.tell(message)?;
                continue;
            };
            tokio::select! {
                biased;
                done = pace.completed(&mut read.completion) => done?,
                message = link.channel.receive(), if more => {
                    self.tell(message?)?;
                    continue;
                }
            }
            let Some(Read { sink, last, .. }) = self.reads.pop_front() else { continue };
            let length = sink.length();
            let bytes = sink.take(length).map_err(FlowError::Lost)?;
            self.taken += length as u64;
            pace.moved(length as u64);
            self.owed = last.then_some(Message::Credit { id: self.id, bytes: self.taken });
            self.ready = Some(bytes.into());
        }
    }

    /// Posts Reads, as many as may be.
    fn ask(&mut self, link: &Link, limits: Limits) -> Result<(), FlowError> {
        while self.reads.len() < limits.window
            && let Some(part) = self.regions.front_mut()
        {
            let length = usize::try_from(part.left).map_or(limits.chunk, |left| left.min(limits.chunk));
            let sink = link.buffers.sink(length, Access::LOCAL_WRITE).map_err(FlowError::Register)?;
            let completion = link.channel.read(sink.region(), length, part.at);
            part.left -= length as u64;
            // A region may end where the offsets do.
            part.at.to = part.at.to.wrapping_add(length as u64);
            self.asked += length as u64;
            let last = part.left == 0;
            self.reads.push_back(Read { completion, sink, last });
            if last {
                self.regions.pop_front();
            }
        }
        Ok(())
    }

    fn tell(&mut self, message: Message) -> Result<(), FlowError> {
        match message {
            Message::Region { id, at, bytes }
                if id == self.id
                    && bytes > 0
                    && bytes <= self.length - self.told
                    && at.to.checked_add(bytes - 1).is_some() =>
            {
                self.told += bytes;
                self.regions.push_back(Part { at, left: bytes });
                Ok(())
            }
            other => {
                let left = self.length - self.told;
                let what = format!(
                    "it sent {other:?} where a Region of at most {left} bytes of {} was due",
                    self.id
                );
                Err(FlowError::Protocol(what))
            }
        }
    }
}
