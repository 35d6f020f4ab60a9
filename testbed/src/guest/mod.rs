//! Where the agent runs: on this machine's kernel ([`host`]), or on one of its own in a guest ([`uml`]).
//!
//! [`choice`] decides which. A guest is reached over one serial line ([`mux`]). Its first process ([`init`]) takes an [`order`] and starts the
//! agent, the same one as on the machine itself.

pub mod choice;
pub mod console;
pub mod host;
pub mod init;
pub mod mux;
pub mod order;
pub mod uml;
