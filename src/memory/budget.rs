//! How many bytes may be registered at once: for one peer, and in all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// A bound on registered memory. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: u64,
    per_peer: u64,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    total: u64,
    // Holds the peers that have something only, so it is no longer than there are transfers.
    by_peer: HashMap<IpAddr, u64>,
}

/// A share of a budget; dropping it gives it back.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    peer: IpAddr,
    bytes: u64,
}

/// The budget does not hold what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{asked} bytes asked for with {used} of {limit} registered {scope}; raise {setting}")]
pub struct Exhausted {
    asked: u64,
    used: u64,
    limit: u64,
    scope: &'static str,
    setting: &'static str,
}

impl Exhausted {
    /// The limit that was met, by the name of its flag.
    pub fn setting(&self) -> &'static str {
        self.setting.trim_start_matches('-')
    }
}

impl Budget {
    /// At most `total` bytes, and `per_peer` for any one address.
    pub fn new(total: u64, per_peer: u64) -> Self {
        Self(Arc::new(Shared { total, per_peer, used: Mutex::default() }))
    }

    /// Takes `bytes` for a transfer with `peer`, at once or not at all.
    pub fn reserve(&self, peer: IpAddr, bytes: u64) -> Result<Share, Exhausted> {
        let peer = peer.to_canonical();
        let shared = &*self.0;
        let mut used = shared.used.lock().unwrap_or_else(PoisonError::into_inner);
        let by_peer = used.by_peer.get(&peer).copied().unwrap_or(0);
        let refuse = |used, limit, scope, setting| Exhausted { asked: bytes, used, limit, scope, setting };
        let fits = |used: u64, limit: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        let Some(total) = fits(used.total, shared.total) else {
            return Err(refuse(used.total, shared.total, "in all", "--max-registered"));
        };
        let Some(by_peer) = fits(by_peer, shared.per_peer) else {
            return Err(refuse(by_peer, shared.per_peer, "for this peer", "--max-registered-per-peer"));
        };
        used.total = total;
        used.by_peer.insert(peer, by_peer);
        Ok(Share { budget: self.clone(), peer, bytes })
    }

    /// Bytes that are taken now.
    pub fn used(&self) -> u64 {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.budget.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.total = used.total.saturating_sub(self.bytes);
        if let Some(by_peer) = used.by_peer.get_mut(&self.peer) {
            *by_peer = by_peer.saturating_sub(self.bytes);
            if *by_peer == 0 {
                used.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_peer_cannot_take_more_than_its_share() {
        let budget = Budget::new(100, 60);
        let first = budget.reserve(peer(1), 60).unwrap();
        let error = budget.reserve("::ffff:10.0.0.1".parse().unwrap(), 1).unwrap_err().to_string();
        assert_eq!(
            error,
            "1 bytes asked for with 60 of 60 registered for this peer; raise --max-registered-per-peer"
        );
        assert!(budget.reserve(peer(2), 41).unwrap_err().to_string().contains("in all"));
        let second = budget.reserve(peer(2), 40).unwrap();
        drop((first, second));
        assert_eq!(budget.used(), 0);
        assert!(budget.0.used.lock().unwrap().by_peer.is_empty());
    }

    #[test]
    fn an_absurd_request_is_no_overflow() {
        let budget = Budget::new(u64::MAX, u64::MAX);
        let _one = budget.reserve(peer(1), 1).unwrap();
        assert!(budget.reserve(peer(1), u64::MAX).is_err());
    }
}
