//! The bodies that pass the layer, of whatever make those are that come and go.

use std::any::Any;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either};
use pin_project_lite::pin_project;

use super::linger::Unread;
use super::metrics::Metrics;
pub use crate::flow::BoxError;
use crate::flow::{Pace, in_bytes};

/// A response's body that the layer, or the file service, has made.
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// The body of every response that passes the layer: the service's own, or one in its place.
pub type LayerBody<B> = Either<Plain<B>, ResponseBody>;

/// The body of every request that passes the layer.
pub struct RequestBody {
    /// None where there is nothing in it: most requests have none, and it costs nothing then.
    body: Option<UnsyncBoxBody<Bytes, BoxError>>,
    /// How it is waited for, where that is bounded here.
    pace: Option<(Pace, Metrics)>,
    /// Whom to tell when it has been read.
    unread: Option<Unread>,
}

impl RequestBody {
    /// A body of any make.
    pub fn new<B>(body: B) -> Self
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let body = (!body.is_end_stream()).then(|| boxed(body));
        Self { body, pace: None, unread: None }
    }

    /// One that must come at this pace.
    pub(super) fn paced(self, pace: Pace, metrics: Metrics) -> Self {
        Self { pace: Some((pace, metrics)), ..self }
    }

    /// One that tells when it has been read.
    pub(super) fn telling(self, unread: Option<Unread>) -> Self {
        Self { unread, ..self }
    }
}

/// Less of a request's body came by TCP than must.
#[derive(Debug, thiserror::Error)]
#[error("the request's body came too slowly (--stall-timeout, --min-rate)")]
struct TooSlow;

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = Pin::new(&mut *body).poll_frame(cx);
        if let Some(unread) = &this.unread
            && (matches!(frame, Poll::Ready(None)) || frame.is_ready() && body.is_end_stream())
        {
            unread.tell(false);
        }
        let Some((pace, metrics)) = &mut this.pace else { return frame };
        match &frame {
            Poll::Pending if pace.poll_too_slow(cx).is_ready() => {
                metrics.limited("stall-timeout");
                return Poll::Ready(Some(Err(TooSlow.into())));
            }
            Poll::Ready(Some(Ok(frame))) => pace.moved(frame.data_ref().map_or(0, |data| data.len() as u64)),
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A body in a box; the very one where it is that already. It still knows its length, from which hyper makes the
/// `Content-Length` of a service that sets none.
pub(super) fn boxed<B>(body: B) -> ResponseBody
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let mut body = Some(body);
    if let Some(already) = (&mut body as &mut dyn Any).downcast_mut::<Option<ResponseBody>>()
        && let Some(already) = already.take()
    {
        return already;
    }
    match body {
        Some(inner) => Plain { inner }.boxed_unsync(),
        None => unreachable!("only the other kind was taken"),
    }
}

pin_project! {
    /// A body as it is, with its data as [`Bytes`].
    pub struct Plain<B> {
        #[pin]
        inner: B,
    }
}

impl<B> Plain<B> {
    pub(super) fn new(inner: B) -> Self {
        Self { inner }
    }
}

impl<B> Body for Plain<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        in_bytes(self.project().inner.poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
