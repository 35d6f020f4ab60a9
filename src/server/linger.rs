//! An end that does not take the last answer with it: a server that has answered a request before it read all of its body
//! closes while the client still sends, and what the system then says (a reset) can outrun the answer. So it says that it
//! has ended, and reads on for a while, as RFC 9112, section 9.6, has it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// For how long such a client is listened to; a well-behaved one ends as soon as it has the answer.
const LONGEST: Duration = Duration::from_secs(30);

/// And for how long one that says nothing: it has sent all, and keeps an idle connection.
const SILENCE: Duration = Duration::from_secs(2);

/// How much of it is read.
const MOST: usize = 256 << 20;

/// Whether there may be more of the last request: it had a body, and nobody has come to its end.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    /// Tells so of a request that begins, and of one that has been read.
    pub(super) fn tell(&self, unread: bool) {
        self.0.store(unread, Ordering::Relaxed);
    }
}

/// An upgrade that a request asked for and did not get. Where the connection then ends HTTP lets go of the stream instead of
/// shutting it down, so that is done here.
#[derive(Clone, Default)]
pub(super) struct Refused(Arc<Mutex<Option<OnUpgrade>>>);

impl Refused {
    /// Of a request that was answered so; `asked` is what it would have got.
    pub(super) fn answered(&self, status: StatusCode, asked: Option<OnUpgrade>) {
        // After a 101 the stream is whose the upgrade is.
        if asked.is_some() || status == StatusCode::SWITCHING_PROTOCOLS {
            let refused = asked.filter(|_| status != StatusCode::SWITCHING_PROTOCOLS);
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        }
    }

    /// Ends the stream, if it was let go of.
    pub(super) async fn end(self) {
        let refused = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(refused) = refused else { return };
        // At once there, or an error: the connection has ended.
        if let Ok(stream) = refused.await {
            // If it cannot be shut down it has ended already.
            let _ = TokioIo::new(stream).shutdown().await;
        }
    }
}

/// A stream that ends so.
pub(super) struct Linger<T> {
    stream: T,
    unread: Unread,
    /// Whether the peer has ended, or the connection has.
    over: bool,
    lingering: Option<Lingering>,
}

/// How long and how much is still to be read.
struct Lingering {
    silence: Pin<Box<Sleep>>,
    until: Instant,
    left: usize,
}

impl Lingering {
    fn begin() -> Self {
        let now = Instant::now();
        Self { silence: Box::pin(sleep_until(now + SILENCE)), until: now + LONGEST, left: MOST }
    }

    /// Counts what was read.
    fn took(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
        self.silence.as_mut().reset(self.until.min(Instant::now() + SILENCE));
    }
}

impl<T> Linger<T> {
    pub(super) fn new(stream: T, unread: Unread) -> Self {
        Self { stream, unread, over: false, lingering: None }
    }

    pub(super) fn into_inner(self) -> T {
        self.stream
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Linger<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.over |= read.is_err() || (buffer.filled().len() == before && buffer.remaining() > 0);
        Poll::Ready(read)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            if !self.unread.0.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let mut lingering = self.lingering.take().unwrap_or_else(Lingering::begin);
        let mut memory = [0; 16 << 10];
        while !self.over {
            let mut unwanted = ReadBuf::new(&mut memory);
            match self.as_mut().poll_read(context, &mut unwanted) {
                Poll::Ready(_) => lingering.took(unwanted.filled().len()),
                Poll::Pending if lingering.silence.as_mut().poll(context).is_ready() => lingering.left = 0,
                Poll::Pending => {
                    self.lingering = Some(lingering);
                    return Poll::Pending;
                }
            }
            self.over |= lingering.left == 0 || Instant::now() >= lingering.until;
        }
        self.lingering = Some(lingering);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn pair(had: bool) -> (Linger<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (server, client) = duplex(64);
        let unread = Unread::default();
        unread.tell(had);
        (Linger::new(server, unread), client)
    }

    #[tokio::test]
    async fn what_the_client_still_sends_is_read_until_it_ends() {
        let (mut server, mut client) = pair(true);
        let ending = tokio::spawn(async move {
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            server
        });
        // More than there is room for, before the answer is looked at.
        client.write_all(&[7; 10_000]).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        assert!(!ending.is_finished());
        drop(client);
        ending.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_listened_to_for_ever() {
        let (mut server, _silent) = pair(true);
        let begun = Instant::now();
        server.shutdown().await.unwrap();
        assert_eq!(begun.elapsed(), SILENCE);
        // Once is enough.
        server.shutdown().await.unwrap();
        assert_eq!(begun.elapsed(), SILENCE);

        let (mut server, mut tireless) = pair(true);
        let sending = async {
            while tireless.write_all(b"x").await.is_ok() {
                tokio::time::sleep(SILENCE / 2).await;
            }
        };
        let begun = Instant::now();
        tokio::select! {
            ended = server.shutdown() => ended.unwrap(),
            () = sending => unreachable!("it is read as long as it is listened to"),
        }
        assert_eq!(begun.elapsed(), LONGEST);
    }

    #[tokio::test]
    async fn who_has_sent_all_is_not_waited_for() {
        let (mut server, mut client) = pair(false);
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 9]).await.unwrap(), 0);
        let (mut server, client) = pair(true);
        drop(client);
        assert_eq!(server.read(&mut [0; 9]).await.unwrap(), 0);
        server.shutdown().await.unwrap();
    }
}
