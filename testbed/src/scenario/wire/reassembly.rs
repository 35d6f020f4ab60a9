//! One direction of a TCP connection: segments in any order, repeated and overlapping -> its bytes, once each, in order.

use std::collections::BTreeMap;

use super::WireError;

/// Bytes that may wait for a gap to be filled: more than a window of the fattest link of the family holds.
pub(crate) const MAX_WAITING: usize = 256 << 20;
/// Segments that may wait: the same in frames of 1,500 bytes and some, so that tiny ones cannot cost more.
pub(crate) const MAX_WAITING_SEGMENTS: usize = 1 << 18;

/// Puts a direction's segments in order. Positions are counted in 64 bits from the first byte, so nothing wraps.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    /// The sequence number of position 0; known from the SYN, or else from the first segment that was seen.
    origin: Option<u32>,
    /// All before this has been delivered.
    next: u64,
    waiting: BTreeMap<u64, Vec<u8>>,
    waiting_bytes: usize,
    /// Where the FIN stands.
    end: Option<u64>,
}

impl Reassembly {
    /// The SYN was seen: the first byte follows it.
    pub(crate) fn open(&mut self, sequence: u32) {
        self.origin.get_or_insert(sequence.wrapping_add(1));
    }

    /// Takes a segment's payload and calls `deliver` with whatever is next in order.
    pub(crate) fn push(
        &mut self,
        sequence: u32,
        payload: &[u8],
        fin: bool,
        deliver: &mut dyn FnMut(&[u8]) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let origin = *self.origin.get_or_insert(sequence);
        let Some(start) = position(origin, self.next, sequence) else {
            // From before the first byte: a keep-alive's, or of a connection that had the same ports before.
            return Ok(());
        };
        let end = start + payload.len() as u64;
        if fin {
            self.end.get_or_insert(end);
        }
        if start <= self.next {
            self.deliver(start, payload, deliver)?;
            self.drain(deliver)
        } else {
            self.wait(start, payload)
        }
    }

    /// Whether the FIN and all before it has been seen.
    pub(crate) fn is_finished(&self) -> bool {
        self.end.is_some_and(|end| self.next >= end)
    }

    /// Bytes that wait for a gap before them: if any are left when the capture ends, it has a hole.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting_bytes
    }

    fn deliver(
        &mut self,
        start: u64,
        payload: &[u8],
        deliver: &mut dyn FnMut(&[u8]) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        // What was delivered stays delivered: the overlap of a retransmission is dropped.
        let seen = usize::try_from(self.next - start).unwrap_or(usize::MAX);
        let Some(fresh) = payload.get(seen..).filter(|fresh| !fresh.is_empty()) else { return Ok(()) };
        self.next += fresh.len() as u64;
        deliver(fresh)
    }

    fn drain(&mut self, deliver: &mut dyn FnMut(&[u8]) -> Result<(), WireError>) -> Result<(), WireError> {
        while let Some(entry) = self.waiting.first_entry()
            && *entry.key() <= self.next
        {
            let (start, payload) = entry.remove_entry();
            self.waiting_bytes -= payload.len();
            self.deliver(start, &payload, deliver)?;
        }
        Ok(())
    }

    fn wait(&mut self, start: u64, payload: &[u8]) -> Result<(), WireError> {
        if payload.is_empty() || self.waiting.get(&start).is_some_and(|known| known.len() >= payload.len()) {
            return Ok(());
        }
        self.waiting_bytes += payload.len();
        if let Some(shorter) = self.waiting.insert(start, payload.to_vec()) {
            self.waiting_bytes -= shorter.len();
        }
        if self.waiting_bytes > MAX_WAITING || self.waiting.len() > MAX_WAITING_SEGMENTS {
            return Err(WireError::TooFarAhead { waiting: self.waiting_bytes });
        }
        Ok(())
    }
}

/// The position of a sequence number: the one nearest to `next`, since a window is far smaller than half the space
/// (RFC 9293, section 3.4). `None` if that is before position 0.
fn position(origin: u32, next: u64, sequence: u32) -> Option<u64> {
    // The low 32 bits of `next` as a sequence number; truncation is what is meant.
    let expected = origin.wrapping_add(next as u32);
    let distance = sequence.wrapping_sub(expected).cast_signed();
    next.checked_add_signed(i64::from(distance))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(reassembly: &mut Reassembly, segments: &[(u32, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (sequence, payload) in segments {
            let mut deliver = |bytes: &[u8]| {
                out.extend_from_slice(bytes);
                Ok(())
            };
            reassembly.push(*sequence, payload, false, &mut deliver).unwrap();
        }
        out
    }

    #[test]
    fn a_gap_waits_until_it_is_filled() {
        let mut reassembly = Reassembly::default();
        reassembly.open(99);
        assert_eq!(feed(&mut reassembly, &[(103, b"def")]), b"");
        assert_eq!(reassembly.waiting(), 3);
        assert_eq!(feed(&mut reassembly, &[(100, b"abc")]), b"abcdef");
        assert_eq!(reassembly.waiting(), 0);
    }

    #[test]
    fn a_retransmission_that_overlaps_adds_only_what_is_new() {
        let mut reassembly = Reassembly::default();
        reassembly.open(0);
        assert_eq!(feed(&mut reassembly, &[(1, b"abc"), (2, b"bcde"), (1, b"abcde"), (6, b"f")]), b"abcdef");
    }

    #[test]
    fn a_keep_alive_before_the_first_byte_is_ignored() {
        let mut reassembly = Reassembly::default();
        reassembly.open(10);
        assert_eq!(feed(&mut reassembly, &[(10, b"x"), (11, b"y")]), b"y");
    }

    #[test]
    fn it_is_finished_when_all_before_the_fin_is_there() {
        let mut reassembly = Reassembly::default();
        reassembly.open(0);
        reassembly.push(4, b"", true, &mut |_| Ok(())).unwrap();
        assert!(!reassembly.is_finished());
        reassembly.push(1, b"abc", false, &mut |_| Ok(())).unwrap();
        assert!(reassembly.is_finished());
    }

    #[test]
    fn what_may_wait_has_a_limit() {
        let mut reassembly = Reassembly::default();
        reassembly.open(0);
        let mut outcome = Ok(());
        for i in 0..=u32::try_from(MAX_WAITING_SEGMENTS).unwrap() {
            outcome = reassembly.push(2 + 2 * i, b"x", false, &mut |_| Ok(()));
        }
        assert!(matches!(outcome, Err(WireError::TooFarAhead { .. })), "{outcome:?}");
    }

    /// Cuts a stream into segments at the given places, repeats some and shuffles them within a window.
    fn segments(
        cuts: &[usize],
        length: usize,
        repeats: &[usize],
        swaps: &[(usize, usize)],
    ) -> Vec<(usize, usize)> {
        let mut edges: Vec<usize> = cuts.iter().map(|cut| cut % (length + 1)).collect();
        edges.extend([0, length]);
        edges.sort_unstable();
        let mut pieces: Vec<(usize, usize)> = edges.windows(2).map(|w| (w[0], w[1])).collect();
        for repeat in repeats {
            // Retransmissions need not have the edges of what was sent first.
            let (start, end) = pieces[repeat % pieces.len()];
            let longer = (end + repeat % 7).min(length);
            pieces.push((start.saturating_sub(repeat % 5), longer));
        }
        for (a, b) in swaps {
            let n = pieces.len();
            pieces.swap(a % n, b % n);
        }
        pieces
    }

    proptest! {
        #[test]
        fn any_cutting_repeating_and_reordering_gives_the_same_stream(
            stream in prop::collection::vec(any::<u8>(), 1..2000),
            cuts in prop::collection::vec(any::<usize>(), 0..40),
            repeats in prop::collection::vec(any::<usize>(), 0..20),
            swaps in prop::collection::vec((any::<usize>(), any::<usize>()), 0..60),
            isn in prop_oneof![any::<u32>(), (u32::MAX - 3000)..=u32::MAX],
        ) {
            let mut reassembly = Reassembly::default();
            reassembly.open(isn);
            let mut out = Vec::new();
            for (start, end) in segments(&cuts, stream.len(), &repeats, &swaps) {
                let sequence = isn.wrapping_add(1).wrapping_add(u32::try_from(start).unwrap());
                let fin = end == stream.len();
                reassembly.push(sequence, &stream[start..end], fin, &mut |bytes| {
                    out.extend_from_slice(bytes);
                    Ok(())
                }).unwrap();
            }
            prop_assert_eq!(out, stream);
            prop_assert!(reassembly.is_finished());
            prop_assert_eq!(reassembly.waiting(), 0);
        }

        #[test]
        fn a_stream_longer_than_the_sequence_space_keeps_its_place(next in any::<u64>(), offset in -1_000_000i64..1_000_000, origin: u32) {
            let next = next >> 8;
            let sequence = origin.wrapping_add(next.wrapping_add_signed(offset) as u32);
            prop_assert_eq!(position(origin, next, sequence), next.checked_add_signed(offset));
        }
    }
}
