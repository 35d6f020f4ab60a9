//! What users hold of a connection, and what it shares with the connection's task.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::SoftPd;
use super::region::SoftRegion;
use crate::fabric::inbox::{Inbox, Owner, Receive};
use crate::fabric::{
    BoxFuture, Completion, Connection, FabricError, Received, Region, RegionOps, RemoteAddress,
};
use crate::iwarp::Stag;
use crate::iwarp::connection::Work;

/// Whoever waits for posted work.
pub(super) type Waiter = oneshot::Sender<Result<(), FabricError>>;

/// What the handle and the task share.
pub(super) struct Shared {
    posted: Mutex<Posted>,
    inbox: Mutex<Inbox>,
    /// Why the connection ended, once it has.
    ended: watch::Sender<Option<FabricError>>,
    send_queue_depth: usize,
    receive_depth: usize,
}

#[derive(Default)]
struct Posted {
    work: Vec<(Work, Waiter)>,
    /// Operations that have not completed.
    outstanding: usize,
    closing: bool,
    ended: Option<FabricError>,
    /// Wakes the task, if it has not been woken since it last looked.
    task: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(send_queue_depth: usize, receive_depth: usize) -> Self {
        Self {
            posted: Mutex::default(),
            inbox: Mutex::default(),
            ended: watch::Sender::new(None),
            send_queue_depth,
            receive_depth,
        }
    }

    fn post(&self, work: Work) -> Completion {
        let mut posted = lock(&self.posted);
        let error = match &posted.ended {
            Some(error) => Some(error.clone()),
            None if posted.closing => Some(FabricError::Closed),
            None if posted.outstanding >= self.send_queue_depth => Some(FabricError::Invalid(format!(
                "{} operations are outstanding, the depth of the send queue: await completions",
                posted.outstanding
            ))),
            None => None,
        };
        if let Some(error) = error {
            return failed(error);
        }
        let (waiter, result) = oneshot::channel();
        posted.outstanding += 1;
        posted.work.push((work, waiter));
        let task = posted.task.take();
        drop(posted);
        if let Some(task) = task {
            task.wake();
        }
        Box::pin(async move { result.await.unwrap_or(Err(FabricError::Closed)) })
    }

    /// For the task: what was posted since, whether it shall close; `completed` operations are done. The task is woken
    /// when there is more.
    pub(super) fn take_posted(&self, completed: usize, work: &mut Vec<(Work, Waiter)>, task: &Waker) -> bool {
        let mut posted = lock(&self.posted);
        posted.outstanding -= completed;
        if posted.task.as_ref().is_none_or(|known| !known.will_wake(task)) {
            posted.task = Some(task.clone());
        }
        work.append(&mut posted.work);
        posted.closing
    }

    fn close(&self) {
        let mut posted = lock(&self.posted);
        posted.closing = true;
        let task = posted.task.take();
        drop(posted);
        if let Some(task) = task {
            task.wake();
        }
    }

    /// For the task: how many messages may arrive.
    pub(super) fn receives(&self) -> usize {
        let inbox = lock(&self.inbox);
        (self.receive_depth + inbox.waiting()).saturating_sub(inbox.messages())
    }

    /// For the task: a message has arrived.
    pub(super) fn deliver(&self, message: Received) {
        lock(&self.inbox).deliver(message);
    }

    /// For the task: it is over. Everything outstanding fails, here or by the task's dropping its waiters.
    pub(super) fn end(&self, error: &FabricError) {
        let unstarted = {
            let mut posted = lock(&self.posted);
            posted.ended.get_or_insert_with(|| error.clone());
            posted.outstanding = 0;
            std::mem::take(&mut posted.work)
        };
        for (_, waiter) in unstarted {
            let _ = waiter.send(Err(error.clone()));
        }
        lock(&self.inbox).end(error);
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| error.clone());
            first
        });
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
        change(&mut lock(&self.inbox));
    }
}

fn failed<T: Send + 'static>(error: FabricError) -> Completion<T> {
    Box::pin(std::future::ready(Err(error)))
}

/// A connection as its users hold it.
pub(super) struct SoftConnection {
    pub(super) shared: Arc<Shared>,
    pub(super) pd: SoftPd,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) private_data: Bytes,
    /// Reads that may be outstanding, as negotiated.
    pub(super) outbound_reads: u16,
}

impl SoftConnection {
    /// Checks a local buffer before anything is posted.
    fn buffer<'a>(
        &self,
        region: &'a Region,
        offset: usize,
        length: usize,
    ) -> Result<&'a SoftRegion, FabricError> {
        let Some(ours) =
            region.ops().as_any().downcast_ref::<SoftRegion>().filter(|r| r.is_of(&self.pd.table))
        else {
            return Err(FabricError::Invalid("the region is of another fabric".into()));
        };
        if ours.domain() != self.pd.domain {
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

    fn post_send(&self, message: Bytes, invalidate: Option<Stag>, solicited: bool) -> Completion {
        if u32::try_from(message.len()).is_err() {
            return failed(FabricError::Invalid(format!("a message of {} bytes is too long", message.len())));
        }
        self.shared.post(Work::Send { message, invalidate, solicited })
    }
}

impl Connection for SoftConnection {
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
            Ok(source) => self.shared.post(Work::Write {
                source: source.stag(),
                // usize is no wider than u64 on any target that Rust has a std for.
                source_to: offset as u64,
                length: length as u64,
                sink: to.stag,
                sink_to: to.to,
            }),
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
        let Ok(length) = u32::try_from(length) else {
            return failed(FabricError::Invalid(format!("a Read of {length} bytes is too long")));
        };
        self.shared.post(Work::Read {
            sink: sink.stag(),
            sink_to: offset as u64,
            length,
            source: from.stag,
            source_to: from.to,
        })
    }

    fn send(&self, message: Bytes) -> Completion {
        self.post_send(message, None, false)
    }

    fn send_invalidate(&self, message: Bytes, stag: Stag) -> Completion {
        self.post_send(message, Some(stag), false)
    }

    fn send_solicited(&self, message: Bytes, invalidate: Option<Stag>) -> Completion {
        self.post_send(message, invalidate, true)
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

impl Drop for SoftConnection {
    fn drop(&mut self) {
        self.shared.close();
    }
}
