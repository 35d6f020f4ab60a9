//! A client and a server made by hand: their HTTP is written out, their RDMA goes over a soft connection that does what it
//! is told.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::fabric::{
    Access, ConnectOptions, Connection, Fabric, FabricError, Listener, Pd, Region, RemoteAddress, Stag,
};
use rdma_http::header::{Asked, Offer, Route, TransferId};
use rdma_http::message::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::victim::Victim;
use crate::program::{Fetched, assert_no_leak, fetch};

/// Only a test that fails waits for so long.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it ends in bounded time")
}

/// The client.
pub(crate) struct Hand {
    pub(crate) http: TcpStream,
    pub(crate) pd: Pd,
    fabric: SoftFabric,
    listener: Box<dyn Listener>,
    /// Of the last offer.
    id: TransferId,
}

/// A region that the server told of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) at: RemoteAddress,
    pub(crate) bytes: u64,
}

impl Shown {
    pub(crate) fn plus(self, offset: u64) -> RemoteAddress {
        RemoteAddress { to: self.at.to.wrapping_add(offset), ..self.at }
    }

    pub(crate) fn named(self, stag: u32) -> RemoteAddress {
        RemoteAddress { stag: Stag(stag), ..self.at }
    }
}

impl Hand {
    pub(crate) async fn new(victim: &Victim) -> Self {
        Self::at(victim.address(), Ipv4Addr::LOCALHOST).await
    }

    /// One of the server at this address, who has an address of its own.
    pub(crate) async fn at(server: SocketAddr, own: Ipv4Addr) -> Self {
        let fabric = SoftFabric::new(SoftOptions::default());
        let listener = fabric.listen((own, 0).into()).await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        if own != Ipv4Addr::LOCALHOST {
            socket.bind((own, 0).into()).unwrap();
        }
        let (http, pd) = (socket.connect(server).await.unwrap(), fabric.allocate_pd().unwrap());
        Self { http, pd, fabric, listener, id: TransferId::NONE }
    }

    /// Memory of our own.
    pub(crate) fn region(&self, bytes: Vec<u8>) -> Region {
        let access = Access { local_write: true, remote_read: true, remote_write: true };
        self.pd.register(bytes, access).unwrap()
    }

    /// `ip=…, port=…`: where we accept.
    pub(crate) fn here(&self) -> String {
        let address = self.listener.local_addr();
        format!("ip={}, port={}", address.ip(), address.port())
    }

    /// Sends this, as it is.
    pub(crate) async fn say(&mut self, text: &str) {
        self.http.write_all(text.as_bytes()).await.unwrap();
    }

    /// Sends a request's head.
    pub(crate) async fn ask(&mut self, line: &str, offer: &str) {
        self.id = match HeaderValue::from_str(offer).ok().and_then(|value| Asked::parse(&value).ok()) {
            Some(Asked::Transfer(Offer { id: Some(id), .. })) => id,
            _ => TransferId::NONE,
        };
        let upload = !line.starts_with("GET") && !line.starts_with("OPTIONS");
        let more = if upload { "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n" } else { "" };
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\nRDMA: {offer}\r\n{more}\r\n");
        self.http.write_all(head.as_bytes()).await.unwrap();
    }

    /// Begins an upload that is to be written by us; returns the connection and where the server wants it.
    pub(crate) async fn upload(
        &mut self,
        path: &str,
        bytes: u64,
    ) -> (Arc<dyn Connection>, Shown, TransferId) {
        let id = TransferId::random().unwrap();
        let offer = format!("client-writes, {}, bytes={bytes}, id={id}", self.here());
        self.ask(&format!("PUT {path}"), &offer).await;
        let connection = self.accept().await;
        let shown = region(&*connection, id).await;
        (connection, shown, id)
    }

    /// Begins a download that is to be read by us.
    pub(crate) async fn download(&mut self, path: &str) -> (Arc<dyn Connection>, Shown, TransferId) {
        let id = TransferId::random().unwrap();
        self.ask(&format!("GET {path}"), &format!("client-reads, {}, id={id}", self.here())).await;
        let connection = self.accept().await;
        let head = self.head().await;
        assert!(head.contains("rdma: client-reads, coming="), "{head}");
        let shown = region(&*connection, id).await;
        (connection, shown, id)
    }

    /// Accepts the server's connection for the last offer. One for whoever had our port before is not ours.
    pub(crate) async fn accept(&self) -> Arc<dyn Connection> {
        let hello = Message::Hello { id: self.id }.encode();
        let request = loop {
            let request = soon(self.listener.accept()).await.unwrap();
            if request.private_data() == hello {
                break request;
            }
        };
        let options = ConnectOptions { receive_depth: 256, receive_size: 64, ..ConnectOptions::default() };
        soon(request.accept(&self.pd, options)).await.unwrap()
    }

    /// Lets itself be introduced, and connects.
    pub(crate) async fn connect(&mut self) -> Arc<dyn Connection> {
        let id = TransferId::random().unwrap();
        self.ask("OPTIONS *", &format!("connect, id={id}")).await;
        let head = self.head().await;
        let port = head.split("port=").nth(1).and_then(|rest| rest.split(',').next()).expect(&head);
        let hello = Message::Hello { id }.encode();
        let options = ConnectOptions { private_data: hello.clone(), ..ConnectOptions::default() };
        let to = format!("127.0.0.1:{port}").parse().unwrap();
        let connection = soon(self.fabric.connect(&self.pd, to, options)).await.unwrap();
        connection.send(hello).await.unwrap();
        connection
    }

    /// Reads one response's head, in lower case.
    pub(crate) async fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let byte = soon(self.http.read_u8()).await;
            head.push(char::from(byte.unwrap_or_else(|error| panic!("{error} after {head:?}"))));
        }
        head.to_ascii_lowercase()
    }

    /// The head of the response proper, behind any `100 Continue`.
    pub(crate) async fn answer(&mut self) -> String {
        loop {
            let head = self.head().await;
            if !head.starts_with("http/1.1 100 ") {
                return head;
            }
        }
    }

    /// Reads so many bytes of a body.
    pub(crate) async fn body(&mut self, length: usize) -> Vec<u8> {
        let mut body = vec![0; length];
        soon(self.http.read_exact(&mut body)).await.unwrap();
        body
    }

    /// Reads what there is to the connection's end, whichever way it ends.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let _ = soon(self.http.read_to_end(&mut rest)).await;
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Sends the empty chunked body that stands on TCP for one that went by RDMA.
    pub(crate) async fn no_body(&mut self) {
        self.http.write_all(b"0\r\n\r\n").await.unwrap();
    }
}

/// The next message, which tells of a region.
pub(crate) async fn region(connection: &dyn Connection, id: TransferId) -> Shown {
    let message = soon(connection.receive()).await.unwrap().message;
    let Ok(Message::Region { id: theirs, at, bytes }) = Message::decode(&message) else {
        panic!("{:?} where a region was due", Message::decode(&message))
    };
    assert_eq!(theirs, id);
    Shown { at, bytes }
}

/// Asserts that the other side ends the connection with this Terminate (layer/type/code).
pub(crate) async fn terminated(connection: &dyn Connection, code: &str) {
    let end = soon(connection.closed()).await;
    let said = matches!(&end, FabricError::TerminatedByPeer(why) if why.starts_with(code));
    assert!(said, "{code} was due: {end:?}");
}

/// A server made by hand: one HTTP connection of a client's.
pub(crate) struct HandServer {
    pub(crate) http: TcpStream,
    fabric: SoftFabric,
    pub(crate) pd: Pd,
}

impl HandServer {
    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        let http = soon(listener.accept()).await.unwrap().0;
        let fabric = SoftFabric::new(SoftOptions::default());
        let pd = fabric.allocate_pd().unwrap();
        Self { http, fabric, pd }
    }

    /// Reads a request's head; returns it with the value of its `RDMA` field, if it has one.
    pub(crate) async fn request(&mut self) -> (String, Option<HeaderValue>) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push(char::from(soon(self.http.read_u8()).await.unwrap()));
        }
        let field = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("rdma").then(|| value.trim().parse().unwrap())
        });
        (head, field)
    }

    /// The same of a request with an offer.
    pub(crate) async fn offer(&mut self) -> Offer {
        Offer::parse(&self.request().await.1.expect("an offer")).unwrap()
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.http.write_all(text.as_bytes()).await.unwrap();
    }

    /// Connects to where an offer says.
    pub(crate) async fn connect(&self, offer: &Offer) -> Arc<dyn Connection> {
        let Route::Server(to) = offer.route else { panic!("{offer:?}") };
        let private_data = Message::Hello { id: offer.id.unwrap() }.encode();
        let options = ConnectOptions { private_data, ..ConnectOptions::default() };
        soon(self.fabric.connect(&self.pd, to, options)).await.unwrap()
    }
}

/// What rdma-fetch makes of a server that does this on the first connection.
pub(crate) async fn fetch_from(args: &[&str], serve: impl AsyncFnOnce(&mut HandServer)) -> Fetched {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
    let got = tokio::task::spawn_blocking(move || {
        fetch(&url, &args.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let mut server = HandServer::accept(&listener).await;
    serve(&mut server).await;
    let got = soon(got).await.unwrap();
    assert_no_leak(&got.events);
    got
}

/// A peer that has accepted an RDMA connection, and then does nothing by itself.
pub(crate) struct RawPeer(pub(crate) TcpStream);

impl RawPeer {
    /// An MPA Reply is the Request with another key, and the same private data will do (RFC 5044, section 7.1.1).
    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        let mut stream = soon(listener.accept()).await.unwrap().0;
        let mut request = [0; 20];
        soon(stream.read_exact(&mut request)).await.unwrap();
        let mut private_data = vec![0; usize::from(u16::from_be_bytes([request[18], request[19]]))];
        soon(stream.read_exact(&mut private_data)).await.unwrap();
        request[..16].copy_from_slice(b"MPA ID Rep Frame");
        stream.write_all(&[&request[..], &private_data].concat()).await.unwrap();
        Self(stream)
    }
}
