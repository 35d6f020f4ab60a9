//! `testbed bench`: that it measures, not what. Machines differ.

use std::process::{Command, Output};

fn testbed(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_testbed")).args(args).env_remove("TESTBED_JSON").output().unwrap()
}

#[test]
fn a_figure_has_a_value_a_reference_and_their_ratio() {
    if testbed(&["doctor"]).status.code() != Some(0) {
        let reason = "no lab can be brought up here, says testbed doctor";
        assert!(std::env::var_os("TESTBED_REQUIRE_ALL").is_none(), "{reason}");
        eprintln!("SKIP a_figure_has_a_value_a_reference_and_their_ratio: {reason}");
        return;
    }
    let output = testbed(&["bench", "up-down", "--rounds", "1", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let [both, up, down] = &rows.as_array().unwrap()[..] else { panic!("{rows}") };
    let number = |row: &serde_json::Value, key: &str| row[key].as_f64().unwrap();
    assert_eq!(both["figure"], "up-down");
    assert_eq!(both["target"]["at-most"], 1.0);
    // serde_json's fast reader of numbers may be off by the last bit.
    let ratio = number(both, "value") / number(both, "reference");
    assert!((number(both, "ratio") / ratio - 1.0).abs() < 1e-12, "{rows}");
    // One round: the parts make the whole.
    let sum = number(up, "value") + number(down, "value");
    assert!((sum - number(both, "value")).abs() < 1e-6, "{rows}");
}

#[test]
fn a_guest_that_cannot_be_measured_is_exit_code_3_with_what_mends_it() {
    let empty = tempfile::tempdir().unwrap();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_testbed"));
    bench.args(["bench", "guest-ready-uml"]).env("TESTBED_CACHE_DIR", empty.path());
    let output = bench.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("testbed kernel build uml"), "{message}");
}

#[test]
fn figures_that_cannot_be_written_are_a_failure() {
    if testbed(&["doctor"]).status.code() != Some(0) {
        let reason = "no lab can be brought up here, says testbed doctor";
        assert!(std::env::var_os("TESTBED_REQUIRE_ALL").is_none(), "{reason}");
        eprintln!("SKIP figures_that_cannot_be_written_are_a_failure: {reason}");
        return;
    }
    for json in [&[][..], &["--json"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut bench = Command::new(env!("CARGO_BIN_EXE_testbed"));
        bench.args(["bench", "up-down", "--rounds", "1"]).args(json).stdout(full);
        let output = bench.output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("cannot write to standard output"), "{message}");
    }
}

#[test]
fn a_figure_that_is_none_is_exit_code_2_with_those_there_are() {
    let output = testbed(&["bench", "relay-thruput"]);
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("relay-throughput"), "{message}");
}
