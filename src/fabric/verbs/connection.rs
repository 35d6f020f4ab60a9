//! What users hold of a connection, and what it shares with the connection's task.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};

use super::VerbsPd;
use super::queue::{Arrival, Operations, Outcome, Receives, Waiter};
use super::region::VerbsRegion;
use super::sys::{MemoryRegion, Owned, Place, QueuePair, Remote};
use crate::fabric::inbox::{Inbox, Owner, Receive};
use crate::fabric::{
    Access, BoxFuture, Completion, Connection, FabricError, FabricKind, Received, Region, RegionOps,
    RemoteAddress, Stag,
};

/// Bytes of a Send that travel within the work request: what siw and rxe both take.
pub(super) const INLINE: usize = 64;

/// The longest message that is posted as one work request; the rest follows in further ones.
const MAX_PART: usize = 1 << 30;

/// What the handle and the task share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes the task: it shall close, or something failed while posting.
    pub(super) wake: Notify,
    /// Why the connection ended, once it has.
    ended: watch::Sender<Option<FabricError>>,
}

/// Work that waits for the peer to have spoken.
type Held = Box<dyn FnOnce(&QueuePair, &mut Operations) + Send>;

struct State {
    /// Until the connection has ended.
    pair: Option<QueuePair>,
    /// What is posted, while it must not be sent yet.
    held: Option<VecDeque<Held>>,
    operations: Operations,
    receives: Receives,
    inbox: Inbox,
    /// The first failure that was seen.
    failure: Option<FabricError>,
    /// Whether something was flushed: the queue pair has failed, or is disconnected.
    flushed: bool,
    closing: bool,
    ended: Option<FabricError>,
}

/// Where a connection stands.
pub(super) struct Progress {
    /// It has failed.
    pub(super) failure: Option<FabricError>,
    /// Its queue pair takes no more work.
    pub(super) flushed: bool,
    /// Its user wants it closed.
    pub(super) closing: bool,
    /// Nothing that was posted is under way.
    pub(super) idle: bool,
    /// What is posted is held back.
    pub(super) holding: bool,
}

impl State {
    /// Posts what was held back.
    fn release(&mut self) {
        let (Some(pair), Some(held)) = (&self.pair, self.held.take()) else { return };
        for post in held {
            post(pair, &mut self.operations);
        }
    }

    fn replenish(&mut self) {
        let Some(pair) = &self.pair else { return };
        if self.flushed {
            return;
        }
        if let Err(error) = self.receives.replenish(pair, self.inbox.messages()) {
            self.failure.get_or_insert(error);
        }
    }

    /// Takes in all that has completed.
    fn drain(&mut self) {
        loop {
            let Some(pair) = &self.pair else { return };
            let (operations, receives, inbox) = (&mut self.operations, &mut self.receives, &mut self.inbox);
            let (failure, flushed) = (&mut self.failure, &mut self.flushed);
            let mut spoken = false;
            let taken = pair.completions().poll(|completion| {
                if Receives::is_receive(&completion) {
                    match receives.take(&completion) {
                        Arrival::Message(message) => {
                            spoken = true;
                            inbox.deliver(Received {
                                message,
                                invalidated: completion.invalidated.map(Stag),
                                solicited: false,
                            });
                        }
                        Arrival::Flushed => *flushed = true,
                        Arrival::Failed(error) => drop(failure.get_or_insert(error)),
                    }
                } else {
                    match operations.complete(&completion) {
                        Outcome::Done => {}
                        Outcome::Flushed => *flushed = true,
                        Outcome::Failed(error) => drop(failure.get_or_insert(error)),
                    }
                }
            });
            let count = match taken {
                Ok(count) => count,
                Err(error) => {
                    self.failure.get_or_insert_with(|| FabricError::io("ibv_poll_cq", error));
                    return;
                }
            };
            if spoken {
                self.release();
            }
            if count == 0 {
                return;
            }
        }
    }
}

impl Shared {
    /// With `hold`, what is posted is sent only once the peer has spoken, or [`release`](Self::release) is called.
    pub(super) fn new(pair: QueuePair, receives: Receives, depth: usize, hold: bool) -> Self {
        let state = State {
            pair: Some(pair),
            held: hold.then(VecDeque::new),
            operations: Operations::new(depth),
            receives,
            inbox: Inbox::default(),
            failure: None,
            flushed: false,
            closing: false,
            ended: None,
        };
        Self { state: Mutex::new(state), wake: Notify::new(), ended: watch::Sender::new(None) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the task: takes in what has completed, and has the channel tell of what completes next.
    pub(super) fn advance(&self) -> Progress {
        let mut state = self.lock();
        if let Some(Err(error)) = state.pair.as_ref().map(|pair| pair.completions().arm()) {
            state.failure.get_or_insert_with(|| FabricError::io("ibv_req_notify_cq", error));
        }
        state.drain();
        state.replenish();
        Progress {
            failure: state.failure.clone(),
            flushed: state.flushed,
            closing: state.closing,
            idle: state.operations.is_empty() && state.held.as_ref().is_none_or(VecDeque::is_empty),
            holding: state.held.is_some(),
        }
    }

    /// For the task: nothing is held back any more.
    pub(super) fn release(&self) {
        self.lock().release();
    }

    /// For the task: disconnects.
    pub(super) fn disconnect(&self) {
        if let Some(Err(error)) = self.lock().pair.as_ref().map(QueuePair::disconnect) {
            tracing::debug!(%error, "rdma_disconnect: it is gone already");
        }
    }

    /// For the task: it is over. Everything outstanding fails.
    pub(super) fn end(&self, reason: &FabricError) {
        let (pair, ended) = {
            let mut state = self.lock();
            if state.pair.is_none() {
                return;
            }
            state.drain();
            state.ended = Some(reason.clone());
            // Whoever waits for what was never posted hears that it is closed.
            state.held = None;
            (state.pair.take(), state.operations.end(reason))
        };
        // After this the device touches nothing of what the operations keep.
        drop(pair);
        for operation in ended {
            operation.tell();
        }
        self.lock().inbox.end(reason);
        self.ended.send_replace(Some(reason.clone()));
    }

    fn post(&self, post: impl FnOnce(&QueuePair, &mut Operations, Waiter) + Send + 'static) -> Completion {
        let mut state = self.lock();
        let state = &mut *state;
        let error = match (&state.ended, &state.failure) {
            (Some(error), _) | (None, Some(error)) => Some(error.clone()),
            (None, None) if state.closing => Some(FabricError::Closed),
            (None, None) => None,
        };
        let (None, Some(pair)) = (&error, &state.pair) else {
            return failed(error.unwrap_or(FabricError::Closed));
        };
        let (waiter, result) = oneshot::channel();
        match &mut state.held {
            None => post(pair, &mut state.operations, waiter),
            Some(held) if held.len() < state.operations.depth() => {
                held.push_back(Box::new(move |pair, operations| post(pair, operations, waiter)));
            }
            Some(held) => return failed(Operations::full(held.len())),
        }
        Box::pin(async move { result.await.unwrap_or(Err(FabricError::Closed)) })
    }

    fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    fn ended(&self) -> BoxFuture<'static, FabricError> {
        let mut ended = self.ended.subscribe();
        Box::pin(async move {
            match ended.wait_for(Option::is_some).await {
                Ok(error) => error.clone().unwrap_or(FabricError::Closed),
                Err(_) => FabricError::Closed,
            }
        })
    }
}

impl Owner for Shared {
    fn with_inbox(&self, change: &mut dyn FnMut(&mut Inbox)) {
        let mut state = self.lock();
        change(&mut state.inbox);
        // A message that was taken has made room for a receive.
        state.replenish();
        if state.failure.is_some() {
            self.wake.notify_one();
        }
    }
}

fn failed<T: Send + 'static>(error: FabricError) -> Completion<T> {
    Box::pin(std::future::ready(Err(error)))
}

/// A connection as its users hold it.
pub(super) struct VerbsConnection {
    pub(super) shared: Arc<Shared>,
    pub(super) pd: VerbsPd,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) private_data: Bytes,
    /// Reads that may be outstanding, as negotiated.
    pub(super) outbound_reads: u8,
    /// The longest message that the device takes.
    pub(super) max_message: usize,
}

impl VerbsConnection {
    /// Checks a local buffer before anything is posted.
    fn buffer<'a>(
        &self,
        region: &'a Region,
        offset: usize,
        length: usize,
    ) -> Result<&'a VerbsRegion, FabricError> {
        let Some(ours) = region.ops().as_any().downcast_ref::<VerbsRegion>() else {
            return Err(FabricError::Invalid("the region is of another fabric".into()));
        };
        if !ours.is_of(&self.pd.0) {
            return Err(FabricError::Invalid("the region is of another protection domain".into()));
        }
        if offset.checked_add(length).is_none_or(|end| end > ours.len()) {
            return Err(FabricError::Invalid(format!(
                "bytes {offset} to {offset}+{length} are not within a region of {} bytes",
                ours.len()
            )));
        }
        Ok(ours)
    }

    /// Posts a Write or Read, in as many parts as it takes.
    fn post_parts(
        &self,
        verb: &'static str,
        region: &VerbsRegion,
        offset: usize,
        length: usize,
        remote: RemoteAddress,
        post: impl Fn(&QueuePair, u64, Place, Remote) -> std::io::Result<()> + Send + 'static,
    ) -> Completion {
        let part = self.max_message.min(MAX_PART);
        let count = length.div_ceil(part).max(1);
        let (address, key, keep) = (region.base() + offset as u64, region.local_key(), region.keep());
        self.shared.post(move |pair, operations, waiter| {
            operations.post(verb, count, Some(keep), None, waiter, |number, index| {
                let start = index * part;
                // At most MAX_PART, which 32 bits hold.
                let length = u32::try_from(part.min(length - start)).unwrap_or(u32::MAX);
                let place = Place { address: address + start as u64, length, key };
                let remote = Remote { address: remote.to.wrapping_add(start as u64), key: remote.stag.0 };
                post(pair, number, place, remote)
            });
        })
    }

    fn post_send(&self, message: &Bytes) -> Completion {
        if message.len() > self.max_message || u32::try_from(message.len()).is_err() {
            return failed(FabricError::Invalid(format!("a message of {} bytes is too long", message.len())));
        }
        if message.len() <= INLINE {
            let message = message.clone();
            return self.shared.post(move |pair, operations, waiter| {
                operations
                    .post("send", 1, None, None, waiter, |number, _| pair.post_send_inline(number, &message));
            });
        }
        let memory = Arc::new(Owned::new(message.to_vec()));
        let copy = match MemoryRegion::new(&self.pd.0, memory, Access::LOCAL_READ) {
            Ok(copy) => copy,
            Err(error) => return failed(FabricError::io("ibv_reg_mr", error)),
        };
        let place = Place {
            address: copy.address(0),
            length: u32::try_from(message.len()).unwrap_or(u32::MAX),
            key: copy.local_key(),
        };
        self.shared.post(move |pair, operations, waiter| {
            operations.post("send", 1, None, Some(copy), waiter, |number, _| pair.post_send(number, place));
        })
    }
}

impl Connection for VerbsConnection {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn private_data(&self) -> &[u8] {
        &self.private_data
    }

    fn write(&self, source: &Region, offset: usize, length: usize, to: RemoteAddress) -> Completion {
        match self.buffer(source, offset, length) {
            Ok(source) => self.post_parts("write", source, offset, length, to, QueuePair::post_write),
            Err(error) => failed(error),
        }
    }

    fn read(&self, sink: &Region, offset: usize, length: usize, from: RemoteAddress) -> Completion {
        let sink = match self.buffer(sink, offset, length) {
            Ok(sink) if sink.access().local_write => sink,
            Ok(_) => {
                return failed(FabricError::Invalid("the sink is not registered for local writes".into()));
            }
            Err(error) => return failed(error),
        };
        if self.outbound_reads == 0 {
            return failed(FabricError::Invalid("the connection was set up for no outbound Reads".into()));
        }
        if u32::try_from(length).is_err() {
            return failed(FabricError::Invalid(format!("a Read of {length} bytes is too long")));
        }
        self.post_parts("read", sink, offset, length, from, QueuePair::post_read)
    }

    fn send(&self, message: Bytes) -> Completion {
        self.post_send(&message)
    }

    fn send_invalidate(&self, _: Bytes, _: Stag) -> Completion {
        failed(FabricError::Unsupported(match self.pd.1 {
            FabricKind::Rxe => {
                "rxe invalidates no region that a program has registered (memory windows, and the kernel's own)"
            }
            FabricKind::Siw | FabricKind::Soft => {
                "siw takes no Send with Invalidate from a program (only from the kernel)"
            }
        }))
    }

    fn receive(&self) -> Completion<Received> {
        Box::pin(Receive::new(self.shared.clone()))
    }

    fn disconnect(&self) -> BoxFuture<'static, Result<(), FabricError>> {
        self.shared.close();
        let ended = self.shared.ended();
        Box::pin(async move {
            match ended.await {
                FabricError::Closed => Ok(()),
                error => Err(error),
            }
        })
    }

    fn closed(&self) -> BoxFuture<'static, FabricError> {
        self.shared.ended()
    }
}

impl Drop for VerbsConnection {
    fn drop(&mut self) {
        self.shared.close();
    }
}
