//! Synthetic captures: conversations written as segments, cut, repeated and reordered, then decoded from a file.

use std::borrow::Cow;
use std::io::BufWriter;
use std::path::Path;
use std::time::Duration;

use etherparse::PacketBuilder;
use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
use proptest::prelude::*;
use rdma_http::in_place::Frame;
use rdma_http::iwarp::Stag;
use rdma_http::iwarp::ddp::{Control, Header, Msn, Queue};
use rdma_http::iwarp::fpdu;
use rdma_http::iwarp::mpa::{Enhanced, FrameKind, Revision, StartFrame};
use rdma_http::iwarp::rdmap::Opcode;

use super::*;

const CLIENT: [u8; 4] = [10, 0, 0, 2];
const SERVER: [u8; 4] = [10, 0, 0, 1];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Flag {
    Syn,
    SynAck,
    Ack,
    Fin,
    Rst,
}

/// One direction of a connection to write frames for.
#[derive(Clone, Copy)]
struct Way {
    from: ([u8; 4], u16),
    to: ([u8; 4], u16),
    isn: u32,
}

impl Way {
    fn frame(&self, at: u32, flag: Flag, payload: &[u8]) -> Vec<u8> {
        let sequence = self.isn.wrapping_add(at);
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(self.from.0, self.to.0, 64)
            .tcp(self.from.1, self.to.1, sequence, 64_000);
        let builder = match flag {
            Flag::Syn => builder.syn(),
            Flag::SynAck => builder.syn().ack(1),
            Flag::Ack => builder.ack(1),
            Flag::Fin => builder.fin().ack(1),
            Flag::Rst => builder.rst(),
        };
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        frame
    }

    /// The stream in segments of `size` bytes, and its FIN.
    fn stream(&self, bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut at = 1;
        for piece in bytes.chunks(size) {
            frames.push(self.frame(at, Flag::Ack, piece));
            at += u32::try_from(piece.len()).unwrap();
        }
        frames.push(self.frame(at, Flag::Fin, b""));
        frames
    }
}

fn ways(client: ([u8; 4], u16), server: ([u8; 4], u16), isn: u32) -> [Way; 2] {
    [
        Way { from: client, to: server, isn },
        Way { from: server, to: client, isn: isn.wrapping_mul(7).wrapping_add(3) },
    ]
}

fn decode_frames(frames: &[Vec<u8>]) -> Result<Conversation, WireError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pcapng");
    write_frames(&path, frames);
    decode(&path)
}

fn write_frames(path: &Path, frames: &[Vec<u8>]) {
    let mut writer = PcapNgWriter::new(BufWriter::new(std::fs::File::create(path).unwrap())).unwrap();
    let interface = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options: vec![] };
    writer.write_pcapng_block(interface).unwrap();
    for frame in frames {
        let packet = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::ZERO,
            original_len: u32::try_from(frame.len()).unwrap(),
            data: Cow::Borrowed(frame),
            options: vec![],
        };
        writer.write_pcapng_block(packet).unwrap();
    }
}

fn start_frame(kind: FrameKind) -> Vec<u8> {
    let mut out = Vec::new();
    let enhanced = Some(Enhanced { peer_to_peer: None, ird: 16, ord: 8 });
    let frame = StartFrame {
        kind,
        revision: Revision::V2,
        markers: false,
        crc: true,
        reject: false,
        enhanced,
        private_data: b"hello"[..].into(),
    };
    frame.encode(&mut out).unwrap();
    out
}

/// A message as FPDUs with at most `segment` bytes of payload each.
fn message(opcode: Opcode, stag: u32, to: u64, msn: u32, payload: &[u8], segment: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut pieces: Vec<&[u8]> = payload.chunks(segment).collect();
    if pieces.is_empty() {
        pieces.push(b"");
    }
    let mut offset = 0;
    for (index, piece) in pieces.iter().enumerate() {
        let control = Control { last: index == pieces.len() - 1, ulp: opcode.control() };
        let header = if opcode.is_tagged() {
            Header::Tagged { control, stag: Stag(stag), to: to + offset as u64 }
        } else {
            let offset = u32::try_from(offset).unwrap();
            Header::Untagged { control, invalidate: Stag(stag), queue: Queue::SEND, msn: Msn(msn), offset }
        };
        let begun = fpdu::begin(&mut out);
        header.encode(&mut out);
        out.extend_from_slice(piece);
        fpdu::seal(&mut out, begun, true);
        offset += piece.len();
    }
    out
}

const SEND: Opcode = Opcode::Send { solicited: false, invalidate: false };

/// What the two sides of a transfer say over RDMA: three Writes that continue each other, and a Send.
fn rdma_streams(segment: usize) -> [Vec<u8>; 2] {
    let mut forth = start_frame(FrameKind::Request);
    for (to, length) in [(0, 1000), (1000, 1000), (2000, 48)] {
        forth.extend(message(Opcode::Write, 642, to, 0, &vec![7; length], segment));
    }
    forth.extend(message(SEND, 0, 0, 1, b"done", segment));
    [forth, start_frame(FrameKind::Reply)]
}

fn expected_rdma() -> [Vec<Item>; 2] {
    let start = |request| {
        Item::MpaStart(MpaStart {
            request,
            revision: 2,
            markers: false,
            crc: true,
            rejected: false,
            depths: Some((16, 8)),
            ready_to_receive: None,
            private_data: b"hello".to_vec(),
        })
    };
    let writes = Item::Writes(Run { stag: 642, to: 0, length: 2048, messages: 3 });
    let send = Item::Send { message: b"done".to_vec(), invalidates: None, solicited: false };
    [vec![start(true), writes, send], vec![start(false)]]
}

#[test]
fn a_whole_exchange_is_decoded() {
    let [request, response] = ways((CLIENT, 40_000), (SERVER, 80), 5);
    let [forth, back] = ways((SERVER, 50_000), (CLIENT, 3242), u32::MAX - 100);
    let [there, here] = rdma_streams(300);
    let mut frames = vec![request.frame(0, Flag::Syn, b""), response.frame(0, Flag::SynAck, b"")];
    frames.extend(request.stream(b"GET /x HTTP/1.1\r\nHost: s\r\n\r\n", 10));
    frames.extend([forth.frame(0, Flag::Syn, b""), back.frame(0, Flag::SynAck, b"")]);
    frames.extend(back.stream(&here, 1000));
    frames.extend(forth.stream(&there, 777));
    frames.extend(response.stream(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 10));
    let conversation = decode_frames(&frames).unwrap();
    let [http, rdma] = &conversation.connections[..] else { panic!("{conversation:?}") };
    assert_eq!(http.initiator, "10.0.0.2:40000".parse().unwrap());
    assert_eq!(http.opening, Opening::Established);
    assert!(matches!(&http.forth.items[..], [Item::Head(head)] if head.start == "GET /x HTTP/1.1"));
    assert!(matches!(&http.back.items[..], [Item::Head(_), Item::Body { length: 2, .. }]));
    assert_eq!((http.forth.end, http.back.end), (End::Fin, End::Fin));
    assert_eq!([rdma.forth.items.clone(), rdma.back.items.clone()], expected_rdma());
    assert_eq!((rdma.forth.crc.good, rdma.forth.crc.bad), (4 + 4 + 1 + 1, 0));
    assert_eq!(conversation.violations(), [""; 0]);
}

#[test]
fn a_connection_that_changes_its_protocol_is_followed() {
    let [client, server] = ways((CLIENT, 40_000), (SERVER, 80), 5);
    // HTTP as the Sends carry it, cut where it pleases.
    let http = |msn, text: &[u8]| message(SEND, 0, 0, msn, &Frame::http(text).0, 300);
    let [mut there, here] = rdma_streams(300);
    there.extend([http(2, b"HTTP/1.1 200 OK\r\nContent-"), http(3, b"Length: 2\r\n\r\nhi")].concat());
    let change = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: rdma\r\n\r\n";
    let asked = b"GET /x HTTP/1.1\r\nHost: s\r\nConnection: upgrade\r\nUpgrade: rdma\r\n\r\n";
    let next = [here, http(1, b"GET /y HTTP/1.1\r\n\r\n"), http(2, b"")].concat();
    for size in [7, 1400] {
        let cut = |way: Way, at: usize, bytes: &[u8]| -> Vec<Vec<u8>> {
            let pieces = bytes.chunks(size).enumerate();
            pieces.map(|(i, p)| way.frame(u32::try_from(1 + at + i * size).unwrap(), Flag::Ack, p)).collect()
        };
        let mut frames = vec![client.frame(0, Flag::Syn, b""), server.frame(0, Flag::SynAck, b"")];
        frames.extend(cut(client, 0, asked));
        frames.extend(cut(server, 0, &[&change[..], &there].concat()));
        frames.extend(cut(client, asked.len(), &next));
        let conversation = decode_frames(&frames).unwrap();
        let [connection] = &conversation.connections[..] else { panic!("{conversation:?}") };
        let started = |items: &[Item]| -> Vec<String> {
            let heads = items.iter().filter_map(|item| match item {
                Item::Head(head) => Some(head.start.clone()),
                _ => None,
            });
            heads.collect()
        };
        assert_eq!(started(&connection.forth.items), ["GET /x HTTP/1.1", "GET /y HTTP/1.1"]);
        assert_eq!(started(&connection.back.items), ["HTTP/1.1 101 Switching Protocols", "HTTP/1.1 200 OK"]);
        let [server_said, client_said] = expected_rdma();
        assert_eq!(connection.back.items[1..4], server_said);
        assert_eq!(connection.forth.items[1..2], client_said);
        assert!(matches!(connection.back.items.last(), Some(Item::Body { length: 2, .. })));
        assert!(
            matches!(connection.forth.items.last(), Some(Item::Send { message, .. }) if message.len() == 8)
        );
        assert_eq!(connection.back.crc.bad, 0);
        assert_eq!(conversation.violations(), [""; 0]);
    }
}

#[test]
fn openings_that_fail_are_told_apart() {
    let [refused, refuser] = ways((SERVER, 1), (CLIENT, 2), 1);
    let [unanswered, _] = ways((SERVER, 3), ([10, 0, 0, 99], 4), 1);
    let frames = [
        refused.frame(0, Flag::Syn, b""),
        refuser.frame(0, Flag::Rst, b""),
        unanswered.frame(0, Flag::Syn, b""),
        unanswered.frame(0, Flag::Syn, b""),
    ];
    let conversation = decode_frames(&frames).unwrap();
    let openings: Vec<Opening> = conversation.connections.iter().map(|c| c.opening).collect();
    assert_eq!(openings, [Opening::Refused, Opening::Unanswered], "a repeated SYN is the same connection");
}

#[test]
fn the_same_ports_again_are_another_connection() {
    let [first, _] = ways((CLIENT, 1), (SERVER, 2), 1);
    let [second, _] = ways((CLIENT, 1), (SERVER, 2), 900_000);
    let mut frames = vec![first.frame(0, Flag::Syn, b"")];
    frames.extend(first.stream(b"GET /1 HTTP/1.1\r\n\r\n", 100));
    frames.push(second.frame(0, Flag::Syn, b""));
    frames.extend(second.stream(b"GET /2 HTTP/1.1\r\n\r\n", 100));
    let conversation = decode_frames(&frames).unwrap();
    let starts: Vec<&str> = conversation
        .connections
        .iter()
        .map(|c| match &c.forth.items[..] {
            [Item::Head(head)] => head.start.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(starts, ["GET /1 HTTP/1.1", "GET /2 HTTP/1.1"]);
}

#[test]
fn a_connection_on_ports_of_one_that_was_there_before_is_another() {
    let [old, _] = ways((CLIENT, 1), (SERVER, 80), 7);
    let [forth, back] = ways((CLIENT, 1), (SERVER, 80), 5000);
    let mut frames = vec![old.frame(9, Flag::Ack, b""), forth.frame(0, Flag::Syn, b"")];
    frames.push(back.frame(0, Flag::SynAck, b""));
    let conversation = decode_frames(&frames).unwrap();
    let openings: Vec<_> = conversation.connections.iter().map(|c| c.opening).collect();
    assert_eq!(openings, [Opening::Unseen, Opening::Established]);
}

#[test]
fn a_reset_after_the_end_is_no_news_and_one_before_is() {
    let [forth, back] = ways((CLIENT, 1), (SERVER, 2), 1);
    let open = [forth.frame(0, Flag::Syn, b""), back.frame(0, Flag::SynAck, b"")];
    let mut cut = open.to_vec();
    cut.push(back.frame(1, Flag::Rst, b""));
    let connection = &decode_frames(&cut).unwrap().connections[0];
    assert_eq!((connection.forth.end, connection.back.end), (End::Open, End::Reset));
    let mut over = open.to_vec();
    over.extend(forth.stream(b"", 1));
    over.extend(back.stream(b"", 1));
    over.push(back.frame(2, Flag::Rst, b""));
    let connection = &decode_frames(&over).unwrap().connections[0];
    assert_eq!((connection.forth.end, connection.back.end), (End::Fin, End::Fin));
}

#[test]
fn a_hole_in_the_capture_is_said() {
    let [forth, back] = ways((SERVER, 1), (CLIENT, 2), 1);
    let [there, here] = rdma_streams(300);
    let mut frames = vec![forth.frame(0, Flag::Syn, b""), back.frame(0, Flag::SynAck, b"")];
    frames.extend(back.stream(&here, 1000));
    let mut stream = forth.stream(&there, 500);
    stream.remove(2);
    frames.extend(stream);
    let violations = decode_frames(&frames).unwrap().violations();
    assert!(violations.iter().any(|v| v.contains("a gap that was never filled")), "{violations:?}");
}

#[test]
fn a_damaged_fpdu_and_a_skipped_message_are_said() {
    let [forth, back] = ways((SERVER, 1), (CLIENT, 2), 1);
    let [mut there, here] = rdma_streams(300);
    let at = there.len() - 6;
    there[at] ^= 1;
    there.extend(message(SEND, 0, 0, 3, b"x", 10));
    there.extend(message(Opcode::Write, 1, 0, 0, &[0; 8], 4)[..24].to_vec());
    there.extend(message(Opcode::Write, 1, 6, 0, &[0; 2], 4));
    let mut frames = vec![forth.frame(0, Flag::Syn, b""), back.frame(0, Flag::SynAck, b"")];
    frames.extend(back.stream(&here, 1000));
    frames.extend(forth.stream(&there, 500));
    let violations = decode_frames(&frames).unwrap().violations();
    for expected in ["1 bad CRC", "message 3 of queue 0 where 2 was due", "not continued where it left off"] {
        assert!(violations.iter().any(|v| v.contains(expected)), "{expected}: {violations:?}");
    }
}

#[test]
fn a_body_that_goes_as_it_is_is_seen_however_it_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (body, capture) = (folder.path().join("body"), folder.path().join("x.pcapng"));
    crate::scenario::body::write(&body, 10_000, 1).unwrap();
    let blocks = Blocks::of(&body).unwrap();
    let bytes = std::fs::read(&body).unwrap();
    let [forth, _] = ways((CLIENT, 40_000), (SERVER, 4711), 5);
    let shown = |payload: &[u8], size| {
        write_frames(&capture, &forth.stream(payload, size));
        exposed(&capture, &blocks).unwrap()
    };
    assert_eq!(shown(&bytes, 100_000), 313);
    // Wherever a frame begins and ends, it holds a block of any 47 bytes.
    assert!(shown(&bytes, 47) >= 212);
    assert_eq!(shown(&bytes[5001..5048], 100), 1);
    let other: Vec<u8> = bytes.iter().map(|byte| byte ^ 1).collect();
    assert_eq!(shown(&other, 100_000), 0);
    let said = Conversation { exposed: Some(1), ..Conversation::default() }.violations();
    assert_eq!(said, ["wire: 1 blocks of the body went in the clear, although it is https"]);
}

#[test]
fn an_arp_request_that_nobody_answers_is_kept() {
    let arp = |operation: u8, sender: [u8; 4], target: [u8; 4]| {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation, 2, 0, 0, 0, 0, 1]);
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend(target);
        frame
    };
    let nobody = [10, 0, 0, 254];
    let frames =
        [arp(1, SERVER, nobody), arp(1, SERVER, nobody), arp(1, SERVER, CLIENT), arp(2, CLIENT, SERVER)];
    let conversation = decode_frames(&frames).unwrap();
    assert_eq!(conversation.unanswered_arp, [(SERVER.into(), nobody.into())].into());
}

#[test]
fn a_frame_that_was_not_captured_whole_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pcapng");
    let mut writer = PcapNgWriter::new(std::fs::File::create(&path).unwrap()).unwrap();
    let interface = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options: vec![] };
    writer.write_pcapng_block(interface).unwrap();
    let packet = EnhancedPacketBlock {
        interface_id: 0,
        timestamp: Duration::ZERO,
        original_len: 1500,
        data: Cow::Borrowed(&[0; 64]),
        options: vec![],
    };
    writer.write_pcapng_block(packet).unwrap();
    drop(writer);
    assert!(matches!(decode(&path), Err(WireError::Truncated { captured: 64, original: 1500, .. })));
    std::fs::write(&path, b"not a capture").unwrap();
    assert!(matches!(decode(&path), Err(WireError::File { .. })));
}

proptest! {
    #[test]
    fn neither_segmentation_nor_loss_nor_order_shows(
        fpdu in 1usize..400,
        segment in 1usize..1500,
        isn: u32,
        moves in prop::collection::vec((any::<usize>(), 0usize..6), 0..40),
        repeats in prop::collection::vec(any::<usize>(), 0..10),
    ) {
        let [forth, back] = ways((SERVER, 1), (CLIENT, 2), isn);
        let [there, here] = rdma_streams(fpdu);
        let mut frames = forth.stream(&there, segment);
        frames.extend(back.stream(&here, segment));
        for repeat in repeats {
            let again = frames[repeat % frames.len()].clone();
            frames.push(again);
        }
        for (at, by) in moves {
            let n = frames.len();
            frames.swap(at % n, (at % n + by) % n);
        }
        frames.insert(0, back.frame(0, Flag::SynAck, b""));
        frames.insert(0, forth.frame(0, Flag::Syn, b""));
        let conversation = decode_frames(&frames).unwrap();
        let [connection] = &conversation.connections[..] else { panic!("{conversation:?}") };
        prop_assert_eq!([connection.forth.items.clone(), connection.back.items.clone()], expected_rdma());
        prop_assert_eq!((connection.forth.end, connection.back.end), (End::Fin, End::Fin));
        prop_assert_eq!(conversation.violations(), [""; 0]);
    }
}
