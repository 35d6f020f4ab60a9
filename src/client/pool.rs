//! A pool: connections that are kept for the next request, and no more of them at once than may be.
//!
//! Each HTTP connection brings its RDMA connection and its registered memory. Whoever finds all of an origin's connections
//! in use, or all registered memory taken, waits; who came first is served first, and nobody waits for ever.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::Method;
use http::header::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::response::Response;
use super::{Client, ClientError, HttpConnection, Upload};

/// Limits of a [`Pool`].
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Connections at once to one origin (a host and a port), idle ones included; 1 at the least.
    pub per_origin: usize,
    /// How long a connection is kept that nobody uses. A server ends it sooner or later, too; then it is made anew.
    pub idle: Duration,
    /// How long a request may wait for its turn.
    pub wait: Duration,
    /// Bytes registered at once by all connections. A connection counts with the most that a transfer on it may register
    /// ([`Options::registered_at_most`](super::Options::registered_at_most)): while it is in use, and with the strategies
    /// that keep buffers as long as it is there. Without a fabric nothing counts.
    pub max_registered: u64,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            per_origin: 8,
            idle: Duration::from_secs(50),
            wait: Duration::from_secs(300),
            max_registered: 1 << 30,
        }
    }
}

/// A client with connections that are kept. Clones share them. To be used within a tokio runtime.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    client: Client,
    options: PoolOptions,
    /// What may be registered, in [`UNIT`]s.
    memory: Arc<Semaphore>,
    /// How many wait for memory: then nobody keeps what others need.
    in_need: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    origins: HashMap<Origin, Kept>,
    /// Whether a task ends what is idle for too long.
    tidied: bool,
    /// Connections that are being closed.
    closing: JoinSet<()>,
}

/// Host and port, as they were asked for.
type Origin = (String, u16);

/// What is kept for an origin.
struct Kept {
    turns: Arc<Semaphore>,
    /// The one that was used last comes last, and is used first.
    idle: Vec<Idle>,
}

struct Idle {
    connection: HttpConnection,
    /// What its buffers take of the memory, where they stay registered.
    share: Option<OwnedSemaphorePermit>,
    until: Instant,
}

/// A connection in use. It goes back to the pool only if its exchange ended well.
pub(super) struct Lease {
    pool: Arc<Shared>,
    origin: Origin,
    // Taken when it is given back.
    connection: Option<HttpConnection>,
    share: Option<OwnedSemaphorePermit>,
    // Whoever waits for a turn gets it once the connection is where it belongs, or closed.
    turn: Option<OwnedSemaphorePermit>,
}

/// In which registered memory is counted, so that the numbers fit a semaphore's.
const UNIT: u64 = 64 << 10;

impl Pool {
    /// A pool of this client's connections.
    pub fn new(client: Client, options: PoolOptions) -> Self {
        let units = usize::try_from(options.max_registered / UNIT).unwrap_or(usize::MAX);
        let memory = Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS)));
        let (in_need, state) = (AtomicUsize::new(0), Mutex::default());
        Self(Arc::new(Shared { client, options, memory, in_need, state }))
    }

    /// Sends a request without a body to `host` and `port`, as [`HttpConnection::request`] does. The connection is in use
    /// until the response's body is read to its end, or dropped.
    pub async fn request(
        &self,
        (host, port): (&str, u16),
        method: Method,
        target: &str,
        headers: HeaderMap,
    ) -> Result<Response, ClientError> {
        let mut lease = self.lease(host, port).await?;
        let answered = lease.connection()?.request(method, target, headers).await?;
        Ok(lease.hold(answered))
    }

    /// Sends a file, as [`HttpConnection::upload`] does.
    pub async fn upload(
        &self,
        (host, port): (&str, u16),
        method: Method,
        target: &str,
        headers: HeaderMap,
        upload: &Upload,
    ) -> Result<Response, ClientError> {
        let mut lease = self.lease(host, port).await?;
        let answered = lease.connection()?.upload(method, target, headers, upload).await?;
        Ok(lease.hold(answered))
    }

    /// Connections that are kept and not in use.
    pub fn idle(&self) -> usize {
        self.0.state().origins.values().map(|kept| kept.idle.len()).sum()
    }

    /// Closes what is idle, in good order, and waits for what is being closed. What is in use stays.
    pub async fn close(&self) {
        let mut closing = {
            let mut state = self.0.state();
            let kept = std::mem::take(&mut state.origins);
            for idle in kept.into_values().flat_map(|kept| kept.idle) {
                state.closing.spawn(close(idle.connection, idle.share));
            }
            std::mem::take(&mut state.closing)
        };
        while closing.join_next().await.is_some() {}
    }

    /// A connection to use, once there is a turn and memory for it.
    async fn lease(&self, host: &str, port: u16) -> Result<Lease, ClientError> {
        let pool = &self.0;
        let needed = pool.needed()?;
        let limit = pool.options.wait;
        let deadline = Instant::now() + limit;
        let busy = |what| ClientError::Busy { host: host.to_owned(), port, what, limit };
        let origin = (host.to_owned(), port);
        let turns = pool.turns(&origin);
        let turn = timeout_at(deadline, turns.acquire_owned()).await;
        let turn = turn.ok().and_then(Result::ok).ok_or_else(|| busy("connection"))?;
        let (kept, mut share) = match pool.take_idle(&origin) {
            Some(idle) => (Some(idle.connection), idle.share),
            None => (None, None),
        };
        if needed > 0 && share.is_none() {
            share = match timeout_at(deadline, pool.share(needed)).await {
                Ok(share) => share,
                Err(_) => {
                    if let Some(connection) = kept {
                        pool.end(connection, turn);
                    }
                    return Err(busy("registered memory"));
                }
            };
        }
        let connection = match kept {
            Some(mut connection) => {
                connection.renew().await?;
                connection
            }
            None => pool.client.connect(host, port).await?,
        };
        let (pool, connection) = (pool.clone(), Some(connection));
        Ok(Lease { pool, origin, connection, share, turn: Some(turn) })
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a connection takes of the memory, in units.
    fn needed(&self) -> Result<u32, ClientError> {
        if self.client.fabric.is_none() {
            return Ok(0);
        }
        let one = self.client.options.registered_at_most();
        let limit = self.options.max_registered;
        match u32::try_from(one.div_ceil(UNIT)) {
            Ok(units) if u64::from(units) <= limit / UNIT => Ok(units),
            _ => Err(ClientError::TooMuchMemory { one, limit }),
        }
    }

    fn turns(&self, origin: &Origin) -> Arc<Semaphore> {
        let fresh = || Arc::new(Semaphore::new(self.options.per_origin.max(1)));
        let mut state = self.state();
        let kept = state.origins.entry(origin.clone());
        kept.or_insert_with(|| Kept { turns: fresh(), idle: Vec::new() }).turns.clone()
    }

    fn take_idle(&self, origin: &Origin) -> Option<Idle> {
        self.state().origins.get_mut(origin)?.idle.pop()
    }

    /// Waits for memory; what idle connections hold of it is given up for it.
    async fn share(&self, needed: u32) -> Option<OwnedSemaphorePermit> {
        let _need = Need::new(&self.in_need);
        if let Ok(share) = self.memory.clone().try_acquire_many_owned(needed) {
            return Some(share);
        }
        self.give_up(needed);
        // The semaphore is never closed.
        self.memory.clone().acquire_many_owned(needed).await.ok()
    }

    /// Closes idle connections that hold so much memory, those that were idle for the longest first.
    fn give_up(&self, needed: u32) {
        let mut state = self.state();
        let State { origins, closing, .. } = &mut *state;
        let mut given = 0;
        while given < needed as usize {
            let holders =
                origins.values_mut().filter(|kept| kept.idle.iter().any(|idle| idle.share.is_some()));
            let Some(kept) = holders.min_by_key(|kept| kept.idle.first().map(|idle| idle.until)) else {
                return;
            };
            let Idle { connection, share, .. } = kept.idle.remove(0);
            given += share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            closing.spawn(close(connection, share));
        }
    }

    /// Takes a connection back whose exchange ended well.
    fn put(
        self: &Arc<Self>,
        origin: &Origin,
        connection: HttpConnection,
        share: Option<OwnedSemaphorePermit>,
    ) {
        let keeps = self.client.options.memory.keeps_buffers();
        let share = share.filter(|_| keeps);
        if share.is_some() && self.in_need.load(Ordering::Acquire) > 0 {
            self.end(connection, share);
            return;
        }
        let until = Instant::now() + self.options.idle;
        let mut state = self.state();
        let Some(kept) = state.origins.get_mut(origin) else {
            drop(state);
            self.end(connection, share);
            return;
        };
        kept.idle.push(Idle { connection, share, until });
        if !std::mem::replace(&mut state.tidied, true) {
            tokio::spawn(tidy(Arc::downgrade(self), until));
        }
    }

    /// Closes a connection without anybody waiting for it; what it holds is held until then.
    fn end(&self, connection: HttpConnection, held: impl Send + 'static) {
        // Without a runtime there is nobody to say farewell; dropping it closes it, too.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut state = self.state();
        while state.closing.try_join_next().is_some() {}
        state.closing.spawn_on(close(connection, held), &runtime);
    }

    /// Ends what has been idle for too long; when the next will have been.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state();
        let State { origins, closing, tidied } = &mut *state;
        while closing.try_join_next().is_some() {}
        let mut next: Option<Instant> = None;
        origins.retain(|_, kept| {
            // The oldest come first.
            let fresh = kept.idle.iter().position(|idle| idle.until > now).unwrap_or(kept.idle.len());
            for idle in kept.idle.drain(..fresh) {
                closing.spawn(close(idle.connection, idle.share));
            }
            let first = kept.idle.first().map(|idle| idle.until);
            next = next.into_iter().chain(first).min();
            // Leases and who waits for one hold on to the turns.
            first.is_some() || Arc::strong_count(&kept.turns) > 1
        });
        *tidied = next.is_some();
        next
    }
}

/// Closes a connection, and then lets go of what it held: its buffers are registered until it is closed.
async fn close(connection: HttpConnection, held: impl Send) {
    connection.close().await;
    drop(held);
}

/// Ends idle connections when their time has come, as long as there are any.
async fn tidy(pool: Weak<Shared>, first: Instant) {
    let mut next = first;
    loop {
        sleep_until(next).await;
        let Some(pool) = pool.upgrade() else { return };
        match pool.expire(Instant::now()) {
            Some(later) => next = later,
            None => return,
        }
    }
}

/// Counts as one who needs memory as long as it lives.
struct Need<'a>(&'a AtomicUsize);

impl<'a> Need<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Need<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Lease {
    fn connection(&mut self) -> Result<&mut HttpConnection, ClientError> {
        self.connection.as_mut().ok_or_else(|| ClientError::Protocol("the connection was given back".into()))
    }

    /// Binds the connection to a response, until its body is over.
    fn hold(self, mut response: Response) -> Response {
        response.body.hold(self);
        response
    }

    /// The exchange ended well.
    pub(super) fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.put(&self.origin, connection, self.share.take());
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.end(connection, (self.share.take(), self.turn.take()));
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("origin", &self.origin).finish_non_exhaustive()
    }
}
