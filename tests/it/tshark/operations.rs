//! Every operation of the fabric, on connections of every kind.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use rdma_http::fabric::soft::{Revision, SoftFabric, SoftOptions};
use rdma_http::fabric::{Access, ConnectOptions, Fabric, FabricError, RemoteAddress};
use rdma_http::iwarp::Stag;

use super::{
    PATIENCE, READ_REQUEST, READ_RESPONSE, SEND, SEND_INVALIDATE, SEND_SOLICITED, SEND_SOLICITED_INVALIDATE,
    TERMINATE, WRITE, captured, judge,
};

#[test]
fn every_operation_on_an_ethernet_sized_path() {
    every_operation("tshark::operations::every_operation_on_an_ethernet_sized_path", 1500);
}

#[test]
fn every_operation_on_a_loopback_sized_path() {
    every_operation("tshark::operations::every_operation_on_a_loopback_sized_path", 65536);
}

fn every_operation(name: &str, mtu: u32) {
    let talk = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let mut sent = Vec::new();
        let crcs: usize = runtime.block_on(async {
            let mut connections_with_crc = 0;
            for (revision, peer_to_peer) in
                [(Revision::V1, false), (Revision::V2, false), (Revision::V2, true)]
            {
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
        (sent, crcs)
    };
    let Some(captured) = captured(name, mtu, talk) else { return };
    let (sent, crcs) = captured.talked;
    let judged = judge(&captured.file);
    assert!(judged.crc_good >= crcs * 20, "the conversations were captured");
    // The operations and lengths that tshark read are those that were posted. The refused connections carry none.
    let carried: Vec<_> =
        judged.connections.into_iter().filter(|sides| sides.iter().any(|side| !side.is_empty())).collect();
    assert_eq!(carried.len(), sent.len());
    for (connection, (seen, sent)) in carried.into_iter().zip(sent).enumerate() {
        assert_eq!(seen, sent, "connection {connection}");
    }
}

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
