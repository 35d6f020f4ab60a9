//! Two connections in one process, joined by byte strings that are delivered in pieces of any size.

use std::collections::HashMap;

use super::*;
use crate::iwarp::decode::{CrcVerdict, Decoder, Item, Side};
use crate::iwarp::golden::{self, hex};
use crate::iwarp::memory::{Lent, Reach, locate};
use crate::iwarp::mpa::Revision;
use crate::iwarp::rdmap::Opcode;

mod by_hand;
mod checklist;
mod checks;
mod direct;
mod errors;
mod operations;
mod properties;
mod start_up;

/// Regions by STag, and why the peer may not touch them, if it may not.
#[derive(Default)]
struct Regions(HashMap<Stag, Vec<u8>>, Option<Denied>);

impl Regions {
    fn find(&mut self, stag: Stag, to: u64, length: usize) -> Result<&mut [u8], Denied> {
        if let Some(denied) = self.1 {
            return Err(denied);
        }
        let region = self.0.get_mut(&stag).ok_or(Denied::InvalidStag)?;
        let range = locate(0, region.len(), to, length)?;
        Ok(&mut region[range])
    }
}

impl Memory for Regions {
    type Lease = Vec<u8>;

    fn sink(
        &mut self,
        _: Reach,
        stag: Stag,
        to: u64,
        length: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), Denied> {
        self.find(stag, to, length).map(fill)
    }

    fn check_source(&mut self, stag: Stag, to: u64, length: u32) -> Result<(), Denied> {
        self.find(stag, to, length as usize).map(drop)
    }

    fn fetch(
        &mut self,
        _: Reach,
        stag: Stag,
        to: u64,
        length: usize,
        _: bool,
    ) -> Result<Option<Lent<Vec<u8>>>, Denied> {
        self.find(stag, to, length).map(|bytes| Some(Lent::Bytes(bytes.to_vec())))
    }

    fn invalidate(&mut self, stag: Stag) -> Result<(), Denied> {
        self.1.map_or(Ok(()), Err)?;
        self.0.remove(&stag).map(drop).ok_or(Denied::InvalidStag)
    }
}

fn config() -> Config {
    Config {
        revision: Revision::V2,
        crc: true,
        ird: 4,
        ord: 4,
        peer_to_peer: false,
        receive_size: 1 << 20,
        private_data: Bytes::from_static(b"pd"),
    }
}

/// One end with its memory and what came of it.
struct End {
    connection: Connection,
    memory: Regions,
    /// Bytes on their way to it.
    inbound: Vec<u8>,
    events: Vec<Event>,
    posted: usize,
}

impl End {
    fn new(connection: Connection) -> Self {
        let mut memory = Regions::default();
        memory.0.insert(Stag(1 << 8), vec![0; 5000]);
        Self { connection, memory, inbound: Vec::new(), events: Vec::new(), posted: 1000 }
    }

    /// Takes what has arrived, `piece` bytes at a time.
    fn take(&mut self, piece: usize) {
        let mut available = 0;
        loop {
            self.connection.set_posted_receives(self.posted);
            let used = self.connection.handle_bytes(&self.inbound[..available], &mut self.memory);
            self.inbound.drain(..used);
            available -= used;
            let before = self.events.len();
            while let Some(event) = self.connection.poll_event() {
                self.posted -= usize::from(matches!(event, Event::Received(_)));
                self.events.push(event);
            }
            if used == 0 && before == self.events.len() {
                if available == self.inbound.len() {
                    return;
                }
                available = (available + piece).min(self.inbound.len());
            }
        }
    }

    fn transmit(&mut self, limit: usize) -> Vec<u8> {
        let mut out = Output::default();
        self.connection.poll_transmit(&mut out, limit, &mut self.memory);
        self.connection.handle_transmitted(out.len());
        out.to_vec().unwrap()
    }

    fn received(&self) -> Vec<&Message> {
        self.events.iter().filter_map(|e| if let Event::Received(m) = e { Some(m) } else { None }).collect()
    }

    fn completed(&self) -> Vec<Result<(), WorkError>> {
        self.events.iter().filter_map(|e| if let Event::Completed(r) = e { Some(*r) } else { None }).collect()
    }

    fn closed(&self) -> Option<&CloseReason> {
        self.events.iter().find_map(|e| if let Event::Closed(reason) = e { Some(reason) } else { None })
    }
}

/// Both ends, and all that each has sent, for the decoder.
struct Pair {
    initiator: End,
    responder: End,
    sent: [Vec<u8>; 2],
    piece: usize,
    emss: usize,
}

impl Pair {
    fn new(ours: Config, theirs: Config) -> Self {
        let mut initiator = End::new(Connection::initiate(ours).unwrap());
        let request_bytes = initiator.transmit(1000);
        let (request, used) = StartFrame::decode(FrameKind::Request, &request_bytes).unwrap().unwrap();
        assert_eq!(used, request_bytes.len(), "no FPDU before the Reply");
        let responder = End::new(Connection::respond(&request, &theirs).unwrap());
        Self { initiator, responder, sent: [request_bytes, Vec::new()], piece: 1 << 20, emss: 536 }
    }

    fn default() -> Self {
        Self::new(config(), config())
    }

    /// Carries bytes until nothing moves.
    fn run(&mut self) {
        loop {
            self.initiator.take(self.piece);
            self.responder.take(self.piece);
            self.initiator.connection.set_emss(self.emss);
            self.responder.connection.set_emss(self.emss);
            let (a, b) = (self.initiator.transmit(2000), self.responder.transmit(2000));
            self.responder.inbound.extend_from_slice(&a);
            self.initiator.inbound.extend_from_slice(&b);
            self.sent[0].extend_from_slice(&a);
            self.sent[1].extend_from_slice(&b);
            if a.is_empty() && b.is_empty() {
                return;
            }
        }
    }

    /// What a bystander saw: opcode, last flag and payload length of each FPDU of one side.
    fn seen(&self, side: Side) -> Vec<(Opcode, bool, usize)> {
        let mut decoder = Decoder::new();
        decoder.push(Side::Initiator, &self.sent[0]).unwrap();
        decoder.push(Side::Responder, &self.sent[1]).unwrap();
        std::iter::from_fn(|| decoder.next_item())
            .filter_map(|item| match item {
                Item::Fpdu { side: from, crc, segment, .. } if from == side => {
                    assert_ne!(crc, CrcVerdict::Bad);
                    let segment = segment.unwrap();
                    Some((segment.opcode, segment.is_last(), segment.payload_length))
                }
                _ => None,
            })
            .collect()
    }
}

const REGION: Stag = Stag(1 << 8);
const PLAIN: Opcode = Opcode::Send { solicited: false, invalidate: false };

fn send(message: &[u8]) -> Work {
    Work::Send { message: Bytes::copy_from_slice(message), invalidate: None, solicited: false }
}

fn write(length: u64) -> Work {
    Work::Write { source: REGION, source_to: 0, length, sink: REGION, sink_to: 0 }
}

fn read(length: u32) -> Work {
    Work::Read { sink: REGION, sink_to: 0, length, source: REGION, source_to: 0 }
}
