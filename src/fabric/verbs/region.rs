//! Registered memory.
//!
//! A region ends its registration before its memory is freed. Work that is posted on it keeps the memory (not the
//! registration), so that what the device does last, it does to memory that is still there.

use std::any::Any;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::sys::{Backing, Mapping, MemoryRegion, Owned, ProtectionDomain};
use crate::fabric::{Access, FabricError, RegionOps, Stag};

/// Memory that posted work needs.
pub(super) type Keep = Arc<dyn Backing>;

/// A region of this fabric.
pub(super) struct VerbsRegion {
    registration: Registration,
    /// Bytes that its user sees: the verbs know no empty regions, so those have one byte more.
    length: usize,
    access: Access,
}

enum Registration {
    Memory(MemoryRegion<Owned>),
    File(MemoryRegion<Mapping>),
}

/// Adds to "out of memory" what it mostly means here.
fn register<B: Backing>(
    pd: &Arc<ProtectionDomain>,
    memory: Arc<B>,
    access: Access,
) -> Result<MemoryRegion<B>, FabricError> {
    let length = memory.length();
    MemoryRegion::new(pd, memory, access).map_err(|error| {
        let error = if error.raw_os_error() == Some(nix::libc::ENOMEM) {
            let text = format!("{error} ({length} bytes; the limit on locked memory is raised by ulimit -l)");
            io::Error::new(error.kind(), text)
        } else {
            error
        };
        FabricError::io("ibv_reg_mr", error)
    })
}

impl VerbsRegion {
    pub(super) fn register(
        pd: &Arc<ProtectionDomain>,
        mut memory: Vec<u8>,
        access: Access,
    ) -> Result<Self, FabricError> {
        let length = memory.len();
        if memory.is_empty() {
            memory.push(0);
        }
        let registration = register(pd, Arc::new(Owned::new(memory)), access)?;
        Ok(Self { registration: Registration::Memory(registration), length, access })
    }

    pub(super) fn register_file(
        pd: &Arc<ProtectionDomain>,
        file: &File,
        offset: u64,
        length: u64,
    ) -> Result<Self, FabricError> {
        let size = file.metadata().map_err(|error| FabricError::io("fstat", error))?.len();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(FabricError::Invalid(format!(
                "bytes {offset} to {offset}+{length} are not within a file of {size} bytes"
            )));
        }
        let bytes = match u32::try_from(length) {
            Ok(0) => return Self::register(pd, Vec::new(), Access::REMOTE_READ),
            // As on soft: what a Read can name.
            Ok(length) => length as usize,
            Err(_) => {
                return Err(FabricError::Invalid(format!(
                    "a region of {length} bytes of a file is too long"
                )));
            }
        };
        let mapping = Mapping::new(file, offset, bytes).map_err(|error| FabricError::io("mmap", error))?;
        let registration = register(pd, Arc::new(mapping), Access::REMOTE_READ)?;
        Ok(Self {
            registration: Registration::File(registration),
            length: bytes,
            access: Access::REMOTE_READ,
        })
    }

    pub(super) fn is_of(&self, pd: &Arc<ProtectionDomain>) -> bool {
        let ours = match &self.registration {
            Registration::Memory(region) => region.pd(),
            Registration::File(region) => region.pd(),
        };
        Arc::ptr_eq(ours, pd)
    }

    pub(super) fn access(&self) -> Access {
        self.access
    }

    /// The key for work requests of ours.
    pub(super) fn local_key(&self) -> u32 {
        match &self.registration {
            Registration::Memory(region) => region.local_key(),
            Registration::File(region) => region.local_key(),
        }
    }

    /// Its memory, for as long as work is posted on it.
    pub(super) fn keep(&self) -> Keep {
        match &self.registration {
            Registration::Memory(region) => region.memory().clone(),
            Registration::File(region) => region.memory().clone(),
        }
    }

    fn memory(&self, offset: usize, length: usize) -> Result<(&Owned, Range<usize>), FabricError> {
        let Registration::Memory(region) = &self.registration else {
            return Err(FabricError::Invalid("the region is a file".into()));
        };
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok((region.memory(), offset..end)),
            _ => Err(FabricError::Invalid(format!(
                "bytes {offset} to {offset}+{length} are not within a region of {} bytes",
                self.length
            ))),
        }
    }
}

impl RegionOps for VerbsRegion {
    fn stag(&self) -> Stag {
        Stag(match &self.registration {
            Registration::Memory(region) => region.remote_key(),
            Registration::File(region) => region.remote_key(),
        })
    }

    fn base(&self) -> u64 {
        // An address is no wider than 64 bits on any target that Linux's verbs have.
        match &self.registration {
            Registration::Memory(region) => region.memory().start() as u64,
            Registration::File(region) => region.memory().start() as u64,
        }
    }

    fn len(&self) -> usize {
        self.length
    }

    fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), FabricError> {
        let (memory, range) = self.memory(offset, bytes.len())?;
        memory.copy_in(range, bytes);
        Ok(())
    }

    fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), FabricError> {
        let (memory, range) = self.memory(offset, bytes.len())?;
        memory.copy_out(range, bytes);
        Ok(())
    }

    fn deregister(self: Box<Self>) -> Result<Vec<u8>, FabricError> {
        let Registration::Memory(registration) = self.registration else { return Ok(Vec::new()) };
        let memory = registration.memory().clone();
        drop(registration);
        let mut memory = Arc::try_unwrap(memory).map_or_else(
            // Work is still posted on it. It will fail, but who knows what the device is doing at this moment: the
            // memory stays with the work, and its bytes as they are now are handed out.
            |shared| {
                let mut copy = vec![0; self.length];
                shared.copy_out(0..self.length, &mut copy);
                copy
            },
            Owned::into_vec,
        );
        memory.truncate(self.length);
        Ok(memory)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
