//! JUnit, as CI systems read it: a suite for the topology, a case for each scenario on each fabric.

use std::io::{self, Write};

use quick_junit::{NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestSuite};

use super::{Event, Finding, Outcome, Reporter, Start, Verdict};

/// Collects a run and writes it when it is over.
pub struct JUnit<W> {
    out: W,
    start: Option<Start>,
    cases: Vec<TestCase>,
}

impl<W: Write> JUnit<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, start: None, cases: Vec::new() }
    }
}

impl<W: Write> Reporter for JUnit<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Started(start) => self.start = Some((*start).clone()),
            Event::ScenarioStarted { .. } => {}
            Event::ScenarioFinished(finding) => self.cases.push(case(finding, self.start.as_ref())),
            Event::Finished(summary) => {
                let name = self.start.as_ref().map_or("testbed", |start| start.topology.as_str());
                let mut suite = TestSuite::new(name);
                if let Some(start) = &self.start {
                    suite.add_property(Property::new("fabrics", super::list(&start.fabrics)));
                    suite.add_property(Property::new("kernel", &start.kernel));
                    suite.add_property(Property::new("clock", &start.clock));
                }
                suite.add_test_cases(std::mem::take(&mut self.cases));
                suite.set_time(summary.elapsed);
                let mut report = Report::new("testbed");
                report.set_time(summary.elapsed);
                report.add_test_suite(suite);
                report.serialize(&mut self.out).map_err(io::Error::other)?;
                self.out.flush()?;
            }
        }
        Ok(())
    }
}

fn case(finding: &Finding, start: Option<&Start>) -> TestCase {
    let kind = match finding.verdict() {
        Verdict::Pass | Verdict::Blessed | Verdict::Skip => None,
        Verdict::Fail => Some(NonSuccessKind::Failure),
        Verdict::Error => Some(NonSuccessKind::Error),
    };
    let status = match kind {
        None if let Outcome::Skipped(why) = &finding.outcome => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(why);
            status
        }
        None => TestCaseStatus::success(),
        Some(kind) => {
            let problems = finding.problems(false);
            let mut status = TestCaseStatus::non_success(kind);
            let first = problems.first();
            status.set_message(first.map_or(String::new(), |problem| problem.message.clone()));
            let text: Vec<String> = problems
                .iter()
                .map(|problem| {
                    let line = problem.line.map_or(String::new(), |line| format!(":{line}"));
                    format!("{}{line}: {}\n{}", problem.file.display(), problem.message, problem.details)
                })
                .collect();
            status.set_description(text.join("\n"));
            status
        }
    };
    let mut case = TestCase::new(&finding.name, status);
    if let Some(start) = start {
        case.set_classname(format!("{}.{}", start.topology, finding.fabrics));
    }
    case.set_time(finding.elapsed);
    case
}
