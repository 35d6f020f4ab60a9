//! The registered memory of one RDMA connection, as its strategy has it.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pages::zeroed;
use super::{Registered, Share, Strategy};
use crate::events::{Event, Recorder};
use crate::fabric::{Access, FabricError, Pd, Region};

/// Bytes that are to be sent.
#[derive(Debug)]
pub enum Load {
    /// Here they are.
    Bytes(Vec<u8>),
    /// They lie in a file.
    File {
        /// The file.
        file: Arc<File>,
        /// Where they begin in it.
        offset: u64,
        /// How many there are.
        length: usize,
    },
}

impl Load {
    /// How many bytes there are.
    pub fn length(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::File { length, .. } => *length,
        }
    }
}

/// The registered memory of one RDMA connection. Clones share it.
#[derive(Clone)]
pub struct Buffers(Arc<Shared>);

struct Shared {
    // Before the teller, so that all is released when the figures are told.
    free: Mutex<Vec<Free>>,
    pd: Pd,
    strategy: Strategy,
    size: usize,
    most: usize,
    // What the kept buffers take of the budget.
    _share: Option<Share>,
    teller: Teller,
}

struct Teller {
    strategy: Strategy,
    recorder: Recorder,
    registrations: AtomicU64,
    copied: AtomicU64,
    pinned: AtomicU64,
    most_pinned: AtomicU64,
}

/// Bytes in registered memory, on their way out.
pub struct Source {
    buffer: Buffer,
    length: usize,
}

/// Registered memory that bytes arrive in.
pub struct Sink {
    buffer: Buffer,
    length: usize,
}

/// A region that goes back to the free ones where its strategy keeps them.
struct Buffer {
    region: Option<Registered>,
    access: Access,
    /// Bytes from the beginning that were put into it: the rest is zeros.
    used: usize,
    home: Arc<Shared>,
}

/// A region that waits for its next use.
struct Free {
    access: Access,
    used: usize,
    region: Registered,
}

/// The peer says that it has written what it has not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it says that bytes {} to {} of its region are written, and not all of them are", .0.start, .0.end)]
pub struct NotWritten(Range<u64>);

impl Buffers {
    /// Memory of connections in `pd`, in buffers of `size` bytes where they are kept; `most` of them are kept, and a region
    /// to be written to.
    pub fn new(
        pd: &Pd,
        strategy: Strategy,
        (size, most): (usize, usize),
        share: Option<Share>,
        recorder: &Recorder,
    ) -> Self {
        let teller = Teller {
            strategy,
            recorder: recorder.clone(),
            registrations: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
            most_pinned: AtomicU64::new(0),
        };
        let free = Mutex::default();
        Self(Arc::new(Shared { free, pd: pd.clone(), strategy, size, most, _share: share, teller }))
    }

    /// The strategy.
    pub fn strategy(&self) -> Strategy {
        self.0.strategy
    }

    /// The protection domain.
    pub fn pd(&self) -> &Pd {
        &self.0.pd
    }

    /// With [`Strategy::Static`], registers all that transfers will take: `count` buffers for what is in flight, and a
    /// region of `room` bytes for the peer to write to, where it may. Other strategies register when a transfer needs it.
    pub fn prepare(&self, count: usize, room: Option<usize>) -> Result<(), FabricError> {
        if self.0.strategy != Strategy::Static {
            return Ok(());
        }
        // None of them is free before all are there; then all of them are.
        let flight = (0..count).map(|_| self.sink(self.0.size, Access::LOCAL_WRITE));
        let room = room.map(|room| self.sink(room, Access::REMOTE_WRITE));
        let made: Result<Vec<Sink>, FabricError> = flight.chain(room).collect();
        // Nothing was put into them.
        made.map(|made| made.into_iter().for_each(|mut sink| sink.buffer.used = 0))
    }

    /// Makes bytes something that can be sent, and read by the peer if `access` says so.
    pub fn source(&self, load: Load, access: Access) -> Result<Source, FabricError> {
        let length = load.length();
        match load {
            Load::File { file, offset, length } => {
                let region =
                    Registered::file(&self.0.pd, file, offset, length as u64, &self.0.teller.recorder)?;
                self.0.teller.registered(length);
                Ok(Source { buffer: self.buffer(region, access, length), length })
            }
            Load::Bytes(bytes) if self.0.strategy.keeps_buffers() && length <= self.0.size => {
                let (region, used) = match self.0.take(KEPT, length) {
                    Some(free) => (free.region, free.used),
                    None => (self.0.register(vec![0; self.0.size], KEPT)?, 0),
                };
                let source = Source { buffer: self.buffer(region, KEPT, length), length };
                source.region().copy_in(0, &bytes)?;
                // Where the whole buffer is within the peer's reach it shall find nothing there of the body before.
                if used > length {
                    source.region().copy_in(length, &vec![0; used - length])?;
                }
                source.region().limit(if access.remote_read { length } else { 0 });
                self.copied(length);
                Ok(source)
            }
            Load::Bytes(bytes) => {
                let region = self.0.register(bytes, access)?;
                Ok(Source { buffer: self.buffer(region, access, length), length })
            }
        }
    }

    /// Memory of `length` bytes for bytes to arrive in.
    pub fn sink(&self, length: usize, access: Access) -> Result<Sink, FabricError> {
        let keeps = self.0.strategy.keeps_buffers();
        let reach = if access.remote_write { length } else { 0 };
        let (access, size) = match keeps && access == Access::LOCAL_WRITE && length <= self.0.size {
            true => (KEPT, self.0.size),
            false => (access, length),
        };
        let kept = if keeps { self.0.take(access, length) } else { None };
        let (region, used) = match kept {
            Some(free) => {
                free.region.as_region().expect(0..u64::MAX);
                (free.region, free.used)
            }
            None => {
                let memory = zeroed(size).map_err(|_| {
                    FabricError::Invalid(format!("no address space for {size} bytes; lower --maxlen"))
                })?;
                (self.0.register(memory, access)?, 0)
            }
        };
        if keeps {
            region.as_region().limit(reach);
        }
        // What was in it before stays behind what comes.
        Ok(Sink { buffer: self.buffer(region, access, used.max(length)), length })
    }

    fn buffer(&self, region: Registered, access: Access, used: usize) -> Buffer {
        Buffer { region: Some(region), access, used, home: self.0.clone() }
    }

    fn copied(&self, bytes: usize) {
        self.0.teller.copied.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The rights of kept buffers for what is in flight. Bytes are sent from them, read from them by the peer, and read into
/// them: one transfer goes after the other, so that the same ones do for all.
const KEPT: Access = Access { local_write: true, ..Access::REMOTE_READ };

impl Shared {
    fn free(&self) -> MutexGuard<'_, Vec<Free>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, access: Access, length: usize) -> Option<Free> {
        let mut free = self.free();
        let at = free.iter().position(|f| f.access == access && f.region.as_region().len() >= length)?;
        Some(free.swap_remove(at))
    }

    fn register(&self, memory: Vec<u8>, access: Access) -> Result<Registered, FabricError> {
        let length = memory.len();
        let region = Registered::new(&self.pd, memory, access, &self.teller.recorder)?;
        self.teller.registered(length);
        Ok(region)
    }
}

impl Teller {
    fn registered(&self, bytes: usize) {
        self.registrations.fetch_add(1, Ordering::Relaxed);
        let pinned = self.pinned.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        self.most_pinned.fetch_max(pinned, Ordering::Relaxed);
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let registrations = self.registrations.load(Ordering::Relaxed);
        if registrations > 0 {
            self.recorder.record(Event::Memory {
                strategy: self.strategy.name().to_owned(),
                registrations,
                copied: self.copied.load(Ordering::Relaxed),
                pinned: self.most_pinned.load(Ordering::Relaxed),
            });
        }
    }
}

impl Buffer {
    fn region(&self) -> &Region {
        match &self.region {
            Some(region) => region.as_region(),
            None => unreachable!("the region is taken by whoever takes the buffer"),
        }
    }

    fn unpin(&self) {
        if let Some(region) = &self.region {
            self.home.teller.pinned.fetch_sub(region.as_region().len() as u64, Ordering::Relaxed);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.unpin();
        if self.home.strategy.keeps_buffers()
            && let Some(region) = self.region.take()
        {
            // The peer's right to it ends with the transfer, where the fabric can have that without ending the registration.
            region.as_region().limit(0);
            let mut free = self.home.free();
            // As many as may be in flight, and a region to be written to.
            if free.len() <= self.home.most {
                self.home.teller.pinned.fetch_add(region.as_region().len() as u64, Ordering::Relaxed);
                free.push(Free { access: self.access, used: self.used, region });
            }
        }
    }
}

impl Source {
    /// The region that they lie in, from its beginning.
    pub fn region(&self) -> &Region {
        self.buffer.region()
    }

    /// How many there are.
    pub fn length(&self) -> usize {
        self.length
    }
}

impl Sink {
    /// The region.
    pub fn region(&self) -> &Region {
        self.buffer.region()
    }

    /// Bytes that may arrive.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Holds what the peer says to have written against what has been placed, where that is known. What was never written
    /// would be zeros, or what lay there before.
    pub fn holds(&self, bytes: Range<u64>) -> Result<(), NotWritten> {
        match self.region().is_filled(bytes.clone()) {
            Some(false) => Err(NotWritten(bytes)),
            _ => Ok(()),
        }
    }

    /// What the peer has placed there counts no more: it may be written over, and must be.
    pub fn expect(&self, bytes: Range<u64>) {
        self.region().expect(bytes);
    }

    /// Copies bytes out, which stay where they are.
    pub fn copy(&self, offset: usize, length: usize) -> Result<Vec<u8>, FabricError> {
        let mut bytes = vec![0; length];
        self.region().copy_out(offset, &mut bytes)?;
        self.buffer.home.teller.copied.fetch_add(length as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// Ends it; the first `length` bytes are what arrived. Without a copy where the strategy deregisters.
    pub fn take(mut self, length: usize) -> Result<Vec<u8>, FabricError> {
        if self.buffer.home.strategy.keeps_buffers() {
            return self.copy(0, length);
        }
        self.buffer.unpin();
        match self.buffer.region.take() {
            Some(region) => {
                let mut memory = region.release()?;
                memory.truncate(length);
                Ok(memory)
            }
            None => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::Fabric as _;
    use crate::fabric::soft::SoftFabric;

    /// A fabric that cannot bound a peer's reach shows it all of the buffer.
    #[tokio::test]
    async fn a_kept_buffer_holds_nothing_of_the_body_before() {
        let pd = SoftFabric::default().allocate_pd().unwrap();
        let buffers = Buffers::new(&pd, Strategy::Cache, (64, 1), None, &Recorder::default());
        let stag = |source: &Source| source.region().stag();
        let long = buffers.source(Load::Bytes(vec![7; 50]), Access::REMOTE_READ).unwrap();
        let before = stag(&long);
        drop(long);
        let short = buffers.source(Load::Bytes(vec![1; 10]), Access::REMOTE_READ).unwrap();
        assert_eq!(stag(&short), before, "the buffer is used again");
        let mut all = [9; 64];
        short.region().copy_out(0, &mut all).unwrap();
        assert_eq!((&all[..10], &all[10..]), (&[1; 10][..], &[0; 54][..]));
    }
}
