//! The receiving end of RDMA: a listener that belongs to an HTTP connection, a region for each exchange, and the connection
//! that the server makes.

use std::future::pending;
use std::net::SocketAddr;

use super::Options;
use crate::channel::Channel;
use crate::events::Recorder;
use crate::fabric::{Access, ConnectOptions, Fabric, FabricError, Listener, Pd};
use crate::header::{Mode, Offer, TransferId};
use crate::memory::Registered;
use crate::message::Message;

/// Connections that are looked at for one exchange. A stranger's costs us a rejection; this many are no accident.
const MAX_STRANGERS: usize = 64;

/// Where a server's RDMA connection arrives.
pub(super) struct Receiver {
    listener: Box<dyn Listener>,
    pd: Pd,
    channel: Option<Channel>,
    advertise: SocketAddr,
    options: ConnectOptions,
    recorder: Recorder,
}

/// Memory that is on offer, for one exchange.
pub(super) struct Sink {
    pub(super) offer: Offer,
    region: Registered,
}

impl Receiver {
    /// Listens on the address that the HTTP connection has at our end.
    pub(super) async fn open(
        fabric: &dyn Fabric,
        local: SocketAddr,
        options: &Options,
        recorder: &Recorder,
    ) -> Result<Self, FabricError> {
        let pd = fabric.allocate_pd()?;
        let listen = options.listen.unwrap_or(SocketAddr::new(local.ip(), 0));
        let listener = fabric.listen(listen).await?;
        let bound = listener.local_addr();
        let advertise = match options.advertise {
            Some(told) => SocketAddr::new(told.ip, told.port.unwrap_or(bound.port())),
            None => bound,
        };
        let connect = ConnectOptions { crc: options.crc, ..ConnectOptions::default() };
        Ok(Self { listener, pd, channel: None, advertise, options: connect, recorder: recorder.clone() })
    }

    /// Registers memory and makes an offer of it.
    pub(super) fn offer(&self, maxlen: u64) -> Result<Sink, FabricError> {
        let length = usize::try_from(maxlen).map_err(|_| {
            FabricError::Invalid(format!("maxlen={maxlen} does not fit in this machine's memory"))
        })?;
        let mut memory: Vec<u8> = Vec::new();
        memory.try_reserve_exact(length).map_err(|_| {
            FabricError::Invalid(format!("no address space for maxlen={maxlen}; lower --maxlen"))
        })?;
        drop(memory);
        // Comes from the system as zero pages, which become memory when they are written to.
        let memory = vec![0; length];
        let id = TransferId::random()
            .map_err(|error| FabricError::Invalid(format!("no random bytes from the system: {error}")))?;
        let region = Registered::new(&self.pd, memory, Access::REMOTE_WRITE, &self.recorder)?;
        let (stag, to) = (region.as_region().stag(), region.as_region().base());
        let address = self.advertise;
        let offer = Offer { mode: Mode::ServerWrites, address, stag, to, maxlen, id: Some(id) };
        Ok(Sink { offer, region })
    }

    /// Waits for the server to connect on behalf of `id`, and tells. Never resolves if there is a connection already, or
    /// if too many others come.
    pub(super) async fn accept(&self, id: TransferId) -> Result<Channel, FabricError> {
        if self.channel.is_some() {
            return pending().await;
        }
        for _ in 0..MAX_STRANGERS {
            let request = self.listener.accept().await?;
            let peer = request.peer_addr();
            match Message::decode_padded(request.private_data()) {
                Ok(Message::Hello { id: theirs }) if theirs == id => {
                    match request.accept(&self.pd, self.options.clone()).await {
                        Ok(connection) => return Ok(Channel::established(connection, false, &self.recorder)),
                        Err(error) => tracing::warn!(%peer, %error, "an RDMA connection was not established"),
                    }
                }
                _ => {
                    tracing::warn!(%peer, "an RDMA connection without this transfer's id was rejected");
                    if let Err(error) = request.reject(&[]).await {
                        tracing::debug!(%peer, %error, "the rejection did not arrive");
                    }
                }
            }
        }
        tracing::warn!("{MAX_STRANGERS} strangers asked for RDMA connections; no more are looked at");
        pending().await
    }

    /// Keeps a connection for this and later exchanges.
    pub(super) fn keep(&mut self, channel: Channel) {
        self.channel = Some(channel);
    }

    /// The connection, once there is one.
    pub(super) fn channel(&self) -> Option<&Channel> {
        self.channel.as_ref()
    }

    /// Forgets a connection that is gone, so that the next offer can be accepted on a new one.
    pub(super) async fn discard_closed(&mut self) {
        if let Some(channel) = &self.channel
            && channel.is_closed().await
        {
            self.channel = None;
        }
    }

    /// Drops the connection.
    pub(super) fn discard(&mut self) {
        self.channel = None;
    }

    /// Closes the connection in good order.
    pub(super) async fn close(self) {
        if let Some(channel) = self.channel {
            channel.close().await;
        }
    }
}

impl Sink {
    /// Ends the offer; what lies in the first `length` bytes is the body.
    pub(super) fn take(self, length: u64) -> Result<Vec<u8>, FabricError> {
        let mut memory = self.region.release()?;
        memory.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(memory)
    }
}
