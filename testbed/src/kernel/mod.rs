//! Guest kernels: source -> configuration -> image, built once and kept.
//!
//! [`build`] takes a [`Request`] to an [`Image`] in the [`Cache`]. What a kernel is made from decides its key: the
//! source (version and hash), the architecture and the configuration that is wanted. An image with that key is used as
//! it stands, so a second call does no work.
//!
//! ```text
//! source ──► fetch ──► unpack ──► configure ──► compile ──► install
//!            apt, or   tar        tinyconfig    make        image, .config, log
//!            a file               + fragments               and manifest, renamed
//!                                 checked                   into place at once
//! ```
//!
//! Each stage leaves its result by a rename, or (compiling) through make, so a build that was interrupted goes on from
//! where it was. Two builds of one kernel wait for each other: a lock is held by the build and by every program that it
//! started, so that it lasts as long as any of them.

mod apt;
mod archive;
mod build;
mod cache;
mod command;
mod config;
mod digest;
mod error;
mod progress;
mod source;
mod toolchain;

#[cfg(test)]
mod tests;

pub use build::{Built, Request, build};
pub use cache::{Cache, Image, Manifest};
pub use command::{Interrupt, Interrupter};
pub use config::{ConfigError, Fragment, Wanted};
pub use error::KernelError;
pub use progress::{Progress, Stage, Watch};
pub use source::{DEFAULT_VERSION, Source};

/// Whether this machine has what builds a guest's kernel; else what it lacks.
pub fn can_build() -> Result<(), KernelError> {
    toolchain::check(Platform::Uml, &toolchain::search_path())
}

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a guest kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// User-Mode Linux: the kernel is an ordinary program.
    Uml,
    /// x86-64 under QEMU, with KVM or without.
    Qemu,
}

impl Platform {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Uml, Self::Qemu];

    /// kbuild's `ARCH`.
    fn arch(self) -> &'static str {
        match self {
            Self::Uml => "um",
            Self::Qemu => "x86_64",
        }
    }

    /// kbuild's target.
    fn target(self) -> &'static str {
        match self {
            Self::Uml => "linux",
            Self::Qemu => "bzImage",
        }
    }

    /// Where kbuild leaves the image, below the directory of objects.
    fn product(self) -> &'static str {
        match self {
            Self::Uml => "linux",
            Self::Qemu => "arch/x86/boot/bzImage",
        }
    }

    /// Lines that kbuild prints for a whole build, as an estimate where none has been counted yet.
    fn estimate(self) -> u64 {
        match self {
            Self::Uml => 1_700,
            Self::Qemu => 2_400,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uml => "uml",
            Self::Qemu => "qemu",
        })
    }
}
