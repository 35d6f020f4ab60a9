//! What the relay needs of a device: records (a virtio-net header and a frame) in and out, without blocking.

use std::io;
use std::os::fd::BorrowedFd;

/// Where frames come from.
pub trait Receive: Send {
    /// Reads one record into `record`, which has room for the longest; `None` if there is none now.
    fn receive(&mut self, record: &mut [u8]) -> io::Result<Option<usize>>;

    /// Readable when [`receive`](Self::receive) would return a record.
    fn readiness(&self) -> BorrowedFd<'_>;

    /// From now on the host may send super-frames, or may not. Where that is not the device's to say, nothing is done.
    fn set_offload(&mut self, offload: bool) -> io::Result<()> {
        let _ = offload;
        Ok(())
    }

    /// Frames that the host sent and that were lost before they could be received, since the last call.
    fn missed(&mut self) -> u64 {
        0
    }
}

/// Where frames go.
pub trait Transmit: Send {
    /// Hands one record to the host. An error is a frame that the host did not take.
    fn transmit(&mut self, record: &[u8]) -> io::Result<()>;
}

/// The two sides of a device, which two threads use.
pub struct Port {
    /// Frames that the host sent.
    pub receive: Box<dyn Receive>,
    /// Frames for the host.
    pub transmit: Box<dyn Transmit>,
}
