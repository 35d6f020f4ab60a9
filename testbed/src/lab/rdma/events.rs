//! A device's asynchronous events: among them that a port became active and that its GIDs changed.
//!
//! Neither is told on netlink. The kernel tells whoever has a context of the device, which needs no library: one write to
//! its file, whose answer is a descriptor that becomes readable.
//!
//! Source: Linux `include/uapi/rdma/ib_user_verbs.h` (`struct ib_uverbs_cmd_hdr`, `ib_uverbs_get_context`,
//! `ib_uverbs_get_context_resp`, `ib_uverbs_async_event_desc`).
#![expect(unsafe_code, reason = "the kernel answers into memory whose address is part of what is written")]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;

use super::sysfs;

/// `IB_USER_VERBS_CMD_GET_CONTEXT`
const GET_CONTEXT: u32 = 0;

/// The answer: the descriptor, the number of completion vectors, and 8 bytes of the driver's own, which siw insists on.
#[repr(C)]
#[derive(Default)]
struct Context {
    async_fd: i32,
    completion_vectors: u32,
    driver: [u32; 2],
}

/// A device's events.
#[derive(Debug)]
pub struct Events {
    descriptor: AsyncFd<File>,
    /// The context lives as long as this.
    _device: File,
}

impl Events {
    /// From now on. It must be called within a tokio runtime.
    pub fn open(device: &str) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).open(sysfs::uverbs(device)?)?;
        let mut context = Context { async_fd: -1, ..Context::default() };
        // The header, which counts in words, and the address of the answer.
        const LEN: usize = 4 + 2 + 2 + 8;
        let mut request = Vec::with_capacity(LEN);
        request.extend(GET_CONTEXT.to_ne_bytes());
        request.extend(((LEN / 4) as u16).to_ne_bytes());
        request.extend(((size_of::<Context>() / 4) as u16).to_ne_bytes());
        request.extend(((&raw mut context).expose_provenance() as u64).to_ne_bytes());
        // The kernel writes as many words as were announced to `context`, which is that long and outlives the call.
        file.write_all(&request)?;
        // SAFETY: `context` is a valid, aligned value of its own type; what the kernel wrote to it by its address is read
        // back as such.
        let context = unsafe { std::ptr::read_volatile(&raw const context) };
        if context.async_fd < 0 {
            return Err(io::Error::other("the kernel gave no descriptor for the device's events"));
        }
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(context.async_fd) };
        fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: a `File` owns its descriptor, which stays the same and open until the `File` is dropped with this.
        let descriptor = unsafe { AsyncFd::register(File::from(descriptor)) }?;
        Ok(Self { descriptor, _device: file })
    }

    /// Waits for the next event, of whatever kind.
    pub async fn next(&self) -> io::Result<()> {
        /// The element (8 bytes), the event's type (4) and 4 that are reserved.
        const EVENT: usize = 16;
        loop {
            let mut ready = self.descriptor.readable().await?;
            let mut event = [0; EVENT];
            match ready.try_io(|descriptor| descriptor.get_ref().read(&mut event)) {
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}
