//! The figures of the fabric `soft` over loopback, each beside what plain TCP does in the same run:
//! `cargo bench --bench soft [-- goodput bounds cpu latency scale connections]`. The two sides of a ratio are measured in
//! turns and the medians are compared, so that a noisy minute hits both. `ROUNDS=3` says how many turns (5). A target that is
//! missed is no failure: machines differ and are shared. Through a lab: `testbed bench soft-write`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::fabric::{ConnectOptions, Connection, Fabric, Pd, Region, RemoteAddress};

mod latency;
mod many;
mod plain;
mod write;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures, each side of a ratio this many times, and prints.
type Figure = fn(usize) -> Result<()>;

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if wanted == [many::ACCEPT] {
        return many::accept();
    }
    let rounds = std::env::var("ROUNDS").ok().map_or(Ok(5), |rounds| rounds.parse())?;
    let all: [(&str, Figure); 6] = [
        ("goodput", write::goodput),
        ("bounds", write::bounds),
        ("cpu", write::cpu),
        ("latency", latency::latency),
        ("scale", many::scale),
        ("connections", many::connections),
    ];
    for (name, figure) in all {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            let load = std::fs::read_to_string("/proc/loadavg")?;
            let start = Instant::now();
            println!("\n{name} (load before: {})", load.split(' ').next().unwrap_or_default());
            figure(rounds)?;
            println!("  ({:.0} s)", start.elapsed().as_secs_f64());
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

/// What a ratio should be.
#[derive(Clone, Copy)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// It is there to explain another.
    None,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "at least {bound}"),
            Self::AtMost(bound) => write!(f, "at most {bound}"),
            Self::None => Ok(()),
        }
    }
}

/// Prints a ratio and what it should be.
fn row(what: &str, value: f64, reference: f64, unit: &str, target: Target) {
    // As it is printed, so that what is said of it can be seen.
    let ratio = (value / reference * 100.0).round() / 100.0;
    let verdict = match target {
        Target::AtLeast(bound) if ratio < bound => "missed",
        Target::AtMost(bound) if ratio > bound => "missed",
        Target::None => "",
        _ => "met",
    };
    let row = format!(
        "  {what:<50} {value:>7.3} / {reference:>7.3} {unit:<6} = {ratio:>5.2}  {target:<13} {verdict}"
    );
    println!("{}", row.trim_end());
}

fn fabric() -> SoftFabric {
    SoftFabric::new(SoftOptions { backlog: 20_000, half_open: 20_000, ..SoftOptions::default() })
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

fn at(sink: &Region) -> RemoteAddress {
    RemoteAddress { stag: sink.stag(), to: sink.base() }
}

/// A single-threaded runtime, so that a thread's CPU time is that of its side, or one of more threads.
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
