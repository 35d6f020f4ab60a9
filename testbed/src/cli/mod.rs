//! The command line: one file a verb, thin.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program with `args` (the first is its own name) and returns its exit code.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let _ = args;
    ExitCode::FAILURE
}
