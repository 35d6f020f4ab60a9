//! Many connections: what they move together, and what each costs that rests.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rdma_http::fabric::{Access, ConnectOptions, Fabric};

use crate::write::write;
use crate::{MIB, Result, Target, at, fabric, loopback, median, pair, plain, row, runtime};

const CONNECTIONS: usize = 10_000;
/// Connections that are being made at a time.
const IN_FLIGHT: usize = 50;
/// The argument that makes this program the accepting side.
pub(crate) const ACCEPT: &str = "accept-connections";

/// Connections at once, on two threads, against one and against as many of plain TCP. The regions are as large together
/// whatever their number, so that the processor's caches hold as much of them.
pub(crate) fn scale(rounds: usize) -> Result<()> {
    const REGIONS: usize = 64 * MIB;
    const TOTAL: usize = 2048 * MIB;
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
        row(&format!("{number} connections at once / one"), here, ours[0], "Gbit/s", Target::AtLeast(1.0));
        row(&format!("{number} connections of plain TCP / one"), there, theirs[0], "Gbit/s", Target::None);
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

/// Ten thousand connections between this process and a child of it: how quickly they are made, and what each end takes of
/// our memory when it has carried something and rests.
pub(crate) fn connections(_: usize) -> Result<()> {
    allow_descriptors()?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(ACCEPT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let mut hear = move || said.next().ok_or("the accepting side ended");
    let to: SocketAddr = hear()??.parse()?;
    runtime(2)?.block_on(async {
        let fabric = fabric();
        let pd = fabric.allocate_pd()?;
        let (before, start) = (resident()?, Instant::now());
        let mut connected = Vec::with_capacity(CONNECTIONS);
        // A few at a time, as many clients would.
        while connected.len() < CONNECTIONS {
            let some = (0..IN_FLIGHT.min(CONNECTIONS - connected.len())).map(|_| {
                let (fabric, pd) = (fabric.clone(), pd.clone());
                tokio::spawn(async move { fabric.connect(&pd, to, patient()).await })
            });
            for task in some.collect::<Vec<_>>() {
                connected.push(task.await??);
            }
        }
        let taken = start.elapsed().as_secs_f64();
        for connection in &connected {
            connection.send(Bytes::from_static(b"hello")).await?;
        }
        let accepted: f64 = hear()??.parse()?;
        let bytes = (resident()? - before) / CONNECTIONS as f64;
        let rate = CONNECTIONS as f64 / taken;
        println!("  {CONNECTIONS} connections, made in {taken:.2} s: {rate:.0} a second");
        println!("  {bytes:.0} bytes of our memory for a connecting end, {accepted:.0} for an accepting one");
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    })?;
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// The accepting side of [`connections`], in the child: prints its address, and the bytes that an end takes.
pub(crate) fn accept() -> Result<()> {
    allow_descriptors()?;
    runtime(2)?.block_on(async {
        let fabric = fabric();
        let pd = fabric.allocate_pd()?;
        let listener = fabric.listen(loopback()).await?;
        println!("{}", listener.local_addr());
        let before = resident()?;
        let mut accepted = Vec::with_capacity(CONNECTIONS);
        while accepted.len() < CONNECTIONS {
            accepted.push(listener.accept().await?.accept(&pd, patient()).await?);
        }
        for connection in &accepted {
            connection.receive().await?;
        }
        println!("{}", (resident()? - before) / CONNECTIONS as f64);
        // Until the parent ends us.
        std::io::stdin().read_exact(&mut [0])?;
        Ok(())
    })
}

fn patient() -> ConnectOptions {
    ConnectOptions { timeout: Duration::from_secs(60), ..ConnectOptions::default() }
}

/// A descriptor for each connection, and some for ourselves.
fn allow_descriptors() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = CONNECTIONS as u64 + 200;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, needed, needed.max(most))?)
}
