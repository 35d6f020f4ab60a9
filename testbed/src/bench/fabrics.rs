//! The fabrics in a User-Mode Linux guest, against TCP in the same guest: RDMA Write goodput, and what a message of 64
//! bytes takes.

use rdma_http::fabric::FabricKind;

use super::bed::{Bed, BenchError};
use super::latency::Latency;
use super::measure::{Progress, median};
use super::write::Measured;
use super::{Figure, Row};
use crate::guest::choice::{self, Clock, Kernel, Wanted};
use crate::guest::host::Options;
use crate::topology::{self, Plan};

/// Bytes of a body, and how many one round moves: in a guest the kernel's fabrics carry some megabytes a second.
const BODY: usize = 16 << 20;
const BODIES: &str = "4";
/// Round trips of one round.
const PINGS: &str = "1000";

/// What a guest has.
pub(super) const OF_GUESTS: &[FabricKind] = if cfg!(feature = "verbs") {
    &[FabricKind::Soft, FabricKind::Siw, FabricKind::Rxe]
} else {
    &[FabricKind::Soft]
};

/// Each fabric in a guest of its own.
pub(super) async fn run(rounds: usize, progress: Progress<'_>) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    for &fabric in OF_GUESTS {
        let bed = guest(fabric).await?;
        let measured = against_tcp(&bed, fabric, rounds, progress).await;
        bed.down().await?;
        rows.extend(measured?);
    }
    Ok(rows)
}

/// Two hosts of a guest, joined directly, with this fabric.
pub(super) async fn guest(fabric: FabricKind) -> Result<Bed, BenchError> {
    let wanted = Wanted { kernel: Kernel::Uml, fabrics: &[fabric], clock: Clock::Wall };
    let options = Options { place: choice::of_machine(&wanted)?.place, ..Options::new()? };
    let plan = Plan { name: format!("bench-{fabric}"), fabric, ..topology::load("direct")? };
    Bed::up_with(plan, options).await
}

async fn against_tcp(
    bed: &Bed,
    fabric: FabricKind,
    rounds: usize,
    progress: Progress<'_>,
) -> Result<[Row; 2], BenchError> {
    let (mut writes, mut streams) = (Vec::new(), Vec::new());
    let (mut sends, mut segments) = (Vec::new(), Vec::new());
    let over = fabric.to_string();
    for round in 1..=rounds {
        progress(&format!("fabrics: round {round} of {rounds}, {fabric}"));
        writes.push(goodput(bed, &over).await?);
        sends.push(latency(bed, &over).await?);
        progress(&format!("fabrics: round {round} of {rounds}, TCP"));
        streams.push(goodput(bed, "tcp").await?);
        segments.push(latency(bed, "tcp").await?);
    }
    let row = |what: &str, value: f64, tcp: f64, unit| {
        Row::new(Figure::Fabrics, format!("{fabric} in a UML guest, {what} : TCP"), value, tcp, unit)
    };
    Ok([
        row("RDMA Write of 16 MiB", median(&writes) / 1e9, median(&streams) / 1e9, "Gbit/s"),
        row("Send of 64 bytes", median(&sends) / 1e3, median(&segments) / 1e3, "us"),
    ])
}

/// Bits per second from the client to the server.
async fn goodput(bed: &Bed, over: &str) -> Result<f64, BenchError> {
    let listen = format!("{}:18515", bed.server);
    let length = BODY.to_string();
    let serve = ["testbed", "perf", "serve", &listen, "--over", over, "--length", &length];
    let write = ["testbed", "perf", "write", &listen, "--over", over, "--length", &length, "--count", BODIES];
    let measured: Measured = both(bed, &listen, &serve, &write).await?;
    Ok(measured.bits_per_second())
}

/// Nanoseconds from one side to the other.
async fn latency(bed: &Bed, over: &str) -> Result<f64, BenchError> {
    let listen = format!("{}:18516", bed.server);
    let echo = ["testbed", "perf", "echo", &listen, "--over", over];
    let ping = ["testbed", "perf", "ping", &listen, "--over", over, "--count", PINGS];
    let measured: Latency = both(bed, &listen, &echo, &ping).await?;
    Ok(measured.nanoseconds as f64)
}

async fn both<T: serde::de::DeserializeOwned>(
    bed: &Bed,
    listen: &str,
    serve: &[&str],
    ask: &[&str],
) -> Result<T, BenchError> {
    let server = bed.start("server", serve, listen).await?;
    let output = bed.judge("client", ask).await?;
    server.stop().await?;
    serde_json::from_slice(&output)
        .map_err(|error| BenchError::Failed { what: ask.join(" "), why: error.to_string() })
}
