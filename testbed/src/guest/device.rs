//! A character device as a stream of bytes: the guest's end of the line.
//!
//! tokio's own pipes take a short read for an empty pipe. Of a device that need not be so: a virtio port returns one of its
//! buffers at a time, and does not tell again of those that wait. So this reads until it is told that there is no more.
#![expect(unsafe_code, reason = "tokio wants the promise that a descriptor stays what it is")]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A device that was opened with `O_NONBLOCK`.
pub(super) struct Device(AsyncFd<File>);

impl Device {
    /// Must be called within a runtime.
    pub(super) fn new(file: File) -> io::Result<Self> {
        // SAFETY: a `File` is open and is one descriptor for as long as it lives, and the `AsyncFd` owns it.
        Ok(Self(unsafe { AsyncFd::register(file) }?))
    }
}

impl AsyncRead for Device {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            if let Ok(read) = ready.try_io(|file| file.get_ref().read(buf.initialize_unfilled())) {
                return Poll::Ready(read.map(|bytes| buf.advance(bytes)));
            }
        }
    }
}

impl AsyncWrite for Device {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(written) = ready.try_io(|file| file.get_ref().write(bytes)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// Like a virtio port, a socket of datagrams hands out one of its buffers at a time.
    #[tokio::test]
    async fn what_waits_is_read_though_a_read_was_short() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        for n in 0..10 {
            theirs.send(&[n; 100]).unwrap();
        }
        let file = File::from(std::os::fd::OwnedFd::from(ours));
        let mut device = Device::new(file).unwrap();
        let mut buffer = [0; 4096];
        for n in 0..10 {
            assert_eq!(device.read(&mut buffer).await.unwrap(), 100);
            assert_eq!(buffer[0], n);
        }
    }
}
