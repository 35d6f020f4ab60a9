//! `testbed man`: the manual pages of all programs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;

use super::failure::Code;
use super::{Cli, Failure, Global, Outcome, say};

const EXAMPLES: &str = "\
Examples:
  testbed man ~/.local/share/man/man1
  testbed man target/man && man target/man/testbed-run.1";

/// Write the manual pages of testbed, rdma-httpd and rdma-fetch to a folder.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The folder; it is made if it is not there.
    folder: PathBuf,
}

impl Args {
    pub(super) fn run(self, _global: &Global) -> Outcome {
        let write = || {
            std::fs::create_dir_all(&self.folder)?;
            for command in
                [Cli::command(), rdma_http::cli::httpd::command(), rdma_http::cli::fetch::command()]
            {
                // One page for each verb, too.
                clap_mangen::generate_to(command, &self.folder)?;
            }
            Ok(())
        };
        write().map_err(|error: std::io::Error| {
            Failure::new(Code::Machine, format!("cannot write to {}: {error}", self.folder.display()))
        })?;
        say(format!("the manual pages are in {}", self.folder.display()));
        Ok(ExitCode::SUCCESS)
    }
}
