//! How long a message of 64 bytes takes, over a fabric and over plain TCP: half of a round trip. Runs as the hidden verbs
//! `testbed perf echo` and `testbed perf ping`, one in each host.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdma_http::fabric::{ConnectOptions, Fabric, FabricError};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of a message.
const MESSAGE: usize = 64;
/// Round trips that are not counted: both sides warm up.
const WARM_UP: usize = 50;

/// What was seen of many round trips.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Half of the median round trip.
    pub nanoseconds: u64,
}

fn median_half(mut trips: Vec<Duration>) -> Latency {
    trips.sort();
    let median = trips.get(trips.len() / 2).copied().unwrap_or_default();
    Latency { nanoseconds: u64::try_from(median.as_nanos() / 2).unwrap_or(u64::MAX) }
}

/// Sends back what one client sends, until it closes.
pub async fn echo(
    fabric: &dyn Fabric,
    listen: SocketAddr,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), FabricError> {
    let listener = fabric.listen(listen).await?;
    ready(listener.local_addr());
    let pd = fabric.allocate_pd()?;
    let connection = listener.accept().await?.accept(&pd, ConnectOptions::default()).await?;
    while let Ok(received) = connection.receive().await {
        connection.send(received.message).await?;
    }
    Ok(())
}

/// Measures `count` round trips to an [`echo`].
pub async fn ping(fabric: &dyn Fabric, server: SocketAddr, count: usize) -> Result<Latency, FabricError> {
    let pd = fabric.allocate_pd()?;
    let connection = fabric.connect(&pd, server, ConnectOptions::default()).await?;
    let message = Bytes::from_static(&[7; MESSAGE]);
    let mut trips = Vec::with_capacity(count);
    for trip in 0..WARM_UP + count {
        let start = Instant::now();
        let sent = connection.send(message.clone());
        connection.receive().await?;
        if trip >= WARM_UP {
            trips.push(start.elapsed());
        }
        sent.await?;
    }
    connection.disconnect().await?;
    Ok(median_half(trips))
}

/// [`echo`] over TCP.
pub async fn echo_tcp(listen: SocketAddr, ready: impl FnOnce(SocketAddr)) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    ready(listener.local_addr()?);
    let (mut stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    while stream.read_exact(&mut message).await.is_ok() {
        stream.write_all(&message).await?;
    }
    Ok(())
}

/// [`ping`] over TCP.
pub async fn ping_tcp(server: SocketAddr, count: usize) -> std::io::Result<Latency> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let mut message = [7; MESSAGE];
    let mut trips = Vec::with_capacity(count);
    for trip in 0..WARM_UP + count {
        let start = Instant::now();
        stream.write_all(&message).await?;
        stream.read_exact(&mut message).await?;
        if trip >= WARM_UP {
            trips.push(start.elapsed());
        }
    }
    Ok(median_half(trips))
}

#[cfg(test)]
mod tests {
    use rdma_http::fabric::soft::SoftFabric;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn round_trips_are_counted_over_both() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let (ready, address) = oneshot::channel();
        let server = tokio::spawn(async move {
            echo(&SoftFabric::default(), listen, |address| ready.send(address).unwrap()).await
        });
        let measured = ping(&SoftFabric::default(), address.await.unwrap(), 10).await.unwrap();
        assert!(measured.nanoseconds > 0);
        server.await.unwrap().unwrap();
        let (ready, address) = oneshot::channel();
        let server = tokio::spawn(echo_tcp(listen, |address| ready.send(address).unwrap()));
        assert!(ping_tcp(address.await.unwrap(), 10).await.unwrap().nanoseconds > 0);
        server.await.unwrap().unwrap();
    }

    #[test]
    fn the_median_is_halved() {
        let trips = [5, 1, 100].map(Duration::from_nanos).to_vec();
        assert_eq!(median_half(trips), Latency { nanoseconds: 2 });
    }
}
