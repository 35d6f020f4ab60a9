//! A file that is changed while it is sent, at either end: an error, and never a body that is taken for whole.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use rdma_http::events::Event;

use crate::meddling::CHANGES;
use crate::program::{Httpd, Running, assert_no_leak, command, failures, received};

/// So long that no transfer is over before the test has seen it begin; zeros take no room on the disk.
const LONG: u64 = 512 << 20;

/// How the sender has the file, with CRCs or without: sendfile(2) takes the bytes only where there are none.
const MEMORY: [[&str; 4]; 3] = [
    ["--memory", "sendfile", "--crc", "off"],
    ["--memory", "sendfile", "--crc", "on"],
    ["--memory", "dynamic", "--crc", "on"],
];

fn rdma_fetch(directory: &Path, memory: &[&str]) -> Command {
    let mut fetch = command(env!("CARGO_BIN_EXE_rdma-fetch"));
    fetch
        .args(memory)
        .args(["--fail", "--events", "-", "-o"])
        .arg(directory.join("out"))
        .stderr(Stdio::null());
    fetch
}

fn moved(event: &Event) -> bool {
    matches!(event, Event::Operation { op, .. } if op == "write" || op == "receive")
}

#[test]
fn what_the_server_sends_of_a_changed_file_is_no_body() {
    for (connect, memory) in ["server", "in-place"].iter().flat_map(|c| MEMORY.iter().map(move |m| (c, m))) {
        for (mode, change) in ["server-writes", "client-reads"].iter().flat_map(|m| CHANGES.map(|c| (m, c))) {
            let what = format!("{mode}, connect={connect}, {memory:?}, {change:?}");
            let mut httpd = Httpd::start(memory);
            httpd.sparse_file("body.bin", LONG);
            let directory = tempfile::tempdir().unwrap();
            let mut fetch = rdma_fetch(directory.path(), &memory[2..]);
            fetch.arg(httpd.url("/body.bin")).args(["--mode", mode, "--connect", connect]);
            let fetch = Running::start(fetch);
            httpd.running.wait_for("operation", moved);
            change.make(&httpd.directory.path().join("body.bin"));
            let (status, events) = fetch.end();
            // Asked again, it may have given what the file is then; not by RDMA what it was in part.
            assert_eq!(status.code(), Some(18), "{what}: {events:#?}");
            assert!(!directory.path().join("out").exists(), "{what}");
            assert_eq!(received(&events), [], "{what}");
            assert_no_leak(&events);
            let events = httpd.stop();
            assert_eq!(failures(&events).len(), 1, "{what}: {events:#?}");
            assert_no_leak(&events);
        }
    }
}

#[test]
fn what_the_client_sends_of_a_changed_file_is_no_upload() {
    for (connect, memory) in ["server", "in-place"].iter().flat_map(|c| MEMORY.iter().map(move |m| (c, m))) {
        for (mode, change) in ["client-writes", "server-reads"].iter().flat_map(|m| CHANGES.map(|c| (m, c))) {
            let what = format!("{mode}, connect={connect}, {memory:?}, {change:?}");
            let httpd = Httpd::start(&["--allow-upload", "--crc", memory[3]]);
            let directory = tempfile::tempdir().unwrap();
            let source = directory.path().join("source");
            File::create(&source).unwrap().set_len(LONG).unwrap();
            let mut fetch = rdma_fetch(directory.path(), memory);
            fetch.arg(httpd.url("/new.bin")).args(["--mode", mode, "--connect", connect, "--upload-file"]);
            let mut fetch = Running::start({
                fetch.arg(&source);
                fetch
            });
            // The region that it may write to is told of first.
            let mut before = usize::from(*mode == "client-writes");
            fetch.wait_for("operation", |event| match event {
                Event::Operation { op, .. } if op == "receive" && before > 0 => {
                    before -= 1;
                    false
                }
                event => moved(event),
            });
            change.make(&source);
            let (status, events) = fetch.end();
            assert_eq!(status.code(), Some(26), "{what}: {events:#?}");
            assert_eq!(failures(&events).len(), 1, "{what}: {events:#?}");
            assert_no_leak(&events);
            let (events, root) = httpd.stop_and_keep();
            assert_no_leak(&events);
            assert_eq!(root.path().read_dir().unwrap().count(), 0, "{what}");
        }
    }
}
