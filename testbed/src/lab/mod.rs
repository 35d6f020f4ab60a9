//! A plan -> namespaces, interfaces, links (netlink; no shelling out).
//!
//! Everything here hangs on file descriptors that the process holds: when it ends, however it ends, the kernel takes all
//! of it away. It must run with CAP_NET_ADMIN and CAP_SYS_ADMIN over the namespaces that it makes, which the agent
//! gets from a user namespace of its own or from being root.

use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::agent::protocol::{Blame, HostStatus, LinkStatus};
use crate::topology::Plan;

/// A lab that is up.
pub struct Lab {
    plan: Plan,
}

/// Why a lab could not be built or used; says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct LabError {
    /// What went wrong, where, and the remedy.
    pub message: String,
    /// Whose fault it is.
    pub blame: Blame,
}

impl Lab {
    /// Builds everything the plan holds. On an error nothing is left.
    pub async fn build(plan: Plan) -> Result<Self, LabError> {
        Ok(Self { plan })
    }

    /// What it was built from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The network namespace of a host, for `setns`.
    pub fn netns(&self, host: &str) -> Option<BorrowedFd<'_>> {
        let _ = host;
        None
    }

    /// For each host: the settings as they read back. `commands` is left 0.
    pub fn hosts(&self) -> Vec<HostStatus> {
        Vec::new()
    }

    /// For each link: who carries it, and its counters.
    pub fn links(&self) -> Vec<LinkStatus> {
        Vec::new()
    }

    /// Starts writing every frame that enters `link`, in either direction, to a pcapng file.
    pub fn capture_start(&self, link: &str, file: &Path) -> Result<(), LabError> {
        let _ = (link, file);
        Ok(())
    }

    /// Ends the capture; returns frames written and frames lost to the file.
    pub fn capture_stop(&self, link: &str) -> Result<(u64, u64), LabError> {
        let _ = link;
        Ok((0, 0))
    }

    /// Takes everything down in order; collects every error and goes on.
    pub async fn teardown(self) -> Vec<LabError> {
        Vec::new()
    }
}
