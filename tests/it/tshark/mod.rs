//! tshark as an independent judge: real connections in a network namespace are captured, and tshark must dissect every
//! FPDU with a good CRC, find nothing malformed, and read the same headers as our own decoder.

mod dissection;
mod in_place;
mod operations;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rdma_http::iwarp::ddp::Header;
use rdma_http::iwarp::decode::{CrcVerdict, Decoder, Item, Side};

use self::dissection::DISSECTION;
use crate::support::skip;

/// Set in the process that runs inside of the namespace.
const INSIDE: &str = "RDMA_HTTP_TEST_INSIDE";

/// Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `talk` gave, and what was captured of it.
struct Captured<T> {
    talked: T,
    file: PathBuf,
    // Goes when it has been looked at.
    _directory: tempfile::TempDir,
}

/// Runs the named test again inside of a network namespace of its own, and there captures what `talk` says over loopback.
/// `None` to the test that is run first.
fn captured<T>(name: &str, mtu: u32, talk: impl FnOnce() -> T) -> Option<Captured<T>> {
    if std::env::var_os(INSIDE).is_none() {
        again_in_namespace(name);
        return None;
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up", "mtu", &mtu.to_string()]).status();
    assert!(up.expect("ip runs").success());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("capture.pcapng");
    match Capture::start(&file) {
        Ok(capture) => {
            let talked = talk();
            capture.stop();
            Some(Captured { talked, file, _directory: directory })
        }
        Err(reason) => {
            skip(name, &reason);
            None
        }
    }
}

fn again_in_namespace(name: &str) {
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

const WRITE: u8 = 0;
const READ_REQUEST: u8 = 1;
const READ_RESPONSE: u8 = 2;
const SEND: u8 = 3;
const SEND_INVALIDATE: u8 = 4;
const SEND_SOLICITED: u8 = 5;
const SEND_SOLICITED_INVALIDATE: u8 = 6;
const TERMINATE: u8 = 7;

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

/// What a capture holds, once tshark and our decoder agree on every FPDU of it.
struct Judged {
    /// How many have a CRC, which is good.
    crc_good: usize,
    /// The messages of each connection, of its initiator and of its responder.
    connections: Vec<[Vec<(u8, usize)>; 2]>,
}

fn judge(file: &Path) -> Judged {
    let (ours, initiators) = decode(file);
    let crc_good = ours.iter().filter(|f| f.crc == CrcVerdict::Good).count();
    assert!(ours.iter().all(|f| f.crc != CrcVerdict::Bad), "our decoder finds every CRC right");
    let tree = tshark(file, &["-V"]);
    assert_eq!(tree.matches("Good CRC32").count(), crc_good, "every CRC is good");
    assert_eq!(tree.matches("Bad CRC32").count(), 0);
    assert_eq!(tshark(file, &["-Y", "_ws.malformed"]), "");
    let theirs = theirs(file, &initiators);
    let lines: Vec<&String> = theirs.values().flatten().map(|fpdu| &fpdu.line).collect();
    for (at, (ours, theirs)) in ours.iter().zip(&lines).enumerate() {
        assert_eq!(&&ours.line, theirs, "FPDU {at}");
    }
    assert_eq!(lines.len(), ours.len());
    println!("{} FPDUs, {crc_good} with CRC, all dissected", ours.len());
    let side =
        |stream, direction| theirs.get(&(stream, direction)).map_or(Vec::new(), |fpdus| messages(fpdus));
    let connections = initiators.keys().map(|stream| [side(*stream, 0), side(*stream, 1)]).collect();
    Judged { crc_good, connections }
}

/// An FPDU in our decoder's eyes.
struct Seen {
    crc: CrcVerdict,
    /// What tshark should say of it.
    line: String,
}

/// What MPA begins with (RFC 5044, section 7.1).
const KEY: &[u8] = b"MPA ID Req Frame";

/// The port of each connection's initiator.
type Initiators = BTreeMap<u32, String>;

/// One direction of a TCP stream. Loopback loses nothing, but on a busy machine TCP may send something again, and two
/// processors may hand packets to a capture in another order than they were sent in.
#[derive(Default)]
struct InOrder {
    /// Bytes that were taken.
    taken: usize,
    /// What lies beyond them, by where it begins.
    early: BTreeMap<usize, Vec<u8>>,
}

impl InOrder {
    /// Takes a segment, of which tshark counts the first byte as 1; gives the bytes that are next with it.
    fn take(&mut self, sequence: usize, payload: Vec<u8>) -> Vec<u8> {
        let held = self.early.entry(sequence - 1).or_default();
        if payload.len() > held.len() {
            *held = payload;
        }
        let mut next = Vec::new();
        while let Some(entry) = self.early.first_entry().filter(|entry| *entry.key() <= self.taken) {
            let again = self.taken - entry.key();
            let payload = entry.remove();
            let new = payload.get(again..).unwrap_or_default();
            self.taken += new.len();
            next.extend_from_slice(new);
        }
        next
    }
}

/// The FPDUs of a capture by our own decoder, ordered by connection and direction.
fn decode(file: &Path) -> (Vec<Seen>, Initiators) {
    let fields = ["-e", "tcp.stream", "-e", "tcp.srcport", "-e", "tcp.seq", "-e", "tcp.payload"];
    let mut arguments = vec!["-Y", "tcp.len > 0", "-T", "fields"];
    arguments.extend(fields);
    let mut decoders: BTreeMap<u32, (Decoder, String)> = BTreeMap::new();
    let mut streams: BTreeMap<(u32, String), InOrder> = BTreeMap::new();
    for line in tshark(file, &arguments).lines() {
        let [stream, port, sequence, payload] =
            line.split('\t').collect::<Vec<_>>().try_into().expect("four fields");
        let stream: u32 = stream.parse().expect("a number");
        let in_order = streams.entry((stream, port.to_owned())).or_default();
        let payload = in_order.take(sequence.parse().expect("a number"), bytes_of(payload));
        if payload.is_empty() {
            continue;
        }
        // Before MPA it may have been another protocol's connection. The initiator is the one whose bytes come first.
        if !decoders.contains_key(&stream) && !payload.starts_with(KEY) {
            continue;
        }
        let (decoder, initiator) =
            decoders.entry(stream).or_insert_with(|| (Decoder::new(), port.to_owned()));
        let side = if port == initiator { Side::Initiator } else { Side::Responder };
        decoder.push(side, &payload).expect("it is iWARP");
    }
    assert!(streams.values().all(|stream| stream.early.is_empty()), "nothing is missing");
    let mut seen = Vec::new();
    let mut initiators = Initiators::new();
    for (stream, (mut decoder, initiator)) in decoders {
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

#[test]
fn a_stream_is_read_in_its_order() {
    let mut stream = InOrder::default();
    assert_eq!(stream.take(1, b"ab".to_vec()), b"ab");
    assert_eq!(stream.take(5, b"ef".to_vec()), b"");
    assert_eq!(stream.take(1, b"ab".to_vec()), b"", "sent again");
    assert_eq!(stream.take(2, b"bcd".to_vec()), b"cdef", "with more, and what was early");
    assert!(stream.early.is_empty());
}
