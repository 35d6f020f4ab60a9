//! What carries RDMA, as an option's value.

use clap::ValueEnum;
use rdma_http::fabric::FabricKind;

/// What carries RDMA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Fabric {
    /// Our own iWARP over TCP sockets; needs nothing of the kernel.
    #[default]
    Soft,
    /// The kernel's software iWARP.
    Siw,
    /// The kernel's software RoCE.
    Rxe,
}

impl From<Fabric> for FabricKind {
    fn from(fabric: Fabric) -> Self {
        match fabric {
            Fabric::Soft => Self::Soft,
            Fabric::Siw => Self::Siw,
            Fabric::Rxe => Self::Rxe,
        }
    }
}
