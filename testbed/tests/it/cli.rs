//! The command line itself: help, usage, exit codes, JSON.

use std::process::{Command, Output};

use serde_json::Value;

fn testbed(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    let runtime = std::env::temp_dir().join(format!("testbed-cli-{}", std::process::id()));
    command
        .args(args)
        .env_remove("TESTBED_JSON")
        .env_remove("TESTBED_LAB")
        .env("TESTBED_RUNTIME_DIR", runtime);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_verb_has_help_with_examples() {
    let help = text(&testbed(&["--help"]).stdout);
    for verb in ["up", "down", "status", "exec", "shell", "capture", "link", "completions"] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(&format!("{verb} "))),
            "{verb}: {help}"
        );
        let output = testbed(&[verb, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("Examples:"), "{verb} has no examples");
    }
    assert!(!help.contains(" agent "), "the verb `agent` is not for people: {help}");
}

#[test]
fn the_version_is_the_packages() {
    let output = testbed(&["--version"]);
    assert_eq!(text(&output.stdout), format!("testbed {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_2() {
    for args in
        [&[][..], &["no-such-verb"], &["up"], &["up", "direct", "--timeout", "never"], &["exec", "host"]]
    {
        let output = testbed(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
    let output = testbed(&["up", "direct", "--name", "../x"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("cannot be a lab's name"));
}

#[test]
fn errors_are_json_when_json_is_asked_for() {
    let output = testbed(&["exec", "--json", "client", "true"]);
    assert_eq!(output.status.code(), Some(2));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["message"], "no lab is up");
    assert!(error["help"].as_str().unwrap().contains("testbed up"));
}

#[test]
fn a_dry_run_prints_the_plan_and_makes_nothing() {
    let output = testbed(&["up", "wan-10g", "--dry-run"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("10 Gbit/s, 25ms, queue 62.5 MB"));
    let output = testbed(&["up", "wan-10g", "--dry-run", "--json"]);
    let plan: testbed::topology::Plan = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan, testbed::topology::load("wan-10g").unwrap());
    assert_eq!(text(&testbed(&["status"]).stdout), "no lab is up\n");
}

#[test]
fn the_agent_is_not_started_by_hand() {
    let output = testbed(&["agent", "/nowhere/lab"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("started by `testbed up`"));
}

#[test]
fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let output = testbed(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("capture"), "{shell}");
    }
}

#[test]
fn by_its_other_names_it_is_the_system() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["rdma-httpd", "rdma-fetch"] {
        let link = directory.path().join(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_testbed"), &link).unwrap();
        let output = Command::new(&link).arg("--help").output().unwrap();
        assert!(text(&output.stdout).contains(&format!("Usage: {name}")), "{output:?}");
    }
}

#[test]
fn what_cannot_be_printed_is_a_failure_but_a_closed_pipe_is_none() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    for args in [&["validate", "wan-10g"][..], &["status", "--json"], &["up", "wan-10g", "--dry-run"]] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_testbed"));
        let output = command.args(args).stdout(full.try_clone().unwrap()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains("cannot write to standard output"), "{args:?}: {text}");

        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_testbed"));
        assert_eq!(command.args(args).stdout(write).status().unwrap().code(), Some(0), "{args:?}");
    }
}
