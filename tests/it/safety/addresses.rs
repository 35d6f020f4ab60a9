//! Addresses that are not the peer's: neither side can be made to talk to others.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use rdma_http::client::{Client, Connect, Options, Via};
use rdma_http::events::Recorder;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::header::{Asked, TransferId};
use tokio::io::AsyncWriteExt;

use super::hand::{Hand, HandServer, soon};
use super::victim::Victim;
use crate::program::fallbacks;

/// Whoever listens and must not be connected to: at one port of each of this machine's addresses.
struct Judge(TcpListener);

impl Judge {
    fn new() -> Self {
        let listener =
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).or_else(|_| TcpListener::bind("0.0.0.0:0"));
        Self::of(listener.unwrap())
    }

    /// One at a port below 1024, where this user may have one.
    fn low() -> Option<Self> {
        (900..1024).rev().find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).map(Self::of)
    }

    fn of(listener: TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Whether somebody connected. Whoever made the attempt has ended it: a connection would be here.
    fn saw_one(&self) -> bool {
        match self.0.accept() {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        }
    }
}

const BODY: &str = "the body";

/// Offers `ip` and `port` in all modes; asserts that each body goes by TCP for this reason.
async fn offer_everywhere(hand: &mut Hand, (ip, port): (&str, u16), reason: &str) {
    for (line, mode, more) in [
        ("GET /body.txt", "server-writes", "stag=642, to=0, maxlen=4096"),
        ("GET /body.txt", "client-reads", "bytes=0"),
        ("PUT /new.txt", "server-reads", "stag=642, to=0, maxlen=8"),
        ("PUT /new.txt", "client-writes", "bytes=8"),
    ] {
        let what = format!("{mode} to {ip} {port}");
        let id = TransferId::random().unwrap();
        hand.ask(line, &format!("{mode}, ip={ip}, port={port}, {more}, id={id}")).await;
        let mut head = hand.head().await;
        if line.starts_with("PUT") {
            assert!(head.starts_with("http/1.1 100 "), "{what}: {head}");
            hand.http.write_all(format!("8\r\n{BODY}\r\n0\r\n\r\n").as_bytes()).await.unwrap();
            head = hand.head().await;
        }
        assert!(head.contains(&format!("rdma: fallback, reason={reason}\r\n")), "{what}: {head}");
        if line.starts_with("GET") {
            assert_eq!(hand.body(BODY.len()).await, BODY.as_bytes(), "{what}");
        } else if head.contains("content-length: 12\r\n") {
            assert_eq!(hand.body(12).await, b"201 Created\n", "{what}");
        }
    }
}

const NEVER: [&str; 6] = ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "::ffff:224.0.0.1", "ff02::1"];

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_connects_to_nobody_but_its_peer() {
    let victim = Victim::start(&[]);
    std::fs::write(victim.httpd.directory.path().join("body.txt"), BODY).unwrap();
    let (judge, low) = (Judge::new(), Judge::low());
    let mut hand = Hand::new(&victim).await;
    let port = judge.port();
    let others = ["127.0.0.2", "::ffff:127.0.0.2", "[::ffff:127.0.0.2]", "::1", "192.0.2.1"];
    for ip in others.iter().chain(&NEVER) {
        offer_everywhere(&mut hand, (ip, port), "address-not-allowed").await;
        assert!(!judge.saw_one(), "{ip}");
    }
    for ip in ["127.0.0.1", "::ffff:127.0.0.1"] {
        let port = low.as_ref().map_or(1023, Judge::port);
        offer_everywhere(&mut hand, (ip, port), "address-not-allowed").await;
        assert!(low.as_ref().is_none_or(|low| !low.saw_one()), "{ip}");
    }
    // The judge is there: a peer's own address is connected to, in either form.
    for ip in ["127.0.0.1", "::ffff:127.0.0.1"] {
        let offer = format!("server-writes, ip={ip}, port={port}, stag=642, to=0, maxlen=4096");
        hand.ask("GET /body.txt", &offer).await;
        soon(async {
            while !judge.saw_one() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let head = hand.head().await;
        assert!(head.contains("rdma: fallback, reason=unreachable\r\n"), "{head}");
        hand.body(BODY.len()).await;
    }
    assert_eq!(victim.content("new.txt"), BODY.as_bytes());
    drop(hand);
    let events = victim.unharmed().await;
    let (allowed, refused): (Vec<&str>, Vec<&str>) =
        fallbacks(&events).iter().partition(|reason| **reason == "unreachable");
    assert_eq!((allowed.len(), refused.len()), (2, 4 * (others.len() + NEVER.len() + 2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_list_allows_addresses_but_never_those_that_are_none() {
    let victim = Victim::start(&["--allow-rdma-to", "0.0.0.0/0,::/0"]);
    std::fs::write(victim.httpd.directory.path().join("body.txt"), BODY).unwrap();
    let (judge, low) = (Judge::new(), Judge::low());
    let mut hand = Hand::new(&victim).await;
    for ip in NEVER {
        offer_everywhere(&mut hand, (ip, judge.port()), "address-not-allowed").await;
    }
    let port = low.as_ref().map_or(1023, Judge::port);
    offer_everywhere(&mut hand, ("127.0.0.2", port), "address-not-allowed").await;
    assert!(!judge.saw_one());
    assert!(low.is_none_or(|low| !low.saw_one()));
    let offer = format!("server-writes, ip=127.0.0.2, port={}, stag=642, to=0, maxlen=4096", judge.port());
    hand.ask("GET /body.txt", &offer).await;
    soon(async {
        while !judge.saw_one() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(hand);
    victim.unharmed().await;
}

/// A client that connects by itself, and a server that tells it where: how the body came.
async fn told_to_connect(to: SocketAddr, allow: &str) -> Via {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = async {
        let mut server = HandServer::accept(&listener).await;
        let (_, field) = server.request().await;
        let Asked::Introduction(id) = Asked::parse(&field.unwrap()).unwrap() else { unreachable!() };
        let (ip, port) = (to.ip(), to.port());
        server
            .say(&format!("HTTP/1.1 204 No Content\r\nRDMA: accept, port={port}, ip={ip}, id={id}\r\n\r\n"))
            .await;
        // Whatever became of that, it asks again, and is answered plainly.
        let (head, _) = server.request().await;
        assert!(head.starts_with("GET "), "{head}");
        server.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len())).await;
        server
    };
    let client = async {
        let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
        let allow = allow.split_whitespace().map(|net| net.parse().unwrap()).collect();
        let options = Options { connect: Connect::Client, allow, ..Options::default() };
        let client = Client::new(Some(fabric), options, Recorder::default());
        let mut connection = client.connect("127.0.0.1", port).await.unwrap();
        let response = connection.get("/x", http::HeaderMap::new()).await.unwrap();
        let via = response.via.clone();
        assert_eq!(response.body.collect(100).await.unwrap(), BODY.as_bytes());
        via
    };
    soon(async { tokio::join!(server, client).1 }).await
}

#[tokio::test]
async fn a_client_connects_to_nobody_but_its_server() {
    let judge = Judge::new();
    for ip in ["127.0.0.2", "::1"].iter().chain(&NEVER) {
        let to = SocketAddr::new(ip.parse().unwrap(), judge.port());
        assert_eq!(told_to_connect(to, "").await, Via::Tcp(None), "{ip}");
        assert!(!judge.saw_one(), "{ip}");
    }
    if let Some(low) = Judge::low() {
        assert_eq!(told_to_connect(([127, 0, 0, 1], low.port()).into(), "0.0.0.0/0").await, Via::Tcp(None));
        assert!(!low.saw_one());
    }
}

#[tokio::test]
async fn a_client_connects_where_it_is_allowed_to() {
    let judge = TcpListener::bind("127.0.0.2:0").unwrap();
    let to = judge.local_addr().unwrap();
    let seen = std::thread::spawn(move || drop(judge.accept().unwrap()));
    assert_eq!(told_to_connect(to, "127.0.0.2/32").await, Via::Tcp(None));
    seen.join().unwrap();
}
