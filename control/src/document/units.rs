//! Durations and byte counts as people write them.

use std::fmt;
use std::time::Duration;

/// What a number without a unit means where a duration is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bare {
    /// Nothing: the unit must be written.
    Refused,
    Milliseconds,
    Seconds,
}

/// A duration as it would be written in a file.
pub(super) struct Spelled(pub(super) Duration);

const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

const BYTE_UNITS: [(&str, i64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

/// `"500ms"`, `"10s"`, `"2m"`, `"1h"`: one number and one unit.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let (_, milliseconds) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_millis(number.checked_mul(*milliseconds)?))
}

/// `"64KiB"`, `"1MB"`, `"100B"`.
pub fn bytes(text: &str) -> Option<i64> {
    let (number, unit) = split(text)?;
    let (_, factor) = BYTE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<i64>().ok()?.checked_mul(*factor)
}

/// Digits, optional spaces, unit.
fn split(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    (end > 0).then(|| (&text[..end], text[end..].trim_start_matches(' ')))
}

impl Bare {
    pub(super) fn duration(self, number: i64) -> Option<Duration> {
        let number = u64::try_from(number).ok()?;
        match self {
            Self::Refused => None,
            Self::Milliseconds => Some(Duration::from_millis(number)),
            Self::Seconds => Some(Duration::from_secs(number)),
        }
    }

    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Refused => "",
            Self::Milliseconds => " or a number of milliseconds",
            Self::Seconds => " or a number of seconds",
        }
    }
}

impl fmt::Display for Spelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        let fits = |(_, unit): &&(&str, u64)| milliseconds.is_multiple_of(u128::from(*unit));
        let largest = DURATION_UNITS.iter().rev().find(fits);
        let (name, unit) = largest.filter(|_| milliseconds > 0).unwrap_or(&("s", 1_000));
        write!(f, "{}{name}", milliseconds / u128::from(*unit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_one_number_and_one_unit() {
        let check = |text, milliseconds: Option<u64>| {
            assert_eq!(duration(text), milliseconds.map(Duration::from_millis), "{text}");
        };
        check("500ms", Some(500));
        check("10s", Some(10_000));
        check("10 s", Some(10_000));
        check("2m", Some(120_000));
        check("1h", Some(3_600_000));
        check("0s", Some(0));
        for bad in ["", "s", "10", "-1s", "1.5s", "1h30m", "10S", "99999999999999999999s", "１s"] {
            check(bad, None);
        }
        check(&format!("{}h", u64::MAX), None);
    }

    #[test]
    fn bytes_have_binary_and_decimal_units() {
        let check = |text, number| assert_eq!(bytes(text), number, "{text}");
        check("64KiB", Some(65_536));
        check("1 MiB", Some(1_048_576));
        check("1MB", Some(1_000_000));
        check("100B", Some(100));
        for bad in ["", "KiB", "64", "64k", "-1B", "1.5MiB", "99999999999GiB"] {
            check(bad, None);
        }
    }

    #[test]
    fn a_spelled_duration_reads_back() {
        for milliseconds in [0, 1, 999, 1_000, 1_500, 60_000, 90_000, 3_600_000, 86_400_000] {
            let written = Duration::from_millis(milliseconds);
            assert_eq!(duration(&Spelled(written).to_string()), Some(written));
        }
        assert_eq!(Spelled(Duration::from_secs(7200)).to_string(), "2h");
        assert_eq!(Spelled(Duration::ZERO).to_string(), "0s");
    }
}
