//! A TAP device held by file descriptor: it is there for as long as the descriptor is open.
//!
//! Source: Linux `Documentation/networking/tuntap.rst` and `include/uapi/linux/if_tun.h`.
#![expect(unsafe_code, reason = "the TUN ioctls have no safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use nix::libc;

use super::port::{Port, Receive, Transmit};
use super::vnet;

const DEVICE: &str = "/dev/net/tun";

/// An open TAP device, with virtio-net headers.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

/// Whether this process may open `/dev/net/tun`; else why not.
pub fn available() -> io::Result<()> {
    open().map(drop)
}

fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)
}

impl Tap {
    /// Creates the device `name` in the calling thread's network namespace. With `offload` its host leaves checksums and
    /// the cutting into segments to the other end, so that a frame is up to 64 KiB.
    pub fn create(name: &str, offload: bool) -> io::Result<Self> {
        let file = open()?;
        let fd = file.as_raw_fd();

        // SAFETY: an ifreq is plain data, for which all zeroes is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.is_empty() || name.len() >= request.ifr_name.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface's name has 1 to 15 bytes"));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
        check(unsafe { libc::ioctl(fd, libc::TUNSETIFF, &raw mut request) })?;

        let header_len = vnet::HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const header_len) })?;

        set_offload(&file, offload)?;
        Ok(Self { file })
    }

    /// Its two sides.
    pub fn into_port(self) -> Port {
        let file = Arc::new(self.file);
        Port { receive: Box::new(Side(Arc::clone(&file))), transmit: Box::new(Side(file)) }
    }
}

fn set_offload(file: &File, offload: bool) -> io::Result<()> {
    const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let set = |flags: libc::c_uint| {
        // SAFETY: TUNSETOFFLOAD takes its flags as the argument itself.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
    };
    if !offload {
        return set(0);
    }
    // Kernels before 6.2 do not know UDP segmentation and refuse the whole call.
    set(TCP | UDP).or_else(|_| set(TCP))
}

fn check(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

struct Side(Arc<File>);

impl Receive for Side {
    fn receive(&mut self, record: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match io::Read::read(&mut &*self.0, record) {
                Ok(len) => return Ok(Some(len)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn set_offload(&mut self, offload: bool) -> io::Result<()> {
        set_offload(&self.0, offload)
    }
}

impl Transmit for Side {
    fn transmit(&mut self, record: &[u8]) -> io::Result<()> {
        io::Write::write(&mut &*self.0, record).map(drop)
    }
}
