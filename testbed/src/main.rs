//! `testbed`: see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    testbed::cli::main(std::env::args_os().collect())
}
