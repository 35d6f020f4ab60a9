//! How many round trips each request of a client takes: from its first byte to the last of its response, by the delay of
//! the link between the two hosts. What the protocol states of its ways of connecting (`docs/protocol.md`, section 3) is
//! held to this.

use std::time::Duration;

use rdma_http::events::{Event, Record};
use serde::{Deserialize, Serialize};

use crate::topology::Plan;

/// Round trips of a run's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTrips {
    /// What one takes: the link's delay there and back.
    pub one: Duration,
    /// What the client asked, in order.
    pub requests: Vec<Request>,
}

/// Something that the client asked, with what it had to ask first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Methods and targets.
    pub asked: Vec<String>,
    /// From the first byte of the first request to the last of the last response.
    pub took: Duration,
}

impl Request {
    /// Tenths of a round trip, rounded to the nearest: what computing takes, or a frame at the link's rate, is far less.
    pub fn tenths(&self, one: Duration) -> u64 {
        let (took, one) = (self.took.as_micros(), one.as_micros().max(1));
        u64::try_from((took * 20 + one) / (one * 2)).unwrap_or(u64::MAX)
    }
}

impl RoundTrips {
    /// Each request's, as a golden has it: `3`, or `3.5`.
    pub fn counts(&self) -> impl Iterator<Item = (String, String)> {
        self.requests.iter().map(|request| {
            let tenths = request.tenths(self.one);
            let count = match tenths % 10 {
                0 => format!("{}", tenths / 10),
                part => format!("{}.{part}", tenths / 10),
            };
            (request.asked.join(", "), count)
        })
    }
}

/// What a client's events tell of its requests. A request without a body of its own, such as that for an introduction,
/// belongs to the next one.
pub(super) fn requests(records: &[Record]) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    let (mut began, mut over) = (0, true);
    for record in records {
        match &record.event {
            Event::HttpRequest { method, target, .. } => {
                if std::mem::replace(&mut over, false) {
                    began = record.at_us;
                    requests.push(Request { asked: Vec::new(), took: Duration::ZERO });
                }
                if let Some(last) = requests.last_mut() {
                    last.asked.push(format!("{method} {target}"));
                }
            }
            Event::HttpResponse { .. } | Event::BodyReceived { .. } => {
                if let Some(last) = requests.last_mut() {
                    last.took = Duration::from_micros(record.at_us.saturating_sub(began));
                }
                over |= matches!(record.event, Event::BodyReceived { .. });
            }
            _ => {}
        }
    }
    requests
}

/// What a round trip between two hosts takes, if a single link joins them.
pub(super) fn round_trip(plan: &Plan, one: &str, other: &str) -> Option<Duration> {
    let joins = |a: &str, b: &str| (a, b) == (one, other) || (b, a) == (one, other);
    let link = plan.links.iter().find(|link| joins(&link.a.host, &link.b.host))?;
    Some(link.a_to_b.delay + link.b_to_a.delay).filter(|delay| !delay.is_zero())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;

    fn asks(at_us: u64, method: &str, target: &str) -> Record {
        let (method, target) = (method.to_owned(), target.to_owned());
        Record { at_us, event: Event::HttpRequest { exchange: 1, method, target, headers: vec![] } }
    }

    fn answer(at_us: u64) -> Record {
        Record { at_us, event: Event::HttpResponse { exchange: 1, status: 200, headers: vec![] } }
    }

    fn body(at_us: u64) -> Record {
        Record { at_us, event: Event::BodyReceived { via: "rdma".into(), length: 1 } }
    }

    #[test]
    fn a_request_ends_with_its_body_and_an_introduction_belongs_to_the_next() {
        let records = [
            asks(1000, "OPTIONS", "*"),
            answer(51_000),
            asks(151_000, "GET", "/x"),
            answer(200_000),
            body(201_100),
            asks(300_000, "GET", "/y"),
            answer(374_000),
        ];
        let trips = RoundTrips { one: Duration::from_millis(50), requests: requests(&records) };
        let counts: Vec<(String, String)> = trips.counts().collect();
        let expected = [("OPTIONS *, GET /x", "4"), ("GET /y", "1.5")];
        assert_eq!(counts, expected.map(|(asked, count)| (asked.to_owned(), count.to_owned())));
    }

    #[test]
    fn a_round_trip_is_the_links_delay_there_and_back() {
        let plan = crate::topology::load("wan-10g").unwrap();
        assert_eq!(round_trip(&plan, "client", "server"), Some(Duration::from_millis(50)));
        assert_eq!(round_trip(&plan, "client", "nobody"), None);
        assert_eq!(round_trip(&crate::topology::load("direct").unwrap(), "server", "client"), None);
    }

    const BEGIN: &str =
        "<!-- round trips: made of the goldens by a test; BLESS_DOCS=1 writes them anew -->\n";
    const END: &str = "<!-- end -->\n";
    const FABRICS: [&str; 3] = ["soft", "siw", "rxe"];

    /// The counts in a golden: first and later request.
    fn golden(path: &Path) -> String {
        let text = std::fs::read_to_string(path).unwrap();
        let section = text.lines().skip_while(|line| !line.starts_with("round trips")).skip(1);
        let counts = section.take_while(|line| line.starts_with("  "));
        let counts: Vec<&str> = counts.map(|line| line.rsplit(": ").next().unwrap()).collect();
        assert_eq!(counts.len(), 2, "{}: a first and a later request", path.display());
        counts.join(", ")
    }

    fn table() -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/snapshots");
        let mut rows: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let Some(name) = name.strip_prefix("round-trips-") else { continue };
            let Some((scenario, fabric)) =
                name.strip_suffix("-times.snap").and_then(|name| name.split_once('@'))
            else {
                continue;
            };
            rows.entry(scenario.to_owned()).or_default().insert(fabric.to_owned(), golden(&path));
        }
        let mut page =
            format!("{BEGIN}| first, later request | {} |\n|---|---|---|---|\n", FABRICS.join(" | "));
        for (scenario, by_fabric) in rows {
            let cells = FABRICS.map(|fabric| by_fabric.get(fabric).map_or("-", String::as_str));
            writeln!(page, "| `round-trips-{scenario}` | {} |", cells.join(" | ")).unwrap();
        }
        page + END
    }

    #[test]
    fn the_protocol_states_the_round_trips_of_the_goldens() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
        let page = std::fs::read_to_string(&file).unwrap();
        let begin = page.find(BEGIN).expect("where the table begins");
        let end = begin + page[begin..].find(END).expect("where the table ends") + END.len();
        if std::env::var_os("BLESS_DOCS").is_some() {
            std::fs::write(&file, [&page[..begin], &table(), &page[end..]].concat()).unwrap();
        } else {
            assert_eq!(page[begin..end], table(), "BLESS_DOCS=1 writes the table of docs/protocol.md anew");
        }
    }
}
