//! Every reason for which the parser, the gate and the filters drop, with a frame that meets it and the nearest one that passes.

use std::sync::Arc;
use std::time::Duration;

use sluice_filters::engine::{Engine, FilterCounters, Plan, Unseen};
use sluice_filters::gate::{Addressee, Came, Gate};
use sluice_filters::rules::Facts;
use sluice_filters::testkit::{self, TcpBuilder, fix_checksums};
use sluice_filters::units::{Micros, PortId};
use sluice_filters::{DropReason, Flags, Parsed, RxChecksums, parse};

use DropReason::*;

const CLIENT: &str = "203.0.113.7:40000";
const WEB: &str = "198.51.100.10:443";
const CLIENT6: &str = "[2001:db8:7::7]:40000";
const WEB6: &str = "[2001:db8::10]:443";

/// Where the headers of untagged frames start.
const IP: usize = 14;
const TCP: usize = 34;

fn syn() -> TcpBuilder {
    testkit::tcp(CLIENT, WEB).flags(Flags::SYN)
}

fn ack() -> TcpBuilder {
    testkit::tcp(CLIENT, WEB).flags(Flags::ACK)
}

/// A SYN with one octet set, its checksums right.
fn octet(at: usize, value: u8) -> Vec<u8> {
    let mut frame = syn().payload([0; 4]).build();
    frame[at] = value;
    fix_checksums(&mut frame);
    frame
}

/// The same without right checksums.
fn damaged(at: usize) -> Vec<u8> {
    let mut frame = syn().build();
    frame[at] ^= 1;
    frame
}

fn from(src: &str) -> Vec<u8> {
    testkit::tcp(src, WEB).flags(Flags::SYN).build()
}

fn from6(src: &str) -> Vec<u8> {
    testkit::tcp(src, WEB6).flags(Flags::SYN).build()
}

fn to(dst: &str) -> Vec<u8> {
    testkit::tcp(CLIENT, dst).flags(Flags::SYN).build()
}

fn ethernet(ether_type: u16) -> Vec<u8> {
    let mut frame = syn().build();
    frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
    frame
}

fn tags(tags: &[u8]) -> Vec<u8> {
    let mut frame = syn().build();
    frame.splice(12..12, tags.iter().copied());
    frame
}

fn v6(next_header: u8) -> Vec<u8> {
    let mut frame = testkit::tcp(CLIENT6, WEB6).flags(Flags::SYN).build();
    frame[IP + 6] = next_header;
    frame
}

fn icmp(octets: usize) -> Vec<u8> {
    testkit::ip("203.0.113.7", "198.51.100.10", 1).payload(vec![8; octets]).build()
}

/// By the parser: the reason, a frame, its near miss.
fn of_the_parser() -> Vec<(DropReason, Vec<u8>, Vec<u8>)> {
    let whole = syn().build();
    vec![
        (Truncated, whole[..whole.len() - 1].to_vec(), whole.clone()),
        (UnknownEtherType, ethernet(0x0801), ethernet(0x0800)),
        (VlanStacked, tags(&[0x81, 0, 0, 5, 0x81, 0, 0, 5]), tags(&[0x81, 0, 0, 5])),
        (VlanStacked, tags(&[0x88, 0xa8, 0, 5]), tags(&[0x81, 0, 0, 5])),
        (BadEthernetSource, octet(6, 0x03), octet(6, 0x02)),
        (EthernetMulticast, octet(0, 0x03), octet(0, 0x02)),
        (BadIpHeader, octet(IP, 0x44), octet(IP, 0x45)),
        (BadIpHeader, octet(IP + 6, 0x80), octet(IP + 6, 0x40)),
        (BadIpLength, octet(IP + 3, 19), octet(IP + 3, 40)),
        (BadIpChecksum, damaged(IP + 10), whole.clone()),
        (IpOptions, octet(IP, 0x46), octet(IP, 0x45)),
        (Ipv6Extension, v6(60), v6(6)),
        (Fragment, octet(IP + 6, 0x20), octet(IP + 6, 0x00)),
        (Fragment, v6(44), v6(6)),
        (TtlExceeded, octet(IP + 8, 0), octet(IP + 8, 1)),
        (NotTcp, octet(IP + 9, 7), octet(IP + 9, 6)),
        (MartianSource, from("127.255.255.255:9"), from("128.0.0.0:9")),
        (MulticastSource, from("224.0.0.0:9"), from("223.255.255.255:9")),
        (BadDestination, to("224.0.0.0:9"), to("223.255.255.255:9")),
        (Land, from("198.51.100.10:9"), from("198.51.100.11:9")),
        (BadTcpLength, octet(TCP + 12, 0x70), octet(TCP + 12, 0x60)),
        (BadTcpLength, octet(TCP + 12, 0x40), octet(TCP + 12, 0x50)),
        (ZeroPort, from("203.0.113.7:0"), from("203.0.113.7:1")),
        (BadFlags, octet(TCP + 13, 0x03), octet(TCP + 13, 0x02)),
        (BadTcpChecksum, damaged(TCP + 16), whole),
        (BadIcmp, icmp(7), icmp(8)),
    ]
}

/// The filters of a configuration, asked as a worker asks them about segments of no connection, whose cookies are right.
struct Filters {
    engine: Engine,
    gate: Gate,
    now: Micros,
}

impl Filters {
    fn new(ending: &str) -> Filters {
        let text = format!(
            r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24", "2001:db8::2/64"]
gateway = "198.51.100.1"
[[port]]
name = "lan"
device = "net_null1"
addresses = ["10.0.0.2/24"]
[[service]]
name = "web"
listen = ["198.51.100.10:443", "[2001:db8::10]:443"]
[[service.upstream]]
address = "10.0.0.5:80"
{ending}
"#
        );
        let config = sluice_config::parse("test.toml", &text).unwrap_or_else(|wrong| panic!("{wrong}"));
        let plan = Plan::compile("test.toml", &config, &[], 1).unwrap();
        Filters {
            engine: Engine::new(Arc::new(plan), [1, 2], Arc::new(FilterCounters::new(&config))),
            gate: Gate::new(&config, []),
            now: Micros(1_000_000),
        }
    }

    fn rx(&mut self, frame: &[u8]) -> Result<(), DropReason> {
        let Parsed::Tcp(segment) = parse(frame, RxChecksums::default())? else { return Ok(()) };
        let came = Came { port: Some(PortId(0)), frame, now: self.now };
        let judged = self.gate.judge(&mut self.engine, &segment, came, &mut Unseen)?;
        let Addressee::Service(service) = judged else { return Ok(()) };
        let facts = Facts { segment: &segment, frame, service };
        if segment.flags.is_initial_syn() {
            return self.engine.answer(segment.key.src, self.now);
        }
        self.engine.flowless(segment.key.src, self.now)?;
        self.engine.verified(segment.key.src, self.now);
        self.engine.open(&facts, self.now)
    }
}

/// By the gate and the filters: the reason, the configuration, what came before, a frame, its near miss.
type Case = (DropReason, &'static str, Vec<Vec<u8>>, Vec<u8>, Vec<u8>);

fn of_the_filters() -> Vec<Case> {
    let (syn, ack) = (syn().build(), ack().build());
    let neighbour = from("203.0.114.7:40000");
    vec![
        (OwnSource, "", vec![], from("198.51.100.2:40000"), from("198.51.100.3:40000")),
        (UpstreamSource, "", vec![], from("10.0.0.5:40000"), from("10.0.0.6:40000")),
        (SourceRoute, "", vec![], from6("[2001:db8:7::7]:40000"), from6("[2001:db8::7]:40000")),
        (DenyList, "[filters]\ndeny = [\"203.0.113.0/29\"]", vec![], syn.clone(), from("203.0.113.8:1")),
        (NotAllowed, "[filters]\nallow = [\"203.0.113.8/29\"]", vec![], syn.clone(), from("203.0.113.8:1")),
        (NotAService, "", vec![], to("198.51.100.10:444"), to("198.51.100.10:443")),
        (Banned, "[bans]", vec![], syn.clone(), from("203.0.113.8:1")),
        (
            Rule,
            "[[rule]]\nname = \"r\"\naction = \"drop\"\nhop_limit = \"-9\"",
            vec![],
            self::syn().hop_limit(9).build(),
            self::syn().hop_limit(10).build(),
        ),
        (
            RuleLimit,
            "[[rule]]\nname = \"r\"\naction = \"limit\"\nlimit = \"1/s\"\nflags = \"syn\"",
            vec![syn.clone()],
            syn.clone(),
            ack.clone(),
        ),
        (
            RuleLimit,
            "[[rule]]\nname = \"r\"\naction = \"limit\"\nlimit = \"1/s\"\nof = \"connections\"",
            vec![ack.clone()],
            ack.clone(),
            syn.clone(),
        ),
        (SourceSyns, "[filters.per_address]\nsyns = \"1/s\"", vec![syn.clone()], syn.clone(), ack.clone()),
        (
            SourceFlowlessAcks,
            "[filters.per_subnet]\nflowless_acks = \"1/s\"",
            vec![ack.clone()],
            ack.clone(),
            syn.clone(),
        ),
        (SourceConnections, "[filters.per_address]\nconnections = \"1/s\"", vec![ack.clone()], ack, syn.clone()),
        (SourcePackets, "[filters.per_subnet]\npackets = \"1/s\"", vec![syn.clone()], syn.clone(), neighbour.clone()),
        (
            SourceBytes,
            "[filters.per_address]\nbytes = \"120B/s\"",
            vec![self::syn().payload([0; 40]).build()],
            self::syn().payload([0; 1]).build(),
            self::syn().build(),
        ),
        (SynAckCeiling, "[filters]\nsyn_ack_ceiling = \"1/s\"", vec![syn.clone()], syn, neighbour),
    ]
}

#[test]
fn every_reason_of_the_parser_has_its_frame_and_a_near_miss() {
    for (reason, frame, near) in of_the_parser() {
        assert_eq!(parse(&frame, RxChecksums::default()).err(), Some(reason), "{frame:02x?}");
        assert_eq!(parse(&near, RxChecksums::default()).err(), None, "{reason:?}'s near miss: {near:02x?}");
    }
}

#[test]
fn a_near_miss_of_the_parser_differs_in_one_field() {
    for (reason, frame, near) in of_the_parser() {
        // Where lengths differ, something was added or cut off. Else: an octet or a field, besides the checksums.
        let differing = frame.iter().zip(&near).filter(|(a, b)| a != b).count();
        assert!(frame.len() != near.len() || (1..=8).contains(&differing), "{reason:?}: {differing} octets differ");
    }
}

#[test]
fn every_reason_of_the_filters_has_its_frame_and_a_near_miss() {
    for (reason, config, before, frame, near) in of_the_filters() {
        let start = || {
            let mut filters = Filters::new(config);
            if reason == Banned {
                let until = filters.now.after(Duration::from_secs(1));
                filters.engine.ban("203.0.113.0/29".parse().unwrap(), until, 0).unwrap();
            }
            for frame in &before {
                assert_eq!(filters.rx(frame), Ok(()), "{reason:?}: what came before");
            }
            filters
        };
        assert_eq!(start().rx(&frame), Err(reason), "{config}");
        assert_eq!(start().rx(&near), Ok(()), "{reason:?}'s near miss: {config}");
        // What is limited passes again with time, and what is banned when the ban is over.
        let mut later = start();
        later.now = later.now.after(Duration::from_secs(2));
        let for_a_time =
            !matches!(reason, OwnSource | UpstreamSource | SourceRoute | DenyList | NotAllowed | NotAService | Rule);
        assert_eq!(later.rx(&frame).is_ok(), for_a_time, "{reason:?} later");
    }
}

#[test]
fn no_reason_of_the_parser_and_the_filters_is_missing() {
    let first_of_the_ports = NotOurMac.index();
    let parsers = of_the_parser().into_iter().map(|(reason, ..)| reason);
    let seen: Vec<DropReason> = parsers.chain(of_the_filters().into_iter().map(|(reason, ..)| reason)).collect();
    for reason in DropReason::ALL.into_iter().take(first_of_the_ports) {
        assert!(seen.contains(&reason), "{reason:?}");
    }
}
