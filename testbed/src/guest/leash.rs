//! What ties a guest's kernel to the process that started it: it is killed when that one ends, however that ends, and the
//! lab's lock is held for as long as it lives.
#![expect(unsafe_code, reason = "what happens between fork and exec has no safe interface")]

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit};
use tokio::process::Command;

/// Has the kernel that `command` starts end with this process and hold `lock` open until then. (More exactly, it ends
/// with the thread that starts it, which must therefore be one that lasts.)
pub(super) fn tie(command: &mut Command, lock: Option<Arc<File>>) {
    let parent = rustix::process::getpid();
    let tie = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(parent) {
            // It ended before that.
            return Err(rustix::io::Errno::SRCH.into());
        }
        if let Some(lock) = &lock {
            fcntl_setfd(lock.as_fd(), FdFlags::empty())?;
        }
        // A kernel that panics aborts, and would leave all of the guest's memory in a file.
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
        Ok(())
    };
    // SAFETY: between fork and exec `tie` makes system calls only: no allocation, no lock, so it is safe however many
    // threads this process has.
    unsafe { command.pre_exec(tie) };
}
