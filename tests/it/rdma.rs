//! rdma-fetch and rdma-httpd, by RDMA.

use std::net::SocketAddr;
use std::sync::Arc;

use rdma_http::client::{Client, Options, Via};
use rdma_http::events::{Event, Recorder};
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::header::Mode;

use crate::program::{
    Httpd, assert_no_leak, command, fallbacks, fetch, operations, read_events, received, run, sha256,
};

const MIB: usize = 1 << 20;

#[test]
fn bodies_of_all_sizes_arrive() {
    for (length, writes) in [
        (1, vec![1]),
        (MIB - 1, vec![MIB - 1]),
        (MIB, vec![MIB]),
        (MIB + 1, vec![MIB, 1]),
        (64 * MIB, vec![MIB; 64]),
    ] {
        let httpd = Httpd::start(&[]);
        let body = httpd.file("body.bin", length);
        let got = fetch(&httpd.url("/body.bin"), &["--require-rdma"]);
        assert_eq!(got.code, Some(0), "{}", got.stderr);
        assert_eq!(sha256(&got.body.unwrap()), sha256(&body));
        assert_eq!(received(&got.events), [("rdma", length as u64)]);
        assert_eq!(operations(&got.events, "receive"), [32]);
        assert_eq!(assert_no_leak(&got.events), (1, 1));

        let events = httpd.stop();
        let writes: Vec<u64> = writes.into_iter().map(|length| length as u64).collect();
        assert_eq!(operations(&events, "write"), writes);
        assert_eq!(operations(&events, "send"), [32]);
        assert_eq!(assert_no_leak(&events), (writes.len(), 1));
        assert_eq!(fallbacks(&events), Vec::<&str>::new());
    }
}

#[test]
fn no_body_is_no_transfer() {
    let httpd = Httpd::start(&[]);
    httpd.file("empty.bin", 0);
    let got = fetch(&httpd.url("/empty.bin"), &[]);
    assert_eq!((got.code, got.body.as_deref()), (Some(0), Some(&b""[..])), "{}", got.stderr);
    assert_eq!(fallbacks(&got.events), ["empty"]);
    let missing = fetch(&httpd.url("/missing.bin"), &["-f"]);
    assert_eq!((missing.code, missing.body.as_deref()), (Some(22), None), "{}", missing.stderr);
    assert_eq!(assert_no_leak(&httpd.stop()), (0, 0));
}

#[test]
fn the_head_says_what_was_done() {
    let httpd = Httpd::start(&[]);
    httpd.file("body.bin", 1000);
    let got = fetch(&httpd.url("/body.bin"), &["--verbose"]);
    for line in [
        "> GET /body.bin HTTP/1.1",
        "< HTTP/1.1 200 OK",
        "< content-length: 0",
        "< cache-control: no-store",
        "< vary: RDMA",
        "< content-type: application/octet-stream",
    ] {
        assert!(got.stderr.lines().any(|l| l == line), "{line:?} is not in {}", got.stderr);
    }
    let field = got.stderr.lines().find_map(|l| l.strip_prefix("< rdma: server-writes, bytes=1000, id="));
    let id = field.expect(&got.stderr);
    assert!(got.stderr.contains(&format!("maxlen=67108864, id={id}\n")), "{}", got.stderr);
}

#[test]
fn what_cannot_go_by_rdma_goes_by_tcp() {
    // Bound, so that nobody else gets the port, and not listening.
    let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    deaf.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let free = deaf.local_addr().unwrap().as_socket().unwrap().to_string();
    for (server, client, reason) in [
        (&[][..], &["--advertise", &free][..], "unreachable"),
        (&[], &["--advertise", "192.0.2.1"], "address-not-allowed"),
    ] {
        let httpd = Httpd::start(server);
        let body = httpd.file("body.bin", 4096);
        let got = fetch(&httpd.url("/body.bin"), client);
        assert_eq!(got.code, Some(0), "{reason}: {}", got.stderr);
        assert_eq!(got.body.as_deref(), Some(&body[..]), "{reason}");
        assert_eq!(fallbacks(&got.events), [reason]);
        assert_eq!(received(&got.events), [("tcp", 4096)]);
        assert_eq!(assert_no_leak(&got.events), (1, 0));

        let strict = fetch(&httpd.url("/body.bin"), &[client, &["--require-rdma"]].concat());
        assert_eq!((strict.code, strict.body), (Some(60), None), "{}", strict.stderr);
        assert!(strict.stderr.contains(reason), "{}", strict.stderr);

        let events = httpd.stop();
        assert_eq!(fallbacks(&events), [reason, reason]);
        assert_eq!(assert_no_leak(&events), (0, 0));
    }
}

#[test]
fn a_list_allows_other_addresses() {
    // Another address of this machine: the HTTP connection comes from 127.0.0.1.
    let httpd = Httpd::start(&["--allow-rdma-to", "127.0.0.2/32"]);
    httpd.file("body.bin", 4096);
    let args = ["--rdma-listen", "127.0.0.2:0", "--require-rdma"];
    assert_eq!(fetch(&httpd.url("/body.bin"), &args).code, Some(0));
    assert_eq!(assert_no_leak(&httpd.stop()), (1, 1));
    let strict = Httpd::start(&[]);
    strict.file("body.bin", 4096);
    assert_eq!(fetch(&strict.url("/body.bin"), &args).code, Some(60));
}

#[test]
fn plain_mode_offers_nothing() {
    let httpd = Httpd::start(&[]);
    let body = httpd.file("body.bin", 4096);
    let got = fetch(&httpd.url("/body.bin"), &["--mode", "plain"]);
    assert_eq!((got.code, got.body), (Some(0), Some(body)));
    assert_eq!(fallbacks(&got.events), Vec::<&str>::new());
    assert_eq!(assert_no_leak(&got.events), (0, 0));
}

#[test]
fn ipv6_and_no_crc_work_too() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("body.bin"), b"six").unwrap();
    let mut httpd = command(env!("CARGO_BIN_EXE_rdma-httpd"));
    httpd.arg("--root").arg(directory.path()).args(["--listen", "[::1]:0", "--events", "-", "--crc", "off"]);
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        crate::support::skip("ipv6_and_no_crc_work_too", "this machine has no IPv6");
        return;
    }
    let mut running = crate::program::Running::start(httpd);
    let Event::Listening { address } =
        running.wait_for("listening", |e| matches!(e, Event::Listening { .. }))
    else {
        unreachable!()
    };
    let got = fetch(&format!("http://{address}/body.bin"), &["--require-rdma", "--crc", "off"]);
    assert_eq!((got.code, got.body.as_deref()), (Some(0), Some(&b"six"[..])), "{}", got.stderr);
}

#[tokio::test]
async fn one_http_connection_keeps_one_rdma_connection() {
    let httpd = Httpd::start(&[]);
    let bodies: Vec<_> = (1..=3).map(|i| httpd.file(&format!("{i}"), i * 700_000)).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    let recorder = Recorder::to_path(file.path()).unwrap();
    let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
    let client = Client::new(Some(fabric), Options { maxlen: 4 << 20, ..Options::default() }, recorder);
    let mut connection = client.connect("127.0.0.1", httpd.address.port()).await.unwrap();
    for (i, body) in bodies.iter().enumerate() {
        let response = connection.get(&format!("/{}", i + 1), http::HeaderMap::new()).await.unwrap();
        assert_eq!(response.via, Via::Rdma(Mode::ServerWrites));
        assert_eq!(&response.body.collect(4 << 20).await.unwrap(), body);
    }
    connection.close().await;
    assert_eq!(assert_no_leak(&read_events(file.path())), (3, 1));
    let events = httpd.stop();
    assert_eq!(operations(&events, "send").len(), 3);
    assert_eq!(assert_no_leak(&events).1, 1);
}

#[test]
fn many_clients_at_once_get_what_they_asked_for() {
    let httpd = Httpd::start(&["--chunk-size", "64K", "--window", "2"]);
    let body = httpd.file("body.bin", 3 * MIB + 17);
    let url = &httpd.url("/body.bin");
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..8).map(|_| scope.spawn(|| fetch(url, &["--require-rdma"]))).collect();
        for one in fetches {
            let got = one.join().unwrap();
            assert_eq!(got.code, Some(0), "{}", got.stderr);
            assert!(got.body.as_deref() == Some(&body[..]));
        }
    });
    assert_eq!(assert_no_leak(&httpd.stop()).1, 8);
}

#[test]
fn the_summary_agrees() {
    let httpd = Httpd::start(&[]);
    let body = httpd.file("body.bin", 5000);
    let output = run(command(env!("CARGO_BIN_EXE_rdma-fetch"))
        .args(["--json", "-o", "/dev/null"])
        .arg(httpd.url("/body.bin")));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["via"], "rdma");
    assert_eq!(summary["mode"], "server-writes");
    assert_eq!(summary["bytes"], 5000);
    assert_eq!(summary["sha256"], sha256(&body));
    assert_eq!(summary["fallback"], serde_json::Value::Null);
}
