//! Addresses: what a host may have, and which ones are given to those who have none.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// Why a host cannot have this address; `None` if it can.
pub(super) fn unusable(address: IpNet) -> Option<&'static str> {
    let host = address.addr();
    if host.is_unspecified() {
        return Some("it means \"any address\"");
    }
    if host.is_loopback() {
        return Some("loopback addresses never leave a host");
    }
    if host.is_multicast() || host == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some("it is no address of a single host");
    }
    if address.prefix_len() >= address.max_prefix_len() {
        return Some("its subnet has no room for the other end");
    }
    // A subnet of two has neither (RFC 3021 for IPv4, RFC 6164 for IPv6).
    if address.prefix_len() + 1 < address.max_prefix_len() {
        if host == address.network() {
            return Some("it is the subnet's own address");
        }
        if host.is_ipv4() && host == address.broadcast() {
            return Some("it is the subnet's broadcast address");
        }
    }
    None
}

/// The first address of `given`'s subnet that is not `given`.
pub(super) fn partner(given: IpNet) -> Option<IpNet> {
    let host = given.hosts().find(|host| *host != given.addr())?;
    IpNet::new(host, given.prefix_len()).ok()
}

/// Whether the two have an address in common.
pub(super) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.trunc().contains(&b.trunc()) || b.trunc().contains(&a.trunc())
}

/// Hands out `10.10.0.0/24`, `10.10.1.0/24` … `10.255.255.0/24`, leaving out what is taken. The same file gets the same
/// addresses in every run.
pub(super) struct Pool {
    taken: Vec<IpNet>,
    subnets: Box<dyn Iterator<Item = Ipv4Net>>,
}

impl Pool {
    pub(super) fn new(taken: Vec<IpNet>) -> Self {
        let subnets = (10..=255_u8).flat_map(|second| {
            (0..=255_u8).filter_map(move |third| Ipv4Net::new(Ipv4Addr::new(10, second, third, 0), 24).ok())
        });
        Self { taken, subnets: Box::new(subnets) }
    }

    /// The addresses of a link's two ends.
    pub(super) fn next_pair(&mut self) -> Option<[IpNet; 2]> {
        let taken = &self.taken;
        let subnet =
            self.subnets.find(|subnet| !taken.iter().any(|taken| overlap(*taken, IpNet::V4(*subnet))))?;
        let mut hosts = subnet.hosts().filter_map(|host| IpNet::new(host.into(), 24).ok());
        Some([hosts.next()?, hosts.next()?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_cannot_have_every_address() {
        for good in ["10.0.0.1/24", "192.0.2.0/31", "192.0.2.1/31", "fd00::1/64"] {
            assert_eq!(unusable(net(good)), None, "{good}");
        }
        for bad in [
            "10.0.0.0/24",
            "10.0.0.255/24",
            "127.0.0.1/8",
            "0.0.0.0/0",
            "224.0.0.1/24",
            "10.0.0.1/32",
            "fd00::/64",
        ] {
            assert!(unusable(net(bad)).is_some(), "{bad}");
        }
    }

    #[test]
    fn the_other_end_gets_the_first_free_address() {
        assert_eq!(partner(net("10.0.0.1/24")), Some(net("10.0.0.2/24")));
        assert_eq!(partner(net("10.0.0.9/24")), Some(net("10.0.0.1/24")));
        assert_eq!(partner(net("192.0.2.1/31")), Some(net("192.0.2.0/31")));
    }

    #[test]
    fn the_pool_leaves_out_what_is_taken() {
        let mut pool = Pool::new(vec![net("10.10.0.7/16"), net("10.11.0.1/24")]);
        assert_eq!(pool.next_pair(), Some([net("10.11.1.1/24"), net("10.11.1.2/24")]));
        assert_eq!(pool.next_pair(), Some([net("10.11.2.1/24"), net("10.11.2.2/24")]));
        assert_eq!(Pool::new(vec![net("10.0.0.1/8")]).next_pair(), None);
    }
}
