//! Peers that are slow on purpose: whoever takes or sends next to nothing is given up within the limits, and others are
//! served meanwhile. What is slow here goes on for as long as others are served, so nothing is waited for but events.

use std::collections::HashMap;

use rdma_http::header::TransferId;
use rdma_http::message::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use super::hand::{Hand, RawPeer, soon};
use super::victim::Victim;

const LIMITED: &str = "rdma_http_limited_total";

fn limited(figures: &HashMap<String, f64>, setting: &str) -> f64 {
    // A server that has only just started has not told of all of them.
    figures.get(&format!("{LIMITED}{{setting=\"{setting}\"}}")).copied().unwrap_or(0.0)
}

const LITTLE: &str = "little";

fn start(args: &[&str]) -> Victim {
    let victim = Victim::start(args);
    std::fs::write(victim.httpd.directory.path().join("little.txt"), LITTLE).unwrap();
    victim.httpd.sparse_file("long.bin", 1 << 30);
    victim
}

/// Somebody else is served.
async fn serves(victim: &Victim) {
    let mut hand = Hand::new(victim).await;
    hand.say("GET /little.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let answer = hand.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(LITTLE), "{answer}");
}

/// Serves others, and lets the slow one do its little `step`, until a limit has been met so often.
async fn until_limited(victim: &Victim, setting: &str, times: f64, mut step: impl AsyncFnMut()) {
    soon(async {
        while limited(&victim.figures().await, setting) < times {
            serves(victim).await;
            step().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_reads_a_byte_at_a_time_is_given_up() {
    let victim = start(&["--stall-timeout", "0.15"]);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut slow = socket.connect(victim.address()).await.unwrap();
    slow.write_all(b"GET /long.bin HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    until_limited(&victim, "stall-timeout", 1.0, async || {
        // Reset, once it is given up.
        let _ = slow.read_u8().await;
    })
    .await;
    // It still has its end of the connection; the server's is gone.
    victim.at_rest().await;
    drop(slow);
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_reads_a_byte_at_a_time_by_rdma_is_given_up() {
    let victim = start(&["--stall-timeout", "0.15"]);
    let mut hand = Hand::new(&victim).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (id, port) = (TransferId::random().unwrap(), listener.local_addr().unwrap().port());
    let offer =
        format!("server-writes, ip=127.0.0.1, port={port}, stag=642, to=0, maxlen=1073741824, id={id}");
    hand.ask("GET /long.bin", &offer).await;
    let mut raw = RawPeer::accept(&listener).await;
    until_limited(&victim, "stall-timeout", 1.0, async || {
        let _ = raw.0.read_u8().await;
    })
    .await;
    let head = hand.head().await;
    assert!(head.contains("rdma: failed, reason=timed-out\r\n"), "{head}");
    drop((raw, hand));
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_takes_a_download_byte_by_byte_is_given_up() {
    let victim = start(&["--stall-timeout", "0.15"]);
    // It reads, and gives no credit.
    let mut hand = Hand::new(&victim).await;
    let (connection, shown, _) = hand.download("/long.bin").await;
    let sink = hand.region(vec![7; 1]);
    until_limited(&victim, "stall-timeout", 1.0, async || {
        let _ = connection.read(&sink, 0, 1, shown.at).await;
    })
    .await;
    assert_eq!(hand.rest().await, "");
    // It gives credit for a byte.
    let mut hand = Hand::new(&victim).await;
    let (connection, _, id) = hand.download("/long.bin").await;
    soon(connection.send(Message::Credit { id, bytes: 1 }.encode())).await.unwrap();
    soon(connection.closed()).await;
    assert_eq!(hand.rest().await, "");
    drop(hand);
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_uploads_byte_by_byte_is_given_up() {
    // A hundred kilobytes a second, or fifteen within the limit.
    let victim = start(&["--stall-timeout", "0.15", "--min-rate", "100K"]);
    // By RDMA.
    let mut hand = Hand::new(&victim).await;
    let (connection, shown, id) = hand.upload("/new.bin", 1 << 20).await;
    let byte = hand.region(vec![7; 1]);
    let mut written = 0;
    until_limited(&victim, "stall-timeout", 1.0, async || {
        drop(connection.write(&byte, 0, 1, shown.plus(written)));
        written += 1;
        let _ = connection.send(Message::Progress { id, bytes: written }.encode()).await;
    })
    .await;
    let head = hand.answer().await;
    assert!(head.contains("rdma: failed, reason=timed-out\r\n"), "{head}");
    assert!(written > 0);
    // By TCP.
    let mut hand = Hand::new(&victim).await;
    hand.say("PUT /new.bin HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n").await;
    until_limited(&victim, "stall-timeout", 2.0, async || {
        let _ = hand.http.write_all(b"x").await;
    })
    .await;
    let answer = hand.rest().await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(!victim.has("new.bin"));
    drop(hand);
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_sends_a_head_byte_by_byte_is_given_up() {
    let victim = start(&["--head-timeout", "0.1"]);
    let mut hand = Hand::new(&victim).await;
    hand.say("GET /little.txt HTTP/1.1\r\nHost: ").await;
    until_limited(&victim, "head-timeout", 1.0, async || {
        let _ = hand.http.write_all(b"x").await;
    })
    .await;
    // On a connection that has been of use before, too.
    let mut hand = Hand::new(&victim).await;
    hand.say("GET /little.txt HTTP/1.1\r\nHost: x\r\n\r\n").await;
    hand.head().await;
    hand.body(LITTLE.len()).await;
    hand.say("G").await;
    until_limited(&victim, "head-timeout", 2.0, async || {
        let _ = hand.http.write_all(b"E").await;
    })
    .await;
    victim.at_rest().await;
    drop(hand);
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_asks_for_nothing_is_given_up() {
    let victim = start(&["--idle-timeout", "0.15"]);
    let _silent = Hand::new(&victim).await;
    let mut kept = Hand::new(&victim).await;
    kept.say("GET /little.txt HTTP/1.1\r\nHost: x\r\n\r\n").await;
    kept.head().await;
    victim.until("given up", |figures| limited(figures, "idle-timeout") >= 2.0).await;
    victim.at_rest().await;
    victim.unharmed().await;
}

/// Connections that do nothing keep nobody out.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_house_makes_room_for_who_has_something_to_ask() {
    let victim = start(&["--max-connections", "3"]);
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(Hand::new(&victim).await);
        serves(&victim).await;
    }
    // One that is in the middle of something is left alone.
    let mut busy = Hand::new(&victim).await;
    let (connection, shown, id) = busy.upload("/new.bin", 1000).await;
    for _ in 0..20 {
        silent.push(Hand::new(&victim).await);
        serves(&victim).await;
    }
    super::stags::finish_upload(&mut busy, &*connection, (shown, id), (&[7; 1000], 0)).await;
    let figures = victim.figures().await;
    assert!(limited(&figures, "max-connections") >= 30.0, "{figures:#?}");
    assert!(figures["rdma_http_http_connections"] <= 3.0);
    assert!(figures["rdma_http_http_connections_accepted_total"] >= 81.0);
    drop((silent, busy));
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_address_has_no_more_than_its_share_of_connections() {
    let victim = start(&["--max-connections-per-peer", "2"]);
    let (mut one, mut two) = (Hand::new(&victim).await, Hand::new(&victim).await);
    let first = one.upload("/one.bin", 1000).await;
    let second = two.upload("/two.bin", 1000).await;
    let mut three = Hand::new(&victim).await;
    assert_eq!(three.rest().await, "", "closed");
    assert_eq!(limited(&victim.figures().await, "max-connections-per-peer"), 1.0);
    // From another address there is room.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.3:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(victim.address()).await.unwrap();
    other.write_all(b"GET /little.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon(other.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with(LITTLE), "{answer}");
    for (mut hand, (connection, shown, id)) in [(one, first), (two, second)] {
        super::stags::finish_upload(&mut hand, &*connection, (shown, id), (&[7; 1000], 0)).await;
    }
    victim.unharmed().await;
}
