//! When things happened, from the programs' events: what a golden on a virtual clock holds beside what happened.

use std::time::Duration;

use rdma_http::events::{Event, Record};
use serde::{Deserialize, Serialize};

use super::RoundTrips;

/// When things happened in a run of a scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// How long it took until both programs had ended, on the lab's clock.
    pub took: Duration,
    /// When the client program was started, since the Unix epoch: what the times of the wire count from.
    pub start: Duration,
    /// What the client did.
    pub client: Vec<Moment>,
    /// What the server did.
    pub server: Vec<Moment>,
    /// Round trips of the client's requests, if the scenario wants them counted.
    #[serde(default)]
    pub round_trips: Option<RoundTrips>,
}

/// Something that happened, once or several times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// What.
    pub what: String,
    /// How often.
    pub count: usize,
    /// The first time, in microseconds since the client program was started.
    pub first_us: i64,
    /// The last time.
    pub last_us: i64,
}

/// Groups a program's events by what they tell, in an order that does not depend on threads: that of a program's part in
/// a [`Side`](super::Side). `start_us` is the client program's start on the events' clock.
pub(crate) fn moments(records: &[Record], start_us: u64) -> Vec<Moment> {
    let mut ranked: Vec<(u8, Moment)> = Vec::new();
    for record in records {
        let Some((rank, what)) = told(&record.event) else { continue };
        let at =
            i64::try_from(record.at_us).unwrap_or(i64::MAX) - i64::try_from(start_us).unwrap_or(i64::MAX);
        match ranked.iter_mut().find(|(_, moment)| moment.what == what) {
            Some((_, moment)) => {
                moment.count += 1;
                moment.last_us = at;
            }
            None => ranked.push((rank, Moment { what, count: 1, first_us: at, last_us: at })),
        }
    }
    ranked.sort_by(|(a, first), (b, second)| (a, &first.what).cmp(&(b, &second.what)));
    ranked.into_iter().map(|(_, moment)| moment).collect()
}

/// A kind's place in the order, and its name.
fn told(event: &Event) -> Option<(u8, String)> {
    let plain = |rank: u8, what: &str| Some((rank, what.to_owned()));
    match event {
        Event::HttpRequest { exchange, .. } => Some((0, format!("request {exchange}"))),
        Event::HttpResponse { exchange, .. } => Some((1, format!("response {exchange}"))),
        Event::Operation { op, .. } => Some((2, op.clone())),
        Event::RegionRegistered { .. } => plain(3, "region registered"),
        Event::RegionReleased { .. } => plain(4, "region released"),
        Event::RdmaConnected { initiator: true, .. } => plain(5, "connection made"),
        Event::RdmaConnected { .. } => plain(5, "connection accepted"),
        Event::RdmaClosed { .. } => plain(6, "connection closed"),
        Event::Fallback { .. } => plain(7, "fallback to TCP"),
        Event::BodyReceived { via, .. } => Some((8, format!("body received by {via}"))),
        Event::Failed { .. } => plain(9, "failure"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at_us: u64, event: Event) -> Record {
        Record { at_us, event }
    }

    fn write(at_us: u64) -> Record {
        record(at_us, Event::Operation { op: "write".into(), length: 1, stag: None, to: None })
    }

    #[test]
    fn events_are_counted_from_the_clients_start_and_grouped_in_a_fixed_order() {
        let request =
            Event::HttpRequest { exchange: 1, method: "GET".into(), target: "/".into(), headers: vec![] };
        let region = Event::RegionRegistered { stag: 1, length: 1, access: "none".into(), base: 0 };
        let records = [record(90, region), write(150), record(120, request), write(170)];
        let moment =
            |what: &str, count, first_us, last_us| Moment { what: what.into(), count, first_us, last_us };
        let expected = [
            moment("request 1", 1, 20, 20),
            moment("write", 2, 50, 70),
            moment("region registered", 1, -10, -10),
        ];
        assert_eq!(moments(&records, 100), expected);
        let mut other = records;
        other.swap(0, 2);
        assert_eq!(moments(&other, 100), expected);
    }
}
