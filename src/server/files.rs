//! The file service: a directory to read from and, where that is allowed, to put files into. A file that is put appears
//! whole or not at all.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, IF_NONE_MATCH};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use percent_encoding::percent_decode_str;
use tempfile::NamedTempFile;
use tower::{Service, ServiceExt};
use tower_http::services::ServeDir;

use super::body::{BoxError, RequestBody, ResponseBody, boxed};
use super::lookup::{Found, Lookup};
use super::metrics::Metrics;
use crate::fabric::BoxFuture;
use crate::flow::FilePart;

/// How the files begin that are not whole yet. Nobody is given them.
const PARTIAL: &str = ".rdma-httpd-";

/// Serves a directory.
#[derive(Clone)]
pub struct Files {
    root: Arc<Path>,
    piece: usize,
    uploads: bool,
    max_upload: u64,
    metrics: Option<Metrics>,
}

impl Files {
    /// Serves the files under `root`, read in pieces of `piece` bytes; and takes files if `uploads`.
    pub fn new(root: impl Into<PathBuf>, piece: usize, uploads: bool) -> Self {
        Self { root: root.into().into(), piece, uploads, max_upload: u64::MAX, metrics: None }
    }

    /// Takes no file of more bytes.
    pub fn with_max_upload(self, max_upload: u64) -> Self {
        Self { max_upload, ..self }
    }

    /// Tells there how often that was met.
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    async fn answer(self, request: Request<RequestBody>) -> Response<ResponseBody> {
        let upload = self.uploads && matches!(*request.method(), Method::PUT | Method::POST);
        let Some(path) = path_of(request.uri().path()) else { return plain(StatusCode::NOT_FOUND) };
        if upload {
            return match put(&self.root, &path, request, self.max_upload).await {
                Ok(status) => plain(status),
                Err(Refusal::Status(status)) => {
                    if status == StatusCode::PAYLOAD_TOO_LARGE
                        && let Some(metrics) = &self.metrics
                    {
                        metrics.limited("max-upload");
                    }
                    plain(status)
                }
                Err(Refusal::Io(error)) => {
                    tracing::warn!(path = %path.display(), %error, "an upload failed");
                    plain(io_status(&error))
                }
            };
        }
        let mut response = self.read(request).await;
        if response.status() == StatusCode::METHOD_NOT_ALLOWED && self.uploads {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET,HEAD,PUT,POST"));
        }
        response
    }

    /// Answers whoever wants to read. What `ServeDir` says is the head: the body is read here from the file that it looked
    /// at, or sent unread.
    async fn read(&self, mut request: Request<RequestBody>) -> Response<ResponseBody> {
        let get = request.method() == Method::GET;
        if get {
            *request.method_mut() = Method::HEAD;
        }
        let lookup = Lookup::default();
        let reader = ServeDir::with_backend(&self.root, lookup.clone());
        let mut response = reader.oneshot(request).await.unwrap_or_else(|never: Infallible| match never {});
        if !get || !response.status().is_success() {
            return response.map(boxed);
        }
        match part(lookup, &response) {
            Ok(part) => {
                response.extensions_mut().insert(part.clone());
                response.map(|_| part.into_body(self.piece).boxed_unsync())
            }
            Err(error) => {
                tracing::warn!(%error, "a file cannot be sent");
                plain(io_status(&error))
            }
        }
    }
}

impl Service<Request<RequestBody>> for Files {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let files = self.clone();
        Box::pin(async move { Ok(files.answer(request).await) })
    }
}

/// The path under the root, made of plain names only.
fn path_of(target: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in target.split('/').filter(|part| !part.is_empty()) {
        let name: Vec<u8> = percent_decode_str(part).collect();
        let refused = name == b"." || name == b".." || name.starts_with(PARTIAL.as_bytes());
        if refused || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return None;
        }
        path.push(OsString::from_vec(name));
    }
    Some(path)
}

/// The part of a file that a response has as its body.
fn part<B>(lookup: Lookup, response: &Response<B>) -> io::Result<FilePart> {
    let Found { file, metadata, .. } = lookup.into_found().ok_or(io::ErrorKind::NotFound)?;
    let text = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse().ok());
    // `bytes 0-9/100`
    let first =
        text(CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    FilePart::new(file, &metadata, first.unwrap_or(0), length.ok_or(io::ErrorKind::InvalidInput)?)
}

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

/// Takes a body into a file, which is there when this returns.
async fn put(
    root: &Path,
    path: &Path,
    request: Request<RequestBody>,
    most: u64,
) -> Result<StatusCode, Refusal> {
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
    if length.is_some_and(|length| length > most) {
        return Err(Refusal::Status(StatusCode::PAYLOAD_TOO_LARGE));
    }
    let target = root.join(path);
    let (root, wanted) = (root.to_owned(), target.clone());
    let file = blocking(move || begin(&root, &wanted)).await??;
    if fresh && target.symlink_metadata().is_ok() {
        return Err(Refusal::Status(taken));
    }
    let file = receive(file, request.into_body(), length, most).await?;
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

fn io_status(error: &io::Error) -> StatusCode {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StatusCode::FORBIDDEN,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn plain(status: StatusCode) -> Response<ResponseBody> {
    let text = match status {
        StatusCode::NO_CONTENT => Bytes::new(),
        _ => format!("{status}\n").into(),
    };
    let mut response = Response::new(boxed(Full::new(text)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipe_is_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&root.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for method in [Method::GET, Method::HEAD] {
            let request = Request::builder().method(method).uri("/pipe");
            let request = request.body(RequestBody::new(Full::new(Bytes::new()))).unwrap();
            let response = Files::new(root.path(), 1024, false).oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::NOT_FOUND);
        }
    }

    #[test]
    fn only_plain_names_are_paths() {
        assert_eq!(path_of("/a/b%20c"), Some("a/b c".into()));
        assert_eq!(path_of("/"), Some("".into()));
        for wrong in ["/..", "/a/%2e%2e/b", "/a%2fb", "/a%00", "/.rdma-httpd-x.part", "/."] {
            assert_eq!(path_of(wrong), None, "{wrong}");
        }
    }
}
