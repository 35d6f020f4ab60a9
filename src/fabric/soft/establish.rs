//! Making a connection: the start-up of both sides, within its time.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::driver::Driver;
use super::handle::{Shared, SoftConnection};
use super::region::DomainMemory;
use super::wire::{Handler, Progress, Wire, closed};
use super::{MAX_PRIVATE_DATA, MAX_RECEIVE_DEPTH, MAX_RECEIVE_SIZE, Socket, SoftOptions, SoftPd};
use crate::fabric::{ConnectOptions, Connection, FabricError};
use crate::iwarp::connection::{Connection as Machine, Event};
use crate::iwarp::mpa::StartFrame;
use crate::iwarp::negotiate::{Config, Negotiated};

/// Connects to a listener, as MPA's initiator.
pub(super) async fn connect(
    fabric: &SoftOptions,
    pd: SoftPd,
    to: SocketAddr,
    options: ConnectOptions,
) -> Result<Arc<dyn Connection>, FabricError> {
    check(&options)?;
    let setting_up = async {
        let socket = TcpStream::connect(to).await.map_err(|error| FabricError::io("connect", error))?;
        let machine = Machine::initiate(config(fabric, &options)).map_err(invalid)?;
        establish(fabric, pd, socket, machine, &[], &options).await
    };
    bounded("connect", &options, setting_up).await
}

/// Turns a stream that is connected already into a connection, as MPA's initiator. `first` was read from it before.
pub(super) async fn connect_over<S: Socket>(
    fabric: &SoftOptions,
    pd: SoftPd,
    socket: S,
    first: &[u8],
    options: ConnectOptions,
) -> Result<Arc<dyn Connection>, FabricError> {
    check(&options)?;
    let machine = Machine::initiate(config(fabric, &options)).map_err(invalid)?;
    bounded("connect", &options, establish(fabric, pd, socket, machine, first, &options)).await
}

/// Accepts a peer that has sent `request`, and `first` after it, as MPA's responder.
pub(super) async fn accept<S: Socket>(
    fabric: &SoftOptions,
    pd: SoftPd,
    socket: S,
    request: StartFrame,
    first: &[u8],
    options: ConnectOptions,
) -> Result<Arc<dyn Connection>, FabricError> {
    check(&options)?;
    let machine = Machine::respond(&request, &config(fabric, &options)).map_err(invalid)?;
    bounded("accept", &options, establish(fabric, pd, socket, machine, first, &options)).await
}

async fn bounded<T>(
    verb: &'static str,
    options: &ConnectOptions,
    setting_up: impl Future<Output = Result<T, FabricError>>,
) -> Result<T, FabricError> {
    match timeout(options.timeout, setting_up).await {
        Ok(result) => result,
        Err(_) => Err(FabricError::TimedOut { verb, limit: options.timeout }),
    }
}

fn invalid(error: impl std::fmt::Display) -> FabricError {
    FabricError::Invalid(error.to_string())
}

fn check(options: &ConnectOptions) -> Result<(), FabricError> {
    let limits = [
        ("private data", options.private_data.len(), MAX_PRIVATE_DATA),
        ("receive depth", options.receive_depth, MAX_RECEIVE_DEPTH),
        ("receive size", options.receive_size, MAX_RECEIVE_SIZE),
    ];
    for (what, value, limit) in limits {
        if value > limit {
            return Err(FabricError::Invalid(format!("{what} of {value}; the limit is {limit}")));
        }
    }
    Ok(())
}

fn config(fabric: &SoftOptions, options: &ConnectOptions) -> Config {
    Config {
        revision: fabric.revision,
        crc: options.crc,
        ird: options.inbound_reads,
        ord: options.outbound_reads,
        peer_to_peer: fabric.peer_to_peer,
        receive_size: options.receive_size,
        private_data: options.private_data.clone(),
    }
}

/// Drives the start-up to its end and leaves the connection to a task of its own.
async fn establish<S: Socket>(
    fabric: &SoftOptions,
    pd: SoftPd,
    socket: S,
    machine: Machine,
    first: &[u8],
    options: &ConnectOptions,
) -> Result<Arc<dyn Connection>, FabricError> {
    socket.prepare(fabric.peer_timeout).map_err(|error| FabricError::io("set up a socket", error))?;
    let local = socket.local_addr().map_err(|error| FabricError::io("getsockname", error))?;
    let peer = socket.peer_addr().map_err(|error| FabricError::io("getpeername", error))?;
    let memory = DomainMemory::new(pd.table.clone(), pd.domain);
    let mut wire = Wire::new(socket, machine, memory, fabric.segment_size, first);
    let mut start = Start { receives: options.receive_depth, outcome: None };
    let settled = match std::future::poll_fn(|context| start.poll(&mut wire, context)).await {
        Ok(settled) => settled,
        Err(error) => {
            // What there is to tell the peer (a Terminate) is told, but nobody here waits for that.
            tokio::spawn(wire.linger());
            return Err(error);
        }
    };
    let shared = Arc::new(Shared::new(fabric.send_queue_depth, options.receive_depth));
    tokio::spawn(Driver::new(shared.clone(), fabric.close_timeout).run(wire));
    Ok(Arc::new(SoftConnection {
        shared,
        pd,
        local,
        peer,
        private_data: settled.private_data,
        outbound_reads: settled.ord,
    }))
}

/// Waits for the start-up to end. What arrives behind it is left to the driver.
struct Start {
    receives: usize,
    outcome: Option<Result<Negotiated, FabricError>>,
}

impl Handler for Start {
    fn receives(&self) -> usize {
        self.receives
    }

    fn handle(&mut self, event: Event) -> ControlFlow<()> {
        self.outcome = Some(match event {
            Event::Connected(settled) => Ok(settled),
            Event::Rejected(private_data) => Err(FabricError::Rejected { private_data }),
            Event::Closed(reason) => Err(closed(reason)),
            // Nothing is posted, and nothing can come, before it is established.
            Event::Completed(_) | Event::Received(_) => return ControlFlow::Continue(()),
        });
        ControlFlow::Break(())
    }
}

impl Start {
    fn poll<S: Socket>(
        &mut self,
        wire: &mut Wire<S>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Negotiated, FabricError>> {
        loop {
            // This also sends the RTR, before anybody is told that the connection is established.
            let wrote = wire.poll_write(context)?;
            if let Some(outcome) = self.outcome.take() {
                return Poll::Ready(outcome);
            }
            let read = wire.poll_read(context, self)?;
            if self.outcome.is_none() && wrote == Progress::None && read == Progress::None {
                return Poll::Pending;
            }
        }
    }
}
