//! The programs `rdma-httpd` and `rdma-fetch`, as functions, so that `testbed` can carry them inside its own binary.

pub mod fetch;
pub mod httpd;

mod allocator;
mod common;
mod descriptors;
mod jobs;
mod output;
mod progress;
mod settings;
mod verbose;
