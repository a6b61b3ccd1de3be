//! Whatever the expression and whatever the frame: the verdict is libpcap's, on every way and with or without a tag.

use std::cell::Cell;

use pcap::{BpfProgram, Capture, Linktype};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use sluice_filters::testkit::{self, Opt, fix_checksums};
use sluice_filters::{Expression, Flags, Parsed, RxChecksums, parse};

const V4: &[&str] = &["10.0.0.1", "10.0.0.2", "10.1.2.3", "192.168.7.9", "172.16.5.4", "192.0.2.7"];
const V6: &[&str] = &["2001:db8::1", "2001:db8::2", "2001:db8:1::5", "fe80::1", "2001:db9::1"];
const NETS: &[&str] = &["10.0.0.0/8", "10.0.0.0/30", "192.168.0.0/16", "172.16.0.0/12", "0.0.0.0/1", "10.1", "192.0.2"];
const NETS6: &[&str] = &["2001:db8::/32", "2001:db8::/64", "fe80::/10", "2000::/3", "2001:db8:1::/48"];
const PORTS: &[u16] = &[22, 53, 80, 443, 1024, 8080, 40_000];
const FLAGS: &[&str] = &["tcp-syn", "tcp-ack", "tcp-rst", "tcp-fin", "tcp-push", "tcp-urg"];
const SET_FLAGS: &[u8] = &[0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0x30, 0x22, 0xc2];

fn libpcap(text: &str, optimise: bool) -> Result<BpfProgram, pcap::Error> {
    Capture::dead(Linktype::ETHERNET)?.compile(text, optimise)
}

/// libpcap's verdict. Its optimiser may drop a store that is still needed (1.10.3 does), and what `bpf_filter` then reads is
/// anybody's guess: programs that read scratch words and differ from their plain form are judged by that.
struct Libpcap {
    optimised: BpfProgram,
    plain: BpfProgram,
    reads_scratch: bool,
}

impl Libpcap {
    fn compile(text: &str) -> Result<Libpcap, pcap::Error> {
        let (optimised, plain) = (libpcap(text, true)?, libpcap(text, false)?);
        let is_read = |code: &str| matches!(code, "96" | "97");
        let reads_scratch =
            optimised.get_instructions().iter().any(|op| is_read(op.to_string().split(' ').next().unwrap()));
        Ok(Libpcap { optimised, plain, reads_scratch })
    }

    /// None where libpcap itself cannot be relied on.
    fn filter(&self, frame: &[u8]) -> Option<bool> {
        let verdict = self.optimised.filter(frame);
        (!self.reads_scratch || self.plain.filter(frame) == verdict).then_some(verdict)
    }
}

fn text(choices: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(choices).prop_map(str::to_owned)
}

fn relation() -> impl Strategy<Value = &'static str> {
    select(&["=", "!=", "<", ">", "<=", ">="][..])
}

/// `proto[offset:size]`
fn accessor() -> impl Strategy<Value = String> {
    let protocol = select(&["ip", "tcp", "tcp", "tcp", "ip6", "ether", "udp", "icmp", "ip"][..]);
    (protocol, 0..24u32, select(&[1, 2, 4][..])).prop_map(|(protocol, at, size)| format!("{protocol}[{at}:{size}]"))
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        select(PORTS).prop_map(|port| port.to_string()),
        (0..80u32).prop_map(|n| n.to_string()),
        select(&["0xf0", "0x0f", "0xff", "0xffff", "0x0a000001", "0x47455420", "0xffffffff", "0x50", "0x4000", "0x3fff"][..])
            .prop_map(str::to_owned),
        any::<u32>().prop_map(|n| format!("{n:#x}")),
    ]
}

fn arithmetic() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => accessor(),
        1 => Just("len".to_owned()),
        1 => Just("tcp[tcpflags]".to_owned()),
        1 => Just("tcp[((tcp[12:1] & 0xf0) >> 2):4]".to_owned()),
        1 => Just("ip[(ip[0] & 0xf) * 4:2]".to_owned()),
        1 => number(),
    ];
    leaf.prop_recursive(3, 8, 2, |inner| {
        let operator = select(&["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"][..]);
        prop_oneof![
            (inner.clone(), operator.clone(), number()).prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            (inner.clone(), operator, inner.clone()).prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            (inner.clone(), select(&[1, 2, 4][..])).prop_map(|(a, size)| format!("tcp[{a} & 31:{size}]")),
            inner.clone().prop_map(|a| format!("({a} & 0xf0)")),
            inner.prop_map(|a| format!("(- {a})")),
        ]
    })
}

fn primitive() -> impl Strategy<Value = String> {
    let side = select(&["", "src ", "dst ", "src or dst ", "src and dst "][..]).boxed();
    let host = prop_oneof![text(V4), text(V6)];
    let net = prop_oneof![text(NETS), text(NETS6)];
    let transport = select(&["", "tcp ", "udp "][..]).boxed();
    let port = select(PORTS);
    prop_oneof![
        3 => (side.clone(), host).prop_map(|(side, host)| format!("{side}host {host}")),
        2 => (side.clone(), net).prop_map(|(side, net)| format!("{side}net {net}")),
        4 => (transport.clone(), side.clone(), port.clone())
            .prop_map(|(transport, side, port)| format!("{transport}{side}port {port}")),
        2 => (transport, side.clone(), port, 0..9000u16).prop_map(|(transport, side, from, more)| {
            format!("{transport}{side}portrange {from}-{}", from.saturating_add(more))
        }),
        1 => (side, vec(select(V4), 2..12)).prop_map(|(side, hosts)| format!("{side}host ({})", hosts.join(" or "))),
        2 => text(&[
            "ip", "ip6", "tcp", "udp", "icmp", "icmp6", "arp", "ip proto 6", "ip6 proto 6", "ether proto 0x0800", "sctp",
            "ether multicast", "ip multicast", "ip6 multicast", "ether broadcast", "ip proto \\tcp", "tcp port http",
            "ether src 02:00:00:00:00:01", "ether host 02:00:00:00:00:02", "ether dst 02:00:00:00:00:01",
        ]),
        2 => (vec(select(FLAGS), 1..4), relation(), prop_oneof![Just("0".to_owned()), text(FLAGS)])
            .prop_map(|(flags, relation, value)| format!("tcp[tcpflags] & ({}) {relation} {value}", flags.join("|"))),
        3 => (accessor(), relation(), number()).prop_map(|(a, relation, b)| format!("{a} {relation} {b}")),
        3 => (accessor(), number(), relation(), number())
            .prop_map(|(a, mask, relation, b)| format!("{a} & {mask} {relation} {b}")),
        3 => (arithmetic(), relation(), arithmetic()).prop_map(|(a, relation, b)| format!("{a} {relation} {b}")),
        1 => (select(&["less", "greater"][..]), 40..120u16).prop_map(|(word, len)| format!("{word} {len}")),
        1 => (relation(), 50..100u16).prop_map(|(relation, len)| format!("len {relation} {len}")),
    ]
}

fn expression() -> impl Strategy<Value = String> {
    primitive().prop_recursive(4, 16, 3, |inner| {
        prop_oneof![
            2 => inner.clone().prop_map(|a| format!("not ({a})")),
            4 => vec(inner.clone(), 2..4).prop_map(|all| format!("({})", all.join(") and ("))),
            4 => vec(inner, 2..4).prop_map(|all| format!("({})", all.join(") or ("))),
        ]
    })
}

/// A valid TCP frame, near the expressions' constants.
fn tcp_frame() -> impl Strategy<Value = Vec<u8>> {
    let addresses = prop_oneof![3 => (select(V4), select(V4)), 2 => (select(V6), select(V6))];
    let ports = (select(PORTS), select(PORTS));
    let payload = prop_oneof![
        Just(Vec::new()),
        Just(b"GET / HTTP/1.1\r\n".to_vec()),
        vec(prop_oneof![any::<u8>(), Just(0)], 0..80),
    ];
    let header = (select(SET_FLAGS), select(&[1u8, 63, 64, 65, 128, 255][..]), select(&[0u16, 1024, 65_535, 443][..]));
    let shape = (any::<bool>(), select(&[0usize, 60, 60, 100][..]), any::<u32>(), prop_oneof![Just(0), any::<u8>()]);
    (addresses, ports, payload, header, shape).prop_map(
        |((src, dst), (from, to), payload, (flags, hop_limit, window), (options, pad, seq, tos))| {
            let at = |addr: &str, port| std::net::SocketAddr::new(addr.parse().unwrap(), port);
            let mut builder = testkit::tcp(at(src, from), at(dst, to))
                .flags(Flags(flags))
                .hop_limit(hop_limit)
                .window(window)
                .seq(seq)
                .tos(tos)
                .payload(payload);
            if options {
                builder = builder.options([Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(seq, 0)]);
            }
            builder.pad_to(pad).build()
        },
    )
}

/// Frames that are anything but plain TCP.
fn other_frame() -> impl Strategy<Value = Vec<u8>> {
    let changed =
        (tcp_frame(), vec((any::<Index>(), any::<u8>()), 1..4), any::<bool>()).prop_map(|(mut frame, changes, fix)| {
            for (at, octet) in changes {
                let at = at.index(frame.len());
                frame[at] = octet;
            }
            if fix {
                fix_checksums(&mut frame);
            }
            frame
        });
    let headers = (
        tcp_frame(),
        select(&[(14, 0x46), (14, 0x4f), (14, 0x65), (20, 0x20), (21, 7), (20, 44), (23, 17), (12, 0x86)][..]),
    )
        .prop_map(|(mut frame, (at, octet))| {
            frame[at] = octet;
            frame
        });
    let truncated = (tcp_frame(), any::<Index>()).prop_map(|(mut frame, len)| {
        frame.truncate(len.index(frame.len()));
        frame
    });
    let protocols =
        (select(V4), select(V4), select(&[1u8, 6, 17, 132][..]), vec(prop_oneof![Just(0), any::<u8>()], 0..40))
            .prop_map(|(src, dst, protocol, payload)| testkit::ip(src, dst, protocol).payload(payload).build());
    let arp =
        vec(any::<u8>(), 28).prop_map(|body| testkit::ethernet([0xff; 6], testkit::PEER_MAC, None, 0x0806, &body));
    prop_oneof![changed, headers, truncated, protocols, arp, vec(any::<u8>(), 0..120)]
}

/// Where the tag is between MACs and EtherType.
fn tagged(frame: &[u8]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend([0x81, 0x00, 0x60, 0x64]);
    tagged.extend(&frame[12..]);
    tagged
}

#[derive(Default)]
struct Seen {
    refused: Cell<u32>,
    deep: Cell<u32>,
    unreliable: Cell<u32>,
    verdicts: [Cell<u32>; 2],
    segments: [Cell<u32>; 2],
}

fn add(counter: &Cell<u32>) {
    counter.set(counter.get() + 1);
}

fn compare(expression: &Expression, program: &Libpcap, frame: &[u8], seen: &Seen) -> Result<(), TestCaseError> {
    let Some(expected) = program.filter(frame) else {
        add(&seen.unreliable);
        return Ok(());
    };
    add(&seen.verdicts[usize::from(expected)]);
    prop_assert_eq!(expression.matches(frame), expected, "{} on {:02x?}", expression.text(), frame);
    // A tag of the frame's own: expressions see what is inside.
    let Ok(Parsed::Tcp(segment)) = parse(frame, RxChecksums::default()) else { return Ok(()) };
    if segment.l2.len != 14 {
        return Ok(());
    }
    add(&seen.segments[usize::from(expected)]);
    let verdict = expression.matches_segment(frame, &segment);
    prop_assert_eq!(verdict, expected, "{} on the segment {:02x?}", expression.text(), frame);
    let frame = tagged(frame);
    let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!("a tag changes nothing") };
    let verdict = expression.matches_segment(&frame, &segment);
    prop_assert_eq!(verdict, expected, "{} on the tagged {:02x?}", expression.text(), frame);
    Ok(())
}

#[test]
fn every_verdict_is_libpcaps() {
    let seen = Seen::default();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12_000);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let frames = (vec(tcp_frame(), 10), vec(other_frame(), 6));
    runner
        .run(&(expression(), frames), |(text, (segments, others))| {
            let Ok(program) = Libpcap::compile(&text) else {
                add(&seen.refused);
                prop_assert!(Expression::compile(&text).is_err());
                return Ok(());
            };
            let expression =
                Expression::compile(&text).map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
            if program.optimised.get_instructions().len() > 20 {
                add(&seen.deep);
            }
            segments.iter().chain(&others).try_for_each(|frame| compare(&expression, &program, frame, &seen))
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    let get = |counters: &[Cell<u32>; 2]| (counters[0].get(), counters[1].get());
    let (no, yes) = get(&seen.verdicts);
    assert!(no > 10 * cases / 3 && yes > cases, "verdicts: {no} no, {yes} yes");
    let (no, yes) = get(&seen.segments);
    assert!(no > cases && yes > cases, "verdicts on segments: {no} no, {yes} yes");
    assert!(seen.deep.get() > cases / 10, "only {} deep programs", seen.deep.get());
    assert!(seen.unreliable.get() < cases / 100, "{} frames without a reliable verdict", seen.unreliable.get());
    assert!(seen.refused.get() < cases / 3, "{} of {cases} refused", seen.refused.get());
}
