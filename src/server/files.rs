//! The file service: a directory to read from and, where that is allowed, to put files into (`store.rs`).

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full};
use percent_encoding::percent_decode_str;
use tower::{Service, ServiceExt};
use tower_http::services::ServeDir;
use tower_http::services::fs::DefaultServeDirFallback;

use super::body::{RequestBody, ResponseBody, boxed};
use super::lookup::{Found, Lookup};
use super::metrics::Metrics;
use super::store::{PARTIAL, io_status};
use crate::fabric::BoxFuture;
use crate::flow::FilePart;

/// Serves a directory.
#[derive(Clone)]
pub struct Files {
    pub(super) root: Arc<Path>,
    piece: usize,
    uploads: bool,
    pub(super) max_upload: u64,
    pub(super) metrics: Option<Metrics>,
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
            return plain(self.put(&path, request).await);
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
        let reader = ServeDir::with_backend(&self.root, lookup.clone()).ignore_multi_range_requests(true);
        // RFC 9110, section 14.2: with another method, and in units that nobody knows here, there is no range.
        let ranges = |range: &HeaderValue| get && range.as_bytes().starts_with(b"bytes=");
        let asked = request.headers().get(RANGE).is_some_and(ranges);
        let wanted = request.headers().get(IF_RANGE).cloned();
        if !asked || !is_same(&reader, request.uri(), wanted).await {
            request.headers_mut().remove(RANGE);
        }
        let mut response = reader.oneshot(request).await.unwrap_or_else(|never: Infallible| match never {});
        if !get || !response.status().is_success() {
            return response.map(boxed);
        }
        match part(lookup, &response) {
            Ok(part) => {
                response.extensions_mut().insert(part.clone());
                response.map(|_| part.into_body(self.piece).boxed_unsync())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => plain(StatusCode::NOT_FOUND),
            Err(error) => {
                tracing::warn!(%error, "a file cannot be sent");
                plain(io_status(&error))
            }
        }
    }

    /// What a HEAD with these fields says of a target.
    pub(super) async fn look(&self, target: &Uri, headers: HeaderMap) -> StatusCode {
        let mut request = head(target);
        *request.headers_mut() = headers;
        self.read(request).await.status()
    }
}

/// A HEAD of ours.
fn head(target: &Uri) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::new(Empty::<Bytes>::new()));
    *request.method_mut() = Method::HEAD;
    *request.uri_mut() = target.clone();
    request
}

/// Whether a range is asked for of what is there now (RFC 9110, section 13.1.5). Of a date nobody knows whether it is strong.
async fn is_same(
    reader: &ServeDir<DefaultServeDirFallback, Lookup>,
    target: &Uri,
    wanted: Option<HeaderValue>,
) -> bool {
    let Some(wanted) = wanted else { return true };
    let there = reader.clone().oneshot(head(target)).await.unwrap_or_else(|never: Infallible| match never {});
    there.headers().get(ETAG) == Some(&wanted)
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
    let found = lookup.into_found().filter(|found| found.metadata.is_file());
    let Found { file, metadata, .. } = found.ok_or(io::ErrorKind::NotFound)?;
    let text = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse().ok());
    // `bytes 0-9/100`
    let first =
        text(CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    FilePart::new(file, &metadata, first.unwrap_or(0), length.ok_or(io::ErrorKind::InvalidInput)?)
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

    /// Asks a service for these fields' sake; the status and the fields of the answer, and its body.
    async fn ask(
        files: &Files,
        method: Method,
        target: &str,
        fields: &[(&str, &str)],
    ) -> (StatusCode, HeaderMap, Bytes) {
        let body = if method == Method::PUT { "new" } else { "" };
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(RequestBody::new(Full::new(Bytes::from(body)))).unwrap();
        let (head, body) = files.clone().oneshot(request).await.unwrap().into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn a_range_is_of_what_it_was_asked_of() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "0123456789").unwrap();
        let files = Files::new(root.path(), 4, false);
        let tag = ask(&files, Method::HEAD, "/file", &[]).await.1[ETAG].to_str().unwrap().to_owned();
        let part = (StatusCode::PARTIAL_CONTENT, "234");
        let whole = (StatusCode::OK, "0123456789");
        for (fields, expected) in [
            (vec![("range", "bytes=2-4")], part),
            (vec![("range", "bytes=2-4"), ("if-range", &tag)], part),
            (vec![("range", "bytes=2-4"), ("if-range", "\"another\"")], whole),
            (vec![("range", "bytes=2-4"), ("if-range", "Sun, 06 Nov 1994 08:49:37 GMT")], whole),
            (vec![("range", "lines=2-4")], whole),
            (vec![("range", "bytes=2-4,6-7")], whole),
            (vec![("range", "bytes=20-")], (StatusCode::RANGE_NOT_SATISFIABLE, "")),
        ] {
            let (status, _, body) = ask(&files, Method::GET, "/file", &fields).await;
            assert_eq!((status, &body[..]), (expected.0, expected.1.as_bytes()), "{fields:?}");
        }
        let (status, fields, _) = ask(&files, Method::HEAD, "/file", &[("range", "bytes=2-4")]).await;
        assert_eq!((status, &fields[CONTENT_LENGTH]), (StatusCode::OK, &HeaderValue::from_static("10")));
    }

    #[tokio::test]
    async fn what_was_changed_meanwhile_is_not_written_over() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::new(root.path(), 1024, true);
        let put = async |fields: &[(&str, &str)]| ask(&files, Method::PUT, "/file", fields).await.0;
        assert_eq!(put(&[("if-match", "*")]).await, StatusCode::PRECONDITION_FAILED, "there is none");
        assert_eq!(put(&[("if-none-match", "\"any\"")]).await, StatusCode::CREATED);
        let tag = ask(&files, Method::HEAD, "/file", &[]).await.1[ETAG].to_str().unwrap().to_owned();
        assert_eq!(put(&[("if-none-match", &tag)]).await, StatusCode::PRECONDITION_FAILED);
        assert_eq!(put(&[("if-match", &tag)]).await, StatusCode::NO_CONTENT);
        std::fs::write(root.path().join("file"), "another").unwrap();
        assert_eq!(put(&[("if-match", &tag)]).await, StatusCode::PRECONDITION_FAILED);
        let past = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(put(&[("if-unmodified-since", past)]).await, StatusCode::PRECONDITION_FAILED);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1, "and nothing is left behind");
    }

    #[tokio::test]
    async fn a_directory_may_be_entered_that_cannot_be_read() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        for inside in ["d", "e", "e/index.html"] {
            std::fs::create_dir(root.path().join(inside)).unwrap();
        }
        std::fs::write(root.path().join("d/index.html"), "here").unwrap();
        std::fs::set_permissions(root.path().join("d"), PermissionsExt::from_mode(0o111)).unwrap();
        let files = Files::new(root.path(), 1024, false);
        // A superuser may read it all the same.
        assert_eq!(ask(&files, Method::GET, "/d/", &[]).await.2, "here");
        assert_eq!(ask(&files, Method::GET, "/d", &[]).await.0, StatusCode::TEMPORARY_REDIRECT);
        assert_eq!(ask(&files, Method::GET, "/e/", &[]).await.0, StatusCode::NOT_FOUND);
        std::fs::set_permissions(root.path().join("d"), PermissionsExt::from_mode(0o755)).unwrap();
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
