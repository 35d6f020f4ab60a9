//! `testbed perf`: the two sides of `testbed bench soft-write` and `fabrics`, each in its host. Hidden; `bench` runs it.

use std::net::SocketAddr;
use std::process::ExitCode;

use rdma_http::fabric::soft::SoftFabric;
use rdma_http::fabric::{Fabric, FabricError, FabricKind};

use super::{Code, Failure, Global, Outcome, block_on, say};
use crate::bench::{latency, register, write};

/// The largest region that is served or written.
const MAX_LENGTH: u64 = 1 << 30;

/// Measure RDMA Writes and Sends, or what TCP makes of the same, one side in each host.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    side: Side,
}

#[derive(Debug, clap::Subcommand)]
enum Side {
    /// Offer a region to one client.
    Serve {
        /// Where.
        listen: SocketAddr,
        #[command(flatten)]
        region: Region,
        #[command(flatten)]
        over: Over,
        #[command(flatten)]
        integrity: Integrity,
    },
    /// Write the whole region of a server, over and over.
    Write {
        /// The server.
        server: SocketAddr,
        /// How often.
        #[arg(
            long,
            env = "TESTBED_PERF_COUNT",
            default_value_t = 16,
            hide_env_values = true,
            value_parser = clap::value_parser!(u32).range(1..=100_000)
        )]
        count: u32,
        #[command(flatten)]
        region: Region,
        #[command(flatten)]
        over: Over,
        #[command(flatten)]
        integrity: Integrity,
    },
    /// Send back what one client sends.
    Echo {
        /// Where.
        listen: SocketAddr,
        #[command(flatten)]
        over: Over,
    },
    /// Measure round trips to an echo.
    Ping {
        /// The server.
        server: SocketAddr,
        /// How many.
        #[arg(
            long,
            env = "TESTBED_PERF_COUNT",
            default_value_t = 1000,
            hide_env_values = true,
            value_parser = clap::value_parser!(u32).range(1..=1_000_000)
        )]
        count: u32,
        #[command(flatten)]
        over: Over,
    },
    /// Measure what registering memory costs, and copying it.
    Register {
        #[command(flatten)]
        over: Over,
    },
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Region {
    /// Bytes of the region, and so of each Write; for TCP both sides are told.
    #[arg(
        long,
        env = "TESTBED_PERF_LENGTH",
        default_value_t = 64 << 20,
        hide_env_values = true,
        value_parser = clap::value_parser!(u64).range(1..=MAX_LENGTH)
    )]
    length: u64,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Over {
    /// What carries it.
    #[arg(long, value_enum, env = "TESTBED_PERF_OVER", default_value_t = Carrier::Soft, hide_env_values = true)]
    over: Carrier,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Carrier {
    Soft,
    Siw,
    Rxe,
    Tcp,
}

impl Over {
    /// The fabric; `None` is TCP.
    fn fabric(self) -> Result<Option<Box<dyn Fabric>>, Failure> {
        match self.over {
            Carrier::Soft => Ok(Some(Box::new(SoftFabric::default()))),
            Carrier::Siw => kernel_fabric(FabricKind::Siw).map(Some),
            Carrier::Rxe => kernel_fabric(FabricKind::Rxe).map(Some),
            Carrier::Tcp => Ok(None),
        }
    }
}

#[cfg(feature = "verbs")]
fn kernel_fabric(kind: FabricKind) -> Result<Box<dyn Fabric>, Failure> {
    Ok(Box::new(rdma_http::fabric::verbs::VerbsFabric::open(kind).map_err(failed)?))
}

#[cfg(not(feature = "verbs"))]
fn kernel_fabric(kind: FabricKind) -> Result<Box<dyn Fabric>, Failure> {
    Err(Failure::new(Code::Usage, format!("built without {kind}; `cargo build --features verbs` has it")))
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Integrity {
    /// Whether to ask for CRC32c; it is used if either side asks.
    #[arg(
        long,
        env = "TESTBED_PERF_CRC",
        default_value_t = true,
        action = clap::ArgAction::Set,
        hide_env_values = true
    )]
    crc: bool,
}

impl Args {
    pub(super) fn run(self, _global: &Global) -> Outcome {
        let ready = |address: SocketAddr| say(format_args!("listening on {address}"));
        // MAX_LENGTH fits into every usize that has room for it.
        let size = |length: u64| usize::try_from(length).unwrap_or(usize::MAX);
        match self.side {
            Side::Serve { listen, region, over, integrity } => block_on(async {
                match over.fabric()? {
                    Some(fabric) => {
                        let served =
                            write::serve(&*fabric, listen, size(region.length), integrity.crc, ready);
                        served.await.map_err(failed)
                    }
                    None => write::serve_tcp(listen, size(region.length), ready).await.map_err(io_failed),
                }
            })?,
            Side::Write { server, count, region, over, integrity } => {
                let count = size(count.into());
                let measured = block_on(async {
                    match over.fabric()? {
                        Some(fabric) => {
                            write::measure(&*fabric, server, count, integrity.crc).await.map_err(failed)
                        }
                        None => {
                            write::measure_tcp(server, size(region.length), count).await.map_err(io_failed)
                        }
                    }
                })?;
                say(serde_json::to_string(&measured).unwrap_or_default());
            }
            Side::Echo { listen, over } => block_on(async {
                match over.fabric()? {
                    Some(fabric) => latency::echo(&*fabric, listen, ready).await.map_err(failed),
                    None => latency::echo_tcp(listen, ready).await.map_err(io_failed),
                }
            })?,
            Side::Ping { server, count, over } => {
                let count = size(count.into());
                let measured = block_on(async {
                    match over.fabric()? {
                        Some(fabric) => latency::ping(&*fabric, server, count).await.map_err(failed),
                        None => latency::ping_tcp(server, count).await.map_err(io_failed),
                    }
                })?;
                say(serde_json::to_string(&measured).unwrap_or_default());
            }
            Side::Register { over } => {
                let costs = block_on(async {
                    match over.fabric()? {
                        Some(fabric) => register::measure(&*fabric, register::WORK).map_err(failed),
                        None => Err(Failure::new(Code::Usage, "TCP registers no memory".to_owned())),
                    }
                })?;
                say(serde_json::to_string(&costs).unwrap_or_default());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn io_failed(error: std::io::Error) -> Failure {
    Failure::new(Code::Differs, error.to_string())
}

fn failed(error: FabricError) -> Failure {
    Failure::new(Code::Differs, error.to_string())
}
