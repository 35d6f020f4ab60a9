//! FPDUs: the frames of an MPA stream (RFC 5044, section 4). Length, ULPDU, pad to a multiple of four, CRC32c; no
//! markers.

/// Bytes of the ULPDU_Length field.
pub const LENGTH: usize = 2;

/// Bytes of the CRC field, which is there whether or not CRCs are in use.
pub const CRC: usize = 4;

/// The longest ULPDU that is sent (RFC 5044, section 3).
pub const MAX_ULPDU_SENT: usize = 64768;

/// The longest ULPDU that is received: what the field can say. The kernel's siw sends more than RFC 5044 allows.
pub const MAX_ULPDU_RECEIVED: usize = u16::MAX as usize;

/// The largest FPDU on receipt.
pub const MAX_FPDU_RECEIVED: usize = LENGTH + MAX_ULPDU_RECEIVED + 3 + CRC;

/// The shortest ULPDU that can hold a DDP header.
pub const MIN_ULPDU: usize = super::ddp::TAGGED_HEADER;

/// Bytes of pad after a ULPDU.
pub const fn pad(ulpdu: usize) -> usize {
    (LENGTH + ulpdu).wrapping_neg() % 4
}

/// Bytes of the FPDU around a ULPDU.
pub const fn size(ulpdu: usize) -> usize {
    LENGTH + ulpdu + pad(ulpdu) + CRC
}

/// The longest ULPDU whose FPDU fits in one TCP segment of `emss` bytes (RFC 5044, section 4.5), within the limits
/// that RFC 5044 sets.
pub const fn mulpdu(emss: usize) -> usize {
    let fits = emss.saturating_sub(6 + emss % 4);
    if fits < 128 {
        128
    } else if fits > MAX_ULPDU_SENT {
        MAX_ULPDU_SENT
    } else {
        fits
    }
}

/// One whole FPDU, as received.
#[derive(Clone, Copy, Debug)]
pub struct Fpdu<'a> {
    bytes: &'a [u8],
    ulpdu: usize,
}

impl<'a> Fpdu<'a> {
    /// ULPDU_Length of the FPDU at the beginning of `bytes`, if that much has come.
    pub fn peek_length(bytes: &[u8]) -> Option<usize> {
        bytes.first_chunk().map(|length| usize::from(u16::from_be_bytes(*length)))
    }

    /// The FPDU at the beginning of `bytes`, if it is there whole.
    pub fn split(bytes: &'a [u8]) -> Option<Self> {
        let ulpdu = Self::peek_length(bytes)?;
        Some(Self { bytes: bytes.get(..size(ulpdu))?, ulpdu })
    }

    /// The DDP segment in it.
    pub fn ulpdu(&self) -> &'a [u8] {
        &self.bytes[LENGTH..LENGTH + self.ulpdu]
    }

    /// All its bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The CRC that it carries.
    pub fn crc(&self) -> u32 {
        let at = self.bytes.len() - CRC;
        // The constructor took at least LENGTH + CRC bytes, so the field is there.
        self.bytes[at..].first_chunk().map_or(0, |crc| u32::from_le_bytes(*crc))
    }

    /// Whether the CRC is that of its bytes, the pad's among them (RFC 5044, section 4.4).
    pub fn crc_is_good(&self) -> bool {
        super::crc::of(&self.bytes[..self.bytes.len() - CRC]) == self.crc()
    }
}

/// Leaves room for an FPDU's length at the end of `out` and says where; the ULPDU is appended next, then [`seal`].
pub fn begin(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[0; LENGTH]);
    out.len() - LENGTH
}

/// Completes the FPDU that [`begin`] began at `start`: its length, its pad and its CRC, which is zero where none is in
/// use. CRCs go least significant byte first, unlike all else (RFC 5044, section 4.4).
///
/// # Panics
///
/// If more than 65535 bytes were appended since: a mistake of the caller, who cuts segments to [`mulpdu`].
pub fn seal(out: &mut Vec<u8>, start: usize, crc: bool) {
    let ulpdu = out.len() - start - LENGTH;
    set_length(&mut out[start..], ulpdu);
    out.extend_from_slice(&[0; 3][..pad(ulpdu)]);
    let value = if crc { super::crc::of(&out[start..]) } else { 0 };
    out.extend_from_slice(&value.to_le_bytes());
}

/// Writes the ULPDU_Length at the beginning of `fpdu`.
///
/// # Panics
///
/// As [`seal`] does.
pub(super) fn set_length(fpdu: &mut [u8], ulpdu: usize) {
    assert!(ulpdu <= MAX_ULPDU_RECEIVED, "a ULPDU of {ulpdu} bytes");
    // Checked above: it fits.
    fpdu[..LENGTH].copy_from_slice(&(ulpdu as u16).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::iwarp::golden::{self, hex};

    fn framed(ulpdu: &[u8], crc: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let start = begin(&mut out);
        out.extend_from_slice(ulpdu);
        seal(&mut out, start, crc);
        out
    }

    fn send_ulpdu(msn: u32, payload: &[u8]) -> Vec<u8> {
        let mut ulpdu = hex("4143 00000000 00000000");
        ulpdu.extend_from_slice(&msn.to_be_bytes());
        ulpdu.extend_from_slice(&[0; 4]);
        ulpdu.extend_from_slice(payload);
        ulpdu
    }

    #[test]
    fn check_33_fpdu_crc_little_endian_golden_vectors() {
        let goldens = [
            golden::WRITE,
            golden::SEND,
            golden::READ_REQUEST,
            golden::READ_RESPONSE,
            golden::SEND_SE_INVALIDATE,
            golden::SEND_EMPTY,
            golden::TERMINATE_READ,
            golden::TERMINATE_TAGGED,
            golden::TERMINATE_CRC,
            golden::TERMINATE_CRC_SIW,
            golden::TERMINATE_IRD_SIW,
            golden::READ_REQUEST_SIW,
            golden::SEND_SIW,
        ];
        for text in goldens {
            let bytes = hex(text);
            let fpdu = Fpdu::split(&bytes).unwrap();
            assert_eq!(fpdu.bytes().len(), bytes.len(), "{text}");
            assert!(fpdu.crc_is_good(), "{text}");
            assert_eq!(framed(fpdu.ulpdu(), true), bytes, "{text}");
        }
        for (n, crc) in ["587be8c4", "16c9d732", "423d6f31", "e3655b70", "b4e2b529"].iter().enumerate() {
            let payload: Vec<u8> = (1..=n as u8).collect();
            assert!(framed(&send_ulpdu(1, &payload), true).ends_with(&hex(crc)), "{n} bytes");
        }
        assert!(framed(&send_ulpdu(1, &[0; 24]), true).ends_with(&hex("b7243ec3")), "RFC 5044, figure 5");
    }

    #[test]
    fn golden_vectors_of_full_segments() {
        let mut write = hex("8140 00112233 0000000000004000");
        write.extend((0..1428).map(|i| (i % 256) as u8));
        let bytes = framed(&write, true);
        assert_eq!(bytes.len(), 1448);
        assert!(bytes.ends_with(&hex("92cbe314")));
        let payload: Vec<u8> = (0..64750).map(|i| (i % 251) as u8).collect();
        let bytes = framed(&send_ulpdu(1, &payload), true);
        assert_eq!(bytes.len(), 64776);
        assert!(bytes.ends_with(&hex("2bc096d4")));
    }

    #[test]
    fn check_34_fpdu_crc_field_present_and_unchecked_when_off() {
        let bytes = hex(golden::RTR_WRITE_NO_CRC);
        let fpdu = Fpdu::split(&bytes).unwrap();
        assert_eq!((fpdu.crc(), fpdu.bytes().len()), (0, 20));
        assert_eq!(framed(fpdu.ulpdu(), false), bytes);
    }

    #[test]
    fn check_38_fpdu_mulpdu_formula_table() {
        let table = [(1448, 1442), (1460, 1454), (8948, 8942), (65483, 64768), (0, 128), (1449, 1442)];
        for (emss, expected) in table {
            assert_eq!(mulpdu(emss), expected, "EMSS {emss}");
        }
    }

    #[test]
    fn check_32_fpdu_nonzero_pad_accepted() {
        let mut bytes = hex(golden::WRITE);
        bytes[29..32].copy_from_slice(&hex("464748"));
        let crc = crc32c::crc32c(&bytes[..32]).to_le_bytes();
        bytes[32..].copy_from_slice(&crc);
        assert!(Fpdu::split(&bytes).unwrap().crc_is_good());
    }

    proptest! {
        #[test]
        fn check_31_fpdu_multiple_of_four_with_zero_pad(ulpdu in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = framed(&ulpdu, true);
            prop_assert_eq!(bytes.len() % 4, 0);
            prop_assert_eq!(bytes.len(), size(ulpdu.len()));
            prop_assert!(bytes[2 + ulpdu.len()..bytes.len() - 4].iter().all(|b| *b == 0));
            for end in 0..bytes.len() {
                prop_assert!(Fpdu::split(&bytes[..end]).is_none());
            }
            let fpdu = Fpdu::split(&bytes).unwrap();
            prop_assert!(fpdu.crc_is_good());
            prop_assert_eq!(fpdu.ulpdu(), &ulpdu[..], "fpdu_length_excludes_header_pad_crc");
        }

        #[test]
        fn a_flipped_bit_is_found(
            ulpdu in proptest::collection::vec(any::<u8>(), 14..100),
            at in any::<proptest::sample::Index>(),
            bit in 0u8..8,
        ) {
            let mut bytes = framed(&ulpdu, true);
            let at = 2 + at.index(bytes.len() - 2);
            bytes[at] ^= 1 << bit;
            prop_assert!(!Fpdu::split(&bytes).unwrap().crc_is_good());
        }

        #[test]
        fn mulpdu_fits_its_segment(emss in 140usize..=64776) {
            prop_assert!(size(mulpdu(emss)) <= emss);
        }
    }
}
