//! The owner of a lab, and the protocol that it speaks.
//!
//! [`launcher`] turns a process that `testbed up` spawned into PID 1 and the agent of namespaces of their own; the agent
//! builds the lab and serves; [`client`] speaks to it from outside. What they share on the disk is in [`runtime`], what
//! they say to each other in [`protocol`], how that is framed in [`frame`].

pub mod client;
pub mod frame;
pub mod launcher;
pub mod protocol;
pub mod runtime;

mod command;
mod commands;
pub(crate) mod init;
mod lookup;
mod mounts;
pub(crate) mod namespaces;
mod refusal;
pub(crate) mod server;
pub(crate) mod shares;
mod spawn;
