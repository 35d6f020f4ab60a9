//! Addresses: IP version 6, and listeners on every address of a host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use rdma_http::fabric::{Access, ConnectOptions, FabricError, FabricKind};

use crate::support::{End, any_port, any_port_v6, at, fabric, kind, pair_at, pair_on, pattern, soon};

/// Both ends talk, each way of moving bytes once.
async fn talk(a: &End, b: &End) {
    let body = pattern(100_000);
    let source = a.region(body.clone(), Access::REMOTE_READ);
    let sink = b.region(vec![0; body.len()], Access::REMOTE_WRITE);
    let written = a.connection.write(&source, 0, body.len(), at(&sink, 0));
    soon(a.connection.send(Bytes::from_static(b"done"))).await.unwrap();
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "done");
    soon(written).await.unwrap();
    assert!(sink.deregister().unwrap() == body);
    let target = b.region(vec![0; body.len()], Access::LOCAL_WRITE);
    soon(b.connection.read(&target, 0, body.len(), at(&source, 0))).await.unwrap();
    assert!(target.deregister().unwrap() == body);
}

#[tokio::test]
async fn over_ip_version_6() {
    let fabric = fabric();
    let address = any_port_v6();
    let listener = soon(fabric.listen(address)).await.unwrap();
    assert_eq!(listener.local_addr().ip(), address.ip());
    let (a, b) = pair_on(&*fabric, &*listener, ConnectOptions::default(), ConnectOptions::default()).await;
    assert_eq!(a.connection.peer_addr(), listener.local_addr());
    assert_eq!(b.connection.peer_addr(), a.connection.local_addr());
    assert_eq!(b.connection.peer_addr().ip(), address.ip(), "both ends are on one host");
    talk(&a, &b).await;
}

#[tokio::test]
async fn a_listener_on_every_address_is_reached_by_one_of_them() {
    for (every, one) in [
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), any_port().ip()),
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), any_port_v6().ip()),
    ] {
        let fabric = fabric();
        let listener = match soon(fabric.listen((every, 0).into())).await {
            // siw makes a socket for each of its devices, tied to the number of the device's interface; and in a lab, where
            // the devices of all hosts are seen from everywhere, several hosts' interfaces have the same number.
            Err(FabricError::Io { source, .. })
                if kind() == FabricKind::Siw && source.kind() == std::io::ErrorKind::AddrInUse =>
            {
                continue;
            }
            listening => listening.unwrap(),
        };
        let to = SocketAddr::new(one, listener.local_addr().port());
        assert_ne!(to.port(), 0, "a free port was taken");
        let options = ConnectOptions::default();
        let (a, b) = pair_at(&*fabric, to, options.clone(), &*fabric, &*listener, options).await;
        assert_eq!((a.connection.peer_addr(), b.connection.local_addr()), (to, to));
        talk(&a, &b).await;
    }
}
