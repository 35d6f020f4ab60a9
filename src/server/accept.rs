//! The accept loop: HTTP/1.1 connections for any tower service, each with its [`HttpConnection`], until told to stop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::{Service, ServiceExt};

use super::HttpConnection;
use super::layer::BoxError;
use crate::tls::ServerTls;

/// Limits of [`serve`].
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// HTTP connections at once; more wait to be accepted.
    pub max_connections: usize,
    /// For a request's head to come, counted from the one before.
    pub idle_timeout: Duration,
    /// For a peer to acknowledge, or make room for, what was sent to it (TCP_USER_TIMEOUT).
    pub stall_timeout: Duration,
    /// For exchanges under way, once told to stop.
    pub grace: Duration,
    /// With what to speak TLS, if at all.
    pub tls: Option<ServerTls>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            idle_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            tls: None,
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
    let permits = Arc::new(Semaphore::new(options.max_connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        prepare(&stream, options.stall_timeout);
        let (service, options, stopped) = (service.clone(), options.clone(), stopped.clone());
        connections.spawn(async move {
            let local = stream.local_addr().ok();
            match &options.tls {
                None => {
                    let http = HttpConnection::between(peer, local, None);
                    serve_one(stream, service, http, &options, stopped).await;
                }
                Some(tls) => match timeout(options.idle_timeout, tls.accept(stream)).await {
                    Ok(Ok((stream, secret))) => {
                        let http = HttpConnection::between(peer, local, Some(secret));
                        serve_one(stream, service, http, &options, stopped).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                    Err(_) => tracing::debug!(%peer, "no TLS within {:?}", options.idle_timeout),
                },
            }
            drop(permit);
        });
    }
    drop(listener);
    tracing::info!(connections = connections.len(), "stopping");
    // Nobody listens any more where all have ended.
    let _ = stopping.send(true);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(options.grace, ended).await.is_err() {
        tracing::warn!("exchanges still under way after {:?} are cut off", options.grace);
    }
    connections.shutdown().await;
}

/// Serves one connection to its end, also the one that it may become.
async fn serve_one<S, B, I>(
    stream: I,
    service: S,
    http: HttpConnection,
    options: &ServeOptions,
    stopped: watch::Receiver<bool>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (peer, idle) = (http.peer(), options.idle_timeout);
    let with_http = with_connection(service.clone(), http.clone());
    let mut ended = serve_http(stream, with_http, idle, stopped.clone()).await;
    if ended.is_ok()
        && let Some(promised) = http.promised()
    {
        match http.keep_promise(promised).await {
            Ok(stream) => {
                let with_http = with_connection(service, http.clone());
                ended = serve_http(stream, with_http, idle, stopped).await;
            }
            Err(error) => tracing::warn!(%peer, %error, "no connection in place"),
        }
    }
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "HTTP connection ended");
    }
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

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

/// The next connection, once there is room for one. `None` after an error that concerned one connection only, or passed.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> Option<Accepted> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, permit)),
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
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = Response<B>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<B>, Infallible>> + Send,
>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send,
    S::Future: Send,
    B: Body,
{
    service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(http.clone());
        service.clone().oneshot(request)
    })
}
