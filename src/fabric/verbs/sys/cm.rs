//! Connection management: identifiers, and the channels on which the library tells what became of them.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use rdma_sys as ffi;
use tokio::io::unix::AsyncFd;

use super::{Context, Devices, check, register, set_nonblocking};

/// Where events of identifiers arrive. Its descriptor is readable when there is one.
pub(crate) struct EventChannel(NonNull<ffi::rdma_event_channel>);

// SAFETY: a channel is a descriptor; the library serialises what it keeps beside it.
unsafe impl Send for EventChannel {}
// SAFETY: as above.
unsafe impl Sync for EventChannel {}

impl EventChannel {
    /// A channel, registered with tokio's reactor.
    pub(crate) fn open() -> io::Result<Arc<AsyncFd<Self>>> {
        // SAFETY: takes nothing; null or a channel that is ours.
        let raw = unsafe { ffi::rdma_create_event_channel() };
        let channel = Self(NonNull::new(raw).ok_or_else(io::Error::last_os_error)?);
        set_nonblocking(channel.as_raw_fd())?;
        register(channel)
    }
}

impl AsRawFd for EventChannel {
    fn as_raw_fd(&self) -> RawFd {
        // SAFETY: the channel lives as long as `self`.
        unsafe { self.0.as_ref().fd }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: every identifier on the channel holds a reference to it, so none is left.
        unsafe { ffi::rdma_destroy_event_channel(self.0.as_ptr()) }
    }
}

/// What an event says (rdma_get_cm_event(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// The address is resolved.
    AddressResolved,
    /// It is not.
    AddressError,
    /// The route is resolved.
    RouteResolved,
    /// It is not.
    RouteError,
    /// A peer asks to be connected.
    ConnectRequest,
    /// Connected.
    Established,
    /// The peer refused, or nobody listens there.
    Rejected,
    /// No answer.
    Unreachable,
    /// The setting up failed.
    ConnectError,
    /// The connection is gone.
    Disconnected,
    /// The device is gone.
    DeviceRemoval,
    /// Nothing that matters here.
    Other(u32),
}

/// What comes with a request, a reply or a rejection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    /// On InfiniBand and RoCE padded with zeros to the length of the message's field.
    pub(crate) private_data: Vec<u8>,
    /// Reads that we are asked to take.
    pub(crate) inbound_reads: u8,
    /// Reads that we are allowed.
    pub(crate) outbound_reads: u8,
}

/// An event, copied out of the library.
pub(crate) struct Event {
    pub(crate) kind: EventKind,
    /// 0, a negative error number, or InfiniBand's reason for a rejection.
    pub(crate) status: i32,
    pub(crate) offer: Offer,
    /// The new identifier of a [`EventKind::ConnectRequest`].
    pub(crate) request: Option<CmId>,
}

/// The next event of a channel; `WouldBlock` if there is none.
fn next_event(channel: &Arc<AsyncFd<EventChannel>>) -> io::Result<Event> {
    let mut raw = ptr::null_mut();
    // SAFETY: the channel lives; on success `raw` is an event that is ours until it is acknowledged.
    check(unsafe { ffi::rdma_get_cm_event(channel.get_ref().0.as_ptr(), &raw mut raw) })?;
    // SAFETY: as above. Enumerations are integers in rdma-sys, so that any value is valid.
    let (id, kind, status) = unsafe { ((*raw).id, (*raw).event, (*raw).status) };
    use ffi::rdma_cm_event_type as t;
    let kind = match kind {
        t::RDMA_CM_EVENT_ADDR_RESOLVED => EventKind::AddressResolved,
        t::RDMA_CM_EVENT_ADDR_ERROR => EventKind::AddressError,
        t::RDMA_CM_EVENT_ROUTE_RESOLVED => EventKind::RouteResolved,
        t::RDMA_CM_EVENT_ROUTE_ERROR => EventKind::RouteError,
        t::RDMA_CM_EVENT_CONNECT_REQUEST => EventKind::ConnectRequest,
        t::RDMA_CM_EVENT_ESTABLISHED => EventKind::Established,
        t::RDMA_CM_EVENT_REJECTED => EventKind::Rejected,
        t::RDMA_CM_EVENT_UNREACHABLE => EventKind::Unreachable,
        t::RDMA_CM_EVENT_CONNECT_ERROR => EventKind::ConnectError,
        t::RDMA_CM_EVENT_DISCONNECTED => EventKind::Disconnected,
        t::RDMA_CM_EVENT_DEVICE_REMOVAL => EventKind::DeviceRemoval,
        other => EventKind::Other(other),
    };
    let carries = matches!(kind, EventKind::ConnectRequest | EventKind::Established | EventKind::Rejected);
    let offer = if carries {
        // SAFETY: these events of a connected service have `param.conn`; its private data is as long as it says, or null,
        // and lives until the event is acknowledged.
        unsafe {
            let conn = &(*raw).param.conn;
            let data = conn.private_data.cast::<u8>();
            let length = usize::from(conn.private_data_len);
            Offer {
                private_data: if data.is_null() {
                    Vec::new()
                } else {
                    std::slice::from_raw_parts(data, length).to_vec()
                },
                inbound_reads: conn.responder_resources,
                outbound_reads: conn.initiator_depth,
            }
        }
    } else {
        Offer::default()
    };
    // SAFETY: the event is acknowledged once, and not used after.
    check(unsafe { ffi::rdma_ack_cm_event(raw) })?;
    let request = match kind {
        EventKind::ConnectRequest => NonNull::new(id).map(|raw| CmId { raw, channel: channel.clone() }),
        _ => None,
    };
    Ok(Event { kind, status, offer, request })
}

/// Waits for the next event of a channel. Cancelling it loses none.
pub(crate) async fn event(channel: &Arc<AsyncFd<EventChannel>>) -> io::Result<Event> {
    loop {
        let mut ready = channel.readable().await?;
        match next_event(channel) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            result => return result,
        }
    }
}

/// An identifier: to connection management what a socket is to TCP.
pub(crate) struct CmId {
    raw: NonNull<ffi::rdma_cm_id>,
    channel: Arc<AsyncFd<EventChannel>>,
}

// SAFETY: the library locks what it changes in an identifier; what is read here is set before the value is shared.
unsafe impl Send for CmId {}
// SAFETY: as above.
unsafe impl Sync for CmId {}

impl CmId {
    /// An identifier for reliable connections, with a channel of its own.
    pub(crate) fn new() -> io::Result<Self> {
        let channel = EventChannel::open()?;
        let mut raw = ptr::null_mut();
        let space = ffi::rdma_port_space::RDMA_PS_TCP;
        // SAFETY: the channel lives as long as the identifier, which holds it; `raw` outlives the call.
        check(unsafe {
            ffi::rdma_create_id(channel.get_ref().0.as_ptr(), &raw mut raw, ptr::null_mut(), space)
        })?;
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { raw, channel })
    }

    /// The library's pointer, valid while `self` lives.
    pub(super) fn raw(&self) -> *mut ffi::rdma_cm_id {
        self.raw.as_ptr()
    }

    /// Its channel.
    pub(crate) fn channel(&self) -> &Arc<AsyncFd<EventChannel>> {
        &self.channel
    }

    /// Moves it to a channel of its own.
    pub(crate) fn migrate(mut self) -> io::Result<Self> {
        let channel = EventChannel::open()?;
        // SAFETY: both live. All events of the identifier that were taken are acknowledged, or this would wait for ever.
        check(unsafe { ffi::rdma_migrate_id(self.raw(), channel.get_ref().0.as_ptr()) })?;
        self.channel = channel;
        Ok(self)
    }

    /// The device that it is bound to, of those that `devices` has open.
    pub(crate) fn context(&self, devices: &Arc<Devices>) -> Option<Context> {
        // SAFETY: the identifier lives; the field is set by the call or the event that bound it.
        let bound = unsafe { self.raw.as_ref().verbs };
        devices.contexts().into_iter().find(|context| std::ptr::eq(context.raw(), bound))
    }

    /// Binds it to an address, and to the device that has it.
    pub(crate) fn bind(&self, address: SocketAddr) -> io::Result<()> {
        let address = SockaddrStorage::from(address);
        // SAFETY: the identifier lives; the call reads the address, by its family's length, and keeps nothing of it.
        check(unsafe { ffi::rdma_bind_addr(self.raw(), address.as_ptr().cast_mut()) })
    }

    /// Listens.
    pub(crate) fn listen(&self, backlog: i32) -> io::Result<()> {
        // SAFETY: the identifier lives.
        check(unsafe { ffi::rdma_listen(self.raw(), backlog) })
    }

    /// Starts to look for the device and the way to an address.
    pub(crate) fn resolve_address(&self, to: SocketAddr, limit: Duration) -> io::Result<()> {
        let to = SockaddrStorage::from(to);
        // SAFETY: as in `bind`; no source address is given.
        check(unsafe {
            ffi::rdma_resolve_addr(self.raw(), ptr::null_mut(), to.as_ptr().cast_mut(), milliseconds(limit))
        })
    }

    /// Starts to look for the path.
    pub(crate) fn resolve_route(&self, limit: Duration) -> io::Result<()> {
        // SAFETY: the identifier lives.
        check(unsafe { ffi::rdma_resolve_route(self.raw(), milliseconds(limit)) })
    }

    /// Refuses a request.
    pub(crate) fn reject(&self, private_data: &[u8]) -> io::Result<()> {
        let length = u8::try_from(private_data.len()).map_err(io::Error::other)?;
        // SAFETY: the identifier lives; the call copies the data.
        check(unsafe { ffi::rdma_reject(self.raw(), private_data.as_ptr().cast(), length) })
    }

    /// Our address.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        // SAFETY: the identifier lives, and the whole union is there, zeroed or an address.
        unsafe { socket_addr(&raw const self.raw.as_ref().route.addr.src_addr_union.src_storage) }
    }

    /// The peer's address.
    pub(crate) fn peer_addr(&self) -> Option<SocketAddr> {
        // SAFETY: as above.
        unsafe { socket_addr(&raw const self.raw.as_ref().route.addr.dst_addr_union.dst_storage) }
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        // SAFETY: the identifier is ours and destroyed once; a queue pair on it is destroyed before (`QueuePair`).
        if let Err(error) = check(unsafe { ffi::rdma_destroy_id(self.raw()) }) {
            tracing::warn!(%error, "rdma_destroy_id failed");
        }
    }
}

fn milliseconds(limit: Duration) -> i32 {
    i32::try_from(limit.as_millis()).unwrap_or(i32::MAX)
}

/// # Safety
///
/// `address` points to a socket address of an IP family, or to one of no family.
unsafe fn socket_addr(address: *const libc::sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: the caller's promise; IP addresses say their own length.
    let address = unsafe { SockaddrStorage::from_raw(address.cast(), None) }?;
    let v4 = address.as_sockaddr_in().map(|&v4| SocketAddr::V4(SocketAddrV4::from(v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|&v6| SocketAddr::V6(SocketAddrV6::from(v6))))
}
