//! What a request gives: a head and a body.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::ClientError;
use super::endpoint::Endpoint;
use super::pool::Lease;
use super::upload::Decision;
use crate::events::{Event, Recorder};
use crate::flow::{FlowError, Intake};
use crate::header::{Mode, Reason};
use crate::seal::Opener;

/// A response.
#[derive(Debug)]
pub struct Response {
    /// Status and fields, as they came.
    pub head: http::response::Parts,
    /// How the body came, or comes; for an upload, how that went.
    pub via: Via,
    /// The body.
    pub body: Body,
}

/// How a body travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// By RDMA, in this mode.
    Rdma(Mode),
    /// By TCP; with the reason if RDMA was offered.
    Tcp(Option<Reason>),
}

/// A body, to be read piece by piece.
#[derive(Debug)]
pub struct Body {
    source: Source,
    length: Option<u64>,
    received: u64,
    recorder: Recorder,
    // After the source: that is done with the connection first.
    lease: Option<Lease>,
}

#[derive(Debug)]
enum Source {
    /// All of it is here.
    Rdma(Bytes),
    /// It comes by RDMA.
    Flow(Box<Flow>),
    /// It comes by TCP.
    Tcp(Tcp),
    /// It has been read.
    End,
}

#[derive(Debug)]
struct Tcp {
    incoming: Incoming,
    peer: SocketAddr,
    timeout: Duration,
    /// What keeps an unfinished request from breaking off, which would end the connection.
    request: Option<oneshot::Sender<Decision>>,
}

/// A body on its way by RDMA.
struct Flow {
    coming: Intake,
    /// What opens it, if it is sealed.
    opener: Option<Opener>,
    endpoint: OwnedMutexGuard<Endpoint>,
    /// The response's own body, which is empty and ends with the transfer.
    http: Tcp,
    http_ended: bool,
    /// Whether the transfer is over and the connection fit for another.
    whole: bool,
}

impl Flow {
    /// The next piece. The end is there when both have ended, the transfer and the response.
    async fn piece(&mut self) -> Result<Option<Bytes>, ClientError> {
        let peer = self.http.peer;
        loop {
            let Self { coming, endpoint, http, http_ended, .. } = self;
            tokio::select! {
                biased;
                piece = next(coming, endpoint) => match piece {
                    Ok(Some(piece)) => {
                        let Some(opener) = &mut self.opener else { return Ok(Some(piece)) };
                        let opened = opener.push(piece)?;
                        if !opened.is_empty() {
                            return Ok(Some(opened));
                        }
                    }
                    Ok(None) => break,
                    Err(FlowError::Stalled(limit)) => {
                        return Err(ClientError::TimedOut { peer, what: "next part of the RDMA transfer", limit });
                    }
                    Err(error) => return Err(ClientError::FlowBroken(error)),
                },
                end = http.next(), if !*http_ended => match end? {
                    None => *http_ended = true,
                    Some(_) => return Err(two_bodies()),
                },
            }
        }
        if !self.http_ended && self.http.next().await?.is_some() {
            return Err(two_bodies());
        }
        if let Some(opener) = &self.opener {
            opener.end()?;
        }
        self.whole = true;
        Ok(None)
    }
}

fn two_bodies() -> ClientError {
    ClientError::Protocol("it sends a body over TCP, too".into())
}

async fn next(coming: &mut Intake, endpoint: &Endpoint) -> Result<Option<Bytes>, FlowError> {
    match endpoint.link() {
        Some(link) => coming.next(link).await,
        None => Err(FlowError::Protocol("it says that the body comes, and never connected".into())),
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if !self.whole {
            self.endpoint.discard();
        }
    }
}

impl std::fmt::Debug for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flow")
    }
}

/// The pieces in which a body that is here already is handed out.
const PIECE: usize = 1 << 20;

impl Body {
    pub(super) fn rdma(body: Bytes, recorder: Recorder) -> Self {
        let length = Some(body.len() as u64);
        Self { source: Source::Rdma(body), length, received: 0, recorder, lease: None }
    }

    /// A body that comes by RDMA, as `length` bytes, while `incoming`, which is empty, lasts.
    pub(super) fn flow(
        (coming, opener): (Intake, Option<Opener>),
        endpoint: OwnedMutexGuard<Endpoint>,
        stall: Duration,
        length: u64,
        (incoming, peer): (Incoming, SocketAddr),
        recorder: Recorder,
    ) -> Self {
        let http = Tcp { incoming, peer, timeout: stall, request: None };
        let length = opener.as_ref().map_or(length, Opener::length);
        let flow = Flow { coming, opener, endpoint, http, http_ended: false, whole: false };
        Self {
            source: Source::Flow(Box::new(flow)),
            length: Some(length),
            received: 0,
            recorder,
            lease: None,
        }
    }

    pub(super) fn tcp(incoming: Incoming, peer: SocketAddr, timeout: Duration, recorder: Recorder) -> Self {
        let length = hyper::body::Body::size_hint(&incoming).exact();
        Self {
            source: Source::Tcp(Tcp { incoming, peer, timeout, request: None }),
            length,
            received: 0,
            recorder,
            lease: None,
        }
    }

    /// Keeps a request from breaking off before the body has come.
    pub(super) fn hold_request(&mut self, unfinished: Option<oneshot::Sender<Decision>>) {
        if let Source::Tcp(tcp) = &mut self.source {
            tcp.request = unfinished;
        }
    }

    /// Keeps a pool's connection in use until the body is over: at once if it is here already.
    pub(super) fn hold(&mut self, lease: Lease) {
        match self.source {
            Source::Rdma(_) | Source::End => lease.give_back(),
            Source::Flow(_) | Source::Tcp(_) => self.lease = Some(lease),
        }
    }

    /// Bytes of the whole, where that is known.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next piece; `None` at the end. A body shorter than its head said is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let via = match self.source {
            Source::Rdma(_) | Source::Flow(_) => "rdma",
            Source::Tcp(_) => "tcp",
            Source::End => return Ok(None),
        };
        let piece = match &mut self.source {
            Source::Rdma(bytes) if bytes.is_empty() => None,
            Source::Rdma(bytes) => Some(bytes.split_to(bytes.len().min(PIECE))),
            Source::Flow(flow) => flow.piece().await?,
            Source::Tcp(tcp) => tcp.next().await?,
            Source::End => None,
        };
        match &piece {
            Some(piece) => self.received += piece.len() as u64,
            None => {
                self.source = Source::End;
                if let Some(lease) = self.lease.take() {
                    lease.give_back();
                }
                let (via, length) = (via.to_owned(), self.received);
                self.recorder.record(Event::BodyReceived { via, length });
            }
        }
        Ok(piece)
    }

    /// Reads to the end and forgets, up to `limit` bytes.
    pub(super) async fn skip(mut self, limit: u64) -> Result<(), ClientError> {
        self.recorder = Recorder::default();
        while self.received <= limit {
            if self.next().await?.is_none() {
                return Ok(());
            }
        }
        Err(ClientError::Protocol(format!("more than {limit} bytes with an error")))
    }

    /// Reads all of it, up to `limit` bytes.
    pub async fn collect(mut self, limit: usize) -> Result<Vec<u8>, ClientError> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            if piece.len() > limit - whole.len() {
                return Err(ClientError::Protocol(format!("the body has more than {limit} bytes")));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }
}

impl Tcp {
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let Self { incoming, peer, timeout: limit, .. } = self;
        let (peer, limit) = (*peer, *limit);
        loop {
            let frame = match tokio::time::timeout(limit, incoming.frame()).await {
                Err(_) => return Err(ClientError::TimedOut { peer, what: "next part of the body", limit }),
                Ok(None) => return Ok(None),
                Ok(Some(Err(source))) => {
                    return Err(ClientError::Broken { peer, during: "before the end of the body", source });
                }
                Ok(Some(Ok(frame))) => frame,
            };
            match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                _ => {}
            }
        }
    }
}
