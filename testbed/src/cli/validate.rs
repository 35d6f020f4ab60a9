//! `testbed validate`: whether topology files are good, before anything is built.

use std::process::ExitCode;

use serde::Serialize;

use super::{Code, Failure, Global, Outcome, say};
use crate::topology::{self, Plan, TopologyError};

const EXAMPLES: &str = "\
Examples:
  testbed validate                       every topology that has a name
  testbed validate my-lab.toml -         a file, and standard input
  testbed validate --schema > topology.schema.json";

/// Check topology files; every mistake is shown with its line and column.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Names, paths or `-`; every topology that has a name by default.
    topologies: Vec<String>,
    /// Print the JSON Schema of topology files instead, for editors.
    #[arg(long, env = "TESTBED_VALIDATE_SCHEMA", hide_env_values = true, conflicts_with = "topologies")]
    schema: bool,
}

/// What was found of one topology.
#[derive(Serialize)]
struct Verdict {
    topology: String,
    valid: bool,
    hosts: usize,
    links: usize,
    problems: Vec<Place>,
}

#[derive(Serialize)]
struct Place {
    line: Option<usize>,
    column: Option<usize>,
    message: String,
    help: Option<String>,
}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        if self.schema {
            say(format_args!("{:#}", topology::json_schema()));
            return Ok(ExitCode::SUCCESS);
        }
        let topologies = if self.topologies.is_empty() {
            topology::known().into_iter().map(|known| known.name).collect()
        } else {
            self.topologies
        };
        let mut verdicts = Vec::new();
        for spec in topologies {
            let loaded = topology::load(&spec);
            verdicts.push(Verdict::new(spec, &loaded));
            if global.json {
                continue;
            }
            match loaded {
                Ok(plan) if !global.quiet => {
                    say(format_args!("{}: good ({})", plan.name, size(&plan)));
                }
                Ok(_) => {}
                Err(error) => Failure::from(error).print(global),
            }
        }
        if global.json {
            say(serde_json::to_string_pretty(&verdicts).unwrap_or_default());
        }
        let good = verdicts.iter().all(|verdict| verdict.valid);
        Ok(if good { Code::Expected } else { Code::Usage }.into())
    }
}

impl From<TopologyError> for Failure {
    fn from(error: TopologyError) -> Self {
        Self::from_diagnostic(Code::Usage, error)
    }
}

impl Verdict {
    fn new(topology: String, loaded: &Result<Plan, TopologyError>) -> Self {
        let (hosts, links) = loaded.as_ref().map_or((0, 0), |plan| (plan.hosts.len(), plan.links.len()));
        let problems = match loaded {
            Ok(_) => Vec::new(),
            Err(TopologyError::Invalid(invalid)) => invalid
                .problems()
                .iter()
                .map(|problem| Place {
                    line: Some(problem.line()),
                    column: Some(problem.column()),
                    message: problem.message().to_owned(),
                    help: problem.help().map(str::to_owned),
                })
                .collect(),
            Err(other) => {
                let help = miette::Diagnostic::help(other).map(|help| help.to_string());
                vec![Place { line: None, column: None, message: other.to_string(), help }]
            }
        };
        Self { topology, valid: loaded.is_ok(), hosts, links, problems }
    }
}

fn size(plan: &Plan) -> String {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    format!("{}, {}", count(plan.hosts.len(), "host"), count(plan.links.len(), "link"))
}
