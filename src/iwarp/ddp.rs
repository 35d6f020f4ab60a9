//! DDP's segment headers: where the payload of a segment belongs (RFC 5041, section 4).

use super::Stag;

/// Bytes of a tagged header.
pub const TAGGED_HEADER: usize = 14;

/// Bytes of an untagged header.
pub const UNTAGGED_HEADER: usize = 18;

/// The version that is spoken.
const VERSION: u8 = 1;

const TAGGED: u8 = 0x80;
const LAST: u8 = 0x40;
const VERSION_MASK: u8 = 0x03;

/// The number of an untagged queue (RFC 5040, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Queue(pub u32);

impl Queue {
    /// Sends.
    pub const SEND: Self = Self(0);
    /// RDMA Read Requests.
    pub const READ_REQUEST: Self = Self(1);
    /// The Terminate.
    pub const TERMINATE: Self = Self(2);
}

/// A message's sequence number in its queue and direction (RFC 5041, section 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Msn(pub u32);

impl Msn {
    /// That of a queue's first message.
    pub const FIRST: Self = Self(1);

    /// The number of the message after this one; it wraps.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// The two bytes that every segment begins with: DDP's control byte and the one that DDP leaves to RDMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Whether this is the message's last segment.
    pub last: bool,
    /// RDMAP's control byte (RFC 5040, section 4.2).
    pub ulp: u8,
}

/// The header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The payload belongs into a region that the receiver has advertised (RFC 5041, section 4.2).
    Tagged {
        /// The first two bytes.
        control: Control,
        /// The region.
        stag: Stag,
        /// The tagged offset of this segment's first payload byte.
        to: u64,
    },
    /// The payload belongs into a buffer of the receiver's choice (RFC 5041, section 4.3).
    Untagged {
        /// The first two bytes.
        control: Control,
        /// Left to RDMAP: the region that a Send invalidates.
        invalidate: Stag,
        /// The queue that the buffer comes from.
        queue: Queue,
        /// Which message of the queue.
        msn: Msn,
        /// Where in the message this segment's first payload byte is.
        offset: u32,
    },
}

/// Why a header cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// There are fewer bytes than its form has.
    #[error("a DDP segment of {length} bytes is too short for its header")]
    Truncated {
        /// How many there are.
        length: usize,
    },
    /// Another version.
    #[error("DDP version {version} in a{} segment", if *tagged { " tagged" } else { "n untagged" })]
    Version {
        /// Which.
        version: u8,
        /// The header's form, on which the error's code depends.
        tagged: bool,
    },
}

impl Header {
    /// Reads the header of a segment and returns what follows it. Reserved bits are not looked at.
    pub fn decode(ulpdu: &[u8]) -> Result<(Self, &[u8]), HeaderError> {
        let truncated = HeaderError::Truncated { length: ulpdu.len() };
        let (&[ddp, ulp], rest) = ulpdu.split_first_chunk().ok_or(truncated)?;
        let tagged = ddp & TAGGED != 0;
        let version = ddp & VERSION_MASK;
        if version != VERSION {
            return Err(HeaderError::Version { version, tagged });
        }
        let control = Control { last: ddp & LAST != 0, ulp };
        let (&stag, rest) = rest.split_first_chunk().ok_or(truncated)?;
        let stag = Stag(u32::from_be_bytes(stag));
        if tagged {
            let (&to, payload) = rest.split_first_chunk().ok_or(truncated)?;
            return Ok((Self::Tagged { control, stag, to: u64::from_be_bytes(to) }, payload));
        }
        let (&queue, rest) = rest.split_first_chunk().ok_or(truncated)?;
        let (&msn, rest) = rest.split_first_chunk().ok_or(truncated)?;
        let (&offset, payload) = rest.split_first_chunk().ok_or(truncated)?;
        let header = Self::Untagged {
            control,
            invalidate: stag,
            queue: Queue(u32::from_be_bytes(queue)),
            msn: Msn(u32::from_be_bytes(msn)),
            offset: u32::from_be_bytes(offset),
        };
        Ok((header, payload))
    }

    /// Appends the header to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Tagged { control, stag, to } => {
                out.extend_from_slice(&[TAGGED | last_bit(control) | VERSION, control.ulp]);
                out.extend_from_slice(&stag.0.to_be_bytes());
                out.extend_from_slice(&to.to_be_bytes());
            }
            Self::Untagged { control, invalidate, queue, msn, offset } => {
                out.extend_from_slice(&[last_bit(control) | VERSION, control.ulp]);
                for field in [invalidate.0, queue.0, msn.0, offset] {
                    out.extend_from_slice(&field.to_be_bytes());
                }
            }
        }
    }

    /// The first two bytes.
    pub fn control(&self) -> Control {
        match *self {
            Self::Tagged { control, .. } | Self::Untagged { control, .. } => control,
        }
    }

    /// Whether it is of the tagged form.
    pub fn is_tagged(&self) -> bool {
        matches!(self, Self::Tagged { .. })
    }
}

/// Bytes of the header that a segment with this first byte has.
pub fn header_size(first: u8) -> usize {
    if first & TAGGED != 0 { TAGGED_HEADER } else { UNTAGGED_HEADER }
}

fn last_bit(control: Control) -> u8 {
    if control.last { LAST } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::iwarp::golden::hex;

    #[test]
    fn check_41_ddp_version_must_be_one() {
        let tagged = hex("c240 00112233 0000000000001000");
        assert_eq!(Header::decode(&tagged), Err(HeaderError::Version { version: 2, tagged: true }));
        let untagged = hex("4043 00000000 00000000 00000001 00000000");
        assert_eq!(Header::decode(&untagged), Err(HeaderError::Version { version: 0, tagged: false }));
    }

    #[test]
    fn check_42_ddp_reserved_bits_ignored() {
        let (header, _) = Header::decode(&hex("fd40 00112233 0000000000001000")).unwrap();
        let control = Control { last: true, ulp: 0x40 };
        assert_eq!(header, Header::Tagged { control, stag: Stag(0x0011_2233), to: 0x1000 });
        let mut out = Vec::new();
        header.encode(&mut out);
        assert_eq!(out[0], 0xc1, "and sent as zero");
    }

    #[test]
    fn msn_wraps() {
        assert_eq!(Msn::FIRST, Msn(1));
        assert_eq!(Msn(u32::MAX).next(), Msn(0));
    }

    fn headers() -> impl Strategy<Value = Header> {
        let control = any::<(bool, u8)>().prop_map(|(last, ulp)| Control { last, ulp });
        prop_oneof![
            (control.clone(), any::<u32>(), any::<u64>()).prop_map(|(control, stag, to)| Header::Tagged {
                control,
                stag: Stag(stag),
                to
            }),
            (control, any::<[u32; 4]>()).prop_map(|(control, [stag, queue, msn, offset])| Header::Untagged {
                control,
                invalidate: Stag(stag),
                queue: Queue(queue),
                msn: Msn(msn),
                offset
            }),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(header in headers(), payload in proptest::collection::vec(any::<u8>(), 0..20)) {
            let mut bytes = Vec::new();
            header.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), header_size(bytes[0]));
            for end in 0..bytes.len() {
                prop_assert_eq!(
                    Header::decode(&bytes[..end]),
                    Err(HeaderError::Truncated { length: end })
                );
            }
            bytes.extend_from_slice(&payload);
            prop_assert_eq!(Header::decode(&bytes), Ok((header, &payload[..])));
        }
    }
}
