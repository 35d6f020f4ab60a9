//! RoCEv2 packets, taken apart: what a UDP datagram to port 4791 holds (InfiniBand Architecture Specification, volume 1,
//! chapter 9 for the transport's headers, section 12.6 for the communication manager's messages; annex A17 for RoCEv2).

/// Bytes of the checksum that ends every packet.
const ICRC: usize = 4;
/// Bytes of the base transport header.
const BTH: usize = 12;
/// Opcodes of the reliable connection, all of which have their upper three bits clear.
const RELIABLE: u8 = 0b1110_0000;
/// Unreliable datagram, Send Only: what management datagrams are.
const UD_SEND_ONLY: u8 = 0x64;
/// The queue pair of the communication manager's messages.
const GSI: u32 = 1;

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// Of a reliable connection.
    Connected(Connected<'a>),
    /// Of the communication manager.
    Management(Management<'a>),
    /// Anything else.
    Other,
}

/// A packet of a reliable connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connected<'a> {
    /// The queue pair that it goes to.
    pub(super) destination: u32,
    /// Its sequence number, of 24 bits.
    pub(super) psn: u32,
    /// Asks for an event at the receiver.
    pub(super) solicited: bool,
    /// What it is.
    pub(super) part: Part,
    /// Its bytes.
    pub(super) payload: &'a [u8],
}

/// Which part of a message a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Of a Send. The last may invalidate a region.
    Send { first: bool, last: bool, invalidates: Option<u32> },
    /// Of an RDMA Write. The first says where to: rkey and address.
    Write { to: Option<(u32, u64)>, last: bool },
    /// An RDMA Read Request.
    ReadRequest { rkey: u32, address: u64, length: u32 },
    /// Of the bytes read.
    ReadResponse { last: bool },
    /// An acknowledgement.
    Acknowledge(Syndrome),
    /// An operation that is not ours: atomics, Sends with immediate data.
    Foreign(u8),
}

/// What an acknowledgement says (section 9.7.5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syndrome {
    /// All is well, or the sender is to send again: a matter of loss and buffers.
    Flow,
    /// The operation failed, in words.
    Failed(&'static str),
}

/// A message of the communication manager (sections 12.6.5 to 12.6.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Management<'a> {
    /// REQ: asks for a connection.
    Request {
        /// The asker's number for it.
        local: u32,
        /// The port, of a service of TCP's kind (annex A11).
        port: u16,
        /// The asker's own port.
        from_port: u16,
        /// The asker's queue pair.
        queue_pair: u32,
        /// The first sequence number that it expects of its peer.
        psn: u32,
        /// Reads that it takes at once, and those that it sends.
        depths: (u8, u8),
        /// Bytes of payload in a full packet.
        mtu: u32,
        /// What the program adds.
        private_data: &'a [u8],
    },
    /// REP: grants it.
    Reply { local: u32, remote: u32, queue_pair: u32, psn: u32, depths: (u8, u8), private_data: &'a [u8] },
    /// RTU: the asker is ready.
    Ready { remote: u32 },
    /// REJ: refuses it, for this reason.
    Reject { remote: u32, reason: u16 },
    /// DREQ: asks to end it.
    Disconnect { remote: u32 },
    /// DREP: it is ended.
    Disconnected { remote: u32 },
    /// Another one.
    Other,
}

/// Reads big-endian fields; `None` beyond the end.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16(self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.0.get(at..at + 2)?.try_into().ok()?))
    }

    fn u24(self, at: usize) -> Option<u32> {
        let [a, b, c] = self.0.get(at..at + 3)?.try_into().ok()?;
        Some(u32::from_be_bytes([0, a, b, c]))
    }

    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }

    fn u64(self, at: usize) -> Option<u64> {
        Some(u64::from_be_bytes(self.0.get(at..at + 8)?.try_into().ok()?))
    }

    fn from(self, at: usize) -> Option<&'a [u8]> {
        self.0.get(at..)
    }
}

/// Takes a datagram's payload apart; `None` if it is too short for what it says that it is.
pub(super) fn parse(datagram: &[u8]) -> Option<Packet<'_>> {
    let bytes = Bytes(datagram);
    let (opcode, flags, destination) = (bytes.u8(0)?, bytes.u8(1)?, bytes.u24(5)?);
    let pad = usize::from(flags >> 4 & 0b11);
    let body = datagram.get(BTH..datagram.len().checked_sub(ICRC + pad)?)?;
    if opcode == UD_SEND_ONLY && destination == GSI {
        /// Bytes of the datagram extended transport header.
        const DETH: usize = 8;
        return Some(Packet::Management(management(body.get(DETH..)?)?));
    }
    if opcode & RELIABLE != 0 {
        return Some(Packet::Other);
    }
    let (part, header) = part(opcode, Bytes(body))?;
    Some(Packet::Connected(Connected {
        destination,
        psn: bytes.u24(9)?,
        solicited: flags & 0x80 != 0,
        part,
        payload: body.get(header..)?,
    }))
}

/// An opcode (table 38), and the bytes of the headers that come with it.
fn part(opcode: u8, body: Bytes<'_>) -> Option<(Part, usize)> {
    /// Bytes of the RDMA, the acknowledgement and the invalidation extended transport headers.
    const RETH: usize = 16;
    const AETH: usize = 4;
    const IETH: usize = 4;
    let send = |first, last| Part::Send { first, last, invalidates: None };
    let place = || Some((body.u32(8)?, body.u64(0)?));
    Some(match opcode {
        0x00 => (send(true, false), 0),
        0x01 => (send(false, false), 0),
        0x02 => (send(false, true), 0),
        0x04 => (send(true, true), 0),
        0x06 => (Part::Write { to: Some(place()?), last: false }, RETH),
        0x07 => (Part::Write { to: None, last: false }, 0),
        0x08 => (Part::Write { to: None, last: true }, 0),
        0x0a => (Part::Write { to: Some(place()?), last: true }, RETH),
        0x0c => {
            let (rkey, address) = place()?;
            (Part::ReadRequest { rkey, address, length: body.u32(12)? }, RETH)
        }
        0x0d => (Part::ReadResponse { last: false }, AETH),
        0x0e => (Part::ReadResponse { last: false }, 0),
        0x0f | 0x10 => (Part::ReadResponse { last: true }, AETH),
        0x11 => (Part::Acknowledge(syndrome(body.u8(0)?)), AETH),
        0x16 => (Part::Send { first: false, last: true, invalidates: Some(body.u32(0)?) }, IETH),
        0x17 => (Part::Send { first: true, last: true, invalidates: Some(body.u32(0)?) }, IETH),
        other => (Part::Foreign(other), 0),
    })
}

fn syndrome(byte: u8) -> Syndrome {
    // Bits 5 and 6: 0 acknowledges, 1 asks to wait for a receive buffer, 3 refuses.
    match (byte >> 5 & 0b11, byte & 0b1_1111) {
        (3, 1) => Syndrome::Failed("invalid request"),
        (3, 2) => Syndrome::Failed("remote access error"),
        (3, 3) => Syndrome::Failed("remote operational error"),
        (3, 4) => Syndrome::Failed("invalid RD request"),
        // 0 is a sequence error: a packet was lost.
        _ => Syndrome::Flow,
    }
}

fn management(datagram: &[u8]) -> Option<Management<'_>> {
    /// Bytes of the common header, and the class of the communication manager (section 13.4).
    const HEADER: usize = 24;
    const CLASS: u8 = 0x07;
    let header = Bytes(datagram);
    if header.u8(1)? != CLASS {
        return Some(Management::Other);
    }
    let body = Bytes(header.from(HEADER)?);
    Some(match header.u16(16)? {
        0x0010 => {
            /// Of the service's number, before the port (annex A11: the prefix of RDMA_PS_TCP).
            const TCP: u64 = 0x0106;
            /// Bytes of the header that the IP connection manager puts before the program's data (annex A11).
            const IP_CM: usize = 36;
            let service = body.u64(8)?;
            if service >> 16 != TCP {
                return Some(Management::Other);
            }
            Management::Request {
                local: body.u32(0)?,
                port: (service & 0xffff) as u16,
                from_port: body.u16(140 + 2)?,
                queue_pair: body.u24(32)?,
                psn: body.u24(44)?,
                depths: (body.u8(35)?, body.u8(39)?),
                mtu: 128 << (body.u8(50)? >> 4),
                private_data: body.0.get(140 + IP_CM..232)?,
            }
        }
        0x0012 => Management::Reject { remote: body.u32(4)?, reason: body.u16(10)? },
        0x0013 => Management::Reply {
            local: body.u32(0)?,
            remote: body.u32(4)?,
            queue_pair: body.u24(12)?,
            psn: body.u24(20)?,
            depths: (body.u8(24)?, body.u8(25)?),
            private_data: body.0.get(36..232)?,
        },
        0x0014 => Management::Ready { remote: body.u32(4)? },
        0x0015 => Management::Disconnect { remote: body.u32(4)? },
        0x0016 => Management::Disconnected { remote: body.u32(4)? },
        _ => Management::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_datagram_makes_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_management_datagram_makes_the_parser_panic(
            kind in 0x10u8..0x18,
            body in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        ) {
            let mut datagram = vec![UD_SEND_ONLY, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
            datagram.extend([0; 8]);
            let mut mad = [0; 24];
            (mad[1], mad[17]) = (0x07, kind);
            datagram.extend(mad);
            datagram.extend(body);
            let _ = parse(&datagram);
        }
    }

    #[test]
    fn what_a_rejection_by_the_receiver_means_is_told_from_what_loss_means() {
        assert_eq!(syndrome(0b0001_1111), Syndrome::Flow);
        assert_eq!(syndrome(0b0010_0001), Syndrome::Flow);
        assert_eq!(syndrome(0b0110_0000), Syndrome::Flow);
        assert_eq!(syndrome(0b0110_0010), Syndrome::Failed("remote access error"));
    }
}
