//! RDMA devices on a host's interfaces: made, listed and deleted over NETLINK_RDMA, and waited for until they can be used.
//!
//! ```text
//! device   one device, from its making to its deletion
//! ├─ socket   requests and answers on a netlink socket of the host's namespace
//! │  └─ message   their bytes
//! ├─ sysfs    a port's state and its GIDs
//! └─ events   the kernel's word that either has changed
//! ```
//! Source: Linux `include/uapi/rdma/rdma_netlink.h`, `drivers/infiniband/core/nldev.c`.

mod device;
mod error;
mod events;
mod message;
mod socket;
mod sysfs;

pub(super) use device::Device;
pub(super) use error::RdmaError;
pub use events::Events;
pub(super) use socket::Socket;
pub use sysfs::{gids, state};

use rdma_http::fabric::FabricKind;

/// A kind of device, as the kernel calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Software iWARP.
    Siw,
    /// Software RoCEv2.
    Rxe,
}

impl Kind {
    /// What a fabric needs on every interface; nothing where it does without the kernel.
    pub(super) fn of(fabric: FabricKind) -> Option<Self> {
        match fabric {
            FabricKind::Soft => None,
            FabricKind::Siw => Some(Self::Siw),
            FabricKind::Rxe => Some(Self::Rxe),
        }
    }

    /// The type in `rdma link add NAME type TYPE`.
    fn link_type(self) -> &'static str {
        match self {
            Self::Siw => "siw",
            Self::Rxe => "rxe",
        }
    }

    /// The module that has it.
    fn module(self) -> &'static str {
        match self {
            Self::Siw => "siw",
            Self::Rxe => "rdma_rxe",
        }
    }
}
