//! Stable names for what is volatile: ports, STags, identifiers, dates, validators, directories. A value gets its name on
//! its first appearance and keeps it, so `stag#1` is the same region in a header, in an operation and on the wire.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::scenario::Place;

/// Gives names, in order of first appearance.
#[derive(Clone, Debug)]
pub struct Names {
    place: Place,
    /// `(class, value)` -> number.
    numbers: HashMap<(&'static str, String), usize>,
    /// How many of each class have been named.
    counts: HashMap<&'static str, usize>,
    /// The tagged offset of a region's first byte, where it was advertised.
    bases: HashMap<(Owner, u32), u64>,
}

/// Whose a region is. Two hosts may well give their regions the same STag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The client program's.
    Client,
    /// The server program's.
    Server,
}

impl Owner {
    /// The other one.
    pub fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Fields whose values are named whole.
const VOLATILE_FIELDS: [(&str, &str); 4] =
    [("date", "date"), ("etag", "etag"), ("last-modified", "mtime"), ("age", "age")];

/// Fields that hold `product/version`.
const PRODUCT_FIELDS: [&str; 2] = ["user-agent", "server"];

impl Names {
    /// Names for what is seen in `place`.
    pub fn new(place: Place) -> Self {
        Self { place, numbers: HashMap::new(), counts: HashMap::new(), bases: HashMap::new() }
    }

    fn name(&mut self, class: &'static str, value: impl Into<String>) -> String {
        let count = self.counts.entry(class).or_default();
        let number = *self.numbers.entry((class, value.into())).or_insert_with(|| {
            *count += 1;
            *count
        });
        format!("{class}#{number}")
    }

    /// A region.
    pub fn stag(&mut self, owner: Owner, stag: u32) -> String {
        self.name("stag", format!("{owner:?} {stag}"))
    }

    /// A place in a region, counted from its first byte: kernels use addresses for tagged offsets, soft counts from 0.
    pub fn remote(&mut self, owner: Owner, stag: u32, to: u64) -> String {
        let name = self.stag(owner, stag);
        match self.bases.get(&(owner, stag)).map(|base| to.checked_sub(*base)) {
            Some(Some(offset)) => format!("{name} + {offset}"),
            Some(None) => format!("before {name}"),
            None => format!("{name} at {to:#x}"),
        }
    }

    /// A region's first byte that anybody was told of.
    pub fn advertised(&mut self, owner: Owner, stag: u32, to: u64) {
        self.bases.entry((owner, stag)).or_insert(to);
    }

    /// An IP address: its host, or itself if it is of no host.
    pub fn ip(&self, ip: IpAddr) -> String {
        self.place.addresses.get(&ip).cloned().unwrap_or_else(|| ip.to_string())
    }

    /// A port of an address.
    pub fn port(&mut self, address: SocketAddr) -> String {
        let alone = alone(address.port());
        match self.numbers.contains_key(&("port", alone.clone())) {
            true => self.name("port", alone),
            false => self.name("port", address.to_string()),
        }
    }

    /// Address and port.
    pub fn address(&mut self, address: SocketAddr) -> String {
        let port = self.port(address);
        format!("{}:{port}", self.ip(address.ip()))
    }

    /// The value of an HTTP field.
    pub fn field(&mut self, name: &str, value: &str) -> String {
        let name = name.to_ascii_lowercase();
        if name == "rdma" {
            return self.rdma_field(value);
        }
        if let Some((_, class)) = VOLATILE_FIELDS.iter().find(|(field, _)| *field == name) {
            // Whether two responses fall into one second is a matter of time.
            return if *class == "date" { self.name(class, "any") } else { self.name(class, value) };
        }
        if PRODUCT_FIELDS.contains(&name.as_str()) {
            let products: Vec<String> = value.split(' ').map(|product| self.product(product)).collect();
            return products.join(" ");
        }
        self.text(value)
    }

    fn product(&mut self, product: &str) -> String {
        match product.split_once('/') {
            Some((product, version)) if !version.is_empty() => {
                format!("{product}/{}", self.name("version", format!("{product}/{version}")))
            }
            _ => product.to_owned(),
        }
    }

    /// The `RDMA:` field: a mode, then `key=value` pairs. A region in it is the client's: no response names one.
    fn rdma_field(&mut self, value: &str) -> String {
        let parts: Vec<&str> = value.split(',').map(str::trim).collect();
        let find = |key: &str| {
            let mut pairs = parts.iter().filter_map(|part| part.split_once('='));
            pairs.find(|(known, _)| known.trim() == key).map(|(_, value)| value.trim())
        };
        let ip: Option<IpAddr> = find("ip").and_then(|ip| ip.trim_matches(['"', '[', ']']).parse().ok());
        let stag = find("stag").and_then(parse_number).and_then(|stag| u32::try_from(stag).ok());
        if let (Some(stag), Some(to)) = (stag, find("to").and_then(parse_number)) {
            self.bases.insert((Owner::Client, stag), to);
        }
        let named: Vec<String> = parts
            .iter()
            .map(|part| {
                let Some((key, value)) = part.split_once('=') else { return self.text(part) };
                let value = match (key.trim(), ip, stag) {
                    ("ip", Some(ip), _) => self.ip(ip),
                    ("port", Some(ip), _) if value.parse::<u16>().is_ok() => {
                        let port = value.parse().unwrap_or_default();
                        self.port(SocketAddr::new(ip, port))
                    }
                    // Of whoever says so, at the address that HTTP goes to.
                    ("port", None, _) => match value.parse() {
                        Ok(port) => self.name("port", alone(port)),
                        Err(_) => self.text(value),
                    },
                    ("stag", _, Some(stag)) => self.stag(Owner::Client, stag),
                    ("to", _, Some(stag)) => format!("start of {}", self.stag(Owner::Client, stag)),
                    ("id", ..) => self.name("id", value.trim()),
                    _ => self.text(value),
                };
                format!("{key}={value}")
            })
            .collect();
        named.join(", ")
    }

    /// A transfer's identifier, as it stands in a message.
    pub fn id(&mut self, id: &str) -> String {
        self.name("id", id)
    }

    /// Text for people: the addresses, ports and directories in it get their names.
    pub fn text(&mut self, text: &str) -> String {
        let work = self.place.work.to_string_lossy().into_owned();
        let mut text = if work.is_empty() { text.to_owned() } else { text.replace(&work, "(work)") };
        let addresses: Vec<(IpAddr, String)> =
            self.place.addresses.iter().map(|(ip, host)| (*ip, host.clone())).collect();
        for (ip, host) in addresses {
            text = self.replace_address(&text, ip, &host);
        }
        text
    }

    /// Replaces `ip` and `ip:port` wherever they stand alone.
    fn replace_address(&mut self, text: &str, ip: IpAddr, host: &str) -> String {
        let plain = ip.to_string();
        let part_of_address = |c: char| c.is_ascii_hexdigit() || c == '.' || c == ':';
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(&plain) {
            let (before, from) = rest.split_at(at);
            let after = &from[plain.len()..];
            out.push_str(before);
            // `10.0.0.1` is not in `10.0.0.12`, nor in `110.0.0.1`; but a colon may well stand before it.
            let glued = |c: char| c.is_ascii_alphanumeric() || c == '.';
            let starts = !out.ends_with(|c: char| glued(c) || (ip.is_ipv6() && part_of_address(c)));
            let bracketed = ip.is_ipv6() && out.ends_with('[') && after.starts_with(']');
            let tail = if bracketed { &after[1..] } else { after };
            let digits = tail
                .strip_prefix(':')
                .map_or("", |port| &port[..port.find(|c: char| !c.is_ascii_digit()).unwrap_or(port.len())]);
            let full_stop = after.starts_with('.') && !after[1..].starts_with(|c: char| c.is_ascii_digit());
            let ends = bracketed
                || full_stop
                || !after.starts_with(|c: char| glued(c) || (ip.is_ipv6() && part_of_address(c)));
            if !(starts && ends) {
                out.push_str(&plain);
                rest = after;
                continue;
            }
            if bracketed {
                out.pop();
            }
            match digits.parse::<u16>() {
                Ok(port) if ip.is_ipv4() || bracketed => {
                    let port = self.port(SocketAddr::new(ip, port));
                    out.push_str(&format!("{host}:{port}"));
                    rest = &tail[1 + digits.len()..];
                }
                _ => {
                    out.push_str(host);
                    rest = tail;
                }
            }
        }
        out.push_str(rest);
        out
    }
}

/// What stands for a port that was told of without an address.
fn alone(port: u16) -> String {
    format!("(some address):{port}")
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let address = |ip: &str, host: &str| (ip.parse().unwrap(), host.to_owned());
        let addresses = [
            address("10.0.0.1", "server"),
            address("10.0.0.12", "client"),
            address("10.0.0.254", "nobody"),
            address("fd00::1", "six"),
        ];
        Names::new(Place { addresses: addresses.into(), work: "/run/x/run-Ab12".into() })
    }

    #[test]
    fn a_value_keeps_its_name() {
        let mut names = names();
        assert_eq!(names.stag(Owner::Server, 700), "stag#1");
        assert_eq!(names.stag(Owner::Server, 5), "stag#2");
        assert_eq!(names.stag(Owner::Server, 700), "stag#1");
        assert_eq!(names.stag(Owner::Client, 700), "stag#3", "another host's");
    }

    #[test]
    fn the_rdma_field_names_what_the_events_name() {
        let mut names = names();
        let field = "server-writes, ip=10.0.0.12, port=3242, stag=642, to=4096, maxlen=1048576";
        let expected =
            "server-writes, ip=client, port=port#1, stag=stag#1, to=start of stag#1, maxlen=1048576";
        assert_eq!(names.field("RDMA", field), expected);
        assert_eq!(names.stag(Owner::Client, 642), "stag#1");
        assert_eq!(names.address("10.0.0.12:3242".parse().unwrap()), "client:port#1");
        assert_eq!(names.remote(Owner::Client, 642, 4096 + 10), "stag#1 + 10");
        assert_eq!(names.remote(Owner::Client, 642, 0), "before stag#1");
        assert_eq!(names.remote(Owner::Client, 643, 16), "stag#2 at 0x10");
        assert_eq!(
            names.field("rdma", "server-writes, id=99, stag=0x282"),
            "server-writes, id=id#1, stag=stag#1"
        );
    }

    #[test]
    fn addresses_in_text_become_hosts() {
        let mut names = names();
        let cases = [
            ("connect 10.0.0.1:80: refused", "connect server:port#1: refused"),
            ("10.0.0.12 is not 10.0.0.1.", "client is not server."),
            ("110.0.0.1 10.0.0.123 10.0.0.1.5", "110.0.0.1 10.0.0.123 10.0.0.1.5"),
            ("http://10.0.0.1:80/a:10.0.0.254", "http://server:port#1/a:nobody"),
            ("[fd00::1]:443 and fd00::1", "six:port#2 and six"),
            ("fd00::12", "fd00::12"),
            ("cannot open /run/x/run-Ab12/out", "cannot open (work)/out"),
        ];
        for (text, expected) in cases {
            assert_eq!(names.text(text), expected, "{text}");
        }
    }

    #[test]
    fn volatile_fields_are_named_and_not_deleted() {
        let mut names = names();
        assert_eq!(names.field("Date", "Wed, 11 Jul 2007 00:00:00 GMT"), "date#1");
        assert_eq!(names.field("ETag", "\"abc\""), "etag#1");
        assert_eq!(names.field("User-Agent", "curl/7.88.1"), "curl/version#1");
        assert_eq!(names.field("Host", "10.0.0.1:8080"), "server:port#1");
        assert_eq!(names.field("Content-Length", "12"), "12");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9a-f.:\\[\\] ]{0,60}", free in "\\PC*") {
            let mut names = names();
            names.text(&text);
            names.field("rdma", &free);
            names.field("rdma", &format!("x, ip={text}, port={free}, stag=1, to={text}"));
        }
    }
}
