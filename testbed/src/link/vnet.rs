//! The virtio-net header that precedes each frame of a TAP device and of a packet socket: what the sender's kernel left
//! undone (a checksum, the cutting into segments) because it believed that hardware would do it.
//!
//! Virtual I/O Device (VIRTIO) 1.2, section 5.1.6; the fields are in the machine's byte order here, as Linux gives them
//! to a TAP device by default.

/// Bytes of the header.
pub const HEADER_LEN: usize = 10;
/// Bytes of the longest frame with its header: an IP packet of 65,535 bytes, Ethernet, a VLAN tag, and some room.
pub const MAX_RECORD: usize = 65_536 + 128;

const FLAG_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set on top of a kind: the segments carry congestion marks.
const GSO_ECN: u8 = 0x80;

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VnetHeader {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    segment_len: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl VnetHeader {
    /// Splits a record into its header and the frame; `None` if it is too short to have one.
    pub fn split(record: &[u8]) -> Option<(Self, &[u8])> {
        let (header, frame) = record.split_first_chunk::<HEADER_LEN>()?;
        Some((Self::parse(header), frame))
    }

    fn parse(h: &[u8; HEADER_LEN]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([h[at], h[at + 1]]);
        Self {
            flags: h[0],
            gso_type: h[1],
            header_len: word(2),
            segment_len: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    /// Bytes that the frame would take on a wire, where each of its segments has headers of its own.
    pub fn wire_bytes(&self, frame: &[u8]) -> u64 {
        let len = frame.len() as u64;
        let segment = u64::from(self.segment_len);
        if self.gso_type & !GSO_ECN == GSO_NONE || segment == 0 {
            return len;
        }
        let headers = self.headers(frame) as u64;
        let payload = len.saturating_sub(headers);
        len + payload.div_ceil(segment).saturating_sub(1) * headers
    }

    /// Bytes of the headers that every segment repeats. The header's own field is only a hint (it counts whatever
    /// the sender had in its first buffer), so they are found from where the checksum starts: at the TCP or UDP header.
    fn headers(&self, frame: &[u8]) -> usize {
        let start = usize::from(self.checksum_start);
        let found = match self.gso_type & !GSO_ECN {
            GSO_TCPV4 | GSO_TCPV6 => frame.get(start + 12).map(|b| start + usize::from(b >> 4) * 4),
            GSO_UDP_L4 => Some(start + 8),
            _ => None,
        };
        match found {
            Some(found) if self.flags & FLAG_NEEDS_CSUM != 0 => found.min(frame.len()),
            _ => usize::from(self.header_len).min(frame.len()),
        }
    }

    /// Whether the frame's checksum covers only the pseudo header yet.
    pub fn checksum_is_partial(&self) -> bool {
        self.flags & FLAG_NEEDS_CSUM != 0
    }

    /// Completes a partial checksum in `frame`, as the hardware would. Does nothing if it is complete or if the header
    /// points outside the frame.
    pub fn complete_checksum(&self, frame: &mut [u8]) {
        let start = usize::from(self.checksum_start);
        let at = start + usize::from(self.checksum_offset);
        if !self.checksum_is_partial() || at + 2 > frame.len() {
            return;
        }
        // RFC 1071. The field holds the pseudo header's sum, and the sum over it and the rest completes it.
        let sum = !ones_complement_sum(&frame[start..]);
        // 0 means "no checksum" to UDP; both spellings are the same number (RFC 768).
        let sum = if sum == 0 { 0xffff } else { sum };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Completes the checksum of a whole record in place and says so in its header. Returns whether there was one.
pub fn complete_record(record: &mut [u8]) {
    let Some((header, _)) = VnetHeader::split(record) else { return };
    if header.checksum_is_partial() {
        header.complete_checksum(&mut record[HEADER_LEN..]);
        record[0] &= !FLAG_NEEDS_CSUM;
    }
}

/// The ones' complement sum of 16-bit words (RFC 1071), a last odd byte padded with zero.
fn ones_complement_sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = words.iter().map(|w| u64::from(u32::from_be_bytes(*w))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_be_bytes(last));
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(flags: u8, gso_type: u8, words: [u16; 4]) -> Vec<u8> {
        let mut bytes = vec![flags, gso_type];
        for word in words {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn a_plain_frame_is_as_long_on_the_wire() {
        let mut record = header(0, GSO_NONE, [0; 4]);
        record.resize(HEADER_LEN + 60, 0);
        let (header, frame) = VnetHeader::split(&record).unwrap();
        assert_eq!(header.wire_bytes(frame), 60);
        assert!(VnetHeader::split(&record[..9]).is_none());
    }

    #[test]
    fn each_segment_of_a_super_frame_has_headers() {
        // Ethernet 14, IPv4 20, TCP 32 (data offset 8); the hint in the header is wrong on purpose.
        let mut record = header(FLAG_NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, [200, 1448, 34, 16]);
        record.resize(HEADER_LEN + 66 + 10 * 1448 + 1, 0);
        record[HEADER_LEN + 34 + 12] = 8 << 4;
        let (header, frame) = VnetHeader::split(&record).unwrap();
        assert_eq!(header.wire_bytes(frame), 11 * 66 + 10 * 1448 + 1);
    }

    #[test]
    fn a_udp_super_frame_too() {
        let mut record = header(FLAG_NEEDS_CSUM, GSO_UDP_L4, [42, 1000, 34, 6]);
        record.resize(HEADER_LEN + 42 + 3000, 0);
        let (header, frame) = VnetHeader::split(&record).unwrap();
        assert_eq!(header.wire_bytes(frame), 3 * 42 + 3000);
    }

    #[test]
    fn a_partial_checksum_is_completed() {
        // A UDP datagram from 10.0.0.1:1 to 10.0.0.2:2 with the payload "hi!".
        let pseudo = [10, 0, 0, 1, 10, 0, 0, 2, 0, 17, 0, 11];
        let datagram = [0, 1, 0, 2, 0, 11, 0, 0, b'h', b'i', b'!'];
        let mut frame = vec![0xee; 34];
        frame.extend(datagram);
        frame[34 + 6..34 + 8].copy_from_slice(&ones_complement_sum(&pseudo).to_be_bytes());
        let mut record = header(FLAG_NEEDS_CSUM, GSO_NONE, [0, 0, 34, 6]);
        record.extend(&frame);
        complete_record(&mut record);
        assert_eq!(record[0], 0);
        // A receiver sums the pseudo header and the datagram and gets all ones.
        let mut all = pseudo.to_vec();
        all.extend(&record[HEADER_LEN + 34..]);
        assert_eq!(ones_complement_sum(&all), 0xffff);
        // Once is enough.
        let once = record.clone();
        complete_record(&mut record);
        assert_eq!(record, once);
    }

    proptest! {
        #[test]
        fn no_record_is_too_strange(mut record in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some((header, frame)) = VnetHeader::split(&record) {
                prop_assert!(header.wire_bytes(frame) >= frame.len() as u64);
            }
            complete_record(&mut record);
        }

        #[test]
        fn the_sum_is_that_of_sixteen_bit_words(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut sum = 0_u32;
            for pair in bytes.chunks(2) {
                sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            }
            while sum > 0xffff {
                sum = (sum >> 16) + (sum & 0xffff);
            }
            prop_assert_eq!(u32::from(ones_complement_sum(&bytes)), sum);
        }
    }
}
