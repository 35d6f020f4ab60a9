//! The figures themselves: which labs, which judges, how often.

use std::time::{Duration, Instant};

use super::bed::{Bed, BenchError};
use super::judge::{iperf3_goodput, ping_round_trips, quantile};
use super::write::Measured;
use super::{Figure, Row, Target, fabrics, guest, register, ways};
use crate::topology::{self, Plan, Topology};

/// The nominal rate of [`FAST`], in bits per second.
const RATE: f64 = 10e9;
/// 10 Gbit/s and no delay, through the relay, whatever else the kernel has.
const FAST: &str = r#"
name = "bench-relay"
[hosts.server]
[hosts.client]
[[links]]
endpoints = ["server:eth0", "client:eth0"]
driver = "relay"
rate = "10 Gbit/s"
queue = "16 MB"
"#;
/// What it is measured against.
const BARE: &str = r#"
name = "bench-veth"
[hosts.server]
[hosts.client]
[[links]]
endpoints = ["server:eth0", "client:eth0"]
driver = "veth"
"#;
/// One way of the link whose delay is measured. ping prints a round trip of 10 ms or more in tenths of a millisecond, which
/// is all the error that is allowed; below, in hundredths.
const DELAY: Duration = Duration::from_micros(4_500);
const FAR: &str = r#"
name = "bench-far"
[hosts.server]
[hosts.client]
[[links]]
endpoints = ["server:eth0", "client:eth0"]
driver = "relay"
rate = "10 Gbit/s"
delay = "4.5 ms"
"#;

/// Seconds of one iperf3 run, after the one that is left out of the count.
const IPERF3_SECONDS: &str = "3";
/// Pings of one round, 10 ms apart.
const PINGS: &str = "300";
/// Bytes of a body.
const BODY: usize = 64 << 20;
/// Bodies that one round of RDMA Writes moves: with 16, about as long as iperf3 takes.
const BODIES: &str = "32";

/// Told what is being measured, before it is.
pub type Progress<'p> = &'p (dyn Fn(&str) + Sync);

/// Measures `figures`, each side of a ratio `rounds` times.
pub async fn run(figures: &[Figure], rounds: usize, progress: Progress<'_>) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    for figure in figures {
        rows.extend(match figure {
            Figure::RelayThroughput => relay_throughput(rounds, progress).await?,
            Figure::RelayDelay => relay_delay(rounds, progress).await?,
            Figure::SoftWrite => soft_write(rounds, progress).await?,
            Figure::Fetch => fetch(rounds, progress).await?,
            Figure::UpDown => up_down(rounds, progress).await?,
            Figure::GuestReadyUml => guest::uml(rounds, progress).await?,
            Figure::GuestReadyQemu => guest::qemu(rounds, progress).await?,
            Figure::Fabrics => fabrics::run(rounds, progress).await?,
            Figure::Ways => ways::run(rounds, progress).await?,
            Figure::Register => register::run(rounds, progress).await?,
        });
    }
    Ok(rows)
}

async fn relay_throughput(rounds: usize, progress: Progress<'_>) -> Result<Vec<Row>, BenchError> {
    let beds = [Bed::up(plan(FAST)?).await?, Bed::up(plan(BARE)?).await?];
    let measured: Result<_, BenchError> = async {
        let (mut relay, mut veth, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=rounds {
            progress(&format!("relay-throughput: round {round} of {rounds}, relay"));
            let before = CpuTime::now();
            relay.push(iperf3(&beds[0]).await?);
            busy.extend(before.and_then(CpuTime::busy_since));
            progress(&format!("relay-throughput: round {round} of {rounds}, bare veth"));
            veth.push(iperf3(&beds[1]).await?);
        }
        Ok((median(&relay), median(&veth), median(&busy)))
    }
    .await;
    down(beds).await;
    let (relay, veth, busy) = measured?;
    let figure = Figure::RelayThroughput;
    let mut nominal =
        Row::new(figure, "iperf3 through the relay : its rate", relay / 1e9, RATE / 1e9, "Gbit/s")
            .target(Target::AtLeast(0.9));
    if nominal.met() == Some(false) {
        // "CPU" holds for every place where the time may go: both TCPs, the relay's threads, the copying.
        nominal = nominal.note(format!(
            "CPUs were {:.0} % busy while the relay ran; without it, a veth pair carries {:.2} Gbit/s here",
            busy * 100.0,
            veth / 1e9
        ));
    }
    let reference = Row::new(
        figure,
        "iperf3 through the relay : through a bare veth pair",
        relay / 1e9,
        veth / 1e9,
        "Gbit/s",
    );
    Ok(vec![nominal, reference])
}

async fn relay_delay(rounds: usize, progress: Progress<'_>) -> Result<Vec<Row>, BenchError> {
    let bed = Bed::up(plan(FAR)?).await?;
    let measured: Result<_, BenchError> = async {
        let (mut round_trips, mut busy) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            progress(&format!("relay-delay: round {round} of {rounds}"));
            let before = CpuTime::now();
            let argv = ["ping", "-n", "-c", PINGS, "-i", "0.01", &bed.server];
            let output = bed.judge("client", &argv).await?;
            round_trips.extend(ping_round_trips(&String::from_utf8_lossy(&output))?);
            busy.extend(before.and_then(CpuTime::busy_since));
        }
        Ok((round_trips, median(&busy)))
    }
    .await;
    down([bed]).await;
    let (measured, busy): (Vec<Duration>, f64) = measured?;
    let nominal = 2.0 * DELAY.as_secs_f64() * 1e3;
    let errors: Vec<f64> =
        measured.iter().map(|trip| (trip.as_secs_f64() * 1e3 - nominal).abs() * 1e3).collect();
    let figure = Figure::RelayDelay;
    let trips: Vec<f64> = measured.iter().map(|trip| trip.as_secs_f64() * 1e3).collect();
    let mut error = Row::new(figure, "its error, median : 100 us", median(&errors), 100.0, "us")
        .target(Target::AtMost(1.0));
    if error.met() == Some(false) {
        // A ping takes none of the CPU to speak of: what is busy is something else, and makes threads wait.
        error = error.note(format!("CPUs were {:.0} % busy meanwhile, with other things", busy * 100.0));
    }
    Ok(vec![
        Row::new(figure, "ping over 4.5 ms each way, median : nominal", median(&trips), nominal, "ms"),
        error,
        Row::new(figure, "its error, p99 : 100 us", quantile(&errors, 0.99).unwrap_or(f64::NAN), 100.0, "us"),
    ])
}

async fn soft_write(rounds: usize, progress: Progress<'_>) -> Result<Vec<Row>, BenchError> {
    let bed = Bed::up(plan(FAST)?).await?;
    let measured: Result<_, BenchError> = async {
        let (mut tcp, mut checked, mut unchecked) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=rounds {
            progress(&format!("soft-write: round {round} of {rounds}, iperf3"));
            tcp.push(iperf3(&bed).await?);
            progress(&format!("soft-write: round {round} of {rounds}, RDMA Write with CRC"));
            checked.push(write(&bed, true).await?);
            progress(&format!("soft-write: round {round} of {rounds}, RDMA Write without CRC"));
            unchecked.push(write(&bed, false).await?);
        }
        Ok((median(&tcp), median(&checked), median(&unchecked)))
    }
    .await;
    down([bed]).await;
    let (tcp, checked, unchecked) = measured?;
    let row = |what: &str, value: f64| Row::new(Figure::SoftWrite, what, value / 1e9, tcp / 1e9, "Gbit/s");
    Ok(vec![
        row("RDMA Write of 64 MiB, with CRC : iperf3", checked).target(Target::AtLeast(0.9)),
        row("RDMA Write of 64 MiB, without CRC : iperf3", unchecked),
    ])
}

async fn fetch(rounds: usize, progress: Progress<'_>) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    for name in ["lan-10g", "wan-10g"] {
        let bed = Bed::up(Plan { name: format!("bench-{name}"), ..topology::load(name)? }).await?;
        let measured = fetch_over(name, &bed, rounds, progress).await;
        down([bed]).await;
        let (rdma, tcp) = measured?;
        rows.push(Row::new(
            Figure::Fetch,
            format!("rdma-fetch of 64 MiB over {name} : curl"),
            rdma,
            tcp,
            "ms",
        ));
    }
    Ok(rows)
}

async fn fetch_over(
    name: &str,
    bed: &Bed,
    rounds: usize,
    progress: Progress<'_>,
) -> Result<(f64, f64), BenchError> {
    let files = tempfile::tempdir()?;
    std::fs::write(files.path().join("body"), vec![0x5a; BODY])?;
    let root = files.path().to_string_lossy().into_owned();
    let listen = format!("{}:8080", bed.server);
    let server = bed.start("server", &["rdma-httpd", "--root", &root, "--listen", &listen], &listen).await?;
    let url = format!("http://{listen}/body");
    let (mut rdma, mut tcp) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        // Where the body goes is the same for both, and costs no disk.
        progress(&format!("fetch: {name}, round {round} of {rounds}, rdma-fetch"));
        let start = Instant::now();
        bed.judge("client", &["rdma-fetch", "-q", "--require-rdma", "-o", "/dev/null", &url]).await?;
        rdma.push(start.elapsed().as_secs_f64() * 1e3);
        progress(&format!("fetch: {name}, round {round} of {rounds}, curl"));
        let start = Instant::now();
        bed.judge("client", &["curl", "-sf", "-o", "/dev/null", &url]).await?;
        tcp.push(start.elapsed().as_secs_f64() * 1e3);
    }
    server.stop().await?;
    Ok((median(&rdma), median(&tcp)))
}

async fn up_down(rounds: usize, progress: Progress<'_>) -> Result<Vec<Row>, BenchError> {
    const ALLOWED: f64 = 100.0;
    let (mut up, mut down, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        progress(&format!("up-down: round {round} of {rounds}"));
        let plan = Plan { name: "bench-up-down".into(), ..topology::load("wan-10g")? };
        let start = Instant::now();
        let bed = Bed::up(plan).await?;
        let ready = start.elapsed().as_secs_f64() * 1e3;
        bed.down().await?;
        let gone = start.elapsed().as_secs_f64() * 1e3;
        up.push(ready);
        down.push(gone - ready);
        both.push(gone);
    }
    let row = |what: &str, value: f64| Row::new(Figure::UpDown, what, value, ALLOWED, "ms");
    Ok(vec![
        row("up and down of wan-10g : 100 ms", median(&both)).target(Target::AtMost(1.0)),
        row("up alone : 100 ms", median(&up)),
        row("down alone : 100 ms", median(&down)),
    ])
}

/// Goodput of one TCP flow from the client to the server, in bits per second.
async fn iperf3(bed: &Bed) -> Result<f64, BenchError> {
    let server = bed.start("server", &["iperf3", "-s", "-1", "--forceflush"], "Server listening").await?;
    let argv = ["iperf3", "-c", &bed.server, "-J", "-O", "1", "-t", IPERF3_SECONDS];
    let goodput = iperf3_goodput(&bed.judge("client", &argv).await?)?;
    server.stop().await?;
    Ok(goodput)
}

/// Goodput of RDMA Writes from the client to the server, in bits per second.
async fn write(bed: &Bed, crc: bool) -> Result<f64, BenchError> {
    let crc = if crc { "--crc=true" } else { "--crc=false" };
    let listen = format!("{}:18515", bed.server);
    let length = BODY.to_string();
    let argv = ["testbed", "perf", "serve", &listen, "--length", &length, crc];
    let server = bed.start("server", &argv, &listen).await?;
    let output = bed.judge("client", &["testbed", "perf", "write", &listen, "--count", BODIES, crc]).await?;
    server.stop().await?;
    let measured: Measured = serde_json::from_slice(&output)
        .map_err(|error| BenchError::Failed { what: "testbed perf write".into(), why: error.to_string() })?;
    Ok(measured.bits_per_second())
}

fn plan(text: &str) -> Result<Plan, BenchError> {
    Ok(Topology::parse("bench.toml", text).map_err(topology::TopologyError::from)?.plan())
}

/// Takes labs down after a measurement; what came of that is already known, and worth more than a failure here.
pub(super) async fn down(beds: impl IntoIterator<Item = Bed>) {
    for bed in beds {
        if let Err(error) = bed.down().await {
            tracing::warn!("{error}");
        }
    }
}

pub(super) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5).unwrap_or(f64::NAN)
}

/// The machine's CPU time so far, in ticks (proc(5), `/proc/stat`).
struct CpuTime {
    total: u64,
    idle: u64,
}

impl CpuTime {
    fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let fields: Vec<u64> =
            stat.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user already.
        let idle = fields.get(3)? + fields.get(4)?;
        Some(Self { total: fields.iter().take(8).sum(), idle })
    }

    /// The part of the time since then in which the CPUs did something, 0 to 1.
    fn busy_since(self) -> Option<f64> {
        let now = Self::now()?;
        let total = now.total.checked_sub(self.total).filter(|total| *total > 0)?;
        Some(1.0 - now.idle.saturating_sub(self.idle) as f64 / total as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labs_of_the_figures_can_be_planned() {
        for text in [FAST, BARE, FAR] {
            let plan = plan(text).unwrap();
            assert_eq!(plan.hosts.len(), 2);
        }
        assert_eq!(plan(FAR).unwrap().links[0].a_to_b.delay, DELAY);
        assert_eq!(plan(FAST).unwrap().links[0].a_to_b.rate, Some(RATE as u64));
    }

    #[test]
    fn cpu_time_is_read_as_proc_5_has_it() {
        let time = CpuTime::parse("cpu  10 0 20 60 10 0 0 0 5 5\ncpu0 1 2 3\n").unwrap();
        assert_eq!((time.total, time.idle), (100, 70));
        assert!(CpuTime::parse("").is_none());
    }
}
