//! The accept loop: HTTP/1.1 connections for any tower service, each with its [`HttpConnection`], until told to stop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::{HttpService, service_fn};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::{Service, ServiceExt};

use super::body::BoxError;
use super::linger::{Linger, Refused};
use super::metrics::Limit;
use super::rooms::{Room, Rooms};
use super::watched::{Answer, Watched};
use super::{HttpConnection, Metrics};
use crate::flow::Pace;
use crate::tls::ServerTls;

/// Limits of [`serve`].
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// HTTP connections at once. A further one takes the place of the one that has waited longest for a request; it waits
    /// while all are busy.
    pub max_connections: usize,
    /// The same for one client's address; while all of its own are busy a further one is closed.
    pub max_connections_per_peer: usize,
    /// For a request's head to come, counted from the one before.
    pub idle_timeout: Duration,
    /// For a request's head to come, counted from its first byte.
    pub head_timeout: Duration,
    /// For a peer to acknowledge, or make room for, what was sent to it.
    pub stall_timeout: Duration,
    /// Bytes a second that a peer must take while it is waited for, over each `stall_timeout` of waiting.
    pub min_rate: u64,
    /// For exchanges under way, once told to stop.
    pub grace: Duration,
    /// With what to speak TLS, if at all.
    pub tls: Option<ServerTls>,
    /// Where connections, these limits, and how often they were met are told.
    pub metrics: Option<Metrics>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_connections_per_peer: 1024,
            idle_timeout: Duration::from_secs(60),
            head_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            min_rate: 100,
            grace: Duration::from_secs(10),
            tls: None,
            metrics: None,
        }
    }
}

impl ServeOptions {
    fn tell(&self) {
        let Some(metrics) = &self.metrics else { return };
        for (setting, limit) in [
            ("max-connections", Limit::Number(self.max_connections)),
            ("max-connections-per-peer", Limit::Number(self.max_connections_per_peer)),
            ("idle-timeout", Limit::Time(self.idle_timeout)),
            ("head-timeout", Limit::Time(self.head_timeout)),
            ("stall-timeout", Limit::Time(self.stall_timeout)),
            ("min-rate", Limit::Bytes(self.min_rate)),
            ("shutdown-timeout", Limit::Time(self.grace)),
        ] {
            metrics.limit(setting, limit);
        }
    }
}

/// Serves until `stop` resolves; then lets exchanges under way finish, within bounds, and closes everything.
pub async fn serve<S, B>(listener: TcpListener, service: S, options: ServeOptions, stop: impl Future)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let mut stop = std::pin::pin!(stop);
    let (stopping, stopped) = watch::channel(false);
    options.tell();
    let rooms =
        Rooms::new(options.max_connections, options.max_connections_per_peer, options.metrics.clone());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener) => accepted,
        };
        let Some((stream, peer)) = accepted else { continue };
        let room = tokio::select! {
            _ = &mut stop => break,
            room = rooms.enter(peer.ip()) => room,
        };
        let Some(room) = room else {
            tracing::debug!(%peer, "closed: its address has all the connections that it may");
            continue;
        };
        prepare(&stream, options.stall_timeout);
        let room = Arc::new(room);
        let serving =
            serve_stream((stream, peer), service.clone(), options.clone(), stopped.clone(), room.clone());
        connections.spawn(async move {
            tokio::select! {
                biased;
                () = serving => {}
                () = room.told_to_go() => tracing::debug!(%peer, "closed: it was idle, and others wait"),
            }
        });
    }
    drop(listener);
    tracing::info!(connections = connections.len(), "stopping");
    // Nobody listens any more where all have ended.
    let _ = stopping.send(true);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(options.grace, ended).await.is_err() {
        tracing::warn!("exchanges still under way after {:?} are cut off", options.grace);
        if let Some(metrics) = &options.metrics {
            metrics.limited("shutdown-timeout");
        }
    }
    connections.shutdown().await;
}

/// Serves one connection to its end, with TLS where that is wanted.
async fn serve_stream<S, B>(
    (stream, peer): (TcpStream, SocketAddr),
    service: S,
    options: ServeOptions,
    stopped: watch::Receiver<bool>,
    room: Arc<Room>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let local = stream.local_addr().ok();
    match &options.tls {
        None => {
            let http = HttpConnection::between(peer, local, None);
            serve_one(stream, service, http, &options, (stopped, room)).await;
        }
        Some(tls) => match timeout(options.head_timeout, tls.accept(stream)).await {
            Ok(Ok((stream, secret))) => {
                let http = HttpConnection::between(peer, local, Some(secret));
                serve_one(stream, service, http, &options, (stopped, room)).await;
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
            Err(_) => {
                room.limited("head-timeout");
                tracing::debug!(%peer, "no TLS within {:?}", options.head_timeout);
            }
        },
    }
}

/// Serves one connection to its end, also the one that it may become.
async fn serve_one<S, B, I>(
    stream: I,
    service: S,
    http: HttpConnection,
    options: &ServeOptions,
    (stopped, room): (watch::Receiver<bool>, Arc<Room>),
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (peer, idle) = (http.peer(), options.idle_timeout);
    let refused = Refused::default();
    let with_http = with_connection(service.clone(), http.clone(), room.clone(), refused.clone());
    let stream = Linger::new(stream, http.unread().clone());
    let mut ended = serve_http(watched(stream, &room, options), with_http, idle, stopped.clone()).await;
    if ended.is_ok()
        && let Some(promised) = http.promised()
    {
        room.begin();
        match http.keep_promise(promised).await {
            Ok(stream) => {
                let with_http = with_connection(service, http.clone(), room.clone(), refused.clone());
                ended = serve_http(watched(stream, &room, options), with_http, idle, stopped).await;
            }
            Err(error) => tracing::warn!(%peer, %error, "no connection in place"),
        }
    }
    refused.end().await;
    if let Err(error) = ended {
        if error.is_timeout() {
            room.limited("idle-timeout");
        }
        tracing::debug!(%peer, %error, "HTTP connection ended");
    }
    // A service may have taken the stream for a protocol of its own: that counts, and is not idle.
    room.begin();
    http.close().await;
}

/// Serves HTTP on a stream to its end; once told to stop, to the end of the exchange that is under way.
async fn serve_http<T, S>(
    stream: T,
    service: S,
    idle: Duration,
    mut stopped: watch::Receiver<bool>,
) -> hyper::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody: 'static, Error: Into<BoxError>>,
    <S::ResBody as Body>::Error: Into<BoxError>,
{
    // Without half_close: a client that shuts its side down is taken as gone, so that a transfer to it is abandoned at
    // once (docs/protocol.md, section 5).
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    tokio::select! {
        biased;
        ended = served.as_mut() => return ended,
        _ = stopped.wait_for(|stopped| *stopped) => served.as_mut().graceful_shutdown(),
    }
    served.await
}

fn watched<I>(stream: I, room: &Arc<Room>, options: &ServeOptions) -> Watched<I> {
    let pace = Pace::new(options.stall_timeout, options.min_rate);
    Watched::new(stream, room.clone(), pace, options.head_timeout)
}

/// The next connection. `None` after an error that concerned one connection only, or passed.
async fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match listener.accept().await {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            // Out of descriptors, mostly: it passes when connections end, and asking again at once would only spin.
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

/// Sets what bounds the waiting for a peer that is gone or takes nothing.
pub(crate) fn prepare(stream: &TcpStream, stall: Duration) {
    let millis = u32::try_from(stall.as_millis()).unwrap_or(u32::MAX);
    let result = stream
        .set_nodelay(true)
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpUserTimeout, &millis)?))
        .and_then(|()| {
            let keepalive = socket2::TcpKeepalive::new()
                .with_time(Duration::from_secs(15))
                .with_interval(Duration::from_secs(5));
            socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
        });
    if let Err(error) = result {
        tracing::debug!(%error, "a socket option could not be set");
    }
}

fn with_connection<S, B>(
    service: S,
    http: HttpConnection,
    room: Arc<Room>,
    refused: Refused,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = Response<Answer<B>>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Answer<B>>, Infallible>> + Send,
>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send,
    S::Future: Send,
    B: Body,
{
    service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(http.clone());
        http.unread().tell(!request.body().is_end_stream());
        room.begin();
        // What a CONNECT gets is the service's, whatever the answer.
        let asks = request.method() != Method::CONNECT;
        let upgrade = asks.then(|| request.extensions().get::<OnUpgrade>().cloned()).flatten();
        let (answered, room, refused) = (service.clone().oneshot(request), room.clone(), refused.clone());
        async move {
            let answer = answered.await?;
            refused.answered(answer.status(), upgrade);
            Ok(answer.map(|body| Answer::new(body, room)))
        }
    })
}
