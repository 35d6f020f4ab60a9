//! `Lab::build`: real namespaces, interfaces and links, in the test's own process.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};
use sha2::{Digest as _, Sha256};
use testbed::lab::{Lab, RelayDevice};
use testbed::topology::{Plan, Topology};

use super::userns;

/// Whether this process may make labs. If not, the test has passed in a child that may, or it was said why it does not run.
fn can(test: &str) -> bool {
    let may = nix::unistd::geteuid().is_root();
    if !may {
        userns::again(&format!("lab::{test}"));
    }
    may
}

/// The devices that a relay can have here. Some machines keep `/dev/net/tun` from ordinary users, who then have the other.
fn devices() -> &'static [RelayDevice] {
    match std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => &[RelayDevice::Tap, RelayDevice::Packet],
        Err(error) => {
            eprintln!("SKIP the relay over TAP: /dev/net/tun: {error}");
            &[RelayDevice::Packet]
        }
    }
}

/// Two hosts, `a` (10.0.0.1) and `b` (10.0.0.2), with a link of these properties.
fn pair(properties: &str) -> Plan {
    let text = format!(
        "name = \"pair\"\n\
         [hosts.a]\ninterfaces.eth0.address = \"10.0.0.1/24\"\n\
         [hosts.b]\ninterfaces.eth0.address = \"10.0.0.2/24\"\n\
         [[links]]\nname = \"wire\"\nendpoints = [\"a:eth0\", \"b:eth0\"]\n{properties}\n"
    );
    Topology::parse("pair.toml", &text).unwrap().plan()
}

/// Runs `work` on a thread in a host.
fn within<T: Send + 'static>(
    lab: &Lab,
    host: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let namespace = lab.netns(host).unwrap().try_clone_to_owned().unwrap();
    std::thread::spawn(move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

/// Runs a command in a host: a child is born where the thread is that makes it.
fn output(lab: &Lab, host: &str, argv: &[&str]) -> Output {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    within(lab, host, move || command.output().unwrap()).join().unwrap()
}

/// As [`output`]; the command must succeed, and its standard output is returned.
fn run(lab: &Lab, host: &str, argv: &[&str]) -> String {
    let output = output(lab, host, argv);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{argv:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// What tshark finds fault with in a transfer. What is sent there is no protocol at all, and tshark may take it for one by
/// the port that it happens to have: that such a one is malformed says nothing.
const WRONG: &str =
    "tcp.checksum.status == 0 or ip.checksum.status == 0 or (_ws.malformed and not tcp.payload)";

#[tokio::test]
async fn two_hosts_reach_each_other_after_the_links_delay() {
    if !can("two_hosts_reach_each_other_after_the_links_delay") {
        return;
    }
    let lab = Lab::build(pair("rate = \"10 Gbit/s\"\ndelay = \"25 ms\"")).await.unwrap();
    let text = run(&lab, "a", &["ping", "-n", "-c", "3", "-i", "0.1", "10.0.0.2"]);
    let times: Vec<f64> =
        text.lines().filter_map(|l| l.split_once("time=")?.1.split_once(' ')?.0.parse().ok()).collect();
    assert_eq!(times.len(), 3, "{text}");
    assert!(times.iter().all(|t| *t >= 50.0), "{text}");
    let links = lab.links();
    let best = if devices().len() == 2 { "relay over TAP" } else { "relay over AF_PACKET" };
    assert_eq!(links[0].driver, best);
    // Neighbours are permanent and nothing else talks: three requests, three answers.
    assert_eq!(links[0].a_to_b.frames, 3);
    assert_eq!(links[0].b_to_a.frames, 3);
    assert!(lab.teardown().await.is_empty());
}

/// Sends `len` bytes from `b` to `a` over TCP, and checks that they arrive as they were.
fn transfer(lab: &Lab, len: usize) {
    let listener = within(lab, "a", || TcpListener::bind("10.0.0.1:0").unwrap()).join().unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut random = fastrand::Rng::with_seed(len as u64);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    let sent = Sha256::digest(&bytes);
    let sender = within(lab, "b", move || {
        TcpStream::connect(("10.0.0.1", port)).unwrap().write_all(&bytes).unwrap();
    });
    let mut received = Vec::with_capacity(len);
    listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert_eq!(received.len(), len);
    assert_eq!(Sha256::digest(&received), sent);
}

/// The numbers of a capture's frames that the filter holds, a line each. (Not what they say: random bytes that are taken for a
/// protocol's may have line ends in them.)
fn tshark(file: &Path, filter: &str) -> String {
    let checks = ["ip.check_checksum:TRUE", "tcp.check_checksum:TRUE", "udp.check_checksum:TRUE"];
    let output = Command::new("tshark")
        .env("HOME", "/nonexistent")
        .args(checks.iter().flat_map(|c| ["-o", c]))
        .args(["-r", file.to_str().unwrap(), "-Y", filter, "-T", "fields", "-e", "frame.number"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<_> = errors.lines().filter(|l| !l.starts_with("Running as user")).collect();
    assert!(output.status.success() && complaints.is_empty(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_arrive_intact_and_a_capture_holds_them_all() {
    if !can("bytes_arrive_intact_and_a_capture_holds_them_all") {
        return;
    }
    const LEN: usize = 64 << 20;
    let lab = Lab::build(pair("rate = \"10 Gbit/s\"\ndelay = \"5 ms\"\nqueue = \"1 bdp\"")).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wire.pcapng");
    lab.capture_start("wire", &file).unwrap();
    let again = lab.capture_start("wire", &file).unwrap_err();
    assert!(again.message.contains("runs already"), "{again}");
    tokio::task::block_in_place(|| transfer(&lab, LEN));
    let (frames, dropped) = lab.capture_stop("wire").unwrap();
    assert_eq!(dropped, 0);
    assert_eq!(tshark(&file, "frame").lines().count() as u64, frames);
    assert_eq!(tshark(&file, WRONG), "");
    // The stream is whole: its last acknowledgement covers every byte (and the FIN, whose number is one more).
    assert!(!tshark(&file, &format!("tcp.ack == {}", LEN + 2)).is_empty());
    assert!(lab.capture_stop("wire").is_err());
    assert!(lab.capture_start("wired", &file).unwrap_err().message.contains("there is wire"));
    assert!(lab.teardown().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_user_has_packet_sockets() {
    // What a laptop's user has, also when root runs the tests.
    if !userns::is_inside() {
        userns::again("lab::an_ordinary_user_has_packet_sockets");
        return;
    }
    let plan = pair("rate = \"10 Gbit/s\"\ndelay = \"5 ms\"\nqueue = \"1 bdp\"\ndriver = \"relay\"");
    let lab = Lab::build_with(plan, RelayDevice::Packet).await.unwrap();
    assert_eq!(lab.links()[0].driver, "relay over AF_PACKET");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wire.pcapng");
    lab.capture_start("wire", &file).unwrap();
    tokio::task::block_in_place(|| transfer(&lab, 16 << 20));
    let (_, dropped) = lab.capture_stop("wire").unwrap();
    assert_eq!(dropped, 0);
    assert_eq!(tshark(&file, WRONG), "");
    assert!(lab.teardown().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_that_faults_hit_arrive_in_the_end() {
    if !can("packets_that_faults_hit_arrive_in_the_end") {
        return;
    }
    let faults = "delay = \"1 ms\"\njitter = \"0.1 ms\"\nloss = 0.01\nreorder = 0.01\nduplicate = 0.01\ncorrupt = 0.01";
    for &device in devices() {
        let lab = Lab::build_with(pair(faults), device).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("wire.pcapng");
        lab.capture_start("wire", &file).unwrap();
        tokio::task::block_in_place(|| transfer(&lab, 4 << 20));
        lab.capture_stop("wire").unwrap();
        assert!(!tshark(&file, "tcp.analysis.retransmission").is_empty(), "{device:?}");
        // Where single packets are hit, there are no super-frames.
        assert_eq!(tshark(&file, "frame.len > 1514"), "", "{device:?}");
        assert!(lab.teardown().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_drops_and_counts() {
    if !can("a_full_queue_drops_and_counts") {
        return;
    }
    let lab = Lab::build(pair("rate = \"100 Mbit/s\"\ndelay = \"1 ms\"\nqueue = \"70 kB\"")).await.unwrap();
    tokio::task::block_in_place(|| transfer(&lab, 4 << 20));
    let status = &lab.links()[0];
    assert!(status.b_to_a.dropped > 0, "{status:?}");
    assert_eq!(status.a_to_b.dropped, 0, "{status:?}");
}

#[tokio::test]
async fn settings_read_back_and_wrong_ones_are_named() {
    if !can("settings_read_back_and_wrong_ones_are_named") {
        return;
    }
    let mut plan = pair("");
    plan.hosts[0].sysctls.insert("net.ipv4.tcp_rmem".into(), "4096  131072\t400000000".into());
    let lab = Lab::build(plan.clone()).await.unwrap();
    assert_eq!(lab.hosts()[0].sysctls["net.ipv4.tcp_rmem"], "4096 131072 400000000");
    drop(lab);

    for (name, value, says) in [
        ("net.ipv4.tcp_magic", "1", "host a: there is no setting net.ipv4.tcp_magic"),
        ("net.ipv4.tcp_sack", "maybe", "host a: the setting net.ipv4.tcp_sack cannot be `maybe`"),
        ("kernel.hostname", "x", "host a: the setting kernel.hostname is not a network namespace's"),
    ] {
        let mut plan = plan.clone();
        plan.hosts[0].sysctls = [(name.to_owned(), value.to_owned())].into();
        let error = Lab::build(plan).await.unwrap_err();
        assert!(error.message.starts_with(says), "{error}");
    }
}

#[tokio::test]
async fn a_plan_that_does_not_fit_is_refused() {
    let mut plan = pair("");
    plan.links[0].b.host = "c".into();
    let error = Lab::build(plan).await.unwrap_err();
    assert_eq!(error.message, "link wire: c:eth0 is no interface, or another link has it");
    let mut plan = pair("");
    plan.links.clear();
    let error = Lab::build(plan).await.unwrap_err();
    assert_eq!(error.message, "host a: no link has its interface eth0");
}

#[tokio::test]
async fn the_kernel_carries_what_asks_for_it() {
    if !can("the_kernel_carries_what_asks_for_it") {
        return;
    }
    let lab = Lab::build(pair("driver = \"veth\"")).await.unwrap();
    run(&lab, "a", &["ping", "-n", "-c", "1", "10.0.0.2"]);
    assert_eq!(lab.links()[0].driver, "veth");
    let error = lab.capture_start("wire", Path::new("/nonexistent")).unwrap_err();
    assert!(error.message.contains("`driver = \"relay\"`"), "{error}");
    drop(lab);

    // Either this kernel has netem, or it is named as what is missing.
    match Lab::build(pair("driver = \"netem\"\ndelay = \"10 ms\"")).await {
        Ok(lab) => {
            let text = run(&lab, "a", &["ping", "-n", "-c", "1", "10.0.0.2"]);
            let time: f64 = text.split_once("time=").unwrap().1.split_once(' ').unwrap().0.parse().unwrap();
            assert!(time >= 20.0, "{text}");
        }
        Err(error) => assert!(error.message.starts_with("link wire: this kernel has no netem"), "{error}"),
    }
}

/// The network namespaces in which processes are, or which they hold open.
fn namespaces() -> std::collections::BTreeSet<String> {
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    let mut found = std::collections::BTreeSet::new();
    for process in processes {
        let descriptors = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let links = descriptors.map(|fd| fd.path()).chain([process.path().join("ns/net")]);
        // A process that has just ended has none.
        let targets = links.filter_map(|link| std::fs::read_link(link).ok());
        found.extend(targets.map(|t| t.display().to_string()).filter(|t| t.starts_with("net:[")));
    }
    found
}

/// The lab's namespaces, as [`namespaces`] names them.
fn namespaces_of(lab: &Lab) -> Vec<String> {
    let name = |host| {
        let inode = nix::sys::stat::fstat(lab.netns(host).unwrap()).unwrap().st_ino;
        format!("net:[{inode}]")
    };
    ["a", "b"].map(name).into()
}

#[tokio::test]
async fn nothing_is_left_after_teardown() {
    if !can("nothing_is_left_after_teardown") {
        return;
    }
    for &device in devices() {
        let interfaces = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count();
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let lab = Lab::build_with(pair("driver = \"relay\""), device).await.unwrap();
        let mine = namespaces_of(&lab);
        assert!(mine.iter().all(|n| namespaces().contains(n)));
        // Interfaces are the hosts' and the relay's; this process's own namespace sees none of them.
        let now = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count();
        assert_eq!(now, interfaces);
        assert!(lab.teardown().await.is_empty());
        assert!(mine.iter().all(|n| !namespaces().contains(n)), "{device:?}");
        assert_eq!(std::fs::read_dir("/proc/self/fd").unwrap().count(), descriptors, "{device:?}");
        let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = threads.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
        assert_eq!(names.filter(|n| n.contains("eth0")).count(), 0, "{device:?}");
    }
}

#[tokio::test]
async fn nothing_is_left_after_a_kill() {
    const TEST: &str = "nothing_is_left_after_a_kill";
    const INSIDE: &str = "LAB_TEST_TO_BE_KILLED";
    if !can(TEST) {
        return;
    }
    if std::env::var_os(INSIDE).is_some() {
        let lab = Lab::build(pair("delay = \"1 ms\"")).await.unwrap();
        println!("namespaces {}", namespaces_of(&lab).join(" "));
        std::future::pending::<()>().await;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("lab::{TEST}"), "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap());
    let line =
        std::io::BufRead::lines(lines).map(Result::unwrap).find(|l| l.starts_with("namespaces")).unwrap();
    let theirs: Vec<_> = line.split(' ').skip(1).map(str::to_owned).collect();
    assert!(theirs.len() == 2 && theirs.iter().all(|n| namespaces().contains(n)), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(theirs.iter().all(|n| !namespaces().contains(n)), "{line}");
}

#[tokio::test]
async fn an_error_leaves_nothing() {
    if !can("an_error_leaves_nothing") {
        return;
    }
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut plan = pair("");
    // The last step of all fails, when everything else is there.
    plan.hosts[1].sysctls = [("net.ipv4.tcp_magic".to_owned(), "1".to_owned())].into();
    let error = Lab::build(plan).await.unwrap_err();
    assert!(error.message.starts_with("host b: there is no setting"), "{error}");
    // The netlink sockets are closed by the runtime as it gets to it.
    while std::fs::read_dir("/proc/self/fd").unwrap().count() != descriptors {
        tokio::task::yield_now().await;
    }
}
