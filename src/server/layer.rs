//! The tower layer: gives the inner service ordinary requests, lets it answer as ever, and decides what carries the bodies.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use http::{HeaderMap, Method, Request, Response};
use http_body::Body;
use http_body_util::Either;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::body::{BoxError, LayerBody, Plain, RequestBody, ResponseBody, boxed};
use super::introduce::Introductions;
use super::metrics::Metrics;
use super::{HttpConnection, RdmaConfig, respond};
use crate::events::{Event, Recorder};
use crate::fabric::{BoxFuture, Fabric};
use crate::flow::Pace;
use crate::header::{Asked, Mode, RDMA, Reason};
use crate::memory::Budget;

/// Adds RDMA to a service. Clones share limits and counters.
#[derive(Clone)]
pub struct RdmaLayer(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) fabric: Arc<dyn Fabric>,
    pub(super) config: RdmaConfig,
    pub(super) budget: Budget,
    pub(super) recorder: Recorder,
    pub(super) metrics: Metrics,
    /// Where clients may connect, once they may.
    pub(super) introductions: OnceLock<Introductions>,
    exchanges: AtomicU64,
}

impl RdmaLayer {
    /// A layer that moves bodies over `fabric`.
    pub fn new(fabric: Arc<dyn Fabric>, config: RdmaConfig, recorder: Recorder) -> Self {
        let budget = Budget::new(config.max_registered, config.max_registered_per_peer);
        let metrics = Metrics::new(&config, budget.clone(), fabric.clone());
        let recorder = metrics.listen(recorder);
        let (introductions, exchanges) = (OnceLock::new(), AtomicU64::new(0));
        Self(Arc::new(Shared { fabric, config, budget, recorder, metrics, introductions, exchanges }))
    }

    /// Its figures.
    pub fn metrics(&self) -> Metrics {
        self.0.metrics.clone()
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
    S: Service<Request<RequestBody>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ReqBody: Body + Send + 'static,
    ReqBody::Data: Send,
    ReqBody::Error: Into<BoxError>,
    ResBody: Body + Send + 'static,
    ResBody::Data: Send,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<LayerBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let shared = self.shared.clone();
        if !request.headers().contains_key(RDMA) {
            // All that is added to such a request is that it is counted: it must cost next to nothing.
            let exchange = shared.tell_request(&request);
            let answer = self.inner.call(shared.by_tcp(request));
            return ResponseFuture { state: State::Plain { answer, shared, exchange } };
        }
        // The one that was polled ready is the one to call.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let answer = Box::pin(async move {
            let http = request.extensions().get::<HttpConnection>().cloned();
            let read_before = http.as_ref().and_then(|http| http.in_place()?.exchange());
            let exchange = read_before.unwrap_or_else(|| shared.tell_request(&request));
            let asked = Asked::of(request.headers());
            let method = request.method().clone();
            if let Ok(Some(asked)) = &asked
                && let Some(response) = shared.promise(asked, http.as_ref(), &mut request, exchange)
            {
                shared.tell_response(exchange, &response);
                return Ok(response);
            }
            let response = match asked {
                Ok(Some(Asked::Transfer(offer)))
                    if matches!(offer.mode, Mode::ClientWrites | Mode::ServerReads) =>
                {
                    shared.clone().take_body(offer, http, request, &mut inner).await?
                }
                Ok(Some(Asked::Transfer(offer))) => {
                    let response = inner.call(shared.by_tcp(request)).await?;
                    shared.clone().answer(offer, &method, http, response).await
                }
                Ok(Some(Asked::Introduction(id))) if method == Method::OPTIONS => {
                    shared.introduce(id, http).await
                }
                Ok(Some(Asked::InPlace(id))) if method == Method::OPTIONS => {
                    shared.confirm(id, http.as_ref())
                }
                Ok(Some(Asked::Introduction(_) | Asked::InPlace(_))) => {
                    let response = inner.call(shared.by_tcp(request)).await?;
                    shared.fall_back(response.map(boxed), Reason::METHOD)
                }
                Ok(None) => inner.call(shared.by_tcp(request)).await?.map(boxed),
                Err(error) => {
                    tracing::warn!(%error, "RDMA field ignored");
                    shared.recorder.record(Event::HeaderIgnored { error: error.to_string() });
                    let response = inner.call(shared.by_tcp(request)).await?;
                    respond::fallback(response.map(boxed), Reason::MALFORMED)
                }
            };
            shared.tell_response(exchange, &response);
            Ok(response)
        });
        ResponseFuture { state: State::Asked { answer } }
    }
}

pin_project! {
    /// A response of [`RdmaService`] to come.
    pub struct ResponseFuture<F, E> {
        #[pin]
        state: State<F, E>,
    }
}

pin_project! {
    #[project = Stage]
    enum State<F, E> {
        // The service's own, to a request without an RDMA field.
        Plain { #[pin] answer: F, shared: Arc<Shared>, exchange: u64 },
        Asked { answer: BoxFuture<'static, Result<Response<ResponseBody>, E>> },
    }
}

impl<F, B, E> Future for ResponseFuture<F, E>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<LayerBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Stage::Plain { answer, shared, exchange } => {
                let response = ready!(answer.poll(cx))?;
                shared.tell_response(*exchange, &response);
                Poll::Ready(Ok(response.map(|body| Either::Left(Plain::new(body)))))
            }
            Stage::Asked { answer } => {
                answer.as_mut().poll(cx).map_ok(|response| response.map(Either::Right))
            }
        }
    }
}

impl Shared {
    /// A request whose body comes by TCP. Its connection is told when that has been read.
    pub(super) fn by_tcp<B>(&self, request: Request<B>) -> Request<RequestBody>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        if request.body().is_end_stream() {
            return request.map(RequestBody::new);
        }
        let unread = request.extensions().get::<HttpConnection>().map(|http| http.unread().clone());
        let pace = Pace::new(self.config.stall_timeout, self.config.min_rate);
        request.map(|body| RequestBody::new(body).paced(pace, self.metrics.clone()).telling(unread))
    }

    /// The exchange's number, where anybody is told it.
    fn tell_request<B>(&self, request: &Request<B>) -> u64 {
        if !self.recorder.is_on() {
            return 0;
        }
        let exchange = self.exchanges.fetch_add(1, Ordering::Relaxed) + 1;
        self.recorder.record(Event::HttpRequest {
            exchange,
            method: request.method().to_string(),
            target: request.uri().to_string(),
            headers: crate::events::head(request.headers()),
        });
        exchange
    }

    fn tell_response<B>(&self, exchange: u64, response: &Response<B>) {
        self.metrics.responded(response.status());
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
