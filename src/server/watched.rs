//! The stream of an HTTP connection, which ends if its peer takes or sends too little.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::rooms::Room;
use crate::flow::Pace;

/// A stream with limits.
pub(super) struct Watched<S> {
    stream: S,
    room: Arc<Room>,
    /// For what is written.
    pace: Pace,
    /// For a request's head, from its first byte.
    head_timeout: Duration,
    head: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, room: Arc<Room>, pace: Pace, head_timeout: Duration) -> Self {
        Self { stream, room, pace, head_timeout, head: None }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    fn wrote(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &wrote {
            Poll::Ready(Ok(bytes)) => self.pace.moved(*bytes as u64),
            Poll::Pending if self.pace.poll_too_slow(cx).is_ready() => {
                self.room.limited("stall-timeout");
                return Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the peer takes too little")));
            }
            _ => {}
        }
        wrote
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if read.is_ready() {
            if buffer.filled().len() > before && this.room.came() {
                let deadline = Instant::now() + this.head_timeout;
                match &mut this.head {
                    Some(head) => head.as_mut().reset(deadline),
                    None => this.head = Some(Box::pin(tokio::time::sleep_until(deadline))),
                }
            }
        } else if this.room.is_in_head()
            && let Some(head) = &mut this.head
            && head.as_mut().poll(cx).is_ready()
        {
            this.room.limited("head-timeout");
            return Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the head takes too long")));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.room.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

pin_project! {
    /// A response's body, at whose end the connection has answered.
    pub(super) struct Answer<B> {
        #[pin]
        body: B,
        room: Arc<Room>,
    }

    impl<B> PinnedDrop for Answer<B> {
        fn drop(this: Pin<&mut Self>) {
            this.room.answered();
        }
    }
}

impl<B> Answer<B> {
    pub(super) fn new(body: B, room: Arc<Room>) -> Self {
        Self { body, room }
    }
}

impl<B: Body> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
