//! Protection domains and registered memory.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::libc::{self, c_void};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use rdma_sys as ffi;

use super::{Context, returned};
use crate::fabric::Access;

/// A protection domain.
pub(crate) struct ProtectionDomain {
    raw: NonNull<ffi::ibv_pd>,
    context: Context,
}

// SAFETY: verbs are thread-safe, and the structure is not written to after it was made.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    pub(crate) fn new(context: Context) -> io::Result<Arc<Self>> {
        // SAFETY: the context is open, and held by the result.
        let raw = unsafe { ffi::ibv_alloc_pd(context.raw()) };
        Ok(Arc::new(Self { raw: NonNull::new(raw).ok_or_else(io::Error::last_os_error)?, context }))
    }

    /// The library's pointer, valid while `self` lives.
    pub(super) fn raw(&self) -> *mut ffi::ibv_pd {
        self.raw.as_ptr()
    }

    /// Its device.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: it is ours, and all that was made in it held it and is gone.
        if let Err(error) = returned(unsafe { ffi::ibv_dealloc_pd(self.raw()) }) {
            tracing::warn!(%error, "ibv_dealloc_pd failed");
        }
    }
}

/// Memory that stays where it is for as long as this value lives, and that nobody has a Rust reference to.
///
/// # Safety
///
/// `start` and `length` say the same at every call, and name memory that may be read (and written, if it is registered so)
/// until the value is dropped.
pub(crate) unsafe trait Backing: Send + Sync {
    /// Its first byte.
    fn start(&self) -> *mut u8;
    /// Bytes.
    fn length(&self) -> usize;
}

/// A vector that is looked at through pointers only, since a device may write to it.
pub(crate) struct Owned {
    start: *mut u8,
    length: usize,
    capacity: usize,
}

// SAFETY: it owns its bytes as a `Vec<u8>` does.
unsafe impl Send for Owned {}
// SAFETY: nothing is read or written through `&self` but by a copy of whole bytes.
unsafe impl Sync for Owned {}

impl Owned {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let mut bytes = ManuallyDrop::new(bytes);
        Self { start: bytes.as_mut_ptr(), length: bytes.len(), capacity: bytes.capacity() }
    }

    /// The vector again.
    pub(crate) fn into_vec(self) -> Vec<u8> {
        let this = ManuallyDrop::new(self);
        // SAFETY: these are the parts of the vector that `new` took apart, given back once.
        unsafe { Vec::from_raw_parts(this.start, this.length, this.capacity) }
    }

    /// Copies bytes into a range. A device that reads them at the same time sees any mixture of old and new.
    ///
    /// # Panics
    ///
    /// If the range is not inside the memory, or not as long as the bytes.
    pub(crate) fn copy_in(&self, range: Range<usize>, bytes: &[u8]) {
        assert!(range.end <= self.length && range.len() == bytes.len(), "{range:?} of {}", self.length);
        // SAFETY: the range is inside the allocation, and nobody has a reference to its bytes.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.start.add(range.start), bytes.len()) }
    }

    /// Copies a range out, as its bytes are at this moment.
    ///
    /// # Panics
    ///
    /// As [`copy_in`](Self::copy_in).
    pub(crate) fn copy_out(&self, range: Range<usize>, bytes: &mut [u8]) {
        assert!(range.end <= self.length && range.len() == bytes.len(), "{range:?} of {}", self.length);
        // SAFETY: the range is inside the allocation, and its bytes are initialised. A device, or another thread's
        // `copy_in`, at the same time can spoil only what the bytes say.
        unsafe { std::ptr::copy(self.start.add(range.start), bytes.as_mut_ptr(), bytes.len()) }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: as in `into_vec`, which does not come here.
        drop(unsafe { Vec::from_raw_parts(self.start, self.length, self.capacity) });
    }
}

// SAFETY: a vector's bytes stay where they are, and `start` and `length` are never changed.
unsafe impl Backing for Owned {
    fn start(&self) -> *mut u8 {
        self.start
    }

    fn length(&self) -> usize {
        self.length
    }
}

/// A part of a file, mapped for reading: the page cache itself.
pub(crate) struct Mapping {
    map: NonNull<c_void>,
    mapped: usize,
    /// Where the part begins: a mapping begins at a page.
    lead: usize,
    length: usize,
}

// SAFETY: nothing is read or written through it by us.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps bytes that the file has.
    pub(crate) fn new(file: &File, offset: u64, length: usize) -> io::Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let page = page.and_then(|page| u64::try_from(page).ok()).unwrap_or(4096);
        let lead = usize::try_from(offset % page).map_err(io::Error::other)?;
        let start = libc::off_t::try_from(offset - offset % page).map_err(io::Error::other)?;
        let mapped =
            length.checked_add(lead).and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        let map = unsafe { mmap(None, mapped, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, start)? };
        Ok(Self { map, mapped: mapped.get(), lead, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and its registration held it and is gone.
        if let Err(error) = unsafe { munmap(self.map, self.mapped) } {
            tracing::warn!(%error, "munmap failed");
        }
    }
}

// SAFETY: the mapping stays where it is. It may be read by a device, which holds the pages themselves: a file that becomes
// shorter takes none of them away.
unsafe impl Backing for Mapping {
    fn start(&self) -> *mut u8 {
        self.map.as_ptr().cast::<u8>().wrapping_add(self.lead)
    }

    fn length(&self) -> usize {
        self.length
    }
}

/// A registration. It holds the memory, and ends before it.
pub(crate) struct MemoryRegion<B: Backing = Owned> {
    raw: NonNull<ffi::ibv_mr>,
    pd: Arc<ProtectionDomain>,
    memory: Arc<B>,
}

// SAFETY: verbs are thread-safe, and the structure is not written to after it was made.
unsafe impl<B: Backing> Send for MemoryRegion<B> {}
// SAFETY: as above.
unsafe impl<B: Backing> Sync for MemoryRegion<B> {}

impl<B: Backing> MemoryRegion<B> {
    /// Registers memory. The verbs know no empty regions: such memory must not come here.
    pub(crate) fn new(pd: &Arc<ProtectionDomain>, memory: Arc<B>, access: Access) -> io::Result<Self> {
        use ffi::ibv_access_flags as flags;
        let mut bits = flags(0);
        if access.local_write || access.remote_write {
            bits |= flags::IBV_ACCESS_LOCAL_WRITE;
        }
        if access.remote_write {
            bits |= flags::IBV_ACCESS_REMOTE_WRITE;
        }
        if access.remote_read {
            bits |= flags::IBV_ACCESS_REMOTE_READ;
        }
        let bits = i32::try_from(bits.0).map_err(io::Error::other)?;
        // SAFETY: the memory is there for as long as `memory` lives (`Backing`), which is until after the registration's
        // end; the domain is held too.
        let raw = unsafe { ffi::ibv_reg_mr(pd.raw(), memory.start().cast(), memory.length(), bits) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { raw, pd: pd.clone(), memory })
    }

    /// Its domain.
    pub(crate) fn pd(&self) -> &Arc<ProtectionDomain> {
        &self.pd
    }

    /// The memory.
    pub(crate) fn memory(&self) -> &Arc<B> {
        &self.memory
    }

    /// The address of a byte of it, as work requests and the peer name it.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        // No address is wider than 64 bits.
        self.memory.start() as u64 + offset as u64
    }

    /// The key for work requests.
    pub(crate) fn local_key(&self) -> u32 {
        // SAFETY: the registration lives.
        unsafe { self.raw.as_ref().lkey }
    }

    /// The key for the peer's work requests: its STag.
    pub(crate) fn remote_key(&self) -> u32 {
        // SAFETY: the registration lives.
        unsafe { self.raw.as_ref().rkey }
    }
}

impl<B: Backing> Drop for MemoryRegion<B> {
    fn drop(&mut self) {
        // SAFETY: the registration is ours and ended once; the memory is freed after it.
        if let Err(error) = returned(unsafe { ffi::ibv_dereg_mr(self.raw.as_ptr()) }) {
            tracing::warn!(%error, "ibv_dereg_mr failed");
            // The device may still reach it, so it is never freed.
            std::mem::forget(self.memory.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_vector_comes_back_as_it_went() {
        let mut bytes = Vec::with_capacity(100);
        bytes.extend_from_slice(b"0123456789");
        let start = bytes.as_ptr();
        let owned = Arc::new(Owned::new(bytes));
        assert_eq!((owned.start().cast_const(), owned.length()), (start, 10));
        owned.copy_in(2..4, b"ab");
        let mut seen = [0; 4];
        let reader = owned.clone();
        std::thread::spawn(move || {
            reader.copy_out(1..5, &mut seen);
            assert_eq!(&seen, b"1ab4");
        })
        .join()
        .unwrap();
        let owned = Arc::into_inner(owned).expect("the thread's is gone");
        let bytes = owned.into_vec();
        assert_eq!((bytes.as_slice(), bytes.capacity()), (&b"01ab456789"[..], 100));
        // Without being given back, and with nothing in it.
        drop(Owned::new(vec![1; 10]));
        assert_eq!(Owned::new(Vec::new()).into_vec(), b"");
    }

    #[test]
    #[should_panic(expected = "8..11 of 10")]
    fn nothing_is_copied_beyond_the_end() {
        Owned::new(vec![0; 10]).copy_in(8..11, &[0; 3]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri maps no files")]
    fn a_file_is_mapped_where_it_begins() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..10_000).map(|n| (n % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        for (offset, length) in [(0, 10), (5, 100), (4096, 1), (5000, 5000)] {
            let mapping = Mapping::new(&file, offset as u64, length).unwrap();
            // SAFETY: the mapping lives, and nobody changes the file.
            let seen = unsafe { std::slice::from_raw_parts(mapping.start(), mapping.length()) };
            assert_eq!(seen, &bytes[offset..offset + length]);
        }
        assert_eq!(Mapping::new(&file, 0, 0).map(drop).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
