//! iWARP as it went over the wire: FPDUs -> messages, so that neither segmentation nor the order between the directions
//! shows.

use rdma_http::iwarp::ddp::{Header, Msn, Queue};
use rdma_http::iwarp::decode::{Body, CrcVerdict, DecodeError, Decoder, Item as Seen, SegmentItem, Side};
use rdma_http::iwarp::mpa::{FrameKind, StartFrame};
use rdma_http::iwarp::rdmap::Opcode;

use super::{Item, MpaStart, Run};

/// Most bytes that one Send may have; ours have 32. What is longer is not kept and called malformed.
const MAX_SEND: usize = 1 << 20;

/// The verdicts on the checksums of a direction's FPDUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CrcTally {
    /// Right.
    pub good: u64,
    /// Wrong.
    pub bad: u64,
    /// Of connections on which no CRC is in use.
    pub unchecked: u64,
}

impl CrcTally {
    /// FPDUs that were seen.
    pub fn fpdus(&self) -> u64 {
        self.good + self.bad + self.unchecked
    }
}

/// Follows one connection, both directions.
#[derive(Default)]
pub(super) struct MpaConnection {
    decoder: Decoder,
    ways: [Way; 2],
}

struct Way {
    items: Vec<Item>,
    crc: CrcTally,
    /// The message that has begun and not ended, of each form: one tagged and one untagged may interleave.
    tagged: Option<(Opcode, Run)>,
    send: Option<Vec<u8>>,
    /// For queues 0 to 2: the number that the next message must have.
    next_msn: [Msn; 3],
    failed: bool,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            crc: CrcTally::default(),
            tagged: None,
            send: None,
            next_msn: [Msn::FIRST; 3],
            failed: false,
        }
    }
}

impl MpaConnection {
    /// Takes the next bytes of a direction.
    pub(super) fn push(&mut self, from_initiator: bool, bytes: &[u8]) {
        let side = if from_initiator { Side::Initiator } else { Side::Responder };
        let outcome = self.decoder.push(side, bytes);
        self.collect();
        self.note(side, outcome);
    }

    /// The capture has ended: what each direction said, the initiator's first.
    pub(super) fn finish(mut self) -> [(Vec<Item>, CrcTally); 2] {
        for side in [Side::Initiator, Side::Responder] {
            let outcome = self.decoder.finish(side);
            self.note(side, outcome);
        }
        self.ways.map(|way| {
            let mut items = way.items;
            if way.tagged.is_some() || way.send.is_some() {
                items.push(Item::Malformed("iWARP: a message without its last segment".to_owned()));
            }
            (items, way.crc)
        })
    }

    /// Says once of a direction what is wrong with it.
    fn note(&mut self, pushed: Side, outcome: Result<(), DecodeError>) {
        let Err(error) = outcome else { return };
        let side = match &error {
            DecodeError::Start { side, .. } | DecodeError::Truncated { side, .. } => *side,
            DecodeError::Markers(side)
            | DecodeError::AfterReject(side)
            | DecodeError::WaitingTooLong(side) => *side,
            _ => pushed,
        };
        let way = &mut self.ways[index(side)];
        if !std::mem::replace(&mut way.failed, true) {
            way.items.push(Item::Malformed(format!("iWARP: {error}")));
        }
    }

    fn collect(&mut self) {
        while let Some(seen) = self.decoder.next_item() {
            match seen {
                Seen::Start { side, frame } => {
                    self.ways[index(side)].items.push(Item::MpaStart(start(&frame)));
                }
                Seen::Fpdu { side, crc, segment, .. } => {
                    let way = &mut self.ways[index(side)];
                    match crc {
                        CrcVerdict::Good => way.crc.good += 1,
                        CrcVerdict::Bad => way.crc.bad += 1,
                        CrcVerdict::NotInUse => way.crc.unchecked += 1,
                    }
                    match segment {
                        Ok(segment) => way.segment(segment),
                        Err(error) => way.items.push(Item::Malformed(format!("iWARP: {error}"))),
                    }
                }
            }
        }
    }
}

impl Way {
    fn segment(&mut self, segment: SegmentItem) {
        let last = segment.is_last();
        if let Header::Untagged { queue, msn, .. } = segment.header {
            self.check_msn(queue, msn, last);
        }
        match (segment.header, segment.body) {
            (Header::Tagged { stag, to, .. }, Body::Tagged) => {
                let part = Run { stag: stag.0, to, length: segment.payload_length as u64, messages: 1 };
                self.tagged(segment.opcode, part, last);
            }
            (Header::Untagged { invalidate, offset, .. }, Body::Send(bytes)) => {
                let kept = bytes.len() == segment.payload_length;
                self.send(segment.opcode, invalidate.0, offset, &bytes, last);
                if !kept {
                    self.malformed("a Send is longer than any message of ours");
                }
            }
            (_, Body::ReadRequest(request)) => self.items.push(Item::ReadRequest {
                sink: Some((request.sink.0, request.sink_to)),
                source: (request.source.0, request.source_to),
                length: request.length,
            }),
            (_, Body::Terminate(terminate)) => self.items.push(Item::Terminate(terminate.to_string())),
            (_, _) => self.malformed(&format!("a {:?} of the wrong form", segment.opcode)),
        }
    }

    fn malformed(&mut self, why: &str) {
        self.items.push(Item::Malformed(format!("iWARP: {why}")));
    }

    /// Messages of a queue are numbered from 1 and sent in that order (RFC 5041, sections 4.4 and 5.3).
    fn check_msn(&mut self, queue: Queue, msn: Msn, last: bool) {
        let Ok(index) = usize::try_from(queue.0) else { return };
        let Some(expected) = self.next_msn.get_mut(index) else {
            return self.malformed(&format!("no queue has the number {}", queue.0));
        };
        let wanted = *expected;
        // After a wrong one, go on from there: it is said once.
        *expected = if last { msn.next() } else { msn };
        if msn != wanted {
            self.malformed(&format!("message {} of queue {} where {} was due", msn.0, queue.0, wanted.0));
        }
    }

    fn tagged(&mut self, opcode: Opcode, part: Run, last: bool) {
        let (opcode, run) = match self.tagged.take() {
            None => (opcode, part),
            Some((begun, run)) => {
                if begun != opcode || run.stag != part.stag || run.to.wrapping_add(run.length) != part.to {
                    self.malformed("a tagged message is not continued where it left off");
                }
                (begun, Run { length: run.length + part.length, ..run })
            }
        };
        if last {
            self.run(opcode, run);
        } else {
            self.tagged = Some((opcode, run));
        }
    }

    /// A whole tagged message: joins the run that it continues, or begins one.
    fn run(&mut self, opcode: Opcode, message: Run) {
        let is_write = opcode == Opcode::Write;
        let known = match self.items.last_mut() {
            Some(Item::Writes(run)) if is_write => Some(run),
            Some(Item::ReadResponses(run)) if !is_write => Some(run),
            _ => None,
        };
        match known {
            Some(run) if run.stag == message.stag && run.to.checked_add(run.length) == Some(message.to) => {
                run.length += message.length;
                run.messages += 1;
            }
            _ if is_write => self.items.push(Item::Writes(message)),
            _ => self.items.push(Item::ReadResponses(message)),
        }
    }

    fn send(&mut self, opcode: Opcode, invalidate: u32, offset: u32, bytes: &[u8], last: bool) {
        let mut message = self.send.take().unwrap_or_default();
        if usize::try_from(offset) != Ok(message.len()) {
            self.malformed("a Send is not continued where it left off");
        }
        if message.len() + bytes.len() <= MAX_SEND {
            message.extend_from_slice(bytes);
        } else {
            self.malformed("a Send is longer than any message of ours");
        }
        if !last {
            self.send = Some(message);
            return;
        }
        let (solicited, invalidates) = match opcode {
            Opcode::Send { solicited, invalidate: true } => (solicited, Some(invalidate)),
            Opcode::Send { solicited, .. } => (solicited, None),
            _ => (false, None),
        };
        self.items.push(Item::Send { message, invalidates, solicited });
    }
}

fn index(side: Side) -> usize {
    match side {
        Side::Initiator => 0,
        Side::Responder => 1,
    }
}

fn start(frame: &StartFrame) -> MpaStart {
    let forms = frame.enhanced.and_then(|enhanced| enhanced.peer_to_peer).map(|rtr| {
        let forms = [(rtr.send, "Send"), (rtr.write, "Write"), (rtr.read, "Read")];
        let names: Vec<&str> = forms.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        names.join(" or ")
    });
    MpaStart {
        request: frame.kind == FrameKind::Request,
        revision: frame.revision.number(),
        markers: frame.markers,
        crc: frame.crc,
        rejected: frame.reject,
        depths: frame.enhanced.map(|enhanced| (enhanced.ird, enhanced.ord)),
        ready_to_receive: forms,
        private_data: frame.private_data.to_vec(),
    }
}
