//! What the command line and an agent say to each other, over a Unix socket or, for a guest, a serial line.
//!
//! A frame is a 32-bit big-endian length, a type byte and that many bytes: `J`, a JSON message ([`Request`] towards the
//! agent, [`Response`] from it); `0`, `1`, `2`, bytes of a command's standard input, output and error (an empty frame is
//! end of file). A connection carries one request; an `exec` keeps it for as long as the command runs, and if the
//! client goes away the command's process group is killed. Of a command's input at most [`INPUT_WINDOW`] bytes are under
//! way, so that signals are never stuck behind input that nobody reads.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use rdma_http::fabric::FabricKind;
use serde::{Deserialize, Serialize};

use crate::topology::{Impairment, Plan};

/// The largest frame that an agent accepts, in bytes.
pub const MAX_FRAME: usize = 1 << 20;

/// The largest frame that a client accepts, in bytes: the status of a big lab is big.
pub const MAX_ANSWER: usize = 64 << 20;

/// Bytes of a command's input that a client may have sent beyond what [`Response::InputTaken`] confirmed.
pub const INPUT_WINDOW: usize = 1 << 20;

/// What is asked of an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What is up: answered by [`Response::Status`].
    Status,
    /// Run a command in a host: answered by [`Response::Started`], then output frames, then [`Response::Exited`].
    Exec(Exec),
    /// To a running command: its terminal has another size now.
    Resize(WindowSize),
    /// To a running command: send its process group this signal.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// Write every frame that enters a link, either way, to a pcapng file: answered by [`Response::Done`].
    CaptureStart {
        /// The link's name.
        link: String,
        /// The file, created or truncated; absolute.
        file: PathBuf,
    },
    /// End the capture and flush the file: answered by [`Response::Captured`].
    CaptureStop {
        /// The link's name.
        link: String,
    },
    /// Wait until no program's TCP connection in these hosts may send more: answered by [`Response::Settled`].
    Settle {
        /// The hosts.
        hosts: Vec<String>,
        /// For how long at most: connections may stay open for ever.
        limit_ms: u64,
    },
    /// Change what a link does to frames from now on: answered by [`Response::Done`] once it does.
    ChangeLink {
        /// The link's name.
        link: String,
        /// From a to b.
        #[serde(default)]
        a_to_b: DirectionChange,
        /// From b to a.
        #[serde(default)]
        b_to_a: DirectionChange,
    },
    /// Take the lab down: answered by [`Response::Done`] once everything is gone.
    Down,
}

/// What is to change about one direction of a link; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DirectionChange {
    /// What it does to frames.
    pub does: Option<Impairment>,
    /// Cut: nothing arrives any more, what is under way included. Not cut: it does again what it did.
    pub cut: Option<bool>,
}

/// A command to run in a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The host.
    pub host: String,
    /// Program and arguments; the program is looked up in the lab's `PATH`.
    pub argv: Vec<String>,
    /// Start from an environment with the lab's `PATH` only, not from the agent's.
    #[serde(default)]
    pub clean_env: bool,
    /// Set on top of that environment.
    pub env: BTreeMap<String, String>,
    /// Where it runs; the agent's directory by default.
    pub cwd: Option<PathBuf>,
    /// Give it a terminal of this size (its standard error then arrives as standard output).
    pub terminal: Option<WindowSize>,
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// What an agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Response {
    /// What is up.
    Status(Box<Status>),
    /// The command runs.
    Started {
        /// Its process id as the lab sees it.
        pid: i32,
    },
    /// The command's standard input took this many bytes more.
    InputTaken {
        /// Bytes.
        bytes: usize,
    },
    /// The command ended, and all its output is before this.
    Exited(Exit),
    /// The command could not be started.
    NotExecuted {
        /// What a shell would exit with: 127 for not found, 126 for not executable.
        code: u8,
        /// Why.
        message: String,
    },
    /// It is done.
    Done,
    /// The capture is closed.
    Captured {
        /// Frames in the file.
        frames: u64,
        /// Frames that could not be written; 0 or the capture must not be trusted.
        dropped: u64,
    },
    /// The wait for connections to end is over.
    Settled {
        /// Whether they have ended.
        ended: bool,
    },
    /// It could not be done.
    Failed {
        /// Why, and what to do.
        message: String,
        /// Whose fault it is.
        blame: Blame,
    },
}

/// Whose fault a failure is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blame {
    /// The request makes no sense (exit code 2): no such host, no such link.
    Usage,
    /// This machine cannot do it (exit code 3).
    Machine,
    /// What was asked for failed (exit code 1).
    Operation,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What is up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// The lab's name.
    pub lab: String,
    /// The agent's process id as the machine sees it, or the guest that it is in.
    pub agent_pid: i32,
    /// Milliseconds since the lab was ready.
    pub up_ms: u64,
    /// Where it lives: `host`, or a guest, `uml` or `qemu`.
    pub kernel: String,
    /// The release of the kernel that it lives on, as `uname -r` has it there.
    pub release: String,
    /// What it was made from.
    pub plan: Plan,
    /// For each link of the plan, in its order.
    pub links: Vec<LinkStatus>,
    /// For each host of the plan, in its order.
    pub hosts: Vec<HostStatus>,
}

/// What became of a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostStatus {
    /// Its name.
    pub name: String,
    /// What its settings read after they were set.
    pub sysctls: BTreeMap<String, String>,
    /// Commands running in it now.
    pub commands: usize,
    /// Its RDMA devices; none on the fabric `soft`.
    pub devices: Vec<DeviceStatus>,
}

/// An RDMA device of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceStatus {
    /// Its name: `siw-server-eth0`.
    pub name: String,
    /// The interface that it is on.
    pub interface: String,
    /// `siw` or `rxe`.
    pub fabric: FabricKind,
    /// The state of its port.
    pub state: PortState,
    /// What its port is addressed by.
    pub gids: Vec<GidStatus>,
}

/// The state of a device's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// The interface is down.
    Down,
    /// It is coming up.
    Initializing,
    /// It is coming up.
    Armed,
    /// It can be used.
    Active,
    /// The kernel does not say.
    Unknown,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Initializing => "initializing",
            Self::Armed => "armed",
            Self::Active => "active",
            Self::Unknown => "unknown",
        })
    }
}

/// A GID of a port: an address, as RoCE has it, or for iWARP a number made of the MAC address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GidStatus {
    /// Its place in the port's table.
    pub index: u32,
    /// The GID; an IPv4 address is IPv4-mapped.
    pub gid: Ipv6Addr,
    /// As the kernel says it: `RoCE v2`.
    pub kind: String,
}

/// What became of a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkStatus {
    /// Its name.
    pub name: String,
    /// Who carries it: `relay over TAP`, `relay over AF_PACKET` or `netem`.
    pub driver: String,
    /// From a to b.
    pub a_to_b: DirectionStatus,
    /// From b to a.
    pub b_to_a: DirectionStatus,
}

/// One direction of a link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectionStatus {
    /// Frames carried (an offloaded frame of many segments counts once).
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that found the queue full.
    pub dropped: u64,
    /// What it does to frames now; the plan has what it did at first.
    pub does: Impairment,
    /// Whether it is cut.
    pub cut: bool,
}
