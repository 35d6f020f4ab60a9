//! The figures of the fabric `soft` over loopback, each beside what plain TCP does in the same run:
//! `cargo bench --bench soft [-- goodput latency cpu idle scale]`. The two sides of a ratio are measured in turns and
//! the medians are compared, so that a noisy minute hits both. Through a lab: `testbed bench soft-write`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use rdma_http::fabric::soft::{SegmentSize, SoftFabric, SoftOptions};
use rdma_http::fabric::{
    Access, Completion, ConnectOptions, Connection, Fabric, FabricError, Pd, Region, RemoteAddress, Stag,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MIB: usize = 1 << 20;
const REGION: usize = 16 * MIB;
const ROUNDS: usize = 5;
/// Writes that are posted at once.
const DEPTH: usize = 4;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures and prints.
type Figure = fn() -> Result<()>;

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let all: [(&str, Figure); 5] =
        [("goodput", goodput), ("latency", latency), ("cpu", cpu), ("idle", idle), ("scale", scale)];
    for (name, figure) in all {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            println!("\n{name}");
            figure()?;
        }
    }
    Ok(())
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(what: &str, value: f64, reference: f64, unit: &str) {
    println!("  {what:<44} {value:>10.3} / {reference:>10.3} {unit:<8} = {:.2}", value / reference);
}

/// How bytes are written.
#[derive(Clone, Copy, PartialEq)]
struct How {
    crc: bool,
    large: bool,
    file: bool,
}

fn fabric(how: How) -> SoftFabric {
    let segment_size = if how.large { SegmentSize::Large } else { SegmentSize::Emss };
    SoftFabric::new(SoftOptions {
        segment_size,
        backlog: 20_000,
        half_open: 20_000,
        ..SoftOptions::default()
    })
}

async fn pair(fabric: &SoftFabric, crc: bool) -> Result<(Arc<dyn Connection>, Arc<dyn Connection>, Pd)> {
    let pd = fabric.allocate_pd()?;
    let listener = fabric.listen(loopback()).await?;
    let options = || ConnectOptions { crc, receive_depth: 64, ..ConnectOptions::default() };
    let (a, b) = tokio::join!(fabric.connect(&pd, listener.local_addr(), options()), async {
        listener.accept().await?.accept(&pd, options()).await
    });
    Ok((a?, b?, pd))
}

fn source(pd: &Pd, how: How) -> Result<Region> {
    let bytes: Vec<u8> = (0..REGION).map(|i| i as u8).collect();
    if !how.file {
        return Ok(pd.register(bytes, Access::LOCAL_READ)?);
    }
    let mut file = tempfile::tempfile()?;
    file.write_all(&bytes)?;
    Ok(pd.register_file(Arc::new(file), 0, REGION as u64)?)
}

/// Writes `source` to the peer `count` times, and waits for its word that all is placed.
async fn write(
    a: &Arc<dyn Connection>,
    source: &Region,
    to: RemoteAddress,
    count: usize,
) -> std::result::Result<(), FabricError> {
    let mut posted: VecDeque<Completion> = VecDeque::new();
    for _ in 0..count {
        if posted.len() == DEPTH
            && let Some(oldest) = posted.pop_front()
        {
            oldest.await?;
        }
        posted.push_back(a.write(source, 0, source.len(), to));
    }
    a.send(Bytes::from_static(b"done")).await?;
    a.receive().await.map(drop)
}

fn at(sink: &Region) -> RemoteAddress {
    RemoteAddress { stag: sink.stag(), to: sink.base() }
}

/// Each side on a thread of its own; wall seconds, and CPU seconds of the sender and of the receiver.
fn soft_once(how: How, count: usize) -> Result<[f64; 3]> {
    let (tell, address) = std::sync::mpsc::channel::<(SocketAddr, Stag)>();
    let receiver = std::thread::spawn(move || -> Result<f64> {
        runtime(1)?.block_on(async {
            let fabric = fabric(how);
            let pd = fabric.allocate_pd()?;
            let listener = fabric.listen(loopback()).await?;
            let sink = pd.register(vec![1; REGION], Access::REMOTE_WRITE)?;
            tell.send((listener.local_addr(), sink.stag()))?;
            let options = ConnectOptions { crc: how.crc, ..ConnectOptions::default() };
            let connection = listener.accept().await?.accept(&pd, options).await?;
            let start = thread_cpu()?;
            connection.receive().await?;
            connection.send(Bytes::new()).await?;
            let used = thread_cpu()? - start;
            connection.closed().await;
            Ok(used)
        })
    });
    let (address, stag) = address.recv()?;
    let (wall, sender) = runtime(1)?.block_on(async {
        let fabric = fabric(how);
        let pd = fabric.allocate_pd()?;
        let options = ConnectOptions { crc: how.crc, ..ConnectOptions::default() };
        let connection = fabric.connect(&pd, address, options).await?;
        let source = source(&pd, how)?;
        let (start, cpu) = (Instant::now(), thread_cpu()?);
        write(&connection, &source, RemoteAddress { stag, to: 0 }, count).await?;
        let measured = (start.elapsed().as_secs_f64(), thread_cpu()? - cpu);
        connection.disconnect().await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(measured)
    })?;
    Ok([wall, sender, receiver.join().map_err(|_| "the receiver panicked")??])
}

/// A single-threaded runtime, so that a thread's CPU time is that of its side.
fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    Ok(if threads == 1 {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?
    } else {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?
    })
}

fn thread_cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}

/// iperf3 over loopback: gigabits per second.
fn iperf(bytes: usize) -> Result<f64> {
    let port = std::net::TcpListener::bind(loopback())?.local_addr()?.port().to_string();
    let mut server = Command::new("iperf3")
        .args(["-s", "-1", "-p", &port, "--forceflush"])
        .stdout(Stdio::piped())
        .spawn()?;
    // It says that it listens before it accepts.
    let mut first = [0; 64];
    server.stdout.as_mut().ok_or("no output")?.read_exact(&mut first)?;
    let output = Command::new("iperf3")
        .args(["-c", "127.0.0.1", "-p", &port, "-J", "-n", &bytes.to_string()])
        .output()?;
    server.wait()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .map(|b| b / 1e9)
        .ok_or("iperf3 gave no rate".into())
}

/// sendfile(2) of a file of `REGION` bytes and read(2), over TCP: wall seconds and CPU seconds of both sides.
fn plain_once(count: usize) -> Result<[f64; 3]> {
    let listener = std::net::TcpListener::bind(loopback())?;
    let address = listener.local_addr()?;
    let receiver = std::thread::spawn(move || -> Result<f64> {
        let (mut stream, _) = listener.accept()?;
        let (mut buffer, mut left) = (vec![0; REGION], count * REGION);
        let start = thread_cpu()?;
        while left > 0 {
            // Where RDMA places them, too: one after the other in a region.
            let from = (count * REGION - left) % REGION;
            left -= stream.read(&mut buffer[from..])?;
        }
        let used = thread_cpu()? - start;
        stream.write_all(b"x")?;
        Ok(used)
    });
    let mut file: File = tempfile::tempfile()?;
    file.write_all(&vec![7; REGION])?;
    let mut stream = std::net::TcpStream::connect(address)?;
    let (start, cpu) = (Instant::now(), thread_cpu()?);
    for _ in 0..count {
        let mut at = 0;
        while at < REGION as i64 {
            let left = REGION - at as usize;
            nix::sys::sendfile::sendfile64(&stream, &file, Some(&mut at), left)?;
        }
    }
    stream.read_exact(&mut [0])?;
    Ok([start.elapsed().as_secs_f64(), thread_cpu()? - cpu, receiver.join().map_err(|_| "it panicked")??])
}

const CASES: [(&str, How); 5] = [
    ("with CRC, from memory", How { crc: true, large: false, file: false }),
    ("with CRC, from memory, 64 KiB FPDUs", How { crc: true, large: true, file: false }),
    ("no CRC, from memory", How { crc: false, large: false, file: false }),
    ("no CRC, by sendfile", How { crc: false, large: false, file: true }),
    ("no CRC, by sendfile, 64 KiB FPDUs", How { crc: false, large: true, file: true }),
];

fn goodput() -> Result<()> {
    let count = 128;
    let bytes = count * REGION;
    let mut reference = Vec::new();
    let mut ours = vec![Vec::new(); CASES.len()];
    for _ in 0..ROUNDS {
        reference.push(iperf(bytes)?);
        for (case, rates) in CASES.iter().zip(&mut ours) {
            rates.push(bytes as f64 * 8e-9 / soft_once(case.1, count)?[0]);
        }
    }
    let reference = median(reference);
    for ((what, _), rates) in CASES.iter().zip(ours) {
        row(&format!("RDMA Write {what} / iperf3"), median(rates), reference, "Gbit/s");
    }
    Ok(())
}

fn cpu() -> Result<()> {
    let count = 64;
    let gib = (count * REGION) as f64 / f64::from(1 << 30);
    let mut reference = [Vec::new(), Vec::new()];
    let mut ours = vec![[Vec::new(), Vec::new()]; CASES.len()];
    for _ in 0..ROUNDS {
        let [_, sender, receiver] = plain_once(count)?;
        reference[0].push(sender / gib);
        reference[1].push(receiver / gib);
        for (case, used) in CASES.iter().zip(&mut ours) {
            let [_, sender, receiver] = soft_once(case.1, count)?;
            used[0].push(sender / gib);
            used[1].push(receiver / gib);
        }
    }
    let reference = reference.map(median);
    for ((what, _), used) in CASES.iter().zip(ours) {
        for ((side, used), reference) in ["sender", "receiver"].iter().zip(used.map(median)).zip(reference) {
            row(&format!("{side}, {what} / sendfile+read"), used, reference, "s/GiB");
        }
    }
    Ok(())
}

fn latency() -> Result<()> {
    const TURNS: u32 = 10_000;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        theirs.push(ping_pong(TURNS)?);
        ours.push(runtime(1)?.block_on(async {
            let (a, b, pd) = pair(&fabric(CASES[0].1), true).await?;
            let sinks = [0, 1].map(|_| pd.register(vec![0; 8], Access::REMOTE_WRITE));
            let source = pd.register(vec![1; 8], Access::LOCAL_READ)?;
            let [sink_a, sink_b] = sinks.map(|sink| sink.map(|sink| (at(&sink), sink)));
            let (sink_a, sink_b) = (sink_a?, sink_b?);
            let start = Instant::now();
            let (source_a, source_b) = (&source, &source);
            let ping = async {
                for _ in 0..TURNS {
                    drop(a.write(source_a, 0, 8, sink_b.0));
                    drop(a.send(Bytes::new()));
                    a.receive().await?;
                }
                Ok::<(), FabricError>(())
            };
            let pong = async {
                for _ in 0..TURNS {
                    b.receive().await?;
                    drop(b.write(source_b, 0, 8, sink_a.0));
                    drop(b.send(Bytes::new()));
                }
                Ok::<(), FabricError>(())
            };
            tokio::try_join!(ping, pong)?;
            Ok::<f64, Box<dyn std::error::Error + Send + Sync>>(
                start.elapsed().as_secs_f64() / f64::from(TURNS),
            )
        })?);
    }
    row("8-byte Write and its notice, there and back", median(ours) * 1e6, median(theirs) * 1e6, "us");
    Ok(())
}

/// Eight bytes over TCP, there and back, in the same kind of runtime: seconds.
fn ping_pong(turns: u32) -> Result<f64> {
    runtime(1)?.block_on(async {
        let listener = tokio::net::TcpListener::bind(loopback()).await?;
        let mut a = tokio::net::TcpStream::connect(listener.local_addr()?).await?;
        let (mut b, _) = listener.accept().await?;
        a.set_nodelay(true)?;
        b.set_nodelay(true)?;
        let echo = tokio::spawn(async move {
            let mut bytes = [0; 8];
            for _ in 0..turns {
                b.read_exact(&mut bytes).await?;
                b.write_all(&bytes).await?;
            }
            Ok::<(), std::io::Error>(())
        });
        let start = Instant::now();
        let mut bytes = [1; 8];
        for _ in 0..turns {
            a.write_all(&bytes).await?;
            a.read_exact(&mut bytes).await?;
        }
        let taken = start.elapsed().as_secs_f64() / f64::from(turns);
        echo.await??;
        Ok(taken)
    })
}

/// Bytes of this process that are in memory.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = status.split(' ').nth(1).ok_or("no pages")?.parse()?;
    Ok(pages * 4096.0)
}

fn idle() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    // Two descriptors for each, and some for ourselves.
    let connections = 10_000.min((usize::try_from(most)? - 100) / 2);
    runtime(2)?.block_on(async {
        let fabric = fabric(CASES[0].1);
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
                let some = (0..50).map(|_| {
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
        println!(
            "  {bytes:.0} bytes of our memory for each end of an idle connection (the kernel's sockets aside)"
        );
        Ok(())
    })
}

fn scale() -> Result<()> {
    const TOTAL: usize = 256;
    let mut single = 0.0;
    for connections in [1, 4, 16, 64] {
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            rates.push(runtime(2)?.block_on(async {
                let fabric = fabric(CASES[0].1);
                let mut tasks = Vec::new();
                let mut pairs = Vec::new();
                for _ in 0..connections {
                    let (a, b, pd) = pair(&fabric, true).await?;
                    let source = pd.register(vec![7; MIB], Access::LOCAL_READ)?;
                    let sink = pd.register(vec![0; MIB], Access::REMOTE_WRITE)?;
                    pairs.push((a, b, source, sink));
                }
                let start = Instant::now();
                for (a, b, source, sink) in pairs {
                    tasks.push(tokio::spawn(async move {
                        let answer = async {
                            b.receive().await?;
                            b.send(Bytes::new()).await
                        };
                        let write = write(&a, &source, at(&sink), TOTAL * 16 / connections);
                        tokio::try_join!(write, answer).map(drop)
                    }));
                }
                for task in tasks {
                    task.await??;
                }
                let bytes = (TOTAL * 16 / connections * connections * MIB) as f64;
                Ok::<f64, Box<dyn std::error::Error + Send + Sync>>(
                    bytes * 8e-9 / start.elapsed().as_secs_f64(),
                )
            })?);
        }
        let rate = median(rates);
        if connections == 1 {
            single = rate;
        }
        row(&format!("{connections} connections at once / one"), rate, single, "Gbit/s");
    }
    Ok(())
}
