//! Requests for one body, over and over, on a few connections at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use rdma_http::client::{Client, ClientTls, Options, Pool, PoolOptions, Via};
use rdma_http::events::Recorder;
use rdma_http::fabric::Fabric;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};

use crate::{Error, Result};

/// Connections, and requests at once.
pub(crate) const PARALLEL: usize = 4;

/// What a body is called, how long it is, and how many are asked for in a round.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) name: &'static str,
    pub(crate) length: usize,
    pub(crate) requests: usize,
}

impl Size {
    /// GiB that all of them are.
    pub(crate) fn gib(&self) -> f64 {
        (self.length * self.requests) as f64 / f64::from(1 << 30)
    }
}

/// How the bodies are asked for.
#[derive(Clone)]
pub(crate) struct Asking {
    pub(crate) rdma: bool,
    pub(crate) crc: bool,
    pub(crate) tls: Option<ClientTls>,
}

/// How long all requests took.
pub(crate) async fn load(server: SocketAddr, asking: &Asking, size: Size) -> Result<Duration> {
    let Size { name, length, requests } = size;
    let rdma = asking.rdma;
    let fabric = rdma.then(|| Arc::new(SoftFabric::new(SoftOptions::default())) as Arc<dyn Fabric>);
    // Room for what seals it, too.
    let options =
        Options { maxlen: (length + length / 512 + 64) as u64, crc: asking.crc, ..Options::default() };
    let mut client = Client::new(fabric, options, Recorder::default());
    if let Some(tls) = &asking.tls {
        client = client.with_tls(tls.clone());
    }
    let pool = Pool::new(client, PoolOptions { per_origin: PARALLEL, ..PoolOptions::default() });
    let left = Arc::new(AtomicUsize::new(requests));
    let start = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..PARALLEL {
        let (pool, left, target) = (pool.clone(), left.clone(), format!("/{name}"));
        workers.spawn(async move {
            let fewer = |left: usize| left.checked_sub(1);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok() {
                let origin = ("127.0.0.1", server.port());
                let mut response = pool.request(origin, Method::GET, &target, HeaderMap::new()).await?;
                if matches!(response.via, Via::Rdma(_)) != rdma {
                    return Err(Error::from(format!("a body came another way: {:?}", response.via)));
                }
                let mut received = 0;
                while let Some(piece) = response.body.next().await? {
                    received += piece.len();
                }
                if received != length {
                    return Err(format!("{received} bytes of {length}").into());
                }
            }
            Ok(())
        });
    }
    while let Some(done) = workers.join_next().await {
        done??;
    }
    let took = start.elapsed();
    pool.close().await;
    Ok(took)
}
