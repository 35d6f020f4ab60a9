//! A User-Mode Linux guest as a value: the kernel is a child of ours, its files are the machine's, and its second
//! terminal is the line to it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};

pub use super::choice::Clock;
use super::console::Console;
use super::mux::{Driver, LineClosed, Opener, Role};
use super::order::{AGENT, Answer, CALLER, ORDER, Order};

/// The largest answer to an order, in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// How a guest is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kernel: an executable.
    pub kernel: PathBuf,
    /// The `testbed` executable, which is also what the guest runs first.
    pub program: PathBuf,
    /// Where the guest may leave its sockets and its process id; removed by whoever made it.
    pub directory: PathBuf,
    /// The guest's memory in MiB. Only what it uses is taken from the machine.
    pub memory: u32,
    /// How the guest's clock goes.
    pub clock: Clock,
    /// How long it may take until the guest answers.
    pub timeout: Duration,
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
pub struct Uml {
    child: Child,
    console: Console,
    driver: Driver,
    opener: Opener,
    timeout: Duration,
}

impl Uml {
    /// Starts a guest and waits until it answers.
    pub async fn boot(config: &Config) -> Result<Self, GuestError> {
        let failed = |source| GuestError::Start { kernel: config.kernel.clone(), source };
        let (ours, theirs) = StdStream::pair().map_err(failed)?;
        let (output, console_end) = io::pipe().map_err(failed)?;
        let mut command = command(config)?;
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(console_end.try_clone().map_err(failed)?)
            .stderr(console_end)
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(failed)?;
        // Our copies of its ends.
        drop(command);
        without_core(&child);

        let console = Console::default();
        let output = pipe::Receiver::from_owned_fd(output.into()).map_err(failed)?;
        tokio::spawn(console.clone().follow(output));
        ours.set_nonblocking(true).map_err(failed)?;
        let (from, to) = UnixStream::from_std(ours).map_err(failed)?.into_split();
        let (driver, opener, _) = Driver::start(Role::Host, from, to);
        let mut guest = Self { child, console, driver, opener, timeout: config.timeout };
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
            let mut answer = Vec::new();
            stream.take(MAX_ANSWER).read_to_end(&mut answer).await.map_err(io)?;
            Ok(answer)
        };
        let answer = match tokio::time::timeout(self.timeout, talk).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => return Err(self.failure(why).await),
            Err(_) => return Err(self.hangs()),
        };
        match serde_json::from_slice(&answer) {
            Ok(Answer::Ready) => match self.opener.open(CALLER) {
                Ok(caller) => Ok(caller),
                Err(why) => Err(self.failure(why).await),
            },
            Ok(Answer::Refused(why)) => Err(GuestError::Refused(why)),
            // It ended in the middle.
            Err(_) => Err(self.failure(LineClosed::End).await),
        }
    }

    /// Connects every client of `listener` to the agent in the guest, for as long as the guest runs.
    pub async fn serve(&self, listener: UnixListener) -> io::Result<()> {
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    // A stream that cannot be opened is closed, which the client sees.
                    if let Err(error) = self.opener.carry(AGENT, accepted?.0) {
                        tracing::warn!("a client: {error}");
                    }
                }
                _ = self.driver.closed() => return Ok(()),
            }
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
        self.child.id()
    }

    /// Waits until it has ended by itself.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    fn hangs(&self) -> GuestError {
        GuestError::Hangs { seconds: self.timeout.as_secs(), console: self.console.tail() }
    }

    /// What is behind the end of the line: most often the end of the guest.
    async fn failure(&mut self, why: LineClosed) -> GuestError {
        // A panic takes a moment from the end of the line to the end of the process.
        match tokio::time::timeout(Duration::from_secs(2), self.child.wait()).await {
            Ok(Ok(status)) => GuestError::Ended { status: status.to_string(), console: self.console.tail() },
            _ => GuestError::Line { why, console: self.console.tail() },
        }
    }
}

impl Drop for Uml {
    fn drop(&mut self) {
        // The guest's processes are processes of the machine's, in the kernel's group.
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// A kernel that panics aborts, and would leave all of the guest's memory in a file.
fn without_core(child: &Child) {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // If it cannot be set, a core file is all that comes of it.
    let _ = prlimit(pid, Resource::Core, none);
}

fn command(config: &Config) -> Result<Command, GuestError> {
    let sockets = config.directory.join("uml");
    fs::create_dir_all(&sockets)
        .map_err(|source| GuestError::Start { kernel: config.kernel.clone(), source })?;
    let mut command = Command::new(&config.kernel);
    command.arg(format!("mem={}M", config.memory));
    // seccomp is the faster way to catch system calls; where it doesn't work UML finds out and traces instead.
    command.args(["seccomp=auto", "umid=guest"]);
    command.arg(format!("uml_dir={}", word(&sockets)?));
    command.args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]);
    // The console goes to standard output; the line is standard input.
    command.args([
        "con=null",
        "con0=null,fd:1",
        "con1=fd:0",
        "console=tty0",
        "quiet",
        "panic=-1",
        "noreboot",
    ]);
    if config.clock == Clock::Virtual {
        command.arg("time-travel=inf-cpu");
    }
    command.arg(format!("init={}", word(&config.program)?)).args(["--", "init"]);
    // UML takes the last variable's address for the end of its address space: too low, and the guest's processes crash
    // where they meet what lies there. So there is a short one at the end (std sorts them). PATH doesn't do, because
    // UML sets it anew, elsewhere.
    command.env_clear().env("PATH", "/usr/bin:/bin").env("TERM", "linux");
    Ok(command)
}

/// A path as a word of a kernel's command line, which is split at blanks and knows quotes but no escapes.
fn word(path: &Path) -> Result<String, GuestError> {
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
            kernel: "/no/such/linux".into(),
            program: "/bin/true".into(),
            directory: directory.path().into(),
            memory: 64,
            clock: Clock::Wall,
            timeout: Duration::from_secs(5),
        };
        let error = Uml::boot(&config).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot start the guest's kernel /no/such/linux: "), "{error}");
    }
}
