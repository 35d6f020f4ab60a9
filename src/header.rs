//! The `RDMA:` header field, parsed and printed.
