//! What carries RDMA on each side of a scenario: most often the same on both.

use std::fmt;

use rdma_http::fabric::FabricKind;
use serde::{Deserialize, Serialize};

use super::Scenario;

/// The fabric of each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fabrics {
    /// The serving side's.
    pub server: FabricKind,
    /// The asking side's.
    pub client: FabricKind,
}

impl Fabrics {
    /// The same on both sides.
    pub fn both(fabric: FabricKind) -> Self {
        Self { server: fabric, client: fabric }
    }

    /// A scenario's, where `fabric` was asked for: a scenario about two fabrics names them itself.
    pub fn of(scenario: &Scenario, fabric: FabricKind) -> Self {
        Self {
            server: scenario.server.fabric.unwrap_or(fabric),
            client: scenario.client.fabric.unwrap_or(fabric),
        }
    }

    /// Whether the two understand each other: soft and siw are both iWARP, rxe is RoCEv2.
    pub fn interoperate(self) -> bool {
        (self.server == FabricKind::Rxe) == (self.client == FabricKind::Rxe)
    }

    /// What the lab's hosts need devices of; `soft` needs none.
    pub fn device(self) -> FabricKind {
        match self {
            Self { server: FabricKind::Soft, client } => client,
            Self { server, .. } => server,
        }
    }
}

/// `siw`, or `siw-soft` for a server on siw and a client on soft; as in the names of goldens.
impl fmt::Display for Fabrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, client } = self;
        if server == client { write!(f, "{server}") } else { write!(f, "{server}-{client}") }
    }
}

#[cfg(test)]
mod tests {
    use FabricKind::{Rxe, Siw, Soft};

    use super::*;

    #[test]
    fn two_sides_have_a_name_a_device_and_a_language() {
        let table = [
            (Soft, Soft, "soft", Soft, true),
            (Siw, Siw, "siw", Siw, true),
            (Siw, Soft, "siw-soft", Siw, true),
            (Soft, Siw, "soft-siw", Siw, true),
            (Rxe, Rxe, "rxe", Rxe, true),
            (Rxe, Soft, "rxe-soft", Rxe, false),
            (Siw, Rxe, "siw-rxe", Siw, false),
        ];
        for (server, client, name, device, understand) in table {
            let fabrics = Fabrics { server, client };
            assert_eq!(
                (fabrics.to_string().as_str(), fabrics.device(), fabrics.interoperate()),
                (name, device, understand)
            );
        }
    }
}
