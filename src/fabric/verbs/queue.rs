//! What is posted on a queue pair and has not completed, and the memory that receives fill.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::region::Keep;
use super::status::{self, FLUSHED, SUCCESS};
use super::sys::{MemoryRegion, Owned, Place, ProtectionDomain, QueuePair, WorkCompletion};
use crate::fabric::{Access, FabricError};

/// Whoever waits for posted work.
pub(super) type Waiter = oneshot::Sender<Result<(), FabricError>>;

/// The numbers of receives have this bit, those of sends have not.
const RECEIVE: u64 = 1 << 63;

/// An operation: one work request, or several where the device takes no message of that length.
struct Operation {
    verb: &'static str,
    /// The numbers of its work requests end before this.
    end: u64,
    /// Those that have not completed.
    left: usize,
    failure: Option<FabricError>,
    waiter: Waiter,
    /// Memory that must outlive it.
    _memory: Option<Keep>,
    /// The registration of a copy that was made for it.
    _copy: Option<MemoryRegion<Owned>>,
}

/// The send queue.
pub(super) struct Operations {
    next: u64,
    queue: VecDeque<Operation>,
    /// Work requests that have not completed.
    outstanding: usize,
    depth: usize,
}

/// What a work completion says.
pub(super) enum Outcome {
    /// It went well.
    Done,
    /// It was thrown away.
    Flushed,
    /// It failed, and with it the connection.
    Failed(FabricError),
}

impl Operations {
    pub(super) fn new(depth: usize) -> Self {
        Self { next: 0, queue: VecDeque::new(), outstanding: 0, depth }
    }

    /// Work requests that may be outstanding.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// What whoever posts too much is told.
    pub(super) fn full(outstanding: usize) -> FabricError {
        FabricError::Invalid(format!(
            "{outstanding} operations are outstanding, the depth of the send queue: await completions"
        ))
    }

    /// Whether all that was posted has completed.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Posts an operation of `count` work requests, each by a call of `post` with its number and index.
    pub(super) fn post(
        &mut self,
        verb: &'static str,
        count: usize,
        memory: Option<Keep>,
        copy: Option<MemoryRegion<Owned>>,
        waiter: Waiter,
        mut post: impl FnMut(u64, usize) -> std::io::Result<()>,
    ) {
        if self.outstanding + count > self.depth {
            let _ = waiter.send(Err(Self::full(self.outstanding)));
            return;
        }
        let mut posted = 0;
        let mut failure = None;
        while posted < count {
            if let Err(error) = post(self.next, posted) {
                failure = Some(FabricError::io(verb, error));
                break;
            }
            self.next += 1;
            posted += 1;
        }
        self.outstanding += posted;
        match failure {
            Some(error) if posted == 0 => drop(waiter.send(Err(error))),
            failure => self.queue.push_back(Operation {
                verb,
                end: self.next,
                left: posted,
                failure,
                waiter,
                _memory: memory,
                _copy: copy,
            }),
        }
    }

    /// Takes in a completion. Whoever waits is told in the order of posting, though a device may complete a Send before a
    /// Read that was posted earlier.
    pub(super) fn complete(&mut self, completion: &WorkCompletion) -> Outcome {
        let at = self.queue.partition_point(|operation| operation.end <= completion.id);
        let Some(operation) = self.queue.get_mut(at) else { return Outcome::Done };
        if completion.status == FLUSHED {
            // Stays, to be told the reason for the end.
            return Outcome::Flushed;
        }
        operation.left = operation.left.saturating_sub(1);
        self.outstanding = self.outstanding.saturating_sub(1);
        let outcome = if completion.status == SUCCESS {
            Outcome::Done
        } else {
            let error = failure(operation.verb, completion);
            operation.failure.get_or_insert_with(|| error.clone());
            operation.left = 0;
            Outcome::Failed(error)
        };
        while self.queue.front().is_some_and(|operation| operation.left == 0) {
            if let Some(Operation { failure, waiter, .. }) = self.queue.pop_front() {
                let _ = waiter.send(failure.map_or(Ok(()), Err));
            }
        }
        outcome
    }

    /// Takes all that has not completed, to fail with `reason` once the device is done with it.
    pub(super) fn end(&mut self, reason: &FabricError) -> Vec<Ended> {
        self.outstanding = 0;
        let ended = self.queue.drain(..).map(|operation| {
            let result = match &operation.failure {
                Some(error) => Err(error.clone()),
                // It had completed, and waited for one before it.
                None if operation.left == 0 => Ok(()),
                None => Err(reason.clone()),
            };
            Ended { operation, result }
        });
        ended.collect()
    }
}

/// An operation that ended with its connection, and the memory that it needed.
pub(super) struct Ended {
    operation: Operation,
    result: Result<(), FabricError>,
}

impl Ended {
    pub(super) fn tell(self) {
        let _ = self.operation.waiter.send(self.result);
    }
}

/// A failure that is not a flush.
fn failure(verb: &'static str, completion: &WorkCompletion) -> FabricError {
    FabricError::WorkCompletion { verb, status: status::name(completion.status), vendor: completion.vendor }
}

/// The receive queue: slots of equal size in one region.
pub(super) struct Receives {
    region: Option<MemoryRegion<Owned>>,
    size: usize,
    depth: usize,
    free: Vec<usize>,
}

/// A receive that has completed.
pub(super) enum Arrival {
    Message(Bytes),
    Flushed,
    Failed(FabricError),
}

impl Receives {
    pub(super) fn new(pd: &Arc<ProtectionDomain>, depth: usize, size: usize) -> Result<Self, FabricError> {
        let bytes = depth.checked_mul(size).filter(|bytes| *bytes > 0);
        let region = match bytes {
            Some(bytes) => {
                let memory = Arc::new(Owned::new(vec![0; bytes]));
                let region = MemoryRegion::new(pd, memory, Access::LOCAL_WRITE);
                Some(region.map_err(|error| FabricError::io("ibv_reg_mr", error))?)
            }
            None => None,
        };
        Ok(Self { region, size, depth, free: (0..depth).collect() })
    }

    /// Whether a completion is a receive's.
    pub(super) fn is_receive(completion: &WorkCompletion) -> bool {
        completion.id & RECEIVE != 0
    }

    /// Posts receives until, with those `taken` by messages that nobody has read, there are as many as there may be.
    pub(super) fn replenish(&mut self, pair: &QueuePair, taken: usize) -> Result<(), FabricError> {
        while self.depth - self.free.len() + taken < self.depth {
            let Some(slot) = self.free.pop() else { return Ok(()) };
            let place = self.place(slot);
            if let Err(error) = pair.post_receive(RECEIVE | slot as u64, place) {
                self.free.push(slot);
                return Err(FabricError::io("ibv_post_recv", error));
            }
        }
        Ok(())
    }

    fn place(&self, slot: usize) -> Place {
        // Without a region, receives have no bytes.
        self.region.as_ref().map_or(Place { address: 0, length: 0, key: 0 }, |region| Place {
            address: region.address(slot * self.size),
            length: u32::try_from(self.size).unwrap_or(u32::MAX),
            key: region.local_key(),
        })
    }

    /// Takes a message out of its slot, which is free then.
    pub(super) fn take(&mut self, completion: &WorkCompletion) -> Arrival {
        let slot = usize::try_from(completion.id & !RECEIVE).unwrap_or(usize::MAX);
        match completion.status {
            SUCCESS => {}
            FLUSHED => return Arrival::Flushed,
            _ => return Arrival::Failed(failure("receive", completion)),
        }
        let length = usize::try_from(completion.length).unwrap_or(usize::MAX).min(self.size);
        let mut message = vec![0; length];
        if let Some(region) = &self.region {
            region.memory().copy_out(slot * self.size..slot * self.size + length, &mut message);
        }
        self.free.push(slot);
        Arrival::Message(message.into())
    }
}
