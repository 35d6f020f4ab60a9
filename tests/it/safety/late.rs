//! Writes that come too late: after the transfer has ended, and after it has timed out. What was handed on does not change,
//! and memory that serves somebody else by then is out of reach, whatever the strategy by which it is registered.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use rdma_http::client::{Client, ClientError, Options, Via};
use rdma_http::events::Recorder;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::fabric::{Access, FabricError};
use rdma_http::header::Mode;
use rdma_http::memory::Strategy;
use rdma_http::message::Message;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::hand::{Hand, HandServer, soon, terminated};
use super::stags::finish_upload;
use super::victim::Victim;
use crate::program::pattern;

const LENGTH: usize = 60_000;
const MEMORIES: [&str; 4] = ["dynamic", "static", "cache", "sendfile"];

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_write_after_the_upload_changes_nothing() {
    for memory in MEMORIES {
        let victim = Victim::start(&["--memory", memory, "--chunk-size", "64K", "--window", "2"]);
        let (body, other) = (pattern(LENGTH), vec![7; LENGTH]);
        let mut late = Hand::new(&victim).await;
        let (connection, shown, id) = late.upload("/first.bin", LENGTH as u64).await;
        finish_upload(&mut late, &*connection, (shown, id), (&body, 0)).await;
        // Somebody else's upload is under way, in memory that was free again if any was.
        let mut next = Hand::new(&victim).await;
        let (nexts, region, next_id) = next.upload("/second.bin", LENGTH as u64).await;
        let junk = late.region(vec![0xee; LENGTH]);
        // Registered for good or not, it was given for one transfer.
        drop(connection.write(&junk, 0, LENGTH, shown.at));
        drop(connection.send(Message::Done { id, bytes: LENGTH as u64 }.encode()));
        terminated(&*connection, "1/1/00").await;
        finish_upload(&mut next, &*nexts, (region, next_id), (&other, 0)).await;
        assert!(victim.content("first.bin") == body, "{memory}");
        assert!(victim.content("second.bin") == other, "{memory}");
        drop((late, next));
        victim.unharmed().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_write_after_the_upload_has_timed_out_changes_nothing() {
    // At once, since each waits for the time to be up; which is long enough for those who are not late.
    futures_util::future::join_all(MEMORIES.map(a_write_after_the_timeout)).await;
}

async fn a_write_after_the_timeout(memory: &str) {
    let args = ["--memory", memory, "--chunk-size", "64K", "--window", "2", "--stall-timeout", "2"];
    let victim = Victim::start(&args);
    let other = pattern(LENGTH);
    let mut late = Hand::new(&victim).await;
    let (connection, shown, _) = late.upload("/first.bin", LENGTH as u64).await;
    let junk = late.region(vec![0xee; LENGTH]);
    soon(connection.write(&junk, 0, LENGTH / 2, shown.at)).await.unwrap();
    let answer = late.answer().await;
    assert!(answer.starts_with("http/1.1 500 "), "{memory}: {answer}");
    assert!(answer.contains("rdma: failed, reason=timed-out\r\n"), "{memory}: {answer}");
    // The memory is free, and another's.
    let mut next = Hand::new(&victim).await;
    let (nexts, region, next_id) = next.upload("/second.bin", LENGTH as u64).await;
    let written = soon(connection.write(&junk, 0, LENGTH, shown.at)).await;
    let end = soon(connection.closed()).await;
    assert!(matches!(end, FabricError::Closed | FabricError::TerminatedByPeer(_)), "{memory}: {end:?}");
    drop(written);
    finish_upload(&mut next, &*nexts, (region, next_id), (&other, 0)).await;
    assert!(!victim.has("first.bin"), "{memory}");
    assert!(victim.content("second.bin") == other, "{memory}");
    drop((late, next));
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_read_after_the_download_gets_nothing() {
    for memory in MEMORIES {
        let victim = Victim::start(&["--memory", memory, "--chunk-size", "64K", "--window", "2"]);
        let body = victim.httpd.file("body.bin", LENGTH);
        let mut hand = Hand::new(&victim).await;
        let (connection, shown, id) = hand.download("/body.bin").await;
        let sink = hand.region(vec![0; LENGTH]);
        soon(connection.read(&sink, 0, LENGTH, shown.at)).await.unwrap();
        assert!(sink.deregister().unwrap() == body, "{memory}");
        soon(connection.send(Message::Credit { id, bytes: LENGTH as u64 }.encode())).await.unwrap();
        assert_eq!(hand.body(5).await, b"0\r\n\r\n", "the last chunk");
        // The file may be secret by now; the next body is another.
        let sink = hand.region(vec![0xee; LENGTH]);
        let read = connection.read(&sink, 0, LENGTH, shown.at);
        terminated(&*connection, "0/1/00").await;
        assert!(soon(read).await.is_err());
        assert!(sink.deregister().unwrap() == vec![0xee; LENGTH], "{memory}");
        drop(hand);
        victim.unharmed().await;
    }
}

/// A kept buffer may be longer than the body in it, and has held others: no more of it is within reach than was told of.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_kept_buffer_shows_nothing_of_the_body_before() {
    for memory in ["static", "cache"] {
        let victim = Victim::start(&["--memory", memory, "--chunk-size", "64K", "--window", "1"]);
        victim.httpd.file("long.bin", LENGTH);
        victim.httpd.file("short.bin", 1000);
        let mut hand = Hand::new(&victim).await;
        let (connection, shown, id) = hand.download("/long.bin").await;
        soon(connection.send(Message::Credit { id, bytes: shown.bytes }.encode())).await.unwrap();
        assert_eq!(hand.body(5).await, b"0\r\n\r\n", "the last chunk");
        let id = rdma_http::header::TransferId::random().unwrap();
        hand.ask("GET /short.bin", &format!("client-reads, {}, id={id}", hand.here())).await;
        hand.head().await;
        let again = super::hand::region(&*connection, id).await;
        assert_eq!((again.at.stag, again.bytes), (shown.at.stag, 1000), "{memory}: the buffer is used again");
        let sink = hand.region(vec![0xee; LENGTH]);
        soon(connection.read(&sink, 0, 1000, again.at)).await.unwrap();
        let more = connection.read(&sink, 1000, 1, again.plus(1000));
        terminated(&*connection, "0/1/01").await;
        assert!(soon(more).await.is_err());
        let seen = sink.deregister().unwrap();
        assert!(seen[..1000] == pattern(1000), "{memory}");
        assert!(seen[1000..].iter().all(|byte| *byte == 0xee), "{memory}: more than was told of");
        drop((hand, connection));
        victim.unharmed().await;
    }
}

fn options(memory: Strategy) -> Options {
    Options { maxlen: LENGTH as u64, memory, timeout: Duration::from_secs(60), ..Options::default() }
}

const STRATEGIES: [Strategy; 3] = [Strategy::Dynamic, Strategy::Static, Strategy::Cache];

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_writes_after_the_response_changes_nothing() {
    for memory in STRATEGIES {
        let body = pattern(LENGTH);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
        let client = Client::new(Some(fabric), options(memory), Recorder::default());
        let (answered, has_answer) = oneshot::channel();
        let asking = tokio::spawn(async move {
            let mut connection = client.connect("127.0.0.1", port).await.unwrap();
            let response = connection.get("/x", HeaderMap::new()).await.unwrap();
            assert_eq!(response.via, Via::Rdma(Mode::ServerWrites));
            let (written, go_on) = oneshot::channel();
            answered.send(written).unwrap();
            go_on.await.unwrap();
            response.body.collect(LENGTH).await.unwrap()
        });
        let mut server = HandServer::accept(&listener).await;
        let offer = server.offer().await;
        let connection = server.connect(&offer).await;
        let (at, id) = (offer.region.unwrap().at, offer.id.unwrap());
        let source = server.pd.register(body.clone(), Access::LOCAL_READ).unwrap();
        soon(connection.write(&source, 0, LENGTH, at)).await.unwrap();
        soon(connection.send(Message::Done { id, bytes: LENGTH as u64 }.encode())).await.unwrap();
        let field = format!("server-writes, bytes={LENGTH}, id={id}");
        server.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nRDMA: {field}\r\n\r\n")).await;
        let written = soon(has_answer).await.unwrap();
        let junk = server.pd.register(vec![0xee; LENGTH], Access::LOCAL_READ).unwrap();
        drop(connection.write(&junk, 0, LENGTH, at));
        terminated(&*connection, "1/1/00").await;
        written.send(()).unwrap();
        assert!(soon(asking).await.unwrap() == body, "{memory:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_writes_after_the_timeout_changes_nothing() {
    futures_util::future::join_all(STRATEGIES.map(a_server_after_the_timeout)).await;
}

async fn a_server_after_the_timeout(memory: Strategy) {
    let body = pattern(LENGTH);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
    let hasty = Options { timeout: Duration::from_secs(1), ..options(memory) };
    let client = Client::new(Some(fabric.clone()), hasty, Recorder::default());
    let asking = tokio::spawn(async move {
        let mut connection = client.connect("127.0.0.1", port).await.unwrap();
        let first = connection.get("/x", HeaderMap::new()).await;
        assert!(matches!(first, Err(ClientError::TimedOut { .. })), "{first:?}");
        // It goes on elsewhere.
        let client = Client::new(Some(fabric), options(memory), Recorder::default());
        let mut connection = client.connect("127.0.0.1", port).await.unwrap();
        let response = connection.get("/y", HeaderMap::new()).await.unwrap();
        response.body.collect(LENGTH).await.unwrap()
    });
    let serve = async |body: &[u8], done: bool| {
        let mut server = HandServer::accept(&listener).await;
        let offer = server.offer().await;
        let connection = server.connect(&offer).await;
        let (at, id) = (offer.region.unwrap().at, offer.id.unwrap());
        let source = server.pd.register(body.to_vec(), Access::LOCAL_READ).unwrap();
        soon(connection.write(&source, 0, LENGTH, at)).await.unwrap();
        if done {
            soon(connection.send(Message::Done { id, bytes: LENGTH as u64 }.encode())).await.unwrap();
            let field = format!("server-writes, bytes={LENGTH}, id={id}");
            server.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nRDMA: {field}\r\n\r\n")).await;
        }
        (server, connection, at)
    };
    let (late_server, late, at) = serve(&body, false).await;
    let _served = serve(&body, true).await;
    let junk = late_server.pd.register(vec![0xee; LENGTH], Access::LOCAL_READ).unwrap();
    let written = late.write(&junk, 0, LENGTH, at);
    let end = soon(late.closed()).await;
    assert!(matches!(end, FabricError::Closed | FabricError::TerminatedByPeer(_)), "{memory:?}: {end:?}");
    drop(written);
    assert!(soon(asking).await.unwrap() == body, "{memory:?}");
}
