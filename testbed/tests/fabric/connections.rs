//! The promises of `rdma_http::fabric` for a connection's life, from its request to its end, tried with both ends in one
//! process.

use bytes::Bytes;
use rdma_http::fabric::{Access, ConnectOptions, FabricError, FabricKind};

use crate::support::{any_port, assert_private_data, at, fabric, kind, pair, pair_on, pattern, soon};

#[tokio::test]
async fn private_data_goes_both_ways_and_with_a_rejection() {
    let fabric = fabric();
    let listener = fabric.listen(any_port()).await.unwrap();
    let pd = fabric.allocate_pd().unwrap();
    let options = |data: &[u8]| ConnectOptions {
        private_data: Bytes::copy_from_slice(data),
        ..ConnectOptions::default()
    };
    // What the tightest of the fabrics can carry.
    let (request, reply, no) = (pattern(56), pattern(196), pattern(148));
    let connect = fabric.connect(&pd, listener.local_addr(), options(&request));
    let accept = async {
        let asked = listener.accept().await.unwrap();
        assert_private_data(asked.private_data(), &request);
        asked.accept(&pd, options(&reply)).await
    };
    let (connected, accepted) = soon(async { tokio::join!(connect, accept) }).await;
    let (connected, accepted) = (connected.unwrap(), accepted.unwrap());
    assert_private_data(connected.private_data(), &reply);
    assert_private_data(accepted.private_data(), &request);
    assert_eq!(accepted.peer_addr(), connected.local_addr());
    assert_eq!(connected.peer_addr(), listener.local_addr());

    let connect = fabric.connect(&pd, listener.local_addr(), options(b"again"));
    let reject = async { listener.accept().await.unwrap().reject(&no).await.unwrap() };
    let (connected, ()) = soon(async { tokio::join!(connect, reject) }).await;
    match connected.map(drop).unwrap_err() {
        FabricError::Rejected { private_data } => assert_private_data(&private_data, &no),
        other => panic!("{other:?}"),
    }
    let connect = fabric.connect(&pd, listener.local_addr(), options(b"again"));
    let (connected, ()) =
        soon(async { tokio::join!(connect, async { drop(listener.accept().await.unwrap()) }) }).await;
    assert!(matches!(connected.map(drop), Err(FabricError::Rejected { .. })));
}

#[tokio::test]
async fn private_data_that_is_too_long_is_refused_before_anything_is_sent() {
    let fabric = fabric();
    let listener = fabric.listen(any_port()).await.unwrap();
    let pd = fabric.allocate_pd().unwrap();
    let (request, reply, rejection) = match kind() {
        FabricKind::Rxe => (56, 196, 148),
        FabricKind::Soft | FabricKind::Siw => (251, 251, 251),
    };
    let options =
        |length| ConnectOptions { private_data: pattern(length).into(), ..ConnectOptions::default() };
    let error = fabric.connect(&pd, listener.local_addr(), options(request + 1)).await.map(drop).unwrap_err();
    assert!(matches!(error, FabricError::Invalid(_)), "{error:?}");
    // The longest that can be sent arrives.
    let connect = fabric.connect(&pd, listener.local_addr(), options(request));
    let accept = async {
        let asked = listener.accept().await.unwrap();
        assert_private_data(asked.private_data(), &pattern(request));
        asked.accept(&pd, options(reply)).await
    };
    let (connected, accepted) = soon(async { tokio::join!(connect, accept) }).await;
    assert_private_data(connected.unwrap().private_data(), &pattern(reply));
    drop(accepted.unwrap());
    let connect = fabric.connect(&pd, listener.local_addr(), options(0));
    let refuse = async {
        let asked = listener.accept().await.unwrap();
        asked.reject(&pattern(rejection + 1)).await.unwrap_err()
    };
    let (connected, error) = soon(async { tokio::join!(connect, refuse) }).await;
    assert!(matches!(error, FabricError::Invalid(_)), "{error:?}");
    assert!(connected.is_err());
}

#[tokio::test]
async fn nobody_listens_there() {
    let fabric = fabric();
    let pd = fabric.allocate_pd().unwrap();
    // A port that was free a moment ago.
    let address = std::net::TcpListener::bind(any_port()).unwrap().local_addr().unwrap();
    let error = soon(fabric.connect(&pd, address, ConnectOptions::default())).await.map(drop).unwrap_err();
    match &error {
        FabricError::Io { source, .. } => assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nobody_accepts_in_time() {
    let fabric = fabric();
    let listener = fabric.listen(any_port()).await.unwrap();
    let pd = fabric.allocate_pd().unwrap();
    let options =
        ConnectOptions { timeout: std::time::Duration::from_millis(100), ..ConnectOptions::default() };
    let error = soon(fabric.connect(&pd, listener.local_addr(), options)).await.map(drop).unwrap_err();
    assert!(matches!(error, FabricError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn closing_finishes_what_is_posted() {
    let (a, b) = pair().await;
    let body = pattern(4_000_000);
    let source = a.region(body.clone(), Access::LOCAL_READ);
    let sink = b.region(vec![0; body.len()], Access::REMOTE_WRITE);
    let written = a.connection.write(&source, 0, body.len(), at(&sink, 0));
    let sent = a.connection.send(Bytes::from_static(b"last"));
    soon(a.connection.disconnect()).await.unwrap();
    written.await.unwrap();
    sent.await.unwrap();
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "last");
    assert!(matches!(soon(b.connection.receive()).await, Err(FabricError::Closed)));
    assert!(matches!(soon(b.connection.closed()).await, FabricError::Closed));
    assert!(matches!(a.connection.send(Bytes::new()).await, Err(FabricError::Closed)));
    assert!(sink.deregister().unwrap() == body);
}

#[tokio::test]
async fn dropping_the_last_handle_closes() {
    let (a, b) = pair().await;
    let receive = b.connection.receive();
    drop(a.connection);
    assert!(matches!(soon(receive).await, Err(FabricError::Closed)));
    // In the other direction, and with nothing ever said.
    let (a, b) = pair().await;
    drop(b.connection);
    assert!(matches!(soon(a.connection.closed()).await, FabricError::Closed));
}

#[tokio::test]
async fn both_ends_close_at_once() {
    let (a, b) = pair().await;
    soon(a.connection.send(Bytes::from_static(b"first"))).await.unwrap();
    soon(b.connection.receive()).await.unwrap();
    let (a, b) = soon(async { tokio::join!(a.connection.disconnect(), b.connection.disconnect()) }).await;
    a.unwrap();
    b.unwrap();
}

#[tokio::test]
async fn many_connections_of_one_listener() {
    let fabric = fabric();
    let listener = fabric.listen(any_port()).await.unwrap();
    let mut pairs = Vec::new();
    for _ in 0..40 {
        pairs.push(pair_on(&*fabric, &*listener, ConnectOptions::default(), ConnectOptions::default()).await);
    }
    for (number, (a, _)) in pairs.iter().enumerate() {
        soon(a.connection.send(Bytes::from(number.to_string()))).await.unwrap();
    }
    for (number, (_, b)) in pairs.iter().enumerate() {
        assert_eq!(soon(b.connection.receive()).await.unwrap().message, number.to_string());
    }
}
