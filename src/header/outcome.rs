//! The response's field: what became of the offer.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use http::{HeaderMap, HeaderValue};

use super::lexer::{Parts, bad, excerpt, is_token, number, the_field};
use super::offer::{address, id, port, value};
use super::{HeaderError, Mode, TransferId};

/// What was done with an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The body went by RDMA.
    Done {
        /// In this way.
        mode: Mode,
        /// All of it: this many bytes.
        bytes: u64,
        /// The offer's id.
        id: Option<TransferId>,
    },
    /// The body goes by RDMA while the response's own body, which is empty, lasts; its end is the transfer's.
    Under {
        /// In this way.
        mode: Mode,
        /// Bytes of the whole.
        bytes: u64,
        /// The offer's id.
        id: TransferId,
    },
    /// The client may connect.
    Accept {
        /// To this port of the server's.
        port: u16,
        /// At this address; where it is not the one that HTTP goes to.
        ip: Option<IpAddr>,
        /// On behalf of this request.
        id: TransferId,
    },
    /// This HTTP connection is the RDMA connection.
    InPlace {
        /// On behalf of this request.
        id: TransferId,
    },
    /// The response is plain HTTP; the region was not touched.
    Fallback {
        /// Why.
        reason: Reason,
    },
    /// The transfer broke; the region holds nothing that may be used.
    Failed {
        /// Why.
        reason: Reason,
    },
}

/// Why a body did not go by RDMA: a token that programs compare. The constants are those of `docs/protocol.md`; another
/// server may have more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reason(Cow<'static, str>);

impl Reason {
    /// The request's field could not be understood.
    pub const MALFORMED: Self = Self::known("malformed");
    /// The server does not do this mode.
    pub const UNSUPPORTED_MODE: Self = Self::known("unsupported-mode");
    /// The mode does not go with the method.
    pub const METHOD: Self = Self::known("method");
    /// The response is not a 200.
    pub const STATUS: Self = Self::known("status");
    /// A 200 without a body.
    pub const EMPTY: Self = Self::known("empty");
    /// The body's length is not known before it ends.
    pub const UNKNOWN_LENGTH: Self = Self::known("unknown-length");
    /// The body is longer than `maxlen`.
    pub const TOO_LARGE: Self = Self::known("too-large");
    /// The address is not the peer's and in no list.
    pub const ADDRESS_NOT_ALLOWED: Self = Self::known("address-not-allowed");
    /// The request's body, or the response's, would go in the clear beside TLS; or it was to be sealed, and there is no TLS 1.3.
    pub const UNSEALED: Self = Self::known("unsealed");
    /// There is no RDMA connection of the kind that the request names.
    pub const NOT_CONNECTED: Self = Self::known("not-connected");
    /// The server did not want all of the body.
    pub const NOT_READ: Self = Self::known("not-read");
    /// Nothing accepts a connection at the address.
    pub const UNREACHABLE: Self = Self::known("unreachable");
    /// What accepts connections there refused this one.
    pub const REJECTED: Self = Self::known("rejected");
    /// Not within the limit.
    pub const TIMED_OUT: Self = Self::known("timed-out");
    /// Too much memory is registered already.
    pub const EXHAUSTED: Self = Self::known("exhausted");
    /// The RDMA stack failed before anything was written.
    pub const FABRIC: Self = Self::known("fabric");
    /// What came is not what was sealed.
    pub const SEAL_BROKEN: Self = Self::known("seal-broken");
    /// The RDMA connection ended in mid-transfer.
    pub const CONNECTION_LOST: Self = Self::known("connection-lost");

    /// The client's own word for a response without the field: a server that does not know RDMA.
    pub const NOT_ANSWERED: Self = Self::known("not-answered");

    const fn known(token: &'static str) -> Self {
        Self(Cow::Borrowed(token))
    }

    /// As it stands in the field.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Outcome {
    /// The outcome that a response tells, if it tells one: a server that does not know RDMA says nothing.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, HeaderError> {
        the_field(headers)?.map(Self::parse).transpose()
    }

    /// Parses a field's value.
    pub fn parse(value: &HeaderValue) -> Result<Self, HeaderError> {
        let parts = Parts::split(value)?;
        let reason = || {
            let token = parts.required("reason")?;
            if is_token(token) {
                Ok(Reason(Cow::Owned(token.to_ascii_lowercase())))
            } else {
                Err(bad("reason", token, "a token"))
            }
        };
        if parts.word.eq_ignore_ascii_case("fallback") {
            return Ok(Self::Fallback { reason: reason()? });
        }
        if parts.word.eq_ignore_ascii_case("failed") {
            return Ok(Self::Failed { reason: reason()? });
        }
        if parts.word.eq_ignore_ascii_case("accept") {
            if let Some(word) = parts.optional("connect")? {
                return match word.eq_ignore_ascii_case("in-place") {
                    true => Ok(Self::InPlace { id: id(parts.required("id")?)? }),
                    false => Err(bad("connect", word, "in-place")),
                };
            }
            let ip = parts.optional("ip")?.map(address).transpose()?;
            let (port, id) = (port(parts.required("port")?)?, id(parts.required("id")?)?);
            return Ok(Self::Accept { port, ip, id });
        }
        let mode = Mode::from_token(parts.word).ok_or_else(|| HeaderError::UnknownWord {
            found: excerpt(parts.word),
            expected: "mode, nor accept, nor fallback, nor failed",
        })?;
        if let Some(bytes) = parts.optional("coming")? {
            let bytes = number("coming", bytes, u64::MAX)?;
            return Ok(Self::Under { mode, bytes, id: id(parts.required("id")?)? });
        }
        let bytes = number("bytes", parts.required("bytes")?, u64::MAX)?;
        let id = parts.optional("id")?.map(id).transpose()?;
        Ok(Self::Done { mode, bytes, id })
    }

    /// The field's value.
    pub fn to_value(&self) -> HeaderValue {
        value(self.to_string())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { mode, bytes, id: None } => write!(f, "{mode}, bytes={bytes}"),
            Self::Done { mode, bytes, id: Some(id) } => write!(f, "{mode}, bytes={bytes}, id={id}"),
            Self::Under { mode, bytes, id } => write!(f, "{mode}, coming={bytes}, id={id}"),
            Self::Accept { port, ip: None, id } => write!(f, "accept, port={port}, id={id}"),
            Self::Accept { port, ip: Some(ip), id } => write!(f, "accept, port={port}, ip={ip}, id={id}"),
            Self::InPlace { id } => write!(f, "accept, connect=in-place, id={id}"),
            Self::Fallback { reason } => write!(f, "fallback, reason={reason}"),
            Self::Failed { reason } => write!(f, "failed, reason={reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Outcome, HeaderError> {
        Outcome::parse(&HeaderValue::from_str(text).unwrap())
    }

    #[test]
    fn verdicts_parse() {
        assert_eq!(
            parse("Fallback, reason=Too-Large, hint=1"),
            Ok(Outcome::Fallback { reason: Reason::TOO_LARGE })
        );
        assert_eq!(parse("failed,reason=timed-out"), Ok(Outcome::Failed { reason: Reason::TIMED_OUT }));
        assert_eq!(
            parse("server-writes, bytes=1"),
            Ok(Outcome::Done { mode: Mode::ServerWrites, bytes: 1, id: None })
        );
    }

    #[test]
    fn nonsense_does_not() {
        for text in
            ["", "done", "fallback", "fallback, reason=a/b", "server-writes", "server-writes, bytes=-1"]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        let done = (prop::sample::select(&Mode::ALL[..]), any::<u64>(), any::<Option<[u8; 16]>>())
            .prop_map(|(mode, bytes, id)| Outcome::Done { mode, bytes, id: id.map(TransferId) });
        let reason = || "[a-z0-9-]{1,30}".prop_map(|token| Reason(token.into()));
        let mode = || prop::sample::select(&Mode::ALL[..]);
        let under = (mode(), any::<u64>(), any::<[u8; 16]>()).prop_map(|(mode, bytes, id)| Outcome::Under {
            mode,
            bytes,
            id: TransferId(id),
        });
        let accept = (1..=u16::MAX, any::<Option<IpAddr>>(), any::<[u8; 16]>()).prop_map(|(port, ip, id)| {
            Outcome::Accept { port, ip: ip.map(|ip| ip.to_canonical()), id: TransferId(id) }
        });
        let in_place = any::<[u8; 16]>().prop_map(|id| Outcome::InPlace { id: TransferId(id) });
        prop_oneof![
            done,
            under,
            accept,
            in_place,
            reason().prop_map(|reason| Outcome::Fallback { reason }),
            reason().prop_map(|reason| Outcome::Failed { reason }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed(outcome in any_outcome()) {
            prop_assert_eq!(Outcome::parse(&outcome.to_value()), Ok(outcome));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let _ = Outcome::parse(&value);
            }
        }
    }
}
