//! What both programs share: parsing that returns an exit code, logging, the fabric, events, signals.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::error::ErrorKind;
use clap_complete::Shell;
use ipnet::IpNet;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::events::Recorder;
use crate::fabric::soft::{SoftFabric, SoftOptions};
use crate::fabric::{Fabric, FabricKind};
use crate::memory::Strategy;

/// Wrong usage.
pub(super) const USAGE: u8 = 2;

/// The fabric that was asked for is not there.
pub(super) const NO_FABRIC: u8 = 3;

/// Options of both programs.
#[derive(clap::Args, Debug)]
pub(super) struct Common {
    /// What carries RDMA: soft (user-space iWARP over TCP), or the kernel's siw (iWARP) or rxe (RoCEv2)
    #[arg(long, value_enum, default_value_t = FabricName::Soft, env = "RDMA_FABRIC")]
    pub(super) fabric: FabricName,

    /// Whether to ask for CRC32c on RDMA connections; it is used if either side asks
    #[arg(long, value_enum, default_value_t = OnOff::On, value_name = "on|off", env = "RDMA_CRC")]
    pub(super) crc: OnOff,

    /// How memory gets registered: dynamic (each buffer, for one transfer), static (buffers that stay registered as long as
    /// an RDMA connection lives; one copy of each byte), cache (the same, registered as they are needed), sendfile (a file
    /// goes as it lies in the page cache)
    #[arg(long, value_enum, default_value_t = MemoryName::Dynamic, env = "RDMA_MEMORY")]
    pub(super) memory: MemoryName,

    /// Write what happens as JSON lines to FILE, or to standard output for -
    #[arg(long, value_name = "FILE", env = "RDMA_EVENTS")]
    pub(super) events: Option<PathBuf>,

    /// What to log to standard error: error, warn, info, debug, trace, or directives as in RUST_LOG
    #[arg(long, value_name = "LEVEL", env = "RUST_LOG", default_value = "warn")]
    pub(super) log: String,

    /// How to log: text, or a JSON object a line
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "RDMA_LOG_FORMAT")]
    pub(super) log_format: LogFormat,
}

/// What a program prints about itself. Neither needs anything else of the command line.
#[derive(clap::Args, Debug)]
pub(super) struct Documents {
    /// Print a completion script for a shell
    #[arg(long, value_name = "SHELL", help_heading = "Documents")]
    completions: Option<Shell>,

    /// Print the manual page: `rdma-httpd --man | man -l -`
    #[arg(long, help_heading = "Documents")]
    man: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FabricName {
    Soft,
    Siw,
    Rxe,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemoryName {
    Static,
    Dynamic,
    Cache,
    Sendfile,
}

impl MemoryName {
    pub(super) fn strategy(self) -> Strategy {
        match self {
            Self::Static => Strategy::Static,
            Self::Dynamic => Strategy::Dynamic,
            Self::Cache => Strategy::Cache,
            Self::Sendfile => Strategy::Sendfile,
        }
    }
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnOff {
    On,
    Off,
}

impl Common {
    /// Starts logging. The error is for the user.
    pub(super) fn start_log(&self) -> Result<(), String> {
        let filter = EnvFilter::try_new(&self.log).map_err(|error| format!("--log {}: {error}", self.log))?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(io::stderr().is_terminal())
            .with_writer(io::stderr);
        // Fails if a logger is there already, which is then whoever calls us as a library.
        let _ = match self.log_format {
            LogFormat::Text => log.try_init(),
            LogFormat::Json => log.json().flatten_event(true).with_span_list(false).try_init(),
        };
        Ok(())
    }

    pub(super) fn recorder(&self) -> Result<Recorder, String> {
        match &self.events {
            None => Ok(Recorder::default()),
            Some(path) => {
                Recorder::to_path(path).map_err(|error| format!("--events {}: {error}", path.display()))
            }
        }
    }

    /// Opens the fabric, and makes sure that it can do what `--memory` wants. The error is the program's exit code, and what
    /// the user reads.
    pub(super) fn open_fabric(&self, soft: SoftOptions) -> Result<Arc<dyn Fabric>, (u8, String)> {
        let fabric = match self.fabric {
            FabricName::Soft => Ok(Arc::new(SoftFabric::new(soft)) as Arc<dyn Fabric>),
            FabricName::Siw => kernel_fabric(FabricKind::Siw),
            FabricName::Rxe => kernel_fabric(FabricKind::Rxe),
        };
        let fabric = fabric.map_err(|error| (NO_FABRIC, error))?;
        check_memory(self.memory, &*fabric).map_err(|error| (USAGE, error))?;
        Ok(fabric)
    }
}

/// Whether a fabric can do what `--memory` wants; the error is for the user.
fn check_memory(memory: MemoryName, fabric: &dyn Fabric) -> Result<(), String> {
    if memory != MemoryName::Sendfile {
        return Ok(());
    }
    fabric.registers_files().map_err(|error| {
        format!(
            "--memory sendfile: {} cannot do it: {error}; --memory dynamic works everywhere",
            fabric.kind()
        )
    })
}

#[cfg(feature = "verbs")]
fn kernel_fabric(kind: FabricKind) -> Result<Arc<dyn Fabric>, String> {
    let fabric = crate::fabric::verbs::VerbsFabric::open(kind);
    Ok(Arc::new(fabric.map_err(|error| format!("--fabric {kind}: {error}"))?))
}

#[cfg(not(feature = "verbs"))]
fn kernel_fabric(kind: FabricKind) -> Result<Arc<dyn Fabric>, String> {
    Err(format!(
        "--fabric {kind}: this program was built without the kernel's fabrics; \
         `cargo build --features verbs` builds it with them"
    ))
}

/// Parses the command line; help, version and mistakes are printed, and end the program with the code returned.
pub(super) fn parse<P: clap::Parser>(args: &[OsString]) -> Result<P, ExitCode> {
    P::try_parse_from(args).map_err(|error| report(&error))
}

/// Prints what the parser has to say, and returns the code that goes with it.
pub(super) fn report(error: &clap::Error) -> ExitCode {
    // Nothing is to be done about a closed standard output.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(USAGE),
    }
}

/// Prints the document that is asked for, if one is ([`Documents`]); that ends the program.
pub(super) fn print_document(command: &clap::Command, args: &[OsString]) -> Option<ExitCode> {
    // Nothing else has to be right, nor there.
    let asked = command.clone().ignore_errors(true).try_get_matches_from(args).ok()?;
    let mut document = Vec::new();
    if let Ok(Some(shell)) = asked.try_get_one::<Shell>("completions") {
        let name = command.get_name().to_owned();
        clap_complete::generate(*shell, &mut command.clone(), name, &mut document);
    } else if asked.get_one("man") == Some(&true) {
        // Writing to memory cannot fail.
        let _ = clap_mangen::Man::new(command.clone()).render(&mut document);
    } else {
        return None;
    }
    let written = io::stdout().write_all(&document).and_then(|()| io::stdout().flush());
    Some(if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a program's future on a new runtime.
pub(super) fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let output = runtime.block_on(future);
    // A blocking read of standard input or a slow disk must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(output)
}

/// SIGINT and SIGTERM.
pub(super) struct Signals(Signal, Signal);

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    }

    /// The next one's number.
    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.0.recv() => 2,
            _ = self.1.recv() => 15,
        }
    }
}

/// `10.0.0.0/24`, or an address alone.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse().map(|ip: std::net::IpAddr| IpNet::from(ip));
    text.parse()
        .or_else(|_| address())
        .map_err(|_| "expected a network such as 10.0.0.0/24, or an address".into())
}

/// A duration in seconds, `0.5` or `10`; not zero, at most a year.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || "expected seconds, such as 10 or 0.5".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    if seconds > 0.0 && seconds <= 31_536_000.0 {
        Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
    } else {
        Err(wrong())
    }
}

/// A number of bytes, `1048576` or `1M`, `1MiB` (powers of 1024).
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "expected bytes, such as 1048576, 64K, 1M or 1GiB".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.trim().parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::fabric::{BoxFuture, ConnectOptions, Connection, FabricError, Listener, Pd};

    /// A fabric that registers no files.
    struct Bare(SoftFabric);

    impl Fabric for Bare {
        fn kind(&self) -> FabricKind {
            FabricKind::Rxe
        }
        fn allocate_pd(&self) -> Result<Pd, FabricError> {
            self.0.allocate_pd()
        }
        fn listen(&self, address: SocketAddr) -> BoxFuture<'_, Result<Box<dyn Listener>, FabricError>> {
            self.0.listen(address)
        }
        fn connect(
            &self,
            pd: &Pd,
            to: SocketAddr,
            options: ConnectOptions,
        ) -> BoxFuture<'_, Result<Arc<dyn Connection>, FabricError>> {
            self.0.connect(pd, to, options)
        }
    }

    #[test]
    fn a_fabric_that_cannot_register_files_is_said_before_anything_is_done() {
        let soft = SoftFabric::new(SoftOptions::default());
        assert_eq!(check_memory(MemoryName::Sendfile, &soft), Ok(()));
        let bare = Bare(soft);
        assert_eq!(check_memory(MemoryName::Static, &bare), Ok(()));
        let error = check_memory(MemoryName::Sendfile, &bare).unwrap_err();
        assert!(
            error.contains("--memory sendfile: rxe cannot do it: this fabric registers no files"),
            "{error}"
        );
    }

    #[test]
    fn quantities_parse() {
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("1024"), Ok(1024));
        assert_eq!(bytes("64K"), Ok(65536));
        assert_eq!(bytes("1GiB"), Ok(1 << 30));
        for wrong in ["", "K", "-1", "1.5M", "1X", "99999999999T", "1é"] {
            assert!(bytes(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "0", "-1", "inf", "nan", "1e300", "x"] {
            assert!(seconds(wrong).is_err(), "{wrong:?}");
        }
    }
}
