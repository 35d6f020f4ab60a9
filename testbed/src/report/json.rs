//! For programs: an object a line.
//!
//! - `{"event":"started","topology","fabrics":[…],"kernel","clock","lab","scenarios","skipped"}`; `lab` is null where each
//!   scenario has one of its own, in a guest
//! - `{"event":"scenario","name","fabric","file","verdict","seconds","simulated_seconds","goldens":[{"file","outcome","line","diff","seen","measured"}],`
//!   `"blessed":[…],"violations":[…],"skipped","error":{"message","logs":[{"name","text"}]}}`; `verdict` is `pass`,
//!   `blessed`, `fail`, `skip` or `error`, `outcome` is `same`, `differs` or `missing`; `error` is null unless the verdict is
//!   `error`, `skipped` unless it is `skip`: then why
//! - `{"event":"finished","passed","blessed","failed","skipped","errors","seconds","simulated_seconds",
//!   "interrupted"}`; `simulated_seconds` are those of a virtual clock, or null

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{Event, Finding, Outcome, Reporter};
use crate::golden::{Compared, Comparison};

/// Writes JSON lines.
pub struct Json<W>(W);

impl<W: Write> Json<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self(out)
    }
}

impl<W: Write> Reporter for Json<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        let value = match event {
            Event::Started(start) => json!({
                "event": "started",
                "topology": start.topology,
                "fabrics": start.fabrics,
                "kernel": start.kernel,
                "clock": start.clock,
                "lab": start.lab,
                "scenarios": start.scenarios,
                "skipped": start.skipped,
            }),
            Event::ScenarioStarted { .. } => return Ok(()),
            Event::ScenarioFinished(finding) => scenario(finding),
            Event::Finished(summary) => json!({
                "event": "finished",
                "passed": summary.passed,
                "blessed": summary.blessed,
                "failed": summary.failed,
                "skipped": summary.skipped,
                "errors": summary.errors,
                "seconds": summary.elapsed.as_secs_f64(),
                "simulated_seconds": summary.simulated.map(|simulated| simulated.as_secs_f64()),
                "interrupted": summary.interrupted,
            }),
        };
        writeln!(self.0, "{value}")?;
        self.0.flush()
    }
}

fn scenario(finding: &Finding) -> Value {
    let mut value = json!({
        "event": "scenario",
        "name": finding.name,
        "fabric": finding.fabrics.to_string(),
        "file": finding.file,
        "verdict": finding.verdict().word(),
        "seconds": finding.elapsed.as_secs_f64(),
        "simulated_seconds": finding.simulated.map(|simulated| simulated.as_secs_f64()),
        "goldens": [],
        "blessed": [],
        "violations": [],
        "skipped": null,
        "error": null,
    });
    match &finding.outcome {
        Outcome::Skipped(why) => value["skipped"] = json!(why),
        Outcome::Error(error) => {
            let logs: Vec<Value> =
                error.logs.iter().map(|(name, text)| json!({ "name": name, "text": text })).collect();
            value["error"] = json!({ "message": error.message, "logs": logs });
        }
        Outcome::Observed { comparisons, blessed, violations } => {
            value["goldens"] = comparisons.iter().map(golden).collect();
            value["blessed"] = json!(blessed);
            value["violations"] = json!(violations);
        }
    }
    value
}

fn golden(comparison: &Comparison) -> Value {
    let (outcome, diff) = match &comparison.outcome {
        Compared::Same => ("same", None),
        Compared::Differs(diff) => ("differs", Some(diff.render(false))),
        Compared::Missing => ("missing", None),
    };
    json!({
        "file": comparison.file,
        "outcome": outcome,
        "line": comparison.first_line(),
        "diff": diff,
        "seen": comparison.seen(),
        "measured": comparison.measured(),
    })
}
