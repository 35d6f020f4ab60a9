//! A connection that begins as HTTP and becomes RDMA: tshark sees the MPA Request and Reply where the protocol changes, and
//! from there on nothing but good FPDUs, in which the operations are those that were asked for.

use super::{READ_REQUEST, READ_RESPONSE, SEND, WRITE, captured, judge, tshark};
use crate::program::{Httpd, assert_no_leak, command, fallbacks, read_events, run};

const LENGTH: usize = 100_001;

/// Bytes of our messages (docs/protocol.md, section 4).
const MESSAGE: usize = 32;
const REGION: usize = 48;

const TOLD: (u8, usize) = (SEND, MESSAGE);
const SHOWN: (u8, usize) = (SEND, REGION);

/// Messages: opcode and bytes.
type Messages = &'static [(u8, usize)];

/// For each mode what the server and what the client sends for one body, apart from the frames of HTTP.
const FLOWS: [(&str, Messages, Messages); 4] = [
    ("server-writes", &[(WRITE, LENGTH), TOLD], &[]),
    ("client-reads", &[SHOWN, (READ_RESPONSE, LENGTH)], &[(READ_REQUEST, 0), TOLD]),
    ("client-writes", &[SHOWN], &[(WRITE, LENGTH), TOLD]),
    ("server-reads", &[(READ_REQUEST, 0), TOLD], &[(READ_RESPONSE, LENGTH)]),
];

#[test]
fn an_http_connection_becomes_good_iwarp() {
    let name = "tshark::in_place::an_http_connection_becomes_good_iwarp";
    let Some(captured) = captured(name, 1500, talk) else { return };
    let judged = judge(&captured.file);
    assert_eq!(judged.connections.len(), 2 * FLOWS.len());
    assert!(judged.crc_good >= 2 * FLOWS.len() * LENGTH / 1500, "half of them have CRCs");
    // One Request, of the server, and one Reply for each.
    for (what, key) in [("req", "server"), ("rep", "client")] {
        let found = tshark(
            &captured.file,
            &["-Y", &format!("iwarp_mpa.{what}"), "-T", "fields", "-e", "tcp.srcport"],
        );
        let servers = found.lines().filter(|port| captured.talked.contains(&port.to_string())).count();
        let expected = if key == "server" { judged.connections.len() } else { 0 };
        assert_eq!((found.lines().count(), servers), (judged.connections.len(), expected), "{what}: {found}");
    }
    let flows = FLOWS.iter().chain(&FLOWS);
    for ((mode, server, client), seen) in flows.zip(&judged.connections) {
        for (side, sent, seen) in [("server", server, &seen[0]), ("client", client, &seen[1])] {
            let ours =
                |(opcode, length): &&(u8, usize)| *opcode != SEND || [MESSAGE, REGION].contains(length);
            let operations: Vec<_> = seen.iter().filter(ours).copied().collect();
            // Two bodies, one after the other.
            assert_eq!(operations, [*sent, *sent].concat(), "{mode}: {side}");
            assert!(operations.len() < seen.len(), "{mode}: no HTTP of the {side}");
        }
    }
}

/// Each mode on a connection of its own, with CRCs and without; the servers' ports.
fn talk() -> Vec<String> {
    let mut ports = Vec::new();
    for crc in ["on", "off"] {
        let httpd = Httpd::start(&["--allow-upload", "--crc", crc]);
        ports.push(httpd.address.port().to_string());
        let body = httpd.file("body.bin", LENGTH);
        let source = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(source.path(), &body).expect("written");
        for (mode, ..) in FLOWS {
            let events = tempfile::NamedTempFile::new().expect("a file");
            let mut fetch = command(env!("CARGO_BIN_EXE_rdma-fetch"));
            fetch.args(["--connect", "in-place", "--require-rdma", "--mode", mode, "--crc", crc, "--events"]);
            fetch.arg(events.path()).args(["-o", "/dev/null", "-o", "/dev/null"]);
            if matches!(mode, "client-writes" | "server-reads") {
                fetch
                    .arg("--upload-file")
                    .arg(source.path())
                    .args([httpd.url("/one.bin"), httpd.url("/two.bin")]);
            } else {
                fetch.args([httpd.url("/body.bin"), httpd.url("/body.bin")]);
            }
            let output = run(&mut fetch);
            assert!(output.status.success(), "{mode}: {}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(assert_no_leak(&read_events(events.path())).1, 1, "{mode}");
        }
        let events = httpd.stop();
        assert_eq!(fallbacks(&events), Vec::<&str>::new());
        assert_no_leak(&events);
    }
    ports
}
