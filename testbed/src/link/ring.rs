//! The frames under way in one direction of a link: a bounded ring of bytes, written by reading a device straight into it
//! and read by writing to the other device straight from it.

use std::collections::VecDeque;

use super::scheduler::Nanos;
use super::vnet::MAX_RECORD;

/// Frames in the order in which they leave.
pub struct FrameRing {
    bytes: Box<[u8]>,
    entries: VecDeque<Entry>,
    /// Where the next frame goes, unless it would not fit before the end.
    tail: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    len: usize,
    due: Nanos,
}

impl FrameRing {
    /// Room for `capacity` bytes, at least two of the longest frames. Pages are taken as they are first used.
    pub fn new(capacity: usize) -> Self {
        let bytes = vec![0; capacity.max(2 * MAX_RECORD)].into_boxed_slice();
        Self { bytes, entries: VecDeque::with_capacity(1024), tail: 0 }
    }

    /// Room for the longest frame, to be filled and then kept by [`push`](Self::push); `None` if the ring is full.
    pub fn slot(&mut self) -> Option<&mut [u8]> {
        let start = self.next_start()?;
        self.tail = start;
        Some(&mut self.bytes[start..start + MAX_RECORD])
    }

    /// Keeps the first `len` bytes of the last [`slot`](Self::slot) until `due`.
    ///
    /// # Panics
    /// If `len` is more than a slot has.
    pub fn push(&mut self, len: usize, due: Nanos) {
        assert!(len <= MAX_RECORD, "a frame of {len} bytes in a slot of {MAX_RECORD}");
        self.entries.push_back(Entry { start: self.tail, len, due });
        self.tail += len;
    }

    /// Keeps the last frame a second time; it takes no room.
    pub fn repeat(&mut self) {
        self.entries.extend(self.entries.back().copied());
    }

    /// Copies `frame` in; false if the ring is full.
    pub fn push_copy(&mut self, frame: &[u8], due: Nanos) -> bool {
        let Some(slot) = self.slot() else { return false };
        slot[..frame.len()].copy_from_slice(frame);
        self.push(frame.len(), due);
        true
    }

    /// The first frame and when it leaves.
    pub fn front(&self) -> Option<(Nanos, &[u8])> {
        let first = self.entries.front()?;
        Some((first.due, &self.bytes[first.start..first.start + first.len]))
    }

    /// Forgets the first frame.
    pub fn pop(&mut self) {
        self.entries.pop_front();
        // Starting over at the beginning keeps a ring that is mostly empty within the processor's cache.
        if self.entries.is_empty() {
            self.tail = 0;
        }
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.tail = 0;
    }

    /// Makes room for `capacity` bytes where there is less; what is held stays.
    pub fn grow(&mut self, capacity: usize) {
        if self.bytes.len() >= capacity {
            return;
        }
        let mut larger = Self::new(capacity);
        for entry in &self.entries {
            larger.push_copy(&self.bytes[entry.start..entry.start + entry.len], entry.due);
        }
        *self = larger;
    }

    fn next_start(&self) -> Option<usize> {
        let Some(first) = self.entries.front() else { return Some(0) };
        let after = |start: usize, end: usize| (end.saturating_sub(start) >= MAX_RECORD).then_some(start);
        if self.tail > first.start {
            after(self.tail, self.bytes.len()).or_else(|| after(0, first.start))
        } else {
            after(self.tail, first.start)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_ring_says_so_and_empties() {
        let mut ring = FrameRing::new(0);
        let frame = vec![7; MAX_RECORD];
        assert!(ring.push_copy(&frame, Nanos(1)));
        assert!(ring.push_copy(&frame, Nanos(2)));
        assert!(!ring.push_copy(&frame, Nanos(3)));
        assert_eq!(ring.front(), Some((Nanos(1), &frame[..])));
        ring.pop();
        assert!(ring.push_copy(&frame, Nanos(3)));
        assert!(!ring.push_copy(&frame, Nanos(4)));
    }

    #[test]
    fn a_ring_grows_with_what_it_holds() {
        let mut ring = FrameRing::new(0);
        let frame = vec![7; MAX_RECORD];
        assert!(ring.push_copy(&frame, Nanos(1)));
        ring.repeat();
        ring.grow(8 * MAX_RECORD);
        assert!((0..4).all(|n| ring.push_copy(&[n], Nanos(3))));
        let mut held = Vec::new();
        while let Some((due, bytes)) = ring.front() {
            held.push((due.0, bytes.len()));
            ring.pop();
        }
        assert_eq!(held, [(1, MAX_RECORD), (1, MAX_RECORD), (3, 1), (3, 1), (3, 1), (3, 1)]);
        assert!(ring.push_copy(&frame, Nanos(4)));
        ring.clear();
        assert_eq!(ring.front(), None);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(
            steps in proptest::collection::vec(proptest::option::of(1_usize..MAX_RECORD), 1..400),
        ) {
            let mut ring = FrameRing::new(4 * MAX_RECORD);
            let mut model = VecDeque::new();
            for (n, step) in steps.into_iter().enumerate() {
                if let Some(len) = step {
                    let frame = vec![n as u8; len];
                    let held: usize = model.iter().map(|(_, f): &(Nanos, Vec<u8>)| f.len()).sum();
                    if ring.push_copy(&frame, Nanos(n as u64)) {
                        model.push_back((Nanos(n as u64), frame));
                    } else {
                        prop_assert!(held > 2 * MAX_RECORD);
                    }
                } else {
                    ring.pop();
                    model.pop_front();
                }
                prop_assert_eq!(ring.front(), model.front().map(|(due, f)| (*due, &f[..])));
            }
        }
    }
}
