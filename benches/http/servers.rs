//! Requests per second, and what a GiB costs the server in CPU, for `rdma-httpd` plain and by RDMA over `soft` with each memory
//! strategy, beside nginx (plain, sendfile on), all asked by the same client. Without nginx, `rdma-httpd` plain is what is
//! compared with.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::resource::UsageWho;

use crate::load::{Asking, PARALLEL, Size, load};
use crate::server::{Program, Server, cpu};
use crate::{Result, median};

const ROUNDS: usize = 3;

const SIZES: [Size; 4] = [
    Size { name: "4KiB", length: 4 << 10, requests: 4000 },
    Size { name: "64KiB", length: 64 << 10, requests: 3000 },
    Size { name: "1MiB", length: 1 << 20, requests: 500 },
    Size { name: "64MiB", length: 64 << 20, requests: 12 },
];

/// A server, and how it is asked.
#[derive(Clone, Copy)]
struct Variant {
    what: &'static str,
    program: Program,
    rdma: bool,
    crc: bool,
}

impl Variant {
    const fn plain(what: &'static str, program: Program) -> Self {
        Self { what, program, rdma: false, crc: true }
    }

    const fn rdma(what: &'static str, args: &'static [&'static str]) -> Self {
        Self { what, program: Program::Httpd(args), rdma: true, crc: true }
    }
}

const VARIANTS: [Variant; 7] = [
    Variant::plain("nginx, plain, sendfile on", Program::Nginx),
    Variant::plain("rdma-httpd, plain", Program::Httpd(&[])),
    Variant::rdma("rdma-httpd, soft, dynamic", &["--memory", "dynamic"]),
    Variant::rdma("rdma-httpd, soft, static", &["--memory", "static"]),
    Variant::rdma("rdma-httpd, soft, cache", &["--memory", "cache"]),
    Variant::rdma("rdma-httpd, soft, sendfile", &["--memory", "sendfile"]),
    Variant {
        crc: false,
        ..Variant::rdma("rdma-httpd, soft, sendfile, no CRC", &["--memory", "sendfile", "--crc", "off"])
    },
];

pub(crate) fn figure(sizes: &[String]) -> Result<()> {
    let files = tempfile::tempdir()?;
    let nginx = Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok();
    let variants: Vec<Variant> =
        VARIANTS.into_iter().filter(|variant| nginx || variant.program != Program::Nginx).collect();
    let runtime = tokio::runtime::Runtime::new()?;
    for size in SIZES {
        if !sizes.is_empty() && !sizes.iter().any(|wanted| wanted == size.name) {
            continue;
        }
        std::fs::write(files.path().join(size.name), vec![0x5a; size.length])?;
        let mut measured = vec![(Vec::new(), Vec::new()); variants.len()];
        for _ in 0..ROUNDS {
            for (variant, (rates, costs)) in variants.iter().zip(&mut measured) {
                let (took, cpu) = measure(&runtime, files.path(), variant, size)?;
                rates.push(size.requests as f64 / took.as_secs_f64());
                costs.push(cpu / size.gib());
            }
        }
        let medians: Vec<(f64, f64)> =
            measured.into_iter().map(|(rates, costs)| (median(rates), median(costs))).collect();
        println!(
            "\n| {} bodies, {PARALLEL} connections | requests/s | ratio | server's CPU s/GiB | ratio |",
            size.name
        );
        println!("|---|---|---|---|---|");
        for (variant, (rate, cost)) in variants.iter().zip(&medians) {
            let (first_rate, first_cost) = medians[0];
            let (rates, costs) = (rate / first_rate, cost / first_cost);
            println!("| {} | {rate:.1} | {rates:.2} | {cost:.3} | {costs:.2} |", variant.what);
        }
    }
    Ok(())
}

/// How long the requests took, and how many seconds of CPU the server.
fn measure(
    runtime: &tokio::runtime::Runtime,
    root: &Path,
    variant: &Variant,
    size: Size,
) -> Result<(Duration, f64)> {
    let before = cpu(UsageWho::RUSAGE_CHILDREN)?;
    let mut server = Server::start(root, variant.program)?;
    let asking = Asking { rdma: variant.rdma, crc: variant.crc, tls: None };
    let took = runtime.block_on(load(server.address, &asking, size));
    server.stop()?;
    Ok((took?, cpu(UsageWho::RUSAGE_CHILDREN)? - before))
}
