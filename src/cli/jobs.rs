//! What `rdma-fetch` does for each of its URLs, several at once if it may.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;
use tokio::task::JoinSet;
use url::Url;

use super::fetch::{Args, Failure};
use super::output::Output;
use super::progress::Progress;
use crate::client::{Pool, Response, Upload, Via};
use crate::events::{Event, Recorder};

/// A URL, and where its body goes.
pub(super) struct Job {
    pub(super) url: Url,
    pub(super) output: PathBuf,
}

/// What `--json` prints of each.
#[derive(Serialize)]
struct Summary<'a> {
    url: &'a str,
    status: u16,
    /// `rdma` or `tcp`.
    via: &'static str,
    mode: Option<&'static str>,
    /// Why not RDMA, if it was offered.
    fallback: Option<String>,
    bytes: u64,
    sha256: Option<String>,
    output: String,
    /// Until the first bytes of the body were there; `None` if it has none.
    first_byte_seconds: Option<f64>,
    /// Until the body was there.
    seconds: f64,
}

/// Does all of them, `--parallel` at once. One that fails does not keep the others from being done.
pub(super) async fn run(
    args: &Arc<Args>,
    jobs: Vec<Job>,
    pool: &Pool,
    recorder: &Recorder,
) -> Result<(), Failure> {
    let count = jobs.len();
    let queue: Arc<Mutex<VecDeque<(usize, Job)>>> =
        Arc::new(Mutex::new(jobs.into_iter().enumerate().collect()));
    let mut workers = JoinSet::new();
    for _ in 0..usize::from(args.parallel).min(count) {
        let (args, pool, queue, recorder) = (args.clone(), pool.clone(), queue.clone(), recorder.clone());
        workers.spawn(async move {
            let mut failures = Vec::new();
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some((number, job)) = next else { return failures };
                let Err(failure) = fetch(&args, &job, &pool, count == 1).await else { continue };
                if count > 1 {
                    eprintln!("rdma-fetch: {}: {}", job.url, failure.1);
                    recorder.record(Event::Failed { error: failure.1.clone() });
                }
                failures.push((number, failure));
            }
        });
    }
    let mut failures = Vec::new();
    while let Some(done) = workers.join_next().await {
        failures.extend(done.map_err(|error| Failure(1, error.to_string()))?);
    }
    let failed = failures.len();
    match failures.into_iter().min_by_key(|(number, _)| *number) {
        None => Ok(()),
        Some((_, failure)) if count == 1 => Err(failure),
        Some((_, Failure(code, _))) => Err(Failure(code, format!("{failed} of {count} URLs failed"))),
    }
}

async fn fetch(args: &Args, job: &Job, pool: &Pool, alone: bool) -> Result<(), Failure> {
    let start = Instant::now();
    let progress = Progress::new(alone && !args.quiet && !args.verbose && io::stderr().is_terminal());
    let Job { url, output } = job;
    progress.waiting("waiting for the response, or receiving by RDMA,");
    let origin = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(80));
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let response = match &args.upload_file {
        None => pool.request(origin, args.method(), target, args.headers()).await?,
        Some(path) => {
            let upload = Upload::open(path)
                .map_err(|error| Failure(26, format!("cannot read {}: {error}", path.display())))?;
            pool.upload(origin, args.method(), target, args.headers(), &upload).await?
        }
    };
    let mut summary = receive(args, response, output, (&progress, start)).await?;
    drop(progress);
    summary.url = url.as_str();
    summary.seconds = start.elapsed().as_secs_f64();
    if args.json {
        let text = serde_json::to_string(&summary).map_err(|error| Failure(1, error.to_string()))?;
        if is_stdout(output) || args.common.events.as_deref().is_some_and(is_stdout) {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }
    Ok(())
}

pub(super) fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

pub(super) fn shown(path: &Path) -> Cow<'_, str> {
    if is_stdout(path) { "standard output".into() } else { path.to_string_lossy() }
}

/// An answer that was asked not to be accepted.
pub(super) fn check(args: &Args, response: &Response) -> Result<(), Failure> {
    let status = response.head.status;
    if args.fail && (status.is_client_error() || status.is_server_error()) {
        return Err(Failure(22, format!("the server answered {status}")));
    }
    if let (true, Via::Tcp(reason)) = (args.require_rdma, &response.via) {
        let why = reason.as_ref().map_or_else(|| "not offered".to_owned(), ToString::to_string);
        return Err(Failure(60, format!("the body comes over TCP: {why}")));
    }
    Ok(())
}

/// Takes the body to where it belongs.
async fn receive(
    args: &Args,
    response: Response,
    target: &Path,
    (progress, start): (&Progress, Instant),
) -> Result<Summary<'static>, Failure> {
    check(args, &response)?;
    let Response { head, via, mut body } = response;
    let cannot = |error: io::Error| Failure(23, format!("cannot write {}: {error}", shown(target)));
    let mut output = Output::open(target, args.json).map_err(cannot)?;
    let (name, mode, fallback) = match via {
        Via::Rdma(mode) => ("rdma", Some(mode.token()), None),
        Via::Tcp(reason) => ("tcp", None, reason.map(|reason| reason.to_string())),
    };
    progress.body(body.length(), name);
    let (mut received, mut first_byte_seconds) = (0, None);
    while let Some(piece) = body.next().await? {
        received += piece.len() as u64;
        first_byte_seconds.get_or_insert_with(|| start.elapsed().as_secs_f64());
        progress.advance(piece.len());
        // A disk or a pipe may be slow; the connections and signals are served meanwhile.
        let written = tokio::task::spawn_blocking(move || output.write(&piece).map(|()| output)).await;
        output = written.map_err(io::Error::other).and_then(|result| result).map_err(cannot)?;
    }
    let sha256 = output.finish().map_err(cannot)?;
    Ok(Summary {
        url: "",
        status: head.status.as_u16(),
        via: name,
        mode,
        fallback,
        bytes: received,
        sha256,
        output: target.display().to_string(),
        first_byte_seconds,
        seconds: 0.0,
    })
}
