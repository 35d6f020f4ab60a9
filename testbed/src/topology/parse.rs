//! TOML -> what the file says, each value with its place. What the parts say of each other is for [`super::check`].

use std::collections::BTreeMap;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Findings;
use super::keys::{DEFAULTS, DIRECTION, DRIVERS, FILE, HOST, INTERFACE, LINK, MTU};
use super::reader::{At, Section, in_order, table, text, wrong_type};
use super::units::{Probability, Queue, Rate, Time};
use super::{Driver, Endpoint};

/// No lab of one machine has more.
const MAX_HOSTS: usize = 1_000;
const MAX_LINKS: usize = 4_000;

/// The file as it stands.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) name: Option<At<String>>,
    pub(super) description: String,
    pub(super) hosts: Vec<FileHost>,
    pub(super) links: Vec<FileLink>,
    /// Whether `links` holds every link of the file; a broken one is left out.
    pub(super) all_links: bool,
}

#[derive(Debug)]
pub(super) struct FileHost {
    pub(super) name: At<String>,
    pub(super) addresses: Vec<(At<String>, At<IpNet>)>,
    pub(super) sysctls: BTreeMap<String, String>,
}

#[derive(Debug)]
pub(super) struct FileLink {
    pub(super) name: Option<At<String>>,
    pub(super) ends: [At<Endpoint>; 2],
    pub(super) mtu: u32,
    pub(super) driver: Driver,
    pub(super) a_to_b: Settings,
    pub(super) b_to_a: Settings,
    pub(super) span: std::ops::Range<usize>,
}

/// What was said of one direction. The outer option is whether anything was, the inner one a limit that was lifted.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) delay: Option<At<Time>>,
    pub(super) jitter: Option<At<Time>>,
    pub(super) rate: Option<At<Option<Rate>>>,
    pub(super) queue: Option<At<Option<Queue>>>,
    pub(super) loss: Option<At<Probability>>,
    pub(super) reorder: Option<At<Probability>>,
    pub(super) duplicate: Option<At<Probability>>,
    pub(super) corrupt: Option<At<Probability>>,
}

impl Settings {
    fn read(section: &Section<'_>, findings: &mut Findings) -> Self {
        Self {
            delay: section.parsed("delay", findings),
            jitter: section.parsed("jitter", findings),
            rate: section.limit("rate", findings),
            queue: section.limit("queue", findings),
            loss: section.probability("loss", findings),
            reorder: section.probability("reorder", findings),
            duplicate: section.probability("duplicate", findings),
            corrupt: section.probability("corrupt", findings),
        }
    }

    /// What is said here, and for the rest what `wider` says.
    fn or(self, wider: &Self) -> Self {
        let wider = wider.clone();
        Self {
            delay: self.delay.or(wider.delay),
            jitter: self.jitter.or(wider.jitter),
            rate: self.rate.or(wider.rate),
            queue: self.queue.or(wider.queue),
            loss: self.loss.or(wider.loss),
            reorder: self.reorder.or(wider.reorder),
            duplicate: self.duplicate.or(wider.duplicate),
            corrupt: self.corrupt.or(wider.corrupt),
        }
    }
}

/// Reads `text`, noting what is wrong.
pub(super) fn file(text: &str, findings: &mut Findings) -> File {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        findings.add(span, format!("not TOML: {}", error.message().trim_end())).label("here");
    }
    if !errors.is_empty() {
        // What could be recovered is too doubtful to be judged.
        return File::default();
    }
    let section = Section::open(document.get_ref(), 0..0, &FILE, findings);
    let (base, mtu, driver) = defaults(&section, findings);
    let links = links(&section, &base, mtu, driver, findings);
    let listed =
        section.get("links").map_or(0, |links| links.get_ref().as_array().map_or(1, |list| list.len()));
    File {
        name: section.text("name", findings).map(|name| name.map(str::to_owned)),
        description: section.text("description", findings).map_or_else(String::new, |at| at.value.to_owned()),
        hosts: hosts(&section, findings),
        all_links: links.len() == listed,
        links,
    }
}

fn defaults(file: &Section<'_>, findings: &mut Findings) -> (Settings, u32, Driver) {
    let Some(table) = file.table("defaults", findings) else {
        return (Settings::default(), 1500, Driver::Auto);
    };
    let section = Section::open(table.value, table.span, &DEFAULTS, findings);
    let settings = Settings::read(&section, findings);
    (settings, mtu(&section, findings).unwrap_or(1500), driver(&section, findings).unwrap_or_default())
}

fn hosts(file: &Section<'_>, findings: &mut Findings) -> Vec<FileHost> {
    let Some(hosts) = file.table("hosts", findings) else { return Vec::new() };
    if hosts.value.len() > MAX_HOSTS {
        findings.add(hosts.span, format!("more than {MAX_HOSTS} hosts"));
        return Vec::new();
    }
    in_order(hosts.value)
        .into_iter()
        .filter_map(|(name, value)| {
            let table = table(name.get_ref(), value, findings)?;
            let section = Section::open(table.value, table.span, &HOST, findings);
            Some(FileHost {
                name: At { value: name.get_ref().to_string(), span: name.span() },
                addresses: addresses(&section, findings),
                sysctls: sysctls(&section, findings),
            })
        })
        .collect()
}

fn addresses(host: &Section<'_>, findings: &mut Findings) -> Vec<(At<String>, At<IpNet>)> {
    let Some(interfaces) = host.table("interfaces", findings) else { return Vec::new() };
    in_order(interfaces.value)
        .into_iter()
        .filter_map(|(name, value)| {
            let table = table(name.get_ref(), value, findings)?;
            let section = Section::open(table.value, table.span, &INTERFACE, findings);
            let name = At { value: name.get_ref().to_string(), span: name.span() };
            let text = section.text("address", findings)?;
            if let Ok(address) = text.value.parse() {
                return Some((name, At { value: address, span: text.span }));
            }
            let finding = findings.add(text.span, format!("\"{}\" is no address", text.value));
            finding.help(if text.value.parse::<std::net::IpAddr>().is_ok() {
                format!("it needs its prefix length: \"{}/24\"", text.value)
            } else {
                "an address and its prefix length, such as \"10.10.0.1/24\"".to_owned()
            });
            None
        })
        .collect()
}

fn sysctls(host: &Section<'_>, findings: &mut Findings) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let Some(table) = host.table("sysctls", findings) else { return settings };
    for (key, value) in in_order(table.value) {
        // Written without quotes, `net.ipv4.tcp_rmem` is three tables in each other: take it as meant.
        let mut leaves = Vec::new();
        flatten(key.get_ref().to_string(), value, &mut leaves);
        for (name, value) in leaves {
            let span = value.span();
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) => number.as_str().replace('_', ""),
                other => {
                    wrong_type(&name, "a text or a whole number", other, span, findings);
                    continue;
                }
            };
            let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if !name.starts_with("net.") || !name.chars().all(legal) || name.contains("..") {
                findings.add(key.span(), format!("\"{name}\" is no setting of a network namespace")).help(
                    "only settings that begin with \"net.\" belong to a host, such as net.ipv4.tcp_rmem",
                );
            } else if text.len() > 1_000 || text.chars().any(char::is_control) {
                findings.add(span, format!("\"{name}\" cannot have this value"));
            } else {
                settings.insert(name, text);
            }
        }
    }
    settings
}

fn flatten<'d>(
    prefix: String,
    value: &'d Spanned<DeValue<'d>>,
    leaves: &mut Vec<(String, &'d Spanned<DeValue<'d>>)>,
) {
    match value.get_ref() {
        DeValue::Table(table) => {
            for (key, value) in in_order(table) {
                flatten(format!("{prefix}.{}", key.get_ref()), value, leaves);
            }
        }
        _ => leaves.push((prefix, value)),
    }
}

fn links(
    file: &Section<'_>,
    defaults: &Settings,
    default_mtu: u32,
    default_driver: Driver,
    findings: &mut Findings,
) -> Vec<FileLink> {
    let Some(value) = file.get("links") else { return Vec::new() };
    let DeValue::Array(list) = value.get_ref() else {
        wrong_type("links", "a list: [[links]]", value.get_ref(), file.key_span("links"), findings);
        return Vec::new();
    };
    if list.len() > MAX_LINKS {
        findings.add(file.key_span("links"), format!("more than {MAX_LINKS} links"));
        return Vec::new();
    }
    let mut links = Vec::new();
    for value in list.iter() {
        let Some(table) = table("links", value, findings) else { continue };
        let section = Section::open(table.value, table.span.clone(), &LINK, findings);
        let both = Settings::read(&section, findings).or(defaults);
        let mut direction = |key: &str| match section.table(key, findings) {
            Some(table) => {
                let section = Section::open(table.value, table.span, &DIRECTION, findings);
                Settings::read(&section, findings).or(&both)
            }
            None => both.clone(),
        };
        let (a_to_b, b_to_a) = (direction("a_to_b"), direction("b_to_a"));
        let name = section.text("name", findings).map(|name| name.map(str::to_owned));
        let mtu = mtu(&section, findings).unwrap_or(default_mtu);
        let driver = driver(&section, findings).unwrap_or(default_driver);
        let Some(ends) = endpoints(&section, findings) else { continue };
        links.push(FileLink { name, ends, mtu, driver, a_to_b, b_to_a, span: table.span });
    }
    links
}

fn endpoints(link: &Section<'_>, findings: &mut Findings) -> Option<[At<Endpoint>; 2]> {
    const HELP: &str = "a link has two: endpoints = [\"server:eth0\", \"client:eth0\"]";
    let Some(value) = link.get("endpoints") else {
        findings.add(link.span.clone(), "a link without endpoints").label("this link").help(HELP);
        return None;
    };
    let DeValue::Array(list) = value.get_ref() else {
        wrong_type("endpoints", "a list of two", value.get_ref(), value.span(), findings);
        return None;
    };
    if list.len() != 2 {
        findings.add(value.span(), format!("a link with {} endpoints", list.len())).help(HELP);
        return None;
    }
    let ends: Vec<_> = list.iter().filter_map(|end| endpoint(end, findings)).collect();
    ends.try_into().ok()
}

fn endpoint(value: &Spanned<DeValue<'_>>, findings: &mut Findings) -> Option<At<Endpoint>> {
    let at = text("endpoints", value, findings)?;
    match at.value.split_once(':') {
        Some((host, interface)) if !host.is_empty() && !interface.is_empty() => {
            Some(at.clone().map(|_| Endpoint { host: host.to_owned(), interface: interface.to_owned() }))
        }
        _ => {
            let host = at.value.trim_matches(':');
            findings.add(at.span, format!("\"{}\" is no endpoint", at.value)).help(format!(
                "a host and its interface: \"{}:eth0\"",
                if host.is_empty() { "server" } else { host }
            ));
            None
        }
    }
}

fn mtu(section: &Section<'_>, findings: &mut Findings) -> Option<u32> {
    let at = section.integer("mtu", findings)?;
    let mtu = u32::try_from(at.value).ok().filter(|mtu| MTU.contains(mtu));
    if mtu.is_none() {
        findings.add(at.span, format!("an mtu of {} is impossible", at.value)).help(format!(
            "from {} to {} bytes",
            MTU.start(),
            MTU.end()
        ));
    }
    mtu
}

fn driver(section: &Section<'_>, findings: &mut Findings) -> Option<Driver> {
    let at = section.text("driver", findings)?;
    match at.value {
        "auto" => Some(Driver::Auto),
        "relay" => Some(Driver::Relay),
        "netem" => Some(Driver::Netem),
        "veth" => Some(Driver::Veth),
        other => {
            let finding = findings.add(at.span, format!("there is no driver \"{other}\""));
            finding.help(match super::error::nearest(other, DRIVERS.iter().copied()) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => format!("one of {}", DRIVERS.join(", ")),
            });
            None
        }
    }
}
