//! The tower layer: lets the inner service answer as ever, then decides what becomes of the body.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use tower::{Layer, Service};

use super::{HttpConnection, RdmaConfig, respond};
use crate::events::{Event, Recorder};
use crate::fabric::{BoxFuture, Fabric};
use crate::header::{Offer, Reason};
use crate::memory::{Budget, Dynamic, Registration};

/// Any error, as bodies have them.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of every response that passes the layer.
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// Adds RDMA to a service. Clones share limits and counters.
#[derive(Clone)]
pub struct RdmaLayer(Arc<Shared>);

pub(super) struct Shared {
    pub(super) fabric: Arc<dyn Fabric>,
    pub(super) config: RdmaConfig,
    pub(super) registration: Box<dyn Registration>,
    pub(super) budget: Budget,
    pub(super) recorder: Recorder,
    exchanges: AtomicU64,
}

impl RdmaLayer {
    /// A layer that moves bodies over `fabric`, registering them with [`Dynamic`].
    pub fn new(fabric: Arc<dyn Fabric>, config: RdmaConfig, recorder: Recorder) -> Self {
        Self::with_registration(fabric, config, Box::new(Dynamic), recorder)
    }

    /// The same with another strategy.
    pub fn with_registration(
        fabric: Arc<dyn Fabric>,
        config: RdmaConfig,
        registration: Box<dyn Registration>,
        recorder: Recorder,
    ) -> Self {
        let budget = Budget::new(config.max_registered, config.max_registered_per_peer);
        let exchanges = AtomicU64::new(0);
        Self(Arc::new(Shared { fabric, config, registration, budget, recorder, exchanges }))
    }
}

impl<S> Layer<S> for RdmaLayer {
    type Service = RdmaService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RdmaService { inner, shared: self.0.clone() }
    }
}

/// A service with RDMA added to it.
#[derive(Clone)]
pub struct RdmaService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RdmaService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    ResBody: Body + Send + 'static,
    ResBody::Data: Send,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let shared = self.shared.clone();
        let exchange = shared.exchanges.fetch_add(1, Ordering::Relaxed) + 1;
        if shared.recorder.is_on() {
            shared.recorder.record(Event::HttpRequest {
                exchange,
                method: request.method().to_string(),
                target: request.uri().to_string(),
                headers: crate::events::head(request.headers()),
            });
        }
        let offer = Offer::of(request.headers());
        let method = request.method().clone();
        let http = request.extensions().get::<HttpConnection>().cloned();
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            let response = match offer {
                Ok(None) => response.map(respond::boxed),
                Ok(Some(offer)) => shared.answer(offer, &method, http, response).await,
                Err(error) => {
                    tracing::warn!(%error, "RDMA field ignored");
                    shared.recorder.record(Event::HeaderIgnored { error: error.to_string() });
                    respond::fallback(response.map(respond::boxed), Reason::MALFORMED)
                }
            };
            shared.tell_response(exchange, &response);
            Ok(response)
        })
    }
}

impl Shared {
    fn tell_response(&self, exchange: u64, response: &Response<ResponseBody>) {
        if self.recorder.is_on() {
            let status = response.status().as_u16();
            let headers = crate::events::head(response.headers());
            self.recorder.record(Event::HttpResponse { exchange, status, headers });
        }
    }
}

/// The length of a response's body where it is known before the body is read.
pub(super) fn known_length<B: Body>(headers: &HeaderMap, body: &B) -> Option<u64> {
    let declared = headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    declared.or_else(|| body.size_hint().exact())
}

/// All of a buffer as [`Bytes`]; no copy where it is that already.
pub(super) fn to_bytes(mut data: impl Buf) -> Bytes {
    data.copy_to_bytes(data.remaining())
}
