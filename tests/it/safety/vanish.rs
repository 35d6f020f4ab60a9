//! Requests that advertise and vanish, at every point of every flow, many at once. `ATTACKS=1000000` makes it a million.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use rdma_http::header::TransferId;
use tokio::task::JoinSet;

use super::hand::Hand;
use super::victim::Victim;
use crate::program::fetch;

const BODY: usize = 100_000;
/// That vanish at the same time.
const AT_ONCE: usize = 32;
/// Points at which they do.
const POINTS: usize = 14;

/// One request, up to the point at which it vanishes. With `reset` its TCP connection does not even end in good order.
async fn vanish(server: SocketAddr, own: Ipv4Addr, point: usize, reset: bool) {
    let mut hand = Hand::at(server, own).await;
    if reset {
        socket2::SockRef::from(&hand.http).set_linger(Some(Duration::ZERO)).unwrap();
    }
    let id = TransferId::random().unwrap();
    let here = hand.here();
    let get = format!("server-writes, {here}, stag=642, to=0, maxlen=1048576, id={id}");
    match point {
        // Connected.
        0 => {}
        // In the head.
        1 => hand.say(&format!("GET /body.bin HTTP/1.1\r\nRDMA: {get}")).await,
        // Offered: nobody accepts.
        2 => hand.ask("GET /body.bin", &get).await,
        3 => hand.ask("GET /body.bin", &format!("client-reads, {here}, id={id}")).await,
        4 => hand.ask("PUT /new.bin", &format!("client-writes, {here}, bytes={BODY}, id={id}")).await,
        5 => {
            hand.ask("PUT /new.bin", &format!("server-reads, {here}, stag=1, to=0, maxlen={BODY}, id={id}"))
                .await
        }
        // Accepted.
        6 => {
            hand.ask("GET /body.bin", &get).await;
            hand.accept().await;
        }
        7 => {
            let region = hand.region(vec![0; 1 << 20]);
            let stag = region.stag().0;
            let get = format!("server-writes, {here}, stag={stag}, to=0, maxlen=1048576, id={id}");
            hand.ask("GET /body.bin", &get).await;
            hand.accept().await.receive().await.unwrap();
        }
        // Told of a region, or given one.
        8 => drop(hand.download("/body.bin").await),
        9 => {
            let (connection, shown, _) = hand.download("/body.bin").await;
            let sink = hand.region(vec![0; BODY]);
            drop(connection.read(&sink, 0, BODY, shown.at));
        }
        10 => drop(hand.upload("/new.bin", BODY as u64).await),
        11 => {
            let (connection, shown, _) = hand.upload("/new.bin", BODY as u64).await;
            let half = hand.region(vec![7; BODY / 2]);
            connection.write(&half, 0, BODY / 2, shown.at).await.unwrap();
        }
        // Introduced, and connected.
        12 => hand.ask("OPTIONS *", &format!("connect, id={id}")).await,
        _ => drop(hand.connect().await),
    }
}

/// Memory in MiB, and open descriptors.
fn held(victim: &Victim) -> (u64, usize) {
    let process = format!("/proc/{}", victim.httpd.running.id());
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let rss =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    let rss: u64 = rss.unwrap();
    (rss >> 10, std::fs::read_dir(format!("{process}/fd")).unwrap().count())
}

async fn many(server: SocketAddr, attacks: usize) {
    // The server may connect to whoever has vanished when another test has got that port: so no other has these addresses.
    // They are many, since a port rests for a minute.
    let [.., high, low] = (std::process::id() & 0x7fff).to_be_bytes();
    let own = |attack: usize| Ipv4Addr::new(127, 64 + high, low, u8::try_from(1 + attack % 200).unwrap());
    let mut going = JoinSet::new();
    for attack in 0..attacks {
        if going.len() >= AT_ONCE {
            going.join_next().await.unwrap().unwrap();
        }
        going.spawn(vanish(server, own(attack), attack % POINTS, (attack / POINTS).is_multiple_of(2)));
    }
    while let Some(ended) = going.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_advertise_and_vanish_leave_nothing() {
    let attacks =
        std::env::var("ATTACKS").map_or(1500, |number| number.parse().expect("ATTACKS is a number"));
    let args = ["--chunk-size", "64K", "--window", "2", "--connect-timeout", "30", "--stall-timeout", "30"];
    let victim = Victim::start(&args);
    victim.httpd.file("body.bin", BODY);
    // So that all that is made once is there.
    many(victim.address(), 10 * POINTS).await;
    victim.at_rest().await;
    let (rss, files) = held(&victim);
    many(victim.address(), attacks).await;
    victim.at_rest().await;
    // The last who asked for figures may still be there.
    let begun = Instant::now();
    while held(&victim).1 > files && begun.elapsed() < Duration::from_secs(10) {
        tokio::task::yield_now().await;
    }
    let after = held(&victim);
    let figures = victim.figures().await;
    let shown: HashMap<_, _> = figures.iter().filter(|(name, _)| !name.contains("_limit")).collect();
    println!(
        "{attacks} attacks: {rss} MiB and {files} files before, {} and {} after: {shown:#?}",
        after.0, after.1
    );
    assert!(after.1 <= files, "{files} open files became {}", after.1);
    assert!(after.0 < rss + 48, "{rss} MiB became {} MiB", after.0);
    assert!(!victim.has("new.bin"));
    let url = victim.httpd.url("/body.bin");
    let got = tokio::task::spawn_blocking(move || fetch(&url, &["--require-rdma"])).await.unwrap();
    assert_eq!(got.code, Some(0), "{}", got.stderr);
    victim.unharmed().await;
}
