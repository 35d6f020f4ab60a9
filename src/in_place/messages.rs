//! What the transfers see of a connection that HTTP shares: an RDMA connection as any other.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::carrier::Carrier;
use crate::fabric::inbox::Receive;
use crate::fabric::{BoxFuture, Completion, Connection, FabricError, Received, Region, RemoteAddress, Stag};

/// The transfers' part. Dropping it ends HTTP's part too.
pub(super) struct Messages(Arc<Carrier>);

impl Messages {
    pub(super) fn new(carrier: Arc<Carrier>) -> Self {
        Self(carrier)
    }
}

impl Connection for Messages {
    fn local_addr(&self) -> SocketAddr {
        self.0.connection.local_addr()
    }

    fn peer_addr(&self) -> SocketAddr {
        self.0.connection.peer_addr()
    }

    fn private_data(&self) -> &[u8] {
        self.0.connection.private_data()
    }

    fn write(&self, source: &Region, offset: usize, length: usize, to: RemoteAddress) -> Completion {
        self.0.connection.write(source, offset, length, to)
    }

    fn read(&self, sink: &Region, offset: usize, length: usize, from: RemoteAddress) -> Completion {
        self.0.connection.read(sink, offset, length, from)
    }

    fn send(&self, message: Bytes) -> Completion {
        self.0.connection.send(message)
    }

    fn send_invalidate(&self, message: Bytes, stag: Stag) -> Completion {
        self.0.connection.send_invalidate(message, stag)
    }

    fn send_solicited(&self, message: Bytes, invalidate: Option<Stag>) -> Completion {
        self.0.connection.send_solicited(message, invalidate)
    }

    fn receive(&self) -> Completion<Received> {
        Box::pin(Receive::new(self.0.clone()))
    }

    fn disconnect(&self) -> BoxFuture<'static, Result<(), FabricError>> {
        self.0.connection.disconnect()
    }

    fn closed(&self) -> BoxFuture<'static, FabricError> {
        self.0.connection.closed()
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.0.end(&FabricError::Closed);
    }
}
