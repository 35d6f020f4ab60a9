//! `Lab::build`: real namespaces, interfaces and links, in the test's own process.

use std::os::fd::AsFd;
use std::process::{Command, Output};

use nix::sched::{CloneFlags, setns};
use testbed::lab::Lab;
use testbed::topology::{Plan, Topology};

/// Whether this process may make labs; else says why the test does not run.
fn can(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let reason = "it makes network namespaces, which needs root";
    assert!(std::env::var_os("TESTBED_REQUIRE_ALL").is_none(), "{test}: {reason}");
    eprintln!("SKIP {test}: {reason}");
    false
}

/// Two hosts, `a` (10.0.0.1) and `b` (10.0.0.2), with a link of these properties.
fn pair(properties: &str) -> Plan {
    let text = format!(
        "name = \"pair\"\n\
         [hosts.a]\ninterfaces.eth0.address = \"10.0.0.1/24\"\n\
         [hosts.b]\ninterfaces.eth0.address = \"10.0.0.2/24\"\n\
         [[links]]\nname = \"wire\"\nendpoints = [\"a:eth0\", \"b:eth0\"]\n{properties}\n"
    );
    Topology::parse("pair.toml", &text).unwrap().plan()
}

/// Runs a command in a host: a child is born where the thread is that makes it.
fn output(lab: &Lab, host: &str, argv: &[&str]) -> Output {
    let namespace = lab.netns(host).unwrap().try_clone_to_owned().unwrap();
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    std::thread::spawn(move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        command.output().unwrap()
    })
    .join()
    .unwrap()
}

/// As [`output`]; the command must succeed, and its standard output is returned.
fn run(lab: &Lab, host: &str, argv: &[&str]) -> String {
    let output = output(lab, host, argv);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{argv:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[tokio::test]
async fn two_hosts_reach_each_other_after_the_links_delay() {
    if !can("two_hosts_reach_each_other_after_the_links_delay") {
        return;
    }
    let lab = Lab::build(pair("rate = \"10 Gbit/s\"\ndelay = \"25 ms\"")).await.unwrap();
    let text = run(&lab, "a", &["ping", "-n", "-c", "3", "-i", "0.1", "10.0.0.2"]);
    let times: Vec<f64> =
        text.lines().filter_map(|l| l.split_once("time=")?.1.split_once(' ')?.0.parse().ok()).collect();
    assert_eq!(times.len(), 3, "{text}");
    assert!(times.iter().all(|t| *t >= 50.0), "{text}");
    let links = lab.links();
    assert_eq!(links[0].driver, "relay over TAP");
    // Neighbours are permanent and nothing else talks: three requests, three answers.
    assert_eq!(links[0].a_to_b.frames, 3);
    assert_eq!(links[0].b_to_a.frames, 3);
    assert!(lab.teardown().await.is_empty());
}
