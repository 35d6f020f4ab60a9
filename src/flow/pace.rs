//! How long a peer may be waited for, in all: a limit for each wait alone would let it dribble for ever.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::FlowError;
use crate::channel::Channel;
use crate::fabric::FabricError;
use crate::message::Message;

/// Time that was spent waiting for a peer, and what it has moved. For each `limit` of waiting it must move `rate` bytes a
/// second; waiting for anybody else does not count.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: Duration,
    /// Bytes that are enough for a limit's worth of waiting.
    least: u64,
    moved: u64,
    waited: Duration,
    since: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// At least `rate` bytes a second over `limit`; at least one byte in any case.
    pub(crate) fn new(limit: Duration, rate: u64) -> Self {
        let least = u128::from(rate).saturating_mul(limit.as_millis()) / 1000;
        let least = u64::try_from(least).unwrap_or(u64::MAX).max(1);
        Self { limit, least, moved: 0, waited: Duration::ZERO, since: None, alarm: None }
    }

    /// The peer has moved so much.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.pause();
        self.moved = self.moved.saturating_add(bytes);
        if self.moved >= self.least {
            (self.moved, self.waited) = (0, Duration::ZERO);
        }
    }

    /// It is not waited for any more.
    fn pause(&mut self) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
    }

    /// To be called as long as the peer is waited for: ready when it has been for too long.
    pub(crate) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.limit.saturating_sub(self.waited);
        let alarm = match (&mut self.since, &mut self.alarm) {
            (Some(_), Some(alarm)) => alarm,
            (since, alarm) => {
                let deadline = *since.insert(Instant::now()) + left;
                match alarm {
                    Some(alarm) => alarm.as_mut().reset(deadline),
                    None => *alarm = Some(Box::pin(tokio::time::sleep_until(deadline))),
                }
                match alarm {
                    Some(alarm) => alarm,
                    None => return Poll::Pending,
                }
            }
        };
        alarm.as_mut().poll(cx)
    }

    /// Waits for the peer to do something; `None` if it takes too long.
    pub(crate) async fn wait<F: Future>(&mut self, something: F) -> Option<F::Output> {
        let mut something = pin!(something);
        let done = std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = something.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            ready!(self.poll_too_slow(cx));
            Poll::Ready(None)
        });
        let done = done.await;
        self.pause();
        done
    }
}

impl Pace {
    /// Waits for an operation of ours that takes the peer's part.
    pub(super) async fn completed(
        &mut self,
        completion: impl Future<Output = Result<(), FabricError>>,
    ) -> Result<(), FlowError> {
        match self.wait(completion).await {
            Some(result) => result.map_err(FlowError::Lost),
            None => Err(FlowError::Stalled(self.limit)),
        }
    }

    /// Waits for a message. A wait that is given up loses none.
    pub(super) async fn receive(&mut self, channel: &Channel) -> Result<Message, FlowError> {
        match self.wait(channel.receive()).await {
            Some(message) => Ok(message?),
            None => Err(FlowError::Stalled(self.limit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::{advance, sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_dribbles_is_too_slow() {
        let mut pace = Pace::new(10 * SECOND, 5);
        for _ in 0..9 {
            assert!(pace.wait(sleep(SECOND)).await.is_some());
            pace.moved(1);
        }
        assert!(pace.wait(pending::<()>()).await.is_none(), "9 bytes in 10 seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_fast_enough_is_waited_for_for_ever() {
        let mut pace = Pace::new(10 * SECOND, 5);
        for _ in 0..100 {
            assert!(pace.wait(sleep(9 * SECOND)).await.is_some());
            pace.moved(50);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_waiting_counts() {
        let mut pace = Pace::new(10 * SECOND, 0);
        for _ in 0..9 {
            assert!(pace.wait(sleep(SECOND)).await.is_some());
            advance(100 * SECOND).await;
        }
        assert!(pace.wait(sleep(SECOND / 2)).await.is_some());
        assert!(pace.wait(sleep(SECOND)).await.is_none());
    }
}
