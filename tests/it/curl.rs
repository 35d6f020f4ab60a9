//! curl, which knows nothing of RDMA, against rdma-httpd.

use crate::program::{Httpd, assert_no_leak, command, fallbacks, have, run};
use rdma_http::events::Event;

/// curl's standard output.
fn curl(args: &[&str]) -> Vec<u8> {
    let output = run(command("curl").args(["--silent", "--show-error", "--max-time", "60"]).args(args));
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn curl_text(args: &[&str]) -> String {
    String::from_utf8(curl(args)).unwrap().to_ascii_lowercase()
}

#[test]
fn an_ordinary_client_sees_an_ordinary_server() {
    if !have("curl", "an_ordinary_client_sees_an_ordinary_server") {
        return;
    }
    let httpd = Httpd::start(&[]);
    let body = httpd.file("body.bin", 300_000);
    let url = httpd.url("/body.bin");
    assert_eq!(curl(&[&url]), body);
    assert_eq!(curl(&["--range", "1000-1999", &url]), &body[1000..2000]);

    let head = curl_text(&["--head", &url]);
    assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
    assert!(head.contains("content-length: 300000\r\n"), "{head}");
    assert!(!head.contains("rdma") && !head.contains("vary"), "{head}");

    let missing = curl_text(&["--include", &httpd.url("/missing")]);
    assert!(missing.starts_with("http/1.1 404 not found\r\n"), "{missing}");

    // One connection for both.
    let format = "%{num_connects}:%{response_code}\\n";
    let twice = curl_text(&["--write-out", format, "-o", "/dev/null", &url, "-o", "/dev/null", &url]);
    assert_eq!(twice, "1:200\n0:200\n");

    let events = httpd.stop();
    assert_eq!(assert_no_leak(&events), (0, 0));
    assert_eq!(fallbacks(&events), Vec::<&str>::new());
}

#[test]
fn fields_that_ask_for_nonsense_are_answered_plainly() {
    if !have("curl", "fields_that_ask_for_nonsense_are_answered_plainly") {
        return;
    }
    let httpd = Httpd::start(&[]);
    let body = httpd.file("body.bin", 3000);
    httpd.file("empty.bin", 0);
    let good = "ip=127.0.0.1, port=9999, stag=642, to=0, maxlen=1048576";
    let cases = [
        ("GET", "/body.bin", "server-writes, ip=nowhere, port=1".to_owned(), "malformed", 200),
        ("GET", "/body.bin", "\u{1f600}".to_owned(), "malformed", 200),
        ("GET", "/body.bin", format!("client-reads, {good}"), "malformed", 200),
        ("HEAD", "/body.bin", format!("server-writes, {good}"), "method", 200),
        ("GET", "/missing", format!("server-writes, {good}"), "status", 404),
        ("GET", "/empty.bin", format!("server-writes, {good}"), "empty", 200),
        ("GET", "/body.bin", format!("server-writes, {}", good.replace("1048576", "2999")), "too-large", 200),
        (
            "GET",
            "/body.bin",
            format!("server-writes, {}", good.replace("127.0.0.1", "192.0.2.1")),
            "address-not-allowed",
            200,
        ),
        (
            "GET",
            "/body.bin",
            format!("server-writes, {}", good.replace("9999", "80")),
            "address-not-allowed",
            200,
        ),
    ];
    for (method, path, field, reason, status) in &cases {
        let (url, field) = (httpd.url(path), format!("RDMA: {field}"));
        let mut args = vec!["--include", "--header", &field, &url];
        args.extend(if *method == "HEAD" { vec!["--head"] } else { vec![] });
        let answer = curl(&args);
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{field}: {head}");
        assert!(head.contains(&format!("rdma: fallback, reason={reason}\r\n")), "{field}: {head}");
        assert!(head.contains("vary: rdma\r\n"), "{field}: {head}");
        if *method == "GET" && *status == 200 && *path == "/body.bin" {
            assert_eq!(&answer[end..], body, "{field}");
        }
    }
    // A range of a body that would have fitted.
    let part = curl(&[
        "--range",
        "0-9",
        "--header",
        &format!("RDMA: server-writes, {good}"),
        &httpd.url("/body.bin"),
    ]);
    assert_eq!(part, &body[..10]);

    let events = httpd.stop();
    assert_eq!(assert_no_leak(&events), (0, 0));
    let ignored = events.iter().filter(|event| matches!(event, Event::HeaderIgnored { .. })).count();
    assert_eq!(ignored, 3, "{events:#?}");
    let mut expected: Vec<_> =
        cases.iter().map(|case| case.3).filter(|reason| *reason != "malformed").collect();
    expected.push("unreachable");
    assert_eq!(fallbacks(&events), expected);
}
