//! `testbed shell`: a shell in a host.

use std::io::IsTerminal;

use super::exec::{in_this_directory, with_terminal_type};
use super::lab::Which;
use super::{Global, Outcome, block_on, session};

const EXAMPLES: &str = "\
Examples:
  testbed shell server
  echo 'ip address' | testbed shell client
  testbed shell client --shell /bin/zsh";

/// Open a shell in a host.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// The shell; $SHELL by default, else /bin/sh.
    #[arg(short, long, env = "TESTBED_SHELL", value_name = "PROGRAM", hide_env_values = true)]
    shell: Option<String>,
    /// The host.
    host: String,
}

impl Args {
    pub(super) fn run(self, _global: &Global) -> Outcome {
        let client = self.which.client()?;
        let shell = self
            .shell
            .or_else(|| std::env::var("SHELL").ok().filter(|shell| !shell.is_empty()))
            .unwrap_or_else(|| "/bin/sh".to_owned());
        let command = with_terminal_type(in_this_directory(&self.host, shell)?);
        block_on(session::run(&client, command, std::io::stdin().is_terminal()))
    }
}
