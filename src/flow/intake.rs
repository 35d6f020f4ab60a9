//! A body on its way here, whoever moves its bytes.

use bytes::Bytes;

use super::pull::Pull;
use super::ring::Ring;
use super::{FlowError, Limits, Link, Pace};
use crate::header::{Advert, TransferId};
use crate::memory::Sink;

/// The taker's side of a transfer.
pub struct Intake {
    way: Way,
    limits: Limits,
    pace: Pace,
}

enum Way {
    Written(Ring),
    Read(Pull),
}

impl Intake {
    /// `length` bytes that the peer writes into `sink`.
    pub fn written(id: TransferId, sink: Sink, length: u64, limits: Limits) -> Self {
        Self { way: Way::Written(Ring::new(id, sink, length)), limits, pace: limits.pace() }
    }

    /// `length` bytes that are read from regions of the peer's, which begin in `first` where that is told already.
    pub fn read(id: TransferId, first: Option<Advert>, length: u64, limits: Limits) -> Self {
        Self { way: Way::Read(Pull::new(id, first, length)), limits, pace: limits.pace() }
    }

    /// Bytes that are taken.
    pub fn taken(&self) -> u64 {
        match &self.way {
            Way::Written(ring) => ring.taken(),
            Way::Read(pull) => pull.taken(),
        }
    }

    /// The next bytes, at most a chunk; `None` at the end. On an error the connection must be dropped. A wait that is given
    /// up loses nothing.
    pub async fn next(&mut self, link: &Link) -> Result<Option<Bytes>, FlowError> {
        match &mut self.way {
            Way::Written(ring) => ring.next(link, self.limits, &mut self.pace).await,
            Way::Read(pull) => pull.next(link, self.limits, &mut self.pace).await,
        }
    }
}
