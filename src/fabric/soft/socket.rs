//! What a connection asks of its socket, and how tokio's TCP does it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::libc;
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::iwarp::memory::FileRange;

/// The send buffer of a connection between two ends on one machine (the kernel makes it twice as large). Such a path has
/// no length to be filled, and what is sent far ahead of the receiver leaves the processor's caches before it is looked
/// at; with this much both sides always have something to do. Between machines TCP sizes its buffers itself.
const SEND_BUFFER_ON_ONE_MACHINE: usize = 192 << 10;

/// An ordered stream of bytes. `Pending` always means that the task is woken when it is worth trying again.
pub(super) trait Socket: Send + 'static {
    /// Sets it up: segments leave at once, a peer that has vanished is noticed within `peer_timeout`, and no more is sent
    /// ahead than the path needs.
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()>;

    /// Our address.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The peer's address.
    fn peer_addr(&self) -> io::Result<SocketAddr>;

    /// The longest segment that the path takes now; it changes while a connection lives.
    fn emss(&self) -> Option<usize>;

    /// Reads into the buffers, one after the other. 0 is the end of the stream.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Writes the pieces, one after the other, as far as they go. `more` follows at once.
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
        more: bool,
    ) -> Poll<io::Result<usize>>;

    /// Sends a part of a file, as far as it goes. 0: the file is shorter than that.
    fn poll_send_file(&mut self, context: &mut Context<'_>, range: &FileRange) -> Poll<io::Result<usize>>;

    /// Sends without waiting, as far as there is room.
    fn try_send(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Ends our direction of the stream.
    fn shut_down(&mut self);
}

impl Socket for TcpStream {
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()> {
        const PROBES: u32 = 4;
        self.set_nodelay(true)?;
        let seconds = u32::try_from(peer_timeout.as_secs()).unwrap_or(u32::MAX);
        let interval = (seconds / (PROBES + 1)).clamp(1, 32767);
        setsockopt(self, sockopt::KeepAlive, &true)?;
        setsockopt(self, sockopt::TcpKeepIdle, &interval)?;
        setsockopt(self, sockopt::TcpKeepInterval, &interval)?;
        setsockopt(self, sockopt::TcpKeepCount, &PROBES)?;
        let milliseconds = u32::try_from(peer_timeout.as_millis()).unwrap_or(u32::MAX);
        setsockopt(self, sockopt::TcpUserTimeout, &milliseconds)?;
        if TcpStream::local_addr(self)?.ip() == TcpStream::peer_addr(self)?.ip() {
            setsockopt(self, sockopt::SndBuf, &SEND_BUFFER_ON_ONE_MACHINE)?;
        }
        Ok(())
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpStream::local_addr(self)
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        TcpStream::peer_addr(self)
    }

    fn emss(&self) -> Option<usize> {
        let mss = getsockopt(self, sockopt::TcpMaxSeg).ok()?;
        usize::try_from(mss).ok()
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_read_ready(context))?;
            match self.try_read_vectored(buffers) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
        more: bool,
    ) -> Poll<io::Result<usize>> {
        let flags = if more { libc::MSG_NOSIGNAL | libc::MSG_MORE } else { libc::MSG_NOSIGNAL };
        loop {
            ready!(self.poll_write_ready(context))?;
            let send = || SockRef::from(&*self).send_vectored_with_flags(pieces, flags);
            match self.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_send_file(&mut self, context: &mut Context<'_>, range: &FileRange) -> Poll<io::Result<usize>> {
        let at = i64::try_from(range.offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        loop {
            ready!(self.poll_write_ready(context))?;
            let mut at = at;
            let send =
                || sendfile64(&*self, &*range.file, Some(&mut at), range.length).map_err(io::Error::from);
            match self.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn try_send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A socket's writability is only known once it was asked for; the system call itself knows.
        SockRef::from(&*self).send_with_flags(bytes, libc::MSG_NOSIGNAL)
    }

    fn shut_down(&mut self) {
        // The socket may be dead already; the reading side tells.
        let _ = SockRef::from(&*self).shutdown(Shutdown::Write);
    }
}
