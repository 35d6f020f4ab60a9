//! A command's life between its start and its end: input, output with back-pressure, signals, and a client that may go
//! away at any moment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::frame::{Frame, FrameReader, FrameWriter, Stream};
use super::protocol::{Exit, INPUT_WINDOW, Request, Response};
use super::spawn::{self, Spawned};

/// How long a command may take to end when it is asked to.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// How long a terminal's last output may take to come through once its session has ended.
const TERMINAL_DRAIN: Duration = Duration::from_millis(500);

/// Bytes of output that are read at once.
const CHUNK: usize = 64 << 10;

/// Frames that may wait for the client; with [`CHUNK`], what a stalled client makes us hold.
const QUEUE: usize = 4;

/// What a terminal takes for the end of input (VEOF, Ctrl-D).
const END_OF_TRANSMISSION: &[u8] = b"\x04";

/// Carries a command's streams until it has ended, or until the client is gone, by which it ends.
pub(super) async fn supervise(
    spawned: Spawned,
    mut from: FrameReader<OwnedReadHalf>,
    to: FrameWriter<OwnedWriteHalf>,
) -> io::Result<()> {
    let Spawned { mut child, pid, stdin, outputs, terminal } = spawned;
    let (frames, queue) = mpsc::channel(QUEUE);
    let writer = tokio::spawn(write(to, queue));
    send(&frames, &Response::Started { pid: pid.as_raw() }).await;

    let (exited, exit_seen) = watch::channel(false);
    let mut pumps = JoinSet::new();
    for (stream, fd) in outputs {
        let end = if terminal.is_some() { Drain::Terminal } else { Drain::Pipe };
        pumps.spawn(pump(fd, stream, end, frames.clone(), exit_seen.clone()));
    }
    let mut input = Input::start(stdin, terminal.is_some(), frames.clone());

    let mut exit = None;
    loop {
        tokio::select! {
            frame = from.next() => {
                let goes_on = match frame {
                    Ok(Some(Frame::Data(Stream::Stdin, data))) => input.give(data),
                    Ok(Some(Frame::Message(json))) => obey(&json, pid, exit.is_none(), terminal.as_ref()),
                    // Gone, or it speaks another language.
                    _ => false,
                };
                if !goes_on {
                    if exit.is_none() {
                        terminate(&mut child, pid).await?;
                    }
                    pumps.abort_all();
                    writer.abort();
                    return Ok(());
                }
            }
            status = child.wait(), if exit.is_none() => {
                exit = Some(status?);
                exited.send_replace(true);
            }
            done = pumps.join_next(), if exit.is_some() => {
                if done.is_none() {
                    break;
                }
            }
        }
    }
    drop(input);
    if let Some(status) = exit {
        send(&frames, &Response::Exited(exit_of(status))).await;
    }
    drop(frames);
    let _ = writer.await;
    Ok(())
}

/// Does what a message says; `false` if it makes no sense here.
fn obey(json: &[u8], pid: Pid, runs: bool, terminal: Option<&OwnedFd>) -> bool {
    match Frame::parse(json) {
        Ok(Request::Signal { signal }) => {
            let Ok(signal) = Signal::try_from(signal) else { return false };
            if runs {
                let _ = killpg(pid, signal);
            }
            true
        }
        Ok(Request::Resize(size)) => {
            if let Some(terminal) = terminal {
                let _ = spawn::resize(terminal.as_fd(), size);
            }
            true
        }
        _ => false,
    }
}

/// Ends the command's process group: asks, waits, then insists.
async fn terminate(child: &mut Child, pid: Pid) -> io::Result<()> {
    let _ = killpg(pid, Signal::SIGTERM);
    // A stopped group would not hear it.
    let _ = killpg(pid, Signal::SIGCONT);
    let _ = tokio::time::timeout(GRACE, child.wait()).await;
    // Also for those of the group that outlived their leader.
    let _ = killpg(pid, Signal::SIGKILL);
    child.wait().await.map(|_| ())
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(-1),
    }
}

async fn send(frames: &mpsc::Sender<Frame>, response: &Response) {
    if let Ok(frame) = Frame::message(response) {
        // If the client is gone its other direction says so.
        let _ = frames.send(frame).await;
    }
}

async fn write(mut to: FrameWriter<OwnedWriteHalf>, mut queue: mpsc::Receiver<Frame>) {
    while let Some(frame) = queue.recv().await {
        if to.send(&frame).await.is_err() {
            return;
        }
    }
}

/// When output is over although some process that the command left behind still could write.
#[derive(Clone, Copy)]
enum Drain {
    /// Once the command has ended and the pipe is empty: all that it wrote was in there.
    Pipe,
    /// Once the session has ended, by which the kernel hangs the terminal up.
    Terminal,
}

/// Carries output until its end.
async fn pump(
    fd: AsyncFd<OwnedFd>,
    stream: Stream,
    drain: Drain,
    frames: mpsc::Sender<Frame>,
    mut exited: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        // Seen before reading: what the command wrote is then there to be read.
        let over = *exited.borrow_and_update();
        match nix::unistd::read(&fd, &mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                if frames.send(Frame::Data(stream, Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                    return;
                }
                continue;
            }
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => {}
            // A terminal's end: nobody has its other side open.
            Err(_) => break,
        }
        let ready = async {
            if let Ok(mut ready) = fd.readable().await {
                ready.clear_ready();
            }
        };
        match (over, drain) {
            (true, Drain::Pipe) => break,
            (true, Drain::Terminal) => {
                if tokio::time::timeout(TERMINAL_DRAIN, ready).await.is_err() {
                    break;
                }
            }
            (false, _) => {
                tokio::select! {
                    () = ready => {}
                    _ = exited.changed() => {}
                }
            }
        }
    }
    let _ = frames.send(Frame::Data(stream, Bytes::new())).await;
}

/// The way of a command's input: never blocks whoever reads the connection, and never holds more than the window.
struct Input {
    queue: Option<mpsc::UnboundedSender<Bytes>>,
    waiting: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Input {
    fn start(fd: AsyncFd<OwnedFd>, is_terminal: bool, frames: mpsc::Sender<Frame>) -> Self {
        let (queue, mut data) = mpsc::unbounded_channel::<Bytes>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn({
            let waiting = waiting.clone();
            async move {
                // A command that has closed its input still takes bytes, to nowhere, so that the client never hangs.
                let mut open = true;
                while let Some(data) = data.recv().await {
                    open = open && write_all(&fd, &data).await.is_ok();
                    waiting.fetch_sub(data.len(), Ordering::Relaxed);
                    send(&frames, &Response::InputTaken { bytes: data.len() }).await;
                }
                if is_terminal && open {
                    let _ = write_all(&fd, END_OF_TRANSMISSION).await;
                }
            }
        });
        Self { queue: Some(queue), waiting, task }
    }

    /// Queues input, of which none is the end; `false` if the client sent more than it may.
    fn give(&mut self, data: Bytes) -> bool {
        if data.is_empty() {
            self.queue = None;
            return true;
        }
        let Some(queue) = &self.queue else { return false };
        let before = self.waiting.fetch_add(data.len(), Ordering::Relaxed);
        if before + data.len() > INPUT_WINDOW {
            return false;
        }
        let _ = queue.send(data);
        true
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn write_all(fd: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match nix::unistd::write(fd, data) {
            Ok(n) => data = &data[n..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => fd.writable().await?.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
