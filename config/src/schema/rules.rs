//! `[[set]]` and `[[rule]]`.

use std::fmt;
use std::path::PathBuf;

use ipnet::IpNet;

use super::conditions::{expression, flags, option, options, payload};
use super::{absolute_path, name};
use crate::error::{Diagnostics, Located, Wrong};
use crate::model::{Action, Limit, Matches, Measure, OnError, Per, Rate};
use crate::read::{Entry, Section};

pub(super) const SET: &[&str] = &["name", "prefixes", "files", "on_error", "database", "countries", "asns"];
pub(super) const RULE: &[&str] = &[
    "name",
    "action",
    "dry_run",
    "source",
    "not_source",
    "ip_version",
    "service",
    "source_port",
    "destination_port",
    "flags",
    "hop_limit",
    "ip_length",
    "payload_length",
    "window",
    "mss",
    "window_scale",
    "sack",
    "timestamps",
    "options",
    "payload",
    "pcap",
    "limit",
    "of",
    "per",
    "prefix_v4",
    "prefix_v6",
];

pub(super) const ON_ERROR: &[(&str, OnError)] =
    &[("keep-last", OnError::KeepLast), ("skip-line", OnError::SkipLine), ("refuse", OnError::Refuse)];

/// Most sets and rules; a bit for each set tells which ones hold a source.
const MOST: usize = 1_024;

/// Shortest IP packet with a TCP segment, octets.
const SHORTEST_PACKET: u16 = 40;

/// One `[[set]]`.
pub(crate) struct SetDraft {
    pub(crate) name: Located<String>,
    pub(crate) prefixes: Vec<Located<IpNet>>,
    pub(crate) files: Vec<Located<PathBuf>>,
    pub(crate) on_error: OnError,
    pub(crate) database: Option<Located<PathBuf>>,
    pub(crate) countries: Vec<Located<String>>,
    pub(crate) asns: Vec<Located<u32>>,
    /// It was read without a mistake, so what is empty is empty in the file.
    pub(crate) sound: bool,
}

/// One `[[rule]]`.
pub(crate) struct RuleDraft {
    pub(crate) name: Located<String>,
    pub(crate) action: Action,
    pub(crate) dry_run: bool,
    pub(crate) source: Vec<Located<SourceDraft>>,
    pub(crate) not_source: Vec<Located<SourceDraft>>,
    pub(crate) services: Vec<Located<String>>,
    /// Every condition but the three above, which are empty here.
    pub(crate) matches: Matches,
    /// Where the keys stand that the file has.
    keys: Vec<(&'static str, Located<()>)>,
    /// It was read without a mistake.
    pub(crate) sound: bool,
}

/// An item of `source` or `not_source`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SourceDraft {
    /// The set of this name.
    Set(String),
    Prefix(IpNet),
}

impl fmt::Display for SourceDraft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceDraft::Set(name) => write!(f, "@{name}"),
            SourceDraft::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl RuleDraft {
    /// Where `key` stands; the rule's name for a key that the file has not.
    pub(crate) fn key(&self, key: &str) -> Located<()> {
        let there = self.keys.iter().find(|(name, _)| *name == key);
        there.map_or_else(|| self.name.with(()), |(_, place)| place.clone())
    }
}

/// Every `[[set]]`.
pub(super) fn sets(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Vec<SetDraft> {
    let sections = root.tables("set", "set", diag);
    if let Some(excess) = sections.get(MOST) {
        diag.report(excess.at, "set", format!("there are more than {MOST} sets"), "join some");
    }
    sections.iter().filter_map(|section| set(section, diag)).collect()
}

fn set(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<SetDraft> {
    let before = diag.count();
    section.deny_unknown(SET, diag);
    let name = name(section, "\"blocklist\"", diag);
    let prefixes = section.list("prefixes", diag);
    let prefixes = prefixes.iter().filter_map(|item| item.prefix(diag)).collect();
    let files = section.one_or_more("files");
    let files = files.iter().filter_map(|item| item.parsed(diag, absolute_path)).collect();
    let on_error = section.choice("on_error", ON_ERROR, diag).unwrap_or_default();
    let database = section.parsed("database", diag, absolute_path);
    let countries = section.one_or_more("countries");
    let countries = countries.iter().filter_map(|item| item.parsed(diag, country)).collect();
    let asns = section.one_or_more("asns").iter().filter_map(|item| asn(item, diag)).collect();
    Some(SetDraft { prefixes, files, on_error, database, countries, asns, sound: diag.count() == before, name: name? })
}

/// An ISO 3166-1 code, as databases have it.
fn country(text: &str) -> Result<String, Wrong> {
    let letters = text.len() == 2 && text.bytes().all(|b| b.is_ascii_alphabetic());
    let capitals = text.to_ascii_uppercase();
    match capitals.as_str() {
        "UK" => Err(Wrong::new("is not the country's code", "write \"GB\"")),
        _ if !letters => {
            Err(Wrong::new("is not a country code", "write the two capital letters of ISO 3166-1, as in \"DE\""))
        }
        _ if capitals != text => Err(Wrong::new("is in small letters", format!("write \"{capitals}\""))),
        _ => Ok(capitals),
    }
}

/// `64500` or `"AS64500"`.
fn asn(item: &Entry<'_>, diag: &mut Diagnostics<'_>) -> Option<Located<u32>> {
    if item.as_text().is_none() {
        return item.integer(1..=u32::MAX, diag);
    }
    item.parsed(diag, |text| {
        let digits = text.trim_start_matches(['A', 'a', 'S', 's']);
        let number = digits.parse::<u32>().ok().filter(|n| *n > 0 && digits.bytes().all(|b| b.is_ascii_digit()));
        match number {
            Some(number) if text.strip_prefix("AS") == Some(digits) => Ok(number),
            Some(number) => Err(Wrong::new(
                "is not how a network's number is written",
                format!("write \"AS{number}\", or {number} without quotes"),
            )),
            None => Err(Wrong::new(
                "is not an autonomous system's number",
                "write one as in 64500 or \"AS64500\", from 1 to 4294967295",
            )),
        }
    })
}

/// Every `[[rule]]`.
pub(super) fn rules(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Vec<RuleDraft> {
    let sections = root.tables("rule", "rule", diag);
    if let Some(excess) = sections.get(MOST) {
        let remedy = "put what shares an action into one rule, with a [[set]] of its sources";
        diag.report(excess.at, "rule", format!("there are more than {MOST} rules"), remedy);
    }
    sections.iter().filter_map(|section| rule(section, diag)).collect()
}

fn rule(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<RuleDraft> {
    let before = diag.count();
    section.deny_unknown(RULE, diag);
    let name = name(section, "\"botnet\"", diag);
    let action = action(section, diag);
    let dry_run = section.boolean("dry_run", diag).unwrap_or(false);
    let sources = |key: &str, diag: &mut Diagnostics<'_>| -> Vec<Located<SourceDraft>> {
        section.one_or_more(key).iter().filter_map(|item| source(item, diag)).collect()
    };
    let (source, not_source) = (sources("source", diag), sources("not_source", diag));
    let services = section.one_or_more("service");
    let services =
        services.iter().filter_map(|item| item.text(diag).map(|name| name.with(name.value.to_owned()))).collect();
    let matches = conditions(section, diag);
    let keys = RULE.iter().filter_map(|key| Some((*key, section.get(key)?.located(())))).collect();
    Some(RuleDraft {
        action: action?,
        dry_run,
        source,
        not_source,
        services,
        matches,
        keys,
        sound: diag.count() == before,
        name: name?,
    })
}

/// What a rule does, with its limit; the keys of a limit belong to no other action.
fn action(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<Action> {
    #[derive(Clone, Copy, PartialEq)]
    enum Verb {
        Drop,
        Pass,
        Limit,
    }
    section.require("action", "\"drop\"", diag)?;
    let verb = section.choice("action", &[("drop", Verb::Drop), ("pass", Verb::Pass), ("limit", Verb::Limit)], diag)?;
    let (action, spelled) = match verb {
        Verb::Limit => return Some(Action::Limit(limit(section, diag)?)),
        Verb::Drop => (Action::Drop, "drop"),
        Verb::Pass => (Action::Pass, "pass"),
    };
    for key in ["limit", "of", "per", "prefix_v4", "prefix_v6"] {
        if let Some(entry) = section.get(key) {
            let found = format!("is for limits, but action is \"{spelled}\"");
            diag.wrong(&entry.located(()), found, "write action = \"limit\", or remove the key");
        }
    }
    Some(action)
}

fn limit(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<Limit> {
    #[derive(Clone, Copy, PartialEq)]
    enum Whom {
        Source,
        Prefix,
        Service,
        Global,
    }
    let choices = [("packets", Measure::Packets), ("bytes", Measure::Bytes), ("connections", Measure::Connections)];
    let of = match section.get("of") {
        Some(_) => section.choice("of", &choices, diag),
        None => Some(Measure::Packets),
    };
    let whom =
        [("source", Whom::Source), ("prefix", Whom::Prefix), ("service", Whom::Service), ("global", Whom::Global)];
    let per = match section.get("per") {
        Some(_) => section.choice("per", &whom, diag),
        None => Some(Whom::Source),
    };
    let v4 = section.integer("prefix_v4", 1..=32_u8, diag);
    let v6 = section.integer("prefix_v6", 1..=128_u8, diag);
    if let Some(per) = per
        && per != Whom::Prefix
    {
        let spelled = whom.iter().find(|(_, each)| *each == per).map_or("", |(name, _)| name);
        for length in [&v4, &v6].into_iter().flatten() {
            let found = format!("is for limits per prefix, but per is \"{spelled}\"");
            diag.wrong(length, found, "write per = \"prefix\", or remove the key");
        }
    }
    let example = if of == Some(Measure::Bytes) { "\"10MiB/s\"" } else { "\"100/s\"" };
    let rate = section.require("limit", example, diag);
    // How a rate is written depends on what it counts.
    let rate: Option<Rate> = rate.zip(of).and_then(|(entry, of)| entry.rate(of, diag));
    let per = match per? {
        Whom::Source => Per::Source,
        Whom::Prefix => Per::Prefix { v4: v4.map_or(24, |n| n.value), v6: v6.map_or(64, |n| n.value) },
        Whom::Service => Per::Service,
        Whom::Global => Per::Global,
    };
    Some(Limit { rate: rate?, of: of?, per })
}

/// `"@NAME"` or a prefix.
fn source(item: &Entry<'_>, diag: &mut Diagnostics<'_>) -> Option<Located<SourceDraft>> {
    match item.as_text().map(set_name) {
        Some(Ok(None)) | None => item.prefix(diag).map(|net| net.with(SourceDraft::Prefix(net.value))),
        Some(_) => item.parsed(diag, |text| set_name(text).map(|name| SourceDraft::Set(name.unwrap_or_default()))),
    }
}

/// The name of `"@NAME"`; none for what may be a prefix.
fn set_name(text: &str) -> Result<Option<String>, Wrong> {
    if let Some(name) = text.strip_prefix('@') {
        return match name {
            "" => Err(Wrong::new("names no set", "write a set's name after \"@\", as in \"@blocklist\"")),
            name => Ok(Some(name.to_owned())),
        };
    }
    let like_a_name = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        && text.starts_with(|c: char| c.is_ascii_alphabetic());
    if like_a_name {
        return Err(Wrong::new("is not a prefix", format!("write \"@{text}\" for the set of this name")));
    }
    Ok(None)
}

fn conditions(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Matches {
    let ports = |key: &str, diag: &mut Diagnostics<'_>| {
        let items = section.one_or_more(key);
        items.iter().filter_map(|item| item.range(1..=u16::MAX, diag).map(|range| range.value)).collect()
    };
    Matches {
        ip_version: section.get("ip_version").and_then(|entry| entry.number_among([4, 6], diag)),
        source_ports: ports("source_port", diag),
        destination_ports: ports("destination_port", diag),
        flags: section.parsed("flags", diag, flags).map(|flags| flags.value),
        hop_limit: section.range("hop_limit", 1..=u8::MAX, diag),
        ip_length: section.range("ip_length", SHORTEST_PACKET..=u16::MAX, diag),
        payload_length: section.range("payload_length", 0..=u16::MAX, diag),
        window: section.range("window", 0..=u16::MAX, diag),
        mss: option(section, "mss", 1..=u16::MAX, diag),
        window_scale: option(section, "window_scale", 0..=14_u8, diag),
        sack: section.boolean("sack", diag),
        timestamps: section.boolean("timestamps", diag),
        option_order: section.parsed("options", diag, options).map(|kinds| kinds.value),
        payload: payload(section, diag),
        pcap: expression(section, diag),
        ..Matches::default()
    }
}
