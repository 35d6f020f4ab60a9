//! The HTTP connection as the RDMA connection: many exchanges on one, what cannot go by RDMA on it, and peers that do not
//! keep to it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode};
use rdma_http::client::{Client, Connect, HttpConnection, Options, Upload, Via};
use rdma_http::events::{Event, Recorder};
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::header::{Mode, Reason};
use rdma_http::server::{Files, RdmaConfig};

use crate::program::{Httpd, assert_no_leak, failures, fallbacks, fetch, pattern, read_events, text};
use crate::service::Serving;

const MIB: usize = 1 << 20;

struct Asking {
    connection: HttpConnection,
    events: tempfile::NamedTempFile,
}

impl Asking {
    async fn new(port: u16, mode: Option<Mode>) -> Self {
        let events = tempfile::NamedTempFile::new().unwrap();
        let recorder = Recorder::to_path(events.path()).unwrap();
        let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
        let options = Options { connect: Connect::InPlace, mode, maxlen: 4 << 20, ..Options::default() };
        let client = Client::new(Some(fabric), options, recorder);
        Self { connection: client.connect("127.0.0.1", port).await.unwrap(), events }
    }

    /// How the body came, and the body.
    async fn get(&mut self, target: &str) -> (StatusCode, Via, Vec<u8>) {
        let response = self.connection.get(target, HeaderMap::new()).await.unwrap();
        (response.head.status, response.via, response.body.collect(16 * MIB).await.unwrap())
    }

    async fn put(&mut self, target: &str, body: &[u8]) -> (StatusCode, Via) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), body).unwrap();
        let upload = Upload::open(file.path()).unwrap();
        let sent = self.connection.upload(Method::PUT, target, HeaderMap::new(), &upload).await.unwrap();
        let answer = (sent.head.status, sent.via);
        sent.body.collect(MIB).await.unwrap();
        answer
    }

    async fn end(self) -> Vec<Event> {
        self.connection.close().await;
        read_events(self.events.path())
    }
}

fn statuses(events: &[Event]) -> Vec<u16> {
    let status = |event: &Event| match event {
        Event::HttpResponse { status, .. } => Some(*status),
        _ => None,
    };
    events.iter().filter_map(status).collect()
}

#[tokio::test]
async fn one_connection_serves_exchanges_of_every_kind() {
    for (download, upload) in
        [(Mode::ServerWrites, Mode::ClientWrites), (Mode::ClientReads, Mode::ServerReads)]
    {
        let httpd = Httpd::start(&["--allow-upload", "--chunk-size", "256K", "--window", "4"]);
        let port = httpd.address.port();
        let bodies =
            [1, 700_000, 9 * MIB + 1].map(|length| (length, httpd.file(&length.to_string(), length)));

        let mut asking = Asking::new(port, Some(download)).await;
        for (length, body) in &bodies {
            let got = asking.get(&format!("/{length}")).await;
            assert!(got == (StatusCode::OK, Via::Rdma(download), body.clone()), "{length}: {:?}", got.1);
            // What has no body for RDMA goes as HTTP does, on the same connection.
            let missing = asking.get("/missing").await;
            assert_eq!((missing.0, missing.1), (StatusCode::NOT_FOUND, Via::Tcp(Some(Reason::STATUS))));
            let head = asking.connection.request(Method::HEAD, "/1", HeaderMap::new()).await.unwrap();
            assert_eq!(head.head.status, StatusCode::OK);
            head.body.collect(1).await.unwrap();
        }
        let events = asking.end().await;
        assert_eq!(statuses(&events), [101, 200, 404, 200, 200, 404, 200, 200, 404, 200]);
        assert_eq!(assert_no_leak(&events).1, 1);

        let mut asking = Asking::new(port, Some(upload)).await;
        for (length, body) in &bodies {
            let (status, via) = asking.put("/new", body).await;
            assert_eq!((status.is_success(), via), (true, Via::Rdma(upload)), "{length}");
            assert!(std::fs::read(httpd.directory.path().join("new")).unwrap() == *body, "{length}");
            // A body that is not offered: many frames of HTTP.
            let got = asking.get(&format!("/{length}")).await;
            assert!(got == (StatusCode::OK, Via::Tcp(None), body.clone()), "{length}");
        }
        let events = asking.end().await;
        assert_eq!(statuses(&events), [101, 204, 201, 200, 204, 200, 204, 200]);
        assert_eq!(assert_no_leak(&events).1, 1);
        assert_eq!(failures(&events), Vec::<&str>::new());
        let events = httpd.stop();
        assert_eq!(assert_no_leak(&events).1, 2);
        assert_eq!(failures(&events), Vec::<&str>::new());
    }
}

#[tokio::test]
async fn a_server_without_room_takes_and_gives_bodies_by_http_on_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let body = pattern(3 * MIB);
    std::fs::write(directory.path().join("body"), &body).unwrap();
    let config = RdmaConfig { max_registered: 100_000, ..RdmaConfig::default() };
    let serving = Serving::with(config, Files::new(directory.path(), MIB, true)).await;
    for (download, upload) in
        [(Mode::ServerWrites, Mode::ClientWrites), (Mode::ClientReads, Mode::ServerReads)]
    {
        let mut asking = Asking::new(serving.address.port(), Some(upload)).await;
        for name in ["one", "two"] {
            let (status, via) = asking.put(&format!("/{name}"), &body).await;
            assert_eq!((status.is_success(), via), (true, Via::Tcp(Some(Reason::EXHAUSTED))));
            assert!(std::fs::read(directory.path().join(name)).unwrap() == body);
            // The connection is as good as before.
            assert_eq!(asking.put("/small", &body[..1000]).await.1, Via::Rdma(upload));
        }
        assert_eq!(assert_no_leak(&asking.end().await).1, 1);
        let mut asking = Asking::new(serving.address.port(), Some(download)).await;
        let got = asking.get("/body").await;
        assert!(got == (StatusCode::OK, Via::Tcp(Some(Reason::EXHAUSTED)), body.clone()), "{:?}", got.1);
        assert_eq!(assert_no_leak(&asking.end().await).1, 1);
    }
    assert_no_leak(&serving.stop().await);
}

#[tokio::test]
async fn an_upload_that_nobody_reads_is_answered_and_the_next_request_has_a_new_connection() {
    let httpd = Httpd::start(&[]);
    httpd.file("there", 1000);
    for mode in [Mode::ClientWrites, Mode::ServerReads] {
        let mut asking = Asking::new(httpd.address.port(), Some(mode)).await;
        let (status, via) = asking.put("/new", &pattern(20 * MIB)).await;
        assert_eq!((status, via), (StatusCode::METHOD_NOT_ALLOWED, Via::Tcp(Some(Reason::NOT_READ))));
        assert_eq!(asking.get("/there").await.0, StatusCode::OK);
        assert_no_leak(&asking.end().await);
    }
    assert_no_leak(&httpd.stop());
}

#[tokio::test]
async fn a_server_that_stops_ends_a_connection_that_waits() {
    let httpd = Httpd::start(&[]);
    let body = httpd.file("body", 1000);
    let mut asking = Asking::new(httpd.address.port(), None).await;
    assert_eq!(asking.get("/body").await.2, body);
    assert_no_leak(&httpd.stop());
    let again = asking.connection.get("/body", HeaderMap::new()).await;
    assert!(again.is_err(), "nobody serves any more");
    assert_no_leak(&asking.end().await);
}

/// What rdma-httpd answers to these lines and a GET's own.
fn answer(httpd: &Httpd, version: &str, lines: &str) -> String {
    let mut http = TcpStream::connect(httpd.address).unwrap();
    // At once: what came after the end would be answered with a reset.
    let request = format!("GET /body.bin HTTP/{version}\r\nHost: x\r\n{lines}\r\n");
    http.write_all(request.as_bytes()).unwrap();
    text(http)
}

#[test]
fn who_does_not_ask_in_full_is_answered_over_tcp() {
    let httpd = Httpd::start(&[]);
    std::fs::write(httpd.directory.path().join("body.bin"), "the body").unwrap();
    let offer = format!("RDMA: client-reads, connect=in-place, id={:032x}\r\n", 7);
    for (version, lines) in [
        ("1.1", "Connection: close\r\nUpgrade: rdma\r\n"),
        ("1.1", "Connection: close, upgrade\r\nUpgrade: websocket\r\n"),
        ("1.0", "Connection: upgrade\r\nUpgrade: rdma\r\n"),
        ("1.1", "Connection: close, upgrade\r\nUpgrade: rdma\r\nContent-Length: 1\r\n\r\nx"),
    ] {
        let got = answer(&httpd, version, &format!("{offer}{lines}"));
        assert!(got.contains("rdma: fallback, reason=not-connected\r\n"), "{lines}: {got}");
        assert!(got.ends_with("\r\n\r\nthe body"), "{lines}: {got}");
    }
    assert_eq!(assert_no_leak(&httpd.stop()), (0, 0));
}

#[test]
fn a_client_that_does_not_go_on_in_mpa_is_cut_off() {
    let httpd = Httpd::start(&["--connect-timeout", "0.3"]);
    httpd.file("body.bin", 1000);
    for (what, said) in [("silence", ""), ("HTTP", "GET / HTTP/1.1\r\nHost: x\r\n\r\n")] {
        let mut http = TcpStream::connect(httpd.address).unwrap();
        write!(
            http,
            "GET /body.bin HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: rdma\r\n\
             RDMA: client-reads, connect=in-place, id={:032x}\r\n\r\n{said}",
            7
        )
        .unwrap();
        let mut got = Vec::new();
        // A reset is as good an end.
        let _ = http.read_to_end(&mut got);
        let got = String::from_utf8_lossy(&got);
        assert!(got.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{what}: {got}");
        assert!(!got.contains("200 OK"), "{what}: {got}");
    }
    let next = fetch(&httpd.url("/body.bin"), &["--connect", "in-place", "--require-rdma"]);
    assert_eq!(next.code, Some(0), "{}", next.stderr);
    assert_eq!(assert_no_leak(&httpd.stop()).1, 1);
}

#[test]
fn a_server_that_promises_and_does_not_keep_it_is_an_error() {
    for (what, switch, then, code) in [
        ("another protocol", "Upgrade: websocket", &b"hello"[..], 8),
        ("no protocol", "X: y", b"", 8),
        ("HTTP", "Upgrade: rdma", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 18),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            let head = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n{switch}\r\n\r\n");
            stream.write_all(&[head.as_bytes(), then].concat()).unwrap();
        });
        let got = fetch(&format!("http://{address}/x"), &["--connect", "in-place", "--connect-timeout", "5"]);
        server.join().unwrap();
        assert_eq!(got.code, Some(code), "{what}: {}", got.stderr);
        assert!(got.files().is_empty(), "{what}");
        assert_eq!(assert_no_leak(&got.events).1, 0, "{what}");
    }
}

#[test]
fn a_response_says_which_protocol_it_came_by() {
    let httpd = Httpd::start(&[]);
    httpd.file("body.bin", 1000);
    let got = fetch(&httpd.url("/body.bin"), &["--connect", "in-place", "--require-rdma", "-v"]);
    assert_eq!(got.code, Some(0), "{}", got.stderr);
    for line in [
        "> connection: upgrade",
        "> upgrade: rdma",
        "< HTTP/1.1 101 Switching Protocols",
        "< HTTP/1.1 200 OK",
    ] {
        assert!(got.stderr.lines().any(|l| l == line), "{line:?} is not in {}", got.stderr);
    }
    assert_eq!(fallbacks(&httpd.stop()), Vec::<&str>::new());
}
