//! The conditions of a `[[rule]]`: each value by itself.

use std::ops::RangeInclusive;

use crate::error::{Diagnostics, Wrong, nearest, quoted};
use crate::model::{Expression, FlagMatch, OptionMatch, PayloadMatch};
use crate::read::Section;

pub(super) const PAYLOAD: &[&str] = &["offset", "hex", "text", "mask"];

/// The flags' names, the lowest bit of octet 13 first.
pub(crate) const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];

/// The option kinds that have names, with the octets each takes at least.
pub(crate) const OPTIONS: [(&str, u8, usize); 7] = [
    ("mss", 2, 4),
    ("nop", 1, 1),
    ("window-scale", 3, 3),
    ("sack-permitted", 4, 2),
    ("sack", 5, 10),
    ("timestamps", 8, 10),
    ("end", 0, 1),
];

/// What a TCP header has room for besides its 20 octets.
const OPTIONS_ROOM: usize = 40;

/// Longest comparison of payload, octets.
const LONGEST_PAYLOAD: usize = 64;

/// Farthest offset into a payload: what a full segment on Ethernet carries.
const FARTHEST: u16 = 1_460;

/// Most comparisons of payload in one rule.
const MOST_PAYLOADS: usize = 16;

/// Longest expression, octets; tcpdump's own are shorter.
const LONGEST_EXPRESSION: usize = 4_096;

/// White space or commas between.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty())
}

/// `"syn !ack"`: flags that must be set, and after `!` flags that must be clear.
pub(super) fn flags(text: &str) -> Result<FlagMatch, Wrong> {
    const EXAMPLE: &str = "write flags as in \"syn !ack\"";
    let mut asked = FlagMatch { set: 0, clear: 0 };
    for word in words(text) {
        let (name, clear) = match word.strip_prefix('!') {
            Some("") => {
                return Err(Wrong::new(
                    "has a \"!\" that stands alone",
                    format!("{EXAMPLE}, without a space after \"!\""),
                ));
            }
            Some(name) => (name, true),
            None => (word, false),
        };
        let Some((_, bit)) = FLAGS.iter().zip(0u32..).find(|(flag, _)| **flag == name) else {
            let known = FLAGS.join(", ");
            let remedy = match nearest(name, FLAGS) {
                Some(meant) => format!("did you mean \"{meant}\"? Flags are {known}"),
                None => format!("flags are {known}"),
            };
            return Err(Wrong::new(format!("names the unknown flag {}", quoted(name)), remedy));
        };
        let flags = if clear { &mut asked.clear } else { &mut asked.set };
        *flags |= 1 << bit;
        if asked.set & asked.clear != 0 {
            return Err(Wrong::new(
                format!("asks for {name} both set and clear"),
                format!("write \"{name}\" or \"!{name}\""),
            ));
        }
    }
    if asked == (FlagMatch { set: 0, clear: 0 }) {
        return Err(Wrong::new("names no flag", format!("{EXAMPLE}, or remove the key")));
    }
    if !asked.is_possible() {
        return Err(Wrong::new(
            "can match no packet: such a combination is dropped as bad_flags before rules are asked",
            "write flags that a TCP sends, as in \"syn !ack\", \"ack\" or \"rst\", or remove the rule",
        ));
    }
    Ok(asked)
}

/// `"mss nop nop sack-permitted"`: option kinds in their order; `"none"` = no options.
pub(super) fn options(text: &str) -> Result<Vec<u8>, Wrong> {
    const EXAMPLE: &str = "write kinds in their order, as in \"mss nop nop sack-permitted\"";
    if text.trim() == "none" {
        return Ok(Vec::new());
    }
    let mut kinds: Vec<u8> = Vec::new();
    let mut octets = 0;
    for word in words(text) {
        if kinds.last() == Some(&0) {
            return Err(Wrong::new(
                format!("has {} after \"end\", where nothing is read", quoted(word)),
                "put \"end\" last",
            ));
        }
        let named = OPTIONS.iter().find(|(name, _, _)| *name == word);
        let number = word.parse::<u8>().ok().filter(|_| word.bytes().all(|b| b.is_ascii_digit()));
        let kind = match (named, number) {
            (Some((_, kind, _)), _) => *kind,
            (None, Some(kind)) => kind,
            (None, None) if word == "none" => {
                return Err(Wrong::new("has \"none\" beside other kinds", "write \"none\" alone, or leave it out"));
            }
            (None, None) => {
                let known = OPTIONS.map(|(name, _, _)| name);
                let remedy = match nearest(word, known) {
                    Some(meant) => format!("did you mean \"{meant}\"? "),
                    None => String::new(),
                };
                let remedy = format!("{remedy}Kinds are {}, and numbers from 0 to 255", known.join(", "));
                return Err(Wrong::new(format!("names the unknown option {}", quoted(word)), remedy));
            }
        };
        octets += OPTIONS.iter().find(|(_, known, _)| *known == kind).map_or(2, |(_, _, least)| *least);
        kinds.push(kind);
    }
    if kinds.is_empty() {
        return Err(Wrong::new("names no option", format!("{EXAMPLE}; \"none\" for a header without options")));
    }
    if octets > OPTIONS_ROOM {
        return Err(Wrong::new(
            format!(
                "can match no packet: these options take {octets} octets, and a header has room for {OPTIONS_ROOM}"
            ),
            "write fewer",
        ));
    }
    Ok(kinds)
}

/// `"none"`, `"any"`, a number or a range: whether the option is there, and its value.
pub(super) fn option<T: TryFrom<i128> + Into<i128> + Copy>(
    section: &Section<'_>,
    key: &str,
    limits: RangeInclusive<T>,
    diag: &mut Diagnostics<'_>,
) -> Option<OptionMatch<T>> {
    let entry = section.get(key)?;
    match entry.as_text() {
        Some("none") => Some(OptionMatch::Absent),
        Some("any") => Some(OptionMatch::Within(limits)),
        Some(text) if !text.contains(|c: char| c.is_ascii_digit()) => {
            let (least, most): (i128, i128) = ((*limits.start()).into(), (*limits.end()).into());
            let found = format!("{} is neither a number nor a range", quoted(text));
            let remedy =
                format!("write \"none\", \"any\", a number without quotes, or a range as in \"{least}-{most}\"");
            diag.wrong(&entry.located(()), found, remedy);
            None
        }
        _ => entry.range(limits, diag).map(|range| OptionMatch::Within(range.value)),
    }
}

/// Every `payload` of a rule.
pub(super) fn payload(rule: &Section<'_>, diag: &mut Diagnostics<'_>) -> Vec<PayloadMatch> {
    let sections = rule.table_or_tables("payload", "rule.payload", diag);
    if let Some(excess) = sections.get(MOST_PAYLOADS) {
        let found = format!("there are more than {MOST_PAYLOADS} comparisons");
        diag.report(excess.at, rule.path("payload"), found, "remove some");
    }
    sections.iter().filter_map(|section| payload_match(section, diag)).collect()
}

fn payload_match(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<PayloadMatch> {
    section.deny_unknown(PAYLOAD, diag);
    let before = diag.count();
    let offset = section.integer("offset", 0..=FARTHEST, diag).map_or(0, |n| n.value);
    let hex_value = section.parsed("hex", diag, hex);
    let text_value = section.parsed("text", diag, |text| sized(text.as_bytes().to_vec()));
    let mask = section.parsed("mask", diag, hex);
    if diag.count() > before {
        return None;
    }
    let value = match (hex_value, text_value) {
        (Some(hex), None) => hex,
        (None, Some(text)) => text,
        (Some(_), Some(text)) => {
            diag.wrong(&text, "stands beside hex, and one of them says what is compared", "keep one of the two");
            return None;
        }
        (None, None) => {
            let remedy = "write hex = \"47 45 54 20\" or text = \"GET \"";
            diag.report(section.at, section.path("hex"), "is missing, as is text: nothing would be compared", remedy);
            return None;
        }
    };
    let Some(mask) = mask else {
        let mask = vec![0xff; value.value.len()];
        return Some(PayloadMatch { offset, value: value.value, mask });
    };
    if mask.value.len() != value.value.len() {
        let found = format!("has {} octets, but what it masks has {}", mask.value.len(), value.value.len());
        diag.wrong(&mask, found, "write an octet of mask for each octet of value");
        return None;
    }
    if mask.value.iter().all(|octet| *octet == 0) {
        diag.wrong(&mask, "compares nothing", "write ff for octets that count, or a condition on payload_length");
        return None;
    }
    let masked: Vec<u8> = value.value.iter().zip(&mask.value).map(|(value, mask)| value & mask).collect();
    if masked != value.value {
        let found = "has bits that its mask leaves out: no packet could match";
        diag.wrong(&value, found, format!("write hex = \"{}\", or a wider mask", show_hex(&masked)));
        return None;
    }
    Some(PayloadMatch { offset, value: masked, mask: mask.value })
}

/// Octets in pairs of hexadecimal digits, white space between them or none.
fn hex(text: &str) -> Result<Vec<u8>, Wrong> {
    const EXAMPLE: &str = "write two hexadecimal digits for each octet, as in \"47 45 54 20\"";
    let mut octets = Vec::new();
    for word in text.split_whitespace() {
        if word.len() % 2 != 0 || !word.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Wrong::new("is not pairs of hexadecimal digits", EXAMPLE));
        }
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok()).unwrap_or(0);
        octets
            .extend(word.as_bytes().chunks_exact(2).map(|pair| pair.iter().fold(0, |octet, b| octet << 4 | digit(*b))));
    }
    sized(octets)
}

fn sized(octets: Vec<u8>) -> Result<Vec<u8>, Wrong> {
    match octets.len() {
        0 => Err(Wrong::new("is empty", format!("write 1 to {LONGEST_PAYLOAD} octets"))),
        n if n > LONGEST_PAYLOAD => Err(Wrong::new(
            format!("has {n} octets"),
            format!("write {LONGEST_PAYLOAD} at most; the first ones tell enough"),
        )),
        _ => Ok(octets),
    }
}

/// `47 45 54 20`
pub(crate) fn show_hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(" ")
}

/// A tcpdump expression; whether it is one shows when it is compiled.
pub(super) fn expression(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<Expression> {
    let text = section.parsed("pcap", diag, |text| {
        if text.trim().is_empty() {
            return Err(Wrong::new("is empty", "write an expression as in \"tcp[13] & 2 != 0\", or remove the key"));
        }
        if text.len() > LONGEST_EXPRESSION {
            return Err(Wrong::new("is too long", format!("write {LONGEST_EXPRESSION} octets at most")));
        }
        Ok(text.to_owned())
    })?;
    Some(Expression { place: diag.place(text.at), text: text.value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_names_with_white_space_or_commas_between() {
        for text in ["syn !ack", "syn,!ack", " syn ,\t!ack ", "!ack syn syn"] {
            assert_eq!(flags(text), Ok(FlagMatch { set: 0x02, clear: 0x10 }), "{text}");
        }
        assert_eq!(flags("ack psh !cwr !ece"), Ok(FlagMatch { set: 0x18, clear: 0xc0 }));
        for (text, fragment) in [
            ("", "no flag"),
            (" , ", "no flag"),
            ("!", "alone"),
            ("syn ! ack", "alone"),
            ("syn !syn", "both set and clear"),
            ("SYN", "unknown flag \"SYN\""),
            ("!!syn", "unknown flag"),
            ("syn fin", "bad_flags"),
            ("!syn !ack !rst", "bad_flags"),
            ("urg !ack !syn", "bad_flags"),
        ] {
            let wrong = flags(text).expect_err(text);
            assert!(wrong.found.contains(fragment), "{text}: {wrong:?}");
        }
    }

    #[test]
    fn options_are_kinds_in_their_order() {
        assert_eq!(options("mss nop nop sack-permitted"), Ok(vec![2, 1, 1, 4]));
        assert_eq!(options("mss,sack-permitted, timestamps nop window-scale 34 end"), Ok(vec![2, 4, 8, 1, 3, 34, 0]));
        assert_eq!(options(" none "), Ok(vec![]));
        for (text, fragment) in [
            ("", "no option"),
            ("mss none", "beside"),
            ("end mss", "after \"end\""),
            ("wscale", "unknown option"),
            ("256", "unknown option"),
            ("+1", "unknown option"),
            ("timestamps timestamps timestamps sack mss", "44 octets"),
        ] {
            let wrong = options(text).expect_err(text);
            assert!(wrong.found.contains(fragment), "{text}: {wrong:?}");
        }
        assert!(options(&"nop ".repeat(40)).is_ok());
        assert!(options(&"nop ".repeat(41)).is_err());
    }

    #[test]
    fn octets_are_pairs_of_hexadecimal_digits() {
        assert_eq!(hex("47 45 54 20"), Ok(b"GET ".to_vec()));
        assert_eq!(hex("47455420"), Ok(b"GET ".to_vec()));
        assert_eq!(hex(" fF 00"), Ok(vec![0xff, 0]));
        assert_eq!(hex(&"00".repeat(64)).map(|octets| octets.len()), Ok(64));
        for text in ["", " ", "4", "4 5", "0x47", "47:45", "gg", "é", &"00".repeat(65)] {
            assert!(hex(text).is_err(), "{text}");
        }
    }
}
