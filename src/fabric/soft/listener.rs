//! Listening: peers are read in parallel, so that a slow or malformed one delays nobody.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::timeout;

use super::{MAX_PRIVATE_DATA, Socket, SoftFabric, establish};
use crate::fabric::{BoxFuture, ConnectOptions, ConnectRequest, Connection, FabricError, Listener, Pd};
use crate::iwarp::mpa::{self, FrameKind, StartFrame};
use crate::iwarp::negotiate;

/// How long a listener waits after an error that is not a peer's (no descriptors left, say).
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket and the task that serves it.
pub(super) struct SoftListener {
    address: SocketAddr,
    requests: Mutex<mpsc::Receiver<SoftRequest<TcpStream>>>,
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
async fn serve(fabric: SoftFabric, listener: TcpListener, requests: mpsc::Sender<SoftRequest<TcpStream>>) {
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
            fabric.0.dropped.fetch_add(1, Ordering::Relaxed);
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

/// Reads a peer's Request, of which `read_ahead` has been read already, with whatever is behind it. `None`: it asks for
/// what we do not do, and was told so.
pub(super) async fn read_request<S: Socket>(
    fabric: SoftFabric,
    mut socket: S,
    peer: SocketAddr,
    read_ahead: &[u8],
) -> io::Result<Option<SoftRequest<S>>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut bytes = read_ahead.to_vec();
    let (frame, used) = loop {
        if let Some(decoded) = StartFrame::decode(FrameKind::Request, &bytes).map_err(invalid)? {
            break decoded;
        }
        // An unfinished frame is shorter than this, so the buffer has room.
        let mut more = [0; mpa::HEADER + mpa::MAX_PRIVATE_DATA];
        let read = |context: &mut Context<'_>| socket.poll_read(context, &mut [IoSliceMut::new(&mut more)]);
        match poll_fn(read).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&more[..count]),
        }
    };
    let first = Bytes::from(bytes.split_off(used));
    let request = SoftRequest { fabric, socket: Some(socket), peer, frame, first };
    if request.frame.markers {
        tracing::warn!(%peer, "{NO_MARKERS}");
        request.reject_with(Bytes::from_static(NO_MARKERS.as_bytes())).map_err(io::Error::other)?;
        return Ok(None);
    }
    Ok(Some(request))
}

/// What a peer that asks for markers is told (RFC 5044, section 4.3 leaves no other way than to refuse).
const NO_MARKERS: &str = "MPA markers are not implemented";

/// A peer whose Request has come.
pub(super) struct SoftRequest<S: Socket> {
    fabric: SoftFabric,
    /// Taken when it is answered.
    socket: Option<S>,
    peer: SocketAddr,
    frame: StartFrame,
    first: Bytes,
}

impl<S: Socket> SoftRequest<S> {
    /// Sends the Reply that refuses. It fits into the empty buffer of a new socket, so there is nothing to wait for;
    /// and since the peer sends nothing before it has the Reply, closing does not reset the connection.
    fn reject_with(mut self, private_data: Bytes) -> Result<(), FabricError> {
        let Some(mut socket) = self.socket.take() else { return Ok(()) };
        refuse(&mut socket, &self.frame, private_data)
    }
}

fn refuse(socket: &mut impl Socket, request: &StartFrame, private_data: Bytes) -> Result<(), FabricError> {
    let mut reply = Vec::new();
    negotiate::reject(request, private_data)
        .encode(&mut reply)
        .map_err(|error| FabricError::Invalid(error.to_string()))?;
    let sent = socket.try_send(&reply).map_err(|error| FabricError::io("reject", error))?;
    if sent == reply.len() { Ok(()) } else { Err(FabricError::Closed) }
}

impl<S: Socket> Drop for SoftRequest<S> {
    fn drop(&mut self) {
        if let Some(mut socket) = self.socket.take() {
            // The peer may be gone, which is as good as telling it.
            let _ = refuse(&mut socket, &self.frame, Bytes::new());
        }
    }
}

impl<S: Socket> ConnectRequest for SoftRequest<S> {
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
            let Some(socket) = self.socket.take() else { return Err(FabricError::Closed) };
            let (frame, first) = (self.frame.clone(), self.first.clone());
            establish::accept(&self.fabric.0.options, domain, socket, frame, &first, options).await
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
