//! What holds for every file, good or bad.

use std::collections::{BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;

/// Lines that mean something to the parser, to be mixed up.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("[hosts.a]".to_owned()),
        Just("[hosts.b]".to_owned()),
        Just("[[links]]".to_owned()),
        Just("[defaults]".to_owned()),
        Just("endpoints = [\"a:eth0\", \"b:eth0\"]".to_owned()),
        "endpoints = \\[\"[ab]:[a-z]{1,20}\"(, \"[abc]:eth1\")?\\]",
        "interfaces\\.eth[01]\\.address = \"[0-9a-f.:]{1,12}/[0-9]{1,3}\"",
        "(rate|delay|queue|jitter|loss|mtu|driver) = (\"[0-9.]{1,20} ?(Gbit/s|ms|bdp|MB|%)?\"|-?[0-9.]{1,20})",
        "sysctls\\.[a-z.]{1,10} = .{0,5}",
        ".{0,20}",
    ]
}

/// A ring of hosts with chords, some with addresses of their own: always good.
fn network() -> impl Strategy<Value = String> {
    let addresses = prop::collection::vec(prop::option::of((10..13_u8, 0..3_u8, 1..250_u8)), 2..8);
    let chords = prop::collection::vec((1..8_usize, 0..2_000_u32, 1..100_u32), 0..6);
    (addresses, chords).prop_map(|(addresses, chords)| {
        let hosts = addresses.len();
        let (mut text, mut links) = (String::new(), String::new());
        let mut subnets = BTreeSet::new();
        for (number, address) in addresses.iter().enumerate() {
            text += &format!("[hosts.h{number}]\n");
            if let Some((b, c, d)) = address.filter(|(b, c, _)| subnets.insert((*b, *c))) {
                text += &format!("interfaces.eth0.address = \"10.{b}.{c}.{d}/24\"\n");
            }
            let next = (number + 1) % hosts;
            links += &format!(
                "[[links]]\nendpoints = [\"h{number}:eth0\", \"h{next}:eth1\"]\nrate = \"1 Mbit/s\"\n"
            );
        }
        for (number, (chord, delay, rate)) in chords.iter().enumerate() {
            let (a, b) = (number % hosts, (number + chord) % hosts);
            if a != b {
                links += &format!("[[links]]\nendpoints = [\"h{a}:a{number}\", \"h{b}:b{number}\"]\n");
                links += &format!("delay = \"{delay} us\"\nrate = \"{rate} Mbit/s\"\n");
            }
        }
        text + &links
    })
}

proptest! {
    #[test]
    fn every_good_network_gets_addresses_that_can_work(text in network()) {
        let topology = Topology::parse("t.toml", &text);
        prop_assert!(topology.is_ok(), "{}\n{:?}", text, topology);
        let topology = topology.unwrap();
        let plan = topology.plan();
        let interfaces: Vec<_> = plan.hosts.iter().flat_map(|host| &host.interfaces).collect();
        let distinct = |n: usize| n == interfaces.len();
        prop_assert!(distinct(interfaces.iter().map(|i| i.address.addr()).collect::<HashSet<_>>().len()));
        prop_assert!(distinct(interfaces.iter().map(|i| i.mac).collect::<HashSet<_>>().len()));
        for link in &topology.links {
            let [a, b] = [0, 1].map(|end| link.ends[end].address);
            prop_assert_eq!(a.trunc(), b.trunc());
        }
        prop_assert!(plan.links.iter().all(|link| link.a_to_b.queue >= Some(4 * 1_514)));
    }

    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = Topology::parse("t.toml", &text).map(|topology| topology.plan());
    }

    #[test]
    fn nothing_like_a_topology_panics_and_what_is_accepted_has_a_whole_plan(
        lines in prop::collection::vec(line(), 0..20),
    ) {
        let text = lines.join("\n");
        match Topology::parse("t.toml", &text) {
            Ok(topology) => {
                let plan = topology.plan();
                prop_assert!(plan.hosts.iter().all(|host| host.address().is_some()));
                let json = serde_json::to_string(&plan).unwrap();
                prop_assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
            }
            Err(error) => {
                prop_assert!(!error.problems().is_empty());
                let lines = text.lines().count().max(1);
                prop_assert!(error.problems().iter().all(|problem| problem.line() <= lines + 1));
            }
        }
    }
}
