//! How bytes get registered, and how much may be. A [`Strategy`] says what is done; [`Buffers`] does it for one RDMA
//! connection, and counts; a [`Budget`] says how many bytes may be registered at once. It knows nothing of HTTP.
//!
//! | strategy | a body's bytes | registered | copied |
//! |---|---|---|---|
//! | `dynamic` | lie in a buffer, which is registered for one transfer | each time | never |
//! | `static` | are copied to or from buffers that were registered with the connection, before the first transfer | never again | always |
//! | `cache` | as `static`, with buffers registered as they are needed, and kept | until there are enough | always |
//! | `sendfile` | stay in the file, which is registered | each time | never, nor read into user space |

mod budget;
mod buffers;
mod pages;
mod registered;

pub use budget::{Budget, Exhausted, Share};
pub use buffers::{Buffers, Load, NotWritten, Sink, Source};
pub use registered::Registered;

/// How bytes get registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Buffers that serve all transfers of an RDMA connection: one copy of each byte. As many as a transfer can take are
    /// registered when the connection is made, before there is anything to transfer. On `soft` its peer reaches a buffer
    /// during the transfer that it serves, as far as it was told; on a device, for as long as the connection lives.
    Static,
    /// The very buffer is registered for one transfer and deregistered after it: no copy.
    #[default]
    Dynamic,
    /// As `static`, but buffers are registered when they are needed for the first time.
    Cache,
    /// A file is registered as it lies in the page cache: no copy in user space. What is no file goes as with `dynamic`.
    Sendfile,
}

impl Strategy {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Static, Self::Dynamic, Self::Cache, Self::Sendfile];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Dynamic => "dynamic",
            Self::Cache => "cache",
            Self::Sendfile => "sendfile",
        }
    }

    /// Whether buffers stay registered between transfers.
    pub fn keeps_buffers(self) -> bool {
        matches!(self, Self::Static | Self::Cache)
    }
}
