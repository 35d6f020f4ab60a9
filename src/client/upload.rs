//! Sending a file: by RDMA where the server takes it so, else over TCP. Until the server has shown which, nothing of the body
//! is sent (`Expect: 100-continue`).

use std::fs::File;
use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, EXPECT, HeaderMap, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::{Notify, OwnedMutexGuard, oneshot};
use tokio::time::{sleep, timeout};

use super::connection::{Answer, HttpConnection, RequestBody};
use super::endpoint::{Endpoint, new_id};
use super::response::{Response, Via};
use super::route::Sealing;
use super::{ClientError, Options};
use crate::fabric::{Access, BoxFuture, FabricError, RemoteAddress};
use crate::flow::{BoxError, Feed, FilePart, FlowError, Link, Target, Unfold, expose, write};
use crate::header::{Advert, Mode, Offer, Outcome, RDMA, Reason, TransferId};
use crate::memory::{Buffers, Source, Strategy};
use crate::message::Message;
use crate::seal::Keys;

/// The pieces in which a file is read.
const PIECE: usize = 1 << 20;

/// How long a server may show nothing at all before it is taken for one that never asks for a body.
const SILENCE: Duration = Duration::from_secs(15);

/// A file to send. From here on a change of the file breaks the exchange.
#[derive(Clone, Debug)]
pub struct Upload(FilePart);

impl Upload {
    /// All of a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        FilePart::new(file, &metadata, 0, metadata.len()).map(Self)
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.0.length()
    }

    /// Its bytes as a body, read as they are wanted.
    fn body(&self) -> RequestBody {
        self.holding(Arc::default())
    }

    /// The same, which holds on to something until all is sent, or nobody sends it any more.
    fn holding(&self, held: Arc<()>) -> RequestBody {
        let body = self.0.clone().into_body(PIECE);
        body.map_frame(move |frame| {
            let _ = &held;
            frame
        })
        .boxed_unsync()
    }

    fn feed(&self, strategy: Strategy) -> Feed<RequestBody> {
        match strategy {
            Strategy::Sendfile => Feed::file(self.0.clone()),
            _ => Feed::body(self.body(), self.length()),
        }
    }

    fn sealed(&self, keys: Keys) -> Result<Feed<RequestBody>, ClientError> {
        let feed = Feed::sealed(self.body(), self.length(), keys);
        feed.ok_or_else(|| ClientError::Upload(io::ErrorKind::FileTooLarge.into()))
    }

    /// A body that is nothing until it is decided where the bytes go. One that is never decided breaks off.
    fn deferred(&self, decided: oneshot::Receiver<Decision>) -> RequestBody {
        enum State {
            Waiting(oneshot::Receiver<Decision>, RequestBody),
            Sending(RequestBody),
        }
        let step = |state| {
            let next = async move {
                let mut body = match state {
                    State::Waiting(decided, body) => match decided.await? {
                        Decision::ByTcp => body,
                        Decision::Nothing => return Ok(None),
                    },
                    State::Sending(body) => body,
                };
                loop {
                    match body.frame().await.transpose()?.map(http_body::Frame::into_data) {
                        None => return Ok(None),
                        Some(Ok(data)) => return Ok(Some((State::Sending(body), data))),
                        Some(Err(_)) => {}
                    }
                }
            };
            Box::pin(next) as BoxFuture<'static, Result<_, BoxError>>
        };
        Unfold::new(State::Waiting(decided, self.body()), None, step).boxed_unsync()
    }
}

/// What follows a request's head over TCP.
#[derive(Debug)]
pub(super) enum Decision {
    ByTcp,
    Nothing,
}

/// What is offered for an upload.
struct Offering {
    offer: Offer,
    id: TransferId,
    feed: Feed<RequestBody>,
    first: Option<Source>,
}

impl HttpConnection {
    /// Sends a file with POST or PUT. If the server gives up an RDMA transfer, a PUT is tried once more without an offer, and
    /// if it has closed a kept connection, once more on a new one; a POST is not, since nobody knows what it has done.
    pub async fn upload(
        &mut self,
        method: Method,
        target: &str,
        headers: HeaderMap,
        upload: &Upload,
    ) -> Result<Response, ClientError> {
        let request = self.head(method, target, headers)?;
        match self.send_file(request.clone(), upload).await {
            Err(error) if self.before.is_missed(request.method(), &error) => {
                self.again(&error).await?;
                self.send_file(request, upload).await
            }
            result => result,
        }
    }

    async fn send_file(&mut self, request: Request<()>, upload: &Upload) -> Result<Response, ClientError> {
        let mode = match self.client.options.mode {
            None => Some(Mode::ClientWrites),
            Some(mode @ (Mode::ClientWrites | Mode::ServerReads)) => Some(mode),
            Some(_) => None,
        };
        let Some(mode) = mode.filter(|_| upload.length() > 0) else {
            return self.upload_plainly(request, upload, None).await;
        };
        let Some((mut endpoint, route)) = self.routed(true).await else {
            return self.upload_plainly(request, upload, None).await;
        };
        let Some(fabric) = self.client.fabric.clone() else {
            return self.upload_plainly(request, upload, None).await;
        };
        let options = self.client.options.clone();
        let sealing = &mut self.sealing;
        let made = async {
            let memory = endpoint.memory(&*fabric, &options, &self.client.recorder)?;
            offering(upload, mode, &memory, &options, sealing).await
        };
        let mut offering = match made.await {
            Ok(offering) => offering,
            Err(ClientError::Fabric(error)) => {
                tracing::warn!(%error, "no RDMA on our side; going by TCP");
                self.fall_back(&Reason::FABRIC);
                drop(endpoint);
                return self.upload_plainly(request, upload, None).await;
            }
            Err(error) => return Err(error),
        };
        offering.offer.route = route;
        match self.upload_offering(request.clone(), upload, offering, endpoint).await {
            Err(ClientError::TransferFailed(reason)) if *request.method() == Method::PUT => {
                tracing::warn!(%reason, "the server gave up the RDMA transfer; sending again without RDMA");
                self.fall_back(&reason);
                self.upload_plainly(request, upload, Some(reason)).await
            }
            result => result,
        }
    }

    async fn upload_plainly(
        &mut self,
        mut request: Request<()>,
        upload: &Upload,
        reason: Option<Reason>,
    ) -> Result<Response, ClientError> {
        self.renew().await?;
        self.ready().await?;
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(upload.length()));
        let exchange = self.tell_request(&request);
        let limit = self.client.options.timeout;
        let held = Arc::new(());
        let unsent = Arc::downgrade(&held);
        let (head, incoming) = self.send(request.map(|()| upload.holding(held)), limit).await?;
        self.spent = unsent.strong_count() > 0;
        self.tell_response(exchange, &head);
        Ok(self.by_tcp(head, incoming, reason))
    }

    async fn upload_offering(
        &mut self,
        mut request: Request<()>,
        upload: &Upload,
        offering: Offering,
        mut endpoint: OwnedMutexGuard<Endpoint>,
    ) -> Result<Response, ClientError> {
        let Offering { offer, id, mut feed, first } = offering;
        self.ready().await?;
        request.headers_mut().insert(RDMA, offer.to_value());
        request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
        let exchange = self.tell_request(&request);
        let options = self.client.options.clone();
        let recorder = self.client.recorder.clone();
        let (decide, decided) = oneshot::channel();
        let mut decide = Some(decide);
        let mut request = request.map(|()| upload.deferred(decided));
        let wanted = Arc::new(Notify::new());
        let told = wanted.clone();
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                told.notify_one();
            }
        });
        let mut answer = std::pin::pin!(self.send(request, options.timeout));

        // First there must be an RDMA connection, or a sign that there will be none.
        let mut answered = None;
        if endpoint.link().is_none() {
            let connection = tokio::select! {
                biased;
                connection = endpoint.accept(id, options.crc, &recorder) => Some(connection?),
                result = &mut answer => { answered = Some(result); None }
                () = wanted.notified() => None,
                () = sleep(SILENCE) => None,
            };
            match connection {
                Some(connection) => endpoint.keep(offer.route, connection),
                None => by_tcp(&mut decide),
            }
        }
        // Then the bytes go over it, unless the server thinks better of it: then it closes it.
        let (mut whole, mut declined) = (false, false);
        if let Some(link) = endpoint.link() {
            let moving = transfer(link, &options, &offer, id, first, &mut feed);
            let moved = tokio::select! {
                biased;
                moved = moving => Some(moved),
                result = &mut answer => { answered = Some(result); None }
            };
            match moved {
                Some(Ok(())) => {
                    whole = true;
                    if let Some(decide) = decide.take() {
                        let _ = decide.send(Decision::Nothing);
                    }
                }
                Some(Err(FlowError::Declined)) => {
                    declined = true;
                    tokio::select! {
                        biased;
                        result = &mut answer => answered = Some(result),
                        () = wanted.notified() => by_tcp(&mut decide),
                    }
                }
                Some(Err(FlowError::Body(error))) => {
                    endpoint.discard();
                    return Err(ClientError::Upload(io::Error::other(error)));
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "the body did not go by RDMA");
                    endpoint.discard();
                    tokio::select! {
                        biased;
                        result = &mut answer => answered = Some(result),
                        () = wanted.notified() => by_tcp(&mut decide),
                    }
                }
                None => {}
            }
        }
        let answer = match answered {
            Some(answer) => answer,
            None => answer.await,
        };
        let (head, incoming) = answer?;
        // An answer before the end of the body is the last that this HTTP connection says. The request breaks off only when
        // that has been heard.
        self.spent = decide.is_some();
        // One that the body has gone by for nothing is kept: it is HTTP's.
        if !whole && !declined {
            endpoint.discard();
        }
        drop(endpoint);
        self.tell_response(exchange, &head);
        let mut response = self.conclude((head, incoming), &offer, whole).await?;
        response.body.hold_request(decide);
        Ok(response)
    }

    /// What the response says became of the body.
    async fn conclude(
        &mut self,
        (head, incoming): Answer,
        offer: &Offer,
        whole: bool,
    ) -> Result<Response, ClientError> {
        match Outcome::of(&head.headers)? {
            Some(Outcome::Done { mode, bytes, id })
                if whole && mode == offer.mode && Some(bytes) == offer.bytes && id == offer.id =>
            {
                let mut response = self.by_tcp(head, incoming, None);
                response.via = Via::Rdma(mode);
                Ok(response)
            }
            Some(Outcome::Fallback { reason }) => {
                self.learn(offer, &reason);
                Ok(self.by_tcp(head, incoming, Some(reason)))
            }
            Some(Outcome::Failed { reason }) => {
                // Its few bytes may be in the way of the next exchange; or the connection has ended.
                let _ = timeout(
                    self.client.options.connect_timeout,
                    self.by_tcp(head, incoming, None).body.skip(64 << 10),
                )
                .await;
                Err(ClientError::TransferFailed(reason))
            }
            None => {
                let reason = Reason::NOT_ANSWERED;
                self.fall_back(&reason);
                Ok(self.by_tcp(head, incoming, Some(reason)))
            }
            Some(_) => {
                let (answered, offer) = (head.headers.get(RDMA), offer.to_value());
                Err(ClientError::Protocol(format!("it answered {answered:?} to {offer:?}")))
            }
        }
    }
}

fn by_tcp(decide: &mut Option<oneshot::Sender<Decision>>) {
    if let Some(decide) = decide.take() {
        let _ = decide.send(Decision::ByTcp);
    }
}

/// An offer of a file; its route is yet to be filled in.
async fn offering(
    upload: &Upload,
    mode: Mode,
    memory: &Buffers,
    options: &Options,
    sealing: &mut Option<Sealing>,
) -> Result<Offering, ClientError> {
    let id = new_id()?;
    let (seal, mut feed) = match sealing.as_mut().and_then(|sealing| sealing.next(mode, id)) {
        Some((number, keys)) => (Some(number), upload.sealed(keys)?),
        None => (None, upload.feed(options.memory)),
    };
    let bytes = Some(feed.length());
    let mut first = None;
    let mut region = None;
    if mode == Mode::ServerReads {
        let load = feed.next(options.chunk).await;
        let load = load.map_err(|error| ClientError::Upload(io::Error::other(error)))?;
        let source = memory.source(load, Access::REMOTE_READ)?;
        let at = RemoteAddress { stag: source.region().stag(), to: source.region().base() };
        region = Some(Advert { at, maxlen: source.length() as u64 });
        first = Some(source);
    }
    let offer = Offer { mode, route: crate::header::Route::Client, region, bytes, id: Some(id), seal };
    Ok(Offering { offer, id, feed, first })
}

/// Moves the whole body.
async fn transfer(
    link: &Link,
    options: &Options,
    offer: &Offer,
    id: TransferId,
    first: Option<Source>,
    feed: &mut Feed<RequestBody>,
) -> Result<(), FlowError> {
    let limits = options.limits();
    if offer.mode == Mode::ServerReads {
        return expose(link, limits, id, first, feed, &mut 0).await;
    }
    let message = match timeout(limits.stall, link.channel.receive()).await {
        Ok(message) => message?,
        Err(_) => return pending().await,
    };
    match message {
        Message::Region { id: theirs, at, bytes }
            if theirs == id && bytes > 0 && at.to.checked_add(bytes - 1).is_some() =>
        {
            let target = Target { id, at, room: bytes };
            write(link, limits, target, feed, &mut 0).await
        }
        Message::Decline { id: theirs } if theirs == id => Err(FlowError::Declined),
        other => {
            Err(FlowError::Lost(FabricError::Protocol(format!("it sent {other:?} where a Region was due"))))
        }
    }
}
