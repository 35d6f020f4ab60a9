//! A peer that is killed at any moment is an error at once, never a hang.

use std::process::Stdio;

use bytes::Bytes;
use rdma_http::fabric::{Access, ConnectOptions, Listener, RemoteAddress, Stag};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::support::{any_port, assert_broken, fabric, soon};

/// Tells the victim where to connect.
const CONNECT: &str = "FABRIC_VICTIM_CONNECTS_TO";

/// Bytes of the region that the victim offers.
const LENGTH: usize = 16 << 20;

/// Another process that runs `victim`, which connects and then says so and where its region is.
async fn victim(listener: &dyn Listener) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::victim_that_waits", "--ignored", "--nocapture"])
        .env(CONNECT, listener.local_addr().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// What the victim says of its region.
async fn offer(victim: &mut Child) -> RemoteAddress {
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    while let Some(line) = soon(lines.next_line()).await.unwrap() {
        if let Some((_, offer)) = line.split_once("region at ") {
            let (stag, to) = offer.split_once(' ').unwrap();
            return RemoteAddress { stag: Stag(stag.parse().unwrap()), to: to.parse().unwrap() };
        }
    }
    panic!("the victim ended");
}

#[tokio::test]
#[ignore = "it is the other process of the tests below, which run it"]
async fn victim_that_waits() {
    let address = std::env::var(CONNECT).expect("the tests below say where to connect").parse().unwrap();
    let fabric = fabric();
    let pd = fabric.allocate_pd().unwrap();
    let region = pd.register(vec![0; LENGTH], Access { remote_read: true, ..Access::REMOTE_WRITE }).unwrap();
    let connection = soon(fabric.connect(&pd, address, ConnectOptions::default())).await.unwrap();
    soon(connection.send(Bytes::from_static(b"I am there"))).await.unwrap();
    println!("region at {} {}", region.stag().0, region.base());
    connection.closed().await;
}

#[tokio::test]
async fn while_nothing_is_under_way() {
    let fabric = fabric();
    let listener = fabric.listen(any_port()).await.unwrap();
    let pd = fabric.allocate_pd().unwrap();
    let mut victim = victim(&*listener).await;
    let request = soon(listener.accept()).await.unwrap();
    let connection = soon(request.accept(&pd, ConnectOptions::default())).await.unwrap();
    assert_eq!(soon(connection.receive()).await.unwrap().message, "I am there");
    let receive = connection.receive();
    victim.start_kill().unwrap();
    assert_broken(&soon(receive).await.unwrap_err());
    assert_broken(&soon(connection.closed()).await);
    assert_broken(&soon(connection.send(Bytes::new())).await.unwrap_err());
}

#[tokio::test]
async fn while_it_is_written_to_and_read_from() {
    let fabric = fabric();
    let listener = fabric.listen(any_port()).await.unwrap();
    let pd = fabric.allocate_pd().unwrap();
    let mut victim = victim(&*listener).await;
    let request = soon(listener.accept()).await.unwrap();
    let connection = soon(request.accept(&pd, ConnectOptions::default())).await.unwrap();
    assert_eq!(soon(connection.receive()).await.unwrap().message, "I am there");
    let to = offer(&mut victim).await;
    let source = pd.register(vec![1; LENGTH], Access::LOCAL_READ).unwrap();
    let sink = pd.register(vec![0; LENGTH], Access::LOCAL_WRITE).unwrap();
    let mut work: Vec<_> = (0..16).map(|_| connection.write(&source, 0, LENGTH, to)).collect();
    work.extend((0..16).map(|_| connection.read(&sink, 0, LENGTH, to)));
    victim.start_kill().unwrap();
    let mut failed = 0;
    for work in work {
        failed += usize::from(soon(work).await.is_err());
    }
    assert!(failed > 0, "a process that is gone cannot have answered all of it");
    assert_broken(&soon(connection.closed()).await);
    assert_eq!((source.deregister().unwrap().len(), sink.deregister().unwrap().len()), (LENGTH, LENGTH));
}

#[tokio::test]
async fn before_it_is_accepted() {
    let fabric = fabric();
    let listener = fabric.listen(any_port()).await.unwrap();
    let pd = fabric.allocate_pd().unwrap();
    let mut victim = victim(&*listener).await;
    let request = soon(listener.accept()).await.unwrap();
    victim.start_kill().unwrap();
    soon(victim.wait()).await.unwrap();
    match soon(request.accept(&pd, ConnectOptions::default())).await {
        // It may look established for a moment.
        Ok(connection) => assert_broken(&soon(connection.closed()).await),
        Err(error) => drop(error),
    }
    // And the listener goes on.
    let theirs = fabric.allocate_pd().unwrap();
    let connect = fabric.connect(&theirs, listener.local_addr(), ConnectOptions::default());
    let accept = async { listener.accept().await?.accept(&pd, ConnectOptions::default()).await };
    let (a, b) = soon(async { tokio::join!(connect, accept) }).await;
    soon(a.unwrap().send(Bytes::from_static(b"next"))).await.unwrap();
    assert_eq!(soon(b.unwrap().receive()).await.unwrap().message, "next");
}
