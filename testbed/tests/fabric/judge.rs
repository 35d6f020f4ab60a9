//! The kernel's siw as a judge of soft, in both roles: one host of a guest's lab speaks siw, the other soft. Every
//! operation, and every error of the protocol that either side can be brought to make. Where siw does not do what the
//! RFCs say, a case names what it does.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rdma_http::fabric::soft::SoftFabric;
use rdma_http::fabric::verbs::VerbsFabric;
use rdma_http::fabric::{
    Access, ConnectOptions, Connection, Fabric, FabricError, FabricKind, RemoteAddress, Stag,
};
use testbed::kernel::{Cache, Platform};
use testbed::topology;
use tokio::time::timeout;

use crate::by_hand::by_hand;
use crate::guest::Lab;
use crate::replies;
use crate::support::skip;

/// Which side of which case this process is, in a host of the guest: role, fabric, address, CRC.
const PART: &str = "TESTBED_TEST_JUDGE";

/// Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server's part says when the client's may begin.
pub(crate) const LISTENING: &str = "it listens";

const PORT: u16 = 7174;
pub(crate) const SIZE: usize = 300_000;

#[test]
fn siw_serves_soft() {
    judge("judge::siw_serves_soft", ["siw", "soft"]);
}

#[test]
fn soft_serves_siw() {
    judge("judge::soft_serves_siw", ["soft", "siw"]);
}

#[test]
fn siw_answers_frames_made_by_hand() {
    judge("judge::siw_answers_frames_made_by_hand", ["siw", "hand"]);
}

#[test]
fn soft_answers_the_same_frames() {
    judge("judge::soft_answers_the_same_frames", ["soft", "hand"]);
}

#[test]
fn siw_takes_replies_made_by_hand() {
    judge("judge::siw_takes_replies_made_by_hand", ["hand", "siw"]);
}

#[test]
fn soft_takes_the_same_replies() {
    judge("judge::soft_takes_the_same_replies", ["hand", "soft"]);
}

/// Runs the two sides in the two hosts of a guest, each by this very test.
fn judge(test: &str, sides @ [server, client]: [&str; 2]) {
    if let Ok(part) = std::env::var(PART) {
        return play(&part, sides);
    }
    if Cache::of_user().and_then(|cache| cache.newest(Platform::Uml)).unwrap().is_none() {
        return skip(test, "no UML kernel is built; `testbed kernel build` builds one");
    }
    let lab = Lab::up("siw");
    let address = topology::load("direct").unwrap().hosts[0].address().unwrap();
    let this = std::env::current_exe().unwrap();
    for crc in ["crc", "plain"] {
        let command = |host: &str, fabric: &str| {
            let part = format!("{PART}={host} {fabric} {address}:{PORT} {crc}");
            let words =
                ["exec", host, "--", "env", &part, this.to_str().unwrap(), "--exact", test, "--nocapture"];
            let mut command = lab.command(&words);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        let mut serving = command("server", server).spawn().unwrap();
        let mut said = BufReader::new(serving.stdout.take().unwrap());
        let mut served = String::new();
        while !served.contains(LISTENING) {
            assert_ne!(said.read_line(&mut served).unwrap(), 0, "it does not listen: {served}");
        }
        let asked = command("client", client).output().unwrap();
        if !asked.status.success() {
            // Nobody tells it to stop.
            serving.kill().unwrap();
        }
        said.read_to_string(&mut served).unwrap();
        let end = serving.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&asked.stdout);
        let all = format!("{crc}: {asked:#?}\n{end:#?}\n{served}");
        assert!(asked.status.success() && text.contains("1 passed"), "{all}");
        assert!(end.status.success(), "{all}");
        if [server, client] == ["soft", "siw"] {
            // siw's program is not told why; soft has to find each of its errors for what it is.
            let found: Vec<&str> = served
                .lines()
                .filter_map(|line| Some(&line.split_once("broke the protocol: ")?.1[..6]))
                .collect();
            let codes: Vec<&str> =
                ERRORS.iter().map(|(what, code)| if *what == TOO_LONG { "1/2/05" } else { code }).collect();
            assert_eq!(found, codes, "{all}");
        }
        println!("{crc}: {text}");
    }
}

fn play(part: &str, [server, client]: [&str; 2]) {
    let [role, fabric, address, crc] = part.split(' ').collect::<Vec<_>>().try_into().expect("four words");
    let address: SocketAddr = address.parse().unwrap();
    let crc = crc == "crc";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match (role, fabric) {
            ("server", "hand") => replies::give(address, client == "siw").await,
            ("server", fabric) => serve(&*open(fabric), address, crc).await,
            (_, "hand") => by_hand(address, server == "siw").await,
            (_, fabric) if server == "hand" => {
                replies::take(&*open(fabric), fabric == "siw", address, crc).await;
            }
            (_, fabric) => ask(&*open(fabric), fabric == "soft", address, crc).await,
        }
    });
}

fn open(fabric: &str) -> Box<dyn Fabric> {
    match fabric {
        "siw" => Box::new(VerbsFabric::open(FabricKind::Siw).unwrap()),
        _ => Box::new(SoftFabric::default()),
    }
}

pub(crate) fn options(crc: bool) -> ConnectOptions {
    ConnectOptions {
        crc,
        timeout: PATIENCE,
        private_data: Bytes::from_static(b"hi"),
        ..ConnectOptions::default()
    }
}

pub(crate) fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + seed * 7 + i / 251) as u8).collect()
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it ends in bounded time")
}

/// Serves connection after connection, until one says "stop".
async fn serve(fabric: &dyn Fabric, address: SocketAddr, crc: bool) {
    let listener = fabric.listen(address).await.unwrap();
    println!("{LISTENING}");
    let pd = fabric.allocate_pd().unwrap();
    loop {
        let request = listener.accept().await.unwrap();
        if request.private_data() == b"refuse me" {
            request.reject(b"no").await.unwrap();
            continue;
        }
        let connection = request.accept(&pd, options(crc)).await.unwrap();
        let all = Access { local_write: true, remote_read: true, remote_write: true };
        let ours = pd.register(pattern(0, SIZE), all).unwrap();
        let readable = pd.register(pattern(1, 100), Access::REMOTE_READ).unwrap();
        let closed = pd.register(pattern(2, 100), Access::LOCAL_READ).unwrap();
        let talk = async {
            let hello = connection.receive().await?.message;
            let theirs = RemoteAddress { stag: Stag(word(&hello, 0)), to: long(&hello, 4) };
            let mut regions = Vec::new();
            for region in [&ours, &readable, &closed] {
                regions.extend_from_slice(&region.stag().0.to_be_bytes());
                regions.extend_from_slice(&region.base().to_be_bytes());
            }
            connection.send(regions.into()).await?;
            loop {
                let received = connection.receive().await?;
                let text = String::from_utf8(received.message.to_vec()).unwrap();
                let words: Vec<&str> = text.split(' ').collect();
                let number = |at: usize| words.get(at).map_or(0, |word| word.parse::<usize>().unwrap());
                let (offset, length) = (number(1), number(2));
                let there = RemoteAddress { to: theirs.to + offset as u64, ..theirs };
                let answer = match words[0] {
                    "check" => {
                        let mut seen = vec![0; length];
                        ours.copy_out(offset, &mut seen)?;
                        if seen == pattern(number(3), length) { "right".into() } else { "wrong".into() }
                    }
                    "write" => {
                        ours.copy_in(offset, &pattern(number(3), length))?;
                        connection.write(&ours, offset, length, there).await?;
                        Bytes::from_static(b"written")
                    }
                    "read" => {
                        connection.read(&ours, offset, length, there).await?;
                        let mut seen = vec![0; length];
                        ours.copy_out(offset, &mut seen)?;
                        if seen == pattern(number(3), length) { "right".into() } else { "wrong".into() }
                    }
                    "send" => pattern(number(3), length).into(),
                    "how" => {
                        format!("{:?} {}", received.invalidated == Some(readable.stag()), received.solicited)
                            .into()
                    }
                    "stop" => return Ok::<bool, FabricError>(true),
                    other => panic!("{other}"),
                };
                connection.send(answer).await?;
            }
        };
        match talk.await {
            Ok(stop) => {
                soon(connection.closed()).await;
                if stop {
                    return;
                }
            }
            Err(error) => println!("CLOSED {error}"),
        }
    }
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

const TOO_LONG: &str = "a Send that is too long";

/// The errors that a program can make, and what siw says to them; so do the RFCs, but for the last.
const ERRORS: &[(&str, &str)] = &[
    ("a Write to no region", "1/1/00"),
    ("a Write beyond the end", "1/1/01"),
    ("a Write before the beginning", "1/1/01"),
    ("a Write without the right", "1/1/00"),
    ("a Read of no region", "0/1/00"),
    ("a Read beyond the end", "0/1/01"),
    ("a Read without the right", "0/1/02"),
    // The RFC has "too long", 1/2/05, where siw says "no buffer".
    (TOO_LONG, "1/2/02"),
];

/// A connection to the server, and what it told of its regions.
struct Asker {
    connection: Arc<dyn Connection>,
    ours: rdma_http::fabric::Region,
    theirs: Vec<RemoteAddress>,
}

impl Asker {
    async fn connect(fabric: &dyn Fabric, to: SocketAddr, crc: bool) -> Self {
        let pd = fabric.allocate_pd().unwrap();
        let connection = soon(fabric.connect(&pd, to, options(crc))).await.unwrap();
        assert_eq!(connection.private_data(), b"hi");
        let all = Access { local_write: true, remote_read: true, remote_write: true };
        let ours = pd.register(vec![0; SIZE], all).unwrap();
        let mut hello = ours.stag().0.to_be_bytes().to_vec();
        hello.extend_from_slice(&ours.base().to_be_bytes());
        soon(connection.send(hello.into())).await.unwrap();
        let regions = soon(connection.receive()).await.unwrap().message;
        let theirs = regions
            .chunks(12)
            .map(|region| RemoteAddress { stag: Stag(word(region, 0)), to: long(region, 4) })
            .collect();
        Self { connection, ours, theirs }
    }

    async fn tell(&self, command: String) -> Bytes {
        soon(self.connection.send(command.into())).await.unwrap();
        soon(self.connection.receive()).await.unwrap().message
    }

    /// The end that an operation brought about.
    async fn end(self) -> FabricError {
        soon(self.connection.closed()).await
    }
}

/// Every operation, then every error that this side's program can make.
async fn ask(fabric: &dyn Fabric, soft: bool, to: SocketAddr, crc: bool) {
    let asker = Asker::connect(fabric, to, crc).await;
    let there = asker.theirs[0];
    for (seed, length) in [0, 1, 2, 3, 4, 1428, 1429, 100_000, SIZE].into_iter().enumerate() {
        let offset = (SIZE - length).min(5);
        let at = RemoteAddress { to: there.to + offset as u64, ..there };
        asker.ours.copy_in(offset, &pattern(seed, length)).unwrap();
        soon(asker.connection.write(&asker.ours, offset, length, at)).await.unwrap();
        let said = asker.tell(format!("check {offset} {length} {seed}")).await;
        assert_eq!(said, "right", "Write of {length} bytes");

        asker.ours.copy_in(offset, &vec![0; length]).unwrap();
        soon(asker.connection.read(&asker.ours, offset, length, at)).await.unwrap();
        let mut seen = vec![0; length];
        asker.ours.copy_out(offset, &mut seen).unwrap();
        assert!(seen == pattern(seed, length), "Read of {length} bytes");

        let said = asker.tell(format!("write {offset} {length} {}", seed + 100)).await;
        assert_eq!(said, "written");
        asker.ours.copy_out(offset, &mut seen).unwrap();
        assert!(seen == pattern(seed + 100, length), "the peer's Write of {length} bytes");

        let said = asker.tell(format!("read {offset} {length} {}", seed + 100)).await;
        assert_eq!(said, "right", "the peer's Read of {length} bytes");
        println!("{length} bytes: Write, Read, and both of the peer's");
    }
    for length in [0, 1, 3, 4, 1424, 1425, 4096] {
        let said = asker.tell(format!("send 0 {length} {length}")).await;
        assert!(said == pattern(length, length), "a Send of {length} bytes");
    }
    // Many at once.
    let reads: Vec<_> = (0..40).map(|n| asker.connection.read(&asker.ours, n * 1000, 1000, there)).collect();
    for read in reads {
        soon(read).await.unwrap();
    }
    if soft {
        soon(asker.connection.send_solicited("how".into(), None)).await.unwrap();
        // Whether it was solicited is between siw and whoever armed its queue.
        let said = soon(asker.connection.receive()).await.unwrap().message;
        assert!(said.starts_with(b"false"), "{said:?}");
        let invalidating = asker.connection.send_solicited("how".into(), Some(asker.theirs[1].stag));
        soon(invalidating).await.unwrap();
        let said = soon(asker.connection.receive()).await.unwrap().message;
        println!("Send with SE and Invalidate: {said:?}");
        let read = asker.connection.read(&asker.ours, 0, 10, asker.theirs[1]);
        let error = soon(read).await.unwrap_err();
        assert!(told(&error, "0/1/00"), "the region is not there any more: {error}");
    } else {
        soon(asker.connection.disconnect()).await.unwrap();
    }

    let pd = fabric.allocate_pd().unwrap();
    let refused = ConnectOptions { private_data: Bytes::from_static(b"refuse me"), ..options(crc) };
    match soon(fabric.connect(&pd, to, refused)).await.map(drop) {
        Err(FabricError::Rejected { private_data }) => assert_eq!(private_data, "no"),
        other => panic!("{other:?}"),
    }

    for &(what, code) in ERRORS {
        let asker = Asker::connect(fabric, to, crc).await;
        let [full, readable, closed] = asker.theirs[..] else { panic!("three regions") };
        let nowhere = RemoteAddress { stag: Stag(full.stag.0 ^ 0x5555_5500), ..full };
        let beyond = RemoteAddress { to: full.to + SIZE as u64 - 5, ..full };
        let before = RemoteAddress { to: full.to.wrapping_sub(5), ..full };
        let write = |to| asker.connection.write(&asker.ours, 0, 10, to);
        let read = |to| asker.connection.read(&asker.ours, 0, 10, to);
        let posted = match what {
            "a Write to no region" => write(nowhere),
            "a Write beyond the end" => write(beyond),
            "a Write before the beginning" if full.to >= 5 => write(before),
            // A zero-based region has nothing before it.
            "a Write before the beginning" => write(beyond),
            "a Write without the right" => write(readable),
            "a Read of no region" => read(nowhere),
            "a Read beyond the end" => read(beyond),
            "a Read without the right" => read(closed),
            _ => asker.connection.send(vec![7; 5000].into()),
        };
        if what == "a Read without the right" && soft {
            // siw does not enforce it: the data are returned, and the stream goes on.
            match soon(posted).await {
                Ok(()) => {
                    let mut seen = [0; 10];
                    asker.ours.copy_out(0, &mut seen).unwrap();
                    assert_eq!(seen, pattern(2, 10)[..]);
                    println!("{what}: siw returns the data");
                    continue;
                }
                Err(error) => panic!("siw enforces it now: {error}"),
            }
        }
        drop(posted);
        let error = asker.end().await;
        println!("{what}: {error}");
        if soft {
            assert!(told(&error, code), "{what}: {error}");
        }
    }
    let asker = Asker::connect(fabric, to, crc).await;
    soon(asker.connection.send("stop".into())).await.unwrap();
    soon(asker.connection.disconnect()).await.unwrap();
}

/// Whether an error is a Terminate with this code.
fn told(error: &FabricError, code: &str) -> bool {
    matches!(error, FabricError::TerminatedByPeer(text) if text.starts_with(code))
}
