//! What is sent: posted work and the answers to the peer's Reads, cut into FPDUs, and what then completes.

use std::collections::VecDeque;

use bytes::Bytes;

use super::output::{Output, Payload};
use super::{CloseReason, Connection, Event, Phase, Rtr, Sending, Work, WorkError};
use crate::iwarp::Stag;
use crate::iwarp::ddp::{Control, Header, Msn, Queue, TAGGED_HEADER, UNTAGGED_HEADER};
use crate::iwarp::fpdu;
use crate::iwarp::memory::{Denied, Lent, Memory, Reach};
use crate::iwarp::rdmap::{Opcode, ReadRequest};
use crate::iwarp::terminate::{Code, Terminate};

/// How many of the peer's Reads are answered before a message of our own has its turn, and the other way round one.
/// Whole messages: two tagged ones may not interleave (RFC 5041, section 5.3).
const RESPONSES_IN_A_ROW: usize = 4;

/// The EMSS that is assumed until the driver says otherwise: that of an Ethernet with timestamps.
const DEFAULT_EMSS: usize = 1448;

/// Bytes of a page, and the room of a segment from which it is cut to whole ones: with less too much would be given up.
const PAGE: usize = 4096;
const PAGES_FROM: usize = 8 * PAGE;

/// Posted work that has not completed.
#[derive(Debug)]
struct Item {
    work: Work,
    /// Bytes of it that are cut.
    progress: u64,
    state: State,
    /// Whether it completes silently: the RTR.
    silent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not all cut.
    Queued,
    /// All cut; complete when the transport has taken this many bytes.
    Cut(u64),
    /// A Read whose response has not come.
    Reading,
    /// Complete, as soon as all before it are.
    Done(Result<(), WorkError>),
}

/// A Read that waits for its response.
#[derive(Debug)]
struct OutboundRead {
    sink: Stag,
    sink_to: u64,
    length: u32,
    received: u32,
    failed: Option<Denied>,
}

/// The message of which not all segments are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Work,
    Response,
}

/// The state of the sending half.
#[derive(Debug)]
pub(super) struct Transmitter {
    items: VecDeque<Item>,
    /// How many of `items`, from the front, are all cut.
    cut: usize,
    reads: VecDeque<OutboundRead>,
    pub(super) ord: usize,
    pub(super) mulpdu: usize,
    send_msn: Msn,
    read_msn: Msn,
    turn: Option<Turn>,
    responses: usize,
    /// Bytes made, and bytes that the transport has taken.
    made: u64,
    taken: u64,
}

impl Default for Transmitter {
    fn default() -> Self {
        Self {
            items: VecDeque::new(),
            cut: 0,
            reads: VecDeque::new(),
            ord: 0,
            mulpdu: fpdu::mulpdu(DEFAULT_EMSS),
            send_msn: Msn::FIRST,
            read_msn: Msn::FIRST,
            turn: None,
            responses: 0,
            made: 0,
            taken: 0,
        }
    }
}

impl Transmitter {
    pub(super) fn post(&mut self, work: Work) {
        self.items.push_back(Item { work, progress: 0, state: State::Queued, silent: false });
    }

    /// The empty message with which an initiator of the peer-to-peer model begins (RFC 6581, section 4.2).
    pub(super) fn post_rtr(&mut self, rtr: Rtr) {
        let none = Stag(0);
        let work = match rtr {
            Rtr::Write => Work::Write { source: none, source_to: 0, length: 0, sink: none, sink_to: 0 },
            Rtr::Read => Work::Read { sink: none, sink_to: 0, length: 0, source: none, source_to: 0 },
            Rtr::Send => Work::Send { message: Bytes::new(), invalidate: None, solicited: false },
        };
        // Nothing can go before it; what the program posted early waits behind.
        self.items.push_front(Item { work, progress: 0, state: State::Queued, silent: true });
    }

    #[cfg(test)]
    pub(super) fn set_send_msn(&mut self, msn: u32) {
        self.send_msn = Msn(msn);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn is_inside_work(&self) -> bool {
        self.turn == Some(Turn::Work)
    }

    /// Checks a segment of a Read Response against the oldest Read that waits for one (RFC 5040, section 4.4).
    pub(super) fn check_read_response(
        &self,
        stag: Stag,
        to: u64,
        length: usize,
        last: bool,
    ) -> Result<(), Code> {
        let read = self.reads.front().ok_or(Code::TAGGED_INVALID_STAG)?;
        if stag != read.sink {
            return Err(Code::TAGGED_INVALID_STAG);
        }
        let left = (read.length - read.received) as usize;
        if to != read.sink_to.wrapping_add(read.received.into()) || length > left || (last && length < left) {
            return Err(Code::TAGGED_BOUNDS);
        }
        Ok(())
    }

    /// Whether the oldest Read has failed already: then what comes for it is dropped.
    pub(super) fn read_has_failed(&self) -> bool {
        self.reads.front().is_some_and(|read| read.failed.is_some())
    }

    /// Takes note of a segment of a Read Response that was checked, and is placed unless `failed` says why not: that
    /// our own region went away is no fault of the peer's, and fails the Read only. True when the Read is done.
    pub(super) fn take_read_response(&mut self, length: usize, last: bool, failed: Option<Denied>) -> bool {
        let Some(read) = self.reads.front_mut() else { return false };
        read.failed = read.failed.or(failed);
        // It is at most what was left, which came from a u32.
        read.received += length as u32;
        if !last {
            return false;
        }
        let result = read.failed.map_or(Ok(()), |denied| Err(denied.into()));
        self.reads.pop_front();
        // Reads are answered in order, so this is the first that waits.
        if let Some(item) = self.items.iter_mut().take(self.cut).find(|i| i.state == State::Reading) {
            item.state = State::Done(result);
        }
        true
    }

    /// Whose message is next, if anybody's.
    fn choose(&mut self, output: Sending, responses_waiting: bool) -> Option<Turn> {
        if self.turn.is_some() {
            return self.turn;
        }
        let work_waits = output == Sending::Open
            && self.items.get(self.cut).is_some_and(|item| match item.work {
                // At the limit a Read waits, and all behind it: messages go in order.
                Work::Read { .. } => self.ord == 0 || self.reads.len() < self.ord,
                _ => true,
            });
        match (work_waits, responses_waiting) {
            (false, false) => None,
            (true, true) if self.responses >= RESPONSES_IN_A_ROW => Some(Turn::Work),
            (_, true) => Some(Turn::Response),
            (true, false) => Some(Turn::Work),
        }
    }

    fn finish_work(&mut self, state: State) {
        self.items[self.cut].state = state;
        self.cut += 1;
        self.turn = None;
        self.responses = 0;
    }

    /// Appends the next FPDU of the next posted work, of which there is one. False: not now.
    fn append_work<M: Memory>(
        &mut self,
        out: &mut Output<M::Lease>,
        crc: bool,
        memory: &mut M,
    ) -> Result<bool, Denied> {
        let item = &mut self.items[self.cut];
        let progress = item.progress;
        let (length, last) = match &item.work {
            Work::Write { source, source_to, length, sink, sink_to } => {
                let room = whole_pages(self.mulpdu - TAGGED_HEADER, source_to.wrapping_add(progress));
                let (chunk, last) = cut(*length, progress, room);
                let payload = fetch(memory, Reach::Local, *source, *source_to, progress, chunk, crc)?;
                let Some(payload) = payload else { return Ok(false) };
                let header = tagged(Opcode::Write, last, *sink, sink_to.wrapping_add(progress));
                out.fpdu(crc, |out| header.encode(out), payload, chunk);
                (chunk, last)
            }
            Work::Send { message, invalidate, solicited } => {
                let (chunk, last) = cut(message.len() as u64, progress, self.mulpdu - UNTAGGED_HEADER);
                let opcode = Opcode::Send { solicited: *solicited, invalidate: invalidate.is_some() };
                let header = Header::Untagged {
                    control: Control { last, ulp: opcode.control() },
                    invalidate: invalidate.unwrap_or(Stag(0)),
                    queue: Queue::SEND,
                    msn: self.send_msn,
                    // `Work::Send` is bounded by 32 bits.
                    offset: progress as u32,
                };
                let start = progress as usize;
                let payload = Payload::Message(message.slice(start..start + chunk));
                out.fpdu(crc, |out| header.encode(out), payload, chunk);
                if last {
                    self.send_msn = self.send_msn.next();
                }
                (chunk, last)
            }
            &Work::Read { sink, sink_to, length, source, source_to } => {
                if self.ord == 0 {
                    self.finish_work(State::Done(Err(WorkError::NoReads)));
                    return Ok(true);
                }
                let header = Header::Untagged {
                    control: Control { last: true, ulp: Opcode::ReadRequest.control() },
                    invalidate: Stag(0),
                    queue: Queue::READ_REQUEST,
                    msn: self.read_msn,
                    offset: 0,
                };
                let request = ReadRequest { sink, sink_to, length, source, source_to };
                let headers = |out: &mut Vec<u8>| {
                    header.encode(out);
                    request.encode(out);
                };
                out.fpdu(crc, headers, Payload::None, 0);
                self.read_msn = self.read_msn.next();
                self.reads.push_back(OutboundRead { sink, sink_to, length, received: 0, failed: None });
                self.finish_work(State::Reading);
                return Ok(true);
            }
        };
        item.progress += length as u64;
        self.turn = Some(Turn::Work);
        if last {
            // `made` counts what was made before this call of `poll_transmit`; the rest is in `out`.
            let end = self.made + out.len() as u64;
            self.finish_work(State::Cut(end));
        }
        Ok(true)
    }
}

/// Asks for a segment's payload. `None`: not now.
fn fetch<M: Memory>(
    memory: &mut M,
    reach: Reach,
    stag: Stag,
    to: u64,
    progress: u64,
    length: usize,
    inspect: bool,
) -> Result<Option<Payload<M::Lease>>, Denied> {
    if length == 0 {
        return Ok(Some(Payload::None));
    }
    match memory.fetch(reach, stag, to.wrapping_add(progress), length, inspect)? {
        Some(Lent::File(_)) if inspect => Err(Denied::Unreadable),
        lent => Ok(lent.map(Payload::Lent)),
    }
}

/// Bytes of the next tagged segment that begins at offset `at` of its source, of `room` at most. A large one ends where a
/// page of the source does: the kernel then sends and receives whole pages, and a file's need not be split among two
/// of its socket buffers.
fn whole_pages(room: usize, at: u64) -> usize {
    // Less than a page, so it fits.
    let beyond = (at.wrapping_add(room as u64) % PAGE as u64) as usize;
    if room < PAGES_FROM { room } else { room - beyond }
}

/// How much of a message the next segment takes, and whether it is the last.
fn cut(length: u64, progress: u64, room: usize) -> (usize, bool) {
    let left = length - progress;
    match usize::try_from(left) {
        Ok(left) if left <= room => (left, true),
        _ => (room, false),
    }
}

fn tagged(opcode: Opcode, last: bool, stag: Stag, to: u64) -> Header {
    Header::Tagged { control: Control { last, ulp: opcode.control() }, stag, to }
}

/// Appends a Terminate's FPDU: queue 2, the first and only message there (RFC 5040, section 5.4).
pub(super) fn append_terminate(out: &mut Vec<u8>, terminate: &Terminate, crc: bool) {
    let start = fpdu::begin(out);
    Header::Untagged {
        control: Control { last: true, ulp: Opcode::Terminate.control() },
        invalidate: Stag(0),
        queue: Queue::TERMINATE,
        msn: Msn::FIRST,
        offset: 0,
    }
    .encode(out);
    terminate.encode(out);
    fpdu::seal(out, start, crc);
}

impl Connection {
    /// Appends bytes to send to `out`, which must be empty: whole FPDUs, until they are `limit` bytes or more, or there
    /// is nothing to send now. What they carry is lent by `memory`, not copied.
    pub fn poll_transmit<M: Memory>(&mut self, out: &mut Output<M::Lease>, limit: usize, memory: &mut M) {
        debug_assert!(out.is_empty(), "completions are counted from the beginning of `out`");
        out.append(&mut self.control);
        let established = matches!(self.phase, Phase::Open) || self.output == Sending::ResponsesOnly;
        while established && !self.held && self.output != Sending::Ended && out.len() < limit {
            let turn = self.transmitter.choose(self.output, !self.receiver.reads.is_empty());
            let more = match turn {
                None => false,
                Some(Turn::Work) => match self.transmitter.append_work(out, self.crc, memory) {
                    Ok(more) => more,
                    Err(denied) => {
                        // The message can be neither finished nor taken back, and what was posted behind it may say that all
                        // was written: the connection ends, as a device's does (RFC 5040, section 7.1: 0/0).
                        self.queue_terminate(Terminate::new(Code::LOCAL_CATASTROPHIC, None));
                        self.end(CloseReason::Local(denied));
                        false
                    }
                },
                Some(Turn::Response) => self.append_response(out, memory),
            };
            if !more {
                break;
            }
        }
        out.append(&mut self.control);
        self.transmitter.made += out.len() as u64;
        self.complete();
    }

    /// Takes note that the transport has taken `bytes` more of what [`poll_transmit`](Self::poll_transmit) made.
    pub fn handle_transmitted(&mut self, bytes: usize) {
        self.transmitter.taken += bytes as u64;
        self.complete();
    }

    /// Appends the next FPDU of the oldest Read's response (RFC 5040, section 5.2). False: not now, or no more.
    fn append_response<M: Memory>(&mut self, out: &mut Output<M::Lease>, memory: &mut M) -> bool {
        let Some(read) = self.receiver.reads.front_mut() else { return false };
        let ReadRequest { sink, sink_to, length, source, source_to } = read.request;
        let progress = u64::from(read.progress);
        let room = whole_pages(self.transmitter.mulpdu - TAGGED_HEADER, source_to.wrapping_add(progress));
        let (chunk, last) = cut(length.into(), progress, room);
        let payload = match fetch(memory, Reach::Remote, source, source_to, progress, chunk, self.crc) {
            Ok(Some(payload)) => payload,
            Ok(None) => return false,
            Err(denied) => {
                let violation = read.violation(denied);
                self.fail(violation);
                return false;
            }
        };
        let header = tagged(Opcode::ReadResponse, last, sink, sink_to.wrapping_add(progress));
        out.fpdu(self.crc, |out| header.encode(out), payload, chunk);
        self.transmitter.turn = Some(Turn::Response);
        // At most `length`.
        read.progress += chunk as u32;
        if last {
            self.receiver.reads.pop_front();
            self.transmitter.turn = None;
            self.transmitter.responses += 1;
        }
        true
    }

    /// Reports what is complete, in the order of posting (RFC 5040, section 5.5).
    pub(super) fn complete(&mut self) {
        if let Phase::Closed = self.phase {
            return;
        }
        let transmitter = &mut self.transmitter;
        while let Some(item) = transmitter.items.front() {
            let result = match item.state {
                State::Done(result) => result,
                State::Cut(end) if end <= transmitter.taken => Ok(()),
                _ => break,
            };
            let silent = item.silent;
            transmitter.items.pop_front();
            transmitter.cut -= 1;
            if !silent {
                self.events.push_back(Event::Completed(result));
            }
        }
    }
}
