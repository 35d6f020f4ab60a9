//! siw and rxe inside our labs, in a guest, judged by programs that nobody here wrote.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use testbed::agent::protocol::{PortState, Status};
use testbed::kernel::{Cache, Platform};
use testbed::lab::rdma::{Events, gids, state as port_state};

use crate::support::{LONG, Labs, skip};

const FABRICS: [&str; 2] = ["siw", "rxe"];
const SERVER: &str = "10.10.0.1";
/// Where Debian's python3-pyverbs has rdma-core's own tests.
const RDMA_CORE_TESTS: &str = "/usr/share/doc/rdma-core/tests";

/// A lab of two hosts in a guest, with devices of this fabric; `None` (said why) without a kernel or one of the files.
fn lab(test: &str, fabric: &str, needed: &[(&str, &str)]) -> Option<Labs> {
    if let Some((file, package)) = needed.iter().find(|(file, _)| !Path::new(file).exists()) {
        skip(test, &format!("there is no {file} (Debian: {package})"));
        return None;
    }
    if Cache::of_user().and_then(|cache| cache.newest(Platform::Uml)).unwrap().is_none() {
        skip(test, "no UML kernel is built; `testbed kernel build` builds one");
        return None;
    }
    let labs = Labs::new(test)?;
    labs.up_in_guest(&["direct", "--fabric", fabric]);
    Some(labs)
}

/// A program in the server, which ends with this.
struct Server(Child);

impl Server {
    /// Starts it, and returns once something listens on its port.
    fn start(labs: &Labs, argv: &[&str]) -> Self {
        let args = [&["exec", "server", "--"], argv].concat();
        let output = labs.path("server.txt");
        let output = fs::File::create(output).unwrap();
        let mut command = labs.testbed();
        command.args(args).stdout(output.try_clone().unwrap()).stderr(output);
        let server = Self(command.spawn().unwrap());
        // The kernel tells which ports the RDMA connection manager listens on.
        let listens =
            "until rdma resource show cm_id 2>/dev/null | grep -q 'state LISTEN'; do sleep 0.05; done";
        labs.expect(0, ["exec", "server", "--", "timeout", "20", "sh", "-c", listens]);
        server
    }

    /// Waits for its end, which must be good.
    #[track_caller]
    fn ends_well(mut self, labs: &Labs) {
        let status = self.0.wait().unwrap();
        let output = fs::read_to_string(labs.path("server.txt")).unwrap();
        assert!(status.success(), "{status}: {output}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn rping_and_ucmatose_pass_between_two_hosts() {
    let test = "rping_and_ucmatose_pass_between_two_hosts";
    let needed = [("/usr/bin/rping", "rdmacm-utils"), ("/usr/bin/rdma", "iproute2")];
    for fabric in FABRICS {
        let Some(labs) = lab(test, fabric, &needed) else { return };
        let server = Server::start(&labs, &["rping", "-s", "-C", "3", "-a", SERVER]);
        let ask = ["exec", "client", "--", "timeout", "20", "rping", "-c", "-v", "-C", "3", "-a", SERVER];
        let text = labs.expect(0, ask);
        assert_eq!(text.matches("ping data: rdma-ping-").count(), 3, "{fabric}: {text}");
        server.ends_well(&labs);

        // Bound to its address: to listen on all would be to listen on the other host's device too, since all devices
        // are seen from everywhere. And on iWARP only connections: with transfers ucmatose's server sends first, which
        // MPA forbids it (RFC 5044, section 7.1.2), and siw breaks the connection off where the client is not ready yet.
        let (connections, transfers) = if fabric == "siw" { ("1", "0") } else { ("4", "20") };
        let traffic = ["-c", connections, "-C", transfers, "-S", "10000"];
        let server = Server::start(&labs, &[&["ucmatose", "-b", SERVER], &traffic[..]].concat());
        let ask =
            [&["exec", "client", "--", "timeout", "20", "ucmatose", "-s", SERVER], &traffic[..]].concat();
        let text = labs.expect(0, ask);
        assert!(text.contains("test complete") && text.contains("return status 0"), "{fabric}: {text}");
        server.ends_well(&labs);
    }
}

#[test]
fn ibv_devinfo_shows_the_devices_as_what_they_are_and_status_agrees() {
    let test = "ibv_devinfo_shows_the_devices_as_what_they_are_and_status_agrees";
    for (fabric, transport) in [("siw", "iWARP (1)"), ("rxe", "InfiniBand (0)")] {
        let Some(labs) = lab(test, fabric, &[("/usr/bin/ibv_devinfo", "ibverbs-utils")]) else { return };
        let status: Status = serde_json::from_value(labs.status()).unwrap();
        for (host, plan) in status.hosts.iter().zip(&status.plan.hosts) {
            let [device] = &host.devices[..] else { panic!("{host:?}") };
            assert_eq!(device.name, format!("{fabric}-{}-eth0", host.name));
            assert_eq!((device.fabric.to_string(), device.state), (fabric.to_owned(), PortState::Active));
            if fabric == "rxe" {
                let IpAddr::V4(address) = plan.address().unwrap() else { panic!("{plan:?}") };
                let gid = device.gids.iter().find(|gid| gid.gid == address.to_ipv6_mapped());
                assert_eq!(gid.unwrap().kind, "RoCE v2", "{device:?}");
            }
            let text = labs.expect(0, ["exec", &host.name, "--", "ibv_devinfo", "-d", &device.name]);
            let words: Vec<_> = text.split_whitespace().collect::<Vec<_>>();
            let shown = words.join(" ");
            for expected in [
                format!("transport: {transport}"),
                "state: PORT_ACTIVE (4)".into(),
                "link_layer: Ethernet".into(),
            ] {
                assert!(shown.contains(&expected), "{expected} is missing in\n{text}");
            }
            // RoCE packs 1,024 bytes and their headers into an MTU of 1,500.
            assert!(shown.contains("active_mtu: 1024 (3)"), "{text}");
        }
    }
}

/// rdma-core's tests, as it has them in its own repository.
fn rdma_core_tests(labs: &Labs) -> PathBuf {
    let to = labs.path("tests");
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(RDMA_CORE_TESTS).unwrap() {
        let from = entry.unwrap().path();
        let name = from.file_name().unwrap().to_str().unwrap();
        match name.strip_suffix(".gz") {
            Some(name) => {
                let unpacked = Command::new("gzip").arg("-dc").arg(&from).stderr(Stdio::inherit()).output();
                fs::write(to.join(name), unpacked.unwrap().stdout).unwrap();
            }
            None => drop(fs::copy(&from, to.join(name)).unwrap()),
        }
    }
    to
}

/// It counts on two completions being there by the time that it looks, which on a busy machine they are not.
const HASTY: [&str; 1] = ["test_resize_cq"];

/// Those that siw fails, for what iWARP or siw does not have.
const NOT_FOR_SIW: [&str; 6] = [
    // They connect queue pairs by ibv_modify_qp alone; an iWARP queue pair begins with a TCP connection.
    "test_cq_events_rc",
    "test_mr_rereg_access",
    "test_mr_rereg_access_bad_flow",
    "test_mr_rereg_addr",
    "test_mr_rereg_pd",
    "test_ro_rc_traffic",
];

#[test]
fn rdma_cores_own_tests_pass() {
    let test = "rdma_cores_own_tests_pass";
    let pyverbs = "/usr/lib/python3/dist-packages/pyverbs/__init__.py";
    let needed = [(pyverbs, "python3-pyverbs"), (RDMA_CORE_TESTS, "python3-pyverbs, with its documentation")];
    // rxe's first GID is of an IPv6 address that the interface does not have, its second of the IPv4 address. As for the
    // least: most tests are for other vendors' devices, or for what these do not have, and skip themselves.
    for (fabric, gid, expected, least) in [("siw", "0", &NOT_FOR_SIW[..], 20), ("rxe", "1", &HASTY, 80)] {
        let Some(labs) = lab(test, fabric, &needed) else { return };
        let tests = rdma_core_tests(&labs);
        let device = format!("{fabric}-server-eth0");
        let output = labs
            .testbed()
            .current_dir(&tests)
            .args(["exec", "server", "--", "python3", "run_tests.py", "--dev", &device, "--gid", gid, "-v"])
            .output()
            .unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let failed: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("ERROR: ").or_else(|| line.strip_prefix("FAIL: ")))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let unexpected: Vec<_> = failed.iter().filter(|name| !expected.contains(name)).collect();
        assert!(unexpected.is_empty(), "{fabric}: {unexpected:?} failed:\n{text}");
        assert!(text.contains("\nRan "), "{fabric}: {text}");
        let passed = text.matches("... ok").count();
        assert!(passed >= least, "{fabric}: only {passed} passed:\n{text}");
        eprintln!("{fabric}: {passed} of rdma-core's tests passed");
    }
}

/// The fields of every frame that `filter` shows, a line a frame.
fn tshark(capture: &Path, filter: &str, fields: &[&str]) -> String {
    // Else a short Send is taken for another protocol that begins like it.
    let mut command = Command::new("tshark");
    command.arg("-r").arg(capture).args(["--enable-heuristic", "iwarp_mpa_tcp"]);
    command.args(["--disable-heuristic", "rpcrdma_iwarp", "--disable-heuristic", "smb_direct_iwarp"]);
    command.args(["-o", "tcp.try_heuristic_first:TRUE", "-Y", filter]);
    if !fields.is_empty() {
        command.args(["-T", "fields"]).args(fields.iter().flat_map(|field| ["-e", *field]));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tshark_sees_good_iwarp_and_good_roce() {
    let test = "tshark_sees_good_iwarp_and_good_roce";
    let needed = [("/usr/bin/tshark", "tshark"), ("/usr/bin/rping", "rdmacm-utils")];
    for fabric in FABRICS {
        let Some(labs) = lab(test, fabric, &needed) else { return };
        let capture = labs.path("rping.pcapng");
        let capture = capture.as_path();
        // In a guest, only what is in a shared directory is the machine's.
        let run = |args: &[&str]| {
            let output = labs.testbed().current_dir(capture.parent().unwrap()).args(args).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        run(&["capture", "start", "cable", "-w", capture.to_str().unwrap()]);
        let server = Server::start(&labs, &["rping", "-s", "-C", "5", "-S", "3000", "-a", SERVER]);
        let ask = ["timeout", "20", "rping", "-c", "-C", "5", "-S", "3000", "-a", SERVER];
        labs.expect(0, [&["exec", "client", "--"], &ask[..]].concat());
        server.ends_well(&labs);
        run(&["capture", "stop", "cable"]);

        assert_eq!(tshark(capture, "_ws.malformed", &[]), "", "{fabric}: a malformed frame");
        if fabric == "siw" {
            // Each ping is a Read by the server, and a Write by it, around Sends (RFC 5040, section 4.3).
            let opcodes = tshark(capture, "iwarp_mpa.fpdu", &["iwarp_rdma.opcode"]);
            let seen = |opcode: &str| opcodes.split([',', '\n']).filter(|seen| *seen == opcode).count();
            let [writes, requests, responses, sends] = ["0x00", "0x01", "0x02", "0x03"].map(seen);
            assert_eq!(requests, 5, "{opcodes}");
            assert!(writes >= 5 && responses >= 5 && sends >= 10, "{opcodes}");
        } else {
            // Reliable Connection: Sends (4), Writes (first 6 and last 8), a Read request (12) with its responses (first
            // 13 and last 15), acknowledgements (17): InfiniBand Architecture 1.4, table 35.
            let packets = tshark(capture, "udp.dstport == 4791", &["infiniband.bth.opcode", "udp.length"]);
            let opcodes: Vec<_> = packets.lines().filter_map(|line| line.split('\t').next()).collect();
            let seen = |opcode: &str| opcodes.iter().filter(|seen| **seen == opcode).count();
            for (opcode, name) in [("6", "first Writes"), ("8", "last Writes"), ("12", "Read requests")] {
                assert_eq!(seen(opcode), 5, "{name}: {packets}");
            }
            assert!(seen("4") >= 10 && seen("13") >= 5 && seen("17") >= 5, "{packets}");
            // No packet is longer than its header and the active MTU of 1,024.
            let lengths = packets.lines().filter_map(|line| line.split('\t').nth(1)?.parse::<u32>().ok());
            let longest = lengths.max().unwrap();
            assert!((1024..1500).contains(&longest), "{longest}");
        }
    }
}

/// Set for the part of a test that runs in a host of a guest.
const INSIDE: &str = "TESTBED_TEST_INSIDE";

#[test]
fn a_new_gid_and_a_ports_state_are_told_by_events() {
    let test = "a_new_gid_and_a_ports_state_are_told_by_events";
    if std::env::var_os(INSIDE).is_some() {
        return tokio::runtime::Runtime::new().unwrap().block_on(told_by_events());
    }
    let Some(labs) = lab(test, "rxe", &[("/usr/bin/ip", "iproute2")]) else { return };
    let this = std::env::current_exe().unwrap();
    let inside = [this.to_str().unwrap(), "--exact", &format!("judges::{test}"), "--nocapture"];
    let variable = format!("{INSIDE}=1");
    let text = labs.expect(0, [&["exec", "--env", &variable, "server", "--"], &inside[..]].concat());
    assert!(text.contains("1 passed"), "{text}");
}

async fn told_by_events() {
    const DEVICE: &str = "rxe-server-eth0";
    let ip = |args: &str| {
        let status = Command::new("ip").args(args.split(' ')).status().unwrap();
        assert!(status.success(), "ip {args}");
    };
    let events = Events::open(DEVICE).unwrap();
    // Each of these fails unless an event comes, and comes often enough.
    let next = async || tokio::time::timeout(LONG, events.next()).await.expect("no event came").unwrap();
    let gid = std::net::Ipv4Addr::new(10, 99, 0, 1).to_ipv6_mapped();
    let is_there = || gids(DEVICE).unwrap().iter().any(|entry| entry.gid == gid);
    assert!(!is_there());
    ip("address add 10.99.0.1/24 dev eth0");
    next().await;
    while !is_there() {
        next().await;
    }
    for (set, state) in [("down", PortState::Down), ("up", PortState::Active)] {
        ip(&format!("link set eth0 {set}"));
        next().await;
        while port_state(DEVICE).unwrap() != state {
            next().await;
        }
    }
}
