//! A crowd of clients at once: some ask for bodies plainly, some by RDMA in every mode and way of connecting, and some vanish
//! at points that are drawn: before a request, within one, or between two pieces of a body. All that comes is compared byte
//! by byte with what was to come. The figure `crowd` and the test of that name have it in common.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use rdma_http::client::{Client, ClientError, Connect, HttpConnection, Options, Response, Upload, Via};
use rdma_http::events::Recorder;
use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::header::Mode;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Bodies that are served, of lengths that are drawn: most are short, some take a few turns of a small region.
const BODIES: usize = 24;
/// The longest.
const LONGEST: usize = 300_000;
/// The region that every other client offers: longer bodies go round and round in it.
const SMALL_REGION: u64 = 40_000;
/// When a client vanishes in the middle of a request, at the latest.
const VANISH_WITHIN: Duration = Duration::from_millis(40);

/// What there is to be served, and sent.
pub(crate) struct Bodies {
    root: PathBuf,
    outside: PathBuf,
    served: Vec<Vec<u8>>,
}

impl Bodies {
    /// Makes files in the server's `root`, and the same `outside` of it, to be sent from there.
    pub(crate) fn make(root: &Path, outside: &Path, seed: u64) -> Result<Self, Error> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut served = Vec::new();
        for number in 0..BODIES {
            let longest = if number % 4 == 0 { LONGEST } else { 20_000 };
            let mut bytes = vec![0; random.usize(1..=longest)];
            random.fill(&mut bytes);
            std::fs::write(root.join(number.to_string()), &bytes)?;
            std::fs::write(outside.join(number.to_string()), &bytes)?;
            served.push(bytes);
        }
        Ok(Self { root: root.to_owned(), outside: outside.to_owned(), served })
    }
}

/// What came of it all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Requests that were served to their end, by what the bodies came.
    pub(crate) by_tcp: u64,
    pub(crate) by_rdma: u64,
    /// Times that a client was gone in the middle.
    pub(crate) vanished: u64,
    /// Bodies of the wrong length, or with a wrong byte.
    pub(crate) wrong: u64,
    /// Requests of clients that stayed, and got no answer.
    pub(crate) failed: u64,
}

impl Tally {
    pub(crate) fn served(&self) -> u64 {
        self.by_tcp + self.by_rdma
    }

    fn add(&mut self, other: Self) {
        let Self { by_tcp, by_rdma, vanished, wrong, failed } = other;
        self.by_tcp += by_tcp;
        self.by_rdma += by_rdma;
        self.vanished += vanished;
        self.wrong += wrong;
        self.failed += failed;
    }
}

/// How a client is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Rdma,
    Vanishing,
}

/// Where a client vanishes.
#[derive(Clone, Copy)]
enum Point {
    /// It has connected.
    Connected,
    /// It waits for the response, or for more of the body, or sends one.
    Within(Duration),
    /// It has had so many pieces of the body.
    Pieces(usize),
}

/// `clients` at once, each of which makes `requests`. The last one that fails says why.
pub(crate) async fn run(
    server: SocketAddr,
    bodies: Arc<Bodies>,
    (clients, requests): (usize, usize),
    seed: u64,
) -> Result<(Tally, Option<String>), Error> {
    let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..clients {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        let kind = [Kind::Plain, Kind::Rdma, Kind::Vanishing][number % 3];
        let rdma = kind == Kind::Rdma || kind == Kind::Vanishing && random.bool();
        let connect = [Connect::Server, Connect::Client, Connect::InPlace][random.usize(..3)];
        let maxlen = if random.bool() { SMALL_REGION } else { LONGEST as u64 };
        let mode = [None, None, Some(Mode::ClientReads), Some(Mode::ClientReads), Some(Mode::ServerReads)]
            [random.usize(..5)];
        let options = Options { connect, maxlen, mode, ..Options::default() };
        let fabric = rdma.then(|| fabric.clone() as _);
        let client = Client::new(fabric, options, Recorder::default());
        // One request in so many sends a body.
        let sends = if mode == Some(Mode::ServerReads) { 2 } else { 8 };
        let one = One { client, kind, server, name: (number, 0), sends, bodies: bodies.clone(), random };
        tasks.spawn(one.ask(requests));
    }
    let (mut all, mut why) = (Tally::default(), None);
    while let Some(one) = tasks.join_next().await {
        let (tally, failure) = one?;
        all.add(tally);
        why = failure.or(why);
    }
    Ok((all, why))
}

struct One {
    client: Client,
    kind: Kind,
    server: SocketAddr,
    /// No other client sends files of these names: nor does this one a second time, since what it has left half sent may
    /// be there later than what it sent next.
    name: (usize, usize),
    sends: usize,
    bodies: Arc<Bodies>,
    random: fastrand::Rng,
}

impl One {
    async fn ask(mut self, requests: usize) -> (Tally, Option<String>) {
        let (mut tally, mut why) = (Tally::default(), None);
        let mut connection = None;
        for _ in 0..requests {
            let point = (self.kind == Kind::Vanishing).then(|| self.point());
            match self.request(&mut connection, point).await {
                Ok(Some(Via::Rdma(_))) => tally.by_rdma += 1,
                Ok(Some(Via::Tcp(_))) => tally.by_tcp += 1,
                Ok(None) => tally.vanished += 1,
                Err(Failure::Wrong(what)) => {
                    tally.wrong += 1;
                    why = Some(what);
                }
                Err(Failure::Client(error)) => {
                    tally.failed += 1;
                    why = Some(error.to_string());
                    connection = None;
                }
            }
        }
        if let Some(connection) = connection {
            connection.close().await;
        }
        (tally, why)
    }

    fn point(&mut self) -> Point {
        match self.random.u8(..6) {
            0 => Point::Connected,
            1 | 2 => Point::Pieces(self.random.usize(..4)),
            _ => {
                let within = u64::try_from(VANISH_WITHIN.as_micros()).unwrap_or(u64::MAX);
                Point::Within(Duration::from_micros(self.random.u64(..within)))
            }
        }
    }

    /// One request to its end: how the body went. `None` if the client vanished, and its connection with it.
    async fn request(
        &mut self,
        kept: &mut Option<HttpConnection>,
        point: Option<Point>,
    ) -> Result<Option<Via>, Failure> {
        let number = self.random.usize(..BODIES);
        let upload = self.random.usize(..self.sends) == 0;
        self.name.1 += 1;
        let via = {
            let connection = match kept {
                Some(connection) => connection,
                None => kept.insert(self.client.connect("127.0.0.1", self.server.port()).await?),
            };
            let exchange = async {
                match upload {
                    true => put(connection, &self.bodies, number, self.name).await.map(Some),
                    false => get(connection, &self.bodies, number, point).await,
                }
            };
            match point {
                Some(Point::Connected) => None,
                Some(Point::Within(time)) => {
                    tokio::time::timeout(time, exchange).await.unwrap_or(Ok(None))?
                }
                _ => exchange.await?,
            }
        };
        if via.is_none() {
            // Nothing is closed in good order: it is as if the process were gone.
            *kept = None;
        }
        Ok(via)
    }
}

/// A body to its end, or to the piece after which the client vanishes.
async fn get(
    connection: &mut HttpConnection,
    bodies: &Bodies,
    number: usize,
    point: Option<Point>,
) -> Result<Option<Via>, Failure> {
    let wanted = &bodies.served[number];
    let Response { head, via, mut body } = connection.get(&format!("/{number}"), HeaderMap::new()).await?;
    let wrong = |at: usize| {
        let (length, status) = (wanted.len(), head.status);
        Failure::Wrong(format!(
            "{status} by {via:?}: another byte than byte {at} of {length} of body {number}"
        ))
    };
    let (mut received, mut pieces) = (0, 0);
    loop {
        if let Some(Point::Pieces(last)) = point
            && pieces == last
        {
            return Ok(None);
        }
        let Some(piece) = body.next().await? else { break };
        if wanted.get(received..received + piece.len()) != Some(&piece[..]) {
            return Err(wrong(received));
        }
        received += piece.len();
        pieces += 1;
    }
    if received == wanted.len() { Ok(Some(via)) } else { Err(wrong(received)) }
}

/// Sends a body, and asks for it.
async fn put(
    connection: &mut HttpConnection,
    bodies: &Bodies,
    number: usize,
    (client, count): (usize, usize),
) -> Result<Via, Failure> {
    let upload = Upload::open(&bodies.outside.join(number.to_string()))
        .map_err(|error| Failure::Wrong(error.to_string()))?;
    let name = format!("sent-{client}-{count}");
    let target = format!("/{name}");
    let mut response = connection.upload(Method::PUT, &target, HeaderMap::new(), &upload).await?;
    while response.body.next().await?.is_some() {}
    let status = response.head.status;
    if !status.is_success() {
        return Err(Failure::Wrong(format!("{status} to a PUT")));
    }
    let there = connection.get(&target, HeaderMap::new()).await?.body.collect(LONGEST).await?;
    // It would only be in the way.
    let _ = std::fs::remove_file(bodies.root.join(name));
    match there == bodies.served[number] {
        true => Ok(response.via),
        false => Err(Failure::Wrong(format!("body {number} is another one where it was sent to"))),
    }
}

/// Why a request has not come to a good end.
enum Failure {
    /// The body is not what it should be.
    Wrong(String),
    /// There is none.
    Client(ClientError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}
