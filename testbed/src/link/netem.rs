//! What is sent to the kernel to have its netem queueing discipline impair what leaves an interface.
//!
//! Source: Linux `include/uapi/linux/pkt_sched.h` (`struct tc_netem_qopt`, `TCA_NETEM_*`) and `net/sched/sch_netem.c`.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use crate::topology::Impairment;

const TCA_OPTIONS: u16 = 2;
const TCA_NETEM_REORDER: u16 = 3;
const TCA_NETEM_CORRUPT: u16 = 4;
const TCA_NETEM_RATE: u16 = 6;
const TCA_NETEM_RATE64: u16 = 8;
const TCA_NETEM_LATENCY64: u16 = 10;
const TCA_NETEM_JITTER64: u16 = 11;
const TCA_NETEM_PRNG_SEED: u16 = 14;

/// Nanoseconds of a tick, in which the fixed structure counts time (`PSCHED_SHIFT`).
const TICK: u128 = 64;
/// netem's own default, below which no limit is set: it bounds memory, not a queue.
const LEAST_LIMIT: u64 = 1_000;
/// Packets where nothing says how many bytes may be under way.
const UNBOUNDED_LIMIT: u32 = 1 << 20;
/// Ethernet's header.
const FRAME_HEADER: u64 = 14;

/// The request (RTM_NEWQDISC) that makes netem the root queueing discipline of the interface `index` of this MTU, or
/// changes the one that is there.
pub fn message(index: u32, impairment: &Impairment, mtu: u32, seed: u64, is_there: bool) -> TcMessage {
    let mut message = TcMessage::default();
    // Interface indices are positive and small; netlink has them signed here.
    message.header.index = index as i32;
    message.header.parent = TcHandle::ROOT;
    message.attributes = vec![
        TcAttribute::Kind("netem".to_owned()),
        TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options(impairment, mtu, seed, is_there))),
    ];
    message
}

/// The options: a fixed structure, then attributes. Those that an impairment does not have are left out for a new
/// discipline; one that is there keeps what is left out, so to change it they are set to nothing.
fn options(impairment: &Impairment, mtu: u32, seed: u64, is_there: bool) -> Vec<u8> {
    let Impairment { delay, jitter, rate, loss, reorder, duplicate, corrupt, .. } = impairment;
    let delay = delay.as_nanos();
    // Without a table of a distribution netem's is uniform, and its deviation is its half width by the root of 3.
    let jitter = (jitter.as_nanos() as f64 * 3_f64.sqrt()).round() as u128;
    let ticks = |nanos: u128| u32::try_from(nanos / TICK).unwrap_or(u32::MAX);

    let mut bytes = Vec::with_capacity(160);
    let gap = u32::from(*reorder > 0.0);
    let fixed = [
        ticks(delay),
        limit(impairment, mtu),
        probability(*loss),
        gap,
        probability(*duplicate),
        ticks(jitter),
    ];
    fixed.iter().for_each(|field| bytes.extend(field.to_ne_bytes()));
    if *reorder > 0.0 {
        attribute(&mut bytes, TCA_NETEM_REORDER, &words(&[probability(*reorder), 0]));
    }
    if *corrupt > 0.0 || is_there {
        attribute(&mut bytes, TCA_NETEM_CORRUPT, &words(&[probability(*corrupt), 0]));
    }
    if rate.is_some() || is_there {
        let rate = rate.map_or(0, |rate| (rate / 8).max(1));
        let narrow = u32::try_from(rate).unwrap_or_else(|_| {
            attribute(&mut bytes, TCA_NETEM_RATE64, &rate.to_ne_bytes());
            u32::MAX
        });
        // No overhead for each packet, no cells.
        attribute(&mut bytes, TCA_NETEM_RATE, &words(&[narrow, 0, 0, 0]));
    }
    // The exact times, for kernels since 4.15; others have the ticks.
    let nanos = |nanos: u128| i64::try_from(nanos).unwrap_or(i64::MAX).to_ne_bytes();
    attribute(&mut bytes, TCA_NETEM_LATENCY64, &nanos(delay));
    attribute(&mut bytes, TCA_NETEM_JITTER64, &nanos(jitter));
    // The same chances in every run, for kernels since 6.7.
    attribute(&mut bytes, TCA_NETEM_PRNG_SEED, &seed.to_ne_bytes());
    bytes
}

/// Packets under way and waiting: what the rate puts into the delay, and the queue, in full frames. netem's default of
/// 1,000 would throttle a long fat link without a word.
fn limit(impairment: &Impairment, mtu: u32) -> u32 {
    let (Some(rate), Some(queue)) = (impairment.rate, impairment.queue) else { return UNBOUNDED_LIMIT };
    let stay = (impairment.delay + impairment.jitter * 2).as_nanos();
    let flight = u64::try_from(u128::from(rate) * stay / 8_000_000_000).unwrap_or(u64::MAX);
    let frames = flight.saturating_add(queue).div_ceil(u64::from(mtu) + FRAME_HEADER);
    u32::try_from(frames.max(LEAST_LIMIT)).unwrap_or(u32::MAX)
}

/// A probability as the kernel counts it: 2^32 - 1 is certainty.
fn probability(p: f64) -> u32 {
    (p.clamp(0.0, 1.0) * f64::from(u32::MAX)).round_ties_even() as u32
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// A netlink attribute: its length, its type, its value, all of them a multiple of 4 bytes here.
fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = (4 + value.len()) as u16;
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
}

// The fixtures are of a little-endian machine.
#[cfg(all(test, target_endian = "little"))]
mod tests {
    use std::time::Duration;

    use netlink_packet_core::{Emitable as _, NetlinkMessage};
    use netlink_packet_route::RouteNetlinkMessage;

    use super::*;

    /// What iproute2 6.1 sends for `tc qdisc add dev veth0 root netem delay 25ms rate 10gbit limit 84000`, from
    /// `strace -e trace=sendmsg -e write=all`; without the netlink header, from the address family on.
    const WAN: [u8; 80] = [
        0x00, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff,
        0xff, //
        0x00, 0x00, 0x00, 0x00, 0x0a, 0x00, 0x01, 0x00, 0x6e, 0x65, 0x74, 0x65, 0x6d, 0x00, 0x00,
        0x00, //
        0x30, 0x00, 0x02, 0x00, 0xe1, 0xf5, 0x05, 0x00, 0x20, 0x48, 0x01, 0x00, 0x00, 0x00, 0x00,
        0x00, //
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x14, 0x00, 0x06,
        0x00, //
        0x80, 0x7c, 0x81, 0x4a, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    ];

    /// The same of `... netem delay 25ms 1ms loss 1% duplicate 2% corrupt 3% reorder 4% rate 100gbit limit 1000`, from the
    /// options' first field on.
    const EVERYTHING: [u8; 80] = [
        0xe1, 0xf5, 0x05, 0x00, 0xe8, 0x03, 0x00, 0x00, 0x29, 0x5c, 0x8f, 0x02, 0x01, 0x00, 0x00,
        0x00, //
        0x52, 0xb8, 0x1e, 0x05, 0x09, 0x3d, 0x00, 0x00, 0x0c, 0x00, 0x03, 0x00, 0xa4, 0x70, 0x3d,
        0x0a, //
        0x00, 0x00, 0x00, 0x00, 0x0c, 0x00, 0x04, 0x00, 0x7b, 0x14, 0xae, 0x07, 0x00, 0x00, 0x00,
        0x00, //
        0x0c, 0x00, 0x08, 0x00, 0x00, 0xdd, 0x0e, 0xe9, 0x02, 0x00, 0x00, 0x00, 0x14, 0x00, 0x06,
        0x00, //
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    ];

    /// LATENCY64, JITTER64 and PRNG_SEED, which that iproute2 doesn't send; laid out by hand from the header file.
    fn exact(latency: i64, jitter: i64, seed: u64) -> Vec<u8> {
        let mut bytes = vec![12, 0, 10, 0];
        bytes.extend(latency.to_le_bytes());
        bytes.extend([12, 0, 11, 0]);
        bytes.extend(jitter.to_le_bytes());
        bytes.extend([12, 0, 14, 0]);
        bytes.extend(seed.to_le_bytes());
        bytes
    }

    #[test]
    fn a_wan_is_what_iproute2_sends_and_the_exact_times() {
        let impairment = Impairment {
            delay: Duration::from_millis(25),
            rate: Some(10_000_000_000),
            // With the 31.25 MB under way: 84,000 frames of 1,514 bytes.
            queue: Some(84_000 * 1_514 - 31_250_000),
            ..Default::default()
        };
        let message = message(3, &impairment, 1_500, 77, false);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let mut expected = WAN.to_vec();
        expected.extend(exact(25_000_000, 0, 77));
        // The options' attribute is longer by what was added.
        expected[32] += 36;
        assert_eq!(bytes, expected);
    }

    #[test]
    fn everything_at_once_too() {
        let impairment = Impairment {
            delay: Duration::from_millis(25),
            // The standard deviation of a uniform millisecond to either side.
            jitter: Duration::from_nanos(577_350),
            rate: Some(100_000_000_000),
            queue: Some(0),
            loss: 0.01,
            duplicate: 0.02,
            corrupt: 0.03,
            reorder: 0.04,
        };
        let mut expected = EVERYTHING.to_vec();
        // 100 Gbit/s over 25 ms and twice the jitter.
        let limit = (100_000_000_000_u64 / 8 * 26_154_700 / 1_000_000_000).div_ceil(1_514) as u32;
        expected[4..8].copy_from_slice(&limit.to_le_bytes());
        expected.extend(exact(25_000_000, 1_000_000, 1));
        assert_eq!(options(&impairment, 1_500, 1, false), expected);
    }

    #[test]
    fn the_limit_follows_the_bandwidth_delay_product() {
        let wan = Impairment {
            delay: Duration::from_millis(50),
            rate: Some(10_000_000_000),
            queue: Some(0),
            ..Default::default()
        };
        assert_eq!(limit(&wan, 1_500), 41_282);
        assert_eq!(limit(&Impairment { rate: Some(1_000_000), ..wan.clone() }, 1_500), 1_000);
        assert_eq!(limit(&Impairment { queue: None, ..wan }, 1_500), UNBOUNDED_LIMIT);
    }

    #[test]
    fn what_was_there_is_taken_back_where_it_is_left_out() {
        let bytes = options(&Impairment::default(), 1_500, 1, true);
        // What iproute2 sends for `corrupt 0` and `rate 0`, in the layout of the header file.
        let mut taken_back = vec![12, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        taken_back.extend([20, 0, 6, 0]);
        taken_back.extend([0; 16]);
        assert_eq!(bytes[24..24 + taken_back.len()], taken_back);
    }

    #[test]
    fn it_is_a_request_for_a_queueing_discipline() {
        let message = message(3, &Impairment::default(), 1_500, 1, false);
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.finalize();
        // RTM_NEWQDISC
        assert_eq!(request.header.message_type, 36);
    }
}
