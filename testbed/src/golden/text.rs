//! An observation -> the text that is compared: one for all fabrics, and one of what truly differs between them.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rdma_http::in_place::Frame;
use rdma_http::message::{LENGTH, Message};

use super::names::{Names, Owner};
use super::times::text as ms;
use crate::agent::protocol::Exit;
use crate::guest::choice::Clock;
use crate::scenario::wire::{CmMessage, Direction, End, Item, MpaStart, Opening, Run, WireConnection};
use crate::scenario::{Exchange, Moment, Observation, Operation, Region, Side};

/// The golden texts of an observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts {
    /// What the protocol promises on every fabric.
    pub common: String,
    /// What went over the wire.
    pub fabric: String,
    /// When it happened, on a virtual clock.
    pub times: Option<String>,
}

/// Makes the texts. The names are given in the common one first, so that it does not depend on the fabric.
pub fn texts(observation: &Observation) -> Texts {
    let mut names = Names::new(observation.place.clone());
    // Places are told from a region's beginning, which the programs also tell each other by messages.
    let clients = clients(observation);
    for (owner, stag, to) in told_regions(observation, &clients) {
        names.advertised(owner, stag, to);
    }
    for (owner, side) in [(Owner::Client, &observation.client), (Owner::Server, &observation.server)] {
        // What the peer can reach comes first: it is what is spoken of.
        let mut regions: Vec<&Region> = side.regions.iter().collect();
        regions.sort_by_key(|region| region.access == "none");
        for region in regions {
            names.advertised(owner, region.stag, region.base);
        }
    }
    let common = common(observation, &mut names);
    let fabric = wire(observation, &clients, &mut names);
    let times = (observation.clock == Clock::Virtual).then(|| times(observation, &names));
    Texts { common, fabric, times }
}

/// The addresses of the client program's host: it makes the HTTP connections.
fn clients(observation: &Observation) -> HashSet<IpAddr> {
    let http = observation.wire.connections.iter().filter(|connection| {
        connection.forth.items.iter().any(|item| matches!(item, Item::Head(_) | Item::Tls { .. }))
    });
    let told = observation.client.connections.iter().map(|connection| connection.local.ip());
    http.map(|connection| connection.initiator.ip()).chain(told).collect()
}

/// Whose regions lie at an address.
fn owner(clients: &HashSet<IpAddr>, address: SocketAddr) -> Owner {
    if clients.contains(&address.ip()) { Owner::Client } else { Owner::Server }
}

/// Regions that were told of by Sends, in order.
fn told_regions(observation: &Observation, clients: &HashSet<IpAddr>) -> Vec<(Owner, u32, u64)> {
    let mut told = Vec::new();
    for connection in &observation.wire.connections {
        for (direction, sender) in
            [(&connection.forth, connection.initiator), (&connection.back, connection.responder)]
        {
            for item in &direction.items {
                if let Item::Send { message, .. } = item
                    && let Ok(Message::Region { at, .. }) = Message::decode(message)
                {
                    told.push((owner(clients, sender), at.stag.0, at.to));
                }
            }
        }
    }
    told
}

/// Lines, indented by two spaces a level.
#[derive(Default)]
struct Page {
    text: String,
    level: usize,
}

impl Page {
    fn line(&mut self, line: impl AsRef<str>) {
        let indent = 2 * self.level;
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{:indent$}{}", "", line.as_ref().trim_end());
    }

    /// A heading with lines under it, left out if there are none.
    fn section<T>(&mut self, heading: &str, items: &[T], mut line: impl FnMut(&T) -> String) {
        if items.is_empty() {
            return;
        }
        self.line(heading);
        self.level += 1;
        for item in items {
            let text = line(item);
            self.line(text);
        }
        self.level -= 1;
    }
}

fn common(observation: &Observation, names: &mut Names) -> String {
    let mut page = Page::default();
    side(&mut page, "client", &observation.client, (Owner::Client, names));
    side(&mut page, "server", &observation.server, (Owner::Server, names));
    page.line("body");
    page.level = 1;
    match &observation.served {
        Some(served) => page.line(format!("served: {}, sha256 {}", bytes(served.length), served.sha256)),
        None => page.line("served: no such file"),
    }
    match (&observation.arrived, &observation.served) {
        (Some(arrived), Some(served)) if arrived == served => page.line("arrived: the same"),
        (Some(arrived), _) => {
            page.line(format!("arrived: {}, sha256 {}", bytes(arrived.length), arrived.sha256));
        }
        (None, _) => page.line("arrived: no file"),
    }
    page.text
}

fn side(page: &mut Page, role: &str, side: &Side, (owner, names): (Owner, &mut Names)) {
    page.line(format!("{role}: {}", side.program));
    page.level = 1;
    for exchange in &side.exchanges {
        self::exchange(page, exchange, names);
    }
    page.section("operations", &fold(&side.operations), |folded| operation(folded, owner.peer(), names));
    let alike =
        |a: &Region, b: &Region| (a.length, &a.access, a.released) == (b.length, &b.access, b.released);
    let runs: Vec<&[Region]> = side.regions.chunk_by(alike).collect();
    page.section("regions", &runs, |run| regions(run, owner, names));
    page.section("connections", &side.connections, |connection| {
        let (local, peer) = (names.address(connection.local), names.address(connection.peer));
        let how = if connection.initiator { "made to" } else { "accepted from" };
        let closed = if connection.closed { "closed" } else { "never closed" };
        format!("{how} {peer} by {local}, {closed}")
    });
    page.section("memory", &side.memory, |(strategy, registrations, copied)| {
        let plural = if *registrations == 1 { "" } else { "s" };
        format!("{strategy}: {registrations} registration{plural}, {} copied", bytes(*copied))
    });
    page.section("falls back to TCP", &side.fallbacks, Clone::clone);
    page.section("ignores the RDMA field", &side.ignored, |error| names.text(error));
    page.section("receives", &side.bodies, |(via, length)| format!("{} by {via}", bytes(*length)));
    page.section("reports", &side.errors, |error| names.text(error));
    page.line(match side.exit {
        Some(Exit::Code(code)) => format!("exit code {code}"),
        Some(Exit::Signal(signal)) => format!("killed by signal {signal}"),
        None => "did not end".to_owned(),
    });
    page.level = 0;
}

/// Regions that are alike; only the first is named, since none of the others is spoken of elsewhere.
fn regions(run: &[Region], owner: Owner, names: &mut Names) -> String {
    let [first, others @ ..] = run else { return String::new() };
    let released = if first.released { "released" } else { "never released" };
    let (name, length) = (names.stag(owner, first.stag), bytes(first.length));
    let many = match others.len() {
        0 => String::new(),
        others => format!(" and {others} more, each"),
    };
    format!("{name}{many}: {length}, peer's access {}, {released}", first.access)
}

fn bytes(count: u64) -> String {
    format!("{count} byte{}", if count == 1 { "" } else { "s" })
}

fn exchange(page: &mut Page, exchange: &Exchange, names: &mut Names) {
    page.line(format!("exchange {}", exchange.number));
    page.level += 1;
    if let Some((method, target)) = &exchange.request {
        page.line(format!("> {method} {}", names.text(target)));
        for (name, value) in &exchange.request_headers {
            page.line(format!("> {name}: {}", names.field(name, value)));
        }
    }
    match exchange.status {
        Some(status) => page.line(format!("< {status}")),
        None => page.line("< no response"),
    }
    for (name, value) in &exchange.response_headers {
        page.line(format!("< {name}: {}", names.field(name, value)));
    }
    page.level -= 1;
}

/// An operation, and how many like it followed, each continuing the one before.
struct Folded<'a> {
    first: &'a Operation,
    count: u64,
    length: u64,
}

fn fold(operations: &[Operation]) -> Vec<Folded<'_>> {
    let mut folded: Vec<Folded<'_>> = Vec::new();
    for operation in operations {
        if let Some(last) = folded.last_mut()
            && last.first.op == operation.op
            && let (Some((stag, to)), Some((next_stag, next_to))) = (last.first.remote, operation.remote)
            && stag == next_stag
            && to.checked_add(last.length) == Some(next_to)
        {
            last.count += 1;
            last.length += operation.length;
        } else {
            folded.push(Folded { first: operation, count: 1, length: operation.length });
        }
    }
    folded
}

fn operation(folded: &Folded<'_>, owner: Owner, names: &mut Names) -> String {
    let Folded { first, count, length } = folded;
    let (op, length) = (&first.op, bytes(*length));
    match (first.remote, count) {
        (None, _) => format!("{op}: {length}"),
        (Some((stag, to)), 1) => format!("{op}: {length} at {}", names.remote(owner, stag, to)),
        (Some((stag, to)), _) => {
            format!("{count} x {op}: {length}, contiguous, from {}", names.remote(owner, stag, to))
        }
    }
}

/// Times count from the start of the client program.
fn times(observation: &Observation, names: &Names) -> String {
    let mut page = Page::default();
    let timeline = &observation.timeline;
    for (role, moments) in [("client", &timeline.client), ("server", &timeline.server)] {
        page.section(role, moments, |moment| {
            let Moment { what, count, first_us, last_us } = moment;
            match count {
                1 => format!("{what}: {}", ms(*first_us)),
                _ => format!("{count} x {what}: from {} to {}", ms(*first_us), ms(*last_us)),
            }
        });
    }
    if let Some(trips) = &timeline.round_trips {
        let one = i64::try_from(trips.one.as_micros()).unwrap_or(i64::MAX);
        let counts: Vec<(String, String)> = trips.counts().collect();
        page.section(&format!("round trips of {}", ms(one)), &counts, |(asked, count)| {
            format!("{asked}: {count}")
        });
    }
    let since = |time: Duration| {
        let us = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        ms(us(time) - us(timeline.start))
    };
    for connection in &observation.wire.connections {
        let (from, to) = (names.ip(connection.initiator.ip()), names.ip(connection.responder.ip()));
        page.line(format!("wire, {from} -> {to}"));
        page.level = 1;
        if let Some(opened) = connection.opened {
            page.line(format!("opened: {}", since(opened)));
        }
        for (direction, arrow) in [(&connection.forth, '>'), (&connection.back, '<')] {
            let times = direction.times;
            if let (Some(first), Some(last)) = (times.first, times.last) {
                page.line(format!("{arrow} bytes: from {} to {}", since(first), since(last)));
            }
            if let Some(end) = times.end {
                page.line(format!("{arrow} end: {}", since(end)));
            }
        }
        page.level = 0;
    }
    page.text
}

fn wire(observation: &Observation, clients: &HashSet<IpAddr>, names: &mut Names) -> String {
    let mut page = Page::default();
    for connection in &observation.wire.connections {
        self::connection(&mut page, connection, clients, names);
    }
    for (sender, target) in &observation.wire.unanswered_arp {
        let (sender, target) = (names.ip((*sender).into()), names.ip((*target).into()));
        page.line(format!("ARP: {sender} asks for {target}; nobody answers"));
    }
    match observation.wire.exposed {
        None => {}
        Some(0) => page.line("nothing of the body in the clear"),
        Some(blocks) => page.line(format!("{blocks} blocks of the body in the clear")),
    }
    page.text
}

fn connection(page: &mut Page, connection: &WireConnection, clients: &HashSet<IpAddr>, names: &mut Names) {
    let WireConnection { initiator, responder, opening, forth, back, opened: _ } = connection;
    let (from, to) = (names.address(*initiator), names.address(*responder));
    page.line(format!(
        "{from} -> {to}: {}",
        match opening {
            Opening::Established => "established",
            Opening::Refused => "refused",
            Opening::Unanswered => "no answer",
            Opening::Unseen => "already open",
        }
    ));
    if *opening == Opening::Refused || *opening == Opening::Unanswered {
        return;
    }
    page.level = 1;
    for (direction, arrow, from) in [(forth, '>', initiator), (back, '<', responder)] {
        for item in &direction.items {
            self::item(page, arrow, item, (owner(clients, *from), names));
        }
        if let Some(verdict) = crc(direction) {
            page.line(format!("{arrow} {verdict}"));
        }
        page.line(format!(
            "{arrow} {}",
            match direction.end {
                End::Open => "left open",
                End::Fin => "FIN",
                End::Reset => "RST",
                End::Disconnected => "disconnected",
            }
        ));
    }
    page.level = 0;
}

/// In words, since the number of FPDUs is a matter of segmentation.
fn crc(direction: &Direction) -> Option<String> {
    let tally = direction.crc;
    match (tally.good, tally.bad, tally.unchecked) {
        (0, 0, 0) => None,
        (_, 0, 0) => Some("CRC: all good".to_owned()),
        (0, 0, _) => Some("CRC: not in use".to_owned()),
        (_, 0, _) => Some("CRC: good, but not in every FPDU".to_owned()),
        (_, bad, _) => Some(format!("CRC: {bad} bad")),
    }
}

fn item(page: &mut Page, arrow: char, item: &Item, (sender, names): (Owner, &mut Names)) {
    let text = match item {
        Item::Head(head) => {
            page.line(format!("{arrow} {}", names.text(&head.start)));
            for (name, value) in &head.headers {
                page.line(format!("{arrow}   {name}: {}", names.field(name, value)));
            }
            return;
        }
        Item::Body { length, sha256 } if *length > 0 => format!("body: {}, sha256 {sha256}", bytes(*length)),
        Item::Body { .. } => "body: empty".to_owned(),
        Item::Tls { records } => format!("TLS: {records}"),
        Item::MpaStart(start) => mpa_start(start, sender, names),
        Item::Writes(run) => tagged("Write", *run, sender.peer(), names),
        Item::ReadResponses(run) => tagged("Read Response", *run, sender.peer(), names),
        Item::ReadRequest { sink, source, length } => {
            let length = bytes(u64::from(*length));
            let mut text =
                format!("Read Request: {length} of {}", names.remote(sender.peer(), source.0, source.1));
            if let Some((stag, to)) = sink {
                let _ = write!(text, " into {}", names.remote(sender, *stag, *to));
            }
            text
        }
        Item::ReadData { length } => format!("Read Response: {}", bytes(*length)),
        Item::Cm(message) => cm(message, sender, names),
        Item::Refusal(why) => format!("NAK: {why}"),
        Item::Send { message, invalidates, solicited } => {
            let mut text = format!("Send: {}", said(message, sender, names));
            if *solicited {
                text.push_str(", solicited event");
            }
            if let Some(stag) = invalidates {
                let _ = write!(text, ", invalidates {}", names.stag(sender.peer(), *stag));
            }
            text
        }
        Item::Terminate(why) => format!("Terminate: {}", names.text(why)),
        Item::Unknown { length } => format!("{} of an unknown protocol", bytes(*length)),
        Item::Malformed(why) => format!("MALFORMED: {}", names.text(why)),
    };
    page.line(format!("{arrow} {text}"));
}

fn tagged(what: &str, run: Run, owner: Owner, names: &mut Names) -> String {
    let Run { stag, to, length, messages } = run;
    let (place, length) = (names.remote(owner, stag, to), bytes(length));
    match messages {
        1 => format!("{what}: {length} at {place}"),
        _ => format!("{messages} x {what}: {length}, contiguous, from {place}"),
    }
}

/// A message between the programs, in words.
fn said(message: &[u8], sender: Owner, names: &mut Names) -> String {
    let length = bytes(message.len() as u64);
    match Message::decode(message) {
        Ok(Message::Hello { id }) => format!("{length}, Hello of {}", names.id(&id.to_string())),
        Ok(Message::Done { id, bytes: written }) => {
            format!("{length}, Done with {} after {}", names.id(&id.to_string()), bytes(written))
        }
        Ok(Message::Progress { id, bytes: written }) => {
            format!("{length}, Progress of {} to {}", names.id(&id.to_string()), bytes(written))
        }
        Ok(Message::Credit { id, bytes: taken }) => {
            format!("{length}, Credit for {} up to {}", names.id(&id.to_string()), bytes(taken))
        }
        Ok(Message::Region { id, at, bytes: room }) => {
            let place = names.remote(sender, at.stag.0, at.to);
            format!("{length}, Region of {}: {} at {place}", names.id(&id.to_string()), bytes(room))
        }
        Ok(Message::Decline { id }) => format!("{length}, Decline of {}", names.id(&id.to_string())),
        Err(_) => match Frame::decode(message.to_vec().into()) {
            Some(Frame::Http(piece)) if piece.is_empty() => format!("{length}, the end of HTTP"),
            Some(Frame::Credit(frames)) => format!("{length}, Credit for {frames} frames of HTTP"),
            _ => length,
        },
    }
}

fn cm(message: &CmMessage, sender: Owner, names: &mut Names) -> String {
    let (what, (responder, initiator), data) = match message {
        CmMessage::Request { depths, private_data } => ("REQ", depths, private_data),
        CmMessage::Reply { depths, private_data } => ("REP", depths, private_data),
        CmMessage::Reject { reason } => return format!("CM REJ: reason {reason}"),
    };
    let mut text = format!("CM {what}: responder resources {responder}, initiator depth {initiator}");
    // What the program gave is filled up with zeros, and how much it was is not said.
    let given = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if given > 0 {
        let message = data.get(..LENGTH).filter(|_| given <= LENGTH);
        let data = message.unwrap_or(&data[..given]);
        let _ = write!(text, "; private data: {}", said(data, sender, names));
    }
    text
}

fn mpa_start(start: &MpaStart, sender: Owner, names: &mut Names) -> String {
    let mut text = format!(
        "MPA {} revision {}: {}, {}",
        if start.request { "Request" } else { "Reply" },
        start.revision,
        if start.crc { "CRC" } else { "no CRC" },
        if start.markers { "markers" } else { "no markers" },
    );
    if start.rejected {
        text.push_str(", rejected");
    }
    if let Some((ird, ord)) = start.depths {
        let _ = write!(text, ", IRD {ird}, ORD {ord}");
    }
    if let Some(first) = &start.ready_to_receive {
        let _ = write!(text, ", peer to peer by {first}");
    }
    if !start.private_data.is_empty() {
        let _ = write!(text, "; private data: {}", said(&start.private_data, sender, names));
    }
    text
}
