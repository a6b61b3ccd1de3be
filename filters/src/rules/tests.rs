use std::ops::RangeInclusive;

use proptest::collection::vec;
use proptest::option::{self, weighted};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use sluice_config::{
    Action, Config, Expression as Text, FlagMatch, Matches, OptionMatch, PayloadMatch, Place, Rule, Sources,
};

use super::*;
use crate::engine::Plan;
use crate::sets::AddressSet;
use crate::testkit::{Opt, tcp};
use crate::{Flags, Parsed, RxChecksums, parse};

const CONFIG: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24", "2001:db8::2/64"]
[[service]]
name = "one"
listen = ["198.51.100.10:443", "[2001:db8::10]:443"]
[[service.upstream]]
address = "198.51.100.5:80"
[[service]]
name = "two"
listen = ["198.51.100.11:22"]
[[service.upstream]]
address = "198.51.100.5:22"
"#;

fn config(rules: Vec<Rule>) -> Config {
    Config { rules, ..sluice_config::parse("test.toml", CONFIG).unwrap() }
}

fn rule(matches: Matches) -> Rule {
    Rule { name: "r".into(), matches, action: Action::Drop, dry_run: false }
}

fn sets() -> Vec<AddressSet> {
    let set = |nets: &[&str]| AddressSet::new(&nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>());
    vec![set(&["192.0.2.0/25", "2001:db8:7::/48"]), set(&["192.0.2.64/26"]), set(&[])]
}

/// The rules that the compiled form finds, in order.
fn found(plan: &Plan, facts: &Facts<'_>) -> Vec<usize> {
    let rules = plan.rules();
    let mut candidates = rules.first::<WORDS>(Moment::Arrival, plan.row_of(facts.segment.key.src), facts);
    std::iter::from_fn(|| rules.next(&mut candidates, facts)).collect()
}

/// The rules that match, asked one by one.
fn expected(config: &Config, plan: &Plan, sets: &[AddressSet], facts: &Facts<'_>) -> Vec<usize> {
    let matches = |(index, rule): &(usize, &Rule)| naive::mismatch(plan.rules(), *index, rule, sets, facts).is_none();
    config.rules.iter().enumerate().filter(matches).map(|(index, _)| index).collect()
}

fn segment(frame: &[u8]) -> Segment {
    match parse(frame, RxChecksums::default()) {
        Ok(Parsed::Tcp(segment)) => segment,
        other => panic!("{other:?}"),
    }
}

fn around(values: &'static [u16]) -> impl Strategy<Value = RangeInclusive<u16>> {
    let edge = move || {
        prop_oneof![
            3 => select(values).prop_flat_map(|value| value.saturating_sub(1)..=value.saturating_add(1)),
            1 => select(&[0, u16::MAX][..]),
        ]
    };
    (edge(), edge()).prop_map(|(a, b)| a.min(b)..=a.max(b))
}

const PORTS: &[u16] = &[1024, 40_000, 65_534];
const LENGTHS: &[u16] = &[0, 4, 40, 60, 100];
const WINDOWS: &[u16] = &[0, 1024, 64_240];
const SIZES: &[u16] = &[536, 1_460];

fn any_sources() -> impl Strategy<Value = Sources> {
    let prefixes = ["192.0.2.7/32", "192.0.2.0/24", "0.0.0.0/0", "2001:db8:7::/64", "::/0"];
    (subsequence(vec![0, 1, 2], 0..=2), subsequence(prefixes.to_vec(), 0..=2)).prop_map(|(sets, prefixes)| Sources {
        sets,
        prefixes: prefixes.into_iter().map(|net| net.parse().unwrap()).collect(),
    })
}

fn option_match<T: std::fmt::Debug + Clone + 'static>(
    range: impl Strategy<Value = RangeInclusive<T>>,
) -> impl Strategy<Value = OptionMatch<T>> {
    prop_oneof![Just(None), range.prop_map(Some)]
        .prop_map(|range| range.map_or(OptionMatch::Absent, OptionMatch::Within))
}

fn any_matches() -> impl Strategy<Value = Matches> {
    let few = 0.15;
    let flags = (any::<u8>(), any::<u8>(), any::<u8>())
        .prop_map(|(set, clear, mask)| FlagMatch { set: set & mask & 0x1b, clear: clear & !mask & 0x1b });
    let payload = (0u16..4, vec(any::<u8>(), 1..4), any::<bool>()).prop_map(|(offset, mask, odd)| PayloadMatch {
        offset,
        value: mask.iter().zip(b"GET ".iter().skip(usize::from(offset))).map(|(mask, octet)| mask & octet).collect(),
        mask: if odd { mask } else { mask.into_iter().collect() },
    });
    let payload = payload.prop_map(|mut payload: PayloadMatch| {
        payload.mask.truncate(payload.value.len());
        payload
    });
    let kinds = prop_oneof![Just(vec![2, 4, 8, 1, 3]), Just(vec![]), Just(vec![2, 1, 1, 4]), Just(vec![1, 1, 8]),];
    let pcap = select(
        &["tcp dst port 443", "ip6 or port 9", "tcp[tcpflags] & tcp-syn != 0", "ip[8] < 64 or port 9", "greater 80"][..],
    );
    let pcap = pcap.prop_map(|text| Text { text: text.into(), place: Place { line: 1, column: 1 } });
    (
        (
            any_sources(),
            any_sources(),
            weighted(few, select(&[4u8, 6][..])),
            subsequence(vec![0, 1], 0..=1),
            vec(around(PORTS), 0..=2),
            vec(around(&[22, 443]), 0..=1),
            weighted(few, flags),
            weighted(few, (0u8..=3, 60u8..=70).prop_map(|(a, b)| a * 30..=b)),
        ),
        (
            weighted(few, around(LENGTHS)),
            weighted(few, around(LENGTHS)),
            weighted(few, around(WINDOWS)),
            weighted(few, option_match(around(SIZES))),
            weighted(few, option_match((0u8..=14, 0u8..=14).prop_map(|(a, b)| a.min(b)..=a.max(b)))),
            weighted(few, any::<bool>()),
            weighted(few, any::<bool>()),
            weighted(few, kinds),
            vec(payload, 0..=1).prop_filter("values", |all| all.iter().all(|one| !one.value.is_empty())),
            weighted(few, pcap),
        ),
        any::<u16>(),
    )
        .prop_map(|(first, second, keep)| {
            let (source, not_source, ip_version, services, source_ports, destination_ports, flags, hop_limit) = first;
            let (ip_length, payload_length, window, mss, window_scale, sack, timestamps, option_order, payload, pcap) =
                second;
            // Rules with many conditions match nothing: each list is kept now and then only.
            let kept = |bit: u16| keep >> bit & 3 == 0;
            Matches {
                source: if kept(0) { source } else { Sources::default() },
                not_source: if kept(2) { not_source } else { Sources::default() },
                ip_version,
                services: if kept(4) { services } else { vec![] },
                source_ports: if kept(6) { source_ports } else { vec![] },
                destination_ports: if kept(8) { destination_ports } else { vec![] },
                flags,
                hop_limit,
                ip_length,
                payload_length,
                window,
                mss,
                window_scale,
                sack,
                timestamps,
                option_order,
                payload: if kept(10) { payload } else { vec![] },
                pcap,
            }
        })
}

fn any_frame() -> impl Strategy<Value = (Vec<u8>, u16)> {
    let flags = select(&[Flags::SYN, Flags::ACK, Flags::RST][..]);
    let value = |values: &'static [u16]| select(values);
    let options = prop_oneof![
        Just(vec![]),
        Just(vec![Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(7, 0), Opt::Nop, Opt::WindowScale(7)]),
        Just(vec![Opt::Mss(536), Opt::Nop, Opt::Nop, Opt::SackPermitted]),
        Just(vec![Opt::Nop, Opt::Nop, Opt::Timestamp(1, 2)]),
        Just(vec![Opt::WindowScale(14), Opt::Nop]),
        Just(vec![Opt::Raw(vec![30, 12, 0, 0])]),
    ];
    let ends = select(
        &[
            ("192.0.2.7", "198.51.100.10:443", 0u16),
            ("192.0.2.100", "198.51.100.11:22", 1),
            ("203.0.113.9", "198.51.100.10:443", 0),
            ("[2001:db8:7::1]", "[2001:db8::10]:443", 0),
            ("[2001:db8:8::1]", "[2001:db8::10]:443", 0),
        ][..],
    );
    let payload = select(&["", "GET ", "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n"][..]);
    (ends, value(PORTS), flags, 1u8..=255, value(WINDOWS), options, payload, option::of(1u16..4095)).prop_map(
        |((from, to, service), port, flags, hop_limit, window, options, payload, vlan)| {
            let mut frame = tcp(&*format!("{from}:{port}"), to)
                .flags(flags)
                .hop_limit(hop_limit)
                .window(window)
                .options(options)
                .payload(payload);
            if let Some(vlan) = vlan {
                frame = frame.vlan(vlan);
            }
            (frame.build(), service)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn compiled_rules_match_what_their_conditions_say_one_by_one(
        matches in vec(any_matches(), 1..140),
        frames in vec(any_frame(), 30),
    ) {
        // Some of these expressions are of IPv4 alone, as `tcp[N]` is.
        let sound = |matches: Matches| match matches.pcap {
            Some(_) => Matches { ip_version: matches.ip_version.filter(|version| *version == 4), ..matches },
            None => matches,
        };
        let config = config(matches.into_iter().map(sound).map(rule).collect());
        let sets = sets();
        let plan = Plan::compile("test.toml", &config, &sets, 1).unwrap();
        for (frame, service) in frames {
            let segment = segment(&frame);
            let facts = Facts { segment: &segment, frame: &frame, service: ServiceId(service) };
            prop_assert_eq!(found(&plan, &facts), expected(&config, &plan, &sets, &facts), "{:?}", segment);
        }
    }
}

#[test]
fn more_rules_than_a_word_are_asked_in_their_order() {
    let port = |port: u16| rule(Matches { source_ports: vec![port..=port], ..Matches::default() });
    let mut rules: Vec<Rule> = (0..1_024).map(|index| port(10_000 + index)).collect();
    rules[1_023] = rule(Matches::default());
    rules[700] = rule(Matches::default());
    let config = config(rules);
    let plan = Plan::compile("test.toml", &config, &[], 1).unwrap();
    let frame = tcp("192.0.2.7:10900", "198.51.100.10:443").build();
    let segment = segment(&frame);
    let facts = Facts { segment: &segment, frame: &frame, service: ServiceId(0) };
    assert_eq!(found(&plan, &facts), [700, 900, 1_023]);
}

#[test]
fn an_expression_that_cannot_be_compiled_is_a_mistake_with_its_place() {
    let text = |text: &str, line| {
        let place = Place { line, column: 8 };
        rule(Matches { pcap: Some(Text { text: text.into(), place }), ..Matches::default() })
    };
    let config = config(vec![text("tcp dst port 443", 10), text("tcp prot 443", 20), text("vlan 5", 30)]);
    let mistakes = Rules::compile("sluice.toml", &config).unwrap_err();
    let shown: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(shown[0].starts_with("sluice.toml:20: rule \"r\": pcap: 'prot' is a name, "), "{shown:?}");
    assert!(
        shown[1].starts_with("sluice.toml:30: rule \"r\": pcap: ") && shown[1].contains("; leave it out"),
        "{shown:?}"
    );
}

#[test]
fn an_expression_that_no_tcp_segment_meets_or_every_one_is_a_mistake_with_its_place() {
    let text = |text: &str| {
        let place = Place { line: 10, column: 8 };
        rule(Matches { pcap: Some(Text { text: text.into(), place }), ..Matches::default() })
    };
    let said = |rules: Vec<Rule>| {
        let mistakes = Rules::compile("t", &config(rules)).err().unwrap_or_default();
        mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let other = || rule(Matches { hop_limit: Some(1..=9), ..Matches::default() });
    for never in ["udp", "icmp", "arp", "udp port 53", "icmp6", "ip proto 47", "port 53 and udp"] {
        let said = said(vec![text(never)]);
        assert!(said.starts_with(&format!("t:10: rule \"r\": pcap: {never:?} can match no packet")), "{never}: {said}");
    }
    for all in ["tcp", "ip or ip6", "not udp", "tcp or udp"] {
        let before_others = said(vec![text(all), other()]);
        assert!(
            before_others.contains("matches everything: the rules after it are pointless"),
            "{all}: {before_others}"
        );
        assert_eq!(said(vec![text(all)]), "", "{all}: the last may");
        let narrowed = Rule { matches: Matches { hop_limit: Some(1..=9), ..text(all).matches }, ..text(all) };
        assert_eq!(said(vec![narrowed, other()]), "", "{all}");
        assert_eq!(said(vec![Rule { dry_run: true, ..text(all) }, other()]), "", "{all}");
    }
    for some in ["ip", "ip6", "tcp port 443", "greater 100", "not port 22"] {
        assert_eq!(said(vec![text(some), other()]), "", "{some}");
    }
    let only_v6 = Rule { matches: Matches { ip_version: Some(6), ..text("ip").matches }, ..text("ip") };
    assert!(said(vec![only_v6]).contains("can match no packet"));
}

#[test]
fn the_longest_ipv6_packet_is_not_taken_for_a_short_one() {
    for (payload, length) in [(65_535 - 60, 65_535), (65_535 - 20, 65_535), (100, 160)] {
        let frame = crate::testkit::tcp("[2001:db8::7]:1", "[2001:db8::10]:443").payload(vec![0; payload]).build();
        let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!() };
        let facts = Facts { segment: &segment, frame: &frame, service: ServiceId(0) };
        assert_eq!(facts.ip_length(), length);
    }
}
