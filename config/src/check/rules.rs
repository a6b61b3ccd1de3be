//! What `[[set]]`s and `[[rule]]`s have to do with each other and with the services. A rule that can match no packet is a
//! mistake, and so is one that leaves the rules after it nothing to match.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::{distinct, family, unknown};
use crate::Shortest;
use crate::catch_all::{Around, holds_always};
use crate::error::{Diagnostics, Located, quoted};
use crate::model::{Action, Geo, Matches, Measure, OptionMatch, Rule, Set, Sources};
use crate::schema::{Draft, RuleDraft, SetDraft, SourceDraft};

/// Most rules with `dry_run`: a bit for each, and one to spare, tell what each would have done to a connection.
const MOST_DRY_RUNS: usize = 63;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The kinds of the options that only opening segments carry: MSS, window scale, SACK permitted.
const OPENING_KINDS: [u8; 3] = [2, 3, 4];

/// Checks every set and rule.
pub(super) fn check(draft: &Draft, diag: &mut Diagnostics<'_>) {
    distinct(draft.sets.iter().map(|set| &set.name), "set", "give each set a name of its own", diag);
    for set in &draft.sets {
        check_set(set, diag);
    }
    distinct(draft.rules.iter().map(|rule| &rule.name), "rule", "give each rule a name of its own", diag);
    let around = around(draft);
    for (index, rule) in draft.rules.iter().enumerate() {
        check_rule(draft, rule, diag);
        if index + 1 < draft.rules.len() {
            check_not_final(draft, rule, &around, diag);
        }
    }
    if let Some(excess) = draft.rules.iter().filter(|rule| rule.dry_run).nth(MOST_DRY_RUNS) {
        let found = format!("is in the {}th rule that only counts", MOST_DRY_RUNS + 1);
        diag.wrong(&excess.key("dry_run"), found, format!("write it in {MOST_DRY_RUNS} rules at most"));
    }
}

fn check_set(set: &SetDraft, diag: &mut Diagnostics<'_>) {
    const DATABASE: &str = "add database = \"/var/lib/GeoIP/GeoLite2-Country.mmdb\" to the set";
    distinct(set.prefixes.iter(), "prefix", "write it once", diag);
    distinct(set.countries.iter(), "country", "write it once", diag);
    distinct(set.asns.iter(), "autonomous system", "write it once", diag);
    let files: Vec<_> = set.files.iter().map(|file| file.with(file.value.display().to_string())).collect();
    distinct(files.iter(), "file", "write it once", diag);
    if !set.sound {
        return;
    }
    let country = set.countries.first().map(|first| first.with(()));
    let asked = country.or_else(|| set.asns.first().map(|first| first.with(())));
    match (&set.database, asked) {
        (None, Some(first)) => diag.wrong(&first, "needs a database to be found in", DATABASE),
        (Some(database), None) => {
            let found = "is asked for nothing";
            diag.wrong(database, found, "add countries = [\"DE\"] or asns = [64500], or remove the database");
        }
        (None, None) if set.prefixes.is_empty() && set.files.is_empty() => {
            let remedy = "add prefixes, files, or a database with countries or asns";
            diag.wrong(&set.name, format!("{} holds nothing", quoted(&set.name.value)), remedy);
        }
        _ => {}
    }
}

fn check_rule(draft: &Draft, rule: &RuleDraft, diag: &mut Diagnostics<'_>) {
    for sources in [&rule.source, &rule.not_source] {
        distinct(sources.iter(), "source", "write it once", diag);
        for source in sources {
            if let SourceDraft::Set(name) = &source.value
                && draft.sets_sound
                && !draft.sets.iter().any(|set| set.name.value == *name)
            {
                unknown(&source.with(name.clone()), "set", draft.sets.iter().map(|s| s.name.value.as_str()), diag);
            }
        }
    }
    distinct(rule.services.iter(), "service", "write it once", diag);
    let before = diag.count();
    for service in &rule.services {
        if draft.services_sound && !draft.services.iter().any(|s| s.name.value == service.value) {
            unknown(service, "service", draft.services.iter().map(|s| s.name.value.as_str()), diag);
        }
    }
    if draft.services_sound && diag.count() == before {
        check_destination(draft, rule, diag);
    }
    check_excluded(rule, diag);
    check_options(rule, diag);
    check_opening(rule, diag);
    check_connections(rule, diag);
    check_payload(rule, diag);
}

fn around(draft: &Draft) -> Around {
    let listens = draft.services.iter().map(|service| service.listen.iter().map(|listen| listen.value).collect());
    let set = |set: &SetDraft| {
        let prefixes = set.prefixes.iter().map(|prefix| prefix.value).collect();
        (prefixes, !set.files.is_empty() || set.database.is_some())
    };
    Around { listens: listens.collect(), sets: draft.sets.iter().map(set).collect() }
}

/// Notes a rule after which no other is asked.
fn check_not_final(draft: &Draft, rule: &RuleDraft, around: &Around, diag: &mut Diagnostics<'_>) {
    let decides = matches!(rule.action, Action::Drop | Action::Pass);
    let known = rule.sound && draft.services_sound && draft.sets_sound && rule.matches.pcap.is_none();
    if decides
        && !rule.dry_run
        && known
        && finish(rule, draft).is_some_and(|finished| holds_always(&finished.matches, around))
    {
        let found = "decides everything: the rules after it are pointless";
        diag.wrong(&rule.key("action"), found, "add a condition that leaves something, or put the rule last");
    }
}

/// The IP version of every address in the list; none when both are there, or when it may hold any.
fn only_family(draft: &Draft, sources: &[Located<SourceDraft>]) -> Option<u8> {
    let version = |addr: IpAddr| if addr.is_ipv4() { 4 } else { 6 };
    let mut versions = Vec::new();
    for source in sources {
        match &source.value {
            SourceDraft::Prefix(prefix) => versions.push(version(prefix.addr())),
            SourceDraft::Set(name) => {
                let set = draft.sets.iter().find(|set| set.name.value == *name)?;
                if !set.sound || !set.files.is_empty() || set.database.is_some() {
                    return None;
                }
                versions.extend(set.prefixes.iter().map(|prefix| version(prefix.value.addr())));
            }
        }
    }
    let first = *versions.first()?;
    versions.iter().all(|version| *version == first).then_some(first)
}

/// Whether any socket that a service listens on is left by the rule's conditions.
fn check_destination(draft: &Draft, rule: &RuleDraft, diag: &mut Diagnostics<'_>) {
    let any = rule.services.is_empty();
    let named = draft.services.iter().filter(|s| any || rule.services.iter().any(|name| name.value == s.name.value));
    let sockets: Vec<SocketAddr> = named.flat_map(|s| &s.listen).map(|listen| listen.value).collect();
    let whose = if any { "no service" } else { "no service of this rule" };

    let ports = &rule.matches.destination_ports;
    let reached = |socket: &SocketAddr| ports.is_empty() || ports.iter().any(|range| range.contains(&socket.port()));
    let mut open: Vec<u16> = sockets.iter().map(SocketAddr::port).collect();
    let sockets: Vec<SocketAddr> = sockets.into_iter().filter(reached).collect();
    if sockets.is_empty() && rule.sound {
        open.sort_unstable();
        open.dedup();
        let shown: Vec<String> = open.iter().take(20).map(u16::to_string).collect();
        let found = format!("can match no packet: {whose} listens on such a port");
        diag.wrong(&rule.key("destination_port"), found, format!("write one of {}, or remove it", shown.join(", ")));
        return;
    }
    let source = if rule.sound { only_family(draft, &rule.source) } else { None };
    let (key, version) = match (rule.matches.ip_version, source) {
        (Some(asked), Some(source)) if asked != source => {
            let found = format!("can match no packet: every source of this rule is IPv{source}");
            diag.wrong(&rule.key("ip_version"), found, format!("write {source}, or IPv{asked} sources"));
            return;
        }
        (Some(asked), _) => ("ip_version", asked),
        (None, Some(source)) => ("source", source),
        (None, None) => return,
    };
    if rule.sound && !sockets.iter().any(|socket| socket.is_ipv4() == (version == 4)) {
        let found = format!("can match no packet: {whose} listens on an IPv{version} address");
        let other = sockets.first().map_or("other", |socket| family(socket.ip()));
        diag.wrong(&rule.key(key), found, format!("write an {other} one, or remove the rule"));
    }
}

/// Notes sources that `not_source` takes away again.
fn check_excluded(rule: &RuleDraft, diag: &mut Diagnostics<'_>) {
    let mut excluded: HashMap<&SourceDraft, &Located<SourceDraft>> =
        rule.not_source.iter().map(|excluded| (&excluded.value, excluded)).collect();
    for source in &rule.source {
        // The prefix itself and all that contain it: lists may be long, the way up is not.
        let mut covering = Some(source.value.clone());
        while let Some(candidate) = covering {
            if let Some(excluded) = excluded.remove(&candidate) {
                let line = diag.line(source.at);
                let found = format!("\"{candidate}\" takes away all of \"{}\" in source (line {line})", source.value);
                diag.wrong(excluded, found, "remove one of the two");
            }
            covering = match candidate {
                SourceDraft::Set(_) => None,
                SourceDraft::Prefix(prefix) => prefix.supernet().map(SourceDraft::Prefix),
            };
        }
    }
}

/// Notes conditions on single options that the list of all options contradicts.
fn check_options(rule: &RuleDraft, diag: &mut Diagnostics<'_>) {
    let m = &rule.matches;
    let Some(kinds) = &m.option_order else { return };
    let asked = [
        ("mss", presence(&m.mss), 2),
        ("window_scale", presence(&m.window_scale), 3),
        ("sack", m.sack, 4),
        ("timestamps", m.timestamps, 8),
    ];
    for (key, asked, kind) in asked {
        let listed = kinds.contains(&kind);
        if asked.is_some_and(|asked| asked != listed) {
            let found = if listed {
                "can match no packet: options has it"
            } else {
                "can match no packet: options, which says which ones there are, has it not"
            };
            diag.wrong(&rule.key(key), found, "remove it, or change options");
        }
    }
}

/// Whether an option has to be there or not.
fn presence<T>(asked: &Option<OptionMatch<T>>) -> Option<bool> {
    asked.as_ref().map(|asked| matches!(asked, OptionMatch::Within(_)))
}

/// The keys of the conditions that only a SYN or a SYN-ACK meets.
fn opening_keys(m: &Matches) -> Vec<&'static str> {
    let listed = m.option_order.as_ref().is_some_and(|kinds| kinds.iter().any(|kind| OPENING_KINDS.contains(kind)));
    let asked = [
        ("mss", presence(&m.mss) == Some(true)),
        ("window_scale", presence(&m.window_scale) == Some(true)),
        ("sack", m.sack == Some(true)),
        ("options", listed),
    ];
    asked.into_iter().filter(|(_, asked)| *asked).map(|(key, _)| key).collect()
}

fn check_opening(rule: &RuleDraft, diag: &mut Diagnostics<'_>) {
    let excluded = rule.matches.flags.is_some_and(|flags| flags.clear & SYN != 0);
    if excluded && let Some(key) = opening_keys(&rule.matches).first() {
        let found = format!("can match no packet: what {key} asks for only SYNs carry");
        diag.wrong(&rule.key("flags"), found, format!("write flags = \"syn\", or remove {key}"));
    }
}

/// A connection is counted when the client's ACK proves it, so the limit's conditions are asked of that ACK.
fn check_connections(rule: &RuleDraft, diag: &mut Diagnostics<'_>) {
    if !matches!(rule.action, Action::Limit(limit) if limit.of == Measure::Connections) {
        return;
    }
    let flags = rule.matches.flags.is_some_and(|flags| flags.set & (SYN | RST) != 0 || flags.clear & ACK != 0);
    for key in opening_keys(&rule.matches).into_iter().chain(flags.then_some("flags")) {
        let found =
            "can match no connection: one is counted when its client's ACK proves it, and this no such ACK meets";
        let remedy = "limit packets instead, with of = \"packets\" and flags = \"syn !ack\"";
        diag.wrong(&rule.key(key), found, remedy);
    }
}

/// Notes payload that no packet of the asked length has.
fn check_payload(rule: &RuleDraft, diag: &mut Diagnostics<'_>) {
    let Some(length) = &rule.matches.payload_length else { return };
    let needed = rule.matches.payload.iter().map(|part| usize::from(part.offset) + part.value.len()).max();
    if let Some(needed) = needed.filter(|needed| *needed > usize::from(*length.end())) {
        let found = format!("can match no packet: what payload compares takes {needed} octets");
        diag.wrong(&rule.key("payload_length"), found, format!("write \"{needed}-\", or remove it"));
    }
}

/// The set without its places.
pub(super) fn finish_set(set: SetDraft, shortest: Shortest) -> Set {
    let countries = set.countries.into_iter().map(|country| country.value).collect();
    let asns = set.asns.into_iter().map(|asn| asn.value).collect();
    Set {
        name: set.name.value,
        prefixes: set.prefixes.into_iter().map(|prefix| prefix.value).collect(),
        files: set.files.into_iter().map(|file| file.value).collect(),
        on_error: set.on_error,
        shortest,
        geo: set.database.map(|database| Geo { database: database.value, countries, asns }),
    }
}

/// The rule with indices for names. `None` only if a name is unknown.
pub(super) fn finish(rule: &RuleDraft, draft: &Draft) -> Option<Rule> {
    let sources = |sources: &[Located<SourceDraft>]| {
        let mut finished = Sources::default();
        for source in sources {
            match &source.value {
                SourceDraft::Set(name) => {
                    finished.sets.push(draft.sets.iter().position(|set| set.name.value == *name)?);
                }
                SourceDraft::Prefix(prefix) => finished.prefixes.push(*prefix),
            }
        }
        Some(finished)
    };
    let service = |name: &Located<String>| draft.services.iter().position(|s| s.name.value == name.value);
    Some(Rule {
        name: rule.name.value.clone(),
        matches: Matches {
            source: sources(&rule.source)?,
            not_source: sources(&rule.not_source)?,
            services: rule.services.iter().map(service).collect::<Option<_>>()?,
            ..rule.matches.clone()
        },
        action: rule.action.clone(),
        dry_run: rule.dry_run,
    })
}
