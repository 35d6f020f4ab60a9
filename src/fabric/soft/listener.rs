//! Listening: peers are read in parallel, so that a slow or malformed one delays nobody.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::timeout;

use super::{MAX_PRIVATE_DATA, SoftFabric, establish};
use crate::fabric::{BoxFuture, ConnectOptions, ConnectRequest, Connection, FabricError, Listener, Pd};
use crate::iwarp::mpa::{self, FrameKind, StartFrame};
use crate::iwarp::negotiate;

/// How long a listener waits after an error that is not a peer's (no descriptors left, say).
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket and the task that serves it.
pub(super) struct SoftListener {
    address: SocketAddr,
    requests: Mutex<mpsc::Receiver<SoftRequest>>,
    task: JoinHandle<()>,
}

impl SoftListener {
    pub(super) async fn bind(fabric: SoftFabric, address: SocketAddr) -> Result<Self, FabricError> {
        let listener = TcpListener::bind(address).await.map_err(|error| FabricError::io("listen", error))?;
        let address = listener.local_addr().map_err(|error| FabricError::io("getsockname", error))?;
        let (sender, requests) = mpsc::channel(fabric.0.options.backlog.max(1));
        let task = tokio::spawn(serve(fabric, listener, sender));
        Ok(Self { address, requests: Mutex::new(requests), task })
    }
}

impl Drop for SoftListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener for SoftListener {
    fn local_addr(&self) -> SocketAddr {
        self.address
    }

    fn accept(&self) -> BoxFuture<'_, Result<Box<dyn ConnectRequest>, FabricError>> {
        Box::pin(async move {
            let request = self.requests.lock().await.recv().await.ok_or(FabricError::Closed)?;
            Ok(Box::new(request) as Box<dyn ConnectRequest>)
        })
    }
}

/// Accepts for as long as the listener lives. Dropping it drops the half-open ones.
async fn serve(fabric: SoftFabric, listener: TcpListener, requests: mpsc::Sender<SoftRequest>) {
    let mut half_open = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while half_open.try_join_next().is_some() {}
        oldest_first.retain(|task| !task.is_finished());
        if oldest_first.len() >= fabric.0.options.half_open.max(1)
            && let Some(oldest) = oldest_first.pop_front()
        {
            tracing::warn!("too many peers without a Request; dropping the oldest");
            oldest.abort();
        }
        let (fabric, requests) = (fabric.clone(), requests.clone());
        oldest_first.push_back(half_open.spawn(async move {
            let limit = fabric.0.options.request_timeout;
            match timeout(limit, read_request(fabric, stream, peer, &[])).await {
                Ok(Ok(Some(request))) => {
                    if requests.try_send(request).is_err() {
                        tracing::warn!(%peer, "too many requests wait to be accepted; dropping this one");
                    }
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::warn!(%peer, %error, "dropped before it was a request"),
                Err(_) => tracing::warn!(%peer, ?limit, "no Request in time"),
            }
        }));
    }
}

/// Reads a peer's Request, of which `first` was read already. `None`: it asks for what we do not do, and was told so.
pub(super) async fn read_request(
    fabric: SoftFabric,
    stream: TcpStream,
    peer: SocketAddr,
    first: &[u8],
) -> io::Result<Option<SoftRequest>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut bytes = [0; mpa::HEADER + mpa::MAX_PRIVATE_DATA];
    let mut length = first.len().min(bytes.len());
    bytes[..length].copy_from_slice(&first[..length]);
    let (frame, used) = loop {
        if let Some(decoded) = StartFrame::decode(FrameKind::Request, &bytes[..length]).map_err(invalid)? {
            break decoded;
        }
        // An unfinished frame is shorter than the buffer, so this asks for at least one byte.
        stream.readable().await?;
        match stream.try_read(&mut bytes[length..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    };
    // Nothing follows a Request before its Reply; more than the longest one has is an error that the machine will find.
    let first = [&bytes[used..length], first.get(length..).unwrap_or_default()].concat().into();
    let request = SoftRequest { fabric, stream: Some(stream), peer, frame, first };
    if request.frame.markers {
        tracing::warn!(%peer, "it asks for MPA markers, which are not implemented");
        request.reject_with(Bytes::new()).map_err(io::Error::other)?;
        return Ok(None);
    }
    Ok(Some(request))
}

/// A peer whose Request has come.
pub(super) struct SoftRequest {
    fabric: SoftFabric,
    /// Taken when it is answered.
    stream: Option<TcpStream>,
    peer: SocketAddr,
    frame: StartFrame,
    first: Bytes,
}

impl SoftRequest {
    /// Sends the Reply that refuses. It fits into the empty buffer of a new socket, so there is nothing to wait for;
    /// and since the peer sends nothing before it has the Reply, closing does not reset the connection.
    fn reject_with(mut self, private_data: Bytes) -> Result<(), FabricError> {
        let Some(stream) = self.stream.take() else { return Ok(()) };
        refuse(&stream, &self.frame, private_data)
    }
}

fn refuse(stream: &TcpStream, request: &StartFrame, private_data: Bytes) -> Result<(), FabricError> {
    let mut reply = Vec::new();
    negotiate::reject(request, private_data)
        .encode(&mut reply)
        .map_err(|error| FabricError::Invalid(error.to_string()))?;
    // A socket's writability is only known once it was asked for; the system call itself knows.
    let sent =
        socket2::SockRef::from(stream).send(&reply).map_err(|error| FabricError::io("reject", error))?;
    if sent == reply.len() { Ok(()) } else { Err(FabricError::Closed) }
}

impl Drop for SoftRequest {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            // The peer may be gone, which is as good as telling it.
            let _ = refuse(&stream, &self.frame, Bytes::new());
        }
    }
}

impl ConnectRequest for SoftRequest {
    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn private_data(&self) -> &[u8] {
        &self.frame.private_data
    }

    fn accept(
        mut self: Box<Self>,
        pd: &Pd,
        options: ConnectOptions,
    ) -> BoxFuture<'static, Result<Arc<dyn Connection>, FabricError>> {
        let domain = self.fabric.domain(pd);
        Box::pin(async move {
            let domain = domain?;
            let Some(stream) = self.stream.take() else { return Err(FabricError::Closed) };
            let (frame, first) = (self.frame.clone(), self.first.clone());
            establish::accept(&self.fabric.0.options, domain, stream, frame, &first, options).await
        })
    }

    fn reject(self: Box<Self>, private_data: &[u8]) -> BoxFuture<'static, Result<(), FabricError>> {
        let result = if private_data.len() > MAX_PRIVATE_DATA {
            Err(FabricError::Invalid(format!(
                "private data of {}; the limit is {MAX_PRIVATE_DATA}",
                private_data.len()
            )))
        } else {
            (*self).reject_with(Bytes::copy_from_slice(private_data))
        };
        Box::pin(std::future::ready(result))
    }
}
