//! Everything that a scenario's run showed. Raw facts: what is volatile in them gets its stable name when the golden text
//! is made ([`crate::golden`]).
//!
//! A program's events are grouped by kind. Within a kind they keep their order; between kinds the order is a matter of
//! threads and time, and no observation may depend on it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use rdma_http::events::{Event, Record};
use serde::{Deserialize, Serialize};

use super::body::Content;
use super::wire::Conversation;
use super::{Fabrics, Timeline};
use crate::agent::protocol::Exit;
use crate::guest::choice::Clock;

/// Everything that a scenario's run showed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// The scenario's name.
    pub scenario: String,
    /// What carried RDMA.
    pub fabrics: Fabrics,
    /// What is known of the place, for naming.
    pub place: Place,
    /// The client program.
    pub client: Side,
    /// The server program.
    pub server: Side,
    /// The file that the client asked for, by its target, if the server has it.
    pub served: Option<Content>,
    /// What the client wrote to disk.
    pub arrived: Option<Content>,
    /// What went over the wire.
    pub wire: Conversation,
    /// When things happened.
    pub timeline: Timeline,
    /// On which clock: on a virtual one, times are the same from run to run.
    pub clock: Clock,
}

/// What is known of the place that a scenario ran in: addresses and directories have names of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Address -> host; also `nobody`, for the address that no host has.
    pub addresses: BTreeMap<IpAddr, String>,
    /// Where the run's files were.
    pub work: PathBuf,
}

/// What one program did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Its name.
    pub program: String,
    /// How it ended.
    pub exit: Option<Exit>,
    /// HTTP exchanges, in order.
    pub exchanges: Vec<Exchange>,
    /// RDMA operations that completed here, in order.
    pub operations: Vec<Operation>,
    /// Regions, in the order of registration.
    pub regions: Vec<Region>,
    /// RDMA connections, in the order of their being established.
    pub connections: Vec<Connection>,
    /// What each connection's memory took: the strategy, how often it was registered, and bytes copied.
    #[serde(default)]
    pub memory: Vec<(String, u64, u64)>,
    /// Reasons for falling back to TCP, in order.
    pub fallbacks: Vec<String>,
    /// Bodies that arrived here, in order: by what, and how many bytes.
    pub bodies: Vec<(String, u64)>,
    /// `RDMA:` fields that were ignored, and why.
    pub ignored: Vec<String>,
    /// What failed, in the user's words.
    pub errors: Vec<String>,
    /// Events that do not add up, in words: a release without a registration, a close without an open.
    pub inconsistencies: Vec<String>,
}

/// One request and its response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// The number that the program gave it.
    pub number: u64,
    /// Method and target; `None` if the program did not report a request.
    pub request: Option<(String, String)>,
    /// The request's fields.
    pub request_headers: Vec<(String, String)>,
    /// The status code; `None` if there was no response.
    pub status: Option<u16>,
    /// The response's fields.
    pub response_headers: Vec<(String, String)>,
}

/// An RDMA operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// `write`, `read`, `send` or `receive`.
    pub op: String,
    /// Bytes.
    pub length: u64,
    /// The remote region and the tagged offset in it.
    pub remote: Option<(u32, u64)>,
}

/// A region of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its STag.
    pub stag: u32,
    /// Bytes.
    pub length: u64,
    /// What the peer may do to it.
    pub access: String,
    /// The tagged offset of its first byte.
    #[serde(default)]
    pub base: u64,
    /// Whether its registration ended.
    pub released: bool,
}

/// An RDMA connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// This side's address.
    pub local: SocketAddr,
    /// The other side's.
    pub peer: SocketAddr,
    /// Whether this side connected.
    pub initiator: bool,
    /// Whether it was closed.
    pub closed: bool,
}

impl Side {
    /// Groups a program's events.
    pub fn new(program: &str, exit: Option<Exit>, records: &[Record]) -> Self {
        let mut side = Self { program: program.to_owned(), exit, ..Self::default() };
        for record in records {
            side.add(&record.event);
        }
        side
    }

    fn exchange(&mut self, number: u64) -> &mut Exchange {
        let index = match self.exchanges.iter().position(|exchange| exchange.number == number) {
            Some(index) => index,
            None => {
                self.exchanges.push(Exchange { number, ..Exchange::default() });
                self.exchanges.len() - 1
            }
        };
        &mut self.exchanges[index]
    }

    fn add(&mut self, event: &Event) {
        match event.clone() {
            Event::Listening { .. } => {}
            Event::HttpRequest { exchange, method, target, headers } => {
                let exchange = self.exchange(exchange);
                exchange.request = Some((method, target));
                exchange.request_headers = headers;
            }
            Event::HttpResponse { exchange, status, headers } => {
                let exchange = self.exchange(exchange);
                exchange.status = Some(status);
                exchange.response_headers = headers;
            }
            Event::RegionRegistered { stag, length, access, base } => {
                self.regions.push(Region { stag, length, access, base, released: false });
            }
            Event::RegionReleased { stag } => {
                // An STag may be used again once it is free.
                let region = self.regions.iter_mut().find(|region| region.stag == stag && !region.released);
                match region {
                    Some(region) => region.released = true,
                    None => {
                        self.inconsistencies.push("a region was released that was not registered".to_owned())
                    }
                }
            }
            // How much was pinned at one time is a matter of time.
            Event::Memory { strategy, registrations, copied, .. } => {
                self.memory.push((strategy, registrations, copied));
            }
            Event::RdmaConnected { local, peer, initiator } => {
                self.connections.push(Connection { local, peer, initiator, closed: false });
            }
            Event::RdmaClosed { local, peer } => {
                let mut connections = self.connections.iter_mut();
                match connections
                    .find(|known| (known.local, known.peer, known.closed) == (local, peer, false))
                {
                    Some(connection) => connection.closed = true,
                    None => self.inconsistencies.push("a connection was closed that was not open".to_owned()),
                }
            }
            Event::Operation { op, length, stag, to } => {
                self.operations.push(Operation {
                    op,
                    length,
                    remote: stag.map(|stag| (stag, to.unwrap_or(0))),
                });
            }
            Event::Fallback { reason } => self.fallbacks.push(reason),
            Event::HeaderIgnored { error } => self.ignored.push(error),
            Event::BodyReceived { via, length } => self.bodies.push((via, length)),
            Event::Failed { error } => self.errors.push(error),
            other => {
                self.inconsistencies.push(format!("an event that this testbed does not know: {other:?}"))
            }
        }
    }
}

impl Observation {
    /// What is wrong whatever the golden says: leaks, damaged bodies, a wire that breaks its protocol.
    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (side, name) in [(&self.client, "client"), (&self.server, "server")] {
            for region in side.regions.iter().filter(|region| !region.released) {
                found.push(format!("leak: the {name} never released a region of {} bytes", region.length));
            }
            for connection in side.connections.iter().filter(|connection| !connection.closed) {
                let how = if connection.initiator { "made to" } else { "accepted from" };
                let peer = connection.peer;
                found.push(format!("leak: the {name} never closed the RDMA connection that it {how} {peer}"));
            }
            found.extend(side.inconsistencies.iter().map(|what| format!("the {name}'s events: {what}")));
        }
        if let (Some(served), Some(arrived)) = (&self.served, &self.arrived)
            && self.client.exit == Some(Exit::Code(0))
            && served != arrived
            // A part, or nothing at all, is not the whole.
            && self.client.exchanges.last().is_none_or(|last| last.status != Some(206) && last.status != Some(416))
        {
            let (there, here) = (served.length, arrived.length);
            found.push(format!(
                "damage: the client reported success, but of the {there} bytes served {here} others arrived"
            ));
        }
        found.extend(self.wire.violations());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: Event) -> Record {
        Record { at_us: 0, event }
    }

    fn registered(stag: u32) -> Record {
        record(Event::RegionRegistered { stag, length: 10, access: "remote-write".to_owned(), base: 0 })
    }

    fn observation(client: &[Record]) -> Observation {
        Observation {
            scenario: "x".to_owned(),
            fabrics: Fabrics::both(rdma_http::fabric::FabricKind::Soft),
            place: Place::default(),
            client: Side::new("rdma-fetch", Some(Exit::Code(0)), client),
            server: Side::default(),
            served: None,
            arrived: None,
            wire: Conversation::default(),
            timeline: Timeline::default(),
            clock: Clock::Wall,
        }
    }

    #[test]
    fn a_region_that_is_not_released_is_a_leak() {
        let released = record(Event::RegionReleased { stag: 1 });
        assert_eq!(observation(&[registered(1), released.clone()]).violations(), [""; 0]);
        let again = [registered(1), released.clone(), registered(1)];
        assert!(observation(&again).violations()[0].contains("never released a region of 10 bytes"));
        assert!(observation(&[released]).violations()[0].contains("was not registered"));
    }

    #[test]
    fn a_connection_that_is_not_closed_is_a_leak() {
        let (local, peer) = ("10.0.0.2:1".parse().unwrap(), "10.0.0.1:2".parse().unwrap());
        let connected = record(Event::RdmaConnected { local, peer, initiator: false });
        let closed = record(Event::RdmaClosed { local, peer });
        assert!(observation(std::slice::from_ref(&connected)).violations()[0].contains("accepted from"));
        assert_eq!(observation(&[connected, closed]).violations(), [""; 0]);
    }

    #[test]
    fn a_body_that_is_not_the_one_served_is_damage() {
        let content = |sha256: &str| Some(Content { length: 3, sha256: sha256.to_owned() });
        let mut observation = observation(&[]);
        (observation.served, observation.arrived) = (content("aa"), content("aa"));
        assert_eq!(observation.violations(), [""; 0]);
        observation.arrived = content("bb");
        assert!(observation.violations()[0].starts_with("damage"));
        observation.client.exit = Some(Exit::Code(4));
        assert_eq!(observation.violations(), [""; 0], "a client that says it failed lies to nobody");
    }

    #[test]
    fn an_exchange_is_put_together_from_its_two_events() {
        let request =
            Event::HttpRequest { exchange: 1, method: "GET".into(), target: "/x".into(), headers: vec![] };
        let response =
            Event::HttpResponse { exchange: 1, status: 200, headers: vec![("a".into(), "b".into())] };
        let side = Side::new("rdma-httpd", None, &[record(request), record(response)]);
        let [exchange] = &side.exchanges[..] else { panic!("{:?}", side.exchanges) };
        assert_eq!(exchange.request, Some(("GET".into(), "/x".into())));
        assert_eq!(exchange.status, Some(200));
    }
}
