//! `testbed doctor` on the machine that runs the tests.

use std::process::{Command, Output};

use crate::support::skip;

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

/// Doctor as a root of a user namespace's own, with nothing of CAP_SYS_ADMIN, after `first` was run as that root. `None`
/// (said why) where that cannot be had.
fn without_sys_admin(test: &str, first: &str) -> Option<Output> {
    let this = env!("CARGO_BIN_EXE_testbed");
    let script =
        format!("{first} && exec setpriv --bounding-set -sys_admin {this} doctor --json --color never");
    let output = Command::new("unshare").args(["--user", "--map-root-user", "sh", "-c", &script]).output();
    match output {
        Ok(output) if output.stdout.starts_with(b"{") => Some(output),
        // Where AppArmor restricts user namespaces `unshare` has no profile: what stops it says nothing of testbed.
        other => {
            skip(test, &format!("unshare and setpriv could not take CAP_SYS_ADMIN away: {other:?}"));
            None
        }
    }
}

#[test]
fn root_without_cap_sys_admin_has_labs_in_a_user_namespace() {
    let test = "root_without_cap_sys_admin_has_labs_in_a_user_namespace";
    let Some(output) = without_sys_admin(test, "true") else { return };
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["able"], true, "{report}");
    let namespaces = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "namespaces");
    assert_eq!(namespaces.unwrap()["found"], "made in a user namespace, without root", "{report}");
}

#[test]
fn where_nothing_can_run_the_exit_code_is_3_and_the_reason_is_given() {
    let test = "where_nothing_can_run_the_exit_code_is_3_and_the_reason_is_given";
    // The limit is each user namespace's own.
    let Some(output) = without_sys_admin(test, "echo 0 >/proc/sys/user/max_user_namespaces") else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("user.max_user_namespaces=15000"), "{text}");
}
