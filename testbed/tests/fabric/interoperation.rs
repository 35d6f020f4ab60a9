//! The fabric under test and soft as each other's peers, which on siw is the kernel's iWARP and ours. (rxe speaks another
//! protocol, so there these tests have nothing to try.)

use std::sync::Arc;

use bytes::Bytes;
use rdma_http::fabric::soft::SoftFabric;
use rdma_http::fabric::{Access, ConnectOptions, Fabric, FabricError, FabricKind, RemoteAddress, Stag};

use crate::support::{End, any_port, assert_broken, at, fabric, kind, pair_between, pattern, soon};

/// The fabric that connects, the one that listens, and how.
type Roles = (Arc<dyn Fabric>, Arc<dyn Fabric>, ConnectOptions);

/// Both roles, each with and without CRC.
fn roles() -> Vec<Roles> {
    if kind() == FabricKind::Rxe {
        return Vec::new();
    }
    let soft: Arc<dyn Fabric> = Arc::new(SoftFabric::default());
    let other = fabric();
    let options = |crc| ConnectOptions { crc, ..ConnectOptions::default() };
    vec![
        (other.clone(), soft.clone(), options(true)),
        (soft.clone(), other.clone(), options(true)),
        (other.clone(), soft.clone(), options(false)),
        (soft, other, options(false)),
    ]
}

async fn pair(connecting: &dyn Fabric, listening: &dyn Fabric, options: &ConnectOptions) -> (End, End) {
    let listener = listening.listen(any_port()).await.unwrap();
    let (a, b) = pair_between(connecting, options.clone(), listening, &*listener, options.clone()).await;
    // iWARP's connecting side speaks first.
    soon(a.connection.send(Bytes::from_static(b"first"))).await.unwrap();
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "first");
    (a, b)
}

#[tokio::test]
async fn writes_reads_and_messages_both_ways() {
    for (connecting, listening, options) in roles() {
        let (a, b) = pair(&*connecting, &*listening, &options).await;
        for (from, to) in [(&a, &b), (&b, &a)] {
            let body = pattern(3_000_001);
            let source = from.region(body.clone(), Access::REMOTE_READ);
            let sink = to.region(vec![0; body.len() + 10], Access::REMOTE_WRITE);
            let written = from.connection.write(&source, 0, body.len(), at(&sink, 7));
            let sent = from.connection.send(Bytes::from_static(b"done"));
            assert_eq!(soon(to.connection.receive()).await.unwrap().message, "done");
            soon(written).await.unwrap();
            soon(sent).await.unwrap();
            assert!(sink.deregister().unwrap()[7..].starts_with(&body));
            let target = to.region(vec![0; body.len()], Access::LOCAL_WRITE);
            let reads: Vec<_> = (0..20)
                .map(|part| {
                    let offset = part * 150_000;
                    let length = 150_000.min(body.len() - offset);
                    to.connection.read(&target, offset, length, at(&source, offset as u64))
                })
                .chain([to.connection.read(&target, 3_000_000, 1, at(&source, 3_000_000))])
                .collect();
            for read in reads {
                soon(read).await.unwrap();
            }
            assert!(target.deregister().unwrap() == body);
        }
        soon(a.connection.disconnect()).await.unwrap();
        assert!(matches!(soon(b.connection.closed()).await, FabricError::Closed));
    }
}

#[tokio::test]
async fn private_data_and_rejections() {
    for (connecting, listening, options) in roles() {
        let listener = listening.listen(any_port()).await.unwrap();
        let (a, b) = (connecting.allocate_pd().unwrap(), listening.allocate_pd().unwrap());
        let with = |length| ConnectOptions { private_data: pattern(length).into(), ..options.clone() };
        let connect = connecting.connect(&a, listener.local_addr(), with(251));
        let accept = async {
            let request = listener.accept().await.unwrap();
            assert_eq!(request.private_data(), pattern(251));
            request.accept(&b, with(250)).await
        };
        let (connected, accepted) = soon(async { tokio::join!(connect, accept) }).await;
        assert_eq!(connected.unwrap().private_data(), pattern(250));
        drop(accepted.unwrap());
        let connect = connecting.connect(&a, listener.local_addr(), with(0));
        let reject = async { listener.accept().await.unwrap().reject(b"no").await.unwrap() };
        let (connected, ()) = soon(async { tokio::join!(connect, reject) }).await;
        match connected.map(drop) {
            Err(FabricError::Rejected { private_data }) => assert_eq!(private_data, "no"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn faults_are_seen_by_both() {
    for (connecting, listening, options) in roles() {
        for connecting_side_errs in [true, false] {
            let (a, b) = pair(&*connecting, &*listening, &options).await;
            let (from, to) = if connecting_side_errs { (&a, &b) } else { (&b, &a) };
            let source = from.region(vec![1; 100], Access::LOCAL_READ);
            let sink = to.region(vec![0; 100], Access::REMOTE_WRITE);
            let wrong = RemoteAddress { stag: Stag(sink.stag().0 ^ 0x5500), to: sink.base() };
            drop(from.connection.write(&source, 0, 100, wrong));
            let (ours, theirs) = (soon(from.connection.closed()).await, soon(to.connection.closed()).await);
            assert_broken(&ours);
            assert_broken(&theirs);
            assert_eq!(sink.deregister().unwrap(), [0; 100]);
        }
    }
}

#[tokio::test]
async fn an_end_that_goes_is_missed_by_the_other() {
    for (connecting, listening, options) in roles() {
        for connecting_side_goes in [true, false] {
            let (a, b) = pair(&*connecting, &*listening, &options).await;
            let (goes, stays) = if connecting_side_goes { (a, b) } else { (b, a) };
            let receive = stays.connection.receive();
            drop(goes);
            assert!(matches!(soon(receive).await, Err(FabricError::Closed)));
        }
    }
}
