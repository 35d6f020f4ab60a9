//! Starts a command in a host: its network namespace, its name, a session of its own, perhaps a terminal.
#![expect(unsafe_code, reason = "what happens between fork and exec has no safe interface")]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{Pid, pipe2, sethostname, setsid};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

use super::frame::Stream;
use super::lookup::NotExecuted;
use super::protocol::{Exec, WindowSize};

/// A command that runs.
pub(super) struct Spawned {
    pub(super) child: Child,
    /// Also its process group and its session.
    pub(super) pid: Pid,
    pub(super) stdin: AsyncFd<OwnedFd>,
    pub(super) outputs: Vec<(Stream, AsyncFd<OwnedFd>)>,
    /// The terminal's controlling end, if it has one.
    pub(super) terminal: Option<OwnedFd>,
}

/// Starts `program` in the network namespace `netns`.
pub(super) fn spawn(
    exec: &Exec,
    program: &Path,
    cwd: &Path,
    path: &OsStr,
    netns: BorrowedFd<'_>,
) -> Result<Spawned, NotExecuted> {
    start(exec, program, cwd, path, netns).map_err(|error| {
        // The program is there and may be executed, so "not found" can only mean what is to interpret it.
        let hint = if error.kind() == io::ErrorKind::NotFound { " (its interpreter)" } else { "" };
        NotExecuted::not_executable(format!(
            "cannot start `{}` in host `{}`: {error}{hint}",
            program.display(),
            exec.host
        ))
    })
}

fn start(
    exec: &Exec,
    program: &Path,
    cwd: &Path,
    path: &OsStr,
    netns: BorrowedFd<'_>,
) -> io::Result<Spawned> {
    let mut command = Command::new(program);
    if exec.clean_env {
        command.env_clear();
    }
    command.args(exec.argv.iter().skip(1)).env("PATH", path).envs(&exec.env).current_dir(cwd);
    if let Some(name) = exec.argv.first() {
        command.arg0(name);
    }
    let (stdin, outputs, terminal) = match exec.terminal {
        Some(size) => {
            let (control, user) = terminal(size)?;
            command.stdin(Stdio::from(user.try_clone()?));
            command.stdout(Stdio::from(user.try_clone()?));
            command.stderr(Stdio::from(user));
            let output = vec![(Stream::Stdout, control.try_clone()?)];
            (control.try_clone()?, output, Some(control))
        }
        None => {
            let (stdin, ours) = pipe()?;
            let (stdout, theirs) = pipe()?;
            let (stderr, theirs_too) = pipe()?;
            command.stdin(Stdio::from(stdin)).stdout(Stdio::from(theirs)).stderr(Stdio::from(theirs_too));
            (ours, vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)], None)
        }
    };
    let stdin = asynchronous(stdin)?;
    let outputs: Vec<_> =
        outputs.into_iter().map(|(stream, fd)| Ok((stream, asynchronous(fd)?))).collect::<io::Result<_>>()?;

    let netns = netns.try_clone_to_owned()?;
    let host = exec.host.clone();
    let has_terminal = terminal.is_some();
    // SAFETY: between fork and exec `enter` makes system calls only: no allocation, no lock, so it is safe however many
    // threads this process has.
    unsafe { command.pre_exec(move || enter(netns.as_fd(), &host, has_terminal)) };
    let child = command.spawn()?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("it has no process id"))?;
    Ok(Spawned { child, pid, stdin, outputs, terminal })
}

/// What the new process does before it becomes the program. Signals that whoever called `testbed up` had ignored, as
/// `nohup` and a script's `&` do, would else be ignored by every command, and Ctrl-C would be lost on it.
fn enter(netns: BorrowedFd<'_>, host: &str, has_terminal: bool) -> io::Result<()> {
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
    sethostname(host)?;
    // /sys/class/net shows the namespace of whoever mounted it. Where that is refused (parts of /sys are hidden in a
    // container) the program sees the machine's interfaces there, which few care for.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(Some(c"sysfs"), c"/sys", Some(c"sysfs"), flags, None::<&std::ffi::CStr>);
    setsid()?;
    for one in Signal::iterator() {
        // SAFETY: the default action runs none of our code. (It cannot be set, and is not needed, for KILL and STOP.)
        let _ = unsafe { signal(one, SigHandler::SigDfl) };
    }
    if has_terminal {
        // SAFETY: descriptor 0 is the terminal that `start` passed; it stays open until the program runs.
        rustix::process::ioctl_tiocsctty(unsafe { BorrowedFd::borrow_raw(0) })?;
    }
    Ok(())
}

/// The end that reads and the end that writes. Both block: only ours will be told not to.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

fn asynchronous(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // SAFETY: an `OwnedFd` is open and is one descriptor for as long as it lives, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// A pseudoterminal: the end that controls and the end that the program uses.
fn terminal(size: WindowSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let control = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&control)?;
    unlockpt(&control)?;
    let name = ptsname_r(&control)?;
    let flags = OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let user = {
        use std::os::unix::fs::OpenOptionsExt;
        File::options().read(true).write(true).custom_flags(flags.bits()).open(name)?
    };
    let control = control.as_fd().try_clone_to_owned()?;
    resize(control.as_fd(), size)?;
    Ok((control, user.into()))
}

/// Gives a terminal another size; its foreground process group hears of it.
pub(super) fn resize(terminal: BorrowedFd<'_>, size: WindowSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}
