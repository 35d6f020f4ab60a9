//! Completion queues, and the channels that tell when to look at them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys as ffi;
use tokio::io::unix::AsyncFd;

use super::{Context, register, returned, set_nonblocking};

/// Tells, by a readable descriptor, that something has completed.
pub(crate) struct CompletionChannel {
    raw: NonNull<ffi::ibv_comp_channel>,
    context: Context,
}

// SAFETY: verbs are thread-safe, and the structure is not written to by us.
unsafe impl Send for CompletionChannel {}
// SAFETY: as above.
unsafe impl Sync for CompletionChannel {}

impl CompletionChannel {
    /// A channel, registered with tokio's reactor.
    pub(crate) fn open(context: &Context) -> io::Result<Arc<AsyncFd<Self>>> {
        // SAFETY: the context is open, and held by the result.
        let raw = unsafe { ffi::ibv_create_comp_channel(context.raw()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let channel = Self { raw, context: context.clone() };
        set_nonblocking(channel.as_raw_fd())?;
        register(channel)
    }

    /// Takes all events that there are. One channel serves one queue here, so they say nothing but "look".
    fn clear(&self) {
        loop {
            let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel lives and both pointers outlive the call.
            if unsafe { ffi::ibv_get_cq_event(self.raw.as_ptr(), &raw mut queue, &raw mut context) } != 0 {
                return;
            }
            // SAFETY: the queue of an event lives until the event is acknowledged, which destroying it waits for.
            unsafe { ffi::ibv_ack_cq_events(queue, 1) };
        }
    }
}

/// Waits until the channel has something to tell. Cancelling it loses nothing.
pub(crate) async fn completed(channel: &AsyncFd<CompletionChannel>) -> io::Result<()> {
    let mut ready = channel.readable().await?;
    channel.get_ref().clear();
    ready.clear_ready();
    Ok(())
}

impl AsRawFd for CompletionChannel {
    fn as_raw_fd(&self) -> RawFd {
        // SAFETY: the channel lives as long as `self`.
        unsafe { self.raw.as_ref().fd }
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: it is ours, and its queue held it and is gone.
        if let Err(error) = returned(unsafe { ffi::ibv_destroy_comp_channel(self.raw.as_ptr()) }) {
            tracing::warn!(%error, device = self.context.name(), "ibv_destroy_comp_channel failed");
        }
    }
}

/// A work completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkCompletion {
    /// The work request's number.
    pub(crate) id: u64,
    /// `ibv_wc_status`.
    pub(crate) status: u32,
    /// The vendor's code.
    pub(crate) vendor: u32,
    /// Bytes that a receive got.
    pub(crate) length: u32,
    /// The key that a received Send invalidated.
    pub(crate) invalidated: Option<u32>,
}

/// A queue of completions.
pub(crate) struct CompletionQueue {
    raw: NonNull<ffi::ibv_cq>,
    _channel: Arc<AsyncFd<CompletionChannel>>,
}

// SAFETY: verbs are thread-safe: a provider locks its queue.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

/// Completions that are taken at one time.
const BATCH: usize = 32;

impl CompletionQueue {
    /// A queue for `entries`, which must never be exceeded.
    pub(crate) fn new(channel: Arc<AsyncFd<CompletionChannel>>, entries: u32) -> io::Result<Self> {
        let entries = i32::try_from(entries).map_err(io::Error::other)?;
        let CompletionChannel { raw, context } = channel.get_ref();
        // SAFETY: context and channel live, and are held by the result.
        let raw = unsafe { ffi::ibv_create_cq(context.raw(), entries, ptr::null_mut(), raw.as_ptr(), 0) };
        Ok(Self { raw: NonNull::new(raw).ok_or_else(io::Error::last_os_error)?, _channel: channel })
    }

    /// The library's pointer, valid while `self` lives.
    pub(super) fn raw(&self) -> *mut ffi::ibv_cq {
        self.raw.as_ptr()
    }

    /// Has the channel tell of the next completion. What completed before must be polled for after this.
    pub(crate) fn arm(&self) -> io::Result<()> {
        // SAFETY: the queue lives.
        returned(unsafe { ffi::ibv_req_notify_cq(self.raw(), 0) })
    }

    /// Takes some completions, none if there are none.
    pub(crate) fn poll(&self, mut each: impl FnMut(WorkCompletion)) -> io::Result<usize> {
        let mut entries = [const { MaybeUninit::<ffi::ibv_wc>::uninit() }; BATCH];
        // SAFETY: the queue lives, and there is room for `BATCH` entries.
        let count = unsafe { ffi::ibv_poll_cq(self.raw(), BATCH as i32, entries.as_mut_ptr().cast()) };
        let count = usize::try_from(count).map_err(|_| io::Error::other("ibv_poll_cq failed"))?;
        for entry in entries.iter().take(count) {
            let entry = entry.as_ptr();
            // SAFETY: the first `count` entries were written. Of one with an error only these first fields are; all are
            // integers in rdma-sys.
            let (id, status, vendor) = unsafe { ((*entry).wr_id, (*entry).status, (*entry).vendor_err) };
            let (mut length, mut invalidated) = (0, None);
            if status == ffi::ibv_wc_status::IBV_WC_SUCCESS {
                // SAFETY: one without an error is written whole; either member of the union is 32 bits.
                unsafe {
                    length = (*entry).byte_len;
                    if (*entry).wc_flags & ffi::ibv_wc_flags::IBV_WC_WITH_INV.0 != 0 {
                        invalidated = Some((*entry).imm_data_invalidated_rkey_union.invalidated_rkey);
                    }
                }
            }
            each(WorkCompletion { id, status, vendor, length, invalidated });
        }
        Ok(count)
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: it is ours, its queue pairs held it and are gone, and all its events are acknowledged.
        if let Err(error) = returned(unsafe { ffi::ibv_destroy_cq(self.raw()) }) {
            tracing::warn!(%error, "ibv_destroy_cq failed");
        }
    }
}
