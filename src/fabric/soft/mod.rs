//! User-space iWARP over tokio: drives [`crate::iwarp`] with TCP sockets. Needs nothing of the kernel.
//!
//! - Regions are zero-based: a region's first byte has tagged offset 0, so [`Region::base`] is 0.
//! - Each connection is one task that owns its state machine; posting hands work over and wakes it. Posting never
//!   waits: at [`SoftOptions::send_queue_depth`] operations that have not completed, a further one fails at once, and
//!   so whoever posts much awaits completions as it goes.
//! - What is received and not yet taken is bounded by the depth and size of receives that the connection was made
//!   with. A peer that sends more is terminated, as on any RDMA fabric.
//! - A peer that no longer answers is noticed after [`SoftOptions::peer_timeout`], by TCP.

#![forbid(unsafe_code)]

use std::any::Any;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{
    Access, BoxFuture, ConnectOptions, Connection, Fabric, FabricError, FabricKind, Listener, Met, OverTcp,
    Pd, PdOps, Region,
};
pub use crate::iwarp::mpa::Revision;
use socket::Socket;

mod driver;
mod establish;
mod filled;
mod handle;
mod listener;
mod over_tcp;
mod region;
mod socket;
mod wire;

#[cfg(test)]
mod bad_peer;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

/// Most private data that is sent: what the kernel's siw can take.
pub const MAX_PRIVATE_DATA: usize = 251;

/// The deepest queue of receives.
pub const MAX_RECEIVE_DEPTH: usize = 16384;

/// The largest receive.
pub const MAX_RECEIVE_SIZE: usize = 16 << 20;

/// How FPDUs are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SegmentSize {
    /// One FPDU to a TCP segment, as RFC 5044, section 4.5 has it; what any peer takes.
    #[default]
    Emss,
    /// As large as RFC 5044 allows. The kernel's siw and this fabric take them; hardware may not.
    Large,
}

/// Settings of the fabric as a whole; those of one connection are [`ConnectOptions`].
#[derive(Clone, Debug)]
pub struct SoftOptions {
    /// The revision of MPA Requests.
    pub revision: Revision,
    /// Begin each outgoing connection with an empty message, so that the accepting side may send first (RFC 6581,
    /// section 4). Off, the connecting side's program must send first.
    pub peer_to_peer: bool,
    /// How FPDUs are cut.
    pub segment_size: SegmentSize,
    /// How long a listener waits for a peer's Request.
    pub request_timeout: Duration,
    /// Peers whose Request a listener waits for at most; at the limit the oldest of them is dropped for a new one.
    pub half_open: usize,
    /// Requests that wait for [`Listener::accept`] at most; further ones are dropped.
    pub backlog: usize,
    /// Operations of one connection that are posted and not complete, at most.
    pub send_queue_depth: usize,
    /// Bounds an orderly close: what is posted must be done by then, and the peer must have closed too.
    pub close_timeout: Duration,
    /// How long a peer may leave sent bytes, or keepalive probes, unacknowledged.
    pub peer_timeout: Duration,
    /// Regions registered at one time, at most.
    pub max_regions: usize,
}

impl Default for SoftOptions {
    fn default() -> Self {
        Self {
            revision: Revision::V2,
            peer_to_peer: false,
            segment_size: SegmentSize::Emss,
            request_timeout: Duration::from_secs(5),
            half_open: 128,
            backlog: 128,
            send_queue_depth: 4096,
            close_timeout: Duration::from_secs(5),
            peer_timeout: Duration::from_secs(20),
            max_regions: 65536,
        }
    }
}

/// User-space iWARP. Cheap to clone; clones share their protection domains and regions.
#[derive(Clone)]
pub struct SoftFabric(Arc<Inner>);

struct Inner {
    options: SoftOptions,
    table: Arc<region::Table>,
    domains: AtomicU64,
    /// Peers that were dropped before their Request had come, for others.
    dropped: AtomicU64,
}

impl SoftFabric {
    /// A fabric of its own: nothing registered in another is seen in it.
    pub fn new(options: SoftOptions) -> Self {
        let table = Arc::new(region::Table::new(options.max_regions));
        Self(Arc::new(Inner { options, table, domains: AtomicU64::new(0), dropped: AtomicU64::new(0) }))
    }

    fn domain(&self, pd: &Pd) -> Result<SoftPd, FabricError> {
        match pd.ops().as_any().downcast_ref::<SoftPd>() {
            Some(ours) if Arc::ptr_eq(&ours.table, &self.0.table) => Ok(ours.clone()),
            _ => Err(FabricError::Invalid("the protection domain is of another fabric".into())),
        }
    }
}

impl Default for SoftFabric {
    fn default() -> Self {
        Self::new(SoftOptions::default())
    }
}

impl Fabric for SoftFabric {
    fn kind(&self) -> FabricKind {
        FabricKind::Soft
    }

    fn allocate_pd(&self) -> Result<Pd, FabricError> {
        let domain = self.0.domains.fetch_add(1, Ordering::Relaxed);
        Ok(Pd::new(Arc::new(SoftPd { table: self.0.table.clone(), domain })))
    }

    fn met(&self) -> Met {
        Met { regions: self.0.table.met(), half_open: self.0.dropped.load(Ordering::Relaxed) }
    }

    fn registers_files(&self) -> Result<(), FabricError> {
        Ok(())
    }

    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, Result<Box<dyn Listener>, FabricError>> {
        Box::pin(async move {
            let listener = listener::SoftListener::bind(self.clone(), address).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect(
        &self,
        pd: &Pd,
        to: SocketAddr,
        options: ConnectOptions,
    ) -> BoxFuture<'_, Result<Arc<dyn Connection>, FabricError>> {
        let domain = self.domain(pd);
        Box::pin(async move { establish::connect(&self.0.options, domain?, to, options).await })
    }

    fn over_tcp(&self) -> Option<&dyn OverTcp> {
        Some(self)
    }
}

/// A protection domain.
#[derive(Clone)]
struct SoftPd {
    table: Arc<region::Table>,
    domain: u64,
}

impl PdOps for SoftPd {
    fn register(&self, memory: Vec<u8>, access: Access) -> Result<Region, FabricError> {
        let region = region::SoftRegion::register(&self.table, self.domain, memory, access)?;
        Ok(Region::new(Box::new(region)))
    }

    fn register_file(&self, file: Arc<File>, offset: u64, length: u64) -> Result<Region, FabricError> {
        let region = region::SoftRegion::register_file(&self.table, self.domain, file, offset, length)?;
        Ok(Region::new(Box::new(region)))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
