//! What the parser and the stateless filters cost, by kind of packet, on warm caches.
//!
//! `cargo run --release -p sluice-filters --example parse_speed` prints nanoseconds, the best of many rounds.
//! With a kind and a count it runs only that kind, count times, for instruction counters: the difference of two runs
//! divided by the difference of their counts is the cost of one packet.
//! Under `valgrind --tool=callgrind`, for instance.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use sluice_config::Service;
use sluice_filters::engine::Engine;
use sluice_filters::rules::Facts;
use sluice_filters::testkit::{self, Opt};
use sluice_filters::units::{Micros, ServiceId};
use sluice_filters::{DropReason, Flags, Parsed, RxChecksums, ServiceMap, parse};

/// Distinct frames of each kind, in one buffer. Their stride is that of a packet pool, which spreads headers over cache sets.
const FRAMES: usize = 256;
const STRIDE: usize = 2368;
const ROUNDS: usize = 400;

/// One kind of packet: its frames, and what the NIC says of their checksums.
struct Kind {
    name: &'static str,
    what: &'static str,
    frame: fn(u32) -> Vec<u8>,
    checksums: RxChecksums,
}

fn main() {
    let mut args = std::env::args().skip(1);
    match (args.next(), args.next()) {
        (None, _) => table(),
        (Some(name), count) => {
            let count: usize = count.and_then(|n| n.parse().ok()).unwrap_or(10_000);
            count_run(&name, count);
        }
    }
}

fn kinds() -> Vec<Kind> {
    let kind = |name, what, frame| Kind { name, what, frame, checksums: RxChecksums::default() };
    let good = |name, what, frame| Kind { name, what, frame, checksums: RxChecksums::GOOD };
    vec![
        kind("syn", "SYN, no options, 60 B", |i| syn(i).pad_to(60).build()),
        good("syn-good", "the same, checksums by the NIC", |i| syn(i).pad_to(60).build()),
        kind("syn-linux", "SYN, Linux's options, 74 B", |i| syn(i).options(linux_options(i)).build()),
        kind("syn-vlan", "SYN, no options, tagged", |i| syn(i).vlan(100).pad_to(64).build()),
        kind("syn-v6", "SYN, no options, IPv6", |i| {
            let src: IpAddr = format!("2001:db8:{:x}::{i:x}", i >> 16).parse().expect("an address");
            testkit::tcp((src, 40_000), "[2001:db8::10]:443").flags(Flags::SYN).seq(i).build()
        }),
        kind("ack", "ACK with timestamps, 66 B", |i| ack(i).build()),
        kind("data", "1400 B of payload", |i| ack(i).payload([i as u8; 1400]).build()),
        good("data-good", "the same, checksums by the NIC", |i| ack(i).payload([i as u8; 1400]).build()),
        kind("bad-checksum", "SYN, bad TCP checksum", |i| {
            let mut frame = syn(i).pad_to(60).build();
            frame[50] ^= 0x55;
            frame
        }),
        kind("xmas", "illegal flags", |i| syn(i).flags(Flags(0x29)).pad_to(60).build()),
        kind("udp", "UDP", |i| testkit::ip(&source(i).to_string(), "198.51.100.10", 17).payload([0; 26]).build()),
    ]
}

fn source(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0b00_0000 + i.wrapping_mul(2_654_435_761) % 0x4000_0000)
}

fn syn(i: u32) -> testkit::TcpBuilder {
    let src = SocketAddr::from((source(i), 1024 + i as u16 % 60_000));
    testkit::tcp(src, "198.51.100.10:443").flags(Flags::SYN).seq(i.wrapping_mul(0x9e37_79b9)).ack(0)
}

fn linux_options(i: u32) -> [Opt; 5] {
    [Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(i, 0), Opt::Nop, Opt::WindowScale(7)]
}

fn ack(i: u32) -> testkit::TcpBuilder {
    syn(i).flags(Flags::ACK).ack(i).options([Opt::Nop, Opt::Nop, Opt::Timestamp(i, i)])
}

/// Frames side by side, as a port's buffers lie.
struct Buffers {
    bytes: Vec<u8>,
    lens: Vec<usize>,
}

impl Buffers {
    fn new(kind: &Kind) -> Buffers {
        let mut bytes = vec![0; FRAMES * STRIDE];
        let mut lens = Vec::new();
        for (i, slot) in (0u32..).zip(bytes.chunks_exact_mut(STRIDE)) {
            let frame = (kind.frame)(i);
            // A buffer's usual headroom, so that headers are aligned as they are in life.
            slot[128..128 + frame.len()].copy_from_slice(&frame);
            lens.push(frame.len());
        }
        Buffers { bytes, lens }
    }

    #[inline]
    fn frames(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.bytes.chunks_exact(STRIDE).zip(&self.lens).map(|(slot, &len)| &slot[128..128 + len])
    }
}

#[inline(never)]
fn parse_only(frame: &[u8], checksums: RxChecksums) -> Result<Parsed, DropReason> {
    parse(frame, checksums)
}

#[inline(never)]
fn filter_only(
    parsed: &Parsed,
    frame: &[u8],
    engine: &mut Engine,
    services: &ServiceMap,
) -> Result<ServiceId, DropReason> {
    let Parsed::Tcp(segment) = parsed else { return Err(DropReason::NotTcp) };
    let service = services.get(segment.key.dst, segment.key.dst_port).ok_or(DropReason::NotAService)?;
    engine.check(&Facts { segment, frame, service }, Micros(0))?;
    Ok(service)
}

/// Best nanoseconds per packet of many rounds.
fn best(mut round: impl FnMut()) -> f64 {
    let one = |round: &mut dyn FnMut()| {
        let start = Instant::now();
        round();
        start.elapsed().as_nanos() as f64 / FRAMES as f64
    };
    (0..ROUNDS).map(|_| one(&mut round)).fold(f64::INFINITY, f64::min)
}

fn table() {
    println!("{:<34} {:>8} {:>9}", "", "parse ns", "+options");
    for kind in kinds() {
        let buffers = Buffers::new(&kind);
        let parsing = best(|| {
            for frame in buffers.frames() {
                black_box(&parse_only(frame, kind.checksums));
            }
        });
        let options = best(|| {
            for frame in buffers.frames() {
                let parsed = parse_only(frame, kind.checksums);
                if let Ok(Parsed::Tcp(segment)) = black_box(&parsed) {
                    black_box(&segment.options(frame));
                }
            }
        });
        println!("{:<34} {parsing:>8.1} {options:>9.1}", kind.what);
    }
    let kinds = kinds();
    let parsed: Vec<Parsed> =
        Buffers::new(&kinds[0]).frames().filter_map(|frame| parse(frame, RxChecksums::default()).ok()).collect();
    println!("\n{:<34} {:>8}", "sources and services", "ns");
    for (services, prefixes) in [(1, 0), (100, 0), (1, 10), (1, 1_000), (1, 100_000)] {
        let (mut engine, map) = filters(services, prefixes);
        let cost = best(|| {
            for parsed in &parsed {
                let _ = black_box(filter_only(parsed, &[], &mut engine, &map));
            }
        });
        println!("{:<34} {cost:>8.1}", format!("{services} services, {prefixes} denied prefixes"));
    }
}

const CONFIG: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24"]
[[service]]
name = "web"
listen = ["198.51.100.10:443"]
[[service.upstream]]
address = "198.51.100.5:80"
"#;

/// A map of `services` services, one of them the packets' destination, and `prefixes` denied prefixes beside their sources.
fn filters(services: u32, prefixes: u32) -> (Engine, ServiceMap) {
    let deny: Vec<_> = (0..prefixes)
        .map(|i| ipnet::Ipv4Net::new(Ipv4Addr::from(0x5000_0000 + (i << 9)), 24).expect("a prefix").into())
        .collect();
    let listen = (0..services).map(|i| SocketAddr::from((Ipv4Addr::from(0xc633_640a + i), 443)));
    let mut config = sluice_config::parse("parse_speed.toml", CONFIG).expect("a configuration");
    config.filters.deny = deny;
    let engine = Engine::of(&config).expect("no expressions");
    (engine, ServiceMap::new(&listen.map(service).collect::<Vec<_>>()))
}

fn service(listen: SocketAddr) -> Service {
    use sluice_config::{
        Balance, Congestion, Connect, KeepAlives, Limits, Mode, Promise, ProxyHeaderExtras, ProxyProtocol, Timeouts,
    };
    Service {
        name: listen.to_string(),
        listen: vec![listen],
        mode: Mode::Terminate,
        proxy_protocol: ProxyProtocol::Off,
        proxy_header: ProxyHeaderExtras::default(),
        accept_proxy: vec![],
        connect: Connect::OnAccept,
        balance: Balance::RoundRobin,
        source: vec![],
        congestion: Congestion::Reno,
        upstream_congestion: Congestion::None,
        buffer: 65_535,
        timeouts: Timeouts::default(),
        keepalive: KeepAlives::default(),
        limits: Limits { connections: 1, ..Limits::default() },
        promise: Promise::default(),
        upstreams: vec![],
    }
}

fn count_run(name: &str, count: usize) {
    let (mut engine, services) = filters(1, 0);
    let (name, filtered) = name.strip_suffix("+filters").map_or((name, false), |name| (name, true));
    let Some(kind) = kinds().into_iter().find(|kind| kind.name == name) else {
        let names: Vec<_> = kinds().iter().map(|kind| kind.name).collect();
        eprintln!("no kind {name}; there are: {}", names.join(", "));
        std::process::exit(2);
    };
    let buffers = Buffers::new(&kind);
    for frame in buffers.frames().cycle().take(count) {
        let parsed = parse_only(frame, kind.checksums);
        if let (true, Ok(parsed)) = (filtered, black_box(&parsed)) {
            let _ = black_box(filter_only(parsed, frame, &mut engine, &services));
        }
    }
}
