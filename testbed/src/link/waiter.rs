//! How to wait for a time to the microsecond, at little cost.
//!
//! A sleeping thread is woken late: by the 0.1 % that poll(2) allows itself, and by what the processor and a hypervisor
//! take to wake up, some 150 µs where this was measured. So the sleep ends early by what the last ones were late, and the
//! rest is spent looking at the clock; but only so much of that as is a small share of the time, which a busy link, whose
//! frames are due all the time, soon uses up.

use super::scheduler::Nanos;

/// One part in this many of the time may go into looking at the clock.
const SHARE: u64 = 32;
/// What may be saved up of it.
const MOST_SAVED: u64 = 1_000_000;
/// Being woken later than this is not what sleeping costs: somebody else had the processor.
const LATEST: u64 = 250_000;
/// On a simulated clock a frame is so late. What is due soon after it leaves with it, which saves a wake-up each. And no round
/// trip then takes what the delays add up to, to the microsecond: TCP compares the times of some with others that it knows in
/// milliseconds, and where they are the same the next process to run decides.
const GRACE: u64 = 25_000;

/// What to do until something is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Look again at once.
    Not,
    /// Sleep until then, which is not before now.
    Until(Nanos),
    /// Nothing is due: sleep until something else happens.
    Ever,
}

/// What was learnt from the sleeps so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiter {
    /// How late a sleeper is woken: a maximum that fades.
    lateness: u64,
    saved: u64,
    saved_at: u64,
    /// Until then looking at the clock is paid for.
    paid_until: u64,
    /// Whether the clock only goes while all sleep: nobody is then woken late, and each look moves it.
    simulated: bool,
}

impl Waiter {
    /// One for this kernel's clock.
    pub(super) fn new() -> Self {
        // User-Mode Linux says so itself (arch/um/kernel/time.c).
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let simulated = line.split_ascii_whitespace().any(|word| word.starts_with("time-travel"));
        Self { simulated, ..Self::default() }
    }

    /// What to do at `now`, when the next frame is due at `due`.
    pub(super) fn before(&mut self, now: Nanos, due: Option<Nanos>) -> Wait {
        let Some(Nanos(due)) = due else { return Wait::Ever };
        let Nanos(now) = now;
        if due <= now || (now < self.paid_until && due <= self.paid_until) {
            return Wait::Not;
        }
        if self.simulated {
            return Wait::Until(Nanos(due + GRACE));
        }
        self.saved = (self.saved + (now - self.saved_at) / SHARE).min(MOST_SAVED);
        self.saved_at = now;
        if self.saved < self.lateness {
            return Wait::Until(Nanos(due));
        }
        let left = due - now;
        if left <= self.lateness {
            self.saved -= left;
            self.paid_until = due;
            return Wait::Not;
        }
        Wait::Until(Nanos(due - self.lateness))
    }

    /// Whether it wants to know how late sleepers are woken.
    pub(super) fn learns(&self) -> bool {
        !self.simulated
    }

    /// A sleep that was to end at `until` ended at `now`, since time was up.
    pub(super) fn woke(&mut self, until: Nanos, now: Nanos) {
        let late = now.0.saturating_sub(until.0).min(LATEST);
        self.lateness = late.max(self.lateness - self.lateness / 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A waiter that has learnt that sleepers are woken 100 µs late, and has saved all that it may.
    fn experienced() -> Waiter {
        let mut waiter = Waiter::default();
        waiter.woke(Nanos(0), Nanos(100_000));
        waiter.before(Nanos(1_000_000_000), Some(Nanos(2_000_000_000)));
        waiter
    }

    #[test]
    fn what_is_due_is_not_waited_for() {
        let mut waiter = Waiter::default();
        assert_eq!(waiter.before(Nanos(5), None), Wait::Ever);
        assert_eq!(waiter.before(Nanos(5), Some(Nanos(5))), Wait::Not);
        assert_eq!(waiter.before(Nanos(5), Some(Nanos(6))), Wait::Until(Nanos(6)));
    }

    #[test]
    fn a_sleep_ends_early_by_what_sleepers_are_late() {
        let mut waiter = experienced();
        let (now, due) = (1_000_000_000, Nanos(1_010_000_000));
        assert_eq!(waiter.before(Nanos(now), Some(due)), Wait::Until(Nanos(due.0 - 100_000)));
        // Then the clock is looked at until the frame is due.
        assert_eq!(waiter.before(Nanos(due.0 - 100_000), Some(due)), Wait::Not);
        assert_eq!(waiter.before(Nanos(due.0 - 1), Some(due)), Wait::Not);
    }

    #[test]
    fn a_busy_link_does_not_look_at_the_clock_for_more_than_its_share() {
        let mut waiter = experienced();
        let (mut looked, step) = (0, 10_000);
        let steps = 100_000;
        for n in 0..steps {
            let now = 1_000_000_000 + n * step;
            // A frame is always due in 50 µs.
            if waiter.before(Nanos(now), Some(Nanos(now + 50_000))) == Wait::Not {
                looked += step;
            }
            waiter.woke(Nanos(0), Nanos(100_000));
        }
        assert!(looked <= steps * step / SHARE + 2 * MOST_SAVED, "{looked}");
        assert!(looked > 0);
    }

    #[test]
    fn a_clock_that_each_look_moves_is_not_looked_at() {
        let mut waiter = Waiter { simulated: true, ..experienced() };
        let due = Nanos(2_000_050_000);
        assert_eq!(waiter.before(Nanos(2_000_000_000), Some(due)), Wait::Until(Nanos(due.0 + GRACE)));
        assert_eq!(waiter.before(due, Some(due)), Wait::Not);
    }

    #[test]
    fn one_late_sleep_fades() {
        let mut waiter = Waiter::default();
        waiter.woke(Nanos(0), Nanos(10_000_000));
        assert_eq!(waiter.lateness, LATEST);
        (0..100).for_each(|_| waiter.woke(Nanos(0), Nanos(20_000)));
        assert_eq!(waiter.lateness, 20_000);
    }
}
