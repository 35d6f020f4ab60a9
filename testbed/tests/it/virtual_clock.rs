//! `testbed run` in guests, on their virtual clock.

use serde_json::Value;
use testbed::kernel::{Cache, Platform};

use crate::run::Bench;
use crate::support::{Labs, skip};

/// A bench, if there is a kernel for guests.
fn bench(test: &str) -> Option<Bench> {
    let image = Cache::of_user().and_then(|cache| cache.newest(Platform::Uml)).unwrap();
    if image.is_none() {
        skip(test, "no UML kernel is built; `testbed kernel build` builds one");
        return None;
    }
    Bench::new(Labs::new(test))
}

const VIRTUAL: [&str; 4] = ["--kernel", "uml", "--clock", "virtual"];

#[test]
fn a_guest_on_the_virtual_clock_shows_what_the_machine_itself_shows() {
    let test = "a_guest_on_the_virtual_clock_shows_what_the_machine_itself_shows";
    let Some(bench) = bench(test) else { return };
    let chosen = ["wan-10g", "get-empty", "get-server-writes-1mib", "get-unreachable"];
    let findings = bench.findings(0, &[&chosen[..], &VIRTUAL].concat());
    let verdicts: Vec<&Value> = findings.iter().map(|finding| &finding["verdict"]).collect();
    assert_eq!(verdicts, ["pass"; 3]);
    let fabrics: Vec<&Value> = findings.iter().map(|finding| &finding["fabric"]).collect();
    assert_eq!(fabrics, ["soft"; 3]);
}

#[test]
fn what_differs_in_a_guest_fails() {
    let Some(bench) = bench("what_differs_in_a_guest_fails") else { return };
    bench.edit("snapshots/get-missing.snap", |golden| golden.replacen("< 404", "< 405", 1));
    let said = bench.expect(1, &[&["wan-10g", "get-missing"][..], &VIRTUAL].concat());
    assert!(said.contains("-    < 405\n+    < 404\n"), "{said}");
}

#[test]
fn what_goes_wrong_in_a_guest_is_an_error_with_the_programs_words() {
    let test = "what_goes_wrong_in_a_guest_is_an_error_with_the_programs_words";
    let Some(bench) = bench(test) else { return };
    bench.edit("get-unreachable.toml", |file| file.replacen("--allow-rdma-to", "--no-such-flag", 1));
    // On the virtual clock no time passes while nothing happens, however long that is.
    bench.edit("get-missing.toml", |file| file.replacen("[server]", "timeout = \"1ms\"\n[server]", 1));
    let said = bench.expect(1, &[&["wan-10g", "get-unreachable", "get-missing"][..], &VIRTUAL].concat());
    assert!(said.contains("rdma-httpd ended with exit code 2 before it listened"), "{said}");
    assert!(said.contains("--no-such-flag"), "{said}");
    assert!(said.contains("it was not over after 0.001 s"), "{said}");
}
