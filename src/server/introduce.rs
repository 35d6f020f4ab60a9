//! Connections that clients make: for clients behind a NAT, whom nobody can connect to.
//!
//! A client asks for an introduction over HTTP, with an id of its own making; then it connects, brings that id, and so
//! the RDMA connection becomes that HTTP connection's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Empty;
use tokio::task::JoinHandle;

use super::HttpConnection;
use super::body::{ResponseBody, boxed};
use super::connection::{Kept, WeakConnection, connect_options};
use super::layer::{RdmaLayer, Shared};
use super::respond::say;
use crate::fabric::{ConnectOptions, ConnectRequest, FabricError, Listener};
use crate::header::{Outcome, Reason, Route, TransferId};
use crate::message::Message;

/// Where clients connect, and who may.
pub(super) struct Introductions {
    address: SocketAddr,
    waiting: Mutex<HashMap<TransferId, WeakConnection>>,
    task: JoinHandle<()>,
}

impl Drop for Introductions {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RdmaLayer {
    /// Accepts RDMA connections of clients at `address` (port 0 takes a free one), and tells them so. Once.
    pub async fn accept_clients(&self, address: SocketAddr) -> Result<SocketAddr, FabricError> {
        let listener = self.0.fabric.listen(address).await?;
        let address = listener.local_addr();
        let task = tokio::spawn(serve(listener, Arc::downgrade(&self.0)));
        let introductions = Introductions { address, waiting: Mutex::default(), task };
        match self.0.introductions.set(introductions) {
            Ok(()) => Ok(address),
            Err(_) => Err(FabricError::Invalid("RDMA connections of clients are accepted already".into())),
        }
    }
}

async fn serve(listener: Box<dyn Listener>, shared: Weak<Shared>) {
    loop {
        let request = match listener.accept().await {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(%error, "no RDMA connections of clients are accepted any more");
                return;
            }
        };
        let Some(shared) = shared.upgrade() else { return };
        // A client that is slow to be accepted delays no other.
        tokio::spawn(async move { shared.let_in(request).await });
    }
}

impl Shared {
    /// Answers a request to be introduced.
    pub(super) async fn introduce(
        &self,
        id: TransferId,
        http: Option<HttpConnection>,
    ) -> Response<ResponseBody> {
        let mut response = Response::new(boxed(Empty::<Bytes>::new()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        let (Some(introductions), Some(http)) = (self.introductions.get(), http) else {
            return self.fall_back(response, Reason::UNSUPPORTED_MODE);
        };
        let mut waiting = introductions.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // One for each HTTP connection that is there.
        waiting.retain(|_, other| other.is_there() && !other.is(&http));
        if waiting.len() >= self.config.max_introductions {
            drop(waiting);
            self.metrics.limited("max-introductions");
            return self.fall_back(response, Reason::EXHAUSTED);
        }
        waiting.insert(id, http.downgrade());
        drop(waiting);
        let address = introductions.address;
        let same = address.ip().is_unspecified()
            || http.local().is_some_and(|local| local.ip().to_canonical() == address.ip().to_canonical());
        let ip = (!same).then(|| address.ip());
        say(response.headers_mut(), &Outcome::Accept { port: address.port(), ip, id });
        response
    }

    /// Answers, on whatever the HTTP connection is, a request that it become the RDMA connection.
    pub(super) fn confirm(&self, id: TransferId, http: Option<&HttpConnection>) -> Response<ResponseBody> {
        let mut response = Response::new(boxed(Empty::<Bytes>::new()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        if !http.is_some_and(HttpConnection::is_in_place) {
            return self.fall_back(response, Reason::UNSUPPORTED_MODE);
        }
        say(response.headers_mut(), &Outcome::InPlace { id });
        response
    }

    /// Lets a client in that was introduced, and nobody else.
    async fn let_in(&self, request: Box<dyn ConnectRequest>) {
        let peer = request.peer_addr();
        let id = match Message::decode_padded(request.private_data()) {
            Ok(Message::Hello { id }) => Some(id),
            _ => None,
        };
        let introduced = self.introductions.get().zip(id).and_then(|(introductions, id)| {
            let mut waiting = introductions.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            Some((id, waiting.remove(&id)?.upgrade()?))
        });
        let Some((id, http)) = introduced else {
            tracing::warn!(%peer, "an RDMA connection that was not introduced was rejected");
            if let Err(error) = request.reject(&[]).await {
                tracing::debug!(%peer, %error, "the rejection did not arrive");
            }
            return;
        };
        // Taken before the client is told: its next request finds the connection here.
        let mut slot = http.lock().await;
        let accepted = async {
            let pd = self.fabric.allocate_pd()?;
            // The client knows whom it has connected to.
            let options = ConnectOptions { private_data: Bytes::new(), ..connect_options(&self.config, id) };
            let connection = request.accept(&pd, options).await?;
            Kept::established(self, &http, Route::Client, &pd, connection)
        };
        match accepted.await {
            Ok(mut kept) => {
                kept.greeting = Some(id);
                slot.keep(kept);
            }
            Err(error) => tracing::warn!(%peer, %error, "an RDMA connection was not established"),
        }
    }
}
