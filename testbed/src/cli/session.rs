//! A command in a host with this process's streams as its own: what `exec` and `shell` do.

use std::io::{Read as _, Write};
use std::process::ExitCode;

use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::terminal::{self, Raw};
use super::{Code, Failure, Outcome};
use crate::agent::client::{Client, Command, Control, Input, Output};
use crate::agent::protocol::Exit;

/// Bytes that are read from standard input at once.
const CHUNK: usize = 64 << 10;

/// What shells make of a death by SIGPIPE.
const BROKEN_PIPE: u8 = 128 + 13;

/// Runs a command to its end and returns its exit code.
pub(super) async fn run(client: &Client, command: Command, with_terminal: bool) -> Outcome {
    let command = if with_terminal { command.terminal(terminal::size()) } else { command };
    let mut running = client.exec(command).await?;
    let raw =
        if with_terminal { Raw::enter().map_err(|error| cannot("use the terminal", &error))? } else { None };

    let control = running.control();
    let signals = Signals::new().map_err(|error| cannot("handle signals", &error))?;
    let signals = tokio::spawn(signals.forward(control, with_terminal));
    if let Some(stdin) = running.stdin.take() {
        tokio::spawn(feed(stdin));
    }
    let (stdout, stderr) = (running.stdout.take(), running.stderr.take());
    let outputs =
        async { tokio::try_join!(copy(stdout, std::io::stdout), copy(stderr, std::io::stderr)).map(|_| ()) };
    let copied = outputs.await;
    let exit = match copied {
        Ok(()) => Some(running.wait().await),
        // Nobody reads any more. Dropping the command ends it.
        Err(_) => None,
    };
    signals.abort();
    drop(running);
    drop(raw);
    match exit {
        None => Ok(ExitCode::from(BROKEN_PIPE)),
        Some(exit) => Ok(exit_code(exit?)),
    }
}

fn cannot(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(Code::Machine, format!("cannot {what}: {error}"))
}

/// A command's own code, or 128 and the signal that ended it, as shells have it.
fn exit_code(exit: Exit) -> ExitCode {
    let code = match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => 128 + signal,
    };
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}

/// The signals that are the command's, not ours.
struct Signals {
    passed_on: Vec<(i32, tokio::signal::unix::Signal)>,
    resized: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let kinds =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let passed_on = kinds.into_iter().map(|kind| Ok((kind.as_raw_value(), signal(kind)?)));
        Ok(Self {
            passed_on: passed_on.collect::<std::io::Result<_>>()?,
            resized: signal(SignalKind::window_change())?,
        })
    }

    async fn forward(mut self, control: Control, with_terminal: bool) {
        loop {
            let any = std::future::poll_fn(|cx| {
                for (number, signal) in &mut self.passed_on {
                    if signal.poll_recv(cx).is_ready() {
                        return std::task::Poll::Ready(*number);
                    }
                }
                std::task::Poll::Pending
            });
            tokio::select! {
                number = any => control.signal(number).await,
                Some(()) = self.resized.recv(), if with_terminal => control.resize(terminal::size()).await,
            }
        }
    }
}

/// Standard input to the command. The reading is in a thread of its own, which nobody waits for: it may be stuck in a
/// read until the user types.
async fn feed(mut stdin: Input) {
    let (give, mut take) = mpsc::channel::<Bytes>(1);
    let reader = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match std::io::stdin().read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    if give.blocking_send(Bytes::copy_from_slice(&buffer[..n])).is_err() {
                        return;
                    }
                }
            }
        }
    });
    if reader.is_ok() {
        while let Some(data) = take.recv().await {
            if stdin.write(data).await.is_err() {
                return;
            }
        }
    }
    stdin.close().await;
}

async fn copy<W: Write + 'static>(from: Option<Output>, to: fn() -> W) -> std::io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    while let Some(data) = from.next().await {
        let written = tokio::task::spawn_blocking(move || {
            let mut to = to();
            to.write_all(&data).and_then(|()| to.flush())
        });
        written.await.map_err(std::io::Error::other)??;
    }
    Ok(())
}
