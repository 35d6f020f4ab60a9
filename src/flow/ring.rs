//! The taker's side of Writes: a region that is written round and round, and emptied as it goes.

use std::ops::Range;

use bytes::Bytes;

use super::{FlowError, Limits, Link, Pace, STEPS, checked};
use crate::header::TransferId;
use crate::memory::Sink;
use crate::message::Message;

/// A body that a peer writes into a region of ours.
pub(super) struct Ring {
    id: TransferId,
    sink: Sink,
    /// Bytes of the whole body; of it, counted from its beginning: written, taken out, and told of as taken.
    length: u64,
    written: u64,
    taken: u64,
    credited: u64,
    done: bool,
}

impl Ring {
    /// A body of `length` bytes on its way into `sink`.
    pub(super) fn new(id: TransferId, sink: Sink, length: u64) -> Self {
        Self { id, sink, length, written: 0, taken: 0, credited: 0, done: length == 0 }
    }

    /// Bytes that are taken out.
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
            for part in places(before..self.written, room) {
                self.sink.holds(part).map_err(|error| FlowError::Protocol(error.to_string()))?;
            }
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
        let room = self.sink.length() as u64;
        if self.taken > self.credited && self.length - self.credited > room {
            // Before the peer may write there again: it is held to that, too.
            for part in places(self.credited..self.taken, room) {
                self.sink.expect(part);
            }
            self.credited = self.taken;
            let message = Message::Credit { id: self.id, bytes: self.taken };
            pace.completed(link.channel.send(message)).await?;
        }
        Ok(())
    }
}

/// Where these bytes of a body lie in a region of `room` bytes; there are no more of them than that.
fn places(bytes: Range<u64>, room: u64) -> [Range<u64>; 2] {
    let start = bytes.start % room;
    let length = bytes.end - bytes.start;
    let here = length.min(room - start);
    [start..start + here, 0..length - here]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_round_lies_at_the_end_and_at_the_beginning() {
        assert_eq!(places(0..10, 10), [0..10, 0..0]);
        assert_eq!(places(23..27, 10), [3..7, 0..0]);
        assert_eq!(places(27..30, 10), [7..10, 0..0]);
        assert_eq!(places(27..33, 10), [7..10, 0..3]);
        assert_eq!(places(27..37, 10), [7..10, 0..7]);
    }
}
