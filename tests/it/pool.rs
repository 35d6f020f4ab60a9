//! Many requests on few connections: several URLs of `rdma-fetch`, the library's pool and its limits, and a client that
//! sends its requests without waiting for the answers.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::Full;
use rdma_http::client::{self, Client, ClientError, Options, Pool, PoolOptions, Via};
use rdma_http::events::{Event, Recorder};
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::fabric::{Access, ConnectOptions, Fabric, RemoteAddress};
use rdma_http::header::{Advert, Mode, Offer, Route, TransferId};
use rdma_http::memory::Strategy;
use rdma_http::message::Message;
use rdma_http::server::{HttpConnection, RequestBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tower::service_fn;

use crate::program::{Httpd, assert_no_leak, command, fallbacks, read_events, run};
use crate::service::Serving;
use crate::support::Told;

/// Runs rdma-fetch in `directory`; its exit code, what it printed and said, and its events.
fn fetch_all(directory: &Path, args: &[&str]) -> (Option<i32>, String, String, Vec<Event>) {
    let events = tempfile::NamedTempFile::new().unwrap();
    let mut fetch = command(env!("CARGO_BIN_EXE_rdma-fetch"));
    fetch.current_dir(directory).arg("--events").arg(events.path()).args(args);
    let Output { status, stdout, stderr } = run(&mut fetch);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr), read_events(events.path()))
}

fn connected(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::RdmaConnected { .. })).count()
}

#[test]
fn several_urls_are_fetched_on_one_connection() {
    let httpd = Httpd::start(&[]);
    let bodies =
        [("a", 1000), ("b", 70_000), ("c", 1)].map(|(name, length)| (name, httpd.file(name, length)));
    let urls = ["/a", "/b", "/c"].map(|path| httpd.url(path));
    let directory = tempfile::tempdir().unwrap();
    let args = [&urls[0], &urls[1], &urls[2], "-o", "first", "--json", "--require-rdma"];
    let (code, stdout, stderr, events) = fetch_all(directory.path(), &args);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout.lines().count(), 3, "{stdout}");
    for ((name, body), file) in bodies.iter().zip(["first", "b", "c"]) {
        assert!(std::fs::read(directory.path().join(file)).unwrap() == *body, "{name}");
    }
    assert_eq!(assert_no_leak(&events), (3, 1));
    assert_eq!(connected(&httpd.stop()), 1);
}

#[test]
fn parallel_fetches_take_as_many_connections_as_they_may() {
    let httpd = Httpd::start(&[]);
    let names: Vec<String> = (0..7).map(|number| format!("{number}")).collect();
    let bodies: Vec<Vec<u8>> = names.iter().map(|name| httpd.file(name, 300_000)).collect();
    let urls: Vec<String> = names.iter().map(|name| httpd.url(&format!("/{name}"))).collect();
    let directory = tempfile::tempdir().unwrap();
    let args: Vec<&str> =
        ["-j", "3", "--require-rdma"].into_iter().chain(urls.iter().map(String::as_str)).collect();
    let (code, _, stderr, events) = fetch_all(directory.path(), &args);
    assert_eq!(code, Some(0), "{stderr}");
    for (name, body) in names.iter().zip(&bodies) {
        assert!(std::fs::read(directory.path().join(name)).unwrap() == *body, "{name}");
    }
    let (regions, connections) = assert_no_leak(&events);
    assert_eq!((regions, (1..=3).contains(&connections)), (7, true), "{connections} connections");
    assert_no_leak(&httpd.stop());
}

#[test]
fn one_of_several_that_fails_keeps_none_of_the_others_away() {
    let httpd = Httpd::start(&[]);
    let body = httpd.file("there", 5000);
    let directory = tempfile::tempdir().unwrap();
    let (missing, there) = (httpd.url("/missing"), httpd.url("/there"));
    let (code, _, stderr, events) = fetch_all(directory.path(), &["--fail", &missing, &there]);
    assert_eq!(code, Some(22), "{stderr}");
    assert!(stderr.contains(&format!("{missing}: the server answered 404")), "{stderr}");
    assert!(stderr.contains("1 of 2 URLs failed"), "{stderr}");
    assert!(std::fs::read(directory.path().join("there")).unwrap() == body);
    assert!(!directory.path().join("missing").exists());
    assert_no_leak(&events);

    let twice = fetch_all(directory.path(), &[&there, &there]);
    assert_eq!(twice.0, Some(2), "{}", twice.2);
    assert!(twice.2.contains("two bodies would go to there"), "{}", twice.2);
    let null = fetch_all(directory.path(), &[&there, &there, "-o", "/dev/null", "-o", "/dev/null"]);
    assert_eq!(null.0, Some(0), "{}", null.2);
    let more = fetch_all(directory.path(), &[&there, "-o", "x", "-o", "y"]);
    assert!(more.2.contains("2 outputs for 1 URLs"), "{}", more.2);
}

#[test]
fn what_no_connection_may_register_is_refused_before_anything_is_sent() {
    let args = ["--maxlen", "2MiB", "--max-registered", "1MiB", "http://127.0.0.1:9/x"];
    let (code, _, stderr, _) = fetch_all(tempfile::tempdir().unwrap().path(), &args);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("lower --maxlen or raise --max-registered"), "{stderr}");
}

/// A server of 1,000 bytes, and the addresses of all who ask.
async fn serving() -> (Serving, Arc<Mutex<HashSet<SocketAddr>>>) {
    let peers: Arc<Mutex<HashSet<SocketAddr>>> = Arc::default();
    let seen = peers.clone();
    let serving = Serving::start(service_fn(move |request: Request<RequestBody>| {
        let http = request.extensions().get::<HttpConnection>().unwrap();
        seen.lock().unwrap().insert(http.peer());
        let body = Full::new(Bytes::from(vec![7; 1000]));
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    }))
    .await;
    (serving, peers)
}

/// A client that has at most 64 KiB registered for a connection, or twice that where buffers are kept.
fn client(memory: Strategy, mode: Option<Mode>) -> Client {
    client_told(memory, mode, Recorder::default())
}

/// The same, which tells of what it does.
fn client_told(memory: Strategy, mode: Option<Mode>, recorder: Recorder) -> Client {
    let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
    let (maxlen, chunk, window) = (64 << 10, 16 << 10, 4);
    let options = Options { maxlen, chunk, window, memory, mode, ..Options::default() };
    Client::new(Some(fabric), options, recorder)
}

async fn get(pool: &Pool, server: SocketAddr) -> Result<client::Response, ClientError> {
    pool.request(("127.0.0.1", server.port()), Method::GET, "/", HeaderMap::new()).await
}

#[tokio::test]
async fn a_pool_serves_many_over_few_connections() {
    let (serving, peers) = serving().await;
    let options = PoolOptions { per_origin: 2, ..PoolOptions::default() };
    let pool = Pool::new(client(Strategy::Dynamic, None), options);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (pool, server) = (pool.clone(), serving.address);
        tasks.spawn(async move {
            let response = get(&pool, server).await.unwrap();
            assert_eq!(response.via, Via::Rdma(Mode::ServerWrites));
            assert_eq!(response.body.collect(1000).await.unwrap(), [7; 1000]);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert!(peers.lock().unwrap().len() <= 2, "{peers:?}");
    pool.close().await;
    assert_no_leak(&serving.stop().await);
}

#[tokio::test]
async fn who_comes_first_is_served_first_and_nobody_waits_for_ever() {
    let (serving, _) = serving().await;
    let wait = Duration::from_millis(50);
    let options = PoolOptions { per_origin: 1, wait, ..PoolOptions::default() };
    // With client-reads the body comes after the head, so that the connection is in use until it is read.
    let short = Pool::new(client(Strategy::Dynamic, Some(Mode::ClientReads)), options.clone());
    let held = get(&short, serving.address).await.unwrap();
    let error = get(&short, serving.address).await.unwrap_err();
    assert!(error.to_string().contains("no connection of the pool became free within 50ms"), "{error}");
    drop(held);
    // What was not read to its end is not used again: this is another connection.
    let response = get(&short, serving.address).await.unwrap();
    assert_eq!(response.body.collect(1000).await.unwrap(), [7; 1000]);

    let long = Pool::new(
        client(Strategy::Dynamic, Some(Mode::ClientReads)),
        PoolOptions { wait: Duration::from_secs(60), ..options },
    );
    let held = get(&long, serving.address).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 0..5 {
        let (pool, order, server) = (long.clone(), order.clone(), serving.address);
        let task = async move {
            let response = get(&pool, server).await.unwrap();
            order.lock().unwrap().push(number);
            response.body.collect(1000).await.unwrap();
        };
        let mut task = Box::pin(task);
        // Its place in the queue is taken when it is first asked.
        assert!(futures_poll(&mut task).await);
        tasks.push(tokio::spawn(task));
    }
    held.body.collect(1000).await.unwrap();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
    long.close().await;
    short.close().await;
    assert_no_leak(&serving.stop().await);
}

/// Asks a future once; whether it has yet to end.
async fn futures_poll<F: Future<Output = ()> + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending()))
        .await
}

#[tokio::test]
async fn registered_memory_is_shared_out_over_all_origins() {
    let ((one, _), (other, _)) = (serving().await, serving().await);
    let wait = Duration::from_millis(50);
    let options = PoolOptions { max_registered: 64 << 10, wait, ..PoolOptions::default() };
    let pool = Pool::new(client(Strategy::Dynamic, Some(Mode::ClientReads)), options);
    let held = get(&pool, one.address).await.unwrap();
    let error = get(&pool, other.address).await.unwrap_err();
    assert!(error.to_string().contains("no registered memory of the pool"), "{error}");
    held.body.collect(1000).await.unwrap();
    get(&pool, other.address).await.unwrap().body.collect(1000).await.unwrap();
    pool.close().await;

    // Where buffers stay registered an idle connection is closed for one that needs the memory.
    let options = PoolOptions { max_registered: 128 << 10, ..PoolOptions::default() };
    let pool = Pool::new(client(Strategy::Cache, None), options);
    get(&pool, one.address).await.unwrap().body.collect(1000).await.unwrap();
    assert_eq!(pool.idle(), 1);
    get(&pool, other.address).await.unwrap().body.collect(1000).await.unwrap();
    assert_eq!(pool.idle(), 1);
    pool.close().await;
    let too_small = PoolOptions { max_registered: 64 << 10, ..PoolOptions::default() };
    let error = get(&Pool::new(client(Strategy::Cache, None), too_small), one.address).await.unwrap_err();
    assert!(matches!(error, ClientError::TooMuchMemory { one: 131_072, limit: 65_536 }), "{error}");
    for serving in [one, other] {
        assert_no_leak(&serving.stop().await);
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time_and_one_that_the_server_closed_is_made_anew() {
    let (first, _) = serving().await;
    let options = PoolOptions { idle: Duration::from_millis(20), ..PoolOptions::default() };
    let closed = Arc::new(Notify::new());
    let pool = Pool::new(client_told(Strategy::Dynamic, None, Told::of(&closed)), options);
    get(&pool, first.address).await.unwrap();
    // Its RDMA connection is closed with it, which is told.
    while pool.idle() > 0 {
        closed.notified().await;
    }
    pool.close().await;

    let pool = Pool::new(client(Strategy::Dynamic, None), PoolOptions::default());
    get(&pool, first.address).await.unwrap();
    let address = first.address;
    assert_no_leak(&first.stop().await);
    assert_eq!(pool.idle(), 1);
    // Nobody listens there any more, which is another error than that of the connection that was kept.
    let error = get(&pool, address).await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_client_that_pipelines_gets_everything_in_order() {
    let httpd = Httpd::start(&["--rdma-listen", "127.0.0.1:0"]);
    let (a, b, c, d) =
        (httpd.file("a", 5000), httpd.file("b", 200_000), httpd.file("c", 70_000), httpd.file("d", 40));
    let fabric = SoftFabric::new(SoftOptions::default());
    let listener = fabric.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let pd = fabric.allocate_pd().unwrap();
    let sinks = [&a, &b].map(|body| pd.register(vec![0; body.len()], Access::REMOTE_WRITE).unwrap());
    let ids = [1, 2, 3].map(|byte| TransferId([byte; 16]));
    let offer = |mode, region: Option<usize>, id| Offer {
        mode,
        route: Route::Server(listener.local_addr()),
        region: region.map(|index| Advert {
            at: RemoteAddress { stag: sinks[index].stag(), to: sinks[index].base() },
            maxlen: sinks[index].len() as u64,
        }),
        bytes: None,
        id: Some(id),
        seal: None,
    };
    let offers = [
        offer(Mode::ServerWrites, Some(0), ids[0]),
        offer(Mode::ServerWrites, Some(1), ids[1]),
        offer(Mode::ClientReads, None, ids[2]),
    ];
    let mut requests = String::new();
    for (path, offer) in ["/a", "/b", "/c"].iter().zip(offers) {
        let field = offer.to_value();
        requests += &format!("GET {path} HTTP/1.1\r\nHost: x\r\nRDMA: {}\r\n\r\n", field.to_str().unwrap());
    }
    requests += "GET /d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut http = tokio::net::TcpStream::connect(httpd.address).await.unwrap();
    http.write_all(requests.as_bytes()).await.unwrap();

    // All of them go over the connection that is made for the first.
    let request = listener.accept().await.unwrap();
    assert_eq!(Message::decode(request.private_data()), Ok(Message::Hello { id: ids[0] }));
    let connection = request.accept(&pd, ConnectOptions::default()).await.unwrap();
    let told = async || Message::decode(&connection.receive().await.unwrap().message).unwrap();
    assert_eq!(told().await, Message::Done { id: ids[0], bytes: 5000 });
    assert_eq!(told().await, Message::Done { id: ids[1], bytes: 200_000 });
    let Message::Region { id, at, bytes: 70_000 } = told().await else { panic!("no region of all of c") };
    assert_eq!(id, ids[2]);
    let sink = pd.register(vec![0; 70_000], Access::LOCAL_WRITE).unwrap();
    connection.read(&sink, 0, 70_000, at).await.unwrap();
    connection.send(Message::Credit { id, bytes: 70_000 }.encode()).await.unwrap();

    let mut answers = String::new();
    http.read_to_string(&mut answers).await.unwrap();
    let fields: Vec<&str> = answers.lines().filter(|line| line.starts_with("rdma: ")).collect();
    let expected = [
        format!("rdma: server-writes, bytes=5000, id={}", ids[0]),
        format!("rdma: server-writes, bytes=200000, id={}", ids[1]),
        format!("rdma: client-reads, coming=70000, id={}", ids[2]),
    ];
    assert_eq!(fields, expected, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 4, "{answers}");
    assert!(answers.as_bytes().ends_with(&d), "{answers}");
    let [first, second] = sinks;
    assert!(
        first.deregister().unwrap() == a
            && second.deregister().unwrap() == b
            && sink.deregister().unwrap() == c
    );
    let events = tokio::task::spawn_blocking(|| httpd.stop()).await.unwrap();
    assert_eq!((connected(&events), fallbacks(&events)), (1, vec![]));
    assert_no_leak(&events);
}
