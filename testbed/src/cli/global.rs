//! The options that every verb has.

use std::io::IsTerminal;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// The options that every verb has.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Print JSON instead of text, errors too.
    #[arg(long, global = true, env = "TESTBED_JSON", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub json: bool,
    /// When to use color; `auto` is on a terminal, unless NO_COLOR is set.
    #[arg(
        long,
        global = true,
        env = "TESTBED_COLOR",
        value_name = "WHEN",
        default_value = "auto",
        hide_env_values = true
    )]
    pub color: ColorChoice,
    /// Say less: only errors.
    #[arg(short, long, global = true, env = "TESTBED_QUIET", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub quiet: bool,
    /// Say more; twice is even more.
    #[arg(short, long, global = true, env = "TESTBED_VERBOSE", action = ArgAction::Count, hide_env_values = true)]
    pub verbose: u8,
}

/// When to use color.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal.
    #[default]
    Auto,
    /// Even into a file.
    Always,
    /// Not at all.
    Never,
}

impl ColorChoice {
    fn decide(self, is_terminal: bool) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                is_terminal
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        }
    }
}

impl Global {
    /// Whether standard output takes colors.
    pub fn color_stdout(&self) -> bool {
        self.color.decide(std::io::stdout().is_terminal())
    }

    /// Whether standard error takes colors.
    pub fn color_stderr(&self) -> bool {
        self.color.decide(std::io::stderr().is_terminal())
    }

    /// Whether progress may be drawn: somebody watches, and wants text.
    pub fn progress(&self) -> bool {
        !self.json && !self.quiet && std::io::stderr().is_terminal()
    }

    /// Sends the log to standard error. `TESTBED_LOG` (in the syntax of `RUST_LOG`) overrides `-q` and `-v`.
    pub(crate) fn init(&self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => "error",
            (false, 0) => "warn",
            (false, 1) => "info",
            (false, 2) => "debug",
            (false, _) => "trace",
        };
        let filter = EnvFilter::try_from_env("TESTBED_LOG").unwrap_or_else(|_| EnvFilter::new(level));
        // A second initialisation can only come from a test that calls `main` twice; the first one holds.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(self.color_stderr())
            .with_target(false)
            .try_init();
    }
}
