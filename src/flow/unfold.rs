//! A body made by a future for each of its pieces.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::BoxError;
use crate::fabric::BoxFuture;

/// What a step gives: the state for the next one and a piece; `None` at the end.
type Stepped<S> = Result<Option<(S, Bytes)>, BoxError>;

/// A body whose pieces come from `step`, which is given the state and hands it on.
pub struct Unfold<S, F> {
    state: Option<S>,
    step: F,
    running: Option<BoxFuture<'static, Stepped<S>>>,
    left: Option<u64>,
}

impl<S, F> Unfold<S, F>
where
    F: FnMut(S) -> BoxFuture<'static, Stepped<S>>,
{
    /// A body of `length` bytes, where that is known.
    pub fn new(state: S, length: Option<u64>, step: F) -> Self {
        Self { state: Some(state), step, running: None, left: length }
    }
}

impl<S: Unpin, F> Body for Unfold<S, F>
where
    F: FnMut(S) -> BoxFuture<'static, Stepped<S>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Some(state) = this.state.take() {
            this.running = Some((this.step)(state));
        }
        let Some(running) = &mut this.running else { return Poll::Ready(None) };
        let stepped = ready!(running.as_mut().poll(cx));
        this.running = None;
        Poll::Ready(match stepped {
            Ok(Some((state, bytes))) => {
                this.state = Some(state);
                this.left = this.left.map(|left| left.saturating_sub(bytes.len() as u64));
                Some(Ok(Frame::data(bytes)))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.state.is_none() && self.running.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
