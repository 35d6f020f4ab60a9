//! Command lines: mistakes, defaults, streams.

use std::process::Output;

use crate::program::{Httpd, command, run};

fn fetch(args: &[&str]) -> Output {
    run(command(env!("CARGO_BIN_EXE_rdma-fetch")).args(args))
}

fn httpd(args: &[&str]) -> Output {
    run(command(env!("CARGO_BIN_EXE_rdma-httpd")).args(args))
}

#[test]
fn mistakes_are_usage_errors() {
    for (args, message) in [
        (&[][..], "<URL>"),
        (&["ftp://x/"], "ftp is not supported; expected http or https"),
        (&["http://x/a", "https://x/b"], "in one call; give each scheme one of its own"),
        (&["http://[::1/"], "expected http://HOST"),
        (&["http://x/", "--maxlen", "1X"], "expected bytes"),
        (&["http://x/", "--timeout", "0"], "expected seconds"),
        (&["http://x/", "--mode", "fast"], "possible values: auto, server-writes, client-reads"),
        (&["http://x/", "-H", "novalue"], "expected NAME: VALUE"),
        (&["http://x/", "--log", "x=y=z"], "--log x=y=z"),
        (&["http://x/", "--mode", "plain", "--require-rdma"], "--require-rdma and --mode plain"),
        (&["http://x/", "-H", "RDMA: x"], "RDMA is not yours to send"),
        (&["http://x/", "-o", "-", "--events", "-"], "standard output cannot take both"),
    ] {
        let output = fetch(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(message), "{args:?}: {stderr}");
    }
    assert_eq!(httpd(&["--root", "/", "--listen", "nowhere"]).status.code(), Some(2));
    assert_eq!(httpd(&["--root", "/", "--window", "0"]).status.code(), Some(2));
    for flag in ["--max-registered", "--max-registered-per-peer"] {
        let output = httpd(&["--root", "/", "--chunk-size", "64K", "--window", "2", flag, "131071"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        let told = format!(
            "--chunk-size 65536 times --window 2 is 131072 bytes for one transfer, and {flag} allows"
        );
        assert!(stderr.contains(&told), "{stderr}");
    }
    let missing = httpd(&["--root", "/does/not/exist"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("--root /does/not/exist: No such file"));
}

#[test]
fn help_and_version_are_no_errors() {
    for run in [fetch, httpd] {
        let help = run(&["--help"]);
        assert_eq!(help.status.code(), Some(0));
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(help.contains("Examples:") && help.contains("Exit codes"), "{help}");
        let version = run(&["--version"]);
        assert_eq!(version.status.code(), Some(0));
        assert!(String::from_utf8(version.stdout).unwrap().contains(env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn the_output_is_named_after_the_url() {
    let server = Httpd::start(&[]);
    let body = server.file("name.bin", 3000);
    let directory = tempfile::tempdir().unwrap();
    let mut fetch = command(env!("CARGO_BIN_EXE_rdma-fetch"));
    let output = run(fetch.current_dir(directory.path()).arg(server.url("/name.bin?x=y")));
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(std::fs::read(directory.path().join("name.bin")).unwrap(), body);
    assert_eq!(directory.path().read_dir().unwrap().count(), 1);
}

#[test]
fn a_body_may_go_to_a_stream() {
    let server = Httpd::start(&[]);
    let body = server.file("body.bin", 3_000_000);
    let output = fetch(&[&server.url("/body.bin"), "-o", "-", "--json"]);
    assert!(output.status.success());
    assert_eq!(output.stdout, body);
    let summary: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(summary["bytes"], 3_000_000);

    let full = fetch(&[&server.url("/body.bin"), "-o", "/dev/full"]);
    assert_eq!(full.status.code(), Some(23), "{full:?}");
    // Found before anything is sent, so no server is needed.
    let nowhere = fetch(&["http://127.0.0.1:1/", "-o", "/does/not/exist"]);
    assert_eq!(nowhere.status.code(), Some(23), "{nowhere:?}");
}

#[test]
fn settings_may_come_from_the_environment() {
    let server = Httpd::start(&[]);
    let body = server.file("body.bin", 3000);
    let mut fetch = command(env!("CARGO_BIN_EXE_rdma-fetch"));
    fetch.env("RDMA_FETCH_URL", server.url("/body.bin")).env("RDMA_FETCH_OUTPUT", "-");
    fetch.env("RDMA_FETCH_MODE", "plain").env("RDMA_FETCH_JSON", "true");
    let output = run(&mut fetch);
    assert_eq!(output.stdout, body);
    let summary: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(summary["via"], "tcp");
}

#[test]
fn without_fail_an_error_page_is_a_body() {
    let server = Httpd::start(&[]);
    let url = server.url("/missing");
    assert_eq!(fetch(&[&url, "-o", "-"]).status.code(), Some(0));
    let failed = fetch(&[&url, "-o", "-", "-f"]);
    assert_eq!(failed.status.code(), Some(22));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("404 Not Found"));
}
