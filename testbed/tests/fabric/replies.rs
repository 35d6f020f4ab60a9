//! Replies made by hand to siw and soft as MPA initiators: markers, a wrong key, more Reads than there is room for; and
//! then more Read Requests than the initiator's IRD.

use std::net::SocketAddr;

use rdma_http::fabric::{Access, Fabric, FabricError, RemoteAddress, Stag};
use rdma_http::iwarp::fpdu::{self, Fpdu};
use rdma_http::iwarp::rdmap::Segment;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::by_hand::{ends_with, too_many_reads};
use crate::judge::{LISTENING, SIZE, long, options, pattern, soon, word};

/// A Reply with flags, IRD and ORD: with M it asks for markers.
fn reply(key: &[u8; 16], flags: u8, ord: u16) -> Vec<u8> {
    let mut out = key.to_vec();
    out.extend_from_slice(&[flags, 2, 0, 4, 0, 16]);
    out.extend_from_slice(&ord.to_be_bytes());
    out
}

const KEY: &[u8; 16] = b"MPA ID Rep Frame";

/// The server: answers connection after connection in its own way, and checks what comes of each.
pub(crate) async fn give(address: SocketAddr, siw: bool) {
    let listener = TcpListener::bind(address).await.unwrap();
    println!("{LISTENING}");
    let (mut peer, _) = requested(&listener).await;
    peer.write_all(&reply(KEY, 0xd0, 1)).await.unwrap();
    ends_with(&mut peer, "a Reply that asks for markers", None, false).await;

    let (mut peer, _) = requested(&listener).await;
    peer.write_all(&reply(b"MPA ID Rep Fr-me", 0x50, 1)).await.unwrap();
    // RFC 5044, section 8: the connection is closed at once. siw says so before.
    ends_with(&mut peer, "a Reply with another key", siw.then_some("2/0/04"), false).await;

    let (mut peer, _) = requested(&listener).await;
    peer.write_all(&reply(KEY, 0x50, 200)).await.unwrap();
    ends_with(&mut peer, "a Reply with more Reads than there is room for", Some("2/0/06"), false).await;

    let (mut peer, ird) = requested(&listener).await;
    peer.write_all(&reply(KEY, 0x50, 1)).await.unwrap();
    let mut hello = vec![0; fpdu::size(18 + 12)];
    soon(peer.read_exact(&mut hello)).await.unwrap();
    let fpdu = Fpdu::split(&hello).unwrap();
    assert!(fpdu.crc_is_good(), "a Reply that asks for CRCs has them in both directions");
    let region = Segment::decode(fpdu.ulpdu()).unwrap().payload;
    let at = RemoteAddress { stag: Stag(word(region, 0)), to: long(region, 4) };
    peer.write_all(&too_many_reads(at, ird.next_power_of_two() + 2)).await.unwrap();
    let code = if siw { "0/2/07" } else { "1/2/02" };
    ends_with(&mut peer, "more Read Requests than the initiator's IRD", Some(code), true).await;
}

/// The next connection, whose Request has come; and the IRD that it tells.
async fn requested(listener: &TcpListener) -> (TcpStream, u16) {
    let (mut peer, _) = soon(listener.accept()).await.unwrap();
    peer.set_nodelay(true).unwrap();
    let mut request = [0; 20];
    soon(peer.read_exact(&mut request)).await.unwrap();
    assert_eq!((&request[..16], request[16] & 0x90, request[17]), (&b"MPA ID Req Frame"[..], 0x10, 2));
    let mut data = vec![0; usize::from(u16::from_be_bytes([request[18], request[19]]))];
    soon(peer.read_exact(&mut data)).await.unwrap();
    (peer, u16::from_be_bytes([data[0], data[1]]) & 0x3fff)
}

/// The client: what its program is told of each.
pub(crate) async fn take(fabric: &dyn Fabric, siw: bool, to: SocketAddr, crc: bool) {
    let pd = fabric.allocate_pd().unwrap();
    for what in ["markers", "another key", "too many Reads"] {
        let error = soon(fabric.connect(&pd, to, options(crc))).await.map(drop).unwrap_err();
        println!("{what}: {error}");
        match what {
            // What librdmacm tells is a rejection of ECONNREFUSED, as if nobody listened.
            "markers" if siw => {
                let refused =
                    |source: &std::io::Error| source.kind() == std::io::ErrorKind::ConnectionRefused;
                let told = matches!(&error, FabricError::Io { source, .. } if refused(source));
                assert!(told || matches!(error, FabricError::Rejected { .. }), "{error:?}");
            }
            "markers" => assert!(error.to_string().contains("markers"), "{error}"),
            _ => {}
        }
    }
    let connection = soon(fabric.connect(&pd, to, options(crc))).await.unwrap();
    let region = pd.register(pattern(3, SIZE), Access::REMOTE_READ).unwrap();
    let mut hello = region.stag().0.to_be_bytes().to_vec();
    hello.extend_from_slice(&region.base().to_be_bytes());
    let _ = soon(connection.send(hello.into())).await;
    let error = soon(connection.closed()).await;
    println!("too many Read Requests: {error}");
    if !siw {
        assert!(error.to_string().contains("1/2/02"), "{error}");
    }
}
