//! How long it takes until a guest is ready: from the start of `testbed up` to its end, which is the agent's first answer.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rdma_http::fabric::FabricKind;

use super::bed::BenchError;
use super::measure::{Progress, median};
use super::{Figure, Row, Target};
use crate::guest::choice::{self, Clock, Kernel, Wanted};
use crate::guest::host::{self, Options};

/// What a guest is measured against, in milliseconds.
const ALLOWED: f64 = 1000.0;
/// What a guest may take to be gone again.
const DOWN: Duration = Duration::from_secs(30);

/// A UML guest, against a second.
pub(super) async fn uml(rounds: usize, progress: Progress<'_>) -> Result<Vec<Row>, BenchError> {
    there(Kernel::Uml)?;
    let mut ready = Vec::new();
    for round in 1..=rounds {
        progress(&format!("guest-ready-uml: round {round} of {rounds}"));
        ready.push(up_and_down("uml").await?);
    }
    let what = "up of wan-10g in a UML guest : 1 s";
    Ok(vec![Row::new(Figure::GuestReadyUml, what, median(&ready), ALLOWED, "ms").target(Target::AtMost(1.0))])
}

/// A QEMU guest, against a UML guest.
pub(super) async fn qemu(rounds: usize, progress: Progress<'_>) -> Result<Vec<Row>, BenchError> {
    there(Kernel::Uml)?;
    there(Kernel::Qemu)?;
    let (mut qemu, mut uml) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        progress(&format!("guest-ready-qemu: round {round} of {rounds}, QEMU"));
        qemu.push(up_and_down("qemu").await?);
        progress(&format!("guest-ready-qemu: round {round} of {rounds}, UML"));
        uml.push(up_and_down("uml").await?);
    }
    let row = |what: &str, reference| Row::new(Figure::GuestReadyQemu, what, median(&qemu), reference, "ms");
    Ok(vec![
        row("up of wan-10g in a QEMU guest : in a UML guest", median(&uml)),
        row("up of wan-10g in a QEMU guest : 1 s", ALLOWED),
    ])
}

fn there(kernel: Kernel) -> Result<(), BenchError> {
    let wanted = Wanted { kernel, fabrics: &[FabricKind::Soft], clock: Clock::Wall };
    Ok(choice::of_machine(&wanted).map(drop)?)
}

/// Milliseconds until the command has ended, with the lab up.
async fn up_and_down(kernel: &str) -> Result<f64, BenchError> {
    let options = Options::new()?;
    let name = format!("bench-{kernel}-{}", std::process::id());
    let mut command = tokio::process::Command::new(&options.program);
    command.args(["up", "wan-10g", "--kernel", kernel, "--quiet", "--name", &name]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let start = Instant::now();
    let output = command.output().await?;
    let ready = start.elapsed().as_secs_f64() * 1e3;
    let lab = options.runtime.lab(&name.parse().map_err(host::UpError::from)?);
    host::down(&lab, DOWN).await?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(BenchError::Failed { what: format!("testbed up wan-10g --kernel {kernel}"), why });
    }
    Ok(ready)
}
