//! Tagged segments that have not arrived whole: once their headers are checked, payload goes to its place as it comes,
//! without a stop in a buffer. The driver may even read it from the socket into the region.
//!
//! As siw does, and unlike a strict reading of RFC 5044, section 4.4, bytes are then placed before the CRC is known.
//! They are never *delivered* before: a bad CRC ends the stream, and no completion, message or response follows it.

use super::{Connection, Phase, Violation};
use crate::iwarp::Stag;
use crate::iwarp::crc;
use crate::iwarp::ddp::{Header, TAGGED_HEADER};
use crate::iwarp::fpdu;
use crate::iwarp::memory::{Denied, Memory, Reach};
use crate::iwarp::rdmap::{Opcode, Segment};
use crate::iwarp::terminate::{Code, Quote};

/// Payloads shorter than this wait until they are whole.
const SHORTEST: usize = 2048;

/// A tagged segment of which only the beginning has come.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) opcode: Opcode,
    pub(super) last: bool,
    pub(super) reach: Reach,
    /// Bytes of its payload.
    pub(super) length: usize,
    stag: Stag,
    /// Where the next byte belongs.
    to: u64,
    /// Bytes of the payload that have not come.
    left: usize,
    /// CRC32c so far.
    crc: u32,
    /// The region could not be written; what comes is dropped.
    failed: Option<Denied>,
    header: [u8; TAGGED_HEADER],
}

impl Direct {
    fn quote(&self) -> Quote {
        let length = u16::try_from(TAGGED_HEADER + self.length).ok();
        Quote { length, header: self.header.to_vec(), read_request: None }
    }

    /// Takes the next bytes of the payload.
    fn place(&mut self, bytes: &[u8], crc: bool, memory: &mut impl Memory) {
        if crc {
            self.crc = crc::append(self.crc, bytes);
        }
        if self.failed.is_none() && !bytes.is_empty() {
            self.failed = memory.place(self.reach, self.stag, self.to, bytes).err();
        }
        self.advance(bytes.len());
    }

    fn advance(&mut self, count: usize) {
        self.left -= count;
        self.to = self.to.wrapping_add(count as u64);
    }
}

impl Connection {
    /// Begins with the segment at the beginning of `bytes`, which is not whole, if nothing is wrong with it so far and
    /// it is worth it. Returns how many bytes that took. Whatever is wrong is found when it is whole.
    pub(super) fn begin_direct(&mut self, bytes: &[u8], memory: &mut impl Memory) -> usize {
        let start = fpdu::LENGTH + TAGGED_HEADER;
        let Some((head, payload)) = bytes.split_at_checked(start) else { return 0 };
        let Some(length) = fpdu::Fpdu::peek_length(head).map(|ulpdu| ulpdu.saturating_sub(TAGGED_HEADER))
        else {
            return 0;
        };
        let (length_field, header) = head.split_at(fpdu::LENGTH);
        let Ok(Segment { header: Header::Tagged { control, stag, to }, opcode, .. }) =
            Segment::decode(header)
        else {
            return 0;
        };
        if length < SHORTEST || !self.receiver.may_continue(opcode) {
            return 0;
        }
        let reach = if opcode == Opcode::Write { Reach::Remote } else { Reach::Local };
        if reach == Reach::Local
            && (self.transmitter.read_has_failed()
                || self.transmitter.check_read_response(stag, to, length, control.last).is_err())
        {
            return 0;
        }
        let payload = &payload[..payload.len().min(length)];
        // All of the segment must be allowed, not just what has come of it.
        let fill = &mut |sink: &mut [u8]| sink[..payload.len()].copy_from_slice(payload);
        if memory.sink(reach, stag, to, length, fill).is_err() {
            return 0;
        }
        let mut crc = 0;
        if self.crc {
            crc = crc::append(crc::append(crc::of(length_field), header), payload);
        }
        let mut copy = [0; TAGGED_HEADER];
        copy.copy_from_slice(header);
        let mut direct = Direct {
            opcode,
            last: control.last,
            reach,
            length,
            stag,
            to,
            left: length,
            crc,
            failed: None,
            header: copy,
        };
        direct.advance(payload.len());
        self.receiver.direct = Some(direct);
        start + payload.len()
    }

    /// Goes on with the segment that has been begun; 0 if nothing can be done.
    pub(super) fn continue_direct(
        &mut self,
        bytes: &[u8],
        memory: &mut impl Memory,
    ) -> Result<usize, Violation> {
        let Some(direct) = &mut self.receiver.direct else { return Ok(0) };
        let (payload, rest) = bytes.split_at(bytes.len().min(direct.left));
        direct.place(payload, self.crc, memory);
        let pad = fpdu::pad(TAGGED_HEADER + direct.length);
        if direct.left > 0 || rest.len() < pad + fpdu::CRC {
            return Ok(payload.len());
        }
        let (pad, rest) = rest.split_at(pad);
        let crc = rest.first_chunk().map_or(0, |crc| u32::from_le_bytes(*crc));
        if self.crc && crc::append(direct.crc, pad) != crc {
            return Err(Violation { code: Code::MPA_CRC, detail: None, quote: None });
        }
        let used = payload.len() + pad.len() + fpdu::CRC;
        if let Some(direct) = self.receiver.direct.take() {
            self.finish_direct(&direct, direct.failed).map_err(|code| Violation {
                code,
                detail: None,
                quote: Some(direct.quote()),
            })?;
        }
        Ok(used)
    }

    /// How many of the next bytes belong into a region, so that [`fill_direct`](Self::fill_direct) can take them there.
    pub fn direct_room(&self) -> usize {
        match &self.receiver.direct {
            Some(direct) if direct.failed.is_none() && !matches!(self.phase, Phase::Closed) => direct.left,
            _ => 0,
        }
    }

    /// The whole length of the payload that [`direct_room`](Self::direct_room) is the rest of.
    pub fn direct_length(&self) -> usize {
        self.receiver.direct.as_ref().map_or(0, |direct| direct.length)
    }

    /// Bytes from the end of that payload to the end of the next segment's header, if one of the same message follows:
    /// what comes then belongs into a region again.
    pub fn direct_gap(&self) -> Option<usize> {
        let direct = self.receiver.direct.as_ref().filter(|direct| !direct.last)?;
        Some(fpdu::pad(TAGGED_HEADER + direct.length) + fpdu::CRC + fpdu::LENGTH + TAGGED_HEADER)
    }

    /// Lets `read` put the next bytes of the stream where they belong. `read` says how many it put there. `None`: there
    /// is no such place (any more), and the bytes go to [`handle_bytes`](Self::handle_bytes).
    pub fn fill_direct<E>(
        &mut self,
        memory: &mut impl Memory,
        mut read: impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<usize, E>> {
        let with_crc = self.crc;
        if self.direct_room() == 0 {
            return None;
        }
        let direct = self.receiver.direct.as_mut()?;
        let (mut result, mut crc) = (None, direct.crc);
        let fill = &mut |sink: &mut [u8]| {
            let read = read(sink);
            if with_crc && let Ok(count) = &read {
                crc = crc::append(crc, &sink[..*count]);
            }
            result = Some(read);
        };
        if let Err(denied) = memory.sink(direct.reach, direct.stag, direct.to, direct.left, fill) {
            direct.failed = Some(denied);
            return None;
        }
        direct.crc = crc;
        if let Some(Ok(count)) = result {
            direct.advance(count);
        }
        result
    }
}
