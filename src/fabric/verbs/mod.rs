//! The kernel's RDMA devices, siw and rxe, through libibverbs and librdmacm.
//!
//! - Regions are named by virtual addresses: [`Region::base`] is where the memory lies in this process.
//! - Each connection is one task, which sleeps until its completion channel or its event channel is readable; nothing
//!   polls. Posting is a call of the verbs' from whatever thread posts.
//! - What is received and not yet taken is bounded by the depth and size of receives that the connection was made with. A
//!   peer that sends more is disconnected by siw; on rxe its Sends are tried again for some seconds, then fail at it.
//! - A peer whose process ends is noticed at once: the kernel closes what it leaves. Of a link that is cut, siw hears by
//!   TCP, and rxe only when it has something posted that is not acknowledged: whoever only waits for a message must bound
//!   the wait.
//! - A failed operation ends its connection, on siw also one that only named a local region that is gone.
//! - iWARP's connecting side must speak first, and siw's takes it for an error if it does not; but siw's accepting side does
//!   not wait for it. So here that side holds back what is posted until a message has come, or for a second if the peer
//!   only Writes and Reads, of which nobody is told.
//! - Neither device takes a Send with Invalidate from a program: siw's library refuses it, and rxe invalidates only memory
//!   windows and regions of the kernel's. It is [`FabricError::Unsupported`].
//! - RoCE carries no length with private data: what arrives on rxe is padded with zeros to 56 bytes with a request, 196
//!   with a reply, 148 with a rejection; these are the limits too. On siw the limit is that of soft.

use std::any::Any;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{
    Access, BoxFuture, ConnectOptions, Connection, Fabric, FabricError, FabricKind, Listener, Pd, PdOps,
    Region,
};

mod connection;
mod device;
mod driver;
mod establish;
mod files;
mod limits;
mod listener;
mod queue;
mod region;
mod status;
mod sys;

pub use device::{Device, Port, PortState, devices};

/// A device of the kernel's as a fabric. Cheap to clone.
#[derive(Clone)]
pub struct VerbsFabric(Arc<Inner>);

struct Inner {
    kind: FabricKind,
    devices: Arc<sys::Devices>,
    context: sys::Context,
    limits: sys::Limits,
    max_message: usize,
    _reserved: Option<sys::CompletionQueue>,
}

impl VerbsFabric {
    /// Opens the device of that kind which this network namespace has an address of. Needs a tokio runtime around it.
    ///
    /// # Errors
    ///
    /// [`FabricError::Invalid`] if there is none, with what is there and what would help.
    pub fn open(kind: FabricKind) -> Result<Self, FabricError> {
        let (devices, context) = device::find(kind)?;
        let limits = context.limits().map_err(|error| FabricError::io("ibv_query_device", error))?;
        let port = context.port(1).map_err(|error| FabricError::io("ibv_query_port", error))?;
        let max_message = usize::try_from(port.max_message).unwrap_or(usize::MAX);
        let reserved = if kind == FabricKind::Siw { Some(reserve_bad_key(&context)?) } else { None };
        Ok(Self(Arc::new(Inner { kind, devices, context, limits, max_message, _reserved: reserved })))
    }

    /// Its device.
    pub fn device(&self) -> Result<Device, FabricError> {
        device::describe(&self.0.context)
    }
}

/// siw's library (rdma-core 44, `SIW_INVAL_UOBJ_KEY`) refuses a queue whose memory the kernel happens to offer at offset
/// 0x90000 of the device's file, and then no further queue can be made. Offsets are handed out in ascending order, so one
/// queue of more than that size, which is kept, sees to it that no other one begins there.
fn reserve_bad_key(context: &sys::Context) -> Result<sys::CompletionQueue, FabricError> {
    const ENTRIES: u32 = 1 << 15;
    let error = |error| FabricError::io("ibv_create_cq", error);
    let channel = sys::CompletionChannel::open(context).map_err(error)?;
    sys::CompletionQueue::new(channel, ENTRIES).map_err(error)
}

impl Inner {
    fn domain(&self, pd: &Pd) -> Result<VerbsPd, FabricError> {
        match pd.ops().as_any().downcast_ref::<VerbsPd>() {
            Some(ours) if *ours.0.context() == self.context => Ok(ours.clone()),
            _ => Err(FabricError::Invalid("the protection domain is of another fabric".into())),
        }
    }

    /// Refuses an identifier that is bound to another device.
    fn expect_device(&self, id: &sys::CmId, address: SocketAddr) -> Result<(), FabricError> {
        match id.context(&self.devices) {
            Some(context) if context == self.context => Ok(()),
            other => Err(FabricError::Invalid(format!(
                "{address} is reached by {}, not by {}, the device that is open",
                other.map_or_else(|| "no RDMA device".to_owned(), |device| device.name()),
                self.context.name()
            ))),
        }
    }
}

impl Fabric for VerbsFabric {
    fn kind(&self) -> FabricKind {
        self.0.kind
    }

    fn allocate_pd(&self) -> Result<Pd, FabricError> {
        let pd = sys::ProtectionDomain::new(self.0.context.clone())
            .map_err(|error| FabricError::io("ibv_alloc_pd", error))?;
        Ok(Pd::new(Arc::new(VerbsPd(pd, self.0.kind))))
    }

    fn registers_files(&self) -> Result<(), FabricError> {
        files::check(&self.allocate_pd()?)
    }

    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, Result<Box<dyn Listener>, FabricError>> {
        Box::pin(async move {
            let listener = listener::VerbsListener::bind(self.0.clone(), address)?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect(
        &self,
        pd: &Pd,
        to: SocketAddr,
        options: ConnectOptions,
    ) -> BoxFuture<'_, Result<Arc<dyn Connection>, FabricError>> {
        let domain = self.0.domain(pd);
        Box::pin(async move { establish::connect(&self.0, domain?, to, options).await })
    }
}

/// A protection domain, and the kind of its device.
#[derive(Clone)]
struct VerbsPd(Arc<sys::ProtectionDomain>, FabricKind);

impl PdOps for VerbsPd {
    fn register(&self, memory: Vec<u8>, access: Access) -> Result<Region, FabricError> {
        Ok(Region::new(Box::new(region::VerbsRegion::register(&self.0, memory, access)?)))
    }

    fn register_file(&self, file: Arc<File>, offset: u64, length: u64) -> Result<Region, FabricError> {
        Ok(Region::new(Box::new(region::VerbsRegion::register_file(&self.0, &file, offset, length)?)))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
