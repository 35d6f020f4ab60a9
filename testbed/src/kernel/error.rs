//! Why there is no kernel.

use std::io;
use std::path::{Path, PathBuf};

use crate::agent::protocol::Blame;

/// Why a kernel could not be built, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done: `read`, `create`.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What was asked for makes no sense.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What was meant, perhaps.
        help: String,
    },
    /// This machine cannot build it.
    #[error("{message}")]
    Machine {
        /// What it lacks.
        message: String,
        /// What mends it.
        help: String,
    },
    /// A program that the build needs failed.
    #[error("{what} failed ({status}):\n{tail}")]
    Failed {
        /// What it was to do.
        what: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        tail: String,
        /// All that was printed.
        log: PathBuf,
    },
    /// Options that were asked for are not in the configuration that came out.
    #[error("the kernel's configuration lacks what was asked for:\n{}", .0.join("\n"))]
    Configuration(Vec<String>),
    /// Somebody pressed Ctrl-C, or asked the process to end.
    #[error("interrupted")]
    Interrupted,
}

impl KernelError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn machine(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Machine { message: message.into(), help: help.into() }
    }

    pub(super) fn usage(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), help: help.into() }
    }

    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Usage { .. } => Blame::Usage,
            Self::Machine { .. } => Blame::Machine,
            Self::Io { source, .. }
                if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::StorageFull) =>
            {
                Blame::Machine
            }
            Self::Io { .. } | Self::Failed { .. } | Self::Configuration(_) | Self::Interrupted => {
                Blame::Operation
            }
        }
    }

    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Usage { help, .. } | Self::Machine { help, .. } => Some(help.clone()),
            Self::Failed { log, .. } => Some(format!("all of its output is in {}", log.display())),
            Self::Configuration(_) => {
                Some("this version names them differently, or they depend on something that is not set; try another --version, or mend it with --config".into())
            }
            Self::Interrupted => Some("the same command goes on from here".into()),
            Self::Io { .. } => Some("TESTBED_CACHE_DIR says where kernels are kept".into()),
        }
    }
}
