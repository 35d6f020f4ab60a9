//! CGI programs (RFC 3875) behind the file server: what lies under `DIRECTORY/cgi-bin` is run, everything else is served.
//! The programs, shell scripts say, get RDMA without knowing: bodies that come by it are their standard input, and what they
//! print leaves by it where its length is known (they say so, or it is no more than 64 KiB).
//!
//! ```sh
//! mkdir -p site/cgi-bin && cat >site/cgi-bin/upper <<'END'
//! #!/bin/sh
//! printf 'Content-Type: text/plain\nContent-Length: %s\n\n' "$CONTENT_LENGTH"
//! tr a-z A-Z
//! END
//! chmod +x site/cgi-bin/upper
//! cargo run --example cgi -- 127.0.0.1:8080 site
//! rdma-fetch --require-rdma --upload-file README.md -X POST http://127.0.0.1:8080/cgi-bin/upper -o -
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue, PROXY_AUTHORIZATION,
};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use rdma_http::events::Recorder;
use rdma_http::fabric::soft::SoftFabric;
use rdma_http::server::{
    BoxError, Files, HttpConnection, RdmaConfig, RdmaLayer, RequestBody, ResponseBody, ServeOptions, serve,
};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tower::{Layer, Service, ServiceExt};

/// For a program to print its head.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a head.
const MAX_HEAD: u64 = 16 << 10;
/// Output up to this length is waited for, so that its length is known.
const AT_ONCE: u64 = 64 << 10;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, directory] = args.as_slice() else { return Err("usage: cgi ADDR:PORT DIRECTORY".into()) };
    let listener = tokio::net::TcpListener::bind(listen).await?;
    println!("listening on http://{}/", listener.local_addr()?);
    let layer = RdmaLayer::new(Arc::new(SoftFabric::default()), RdmaConfig::default(), Recorder::default());
    let service = layer.layer(Cgi::new(directory));
    serve(listener, service, ServeOptions::default(), tokio::signal::ctrl_c()).await;
    Ok(())
}

/// Runs programs, and serves files. It knows nothing of RDMA.
#[derive(Clone)]
pub(crate) struct Cgi {
    programs: PathBuf,
    files: Files,
}

impl Cgi {
    pub(crate) fn new(directory: impl AsRef<Path>) -> Self {
        let directory = directory.as_ref();
        Self { programs: directory.join("cgi-bin"), files: Files::new(directory, 1 << 20, false) }
    }

    /// The program that a path names, and what of the path is behind its name.
    fn program<'p>(&self, path: &'p str) -> Option<(PathBuf, &'p str, &'p str)> {
        let rest = path.strip_prefix("/cgi-bin/")?;
        let (name, info) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let known = !name.starts_with('.') && !name.is_empty() && name.chars().all(plain);
        known.then(|| (self.programs.join(name), name, info))
    }
}

impl Service<Request<RequestBody>> for Cgi {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let cgi = self.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            match cgi.program(&path) {
                None if path.starts_with("/cgi-bin/") => Ok(text(StatusCode::NOT_FOUND, "no such program\n")),
                None => cgi.files.oneshot(request).await,
                Some((program, name, info)) => Ok(match run(&program, name, info, request).await {
                    Ok(response) => response,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        text(StatusCode::NOT_FOUND, "no such program\n")
                    }
                    Err(error) => text(StatusCode::BAD_GATEWAY, &format!("the program failed: {error}\n")),
                }),
            }
        })
    }
}

async fn run(
    program: &Path,
    name: &str,
    info: &str,
    request: Request<RequestBody>,
) -> io::Result<Response<ResponseBody>> {
    let (head, body) = request.into_parts();
    let (input, length) = spool(body).await?;
    let mut command = Command::new(program);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.envs([("GATEWAY_INTERFACE", "CGI/1.1"), ("SERVER_PROTOCOL", "HTTP/1.1"), ("PATH_INFO", info)]);
    command.env("REQUEST_METHOD", head.method.as_str());
    command.env("SCRIPT_NAME", format!("/cgi-bin/{name}"));
    command.env("QUERY_STRING", head.uri.query().unwrap_or_default());
    if length > 0 {
        command.env("CONTENT_LENGTH", length.to_string());
    }
    if let Some(connection) = head.extensions.get::<HttpConnection>() {
        command.env("REMOTE_ADDR", connection.peer().ip().to_string());
    }
    for (name, value) in &head.headers {
        let Ok(value) = value.to_str() else { continue };
        // RFC 3875, section 4.1.18. `Proxy` would become HTTP_PROXY, which programs take for a setting.
        match *name {
            AUTHORIZATION | PROXY_AUTHORIZATION => continue,
            CONTENT_LENGTH => continue,
            CONTENT_TYPE => drop(command.env("CONTENT_TYPE", value)),
            HOST => drop(command.env("SERVER_NAME", value.split(':').next().unwrap_or(value))),
            _ if name == "proxy" => continue,
            _ => drop(command.env(variable(name), value)),
        }
    }
    command.stdin(input).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let Some(stdout) = child.stdout.take() else { return Err(io::Error::other("it has no output")) };
    let mut output = BufReader::new(stdout);
    let mut response = tokio::time::timeout(PATIENCE, read_head(&mut output)).await??;
    if !response.headers().contains_key(CONTENT_LENGTH) {
        let mut beginning = Vec::new();
        (&mut output).take(AT_ONCE).read_to_end(&mut beginning).await?;
        if (beginning.len() as u64) < AT_ONCE {
            return Ok(response.map(|()| boxed(Full::from(beginning))));
        }
        return Ok(response.map(|()| rest(child, io::Cursor::new(beginning).chain(output))));
    }
    // What HTTP frames by itself is none of the program's business.
    response.headers_mut().remove(http::header::TRANSFER_ENCODING);
    Ok(response.map(|()| rest(child, output)))
}

fn variable(name: &HeaderName) -> String {
    format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_"))
}

/// Takes a body into a file, as web servers do for CGI: a program is told the length of what it may read.
async fn spool(mut body: RequestBody) -> io::Result<(std::fs::File, u64)> {
    let mut file = tokio::fs::File::from_std(tempfile::tempfile()?);
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
        length += data.len() as u64;
        file.write_all(&data).await?;
    }
    file.rewind().await?;
    Ok((file.into_std().await, length))
}

/// The fields that a program prints before an empty line.
async fn read_head(output: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Response<()>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what} in its head"));
    let mut response = Response::new(());
    let mut output = output.take(MAX_HEAD);
    loop {
        let mut line = String::new();
        if output.read_line(&mut line).await? == 0 {
            return Err(bad("no empty line"));
        }
        let line = line.trim_end_matches(['\r', '\n']);
        if line.is_empty() {
            return Ok(response);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("a line without a colon"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            let status = value.split(' ').next().and_then(|code| code.parse().ok());
            *response.status_mut() = status.ok_or_else(|| bad("a wrong status"))?;
        } else {
            let name = HeaderName::try_from(name).map_err(|_| bad("a wrong name"))?;
            response
                .headers_mut()
                .append(name, HeaderValue::try_from(value).map_err(|_| bad("a wrong value"))?);
        }
    }
}

/// What is left of a program's output, as it comes; the program ends with it.
fn rest(child: tokio::process::Child, output: impl AsyncRead + Send + Unpin + 'static) -> ResponseBody {
    let pieces = stream::unfold((child, output), |(child, mut output)| async move {
        let mut piece = BytesMut::with_capacity(64 << 10);
        match output.read_buf(&mut piece).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Frame::data(piece.freeze())), (child, output))),
            Err(error) => Some((Err(error), (child, output))),
        }
    });
    boxed(StreamBody::new(pieces))
}

fn boxed<B>(body: B) -> ResponseBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

fn text(status: StatusCode, text: &str) -> Response<ResponseBody> {
    let mut response = Response::new(boxed(Full::from(text.to_owned())));
    *response.status_mut() = status;
    response
}
