//! `testbed perf`: the two sides of `testbed bench soft-write`, each in its host. Hidden; `bench` runs it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use rdma_http::fabric::FabricError;
use rdma_http::fabric::soft::SoftFabric;

use super::{Code, Failure, Global, Outcome, block_on};
use crate::bench::write;

/// The largest region that is served or written.
const MAX_LENGTH: u64 = 1 << 30;

/// Measure RDMA Writes over soft, one side in each host.
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
        /// Bytes of the region.
        #[arg(
            long,
            env = "TESTBED_PERF_LENGTH",
            default_value_t = 64 << 20,
            hide_env_values = true,
            value_parser = clap::value_parser!(u64).range(1..=MAX_LENGTH)
        )]
        length: u64,
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
        integrity: Integrity,
    },
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
        let fabric = SoftFabric::default();
        match self.side {
            Side::Serve { listen, length, integrity } => {
                // MAX_LENGTH fits into every usize that has room for it.
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let ready = |address: SocketAddr| say(&format!("listening on {address}"));
                block_on(async {
                    write::serve(&fabric, listen, length, integrity.crc, ready).await.map_err(failed)
                })?;
            }
            Side::Write { server, count, integrity } => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                let measured = block_on(async {
                    write::measure(&fabric, server, count, integrity.crc).await.map_err(failed)
                })?;
                say(&serde_json::to_string(&measured).unwrap_or_default());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn failed(error: FabricError) -> Failure {
    Failure::new(Code::Differs, error.to_string())
}

/// Prints a line at once: whoever waits for it reads a pipe.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
