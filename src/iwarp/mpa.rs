//! MPA's start-up frames: what the two sides tell each other before the first FPDU (RFC 5044, section 7.1; revision 2
//! and its enhanced header: RFC 6581, sections 6 and 9).

use bytes::Bytes;

/// Most bytes of private data in a frame, the enhanced header's four among them (RFC 5044, section 7.1.1).
pub const MAX_PRIVATE_DATA: usize = 512;

/// Bytes before the private data.
pub const HEADER: usize = 20;

/// Bytes of the enhanced header.
pub const ENHANCED_HEADER: usize = 4;

/// The largest IRD or ORD that the enhanced header can carry; in a frame it means "not negotiated" (RFC 6581, section 9).
pub const NOT_NEGOTIATED: u16 = 0x3fff;

const REQUEST_KEY: &[u8; 16] = b"MPA ID Req Frame";
const REPLY_KEY: &[u8; 16] = b"MPA ID Rep Frame";

const FLAG_MARKERS: u8 = 0x80;
const FLAG_CRC: u8 = 0x40;
const FLAG_REJECT: u8 = 0x20;
const FLAG_ENHANCED: u8 = 0x10;

const ENHANCED_A: u16 = 0x8000;
const ENHANCED_B: u16 = 0x4000;
const ENHANCED_C: u16 = 0x8000;
const ENHANCED_D: u16 = 0x4000;
const DEPTH_MASK: u16 = 0x3fff;

/// Which of the two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The initiator's.
    Request,
    /// The responder's.
    Reply,
}

impl FrameKind {
    fn key(self) -> &'static [u8; 16] {
        match self {
            Self::Request => REQUEST_KEY,
            Self::Reply => REPLY_KEY,
        }
    }
}

/// MPA's revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revision {
    /// RFC 5044.
    V1,
    /// RFC 6581.
    V2,
}

impl Revision {
    /// Its number on the wire.
    pub fn number(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }
}

/// The forms in which an initiator can say "ready to receive" in the peer-to-peer model (RFC 6581, section 9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RtrOptions {
    /// A zero-length Send (B).
    pub send: bool,
    /// A zero-length RDMA Write (C).
    pub write: bool,
    /// A zero-length RDMA Read (D).
    pub read: bool,
}

/// The enhanced header, the first four bytes of private data when S is set (RFC 6581, section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enhanced {
    /// The peer-to-peer model, with the RTR forms that the sender offers or takes; `None` is client and server.
    pub peer_to_peer: Option<RtrOptions>,
    /// Read Requests that the sender of the frame can hold.
    pub ird: u16,
    /// Read Requests that the sender of the frame wants to have outstanding.
    pub ord: u16,
}

impl Enhanced {
    fn decode([a, b, c, d]: [u8; ENHANCED_HEADER]) -> Self {
        let (first, second) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let peer_to_peer = (first & ENHANCED_A != 0).then_some(RtrOptions {
            send: first & ENHANCED_B != 0,
            write: second & ENHANCED_C != 0,
            read: second & ENHANCED_D != 0,
        });
        Self { peer_to_peer, ird: first & DEPTH_MASK, ord: second & DEPTH_MASK }
    }

    fn encode(self) -> [u8; ENHANCED_HEADER] {
        let mut first = self.ird & DEPTH_MASK;
        let mut second = self.ord & DEPTH_MASK;
        if let Some(rtr) = self.peer_to_peer {
            first |= ENHANCED_A;
            first |= if rtr.send { ENHANCED_B } else { 0 };
            second |= if rtr.write { ENHANCED_C } else { 0 };
            second |= if rtr.read { ENHANCED_D } else { 0 };
        }
        let ([a, b], [c, d]) = (first.to_be_bytes(), second.to_be_bytes());
        [a, b, c, d]
    }
}

/// A Request or Reply frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFrame {
    /// Which.
    pub kind: FrameKind,
    /// The revision that it is written in.
    pub revision: Revision,
    /// M: the sender wants markers in what it receives.
    pub markers: bool,
    /// C: the sender wants CRCs; they are used in both directions if either side wants them.
    pub crc: bool,
    /// R: the responder's program refuses. Never set in a Request, where the bit is ignored.
    pub reject: bool,
    /// Depths and the connection's model; only revision 2 can carry it.
    pub enhanced: Option<Enhanced>,
    /// The program's own data, without the enhanced header.
    pub private_data: Bytes,
}

/// What is wrong with a start-up frame. The stream is closed without an answer (RFC 5044, section 7.1.2; the code to
/// report is 2/0/04).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The first 16 bytes are not the frame's key.
    #[error("not an MPA {expected:?} frame: its key is wrong")]
    Key {
        /// What should have come.
        expected: FrameKind,
    },
    /// Both sides sent a Request.
    #[error("both sides act as MPA initiator")]
    TwoInitiators,
    /// Neither revision 1 nor 2.
    #[error("MPA revision {0} is not supported (1 and 2 are)")]
    Revision(u8),
    /// More private data than may be.
    #[error("{0} bytes of private data; at most {MAX_PRIVATE_DATA} may be")]
    PrivateDataTooLong(usize),
    /// S is set but there is no room for the enhanced header.
    #[error("the enhanced header is announced, but only {0} bytes of private data follow")]
    EnhancedTruncated(usize),
}

impl StartFrame {
    /// Reads a frame of the `expected` kind from the beginning of `bytes`. `None`: all right so far, but more is needed.
    /// Else the frame and how many bytes it took. A wrong key is found at its first wrong byte.
    pub fn decode(expected: FrameKind, bytes: &[u8]) -> Result<Option<(Self, usize)>, StartError> {
        let key = &bytes[..bytes.len().min(16)];
        if !expected.key().starts_with(key) {
            let two = expected == FrameKind::Reply && key == REQUEST_KEY;
            // The two keys differ in one letter: a Request where a Reply is due is only called so once it is whole.
            if expected == FrameKind::Reply && key.len() < 16 && REQUEST_KEY.starts_with(key) {
                return Ok(None);
            }
            return Err(if two { StartError::TwoInitiators } else { StartError::Key { expected } });
        }
        let Some(&[flags, revision, length_high, length_low]) =
            bytes.get(16..HEADER).and_then(|b| b.first_chunk())
        else {
            return Ok(None);
        };
        let revision = match revision {
            1 => Revision::V1,
            2 => Revision::V2,
            other => return Err(StartError::Revision(other)),
        };
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        if length > MAX_PRIVATE_DATA {
            return Err(StartError::PrivateDataTooLong(length));
        }
        let has_enhanced = revision == Revision::V2 && flags & FLAG_ENHANCED != 0;
        if has_enhanced && length < ENHANCED_HEADER {
            return Err(StartError::EnhancedTruncated(length));
        }
        let Some(data) = bytes.get(HEADER..HEADER + length) else { return Ok(None) };
        let (enhanced, data) = match data.split_first_chunk() {
            Some((header, rest)) if has_enhanced => (Some(Enhanced::decode(*header)), rest),
            _ => (None, data),
        };
        let frame = Self {
            kind: expected,
            revision,
            markers: flags & FLAG_MARKERS != 0,
            crc: flags & FLAG_CRC != 0,
            reject: expected == FrameKind::Reply && flags & FLAG_REJECT != 0,
            enhanced,
            private_data: Bytes::copy_from_slice(data),
        };
        Ok(Some((frame, HEADER + length)))
    }

    /// Appends the frame to `out`. Nothing is appended on an error.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), StartError> {
        let enhanced = if self.revision == Revision::V2 { self.enhanced } else { None };
        let length = self.private_data.len() + enhanced.map_or(0, |_| ENHANCED_HEADER);
        let wire_length = u16::try_from(length)
            .ok()
            .filter(|_| length <= MAX_PRIVATE_DATA)
            .ok_or(StartError::PrivateDataTooLong(length))?;
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let flags = flag(self.markers, FLAG_MARKERS)
            | flag(self.crc, FLAG_CRC)
            | flag(self.reject && self.kind == FrameKind::Reply, FLAG_REJECT)
            | flag(enhanced.is_some(), FLAG_ENHANCED);
        out.extend_from_slice(self.kind.key());
        out.extend_from_slice(&[flags, self.revision.number()]);
        out.extend_from_slice(&wire_length.to_be_bytes());
        if let Some(enhanced) = enhanced {
            out.extend_from_slice(&enhanced.encode());
        }
        out.extend_from_slice(&self.private_data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::iwarp::golden::{self, hex};

    fn decode(kind: FrameKind, text: &str) -> StartFrame {
        let bytes = hex(text);
        let (frame, used) = StartFrame::decode(kind, &bytes).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        let mut again = Vec::new();
        frame.encode(&mut again).unwrap();
        assert_eq!(again, bytes, "encodes to what it was decoded from");
        frame
    }

    #[test]
    fn golden_frames() {
        let frame = decode(FrameKind::Request, golden::REQUEST_V1);
        assert_eq!((frame.revision, frame.crc, frame.enhanced), (Revision::V1, true, None));
        assert_eq!(frame.private_data, "hello1");
        assert_eq!(decode(FrameKind::Reply, golden::REPLY_V1).private_data, "okay");
        let frame = decode(FrameKind::Request, golden::REQUEST_V2);
        assert_eq!((frame.revision, frame.crc), (Revision::V2, false));
        assert_eq!(frame.enhanced, Some(Enhanced { peer_to_peer: None, ird: 16, ord: 16 }));
        assert_eq!(frame.private_data, "PD");
        assert!(decode(FrameKind::Reply, golden::REPLY_V2).crc);
    }

    #[test]
    fn check_12_mpa_reply_r_bit_surfaces_reject_with_private_data() {
        let frame = decode(FrameKind::Reply, golden::REPLY_V1_REJECT);
        assert!(frame.reject);
        assert_eq!(frame.private_data, "no");
    }

    #[test]
    fn check_16_mpa_enhanced_header_layout_a_b_ird_c_d_ord() {
        let both = RtrOptions { send: false, write: true, read: true };
        let frame = decode(FrameKind::Request, golden::REQUEST_V2_P2P);
        assert_eq!(frame.enhanced, Some(Enhanced { peer_to_peer: Some(both), ird: 4, ord: 4 }));
        let frame = decode(FrameKind::Reply, golden::REPLY_V2_P2P);
        let write = RtrOptions { read: false, ..both };
        assert_eq!(frame.enhanced, Some(Enhanced { peer_to_peer: Some(write), ird: 4, ord: 4 }));
    }

    #[test]
    fn check_17_mpa_flags_bcd_zero_and_ignored_when_a_zero() {
        let enhanced = Enhanced::decode([0x40, 4, 0xc0, 2]);
        assert_eq!(enhanced, Enhanced { peer_to_peer: None, ird: 4, ord: 2 });
        assert_eq!(enhanced.encode(), [0, 4, 0, 2]);
    }

    #[test]
    fn check_01_mpa_req_key_exact_16_bytes() {
        for (kind, text) in [(FrameKind::Request, golden::REQUEST_V1), (FrameKind::Reply, golden::REPLY_V1)] {
            for at in 0..16 {
                let mut bytes = hex(text);
                bytes[at] ^= 0x20;
                bytes.truncate(at + 1);
                assert_eq!(StartFrame::decode(kind, &bytes), Err(StartError::Key { expected: kind }));
            }
        }
    }

    #[test]
    fn check_26_mpa_two_initiators_detected() {
        let bytes = hex(golden::REQUEST_V1);
        assert_eq!(StartFrame::decode(FrameKind::Reply, &bytes), Err(StartError::TwoInitiators));
        assert_eq!(StartFrame::decode(FrameKind::Reply, &bytes[..10]), Ok(None));
    }

    #[test]
    fn check_03_mpa_reserved_flag_bits_sent_zero_ignored_on_receive() {
        let mut bytes = hex(golden::REQUEST_V1);
        bytes[16] |= 0x0f;
        let (frame, _) = StartFrame::decode(FrameKind::Request, &bytes).unwrap().unwrap();
        let mut again = Vec::new();
        frame.encode(&mut again).unwrap();
        assert_eq!(again[16], 0x40);
    }

    #[test]
    fn check_11_mpa_r_bit_ignored_in_request() {
        let mut bytes = hex(golden::REQUEST_V1);
        bytes[16] |= FLAG_REJECT;
        let (frame, _) = StartFrame::decode(FrameKind::Request, &bytes).unwrap().unwrap();
        assert!(!frame.reject);
    }

    #[test]
    fn s_bit_means_nothing_in_revision_1() {
        let mut bytes = hex(golden::REQUEST_V1);
        bytes[16] |= FLAG_ENHANCED;
        let (frame, _) = StartFrame::decode(FrameKind::Request, &bytes).unwrap().unwrap();
        assert_eq!((frame.enhanced, frame.private_data.as_ref()), (None, &b"hello1"[..]));
    }

    #[test]
    fn check_04_mpa_pd_length_over_512_closes() {
        let mut bytes = hex(golden::REQUEST_V1);
        bytes[18..20].copy_from_slice(&513u16.to_be_bytes());
        assert_eq!(
            StartFrame::decode(FrameKind::Request, &bytes),
            Err(StartError::PrivateDataTooLong(513)),
            "known before the data has come"
        );
        bytes[18..20].copy_from_slice(&512u16.to_be_bytes());
        assert_eq!(StartFrame::decode(FrameKind::Request, &bytes), Ok(None));
    }

    #[test]
    fn check_05_mpa_pd_length_zero_means_no_data() {
        let mut bytes = hex(golden::REQUEST_V1);
        bytes.truncate(20);
        bytes[18..20].fill(0);
        let (frame, used) = StartFrame::decode(FrameKind::Request, &bytes).unwrap().unwrap();
        assert_eq!((frame.private_data.len(), used), (0, 20));
    }

    #[test]
    fn check_13_mpa_rev_unsupported_closes() {
        for revision in [0, 3, 255] {
            let mut bytes = hex(golden::REQUEST_V1);
            bytes[17] = revision;
            assert_eq!(StartFrame::decode(FrameKind::Request, &bytes), Err(StartError::Revision(revision)));
        }
    }

    #[test]
    fn enhanced_header_needs_its_room() {
        let mut bytes = hex(golden::REQUEST_V2);
        bytes[19] = 3;
        assert_eq!(StartFrame::decode(FrameKind::Request, &bytes), Err(StartError::EnhancedTruncated(3)));
    }

    fn frames() -> impl Strategy<Value = StartFrame> {
        let enhanced = (proptest::option::of(any::<(bool, bool, bool)>()), 0..=DEPTH_MASK, 0..=DEPTH_MASK)
            .prop_map(|(rtr, ird, ord)| Enhanced {
                peer_to_peer: rtr.map(|(send, write, read)| RtrOptions { send, write, read }),
                ird,
                ord,
            });
        (
            any::<(bool, bool, bool, bool)>(),
            proptest::option::of(enhanced),
            proptest::collection::vec(any::<u8>(), 0..=MAX_PRIVATE_DATA - ENHANCED_HEADER),
        )
            .prop_map(|((request, markers, crc, reject), enhanced, data)| StartFrame {
                kind: if request { FrameKind::Request } else { FrameKind::Reply },
                revision: if enhanced.is_some() { Revision::V2 } else { Revision::V1 },
                markers,
                crc,
                reject: reject && !request,
                enhanced,
                private_data: data.into(),
            })
    }

    proptest! {
        #[test]
        fn round_trip_and_mpa_req_parsed_from_any_fragmentation(frame in frames(), tail in any::<[u8; 3]>()) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes).unwrap();
            let length = bytes.len();
            for end in 0..length {
                prop_assert_eq!(StartFrame::decode(frame.kind, &bytes[..end]).unwrap(), None);
            }
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(StartFrame::decode(frame.kind, &bytes).unwrap(), Some((frame, length)));
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut after_key = REQUEST_KEY.to_vec();
            after_key.extend_from_slice(&bytes);
            let _ = StartFrame::decode(FrameKind::Request, &bytes);
            let _ = StartFrame::decode(FrameKind::Request, &after_key);
        }
    }
}
