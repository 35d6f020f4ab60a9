//! For people: a line each, the differences at the end. On a terminal the scenario under way is shown below.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Event, Finding, Reporter, Summary, Verdict};

/// Writes for people.
pub struct Human<W> {
    out: W,
    color: bool,
    quiet: bool,
    progress: Option<ProgressBar>,
    bad: Vec<String>,
}

impl<W: Write> Human<W> {
    /// Writes to `out`; `progress` draws on standard error, which must be a terminal. `quiet` says only what is wrong.
    pub fn new(out: W, color: bool, progress: bool, quiet: bool) -> Self {
        Self { out, color, quiet, progress: progress.then(spinner), bad: Vec::new() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        // What is drawn below must not get between.
        match &self.progress {
            Some(progress) => progress.suspend(|| writeln!(self.out, "{text}")),
            None => writeln!(self.out, "{text}"),
        }
    }

    fn scenario(&mut self, finding: &Finding) -> io::Result<()> {
        let verdict = finding.verdict();
        if verdict.is_bad() {
            self.bad.push(self.explain(finding));
        } else if self.quiet && verdict != Verdict::Skip {
            return Ok(());
        }
        let word = self.verdict(verdict);
        let time = seconds(finding.elapsed);
        let why = match &finding.outcome {
            super::Outcome::Skipped(why) => format!(": {why}"),
            _ => String::new(),
        };
        self.line(&format!("{word} [{time}] {:<4} {}{why}", finding.fabrics.to_string(), finding.name))?;
        if let super::Outcome::Observed { blessed, .. } = &finding.outcome {
            for file in blessed {
                self.line(&format!("             wrote {}", file.display()))?;
            }
        }
        Ok(())
    }

    fn verdict(&self, verdict: Verdict) -> String {
        // Padded before it is painted: escapes have no width.
        let padded = format!("{:>12}", verdict.word().to_uppercase());
        self.paint(
            match verdict {
                Verdict::Pass => "32;1",
                Verdict::Blessed | Verdict::Skip => "33;1",
                Verdict::Fail | Verdict::Error => "31;1",
            },
            &padded,
        )
    }

    fn explain(&self, finding: &Finding) -> String {
        let mut text = String::new();
        for problem in finding.problems(self.color) {
            let word = finding.verdict().word().to_uppercase();
            let word = self.paint("31;1", &word);
            let line = problem.line.map_or(String::new(), |line| format!(":{line}"));
            let place = format!("{}{line}", problem.file.display());
            let name = self.paint("1", &format!("{} {}", finding.fabrics, finding.name));
            text.push_str(&format!("{word} {name}: {}\n  {place}\n", problem.message));
            text.push_str(&problem.details);
            if !problem.details.is_empty() && !problem.details.ends_with('\n') {
                text.push('\n');
            }
        }
        text
    }

    fn finish(&mut self, summary: &Summary) -> io::Result<()> {
        if let Some(progress) = self.progress.take() {
            progress.finish_and_clear();
        }
        if self.quiet && summary.is_good() {
            return Ok(());
        }
        let rule = "─".repeat(12);
        writeln!(self.out, "{rule}")?;
        let run = summary.run();
        let mut parts = vec![self.paint("32;1", &format!("{} passed", summary.passed))];
        for (count, what, code) in [
            (summary.blessed, "blessed", "33;1"),
            (summary.failed, "failed", "31;1"),
            (summary.skipped, "skipped", "33;1"),
            (summary.errors, "not seen for an error", "31;1"),
        ] {
            if count > 0 {
                parts.push(self.paint(code, &format!("{count} {what}")));
            }
        }
        let word = self.paint(if summary.is_good() { "32;1" } else { "31;1" }, &format!("{:>12}", "Summary"));
        let plural = if run == 1 { "" } else { "s" };
        let time = seconds(summary.elapsed);
        let simulated = match summary.simulated {
            Some(simulated) => {
                let ratio = simulated.as_secs_f64() / summary.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
                format!("; {:.1} s of virtual time, {ratio:.1} a second", simulated.as_secs_f64())
            }
            None => String::new(),
        };
        let broken = if summary.interrupted { "; interrupted" } else { "" };
        writeln!(
            self.out,
            "{word} [{time}] {run} scenario{plural} run: {}{simulated}{broken}",
            parts.join(", ")
        )?;
        for explanation in std::mem::take(&mut self.bad) {
            write!(self.out, "\n{explanation}")?;
        }
        self.out.flush()
    }
}

impl<W: Write> Reporter for Human<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Started(_) if self.quiet => Ok(()),
            Event::Started(start) => {
                let word = self.paint("32;1", &format!("{:>12}", "Starting"));
                let plural = if start.scenarios == 1 { "" } else { "s" };
                let skipped = match start.skipped {
                    0 => String::new(),
                    skipped => format!(" ({skipped} skipped)"),
                };
                let over = super::list(&start.fabrics);
                let lab = match &start.lab {
                    Some(lab) => format!("in lab {lab}"),
                    None => format!("each in a {} guest, on the {} clock", start.kernel, start.clock),
                };
                self.line(&format!(
                    "{word} {} scenario{plural} on {} over {over} {lab}{skipped}",
                    start.scenarios, start.topology
                ))
            }
            Event::ScenarioStarted { name, fabrics } => {
                if let Some(progress) = &self.progress {
                    progress.set_message(format!("{fabrics} {name}"));
                    progress.reset_elapsed();
                }
                Ok(())
            }
            Event::ScenarioFinished(finding) => self.scenario(finding),
            Event::Finished(summary) => self.finish(summary),
        }
    }
}

fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner:>12} [{elapsed:>8}] {msg}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn seconds(elapsed: Duration) -> String {
    format!("{:8.3}s", elapsed.as_secs_f64())
}
