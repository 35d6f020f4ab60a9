//! `testbed completions`: a shell's completion script.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Global, Outcome, print};

const EXAMPLES: &str = "\
Examples:
  testbed completions bash > ~/.local/share/bash-completion/completions/testbed
  testbed completions fish > ~/.config/fish/completions/testbed.fish";

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The shell.
    shell: Shell,
}

impl Args {
    pub(super) fn run(self, _global: &Global) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "testbed", &mut script);
        print(String::from_utf8_lossy(&script));
        Ok(ExitCode::SUCCESS)
    }
}
