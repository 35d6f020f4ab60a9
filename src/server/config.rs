//! What the layer may do, and its limits.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::flow::Limits;
use crate::memory::Strategy;

/// Settings of [`RdmaLayer`](super::RdmaLayer).
#[derive(Clone, Debug)]
pub struct RdmaConfig {
    /// Bytes of one Write and of one registered buffer.
    pub chunk: usize,
    /// Writes in flight, and so buffers registered, for one transfer.
    pub window: usize,
    /// Bytes registered at once in all.
    pub max_registered: u64,
    /// Bytes registered at once for one peer address.
    pub max_registered_per_peer: u64,
    /// For making an RDMA connection.
    pub connect_timeout: Duration,
    /// For one Write, or the Send, to be taken by the peer.
    pub stall_timeout: Duration,
    /// Networks that the server may connect to besides the address that the request came from.
    pub allow: Vec<IpNet>,
    /// Whether to ask for CRC32c on iWARP.
    pub crc: bool,
    /// How bytes get registered.
    pub memory: Strategy,
}

impl Default for RdmaConfig {
    fn default() -> Self {
        Self {
            chunk: 1 << 20,
            window: 8,
            max_registered: 1 << 30,
            max_registered_per_peer: 256 << 20,
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            allow: Vec::new(),
            crc: true,
            memory: Strategy::default(),
        }
    }
}

impl RdmaConfig {
    /// Bytes in flight for one transfer, and so registered, at most.
    pub fn window_bytes(&self) -> u64 {
        (self.chunk as u64).saturating_mul(self.window as u64)
    }

    /// The bounds of one transfer.
    pub fn limits(&self) -> Limits {
        Limits { chunk: self.chunk, window: self.window, stall: self.stall_timeout }
    }

    /// Whether a request from `peer` may make us connect to `to` (`docs/protocol.md`, section 5).
    pub fn allows(&self, peer: IpAddr, to: SocketAddr) -> bool {
        let ip = to.ip().to_canonical();
        let reachable = !ip.is_unspecified() && !ip.is_multicast() && to.port() >= 1024;
        reachable && (ip == peer.to_canonical() || self.allow.iter().any(|net| net.contains(&ip)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_peer_and_the_list_are_connected_to() {
        let mut config = RdmaConfig::default();
        let allows = |config: &RdmaConfig, peer: &str, to: &str| {
            config.allows(peer.parse().unwrap(), to.parse().unwrap())
        };
        assert!(allows(&config, "10.0.0.5", "10.0.0.5:3242"));
        assert!(allows(&config, "::ffff:10.0.0.5", "10.0.0.5:3242"));
        assert!(!allows(&config, "10.0.0.5", "10.0.0.6:3242"));
        assert!(!allows(&config, "10.0.0.5", "10.0.0.5:25"));
        config.allow = vec!["10.0.1.0/24".parse().unwrap(), "0.0.0.0/0".parse().unwrap()];
        assert!(allows(&config, "::1", "10.0.1.6:3242"));
        assert!(!allows(&config, "::1", "0.0.0.0:3242"));
        assert!(!allows(&config, "::1", "224.0.0.1:3242"));
        assert!(!allows(&config, "::1", "[2001:db8::1]:3242"));
    }
}
