//! Making a connection: the setting up of both sides, within its time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::connection::{INLINE, Shared, VerbsConnection};
use super::driver::Driver;
use super::queue::Receives;
use super::sys::{
    CmId, CompletionChannel, CompletionQueue, Depths, Event, EventChannel, EventKind, Offer, QueuePair, event,
};
use super::{Inner, VerbsPd, limits};
use crate::fabric::{ConnectOptions, Connection, FabricError, FabricKind};

/// Work requests of one connection that are posted and not complete, at most.
const SEND_DEPTH: u32 = 1024;

/// InfiniBand's reason for a rejection by the other side's program (IBA, section 12.6.7.2: consumer reject).
const CONSUMER_REJECT: i32 = 28;

/// Connects to a listener.
pub(super) async fn connect(
    fabric: &Inner,
    pd: VerbsPd,
    to: SocketAddr,
    options: ConnectOptions,
) -> Result<Arc<dyn Connection>, FabricError> {
    limits::check(fabric.kind, limits::Message::Request, &options)?;
    let setting_up = async {
        let id = CmId::new().map_err(|error| FabricError::io("rdma_create_id", error))?;
        let events = id.channel().clone();
        // Less than all of the time, so that an address that nobody has is told from a peer that is slow.
        id.resolve_address(to, options.timeout * 4 / 5).map_err(|error| FabricError::io("connect", error))?;
        expect(&events, EventKind::AddressResolved).await?;
        fabric.expect_device(&id, to)?;
        id.resolve_route(options.timeout).map_err(|error| FabricError::io("connect", error))?;
        expect(&events, EventKind::RouteResolved).await?;

        let offer = Offer {
            private_data: options.private_data.to_vec(),
            inbound_reads: clamp(options.inbound_reads, fabric.limits.inbound_reads),
            outbound_reads: clamp(options.outbound_reads, fabric.limits.outbound_reads),
        };
        let prepared = Prepared::new(fabric, pd, id, &options)?;
        let (prepared, offer) = request(prepared, offer).await?;
        let answer = expect(&events, EventKind::Established).await?;
        // What the peer allows may be less than we asked for.
        let outbound = match answer.offer.outbound_reads {
            0 => offer.outbound_reads,
            allowed => offer.outbound_reads.min(allowed),
        };
        prepared.established(answer.offer.private_data, outbound, false)
    };
    bounded("connect", &options, setting_up).await
}

/// Asks for the connection, on a thread: siw holds the caller until TCP's handshake is over, for minutes if nobody answers.
/// If the future is dropped meanwhile, the thread cleans up when it comes back.
async fn request(prepared: Prepared, offer: Offer) -> Result<(Prepared, Offer), FabricError> {
    let (done, result) = oneshot::channel();
    let ask = move || {
        let asked = prepared
            .pair
            .pair()
            .and_then(|pair| pair.connect(&offer).map_err(|error| FabricError::io("connect", error)));
        drop(done.send((prepared, offer, asked)));
    };
    std::thread::Builder::new()
        .name("rdma_connect".into())
        .spawn(ask)
        .map_err(|error| FabricError::io("a thread", error))?;
    let (prepared, offer, asked) = result.await.map_err(|_| FabricError::Closed)?;
    asked?;
    Ok((prepared, offer))
}

/// Accepts a peer's request.
pub(super) async fn accept(
    fabric: &Inner,
    pd: VerbsPd,
    id: CmId,
    asked: Offer,
    options: ConnectOptions,
) -> Result<Arc<dyn Connection>, FabricError> {
    limits::check(fabric.kind, limits::Message::Reply, &options)?;
    let setting_up = async {
        let events = id.channel().clone();
        let offer = Offer {
            private_data: options.private_data.to_vec(),
            inbound_reads: clamp(options.inbound_reads, fabric.limits.inbound_reads).min(asked.inbound_reads),
            outbound_reads: clamp(options.outbound_reads, fabric.limits.outbound_reads)
                .min(asked.outbound_reads),
        };
        let prepared = Prepared::new(fabric, pd, id, &options)?;
        prepared.pair.pair()?.accept(&offer).map_err(|error| FabricError::io("accept", error))?;
        expect(&events, EventKind::Established).await?;
        prepared.established(asked.private_data, offer.outbound_reads, fabric.kind == FabricKind::Siw)
    };
    bounded("accept", &options, setting_up).await
}

fn clamp(wanted: u16, limit: u8) -> u8 {
    u8::try_from(wanted).unwrap_or(u8::MAX).min(limit)
}

async fn bounded<T>(
    verb: &'static str,
    options: &ConnectOptions,
    setting_up: impl Future<Output = Result<T, FabricError>>,
) -> Result<T, FabricError> {
    match timeout(options.timeout, setting_up).await {
        Ok(result) => result,
        Err(_) => Err(FabricError::TimedOut { verb, limit: options.timeout }),
    }
}

/// Waits for the event that must come next.
async fn expect(events: &Arc<AsyncFd<EventChannel>>, expected: EventKind) -> Result<Event, FabricError> {
    loop {
        let event = event(events).await.map_err(|error| FabricError::io("rdma_get_cm_event", error))?;
        match event.kind {
            kind if kind == expected => return Ok(event),
            EventKind::Other(kind) => tracing::debug!(kind, "an event of no consequence"),
            EventKind::Rejected => return Err(rejected(event)),
            EventKind::Disconnected => return Err(FabricError::Closed),
            // Nobody answers for the address: what TCP calls an unreachable host.
            EventKind::AddressError if event.status == -nix::libc::ETIMEDOUT => {
                let unreachable = io::Error::from_raw_os_error(nix::libc::EHOSTUNREACH);
                return Err(FabricError::io("connect", unreachable));
            }
            EventKind::DeviceRemoval => {
                return Err(FabricError::io("connect", io::Error::from_raw_os_error(nix::libc::ENODEV)));
            }
            kind => {
                let error = match event.status {
                    0 => io::Error::other(format!("{kind:?}")),
                    // InfiniBand's own reasons are positive.
                    reason if reason > 0 => io::Error::other(format!("{kind:?}, reason {reason}")),
                    number => io::Error::from_raw_os_error(-number),
                };
                return Err(FabricError::io("connect", error));
            }
        }
    }
}

/// The peer's program said no, or there is none.
fn rejected(event: Event) -> FabricError {
    let refused = || FabricError::io("connect", io::ErrorKind::ConnectionRefused.into());
    match event.status {
        CONSUMER_REJECT => {}
        reason if reason > 0 => return refused(),
        number if number == -nix::libc::ECONNREFUSED => return refused(),
        // siw: the peer's Reply says so.
        _ => {}
    }
    FabricError::Rejected { private_data: event.offer.private_data.into() }
}

/// A queue pair with its receives posted, before it is connected.
struct Prepared {
    pair: Unconnected,
    pd: VerbsPd,
    completions: Arc<AsyncFd<CompletionChannel>>,
    /// Work requests that the device takes at once.
    send_depth: u32,
    max_message: usize,
}

/// Taken when it is connected. Until then giving it up may take its time: siw waits for the peer's answer to the request,
/// up to ten seconds. So that is done on a thread.
struct Unconnected(Option<(QueuePair, Receives)>);

impl Drop for Unconnected {
    fn drop(&mut self) {
        if let Some((pair, receives)) = self.0.take() {
            let give_up = move || {
                // In this order: the memory of receives goes last.
                drop(pair);
                drop(receives);
            };
            // Without a thread it is dropped by whoever fails to make one.
            drop(std::thread::Builder::new().name("rdma_give_up".into()).spawn(give_up));
        }
    }
}

impl Unconnected {
    fn pair(&self) -> Result<&QueuePair, FabricError> {
        self.0.as_ref().map(|(pair, _)| pair).ok_or(FabricError::Closed)
    }
}

impl Prepared {
    fn new(fabric: &Inner, pd: VerbsPd, id: CmId, options: &ConnectOptions) -> Result<Self, FabricError> {
        let receive = u32::try_from(options.receive_depth).unwrap_or(u32::MAX);
        let completions = CompletionChannel::open(pd.0.context())
            .map_err(|error| FabricError::io("ibv_create_comp_channel", error))?;
        let send = SEND_DEPTH.min(fabric.limits.work_requests);
        let queue =
            CompletionQueue::new(completions.clone(), (send + receive + 1).min(fabric.limits.completions))
                .map_err(|error| FabricError::io("ibv_create_cq", error))?;
        let depths = Depths { send, receive: receive.max(1), inline: INLINE as u32 };
        let pair = QueuePair::new(id, &pd.0, queue, depths)
            .map_err(|error| FabricError::io("rdma_create_qp", error))?;
        let mut receives = Receives::new(&pd.0, options.receive_depth, options.receive_size)?;
        receives.replenish(&pair, 0)?;
        let pair = Unconnected(Some((pair, receives)));
        Ok(Self { pair, pd, completions, send_depth: send, max_message: fabric.max_message })
    }

    fn established(
        mut self,
        private_data: Vec<u8>,
        outbound_reads: u8,
        hold: bool,
    ) -> Result<Arc<dyn Connection>, FabricError> {
        let address = |address: Option<SocketAddr>| {
            address.ok_or_else(|| FabricError::Protocol("the connection has no IP address".into()))
        };
        let id = self.pair.pair()?.id();
        let (local, peer) = (address(id.local_addr())?, address(id.peer_addr())?);
        let events = id.channel().clone();
        let Some((pair, receives)) = self.pair.0.take() else { return Err(FabricError::Closed) };
        let shared = Arc::new(Shared::new(pair, receives, self.send_depth as usize, hold));
        let driver = Driver { shared: shared.clone(), events, completions: self.completions };
        tokio::spawn(driver.run());
        Ok(Arc::new(VerbsConnection {
            shared,
            pd: self.pd,
            local,
            peer,
            private_data: private_data.into(),
            outbound_reads,
            max_message: self.max_message,
        }))
    }
}
