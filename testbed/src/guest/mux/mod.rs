//! Many connections over one serial line: what connects the command line with an agent inside a guest.
//!
//! A line carries bytes in order and loses none (UML's tty on a socketpair, QEMU's virtio port). The host's side opens
//! streams and names the service that is to take them; each stream then carries bytes both ways until both sides have
//! finished. A sender may have as many bytes under way as the receiver has granted it, so that a stream that nobody
//! reads stops itself and no other.
//!
//! [`frame`] is the wire, [`Mux`] the state machine (bytes in, bytes and events out: no I/O, no clock), [`Driver`] what
//! joins it to a line and to sockets.
//!
//! ```text
//! guest → host   the 8 bytes of [`frame::GREETING`], once the line is raw; the host sends nothing before
//! then frames    stream: u32, kind: u8, length: u16, all big-endian, and so many bytes
//!     open       the service: u8                 host only; streams count up from 1
//!     data       up to 16 KiB
//!     credit     so many bytes more: u32         the receiver has handed that much on
//!     finish                                     no more data this way
//!     reset                                      the stream is gone, both ways
//!     taken      so many bytes more: u32         guest only; stream 0: so much of the line has arrived
//! ```
//!
//! The last is for lines that lose their way when too much waits in them, as a terminal of UML's does that was throttled:
//! the host then has no more under way than the line bears.

mod driver;
pub mod frame;
mod state;

#[cfg(test)]
mod tests;

pub use driver::{Driver, Incoming, LineClosed, Opener};
pub use state::{Event, Mux, MuxError, Role};

use std::fmt;

/// Bytes that may be under way in a stream, in either direction.
pub const WINDOW: usize = 64 << 10;

/// Streams at once.
pub const MAX_STREAMS: usize = 1024;

/// A stream's number; never used twice on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {}", self.0)
    }
}

/// What a stream is for; the two sides agree on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service(pub u8);
