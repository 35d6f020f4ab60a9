//! Why a fetch failed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::channel::ReceiveError;
use crate::fabric::FabricError;
use crate::flow::FlowError;
use crate::header::{HeaderError, Reason};
use crate::seal::SealError;

/// Why a fetch failed; the text is for the user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The name has no address.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// No address of the host accepts a connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address tried last.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The lookup and the attempts to connect took too long in all.
    #[error("no connection to {host}:{port} within {limit:?}")]
    ConnectTimedOut {
        /// The server.
        host: String,
        /// Its port.
        port: u16,
        /// The limit.
        limit: Duration,
    },
    /// No TLS with the server: it has none, or is not who it should be.
    #[error("no TLS with {peer}: {source}")]
    Tls {
        /// The server.
        peer: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// What came by RDMA is not what the server sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The connection ended before the exchange did.
    #[error("the connection to {peer} ended {during}: {source}")]
    Broken {
        /// The server.
        peer: SocketAddr,
        /// What was under way.
        during: &'static str,
        /// What hyper says.
        source: hyper::Error,
    },
    /// The server has said that the connection becomes the RDMA connection, and then not made it.
    #[error("the server has not made the RDMA connection that it promised in place: {0}")]
    NotInPlace(FabricError),
    /// The server is silent.
    #[error("{peer}: no {what} within {limit:?}")]
    TimedOut {
        /// The server.
        peer: SocketAddr,
        /// What was waited for.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// All that a pool may have was in use for too long.
    #[error("{host}:{port}: no {what} of the pool became free within {limit:?}")]
    Busy {
        /// The server.
        host: String,
        /// Its port.
        port: u16,
        /// What was waited for.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// A pool may not register what a single connection takes.
    #[error("a connection may register {one} bytes, and all together no more than {limit}")]
    TooMuchMemory {
        /// What one takes.
        one: u64,
        /// What all may have.
        limit: u64,
    },
    /// The request cannot be sent.
    #[error("the request cannot be sent: {0}")]
    Request(http::Error),
    /// The response's `RDMA:` field makes no sense.
    #[error("the response's RDMA field: {0}")]
    Field(#[from] HeaderError),
    /// The server says that it is done; it is not, or not with what was asked for.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// The server could not finish the transfer, and says so.
    #[error("the server gave up the RDMA transfer ({0})")]
    TransferFailed(Reason),
    /// The RDMA connection ended, or brought something else, before the transfer's last message.
    #[error("the RDMA connection ended in mid-transfer: {0}")]
    TransferBroken(ReceiveError),
    /// The RDMA connection ended, or brought something else, while the body came.
    #[error("the RDMA transfer broke off: {0}")]
    FlowBroken(FlowError),
    /// What was to be sent cannot be read, or has changed.
    #[error("cannot send the file: {0}")]
    Upload(io::Error),
    /// Our own end of RDMA failed after the body was there.
    #[error("RDMA: {0}")]
    Fabric(#[from] FabricError),
}
