//! A passive decoder: the bytes of both directions of one TCP connection in, typed items out. For captures.
//!
//! Each direction's bytes are pushed in order and in pieces of any size. FPDUs are understood once both start-up frames
//! have been seen, since only the two together say whether CRCs are in use; what comes before waits, within
//! [`MAX_WAITING`].

use std::collections::VecDeque;

use bytes::Bytes;

use super::ddp::Header;
use super::fpdu::{self, Fpdu};
use super::mpa::{FrameKind, StartError, StartFrame};
use super::rdmap::{Opcode, READ_REQUEST, ReadRequest, Segment, SegmentError};
use super::terminate::Terminate;

/// Most bytes of a Send's segment that an item carries; the length is given in full.
pub const MAX_PAYLOAD_KEPT: usize = 64 << 10;

/// Most bytes of one direction that may wait for the other direction's start-up frame.
pub const MAX_WAITING: usize = 1 << 20;

/// Whether a TCP stream whose first bytes these are can be MPA's initiator's: as far as they go, they are the Request's
/// key. False for no bytes at all.
pub fn looks_like_mpa(bytes: &[u8]) -> bool {
    let key = b"MPA ID Req Frame";
    !bytes.is_empty() && key.starts_with(&bytes[..bytes.len().min(key.len())])
}

/// Who sent something. The MPA initiator is the one that sends the Request; mostly the TCP connecter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Sends the Request.
    Initiator,
    /// Sends the Reply.
    Responder,
}

/// What became of an FPDU's CRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrcVerdict {
    /// It is right.
    Good,
    /// It is not.
    Bad,
    /// No CRCs are in use on this connection.
    NotInUse,
}

/// What the decoder saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A start-up frame.
    Start {
        /// Who sent it.
        side: Side,
        /// What it says.
        frame: StartFrame,
    },
    /// An FPDU.
    Fpdu {
        /// Who sent it.
        side: Side,
        /// Its ULPDU_Length.
        ulpdu_length: usize,
        /// What became of its CRC.
        crc: CrcVerdict,
        /// The segment in it, or why its headers make no sense.
        segment: Result<SegmentItem, SegmentError>,
    },
}

/// A DDP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentItem {
    /// What its message is for.
    pub opcode: Opcode,
    /// Whether it is the message's last, and where it belongs.
    pub header: Header,
    /// Bytes after the header.
    pub payload_length: usize,
    /// What is in them, by opcode.
    pub body: Body,
}

impl SegmentItem {
    /// Whether it is the message's last.
    pub fn is_last(&self) -> bool {
        self.header.control().last
    }
}

/// What a segment carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Bytes for a region: not kept.
    Tagged,
    /// Bytes of a Send, at most [`MAX_PAYLOAD_KEPT`] of them.
    Send(Bytes),
    /// A Read Request.
    ReadRequest(ReadRequest),
    /// A Terminate.
    Terminate(Terminate),
    /// A Read Request or Terminate of the wrong length.
    Malformed,
}

/// Why a direction cannot be understood any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Its start-up frame is wrong.
    #[error("{side:?}: {error}")]
    Start {
        /// Whose.
        side: Side,
        /// What is wrong.
        error: StartError,
    },
    /// The connection uses markers, which are not understood here.
    #[error("{0:?}: markers are asked for, which this decoder does not understand")]
    Markers(Side),
    /// Bytes after the Reply that refused the connection.
    #[error("{0:?}: bytes after the connection was refused")]
    AfterReject(Side),
    /// Too many bytes before the other side's start-up frame.
    #[error("{0:?}: more than {MAX_WAITING} bytes before the other side's start-up frame")]
    WaitingTooLong(Side),
    /// The stream ended inside a frame.
    #[error("{side:?}: the stream ends {bytes} bytes into a frame")]
    Truncated {
        /// Whose.
        side: Side,
        /// Bytes of the unfinished frame.
        bytes: usize,
    },
}

#[derive(Default)]
struct Direction {
    waiting: Vec<u8>,
    start: Option<StartFrame>,
    failed: Option<DecodeError>,
}

/// Decodes one connection.
#[derive(Default)]
pub struct Decoder {
    initiator: Direction,
    responder: Direction,
    items: VecDeque<Item>,
}

impl Decoder {
    /// For a connection from its first byte on.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of one direction. What they complete is then there for [`next_item`](Self::next_item). An
    /// error is of the direction that it names, and lasting for it; the other one goes on.
    pub fn push(&mut self, side: Side, bytes: &[u8]) -> Result<(), DecodeError> {
        let direction = self.direction(side);
        if let Some(error) = &direction.failed {
            return Err(error.clone());
        }
        direction.waiting.extend_from_slice(bytes);
        self.advance(side)?;
        // This may have been the frame that the other direction waited for.
        let other = match side {
            Side::Initiator => Side::Responder,
            Side::Responder => Side::Initiator,
        };
        if self.direction(other).failed.is_none() { self.advance(other) } else { Ok(()) }
    }

    /// Says that one direction has ended.
    pub fn finish(&mut self, side: Side) -> Result<(), DecodeError> {
        let direction = self.direction(side);
        match (&direction.failed, direction.waiting.len()) {
            (Some(error), _) => Err(error.clone()),
            (None, 0) => Ok(()),
            (None, bytes) => Err(DecodeError::Truncated { side, bytes }),
        }
    }

    /// The next item, in the order in which the pushes completed them.
    pub fn next_item(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    fn direction(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Initiator => &mut self.initiator,
            Side::Responder => &mut self.responder,
        }
    }

    fn advance(&mut self, side: Side) -> Result<(), DecodeError> {
        let result = self.try_advance(side);
        if let Err(error) = &result {
            let direction = self.direction(side);
            direction.failed = Some(error.clone());
            direction.waiting = Vec::new();
        }
        result
    }

    fn try_advance(&mut self, side: Side) -> Result<(), DecodeError> {
        if self.direction(side).start.is_none() && !self.read_start(side)? {
            return Ok(());
        }
        let (Some(request), Some(reply)) = (&self.initiator.start, &self.responder.start) else {
            let too_long = self.direction(side).waiting.len() > MAX_WAITING;
            return if too_long { Err(DecodeError::WaitingTooLong(side)) } else { Ok(()) };
        };
        let (refused, crc) = (reply.reject, request.crc || reply.crc);
        // M in one side's frame is about what the other side sends.
        let markers = match side {
            Side::Initiator => reply.markers,
            Side::Responder => request.markers,
        };
        if !self.direction(side).waiting.is_empty() {
            if refused {
                return Err(DecodeError::AfterReject(side));
            }
            if markers {
                return Err(DecodeError::Markers(side));
            }
        }
        self.read_fpdus(side, crc);
        Ok(())
    }

    fn read_start(&mut self, side: Side) -> Result<bool, DecodeError> {
        let kind = match side {
            Side::Initiator => FrameKind::Request,
            Side::Responder => FrameKind::Reply,
        };
        let direction = self.direction(side);
        let decoded = StartFrame::decode(kind, &direction.waiting);
        let Some((frame, used)) = decoded.map_err(|error| DecodeError::Start { side, error })? else {
            return Ok(false);
        };
        direction.waiting.drain(..used);
        direction.start = Some(frame.clone());
        self.items.push_back(Item::Start { side, frame });
        Ok(true)
    }

    fn read_fpdus(&mut self, side: Side, crc_in_use: bool) {
        let mut waiting = std::mem::take(&mut self.direction(side).waiting);
        let mut rest = waiting.as_slice();
        while let Some(fpdu) = Fpdu::split(rest) {
            rest = &rest[fpdu.bytes().len()..];
            let crc = match (crc_in_use, crc_in_use && fpdu.crc_is_good()) {
                (false, _) => CrcVerdict::NotInUse,
                (true, true) => CrcVerdict::Good,
                (true, false) => CrcVerdict::Bad,
            };
            let segment = Segment::decode(fpdu.ulpdu()).map(segment_item);
            self.items.push_back(Item::Fpdu { side, ulpdu_length: fpdu.ulpdu().len(), crc, segment });
        }
        debug_assert!(
            rest.len() < fpdu::MAX_FPDU_RECEIVED,
            "an unfinished FPDU is shorter than the longest one"
        );
        let used = waiting.len() - rest.len();
        waiting.drain(..used);
        self.direction(side).waiting = waiting;
    }
}

fn segment_item(segment: Segment<'_>) -> SegmentItem {
    let payload = segment.payload;
    let body = match segment.opcode {
        Opcode::Write | Opcode::ReadResponse => Body::Tagged,
        Opcode::Send { .. } => {
            Body::Send(Bytes::copy_from_slice(&payload[..payload.len().min(MAX_PAYLOAD_KEPT)]))
        }
        Opcode::ReadRequest => match <&[u8; READ_REQUEST]>::try_from(payload) {
            Ok(body) => Body::ReadRequest(ReadRequest::decode(body)),
            Err(_) => Body::Malformed,
        },
        Opcode::Terminate => match Terminate::decode(payload) {
            Ok(terminate) => Body::Terminate(terminate),
            Err(_) => Body::Malformed,
        },
    };
    SegmentItem { opcode: segment.opcode, header: segment.header, payload_length: payload.len(), body }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::iwarp::Stag;
    use crate::iwarp::golden::{self, hex};
    use crate::iwarp::terminate::Code;

    fn drain(decoder: &mut Decoder) -> Vec<Item> {
        std::iter::from_fn(|| decoder.next_item()).collect()
    }

    /// Both directions of a conversation made of the golden vectors.
    fn conversation() -> [(Side, Vec<u8>); 2] {
        let join = |texts: &[&str]| texts.iter().flat_map(|t| hex(t)).collect::<Vec<u8>>();
        [
            (
                Side::Initiator,
                join(&[
                    golden::REQUEST_V2,
                    golden::WRITE,
                    golden::SEND,
                    golden::READ_REQUEST,
                    golden::SEND_EMPTY,
                ]),
            ),
            (
                Side::Responder,
                join(&[
                    golden::REPLY_V2,
                    golden::READ_RESPONSE,
                    golden::SEND_SE_INVALIDATE,
                    golden::TERMINATE_READ,
                ]),
            ),
        ]
    }

    #[test]
    fn golden_conversation() {
        let mut decoder = Decoder::new();
        for (side, bytes) in conversation() {
            decoder.push(side, &bytes).unwrap();
            decoder.finish(side).or_else(|e| if side == Side::Initiator { Ok(()) } else { Err(e) }).unwrap();
        }
        let items = drain(&mut decoder);
        assert_eq!(items.len(), 9);
        assert!(
            matches!(&items[0], Item::Start { side: Side::Initiator, frame } if frame.private_data == "PD")
        );
        assert!(matches!(&items[1], Item::Start { side: Side::Responder, frame } if frame.crc));
        let segments: Vec<&SegmentItem> = items[2..]
            .iter()
            .map(|item| match item {
                Item::Fpdu { crc: CrcVerdict::Good, segment: Ok(segment), .. } => segment,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(segments.iter().all(|s| s.is_last()));
        // The responder's were complete first: the initiator's waited for the Reply.
        assert_eq!(segments[0].opcode, Opcode::ReadResponse);
        let terminate = match &segments[2].body {
            Body::Terminate(terminate) => terminate,
            other => panic!("{other:?}"),
        };
        assert_eq!(terminate.code, Code::READ_INVALID_STAG);
        assert!(matches!(segments[3].header, Header::Tagged { stag: Stag(0x0011_2233), to: 0x1000, .. }));
        assert_eq!((segments[3].payload_length, &segments[3].body), (13, &Body::Tagged));
        assert_eq!(segments[4].body, Body::Send(Bytes::from_static(b"ping")));
        assert!(matches!(&segments[5].body, Body::ReadRequest(request) if request.length == 8));
    }

    #[test]
    fn crc_verdicts() {
        let mut decoder = Decoder::new();
        let mut bad = hex(golden::SEND);
        bad[21] ^= 1;
        decoder.push(Side::Initiator, &hex(golden::REQUEST_V2)).unwrap();
        decoder.push(Side::Responder, &hex(golden::REPLY_V2)).unwrap();
        decoder.push(Side::Initiator, &bad).unwrap();
        assert!(matches!(drain(&mut decoder)[2], Item::Fpdu { crc: CrcVerdict::Bad, .. }));

        let mut decoder = Decoder::new();
        let mut reply = hex(golden::REPLY_V2);
        reply[16] &= !0x40;
        decoder.push(Side::Initiator, &hex(golden::REQUEST_V2)).unwrap();
        decoder.push(Side::Responder, &reply).unwrap();
        decoder.push(Side::Initiator, &hex(golden::RTR_WRITE_NO_CRC)).unwrap();
        assert!(matches!(drain(&mut decoder)[2], Item::Fpdu { crc: CrcVerdict::NotInUse, .. }));
    }

    #[test]
    fn errors_name_their_side_and_last() {
        let mut decoder = Decoder::new();
        let error = decoder.push(Side::Initiator, b"GET / HTTP/1.1\r\n").unwrap_err();
        assert!(matches!(error, DecodeError::Start { side: Side::Initiator, error: StartError::Key { .. } }));
        assert_eq!(decoder.push(Side::Initiator, b"x"), Err(error));

        let mut decoder = Decoder::new();
        decoder.push(Side::Initiator, &hex(golden::REQUEST_V1)).unwrap();
        decoder.push(Side::Responder, &hex(golden::REPLY_V1_REJECT)).unwrap();
        assert_eq!(decoder.push(Side::Initiator, b"x"), Err(DecodeError::AfterReject(Side::Initiator)));

        let mut decoder = Decoder::new();
        decoder.push(Side::Initiator, &hex(golden::REQUEST_V1)).unwrap();
        let error = decoder.push(Side::Initiator, &vec![0; MAX_WAITING + 1]).unwrap_err();
        assert_eq!(error, DecodeError::WaitingTooLong(Side::Initiator));
    }

    #[test]
    fn markers_are_an_error_of_the_side_that_would_send_them() {
        let mut decoder = Decoder::new();
        let mut request = hex(golden::REQUEST_V1);
        request[16] |= 0x80;
        decoder.push(Side::Initiator, &request).unwrap();
        decoder.push(Side::Responder, &hex(golden::REPLY_V1)).unwrap();
        decoder.push(Side::Initiator, &hex(golden::SEND)).unwrap();
        let error = decoder.push(Side::Responder, &[0; 4]).unwrap_err();
        assert_eq!(error, DecodeError::Markers(Side::Responder));
    }

    #[test]
    fn an_end_inside_a_frame() {
        let mut decoder = Decoder::new();
        decoder.push(Side::Initiator, &hex(golden::REQUEST_V2)[..7]).unwrap();
        let error = decoder.finish(Side::Initiator).unwrap_err();
        assert_eq!(error, DecodeError::Truncated { side: Side::Initiator, bytes: 7 });
    }

    #[test]
    fn looks_like_mpa_on_a_prefix() {
        assert!(looks_like_mpa(b"M"));
        assert!(looks_like_mpa(&hex(golden::REQUEST_V1)));
        assert!(!looks_like_mpa(b""));
        assert!(!looks_like_mpa(b"MPA ID Rep Frame"));
        assert!(!looks_like_mpa(b"GET / HTTP/1.1"));
    }

    proptest! {
        #[test]
        fn check_36_fpdu_boundaries_independent_of_tcp_segments(sizes in proptest::collection::vec(1usize..40, 1..80)) {
            let mut whole = Decoder::new();
            let mut pieces = Decoder::new();
            for (side, bytes) in conversation() {
                whole.push(side, &bytes).unwrap();
                let mut rest = bytes.as_slice();
                for size in sizes.iter().cycle() {
                    if rest.is_empty() {
                        break;
                    }
                    let (piece, after) = rest.split_at((*size).min(rest.len()));
                    pieces.push(side, piece).unwrap();
                    rest = after;
                }
            }
            let by_side = |decoder: &mut Decoder| {
                let (mut a, mut b) = (Vec::new(), Vec::new());
                for item in drain(decoder) {
                    match item {
                        Item::Start { side: Side::Initiator, .. } | Item::Fpdu { side: Side::Initiator, .. } => a.push(item),
                        _ => b.push(item),
                    }
                }
                (a, b)
            };
            prop_assert_eq!(by_side(&mut whole), by_side(&mut pieces));
        }

        #[test]
        fn any_bytes_are_answered(pieces in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..200)), 0..20)) {
            let mut decoder = Decoder::new();
            decoder.push(Side::Initiator, &hex(golden::REQUEST_V2)).unwrap();
            decoder.push(Side::Responder, &hex(golden::REPLY_V2)).unwrap();
            for (initiator, bytes) in pieces {
                let _ = decoder.push(if initiator { Side::Initiator } else { Side::Responder }, &bytes);
            }
        }
    }
}
