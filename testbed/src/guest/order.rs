//! What a guest is told to do, and the services that it offers on its line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::mux::Service;
use crate::topology::Plan;

/// Takes an [`Order`] as JSON up to the end of the stream, once, and gives [`Answer`]s, a line each.
pub const ORDER: Service = Service(1);
/// The agent's standard input: the socket of whoever brings the lab up. Opened once, after the order; the agent starts
/// with it.
pub const CALLER: Service = Service(2);
/// A connection to the agent's socket.
pub const AGENT: Service = Service(3);

/// The standard input and output of `testbed observe`, which runs one scenario in the lab: any number of times, once the
/// lab is ready.
pub const OBSERVE: Service = Service(4);

/// Ends at once: so a guest that lives answers.
pub const PING: Service = Service(5);

/// The largest order, in bytes.
pub const MAX_ORDER: u64 = 64 << 20;

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The lab's name.
    pub lab: String,
    /// What it is to be made from.
    pub plan: Plan,
    /// The `testbed` executable, by its path on the machine.
    pub program: PathBuf,
    /// Directories of the machine's that are shared with the guest, writable, at the same path.
    pub shared: Vec<PathBuf>,
    /// The environment of the lab's commands; that of the guest's first process if it is empty.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where they run unless they say so.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// All is ready for the agent.
    Ready,
    /// It is not, for this reason.
    Refused(String),
    /// The lab went in order; the guest is about to end.
    Over,
}
