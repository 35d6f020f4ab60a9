//! What this machine can do, what it can't, and the command that mends it.
//!
//! [`Facts`] are gathered first, from files and from attempts made in a throw-away child; [`examine`] then judges them
//! without touching the machine, so a test can hand it an Ubuntu 24.04, a container or a Debian.

mod check;
mod facts;
mod guests;
mod packages;
mod probe;

use std::fmt::{self, Write as _};

use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;

pub use check::examine;
pub use facts::{Facts, Module, Sources};
pub use guests::{Guests, Kvm};
pub use packages::install_command;
pub use probe::{Attempts, Errno, attempt};

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Whether a lab can be brought up at all.
    pub able: bool,
    /// What can be done, each in a few words.
    pub abilities: Vec<Ability>,
    /// In the order in which a lab needs them.
    pub checks: Vec<Check>,
}

/// Something that a user wants to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ability {
    /// What.
    pub what: &'static str,
    /// Whether it can be done here.
    pub able: bool,
    /// How, or why not.
    pub how: String,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What it is.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What that means for the user; empty where nothing is amiss.
    pub meaning: String,
    /// The command that mends it.
    pub remedy: Option<String>,
}

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something else is used instead, or part of it cannot be done.
    Limited,
    /// It is not there.
    Missing,
}

impl Report {
    /// For people; with color if `color`.
    pub fn render(&self, color: bool) -> String {
        let mut out = String::new();
        // A String takes everything.
        let _ = self.write(&mut out, color);
        out
    }

    fn write(&self, out: &mut String, color: bool) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let margin = " ".repeat(width + 4);
        for check in &self.checks {
            let (mark, style) = check.status.mark();
            let mark = paint(mark, style, color);
            writeln!(out, "{mark} {:<width$}  {}", check.name, check.found)?;
            if !check.meaning.is_empty() {
                writeln!(out, "{margin}{}", check.meaning)?;
            }
            for line in check.remedy.iter().flat_map(|remedy| remedy.lines()) {
                writeln!(
                    out,
                    "{margin}{}",
                    paint(&format!("$ {line}"), AnsiColor::Cyan.on_default(), color)
                )?;
            }
        }
        writeln!(out)?;
        for ability in &self.abilities {
            let style = if ability.able { AnsiColor::Green } else { AnsiColor::Yellow };
            let verdict = paint(if ability.able { "yes" } else { "no" }, style.on_default().bold(), color);
            writeln!(out, "{}: {verdict}, {}", ability.what, ability.how)?;
        }
        Ok(())
    }
}

impl Status {
    fn mark(self) -> (&'static str, Style) {
        match self {
            Self::Ok => ("✓", AnsiColor::Green.on_default()),
            Self::Limited => ("!", AnsiColor::Yellow.on_default()),
            Self::Missing => ("✗", AnsiColor::Red.on_default()),
        }
    }
}

fn paint(text: &str, style: Style, color: bool) -> String {
    if color { format!("{}{text}{}", style.render(), style.render_reset()) } else { text.to_owned() }
}

#[cfg(test)]
mod tests;
