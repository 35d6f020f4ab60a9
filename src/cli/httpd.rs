//! `rdma-httpd`: see `--help`.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpSocket};
use tower::Layer;

use super::common::{
    Common, Documents, OnOff, Signals, USAGE, block_on, bytes, network, print_document, report, seconds,
};
use super::settings::{Settings, SettingsError};
use crate::events::{Event, Recorder};
use crate::fabric::soft::SoftOptions;
use crate::flow::MOST_WINDOW;
use crate::server::{Files, Limit, Metrics, RdmaConfig, RdmaLayer, ServeOptions, serve};
use crate::tls::ServerTls;

/// Serves the files under a directory over HTTP, by RDMA to whoever offers memory for them
#[derive(Parser, Debug)]
#[command(
    name = "rdma-httpd",
    version,
    after_help = "\
Examples:
  rdma-httpd --root /srv --listen 10.0.0.1:8080
  rdma-httpd --root . --listen '[::1]:0' --events -
  rdma-httpd --root /srv --listen 0.0.0.0:8080 --allow-rdma-to 10.1.0.0/16
  rdma-httpd --root /srv/drop --listen 10.0.0.1:8080 --allow-upload
  rdma-httpd --root /srv --listen 10.0.0.1:8443 --tls-cert cert.pem --tls-key key.pem
  rdma-httpd --config /etc/rdma-httpd.toml --metrics 127.0.0.1:9090 --log info --log-format json
  rdma-httpd --root /srv --chunk-size 64K --print-config > rdma-httpd.toml

A setting comes from its flag, else from its variable (RDMA_HTTPD_ and the flag's name, where the help names another too),
else from the file of --config, else it is the default. The file is TOML, its keys are the flags' names: chunk-size = \"64K\".

It prints where it listens. SIGTERM and SIGINT let requests under way finish; a second one ends it at once.

Exit codes: 0 stopped by a signal, 1 it could not start, 2 wrong usage or a --memory
that the fabric cannot do, 3 the fabric of --fabric is not there,
130 and 143 ended by a second signal.

Anybody who can reach the port can read every file under the directory, and with --allow-upload write there."
)]
struct Args {
    /// The directory to serve
    #[arg(long, value_name = "DIR", env = "RDMA_HTTPD_ROOT")]
    root: PathBuf,

    /// Where to accept HTTP; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080", env = "RDMA_HTTPD_LISTEN")]
    listen: SocketAddr,

    /// Serve https with this certificate, and what vouches for it (PEM). Bodies that go by RDMA are sealed then
    #[arg(long, value_name = "FILE", env = "RDMA_HTTPD_TLS_CERT")]
    tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", env = "RDMA_HTTPD_TLS_KEY")]
    tls_key: Option<PathBuf>,

    /// Read settings from a TOML file
    #[arg(long, value_name = "FILE", env = "RDMA_HTTPD_CONFIG")]
    config: Option<PathBuf>,

    /// Print all settings and where each comes from, as a file for --config
    #[arg(long)]
    print_config: bool,

    #[command(flatten)]
    documents: Documents,

    #[command(flatten)]
    common: Common,

    /// Serve figures for Prometheus here, at /metrics
    #[arg(long, value_name = "ADDR:PORT", env = "RDMA_HTTPD_METRICS")]
    metrics: Option<SocketAddr>,

    /// Connect by RDMA also to these networks or addresses, not only to where a request came from
    #[arg(
        long,
        value_name = "CIDR",
        value_parser = network,
        value_delimiter = ',',
        env = "RDMA_HTTPD_ALLOW_RDMA_TO"
    )]
    allow_rdma_to: Vec<IpNet>,

    /// Accept RDMA connections of clients here; without it only the server connects
    #[arg(long, value_name = "ADDR:PORT", env = "RDMA_HTTPD_RDMA_LISTEN")]
    rdma_listen: Option<SocketAddr>,

    /// Take files: PUT makes or replaces one, POST makes one that is not there
    #[arg(
        long,
        value_name = "true|false",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_possible_values = true,
        env = "RDMA_HTTPD_ALLOW_UPLOAD"
    )]
    allow_upload: bool,

    /// Bytes of one RDMA Write or Read
    #[arg(long, value_name = "BYTES", default_value = "1MiB", value_parser = chunk, env = "RDMA_HTTPD_CHUNK_SIZE")]
    chunk_size: usize,

    /// Writes or Reads in flight for one transfer
    #[arg(
        long,
        value_name = "N",
        default_value = "8",
        value_parser = clap::value_parser!(u16).range(1..=MOST_WINDOW as i64),
        env = "RDMA_HTTPD_WINDOW"
    )]
    window: u16,

    /// Bytes registered at once in all; a transfer that finds no room goes over TCP
    #[arg(
        long,
        value_name = "BYTES",
        default_value = "1GiB",
        value_parser = bytes,
        env = "RDMA_HTTPD_MAX_REGISTERED"
    )]
    max_registered: u64,

    /// Bytes registered at once for one client address
    #[arg(
        long,
        value_name = "BYTES",
        default_value = "256MiB",
        value_parser = bytes,
        env = "RDMA_HTTPD_MAX_REGISTERED_PER_PEER"
    )]
    max_registered_per_peer: u64,

    /// HTTP connections at once; a further one takes the place of the one that has waited longest for a request
    #[arg(
        long,
        value_name = "N",
        default_value = "1024",
        value_parser = count,
        env = "RDMA_HTTPD_MAX_CONNECTIONS"
    )]
    max_connections: usize,

    /// HTTP connections at once from one client address; by default as many as in all
    #[arg(long, value_name = "N", value_parser = count, env = "RDMA_HTTPD_MAX_CONNECTIONS_PER_PEER")]
    max_connections_per_peer: Option<usize>,

    /// Clients that may wait to make an RDMA connection, having been told where (--rdma-listen)
    #[arg(long, value_name = "N", default_value = "4096", value_parser = count, env = "RDMA_HTTPD_MAX_INTRODUCTIONS")]
    max_introductions: usize,

    /// RDMA connections that are being made by clients; --fabric soft only
    #[arg(long, value_name = "N", default_value = "128", value_parser = count, env = "RDMA_HTTPD_MAX_HALF_OPEN")]
    max_half_open: usize,

    /// Registered regions at once; --fabric soft only, devices have limits of their own
    #[arg(long, value_name = "N", default_value = "65536", value_parser = count, env = "RDMA_HTTPD_MAX_REGIONS")]
    max_regions: usize,

    /// Bytes of a file that is put here
    #[arg(long, value_name = "BYTES", default_value = "1TiB", value_parser = bytes, env = "RDMA_HTTPD_MAX_UPLOAD")]
    max_upload: u64,

    /// How long an RDMA connection may take; then the body goes over TCP
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "5",
        value_parser = seconds,
        env = "RDMA_HTTPD_CONNECT_TIMEOUT"
    )]
    connect_timeout: Duration,

    /// How long a client may take nothing, or send nothing of a body, before it is given up
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "30",
        value_parser = seconds,
        env = "RDMA_HTTPD_STALL_TIMEOUT"
    )]
    stall_timeout: Duration,

    /// Bytes a second that a client must take, or send of a body, while it is waited for, over each --stall-timeout
    #[arg(long, value_name = "BYTES", default_value = "100", value_parser = bytes, env = "RDMA_HTTPD_MIN_RATE")]
    min_rate: u64,

    /// How long a request's head may take from its first byte, and a TLS handshake
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "10",
        value_parser = seconds,
        env = "RDMA_HTTPD_HEAD_TIMEOUT"
    )]
    head_timeout: Duration,

    /// How long a connection may stay without a request
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "60",
        value_parser = seconds,
        env = "RDMA_HTTPD_IDLE_TIMEOUT"
    )]
    idle_timeout: Duration,

    /// How long requests under way may take to finish after SIGTERM
    #[arg(
        long,
        alias = "grace",
        value_name = "SECONDS",
        default_value = "10",
        value_parser = seconds,
        env = "RDMA_HTTPD_SHUTDOWN_TIMEOUT"
    )]
    shutdown_timeout: Duration,
}

/// The command line, for manual pages.
pub fn command() -> clap::Command {
    Args::command()
}

/// Runs the program with `args` (the first is its own name) and returns its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    super::allocator::keep_buffers();
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(code) = print_document(&command(), &args) {
        return code;
    }
    let loaded = Settings::load(command(), &args).and_then(|settings| {
        let args = Args::from_arg_matches(&settings.matches)?;
        Ok((settings, args))
    });
    let (settings, args) = match loaded {
        Ok(loaded) => loaded,
        Err(SettingsError::Parser(error)) => return report(&error),
        Err(error) => {
            eprintln!("rdma-httpd: {error}");
            return ExitCode::from(USAGE);
        }
    };
    let fail = |code: u8, error: &str| {
        eprintln!("rdma-httpd: {error}");
        ExitCode::from(code)
    };
    if let Err(error) = args.common.start_log().and_then(|()| args.check_limits()) {
        return fail(USAGE, &error);
    }
    if args.print_config {
        print!("{}", settings.print());
        return ExitCode::SUCCESS;
    }
    super::descriptors::allow_for(args.max_connections);
    let result = args.common.recorder().and_then(|recorder| {
        block_on(run(&args, recorder))
            .map_err(|error| format!("no runtime: {error}"))
            .and_then(|result| result)
    });
    match result {
        Ok(code) => code,
        Err(error) => fail(1, &error),
    }
}

/// A listener with a queue for as many as there may be: where a thousand clients come at once and the queue is shorter, the
/// system answers with SYN cookies, of which it refuses some (a reset in place of the first answer).
fn listen(address: SocketAddr, connections: usize) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    // The system's own limit holds all the same (net.core.somaxconn).
    socket.listen(u32::try_from(connections).unwrap_or(u32::MAX).clamp(1024, i32::MAX as u32))
}

async fn run(args: &Args, recorder: Recorder) -> Result<ExitCode, String> {
    let root = &args.root;
    let is_dir =
        std::fs::metadata(root).map_err(|error| format!("--root {}: {error}", root.display()))?.is_dir();
    if !is_dir {
        return Err(format!("--root {}: not a directory", root.display()));
    }
    let mut signals = Signals::new().map_err(|error| format!("no signals: {error}"))?;
    let fabric = match args.common.open_fabric(args.soft()) {
        Ok(fabric) => fabric,
        Err((code, error)) => {
            eprintln!("rdma-httpd: {error}");
            return Ok(ExitCode::from(code));
        }
    };
    let tls = args.tls()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let listener = listen(args.listen, args.max_connections)
        .map_err(|error| format!("--listen {}: {error}", args.listen))?;
    let address = listener.local_addr().map_err(|error| format!("--listen {}: {error}", args.listen))?;

    let layer = RdmaLayer::new(fabric, args.rdma(), recorder.clone());
    if let Some(to) = args.rdma_listen {
        layer.accept_clients(to).await.map_err(|error| format!("--rdma-listen {to}: {error}"))?;
    }
    let metrics = match args.metrics {
        Some(to) => {
            let failed = |error| format!("--metrics {to}: {error}");
            let bound = TcpListener::bind(to).await.map_err(failed)?;
            let address = bound.local_addr().map_err(failed)?;
            Some((address, tokio::spawn(layer.metrics().serve(bound, std::future::pending::<()>()))))
        }
        None => None,
    };
    let files = Files::new(root, args.chunk_size.min(1 << 20), args.allow_upload);
    let files = layer.layer(files.with_max_upload(args.max_upload).with_metrics(layer.metrics()));

    // With `--events -` standard output belongs to the events, which say the same.
    if args.common.events.as_ref().is_none_or(|path| path.as_os_str() != "-") {
        println!("listening on {scheme}://{address}/");
        if let Some((address, _)) = &metrics {
            println!("figures at http://{address}/metrics");
        }
    }
    recorder.record(Event::Listening { address });

    let (stop, stopped) = tokio::sync::oneshot::channel();
    args.tell(&layer.metrics());
    tokio::spawn(super::allocator::give_back(layer.metrics()));
    let served = serve(listener, files, args.http(tls, layer.metrics()), stopped);
    // Until all is over: a shutdown can be watched.
    let served = async move {
        served.await;
        if let Some((_, task)) = metrics {
            task.abort();
        }
    };
    let mut served = std::pin::pin!(served);
    tokio::select! {
        () = &mut served => return Ok(ExitCode::SUCCESS),
        _ = signals.next() => {}
    }
    // The receiver is gone only if serving has ended already.
    let _ = stop.send(());
    tokio::select! {
        () = served => Ok(ExitCode::SUCCESS),
        number = signals.next() => Ok(ExitCode::from(128 + number)),
    }
}

impl Args {
    /// What only all settings together tell. A transfer must fit the limits, or nothing long would ever go by RDMA.
    fn check_limits(&self) -> Result<(), String> {
        // Each may come from a source of its own, so that the parser cannot say this.
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => return Err("--tls-cert without --tls-key: https takes both".into()),
            (None, Some(_)) => return Err("--tls-key without --tls-cert: https takes both".into()),
            _ => {}
        }
        let one = (self.chunk_size as u64).saturating_mul(self.window.into());
        for (flag, limit) in [
            ("--max-registered", self.max_registered),
            ("--max-registered-per-peer", self.max_registered_per_peer),
        ] {
            if one > limit {
                return Err(format!(
                    "--chunk-size {} times --window {} is {one} bytes for one transfer, and {flag} allows {limit}; \
                     lower the former or raise the latter",
                    self.chunk_size, self.window
                ));
            }
        }
        Ok(())
    }

    fn rdma(&self) -> RdmaConfig {
        RdmaConfig {
            chunk: self.chunk_size,
            window: self.window.into(),
            max_registered: self.max_registered,
            max_registered_per_peer: self.max_registered_per_peer,
            connect_timeout: self.connect_timeout,
            stall_timeout: self.stall_timeout,
            min_rate: self.min_rate,
            max_introductions: self.max_introductions,
            allow: self.allow_rdma_to.clone(),
            crc: self.common.crc == OnOff::On,
            memory: self.common.memory.strategy(),
        }
    }

    /// With what to speak TLS, if that is wanted.
    fn tls(&self) -> Result<Option<ServerTls>, String> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(None) };
        ServerTls::from_files(certificate, key)
            .map(Some)
            .map_err(|error| format!("--tls-cert, --tls-key: {error}"))
    }

    fn soft(&self) -> SoftOptions {
        SoftOptions {
            half_open: self.max_half_open,
            backlog: self.max_half_open,
            request_timeout: self.connect_timeout,
            max_regions: self.max_regions,
            ..SoftOptions::default()
        }
    }

    /// Tells of the limits that neither the layer nor the accept loop knows.
    fn tell(&self, metrics: &Metrics) {
        metrics.limit("max-upload", Limit::Bytes(self.max_upload));
        metrics.limit("max-regions", Limit::Number(self.max_regions));
        metrics.limit("max-half-open", Limit::Number(self.max_half_open));
    }

    fn http(&self, tls: Option<ServerTls>, metrics: Metrics) -> ServeOptions {
        ServeOptions {
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer.unwrap_or(self.max_connections),
            idle_timeout: self.idle_timeout,
            head_timeout: self.head_timeout,
            stall_timeout: self.stall_timeout,
            min_rate: self.min_rate,
            grace: self.shutdown_timeout,
            tls,
            metrics: Some(metrics),
        }
    }
}

/// How many there may be of something.
fn count(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=1 << 22).contains(number));
    number.ok_or_else(|| format!("expected a number from 1 to {}", 1 << 22))
}

/// Bytes of a Write: what a buffer may reasonably have.
fn chunk(text: &str) -> Result<usize, String> {
    let chunk = bytes(text)?;
    match usize::try_from(chunk) {
        Ok(chunk) if (1..=1 << 30).contains(&chunk) => Ok(chunk),
        _ => Err("expected 1 byte to 1 GiB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Args::command().debug_assert();
        assert_eq!(network("10.0.0.254"), Ok("10.0.0.254/32".parse().unwrap()));
        assert_eq!(network("fd00::/8"), Ok("fd00::/8".parse().unwrap()));
        assert!(network("10.0.0").is_err());
        assert_eq!(chunk("64K"), Ok(65536));
        assert!(chunk("0").is_err());
    }

    #[test]
    fn every_flag_has_a_variable() {
        use clap::CommandFactory;
        let command = Args::command();
        let setting =
            |arg: &&clap::Arg| !["print_config", "completions", "man"].contains(&arg.get_id().as_str());
        let bare: Vec<_> =
            command.get_arguments().filter(setting).filter(|arg| arg.get_env().is_none()).collect();
        assert!(bare.is_empty(), "{bare:?}");
    }
}
