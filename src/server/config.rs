//! What the layer may do, and its limits.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::flow::{Limits, MOST_WINDOW};
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
    /// For each wait for a client in a transfer, and for the next part of a request's body.
    pub stall_timeout: Duration,
    /// Bytes a second that a client must move while it is waited for, over each `stall_timeout` of waiting.
    pub min_rate: u64,
    /// Clients that may wait to be let in, having been introduced.
    pub max_introductions: usize,
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
            min_rate: 100,
            max_introductions: 4096,
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
        let window = self.window.min(MOST_WINDOW);
        Limits { chunk: self.chunk, window, stall: self.stall_timeout, rate: self.min_rate }
    }

    /// Whether a request from `peer` may make us connect to `to` (`docs/protocol.md`, section 6).
    pub fn allows(&self, peer: IpAddr, to: SocketAddr) -> bool {
        crate::reach::allowed(peer, to, &self.allow)
    }
}
