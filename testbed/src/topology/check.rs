//! Whether the parts of a file fit each other: hosts that are there, names and addresses that are used once, links that
//! can exist.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;

use super::address::{self, Pool};
use super::compile::frame;
use super::error::{Findings, nearest};
use super::parse::{File, FileLink, Settings};
use super::reader::At;
use super::units::{Queue, Time};
use super::{Direction, Driver, End, Endpoint, Host, Link, Topology};

/// What one direction of a link may hold: a bound on the memory that a file can ask for.
pub(super) const MAX_UNDER_WAY: u128 = 4 << 30;

/// Checks a file, noting what is wrong. What it returns is whole only if nothing was noted.
pub(super) fn check(file: File, origin: &str, text: &str, findings: &mut Findings) -> Topology {
    let name = name(&file, origin, findings);
    let syntax_broken = !findings.is_empty() && file.hosts.is_empty() && file.links.is_empty();
    if !syntax_broken {
        hosts(&file, text, findings);
        endpoints(&file, findings);
    }
    let addresses = addresses(&file, findings);
    let mut links: Vec<Link> = Vec::new();
    let mut places: HashMap<String, Range<usize>> = HashMap::new();
    for (link, addresses) in file.links.into_iter().zip(addresses) {
        let place = link.name.as_ref().map_or_else(|| link.span.clone(), |name| name.span.clone());
        let checked = self::link(link, addresses, findings);
        if let Some(earlier) = places.insert(checked.name.clone(), place.clone()) {
            findings
                .add(place, format!("a second link \"{}\"", checked.name))
                .label("again here")
                .also(earlier, "first here");
        }
        links.push(checked);
    }
    let hosts =
        file.hosts.into_iter().map(|host| Host { name: host.name.value, sysctls: host.sysctls }).collect();
    Topology { name, description: file.description, hosts, links }
}

/// The given name, or the file's.
fn name(file: &File, origin: &str, findings: &mut Findings) -> String {
    if let Some(name) = &file.name {
        label(name, "a topology's name", findings);
        return name.value.clone();
    }
    let stem = origin.rsplit('/').next().unwrap_or(origin);
    let stem = stem.strip_suffix(".toml").unwrap_or(stem);
    if is_label(stem) { stem.to_owned() } else { "lab".to_owned() }
}

/// A label as of RFC 1123, section 2.1, in lower case: it becomes a host name and a directory's name.
fn is_label(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.chars().all(legal)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn label(name: &At<String>, what: &str, findings: &mut Findings) {
    if !is_label(&name.value) {
        findings
            .add(name.span.clone(), format!("\"{}\" cannot be {what}", name.value))
            .help("at most 63 lower-case letters, digits and hyphens, no hyphen at either end");
    }
}

fn hosts(file: &File, text: &str, findings: &mut Findings) {
    if file.hosts.is_empty() {
        let end = text.trim_end().len();
        findings.add(end..end, "a topology without hosts").help("a table for each: [hosts.server]");
    }
    // A link that is broken, or names no host, may be the one that a host misses.
    let is_host = |name: &String| file.hosts.iter().any(|host| host.name.value == *name);
    let links_are_sound =
        file.all_links && file.links.iter().flat_map(|link| &link.ends).all(|end| is_host(&end.value.host));
    for host in &file.hosts {
        label(&host.name, "a host's name", findings);
        if host.name.value == "localhost" {
            findings
                .add(host.name.span.clone(), "a host cannot be called \"localhost\"")
                .help("every host has its own localhost");
        }
        let linked =
            file.links.iter().flat_map(|link| &link.ends).any(|end| end.value.host == host.name.value);
        if links_are_sound && !linked {
            findings
                .add(host.name.span.clone(), format!("no link ends at the host \"{}\"", host.name.value))
                .label("alone")
                .help(format!("name it in a link's endpoints: \"{}:eth0\"", host.name.value));
        }
    }
}

fn endpoints(file: &File, findings: &mut Findings) {
    let mut places: HashMap<&Endpoint, Range<usize>> = HashMap::new();
    for link in &file.links {
        for end in &link.ends {
            endpoint(end, file, findings);
            if let Some(earlier) = places.insert(&end.value, end.span.clone()) {
                findings
                    .add(end.span.clone(), format!("{} is an end of two links", end.value))
                    .label("again here")
                    .also(earlier, "first here")
                    .help("each link needs an interface of its own");
            }
        }
        let [a, b] = &link.ends;
        if a.value.host == b.value.host {
            findings
                .add(b.span.clone(), format!("a link from \"{}\" to itself", a.value.host))
                .help("a link joins two hosts");
        }
    }
    for host in &file.hosts {
        for (interface, _) in &host.addresses {
            let endpoint = Endpoint { host: host.name.value.clone(), interface: interface.value.clone() };
            if !places.contains_key(&endpoint) {
                let theirs =
                    places.keys().filter(|end| end.host == endpoint.host).map(|end| end.interface.as_str());
                let meant = nearest(&interface.value, theirs);
                findings.add(interface.span.clone(), format!("no link ends at {endpoint}")).help(
                    meant.map_or_else(
                        || format!("name it in a link's endpoints: \"{endpoint}\""),
                        |meant| format!("did you mean \"{meant}\"?"),
                    ),
                );
            }
        }
    }
}

fn endpoint(end: &At<Endpoint>, file: &File, findings: &mut Findings) {
    let Endpoint { host, interface } = &end.value;
    let names = || file.hosts.iter().map(|host| host.name.value.as_str());
    if !names().any(|name| name == host) {
        let help = match nearest(host, names()) {
            Some(meant) => format!("did you mean \"{meant}:{interface}\"?"),
            None => format!("the hosts are: {}", names().collect::<Vec<_>>().join(", ")),
        };
        findings.add(end.span.clone(), format!("there is no host \"{host}\"")).label("not a host").help(help);
    }
    // What the kernel's dev_valid_name() accepts, without what would be mistaken elsewhere.
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if interface.len() > 15 {
        findings
            .add(end.span.clone(), format!("\"{interface}\" is too long for an interface's name"))
            .help(format!("Linux takes at most 15 bytes; this has {}", interface.len()));
    } else if !interface.chars().all(legal)
        || matches!(interface.as_str(), "." | ".." | "lo" | "all" | "default")
    {
        findings
            .add(end.span.clone(), format!("an interface cannot be called \"{interface}\""))
            .help("letters, digits, dots, hyphens and underscores; not lo, all or default");
    }
}

/// The addresses of each link's ends: those given, checked, and for the rest some from the pool.
fn addresses(file: &File, findings: &mut Findings) -> Vec<[IpNet; 2]> {
    let mut given: HashMap<Endpoint, &At<IpNet>> = HashMap::new();
    let mut users: BTreeMap<IpAddr, (Endpoint, Range<usize>)> = BTreeMap::new();
    for host in &file.hosts {
        for (interface, address) in &host.addresses {
            let endpoint = Endpoint { host: host.name.value.clone(), interface: interface.value.clone() };
            if let Some(reason) = address::unusable(address.value) {
                findings
                    .add(address.span.clone(), format!("{endpoint} cannot have {}", address.value))
                    .label(reason);
            }
            if let Some((other, place)) = users.get(&address.value.addr()) {
                findings
                    .add(address.span.clone(), format!("{} and {endpoint} have one address", other))
                    .label(format!("{} again", address.value.addr()))
                    .also(place.clone(), "first here")
                    .help("every interface needs an address of its own");
            }
            users.insert(address.value.addr(), (endpoint.clone(), address.span.clone()));
            given.insert(endpoint, address);
        }
    }
    let mut pool = Pool::new(given.values().map(|address| address.value).collect());
    // A second interface of a host in the same subnet would make its routes a matter of luck.
    let mut subnets: Vec<(&str, IpNet)> = Vec::new();
    let mut pairs = Vec::new();
    for link in &file.links {
        let [a, b] = [0, 1].map(|end| given.get(&link.ends[end].value).copied());
        let pair = pair(link, a, b, &users, &mut pool, findings);
        for (end, at) in [(0, a), (1, b)] {
            let host = link.ends[end].value.host.as_str();
            let taken =
                subnets.iter().find(|(other, net)| *other == host && address::overlap(*net, pair[end]));
            if let (Some((_, net)), Some(at)) = (taken, at) {
                findings
                    .add(
                        at.span.clone(),
                        format!("\"{host}\" has two interfaces in one subnet, {}", net.trunc()),
                    )
                    .help("give each link a subnet of its own");
            }
            subnets.push((host, pair[end]));
        }
        pairs.push(pair);
    }
    pairs
}

fn pair(
    link: &FileLink,
    a: Option<&At<IpNet>>,
    b: Option<&At<IpNet>>,
    users: &BTreeMap<IpAddr, (Endpoint, Range<usize>)>,
    pool: &mut Pool,
    findings: &mut Findings,
) -> [IpNet; 2] {
    // Stands where a finding makes the rest meaningless.
    let nothing = IpNet::default();
    match (a, b) {
        (Some(a), Some(b)) => {
            if a.value.trunc() != b.value.trunc() {
                findings
                    .add(b.span.clone(), format!("the ends of {} are not in one subnet", default_name(link)))
                    .label(b.value.trunc().to_string())
                    .also(a.span.clone(), a.value.trunc().to_string())
                    .help(match address::partner(a.value) {
                        Some(partner) => format!("for example {} and {partner}", a.value),
                        None => "both need the same network and prefix length".to_owned(),
                    });
            }
            [a.value, b.value]
        }
        (Some(one), None) | (None, Some(one)) => {
            let partner = one
                .value
                .hosts()
                .take(1 << 16)
                .find(|host| !users.contains_key(host))
                .and_then(|host| IpNet::new(host, one.value.prefix_len()).ok());
            if partner.is_none() && address::unusable(one.value).is_none() {
                findings.add(one.span.clone(), "no address of this subnet is left for the other end");
            }
            let partner = partner.unwrap_or(nothing);
            if a.is_some() { [one.value, partner] } else { [partner, one.value] }
        }
        (None, None) => pool.next_pair().unwrap_or_else(|| {
            findings
                .add(link.span.clone(), "no address is left for this link")
                .help("addresses are assigned from 10.10.0.0 on; give it some yourself");
            [nothing; 2]
        }),
    }
}

fn default_name(link: &FileLink) -> String {
    format!("{}--{}", link.ends[0].value, link.ends[1].value)
}

fn link(link: FileLink, addresses: [IpNet; 2], findings: &mut Findings) -> Link {
    let name = link.name.as_ref().map_or_else(|| default_name(&link), |name| name.value.clone());
    if let Some(At { span, .. }) = &link.name
        && (name.is_empty()
            || name.len() > 63
            || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            || name.starts_with(['.', '-']))
    {
        findings
            .add(span.clone(), format!("a link cannot be called \"{name}\""))
            .help("at most 63 letters, digits, dots, hyphens and underscores");
    }
    if addresses[0].addr().is_ipv6() && link.mtu < 1280 {
        findings
            .add(link.span.clone(), format!("an mtu of {} is too small for IPv6", link.mtu))
            .help("at least 1280 (RFC 8200, section 5)");
    }
    let (a_to_b, b_to_a) = (direction(&link.a_to_b), direction(&link.b_to_a));
    impairments(&link.a_to_b, a_to_b, b_to_a.delay, link.mtu, findings);
    if format!("{:?}", link.a_to_b) != format!("{:?}", link.b_to_a) {
        impairments(&link.b_to_a, b_to_a, a_to_b.delay, link.mtu, findings);
    }
    if link.driver == Driver::Veth && (a_to_b, b_to_a) != Default::default() {
        findings
            .add(link.span.clone(), "a veth link does nothing to frames, and this one should")
            .help("leave out rate, delay and the others, or take the driver \"auto\"");
    }
    let [a, b] = link.ends;
    let ends =
        [End { endpoint: a.value, address: addresses[0] }, End { endpoint: b.value, address: addresses[1] }];
    Link { name, ends, mtu: link.mtu, driver: link.driver, a_to_b, b_to_a }
}

fn direction(said: &Settings) -> Direction {
    fn value<T: Copy + Default>(said: &Option<At<T>>) -> T {
        said.as_ref().map(|at| at.value).unwrap_or_default()
    }
    let rate = value(&said.rate);
    Direction {
        delay: value(&said.delay),
        jitter: value(&said.jitter),
        rate,
        // Nothing waits for a rate that is not there; with one, the bandwidth-delay product is what a flow needs.
        queue: rate.and_then(|_| said.queue.as_ref().map_or(Some(Queue::MilliBdp(1_000)), |at| at.value)),
        loss: value(&said.loss),
        reorder: value(&said.reorder),
        duplicate: value(&said.duplicate),
        corrupt: value(&said.corrupt),
    }
}

fn impairments(said: &Settings, direction: Direction, back: Time, mtu: u32, findings: &mut Findings) {
    if let Some(jitter) = &said.jitter
        && direction.jitter > direction.delay
    {
        findings
            .add(
                jitter.span.clone(),
                format!("a jitter of {} on a delay of {}", direction.jitter, direction.delay),
            )
            .label("more than the delay")
            .help("no frame can arrive before it was sent");
    }
    if let Some(reorder) = &said.reorder
        && direction.reorder.0 > 0.0
        && direction.delay == Time::default()
    {
        findings
            .add(reorder.span.clone(), "reordering on a link without delay")
            .help("a frame overtakes those that are under way: give the link a delay");
    }
    if let Some(queue) = &said.queue {
        self::queue(queue, mtu, said.rate.is_some(), findings);
    }
    if let (Some(rate), Some(at)) = (direction.rate, &said.rate) {
        let under_way = u128::from(rate.0) * direction.delay.0.as_nanos() / 8_000_000_000;
        let total = under_way + u128::from(direction.queue_bytes(back, mtu).unwrap_or(0));
        if total > MAX_UNDER_WAY {
            findings
                .add(at.span.clone(), format!("{rate} over {} cannot be emulated", direction.delay))
                .label(format!("{} MB would be under way and in the queue", total / 1_000_000))
                .help(format!("at most {} MB", MAX_UNDER_WAY / 1_000_000));
        }
    }
}

fn queue(queue: &At<Option<Queue>>, mtu: u32, has_rate: bool, findings: &mut Findings) {
    match queue.value {
        Some(Queue::Bytes(size)) if size.0 < frame(mtu) => {
            findings
                .add(queue.span.clone(), format!("a queue of {size} cannot hold one frame"))
                .label("too small")
                .help(format!("a full frame of an mtu of {mtu} has {} bytes", frame(mtu)));
        }
        Some(_) if !has_rate => {
            findings
                .add(queue.span.clone(), "a queue on a link without a rate")
                .label("nothing will ever wait in it")
                .help("give the link a rate, such as rate = \"10 Gbit/s\"");
        }
        _ => {}
    }
}
