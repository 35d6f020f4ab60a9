//! The `RDMA:` header field, parsed and printed: what a request offers ([`Offer`]) and what a response says was done with
//! it ([`Outcome`]); or the two introduce an RDMA connection ([`Asked`]). Grammar and meaning are in `docs/protocol.md`, sections 1 and 2.

mod lexer;
mod offer;
mod outcome;

use std::fmt;

use http::HeaderName;

pub use offer::{Advert, Asked, Offer, Route};
pub use outcome::{Outcome, Reason};

/// The field's name, as `http` wants it.
pub const RDMA: HeaderName = HeaderName::from_static("rdma");

/// The longest field value that is looked at, in bytes.
pub const MAX_FIELD: usize = 1024;

/// Who moves the bytes, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// GET: the client advertises a sink, the server RDMA-Writes the body into it.
    ServerWrites,
    /// GET: the server advertises the body, the client RDMA-Reads it.
    ClientReads,
    /// POST, PUT: the server advertises a sink, the client RDMA-Writes the body into it.
    ClientWrites,
    /// POST, PUT: the client advertises the body, the server RDMA-Reads it.
    ServerReads,
}

impl Mode {
    /// Every mode that has a name.
    pub const ALL: [Self; 4] = [Self::ServerWrites, Self::ClientReads, Self::ClientWrites, Self::ServerReads];

    /// Its name in the field.
    pub fn token(self) -> &'static str {
        match self {
            Self::ServerWrites => "server-writes",
            Self::ClientReads => "client-reads",
            Self::ClientWrites => "client-writes",
            Self::ServerReads => "server-reads",
        }
    }

    fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.token().eq_ignore_ascii_case(token))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.token())
    }
}

/// 128 random bits that name one transfer and no other; 32 hexadecimal digits in the field.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransferId(pub [u8; 16]);

impl TransferId {
    /// What stands for the id in messages about a transfer whose request had none.
    pub const NONE: Self = Self([0; 16]);

    /// A new one, from the operating system's generator.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        Ok(Self(id))
    }

    fn parse(value: &str) -> Option<Self> {
        (value.len() == 32 && value.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u128::from_str_radix(value, 16).ok())
            .flatten()
            .map(|id| Self(id.to_be_bytes()))
    }
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransferId({self})")
    }
}

/// What is wrong with a field. The text names the part that is wrong; it quotes at most a little of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// More than one field line.
    #[error("there are {0} RDMA fields; one exchange has one offer")]
    Repeated(usize),
    /// Over [`MAX_FIELD`].
    #[error("the field has {0} bytes, more than {MAX_FIELD}")]
    TooLong(usize),
    /// Bytes outside visible ASCII, space and tab.
    #[error("the field holds bytes that are not printable ASCII")]
    NotText,
    /// No mode or no verdict at the front.
    #[error("{found:?} is no {expected}")]
    UnknownWord {
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// Neither empty nor `name=value`.
    #[error("{0:?} is not of the form name=value")]
    NotAParameter(String),
    /// Given twice.
    #[error("the parameter {0} is given twice")]
    Duplicate(&'static str),
    /// Required and absent.
    #[error("the parameter {0} is missing")]
    Missing(&'static str),
    /// A value that its parameter cannot have.
    #[error("{name}={value:?}: expected {expected}")]
    BadValue {
        /// The parameter.
        name: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
    /// `to + maxlen` passes the end of the address space.
    #[error("to={to} and maxlen={maxlen} reach past 2^64")]
    PastTheEnd {
        /// The offset.
        to: u64,
        /// The length.
        maxlen: u64,
    },
}
