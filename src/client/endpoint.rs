//! Our end of RDMA: what belongs to one HTTP connection. A listener, where the server connects; the connection, once there
//! is one; and its memory.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Options;
use crate::channel::Channel;
use crate::events::Recorder;
use crate::fabric::{Access, ConnectOptions, Connection, Fabric, FabricError, Listener, Pd};
use crate::flow::{Link, RECEIVE_DEPTH, RECEIVE_SIZE};
use crate::header::{Advert, Mode, Route, TransferId};
use crate::memory::{Buffers, Sink};
use crate::message::Message;

/// Connections that are looked at for one exchange. A stranger's costs us a rejection; this many are no accident.
const MAX_STRANGERS: usize = 64;

/// Our end of RDMA for one HTTP connection.
#[derive(Default)]
pub(super) struct Endpoint {
    listener: Option<(Box<dyn Listener>, SocketAddr)>,
    // The connection before its memory.
    link: Option<(Route, Link)>,
    memory: Option<Buffers>,
}

impl Endpoint {
    /// Where the server may connect: an address of ours that something listens on.
    pub(super) async fn listen(
        &mut self,
        fabric: &dyn Fabric,
        local: SocketAddr,
        options: &Options,
    ) -> Result<SocketAddr, FabricError> {
        if let Some((_, advertise)) = &self.listener {
            return Ok(*advertise);
        }
        let listen = options.listen.unwrap_or(SocketAddr::new(local.ip(), 0));
        let listener = fabric.listen(listen).await?;
        let bound = listener.local_addr();
        let advertise = match options.advertise {
            Some(told) => SocketAddr::new(told.ip, told.port.unwrap_or(bound.port())),
            None => bound,
        };
        self.listener = Some((listener, advertise));
        Ok(advertise)
    }

    /// Our memory: of the connection that is there, or will be.
    pub(super) fn memory(
        &mut self,
        fabric: &dyn Fabric,
        options: &Options,
        recorder: &Recorder,
    ) -> Result<Buffers, FabricError> {
        if let Some(memory) = &self.memory {
            return Ok(memory.clone());
        }
        let (pd, kept) = (fabric.allocate_pd()?, (options.chunk, options.window));
        let memory = Buffers::new(&pd, options.memory, kept, None, recorder);
        // All that transfers in this mode take.
        let (flight, room) = match options.mode {
            None => (options.window, Some(options.maxlen)),
            Some(Mode::ServerWrites) => (0, Some(options.maxlen)),
            Some(Mode::ClientReads | Mode::ClientWrites | Mode::ServerReads) => (options.window, None),
        };
        memory.prepare(flight, room.map(fitting).transpose()?)?;
        Ok(self.memory.insert(memory).clone())
    }

    /// The connection, once there is one.
    pub(super) fn link(&self) -> Option<&Link> {
        self.link.as_ref().map(|(_, link)| link)
    }

    /// Whether there is a connection of this kind.
    pub(super) fn is_connected(&self, wanted: Route) -> bool {
        self.link.as_ref().is_some_and(|(route, _)| *route == wanted)
    }

    /// Takes a connection that was just established over `route`.
    pub(super) fn keep(&mut self, route: Route, channel: Channel) {
        if let Some(buffers) = self.memory.clone() {
            self.link = Some((route, Link { channel, buffers }));
        }
    }

    /// Waits for the server to connect on behalf of `id`. Never resolves if there is a connection already, or nothing
    /// listens, or too many others come.
    pub(super) async fn accept(
        &self,
        id: TransferId,
        crc: bool,
        recorder: &Recorder,
    ) -> Result<Channel, FabricError> {
        let (None, Some((listener, _)), Some(memory)) = (&self.link, &self.listener, &self.memory) else {
            return pending().await;
        };
        let connection = accept(&**listener, memory.pd(), id, crc).await?;
        Ok(Channel::established(connection, false, recorder))
    }

    /// Forgets a connection that is gone, so that another can be made.
    pub(super) async fn discard_closed(&mut self) {
        if let Some(link) = self.link()
            && link.channel.is_out_of_turn().await
        {
            self.discard();
        }
    }

    /// Drops the connection, and never again uses memory that its other end has known.
    pub(super) fn discard(&mut self) {
        self.link = None;
        self.memory = None;
    }

    /// Closes the connection in good order.
    pub(super) async fn close(&mut self) {
        if let Some((_, link)) = self.link.take() {
            link.channel.close().await;
        }
        self.memory = None;
        self.listener = None;
    }
}

/// How the client connects and accepts.
pub(super) fn connect_options(options: &Options, id: Option<TransferId>) -> ConnectOptions {
    ConnectOptions {
        crc: options.crc,
        receive_depth: RECEIVE_DEPTH,
        receive_size: RECEIVE_SIZE,
        timeout: options.connect_timeout,
        private_data: id.map(|id| Message::Hello { id }.encode()).unwrap_or_default(),
        ..ConnectOptions::default()
    }
}

async fn accept(
    listener: &dyn Listener,
    pd: &Pd,
    id: TransferId,
    crc: bool,
) -> Result<Arc<dyn Connection>, FabricError> {
    for _ in 0..MAX_STRANGERS {
        let request = listener.accept().await?;
        let peer = request.peer_addr();
        match Message::decode_padded(request.private_data()) {
            Ok(Message::Hello { id: theirs }) if theirs == id => {
                let options = connect_options(&Options { crc, ..Options::default() }, None);
                match request.accept(pd, options).await {
                    Ok(connection) => return Ok(connection),
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

/// A new name for a transfer.
pub(super) fn new_id() -> Result<TransferId, FabricError> {
    TransferId::random()
        .map_err(|error| FabricError::Invalid(format!("no random bytes from the system: {error}")))
}

fn fitting(maxlen: u64) -> Result<usize, FabricError> {
    let unfit = |_| FabricError::Invalid(format!("maxlen={maxlen} does not fit in this machine's memory"));
    usize::try_from(maxlen).map_err(unfit)
}

/// A sink of `maxlen` bytes, and what is told of it.
pub(super) fn sink(memory: &Buffers, maxlen: u64) -> Result<(Sink, Advert), FabricError> {
    let sink = memory.sink(fitting(maxlen)?, Access::REMOTE_WRITE)?;
    let region = sink.region();
    let at = crate::fabric::RemoteAddress { stag: region.stag(), to: region.base() };
    Ok((sink, Advert { at, maxlen }))
}
