//! The owner of a lab, and the protocol that it speaks.

pub mod protocol;
