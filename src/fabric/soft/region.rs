//! Registered memory: who may reach which bytes.
//!
//! A region's memory sits behind a lock that is held for one segment at a time, or for one system call that reads into
//! it or sends from it: so payload goes between socket and region without a copy, peers that write what others read
//! race with nobody, and all of it is safe Rust. Deregistering takes the memory out from behind the lock, so no segment,
//! not even one of a message that has half arrived, can touch it afterwards.
//!
//! # Invariants
//!
//! 1. A region's bytes are reached through its lock only: exclusively to place ([`Memory::sink`], `copy_in`), shared to
//!    read ([`Memory::fetch`], `copy_out`).
//! 2. `valid` goes from true to false, once, under the exclusive lock. Whoever holds the lock and has seen true has the
//!    region for as long as it holds the lock; true that was seen without the lock says nothing.
//! 3. As long as `valid` is true the memory has `length` bytes (none if a file is behind them). It is taken out only after.
//! 4. `limit`, how much of it the peer reaches, changes under the exclusive lock, and counts for who holds the lock: what was
//!    allowed before is over when it has changed.
//! 5. STag, domain, rights, length and file never change. An index is one entry's at a time, and all 32 bits of an STag
//!    must match: one that was deregistered names nothing, though its index may be another's by then.
//! 6. Every access is checked in this order: STag, domain, validity, right, bounds ([`locate`], which cannot overflow); and
//!    before the first byte of a segment is touched.
//! 7. The table's lock is never held while a region's is waited for; and whoever holds a [`Lease`] waits for no other
//!    region's lock. So nobody waits in a circle.
//! 8. A lease lives for one system call that does not block. So `deregister` returns in bounded time, and after it no byte is
//!    read or written on a peer's behalf.
//!
//! `region/tests.rs` tries them with threads, under Miri and the sanitizers too (`ci/sanitize`). What a device writes to
//! (`fabric::verbs`) has invariants of its own, beside its `unsafe` blocks.

use std::any::Any;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parking_lot::{ArcRwLockReadGuard, RawRwLock, RwLock, RwLockWriteGuard};

use super::filled::Filled;
use crate::fabric::{Access, FabricError, RegionOps};
use crate::iwarp::Stag;
use crate::iwarp::memory::{Denied, FileRange, Lent, Memory, Reach, locate};

/// The regions of a fabric, by the index in their STag.
pub(super) struct Table {
    entries: Mutex<HashMap<u32, Arc<Entry>>>,
    limit: usize,
    /// How often there was room for no other.
    met: AtomicU64,
}

struct Entry {
    stag: Stag,
    domain: u64,
    access: Access,
    length: usize,
    /// Bytes from the beginning that the peer reaches. It is changed under the memory's lock.
    limit: AtomicUsize,
    /// Whether it may be touched. It becomes false, for good, under the memory's lock; true without the lock says
    /// nothing.
    valid: AtomicBool,
    /// The bytes; empty where they are a file's.
    memory: Arc<RwLock<Vec<u8>>>,
    /// What the peer has placed. Taken under the memory's lock, or alone.
    filled: Mutex<Filled>,
    file: Option<FileRange>,
}

impl Entry {
    fn is_valid(&self) -> bool {
        self.valid.load(Ordering::Acquire)
    }

    /// How much of it may be reached so. What is out of the peer's reach altogether is no region to it.
    fn within(&self, reach: Reach) -> Result<usize, Denied> {
        match (reach, self.limit.load(Ordering::Acquire)) {
            (Reach::Local, _) => Ok(self.length),
            (Reach::Remote, 0) if self.length > 0 => Err(Denied::InvalidStag),
            (Reach::Remote, limit) => Ok(limit),
        }
    }

    fn filled(&self) -> MutexGuard<'_, Filled> {
        self.filled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, Vec<u8>>, Denied> {
        let memory = self.memory.write();
        if self.is_valid() { Ok(memory) } else { Err(Denied::InvalidStag) }
    }

    /// Ends all access, and returns once nothing is under way.
    fn invalidate(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        let memory = self.memory.write();
        self.valid.store(false, Ordering::Release);
        memory
    }
}

/// The index is the STag's upper 24 bits; the lower eight are its key. All of them are random: RFC 5040, section 8.1.1
/// wants STags that cannot be predicted.
fn index(stag: Stag) -> u32 {
    stag.0 >> 8
}

impl Table {
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: Mutex::default(), limit, met: AtomicU64::new(0) }
    }

    pub(super) fn met(&self) -> u64 {
        self.met.load(Ordering::Relaxed)
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<u32, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, stag: Stag) -> Option<Arc<Entry>> {
        self.entries().get(&index(stag)).filter(|entry| entry.stag == stag).cloned()
    }
}

/// A region of this fabric.
pub(super) struct SoftRegion {
    table: Arc<Table>,
    entry: Arc<Entry>,
}

impl SoftRegion {
    pub(super) fn register(
        table: &Arc<Table>,
        domain: u64,
        bytes: Vec<u8>,
        access: Access,
    ) -> Result<Self, FabricError> {
        let length = bytes.len();
        Self::insert(table, domain, access, length, bytes, None)
    }

    /// A region whose bytes are a file's, read when they are sent.
    pub(super) fn register_file(
        table: &Arc<Table>,
        domain: u64,
        file: Arc<File>,
        offset: u64,
        length: u64,
    ) -> Result<Self, FabricError> {
        let size = file.metadata().map_err(|error| FabricError::io("stat a file to register", error))?.len();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(FabricError::Invalid(format!(
                "bytes {offset} to {offset}+{length} are not within a file of {size} bytes"
            )));
        }
        let length = u32::try_from(length)
            .map_err(|_| FabricError::Invalid(format!("a region of {length} bytes is too long")))?;
        let range = FileRange { file, offset, length: length as usize };
        Self::insert(table, domain, Access::REMOTE_READ, range.length, Vec::new(), Some(range))
    }

    fn insert(
        table: &Arc<Table>,
        domain: u64,
        access: Access,
        length: usize,
        bytes: Vec<u8>,
        file: Option<FileRange>,
    ) -> Result<Self, FabricError> {
        let mut entries = table.entries();
        // With at most half of the 2^24 indices taken the search below soon ends.
        if entries.len() >= table.limit.min(1 << 23) {
            table.met.fetch_add(1, Ordering::Relaxed);
            return Err(FabricError::Invalid(format!("{} regions are registered, the limit", entries.len())));
        }
        let stag = loop {
            let random = getrandom::u32()
                .map_err(|error| FabricError::io("getrandom", std::io::Error::other(error.to_string())))?;
            let stag = Stag(random);
            if index(stag) != 0 && !entries.contains_key(&index(stag)) {
                break stag;
            }
        };
        let (valid, limit) = (AtomicBool::new(true), AtomicUsize::new(length));
        let (memory, filled) = (Arc::new(RwLock::new(bytes)), Mutex::default());
        let entry = Arc::new(Entry { stag, domain, access, length, limit, valid, memory, filled, file });
        entries.insert(index(stag), entry.clone());
        drop(entries);
        Ok(Self { table: table.clone(), entry })
    }

    pub(super) fn domain(&self) -> u64 {
        self.entry.domain
    }

    pub(super) fn access(&self) -> Access {
        self.entry.access
    }

    pub(super) fn is_of(&self, table: &Arc<Table>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    fn take(&self) -> Vec<u8> {
        self.table.entries().remove(&index(self.entry.stag));
        std::mem::take(&mut *self.entry.invalidate())
    }
}

/// The place of a copy of our own.
fn local(size: usize, offset: usize, length: usize) -> Result<std::ops::Range<usize>, FabricError> {
    locate(0, size, offset as u64, length).map_err(|_| {
        FabricError::Invalid(format!("{length} bytes at {offset} are not within a region of {size} bytes"))
    })
}

impl RegionOps for SoftRegion {
    fn stag(&self) -> Stag {
        self.entry.stag
    }

    fn base(&self) -> u64 {
        0
    }

    fn len(&self) -> usize {
        self.entry.length
    }

    fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), FabricError> {
        let mut memory = self.entry.write().map_err(|denied| FabricError::Invalid(denied.to_string()))?;
        let range = local(memory.len(), offset, bytes.len())?;
        memory[range].copy_from_slice(bytes);
        Ok(())
    }

    fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), FabricError> {
        let memory = self.entry.memory.read();
        if !self.entry.is_valid() {
            return Err(FabricError::Invalid(Denied::InvalidStag.to_string()));
        }
        bytes.copy_from_slice(&memory[local(memory.len(), offset, bytes.len())?]);
        Ok(())
    }

    fn is_filled(&self, bytes: Range<u64>) -> Option<bool> {
        Some(self.entry.filled().holds(&bytes))
    }

    fn expect(&self, bytes: Range<u64>) {
        self.entry.filled().forget(&bytes);
    }

    fn limit(&self, length: usize) {
        // Once it is locked nothing is under way.
        let _memory = self.entry.memory.write();
        self.entry.limit.store(length.min(self.entry.length), Ordering::Release);
    }

    fn deregister(self: Box<Self>) -> Result<Vec<u8>, FabricError> {
        Ok(self.take())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for SoftRegion {
    fn drop(&mut self) {
        // After `deregister` the index may be another region's, but only if that one's entry replaced ours.
        let entries = self.table.entries();
        if entries.get(&index(self.entry.stag)).is_some_and(|entry| Arc::ptr_eq(entry, &self.entry)) {
            drop(entries);
            self.take();
        }
    }
}

/// A region's bytes on their way out. The region can be neither written nor deregistered meanwhile, so this lives for
/// the length of one system call.
pub(super) enum Lease {
    /// In the region.
    Held { memory: ArcRwLockReadGuard<RawRwLock, Vec<u8>>, range: Range<usize>, _token: Arc<()> },
    /// Read from a file.
    Read(Vec<u8>),
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Held { memory, range, .. } => &memory[range.clone()],
            Self::Read(bytes) => bytes,
        }
    }
}

/// The memory that one connection may touch: its protection domain's.
pub(super) struct DomainMemory {
    table: Arc<Table>,
    domain: u64,
    /// The regions that were last written and read. Messages are many segments, and a look at the table for each
    /// would be the dearest part of it.
    sink: Option<Arc<Entry>>,
    source: Option<Arc<Entry>>,
    /// Shared with every lease of memory, to know whether there is one.
    token: Arc<()>,
}

impl DomainMemory {
    pub(super) fn new(table: Arc<Table>, domain: u64) -> Self {
        Self { table, domain, sink: None, source: None, token: Arc::new(()) }
    }

    /// Lets go of regions that are at hand, so that an idle connection keeps no memory of theirs.
    pub(super) fn forget(&mut self) {
        (self.sink, self.source) = (None, None);
    }
}

/// The region with this STag: the one at hand, else the table's.
fn entry<'a>(
    slot: &'a mut Option<Arc<Entry>>,
    table: &Table,
    domain: u64,
    stag: Stag,
) -> Result<&'a Entry, Denied> {
    if slot.as_ref().is_none_or(|entry| entry.stag != stag || !entry.is_valid()) {
        *slot = table.find(stag);
    }
    let entry = slot.as_deref().ok_or(Denied::InvalidStag)?;
    if entry.domain == domain { Ok(entry) } else { Err(Denied::NotAssociated) }
}

impl Memory for DomainMemory {
    type Lease = Lease;

    fn sink(
        &mut self,
        reach: Reach,
        stag: Stag,
        to: u64,
        length: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), Denied> {
        let entry = entry(&mut self.sink, &self.table, self.domain, stag)?;
        let mut memory = entry.write()?;
        let within = entry.within(reach)?;
        let allowed = match reach {
            Reach::Local => entry.access.local_write,
            Reach::Remote => entry.access.remote_write,
        };
        if !allowed {
            return Err(Denied::Access);
        }
        let range = locate(0, within.min(memory.len()), to, length)?;
        fill(&mut memory[range]);
        if reach == Reach::Remote {
            // A segment that comes in pieces is taken for whole: nothing behind it is heard before it is.
            entry.filled().add(to, length);
        }
        Ok(())
    }

    fn check_source(&mut self, stag: Stag, to: u64, length: u32) -> Result<(), Denied> {
        let entry = entry(&mut self.source, &self.table, self.domain, stag)?;
        if !entry.is_valid() {
            return Err(Denied::InvalidStag);
        }
        let within = entry.within(Reach::Remote)?;
        if !entry.access.remote_read {
            return Err(Denied::Access);
        }
        locate(0, within, to, length as usize).map(drop)
    }

    fn fetch(
        &mut self,
        reach: Reach,
        stag: Stag,
        to: u64,
        length: usize,
        inspect: bool,
    ) -> Result<Option<Lent<Lease>>, Denied> {
        let entry = entry(&mut self.source, &self.table, self.domain, stag)?;
        // With one region locked already, waiting for another's lock could be waiting in a circle.
        let memory = match entry.memory.try_read_arc() {
            Some(memory) => memory,
            None if Arc::strong_count(&self.token) == 1 => entry.memory.read_arc(),
            None => return Ok(None),
        };
        if !entry.is_valid() {
            return Err(Denied::InvalidStag);
        }
        let within = entry.within(reach)?;
        if reach == Reach::Remote && !entry.access.remote_read {
            return Err(Denied::Access);
        }
        let range = locate(0, within, to, length)?;
        let Some(FileRange { file, offset, .. }) = &entry.file else {
            return Ok(Some(Lent::Bytes(Lease::Held { memory, range, _token: self.token.clone() })));
        };
        // Both are within a file's size, so their sum is in range.
        let offset = offset + range.start as u64;
        if inspect {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).map_err(unreadable)?;
            return Ok(Some(Lent::Bytes(Lease::Read(bytes))));
        }
        let size = file.metadata().map_err(unreadable)?.len();
        if size < offset + length as u64 {
            return Err(unreadable(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(Some(Lent::File(FileRange { file: file.clone(), offset, length })))
    }

    fn invalidate(&mut self, stag: Stag) -> Result<(), Denied> {
        let entry = self.table.find(stag).ok_or(Denied::InvalidStag)?;
        if entry.domain != self.domain {
            return Err(Denied::NotAssociated);
        }
        // A region that the peer was never given is none of its business.
        if !entry.access.remote_read && !entry.access.remote_write {
            return Err(Denied::Access);
        }
        drop(entry.invalidate());
        Ok(())
    }
}

fn unreadable(error: std::io::Error) -> Denied {
    tracing::warn!(%error, "a registered file cannot be read");
    Denied::Unreadable
}

#[cfg(test)]
mod tests;
