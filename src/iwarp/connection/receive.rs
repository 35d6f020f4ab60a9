//! What arrives: each FPDU is checked whole (CRC, headers, place) before any byte of it is placed or delivered.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::direct::Direct;
use super::{CloseReason, Connection, Event, Message, Phase, Violation};
use crate::iwarp::Stag;
use crate::iwarp::ddp::{self, Header, Msn, Queue};
use crate::iwarp::fpdu::{self, Fpdu};
use crate::iwarp::memory::{Denied, Memory, Reach};
use crate::iwarp::rdmap::{Opcode, READ_REQUEST, ReadRequest, Segment, SegmentError};
use crate::iwarp::terminate::{Code, Quote, Terminate};

/// The state of the receiving half.
#[derive(Debug)]
pub(super) struct Receiver {
    /// The next message's number on the queue of Sends.
    send_msn: Msn,
    /// The next message's number on the queue of Read Requests.
    read_msn: Msn,
    /// A Send of which not all segments have come.
    assembly: Option<(Opcode, BytesMut)>,
    /// The tagged message of which not all segments have come.
    tagged: Option<Opcode>,
    /// Messages that may still arrive.
    pub(super) posted: usize,
    /// Bytes of the longest message.
    receive_size: usize,
    /// Read Requests that are held at most.
    pub(super) ird: usize,
    /// Read Requests that are not answered yet.
    pub(super) reads: VecDeque<InboundRead>,
    /// A tagged segment whose payload goes to its place as it comes.
    pub(super) direct: Option<Direct>,
}

/// A Read Request that is being answered.
#[derive(Debug)]
pub(super) struct InboundRead {
    pub(super) request: ReadRequest,
    /// Bytes answered so far.
    pub(super) progress: u32,
    /// Its DDP header, for a Terminate.
    header: Header,
}

impl InboundRead {
    /// The violation that a source which cannot be read is. The quoted request tells what was left to do (RFC 5040,
    /// section 4.8).
    pub(super) fn violation(&self, denied: Denied) -> Violation {
        let code = denied.read_code();
        if code == Code::LOCAL_CATASTROPHIC {
            return Violation { code, detail: Some("the source of a Read cannot be read"), quote: None };
        }
        let mut header = Vec::new();
        self.header.encode(&mut header);
        let progress = self.progress;
        let read_request = ReadRequest {
            sink_to: self.request.sink_to.wrapping_add(progress.into()),
            source_to: self.request.source_to.wrapping_add(progress.into()),
            length: self.request.length - progress,
            ..self.request
        };
        let length = (ddp::UNTAGGED_HEADER + READ_REQUEST) as u16;
        let quote = Quote { length: Some(length), header, read_request: Some(read_request) };
        Violation { code, detail: None, quote: Some(quote) }
    }
}

impl Receiver {
    pub(super) fn new(receive_size: usize) -> Self {
        Self {
            send_msn: Msn::FIRST,
            read_msn: Msn::FIRST,
            assembly: None,
            tagged: None,
            posted: 0,
            receive_size,
            ird: 0,
            reads: VecDeque::new(),
            direct: None,
        }
    }

    #[cfg(test)]
    pub(super) fn set_send_msn(&mut self, msn: u32) {
        self.send_msn = Msn(msn);
    }

    /// Messages of one form do not interleave: a tagged segment continues the tagged message that is open.
    fn continue_tagged(&mut self, opcode: Opcode, last: bool) -> Result<(), Code> {
        if !self.may_continue(opcode) {
            return Err(Code::RDMAP_OPCODE);
        }
        self.tagged = (!last).then_some(opcode);
        Ok(())
    }

    /// Whether a tagged segment of this kind may come now.
    pub(super) fn may_continue(&self, opcode: Opcode) -> bool {
        self.tagged.is_none_or(|open| open == opcode)
    }

    /// Takes a segment of a Send; the whole message, if this was its last (RFC 5041, section 5.3).
    fn take_send(&mut self, opcode: Opcode, header: Header, payload: &[u8]) -> Result<Option<Bytes>, Code> {
        let Header::Untagged { control, queue, msn, offset, .. } = header else {
            return Err(Code::RDMAP_OPCODE);
        };
        check_queue(queue, Queue::SEND)?;
        if msn != self.send_msn {
            return Err(Code::UNTAGGED_MSN);
        }
        let received = match &self.assembly {
            Some((open, _)) if *open != opcode => return Err(Code::RDMAP_OPCODE),
            Some((_, bytes)) => bytes.len(),
            None if self.posted == 0 => return Err(Code::UNTAGGED_NO_BUFFER),
            None => 0,
        };
        if offset as usize != received {
            return Err(Code::UNTAGGED_OFFSET);
        }
        if payload.len() > self.receive_size - received {
            return Err(Code::UNTAGGED_TOO_LONG);
        }
        if self.assembly.is_none() {
            self.posted -= 1;
        }
        if control.last {
            self.send_msn = self.send_msn.next();
        }
        match (self.assembly.take(), control.last) {
            (None, true) => Ok(Some(Bytes::copy_from_slice(payload))),
            (open, last) => {
                let (_, mut bytes) = open.unwrap_or((opcode, BytesMut::new()));
                bytes.extend_from_slice(payload);
                if last {
                    Ok(Some(bytes.freeze()))
                } else {
                    self.assembly = Some((opcode, bytes));
                    Ok(None)
                }
            }
        }
    }

    /// Takes a Read Request (RFC 5040, section 5.2).
    fn take_read_request(&mut self, header: Header, payload: &[u8]) -> Result<InboundRead, Code> {
        let Header::Untagged { control, queue, msn, offset, .. } = header else {
            return Err(Code::RDMAP_OPCODE);
        };
        check_queue(queue, Queue::READ_REQUEST)?;
        if msn != self.read_msn {
            return Err(Code::UNTAGGED_MSN);
        }
        if offset != 0 {
            return Err(Code::UNTAGGED_OFFSET);
        }
        // A buffer of this queue holds exactly one body, which is one segment.
        if payload.len() > READ_REQUEST || !control.last {
            return Err(Code::UNTAGGED_TOO_LONG);
        }
        let body = payload.first_chunk().ok_or(Code::OPERATION_UNSPECIFIED)?;
        if self.reads.len() >= self.ird {
            return Err(Code::UNTAGGED_NO_BUFFER);
        }
        self.read_msn = self.read_msn.next();
        Ok(InboundRead { request: ReadRequest::decode(body), progress: 0, header })
    }
}

fn check_queue(queue: Queue, expected: Queue) -> Result<(), Code> {
    if queue == expected { Ok(()) } else { Err(Code::UNTAGGED_QUEUE) }
}

/// The quote of a segment that was intelligible.
fn quote(ulpdu: &[u8], read_request: Option<ReadRequest>) -> Option<Quote> {
    let header = ulpdu.get(..ddp::header_size(*ulpdu.first()?))?.to_vec();
    Some(Quote { length: u16::try_from(ulpdu.len()).ok(), header, read_request })
}

impl Connection {
    /// Handles the FPDU at the beginning of `bytes`; 0 if it is not there whole.
    pub(super) fn handle_fpdu(&mut self, bytes: &[u8], memory: &mut impl Memory) -> Result<usize, Violation> {
        let mpa = |code, detail| Violation { code, detail, quote: None };
        if let Some(length) = Fpdu::peek_length(bytes)
            && length < fpdu::MIN_ULPDU
        {
            return Err(mpa(Code::MPA_LENGTH, Some("an FPDU too short for a DDP header")));
        }
        let Some(fpdu) = Fpdu::split(bytes) else { return Ok(self.begin_direct(bytes, memory)) };
        let ulpdu = fpdu.ulpdu();
        if self.crc && !fpdu.crc_is_good() {
            // The kernel's siw leaves the CRC of a Terminate out that ends the start-up.
            let first = matches!(self.phase, Phase::AwaitRtr(_)) || self.held;
            let terminate = Segment::decode(ulpdu).is_ok_and(|s| s.opcode == Opcode::Terminate);
            if !(first && terminate && fpdu.crc() == 0) {
                return Err(mpa(Code::MPA_CRC, None));
            }
        }
        let segment = Segment::decode(ulpdu).map_err(|error| Violation {
            code: error.code(),
            detail: None,
            quote: match error {
                SegmentError::Header(ddp::HeaderError::Truncated { .. }) => None,
                _ => quote(ulpdu, None),
            },
        })?;
        if segment.opcode != Opcode::Terminate {
            self.release();
        }
        let blame = |code| Violation { code, detail: None, quote: quote(ulpdu, None) };
        match segment.opcode {
            Opcode::Write => self.handle_write(&segment, memory).map_err(blame)?,
            Opcode::ReadResponse => self.handle_read_response(&segment, memory).map_err(blame)?,
            Opcode::Send { .. } => self.handle_send(&segment, memory).map_err(blame)?,
            Opcode::ReadRequest => {
                let read = self.receiver.take_read_request(segment.header, segment.payload).map_err(blame)?;
                let ReadRequest { source, source_to, length, .. } = read.request;
                // A Read of nothing has no source (RFC 5040, section 5.2).
                if length > 0
                    && let Err(denied) = memory.check_source(source, source_to, length)
                {
                    return Err(read.violation(denied));
                }
                self.receiver.reads.push_back(read);
            }
            Opcode::Terminate => match Terminate::decode(segment.payload) {
                Ok(terminate) => self.end(CloseReason::Terminated(terminate)),
                Err(_) => return Err(blame(Code::OPERATION_UNSPECIFIED)),
            },
        }
        Ok(fpdu.bytes().len())
    }

    /// The first FPDU has come: the responder may send (RFC 5044, section 7.1.2), and if it waited for the initiator
    /// to be ready the connection is established.
    fn release(&mut self) {
        self.held = false;
        if let Phase::AwaitRtr(_) = self.phase
            && let Phase::AwaitRtr(settled) = std::mem::replace(&mut self.phase, Phase::Open)
        {
            self.events.push_back(Event::Connected(settled));
        }
    }

    fn handle_write(&mut self, segment: &Segment<'_>, memory: &mut impl Memory) -> Result<(), Code> {
        let Header::Tagged { control, stag, to } = segment.header else { return Err(Code::RDMAP_OPCODE) };
        self.receiver.continue_tagged(segment.opcode, control.last)?;
        if segment.payload.is_empty() {
            return Ok(());
        }
        memory.place(Reach::Remote, stag, to, segment.payload).map_err(Denied::tagged_code)
    }

    fn handle_read_response(&mut self, segment: &Segment<'_>, memory: &mut impl Memory) -> Result<(), Code> {
        let Header::Tagged { control, stag, to } = segment.header else { return Err(Code::RDMAP_OPCODE) };
        self.receiver.continue_tagged(segment.opcode, control.last)?;
        self.transmitter.check_read_response(stag, to, segment.payload.len(), control.last)?;
        let failed = if segment.payload.is_empty() || self.transmitter.read_has_failed() {
            None
        } else {
            memory.place(Reach::Local, stag, to, segment.payload).err()
        };
        if self.transmitter.take_read_response(segment.payload.len(), control.last, failed) {
            self.complete();
        }
        Ok(())
    }

    /// A tagged segment's last byte has come, and its payload is placed unless `failed` says why not.
    pub(super) fn finish_direct(&mut self, direct: &Direct, failed: Option<Denied>) -> Result<(), Code> {
        self.release();
        self.receiver.continue_tagged(direct.opcode, direct.last)?;
        match direct.reach {
            Reach::Remote => failed.map_or(Ok(()), |denied| Err(denied.tagged_code())),
            Reach::Local => {
                if self.transmitter.take_read_response(direct.length, direct.last, failed) {
                    self.complete();
                }
                Ok(())
            }
        }
    }

    fn handle_send(&mut self, segment: &Segment<'_>, memory: &mut impl Memory) -> Result<(), Code> {
        let (Header::Untagged { invalidate: stag, .. }, Opcode::Send { solicited, invalidate }) =
            (segment.header, segment.opcode)
        else {
            return Err(Code::RDMAP_OPCODE);
        };
        let Some(bytes) = self.receiver.take_send(segment.opcode, segment.header, segment.payload)? else {
            return Ok(());
        };
        // Before the message can be seen the region is no longer reachable (RFC 5040, section 5.3).
        let invalidated: Option<Stag> = invalidate.then_some(stag);
        if let Some(stag) = invalidated {
            memory.invalidate(stag).map_err(Denied::invalidate_code)?;
        }
        self.events.push_back(Event::Received(Message { bytes, invalidated, solicited }));
        Ok(())
    }
}
