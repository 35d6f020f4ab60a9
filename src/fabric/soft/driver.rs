//! The task of one established connection.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use super::Socket;
use super::handle::{Shared, Waiter};
use super::wire::{Handler, Progress, Wire, closed};
use crate::fabric::{FabricError, Received};
use crate::iwarp::connection::{Event, Work, WorkError};

/// Rounds of writing and reading before other tasks have their turn.
const ROUNDS: usize = 32;

/// Bytes that are moved before other tasks have their turn. So many connections at once do not each fill their sockets'
/// buffers, megabytes of them, which then leave the processor's caches before their receivers look at them.
const TURN: usize = 512 << 10;

/// Runs a connection to its end.
pub(super) struct Driver {
    program: Program,
    work: Vec<(Work, Waiter)>,
    close_timeout: Duration,
    /// Runs once it is closing.
    close_by: Option<Pin<Box<Sleep>>>,
    shut: bool,
}

/// Whoever uses the connection, as the driver sees it.
struct Program {
    shared: Arc<Shared>,
    /// Whoever waits for work that the state machine has, in the order of posting.
    waiting: VecDeque<Waiter>,
    completed: usize,
    end: Option<FabricError>,
}

impl Handler for Program {
    fn receives(&self) -> usize {
        self.shared.receives()
    }

    fn handle(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Completed(result) => {
                self.completed += 1;
                if let Some(waiter) = self.waiting.pop_front() {
                    let _ = waiter.send(result.map_err(|e: WorkError| FabricError::Invalid(e.to_string())));
                }
            }
            Event::Received(message) => self.shared.deliver(Received {
                message: message.bytes,
                invalidated: message.invalidated,
                solicited: message.solicited,
            }),
            Event::Closed(reason) => {
                self.end = Some(closed(reason));
                return ControlFlow::Break(());
            }
            // Both belong to the start-up, which is over.
            Event::Connected(_) | Event::Rejected(_) => {}
        }
        ControlFlow::Continue(())
    }
}

impl Program {
    fn fail(&mut self, error: &FabricError) {
        for waiter in self.waiting.drain(..) {
            let _ = waiter.send(Err(error.clone()));
        }
        self.shared.end(error);
    }
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, close_timeout: Duration) -> Self {
        let program = Program { shared, waiting: VecDeque::new(), completed: 0, end: None };
        Self { program, work: Vec::new(), close_timeout, close_by: None, shut: false }
    }

    /// The task. However it ends, whatever is outstanding fails.
    pub(super) async fn run<S: Socket>(mut self, mut wire: Wire<S>) {
        let error = match std::future::poll_fn(|context| self.poll(&mut wire, context)).await {
            Ok(error) | Err(error) => error,
        };
        tracing::debug!(peer = ?wire.socket.peer_addr().ok(), %error, "connection over");
        self.program.fail(&error);
        wire.linger().await;
    }

    /// Goes on until the connection is over: by its own rules (`Ok`) or the socket's (`Err`).
    fn poll<S: Socket>(
        &mut self,
        wire: &mut Wire<S>,
        context: &mut Context<'_>,
    ) -> Poll<Result<FabricError, FabricError>> {
        let (mut round, mut moved) = (0, 0);
        while round < ROUNDS && moved < TURN {
            round += 1;
            let completed = std::mem::take(&mut self.program.completed);
            let closing = self.program.shared.take_posted(completed, &mut self.work, context.waker());
            for (work, waiter) in self.work.drain(..) {
                wire.connection.post(work);
                self.program.waiting.push_back(waiter);
            }
            if closing && self.close_by.is_none() {
                wire.connection.close();
                self.close_by = Some(Box::pin(tokio::time::sleep(self.close_timeout)));
            }
            let wrote = wire.poll_write(context)?;
            let read = wire.poll_read(context, &mut self.program)?;
            moved += std::mem::take(&mut wire.moved);
            if let Some(end) = self.program.end.take() {
                return Poll::Ready(Ok(end));
            }
            if closing && !self.shut && wire.is_drained() {
                wire.socket.shut_down();
                self.shut = true;
            }
            if wrote == Progress::Some || read == Progress::Some {
                continue;
            }
            if let Some(close_by) = &mut self.close_by
                && close_by.as_mut().poll(context).is_ready()
            {
                let limit = self.close_timeout;
                return Poll::Ready(Ok(FabricError::TimedOut { verb: "disconnect", limit }));
            }
            wire.rest();
            return Poll::Pending;
        }
        // It is polled again once the runtime has looked which sockets are ready, so their tasks do not starve.
        let _ = std::pin::pin!(tokio::task::yield_now()).poll(context);
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Ended already, or the runtime was shut down under us.
        self.program.fail(&FabricError::Closed);
    }
}
