//! `rdma-fetch`: fetches a URL over HTTP, the body by RDMA where the server can.

use std::process::ExitCode;

fn main() -> ExitCode {
    rdma_http::cli::fetch::main(std::env::args_os())
}
