//! PID 1 of a lab: reaps what nobody else does, passes on the request to end, and ends with the agent, by which the
//! kernel ends every process that is left.

use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What PID 1 waits for.
fn signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// Blocks the signals that [`run`] waits for; before the agent is forked, so that none is missed.
pub(crate) fn block_signals() -> nix::Result<()> {
    signals().thread_block()
}

/// Undoes [`block_signals`] in the agent.
pub(crate) fn unblock_signals() -> nix::Result<()> {
    signals().thread_unblock()
}

/// Waits for the agent's end, then makes sure of everybody else's.
pub(crate) fn run(agent: Pid) -> ExitCode {
    while let Ok(signal) = signals().wait() {
        if signal == Signal::SIGCHLD {
            if agent_was_reaped(agent) {
                break;
            }
        } else {
            // The agent takes the lab down and ends.
            let _ = kill(agent, Signal::SIGTERM);
        }
    }
    // The kernel would do the same at our end. Doing it here means that the lock, which we hold, is free only when
    // nothing of the lab is left.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while !matches!(waitpid(None, None), Err(Errno::ECHILD)) {}
    ExitCode::SUCCESS
}

/// Reaps all that has ended.
fn agent_was_reaped(agent: Pid) -> bool {
    let mut ended = false;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return ended,
            Ok(status) => ended |= status.pid() == Some(agent),
            Err(Errno::EINTR) => {}
            Err(_) => return true,
        }
    }
}
