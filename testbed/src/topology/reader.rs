//! Reads a parsed TOML document key by key, and notes everything that is wrong on the way instead of stopping at the
//! first. (serde stops.)

use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::error::{Findings, nearest};
use super::keys::Keys;
use super::units::{Probability, UnitError};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

impl<T> At<T> {
    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> At<U> {
        At { value: f(self.value), span: self.span }
    }
}

/// A table of the document, whose keys are known.
pub(super) struct Section<'d> {
    table: &'d DeTable<'d>,
    pub(super) span: Range<usize>,
}

impl<'d> Section<'d> {
    /// Notes every key that such a table does not have.
    pub(super) fn open(
        table: &'d DeTable<'d>,
        span: Range<usize>,
        keys: &Keys,
        findings: &mut Findings,
    ) -> Self {
        for key in table.keys() {
            let name = key.get_ref();
            if keys.keys.iter().any(|known| known.name == name) {
                continue;
            }
            let names = || keys.keys.iter().map(|key| key.name);
            let help = match nearest(name, names()) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => format!("{} has: {}", keys.what, names().collect::<Vec<_>>().join(", ")),
            };
            findings
                .add(key.span(), format!("unknown key \"{name}\" in {}", keys.what))
                .label("not known")
                .help(help);
        }
        Self { table, span }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.table.get(key)
    }

    /// Where the key itself stands; the section if it is not there.
    pub(super) fn key_span(&self, key: &str) -> Range<usize> {
        self.table.get_key_value(key).map_or_else(|| self.span.clone(), |(key, _)| key.span())
    }

    pub(super) fn text(&self, key: &str, findings: &mut Findings) -> Option<At<&'d str>> {
        text(key, self.get(key)?, findings)
    }

    /// A text that reads as a `T`, such as a quantity.
    pub(super) fn parsed<T: FromStr<Err = UnitError>>(
        &self,
        key: &str,
        findings: &mut Findings,
    ) -> Option<At<T>> {
        let text = self.quantity(key, findings)?;
        note(text.value.parse(), text.span, findings)
    }

    /// As [`parsed`](Self::parsed), but `"unlimited"` reads as `None`.
    pub(super) fn limit<T: FromStr<Err = UnitError>>(
        &self,
        key: &str,
        findings: &mut Findings,
    ) -> Option<At<Option<T>>> {
        let text = self.quantity(key, findings)?;
        if text.value == "unlimited" {
            return Some(At { value: None, span: text.span });
        }
        note(text.value.parse().map(Some), text.span, findings)
    }

    /// A number, or a text with a per cent sign.
    pub(super) fn probability(&self, key: &str, findings: &mut Findings) -> Option<At<Probability>> {
        let value = self.get(key)?;
        let read = match value.get_ref() {
            DeValue::String(text) => text.parse(),
            DeValue::Float(number) => plain(number.as_str()).parse(),
            DeValue::Integer(number) => plain(number.as_str()).parse(),
            other => {
                wrong_type(key, "a probability, such as \"0.1 %\"", other, value.span(), findings);
                return None;
            }
        };
        note(read, value.span(), findings)
    }

    pub(super) fn integer(&self, key: &str, findings: &mut Findings) -> Option<At<i64>> {
        let value = self.get(key)?;
        let span = value.span();
        let DeValue::Integer(number) = value.get_ref() else {
            wrong_type(key, "a whole number", value.get_ref(), span, findings);
            return None;
        };
        match i64::from_str_radix(&plain(number.as_str()), number.radix()) {
            Ok(value) => Some(At { value, span }),
            Err(_) => {
                findings.add(span, format!("\"{key}\" is a number that cannot be used"));
                None
            }
        }
    }

    pub(super) fn table(&self, key: &str, findings: &mut Findings) -> Option<At<&'d DeTable<'d>>> {
        table(key, self.get(key)?, findings)
    }

    fn quantity(&self, key: &str, findings: &mut Findings) -> Option<At<&'d str>> {
        let value = self.get(key)?;
        // The commonest slip gets an answer of its own.
        if let DeValue::Integer(_) | DeValue::Float(_) = value.get_ref() {
            let example = match key {
                "rate" => "10 Gbit/s",
                "queue" => "1 bdp",
                _ => "25 ms",
            };
            findings
                .add(value.span(), format!("\"{key}\" has no unit"))
                .label("a bare number")
                .help(format!("write it as a text with its unit: \"{example}\""));
            return None;
        }
        text(key, value, findings)
    }
}

/// The text that a value must be.
pub(super) fn text<'d>(
    what: &str,
    value: &'d Spanned<DeValue<'d>>,
    findings: &mut Findings,
) -> Option<At<&'d str>> {
    let span = value.span();
    match value.get_ref() {
        DeValue::String(text) => Some(At { value: text, span }),
        other => {
            wrong_type(what, "a text", other, span, findings);
            None
        }
    }
}

/// The table that a value must be.
pub(super) fn table<'d>(
    what: &str,
    value: &'d Spanned<DeValue<'d>>,
    findings: &mut Findings,
) -> Option<At<&'d DeTable<'d>>> {
    match value.get_ref() {
        DeValue::Table(table) => Some(At { value: table, span: value.span() }),
        other => {
            wrong_type(what, "a table", other, value.span(), findings);
            None
        }
    }
}

/// The entries of a table in the order of the file.
pub(super) fn in_order<'d>(
    table: &'d DeTable<'d>,
) -> Vec<(&'d Spanned<DeString<'d>>, &'d Spanned<DeValue<'d>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Notes that a value is of the wrong type.
pub(super) fn wrong_type(
    what: &str,
    wanted: &str,
    value: &DeValue<'_>,
    span: Range<usize>,
    findings: &mut Findings,
) {
    let article = if matches!(value, DeValue::Integer(_) | DeValue::Array(_)) { "an" } else { "a" };
    findings
        .add(span, format!("\"{what}\" must be {wanted}, not {article} {}", value.type_str()))
        .label(format!("{article} {}", value.type_str()));
}

fn note<T>(read: Result<T, UnitError>, span: Range<usize>, findings: &mut Findings) -> Option<At<T>> {
    match read {
        Ok(value) => Some(At { value, span }),
        Err(error) => {
            let finding = findings.add(span, error.message);
            if let Some(help) = error.help {
                finding.help(help);
            }
            None
        }
    }
}

/// A TOML number without its digit separators.
fn plain(number: &str) -> String {
    number.replace('_', "")
}
