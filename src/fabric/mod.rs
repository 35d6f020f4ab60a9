//! One interface to whatever carries RDMA: our own user-space iWARP ([`soft`]) and, behind the feature `verbs`, the
//! kernel's devices.
//!
//! The nouns are those of the verbs: a [`Pd`] groups regions and connections that may meet; a [`Region`] is registered
//! memory, owned by the fabric until it is deregistered; a [`Connection`] is a queue pair that is connected. Work is
//! posted by a call and completes by the [`Completion`] that the call returned, in the order of posting; nothing spins.
//! A call posts at once, whether or not its completion is ever polled.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;

pub use crate::iwarp::Stag;

pub(crate) mod inbox;
pub mod soft;
#[cfg(feature = "verbs")]
pub mod verbs;

/// A boxed future, for the traits below, which are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What resolves when a posted operation has completed. Dropping it does not cancel the operation.
pub type Completion<T = ()> = BoxFuture<'static, Result<T, FabricError>>;

/// What carries RDMA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FabricKind {
    /// Our own iWARP over tokio's TCP sockets; needs nothing of the kernel.
    #[default]
    Soft,
    /// The kernel's software iWARP.
    Siw,
    /// The kernel's software RoCEv2.
    Rxe,
}

impl fmt::Display for FabricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Soft => "soft",
            Self::Siw => "siw",
            Self::Rxe => "rxe",
        })
    }
}

/// What may be done to a region. Local reads are always allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// The fabric may place bytes that this side asked for (the sink of an RDMA Read).
    pub local_write: bool,
    /// The peer may RDMA-Read.
    pub remote_read: bool,
    /// The peer may RDMA-Write. Verbs want `local_write` with it; [`Access::REMOTE_WRITE`] has both.
    pub remote_write: bool,
}

impl Access {
    /// The source of an RDMA Write or Send.
    pub const LOCAL_READ: Self = Self { local_write: false, remote_read: false, remote_write: false };
    /// The sink of an RDMA Read. (On iWARP hardware this needs remote write too; the fabric adds it where it must.)
    pub const LOCAL_WRITE: Self = Self { local_write: true, remote_read: false, remote_write: false };
    /// The sink of a peer's RDMA Write.
    pub const REMOTE_WRITE: Self = Self { local_write: true, remote_read: false, remote_write: true };
    /// The source of a peer's RDMA Read.
    pub const REMOTE_READ: Self = Self { local_write: false, remote_read: true, remote_write: false };
}

/// How often a fabric's own limits were met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Regions that were not registered, because there were as many as there may be.
    pub regions: u64,
    /// Connections that were being made, and were dropped for others.
    pub half_open: u64,
}

/// A fabric that is open: for `soft` the process's own, for the kernel's fabrics one device.
pub trait Fabric: Send + Sync + 'static {
    /// Which one it is.
    fn kind(&self) -> FabricKind;

    /// A new protection domain. A connection sees the regions of its own domain and no others.
    fn allocate_pd(&self) -> Result<Pd, FabricError>;

    /// Listens on `address`; port 0 takes a free port.
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, Result<Box<dyn Listener>, FabricError>>;

    /// Connects to a listener. iWARP makes the connecting side speak first: until it has sent something the accepting
    /// side can send nothing.
    fn connect(
        &self,
        pd: &Pd,
        to: SocketAddr,
        options: ConnectOptions,
    ) -> BoxFuture<'_, Result<Arc<dyn Connection>, FabricError>>;

    /// Whether [`Pd::register_file`] can be used here, and without a copy of the file.
    ///
    /// # Errors
    ///
    /// [`FabricError::Unsupported`] or [`FabricError::Invalid`] with the reason, for the user.
    fn registers_files(&self) -> Result<(), FabricError> {
        Err(FabricError::Unsupported("this fabric registers no files"))
    }

    /// How often limits of its own were met, where it has such.
    fn met(&self) -> Met {
        Met::default()
    }

    /// The fabric as one that can turn a TCP connection which is there already into an RDMA connection; `None` where the
    /// kernel makes them.
    fn over_tcp(&self) -> Option<&dyn OverTcp> {
        None
    }
}

/// What a fabric can do whose connections are TCP streams of this process.
pub trait OverTcp: Send + Sync {
    /// Turns `stream` into an RDMA connection, as the side that speaks first. `first` is what was read of it already.
    fn connect_over(
        &self,
        stream: TcpStream,
        first: Bytes,
        pd: &Pd,
        options: ConnectOptions,
    ) -> BoxFuture<'_, Result<Arc<dyn Connection>, FabricError>>;

    /// Turns `stream` into an RDMA connection, as the side that is asked. `first` is what was read of it already.
    fn accept_over(
        &self,
        stream: TcpStream,
        first: Bytes,
        pd: &Pd,
        options: ConnectOptions,
    ) -> BoxFuture<'_, Result<Arc<dyn Connection>, FabricError>>;
}

/// A protection domain.
#[derive(Clone)]
pub struct Pd(Arc<dyn PdOps>);

/// What a fabric implements for a protection domain.
pub trait PdOps: Send + Sync + 'static {
    /// See [`Pd::register`].
    fn register(&self, memory: Vec<u8>, access: Access) -> Result<Region, FabricError>;
    /// See [`Pd::register_file`].
    fn register_file(&self, file: Arc<File>, offset: u64, length: u64) -> Result<Region, FabricError> {
        let _ = (file, offset, length);
        Err(FabricError::Unsupported("this fabric registers no files"))
    }
    /// The implementation itself, so that its fabric can recognise it.
    fn as_any(&self) -> &dyn std::any::Any;
}

impl Pd {
    /// Wraps a fabric's implementation.
    pub fn new(ops: Arc<dyn PdOps>) -> Self {
        Self(ops)
    }

    /// Registers `memory` (its length, not its capacity). The fabric owns it until [`Region::deregister`].
    pub fn register(&self, memory: Vec<u8>, access: Access) -> Result<Region, FabricError> {
        self.0.register(memory, access)
    }

    /// Registers `length` bytes of `file` from `offset` without reading them: a source, for RDMA Writes of ours and
    /// Reads of the peer ([`Access::REMOTE_READ`]). What is sent is what the file holds when it is sent; a file that has
    /// become shorter ends the connection with an error. [`Region::deregister`] gives no memory back.
    ///
    /// # Errors
    ///
    /// [`FabricError::Unsupported`] if the fabric cannot, [`FabricError::Invalid`] if the file is shorter than that or
    /// the region would be longer than a Read can be (2^32 - 1 bytes).
    pub fn register_file(&self, file: Arc<File>, offset: u64, length: u64) -> Result<Region, FabricError> {
        self.0.register_file(file, offset, length)
    }

    /// The fabric's implementation.
    pub fn ops(&self) -> &Arc<dyn PdOps> {
        &self.0
    }
}

/// Registered memory. Dropping it deregisters it and frees the memory.
pub struct Region(Box<dyn RegionOps>);

/// What a fabric implements for a region.
pub trait RegionOps: Send + Sync + 'static {
    /// See [`Region::stag`].
    fn stag(&self) -> Stag;
    /// See [`Region::base`].
    fn base(&self) -> u64;
    /// See [`Region::len`].
    fn len(&self) -> usize;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// See [`Region::copy_in`].
    fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), FabricError>;
    /// See [`Region::copy_out`].
    fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), FabricError>;
    /// See [`Region::is_filled`].
    fn is_filled(&self, bytes: Range<u64>) -> Option<bool> {
        let _ = bytes;
        None
    }
    /// See [`Region::expect`].
    fn expect(&self, bytes: Range<u64>) {
        let _ = bytes;
    }
    /// See [`Region::limit`].
    fn limit(&self, length: usize) {
        let _ = length;
    }
    /// See [`Region::deregister`].
    fn deregister(self: Box<Self>) -> Result<Vec<u8>, FabricError>;
    /// The implementation itself, so that its fabric can recognise it.
    fn as_any(&self) -> &dyn std::any::Any;
}

impl Region {
    /// Wraps a fabric's implementation.
    pub fn new(ops: Box<dyn RegionOps>) -> Self {
        Self(ops)
    }

    /// Its name on the wire.
    pub fn stag(&self) -> Stag {
        self.0.stag()
    }

    /// The tagged offset of its first byte: 0 where the fabric has zero-based regions, else its virtual address.
    pub fn base(&self) -> u64 {
        self.0.base()
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty region is no special case for any user")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Copies `bytes` to `offset`, for buffers that stay registered. Whoever calls this sees to it that nothing that was
    /// posted on these bytes is still under way.
    ///
    /// # Errors
    ///
    /// [`FabricError::Invalid`] if the bytes are not all within the region, or it is not memory of ours.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), FabricError> {
        self.0.copy_in(offset, bytes)
    }

    /// Copies what lies at `offset` into `bytes`. What a peer is writing there meanwhile comes in any mixture of old and
    /// new; a message that follows its Writes says that they are over.
    ///
    /// # Errors
    ///
    /// As [`copy_in`](Self::copy_in).
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), FabricError> {
        self.0.copy_out(offset, bytes)
    }

    /// Whether the peer has placed all of these bytes, counted from the region's beginning, since the registration, or since
    /// [`Self::expect`]; `None` where the fabric does not know. A device tells nobody what it places, so there one must take
    /// the peer's word.
    pub fn is_filled(&self, bytes: Range<u64>) -> Option<bool> {
        self.0.is_filled(bytes)
    }

    /// What the peer has placed of these bytes counts no more for [`Self::is_filled`].
    pub fn expect(&self, bytes: Range<u64>) {
        self.0.expect(bytes);
    }

    /// From here on the peer reaches the first `length` bytes and no others, within the rights of the registration; with none
    /// it is as if the STag were not there. That is so on `soft` only: a device knows nothing between registered and not, so
    /// there the whole region stays within reach.
    pub fn limit(&self, length: usize) {
        self.0.limit(length);
    }

    /// Ends the registration and hands the memory back. From the moment this is called no peer can touch it: later
    /// segments that name its STag are errors of that peer. Local operations still posted on it fail.
    pub fn deregister(self) -> Result<Vec<u8>, FabricError> {
        self.0.deregister()
    }

    /// The fabric's implementation.
    pub fn ops(&self) -> &dyn RegionOps {
        &*self.0
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("stag", &self.stag())
            .field("base", &self.base())
            .field("len", &self.len())
            .finish()
    }
}

/// A place in the peer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAddress {
    /// The region.
    pub stag: Stag,
    /// The tagged offset.
    pub to: u64,
}

/// How a connection is made or accepted.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Handed to the other side's program with the request or reply; at most 251 bytes (what siw carries).
    pub private_data: Bytes,
    /// Receives kept posted.
    pub receive_depth: usize,
    /// Bytes of each receive; a longer Send is the peer's error.
    pub receive_size: usize,
    /// Reads that the peer may have outstanding towards us (IRD).
    pub inbound_reads: u16,
    /// Reads that we may have outstanding (ORD).
    pub outbound_reads: u16,
    /// Bounds the whole of the setting up.
    pub timeout: Duration,
    /// Whether this side asks for CRC32c; it is used if either side asks. Meaningless on rxe.
    pub crc: bool,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            private_data: Bytes::new(),
            receive_depth: 16,
            receive_size: 4096,
            inbound_reads: 16,
            outbound_reads: 16,
            timeout: Duration::from_secs(5),
            crc: true,
        }
    }
}

/// A listening endpoint. Dropping it stops the listening.
pub trait Listener: Send + Sync {
    /// Where it listens, with the port that was taken.
    fn local_addr(&self) -> SocketAddr;

    /// The next connection request whose start-up frame arrived whole and well-formed. Malformed ones are dropped and
    /// logged, and never delay the others.
    fn accept(&self) -> BoxFuture<'_, Result<Box<dyn ConnectRequest>, FabricError>>;
}

/// A peer that asks to be connected. Dropping it rejects it.
pub trait ConnectRequest: Send {
    /// The peer's address.
    fn peer_addr(&self) -> SocketAddr;
    /// What the peer's program sent along.
    fn private_data(&self) -> &[u8];
    /// Accepts it into a protection domain.
    fn accept(
        self: Box<Self>,
        pd: &Pd,
        options: ConnectOptions,
    ) -> BoxFuture<'static, Result<Arc<dyn Connection>, FabricError>>;
    /// Refuses it, with private data for the peer's program.
    fn reject(self: Box<Self>, private_data: &[u8]) -> BoxFuture<'static, Result<(), FabricError>>;
}

/// A connected queue pair. Dropping the last handle closes it.
pub trait Connection: Send + Sync {
    /// Our address.
    fn local_addr(&self) -> SocketAddr;
    /// The peer's address.
    fn peer_addr(&self) -> SocketAddr;
    /// The private data that came with the peer's request or reply.
    fn private_data(&self) -> &[u8];

    /// RDMA Write: `length` bytes from `offset` of `source` into the peer's memory. Completion means that the bytes
    /// are the transport's; only a Send that follows tells the peer, and only its answer tells us, that they are placed.
    fn write(&self, source: &Region, offset: usize, length: usize, to: RemoteAddress) -> Completion;

    /// RDMA Read: `length` bytes from the peer's memory into `offset` of `sink`. On completion they are there.
    fn read(&self, sink: &Region, offset: usize, length: usize, from: RemoteAddress) -> Completion;

    /// Send: one message, which consumes one receive of the peer's.
    fn send(&self, message: Bytes) -> Completion;

    /// Send with Invalidate: as [`send`](Self::send); before the peer sees it, `stag` of the peer's is invalidated.
    fn send_invalidate(&self, message: Bytes, stag: Stag) -> Completion;

    /// Send with Solicited Event, and with Invalidate if a region is named: the receiver's
    /// [`Received::solicited`] says that its sender asked for an event.
    fn send_solicited(&self, message: Bytes, invalidate: Option<Stag>) -> Completion {
        let _ = (message, invalidate);
        Box::pin(std::future::ready(Err(FabricError::Unsupported("this fabric sends no solicited events"))))
    }

    /// The next message, or an error once the connection is gone and all that came before is delivered. The receive is
    /// posted again at once.
    fn receive(&self) -> Completion<Received>;

    /// Closes in good order: what is posted is finished, then both directions end. Bounded in time.
    fn disconnect(&self) -> BoxFuture<'static, Result<(), FabricError>>;

    /// Resolves when the connection is gone, with the reason.
    fn closed(&self) -> BoxFuture<'static, FabricError>;
}

/// A message that arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its bytes.
    pub message: Bytes,
    /// The region of ours that it invalidated.
    pub invalidated: Option<Stag>,
    /// Whether the peer asked for an event.
    pub solicited: bool,
}

/// What went wrong on a fabric.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FabricError {
    /// The operating system refused.
    #[error("{verb}: {source}")]
    Io {
        /// What was being done.
        verb: &'static str,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// It took too long.
    #[error("{verb}: no answer within {limit:?}")]
    TimedOut {
        /// What was being done.
        verb: &'static str,
        /// The limit that was set.
        limit: Duration,
    },
    /// The peer's program refused the connection.
    #[error("the peer refused the connection")]
    Rejected {
        /// What it sent along.
        private_data: Bytes,
    },
    /// The peer ended the stream with an error of ours, in its words (RFC 5040, section 4.8).
    #[error("the peer sent a Terminate: {0}")]
    TerminatedByPeer(String),
    /// The peer broke the protocol; we sent it a Terminate where the protocol has one.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The connection ended with work outstanding.
    #[error("the connection is closed")]
    Closed,
    /// A parameter that cannot work, found before anything was sent.
    #[error("{0}")]
    Invalid(String),
    /// The fabric cannot do this.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A work completion with an error (the kernel's fabrics).
    #[error("{verb}: {status} (vendor code {vendor:#x})")]
    WorkCompletion {
        /// The operation.
        verb: &'static str,
        /// The status's name, such as `IBV_WC_REM_ACCESS_ERR`.
        status: &'static str,
        /// The vendor's code.
        vendor: u32,
    },
}

impl FabricError {
    /// Wraps an operating-system error with what was being done.
    pub fn io(verb: &'static str, source: io::Error) -> Self {
        Self::Io { verb, source: Arc::new(source) }
    }
}
