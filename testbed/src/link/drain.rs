//! Waits until a relay has taken all that its device held: what a host had sent before is then known to have entered.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Requests to find the device empty, and the last that was met.
#[derive(Debug, Default)]
pub(super) struct Drain {
    state: Mutex<State>,
    met: Condvar,
}

#[derive(Debug, Default)]
struct State {
    asked: u64,
    met: u64,
}

impl Drain {
    /// Whoever holds the lock leaves the state whole at every step.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and returns the request's number.
    pub(super) fn ask(&self) -> u64 {
        let mut state = self.lock();
        state.asked += 1;
        state.asked
    }

    /// The last request, for the relay: to be read before it looks into the device.
    pub(super) fn asked(&self) -> u64 {
        self.lock().asked
    }

    /// The device was empty after `request` was made.
    pub(super) fn meet(&self, request: u64) {
        let mut state = self.lock();
        if state.met < request {
            state.met = request;
            self.met.notify_all();
        }
    }

    /// Waits until `request` is met, at most for `limit`. Returns whether it was.
    pub(super) fn wait(&self, request: u64, limit: Duration) -> bool {
        let waited = self.met.wait_timeout_while(self.lock(), limit, |state| state.met < request);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.met >= request
    }
}
