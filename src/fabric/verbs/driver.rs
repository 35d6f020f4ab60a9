//! The task of a connection: sleeps until the completion channel or the event channel has something, and takes it in.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::connection::Shared;
use super::sys::{CompletionChannel, Event, EventChannel, EventKind, completed, event};
use crate::fabric::FabricError;

/// Bounds an orderly close: what is posted must be done by then, and the peer must have answered.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long siw's accepting side holds back what it posts if no message comes: the connecting side has long taken the reply
/// by then.
const HOLD: Duration = Duration::from_secs(1);

/// Drives one connection. Dropping it (with the runtime) ends the connection.
pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) events: Arc<AsyncFd<EventChannel>>,
    pub(super) completions: Arc<AsyncFd<CompletionChannel>>,
}

/// What has happened.
enum Woken {
    Event(io::Result<Event>),
    Completed(io::Result<()>),
    Poked,
    Late,
}

impl Driver {
    pub(super) async fn run(self) {
        let reason = self.serve().await;
        self.shared.end(&reason);
    }

    /// Serves until the connection is over; returns why.
    async fn serve(&self) -> FabricError {
        let mut deadline = None;
        let mut disconnecting = false;
        let release = Instant::now() + HOLD;
        loop {
            let progress = self.shared.advance();
            if let Some(error) = progress.failure {
                self.shared.disconnect();
                return error;
            }
            if progress.flushed && !disconnecting {
                // The queue pair has failed without one of our operations to blame.
                self.shared.disconnect();
                return FabricError::Closed;
            }
            if progress.closing {
                deadline.get_or_insert_with(|| Instant::now() + CLOSE_TIMEOUT);
                if progress.idle && !disconnecting {
                    disconnecting = true;
                    self.shared.disconnect();
                }
            }
            if progress.holding && Instant::now() >= release {
                self.shared.release();
                continue;
            }
            let first = [deadline, progress.holding.then_some(release)].into_iter().flatten().min();
            match self.next(first).await {
                Woken::Completed(Ok(())) | Woken::Poked => {}
                Woken::Completed(Err(error)) => return FabricError::io("ibv_get_cq_event", error),
                Woken::Event(Err(error)) => return FabricError::io("rdma_get_cm_event", error),
                Woken::Late if deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
                Woken::Late => {
                    self.shared.disconnect();
                    return FabricError::TimedOut { verb: "disconnect", limit: CLOSE_TIMEOUT };
                }
                Woken::Event(Ok(event)) => match event.kind {
                    EventKind::Disconnected => {
                        let progress = self.shared.advance();
                        // Answers the peer, and has the library do with the queue pair as it must.
                        self.shared.disconnect();
                        return progress.failure.unwrap_or(FabricError::Closed);
                    }
                    EventKind::DeviceRemoval => {
                        return FabricError::io(
                            "the RDMA device",
                            io::Error::from_raw_os_error(nix::libc::ENODEV),
                        );
                    }
                    kind => tracing::debug!(?kind, status = event.status, "an event of no consequence"),
                },
            }
        }
    }

    async fn next(&self, deadline: Option<Instant>) -> Woken {
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // What has completed comes before the news that the connection is gone.
            biased;
            result = completed(&self.completions) => Woken::Completed(result),
            result = event(&self.events) => Woken::Event(result),
            () = self.shared.wake.notified() => Woken::Poked,
            () = late => Woken::Late,
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.end(&FabricError::Closed);
    }
}
