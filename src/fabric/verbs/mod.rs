//! The kernel's RDMA devices through libibverbs and librdmacm.

mod device;
mod sys;

pub use device::{Device, Port, PortState, devices};
