//! What is wrong with a scenario's file: shown at its place, with what was meant.

use std::ops::Range;
use std::path::{Path, PathBuf};

use miette::{Diagnostic, NamedSource, SourceSpan};

/// A scenario's file that cannot be used: where, and what was meant.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct ScenarioError {
    message: String,
    #[help]
    pub(super) help: Option<String>,
    #[source_code]
    source_code: NamedSource<String>,
    #[label("here")]
    span: SourceSpan,
    file: PathBuf,
    line: usize,
    column: usize,
}

impl ScenarioError {
    pub(super) fn new(
        file: &Path,
        text: &str,
        span: Range<usize>,
        message: String,
        help: Option<String>,
    ) -> Self {
        let before = &text[..floor_char_boundary(text, span.start)];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self {
            message: format!("{}:{line}:{column}: {message}", file.display()),
            help,
            source_code: NamedSource::new(file.display().to_string(), text.to_owned()),
            span: (span.start, span.end.saturating_sub(span.start).max(1)).into(),
            file: file.to_owned(),
            line,
            column,
        }
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Line and column, from 1, the column in characters.
    pub fn position(&self) -> (usize, usize) {
        (self.line, self.column)
    }
}

fn floor_char_boundary(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// For "unknown field `tagret`, expected one of `host`, `target`": the nearest of those that were expected.
pub(super) fn what_was_meant(message: &str) -> Option<String> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    let known: Vec<&str> = quoted.collect();
    let nearest = similar::get_close_matches(wrong, &known, 1, 0.6);
    nearest.first().map(|name| format!("did you mean `{name}`?"))
}
