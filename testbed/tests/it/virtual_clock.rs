//! `testbed run` in guests, on their virtual clock.

use std::process::{Child, Command};

use serde_json::Value;
use testbed::kernel::{Cache, Platform};

use crate::run::{Bench, seen};
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

/// Processes that keep every processor busy; killed when they are dropped.
struct Load(Vec<Child>);

impl Load {
    fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..processors).map(|_| spin()).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for process in &mut self.0 {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

#[test]
fn a_busy_machine_shows_the_same_to_the_letter() {
    let Some(bench) = bench("a_busy_machine_shows_the_same_to_the_letter") else { return };
    let args = [&["wan-10g", "get-plain", "get-server-writes-1mib"][..], &VIRTUAL].concat();
    let idle = bench.findings(0, &args);
    let load = Load::new();
    let busy = bench.findings(0, &args);
    drop(load);
    assert_eq!(seen(&idle), seen(&busy));
    let times = |findings: &[Value]| -> Vec<String> {
        let times = seen(findings).into_iter().filter(|text| text.contains(" ms"));
        times.map(str::to_owned).collect()
    };
    assert_eq!(times(&idle).len(), 2, "each scenario has its times");
}

#[test]
fn a_time_that_is_far_from_its_golden_fails() {
    let Some(bench) = bench("a_time_that_is_far_from_its_golden_fails") else { return };
    // As if the link had been a millisecond shorter.
    bench.edit("snapshots/get-empty@soft-times.snap", |golden| {
        let line = golden.lines().find(|line| line.contains("response 1: 100.")).unwrap().to_owned();
        golden.replacen(&line, &line.replacen("100.", "99.", 1), 1)
    });
    let said = bench.expect(1, &[&["wan-10g", "get-empty"][..], &VIRTUAL].concat());
    assert!(said.contains("-  response 1: 99.") && said.contains("+  response 1: 100."), "{said}");
}

#[test]
fn every_fabric_keeps_the_promises_and_soft_and_siw_interoperate() {
    let test = "every_fabric_keeps_the_promises_and_soft_and_siw_interoperate";
    if !cfg!(feature = "verbs") {
        return skip(test, "built without the feature verbs; `cargo nextest run --all-features` has it");
    }
    let Some(bench) = bench(test) else { return };
    let chosen = ["wan-10g", "get-server-writes-1mib", "interop-*", "--fabric", "soft,siw,rxe"];
    let findings = bench.findings(0, &[&chosen[..], &VIRTUAL].concat());
    let names: Vec<String> = findings
        .iter()
        .map(|finding| {
            format!("{} {}", finding["fabric"].as_str().unwrap(), finding["name"].as_str().unwrap())
        })
        .collect();
    let expected = [
        "soft get-server-writes-1mib",
        "siw get-server-writes-1mib",
        "siw-soft interop-in-place-refused",
        "siw-soft interop-siw-serves",
        "soft-siw interop-soft-serves",
        "rxe get-server-writes-1mib",
    ];
    assert_eq!(names, expected);
    assert!(findings.iter().all(|finding| finding["verdict"] == "pass"));
    // A fabric that is not asked for runs nothing that needs it.
    let said = bench.expect(4, &[&["wan-10g", "interop-*"][..], &VIRTUAL].concat());
    assert!(said.contains("--fabric all"), "{said}");
}
