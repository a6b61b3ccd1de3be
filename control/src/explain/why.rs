//! Why a rule does not match: what the packet has beside what the rule wants, in the configuration's words. And of a rule that
//! matches, what holds its source.

use std::fmt::Display;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use sluice_config::{Config, FlagMatch, OptionMatch, Rule, SourceCheck, Sources};
use sluice_filters::addr::Addr;
use sluice_filters::rules::{Facts, naive};
use sluice_filters::sets::AddressSet;
use sluice_filters::{DropReason, Segment, SynOffer, option_kinds};

use crate::replay::Outcome;

/// Names of option kinds, as `rule.options` has them.
const KINDS: [(u8, &str); 7] =
    [(0, "end"), (1, "nop"), (2, "mss"), (3, "window-scale"), (4, "sack-permitted"), (5, "sack"), (8, "timestamps")];

/// `hop_limit is 52, wanted 200-255`: what `condition` says of the packet and of the rule.
pub(super) fn mismatch(
    condition: naive::Condition,
    rule: &Rule,
    config: &Config,
    sets: &[AddressSet],
    facts: &Facts<'_>,
) -> String {
    let (m, segment) = (&rule.matches, facts.segment);
    let offer = SynOffer::read(segment.option_octets(facts.frame));
    let key = condition.to_string();
    let is = |found: &dyn Display, wanted: String| format!("{key} is {found}, wanted {wanted}");
    let source = segment.key.src;
    match key.as_str() {
        "source" => format!("source {} is not in {}", source.to_ip(), named(&m.source, config)),
        "not_source" => {
            let holder = holder(&m.not_source, config, sets, source).unwrap_or_default();
            format!("source {} is in {holder}, which not_source names", source.to_ip())
        }
        "ip_version" => is(&if segment.is_v4() { 4 } else { 6 }, show(m.ip_version)),
        "service" => {
            let name = |at: usize| config.services.get(at).map_or("?", |service| service.name.as_str()).to_owned();
            let wanted: Vec<String> = m.services.iter().map(|at| name(*at)).collect();
            is(&name(facts.service.0.into()), wanted.join(" or "))
        }
        "source_port" => is(&segment.key.src_port, ranges(&m.source_ports)),
        "destination_port" => is(&segment.key.dst_port, ranges(&m.destination_ports)),
        "flags" => {
            let set = FlagMatch { set: segment.flags.0, clear: 0 }.to_string();
            let found = if set.is_empty() { "none" } else { &set };
            format!("flags are {found}, wanted {}", show(m.flags))
        }
        "hop_limit" => is(&segment.hop_limit, ranges(m.hop_limit.as_slice())),
        "ip_length" => is(&facts.ip_length(), ranges(m.ip_length.as_slice())),
        "payload_length" => is(&segment.payload_len, ranges(m.payload_length.as_slice())),
        "window" => is(&segment.window, ranges(m.window.as_slice())),
        "mss" => is(&or_none(offer.mss), option(m.mss.as_ref())),
        "window_scale" => is(&or_none(offer.wscale), option(m.window_scale.as_ref())),
        "sack" => is(&offer.sack_permitted, show(m.sack)),
        "timestamps" => is(&offer.tsval.is_some(), show(m.timestamps)),
        "options" => {
            let found: Vec<u8> = option_kinds(segment.option_octets(facts.frame)).collect();
            format!("options are {}, wanted {}", kinds(&found), kinds(m.option_order.as_deref().unwrap_or_default()))
        }
        "payload" => {
            let wanted: Vec<String> = m.payload.iter().map(ToString::to_string).collect();
            format!("{}, wanted {}", begin(segment.payload(facts.frame)), wanted.join(" and "))
        }
        "pcap" => {
            let text = m.pcap.as_ref().map_or("", |pcap| pcap.text.as_str());
            format!("pcap {text:?} does not hold")
        }
        _ => key,
    }
}

/// What is wrong with a packet's source, if the outcome says that something is.
pub(super) fn bad_source(config: &Config, segment: &Segment, port: Option<usize>, outcome: Outcome) -> Option<String> {
    let source = segment.key.src.to_ip();
    let named = port.and_then(|port| config.ports.get(port));
    let here = named.map_or("a port".to_owned(), |port| format!("port {:?}", port.name));
    let reason = if outcome == Outcome::FromService { Some(DropReason::OwnSource) } else { outcome.reason() };
    Some(match reason? {
        DropReason::OwnSource => format!("{source} is the appliance's own address"),
        DropReason::MartianSource => format!("{source} is a network's own or its broadcast address"),
        DropReason::UpstreamSource => {
            format!("{source} is an upstream's address, and its route does not leave by {here}")
        }
        DropReason::SourceRoute if named.is_some_and(|port| port.source_check == SourceCheck::Strict) => {
            format!("the best route to {source} does not leave by {here}, whose source_check is \"strict\"")
        }
        DropReason::SourceRoute => format!("no route leads to {source}, and source_check is not \"off\""),
        _ => return None,
    })
}

/// The first set or prefix among `sources` that holds the address.
pub(super) fn holder(sources: &Sources, config: &Config, sets: &[AddressSet], addr: Addr) -> Option<String> {
    let prefix = sources.prefixes.iter().find(|net: &&IpNet| net.contains(&addr.to_ip())).map(ToString::to_string);
    let set = sources.sets.iter().find(|set| sets.get(**set).is_some_and(|set| set.contains(addr)));
    set.and_then(|set| config.sets.get(*set)).map(|set| format!("@{}", set.name)).or(prefix)
}

fn named(sources: &Sources, config: &Config) -> String {
    let set = |set: &usize| config.sets.get(*set).map(|set| format!("@{}", set.name));
    let all: Vec<String> =
        sources.sets.iter().filter_map(set).chain(sources.prefixes.iter().map(ToString::to_string)).collect();
    match all.split_at_checked(SHOWN) {
        Some((shown, rest)) if !rest.is_empty() => format!("{} or {} more", shown.join(", "), rest.len()),
        _ => all.join(" or "),
    }
}

/// Sources that are shown.
const SHOWN: usize = 8;

fn show(value: Option<impl Display>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

fn or_none(value: Option<impl Display>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

/// `53 or 1024-65535`
fn ranges<T: Display + PartialEq>(ranges: &[RangeInclusive<T>]) -> String {
    let one = |range: &RangeInclusive<T>| {
        let (start, end) = (range.start(), range.end());
        if start == end { start.to_string() } else { format!("{start}-{end}") }
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(" or ")
}

fn option<T: Display + PartialEq + Clone>(wanted: Option<&OptionMatch<T>>) -> String {
    match wanted {
        Some(OptionMatch::Within(values)) => ranges(std::slice::from_ref(values)),
        _ => "none".to_owned(),
    }
}

fn kinds(kinds: &[u8]) -> String {
    if kinds.is_empty() {
        return "none".to_owned();
    }
    let name = |kind: &u8| {
        KINDS.iter().find(|(number, _)| number == kind).map_or_else(|| kind.to_string(), |(_, name)| (*name).to_owned())
    };
    kinds.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// How a payload begins: text as text.
fn begin(payload: &[u8]) -> String {
    let first = payload.get(..16).unwrap_or(payload);
    let text = |octet: &u8| matches!(octet, b' '..=b'~' | b'\r' | b'\n' | b'\t');
    match std::str::from_utf8(first) {
        _ if first.is_empty() => "there is no payload".to_owned(),
        Ok(shown) if first.iter().all(text) => format!("payload begins with {shown:?}"),
        _ => {
            let octets: Vec<String> = first.iter().map(|octet| format!("{octet:02x}")).collect();
            format!("payload begins with {}", octets.join(" "))
        }
    }
}
