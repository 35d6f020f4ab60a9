//! A region that tells of its registration and its release, whichever way it ends.

use std::fs::File;
use std::sync::Arc;

use crate::events::{Event, Recorder};
use crate::fabric::{Access, FabricError, Pd, Region};

/// Memory that is registered as long as this lives.
#[derive(Debug)]
pub struct Registered {
    region: Region,
    guard: Release,
}

/// Records the release when it is dropped; after the region, which is declared before it.
struct Release {
    stag: u32,
    recorder: Recorder,
}

impl Registered {
    /// Registers `memory`.
    pub fn new(pd: &Pd, memory: Vec<u8>, access: Access, recorder: &Recorder) -> Result<Self, FabricError> {
        Ok(Self::told(pd.register(memory, access)?, access, recorder))
    }

    /// Registers a part of a file, to be written from or read by the peer.
    pub fn file(
        pd: &Pd,
        file: Arc<File>,
        offset: u64,
        length: u64,
        recorder: &Recorder,
    ) -> Result<Self, FabricError> {
        Ok(Self::told(pd.register_file(file, offset, length)?, Access::REMOTE_READ, recorder))
    }

    fn told(region: Region, access: Access, recorder: &Recorder) -> Self {
        let stag = region.stag().0;
        recorder.record(Event::RegionRegistered {
            stag,
            length: region.len() as u64,
            access: remote_rights(access).to_owned(),
            base: region.base(),
        });
        Self { region, guard: Release { stag, recorder: recorder.clone() } }
    }

    /// The region.
    pub fn as_region(&self) -> &Region {
        &self.region
    }

    /// Deregisters and hands the memory back; from here on no peer can touch it.
    pub fn release(self) -> Result<Vec<u8>, FabricError> {
        let Self { region, guard } = self;
        let memory = region.deregister();
        drop(guard);
        memory
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        self.recorder.record(Event::RegionReleased { stag: self.stag });
    }
}

impl std::fmt::Debug for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Release").field("stag", &self.stag).finish_non_exhaustive()
    }
}

/// What a peer may do, as the events name it.
fn remote_rights(access: Access) -> &'static str {
    match (access.remote_read, access.remote_write) {
        (false, false) => "none",
        (true, false) => "remote-read",
        (false, true) => "remote-write",
        (true, true) => "remote-read remote-write",
    }
}
