//! Frames -> connections: opens, closes, and hands each direction's bytes to whoever understands them.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rdma_http::iwarp::decode::looks_like_mpa;

use super::frame::{Frame, Segment};
use super::http::{HttpStream, Speaker};
use super::in_place::InPlace;
use super::mpa::MpaConnection;
use super::reassembly::Reassembly;
use super::roce::Roce;
use super::tls::{TlsStream, looks_like_tls};
use super::{Conversation, Direction, End, Item, Opening, Times, WireConnection, WireError};

const MAX_CONNECTIONS: usize = 4096;
/// The longest beginning that is kept until it is clear which protocol it is.
const MAX_BEGINNING: usize = 64 << 10;
/// Bytes of the key that an MPA Request begins with (RFC 5044, section 7.1.1).
const MPA_KEY: usize = 16;

/// Follows every connection of a capture.
#[derive(Default)]
pub(super) struct Tracker {
    flows: Vec<Flow>,
    roce: Roce,
    /// Frames so far.
    frames: usize,
    by_addresses: HashMap<(SocketAddr, SocketAddr), usize>,
    arp_requests: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
    arp_replies: BTreeSet<Ipv4Addr>,
}

struct Flow {
    /// The place of its first frame in the capture.
    order: usize,
    initiator: SocketAddr,
    responder: SocketAddr,
    /// The initiator's first sequence number, if its SYN was seen.
    isn: Option<u32>,
    opened: Option<Duration>,
    opening: Opening,
    ends: [Side; 2],
    protocol: Protocol,
}

#[derive(Debug, Default)]
struct Side {
    reassembly: Reassembly,
    reset: bool,
    times: Times,
}

enum Protocol {
    /// What each direction said so far.
    Undecided([Vec<u8>; 2]),
    Http(Box<[HttpStream; 2]>),
    Tls([TlsStream; 2]),
    Mpa(Box<MpaConnection>),
    /// HTTP at first.
    InPlace(Box<InPlace>),
    Unknown([u64; 2]),
}

const FORTH: usize = 0;
const BACK: usize = 1;

impl Tracker {
    /// Takes the next frame.
    pub(super) fn frame(&mut self, time: Duration, frame: Frame<'_>) -> Result<(), WireError> {
        self.frames += 1;
        match frame {
            Frame::Roce { addresses, datagram } => self.roce.datagram(self.frames, time, addresses, datagram),
            Frame::Tcp(segment) => self.segment(time, &segment),
            Frame::ArpRequest { sender, target } => {
                self.arp_requests.insert((sender, target));
                Ok(())
            }
            Frame::ArpReply { sender } => {
                self.arp_replies.insert(sender);
                Ok(())
            }
            Frame::Other => Ok(()),
        }
    }

    fn segment(&mut self, time: Duration, segment: &Segment<'_>) -> Result<(), WireError> {
        let Some((index, way)) = self.flow_of(segment)? else { return Ok(()) };
        let flow = &mut self.flows[index];
        if segment.syn && way == FORTH {
            flow.opened.get_or_insert(time);
        }
        if segment.syn {
            flow.ends[way].reassembly.open(segment.sequence);
            if way == BACK {
                flow.opening = Opening::Established;
            }
        }
        if segment.rst {
            if flow.opening == Opening::Unanswered && way == BACK {
                flow.opening = Opening::Refused;
            } else if !flow.is_over() {
                flow.ends[way].reset = true;
                flow.ends[way].times.end.get_or_insert(time);
            }
            return Ok(());
        }
        if segment.syn || (segment.payload.is_empty() && !segment.fin) {
            return Ok(());
        }
        let Flow { ends, protocol, .. } = flow;
        let times = &mut ends[way].times;
        if !segment.payload.is_empty() {
            times.first.get_or_insert(time);
            times.last = Some(time);
        }
        if segment.fin {
            times.end.get_or_insert(time);
        }
        ends[way].reassembly.push(segment.sequence, segment.payload, segment.fin, &mut |bytes| {
            protocol.push(way, bytes);
            Ok(())
        })
    }

    /// The connection of a segment, and which way the segment goes; makes a new one where it must.
    fn flow_of(&mut self, segment: &Segment<'_>) -> Result<Option<(usize, usize)>, WireError> {
        let (from, to) = (segment.source, segment.destination);
        let opens = segment.syn && !segment.ack;
        if let Some(&index) = self.by_addresses.get(&(from, to)) {
            // The same ports again are the same connection, unless a SYN says otherwise: one with another number, or any
            // where the connection was there before the capture.
            if !opens || self.flows[index].isn == Some(segment.sequence) {
                return Ok(Some((index, FORTH)));
            }
        } else if let Some(&index) = self.by_addresses.get(&(to, from))
            && !opens
        {
            return Ok(Some((index, BACK)));
        }
        if segment.rst && !segment.syn {
            // The answer to something that was before the capture.
            return Ok(None);
        }
        if self.flows.len() == MAX_CONNECTIONS {
            return Err(WireError::TooManyConnections { limit: MAX_CONNECTIONS });
        }
        self.by_addresses.remove(&(to, from));
        self.by_addresses.insert((from, to), self.flows.len());
        self.flows.push(Flow {
            order: self.frames,
            initiator: from,
            responder: to,
            isn: opens.then_some(segment.sequence),
            opened: None,
            opening: if opens { Opening::Unanswered } else { Opening::Unseen },
            ends: <[Side; 2]>::default(),
            protocol: Protocol::Undecided(<[Vec<u8>; 2]>::default()),
        });
        Ok(Some((self.flows.len() - 1, FORTH)))
    }

    /// The capture has ended.
    pub(super) fn finish(self) -> Conversation {
        let answered = self.arp_replies;
        let requests = self.arp_requests.into_iter();
        let flows = self.flows.into_iter().map(|flow| (flow.order, flow.finish()));
        let mut connections: Vec<(usize, WireConnection)> = flows.chain(self.roce.finish()).collect();
        connections.sort_by_key(|(order, _)| *order);
        Conversation {
            connections: connections.into_iter().map(|(_, connection)| connection).collect(),
            unanswered_arp: requests.filter(|(_, target)| !answered.contains(target)).collect(),
            exposed: None,
        }
    }
}

impl Flow {
    fn is_over(&self) -> bool {
        self.ends.iter().all(|side| side.reassembly.is_finished() || side.reset)
    }

    fn finish(self) -> WireConnection {
        let [mut forth, mut back] = self.protocol.finish();
        for (direction, side) in [&mut forth, &mut back].into_iter().zip(&self.ends) {
            direction.times = side.times;
            direction.end = match side {
                Side { reset: true, .. } => End::Reset,
                side if side.reassembly.is_finished() => End::Fin,
                _ => End::Open,
            };
            if side.reassembly.waiting() > 0 {
                let lost = format!("{} bytes follow a gap that was never filled", side.reassembly.waiting());
                direction.items.push(Item::Malformed(lost));
            }
        }
        WireConnection {
            initiator: self.initiator,
            responder: self.responder,
            opening: self.opening,
            forth,
            back,
            opened: self.opened,
        }
    }
}

impl Protocol {
    fn push(&mut self, way: usize, bytes: &[u8]) {
        match self {
            Self::Undecided(beginnings) => {
                beginnings[way].extend_from_slice(bytes);
                self.decide();
            }
            Self::Http(streams) => {
                streams[way].push(bytes);
                if let Some(begun) = streams[BACK].switched() {
                    *self = Self::InPlace(Box::new(InPlace::after(streams, &begun)));
                }
            }
            Self::Tls(streams) => streams[way].push(bytes),
            Self::InPlace(connection) => connection.push(way == FORTH, bytes),
            Self::Mpa(connection) => connection.push(way == FORTH, bytes),
            Self::Unknown(lengths) => lengths[way] += bytes.len() as u64,
        }
    }

    /// Who connects speaks first, in all protocols.
    fn decide(&mut self) {
        let Self::Undecided(beginnings) = self else { return };
        let first = &beginnings[FORTH];
        let is_http = |beginning: &[u8]| beginning.first().is_some_and(u8::is_ascii_uppercase);
        let mut decided = if looks_like_mpa(first) {
            if first.len() < MPA_KEY {
                return;
            }
            Self::Mpa(Box::default())
        } else if is_http(first) {
            Self::Http(Box::new([HttpStream::new(Speaker::Client), HttpStream::new(Speaker::Server)]))
        } else if looks_like_tls(first) {
            Self::Tls(Default::default())
        } else if !first.is_empty() || beginnings[BACK].len() > MAX_BEGINNING {
            Self::Unknown([0, 0])
        } else {
            return;
        };
        for (way, beginning) in beginnings.iter().enumerate() {
            if !beginning.is_empty() {
                decided.push(way, beginning);
            }
        }
        *self = decided;
    }

    fn finish(self) -> [Direction; 2] {
        let plain = |items| Direction { items, ..Direction::default() };
        let unknown = |length| match length {
            0 => plain(Vec::new()),
            length => plain(vec![Item::Unknown { length }]),
        };
        match self {
            Self::Undecided(beginnings) => beginnings.map(|beginning| unknown(beginning.len() as u64)),
            Self::Http(streams) => streams.map(|stream| plain(stream.finish())),
            Self::Tls(streams) => streams.map(|stream| plain(stream.finish())),
            Self::Mpa(connection) => {
                connection.finish().map(|(items, crc)| Direction { items, crc, ..Direction::default() })
            }
            Self::InPlace(connection) => connection.finish(),
            Self::Unknown(lengths) => lengths.map(unknown),
        }
    }
}
