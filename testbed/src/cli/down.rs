//! `testbed down`: takes labs down.

use std::process::ExitCode;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use serde_json::json;

use super::lab::{choose, seconds};
use super::{Failure, Global, Outcome, block_on, say};
use crate::agent::runtime::{LabName, Runtime};
use crate::guest::host::{self, Down};

const EXAMPLES: &str = "\
Examples:
  testbed down                the only lab, and what dead ones left
  testbed down wan-10g
  testbed down --all          all of this user's, and what dead ones left";

/// Take a lab down: end its commands, then everything else. Doing it twice is fine.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The labs; may be left out while only one is up.
    labs: Vec<LabName>,
    /// All of this user's labs.
    #[arg(short, long, env = "TESTBED_DOWN_ALL", value_parser = FalseyValueParser::new(), hide_env_values = true, conflicts_with = "labs")]
    all: bool,
    /// How long a lab may take to go in order; then it is killed.
    #[arg(long, env = "TESTBED_DOWN_TIMEOUT", value_name = "SECONDS", value_parser = seconds, default_value = "10", hide_env_values = true)]
    timeout: Duration,
}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        let runtime = Runtime::locate();
        let mut outcomes = Vec::new();
        let labs = if self.all {
            runtime.labs()?
        } else if self.labs.is_empty() {
            outcomes.extend(host::sweep(&runtime)?.into_iter().map(|lab| (lab, Down::Cleared)));
            match runtime.labs()?.as_slice() {
                [] => Vec::new(),
                _ => vec![choose(None)?],
            }
        } else {
            self.labs.iter().map(|name| runtime.lab(name)).collect()
        };
        let mut failure: Option<Failure> = None;
        for lab in labs {
            match block_on(async { Ok(host::down(&lab, self.timeout).await?) }) {
                Ok(down) => outcomes.push((lab.name().clone(), down)),
                Err(error) => {
                    // The others shall still go.
                    if let Some(before) = failure.replace(error) {
                        before.print(global);
                    }
                }
            }
        }
        if global.json {
            let labs: Vec<_> =
                outcomes.iter().map(|(lab, down)| json!({ "lab": lab, "outcome": down })).collect();
            say(format_args!("{:#}", json!(labs)));
        } else if !global.quiet {
            if outcomes.is_empty() && failure.is_none() {
                say(format_args!("no lab is up"));
            }
            for (lab, down) in &outcomes {
                say(format_args!("lab {lab} {}", words(*down)));
            }
        }
        failure.map_or(Ok(ExitCode::SUCCESS), Err)
    }
}

fn words(down: Down) -> &'static str {
    match down {
        Down::Ended => "is down",
        Down::Killed => "is down (its agent did not answer and was killed)",
        Down::Cleared => "was dead; what it left is cleared",
        Down::WasNotUp => "was not up",
    }
}
