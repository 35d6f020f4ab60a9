//! Messages that have arrived and who waits for them, for any fabric.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::{FabricError, Received};

/// What has arrived and was not taken, or who waits.
#[derive(Default)]
pub(crate) struct Inbox {
    messages: VecDeque<Received>,
    waiting: VecDeque<oneshot::Sender<Result<Received, FabricError>>>,
    ended: Option<FabricError>,
}

/// Whatever has an inbox behind a lock.
pub(crate) trait Owner: Send + Sync {
    /// Calls `change` with the lock held, and does what is to be done after a change.
    fn with_inbox(&self, change: &mut dyn FnMut(&mut Inbox));
}

impl Inbox {
    /// Messages that nobody has taken.
    pub(crate) fn messages(&self) -> usize {
        self.messages.len()
    }

    /// Those who wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A message has arrived.
    pub(crate) fn deliver(&mut self, message: Received) {
        self.messages.push_back(message);
        self.hand_out();
    }

    /// Nothing will arrive any more. Only the first reason counts.
    pub(crate) fn end(&mut self, error: &FabricError) {
        self.ended.get_or_insert_with(|| error.clone());
        self.hand_out();
    }

    /// Gives messages, and at the end the end, to whoever has waited longest. A waiter that is gone takes none.
    fn hand_out(&mut self) {
        while !self.waiting.is_empty() {
            let result = match (self.messages.pop_front(), &self.ended) {
                (Some(message), _) => Ok(message),
                (None, Some(error)) => Err(error.clone()),
                (None, None) => return,
            };
            let refused = match self.waiting.pop_front() {
                Some(waiter) => waiter.send(result).err(),
                None => Some(result),
            };
            if let Some(Ok(message)) = refused {
                self.messages.push_front(message);
            }
        }
    }
}

/// Waits for a message. If it is dropped with a message in it, the next waiter gets that.
pub(crate) struct Receive {
    message: oneshot::Receiver<Result<Received, FabricError>>,
    owner: Arc<dyn Owner>,
}

impl Receive {
    /// Waits for the next message of `owner`'s inbox, from now on.
    pub(crate) fn new(owner: Arc<dyn Owner>) -> Self {
        let (waiter, message) = oneshot::channel();
        let mut waiter = Some(waiter);
        owner.with_inbox(&mut |inbox| {
            inbox.waiting.extend(waiter.take());
            inbox.hand_out();
        });
        Self { message, owner }
    }
}

impl Future for Receive {
    type Output = Result<Received, FabricError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.message).poll(context).map(|result| result.unwrap_or(Err(FabricError::Closed)))
    }
}

impl Drop for Receive {
    fn drop(&mut self) {
        let Self { message, owner } = self;
        owner.with_inbox(&mut |inbox| {
            message.close();
            if let Ok(Ok(message)) = message.try_recv() {
                inbox.messages.push_front(message);
                inbox.hand_out();
            }
            // One that is gone is no posted receive.
            inbox.waiting.retain(|waiter| !waiter.is_closed());
        });
    }
}
