//! A guest as a value: a kernel that is a child of ours, with the machine's files, a console and one line to it. What
//! differs from one kind of machine to another is how it is started (in `uml` and in `qemu`).

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::sync::watch;

use super::choice::{Clock, Place};
use super::console::Console;
use super::line::Line;
use super::mux::{Driver, LineClosed, Mux, Opener, Role};
use super::order::{AGENT, Answer, CALLER, ORDER, Order, PING};
use super::{leash, qemu, uml};

/// The largest answer to an order, in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// How long the last of a console's output may take to come through.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// When to try again to accept a client.
const RETRY: Duration = Duration::from_millis(100);

/// How long a guest whose line has ended may take to end itself.
const DEATH: Duration = Duration::from_secs(5);

/// What a guest runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Machine {
    /// User-Mode Linux.
    Uml {
        /// The kernel: an executable.
        kernel: PathBuf,
        /// How the guest's clock goes.
        clock: Clock,
    },
    /// QEMU.
    Qemu {
        /// The emulator.
        emulator: PathBuf,
        /// The kernel: a bzImage.
        kernel: PathBuf,
    },
}

impl Machine {
    /// What a chosen place is made of; `None` for the host.
    pub fn of(place: &Place, clock: Clock) -> Option<Self> {
        match place {
            Place::Uml(image) => Some(Self::Uml { kernel: image.path(), clock }),
            Place::Qemu { image, emulator } => {
                Some(Self::Qemu { emulator: emulator.clone(), kernel: image.path() })
            }
            Place::Host => None,
        }
    }

    /// Bytes that may be under way to the guest. (*Seen*: UML's terminal holds 4095 until they are read. Once it was full
    /// it sometimes does not go on, with bytes waiting on its descriptor.)
    fn line_bears(&self) -> usize {
        match self {
            Self::Uml { .. } => 2048,
            Self::Qemu { .. } => 256 << 10,
        }
    }

    fn kernel(&self) -> &Path {
        match self {
            Self::Uml { kernel, .. } | Self::Qemu { kernel, .. } => kernel,
        }
    }
}

/// How a guest is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// What it runs on.
    pub machine: Machine,
    /// The `testbed` executable, which is also what the guest runs first.
    pub program: PathBuf,
    /// Where the guest may leave its sockets and its process id; removed by whoever made it.
    pub directory: PathBuf,
    /// The guest's memory in MiB. Only what it uses is taken from the machine.
    pub memory: u32,
    /// How long it may take until the guest answers.
    pub timeout: Duration,
    /// The processor that it is to stay on, by its number. User-Mode Linux is two processes that take turns at every system
    /// call and fault, and waking one on another processor costs much more than the turn itself (*measured*: a fifth of
    /// all the time that scenarios take).
    pub cpu: Option<usize>,
    /// Where the console's output also goes.
    pub log: Option<Arc<File>>,
    /// What the guest's kernel holds open for as long as it lives.
    pub lock: Option<Arc<File>>,
}

/// Why there is no guest, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The kernel could not be started.
    #[error("cannot start the guest's kernel {kernel}: {source}", kernel = kernel.display())]
    Start {
        /// The executable.
        kernel: PathBuf,
        /// How that failed.
        source: io::Error,
    },
    /// A path cannot be given to the kernel.
    #[error("{path:?} has a character that a kernel's command line cannot hold; move it elsewhere")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// The guest ended.
    #[error("the guest ended ({status}); its console ends with:\n{console}")]
    Ended {
        /// How, as its parent saw it.
        status: String,
        /// The end of its console.
        console: String,
    },
    /// The guest does not answer.
    #[error("the guest did not answer within {seconds} s; its console ends with:\n{console}")]
    Hangs {
        /// How long this waited.
        seconds: u64,
        /// The end of its console.
        console: String,
    },
    /// The line to it is of no use.
    #[error("{why}; the guest's console ends with:\n{console}")]
    Line {
        /// Why.
        why: LineClosed,
        /// The end of its console.
        console: String,
    },
    /// It cannot do what it was told.
    #[error("the guest refuses: {0}")]
    Refused(String),
}

/// A guest that runs. Dropped, it is killed with all that is in it.
#[derive(Debug)]
pub struct Guest {
    pid: Option<u32>,
    /// From then on its process id may be another's.
    reaped: Arc<AtomicBool>,
    /// How it ended, once all of its console has come.
    ended: watch::Receiver<Option<Ended>>,
    console: Console,
    driver: Driver,
    opener: Opener,
    /// On which it says last that its lab went in order.
    orders: Option<BufReader<UnixStream>>,
    timeout: Duration,
}

/// A guest's end, as its parent sees it.
#[derive(Clone, Copy, Debug)]
struct Ended(Option<ExitStatus>);

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(status) => status.fmt(f),
            None => f.write_str("nobody knows how"),
        }
    }
}

impl Guest {
    /// Starts a guest and waits until it answers. The calling thread must last as long as the guest.
    pub async fn boot(config: &Config) -> Result<Self, GuestError> {
        let kernel = config.machine.kernel();
        let failed = |source| GuestError::Start { kernel: kernel.to_owned(), source };
        let (ours, theirs) = StdStream::pair().map_err(failed)?;
        let (output, console_end) = io::pipe().map_err(failed)?;
        let mut command = match &config.machine {
            Machine::Uml { kernel, clock } => uml::command(config, kernel, *clock)?,
            Machine::Qemu { emulator, kernel } => {
                let accelerator = qemu::accelerator(emulator, kernel).await;
                qemu::command(config, emulator, kernel, &accelerator)?
            }
        };
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(console_end.try_clone().map_err(failed)?)
            .stderr(console_end)
            .process_group(0)
            .kill_on_drop(true);
        leash::tie(&mut command, config.lock.clone());
        let child = command.spawn().map_err(failed)?;
        // Our copies of its ends.
        drop(command);
        // Before it has children, which stay there too; where it is refused, all goes on as it can.
        if let (Some(cpu), Some(pid)) = (config.cpu, child.id().and_then(|id| i32::try_from(id).ok())) {
            let mut cpus = CpuSet::new();
            let _ = cpus.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(pid), &cpus));
        }

        let console = Console::default();
        let output = pipe::Receiver::from_owned_fd(output.into()).map_err(failed)?;
        let output = tokio::spawn(console.clone().follow(output, config.log.clone()));
        let (pid, reaped) = (child.id(), Arc::new(AtomicBool::new(false)));
        let (tell, ended) = watch::channel(None);
        tokio::spawn(see_end(child, output, config.log.clone(), reaped.clone(), tell));

        ours.set_nonblocking(true).map_err(failed)?;
        let (from, to) = UnixStream::from_std(ours).map_err(failed)?.into_split();
        let mut end = ended.clone();
        let from = Line::new(from, async move {
            let _ = tokio::time::timeout(DEATH, end.wait_for(Option::is_some)).await;
        });
        let (driver, opener, _) =
            Driver::start(Mux::bearing(Role::Host, config.machine.line_bears()), from, to);
        let mut guest =
            Self { pid, reaped, ended, console, driver, opener, orders: None, timeout: config.timeout };
        match tokio::time::timeout(config.timeout, guest.driver.greeted()).await {
            Ok(Ok(())) => Ok(guest),
            Ok(Err(why)) => Err(guest.failure(why).await),
            Err(_) => Err(guest.hangs()),
        }
    }

    /// Gives it its order. The agent starts, and says on the socket that is returned how it went, as it does to
    /// `testbed up`.
    pub async fn order(&mut self, order: &Order) -> Result<UnixStream, GuestError> {
        let talk = async {
            let mut stream = self.opener.open(ORDER)?;
            let text = serde_json::to_vec(order)
                .map_err(|error| LineClosed::Io(std::sync::Arc::new(error.into())))?;
            let io = |error| LineClosed::Io(std::sync::Arc::new(error));
            stream.write_all(&text).await.map_err(io)?;
            stream.shutdown().await.map_err(io)?;
            let mut orders = BufReader::new(stream);
            let answer = answer(&mut orders).await;
            Ok((answer, orders))
        };
        let (answer, orders) = match tokio::time::timeout(self.timeout, talk).await {
            Ok(Ok(talked)) => talked,
            Ok(Err(why)) => return Err(self.failure(why).await),
            Err(_) => return Err(self.hangs()),
        };
        self.orders = Some(orders);
        match answer {
            Some(Answer::Ready) => match self.opener.open(CALLER) {
                Ok(caller) => Ok(caller),
                Err(why) => Err(self.failure(why).await),
            },
            Some(Answer::Refused(why)) => Err(GuestError::Refused(why)),
            // It ended in the middle.
            Some(Answer::Over) | None => Err(self.failure(LineClosed::End).await),
        }
    }

    /// Connects every client of `listener` to the agent in the guest, for as long as the guest runs. Others than the
    /// user who runs this are turned away.
    pub async fn serve(&self, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = self.driver.closed() => return,
            };
            let client = match accepted {
                Ok((client, _)) => client,
                Err(error) => {
                    tracing::warn!("cannot accept a client: {error}");
                    // Out of descriptors, say: one that is closed makes room.
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            // The directory keeps others out already; this holds even if somebody opened it.
            if !client.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw()) {
                tracing::warn!("a client of another user's was turned away");
                continue;
            }
            // A stream that cannot be opened is closed, which the client sees.
            if let Err(error) = self.opener.carry(AGENT, client) {
                tracing::warn!("a client: {error}");
            }
        }
    }

    /// Returns when the guest has been silent for `patience` though it was asked every now and then.
    pub async fn silent(&self, patience: Duration) {
        loop {
            let pong = async {
                let mut stream = self.opener.open(PING)?;
                // Whatever comes: somebody is there.
                let _ = stream.read(&mut [0]).await;
                Ok::<(), LineClosed>(())
            };
            match tokio::time::timeout(patience, pong).await {
                Ok(Ok(())) => tokio::time::sleep(patience / 4).await,
                // It ended, which others see better.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) => return,
            }
        }
    }

    /// Whether the guest said, before it ended, that its lab was taken down in order.
    pub async fn parted(&mut self) -> bool {
        match self.orders.take() {
            Some(mut orders) => matches!(answer(&mut orders).await, Some(Answer::Over)),
            None => false,
        }
    }

    /// What opens streams to it.
    pub fn opener(&self) -> &Opener {
        &self.opener
    }

    /// The end of its console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// The kernel's process id.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Waits until it has ended by itself.
    pub async fn wait(&self) -> io::Result<ExitStatus> {
        let mut ended = self.ended.clone();
        let end = ended.wait_for(Option::is_some).await;
        let status = end.ok().and_then(|end| end.and_then(|Ended(status)| status));
        status.ok_or_else(|| io::Error::other("nobody knows how the guest ended"))
    }

    /// Ends it by force, with all that is in it.
    pub fn kill(&self) {
        // The guest's processes are processes of the machine's, in the kernel's group.
        if let Some(pid) = self.pid.and_then(|id| i32::try_from(id).ok())
            && !self.reaped.load(Ordering::Acquire)
        {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    fn hangs(&self) -> GuestError {
        GuestError::Hangs { seconds: self.timeout.as_secs(), console: self.console.tail() }
    }

    /// What is behind the end of the line: most often the end of the guest.
    async fn failure(&mut self, why: LineClosed) -> GuestError {
        let mut ended = self.ended.clone();
        // A panic takes a moment from the end of the line to the end of the process.
        let end = tokio::time::timeout(DEATH, ended.wait_for(Option::is_some)).await;
        let status = end.ok().and_then(Result::ok).and_then(|end| *end).map(|end| end.to_string());
        match status {
            Some(status) => GuestError::Ended { status, console: self.console.tail() },
            None => GuestError::Line { why, console: self.console.tail() },
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for the guest's end and for the rest of its console, and tells of it.
async fn see_end(
    mut child: Child,
    output: tokio::task::JoinHandle<()>,
    log: Option<Arc<File>>,
    reaped: Arc<AtomicBool>,
    tell: watch::Sender<Option<Ended>>,
) {
    let ended = Ended(child.wait().await.ok());
    reaped.store(true, Ordering::Release);
    let _ = tokio::time::timeout(LAST_WORDS, output).await;
    if let (Some(log), false) = (log, ended.0.is_some_and(|status| status.success())) {
        // If the log cannot be written there is nobody to tell.
        let _ = writeln!(&*log, "the guest ended ({ended})");
    }
    tell.send_replace(Some(ended));
}

/// The next answer; `None` at the end, or if it makes no sense.
async fn answer(orders: &mut BufReader<UnixStream>) -> Option<Answer> {
    let mut line = String::new();
    orders.take(MAX_ANSWER).read_line(&mut line).await.ok()?;
    serde_json::from_str(&line).ok()
}

/// A path as a word of a kernel's command line, which is split at blanks and knows quotes but no escapes.
pub(super) fn word(path: &Path) -> Result<String, GuestError> {
    let bad = || GuestError::Path { path: path.to_owned() };
    let text = path
        .to_str()
        .filter(|text| !text.contains(['"', '\n', ',']) && path.is_absolute())
        .ok_or_else(bad)?;
    Ok(if text.contains(char::is_whitespace) { format!("\"{text}\"") } else { text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_or_refused() {
        let word = |path: &str| word(Path::new(path)).ok();
        assert_eq!(word("/usr/bin/testbed").as_deref(), Some("/usr/bin/testbed"));
        assert_eq!(word("/my files/testbed").as_deref(), Some("\"/my files/testbed\""));
        for bad in ["relative", "/a\"b", "/a,b", "/a\nb"] {
            assert_eq!(word(bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_kernel_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            machine: Machine::Uml { kernel: "/no/such/linux".into(), clock: Clock::Wall },
            program: "/bin/true".into(),
            directory: directory.path().into(),
            memory: 64,
            timeout: Duration::from_secs(5),
            cpu: None,
            log: None,
            lock: None,
        };
        let error = Guest::boot(&config).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot start the guest's kernel /no/such/linux: "), "{error}");
    }
}
