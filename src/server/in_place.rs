//! The HTTP connection as the RDMA connection: the layer promises it with a 101, the accept loop makes it, and HTTP goes on
//! upon it with the very request that asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Empty;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::HttpConnection;
use super::body::{ResponseBody, boxed};
use super::connection::{Kept, buffers, connect_options};
use super::layer::Shared;
use super::linger::Linger;
use super::watched::Watched;
use crate::fabric::{FabricError, Pd};
use crate::header::{Asked, Offer, Route, TransferId};
use crate::in_place::{self, Stream, first};
use crate::memory::Buffers;

/// How far an HTTP connection is on its way.
#[derive(Default)]
pub(super) struct InPlace {
    promised: Mutex<Option<Promised>>,
    /// The number of the exchange whose request is read again.
    exchange: Mutex<Option<u64>>,
    made: AtomicBool,
}

/// What was promised, and what it takes to keep it.
pub(super) struct Promised {
    shared: Arc<Shared>,
    stream: OnUpgrade,
    id: TransferId,
    pd: Pd,
    buffers: Buffers,
    head: Bytes,
}

/// Why a promise is not kept. The HTTP connection then ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unkept {
    #[error("HTTP did not let go of the connection: {0}")]
    Http(#[from] hyper::Error),
    #[error("the connection is no TCP stream")]
    NoTcp,
    #[error(transparent)]
    Fabric(#[from] FabricError),
    #[error("the fabric makes its connections by itself")]
    NotSoft,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl InPlace {
    /// Whether the HTTP connection is the RDMA connection.
    pub(super) fn is_made(&self) -> bool {
        self.made.load(Ordering::Acquire)
    }

    /// The number of the exchange that this request, which is the first on the new connection, belongs to.
    pub(super) fn exchange(&self) -> Option<u64> {
        lock(&self.exchange).take().filter(|_| self.is_made())
    }
}

impl Shared {
    /// Promises the connection in place to a request that asks for it, where it can be had; else the request is served as
    /// it is.
    pub(super) fn promise<B: Body>(
        self: &Arc<Self>,
        asked: &Asked,
        http: Option<&HttpConnection>,
        request: &mut Request<B>,
        exchange: u64,
    ) -> Option<Response<ResponseBody>> {
        let id = match asked {
            Asked::InPlace(id) => *id,
            Asked::Transfer(Offer { route: Route::InPlace, id: Some(id), .. }) => *id,
            _ => return None,
        };
        let http = http?;
        let in_place = http.in_place().filter(|in_place| !in_place.is_made() && first::asks(request))?;
        self.fabric.over_tcp()?;
        let memory = || {
            let pd = self.fabric.allocate_pd()?;
            let buffers = buffers(self, http, &pd)?;
            Ok::<_, super::connection::NoLink>((pd, buffers))
        };
        let (pd, buffers) = memory()
            .inspect_err(|error| tracing::warn!(peer = %http.peer(), %error, "no connection in place"))
            .ok()?;
        let head = first::head(request);
        let (shared, stream) = (self.clone(), hyper::upgrade::on(request));
        *lock(&in_place.exchange) = Some(exchange);
        *lock(&in_place.promised) = Some(Promised { shared, stream, id, pd, buffers, head });
        let mut response = Response::new(boxed(Empty::<Bytes>::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static(in_place::UPGRADE));
        Some(response)
    }
}

impl HttpConnection {
    /// What was promised on this connection, if that ended with it.
    pub(super) fn promised(&self) -> Option<Promised> {
        lock(&self.in_place()?.promised).take()
    }

    /// Makes the RDMA connection; returns what HTTP goes on upon.
    pub(super) async fn keep_promise(&self, promised: Promised) -> Result<Stream, Unkept> {
        let Promised { shared, stream, id, pd, buffers, head } = promised;
        // At once there: the connection has ended.
        let upgraded = tokio::time::timeout(shared.config.connect_timeout, stream).await;
        let upgraded = upgraded.map_err(|_| Unkept::NoTcp)??;
        let parts = upgraded.downcast::<TokioIo<Watched<Linger<TcpStream>>>>().map_err(|_| Unkept::NoTcp)?;
        let fabric = shared.fabric.over_tcp().ok_or(Unkept::NotSoft)?;
        let options = in_place::receives(connect_options(&shared.config, id));
        let stream = parts.io.into_inner().into_inner().into_inner();
        let connection = fabric.connect_over(stream, parts.read_buf, &pd, options).await?;
        let (messages, stream) = in_place::split(connection);
        self.lock().await.keep(Kept::with(Route::InPlace, messages, buffers, &shared.recorder));
        if let Some(in_place) = self.in_place() {
            in_place.made.store(true, Ordering::Release);
        }
        Ok(stream.beginning_with(head))
    }
}
