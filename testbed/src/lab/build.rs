//! The steps from a plan to a lab.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::future::try_join_all;
use sha2::{Digest, Sha256};

use super::RelayDevice;
use super::error::LabError;
use super::host::{Host, TapPlan};
use super::link::Link;
use super::patch;
use super::rdma;
use crate::link::port::Port;
use crate::link::relay::Relay;
use crate::link::{may_offload, netem};
use crate::topology::{Driver, Endpoint, Impairment, LinkPlan, Plan};

/// What carries a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Relay,
    Netem,
    Veth,
}

impl Carrier {
    /// The relay does whatever may be asked, in the same way on every machine, and can be captured; so netem only
    /// carries what asks for it.
    fn of(driver: Driver) -> Self {
        match driver {
            Driver::Auto | Driver::Relay => Self::Relay,
            Driver::Netem => Self::Netem,
            Driver::Veth => Self::Veth,
        }
    }
}

/// Builds all of it; what was built before an error goes with it.
pub(super) async fn build(plan: &Plan, device: RelayDevice) -> Result<(Vec<Host>, Vec<Link>), LabError> {
    check(plan)?;
    let (mut hosts, mut ports) = make_hosts(plan, device).await?;
    let named: HashMap<&str, &Host> = hosts.iter().map(|h| (h.name.as_str(), h)).collect();
    let relayed = || plan.links.iter().filter(|l| Carrier::of(l.driver) == Carrier::Relay);
    if device == RelayDevice::Packet && relayed().next().is_some() {
        let ends = relayed().flat_map(ends).map(|(end, out)| patch::End {
            endpoint: end.clone(),
            host: named[end.host.as_str()],
            mtu: plan.mtu(end),
            offload: may_offload(out),
        });
        ports = patch::connect(ends.collect()).await?;
    }
    let direct = plan.links.iter().filter(|l| Carrier::of(l.driver) != Carrier::Relay);
    try_join_all(direct.map(async |link| {
        let (a, b) = (named[link.a.host.as_str()], named[link.b.host.as_str()]);
        a.join(&link.a.interface, b, &link.b.interface)
            .await
            .map_err(|e| LabError::step(format!("link {}", link.name), "make a veth pair", e))
    }))
    .await?;

    try_join_all(hosts.iter_mut().zip(&plan.hosts).map(|(host, plan)| host.configure(plan))).await?;

    let named: HashMap<&str, &Host> = hosts.iter().map(|h| (h.name.as_str(), h)).collect();
    try_join_all(plan.links.iter().flat_map(|l| ends(l).map(|e| (l, e))).map(async |(link, (end, out))| {
        let host = named[end.host.as_str()];
        if Carrier::of(link.driver) != Carrier::Relay || device == RelayDevice::Packet {
            host.wait_until_up(&end.interface).await?;
        }
        match Carrier::of(link.driver) {
            Carrier::Netem => impair(plan, link, end, out, host).await,
            Carrier::Relay if device == RelayDevice::Packet && !may_offload(out) => {
                host.single_packets(&end.interface).await
            }
            Carrier::Relay | Carrier::Veth => Ok(()),
        }
    }))
    .await?;

    if let Some(kind) = rdma::Kind::of(plan.fabric) {
        // One after another: a device's number decides what others see of it first, and no run may differ.
        for (host, plan) in hosts.iter_mut().zip(&plan.hosts) {
            host.add_devices(plan, kind).await?;
        }
    }

    let links = plan.links.iter().map(|link| match Carrier::of(link.driver) {
        Carrier::Relay => relay(link, device, &mut ports),
        Carrier::Netem => Ok(Link::netem(link.clone())),
        Carrier::Veth => Ok(Link::veth(link.clone())),
    });
    let links = links.collect::<Result<_, _>>()?;
    Ok((hosts, links))
}

/// Makes the namespaces, and in them the TAP devices of relayed links, whose ports are returned.
async fn make_hosts(
    plan: &Plan,
    device: RelayDevice,
) -> Result<(Vec<Host>, HashMap<Endpoint, Port>), LabError> {
    let mut wanted: HashMap<&str, Vec<TapPlan>> = HashMap::new();
    if device == RelayDevice::Tap {
        let relayed = plan.links.iter().filter(|l| Carrier::of(l.driver) == Carrier::Relay);
        for (end, out) in relayed.flat_map(ends) {
            let tap = TapPlan { interface: end.interface.clone(), offload: may_offload(out) };
            wanted.entry(&end.host).or_default().push(tap);
        }
    }
    let made = try_join_all(plan.hosts.iter().map(async |host| {
        let taps = wanted.get(host.name.as_str()).cloned().unwrap_or_default();
        let names: Vec<_> = taps.iter().map(|t| t.interface.clone()).collect();
        let (made, taps) = Host::create(host, taps).await?;
        let endpoint = |interface| Endpoint { host: host.name.clone(), interface };
        let ports: Vec<_> =
            names.into_iter().zip(taps).map(|(i, tap)| (endpoint(i), tap.into_port())).collect();
        Ok::<_, LabError>((made, ports))
    }))
    .await?;
    let (hosts, ports): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    Ok((hosts, ports.into_iter().flatten().collect()))
}

/// Has netem impair what leaves an end of a link.
async fn impair(
    plan: &Plan,
    link: &LinkPlan,
    end: &Endpoint,
    out: &Impairment,
    host: &Host,
) -> Result<(), LabError> {
    let seed = seed(&link.name, end);
    let set =
        host.set_qdisc(&end.interface, |index| netem::message(index, out, plan.mtu(end), seed, false)).await;
    set.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => LabError::machine(format!(
            "link {}: this kernel has no netem; `modprobe sch_netem` may add it (Debian, Ubuntu: the package \
             linux-modules-extra-$(uname -r) where it is missing), or use `driver = \"relay\"`",
            link.name
        )),
        _ => LabError::step(format!("link {}, {end}", link.name), "set netem", e),
    })
}

/// Starts both directions of a link.
fn relay(
    link: &LinkPlan,
    device: RelayDevice,
    ports: &mut HashMap<Endpoint, Port>,
) -> Result<Link, LabError> {
    let mut take = |end: &Endpoint| {
        ports.remove(end).ok_or_else(|| LabError::usage(format!("link {}: {end} has no port", link.name)))
    };
    let (a, b) = (take(&link.a)?, take(&link.b)?);
    let start = |from: &Endpoint, receive, transmit, impairment: &Impairment| {
        Relay::start(&format!("{from}>"), receive, transmit, impairment, seed(&link.name, from))
            .map_err(|e| LabError::step(format!("link {}", link.name), "start its relay", e))
    };
    let a_to_b = start(&link.a, a.receive, b.transmit, &link.a_to_b)?;
    let b_to_a = start(&link.b, b.receive, a.transmit, &link.b_to_a)?;
    Ok(Link::relayed(link.clone(), device, [a_to_b, b_to_a]))
}

/// The same in every run, and different for every direction.
pub(super) fn seed(link: &str, from: &Endpoint) -> u64 {
    let digest = Sha256::digest(format!("{link} from {from}"));
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// Each end of a link with what happens to the frames that it sends.
fn ends(link: &LinkPlan) -> [(&Endpoint, &Impairment); 2] {
    [(&link.a, &link.a_to_b), (&link.b, &link.b_to_a)]
}

/// What one that comes over the agent's socket might get wrong.
pub(super) fn check_impairment(link: &str, from: &Endpoint, out: &Impairment) -> Result<(), LabError> {
    let Impairment { loss, reorder, duplicate, corrupt, .. } = out;
    if [loss, reorder, duplicate, corrupt].into_iter().all(|p| (0.0..=1.0).contains(p)) {
        return Ok(());
    }
    Err(LabError::usage(format!("link {link}, from {from}: a probability is not between 0 and 1")))
}

/// What a plan that comes over the agent's socket might get wrong; one made from a topology has passed harder checks.
fn check(plan: &Plan) -> Result<(), LabError> {
    let mut free: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for host in &plan.hosts {
        for interface in &host.interfaces {
            if free.insert((&host.name, &interface.name), &interface.name).is_some() {
                return Err(LabError::usage(format!("{}:{} is there twice", host.name, interface.name)));
            }
        }
    }
    let mut names = HashSet::new();
    for link in &plan.links {
        if !names.insert(&link.name) {
            return Err(LabError::usage(format!("link {} is there twice", link.name)));
        }
        for (end, out) in ends(link) {
            if free.remove(&(end.host.as_str(), end.interface.as_str())).is_none() {
                let message = format!("link {}: {end} is no interface, or another link has it", link.name);
                return Err(LabError::usage(message));
            }
            check_impairment(&link.name, end, out)?;
        }
        if link.driver == Driver::Veth
            && [&link.a_to_b, &link.b_to_a].into_iter().any(|i| *i != Impairment::default())
        {
            let message =
                format!("link {}: a bare veth pair impairs nothing; use `driver = \"relay\"`", link.name);
            return Err(LabError::usage(message));
        }
    }
    match free.first_key_value() {
        None => Ok(()),
        Some(((host, interface), _)) => {
            Err(LabError::usage(format!("host {host}: no link has its interface {interface}")))
        }
    }
}
