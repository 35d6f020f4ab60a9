//! Enters the namespaces that a lab lives in, and the process tree that goes with them.
//!
//! ```text
//! launcher   unshares, forks, ends
//! └─ PID 1   of the PID namespace: its end is the end of every process of the lab
//!    └─ agent
//! ```
#![expect(unsafe_code, reason = "fork has no safe interface")]

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, Pid, fork, getegid, geteuid};

use super::refusal::{Refusal, Step};

/// CAP_NET_ADMIN and CAP_SYS_ADMIN, as bits of `CapEff`.
const NEEDED_CAPABILITIES: u64 = 1 << 12 | 1 << 21;

/// Everything of a lab's own but the user namespace.
fn namespaces() -> CloneFlags {
    CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWPID
}

/// Moves this process, which must have a single thread, into namespaces of its own. Whoever has the capabilities, as root
/// has, gets no user namespace, so that it works where those are turned off. The PID namespace begins with the next
/// child.
pub(super) fn enter() -> Result<(), Refusal> {
    let privileged = is_privileged();
    if privileged {
        match unshare(namespaces()) {
            Ok(()) => return Ok(()),
            // Root in a container may lack what its capabilities promise (seccomp); a user namespace may still work.
            Err(Errno::EPERM | Errno::EACCES) => {}
            Err(error) => return Err(Refusal::new(Step::Namespaces, error, privileged)),
        }
    }
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)
        .map_err(|error| Refusal::new(Step::UserNamespace, error, privileged))?;
    // Without this the kernel takes no group map from an ordinary user (user_namespaces(7)).
    let write = |file: &str, text: String| {
        fs::write(file, text).map_err(|error| Refusal::new(Step::IdMap, errno(&error), privileged))
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    unshare(namespaces()).map_err(|error| Refusal::new(Step::Namespaces, error, privileged))
}

/// Whether this process may make namespaces without a user namespace.
pub(crate) fn is_privileged() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status).is_some_and(|held| held & NEEDED_CAPABILITIES == NEEDED_CAPABILITIES)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

/// The errno of an I/O error.
pub(super) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// Which side of a fork this is.
pub(crate) enum Side {
    /// The old process, with the id of the new one.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Forks a process that has a single thread; anything else is an error.
pub(crate) fn fork_single_threaded() -> io::Result<Side> {
    let threads = fs::read_dir("/proc/self/task").map(Iterator::count);
    if threads.as_ref().is_ok_and(|count| *count != 1) {
        return Err(io::Error::other("the agent's namespaces must be made before any thread"));
    }
    // SAFETY: this process has this one thread (checked above; where /proc cannot be read, by the contract of the
    // `agent` verb, which starts none), so no lock can be left held and the child may run any code.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Side::Parent(child)),
        ForkResult::Child => Ok(Side::Child),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000201000\n";
        assert_eq!(effective_capabilities(status), Some(NEEDED_CAPABILITIES));
        assert_eq!(effective_capabilities("CapEff:\tx\n"), None);
    }

    #[test]
    fn a_process_with_threads_is_not_forked() {
        std::thread::scope(|scope| {
            let (stop, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv());
            assert!(fork_single_threaded().is_err());
            drop(stop);
        });
    }
}
