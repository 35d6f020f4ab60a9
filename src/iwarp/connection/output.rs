//! Bytes to be sent, in order: those made here (headers, pads, CRCs) and those that are lent (payloads), so that one
//! vectored write can carry many FPDUs without a copy of what they carry.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use bytes::Bytes;

use crate::iwarp::crc as checksum;
use crate::iwarp::fpdu;
use crate::iwarp::memory::{FileRange, Lent};

/// Payloads up to this size are copied next to their header: a piece of their own costs more.
const COPIED: usize = 256;

/// What a piece of the output is.
#[derive(Debug)]
enum Piece<L> {
    /// A range of `made`.
    Made(Range<usize>),
    /// A Send's message, or a part of it.
    Message(Bytes),
    /// A region's bytes from here on.
    Lease(L, usize),
    /// A file's.
    File(FileRange),
}

impl<L: AsRef<[u8]>> Piece<L> {
    fn len(&self) -> usize {
        match self {
            Self::Made(range) => range.len(),
            Self::Message(bytes) => bytes.len(),
            Self::Lease(lease, from) => lease.as_ref().len() - from,
            Self::File(range) => range.length,
        }
    }
}

/// What the front of the output is.
#[derive(Debug)]
pub enum Front<'a> {
    /// Nothing.
    Empty,
    /// Bytes in memory, as many pieces of them as were asked for at most; whether a file follows them.
    Memory(Vec<IoSlice<'a>>, bool),
    /// A file's bytes.
    File(&'a FileRange),
}

/// A payload for an FPDU.
pub(super) enum Payload<L> {
    None,
    Message(Bytes),
    Lent(Lent<L>),
}

/// Bytes to be sent.
#[derive(Debug)]
pub struct Output<L> {
    made: Vec<u8>,
    pieces: VecDeque<Piece<L>>,
    length: usize,
    /// Where the last piece of `made` ends that is in `pieces`.
    closed: usize,
}

impl<L> Default for Output<L> {
    fn default() -> Self {
        Self { made: Vec::new(), pieces: VecDeque::new(), length: 0, closed: 0 }
    }
}

impl<L: AsRef<[u8]>> Output<L> {
    /// Bytes that are left.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether none are left.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends bytes and leaves `bytes` empty.
    pub(super) fn append(&mut self, bytes: &mut Vec<u8>) {
        self.length += bytes.len();
        self.made.append(bytes);
    }

    /// Appends an FPDU: its header is what `header` appends, its payload is `length` bytes of `payload`.
    pub(super) fn fpdu(
        &mut self,
        crc: bool,
        header: impl FnOnce(&mut Vec<u8>),
        payload: Payload<L>,
        length: usize,
    ) {
        let before = self.made.len();
        let start = fpdu::begin(&mut self.made);
        header(&mut self.made);
        let headers = self.made.len() - before;
        let ulpdu = headers - fpdu::LENGTH + length;
        fpdu::set_length(&mut self.made[start..], ulpdu);
        let mut sum = 0;
        let lent = match payload {
            Payload::None => None,
            Payload::Message(bytes) if bytes.len() <= COPIED => {
                self.made.extend_from_slice(&bytes);
                None
            }
            Payload::Lent(Lent::Bytes(lease)) if lease.as_ref().len() <= COPIED => {
                self.made.extend_from_slice(lease.as_ref());
                None
            }
            Payload::Message(bytes) => Some(Piece::Message(bytes)),
            Payload::Lent(Lent::Bytes(lease)) => Some(Piece::Lease(lease, 0)),
            Payload::Lent(Lent::File(range)) => Some(Piece::File(range)),
        };
        if crc {
            sum = checksum::of(&self.made[before..]);
            match &lent {
                Some(Piece::Message(bytes)) => sum = checksum::append(sum, bytes),
                Some(Piece::Lease(lease, _)) => sum = checksum::append(sum, lease.as_ref()),
                _ => {}
            }
        }
        if let Some(lent) = lent {
            debug_assert_eq!(lent.len(), length, "the length that was asked for");
            self.close();
            self.pieces.push_back(lent);
        }
        let pad = &[0; 3][..fpdu::pad(ulpdu)];
        if crc {
            sum = checksum::append(sum, pad);
        }
        self.made.extend_from_slice(pad);
        self.made.extend_from_slice(&sum.to_le_bytes());
        self.length += fpdu::size(ulpdu);
    }

    /// Makes a piece of what was made since the last one.
    fn close(&mut self) {
        if self.closed < self.made.len() {
            self.pieces.push_back(Piece::Made(self.closed..self.made.len()));
            self.closed = self.made.len();
        }
    }

    /// What is to be sent next, in at most `pieces` pieces.
    pub fn front(&mut self, pieces: usize) -> Front<'_> {
        self.close();
        let mut slices = Vec::with_capacity(self.pieces.len().min(pieces));
        for piece in self.pieces.iter().take(pieces) {
            slices.push(IoSlice::new(match piece {
                Piece::Made(range) => &self.made[range.clone()],
                Piece::Message(bytes) => bytes,
                Piece::Lease(lease, from) => &lease.as_ref()[*from..],
                Piece::File(range) if slices.is_empty() => return Front::File(range),
                Piece::File(_) => return Front::Memory(slices, true),
            }));
        }
        if slices.is_empty() { Front::Empty } else { Front::Memory(slices, false) }
    }

    /// Takes note that the first `count` bytes are sent.
    pub fn advance(&mut self, mut count: usize) {
        self.close();
        self.length -= count;
        while count > 0
            && let Some(piece) = self.pieces.front_mut()
        {
            let length = piece.len();
            if count >= length {
                count -= length;
                self.pieces.pop_front();
                continue;
            }
            match piece {
                Piece::Made(range) => range.start += count,
                Piece::Message(bytes) => drop(bytes.split_to(count)),
                Piece::Lease(_, from) => *from += count,
                Piece::File(range) => {
                    range.offset += count as u64;
                    range.length -= count;
                }
            }
            break;
        }
        if self.pieces.is_empty() {
            self.made.clear();
            self.closed = 0;
        }
    }

    /// Gives all leases back: what is left of their bytes is copied.
    pub fn release(&mut self) {
        self.close();
        if !self.pieces.iter().any(|piece| matches!(piece, Piece::Lease(..))) {
            return;
        }
        let mut kept = Self::default();
        for piece in self.pieces.drain(..) {
            match piece {
                Piece::Made(range) => kept.made.extend_from_slice(&self.made[range]),
                Piece::Lease(lease, from) => kept.made.extend_from_slice(&lease.as_ref()[from..]),
                Piece::Message(_) | Piece::File(_) => {
                    kept.close();
                    kept.pieces.push_back(piece);
                }
            }
        }
        kept.length = self.length;
        *self = kept;
    }

    /// Frees memory that nothing is in, if it is more than `kept` bytes.
    pub fn shrink(&mut self, kept: usize) {
        if self.is_empty() && self.made.capacity() + self.pieces.capacity() * size_of::<Piece<L>>() > kept {
            *self = Self::default();
        }
    }

    /// All bytes that are left, for whoever sends them otherwise; a file's are read.
    pub fn to_vec(&mut self) -> std::io::Result<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        self.close();
        let mut out = Vec::with_capacity(self.length);
        for piece in &self.pieces {
            match piece {
                Piece::Made(range) => out.extend_from_slice(&self.made[range.clone()]),
                Piece::Message(bytes) => out.extend_from_slice(bytes),
                Piece::Lease(lease, from) => out.extend_from_slice(&lease.as_ref()[*from..]),
                Piece::File(range) => {
                    let start = out.len();
                    out.resize(start + range.length, 0);
                    range.file.read_exact_at(&mut out[start..], range.offset)?;
                }
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_same_bytes_however_they_are_taken(
            payloads in proptest::collection::vec((0usize..2000, 0u8..3), 0..8),
            steps in proptest::collection::vec((1usize..900, any::<bool>()), 0..40),
            crc in any::<bool>(),
        ) {
            let (mut output, mut expected) = (Output::<Vec<u8>>::default(), Vec::new());
            for (at, (length, kind)) in payloads.iter().enumerate() {
                let body: Vec<u8> = (0..*length).map(|i| (i + at) as u8).collect();
                let payload = match kind {
                    0 => Payload::Message(Bytes::from(body.clone())),
                    1 => Payload::Lent(Lent::Bytes(body.clone())),
                    _ => Payload::None,
                };
                let body = if *kind > 1 { Vec::new() } else { body };
                output.fpdu(crc, |out| out.extend_from_slice(b"fourteen bytes"), payload, body.len());
                let start = fpdu::begin(&mut expected);
                expected.extend_from_slice(b"fourteen bytes");
                expected.extend_from_slice(&body);
                fpdu::seal(&mut expected, start, crc);
            }
            prop_assert_eq!(output.len(), expected.len());
            prop_assert_eq!(&output.to_vec().unwrap(), &expected);
            let mut seen = Vec::new();
            for (step, release) in steps {
                let mut taken = 0;
                if let Front::Memory(slices, _) = output.front(3) {
                    for slice in slices {
                        let take = slice.len().min(step - taken);
                        seen.extend_from_slice(&slice[..take]);
                        taken += take;
                    }
                }
                output.advance(taken);
                if release {
                    output.release();
                }
                prop_assert_eq!(output.len(), expected.len() - seen.len());
            }
            seen.extend(output.to_vec().unwrap());
            prop_assert_eq!(seen, expected);
        }
    }
}
