//! Where the agent runs: on this machine's kernel ([`host`]), later in a UML or QEMU guest.

pub mod host;
pub mod mux;
