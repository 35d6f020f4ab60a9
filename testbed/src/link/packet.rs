//! An AF_PACKET socket on one end of a veth pair: what a TAP device does, for who may not open `/dev/net/tun`.
//!
//! Frames are received through a ring that is shared with the kernel, since an ordinary user's socket buffers hold but a
//! few super-frames. Source: Linux `Documentation/networking/packet_mmap.rst`, `include/uapi/linux/if_packet.h`.
#![expect(unsafe_code, reason = "packet socket options and the ring that is shared with the kernel")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::port::{Port, Receive, Transmit};
use super::vnet::{HEADER_LEN, MAX_RECORD};

/// Bytes of a block of the ring, which holds whole frames.
const BLOCK: usize = 1 << 20;
/// Blocks of the ring. The memory is real from the start.
const BLOCKS: usize = 64;
/// What precedes a record in its frame: the kernel's header and address, and alignment.
const OVERHEAD: usize = 128;

/// Opens a socket on `interface`, which the calling thread's network namespace must have and which must be up, for frames
/// of at most `largest` bytes (super-frames always have room where `offload` is set).
pub fn open(interface: &str, largest: usize, offload: bool) -> io::Result<Port> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without a protocol nothing is received until it is bound.
    let socket = Arc::new(socket(AddressFamily::Packet, SockType::Raw, flags, None)?);
    set_option(&socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as libc::c_int))?;
    set_option(&socket, libc::PACKET_VNET_HDR, &1)?;
    set_option(&socket, libc::PACKET_IGNORE_OUTGOING, &1)?;
    // The delay and the queue are the relay's; the interface's own would come on top.
    set_option(&socket, libc::PACKET_QDISC_BYPASS, &1)?;

    let record = if offload { MAX_RECORD } else { (HEADER_LEN + largest).min(MAX_RECORD) };
    let ring = Ring::map(&socket, record + OVERHEAD)?;
    bind(&socket, interface)?;
    let receiver = Receiver { ring, socket: Arc::clone(&socket), missed: 0 };
    Ok(Port { receive: Box::new(receiver), transmit: Box::new(Sender(socket)) })
}

fn set_option<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes at `value`, which is a plain value of that size.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, std::ptr::from_ref(value).cast(), len)
    })
}

fn bind(socket: &OwnedFd, interface: &str) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: a sockaddr_ll is plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as libc::c_int;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes at `address`, a sockaddr_ll.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })
}

fn check(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The ring: blocks of frames, each of which belongs to the kernel or to us, as its first word says.
struct Ring {
    memory: NonNull<u8>,
    frame_size: usize,
    frames_per_block: usize,
    next: usize,
}

// SAFETY: the mapping belongs to this value alone; it may be used from any one thread.
unsafe impl Send for Ring {}

impl Ring {
    fn map(socket: &OwnedFd, frame: usize) -> io::Result<Self> {
        const TPACKET_ALIGNMENT: usize = 16;
        let frame_size = frame.next_multiple_of(TPACKET_ALIGNMENT);
        let frames_per_block = BLOCK / frame_size;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK as libc::c_uint,
            tp_block_nr: BLOCKS as libc::c_uint,
            tp_frame_size: frame_size as libc::c_uint,
            tp_frame_nr: (BLOCKS * frames_per_block) as libc::c_uint,
        };
        set_option(socket, libc::PACKET_RX_RING, &request)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BLOCK * BLOCKS,
                protection,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory, frame_size, frames_per_block, next: 0 })
    }

    /// Copies the next frame's record into `record` and gives the frame back. Returns the record's length and the
    /// frame's status; `None` if the next frame is still the kernel's.
    fn take(&mut self, record: &mut [u8]) -> Option<(usize, u32)> {
        let at =
            self.next / self.frames_per_block * BLOCK + self.next % self.frames_per_block * self.frame_size;
        // SAFETY: `next` is less than the number of frames, so the whole frame is inside the mapping.
        let frame = unsafe { self.memory.add(at) };
        // SAFETY: the status is the first word of the frame, which is aligned to 16 bytes; the kernel writes it
        // concurrently, hence the atomic.
        let status = unsafe { AtomicU32::from_ptr(frame.cast().as_ptr()) };
        let now = status.load(Ordering::Acquire);
        if now & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: the frame is ours until its status is written back, and begins with a tpacket2_hdr.
        let header = unsafe { frame.cast::<libc::tpacket2_hdr>().as_ref() };
        // The virtio-net header lies directly before the frame's bytes.
        let start = usize::from(header.tp_mac).checked_sub(HEADER_LEN);
        let len = HEADER_LEN + header.tp_snaplen as usize;
        let len = match start {
            // A frame that was cut off is damaged; it counts as not there.
            Some(start) if start + len <= self.frame_size && header.tp_snaplen == header.tp_len => {
                let len = len.min(record.len());
                // SAFETY: `start + len` is within the frame, which the kernel does not touch while it is ours.
                unsafe { frame.add(start).copy_to_nonoverlapping(NonNull::from(&mut record[0]), len) };
                len
            }
            _ => 0,
        };
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % (self.frames_per_block * BLOCKS);
        Some((len, now))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and nothing refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), BLOCK * BLOCKS) };
    }
}

struct Receiver {
    ring: Ring,
    socket: Arc<OwnedFd>,
    missed: u64,
}

impl Receiver {
    /// Frames that found the ring full since the last call.
    fn read_missed(&self) -> io::Result<u64> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        let (fd, value) = (self.socket.as_raw_fd(), (&raw mut stats).cast());
        // SAFETY: the kernel writes at most `len` bytes at `stats`, which has that size.
        check(unsafe {
            libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, value, &raw mut len)
        })?;
        Ok(u64::from(stats.tp_drops))
    }
}

impl Receive for Receiver {
    fn receive(&mut self, record: &mut [u8]) -> io::Result<Option<usize>> {
        while let Some((len, status)) = self.ring.take(record) {
            if status & libc::TP_STATUS_LOSING != 0 {
                self.missed += self.read_missed()?;
            }
            if len > 0 {
                return Ok(Some(len));
            }
            self.missed += 1;
        }
        Ok(None)
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }
}

struct Sender(Arc<OwnedFd>);

impl Transmit for Sender {
    fn transmit(&mut self, record: &[u8]) -> io::Result<()> {
        nix::unistd::write(&self.0, record).map(drop).map_err(Into::into)
    }
}
