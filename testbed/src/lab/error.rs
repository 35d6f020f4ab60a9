//! Why a lab could not be built or used.

use std::fmt::Display;

use crate::agent::protocol::Blame;

/// Why a lab could not be built or used; says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct LabError {
    /// What went wrong, where, and the remedy.
    pub message: String,
    /// Whose fault it is.
    pub blame: Blame,
}

impl LabError {
    /// The plan or the request makes no sense.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), blame: Blame::Usage }
    }

    /// This machine cannot do it.
    pub(super) fn machine(message: impl Into<String>) -> Self {
        Self { message: message.into(), blame: Blame::Machine }
    }

    /// It was possible and failed.
    pub(super) fn operation(message: impl Into<String>) -> Self {
        Self { message: message.into(), blame: Blame::Operation }
    }

    /// A step failed at a place: `host server, eth0: cannot set the MTU to 9000: Invalid argument`. What a user can do
    /// follows where the error number tells it.
    pub(super) fn step(place: impl Display, step: impl Display, cause: impl Into<std::io::Error>) -> Self {
        let cause = cause.into();
        let remedy = match cause.raw_os_error().map(nix::errno::Errno::from_raw) {
            Some(nix::errno::Errno::EPERM | nix::errno::Errno::EACCES) => {
                "; it needs CAP_NET_ADMIN and CAP_SYS_ADMIN over the lab's namespaces: run it in a user namespace of its \
                 own or as root (`testbed doctor` says whether this machine allows either)"
            }
            Some(nix::errno::Errno::EMFILE | nix::errno::Errno::ENFILE) => {
                "; raise the limit of open files (`ulimit -n`)"
            }
            Some(nix::errno::Errno::ENOSPC) => {
                "; the limit of namespaces is reached: raise /proc/sys/user/max_net_namespaces or take other labs down"
            }
            Some(nix::errno::Errno::ENOMEM | nix::errno::Errno::ENOBUFS) => "; the machine is out of memory",
            _ => "",
        };
        Self::machine(format!("{place}: cannot {step}: {cause}{remedy}"))
    }
}
