//! Observations against goldens: normalise, compare, accept.
//!
//! A scenario has a golden `NAME.snap` for what the protocol promises on every fabric, and for each fabric
//! `NAME@FABRIC.snap` for what goes over its wire and `NAME@FABRIC-times.snap` for when things happen on a virtual clock.
//! Times are compared with a tolerance ([`TOLERANCE_US`], [`TOLERANCE_PART`]); all else must be the same to the letter.

mod diff;
mod names;
mod snapshot;
mod text;
mod times;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use diff::Diff;
pub use names::{Names, Owner};
pub use text::{Texts, texts};
pub use times::{TOLERANCE_PART, TOLERANCE_US};

use crate::scenario::{Fabrics, Observation};

/// Where the goldens are.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    /// The part of a golden's time by which what is seen may be off.
    times_within: f64,
}

/// One of a scenario's goldens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Golden {
    /// What the protocol promises, on every fabric.
    Promised,
    /// What goes over this fabric's wire.
    Wire(Fabrics),
    /// When things happen on this fabric, on a virtual clock.
    Times(Fabrics),
}

/// One golden text and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The snapshot's file.
    pub file: PathBuf,
    /// How the observation compares.
    pub outcome: Compared,
    /// What was seen, with the golden's times where they are near enough.
    seen: String,
    /// What was seen, as it was measured.
    measured: String,
    source: String,
    description: String,
}

/// How an observation compares with its golden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    /// It is as expected.
    Same,
    /// It differs.
    Differs(Diff),
    /// There is no golden yet.
    Missing,
}

/// A golden that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GoldenError {
    /// It is there but cannot be read.
    #[error("{}: {error}; mend it, or remove it and bless again", file.display())]
    Unreadable {
        /// The snapshot.
        file: PathBuf,
        /// Why not.
        error: String,
    },
    /// It cannot be written.
    #[error("cannot write {}: {error}", file.display())]
    Unwritable {
        /// The snapshot.
        file: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

impl Store {
    /// The snapshots beside the scenarios in `golden`.
    pub fn new(golden: &Path) -> Self {
        Self { folder: golden.join("snapshots"), times_within: TOLERANCE_PART }
    }

    /// Lets times be off by this part of the golden's, 0 to 1, instead of [`TOLERANCE_PART`].
    #[must_use]
    pub fn times_within(self, part: f64) -> Self {
        Self { times_within: part, ..self }
    }

    /// The file of a scenario's golden.
    pub fn file(&self, scenario: &str, golden: Golden) -> PathBuf {
        self.folder.join(match golden {
            Golden::Promised => format!("{scenario}.snap"),
            Golden::Wire(fabrics) => format!("{scenario}@{fabrics}.snap"),
            Golden::Times(fabrics) => format!("{scenario}@{fabrics}-times.snap"),
        })
    }

    /// Compares an observation with its goldens. `source` and `description` are the scenario's, for the files' heads.
    pub fn compare(
        &self,
        observation: &Observation,
        source: &Path,
        description: &str,
    ) -> Result<Vec<Comparison>, GoldenError> {
        let Texts { common, fabric, times } = texts(observation);
        let (scenario, fabrics) = (&observation.scenario, observation.fabrics);
        let all = [
            (Some(common), Golden::Promised),
            (Some(fabric), Golden::Wire(fabrics)),
            (times, Golden::Times(fabrics)),
        ];
        let mut comparisons = Vec::new();
        for (measured, golden) in all {
            let Some(measured) = measured else { continue };
            let file = self.file(scenario, golden);
            let measured = snapshot::normal(&measured);
            let expected = snapshot::read(&file)?.map(|expected| snapshot::normal(&expected));
            let seen = match (&expected, golden) {
                (Some(expected), Golden::Times(_)) => {
                    let is_near = |golden, seen| times::is_near(golden, seen, self.times_within);
                    times::settle(expected, &measured, is_near)
                }
                _ => measured.clone(),
            };
            let outcome = match expected {
                None => Compared::Missing,
                Some(expected) => match Diff::new(&expected, &seen) {
                    None => Compared::Same,
                    Some(diff) => Compared::Differs(diff),
                },
            };
            let (source, description) = (source.display().to_string(), description.to_owned());
            comparisons.push(Comparison { file, outcome, seen, measured, source, description });
        }
        Ok(comparisons)
    }
}

impl Comparison {
    /// What was seen, as it was measured: before times that are near enough to the golden's were taken for those.
    pub fn measured(&self) -> &str {
        &self.measured
    }

    /// What was seen, as text.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    /// The line of the snapshot's file where the first difference is, if there is one.
    pub fn first_line(&self) -> Option<usize> {
        let Compared::Differs(diff) = &self.outcome else { return None };
        // The head's lines come first: up to and with the second `---`.
        let text = fs::read_to_string(&self.file).ok()?;
        let head = text.lines().enumerate().filter(|(_, line)| line.trim_end() == "---").nth(1)?.0 + 1;
        Some(head + diff.first_line)
    }

    /// Makes what was seen the golden, if it is not already; whether it wrote.
    pub fn accept(&self) -> Result<bool, GoldenError> {
        let changed = self.outcome != Compared::Same;
        if changed {
            snapshot::write(&self.file, &self.source, &self.description, &self.seen)?;
        }
        self.forget()?;
        Ok(changed)
    }

    /// Leaves what was seen beside the golden, for `cargo insta review`; removes what an earlier run left if all is well.
    /// A golden folder that cannot be written to is no error: the verdict does not depend on it.
    pub fn propose(&self) {
        if self.outcome == Compared::Same {
            let _ = self.forget();
        } else {
            let pending = snapshot::pending(&self.file);
            let _ = snapshot::write(&pending, &self.source, &self.description, &self.seen);
        }
    }

    fn forget(&self) -> Result<(), GoldenError> {
        let pending = snapshot::pending(&self.file);
        match fs::remove_file(&pending) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(GoldenError::Unwritable { file: pending, error })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
