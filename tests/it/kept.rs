//! A kept RDMA connection that the client ends between two transfers, by a client made by hand.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::fabric::{
    Access, BoxFuture, ConnectOptions, Connection, Fabric, FabricError, Listener, Pd, Region,
};
use rdma_http::header::TransferId;
use rdma_http::message::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tower::service_fn;

use crate::program::{assert_no_leak, failures, fallbacks};
use crate::service::Serving;

const BODY: &[u8] = b"the body";

/// A body that tells when it is asked for, and comes when it is let.
struct Slow {
    asked: Option<mpsc::UnboundedSender<()>>,
    let_go: BoxFuture<'static, ()>,
    data: Option<Bytes>,
}

impl Body for Slow {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(asked) = self.asked.take() {
            asked.send(()).unwrap();
        }
        if self.data.is_some() {
            ready!(self.let_go.as_mut().poll(cx));
        }
        Poll::Ready(self.data.take().map(|data| Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}

/// A client made by hand, and the server that it asks.
struct Pair {
    serving: Serving,
    asked: mpsc::UnboundedReceiver<()>,
    gate: Arc<Semaphore>,
    http: TcpStream,
    listener: Box<dyn Listener>,
    rdma: SocketAddr,
    pd: Pd,
    region: Region,
}

impl Pair {
    async fn new() -> Self {
        let (send, asked) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let shared = gate.clone();
        let serving = Serving::start(service_fn(move |_| {
            let gate = shared.clone();
            let let_go = Box::pin(async move { gate.acquire().await.unwrap().forget() });
            let body = Slow { asked: Some(send.clone()), let_go, data: Some(Bytes::from_static(BODY)) };
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        }))
        .await;
        let fabric = SoftFabric::new(SoftOptions::default());
        let listener = fabric.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let pd = fabric.allocate_pd().unwrap();
        let region = pd.register(vec![0; 4096], Access::REMOTE_WRITE).unwrap();
        let http = TcpStream::connect(serving.address).await.unwrap();
        let rdma = listener.local_addr();
        Self { serving, asked, gate, http, listener, rdma, pd, region }
    }

    /// Sends a request, and returns when the server waits for the body.
    async fn ask(&mut self) {
        let (port, stag, to) = (self.rdma.port(), self.region.stag().0, self.region.base());
        let request = format!(
            "GET / HTTP/1.1\r\nHost: x\r\n\
             RDMA: server-writes, ip=127.0.0.1, port={port}, stag={stag}, to={to}, maxlen=4096\r\n\r\n"
        );
        self.http.write_all(request.as_bytes()).await.unwrap();
        self.asked.recv().await.unwrap();
    }

    /// Lets the body come, accepts the server's connection and returns it after the transfer.
    async fn transfer(&mut self) -> Arc<dyn Connection> {
        self.gate.add_permits(1);
        let request = self.listener.accept().await.unwrap();
        let connection = request.accept(&self.pd, ConnectOptions::default()).await.unwrap();
        let done = connection.receive().await.unwrap().message;
        assert_eq!(
            Message::decode(&done),
            Ok(Message::Done { id: TransferId::NONE, bytes: BODY.len() as u64 })
        );
        let answer = self.answer("\r\n\r\n").await;
        assert!(answer.contains("rdma: server-writes, bytes=8\r\n"), "{answer}");
        connection
    }

    /// Reads the answer up to `end`.
    async fn answer(&mut self, end: &str) -> String {
        let mut answer = String::new();
        while !answer.ends_with(end) {
            let byte = self.http.read_u8().await.unwrap_or_else(|error| panic!("{error} after {answer}"));
            answer.push(char::from(byte));
        }
        answer
    }
}

#[tokio::test]
async fn a_connection_that_is_gone_is_made_anew() {
    let mut pair = Pair::new().await;
    pair.ask().await;
    let first = pair.transfer().await;

    pair.ask().await;
    first.disconnect().await.unwrap();
    let second = pair.transfer().await;

    // Nobody listens any more: nothing was written, so the whole body goes by TCP.
    pair.ask().await;
    second.disconnect().await.unwrap();
    let Pair { listener, .. } = &mut pair;
    *listener = SoftFabric::new(SoftOptions::default()).listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    pair.gate.add_permits(1);
    let answer = pair.answer("the body").await;
    assert!(answer.contains("rdma: fallback, reason=unreachable\r\n"), "{answer}");

    drop(pair.http);
    let events = pair.serving.stop().await;
    assert_eq!(fallbacks(&events), ["unreachable"]);
    assert_eq!(failures(&events), Vec::<&str>::new());
    assert_eq!(assert_no_leak(&events), (2, 2));
}

#[tokio::test]
async fn a_client_that_speaks_out_of_turn_gets_another_connection() {
    let mut pair = Pair::new().await;
    pair.ask().await;
    let first = pair.transfer().await;
    first.send(Bytes::from_static(b"garbage")).await.unwrap();

    // The HTTP connection is none the worse.
    pair.ask().await;
    let _second = pair.transfer().await;
    let ended = first.closed().await;
    assert!(matches!(ended, FabricError::Closed), "{ended:?}");
    drop(pair.http);
    assert_eq!(assert_no_leak(&pair.serving.stop().await), (2, 2));
}
