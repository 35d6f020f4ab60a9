//! How bytes get registered, and how much may be. A strategy ([`Registration`]) turns a buffer into a region that the
//! fabric can move; a [`Budget`] says how many bytes may be registered at once. It knows nothing of HTTP.
//!
//! This version has one strategy, [`Dynamic`]: register the very buffer, transfer, deregister.

mod budget;
mod registered;

pub use budget::{Budget, Exhausted, Share};
pub use registered::Registered;

use crate::events::Recorder;
use crate::fabric::{Access, FabricError, Pd, Region};

/// A strategy for the source of a transfer.
pub trait Registration: Send + Sync + 'static {
    /// Makes `bytes` something that the fabric can send from, in `pd`. Dropping the source ends whatever was begun for it.
    fn source(&self, pd: &Pd, bytes: Vec<u8>, recorder: &Recorder) -> Result<Box<dyn Source>, FabricError>;
}

/// Bytes in registered memory.
pub trait Source: Send + Sync {
    /// The region that they lie in.
    fn region(&self) -> &Region;
    /// Where they begin in it.
    fn offset(&self) -> usize;
    /// How many there are.
    fn length(&self) -> usize;
}

/// Registers the very buffer, without a copy, for one transfer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dynamic;

impl Registration for Dynamic {
    fn source(&self, pd: &Pd, bytes: Vec<u8>, recorder: &Recorder) -> Result<Box<dyn Source>, FabricError> {
        Ok(Box::new(Registered::new(pd, bytes, Access::LOCAL_READ, recorder)?))
    }
}

impl Source for Registered {
    fn region(&self) -> &Region {
        self.as_region()
    }

    fn offset(&self) -> usize {
        0
    }

    fn length(&self) -> usize {
        self.as_region().len()
    }
}
