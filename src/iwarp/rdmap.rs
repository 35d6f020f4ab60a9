//! RDMAP's control byte and the Read Request (RFC 5040, section 4), and a segment's headers read together.

use super::Stag;
use super::ddp::{Header, HeaderError};
use super::terminate::Code;

/// Bytes of a Read Request after its DDP header.
pub const READ_REQUEST: usize = 28;

const VERSION_MASK: u8 = 0xc0;
const VERSION: u8 = 0x40;
const OPCODE_MASK: u8 = 0x0f;

/// What a message is for (RFC 5040, section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// RDMA Write.
    Write,
    /// RDMA Read Request.
    ReadRequest,
    /// RDMA Read Response.
    ReadResponse,
    /// Send, in its four forms.
    Send {
        /// The receiver is to raise an event.
        solicited: bool,
        /// The receiver is to invalidate the region that the header names.
        invalidate: bool,
    },
    /// Terminate.
    Terminate,
}

impl Opcode {
    /// Its number on the wire.
    pub fn number(self) -> u8 {
        match self {
            Self::Write => 0,
            Self::ReadRequest => 1,
            Self::ReadResponse => 2,
            Self::Send { solicited: false, invalidate: false } => 3,
            Self::Send { solicited: false, invalidate: true } => 4,
            Self::Send { solicited: true, invalidate: false } => 5,
            Self::Send { solicited: true, invalidate: true } => 6,
            Self::Terminate => 7,
        }
    }

    /// The opcode with this number; those of RFC 7306 are not spoken here.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Write,
            1 => Self::ReadRequest,
            2 => Self::ReadResponse,
            3 => Self::Send { solicited: false, invalidate: false },
            4 => Self::Send { solicited: false, invalidate: true },
            5 => Self::Send { solicited: true, invalidate: false },
            6 => Self::Send { solicited: true, invalidate: true },
            7 => Self::Terminate,
            _ => return None,
        })
    }

    /// Whether its segments are tagged.
    pub fn is_tagged(self) -> bool {
        matches!(self, Self::Write | Self::ReadResponse)
    }

    /// RDMAP's control byte with it.
    pub fn control(self) -> u8 {
        VERSION | self.number()
    }
}

/// What is wrong with a segment's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// DDP's part of them.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Another version of RDMAP.
    #[error("RDMAP version {0}")]
    Version(u8),
    /// An opcode that is not spoken.
    #[error("RDMAP opcode {0:#x} is not known")]
    Opcode(u8),
    /// A tagged opcode in an untagged segment, or the other way round.
    #[error("RDMAP opcode {opcode:#x} in a{} segment", if *tagged { " tagged" } else { "n untagged" })]
    Form {
        /// The opcode's number.
        opcode: u8,
        /// The segment's form.
        tagged: bool,
    },
}

impl SegmentError {
    /// The code that a Terminate gives for it.
    pub fn code(&self) -> Code {
        match self {
            // RFC 5044 knows no code for it; siw says "marker and length do not match" too.
            Self::Header(HeaderError::Truncated { .. }) => Code::MPA_LENGTH,
            Self::Header(HeaderError::Version { tagged: true, .. }) => Code::TAGGED_VERSION,
            Self::Header(HeaderError::Version { tagged: false, .. }) => Code::UNTAGGED_VERSION,
            Self::Version(_) => Code::RDMAP_VERSION,
            Self::Opcode(_) | Self::Form { .. } => Code::RDMAP_OPCODE,
        }
    }
}

/// A segment with its headers read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// DDP's header.
    pub header: Header,
    /// What its message is for.
    pub opcode: Opcode,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads a segment's headers: DDP's version first, then RDMAP's, then the opcode and whether it goes with the
    /// header's form.
    pub fn decode(ulpdu: &'a [u8]) -> Result<Self, SegmentError> {
        let (header, payload) = Header::decode(ulpdu)?;
        let control = header.control().ulp;
        if control & VERSION_MASK != VERSION {
            return Err(SegmentError::Version(control >> 6));
        }
        let number = control & OPCODE_MASK;
        let opcode = Opcode::from_number(number).ok_or(SegmentError::Opcode(number))?;
        if opcode.is_tagged() != header.is_tagged() {
            return Err(SegmentError::Form { opcode: number, tagged: header.is_tagged() });
        }
        Ok(Self { header, opcode, payload })
    }
}

/// The body of a Read Request (RFC 5040, section 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Where the answer goes: the requester's region, which comes back as it is.
    pub sink: Stag,
    /// The tagged offset there.
    pub sink_to: u64,
    /// Bytes to read.
    pub length: u32,
    /// The region to read from.
    pub source: Stag,
    /// The tagged offset there.
    pub source_to: u64,
}

impl ReadRequest {
    /// Reads a body.
    pub fn decode(body: &[u8; READ_REQUEST]) -> Self {
        let word = |at: usize| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        Self {
            sink: Stag(word(0)),
            sink_to: long(4),
            length: word(12),
            source: Stag(word(16)),
            source_to: long(20),
        }
    }

    /// Appends the body to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.sink.0.to_be_bytes());
        out.extend_from_slice(&self.sink_to.to_be_bytes());
        out.extend_from_slice(&self.length.to_be_bytes());
        out.extend_from_slice(&self.source.0.to_be_bytes());
        out.extend_from_slice(&self.source_to.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::iwarp::ddp::{Control, Msn, Queue};
    use crate::iwarp::fpdu::Fpdu;
    use crate::iwarp::golden::{self, hex};

    #[test]
    fn golden_segments() {
        let bytes = hex(golden::WRITE);
        let segment = Segment::decode(Fpdu::split(&bytes).unwrap().ulpdu()).unwrap();
        assert_eq!(segment.opcode, Opcode::Write);
        assert_eq!(segment.payload, b"Hello, iWARP!");

        let bytes = hex(golden::SEND_SE_INVALIDATE);
        let segment = Segment::decode(Fpdu::split(&bytes).unwrap().ulpdu()).unwrap();
        assert_eq!(segment.opcode, Opcode::Send { solicited: true, invalidate: true });
        assert_eq!(
            segment.header,
            Header::Untagged {
                control: Control { last: true, ulp: 0x46 },
                invalidate: Stag(0x0011_2233),
                queue: Queue::SEND,
                msn: Msn(2),
                offset: 0
            }
        );
    }

    #[test]
    fn golden_read_requests() {
        let bytes = hex(golden::READ_REQUEST);
        let segment = Segment::decode(Fpdu::split(&bytes).unwrap().ulpdu()).unwrap();
        let request = ReadRequest::decode(segment.payload.try_into().unwrap());
        let expected = ReadRequest {
            sink: Stag(0x0044_5566),
            sink_to: 0x2000,
            length: 8,
            source: Stag(0x0077_8899),
            source_to: 0x3000,
        };
        assert_eq!(request, expected);
        let bytes = hex(golden::READ_REQUEST_SIW);
        let segment = Segment::decode(Fpdu::split(&bytes).unwrap().ulpdu()).unwrap();
        let request = ReadRequest::decode(segment.payload.try_into().unwrap());
        assert_eq!((request.sink_to, request.length), (0x7f3f_dcab_9000, 64));
    }

    #[test]
    fn check_56_rdmap_version_must_be_one_0_2_05() {
        let error = Segment::decode(&hex("c180 00112233 0000000000001000")).unwrap_err();
        assert_eq!((error, error.code()), (SegmentError::Version(2), Code::RDMAP_VERSION));
    }

    #[test]
    fn check_57_rdmap_unknown_opcode_0_2_06() {
        for number in 8..16 {
            let mut ulpdu = hex("4140 00000000 00000000 00000001 00000000");
            ulpdu[1] |= number;
            let error = Segment::decode(&ulpdu).unwrap_err();
            assert_eq!((error, error.code()), (SegmentError::Opcode(number), Code::RDMAP_OPCODE));
        }
    }

    #[test]
    fn check_58_rdmap_opcode_tag_bit_consistency() {
        let tagged_send = Segment::decode(&hex("c143 00112233 0000000000001000")).unwrap_err();
        assert_eq!(tagged_send, SegmentError::Form { opcode: 3, tagged: true });
        let untagged_write = Segment::decode(&hex("4140 00000000 00000000 00000001 00000000")).unwrap_err();
        assert_eq!(untagged_write.code(), Code::RDMAP_OPCODE);
    }

    proptest! {
        #[test]
        fn read_request_round_trip(words in any::<[u32; 3]>(), offsets in any::<[u64; 2]>()) {
            let request = ReadRequest {
                sink: Stag(words[0]),
                sink_to: offsets[0],
                length: words[1],
                source: Stag(words[2]),
                source_to: offsets[1],
            };
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            prop_assert_eq!(ReadRequest::decode(bytes.as_slice().try_into().unwrap()), request);
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Segment::decode(&bytes);
        }
    }

    #[test]
    fn opcode_numbers_round_trip() {
        for number in 0..8 {
            assert_eq!(Opcode::from_number(number).unwrap().number(), number);
        }
        assert_eq!(Opcode::from_number(8), None);
    }
}
