//! When a frame leaves a link, decided without a clock: the caller says what time it is.
//!
//! A frame goes through a transmitter of a given rate, with a queue of bounded bytes before it, and then through a pipe of
//! a given delay. Everything after the transmitter (loss, jitter, reordering, duplication, corruption) is drawn from a
//! generator with a seed, so that one sequence of frames at one sequence of times has one outcome.

use crate::topology::Impairment;

/// Nanoseconds since an origin that the caller chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It found no room in the queue before the transmitter.
    QueueFull,
    /// It was sent and is lost on the way.
    Lost,
    /// It arrives.
    Deliver(Delivery),
}

/// How a frame arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// When it is handed to the other end.
    pub due: Nanos,
    /// It skips the delay, and so overtakes the frames that are under way. Otherwise frames arrive in their order.
    pub overtakes: bool,
    /// It arrives twice.
    pub twice: bool,
    /// A bit of it is flipped: this number modulo the frame's bits says which.
    pub flip: Option<u64>,
}

/// One direction of a link.
#[derive(Clone, Debug)]
pub struct Scheduler {
    rate: Option<u64>,
    queue: Option<u64>,
    delay: u64,
    jitter: u64,
    loss: f64,
    reorder: f64,
    duplicate: f64,
    corrupt: f64,
    random: fastrand::Rng,
    /// The transmitter is busy until then, and for `carry / rate` nanoseconds more.
    busy_until: u64,
    carry: u64,
    last_due: u64,
}

impl Scheduler {
    /// A direction with this impairment, its chances drawn from `seed`. A rate of zero counts as one bit per second.
    pub fn new(impairment: &Impairment, seed: u64) -> Self {
        let nanos =
            |d: std::time::Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4);
        Self {
            rate: impairment.rate.map(|r| r.max(1)),
            queue: impairment.queue,
            delay: nanos(impairment.delay),
            jitter: nanos(impairment.jitter),
            loss: impairment.loss,
            reorder: impairment.reorder,
            duplicate: impairment.duplicate,
            corrupt: impairment.corrupt,
            random: fastrand::Rng::with_seed(seed),
            busy_until: 0,
            carry: 0,
            last_due: 0,
        }
    }

    /// From `now` on it does this. Frames keep their order, so those that are under way are not overtaken when the delay
    /// becomes shorter; what waits for the rate waits for the new one. Chances go on being drawn where they were.
    pub fn change(&mut self, impairment: &Impairment, now: Nanos) {
        let waiting = self.waiting(now);
        let Self { random, last_due, .. } = self;
        *self = Self { random: random.clone(), last_due: *last_due, ..Self::new(impairment, 0) };
        if let Some(rate) = self.rate {
            let bits = u128::from(waiting) * 8 * u128::from(NANOS_PER_SECOND);
            let busy = u64::try_from(bits / u128::from(rate)).unwrap_or(u64::MAX / 4);
            self.busy_until = now.0.saturating_add(busy);
        }
    }

    /// A frame that takes `wire_bytes` on the wire enters at `now`, which never goes back.
    pub fn enter(&mut self, now: Nanos, wire_bytes: u64) -> Verdict {
        let Some(sent) = self.transmit(now.0, wire_bytes) else {
            return Verdict::QueueFull;
        };
        if self.chance(self.loss) {
            return Verdict::Lost;
        }
        let overtakes = self.chance(self.reorder);
        let due = if overtakes { sent } else { self.arrival(sent) };
        Verdict::Deliver(Delivery {
            due: Nanos(due),
            overtakes,
            twice: self.chance(self.duplicate),
            flip: self.chance(self.corrupt).then(|| self.random.u64(..)),
        })
    }

    /// Bytes that wait for the transmitter at `now`, the frame in transmission counting with what is left of it.
    pub fn waiting(&self, now: Nanos) -> u64 {
        let Some(rate) = self.rate else { return 0 };
        let busy = u128::from(self.busy_until.saturating_sub(now.0));
        u64::try_from(busy * u128::from(rate) / u128::from(8 * NANOS_PER_SECOND)).unwrap_or(u64::MAX)
    }

    /// When the frame's last bit is sent, or `None` if the queue has no room for it. A frame that finds the transmitter
    /// idle needs no room.
    fn transmit(&mut self, now: u64, wire_bytes: u64) -> Option<u64> {
        let Some(rate) = self.rate else { return Some(now) };
        if self.busy_until <= now {
            self.busy_until = now;
            self.carry = 0;
        } else if let Some(queue) = self.queue
            && self.waiting(Nanos(now)).saturating_add(wire_bytes) > queue
        {
            return None;
        }
        // The remainder is carried over, so that a busy transmitter is exact over any number of frames.
        let work = u128::from(wire_bytes) * u128::from(8 * NANOS_PER_SECOND) + u128::from(self.carry);
        let took = u64::try_from(work / u128::from(rate)).unwrap_or(u64::MAX / 4);
        self.carry = (work % u128::from(rate)) as u64;
        self.busy_until = self.busy_until.saturating_add(took);
        Some(self.busy_until)
    }

    /// When what was sent at `sent` arrives: jitter varies the delay, but never the order.
    fn arrival(&mut self, sent: u64) -> u64 {
        let mut due = sent.saturating_add(self.delay);
        if self.jitter > 0 {
            let deviation = (self.standard_normal() * self.jitter as f64) as i64;
            due = due.saturating_add_signed(deviation).max(sent);
        }
        self.last_due = self.last_due.max(due);
        self.last_due
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.f64() < probability
    }

    /// Box and Muller's transform of two uniform numbers.
    fn standard_normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.random.f64(), self.random.f64());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const GIGABIT: u64 = 1_000_000_000;

    fn due(verdict: Verdict) -> u64 {
        match verdict {
            Verdict::Deliver(d) => d.due.0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_wire_that_does_nothing_delivers_at_once() {
        let mut wire = Scheduler::new(&Impairment::default(), 1);
        for now in [0, 5, 5, 1_000] {
            assert_eq!(due(wire.enter(Nanos(now), 65_000)), now);
        }
    }

    #[test]
    fn a_frame_arrives_after_its_serialisation_and_the_delay() {
        let impairment =
            Impairment { delay: Duration::from_millis(25), rate: Some(10 * GIGABIT), ..Default::default() };
        let mut wire = Scheduler::new(&impairment, 1);
        assert_eq!(due(wire.enter(Nanos(100), 1_250)), 100 + 1_000 + 25_000_000);
        // The second waits for the first.
        assert_eq!(due(wire.enter(Nanos(100), 1_250)), 100 + 2_000 + 25_000_000);
        // The third finds the transmitter idle.
        assert_eq!(due(wire.enter(Nanos(9_100), 125)), 9_100 + 100 + 25_000_000);
    }

    #[test]
    fn remainders_of_a_nanosecond_add_up() {
        let mut wire = Scheduler::new(&Impairment { rate: Some(3 * GIGABIT), ..Default::default() }, 1);
        let last = (0..3_000).map(|_| due(wire.enter(Nanos(0), 1))).last();
        assert_eq!(last, Some(8_000));
    }

    #[test]
    fn the_queue_holds_its_bytes_and_no_more() {
        let impairment = Impairment { rate: Some(GIGABIT), queue: Some(3_000), ..Default::default() };
        let mut wire = Scheduler::new(&impairment, 1);
        let taken = (0..5).filter(|_| wire.enter(Nanos(0), 1_500) != Verdict::QueueFull).count();
        // The first is being sent and still counts with all its bytes, the second fills the queue.
        assert_eq!(taken, 2);
        assert_eq!(wire.waiting(Nanos(0)), 3_000);
        // 12 µs later the first has gone.
        assert_eq!(due(wire.enter(Nanos(12_000), 1_500)), 36_000);
        assert_eq!(wire.enter(Nanos(12_000), 1), Verdict::QueueFull);
    }

    #[test]
    fn a_frame_larger_than_the_queue_passes_an_idle_transmitter() {
        let impairment = Impairment { rate: Some(GIGABIT), queue: Some(10), ..Default::default() };
        let mut wire = Scheduler::new(&impairment, 1);
        assert_eq!(due(wire.enter(Nanos(0), 1_500)), 12_000);
        assert_eq!(wire.enter(Nanos(0), 1_500), Verdict::QueueFull);
    }

    #[test]
    fn chances_are_met_and_repeat_with_the_seed() {
        let impairment =
            Impairment { loss: 0.1, reorder: 0.2, duplicate: 0.3, corrupt: 0.4, ..Default::default() };
        let run = |seed| -> Vec<_> {
            let mut wire = Scheduler::new(&impairment, seed);
            (0..10_000).map(|now| wire.enter(Nanos(now), 100)).collect()
        };
        let verdicts = run(7);
        assert_eq!(verdicts, run(7));
        assert_ne!(verdicts, run(8));
        let share = |f: fn(&Delivery) -> bool| {
            let delivered: Vec<_> = verdicts
                .iter()
                .filter_map(|v| if let Verdict::Deliver(d) = v { Some(d) } else { None })
                .collect();
            delivered.iter().filter(|d| f(d)).count() as f64 / delivered.len() as f64
        };
        let lost = verdicts.iter().filter(|v| **v == Verdict::Lost).count() as f64 / 1e4;
        // Five standard deviations; and the seed is fixed.
        assert!((lost - 0.1).abs() < 0.015, "{lost}");
        assert!((share(|d| d.overtakes) - 0.2).abs() < 0.022);
        assert!((share(|d| d.twice) - 0.3).abs() < 0.025);
        assert!((share(|d| d.flip.is_some()) - 0.4).abs() < 0.026);
    }

    #[test]
    fn jitter_has_the_deviation_that_was_asked() {
        let impairment = Impairment {
            delay: Duration::from_millis(10),
            jitter: Duration::from_millis(1),
            ..Default::default()
        };
        let mut wire = Scheduler::new(&impairment, 3);
        // So far apart that order never interferes.
        let delays: Vec<f64> = (0..4_000_u64)
            .map(|i| i * NANOS_PER_SECOND)
            .map(|now| (due(wire.enter(Nanos(now), 100)) - now) as f64 / 1e6)
            .collect();
        let mean = delays.iter().sum::<f64>() / delays.len() as f64;
        let deviation = (delays.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / delays.len() as f64).sqrt();
        assert!((mean - 10.0).abs() < 0.08, "{mean}");
        assert!((deviation - 1.0).abs() < 0.06, "{deviation}");
    }

    #[test]
    fn a_change_holds_from_then_on_and_keeps_the_order() {
        let slow = Impairment { delay: Duration::from_millis(10), rate: Some(8_000), ..Default::default() };
        let mut wire = Scheduler::new(&slow, 1);
        // A thousand bytes a second: the second of these waits for one.
        assert_eq!(due(wire.enter(Nanos(0), 1_000)), NANOS_PER_SECOND + 10_000_000);
        assert_eq!(due(wire.enter(Nanos(0), 1_000)), 2 * NANOS_PER_SECOND + 10_000_000);
        let fast = Impairment { rate: Some(8_000_000_000), ..Default::default() };
        wire.change(&fast, Nanos(0));
        // What waited takes 2 µs now, but those two are under way already.
        assert_eq!(wire.waiting(Nanos(0)), 2_000);
        assert_eq!(due(wire.enter(Nanos(0), 1_000)), 2 * NANOS_PER_SECOND + 10_000_000);
        let later = 3 * NANOS_PER_SECOND;
        assert_eq!(due(wire.enter(Nanos(later), 1_000)), later + 1_000);
    }

    #[test]
    fn the_same_changes_have_the_same_outcome() {
        let lossy = Impairment { loss: 0.5, corrupt: 0.5, ..Default::default() };
        let run = || -> Vec<Verdict> {
            let mut wire = Scheduler::new(&lossy, 7);
            (0..200)
                .map(|n| {
                    if n == 100 {
                        wire.change(&Impairment { duplicate: 0.5, ..lossy.clone() }, Nanos(n));
                    }
                    wire.enter(Nanos(n), 100)
                })
                .collect()
        };
        assert_eq!(run(), run());
        let twice = |v: &Verdict| matches!(v, Verdict::Deliver(d) if d.twice);
        assert!(run()[..100].iter().all(|v| !twice(v)) && run()[100..].iter().any(twice));
    }

    proptest! {
        #[test]
        fn a_rate_is_never_exceeded_and_a_queue_never_overfilled(
            rate in 1_000_000_u64..100_000_000_000,
            queue in proptest::option::of(0_u64..1_000_000),
            delay in 0_u64..100_000_000,
            frames in proptest::collection::vec((0_u64..200_000, 1_u64..66_000), 1..300),
        ) {
            let impairment =
                Impairment { delay: Duration::from_nanos(delay), rate: Some(rate), queue, ..Default::default() };
            let mut wire = Scheduler::new(&impairment, 1);
            let (mut now, mut last_due) = (0, 0);
            let mut sent: Vec<(u64, u64)> = Vec::new();
            for (gap, bytes) in frames {
                now += gap;
                let idle = wire.waiting(Nanos(now)) == 0;
                match wire.enter(Nanos(now), bytes) {
                    Verdict::Deliver(d) => {
                        // In order, and never before its own serialisation and the whole delay.
                        prop_assert!(d.due.0 >= last_due);
                        let own = bytes * 8 * NANOS_PER_SECOND / rate;
                        prop_assert!(d.due.0 >= now + own + delay);
                        last_due = d.due.0;
                        sent.push((d.due.0 - delay, bytes));
                        if let Some(queue) = queue {
                            prop_assert!(idle || wire.waiting(Nanos(now)) <= queue + 1);
                        }
                    }
                    verdict => {
                        prop_assert_eq!(verdict, Verdict::QueueFull);
                        prop_assert!(wire.waiting(Nanos(now)) + bytes > queue.unwrap_or(u64::MAX));
                    }
                }
            }
            // Between any two departures no more bytes left than the rate allows, to a nanosecond.
            for from in 0..sent.len() {
                let mut bits = 0_u128;
                for to in from + 1..sent.len() {
                    bits += u128::from(sent[to].1) * 8;
                    let span = u128::from(sent[to].0 - sent[from].0 + 1);
                    prop_assert!(bits * u128::from(NANOS_PER_SECOND) <= (span + 1) * u128::from(rate));
                }
            }
        }
    }
}
