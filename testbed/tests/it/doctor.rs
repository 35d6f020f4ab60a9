//! `testbed doctor` on the machine that runs the tests.

use std::process::{Command, Output};

fn doctor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_testbed"))
        .arg("doctor")
        .args(args)
        .env_remove("TESTBED_JSON")
        .output()
        .unwrap()
}

#[test]
fn the_exit_code_says_whether_a_lab_can_be_had() {
    let output = doctor(&["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let able = report["able"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(if able { 0 } else { 3 }));
    let checks = report["checks"].as_array().unwrap();
    let names: Vec<_> = checks.iter().filter_map(|check| check["name"].as_str()).collect();
    for name in ["kernel", "namespaces", "siw", "rxe", "memlock", "curl", "tshark"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    for check in checks.iter().filter(|check| check["status"] != "ok") {
        assert_ne!(check["meaning"], "", "{check}");
    }
}

#[test]
fn the_kernel_is_the_one_that_runs() {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let output = doctor(&["--color", "never"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(release.trim()), "{text}");
    assert!(text.contains("soft labs: "), "{text}");
}
