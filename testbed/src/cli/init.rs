//! `testbed init`: hidden, since a guest's kernel starts it.

use super::{Global, Outcome};
use crate::guest::init;

/// Be the first process of a guest (started by the guest's kernel).
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

impl Args {
    pub(super) fn run(self, _global: &Global) -> Outcome {
        Ok(init::main())
    }
}
