//! `testbed bench`: the figures.

use std::process::ExitCode;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Code, Failure, Global, Outcome, block_on, remark, say};
use crate::bench::{self, BenchError, Figure};
use crate::doctor::install_command;

const EXAMPLES: &str = "\
Each figure is a ratio of two things that were measured in turns on this machine; a missed target is no failure.

Examples:
  testbed bench                               every figure, some two minutes
  testbed bench relay-throughput --rounds 5
  testbed bench --json > figures.json";

/// Measure the emulator against a bare veth pair, RDMA against TCP, and how quick a lab comes and goes.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// What to measure; everything by default.
    figures: Vec<Figure>,
    /// How often each side of a ratio is measured; the medians are compared.
    #[arg(
        long,
        env = "TESTBED_BENCH_ROUNDS",
        default_value_t = 3,
        hide_env_values = true,
        value_parser = clap::value_parser!(u16).range(1..=100)
    )]
    rounds: u16,
}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        let figures = if self.figures.is_empty() { Figure::value_variants() } else { &self.figures };
        let bar = if global.progress() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(
            ProgressStyle::with_template("{spinner} {elapsed} {msg}")
                .unwrap_or(ProgressStyle::default_spinner()),
        );
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        let plain = !global.progress() && !global.json && !global.quiet;
        let progress = |what: &str| {
            bar.set_message(what.to_owned());
            if plain {
                remark(what);
            }
        };
        let mut all = Vec::new();
        for figure in figures {
            let measured =
                block_on(async { Ok(bench::run(&[*figure], self.rounds.into(), &progress).await) })?;
            let rows = match measured {
                Ok(rows) => rows,
                // Of all figures, those that cannot be had here are left out.
                Err(BenchError::NoKernel(no)) if self.figures.is_empty() => {
                    let name = figure.to_possible_value();
                    let name = name.as_ref().map_or("", |value| value.get_name());
                    bar.suspend(|| remark(format_args!("SKIP {name}: {no}; {}", no.help)));
                    continue;
                }
                Err(error) => {
                    bar.finish_and_clear();
                    return Err(error.into());
                }
            };
            if !global.json {
                bar.suspend(|| {
                    for row in &rows {
                        say(row);
                    }
                });
            }
            all.extend(rows);
        }
        bar.finish_and_clear();
        if global.json {
            say(serde_json::to_string_pretty(&all).unwrap_or_default());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        let message = error.to_string();
        match error {
            BenchError::NoJudge { program } => {
                Self::with_help(Code::Machine, message, install_command(&program))
            }
            BenchError::NoKernel(error) => error.into(),
            BenchError::Topology(error) => error.into(),
            BenchError::Up(error) => error.into(),
            BenchError::Down(error) => error.into(),
            BenchError::Client(error) => error.into(),
            BenchError::Unreadable(_) | BenchError::Failed { .. } | BenchError::Io(_) => {
                Self::new(Code::Differs, message)
            }
        }
    }
}
