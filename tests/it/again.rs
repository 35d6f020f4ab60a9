//! A server that ends a connection instead of answering on it, as it may between two exchanges: what is safe to repeat is asked
//! for once more, on a new connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use http::{HeaderMap, Method, StatusCode};
use rdma_http::client::{Client, ClientError, Connect, Options, Pool, PoolOptions, Upload, Via};
use rdma_http::events::Recorder;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::header::{Asked, Offer, TransferId};
use rdma_http::message::Message;

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const BODY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nthe body";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: rdma\r\n\r\n";

/// One connection of a server's.
struct Served(TcpStream);

impl Served {
    /// The next request's head.
    fn request(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.push(char::from(byte[0]));
        }
        head
    }

    fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }
}

/// A server that does this with its connections, one after the other; and then is no more.
fn serving(serve: impl FnOnce(&mut dyn FnMut() -> Served) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || serve(&mut || Served(listener.accept().unwrap().0)));
    (address, serving)
}

fn client(connect: Option<Connect>) -> Client {
    let options = Options { connect: connect.unwrap_or_default(), ..Options::default() };
    let fabric = connect.map(|_| Arc::new(SoftFabric::new(SoftOptions::default())) as _);
    Client::new(fabric, options, Recorder::default())
}

#[tokio::test]
async fn a_request_that_a_kept_connection_ends_with_is_sent_once_more() {
    for method in [Method::GET, Method::HEAD, Method::DELETE, Method::PUT] {
        let (address, serving) = serving(|accept| {
            let mut kept = accept();
            kept.request();
            kept.say(ANSWER);
            kept.request();
            drop(kept);
            let mut next = accept();
            let asked = next.request();
            assert!(asked.contains(" /second HTTP/1.1\r\n"), "{asked}");
            next.say(ANSWER);
        });
        let mut connection = client(None).connect("127.0.0.1", address.port()).await.unwrap();
        connection.get("/first", HeaderMap::new()).await.unwrap().body.collect(0).await.unwrap();
        let second = if method == Method::PUT {
            let file = tempfile::NamedTempFile::new().unwrap();
            let nothing = Upload::open(file.path()).unwrap();
            connection.upload(method.clone(), "/second", HeaderMap::new(), &nothing).await
        } else {
            connection.request(method.clone(), "/second", HeaderMap::new()).await
        };
        assert_eq!(second.unwrap_or_else(|error| panic!("{method}: {error}")).head.status, StatusCode::OK);
        serving.join().unwrap();
    }
}

#[tokio::test]
async fn the_pool_does_the_same() {
    let (address, serving) = serving(|accept| {
        let mut kept = accept();
        kept.request();
        kept.say(BODY);
        kept.request();
        drop(kept);
        let mut next = accept();
        next.request();
        next.say(BODY);
    });
    let pool = Pool::new(client(None), PoolOptions::default());
    for target in ["/first", "/second"] {
        let to = ("127.0.0.1", address.port());
        let response = pool.request(to, Method::GET, target, HeaderMap::new()).await.unwrap();
        assert_eq!(response.body.collect(8).await.unwrap(), b"the body");
    }
    serving.join().unwrap();
}

#[tokio::test]
async fn what_may_have_been_done_and_what_was_never_answered_are_not_sent_again() {
    // A POST may have been done. The first request on a connection has not met one that was just closed.
    for (answered, method) in [(true, Method::POST), (false, Method::GET)] {
        let (address, serving) = serving(move |accept| {
            let mut kept = accept();
            if answered {
                kept.request();
                kept.say(ANSWER);
            }
            kept.request();
        });
        let mut connection = client(None).connect("127.0.0.1", address.port()).await.unwrap();
        if answered {
            connection.get("/first", HeaderMap::new()).await.unwrap().body.collect(0).await.unwrap();
        }
        let error = connection.request(method, "/second", HeaderMap::new()).await.unwrap_err();
        assert!(matches!(error, ClientError::Broken { .. }), "{error}");
        serving.join().unwrap();
    }
}

/// How far a server goes that has promised to make a connection in place.
#[derive(Clone, Copy, Debug)]
enum Promise {
    /// It ends at once.
    Nothing,
    /// It asks for the connection, and ends when it may begin.
    Request,
}

#[tokio::test]
async fn a_connection_in_place_that_is_not_made_costs_no_answer() {
    for promise in [Promise::Nothing, Promise::Request] {
        let (address, serving) = serving(move |accept| {
            let mut promised = accept();
            let asked = promised.request();
            promised.say(SWITCH);
            if matches!(promise, Promise::Request) {
                // An MPA Request with CRC, and the Hello that goes with the offer (RFC 5044, section 7.1.1).
                promised.say("MPA ID Req Frame");
                promised.0.write_all(&[0x40, 1, 0, 32]).unwrap();
                promised.0.write_all(&Message::Hello { id: id(&asked) }.encode()).unwrap();
                let mut reply = [0; 16];
                promised.0.read_exact(&mut reply).unwrap();
                assert_eq!(&reply, b"MPA ID Rep Frame");
            }
            drop(promised);
            let mut next = accept();
            let asked = next.request();
            assert!(!asked.to_ascii_lowercase().contains("upgrade"), "{asked}");
            next.say(BODY);
        });
        let client = client(Some(Connect::InPlace));
        let mut connection = client.connect("127.0.0.1", address.port()).await.unwrap();
        let response = connection.get("/x", HeaderMap::new()).await;
        let response = response.unwrap_or_else(|error| panic!("{promise:?}: {error}"));
        assert_eq!(response.via, Via::Tcp(None), "{promise:?}");
        assert_eq!(response.body.collect(8).await.unwrap(), b"the body");
        serving.join().unwrap();
    }
}

#[tokio::test]
async fn a_kept_connection_that_ends_costs_no_connection_in_place() {
    let (address, serving) = serving(|accept| {
        let mut kept = accept();
        let asked = kept.request();
        assert!(!asked.to_ascii_lowercase().contains("upgrade"), "{asked}");
        kept.say("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n");
        kept.request();
        drop(kept);
        let mut next = accept();
        let asked = next.request();
        assert!(asked.to_ascii_lowercase().contains("upgrade: rdma"), "{asked}");
        next.say(BODY);
    });
    let client = client(Some(Connect::InPlace));
    let mut connection = client.connect("127.0.0.1", address.port()).await.unwrap();
    // Only a GET asks for it.
    connection.request(Method::HEAD, "/x", HeaderMap::new()).await.unwrap().body.collect(0).await.unwrap();
    let response = connection.get("/x", HeaderMap::new()).await.unwrap();
    assert_eq!(response.body.collect(8).await.unwrap(), b"the body");
    serving.join().unwrap();
}

/// The id of the offer in a request's head.
fn id(head: &str) -> TransferId {
    let field =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("rdma: ").map(str::to_owned));
    match Asked::parse(&field.unwrap().parse().unwrap()).unwrap() {
        Asked::Transfer(Offer { id: Some(id), .. }) => id,
        _ => panic!("no offer in {head}"),
    }
}
