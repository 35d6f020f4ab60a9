//! How a verb fails: an exit code, a message and the remedy, printed by miette.

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, JSONReportHandler, MietteDiagnostic, Report,
};

use super::Global;

/// The exit codes of `testbed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// As expected.
    Expected = 0,
    /// An observation differs from its golden, or what was asked for failed.
    Differs = 1,
    /// Usage, or a bad file.
    Usage = 2,
    /// This machine cannot do it.
    Machine = 3,
    /// Nothing was run.
    NothingRun = 4,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// Why a verb failed.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    report: Report,
}

impl Failure {
    /// A failure with a message that needs no further help.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code as u8, report: MietteDiagnostic::new(message).into() }
    }

    /// A failure with its remedy.
    pub fn with_help(code: Code, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { code: code as u8, report: MietteDiagnostic::new(message).with_help(help).into() }
    }

    /// A failure that points into a file.
    pub fn from_diagnostic(code: Code, diagnostic: impl Diagnostic + Send + Sync + 'static) -> Self {
        Self { code: code as u8, report: Report::new(diagnostic) }
    }

    /// The same failure with the exit code of a command that was to run in a host: 126 or 127, as shells have it.
    pub(crate) fn with_raw_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The exit code.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    /// Prints the failure to standard error, as text or as JSON.
    pub fn print(&self, global: &Global) {
        // Where nobody can take it, the exit code has to do.
        let _ = write!(io::stderr(), "{}", self.render(global.json, global.color_stderr()));
    }

    fn render(&self, json: bool, color: bool) -> String {
        let mut text = String::new();
        let diagnostic: &dyn Diagnostic = self.report.as_ref();
        let printed = if json {
            JSONReportHandler::new().render_report(&mut text, diagnostic).map(|()| text.push('\n'))
        } else {
            let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
            // Lines are left to the terminal to wrap, so that a remedy can be copied as it stands.
            GraphicalReportHandler::new_themed(theme)
                .with_wrap_lines(false)
                .with_links(false)
                .render_report(&mut text, diagnostic)
        };
        match printed {
            Ok(()) => text,
            Err(fmt::Error) => format!("error: {diagnostic}\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_message_and_the_remedy() {
        let failure = Failure::with_help(Code::Usage, "no host named `x`", "the hosts are: client, server");
        let text = failure.render(false, false);
        assert!(text.contains("no host named `x`"), "{text}");
        assert!(text.contains("help: the hosts are: client, server"), "{text}");
        assert!(!text.contains('\u{1b}'), "no color was asked for: {text:?}");
    }

    #[test]
    fn json_is_one_object() {
        let failure = Failure::with_help(Code::Machine, "it \"cannot\"", "buy another");
        let value: serde_json::Value = serde_json::from_str(&failure.render(true, false)).unwrap();
        assert_eq!(value["message"], "it \"cannot\"");
        assert_eq!(value["help"], "buy another");
    }
}
