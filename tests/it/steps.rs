//! A peer that dies at each step of each flow: the other side ends in bounded time with a clear error, what was uploaded is
//! there whole or not at all, what was downloaded is not taken for whole, and no region or connection remains.
//!
//! The steps are the events that the victim tells, all of them: it stands still at each ([`Stepping`]), is killed at the
//! first in the first run, at the second in the second, until a run ends before there is another.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdma_http::events::Event;

use crate::program::{Httpd, assert_no_leak, command, failures, fetch, pattern, read_events, received};
use crate::stepping::Stepping;

/// Bodies of one Write, or Read, and of several rounds of a region of `--maxlen`.
const SHORT: usize = 50_000;
const LONG: usize = 300_000;

const WAYS: [&str; 3] = ["server", "client", "in-place"];

/// Limits under which the long body takes several operations, and nothing is ever given up because of its time.
const SERVER: [&str; 11] = [
    "--allow-upload",
    "--rdma-listen",
    "127.0.0.1:0",
    "--chunk-size",
    "64K",
    "--window",
    "2",
    "--shutdown-timeout",
    "3600",
    "--stall-timeout",
    "3600",
];

/// Two exchanges on one connection.
struct Flow {
    args: Vec<&'static str>,
    uploads: bool,
    /// The bodies that come, or are sent.
    bodies: [Vec<u8>; 2],
}

impl Flow {
    fn new(mode: &'static str, connect: &'static str) -> Self {
        let args = vec!["--mode", mode, "--connect", connect, "--maxlen", "128K"];
        let uploads = matches!(mode, "client-writes" | "server-reads");
        let bodies = if uploads { [LONG, LONG] } else { [SHORT, LONG] };
        Self { args, uploads, bodies: bodies.map(pattern) }
    }

    /// Downloads of all but the first bytes.
    fn ranges(mode: &'static str, connect: &'static str) -> Self {
        let mut flow = Self::new(mode, connect);
        flow.args.extend(["--range", "1000-"]);
        flow.bodies = flow.bodies.map(|body| body[1000..].to_vec());
        flow
    }

    /// Heads, which have no bodies.
    fn heads() -> Self {
        let mut flow = Self::new("server-writes", "server");
        flow.args.push("--head");
        flow.bodies = [Vec::new(), Vec::new()];
        flow
    }

    fn what(&self) -> String {
        self.args.join(" ")
    }

    /// What the server has before.
    fn lay_out(root: &Path) {
        for (name, length) in [("short", SHORT), ("long", LONG)] {
            std::fs::write(root.join(name), pattern(length)).unwrap();
        }
    }

    /// What is asked for, or is to come to be.
    fn names(&self, step: usize) -> [String; 2] {
        match self.uploads {
            true => [1, 2].map(|number| format!("new-{step}-{number}")),
            false => ["short", "long"].map(str::to_owned),
        }
    }

    /// rdma-fetch of both, which leaves what it gets in `directory`.
    fn fetch(&self, server: SocketAddr, step: usize, directory: &Path) -> Command {
        let mut fetch = command(env!("CARGO_BIN_EXE_rdma-fetch"));
        fetch.args(self.names(step).map(|name| format!("http://{server}/{name}")));
        fetch.args(&self.args).args(["--fail", "--quiet", "--timeout", "30"]);
        for name in ["one", "two"] {
            fetch.arg("-o").arg(directory.join(name));
        }
        if self.uploads {
            let source = directory.join("source");
            std::fs::write(&source, &self.bodies[0]).unwrap();
            fetch.arg("--upload-file").arg(source);
        }
        fetch
    }

    /// How many bodies lie where they belong; each of them whole.
    fn arrived(&self, step: usize, root: &Path, directory: &Path, what: &str) -> usize {
        let places = match self.uploads {
            true => self.names(step).map(|name| root.join(name)),
            false => ["one", "two"].map(|name| directory.join(name)),
        };
        let mut whole = 0;
        for (place, body) in places.iter().zip(&self.bodies) {
            if let Ok(there) = std::fs::read(place) {
                assert!(there == *body, "{what}: {} is not whole", place.display());
                whole += 1;
            }
        }
        whole
    }

    fn client_dies(&self) {
        let httpd = Httpd::start(&SERVER);
        let root = httpd.directory.path();
        Self::lay_out(root);
        let mut steps = 0;
        loop {
            let what = format!("{}, the client dies at step {steps}", self.what());
            let directory = tempfile::tempdir().unwrap();
            let mut command = self.fetch(httpd.address, steps, directory.path());
            command.args(["--events", "-"]).stderr(Stdio::null());
            let mut fetch = Stepping::start(command);
            if !fetch.stands_at(steps) {
                let status = fetch.end();
                assert!(status.success(), "{what}: {status}");
                assert_eq!(self.arrived(steps, root, directory.path(), &what), 2, "{what}");
                break;
            }
            fetch.signal(Signal::SIGKILL);
            fetch.end();
            let arrived = self.arrived(steps, root, directory.path(), &what);
            assert!(arrived == 0 || steps >= 2, "{what}: it has come before it was asked for");
            steps += 1;
        }
        assert!(steps >= 4, "{}: {steps} steps", self.what());
        // It serves on, and stops when it is asked to: nothing that the dead ones left is waited for.
        let next = fetch(&httpd.url("/long"), &["--require-rdma"]);
        assert_eq!(next.code, Some(0), "{}: {}", self.what(), next.stderr);
        let (events, root) = httpd.stop_and_keep();
        assert_no_leak(&events);
        let what = format!("{}, after {steps} clients died", self.what());
        let whole: usize = (0..=steps).map(|step| self.arrived(step, root.path(), root.path(), &what)).sum();
        let there = root.path().read_dir().unwrap().count();
        assert_eq!(there, if self.uploads { whole + 2 } else { 2 }, "{what}: something is left");
    }

    fn server_dies(&self) {
        let mut failed = 0;
        for step in 0.. {
            let what = format!("{}, the server dies at step {step}", self.what());
            let (root, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            Self::lay_out(root.path());
            let mut httpd = command(env!("CARGO_BIN_EXE_rdma-httpd"));
            httpd.arg("--root").arg(root.path()).args(["--listen", "127.0.0.1:0", "--events", "-"]);
            httpd.args(SERVER).stderr(Stdio::null());
            let mut httpd = Stepping::start(httpd);
            let Some(Event::Listening { address }) = httpd.go_on() else {
                panic!("{what}: it does not listen")
            };
            let events = directory.path().join("events");
            let mut fetch = self.fetch(address, step, directory.path());
            fetch.arg("--events").arg(&events).stdout(Stdio::null()).stderr(Stdio::piped());
            let fetch = fetch.spawn().unwrap();
            let server = Pid::from_raw(httpd.id());
            // Once nobody asks any more it has no other steps.
            let client = std::thread::spawn(move || {
                let output = fetch.wait_with_output().unwrap();
                kill(server, Signal::SIGTERM).unwrap();
                output
            });
            let stands = httpd.stands_at(step);
            httpd.signal(Signal::SIGKILL);
            let Output { status, stderr, .. } = client.join().unwrap();
            httpd.end();
            let stderr = String::from_utf8(stderr).unwrap();
            let events = read_events(&events);
            let arrived = self.arrived(step, root.path(), directory.path(), &what);
            assert_no_leak(&events);
            if status.success() {
                assert_eq!((arrived, failures(&events)), (2, vec![]), "{what}");
            } else {
                assert!(!matches!(status.code(), None | Some(1 | 101)), "{what}: {status} {stderr}");
                assert!(stderr.lines().any(|line| line.starts_with("rdma-fetch: ")), "{what}: {stderr}");
                assert!(!failures(&events).is_empty(), "{what}: {events:#?}");
                assert!(received(&events).len() < 2, "{what}: {events:#?}");
                failed += 1;
            }
            if !stands {
                assert!(status.success(), "{what}: {stderr}");
                assert!(step >= 4 && failed >= 2, "{what}: {failed} failed");
                return;
            }
        }
    }
}

/// Every way of connecting; a download also of a part.
fn flows(mode: &'static str) -> Vec<Flow> {
    let whole = WAYS.map(|connect| Flow::new(mode, connect));
    let parts = WAYS.map(|connect| Flow::ranges(mode, connect));
    whole.into_iter().chain(parts.into_iter().filter(|flow| !flow.uploads)).collect()
}

#[test]
fn a_client_dies_in_server_writes() {
    flows("server-writes").iter().for_each(Flow::client_dies);
}

#[test]
fn a_client_dies_in_client_reads() {
    flows("client-reads").iter().for_each(Flow::client_dies);
}

#[test]
fn a_client_dies_in_client_writes() {
    flows("client-writes").iter().for_each(Flow::client_dies);
}

#[test]
fn a_client_dies_in_server_reads() {
    flows("server-reads").iter().for_each(Flow::client_dies);
}

#[test]
fn a_server_dies_in_server_writes() {
    flows("server-writes").iter().for_each(Flow::server_dies);
}

#[test]
fn a_server_dies_in_client_reads() {
    flows("client-reads").iter().for_each(Flow::server_dies);
}

#[test]
fn a_server_dies_in_client_writes() {
    flows("client-writes").iter().for_each(Flow::server_dies);
}

#[test]
fn a_server_dies_in_server_reads() {
    flows("server-reads").iter().for_each(Flow::server_dies);
}

#[test]
fn either_dies_between_heads() {
    Flow::heads().client_dies();
    Flow::heads().server_dies();
}
