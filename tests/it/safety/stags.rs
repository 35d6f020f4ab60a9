//! STags that are not the attacker's to use: guessed, foreign, stale, or used beyond what they were given for. Each attack
//! ends the attacker's RDMA connection with the Terminate that the RFC has for it, changes nothing, and disturbs no other
//! client's transfer that is under way meanwhile.

use std::sync::Arc;

use rdma_http::fabric::{Connection, RemoteAddress};
use rdma_http::header::TransferId;
use rdma_http::message::Message;

use super::hand::{Hand, Shown, region, soon, terminated};
use super::victim::Victim;
use crate::program::pattern;

const LENGTH: usize = 60_000;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Write,
    Read,
    /// Send with Invalidate.
    Invalidate,
}

/// What with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Aim {
    /// An STag out of the blue.
    Guess,
    /// The true STag of another client's region.
    Foreign,
    /// A right that the region does not give.
    NoRight,
    /// One byte more than the region has.
    OneTooMany,
    /// Where offset and length are more than 2^64.
    Wrap,
    /// Where they are 2^64, which is more than 64 bits say, too.
    Top,
}

use Aim::{Foreign, Guess, NoRight, OneTooMany, Top, Wrap};
use Verb::{Invalidate, Read, Write};

/// The attacks and what each is answered.
const ATTACKS: [(Verb, Aim, &str); 13] = [
    (Write, Guess, "1/1/00"),
    (Write, Foreign, "1/1/02"),
    (Write, NoRight, "1/1/00"),
    (Write, OneTooMany, "1/1/01"),
    (Write, Wrap, "1/1/03"),
    (Write, Top, "1/1/03"),
    (Read, Guess, "0/1/00"),
    (Read, Foreign, "0/1/03"),
    (Read, NoRight, "0/1/02"),
    (Read, OneTooMany, "0/1/01"),
    (Read, Wrap, "0/1/04"),
    (Invalidate, Guess, "0/2/09"),
    (Invalidate, Foreign, "0/1/09"),
];

/// Does it, and asserts how the connection ends.
async fn attack(
    hand: &Hand,
    connection: &dyn Connection,
    (verb, aim, code): (Verb, Aim, &str),
    (own, foreign): (Shown, Shown),
) {
    let to = match aim {
        // A right guess would be a chance of one in a billion.
        Guess => own.named(getrandom()),
        Foreign => foreign.at,
        NoRight => own.at,
        OneTooMany => own.plus(own.bytes - 3),
        Wrap => RemoteAddress { to: u64::MAX - 2, ..own.at },
        Top => RemoteAddress { to: u64::MAX - 3, ..own.at },
    };
    let bytes = hand.region(vec![0xee; 4]);
    let posted = match verb {
        Write => connection.write(&bytes, 0, 4, to),
        Read => connection.read(&bytes, 0, 4, to),
        Invalidate => connection.send_invalidate(Message::Hello { id: TransferId::NONE }.encode(), to.stag),
    };
    terminated(connection, code).await;
    let posted = soon(posted).await;
    assert!(verb != Read || posted.is_err());
    assert_eq!(bytes.deregister().unwrap(), [0xee; 4], "nothing was read");
}

fn getrandom() -> u32 {
    let id = TransferId::random().unwrap().0;
    u32::from_le_bytes([id[0], id[1], id[2], id[3]])
}

/// An upload that is under way while others are attacked.
struct Bystander {
    hand: Hand,
    connection: Arc<dyn Connection>,
    shown: Shown,
    id: TransferId,
    body: Vec<u8>,
}

impl Bystander {
    async fn begin(victim: &Victim) -> Self {
        let mut hand = Hand::new(victim).await;
        let body = pattern(LENGTH);
        let (connection, shown, id) = hand.upload("/bystander.bin", body.len() as u64).await;
        let half = hand.region(body[..LENGTH / 2].to_vec());
        soon(connection.write(&half, 0, LENGTH / 2, shown.at)).await.unwrap();
        Self { hand, connection, shown, id, body }
    }

    /// Ends well, with all that it sent.
    async fn end(self, victim: &Victim) {
        let Self { mut hand, connection, shown, id, body } = self;
        finish_upload(&mut hand, &*connection, (shown, id), (&body, LENGTH / 2)).await;
        assert!(victim.content("bystander.bin") == body);
    }
}

/// Writes what is left of a body, and says so; asserts that the upload ends well.
pub(super) async fn finish_upload(
    hand: &mut Hand,
    connection: &dyn Connection,
    (shown, id): (Shown, TransferId),
    (body, from): (&[u8], usize),
) {
    let rest = hand.region(body[from..].to_vec());
    soon(connection.write(&rest, 0, rest.len(), shown.plus(from as u64))).await.unwrap();
    soon(connection.send(Message::Done { id, bytes: body.len() as u64 }.encode())).await.unwrap();
    hand.no_body().await;
    let answer = hand.answer().await;
    let said = format!("rdma: client-writes, bytes={}, id={id}\r\n", body.len());
    assert!(answer.starts_with("http/1.1 20") && answer.contains(&said), "{answer}");
    if let Some(length) = answer.split("content-length: ").nth(1) {
        hand.body(length.split('\r').next().unwrap().parse().unwrap()).await;
    }
}

/// All attacks on the server's regions in both modes in which it shows some.
async fn all_attacks(memory: &str) {
    let victim = Victim::start(&["--memory", memory, "--chunk-size", "64K", "--window", "2"]);
    victim.httpd.file("body.bin", LENGTH);
    let bystander = Bystander::begin(&victim).await;
    for attacked in ATTACKS {
        let (verb, aim, _) = attacked;
        // What the attacker may write is not what it may read, and the other way round.
        let (writes, reads) = match (verb, aim) {
            (_, Guess | Foreign) => (true, true),
            (Write, NoRight) | (Read, OneTooMany | Wrap | Top) => (false, true),
            _ => (true, false),
        };
        if writes {
            let mut hand = Hand::new(&victim).await;
            let (connection, own, _) = hand.upload("/attacked.bin", LENGTH as u64).await;
            attack(&hand, &*connection, attacked, (own, bystander.shown)).await;
            let answer = hand.answer().await;
            assert!(answer.starts_with("http/1.1 500 "), "{attacked:?}: {answer}");
            assert!(answer.contains("rdma: failed, reason=connection-lost\r\n"), "{attacked:?}: {answer}");
            assert!(!victim.has("attacked.bin"), "{attacked:?}");
        }
        if reads {
            let mut hand = Hand::new(&victim).await;
            let (connection, own, _) = hand.download("/body.bin").await;
            attack(&hand, &*connection, attacked, (own, bystander.shown)).await;
            // The last chunk never comes.
            assert_eq!(hand.rest().await, "", "{attacked:?}");
        }
    }
    bystander.end(&victim).await;
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn foreign_and_guessed_stags_name_nothing() {
    all_attacks("dynamic").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn foreign_and_guessed_stags_name_nothing_in_a_static_pool() {
    all_attacks("static").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn foreign_and_guessed_stags_name_nothing_in_a_cache() {
    all_attacks("cache").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn foreign_and_guessed_stags_name_nothing_in_files() {
    all_attacks("sendfile").await;
}

/// Guesses by many connections, as an attacker must make them: each has one guess.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_spray_of_guesses_finds_nothing() {
    let victim = Victim::start(&["--memory", "static", "--chunk-size", "64K", "--window", "2"]);
    victim.httpd.file("body.bin", LENGTH);
    let bystander = Bystander::begin(&victim).await;
    for round in 0..30 {
        let mut hand = Hand::new(&victim).await;
        let connection = hand.connect().await;
        let shown = Shown { at: bystander.shown.at, bytes: 4 };
        let attacked = match round % 3 {
            0 => (Write, Guess, "1/1/00"),
            1 => (Read, Guess, "0/1/00"),
            _ => (Invalidate, Guess, "0/2/09"),
        };
        attack(&hand, &*connection, attacked, (shown, shown)).await;
    }
    bystander.end(&victim).await;
    victim.unharmed().await;
}

/// What was given for a transfer is of no use in the next one, on the same connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_stag_of_the_transfer_before_is_stale() {
    let victim = Victim::start(&[]);
    let body = pattern(LENGTH);
    let mut hand = Hand::new(&victim).await;
    let (connection, first, id) = hand.upload("/first.bin", LENGTH as u64).await;
    finish_upload(&mut hand, &*connection, (first, id), (&body, 0)).await;
    // The second over the same connection, with a region of its own.
    let id = TransferId::random().unwrap();
    let offer = format!("client-writes, {}, bytes={LENGTH}, id={id}", hand.here());
    hand.ask("PUT /second.bin", &offer).await;
    let second = region(&*connection, id).await;
    assert_ne!(first.at.stag, second.at.stag);
    let junk = hand.region(vec![0xee; 4]);
    drop(connection.write(&junk, 0, 4, first.at));
    terminated(&*connection, "1/1/00").await;
    let answer = hand.answer().await;
    assert!(answer.starts_with("http/1.1 500 "), "{answer}");
    assert!(!victim.has("second.bin"));
    assert!(victim.content("first.bin") == body);
    drop(hand);
    victim.unharmed().await;
}

/// Nor is that of one that was broken off, on the connection that took the place of the broken one.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_stag_of_an_aborted_transfer_is_stale() {
    for memory in ["dynamic", "static", "cache"] {
        let victim = Victim::start(&["--memory", memory]);
        let mut hand = Hand::new(&victim).await;
        let (connection, first, _) = hand.upload("/first.bin", LENGTH as u64).await;
        soon(connection.send("no message".into())).await.unwrap();
        let answer = hand.answer().await;
        assert!(answer.contains("rdma: failed, reason=connection-lost\r\n"), "{answer}");
        drop(hand);
        let mut hand = Hand::new(&victim).await;
        let (connection, second, _) = hand.upload("/second.bin", LENGTH as u64).await;
        assert_ne!(first.at.stag, second.at.stag);
        let junk = hand.region(vec![0xee; 4]);
        drop(connection.write(&junk, 0, 4, first.at));
        terminated(&*connection, "1/1/00").await;
        let answer = hand.answer().await;
        assert!(answer.starts_with("http/1.1 500 "), "{memory}: {answer}");
        assert!(!victim.has("first.bin") && !victim.has("second.bin"));
        drop(hand);
        victim.unharmed().await;
    }
}
