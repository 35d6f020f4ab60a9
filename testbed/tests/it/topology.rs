//! `testbed validate` and `testbed graph`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `testbed` in `directory`, with `input` on its standard input.
fn testbed(directory: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(args)
        .current_dir(directory)
        .env_remove("TESTBED_JSON")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that ends without reading is no failure of the test's.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const BROKEN: &str = "\
[hosts.server]
[hosts.client]
[[links]]
endpoints = [\"server:eth0\", \"client:eth0\"]
rate = \"0 Gbit/s\"
";

#[test]
fn what_is_shipped_is_good_anywhere() {
    let elsewhere = tempfile::tempdir().unwrap();
    let output = testbed(elsewhere.path(), &["validate"], "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    insta::assert_snapshot!(text(&output.stdout), @r"
    direct: good (2 hosts, 1 link)
    lan-10g: good (2 hosts, 1 link)
    wan-10g: good (2 hosts, 1 link)
    wan-10g-lossy: good (2 hosts, 1 link)
    wan-1g: good (2 hosts, 1 link)
    ");
}

#[test]
fn a_bad_file_is_exit_code_2_with_the_place_and_what_was_meant() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("lab.toml"), BROKEN).unwrap();
    let output = testbed(directory.path(), &["validate", "lab.toml"], "");
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(text(&output.stderr), @r#"
     × lab.toml:5:8: a rate of "0 Gbit/s" is impossible
      ╭─[lab.toml:5:8]
    4 │ endpoints = ["server:eth0", "client:eth0"]
    5 │ rate = "0 Gbit/s"
      ·        ─────┬────
      ·             ╰── here
      ╰────
     help: from 1 kbit/s to 1 Tbit/s; leave it out, or write "unlimited", for none
    "#);
}

#[test]
fn the_nearest_topologies_directory_wins_over_the_copies_inside() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("a/b");
    std::fs::create_dir_all(&below).unwrap();
    std::fs::create_dir(directory.path().join("topologies")).unwrap();
    std::fs::write(directory.path().join("topologies/wan-10g.toml"), BROKEN).unwrap();
    let output = testbed(&below, &["graph", "wan-10g"], "");
    assert_eq!(output.status.code(), Some(2));
    let message = text(&output.stderr);
    assert!(
        message.contains("topologies/wan-10g.toml:5:8: a rate of \"0 Gbit/s\" is impossible"),
        "{message}"
    );
}

#[test]
fn standard_input_is_read_and_json_has_every_problem() {
    let directory = tempfile::tempdir().unwrap();
    let input = BROKEN.replace("client:", "clent:");
    let output = testbed(directory.path(), &["validate", "-", "wan-10g", "--json"], &input);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    let verdicts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&verdicts[0]["valid"], &verdicts[1]["valid"]), (&false.into(), &true.into()));
    let problems = verdicts[0]["problems"].as_array().unwrap();
    let places: Vec<_> = problems.iter().map(|p| (p["line"].as_u64(), p["column"].as_u64())).collect();
    assert_eq!(places, [(Some(4), Some(29)), (Some(5), Some(8))]);
    assert_eq!(problems[0]["help"], "did you mean \"client:eth0\"?");
}

#[test]
fn what_is_not_there_is_exit_code_2_with_what_is() {
    let directory = tempfile::tempdir().unwrap();
    let output = testbed(directory.path(), &["graph", "wan-10"], "");
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(text(&output.stderr), @r#"
    × there is no topology "wan-10"
    help: did you mean "wan-10g"? there are: direct, lan-10g, wan-10g, wan-10g-lossy, wan-1g; or give the path of a file
    "#);
    let output = testbed(directory.path(), &["graph", "./none.toml"], "");
    assert_eq!(output.status.code(), Some(2));
    let message = text(&output.stderr);
    assert!(message.contains("./none.toml"), "{message}");
}

#[test]
fn the_schema_is_json() {
    let output = testbed(Path::new("."), &["validate", "--schema"], "");
    assert_eq!(output.status.code(), Some(0));
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["properties"]["links"]["items"]["required"], serde_json::json!(["endpoints"]));
}

#[test]
fn a_graph_shows_hosts_addresses_and_links() {
    let elsewhere = tempfile::tempdir().unwrap();
    let output = testbed(elsewhere.path(), &["graph", "wan-10g"], "");
    assert_eq!(output.status.code(), Some(0));
    insta::assert_snapshot!(text(&output.stdout), @r"
    wan-10g: two hosts, 10 Gbit/s, 25 ms each way
    ├── server
    │   └── eth0 10.10.0.1/24  ── wan ─▶ client:eth0  10 Gbit/s, 25 ms, queue 62.5 MB
    └── client
        └── eth0 10.10.0.2/24  ── wan ─▶ server:eth0  10 Gbit/s, 25 ms, queue 62.5 MB
    ");
}
