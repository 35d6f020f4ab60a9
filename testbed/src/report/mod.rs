//! What a run has to say, and to whom: the runner emits [`Event`]s, reporters turn them into lines for people, JSON,
//! JUnit, annotations. Neither side knows the other.

mod github;
mod human;
mod json;
mod junit;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rdma_http::fabric::FabricKind;

pub use github::GitHub;
pub use human::Human;
pub use json::Json;
pub use junit::JUnit;

use crate::golden::{Compared, Comparison};
use crate::scenario::{Fabrics, RunError};

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A run begins.
    Started(&'a Start),
    /// A scenario begins.
    ScenarioStarted {
        /// Its name.
        name: &'a str,
        /// What carries RDMA.
        fabrics: Fabrics,
    },
    /// A scenario is over.
    ScenarioFinished(&'a Finding),
    /// The run is over.
    Finished(&'a Summary),
}

/// What is about to be run.
#[derive(Clone, Debug)]
pub struct Start {
    /// The topology's name.
    pub topology: String,
    /// What all carries RDMA.
    pub fabrics: Vec<FabricKind>,
    /// Where the labs live: `host` or `uml`.
    pub kernel: String,
    /// How their clocks go: `wall` or `virtual`.
    pub clock: String,
    /// The lab's name; `None` where each scenario has its own, in a guest.
    pub lab: Option<String>,
    /// How many scenarios.
    pub scenarios: usize,
    /// How many were not chosen.
    pub skipped: usize,
}

/// What was found of a scenario.
#[derive(Debug)]
pub struct Finding {
    /// Its name.
    pub name: String,
    /// What carried RDMA.
    pub fabrics: Fabrics,
    /// Its file.
    pub file: PathBuf,
    /// How long it took.
    pub elapsed: Duration,
    /// How long it took on its lab's virtual clock, if it has one.
    pub simulated: Option<Duration>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a scenario.
#[derive(Debug)]
pub enum Outcome {
    /// It was observed.
    Observed {
        /// How it compares with its goldens.
        comparisons: Vec<Comparison>,
        /// Goldens that were changed to what was seen.
        blessed: Vec<PathBuf>,
        /// What is wrong whatever the goldens say.
        violations: Vec<String>,
    },
    /// This machine lacks what it takes: how, and what mends it.
    Skipped(String),
    /// It could not be.
    Error(RunError),
}

/// A scenario in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As expected.
    Pass,
    /// Not as expected; now it is what is expected.
    Blessed,
    /// Not as expected.
    Fail,
    /// It was not tried, as this machine lacks what it takes.
    Skip,
    /// It could not be seen.
    Error,
}

impl Verdict {
    /// Whether it makes the run fail.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Fail | Self::Error)
    }

    /// The word, in lower case.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Blessed => "blessed",
            Self::Fail => "fail",
            Self::Skip => "skip",
            Self::Error => "error",
        }
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In one line.
    pub message: String,
    /// The file to look at.
    pub file: PathBuf,
    /// The line in it, from 1.
    pub line: Option<usize>,
    /// More lines: a diff, a log.
    pub details: String,
}

impl Finding {
    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        match &self.outcome {
            Outcome::Skipped(_) => Verdict::Skip,
            Outcome::Error(_) => Verdict::Error,
            Outcome::Observed { comparisons, blessed, violations } => {
                let differs = comparisons.iter().any(|comparison| comparison.outcome != Compared::Same);
                match (violations.is_empty(), differs, blessed.is_empty()) {
                    (true, false, true) => Verdict::Pass,
                    (true, _, false) => Verdict::Blessed,
                    _ => Verdict::Fail,
                }
            }
        }
    }

    /// What is wrong, if anything is. `color` is for the diffs.
    pub fn problems(&self, color: bool) -> Vec<Problem> {
        let here = |message: String, details: String| Problem {
            message,
            file: self.file.clone(),
            line: None,
            details,
        };
        match &self.outcome {
            Outcome::Skipped(_) => Vec::new(),
            Outcome::Error(error) => {
                let logs = error.logs.iter().map(|(name, text)| format!("{name}:\n{}", indent(text)));
                vec![here(error.message.clone(), logs.collect::<Vec<_>>().join("\n"))]
            }
            Outcome::Observed { comparisons, blessed, violations } => {
                let violations = violations.iter().map(|what| here(what.clone(), String::new()));
                let unblessed = comparisons.iter().filter(|comparison| !blessed.contains(&comparison.file));
                violations.chain(unblessed.filter_map(|c| self.difference(c, color))).collect()
            }
        }
    }

    fn difference(&self, comparison: &Comparison, color: bool) -> Option<Problem> {
        let file = comparison.file.clone();
        match &comparison.outcome {
            Compared::Same => None,
            Compared::Differs(diff) => Some(Problem {
                message: "differs from its golden (- expected, + seen)".to_owned(),
                line: comparison.first_line(),
                file,
                details: diff.render(color),
            }),
            Compared::Missing => Some(Problem {
                message: "has no golden yet; look at what was seen, then run it again with --bless"
                    .to_owned(),
                line: None,
                file,
                details: indent(comparison.seen()),
            }),
        }
    }
}

/// `soft`, `soft and siw`, `soft, siw and rxe`.
fn list(fabrics: &[FabricKind]) -> String {
    let names: Vec<String> = fabrics.iter().map(FabricKind::to_string).collect();
    match &names[..] {
        [others @ .., last] if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        names => names.concat(),
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// A run in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// As expected.
    pub passed: usize,
    /// Changed to be as expected.
    pub blessed: usize,
    /// Not as expected.
    pub failed: usize,
    /// Not tried.
    pub skipped: usize,
    /// Not seen.
    pub errors: usize,
    /// All of it.
    pub elapsed: Duration,
    /// The scenarios' times on virtual clocks, in sum; `None` if there was none.
    pub simulated: Option<Duration>,
    /// Whether it was broken off.
    pub interrupted: bool,
}

impl Summary {
    /// Counts a scenario.
    pub fn add(&mut self, finding: &Finding) {
        if let Some(simulated) = finding.simulated {
            self.simulated = Some(self.simulated.unwrap_or_default() + simulated);
        }
        match finding.verdict() {
            Verdict::Pass => self.passed += 1,
            Verdict::Blessed => self.blessed += 1,
            Verdict::Fail => self.failed += 1,
            Verdict::Skip => self.skipped += 1,
            Verdict::Error => self.errors += 1,
        }
    }

    /// How many were run.
    pub fn run(&self) -> usize {
        self.passed + self.blessed + self.failed + self.errors
    }

    /// Whether all was as expected.
    pub fn is_good(&self) -> bool {
        self.failed == 0 && self.errors == 0 && !self.interrupted
    }
}

/// Takes events.
pub trait Reporter {
    /// The next one. An error is of the output; the run goes on.
    fn event(&mut self, event: &Event<'_>) -> io::Result<()>;
}

#[cfg(test)]
mod tests;
