//! Annotations for GitHub Actions: each problem beside the line of the golden that it is about.

use std::io::{self, Write};

use super::{Event, Reporter};

/// Writes workflow commands.
pub struct GitHub<W>(W);

impl<W: Write> GitHub<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self(out)
    }
}

impl<W: Write> Reporter for GitHub<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        let Event::ScenarioFinished(finding) = event else { return Ok(()) };
        for problem in finding.problems(false) {
            let file = property(&problem.file.display().to_string());
            let line = problem.line.map_or(String::new(), |line| format!(",line={line}"));
            let title = property(&format!("scenario {} on {}", finding.name, finding.fabrics));
            let text = data(format!("{}\n{}", problem.message, problem.details).trim_end());
            writeln!(self.0, "::error file={file}{line},title={title}::{text}")?;
        }
        self.0.flush()
    }
}

fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
