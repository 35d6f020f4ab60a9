//! The verb `init`: PID 1 of a guest.
//!
//! ```text
//! PID 1      mounts, then reaps; powers the guest off when the bridge has ended
//! └─ bridge  the line's near end: takes the order, starts the agent, connects streams to its socket
//!    └─ launcher ─ PID 1 ─ agent    as on the machine itself
//! ```
//! The root is the machine's file system, read-only, below an overlay in memory: everything that is there can be used,
//! and nothing that is written leaves the guest, but in the directories that are shared.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::statfs::{FsType, statfs};
use nix::sys::termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr};
use nix::unistd::{chdir, pivot_root, sethostname};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::device::Device;
use super::mux::{Driver, Mux, Role};
use super::order::{AGENT, Answer, CALLER, MAX_ORDER, OBSERVE, ORDER, Order, PING};
use super::qemu::MACHINE_TAG;
use crate::agent::init as reaper;
use crate::agent::namespaces::{Side, fork_single_threaded};
use crate::agent::shares::{MACHINE, mount_from_machine};
use crate::guest::host::PROGRAMS;

/// The line, as UML's command line has it.
const UML_LINE: &str = "/dev/tty1";
/// What the name of QEMU's virtio port begins with; it has only one.
const QEMU_LINE: &str = "vport";
/// HOSTFS_SUPER_MAGIC (fs/hostfs/hostfs_kern.c).
const HOSTFS: i64 = 0x00c0_ffee;
/// Where labs are in a guest.
const RUNTIME: &str = "/run/testbed";

/// How long the last words may take.
const FAREWELL: Duration = Duration::from_secs(1);

const NONE: Option<&str> = None;

/// Runs the guest to its end. Does not return where it is PID 1.
pub fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("testbed init: this is the first process of a guest, and not for use by hand");
        return ExitCode::from(2);
    }
    // Standard error is the console, of which the host shows the end when a guest fails.
    if let Err(error) = run() {
        eprintln!("testbed init: {error}");
    }
    let error = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("testbed init: cannot power off: {error:?}");
    ExitCode::FAILURE
}

fn run() -> Result<(), String> {
    // Before anything is mounted over it.
    let kernel =
        if statfs("/").is_ok_and(|root| root.filesystem_type() == FsType(HOSTFS)) { "uml" } else { "qemu" };
    mounts(kernel).map_err(|(what, error)| format!("cannot mount {what}: {error}"))?;
    reaper::block_signals().map_err(|error| format!("cannot block signals: {error}"))?;
    // The bridge is the first process after this one, since nothing else was started.
    match fork_single_threaded().map_err(|error| format!("cannot fork: {error}"))? {
        Side::Parent(bridge) => {
            reaper::run(bridge);
            Ok(())
        }
        Side::Child => {
            let result =
                reaper::unblock_signals().map_err(|error| error.to_string()).and_then(|()| bridge(kernel));
            if let Err(error) = result {
                eprintln!("testbed init: {error}");
            }
            // PID 1 sees to the rest.
            std::process::exit(0);
        }
    }
}

/// An overlay of memory on the machine's files as the root, and the kernel's own file systems on it.
fn mounts(kernel: &str) -> Result<(), (&'static str, io::Error)> {
    // Any directory that every machine has will do: it is out of the way once the root is another.
    let stage = Path::new("/tmp");
    let directory = |name: &str| -> Result<PathBuf, (&'static str, io::Error)> {
        let path = stage.join(name);
        fs::create_dir_all(&path).map_err(|error| ("the overlay", error))?;
        Ok(path)
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let on = |what: &'static str, kind: &str, target: &Path, flags: MsFlags, data: Option<&str>| {
        mount(Some(kind), target, Some(kind), flags, data).map_err(|error| (what, error.into()))
    };
    on("memory", "tmpfs", stage, flags, Some("mode=755"))?;
    let (upper, work, root) = (directory("upper")?, directory("work")?, directory("root")?);
    let layers = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    on("the overlay", "overlay", &root, MsFlags::empty(), Some(&layers))?;
    on("/proc", "proc", &root.join("proc"), flags | MsFlags::MS_NOEXEC, NONE)?;
    on("/sys", "sysfs", &root.join("sys"), flags | MsFlags::MS_NOEXEC, NONE)?;
    // The kernel has put it on /dev itself, but below, where the overlay does not reach.
    on("/dev", "devtmpfs", &root.join("dev"), MsFlags::MS_NOSUID, Some("mode=755"))?;
    for (name, kind, data) in [("pts", "devpts", "ptmxmode=666,mode=620"), ("shm", "tmpfs", "mode=1777")] {
        let target = root.join("dev").join(name);
        fs::create_dir_all(&target).map_err(|error| ("/dev", error))?;
        on("/dev", kind, &target, flags & !MsFlags::MS_NODEV, Some(data))?;
    }
    // What runs on the machine is not here, and its sockets would only mislead.
    on("/run", "tmpfs", &root.join("run"), flags, Some("mode=755"))?;
    if kernel == "qemu" {
        let target = root.join(MACHINE.trim_start_matches('/'));
        fs::create_dir(&target).map_err(|error| ("the machine's files", error))?;
        let options = "trans=virtio,version=9p2000.L,cache=mmap,msize=262144";
        mount(Some(MACHINE_TAG), &target, Some("9p"), flags, Some(options))
            .map_err(|error| ("the machine's files", error.into()))?;
    }
    let enter = || {
        chdir(&root)?;
        // With both the same, the old root ends up on top of the new one (pivot_root(2)).
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        chdir("/")
    };
    enter().map_err(|error| ("the root", error.into()))
}

/// The line, made to carry bytes as they are.
fn line(kernel: &str) -> io::Result<(File, Device, Device)> {
    let path = if kernel == "uml" { PathBuf::from(UML_LINE) } else { port()? };
    let flags = nix::libc::O_NOCTTY | nix::libc::O_NONBLOCK;
    // A port can be opened only once.
    let line = File::options().read(true).write(true).custom_flags(flags).open(path)?;
    if kernel == "uml" {
        let mut settings = tcgetattr(&line)?;
        cfmakeraw(&mut settings);
        tcsetattr(&line, SetArg::TCSANOW, &settings)?;
    }
    let (from, to) = (Device::new(line.try_clone()?)?, Device::new(line.try_clone()?)?);
    Ok((line, from, to))
}

fn port() -> io::Result<PathBuf> {
    let mut devices = fs::read_dir("/dev")?.flatten();
    let port = devices.find(|device| device.file_name().to_string_lossy().starts_with(QEMU_LINE));
    port.map(|device| device.path()).ok_or_else(|| io::Error::other("the machine has no virtio port"))
}

fn bridge(kernel: &'static str) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("cannot start: {error}"))?.block_on(async {
        let (line, from, to) = line(kernel).map_err(|error| format!("cannot use the line: {error}"))?;
        let (driver, _, mut incoming) = Driver::start(Mux::new(Role::Guest), from, to);
        let mut lab: Option<Lab> = None;
        loop {
            let accepted = tokio::select! {
                accepted = incoming.next() => accepted,
                () = gone(&mut lab) => {
                    if let Some(lab) = lab.take() {
                        lab.part().await;
                    }
                    // The agent's last words, its answer to `down` among them, are still under way.
                    let _ = tokio::time::timeout(FAREWELL, driver.flushed()).await;
                    // All of it is written, so this waits for UML alone, which is about to be powered off.
                    let _ = tcdrain(&line);
                    return Ok(());
                }
            };
            let Some(accepted) = accepted else {
                return Err(driver.closed().await.to_string());
            };
            let (near, far) = UnixStream::pair().map_err(|error| error.to_string())?;
            match (accepted.service(), &mut lab) {
                (ORDER, none @ None) => {
                    accepted.carry(far);
                    *none = take_order(kernel, near).await?;
                }
                (CALLER, Some(lab)) if lab.agent_lock.is_none() => {
                    accepted.carry(far);
                    lab.start(near).map_err(|error| format!("cannot start the agent: {error}"))?;
                }
                (AGENT, Some(lab)) => {
                    // Until the agent listens, and once it is gone, there is nobody to connect to.
                    if let Ok(socket) = UnixStream::connect(lab.directory.join("agent.sock")).await {
                        accepted.carry(socket);
                    }
                }
                (OBSERVE, Some(lab)) => {
                    accepted.carry(far);
                    lab.observe(near).map_err(|error| format!("cannot start the observer: {error}"))?;
                }
                // Dropping it is the answer.
                (PING, _) => {}
                _ => {}
            }
        }
    })
}

struct Lab {
    kernel: &'static str,
    directory: PathBuf,
    order: Order,
    /// Where the order came from, which wants to know how it ended.
    asker: UnixStream,
    /// Gets the agent's lock when the agent is gone with all that is its.
    agent_lock: Option<tokio::task::JoinHandle<io::Result<()>>>,
}

async fn gone(lab: &mut Option<Lab>) {
    match lab.as_mut().and_then(|lab| lab.agent_lock.as_mut()) {
        Some(lock) => {
            // If the lock cannot be had for another reason, there is no way to know of the agent's end either.
            let _ = lock.await;
        }
        None => std::future::pending().await,
    }
}

async fn take_order(kernel: &'static str, mut stream: UnixStream) -> Result<Option<Lab>, String> {
    let mut text = Vec::new();
    let read = (&mut stream).take(MAX_ORDER).read_to_end(&mut text).await;
    read.map_err(|error| format!("cannot read the order: {error}"))?;
    let prepared = serde_json::from_slice::<Order>(&text)
        .map_err(|error| format!("the order is of another version: {error}"))
        .and_then(|order| Ok((prepare(kernel, &order)?, order)));
    let result = match &prepared {
        Ok(_) => Answer::Ready,
        Err(message) => Answer::Refused(message.clone()),
    };
    answer(&mut stream, &result).await.map_err(|error| format!("cannot answer the order: {error}"))?;
    Ok(prepared.ok().map(|(directory, order)| Lab {
        kernel,
        directory,
        order,
        asker: stream,
        agent_lock: None,
    }))
}

async fn answer(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    stream.write_all(&text).await
}

/// Makes the lab's directory, which is returned.
fn prepare(kernel: &str, order: &Order) -> Result<PathBuf, String> {
    let cannot =
        |what: &str, path: &Path, error: io::Error| format!("cannot {what} {}: {error}", path.display());
    let directory = Path::new(RUNTIME).join(&order.lab);
    let bin = directory.join("bin");
    fs::create_dir_all(&bin).map_err(|error| cannot("make", &bin, error))?;
    for name in PROGRAMS {
        let link = bin.join(name);
        symlink(&order.program, &link).map_err(|error| cannot("make", &link, error))?;
    }
    let plan = directory.join("plan.json");
    let text = serde_json::to_vec(&order.plan).map_err(|error| error.to_string())?;
    fs::write(&plan, text).map_err(|error| cannot("write", &plan, error))?;
    for path in &order.shared {
        fs::create_dir_all(path).map_err(|error| cannot("make", path, error))?;
        mount_from_machine(kernel, path).map_err(|error| cannot("share", path, error))?;
    }
    sethostname(&order.lab).map_err(|error| format!("cannot set the host's name: {error}"))?;
    Ok(directory)
}

impl Lab {
    /// Starts what runs a scenario and says on this socket what was seen.
    fn observe(&self, asker: UnixStream) -> io::Result<()> {
        let asker: StdStream = asker.into_std()?;
        asker.set_nonblocking(false)?;
        let output = asker.try_clone()?;
        let mut command = tokio::process::Command::new(&self.order.program);
        command.arg("observe").arg(&self.directory);
        command.stdin(Stdio::from(OwnedFd::from(asker))).stdout(Stdio::from(OwnedFd::from(output)));
        let mut observer = command.spawn()?;
        tokio::spawn(async move { observer.wait().await });
        Ok(())
    }

    /// Says, if it is so, that the lab went in order: the agent has then removed its directory.
    async fn part(mut self) {
        if !self.directory.exists() {
            // If the line is gone there is nobody to tell.
            let _ = answer(&mut self.asker, &Answer::Over).await;
        }
    }

    /// Starts the agent, as `testbed up` does on the machine itself.
    fn start(&mut self, caller: UnixStream) -> io::Result<()> {
        let path = self.directory.join("lock");
        let lock = File::create(&path)?;
        lock.lock()?;
        let caller: StdStream = caller.into_std()?;
        caller.set_nonblocking(false)?;
        let mut command = Command::new(&self.order.program);
        command.arg("agent").arg(&self.directory).args(["--kernel", self.kernel]);
        if !self.order.env.is_empty() {
            command.env_clear().envs(&self.order.env);
        }
        if let Some(directory) = self.order.cwd.as_ref().filter(|directory| directory.is_dir()) {
            command.current_dir(directory);
        }
        // Its log goes to the console.
        command.stdin(Stdio::from(OwnedFd::from(caller))).stdout(Stdio::from(lock));
        let mut launcher = command.spawn()?;
        drop(command);
        self.agent_lock = Some(tokio::task::spawn_blocking(move || {
            launcher.wait()?;
            File::open(path)?.lock()
        }));
        Ok(())
    }
}
