//! Scenarios in guests: each has a guest of its own, in which the runner runs beside the agent.
//!
//! On a virtual clock this is how it has to be. While a guest waits for the machine, its time races from timer to timer,
//! so whatever is timed must happen without asking the machine for anything: the scenario goes in, what was observed
//! comes out, and nothing in between. And what one scenario leaves behind (a congestion window that is remembered, a
//! timer that is pending) would shift another's times, so none is left to another.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::{Fabrics, Observation, RunError, Scenario};
use crate::agent::frame::FrameReader;
use crate::agent::protocol::{Blame, MAX_ANSWER, Response};
use crate::guest::choice::Clock;
use crate::guest::machine::{Config, Guest, GuestError, Machine};
use crate::guest::order::{OBSERVE, Order};
use crate::topology::Plan;

/// The largest answer, in bytes: of a body of 4 GiB in small pieces, with room to spare.
const MAX_OBSERVED: u64 = 256 << 20;
/// How much longer than the scenario's timeout, as this machine counts, it may take until there is an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the runner in a guest is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The scenario to run.
    pub scenario: Scenario,
    /// What the lab was made from.
    pub plan: Plan,
    /// What carries RDMA.
    pub fabrics: Fabrics,
    /// How the guest's clock goes.
    pub clock: Clock,
}

impl Question {
    /// The largest one.
    pub const MAX_BYTES: u64 = 64 << 20;
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observed {
    /// This was seen.
    Seen(Box<Observation>),
    /// Nothing can be said of the scenario.
    Not(RunError),
}

/// How scenarios get their guests.
#[derive(Clone, Debug)]
pub struct Guests {
    /// What they run on.
    pub machine: Machine,
    /// The `testbed` executable.
    pub program: PathBuf,
    /// Each guest's memory in MiB.
    pub memory: u32,
    /// How long it may take until a guest's lab is ready.
    pub timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("cannot make a guest's files in {}: {error}", std::env::temp_dir().display())]
    Files { error: io::Error },
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("{message}")]
    Lab { message: String, blame: Blame },
    #[error("{why}; the guest's console ends with:\n{console}")]
    Silent { why: String, console: String },
}

impl Guests {
    /// Runs a scenario in a guest that is made for it, on this processor if one is named. Dropped, the guest is gone.
    pub async fn run(&self, question: &Question, cpu: Option<usize>) -> Result<Observation, RunError> {
        match self.observed(question, cpu).await {
            Ok(Observed::Seen(observation)) => Ok(*observation),
            Ok(Observed::Not(error)) => Err(error),
            Err(trouble) => Err(RunError {
                unavailable: matches!(trouble, Trouble::Lab { blame: Blame::Machine, .. }),
                message: trouble.to_string(),
                logs: Vec::new(),
            }),
        }
    }

    async fn observed(&self, question: &Question, cpu: Option<usize>) -> Result<Observed, Trouble> {
        let directory = tempfile::Builder::new().prefix("testbed-guest-").tempdir();
        let directory = directory.map_err(|error| Trouble::Files { error })?;
        let mut guest = Guest::boot(&Config {
            machine: self.machine.clone(),
            program: self.program.clone(),
            directory: directory.path().to_owned(),
            memory: self.memory,
            timeout: self.timeout,
            cpu,
            log: None,
            lock: None,
        })
        .await?;
        let order = Order {
            lab: question.plan.name.clone(),
            plan: question.plan.clone(),
            program: self.program.clone(),
            shared: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
        };
        // It keeps the lab up.
        let mut caller = guest.order(&order).await?;
        self.ready(&guest, &mut caller).await?;
        let silent = |why: String| Trouble::Silent { why, console: guest.console().tail() };
        let limit = question.scenario.timeout + PATIENCE;
        match tokio::time::timeout(limit, ask(&guest, question)).await {
            Ok(Ok(observed)) => Ok(observed),
            Ok(Err(why)) => Err(silent(why)),
            Err(_) => Err(silent(format!("the guest had no answer after {} s", limit.as_secs_f64()))),
        }
    }

    async fn ready(&self, guest: &Guest, caller: &mut UnixStream) -> Result<(), Trouble> {
        let mut from = FrameReader::new(caller, MAX_ANSWER);
        let silent = |why: &str| Trouble::Silent { why: why.to_owned(), console: guest.console().tail() };
        match tokio::time::timeout(self.timeout, from.message::<Response>()).await {
            Ok(Ok(Some(Response::Status(_)))) => Ok(()),
            Ok(Ok(Some(Response::Failed { message, blame }))) => Err(Trouble::Lab { message, blame }),
            Ok(_) => Err(silent("the agent ended before the lab was ready")),
            Err(_) => Err(silent(&format!("the lab was not ready within {} s", self.timeout.as_secs_f64()))),
        }
    }
}

async fn ask(guest: &Guest, question: &Question) -> Result<Observed, String> {
    let mut stream = guest.opener().open(OBSERVE).map_err(|why| why.to_string())?;
    let text = serde_json::to_vec(question).map_err(|error| error.to_string())?;
    let talk = async {
        stream.write_all(&text).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.take(MAX_OBSERVED).read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = talk.await.map_err(|error| format!("the line to the guest failed: {error}"))?;
    serde_json::from_slice(&answer)
        .map_err(|error| format!("the guest's answer of {} bytes makes no sense: {error}", answer.len()))
}
