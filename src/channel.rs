//! An RDMA connection between a server and a client: the fabric's, with our messages on it, telling of all that it does.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use crate::events::{Event, Recorder};
use crate::fabric::{BoxFuture, Completion, Connection, FabricError, Received, Region, RemoteAddress};
use crate::memory::Source;
use crate::message::{Message, MessageError};

/// An established connection. Dropping it closes it.
pub struct Channel {
    // Kept from one wait to the next: a receive that is given up would take its message along.
    receiving: Mutex<Option<Completion<Received>>>,
    // Declared before the guard, so that it is closed before that is told.
    connection: Arc<dyn Connection>,
    guard: Closed,
}

struct Closed {
    local: SocketAddr,
    peer: SocketAddr,
    recorder: Recorder,
}

/// Why a message did not come.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The connection is gone.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The peer said something else.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl Channel {
    /// Takes over a connection that was just established.
    pub fn established(connection: Arc<dyn Connection>, initiator: bool, recorder: &Recorder) -> Self {
        let (local, peer) = (connection.local_addr(), connection.peer_addr());
        recorder.record(Event::RdmaConnected { local, peer, initiator });
        Self {
            receiving: Mutex::default(),
            connection,
            guard: Closed { local, peer, recorder: recorder.clone() },
        }
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.guard.peer
    }

    /// RDMA Write of the whole of `source`. Posts at once; the future completes it, and tells.
    pub fn write(&self, source: &Source, to: RemoteAddress) -> BoxFuture<'static, Result<(), FabricError>> {
        let length = source.length();
        let completion = self.connection.write(source.region(), 0, length, to);
        let recorder = self.guard.recorder.clone();
        Box::pin(async move {
            completion.await?;
            let (stag, to) = (Some(to.stag.0), Some(to.to));
            recorder.record(Event::Operation { op: "write".into(), length: length as u64, stag, to });
            Ok(())
        })
    }

    /// RDMA Read of `length` bytes into the beginning of `sink`. Posts at once; the future completes it, and tells.
    pub fn read(
        &self,
        sink: &Region,
        length: usize,
        from: RemoteAddress,
    ) -> BoxFuture<'static, Result<(), FabricError>> {
        let completion = self.connection.read(sink, 0, length, from);
        let recorder = self.guard.recorder.clone();
        Box::pin(async move {
            completion.await?;
            let (stag, to) = (Some(from.stag.0), Some(from.to));
            recorder.record(Event::Operation { op: "read".into(), length: length as u64, stag, to });
            Ok(())
        })
    }

    /// Sends a message. Posts at once; the future completes it, and tells.
    pub fn send(&self, message: Message) -> BoxFuture<'static, Result<(), FabricError>> {
        let bytes = message.encode();
        let length = bytes.len() as u64;
        let completion = self.connection.send(bytes);
        let recorder = self.guard.recorder.clone();
        Box::pin(async move {
            completion.await?;
            recorder.record(Event::Operation { op: "send".into(), length, stag: None, to: None });
            Ok(())
        })
    }

    /// The next message. A wait that is given up loses none.
    pub async fn receive(&self) -> Result<Message, ReceiveError> {
        poll_fn(|cx| self.poll_receive(cx)).await
    }

    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<Result<Message, ReceiveError>> {
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let receive = receiving.get_or_insert_with(|| self.connection.receive());
        let received = ready!(receive.as_mut().poll(cx));
        *receiving = None;
        let received = received?;
        let length = received.message.len() as u64;
        self.guard.recorder.record(Event::Operation { op: "receive".into(), length, stag: None, to: None });
        Poll::Ready(Ok(Message::decode(&received.message)?))
    }

    /// Whether the peer has said something although it was not its turn, or is gone.
    pub async fn is_out_of_turn(&self) -> bool {
        tokio::select! {
            biased;
            _ = self.receive() => true,
            () = std::future::ready(()) => false,
        }
    }

    /// Resolves when the connection is gone.
    pub fn closed(&self) -> BoxFuture<'static, FabricError> {
        self.connection.closed()
    }

    /// Whether it is gone already.
    pub async fn is_closed(&self) -> bool {
        tokio::select! {
            biased;
            _ = self.closed() => true,
            () = std::future::ready(()) => false,
        }
    }

    /// Closes in good order; bounded in time by the fabric.
    pub async fn close(self) {
        if let Err(error) = self.connection.disconnect().await {
            tracing::debug!(peer = %self.guard.peer, %error, "the RDMA connection was gone already");
        }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.recorder.record(Event::RdmaClosed { local: self.local, peer: self.peer });
    }
}
