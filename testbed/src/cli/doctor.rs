//! `testbed doctor`: what this machine can do, and the command that mends what it can't.

use std::process::ExitCode;

use super::{Code, Global, Outcome, print};
use crate::doctor::{Facts, Sources, examine};

const EXAMPLES: &str = "\
Exit code 3 if no lab can be brought up here.

Examples:
  testbed doctor
  testbed doctor --json | jq '.checks[] | select(.status != \"ok\")'";

/// Say what this machine can do, what it can't and the command that mends it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        let report = examine(&Facts::gather(Sources::system()));
        let text = if global.json {
            serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
        } else {
            report.render(global.color_stdout())
        };
        print(text);
        Ok(if report.able { ExitCode::SUCCESS } else { Code::Machine.into() })
    }
}
