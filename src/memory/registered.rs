//! A region that tells of its registration and its release, whichever way it ends.

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
        let region = pd.register(memory, access)?;
        let stag = region.stag().0;
        recorder.record(Event::RegionRegistered {
            stag,
            length: region.len() as u64,
            access: remote_rights(access).to_owned(),
        });
        Ok(Self { region, guard: Release { stag, recorder: recorder.clone() } })
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
