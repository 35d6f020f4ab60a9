//! A checked [`Topology`] -> a [`Plan`]: MAC addresses, neighbours, bytes of queues and TCP's windows. Nothing can go
//! wrong here, and the same topology gives the same plan in every run.

use std::collections::BTreeMap;

use rdma_http::fabric::FabricKind;

use super::units::{Queue, Rate, Time};
use super::{
    Direction, Endpoint, Host, HostPlan, Impairment, InterfacePlan, Link, LinkPlan, Mac, Plan, Topology,
};

/// A flow over a link of no length still comes in bursts, so a queue of "1 bdp" holds at least this long of its rate.
const SHORTEST_QUEUE: Time = Time(std::time::Duration::from_millis(2));
/// And at least this many full frames, for a slow link.
const FEWEST_FRAMES: u64 = 4;
/// An unlimited link is taken to carry this much when TCP's windows are sized.
const UNLIMITED: Rate = Rate(40_000_000_000);
/// What the kernel takes by itself where memory is plentiful (Documentation/networking/ip-sysctl.rst): least, initial and
/// largest.
const TCP_RMEM: [u64; 3] = [4_096, 131_072, 6_291_456];
const TCP_WMEM: [u64; 3] = [4_096, 16_384, 4_194_304];
/// The largest window that TCP can announce (RFC 7323, section 2.3), and its bookkeeping.
const LARGEST_BUFFER: u64 = 1 << 30;

impl Direction {
    /// Bytes of the queue, on a link of this `mtu` whose other direction has the delay `back`.
    pub(super) fn queue_bytes(&self, back: Time, mtu: u32) -> Option<u64> {
        match self.queue? {
            Queue::Bytes(size) => Some(size.0),
            Queue::MilliBdp(milli) => {
                let rate = self.rate?;
                let bdp = product(rate, Time(self.delay.0 + back.0));
                let queue = u128::from(bdp) * u128::from(milli) / 1_000;
                let queue = u64::try_from(queue).unwrap_or(u64::MAX);
                Some(queue.max(product(rate, SHORTEST_QUEUE)).max(FEWEST_FRAMES * frame(mtu)))
            }
        }
    }

    pub(super) fn impairment(&self, back: Time, mtu: u32) -> Impairment {
        Impairment {
            delay: self.delay.0,
            jitter: self.jitter.0,
            rate: self.rate.map(|rate| rate.0),
            queue: self.queue_bytes(back, mtu),
            loss: self.loss.0,
            reorder: self.reorder.0,
            duplicate: self.duplicate.0,
            corrupt: self.corrupt.0,
        }
    }
}

/// Bytes of a full Ethernet frame, without preamble and FCS.
pub(super) fn frame(mtu: u32) -> u64 {
    u64::from(mtu) + 14
}

/// Bytes that `rate` carries in `time`.
fn product(rate: Rate, time: Time) -> u64 {
    u64::try_from(u128::from(rate.0) * time.0.as_nanos() / 8_000_000_000).unwrap_or(u64::MAX)
}

impl Topology {
    /// Decides what the file left open.
    pub fn plan(&self) -> Plan {
        Plan {
            name: self.name.clone(),
            description: self.description.clone(),
            fabric: FabricKind::default(),
            hosts: self.hosts.iter().map(|host| self.host(host)).collect(),
            links: self.links.iter().map(link).collect(),
        }
    }

    fn host(&self, host: &Host) -> HostPlan {
        let mut interfaces = Vec::new();
        let (mut rmem, mut wmem) = (TCP_RMEM[2], TCP_WMEM[2]);
        for (number, link) in self.links.iter().enumerate() {
            for (end, this) in link.ends.iter().enumerate() {
                if this.endpoint.host != host.name {
                    continue;
                }
                let other = &link.ends[1 - end];
                interfaces.push(InterfacePlan {
                    name: this.endpoint.interface.clone(),
                    mac: mac(number, end),
                    address: this.address,
                    mtu: link.mtu,
                    neighbors: vec![(other.address.addr(), mac(number, 1 - end))],
                });
                let (out, into) =
                    if end == 0 { (link.a_to_b, link.b_to_a) } else { (link.b_to_a, link.a_to_b) };
                rmem = rmem.max(buffer(into, out));
                wmem = wmem.max(buffer(out, into));
            }
        }
        let mut sysctls = BTreeMap::from([
            ("net.ipv4.tcp_rmem".to_owned(), format!("{} {} {rmem}", TCP_RMEM[0], TCP_RMEM[1])),
            ("net.ipv4.tcp_wmem".to_owned(), format!("{} {} {wmem}", TCP_WMEM[0], TCP_WMEM[1])),
            // Else a connection begins with what an earlier one learned, and no two runs are alike.
            ("net.ipv4.tcp_no_metrics_save".to_owned(), "1".to_owned()),
        ]);
        sysctls.extend(host.sysctls.clone());
        HostPlan { name: host.name.clone(), interfaces, sysctls }
    }
}

/// The socket buffer with which one flow fills `direction`: four times what is under way in a round trip.
///
/// Once two because the kernel counts a packet's memory, not its payload, and by default announces half of a receive
/// buffer as its window (`tcp_adv_win_scale`, ip-sysctl.rst); once two because congestion control and the receiver's
/// autotuning need room beyond the product to find it, and a queue of one product may fill behind it. So 10 Gbit/s over
/// a round trip of 50 ms, 62.5 MB, gives 250 MB. That is a bound, not an allocation: buffers grow with the flow.
fn buffer(direction: Direction, back: Direction) -> u64 {
    let round_trip = Time(direction.delay.0 + back.delay.0);
    product(direction.rate.unwrap_or(UNLIMITED), round_trip).saturating_mul(4).min(LARGEST_BUFFER)
}

/// Locally administered; numbered by link and end, so it is unique in the lab and the same in every run.
fn mac(link: usize, end: usize) -> Mac {
    let [.., high, low] = link.to_be_bytes();
    Mac([2, 0, 0, high, low, end as u8 + 1])
}

fn link(link: &Link) -> LinkPlan {
    let endpoint = |end: usize| -> Endpoint { link.ends[end].endpoint.clone() };
    LinkPlan {
        name: link.name.clone(),
        a: endpoint(0),
        b: endpoint(1),
        a_to_b: link.a_to_b.impairment(link.b_to_a.delay, link.mtu),
        b_to_a: link.b_to_a.impairment(link.a_to_b.delay, link.mtu),
        driver: link.driver,
    }
}
