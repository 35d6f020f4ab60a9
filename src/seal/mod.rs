//! Bodies sealed for an RDMA path that others can read and write, under keys that only the two ends of a TLS connection
//! have (`docs/protocol.md`, section 7).
//!
//! A body of *n* bytes becomes records: 16,384 bytes of it, the last one fewer, each followed by a tag of 16 bytes
//! (AES-256-GCM). Where a record belongs is part of what its tag vouches for: transfer, place and the length of the whole.
//! So a record that was changed, moved, repeated, left out, or taken from another transfer does not open.

mod open;
mod records;

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk};

use crate::header::{Mode, TransferId};

pub use open::{Opener, open};
pub use records::Sealer;

/// Bytes of the body in each record but the last, as of TLS's own (RFC 8446, section 5.1).
pub const RECORD: usize = 16_384;
/// Bytes of each record's tag.
pub const TAG: usize = 16;
/// What the secret is exported under (RFC 8446, section 7.5). Labels that begin so need no registration (RFC 5705,
/// section 4).
pub const EXPORTER_LABEL: &[u8] = b"EXPERIMENTAL-rdma-http-seal-1";
/// Bytes of the secret.
pub const SECRET: usize = 32;

/// What both ends of a TLS connection know, and nobody else.
#[derive(Clone)]
pub struct Secret(Prk);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Lengths, for HKDF.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

impl Secret {
    /// The secret that a TLS connection exported under [`EXPORTER_LABEL`] without a context.
    pub fn new(exported: &[u8; SECRET]) -> Self {
        Self(Prk::new_less_safe(HKDF_SHA256, exported))
    }

    /// The keys of one transfer. Whoever offers counts its offers on the TLS connection (`number`), so that no two
    /// transfers have the same keys even if an id came twice.
    pub fn transfer(&self, mode: Mode, id: TransferId, number: u64) -> Keys {
        let mut material = [0; 32 + NONCE_LEN];
        let (number, mode) = (number.to_be_bytes(), mode.token().as_bytes());
        let info = [&b"rdma-http seal 1 "[..], &id.0, &number, mode];
        // Neither fails: HKDF gives up to 255 times its hash's 32 bytes, and AES-256 has keys of 32.
        let expanded = self.0.expand(&info, Bytes(material.len()));
        let filled = expanded.and_then(|okm| okm.fill(&mut material));
        let key = filled.and_then(|()| UnboundKey::new(&AES_256_GCM, &material[..32]));
        let key = key.expect("44 bytes of HKDF-SHA256, and 32 of them are a key of AES-256");
        let mut iv = [0; NONCE_LEN];
        iv.copy_from_slice(&material[32..]);
        Keys { key: LessSafeKey::new(key), iv }
    }
}

/// The keys of one transfer.
pub struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// As TLS makes its nonces (RFC 8446, section 5.3): the record's number, under the transfer's mask.
    fn nonce(&self, record: u64) -> Nonce {
        let mut nonce = self.iv;
        for (masked, byte) in nonce[NONCE_LEN - 8..].iter_mut().zip(record.to_be_bytes()) {
            *masked ^= byte;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// What a record's tag vouches for besides its bytes: where they belong, in a body of which length.
fn place(record: u64, length: u64) -> Aad<[u8; 16]> {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&record.to_be_bytes());
    place[8..].copy_from_slice(&length.to_be_bytes());
    Aad::from(place)
}

/// Bytes of a body of `length` bytes once it is sealed; `None` if that is more than 64 bits hold.
pub fn sealed_length(length: u64) -> Option<u64> {
    length.checked_add(length.div_ceil(RECORD as u64) * TAG as u64)
}

/// Bytes of the body that was sealed to `length` bytes; `None` if none is.
pub fn plain_length(length: u64) -> Option<u64> {
    let plain = length.checked_sub(length.div_ceil((RECORD + TAG) as u64) * TAG as u64)?;
    (sealed_length(plain) == Some(length)).then_some(plain)
}

/// Seals a body that is here as a whole.
pub fn seal(keys: Keys, body: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(keys, body.len() as u64);
    let mut sealed = Vec::with_capacity(body.len() + body.len().div_ceil(RECORD) * TAG);
    for record in body.chunks(RECORD) {
        let start = sealed.len();
        sealed.extend_from_slice(record);
        sealer.seal(&mut sealed, start);
    }
    sealed
}

/// What came by RDMA is not what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The bytes are not those that were sealed for this place of this transfer.
    #[error(
        "what came by RDMA does not open at byte {0} of the body: somebody changed it on the way, or it belongs elsewhere"
    )]
    Broken(u64),
    /// No body has so many bytes when it is sealed.
    #[error("no body is of {0} bytes when it is sealed")]
    Length(u64),
    /// It ends before its length says.
    #[error("what came by RDMA ends after {0} bytes of the body")]
    Short(u64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_of_sealed_bodies() {
        for (plain, sealed) in [(0, 0), (1, 17), (16_384, 16_400), (16_385, 16_417), (40_000, 40_048)] {
            assert_eq!(sealed_length(plain), Some(sealed));
            assert_eq!(plain_length(sealed), Some(plain));
        }
        // A tag, and nothing that it vouches for.
        for none in [1, 16, 16_401, 16_416] {
            assert_eq!(plain_length(none), None);
        }
        assert_eq!(sealed_length(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn lengths_are_told_from_each_other(plain in 0..u64::MAX / 2) {
            prop_assert_eq!(sealed_length(plain).and_then(plain_length), Some(plain));
        }

        #[test]
        fn no_length_overflows(any in any::<u64>()) {
            let _ = plain_length(any);
            let _ = sealed_length(any);
        }
    }

    #[test]
    fn each_transfer_has_keys_of_its_own() {
        let secret = Secret::new(&[7; SECRET]);
        let sealed = |mode, id, number| {
            let mut bytes = *b"the same bytes";
            let keys = secret.transfer(mode, TransferId([id; 16]), number);
            let tag = keys.key.seal_in_place_separate_tag(keys.nonce(0), place(0, 14), &mut bytes);
            assert!(tag.is_ok());
            bytes
        };
        let one = sealed(Mode::ServerWrites, 1, 0);
        assert_eq!(one, sealed(Mode::ServerWrites, 1, 0));
        for other in [
            sealed(Mode::ClientReads, 1, 0),
            sealed(Mode::ServerWrites, 2, 0),
            sealed(Mode::ServerWrites, 1, 1),
        ] {
            assert_ne!(one, other);
        }
    }
}
