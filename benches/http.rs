//! The figures of the whole system over loopback: requests per second, and what a GiB costs the server in CPU, for
//! `rdma-httpd` plain and by RDMA over `soft` with each memory strategy, beside nginx (plain, sendfile on), all asked by the
//! same client: `cargo bench --bench http [-- 4KiB 64KiB 1MiB 64MiB]`. All servers are measured in turns in one run, and
//! medians are compared, so that a noisy minute hits all of them. Without nginx, `rdma-httpd` plain is what is compared with.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use rdma_http::client::{Client, Options, Pool, PoolOptions, Via};
use rdma_http::events::Recorder;
use rdma_http::fabric::Fabric;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};

type Error = Box<dyn std::error::Error + Send + Sync>;

const ROUNDS: usize = 3;
/// Connections, and requests at once.
const PARALLEL: usize = 4;

/// What a body is called and how long it is, and how many are asked for in a round.
const SIZES: [(&str, usize, usize); 4] =
    [("4KiB", 4 << 10, 4000), ("64KiB", 64 << 10, 3000), ("1MiB", 1 << 20, 500), ("64MiB", 64 << 20, 12)];

/// A server, and how it is asked.
#[derive(Clone, Copy)]
struct Variant {
    what: &'static str,
    program: Program,
    rdma: bool,
    crc: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Program {
    Nginx,
    Httpd(&'static [&'static str]),
}

const VARIANTS: [Variant; 7] = [
    Variant { what: "nginx, plain, sendfile on", program: Program::Nginx, rdma: false, crc: true },
    Variant { what: "rdma-httpd, plain", program: Program::Httpd(&[]), rdma: false, crc: true },
    Variant {
        what: "rdma-httpd, soft, dynamic",
        program: Program::Httpd(&["--memory", "dynamic"]),
        rdma: true,
        crc: true,
    },
    Variant {
        what: "rdma-httpd, soft, static",
        program: Program::Httpd(&["--memory", "static"]),
        rdma: true,
        crc: true,
    },
    Variant {
        what: "rdma-httpd, soft, cache",
        program: Program::Httpd(&["--memory", "cache"]),
        rdma: true,
        crc: true,
    },
    Variant {
        what: "rdma-httpd, soft, sendfile",
        program: Program::Httpd(&["--memory", "sendfile"]),
        rdma: true,
        crc: true,
    },
    Variant {
        what: "rdma-httpd, soft, sendfile, no CRC",
        program: Program::Httpd(&["--memory", "sendfile", "--crc", "off"]),
        rdma: true,
        crc: false,
    },
];

fn main() -> Result<(), Error> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let files = tempfile::tempdir()?;
    for (name, length, _) in SIZES {
        std::fs::write(files.path().join(name), vec![0x5a; length])?;
    }
    let nginx = Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok();
    let variants: Vec<Variant> =
        VARIANTS.into_iter().filter(|variant| nginx || variant.program != Program::Nginx).collect();
    let runtime = tokio::runtime::Runtime::new()?;
    for (name, length, requests) in SIZES {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        let mut measured = vec![(Vec::new(), Vec::new()); variants.len()];
        for _ in 0..ROUNDS {
            for (variant, (rates, costs)) in variants.iter().zip(&mut measured) {
                let (took, cpu) = measure(&runtime, files.path(), variant, (name, length, requests))?;
                let gib = (length * requests) as f64 / f64::from(1 << 30);
                rates.push(requests as f64 / took.as_secs_f64());
                costs.push(cpu / gib);
            }
        }
        let medians: Vec<(f64, f64)> =
            measured.into_iter().map(|(rates, costs)| (median(rates), median(costs))).collect();
        println!("\n{name} bodies, {PARALLEL} connections; ratios to the first line");
        for (variant, (rate, cost)) in variants.iter().zip(&medians) {
            let (first_rate, first_cost) = medians[0];
            println!(
                "  {:<36} {rate:>10.1} requests/s = {:.2}   {cost:>8.3} CPU s/GiB = {:.2}",
                variant.what,
                rate / first_rate,
                cost / first_cost
            );
        }
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How long the requests took, and how many seconds of CPU the server.
fn measure(
    runtime: &tokio::runtime::Runtime,
    root: &Path,
    variant: &Variant,
    (name, length, requests): (&str, usize, usize),
) -> Result<(Duration, f64), Error> {
    let before = children()?;
    let mut server = Server::start(root, variant.program)?;
    let took = runtime.block_on(load(server.address, variant, name, length, requests));
    server.stop()?;
    Ok((took?, children()? - before))
}

/// Seconds of CPU of all processes that we started and that have ended.
fn children() -> Result<f64, Error> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}

async fn load(
    server: SocketAddr,
    variant: &Variant,
    name: &str,
    length: usize,
    requests: usize,
) -> Result<Duration, Error> {
    let fabric = variant.rdma.then(|| Arc::new(SoftFabric::new(SoftOptions::default())) as Arc<dyn Fabric>);
    let options = Options { maxlen: length as u64, crc: variant.crc, ..Options::default() };
    let client = Client::new(fabric, options, Recorder::default());
    let pool = Pool::new(client, PoolOptions { per_origin: PARALLEL, ..PoolOptions::default() });
    let left = Arc::new(AtomicUsize::new(requests));
    let start = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..PARALLEL {
        let (pool, left, target, rdma) = (pool.clone(), left.clone(), format!("/{name}"), variant.rdma);
        workers.spawn(async move {
            let fewer = |left: usize| left.checked_sub(1);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok() {
                let origin = ("127.0.0.1", server.port());
                let mut response = pool.request(origin, Method::GET, &target, HeaderMap::new()).await?;
                if matches!(response.via, Via::Rdma(_)) != rdma {
                    return Err(Error::from(format!("a body came another way: {:?}", response.via)));
                }
                let mut received = 0;
                while let Some(piece) = response.body.next().await? {
                    received += piece.len();
                }
                if received != length {
                    return Err(format!("{received} bytes of {length}").into());
                }
            }
            Ok(())
        });
    }
    while let Some(done) = workers.join_next().await {
        done??;
    }
    let took = start.elapsed();
    pool.close().await;
    Ok(took)
}

/// A server that is killed when it is dropped.
struct Server {
    process: Child,
    address: SocketAddr,
    _configuration: Option<tempfile::TempDir>,
}

impl Server {
    fn start(root: &Path, program: Program) -> Result<Self, Error> {
        match program {
            Program::Httpd(args) => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_rdma-httpd"));
                command.arg("--root").arg(root).args(["--listen", "127.0.0.1:0"]).args(args);
                let mut process = command.stdout(Stdio::piped()).spawn()?;
                let mut line = String::new();
                if let Some(stdout) = process.stdout.take() {
                    BufReader::new(stdout).read_line(&mut line)?;
                }
                let address = line.trim().trim_start_matches("listening on http://").trim_end_matches('/');
                Ok(Self { process, address: address.parse()?, _configuration: None })
            }
            Program::Nginx => {
                let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
                let folder = tempfile::tempdir()?;
                let text = format!(
                    "daemon off; worker_processes auto; pid {0}/pid; error_log stderr crit; user root;\n\
                     events {{}}\nhttp {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
                     client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;\n\
                     uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
                     server {{ listen {address}; root {1}; }} }}\n",
                    folder.path().display(),
                    root.display()
                );
                let file = folder.path().join("nginx.conf");
                std::fs::write(&file, text)?;
                let process = Command::new("nginx").arg("-c").arg(&file).spawn()?;
                let server = Self { process, address, _configuration: Some(folder) };
                let end = Instant::now() + Duration::from_secs(10);
                while TcpStream::connect(address).is_err() {
                    if Instant::now() > end {
                        return Err("nginx does not listen".into());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(server)
            }
        }
    }

    fn stop(&mut self) -> Result<(), Error> {
        kill(Pid::from_raw(i32::try_from(self.process.id())?), Signal::SIGTERM)?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
