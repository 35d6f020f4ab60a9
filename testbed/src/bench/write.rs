//! RDMA Write goodput of a fabric, measured at the verbs: what `iperf3` is to TCP. Runs as the hidden verb `testbed
//! perf`, one side in each host.
//!
//! The client connects and speaks first; the server answers with its region; the client writes it over and over, then
//! says so; the server's answer to that is what stops the watch, so every byte is known to be placed.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rdma_http::fabric::{Access, Completion, ConnectOptions, Fabric, FabricError, RemoteAddress, Stag};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Writes that may be posted at once: enough to keep the transport busy, few enough to bound its queues.
const DEPTH: usize = 4;

/// What a run moved, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Payload bytes placed at the server.
    pub bytes: u64,
    /// From the first post to the server's word that all is placed.
    pub nanoseconds: u64,
}

impl Measured {
    /// Payload bits per second.
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8e9 / self.nanoseconds.max(1) as f64
    }
}

/// Serves one client with a region of `length` bytes; `ready` is told the address.
pub async fn serve(
    fabric: &dyn Fabric,
    listen: SocketAddr,
    length: usize,
    crc: bool,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), FabricError> {
    let listener = fabric.listen(listen).await?;
    ready(listener.local_addr());
    let pd = fabric.allocate_pd()?;
    let sink = pd.register(vec![0; length], Access::REMOTE_WRITE)?;
    let request = listener.accept().await?;
    let connection = request.accept(&pd, ConnectOptions { crc, ..ConnectOptions::default() }).await?;
    connection.receive().await?;
    let mut advertisement = BytesMut::new();
    advertisement.put_u32(sink.stag().0);
    advertisement.put_u64(sink.base());
    advertisement.put_u64(length as u64);
    connection.send(advertisement.freeze()).await?;
    connection.receive().await?;
    connection.send(Bytes::from_static(b"placed")).await?;
    connection.closed().await;
    Ok(())
}

/// Writes the server's whole region `count` times.
pub async fn measure(
    fabric: &dyn Fabric,
    server: SocketAddr,
    count: usize,
    crc: bool,
) -> Result<Measured, FabricError> {
    let pd = fabric.allocate_pd()?;
    let options = ConnectOptions { crc, timeout: Duration::from_secs(10), ..ConnectOptions::default() };
    let connection = fabric.connect(&pd, server, options).await?;
    connection.send(Bytes::from_static(b"hello")).await?;
    let mut advertisement = connection.receive().await?.message;
    if advertisement.len() != 20 {
        return Err(FabricError::Protocol(format!("an advertisement of {} bytes", advertisement.len())));
    }
    let to = RemoteAddress { stag: Stag(advertisement.get_u32()), to: advertisement.get_u64() };
    let length = usize::try_from(advertisement.get_u64())
        .ok()
        .filter(|&length| length <= 1 << 30)
        .ok_or_else(|| FabricError::Protocol("a region of more than 1 GiB".into()))?;
    let source = pd.register((0..length).map(|i| i as u8).collect(), Access::LOCAL_READ)?;

    let start = Instant::now();
    let mut posted: VecDeque<Completion> = VecDeque::new();
    for _ in 0..count {
        if posted.len() == DEPTH
            && let Some(oldest) = posted.pop_front()
        {
            oldest.await?;
        }
        posted.push_back(connection.write(&source, 0, length, to));
    }
    let done = connection.send(Bytes::from_static(b"done"));
    for write in posted {
        write.await?;
    }
    done.await?;
    connection.receive().await?;
    let elapsed = start.elapsed();
    connection.disconnect().await?;
    Ok(Measured {
        bytes: (length * count) as u64,
        nanoseconds: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
    })
}

/// [`serve`] over TCP: takes `length` bytes from one client over and over, and says so at the end.
pub async fn serve_tcp(
    listen: SocketAddr,
    length: usize,
    ready: impl FnOnce(SocketAddr),
) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    ready(listener.local_addr()?);
    let (mut stream, _) = listener.accept().await?;
    let mut sink = vec![0; length];
    let mut at = 0;
    loop {
        match stream.read(&mut sink[at..]).await? {
            0 => break,
            count => at = (at + count) % length,
        }
    }
    stream.write_all(b"placed").await
}

/// [`measure`] over TCP.
pub async fn measure_tcp(server: SocketAddr, length: usize, count: usize) -> std::io::Result<Measured> {
    let source: Vec<u8> = (0..length).map(|i| i as u8).collect();
    let mut stream = TcpStream::connect(server).await?;
    let start = Instant::now();
    for _ in 0..count {
        stream.write_all(&source).await?;
    }
    stream.shutdown().await?;
    stream.read_exact(&mut [0; 6]).await?;
    let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(Measured { bytes: (length * count) as u64, nanoseconds })
}

#[cfg(test)]
mod tests {
    use rdma_http::fabric::soft::SoftFabric;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn every_byte_is_counted_once() {
        let (ready, address) = oneshot::channel();
        let server = tokio::spawn(async move {
            let listen = SocketAddr::from(([127, 0, 0, 1], 0));
            let ready = |address| ready.send(address).unwrap();
            serve(&SoftFabric::default(), listen, 100_000, true, ready).await
        });
        let measured = measure(&SoftFabric::default(), address.await.unwrap(), 10, true).await.unwrap();
        assert_eq!(measured.bytes, 1_000_000);
        assert!(measured.bits_per_second() > 0.0);
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn every_byte_is_counted_once_over_tcp() {
        let (ready, address) = oneshot::channel();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = tokio::spawn(serve_tcp(listen, 100_000, |address| ready.send(address).unwrap()));
        let measured = measure_tcp(address.await.unwrap(), 100_000, 10).await.unwrap();
        assert_eq!(measured.bytes, 1_000_000);
        server.await.unwrap().unwrap();
    }

    #[test]
    fn a_rate_is_bits_by_seconds() {
        let measured = Measured { bytes: 1_000, nanoseconds: 8_000 };
        assert_eq!(measured.bits_per_second(), 1e9);
        assert!(Measured { bytes: 1, nanoseconds: 0 }.bits_per_second().is_finite());
    }
}
