//! What one request finds in a directory, each file opened once: what the head tells of is what the body is read from.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::libc::O_NONBLOCK;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use tower_http::services::fs::{Backend, TokioBackend, TokioFile};

use crate::fabric::BoxFuture;

/// The file system, for one request.
#[derive(Clone, Default)]
pub(super) struct Lookup(Arc<Mutex<Option<Found>>>);

/// A file or a directory, open, and what it was when it was opened.
pub(super) struct Found {
    path: PathBuf,
    pub(super) file: File,
    pub(super) metadata: Metadata,
}

impl Lookup {
    fn last(&self) -> MutexGuard<'_, Option<Found>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was looked at last.
    pub(super) fn into_found(self) -> Option<Found> {
        self.last().take()
    }
}

impl Backend for Lookup {
    type File = TokioFile;
    type Metadata = Metadata;
    type OpenFuture = <TokioBackend as Backend>::OpenFuture;
    type MetadataFuture = BoxFuture<'static, io::Result<Metadata>>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        TokioBackend.open(path)
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        let lookup = self.clone();
        Box::pin(async move {
            if let Some(found) = &*lookup.last()
                && found.path == path
            {
                return Ok(found.metadata.clone());
            }
            let file = open(path.clone()).await?;
            let metadata = file.metadata()?;
            if !metadata.is_file() && !metadata.is_dir() {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "neither a file nor a directory",
                ));
            }
            *lookup.last() = Some(Found { path, file, metadata: metadata.clone() });
            Ok(metadata)
        })
    }
}

/// Opens a file to be read: at once where the system has all the names on the way to it in its memory, as it nearly always
/// has, else by another thread, which would cost more than all the rest of a request for a small file.
async fn open(path: PathBuf) -> io::Result<File> {
    match open_cached(&path) {
        Some(file) => Ok(file),
        // A pipe would be waited for until somebody writes to it.
        None => {
            let open = move || OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path);
            tokio::task::spawn_blocking(open).await.map_err(io::Error::other)?
        }
    }
}

/// The same, where it waits for no disk (Linux 5.12).
fn open_cached(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok().map(File::from)
}
