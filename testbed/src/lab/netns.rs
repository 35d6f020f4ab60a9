//! A network namespace held by file descriptor. It has no name and no mount: when the last descriptor and the last process
//! in it are gone, so is it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sched::CloneFlags;
use tokio::sync::oneshot;

/// A network namespace.
#[derive(Clone, Debug)]
pub(super) struct Namespace(Arc<File>);

impl Namespace {
    /// Makes a namespace and runs `first` in it, on a thread of its own that ends with it: a thread cannot get back to
    /// where it was without a right over that, and one of the runtime's must not be elsewhere.
    pub(super) async fn create<T: Send + 'static>(
        first: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<(Self, T)> {
        on_a_thread(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            // The process's own entry, /proc/self, would be the main thread's namespace.
            let namespace = File::open("/proc/thread-self/ns/net")?;
            Ok((Self(Arc::new(namespace)), first()))
        })
        .await?
    }

    /// Runs `work` in the namespace, on a thread of its own.
    pub(super) async fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let namespace = self.clone();
        on_a_thread(move || {
            nix::sched::setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
        .await?
    }
}

impl Namespace {
    /// As [`enter`](Self::enter), waiting for it here.
    pub(super) fn enter_blocking<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                nix::sched::setns(self.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })?;
            inside.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs `work` on a new thread, within the caller's runtime so that it may make sockets for it.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let runtime = tokio::runtime::Handle::current();
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("netns".into()).spawn(move || {
        let _runtime = runtime.enter();
        // Nobody waits for it any more: the build was given up.
        let _ = done.send(work());
    })?;
    result.await.map_err(|_| io::Error::other("a thread ended without a result"))
}
