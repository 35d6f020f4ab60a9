//! The examples, as they are: what RDMA brings is what curl gets.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use rdma_http::client::{Client, Options, Upload, Via};
use rdma_http::events::Recorder;
use rdma_http::fabric::soft::SoftFabric;
use rdma_http::header::{Mode, Reason};

use crate::program::{assert_no_leak, command, have};
use crate::service::Serving;

#[expect(dead_code, reason = "an example's main function is not called by a test")]
#[path = "../../examples/axum.rs"]
mod axum_example;
#[expect(dead_code, reason = "as above")]
#[path = "../../examples/cgi.rs"]
mod cgi_example;

fn client() -> Client {
    Client::new(Some(Arc::new(SoftFabric::default())), Options::default(), Recorder::default())
}

/// GETs a target by our client, as a stream, and by curl; both must give the same bytes.
async fn both(serving: &Serving, target: &str) -> (Via, Vec<u8>) {
    let mut connection = client().connect("127.0.0.1", serving.address.port()).await.unwrap();
    let response = connection.get(target, HeaderMap::new()).await.unwrap().into_http();
    assert_eq!(response.status(), 200, "{target}");
    let via = response.extensions().get::<Via>().unwrap().clone();
    let body = response.into_body().collect().await.unwrap().to_bytes().to_vec();
    connection.close().await;
    assert!(curl(serving, target, &[]).await == body, "{target}");
    (via, body)
}

async fn curl(serving: &Serving, target: &str, args: &[&str]) -> Vec<u8> {
    let mut command = command("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "60"]).args(args);
    command.arg(format!("http://{}{target}", serving.address));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Sends bytes by POST, by RDMA in this mode, and by curl; both must get the same answer.
async fn post(serving: &Serving, target: &str, bytes: &[u8], header: (&str, &str)) -> (Via, Vec<u8>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let upload = Upload::open(file.path()).unwrap();
    let mut connection = client().connect("127.0.0.1", serving.address.port()).await.unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(http::HeaderName::try_from(header.0).unwrap(), header.1.parse().unwrap());
    let response = connection.upload(Method::POST, target, headers, &upload).await.unwrap();
    assert_eq!(response.head.status, 200);
    let via = response.via;
    let body = response.body.collect(1 << 24).await.unwrap();
    connection.close().await;
    let (data, header) = (format!("@{}", file.path().display()), format!("{}: {}", header.0, header.1));
    let by_curl = curl(serving, target, &["--data-binary", &data, "--header", &header]).await;
    assert!(by_curl == body, "{target}");
    (via, body)
}

#[tokio::test]
async fn an_axum_application_gets_rdma_with_no_change() {
    if !have("curl", "an_axum_application_gets_rdma_with_no_change") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(directory.path().join("file.bin"), &file).unwrap();
    let serving = Serving::start(axum_example::app(directory.path())).await;
    let by_rdma = Via::Rdma(Mode::ServerWrites);

    let (via, json) = both(&serving, "/numbers/5").await;
    assert_eq!((&via, &json[..]), (&by_rdma, &br#"{"values":[0,1,2,3,4]}"#[..]));
    let (via, streamed) = both(&serving, "/stream/3000001").await;
    assert_eq!((&via, streamed.len()), (&by_rdma, 3_000_001));
    assert!(streamed.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
    let (via, ticks) = both(&serving, "/ticks/3").await;
    let expected = Via::Tcp(Some(Reason::UNKNOWN_LENGTH));
    assert_eq!((via, &ticks[..]), (expected, &b"tick 0\ntick 1\ntick 2\n"[..]));
    let (via, seen) = both(&serving, "/files/file.bin").await;
    assert_eq!(via, by_rdma);
    assert!(seen == file);
    let json = ("content-type", "application/json");
    let (via, sum) = post(&serving, "/sum", br#"{"values":[1,2,39]}"#, json).await;
    assert!(matches!(via, Via::Rdma(Mode::ClientWrites | Mode::ServerReads)), "{via:?}");
    assert_eq!(sum, b"42");
    assert_no_leak(&serving.stop().await);
}

#[tokio::test]
async fn a_shell_script_gets_rdma_with_no_change() {
    if !have("curl", "a_shell_script_gets_rdma_with_no_change") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        let path = directory.path().join("cgi-bin").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    script(
        "hello",
        "printf 'Content-Type: text/plain\\n\\n'\necho \"$REQUEST_METHOD $PATH_INFO?$QUERY_STRING\"\n",
    );
    script("long", "printf 'Content-Length: 3000000\\n\\n'\nhead -c 3000000 /dev/zero | tr '\\0' x\n");
    script("endless", "printf 'X-Y: z\\n\\n'\nhead -c 100000 /dev/zero | tr '\\0' y\n");
    script("upper", "printf 'Content-Length: %s\\n\\n' \"$CONTENT_LENGTH\"\ntr a-z A-Z\n");
    script("absent", "printf 'Status: 410 Gone\\n\\n'\n");
    fs::write(directory.path().join("file.txt"), "a file").unwrap();
    let serving = Serving::start(cgi_example::Cgi::new(directory.path())).await;
    let by_rdma = Via::Rdma(Mode::ServerWrites);

    let (via, hello) = both(&serving, "/cgi-bin/hello/there?a=b").await;
    assert_eq!((&via, &hello[..]), (&by_rdma, &b"GET /there?a=b\n"[..]));
    let (via, long) = both(&serving, "/cgi-bin/long").await;
    assert_eq!(via, by_rdma);
    assert!(long == vec![b'x'; 3_000_000]);
    let (via, endless) = both(&serving, "/cgi-bin/endless").await;
    assert_eq!((via, endless.len()), (Via::Tcp(Some(Reason::UNKNOWN_LENGTH)), 100_000));
    let (via, file) = both(&serving, "/file.txt").await;
    assert_eq!((&via, &file[..]), (&by_rdma, &b"a file"[..]));
    let (via, upper) =
        post(&serving, "/cgi-bin/upper", &b"some text\n".repeat(200_000), ("x-any", "y")).await;
    assert!(matches!(via, Via::Rdma(Mode::ClientWrites | Mode::ServerReads)), "{via:?}");
    assert!(upper == b"SOME TEXT\n".repeat(200_000));

    let status = curl(&serving, "/cgi-bin/absent", &["--no-fail", "-w", "%{http_code}"]).await;
    assert_eq!(status, b"410");
    let status =
        curl(&serving, "/cgi-bin/.hidden", &["--no-fail", "-o", "/dev/null", "-w", "%{http_code}"]).await;
    assert_eq!(status, b"404");
    assert_no_leak(&serving.stop().await);
}
