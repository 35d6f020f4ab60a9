//! The client library: requests whose bodies travel by RDMA where the server can, by TCP where it cannot.
//!
//! A [`Client`] holds settings and a fabric; an [`HttpConnection`] is one connection to one server, with the RDMA connection
//! that belongs to it; a [`Pool`] keeps connections, within limits; a [`Response`] has a head and a [`Body`] that does not care how it came.

mod again;
mod connection;
mod endpoint;
mod error;
mod in_place;
mod pool;
mod response;
mod route;
mod stream;
mod upload;

use std::net::{AddrParseError, IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::events::Recorder;
use crate::fabric::Fabric;
use crate::flow::{Limits, MOST_WINDOW};
use crate::header::Mode;
use crate::memory::Strategy;

pub use crate::tls::ClientTls;
pub use connection::HttpConnection;
pub use error::ClientError;
pub use pool::{Pool, PoolOptions};
pub use response::{Body, Response, Via};
pub use stream::BodyStream;
pub use upload::Upload;

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the region that is offered. A longer body is written round and round in it. Memory is paged in as it is
    /// written to, so for shorter ones this costs address space.
    pub maxlen: u64,
    /// For the whole of looking the name up and connecting by TCP, whatever number of addresses it has.
    pub connect_timeout: Duration,
    /// For each wait: the response's head, the end of the transfer, the next piece of a body. A server sends the head after
    /// the RDMA transfer of a body that fits the region, so this must be more than that takes.
    pub timeout: Duration,
    /// Where to accept RDMA connections; the HTTP connection's own address and any port by default.
    pub listen: Option<SocketAddr>,
    /// What to tell the server instead of where we listen, for whoever sits behind a port forwarding.
    pub advertise: Option<Advertise>,
    /// Networks that we may connect to by RDMA where a server says so, besides the address that HTTP goes to.
    pub allow: Vec<IpNet>,
    /// Whether to ask for CRC32c on iWARP.
    pub crc: bool,
    /// Who moves the bytes; `None` leaves it to us. A mode that does not go with a request's method is not offered.
    pub mode: Option<Mode>,
    /// How the RDMA connection comes about.
    pub connect: Connect,
    /// How bytes get registered.
    pub memory: Strategy,
    /// Bytes of one Read, or Write.
    pub chunk: usize,
    /// Reads, or Writes, in flight.
    pub window: usize,
}

/// How the RDMA connection comes about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Connect {
    /// As `Server`; if it cannot reach us, as `Client` from the next exchange on.
    #[default]
    Auto,
    /// The server connects to us.
    Server,
    /// We connect to the server.
    Client,
    /// The HTTP connection becomes the RDMA connection. Only the fabric `soft` can do that; servers that cannot are asked once,
    /// and send by TCP.
    InPlace,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            maxlen: 64 << 20,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(300),
            listen: None,
            advertise: None,
            allow: Vec::new(),
            crc: true,
            mode: None,
            connect: Connect::Auto,
            memory: Strategy::Dynamic,
            chunk: 1 << 20,
            window: 8,
        }
    }
}

impl Options {
    /// Bytes that one connection may have registered at once: the region that is offered, or what is in flight; with a
    /// strategy that keeps buffers both.
    pub fn registered_at_most(&self) -> u64 {
        let flight = (self.chunk as u64).saturating_mul(self.window as u64);
        match self.memory.keeps_buffers() {
            true => self.maxlen.saturating_add(flight),
            false => self.maxlen.max(flight),
        }
    }

    fn limits(&self) -> Limits {
        let window = self.window.min(MOST_WINDOW);
        Limits { chunk: self.chunk, window, stall: self.timeout, rate: 0 }
    }
}

/// An address to tell the server: `10.0.0.15`, `10.0.0.15:3242`, `fd00::1` or `[fd00::1]:3242`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The address.
    pub ip: IpAddr,
    /// The port; the listener's if there is none.
    pub port: Option<u16>,
}

impl FromStr for Advertise {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { ip: address.ip(), port: Some(address.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        Ok(Self { ip: bare.parse()?, port: None })
    }
}

/// Is shown each head as it is sent or received, for programs that print them.
pub trait Observer: Send + Sync {
    /// A request's head is about to be sent.
    fn request(&self, _request: &http::Request<()>) {}
    /// A response's head arrived.
    fn response(&self, _response: &http::response::Parts) {}
    /// Something else that a curious user wants to know.
    fn note(&self, _text: &str) {}
}

impl Observer for () {}

/// What is needed to fetch. Clones share it.
#[derive(Clone)]
pub struct Client {
    fabric: Option<Arc<dyn Fabric>>,
    options: Options,
    recorder: Recorder,
    observer: Arc<dyn Observer>,
    tls: Option<ClientTls>,
}

impl Client {
    /// A client that offers memory on `fabric` with each GET; with none it is a plain HTTP client.
    pub fn new(fabric: Option<Arc<dyn Fabric>>, options: Options, recorder: Recorder) -> Self {
        Self { fabric, options, recorder, observer: Arc::new(()), tls: None }
    }

    /// Speaks TLS (https) on every connection. Bodies that go by RDMA are sealed then.
    pub fn with_tls(self, tls: ClientTls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Shows heads to `observer`.
    pub fn with_observer(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer, ..self }
    }

    /// Connects to `host` (a name or an address) and `port`.
    pub async fn connect(&self, host: &str, port: u16) -> Result<HttpConnection, ClientError> {
        HttpConnection::open(self.clone(), host, port).await
    }
}
