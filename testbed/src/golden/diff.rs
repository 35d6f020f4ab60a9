//! What differs, for people: a unified diff, in colour where there is a terminal.

use std::fmt::Write as _;

use similar::{ChangeTag, DiffTag, TextDiff};

/// Where two texts differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff {
    /// The line of the expected text where the first difference is, from 1.
    pub first_line: usize,
    /// The hunks, each line with what it is.
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Hunk(String),
    Same(String),
    Expected(String),
    Seen(String),
}

impl Diff {
    /// Compares; `None` if they are the same.
    pub fn new(expected: &str, seen: &str) -> Option<Self> {
        if expected == seen {
            return None;
        }
        let diff = TextDiff::from_lines(expected, seen);
        let mut lines = Vec::new();
        // Where something was added, it stands where the old text goes on.
        let first = diff.ops().iter().find(|op| op.tag() != DiffTag::Equal);
        let first_line = first.map_or(0, |op| op.old_range().start) + 1;
        for hunk in diff.unified_diff().context_radius(3).iter_hunks() {
            lines.push(Line::Hunk(hunk.header().to_string()));
            for change in hunk.iter_changes() {
                let text = change.value().trim_end_matches('\n').to_owned();
                lines.push(match change.tag() {
                    ChangeTag::Equal => Line::Same(text),
                    ChangeTag::Delete => Line::Expected(text),
                    ChangeTag::Insert => Line::Seen(text),
                });
            }
        }
        Some(Self { first_line, lines })
    }

    /// The hunks as text. `-` is what the golden expects, `+` what was seen.
    pub fn render(&self, color: bool) -> String {
        let mut out = String::new();
        for line in &self.lines {
            let (style, sign, text) = match line {
                Line::Hunk(text) => ("\x1b[36m", "", text),
                Line::Same(text) => ("", " ", text),
                Line::Expected(text) => ("\x1b[31m", "-", text),
                Line::Seen(text) => ("\x1b[32m", "+", text),
            };
            let (on, off) = if color && !style.is_empty() { (style, "\x1b[0m") } else { ("", "") };
            let _ = writeln!(out, "{on}{sign}{text}{off}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "a\nb\nc\nd\ne\nf\ng\nh";

    #[test]
    fn the_same_is_no_diff() {
        assert_eq!(Diff::new(OLD, OLD), None);
    }

    #[test]
    fn a_changed_line_is_shown_with_its_place_and_surroundings() {
        let diff = Diff::new(OLD, &OLD.replace('e', "E")).unwrap();
        assert_eq!(diff.first_line, 5);
        assert_eq!(diff.render(false), "@@ -2,7 +2,7 @@\n b\n c\n d\n-e\n+E\n f\n g\n h\n");
        let colored = diff.render(true);
        assert!(colored.contains("\x1b[31m-e\x1b[0m\n\x1b[32m+E\x1b[0m\n"), "{colored:?}");
    }

    #[test]
    fn an_added_line_is_placed_where_the_old_text_goes_on() {
        assert_eq!(Diff::new("a\nc", "a\nb\nc").unwrap().first_line, 2);
        assert_eq!(Diff::new("", "a").unwrap().first_line, 1);
        assert_eq!(Diff::new("a\nb", "a").unwrap().first_line, 1, "the newline before it went as well");
    }
}
