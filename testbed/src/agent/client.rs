//! Speaks to an agent from outside: what the command line and the scenario runner use.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::frame::{FrameError, FrameReader, FrameWriter};
use super::protocol::{Blame, DirectionChange, Exec, MAX_ANSWER, Request, Response, Status, WindowSize};
use super::runtime::{LabDir, LabName};

mod running;

pub use running::{Control, Input, Output, Outputs, Running};

/// Why an agent could not be asked, or would not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such lab.
    #[error("lab `{lab}` is not up; bring it up with `testbed up {lab}`")]
    NotUp {
        /// The lab.
        lab: LabName,
    },
    /// There was one, and its agent died.
    #[error(
        "the agent of lab `{lab}` is dead, and all of the lab with it; `testbed up {lab}` makes it anew, \
         `testbed down {lab}` clears what it left; its log ends with:\n{log}"
    )]
    Dead {
        /// The lab.
        lab: LabName,
        /// The end of its log.
        log: String,
    },
    /// The agent went away while it was being asked.
    #[error(
        "the agent of lab `{lab}` ended in the middle of this, and all of the lab with it; its log ends with:\n{log}"
    )]
    Gone {
        /// The lab.
        lab: LabName,
        /// The end of its log.
        log: String,
    },
    /// The agent refused, or failed.
    #[error("{message}")]
    Failed {
        /// Why.
        message: String,
        /// Whose fault it is.
        blame: Blame,
    },
    /// The command could not be started.
    #[error("{message}")]
    NotExecuted {
        /// What a shell would exit with: 127 for not found, 126 for not executable.
        code: u8,
        /// Why.
        message: String,
    },
    /// The agent says what makes no sense.
    #[error("the agent of lab `{lab}` answered something else than was asked; is it of another version?")]
    Unexpected {
        /// The lab.
        lab: LabName,
    },
    /// The conversation failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A command printed more than whoever collects it wanted to hold.
    #[error("the command printed more than {limit} bytes")]
    TooMuchOutput {
        /// Bytes.
        limit: usize,
    },
}

/// A lab's agent, as seen from outside. Each request is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    lab: LabDir,
}

struct Conversation {
    from: FrameReader<OwnedReadHalf>,
    to: FrameWriter<OwnedWriteHalf>,
}

impl Client {
    /// The agent of this lab, which is not asked yet.
    pub fn new(lab: LabDir) -> Self {
        Self { lab }
    }

    /// The lab's directory.
    pub fn lab(&self) -> &LabDir {
        &self.lab
    }

    async fn ask(&self, request: &Request) -> Result<Conversation, ClientError> {
        let stream = self.connect().await?;
        let (from, to) = stream.into_split();
        let mut conversation =
            Conversation { from: FrameReader::new(from, MAX_ANSWER), to: FrameWriter::new(to) };
        conversation.to.message(request).await.map_err(|error| self.gone_or(error))?;
        Ok(conversation)
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let lab = self.lab.name().clone();
        let connected = self.lab.with_socket(|path| std::os::unix::net::UnixStream::connect(path));
        let stream = match connected {
            Ok(stream) => stream,
            Err(error) => {
                return Err(match error.kind() {
                    io::ErrorKind::NotFound if !self.lab.exists() => ClientError::NotUp { lab },
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        ClientError::Dead { lab, log: self.lab.log_tail() }
                    }
                    _ => FrameError::Io(error).into(),
                });
            }
        };
        let asynchronous = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        asynchronous.map_err(|error| FrameError::Io(error).into())
    }

    /// An agent that dies breaks the connection in one of several ways.
    fn gone_or(&self, error: FrameError) -> ClientError {
        match error {
            FrameError::Io(_) | FrameError::Truncated => self.gone(),
            other => other.into(),
        }
    }

    fn gone(&self) -> ClientError {
        ClientError::Gone { lab: self.lab.name().clone(), log: self.lab.log_tail() }
    }

    fn unexpected(&self) -> ClientError {
        ClientError::Unexpected { lab: self.lab.name().clone() }
    }

    async fn answer(&self, conversation: &mut Conversation) -> Result<Response, ClientError> {
        match conversation.from.message().await {
            Ok(Some(Response::Failed { message, blame })) => Err(ClientError::Failed { message, blame }),
            Ok(Some(Response::NotExecuted { code, message })) => {
                Err(ClientError::NotExecuted { code, message })
            }
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(self.gone()),
            Err(error) => Err(self.gone_or(error)),
        }
    }

    async fn request(&self, request: &Request) -> Result<Response, ClientError> {
        let mut conversation = self.ask(request).await?;
        self.answer(&mut conversation).await
    }

    /// What is up.
    pub async fn status(&self) -> Result<Status, ClientError> {
        match self.request(&Request::Status).await? {
            Response::Status(status) => Ok(*status),
            _ => Err(self.unexpected()),
        }
    }

    /// Starts writing every frame that enters `link`, in either direction, to a pcapng file.
    pub async fn capture_start(&self, link: &str, file: &Path) -> Result<(), ClientError> {
        // The agent has another idea of the current directory.
        let file = std::path::absolute(file).map_err(FrameError::Io)?;
        match self.request(&Request::CaptureStart { link: link.to_owned(), file }).await? {
            Response::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    /// Ends the capture; returns the frames written, and the frames that could not be.
    pub async fn capture_stop(&self, link: &str) -> Result<(u64, u64), ClientError> {
        match self.request(&Request::CaptureStop { link: link.to_owned() }).await? {
            Response::Captured { frames, dropped } => Ok((frames, dropped)),
            _ => Err(self.unexpected()),
        }
    }

    /// Waits, at most for `limit`, until no TCP connection in these hosts may send more; returns whether it is so.
    pub async fn settled(&self, hosts: &[&str], limit: Duration) -> Result<bool, ClientError> {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        match self.request(&Request::Settle { hosts, limit_ms }).await? {
            Response::Settled { ended } => Ok(ended),
            _ => Err(self.unexpected()),
        }
    }

    /// Changes what a link does from now on: from its a to its b, and from b to a.
    pub async fn change_link(
        &self,
        link: &str,
        a_to_b: DirectionChange,
        b_to_a: DirectionChange,
    ) -> Result<(), ClientError> {
        match self.request(&Request::ChangeLink { link: link.to_owned(), a_to_b, b_to_a }).await? {
            Response::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    /// Takes the lab down; the agent ends right after. [`guest::host::down`](crate::guest::host::down) also waits for
    /// that and removes the directory.
    pub async fn down(&self) -> Result<(), ClientError> {
        match self.request(&Request::Down).await? {
            Response::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    /// Starts a command. If the [`Running`] is dropped before its end, the command's process group is killed.
    pub async fn exec(&self, command: Command) -> Result<Running, ClientError> {
        let mut conversation = self.ask(&Request::Exec(command.exec)).await?;
        match self.answer(&mut conversation).await? {
            Response::Started { pid } => {
                Ok(Running::new(self.clone(), pid, conversation.from, conversation.to))
            }
            _ => Err(self.unexpected()),
        }
    }
}

/// A command to be run in a host.
#[derive(Clone, Debug)]
pub struct Command {
    exec: Exec,
}

impl Command {
    /// Runs `program`, looked up in the lab's `PATH`, in `host`.
    pub fn new(host: impl Into<String>, program: impl Into<String>) -> Self {
        Self {
            exec: Exec {
                host: host.into(),
                argv: vec![program.into()],
                clean_env: false,
                env: BTreeMap::new(),
                cwd: None,
                terminal: None,
            },
        }
    }

    /// Appends an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.exec.argv.push(arg.into());
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.exec.argv.extend(args.into_iter().map(Into::into));
        self
    }

    /// Leaves out the agent's environment, which is that of whoever brought the lab up: the lab's `PATH` remains, and
    /// what is set here.
    #[must_use]
    pub fn clean_env(mut self) -> Self {
        self.exec.clean_env = true;
        self
    }

    /// Sets a variable on top of the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.exec.env.insert(name.into(), value.into());
        self
    }

    /// Where it runs; the agent's directory by default.
    #[must_use]
    pub fn cwd(mut self, directory: impl Into<PathBuf>) -> Self {
        self.exec.cwd = Some(directory.into());
        self
    }

    /// Gives it a terminal of this size; its standard error then arrives as standard output.
    #[must_use]
    pub fn terminal(mut self, size: WindowSize) -> Self {
        self.exec.terminal = Some(size);
        self
    }
}
