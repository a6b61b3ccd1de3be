//! What SYN cookies cost: nanoseconds and, where valgrind is installed, instructions per packet.
//!
//! `cargo run --release -p sluice-tcpstack --example cookie_speed`
//!
//! Instructions are counted by callgrind: this program runs itself with N and with 2N packets of a kind and divides the
//! difference by N, so start-up does not count.

use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use sluice_filters::testkit::{self, Opt};
use sluice_filters::units::Seq;
use sluice_filters::{Flags, Parsed, RxChecksums, Segment};
use sluice_tcpstack::cookie::{Jar, Offer, SYN_ACK_MAX, SynAckProfile};
use sluice_tcpstack::segment::TcpChecksum;
use sluice_tcpstack::translate::Translator;

const FRAMES: usize = 64;
const COUNTED: usize = 20_000;

struct Kind {
    name: &'static str,
    run: fn(&mut Bench, usize),
}

const KINDS: &[Kind] = &[
    Kind { name: "SYN v4, MSS", run: |b, n| b.answer(0, n) },
    Kind { name: "SYN v4, no options", run: |b, n| b.answer(1, n) },
    Kind { name: "SYN v4, MSS SACK wscale", run: |b, n| b.answer(2, n) },
    Kind { name: "SYN v4, Linux's options", run: |b, n| b.answer(3, n) },
    Kind { name: "SYN v6, Linux's options", run: |b, n| b.answer(4, n) },
    Kind { name: "SYN v4, MSS, offload", run: |b, n| b.answer(5, n) },
    Kind { name: "mint v4", run: Bench::mint },
    Kind { name: "ACK check v4, bad", run: |b, n| b.check(0, 0, n) },
    Kind { name: "ACK check v4, good", run: |b, n| b.check(0, 1, n) },
    Kind { name: "ACK check v6, bad", run: |b, n| b.check(1, 0, n) },
    Kind { name: "translate out, timestamps", run: |b, n| b.translate(n) },
];

struct Batch {
    frames: Vec<[u8; 128]>,
    segments: Vec<Segment>,
    profile: SynAckProfile,
}

struct Bench {
    jar: Jar,
    batches: Vec<Batch>,
    acks: Vec<[Vec<Seq>; 2]>,
    translated: Vec<u8>,
}

fn batch(v6: bool, options: &[Opt], tcp_checksum: TcpChecksum) -> Batch {
    let mut frames = Vec::new();
    let mut segments = Vec::new();
    for n in 0..FRAMES {
        let (src, dst) = if v6 {
            (format!("[2001:db8:1::{n:x}]:{}", 1_024 + n * 7), "[2001:db8::10]:443".to_owned())
        } else {
            (format!("192.0.2.{}:{}", n + 1, 1_024 + n * 7), "198.51.100.10:443".to_owned())
        };
        let seq = (n as u32).wrapping_mul(0x9e37_79b9);
        let frame = testkit::tcp(src.as_str(), dst.as_str()).flags(Flags::SYN).seq(seq).ack(0).options(options).build();
        let Ok(Parsed::Tcp(segment)) = sluice_filters::parse(&frame, RxChecksums::default()) else {
            panic!("a valid SYN does not parse");
        };
        let mut buffer = [0; 128];
        buffer[..frame.len()].copy_from_slice(&frame);
        frames.push(buffer);
        segments.push(segment);
    }
    let profile = SynAckProfile {
        mss: 1_460,
        wscale: Some(7),
        window: 65_535,
        sack: true,
        timestamps: true,
        src_mac: testkit::OUR_MAC,
        tcp_checksum,
    };
    Batch { frames, segments, profile }
}

impl Bench {
    fn new() -> Bench {
        let mut jar = Jar::new([7; 32], Duration::from_secs(64));
        jar.tick(Duration::from_secs(1_700_000_000));
        let linux = [Opt::Mss(1_460), Opt::SackPermitted, Opt::Timestamp(1, 0), Opt::Nop, Opt::WindowScale(7)];
        let windows = [Opt::Mss(1_460), Opt::Nop, Opt::WindowScale(8), Opt::Nop, Opt::Nop, Opt::SackPermitted];
        let full = TcpChecksum::Full;
        let batches = vec![
            batch(false, &[Opt::Mss(1_460)], full),
            batch(false, &[], full),
            batch(false, &windows, full),
            batch(false, &linux, full),
            batch(true, &linux, full),
            batch(false, &[Opt::Mss(1_460)], TcpChecksum::Offload),
        ];
        let offer = Offer { mss: 1_460, wscale: Some(7), sack: true };
        let acks = [0, 4].map(|batch: usize| {
            let segments = &batches[batch].segments;
            let good = segments.iter().map(|s| jar.mint(&s.key, s.seq, offer).plus(1));
            [good.clone().map(|ack| ack.plus(1)).collect(), good.collect()]
        });
        let timestamps = [Opt::Nop, Opt::Nop, Opt::Timestamp(5, 6)];
        let translated = testkit::tcp("192.0.2.1:5", "198.51.100.10:443").options(timestamps).payload([7; 100]).build();
        assert_eq!(SYN_ACK_MAX, 98);
        Bench { jar, batches, acks: acks.into(), translated }
    }

    #[inline(never)]
    fn answer(&mut self, batch: usize, packets: usize) {
        let Batch { frames, segments, profile } = &mut self.batches[batch];
        for _ in 0..packets / FRAMES {
            for (frame, segment) in frames.iter_mut().zip(segments.iter()) {
                // The answer's options are those of the SYN, so the frame can be answered again.
                black_box(self.jar.answer_syn(black_box(&mut frame[..]), segment, profile, 12_345));
            }
        }
    }

    #[inline(never)]
    fn mint(&mut self, packets: usize) {
        let offer = black_box(Offer { mss: 1_460, wscale: Some(7), sack: true });
        for _ in 0..packets / FRAMES {
            for segment in &self.batches[0].segments {
                black_box(self.jar.mint(black_box(&segment.key), segment.seq, offer));
            }
        }
    }

    #[inline(never)]
    fn check(&mut self, family: usize, good: usize, packets: usize) {
        let segments = &self.batches[family * 4].segments;
        for _ in 0..packets / FRAMES {
            for (segment, ack) in segments.iter().zip(&self.acks[family][good]) {
                let offer = self.jar.check(black_box(&segment.key), segment.seq, *ack);
                assert_eq!(black_box(offer).is_some(), good == 1);
            }
        }
    }

    #[inline(never)]
    fn translate(&mut self, packets: usize) {
        let translator = black_box(Translator { seq_delta: 77, ts_delta: 99 });
        for _ in 0..packets {
            translator.outgoing::<true>(black_box(&mut self.translated[34..]));
        }
    }
}

/// The fastest of many short rounds: the one least disturbed.
fn nanos(bench: &mut Bench, kind: &Kind) -> f64 {
    const ROUND: usize = 640;
    let mut best = f64::INFINITY;
    for _ in 0..20_000 {
        let start = Instant::now();
        (kind.run)(bench, ROUND);
        best = best.min(start.elapsed().as_nanos() as f64 / ROUND as f64);
    }
    best
}

/// Instructions of this program with `packets` packets of one kind, by callgrind.
fn count(kind: usize, packets: usize) -> Option<u64> {
    let program = std::env::current_exe().ok()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([kind.to_string(), packets.to_string()])
        .output()
        .ok()?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = report.lines().find(|line| line.contains("Collected"))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn main() {
    let mut bench = Bench::new();
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    if let [kind, packets] = arguments[..] {
        (KINDS[kind].run)(&mut bench, packets);
        return;
    }
    println!("{:<28} {:>8} {:>14}", "", "ns", "instructions");
    for (index, kind) in KINDS.iter().enumerate() {
        let packets = COUNTED / FRAMES * FRAMES;
        let counted = count(index, packets).zip(count(index, 2 * packets));
        let instructions =
            counted.map_or("-".to_owned(), |(one, two)| format!("{:.1}", (two - one) as f64 / packets as f64));
        println!("{:<28} {:>8.1} {:>14}", kind.name, nanos(&mut bench, kind), instructions);
    }
}
