//! What a GET gives: a head and a body.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::ClientError;
use crate::events::{Event, Recorder};
use crate::header::{Mode, Reason};

/// A response.
#[derive(Debug)]
pub struct Response {
    /// Status and fields, as they came.
    pub head: http::response::Parts,
    /// How the body came, or comes.
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
}

#[derive(Debug)]
enum Source {
    /// All of it is here.
    Rdma(Bytes),
    /// It is under way.
    Tcp { incoming: Incoming, peer: SocketAddr, timeout: Duration },
    /// It has been read.
    End,
}

/// The pieces in which a body that is here already is handed out.
const PIECE: usize = 1 << 20;

impl Body {
    pub(super) fn rdma(memory: Vec<u8>, recorder: Recorder) -> Self {
        let length = Some(memory.len() as u64);
        Self { source: Source::Rdma(memory.into()), length, received: 0, recorder }
    }

    pub(super) fn tcp(incoming: Incoming, peer: SocketAddr, timeout: Duration, recorder: Recorder) -> Self {
        let length = hyper::body::Body::size_hint(&incoming).exact();
        Self { source: Source::Tcp { incoming, peer, timeout }, length, received: 0, recorder }
    }

    /// Bytes of the whole, where that is known.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next piece; `None` at the end. A body shorter than its head said is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let via = match self.source {
            Source::Rdma(_) => "rdma",
            Source::Tcp { .. } => "tcp",
            Source::End => return Ok(None),
        };
        let piece = match &mut self.source {
            Source::Rdma(bytes) if bytes.is_empty() => None,
            Source::Rdma(bytes) => Some(bytes.split_to(bytes.len().min(PIECE))),
            Source::Tcp { incoming, peer, timeout } => next_data(incoming, *peer, *timeout).await?,
            Source::End => None,
        };
        match &piece {
            Some(piece) => self.received += piece.len() as u64,
            None => {
                self.source = Source::End;
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

async fn next_data(
    incoming: &mut Incoming,
    peer: SocketAddr,
    limit: Duration,
) -> Result<Option<Bytes>, ClientError> {
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
