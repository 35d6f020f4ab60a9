//! A link that is cut in mid-transfer is an error at both ends, never a hang.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rdma_http::fabric::{Access, ConnectOptions, RemoteAddress, Stag};

use crate::guest::{Lab, there_is_a_kernel};
use crate::support::{ADDRESS, FABRIC, any_port, assert_broken, fabric};

/// Tells the writer where the sink is.
const SINK: &str = "FABRIC_SINK";

/// Bytes of the region that is written to.
const LENGTH: usize = 1 << 20;

/// Bounds what the tests below wait for: TCP's and RoCE's own limits are a few seconds here.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
#[ignore = "it is the accepting side of the tests below, which run it"]
async fn sink_that_waits() {
    let fabric = fabric();
    let listener = fabric.listen(any_port()).await.unwrap();
    println!("listening on {}", listener.local_addr());
    let pd = fabric.allocate_pd().unwrap();
    let request = listener.accept().await.unwrap();
    let connection = request.accept(&pd, ConnectOptions::default()).await.unwrap();
    assert_eq!(connection.receive().await.unwrap().message, "where?");
    let region = pd.register(vec![0; LENGTH], Access::REMOTE_WRITE).unwrap();
    let source = pd.register(vec![1; LENGTH], Access::LOCAL_READ).unwrap();
    let answer = format!("{} {}", region.stag().0, region.base());
    connection.send(answer.into()).await.unwrap();
    // It must notice though it only waits: so it asks for something.
    let theirs = place(&connection.receive().await.unwrap().message);
    loop {
        let written = tokio::time::timeout(PATIENCE, connection.write(&source, 0, LENGTH, theirs));
        if let Err(error) = written.await.expect("a write hangs") {
            assert_broken(&error);
            break;
        }
    }
    let closed = tokio::time::timeout(PATIENCE, connection.closed());
    assert_broken(&closed.await.expect("the connection does not end"));
}

fn place(message: &[u8]) -> RemoteAddress {
    let text = str::from_utf8(message).unwrap();
    let (stag, to) = text.split_once(' ').unwrap();
    RemoteAddress { stag: Stag(stag.parse().unwrap()), to: to.parse().unwrap() }
}

#[tokio::test]
#[ignore = "it is the connecting side of the tests below, which run it"]
async fn writer_that_goes_on() {
    let to = std::env::var(SINK).expect("the tests below say where the sink is").parse().unwrap();
    let fabric = fabric();
    let pd = fabric.allocate_pd().unwrap();
    let connection = fabric.connect(&pd, to, ConnectOptions::default()).await.unwrap();
    connection.send(Bytes::from_static(b"where?")).await.unwrap();
    let theirs = place(&connection.receive().await.unwrap().message);
    let region = pd.register(vec![0; LENGTH], Access::REMOTE_WRITE).unwrap();
    connection.send(format!("{} {}", region.stag().0, region.base()).into()).await.unwrap();
    let source = pd.register(vec![1; LENGTH], Access::LOCAL_READ).unwrap();
    let mut writes = 0;
    loop {
        let written = tokio::time::timeout(PATIENCE, connection.write(&source, 0, LENGTH, theirs));
        match written.await.expect("a write hangs") {
            Ok(()) => writes += 1,
            Err(error) => {
                assert_broken(&error);
                break;
            }
        }
        if writes == 10 {
            println!("under way");
        }
    }
    let closed = tokio::time::timeout(PATIENCE, connection.closed());
    assert_broken(&closed.await.expect("the connection does not end"));
    let receive = tokio::time::timeout(PATIENCE, connection.receive());
    assert!(receive.await.expect("a receive hangs").is_err());
}

/// One of the two above, in a host of the lab.
struct End {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl End {
    fn start(lab: &Lab, host: &str, fabric: &str, variable: (&str, &str), test: &str) -> Self {
        let (name, value) = variable;
        let variables = [format!("{FABRIC}={fabric}"), format!("{name}={value}")];
        let this = std::env::current_exe().unwrap();
        let mut command = lab.command(&["exec", host, "--", "env"]);
        command.args(variables).arg(this).args(["--exact", test, "--ignored", "--nocapture"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Waits for a line with this in it; returns what follows.
    fn says(&mut self, what: &str) -> String {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            if let Some((_, rest)) = line.split_once(what) {
                return rest.trim().to_owned();
            }
            line.clear();
        }
        panic!("it ended without having said {what:?}");
    }

    fn ends_well(mut self, what: &str) {
        let mut text = String::new();
        self.lines.read_to_string(&mut text).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{what}: {status}: {text}");
    }
}

fn broken_in_mid_transfer(test: &str, fabric: &str, how: &[&str]) {
    if !there_is_a_kernel(test) {
        return;
    }
    let lab = Lab::up(fabric);
    let run = |args: &[&str]| {
        let output = lab.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    // TCP tries again for a quarter of an hour by default (tcp(7)), and siw's sockets are the kernel's own, so that no
    // program can set another limit on one. With this TCP gives up after some seconds, and siw has to tell of it.
    for host in ["server", "client"] {
        run(&["exec", host, "--", "sh", "-c", "echo 4 > /proc/sys/net/ipv4/tcp_retries2"]);
    }
    let address = testbed::topology::load("direct").unwrap().hosts[0].address().unwrap().to_string();
    let mut sink = End::start(&lab, "server", fabric, (ADDRESS, &address), "cut::sink_that_waits");
    let at = sink.says("listening on ");
    let mut writer = End::start(&lab, "client", fabric, (SINK, &at), "cut::writer_that_goes_on");
    writer.says("under way");
    run(how);
    writer.ends_well("the writer");
    sink.ends_well("the sink");
}

const CUT: [&str; 3] = ["link", "cut", "cable"];
const DOWN: [&str; 8] = ["exec", "client", "--", "ip", "link", "set", "eth0", "down"];

#[test]
fn a_cut_link_over_soft() {
    broken_in_mid_transfer("a_cut_link_over_soft", "soft", &CUT);
}

#[test]
fn a_cut_link_over_siw() {
    broken_in_mid_transfer("a_cut_link_over_siw", "siw", &CUT);
}

#[test]
fn a_cut_link_over_rxe() {
    broken_in_mid_transfer("a_cut_link_over_rxe", "rxe", &CUT);
}

#[test]
fn an_interface_that_goes_down_over_siw() {
    broken_in_mid_transfer("an_interface_that_goes_down_over_siw", "siw", &DOWN);
}

#[test]
fn an_interface_that_goes_down_over_rxe() {
    broken_in_mid_transfer("an_interface_that_goes_down_over_rxe", "rxe", &DOWN);
}
