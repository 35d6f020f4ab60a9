//! Queue pairs: what is posted, and connecting.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use rdma_sys as ffi;

use super::cm::{CmId, Offer};
use super::{CompletionQueue, ProtectionDomain, check, returned};

/// How much a queue pair holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Depths {
    /// Sends, Writes and Reads.
    pub(crate) send: u32,
    /// Receives.
    pub(crate) receive: u32,
    /// Bytes that a work request may carry within itself.
    pub(crate) inline: u32,
}

/// A place in registered memory of ours. Whoever posts it keeps it registered until the work completes, or else the work
/// fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) key: u32,
}

/// A place in the peer's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote {
    pub(crate) address: u64,
    pub(crate) key: u32,
}

/// A reliable connected queue pair with the identifier that connects it.
pub(crate) struct QueuePair {
    // Destroyed by `drop` before these, which go in this order.
    id: CmId,
    completions: CompletionQueue,
    _pd: Arc<ProtectionDomain>,
}

impl QueuePair {
    /// Makes a queue pair on an identifier that is bound to the device of `pd`.
    pub(crate) fn new(
        id: CmId,
        pd: &Arc<ProtectionDomain>,
        completions: CompletionQueue,
        depths: Depths,
    ) -> io::Result<Self> {
        let mut attributes = ffi::ibv_qp_init_attr {
            qp_context: ptr::null_mut(),
            send_cq: completions.raw(),
            recv_cq: completions.raw(),
            srq: ptr::null_mut(),
            cap: ffi::ibv_qp_cap {
                max_send_wr: depths.send,
                max_recv_wr: depths.receive,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: depths.inline,
            },
            qp_type: ffi::ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 1,
        };
        // SAFETY: identifier, domain and queue live and are held by the result; the attributes outlive the call. A domain
        // of another device is an error of the library's.
        check(unsafe { ffi::rdma_create_qp(id.raw(), pd.raw(), &raw mut attributes) })?;
        Ok(Self { id, completions, _pd: pd.clone() })
    }

    /// The identifier.
    pub(crate) fn id(&self) -> &CmId {
        &self.id
    }

    /// Where its work completes.
    pub(crate) fn completions(&self) -> &CompletionQueue {
        &self.completions
    }

    fn raw(&self) -> *mut ffi::ibv_qp {
        // SAFETY: the identifier lives, and has its queue pair from `new` to `drop`.
        unsafe { (*self.id.raw()).qp }
    }

    /// Asks the peer to connect. On siw this waits for TCP's handshake.
    pub(crate) fn connect(&self, offer: &Offer) -> io::Result<()> {
        let mut parameters = parameters(offer)?;
        // SAFETY: the identifier lives; the call copies the parameters and the private data, which `offer` holds.
        check(unsafe { ffi::rdma_connect(self.id.raw(), &raw mut parameters) })
    }

    /// Accepts the peer's request.
    pub(crate) fn accept(&self, offer: &Offer) -> io::Result<()> {
        let mut parameters = parameters(offer)?;
        // SAFETY: as in `connect`.
        check(unsafe { ffi::rdma_accept(self.id.raw(), &raw mut parameters) })
    }

    /// Ends the connection: what is outstanding is flushed.
    pub(crate) fn disconnect(&self) -> io::Result<()> {
        // SAFETY: the identifier lives.
        check(unsafe { ffi::rdma_disconnect(self.id.raw()) })
    }

    /// Posts a receive.
    pub(crate) fn post_receive(&self, number: u64, place: Place) -> io::Result<()> {
        let mut element = element(place);
        let mut request =
            ffi::ibv_recv_wr { wr_id: number, next: ptr::null_mut(), sg_list: &raw mut element, num_sge: 1 };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair lives; the call copies the request and its element. The memory that it names is
        // registered, which is what makes it reachable, or the work fails.
        returned(unsafe { ffi::ibv_post_recv(self.raw(), &raw mut request, &raw mut bad) })
    }

    /// Posts a Write.
    pub(crate) fn post_write(&self, number: u64, source: Place, to: Remote) -> io::Result<()> {
        self.post(number, ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE, Some(element(source)), |request| {
            request.wr.rdma = ffi::rdma_t { remote_addr: to.address, rkey: to.key };
        })
    }

    /// Posts a Read.
    pub(crate) fn post_read(&self, number: u64, sink: Place, from: Remote) -> io::Result<()> {
        self.post(number, ffi::ibv_wr_opcode::IBV_WR_RDMA_READ, Some(element(sink)), |request| {
            request.wr.rdma = ffi::rdma_t { remote_addr: from.address, rkey: from.key };
        })
    }

    /// Posts a Send of registered memory.
    pub(crate) fn post_send(&self, number: u64, source: Place) -> io::Result<()> {
        self.post(number, ffi::ibv_wr_opcode::IBV_WR_SEND, Some(element(source)), |_| {})
    }

    /// Posts a Send of at most as many bytes as the queue pair takes inline.
    pub(crate) fn post_send_inline(&self, number: u64, message: &[u8]) -> io::Result<()> {
        let length = u32::try_from(message.len()).map_err(io::Error::other)?;
        let element = ffi::ibv_sge { addr: message.as_ptr() as u64, length, lkey: 0 };
        self.post(number, ffi::ibv_wr_opcode::IBV_WR_SEND, (length > 0).then_some(element), |request| {
            // The call copies what is inline.
            request.send_flags |= ffi::ibv_send_flags::IBV_SEND_INLINE.0;
        })
    }

    fn post(
        &self,
        number: u64,
        opcode: ffi::ibv_wr_opcode::Type,
        mut element: Option<ffi::ibv_sge>,
        fill: impl FnOnce(&mut ffi::ibv_send_wr),
    ) -> io::Result<()> {
        // SAFETY: the structure is integers, and pointers that may be null: all zeros are valid.
        let mut request = unsafe { MaybeUninit::<ffi::ibv_send_wr>::zeroed().assume_init() };
        request.wr_id = number;
        request.opcode = opcode;
        request.send_flags = ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;
        if let Some(element) = &mut element {
            request.sg_list = element;
            request.num_sge = 1;
        }
        fill(&mut request);
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair lives; the call copies the request, its element and inline data, all of which outlive
        // it. Other memory is registered, which is what makes it reachable, or the work fails.
        returned(unsafe { ffi::ibv_post_send(self.raw(), &raw mut request, &raw mut bad) })
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: the identifier and its queue pair live; after this no work of it touches memory.
        unsafe { ffi::rdma_destroy_qp(self.id.raw()) }
    }
}

fn element(place: Place) -> ffi::ibv_sge {
    ffi::ibv_sge { addr: place.address, length: place.length, lkey: place.key }
}

/// Retries before a peer that does not answer, or has no receive posted, is given up. 7 receives would mean for ever.
const RETRIES: u8 = 6;

/// `offer.private_data` must outlive what is returned.
fn parameters(offer: &Offer) -> io::Result<ffi::rdma_conn_param> {
    Ok(ffi::rdma_conn_param {
        private_data: offer.private_data.as_ptr().cast(),
        private_data_len: u8::try_from(offer.private_data.len()).map_err(io::Error::other)?,
        responder_resources: offer.inbound_reads,
        initiator_depth: offer.outbound_reads,
        flow_control: 1,
        retry_count: RETRIES,
        rnr_retry_count: RETRIES,
        srq: 0,
        qp_num: 0,
    })
}
