//! Memory that a body arrives in. It comes from the system as zero pages, which become memory as they are written to: in
//! pages of 4 KiB that costs more than all else that is done for a long body, so long ones are asked for in large pages.
#![expect(unsafe_code, reason = "madvise(2), which has no safe wrapper")]

use std::collections::TryReserveError;
use std::ffi::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// From so many bytes on large pages are asked for: for less, half of one that is not needed would be much.
const LONG: usize = 8 << 20;
/// A large page: 2 MiB on x86-64 and, with pages of 4 KiB, on AArch64.
const LARGE: usize = 2 << 20;

/// `length` zeros.
pub(super) fn zeroed(length: usize) -> Result<Vec<u8>, TryReserveError> {
    // `vec!` would end the process where there is no room.
    Vec::<u8>::new().try_reserve_exact(length)?;
    let mut memory = vec![0; length];
    if length >= LONG {
        let before = memory.as_ptr().align_offset(LARGE);
        let whole = length.saturating_sub(before) / LARGE * LARGE;
        if let Some(pages) = memory.get_mut(before..).and_then(|rest| rest.get_mut(..whole)) {
            let start = NonNull::from(&mut *pages).cast::<c_void>();
            // SAFETY: these are pages of `memory`, and the advice changes nothing of what they hold.
            if let Err(error) = unsafe { madvise(start, pages.len(), MmapAdvise::MADV_HUGEPAGE) } {
                // A kernel without them.
                tracing::debug!(%error, "no large pages");
            }
        }
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zeros_of_any_length_or_an_error() {
        for length in [0, 1, LONG - 1, LONG, LONG + 1, 5 * LARGE + 4097] {
            let memory = zeroed(length).unwrap();
            assert!(memory.len() == length && memory.iter().all(|byte| *byte == 0), "{length}");
        }
        assert!(zeroed(usize::MAX).is_err());
        assert!(zeroed(usize::MAX >> 2).is_err());
    }
}
