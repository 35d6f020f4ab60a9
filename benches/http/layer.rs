//! What [`RdmaLayer`] costs a request that carries no RDMA field: requests per second, the server's CPU, and instructions,
//! of one and the same service with the layer and without, over loopback.
//!
//! The server is a child with one thread, so that its CPU is its own. It is asked in turns, a short while each, many times.
//! Instructions are counted by valgrind, with HTTP over memory in place of sockets: nothing else on the machine changes them.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use rdma_http::events::Recorder;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::server::{BoxError, HttpConnection, RdmaConfig, RdmaLayer, ServeOptions, serve as accept};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower::{Layer, Service, ServiceExt};

use crate::{Result, median};

/// The argument that makes this program the server, or what is counted.
pub(crate) const SERVE: &str = "serve-layer";

const ROUNDS: usize = 300;
/// Connections, which are written to together and read from together.
const CONNECTIONS: usize = 8;
/// Requests on each of them in one turn.
const REQUESTS: usize = 100;

const REQUEST: &[u8] =
    b"GET /any?thing HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

/// What is asked, the layer last.
const WAYS: [(&str, &str); 3] = [
    ("bare", "the service, in hyper's own loop"),
    ("accept", "the service, in our accept loop"),
    ("layer", "the service with the layer, in our accept loop"),
];

pub(crate) fn figure(_: &[String]) -> Result<()> {
    let server = Counted::start()?;
    let mut clients = Vec::new();
    for address in server.addresses {
        clients.push(Asker::connect(address)?);
    }
    let mut measured = WAYS.map(|_| (Vec::new(), Vec::new()));
    for round in 0..ROUNDS {
        for turn in 0..WAYS.len() {
            // Nobody is always the first, or always after the same one.
            let way = if round % 2 == 0 {
                (round + turn) % WAYS.len()
            } else {
                (round + WAYS.len() - turn) % WAYS.len()
            };
            let (before, start) = (server.cpu()?, Instant::now());
            clients[way].ask()?;
            let took = start.elapsed().as_secs_f64();
            let requests = (CONNECTIONS * REQUESTS) as f64;
            measured[way].0.push(requests / took);
            measured[way].1.push((server.cpu()? - before).as_secs_f64() * 1e6 / requests);
        }
    }
    let instructions = WAYS.map(|(way, _)| instructions(way));
    println!(
        "\n| no RDMA field, {CONNECTIONS} connections | requests/s | ratio | server's CPU µs | ratio | instructions |"
    );
    println!("|---|---|---|---|---|---|");
    for (at, (_, what)) in WAYS.iter().enumerate() {
        let (rates, costs) = &measured[at];
        let (first_rates, first_costs) = &measured[0];
        let (rate, cost) = (median(rates.clone()), median(costs.clone()));
        let (rates, costs) = (median(ratios(rates, first_rates)), median(ratios(costs, first_costs)));
        let instructions =
            instructions[at].as_ref().map_or_else(|why| why.to_string(), |count| format!("{count:.0}"));
        println!("| {what} | {rate:.0} | {rates:.4} | {cost:.3} | {costs:.4} | {instructions} |");
    }
    let [_, accept, layer] = &measured;
    let lost = 1.0 - median(ratios(&layer.0, &accept.0));
    let dearer = median(ratios(&layer.1, &accept.1)) - 1.0;
    println!(
        "\nThe layer alone: {:.2} % of requests/s, {:.2} % of the server's CPU",
        100.0 * lost,
        100.0 * dearer
    );
    Ok(())
}

/// Of each round by itself, so that a noisy minute is on both sides.
fn ratios(these: &[f64], those: &[f64]) -> Vec<f64> {
    these.iter().zip(those).map(|(this, that)| this / that).collect()
}

/// The server, in a child.
struct Counted {
    child: Child,
    addresses: [SocketAddr; 3],
    clock: ClockId,
}

impl Counted {
    fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(SERVE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let mut address = || -> Result<SocketAddr> { Ok(lines.next().ok_or("the server ended")??.parse()?) };
        let addresses = [address()?, address()?, address()?];
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(child.id())?))?;
        Ok(Self { child, addresses, clock })
    }

    /// What it has used.
    fn cpu(&self) -> Result<Duration> {
        Ok(self.clock.now()?.into())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that costs next to nothing.
struct Asker {
    connections: Vec<TcpStream>,
    /// Bytes of a response.
    length: usize,
}

impl Asker {
    fn connect(address: SocketAddr) -> Result<Self> {
        let mut connections = Vec::new();
        let mut response = [0; 1024];
        let mut length = 0;
        for _ in 0..CONNECTIONS {
            let mut connection = TcpStream::connect(address)?;
            connection.set_nodelay(true)?;
            connection.write_all(REQUEST)?;
            length = connection.read(&mut response)?;
            if !response.starts_with(b"HTTP/1.1 200 OK\r\n") || !response[..length].ends_with(BODY) {
                return Err(format!("an answer that is none: {:?}", &response[..length]).into());
            }
            connections.push(connection);
        }
        Ok(Self { connections, length })
    }

    fn ask(&mut self) -> Result<()> {
        let mut response = vec![0; self.length];
        for _ in 0..REQUESTS {
            for connection in &mut self.connections {
                connection.write_all(REQUEST)?;
            }
            for connection in &mut self.connections {
                connection.read_exact(&mut response)?;
            }
        }
        Ok(())
    }
}

const BODY: &[u8] = b"Hello, world!\n";

/// What the layer is put around: as little as there can be.
async fn hello<B>(_: Request<B>) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(BODY))))
}

fn layer() -> RdmaLayer {
    let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
    RdmaLayer::new(fabric, RdmaConfig::default(), Recorder::default())
}

/// The server: all ways at once, each at an address of its own. With arguments, what valgrind counts.
pub(crate) fn serve(args: &[&str]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let [way, requests] = args {
        return runtime.block_on(counted(way, requests.parse()?));
    }
    runtime.block_on(async {
        let mut listeners = Vec::new();
        for _ in WAYS {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            println!("{}", listener.local_addr()?);
            listeners.push(listener);
        }
        let [bare, plain, layered] = <[_; 3]>::try_from(listeners).map_err(|_| "three listeners")?;
        let never = std::future::pending::<()>;
        let inner = tower::service_fn(hello::<Incoming>);
        let with = layer().layer(tower::service_fn(hello));
        tokio::join!(
            hypers_loop(bare),
            accept(plain, inner, ServeOptions::default(), never()),
            accept(layered, with, ServeOptions::default(), never()),
        );
        Ok(())
    })
}

/// As hyper's guide has it, with a limit for the head as everyone should have.
async fn hypers_loop(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service_fn(hello)),
        );
    }
}

/// So many requests over memory.
async fn counted(way: &str, requests: usize) -> Result<()> {
    let (mut near, far) = tokio::io::duplex(64 << 10);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let task = match way {
        "bare" => tokio::spawn(over(far, service_fn(hello))),
        "accept" => tokio::spawn(over(far, known(tower::service_fn(hello), HttpConnection::new(peer)))),
        _ => {
            tokio::spawn(over(far, known(layer().layer(tower::service_fn(hello)), HttpConnection::new(peer))))
        }
    };
    let mut response = [0; 1024];
    near.write_all(REQUEST).await?;
    let length = near.read(&mut response).await?;
    for _ in 0..requests {
        near.write_all(REQUEST).await?;
        near.read_exact(&mut response[..length]).await?;
    }
    drop(near);
    Ok(task.await??)
}

async fn over<S, B>(stream: tokio::io::DuplexStream, service: S) -> hyper::Result<()>
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// A service as the accept loop calls it, which tells of the connection.
fn known<S, B>(
    service: S,
    http: HttpConnection,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = Response<B>,
    Error = Infallible,
    Future = impl Future<Output = std::result::Result<Response<B>, Infallible>> + Send,
>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send,
    S::Future: Send,
    B: Body,
{
    service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(http.clone());
        service.clone().oneshot(request)
    })
}

/// Instructions of one request, the client's few among them.
fn instructions(way: &str) -> Result<f64> {
    const FEW: usize = 200;
    const MANY: usize = 1200;
    Ok((count(way, MANY)? - count(way, FEW)?) / (MANY - FEW) as f64)
}

fn count(way: &str, requests: usize) -> Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args([SERVE, way, &requests.to_string()])
        .output()
        .map_err(|error| format!("no valgrind ({error})"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    collected.ok_or_else(|| format!("valgrind counted nothing: {said}").into())
}
