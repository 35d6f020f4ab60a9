//! rdma-httpd under attack, with its figures in view.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rdma_http::events::Event;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::program::{Httpd, Running, assert_no_leak, command, fetch};

/// Generous: only a test that fails waits for so long.
const LIMIT: Duration = Duration::from_secs(60);

/// A server, and where its figures are.
pub(crate) struct Victim {
    pub(crate) httpd: Httpd,
    figures: SocketAddr,
}

/// What must be none when nobody is connected.
const HELD: [&str; 5] = [
    "rdma_http_rdma_connections",
    "rdma_http_registered_bytes",
    "rdma_http_regions",
    "rdma_http_transfers_under_way",
    "rdma_http_http_connections",
];

impl Victim {
    pub(crate) fn start(args: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut httpd = command(env!("CARGO_BIN_EXE_rdma-httpd"));
        httpd.arg("--root").arg(directory.path()).args(["--listen", "127.0.0.1:0", "--allow-upload"]);
        httpd.args(["--metrics", "127.0.0.1:0", "--rdma-listen", "127.0.0.1:0"]);
        httpd.args(["--events", "/dev/stderr", "--log", "off"]).args(args);
        let mut child = httpd.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut line = || lines.next().expect("the server does not start").unwrap();
        let address = line().strip_prefix("listening on http://").unwrap().trim_end_matches('/').parse();
        let figures = line();
        let figures = figures.strip_prefix("figures at http://").unwrap().strip_suffix("/metrics").unwrap();
        let stderr = child.stderr.take().unwrap();
        let running = Running::telling(child, stderr);
        let httpd = Httpd { directory, address: address.unwrap(), running };
        Self { httpd, figures: figures.parse().unwrap() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.httpd.address
    }

    /// Whether something lies under its root.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.httpd.directory.path().join(name).exists()
    }

    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.httpd.directory.path().join(name)).unwrap()
    }

    /// Its figures now.
    pub(crate) async fn figures(&self) -> HashMap<String, f64> {
        let mut http = TcpStream::connect(self.figures).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        http.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        http.read_to_string(&mut text).await.unwrap();
        let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        lines.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
    }

    /// Waits until a figure is as it should be.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&HashMap<String, f64>) -> bool) {
        let begun = Instant::now();
        loop {
            let figures = self.figures().await;
            if wanted(&figures) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "never {what}: {figures:#?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until nothing is held for anybody.
    pub(crate) async fn at_rest(&self) {
        self.until("at rest", |figures| HELD.iter().all(|name| figures.get(*name).is_none_or(|v| *v == 0.0)))
            .await;
    }

    /// Asserts that the attack, whose connections are closed, has left nothing behind: it holds nothing, serves a body, and
    /// has released all that it registered. Returns its events.
    pub(crate) async fn unharmed(self) -> Vec<Event> {
        self.at_rest().await;
        let body = self.httpd.file("after.bin", 300_000);
        let url = self.httpd.url("/after.bin");
        let got = tokio::task::spawn_blocking(move || fetch(&url, &["--require-rdma"])).await.unwrap();
        assert_eq!(got.code, Some(0), "{}", got.stderr);
        assert!(got.body.as_deref() == Some(&body[..]));
        self.at_rest_and_stopped().await
    }

    /// Its events, once it is at rest.
    pub(crate) async fn at_rest_and_stopped(self) -> Vec<Event> {
        self.at_rest().await;
        let events = self.httpd.stop();
        assert_no_leak(&events);
        events
    }
}
