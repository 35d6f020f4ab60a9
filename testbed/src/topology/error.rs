//! What can be wrong with a topology, said so that its writer can mend it: place, snippet, what was meant.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource};

/// Why there is no plan. All of these are the user's to mend (exit code 2).
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum TopologyError {
    /// Neither a name nor a file.
    #[error("there is no topology \"{name}\"")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is, and what was meant.
        #[help]
        help: String,
    },
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be a topology.
    #[error("{origin}: more than {limit} bytes, which no topology needs")]
    TooLarge {
        /// Where it came from.
        origin: String,
        /// What is accepted.
        limit: u64,
    },
    /// The file says what cannot be.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Invalid(#[from] InvalidTopology),
}

/// Everything that is wrong with one file.
#[derive(Debug)]
pub struct InvalidTopology {
    problems: Vec<Problem>,
    more: usize,
}

/// One thing that is wrong, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", self.place())]
pub struct Problem {
    message: String,
    help: Option<String>,
    labels: Vec<LabeledSpan>,
    text: NamedSource<Arc<str>>,
    line: usize,
    column: usize,
}

/// More than this many problems of one file are counted, not shown.
const SHOWN: usize = 20;

impl InvalidTopology {
    /// In the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for InvalidTopology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problems[..] {
            [one] => one.fmt(f),
            [first, ..] => {
                write!(f, "{} has {} mistakes", first.text.name(), self.problems.len() + self.more)
            }
            [] => Ok(()),
        }
    }
}

impl std::error::Error for InvalidTopology {}

impl InvalidTopology {
    /// The problem, if there is just one.
    fn single(&self) -> Option<&Problem> {
        match &self.problems[..] {
            [one] => Some(one),
            _ => None,
        }
    }
}

// One problem is the diagnostic itself; several hang under a heading.
impl Diagnostic for InvalidTopology {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        match self.single() {
            Some(problem) => Diagnostic::help(problem),
            None if self.more > 0 => Some(Box::new(format!("the first {SHOWN} are shown"))),
            None => None,
        }
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.single()?.source_code()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.single()?.labels()
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        if self.single().is_some() {
            return None;
        }
        Some(Box::new(self.problems.iter().map(|problem| problem as &dyn Diagnostic)))
    }
}

impl Problem {
    /// `file:line:column`, counted from 1; columns are characters.
    pub fn place(&self) -> String {
        format!("{}:{}:{}", self.text.name(), self.line, self.column)
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What was meant, or how to mend it.
    pub fn help(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// Counted from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Counted from 1, in characters.
    pub fn column(&self) -> usize {
        self.column
    }
}

impl Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&self.text)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.labels.iter().cloned()))
    }
}

/// Gathers what is wrong while a file is read, so that all of it is told at once.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

#[derive(Debug)]
pub(super) struct Finding {
    message: String,
    help: Option<String>,
    label: String,
    span: Range<usize>,
    also: Option<(Range<usize>, String)>,
}

impl Finding {
    pub(super) fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }

    /// What stands under the snippet's mark.
    pub(super) fn label(&mut self, label: impl Into<String>) -> &mut Self {
        self.label = label.into();
        self
    }

    /// A second place that has to do with it.
    pub(super) fn also(&mut self, span: Range<usize>, label: impl Into<String>) -> &mut Self {
        self.also = Some((span, label.into()));
        self
    }
}

impl Findings {
    pub(super) fn add(&mut self, span: Range<usize>, message: impl Into<String>) -> &mut Finding {
        self.0.push(Finding { message: message.into(), help: None, label: "here".into(), span, also: None });
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Ok` if nothing was found.
    pub(super) fn into_result(mut self, origin: &str, text: &str) -> Result<(), InvalidTopology> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.sort_by_key(|finding| (finding.span.start, finding.span.end));
        let source: Arc<str> = text.into();
        let more = self.0.len().saturating_sub(SHOWN);
        let problems =
            self.0.into_iter().take(SHOWN).map(|finding| problem(finding, origin, &source)).collect();
        Err(InvalidTopology { problems, more })
    }
}

fn problem(finding: Finding, origin: &str, source: &Arc<str>) -> Problem {
    let (line, column) = place(source, finding.span.start);
    let mut labels = vec![LabeledSpan::new_primary_with_span(Some(finding.label), finding.span)];
    labels.extend(finding.also.map(|(span, label)| LabeledSpan::new_with_span(Some(label), span)));
    Problem {
        message: finding.message,
        help: finding.help,
        labels,
        text: NamedSource::new(origin, Arc::clone(source)),
        line,
        column,
    }
}

/// Line and column of a byte offset, both from 1.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before: String = text.char_indices().take_while(|(i, _)| *i < offset).map(|(_, c)| c).collect();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// The candidate that `word` was probably meant to be: few slips of the keyboard away from it.
pub(super) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (candidate.chars().count() / 3).max(1)
                || {
                    // A shortened or lengthened word, such as "lat" for "latency".
                    lower.len() >= 2 && candidate.to_lowercase().starts_with(&lower)
                }
                || (candidate.len() >= 2 && lower.starts_with(&candidate.to_lowercase()))
        })
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        assert_eq!(place("ab\ncd", 0), (1, 1));
        assert_eq!(place("ab\ncd", 4), (2, 2));
        assert_eq!(place("äö\nü = 1", "äö\nü".len()), (2, 2));
        assert_eq!(place("ab", 99), (1, 3));
    }

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let keys = ["delay", "rate", "endpoints", "queue"];
        assert_eq!(nearest("dealy", keys), Some("delay"));
        assert_eq!(nearest("Rate", keys), Some("rate"));
        assert_eq!(nearest("endpoint", keys), Some("endpoints"));
        assert_eq!(nearest("colour", keys), None);
    }
}
