//! Times in goldens: a run's times are never quite the golden's, so a time within the tolerance of the golden's counts as
//! the same, and is shown as the golden has it.
//!
//! On a virtual clock computing takes no time, but reading the clock does (256 ns each), and how often the programs read
//! it depends on what came first. That is where runs differ; docs/guide.md has what was measured.

use similar::{Algorithm, DiffOp, capture_diff_slices};

/// How far a time may be from the golden's in any case, in microseconds.
pub const TOLERANCE_US: u64 = 500;

/// A time may also be off by this part of the golden's, unless the scenario allows more: a long transfer adds up what its
/// packets differ by.
pub const TOLERANCE_PART: f64 = 0.001;

/// The unit that each time in a golden ends in.
const UNIT: &str = "ms";

/// Microseconds as a golden has them.
pub(super) fn text(us: i64) -> String {
    let sign = if us < 0 { "-" } else { "" };
    let us = us.unsigned_abs();
    format!("{sign}{}.{:03} {UNIT}", us / 1000, us % 1000)
}

/// Whether a time, in microseconds, counts as the golden's, of which it may be off by `part` (0 to 1).
pub(super) fn is_near(golden: i64, seen: i64, part: f64) -> bool {
    let off = golden.abs_diff(seen);
    // Exact up to 2^53 us, which is 285 years.
    off <= TOLERANCE_US || off as f64 <= golden.unsigned_abs() as f64 * part
}

/// What was seen, with the golden's times wherever they are near the golden's.
pub(super) fn settle(golden: &str, seen: &str, is_near: impl Fn(i64, i64) -> bool) -> String {
    let (old, new): (Vec<Line<'_>>, Vec<Line<'_>>) =
        (golden.lines().map(Line::parse).collect(), seen.lines().map(Line::parse).collect());
    let mut settled = Vec::new();
    for op in capture_diff_slices(Algorithm::Myers, &words(&old), &words(&new)) {
        match op {
            DiffOp::Equal { old_index, new_index, len } => {
                let pairs = old[old_index..old_index + len].iter().zip(&new[new_index..new_index + len]);
                settled.extend(pairs.map(|(old, new)| {
                    let near = old.times.iter().zip(&new.times).all(|(a, b)| is_near(*a, *b));
                    if near { old.text } else { new.text }
                }));
            }
            DiffOp::Insert { new_index, new_len, .. } | DiffOp::Replace { new_index, new_len, .. } => {
                settled.extend(new[new_index..new_index + new_len].iter().map(|line| line.text));
            }
            DiffOp::Delete { .. } => {}
        }
    }
    settled.join("\n")
}

fn words<'a>(lines: &[Line<'a>]) -> Vec<Vec<&'a str>> {
    lines.iter().map(|line| line.words.clone()).collect()
}

/// A line, and the times in it apart from its words.
struct Line<'a> {
    text: &'a str,
    words: Vec<&'a str>,
    times: Vec<i64>,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Self {
        let (mut words, mut times) = (Vec::new(), Vec::new());
        let parts: Vec<&str> = text.split(' ').collect();
        for (index, part) in parts.iter().enumerate() {
            let next = parts.get(index + 1).map(|next| next.trim_end_matches([',', ';']));
            match parse_ms(part).filter(|_| next == Some(UNIT)) {
                Some(time) => times.push(time),
                None => words.push(*part),
            }
        }
        Self { text, words, times }
    }
}

/// `12.345` -> 12345.
fn parse_ms(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let (whole, thousandths) = digits.split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if thousandths.len() != 3 || !is_number(whole) || !is_number(thousandths) {
        return None;
    }
    let (whole, thousandths): (i64, i64) = (whole.parse().ok()?, thousandths.parse().ok()?);
    Some(sign * whole.checked_mul(1000)?.checked_add(thousandths)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOLDEN: &str =
        "client\n  request 1: 0.500 ms\n  2 x write: from 50.010 ms to 75.020 ms\nend: -1.000 ms";

    fn within(us: u64) -> impl Fn(i64, i64) -> bool {
        move |golden, seen| golden.abs_diff(seen) <= us
    }

    #[test]
    fn half_a_millisecond_or_a_thousandth_is_near() {
        let is_near = |golden, seen| super::is_near(golden, seen, TOLERANCE_PART);
        assert!(is_near(100_000, 100_500) && !is_near(100_000, 100_501));
        assert!(is_near(-3_000, -3_500) && !is_near(-3_000, -3_501));
        assert!(is_near(48_000_000, 47_952_000) && !is_near(48_000_000, 47_951_999));
        assert!(super::is_near(1_000_000, 1_050_000, 0.05) && !super::is_near(1_000_000, 1_050_001, 0.05));
    }

    #[test]
    fn what_is_near_is_the_goldens() {
        let seen = "client\n  request 1: 0.510 ms\n  2 x write: from 50.000 ms to 75.029 ms\nend: -1.010 ms";
        assert_eq!(settle(GOLDEN, seen, within(10)), GOLDEN);
        // One time of a line that is too far shows the line as it was seen.
        let expected =
            "client\n  request 1: 0.500 ms\n  2 x write: from 50.000 ms to 75.029 ms\nend: -1.000 ms";
        let far = seen.replace("-1.010", "-1.009").replace("0.510", "0.509");
        assert_eq!(settle(GOLDEN, &far, within(9)), expected);
    }

    #[test]
    fn another_line_is_not_taken_for_its_neighbour() {
        let seen = GOLDEN.replace("request 1", "request 2");
        assert_eq!(settle(GOLDEN, &seen, within(1000)), seen);
        let shorter = GOLDEN.replace("  request 1: 0.500 ms\n", "");
        assert_eq!(settle(GOLDEN, &shorter, within(0)), shorter);
        let longer = GOLDEN.replace("end", "  receive: 1.000 ms\nend");
        assert_eq!(settle(GOLDEN, &longer.replace("0.500", "0.501"), within(1)), longer);
    }

    #[test]
    fn times_are_written_to_the_microsecond() {
        let all = [(0, "0.000 ms"), (-1, "-0.001 ms"), (50_006, "50.006 ms"), (1_234_567, "1234.567 ms")];
        for (us, expected) in all {
            assert_eq!(text(us), expected);
            assert_eq!(parse_ms(expected.trim_end_matches(" ms")), Some(us));
        }
        for other in ["1.2", "1.2345", "x.123", "1,234", ".123", "--1.234", "99999999999999999999.000"] {
            assert_eq!(parse_ms(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_where_nothing_is_near(a in "\\PC*", b in "[ -~\n]*") {
            prop_assert_eq!(settle(&b, &b, within(0)), b.lines().collect::<Vec<_>>().join("\n"));
            let _ = settle(&a, &b, within(5));
        }
    }
}
