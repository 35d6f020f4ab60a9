//! What one request finds in a directory, each file opened once: what the head tells of is what the body is read from.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::libc::O_NONBLOCK;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
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
            let file = match open(path.clone()).await {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return directory(path, error).await;
                }
                opened => opened?,
            };
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
        Ok(file) => Ok(file),
        Err(Errno::NOENT) => Err(io::ErrorKind::NotFound.into()),
        // It would wait for a disk; or this kernel, or what confines us, does not know of it: whoever waits is told what it is.
        Err(_) => {
            // A pipe would be waited for until somebody writes to it.
            let open = move || OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path);
            tokio::task::spawn_blocking(open).await.map_err(io::Error::other)?
        }
    }
}

/// The same, where it waits for no disk (Linux 5.12).
fn open_cached(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).map(File::from)
}

/// What cannot be opened, if it is a directory: one that may be entered need not be readable.
async fn directory(path: PathBuf, refused: io::Error) -> io::Result<Metadata> {
    let look = tokio::task::spawn_blocking(move || std::fs::metadata(path));
    match look.await.map_err(io::Error::other)? {
        Ok(metadata) if metadata.is_dir() => Ok(metadata),
        _ => Err(refused),
    }
}
