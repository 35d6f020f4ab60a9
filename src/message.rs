//! What the two sides say to each other over RDMA beside the bodies: short messages, as private data of a connection
//! request and as Sends (`docs/protocol.md`, section 4).

use bytes::Bytes;

use crate::fabric::{RemoteAddress, Stag};
use crate::header::TransferId;

/// Bytes of every message but [`Message::Region`].
pub const LENGTH: usize = 32;

/// Bytes of a [`Message::Region`].
pub const REGION_LENGTH: usize = 48;

pub(crate) const MAGIC: [u8; 4] = *b"RHTP";
pub(crate) const VERSION: u8 = 1;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Private data of a connection request: "I connect on behalf of this transfer". Also the first Send of a client that
    /// connects: iWARP makes the connecting side speak first.
    Hello {
        /// The transfer, or the introduction, that caused the connection.
        id: TransferId,
    },
    /// "All of this transfer's bytes are there": written, or lying in regions that were told of.
    Done {
        /// The transfer.
        id: TransferId,
        /// Bytes of the whole body.
        bytes: u64,
    },
    /// "So many bytes are written, and more will come."
    Progress {
        /// The transfer.
        id: TransferId,
        /// Bytes from the body's beginning.
        bytes: u64,
    },
    /// "So many bytes are taken: their place may be used again."
    Credit {
        /// The transfer.
        id: TransferId,
        /// Bytes from the body's beginning.
        bytes: u64,
    },
    /// A region of the sender's: the next part of the body, to be read; or the place where the body shall be written.
    Region {
        /// The transfer.
        id: TransferId,
        /// Where it begins.
        at: RemoteAddress,
        /// Its bytes.
        bytes: u64,
    },
    /// "This body shall come by HTTP." On a connection in place only: any other is closed to say so.
    Decline {
        /// The transfer.
        id: TransferId,
    },
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not as long as its kind is.
    #[error("a message of {0} bytes; a message has {LENGTH}, one that tells of a region {REGION_LENGTH}")]
    Length(usize),
    /// Not ours.
    #[error("the message does not begin with RHTP and version 1")]
    Magic,
    /// A kind that this version does not have.
    #[error("the message is of kind {0}, which this version does not know")]
    Kind(u8),
}

impl Message {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let (kind, id, bytes) = match self {
            Self::Hello { id } => (0, id, 0),
            Self::Done { id, bytes } => (1, id, *bytes),
            Self::Progress { id, bytes } => (2, id, *bytes),
            Self::Credit { id, bytes } => (3, id, *bytes),
            Self::Region { id, bytes, .. } => (4, id, *bytes),
            Self::Decline { id } => (5, id, 0),
        };
        let mut out = Vec::with_capacity(REGION_LENGTH);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, kind, 0, 0]);
        out.extend_from_slice(&id.0);
        out.extend_from_slice(&bytes.to_be_bytes());
        if let Self::Region { at, .. } = self {
            out.extend_from_slice(&at.to.to_be_bytes());
            out.extend_from_slice(&at.stag.0.to_be_bytes());
            out.extend_from_slice(&[0; 4]);
        }
        out.into()
    }

    /// Reads one from private data, which RoCE pads with zeros.
    pub fn decode_padded(bytes: &[u8]) -> Result<Self, MessageError> {
        match bytes.split_at_checked(LENGTH) {
            Some((message, padding)) if padding.iter().all(|byte| *byte == 0) => Self::decode(message),
            _ => Err(MessageError::Length(bytes.len())),
        }
    }

    /// Reads one.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let Some((head, tail)) = bytes.split_first_chunk::<LENGTH>() else {
            return Err(MessageError::Length(bytes.len()));
        };
        let [m0, m1, m2, m3, version, kind, _, _, rest @ ..] = head;
        if [*m0, *m1, *m2, *m3] != MAGIC || *version != VERSION {
            return Err(MessageError::Magic);
        }
        if tail.len() != if *kind == 4 { REGION_LENGTH - LENGTH } else { 0 } {
            return Err(MessageError::Length(bytes.len()));
        }
        let mut id = TransferId::NONE;
        let (name, count) = rest.split_at(id.0.len());
        id.0.copy_from_slice(name);
        let bytes = number(count);
        match kind {
            0 => Ok(Self::Hello { id }),
            1 => Ok(Self::Done { id, bytes }),
            2 => Ok(Self::Progress { id, bytes }),
            3 => Ok(Self::Credit { id, bytes }),
            4 => {
                let (to, rest) = tail.split_at(8);
                // Four bytes are no more than 32 bits.
                let stag = u32::try_from(number(&rest[..4])).unwrap_or_default();
                Ok(Self::Region { id, bytes, at: RemoteAddress { stag: Stag(stag), to: number(to) } })
            }
            5 => Ok(Self::Decline { id }),
            other => Err(MessageError::Kind(*other)),
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_is_that_of_the_protocol() {
        let id = TransferId(*b"0123456789abcdef");
        let bytes = Message::Done { id, bytes: 0x0102_0304_0506_0708 }.encode();
        assert_eq!(&bytes[..], b"RHTP\x01\x01\0\x000123456789abcdef\x01\x02\x03\x04\x05\x06\x07\x08");
        assert_eq!(&Message::Hello { id }.encode()[4..8], [1, 0, 0, 0]);
        let at = RemoteAddress { stag: Stag(0x0a0b_0c0d), to: 0x1112_1314_1516_1718 };
        let bytes = Message::Region { id, bytes: 9, at }.encode();
        assert_eq!(&bytes[4..8], [1, 4, 0, 0]);
        assert_eq!(
            &bytes[24..],
            b"\0\0\0\0\0\0\0\x09\x11\x12\x13\x14\x15\x16\x17\x18\x0a\x0b\x0c\x0d\0\0\0\0"
        );
    }

    #[test]
    fn strangers_are_told_apart() {
        let hello = Message::Hello { id: TransferId::NONE }.encode();
        assert_eq!(Message::decode(&hello[1..]), Err(MessageError::Length(31)));
        assert_eq!(Message::decode(&[&hello[..], &[0; 16]].concat()), Err(MessageError::Length(48)));
        for (at, value, error) in [
            (0, b'X', MessageError::Magic),
            (4, 2, MessageError::Magic),
            (5, 9, MessageError::Kind(9)),
            (5, 4, MessageError::Length(32)),
        ] {
            let mut bytes = hello.to_vec();
            bytes[at] = value;
            assert_eq!(Message::decode(&bytes), Err(error));
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            id in any::<[u8; 16]>(), bytes in any::<u64>(), to in any::<u64>(), stag in any::<u32>(), kind in 0..6
        ) {
            let id = TransferId(id);
            let message = match kind {
                0 => Message::Hello { id },
                1 => Message::Done { id, bytes },
                2 => Message::Progress { id, bytes },
                3 => Message::Credit { id, bytes },
                4 => Message::Decline { id },
                _ => Message::Region { id, bytes, at: RemoteAddress { stag: Stag(stag), to } },
            };
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Message::decode(&bytes);
        }
    }
}
