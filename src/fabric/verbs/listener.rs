//! Listening.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Mutex;

use super::sys::{CmId, EventKind, Offer, event};
use super::{Inner, establish, limits};
use crate::fabric::{BoxFuture, ConnectOptions, ConnectRequest, Connection, FabricError, Listener, Pd};

/// Requests that wait for [`Listener::accept`] at most; the kernel drops further ones.
const BACKLOG: i32 = 128;

/// A listening identifier.
pub(super) struct VerbsListener {
    fabric: Arc<Inner>,
    address: SocketAddr,
    /// Locked by whoever waits for a request, so that they are handed out one at a time.
    id: Mutex<CmId>,
}

impl VerbsListener {
    pub(super) fn bind(fabric: Arc<Inner>, address: SocketAddr) -> Result<Self, FabricError> {
        let error = |error| FabricError::io("listen", error);
        let id = CmId::new().map_err(error)?;
        id.bind(address).map_err(error)?;
        if !address.ip().is_unspecified() {
            fabric.expect_device(&id, address)?;
        }
        id.listen(BACKLOG).map_err(error)?;
        let address = id.local_addr().unwrap_or(address);
        Ok(Self { fabric, address, id: Mutex::new(id) })
    }
}

impl Listener for VerbsListener {
    fn local_addr(&self) -> SocketAddr {
        self.address
    }

    fn accept(&self) -> BoxFuture<'_, Result<Box<dyn ConnectRequest>, FabricError>> {
        Box::pin(async move {
            let id = self.id.lock().await;
            loop {
                let event = event(id.channel()).await.map_err(|error| FabricError::io("accept", error))?;
                let Some(request) = event.request else {
                    if event.kind == EventKind::DeviceRemoval {
                        return Err(FabricError::Closed);
                    }
                    tracing::debug!(kind = ?event.kind, "an event of no consequence");
                    continue;
                };
                // From here on its events are its own.
                let request = match request.migrate() {
                    Ok(request) => request,
                    Err(error) => {
                        tracing::warn!(%error, "a request was lost");
                        continue;
                    }
                };
                let Some(peer) = request.peer_addr() else {
                    tracing::warn!("a request without an IP address was dropped");
                    continue;
                };
                if let Err(error) = self.fabric.expect_device(&request, peer) {
                    tracing::warn!(%peer, %error, "a request was dropped");
                    continue;
                }
                return Ok(Box::new(VerbsRequest {
                    fabric: self.fabric.clone(),
                    id: Some(request),
                    peer,
                    offer: event.offer,
                }) as Box<dyn ConnectRequest>);
            }
        })
    }
}

/// A peer whose request has come.
struct VerbsRequest {
    fabric: Arc<Inner>,
    /// Taken when it is answered.
    id: Option<CmId>,
    peer: SocketAddr,
    offer: Offer,
}

impl Drop for VerbsRequest {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.id.take().map(|id| id.reject(&[])) {
            tracing::debug!(peer = %self.peer, %error, "the rejection was not sent");
        }
    }
}

impl ConnectRequest for VerbsRequest {
    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn private_data(&self) -> &[u8] {
        &self.offer.private_data
    }

    fn accept(
        mut self: Box<Self>,
        pd: &Pd,
        options: ConnectOptions,
    ) -> BoxFuture<'static, Result<Arc<dyn Connection>, FabricError>> {
        let domain = self.fabric.domain(pd);
        Box::pin(async move {
            let domain = domain?;
            let Some(id) = self.id.take() else { return Err(FabricError::Closed) };
            let offer = std::mem::take(&mut self.offer);
            establish::accept(&self.fabric, domain, id, offer, options).await
        })
    }

    fn reject(mut self: Box<Self>, private_data: &[u8]) -> BoxFuture<'static, Result<(), FabricError>> {
        let limit = limits::private_data(self.fabric.kind, limits::Message::Rejection);
        let result = if private_data.len() > limit {
            let (length, kind) = (private_data.len(), self.fabric.kind);
            Err(FabricError::Invalid(format!("private data of {length}; the limit on {kind} is {limit}")))
        } else {
            let rejected = self.id.take().map_or(Ok(()), |id| id.reject(private_data));
            rejected.map_err(|error| FabricError::io("reject", error))
        };
        Box::pin(std::future::ready(result))
    }
}
