//! Labs of network namespaces with RDMA devices and WAN links on a commodity machine, the flows that are run in them,
//! and the verdict on what was seen.
//!
//! Data flows one way: file -> [`topology::Topology`] -> [`topology::Plan`] -> [`lab::Lab`] -> scenario -> observation
//! -> verdict -> report.

pub mod agent;
pub mod bench;
pub mod cli;
pub mod doctor;
pub mod golden;
pub mod guest;
mod handle;
pub mod kernel;
pub mod lab;
pub mod link;
pub mod report;
pub mod scenario;
pub mod topology;

pub use handle::LabHandle;
