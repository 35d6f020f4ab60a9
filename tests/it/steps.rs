//! A peer that dies at each step of each flow: the other side ends in bounded time with a clear error, what was uploaded is
//! not there, what was downloaded is not taken for whole, and no region or connection remains.

use std::path::Path;

use nix::sys::signal::Signal;
use rdma_http::events::Event;

use crate::program::{Httpd, Running, assert_no_leak, command, failures, received};

/// So long that no transfer is over before the test has seen it begin; zeros take no room on the disk.
const LONG: u64 = 2 << 30;

/// A step, as the victim's own events tell of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// It has sent, or got, the request.
    Requested,
    /// It has registered memory.
    Registered,
    /// It has the RDMA connection.
    Connected,
    /// It has done, or got, so many operations.
    Operations(usize),
}

const STEPS: [Step; 6] = [
    Step::Requested,
    Step::Registered,
    Step::Connected,
    Step::Operations(1),
    Step::Operations(2),
    Step::Operations(20),
];

impl Step {
    fn wait(self, victim: &mut Running) {
        let mut operations = 0;
        victim.wait_for(&format!("{self:?}"), |event| match (self, event) {
            (Self::Requested, Event::HttpRequest { .. })
            | (Self::Registered, Event::RegionRegistered { .. })
            | (Self::Connected, Event::RdmaConnected { .. }) => true,
            (Self::Operations(wanted), Event::Operation { .. }) => {
                operations += 1;
                operations == wanted
            }
            _ => false,
        });
    }
}

/// A flow under way.
struct Under {
    httpd: Httpd,
    fetch: Running,
    directory: tempfile::TempDir,
}

fn begin(mode: &str, connect: &str) -> Under {
    let httpd = Httpd::start(&[
        "--allow-upload",
        "--rdma-listen",
        "127.0.0.1:0",
        "--chunk-size",
        "256K",
        "--window",
        "4",
    ]);
    let directory = tempfile::tempdir().unwrap();
    let mut fetch = command(env!("CARGO_BIN_EXE_rdma-fetch"));
    if matches!(mode, "client-writes" | "server-reads") {
        let source = directory.path().join("source");
        std::fs::File::create(&source).unwrap().set_len(LONG).unwrap();
        fetch.arg(httpd.url("/new.bin")).arg("--upload-file").arg(source);
    } else {
        httpd.sparse_file("long.bin", LONG);
        fetch.arg(httpd.url("/long.bin"));
    }
    fetch.args(["--mode", mode, "--connect", connect, "--maxlen", "4MiB", "--events", "-", "--fail", "-o"]);
    fetch.arg(directory.path().join("out"));
    fetch.stderr(std::fs::File::create(directory.path().join("err")).unwrap());
    Under { httpd, fetch: Running::start(fetch), directory }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = directory.read_dir().unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn a_client_dies(mode: &str) {
    for connect in ["server", "client", "in-place"] {
        for step in STEPS {
            let what = format!("{mode}, connect={connect}, client dies at {step:?}");
            let Under { httpd, mut fetch, directory: _directory } = begin(mode, connect);
            step.wait(&mut fetch);
            fetch.signal(Signal::SIGKILL);
            drop(fetch);
            // It serves on, and stops when it is asked to: nothing that the dead one left is waited for.
            let body = httpd.file("next.bin", 4096);
            let next = crate::program::fetch(&httpd.url("/next.bin"), &["--require-rdma"]);
            assert_eq!((next.code, next.body), (Some(0), Some(body)), "{what}: {}", next.stderr);
            let root = httpd.directory.path().to_owned();
            let served = httpd.directory.path().join("long.bin").exists();
            let (events, _root) = httpd.stop_and_keep();
            assert_no_leak(&events);
            let expected: &[&str] = if served { &["long.bin", "next.bin"] } else { &["next.bin"] };
            assert_eq!(names(&root), expected, "{what}");
        }
    }
}

fn a_server_dies(mode: &str) {
    for connect in ["server", "client", "in-place"] {
        for step in STEPS {
            let what = format!("{mode}, connect={connect}, server dies at {step:?}");
            let Under { mut httpd, fetch, directory } = begin(mode, connect);
            step.wait(&mut httpd.running);
            httpd.running.signal(Signal::SIGKILL);
            let (status, events) = fetch.end();
            let stderr = std::fs::read_to_string(directory.path().join("err")).unwrap();
            assert!(!matches!(status.code(), None | Some(0 | 1 | 101)), "{what}: {status} {stderr}");
            assert!(stderr.lines().any(|line| line.starts_with("rdma-fetch: ")), "{what}: {stderr}");
            assert_eq!(failures(&events).len(), 1, "{what}: {events:#?}");
            assert_eq!(received(&events), [], "{what}");
            assert!(!directory.path().join("out").exists(), "{what}");
            assert_no_leak(&events);
            // A server that is killed may leave a file that was not whole, but never under the name that was asked for.
            assert!(!names(httpd.directory.path()).contains(&"new.bin".to_owned()), "{what}");
        }
    }
}

#[test]
fn a_client_dies_in_server_writes() {
    a_client_dies("server-writes");
}

#[test]
fn a_client_dies_in_client_reads() {
    a_client_dies("client-reads");
}

#[test]
fn a_client_dies_in_client_writes() {
    a_client_dies("client-writes");
}

#[test]
fn a_client_dies_in_server_reads() {
    a_client_dies("server-reads");
}

#[test]
fn a_server_dies_in_server_writes() {
    a_server_dies("server-writes");
}

#[test]
fn a_server_dies_in_client_reads() {
    a_server_dies("client-reads");
}

#[test]
fn a_server_dies_in_client_writes() {
    a_server_dies("client-writes");
}

#[test]
fn a_server_dies_in_server_reads() {
    a_server_dies("server-reads");
}
