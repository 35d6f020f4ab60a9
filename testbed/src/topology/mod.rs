//! A file -> a checked [`Topology`] -> a [`Plan`].
//!
//! ```toml
//! name = "wan-10g"
//! [hosts.server]
//! [hosts.client]
//! [[links]]
//! endpoints = ["server:eth0", "client:eth0"]
//! rate = "10 Gbit/s"
//! delay = "25 ms"
//! queue = "1 bdp"
//! ```
//!
//! Stages, each without privilege or network: `parse` reads TOML and notes every slip with its place, `check` sees
//! whether the parts fit each other and assigns addresses, `compile` decides all that is left (MAC addresses, bytes of
//! queues, TCP's windows). [`load`] does it all from a name or path.

mod address;
mod change;
mod check;
mod compile;
mod error;
mod find;
pub mod graph;
mod keys;
mod parse;
mod plan;
mod reader;
mod units;

use std::collections::BTreeMap;

use ipnet::IpNet;

pub use change::{Change, Limit};
pub use error::{InvalidTopology, Problem, TopologyError};
pub use find::{Known, known, load, load_topology};
pub use keys::json_schema;
pub use plan::*;
pub use units::{Probability, Queue, Rate, Size, Time, UnitError};

/// What a file says, checked: it can be made into a [`Plan`] without anything going wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// In the order of the file.
    pub hosts: Vec<Host>,
    /// In the order of the file.
    pub links: Vec<Link>,
}

/// A host.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// A lower-case DNS label.
    pub name: String,
    /// The settings that the file gives; they win over the derived ones.
    pub sysctls: BTreeMap<String, String>,
}

/// A link.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Its name, unique.
    pub name: String,
    /// Its two ends: hosts that are there, interfaces that no other link uses.
    pub ends: [End; 2],
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// Who carries the frames.
    pub driver: Driver,
    /// From the first end to the second.
    pub a_to_b: Direction,
    /// From the second end to the first.
    pub b_to_a: Direction,
}

/// One end of a link.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// The host and its interface.
    pub endpoint: Endpoint,
    /// Given or assigned; in one subnet with the other end's, and nobody else's.
    pub address: IpNet,
}

/// What one direction of a link does to frames.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Direction {
    /// Added to every frame.
    pub delay: Time,
    /// Standard deviation of the delay, at most the delay.
    pub jitter: Time,
    /// `None` is unlimited.
    pub rate: Option<Rate>,
    /// What may wait for the rate; `None` is unlimited.
    pub queue: Option<Queue>,
    /// Of a frame being lost.
    pub loss: Probability,
    /// Of a frame overtaking those before it.
    pub reorder: Probability,
    /// Of a frame arriving twice.
    pub duplicate: Probability,
    /// Of a frame having a bit flipped.
    pub corrupt: Probability,
}

impl Topology {
    /// Reads and checks a topology. `origin` names the text in messages; its last part without `.toml` is the
    /// topology's name if the text gives none.
    pub fn parse(origin: &str, text: &str) -> Result<Self, InvalidTopology> {
        let mut findings = error::Findings::default();
        let file = parse::file(text, &mut findings);
        let topology = check::check(file, origin, text, &mut findings);
        findings.into_result(origin, text)?;
        Ok(topology)
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
