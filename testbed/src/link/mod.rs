//! The user-space link emulator, and netem where the kernel has it.
//!
//! A link is two directions. For each, [`scheduler`] decides when a frame leaves, [`relay`] moves it from one host's
//! device to the other's at that time, and [`ring`] holds it until then.

mod alarm;
pub mod capture;
mod drain;
pub mod netem;
pub mod packet;
pub mod port;
pub mod relay;
pub mod ring;
pub mod scheduler;
pub mod tap;
pub mod vnet;
mod waiter;

use crate::topology::Impairment;

/// A slower link than this gets frames of one packet each: a super-frame would hold it up for more than half a
/// millisecond, and everything behind it.
const OFFLOAD_FROM_RATE: u64 = 1_000_000_000;
/// So does a queue that holds fewer than four super-frames.
const OFFLOAD_FROM_QUEUE: u64 = 4 * 65_536;

/// Whether frames in this direction may be super-frames of up to 64 KiB. Not where something happens to single packets, and
/// not where a super-frame is large against the rate or the queue.
pub fn may_offload(impairment: &Impairment) -> bool {
    let Impairment { loss, reorder, duplicate, corrupt, .. } = impairment;
    [loss, reorder, duplicate, corrupt].into_iter().all(|p| *p <= 0.0)
        && impairment.rate.is_none_or(|rate| rate >= OFFLOAD_FROM_RATE)
        && impairment.queue.is_none_or(|queue| queue >= OFFLOAD_FROM_QUEUE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_frames_only_where_they_do_no_harm() {
        let fat = Impairment { rate: Some(10_000_000_000), queue: Some(62_500_000), ..Default::default() };
        assert!(may_offload(&Impairment::default()));
        assert!(may_offload(&fat));
        assert!(!may_offload(&Impairment { loss: 0.001, ..fat.clone() }));
        assert!(!may_offload(&Impairment { rate: Some(100_000_000), ..fat.clone() }));
        assert!(!may_offload(&Impairment { queue: Some(100_000), ..fat }));
    }
}
