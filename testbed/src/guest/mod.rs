//! Where the agent runs: on this machine's kernel, or on one of its own in a guest. [`host`] brings labs up and down in
//! either.
//!
//! [`choice`] decides where. A guest ([`machine`]) is reached over one serial line ([`mux`]); a lab that goes on when
//! `up` has ended has a [`keeper`], which makes it look like any other. Its first process ([`init`]) takes an [`order`] and starts the
//! agent, the same one as on the machine itself.

pub mod choice;
pub mod console;
mod device;
pub mod host;
pub mod init;
pub mod keeper;
mod leash;
mod line;
pub mod machine;
pub mod mux;
pub mod order;
pub mod qemu;
mod uml;
