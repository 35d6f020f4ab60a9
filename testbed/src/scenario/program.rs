//! A program of a scenario, run in a host by the agent: its events are read as they come, its complaints are kept.

use std::sync::{Arc, Mutex, PoisonError};

use rdma_http::events::{Event, Record};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::agent::client::{Client, ClientError, Command, Output, Running};
use crate::agent::protocol::Exit;

/// Most events of one program: a body of 4 GiB in chunks of 64 KiB, several times over.
const MAX_RECORDS: usize = 1 << 20;
/// The longest line of events: a head of 64 KiB, escaped.
const MAX_LINE: u64 = 1 << 20;
/// How much of the end of what a program said on standard error is kept.
const MAX_TAIL: usize = 16 << 10;

/// A program that runs.
pub(super) struct Program {
    name: String,
    running: Running,
    seen: Arc<Mutex<Seen>>,
    listening: watch::Receiver<Option<std::net::SocketAddr>>,
    readers: Vec<JoinHandle<()>>,
}

/// What a program has told so far; outlives it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) records: Vec<Record>,
    /// The end of its standard error.
    pub(super) tail: Vec<u8>,
    /// Why its standard output is no stream of events.
    pub(super) nonsense: Option<String>,
}

/// A program's [`Seen`], shared with whoever has to explain its end.
pub(super) type Told = Arc<Mutex<Seen>>;

impl Program {
    /// Starts it. `events` says whether its standard output is a stream of events.
    pub(super) async fn start(
        client: &Client,
        name: &str,
        command: Command,
        events: bool,
        told: Told,
    ) -> Result<Self, ClientError> {
        let mut running = client.exec(command).await?;
        running.stdin = None;
        let (address, listening) = watch::channel(None);
        let mut readers = Vec::new();
        if let Some(stdout) = running.stdout.take().filter(|_| events) {
            readers.push(tokio::spawn(read_events(stdout, told.clone(), address)));
        }
        if let Some(stderr) = running.stderr.take() {
            readers.push(tokio::spawn(read_tail(stderr, told.clone())));
        }
        Ok(Self { name: name.to_owned(), running, seen: told, listening, readers })
    }

    /// Waits until it has said where it listens; `None` if it ends its events without.
    pub(super) async fn listening(&mut self) -> Option<std::net::SocketAddr> {
        match self.listening.wait_for(Option::is_some).await {
            Ok(address) => *address,
            Err(_) => None,
        }
    }

    /// Waits for its end. Can be given up and begun again.
    pub(super) async fn ended(&mut self) -> Result<Exit, ClientError> {
        self.running.wait().await
    }

    /// Asks it to stop.
    pub(super) async fn terminate(&self) {
        self.running.signal(nix::libc::SIGTERM).await;
    }

    /// All its events, once it has ended.
    pub(super) async fn records(self) -> Result<Vec<Record>, String> {
        for reader in self.readers {
            // A reader that panicked has kept what it read.
            let _ = reader.await;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.nonsense.take() {
            Some(why) => Err(format!("{}: {why}", self.name)),
            None => Ok(std::mem::take(&mut seen.records)),
        }
    }
}

async fn read_events(stdout: Output, seen: Told, listening: watch::Sender<Option<std::net::SocketAddr>>) {
    let mut lines = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(length) if length > 0) {
            return;
        }
        let parsed = serde_json::from_slice::<Record>(&line);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match parsed {
            Ok(record) if seen.records.len() < MAX_RECORDS => {
                if let Event::Listening { address } = record.event {
                    listening.send_replace(Some(address));
                }
                seen.records.push(record);
            }
            Ok(_) => {
                seen.nonsense.get_or_insert_with(|| format!("more than {MAX_RECORDS} events"));
            }
            Err(error) => {
                let line = String::from_utf8_lossy(&line);
                let line: String = line.trim_end().chars().take(200).collect();
                seen.nonsense.get_or_insert_with(|| format!("{line:?} is no event: {error}"));
            }
        }
    }
}

async fn read_tail(mut stderr: Output, seen: Told) {
    while let Some(piece) = stderr.next().await {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.tail.extend_from_slice(&piece);
        let excess = seen.tail.len().saturating_sub(MAX_TAIL);
        seen.tail.drain(..excess);
    }
}

/// The end of what a program said on standard error, as text.
pub(super) fn tail(told: &Told) -> String {
    let seen = told.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&seen.tail);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
