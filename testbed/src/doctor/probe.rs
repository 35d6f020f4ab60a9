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
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork, pipe, write};

pub use nix::errno::Errno;

use crate::agent::namespaces::is_privileged;
use crate::link::netem;
use crate::topology::Impairment;

/// What came of each thing that a lab needs; `None` where it was not tried because one before it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// A user namespace. Whoever has the capabilities needs none, unless what they promise is refused.
    pub user_namespace: Option<Result<(), Errno>>,
    /// To be root in it.
    pub id_map: Option<Result<(), Errno>>,
    /// The namespaces of a lab: mount, network, IPC, UTS and PID. Ubuntu's AppArmor lets a user namespace be made, and
    /// stops here.
    pub namespaces: Option<Result<(), Errno>>,
    /// A /proc of its own, in its PID namespace. Containers that hide parts of /proc get none.
    pub proc: Option<Result<(), Errno>>,
    /// A TAP device.
    pub tap: Option<Result<(), Errno>>,
    /// A packet socket.
    pub packet: Option<Result<(), Errno>>,
    /// A netem queueing discipline; ENOENT where the kernel has none.
    pub netem: Option<Result<(), Errno>>,
    /// To trace a child, as UML does.
    pub ptrace: Option<Result<(), Errno>>,
    /// To filter one's own system calls, as UML does where it can.
    pub seccomp: Option<Result<(), Errno>>,
}

impl Attempts {
    /// Whether there can be labs on this machine's kernel at all.
    pub fn allow_labs(&self) -> bool {
        let worked = |attempt| attempt == Some(Ok(()));
        worked(self.namespaces) && worked(self.proc) && (worked(self.tap) || worked(self.packet))
    }
}

/// Attempts, as they go through the pipe: [`UNTRIED`], 0, or an errno.
const STEPS: usize = 9;
const UNTRIED: i32 = -1;

/// Tries everything, in a child, in the way in which an agent enters its namespaces.
pub fn attempt() -> io::Result<Attempts> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let plan = Prepared {
        privileged: is_privileged(),
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
    privileged: bool,
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
        step(7, ptrace());
        step(8, in_child(seccomp));
        let all = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWPID;
        let direct = if self.privileged { unshare(all) } else { Err(Errno::EPERM) };
        let entered = match direct {
            // What capabilities promise may be refused all the same, and a user namespace still work.
            Err(Errno::EPERM | Errno::EACCES) => {
                step(0, unshare(CloneFlags::CLONE_NEWUSER))
                    && step(
                        1,
                        put(c"/proc/self/setgroups", b"deny")
                            .and_then(|()| put(c"/proc/self/uid_map", &self.uid_map))
                            .and_then(|()| put(c"/proc/self/gid_map", &self.gid_map)),
                    )
                    && step(2, unshare(all))
            }
            direct => step(2, direct),
        };
        if entered {
            step(3, in_child(proc));
            step(4, tap());
            step(5, packet());
            step(6, ask(&self.netem));
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
        proc: next(),
        tap: next(),
        packet: next(),
        netem: next(),
        ptrace: next(),
        seccomp: next(),
    }
}

fn put(path: &CStr, text: &[u8]) -> nix::Result<()> {
    let file =
        nix::fcntl::open(path, nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC, Mode::empty())?;
    write(file, text).map(drop)
}

/// Does something in a child of its own, and returns what came of it.
fn in_child(work: fn() -> nix::Result<()>) -> nix::Result<()> {
    // SAFETY: as in `attempt`: the child makes system calls only, and leaves by _exit.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = work().map_or_else(|errno| errno as i32, |()| 0);
            // SAFETY: as above.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            // Linux's error numbers all fit into an exit status.
            WaitStatus::Exited(_, code) => Err(Errno::from_raw(code)),
            _ => Err(Errno::EFAULT),
        },
    }
}

/// Mounts a /proc for the PID namespace whose first process this is.
fn proc() -> nix::Result<()> {
    const NONE: Option<&CStr> = None;
    mount(NONE, c"/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(c"proc"), c"/proc", Some(c"proc"), flags, NONE)
}

/// Has a child ask to be traced, and stop.
fn ptrace() -> nix::Result<()> {
    // SAFETY: as in `attempt`: the child makes system calls only, and leaves by _exit.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let none = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: PTRACE_TRACEME uses none of its arguments.
            let traced = Errno::result(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, none, none) });
            let code = traced.and_then(|_| raise(Signal::SIGSTOP)).map_or_else(|errno| errno as i32, |()| 0);
            // SAFETY: as above.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Stopped(..) => {
                kill(child, Signal::SIGKILL)?;
                waitpid(child, None).map(drop)
            }
            WaitStatus::Exited(_, code) if code != 0 => Err(Errno::from_raw(code)),
            _ => Err(Errno::EFAULT),
        },
    }
}

/// A filter that lets everything through.
fn seccomp() -> nix::Result<()> {
    // SAFETY: prctl(2) with numbers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let code = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut filter = libc::sock_filter { code, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let program = libc::sock_fprog { len: 1, filter: &raw mut filter };
    // SAFETY: the program and its one instruction outlive the call.
    let set = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(&program))
    };
    Errno::result(set).map(drop)
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
    let netem = netem::message(1, &Impairment::default(), 65_536, 0, false);
    let mut netlink = NetlinkHeader::default();
    netlink.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let message = RouteNetlinkMessage::NewQueueDiscipline(netem);
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
        bytes[24..28].copy_from_slice(&libc::ENOENT.to_ne_bytes());
        let attempts = decode(&bytes);
        assert_eq!(attempts.user_namespace, None);
        assert_eq!(attempts.tap, Some(Ok(())));
        assert_eq!(attempts.netem, Some(Err(Errno::ENOENT)));
    }

    #[test]
    fn every_attempt_is_made_or_one_before_it_failed() {
        let attempts = attempt().unwrap();
        assert!(attempts.user_namespace.is_some() || attempts.namespaces.is_some());
        assert!(attempts.ptrace.is_some() && attempts.seccomp.is_some());
        if attempts.namespaces == Some(Ok(())) {
            assert!(attempts.proc.is_some() && attempts.tap.is_some() && attempts.packet.is_some());
            // The kernel understood the question: it is there, or it is not.
            assert!(matches!(attempts.netem, Some(Ok(()) | Err(Errno::ENOENT))), "{:?}", attempts.netem);
        }
    }
}
