//! The task of one established connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::handle::{Shared, Waiter};
use super::wire::{Progress, Wire, closed};
use crate::fabric::{FabricError, Received};
use crate::iwarp::connection::{Event, Work, WorkError};

/// Runs a connection to its end.
pub(super) struct Driver {
    shared: Arc<Shared>,
    /// Whoever waits for work that the state machine has, in the order of posting.
    waiting: VecDeque<Waiter>,
    completed: usize,
    close_timeout: Duration,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, close_timeout: Duration) -> Self {
        Self { shared, waiting: VecDeque::new(), completed: 0, close_timeout }
    }

    /// The task. However it ends, whatever is outstanding fails.
    pub(super) async fn run(mut self, mut wire: Wire) {
        let error = match self.drive(&mut wire).await {
            Ok(error) | Err(error) => error,
        };
        tracing::debug!(peer = ?wire.stream.peer_addr().ok(), %error, "connection over");
        self.fail(&error);
        wire.linger().await;
    }

    /// Goes on until the connection is over: by its own rules (`Ok`) or the socket's (`Err`).
    async fn drive(&mut self, wire: &mut Wire) -> Result<FabricError, FabricError> {
        let shared = self.shared.clone();
        let mut work: Vec<(Work, Waiter)> = Vec::new();
        let mut close_by = None;
        let mut shut = false;
        loop {
            let closing = shared.take_posted(std::mem::take(&mut self.completed), &mut work);
            for (work, waiter) in work.drain(..) {
                wire.connection.post(work);
                self.waiting.push_back(waiter);
            }
            if closing && close_by.is_none() {
                wire.connection.close();
                close_by = Some(Instant::now() + self.close_timeout);
            }
            let wrote = wire.write()?;
            let read = wire.read()?;
            let arrived = wire.unhandled();
            while let Some(event) = wire.next_event(shared.receives()) {
                if let Some(end) = self.handle(event) {
                    return Ok(end);
                }
            }
            if closing && !shut && wire.is_drained() {
                wire.shut_down();
                shut = true;
            }
            // What was handled may have to be answered, also if it came with the start-up and was not read here.
            let handled = wire.unhandled() < arrived;
            if wrote == Progress::Some || read == Progress::Some || handled {
                tokio::task::coop::consume_budget().await;
                continue;
            }
            tokio::select! {
                ready = wire.ready() => ready?,
                () = shared.wake.notified() => {}
                () = until(close_by) => {
                    return Ok(FabricError::TimedOut { verb: "disconnect", limit: self.close_timeout });
                }
            }
        }
    }

    /// Passes on what happened; the reason if it was the end.
    fn handle(&mut self, event: Event) -> Option<FabricError> {
        match event {
            Event::Completed(result) => {
                self.completed += 1;
                if let Some(waiter) = self.waiting.pop_front() {
                    let _ = waiter.send(result.map_err(|e: WorkError| FabricError::Invalid(e.to_string())));
                }
                None
            }
            Event::Received(message) => {
                self.shared.deliver(Received {
                    message: message.bytes,
                    invalidated: message.invalidated,
                    solicited: message.solicited,
                });
                None
            }
            Event::Closed(reason) => Some(closed(reason)),
            // Both belong to the start-up, which is over.
            Event::Connected(_) | Event::Rejected(_) => None,
        }
    }

    fn fail(&mut self, error: &FabricError) {
        for waiter in self.waiting.drain(..) {
            let _ = waiter.send(Err(error.clone()));
        }
        self.shared.end(error);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Ended already, or the runtime was shut down under us.
        self.fail(&FabricError::Closed);
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
