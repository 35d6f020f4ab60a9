//! Two sides of a line, first without I/O, then over sockets.

use std::collections::BTreeMap;

use bytes::{BufMut as _, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::frame::{Frame, GREETING};
use super::{
    Driver, Event, Incoming, LineClosed, MAX_STREAMS, Mux, MuxError, Opener, Role, Service, StreamId, WINDOW,
};

/// A line whose bytes are moved by hand.
struct Line {
    host: Mux,
    guest: Mux,
}

impl Line {
    fn new() -> Self {
        let mut line = Self { host: Mux::new(Role::Host), guest: Mux::new(Role::Guest) };
        line.settle();
        assert_eq!(line.host.poll_event(), Some(Event::Greeted));
        line
    }

    /// Moves at most `bytes`; returns how many there were.
    fn carry(from: &mut Mux, to: &mut Mux, bytes: usize) -> usize {
        let chunk = from.transmit();
        let chunk = chunk[..chunk.len().min(bytes)].to_vec();
        to.receive(&chunk).unwrap();
        from.transmitted(chunk.len());
        chunk.len()
    }

    fn settle(&mut self) {
        while Self::carry(&mut self.host, &mut self.guest, usize::MAX)
            + Self::carry(&mut self.guest, &mut self.host, usize::MAX)
            > 0
        {}
    }
}

fn events(mux: &mut Mux) -> Vec<Event> {
    std::iter::from_fn(|| mux.poll_event()).collect()
}

#[test]
fn the_host_says_nothing_before_the_guest_greets() {
    let mut host = Mux::new(Role::Host);
    let id = host.open(Service(7)).unwrap();
    assert_eq!(host.send(id, b"hello"), 5);
    assert_eq!(host.transmit(), b"");
    host.receive(&GREETING[..3]).unwrap();
    assert_eq!(host.transmit(), b"");
    host.receive(&GREETING[3..]).unwrap();
    let mut guest = Mux::new(Role::Guest);
    guest.receive(host.transmit()).unwrap();
    assert_eq!(events(&mut guest), [Event::Opened(id, Service(7)), Event::Data(id, "hello".into())]);
}

#[test]
fn what_is_no_greeting_is_quoted() {
    let mut host = Mux::new(Role::Host);
    let error = host.receive(b"Kernel panic - not syncing").unwrap_err();
    let expected = "the other side of the line does not speak this protocol: it began with \"Kernel panic - not syncing\"";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_stream_that_nobody_reads_stops_itself_and_no_other() {
    let mut line = Line::new();
    let (stuck, other) = (line.host.open(Service(1)).unwrap(), line.host.open(Service(1)).unwrap());
    let mut sent = 0;
    loop {
        let taken = line.host.send(stuck, &[0; 4096]);
        line.settle();
        sent += taken;
        if taken == 0 {
            break;
        }
    }
    assert_eq!(sent, WINDOW);
    assert_eq!(line.host.send(other, b"x"), 1);
    line.settle();
    assert!(events(&mut line.guest).contains(&Event::Data(other, "x".into())));
    assert!(!events(&mut line.host).contains(&Event::Writable(stuck)));
    line.guest.consumed(stuck, WINDOW);
    line.settle();
    assert!(events(&mut line.host).contains(&Event::Writable(stuck)));
    assert!(line.host.capacity(stuck) > 0);
}

#[test]
fn no_more_is_under_way_than_the_line_bears() {
    const BEARS: usize = 2048;
    let mut line = Line { host: Mux::bearing(Role::Host, BEARS), guest: Mux::new(Role::Guest) };
    line.settle();
    let id = line.host.open(Service(1)).unwrap();
    assert_eq!(line.host.send(id, &[7; 10_000]), 10_000);
    let (mut rounds, mut arrived) = (0, 0);
    while arrived < 10_000 {
        let bytes = Line::carry(&mut line.host, &mut line.guest, usize::MAX);
        assert!((1..=BEARS).contains(&bytes), "{bytes} bytes at once");
        assert_eq!(line.host.transmit(), b"", "none of it was taken yet");
        Line::carry(&mut line.guest, &mut line.host, usize::MAX);
        rounds += 1;
        arrived += events(&mut line.guest)
            .iter()
            .map(|event| if let Event::Data(_, data) = event { data.len() } else { 0 })
            .sum::<usize>();
    }
    assert!(rounds >= 10_000 / BEARS, "{rounds}");
}

#[test]
fn a_full_line_is_shared_in_turn() {
    let mut line = Line::new();
    let ids: Vec<StreamId> = (0..8).map(|_| line.host.open(Service(1)).unwrap()).collect();
    for id in ids.iter().cycle().take(64) {
        line.host.send(*id, &[0; 16 << 10]);
    }
    let blocked: Vec<StreamId> = ids.iter().copied().filter(|id| line.host.capacity(*id) == 0).collect();
    assert_eq!(blocked, ids);
    line.settle();
    // Four frames fill it, so the fifth stream was the first to wait.
    let turns = [4, 5, 6, 7, 0, 1, 2, 3].map(|index| Event::Writable(ids[index]));
    assert_eq!(events(&mut line.host), turns);
}

#[test]
fn a_stream_is_over_when_both_have_finished() {
    let mut line = Line::new();
    let id = line.host.open(Service(1)).unwrap();
    line.host.finish(id);
    line.settle();
    assert_eq!(events(&mut line.guest), [Event::Opened(id, Service(1)), Event::Finished(id)]);
    assert_eq!(line.guest.send(id, b"late"), 4);
    line.guest.finish(id);
    assert_eq!(line.guest.send(id, b"x"), 0);
    line.settle();
    assert_eq!(events(&mut line.host), [Event::Data(id, "late".into()), Event::Finished(id)]);
    assert_eq!((line.host.streams(), line.guest.streams()), (0, 0));
}

#[test]
fn what_was_under_way_to_a_stream_that_was_given_up_is_dropped() {
    let mut line = Line::new();
    let id = line.host.open(Service(1)).unwrap();
    line.settle();
    line.host.send(id, b"under way");
    line.guest.reset(id);
    line.settle();
    assert_eq!(events(&mut line.guest), [Event::Opened(id, Service(1))]);
    assert_eq!(events(&mut line.host), [Event::Reset(id)]);
    line.host.consumed(id, 1 << 20);
    line.host.finish(id);
    assert_eq!(line.host.transmit(), b"");
}

#[test]
fn a_peer_that_breaks_the_rules_is_refused() {
    let refused = |role: Role, frames: &[Frame]| {
        let mut mux = Mux::new(role);
        let mut wire = BytesMut::new();
        if role == Role::Host {
            mux.open(Service(1)).unwrap();
            wire.put_slice(&GREETING);
        }
        frames.iter().for_each(|frame| frame.encode(&mut wire));
        mux.receive(&wire).unwrap_err()
    };
    let (one, two) = (StreamId(1), StreamId(2));
    let data = |bytes: usize| Frame::Data(one, vec![0; bytes].into());
    let too_much: Vec<Frame> = (0..5).map(|_| data(16 << 10)).collect();
    assert_eq!(refused(Role::Host, &too_much), MuxError::NoCredit(one));
    assert_eq!(refused(Role::Host, &[Frame::Credit(one, 1)]), MuxError::BadCredit(one, 1));
    assert_eq!(refused(Role::Host, &[Frame::Finish(one), data(1)]), MuxError::AfterFinish(one));
    assert_eq!(refused(Role::Host, &[Frame::Finish(one), Frame::Finish(one)]), MuxError::AfterFinish(one));
    assert_eq!(refused(Role::Host, &[Frame::Open(two, Service(1))]), MuxError::BadOpen(two));
    assert_eq!(refused(Role::Guest, &[Frame::Open(two, Service(1))]), MuxError::BadOpen(two));
    // The frame that opened the stream, which nobody has put on the line yet, has 8 bytes.
    assert_eq!(refused(Role::Host, &[Frame::Taken(9)]), MuxError::BadTaken(9));
    assert_eq!(refused(Role::Guest, &[Frame::Taken(1)]), MuxError::BadTaken(1));
    let many: Vec<Frame> = (1..200_000).map(|n| Frame::Open(StreamId(n), Service(1))).collect();
    assert_eq!(refused(Role::Guest, &many), MuxError::Flooded);
}

#[test]
fn there_is_an_end_to_streams() {
    let mut host = Mux::new(Role::Host);
    for _ in 0..MAX_STREAMS {
        host.open(Service(1)).unwrap();
    }
    assert_eq!(host.open(Service(1)), Err(MuxError::TooManyStreams));
    host.reset(StreamId(5));
    assert!(host.open(Service(1)).is_ok());
    assert!(matches!(Mux::new(Role::Guest).open(Service(1)), Err(MuxError::BadOpen(_))));
}

/// What the two programs at the ends do.
#[derive(Clone, Debug)]
enum Act {
    Open,
    Send { host: bool, stream: usize, bytes: usize },
    Consume { host: bool, stream: usize },
    Finish { host: bool, stream: usize },
    Reset { host: bool, stream: usize },
    Carry { to_guest: bool, bytes: usize },
}

fn act() -> impl Strategy<Value = Act> {
    let (host, stream) = (any::<bool>(), 0..4usize);
    prop_oneof![
        Just(Act::Open),
        (host, stream.clone(), 1..40_000usize).prop_map(|(host, stream, bytes)| Act::Send {
            host,
            stream,
            bytes
        }),
        (any::<bool>(), stream.clone()).prop_map(|(host, stream)| Act::Consume { host, stream }),
        (any::<bool>(), stream.clone()).prop_map(|(host, stream)| Act::Finish { host, stream }),
        (any::<bool>(), stream).prop_map(|(host, stream)| Act::Reset { host, stream }),
        (any::<bool>(), 1..50_000usize).prop_map(|(to_guest, bytes)| Act::Carry { to_guest, bytes }),
    ]
}

/// One end's view of its streams: what it has sent and what has come, as running sums of bytes that count up.
#[derive(Default)]
struct End {
    sent: BTreeMap<StreamId, u64>,
    received: BTreeMap<StreamId, u64>,
    unconsumed: BTreeMap<StreamId, usize>,
}

impl End {
    fn pattern(at: u64) -> u8 {
        (at % 251) as u8
    }

    fn collect(&mut self, mux: &mut Mux) -> Result<(), TestCaseError> {
        while let Some(event) = mux.poll_event() {
            if let Event::Data(id, data) = event {
                let at = self.received.entry(id).or_default();
                for byte in &data {
                    prop_assert_eq!(*byte, Self::pattern(*at), "{} at {}", id, at);
                    *at += 1;
                }
                let waiting = self.unconsumed.entry(id).or_default();
                *waiting += data.len();
                prop_assert!(*waiting <= WINDOW, "{} bytes wait in {}", waiting, id);
            }
        }
        Ok(())
    }
}

proptest! {
    /// Whatever well-behaved programs do at both ends, neither side sees a broken rule, every stream's bytes come in
    /// order, and no more than a window of them waits.
    #[test]
    fn two_sides_understand_each_other(acts in prop::collection::vec(act(), 0..200)) {
        let mut line = Line::new();
        let (mut host, mut guest) = (End::default(), End::default());
        let mut ids = Vec::new();
        for act in acts {
            match act {
                Act::Open => ids.extend(line.host.open(Service(1))),
                Act::Carry { to_guest: true, bytes } => { Line::carry(&mut line.host, &mut line.guest, bytes); }
                Act::Carry { to_guest: false, bytes } => { Line::carry(&mut line.guest, &mut line.host, bytes); }
                Act::Send { host: by_host, stream, bytes } => {
                    let (mux, end) = if by_host { (&mut line.host, &mut host) } else { (&mut line.guest, &mut guest) };
                    let Some(id) = ids.iter().rev().nth(stream).copied() else { continue };
                    let at = end.sent.entry(id).or_default();
                    let data: Vec<u8> = (*at..).take(bytes).map(End::pattern).collect();
                    *at += mux.send(id, &data) as u64;
                }
                Act::Consume { host: by_host, stream } => {
                    let (mux, end) = if by_host { (&mut line.host, &mut host) } else { (&mut line.guest, &mut guest) };
                    let Some(id) = ids.iter().rev().nth(stream).copied() else { continue };
                    mux.consumed(id, std::mem::take(end.unconsumed.entry(id).or_default()));
                }
                Act::Finish { host: by_host, stream } => {
                    let mux = if by_host { &mut line.host } else { &mut line.guest };
                    if let Some(id) = ids.iter().rev().nth(stream) { mux.finish(*id) }
                }
                Act::Reset { host: by_host, stream } => {
                    let mux = if by_host { &mut line.host } else { &mut line.guest };
                    if let Some(id) = ids.iter().rev().nth(stream) { mux.reset(*id) }
                }
            }
            host.collect(&mut line.host)?;
            guest.collect(&mut line.guest)?;
        }
        line.settle();
        guest.collect(&mut line.guest)?;
        for (id, received) in &guest.received {
            prop_assert!(*received <= host.sent[id]);
        }
    }

    #[test]
    fn arbitrary_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut host = Mux::new(Role::Host);
        host.open(Service(1)).unwrap();
        let mut wire = GREETING.to_vec();
        wire.extend_from_slice(&bytes);
        let _ = host.receive(&wire);
        let _ = Mux::new(Role::Guest).receive(&bytes);
    }
}

/// Two drivers on a socket pair.
fn pair() -> ((Driver, Opener), (Driver, Incoming)) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (from, to) = ours.into_split();
    let (host, opener, _) = Driver::start(Mux::new(Role::Host), from, to);
    let (from, to) = theirs.into_split();
    let (guest, _, incoming) = Driver::start(Mux::new(Role::Guest), from, to);
    ((host, opener), (guest, incoming))
}

#[tokio::test]
async fn sockets_are_carried_both_ways_to_their_ends() {
    let ((host, opener), (_guest, mut incoming)) = pair();
    host.greeted().await.unwrap();
    let echo = async {
        for _ in 0..4 {
            let accepted = incoming.next().await.unwrap();
            let (mut near, far) = UnixStream::pair().unwrap();
            assert_eq!(accepted.service(), Service(9));
            accepted.carry(far);
            tokio::spawn(async move {
                let (mut from, mut to) = near.split();
                tokio::io::copy(&mut from, &mut to).await.unwrap();
            });
        }
    };
    let talk = async |seed: u8| {
        let mut stream = opener.open(Service(9)).unwrap();
        // Several windows, so that credit is granted many times over.
        let data: Vec<u8> = (0..10 * WINDOW).map(|n| (n % 253) as u8 ^ seed).collect();
        let (mut from, mut to) = stream.split();
        let send = async {
            to.write_all(&data).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let (_, read) = tokio::join!(send, from.read_to_end(&mut back));
        read.unwrap();
        assert!(back == data, "{} bytes of {}", back.len(), data.len());
    };
    tokio::join!(echo, talk(1), talk(2), talk(3), talk(4));
    assert_eq!(host.shared_streams(), 0);
}

#[tokio::test]
async fn a_stream_that_is_refused_or_left_ends_at_the_other_side() {
    let ((_host, opener), (_guest, mut incoming)) = pair();
    let mut refused = opener.open(Service(1)).unwrap();
    drop(incoming.next().await.unwrap());
    assert_eq!(refused.read(&mut [0]).await.unwrap(), 0);

    let left = opener.open(Service(1)).unwrap();
    let accepted = incoming.next().await.unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    accepted.carry(far);
    drop(left);
    assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn what_was_said_before_an_end_was_closed_arrives_though_more_is_said_to_it() {
    let ((_host, opener), (_guest, mut incoming)) = pair();
    let mut stream = opener.open(Service(1)).unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    // More than can be sent before the other side has taken some of it.
    let answer = vec![7; 2 * WINDOW];
    near.write_all(&answer).await.unwrap();
    drop(near);
    stream.write_all(b"more").await.unwrap();
    incoming.next().await.unwrap().carry(far);
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert!(said == answer, "{} bytes of {}", said.len(), answer.len());
}

#[tokio::test]
async fn the_end_of_the_line_is_the_end_of_its_streams() {
    let ((host, opener), (guest, mut incoming)) = pair();
    host.greeted().await.unwrap();
    let mut stream = opener.open(Service(1)).unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    incoming.next().await.unwrap().carry(far);
    drop(guest);
    assert!(incoming.next().await.is_none());
    assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    assert!(matches!(host.closed().await, LineClosed::End));
    assert!(opener.open(Service(1)).is_err());
}

#[tokio::test]
async fn a_line_is_flushed_once_every_stream_has_ended_from_here() {
    let ((_host, opener), (guest, mut incoming)) = pair();
    let mut stream = opener.open(Service(1)).unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    incoming.next().await.unwrap().carry(far);
    near.write_all(b"the last words").await.unwrap();
    drop(near);
    guest.flushed().await;
    drop(guest);
    let mut words = String::new();
    // The other side has not ended its way, so what comes after the words is the end of the line.
    let _ = stream.read_to_string(&mut words).await;
    assert_eq!(words, "the last words");
}

#[tokio::test]
async fn a_line_that_speaks_something_else_says_so() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (from, to) = ours.into_split();
    let (host, _opener, _incoming) = Driver::start(Mux::new(Role::Host), from, to);
    theirs.write_all(b"login: ").await.unwrap();
    let error = host.greeted().await.unwrap_err();
    assert!(error.to_string().contains("\"login: \""), "{error}");
}
