//! What is kept for the life of an HTTP connection: whose it is, and the RDMA connection that was made for it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard};

use super::RdmaConfig;
use crate::channel::Channel;
use crate::events::Recorder;
use crate::fabric::{ConnectOptions, Fabric, FabricError, Pd};
use crate::header::{Offer, Reason, TransferId};
use crate::message::Message;

/// One HTTP connection, as an accept loop inserts it into each request's extensions. Clones are the same connection.
#[derive(Clone)]
pub struct HttpConnection(Arc<State>);

struct State {
    peer: SocketAddr,
    kept: Mutex<Slot>,
}

/// The kept connection. Locked for a whole transfer: two of one HTTP connection go one after the other.
#[derive(Default)]
pub(super) struct Slot(Option<Kept>);

pub(super) struct Kept {
    address: SocketAddr,
    pub(super) pd: Pd,
    pub(super) channel: Channel,
}

impl HttpConnection {
    /// A connection from `peer`.
    pub fn new(peer: SocketAddr) -> Self {
        Self(Arc::new(State { peer, kept: Mutex::default() }))
    }

    /// Whose it is.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// Closes what was kept. To be called when the HTTP connection has ended; dropping does the same less politely.
    pub async fn close(&self) {
        if let Some(kept) = self.0.kept.lock().await.0.take() {
            kept.channel.close().await;
        }
    }

    pub(super) async fn lock(&self) -> MutexGuard<'_, Slot> {
        self.0.kept.lock().await
    }
}

impl Slot {
    /// The connection to the offer's address: the kept one, or a new one in its place. It is the caller's, who drops it if
    /// the transfer does not end well (then nothing of ours can reach the peer's memory), or else gives it back.
    pub(super) async fn take(
        &mut self,
        fabric: &dyn Fabric,
        offer: &Offer,
        config: &RdmaConfig,
        recorder: &Recorder,
    ) -> Result<Kept, FabricError> {
        match self.0.take() {
            Some(kept) if kept.address == offer.address && !kept.channel.is_closed().await => {
                return Ok(kept);
            }
            Some(other) => other.channel.close().await,
            None => {}
        }
        connect(fabric, offer, config, recorder).await
    }

    /// Keeps a connection for the next exchange.
    pub(super) fn keep(&mut self, kept: Kept) {
        self.0 = Some(kept);
    }
}

async fn connect(
    fabric: &dyn Fabric,
    offer: &Offer,
    config: &RdmaConfig,
    recorder: &Recorder,
) -> Result<Kept, FabricError> {
    let pd = fabric.allocate_pd()?;
    let id = offer.id.unwrap_or(TransferId::NONE);
    let options = ConnectOptions {
        private_data: Message::Hello { id }.encode(),
        timeout: config.connect_timeout,
        crc: config.crc,
        // A client has nothing to send: whatever it sends is its error, and ends the connection.
        receive_depth: 0,
        ..ConnectOptions::default()
    };
    let connection = fabric.connect(&pd, offer.address, options).await?;
    let channel = Channel::established(connection, true, recorder);
    Ok(Kept { address: offer.address, pd, channel })
}

/// What a connection that could not be made is called in the response.
pub(super) fn connect_failure(error: &FabricError) -> Reason {
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
