//! The client library: a GET whose body arrives by RDMA where the server can, by TCP where it cannot.
