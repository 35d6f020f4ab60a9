//! A small Write and the word that it is there, there and back.

use std::time::Instant;

use bytes::Bytes;
use rdma_http::fabric::{Access, FabricError};

use crate::{Result, Target, at, fabric, median, pair, plain, row, runtime};

const TURNS: u32 = 10_000;

/// Against eight bytes over TCP, there and back.
pub(crate) fn latency(rounds: usize) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        theirs.push(plain::ping_pong(TURNS)?);
        ours.push(runtime(1)?.block_on(once())?);
    }
    row(
        "8-byte Write and its notice / 8 bytes",
        median(ours) * 1e6,
        median(theirs) * 1e6,
        "us",
        Target::AtMost(1.5),
    );
    Ok(())
}

/// Seconds of a turn.
async fn once() -> Result<f64> {
    let (a, b, pd) = pair(&fabric(), true).await?;
    let sink_a = pd.register(vec![0; 8], Access::REMOTE_WRITE)?;
    let sink_b = pd.register(vec![0; 8], Access::REMOTE_WRITE)?;
    let source = pd.register(vec![1; 8], Access::LOCAL_READ)?;
    let start = Instant::now();
    let ping = async {
        for _ in 0..TURNS {
            drop(a.write(&source, 0, 8, at(&sink_b)));
            drop(a.send(Bytes::new()));
            a.receive().await?;
        }
        Ok::<(), FabricError>(())
    };
    let pong = async {
        for _ in 0..TURNS {
            b.receive().await?;
            drop(b.write(&source, 0, 8, at(&sink_a)));
            drop(b.send(Bytes::new()));
        }
        Ok::<(), FabricError>(())
    };
    tokio::try_join!(ping, pong)?;
    Ok(start.elapsed().as_secs_f64() / f64::from(TURNS))
}
