//! What went over the wire, decoded from a capture: who connected to whom, what was said, how it ended.
//!
//! Nothing here depends on how TCP cut, repeated or reordered the bytes, nor on how DDP cut a message into segments: a
//! run of RDMA Writes that continue each other is one [`Item`]. Directions of a connection are told apart and not
//! interleaved, since the order between them is a matter of time.

mod clear;
mod frame;
mod http;
mod in_place;
mod mpa;
mod reassembly;
mod roce;
mod tls;
mod tracker;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use clear::{Blocks, exposed};
pub(crate) use http::response_heads;
pub use mpa::CrcTally;

/// What a capture shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// In the order in which they were opened.
    pub connections: Vec<WireConnection>,
    /// ARP requests that nobody answered: who asked, and for whom.
    pub unanswered_arp: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
    /// Blocks of the body that went in the clear, where none should.
    #[serde(default)]
    pub exposed: Option<u64>,
}

/// One connection, of TCP or of RoCE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireConnection {
    /// Who sent the SYN, or the REQ.
    pub initiator: SocketAddr,
    /// Who was to answer it.
    pub responder: SocketAddr,
    /// What became of the SYN.
    pub opening: Opening,
    /// From the initiator to the responder.
    pub forth: Direction,
    /// From the responder to the initiator.
    pub back: Direction,
    /// When it was opened, since the Unix epoch; `None` if that was not seen.
    pub opened: Option<Duration>,
}

/// What became of a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Opening {
    /// It was answered by a SYN.
    Established,
    /// It was answered by a RST.
    Refused,
    /// It was not answered.
    Unanswered,
    /// The capture has the connection but not its SYN.
    Unseen,
}

/// One direction of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// In the order of the stream.
    pub items: Vec<Item>,
    /// The verdicts on the checksums of its FPDUs.
    pub crc: CrcTally,
    /// How it ended.
    pub end: End,
    /// When its bytes were sent.
    pub times: Times,
}

/// When a direction's bytes entered the link, since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Its first bytes, if there were any.
    pub first: Option<Duration>,
    /// Its last bytes.
    pub last: Option<Duration>,
    /// Its end, if that was seen.
    pub end: Option<Duration>,
}

/// How a direction ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It was still open when the capture ended.
    #[default]
    Open,
    /// With a FIN.
    Fin,
    /// With a RST from its sender.
    Reset,
    /// Through the communication manager, on RoCE.
    Disconnected,
}

/// A thing said in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// The head of an HTTP request or response.
    Head(HttpHead),
    /// The body that followed the head.
    Body {
        /// Bytes, without what delimits them.
        length: u64,
        /// SHA-256 in hexadecimal.
        sha256: String,
    },
    /// TLS.
    Tls {
        /// The kinds of its records, in words.
        records: String,
    },
    /// An MPA Request or Reply (RFC 5044, section 7.1).
    MpaStart(MpaStart),
    /// RDMA Writes, each of which continues the one before.
    Writes(Run),
    /// RDMA Read Responses, each of which continues the one before.
    ReadResponses(Run),
    /// An RDMA Read Request (RFC 5040, section 4.4).
    ReadRequest {
        /// Where the bytes are to go; RoCE does not say.
        sink: Option<(u32, u64)>,
        /// Where they are.
        source: (u32, u64),
        /// How many.
        length: u32,
    },
    /// The bytes that answer an RDMA Read Request, on RoCE.
    ReadData {
        /// How many.
        length: u64,
    },
    /// A message of InfiniBand's communication manager, on RoCE.
    Cm(CmMessage),
    /// The receiver of a RoCE request refuses it, for this reason.
    Refusal(String),
    /// A Send of any kind.
    Send {
        /// Its bytes.
        message: Vec<u8>,
        /// The region that it invalidates.
        invalidates: Option<u32>,
        /// Whether it asks for an event.
        solicited: bool,
    },
    /// A Terminate, in words.
    Terminate(String),
    /// Bytes of a protocol that is not known here.
    Unknown {
        /// How many.
        length: u64,
    },
    /// Something that breaks its protocol.
    Malformed(String),
}

/// The head of an HTTP message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpHead {
    /// `GET /x HTTP/1.1` or `HTTP/1.1 200 OK`.
    pub start: String,
    /// Names as they were written, in order.
    pub headers: Vec<(String, String)>,
}

/// An MPA start-up frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MpaStart {
    /// Request, else Reply.
    pub request: bool,
    /// MPA revision.
    pub revision: u8,
    /// Wants markers.
    pub markers: bool,
    /// Wants CRC.
    pub crc: bool,
    /// Refuses the connection.
    pub rejected: bool,
    /// IRD and ORD (RFC 6581), where they are said.
    pub depths: Option<(u16, u16)>,
    /// What first message was agreed on (RFC 6581, section 9), in words.
    pub ready_to_receive: Option<String>,
    /// The program's own private data.
    pub private_data: Vec<u8>,
}

/// A message of InfiniBand's communication manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CmMessage {
    /// REQ.
    Request {
        /// RDMA Reads that its sender takes at once, and that it sends.
        depths: (u8, u8),
        /// The program's own private data, filled up with zeros.
        private_data: Vec<u8>,
    },
    /// REP.
    Reply {
        /// RDMA Reads that its sender takes at once, and that it sends.
        depths: (u8, u8),
        /// The program's own private data, filled up with zeros.
        private_data: Vec<u8>,
    },
    /// REJ.
    Reject {
        /// Why (section 12.6.7.2): 28 is the program's own will.
        reason: u16,
    },
}

/// Tagged messages that continue each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The region.
    pub stag: u32,
    /// The first byte's tagged offset.
    pub to: u64,
    /// Bytes.
    pub length: u64,
    /// Messages.
    pub messages: u64,
}

/// Why a capture could not be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// It could not be read.
    #[error("{}: {error}", file.display())]
    File {
        /// The capture.
        file: PathBuf,
        /// Why not.
        error: String,
    },
    /// A frame was not captured whole, so the stream cannot be followed.
    #[error("{}: holds {captured} bytes of a frame of {original}; capture whole frames", file.display())]
    Truncated {
        /// The capture.
        file: PathBuf,
        /// Bytes there.
        captured: usize,
        /// Bytes there should be.
        original: u32,
    },
    /// Too much waits for a segment that does not come.
    #[error("a segment is missing and {waiting} bytes after it wait; the capture has a hole")]
    TooFarAhead {
        /// Bytes.
        waiting: usize,
    },
    /// More connections than a scenario can mean to make.
    #[error("more than {limit} connections in one capture")]
    TooManyConnections {
        /// The limit.
        limit: usize,
    },
}

/// Decodes a capture.
pub fn decode(file: &Path) -> Result<Conversation, WireError> {
    let mut tracker = tracker::Tracker::default();
    frame::read(file, |time, frame| tracker.frame(time, frame))?;
    Ok(tracker.finish())
}

impl Conversation {
    /// What breaks a protocol, in words.
    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(blocks @ 1..) = self.exposed {
            found.push(format!("wire: {blocks} blocks of the body went in the clear, although it is https"));
        }
        for connection in &self.connections {
            let (from, to) = (connection.initiator, connection.responder);
            for direction in [&connection.forth, &connection.back] {
                if direction.crc.bad > 0 {
                    let CrcTally { bad, good, .. } = direction.crc;
                    found.push(format!("wire: {bad} bad CRCs and {good} good ones between {from} and {to}"));
                }
                for item in &direction.items {
                    if let Item::Malformed(why) = item {
                        found.push(format!("wire: between {from} and {to}: {why}"));
                    }
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
