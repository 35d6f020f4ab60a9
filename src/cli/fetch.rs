//! `rdma-fetch`: see `--help`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use url::Url;

use super::common::{
    Common, Documents, OnOff, Signals, USAGE, block_on, bytes, network, parse, print_document, seconds,
};
use super::jobs::{self, Job, is_stdout, shown};
use super::verbose::Verbose;
use crate::channel::ReceiveError;
use crate::client::{Advertise, Client, ClientError, ClientTls, Connect, Options, Pool, PoolOptions};
use crate::events::{Event, Recorder};
use crate::fabric::soft::SoftOptions;
use crate::flow::{FlowError, MOST_WINDOW};
use crate::header::Mode;

/// Fetches a URL over HTTP, the body by RDMA where the server can
#[derive(Parser, Debug)]
#[command(
    name = "rdma-fetch",
    version,
    after_help = "\
Examples:
  rdma-fetch http://10.0.0.1:8080/data.bin
  rdma-fetch http://10.0.0.1:8080/data.bin -o - | sha256sum
  rdma-fetch -v --json --require-rdma http://10.0.0.1:8080/data.bin -o /dev/null
  rdma-fetch -j 4 http://10.0.0.1:8080/part-{1,2,3,4,5,6,7,8}.bin

A file appears only once it is whole. Any HTTP server will do: one that knows no RDMA sends the body over TCP.

Exit codes (curl's, where it has one):
   0  the body is there
   2  wrong usage
   3  the fabric of --fabric is not there
   6  the host's name has no address
   7  no connection to the server
   8  the server broke the protocol
  18  the transfer broke off
  22  an HTTP error, with --fail
  23  the output could not be written
  26  the file to send could not be read, or was changed meanwhile
  28  a time limit passed
  35  no TLS with the server, or not with the one that was meant
  60  the body came over TCP, with --require-rdma
  77  the certificates to trust could not be read
 130, 143  ended by SIGINT, SIGTERM"
)]
pub(super) struct Args {
    /// What to fetch: http://HOST[:PORT]/PATH, or https://; a body that goes by RDMA beside https is
    /// sealed. Several are fetched one after the other on one connection, or --parallel at
    /// once
    #[arg(value_name = "URL", required = true, env = "RDMA_FETCH_URL")]
    url: Vec<String>,

    /// Write to FILE, or to standard output for -; by default a file named as the URL's last part. The n-th is for the n-th
    /// URL
    #[arg(short, long, value_name = "FILE", env = "RDMA_FETCH_OUTPUT")]
    output: Vec<PathBuf>,

    /// URLs at once, and so connections to one server
    #[arg(
        short = 'j',
        long,
        value_name = "N",
        default_value = "1",
        value_parser = clap::value_parser!(u16).range(1..=MOST_WINDOW as i64),
        env = "RDMA_FETCH_PARALLEL"
    )]
    pub(super) parallel: u16,

    /// Bytes registered at once by all connections; who finds no room waits for its turn
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = bytes, env = "RDMA_FETCH_MAX_REGISTERED")]
    max_registered: u64,

    /// Who moves the bytes: auto (server-writes for a download, client-writes for an upload), one of the four modes, or plain
    /// (TCP only). A mode for the other direction offers nothing
    #[arg(long, value_enum, default_value_t = ModeName::Auto, env = "RDMA_FETCH_MODE")]
    mode: ModeName,

    /// How the RDMA connection comes about: server (the server connects to us), client (we connect to the server, which must
    /// have --rdma-listen), in-place (the HTTP connection becomes it; --fabric soft only), auto (server, and client once that
    /// has failed)
    #[arg(long, value_enum, default_value_t = ConnectName::Auto, env = "RDMA_FETCH_CONNECT")]
    connect: ConnectName,

    /// Send FILE, with PUT unless -X says POST
    #[arg(short = 'T', long, value_name = "FILE", env = "RDMA_FETCH_UPLOAD_FILE")]
    pub(super) upload_file: Option<PathBuf>,

    /// The method: GET or HEAD; with --upload-file PUT or POST
    #[arg(short = 'X', long, value_name = "METHOD", env = "RDMA_FETCH_REQUEST")]
    request: Option<Method>,

    /// Ask for the head only, and print it
    #[arg(short = 'I', long, conflicts_with = "upload_file", env = "RDMA_FETCH_HEAD")]
    head: bool,

    /// Ask for these bytes only: FIRST-LAST, FIRST- or -COUNT
    #[arg(
        short,
        long,
        value_name = "RANGE",
        allow_hyphen_values = true,
        conflicts_with = "upload_file",
        env = "RDMA_FETCH_RANGE"
    )]
    range: Option<String>,

    /// Fail if the body comes over TCP
    #[arg(long, env = "RDMA_FETCH_REQUIRE_RDMA")]
    pub(super) require_rdma: bool,

    /// Fail on an HTTP error (status 400 and above), and write nothing
    #[arg(short, long, env = "RDMA_FETCH_FAIL")]
    pub(super) fail: bool,

    /// Bytes of the region that is offered for a body; a longer body is written round and round in it
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = bytes, env = "RDMA_FETCH_MAXLEN")]
    maxlen: u64,

    /// Send this field too; may be repeated
    #[arg(short = 'H', long, value_name = "NAME: VALUE", value_parser = field, env = "RDMA_FETCH_HEADER")]
    header: Vec<(HeaderName, HeaderValue)>,

    /// Trust the certificates in FILE (PEM) and those that they vouch for, instead of those that the system trusts
    #[arg(long, value_name = "FILE", env = "RDMA_FETCH_CACERT")]
    cacert: Option<PathBuf>,

    /// Print heads and remarks to standard error
    #[arg(short, long, env = "RDMA_FETCH_VERBOSE")]
    pub(super) verbose: bool,

    /// Show no progress
    #[arg(short, long, env = "RDMA_FETCH_QUIET")]
    pub(super) quiet: bool,

    /// Print a summary as JSON to standard output (to standard error with -o - or --events -)
    #[arg(long, env = "RDMA_FETCH_JSON")]
    pub(super) json: bool,

    /// How long looking up the name and connecting may take
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "10",
        value_parser = seconds,
        env = "RDMA_FETCH_CONNECT_TIMEOUT"
    )]
    connect_timeout: Duration,

    /// How long each wait may take: for the response (which a server sends after the RDMA transfer of a body that fits
    /// --maxlen), for the end of the transfer, for the next part of a body
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds, env = "RDMA_FETCH_TIMEOUT")]
    timeout: Duration,

    /// Accept RDMA connections here; by default on the HTTP connection's own address, any port
    #[arg(long, value_name = "ADDR:PORT", env = "RDMA_FETCH_RDMA_LISTEN")]
    rdma_listen: Option<SocketAddr>,

    /// Connect by RDMA also to these networks or addresses, where the server says so, not only to where HTTP goes
    #[arg(
        long,
        value_name = "CIDR",
        value_parser = network,
        value_delimiter = ',',
        env = "RDMA_FETCH_ALLOW_RDMA_TO"
    )]
    allow_rdma_to: Vec<IpNet>,

    /// Tell the server this address instead of where RDMA connections are accepted
    #[arg(long, value_name = "ADDR[:PORT]", env = "RDMA_FETCH_ADVERTISE")]
    advertise: Option<Advertise>,

    #[command(flatten)]
    pub(super) common: Common,

    #[command(flatten)]
    documents: Documents,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum ModeName {
    Auto,
    ServerWrites,
    ClientReads,
    ClientWrites,
    ServerReads,
    Plain,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectName {
    Auto,
    Server,
    Client,
    InPlace,
}

/// A failure: its exit code and what the user reads.
#[derive(Debug)]
pub(super) struct Failure(pub(super) u8, pub(super) String);

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
    let args: Args = match parse(&args) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let args = Arc::new(args);
    let result = prepare(&args).and_then(|(jobs, recorder)| {
        let fetched = block_on(fetch_or_signal(&args, jobs, &recorder))
            .map_err(|error| Failure(1, format!("no runtime: {error}")))
            .and_then(|result| result);
        if let Err(Failure(_, error)) = &fetched {
            recorder.record(Event::Failed { error: error.clone() });
        }
        fetched
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, error)) => {
            eprintln!("rdma-fetch: {error}");
            ExitCode::from(code)
        }
    }
}

/// Checks all that can be checked before anything is sent.
fn prepare(args: &Args) -> Result<(Vec<Job>, Recorder), Failure> {
    let usage = |error: String| Failure(USAGE, error);
    args.common.start_log().map_err(usage)?;
    if args.require_rdma && args.mode == ModeName::Plain {
        return Err(usage("--require-rdma and --mode plain contradict each other".into()));
    }
    if args.output.len() > args.url.len() {
        return Err(usage(format!("{} outputs for {} URLs", args.output.len(), args.url.len())));
    }
    let mut jobs: Vec<Job> = Vec::new();
    let mut files = HashSet::new();
    for (index, url) in args.url.iter().enumerate() {
        let url = target(url).map_err(usage)?;
        let output = args.output.get(index).cloned().unwrap_or_else(|| default_name(&url));
        check_output(args, &output)?;
        let device = std::fs::metadata(&output).is_ok_and(|metadata| !metadata.is_file());
        if !device && !files.insert(output.clone()) {
            return Err(usage(format!(
                "two bodies would go to {}; -o may be given for each URL",
                shown(&output)
            )));
        }
        jobs.push(Job { url, output });
    }
    if let Some(other) = jobs.iter().find(|job| job.url.scheme() != jobs[0].url.scheme()) {
        return Err(usage(format!(
            "{} and {} in one call; give each scheme one of its own",
            jobs[0].url, other.url
        )));
    }
    let recorder = args.common.recorder().map_err(|error| Failure(23, error))?;
    Ok((jobs, recorder))
}

fn check_output(args: &Args, output: &Path) -> Result<(), Failure> {
    if is_stdout(output) && args.common.events.as_deref().is_some_and(is_stdout) {
        let both = "standard output cannot take both the body (-o -) and the events (--events -)";
        return Err(Failure(USAGE, both.into()));
    }
    if !is_stdout(output)
        && let Some(parent) = output.parent().filter(|parent| !parent.as_os_str().is_empty())
        && let Err(error) = std::fs::metadata(parent)
    {
        return Err(Failure(23, format!("cannot write {}: {error}", shown(output))));
    }
    Ok(())
}

async fn fetch_or_signal(args: &Arc<Args>, jobs: Vec<Job>, recorder: &Recorder) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(|error| Failure(1, format!("no signals: {error}")))?;
    tokio::select! {
        result = fetch(args, jobs, recorder) => result,
        number = signals.next() => Err(Failure(128 + number, format!("ended by signal {number}"))),
    }
}

async fn fetch(args: &Arc<Args>, jobs: Vec<Job>, recorder: &Recorder) -> Result<(), Failure> {
    let mut client = args.client(recorder)?;
    if jobs.iter().any(|job| job.url.scheme() == "https") {
        client = client.with_tls(args.tls()?);
    }
    let pool = Pool::new(client, args.pool());
    let fetched = jobs::run(args, jobs, &pool, recorder).await;
    // Also after a failure: an orderly close tells the server at once.
    pool.close().await;
    fetched
}

impl Args {
    fn pool(&self) -> PoolOptions {
        let (per_origin, wait) = (usize::from(self.parallel), self.timeout);
        PoolOptions { per_origin, wait, max_registered: self.max_registered, ..PoolOptions::default() }
    }

    fn client(&self, recorder: &Recorder) -> Result<Client, Failure> {
        let options = Options {
            maxlen: self.maxlen,
            connect_timeout: self.connect_timeout,
            timeout: self.timeout,
            listen: self.rdma_listen,
            advertise: self.advertise,
            allow: self.allow_rdma_to.clone(),
            crc: self.common.crc == OnOff::On,
            mode: match self.mode {
                ModeName::Plain => None,
                ModeName::Auto if self.upload_file.is_some() => Some(Mode::ClientWrites),
                ModeName::Auto => Some(Mode::ServerWrites),
                ModeName::ServerWrites => Some(Mode::ServerWrites),
                ModeName::ClientReads => Some(Mode::ClientReads),
                ModeName::ClientWrites => Some(Mode::ClientWrites),
                ModeName::ServerReads => Some(Mode::ServerReads),
            },
            connect: match self.connect {
                ConnectName::Auto => Connect::Auto,
                ConnectName::Server => Connect::Server,
                ConnectName::Client => Connect::Client,
                ConnectName::InPlace => Connect::InPlace,
            },
            memory: self.common.memory.strategy(),
            ..Options::default()
        };
        let fabric = (self.mode != ModeName::Plain)
            .then(|| self.common.open_fabric(SoftOptions::default()))
            .transpose();
        let fabric = fabric.map_err(|(code, error)| Failure(code, error))?;
        let client = Client::new(fabric, options, recorder.clone());
        Ok(if self.verbose { client.with_observer(Arc::new(Verbose)) } else { client })
    }

    /// Whom to trust.
    fn tls(&self) -> Result<ClientTls, Failure> {
        let tls = match &self.cacert {
            Some(path) => ClientTls::from_file(path),
            None => ClientTls::of_system(),
        };
        tls.map_err(|error| Failure(77, format!("--cacert: {error}")))
    }

    pub(super) fn method(&self) -> Method {
        match (&self.request, &self.upload_file, self.head) {
            (Some(method), ..) => method.clone(),
            (None, Some(_), _) => Method::PUT,
            (None, None, true) => Method::HEAD,
            (None, None, false) => Method::GET,
        }
    }

    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let agent = concat!("rdma-fetch/", env!("CARGO_PKG_VERSION"));
        headers.insert(http::header::USER_AGENT, HeaderValue::from_static(agent));
        headers.insert(http::header::ACCEPT, HeaderValue::from_static("*/*"));
        if let Some(range) = self.range.as_ref().and_then(|range| format!("bytes={range}").parse().ok()) {
            headers.insert(http::header::RANGE, range);
        }
        for (name, _) in &self.header {
            headers.remove(name);
        }
        for (name, value) in &self.header {
            headers.append(name, value.clone());
        }
        headers
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Resolve { .. } => 6,
            ClientError::Connect { .. } => 7,
            ClientError::Tls { .. } => 35,
            ClientError::TimedOut { .. } => {
                return Self(28, format!("{error}; --timeout may be raised for a slow link"));
            }
            ClientError::ConnectTimedOut { .. } => {
                return Self(28, format!("{error}; --connect-timeout may be raised"));
            }
            ClientError::Busy { .. } => {
                return Self(28, format!("{error}; --max-registered or --timeout may be raised"));
            }
            ClientError::TooMuchMemory { .. } => {
                return Self(USAGE, format!("{error}; lower --maxlen or raise --max-registered"));
            }
            ClientError::Request(_) => USAGE,
            ClientError::Field(_)
            | ClientError::Protocol(_)
            | ClientError::TransferBroken(ReceiveError::Message(_))
            | ClientError::FlowBroken(FlowError::Protocol(_)) => 8,
            ClientError::Upload(_) => 26,
            ClientError::Broken { source, .. } if source.is_parse() => 8,
            _ => 18,
        };
        Self(code, error.to_string())
    }
}

/// An `http` or `https` URL; a scheme may be left out, as with curl.
fn target(text: &str) -> Result<Url, String> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url =
        Url::parse(&full).map_err(|error| format!("{text}: {error}; expected http://HOST[:PORT]/PATH"))?;
    match url.scheme() {
        "http" | "https" if url.username().is_empty() && url.password().is_none() => Ok(url),
        "http" | "https" => Err(format!("{text}: user names are not supported")),
        other => Err(format!("{text}: {other} is not supported; expected http or https")),
    }
}

/// The last part of the path, as wget does it.
fn default_name(url: &Url) -> PathBuf {
    let last = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
    match last {
        // Never anything that is not a plain name here.
        "" | "." | ".." | "-" => PathBuf::from("index.html"),
        name => PathBuf::from(name),
    }
}

fn field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    let name: HeaderName = name.trim().parse().map_err(|_| format!("{name:?} is no field name"))?;
    if name == crate::header::RDMA {
        return Err("RDMA is not yours to send: it offers memory that only this program can register".into());
    }
    let value = value.trim().parse().map_err(|_| format!("{value:?} is no field value"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        let command = Args::command();
        command.clone().debug_assert();
        let setting = |arg: &&clap::Arg| !["completions", "man"].contains(&arg.get_id().as_str());
        let bare: Vec<_> =
            command.get_arguments().filter(setting).filter(|arg| arg.get_env().is_none()).collect();
        assert!(bare.is_empty(), "{bare:?}");
    }

    #[test]
    fn urls_are_checked_and_named() {
        let name = |text: &str| default_name(&target(text).unwrap()).display().to_string();
        assert_eq!(name("http://h/a/b.bin?x=/y"), "b.bin");
        assert_eq!(name("h:8080/a/"), "index.html");
        assert_eq!(name("h"), "index.html");
        assert_eq!(name("http://h/a/%2e%2e"), "index.html");
        assert_eq!(name("http://h/-"), "index.html");
        for wrong in ["gopher://h/", "ftp://h/", "http://u@h/", "http://", "http://[::1/"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }
}
