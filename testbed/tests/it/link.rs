//! `testbed link`: what it says and does to a lab that is up.

use std::fs;

use serde_json::Value;
use testbed::kernel::{Cache, Platform};

use crate::support::{Labs, skip};

const CABLE: &str = "cable";

/// The exit code of one ping from client to server, which waits for half a second: for a link that carries nothing.
fn ping(labs: &Labs) -> Option<i32> {
    labs.run(["exec", "client", "--", "ping", "-q", "-c", "1", "-W", "0.5", "server"]).status.code()
}

/// Whether one ping of many from client to server is answered. One alone would not do: while a neighbour's address is
/// asked for anew, which the kernel does once in a second, packets wait.
fn reaches(labs: &Labs) -> bool {
    let ping = ["ping", "-q", "-c", "1", "-i", "0.2", "-w", "20", "server"];
    labs.run([&["exec", "client", "--"][..], &ping].concat()).status.success()
}

fn link(labs: &Labs, args: &[&str]) -> Value {
    let text = labs.expect(0, [&["link"], args, &["--json"]].concat());
    serde_json::from_str(&text).unwrap()
}

/// Cuts, heals and changes the link of the lab that is up, in one direction and in both.
fn cut_heal_and_change(labs: &Labs) {
    assert!(reaches(labs));
    assert_eq!(link(labs, &["cut", CABLE])["a_to_b"]["cut"], true);
    assert_eq!(ping(labs), Some(1), "a cut link carried a ping");
    assert_eq!(link(labs, &["heal", CABLE])["b_to_a"]["cut"], false);
    assert!(reaches(labs));

    let cut = link(labs, &["cut", CABLE, "--from", "server"]);
    assert_eq!((&cut["a_to_b"]["cut"], &cut["b_to_a"]["cut"]), (&true.into(), &false.into()));
    assert_eq!(ping(labs), Some(1), "no answer can come");
    link(labs, &["heal", CABLE]);

    link(labs, &["set", CABLE, "--loss", "100 %"]);
    assert_eq!(ping(labs), Some(1), "everything was to be lost");
    let changed = link(labs, &["set", CABLE, "--loss", "0", "--delay", "60 ms", "--from", "client"]);
    assert_eq!(changed["b_to_a"]["does"]["delay"]["nanos"], 60_000_000);
    assert_eq!(changed["a_to_b"]["does"]["loss"], 1.0);
    assert_eq!(link(labs, &["set", CABLE, "--reset"])["a_to_b"]["does"]["loss"], 0.0);
    assert!(reaches(labs));
}

#[test]
fn a_link_is_cut_healed_and_changed() {
    let Some(labs) = Labs::new("a_link_is_cut_healed_and_changed") else { return };
    labs.expect(0, ["up", "direct"]);
    cut_heal_and_change(&labs);

    // No frame is earlier than its delay.
    labs.expect(0, ["link", "set", CABLE, "--delay", "40 ms"]);
    let text = labs.expect(0, ["exec", "client", "--", "ping", "-c", "1", "server"]);
    let time = text.split("time=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(time.parse::<f64>().unwrap() >= 80.0, "{text}");
    let shown = labs.expect(0, ["link", "show"]);
    assert!(shown.contains("server -> client  40ms") && shown.contains("client -> server  40ms"), "{shown}");
}

#[test]
fn what_cannot_be_changed_is_refused_with_the_reason() {
    let Some(labs) = Labs::new("what_cannot_be_changed_is_refused_with_the_reason") else { return };
    labs.expect(0, ["up", "direct"]);
    for (args, reason) in [
        (&["cut", "wire"][..], "its links are cable"),
        (&["cut", CABLE, "--from", "nobody"], "its ends are server:eth0 and client:eth0"),
        (&["set", CABLE], "--delay"),
        (&["set", CABLE, "--delay", "25"], "has no unit"),
        (&["set", CABLE, "--loss", "50"], "did you mean"),
        (&["set", CABLE, "--jitter", "1 ms"], "no frame can arrive before it was sent"),
        (&["set", CABLE, "--queue", "1 MB"], "give the link a rate"),
    ] {
        let text = labs.expect(2, [&["link"], args].concat());
        assert!(text.contains(reason), "{args:?}: {text}");
    }
    labs.expect(0, ["down"]);

    let file = labs.path("bare.toml");
    let direct = include_str!("../../../topologies/direct.toml");
    fs::write(&file, format!("{}driver = \"veth\"\n", direct.replace("direct", "bare"))).unwrap();
    labs.expect(0, ["up", file.to_str().unwrap()]);
    let text = labs.expect(2, ["link", "cut", CABLE]);
    assert!(text.contains("a bare veth pair impairs nothing"), "{text}");
}

#[test]
fn a_link_of_netems_is_changed_by_netlink() {
    let test = "a_link_of_netems_is_changed_by_netlink";
    if Cache::of_user().and_then(|cache| cache.newest(Platform::Uml)).unwrap().is_none() {
        return skip(test, "no UML kernel is built; `testbed kernel build` builds one");
    }
    let Some(labs) = Labs::new(test) else { return };
    let file = labs.path("netem.toml");
    let direct = include_str!("../../../topologies/direct.toml");
    let text = format!("{}driver = \"netem\"\nloss = 1.0\n", direct.replace("direct", "netem"));
    fs::write(&file, text).unwrap();
    labs.up_in_guest(&[file.to_str().unwrap()]);
    assert_eq!(ping(&labs), Some(1), "every frame is lost");
    labs.expect(0, ["link", "set", CABLE, "--loss", "0"]);
    assert!(reaches(&labs));
    link(&labs, &["cut", CABLE]);
    assert_eq!(ping(&labs), Some(1));
    link(&labs, &["heal", CABLE]);
    assert!(reaches(&labs));
    let rate = link(&labs, &["set", CABLE, "--rate", "1 Mbit/s", "--from", "server"]);
    assert_eq!(rate["a_to_b"]["does"]["rate"], 1_000_000);
    assert_eq!(link(&labs, &["set", CABLE, "--rate", "unlimited"])["a_to_b"]["does"]["rate"], Value::Null);
    assert!(reaches(&labs));
}
