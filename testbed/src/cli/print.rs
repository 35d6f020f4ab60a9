//! How verbs print to standard output.
//!
//! A pipe that whoever read has closed is no failure: they have seen enough. Anything else, such as a full disk, is one:
//! what a verb printed is its result. It is remembered here and said at the end, so that no verb has to.

use std::io::{self, Write as _};
use std::sync::Mutex;
use std::sync::PoisonError;

use super::{Code, Failure};

static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line, or several.
pub(crate) fn say(text: impl std::fmt::Display) {
    print(format_args!("{text}\n"));
}

/// Prints text as it is.
pub(crate) fn print(text: impl std::fmt::Display) {
    let mut out = io::stdout().lock();
    if let Err(error) = write!(out, "{text}").and_then(|()| out.flush())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        FAILED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Says a line on standard error, beside what a verb prints. Where nobody can take it, it is of no use to anyone.
pub(crate) fn remark(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Fails if anything could not be printed.
pub(super) fn check() -> Result<(), Failure> {
    match FAILED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        None => Ok(()),
        Some(error) => Err(Failure::new(Code::Differs, format!("cannot write to standard output: {error}"))),
    }
}
