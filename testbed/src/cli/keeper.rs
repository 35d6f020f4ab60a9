//! `testbed keeper`: hidden, since `testbed up` starts it.

use std::path::PathBuf;

use super::{Global, Outcome};
use crate::guest::keeper;

/// Keep a lab in a guest (started by `testbed up`, which passes it three descriptors).
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The lab's directory.
    directory: PathBuf,
}

impl Args {
    pub(super) fn run(self, _global: &Global) -> Outcome {
        Ok(keeper::main(&self.directory))
    }
}
