//! Brings labs up and down: starts the agent, or for a guest the keeper, and sees it end.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::agent::client::{Client, ClientError};
use crate::agent::frame::FrameReader;
use crate::agent::protocol::{Blame, MAX_ANSWER, Response, Status};
use crate::agent::runtime::{LabDir, LabName, Launch, Runtime, RuntimeError};
use crate::guest::choice::{Clock, Place};
use crate::guest::keeper::Charge;
use crate::guest::machine::Machine;
use crate::topology::Plan;

/// How long processes may take to be gone once they were killed.
const KILLED: Duration = Duration::from_secs(5);

/// The programs that a lab's `bin/` offers; all are this one, by name.
pub(super) const PROGRAMS: [&str; 3] = ["testbed", "rdma-httpd", "rdma-fetch"];

/// How labs are brought up and taken down.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where labs are kept.
    pub runtime: Runtime,
    /// The `testbed` executable, of which the agent is a verb.
    pub program: PathBuf,
    /// How long it may take until the lab is ready, or gone.
    pub timeout: Duration,
    /// Where a lab is to live.
    pub place: Place,
    /// Whether one that is up elsewhere, made from the same plan, is as good.
    pub anywhere: bool,
    /// How it is, if that is in a guest.
    pub guest: Settings,
}

/// How guests are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Memory in MiB. Only what a guest uses is taken from the machine.
    pub memory: u32,
    /// How long it may be silent until it is taken for dead.
    pub patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { memory: 1024, patience: Duration::from_secs(60) }
    }
}

impl Options {
    /// The usual runtime directory, the `testbed` that this process is or that lies beside it, and half a minute.
    pub fn new() -> Result<Self, UpError> {
        Ok(Self::at(Runtime::locate(), program()?, Duration::from_secs(30)))
    }

    /// Labs on this machine's kernel.
    pub fn at(runtime: Runtime, program: PathBuf, timeout: Duration) -> Self {
        let (place, guest) = (Place::Host, Settings::default());
        Self { runtime, program, timeout, place, anywhere: false, guest }
    }
}

/// Finds the `testbed` executable: `$TESTBED_BIN`, else this process's own, else one beside it or a directory above
/// (where cargo puts a package's programs, as seen from its tests).
fn program() -> Result<PathBuf, UpError> {
    if let Some(program) = std::env::var_os("TESTBED_BIN").filter(|value| !value.is_empty()) {
        return Ok(program.into());
    }
    let own = std::env::current_exe().map_err(|_| UpError::NoProgram)?;
    if own.file_name().is_some_and(|name| name == PROGRAMS[0]) {
        return Ok(own);
    }
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(PROGRAMS[0]))
        .find(|path| path.is_file())
        .ok_or(UpError::NoProgram)
}

/// Why a lab is not up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The runtime directory cannot be used.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The library cannot find the program that it is part of.
    #[error("there is no `testbed` executable beside this one; set TESTBED_BIN to it")]
    NoProgram,
    /// A lab of this name is up, but it was made from something else.
    #[error(
        "lab `{lab}` is up, but it was made differently, from another plan or on another kernel:\n{difference}"
    )]
    Different {
        /// The lab.
        lab: LabName,
        /// What differs, line by line.
        difference: String,
    },
    /// The agent said why.
    #[error("{message}")]
    Failed {
        /// Why.
        message: String,
        /// Whose fault it is.
        blame: Blame,
    },
    /// The agent ended without saying why.
    #[error("the agent of lab `{lab}` ended before the lab was ready; its log ends with:\n{log}")]
    Died {
        /// The lab.
        lab: LabName,
        /// The end of its log.
        log: String,
    },
    /// The agent does not get on.
    #[error("lab `{lab}` was not ready within {waited:?}; its agent's log ends with:\n{log}")]
    Hangs {
        /// The lab.
        lab: LabName,
        /// How long this waited.
        waited: Duration,
        /// The end of its log.
        log: String,
    },
    /// The agent could not be started.
    #[error("cannot start the agent {program}: {source}", program = program.display())]
    Start {
        /// The executable.
        program: PathBuf,
        /// How that failed.
        source: io::Error,
    },
}

/// A lab that is up.
#[derive(Debug)]
pub struct Up {
    /// Its agent.
    pub client: Client,
    /// What is up.
    pub status: Status,
    /// What keeps it up, if this call brought it up; `None` if it was up before.
    pub lease: Option<Lease>,
}

/// Keeps a lab up: when this is dropped, or its process ends in any way, the agent takes the lab down and ends.
#[derive(Debug)]
pub struct Lease(UnixStream);

impl Lease {
    /// Lets the lab go on by itself, until it is taken down.
    pub async fn release(mut self) -> io::Result<()> {
        self.0.write_all(b".").await
    }
}

/// Brings a lab up. If one of that name is up already from the same plan, it is that one.
pub async fn up(name: &LabName, plan: &Plan, options: &Options) -> Result<Up, UpError> {
    options.runtime.create()?;
    // What another lab left must not keep this one from going up.
    if let Err(left) = sweep(&options.runtime) {
        tracing::warn!("{left}");
    }
    let lab = options.runtime.lab(name);
    let launch = lab.launch(options.timeout).await?;
    let text = plan_text(plan);
    let lock = match lab.try_lock(&launch)? {
        Some(lock) => lock,
        None => match living(&lab, &text, options).await? {
            Some(up) => return Ok(up),
            // It is on its way out.
            None => lab.await_lock(&launch, options.timeout).await?.ok_or_else(|| hangs(&lab, options))?,
        },
    };
    match start(&lab, &launch, lock, &text, options).await {
        Ok(up) => Ok(up),
        Err(error) => {
            // What remains is no use to anybody: the error has what the log said.
            if let Err(left) = clear(&lab, launch).await {
                tracing::warn!("{left}");
            }
            Err(error)
        }
    }
}

fn hangs(lab: &LabDir, options: &Options) -> UpError {
    UpError::Hangs { lab: lab.name().clone(), waited: options.timeout, log: lab.log_tail() }
}

/// The plan as it is kept on the disk, which is also how two plans are compared.
fn plan_text(plan: &Plan) -> String {
    // A plan is plain data with text for keys, which always serialises.
    serde_json::to_string_pretty(plan).unwrap_or_default()
}

/// The lab if its agent lives and answers.
async fn living(lab: &LabDir, text: &str, options: &Options) -> Result<Option<Up>, UpError> {
    let client = Client::new(lab.clone());
    let status = match tokio::time::timeout(options.timeout, client.status()).await {
        Err(_) => return Err(hangs(lab, options)),
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            tracing::info!("{error}");
            return Ok(None);
        }
    };
    let different = |difference| UpError::Different { lab: lab.name().clone(), difference };
    let there = fs::read_to_string(lab.plan()).unwrap_or_default();
    if there != text {
        return Err(different(difference(&there, text)));
    }
    let wanted = options.place.name();
    if status.kernel != wanted && !options.anywhere {
        return Err(different(format!("- kernel {}\n+ kernel {wanted}", status.kernel)));
    }
    Ok(Some(Up { client, status, lease: None }))
}

/// The first lines that differ.
fn difference(before: &str, after: &str) -> String {
    const LINES: usize = 12;
    let diff = similar::TextDiff::from_lines(before, after);
    let changed = diff.iter_all_changes().filter(|change| change.tag() != similar::ChangeTag::Equal);
    let mut lines: Vec<String> =
        changed.take(LINES + 1).map(|c| format!("{} {}", c.tag(), c.value().trim())).collect();
    if lines.len() > LINES {
        lines[LINES] = "…".to_owned();
    }
    lines.join("\n")
}

async fn start(
    lab: &LabDir,
    launch: &Launch,
    lock: File,
    plan: &str,
    options: &Options,
) -> Result<Up, UpError> {
    lab.clear(launch)?;
    let cannot = |what: &'static str, path: PathBuf| {
        move |source| UpError::from(RuntimeError::Io { what, path, source })
    };
    fs::write(lab.plan(), plan).map_err(cannot("write", lab.plan()))?;
    fs::create_dir(lab.bin()).map_err(cannot("make the directory", lab.bin()))?;
    for name in PROGRAMS {
        let link = lab.bin().join(name);
        symlink(&options.program, &link).map_err(cannot("make the link", link))?;
    }
    let verb = match Machine::of(&options.place, Clock::Wall) {
        None => "agent",
        Some(machine) => {
            let charge = Charge {
                machine,
                memory: options.guest.memory,
                timeout: options.timeout,
                patience: options.guest.patience,
                program: options.program.clone(),
            };
            // Plain data, which always serialises.
            let text = serde_json::to_vec_pretty(&charge).unwrap_or_default();
            fs::write(lab.charge(), text).map_err(cannot("write", lab.charge()))?;
            "keeper"
        }
    };
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(lab.log());
    let log = log.map_err(cannot("make", lab.log()))?;

    let failed = |source| UpError::Start { program: options.program.clone(), source };
    let (ours, theirs) = StdStream::pair().map_err(failed)?;
    let mut agent = tokio::process::Command::new(&options.program);
    agent.arg(verb).arg(lab.path());
    agent.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(lock)).stderr(Stdio::from(log));
    let mut child = agent.spawn().map_err(failed)?;
    // Closes our copies of what it was given: the lock is the agent's from here on.
    drop(agent);

    ours.set_nonblocking(true).map_err(failed)?;
    let mut caller = UnixStream::from_std(ours).map_err(failed)?;
    let mut from = FrameReader::new(&mut caller, MAX_ANSWER);
    let answer = tokio::time::timeout(options.timeout, from.message::<Response>()).await;
    match answer {
        Ok(Ok(Some(Response::Status(status)))) => {
            // The launcher ended when it had forked; this only collects it.
            let _ = child.wait().await;
            Ok(Up { client: Client::new(lab.clone()), status: *status, lease: Some(Lease(caller)) })
        }
        Ok(Ok(Some(Response::Failed { message, blame }))) => Err(UpError::Failed { message, blame }),
        Ok(_) => Err(UpError::Died { lab: lab.name().clone(), log: lab.log_tail() }),
        Err(_) => Err(hangs(lab, options)),
    }
}

/// What taking a lab down came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Down {
    /// It was up, and went in order.
    Ended,
    /// Its agent did not answer in time and was killed, with all of the lab.
    Killed,
    /// Its agent was dead already; what it left was cleared.
    Cleared,
    /// There was no such lab.
    WasNotUp,
}

/// Why a lab could not be taken down.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// The runtime directory cannot be used.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Killing did not help.
    #[error(
        "the agent of lab `{lab}` does not end although it was killed; it is stuck in the kernel (see `dmesg`)"
    )]
    Stuck {
        /// The lab.
        lab: LabName,
    },
    /// The agent refused.
    #[error("{0}")]
    Refused(String),
}

/// Takes a lab down, and returns when nothing of it is left.
pub async fn down(lab: &LabDir, timeout: Duration) -> Result<Down, DownError> {
    if !lab.exists() {
        return Ok(Down::WasNotUp);
    }
    let launch = lab.launch(timeout).await?;
    if lab.try_lock(&launch)?.is_some() {
        // An `up` that failed, or another `down`, may have cleared it while this one waited.
        let outcome = if lab.plan().exists() { Down::Cleared } else { Down::WasNotUp };
        lab.remove(launch)?;
        return Ok(outcome);
    }
    let client = Client::new(lab.clone());
    let asked = tokio::time::timeout(timeout, client.down()).await;
    if let Ok(Err(ClientError::Failed { message, .. })) = asked {
        return Err(DownError::Refused(message));
    }
    if asked.is_err() || lab.await_lock(&launch, timeout).await?.is_none() {
        clear(lab, launch).await?;
        return Ok(Down::Killed);
    }
    lab.remove(launch)?;
    // An agent that could not be asked any more was on its way out already.
    Ok(if matches!(asked, Ok(Ok(()))) { Down::Ended } else { Down::Cleared })
}

/// Clears what dead agents left, unless somebody is at work on it; returns whose it was.
pub fn sweep(runtime: &Runtime) -> Result<Vec<LabName>, RuntimeError> {
    let mut swept = Vec::new();
    for lab in runtime.labs()?.into_iter().filter(|lab| !lab.is_alive()) {
        let Some(launch) = lab.try_launch() else { continue };
        if lab.try_lock(&launch)?.is_none() {
            continue;
        }
        // Without a plan it never was a lab.
        if lab.plan().exists() {
            swept.push(lab.name().clone());
        }
        lab.remove(launch)?;
    }
    Ok(swept)
}

/// Makes sure that nothing of the lab lives, and removes its directory.
async fn clear(lab: &LabDir, launch: Launch) -> Result<(), DownError> {
    if lab.try_lock(&launch)?.is_none() {
        // The lock is held, so the process that wrote its id into it is there.
        if let Some(pid) = lab.pid1() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if lab.await_lock(&launch, KILLED).await?.is_none() {
            return Err(DownError::Stuck { lab: lab.name().clone() });
        }
    }
    Ok(lab.remove(launch)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_what_changed_and_is_short() {
        let plan = crate::topology::load("wan-10g").unwrap();
        let mut other = plan.clone();
        other.hosts[0].name = "elsewhere".to_owned();
        let text = difference(&plan_text(&plan), &plan_text(&other));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("elsewhere"), "{text}");
        let many: String = (0..99).map(|n| format!("{n}\n")).collect();
        assert_eq!(difference("", &many).lines().count(), 13);
    }

    #[test]
    fn equal_plans_have_equal_texts() {
        let plan = crate::topology::load("wan-10g").unwrap();
        let again: Plan = serde_json::from_str(&plan_text(&plan)).unwrap();
        assert_eq!(plan_text(&again), plan_text(&plan));
    }
}
