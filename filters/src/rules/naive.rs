//! The rules, asked one condition after the other: slow, plain, and able to say which condition fails. For `sluice explain`,
//! and the measure of the compiled ones.

use std::fmt;

use sluice_config::{PayloadMatch, Rule, Sources};

use super::column::option_holds;
use super::residue::{order_holds, payload_holds};
use super::{Facts, Rules};
use crate::AddressSet;
use crate::addr::Addr;

/// A condition of a rule, by the key it is configured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition(&'static str);

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The first condition of rule `index` that does not hold; none when the rule matches. `sets` are the configuration's, in order.
#[must_use]
pub fn mismatch(rules: &Rules, index: usize, rule: &Rule, sets: &[AddressSet], facts: &Facts<'_>) -> Option<Condition> {
    first_mismatch((rules, index), rule, sets, facts, |_| false)
}

/// [`mismatch`] of a rule without those of its payload's conditions that are waived.
fn first_mismatch(
    (rules, index): (&Rules, usize),
    rule: &Rule,
    sets: &[AddressSet],
    facts: &Facts<'_>,
    waived: impl Fn(&PayloadMatch) -> bool,
) -> Option<Condition> {
    let (m, segment, offer) = (&rule.matches, facts.segment, facts.offer());
    let any = |ranges: &[std::ops::RangeInclusive<u16>], value| {
        ranges.is_empty() || ranges.iter().any(|range| range.contains(&value))
    };
    let flags = segment.flags.0;
    let conditions = [
        ("source", m.source.is_empty() || holds(&m.source, sets, segment.key.src)),
        ("not_source", !holds(&m.not_source, sets, segment.key.src)),
        ("ip_version", m.ip_version.is_none_or(|version| (version == 4) == segment.is_v4())),
        ("service", m.services.is_empty() || m.services.contains(&usize::from(facts.service.0))),
        ("source_port", any(&m.source_ports, segment.key.src_port)),
        ("destination_port", any(&m.destination_ports, segment.key.dst_port)),
        ("flags", m.flags.is_none_or(|wanted| flags & wanted.set == wanted.set && flags & wanted.clear == 0)),
        ("hop_limit", m.hop_limit.as_ref().is_none_or(|range| range.contains(&segment.hop_limit))),
        ("ip_length", any(m.ip_length.as_slice(), facts.ip_length())),
        ("payload_length", any(m.payload_length.as_slice(), segment.payload_len)),
        ("window", any(m.window.as_slice(), segment.window)),
        ("mss", option_holds(m.mss.as_ref(), offer.mss)),
        ("window_scale", option_holds(m.window_scale.as_ref(), offer.wscale)),
        ("sack", m.sack.is_none_or(|sack| sack == offer.sack_permitted)),
        ("timestamps", m.timestamps.is_none_or(|timestamps| timestamps == offer.tsval.is_some())),
        ("options", m.option_order.as_ref().is_none_or(|order| order_holds(order, facts))),
        ("payload", m.payload.iter().all(|octets| waived(octets) || payload_holds(octets, facts))),
        ("pcap", rules.expression(index).is_none_or(|pcap| pcap.matches_segment(facts.frame, segment))),
    ];
    conditions.into_iter().find(|(_, holds)| !holds).map(|(key, _)| Condition(key))
}

/// Whether rule `index` matches only if octets of the payload, which the frame lacks, are as it wants them: everything else does hold.
#[must_use]
pub fn hangs_on_missing(rules: &Rules, index: usize, rule: &Rule, sets: &[AddressSet], facts: &Facts<'_>) -> bool {
    let sent = usize::from(facts.segment.payload_len);
    let payload = facts.frame.get(facts.segment.payload_start()..).unwrap_or_default();
    let payload = payload.get(..sent).unwrap_or(payload);
    let missing = |wanted: &PayloadMatch| {
        let begin = usize::from(wanted.offset);
        let end = begin.saturating_add(wanted.value.len());
        // What is there of them may already be wrong.
        let there = payload.get(begin..).unwrap_or_default();
        let masked = there.iter().zip(&wanted.mask).map(|(octet, mask)| octet & mask);
        end > payload.len() && end <= sent && masked.zip(&wanted.value).all(|(octet, value)| octet == *value)
    };
    rule.matches.payload.iter().any(missing)
        // Those whose octets are there still count.
        && first_mismatch((rules, index), rule, sets, facts, missing).is_none()
}

/// Whether any of the sets and prefixes holds the address.
#[must_use]
pub fn holds(sources: &Sources, sets: &[AddressSet], addr: Addr) -> bool {
    let ip = addr.to_ip();
    sources.prefixes.iter().any(|net| net.contains(&ip))
        || sources.sets.iter().any(|set| sets.get(*set).is_some_and(|set| set.contains(addr)))
}
