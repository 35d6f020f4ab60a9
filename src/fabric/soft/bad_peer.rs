//! Peers that break the protocol, over raw sockets: each is told why where the protocol has words for it, nothing of
//! theirs is placed or delivered, and whoever waits gets a typed error in bounded time.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{SoftFabric, SoftOptions};
use crate::fabric::{
    Access, ConnectOptions, Connection, Fabric, FabricError, Listener, Pd, Region, RemoteAddress,
};
use crate::iwarp::Stag;
use crate::iwarp::ddp::{Control, Header, Msn, Queue, UNTAGGED_HEADER};
use crate::iwarp::fpdu::{self, Fpdu};
use crate::iwarp::golden::{self, hex};
use crate::iwarp::rdmap::{Opcode, ReadRequest, Segment};
use crate::iwarp::terminate::{Code, Terminate};

const SEND: Opcode = Opcode::Send { solicited: false, invalidate: false };

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("it ends in bounded time")
}

fn framed(header: Header, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let start = fpdu::begin(&mut out);
    header.encode(&mut out);
    out.extend_from_slice(payload);
    fpdu::seal(&mut out, start, true);
    out
}

fn tagged(opcode: Opcode, stag: Stag, to: u64, payload: &[u8]) -> Vec<u8> {
    framed(Header::Tagged { control: Control { last: true, ulp: opcode.control() }, stag, to }, payload)
}

fn untagged(opcode: Opcode, queue: Queue, msn: u32, offset: u32, payload: &[u8]) -> Vec<u8> {
    let control = Control { last: true, ulp: opcode.control() };
    framed(Header::Untagged { control, invalidate: Stag(0), queue, msn: Msn(msn), offset }, payload)
}

fn read_request(source: Stag, source_to: u64, length: u32) -> Vec<u8> {
    let mut body = Vec::new();
    ReadRequest { sink: Stag(7), sink_to: 0, length, source, source_to }.encode(&mut body);
    untagged(Opcode::ReadRequest, Queue::READ_REQUEST, 1, 0, &body)
}

async fn listen(options: SoftOptions) -> (SoftFabric, Box<dyn Listener>) {
    let fabric = SoftFabric::new(options);
    let listener = fabric.listen((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    (fabric, listener)
}

/// A raw peer that has connected to us, and our end of it.
struct Raw {
    peer: TcpStream,
    connection: Arc<dyn Connection>,
    region: Region,
    pd: Pd,
}

impl Raw {
    /// With one receive of ten bytes, and a region of ten bytes that the peer may read and write.
    async fn connected() -> Self {
        Self::with(SoftOptions::default()).await
    }

    async fn with(options: SoftOptions) -> Self {
        let (fabric, listener) = listen(options).await;
        let pd = fabric.allocate_pd().unwrap();
        let mut peer = TcpStream::connect(listener.local_addr()).await.unwrap();
        peer.write_all(&hex(golden::REQUEST_V1)).await.unwrap();
        let options = ConnectOptions { receive_depth: 1, receive_size: 10, ..ConnectOptions::default() };
        let connection = soon(listener.accept()).await.unwrap().accept(&pd, options).await.unwrap();
        let mut reply = [0; 20];
        soon(peer.read_exact(&mut reply)).await.unwrap();
        let access = Access { local_write: true, remote_read: true, remote_write: true };
        let region = pd.register(vec![0; 10], access).unwrap();
        Self { peer, connection, region, pd }
    }

    /// Sends `bytes`, expects exactly one Terminate with `code` and then the end of the stream, and that our side
    /// says the same and placed nothing.
    async fn expect(mut self, bytes: &[u8], code: Code) {
        self.peer.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        soon(self.peer.read_to_end(&mut answer)).await.expect("no reset");
        let fpdu = Fpdu::split(&answer).expect("a whole FPDU");
        assert_eq!(fpdu.bytes().len(), answer.len(), "rdmap_nothing_sent_after_terminate");
        assert!(fpdu.crc_is_good());
        let segment = Segment::decode(fpdu.ulpdu()).unwrap();
        assert_eq!(segment.opcode, Opcode::Terminate);
        assert_eq!(Terminate::decode(segment.payload).unwrap().code, code);
        let error = soon(self.connection.closed()).await;
        assert!(matches!(&error, FabricError::Protocol(e) if e.starts_with(&code.to_string())), "{error}");
        assert_eq!(self.region.deregister().unwrap(), [0; 10], "nothing was placed");
    }
}

#[tokio::test]
async fn check_35_fpdu_crc_error_terminates_2_0_02_and_stops_delivery() {
    let raw = Raw::connected().await;
    let mut bytes = tagged(Opcode::Write, raw.region.stag(), 0, b"0123456789");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    bytes.extend(untagged(SEND, Queue::SEND, 1, 0, b"after"));
    let receive = raw.connection.receive();
    raw.expect(&bytes, Code::MPA_CRC).await;
    assert!(soon(receive).await.is_err());
}

#[tokio::test]
async fn check_39_fpdu_undersized_length_rejected() {
    Raw::connected().await.expect(&[0, 13, 0, 0], Code::MPA_LENGTH).await;
}

#[tokio::test]
async fn a_write_to_an_unknown_stag_1_1_00() {
    let raw = Raw::connected().await;
    // mem_full_32bit_stag_match: the key byte counts.
    let wrong_key = Stag(raw.region.stag().0 ^ 1);
    raw.expect(&tagged(Opcode::Write, wrong_key, 0, b"x"), Code::TAGGED_INVALID_STAG).await;
}

#[tokio::test]
async fn a_write_out_of_bounds_1_1_01() {
    for to in [10, 1, u64::from(u32::MAX), u64::MAX - 10] {
        let raw = Raw::connected().await;
        let bytes = tagged(Opcode::Write, raw.region.stag(), to, b"0123456789");
        raw.expect(&bytes, Code::TAGGED_BOUNDS).await;
    }
    let raw = Raw::connected().await;
    let bytes = tagged(Opcode::Write, raw.region.stag(), u64::MAX, b"0123456789");
    raw.expect(&bytes, Code::TAGGED_WRAP).await;
}

#[tokio::test]
async fn check_78_mem_write_right_required() {
    let raw = Raw::connected().await;
    let read_only = raw.pd.register(vec![0; 10], Access::REMOTE_READ).unwrap();
    let bytes = tagged(Opcode::Write, read_only.stag(), 0, b"x");
    raw.expect(&bytes, Code::TAGGED_INVALID_STAG).await;
    assert_eq!(read_only.deregister().unwrap(), [0; 10]);
}

#[tokio::test]
async fn reads_that_may_not_be() {
    let raw = Raw::connected().await;
    let bytes = read_request(Stag(raw.region.stag().0 ^ 1), 0, 1);
    raw.expect(&bytes, Code::READ_INVALID_STAG).await;
    let raw = Raw::connected().await;
    let bytes = read_request(raw.region.stag(), 1, 10);
    raw.expect(&bytes, Code::READ_BOUNDS).await;
    let raw = Raw::connected().await;
    let bytes = read_request(raw.region.stag(), u64::MAX, 2);
    raw.expect(&bytes, Code::READ_WRAP).await;
    // mem_read_right_required
    let raw = Raw::connected().await;
    let write_only = raw.pd.register(vec![0; 10], Access::REMOTE_WRITE).unwrap();
    let bytes = read_request(write_only.stag(), 0, 1);
    raw.expect(&bytes, Code::READ_ACCESS).await;
}

#[tokio::test]
async fn check_79_mem_invalidated_stag_blocks_in_flight_segments() {
    let mut raw = Raw::connected().await;
    // Half of a Write, and a Send in the middle of it, as tagged and untagged messages may mix.
    let control = Control { last: false, ulp: Opcode::Write.control() };
    let mut bytes = framed(Header::Tagged { control, stag: raw.region.stag(), to: 0 }, b"first");
    bytes.extend(untagged(SEND, Queue::SEND, 1, 0, b"half way"));
    raw.peer.write_all(&bytes).await.unwrap();
    soon(raw.connection.receive()).await.unwrap();
    let stag = raw.region.stag();
    assert_eq!(raw.region.deregister().unwrap(), *b"first\0\0\0\0\0");
    // The memory is whoever's now; what names its STag is an error of the peer's.
    let fresh = raw.pd.register(vec![0; 10], Access::REMOTE_WRITE).unwrap();
    let raw = Raw { region: fresh, ..raw };
    raw.expect(&tagged(Opcode::Write, stag, 5, b"other"), Code::TAGGED_INVALID_STAG).await;
}

#[tokio::test]
async fn check_50_ddp_no_buffer_1_2_02() {
    let raw = Raw::connected().await;
    // A receive that nobody waits for any more is not a posted one.
    drop(raw.connection.receive());
    let mut bytes = untagged(SEND, Queue::SEND, 1, 0, b"taken");
    bytes.extend(untagged(SEND, Queue::SEND, 2, 0, b"too many"));
    let connection = raw.connection.clone();
    raw.expect(&bytes, Code::UNTAGGED_NO_BUFFER).await;
    assert_eq!(soon(connection.receive()).await.unwrap().message, "taken", "what came before is delivered");
    assert!(matches!(soon(connection.receive()).await, Err(FabricError::Protocol(_))));
}

#[tokio::test]
async fn sends_that_may_not_be() {
    let cases = [
        (untagged(SEND, Queue::SEND, 1, 0, b"eleven byte"), Code::UNTAGGED_TOO_LONG),
        (untagged(SEND, Queue::SEND, 2, 0, b"x"), Code::UNTAGGED_MSN),
        (untagged(SEND, Queue::SEND, 0, 0, b"x"), Code::UNTAGGED_MSN),
        (untagged(SEND, Queue::SEND, 1, 1, b"x"), Code::UNTAGGED_OFFSET),
        (untagged(SEND, Queue::READ_REQUEST, 1, 0, b"x"), Code::UNTAGGED_QUEUE),
        (untagged(SEND, Queue(99), 1, 0, b"x"), Code::UNTAGGED_QUEUE),
        (tagged(Opcode::ReadResponse, Stag(5), 0, b"x"), Code::TAGGED_INVALID_STAG),
    ];
    for (bytes, code) in cases {
        let raw = Raw::connected().await;
        raw.expect(&bytes, code).await;
    }
}

#[tokio::test]
async fn check_80_close_no_rst_after_terminate() {
    let raw = Raw::connected().await;
    // Much more arrives after the error than was read when it was found.
    let mut bytes = tagged(Opcode::Write, Stag(1), 0, b"x");
    bytes.extend(std::iter::repeat_n(0xff, 100_000));
    raw.expect(&bytes, Code::TAGGED_INVALID_STAG).await;
}

#[tokio::test]
async fn check_80_close_eof_mid_fpdu_is_error() {
    let mut raw = Raw::connected().await;
    let bytes = tagged(Opcode::Write, raw.region.stag(), 0, b"0123456789");
    raw.peer.write_all(&bytes[..20]).await.unwrap();
    let receive = raw.connection.receive();
    let held = raw.connection.send(Bytes::from_static(b"held"));
    drop(raw.peer);
    for error in [soon(receive).await.map(drop), soon(held).await, Err(soon(raw.connection.closed()).await)] {
        let FabricError::Io { source, .. } = error.unwrap_err() else {
            panic!("an error of the transport's")
        };
        assert_eq!(source.kind(), std::io::ErrorKind::UnexpectedEof);
    }
    assert_eq!(raw.region.deregister().unwrap(), [0; 10], "not even what had come");
}

#[tokio::test]
async fn a_reset_fails_everything_that_is_outstanding() {
    let mut raw = Raw::connected().await;
    raw.peer.write_all(&untagged(SEND, Queue::SEND, 1, 0, b"go")).await.unwrap();
    soon(raw.connection.receive()).await.unwrap();
    let source = raw.pd.register(vec![0; 32 << 20], Access::LOCAL_READ).unwrap();
    let to = RemoteAddress { stag: Stag(9), to: 0 };
    // The peer reads nothing, so the Write fills the socket and waits, and the Read has no answer.
    let read = raw.connection.read(&raw.region, 0, 10, to);
    let write = raw.connection.write(&source, 0, source.len(), to);
    let receive = raw.connection.receive();
    socket2::SockRef::from(&raw.peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(raw.peer);
    assert!(matches!(soon(read).await, Err(FabricError::Io { .. })));
    assert!(matches!(soon(write).await, Err(FabricError::Io { .. })));
    assert!(matches!(soon(receive).await, Err(FabricError::Io { .. })));
    assert!(matches!(raw.connection.send(Bytes::new()).await, Err(FabricError::Io { .. })));
}

#[tokio::test]
async fn disconnect_is_bounded_by_its_timeout() {
    let limit = Duration::from_millis(20);
    let raw = Raw::with(SoftOptions { close_timeout: limit, ..SoftOptions::default() }).await;
    // The peer never closes its side.
    let error = soon(raw.connection.disconnect()).await.unwrap_err();
    assert!(matches!(error, FabricError::TimedOut { verb: "disconnect", limit: l } if l == limit), "{error}");
}

async fn expect_closed_without_a_word(mut peer: TcpStream) {
    let mut answer = Vec::new();
    let _ = soon(peer.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"");
}

#[tokio::test]
async fn malformed_and_slow_peers_delay_nobody() {
    let (fabric, listener) = listen(SoftOptions::default()).await;
    let pd = fabric.allocate_pd().unwrap();
    let to = listener.local_addr();
    let mut slow = TcpStream::connect(to).await.unwrap();
    slow.write_all(b"MPA ID").await.unwrap();
    let mut garbage = TcpStream::connect(to).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut oversize = TcpStream::connect(to).await.unwrap();
    let mut request = hex(golden::REQUEST_V1);
    request[18..20].copy_from_slice(&513u16.to_be_bytes());
    oversize.write_all(&request).await.unwrap();
    let mut revision = TcpStream::connect(to).await.unwrap();
    request[17] = 3;
    revision.write_all(&request).await.unwrap();

    let (connected, accepted) = soon(async {
        tokio::join!(fabric.connect(&pd, to, ConnectOptions::default()), async {
            listener.accept().await?.accept(&pd, ConnectOptions::default()).await
        })
    })
    .await;
    connected.unwrap();
    accepted.unwrap();
    for peer in [garbage, oversize, revision] {
        expect_closed_without_a_word(peer).await;
    }
    // The slow one is served when it goes on (mpa_req_parsed_from_any_fragmentation).
    for byte in &hex(golden::REQUEST_V1)[6..] {
        slow.write_all(&[*byte]).await.unwrap();
    }
    assert_eq!(soon(listener.accept()).await.unwrap().private_data(), b"hello1");
}

#[tokio::test]
async fn check_10_mpa_marker_request_rejected_or_honoured() {
    let (_fabric, listener) = listen(SoftOptions::default()).await;
    let mut peer = TcpStream::connect(listener.local_addr()).await.unwrap();
    let mut request = hex(golden::REQUEST_V2);
    request[16] |= 0x80;
    peer.write_all(&request).await.unwrap();
    let mut reply = Vec::new();
    soon(peer.read_to_end(&mut reply)).await.unwrap();
    assert_eq!(reply[..24], hex("4d504120494420526570204672616d65 30020023 00000000"));
    assert_eq!(&reply[24..], b"MPA markers are not implemented", "the reason");
}

#[tokio::test]
async fn check_27_mpa_request_timeout() {
    let options = SoftOptions { request_timeout: Duration::from_millis(20), ..SoftOptions::default() };
    let (_fabric, listener) = listen(options).await;
    let peer = TcpStream::connect(listener.local_addr()).await.unwrap();
    expect_closed_without_a_word(peer).await;
}

#[tokio::test]
async fn half_open_peers_are_bounded() {
    let (_fabric, listener) = listen(SoftOptions { half_open: 2, ..SoftOptions::default() }).await;
    let mut peers = Vec::new();
    for _ in 0..3 {
        peers.push(TcpStream::connect(listener.local_addr()).await.unwrap());
    }
    expect_closed_without_a_word(peers.remove(0)).await;
    for peer in &mut peers {
        peer.write_all(&hex(golden::REQUEST_V1)).await.unwrap();
        soon(listener.accept()).await.unwrap();
    }
}

/// Connects to a raw listener that sends `reply` and then, if it shall, closes.
async fn connect_to(reply: &[u8], close: bool, limit: Duration) -> Result<Arc<dyn Connection>, FabricError> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let fabric = SoftFabric::default();
    let pd = fabric.allocate_pd().unwrap();
    let options = ConnectOptions { timeout: limit, ..ConnectOptions::default() };
    let peer = async {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut request = [0; 24];
        peer.read_exact(&mut request).await.unwrap();
        assert_eq!(request[..20], hex("4d504120494420526571204672616d65 50020004"), "mpa_crc_default_is_on");
        peer.write_all(reply).await.unwrap();
        (!close).then_some(peer)
    };
    let connect = fabric.connect(&pd, listener.local_addr().unwrap(), options);
    let (result, peer) = soon(async { tokio::join!(connect, peer) }).await;
    drop(peer);
    result
}

const LONG: Duration = Duration::from_secs(50);

#[tokio::test]
async fn replies_that_are_none() {
    for reply in [golden::REQUEST_V2, "00", golden::REPLY_V1] {
        let error = connect_to(&hex(reply), false, LONG).await.map(drop).unwrap_err();
        assert!(matches!(error, FabricError::Protocol(_)), "{error}");
    }
    let error = connect_to(&hex(golden::REPLY_V2)[..21], true, LONG).await.map(drop).unwrap_err();
    assert!(matches!(error, FabricError::Io { .. }), "{error}");
}

#[tokio::test]
async fn check_27_mpa_reply_timeout() {
    let limit = Duration::from_millis(20);
    let error = connect_to(&hex(golden::REPLY_V2)[..19], false, limit).await.map(drop).unwrap_err();
    assert!(matches!(error, FabricError::TimedOut { verb: "connect", .. }), "{error}");
}

#[tokio::test]
async fn check_25_mpa_initiator_accepts_fpdu_coalesced_with_reply() {
    let mut bytes = hex(golden::REPLY_V2);
    bytes.extend(hex(golden::SEND));
    let connection = connect_to(&bytes, false, LONG).await.unwrap();
    assert_eq!(soon(connection.receive()).await.unwrap().message, "ping");
}

#[tokio::test]
async fn what_comes_with_the_rtr_is_answered() {
    let (fabric, listener) = listen(SoftOptions::default()).await;
    let pd = fabric.allocate_pd().unwrap();
    let region = pd.register(vec![7; 4], Access::REMOTE_READ).unwrap();
    let mut peer = TcpStream::connect(listener.local_addr()).await.unwrap();
    peer.write_all(&hex(golden::REQUEST_V2_P2P)).await.unwrap();
    let request = soon(listener.accept()).await.unwrap();
    let accepted = request.accept(&pd, ConnectOptions::default());
    let talk = async {
        let mut reply = [0; 24];
        peer.read_exact(&mut reply).await.unwrap();
        let mut bytes = tagged(Opcode::Write, Stag(1), 0, b"");
        bytes.extend(read_request(region.stag(), 0, 4));
        peer.write_all(&bytes).await.unwrap();
        let mut response = [0; 24];
        peer.read_exact(&mut response).await.unwrap();
        assert_eq!(response[16..20], [7; 4]);
    };
    let (connection, ()) = soon(async { tokio::join!(accepted, talk) }).await;
    connection.unwrap();
}

#[tokio::test]
async fn a_terminate_fails_everything_with_its_words() {
    let mut bytes = hex(golden::REPLY_V2);
    bytes.extend(hex(golden::TERMINATE_TAGGED));
    let connection = connect_to(&bytes, false, LONG).await.unwrap();
    let error = soon(connection.closed()).await;
    assert!(matches!(&error, FabricError::TerminatedByPeer(e) if e.starts_with("1/1/00, DDP")), "{error}");
    assert!(matches!(soon(connection.receive()).await, Err(FabricError::TerminatedByPeer(_))));
}

#[tokio::test]
async fn check_37_fpdu_ulpdu_up_to_65535_received() {
    let (fabric, listener) = listen(SoftOptions::default()).await;
    let pd = fabric.allocate_pd().unwrap();
    let mut peer = TcpStream::connect(listener.local_addr()).await.unwrap();
    peer.write_all(&hex(golden::REQUEST_V1)).await.unwrap();
    let options = ConnectOptions { receive_size: 1 << 16, ..ConnectOptions::default() };
    let connection = soon(listener.accept()).await.unwrap().accept(&pd, options).await.unwrap();
    let payload = vec![7; usize::from(u16::MAX) - UNTAGGED_HEADER];
    for msn in 1..=9 {
        peer.write_all(&untagged(SEND, Queue::SEND, msn, 0, &payload)).await.unwrap();
    }
    for _ in 1..=9 {
        assert_eq!(soon(connection.receive()).await.unwrap().message, payload);
    }
}

#[tokio::test]
async fn check_29_mpa_private_data_limit_251_towards_siw() {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let to = listener.local_addr().unwrap();
    let fabric = SoftFabric::default();
    let pd = fabric.allocate_pd().unwrap();
    let options =
        |length| ConnectOptions { private_data: vec![7; length].into(), ..ConnectOptions::default() };
    let error = fabric.connect(&pd, to, options(252)).await.map(drop).unwrap_err();
    assert!(matches!(error, FabricError::Invalid(_)), "{error}");
    // With the enhanced header 251 bytes are 255, the most that siw's eight bits can say.
    let connect = fabric.connect(&pd, to, options(251));
    let peer = async {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut request = [0; 20 + 255];
        peer.read_exact(&mut request).await.unwrap();
        assert_eq!(request[18..20], 255u16.to_be_bytes());
        assert_eq!(request[24..], [7; 251]);
    };
    let (result, ()) = soon(async { tokio::join!(connect, peer) }).await;
    assert!(result.is_err(), "the peer went away");
}
