//! Programs that die or stall in the middle of a transfer, and what becomes of the other side.

use nix::sys::signal::Signal;
use rdma_http::events::Event;

use crate::program::{Httpd, Running, assert_no_leak, command, failures, fallbacks, received};

/// Long enough that no transfer of it is over before the test has seen it begin; its zeros take no room.
const LONG: u64 = 1 << 30;

/// rdma-fetch of a body that is on its way: the server has told of a Write.
struct InTransfer {
    httpd: Httpd,
    fetch: Running,
    directory: tempfile::TempDir,
}

fn in_transfer(httpd_args: &[&str], fetch_args: &[&str], length: u64) -> InTransfer {
    let mut httpd = Httpd::start(httpd_args);
    httpd.sparse_file("long.bin", length);
    let directory = tempfile::tempdir().unwrap();
    let mut fetch = command(env!("CARGO_BIN_EXE_rdma-fetch"));
    fetch.arg(httpd.url("/long.bin")).arg("-o").arg(directory.path().join("out"));
    // So that it all goes before the response does.
    fetch
        .args(["--maxlen", "1GiB", "--events", "-"])
        .args(fetch_args)
        .stderr(std::fs::File::create(directory.path().join("err")).unwrap());
    let fetch = Running::start(fetch);
    httpd.running.wait_for("write", |event| matches!(event, Event::Operation { op, .. } if op == "write"));
    InTransfer { httpd, fetch, directory }
}

#[test]
fn a_client_that_dies_costs_the_server_nothing() {
    let InTransfer { mut httpd, fetch, .. } = in_transfer(&[], &[], LONG);
    fetch.signal(Signal::SIGKILL);
    let failed = httpd.running.wait_for("failure", |event| matches!(event, Event::Failed { .. }));
    let Event::Failed { error } = failed else { unreachable!() };
    assert!(
        error.contains("transfer to 127.0.0.1:") && error.contains(&format!("of {LONG} bytes")),
        "{error}"
    );

    // It serves on.
    let body = httpd.file("next.bin", 4096);
    let next = crate::program::fetch(&httpd.url("/next.bin"), &["--require-rdma"]);
    assert_eq!((next.code, next.body), (Some(0), Some(body)), "{}", next.stderr);
    let events = httpd.stop();
    assert_eq!(failures(&events).len(), 1, "{events:#?}");
    assert_eq!(assert_no_leak(&events).1, 2);
}

#[test]
fn a_server_that_dies_leaves_no_file() {
    let InTransfer { httpd, fetch, directory } = in_transfer(&[], &[], LONG);
    httpd.running.signal(Signal::SIGKILL);
    let (status, events) = fetch.end();
    let stderr = std::fs::read_to_string(directory.path().join("err")).unwrap();
    assert_eq!(status.code(), Some(18), "{stderr}");
    assert!(stderr.contains("ended before the response came"), "{stderr}");
    assert_eq!(failures(&events).len(), 1, "{events:#?}");
    assert_eq!(received(&events), []);
    assert_eq!(assert_no_leak(&events), (1, 1));
    let left: Vec<_> = directory.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["err"]);
}

#[test]
fn a_client_that_is_interrupted_says_so() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let InTransfer { httpd, fetch, directory } = in_transfer(&[], &[], LONG);
        fetch.signal(signal);
        let (status, events) = fetch.end();
        assert_eq!(status.code(), Some(code));
        assert_eq!(assert_no_leak(&events), (1, 1));
        assert!(!directory.path().join("out").exists());
        assert_eq!(assert_no_leak(&httpd.stop()).1, 1);
    }
}

#[test]
fn a_client_that_stalls_is_given_up_and_asks_again() {
    let length = 128 << 20;
    let InTransfer { mut httpd, fetch, directory } = in_transfer(&["--stall-timeout", "0.5"], &[], length);
    fetch.signal(Signal::SIGSTOP);
    let answer = httpd.running.wait_for("answer", |event| matches!(event, Event::HttpResponse { .. }));
    let Event::HttpResponse { status, headers, .. } = answer else { unreachable!() };
    assert_eq!(status, 500);
    let said = headers.iter().any(|field| *field == ("rdma".into(), "failed, reason=timed-out".into()));
    assert!(said, "{headers:?}");
    fetch.signal(Signal::SIGCONT);

    let (status, events) = fetch.end();
    assert_eq!(status.code(), Some(0));
    assert_eq!(fallbacks(&events), ["timed-out"]);
    assert_eq!(received(&events), [("tcp", length)]);
    assert_eq!(assert_no_leak(&events), (1, 1));
    assert_eq!(std::fs::metadata(directory.path().join("out")).unwrap().len(), length);
    let events = httpd.stop();
    assert!(failures(&events)[0].contains("the peer took nothing for 500ms"), "{events:#?}");
    assert_eq!(assert_no_leak(&events).1, 1);
}

#[test]
fn a_server_that_is_told_to_stop_finishes_what_it_began() {
    let length = 64 << 20;
    let InTransfer { httpd, fetch, directory } = in_transfer(&[], &[], length);
    let events = httpd.stop();
    assert_eq!(failures(&events), Vec::<&str>::new());
    assert_eq!(assert_no_leak(&events), (64, 1));
    let (status, events) = fetch.end();
    assert_eq!(status.code(), Some(0));
    assert_eq!(received(&events), [("rdma", length)]);
    assert_eq!(std::fs::metadata(directory.path().join("out")).unwrap().len(), length);
}

#[test]
fn a_server_that_is_told_to_stop_waits_for_nobody_for_ever() {
    let InTransfer { httpd, fetch, .. } = in_transfer(&["--shutdown-timeout", "0.3"], &[], LONG);
    fetch.signal(Signal::SIGSTOP);
    let events = httpd.stop();
    assert_eq!(failures(&events).len(), 1, "{events:#?}");
    assert_eq!(assert_no_leak(&events).1, 1);
}

#[test]
fn a_second_signal_ends_a_server_at_once() {
    let InTransfer { httpd, fetch, .. } = in_transfer(&["--shutdown-timeout", "3600"], &[], LONG);
    fetch.signal(Signal::SIGSTOP);
    httpd.running.signal(Signal::SIGTERM);
    // It is in the midst of stopping when it accepts nobody any more.
    while std::net::TcpStream::connect(httpd.address).is_ok() {
        std::thread::yield_now();
    }
    httpd.running.signal(Signal::SIGTERM);
    let (status, _) = httpd.running.end();
    assert_eq!(status.code(), Some(128 + 15));
}
