//! The owner's side: a body becomes records, each where its bytes lie.

use super::{Keys, RECORD, place};

/// Seals a body, record by record.
#[derive(Debug)]
pub struct Sealer {
    keys: Keys,
    /// Bytes of the whole body, and of it sealed.
    length: u64,
    sealed: u64,
}

impl Sealer {
    /// A body of `length` bytes.
    pub fn new(keys: Keys, length: u64) -> Self {
        Self { keys, length, sealed: 0 }
    }

    /// Bytes of the body in the next record; 0 after the last.
    pub fn due(&self) -> usize {
        usize::try_from(self.length - self.sealed).map_or(RECORD, |left| left.min(RECORD))
    }

    /// Bytes of the body that are not sealed yet.
    pub fn left(&self) -> u64 {
        self.length - self.sealed
    }

    /// Makes the next record of what `buffer` holds from `start` on, which must be all that is due; its tag is appended.
    ///
    /// # Panics
    ///
    /// If it is not: it could never be opened.
    pub fn seal(&mut self, buffer: &mut Vec<u8>, start: usize) {
        let due = self.due();
        assert_eq!(buffer.len() - start, due, "a record has the length that is due");
        let record = self.sealed / RECORD as u64;
        let (nonce, place) = (self.keys.nonce(record), place(record, self.length));
        let tag = self.keys.key.seal_in_place_separate_tag(nonce, place, &mut buffer[start..]);
        // It fails beyond 64 GiB only (NIST SP 800-38D, section 5.2.1.1).
        let tag = tag.expect("AES-GCM seals records of 16 KiB");
        buffer.extend_from_slice(tag.as_ref());
        self.sealed += due as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Opener, SECRET, Secret, TAG, sealed_length};
    use super::*;
    use crate::header::{Mode, TransferId};
    use bytes::Bytes;
    use proptest::prelude::*;

    fn keys() -> Keys {
        Secret::new(&[1; SECRET]).transfer(Mode::ServerWrites, TransferId([2; 16]), 3)
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_however_it_is_cut(
            body in prop::collection::vec(any::<u8>(), 0..3 * RECORD),
            cuts in prop::collection::vec(1..2 * RECORD, 1..9),
        ) {
            let mut sealed = Bytes::from(super::super::seal(keys(), &body));
            prop_assert_eq!(Some(sealed.len() as u64), sealed_length(body.len() as u64));
            let mut opener = Opener::new(keys(), sealed.len() as u64).unwrap();
            let mut opened = Vec::new();
            for cut in cuts.iter().cycle() {
                if sealed.is_empty() {
                    break;
                }
                opened.extend_from_slice(&opener.push(sealed.split_to(sealed.len().min(*cut))).unwrap());
            }
            prop_assert_eq!(opener.end(), Ok(()));
            prop_assert_eq!(opened, body);
        }
    }

    #[test]
    fn records_go_behind_what_is_there() {
        let mut sealer = Sealer::new(keys(), 3);
        let mut buffer = b"before abc".to_vec();
        sealer.seal(&mut buffer, 7);
        assert_eq!((buffer.len(), sealer.due(), sealer.left()), (10 + TAG, 0, 0));
        assert!(buffer.starts_with(b"before "));
        assert_eq!(super::super::open(keys(), buffer.split_off(7)).unwrap(), "abc");
    }
}
