//! Errors that no program can make: frames made by hand, over plain TCP, and the Terminates that siw or soft answer.

use std::net::SocketAddr;

use rdma_http::fabric::{RemoteAddress, Stag};
use rdma_http::iwarp::fpdu::{self, Fpdu};
use rdma_http::iwarp::rdmap::{Opcode, Segment};
use rdma_http::iwarp::terminate::{Code, Terminate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::judge::{SIZE, long, soon, word};

/// An FPDU around a ULPDU, with its CRC.
pub(crate) fn framed(ulpdu: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let start = fpdu::begin(&mut out);
    out.extend_from_slice(ulpdu);
    fpdu::seal(&mut out, start, true);
    out
}

/// An untagged segment of queue, MSN and offset.
fn untagged(control: [u8; 2], queue: u32, msn: u32, offset: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = control.to_vec();
    for field in [0, queue, msn, offset] {
        out.extend_from_slice(&field.to_be_bytes());
    }
    out.extend_from_slice(payload);
    out
}

fn tagged(control: [u8; 2], at: RemoteAddress, payload: &[u8]) -> Vec<u8> {
    let mut out = control.to_vec();
    out.extend_from_slice(&at.stag.0.to_be_bytes());
    out.extend_from_slice(&at.to.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

pub(crate) fn read_request(msn: u32, source: RemoteAddress, length: u32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&7u32.to_be_bytes());
    body.extend_from_slice(&0u64.to_be_bytes());
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(&source.stag.0.to_be_bytes());
    body.extend_from_slice(&source.to.to_be_bytes());
    untagged([0x41, 0x41], 1, msn, 0, &body)
}

/// What is to be sent, given the server's regions; what the RFCs say to it, and what siw does if that is not it. siw's
/// `None` is an end without a Terminate.
type Case = (&'static str, fn(RemoteAddress) -> Vec<Vec<u8>>, &'static str, Option<Option<&'static str>>);

const CASES: &[Case] = &[
    ("DDP version of an untagged segment", |_| vec![untagged([0x40, 0x43], 0, 2, 0, b"x")], "1/2/06", None),
    ("DDP version of a tagged segment", |at| vec![tagged([0xc2, 0x40], at, b"x")], "1/1/04", None),
    ("RDMAP version", |_| vec![untagged([0x41, 0x83], 0, 2, 0, b"x")], "0/2/05", None),
    ("unknown opcode", |_| vec![untagged([0x41, 0x4f], 0, 2, 0, b"x")], "0/2/06", None),
    // RFC 7306.
    ("Immediate Data", |_| vec![untagged([0x41, 0x48], 0, 2, 0, &[1; 8])], "0/2/06", None),
    ("Immediate Data with SE", |_| vec![untagged([0x41, 0x49], 0, 2, 0, &[1; 8])], "0/2/06", None),
    ("an Atomic Request", |_| vec![untagged([0x41, 0x4a], 1, 1, 0, &[1; 52])], "0/2/06", None),
    ("an Atomic Response", |_| vec![untagged([0x41, 0x4b], 3, 1, 0, &[1; 12])], "0/2/06", None),
    ("MSN too high", |_| vec![untagged([0x41, 0x43], 0, 3, 0, b"x")], "1/2/03", None),
    ("MSN again", |_| vec![untagged([0x41, 0x43], 0, 1, 0, b"x")], "1/2/03", None),
    ("offset of a first segment", |_| vec![untagged([0x41, 0x43], 0, 2, 1, b"x")], "1/2/04", None),
    (
        "offset of a later segment",
        |_| vec![untagged([0x01, 0x43], 0, 2, 0, b"four"), untagged([0x41, 0x43], 0, 2, 9, b"x")],
        "1/2/04",
        None,
    ),
    ("unknown queue", |_| vec![untagged([0x41, 0x43], 9, 2, 0, b"x")], "1/2/01", None),
    (
        "message too long",
        |_| vec![untagged([0x41, 0x43], 0, 2, 0, &[7; 5000])],
        "1/2/05",
        Some(Some("1/2/02")),
    ),
    (
        "wrong STag",
        |at| vec![tagged([0xc1, 0x40], RemoteAddress { stag: Stag(at.stag.0 ^ 1), ..at }, b"x")],
        "1/1/00",
        None,
    ),
    (
        "beyond the region",
        |at| vec![tagged([0xc1, 0x40], RemoteAddress { to: at.to + SIZE as u64, ..at }, b"x")],
        "1/1/01",
        None,
    ),
    (
        "a Read of a wrong STag",
        |at| vec![read_request(1, RemoteAddress { stag: Stag(at.stag.0 ^ 1), ..at }, 8)],
        "0/1/00",
        None,
    ),
    (
        "a Read beyond the region",
        |at| vec![read_request(1, RemoteAddress { to: at.to + SIZE as u64, ..at }, 8)],
        "0/1/01",
        None,
    ),
    ("a Read Request's MSN", |at| vec![read_request(2, at, 8)], "1/2/03", None),
    ("more than a Read Request", |at| vec![[read_request(1, at, 8), vec![0]].concat()], "1/2/05", Some(None)),
    (
        "an answer that nobody asked for",
        |at| vec![tagged([0xc1, 0x42], at, b"x")],
        "1/1/00",
        Some(Some("1/0/00")),
    ),
    (
        "another opcode in the middle of a message",
        |_| vec![untagged([0x01, 0x43], 0, 2, 0, b"four"), untagged([0x41, 0x45], 0, 2, 4, b"x")],
        "0/2/06",
        Some(None),
    ),
];

/// Makes each error by hand, over plain TCP, and checks the Terminate that answers it.
pub(crate) async fn by_hand(to: SocketAddr, siw: bool) {
    for (what, segments, rfc, deviation) in CASES {
        let expected = match deviation {
            Some(deviation) if siw => *deviation,
            _ => Some(*rfc),
        };
        let (mut peer, at, _) = hand_shake(to).await;
        let bytes: Vec<u8> = segments(at).iter().flat_map(|segment| framed(segment)).collect();
        expect(&mut peer, &bytes, what, expected).await;
    }
    let (mut peer, ..) = hand_shake(to).await;
    let mut bytes = framed(&untagged([0x41, 0x43], 0, 2, 0, b"x"));
    *bytes.last_mut().unwrap() ^= 1;
    expect(&mut peer, &bytes, "a bad CRC", Some("2/0/02")).await;
    let (mut peer, ..) = hand_shake(to).await;
    // siw looks at a length when it has as many bytes as a header has.
    let short = [framed(&[0x41, 0x43, 0, 0, 0]), vec![0; 64]].concat();
    expect(&mut peer, &short, "a segment without a whole header", Some("2/0/03")).await;
    let (mut peer, at, ird) = hand_shake(to).await;
    // More than the kernel's siw holds, which has one under way besides.
    let bytes = too_many_reads(at, ird.next_power_of_two() + 2);
    let code = if siw { "0/2/07" } else { "1/2/02" };
    expect(&mut peer, &bytes, "more Read Requests than the IRD", Some(code)).await;
    refuses_markers(to).await;
    let (mut peer, ..) = hand_shake(to).await;
    peer.write_all(&framed(&untagged([0x41, 0x43], 0, 2, 0, b"stop"))).await.unwrap();
    peer.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let _ = soon(peer.read_to_end(&mut rest)).await;
}

/// Read Requests of all of a region, one behind the other: they arrive before the first can be answered.
pub(crate) fn too_many_reads(at: RemoteAddress, count: u16) -> Vec<u8> {
    (1..=count).flat_map(|msn| framed(&read_request(msn.into(), at, SIZE as u32))).collect()
}

/// Who asks for markers (M in the Request) is refused: R in the Reply, M not, and the end.
async fn refuses_markers(to: SocketAddr) {
    let mut peer = connect(to).await;
    let mut request = b"MPA ID Req Frame".to_vec();
    request.extend_from_slice(&[0xd0, 2, 0, 4, 0, 16, 0, 16]);
    peer.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(peer.read_to_end(&mut answer)).await;
    println!("markers: {answer:02x?}");
    assert_eq!((&answer[..16], answer[16] & 0xa0, answer[17]), (&b"MPA ID Rep Frame"[..], 0x20, 2));
    let length = usize::from(u16::from_be_bytes([answer[18], answer[19]]));
    assert_eq!(answer.len(), 20 + length, "nothing comes behind the Reply");
}

async fn connect(to: SocketAddr) -> TcpStream {
    let peer = soon(TcpStream::connect(to)).await.unwrap();
    peer.set_nodelay(true).unwrap();
    peer
}

/// Connects, says hello, and hears where the server's region is, and how many Reads it holds.
async fn hand_shake(to: SocketAddr) -> (TcpStream, RemoteAddress, u16) {
    let mut peer = connect(to).await;
    let mut request = b"MPA ID Req Frame".to_vec();
    request.extend_from_slice(&[0x50, 2, 0, 4, 0, 16, 0, 16]);
    peer.write_all(&request).await.unwrap();
    let mut reply = [0; 20];
    soon(peer.read_exact(&mut reply)).await.unwrap();
    assert_eq!((&reply[..16], reply[16] & 0x60, reply[17]), (&b"MPA ID Rep Frame"[..], 0x40, 2));
    let mut data = vec![0; usize::from(u16::from_be_bytes([reply[18], reply[19]]))];
    soon(peer.read_exact(&mut data)).await.unwrap();
    peer.write_all(&framed(&untagged([0x41, 0x43], 0, 1, 0, &[0; 12]))).await.unwrap();
    let mut answer = vec![0; fpdu::size(18 + 36)];
    soon(peer.read_exact(&mut answer)).await.unwrap();
    let fpdu = Fpdu::split(&answer).unwrap();
    assert!(fpdu.crc_is_good());
    let regions = Segment::decode(fpdu.ulpdu()).unwrap().payload.to_vec();
    let ird = u16::from_be_bytes([data[0], data[1]]) & 0x3fff;
    (peer, RemoteAddress { stag: Stag(word(&regions, 0)), to: long(&regions, 4) }, ird)
}

async fn expect(peer: &mut TcpStream, bytes: &[u8], what: &str, expected: Option<&str>) {
    peer.write_all(bytes).await.unwrap();
    ends_with(peer, what, expected, true).await;
}

/// Reads to the end. Before the Terminate only answers to Reads may come; behind it nothing. The CRC of one that ends the
/// start-up is not looked at: siw leaves it out.
pub(crate) async fn ends_with(peer: &mut TcpStream, what: &str, expected: Option<&str>, crc: bool) {
    let mut answer = Vec::new();
    // siw may reset what it closes.
    let _ = soon(peer.read_to_end(&mut answer)).await;
    let mut rest = &answer[..];
    let mut told = None;
    while let Some(fpdu) = Fpdu::split(rest) {
        assert_eq!(told, None, "{what}: something behind the Terminate");
        assert!(!crc || fpdu.crc_is_good(), "{what}");
        let segment = Segment::decode(fpdu.ulpdu()).unwrap();
        if segment.opcode == Opcode::Terminate {
            let Terminate { code, or, .. } = Terminate::decode(segment.payload).unwrap();
            let text = |code: Code| format!("{}/{}/{:02x}", code.layer, code.error_type, code.code);
            // Without a quoted header some codes mean one thing in the RFC's bit order and another in siw's.
            told = Some(match or.map(text) {
                Some(other) if expected == Some(other.as_str()) => other,
                _ => text(code),
            });
        } else {
            assert_eq!(segment.opcode, Opcode::ReadResponse, "{what}");
        }
        rest = &rest[fpdu::size(fpdu.ulpdu().len())..];
    }
    println!("{what}: {told:?}");
    assert_eq!(told.as_deref(), expected, "{what}");
}
