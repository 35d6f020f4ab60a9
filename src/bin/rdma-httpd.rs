//! `rdma-httpd`: serves a directory over HTTP, by RDMA to whoever asks for it.

use std::process::ExitCode;

fn main() -> ExitCode {
    rdma_http::cli::httpd::main(std::env::args_os())
}
