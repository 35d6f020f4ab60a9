//! What a response becomes: the checks of `docs/protocol.md`, section 2, in their order, then a transfer, then the head that
//! says what was done.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};

use super::HttpConnection;
use super::connection::connect_failure;
use super::layer::{BoxError, ResponseBody, Shared, known_length};
use super::transfer::{Transfer, TransferError, Unread};
use crate::events::Event;
use crate::header::{Mode, Offer, Outcome, RDMA, Reason};

/// A body as the layer's responses have it. It still knows its length, from which hyper makes the `Content-Length` of a
/// service that sets none.
pub(super) fn boxed<B>(body: B) -> ResponseBody
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    Unread::whole(body).boxed_unsync()
}

impl Shared {
    /// Answers a request that made an offer.
    pub(super) async fn answer<B>(
        &self,
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
        let admitted = self.admit(&offer, method, http.as_ref(), &response);
        let (length, http) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => return self.fall_back(response.map(boxed), reason),
        };
        let window = (self.config.chunk as u64).saturating_mul(self.config.window as u64);
        let _share = match self.budget.reserve(http.peer().ip(), length.min(window)) {
            Ok(share) => share,
            Err(error) => {
                tracing::warn!(peer = %http.peer(), %error, "no RDMA for this transfer");
                return self.fall_back(response.map(boxed), Reason::EXHAUSTED);
            }
        };
        let transfer = Transfer {
            offer,
            length,
            config: &self.config,
            registration: &*self.registration,
            recorder: &self.recorder,
        };
        let (parts, body) = response.into_parts();
        let begun = match transfer.begin(body).await {
            Ok(begun) => begun,
            Err(error) => return Response::from_parts(parts, broken(error)),
        };
        let mut slot = http.lock().await;
        let kept = match slot.take(&*self.fabric, &offer, &self.config, &self.recorder).await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(address = %offer.address, %error, "no RDMA connection to the client");
                let whole = Response::from_parts(parts, boxed(begun.into_body()));
                return self.fall_back(whole, connect_failure(&error));
            }
        };
        match transfer.run(&kept, begun).await {
            Ok(()) => {
                slot.keep(kept);
                done(Response::from_parts(parts, ()), &offer, length)
            }
            Err(error) => match error.reason() {
                Some(reason) => failed(reason, &error),
                None => Response::from_parts(parts, broken(error)),
            },
        }
    }

    /// What can be decided before anything is begun: the body's length and the connection, or why not.
    fn admit<'h, B: Body>(
        &self,
        offer: &Offer,
        method: &Method,
        http: Option<&'h HttpConnection>,
        response: &Response<B>,
    ) -> Result<(u64, &'h HttpConnection), Reason> {
        if offer.mode != Mode::ServerWrites {
            return Err(Reason::UNSUPPORTED_MODE);
        }
        if method != Method::GET {
            return Err(Reason::METHOD);
        }
        if response.status() != StatusCode::OK {
            return Err(Reason::STATUS);
        }
        let length = known_length(response.headers(), response.body());
        match length {
            Some(0) => return Err(Reason::EMPTY),
            None if response.body().is_end_stream() => return Err(Reason::EMPTY),
            _ => {}
        }
        let length = length.ok_or(Reason::UNKNOWN_LENGTH)?;
        if length > offer.maxlen {
            return Err(Reason::TOO_LARGE);
        }
        let Some(http) = http else {
            tracing::error!("the accept loop inserts no HttpConnection, so no address can be allowed");
            return Err(Reason::ADDRESS_NOT_ALLOWED);
        };
        if !self.config.allows(http.peer().ip(), offer.address) {
            tracing::warn!(peer = %http.peer(), address = %offer.address, "RDMA address not allowed");
            return Err(Reason::ADDRESS_NOT_ALLOWED);
        }
        Ok((length, http))
    }

    fn fall_back(&self, response: Response<ResponseBody>, reason: Reason) -> Response<ResponseBody> {
        self.recorder.record(Event::Fallback { reason: reason.to_string() });
        fallback(response, reason)
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

/// The response to a transfer that broke.
fn failed(reason: Reason, error: &TransferError) -> Response<ResponseBody> {
    let text = Bytes::from(format!("The RDMA transfer failed: {error}\n"));
    let length = HeaderValue::from(text.len());
    let mut response = Response::new(boxed(Full::new(text)));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    say(headers, &Outcome::Failed { reason });
    response
}

/// A body that breaks off at once, as the inner service's did.
fn broken(error: TransferError) -> ResponseBody {
    Broken(Some(error.into())).boxed_unsync()
}

struct Broken(Option<BoxError>);

impl Body for Broken {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

fn say(headers: &mut HeaderMap, outcome: &Outcome) {
    headers.insert(RDMA, outcome.to_value());
    headers.append(VARY, HeaderValue::from_static("RDMA"));
}
