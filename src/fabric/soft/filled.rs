//! Which of a region's bytes its peer has placed: what it says to have written can be held against that.

use std::ops::Range;

/// Gaps that are kept track of. Whoever writes in any sensible order leaves fewer.
const MOST_PARTS: usize = 64;

/// The parts that were written, in order, none touching the next.
#[derive(Debug, Default)]
pub(super) struct Filled {
    parts: Vec<Range<u64>>,
}

impl Filled {
    /// Takes a segment in.
    pub(super) fn add(&mut self, to: u64, length: usize) {
        let mut new = to..to.saturating_add(length as u64);
        // What is written in order is one part that grows.
        if let Some(last) = self.parts.last_mut()
            && (last.start..=last.end).contains(&new.start)
        {
            last.end = last.end.max(new.end);
            return;
        }
        let first = self.parts.partition_point(|part| part.end < new.start);
        let behind = self.parts.partition_point(|part| part.start <= new.end);
        if let Some(touched) = self.parts.get(first..behind).filter(|touched| !touched.is_empty()) {
            new.start = touched.iter().map(|part| part.start).fold(new.start, u64::min);
            new.end = touched.iter().map(|part| part.end).fold(new.end, u64::max);
        } else if self.parts.len() >= MOST_PARTS {
            return;
        }
        self.parts.splice(first..behind.max(first), [new]);
    }

    /// Lets go of what was written there.
    pub(super) fn forget(&mut self, gone: &Range<u64>) {
        if gone.is_empty() {
            return;
        }
        let left =
            |part: &Range<u64>| [part.start..part.end.min(gone.start), part.start.max(gone.end)..part.end];
        self.parts = self.parts.iter().flat_map(left).filter(|part| !part.is_empty()).collect();
    }

    /// Whether all of these are there.
    pub(super) fn holds(&self, bytes: &Range<u64>) -> bool {
        let within = |part: &Range<u64>| part.start <= bytes.start && bytes.end <= part.end;
        bytes.is_empty() || self.parts.iter().any(within)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_filled_is_what_was_written_and_not_forgotten(
            steps in prop::collection::vec((0..200_u64, 0..40_usize, prop::bool::weighted(0.3)), 0..40),
            asked in prop::collection::vec((0..250_u64, 0..40_u64), 10),
        ) {
            let (mut filled, mut bytes) = (Filled::default(), [false; 300]);
            for (to, length, forget) in steps {
                match forget {
                    true => filled.forget(&(to..to + length as u64)),
                    false => filled.add(to, length),
                }
                let to = usize::try_from(to).unwrap();
                bytes[to..to + length].fill(!forget);
            }
            for (start, length) in asked {
                let there = (start..start + length).all(|at| bytes[usize::try_from(at).unwrap()]);
                prop_assert_eq!(filled.holds(&(start..start + length)), there);
            }
        }
    }

    #[test]
    fn what_it_takes_is_bounded() {
        let mut filled = Filled::default();
        (1..100_000).for_each(|at| filled.add(at * 2, 1));
        assert_eq!(filled.parts.len(), MOST_PARTS);
        filled.add(0, 1_000_000);
        assert!(filled.holds(&(0..1_000_000)) && filled.parts.len() == 1);
    }
}
