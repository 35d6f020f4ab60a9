//! RoCEv2 as it went over the wire: packets -> messages, in the order in which the receiver takes them.
//!
//! A receiver takes the packet whose number is next and no other (go back N), so that is what is followed here: neither
//! loss nor repetition shows. Acknowledgements are left out, but for those that refuse.

mod packet;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use packet::{Connected, Management, Packet, Part, Syndrome};

use super::{CmMessage, Direction, End, Item, Opening, Run, Times, WireConnection, WireError};

/// The UDP port of RoCEv2.
pub(crate) const PORT: u16 = 4791;

const MAX_CONNECTIONS: usize = 4096;
/// Most bytes that one Send may have; ours have 32. What is longer is not kept and called malformed.
const MAX_SEND: usize = 1 << 20;
/// Read Requests of one side whose answers are still to come.
const MAX_READS: usize = 4096;

const FORTH: usize = 0;
const BACK: usize = 1;

/// Follows every connection of a capture.
#[derive(Default)]
pub(super) struct Roce {
    connections: Vec<Connection>,
}

struct Connection {
    /// The place of its first frame among all of the capture's.
    order: usize,
    initiator: SocketAddr,
    responder: SocketAddr,
    /// The communication manager's numbers for it: the initiator's and the responder's.
    numbers: [u32; 2],
    /// The queue pairs at the initiator and at the responder.
    queue_pairs: [Option<u32>; 2],
    mtu: u32,
    opening: Opening,
    opened: Duration,
    ways: [Way; 2],
}

/// What one side sent.
#[derive(Default)]
struct Way {
    items: Vec<Item>,
    times: Times,
    end: End,
    /// The number of the next request.
    next: u32,
    write: Option<Run>,
    send: Option<Vec<u8>>,
    /// Of the Read Requests that the other side has sent: the number of the next answer and how many packets are left.
    reads: VecDeque<(u32, u32)>,
    answered: u64,
}

/// Sequence numbers have 24 bits.
fn after(psn: u32, packets: u32) -> u32 {
    psn.wrapping_add(packets) & 0x00ff_ffff
}

impl Roce {
    /// Takes the next datagram; `order` is its frame's place in the capture.
    pub(super) fn datagram(
        &mut self,
        order: usize,
        time: Duration,
        (from, to): (IpAddr, IpAddr),
        datagram: &[u8],
    ) -> Result<(), WireError> {
        match packet::parse(datagram) {
            Some(Packet::Management(message)) => self.management(order, time, (from, to), message),
            Some(Packet::Connected(packet)) => {
                self.connected(time, (from, to), &packet);
                Ok(())
            }
            Some(Packet::Other) | None => Ok(()),
        }
    }

    fn management(
        &mut self,
        order: usize,
        time: Duration,
        (from, to): (IpAddr, IpAddr),
        message: Management<'_>,
    ) -> Result<(), WireError> {
        let remote = match message {
            Management::Request { local, port, from_port, queue_pair, psn, depths, mtu, private_data } => {
                let known =
                    |known: &Connection| known.initiator.ip() == from && known.numbers[FORTH] == local;
                if self.connections.iter().any(known) {
                    return Ok(());
                }
                if self.connections.len() == MAX_CONNECTIONS {
                    return Err(WireError::TooManyConnections { limit: MAX_CONNECTIONS });
                }
                let item = Item::Cm(CmMessage::Request { depths, private_data: private_data.to_vec() });
                self.connections.push(Connection {
                    order,
                    initiator: SocketAddr::new(from, from_port),
                    responder: SocketAddr::new(to, port),
                    numbers: [local, 0],
                    queue_pairs: [Some(queue_pair), None],
                    mtu: mtu.max(1),
                    opening: Opening::Unanswered,
                    opened: time,
                    ways: [Way { items: vec![item], ..Way::default() }, Way { next: psn, ..Way::default() }],
                });
                return Ok(());
            }
            Management::Other => return Ok(()),
            Management::Reply { remote, .. }
            | Management::Ready { remote }
            | Management::Reject { remote, .. }
            | Management::Disconnect { remote }
            | Management::Disconnected { remote } => remote,
        };
        // It is told by the number that its receiver gave the connection.
        let Some((connection, way)) = self.connections.iter_mut().rev().find_map(|known| {
            if known.responder.ip() == from && known.initiator.ip() == to && known.numbers[FORTH] == remote {
                Some((known, BACK))
            } else if known.initiator.ip() == from
                && known.responder.ip() == to
                && known.numbers[BACK] == remote
            {
                Some((known, FORTH))
            } else {
                None
            }
        }) else {
            return Ok(());
        };
        match message {
            Management::Reply { local, queue_pair, psn, depths, private_data, .. }
                if connection.opening == Opening::Unanswered =>
            {
                connection.opening = Opening::Established;
                connection.numbers[BACK] = local;
                connection.queue_pairs[BACK] = Some(queue_pair);
                let item = Item::Cm(CmMessage::Reply { depths, private_data: private_data.to_vec() });
                connection.ways[BACK].items.push(item);
                connection.ways[FORTH].next = psn;
            }
            Management::Reject { reason, .. } if connection.opening == Opening::Unanswered => {
                connection.opening = Opening::Refused;
                connection.ways[BACK].items.push(Item::Cm(CmMessage::Reject { reason }));
            }
            Management::Disconnect { .. } | Management::Disconnected { .. } => {
                connection.ways[way].end = End::Disconnected;
                connection.ways[way].times.end.get_or_insert(time);
            }
            _ => {}
        }
        Ok(())
    }

    fn connected(&mut self, time: Duration, (from, to): (IpAddr, IpAddr), packet: &Connected<'_>) {
        let target = Some(packet.destination);
        let found = self.connections.iter_mut().rev().find_map(|known| {
            let ends = (known.initiator.ip(), known.responder.ip());
            if ends == (from, to) && known.queue_pairs[BACK] == target {
                Some((known, FORTH))
            } else if ends == (to, from) && known.queue_pairs[FORTH] == target {
                Some((known, BACK))
            } else {
                None
            }
        });
        // One that was there before the capture.
        let Some((connection, way)) = found else { return };
        let mtu = connection.mtu;
        let [forth, back] = &mut connection.ways;
        let (sender, receiver) = if way == FORTH { (forth, back) } else { (back, forth) };
        let taken = match packet.part {
            Part::ReadResponse { last } => sender.response(packet, last),
            Part::Acknowledge(Syndrome::Flow) => false,
            Part::Acknowledge(Syndrome::Failed(why)) => {
                let refusal = Item::Refusal(why.to_owned());
                // It is repeated for as long as its receiver goes on.
                if sender.items.last() != Some(&refusal) {
                    sender.items.push(refusal);
                }
                true
            }
            _ => sender.request(packet, mtu, receiver),
        };
        if taken {
            sender.times.first.get_or_insert(time);
            sender.times.last = Some(time);
        }
    }

    /// The capture has ended: its connections, each with the place of its first frame.
    pub(super) fn finish(self) -> impl Iterator<Item = (usize, WireConnection)> {
        self.connections.into_iter().map(|connection| {
            let [forth, back] = connection.ways.map(|way| Direction {
                items: way.items,
                end: way.end,
                times: way.times,
                ..Direction::default()
            });
            let Connection { initiator, responder, opening, opened, .. } = connection;
            (
                connection.order,
                WireConnection { initiator, responder, opening, forth, back, opened: Some(opened) },
            )
        })
    }
}

impl Way {
    /// A request, or a part of one; whether it was the one that was due.
    fn request(&mut self, packet: &Connected<'_>, mtu: u32, other: &mut Way) -> bool {
        if packet.psn != self.next {
            return false;
        }
        self.next = after(self.next, 1);
        let length = packet.payload.len() as u64;
        match packet.part {
            Part::Write { to, last } => {
                let run = match (to, self.write.take()) {
                    (Some((stag, to)), None) => Run { stag, to, length, messages: 1 },
                    (None, Some(run)) => Run { length: run.length + length, ..run },
                    _ => {
                        self.malformed("an RDMA Write is not continued where it left off");
                        return true;
                    }
                };
                if last { self.written(run) } else { self.write = Some(run) }
            }
            Part::Send { first, last, invalidates } => self.sent(packet, first, last, invalidates),
            Part::ReadRequest { rkey, address, length } => {
                let packets = length.div_ceil(mtu).max(1);
                self.next = after(packet.psn, packets);
                if other.reads.len() < MAX_READS {
                    other.reads.push_back((packet.psn, packets));
                }
                self.items.push(Item::ReadRequest { sink: None, source: (rkey, address), length });
            }
            Part::Foreign(opcode) => self.malformed(&format!("opcode {opcode:#04x} is none of ours")),
            Part::ReadResponse { .. } | Part::Acknowledge(_) => {}
        }
        true
    }

    /// A whole Write: joins the run that it continues, or begins one.
    fn written(&mut self, message: Run) {
        match self.items.last_mut() {
            Some(Item::Writes(run))
                if run.stag == message.stag && run.to.checked_add(run.length) == Some(message.to) =>
            {
                run.length += message.length;
                run.messages += 1;
            }
            _ => self.items.push(Item::Writes(message)),
        }
    }

    fn sent(&mut self, packet: &Connected<'_>, first: bool, last: bool, invalidates: Option<u32>) {
        let begun = self.send.take();
        if first == begun.is_some() {
            self.malformed("a Send is not continued where it left off");
        }
        let mut message = begun.unwrap_or_default();
        if message.len() + packet.payload.len() > MAX_SEND {
            self.malformed("a Send is longer than any message of ours");
        } else {
            message.extend_from_slice(packet.payload);
        }
        if last {
            self.items.push(Item::Send { message, invalidates, solicited: packet.solicited });
        } else {
            self.send = Some(message);
        }
    }

    /// Bytes that the other side reads; whether they were those that are due.
    fn response(&mut self, packet: &Connected<'_>, last: bool) -> bool {
        let Some((next, left)) = self.reads.front_mut() else { return false };
        if packet.psn != *next {
            return false;
        }
        (*next, *left) = (after(*next, 1), left.saturating_sub(1));
        self.answered += packet.payload.len() as u64;
        if last || *left == 0 {
            self.reads.pop_front();
            let length = std::mem::take(&mut self.answered);
            self.items.push(Item::ReadData { length });
        }
        true
    }

    fn malformed(&mut self, why: &str) {
        self.items.push(Item::Malformed(format!("RoCE: {why}")));
    }
}
