//! `testbed agent`: hidden, since `testbed up` starts it.

use std::path::PathBuf;

use super::{Global, Outcome};
use crate::agent::launcher;

/// Own a lab (started by `testbed up`, which passes it three descriptors).
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The lab's directory.
    directory: PathBuf,
    /// What the lab lives on.
    #[arg(long, env = "TESTBED_AGENT_KERNEL", default_value = "host", hide_env_values = true)]
    kernel: String,
}

impl Args {
    pub(super) fn run(self, _global: &Global) -> Outcome {
        Ok(launcher::main(&self.directory, &self.kernel))
    }
}
