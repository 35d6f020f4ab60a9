//! What the two sides say to each other over RDMA beside the bodies: 32 bytes, as private data of a connection request and
//! as Sends (`docs/protocol.md`, section 3, "Messages").

use bytes::Bytes;

use crate::header::TransferId;

/// Bytes of every message.
pub const LENGTH: usize = 32;

const MAGIC: [u8; 4] = *b"RHTP";
const VERSION: u8 = 1;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Private data: "I connect on behalf of this transfer".
    Hello {
        /// The transfer that caused the connection.
        id: TransferId,
    },
    /// Send: "all Writes of this transfer are before this message".
    Done {
        /// The transfer.
        id: TransferId,
        /// Bytes written.
        bytes: u64,
    },
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not 32 bytes.
    #[error("a message of {0} bytes; every message has {LENGTH}")]
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
        };
        let mut out = Vec::with_capacity(LENGTH);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, kind, 0, 0]);
        out.extend_from_slice(&id.0);
        out.extend_from_slice(&bytes.to_be_bytes());
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
        let message: &[u8; LENGTH] = bytes.try_into().map_err(|_| MessageError::Length(bytes.len()))?;
        let [m0, m1, m2, m3, version, kind, _, _, rest @ ..] = message;
        if [*m0, *m1, *m2, *m3] != MAGIC || *version != VERSION {
            return Err(MessageError::Magic);
        }
        let mut id = TransferId::NONE;
        let (head, tail) = rest.split_at(id.0.len());
        id.0.copy_from_slice(head);
        let bytes = tail.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        match kind {
            0 => Ok(Self::Hello { id }),
            1 => Ok(Self::Done { id, bytes }),
            other => Err(MessageError::Kind(*other)),
        }
    }
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
    }

    #[test]
    fn strangers_are_told_apart() {
        let hello = Message::Hello { id: TransferId::NONE }.encode();
        assert_eq!(Message::decode(&hello[1..]), Err(MessageError::Length(31)));
        for (at, value, error) in
            [(0, b'X', MessageError::Magic), (4, 2, MessageError::Magic), (5, 9, MessageError::Kind(9))]
        {
            let mut bytes = hello.to_vec();
            bytes[at] = value;
            assert_eq!(Message::decode(&bytes), Err(error));
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(id in any::<[u8; 16]>(), bytes in any::<u64>(), done in any::<bool>()) {
            let id = TransferId(id);
            let message = if done { Message::Done { id, bytes } } else { Message::Hello { id } };
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Message::decode(&bytes);
        }
    }
}
