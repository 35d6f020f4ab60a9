//! A file that goes as it lies in the page cache, and is changed meanwhile: an error, never another body, and never the end
//! of the program.

use std::fs::{self, File};
use std::io::Write as _;
use std::sync::Arc;

use rdma_http::channel::Channel;
use rdma_http::events::Recorder;
use rdma_http::fabric::{Access, ConnectOptions, FabricError, FabricKind};
use rdma_http::flow::{
    Feed, FilePart, FlowError, Limits, Link, RECEIVE_DEPTH, RECEIVE_SIZE, Target, expose, write,
};
use rdma_http::header::TransferId;
use rdma_http::memory::{Buffers, Strategy};
use rdma_http::message::Message;
use rdma_http::server::ResponseBody;

use crate::meddling::{CHANGES, Change};
use crate::support::{End, PATIENCE, assert_broken, at, fabric, kind, pair, pair_of, pattern, soon};

/// Bytes of an operation, of which two are in flight, and of the file.
const CHUNK: usize = 64 << 10;
const LENGTH: usize = 8 * CHUNK;

const LIMITS: Limits = Limits { chunk: CHUNK, window: 2, stall: PATIENCE, rate: 0 };
const ID: TransferId = TransferId([7; 16]);

/// A file, who has it, and who takes it.
struct Scene {
    directory: tempfile::TempDir,
    owner: Link,
    feed: Feed<ResponseBody>,
    taker: End,
}

impl Scene {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, pattern(LENGTH)).unwrap();
        let file = File::open(&path).unwrap();
        let metadata = file.metadata().unwrap();
        let part = FilePart::new(file, &metadata, 0, LENGTH as u64).unwrap();
        let options = || ConnectOptions {
            receive_depth: RECEIVE_DEPTH,
            receive_size: RECEIVE_SIZE,
            ..ConnectOptions::default()
        };
        let (owner, taker) = pair_of(&*fabric(), options(), options()).await;
        let quiet = Recorder::default();
        let buffers = Buffers::new(&owner.pd, Strategy::Sendfile, (CHUNK, LIMITS.window), None, &quiet);
        let owner = Link { channel: Channel::established(owner.connection, true, &quiet), buffers };
        Self { directory, owner, feed: Feed::file(part), taker }
    }
}

async fn told(taker: &End) -> Message {
    Message::decode(&soon(taker.connection.receive()).await.unwrap().message).unwrap()
}

async fn credit(taker: &End, bytes: u64) {
    soon(taker.connection.send(Message::Credit { id: ID, bytes }.encode())).await.unwrap();
}

fn assert_changed(change: Change, ended: Result<(), FlowError>) {
    match ended {
        Err(FlowError::Body(error)) => {
            assert!(error.to_string().contains("changed meanwhile"), "{change:?}: {error}");
        }
        other => panic!("{change:?}: {other:?}"),
    }
}

#[tokio::test]
async fn writes_of_a_file_that_changes_end_in_an_error() {
    for change in CHANGES {
        let mut scene = Scene::new().await;
        let room = 2 * CHUNK;
        let sink = scene.taker.region(vec![0; room], Access::REMOTE_WRITE);
        let target = Target { id: ID, at: at(&sink, 0), room: room as u64 };
        let Scene { directory, owner, feed, taker } = &mut scene;
        let writing = async { write(owner, LIMITS, target, feed, &mut 0).await };
        let taking = async {
            // All that there is room for; then it waits.
            loop {
                let Message::Progress { bytes, .. } = told(taker).await else { panic!("no progress") };
                if bytes == room as u64 {
                    break;
                }
            }
            change.make(&directory.path().join("file"));
            credit(taker, room as u64).await;
        };
        let (ended, ()) = soon(async { tokio::join!(writing, taking) }).await;
        assert_changed(change, ended);
        // Nobody is told that it is done; only of what was on its way before.
        drop(scene.owner);
        while let Ok(received) = soon(scene.taker.connection.receive()).await {
            let message = Message::decode(&received.message);
            assert!(matches!(message, Ok(Message::Progress { .. })), "{change:?}: {message:?}");
        }
    }
}

#[tokio::test]
async fn reads_of_a_file_that_changes_end_in_an_error() {
    for change in CHANGES {
        // After the first region, and before it is told that the last has been read.
        for changed_after in [1, LENGTH / CHUNK] {
            let mut scene = Scene::new().await;
            let body = pattern(LENGTH);
            let Scene { directory, owner, feed, taker } = &mut scene;
            let showing = async { expose(owner, LIMITS, ID, None, feed, &mut 0).await };
            let taking = async {
                let sink = taker.region(vec![0; CHUNK], Access::LOCAL_WRITE);
                for (number, piece) in (1..=changed_after).zip(body.chunks(CHUNK)) {
                    let Message::Region { at, bytes, .. } = told(taker).await else { panic!("no region") };
                    assert_eq!(bytes, CHUNK as u64);
                    soon(taker.connection.read(&sink, 0, CHUNK, at)).await.unwrap();
                    let mut read = vec![0; CHUNK];
                    sink.copy_out(0, &mut read).unwrap();
                    assert!(read == piece, "{change:?}: piece {number}");
                    if number == changed_after {
                        change.make(&directory.path().join("file"));
                    }
                    credit(taker, (number * CHUNK) as u64).await;
                }
            };
            let (ended, ()) = soon(async { tokio::join!(showing, taking) }).await;
            assert_changed(change, ended);
        }
    }
}

#[tokio::test]
async fn a_file_that_is_cut_under_its_region_ends_no_program() {
    let (a, b) = pair().await;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern(LENGTH)).unwrap();
    let file = Arc::new(file);
    let source = a.pd.register_file(file.clone(), 0, LENGTH as u64).unwrap();
    let sink = b.region(vec![0; LENGTH], Access::REMOTE_WRITE);
    file.set_len(CHUNK as u64).unwrap();
    let written = soon(a.connection.write(&source, 0, LENGTH, at(&sink, 0))).await;
    if kind() == FabricKind::Soft {
        // What is to be sent is not there any more.
        let why = soon(a.connection.closed()).await;
        assert!(matches!(why, FabricError::Invalid(_)), "{why}");
        assert_broken(&soon(b.connection.closed()).await);
    } else {
        // The device has the pages; it is for their owner to see that the file has no such bytes now, as it does above.
        written.unwrap();
    }
    drop((a, b));
    let memory = sink.deregister().unwrap();
    assert!(memory.iter().zip(pattern(LENGTH)).all(|(byte, before)| *byte == before || *byte == 0));
}
