//! What a Send carries on a connection that HTTP shares: a piece of HTTP, credit for such pieces, or a message.
//!
//! All three begin alike: `RHTP`, the version, the kind. Kinds from 16 on are never messages.

use bytes::{BufMut, Bytes, BytesMut};

use crate::message::{MAGIC, VERSION};

/// Bytes of the longest frame.
pub(super) const LONGEST: usize = 16 << 10;

/// Bytes before a piece of HTTP.
pub(super) const HEAD: usize = 8;

const HTTP: u8 = 16;
const CREDIT: u8 = 17;

/// What a Send carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The next bytes of HTTP's stream. None at all is its end.
    Http(Bytes),
    /// So many frames of HTTP are taken, counted from the connection's beginning.
    Credit(u64),
    /// A message, or what should be one.
    Message(Bytes),
}

impl Frame {
    /// Frames the first bytes of `piece`, as many as fit; and says how many those are.
    pub fn http(piece: &[u8]) -> (Bytes, usize) {
        let piece = &piece[..piece.len().min(LONGEST - HEAD)];
        let mut out = begin(HTTP, piece.len());
        out.put_slice(piece);
        (out.freeze(), piece.len())
    }

    /// The bytes of a credit.
    pub fn credit(taken: u64) -> Bytes {
        let mut out = begin(CREDIT, 8);
        out.put_u64(taken);
        out.freeze()
    }

    /// Tells what a Send carries. `None` is a credit of another length than a credit has.
    pub fn decode(bytes: Bytes) -> Option<Self> {
        let Some(([m0, m1, m2, m3, version, kind, _, _], rest)) = bytes.split_first_chunk::<HEAD>() else {
            return Some(Self::Message(bytes));
        };
        if [*m0, *m1, *m2, *m3] != MAGIC || *version != VERSION {
            return Some(Self::Message(bytes));
        }
        match *kind {
            HTTP => Some(Self::Http(bytes.slice(HEAD..))),
            CREDIT => rest.try_into().ok().map(|taken| Self::Credit(u64::from_be_bytes(taken))),
            _ => Some(Self::Message(bytes)),
        }
    }
}

fn begin(kind: u8, length: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEAD + length);
    out.put_slice(&MAGIC);
    out.put_slice(&[VERSION, kind, 0, 0]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::header::TransferId;
    use crate::message::Message;

    #[test]
    fn the_layout_is_that_of_the_protocol() {
        assert_eq!(&Frame::http(b"GET ").0[..], b"RHTP\x01\x10\0\0GET ");
        assert_eq!(&Frame::credit(0x0102)[..], b"RHTP\x01\x11\0\0\0\0\0\0\0\0\x01\x02");
        assert_eq!(Frame::decode(Frame::credit(1).slice(..15)), None);
        let hello = Message::Hello { id: TransferId::NONE }.encode();
        assert_eq!(Frame::decode(hello.clone()), Some(Frame::Message(hello)));
    }

    proptest! {
        #[test]
        fn what_is_framed_is_read(piece in prop::collection::vec(any::<u8>(), 0..20_000), taken: u64) {
            let (bytes, length) = Frame::http(&piece);
            prop_assert!(bytes.len() <= LONGEST);
            prop_assert_eq!(Frame::decode(bytes), Some(Frame::Http(piece[..length].to_vec().into())));
            prop_assert_eq!(Frame::decode(Frame::credit(taken)), Some(Frame::Credit(taken)));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frame::decode(bytes.into());
        }
    }
}
