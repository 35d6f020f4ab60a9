//! The framing of [`protocol`](super::protocol): bytes to frames and back, with a limit on what a peer can make us hold.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Length and type.
const HEADER: usize = 5;

/// One of a command's standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard input, towards the agent.
    Stdin,
    /// Standard output, from the agent.
    Stdout,
    /// Standard error, from the agent.
    Stderr,
}

/// What travels between a client and an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// A request or a response, as JSON.
    Message(Bytes),
    /// Bytes of a stream; none is its end.
    Data(Stream, Bytes),
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced more than is accepted.
    #[error("a frame of {length} bytes; at most {limit} are accepted")]
    TooLarge {
        /// Announced.
        length: usize,
        /// Accepted.
        limit: usize,
    },
    /// A type byte that means nothing.
    #[error("a frame of unknown type {0:#04x}")]
    UnknownType(u8),
    /// A message that is none.
    #[error("not a message of this protocol (is the agent of another version?): {0}")]
    Json(#[from] serde_json::Error),
    /// The connection ended within a frame.
    #[error("the connection ended within a frame")]
    Truncated,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

impl Frame {
    /// A message as a frame.
    pub fn message<T: Serialize>(message: &T) -> Result<Self, FrameError> {
        Ok(Self::Message(serde_json::to_vec(message)?.into()))
    }

    /// Parses the JSON of a message.
    pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, FrameError> {
        Ok(serde_json::from_slice(json)?)
    }

    fn parts(&self) -> (u8, &Bytes) {
        match self {
            Self::Message(json) => (b'J', json),
            Self::Data(Stream::Stdin, data) => (b'0', data),
            Self::Data(Stream::Stdout, data) => (b'1', data),
            Self::Data(Stream::Stderr, data) => (b'2', data),
        }
    }

    /// Takes the next frame from the front of `buffer`; `None` until it is whole. After an error the connection is of
    /// no further use.
    pub fn decode(buffer: &mut BytesMut, limit: usize) -> Result<Option<Self>, FrameError> {
        let Some((mut header, _)) = buffer.split_at_checked(HEADER) else { return Ok(None) };
        let length = header.get_u32() as usize;
        let kind = header.get_u8();
        if length > limit {
            return Err(FrameError::TooLarge { length, limit });
        }
        if !matches!(kind, b'J' | b'0' | b'1' | b'2') {
            return Err(FrameError::UnknownType(kind));
        }
        if buffer.len() < HEADER + length {
            buffer.reserve(HEADER + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(HEADER);
        let data = buffer.split_to(length).freeze();
        Ok(Some(match kind {
            b'J' => Self::Message(data),
            b'0' => Self::Data(Stream::Stdin, data),
            b'1' => Self::Data(Stream::Stdout, data),
            _ => Self::Data(Stream::Stderr, data),
        }))
    }

    /// Appends the frame to `buffer`.
    pub fn encode(&self, buffer: &mut BytesMut) -> Result<(), FrameError> {
        let (kind, data) = self.parts();
        let length = u32::try_from(data.len())
            .map_err(|_| FrameError::TooLarge { length: data.len(), limit: u32::MAX as usize })?;
        buffer.reserve(HEADER + data.len());
        buffer.put_u32(length);
        buffer.put_u8(kind);
        buffer.put_slice(data);
        Ok(())
    }
}

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    from: R,
    buffer: BytesMut,
    limit: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames of up to `limit` bytes.
    pub fn new(from: R, limit: usize) -> Self {
        Self { from, buffer: BytesMut::with_capacity(8 << 10), limit }
    }

    /// The next frame; `None` when the peer closed. May be cancelled without loss.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer, self.limit)? {
                return Ok(Some(frame));
            }
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Truncated) };
            }
        }
    }

    /// The next frame, which has to be a message.
    pub async fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        match self.next().await? {
            None => Ok(None),
            Some(Frame::Message(json)) => Frame::parse(&json).map(Some),
            Some(frame @ Frame::Data(..)) => Err(FrameError::UnknownType(frame.parts().0)),
        }
    }
}

/// Writes frames.
#[derive(Debug)]
pub struct FrameWriter<W> {
    to: W,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames to `to`.
    pub fn new(to: W) -> Self {
        Self { to, buffer: BytesMut::new() }
    }

    /// Writes a frame whole. If it is cancelled the connection is of no further use.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), FrameError> {
        self.buffer.clear();
        frame.encode(&mut self.buffer)?;
        self.to.write_all(&self.buffer).await?;
        Ok(())
    }

    /// Writes a message.
    pub async fn message<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        self.send(&Frame::message(message)?).await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agent::protocol::{MAX_FRAME, Request, Response};

    fn frame() -> impl Strategy<Value = Frame> {
        (0..4u8, proptest::collection::vec(any::<u8>(), 0..300)).prop_map(|(kind, data)| {
            let data = Bytes::from(data);
            match kind {
                0 => Frame::Message(data),
                1 => Frame::Data(Stream::Stdin, data),
                2 => Frame::Data(Stream::Stdout, data),
                _ => Frame::Data(Stream::Stderr, data),
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            frames in proptest::collection::vec(frame(), 0..6),
            cut in 1..64usize,
        ) {
            let mut wire = BytesMut::new();
            for frame in &frames {
                frame.encode(&mut wire).unwrap();
            }
            let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = Frame::decode(&mut buffer, MAX_FRAME).unwrap() {
                    read.push(frame);
                }
            }
            prop_assert_eq!(read, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic_nor_grow(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = Frame::decode(&mut buffer, 1 << 10) {
                if let Frame::Message(json) = frame {
                    let _ = Frame::parse::<Request>(&json);
                    let _ = Frame::parse::<Response>(&json);
                }
            }
            prop_assert!(buffer.capacity() <= 4 << 10, "held {}", buffer.capacity());
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_from_its_header_alone() {
        let mut buffer = BytesMut::from(&[0, 0, 4, 1, b'J'][..]);
        let error = Frame::decode(&mut buffer, 1024).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { length: 1025, limit: 1024 }), "{error}");
    }

    #[tokio::test]
    async fn a_connection_that_ends_within_a_frame_is_an_error() {
        let mut reader = FrameReader::new(&[0, 0, 0, 9, b'1', b'x'][..], MAX_FRAME);
        assert!(matches!(reader.next().await, Err(FrameError::Truncated)));
    }
}
