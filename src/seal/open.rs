//! The taker's side: records become the body again, or an error.

use bytes::{Buf, Bytes, BytesMut};

use super::{Keys, RECORD, SealError, TAG, place, plain_length};

/// Opens a body that comes in pieces of any size. Nothing is handed out that did not open.
#[derive(Debug)]
pub struct Opener {
    keys: Keys,
    /// Bytes of the body, and of it handed out.
    length: u64,
    opened: u64,
    /// The beginning of a record whose end has not come.
    begun: BytesMut,
}

impl Opener {
    /// A body that has `sealed` bytes on the way.
    ///
    /// # Errors
    ///
    /// [`SealError::Length`] if no body has.
    pub fn new(keys: Keys, sealed: u64) -> Result<Self, SealError> {
        let length = plain_length(sealed).ok_or(SealError::Length(sealed))?;
        Ok(Self { keys, length, opened: 0, begun: BytesMut::new() })
    }

    /// Bytes of the whole body.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Takes a piece; gives what opens with it, which may be nothing yet. At most one record is held back.
    ///
    /// # Errors
    ///
    /// [`SealError::Broken`] if a record is not what was sealed for its place. The transfer is over then.
    pub fn push(&mut self, mut piece: Bytes) -> Result<Bytes, SealError> {
        let mut opened = Vec::with_capacity(piece.len() + self.begun.len());
        while !piece.is_empty() {
            let whole = self.next_record();
            if whole == 0 {
                return Err(SealError::Broken(self.opened));
            }
            if self.begun.is_empty() && piece.len() >= whole {
                self.open(&piece.split_to(whole), &mut opened)?;
                continue;
            }
            let missing = (whole - self.begun.len()).min(piece.len());
            self.begun.extend_from_slice(&piece[..missing]);
            piece.advance(missing);
            if self.begun.len() == whole {
                let record = self.begun.split();
                self.open(&record, &mut opened)?;
            }
        }
        Ok(opened.into())
    }

    /// Whether all of it came.
    ///
    /// # Errors
    ///
    /// [`SealError::Short`] if not.
    pub fn end(&self) -> Result<(), SealError> {
        if self.opened == self.length { Ok(()) } else { Err(SealError::Short(self.opened)) }
    }

    /// Bytes of the record that is due, with its tag; 0 after the last.
    fn next_record(&self) -> usize {
        match usize::try_from(self.length - self.opened) {
            Ok(0) => 0,
            Ok(left) => left.min(RECORD) + TAG,
            Err(_) => RECORD + TAG,
        }
    }

    fn open(&mut self, record: &[u8], opened: &mut Vec<u8>) -> Result<(), SealError> {
        let number = self.opened / RECORD as u64;
        let start = opened.len();
        opened.extend_from_slice(record);
        let (nonce, place) = (self.keys.nonce(number), place(number, self.length));
        let plain = self.keys.key.open_in_place(nonce, place, &mut opened[start..]);
        let plain = plain.map_err(|_| SealError::Broken(self.opened))?.len();
        opened.truncate(start + plain);
        self.opened += plain as u64;
        Ok(())
    }
}

/// Opens a body that is here as a whole.
///
/// # Errors
///
/// As those of [`Opener`].
pub fn open(keys: Keys, sealed: Vec<u8>) -> Result<Bytes, SealError> {
    let mut opener = Opener::new(keys, sealed.len() as u64)?;
    let opened = opener.push(sealed.into())?;
    opener.end()?;
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::super::{Secret, sealed};
    use super::*;
    use crate::header::{Mode, TransferId};
    use http_body_util::{BodyExt, Full};

    const LENGTH: usize = 2 * RECORD + 100;

    fn keys(number: u64) -> Keys {
        Secret::new(&[1; 32]).transfer(Mode::ServerWrites, TransferId([2; 16]), number)
    }

    async fn body(number: u64) -> Vec<u8> {
        let body = Full::new(Bytes::from(vec![9; LENGTH]));
        let sealed = sealed(body, LENGTH as u64, keys(number));
        sealed.collect().await.unwrap().to_bytes().into()
    }

    #[tokio::test]
    async fn a_changed_bit_anywhere_does_not_open() {
        let sealed = body(0).await;
        let whole = RECORD + TAG;
        for at in [0, 1, RECORD - 1, RECORD, whole - 1, whole, 2 * whole, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 0x40;
            let broken = (at / whole * RECORD) as u64;
            assert_eq!(open(keys(0), changed).unwrap_err(), SealError::Broken(broken));
        }
        assert_eq!(open(keys(0), sealed).unwrap(), vec![9; LENGTH]);
    }

    #[tokio::test]
    async fn records_in_another_order_do_not_open() {
        let mut moved = body(0).await;
        let (first, second) = moved.split_at_mut(RECORD + TAG);
        first.swap_with_slice(&mut second[..RECORD + TAG]);
        assert_eq!(open(keys(0), moved).unwrap_err(), SealError::Broken(0));
    }

    #[tokio::test]
    async fn a_record_that_came_before_does_not_open_again() {
        let mut repeated = body(0).await;
        repeated.copy_within(..RECORD + TAG, RECORD + TAG);
        assert_eq!(open(keys(0), repeated).unwrap_err(), SealError::Broken(RECORD as u64));
        assert_eq!(open(keys(1), body(0).await).unwrap_err(), SealError::Broken(0), "another transfer's");
    }

    #[tokio::test]
    async fn a_body_that_was_cut_does_not_open() {
        let sealed = body(0).await;
        for left in [RECORD + TAG, 2 * (RECORD + TAG), sealed.len() - 1] {
            assert_eq!(open(keys(0), sealed[..left].to_vec()).unwrap_err(), SealError::Broken(0));
            // Whoever knows the length from elsewhere sees where it ends.
            let mut opener = Opener::new(keys(0), sealed.len() as u64).unwrap();
            opener.push(sealed[..left].to_vec().into()).unwrap();
            assert_eq!(opener.end(), Err(SealError::Short((left / (RECORD + TAG) * RECORD) as u64)));
        }
        let mut opener = Opener::new(keys(0), sealed.len() as u64).unwrap();
        opener.push(sealed.into()).unwrap();
        assert_eq!(opener.push(Bytes::from_static(b"more")), Err(SealError::Broken(LENGTH as u64)));
    }
}
