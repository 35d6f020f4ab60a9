//! Quantities as people write them: `10 Gbit/s`, `25 ms`, `64 MiB`, `1 bdp`, `0.1 %`.
//!
//! A number without a unit is refused: 100 megabits and 100 megabytes have been mistaken for each other too often.
//! Parsing is exact (no floating point but for probabilities), so what is printed reads back as the same value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Why a quantity could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UnitError {
    /// What is wrong with it.
    pub message: String,
    /// What was meant, or how to write it.
    pub help: Option<String>,
}

impl UnitError {
    pub(super) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: Some(help.into()) }
    }
}

/// Bits per second, from 1 kbit/s to 1 Tbit/s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// A length of time, in whole nanoseconds, up to [`Time::MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// How much may wait for a link's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// This many bytes.
    Bytes(Size),
    /// This many thousandths of the link's bandwidth-delay product: its rate by its round trip.
    MilliBdp(u32),
}

/// A chance, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Probability(pub f64);

const RATE_UNITS: &[(&str, u64)] = &[
    ("bit/s", 1),
    ("kbit/s", 1_000),
    ("Mbit/s", 1_000_000),
    ("Gbit/s", 1_000_000_000),
    ("Tbit/s", 1_000_000_000_000),
];
const TIME_UNITS: &[(&str, u64)] = &[("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];
const SIZE_UNITS: &[(&str, u64)] = &[("B", 1), ("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
/// Read but never printed.
const BINARY_SIZE_UNITS: &[(&str, u64)] =
    &[("KB", 1_000), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

impl Rate {
    /// Below this a full frame takes seconds, which nobody means.
    pub const MIN: Self = Self(1_000);
    /// Far beyond what a machine can emulate.
    pub const MAX: Self = Self(1_000_000_000_000);
}

impl Time {
    /// Longer than any link on Earth or to the Moon.
    pub const MAX: Self = Self(Duration::from_secs(100));
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const EXAMPLE: &str = "10 Gbit/s";
        let (number, unit) = split(text, "rate", EXAMPLE)?;
        let wanted = unit.to_ascii_lowercase();
        let wanted = wanted.strip_suffix("/s").unwrap_or(&wanted);
        let Some(&(_, factor)) = RATE_UNITS
            .iter()
            .find(|(name, _)| name.strip_suffix("/s").is_some_and(|name| name.eq_ignore_ascii_case(wanted)))
        else {
            return Err(unknown_unit(text, number, unit, "rate", EXAMPLE, RATE_UNITS));
        };
        let rate = Self(scaled(text, number, factor)?);
        if rate < Self::MIN || rate > Self::MAX {
            return Err(UnitError::new(
                format!("a rate of \"{text}\" is impossible"),
                format!(
                    "from {} to {}; leave it out, or write \"unlimited\", for none",
                    Self::MIN,
                    Self::MAX
                ),
            ));
        }
        Ok(rate)
    }
}

impl FromStr for Time {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const EXAMPLE: &str = "25 ms";
        let (number, unit) = split(text, "time", EXAMPLE)?;
        let unit = if unit == "µs" || unit == "μs" { "us" } else { unit };
        let Some(&(_, factor)) = TIME_UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(unknown_unit(text, number, unit, "time", EXAMPLE, TIME_UNITS));
        };
        let time = Self(Duration::from_nanos(scaled(text, number, factor)?));
        if time > Self::MAX {
            return Err(UnitError::new(
                format!("a time of \"{text}\" is impossible"),
                format!("at most {}", Self::MAX),
            ));
        }
        Ok(time)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const EXAMPLE: &str = "64 MiB";
        let (number, unit) = split(text, "size", EXAMPLE)?;
        let Some(&(_, factor)) = SIZE_UNITS.iter().chain(BINARY_SIZE_UNITS).find(|(name, _)| *name == unit)
        else {
            return Err(unknown_unit(text, number, unit, "size", EXAMPLE, SIZE_UNITS));
        };
        Ok(Self(scaled(text, number, factor)?))
    }
}

impl FromStr for Queue {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const EXAMPLE: &str = "1 bdp\" or \"8 MiB";
        let (number, unit) = split(text, "queue", EXAMPLE)?;
        if !unit.eq_ignore_ascii_case("bdp") {
            return text.parse().map(Self::Bytes);
        }
        let milli = scaled(text, number, 1_000)?;
        u32::try_from(milli)
            .ok()
            .filter(|&milli| (1..=100_000).contains(&milli))
            .map(Self::MilliBdp)
            .ok_or_else(|| {
                UnitError::new(
                    format!("a queue of \"{text}\" is impossible"),
                    "from 0.001 bdp to 100 bdp, where 1 bdp is the link's rate by its round trip",
                )
            })
    }
}

impl FromStr for Probability {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (text, divisor) = match text.trim().strip_suffix('%') {
            Some(number) => (number.trim_end(), 100.0),
            None => (text.trim(), 1.0),
        };
        let value: f64 = text.parse().map_err(|_| {
            UnitError::new(format!("\"{text}\" is no probability"), "for example \"0.1 %\" or 0.001")
        })?;
        Self::checked(value / divisor)
    }
}

impl Probability {
    /// Accepts 0 to 1.
    pub fn checked(value: f64) -> Result<Self, UnitError> {
        if (0.0..=1.0).contains(&value) {
            return Ok(Self(value));
        }
        let help = if value > 1.0 && value <= 100.0 {
            format!("a bare number is from 0 to 1; did you mean \"{value} %\"?")
        } else {
            "it is from 0 to 1, or from \"0 %\" to \"100 %\"".to_owned()
        };
        Err(UnitError::new(format!("a probability of {value} is impossible"), help))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, RATE_UNITS)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX), TIME_UNITS)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, SIZE_UNITS)
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(size) => size.fmt(f),
            Self::MilliBdp(milli) => write!(f, "{} bdp", Decimal(u64::from(*milli), 1_000)),
        }
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A quantity's number and unit.
fn split<'t>(text: &'t str, what: &str, example: &str) -> Result<(&'t str, &'t str), UnitError> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    if number.is_empty() {
        let message = match text.strip_prefix('-') {
            Some(_) => format!("a {what} cannot be negative, as \"{text}\" is"),
            None => format!("\"{text}\" is no {what}"),
        };
        return Err(UnitError::new(message, format!("a number and its unit, such as \"{example}\"")));
    }
    if unit.is_empty() {
        return Err(UnitError::new(
            format!("the {what} \"{text}\" has no unit"),
            format!("write a {what} as \"{example}\""),
        ));
    }
    Ok((number, unit))
}

/// `number` by `factor`, rounded down to a whole one.
fn scaled(text: &str, number: &str, factor: u64) -> Result<u64, UnitError> {
    let bad = || UnitError { message: format!("\"{text}\" is not a number that can be used"), help: None };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.replace('_', "");
    let (whole, mut fraction) = (digits(whole), digits(fraction));
    // Beyond twelve digits a fraction is below one of every base unit.
    fraction.truncate(12);
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(bad());
    }
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let scale = 10_u128.pow(fraction.len() as u32);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| bad())? };
    let value = u128::from(whole) * u128::from(factor) + fraction * u128::from(factor) / scale;
    u64::try_from(value).map_err(|_| bad())
}

fn unknown_unit(
    text: &str,
    number: &str,
    unit: &str,
    what: &str,
    example: &str,
    units: &[(&str, u64)],
) -> UnitError {
    // What other tools call it: tc's "Gbps" means bytes, a browser's means bits, so neither is taken.
    let meant = match unit.chars().next().map(|c| c.to_ascii_lowercase()) {
        _ if what != "rate" => None,
        Some('k') => Some("kbit/s"),
        Some('m') => Some("Mbit/s"),
        Some('g') => Some("Gbit/s"),
        Some('t') => Some("Tbit/s"),
        _ => None,
    };
    let names: Vec<_> = units.iter().map(|(name, _)| *name).collect();
    let help = match meant.or_else(|| super::error::nearest(unit, names.iter().copied())) {
        Some(meant) => format!("did you mean \"{number} {meant}\"?"),
        None => format!("units are {}, as in \"{example}\"", names.join(", ")),
    };
    UnitError::new(format!("unknown unit \"{unit}\" in the {what} \"{text}\""), help)
}

/// Prints in the largest unit that the value reaches, exactly.
fn print(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let mut chosen = units[0];
    for &unit in units {
        if value >= unit.1 {
            chosen = unit;
        }
    }
    write!(f, "{} {}", Decimal(value, chosen.1), chosen.0)
}

/// The first by the second, a power of ten, in decimal.
struct Decimal(u64, u64);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0 / self.1)?;
        let fraction = self.0 % self.1;
        if fraction == 0 {
            return Ok(());
        }
        let digits = format!("{fraction:0width$}", width = self.1.ilog10() as usize);
        write!(f, ".{}", digits.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_read_in_every_unit() {
        assert_eq!("10 Gbit/s".parse(), Ok(Rate(10_000_000_000)));
        assert_eq!("10Gbit".parse(), Ok(Rate(10_000_000_000)));
        assert_eq!("2.5 gbit/s".parse(), Ok(Rate(2_500_000_000)));
        assert_eq!("1_000 kbit/s".parse(), Ok(Rate(1_000_000)));
        assert_eq!("25 ms".parse(), Ok(Time(Duration::from_millis(25))));
        assert_eq!("0.5 µs".parse(), Ok(Time(Duration::from_nanos(500))));
        assert_eq!("64 MiB".parse(), Ok(Size(64 << 20)));
        assert_eq!("62.5 MB".parse(), Ok(Size(62_500_000)));
        assert_eq!("1 bdp".parse(), Ok(Queue::MilliBdp(1_000)));
        assert_eq!("0.25 BDP".parse(), Ok(Queue::MilliBdp(250)));
        assert_eq!("8 MB".parse(), Ok(Queue::Bytes(Size(8_000_000))));
        assert_eq!("0.1 %".parse(), Ok(Probability(0.001)));
        assert_eq!("0.001".parse(), Ok(Probability(0.001)));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_was_meant() {
        let help = |error: UnitError| error.help.unwrap_or_default();
        assert_eq!(help("10 Gbps".parse::<Rate>().unwrap_err()), "did you mean \"10 Gbit/s\"?");
        assert_eq!(help("10".parse::<Rate>().unwrap_err()), "write a rate as \"10 Gbit/s\"");
        assert!("0 Gbit/s".parse::<Rate>().unwrap_err().message.contains("impossible"));
        assert!("2 Tbit/s".parse::<Rate>().unwrap_err().message.contains("impossible"));
        assert!("-1 ms".parse::<Time>().unwrap_err().message.contains("negative"));
        assert_eq!(help("25 msec".parse::<Time>().unwrap_err()), "did you mean \"25 ms\"?");
        assert!("1 h".parse::<Time>().is_err());
        assert!("101 s".parse::<Time>().is_err());
        assert!("64 Mb".parse::<Size>().unwrap_err().message.contains("unit \"Mb\""));
        assert!("0 bdp".parse::<Queue>().is_err());
        assert!(help(Probability::checked(5.0).unwrap_err()).contains("\"5 %\""));
        assert!("101 %".parse::<Probability>().is_err());
        assert!("1..5 ms".parse::<Time>().is_err());
        assert!("99999999999999999999 ms".parse::<Time>().is_err());
    }

    #[test]
    fn they_print_as_people_write_them() {
        assert_eq!(Rate(2_500_000_000).to_string(), "2.5 Gbit/s");
        assert_eq!(Time(Duration::from_micros(50_006)).to_string(), "50.006 ms");
        assert_eq!(Time::default().to_string(), "0 ns");
        assert_eq!(Size(62_500_000).to_string(), "62.5 MB");
        assert_eq!(Queue::MilliBdp(1_000).to_string(), "1 bdp");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(bits in 1_000..=1_000_000_000_000_u64, nanos in 0..=100_000_000_000_u64,
                                      bytes: u64, milli in 1..=100_000_u32, chance in 0.0..=1.0_f64) {
            prop_assert_eq!(Rate(bits).to_string().parse(), Ok(Rate(bits)));
            let time = Time(Duration::from_nanos(nanos));
            prop_assert_eq!(time.to_string().parse(), Ok(time));
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            prop_assert_eq!(Queue::MilliBdp(milli).to_string().parse(), Ok(Queue::MilliBdp(milli)));
            prop_assert_eq!(Probability(chance).to_string().parse(), Ok(Probability(chance)));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (text.parse::<Rate>(), text.parse::<Time>(), text.parse::<Size>());
            let _ = (text.parse::<Queue>(), text.parse::<Probability>());
        }

        #[test]
        fn nothing_like_a_quantity_panics(text in r"-?[0-9._]{0,25} ?(bit/s|Gbit|ms|µs|MB|bdp|%|x)?") {
            let _ = (text.parse::<Rate>(), text.parse::<Time>(), text.parse::<Size>());
            let _ = (text.parse::<Queue>(), text.parse::<Probability>());
        }
    }
}
