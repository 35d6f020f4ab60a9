//! Peers made by hand, which do what no program of ours does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use http::HeaderValue;
use rdma_http::events::Event;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::fabric::{Access, ConnectOptions, Connection, Fabric, FabricError, Pd, RemoteAddress};
use rdma_http::header::{Offer, Route, TransferId};
use rdma_http::message::Message;

use crate::program::{Fetched, Httpd, assert_no_leak, failures, fallbacks, fetch, text};

/// GETs `/body.bin` with an offer to connect to `rdma`; returns the whole answer.
fn get_offering(httpd: &Httpd, rdma: SocketAddr) -> String {
    let mut http = TcpStream::connect(httpd.address).unwrap();
    write!(
        http,
        "GET /body.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         RDMA: server-writes, ip={}, port={}, stag=642, to=0, maxlen=1048576\r\n\r\n",
        rdma.ip(),
        rdma.port()
    )
    .unwrap();
    text(http)
}

#[test]
fn a_client_that_never_accepts_gets_its_body_by_tcp() {
    let httpd = Httpd::start(&["--connect-timeout", "0.3"]);
    std::fs::write(httpd.directory.path().join("body.bin"), "the body").unwrap();
    // The system completes the handshake; nobody reads what comes.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let answer = get_offering(&httpd, silent.local_addr().unwrap());
    assert!(answer.contains("rdma: fallback, reason=timed-out\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nthe body"), "{answer}");
    let events = httpd.stop();
    assert_eq!(fallbacks(&events), ["timed-out"]);
    assert_eq!(assert_no_leak(&events), (0, 0));
}

#[test]
fn a_client_that_accepts_and_hangs_up_gets_its_body_by_tcp() {
    let httpd = Httpd::start(&[]);
    std::fs::write(httpd.directory.path().join("body.bin"), "the body").unwrap();
    let rude = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = rude.local_addr().unwrap();
    let hang_up = std::thread::spawn(move || drop(rude.accept().unwrap()));
    let answer = get_offering(&httpd, address);
    hang_up.join().unwrap();
    assert!(answer.contains("rdma: fallback, reason=unreachable\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nthe body"), "{answer}");
}

#[tokio::test]
async fn a_client_that_rejects_or_has_no_such_region_is_answered() {
    let httpd = Httpd::start(&[]);
    std::fs::write(httpd.directory.path().join("body.bin"), vec![7; 200_000]).unwrap();
    let fabric = SoftFabric::new(SoftOptions::default());
    let listener = fabric.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr();
    let get = |httpd: Httpd| {
        tokio::task::spawn_blocking(move || {
            let answer = get_offering(&httpd, address);
            (httpd, answer)
        })
    };

    let answer = get(httpd);
    let request = listener.accept().await.unwrap();
    assert_eq!(Message::decode(request.private_data()), Ok(Message::Hello { id: TransferId::NONE }));
    request.reject(&[]).await.unwrap();
    let (httpd, answer) = answer.await.unwrap();
    assert!(answer.contains("rdma: fallback, reason=rejected\r\n"), "{answer}");

    // Accepted; but STag 642 names nothing here, so the first Write is the server's error.
    let answer = get(httpd);
    let pd = fabric.allocate_pd().unwrap();
    let request = listener.accept().await.unwrap();
    let connection = request.accept(&pd, ConnectOptions::default()).await.unwrap();
    assert!(connection.receive().await.is_err());
    let (httpd, answer) = answer.await.unwrap();
    // All of a short body may be on its way before the Terminate comes back; then the server cannot know.
    let failed =
        answer.starts_with("HTTP/1.1 500 ") && answer.contains("rdma: failed, reason=connection-lost\r\n");
    let done = answer.contains("rdma: server-writes, bytes=200000\r\n");
    assert!(failed || done, "{answer}");
    let events = tokio::task::spawn_blocking(|| httpd.stop()).await.unwrap();
    assert_eq!(failures(&events).len(), usize::from(failed));
    assert_no_leak(&events);
}

#[test]
fn a_client_that_leaves_http_in_mid_transfer_is_noticed_at_once() {
    let mut httpd = Httpd::start(&["--stall-timeout", "1000"]);
    httpd.sparse_file("body.bin", 1 << 26);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut http = TcpStream::connect(httpd.address).unwrap();
    write!(
        http,
        "GET /body.bin HTTP/1.1\r\nHost: x\r\n\
         RDMA: server-writes, ip=127.0.0.1, port={}, stag=642, to=0, maxlen=1073741824\r\n\r\n",
        address.port()
    )
    .unwrap();
    // An MPA Reply is the Request with another key, and the same private data will do (RFC 5044, section 7.1.1).
    let (mut rdma, _) = listener.accept().unwrap();
    let mut request = [0; 20];
    rdma.read_exact(&mut request).unwrap();
    let mut private_data = vec![0; usize::from(u16::from_be_bytes([request[18], request[19]]))];
    rdma.read_exact(&mut private_data).unwrap();
    request[..16].copy_from_slice(b"MPA ID Rep Frame");
    rdma.write_all(&[&request[..], &private_data].concat()).unwrap();
    // Then nothing is read any more, so the transfer cannot end.
    httpd.running.wait_for("connection", |event| matches!(event, Event::RdmaConnected { .. }));
    httpd.running.wait_for("region", |event| matches!(event, Event::RegionRegistered { .. }));
    drop(http);
    httpd.running.wait_for("failure", |event| matches!(event, Event::Failed { .. }));
    httpd.running.wait_for("end", |event| matches!(event, Event::RdmaClosed { .. }));
    let events = httpd.stop();
    assert!(failures(&events)[0].contains("the HTTP connection ended"), "{events:#?}");
    assert_eq!(assert_no_leak(&events).1, 1);
}

/// How a server made by hand breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Twist {
    /// It keeps to it.
    None,
    /// Before it connects, somebody else does, without the id.
    Stranger,
    /// Its response says done, and it never connected.
    NeverConnects,
    /// It sends no Done.
    NoDone,
    /// Its Done tells of another length than its response.
    OtherLength,
    /// Its response tells of another transfer.
    OtherId,
    /// Its response tells of more bytes than were offered.
    TooMany,
    /// It Writes past the end of the region.
    PastTheEnd,
    /// What it sends is no message.
    Garbage,
}

/// Reads one request, answers it with `body` by RDMA, with a twist.
async fn serve_one(http: TcpListener, body: &'static [u8], twist: Twist) {
    let (mut stream, offer) = tokio::task::spawn_blocking(move || {
        let stream = http.accept().unwrap().0;
        let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
        let field = lines.take_while(|line| !line.is_empty()).find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("rdma:").map(|value| value.trim().to_owned())
        });
        (stream, Offer::parse(&HeaderValue::try_from(field.unwrap()).unwrap()).unwrap())
    })
    .await
    .unwrap();
    let id = offer.id.unwrap();
    let fabric = SoftFabric::new(SoftOptions::default());
    let pd = fabric.allocate_pd().unwrap();
    let Route::Server(address) = offer.route else { unreachable!() };
    let connect = async |id| {
        let private_data = Message::Hello { id }.encode();
        fabric.connect(&pd, address, ConnectOptions { private_data, ..ConnectOptions::default() }).await
    };
    let mut connection = None;
    if twist == Twist::Stranger {
        let refused = connect(TransferId([7; 16])).await.err();
        assert!(matches!(refused, Some(FabricError::Rejected { .. })), "{refused:?}");
    }
    if twist != Twist::NeverConnects {
        let new = connect(id).await.unwrap();
        write(&pd, &*new, &offer, body, twist).await;
        connection = Some(new);
    }
    let (told, bytes) = match twist {
        Twist::OtherId => (TransferId([7; 16]), body.len() as u64),
        Twist::TooMany => (id, offer.region.unwrap().maxlen + 1),
        _ => (id, body.len() as u64),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nRDMA: server-writes, bytes={bytes}, id={told}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // Until the client closes.
    let _ = tokio::task::spawn_blocking(move || stream.read(&mut [0; 1])).await;
    drop(connection);
}

async fn write(pd: &Pd, connection: &dyn Connection, offer: &Offer, body: &[u8], twist: Twist) {
    let source = pd.register(body.to_vec(), Access::LOCAL_READ).unwrap();
    let to = offer.region.unwrap().at;
    let id = offer.id.unwrap();
    connection.write(&source, 0, body.len(), to).await.unwrap();
    if twist == Twist::PastTheEnd {
        let to = RemoteAddress { to: to.to + offer.region.unwrap().maxlen - 1, ..to };
        connection.write(&source, 0, body.len(), to).await.unwrap();
    }
    let bytes = body.len() as u64;
    let message = match twist {
        Twist::NoDone => return,
        Twist::OtherLength => Message::Done { id, bytes: bytes - 1 }.encode(),
        Twist::Garbage => "garbage".into(),
        _ => Message::Done { id, bytes }.encode(),
    };
    // After a Write past the end the client may have ended the connection already.
    let sent = connection.send(message).await;
    assert!(sent.is_ok() || twist == Twist::PastTheEnd, "{sent:?}");
}

async fn fetch_from(twist: Twist) -> Fetched {
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x", http.local_addr().unwrap());
    let server = tokio::spawn(serve_one(http, b"the body", twist));
    let limit = if matches!(twist, Twist::NoDone | Twist::NeverConnects) { "0.5" } else { "30" };
    let got = tokio::task::spawn_blocking(move || fetch(&url, &["--maxlen", "4096", "--timeout", limit]));
    let got = got.await.unwrap();
    server.await.unwrap();
    assert_no_leak(&got.events);
    got
}

#[tokio::test]
async fn a_server_of_any_make_will_do() {
    for twist in [Twist::None, Twist::Stranger] {
        let got = fetch_from(twist).await;
        assert_eq!(got.code, Some(0), "{twist:?}: {}", got.stderr);
        assert_eq!(got.body.as_deref(), Some(&b"the body"[..]), "{twist:?}");
    }
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_leaves_no_file() {
    for (twist, code, message) in [
        (Twist::NeverConnects, 8, "never connected"),
        (Twist::NoDone, 28, "no end of the RDMA transfer within 500ms"),
        (Twist::OtherLength, 8, "bytes: 7"),
        (Twist::OtherId, 8, "0707070707"),
        (Twist::TooMany, 8, "bytes=4097"),
        (Twist::PastTheEnd, 18, "the RDMA connection ended in mid-transfer"),
        (Twist::Garbage, 8, "a message of 7 bytes"),
    ] {
        let got = fetch_from(twist).await;
        assert_eq!(got.code, Some(code), "{twist:?}: {}", got.stderr);
        assert!(got.stderr.contains(message), "{twist:?}: {}", got.stderr);
        assert!(got.files().is_empty(), "{twist:?}");
    }
}

#[test]
fn a_silent_server_is_left_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let got = fetch(&format!("http://{}/x", silent.local_addr().unwrap()), &["--timeout", "0.3"]);
    assert_eq!(got.code, Some(28), "{}", got.stderr);
    assert!(got.stderr.contains("no response within 300ms"), "{}", got.stderr);
    assert_eq!(assert_no_leak(&got.events), (1, 0));
}
