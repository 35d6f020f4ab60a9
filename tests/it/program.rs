//! Runs the programs: starts, waits for events, kills what is left at the end of a test.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rdma_http::events::{Event, Record};
use sha2::{Digest, Sha256};

/// Generous: only a test that fails waits for so long.
const LIMIT: Duration = Duration::from_secs(60);

/// A command that is not affected by the caller's settings.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("RDMA_") || text == "RUST_LOG" || text.to_ascii_lowercase().ends_with("_proxy") {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A program that tells events on its standard output.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<Event>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        Self::telling(child, stdout)
    }

    /// A program that tells its events on `stream`.
    pub(crate) fn telling(child: Child, stream: impl Read + Send + 'static) -> Self {
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                if send.send(line.unwrap()).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for an event that `wanted` accepts; those before it stay in [`Self::events`].
    pub(crate) fn wait_for(&mut self, what: &str, mut wanted: impl FnMut(&Event) -> bool) -> Event {
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Err(error) => panic!("no {what} ({error}); seen: {:#?}", self.seen),
                Ok(line) => {
                    let event = parse(&line);
                    self.seen.push(event.clone());
                    if wanted(&event) {
                        return event;
                    }
                }
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for its end; returns how it ended and all of its events.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<Event>) {
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) => self.seen.push(parse(&line)),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(error) => panic!("the program does not end: {error}; seen: {:#?}", self.seen),
            }
        }
        (self.child.wait().unwrap(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(line: &str) -> Event {
    serde_json::from_str::<Record>(line).unwrap_or_else(|error| panic!("{line}: {error}")).event
}

pub(crate) fn read_events(path: &Path) -> Vec<Event> {
    std::fs::read_to_string(path).unwrap().lines().map(parse).collect()
}

/// A directory to serve, and rdma-httpd that serves it.
pub(crate) struct Httpd {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) running: Running,
}

impl Httpd {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::of(tempfile::tempdir().unwrap(), args)
    }

    /// One whose files lie in memory, where there is such a place: a sparse file's zeros are all one page there, and not as
    /// many as are read.
    pub(crate) fn in_memory(args: &[&str]) -> Self {
        Self::of(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap(), args)
    }

    fn of(directory: tempfile::TempDir, args: &[&str]) -> Self {
        let mut httpd = command(env!("CARGO_BIN_EXE_rdma-httpd"));
        httpd
            .arg("--root")
            .arg(directory.path())
            .args(["--listen", "127.0.0.1:0", "--events", "-"])
            .args(args);
        let mut running = Running::start(httpd);
        let listening = running.wait_for("listening", |event| matches!(event, Event::Listening { .. }));
        let Event::Listening { address } = listening else { unreachable!() };
        Self { directory, address, running }
    }

    /// Makes a file of `length` bytes that no two places of are alike, and returns them.
    pub(crate) fn file(&self, name: &str, length: usize) -> Vec<u8> {
        let bytes = pattern(length);
        std::fs::write(self.directory.path().join(name), &bytes).unwrap();
        bytes
    }

    /// Makes a file of `length` zeros that takes no room on the disk.
    pub(crate) fn sparse_file(&self, name: &str, length: u64) {
        std::fs::File::create(self.directory.path().join(name)).unwrap().set_len(length).unwrap();
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Stops it in good order; returns all of its events.
    pub(crate) fn stop(self) -> Vec<Event> {
        self.stop_and_keep().0
    }

    /// The same, and the directory that it served.
    pub(crate) fn stop_and_keep(self) -> (Vec<Event>, tempfile::TempDir) {
        self.running.signal(nix::sys::signal::Signal::SIGTERM);
        let (status, events) = self.running.end();
        assert_eq!(status.code(), Some(0));
        (events, self.directory)
    }
}

/// What rdma-fetch did.
pub(crate) struct Fetched {
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
    pub(crate) events: Vec<Event>,
    pub(crate) body: Option<Vec<u8>>,
    // Holds nothing but the output.
    directory: tempfile::TempDir,
}

impl Fetched {
    /// Names of what lies where the output belongs.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.directory.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name().into()).collect()
    }
}

/// Runs rdma-fetch to its end.
pub(crate) fn fetch(url: &str, args: &[&str]) -> Fetched {
    let directory = tempfile::tempdir().unwrap();
    let events = tempfile::NamedTempFile::new().unwrap();
    let output = directory.path().join("out");
    let mut fetch = command(env!("CARGO_BIN_EXE_rdma-fetch"));
    fetch.arg(url).arg("-o").arg(&output).arg("--events").arg(events.path()).args(args);
    let Output { status, stderr, .. } = run(&mut fetch);
    let (stderr, events) = (String::from_utf8(stderr).unwrap(), read_events(events.path()));
    Fetched { code: status.code(), stderr, events, body: std::fs::read(&output).ok(), directory }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// What a program prints on one of its streams until its end.
pub(crate) fn text(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Bytes with a period that is no power of two.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i % 251).unwrap() ^ u8::try_from((i >> 10) % 256).unwrap()).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asserts that every region that was registered is released, and every connection closed. Returns how many regions and
/// connections there were.
pub(crate) fn assert_no_leak(events: &[Event]) -> (usize, usize) {
    let mut regions = Vec::new();
    let mut connections = Vec::new();
    let (mut registered, mut connected) = (0, 0);
    for event in events {
        match event {
            Event::RegionRegistered { stag, .. } => {
                regions.push(*stag);
                registered += 1;
            }
            Event::RegionReleased { stag } => {
                let at = regions.iter().position(|s| s == stag).expect("released what was not registered");
                regions.remove(at);
            }
            Event::RdmaConnected { local, peer, .. } => {
                connections.push((*local, *peer));
                connected += 1;
            }
            Event::RdmaClosed { local, peer } => {
                let at =
                    connections.iter().position(|c| *c == (*local, *peer)).expect("closed what was not open");
                connections.remove(at);
            }
            _ => {}
        }
    }
    assert!(regions.is_empty(), "still registered: {regions:?} in {events:#?}");
    assert!(connections.is_empty(), "still open: {connections:?} in {events:#?}");
    (registered, connected)
}

/// The reasons of all fallbacks.
pub(crate) fn fallbacks(events: &[Event]) -> Vec<&str> {
    let mut reasons = Vec::new();
    for event in events {
        if let Event::Fallback { reason } = event {
            reasons.push(reason.as_str());
        }
    }
    reasons
}

/// What failed.
pub(crate) fn failures(events: &[Event]) -> Vec<&str> {
    let mut errors = Vec::new();
    for event in events {
        if let Event::Failed { error } = event {
            errors.push(error.as_str());
        }
    }
    errors
}

/// The lengths of all operations of a kind.
pub(crate) fn operations(events: &[Event], wanted: &str) -> Vec<u64> {
    let length = |event: &Event| match event {
        Event::Operation { op, length, .. } if op == wanted => Some(*length),
        _ => None,
    };
    events.iter().filter_map(length).collect()
}

/// How the body came.
pub(crate) fn received(events: &[Event]) -> Vec<(&str, u64)> {
    let mut bodies = Vec::new();
    for event in events {
        if let Event::BodyReceived { via, length } = event {
            bodies.push((via.as_str(), *length));
        }
    }
    bodies
}

/// Whether a program is there; if not, says so, or fails where nothing may be skipped.
pub(crate) fn have(program: &str, test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    if directories.map(|directory| directory.join(program)).any(|file| file.is_file()) {
        return true;
    }
    crate::support::skip(test, &format!("{program} is not installed"));
    false
}
