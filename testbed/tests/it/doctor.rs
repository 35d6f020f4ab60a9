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

#[test]
fn where_nothing_can_run_the_exit_code_is_3_and_the_reason_is_given() {
    // Root without CAP_SYS_ADMIN, as in a container. An ordinary user gets there through a user namespace.
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    let mut argv = vec!["setpriv", "--bounding-set", "-sys_admin", env!("CARGO_BIN_EXE_testbed"), "doctor"];
    if !is_root {
        argv.splice(0..0, ["unshare", "--map-root-user"]);
    }
    argv.extend(["--color", "never"]);
    let output = Command::new(argv[0]).args(&argv[1..]).output();
    let text = match &output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => error.to_string(),
    };
    if !text.contains("kernel") {
        // Where AppArmor restricts user namespaces `unshare` and `setpriv` have no profile: what stops them says nothing of
        // testbed. As root the same case runs, and has to.
        let reason = "unshare and setpriv could not take CAP_SYS_ADMIN away";
        let is_required = is_root && std::env::var_os("TESTBED_REQUIRE_ALL").is_some();
        assert!(!is_required, "{reason}: {output:?}");
        eprintln!("SKIP where_nothing_can_run_the_exit_code_is_3_and_the_reason_is_given: {reason}");
        return;
    }
    assert_eq!(output.unwrap().status.code(), Some(3), "{text}");
    assert!(text.contains("CAP_SYS_ADMIN") && text.contains("soft labs: no"), "{text}");
}
