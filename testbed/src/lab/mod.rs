//! A plan -> namespaces, interfaces, links (netlink; no shelling out).
//!
//! Everything here hangs on file descriptors that the process holds: when it ends, however it ends, the kernel takes all
//! of it away. It must run with CAP_NET_ADMIN and CAP_SYS_ADMIN over the namespaces that it makes, which the agent
//! gets from a user namespace of its own or from being root.

mod build;
mod error;
mod host;
mod link;
mod netdev;
mod netlink;
mod netns;
mod patch;
pub mod rdma;
mod sockets;
mod sysctl;

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::Path;

pub use self::error::LabError;
use self::host::Host;
use self::link::Link;
pub use self::sockets::Sockets;
use crate::agent::protocol::{DirectionChange, HostStatus, LinkStatus};
use crate::link::tap;
use crate::topology::{Endpoint, Plan};

/// What a relay has at each end of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayDevice {
    /// The host's interface is a TAP device that the relay holds.
    Tap,
    /// The host's interface is one end of a veth pair, and the relay has a packet socket on the other.
    Packet,
}

impl RelayDevice {
    /// TAP where this process may open `/dev/net/tun`, which ordinary users may on most desktops but not everywhere.
    pub fn best() -> Self {
        if tap::available().is_ok() { Self::Tap } else { Self::Packet }
    }
}

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
        let device = RelayDevice::best();
        Self::build_with(plan, device).await
    }

    /// As [`build`](Self::build), with the relays on these devices.
    pub async fn build_with(plan: Plan, device: RelayDevice) -> Result<Self, LabError> {
        let (hosts, links) = build::build(&plan, device).await?;
        Ok(Self { plan, links, hosts })
    }

    /// What it was built from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The network namespace of a host, for `setns`.
    pub fn netns(&self, host: &str) -> Option<BorrowedFd<'_>> {
        self.hosts.iter().find(|h| h.name == host).map(Host::namespace)
    }

    /// The TCP connections in a host.
    pub fn sockets(&self, host: &str) -> Result<Sockets, LabError> {
        let found = self.hosts.iter().find(|h| h.name == host);
        let found = found.ok_or_else(|| LabError::usage(format!("there is no host {host}")))?;
        let opened = found.sockets();
        opened.map_err(|e| LabError::operation(format!("host {host}: cannot read its sockets: {e}")))
    }

    /// For each host: the settings as they read back, and its RDMA devices. `commands` is left 0.
    pub fn hosts(&self) -> Vec<HostStatus> {
        let status = |h: &Host| HostStatus {
            name: h.name.clone(),
            sysctls: h.sysctls.clone(),
            commands: 0,
            devices: h.devices(),
        };
        self.hosts.iter().map(status).collect()
    }

    /// For each link: who carries it, and its counters. What an interface itself dropped, because the relay was late to
    /// take it, counts among a direction's dropped frames.
    pub fn links(&self) -> Vec<LinkStatus> {
        let dropped: HashMap<_, _> = self.hosts.iter().map(|h| (&h.name, h.dropped_on_sending())).collect();
        let dropped_by = |end: &Endpoint| dropped.get(&end.host).and_then(|h| h.get(&end.interface)).copied();
        self.links.iter().map(|link| link.status(dropped_by)).collect()
    }

    /// Changes what a link does from now on. What it returns is to be awaited; the lab need not be held for it.
    pub fn change_link(
        &self,
        link: &str,
        changes: [DirectionChange; 2],
    ) -> Result<impl Future<Output = Result<(), LabError>> + Send + use<>, LabError> {
        let link = self.link(link)?;
        let named = |end: &Endpoint| self.hosts.iter().find(|host| host.name == end.host).map(Host::netlink);
        link.change(&self.plan, changes, &named)
    }

    /// Starts writing every frame that enters `link`, in either direction, to a pcapng file, which is created or
    /// truncated. Only a link that a relay carries can be captured.
    pub fn capture_start(&self, link: &str, file: &Path) -> Result<(), LabError> {
        self.link(link)?.capture_start(file)
    }

    /// Ends the capture; returns frames written and frames lost to the file. It waits until the file is written, which
    /// may take a second.
    pub fn capture_stop(&self, link: &str) -> Result<(u64, u64), LabError> {
        self.link(link)?.capture_stop()
    }

    fn link(&self, name: &str) -> Result<&Link, LabError> {
        self.links.iter().find(|l| l.name() == name).ok_or_else(|| {
            let names: Vec<_> = self.links.iter().map(Link::name).collect();
            LabError::usage(format!("there is no link {name}; there is {}", names.join(", ")))
        })
    }

    /// Takes everything down in order; collects every error and goes on.
    pub async fn teardown(self) -> Vec<LabError> {
        let Self { links, mut hosts, .. } = self;
        let mut errors = Vec::new();
        for host in &mut hosts {
            errors.extend(host.delete_devices().await);
        }
        // Ending the relays waits for their threads, and closing a TAP device for the kernel.
        let down = tokio::task::spawn_blocking(move || {
            links.iter().for_each(Link::ask_to_stop);
            links.into_iter().filter_map(|link| link.teardown().err()).collect()
        });
        let ended_badly = |e| vec![LabError::operation(format!("a part of the lab ended badly: {e}"))];
        errors.extend(down.await.unwrap_or_else(ended_badly));
        for host in hosts {
            host.close().await;
        }
        errors
    }
}
