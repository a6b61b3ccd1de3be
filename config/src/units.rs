//! Durations and sizes: a whole number and its unit, nothing else. Ranges of numbers.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::{Wrong, quoted};

/// Duration units and their milliseconds.
const DURATIONS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// Size units and their octets.
const SIZES: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Splits `text` into its digits and what follows them, less the white space between.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// A number and one of `units`, multiplied.
fn quantity(text: &str, units: &[(&str, u64)], what: &str, examples: &str) -> Result<u64, Wrong> {
    let (number, unit) = split(text);
    if number.is_empty() {
        return Err(Wrong::new(
            format!("is not a {what}"),
            format!("write a whole number and its unit, as in {examples}"),
        ));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let names = crate::error::alternatives(units.iter().map(|(name, _)| *name));
        return Err(match unit.chars().next() {
            Some('.' | ',') => Wrong::new("is not a whole number", format!("take a smaller unit, as in {examples}")),
            _ => Wrong::new(format!("has the unknown unit {}", quoted(unit)), format!("units are {names}")),
        });
    };
    let too_large = || Wrong::new("is too large", format!("write a {what} as in {examples}"));
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor)).ok_or_else(too_large)
}

/// `"250ms"`, `"5s"`, `"2m"`, `"1h"`; `"0"` needs no unit.
pub(crate) fn duration(text: &str) -> Result<Duration, Wrong> {
    let (number, unit) = split(text);
    if unit.is_empty() && !number.is_empty() {
        if number.bytes().all(|b| b == b'0') {
            return Ok(Duration::ZERO);
        }
        return Err(no_duration_unit(number, "has no unit"));
    }
    quantity(text, &DURATIONS, "duration", r#""500ms", "5s", "2m" or "1h""#).map(Duration::from_millis)
}

/// The mistake of a duration that is a number alone.
pub(crate) fn no_duration_unit(number: &str, found: &str) -> Wrong {
    let number = if number.len() > 9 { "5" } else { number };
    Wrong::new(found, format!(r#"write "{number}s", "500ms" or "2m""#))
}

/// `"65535B"`, `"16KiB"`, `"1MiB"`, in octets.
pub(crate) fn size(text: &str) -> Result<u64, Wrong> {
    let (number, unit) = split(text);
    if unit.is_empty() && !number.is_empty() {
        return Err(no_size_unit(number, "has no unit"));
    }
    quantity(text, &SIZES, "size", r#""65535B" or "16KiB""#)
}

/// The mistake of a size that is a number alone.
pub(crate) fn no_size_unit(number: &str, found: &str) -> Wrong {
    let number = if number.len() > 9 { "65535" } else { number };
    Wrong::new(found, format!(r#"write "{number}B" or, as an example, "16KiB""#))
}

/// `"1-40"`, `"-40"` or `"200-"`, both ends included and within `limits`, which an open end stands for.
pub(crate) fn range<T>(text: &str, limits: RangeInclusive<T>) -> Result<RangeInclusive<T>, Wrong>
where
    T: TryFrom<i128> + Into<i128> + Copy,
{
    let (least, most): (i128, i128) = ((*limits.start()).into(), (*limits.end()).into());
    let text = text.trim();
    let decimal = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if decimal(text) {
        return Err(Wrong::new("is a number in quotes", format!("write {text} without quotes")));
    }
    let bound = |text: &str, open: i128| match text.trim() {
        "" => Some(open),
        // More digits than 128 bits have room for are out of every range.
        text => decimal(text).then(|| text.parse().unwrap_or(i128::MAX)),
    };
    let ends = text.split_once('-').filter(|_| text != "-");
    let Some((from, to)) = ends.and_then(|(from, to)| Some((bound(from, least)?, bound(to, most)?))) else {
        let found = "is neither a number nor a range";
        return Err(Wrong::new(found, format!("write a number without quotes, or a range as in \"{least}-{most}\"")));
    };
    if !(least..=most).contains(&from) || !(least..=most).contains(&to) {
        return Err(Wrong::new("is out of range", format!("write numbers from {least} to {most}")));
    }
    if from > to {
        return Err(Wrong::new("ends before it begins", format!("write \"{to}-{from}\"")));
    }
    match (T::try_from(from), T::try_from(to)) {
        (Ok(from), Ok(to)) => Ok(from..=to),
        _ => Err(Wrong::new("is out of range", format!("write numbers from {least} to {most}"))),
    }
}

/// The shortest way to write `d`: `"5m"`, `"1500ms"`.
pub(crate) fn show_duration(d: Duration) -> String {
    let ms = d.as_millis();
    match DURATIONS.iter().rev().find(|(_, factor)| ms != 0 && ms.is_multiple_of(u128::from(*factor))) {
        Some((unit, factor)) => format!("{}{unit}", ms / u128::from(*factor)),
        None => "0s".to_owned(),
    }
}

/// The shortest way to write `octets`: `"16KiB"`, `"65535B"`.
#[must_use]
pub fn show_size(octets: u64) -> String {
    match SIZES.iter().rev().find(|(_, factor)| octets != 0 && octets.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", octets / factor),
        None => "0B".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_take_four_units() {
        for (text, ms) in [("250ms", 250), ("5s", 5_000), ("2m", 120_000), ("1h", 3_600_000), ("0s", 0), ("5 s", 5_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn only_zero_goes_without_a_unit() {
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        let wrong = duration("5").unwrap_err();
        assert_eq!((wrong.found.as_str(), wrong.remedy.as_str()), ("has no unit", r#"write "5s", "500ms" or "2m""#));
        assert_eq!(size("4096").unwrap_err().found, "has no unit");
    }

    #[test]
    fn odd_durations_are_refused() {
        for text in [
            "",
            "s",
            "-5s",
            "1.5s",
            "1h30m",
            "5S",
            "5 minutes",
            "5d",
            "99999999999999999999s",
            "5124095576030432h",
            "٥s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_take_binary_units() {
        for (text, octets) in [("65535B", 65_535), ("64KiB", 65_536), ("1MiB", 1 << 20), ("1GiB", 1 << 30), ("0B", 0)] {
            assert_eq!(size(text), Ok(octets), "{text}");
        }
        for text in [
            "64KB",
            "64k",
            "64kib",
            "1TiB",
            "1GB",
            "",
            "B",
            "-1B",
            "1.5KiB",
            "99999999999999999999B",
            "18446744073709551615KiB",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_include_both_ends_and_may_be_open() {
        for (text, expected) in
            [("1-40", 1..=40), (" 7 - 7 ", 7..=7), ("-40", 1..=40), ("200-", 200..=255), ("1-255", 1..=255)]
        {
            assert_eq!(range(text, 1..=255_u8), Ok(expected), "{text}");
        }
        for (text, remedy) in [
            ("40", "without quotes"),
            ("40-1", "\"1-40\""),
            ("0-40", "from 1 to 255"),
            ("1-256", "from 1 to 255"),
            ("300-", "from 1 to 255"),
            ("1-99999999999999999999999999999999999999999999", "from 1 to 255"),
            ("", "range"),
            ("-", "range"),
            ("--", "range"),
            ("1-2-3", "range"),
            ("1..40", "range"),
            ("<40", "range"),
            ("a-b", "range"),
            ("1-٥", "range"),
        ] {
            let wrong = range(text, 1..=255_u8).expect_err(text);
            assert!(wrong.remedy.contains(remedy), "{text}: {wrong:?}");
        }
    }

    #[test]
    fn shown_quantities_read_back() {
        for ms in [0, 1, 999, 1_000, 1_500, 60_000, 90_000, 3_600_000, 7 * 24 * 3_600_000] {
            let d = Duration::from_millis(ms);
            assert_eq!(duration(&show_duration(d)), Ok(d));
        }
        for octets in [0, 1, 4_096, 65_535, 65_536, 1 << 20, 3 << 30] {
            assert_eq!(size(&show_size(octets)), Ok(octets));
        }
    }
}
