//! A plan -> namespaces, interfaces, links (netlink; no shelling out).
//!
//! Everything here hangs on file descriptors that the process holds: when it ends, however it ends, the kernel takes all
//! of it away. It must run with CAP_NET_ADMIN and CAP_SYS_ADMIN over the namespaces that it makes, which the agent
//! gets from a user namespace of its own or from being root.

mod build;
mod error;
mod host;
mod netlink;
mod netns;
mod sysctl;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use self::build::Link;
pub use self::error::LabError;
use self::host::Host;
use crate::agent::protocol::{HostStatus, LinkStatus};
use crate::topology::Plan;

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    plan: Plan,
    // Links before hosts: a relay ends before the device that it reads.
    links: Vec<Link>,
    hosts: Vec<Host>,
}

impl Lab {
    /// Builds everything the plan holds. On an error nothing is left. It must be called within a tokio runtime that has
    /// its I/O enabled.
    pub async fn build(plan: Plan) -> Result<Self, LabError> {
        let (hosts, links) = build::build(&plan).await?;
        Ok(Self { plan, links, hosts })
    }

    /// What it was built from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The network namespace of a host, for `setns`.
    pub fn netns(&self, host: &str) -> Option<BorrowedFd<'_>> {
        self.hosts.iter().find(|h| h.name == host).map(|h| h.namespace.as_fd())
    }

    /// For each host: the settings as they read back. `commands` is left 0.
    pub fn hosts(&self) -> Vec<HostStatus> {
        let status = |h: &Host| HostStatus { name: h.name.clone(), sysctls: h.sysctls.clone(), commands: 0 };
        self.hosts.iter().map(status).collect()
    }

    /// For each link: who carries it, and its counters.
    pub fn links(&self) -> Vec<LinkStatus> {
        let named = self.plan.links.iter().zip(&self.links);
        named
            .map(|(plan, link)| LinkStatus {
                name: plan.name.clone(),
                driver: link.driver.to_owned(),
                a_to_b: link.a_to_b.status(),
                b_to_a: link.b_to_a.status(),
            })
            .collect()
    }

    /// Starts writing every frame that enters `link`, in either direction, to a pcapng file.
    pub fn capture_start(&self, link: &str, file: &Path) -> Result<(), LabError> {
        let _ = (link, file);
        Err(LabError::machine("captures are not there yet"))
    }

    /// Ends the capture; returns frames written and frames lost to the file.
    pub fn capture_stop(&self, link: &str) -> Result<(u64, u64), LabError> {
        Err(LabError::operation(format!("link {link}: no capture runs")))
    }

    /// Takes everything down in order; collects every error and goes on.
    pub async fn teardown(self) -> Vec<LabError> {
        // Ending the relays waits for their threads, and closing a TAP device for the kernel.
        let down = tokio::task::spawn_blocking(move || drop(self)).await;
        down.err()
            .map(|e| LabError::operation(format!("a part of the lab ended badly: {e}")))
            .into_iter()
            .collect()
    }
}
