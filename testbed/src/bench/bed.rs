//! A lab for the length of a figure, and programs in it, all bounded in time.

use std::io;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::judge::Unreadable;
use crate::LabHandle;
use crate::agent::client::{ClientError, Command, Control, Output};
use crate::agent::protocol::Exit;
use crate::guest::choice::NoChoice;
use crate::guest::host::{DownError, Options, UpError};
use crate::topology::{Plan, TopologyError};

/// What a judge may take; none needs a tenth of it.
const JUDGE_LIMIT: Duration = Duration::from_secs(120);
/// What a server may take to be ready, and to end.
const SERVER_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of output that are looked at.
const MAX_OUTPUT: usize = 16 << 20;
/// A shell's code for "not found", which the agent passes on.
const NOT_FOUND: u8 = 127;

/// Why a figure could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A program that judges is not installed.
    #[error("`{program}` is not installed, and it is what measures")]
    NoJudge {
        /// Which.
        program: String,
    },
    /// The kernel that a guest needs is not there.
    #[error(transparent)]
    NoKernel(#[from] NoChoice),
    /// A lab could not be planned.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A lab could not be brought up.
    #[error(transparent)]
    Up(#[from] UpError),
    /// A lab could not be taken down.
    #[error(transparent)]
    Down(#[from] DownError),
    /// A lab failed while it was used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A judge's output makes no sense.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// A program failed.
    #[error("`{what}` failed: {why}")]
    Failed {
        /// The command.
        what: String,
        /// What it said.
        why: String,
    },
    /// Something of this side's failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A lab of two hosts, `server` and `client`. Goes when it is dropped.
pub(super) struct Bed {
    lab: LabHandle,
    /// The server's address.
    pub(super) server: String,
}

impl Bed {
    pub(super) async fn up(plan: Plan) -> Result<Self, BenchError> {
        Self::up_with(plan, Options::new()?).await
    }

    /// Where and as the options say.
    pub(super) async fn up_with(plan: Plan, options: Options) -> Result<Self, BenchError> {
        let server = plan.hosts.iter().find(|host| host.name == "server").and_then(|host| host.address());
        let lab = LabHandle::up_with(&plan, options).await?;
        Ok(Self { lab, server: server.map(|address| address.to_string()).unwrap_or_default() })
    }

    pub(super) async fn down(self) -> Result<(), BenchError> {
        Ok(self.lab.down().await?)
    }

    /// Runs a program to its end and returns what it printed. It must succeed.
    pub(super) async fn judge(&self, host: &str, argv: &[&str]) -> Result<Vec<u8>, BenchError> {
        let failed = |why: String| BenchError::Failed { what: argv.join(" "), why };
        let outputs =
            async { self.exec(host, argv).await?.output(MAX_OUTPUT).await.map_err(BenchError::from) };
        let outputs = timeout(JUDGE_LIMIT, outputs)
            .await
            .map_err(|_| failed(format!("no end within {JUDGE_LIMIT:?}")))??;
        if outputs.exit == Exit::Code(0) {
            return Ok(outputs.stdout);
        }
        // iperf3 tells its troubles on standard output.
        let said = if outputs.stderr.is_empty() { &outputs.stdout } else { &outputs.stderr };
        Err(failed(format!("{:?}: {}", outputs.exit, String::from_utf8_lossy(said).trim())))
    }

    /// Starts a program and waits until it has printed `ready`.
    pub(super) async fn start(&self, host: &str, argv: &[&str], ready: &str) -> Result<Server, BenchError> {
        let failed = |why: String| BenchError::Failed { what: argv.join(" "), why };
        let mut running = self.exec(host, argv).await?;
        let (Some(mut stdout), Some(mut stderr)) = (running.stdout.take(), running.stderr.take()) else {
            return Err(failed("its outputs are gone".into()));
        };
        let mut said = Vec::new();
        let is_ready = |said: &[u8]| said.windows(ready.len()).any(|window| window == ready.as_bytes());
        let wait = async {
            while !is_ready(&said) {
                let piece = tokio::select! {
                    Some(piece) = stdout.next() => piece,
                    Some(piece) = stderr.next() => piece,
                    else => return false,
                };
                said.extend_from_slice(&piece);
            }
            true
        };
        let ready = timeout(SERVER_LIMIT, wait).await;
        match ready {
            Ok(true) => {
                let control = running.control();
                // Both outputs share a connection: unread, either would hold the other up.
                let end = tokio::spawn(async move {
                    tokio::join!(drain(stdout), drain(stderr));
                    running.wait().await
                });
                Ok(Server { what: argv.join(" "), control, end })
            }
            Ok(false) => Err(failed(format!("it ended: {}", String::from_utf8_lossy(&said).trim()))),
            Err(_) => Err(failed(format!("not ready within {SERVER_LIMIT:?}"))),
        }
    }

    async fn exec(&self, host: &str, argv: &[&str]) -> Result<crate::agent::client::Running, BenchError> {
        let (program, args) = argv.split_first().unwrap_or((&"", &[]));
        let command = Command::new(host, *program).args(args.iter().copied());
        self.lab.client().exec(command).await.map_err(|error| match error {
            ClientError::NotExecuted { code: NOT_FOUND, .. } => {
                BenchError::NoJudge { program: (*program).to_owned() }
            }
            other => other.into(),
        })
    }
}

async fn drain(mut output: Output) {
    while output.next().await.is_some() {}
}

/// A program that serves.
pub(super) struct Server {
    what: String,
    control: Control,
    end: JoinHandle<Result<Exit, ClientError>>,
}

impl Server {
    /// Ends it, if it has not ended by itself, and waits until it is gone.
    pub(super) async fn stop(self) -> Result<(), BenchError> {
        self.control.signal(nix::libc::SIGTERM).await;
        match timeout(SERVER_LIMIT, self.end).await {
            Ok(Ok(end)) => end.map(drop).map_err(BenchError::from),
            _ => Err(BenchError::Failed { what: self.what, why: format!("no end within {SERVER_LIMIT:?}") }),
        }
    }
}
