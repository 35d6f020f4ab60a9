//! What both directions of the field share: one word, then `name=value` parameters between commas.

use http::{HeaderMap, HeaderValue};

use super::{HeaderError, MAX_FIELD, RDMA};

/// A field that is taken apart: its first word and its parameters, names as they came.
pub(super) struct Parts<'a> {
    pub(super) word: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Parts<'a> {
    pub(super) fn split(value: &'a HeaderValue) -> Result<Self, HeaderError> {
        if value.len() > MAX_FIELD {
            return Err(HeaderError::TooLong(value.len()));
        }
        let text = value.to_str().map_err(|_| HeaderError::NotText)?;
        let mut elements = text.split(',').map(trim);
        let word = elements.next().unwrap_or_default();
        let mut parameters = Vec::new();
        // Empty list elements are ignored, as RFC 9110, section 5.6.1.2 asks of recipients.
        for element in elements.filter(|element| !element.is_empty()) {
            let parameter = element.split_once('=').map(|(name, value)| (trim(name), trim(value)));
            match parameter {
                Some((name, value)) if is_token(name) && is_value(value) => parameters.push((name, value)),
                _ => return Err(HeaderError::NotAParameter(excerpt(element))),
            }
        }
        Ok(Self { word, parameters })
    }

    /// The value of a parameter that may be absent.
    pub(super) fn optional(&self, name: &'static str) -> Result<Option<&'a str>, HeaderError> {
        let mut values = self.parameters.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(HeaderError::Duplicate(name)),
            (first, None) => Ok(first.map(|(_, value)| *value)),
        }
    }

    /// The value of a parameter that must be there.
    pub(super) fn required(&self, name: &'static str) -> Result<&'a str, HeaderError> {
        self.optional(name)?.ok_or(HeaderError::Missing(name))
    }
}

/// The field of a head that has one; two are an error.
pub(super) fn the_field(headers: &HeaderMap) -> Result<Option<&HeaderValue>, HeaderError> {
    let mut fields = headers.get_all(RDMA).iter();
    match (fields.next(), fields.count()) {
        (field, 0) => Ok(field),
        (_, more) => Err(HeaderError::Repeated(more + 1)),
    }
}

/// A number as the field writes them: decimal, or hexadecimal after `0x`; digits only, no sign.
pub(super) fn number(name: &'static str, value: &str, max: u64) -> Result<u64, HeaderError> {
    let (digits, radix) = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (value, 10),
    };
    // from_str_radix would take a sign.
    let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
    let parsed = if plain { u64::from_str_radix(digits, radix).ok() } else { None };
    parsed.filter(|n| *n <= max).ok_or_else(|| {
        let expected = match max {
            0xffff => "a number of 16 bits",
            0xffff_ffff => "a number of 32 bits",
            _ => "a number of 64 bits",
        };
        bad(name, value, expected)
    })
}

pub(super) fn bad(name: &'static str, value: &str, expected: &'static str) -> HeaderError {
    HeaderError::BadValue { name, value: excerpt(value), expected }
}

/// The beginning of what a peer sent, for an error message.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(40).collect()
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn is_value(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"')
}
