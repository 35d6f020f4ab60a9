use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rdma_http::events::{Event, Record};
use rdma_http::fabric::FabricKind;
use rdma_http::header::TransferId;
use rdma_http::message::Message;

use super::*;
use crate::agent::protocol::Exit;
use crate::guest::choice::Clock;
use crate::scenario::body::Content;
use crate::scenario::wire::{
    Conversation, CrcTally, Direction, End, HttpHead, Item, MpaStart, Opening, Run, Times, WireConnection,
};
use crate::scenario::{Fabrics, Place, Side, Timeline, moments};

const START: Duration = Duration::from_secs(1_184_198_400);

/// What differs between two runs of the same scenario.
#[derive(Clone, Copy)]
struct Volatile {
    client_stag: u32,
    server_stag: u32,
    base: u64,
    http_port: u16,
    rdma_port: u16,
    ephemeral: u16,
    date: &'static str,
    id: TransferId,
}

const ONE: Volatile = Volatile {
    client_stag: 642,
    server_stag: 7,
    base: 0,
    http_port: 4000,
    rdma_port: 3242,
    ephemeral: 50_000,
    date: "Wed, 11 Jul 2007 00:00:00 GMT",
    id: TransferId([1; 16]),
};

const OTHER: Volatile = Volatile {
    client_stag: 7,
    server_stag: 99,
    base: 0x7fff_0000_1000,
    http_port: 4001,
    rdma_port: 9,
    ephemeral: 3242,
    date: "Thu, 12 Jul 2007 00:00:00 GMT",
    id: TransferId([0xab; 16]),
};

fn observation(v: Volatile) -> Observation {
    let client = |port| format!("10.0.0.2:{port}").parse().unwrap();
    let server = |port| format!("10.0.0.1:{port}").parse().unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let rdma = format!(
        "server-writes, ip=10.0.0.2, port={}, stag={}, to={}, maxlen=8192, id={}",
        v.rdma_port, v.client_stag, v.base, v.id
    );
    let request_headers = vec![pair("host", &format!("10.0.0.1:{}", v.http_port)), pair("rdma", &rdma)];
    let response_headers = vec![pair("date", v.date), pair("content-length", "0")];
    let request = Event::HttpRequest {
        exchange: 1,
        method: "GET".into(),
        target: "/body.bin".into(),
        headers: request_headers.clone(),
    };
    let response = Event::HttpResponse { exchange: 1, status: 200, headers: response_headers.clone() };
    let region =
        |stag, access: &str| Event::RegionRegistered { stag, length: 8192, access: access.into(), base: 0 };
    let write = |offset: u64| Event::Operation {
        op: "write".into(),
        length: 4096,
        stag: Some(v.client_stag),
        to: Some(v.base + offset),
    };
    let records = |events: Vec<Event>| -> Vec<Record> {
        (1..).zip(events).map(|(at, event)| Record { at_us: at * 1000, event }).collect()
    };
    let client_events = records(vec![
        region(v.client_stag, "remote-write"),
        request.clone(),
        Event::RdmaConnected { local: client(v.rdma_port), peer: server(v.ephemeral), initiator: false },
        Event::Operation { op: "receive".into(), length: 32, stag: None, to: None },
        response.clone(),
        Event::RdmaClosed { local: client(v.rdma_port), peer: server(v.ephemeral) },
        Event::RegionReleased { stag: v.client_stag },
        Event::BodyReceived { via: "rdma".into(), length: 8192 },
    ]);
    let server_events = records(vec![
        request,
        Event::RdmaConnected { local: server(v.ephemeral), peer: client(v.rdma_port), initiator: true },
        region(v.server_stag, "none"),
        write(0),
        write(4096),
        Event::Operation { op: "send".into(), length: 32, stag: None, to: None },
        Event::RegionReleased { stag: v.server_stag },
        response,
        Event::RdmaClosed { local: server(v.ephemeral), peer: client(v.rdma_port) },
    ]);
    let head = |start: &str, headers: &[(String, String)]| {
        Item::Head(HttpHead { start: start.into(), headers: headers.to_vec() })
    };
    let start = |request| {
        Item::MpaStart(MpaStart {
            request,
            revision: 2,
            markers: false,
            crc: true,
            rejected: false,
            depths: Some((16, 16)),
            ready_to_receive: None,
            private_data: if request { Message::Hello { id: v.id }.encode().to_vec() } else { vec![] },
        })
    };
    let crc = CrcTally { good: u64::from(v.ephemeral), bad: 0, unchecked: 0 };
    let at = |us| Some(START + Duration::from_micros(us));
    let wire_times = Times { first: at(50_000), last: at(60_000), end: at(70_000) };
    let direction = |items, crc| Direction { items, crc, end: End::Fin, times: wire_times };
    let run = Run { stag: v.client_stag, to: v.base, length: 8192, messages: 2 };
    let done = Message::Done { id: v.id, bytes: 8192 }.encode().to_vec();
    let send = Item::Send { message: done, invalidates: None, solicited: false };
    let connections = vec![
        WireConnection {
            initiator: client(1234),
            responder: server(v.http_port),
            opening: Opening::Established,
            forth: direction(vec![head("GET /body.bin HTTP/1.1", &request_headers)], CrcTally::default()),
            back: direction(vec![head("HTTP/1.1 200 OK", &response_headers)], CrcTally::default()),
            opened: at(1_000),
        },
        WireConnection {
            initiator: server(v.ephemeral),
            responder: client(v.rdma_port),
            opening: Opening::Established,
            forth: direction(vec![start(true), Item::Writes(run), send], crc),
            back: direction(vec![start(false)], CrcTally::default()),
            opened: at(20_000),
        },
    ];
    let body = Some(Content { length: 8192, sha256: "ab".repeat(32) });
    let address = |ip: &str, host: &str| (ip.parse().unwrap(), host.to_owned());
    Observation {
        scenario: "get-x".into(),
        fabrics: Fabrics::both(FabricKind::Soft),
        place: Place {
            addresses: BTreeMap::from([address("10.0.0.1", "server"), address("10.0.0.2", "client")]),
            work: "/tmp/x".into(),
        },
        client: Side::new("rdma-fetch", Some(Exit::Code(0)), &client_events),
        server: Side::new("rdma-httpd", Some(Exit::Code(0)), &server_events),
        served: body.clone(),
        arrived: body,
        wire: Conversation { connections, unanswered_arp: [].into(), exposed: None },
        timeline: Timeline {
            took: Duration::from_secs(1),
            start: START,
            client: moments(&client_events, 0),
            server: moments(&server_events, 0),
            round_trips: None,
        },
        clock: Clock::Wall,
    }
}

#[test]
fn runs_that_differ_in_what_is_volatile_have_the_same_text() {
    assert_eq!(texts(&observation(ONE)), texts(&observation(OTHER)));
}

#[test]
fn the_text_tells_the_whole_story() {
    let texts = texts(&observation(ONE));
    insta::assert_snapshot!(format!("{}\n====\n{}", texts.common, texts.fabric));
}

#[test]
fn a_virtual_clocks_times_are_told_and_compared_with_a_tolerance() {
    let timed = |later_us: u64| {
        let mut observation = observation(ONE);
        observation.clock = Clock::Virtual;
        observation.timeline.start -= Duration::from_micros(later_us);
        observation
    };
    insta::assert_snapshot!(texts(&timed(0)).times.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    assert_eq!(accept(&store, &timed(0)), [true, true, true]);
    assert!(folder.path().join("snapshots/get-x@soft-times.snap").exists());
    let near = &compare(&store, &timed(TOLERANCE_US))[2];
    assert_eq!(near.outcome, Compared::Same);
    assert_ne!(near.seen(), near.measured());
    let far = &compare(&store, &timed(TOLERANCE_US + 1))[2];
    assert!(matches!(far.outcome, Compared::Differs(_)));
    // Without a virtual clock there are no times to compare.
    assert_eq!(compare(&store, &observation(ONE)).len(), 2);
}

#[test]
fn a_region_that_is_not_the_one_advertised_shows() {
    let mut other = observation(ONE);
    for operation in &mut other.server.operations {
        operation.remote = operation.remote.map(|(stag, to)| (stag + 1, to));
    }
    assert_ne!(texts(&observation(ONE)).common, texts(&other).common);
}

fn compare(store: &Store, observation: &Observation) -> Vec<Comparison> {
    store.compare(observation, Path::new("golden/get-x.toml"), "a GET").unwrap()
}

fn accept(store: &Store, observation: &Observation) -> Vec<bool> {
    compare(store, observation).iter().map(|comparison| comparison.accept().unwrap()).collect()
}

#[test]
fn a_missing_golden_is_not_the_same_and_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let observation = observation(ONE);
    let outcomes: Vec<Compared> = compare(&store, &observation).into_iter().map(|c| c.outcome).collect();
    assert_eq!(outcomes, [Compared::Missing, Compared::Missing]);
    assert_eq!(accept(&store, &observation), [true, true]);
    assert_eq!(accept(&store, &observation), [false, false]);
    assert!(folder.path().join("snapshots/get-x.snap").exists());
    assert!(folder.path().join("snapshots/get-x@soft.snap").exists());
}

#[test]
fn accepting_writes_exactly_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    accept(&store, &observation(ONE));
    let old = SystemTime::UNIX_EPOCH;
    let files = [Golden::Promised, Golden::Wire(Fabrics::both(FabricKind::Soft))];
    let files = files.map(|golden| store.file("get-x", golden));
    for file in &files {
        fs::File::options().write(true).open(file).unwrap().set_modified(old).unwrap();
    }
    let mut changed = observation(ONE);
    changed.wire.connections[1].forth.end = End::Reset;
    assert_eq!(accept(&store, &changed), [false, true]);
    let [common, wire] = files.map(|file| fs::metadata(file).unwrap().modified().unwrap());
    assert_eq!(common, old);
    assert!(wire > old);
}

#[test]
fn any_changed_byte_of_a_golden_is_seen_and_placed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let observation = observation(ONE);
    accept(&store, &observation);
    let file = store.file("get-x", Golden::Promised);
    let good = fs::read(&file).unwrap();
    let head = good.windows(5).rposition(|w| w == b"\n---\n").unwrap() + 5;
    for at in head..good.len() - 1 {
        let mut bad = good.clone();
        bad[at] = if bad[at] == b'%' { b'&' } else { b'%' };
        fs::write(&file, &bad).unwrap();
        let comparison = &compare(&store, &observation)[0];
        assert!(matches!(comparison.outcome, Compared::Differs(_)), "byte {at}");
        let line = good[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        assert_eq!(comparison.first_line(), Some(line), "byte {at}");
    }
}

#[test]
fn what_was_seen_is_left_for_review_and_cleared_when_all_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let observation = observation(ONE);
    let pending = folder.path().join("snapshots/get-x.snap.new");
    compare(&store, &observation).iter().for_each(Comparison::propose);
    assert_eq!(insta::Snapshot::from_file(&pending).unwrap().metadata().source(), Some("golden/get-x.toml"));
    fs::rename(&pending, store.file("get-x", Golden::Promised)).unwrap();
    compare(&store, &observation).iter().for_each(Comparison::propose);
    assert!(!pending.exists());
    assert_eq!(compare(&store, &observation)[0].outcome, Compared::Same, "what review accepts is the golden");
}
