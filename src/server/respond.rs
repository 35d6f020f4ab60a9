//! What a response to an offer of a GET becomes: the checks of `docs/protocol.md`, section 2, in their order, then a
//! transfer, and the head that says what is done.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, VARY};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use tokio::sync::OwnedMutexGuard;

use super::HttpConnection;
use super::body::{BoxError, ResponseBody, boxed};
use super::connection::{Kept, Slot};
use super::download::Download;
use super::layer::{Shared, known_length};
use crate::events::Event;
use crate::flow::{Feed, FilePart, FlowError};
use crate::header::{Offer, Outcome, RDMA, Reason, Route};
use crate::memory::Strategy;
use crate::seal::{Keys, sealed_length};

/// A transfer that may be begun.
struct Admitted<'h> {
    /// Bytes of the body, and of what goes by RDMA: more where it is sealed.
    plain: u64,
    length: u64,
    http: &'h HttpConnection,
    keys: Option<Keys>,
}

impl Shared {
    /// Answers a request that made an offer for the response's body.
    pub(super) async fn answer<B>(
        self: Arc<Self>,
        offer: Offer,
        method: &Method,
        http: Option<HttpConnection>,
        response: Response<B>,
    ) -> Response<ResponseBody>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let Admitted { plain, length, http, keys } =
            match self.admit(&offer, method, http.as_ref(), &response) {
                Ok(admitted) => admitted,
                Err(reason) => return self.fall_back(response.map(boxed), reason),
            };
        let share = match self.reserve(http, length) {
            Ok(share) => share,
            Err(reason) => return self.fall_back(response.map(boxed), reason),
        };
        let (mut parts, body) = response.into_parts();
        let part = parts.extensions.remove::<FilePart>().filter(|part| part.length() == plain);
        // The service's own body stays with us, for a transfer that falls back.
        let (feed, unread) = match part {
            Some(part) if self.config.memory == Strategy::Sendfile && keys.is_none() => {
                (Feed::file(part), Some(body))
            }
            _ => (Feed::body(body, plain), None),
        };
        let mut download = Download::new(self.clone(), offer, feed, share);
        // Reading takes its time, and a connection could close meanwhile.
        if let Err(error) = download.begin().await {
            return Response::from_parts(parts, broken(error));
        }
        let mut slot = http.lock().await;
        let kept = match slot.take(&self, http, &offer).await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(peer = %http.peer(), %error, "no RDMA connection to the client");
                let body = download.into_body().map(boxed).or(unread.map(boxed));
                let whole = Response::from_parts(parts, body.unwrap_or_else(|| boxed(Empty::<Bytes>::new())));
                return self.fall_back(whole, self.connect_failure(&error));
            }
        };
        match keys {
            None => carry(download, http, offer, parts, kept, slot).await,
            Some(keys) => match download.sealed(keys) {
                Ok(download) => carry(download, http, offer, parts, kept, slot).await,
                Err(error) => Response::from_parts(parts, broken(error)),
            },
        }
    }
    /// What can be decided before anything is begun.
    fn admit<'h, B: Body>(
        &self,
        offer: &Offer,
        method: &Method,
        http: Option<&'h HttpConnection>,
        response: &Response<B>,
    ) -> Result<Admitted<'h>, Reason> {
        if method != Method::GET {
            return Err(Reason::METHOD);
        }
        if !matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Err(Reason::STATUS);
        }
        let length = known_length(response.headers(), response.body());
        match length {
            Some(0) => return Err(Reason::EMPTY),
            None if response.body().is_end_stream() => return Err(Reason::EMPTY),
            _ => {}
        }
        let plain = length.ok_or(Reason::UNKNOWN_LENGTH)?;
        let length = match offer.seal {
            Some(_) => sealed_length(plain).ok_or(Reason::TOO_LARGE)?,
            None => plain,
        };
        // A client without a name for the transfer can make no room, and one without room cannot either.
        if let Some(region) = offer.region
            && length > region.maxlen
            && (offer.id.is_none() || region.maxlen == 0)
        {
            return Err(Reason::TOO_LARGE);
        }
        let http = self.may_connect(http, offer)?;
        Ok(Admitted { plain, length, http, keys: http.keys(offer)? })
    }

    /// The HTTP connection, if the offer's RDMA connection may be made for it.
    pub(super) fn may_connect<'h>(
        &self,
        http: Option<&'h HttpConnection>,
        offer: &Offer,
    ) -> Result<&'h HttpConnection, Reason> {
        let Some(http) = http else {
            tracing::error!("the accept loop inserts no HttpConnection, so no address can be allowed");
            return Err(Reason::ADDRESS_NOT_ALLOWED);
        };
        if let Route::Server(address) = offer.route
            && !self.config.allows(http.peer().ip(), address)
        {
            tracing::warn!(peer = %http.peer(), %address, "RDMA address not allowed");
            return Err(Reason::ADDRESS_NOT_ALLOWED);
        }
        Ok(http)
    }

    /// A transfer's share of the budget; kept buffers have theirs already.
    pub(super) fn reserve(
        &self,
        http: &HttpConnection,
        length: u64,
    ) -> Result<Option<crate::memory::Share>, Reason> {
        if self.config.memory.keeps_buffers() {
            return Ok(None);
        }
        let share = self.budget.reserve(http.peer().ip(), length.min(self.config.window_bytes()));
        share.map(Some).map_err(|error| {
            tracing::warn!(peer = %http.peer(), %error, "no RDMA for this transfer");
            self.metrics.limited(error.setting());
            Reason::EXHAUSTED
        })
    }

    pub(super) fn fall_back(
        &self,
        response: Response<ResponseBody>,
        reason: Reason,
    ) -> Response<ResponseBody> {
        tracing::info!(%reason, "by TCP, although RDMA was asked for");
        self.recorder.record(Event::Fallback { reason: reason.to_string() });
        fallback(response, reason)
    }
}

/// Moves a body over a connection that is there, and gives the response that says so.
async fn carry<B>(
    download: Download<B>,
    http: &HttpConnection,
    offer: Offer,
    parts: Parts,
    kept: Kept,
    slot: OwnedMutexGuard<Slot>,
) -> Response<ResponseBody>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let length = download.length();
    if let Some(at_once) = download.fits() {
        return match download.run(at_once, kept, slot).await {
            Ok(()) => done(Response::from_parts(parts, ()), &offer, length),
            Err(error) => match error.reason() {
                Some(reason) => failed(reason, &error, Some(http)),
                None => Response::from_parts(parts, broken(error)),
            },
        };
    }
    match offer.id {
        Some(id) => {
            let head = Outcome::Under { mode: offer.mode, bytes: length, id };
            under(Response::from_parts(parts, download.into_stream(id, kept, slot)), &head)
        }
        // Checked by `admit`.
        None => Response::from_parts(parts, broken(FlowError::Body("a transfer without a name".into()))),
    }
}

/// The plain response, with the reason why it is plain.
pub(super) fn fallback(mut response: Response<ResponseBody>, reason: Reason) -> Response<ResponseBody> {
    say(response.headers_mut(), &Outcome::Fallback { reason });
    response
}

/// The response whose body is in the client's region already.
fn done(response: Response<()>, offer: &Offer, bytes: u64) -> Response<ResponseBody> {
    let mut response = response.map(|()| boxed(Empty::<Bytes>::new()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    say(headers, &Outcome::Done { mode: offer.mode, bytes, id: offer.id });
    response
}

/// The response whose body comes by RDMA while its own, which is empty, lasts.
fn under(mut response: Response<ResponseBody>, head: &Outcome) -> Response<ResponseBody> {
    let headers = response.headers_mut();
    // Whoever reads an end in good order knows that the transfer ended well.
    headers.remove(CONTENT_LENGTH);
    headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    say(headers, head);
    response
}

/// The response to a transfer that broke.
pub(super) fn failed(
    reason: Reason,
    error: &dyn std::fmt::Display,
    http: Option<&HttpConnection>,
) -> Response<ResponseBody> {
    let text = Bytes::from(format!("The RDMA transfer failed: {error}\n"));
    let length = HeaderValue::from(text.len());
    let mut response = Response::new(boxed(Full::new(text)));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    say(headers, &Outcome::Failed { reason });
    last_in_place(response, http)
}

/// Makes a response the last of a connection in place: a transfer broke on it, or was left undone.
pub(super) fn last_in_place(
    mut response: Response<ResponseBody>,
    http: Option<&HttpConnection>,
) -> Response<ResponseBody> {
    if http.is_some_and(HttpConnection::is_in_place) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A body that breaks off at once, as the inner service's did.
fn broken(error: FlowError) -> ResponseBody {
    Broken(Some(error.into())).boxed_unsync()
}

struct Broken(Option<BoxError>);

impl Body for Broken {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

pub(super) fn say(headers: &mut HeaderMap, outcome: &Outcome) {
    headers.insert(RDMA, outcome.to_value());
    headers.append(VARY, HeaderValue::from_static("RDMA"));
}
