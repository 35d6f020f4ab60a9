//! One direction of a TLS connection: the kinds of its records. What they hold is nobody's business.

use super::Item;

/// Bytes before each record: its kind, a version, its length (RFC 8446, section 5.1).
const HEAD: usize = 5;
/// The longest record (RFC 8446, section 5.2).
const MOST: usize = (1 << 14) + 256;

/// Follows one direction; holds no more of it than a record's head.
#[derive(Debug, Default)]
pub(crate) struct TlsStream {
    head: Vec<u8>,
    /// Bytes of the record that are still to come.
    left: usize,
    /// Kinds, of which records of the same kind are one: how many there are is a matter of time.
    kinds: Vec<&'static str>,
    lost: bool,
}

/// Whether a connection begins as a TLS client's does: a handshake's record, of whichever version it is called.
pub(crate) fn looks_like_tls(beginning: &[u8]) -> bool {
    beginning.first() == Some(&22) && beginning.get(1).is_none_or(|major| *major == 3)
}

impl TlsStream {
    /// Takes the next bytes of the direction.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.lost {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if let [kind, 3, _, high, low] = self.head[..] {
                self.head.clear();
                self.left = usize::from(u16::from_be_bytes([high, low]));
                self.lost = self.left > MOST || !self.record(kind);
            } else if self.head.len() == HEAD {
                self.lost = true;
            }
        }
    }

    fn record(&mut self, kind: u8) -> bool {
        let name = match kind {
            20 => "change cipher spec",
            21 => "alert",
            22 => "handshake",
            23 => "application data",
            _ => return false,
        };
        if self.kinds.last() != Some(&name) {
            self.kinds.push(name);
        }
        true
    }

    /// The direction has ended: what it was.
    pub(crate) fn finish(self) -> Vec<Item> {
        let mut items = Vec::new();
        if !self.kinds.is_empty() {
            items.push(Item::Tls { records: self.kinds.join(", ") });
        }
        if self.lost {
            items.push(Item::Malformed("TLS: what should be a record is none".to_owned()));
        } else if self.left > 0 || !self.head.is_empty() {
            items.push(Item::Malformed("TLS: ends inside a record".to_owned()));
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn follow(pieces: &[&[u8]]) -> Vec<Item> {
        let mut stream = TlsStream::default();
        pieces.iter().for_each(|piece| stream.push(piece));
        stream.finish()
    }

    const STREAM: &[u8] = &[22, 3, 1, 0, 2, 9, 9, 20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 0, 23, 3, 3, 0, 1, 7];

    #[test]
    fn records_are_told_by_their_kinds() {
        let records = "handshake, change cipher spec, application data".to_owned();
        assert_eq!(follow(&[STREAM]), [Item::Tls { records }]);
        assert_eq!(follow(&[]), []);
        for (wrong, why) in [
            (&STREAM[..STREAM.len() - 1], "TLS: ends inside a record"),
            (&[22, 3, 1, 0xff, 0xff], "TLS: what should be a record is none"),
            (&[99, 3, 1, 0, 0], "TLS: what should be a record is none"),
            (&[22, 2, 1, 0, 0], "TLS: what should be a record is none"),
        ] {
            assert_eq!(follow(&[wrong]).last(), Some(&Item::Malformed(why.to_owned())));
        }
        assert!(looks_like_tls(STREAM) && !looks_like_tls(b"GET / HTTP/1.1") && !looks_like_tls(&[22, 1]));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(cuts in prop::collection::vec(1..9_usize, 1..9)) {
            let mut stream = TlsStream::default();
            let mut rest = STREAM;
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at(rest.len().min(*cut));
                stream.push(piece);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(stream.finish(), follow(&[STREAM]));
        }

        #[test]
        fn nothing_is_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut stream = TlsStream::default();
            stream.push(&bytes);
            stream.finish();
        }
    }
}
