//! The verb `keeper`: what `testbed up` starts for a lab in a guest, in place of the agent. It is given the same three
//! descriptors, so that from outside the lab is as any other: it listens on `agent.sock` and connects whoever comes with
//! the agent in the guest; it holds the lab's lock, as does the guest's kernel; the guest's console goes to the log.
//!
//! ```text
//! testbed up ── spawns ─► launcher: forks, ends
//!                         └─► keeper ── agent.sock
//!                             └─► the guest's kernel: is killed when the keeper ends
//! ```

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::setsid;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use super::machine::{Config, Guest, GuestError, Machine};
use super::order::{AGENT, Order};
use crate::agent::frame::{FrameReader, FrameWriter};
use crate::agent::launcher::{self, Failed, machine};
use crate::agent::namespaces::{Side, fork_single_threaded};
use crate::agent::protocol::{Blame, MAX_ANSWER, Request, Response};
use crate::agent::runtime::LabDir;
use crate::agent::server;

/// How long a guest may take to end in order when the keeper is asked to end.
const GRACE: Duration = Duration::from_secs(10);

/// What the keeper is to keep, as it lies in the lab's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    /// What the guest runs on.
    pub machine: Machine,
    /// The guest's memory in MiB.
    pub memory: u32,
    /// How long the guest may take until it answers first.
    pub timeout: Duration,
    /// For how long it may be silent after that.
    pub patience: Duration,
    /// The `testbed` executable.
    pub program: PathBuf,
}

/// Keeps the lab in `directory`. The process must have no thread but this one.
pub fn main(directory: &Path) -> ExitCode {
    launcher::close_inherited();
    let (caller, lock) = match launcher::descriptors() {
        Ok(descriptors) => descriptors,
        Err(error) => {
            eprintln!("testbed keeper: {error}; it is started by `testbed up`, not by hand");
            return ExitCode::from(2);
        }
    };
    // Out of the terminal's reach, and nobody's child: the lab goes on when `up` has ended.
    let parted = setsid().map_err(io::Error::from).and_then(|_| fork_single_threaded());
    let failed = match parted {
        Ok(Side::Parent(_)) => return ExitCode::SUCCESS,
        Ok(Side::Child) => start(directory, caller.try_clone().ok(), lock),
        Err(error) => Err(machine("fork")(error)),
    };
    match failed {
        Ok(()) => ExitCode::SUCCESS,
        Err((message, blame)) => {
            eprintln!("testbed keeper: {message}");
            launcher::report(caller, message, blame);
            ExitCode::FAILURE
        }
    }
}

fn start(directory: &Path, caller: Option<StdStream>, lock: File) -> Result<(), Failed> {
    let lab = LabDir::at(directory).map_err(|error| (error.to_string(), Blame::Usage))?;
    lock.set_len(0)
        .and_then(|()| lock.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0))
        .map_err(machine("write to the lock"))?;
    let text = fs::read(lab.charge()).map_err(machine("read what to keep"))?;
    let charge: Charge =
        serde_json::from_slice(&text).map_err(|error| (error.to_string(), Blame::Operation))?;
    let order = Order {
        lab: lab.name().to_string(),
        plan: launcher::read_plan(&lab.plan())?,
        program: charge.program.clone(),
        shared: Vec::new(),
        // What is not UTF-8 cannot be passed on.
        env: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        cwd: std::env::current_dir().ok(),
    };
    let caller =
        caller.ok_or_else(|| machine::<io::Error>("keep the caller")(io::ErrorKind::NotFound.into()))?;
    let log = io::stderr().as_fd().try_clone_to_owned().map_err(machine("keep the log"))?;
    let config = Config {
        machine: charge.machine,
        program: charge.program,
        directory: lab.path().to_owned(),
        memory: charge.memory,
        timeout: charge.timeout,
        cpu: None,
        log: Some(Arc::new(log.into())),
        lock: Some(Arc::new(lock)),
    };
    // One thread, which lasts as long as the process, as the guest's leash wants it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(machine("start"))?;
    let orderly = runtime.block_on(keep(&lab, &config, &order, charge.patience, caller));
    drop(runtime);
    if orderly? {
        server::tidy(&lab);
    }
    Ok(())
}

/// Returns when the guest has ended: whether it did so in order.
async fn keep(
    lab: &LabDir,
    config: &Config,
    order: &Order,
    patience: Duration,
    caller: StdStream,
) -> Result<bool, Failed> {
    let listener = launcher::bind(lab).map_err(machine("listen on agent.sock"))?;
    listener.set_nonblocking(true).map_err(machine("listen on agent.sock"))?;
    let listener = UnixListener::from_std(listener).map_err(machine("listen on agent.sock"))?;
    caller.set_nonblocking(true).map_err(machine("use the caller's socket"))?;
    let mut caller = UnixStream::from_std(caller).map_err(machine("use the caller's socket"))?;
    let handle = |kind| signal(kind).map_err(machine("handle signals"));
    let (mut term, mut int) = (handle(SignalKind::terminate())?, handle(SignalKind::interrupt())?);

    let boot = async {
        let mut guest = Guest::boot(config).await?;
        let agent = guest.order(order).await?;
        Ok::<_, GuestError>((guest, agent))
    };
    let (mut guest, mut agent) = tokio::select! {
        booted = boot => booted.map_err(|error| {
            let blame = match error {
                GuestError::Start { .. } | GuestError::Path { .. } => Blame::Machine,
                _ => Blame::Operation,
            };
            (error.to_string(), blame)
        })?,
        () = server::closed(&caller) => return Ok(true),
        _ = term.recv() => return Ok(true),
        _ = int.recv() => return Ok(true),
    };
    // How the agent got on goes out, that the lab may live on comes in.
    let lease = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut caller, &mut agent).await });

    let asked = async {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        let _ = tokio::time::timeout(GRACE, take_down(&guest)).await;
    };
    let ends_itself = tokio::select! {
        () = guest.serve(listener) => true,
        () = guest.silent(patience) => {
            eprintln!("testbed keeper: the guest has not answered for {patience:?}; it is taken for dead and killed");
            false
        }
        () = asked => false,
    };
    // Powering off takes a moment from the end of the line.
    if !ends_itself || tokio::time::timeout(GRACE, guest.wait()).await.is_err() {
        guest.kill();
    }
    let _ = guest.wait().await;
    lease.abort();
    Ok(guest.parted().await)
}

/// Asks the agent to take the lab down.
async fn take_down(guest: &Guest) {
    let Ok(mut agent) = guest.opener().open(AGENT) else { return };
    if FrameWriter::new(&mut agent).message(&Request::Down).await.is_ok() {
        // Its answer, or its end: the guest follows.
        let _ = FrameReader::new(&mut agent, MAX_ANSWER).message::<Response>().await;
    }
    let _ = guest.wait().await;
}
