//! The body of a POST or PUT that comes by RDMA: the inner service reads it as any other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::OwnedMutexGuard;
use tower::Service;

use super::HttpConnection;
use super::body::{BoxError, RequestBody, ResponseBody, boxed};
use super::connection::{Kept, Slot};
use super::download::Progress;
use super::layer::Shared;
use super::respond::{failed, last_in_place, say};
use crate::fabric::{Access, BoxFuture, RemoteAddress};
use crate::flow::{FlowError, Intake, Limits, Unfold};
use crate::header::{Mode, Offer, Outcome, Reason, TransferId};
use crate::memory::Share;
use crate::message::Message;
use crate::seal::Opener;

/// A body on its way here.
struct Upload {
    // Before the connection, which may be gone before its memory, and never after.
    coming: Option<Intake>,
    kept: Option<Kept>,
    slot: OwnedMutexGuard<Slot>,
    /// What opens it, if it is sealed.
    opener: Option<Opener>,
    progress: Progress,
    end: Arc<Mutex<End>>,
    _share: Option<Share>,
}

/// How a body's transfer ended, for whoever answers.
#[derive(Default)]
enum End {
    #[default]
    NotRead,
    Whole,
    Broken(Reason, String),
}

impl Upload {
    /// The next piece, as it comes, or as it opens, and how much of all that is to come has come.
    async fn piece(&mut self, kept: &Kept) -> Result<(Option<Bytes>, u64), FlowError> {
        loop {
            let Some(coming) = &mut self.coming else { return Ok((None, self.progress.length())) };
            let (piece, taken) = (coming.next(&kept.link).await?, coming.taken());
            let (Some(opener), Some(sealed)) = (&mut self.opener, &piece) else { return Ok((piece, taken)) };
            let opened = opener.push(sealed.clone())?;
            if taken == self.progress.length() {
                opener.end()?;
            }
            if !opened.is_empty() {
                return Ok((Some(opened), taken));
            }
        }
    }

    /// The next piece. The connection goes back to its place with the last one.
    async fn next(mut self: Box<Self>) -> Result<Option<(Box<Self>, Bytes)>, BoxError> {
        let Some(kept) = self.kept.take() else { return Ok(None) };
        let next = self.piece(&kept).await;
        self.kept = Some(kept);
        match next {
            Ok((piece, taken)) => {
                self.progress.moved = taken;
                if taken == self.progress.length() {
                    self.progress.end(None);
                    // The client's right to the region ends with the transfer, not with the body's reader.
                    self.coming = None;
                    *self.end.lock().unwrap_or_else(PoisonError::into_inner) = End::Whole;
                    if let Some(kept) = self.kept.take() {
                        self.slot.keep(kept);
                    }
                }
                Ok(piece.map(|piece| (self, piece)))
            }
            Err(error) => {
                self.progress.end(Some(&error));
                let reason = error.reason().unwrap_or(Reason::CONNECTION_LOST);
                *self.end.lock().unwrap_or_else(PoisonError::into_inner) =
                    End::Broken(reason, error.to_string());
                Err(error.into())
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // One that is not whole. What the client may still be writing to is left as it is where the response must come
        // over that same connection.
        if let Some(kept) = self.kept.take() {
            self.slot.give_up(kept, self.coming.take());
        }
    }
}

impl Shared {
    /// Serves a request whose body is offered by RDMA.
    pub(super) async fn take_body<S, ReqBody, ResBody>(
        self: Arc<Self>,
        offer: Offer,
        http: Option<HttpConnection>,
        request: Request<ReqBody>,
        inner: &mut S,
    ) -> Result<Response<ResponseBody>, S::Error>
    where
        S: Service<Request<RequestBody>, Response = Response<ResBody>>,
        ReqBody: Body + Send + 'static,
        ReqBody::Data: Send,
        ReqBody::Error: Into<BoxError>,
        ResBody: Body + Send + 'static,
        ResBody::Data: Send,
        ResBody::Error: Into<BoxError>,
    {
        let end = Arc::default();
        let (upload, id, bytes, plain) =
            match self.begin_upload(offer, http.as_ref(), request.method(), &end).await {
                Ok(begun) => begun,
                Err(reason) => {
                    // Without a connection the client knows that it is asked for the body when somebody reads it.
                    if let Some(http) = &http {
                        http.decline(offer.id).await;
                    }
                    let response = inner.call(self.by_tcp(request)).await?;
                    return Ok(self.fall_back(response.map(boxed), reason));
                }
            };
        let (mut parts, by_tcp) = request.into_parts();
        parts.headers.remove(EXPECT);
        parts.headers.remove(TRANSFER_ENCODING);
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(plain));
        let body = Unfold::new(upload, Some(plain), |upload: Box<Upload>| {
            Box::pin(upload.next()) as BoxFuture<'static, _>
        });
        let response = inner.call(Request::from_parts(parts, RequestBody::new(body))).await?.map(boxed);
        let end = std::mem::take(&mut *end.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(match end {
            End::Whole => {
                if finish(by_tcp, self.config.stall_timeout).await
                    && let Some(http) = &http
                {
                    http.unread().tell(false);
                }
                let mut response = response;
                say(response.headers_mut(), &Outcome::Done { mode: offer.mode, bytes, id: Some(id) });
                response
            }
            End::NotRead => last_in_place(self.fall_back(response, Reason::NOT_READ), http.as_ref()),
            End::Broken(reason, error) => failed(reason, &error, http.as_ref()),
        })
    }

    async fn begin_upload(
        self: &Arc<Self>,
        offer: Offer,
        http: Option<&HttpConnection>,
        method: &Method,
        end: &Arc<Mutex<End>>,
    ) -> Result<(Box<Upload>, TransferId, u64, u64), Reason> {
        let (Some(id), Some(bytes)) = (offer.id, offer.bytes) else { return Err(Reason::MALFORMED) };
        if !matches!(*method, Method::POST | Method::PUT) {
            return Err(Reason::METHOD);
        }
        if bytes == 0 {
            return Err(Reason::EMPTY);
        }
        let http = self.may_connect(http, &offer)?;
        let opener = match http.keys(&offer)? {
            Some(keys) => Some(Opener::new(keys, bytes).map_err(|_| Reason::MALFORMED)?),
            None => None,
        };
        let plain = opener.as_ref().map_or(bytes, Opener::length);
        let mut slot = http.lock().await;
        let share = self.reserve(http, bytes)?;
        let kept = slot.take(self, http, &offer).await.map_err(|error| {
            tracing::warn!(peer = %http.peer(), %error, "no RDMA connection to the client");
            self.connect_failure(&error)
        })?;
        let limits = match opener {
            Some(_) => self.config.limits().in_records(),
            None => self.config.limits(),
        };
        let coming = match offer.mode {
            Mode::ClientWrites => match self.show_ring(&kept, id, bytes, limits).await {
                Ok(ring) => ring,
                Err(reason) => {
                    // Nothing was begun: a connection in place can carry the next.
                    slot.leave(kept);
                    return Err(reason);
                }
            },
            _ => Intake::read(id, offer.region, bytes, limits),
        };
        let peer = kept.link.channel.peer_addr().to_string();
        let mut progress = Progress::new(self, &peer, bytes, &offer);
        progress.given_up = "the body was not read to its end";
        let (coming, kept, end) = (Some(coming), Some(kept), end.clone());
        let upload = Upload { coming, kept, slot, opener, progress, end, _share: share };
        Ok((Box::new(upload), id, bytes, plain))
    }

    /// Tells the client where it may write.
    async fn show_ring(
        &self,
        kept: &Kept,
        id: TransferId,
        bytes: u64,
        limits: Limits,
    ) -> Result<Intake, Reason> {
        let failed = |error: FlowError| {
            tracing::warn!(%error, "no RDMA for this transfer");
            error.reason().unwrap_or(Reason::FABRIC)
        };
        let room = bytes.min((limits.chunk as u64).saturating_mul(limits.window as u64));
        let length = usize::try_from(room).unwrap_or(usize::MAX);
        let sink = kept.link.buffers.sink(length, Access::REMOTE_WRITE).map_err(FlowError::Register);
        let sink = sink.map_err(failed)?;
        let at = RemoteAddress { stag: sink.region().stag(), to: sink.region().base() };
        let shown = kept.link.channel.send(Message::Region { id, at, bytes: room });
        match tokio::time::timeout(limits.stall, shown).await {
            Ok(result) => result.map_err(FlowError::Lost).map_err(failed)?,
            Err(_) => return Err(Reason::TIMED_OUT),
        }
        Ok(Intake::written(id, sink, bytes, limits))
    }
}

/// Reads the empty body that stands on TCP for the one that came, so that the HTTP connection can go on. What is not empty
/// is left where it is, and the HTTP connection ends after the response. Whether it was empty.
async fn finish<B: Body>(body: B, limit: Duration) -> bool {
    let mut body = std::pin::pin!(body);
    // An error shows when the response is sent.
    matches!(tokio::time::timeout(limit, body.frame()).await, Ok(None))
}
