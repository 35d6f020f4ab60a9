//! How the programs' memory allocator is set.
#![expect(unsafe_code, reason = "mallopt(3) and malloc_trim(3), which have no safe wrappers")]

use std::time::Duration;

use crate::server::Metrics;

/// How often it is looked whether a crowd has gone.
const LOOK: Duration = Duration::from_secs(5);

/// Connections at once that are a crowd.
const CROWD: u64 = 100;

/// Gives memory back to the system whenever a crowd has come and gone, for ever: what a thousand connections had in small
/// pieces glibc would keep, since it looks at the ends of its heaps only.
pub(super) async fn give_back(metrics: Metrics) {
    loop {
        tokio::time::sleep(LOOK).await;
        let (now, most) = metrics.http_connections();
        if has_gone(now, most) {
            metrics.forget_most();
            // It looks through all that is free, which takes milliseconds.
            let _ = tokio::task::spawn_blocking(trim).await;
        }
    }
}

/// Whether of the most connections that there were at once few are left.
fn has_gone(now: u64, most: u64) -> bool {
    most >= CROWD && now <= most / 10
}

fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes a number, and changes nothing that is allocated.
        let released = unsafe { nix::libc::malloc_trim(0) };
        tracing::debug!(released, "gave free memory back");
    }
}

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

#[cfg(test)]
mod tests {
    use super::has_gone;

    #[test]
    fn a_crowd_has_gone_when_few_of_it_are_left() {
        assert!(has_gone(0, 100) && has_gone(100, 1000));
        assert!(!has_gone(101, 1000), "it is still here");
        assert!(!has_gone(0, 99), "it never was one");
    }
}
