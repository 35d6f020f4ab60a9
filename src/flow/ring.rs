//! The taker's side of Writes: a region that is written round and round, and emptied as it goes.

use bytes::Bytes;

use super::{FlowError, Limits, Link, Pace, STEPS, checked};
use crate::header::TransferId;
use crate::memory::Sink;
use crate::message::Message;

/// A body that a peer writes into a region of ours.
pub struct Ring {
    id: TransferId,
    sink: Sink,
    /// Bytes of the whole body; of it, counted from its beginning: written, taken out, and told of as taken.
    length: u64,
    written: u64,
    taken: u64,
    credited: u64,
    done: bool,
    pace: Option<Pace>,
}

impl Ring {
    /// A body of `length` bytes on its way into `sink`.
    pub fn new(id: TransferId, sink: Sink, length: u64) -> Self {
        Self { id, sink, length, written: 0, taken: 0, credited: 0, done: length == 0, pace: None }
    }

    /// Bytes that are taken out.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The next bytes, at most `limits.chunk`; `None` at the end. On an error the connection must be dropped. A wait
    /// that is given up loses nothing.
    pub async fn next(&mut self, link: &Link, limits: Limits) -> Result<Option<Bytes>, FlowError> {
        let mut pace = self.pace.take().unwrap_or_else(|| limits.pace());
        let next = self.wait_next(link, limits, &mut pace).await;
        self.pace = Some(pace);
        next
    }

    async fn wait_next(
        &mut self,
        link: &Link,
        limits: Limits,
        pace: &mut Pace,
    ) -> Result<Option<Bytes>, FlowError> {
        let room = self.sink.length() as u64;
        if self.taken - self.credited >= room.div_ceil(STEPS) {
            self.credit(link, pace).await?;
        }
        while self.taken == self.written {
            if self.done {
                return Ok(None);
            }
            self.credit(link, pace).await?;
            let before = self.written;
            match pace.receive(&link.channel).await? {
                message @ Message::Progress { id, bytes } => {
                    let limit = self.length.min(self.taken.saturating_add(room));
                    self.written = checked(message, (id, bytes), self.id, self.written, limit)?;
                }
                Message::Done { id, bytes }
                    if id == self.id && bytes == self.length && bytes - self.taken <= room =>
                {
                    self.written = bytes;
                    self.done = true;
                }
                other => {
                    let Self { id, length, .. } = self;
                    let due = Message::Done { id: *id, bytes: *length };
                    return Err(FlowError::Protocol(format!("it sent {other:?} where {due:?} was due")));
                }
            }
            pace.moved(self.written - before);
            // What it wrote round and round can only be held against it the first time.
            let told = self.sink.holds(self.written.min(room));
            told.map_err(|error| FlowError::Protocol(error.to_string()))?;
        }
        let offset = self.taken % room;
        let count = (self.written - self.taken).min(room - offset).min(limits.chunk as u64);
        // Both fit: they are within a region of this process.
        let (offset, count) = (usize::try_from(offset).unwrap_or(0), usize::try_from(count).unwrap_or(0));
        let bytes = self.sink.copy(offset, count).map_err(FlowError::Lost)?;
        self.taken += count as u64;
        Ok(Some(bytes.into()))
    }

    /// Tells what may be written over, unless all that is to come fits anyway.
    async fn credit(&mut self, link: &Link, pace: &mut Pace) -> Result<(), FlowError> {
        if self.taken > self.credited && self.length - self.credited > self.sink.length() as u64 {
            self.credited = self.taken;
            let message = Message::Credit { id: self.id, bytes: self.taken };
            pace.completed(link.channel.send(message)).await?;
        }
        Ok(())
    }
}
