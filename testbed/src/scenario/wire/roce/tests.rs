//! Synthetic RoCEv2 conversations.

use super::*;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
/// The server connects, as it does to Write.
const QUEUE_PAIRS: [u32; 2] = [0x11, 0x22];
/// Of what the initiator and the responder send; the other side says it.
const FIRST_PSN: [u32; 2] = [0x00ff_fffe, 7];
const MTU: usize = 1024;

/// A packet with its headers; `pad` bytes make its payload a multiple of 4.
fn packet(opcode: u8, destination: u32, psn: u32, headers: &[u8], payload: &[u8]) -> Vec<u8> {
    let pad = payload.len().next_multiple_of(4) - payload.len();
    let mut bytes = vec![opcode, u8::try_from(pad).unwrap() << 4, 0xff, 0xff, 0];
    bytes.extend_from_slice(&destination.to_be_bytes()[1..]);
    bytes.push(0x80);
    bytes.extend_from_slice(&psn.to_be_bytes()[1..]);
    bytes.extend_from_slice(headers);
    bytes.extend_from_slice(payload);
    // Padding and checksum.
    bytes.extend(vec![0; pad + 4]);
    bytes
}

/// A message of the communication manager with these fields.
fn cm(kind: u8, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut mad = vec![0; 24 + 232];
    (mad[1], mad[17]) = (0x07, kind);
    for (at, bytes) in fields {
        mad[24 + at..24 + at + bytes.len()].copy_from_slice(bytes);
    }
    packet(0x64, 1, 0, &[0; 8], &mad)
}

fn request() -> Vec<u8> {
    let service = 0x0106_1234_u64.to_be_bytes();
    cm(
        0x10,
        &[
            (0, &[0, 0, 0, 5]),
            (8, &service),
            (32, &[0, 0, 0x11, 16]),
            (36, &[0, 0, 0, 8]),
            (44, &FIRST_PSN[1].to_be_bytes()[1..]),
            // An MTU of 1024 bytes.
            (50, &[0x30]),
            (142, &[0x20, 0x01]),
            (176, b"hello"),
        ],
    )
}

fn reply() -> Vec<u8> {
    let psn = FIRST_PSN[0].to_be_bytes();
    cm(0x13, &[(0, &[0, 0, 0, 6, 0, 0, 0, 5]), (12, &[0, 0, 0x22]), (20, &psn[1..]), (24, &[4, 2])])
}

fn reth(rkey: u32, address: u64, length: u32) -> Vec<u8> {
    [&address.to_be_bytes()[..], &rkey.to_be_bytes(), &length.to_be_bytes()].concat()
}

/// A frame: whether the server sent it, and its datagram.
type Sent = (bool, Vec<u8>);

/// A Write of three packets, a Read of two, a Send and the end; its acknowledgements are among it.
fn conversation() -> Vec<Sent> {
    let [there, back] = [QUEUE_PAIRS[1], QUEUE_PAIRS[0]];
    let psn = |n| after(FIRST_PSN[0], n);
    vec![
        (true, request()),
        (false, reply()),
        (true, cm(0x14, &[(0, &[0, 0, 0, 5, 0, 0, 0, 6])])),
        (true, packet(0x06, there, psn(0), &reth(9, 0x1000, 2500), &[1; MTU])),
        (true, packet(0x07, there, psn(1), &[], &[1; MTU])),
        (true, packet(0x08, there, psn(2), &[], &[1; 2500 - 2 * MTU])),
        (false, packet(0x11, back, psn(2), &[0, 0, 0, 1], b"")),
        (true, packet(0x0c, there, psn(3), &reth(9, 0x2000, 1500), b"")),
        (true, packet(0x04, there, psn(5), &[], b"bye")),
        (false, packet(0x0d, back, psn(3), &[0, 0, 0, 2], &[2; MTU])),
        (false, packet(0x0f, back, psn(4), &[0, 0, 0, 2], &[2; 1500 - MTU])),
        (false, packet(0x11, back, psn(5), &[0, 0, 0, 3], b"")),
        (true, cm(0x15, &[(0, &[0, 0, 0, 5, 0, 0, 0, 6])])),
        (false, cm(0x16, &[(0, &[0, 0, 0, 6, 0, 0, 0, 5])])),
    ]
}

fn decode(frames: &[Sent]) -> Vec<WireConnection> {
    let mut roce = Roce::default();
    for (order, (by_server, datagram)) in frames.iter().enumerate() {
        let ends = if *by_server { (SERVER, CLIENT) } else { (CLIENT, SERVER) };
        roce.datagram(order, Duration::ZERO, ends, datagram).unwrap();
    }
    roce.finish().map(|(_, connection)| connection).collect()
}

#[test]
fn a_connection_is_followed_from_its_request_to_its_end() {
    let [connection] = &decode(&conversation())[..] else { panic!() };
    assert_eq!(connection.initiator, SocketAddr::new(SERVER, 0x2001));
    assert_eq!(connection.responder, SocketAddr::new(CLIENT, 0x1234));
    assert_eq!(connection.opening, Opening::Established);
    let mut hello = b"hello".to_vec();
    hello.resize(56, 0);
    let forth = [
        Item::Cm(CmMessage::Request { depths: (16, 8), private_data: hello }),
        Item::Writes(Run { stag: 9, to: 0x1000, length: 2500, messages: 1 }),
        Item::ReadRequest { sink: None, source: (9, 0x2000), length: 1500 },
        Item::Send { message: b"bye".to_vec(), invalidates: None, solicited: false },
    ];
    assert_eq!(connection.forth.items, forth);
    let back = [
        Item::Cm(CmMessage::Reply { depths: (4, 2), private_data: vec![0; 196] }),
        Item::ReadData { length: 1500 },
    ];
    assert_eq!(connection.back.items, back);
    assert_eq!((connection.forth.end, connection.back.end), (End::Disconnected, End::Disconnected));
}

#[test]
fn neither_repetition_nor_loss_shows() {
    let whole = decode(&conversation());
    let frames = conversation();
    let twice: Vec<Sent> = frames.iter().flat_map(|frame| [frame.clone(), frame.clone()]).collect();
    assert_eq!(decode(&twice), whole);
    // The middle of the Write is lost, and all from there is sent again, as its receiver asks.
    let mut again = frames;
    again.splice(4..6, [again[5].clone(), again[4].clone(), again[5].clone()]);
    again.insert(5, (false, packet(0x11, QUEUE_PAIRS[0], after(FIRST_PSN[0], 1), &[0x60, 0, 0, 0], b"")));
    assert_eq!(decode(&again), whole);
}

#[test]
fn a_refusal_is_told_once_and_a_foreign_opcode_is_malformed() {
    let mut frames = conversation();
    frames.truncate(4);
    let refusal = (false, packet(0x11, QUEUE_PAIRS[0], FIRST_PSN[0], &[0x62, 0, 0, 0], b""));
    frames.extend([refusal.clone(), refusal]);
    frames.push((true, packet(0x13, QUEUE_PAIRS[1], after(FIRST_PSN[0], 1), &[0; 28], b"")));
    let [connection] = &decode(&frames)[..] else { panic!() };
    assert_eq!(connection.back.items[1..], [Item::Refusal("remote access error".to_owned())]);
    let malformed = Item::Malformed("RoCE: opcode 0x13 is none of ours".to_owned());
    assert_eq!(connection.forth.items.last(), Some(&malformed));
}

#[test]
fn a_connection_that_is_rejected_is_refused() {
    let reject = cm(0x12, &[(4, &[0, 0, 0, 5]), (10, &[0, 28])]);
    let [connection] = &decode(&[(true, request()), (false, reject)])[..] else { panic!() };
    assert_eq!(connection.opening, Opening::Refused);
}
