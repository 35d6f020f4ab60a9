//! https, plain and with bodies that go sealed by RDMA over `soft` beside it: what a GiB costs either side in CPU. The cipher
//! is the same for both, AES-256-GCM, and its own speed on one core is told first. CRCs of what is sealed are one more
//! pass over the bytes, and what they would find does not open anyway: without them, too.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::resource::UsageWho;
use rdma_http::client::ClientTls;
use rdma_http::header::{Mode, TransferId};
use rdma_http::seal::{SECRET, Secret, TAG, open, seal};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::load::{Asking, PARALLEL, Size, load};
use crate::server::{Server, cpu};
use crate::{Result, median};

const ROUNDS: usize = 5;

const SIZES: [Size; 2] = [
    Size { name: "1MiB", length: 1 << 20, requests: 400 },
    Size { name: "64MiB", length: 64 << 20, requests: 8 },
];

struct Variant {
    what: &'static str,
    args: &'static [&'static str],
    tls: bool,
    rdma: bool,
    crc: bool,
}

const VARIANTS: [Variant; 5] = [
    Variant { what: "https, plain", args: &[], tls: true, rdma: false, crc: true },
    Variant { what: "https, sealed by RDMA", args: &[], tls: true, rdma: true, crc: true },
    Variant {
        what: "https, sealed by RDMA, no CRC",
        args: &["--crc", "off"],
        tls: true,
        rdma: true,
        crc: false,
    },
    Variant { what: "http, plain", args: &[], tls: false, rdma: false, crc: true },
    Variant { what: "http, by RDMA", args: &[], tls: false, rdma: true, crc: true },
];

/// What a round showed.
struct Measured {
    rate: Vec<f64>,
    server: Vec<f64>,
    client: Vec<f64>,
}

pub(crate) fn figure(sizes: &[String]) -> Result<()> {
    cipher()?;
    let folder = tempfile::tempdir()?;
    let names = ["127.0.0.1".to_owned()];
    let identity = rcgen::generate_simple_self_signed(names)?;
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, identity.cert.pem())?;
    std::fs::write(&key, identity.signing_key.serialize_pem())?;
    let root = folder.path().join("root");
    std::fs::create_dir(&root)?;
    let runtime = tokio::runtime::Runtime::new()?;
    for size in SIZES {
        if !sizes.is_empty() && !sizes.iter().any(|wanted| wanted == size.name) {
            continue;
        }
        std::fs::write(root.join(size.name), vec![0x5a; size.length])?;
        let mut measured =
            VARIANTS.map(|_| Measured { rate: Vec::new(), server: Vec::new(), client: Vec::new() });
        for _ in 0..ROUNDS {
            for (variant, measured) in VARIANTS.iter().zip(&mut measured) {
                let tls = variant.tls.then_some((&*cert, &*key));
                let (took, server, client) = measure(&runtime, &root, variant, tls, size)?;
                measured.rate.push(size.requests as f64 / took.as_secs_f64());
                measured.server.push(server / size.gib());
                measured.client.push(client / size.gib());
            }
        }
        println!(
            "\n| {} bodies, {PARALLEL} connections | requests/s | ratio | server's CPU s/GiB | ratio | client's CPU s/GiB | ratio |",
            size.name
        );
        println!("|---|---|---|---|---|---|---|");
        let medians = measured.map(|Measured { rate, server, client }| [rate, server, client].map(median));
        for (variant, now) in VARIANTS.iter().zip(&medians) {
            let [rate, server, client] = now;
            let [rates, servers, clients] = [0, 1, 2].map(|at| now[at] / medians[0][at]);
            println!(
                "| {} | {rate:.1} | {rates:.2} | {server:.3} | {servers:.2} | {client:.3} | {clients:.2} |",
                variant.what
            );
        }
    }
    Ok(())
}

/// How long the requests took, and how many seconds of CPU the server and the client.
fn measure(
    runtime: &tokio::runtime::Runtime,
    root: &Path,
    variant: &Variant,
    tls: Option<(&Path, &Path)>,
    size: Size,
) -> Result<(Duration, f64, f64)> {
    let before = cpu(UsageWho::RUSAGE_CHILDREN)?;
    let mut args: Vec<String> = variant.args.iter().map(|&arg| arg.to_owned()).collect();
    let mut asking = Asking { rdma: variant.rdma, crc: variant.crc, tls: None };
    if let Some((cert, key)) = tls {
        let (cert, key) = (cert.display().to_string(), key.display().to_string());
        args.extend(["--tls-cert".to_owned(), cert, "--tls-key".to_owned(), key]);
        asking.tls = Some(ClientTls::from_file(tls.map(|(cert, _)| cert).unwrap_or(root))?);
    }
    let mut server = Server::httpd(root, args.iter().map(String::as_str))?;
    let own = cpu(UsageWho::RUSAGE_SELF)?;
    let took = runtime.block_on(load(server.address, &asking, size));
    let client = cpu(UsageWho::RUSAGE_SELF)? - own;
    server.stop()?;
    Ok((took?, cpu(UsageWho::RUSAGE_CHILDREN)? - before, client))
}

/// How quick the cipher is by itself, and with all that makes records of a body and a body of records.
fn cipher() -> Result<()> {
    const LENGTH: usize = 64 << 20;
    const RECORD: usize = rdma_http::seal::RECORD;
    let rate = |what: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            what()?;
            rates.push(LENGTH as f64 / 1e9 / start.elapsed().as_secs_f64());
        }
        Ok(median(rates))
    };
    let failed = |_| "the cipher fails";
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32]).map_err(failed)?);
    let mut record = vec![0; RECORD];
    let alone = rate(&mut || {
        for _ in 0..LENGTH / RECORD {
            let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
            let _tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut record).map_err(failed)?;
        }
        Ok(())
    })?;
    let keys = || Secret::new(&[1; SECRET]).transfer(Mode::ServerWrites, TransferId([2; 16]), 0);
    // As a flow does it: a buffer of 63 records for each operation.
    const CHUNK: usize = (1 << 20) / (RECORD + TAG) * RECORD;
    let whole = vec![0x5a; LENGTH];
    let sealing = rate(&mut || {
        for chunk in whole.chunks(CHUNK) {
            drop(seal(keys(), chunk));
        }
        Ok(())
    })?;
    let sealed = seal(keys(), &whole[..CHUNK]);
    let opening = rate(&mut || {
        for _ in 0..LENGTH / CHUNK {
            drop(open(keys(), sealed.clone())?);
        }
        Ok(())
    })?;
    println!("\n| AES-256-GCM (ring), one core | GB/s |\n|---|---|");
    println!("| the cipher alone, in records of 16 KiB | {alone:.2} |");
    println!("| making records of a body of 1 MB, with one copy of it | {sealing:.2} |");
    println!("| opening them, with one copy of them | {opening:.2} |");
    Ok(())
}
