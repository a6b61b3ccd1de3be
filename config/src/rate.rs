//! Rates as the file spells them: `"100/s"`, `"30/min burst 10"`, `"10MiB/s burst 20MiB"`.

use std::time::Duration;

use crate::error::{Wrong, quoted};
use crate::model::{Measure, Rate};
use crate::units;

/// The times a rate can be of, in seconds.
const TIMES: [(&str, u64); 3] = [("s", 1), ("min", 60), ("h", 3_600)];

/// Most packets or connections in a rate or a burst: more than any line carries in a second.
const MOST: u64 = 1_000_000_000;

/// Most octets in a rate or a burst: the same.
const MOST_OCTETS: u64 = 100 << 30;

/// Longest that a spent burst may take to come back, in seconds: a week, as with every other duration.
const LONGEST_REFILL: u64 = 7 * 24 * 3_600;

/// Reads a rate of `of`.
pub(crate) fn rate(text: &str, of: Measure) -> Result<Rate, Wrong> {
    let Some((amount_text, rest)) = text.split_once('/') else {
        let remedy = match amount(text, of) {
            Ok(_) => return Err(no_time(text.trim(), "has no time")),
            Err(_) => format!("write one as in {}", examples(of)),
        };
        return Err(Wrong::new("is not a rate", remedy));
    };
    let mut words = rest.split_whitespace();
    let unit = words.next().unwrap_or_default();
    let Some((_, seconds)) = TIMES.iter().find(|(name, _)| *name == unit) else {
        let found = match unit {
            "" => "has no time after \"/\"".to_owned(),
            _ => format!("has the unknown time {}", quoted(unit)),
        };
        return Err(no_time(if amount(amount_text, of).is_ok() { amount_text.trim() } else { "100" }, found));
    };
    let amount = amount(amount_text, of)?;
    let burst = match words.next() {
        None => (amount / seconds).max(1),
        Some("burst") => match words.collect::<Vec<_>>().join(" ").as_str() {
            "" => {
                return Err(Wrong::new(
                    "has \"burst\" without a number",
                    format!("write one as in {}, or leave burst out", examples(of)),
                ));
            }
            burst => self::amount(burst, of)?,
        },
        Some(other) => {
            let found = format!("has {} after its time, where only a burst can stand", quoted(other));
            return Err(Wrong::new(found, format!("write one as in {}", examples(of))));
        }
    };
    // Neither product reaches 2^64.
    if burst * seconds > amount * LONGEST_REFILL {
        let most = show(amount * LONGEST_REFILL / seconds, of);
        let found = "has a burst that takes more than a week to come back";
        return Err(Wrong::new(found, format!("write a burst of {most} at most, or more in the same time")));
    }
    Ok(Rate { amount, every: Duration::from_secs(*seconds), burst })
}

/// The mistake of a rate that is a number alone.
pub(crate) fn no_time(number: &str, found: impl Into<String>) -> Wrong {
    let number = if number.len() > 16 { "100" } else { number };
    Wrong::new(found, format!(r#"write "{number}/s", "{number}/min" or "{number}/h""#))
}

fn examples(of: Measure) -> &'static str {
    match of {
        Measure::Bytes => r#""10MiB/s" or "10MiB/s burst 20MiB""#,
        Measure::Packets | Measure::Connections => r#""100/s", "30/min" or "100/s burst 200""#,
    }
}

/// How much, at least 1.
fn amount(text: &str, of: Measure) -> Result<u64, Wrong> {
    let text = text.trim();
    let bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (value, most) = match of {
        Measure::Bytes if bare => {
            let number = if text.len() > 9 { "1500" } else { text };
            return Err(Wrong::new(
                "has no unit of size",
                format!(r#"write it as in "{number}B/s", "{number}KiB/s" or "{number}MiB/s""#),
            ));
        }
        Measure::Bytes => (units::size(text)?, MOST_OCTETS),
        _ if bare => (text.parse().unwrap_or(u64::MAX), MOST),
        _ if units::size(text).is_ok() => {
            return Err(Wrong::new(
                format!("is a size, but {of} are counted here"),
                format!("write one as in {}", examples(of)),
            ));
        }
        _ => {
            let found = format!("has {} where a number belongs", quoted(text));
            return Err(Wrong::new(found, format!("write one as in {}", examples(of))));
        }
    };
    match value {
        0 => Err(Wrong::new("lets nothing through", format!("write at least 1, as in {}", examples(of)))),
        _ if value > most => Err(Wrong::new(
            format!("is more than {} at a time", show(most, of)),
            format!("write less, as in {}", examples(of)),
        )),
        _ => Ok(value),
    }
}

fn show(amount: u64, of: Measure) -> String {
    match of {
        Measure::Bytes => units::show_size(amount),
        Measure::Packets | Measure::Connections => amount.to_string(),
    }
}

impl Rate {
    /// As the configuration file spells a rate of `of`: `100/s burst 200`. A burst that is the default is left out.
    #[must_use]
    pub fn show(&self, of: Measure) -> String {
        let seconds = self.every.as_secs().max(1);
        let time = match TIMES.iter().find(|(_, each)| *each == seconds) {
            Some((name, _)) => (*name).to_owned(),
            None => units::show_duration(self.every),
        };
        let burst = if self.burst == (self.amount / seconds).max(1) {
            String::new()
        } else {
            format!(" burst {}", show(self.burst, of))
        };
        format!("{}/{time}{burst}", show(self.amount, of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: Measure = Measure::Packets;
    const BYTES: Measure = Measure::Bytes;

    fn of(amount: u64, seconds: u64, burst: u64) -> Result<Rate, Wrong> {
        Ok(Rate { amount, every: Duration::from_secs(seconds), burst })
    }

    #[test]
    fn without_a_burst_a_rate_lets_a_second_through_at_once_or_one() {
        assert_eq!(rate("100/s", PACKETS), of(100, 1, 100));
        assert_eq!(rate("30/min", PACKETS), of(30, 60, 1));
        assert_eq!(rate("600/min", Measure::Connections), of(600, 60, 10));
        assert_eq!(rate("7200/h", PACKETS), of(7_200, 3_600, 2));
        assert_eq!(rate("1/h", PACKETS), of(1, 3_600, 1));
        assert_eq!(rate("100MiB/s", BYTES), of(100 << 20, 1, 100 << 20));
    }

    #[test]
    fn a_burst_is_counted_like_the_rate() {
        assert_eq!(rate("100/s burst 200", PACKETS), of(100, 1, 200));
        assert_eq!(rate(" 30 / min  burst  10 ", PACKETS), of(30, 60, 10));
        assert_eq!(rate("10MiB/s burst 2GiB", BYTES), of(10 << 20, 1, 2 << 30));
        assert_eq!(rate("100KiB/s burst 1500B", BYTES), of(100 << 10, 1, 1_500));
    }

    #[test]
    fn odd_rates_are_refused_with_what_would_be_right() {
        for (text, measure, found, remedy) in [
            ("100", PACKETS, "no time", "\"100/s\""),
            ("100 ", PACKETS, "no time", "\"100/s\""),
            ("10MiB", BYTES, "no time", "\"10MiB/s\""),
            ("100/", PACKETS, "no time", "\"100/s\""),
            ("100/sec", PACKETS, "\"sec\"", "\"100/s\""),
            ("100/m", PACKETS, "\"m\"", "\"100/min\""),
            ("100/d", PACKETS, "\"d\"", "\"100/h\""),
            ("100pps", PACKETS, "not a rate", "\"100/s\""),
            ("100pps/s", PACKETS, "\"100pps\"", "\"100/s\""),
            ("", PACKETS, "not a rate", "\"100/s\""),
            ("/s", PACKETS, "\"\"", "\"100/s\""),
            ("-1/s", PACKETS, "\"-1\"", "\"100/s\""),
            ("1.5/s", PACKETS, "\"1.5\"", "\"30/min\""),
            ("0/s", PACKETS, "nothing", "at least 1"),
            ("0B/s", BYTES, "nothing", "at least 1"),
            ("1/s burst", PACKETS, "without a number", "burst 200"),
            ("1/s burst 0", PACKETS, "nothing", "at least 1"),
            ("1/s burst=5", PACKETS, "\"burst=5\"", "burst 200"),
            ("1/s burst 5 6", PACKETS, "\"5 6\"", "burst 200"),
            ("1000000001/s", PACKETS, "more than 1000000000", "less"),
            ("99999999999999999999999/s", PACKETS, "more than 1000000000", "less"),
            ("101GiB/s", BYTES, "more than 100GiB", "less"),
            ("10MiB/s", PACKETS, "is a size, but packets", "\"100/s\""),
            ("100/s", BYTES, "no unit of size", "\"100KiB/s\""),
            ("10MiB/s burst 5", BYTES, "no unit of size", "\"5MiB/s\""),
            ("10MB/s", BYTES, "\"MB\"", "\"MiB\""),
            ("1/h burst 1000", PACKETS, "a week", "168 at most"),
            ("٥/s", PACKETS, "\"٥\"", "\"100/s\""),
        ] {
            let wrong = rate(text, measure).expect_err(text);
            assert!(wrong.found.contains(found) && wrong.remedy.contains(remedy), "{text}: {wrong:?}");
        }
    }

    #[test]
    fn the_largest_rates_are_read() {
        assert_eq!(rate("1000000000/s", PACKETS), of(MOST, 1, MOST));
        assert_eq!(rate("100GiB/h burst 100GiB", BYTES), of(MOST_OCTETS, 3_600, MOST_OCTETS));
        assert_eq!(rate("1/h burst 168", PACKETS), of(1, 3_600, 168));
    }

    #[test]
    fn shown_rates_read_back() {
        for (text, measure) in [
            ("100/s", PACKETS),
            ("100/s burst 1", PACKETS),
            ("30/min burst 10", PACKETS),
            ("1/h", Measure::Connections),
        ] {
            assert_eq!(rate(text, measure).unwrap().show(measure), text);
        }
        for text in ["100MiB/s burst 200MiB", "1500B/s", "2GiB/h burst 1KiB"] {
            assert_eq!(rate(text, BYTES).unwrap().show(BYTES), text);
        }
    }
}
