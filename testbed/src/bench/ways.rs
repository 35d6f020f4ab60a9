//! How long a body's first and last byte take over wan-10g, for each way of connecting, against plain HTTP on the same
//! link: the first request on an HTTP connection, which has to connect, and a later one.

use serde::Deserialize;

use super::bed::{Bed, BenchError};
use super::measure::{Progress, down, median};
use super::{Figure, Row};
use crate::topology::{self, Plan};

/// Bytes of the body.
const BODY: usize = 1 << 20;

/// A way: its name, and what the client is told.
const WAYS: [(&str, &[&str]); 7] = [
    ("plain", &["--mode", "plain"]),
    ("server-writes, server connects", &["--mode", "server-writes", "--connect", "server", "--require-rdma"]),
    ("server-writes, client connects", &["--mode", "server-writes", "--connect", "client", "--require-rdma"]),
    ("server-writes, in place", &["--mode", "server-writes", "--connect", "in-place", "--require-rdma"]),
    ("client-reads, server connects", &["--mode", "client-reads", "--connect", "server", "--require-rdma"]),
    ("client-reads, client connects", &["--mode", "client-reads", "--connect", "client", "--require-rdma"]),
    ("client-reads, in place", &["--mode", "client-reads", "--connect", "in-place", "--require-rdma"]),
];

/// What `rdma-fetch --json` tells of a request.
#[derive(Deserialize)]
struct Summary {
    first_byte_seconds: f64,
    seconds: f64,
}

/// Milliseconds of one way: first and last byte of the first request, then of the later one.
#[derive(Default)]
struct Times([Vec<f64>; 4]);

pub(super) async fn run(rounds: usize, progress: Progress<'_>) -> Result<Vec<Row>, BenchError> {
    let bed = Bed::up(Plan { name: "bench-ways".into(), ..topology::load("wan-10g")? }).await?;
    let measured = measure(&bed, rounds, progress).await;
    down([bed]).await;
    let measured = measured?;
    let (plain, others) =
        measured.split_first().map_or((&[][..], &[][..]), |(plain, others)| (&plain.0[..], others));
    let mut rows = Vec::new();
    for ((way, _), times) in WAYS.iter().skip(1).zip(others) {
        for (index, what) in ["1st request, first byte", "last byte", "2nd request, first byte", "last byte"]
            .iter()
            .enumerate()
        {
            let (value, reference) =
                (median(&times.0[index]), plain.get(index).map_or(f64::NAN, |plain| median(plain)));
            rows.push(Row::new(Figure::Ways, format!("{way}: {what} : plain"), value, reference, "ms"));
        }
    }
    Ok(rows)
}

async fn measure(bed: &Bed, rounds: usize, progress: Progress<'_>) -> Result<Vec<Times>, BenchError> {
    let files = tempfile::tempdir()?;
    std::fs::write(files.path().join("body"), vec![0x5a; BODY])?;
    let root = files.path().to_string_lossy().into_owned();
    let (listen, rdma) = (format!("{}:8080", bed.server), format!("{}:0", bed.server));
    let argv = ["rdma-httpd", "--root", &root, "--listen", &listen, "--rdma-listen", &rdma];
    let server = bed.start("server", &argv, &listen).await?;
    let url = format!("http://{listen}/body");
    let mut measured: Vec<Times> = WAYS.iter().map(|_| Times::default()).collect();
    for round in 1..=rounds {
        for ((way, args), times) in WAYS.iter().zip(&mut measured) {
            progress(&format!("ways: round {round} of {rounds}, {way}"));
            let own = ["rdma-fetch", "--json", "-q", "-o", "/dev/null", "-o", "/dev/null"];
            let argv = [&own[..], args, &[&url, &url]].concat();
            let printed = bed.judge("client", &argv).await?;
            let failed = |why: String| BenchError::Failed { what: argv.join(" "), why };
            let lines = serde_json::Deserializer::from_slice(&printed).into_iter::<Summary>();
            let told: Vec<Summary> =
                lines.collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))?;
            let [first, later] = &told[..] else { return Err(failed(format!("{} summaries", told.len()))) };
            let all = [first.first_byte_seconds, first.seconds, later.first_byte_seconds, later.seconds];
            for (times, seconds) in times.0.iter_mut().zip(all) {
                times.push(seconds * 1e3);
            }
        }
    }
    server.stop().await?;
    Ok(measured)
}
