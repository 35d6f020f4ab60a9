//! Which devices there are, and which one a fabric is.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::sys::{CmId, Context, Devices, PortAttributes, Transport};
use crate::fabric::{FabricError, FabricKind};

/// A device, as it was when it was asked for.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name, such as `siw-server`.
    pub name: String,
    /// The fabric that it is, if it is one of ours: an iWARP device counts as siw, an InfiniBand or RoCE one as rxe.
    pub kind: Option<FabricKind>,
    /// Work requests that one of its queues can hold.
    pub max_work_requests: u32,
    /// Entries that one of its completion queues can hold.
    pub max_completions: u32,
    /// Reads that a connection's peer may have outstanding at most (IRD).
    pub max_inbound_reads: u8,
    /// Reads that a connection may have outstanding at most (ORD).
    pub max_outbound_reads: u8,
    /// Its ports, the first of which is number 1.
    pub ports: Vec<Port>,
}

/// A port of a device.
#[derive(Clone, Debug)]
pub struct Port {
    /// Whether it carries traffic.
    pub state: PortState,
    /// The path MTU in bytes.
    pub mtu: u32,
    /// The longest message in bytes.
    pub max_message: u32,
    /// The GIDs that are set, each with its index in the port's table.
    pub gids: Vec<(usize, Ipv6Addr)>,
}

/// `ibv_port_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Carries traffic.
    Active,
    /// Does not; the verbs' number for why.
    Other(u32),
}

/// The machine's devices.
pub fn devices() -> Result<Vec<Device>, FabricError> {
    let devices = Devices::open().map_err(|error| FabricError::io("rdma_get_devices", error))?;
    devices.contexts().iter().map(describe).collect()
}

/// The fabric that a device is.
fn kind(context: &Context) -> Option<FabricKind> {
    match context.transport() {
        Transport::Iwarp => Some(FabricKind::Siw),
        Transport::Ib => Some(FabricKind::Rxe),
        Transport::Other => None,
    }
}

/// The device of a kind that one of this network namespace's addresses belongs to.
pub(super) fn find(kind: FabricKind) -> Result<(Arc<Devices>, Context), FabricError> {
    let devices =
        Devices::open().map_err(|error| FabricError::Invalid(missing(kind, &format!("{error}"))))?;
    let interfaces =
        nix::ifaddrs::getifaddrs().map_err(|error| FabricError::io("getifaddrs", error.into()))?;
    for interface in interfaces {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|&v4| SocketAddr::V4(v4.into()));
        let v6 = || address.as_sockaddr_in6().map(|&v6| SocketAddr::V6(v6.into()));
        let Some(mut address) = v4.or_else(v6) else { continue };
        address.set_port(0);
        // An address that no device has cannot be bound.
        let id = CmId::new().map_err(|error| FabricError::io("rdma_create_id", error))?;
        if id.bind(address).is_err() {
            continue;
        }
        let device = id.context(&devices).filter(|device| self::kind(device) == Some(kind));
        // The identifier goes before the list of devices may.
        drop(id);
        if let Some(device) = device {
            return Ok((devices, device));
        }
    }
    let names: Vec<String> = devices.contexts().iter().map(Context::name).collect();
    let there = match names.as_slice() {
        [] => "the kernel has no RDMA device".to_owned(),
        names => format!("no address of this network namespace is one's of {}", names.join(", ")),
    };
    Err(FabricError::Invalid(missing(kind, &there)))
}

fn missing(kind: FabricKind, why: &str) -> String {
    format!(
        "no {kind} device: {why}. `testbed up TOPOLOGY --fabric {kind}` makes a lab with them; on this machine \
         `rdma link add {kind}0 type {kind} netdev INTERFACE` does, as root, where the kernel has {kind}"
    )
}

pub(super) fn describe(context: &Context) -> Result<Device, FabricError> {
    let limits = context.limits().map_err(|error| FabricError::io("ibv_query_device", error))?;
    let ports = (1..=limits.ports).map(|number| {
        let attributes = context.port(number).map_err(|error| FabricError::io("ibv_query_port", error))?;
        let gids =
            gids(context, number, &attributes).map_err(|error| FabricError::io("ibv_query_gid", error))?;
        // IBV_PORT_ACTIVE is 4 (verbs.h).
        let state =
            if attributes.state == 4 { PortState::Active } else { PortState::Other(attributes.state) };
        Ok(Port { state, mtu: attributes.mtu, max_message: attributes.max_message, gids })
    });
    Ok(Device {
        name: context.name(),
        kind: kind(context),
        max_work_requests: limits.work_requests,
        max_completions: limits.completions,
        max_inbound_reads: limits.inbound_reads,
        max_outbound_reads: limits.outbound_reads,
        ports: ports.collect::<Result<_, FabricError>>()?,
    })
}

fn gids(context: &Context, port: u8, attributes: &PortAttributes) -> io::Result<Vec<(usize, Ipv6Addr)>> {
    let mut gids = Vec::new();
    for index in 0..attributes.gids {
        // An entry that is not set is zeros, or not there.
        let gid = match context.gid(port, index) {
            Ok(gid) => Ipv6Addr::from(gid),
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENODATA | nix::libc::EAGAIN)) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        if !gid.is_unspecified() {
            gids.push((index, gid));
        }
    }
    Ok(gids)
}
