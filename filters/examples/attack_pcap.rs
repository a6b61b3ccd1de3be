//! Writes what `scripts/bench.sh` replays: captures of attack packets, for `net_pcap ... infinite_rx=1`, and lists that go with them.
//!
//! `attack_pcap KIND FILE [COUNT] [MAC]`, KIND being
//! - `syn` (random sources, a Linux client's options), `syn-bare` (no options), `ack` (no flow, no cookie of ours), `drop` (SYNs to a
//!   port that is no service), `udp`;
//! - `tool` (SYNs without options, window 1024, from some way off), `data` (the beginning of an HTTP request, no flow);
//! - `syn-few`, `ack-few` (as `syn` and `ack`, from 64 sources);
//! - `listed`, `banned` (as `syn`, from sources that `list` or `bans` holds, drawn at random), `stranger` (from others);
//! - `list`, `bans`: COUNT prefixes, one a line, by default a million. The captures draw from a million.
//!
//! All packets go to 198.51.100.10, port 443, and to MAC, by default the one DPDK gives to `net_pcap0`.

use std::collections::HashSet;
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use sluice_filters::Flags;
use sluice_filters::addr::Addr;
use sluice_filters::sets::AddressSet;
use sluice_filters::testkit::{self, Opt};

/// Prefixes in a list.
const LIST: usize = 1_000_000;
/// Sources of an attack that comes from few.
const FEW: u32 = 64;

/// A small generator with a fixed seed: the same capture every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    /// A unicast source that the parser takes for one.
    fn source(&mut self) -> Ipv4Addr {
        loop {
            let address = Ipv4Addr::from(self.next());
            let first = address.octets()[0];
            if (1..=223).contains(&first) && first != 127 {
                return address;
            }
        }
    }

    /// An address of `net`.
    fn within(&mut self, net: Ipv4Net) -> Ipv4Addr {
        Ipv4Addr::from(net.network().to_bits() | self.next() & net.hostmask().to_bits())
    }
}

/// What a list holds: different prefixes, most of them single addresses, as in public block lists. `lengths` are those of the others.
fn prefixes(count: usize, single: u32, lengths: std::ops::RangeInclusive<u8>) -> Vec<Ipv4Net> {
    let mut random = Random(0xd1b5_4a32_d192_ed03);
    let mut seen = HashSet::with_capacity(count);
    let mut all = Vec::with_capacity(count);
    let span = u32::from(lengths.end() - lengths.start()) + 1;
    while all.len() < count {
        let len = if random.next() % 100 < single { 32 } else { lengths.start() + (random.next() % span) as u8 };
        let net = Ipv4Net::new_assert(random.source(), len).trunc();
        if seen.insert(net) {
            all.push(net);
        }
    }
    all
}

/// Seven of ten are addresses, the others /18 to /31.
fn list(count: usize) -> Vec<Ipv4Net> {
    prefixes(count, 70, 18..=31)
}

/// Nearly all are addresses, the others /24.
fn bans(count: usize) -> Vec<Ipv4Net> {
    prefixes(count, 98, 24..=24)
}

/// Where packets come from.
enum Sources {
    Anywhere,
    Few,
    Among(Vec<Ipv4Net>),
    Outside(AddressSet),
}

impl Sources {
    fn of(kind: &str) -> Sources {
        match kind {
            "syn-few" | "ack-few" => Sources::Few,
            "listed" => Sources::Among(list(LIST)),
            "banned" => Sources::Among(bans(LIST)),
            "stranger" => {
                let nets: Vec<IpNet> = list(LIST).into_iter().chain(bans(LIST)).map(IpNet::V4).collect();
                Sources::Outside(AddressSet::new(&nets))
            }
            _ => Sources::Anywhere,
        }
    }

    fn next(&self, random: &mut Random) -> Ipv4Addr {
        match self {
            Sources::Anywhere => random.source(),
            Sources::Few => Random(0x2545_f491_4f6c_dd1d + u64::from(random.next() % FEW) * 0x9e37_79b9).source(),
            Sources::Among(nets) => {
                let net = nets[random.next() as usize % nets.len()];
                random.within(net)
            }
            Sources::Outside(set) => loop {
                let source = random.source();
                if !set.contains(Addr::v4(source.to_bits())) {
                    return source;
                }
            },
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: attack_pcap KIND FILE [COUNT] [MAC], KIND being syn, syn-bare, ack, drop, udp, tool, data, syn-few, ack-few, \
                 listed, banned, stranger, list or bans";
    let mut args = std::env::args().skip(1);
    let (kind, file) = args.next().zip(args.next()).ok_or(usage)?;
    let count: Option<u32> = args.next().map(|text| text.parse()).transpose()?;
    let mac = args.next().map_or(Ok([0x02, 0x70, 0x63, 0x61, 0x70, 0x00]), |text| mac(&text).ok_or(usage))?;
    let mut out = BufWriter::new(File::create(file)?);

    if kind == "list" || kind == "bans" {
        let count = count.map_or(LIST, |count| count as usize);
        for net in if kind == "list" { list(count) } else { bans(count) } {
            writeln!(out, "{net}")?;
        }
        return Ok(out.flush()?);
    }

    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let sources = Sources::of(&kind);
    // The classic format: magic, version 2.4, UTC, no accuracy, snap length, Ethernet.
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65_535, 1_u32] {
        out.write_all(&word.to_le_bytes())?;
    }
    for _ in 0..count.unwrap_or(8192) {
        let source = format!("{}:{}", sources.next(&mut random), 1024 + random.next() % 64_000);
        let tcp = |port: u16| testkit::tcp(&*source, &*format!("198.51.100.10:{port}")).dst_mac(mac).pad_to(60);
        let syn = |port: u16| tcp(port).flags(Flags::SYN);
        let frame = match kind.as_str() {
            "syn" | "syn-few" | "listed" | "banned" | "stranger" => syn(443)
                .seq(random.next())
                .options([
                    Opt::Mss(1460),
                    Opt::SackPermitted,
                    Opt::Timestamp(random.next(), 0),
                    Opt::Nop,
                    Opt::WindowScale(7),
                ])
                .build(),
            "syn-bare" => syn(443).seq(random.next()).build(),
            "tool" => syn(443).seq(random.next()).window(1024).hop_limit(51).build(),
            "ack" | "ack-few" => tcp(443).flags(Flags::ACK).seq(random.next()).ack(random.next()).build(),
            "data" => tcp(443)
                .flags(Flags::ACK | Flags::PSH)
                .seq(random.next())
                .ack(random.next())
                .payload(b"GET /index.html?a=1 HTTP/1.1\r\nHost: www.example.com\r\n")
                .build(),
            "drop" => syn(81).seq(random.next()).build(),
            "udp" => {
                let from = source.split(':').next().unwrap_or_default();
                testkit::ip(from, "198.51.100.10", 17).payload([0; 26]).dst_mac(mac).pad_to(60).build()
            }
            _ => return Err(usage.into()),
        };
        let len = u32::try_from(frame.len())?;
        for word in [0, 0, len, len] {
            out.write_all(&word.to_le_bytes())?;
        }
        out.write_all(&frame)?;
    }
    Ok(out.flush()?)
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut octets = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut octets {
        *octet = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(octets)
}
