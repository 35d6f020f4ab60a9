//! Messages that claim what is not so, or are none: no body comes of them that is not what was sent.

use bytes::Bytes;
use rdma_http::header::TransferId;
use rdma_http::message::Message;

use super::hand::{Hand, fetch_from, region, soon, terminated};
use super::stags::finish_upload;
use super::victim::Victim;
use crate::program::{failures, pattern};

const LENGTH: u64 = 60_000;

/// What is said when this much of `LENGTH` bytes is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Claim {
    /// All of it, and one byte less is.
    MoreThanWritten,
    /// All of it, and nothing is.
    Nothing,
    /// So far more than is.
    Progress,
    /// More than the body has.
    MoreThanTheBody,
    /// Less than the body has.
    Less,
    /// No progress.
    Backwards,
    /// As many bytes as there can be.
    Most,
    /// Of a transfer that there is not.
    Another,
    /// That it takes what it gives.
    Credit,
    /// A region where there is none to tell of.
    Region,
    /// Of a kind that there is not.
    Unknown,
    /// Something else.
    Garbage,
    /// Nothing at all.
    Empty,
}

use Claim::*;

const CLAIMS: [Claim; 13] = [
    MoreThanWritten,
    Nothing,
    Progress,
    MoreThanTheBody,
    Less,
    Backwards,
    Most,
    Another,
    Credit,
    Region,
    Unknown,
    Garbage,
    Empty,
];

impl Claim {
    /// How much is written first.
    fn written(self) -> u64 {
        match self {
            MoreThanWritten => LENGTH - 1,
            Nothing => 0,
            Progress => 1000,
            _ => LENGTH,
        }
    }

    fn message(self, id: TransferId) -> Bytes {
        let done = |id, bytes| Message::Done { id, bytes }.encode();
        match self {
            MoreThanWritten | Nothing => done(id, LENGTH),
            Progress => Message::Progress { id, bytes: 1001 }.encode(),
            MoreThanTheBody => done(id, LENGTH + 1),
            Less => done(id, LENGTH - 1),
            Backwards => Message::Progress { id, bytes: 0 }.encode(),
            Most => done(id, u64::MAX),
            Another => done(TransferId([7; 16]), LENGTH),
            Credit => Message::Credit { id, bytes: LENGTH }.encode(),
            Region => {
                let at = rdma_http::fabric::RemoteAddress { stag: rdma_http::fabric::Stag(7), to: 0 };
                Message::Region { id, at, bytes: LENGTH }.encode()
            }
            Unknown => {
                let mut message = done(id, LENGTH).to_vec();
                message[5] = 200;
                message.into()
            }
            Garbage => Bytes::from_static(b"garbage"),
            Empty => Bytes::new(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_upload_comes_of_a_false_claim() {
    for memory in ["dynamic", "static"] {
        let victim = Victim::start(&["--memory", memory, "--chunk-size", "64K", "--window", "2"]);
        for claim in CLAIMS {
            let mut hand = Hand::new(&victim).await;
            let (connection, shown, id) = hand.upload("/new.bin", LENGTH).await;
            let bytes = hand.region(vec![0xee; LENGTH as usize]);
            let written = claim.written() as usize;
            soon(connection.write(&bytes, 0, written, shown.at)).await.unwrap();
            soon(connection.send(claim.message(id))).await.unwrap();
            hand.no_body().await;
            let answer = hand.answer().await;
            assert!(answer.starts_with("http/1.1 500 "), "{memory}, {claim:?}: {answer}");
            assert!(answer.contains("rdma: failed, reason=connection-lost\r\n"), "{claim:?}: {answer}");
            assert!(!victim.has("new.bin"), "{memory}, {claim:?}");
            soon(connection.closed()).await;
        }
        let events = victim.unharmed().await;
        assert_eq!(failures(&events).len(), CLAIMS.len());
    }
}

/// What is written round and round is held against each round: what the last one brought does not count for the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_upload_comes_of_a_claim_that_was_true_a_round_before() {
    const ROOM: u64 = 128 << 10;
    for memory in ["dynamic", "static"] {
        for missing in [1, ROOM] {
            let victim = Victim::start(&["--memory", memory, "--chunk-size", "64K", "--window", "2"]);
            let mut hand = Hand::new(&victim).await;
            let (connection, shown, id) = hand.upload("/new.bin", 3 * ROOM).await;
            assert_eq!(shown.bytes, ROOM);
            let bytes = hand.region(vec![0xee; ROOM as usize]);
            soon(connection.write(&bytes, 0, ROOM as usize, shown.at)).await.unwrap();
            soon(connection.send(Message::Progress { id, bytes: ROOM }.encode())).await.unwrap();
            // Until all of it may be written over.
            loop {
                let message = soon(connection.receive()).await.unwrap().message;
                match Message::decode(&message) {
                    Ok(Message::Credit { bytes: ROOM, .. }) => break,
                    Ok(Message::Credit { .. }) => {}
                    other => panic!("{other:?}"),
                }
            }
            let written = (ROOM - missing) as usize;
            soon(connection.write(&bytes, 0, written, shown.at)).await.unwrap();
            soon(connection.send(Message::Progress { id, bytes: 2 * ROOM }.encode())).await.unwrap();
            let answer = hand.answer().await;
            assert!(answer.contains("rdma: failed, reason=connection-lost\r\n"), "{memory}: {answer}");
            assert!(!victim.has("new.bin"), "{memory}");
            soon(connection.closed()).await;
            drop(hand);
            victim.unharmed().await;
        }
    }
}

/// A second `Done` is out of turn: it costs the connection, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_said_twice_is_heard_once() {
    let victim = Victim::start(&[]);
    let body = pattern(LENGTH as usize);
    let mut hand = Hand::new(&victim).await;
    let (connection, shown, id) = hand.upload("/new.bin", LENGTH).await;
    finish_upload(&mut hand, &*connection, (shown, id), (&body, 0)).await;
    soon(connection.send(Message::Done { id, bytes: LENGTH }.encode())).await.unwrap();
    assert!(victim.content("new.bin") == body);
    let id = TransferId::random().unwrap();
    let offer = format!("client-writes, {}, bytes={LENGTH}, id={id}", hand.here());
    hand.ask("PUT /next.bin", &offer).await;
    tokio::select! {
        next = hand.accept() => {
            let shown = region(&*next, id).await;
            finish_upload(&mut hand, &*next, (shown, id), (&body, 0)).await;
            assert!(victim.content("next.bin") == body);
        }
        // It came behind the request, and is no answer to what the server says now.
        Ok(_) = connection.receive() => {
            let answer = hand.answer().await;
            assert!(answer.contains("rdma: failed, reason=connection-lost\r\n"), "{answer}");
            assert!(!victim.has("next.bin"));
        }
    }
    soon(connection.closed()).await;
    drop(hand);
    victim.unharmed().await;
}

/// More messages than there are receives, and longer ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn floods_and_long_messages_end_the_connection() {
    let victim = Victim::start(&["--memory", "static"]);
    victim.httpd.file("body.bin", 60_000);
    // Nobody waits for a message between two transfers.
    {
        let mut hand = Hand::new(&victim).await;
        let connection = hand.connect().await;
        for _ in 0..200 {
            drop(connection.send(Message::Hello { id: TransferId::NONE }.encode()));
        }
        terminated(&*connection, "1/2/02").await;
    }
    for length in [65, 1 << 20] {
        let mut hand = Hand::new(&victim).await;
        let connection = hand.connect().await;
        drop(connection.send(vec![7; length].into()));
        terminated(&*connection, "1/2/05").await;
        let mut hand = Hand::new(&victim).await;
        let (connection, _, _) = hand.upload("/new.bin", LENGTH).await;
        drop(connection.send(vec![7; length].into()));
        terminated(&*connection, "1/2/05").await;
        let answer = hand.answer().await;
        assert!(answer.contains("rdma: failed, reason=connection-lost\r\n"), "{answer}");
    }
    // Those who read are told that they took more than there was, or nothing.
    for bytes in [0, 1, LENGTH - 1, LENGTH + 1, u64::MAX] {
        let mut hand = Hand::new(&victim).await;
        let (connection, _, id) = hand.download("/body.bin").await;
        soon(connection.send(Message::Credit { id, bytes }.encode())).await.unwrap();
        assert_eq!(hand.rest().await, "", "{bytes}");
        soon(connection.closed()).await;
    }
    assert!(!victim.has("new.bin"));
    victim.unharmed().await;
}

/// A server that claims falsely leaves its client without a body.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_download_comes_of_a_false_claim() {
    for memory in ["dynamic", "static"] {
        for claim in CLAIMS.into_iter().filter(|claim| !matches!(claim, Progress)) {
            let got =
                fetch_from(&["--memory", memory, "--maxlen", "64K", "--timeout", "20"], async |server| {
                    let offer = server.offer().await;
                    let connection = server.connect(&offer).await;
                    let (at, id) = (offer.region.unwrap().at, offer.id.unwrap());
                    let written = claim.written() as usize;
                    let bytes =
                        server.pd.register(vec![0xee; written], rdma_http::fabric::Access::LOCAL_READ);
                    let bytes = bytes.unwrap();
                    soon(connection.write(&bytes, 0, written, at)).await.unwrap();
                    soon(connection.send(claim.message(id))).await.unwrap();
                    let field = format!("server-writes, bytes={LENGTH}, id={id}");
                    server
                        .say(&format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nRDMA: {field}\r\n\r\n"))
                        .await;
                    soon(connection.closed()).await;
                })
                .await;
            assert_eq!(got.code, Some(8), "{memory}, {claim:?}: {}", got.stderr);
            assert!(got.files().is_empty(), "{memory}, {claim:?}");
        }
    }
}
