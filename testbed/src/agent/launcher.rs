//! The verb `agent`: what `testbed up` starts. It is given three descriptors: standard input is a socket to whoever
//! started it, on which it says once how it went; standard output is the lab's lock, held already; standard error is the
//! log.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;

use bytes::BytesMut;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, setsid};

use super::frame::Frame;
use super::namespaces::{self, Side};
use super::protocol::{Blame, Response};
use super::runtime::LabDir;
use super::server::{self, Start};
use super::{init, mounts};
use crate::topology::Plan;

/// Descriptors that a lab may want: three for each link and host, and those of the commands.
const WANTED_FILES: u64 = 1 << 20;

/// The process id of the agent in its PID namespace, where PID 1 forks it first of all.
pub(super) const AGENT_PID: i32 = 2;

/// Runs the agent for the lab in `directory` on a kernel of this kind: `host`, or that of a guest (`uml`, `qemu`). The process must have no thread but this one.
pub fn main(directory: &Path, kernel: &str) -> ExitCode {
    close_inherited();
    let (caller, lock) = match descriptors() {
        Ok(descriptors) => descriptors,
        Err(error) => {
            eprintln!("testbed agent: {error}; it is started by `testbed up`, not by hand");
            return ExitCode::from(2);
        }
    };
    let mut caller = Some(caller);
    match start(directory, kernel, &mut caller, lock) {
        Ok(code) => code,
        Err((message, blame)) => {
            eprintln!("testbed agent: {message}");
            if let Some(caller) = caller {
                report(caller, message, blame);
            }
            ExitCode::FAILURE
        }
    }
}

/// Why a lab cannot be had, and whose fault that is.
pub(crate) type Failed = (String, Blame);

/// This machine refused what was tried.
pub(crate) fn machine<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> Failed {
    move |error| (format!("cannot {what}: {}", error.into()), Blame::Machine)
}

/// Returns in three processes: the launcher at once, PID 1 and the agent when the lab is gone.
fn start(
    directory: &Path,
    kernel: &str,
    caller: &mut Option<UnixStream>,
    lock: File,
) -> Result<ExitCode, Failed> {
    let lab = LabDir::at(directory).map_err(|error| (error.to_string(), Blame::Usage))?;
    let plan = read_plan(&lab.plan())?;
    // Out of the terminal's reach: Ctrl-C is for the commands in the foreground, not for the lab.
    setsid().map_err(machine("leave the terminal"))?;
    raise_limits();
    let privileged = namespaces::is_privileged();
    namespaces::enter().map_err(|refusal| (refusal.to_string(), Blame::Machine))?;
    if let Side::Parent(_) = namespaces::fork_single_threaded().map_err(machine("fork"))? {
        return Ok(ExitCode::SUCCESS);
    }

    // PID 1 from here on. /proc is still the machine's, so it has our process id as the machine counts.
    let pid = outer_pid().map_err(machine("read /proc/self"))?;
    lock.set_len(0)
        .and_then(|()| lock.write_all_at(format!("{pid}\n").as_bytes(), 0))
        .map_err(machine("write to the lock"))?;
    init::block_signals().map_err(machine("block signals"))?;
    if let Side::Parent(_) = namespaces::fork_single_threaded().map_err(machine("fork"))? {
        // The caller must see the end of the agent as the end of the socket.
        *caller = None;
        return Ok(init::run(Pid::from_raw(AGENT_PID)));
    }

    init::unblock_signals().map_err(machine("unblock signals"))?;
    let pid = outer_pid().map_err(machine("read /proc/self"))?;
    mounts::isolate(privileged).map_err(|refusal| (refusal.to_string(), Blame::Machine))?;
    if let Err(error) = mounts::bind_hosts(&plan, &lab.hosts()) {
        eprintln!("testbed agent: the hosts' names are not in /etc/hosts: {error}");
    }
    // Only for people: each host's commands get the host's name.
    let _ = nix::unistd::sethostname(lab.name().as_str());
    let listener = bind(&lab).map_err(machine("listen on agent.sock"))?;
    match caller.take() {
        Some(caller) => {
            Ok(server::run(Start { lab, kernel: kernel.to_owned(), plan, pid, listener, caller, lock }))
        }
        None => Ok(ExitCode::FAILURE),
    }
}

/// Closes what whoever called `testbed up` had open: a lab would hold their locks and pipes for as long as it lives.
pub(crate) fn close_inherited() {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // Nothing in this process has opened anything yet, so all beyond the standard three is inherited (or the directory
    // that was just read, and is closed again).
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        let _ = nix::unistd::close(fd);
    }
}

/// Takes the three descriptors away from their standard places, so that nothing that runs here gets them.
pub(crate) fn descriptors() -> io::Result<(UnixStream, File)> {
    let caller = io::stdin().as_fd().try_clone_to_owned()?;
    if !File::from(caller.try_clone()?).metadata()?.file_type().is_socket() {
        return Err(io::Error::other("standard input is no socket"));
    }
    let lock = io::stdout().as_fd().try_clone_to_owned()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(io::stderr())?;
    Ok((caller.into(), lock.into()))
}

/// Tells whoever started this that there will be no lab.
pub(crate) fn report(mut caller: UnixStream, message: String, blame: Blame) {
    let mut bytes = BytesMut::new();
    let response = Response::Failed { message, blame };
    if Frame::message(&response).and_then(|frame| frame.encode(&mut bytes)).is_ok() {
        // Whoever called may be gone; the log has it too.
        let _ = caller.write_all(&bytes);
    }
}

/// The plan as the lab's directory has it.
pub(crate) fn read_plan(path: &Path) -> Result<Plan, Failed> {
    let text =
        fs::read(path).map_err(|e| (format!("cannot read {}: {e}", path.display()), Blame::Operation))?;
    serde_json::from_slice(&text)
        .map_err(|e| (format!("{} is not a plan of this version: {e}", path.display()), Blame::Operation))
}

/// This process's id as the machine counts, from the machine's /proc.
fn outer_pid() -> io::Result<i32> {
    let link = fs::read_link("/proc/self")?;
    link.to_str().and_then(|pid| pid.parse().ok()).ok_or_else(|| io::Error::other("not a process id"))
}

/// Memory to register and files to open: as much as this user may have.
fn raise_limits() {
    for (resource, wanted) in [(Resource::RLIMIT_MEMLOCK, u64::MAX), (Resource::RLIMIT_NOFILE, WANTED_FILES)]
    {
        let Ok((_, hard)) = getrlimit(resource) else { continue };
        // Only root may go beyond the hard limit.
        if setrlimit(resource, wanted, wanted).is_err() {
            let _ = setrlimit(resource, wanted.min(hard), hard);
        }
    }
}

/// Listens on the lab's socket, which only this user can reach.
pub(crate) fn bind(lab: &LabDir) -> io::Result<UnixListener> {
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = lab.with_socket(|path| UnixListener::bind(path));
    umask(before);
    listener
}
