//! `testbed exec`: a command in a host.

use clap::builder::FalseyValueParser;

use super::lab::Which;
use super::{Code, Failure, Global, Outcome, block_on, session};
use crate::agent::client::Command;

const EXAMPLES: &str = "\
Examples:
  testbed exec client -- ping -c3 server
  testbed exec server -- rdma-httpd --root . --listen 0.0.0.0:80
  tar c src | testbed exec client -- tar x -C /tmp
  testbed exec -t server -- top

The command runs in this directory, in the host's network namespace and under the host's name; the lab's PATH begins
with rdma-httpd, rdma-fetch and testbed. Its environment is the one that `testbed up` had, not this one; --env adds to it. Its exit code is passed on: 128 and the signal if one ended it, 127 if it was
not found, 126 if it is not executable. Signals are passed on too; if this process is killed, so is the command.";

/// Run a command in a host.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// Give the command a terminal.
    #[arg(short, long = "tty", env = "TESTBED_EXEC_TTY", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    tty: bool,
    /// Set a variable for the command; may be repeated.
    #[arg(short, long = "env", env = "TESTBED_EXEC_ENV", value_name = "NAME=VALUE", value_parser = variable, hide_env_values = true)]
    env: Vec<(String, String)>,
    /// The host.
    host: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Args {
    pub(super) fn run(self, _global: &Global) -> Outcome {
        let client = self.which.client()?;
        let mut argv = self.command.into_iter();
        // clap requires one.
        let mut command = in_this_directory(&self.host, argv.next().unwrap_or_default())?.args(argv);
        for (name, value) in self.env {
            command = command.env(name, value);
        }
        if self.tty {
            command = with_terminal_type(command);
        }
        block_on(session::run(&client, command, self.tty))
    }
}

/// A command that will run where the user is.
pub(super) fn in_this_directory(host: &str, program: String) -> Result<Command, Failure> {
    let here = std::env::current_dir()
        .map_err(|error| Failure::new(Code::Usage, format!("the current directory is gone: {error}")))?;
    Ok(Command::new(host, program).cwd(here))
}

/// Tells the command what terminal the user has.
pub(super) fn with_terminal_type(mut command: Command) -> Command {
    for name in ["TERM", "COLORTERM"] {
        if let Ok(value) = std::env::var(name) {
            command = command.env(name, value);
        }
    }
    command
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("NAME=VALUE is wanted".to_owned()),
    }
}
