//! How the programs' memory allocator is set.
#![expect(unsafe_code, reason = "mallopt(3), which has no safe wrapper")]

/// Keeps the buffers of a few transfers for the next ones. By itself glibc gives what lies free at a heap's end back to the system
/// from 128 KiB on; each buffer of 1 MiB then comes back as zero pages, which took as long as sealing it. Other allocators
/// have no such setting, and need none.
pub(super) fn keep_buffers() {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        for (what, bytes) in [(M_MMAP_THRESHOLD, 4 << 20), (M_TRIM_THRESHOLD, 16 << 20)] {
            // SAFETY: it takes two numbers, and changes nothing that was allocated.
            if unsafe { mallopt(what, bytes) } == 0 {
                tracing::debug!(what, bytes, "the allocator does not take this setting");
            }
        }
    }
}
