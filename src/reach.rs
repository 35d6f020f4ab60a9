//! Whom a side connects to on its peer's word: the same rule for the server, which is told an address by a request, and for
//! the client, which is told one by a response (`docs/protocol.md`, section 6). Without it either could be made to talk to
//! others.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Ports below this belong to services that were never meant to be spoken to so.
const FIRST_PORT: u16 = 1024;

/// Whether `peer`, who is at the other end of the HTTP connection, may make us connect to `to`: to its own address, or into
/// one of the networks that are allowed. IPv4-mapped addresses are the IPv4 addresses that they stand for.
pub(crate) fn allowed(peer: IpAddr, to: SocketAddr, networks: &[IpNet]) -> bool {
    let ip = to.ip().to_canonical();
    let reachable = !ip.is_unspecified() && !ip.is_multicast() && to.port() >= FIRST_PORT;
    reachable && (ip == peer.to_canonical() || networks.iter().any(|network| network.contains(&ip)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_peer_and_the_list_are_connected_to() {
        let allows = |networks: &[IpNet], peer: &str, to: &str| {
            allowed(peer.parse().unwrap(), to.parse().unwrap(), networks)
        };
        assert!(allows(&[], "10.0.0.5", "10.0.0.5:3242"));
        assert!(allows(&[], "::ffff:10.0.0.5", "10.0.0.5:3242"));
        assert!(allows(&[], "10.0.0.5", "[::ffff:10.0.0.5]:3242"));
        assert!(!allows(&[], "10.0.0.5", "10.0.0.6:3242"));
        assert!(!allows(&[], "10.0.0.5", "[::ffff:10.0.0.6]:3242"));
        assert!(!allows(&[], "10.0.0.5", "10.0.0.5:25"));
        let networks = ["10.0.1.0/24".parse().unwrap(), "0.0.0.0/0".parse().unwrap()];
        assert!(allows(&networks, "::1", "10.0.1.6:3242"));
        assert!(!allows(&networks, "::1", "0.0.0.0:3242"));
        assert!(!allows(&networks, "::1", "224.0.0.1:3242"));
        assert!(!allows(&networks, "::1", "[2001:db8::1]:3242"));
    }
}
