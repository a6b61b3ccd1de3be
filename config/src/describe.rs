//! Sets, rules and limits in lines for people.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;

use crate::error::quoted;
use crate::model::{
    Action, Config, FlagMatch, Limit, Matches, Measure, OptionMatch, PayloadMatch, Per, Rule, Set, SourceLimits,
    Sources,
};
use crate::schema::{FLAGS, OPTIONS, show_hex};

/// Items of a list that are shown; the rest is counted.
const SHOWN: usize = 8;

impl Config {
    /// The rule in one line, `rule 1 "botnet": drop from @blocklist to trading: flags syn !ack, TTL 1-40 [dry run]`; counted
    /// from 1. Empty when there is no rule `index`.
    #[must_use]
    pub fn describe_rule(&self, index: usize) -> String {
        self.rules.get(index).map(|rule| self.rule(index, rule)).unwrap_or_default()
    }

    /// The set in one line: `set blocklist: 3 prefixes, the list /etc/sluice/blocklist.txt, countries RU, BY of ...`. Empty
    /// when there is no set `index`.
    #[must_use]
    pub fn describe_set(&self, index: usize) -> String {
        self.sets.get(index).map(Set::to_string).unwrap_or_default()
    }

    fn rule(&self, index: usize, rule: &Rule) -> String {
        let m = &rule.matches;
        let mut line = format!("rule {} {}: {}", index + 1, quoted(&rule.name), rule.action);
        let service = |service: &usize| self.services.get(*service).map_or("?", |s| s.name.as_str()).to_owned();
        for (before, items) in [
            (" from ", self.sources(&m.source)),
            (" except from ", self.sources(&m.not_source)),
            (" to ", m.services.iter().map(service).collect()),
        ] {
            if !items.is_empty() {
                line += before;
                line += &shortened(&items, ", ");
            }
        }
        let conditions = m.conditions();
        if !conditions.is_empty() {
            line += ": ";
            line += &conditions.join(", ");
        } else if *m == Matches::default() && !matches!(rule.action, Action::Limit(_)) {
            line += " everything";
        }
        if rule.dry_run {
            line += " [dry run]";
        }
        line
    }

    fn sources(&self, sources: &Sources) -> Vec<String> {
        let set = |set: &usize| format!("@{}", self.sets.get(*set).map_or("?", |s| s.name.as_str()));
        sources.sets.iter().map(set).chain(sources.prefixes.iter().map(ToString::to_string)).collect()
    }
}

impl Matches {
    /// The conditions on the packet itself, each in a few words.
    fn conditions(&self) -> Vec<String> {
        let mut said = Vec::new();
        said.extend(self.ip_version.map(|version| format!("IPv{version}")));
        for (what, ports) in [("source port", &self.source_ports), ("destination port", &self.destination_ports)] {
            if !ports.is_empty() {
                let ports: Vec<String> = ports.iter().map(range).collect();
                said.push(format!("{what} {}", shortened(&ports, " or ")));
            }
        }
        said.extend(self.flags.map(|flags| format!("flags {flags}")));
        said.extend(self.hop_limit.as_ref().map(|limit| format!("TTL {}", range(limit))));
        said.extend(self.ip_length.as_ref().map(|length| format!("IP length {}", range(length))));
        said.extend(self.payload_length.as_ref().map(|length| format!("payload length {}", range(length))));
        said.extend(self.window.as_ref().map(|window| format!("window {}", range(window))));
        said.extend(self.mss.as_ref().map(|mss| option("MSS", mss, 1, u16::MAX)));
        said.extend(self.window_scale.as_ref().map(|scale| option("window scale", scale, 0, 14)));
        said.extend(self.sack.map(|sack| if sack { "SACK permitted" } else { "SACK not permitted" }.to_owned()));
        said.extend(
            self.timestamps.map(|timestamps| if timestamps { "timestamps" } else { "no timestamps" }.to_owned()),
        );
        said.extend(self.option_order.as_ref().map(|kinds| match kinds.as_slice() {
            [] => "no options".to_owned(),
            kinds => format!("options {}", kinds.iter().map(|kind| kind_name(*kind)).collect::<Vec<_>>().join(" ")),
        }));
        said.extend(self.payload.iter().map(PayloadMatch::to_string));
        said.extend(self.pcap.as_ref().map(|pcap| format!("pcap {}", quoted(&pcap.text))));
        said
    }
}

/// `a, b and 3 more`
fn shortened(items: &[String], between: &str) -> String {
    let (shown, rest) = items.split_at(items.len().min(SHOWN));
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    shown.join(between) + &more
}

/// `7` or `1-40`
fn range<T: Display + PartialEq>(range: &RangeInclusive<T>) -> String {
    if range.start() == range.end() { range.start().to_string() } else { format!("{}-{}", range.start(), range.end()) }
}

fn option<T: Display + PartialEq>(name: &str, asked: &OptionMatch<T>, least: T, most: T) -> String {
    match asked {
        OptionMatch::Absent => format!("no {name}"),
        OptionMatch::Within(values) if *values == (least..=most) => format!("any {name}"),
        OptionMatch::Within(values) => format!("{name} {}", range(values)),
    }
}

fn kind_name(kind: u8) -> String {
    let named = OPTIONS.iter().find(|(_, known, _)| *known == kind);
    named.map_or_else(|| kind.to_string(), |(name, _, _)| (*name).to_owned())
}

impl Display for Set {
    /// `set blocklist: 3 prefixes, the list /etc/sluice/blocklist.txt, countries RU, BY of /var/lib/GeoIP/Country.mmdb`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        match self.prefixes.len() {
            0 => {}
            1 => parts.push("1 prefix".to_owned()),
            n => parts.push(format!("{n} prefixes")),
        }
        let files: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        match files.len() {
            0 => {}
            1 => parts.push(format!("the list {}", files.join(""))),
            _ => parts.push(format!("the lists {}", shortened(&files, ", "))),
        }
        if let Some(geo) = &self.geo {
            let networks: Vec<String> = geo.asns.iter().map(|asn| format!("AS{asn}")).collect();
            let mut asked = Vec::new();
            if !geo.countries.is_empty() {
                asked.push(format!("countries {}", shortened(&geo.countries, ", ")));
            }
            if !networks.is_empty() {
                asked.push(format!("networks {}", shortened(&networks, ", ")));
            }
            parts.push(format!("{} of {}", asked.join(" and "), geo.database.display()));
        }
        write!(f, "set {}: {}", self.name, parts.join(", "))
    }
}

impl Display for Action {
    /// `drop`, `pass` or what is limited.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Drop => f.write_str("drop"),
            Action::Pass => f.write_str("pass"),
            Action::Limit(limit) => limit.fmt(f),
        }
    }
}

impl Display for Limit {
    /// `limit packets per source at 100/s burst 200`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limit {} {} at {}", self.of, self.per, self.rate.show(self.of))
    }
}

impl Display for Measure {
    /// As the configuration file spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Measure::Packets => "packets",
            Measure::Bytes => "bytes",
            Measure::Connections => "connections",
        })
    }
}

impl Display for Per {
    /// `per source`, `per prefix (/24, /64)`, `per service` or `in all`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Per::Source => f.write_str("per source"),
            Per::Prefix { v4, v6 } => write!(f, "per prefix (IPv4 /{v4}, IPv6 /{v6})"),
            Per::Service => f.write_str("per service"),
            Per::Global => f.write_str("in all"),
        }
    }
}

impl Display for FlagMatch {
    /// `syn !ack`: as the configuration file spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |flags: u8, before: &'static str| {
            let set = move |bit: &u32| flags >> *bit & 1 == 1;
            FLAGS.iter().zip(0u32..).filter(move |(_, bit)| set(bit)).map(move |(name, _)| format!("{before}{name}"))
        };
        f.write_str(&named(self.set, "").chain(named(self.clear, "!")).collect::<Vec<_>>().join(" "))
    }
}

impl Display for PayloadMatch {
    /// `payload at 0 "GET "`, or its octets in hexadecimal with their mask.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.mask.iter().all(|octet| *octet == 0xff);
        let printable = self.value.iter().all(|octet| octet.is_ascii_graphic() || *octet == b' ');
        let shown = match std::str::from_utf8(&self.value) {
            Ok(text) if whole && printable => quoted(text),
            _ => show_hex(&self.value),
        };
        write!(f, "payload at {} {shown}", self.offset)?;
        if whole { Ok(()) } else { write!(f, " mask {}", show_hex(&self.mask)) }
    }
}

impl Display for SourceLimits {
    /// `syns 50/s burst 100, bytes 100MiB/s`; `no limits`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = [
            ("syns", self.syns, Measure::Packets),
            ("flowless ACKs", self.flowless_acks, Measure::Packets),
            ("connections", self.connections, Measure::Connections),
            ("packets", self.packets, Measure::Packets),
            ("bytes", self.bytes, Measure::Bytes),
        ];
        let said = limits.into_iter().filter_map(|(what, rate, of)| Some(format!("{what} {}", rate?.show(of))));
        let said: Vec<String> = said.collect();
        f.write_str(if said.is_empty() { "no limits" } else { "" })?;
        f.write_str(&said.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use crate::parse;

    const MINIMAL: &str = r#"
[[port]]
name = "wan"
device = "0000:03:00.0"
addresses = ["198.51.100.2/24"]
[[service]]
name = "trading"
listen = ["198.51.100.10:443"]
[[service.upstream]]
address = "198.51.100.50:443"
[[set]]
name = "blocklist"
prefixes = ["192.0.2.0/24"]
files = ["/etc/sluice/a.txt", "/etc/sluice/b.txt"]
database = "/var/lib/GeoIP/c.mmdb"
countries = ["RU", "BY"]
asns = [64500]
"#;

    #[test]
    fn a_set_is_what_it_is_made_of() {
        let config = parse("f", MINIMAL).unwrap();
        assert_eq!(
            config.describe_set(0),
            "set blocklist: 1 prefix, the lists /etc/sluice/a.txt, /etc/sluice/b.txt, countries RU, BY and networks \
             AS64500 of /var/lib/GeoIP/c.mmdb"
        );
        assert_eq!((config.describe_set(1), config.describe_rule(0)), (String::new(), String::new()));
    }

    #[test]
    fn a_rule_is_one_line_in_the_files_words() {
        for (rule, line) in [
            ("action = \"pass\"", "pass everything"),
            (
                "action = \"drop\"\ndry_run = true\nsource = [\"@blocklist\", \"203.0.113.0/24\"]\nnot_source = \
                 \"203.0.113.9\"\nservice = \"trading\"\nhop_limit = \"-40\"\nflags = \"!ack syn\"",
                "drop from @blocklist, 203.0.113.0/24 except from 203.0.113.9/32 to trading: flags syn !ack, TTL 1-40 \
                 [dry run]",
            ),
            (
                "action = \"limit\"\nlimit = \"10MiB/s\"\nof = \"bytes\"\nper = \"prefix\"",
                "limit bytes per prefix (IPv4 /24, IPv6 /64) at 10MiB/s",
            ),
            (
                "action = \"limit\"\nlimit = \"9/s burst 18\"\nper = \"global\"\nsource_port = [53, \"1024-65535\"]",
                "limit packets in all at 9/s burst 18: source port 53 or 1024-65535",
            ),
            (
                "action = \"drop\"\nmss = \"none\"\nwindow_scale = \"any\"\nsack = false\ntimestamps = true\nwindow = 0",
                "drop: window 0, no MSS, any window scale, SACK not permitted, timestamps",
            ),
            (
                "action = \"drop\"\noptions = \"mss nop 34 end\"\npcap = \"ip[8] < 64\\n\"",
                "drop: options mss nop 34 end, pcap \"ip[8] < 64\\n\"",
            ),
            (
                "action = \"drop\"\noptions = \"none\"\npayload = [{ text = \"GET \" }, \
                 { offset = 4, hex = \"00f0\", mask = \"00f0\" }]",
                "drop: no options, payload at 0 \"GET \", payload at 4 00 f0 mask 00 f0",
            ),
        ] {
            let config =
                parse("f", &format!("{MINIMAL}[[rule]]\nname = \"r\"\n{rule}\n")).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(config.describe_rule(0), format!("rule 1 \"r\": {line}"));
        }
    }

    #[test]
    fn long_lists_are_counted() {
        let sources: Vec<String> = (0..20).map(|n| format!("\"203.0.113.{n}\"")).collect();
        let rule = format!("[[rule]]\nname = \"r\"\naction = \"drop\"\nsource = [{}]\n", sources.join(", "));
        let line = parse("f", &format!("{MINIMAL}{rule}")).unwrap().describe_rule(0);
        assert!(line.ends_with("203.0.113.7/32 and 12 more"), "{line}");
    }
}
