//! Many connections: what they move together, and what each costs that rests.

use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rdma_http::fabric::{Access, ConnectOptions, Fabric, FabricError};

use crate::write::write;
use crate::{MIB, Result, at, fabric, loopback, median, pair, plain, row, runtime};

/// Connections at once, on two threads, against one and against as many of plain TCP. The regions are as large together
/// whatever their number, so that the processor's caches hold as much of them.
pub(crate) fn scale(rounds: usize) -> Result<()> {
    const REGIONS: usize = 64 * MIB;
    const TOTAL: usize = 4096 * MIB;
    const NUMBERS: [usize; 4] = [1, 4, 16, 64];
    let mut ours = NUMBERS.map(|_| Vec::new());
    let mut theirs = NUMBERS.map(|_| Vec::new());
    for _ in 0..rounds {
        for (number, (ours, theirs)) in NUMBERS.iter().zip(ours.iter_mut().zip(&mut theirs)) {
            let region = REGIONS / number;
            theirs.push(plain::many(*number, region, TOTAL / REGIONS)?);
            ours.push(runtime(2)?.block_on(at_once(*number, region, TOTAL / REGIONS))?);
        }
    }
    let (ours, theirs) = (ours.map(median), theirs.map(median));
    for (number, (here, there)) in NUMBERS.iter().zip(ours.into_iter().zip(theirs)) {
        row(&format!("{number} connections at once / one"), here, ours[0], "Gbit/s");
        row(&format!("{number} connections of plain TCP / one"), there, theirs[0], "Gbit/s");
    }
    Ok(())
}

/// Gigabits a second of all together.
async fn at_once(connections: usize, region: usize, count: usize) -> Result<f64> {
    let fabric = fabric();
    let mut pairs = Vec::new();
    for _ in 0..connections {
        let (a, b, pd) = pair(&fabric, true).await?;
        let source = pd.register(vec![7; region], Access::LOCAL_READ)?;
        let sink = pd.register(vec![0; region], Access::REMOTE_WRITE)?;
        pairs.push((a, b, source, sink));
    }
    let start = Instant::now();
    let mut tasks = Vec::new();
    for (a, b, source, sink) in pairs {
        tasks.push(tokio::spawn(async move {
            let answer = async {
                b.receive().await?;
                b.send(Bytes::new()).await
            };
            tokio::try_join!(write(&a, &source, at(&sink), count), answer).map(drop)
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok((connections * region * count) as f64 * 8e-9 / start.elapsed().as_secs_f64())
}

/// Bytes of this process that are in memory.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = status.split(' ').nth(1).ok_or("no pages")?.parse()?;
    Ok(pages * 4096.0)
}

/// Ten thousand connections within this process: how quickly they are made, and what each end takes of our memory when
/// it has carried something and rests.
pub(crate) fn connections(_: usize) -> Result<()> {
    const WANTED: usize = 10_000;
    // Two descriptors for each, and some for ourselves.
    let needed = 2 * WANTED as u64 + 200;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if setrlimit(Resource::RLIMIT_NOFILE, needed, needed.max(most)).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    }
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let connections = WANTED.min((usize::try_from(limit)? - 200) / 2);
    runtime(2)?.block_on(async {
        let fabric = fabric();
        let pd = fabric.allocate_pd()?;
        let listener = fabric.listen(loopback()).await?;
        let to = listener.local_addr();
        let (before, start) = (resident()?, Instant::now());
        let accept = async {
            let mut accepted = Vec::with_capacity(connections);
            while accepted.len() < connections {
                accepted.push(listener.accept().await?.accept(&pd, ConnectOptions::default()).await?);
            }
            Ok::<_, FabricError>(accepted)
        };
        let connect = async {
            let mut connected = Vec::with_capacity(connections);
            // A few at a time, as many clients would.
            while connected.len() < connections {
                let some = 50.min(connections - connected.len());
                let some = (0..some).map(|_| {
                    let (fabric, pd) = (fabric.clone(), pd.clone());
                    let options =
                        ConnectOptions { timeout: Duration::from_secs(60), ..ConnectOptions::default() };
                    tokio::spawn(async move { fabric.connect(&pd, to, options).await })
                });
                for task in some.collect::<Vec<_>>() {
                    connected.push(task.await.map_err(|_| FabricError::Closed)??);
                }
            }
            Ok(connected)
        };
        let (accepted, connected) = tokio::try_join!(accept, connect)?;
        let taken = start.elapsed().as_secs_f64();
        // Each has carried something, and rests.
        for (a, b) in connected.iter().zip(&accepted) {
            a.send(Bytes::from_static(b"hello")).await?;
            b.receive().await?;
        }
        let bytes = (resident()? - before) / (2 * connections) as f64;
        println!(
            "  {connections} connections, made in {taken:.2} s: {:.0} a second",
            connections as f64 / taken
        );
        println!("  {bytes:.0} bytes of our memory for each end (the kernel's sockets aside)");
        Ok(())
    })
}
