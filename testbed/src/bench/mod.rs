//! `testbed bench`: the figures, each the ratio of two things measured in one run on one machine.
//!
//! A figure has a target, but missing it is no failure: machines differ and are shared. The two sides of a ratio are
//! measured in turns (A B A B …) and the medians are compared, so that a noisy minute hits both.

mod bed;
mod fabrics;
mod guest;
mod judge;
pub mod latency;
mod measure;
pub mod register;
mod ways;
pub mod write;

use std::fmt;

use serde::Serialize;

pub use bed::BenchError;
pub use measure::{Progress, run};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// iperf3 through a 10 Gbit/s, 0 ms link, against a bare veth pair and against the nominal rate.
    RelayThroughput,
    /// What a link adds to a ping beyond its nominal delay.
    RelayDelay,
    /// RDMA Write of 64 MiB regions over soft, against iperf3 over the same link.
    SoftWrite,
    /// A GET of 64 MiB by RDMA, against the same GET by curl.
    Fetch,
    /// `up` and `down` of wan-10g.
    UpDown,
    /// `up` of wan-10g in a User-Mode Linux guest, against a second.
    GuestReadyUml,
    /// `up` of wan-10g in a QEMU guest, against a UML guest.
    GuestReadyQemu,
    /// RDMA Writes and Sends of each fabric in a User-Mode Linux guest, against TCP there.
    Fabrics,
    /// First and last byte of a body over wan-10g for each way of connecting, against plain HTTP.
    Ways,
    /// Registering and deregistering memory on each fabric in a User-Mode Linux guest, against copying it.
    Register,
}

/// A figure, measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which figure it belongs to.
    pub figure: Figure,
    /// What was compared.
    pub what: String,
    /// The thing that was measured, in `unit`.
    pub value: f64,
    /// What it is compared with, in `unit`.
    pub reference: f64,
    /// Of both.
    pub unit: &'static str,
    /// `value / reference`.
    pub ratio: f64,
    /// What the ratio should be, where there is a target.
    pub target: Option<Target>,
    /// What bounds the thing that was measured, where its target was missed.
    pub note: Option<String>,
}

/// What a ratio should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Row {
    fn new(figure: Figure, what: impl Into<String>, value: f64, reference: f64, unit: &'static str) -> Self {
        Self {
            figure,
            what: what.into(),
            value,
            reference,
            unit,
            ratio: value / reference,
            target: None,
            note: None,
        }
    }

    fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    fn note(mut self, note: String) -> Self {
        self.note = Some(note);
        self
    }

    /// Whether the target is met; `None` without one.
    pub fn met(&self) -> Option<bool> {
        Some(match self.target? {
            Target::AtLeast(bound) => self.ratio >= bound,
            Target::AtMost(bound) => self.ratio <= bound,
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<62} {:>9.2} : {:<9.2} {:<7} ratio {:.3}",
            self.what, self.value, self.reference, self.unit, self.ratio
        )?;
        let verdict = if self.met() == Some(true) { "met" } else { "missed" };
        match self.target {
            Some(Target::AtLeast(bound)) => write!(f, "  (target at least {bound:.2}: {verdict})")?,
            Some(Target::AtMost(bound)) => write!(f, "  (target at most {bound:.2}: {verdict})")?,
            None => {}
        }
        match &self.note {
            Some(note) => write!(f, "\n  {note}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_or_missed_and_the_line_says_which() {
        let row = Row::new(Figure::SoftWrite, "soft", 8.0, 10.0, "Gbit/s").target(Target::AtLeast(0.8));
        assert_eq!(row.met(), Some(true));
        assert!(row.to_string().ends_with("ratio 0.800  (target at least 0.80: met)"), "{row}");
        let row = Row::new(Figure::UpDown, "up + down", 120.0, 100.0, "ms").target(Target::AtMost(1.0));
        assert_eq!(row.met(), Some(false));
        assert!(row.to_string().ends_with("(target at most 1.00: missed)"), "{row}");
    }
}
