//! A thousand clients at once, a third of them plain, a third by RDMA, and a third that vanish at some point: requests served
//! per second, bodies that were wrong, and what the server takes before, meanwhile and after. It is asked so three times, so
//! that what it keeps can be told from what it leaks; in `SEED`'s order. Connections of who has vanished count until the server
//! notices: with its default of 1,024 it would close some of those that wait, to make room for others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::clients::{Bodies, run};
use crate::server::{Server, Taken, wait};
use crate::{Result, median};

const CLIENTS: usize = 1000;
/// Of each client.
const REQUESTS: usize = 20;
const ROUNDS: u64 = 3;
const SEED: u64 = 6;
/// How often the server is looked at while it serves.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) fn figure(_: &[String]) -> Result<()> {
    allow_descriptors()?;
    let (root, outside) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let bodies = Arc::new(Bodies::make(root.path(), outside.path(), SEED)?);
    // Of every client that vanishes it would tell.
    let args =
        ["--allow-upload", "--rdma-listen", "127.0.0.1:0", "--log", "error", "--max-connections", "4096"];
    let mut server = Server::httpd(root.path(), args)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let before = server.taken()?;
    println!(
        "\n| {CLIENTS} clients, {REQUESTS} requests each | MiB | regions | registered bytes | RDMA connections | descriptors | threads |"
    );
    println!("|---|---|---|---|---|---|---|");
    row("before", before);
    let mut rates = Vec::new();
    let mut lines = Vec::new();
    for round in 1..=ROUNDS {
        let over = AtomicBool::new(false);
        let start = Instant::now();
        let (served, most) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| watch(&server, &over));
            let asking = run(server.address, bodies.clone(), (CLIENTS, REQUESTS), SEED + round);
            let served = runtime.block_on(asking);
            over.store(true, Ordering::Relaxed);
            (served, watch.join())
        });
        let took = start.elapsed().as_secs_f64();
        let (tally, why) = served?;
        row(&format!("most in round {round}"), most.map_err(|_| "the watcher panicked")??);
        wait("the server lets go of everything", || {
            let now = server.taken()?;
            let all = now.regions == 0 && now.registered == 0 && now.connections == 0;
            Ok(all && now.descriptors <= before.descriptors)
        })?;
        row(&format!("after round {round}"), server.taken()?);
        // Those that read files stay for 10 s, and with them what they have allocated.
        wait("the server's threads end", || Ok(server.taken()?.threads <= before.threads + 2))?;
        row("when its threads have ended", server.taken()?);
        rates.push(tally.served() as f64 / took);
        lines.push(format!(
            "round {round}: {tally:?} in {took:.1} s{}",
            why.map_or_else(String::new, |why| format!("; {why}"))
        ));
        if tally.wrong > 0 {
            return Err(lines.join("\n").into());
        }
    }
    println!("\n{}", lines.join("\n"));
    println!("{:.0} requests served per second (median), 0 wrong bodies", median(rates));
    let left = std::fs::read_dir(root.path())?.filter_map(std::result::Result::ok);
    let partial = left.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b".")).count();
    println!("{partial} files that were begun and left");
    server.stop()
}

/// The most of each that is seen until it is over.
fn watch(server: &Server, over: &AtomicBool) -> Result<Taken> {
    let mut most = server.taken()?;
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
        let now = server.taken()?;
        most = Taken {
            resident: most.resident.max(now.resident),
            descriptors: most.descriptors.max(now.descriptors),
            regions: most.regions.max(now.regions),
            registered: most.registered.max(now.registered),
            connections: most.connections.max(now.connections),
            threads: most.threads.max(now.threads),
        };
    }
    Ok(most)
}

fn row(when: &str, taken: Taken) {
    let Taken { resident, descriptors, regions, registered, connections, threads } = taken;
    let mib = resident as f64 / f64::from(1 << 20);
    println!("| {when} | {mib:.1} | {regions} | {registered} | {connections} | {descriptors} | {threads} |");
}

/// A client has a descriptor for HTTP, for RDMA, and for where it waits for that; the server inherits the limit.
fn allow_descriptors() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = 8 * CLIENTS as u64 + 200;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, needed, needed.max(most))?)
}
