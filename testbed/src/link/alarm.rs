//! Waking up at a time, to the nanosecond as far as the kernel goes: poll(2)'s own timeout may be late by a thousandth of
//! itself (`select_estimate_accuracy` in Linux's fs/select.c), a timer's descriptor is not.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nix::time::clock_gettime;

use super::scheduler::Nanos;

/// A descriptor that is readable from a time on.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: TimerFd,
    /// When the times began that it is set to, as its clock has it.
    origin: Duration,
    set_to: Option<Nanos>,
}

impl Alarm {
    /// One that is not set. The times that it is set to are counted from `origin`.
    pub(super) fn new(origin: Instant) -> io::Result<Self> {
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        // An `Instant` is of the same clock, and does not tell what it holds.
        let elapsed = origin.elapsed();
        let now = Duration::from(clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?);
        Ok(Self { timer, origin: now.saturating_sub(elapsed), set_to: None })
    }

    /// Readable from this time on, and not before, whatever it was set to.
    pub(super) fn set(&mut self, time: Nanos) -> io::Result<()> {
        if self.set_to != Some(time) {
            let at = TimeSpec::from(self.origin + Duration::from_nanos(time.0));
            self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            self.set_to = Some(time);
        }
        Ok(())
    }

    /// It was readable: it is set no more.
    pub(super) fn rang(&mut self) {
        self.set_to = None;
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn rings(alarm: &Alarm, wait: PollTimeout) -> bool {
        let mut fds = [PollFd::new(alarm.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, wait).unwrap() == 1
    }

    #[test]
    fn it_rings_once_its_time_has_come_and_can_be_set_anew() {
        let origin = Instant::now();
        let mut alarm = Alarm::new(origin).unwrap();
        assert!(!rings(&alarm, PollTimeout::ZERO));
        for after in [0, 300_000] {
            let time = Nanos(origin.elapsed().as_nanos() as u64 + after);
            alarm.set(time).unwrap();
            assert!(rings(&alarm, PollTimeout::NONE));
            assert!(origin.elapsed() >= Duration::from_nanos(time.0));
            alarm.rang();
        }
        let late = Nanos(3_600_000_000_000);
        alarm.set(late).unwrap();
        alarm.set(late).unwrap();
        assert!(!rings(&alarm, PollTimeout::ZERO));
    }
}
