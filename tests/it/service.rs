//! The layer around services of any kind, in this process.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use rdma_http::client::{Client, ClientError, Options, Via};
use rdma_http::events::{Event, Record, Recorder};
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::header::{Mode, Reason};
use rdma_http::server::{BoxError, RdmaConfig, RdmaLayer, RequestBody, ServeOptions, serve};
use tower::{Layer, Service, service_fn};

use crate::program::{assert_no_leak, failures, fallbacks};

/// Events, kept.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Kept {
    fn events(&self) -> Vec<Event> {
        let bytes = self.0.lock().unwrap();
        let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice::<Record>(line).unwrap().event).collect()
    }
}

/// A server in this process.
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
    kept: Kept,
}

impl Serving {
    pub(crate) async fn start<S, B>(inner: S) -> Self
    where
        S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        Self::with(RdmaConfig::default(), inner).await
    }

    pub(crate) async fn with<S, B>(config: RdmaConfig, inner: S) -> Self
    where
        S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let kept = Kept::default();
        let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
        let layer = RdmaLayer::new(fabric, config, Recorder::to_writer(kept.clone()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(serve(listener, layer.layer(inner), ServeOptions::default(), stopped));
        Self { address, stop, task, kept }
    }

    pub(crate) async fn stop(self) -> Vec<Event> {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
        self.kept.events()
    }
}

/// One GET; the head, how the body came, and the body or why it did not.
async fn get(address: SocketAddr) -> Result<(http::response::Parts, Via, Vec<u8>), ClientError> {
    let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
    let options = Options { maxlen: 1 << 20, ..Options::default() };
    let client = Client::new(Some(fabric), options, Recorder::default());
    let mut connection = client.connect("127.0.0.1", address.port()).await?;
    let response = connection.get("/any?thing", HeaderMap::new()).await?;
    let body = response.body.collect(1 << 20).await?;
    connection.close().await;
    Ok((response.head, response.via, body))
}

#[tokio::test]
async fn any_service_gets_rdma_and_does_not_notice() {
    let serving = Serving::start(service_fn(|request: Request<RequestBody>| async move {
        let text = format!("{} {}", request.method(), request.uri());
        let response = Response::builder()
            .header("cache-control", "max-age=60")
            .header("etag", "\"1\"")
            .header("vary", "accept")
            .body(Full::new(Bytes::from(text)));
        Ok::<_, Infallible>(response.unwrap())
    }))
    .await;
    let (head, via, body) = get(serving.address).await.unwrap();
    assert_eq!(via, Via::Rdma(Mode::ServerWrites));
    assert_eq!(body, b"GET /any?thing");
    assert_eq!(head.headers["cache-control"], "no-store");
    assert_eq!(head.headers["etag"], "\"1\"");
    assert_eq!(head.headers["content-length"], "0");
    assert_eq!(head.headers.get_all("vary").iter().collect::<Vec<_>>(), ["accept", "RDMA"]);
    assert_eq!(assert_no_leak(&serving.stop().await), (1, 1));
}

#[tokio::test]
async fn what_may_not_be_registered_goes_by_tcp_with_its_length() {
    for config in [
        RdmaConfig { max_registered: 7, ..RdmaConfig::default() },
        RdmaConfig { max_registered_per_peer: 7, ..RdmaConfig::default() },
    ] {
        let body =
            || std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("the body")))));
        let serving = Serving::with(config, service_fn(move |_| body())).await;
        let (head, via, body) = get(serving.address).await.unwrap();
        assert_eq!((via, &body[..]), (Via::Tcp(Some(Reason::EXHAUSTED)), &b"the body"[..]));
        // The service sets none: it is the body that knows.
        assert_eq!(head.headers["content-length"], "8");
        let events = serving.stop().await;
        assert_eq!(fallbacks(&events), ["exhausted"]);
        assert_eq!(assert_no_leak(&events), (0, 0));
    }
}

/// A body of frames, which may end in an error, with or without a length told in advance.
struct Frames(Vec<Result<&'static [u8], &'static str>>, Option<u64>);

impl Body for Frames {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        let next = (!self.0.is_empty()).then(|| self.0.remove(0));
        Poll::Ready(next.map(|frame| frame.map(|data| Frame::data(Bytes::from_static(data)))))
    }

    fn size_hint(&self) -> SizeHint {
        self.1.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

async fn get_frames(
    frames: &[Result<&'static [u8], &'static str>],
    length: Option<u64>,
) -> (Result<(Via, Vec<u8>), ClientError>, Vec<Event>) {
    let frames = frames.to_vec();
    let serving = Serving::start(service_fn(move |_| {
        std::future::ready(Ok::<_, Infallible>(Response::new(Frames(frames.clone(), length))))
    }))
    .await;
    let result = get(serving.address).await.map(|(_, via, body)| (via, body));
    (result, serving.stop().await)
}

#[tokio::test]
async fn a_body_of_unknown_length_goes_by_tcp() {
    let (result, events) = get_frames(&[Ok(b"one "), Ok(b""), Ok(b"two")], None).await;
    assert_eq!(result.unwrap(), (Via::Tcp(Some(Reason::UNKNOWN_LENGTH)), b"one two".to_vec()));
    assert_eq!(fallbacks(&events), ["unknown-length"]);
    let (result, _) = get_frames(&[Ok(b"one "), Ok(b""), Ok(b"two")], Some(7)).await;
    assert_eq!(result.unwrap(), (Via::Rdma(Mode::ServerWrites), b"one two".to_vec()));
}

#[tokio::test]
async fn a_broken_body_is_never_made_whole() {
    for (frames, length, why) in [
        (&[Ok(&b"one"[..]), Err("the disk is gone")][..], 7, "the disk is gone"),
        (&[Ok(b"one")], 7, "it ended 4 bytes early"),
        (&[Ok(b"one two"), Ok(b"three")], 7, "longer than its length says"),
    ] {
        let (result, events) = get_frames(frames, Some(length)).await;
        assert!(matches!(result, Err(ClientError::Broken { .. })), "{result:?}");
        assert!(failures(&events)[0].contains(why), "{events:#?}");
        assert_no_leak(&events);
    }
}

#[tokio::test]
async fn without_the_accept_loop_there_is_no_rdma() {
    let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
    let layer = RdmaLayer::new(fabric, RdmaConfig::default(), Recorder::default());
    let mut service = layer.layer(service_fn(|_: Request<RequestBody>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"body"))))
    }));
    let field = "server-writes, ip=127.0.0.1, port=9999, stag=1, to=0, maxlen=10";
    let request =
        Request::get("/").header("RDMA", field).body(RequestBody::new(Full::new(Bytes::new()))).unwrap();
    let response = service.call(request).await.unwrap();
    assert_eq!(response.headers()["rdma"], "fallback, reason=address-not-allowed");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
}
