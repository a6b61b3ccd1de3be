//! Writes a capture of attack packets, for `net_pcap ... infinite_rx=1`: `attack_pcap KIND FILE [COUNT] [MAC]`.
//!
//! KIND is `syn` (random sources, a Linux client's options), `syn-bare` (no options), `ack` (no flow, no cookie of ours),
//! `drop` (SYNs to a port that is no service) or `udp`. All go to 198.51.100.10, port 443, and to MAC, by default the one
//! DPDK gives to `net_pcap0`.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::Ipv4Addr;

use sluice_filters::Flags;
use sluice_filters::testkit::{self, Opt};

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
}

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: attack_pcap syn|syn-bare|ack|drop|udp FILE [COUNT] [MAC]";
    let mut args = std::env::args().skip(1);
    let (kind, file) = args.next().zip(args.next()).ok_or(usage)?;
    let count: u32 = args.next().map_or(Ok(8192), |text| text.parse())?;
    let mac = args.next().map_or(Ok([0x02, 0x70, 0x63, 0x61, 0x70, 0x00]), |text| mac(&text).ok_or(usage))?;

    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut out = BufWriter::new(File::create(file)?);
    // The classic format: magic, version 2.4, UTC, no accuracy, snap length, Ethernet.
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65_535, 1_u32] {
        out.write_all(&word.to_le_bytes())?;
    }
    for _ in 0..count {
        let source = format!("{}:{}", random.source(), 1024 + random.next() % 64_000);
        let syn = |port: u16| testkit::tcp(&*source, &*format!("198.51.100.10:{port}")).flags(Flags::SYN);
        let frame = match kind.as_str() {
            "syn" => syn(443)
                .seq(random.next())
                .options([
                    Opt::Mss(1460),
                    Opt::SackPermitted,
                    Opt::Timestamp(random.next(), 0),
                    Opt::Nop,
                    Opt::WindowScale(7),
                ])
                .dst_mac(mac)
                .pad_to(60)
                .build(),
            "syn-bare" => syn(443).seq(random.next()).dst_mac(mac).pad_to(60).build(),
            "ack" => syn(443).flags(Flags::ACK).seq(random.next()).ack(random.next()).dst_mac(mac).pad_to(60).build(),
            "drop" => syn(81).seq(random.next()).dst_mac(mac).pad_to(60).build(),
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
