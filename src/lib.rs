//! HTTP whose bodies travel by RDMA.
//!
//! An ordinary request carries one more header, `RDMA: server-writes, ip=…, port=…, stag=…, to=0, maxlen=…`; the body
//! then goes by RDMA straight into the memory that the header advertises, and anything that cannot be carried so goes
//! over TCP as ever. The protocol is written down in `docs/protocol.md`, the map of the code in `ARCHITECTURE.md`.

pub mod channel;
pub mod cli;
pub mod client;
pub mod events;
pub mod fabric;
pub mod flow;
pub mod header;
pub mod in_place;
pub mod iwarp;
pub mod memory;
pub mod message;
mod reach;
pub mod seal;
pub mod server;
pub mod tls;
