//! The near end of the line to a guest, as bytes that come. Its end is held back until the guest's end is known and
//! written down, so that whoever finds a connection broken can be told why.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Reads from `from`; at its end, or once it fails, waits for `until` before it says so.
pub(super) struct Line<R, F> {
    from: R,
    ended: bool,
    until: Option<Pin<Box<F>>>,
}

impl<R, F> Line<R, F> {
    pub(super) fn new(from: R, until: F) -> Self {
        Self { from, ended: false, until: Some(Box::pin(until)) }
    }
}

impl<R: AsyncRead + Unpin, F: Future<Output = ()>> AsyncRead for Line<R, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ended {
            let before = buf.filled().len();
            match ready!(Pin::new(&mut self.from).poll_read(cx, buf)) {
                Ok(()) if buf.filled().len() > before => return Poll::Ready(Ok(())),
                // A line that fails is one whose other end is gone.
                Ok(()) | Err(_) => self.ended = true,
            }
        }
        if let Some(until) = &mut self.until {
            ready!(until.as_mut().poll(cx));
            self.until = None;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn the_end_waits_and_what_comes_before_does_not() {
        let (known, wait) = tokio::sync::oneshot::channel::<()>();
        let until = async move { wait.await.unwrap_or_default() };
        let mut line = Line::new(&b"bytes"[..], until);
        let mut buffer = [0; 5];
        line.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"bytes");
        let end = tokio::spawn(async move { line.read(&mut [0]).await });
        tokio::task::yield_now().await;
        assert!(!end.is_finished());
        known.send(()).unwrap();
        assert_eq!(end.await.unwrap().unwrap(), 0);
    }
}
