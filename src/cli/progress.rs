//! The progress bar, on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far a fetch is; shows nothing where standard error is no terminal.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Waits for the response: how far an RDMA transfer is, no one but the hardware knows.
    pub(super) fn new(shown: bool) -> Self {
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style("{spinner} {msg} {elapsed}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// What it waits for.
    pub(super) fn waiting(&self, message: &'static str) {
        self.0.set_message(message);
    }

    /// The body begins.
    pub(super) fn body(&self, length: Option<u64>, message: &'static str) {
        self.0.set_message(message);
        if let Some(length) = length {
            self.0.set_length(length);
            self.0.set_style(style("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}"));
        } else {
            self.0.set_style(style("{spinner} {msg} {bytes} {bytes_per_sec} {elapsed}"));
        }
    }

    /// So many bytes more.
    pub(super) fn advance(&self, bytes: usize) {
        self.0.inc(bytes as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_well_formed() {
        for template in [
            "{spinner} {msg} {elapsed}",
            "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            "{spinner} {msg} {bytes} {bytes_per_sec} {elapsed}",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
