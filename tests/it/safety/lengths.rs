//! Lengths and offsets at the end of their range: nothing is allocated that follows them, no sum overflows, and the body is
//! right or refused.

use std::sync::Arc;

use rdma_http::events::Event;
use rdma_http::fabric::{Access, Connection, RemoteAddress};
use rdma_http::header::{Mode, TransferId};
use rdma_http::message::Message;
use tokio::io::AsyncWriteExt;

use super::hand::{Hand, fetch_from, soon};
use super::victim::Victim;

const LENGTH: usize = 60_000;
const CHUNK: u64 = 64 << 10;
const WINDOW: u64 = 2;
const MOST: u64 = u64::MAX;

fn start(more: &[&str]) -> Victim {
    Victim::start(&[&["--chunk-size", "64K", "--window", "2", "--stall-timeout", "20"], more].concat())
}

/// Nothing was registered that a window would not hold.
fn assert_bounded(events: &[Event]) {
    for event in events {
        if let Event::RegionRegistered { length, .. } = event {
            assert!(*length <= CHUNK * WINDOW, "{length} bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_download_into_all_of_memory_takes_what_the_body_has() {
    let victim = start(&[]);
    let body = victim.httpd.file("body.bin", LENGTH);
    let mut hand = Hand::new(&victim).await;
    let region = hand.region(vec![0; LENGTH]);
    let (id, stag) = (TransferId::random().unwrap(), region.stag().0);
    let offer = format!("server-writes, {}, stag={stag}, to=0, maxlen={MOST}, id={id}", hand.here());
    hand.ask("GET /body.bin", &offer).await;
    let connection = hand.accept().await;
    let done = soon(connection.receive()).await.unwrap().message;
    assert_eq!(Message::decode(&done), Ok(Message::Done { id, bytes: LENGTH as u64 }));
    let head = hand.head().await;
    assert!(head.contains(&format!("rdma: server-writes, bytes={LENGTH}, id={id}\r\n")), "{head}");
    assert!(region.deregister().unwrap() == body);
    drop((hand, connection));
    assert_bounded(&victim.unharmed().await);
}

/// Regions that are not there: what is written to them comes back as a Terminate, which may be too late for a short body.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_download_to_nowhere_fails() {
    let victim = start(&[]);
    victim.httpd.file("body.bin", LENGTH);
    for (stag, to, maxlen) in
        [(0, 0, MOST), (0, 1, MOST), (u32::MAX, MOST, 1), (0, MOST, 1), (7, MOST - 9, 10)]
    {
        let mut hand = Hand::new(&victim).await;
        let id = TransferId::random().unwrap();
        let offer = format!("server-writes, {}, stag={stag}, to={to}, maxlen={maxlen}, id={id}", hand.here());
        hand.ask("GET /body.bin", &offer).await;
        let connection = hand.accept().await;
        soon(connection.closed()).await;
        let head = hand.head().await;
        let broken = head.contains("rdma: failed, reason=connection-lost\r\n")
            || (head.contains("rdma: server-writes, coming=60000") && hand.rest().await.is_empty());
        let unknowing = head.contains("rdma: server-writes, bytes=60000");
        assert!(broken || unknowing, "{to}, {maxlen}: {head}");
    }
    // What is more than 64 bits is no offer.
    let mut hand = Hand::new(&victim).await;
    let here = hand.here();
    for wrong in [
        "to=2, maxlen=18446744073709551615",
        "to=18446744073709551616, maxlen=1",
        "to=18446744073709551615, maxlen=2",
    ] {
        hand.ask("GET /body.bin", &format!("server-writes, {here}, stag=1, {wrong}")).await;
        let head = hand.head().await;
        assert!(head.contains("rdma: fallback, reason=malformed\r\n"), "{wrong}: {head}");
        hand.body(LENGTH).await;
    }
    drop(hand);
    assert_bounded(&victim.unharmed().await);
}

/// Begins an upload, of which the server gets to see what it asks for until it gives up.
async fn upload(victim: &Victim, offer: &str) -> (Hand, Arc<dyn Connection>, TransferId) {
    let mut hand = Hand::new(victim).await;
    let id = TransferId::random().unwrap();
    let (mode, rest) = offer.split_once(", ").unwrap();
    hand.ask("PUT /new.bin", &format!("{mode}, {}, {rest}, id={id}", hand.here())).await;
    let connection = hand.accept().await;
    (hand, connection, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_upload_of_all_there_can_be_is_refused() {
    let victim = start(&[]);
    for offer in
        [format!("client-writes, bytes={MOST}"), format!("server-reads, stag=1, to=0, maxlen={MOST}")]
    {
        let (mut hand, connection, _) = upload(&victim, &offer).await;
        let head = hand.answer().await;
        assert!(head.starts_with("http/1.1 413 "), "{offer}: {head}");
        assert!(head.contains("rdma: fallback, reason=not-read\r\n"), "{offer}: {head}");
        drop((hand, connection));
    }
    // Over TCP it is the same, and what HTTP cannot say is no request.
    for (length, status) in
        [((MOST - 2).to_string(), "413"), (MOST.to_string(), "431"), ("18446744073709551616".into(), "400")]
    {
        let mut hand = Hand::new(&victim).await;
        hand.say(&format!("PUT /new.bin HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")).await;
        let head = hand.head().await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{length}: {head}");
    }
    // A body whose length is not told ends where there is too much of it.
    let small = start(&["--max-upload", "10"]);
    let mut hand = Hand::new(&small).await;
    hand.say("PUT /new.bin HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsix456\r\n6\r\nsix456\r\n").await;
    let head = hand.head().await;
    assert!(head.starts_with("http/1.1 413 "), "{head}");
    drop(hand);
    for victim in [victim, small] {
        let events = victim.at_rest_and_stopped().await;
        assert_bounded(&events);
    }
}

/// A head has an end, or the connection has.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_head_without_an_end_is_refused() {
    let victim = start(&[]);
    for line in ["X: ".to_owned() + &"x".repeat(1 << 20), "X: y\r\n".repeat(1 << 17)] {
        let mut hand = Hand::new(&victim).await;
        // As much of it as the server takes.
        let _ = hand.http.write_all(format!("GET / HTTP/1.1\r\nHost: x\r\n{line}").as_bytes()).await;
        let answer = hand.rest().await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    victim.at_rest_and_stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_upload_of_all_there_can_be_takes_a_window() {
    let victim = start(&["--max-upload", &MOST.to_string()]);
    // Written: the server has room for a window, whatever is to come.
    let (hand, connection, id) = upload(&victim, &format!("client-writes, bytes={MOST}")).await;
    let shown = super::hand::region(&*connection, id).await;
    assert_eq!(shown.bytes, CHUNK * WINDOW);
    let bytes = hand.region(vec![1; 1000]);
    soon(connection.write(&bytes, 0, 1000, shown.at)).await.unwrap();
    soon(connection.send(Message::Progress { id, bytes: 1000 }.encode())).await.unwrap();
    drop((hand, connection));
    // Read: the region that it has ends before the advertised one does, or where the offsets do.
    for (to, maxlen) in [(0, MOST), (1, MOST), (MOST, 1), (MOST - 9, 10)] {
        let (mut hand, connection, _) =
            upload(&victim, &format!("server-reads, stag=7, to={to}, maxlen={maxlen}")).await;
        soon(connection.closed()).await;
        let head = hand.answer().await;
        assert!(head.contains("rdma: failed, reason=connection-lost\r\n"), "{to}, {maxlen}: {head}");
    }
    // Regions that are told of where the offsets end.
    for (to, bytes) in [(MOST, MOST), (MOST, 2), (0, MOST), (MOST, 1)] {
        let mut hand = Hand::new(&victim).await;
        let (connection, id) = (hand.connect().await, TransferId::random().unwrap());
        let offer = format!("server-reads, connect=client, stag=7, to=0, maxlen=0, bytes=1000, id={id}");
        hand.ask("PUT /new.bin", &offer).await;
        let at = RemoteAddress { stag: rdma_http::fabric::Stag(7), to };
        soon(connection.send(Message::Region { id, at, bytes }.encode())).await.unwrap();
        soon(connection.closed()).await;
        let head = hand.answer().await;
        assert!(head.contains("rdma: failed, reason=connection-lost\r\n"), "{to}, {bytes}: {head}");
    }
    victim.until("gone", |figures| figures["rdma_http_transfers_under_way"] == 0.0).await;
    assert!(!victim.has("new.bin"));
    assert_bounded(&victim.unharmed().await);
}

/// A server that announces all there can be, or tells of regions where the offsets end.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_is_told_of_all_there_can_be_leaves_no_file() {
    for (mode, to, bytes) in [
        (Mode::ServerWrites, 0, MOST),
        (Mode::ClientReads, 0, MOST),
        (Mode::ClientReads, MOST, 1),
        (Mode::ClientReads, MOST, MOST),
    ] {
        let args = ["--mode", mode.token(), "--maxlen", "64K", "--timeout", "20"];
        let got = fetch_from(&args, async |server| {
            let offer = server.offer().await;
            let id = offer.id.unwrap();
            let connection = server.connect(&offer).await;
            let field = format!("{mode}, coming={MOST}, id={id}");
            server
                .say(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nRDMA: {field}\r\n\r\n"))
                .await;
            let message = match offer.region {
                Some(region) => {
                    let source = server.pd.register(vec![7; 1000], Access::LOCAL_READ).unwrap();
                    soon(connection.write(&source, 0, 1000, region.at)).await.unwrap();
                    soon(connection.send(Message::Progress { id, bytes: 1000 }.encode())).await.unwrap();
                    Message::Done { id, bytes: MOST }
                }
                None => {
                    let at = RemoteAddress { stag: rdma_http::fabric::Stag(7), to };
                    Message::Region { id, at, bytes }
                }
            };
            soon(connection.send(message.encode())).await.unwrap();
            soon(connection.closed()).await;
        })
        .await;
        assert!(matches!(got.code, Some(8 | 18)), "{mode} {to} {bytes}: {:?} {}", got.code, got.stderr);
        assert!(got.files().is_empty());
    }
    // An upload that is to be written where the offsets end.
    for (to, bytes) in [(MOST, MOST), (MOST, 2), (1, MOST)] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; LENGTH]).unwrap();
        let path = file.path().to_str().unwrap();
        let got =
            fetch_from(&["-T", path, "--mode", "client-writes", "--timeout", "20", "-f"], async |server| {
                let offer = server.offer().await;
                let id = offer.id.unwrap();
                let connection = server.connect(&offer).await;
                let at = RemoteAddress { stag: rdma_http::fabric::Stag(7), to };
                soon(connection.send(Message::Region { id, at, bytes }.encode())).await.unwrap();
                soon(connection.closed()).await;
                server
                    .say("HTTP/1.1 500 No\r\nContent-Length: 0\r\nRDMA: fallback, reason=not-read\r\n\r\n")
                    .await;
            })
            .await;
        assert_eq!(got.code, Some(22), "{to} {bytes}: {}", got.stderr);
    }
}
