//! Brings up a lab, runs a shell script in one of its hosts for each pair of arguments, and takes it down.
//!
//! `cargo run -p testbed --example lab -- wan-10g client 'ping -c 3 10.10.0.1'`
//!
//! With `LAB_WITHOUT_TAP` in the environment its relays use packet sockets, as they do for who may not open
//! `/dev/net/tun`.

use std::os::fd::AsFd;
use std::time::Instant;

use nix::sched::{CloneFlags, setns};
use testbed::lab::{Lab, RelayDevice};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut args = std::env::args().skip(1);
    let plan = testbed::topology::load(&args.next().ok_or("a topology, then pairs of a host and a script")?)?;
    let start = Instant::now();
    let lab = match std::env::var_os("LAB_WITHOUT_TAP") {
        None => Lab::build(plan).await?,
        Some(_) => Lab::build_with(plan, RelayDevice::Packet).await?,
    };
    eprintln!("up in {:?}", start.elapsed());
    while let (Some(host), Some(script)) = (args.next(), args.next()) {
        let namespace = lab.netns(&host).ok_or("no such host")?.try_clone_to_owned()?;
        let status = std::thread::spawn(move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            std::process::Command::new("sh").arg("-c").arg(script).status()
        })
        .join();
        eprintln!("{host}: {:?}", status.map_err(|_| "a thread panicked")??);
    }
    for link in lab.links() {
        eprintln!("{link:?}");
    }
    let start = Instant::now();
    for error in lab.teardown().await {
        eprintln!("{error}");
    }
    eprintln!("down in {:?}", start.elapsed());
    Ok(())
}
