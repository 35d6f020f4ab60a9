//! A build's progress: a bar on a terminal, else a line now and then.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{Global, remark};
use crate::kernel::{Progress, Stage, Watch};

/// Tells it on standard error.
pub(super) struct Reporter(Kind);

enum Kind {
    Bar(ProgressBar),
    /// Remembers the tenth that was told last.
    Lines {
        tenth: u64,
    },
    Nothing,
}

impl Reporter {
    pub(super) fn new(global: &Global) -> Self {
        Self(if global.progress() {
            Kind::Bar(ProgressBar::hidden())
        } else if global.quiet {
            Kind::Nothing
        } else {
            Kind::Lines { tenth: 0 }
        })
    }

    /// Leaves the terminal as it was.
    pub(super) fn finish(self) {
        if let Kind::Bar(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

fn spinner(message: String) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn template(stage: Stage) -> &'static str {
    match stage {
        Stage::Fetch => "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}",
        _ => "{msg} {wide_bar} {pos} of about {len}, {elapsed}, {eta} to go",
    }
}

fn style(stage: Stage) -> ProgressStyle {
    // The tests see to it that ours are good.
    ProgressStyle::with_template(template(stage)).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Watch for Reporter {
    fn progress(&mut self, progress: Progress) {
        match (&mut self.0, progress) {
            (Kind::Nothing, _) => {}
            (Kind::Bar(bar), Progress::Waiting { what }) => {
                bar.finish_and_clear();
                *bar = spinner(format!("waiting: another testbed is at {what}"));
            }
            (Kind::Bar(bar), Progress::Started { stage, what }) => {
                bar.finish_and_clear();
                *bar = spinner(format!("{stage} {what}"));
            }
            (Kind::Bar(bar), Progress::Reached { stage, done, total }) => {
                if bar.length().is_none() {
                    bar.finish_and_clear();
                    *bar = ProgressBar::new(total).with_style(style(stage)).with_message(stage.to_string());
                    // What was done before says nothing about the speed.
                    bar.set_position(done);
                    bar.reset_eta();
                    bar.enable_steady_tick(Duration::from_millis(500));
                }
                bar.set_length(total);
                bar.set_position(done);
            }
            (Kind::Lines { .. }, Progress::Waiting { what }) => {
                remark(format_args!("waiting: another testbed is at {what}"));
            }
            (Kind::Lines { tenth }, Progress::Started { stage, what }) => {
                *tenth = 0;
                remark(format_args!("{stage} {what}"));
            }
            (Kind::Lines { tenth }, Progress::Reached { stage, done, total }) => {
                let now = done * 10 / total.max(1);
                if now > *tenth {
                    *tenth = now;
                    let unit = if stage == Stage::Fetch { "bytes" } else { "objects" };
                    remark(format_args!("{stage}: {done} of about {total} {unit}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_good() {
        for stage in [Stage::Fetch, Stage::Compile] {
            assert!(ProgressStyle::with_template(template(stage)).is_ok(), "{stage}");
        }
    }
}
