//! `testbed graph`: a topology as a picture.

use std::process::ExitCode;

use clap::ValueEnum;

use super::{Global, Outcome, print};
use crate::topology::{self, graph};

const EXAMPLES: &str = "\
Examples:
  testbed graph wan-10g
  testbed graph wan-10g --format dot | dot -Tsvg > wan-10g.svg
  testbed graph my-lab.toml --format mermaid";

/// Draw a topology: hosts, addresses, links and what they do to frames.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A name, a path or `-`.
    #[arg(default_value = "wan-10g")]
    topology: String,
    /// What to draw it in. (With --json the plan itself is printed.)
    #[arg(long, env = "TESTBED_GRAPH_FORMAT", default_value = "text", hide_env_values = true)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A tree.
    Text,
    /// For graphviz.
    Dot,
    /// For Markdown.
    Mermaid,
}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        let plan = topology::load(&self.topology)?;
        let drawn = match self.format {
            _ if global.json => serde_json::to_string_pretty(&plan).unwrap_or_default() + "\n",
            Format::Text => graph::text(&plan),
            Format::Dot => graph::dot(&plan),
            Format::Mermaid => graph::mermaid(&plan),
        };
        print(drawn);
        Ok(ExitCode::SUCCESS)
    }
}
