//! What tests of the commands share: a minimal configuration, captures of clients and attacks, and the real binary.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use sluice_control::capture::PcapWriter;
use sluice_filters::Flags;
use sluice_filters::testkit::{Opt, TcpBuilder, tcp};

/// A port and a service; what a test is about comes after it.
pub const BASE: &str = r#"
[[port]]
name = "wan"
device = "0000:03:00.0"
addresses = ["198.51.100.2/24", "2001:db8::2/64"]
gateway = ["198.51.100.1", "2001:db8::1"]

[[service]]
name = "web"
listen = ["198.51.100.10:443", "[2001:db8::10]:443"]
[[service.upstream]]
address = "198.51.100.50:443"

"#;

/// The service.
pub const WEB: &str = "198.51.100.10:443";
/// When captures begin, since 1970.
pub const BEGIN: Duration = Duration::from_secs(1_767_323_045);

/// The command, run in `folder`.
pub fn sluice_in(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("SLUICE_LOG")
        .output()
        .unwrap()
}

pub fn text(octets: &[u8]) -> &str {
    std::str::from_utf8(octets).unwrap()
}

/// [`BASE`] and `ending` as a file of this name.
pub fn config(folder: &Path, name: &str, ending: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, format!("{BASE}{ending}\n")).unwrap();
    path
}

/// Frames with their times after [`BEGIN`], microseconds.
pub type Tape = Vec<(u64, Vec<u8>)>;

/// Linux's options.
pub fn linux() -> Vec<Opt> {
    vec![Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(1, 0), Opt::Nop, Opt::WindowScale(7)]
}

/// A SYN of Linux's make.
pub fn syn(from: &str) -> TcpBuilder {
    tcp(from, WEB).flags(Flags::SYN).seq(100).ack(0).window(64_240).hop_limit(60).options(linux())
}

/// A whole connection as seen at the appliance: handshake, five segments of data, FIN.
pub fn connection(from: &str, at: u64) -> Tape {
    let ack = |flags: Flags, seq| tcp(from, WEB).flags(flags).seq(seq).ack(5_001).window(502).hop_limit(60);
    let answer = tcp(WEB, from).flags(Flags::SYN | Flags::ACK).seq(5_000).ack(101).options(linux());
    let mut tape =
        vec![(at, syn(from).build()), (at + 10_000, answer.build()), (at + 20_000, ack(Flags::ACK, 101).build())];
    for n in 0..5 {
        let data = ack(Flags::PSH | Flags::ACK, 101 + n * 10).payload(b"\x16\x03\x01xxxxxxx");
        tape.push((at + 30_000 + u64::from(n) * 10_000, data.build()));
    }
    tape.push((at + 80_000, ack(Flags::FIN | Flags::ACK, 151).build()));
    tape
}

/// Forty clients of 203.0.113.0/24, a tenth of a second apart.
pub fn clients() -> Tape {
    (0..40).flat_map(|n| connection(&format!("203.0.113.{}:{}", n + 1, 40_000 + n), n * 100_000)).collect()
}

/// `count` frames, evenly over 3.9 seconds.
pub fn flood(count: u64, frame: impl Fn(u64) -> TcpBuilder) -> Tape {
    (0..count).map(|n| (n * 3_900_000 / count, frame(n).build())).collect()
}

/// An address that is another one for every `n`, in 1.0.0.0/8 and up, far from clients and documentation prefixes.
pub fn anywhere(n: u64) -> String {
    let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let [a, b, c, d, e, f, ..] = mixed.to_be_bytes();
    format!("{}.{b}.{c}.{d}:{}", 1 + a % 9, 1_024 + u16::from_be_bytes([e, f]) % 60_000)
}

/// Writes the tapes' frames, in time's order.
pub fn capture(path: &Path, tapes: &[&Tape]) {
    let mut frames: Vec<&(u64, Vec<u8>)> = tapes.iter().flat_map(|tape| tape.iter()).collect();
    frames.sort_by_key(|(at, _)| *at);
    let mut writer = PcapWriter::create(path).unwrap();
    for (at, frame) in frames {
        writer.write(BEGIN + Duration::from_micros(*at), frame, frame.len() as u32).unwrap();
    }
    writer.finish().unwrap();
}
