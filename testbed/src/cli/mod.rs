//! The command line: one file a verb, thin.
//!
//! A verb turns its checked arguments into calls of the library and the outcome into text or JSON. What it returns is an
//! exit code, or a [`Failure`] that knows its exit code, its message and the remedy; [`main`] prints it.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand};

mod agent;
mod bench;
mod capture;
mod completions;
mod doctor;
mod down;
mod exec;
mod fabric;
mod failure;
mod global;
mod graph;
mod init;
mod keeper;
mod kernel;
mod lab;
mod link;
mod man;
mod observe;
mod perf;
mod print;
mod run;
mod session;
mod shell;
mod status;
mod terminal;
mod up;
mod validate;

pub use failure::{Code, Failure};
pub use global::{ColorChoice, Global};
pub(crate) use print::{print, remark, say};

/// What a verb comes to.
pub type Outcome = Result<ExitCode, Failure>;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXIT_CODES: &str = "\
Exit codes:
  0  as expected
  1  an observation differs from its golden, or what was asked for failed (exec passes its command's own code on)
  2  usage, or a bad file: the message has the line and the column
  3  this machine cannot do it: the message has the reason and the remedy
  4  nothing was run";

/// Labs of network namespaces with RDMA and WAN links on this machine, and a verdict on what was seen in them.
///
/// A lab is a topology that is up. Neither root nor an RDMA device is needed. `testbed doctor` says what this machine
/// can do.
#[derive(Debug, Parser)]
#[command(name = "testbed", version, styles = STYLES, after_help = EXIT_CODES, max_term_width = 100)]
#[command(propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Args),
    Up(up::Args),
    Down(down::Args),
    Status(status::Args),
    Exec(exec::Args),
    Shell(shell::Args),
    Capture(capture::Args),
    Link(link::Args),
    Doctor(doctor::Args),
    Bench(bench::Args),
    Graph(graph::Args),
    Kernel(kernel::Args),
    Validate(validate::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    Agent(agent::Args),
    #[command(hide = true)]
    Init(init::Args),
    #[command(hide = true)]
    Observe(observe::Args),
    Keeper(keeper::Args),
    #[command(hide = true)]
    Perf(perf::Args),
}

impl Verb {
    fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Run(args) => args.run(global),
            Self::Up(args) => args.run(global),
            Self::Down(args) => args.run(global),
            Self::Status(args) => args.run(global),
            Self::Exec(args) => args.run(global),
            Self::Shell(args) => args.run(global),
            Self::Capture(args) => args.run(global),
            Self::Link(args) => args.run(global),
            Self::Agent(args) => args.run(global),
            Self::Init(args) => args.run(global),
            Self::Observe(args) => args.run(global),
            Self::Keeper(args) => args.run(global),
            Self::Perf(args) => args.run(global),
            Self::Bench(args) => args.run(global),
            Self::Doctor(args) => args.run(global),
            Self::Graph(args) => args.run(global),
            Self::Kernel(args) => args.run(global),
            Self::Validate(args) => args.run(global),
            Self::Completions(args) => args.run(global),
            Self::Man(args) => args.run(global),
        }
    }
}

/// Runs the program with `args` (the first is its own name) and returns its exit code.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are "errors" of clap's that go to standard output with code 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Code::Usage as u8));
        }
    };
    let global = cli.global;
    global.init();
    match cli.verb.run(&global).and_then(|code| print::check().map(|()| code)) {
        Ok(code) => code,
        Err(failure) => {
            failure.print(&global);
            failure.code()
        }
    }
}

/// Runs a verb's asynchronous part. Threads that still wait for standard input are left behind, not waited for.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Machine, format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        fn check(command: &clap::Command) {
            for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
                if matches!(arg.get_id().as_str(), "help" | "version") {
                    continue;
                }
                let env = arg.get_env().and_then(|env| env.to_str()).unwrap_or_default();
                assert!(
                    env.starts_with("TESTBED_"),
                    "{}: --{} has no TESTBED_… variable",
                    command.get_name(),
                    arg.get_id()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
