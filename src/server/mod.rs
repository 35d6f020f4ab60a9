//! A tower layer that adds RDMA to any HTTP service without changing it, and the static file service.
