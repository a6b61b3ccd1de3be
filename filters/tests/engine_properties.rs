//! What holds of the engine whatever its rules, its packets and its clock are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sluice_config::{Action, Config, Measure};
use sluice_filters::addr::Addr;
use sluice_filters::engine::{Engine, FilterCounters, Foregone, Plan};
use sluice_filters::rules::{Facts, naive};
use sluice_filters::testkit::{Opt, fix_checksums, tcp};
use sluice_filters::units::Micros;
use sluice_filters::{AddressSet, DropReason, Flags, Parsed, RxChecksums, ServiceMap, glance, parse};

const BASE: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24", "2001:db8::2/64"]
[[service]]
name = "web"
listen = ["198.51.100.10:443", "[2001:db8::10]:443"]
[[service.upstream]]
address = "198.51.100.5:80"
[[service]]
name = "ssh"
listen = ["198.51.100.11:22"]
[[service.upstream]]
address = "198.51.100.5:22"
[bans]
capacity = 4
[[set]]
name = "one"
prefixes = ["203.0.113.0/29"]
[[set]]
name = "two"
prefixes = ["203.0.113.4/30", "2001:db8:7::/64"]
"#;

const CONDITIONS: [&str; 24] = [
    "",
    "source = \"@one\"",
    "source = [\"@two\", \"203.0.113.9\"]",
    "not_source = \"@two\"",
    "source = \"::/0\"",
    "source = \"0.0.0.0/0\"",
    "ip_version = 4",
    "ip_version = 6",
    "service = \"ssh\"",
    "source_port = [\"1-2000\", 40000]",
    "destination_port = 443",
    "flags = \"syn !ack\"",
    "flags = \"ack\"",
    "hop_limit = \"-63\"",
    "hop_limit = 64",
    "ip_length = \"-60\"",
    "payload_length = \"1-\"",
    "window = 0",
    "mss = \"none\"",
    "sack = true",
    "options = \"mss nop nop sack-permitted\"",
    "payload = [{ text = \"GET \" }]",
    "pcap = \"tcp[tcpflags] & tcp-syn != 0 and ip[8] < 64\"",
    "pcap = \"ip6 or len > 80\"",
];

const ACTIONS: [&str; 9] = [
    "action = \"drop\"",
    "action = \"pass\"",
    "action = \"limit\"\nlimit = \"2/s\"",
    "action = \"limit\"\nlimit = \"100B/s\"\nof = \"bytes\"\nper = \"global\"",
    "action = \"limit\"\nlimit = \"3/s\"\nper = \"service\"",
    "action = \"limit\"\nlimit = \"1/h\"\nper = \"prefix\"\nprefix_v4 = 1\nprefix_v6 = 1",
    "action = \"limit\"\nlimit = \"1/min\"\nof = \"connections\"",
    "action = \"limit\"\nlimit = \"2/s\"\nof = \"connections\"\nper = \"global\"",
    "action = \"drop\"",
];

const FILTERS: [&str; 5] = [
    "",
    "[filters]\ndeny = [\"203.0.113.0/30\"]\nallow = [\"203.0.113.1\"]\n",
    "[filters]\nallow = [\"203.0.113.0/28\", \"2001:db8::/32\"]\n",
    "[filters]\nrecords = 1024\nsyn_ack_ceiling = \"2/s\"\n[filters.per_address]\nsyns = \"2/s\"\nflowless_acks = \"1/s\"\n",
    "[filters]\nsyn_ack_ceiling = \"off\"\n[filters.per_subnet]\npackets = \"5/s\"\nbytes = \"300B/s\"\n[filters.per_site]\nconnections = \"1/s\"\n",
];

/// A configuration with those of the rules that it may have, behind so many that match next to nothing.
fn config(rules: &[(usize, usize, usize, bool)], filters: usize, before: usize) -> Config {
    let mut text = BASE.to_owned();
    for n in 0..before {
        text += &format!("[[rule]]\nname = \"before-{n}\"\naction = \"drop\"\nsource_port = {}\n", 3_900 + n);
    }
    for (n, &(action, one, other, dry)) in rules.iter().enumerate() {
        let (action, one, other) = (ACTIONS[action], CONDITIONS[one], CONDITIONS[other]);
        let rule = format!("[[rule]]\nname = \"r{n}\"\n{action}\ndry_run = {dry}\n{one}\n{other}\n");
        // The expression is of IPv4.
        let contradicts = rule.contains("ip_version = 6") && rule.contains("pcap = ");
        if !contradicts && sluice_config::parse("t", &format!("{text}{rule}")).is_ok() {
            text += &rule;
        }
    }
    sluice_config::parse("t", &format!("{text}{}", FILTERS[filters])).unwrap_or_else(|wrong| panic!("{wrong}"))
}

/// Few addresses, so that they meet each other's records.
fn source() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        6 => (0u8..16).prop_map(|n| Ipv4Addr::new(203, 0, 113, n).into()),
        1 => any::<u32>().prop_map(|n| IpAddr::from(Ipv4Addr::from(n))),
        4 => (0u16..3, 0u16..3).prop_map(|(net, n)| Ipv6Addr::new(0x2001, 0xdb8, 7, net, 0, 0, 0, n).into()),
        1 => any::<u128>().prop_map(|n| IpAddr::from(Ipv6Addr::from(n))),
    ]
}

/// A segment to a service, which may be damaged at some octets.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let options = select(vec![
        vec![],
        vec![Opt::Mss(1460)],
        vec![Opt::Mss(1460), Opt::Nop, Opt::Nop, Opt::SackPermitted],
        vec![Opt::Raw(vec![2, 4, 5])],
        vec![Opt::Raw(vec![99, 0, 1])],
    ]);
    let flags = select(vec![Flags::SYN, Flags::ACK, Flags::RST, Flags::ACK | Flags::FIN, Flags::SYN | Flags::ACK]);
    let payload = prop_oneof![Just(vec![]), Just(b"GET / HTTP".to_vec()), vec(any::<u8>(), 0..60)];
    let about = (any::<bool>(), select(vec![0u8, 1, 63, 64, 255]), any::<bool>(), any::<bool>());
    let damage = prop_oneof![4 => Just(vec![]), 1 => vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)];
    (source(), 1u16..4000, flags, options, payload, about, damage).prop_map(
        |(from, port, flags, options, payload, (ssh, hop_limit, tagged, padded), damage)| {
            let to = match from {
                IpAddr::V4(_) if ssh => "198.51.100.11:22",
                IpAddr::V4(_) => "198.51.100.10:443",
                IpAddr::V6(_) => "[2001:db8::10]:443",
            };
            let mut frame = tcp((from, port), to).flags(flags).options(options).payload(payload).hop_limit(hop_limit);
            if tagged {
                frame = frame.vlan(7);
            }
            if padded {
                frame = frame.pad_to(100);
            }
            let mut frame = frame.build();
            for (at, octet) in &damage {
                *at.get_mut(&mut frame) = *octet;
            }
            if !damage.is_empty() {
                fix_checksums(&mut frame);
            }
            frame
        },
    )
}

#[derive(Clone, Debug)]
enum Event {
    Frame(Vec<u8>),
    Anything(Vec<u8>),
    Wait(u64),
    Back(u64),
    Ban(IpAddr, u8, u64),
    Unban(IpAddr, u8),
    Sets(bool),
    Housekeeping,
}

fn event() -> impl Strategy<Value = Event> {
    let wait = prop_oneof![8 => 0u64..2_000_000, 1 => any::<u64>(), 1 => Just(3_600_000_001), 1 => Just(1 << 52)];
    let len = select(vec![0u8, 1, 24, 29, 30, 32, 64, 128]);
    prop_oneof![
        20 => frame().prop_map(Event::Frame),
        1 => vec(any::<u8>(), 0..120).prop_map(Event::Anything),
        6 => wait.prop_map(Event::Wait),
        1 => (0u64..5_000_000).prop_map(Event::Back),
        2 => (source(), len.clone(), 0u64..4_000_000).prop_map(|(addr, len, end)| Event::Ban(addr, len, end)),
        1 => (source(), len).prop_map(|(addr, len)| Event::Unban(addr, len)),
        1 => any::<bool>().prop_map(Event::Sets),
        1 => Just(Event::Housekeeping),
    ]
}

fn net(addr: IpAddr, len: u8) -> IpNet {
    IpNet::new(addr, len.min(if addr.is_ipv4() { 32 } else { 128 })).unwrap().trunc()
}

fn sets(swapped: bool) -> Vec<AddressSet> {
    let set = |nets: &[&str]| AddressSet::new(&nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>());
    let (one, two) = (set(&["203.0.113.0/29"]), set(&["203.0.113.4/30", "2001:db8:7::/64"]));
    if swapped { vec![two, AddressSet::default()] } else { vec![one, two] }
}

struct Lab {
    config: Config,
    services: ServiceMap,
    counters: Arc<FilterCounters>,
    engine: Engine,
    sets: Vec<AddressSet>,
    bans: Vec<(IpNet, Micros)>,
    now: Micros,
    /// Bans that had ended by then may be forgotten, though the clock went back.
    swept: Micros,
    /// Segments that rules dropped.
    cut: u64,
}

impl Lab {
    fn new(config: Config) -> Lab {
        let counters = Arc::new(FilterCounters::new(&config));
        let plan = Arc::new(Plan::compile("t", &config, &sets(false), 3).unwrap());
        Lab {
            services: ServiceMap::new(&config.services),
            engine: Engine::new(plan, [5, 6], counters.clone()),
            sets: sets(false),
            bans: Vec::new(),
            now: Micros(1_000_000),
            swept: Micros(0),
            cut: 0,
            counters,
            config,
        }
    }

    fn matched(&self) -> Vec<u64> {
        self.counters.rules.iter().map(|rule| rule.matched_packets.get()).collect()
    }

    fn of_connections(&self, rule: usize) -> bool {
        matches!(&self.config.rules[rule].action, Action::Limit(limit) if limit.of == Measure::Connections)
    }

    /// What the lists and bans say, asked one by one.
    fn sender(&self, source: Addr) -> Option<DropReason> {
        let ip = source.to_ip();
        let filters = &self.config.filters;
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        if within(&filters.allow) {
            return None;
        }
        if within(&filters.deny) {
            return Some(DropReason::DenyList);
        }
        if filters.deny.is_empty() && !filters.allow.is_empty() {
            return Some(DropReason::NotAllowed);
        }
        let banned = self.bans.iter().any(|(net, until)| net.contains(&ip) && *until > self.now);
        banned.then_some(DropReason::Banned)
    }

    /// Asks about the rules of one moment; `ask` says what the engine says. Compares which rules it has counted with those that match.
    fn walk(
        &mut self,
        facts: &Facts<'_>,
        opening: bool,
        ask: impl FnOnce(&mut Engine, Micros) -> Result<(), DropReason>,
    ) -> Result<Result<(), DropReason>, TestCaseError> {
        let before = self.matched();
        let passed_by = self.engine.exempt().filter(|_| opening);
        let said = ask(&mut self.engine, self.now);
        let rule = self.engine.rule().map(usize::from);
        let by_rule = matches!(said, Err(DropReason::Rule | DropReason::RuleLimit));
        let last = match said {
            _ if by_rule => rule,
            _ if opening => passed_by.map(usize::from),
            _ => self.engine.exempt().map(usize::from),
        };
        self.cut += u64::from(by_rule);
        if by_rule {
            let index = rule.expect("a rule that decided");
            prop_assert!(!self.config.rules[index].dry_run && self.engine.exempt().is_none());
        }
        let asked = !matches!(said, Err(DropReason::DenyList | DropReason::NotAllowed | DropReason::Banned));
        let plan = self.engine.plan().clone();
        for (index, (before, after)) in before.iter().zip(self.matched()).enumerate() {
            let matches = asked
                && self.of_connections(index) == opening
                && last.is_none_or(|last| index <= last)
                && naive::mismatch(plan.rules(), index, &self.config.rules[index], &self.sets, facts).is_none();
            prop_assert_eq!(after - before, u64::from(matches), "rule {} of {:?}", index, self.config.rules);
        }
        Ok(said)
    }

    fn rx(&mut self, frame: &[u8]) -> Result<(), TestCaseError> {
        let Ok(Parsed::Tcp(segment)) = parse(frame, RxChecksums::default()) else { return Ok(()) };
        let Some(service) = self.services.get(segment.key.dst, segment.key.dst_port) else { return Ok(()) };
        let facts = Facts { segment: &segment, frame, service };
        let source = segment.key.src;
        let foreseen = glance(frame).map(|glimpse| self.engine.foresee(&glimpse, self.now));
        let sender = self.sender(source);
        let said = self.walk(&facts, false, |engine, now| engine.check(&facts, now))?;
        let by_source =
            |r: &DropReason| matches!(r, DropReason::DenyList | DropReason::NotAllowed | DropReason::Banned);
        match foreseen {
            Some(Some(foregone)) => {
                prop_assert_eq!(said, Err(foregone.reason()));
                let rule = if let Foregone::Rule(rule) = foregone { Some(rule) } else { None };
                prop_assert_eq!(self.engine.rule(), rule);
            }
            Some(None) => prop_assert!(!said.err().as_ref().is_some_and(by_source)),
            // Tagged, if only with a priority (VLAN 0).
            None => prop_assert_eq!(frame.get(12..14), Some(&[0x81, 0x00][..])),
        }
        let of_sender =
            said.err().filter(|r| matches!(r, DropReason::DenyList | DropReason::NotAllowed | DropReason::Banned));
        let forgotten = of_sender.is_none() && sender == Some(DropReason::Banned) && self.now <= self.swept;
        prop_assert!(of_sender == sender || forgotten, "{:?}, not {:?}", of_sender, sender);
        if said.is_err() {
            prop_assert_eq!(self.engine.exempt(), None);
            return Ok(());
        }
        let exempt = self.engine.exempt();
        prop_assert!(exempt.is_none() || exempt == self.engine.rule());
        if segment.flags.is_initial_syn() {
            let said = self.engine.answer(source, self.now);
            prop_assert!(said.is_ok() || said == Err(DropReason::SynAckCeiling) && exempt.is_none());
            return Ok(());
        }
        // As if another worker owned the flow.
        if segment.key.src_port % 2 == 0 {
            self.engine.resume(exempt);
        }
        let said = self.engine.flowless(source, self.now);
        prop_assert!(said.is_ok() || said == Err(DropReason::SourceFlowlessAcks) && exempt.is_none());
        if said.is_err() || segment.key.src_port % 5 == 0 {
            return Ok(());
        }
        self.engine.verified(source, self.now);
        let said = self.walk(&facts, true, |engine, now| engine.open(&facts, now))?;
        prop_assert!(matches!(said, Ok(()) | Err(DropReason::RuleLimit | DropReason::SourceConnections)));
        prop_assert!(said != Err(DropReason::SourceConnections) || exempt.is_none());
        Ok(())
    }

    fn take(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Frame(frame) | Event::Anything(frame) => self.rx(frame)?,
            Event::Wait(us) => self.now = self.now.after(Duration::from_micros(*us)),
            Event::Back(us) => self.now = Micros(self.now.0.saturating_sub(*us)),
            Event::Ban(addr, len, end) => {
                let (net, until) = (net(*addr, *len), self.now.after(Duration::from_micros(*end)));
                if self.engine.ban(net, until, 0).is_ok() {
                    self.bans.retain(|(other, _)| *other != net);
                    self.bans.push((net, until));
                }
            }
            Event::Unban(addr, len) => {
                let net = net(*addr, *len);
                let held = self.bans.iter().any(|(other, until)| *other == net && *until > self.now.max(self.swept));
                let lifted = self.engine.unban(net);
                prop_assert!(lifted || !held);
                self.bans.retain(|(other, _)| *other != net);
            }
            Event::Sets(swapped) => {
                self.sets = sets(*swapped);
                let plan = self.engine.plan().with_sets(&self.config, &self.sets).unwrap();
                drop(self.engine.replace(Arc::new(plan)));
            }
            Event::Housekeeping => {
                self.engine.sweep(self.now);
                self.swept = self.swept.max(self.now);
                self.engine.publish(self.now);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_the_counters_add_up_and_the_rules_are_those_that_match(
        rules in vec((0..ACTIONS.len(), 0..CONDITIONS.len(), 0..CONDITIONS.len(), any::<bool>()), 0..8),
        filters in 0..FILTERS.len(),
        before in select(vec![0, 0, 0, 60, 64, 130]),
        events in vec(event(), 1..150),
    ) {
        let mut lab = Lab::new(config(&rules, filters, before));
        for event in &events {
            lab.take(event)?;
        }
        let mut cut = 0;
        for (rule, counted) in lab.config.rules.iter().zip(&lab.counters.rules) {
            let [matched, matched_bytes] = [&counted.matched_packets, &counted.matched_bytes].map(|n| n.get());
            let [packets, bytes, clients] = [&counted.cut_packets, &counted.cut_bytes, &counted.clients].map(|n| n.get());
            prop_assert!(packets <= matched && bytes <= matched_bytes && clients <= packets);
            prop_assert!(bytes >= 40 * packets && matched_bytes >= 40 * matched);
            match rule.action {
                Action::Drop => prop_assert_eq!((packets, bytes), (matched, matched_bytes)),
                Action::Pass => prop_assert_eq!(packets, 0),
                Action::Limit(_) => {}
            }
            if rule.dry_run {
                continue;
            }
            prop_assert_eq!(clients, 0);
            cut += packets;
        }
        prop_assert_eq!(cut, lab.cut);
    }
}
