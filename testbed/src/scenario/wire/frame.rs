//! A pcapng file -> TCP segments, RoCEv2 and ARP packets, one at a time.
//!
//! The frames are the relay's: an Ethernet frame as the host's TCP made it, up to 64 KiB long before any segmentation,
//! its checksums not yet filled in. So no checksum is looked at, and an IP total length of 0 (a packet too long for
//! the field) means "as long as the frame".

use std::fs::File;
use std::io::BufReader;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use pcap_file::pcapng::{Block, PcapNgReader};

use super::WireError;

/// What a frame holds that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A TCP segment.
    Tcp(Segment<'a>),
    /// A RoCEv2 packet.
    Roce {
        /// From and to.
        addresses: (IpAddr, IpAddr),
        /// The datagram's payload.
        datagram: &'a [u8],
    },
    /// An ARP request: who asks for whose MAC address.
    ArpRequest {
        /// Who asks.
        sender: Ipv4Addr,
        /// For whom.
        target: Ipv4Addr,
    },
    /// An ARP reply.
    ArpReply {
        /// Who answers.
        sender: Ipv4Addr,
    },
    /// Anything else.
    Other,
}

/// A TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    /// From.
    pub source: SocketAddr,
    /// To.
    pub destination: SocketAddr,
    /// Of the first byte of the payload, or of the SYN.
    pub sequence: u32,
    /// Opens.
    pub syn: bool,
    /// Acknowledges.
    pub ack: bool,
    /// Ends this direction.
    pub fin: bool,
    /// Ends the connection at once.
    pub rst: bool,
    /// Bytes.
    pub payload: &'a [u8],
}

/// Calls `each` with every frame of the file and its time since the Unix epoch, in order; stops at the first error.
pub(crate) fn read(
    file: &Path,
    mut each: impl FnMut(Duration, Frame<'_>) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let unreadable =
        |error: &dyn std::fmt::Display| WireError::File { file: file.to_owned(), error: error.to_string() };
    let input = BufReader::with_capacity(1 << 20, File::open(file).map_err(|e| unreadable(&e))?);
    let mut reader = PcapNgReader::new(input).map_err(|e| unreadable(&e))?;
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.map_err(|e| unreadable(&e))? {
            let captured = packet.data.len();
            if u32::try_from(captured).is_ok_and(|captured| captured < packet.original_len) {
                let original = packet.original_len;
                return Err(WireError::Truncated { file: file.to_owned(), captured, original });
            }
            each(packet.timestamp, parse(&packet.data))?;
        }
    }
    Ok(())
}

/// Takes an Ethernet frame apart.
pub(crate) fn parse(frame: &[u8]) -> Frame<'_> {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else { return Frame::Other };
    let (from, to): (IpAddr, IpAddr) = match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        Some(LaxNetSlice::Arp(arp)) => return parse_arp(arp),
        None => return Frame::Other,
    };
    let tcp = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp,
        Some(TransportSlice::Udp(udp)) if udp.destination_port() == super::roce::PORT => {
            return Frame::Roce { addresses: (from, to), datagram: udp.payload() };
        }
        _ => return Frame::Other,
    };
    Frame::Tcp(Segment {
        source: SocketAddr::new(from, tcp.source_port()),
        destination: SocketAddr::new(to, tcp.destination_port()),
        sequence: tcp.sequence_number(),
        syn: tcp.syn(),
        ack: tcp.ack(),
        fin: tcp.fin(),
        rst: tcp.rst(),
        payload: tcp.payload(),
    })
}

fn parse_arp<'a>(arp: &etherparse::ArpPacketSlice<'_>) -> Frame<'a> {
    let ip = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
    let (Some(sender), Some(target)) = (ip(arp.sender_protocol_addr()), ip(arp.target_protocol_addr()))
    else {
        return Frame::Other;
    };
    match arp.operation() {
        etherparse::ArpOperation::REQUEST => Frame::ArpRequest { sender, target },
        etherparse::ArpOperation::REPLY => Frame::ArpReply { sender },
        _ => Frame::Other,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1000, 2000, 77, 64_000)
            .ack(5);
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        frame
    }

    fn segment(frame: &[u8]) -> Segment<'_> {
        match parse(frame) {
            Frame::Tcp(segment) => segment,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_segment_is_taken_apart() {
        let frame = frame(b"hello");
        let segment = segment(&frame);
        assert_eq!(segment.source, "10.0.0.1:1000".parse().unwrap());
        assert_eq!(segment.destination, "10.0.0.2:2000".parse().unwrap());
        assert_eq!((segment.sequence, segment.payload), (77, &b"hello"[..]));
        assert!(segment.ack && !segment.syn && !segment.fin && !segment.rst);
    }

    #[test]
    fn padding_of_a_short_frame_is_no_payload() {
        let mut frame = frame(b"hi");
        frame.resize(60, 0);
        assert_eq!(segment(&frame).payload, b"hi");
    }

    #[test]
    fn a_frame_too_long_for_its_length_field_is_read_whole() {
        let mut long = frame(&[7; 100]);
        // What the kernel does when a packet before segmentation exceeds 65,535 bytes.
        long[16] = 0;
        long[17] = 0;
        long.resize(70_000, 7);
        assert_eq!(segment(&long).payload.len(), 70_000 - 54);
    }

    #[test]
    fn an_arp_request_is_recognised() {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06]);
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
        frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 99]);
        let expected =
            Frame::ArpRequest { sender: Ipv4Addr::new(10, 0, 0, 1), target: Ipv4Addr::new(10, 0, 0, 99) };
        assert_eq!(parse(&frame), expected);
    }

    proptest::proptest! {
        #[test]
        fn no_frame_makes_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
