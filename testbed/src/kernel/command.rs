//! Programs that a build runs: their output goes to a log and is looked at line by line; they end when they are told to.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::KernelError;

/// Of a longer line the rest is dropped (not from the log).
const MAX_LINE: usize = 4096;
/// Lines of a failed program's output that go into the message.
const TAIL: usize = 12;
/// A program that was told to end is killed after this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends a build that runs, from outside.
#[derive(Debug)]
pub struct Interrupter(watch::Sender<bool>);

/// What a build listens to.
#[derive(Clone, Debug)]
pub struct Interrupt(watch::Receiver<bool>);

impl Interrupter {
    /// Asks the build to end. It stops its programs, and can be taken up again later.
    pub fn interrupt(&self) {
        self.0.send_replace(true);
    }
}

impl Interrupt {
    /// The two ends.
    pub fn new() -> (Interrupter, Self) {
        let (sender, receiver) = watch::channel(false);
        (Interrupter(sender), Self(receiver))
    }

    async fn wait(&mut self) {
        // Whoever lets go of the other end without a word lets the build go on.
        if self.0.wait_for(|interrupted| *interrupted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What `work` comes to, unless the interrupt is first.
    pub(super) async fn or<T>(
        &mut self,
        work: impl Future<Output = Result<T, KernelError>>,
    ) -> Result<T, KernelError> {
        tokio::select! {
            biased;
            () = self.wait() => Err(KernelError::Interrupted),
            result = work => result,
        }
    }
}

/// Runs programs.
pub(super) struct Runner {
    log: File,
    log_path: PathBuf,
    interrupt: Interrupt,
    /// Given to every program as its (empty) standard input, so that the lock on it lasts as long as they do.
    held: Option<File>,
}

impl Runner {
    /// One whose programs' output is appended to `log_path`.
    pub(super) fn new(log_path: &Path, interrupt: Interrupt) -> Result<Self, KernelError> {
        if let Some(parent) = log_path.parent() {
            std::fs::create_dir_all(parent).map_err(KernelError::io("create", parent))?;
        }
        let log = File::options().append(true).create(true).open(log_path);
        let log = log.map_err(KernelError::io("open", log_path))?;
        Ok(Self { log, log_path: log_path.to_owned(), interrupt, held: None })
    }

    /// Lets every program that is started from now on hold `file`'s lock too.
    pub(super) fn hold(&mut self, file: File) {
        self.held = Some(file);
    }

    /// Runs `command` to its end; `what` it was to do is for the message if it fails.
    pub(super) async fn run(
        &mut self,
        what: &str,
        mut command: Command,
        mut on_line: impl FnMut(&str),
    ) -> Result<(), KernelError> {
        writeln!(self.log, "# {command:?}").map_err(KernelError::io("write", &self.log_path))?;
        let program = PathBuf::from(command.get_program());
        let start = KernelError::io("start", &program);
        let (reader, group) = match self.start(&mut command) {
            Ok(started) => started,
            Err(error) => return Err(start(error)),
        };
        // The command still holds the pipe's writing end.
        drop(command);
        let mut lines = Lines::default();
        let mut group = group;
        let result = self.follow(reader, &mut group, |line| {
            lines.keep(line);
            on_line(line);
        });
        let status = result.await?;
        if status.success() {
            return Ok(());
        }
        Err(KernelError::Failed {
            what: what.to_owned(),
            status: status.to_string(),
            tail: lines.telling(),
            log: self.log_path.clone(),
        })
    }

    fn start(&self, command: &mut Command) -> io::Result<(pipe::Receiver, Group)> {
        let (reader, writer) = io::pipe()?;
        let stdin = match &self.held {
            Some(file) => Stdio::from(file.try_clone()?),
            None => Stdio::null(),
        };
        // A group of its own: a terminal's Ctrl-C reaches us alone, and we can end all of it.
        command.stdin(stdin).stdout(writer.try_clone()?).stderr(writer).process_group(0);
        let reader = pipe::Receiver::from_owned_fd(reader.into())?;
        let child = tokio::process::Command::from(std::mem::replace(command, Command::new(""))).spawn()?;
        Ok((reader, Group(child)))
    }

    async fn follow(
        &mut self,
        mut reader: pipe::Receiver,
        group: &mut Group,
        mut on_line: impl FnMut(&str),
    ) -> Result<std::process::ExitStatus, KernelError> {
        let mut splitter = Splitter::default();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read =
                async { reader.read(&mut buffer).await.map_err(KernelError::io("read", &self.log_path)) };
            match self.interrupt.or(read).await {
                Ok(0) => break,
                Ok(n) => {
                    self.log.write_all(&buffer[..n]).map_err(KernelError::io("write", &self.log_path))?;
                    splitter.feed(&buffer[..n], &mut on_line);
                }
                Err(error) => {
                    group.end().await;
                    return Err(error);
                }
            }
        }
        splitter.finish(&mut on_line);
        let ended = async { group.0.wait().await.map_err(KernelError::io("wait for", &self.log_path)) };
        match self.interrupt.or(ended).await {
            Ok(status) => Ok(status),
            Err(error) => {
                group.end().await;
                Err(error)
            }
        }
    }
}

/// A program with all that it started.
struct Group(tokio::process::Child);

impl Group {
    fn signal(&self, signal: Signal) {
        // Once the program is waited for, there is no id any more, and the number could be somebody else's.
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            // It can only fail because nobody is left.
            let _ = killpg(Pid::from_raw(id), signal);
        }
    }

    /// Has it end in good order: make removes what it has half written.
    async fn end(&mut self) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(PATIENCE, self.0.wait()).await.is_err() {
            self.signal(Signal::SIGKILL);
            let _ = self.0.wait().await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Default)]
struct Splitter(Vec<u8>);

impl Splitter {
    fn feed(&mut self, bytes: &[u8], on_line: &mut impl FnMut(&str)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE - self.0.len();
            self.0.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.finish(on_line);
            }
        }
    }

    fn finish(&mut self, on_line: &mut impl FnMut(&str)) {
        let line = String::from_utf8_lossy(&self.0);
        let line = line.trim_end();
        if !line.is_empty() {
            on_line(line);
        }
        self.0.clear();
    }
}

/// The lines of a program's output that say why it failed.
#[derive(Default)]
struct Lines {
    last: VecDeque<String>,
    errors: VecDeque<String>,
}

impl Lines {
    fn keep(&mut self, line: &str) {
        let push = |lines: &mut VecDeque<String>| {
            if lines.len() == TAIL {
                lines.pop_front();
            }
            lines.push_back(line.to_owned());
        };
        push(&mut self.last);
        // Compilers and linkers, and apt. Make's own come last, and say only where.
        if ["error:", "undefined reference"].iter().any(|sign| line.contains(sign)) || line.starts_with("E: ")
        {
            push(&mut self.errors);
        }
    }

    /// With many programs at once the error isn't at the end.
    fn telling(&self) -> String {
        let lines = if self.errors.is_empty() { &self.last } else { &self.errors };
        lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn output_goes_to_the_log_and_is_seen_by_line() {
        let home = tempfile::tempdir().unwrap();
        let log = home.path().join("deep/build.log");
        let (_interrupter, interrupt) = Interrupt::new();
        let mut runner = Runner::new(&log, interrupt).unwrap();
        let mut lines = Vec::new();
        let script = "echo one; echo two >&2; printf 'thr'; printf 'ee'";
        runner.run("count", shell(script), |line| lines.push(line.to_owned())).await.unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.starts_with("# \"sh\"") && log.ends_with("one\ntwo\nthree"), "{log}");
    }

    #[tokio::test]
    async fn a_failure_shows_the_lines_that_say_why() {
        let home = tempfile::tempdir().unwrap();
        let (_interrupter, interrupt) = Interrupt::new();
        let mut runner = Runner::new(&home.path().join("log"), interrupt).unwrap();
        let script = "echo 'x.c:1:2: error: no'; for i in $(seq 50); do echo CC $i; done; exit 3";
        let error = runner.run("compiling", shell(script), |_| {}).await.unwrap_err();
        let expected = "compiling failed (exit status: 3):\n  x.c:1:2: error: no";
        assert_eq!(error.to_string(), expected);
        let error = runner.run("seeking", shell("echo gone; exit 1"), |_| {}).await.unwrap_err();
        assert_eq!(error.to_string(), "seeking failed (exit status: 1):\n  gone");
        let error = runner.run("x", Command::new("/no/such/program"), |_| {}).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot start /no/such/program: "), "{error}");
    }

    #[tokio::test]
    async fn an_interrupt_ends_the_program_and_its_children() {
        let home = tempfile::tempdir().unwrap();
        let (interrupter, interrupt) = Interrupt::new();
        let mut runner = Runner::new(&home.path().join("log"), interrupt).unwrap();
        // Both must be gone for the pipe that they hold to report its end.
        let (reader, writer) = io::pipe().unwrap();
        let command = shell("sh -c 'echo ready; exec sleep 600' & wait");
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let result = runner.run("sleeping", command, |line| {
            assert_eq!(line, "ready");
            interrupter.interrupt();
        });
        assert!(matches!(result.await, Err(KernelError::Interrupted)));
        drop(writer);
        assert_eq!(io::Read::read(&mut { reader }, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_line_without_an_end_takes_no_more_room_than_a_long_one() {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for _ in 0..100 {
            splitter.feed(&[b'x'; 1000], &mut |line| lines.push(line.len()));
        }
        splitter.feed(b"\nshort\n", &mut |line| lines.push(line.len()));
        assert_eq!(lines, [MAX_LINE, 5]);
    }
}
