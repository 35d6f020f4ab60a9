//! Frames on the line, and back.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{Service, StreamId};

/// What the guest says first. Its bytes are no text, so that a line that is not raw shows at once.
pub const GREETING: [u8; 8] = *b"\x00\xfftbmux\x01";

/// Bytes of data in a frame, at most.
pub const MAX_DATA: usize = 16 << 10;

/// Stream, kind, length.
const HEADER: usize = 7;

/// What travels on the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The stream begins.
    Open(StreamId, Service),
    /// Bytes of a stream.
    Data(StreamId, Bytes),
    /// So many bytes more may be sent.
    Credit(StreamId, u32),
    /// No more data from here.
    Finish(StreamId),
    /// The stream is gone.
    Reset(StreamId),
    /// So many bytes more of the line were taken in, whatever they were.
    Taken(u32),
}

/// Bytes that are no frame. The line is of no further use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// A kind that means nothing.
    #[error("a frame of unknown kind {0:#04x}")]
    Kind(u8),
    /// A length that the kind doesn't have.
    #[error("a frame of kind {kind:#04x} and {length} bytes")]
    Length {
        /// Its kind.
        kind: u8,
        /// Its length.
        length: usize,
    },
}

impl Frame {
    /// Appends the frame. Data must be at most [`MAX_DATA`] bytes.
    pub fn encode(&self, to: &mut BytesMut) {
        let (stream, kind, length) = match self {
            Self::Open(stream, _) => (*stream, 1, 1),
            Self::Data(stream, data) => (*stream, 2, data.len()),
            Self::Credit(stream, _) => (*stream, 3, 4),
            Self::Finish(stream) => (*stream, 4, 0),
            Self::Reset(stream) => (*stream, 5, 0),
            Self::Taken(_) => (StreamId(0), 6, 4),
        };
        debug_assert!(length <= MAX_DATA, "{length} bytes in a frame");
        to.reserve(HEADER + length);
        to.put_u32(stream.0);
        to.put_u8(kind);
        // At most MAX_DATA, which fits.
        to.put_u16(u16::try_from(length).unwrap_or(u16::MAX));
        match self {
            Self::Open(_, service) => to.put_u8(service.0),
            Self::Data(_, data) => to.put_slice(data),
            Self::Credit(_, bytes) | Self::Taken(bytes) => to.put_u32(*bytes),
            Self::Finish(_) | Self::Reset(_) => {}
        }
    }

    /// Takes a frame from the front; `None` until it is whole.
    pub fn decode(from: &mut BytesMut) -> Result<Option<Self>, BadFrame> {
        let Some((mut header, rest)) = from.split_at_checked(HEADER) else { return Ok(None) };
        let stream = StreamId(header.get_u32());
        let kind = header.get_u8();
        let length = usize::from(header.get_u16());
        let fits = match kind {
            1 => length == 1,
            2 => (1..=MAX_DATA).contains(&length),
            3 | 6 => length == 4,
            4 | 5 => length == 0,
            _ => return Err(BadFrame::Kind(kind)),
        };
        if !fits {
            return Err(BadFrame::Length { kind, length });
        }
        if rest.len() < length {
            return Ok(None);
        }
        from.advance(HEADER);
        let mut body = from.split_to(length);
        Ok(Some(match kind {
            1 => Self::Open(stream, Service(body.get_u8())),
            2 => Self::Data(stream, body.freeze()),
            3 => Self::Credit(stream, body.get_u32()),
            4 => Self::Finish(stream),
            5 => Self::Reset(stream),
            _ => Self::Taken(body.get_u32()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame() -> impl Strategy<Value = Frame> {
        let stream = any::<u32>().prop_map(StreamId);
        (stream, any::<u32>(), 0..6u8, prop::collection::vec(any::<u8>(), 1..300)).prop_map(
            |(stream, number, kind, data)| match kind {
                0 => Frame::Open(stream, Service(data[0])),
                1 => Frame::Data(stream, data.into()),
                2 => Frame::Credit(stream, number),
                3 => Frame::Finish(stream),
                4 => Frame::Taken(number),
                _ => Frame::Reset(stream),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            frames in prop::collection::vec(frame(), 0..8),
            cut in 1..64usize,
        ) {
            let mut wire = BytesMut::new();
            frames.iter().for_each(|frame| frame.encode(&mut wire));
            let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
                    read.push(frame);
                }
            }
            prop_assert_eq!(read, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn arbitrary_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = Frame::decode(&mut buffer) {
                let mut again = BytesMut::new();
                frame.encode(&mut again);
                prop_assert_eq!(Frame::decode(&mut again), Ok(Some(frame)));
            }
        }
    }

    #[test]
    fn a_length_that_a_kind_does_not_have_is_refused_from_the_header_alone() {
        for (kind, length) in [(1, 2), (2, 0), (2, 16_385), (3, 5), (4, 1), (5, 1), (6, 3)] {
            let mut bytes = BytesMut::new();
            bytes.put_u32(1);
            bytes.put_u8(kind);
            bytes.put_u16(length);
            let expected = BadFrame::Length { kind, length: usize::from(length) };
            assert_eq!(Frame::decode(&mut bytes), Err(expected));
        }
        assert_eq!(Frame::decode(&mut BytesMut::from(&[0, 0, 0, 1, 9, 0, 0][..])), Err(BadFrame::Kind(9)));
    }
}
