//! HTTP's part of the connection: a stream of bytes, as TCP's was.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::carrier::Carrier;
use super::first::Unsent;

/// A stream of bytes over Sends.
pub struct Stream {
    carrier: Arc<Carrier>,
    /// What is read and not yet handed out.
    piece: Bytes,
    /// What is written, but not sent.
    unsent: Option<Unsent>,
    /// Who reads before that: nothing comes before a request is there that it answers.
    early: Option<Waker>,
    shut: bool,
}

impl Stream {
    pub(super) fn new(carrier: Arc<Carrier>) -> Self {
        Self { carrier, piece: Bytes::new(), unsent: None, early: None, shut: false }
    }

    /// The same, with `head` as the first that is read from it.
    pub(crate) fn beginning_with(self, head: Bytes) -> Self {
        Self { piece: head, ..self }
    }

    /// The same, without the first head that is written to it.
    pub(crate) fn without_first_head(self) -> Self {
        Self { unsent: Some(Unsent::default()), ..self }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unsent.is_some() {
            self.early = Some(context.waker().clone());
            return Poll::Pending;
        }
        if self.piece.is_empty() {
            self.piece = ready!(self.carrier.poll_http(context))?;
        }
        let length = self.piece.len().min(buffer.remaining());
        buffer.put_slice(&self.piece[..length]);
        self.piece.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if let Some(unsent) = &mut self.unsent {
            let length = unsent.take(bytes);
            if unsent.is_over() {
                self.unsent = None;
                self.early.take().into_iter().for_each(Waker::wake);
            }
            return Poll::Ready(Ok(length));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.carrier.poll_send_http(context, bytes)
    }

    /// What is sent is posted, and what is posted goes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whoever has ended waits for nothing but the connection's end.
        if !self.shut && !self.carrier.has_peer_ended() {
            ready!(self.carrier.poll_send_http(context, &[]))?;
        }
        self.shut = true;
        Poll::Ready(Ok(()))
    }
}
