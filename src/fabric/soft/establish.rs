//! Making a connection: the start-up of both sides, within its time.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::driver::Driver;
use super::handle::{Shared, SoftConnection};
use super::region::DomainMemory;
use super::wire::{Progress, Wire, closed};
use super::{MAX_PRIVATE_DATA, MAX_RECEIVE_DEPTH, MAX_RECEIVE_SIZE, SoftOptions, SoftPd, socket};
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
        let stream = TcpStream::connect(to).await.map_err(|error| FabricError::io("connect", error))?;
        let machine = Machine::initiate(config(fabric, &options)).map_err(invalid)?;
        establish(fabric, pd, stream, machine, &[], &options).await
    };
    bounded("connect", &options, setting_up).await
}

/// Turns a stream into a connection, as MPA's initiator.
pub(super) async fn connect_over(
    fabric: &SoftOptions,
    pd: SoftPd,
    stream: TcpStream,
    first: &[u8],
    options: ConnectOptions,
) -> Result<Arc<dyn Connection>, FabricError> {
    check(&options)?;
    let machine = Machine::initiate(config(fabric, &options)).map_err(invalid)?;
    bounded("connect", &options, establish(fabric, pd, stream, machine, first, &options)).await
}

/// Accepts a peer that has sent `request`, and `first` after it, as MPA's responder.
pub(super) async fn accept(
    fabric: &SoftOptions,
    pd: SoftPd,
    stream: TcpStream,
    request: StartFrame,
    first: &[u8],
    options: ConnectOptions,
) -> Result<Arc<dyn Connection>, FabricError> {
    check(&options)?;
    let machine = Machine::respond(&request, &config(fabric, &options)).map_err(invalid)?;
    bounded("accept", &options, establish(fabric, pd, stream, machine, first, &options)).await
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
async fn establish(
    fabric: &SoftOptions,
    pd: SoftPd,
    stream: TcpStream,
    machine: Machine,
    first: &[u8],
    options: &ConnectOptions,
) -> Result<Arc<dyn Connection>, FabricError> {
    socket::prepare(&stream, fabric.peer_timeout)
        .map_err(|error| FabricError::io("set up a socket", error))?;
    let local = stream.local_addr().map_err(|error| FabricError::io("getsockname", error))?;
    let peer = stream.peer_addr().map_err(|error| FabricError::io("getpeername", error))?;
    let memory = DomainMemory::new(pd.table.clone(), pd.domain);
    let mut wire = Wire::new(stream, machine, memory, fabric.segment_size, first);
    let settled = match start_up(&mut wire, options.receive_depth).await {
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

async fn start_up(wire: &mut Wire, receives: usize) -> Result<Negotiated, FabricError> {
    loop {
        let wrote = wire.write()?;
        match wire.next_event(receives) {
            Some(Event::Connected(settled)) => return start_sending(wire).map(|()| settled),
            Some(Event::Rejected(private_data)) => return Err(FabricError::Rejected { private_data }),
            Some(Event::Closed(reason)) => return Err(closed(reason)),
            Some(Event::Completed(_) | Event::Received(_)) => {}
            None => {
                let read = wire.read()?;
                if wrote == Progress::None && read == Progress::None {
                    wire.ready().await?;
                }
            }
        }
    }
}

/// The RTR leaves before anybody is told that the connection is established.
fn start_sending(wire: &mut Wire) -> Result<(), FabricError> {
    wire.write().map(drop)
}
