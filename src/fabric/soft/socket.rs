//! What the kernel is told about a connection's socket.

use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;

/// Sets a socket up: segments leave at once, and a peer that has vanished is noticed within `peer_timeout`.
pub(super) fn prepare(stream: &TcpStream, peer_timeout: Duration) -> io::Result<()> {
    const PROBES: u32 = 4;
    stream.set_nodelay(true)?;
    let seconds = u32::try_from(peer_timeout.as_secs()).unwrap_or(u32::MAX);
    let interval = (seconds / (PROBES + 1)).clamp(1, 32767);
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &interval)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(stream, sockopt::TcpKeepCount, &PROBES)?;
    let milliseconds = u32::try_from(peer_timeout.as_millis()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::TcpUserTimeout, &milliseconds)?;
    Ok(())
}

/// The longest segment that the path takes now; it changes while a connection lives.
pub(super) fn emss(stream: &TcpStream) -> Option<usize> {
    let mss = nix::sys::socket::getsockopt(stream, sockopt::TcpMaxSeg).ok()?;
    usize::try_from(mss).ok()
}
