//! The steps from a plan to a lab.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::future::try_join_all;
use sha2::{Digest, Sha256};

use super::error::LabError;
use super::host::{Host, TapPlan};
use super::link::Link;
use crate::link::port::Port;
use crate::link::relay::Relay;
use crate::link::{may_offload, tap};
use crate::topology::{Driver, Endpoint, Impairment, LinkPlan, Plan};

/// Builds all of it; what was built before an error goes with it.
pub(super) async fn build(plan: &Plan) -> Result<(Vec<Host>, Vec<Link>), LabError> {
    check(plan)?;
    tap::available().map_err(|e| LabError::step("/dev/net/tun", "open it", e))?;

    let mut wanted: HashMap<&str, Vec<TapPlan>> = HashMap::new();
    for link in &plan.links {
        for (end, out) in ends(link) {
            let tap = TapPlan { interface: end.interface.clone(), offload: may_offload(out) };
            wanted.entry(&end.host).or_default().push(tap);
        }
    }
    let made = try_join_all(plan.hosts.iter().map(async |host| {
        let taps = wanted.get(host.name.as_str()).cloned().unwrap_or_default();
        let names: Vec<_> = taps.iter().map(|t| t.interface.clone()).collect();
        let (made, taps) = Host::create(host, taps).await?;
        let ports: Vec<_> = names
            .into_iter()
            .zip(taps)
            .map(|(interface, tap)| (Endpoint { host: host.name.clone(), interface }, tap.into_port()))
            .collect();
        Ok::<_, LabError>((made, ports))
    }))
    .await?;

    let mut hosts = Vec::with_capacity(made.len());
    let mut ports = HashMap::new();
    for (host, its_ports) in made {
        hosts.push(host);
        ports.extend(its_ports);
    }
    try_join_all(hosts.iter_mut().zip(&plan.hosts).map(|(host, plan)| host.configure(plan))).await?;

    let links = plan.links.iter().map(|link| relay(link, &mut ports)).collect::<Result<_, _>>()?;
    Ok((hosts, links))
}

/// Starts both directions of a link.
fn relay(link: &LinkPlan, ports: &mut HashMap<Endpoint, Port>) -> Result<Link, LabError> {
    let mut take = |end: &Endpoint| {
        ports.remove(end).ok_or_else(|| LabError::usage(format!("link {}: {end} has no port", link.name)))
    };
    let (a, b) = (take(&link.a)?, take(&link.b)?);
    let start = |from: &Endpoint, receive, transmit, impairment: &Impairment| {
        let name = format!("{}>", link.name);
        Relay::start(&name, receive, transmit, impairment, seed(&link.name, from))
            .map_err(|e| LabError::step(format!("link {}", link.name), "start its relay", e))
    };
    let a_to_b = start(&link.a, a.receive, b.transmit, &link.a_to_b)?;
    let b_to_a = start(&link.b, b.receive, a.transmit, &link.b_to_a)?;
    Ok(Link::relayed(link.clone(), "relay over TAP", [a_to_b, b_to_a]))
}

/// The same in every run, and different for every direction.
fn seed(link: &str, from: &Endpoint) -> u64 {
    let digest = Sha256::digest(format!("{link} from {from}"));
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// Each end of a link with what happens to the frames that it sends.
fn ends(link: &LinkPlan) -> [(&Endpoint, &Impairment); 2] {
    [(&link.a, &link.a_to_b), (&link.b, &link.b_to_a)]
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
            let Impairment { loss, reorder, duplicate, corrupt, .. } = out;
            if [loss, reorder, duplicate, corrupt].into_iter().any(|p| !(0.0..=1.0).contains(p)) {
                let message = format!("link {}, from {end}: a probability is not between 0 and 1", link.name);
                return Err(LabError::usage(message));
            }
        }
        if matches!(link.driver, Driver::Netem | Driver::Veth) {
            let message = format!("link {}: the driver {:?} is not available", link.name, link.driver);
            return Err(LabError::machine(message));
        }
    }
    match free.first_key_value() {
        None => Ok(()),
        Some(((host, interface), _)) => {
            Err(LabError::usage(format!("host {host}: no link has its interface {interface}")))
        }
    }
}
