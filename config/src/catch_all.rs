//! Rules that hold for every segment to a service, in whatever words: after one that decides, no other is ever asked.
//!
//! What the parser lets through is known: unicast sources, ports and hop limits other than 0, lengths that a segment can have.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::model::{Config, Matches, Rule, Set, Sources};

/// What rules are about.
pub(crate) struct Around {
    /// By service: where it listens.
    pub(crate) listens: Vec<Vec<SocketAddr>>,
    /// By set: the prefixes of which it surely is made, and whether it may have others.
    pub(crate) sets: Vec<(Vec<IpNet>, bool)>,
}

impl Config {
    /// Whether every condition of the rule but `pcap` holds for every segment to a service.
    #[must_use]
    pub fn is_catch_all(&self, rule: &Rule) -> bool {
        let listens = self.services.iter().map(|service| service.listen.clone()).collect();
        let may_have_more = |set: &Set| !set.files.is_empty() || set.geo.is_some();
        let sets = self.sets.iter().map(|set| (set.prefixes.clone(), may_have_more(set))).collect();
        holds_always(&rule.matches, &Around { listens, sets })
    }

    /// The IP versions, 4 and 6, of which the rule may be asked.
    pub fn versions_of<'a>(&'a self, rule: &'a Rule) -> impl Iterator<Item = u8> + 'a {
        let matches = &rule.matches;
        [4, 6].into_iter().filter(move |version| {
            let named = |index: &usize| matches.services.is_empty() || matches.services.contains(index);
            let services = self.services.iter().enumerate().filter(|(index, _)| named(index));
            matches.ip_version.is_none_or(|asked| asked == *version)
                && services.flat_map(|(_, service)| &service.listen).any(|listen| listen.is_ipv4() == (*version == 4))
        })
    }
}

/// Whether every condition but `pcap` holds for every segment to a service.
pub(crate) fn holds_always(matches: &Matches, around: &Around) -> bool {
    let Matches { source, not_source, ip_version, services, source_ports, destination_ports, .. } = matches;
    let sockets: Vec<SocketAddr> = around.listens.iter().flatten().copied().collect();
    let families: Vec<bool> =
        [true, false].into_iter().filter(|v4| sockets.iter().any(|s| s.is_ipv4() == *v4)).collect();
    let every_family = |holds: &dyn Fn(bool) -> bool| families.iter().all(|v4| holds(*v4));
    let asks_of_options = matches.mss.is_some()
        || matches.window_scale.is_some()
        || matches.sack.is_some()
        || matches.timestamps.is_some()
        || matches.option_order.is_some();
    !asks_of_options
        && matches.payload.is_empty()
        && matches.flags.is_none_or(|flags| flags.set | flags.clear == 0)
        && matches.hop_limit.as_ref().is_none_or(|range| covers(range, 1, u8::MAX))
        && matches
            .ip_length
            .as_ref()
            .is_none_or(|range| covers(range, if families == [false] { 60 } else { 40 }, u16::MAX))
        && matches.payload_length.as_ref().is_none_or(|range| covers(range, 0, u16::MAX - 40))
        && matches.window.as_ref().is_none_or(|range| covers(range, 0, u16::MAX))
        && ip_version.is_none_or(|version| families == [version == 4])
        && (services.is_empty() || (0..around.listens.len()).all(|service| services.contains(&service)))
        && (source_ports.is_empty() || is_all(spans(source_ports), (1, u16::MAX.into())))
        && sockets
            .iter()
            .all(|s| destination_ports.is_empty() || destination_ports.iter().any(|r| r.contains(&s.port())))
        && (source.is_empty() || every_family(&|v4| is_all(prefixes(source, around, v4), unicast(v4))))
        && not_source.sets.iter().all(|set| around.sets.get(*set).is_some_and(|(_, may_have_more)| !may_have_more))
        && every_family(&|v4| prefixes(not_source, around, v4).iter().all(|span| is_apart(*span, unicast(v4))))
}

type Span = (u128, u128);

fn covers<T: PartialOrd>(range: &RangeInclusive<T>, first: T, last: T) -> bool {
    *range.start() <= first && *range.end() >= last
}

fn spans(ranges: &[RangeInclusive<u16>]) -> Vec<Span> {
    ranges.iter().map(|range| ((*range.start()).into(), (*range.end()).into())).collect()
}

/// The sources that the parser accepts: IPv4 without 0.0.0.0/8 and from 224.0.0.0 on, IPv6 without ::/64 and ff00::/8.
fn unicast(v4: bool) -> Span {
    if v4 { (1 << 24, (224 << 24) - 1) } else { (1 << 64, (0xff << 120) - 1) }
}

fn prefixes(sources: &Sources, around: &Around, v4: bool) -> Vec<Span> {
    let of_sets = sources.sets.iter().filter_map(|set| around.sets.get(*set)).flat_map(|(prefixes, _)| prefixes);
    let bits = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => addr.to_bits(),
    };
    let all = of_sets.chain(&sources.prefixes).filter(|net| net.addr().is_ipv4() == v4);
    all.map(|net| (bits(net.network()), bits(net.broadcast()))).collect()
}

/// Whether nothing of the whole is left out.
fn is_all(mut spans: Vec<Span>, whole: Span) -> bool {
    spans.sort_unstable();
    let mut next = whole.0;
    for (first, last) in spans {
        if first > next {
            return false;
        }
        if last >= whole.1 {
            return true;
        }
        next = next.max(last.saturating_add(1));
    }
    false
}

fn is_apart((first, last): Span, whole: Span) -> bool {
    last < whole.0 || first > whole.1
}

#[cfg(test)]
mod tests {
    /// Whether a rule with these keys is refused before another rule.
    fn is_refused(keys: &str) -> bool {
        let text = format!(
            "[[port]]\nname = \"wan\"\ndevice = \"net_null0\"\naddresses = [\"198.51.100.2/24\"]\n\
             [[service]]\nname = \"a\"\nlisten = [\"198.51.100.10:443\"]\n[[service.upstream]]\naddress = \"198.51.100.5:80\"\n\
             [[service]]\nname = \"b\"\nlisten = [\"198.51.100.10:22\"]\n[[service.upstream]]\naddress = \"198.51.100.5:22\"\n\
             [[set]]\nname = \"all\"\nprefixes = [\"0.0.0.0/1\", \"128.0.0.0/1\"]\n\
             [[set]]\nname = \"file\"\nfiles = \"/list\"\n\
             [[rule]]\nname = \"r\"\naction = \"drop\"\n{keys}\n[[rule]]\nname = \"next\"\naction = \"drop\"\nflags = \"rst\"\n"
        );
        match crate::parse("t", &text) {
            Ok(_) => false,
            Err(errors) => {
                let text = errors.to_string();
                assert!(
                    text.contains("rule \"r\": action: decides everything") && !text.contains('\n'),
                    "{keys}: {text}"
                );
                true
            }
        }
    }

    #[test]
    fn a_rule_for_everything_is_found_in_every_spelling() {
        for keys in [
            "",
            "ip_version = 4",
            "service = [\"a\", \"b\"]",
            "source = [\"0.0.0.0/0\", \"::/0\"]",
            "source = \"0.0.0.0/0\"",
            "source = [\"128.0.0.0/1\", \"0.0.0.0/1\"]",
            "source = [\"0.0.0.0/1\", \"128.0.0.0/2\", \"192.0.0.0/3\"]",
            "source = \"@all\"",
            "source = [\"@all\", \"@file\"]",
            "not_source = \"224.0.0.0/4\"",
            "source_port = \"1-65535\"",
            "source_port = [\"1-1023\", \"1024-65535\"]",
            "destination_port = [22, 443]",
            "destination_port = \"1-65535\"",
            "hop_limit = \"1-255\"",
            "hop_limit = \"1-\"",
            "ip_length = \"40-\"",
            "payload_length = \"0-\"",
            "window = \"0-65535\"",
            "source = \"0.0.0.0/0\"\nsource_port = \"1-\"\nhop_limit = \"1-\"",
        ] {
            assert!(is_refused(keys), "{keys}");
        }
    }

    #[test]
    fn a_rule_that_leaves_anything_is_none_for_everything() {
        for keys in [
            "service = \"a\"",
            "source = [\"0.0.0.0/1\", \"128.0.0.0/2\"]",
            "source = \"@file\"",
            "not_source = \"@file\"",
            "not_source = \"192.0.2.1\"",
            "source_port = \"2-65535\"",
            "source_port = \"1-65534\"",
            "destination_port = 22",
            "hop_limit = \"2-\"",
            "ip_length = \"41-\"",
            "payload_length = \"1-\"",
            "window = \"1-\"",
            "sack = false",
            "flags = \"!psh\"",
            "payload = [{ hex = \"00\", mask = \"80\" }]",
            "dry_run = true",
        ] {
            assert!(!is_refused(keys), "{keys}");
        }
    }
}
