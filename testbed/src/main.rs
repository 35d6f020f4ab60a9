//! `testbed`: see `--help`. Called as `rdma-httpd` or `rdma-fetch` it is that program: a lab's `bin/` holds links to this
//! very file, so that whoever has `testbed` can deploy the system.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let program = args.first().and_then(|name| Path::new(name).file_name()).and_then(|name| name.to_str());
    match program {
        Some("rdma-httpd") => rdma_http::cli::httpd::main(args),
        Some("rdma-fetch") => rdma_http::cli::fetch::main(args),
        _ => testbed::cli::main(args),
    }
}
