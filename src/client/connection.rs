//! One HTTP connection, and the exchanges on it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{HOST, HeaderValue};
use http::response::Parts;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::response::{Body, Response, Via};
use super::sink::{Receiver, Sink};
use super::{Client, ClientError};
use crate::channel::Channel;
use crate::events::{Event, head};
use crate::header::{Offer, Outcome, RDMA, Reason, TransferId};
use crate::message::Message;

/// A connection to a server. Exchanges go one after the other; a response's body must be read before the next.
pub struct HttpConnection {
    client: Client,
    sender: SendRequest<Empty<Bytes>>,
    driver: Driver,
    host: HeaderValue,
    local: SocketAddr,
    peer: SocketAddr,
    receiver: Option<Receiver>,
}

/// The task that moves the bytes; ends with the connection.
struct Driver(JoinHandle<()>);

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
        let host = if port == 80 { host.to_owned() } else { format!("{host}:{port}") };
        let host = HeaderValue::try_from(host).map_err(|error| ClientError::Request(error.into()))?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ClientError::Broken { peer, during: "before it began", source })?;
        let driver = Driver(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "HTTP connection ended");
            }
        }));
        Ok(Self { client, sender, driver, host, local, peer, receiver: None })
    }

    /// The server's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// GET `target` (path and query) with these fields, and `Host` if it is not among them. If the server gives up an RDMA transfer, it is asked
    /// once more without an offer.
    pub async fn get(&mut self, target: &str, headers: http::HeaderMap) -> Result<Response, ClientError> {
        self.ready().await?;
        let sink = self.sink().await;
        let mut request = Request::get(target).body(()).map_err(ClientError::Request)?;
        *request.headers_mut() = headers;
        request.headers_mut().entry(HOST).or_insert_with(|| self.host.clone());
        let Some(sink) = sink else { return self.plain(request, None).await };

        let mut offered = request.clone();
        offered.headers_mut().insert(RDMA, sink.offer.to_value());
        match self.offering(offered, sink).await {
            Err(ClientError::TransferFailed(reason)) => {
                tracing::warn!(%reason, "the server gave up the RDMA transfer; asking again without RDMA");
                self.fall_back(&reason);
                self.plain(request, Some(reason)).await
            }
            result => result,
        }
    }

    /// Closes both connections in good order.
    pub async fn close(mut self) {
        if let Some(receiver) = self.receiver.take() {
            receiver.close().await;
        }
        drop(self.sender);
        // Ends by itself once nobody can send, but for a server that sends without being asked.
        let _ = timeout(Duration::from_secs(1), &mut self.driver.0).await;
    }

    /// Memory to offer, or `None` if that is not wanted or not possible; then the exchange is plain.
    async fn sink(&mut self) -> Option<Sink> {
        let client = self.client.clone();
        let fabric = client.fabric.as_deref()?;
        let made = async {
            let mut receiver = match self.receiver.take() {
                Some(receiver) => receiver,
                None => Receiver::open(fabric, self.local, &client.options, &client.recorder).await?,
            };
            receiver.discard_closed().await;
            let sink = receiver.offer(client.options.maxlen);
            self.receiver = Some(receiver);
            sink
        };
        match made.await {
            Ok(sink) => Some(sink),
            Err(error) => {
                tracing::warn!(%error, "no RDMA on our side; fetching by TCP");
                self.fall_back(&Reason::FABRIC);
                None
            }
        }
    }

    /// Waits until what was sent before is through.
    async fn ready(&mut self) -> Result<(), ClientError> {
        let (peer, limit) = (self.peer, self.client.options.timeout);
        match timeout(limit, self.sender.ready()).await {
            Err(_) => Err(ClientError::TimedOut { peer, what: "end of the exchange before", limit }),
            Ok(result) => {
                result.map_err(|source| ClientError::Broken { peer, during: "before the request", source })
            }
        }
    }

    async fn plain(&mut self, request: Request<()>, reason: Option<Reason>) -> Result<Response, ClientError> {
        self.ready().await?;
        let exchange = self.tell_request(&request);
        let limit = self.client.options.timeout;
        let (head, incoming) = self.send(request, limit).await?;
        self.tell_response(exchange, &head);
        Ok(self.by_tcp(head, incoming, reason))
    }

    async fn offering(&mut self, request: Request<()>, sink: Sink) -> Result<Response, ClientError> {
        let exchange = self.tell_request(&request);
        let limit = self.client.options.timeout;
        let answer = self.send(request, limit);
        let Some(receiver) = self.receiver.as_mut() else {
            return Err(ClientError::Protocol("an offer without a listener".into()));
        };
        let (head, incoming) = answer_and_connection(answer, receiver, &sink.offer, limit).await?;
        self.tell_response(exchange, &head);
        match Outcome::of(&head.headers)? {
            Some(Outcome::Done { mode, bytes, id }) => {
                if mode != sink.offer.mode || id != sink.offer.id || bytes > sink.offer.maxlen {
                    let offer = sink.offer.to_value();
                    return Err(ClientError::Protocol(format!(
                        "it answered {:?} to {offer:?}",
                        head.headers.get(RDMA)
                    )));
                }
                let memory = self.complete(sink, bytes).await?;
                let body = Body::rdma(memory, self.client.recorder.clone());
                Ok(Response { head, via: Via::Rdma(mode), body })
            }
            Some(Outcome::Fallback { reason }) => {
                drop(sink);
                self.fall_back(&reason);
                Ok(self.by_tcp(head, incoming, Some(reason)))
            }
            Some(Outcome::Failed { reason }) => {
                drop(sink);
                self.discard();
                // Its few bytes are in the way of the next exchange.
                self.by_tcp(head, incoming, None).body.skip(64 << 10).await?;
                Err(ClientError::TransferFailed(reason))
            }
            None => {
                drop(sink);
                let reason = Reason::NOT_ANSWERED;
                self.fall_back(&reason);
                Ok(self.by_tcp(head, incoming, Some(reason)))
            }
        }
    }

    /// Waits for the transfer's last message, ends the registration, and returns the body.
    async fn complete(&mut self, sink: Sink, bytes: u64) -> Result<Vec<u8>, ClientError> {
        let limit = self.client.options.timeout;
        let peer = self.peer;
        let channel = self.receiver.as_ref().and_then(Receiver::channel);
        let Some(channel) = channel else {
            return Err(ClientError::Protocol("it says that it wrote, and never connected".into()));
        };
        let message = match timeout(limit, channel.receive()).await {
            Err(_) => Err(ClientError::TimedOut { peer, what: "end of the RDMA transfer", limit }),
            Ok(Err(error)) => Err(ClientError::TransferBroken(error)),
            Ok(Ok(message)) => Ok(message),
        };
        let wanted = sink.offer.id.map(|id| Message::Done { id, bytes });
        let result = match message {
            Ok(message) if Some(message) == wanted => Ok(sink.take(bytes)?),
            Ok(message) => {
                Err(ClientError::Protocol(format!("it sent {message:?} where {wanted:?} was due")))
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.discard();
        }
        result
    }

    fn discard(&mut self) {
        if let Some(receiver) = &mut self.receiver {
            receiver.discard();
        }
    }

    fn fall_back(&self, reason: &Reason) {
        self.client.observer.note(&format!("No RDMA for this body: {reason}"));
        self.client.recorder.record(Event::Fallback { reason: reason.to_string() });
    }

    fn by_tcp(&self, head: Parts, incoming: Incoming, reason: Option<Reason>) -> Response {
        let recorder = self.client.recorder.clone();
        let body = Body::tcp(incoming, self.peer, self.client.options.timeout, recorder);
        Response { head, via: Via::Tcp(reason), body }
    }

    /// Sends a request without a body; resolves with the response's head.
    fn send(
        &mut self,
        request: Request<()>,
        limit: Duration,
    ) -> impl Future<Output = Result<Answer, ClientError>> + use<> {
        let peer = self.peer;
        // Fails at once if the connection is gone; `get` has waited until it is ready.
        let answer = self.sender.send_request(request.map(|()| Empty::new()));
        async move {
            match timeout(limit, answer).await {
                Err(_) => Err(ClientError::TimedOut { peer, what: "response", limit }),
                Ok(Err(source)) => {
                    Err(ClientError::Broken { peer, during: "before the response came", source })
                }
                Ok(Ok(response)) => Ok(response.into_parts()),
            }
        }
    }

    fn tell_request(&self, request: &Request<()>) -> u64 {
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

    fn tell_response(&self, exchange: u64, response: &Parts) {
        self.client.observer.response(response);
        if self.client.recorder.is_on() {
            let (status, headers) = (response.status.as_u16(), head(&response.headers));
            self.client.recorder.record(Event::HttpResponse { exchange, status, headers });
        }
    }
}

type Answer = (Parts, Incoming);

/// Waits for the response, and meanwhile for the server's RDMA connection. If the response says that the transfer is done,
/// the connection is there too when this returns: its being told comes before the response's, whichever was seen first.
async fn answer_and_connection(
    answer: impl Future<Output = Result<Answer, ClientError>>,
    receiver: &mut Receiver,
    offer: &Offer,
    limit: Duration,
) -> Result<Answer, ClientError> {
    let id = offer.id.unwrap_or(TransferId::NONE);
    let had_channel = receiver.channel().is_some();
    let mut accepted: Option<Channel> = None;
    let result = {
        let mut answer = std::pin::pin!(answer);
        let mut accept = std::pin::pin!(receiver.accept(id));
        let result = loop {
            tokio::select! {
                biased;
                channel = &mut accept, if accepted.is_none() => accepted = Some(channel?),
                result = &mut answer => break result,
            }
        };
        let done = |(head, _): &Answer| matches!(Outcome::of(&head.headers), Ok(Some(Outcome::Done { .. })));
        if accepted.is_none() && !had_channel && result.as_ref().is_ok_and(done)
            // Both ends of the connection were established before the server wrote; our task just has not run yet.
            && let Ok(channel) = timeout(limit, accept).await
        {
            accepted = Some(channel?);
        }
        result
    };
    if let Some(channel) = accepted {
        receiver.keep(channel);
    }
    result
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
