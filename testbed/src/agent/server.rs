//! The agent: builds the lab, answers on its socket, and takes everything down in order when it is asked to.

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::command;
use super::commands::Commands;
use super::frame::{FrameError, FrameReader, FrameWriter};
use super::lookup::{self, NotExecuted};
use super::protocol::{Blame, DirectionChange, Exec, HostStatus, MAX_FRAME, Request, Response, Status};
use super::runtime::LabDir;
use super::shares::Shares;
use super::spawn;
use crate::lab::{Lab, LabError};
use crate::topology::Plan;

/// How long a client may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last answers may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 1024;

/// What the agent starts with.
pub(super) struct Start {
    pub(super) lab: LabDir,
    /// What the lab lives on: `host`, `uml` or `qemu`.
    pub(super) kernel: String,
    pub(super) plan: Plan,
    /// The agent's process id as the machine counts.
    pub(super) pid: i32,
    pub(super) listener: StdListener,
    /// Whoever wants to know when the lab is ready; until that one lets go, the lab lives as long as this is open.
    pub(super) caller: StdStream,
    /// Held to the end.
    pub(super) lock: File,
}

/// Runs the agent until the lab is gone.
pub(super) fn run(start: Start) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.and_then(|runtime| {
        let lab = start.lab.clone();
        let result = runtime.block_on(serve(start));
        runtime.shutdown_timeout(FAREWELL);
        tidy(&lab);
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("the agent failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Leaves no directory behind, unless whoever is bringing the lab up or taking it down sees to that.
pub(crate) fn tidy(lab: &LabDir) {
    if let Some(launch) = lab.try_launch()
        && let Err(error) = lab.remove(launch)
    {
        warn!("{error}");
    }
}

struct Agent {
    lab_dir: LabDir,
    lab: RwLock<Option<Lab>>,
    kernel: String,
    shares: Shares,
    commands: Commands,
    pid: i32,
    ready: Instant,
    /// Set when the lab is to go.
    stop: watch::Sender<bool>,
    /// Set when it is gone.
    gone: watch::Sender<bool>,
}

async fn serve(start: Start) -> io::Result<()> {
    let Start { lab: lab_dir, kernel, plan, pid, listener, caller, lock } = start;
    listener.set_nonblocking(true)?;
    caller.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let caller = UnixStream::from_std(caller)?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    let build = async {
        loopback_up().await?;
        Lab::build(plan).await
    };
    let built = tokio::select! {
        built = build => built,
        () = closed(&caller) => {
            warn!("whoever brought the lab up is gone before it was ready; so is the lab");
            return Ok(());
        }
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    };
    let lab = match built {
        Ok(lab) => lab,
        Err(LabError { message, blame }) => {
            error!("{message}");
            let answer = Response::Failed { message, blame };
            // Nobody else can be told; the log has it.
            let _ = FrameWriter::new(caller).message(&answer).await;
            return Ok(());
        }
    };

    let (stop, mut stopped) = watch::channel(false);
    let agent = Arc::new(Agent {
        lab_dir,
        lab: RwLock::new(Some(lab)),
        shares: Shares::of(&kernel),
        kernel,
        commands: Commands::default(),
        pid,
        ready: Instant::now(),
        stop,
        gone: watch::Sender::new(false),
    });
    info!("lab {} is up", agent.lab_dir.name());
    tokio::spawn(lease(agent.clone(), caller));

    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = accept(&listener, &permits) => match accepted {
                Ok((stream, permit)) => {
                    let agent = agent.clone();
                    connections.spawn(async move {
                        if let Err(error) = connection(&agent, stream).await {
                            info!("a client: {error}");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of descriptors, say: one that is closed makes room.
                    warn!("cannot accept a client: {error}");
                    connections.join_next().await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = stopped.changed() => break,
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    drop(listener);
    agent.take_down().await;
    let farewell = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
        warn!("some clients did not take their answers");
    }
    drop(lock);
    Ok(())
}

async fn accept(
    listener: &UnixListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

/// Returns when the other end is closed; nothing is expected from it.
pub(crate) async fn closed(stream: &UnixStream) {
    let mut byte = [0];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut byte) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// Tells the caller that the lab is ready. A byte from it lets the lab go on by itself; its end is the end of the lab.
async fn lease(agent: Arc<Agent>, mut caller: UnixStream) {
    use tokio::io::AsyncReadExt;
    let told = FrameWriter::new(&mut caller).message(&agent.status()).await;
    if told.is_ok() && matches!(caller.read(&mut [0]).await, Ok(1)) {
        return;
    }
    info!("whoever holds the lab let go of it");
    agent.stop.send_replace(true);
}

async fn connection(agent: &Agent, stream: UnixStream) -> Result<(), FrameError> {
    // The directory keeps others out already; this holds even if somebody opened it.
    let (peer, us) = (stream.peer_cred()?.uid(), geteuid().as_raw());
    let (from, to) = stream.into_split();
    let (mut from, mut to) = (FrameReader::new(from, MAX_FRAME), FrameWriter::new(to));
    if peer != us {
        let message = "this lab belongs to another user".to_owned();
        return to.message(&Response::Failed { message, blame: Blame::Usage }).await;
    }
    let request = tokio::time::timeout(REQUEST_TIMEOUT, from.message::<Request>()).await;
    let answer = match request {
        Err(_) => return Ok(()),
        Ok(Err(error)) => Response::Failed { message: error.to_string(), blame: Blame::Usage },
        Ok(Ok(None)) => return Ok(()),
        Ok(Ok(Some(request))) => match request {
            Request::Exec(exec) => return execute(agent, &exec, from, to).await,
            Request::Down => {
                agent.stop.send_replace(true);
                // An error is the agent's end, which is what we wait for.
                let _ = agent.gone.subscribe().wait_for(|gone| *gone).await;
                Response::Done
            }
            Request::Settle { hosts, limit_ms } => {
                agent.settle(&hosts, Duration::from_millis(limit_ms)).await
            }
            Request::ChangeLink { link, a_to_b, b_to_a } => agent.change_link(&link, [a_to_b, b_to_a]).await,
            other => agent.answer(other),
        },
    };
    to.message(&answer).await
}

async fn execute(
    agent: &Agent,
    exec: &Exec,
    from: FrameReader<tokio::net::unix::OwnedReadHalf>,
    mut to: FrameWriter<tokio::net::unix::OwnedWriteHalf>,
) -> Result<(), FrameError> {
    let Some(_running) = agent.commands.begin(&exec.host) else {
        return to.message(&agent.not_up()).await;
    };
    match agent.spawn(exec) {
        Ok(spawned) => Ok(command::supervise(spawned, from, to).await?),
        Err(response) => to.message(&response).await,
    }
}

impl Agent {
    fn not_up(&self) -> Response {
        let message = format!("lab `{}` is being taken down", self.lab_dir.name());
        Response::Failed { message, blame: Blame::Usage }
    }

    fn with_lab(&self, f: impl FnOnce(&Lab) -> Response) -> Response {
        match self.lab.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(lab) => f(lab),
            None => self.not_up(),
        }
    }

    async fn change_link(&self, link: &str, changes: [DirectionChange; 2]) -> Response {
        // The lab is not held while the kernel does its part.
        let begun = match self.lab.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(lab) => lab.change_link(link, changes),
            None => return self.not_up(),
        };
        let done = match begun {
            Ok(rest) => rest.await,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => Response::Done,
            Err(LabError { message, blame }) => Response::Failed { message, blame },
        }
    }

    async fn settle(&self, hosts: &[String], limit: Duration) -> Response {
        // The lab is not held while it is waited.
        let sockets = match self.lab.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(lab) => hosts.iter().map(|host| lab.sockets(host)).collect::<Result<Vec<_>, _>>(),
            None => return self.not_up(),
        };
        let all = async {
            for sockets in sockets? {
                sockets.settled().await?;
            }
            Ok(())
        };
        match tokio::time::timeout(limit, all).await {
            Ok(Ok(())) => Response::Settled { ended: true },
            Ok(Err(LabError { message, blame })) => Response::Failed { message, blame },
            Err(_) => Response::Settled { ended: false },
        }
    }

    /// Answers what needs no waiting.
    fn answer(&self, request: Request) -> Response {
        let failed = |LabError { message, blame }| Response::Failed { message, blame };
        match request {
            Request::Status => self.status(),
            Request::CaptureStart { link, file } => {
                if let Some(directory) = file.parent() {
                    self.shares.share(directory);
                }
                self.with_lab(|lab| lab.capture_start(&link, &file).map_or_else(failed, |()| Response::Done))
            }
            Request::CaptureStop { link } => self.with_lab(|lab| {
                lab.capture_stop(&link)
                    .map_or_else(failed, |(frames, dropped)| Response::Captured { frames, dropped })
            }),
            Request::Exec(_)
            | Request::Down
            | Request::Resize(_)
            | Request::Signal { .. }
            | Request::Settle { .. }
            | Request::ChangeLink { .. } => Response::Failed {
                message: "this belongs to a running command".to_owned(),
                blame: Blame::Usage,
            },
        }
    }

    fn status(&self) -> Response {
        self.with_lab(|lab| {
            let counts = self.commands.counts();
            let with_commands = |host: HostStatus| HostStatus {
                commands: counts.get(&host.name).copied().unwrap_or_default(),
                ..host
            };
            Response::Status(Box::new(Status {
                lab: self.lab_dir.name().to_string(),
                agent_pid: self.pid,
                up_ms: u64::try_from(self.ready.elapsed().as_millis()).unwrap_or(u64::MAX),
                kernel: self.kernel.clone(),
                release: release(),
                plan: lab.plan().clone(),
                links: lab.links(),
                hosts: lab.hosts().into_iter().map(with_commands).collect(),
            }))
        })
    }

    fn spawn(&self, exec: &Exec) -> Result<spawn::Spawned, Response> {
        let lab = self.lab.read().unwrap_or_else(PoisonError::into_inner);
        let Some(lab) = lab.as_ref() else { return Err(self.not_up()) };
        let Some(netns) = lab.netns(&exec.host) else {
            let hosts: Vec<&str> = lab.plan().hosts.iter().map(|host| host.name.as_str()).collect();
            return Err(Response::Failed {
                message: format!(
                    "lab `{}` has no host `{}`; its hosts are {}",
                    self.lab_dir.name(),
                    exec.host,
                    hosts.join(", ")
                ),
                blame: Blame::Usage,
            });
        };
        let usage = |message| Response::Failed { message, blame: Blame::Usage };
        let cwd = match &exec.cwd {
            Some(cwd) => cwd.clone(),
            None => std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        };
        self.shares.share(&cwd);
        if !cwd.is_dir() {
            return Err(usage(format!("there is no directory {} to run in", cwd.display())));
        }
        let nul = |text: &String| text.contains('\0');
        if exec.argv.iter().chain(exec.env.values()).any(nul)
            || exec.env.keys().any(|k| nul(k) || k.contains('='))
        {
            return Err(usage(
                "an argument or a variable has a NUL byte, or a variable's name an `=`".to_owned(),
            ));
        }
        let path = match exec.env.get("PATH") {
            Some(path) => path.into(),
            None => lookup::path(&self.lab_dir.bin()),
        };
        let program = exec.argv.first().map_or("", String::as_str);
        lookup::find(program, &path, &cwd)
            .and_then(|program| spawn::spawn(exec, &program, &cwd, &path, netns))
            .map_err(|NotExecuted { code, message }| Response::NotExecuted { code, message })
    }

    async fn take_down(&self) {
        self.commands.end_all().await;
        let lab = self.lab.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lab) = lab {
            for error in lab.teardown().await {
                // The end of this process takes away whatever is left, but it should have gone in order.
                error!("while taking the lab down: {error}");
            }
        }
        self.gone.send_replace(true);
    }
}

/// The running kernel's release, as `uname -r` has it.
fn release() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// Brings `lo` up in the agent's own network namespace.
async fn loopback_up() -> Result<(), LabError> {
    let failed = |error: &dyn std::fmt::Display| LabError {
        message: format!("cannot bring up the agent's own loopback interface: {error}"),
        blame: Blame::Machine,
    };
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| failed(&error))?;
    let connection = tokio::spawn(connection);
    // `lo` is the first interface of every network namespace.
    let up = rtnetlink::LinkUnspec::new_with_index(1).up().build();
    let result = handle.link().set(up).execute().await.map_err(|error| failed(&error));
    connection.abort();
    result
}
