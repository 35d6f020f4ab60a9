//! Requests that are answered before all of their body is read: the answer is heard, whatever is still under way.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode};
use rdma_http::client::{Client, Connect, Options, Upload, Via};
use rdma_http::events::Recorder;
use rdma_http::fabric::Fabric;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::header::{Mode, Reason};

use crate::program::{Httpd, assert_no_leak, command, have, run, text};

const LENGTH: usize = 24 << 20;

/// curl's standard output.
fn curl(args: &[&str]) -> String {
    let output = run(command("curl").args(["--silent", "--show-error", "--max-time", "60"]).args(args));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_answer_is_heard_although_its_request_was_not_read_to_the_end() {
    if !have("curl", "an_answer_is_heard_although_its_request_was_not_read_to_the_end") {
        return;
    }
    let httpd = Httpd::start(&["--allow-upload"]);
    httpd.file("there", 10);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(LENGTH as u64).unwrap();
    let data = format!("@{}", file.path().display());
    // Without an `Expect` curl sends at once, and a POST to what is there is answered at once.
    for _ in 0..5 {
        let answer = curl(&["-i", "-H", "Expect:", "--data-binary", &data, &httpd.url("/there")]);
        assert!(answer.starts_with("HTTP/1.1 409 Conflict\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n409 Conflict\n"), "{answer}");
    }
    // Who sends everything before it listens is heard out, too; also who asked for another protocol and does not get it.
    let upgrade = "Connection: Upgrade\r\nUpgrade: h2c\r\n";
    for fields in ["", upgrade] {
        let mut stream = TcpStream::connect(httpd.address).unwrap();
        let length = format!("Content-Length: {LENGTH}\r\n");
        write!(stream, "POST /there HTTP/1.1\r\nHost: x\r\n{fields}{length}\r\n").unwrap();
        stream.write_all(&vec![7; LENGTH]).unwrap();
        let answer = text(stream);
        assert!(
            answer.starts_with("HTTP/1.1 409 Conflict\r\n") && answer.ends_with("\r\n\r\n409 Conflict\n"),
            "{fields}: {answer}"
        );
    }
    // Also where the request before was the one that asked.
    let mut stream = TcpStream::connect(httpd.address).unwrap();
    write!(stream, "GET /there HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n").unwrap();
    write!(stream, "POST /there HTTP/1.1\r\nHost: x\r\nContent-Length: {LENGTH}\r\n\r\n").unwrap();
    stream.write_all(&vec![7; LENGTH]).unwrap();
    let answers = text(stream);
    assert!(answers.starts_with("HTTP/1.1 200 OK\r\n"), "{answers}");
    assert!(answers.ends_with("\r\n\r\n409 Conflict\n"), "{answers}");
    assert_no_leak(&httpd.stop());
}

#[tokio::test]
async fn our_client_hears_it_too_and_goes_on() {
    let httpd = Httpd::start(&["--allow-upload", "--rdma-listen", "127.0.0.1:0"]);
    let there = httpd.file("there", 1000);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(LENGTH as u64).unwrap();
    let upload = Upload::open(file.path()).unwrap();
    let unread = Via::Tcp(Some(Reason::NOT_READ));
    for (mode, connect) in [
        (None, Connect::Server),
        (Some(Mode::ClientWrites), Connect::Server),
        (Some(Mode::ClientWrites), Connect::Client),
        (Some(Mode::ClientWrites), Connect::InPlace),
        (Some(Mode::ServerReads), Connect::Server),
        (Some(Mode::ServerReads), Connect::Client),
        (Some(Mode::ServerReads), Connect::InPlace),
    ] {
        let fabric = mode.map(|_| Arc::new(SoftFabric::new(SoftOptions::default())) as Arc<dyn Fabric>);
        let options = Options { mode, connect, ..Options::default() };
        let client = Client::new(fabric, options, Recorder::default());
        let mut connection = client.connect("127.0.0.1", httpd.address.port()).await.unwrap();
        for _ in 0..5 {
            let what = format!("{mode:?}, {connect:?}");
            let answer = connection.upload(Method::POST, "/there", HeaderMap::new(), &upload).await.unwrap();
            assert_eq!(answer.head.status, StatusCode::CONFLICT, "{what}");
            assert_eq!(answer.via, if mode.is_some() { unread.clone() } else { Via::Tcp(None) }, "{what}");
            assert_eq!(answer.body.collect(100).await.unwrap(), b"409 Conflict\n", "{what}");
            let next = connection.get("/there", HeaderMap::new()).await.unwrap();
            assert!(next.body.collect(1000).await.unwrap() == there, "{what}");
        }
        connection.close().await;
    }
    let events = tokio::task::spawn_blocking(|| httpd.stop()).await.unwrap();
    assert_no_leak(&events);
}
