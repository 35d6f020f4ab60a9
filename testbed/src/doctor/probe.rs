//! What the kernel says when asked to do what a lab needs. Nothing else is certain: settings that forbid it are many, and
//! more come with every distribution.
//!
//! A child makes the attempts and ends; what it made goes with it. It must be a child because a user namespace can only
//! be entered by a process of one thread, and it makes system calls only, because after a fork in a program of many
//! threads nothing else is safe.
#![expect(unsafe_code, reason = "fork, and an ioctl that nix does not wrap")]

use std::ffi::CStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Uid, fork, pipe, write};

pub use nix::errno::Errno;

/// What came of each thing that a lab needs; `None` where it was not tried because one before it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// A user namespace. Root needs none.
    pub user_namespace: Option<Result<(), Errno>>,
    /// To be root in it.
    pub id_map: Option<Result<(), Errno>>,
    /// The namespaces of a lab: mount, network, IPC, UTS and PID. Ubuntu's AppArmor lets a user namespace be made, and
    /// stops here.
    pub namespaces: Option<Result<(), Errno>>,
    /// A TAP device.
    pub tap: Option<Result<(), Errno>>,
    /// A packet socket.
    pub packet: Option<Result<(), Errno>>,
    /// A netem queueing discipline; ENOENT where the kernel has none.
    pub netem: Option<Result<(), Errno>>,
}

/// Attempts, as they go through the pipe: [`UNTRIED`], 0, or an errno.
const STEPS: usize = 6;
const UNTRIED: i32 = -1;

/// Tries everything, in a child. As root no user namespace is made.
pub fn attempt() -> io::Result<Attempts> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let plan = Prepared {
        root: uid.is_root(),
        uid_map: format!("0 {uid} 1").into_bytes(),
        gid_map: format!("0 {gid} 1").into_bytes(),
        netem: add_netem(),
    };
    let (mut reading, writing) = pipe().map(|(read, write)| (std::fs::File::from(read), write))?;
    // SAFETY: the child only makes system calls on memory that was prepared before, and leaves by _exit.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let _ = write(&writing, &plan.run());
            // SAFETY: always sound; unlike exit() it runs nothing of the parent's.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(writing);
            let mut bytes = [0; STEPS * 4];
            let read = reading.read_exact(&mut bytes);
            waitpid(child, None)?;
            read?;
            Ok(decode(&bytes))
        }
    }
}

struct Prepared {
    root: bool,
    uid_map: Vec<u8>,
    gid_map: Vec<u8>,
    netem: Vec<u8>,
}

impl Prepared {
    fn run(&self) -> [u8; STEPS * 4] {
        let mut results = [UNTRIED; STEPS];
        let mut step = |number: usize, result: nix::Result<()>| {
            results[number] = result.map_or_else(|errno| errno as i32, |()| 0);
            result.is_ok()
        };
        let entered = self.root
            || (step(0, unshare(CloneFlags::CLONE_NEWUSER))
                && step(
                    1,
                    put(c"/proc/self/setgroups", b"deny")
                        .and_then(|()| put(c"/proc/self/uid_map", &self.uid_map))
                        .and_then(|()| put(c"/proc/self/gid_map", &self.gid_map)),
                ));
        let all = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWPID;
        if entered && step(2, unshare(all)) {
            step(3, tap());
            step(4, packet());
            step(5, ask(&self.netem));
        }
        let mut bytes = [0; STEPS * 4];
        for (to, result) in bytes.chunks_exact_mut(4).zip(results) {
            to.copy_from_slice(&result.to_ne_bytes());
        }
        bytes
    }
}

fn decode(bytes: &[u8; STEPS * 4]) -> Attempts {
    let mut results =
        bytes.chunks_exact(4).map(|word| match i32::from_ne_bytes([word[0], word[1], word[2], word[3]]) {
            UNTRIED => None,
            0 => Some(Ok(())),
            errno => Some(Err(Errno::from_raw(errno))),
        });
    let mut next = || results.next().flatten();
    Attempts {
        user_namespace: next(),
        id_map: next(),
        namespaces: next(),
        tap: next(),
        packet: next(),
        netem: next(),
    }
}

fn put(path: &CStr, text: &[u8]) -> nix::Result<()> {
    let file =
        nix::fcntl::open(path, nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC, Mode::empty())?;
    write(file, text).map(drop)
}

nix::ioctl_write_ptr_bad!(
    /// Makes the descriptor of `/dev/net/tun` a device (Linux, tuntap.rst).
    set_iff,
    libc::TUNSETIFF,
    libc::ifreq
);

fn tap() -> nix::Result<()> {
    let file = nix::fcntl::open(
        c"/dev/net/tun",
        nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    // SAFETY: an ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: the descriptor is open and the request outlives the call.
    unsafe { set_iff(file.as_raw_fd(), &raw const request) }.map(drop)
}

fn packet() -> nix::Result<()> {
    socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).map(drop)
}

/// Sends a netlink request and reads its acknowledgement.
fn ask(request: &[u8]) -> nix::Result<()> {
    let socket: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    // The kernel answers before send() returns; this is for the case that it does not answer at all.
    setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // struct nlmsghdr is 16 bytes with the type at 4; NLMSG_ERROR (2) has the negated errno after it, 0 for success.
    if length < 20 || answer[4..6] != 2_u16.to_ne_bytes() {
        return Err(Errno::EBADMSG);
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(Errno::from_raw(error.wrapping_neg())),
    }
}

/// "Put a netem on the loopback interface", which does nothing but exist.
fn add_netem() -> Vec<u8> {
    const TCA_OPTIONS: u16 = 2;
    // struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter, each 32 bits.
    let options = [0_u32, 1_000, 0, 0, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    let header = TcHeader { index: 1, parent: TcHandle::ROOT, ..TcHeader::default() };
    let attributes = vec![
        TcAttribute::Kind("netem".to_owned()),
        TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options)),
    ];
    let mut netlink = NetlinkHeader::default();
    netlink.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let message = RouteNetlinkMessage::NewQueueDiscipline(TcMessage::from_parts(header, attributes));
    let mut message = NetlinkMessage::new(netlink, message.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_through_the_pipe_comes_out() {
        let mut bytes = [0; STEPS * 4];
        bytes[..4].copy_from_slice(&UNTRIED.to_ne_bytes());
        bytes[20..].copy_from_slice(&libc::ENOENT.to_ne_bytes());
        let attempts = decode(&bytes);
        assert_eq!(attempts.user_namespace, None);
        assert_eq!(attempts.tap, Some(Ok(())));
        assert_eq!(attempts.netem, Some(Err(Errno::ENOENT)));
    }

    #[test]
    fn every_attempt_is_made_or_one_before_it_failed() {
        let attempts = attempt().unwrap();
        if Uid::effective().is_root() {
            assert_eq!((attempts.user_namespace, attempts.id_map), (None, None));
            assert!(attempts.namespaces.is_some());
        } else {
            assert!(attempts.user_namespace.is_some());
        }
        if attempts.namespaces == Some(Ok(())) {
            assert!(attempts.tap.is_some() && attempts.packet.is_some());
            // The kernel understood the question: it is there, or it is not.
            assert!(matches!(attempts.netem, Some(Ok(()) | Err(Errno::ENOENT))), "{:?}", attempts.netem);
        }
    }
}
