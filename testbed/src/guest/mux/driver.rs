//! Joins a [`Mux`] to a line and to Unix sockets.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::frame::MAX_DATA;
use super::{Event, Mux, MuxError, Service, StreamId};

/// Bytes that are read from the line, and written to it, at once.
const CHUNK: usize = 64 << 10;

/// How long the line's other direction may take to end after one has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a line carries nothing any more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LineClosed {
    /// The other side ended it.
    #[error("the line to the guest was closed")]
    End,
    /// It failed.
    #[error("the line to the guest failed: {0}")]
    Io(Arc<io::Error>),
    /// What came over it makes no sense.
    #[error(transparent)]
    Protocol(#[from] MuxError),
}

/// A line in use. It is given up when this is dropped.
#[derive(Debug)]
pub struct Driver {
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

/// Opens streams on a line.
#[derive(Clone, Debug)]
pub struct Opener(Arc<Shared>);

/// The streams that the other side opens.
#[derive(Debug)]
pub struct Incoming {
    shared: Arc<Shared>,
    opened: mpsc::UnboundedReceiver<(StreamId, Service, mpsc::UnboundedReceiver<Arrived>)>,
}

#[derive(Clone, Debug)]
enum LineState {
    Silent,
    Greeted,
    Closed(LineClosed),
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There may be something to write.
    pending: Notify,
    /// Something was written.
    written: Notify,
    line: watch::Sender<LineState>,
    /// Streams that the peer opened; those that nobody takes are bounded as streams are.
    incoming: mpsc::UnboundedSender<(StreamId, Service, mpsc::UnboundedReceiver<Arrived>)>,
}

#[derive(Debug)]
struct State {
    mux: Mux,
    links: BTreeMap<StreamId, Link>,
}

/// The way from the line to a stream's socket.
#[derive(Debug)]
struct Link {
    /// What it holds is bounded by the credit that the peer has.
    arrived: mpsc::UnboundedSender<Arrived>,
    writable: Arc<Notify>,
}

#[derive(Debug)]
enum Arrived {
    Data(Bytes),
    Finish,
    Reset,
}

impl Driver {
    /// Runs a line. Must be called within a runtime.
    pub fn start<R, W>(mux: Mux, from: R, to: W) -> (Self, Opener, Incoming)
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (incoming, opened) = mpsc::unbounded_channel();
        let state = Mutex::new(State { mux, links: BTreeMap::new() });
        let line = watch::Sender::new(LineState::Silent);
        let shared =
            Arc::new(Shared { state, pending: Notify::new(), written: Notify::new(), line, incoming });
        let tasks = [tokio::spawn(read(shared.clone(), from)), tokio::spawn(write(shared.clone(), to))];
        (Self { shared: shared.clone(), tasks }, Opener(shared.clone()), Incoming { shared, opened })
    }

    /// Waits for the guest's greeting.
    pub async fn greeted(&self) -> Result<(), LineClosed> {
        let mut line = self.shared.line.subscribe();
        let state = line.wait_for(|state| !matches!(state, LineState::Silent)).await;
        match state.as_deref() {
            Ok(LineState::Closed(why)) => Err(why.clone()),
            _ => Ok(()),
        }
    }

    /// Waits until every stream is finished from this side, and the line has all of it.
    pub async fn flushed(&self) {
        loop {
            let written = self.shared.written.notified();
            if self.shared.lock().mux.is_flushed() {
                return;
            }
            written.await;
        }
    }

    /// Waits for the end of the line.
    pub async fn closed(&self) -> LineClosed {
        let mut line = self.shared.line.subscribe();
        let state = line.wait_for(|state| matches!(state, LineState::Closed(_))).await;
        match state.as_deref() {
            Ok(LineState::Closed(why)) => why.clone(),
            _ => LineClosed::End,
        }
    }
}

#[cfg(test)]
impl Driver {
    /// Streams that are not over.
    pub(super) fn shared_streams(&self) -> usize {
        self.shared.lock().mux.streams()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.close(LineClosed::End);
    }
}

impl Opener {
    /// Opens a stream and carries `socket` over it until both ways are at their end. Returns at once.
    pub fn carry(&self, service: Service, socket: UnixStream) -> Result<(), LineClosed> {
        let mut state = self.0.lock();
        if let LineState::Closed(why) = &*self.0.line.borrow() {
            return Err(why.clone());
        }
        let id = state.mux.open(service)?;
        let arrived = state.link(id);
        drop(state);
        self.0.pending.notify_one();
        tokio::spawn(carry(self.0.clone(), id, arrived, socket));
        Ok(())
    }

    /// Opens a stream; what is returned is its near end.
    pub fn open(&self, service: Service) -> Result<UnixStream, LineClosed> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| LineClosed::Io(Arc::new(error)))?;
        self.carry(service, theirs)?;
        Ok(ours)
    }
}

impl Incoming {
    /// The next stream that the other side opens; `None` once the line is closed.
    pub async fn next(&mut self) -> Option<Accepted> {
        let mut line = self.shared.line.subscribe();
        tokio::select! {
            biased;
            opened = self.opened.recv() => {
                let (id, service, arrived) = opened?;
                Some(Accepted { shared: self.shared.clone(), id, service, arrived: Some(arrived) })
            }
            _ = line.wait_for(|state| matches!(state, LineState::Closed(_))) => None,
        }
    }
}

/// A stream that the other side opened. Dropped, it is refused.
#[derive(Debug)]
pub struct Accepted {
    shared: Arc<Shared>,
    id: StreamId,
    service: Service,
    arrived: Option<mpsc::UnboundedReceiver<Arrived>>,
}

impl Accepted {
    /// What it is for.
    pub fn service(&self) -> Service {
        self.service
    }

    /// Carries `socket` over it until both ways are at their end. Returns at once.
    pub fn carry(mut self, socket: UnixStream) {
        if let Some(arrived) = self.arrived.take() {
            tokio::spawn(carry(self.shared.clone(), self.id, arrived, socket));
        }
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        if self.arrived.is_some() {
            self.shared.with(|state| state.reset(self.id));
        }
    }
}

impl State {
    fn link(&mut self, id: StreamId) -> mpsc::UnboundedReceiver<Arrived> {
        let (arrived, receiver) = mpsc::unbounded_channel();
        self.links.insert(id, Link { arrived, writable: Arc::new(Notify::new()) });
        receiver
    }

    fn reset(&mut self, id: StreamId) {
        self.mux.reset(id);
        self.links.remove(&id);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held is a bug of ours; the other streams still deserve their ends.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the state that may leave something to write or to tell.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = work(&mut state);
        self.tell(&mut state);
        drop(state);
        self.pending.notify_one();
        result
    }

    fn tell(&self, state: &mut State) {
        while let Some(event) = state.mux.poll_event() {
            match event {
                Event::Greeted => self.line.send_if_modified(|line| {
                    let silent = matches!(line, LineState::Silent);
                    if silent {
                        *line = LineState::Greeted;
                    }
                    silent
                }),
                Event::Opened(id, service) => {
                    let arrived = state.link(id);
                    self.incoming.send((id, service, arrived)).is_ok()
                }
                // Whoever does not listen any more is about to reset the stream.
                Event::Data(id, data) => state.pass(id, Arrived::Data(data)),
                Event::Finished(id) => state.pass(id, Arrived::Finish),
                Event::Reset(id) => {
                    let passed = state.pass(id, Arrived::Reset);
                    state.links.remove(&id);
                    passed
                }
                Event::Writable(id) => state.links.get(&id).is_some_and(|link| {
                    link.writable.notify_one();
                    true
                }),
            };
        }
    }

    fn close(&self, why: LineClosed) {
        // Dropping the links ends every stream.
        self.lock().links.clear();
        self.line.send_if_modified(|line| {
            let open = !matches!(line, LineState::Closed(_));
            if open {
                *line = LineState::Closed(why);
            }
            open
        });
    }
}

impl State {
    fn pass(&self, id: StreamId, arrived: Arrived) -> bool {
        self.links.get(&id).is_some_and(|link| link.arrived.send(arrived).is_ok())
    }
}

async fn read(shared: Arc<Shared>, mut from: impl AsyncRead + Unpin) {
    let mut buffer = vec![0; CHUNK];
    let why = loop {
        match from.read(&mut buffer).await {
            Ok(0) => break LineClosed::End,
            Ok(n) => {
                if let Err(error) = shared.with(|state| state.mux.receive(&buffer[..n])) {
                    break error.into();
                }
            }
            Err(error) => break LineClosed::Io(Arc::new(error)),
        }
    };
    shared.close(why);
}

async fn write(shared: Arc<Shared>, mut to: impl AsyncWrite + Unpin) {
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        chunk.clear();
        {
            let state = shared.lock();
            let waiting = state.mux.transmit();
            chunk.extend_from_slice(&waiting[..waiting.len().min(CHUNK)]);
        }
        if chunk.is_empty() {
            shared.pending.notified().await;
            continue;
        }
        if let Err(error) = to.write_all(&chunk).await {
            // The reader is about to find the line's end too, and knows better why.
            let mut line = shared.line.subscribe();
            let closed = line.wait_for(|state| matches!(state, LineState::Closed(_)));
            let _ = tokio::time::timeout(PATIENCE, closed).await;
            return shared.close(LineClosed::Io(Arc::new(error)));
        }
        let mut state = shared.lock();
        state.mux.transmitted(chunk.len());
        shared.tell(&mut state);
        shared.written.notify_waiters();
    }
}

/// The stream is over, before its time.
struct Gone;

/// Carries a socket over a stream.
async fn carry(
    shared: Arc<Shared>,
    id: StreamId,
    mut arrived: mpsc::UnboundedReceiver<Arrived>,
    mut socket: UnixStream,
) {
    let writable = shared.lock().links.get(&id).map(|link| link.writable.clone());
    let Some(writable) = writable else { return };
    let (mut from, mut to) = socket.split();
    let up = async {
        let mut buffer = vec![0; MAX_DATA];
        loop {
            let n = from.read(&mut buffer).await.map_err(|_| Gone)?;
            if n == 0 {
                shared.with(|state| state.mux.finish(id));
                return Ok(());
            }
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                let taken = shared.with(|state| state.mux.send(id, rest));
                rest = &rest[taken..];
                if taken == 0 {
                    writable.notified().await;
                }
            }
        }
    };
    let down = async {
        let mut takes = true;
        loop {
            match arrived.recv().await {
                Some(Arrived::Data(data)) => {
                    // Whoever takes nothing any more has closed its end; what it said before, such as an agent's last
                    // answer while the client was still saying something, is still to go the other way.
                    takes = takes && to.write_all(&data).await.is_ok();
                    shared.with(|state| state.mux.consumed(id, data.len()));
                }
                Some(Arrived::Finish) => {
                    let _ = to.shutdown().await;
                    return Ok(());
                }
                Some(Arrived::Reset) | None => return Err(Gone),
            }
        }
    };
    // One side's failure ends the other's work; the socket is then closed, which tells whoever has its other end.
    let _: Result<((), ()), Gone> = tokio::try_join!(up, down);
    // Where both ways have ended this changes nothing.
    shared.with(|state| state.reset(id));
}
