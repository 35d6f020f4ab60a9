//! The Terminate message: why a stream ends, and the segment that was to blame (RFC 5040, section 4.8; the registry of
//! codes is RFC 6580, section 3 and RFC 6581, section 12).
//!
//! It is always sent in the RFC's form. The kernel's siw, on little-endian machines, sends its bit-fields the other way
//! round: the nibbles of the first byte are swapped and the flags are at the other end of theirs. Both are understood.

use std::fmt;

use super::ddp;
use super::rdmap::{READ_REQUEST, ReadRequest};

const HEADER: usize = 4;
const FLAG_LENGTH: u8 = 0x80;
const FLAG_DDP: u8 = 0x40;
const FLAG_READ: u8 = 0x20;
const RFC_FLAGS: u8 = FLAG_LENGTH | FLAG_DDP | FLAG_READ;
const SIW_FLAGS: u8 = 0x07;

/// Layer, error type and error code: `1/1/00`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code {
    /// 0 RDMAP, 1 DDP, 2 MPA.
    pub layer: u8,
    /// The type within the layer.
    pub error_type: u8,
    /// The code within the type.
    pub code: u8,
}

macro_rules! registry {
    ($($name:ident = $layer:literal / $kind:literal / $code:literal, $text:literal;)*) => {
        impl Code {
            $(
                #[doc = concat!($text, ".")]
                pub const $name: Self = Self { layer: $layer, error_type: $kind, code: $code };
            )*

            /// What it says, if it is registered.
            pub fn meaning(&self) -> Option<&'static str> {
                match (self.layer, self.error_type, self.code) {
                    $(($layer, $kind, $code) => Some($text),)*
                    (0, 0, _) => Some("RDMAP: local catastrophic error"),
                    _ => None,
                }
            }
        }
    };
}

registry! {
    LOCAL_CATASTROPHIC = 0 / 0 / 0xff, "RDMAP: local catastrophic error";
    READ_INVALID_STAG = 0 / 1 / 0x00, "RDMAP: invalid STag";
    READ_BOUNDS = 0 / 1 / 0x01, "RDMAP: base or bounds violation";
    READ_ACCESS = 0 / 1 / 0x02, "RDMAP: access rights violation";
    READ_NOT_ASSOCIATED = 0 / 1 / 0x03, "RDMAP: STag not associated with this stream";
    READ_WRAP = 0 / 1 / 0x04, "RDMAP: tagged offset wraps";
    INVALIDATE_PROTECTION = 0 / 1 / 0x09, "RDMAP: STag may not be invalidated";
    PROTECTION_UNSPECIFIED = 0 / 1 / 0xff, "RDMAP: unspecified protection error";
    RDMAP_VERSION = 0 / 2 / 0x05, "RDMAP: invalid version";
    RDMAP_OPCODE = 0 / 2 / 0x06, "RDMAP: unexpected opcode";
    STREAM_CATASTROPHIC = 0 / 2 / 0x07, "RDMAP: catastrophic error of this stream";
    GLOBAL_CATASTROPHIC = 0 / 2 / 0x08, "RDMAP: catastrophic error of all streams";
    INVALIDATE_OPERATION = 0 / 2 / 0x09, "RDMAP: STag cannot be invalidated";
    OPERATION_UNSPECIFIED = 0 / 2 / 0xff, "RDMAP: unspecified operation error";
    DDP_CATASTROPHIC = 1 / 0 / 0x00, "DDP: local catastrophic error";
    TAGGED_INVALID_STAG = 1 / 1 / 0x00, "DDP, tagged buffer: invalid STag";
    TAGGED_BOUNDS = 1 / 1 / 0x01, "DDP, tagged buffer: base or bounds violation";
    TAGGED_NOT_ASSOCIATED = 1 / 1 / 0x02, "DDP, tagged buffer: STag not associated with this stream";
    TAGGED_WRAP = 1 / 1 / 0x03, "DDP, tagged buffer: tagged offset wraps";
    TAGGED_VERSION = 1 / 1 / 0x04, "DDP, tagged buffer: invalid version";
    UNTAGGED_QUEUE = 1 / 2 / 0x01, "DDP, untagged buffer: invalid queue number";
    UNTAGGED_NO_BUFFER = 1 / 2 / 0x02, "DDP, untagged buffer: no buffer for this MSN";
    UNTAGGED_MSN = 1 / 2 / 0x03, "DDP, untagged buffer: MSN out of range";
    UNTAGGED_OFFSET = 1 / 2 / 0x04, "DDP, untagged buffer: invalid message offset";
    UNTAGGED_TOO_LONG = 1 / 2 / 0x05, "DDP, untagged buffer: message too long";
    UNTAGGED_VERSION = 1 / 2 / 0x06, "DDP, untagged buffer: invalid version";
    MPA_LOST = 2 / 0 / 0x01, "MPA: the TCP connection is closed or lost";
    MPA_CRC = 2 / 0 / 0x02, "MPA: bad CRC";
    MPA_LENGTH = 2 / 0 / 0x03, "MPA: length and marker or header do not match";
    MPA_START = 2 / 0 / 0x04, "MPA: invalid Request or Reply";
    MPA_CATASTROPHIC = 2 / 0 / 0x05, "MPA: local catastrophic error";
    MPA_IRD = 2 / 0 / 0x06, "MPA: insufficient IRD";
    MPA_RTR = 2 / 0 / 0x07, "MPA: no matching RTR option";
}

impl Code {
    fn new(nibbles: u8, code: u8) -> Self {
        Self { layer: nibbles >> 4, error_type: nibbles & 0x0f, code }
    }

    fn swapped(self) -> Self {
        Self { layer: self.error_type, error_type: self.layer, code: self.code }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{:02x}", self.layer, self.error_type, self.code)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}, {}", self.meaning().unwrap_or("not registered"))
    }
}

/// Whose bit order a Terminate is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// RFC 5040's.
    Rfc,
    /// That of the kernel's siw on little-endian machines.
    Siw,
}

/// The segment that was to blame, as a Terminate quotes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// ULPDU_Length of the segment (siw: of its payload), if it is known.
    pub length: Option<u16>,
    /// Its DDP and RDMAP header, as it came: 14 or 18 bytes.
    pub header: Vec<u8>,
    /// For a Read Request, its body.
    pub read_request: Option<ReadRequest>,
}

/// The body of a Terminate message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminate {
    /// Why.
    pub code: Code,
    /// What it would mean read in the other bit order, where its bytes alone do not tell.
    pub or: Option<Code>,
    /// The bit order in which it was read.
    pub form: Form,
    /// What was to blame.
    pub quote: Option<Quote>,
}

/// A Terminate's body has fewer than four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a Terminate of {0} bytes")]
pub struct TerminateTooShort(pub usize);

impl Terminate {
    /// One to send.
    pub fn new(code: Code, quote: Option<Quote>) -> Self {
        Self { code, or: None, form: Form::Rfc, quote }
    }

    /// Reads a body. A quote that is cut short is left out: the code is what matters.
    pub fn decode(body: &[u8]) -> Result<Self, TerminateTooShort> {
        let (&[nibbles, code, flags, _], rest) =
            body.split_first_chunk::<HEADER>().ok_or(TerminateTooShort(body.len()))?;
        let rfc = Code::new(nibbles, code);
        let siw = rfc.swapped();
        let form = if flags & RFC_FLAGS == 0
            && (flags & SIW_FLAGS != 0 || (rfc.meaning().is_none() && siw.meaning().is_some()))
        {
            Form::Siw
        } else {
            Form::Rfc
        };
        let (code, other) = match form {
            Form::Rfc => (rfc, siw),
            Form::Siw => (siw, rfc),
        };
        // Only codes 05 to 07 without flags are registered both ways (0/2 and 2/0).
        let or = (flags & (RFC_FLAGS | SIW_FLAGS) == 0 && other != code && other.meaning().is_some())
            .then_some(other);
        let flags = if form == Form::Siw { flags.reverse_bits() } else { flags };
        Ok(Self { code, or, form, quote: quote(flags, rest) })
    }

    /// Appends the body to `out`, in the RFC's form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut flags = 0;
        if let Some(quote) = &self.quote {
            flags |= FLAG_DDP;
            flags |= if quote.length.is_some() { FLAG_LENGTH } else { 0 };
            flags |= if quote.read_request.is_some() { FLAG_READ } else { 0 };
        }
        out.extend_from_slice(&[
            self.code.layer << 4 | self.code.error_type & 0x0f,
            self.code.code,
            flags,
            0,
        ]);
        if let Some(quote) = &self.quote {
            out.extend_from_slice(&quote.length.unwrap_or(0).to_be_bytes());
            out.extend_from_slice(&quote.header);
            if let Some(request) = &quote.read_request {
                request.encode(out);
            }
        }
    }
}

fn quote(flags: u8, rest: &[u8]) -> Option<Quote> {
    if flags & FLAG_DDP == 0 {
        return None;
    }
    let (length, rest) = rest.split_first_chunk()?;
    let length = (flags & FLAG_LENGTH != 0).then_some(u16::from_be_bytes(*length));
    let (header, rest) = rest.split_at_checked(ddp::header_size(*rest.first()?))?;
    let body = rest.first_chunk::<READ_REQUEST>().filter(|_| flags & FLAG_READ != 0);
    Some(Quote { length, header: header.to_vec(), read_request: body.map(ReadRequest::decode) })
}

impl fmt::Display for Terminate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.code, f)?;
        match self.or {
            Some(other) => write!(f, " (or, read as siw writes it, {other})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::iwarp::Stag;
    use crate::iwarp::fpdu::Fpdu;
    use crate::iwarp::golden::{self, hex};

    fn body(text: &str) -> Vec<u8> {
        let bytes = hex(text);
        Fpdu::split(&bytes).unwrap().ulpdu()[ddp::UNTAGGED_HEADER..].to_vec()
    }

    #[test]
    fn check_75_rdmap_terminate_format_rfc_nibbles_and_flags() {
        for (text, code) in [
            (golden::TERMINATE_READ, Code::READ_INVALID_STAG),
            (golden::TERMINATE_TAGGED, Code::TAGGED_INVALID_STAG),
            (golden::TERMINATE_CRC, Code::MPA_CRC),
        ] {
            let bytes = body(text);
            let terminate = Terminate::decode(&bytes).unwrap();
            assert_eq!((terminate.code, terminate.form), (code, Form::Rfc));
            let mut again = Vec::new();
            terminate.encode(&mut again);
            assert_eq!(again, bytes);
        }
        let quote = Terminate::decode(&body(golden::TERMINATE_READ)).unwrap().quote.unwrap();
        assert_eq!(quote.length, Some(46));
        assert_eq!(quote.read_request.unwrap().source, Stag(0x0077_889a));
    }

    #[test]
    fn check_75_rdmap_terminate_decodes_siw_le_form() {
        let terminate = Terminate::decode(&body(golden::TERMINATE_CRC_SIW)).unwrap();
        assert_eq!((terminate.code, terminate.form), (Code::MPA_CRC, Form::Siw));
        let terminate = Terminate::decode(&body(golden::TERMINATE_IRD_SIW)).unwrap();
        assert_eq!((terminate.code, terminate.form), (Code::STREAM_CATASTROPHIC, Form::Siw));
        let quote = terminate.quote.unwrap();
        assert_eq!((quote.length, quote.header.len()), (Some(0), 18));
    }

    #[test]
    fn what_the_bytes_do_not_tell_is_said_both_ways() {
        let terminate = Terminate::decode(&[0x20, 0x06, 0, 0]).unwrap();
        assert_eq!((terminate.code, terminate.or), (Code::MPA_IRD, Some(Code::RDMAP_OPCODE)));
        assert_eq!(
            terminate.to_string(),
            "2/0/06, MPA: insufficient IRD (or, read as siw writes it, 0/2/06, RDMAP: unexpected opcode)"
        );
    }

    #[test]
    fn a_quote_cut_short_leaves_the_code() {
        let bytes = body(golden::TERMINATE_TAGGED);
        for end in HEADER..bytes.len() {
            let terminate = Terminate::decode(&bytes[..end]).unwrap();
            assert_eq!((terminate.code, terminate.quote), (Code::TAGGED_INVALID_STAG, None));
        }
        assert_eq!(Terminate::decode(&bytes[..3]), Err(TerminateTooShort(3)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(terminate) = Terminate::decode(&bytes) {
                let mut again = Vec::new();
                terminate.encode(&mut again);
                let read = Terminate::decode(&again).unwrap();
                // What is sent is the RFC's form; it says the same unless the code is registered in neither.
                if terminate.code.meaning().is_some() && read.form == Form::Rfc {
                    prop_assert_eq!(read.code, terminate.code);
                }
            }
        }
    }
}
