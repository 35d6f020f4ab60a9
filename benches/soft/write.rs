//! RDMA Writes over one connection: how quick, what bounds it, and what it costs.

use std::collections::VecDeque;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rdma_http::fabric::{
    Access, Completion, ConnectOptions, Connection, Fabric, FabricError, Pd, Region, RemoteAddress, Stag,
};

use crate::plain::{self, Plain};
use crate::{KIB, MIB, Result, Target, fabric, loopback, median, row, runtime, thread_cpu};

/// What one measurement moves.
const TOTAL: usize = 2048 * MIB;
/// Writes that are posted at once.
const DEPTH: usize = 4;

/// How bytes are written.
#[derive(Clone, Copy, PartialEq)]
struct How {
    crc: bool,
    file: bool,
    region: usize,
}

impl How {
    fn name(self) -> String {
        let size = if self.region < MIB {
            format!("{} KiB", self.region / KIB)
        } else {
            format!("{} MiB", self.region / MIB)
        };
        let crc = if self.crc { "with CRC" } else { "no CRC" };
        format!("{crc}, {} of {size}", if self.file { "sendfile" } else { "memory" })
    }

    /// Of its rate, against iperf3's.
    fn target(self) -> Target {
        match self {
            Self { crc: true, .. } => Target::AtLeast(0.9),
            Self { file: true, .. } => Target::AtLeast(1.0),
            _ => Target::None,
        }
    }
}

/// iperf3 sends one buffer of 128 KiB over and over, which stays in the processor's caches: regions of that size are
/// what compares with it, and larger ones are what is used.
const CASES: [How; 6] = [
    How { crc: true, file: false, region: 128 * KIB },
    How { crc: true, file: false, region: 16 * MIB },
    How { crc: false, file: false, region: 128 * KIB },
    How { crc: false, file: false, region: 16 * MIB },
    How { crc: false, file: true, region: 128 * KIB },
    How { crc: false, file: true, region: 16 * MIB },
];

/// Writes `source` to the peer `count` times, and waits for its word that all is placed.
pub(crate) async fn write(
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

fn source(pd: &Pd, how: How) -> Result<Region> {
    let bytes: Vec<u8> = (0..how.region).map(|i| i as u8).collect();
    if !how.file {
        return Ok(pd.register(bytes, Access::LOCAL_READ)?);
    }
    let mut file = tempfile::tempfile()?;
    file.write_all(&bytes)?;
    Ok(pd.register_file(Arc::new(file), 0, how.region as u64)?)
}

/// Each side on a thread of its own; wall seconds, and CPU seconds of the sender and of the receiver.
fn once(how: How) -> Result<[f64; 3]> {
    let (tell, address) = std::sync::mpsc::channel::<(SocketAddr, Stag)>();
    let receiver = std::thread::spawn(move || -> Result<f64> {
        runtime(1)?.block_on(async {
            let fabric = fabric();
            let pd = fabric.allocate_pd()?;
            let listener = fabric.listen(loopback()).await?;
            let sink = pd.register(vec![1; how.region], Access::REMOTE_WRITE)?;
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
        let fabric = fabric();
        let pd = fabric.allocate_pd()?;
        let options = ConnectOptions { crc: how.crc, ..ConnectOptions::default() };
        let connection = fabric.connect(&pd, address, options).await?;
        let source = source(&pd, how)?;
        let (start, cpu) = (Instant::now(), thread_cpu()?);
        write(&connection, &source, RemoteAddress { stag, to: 0 }, TOTAL / how.region).await?;
        let measured = (start.elapsed().as_secs_f64(), thread_cpu()? - cpu);
        connection.disconnect().await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(measured)
    })?;
    Ok([wall, sender, receiver.join().map_err(|_| "the receiver panicked")??])
}

fn gigabits(seconds: f64) -> f64 {
    TOTAL as f64 * 8e-9 / seconds
}

/// Against iperf3.
pub(crate) fn goodput(rounds: usize) -> Result<()> {
    let mut reference = Vec::new();
    let mut ours = vec![Vec::new(); CASES.len()];
    for _ in 0..rounds {
        reference.push(plain::iperf(TOTAL, &[])?);
        for (case, rates) in CASES.iter().zip(&mut ours) {
            rates.push(gigabits(once(*case)?[0]));
        }
    }
    let reference = median(reference);
    for (case, rates) in CASES.iter().zip(ours) {
        row(&format!("Write {} / iperf3", case.name()), median(rates), reference, "Gbit/s", case.target());
    }
    Ok(())
}

/// What plain TCP reaches that does the same work, against iperf3: what no framing could beat.
pub(crate) fn bounds(rounds: usize) -> Result<()> {
    let cases = [
        ("memory of 128 KiB", Plain::Memory, 128 * KIB),
        ("memory of 16 MiB", Plain::Memory, 16 * MIB),
        ("memory of 128 KiB and its CRC twice", Plain::MemoryCrc, 128 * KIB),
        ("memory of 16 MiB and its CRC twice", Plain::MemoryCrc, 16 * MIB),
        ("sendfile of 128 KiB", Plain::SendFile, 128 * KIB),
        ("sendfile of 16 MiB", Plain::SendFile, 16 * MIB),
        ("sendfile of 128 KiB, framed", Plain::SendFileFramed, 128 * KIB),
        ("sendfile of 16 MiB, framed", Plain::SendFileFramed, 16 * MIB),
    ];
    let (mut reference, mut short) = (Vec::new(), Vec::new());
    let mut rates = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        reference.push(plain::iperf(TOTAL, &[])?);
        short.push(plain::iperf(TOTAL, &["-w", "192K"])?);
        for ((_, how, region), rates) in cases.iter().zip(&mut rates) {
            rates.push(gigabits(plain::once(*how, *region, TOTAL / region)?[0]));
        }
    }
    let reference = median(reference);
    row("iperf3 -w 192K / iperf3", median(short), reference, "Gbit/s", Target::None);
    for ((what, ..), rates) in cases.iter().zip(rates) {
        row(&format!("plain TCP, {what} / iperf3"), median(rates), reference, "Gbit/s", Target::None);
    }
    Ok(())
}

/// CPU seconds of both sides, against `sendfile` and `read` over plain TCP.
pub(crate) fn cpu(rounds: usize) -> Result<()> {
    const REGION: usize = 16 * MIB;
    let gib = TOTAL as f64 / f64::from(1 << 30);
    let cases: Vec<How> = CASES.into_iter().filter(|case| case.region == REGION).collect();
    let mut reference = [Vec::new(), Vec::new()];
    let mut ours = vec![[Vec::new(), Vec::new()]; cases.len()];
    for _ in 0..rounds {
        let [_, sender, receiver] = plain::once(Plain::SendFile, REGION, TOTAL / REGION)?;
        reference[0].push(sender / gib);
        reference[1].push(receiver / gib);
        for (case, used) in cases.iter().zip(&mut ours) {
            let [_, sender, receiver] = once(*case)?;
            used[0].push(sender / gib);
            used[1].push(receiver / gib);
        }
    }
    let reference = reference.map(median);
    for (case, used) in cases.iter().zip(ours) {
        for ((side, used), reference) in ["sender", "receiver"].iter().zip(used.map(median)).zip(reference) {
            row(&format!("{side}, {} / sendfile+read", case.name()), used, reference, "s/GiB", Target::None);
        }
    }
    Ok(())
}
