//! Taking files: one that is put appears whole or not at all.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Buf;
use http::header::{CONTENT_LENGTH, HeaderMap, IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use tempfile::NamedTempFile;

use super::Files;
use super::body::{BoxError, RequestBody};

/// How the files begin that are not whole yet. Nobody is given them.
pub(super) const PARTIAL: &str = ".rdma-httpd-";

/// Why a file was not taken.
enum Refusal {
    Status(StatusCode),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Files {
    /// Takes a body into a file, which is there when this returns.
    pub(super) async fn put(&self, path: &Path, request: Request<RequestBody>) -> StatusCode {
        match self.take(path, request).await {
            Ok(status) => status,
            Err(Refusal::Status(status)) => {
                if status == StatusCode::PAYLOAD_TOO_LARGE
                    && let Some(metrics) = &self.metrics
                {
                    metrics.limited("max-upload");
                }
                status
            }
            Err(Refusal::Io(error)) => {
                tracing::warn!(path = %path.display(), %error, "an upload failed");
                io_status(&error)
            }
        }
    }

    async fn take(&self, path: &Path, request: Request<RequestBody>) -> Result<StatusCode, Refusal> {
        if path.as_os_str().is_empty() || request.uri().path().ends_with('/') {
            return Err(Refusal::Status(StatusCode::CONFLICT));
        }
        let fresh = request.method() == Method::POST
            || request.headers().get(IF_NONE_MATCH).is_some_and(|value| value == "*");
        let taken = match *request.method() {
            Method::POST => StatusCode::CONFLICT,
            _ => StatusCode::PRECONDITION_FAILED,
        };
        let length = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > self.max_upload) {
            return Err(Refusal::Status(StatusCode::PAYLOAD_TOO_LARGE));
        }
        let conditions = Conditions::of(&request);
        let target = self.root.join(path);
        let (root, wanted) = (self.root.clone(), target.clone());
        let file = blocking(move || begin(&root, &wanted)).await??;
        if fresh && target.symlink_metadata().is_ok() {
            return Err(Refusal::Status(taken));
        }
        conditions.check(self).await?;
        let file = receive(file, request.into_body(), length, self.max_upload).await?;
        // Another may have put one meanwhile.
        conditions.check(self).await?;
        let status = blocking(move || {
            let existed = target.symlink_metadata().is_ok();
            // What a crash leaves is the old file or the new one.
            file.as_file().sync_all()?;
            let kept = if fresh { file.persist_noclobber(&target) } else { file.persist(&target) };
            match kept {
                Ok(_) if existed => Ok(StatusCode::NO_CONTENT),
                Ok(_) => Ok(StatusCode::CREATED),
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(taken),
                Err(error) => Err(error.error),
            }
        });
        Ok(status.await??)
    }
}

/// What a request takes its target for (RFC 9110, section 13.1).
struct Conditions {
    target: Uri,
    fields: HeaderMap,
}

impl Conditions {
    fn of(request: &Request<RequestBody>) -> Self {
        let mut fields = HeaderMap::new();
        for name in [IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE] {
            for value in request.headers().get_all(&name) {
                fields.append(&name, value.clone());
            }
        }
        Self { target: request.uri().clone(), fields }
    }

    /// Whether it is that now.
    async fn check(&self, files: &Files) -> Result<(), Refusal> {
        if self.fields.is_empty() {
            return Ok(());
        }
        let there = files.look(&self.target, self.fields.clone()).await;
        let failed = match there {
            // What would be no news to a reader is what a writer takes to be gone.
            StatusCode::PRECONDITION_FAILED | StatusCode::NOT_MODIFIED => true,
            StatusCode::NOT_FOUND => self.fields.contains_key(IF_MATCH),
            _ => false,
        };
        if failed { Err(Refusal::Status(StatusCode::PRECONDITION_FAILED)) } else { Ok(()) }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// A temporary file beside the target, so that it can be renamed; nowhere but under the root.
fn begin(root: &Path, target: &Path) -> Result<NamedTempFile, Refusal> {
    let directory = target.parent().unwrap_or(root);
    let inside = match directory.canonicalize() {
        Ok(directory) => directory.starts_with(root.canonicalize()?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Refusal::Status(StatusCode::CONFLICT));
        }
        Err(error) => return Err(error.into()),
    };
    if !inside {
        return Err(Refusal::Status(StatusCode::FORBIDDEN));
    }
    if fs::symlink_metadata(target).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(Refusal::Status(StatusCode::CONFLICT));
    }
    let file = tempfile::Builder::new()
        .prefix(PARTIAL)
        .suffix(".part")
        // Less the umask, as for any new file.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)?;
    Ok(file)
}

async fn receive(
    mut file: NamedTempFile,
    mut body: RequestBody,
    length: Option<u64>,
    most: u64,
) -> Result<NamedTempFile, Refusal> {
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error: BoxError| {
            tracing::warn!(%error, "an upload broke off");
            Refusal::Status(StatusCode::BAD_REQUEST)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        received += data.remaining() as u64;
        if received > most {
            return Err(Refusal::Status(StatusCode::PAYLOAD_TOO_LARGE));
        }
        file = blocking(move || file.write_all(&data).map(|()| file)).await??;
    }
    match length {
        Some(length) if length != received => Err(Refusal::Status(StatusCode::BAD_REQUEST)),
        _ => Ok(file),
    }
}

pub(super) fn io_status(error: &io::Error) -> StatusCode {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StatusCode::FORBIDDEN,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
