//! Moving one body over an RDMA connection: the four ways of doing it, each the same at whichever end it happens
//! (`docs/protocol.md`, section 4).
//!
//! | | the bytes' owner moves them | their taker moves them |
//! |---|---|---|
//! | owner's side | [`write()`]: Writes into a region of the taker's | [`expose()`]: tells of regions, to be read |
//! | taker's side | [`Intake::written`]: a region that is written round and round | [`Intake::read`]: Reads from the regions that are told of |
//!
//! What is registered at once is bounded at both ends, however long the body is. Knows nothing of HTTP but its bodies.

mod expose;
mod feed;
mod file;
mod gather;
mod intake;
mod pace;
mod pull;
mod ring;
mod unfold;
mod write;

use std::time::Duration;

pub use expose::expose;
pub(crate) use feed::in_bytes;
pub use feed::{Feed, Unread};
pub use file::{FileBody, FilePart};
pub use intake::Intake;
pub(crate) use pace::Pace;
pub use unfold::Unfold;
pub use write::{Target, write};

use crate::channel::{Channel, ReceiveError};
use crate::fabric::FabricError;
use crate::header::{Reason, TransferId};
use crate::memory::Buffers;
use crate::message::Message;
use crate::seal::{RECORD, TAG};

/// Any error, as bodies have them.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Receives that every side of a connection keeps posted; more messages than that are never under way.
pub const RECEIVE_DEPTH: usize = 128;
/// Bytes of each.
pub const RECEIVE_SIZE: usize = 64;
/// Regions that are told of and not read, at most.
const MOST_REGIONS: usize = 32;
/// Operations of one transfer in flight, at most: a device's send queue has room for 1,024, and messages go by it too.
pub const MOST_WINDOW: usize = 1000;
/// One part in so many of a ring is the least that is told of.
const STEPS: u64 = 32;

/// An RDMA connection and its memory.
pub struct Link {
    /// Before the memory, so that nothing is under way when that goes.
    pub channel: Channel,
    /// What is registered for it.
    pub buffers: Buffers,
}

/// Bounds of one transfer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one operation and of one registered buffer.
    pub chunk: usize,
    /// Operations in flight, and so buffers registered.
    pub window: usize,
    /// For each wait for the peer.
    pub stall: Duration,
    /// Bytes a second that the peer must move while it is waited for, over each `stall` of waiting.
    pub rate: u64,
}

/// Why a transfer broke off after it had begun.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// Whoever produces the body.
    #[error("the body broke off: {0}")]
    Body(BoxError),
    /// The connection's, or the peer's.
    #[error("the RDMA connection was lost: {0}")]
    Lost(FabricError),
    /// The peer does nothing, or too little.
    #[error("the peer took nothing for {0:?}, or too little")]
    Stalled(Duration),
    /// No memory could be registered.
    #[error("a buffer could not be registered: {0}")]
    Register(FabricError),
    /// What came is not what was sealed.
    #[error(transparent)]
    Seal(#[from] crate::seal::SealError),
    /// The peer wants the body by HTTP.
    #[error("the peer wants the body by HTTP")]
    Declined,
    /// The peer says what it should not.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
}

impl FlowError {
    /// What a response calls it; `None` where the body itself is broken and so must be the response.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Body(_) => None,
            Self::Lost(_) | Self::Declined | Self::Protocol(_) => Some(Reason::CONNECTION_LOST),
            Self::Stalled(_) => Some(Reason::TIMED_OUT),
            Self::Seal(_) => Some(Reason::SEAL_BROKEN),
            Self::Register(_) => Some(Reason::EXHAUSTED),
        }
    }
}

impl From<ReceiveError> for FlowError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Fabric(error) => Self::Lost(error),
            ReceiveError::Message(error) => Self::Protocol(error.to_string()),
        }
    }
}

impl Limits {
    /// The same where bodies are sealed: operations of whole records, if there is room for one in them. Then what arrives
    /// opens where it lies.
    pub fn in_records(self) -> Self {
        match self.chunk / (RECORD + TAG) {
            0 => self,
            records => Self { chunk: records * (RECORD + TAG), ..self },
        }
    }

    /// How a transfer's peer is waited for.
    pub(crate) fn pace(&self) -> Pace {
        Pace::new(self.stall, self.rate)
    }
}

/// A count that the peer tells: of this transfer, more than before, and within the limit.
fn checked(
    what: Message,
    told: (TransferId, u64),
    id: TransferId,
    before: u64,
    limit: u64,
) -> Result<u64, FlowError> {
    let (theirs, bytes) = told;
    if theirs == id && bytes > before && bytes <= limit {
        Ok(bytes)
    } else {
        Err(FlowError::Protocol(format!(
            "it sent {what:?} for {id} where {before} to {limit} bytes were due"
        )))
    }
}
