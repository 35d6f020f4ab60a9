//! How many descriptors a program may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors besides those of clients: listeners, the log, the runtime's own.
const BESIDES: u64 = 64;

/// Raises the limit to the most that the program may have without asking anybody: what is set when it starts is mostly the
/// 1,024 of programs that use select(2). A limit that is too low for `connections` HTTP connections is a warning.
pub(super) fn allow_for(connections: usize) {
    let most = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    });
    match most {
        Ok(most) if most < needed(connections) => tracing::warn!(
            "only {most} descriptors may be open, and {connections} connections (--max-connections) can need {}: raise the \
             limit (ulimit -Hn, or LimitNOFILE of systemd), or allow fewer",
            needed(connections)
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of descriptors could not be raised"),
    }
}

/// One for HTTP, one for RDMA and one for a file each.
fn needed(connections: usize) -> u64 {
    (connections as u64).saturating_mul(3).saturating_add(BESIDES)
}
