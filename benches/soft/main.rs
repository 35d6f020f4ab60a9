//! The figures of the fabric `soft` over loopback, each beside what plain TCP does in the same run:
//! `cargo bench --bench soft [-- goodput bounds cpu latency scale connections]`. The two sides of a ratio are measured in
//! turns and the medians are compared, so that a noisy minute hits both. Through a lab: `testbed bench soft-write`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

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
            println!("\n{name} (load before: {})", load.split(' ').next().unwrap_or_default());
            figure(rounds)?;
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
    println!("  {what:<62} {value:>9.3} / {reference:>9.3} {unit:<7} = {:.2}", value / reference);
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
