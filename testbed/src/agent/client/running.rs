//! A command that runs in a host, as seen from outside.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

use super::{Client, ClientError};
use crate::agent::frame::{Frame, FrameError, FrameReader, FrameWriter, Stream};
use crate::agent::protocol::{Exit, INPUT_WINDOW, Request, Response, WindowSize};

/// Frames of output that may wait to be read; then the command is made to wait.
const QUEUE: usize = 16;

/// Bytes of input in one frame.
const CHUNK: usize = 64 << 10;

/// A command that runs in a host. Its two outputs share one connection: whoever wants only one of them drops the other
/// (`running.stderr = None`), or a command that prints much to the other will wait for ever. Dropping this kills the
/// command's process group.
#[derive(Debug)]
pub struct Running {
    /// The command's standard input, until it is taken. Dropping it, or [`Input::close`], is its end.
    pub stdin: Option<Input>,
    /// The command's standard output, until it is taken.
    pub stdout: Option<Output>,
    /// The command's standard error, until it is taken; empty if it has a terminal.
    pub stderr: Option<Output>,
    pid: i32,
    control: Control,
    exit: oneshot::Receiver<Result<Exit, ClientError>>,
    tasks: [AbortHandle; 2],
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outputs {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// Sends signals and sizes to a running command; can be cloned out of [`Running`].
#[derive(Clone, Debug)]
pub struct Control(mpsc::Sender<Frame>);

impl Control {
    /// Sends the command's process group a signal. If it has ended this does nothing.
    pub async fn signal(&self, signal: i32) {
        self.say(&Request::Signal { signal }).await;
    }

    /// Tells the command's terminal its new size.
    pub async fn resize(&self, size: WindowSize) {
        self.say(&Request::Resize(size)).await;
    }

    async fn say(&self, request: &Request) {
        if let Ok(frame) = Frame::message(request) {
            let _ = self.0.send(frame).await;
        }
    }
}

impl Running {
    pub(super) fn new(
        client: Client,
        pid: i32,
        from: FrameReader<OwnedReadHalf>,
        to: FrameWriter<OwnedWriteHalf>,
    ) -> Self {
        let window = Arc::new(Semaphore::new(INPUT_WINDOW));
        let (send, queue) = mpsc::channel(4);
        let (stdout_to, stdout) = mpsc::channel(QUEUE);
        let (stderr_to, stderr) = mpsc::channel(QUEUE);
        let (exit_to, exit) = oneshot::channel();
        let writer = tokio::spawn(write(to, queue));
        let reader = {
            let window = window.clone();
            tokio::spawn(async move {
                let exit = read(&client, from, stdout_to, stderr_to, &window).await;
                // Nobody takes input any more.
                window.close();
                let _ = exit_to.send(exit);
            })
        };
        Self {
            stdin: Some(Input { frames: Some(send.clone()), window }),
            stdout: Some(Output { queue: stdout, rest: Bytes::new() }),
            stderr: Some(Output { queue: stderr, rest: Bytes::new() }),
            pid,
            control: Control(send),
            exit,
            tasks: [writer.abort_handle(), reader.abort_handle()],
        }
    }

    /// The command's process id as the lab sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A handle by which signals and sizes can be sent while something else has this borrowed.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Sends the command's process group a signal.
    pub async fn signal(&self, signal: i32) {
        self.control.signal(signal).await;
    }

    /// Kills the command's process group.
    pub async fn kill(&self) {
        self.signal(nix::libc::SIGKILL).await;
    }

    /// Waits for the command's end. What it prints meanwhile must be read by somebody else, or its output dropped.
    pub async fn wait(&mut self) -> Result<Exit, ClientError> {
        match (&mut self.exit).await {
            Ok(exit) => exit,
            Err(_) => Err(FrameError::Io(io::Error::other("the command's end was waited for twice")).into()),
        }
    }

    /// Closes the input, collects what the command prints, up to `limit` bytes, and waits for its end.
    pub async fn output(mut self, limit: usize) -> Result<Outputs, ClientError> {
        if let Some(mut stdin) = self.stdin.take() {
            stdin.close().await;
        }
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let (stdout, stderr) = tokio::try_join!(collect(stdout, limit), collect(stderr, limit))?;
        let exit = self.wait().await?;
        Ok(Outputs { exit, stdout, stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn collect(output: Option<Output>, limit: usize) -> Result<Vec<u8>, ClientError> {
    let mut data = Vec::new();
    let Some(output) = output else { return Ok(data) };
    output.take(limit as u64 + 1).read_to_end(&mut data).await.map_err(FrameError::Io)?;
    if data.len() > limit { Err(ClientError::TooMuchOutput { limit }) } else { Ok(data) }
}

async fn write(mut to: FrameWriter<OwnedWriteHalf>, mut queue: mpsc::Receiver<Frame>) {
    while let Some(frame) = queue.recv().await {
        if to.send(&frame).await.is_err() {
            return;
        }
    }
    // The connection must stay open for writing: its end would be this side's end. The reader has the other half.
    std::future::pending::<()>().await;
}

async fn read(
    client: &Client,
    mut from: FrameReader<OwnedReadHalf>,
    stdout: mpsc::Sender<Bytes>,
    stderr: mpsc::Sender<Bytes>,
    window: &Semaphore,
) -> Result<Exit, ClientError> {
    let (mut stdout, mut stderr) = (Some(stdout), Some(stderr));
    loop {
        let to = match from.next().await {
            Ok(Some(Frame::Data(Stream::Stdout, data))) => (&mut stdout, data),
            Ok(Some(Frame::Data(Stream::Stderr, data))) => (&mut stderr, data),
            Ok(Some(Frame::Data(Stream::Stdin, _))) => return Err(client.unexpected()),
            Ok(Some(Frame::Message(json))) => match Frame::parse(&json)? {
                Response::InputTaken { bytes } => {
                    window
                        .add_permits(bytes.min(INPUT_WINDOW - window.available_permits().min(INPUT_WINDOW)));
                    continue;
                }
                Response::Exited(exit) => return Ok(exit),
                _ => return Err(client.unexpected()),
            },
            Ok(None) => return Err(client.gone()),
            Err(error) => return Err(client.gone_or(error)),
        };
        match to {
            (output, data) if data.is_empty() => *output = None,
            (output, data) => {
                if let Some(sender) = output
                    && sender.send(data).await.is_err()
                {
                    *output = None;
                }
            }
        }
    }
}

/// A command's standard input.
#[derive(Debug)]
pub struct Input {
    frames: Option<mpsc::Sender<Frame>>,
    window: Arc<Semaphore>,
}

impl Input {
    /// Writes all of `data`; waits while the command has enough. An error means that the command has ended.
    pub async fn write(&mut self, mut data: Bytes) -> io::Result<()> {
        let ended = || io::Error::from(io::ErrorKind::BrokenPipe);
        let frames = self.frames.as_ref().ok_or_else(ended)?;
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(CHUNK));
            let permits = u32::try_from(piece.len()).map_err(|_| ended())?;
            self.window.acquire_many(permits).await.map_err(|_| ended())?.forget();
            frames.send(Frame::Data(Stream::Stdin, piece)).await.map_err(|_| ended())?;
        }
        Ok(())
    }

    /// The end of input.
    pub async fn close(&mut self) {
        if let Some(frames) = self.frames.take() {
            let _ = frames.send(Frame::Data(Stream::Stdin, Bytes::new())).await;
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Some(frames) = self.frames.take() {
            let end = Frame::Data(Stream::Stdin, Bytes::new());
            match frames.try_send(end) {
                Err(mpsc::error::TrySendError::Full(end)) => {
                    // Someone has to wait for room; without a runtime there is no connection either.
                    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                        runtime.spawn(async move { frames.send(end).await });
                    }
                }
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
    }
}

/// One of a command's outputs.
#[derive(Debug)]
pub struct Output {
    queue: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Output {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() { self.queue.recv().await } else { Some(std::mem::take(&mut self.rest)) }
    }
}

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.queue.poll_recv(cx)) {
                Some(data) => self.rest = data,
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..n]);
        self.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}
