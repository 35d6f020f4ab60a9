//! User-space iWARP (RFC 5040, 5041, 5044, 6581) as a sans-IO state machine: bytes in, events and bytes out; no
//! sockets, no clock.
//!
//! From the wire upwards: [`mpa`] is what both sides say before the first FPDU, [`fpdu`] frames what follows, [`ddp`]
//! says where a segment's bytes belong, [`rdmap`] what they are for, [`terminate`] why a stream ends. [`decode`] reads a
//! captured conversation with these. [`connection`] takes part in one: [`negotiate`] settles its terms, and [`memory`] is
//! what it asks of its driver.

#![forbid(unsafe_code)]

use std::fmt;

pub mod connection;
mod crc;
pub mod ddp;
pub mod decode;
pub mod fpdu;
pub mod memory;
pub mod mpa;
pub mod negotiate;
pub mod rdmap;
pub mod terminate;

#[cfg(test)]
pub(crate) mod golden;

/// A steering tag: the 32-bit name of a region on the wire (RFC 5040, section 1.1). Opaque; all 32 bits must match.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Stag(pub u32);

impl fmt::Debug for Stag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stag({:#010x})", self.0)
    }
}

impl fmt::Display for Stag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}
