//! The battery in a lab whose kernel is a User-Mode Linux guest, where there are siw and rxe.

use std::process::{Command, Output, Stdio};

use testbed::kernel::{Cache, Platform};
use testbed::topology;

use crate::support::{ADDRESS, ADDRESS_V6, FABRIC, skip};

/// The address of IP version 6 that the host under test is given.
const V6: &str = "fd00::1";

#[test]
fn the_battery_over_soft() {
    battery("the_battery_over_soft", "soft");
}

#[test]
fn the_battery_over_siw() {
    battery("the_battery_over_siw", "siw");
}

#[test]
fn the_battery_over_rxe() {
    battery("the_battery_over_rxe", "rxe");
}

/// A lab of two hosts, taken down at the end.
pub(crate) struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn up(fabric: &str) -> Self {
        let lab = Self { directory: tempfile::tempdir().unwrap() };
        let output =
            lab.testbed(&["up", "direct", "--kernel", "uml", "--fabric", fabric, "--timeout", "120"]);
        assert!(output.status.success(), "{output:?}");
        lab
    }

    fn testbed(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// `testbed` with these arguments, on this lab.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
        // What surrounds the tests is of no use in a guest.
        let kept = ["HOME", "PATH", "XDG_CACHE_HOME"].map(|name| (name, std::env::var_os(name)));
        let kept = kept.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let runtime = self.directory.path().join("run");
        command.args(args).stdin(Stdio::null()).env_clear().envs(kept).env("TESTBED_RUNTIME_DIR", runtime);
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = self.testbed(&["down", "--all"]);
        assert!(output.status.success() || std::thread::panicking(), "{output:?}");
    }
}

/// Whether there is a kernel for guests; says it where there is none.
pub(crate) fn there_is_a_kernel(test: &str) -> bool {
    let there = Cache::of_user().and_then(|cache| cache.newest(Platform::Uml)).unwrap().is_some();
    if !there {
        skip(test, "no UML kernel is built; `testbed kernel build` builds one");
    }
    there
}

/// Runs the battery in one of a lab's hosts.
fn battery(test: &str, fabric: &str) {
    if !there_is_a_kernel(test) {
        return;
    }
    let lab = Lab::up(fabric);
    // Beside what the topology gives it, an address of IP version 6, which the lab has turned off where no host has one.
    let script =
        format!("echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip address add {V6}/64 dev eth0 nodad");
    let output = lab.testbed(&["exec", "server", "--", "sh", "-c", &script]);
    assert!(output.status.success(), "{output:?}");
    let address = topology::load("direct").unwrap().hosts[0].address().unwrap();
    let (fabric, address) = (format!("{FABRIC}={fabric}"), format!("{ADDRESS}={address}"));
    let address_v6 = format!("{ADDRESS_V6}={V6}");
    let this = std::env::current_exe().unwrap();
    let output = lab.testbed(&[
        "exec",
        "server",
        "--",
        "env",
        &fabric,
        &address,
        &address_v6,
        this.to_str().unwrap(),
        "--test-threads=1",
        "addresses::",
        "battery::",
        "connections::",
        "files::",
        "interoperation::",
        "killed::",
    ]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{text}");
}
