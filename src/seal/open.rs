//! The taker's side: records become the body again, or an error.

use bytes::{Bytes, BytesMut};

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

    /// Takes a piece; gives what opens with it, which may be nothing yet. It opens where it lies: a piece that begins with a
    /// record is not copied, if nobody else holds it. At most one record is held back.
    ///
    /// # Errors
    ///
    /// [`SealError::Broken`] if a record is not what was sealed for its place. The transfer is over then.
    pub fn push(&mut self, piece: Bytes) -> Result<Bytes, SealError> {
        let mut bytes = if self.begun.is_empty() {
            BytesMut::from(piece)
        } else {
            self.begun.extend_from_slice(&piece);
            std::mem::take(&mut self.begun)
        };
        // What is sealed is read from `at`; what is opened goes to `end`, which is never beyond it.
        let (mut at, mut end) = (0, 0);
        while at < bytes.len() {
            let record = match self.next_record() {
                0 => return Err(SealError::Broken(self.opened)),
                whole => at..at + whole,
            };
            if record.end > bytes.len() {
                self.begun = if at == 0 { std::mem::take(&mut bytes) } else { BytesMut::from(&bytes[at..]) };
                break;
            }
            let number = self.opened / RECORD as u64;
            let (nonce, place) = (self.keys.nonce(number), place(number, self.length));
            let room = &mut bytes[end..record.end];
            let plain = self.keys.key.open_within(nonce, place, room, record.start - end..);
            let plain = plain.map_err(|_| SealError::Broken(self.opened))?.len();
            self.opened += plain as u64;
            (at, end) = (record.end, end + plain);
        }
        bytes.truncate(end);
        Ok(bytes.freeze())
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
    use super::super::{SECRET, Secret, seal};
    use super::*;
    use crate::header::{Mode, TransferId};

    const LENGTH: usize = 2 * RECORD + 100;

    fn keys(number: u64) -> Keys {
        Secret::new(&[1; SECRET]).transfer(Mode::ServerWrites, TransferId([2; 16]), number)
    }

    fn body(number: u64) -> Vec<u8> {
        seal(keys(number), &[9; LENGTH])
    }

    #[test]
    fn a_changed_bit_anywhere_does_not_open() {
        let sealed = body(0);
        let whole = RECORD + TAG;
        for at in [0, 1, RECORD - 1, RECORD, whole - 1, whole, 2 * whole, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 0x40;
            let broken = (at / whole * RECORD) as u64;
            assert_eq!(open(keys(0), changed).unwrap_err(), SealError::Broken(broken));
        }
        assert_eq!(open(keys(0), sealed).unwrap(), vec![9; LENGTH]);
    }

    #[test]
    fn records_in_another_order_do_not_open() {
        let mut moved = body(0);
        let (first, second) = moved.split_at_mut(RECORD + TAG);
        first.swap_with_slice(&mut second[..RECORD + TAG]);
        assert_eq!(open(keys(0), moved).unwrap_err(), SealError::Broken(0));
    }

    #[test]
    fn a_record_that_came_before_does_not_open_again() {
        let mut repeated = body(0);
        repeated.copy_within(..RECORD + TAG, RECORD + TAG);
        assert_eq!(open(keys(0), repeated).unwrap_err(), SealError::Broken(RECORD as u64));
        assert_eq!(open(keys(1), body(0)).unwrap_err(), SealError::Broken(0), "another transfer's");
    }

    #[test]
    fn a_body_that_was_cut_does_not_open() {
        let sealed = body(0);
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
