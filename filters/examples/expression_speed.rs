//! What tcpdump expressions cost: the general machine, what is left of a program for a parsed segment, and libpcap's own
//! `bpf_filter` beside them, on warm caches.
//!
//! `cargo run --release -p sluice-filters --example expression_speed` prints nanoseconds per packet, the best of many rounds.
//! Half of the frames are IPv4 SYNs, the other half data with options; one in eight is IPv6.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use pcap::{Capture, Linktype};
use sluice_filters::testkit::{self, Opt};
use sluice_filters::{Expression, Flags, Parsed, RxChecksums, Segment, parse};

const FRAMES: usize = 256;
const ROUNDS: usize = 400;

fn main() {
    let frames: Vec<(Vec<u8>, Segment)> = (0..FRAMES as u32)
        .map(|i| {
            let frame = frame(i);
            let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!("a valid frame") };
            (frame, segment)
        })
        .collect();
    println!("{:>8} {:>8} {:>8} {:>6}  expression", "general", "segment", "libpcap", "match");
    for text in expressions() {
        let expression = Expression::compile(&text).expect("an expression");
        let libpcap = Capture::dead(Linktype::ETHERNET).expect("libpcap").compile(&text, true).expect("an expression");
        let matching = frames.iter().filter(|(frame, segment)| expression.matches_segment(frame, segment)).count();
        println!(
            "{:8.1} {:8.1} {:8.1} {:5}%  {}",
            best(&frames, |frame, _| expression.matches(frame)),
            best(&frames, |frame, segment| expression.matches_segment(frame, segment)),
            best(&frames, |frame, _| libpcap.filter(frame)),
            100 * matching / FRAMES,
            if text.len() > 72 { format!("{}...", &text[..69]) } else { text },
        );
    }
}

fn expressions() -> Vec<String> {
    let hosts = |count: u32| (0..count).map(|i| Ipv4Addr::from(0x0b01_0000 + i * 977).to_string()).collect::<Vec<_>>();
    let text = |text: &str| text.to_owned();
    vec![
        text("tcp dst port 443"),
        text("udp port 53"),
        text("tcp[tcpflags] & tcp-syn != 0 and ip[8] < 64"),
        text("src net 10.0.0.0/8 and tcp[14:2] = 1024"),
        text("tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn and tcp[14:2] = 65535 and tcp[12] = 0x50"),
        text("tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420"),
        text("less 60"),
        text("tcp dst portrange 400-500 and not src net (10.0.0.0/8 or 172.16.0.0/12 or 192.168.0.0/16)"),
        text("ip[4:2] = 54321 or (tcp[4:4] = 0 and tcp[8:4] = 0) or tcp src port 1024"),
        text("ip6 and src net 2001:db8:5::/48 and tcp dst port 443"),
        format!("src host ({})", hosts(20).join(" or ")),
        format!("host ({})", hosts(20).join(" or ")),
        format!("src host ({})", hosts(200).join(" or ")),
    ]
}

fn frame(i: u32) -> Vec<u8> {
    let address: IpAddr = match i % 8 {
        7 => Ipv6Addr::from(0x2001_0db8_0000_0000_0000_0000_0000_0000 | u128::from(i % 3 * 5) << 80 | u128::from(i))
            .into(),
        3 => Ipv4Addr::from(0x0b01_0000 + i / 8 * 977).into(),
        _ => Ipv4Addr::from(0x0a00_0000 + i.wrapping_mul(2_654_435_761) % 0x4000_0000).into(),
    };
    let service = if address.is_ipv4() { "198.51.100.10:443" } else { "[2001:db8::10]:443" };
    let source = SocketAddr::new(address, 1024 + i as u16 % 60_000);
    let service: SocketAddr = service.parse().expect("an address");
    let builder = testkit::tcp(source, service)
        .seq(i.wrapping_mul(0x9e37_79b9))
        .hop_limit(40 + i as u8 % 80)
        .window([1024, 65_535][i as usize / 2 % 2]);
    if i.is_multiple_of(2) {
        builder.flags(Flags::SYN).pad_to(60).build()
    } else {
        let builder = builder.options([Opt::Nop, Opt::Nop, Opt::Timestamp(i, i)]);
        builder.payload(if i.is_multiple_of(3) { &b"GET / HTTP/1.1\r\n"[..] } else { b"POST /" }).build()
    }
}

/// Best nanoseconds per packet of many rounds.
fn best(frames: &[(Vec<u8>, Segment)], matches: impl Fn(&[u8], &Segment) -> bool) -> f64 {
    let round = || {
        let start = Instant::now();
        for (frame, segment) in frames {
            black_box(matches(black_box(frame), black_box(segment)));
        }
        start.elapsed().as_nanos() as f64 / FRAMES as f64
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}
