//! tshark as an independent judge: real connections in a network namespace are captured, and tshark must dissect every
//! FPDU with a good CRC, find nothing malformed, and read the same headers as our own decoder.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use rdma_http::fabric::soft::{Revision, SoftFabric, SoftOptions};
use rdma_http::fabric::{Access, ConnectOptions, Fabric, FabricError, RemoteAddress};
use rdma_http::iwarp::Stag;
use rdma_http::iwarp::ddp::Header;
use rdma_http::iwarp::decode::{CrcVerdict, Decoder, Item, Side};

use crate::support::skip;

/// Set in the process that runs inside of the namespace.
const INSIDE: &str = "RDMA_HTTP_TEST_INSIDE";

/// Without these tshark takes short Sends for other protocols, and ports for other protocols' ports.
const DISSECTION: [&str; 12] = [
    "-o",
    "tcp.desegment_tcp_streams:TRUE",
    "-o",
    "tcp.reassemble_out_of_order:TRUE",
    "-o",
    "tcp.try_heuristic_first:TRUE",
    "--enable-heuristic",
    "iwarp_mpa_tcp",
    "--disable-heuristic",
    "rpcrdma_iwarp",
    "--disable-heuristic",
    "smb_direct_iwarp",
];

/// Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn every_operation_on_an_ethernet_sized_path() {
    in_namespace("tshark::every_operation_on_an_ethernet_sized_path", 1500);
}

#[test]
fn every_operation_on_a_loopback_sized_path() {
    in_namespace("tshark::every_operation_on_a_loopback_sized_path", 65536);
}

/// Runs the named test again inside of a network namespace of its own, where its body is [`judge`].
fn in_namespace(name: &str, mtu: u32) {
    if std::env::var_os(INSIDE).is_some() {
        return judge(name, mtu);
    }
    for tool in ["tshark", "unshare", "ip"] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(tool).exists()));
        if !found {
            return skip(name, &format!("{tool} is not installed"));
        }
    }
    let own = if nix::unistd::geteuid().is_root() {
        vec!["--net"]
    } else {
        vec!["--user", "--map-root-user", "--net"]
    };
    let usable = Command::new("unshare").args(&own).arg("true").output().expect("unshare runs");
    if !usable.status.success() {
        return skip(name, &format!("no namespace: {}", String::from_utf8_lossy(&usable.stderr).trim()));
    }
    let output = Command::new("unshare")
        .args(&own)
        .arg(std::env::current_exe().expect("this test has a path"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "the test ran");
}

fn judge(name: &str, mtu: u32) {
    let up = Command::new("ip").args(["link", "set", "lo", "up", "mtu", &mtu.to_string()]).status();
    assert!(up.expect("ip runs").success());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("capture.pcapng");
    let capture = match Capture::start(&file) {
        Ok(capture) => capture,
        Err(reason) => return skip(name, &reason),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut sent = Vec::new();
    let crcs: usize = runtime.block_on(async {
        let mut connections_with_crc = 0;
        for (revision, peer_to_peer) in [(Revision::V1, false), (Revision::V2, false), (Revision::V2, true)] {
            for crc in [true, false] {
                let fabric =
                    SoftFabric::new(SoftOptions { revision, peer_to_peer, ..SoftOptions::default() });
                let talk = converse(&fabric, crc, peer_to_peer);
                sent.extend(tokio::time::timeout(PATIENCE, talk).await.expect("it ends"));
                connections_with_crc += usize::from(crc);
            }
        }
        connections_with_crc
    });
    capture.stop();

    let (ours, initiators) = decode(&file);
    let crc_good = ours.iter().filter(|f| f.crc == CrcVerdict::Good).count();
    assert!(ours.iter().all(|f| f.crc != CrcVerdict::Bad), "our decoder finds every CRC right");
    assert!(crc_good >= crcs * 20, "the conversations were captured");

    let tree = tshark(&file, &["-V"]);
    assert_eq!(tree.matches("Good CRC32").count(), crc_good, "every CRC is good");
    assert_eq!(tree.matches("Bad CRC32").count(), 0);
    assert_eq!(tshark(&file, &["-Y", "_ws.malformed"]), "");
    let theirs = theirs(&file, &initiators);
    let lines: Vec<&String> = theirs.values().flatten().map(|fpdu| &fpdu.line).collect();
    for (at, (ours, theirs)) in ours.iter().zip(&lines).enumerate() {
        assert_eq!(&&ours.line, theirs, "FPDU {at}");
    }
    assert_eq!(lines.len(), ours.len());
    // The operations and lengths that tshark read are those that were posted.
    let connections: BTreeSet<u32> = theirs.keys().map(|key| key.0).collect();
    assert_eq!(connections.len(), sent.len());
    for (connection, sent) in connections.into_iter().zip(sent) {
        for (direction, sent) in (0..).zip(sent) {
            let seen = theirs.get(&(connection, direction)).map_or(Vec::new(), |fpdus| messages(fpdus));
            assert_eq!(seen, sent, "connection {connection}, direction {direction}");
        }
    }
    println!("{} FPDUs, {crc_good} with CRC, all dissected", ours.len());
}

const WRITE: u8 = 0;
const READ_REQUEST: u8 = 1;
const READ_RESPONSE: u8 = 2;
const SEND: u8 = 3;
const SEND_INVALIDATE: u8 = 4;
const SEND_SOLICITED: u8 = 5;
const SEND_SOLICITED_INVALIDATE: u8 = 6;
const TERMINATE: u8 = 7;

/// The messages of the initiator and of the responder, opcode and length.
type Sent = [Vec<(u8, usize)>; 2];

/// Every operation, both ways, sizes at the edges; then one connection that ends in a Terminate and one refused. What
/// each side of the two sends.
async fn converse(fabric: &SoftFabric, crc: bool, peer_to_peer: bool) -> [Sent; 2] {
    let loopback: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let listener = fabric.listen(loopback).await.expect("it listens");
    let pd = fabric.allocate_pd().expect("a domain");
    let options =
        || ConnectOptions { crc, private_data: Bytes::from_static(b"hello"), ..ConnectOptions::default() };
    let connect = || async {
        let (ours, theirs) = tokio::join!(fabric.connect(&pd, listener.local_addr(), options()), async {
            listener.accept().await?.accept(&pd, options()).await
        });
        (ours.expect("connected"), theirs.expect("accepted"))
    };
    // The initiator's RTR.
    let begin = || -> Sent { [if peer_to_peer { vec![(WRITE, 0)] } else { Vec::new() }, Vec::new()] };

    let (a, b) = connect().await;
    let mut sent = begin();
    const LENGTH: usize = 300_001;
    let body: Vec<u8> = (0..LENGTH).map(|i| (i % 251) as u8).collect();
    let source = pd.register(body.clone(), Access::REMOTE_READ).expect("registered");
    let sink = pd.register(vec![0; LENGTH], Access::REMOTE_WRITE).expect("registered");
    let once = || pd.register(vec![0; 8], Access::REMOTE_WRITE).expect("registered");
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&body).expect("written");
    let file = pd.register_file(Arc::new(file), 0, LENGTH as u64).expect("registered");
    let remote =
        |region: &rdma_http::fabric::Region| RemoteAddress { stag: region.stag(), to: region.base() };
    for length in [0, 1, 2, 3, 4, 1428, 1429, LENGTH] {
        a.write(&source, 0, length, remote(&sink)).await.expect("written");
        a.write(&file, 0, length, remote(&sink)).await.expect("written");
        sent[0].extend([(WRITE, length); 2]);
    }
    for length in [0, 1, 2, 3, 4096] {
        let message = Bytes::copy_from_slice(&body[..length]);
        a.send(message.clone()).await.expect("sent");
        assert_eq!(b.receive().await.expect("received").message, message);
        b.send(message.clone()).await.expect("sent");
        assert_eq!(a.receive().await.expect("received").message, message);
        sent[0].push((SEND, length));
        sent[1].push((SEND, length));
    }
    for length in [0, 1, 70_000] {
        for region in [&source, &file] {
            a.read(&sink, 0, length, remote(region)).await.expect("read");
            b.read(&sink, 0, length, remote(region)).await.expect("read");
            sent[0].extend([(READ_REQUEST, 0), (READ_RESPONSE, length)]);
            sent[1].extend([(READ_RESPONSE, length), (READ_REQUEST, 0)]);
        }
    }
    // Many at once, so that FPDUs share writes.
    let posted: Vec<_> = (1..40).map(|n| b.write(&source, 0, n * 100, remote(&sink))).collect();
    for write in posted {
        write.await.expect("written");
    }
    sent[1].extend((1..40).map(|n| (WRITE, n * 100)));
    let (plain, solicited) = (once(), once());
    a.send_invalidate(Bytes::from_static(b"bye"), plain.stag()).await.expect("sent");
    assert_eq!(b.receive().await.expect("received").invalidated, Some(plain.stag()));
    a.send_solicited(Bytes::from_static(b"event"), None).await.expect("sent");
    assert!(b.receive().await.expect("received").solicited);
    a.send_solicited(Bytes::from_static(b"both"), Some(solicited.stag())).await.expect("sent");
    assert_eq!(b.receive().await.expect("received").invalidated, Some(solicited.stag()));
    sent[0].extend([(SEND_INVALIDATE, 3), (SEND_SOLICITED, 5), (SEND_SOLICITED_INVALIDATE, 4)]);
    a.disconnect().await.expect("closed");
    b.closed().await;
    assert_eq!(sink.deregister().expect("its memory"), body);

    let (a, b) = connect().await;
    let mut ended = begin();
    drop(a.write(&source, 0, 100, RemoteAddress { stag: Stag(1), to: 0 }));
    ended[0].push((WRITE, 100));
    ended[1].push((TERMINATE, 0));
    assert!(matches!(b.closed().await, FabricError::Protocol(_)));
    assert!(matches!(a.closed().await, FabricError::TerminatedByPeer(_)));

    let (refused, ()) = tokio::join!(fabric.connect(&pd, listener.local_addr(), options()), async {
        listener.accept().await.expect("a request").reject(b"no").await.expect("refused");
    });
    assert!(matches!(refused, Err(FabricError::Rejected { .. })));
    [sent, ended]
}

/// A tshark that captures, and says what it has captured.
struct Capture {
    tshark: Child,
    ports: mpsc::Receiver<String>,
    probe: UdpSocket,
}

impl Capture {
    const FIRST: u16 = 40001;
    const LAST: u16 = 40002;

    fn start(file: &Path) -> Result<Self, String> {
        let mut tshark = program(file)
            .args(["-i", "lo", "-B", "64", "-f", "tcp or udp", "-w"])
            .arg(file)
            .args(["-P", "-l", "-T", "fields", "-e", "udp.dstport"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("tshark: {error}"))?;
        let lines = BufReader::new(tshark.stdout.take().expect("it is piped")).lines();
        let (sender, ports) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
        let mut capture = Self { tshark, ports, probe };
        if capture.wait_for(Self::FIRST) {
            return Ok(capture);
        }
        let _ = capture.tshark.kill();
        let output = capture.tshark.wait_with_output().map_err(|error| error.to_string())?;
        Err(format!("tshark does not capture: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Sends probes until one is seen: then the capture is live, and has all that went before.
    fn wait_for(&mut self, port: u16) -> bool {
        let start = std::time::Instant::now();
        while start.elapsed() < PATIENCE {
            // Nobody listens there; the error that comes back is of no interest.
            let _ = self.probe.send_to(b"probe", (Ipv4Addr::LOCALHOST, port));
            match self.ports.recv_timeout(Duration::from_millis(200)) {
                Ok(line) if line == port.to_string() => return true,
                Ok(_) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            }
        }
        false
    }

    fn stop(mut self) {
        assert!(self.wait_for(Self::LAST), "the capture caught up");
        let pid = nix::unistd::Pid::from_raw(self.tshark.id().try_into().expect("a process id"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
        let output = self.tshark.wait_with_output().expect("it ends");
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(!messages.contains("dropped"), "nothing was lost: {messages}");
    }
}

/// tshark without the settings of whoever runs the test: its home is the directory of the capture.
fn program(file: &Path) -> Command {
    let mut tshark = Command::new("tshark");
    tshark.env_remove("XDG_CONFIG_HOME").env("HOME", file.parent().expect("the capture is in a directory"));
    tshark
}

fn tshark(file: &Path, arguments: &[&str]) -> String {
    let output = program(file).arg("-r").arg(file).args(DISSECTION).args(arguments).output();
    let output = output.expect("tshark runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("tshark writes UTF-8")
}

/// An FPDU in our decoder's eyes.
struct Seen {
    crc: CrcVerdict,
    /// What tshark should say of it.
    line: String,
}

/// The port of each connection's initiator.
type Initiators = BTreeMap<u32, String>;

/// The FPDUs of a capture by our own decoder, ordered by connection and direction.
fn decode(file: &Path) -> (Vec<Seen>, Initiators) {
    let fields = ["-e", "tcp.stream", "-e", "tcp.srcport", "-e", "tcp.seq", "-e", "tcp.payload"];
    let mut arguments = vec!["-Y", "tcp.len > 0", "-T", "fields"];
    arguments.extend(fields);
    let mut decoders: BTreeMap<u32, (Decoder, String, [u32; 2])> = BTreeMap::new();
    for line in tshark(file, &arguments).lines() {
        let [stream, port, sequence, payload] =
            line.split('\t').collect::<Vec<_>>().try_into().expect("four fields");
        // The initiator is the one whose bytes come first.
        let (decoder, initiator, next) = decoders
            .entry(stream.parse().expect("a number"))
            .or_insert_with(|| (Decoder::new(), port.to_owned(), [1, 1]));
        let side = if port == initiator { Side::Initiator } else { Side::Responder };
        let next = &mut next[usize::from(side == Side::Responder)];
        let payload = bytes_of(payload);
        assert_eq!(sequence, next.to_string(), "loopback loses and reorders nothing");
        *next = next.wrapping_add(payload.len() as u32);
        decoder.push(side, &payload).expect("it is iWARP");
    }
    let mut seen = Vec::new();
    let mut initiators = Initiators::new();
    for (stream, (mut decoder, initiator, _)) in decoders {
        initiators.insert(stream, initiator);
        decoder.finish(Side::Initiator).expect("it ends between FPDUs");
        decoder.finish(Side::Responder).expect("it ends between FPDUs");
        let (mut initiator, mut responder) = (Vec::new(), Vec::new());
        while let Some(item) = decoder.next_item() {
            if let Item::Fpdu { side, ulpdu_length, crc, segment } = item {
                let segment = segment.expect("its headers make sense");
                let last = u8::from(segment.is_last());
                let opcode = segment.opcode.number();
                let place = match segment.header {
                    Header::Tagged { stag, to, .. } => format!("{:#010x}\t{to:#018x}", stag.0),
                    Header::Untagged { queue, msn, offset, .. } => {
                        format!("{}\t{}\t{offset}", queue.0, msn.0)
                    }
                };
                let line = format!("{ulpdu_length}\t{last}\t{opcode}\t{place}");
                match side {
                    Side::Initiator => initiator.push(Seen { crc, line }),
                    Side::Responder => responder.push(Seen { crc, line }),
                }
            }
        }
        seen.append(&mut initiator);
        seen.append(&mut responder);
    }
    (seen, initiators)
}

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

/// What tshark says of an FPDU.
struct Dissected {
    /// In the words of [`Seen::line`].
    line: String,
    opcode: u8,
    last: bool,
    payload: usize,
}

/// The FPDUs of a capture by tshark, in the same order: for each connection the initiator's, then the responder's. A
/// frame can hold many, and then a field is a list.
fn theirs(file: &Path, initiators: &Initiators) -> BTreeMap<(u32, u8), Vec<Dissected>> {
    let fields = [
        "tcp.stream",
        "tcp.srcport",
        "iwarp_mpa.ulpdulength",
        "iwarp_ddp.tagged_flag",
        "iwarp_ddp.last_flag",
        "iwarp_rdma.opcode",
        "iwarp_ddp.stag",
        "iwarp_ddp.tagged_offset",
        "iwarp_ddp.qn",
        "iwarp_ddp.msn",
        "iwarp_ddp.mo",
    ];
    let mut arguments = vec!["-Y", "iwarp_mpa.fpdu", "-T", "json"];
    arguments.extend(fields.iter().flat_map(|field| ["-e", field]));
    let frames: Vec<serde_json::Value> = serde_json::from_str(&tshark(file, &arguments)).expect("it is JSON");
    let mut streams: BTreeMap<(u32, u8), Vec<Dissected>> = BTreeMap::new();
    for frame in frames {
        let layers = &frame["_source"]["layers"];
        let list = |field: &str| {
            let values = layers[field].as_array().cloned().unwrap_or_default();
            values.into_iter().map(|value| value.as_str().expect("a string").to_owned())
        };
        let one = |field: &str| list(field).next().expect("a value");
        let stream: u32 = one("tcp.stream").parse().expect("a number");
        let direction = u8::from(initiators[&stream] != one("tcp.srcport"));
        let (mut stags, mut offsets) = (list(fields[6]), list(fields[7]));
        let (mut queues, mut msns, mut places) = (list(fields[8]), list(fields[9]), list(fields[10]));
        let headers = list(fields[2]).zip(list(fields[3])).zip(list(fields[4])).zip(list(fields[5]));
        for (((length, tagged), last), opcode) in headers {
            let opcode = u8::from_str_radix(opcode.trim_start_matches("0x"), 16).expect("a number");
            let length: usize = length.parse().expect("a number");
            let (header, place) = if tagged == "1" {
                let place =
                    format!("{}\t{}", stags.next().expect("an STag"), offsets.next().expect("an offset"));
                (14, place)
            } else {
                let next = |column: &mut dyn Iterator<Item = String>| column.next().expect("a value");
                (18, format!("{}\t{}\t{}", next(&mut queues), next(&mut msns), next(&mut places)))
            };
            let line = format!("{length}\t{last}\t{opcode}\t{place}");
            let dissected = Dissected { line, opcode, last: last == "1", payload: length - header };
            streams.entry((stream, direction)).or_default().push(dissected);
        }
    }
    streams
}

/// The messages that FPDUs make up: opcode and bytes of payload.
fn messages(fpdus: &[Dissected]) -> Vec<(u8, usize)> {
    let mut messages = Vec::new();
    let mut length = 0;
    for fpdu in fpdus {
        length += fpdu.payload;
        if fpdu.last {
            // What a Read Request or a Terminate says is no payload of anybody's.
            let payload = if matches!(fpdu.opcode, READ_REQUEST | TERMINATE) { 0 } else { length };
            messages.push((fpdu.opcode, payload));
            length = 0;
        }
    }
    messages
}
