//! The buffer that a connection reads into.

use std::io;

use tokio::net::TcpStream;

use crate::iwarp::fpdu;

/// Bytes of a read at most: many FPDUs for one system call, and still in the processor's cache when they are checked
/// and copied.
const READ: usize = 256 << 10;

/// Bytes that have arrived and are not handled yet. Its pages are touched as they are needed.
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

/// What a read brought.
pub(super) enum Arrival {
    /// Bytes.
    Bytes,
    /// The end of the stream.
    End,
    /// Nothing, for now.
    Nothing,
}

impl Input {
    /// Begins with bytes that were read before.
    pub(super) fn new(first: &[u8]) -> Self {
        let mut bytes = vec![0; READ + fpdu::MAX_FPDU_RECEIVED.max(first.len())];
        bytes[..first.len()].copy_from_slice(first);
        Self { bytes, start: 0, end: first.len() }
    }

    pub(super) fn pending(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "no more than was pending");
    }

    /// Reads once, without waiting.
    pub(super) fn read(&mut self, stream: &TcpStream) -> io::Result<Arrival> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < READ / 4 {
            // What is left is less than one FPDU.
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match stream.try_read(&mut self.bytes[self.end..]) {
            Ok(0) => Ok(Arrival::End),
            Ok(count) => {
                self.end += count;
                Ok(Arrival::Bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Arrival::Nothing),
            Err(error) => Err(error),
        }
    }
}
