//! The only place that calls libibverbs and librdmacm. What leaves it is safe: each object of the C libraries is owned by
//! one value here, keeps alive what it depends on, and is destroyed when that value is dropped.
//!
//! The order in which things must end (queue pair, completion queue, completion channel, protection domain, device) is the
//! order of the fields and references of these types.

#![expect(unsafe_code, reason = "libibverbs and librdmacm are C libraries")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

mod cm;
mod completion;
mod device;
#[cfg(test)]
mod layout;
mod memory;
mod queue_pair;

pub(super) use cm::{CmId, Event, EventChannel, EventKind, Offer, event};
pub(super) use completion::{CompletionChannel, CompletionQueue, WorkCompletion, completed};
pub(super) use device::{Context, Devices, Limits, PortAttributes, Transport};
pub(super) use memory::{Backing, Mapping, MemoryRegion, Owned, ProtectionDomain};
pub(super) use queue_pair::{Depths, Place, QueuePair, Remote};

/// The result of a call of librdmacm's, or of one of libibverbs' that sets errno: 0, or -1 and errno.
fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The result of a verb: 0, an error number, or -1 and errno, depending on the call and its provider.
fn returned(result: i32) -> io::Result<()> {
    if result > 0 { Err(io::Error::from_raw_os_error(result)) } else { check(result) }
}

/// Registers a channel with tokio's reactor.
fn register<T: ReadableChannel>(channel: T) -> io::Result<Arc<AsyncFd<T>>> {
    // Where there is none, registering would panic.
    tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
    // SAFETY: what `ReadableChannel` promises.
    let registered = unsafe { AsyncFd::register_with_interest(channel, Interest::READABLE) };
    Ok(Arc::new(registered?))
}

/// A channel of the libraries'.
///
/// # Safety
///
/// `as_raw_fd` returns the same descriptor at every call, and it stays open until the value is dropped.
unsafe trait ReadableChannel: AsRawFd {}

// SAFETY: the library opens the descriptor with the channel and closes it in `rdma_destroy_event_channel`.
unsafe impl ReadableChannel for cm::EventChannel {}
// SAFETY: the library opens the descriptor with the channel and closes it in `ibv_destroy_comp_channel`.
unsafe impl ReadableChannel for completion::CompletionChannel {}

/// Makes reads of a descriptor return at once.
fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: the caller's object owns the descriptor, which is open for the length of this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
