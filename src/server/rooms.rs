//! Room for HTTP connections: so many in all, so many for one address. Where there is none, a new connection takes the place
//! of the one that has waited longest for a request; so nobody keeps others out by doing nothing.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Metrics;

/// The room that there is. Clones share it.
#[derive(Clone)]
pub(super) struct Rooms(Arc<Shared>);

struct Shared {
    most: usize,
    most_per_peer: usize,
    metrics: Option<Metrics>,
    house: Mutex<House>,
    /// A connection has ended, or could be.
    changed: Notify,
}

#[derive(Default)]
struct House {
    here: usize,
    // Holds the addresses that have connections only.
    by_peer: HashMap<IpAddr, usize>,
    /// Those that wait for a request, the longest first.
    idle: BTreeMap<u64, (IpAddr, Arc<Notify>)>,
    /// How many were told to go and stay, because they had a request by then.
    stayed: u64,
    next: u64,
}

/// One connection's; dropping it makes room.
pub(super) struct Room {
    shared: Arc<Shared>,
    peer: IpAddr,
    told_to_go: Arc<Notify>,
    doing: Mutex<Doing>,
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Waits for a request; its place among those that do.
    Idle(u64),
    /// A part of a request's head has come.
    Head(u64),
    /// Answers a request.
    Exchange,
    /// Has answered; the last bytes may be on their way.
    Flush,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl House {
    /// Takes out whoever has waited longest, of one address or of all.
    fn longest(&mut self, peer: Option<IpAddr>) -> Option<Arc<Notify>> {
        let of = |(at, (address, _)): (&u64, &(IpAddr, Arc<Notify>))| {
            peer.is_none_or(|peer| peer == *address).then_some(*at)
        };
        let at = self.idle.iter().find_map(of)?;
        self.idle.remove(&at).map(|(_, told_to_go)| told_to_go)
    }
}

impl Rooms {
    pub(super) fn new(most: usize, most_per_peer: usize, metrics: Option<Metrics>) -> Self {
        let (house, changed) = (Mutex::default(), Notify::new());
        Self(Arc::new(Shared { most, most_per_peer, metrics, house, changed }))
    }

    /// Room for a connection from `peer`, once there is some. `None`: that address has all that it may, and all of them are
    /// busy.
    pub(super) async fn enter(&self, peer: IpAddr) -> Option<Room> {
        let (shared, peer) = (&self.0, peer.to_canonical());
        let mut met = false;
        let mut asked = None;
        loop {
            let mut changed = pin!(shared.changed.notified());
            changed.as_mut().enable();
            {
                let mut house = lock(&shared.house);
                let its_own = house.by_peer.get(&peer).copied().unwrap_or(0);
                let (limit, among) = if its_own >= shared.most_per_peer && shared.most_per_peer < shared.most
                {
                    ("max-connections-per-peer", Some(peer))
                } else if house.here >= shared.most {
                    ("max-connections", None)
                } else {
                    return Some(self.room(&mut house, peer));
                };
                if !std::mem::replace(&mut met, true)
                    && let Some(metrics) = &shared.metrics
                {
                    metrics.limited(limit);
                }
                if asked != Some(house.stayed) {
                    match house.longest(among) {
                        Some(other) => {
                            other.notify_one();
                            asked = Some(house.stayed);
                        }
                        None if among.is_some() => return None,
                        None => {}
                    }
                }
            }
            changed.await;
        }
    }

    fn room(&self, house: &mut House, peer: IpAddr) -> Room {
        let shared = self.0.clone();
        house.here += 1;
        *house.by_peer.entry(peer).or_insert(0) += 1;
        if let Some(metrics) = &shared.metrics {
            metrics.arrived();
        }
        let told_to_go = Arc::new(Notify::new());
        let doing = Mutex::new(Doing::Idle(house.wait(peer, &told_to_go)));
        Room { shared, peer, told_to_go, doing }
    }
}

impl House {
    fn wait(&mut self, peer: IpAddr, told_to_go: &Arc<Notify>) -> u64 {
        self.next += 1;
        self.idle.insert(self.next, (peer, told_to_go.clone()));
        self.next
    }
}

impl Room {
    /// A limit was met on this connection.
    pub(super) fn limited(&self, setting: &'static str) {
        if let Some(metrics) = &self.shared.metrics {
            metrics.limited(setting);
        }
    }

    /// Resolves when the connection shall make room for another: it waits for a request. One that has had a request since it
    /// was told stays, and another goes.
    pub(super) async fn told_to_go(&self) {
        loop {
            self.told_to_go.notified().await;
            if matches!(*lock(&self.doing), Doing::Idle(_) | Doing::Head(_)) {
                return;
            }
            lock(&self.shared.house).stayed += 1;
            self.shared.changed.notify_waiters();
        }
    }

    /// A request's head is there.
    pub(super) fn begin(&self) {
        let before = std::mem::replace(&mut *lock(&self.doing), Doing::Exchange);
        if let Doing::Idle(at) | Doing::Head(at) = before {
            lock(&self.shared.house).idle.remove(&at);
        }
    }

    /// Its response has been handed over.
    pub(super) fn answered(&self) {
        let mut doing = lock(&self.doing);
        if *doing == Doing::Exchange {
            *doing = Doing::Flush;
        }
    }

    /// All that was written has gone.
    pub(super) fn flushed(&self) {
        let mut doing = lock(&self.doing);
        if *doing == Doing::Flush {
            *doing = Doing::Idle(lock(&self.shared.house).wait(self.peer, &self.told_to_go));
            drop(doing);
            self.shared.changed.notify_waiters();
        }
    }

    /// Bytes have come; whether they are the first of a head.
    pub(super) fn came(&self) -> bool {
        let mut doing = lock(&self.doing);
        match *doing {
            Doing::Idle(at) => {
                *doing = Doing::Head(at);
                true
            }
            _ => false,
        }
    }

    /// Whether a part of a head has come, and the rest is waited for.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(*lock(&self.doing), Doing::Head(_))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        {
            let mut house = lock(&self.shared.house);
            house.here -= 1;
            if let Some(count) = house.by_peer.get_mut(&self.peer) {
                *count -= 1;
                if *count == 0 {
                    house.by_peer.remove(&self.peer);
                }
            }
            let doing = self.doing.get_mut().unwrap_or_else(PoisonError::into_inner);
            if let Doing::Idle(at) | Doing::Head(at) = doing {
                house.idle.remove(at);
            }
        }
        if let Some(metrics) = &self.shared.metrics {
            metrics.left();
        }
        self.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test]
    async fn whoever_waits_longest_makes_room() {
        let rooms = Rooms::new(2, 2, None);
        let (first, second) = (rooms.enter(peer(1)).await.unwrap(), rooms.enter(peer(2)).await.unwrap());
        // The first is busy, so it is the second who goes.
        first.begin();
        let (third, ()) = tokio::join!(rooms.enter(peer(3)), async {
            second.told_to_go().await;
            drop(second);
        });
        let third = third.unwrap();
        // Once it has answered, and its bytes are gone, it is the first.
        third.begin();
        first.answered();
        let fourth = rooms.enter(peer(4));
        tokio::pin!(fourth);
        assert!(poll_once(&mut fourth).await.is_none(), "both are busy");
        first.flushed();
        let (fourth, ()) = tokio::join!(fourth, async {
            first.told_to_go().await;
            drop(first);
        });
        drop((third, fourth));
        assert_eq!(lock(&rooms.0.house).here, 0);
        assert!(lock(&rooms.0.house).by_peer.is_empty() && lock(&rooms.0.house).idle.is_empty());
    }

    #[tokio::test]
    async fn whoever_is_asked_while_it_is_told_to_go_stays() {
        let rooms = Rooms::new(2, 2, None);
        let (first, second) = (rooms.enter(peer(1)).await.unwrap(), rooms.enter(peer(2)).await.unwrap());
        let third = rooms.enter(peer(3));
        tokio::pin!(third);
        // It is told, and its request comes before it has heard.
        assert!(poll_once(&mut third).await.is_none());
        first.begin();
        let going = first.told_to_go();
        tokio::pin!(going);
        assert!(poll_once(&mut going).await.is_none(), "it has a request to answer");
        let (_third, ()) = tokio::join!(third, async {
            second.told_to_go().await;
            drop(second);
        });
    }

    /// What a future gives when it is asked once.
    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! {
            biased;
            given = future => Some(given),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn an_address_has_its_share() {
        let rooms = Rooms::new(10, 1, None);
        let first = rooms.enter(peer(1)).await.unwrap();
        first.begin();
        assert!(rooms.enter("::ffff:10.0.0.1".parse().unwrap()).await.is_none(), "it is busy");
        let _other = rooms.enter(peer(2)).await.unwrap();
        first.answered();
        first.flushed();
        let (next, ()) = tokio::join!(rooms.enter(peer(1)), async {
            first.told_to_go().await;
            drop(first);
        });
        assert!(next.is_some());
    }
}
