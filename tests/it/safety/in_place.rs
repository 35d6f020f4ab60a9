//! What comes too late where the HTTP connection is the RDMA connection: the two end together, and the answer must still go
//! over what the transfer broke on. Nobody else's memory is touched meanwhile, and nothing that was not given is read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::HeaderMap;
use rdma_http::client::{Client, ClientError, Connect, Options};
use rdma_http::events::Recorder;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::fabric::{Access, ConnectOptions, Connection, Fabric, FabricError, Pd, Region};
use rdma_http::header::{Route, TransferId};
use rdma_http::in_place::Frame;
use rdma_http::memory::Strategy;
use rdma_http::message::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::hand::{Hand, HandServer, Shown, region, soon};
use super::stags::finish_upload;
use super::victim::Victim;
use crate::program::pattern;

const LENGTH: usize = 60_000;
const MEMORIES: [&str; 3] = ["dynamic", "static", "cache"];

fn options(private_data: Bytes) -> ConnectOptions {
    ConnectOptions { private_data, receive_depth: 256, receive_size: 16 << 10, ..ConnectOptions::default() }
}

/// A client whose HTTP connection is its RDMA connection, made by hand.
struct HandInPlace {
    connection: Arc<dyn Connection>,
    pd: Pd,
}

impl HandInPlace {
    async fn new(victim: &Victim) -> Self {
        let fabric = SoftFabric::new(SoftOptions::default());
        let (pd, id) = (fabric.allocate_pd().unwrap(), TransferId::random().unwrap());
        let mut http = TcpStream::connect(victim.address()).await.unwrap();
        let ask = format!(
            "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: rdma\r\n\
             RDMA: connect, connect=in-place, id={id}\r\n\r\n"
        );
        http.write_all(ask.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(http.read_u8()).await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        let over = fabric.over_tcp().unwrap();
        let connection =
            soon(over.accept_over(http, Bytes::new(), &pd, options(Bytes::new()))).await.unwrap();
        let hand = Self { connection, pd };
        let answer = hand.head().await;
        assert!(answer.contains("rdma: accept, connect=in-place"), "{answer}");
        hand
    }

    async fn ask(&self, line: &str, offer: &str, more: &str) {
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\nRDMA: {offer}\r\n{more}\r\n");
        soon(self.connection.send(Frame::http(head.as_bytes()).0)).await.unwrap();
    }

    async fn frame(&self) -> Frame {
        let received = soon(self.connection.receive()).await.unwrap_or_else(|error| panic!("{error}"));
        Frame::decode(received.message).expect("a good frame")
    }

    /// A response's head, in lower case; what has come of the body behind it is dropped.
    async fn head(&self) -> String {
        let mut text = String::new();
        while !text.contains("\r\n\r\n") {
            let Frame::Http(piece) = self.frame().await else { panic!("no HTTP after {text:?}") };
            text.push_str(&String::from_utf8_lossy(&piece));
        }
        text.to_ascii_lowercase()
    }

    /// Begins an upload that is to be written by us.
    async fn upload(&self, path: &str) -> (Shown, TransferId) {
        let id = TransferId::random().unwrap();
        let offer = format!("client-writes, connect=in-place, bytes={LENGTH}, id={id}");
        let more = "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n";
        self.ask(&format!("PUT {path}"), &offer, more).await;
        (region(&*self.connection, id).await, id)
    }

    /// Begins a download that is to be read by us.
    async fn download(&self, path: &str) -> (Shown, TransferId) {
        let id = TransferId::random().unwrap();
        let offer = format!("client-reads, connect=in-place, id={id}");
        self.ask(&format!("GET {path}"), &offer, "").await;
        // In whichever order they come.
        let (mut text, mut shown) = (String::new(), None);
        while shown.is_none() || !text.contains("\r\n\r\n") {
            match self.frame().await {
                Frame::Http(piece) => text.push_str(&String::from_utf8_lossy(&piece)),
                Frame::Message(message) => match Message::decode(&message) {
                    Ok(Message::Region { at, bytes, .. }) => shown = Some(Shown { at, bytes }),
                    other => panic!("{other:?}"),
                },
                Frame::Credit(taken) => panic!("credit for {taken}"),
            }
        }
        assert!(text.contains("rdma: client-reads, coming="), "{text}");
        (shown.unwrap(), id)
    }

    fn region(&self, bytes: Vec<u8>) -> Region {
        let access = Access { local_write: true, remote_read: true, remote_write: true };
        self.pd.register(bytes, access).unwrap()
    }

    /// Asserts that the server ends the connection, whatever we do.
    async fn ended(&self, what: &str) {
        let end = soon(self.connection.closed()).await;
        assert!(matches!(end, FabricError::Closed | FabricError::TerminatedByPeer(_)), "{what}: {end:?}");
    }
}

/// By what the transfer ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    TimedOut,
    FalseClaim,
}

fn start(memory: &str, end: End) -> Victim {
    let mut args = vec!["--memory", memory, "--chunk-size", "64K", "--window", "2"];
    if end == End::TimedOut {
        args.extend(["--stall-timeout", "2"]);
    }
    Victim::start(&args)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_write_after_the_upload_has_failed_changes_nothing() {
    let cases = MEMORIES.iter().flat_map(|memory| [End::TimedOut, End::FalseClaim].map(|end| (*memory, end)));
    join_all(cases.map(|(memory, end)| async move {
        let what = format!("{memory}, {end:?}");
        let victim = start(memory, end);
        let late = HandInPlace::new(&victim).await;
        let (shown, id) = late.upload("/first.bin").await;
        let junk = late.region(vec![0xee; LENGTH]);
        soon(late.connection.write(&junk, 0, LENGTH / 2, shown.at)).await.unwrap();
        if end == End::FalseClaim {
            soon(late.connection.send(Message::Done { id, bytes: LENGTH as u64 }.encode())).await.unwrap();
        }
        let answer = late.head().await;
        let reason = if end == End::TimedOut { "timed-out" } else { "connection-lost" };
        assert!(answer.starts_with("http/1.1 500 "), "{what}: {answer}");
        assert!(answer.contains(&format!("rdma: failed, reason={reason}\r\n")), "{what}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{what}: {answer}");
        // Memory that is free by now is another's.
        let (mut next, other) = (Hand::new(&victim).await, pattern(LENGTH));
        let (nexts, region, next_id) = next.upload("/second.bin", LENGTH as u64).await;
        drop(late.connection.write(&junk, 0, LENGTH, shown.at));
        late.ended(&what).await;
        finish_upload(&mut next, &*nexts, (region, next_id), (&other, 0)).await;
        assert!(!victim.has("first.bin"), "{what}");
        assert!(victim.content("second.bin") == other, "{what}");
        drop((late, next));
        victim.unharmed().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_read_after_the_download_has_failed_gets_nothing() {
    let cases = MEMORIES.iter().flat_map(|memory| [End::TimedOut, End::FalseClaim].map(|end| (*memory, end)));
    join_all(cases.map(|(memory, end)| async move {
        let what = format!("{memory}, {end:?}");
        let victim = start(memory, end);
        victim.httpd.file("body.bin", LENGTH);
        let late = HandInPlace::new(&victim).await;
        let (shown, id) = late.download("/body.bin").await;
        match end {
            End::TimedOut => {}
            // As much as there is, but for a byte.
            End::FalseClaim => {
                let credit = Message::Credit { id, bytes: LENGTH as u64 - 1 };
                soon(late.connection.send(credit.encode())).await.unwrap();
            }
        }
        // It ends by itself; what is posted from then on is late.
        late.ended(&what).await;
        let sink = late.region(vec![0xee; LENGTH]);
        assert!(soon(late.connection.read(&sink, 0, LENGTH, shown.at)).await.is_err(), "{what}");
        assert!(sink.deregister().unwrap() == vec![0xee; LENGTH], "{what}");
        drop(late);
        victim.unharmed().await;
    }))
    .await;
}

/// The other way round: a server that goes on writing when its client has given it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_that_writes_after_the_timeout_changes_nothing() {
    join_all([Strategy::Dynamic, Strategy::Static, Strategy::Cache].map(|memory| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asking = tokio::spawn(async move {
            let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
            let (maxlen, timeout) = (LENGTH as u64, Duration::from_secs(1));
            let options =
                Options { maxlen, memory, timeout, connect: Connect::InPlace, ..Options::default() };
            let client = Client::new(Some(fabric), options, Recorder::default());
            let mut connection = client.connect("127.0.0.1", port).await.unwrap();
            let first = connection.get("/x", HeaderMap::new()).await;
            assert!(matches!(first, Err(ClientError::TimedOut { .. })), "{first:?}");
        });
        let mut server = HandServer::accept(&listener).await;
        let offer = server.offer().await;
        assert_eq!(offer.route, Route::InPlace);
        server.say("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: rdma\r\n\r\n").await;
        let (at, hello) = (offer.region.unwrap().at, Message::Hello { id: offer.id.unwrap() }.encode());
        let fabric = SoftFabric::new(SoftOptions::default());
        let (http, pd) = (server.http, fabric.allocate_pd().unwrap());
        let over = fabric.over_tcp().unwrap();
        let connection = soon(over.connect_over(http, Bytes::new(), &pd, options(hello))).await.unwrap();
        let junk = pd.register(vec![0xee; LENGTH], Access::LOCAL_READ).unwrap();
        soon(connection.write(&junk, 0, LENGTH / 2, at)).await.unwrap();
        soon(asking).await.unwrap();
        drop(connection.write(&junk, 0, LENGTH, at));
        let end = soon(connection.closed()).await;
        assert!(matches!(end, FabricError::Closed | FabricError::TerminatedByPeer(_)), "{memory:?}: {end:?}");
    }))
    .await;
}
