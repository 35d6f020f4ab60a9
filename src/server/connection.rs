//! What is kept for the life of an HTTP connection: whose it is, and the RDMA connection that belongs to it.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::RdmaConfig;
use super::in_place::InPlace;
use super::layer::Shared;
use super::linger::Unread;
use crate::channel::Channel;
use crate::events::Recorder;
use crate::fabric::{ConnectOptions, Connection, FabricError, Pd};
use crate::flow::{Link, RECEIVE_DEPTH, RECEIVE_SIZE};
use crate::header::{Mode, Offer, Reason, Route, TransferId};
use crate::memory::Buffers;
use crate::message::Message;
use crate::seal::{Keys, Secret};

/// One HTTP connection, as an accept loop inserts it into each request's extensions. Clones are the same connection.
#[derive(Clone)]
pub struct HttpConnection(Arc<State>);

struct State {
    peer: SocketAddr,
    local: Option<SocketAddr>,
    tls: Option<Tls>,
    kept: Arc<Mutex<Slot>>,
    unread: Unread,
    /// Where the accept loop can make the RDMA connection of the HTTP connection itself.
    in_place: Option<InPlace>,
}

/// What there is to know of a connection with TLS.
struct Tls {
    /// What bodies are sealed under; TLS before 1.3 has none.
    secret: Option<Secret>,
    /// The least number that the next offer may have.
    next: AtomicU64,
}

/// An HTTP connection that may have ended.
pub(super) struct WeakConnection(Weak<State>);

impl WeakConnection {
    pub(super) fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    pub(super) fn is(&self, other: &HttpConnection) -> bool {
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&other.0))
    }

    pub(super) fn upgrade(&self) -> Option<HttpConnection> {
        self.0.upgrade().map(HttpConnection)
    }
}

/// The kept connection. Locked for a whole transfer: two of one HTTP connection go one after the other.
#[derive(Default)]
pub(super) struct Slot(Option<Kept>);

pub(super) struct Kept {
    route: Route,
    pub(super) link: Link,
    /// In place: what a transfer that broke has left, for as long as the HTTP connection goes on.
    broken: Option<Left>,
    /// Whether the client, which connected, has yet to say so over the connection.
    pub(super) greeting: Option<TransferId>,
}

/// What is held on to and never looked at; in a mutex, since others look at what it is kept with.
type Left = std::sync::Mutex<Box<dyn Any + Send>>;

/// Why there is no RDMA connection to carry a transfer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoLink {
    /// It could not be made.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The client was to make it, and has not.
    #[error("the client has made no RDMA connection for this HTTP connection")]
    NotConnected,
    /// There is no room for its memory.
    #[error(transparent)]
    Exhausted(#[from] crate::memory::Exhausted),
}

impl HttpConnection {
    /// A connection from `peer`.
    pub fn new(peer: SocketAddr) -> Self {
        Self::made(peer, None, None, None)
    }

    /// A connection from `peer` with TLS, which exported `secret`, or is of a version before 1.3.
    pub fn with_tls(peer: SocketAddr, secret: Option<Secret>) -> Self {
        let tls = Some(Tls { secret, next: AtomicU64::new(0) });
        Self::made(peer, None, tls, None)
    }

    /// Either, where our own address is known, and whoever serves it looks at [`Self::promised`] when it ends.
    pub(super) fn between(peer: SocketAddr, local: Option<SocketAddr>, tls: Option<Option<Secret>>) -> Self {
        let tls = tls.map(|secret| Tls { secret, next: AtomicU64::new(0) });
        // What lies under TLS is not HTTP's to give away.
        let in_place = tls.is_none().then(InPlace::default);
        Self::made(peer, local, tls, in_place)
    }

    fn made(
        peer: SocketAddr,
        local: Option<SocketAddr>,
        tls: Option<Tls>,
        in_place: Option<InPlace>,
    ) -> Self {
        let (kept, unread) = (Arc::default(), Unread::default());
        Self(Arc::new(State { peer, local, tls, kept, unread, in_place }))
    }

    /// Whether there may be more of the last request.
    pub(super) fn unread(&self) -> &Unread {
        &self.0.unread
    }

    /// What it takes to make it the RDMA connection, where that can be.
    pub(super) fn in_place(&self) -> Option<&InPlace> {
        self.0.in_place.as_ref()
    }

    /// Whether it is the RDMA connection.
    pub(super) fn is_in_place(&self) -> bool {
        self.in_place().is_some_and(InPlace::is_made)
    }

    /// What the body of this offer is sealed with; nothing without TLS. Nothing goes in the clear beside TLS, and no two
    /// transfers have the same keys.
    pub(super) fn keys(&self, offer: &Offer) -> Result<Option<Keys>, Reason> {
        let (tls, number) = match (&self.0.tls, offer.seal) {
            (None, None) => return Ok(None),
            (Some(tls), Some(number)) => (tls, number),
            _ => return Err(Reason::UNSEALED),
        };
        let (Some(secret), Some(id)) = (&tls.secret, offer.id) else { return Err(Reason::UNSEALED) };
        if number < tls.next.load(Ordering::Relaxed) || number == u64::MAX {
            tracing::warn!(peer = %self.peer(), number, "an offer's number came before");
            return Err(Reason::UNSEALED);
        }
        tls.next.store(number + 1, Ordering::Relaxed);
        Ok(Some(secret.transfer(offer.mode, id, number)))
    }

    /// Whose it is.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// Our end of it, where that is known.
    pub fn local(&self) -> Option<SocketAddr> {
        self.0.local
    }

    /// Closes what was kept. To be called when the HTTP connection has ended; dropping does the same less politely.
    pub async fn close(&self) {
        self.0.kept.lock().await.close().await;
    }

    /// Tells a client that offers a body that it shall send it by HTTP: a connection in place says so, any other ends.
    pub(super) async fn decline(&self, id: Option<TransferId>) {
        let mut slot = self.lock().await;
        match (&slot.0, id) {
            (Some(kept), Some(id)) if kept.route == Route::InPlace => {
                if let Err(error) = kept.link.channel.send(Message::Decline { id }).await {
                    tracing::debug!(peer = %self.peer(), %error, "the connection in place has ended");
                }
            }
            _ => slot.close().await,
        }
    }

    pub(super) fn downgrade(&self) -> WeakConnection {
        WeakConnection(Arc::downgrade(&self.0))
    }

    pub(super) async fn lock(&self) -> OwnedMutexGuard<Slot> {
        self.0.kept.clone().lock_owned().await
    }
}

impl Slot {
    /// The connection that the offer names: the kept one, or a new one in its place. It is the caller's, who drops it if
    /// the transfer does not end well (then nothing of ours can reach the peer's memory), or else gives it back.
    pub(super) async fn take(
        &mut self,
        shared: &Shared,
        http: &HttpConnection,
        offer: &Offer,
    ) -> Result<Kept, NoLink> {
        if let Some(mut kept) = self.0.take() {
            if kept.route == offer.route
                && kept.broken.is_none()
                && kept.is_sound(&shared.config, offer.mode).await
            {
                return Ok(kept);
            }
            if kept.route == Route::InPlace {
                // It is the HTTP connection: there is no other, and it goes on.
                self.0 = Some(kept);
                return Err(NoLink::NotConnected);
            }
            kept.link.channel.close().await;
        }
        match offer.route {
            Route::Server(address) => connect(shared, http, address, offer).await,
            Route::Client | Route::InPlace => Err(NoLink::NotConnected),
        }
    }

    /// Closes what is kept.
    async fn close(&mut self) {
        if let Some(kept) = self.0.take() {
            kept.link.channel.close().await;
        }
    }

    /// Keeps a connection for the next exchange.
    pub(super) fn keep(&mut self, kept: Kept) {
        self.0 = Some(kept);
    }

    /// Keeps a connection in place on which nothing was begun; ends any other.
    pub(super) fn leave(&mut self, kept: Kept) {
        if kept.route == Route::InPlace {
            self.keep(kept);
        }
    }

    /// Ends a connection on which a transfer broke, so that nothing of `left` can be reached any more. The HTTP connection
    /// itself must first carry the response: then both go with it.
    pub(super) fn give_up(&mut self, kept: Kept, left: impl Any + Send) {
        if kept.route == Route::InPlace {
            self.0 = Some(Kept { broken: Some(Left::new(Box::new(left))), ..kept });
        }
    }
}

impl Kept {
    /// Whether it is open and the peer has said nothing that it should not before a transfer in this mode.
    async fn is_sound(&mut self, config: &RdmaConfig, mode: Mode) -> bool {
        if let Some(id) = self.greeting.take() {
            let greeted = tokio::time::timeout(config.connect_timeout, self.link.channel.receive()).await;
            return matches!(greeted, Ok(Ok(Message::Hello { id: theirs })) if theirs == id);
        }
        match mode {
            // It tells of its regions right behind the request, and that may be here already.
            Mode::ServerReads => !self.link.channel.is_closed().await,
            _ => !self.link.channel.is_out_of_turn().await,
        }
    }

    /// A connection that was just established.
    pub(super) fn established(
        shared: &Shared,
        http: &HttpConnection,
        route: Route,
        pd: &Pd,
        connection: Arc<dyn Connection>,
    ) -> Result<Self, NoLink> {
        let buffers = buffers(shared, http, pd)?;
        Ok(Self::with(route, connection, buffers, &shared.recorder))
    }

    /// The same with memory that is there.
    pub(super) fn with(
        route: Route,
        connection: Arc<dyn Connection>,
        buffers: Buffers,
        recorder: &Recorder,
    ) -> Self {
        let initiator = !matches!(route, Route::Client);
        let channel = Channel::established(connection, initiator, recorder);
        Self { route, link: Link { channel, buffers }, broken: None, greeting: None }
    }
}

/// Memory for a connection, before that is made: with `static` there may be no room for it.
pub(super) fn buffers(shared: &Shared, http: &HttpConnection, pd: &Pd) -> Result<Buffers, NoLink> {
    let config = &shared.config;
    let share = match config.memory.keeps_buffers() {
        // As many buffers as may be in flight, and a region to be written to that is as large as all of them.
        true => Some(shared.budget.reserve(http.peer().ip(), config.window_bytes().saturating_mul(2))?),
        false => None,
    };
    let kept = (config.chunk, config.window);
    let buffers = Buffers::new(pd, config.memory, kept, share, &shared.recorder);
    // Nobody knows yet in which direction bodies will go.
    buffers.prepare(config.window, usize::try_from(config.window_bytes()).ok())?;
    Ok(buffers)
}

/// How the server connects and accepts.
pub(super) fn connect_options(config: &RdmaConfig, id: TransferId) -> ConnectOptions {
    ConnectOptions {
        private_data: Message::Hello { id }.encode(),
        timeout: config.connect_timeout,
        crc: config.crc,
        receive_depth: RECEIVE_DEPTH,
        receive_size: RECEIVE_SIZE,
        ..ConnectOptions::default()
    }
}

async fn connect(
    shared: &Shared,
    http: &HttpConnection,
    address: SocketAddr,
    offer: &Offer,
) -> Result<Kept, NoLink> {
    let pd = shared.fabric.allocate_pd()?;
    let id = offer.id.unwrap_or(TransferId::NONE);
    let connection = shared.fabric.connect(&pd, address, connect_options(&shared.config, id)).await?;
    Kept::established(shared, http, offer.route, &pd, connection)
}

impl Shared {
    /// What a connection that could not be had is called in the response.
    pub(super) fn connect_failure(&self, error: &NoLink) -> Reason {
        match error {
            NoLink::Fabric(error) => {
                if matches!(error, FabricError::TimedOut { .. }) {
                    self.metrics.limited("connect-timeout");
                }
                fabric_failure(error)
            }
            NoLink::NotConnected => Reason::NOT_CONNECTED,
            NoLink::Exhausted(error) => {
                self.metrics.limited(error.setting());
                Reason::EXHAUSTED
            }
        }
    }
}

fn fabric_failure(error: &FabricError) -> Reason {
    use std::io::ErrorKind;
    match error {
        FabricError::TimedOut { .. } => Reason::TIMED_OUT,
        FabricError::Rejected { .. } => Reason::REJECTED,
        FabricError::Closed => Reason::UNREACHABLE,
        FabricError::Io { source, .. } => match source.kind() {
            ErrorKind::TimedOut => Reason::TIMED_OUT,
            ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::UnexpectedEof => Reason::UNREACHABLE,
            _ => Reason::FABRIC,
        },
        _ => Reason::FABRIC,
    }
}
