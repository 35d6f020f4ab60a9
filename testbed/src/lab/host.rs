//! One host: a namespace, its interfaces and its settings.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use netlink_packet_route::tc::TcMessage;

use super::error::LabError;
use super::netdev;
use super::netlink::Netlink;
use super::netns::Namespace;
use super::rdma::{self, RdmaError};
use super::sockets::Sockets;
use super::sysctl::{self, SysctlError};
use crate::agent::protocol::DeviceStatus;
use crate::link::tap::Tap;
use crate::topology::HostPlan;

/// Frames that an interface holds for a relay that is late: one bandwidth-delay product of a fast link may come as one
/// burst, in frames that are not all full.
const INTERFACE_QUEUE: u32 = 10_000;

/// An interface that is to be a TAP device.
#[derive(Clone, Debug)]
pub(super) struct TapPlan {
    pub(super) interface: String,
    pub(super) offload: bool,
}

/// A host that exists.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: String,
    namespace: Namespace,
    netlink: Netlink,
    pub(super) sysctls: BTreeMap<String, String>,
    rdma: Option<Rdma>,
}

/// Its RDMA devices, and the socket by which they were made.
#[derive(Debug)]
struct Rdma {
    socket: rdma::Socket,
    devices: Vec<rdma::Device>,
}

impl Host {
    /// Makes the namespace and the TAP devices in it, in the order of `taps`.
    pub(super) async fn create(plan: &HostPlan, taps: Vec<TapPlan>) -> Result<(Self, Vec<Tap>), LabError> {
        let place = format!("host {}", plan.name);
        let ipv6 = plan.interfaces.iter().any(|i| i.address.addr().is_ipv6());
        let inside = {
            let place = place.clone();
            move || -> Result<_, LabError> {
                quieten(ipv6).map_err(|e| LabError::step(&place, "set the namespace's defaults", e))?;
                let netlink =
                    Netlink::open().map_err(|e| LabError::step(&place, "open a netlink socket", e))?;
                let taps = taps.iter().map(|tap| {
                    Tap::create(&tap.interface, tap.offload).map_err(|e| {
                        LabError::step(format!("{place}, {}", tap.interface), "make a TAP device", e)
                    })
                });
                Ok((netlink, taps.collect::<Result<Vec<_>, _>>()?))
            }
        };
        let (namespace, made) = Namespace::create(inside)
            .await
            .map_err(|e| LabError::step(&place, "make a network namespace", e))?;
        let (netlink, taps) = made?;
        Ok((Self { name: plan.name.clone(), namespace, netlink, sysctls: BTreeMap::new(), rdma: None }, taps))
    }

    /// Brings up the interfaces, which must exist by now, and makes the settings.
    pub(super) async fn configure(&mut self, plan: &HostPlan) -> Result<(), LabError> {
        let lo = format!("host {}, lo", self.name);
        self.netlink.up("lo").await.map_err(|e| LabError::step(lo, "bring it up", e))?;
        let netlink = &self.netlink;
        for interface in &plan.interfaces {
            let place = format!("host {}, {}", self.name, interface.name);
            let failed = |step: String| {
                let place = &place;
                move |e: io::Error| LabError::step(place, step, e)
            };
            let index = netlink.index(&interface.name).await.map_err(failed("find it".into()))?;
            netlink.configure(index, interface, INTERFACE_QUEUE).await.map_err(failed(format!(
                "bring it up with the MAC address {} and an MTU of {}",
                interface.mac, interface.mtu
            )))?;
            netlink
                .add_address(index, interface.address)
                .await
                .map_err(failed(format!("add the address {}", interface.address)))?;
            for (address, mac) in &interface.neighbors {
                netlink
                    .add_neighbor(index, *address, *mac)
                    .await
                    .map_err(failed(format!("add the neighbour {address}")))?;
            }
        }
        self.sysctls = self.apply(plan.sysctls.clone()).await?;
        Ok(())
    }

    /// For each of its interfaces, frames that it dropped on sending: those that a late relay left no room for.
    pub(super) fn dropped_on_sending(&self) -> HashMap<String, u64> {
        let read = self.namespace.enter_blocking(netdev::dropped_on_sending).flatten();
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, host = self.name, "cannot read its interfaces' counters");
            HashMap::new()
        })
    }

    /// Its TCP connections.
    pub(super) fn sockets(&self) -> io::Result<Sockets> {
        self.namespace.enter_blocking(Sockets::open).flatten()
    }

    /// Makes an RDMA device on each of its interfaces, which are up.
    pub(super) async fn add_devices(&mut self, plan: &HostPlan, kind: rdma::Kind) -> Result<(), LabError> {
        let refused = |place: String, e: RdmaError| LabError::machine(format!("{place}: RDMA device: {e}"));
        let host = || format!("host {}", self.name);
        let socket = self.namespace.enter(rdma::Socket::open).await;
        let socket = socket.map_err(|e| LabError::step(host(), "enter its namespace", e))?;
        let socket = socket.map_err(|e| refused(host(), e))?;
        socket.share().await.map_err(|e| refused(host(), e))?;
        let mut devices = Vec::new();
        for interface in &plan.interfaces {
            let (name, address) = (&interface.name, interface.address.addr());
            let made = rdma::Device::create(&socket, &self.namespace, kind, &self.name, name, address).await;
            devices.push(made.map_err(|e| refused(format!("{}, {name}", host()), e))?);
        }
        self.rdma = Some(Rdma { socket, devices });
        Ok(())
    }

    /// Deletes its RDMA devices; collects every error and goes on.
    pub(super) async fn delete_devices(&mut self) -> Vec<LabError> {
        let Some(Rdma { socket, devices }) = self.rdma.take() else { return Vec::new() };
        let mut errors = Vec::new();
        for device in devices {
            let place = format!("host {}, RDMA device {}", self.name, device.name());
            if let Err(e) = device.delete(&socket).await {
                errors.push(LabError::operation(format!("{place}: {e}")));
            }
        }
        socket.close().await;
        errors
    }

    /// How its RDMA devices are.
    pub(super) fn devices(&self) -> Vec<DeviceStatus> {
        self.rdma.iter().flat_map(|rdma| &rdma.devices).map(rdma::Device::status).collect()
    }

    /// Gives up the namespace, which ends when nobody else is in it.
    pub(super) async fn close(self) {
        self.netlink.close().await;
    }

    /// Its namespace.
    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Joins one of its interfaces to one of another host's by a veth pair, which makes both.
    pub(super) async fn join(&self, interface: &str, other: &Self, others: &str) -> io::Result<()> {
        self.netlink.add_veth(interface, others, other.namespace()).await
    }

    /// Waits until an interface, an end of a veth pair, carries frames.
    pub(super) async fn wait_until_up(&self, interface: &str) -> Result<(), LabError> {
        let place = || format!("host {}, {interface}", self.name);
        self.netlink
            .wait_until_up(interface)
            .await
            .map_err(|e| LabError::step(place(), "wait for its carrier", e))
    }

    /// Gives an interface the queueing discipline that is made for its index.
    pub(super) async fn set_qdisc(
        &self,
        interface: &str,
        message: impl FnOnce(u32) -> TcMessage,
    ) -> io::Result<()> {
        let index = self.netlink.index(interface).await?;
        self.netlink.set_qdisc(message(index), false).await
    }

    /// Its netlink socket, for who may outlive it.
    pub(super) fn netlink(&self) -> Netlink {
        self.netlink.share()
    }

    /// Sends no super-frames from an interface.
    pub(super) async fn single_packets(&self, interface: &str) -> Result<(), LabError> {
        let place = || format!("host {}, {interface}", self.name);
        let index = self.netlink.index(interface).await;
        let index = index.map_err(|e| LabError::step(place(), "find it", e))?;
        let set = self.netlink.offload(index, false).await;
        set.map_err(|e| LabError::step(place(), "turn its super-frames off", e))
    }

    async fn apply(&self, settings: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, LabError> {
        if settings.is_empty() {
            return Ok(settings);
        }
        let place = format!("host {}", self.name);
        let applied = self.namespace.enter(move || sysctl::apply(&settings)).await;
        applied.map_err(|e| LabError::step(&place, "enter its namespace", e))?.map_err(|e| {
            let message = format!("{place}: {e}");
            match e {
                SysctlError::NotNetwork(_) => LabError::usage(message),
                SysctlError::Unknown(_) | SysctlError::Refused { .. } => LabError::machine(message),
            }
        })
    }
}

/// Keeps the calling thread's namespace, which is new, from saying anything on a link of its own accord: what a capture
/// shows is then what the programs did.
pub(super) fn quieten(ipv6: bool) -> io::Result<()> {
    let settings: &[(&str, &str)] =
        if ipv6 { &[("accept_ra", "0"), ("router_solicitations", "0")] } else { &[("disable_ipv6", "1")] };
    for (name, value) in settings {
        match std::fs::write(format!("/proc/sys/net/ipv6/conf/default/{name}"), value) {
            // A kernel without IPv6 is quiet.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !ipv6 => {}
            done => done?,
        }
    }
    Ok(())
}
