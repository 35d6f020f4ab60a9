//! One HTTP connection, and the exchanges on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderValue};
use http::response::Parts;
use http::{Method, Request};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::again::Before;
use super::endpoint::Endpoint;
use super::in_place::InPlace;
use super::response::{Body, Response, Via};
use super::route::{Offered, Sealing};
use super::{Client, ClientError};
use crate::channel::Channel;
use crate::events::{Event, Recorder, head};
use crate::flow::{BoxError, Intake};
use crate::header::{Mode, Outcome, RDMA, Reason, Route, TransferId};
use crate::in_place::first;
use crate::memory::Sink;
use crate::message::Message;
use crate::seal::{self, Opener};

/// A connection to a server. Exchanges go one after the other; a response's body must be read before the next.
pub struct HttpConnection {
    pub(super) client: Client,
    pub(super) sender: SendRequest<RequestBody>,
    pub(super) driver: Driver,
    host: HeaderValue,
    /// As it was asked for.
    server: (String, u16),
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    /// Our end of RDMA; a body that comes by RDMA holds on to it.
    pub(super) endpoint: Arc<Mutex<Endpoint>>,
    /// Whether the server has shown that it cannot reach us.
    pub(super) out_of_reach: bool,
    /// With what bodies that go by RDMA are sealed, where there is TLS.
    pub(super) sealing: Option<Sealing>,
    /// What became of it where it is to be the RDMA connection.
    pub(super) in_place: InPlace,
    /// Whether it can carry no other exchange: an answer came before all of the request was sent.
    pub(super) spent: bool,
    /// Whether the server has answered on it.
    pub(super) used: bool,
    /// What it was like when the last request went out on it.
    pub(super) before: Before,
}

/// The task that moves the bytes; ends with the connection.
pub(super) struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Numbers the exchanges of this process.
static EXCHANGES: AtomicU64 = AtomicU64::new(0);

impl HttpConnection {
    pub(super) async fn open(client: Client, host: &str, port: u16) -> Result<Self, ClientError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let limit = client.options.connect_timeout;
        let stream = connect(bare, port, limit).await?;
        let unnamed = |source| ClientError::Resolve { host: host.to_owned(), source };
        let local = stream.local_addr().map_err(unnamed)?;
        let peer = stream.peer_addr().map_err(unnamed)?;
        crate::server::prepare(&stream, client.options.timeout);
        client.observer.note(&format!("Connected to {peer} from {local}"));
        let server = (host.to_owned(), port);
        let usual = if client.tls.is_some() { 443 } else { 80 };
        let host = if port == usual { host.to_owned() } else { format!("{host}:{port}") };
        let host = HeaderValue::try_from(host).map_err(|error| ClientError::Request(error.into()))?;
        let ((sender, driver), sealing) = match &client.tls {
            None => (handshake(stream, peer).await?, None),
            Some(tls) => {
                let (stream, secret) = match timeout(limit, tls.connect(bare, stream)).await {
                    Ok(shaken) => shaken.map_err(|source| ClientError::Tls { peer, source })?,
                    Err(_) => return Err(ClientError::TimedOut { peer, what: "TLS handshake", limit }),
                };
                (handshake(stream, peer).await?, Some(Sealing::new(secret)))
            }
        };
        let (endpoint, in_place) = (Arc::default(), InPlace::default());
        Ok(Self {
            client,
            sender,
            driver,
            host,
            server,
            local,
            peer,
            endpoint,
            out_of_reach: false,
            sealing,
            in_place,
            spent: false,
            used: false,
            before: Before::default(),
        })
    }

    /// The server's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// GET `target` (path and query) with these fields, and `Host` if it is not among them. If the server gives up an RDMA
    /// transfer, it is asked once more without an offer; and if it has closed a kept connection instead of answering, or makes
    /// none in place that it promised, once more on a new one.
    pub async fn get(&mut self, target: &str, headers: HeaderMap) -> Result<Response, ClientError> {
        self.request(Method::GET, target, headers).await
    }

    /// The same with another method, for a request without a body. RDMA is offered for a GET only.
    pub async fn request(
        &mut self,
        method: Method,
        target: &str,
        headers: HeaderMap,
    ) -> Result<Response, ClientError> {
        let request = self.head(method, target, headers)?;
        match self.exchange(request.clone()).await {
            Err(error) if self.before.is_missed(request.method(), &error) => {
                self.again(&error).await?;
                self.exchange(request).await
            }
            result => result,
        }
    }

    async fn exchange(&mut self, request: Request<()>) -> Result<Response, ClientError> {
        let offered = match *request.method() {
            Method::GET => self.offer_sink().await,
            _ => None,
        };
        let Some(offered) = offered else { return self.plain(request, None).await };
        self.ready().await?;
        match self.offering(request.clone(), offered).await {
            Err(ClientError::TransferFailed(reason)) => {
                tracing::warn!(%reason, "the server gave up the RDMA transfer; asking again without RDMA");
                self.fall_back(&reason);
                self.plain(request, Some(reason)).await
            }
            result => result,
        }
    }

    /// A request's head with all that goes with every request.
    pub(super) fn head(
        &self,
        method: Method,
        target: &str,
        headers: HeaderMap,
    ) -> Result<Request<()>, ClientError> {
        let request = Request::builder().method(method).uri(target);
        let mut request = request.body(()).map_err(ClientError::Request)?;
        *request.headers_mut() = headers;
        request.headers_mut().entry(HOST).or_insert_with(|| self.host.clone());
        Ok(request)
    }

    /// Closes both connections in good order.
    pub async fn close(mut self) {
        // In place HTTP ends first, since it ends with the other.
        if self.in_place != InPlace::Made {
            self.endpoint.lock().await.close().await;
        }
        drop(self.sender);
        // Ends by itself once nobody can send, but for a server that sends without being asked.
        let _ = timeout(Duration::from_secs(1), &mut self.driver.0).await;
        self.endpoint.lock().await.close().await;
    }

    /// Waits until what was sent before is through.
    pub(super) async fn ready(&mut self) -> Result<(), ClientError> {
        let (peer, limit) = (self.peer, self.client.options.timeout);
        match timeout(limit, self.sender.ready()).await {
            Err(_) => Err(ClientError::TimedOut { peer, what: "end of the exchange before", limit }),
            Ok(result) => {
                result.map_err(|source| ClientError::Broken { peer, during: "before the request", source })
            }
        }
    }

    pub(super) async fn plain(
        &mut self,
        request: Request<()>,
        reason: Option<Reason>,
    ) -> Result<Response, ClientError> {
        self.renew().await?;
        self.ready().await?;
        let exchange = self.tell_request(&request);
        let limit = self.client.options.timeout;
        let (head, incoming) = self.send(request.map(|()| empty()), limit).await?;
        self.tell_response(exchange, &head);
        Ok(self.by_tcp(head, incoming, reason))
    }

    /// Connects anew if the server has ended the HTTP connection: it may do so after any response.
    pub(super) async fn renew(&mut self) -> Result<(), ClientError> {
        let lost = self.in_place == InPlace::Made && self.endpoint.lock().await.link().is_none();
        if lost || self.spent || self.sender.is_closed() { self.reopen().await } else { Ok(()) }
    }

    /// Connects anew, whatever the connection is like.
    pub(super) async fn reopen(&mut self) -> Result<(), ClientError> {
        self.endpoint.lock().await.close().await;
        let (host, port) = (self.server.0.clone(), self.server.1);
        *self = Self::open(self.client.clone(), &host, port).await?;
        Ok(())
    }

    async fn offering(
        &mut self,
        mut request: Request<()>,
        offered: Offered,
    ) -> Result<Response, ClientError> {
        let Offered { offer, id, sink, keys, mut endpoint } = offered;
        request.headers_mut().insert(RDMA, offer.to_value());
        let asking = offer.route == Route::InPlace && endpoint.link().is_none();
        if asking {
            first::ask(request.headers_mut());
        }
        let exchange = self.tell_request(&request);
        let options = &self.client.options;
        let (limit, limits, crc) = (options.timeout, options.limits(), options.crc);
        let recorder = self.client.recorder.clone();
        let (head, incoming) = if asking {
            self.send_asking(request, id, &mut endpoint, exchange).await?
        } else {
            let answer = self.send(request.map(|()| empty()), limit);
            let (answer, accepted) =
                answer_and_connection(answer, &endpoint, id, (crc, &recorder), limit).await;
            if let Some(connection) = accepted? {
                endpoint.keep(offer.route, connection);
            }
            answer?
        };
        self.tell_response(exchange, &head);
        match Outcome::of(&head.headers)? {
            Some(Outcome::Done { mode: Mode::ServerWrites, bytes, id: theirs })
                if offer.mode == Mode::ServerWrites
                    && theirs == Some(id)
                    && offer.region.is_some_and(|region| bytes <= region.maxlen) =>
            {
                let memory = self.complete(&mut endpoint, sink, id, bytes).await?;
                let body = match keys {
                    Some(keys) => seal::open(keys, memory).inspect_err(|_| endpoint.discard())?,
                    None => memory.into(),
                };
                Ok(Response { head, via: Via::Rdma(offer.mode), body: Body::rdma(body, recorder) })
            }
            Some(Outcome::Under { mode, bytes, id: theirs }) if mode == offer.mode && theirs == id => {
                let opener = keys.map(|keys| Opener::new(keys, bytes)).transpose()?;
                let limits = if opener.is_some() { limits.in_records() } else { limits };
                let coming = match sink {
                    Some(sink) => Intake::written(id, sink, bytes, limits),
                    None => Intake::read(id, None, bytes, limits),
                };
                let http = (incoming, self.peer);
                let body = Body::flow((coming, opener), endpoint, limit, bytes, http, recorder);
                Ok(Response { head, via: Via::Rdma(mode), body })
            }
            Some(
                Outcome::Done { .. }
                | Outcome::Under { .. }
                | Outcome::Accept { .. }
                | Outcome::InPlace { .. },
            ) => {
                endpoint.discard();
                let (answered, offer) = (head.headers.get(RDMA), offer.to_value());
                Err(ClientError::Protocol(format!("it answered {answered:?} to {offer:?}")))
            }
            Some(Outcome::Failed { reason }) => {
                drop(sink);
                endpoint.discard();
                // Its few bytes are in the way of the next exchange.
                self.by_tcp(head, incoming, None).body.skip(64 << 10).await?;
                Err(ClientError::TransferFailed(reason))
            }
            Some(Outcome::Fallback { reason }) => {
                self.learn(&offer, &reason);
                Ok(self.by_tcp(head, incoming, Some(reason)))
            }
            None => {
                let reason = Reason::NOT_ANSWERED;
                self.fall_back(&reason);
                Ok(self.by_tcp(head, incoming, Some(reason)))
            }
        }
    }

    /// Waits for the transfer's last message, ends the registration, and returns the body.
    async fn complete(
        &self,
        endpoint: &mut Endpoint,
        sink: Option<Sink>,
        id: TransferId,
        bytes: u64,
    ) -> Result<Vec<u8>, ClientError> {
        let limit = self.client.options.timeout;
        let peer = self.peer;
        let (Some(link), Some(sink)) = (endpoint.link(), sink) else {
            return Err(ClientError::Protocol("it says that it wrote, and never connected".into()));
        };
        let message = match timeout(limit, link.channel.receive()).await {
            Err(_) => Err(ClientError::TimedOut { peer, what: "end of the RDMA transfer", limit }),
            Ok(Err(error)) => Err(ClientError::TransferBroken(error)),
            Ok(Ok(message)) => Ok(message),
        };
        let wanted = Message::Done { id, bytes };
        let result = match message {
            Ok(message) if message == wanted => match sink.holds(0..bytes) {
                Ok(()) => Ok(sink.take(usize::try_from(bytes).unwrap_or(usize::MAX))?),
                Err(error) => Err(ClientError::Protocol(error.to_string())),
            },
            Ok(message) => {
                Err(ClientError::Protocol(format!("it sent {message:?} where {wanted:?} was due")))
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            endpoint.discard();
        }
        result
    }

    pub(super) fn fall_back(&self, reason: &Reason) {
        self.client.observer.note(&format!("No RDMA for this body: {reason}"));
        self.client.recorder.record(Event::Fallback { reason: reason.to_string() });
    }

    pub(super) fn by_tcp(&self, head: Parts, incoming: Incoming, reason: Option<Reason>) -> Response {
        let recorder = self.client.recorder.clone();
        let body = Body::tcp(incoming, self.peer, self.client.options.timeout, recorder);
        Response { head, via: Via::Tcp(reason), body }
    }

    /// Sends a request; resolves with the response's head.
    pub(super) fn send(
        &mut self,
        request: Request<RequestBody>,
        limit: Duration,
    ) -> impl Future<Output = Result<Answer, ClientError>> + use<> {
        let peer = self.peer;
        // Fails at once if the connection is gone; whoever calls has waited until it is ready.
        let answer = self.sender.send_request(request);
        async move {
            match timeout(limit, answer).await {
                Err(_) => Err(ClientError::TimedOut { peer, what: "response", limit }),
                Ok(Err(source)) => Err(match broken_body(&source) {
                    Some(error) => ClientError::Upload(error),
                    None => ClientError::Broken { peer, during: "before the response came", source },
                }),
                Ok(Ok(response)) => Ok(response.into_parts()),
            }
        }
    }

    pub(super) fn tell_request(&mut self, request: &Request<()>) -> u64 {
        self.before = Before { used: self.used, asks: first::names(request.headers()) };
        let exchange = EXCHANGES.fetch_add(1, Ordering::Relaxed) + 1;
        self.client.observer.request(request);
        if self.client.recorder.is_on() {
            self.client.recorder.record(Event::HttpRequest {
                exchange,
                method: request.method().to_string(),
                target: request.uri().to_string(),
                headers: head(request.headers()),
            });
        }
        exchange
    }

    pub(super) fn tell_response(&mut self, exchange: u64, response: &Parts) {
        self.used = true;
        self.client.observer.response(response);
        if self.client.recorder.is_on() {
            let (status, headers) = (response.status.as_u16(), head(&response.headers));
            self.client.recorder.record(Event::HttpResponse { exchange, status, headers });
        }
    }
}

/// Begins HTTP on a stream.
pub(super) async fn handshake<T>(
    stream: T,
    peer: SocketAddr,
) -> Result<(SendRequest<RequestBody>, Driver), ClientError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|source| ClientError::Broken { peer, during: "before it began", source })?;
    let connection = connection.with_upgrades();
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%peer, %error, "HTTP connection ended");
        }
    });
    Ok((sender, Driver(driver)))
}

/// Why a request's own body broke off, if that is what ended the exchange.
fn broken_body(error: &hyper::Error) -> Option<io::Error> {
    let cause = std::error::Error::source(error).filter(|_| error.is_user())?;
    Some(io::Error::other(cause.to_string()))
}

/// A response's head, and its body as it comes over TCP.
pub(super) type Answer = (Parts, Incoming);

/// What requests have as their body.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// No body.
pub(super) fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

type Accepted = Result<Option<Channel>, ClientError>;

/// Waits for the response, and meanwhile for the server's RDMA connection. If the response says that there is a transfer,
/// the connection is there too when this returns: its being told comes before the response's, whichever was seen first.
async fn answer_and_connection(
    answer: impl Future<Output = Result<Answer, ClientError>>,
    endpoint: &Endpoint,
    id: TransferId,
    (crc, recorder): (bool, &Recorder),
    limit: Duration,
) -> (Result<Answer, ClientError>, Accepted) {
    let mut accepted: Option<Channel> = None;
    let mut answer = std::pin::pin!(answer);
    let mut accept = std::pin::pin!(endpoint.accept(id, crc, recorder));
    let result = loop {
        tokio::select! {
            biased;
            connection = &mut accept, if accepted.is_none() => match connection {
                Ok(connection) => accepted = Some(connection),
                Err(error) => return (answer.await, Err(error.into())),
            },
            result = &mut answer => break result,
        }
    };
    let by_rdma = |(head, _): &Answer| {
        matches!(Outcome::of(&head.headers), Ok(Some(Outcome::Done { .. } | Outcome::Under { .. })))
    };
    if accepted.is_none() && endpoint.link().is_none() && result.as_ref().is_ok_and(by_rdma)
        // Both ends of the connection were established before the server wrote; our task just has not run yet.
        && let Ok(connection) = timeout(limit, accept).await
    {
        match connection {
            Ok(connection) => accepted = Some(connection),
            Err(error) => return (result, Err(error.into())),
        }
    }
    (result, Ok(accepted))
}

/// Looks the host up and tries each of its addresses in turn, all within the limit.
async fn connect(host: &str, port: u16, limit: Duration) -> Result<TcpStream, ClientError> {
    let attempts = async {
        let resolve = |source| ClientError::Resolve { host: host.to_owned(), source };
        let addresses = lookup_host((host, port)).await.map_err(resolve)?;
        let mut failure = resolve(io::Error::from(io::ErrorKind::NotFound));
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(source) => failure = ClientError::Connect { address, source },
            }
        }
        Err(failure)
    };
    timeout(limit, attempts).await.unwrap_or_else(|_| {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Err(ClientError::ConnectTimedOut { host, port, limit })
    })
}
