//! Two ends in one process, over loopback: what is soft's own. What every fabric promises is tried in
//! `testbed/tests/fabric/`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::{Revision, SegmentSize, SoftFabric, SoftOptions};
use crate::fabric::{Access, ConnectOptions, Connection, Fabric, FabricError, Pd, Region, RemoteAddress};
use crate::iwarp::Stag;

/// Long enough for a loaded machine; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it ends in bounded time")
}

/// One end of a connection.
struct End {
    pd: Pd,
    connection: Arc<dyn Connection>,
}

impl End {
    fn region(&self, memory: Vec<u8>, access: Access) -> Region {
        self.pd.register(memory, access).unwrap()
    }
}

async fn pair(options: SoftOptions, initiator: ConnectOptions, responder: ConnectOptions) -> (End, End) {
    let fabric = SoftFabric::new(options);
    let listener = fabric.listen(loopback()).await.unwrap();
    let (ours, theirs) = (fabric.allocate_pd().unwrap(), fabric.allocate_pd().unwrap());
    let (connected, accepted) = soon(async {
        tokio::join!(fabric.connect(&ours, listener.local_addr(), initiator), async {
            listener.accept().await?.accept(&theirs, responder).await
        })
    })
    .await;
    (End { pd: ours, connection: connected.unwrap() }, End { pd: theirs, connection: accepted.unwrap() })
}

async fn default_pair() -> (End, End) {
    pair(SoftOptions::default(), ConnectOptions::default(), ConnectOptions::default()).await
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn at(region: &Region, to: u64) -> RemoteAddress {
    RemoteAddress { stag: region.stag(), to: region.base() + to }
}

#[tokio::test]
async fn check_72_rdmap_write_then_send_visibility() {
    for (revision, crc, segment_size) in [
        (Revision::V1, true, SegmentSize::Emss),
        (Revision::V2, false, SegmentSize::Emss),
        (Revision::V2, true, SegmentSize::Large),
    ] {
        let fabric = SoftOptions { revision, segment_size, ..SoftOptions::default() };
        let options = ConnectOptions { crc, ..ConnectOptions::default() };
        let (a, b) = pair(fabric, options.clone(), options).await;
        let body = pattern(3_000_001);
        let source = a.region(body.clone(), Access::LOCAL_READ);
        let sink = b.region(vec![0; body.len() + 10], Access::REMOTE_WRITE);
        let written = a.connection.write(&source, 0, body.len(), at(&sink, 7));
        let sent = a.connection.send(Bytes::from_static(b"done"));
        assert_eq!(soon(b.connection.receive()).await.unwrap().message, "done");
        let memory = sink.deregister().unwrap();
        assert!(memory[7..].starts_with(&body), "revision {revision:?}, CRC {crc}");
        assert_eq!((&memory[..7], &memory[body.len() + 7..]), (&[0; 7][..], &[0; 3][..]));
        soon(written).await.unwrap();
        soon(sent).await.unwrap();
        assert_eq!(source.deregister().unwrap(), body);
    }
}

#[tokio::test]
async fn reads_both_ways_at_once() {
    let (a, b) = default_pair().await;
    let length = 5_000_000;
    let (body_a, body_b) = (pattern(length), pattern(length + 1));
    let source_a = a.region(body_a.clone(), Access::REMOTE_READ);
    let source_b = b.region(body_b.clone(), Access::REMOTE_READ);
    let sink_a = a.region(vec![0; length + 1], Access::LOCAL_WRITE);
    let sink_b = b.region(vec![0; length], Access::LOCAL_WRITE);
    let reads_a: Vec<_> = (0..40)
        .map(|_| a.connection.read(&sink_a, 0, length / 10, at(&source_b, 0)))
        .chain([a.connection.read(&sink_a, 0, length + 1, at(&source_b, 0))])
        .collect();
    let read_b = b.connection.read(&sink_b, 0, length, at(&source_a, 0));
    for read in reads_a {
        soon(read).await.unwrap();
    }
    soon(read_b).await.unwrap();
    assert_eq!(sink_a.deregister().unwrap(), body_b);
    assert_eq!(sink_b.deregister().unwrap(), body_a);
}

#[tokio::test]
async fn check_24_mpa_responder_holds_fpdus_until_first_fpdu_received() {
    let (a, b) = default_pair().await;
    let early = b.connection.send(Bytes::from_static(b"held"));
    a.connection.send(Bytes::from_static(b"first")).await.unwrap();
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "first");
    soon(early).await.unwrap();
    assert_eq!(soon(a.connection.receive()).await.unwrap().message, "held");
}

#[tokio::test]
async fn mpa_rtr_lets_the_responder_send_first() {
    let options = SoftOptions { peer_to_peer: true, ..SoftOptions::default() };
    let (a, b) = pair(options, ConnectOptions::default(), ConnectOptions::default()).await;
    soon(b.connection.send(Bytes::from_static(b"hello"))).await.unwrap();
    assert_eq!(soon(a.connection.receive()).await.unwrap().message, "hello");
}

#[tokio::test]
async fn check_71_rdmap_send_inv_invalidates_before_completion() {
    let (a, b) = default_pair().await;
    let sink = b.region(vec![0; 10], Access::REMOTE_WRITE);
    let source = a.region(vec![1; 10], Access::LOCAL_READ);
    a.connection.send_invalidate(Bytes::from_static(b"bye"), sink.stag()).await.unwrap();
    let received = soon(b.connection.receive()).await.unwrap();
    assert_eq!((received.message.as_ref(), received.invalidated), (&b"bye"[..], Some(sink.stag())));
    drop(a.connection.write(&source, 0, 10, at(&sink, 0)));
    let error = soon(a.connection.closed()).await;
    assert!(matches!(&error, FabricError::TerminatedByPeer(e) if e.starts_with("1/1/00")), "{error}");
    assert_eq!(sink.deregister().unwrap(), [0; 10]);
}

#[tokio::test]
async fn nothing_leaves_behind_a_write_whose_source_is_gone() {
    let (a, b) = default_pair().await;
    let sink = b.region(vec![0; 10], Access::REMOTE_WRITE);
    let source = a.region(vec![1; 10], Access::LOCAL_READ);
    // The responder may not send yet, so what it posts waits.
    let other = b.region(vec![1; 10], Access::LOCAL_READ);
    let written = b.connection.write(&other, 0, 10, at(&source, 0));
    let said = b.connection.send(Bytes::from_static(b"it is written"));
    drop(other.deregister());
    a.connection.write(&source, 0, 10, at(&sink, 0)).await.unwrap();
    assert!(matches!(soon(written).await, Err(FabricError::Invalid(_))));
    assert!(soon(said).await.is_err());
    assert!(matches!(soon(a.connection.receive()).await, Err(FabricError::TerminatedByPeer(_))));
}

#[tokio::test]
async fn check_80_close_graceful_drains_before_fin() {
    let (a, b) = default_pair().await;
    let body = pattern(4_000_000);
    let source = a.region(body.clone(), Access::LOCAL_READ);
    let sink = b.region(vec![0; body.len()], Access::REMOTE_WRITE);
    let written = a.connection.write(&source, 0, body.len(), at(&sink, 0));
    let sent = a.connection.send(Bytes::from_static(b"last"));
    soon(a.connection.disconnect()).await.unwrap();
    written.await.unwrap();
    sent.await.unwrap();
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "last");
    assert!(matches!(soon(b.connection.receive()).await, Err(FabricError::Closed)));
    assert!(matches!(soon(b.connection.closed()).await, FabricError::Closed));
    assert!(matches!(a.connection.send(Bytes::new()).await, Err(FabricError::Closed)));
    assert_eq!(sink.deregister().unwrap(), body);
}

#[tokio::test]
async fn the_send_queue_is_bounded() {
    let options = SoftOptions { send_queue_depth: 3, ..SoftOptions::default() };
    let (a, b) = pair(options, ConnectOptions::default(), ConnectOptions::default()).await;
    // The responder's work waits for the initiator's first message.
    let posted: Vec<_> = (0..3).map(|_| b.connection.send(Bytes::new())).collect();
    let error = b.connection.send(Bytes::new()).await.unwrap_err();
    assert!(matches!(error, FabricError::Invalid(_)), "{error}");
    a.connection.send(Bytes::new()).await.unwrap();
    for sent in posted {
        soon(sent).await.unwrap();
    }
    soon(b.connection.send(Bytes::new())).await.unwrap();
}

#[tokio::test]
async fn another_fabrics_region_is_refused() {
    let (a, _b) = default_pair().await;
    let to = RemoteAddress { stag: Stag(1), to: 0 };
    let elsewhere = SoftFabric::default().allocate_pd().unwrap();
    let elsewhere = elsewhere.register(vec![0; 10], Access::LOCAL_READ).unwrap();
    assert!(matches!(a.connection.write(&elsewhere, 0, 1, to).await, Err(FabricError::Invalid(_))));
}

#[tokio::test]
async fn a_connection_sees_the_regions_of_its_own_domain_only() {
    let (a, b) = default_pair().await;
    let source = a.region(vec![1; 10], Access::LOCAL_READ);
    let sink = a.region(vec![0; 10], Access::REMOTE_WRITE);
    drop(a.connection.write(&source, 0, 10, at(&sink, 0)));
    let error = soon(b.connection.closed()).await;
    assert!(matches!(&error, FabricError::Protocol(e) if e.starts_with("1/1/02")), "{error}");
    assert_eq!(sink.deregister().unwrap(), [0; 10]);
}

#[tokio::test]
async fn stags_are_not_repeated_and_never_have_index_zero() {
    let fabric = SoftFabric::new(SoftOptions { max_regions: 100, ..SoftOptions::default() });
    let pd = fabric.allocate_pd().unwrap();
    let regions: Vec<Region> =
        (0..100).map(|_| pd.register(vec![0; 4], Access::LOCAL_READ).unwrap()).collect();
    let stags: std::collections::HashSet<u32> = regions.iter().map(|r| r.stag().0 >> 8).collect();
    assert_eq!(stags.len(), 100);
    assert!(!stags.contains(&0));
    assert!(matches!(pd.register(Vec::new(), Access::LOCAL_READ), Err(FabricError::Invalid(_))));
    drop(regions);
    pd.register(Vec::new(), Access::LOCAL_READ).unwrap();
}

fn file_of(bytes: &[u8]) -> Arc<std::fs::File> {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

#[tokio::test]
async fn a_file_is_a_source_of_writes_and_reads() {
    for crc in [true, false] {
        let options = ConnectOptions { crc, ..ConnectOptions::default() };
        let (a, b) = pair(SoftOptions::default(), options.clone(), options).await;
        let body = pattern(1_000_003);
        let file = file_of(&body);
        let source = a.pd.register_file(file.clone(), 3, body.len() as u64 - 3).unwrap();
        assert_eq!(source.len(), body.len() - 3);
        let sink = b.region(vec![0; source.len()], Access::REMOTE_WRITE);
        soon(a.connection.write(&source, 0, source.len(), at(&sink, 0))).await.unwrap();
        a.connection.send(Bytes::new()).await.unwrap();
        soon(b.connection.receive()).await.unwrap();
        assert_eq!(sink.deregister().unwrap(), body[3..]);
        let sink = b.region(vec![0; 500_000], Access::LOCAL_WRITE);
        soon(b.connection.read(&sink, 0, 500_000, at(&source, 7))).await.unwrap();
        assert_eq!(sink.deregister().unwrap(), body[10..500_010]);
        assert_eq!(source.deregister().unwrap(), b"");
    }
}

#[tokio::test]
async fn a_file_is_nobodys_sink_and_no_longer_than_it_is() {
    let (a, b) = default_pair().await;
    let file = file_of(b"0123456789");
    for (offset, length) in [(0, 11), (11, 0), (u64::MAX, 2)] {
        let error = a.pd.register_file(file.clone(), offset, length).unwrap_err();
        assert!(matches!(error, FabricError::Invalid(_)), "{error}");
    }
    let target = b.pd.register_file(file, 0, 10).unwrap();
    let source = a.region(vec![1; 10], Access::LOCAL_READ);
    drop(a.connection.write(&source, 0, 10, at(&target, 0)));
    let error = soon(a.connection.closed()).await;
    assert!(matches!(&error, FabricError::TerminatedByPeer(e) if e.starts_with("1/1/00")), "{error}");
}

#[tokio::test]
async fn a_file_that_is_truncated_gives_an_error_and_never_a_wrong_body() {
    for crc in [true, false] {
        let options = ConnectOptions { crc, ..ConnectOptions::default() };
        let (a, b) = pair(SoftOptions::default(), options.clone(), options).await;
        let file = file_of(&pattern(1_000_000));
        let source = b.pd.register_file(file.clone(), 0, 1_000_000).unwrap();
        let sink = a.region(vec![0; 1_000_000], Access::LOCAL_WRITE);
        file.set_len(400_000).unwrap();
        let error = soon(a.connection.read(&sink, 0, 1_000_000, at(&source, 0))).await.unwrap_err();
        assert!(matches!(&error, FabricError::TerminatedByPeer(e) if e.starts_with("0/0/ff")), "{error}");
        soon(b.connection.closed()).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_there_becomes_a_connection() {
    let fabric = SoftFabric::default();
    let over = fabric.over_tcp().unwrap();
    let listener = tokio::net::TcpListener::bind(loopback()).await.unwrap();
    let (ours, theirs) = (fabric.allocate_pd().unwrap(), fabric.allocate_pd().unwrap());
    let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    let (connected, accepted) = soon(async {
        tokio::join!(over.connect_over(stream, Bytes::new(), &ours, ConnectOptions::default()), async {
            // A reader that was there before has taken the beginning of the Request.
            let mut first = [0; 7];
            tokio::io::AsyncReadExt::read_exact(&mut accepted, &mut first).await.unwrap();
            let first = Bytes::copy_from_slice(&first);
            over.accept_over(accepted, first, &theirs, ConnectOptions::default()).await
        })
    })
    .await;
    let (connected, accepted) = (connected.unwrap(), accepted.unwrap());
    let sink = theirs.register(vec![0; 4], Access::REMOTE_WRITE).unwrap();
    let source = ours.register(vec![0; 4], Access::LOCAL_READ).unwrap();
    source.copy_in(1, b"abc").unwrap();
    soon(connected.write(&source, 1, 3, at(&sink, 0))).await.unwrap();
    soon(connected.send(Bytes::from_static(b"x"))).await.unwrap();
    assert_eq!(soon(accepted.receive()).await.unwrap().message, "x");
    let mut out = [0; 2];
    sink.copy_out(1, &mut out).unwrap();
    assert_eq!(&out, b"bc");
    assert!(source.copy_in(2, b"abc").is_err());
    assert!(sink.copy_out(usize::MAX, &mut out).is_err());
}

/// A connection that has talked some other protocol before, up to the same place on both sides.
#[tokio::test]
async fn check_28_mpa_delayed_start_keeps_buffered_bytes() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    // How much of what follows the switch either side has read already: nothing, some, and more than one frame.
    for (ahead_of_request, streaming) in [(0, 1), (1, 70_000), (19, 3), (24, 5), (usize::MAX, 100)] {
        let fabric = SoftFabric::default();
        let pd = fabric.allocate_pd().unwrap();
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut theirs, _) = listener.accept().await.unwrap();
        // Streaming mode: any number of bytes, both ways at once.
        let chatter = pattern(streaming);
        let (mut seen_a, mut seen_b) = (vec![0; streaming], vec![0; streaming]);
        soon(async {
            let (mut read_a, mut write_a) = ours.split();
            let (mut read_b, mut write_b) = theirs.split();
            tokio::try_join!(
                async { write_a.write_all(&chatter).await },
                async { write_b.write_all(&chatter).await },
                async { read_a.read_exact(&mut seen_a).await.map(drop) },
                async { read_b.read_exact(&mut seen_b).await.map(drop) },
            )
        })
        .await
        .unwrap();
        assert_eq!((&seen_a, &seen_b), (&chatter, &chatter));
        let over = fabric.over_tcp().unwrap();
        let initiate = over.connect_over(ours, Bytes::new(), &pd, ConnectOptions::default());
        let respond = async {
            let wanted = ahead_of_request.min(24);
            let mut read_ahead = vec![0; wanted];
            theirs.read_exact(&mut read_ahead).await.unwrap();
            over.accept_over(theirs, read_ahead.into(), &pd, ConnectOptions::default()).await
        };
        let (a, b) = soon(async { tokio::join!(initiate, respond) }).await;
        let (a, b) = (a.unwrap(), b.unwrap());
        a.send(Bytes::from_static(b"first")).await.unwrap();
        assert_eq!(soon(b.receive()).await.unwrap().message, "first");
        b.send(Bytes::from_static(b"second")).await.unwrap();
        assert_eq!(soon(a.receive()).await.unwrap().message, "second");
    }
}

/// The initiator too may have read ahead: the Reply, and the first FPDUs behind it.
#[tokio::test]
async fn mpa_delayed_start_of_an_initiator_that_read_ahead() {
    use crate::iwarp::golden::{self, hex};
    use tokio::io::AsyncWriteExt;
    for ahead in [1, 20, 24, 30, 52] {
        let fabric = SoftFabric::default();
        let pd = fabric.allocate_pd().unwrap();
        let listener = tokio::net::TcpListener::bind(loopback()).await.unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut bytes = hex(golden::REPLY_V2);
        bytes.extend(hex(golden::SEND));
        let (read_ahead, later) = bytes.split_at(ahead);
        peer.write_all(later).await.unwrap();
        let connection = soon(fabric.over_tcp().unwrap().connect_over(
            stream,
            Bytes::copy_from_slice(read_ahead),
            &pd,
            ConnectOptions::default(),
        ))
        .await
        .unwrap();
        assert_eq!(soon(connection.receive()).await.unwrap().message, "ping");
    }
}

#[tokio::test]
async fn check_70_rdmap_solicited_event_signalled() {
    let (a, b) = default_pair().await;
    let sink = b.region(vec![0; 10], Access::REMOTE_WRITE);
    soon(a.connection.send_solicited(Bytes::from_static(b"se"), None)).await.unwrap();
    let received = soon(b.connection.receive()).await.unwrap();
    assert_eq!((received.solicited, received.invalidated), (true, None));
    soon(a.connection.send_solicited(Bytes::from_static(b"both"), Some(sink.stag()))).await.unwrap();
    let received = soon(b.connection.receive()).await.unwrap();
    assert_eq!((received.solicited, received.invalidated), (true, Some(sink.stag())));
    soon(a.connection.send(Bytes::new())).await.unwrap();
    assert!(!soon(b.connection.receive()).await.unwrap().solicited);
}
