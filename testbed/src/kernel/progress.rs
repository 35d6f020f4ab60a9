//! What a build tells while it runs. Who draws it is no concern of the build's.

use std::fmt;

/// A stage of a build, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The source comes from the distribution.
    Fetch,
    /// The archive becomes a tree.
    Unpack,
    /// The configuration is made and checked.
    Configure,
    /// Make runs.
    Compile,
    /// The source and the objects are removed.
    Clean,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fetch => "fetching",
            Self::Unpack => "unpacking",
            Self::Configure => "configuring",
            Self::Compile => "compiling",
            Self::Clean => "removing",
        })
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another process is at it; this one waits until it is through.
    Waiting {
        /// What is being made there.
        what: String,
    },
    /// A stage begins.
    Started {
        /// Which.
        stage: Stage,
        /// What it works on.
        what: String,
    },
    /// How far a stage is: bytes when fetching, objects when compiling.
    Reached {
        /// Which.
        stage: Stage,
        /// So much is done.
        done: u64,
        /// Of about so much.
        total: u64,
    },
}

/// Who is told. Called from the build's own thread; must not block for long.
pub trait Watch {
    /// Something happened.
    fn progress(&mut self, progress: Progress);
}

impl<F: FnMut(Progress)> Watch for F {
    fn progress(&mut self, progress: Progress) {
        self(progress);
    }
}
