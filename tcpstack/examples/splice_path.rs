//! One spliced segment through everything a worker does with it but the device and the link header: parse, the gate's
//! verdict, flow and session, rewrite, IP header. Bursts of 32: parsed and hashed, then touched, then judged.
//!
//! `splice_path` prints a table of nanoseconds. `splice_path KIND SIZE FLOWS COUNT` works on COUNT segments of one kind: `up` (from the
//! client), `down` (from the upstream) or `none` (the loop itself, which writes the frames), with SIZE octets of new payload and
//! timestamps, from FLOWS sessions in random order. Run under an instruction counter with two counts, the difference divided by the
//! difference of counts is one segment's cost; `scripts/bench.sh` does.

#[path = "../tests/spliced/mod.rs"]
mod spliced;

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use sluice_filters::checksum::Sum;
use sluice_filters::engine::Unseen;
use sluice_filters::gate::{Addressee, Came, Gate};
use sluice_filters::testkit::{Opt, PEER_MAC};
use sluice_filters::units::PortId;
use sluice_filters::{Parsed, RxChecksums, Segment, parse_then};
use sluice_tcpstack::stack::{Arrival, Outcome};

use self::spliced::{Lab, write_ip};

/// Ethernet, IPv4, TCP and its timestamps.
const HEADERS: usize = 14 + 20 + 32;
const TCP: usize = 34;
/// A frame's room, and so many frames in turn: as a device's receive ring.
const ROOM: usize = 2048;
const FRAMES: usize = 512;
const BURST: usize = 32;
/// A window scale that leaves room for much payload without an acknowledgment.
const SCALE: u8 = 14;
const SIZES: [usize; 2] = [0, 1448];
const FLOWS: [u32; 2] = [64, 500_000];
const ROUNDS: usize = 5;
const SEGMENTS: usize = 2_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Up,
    Down,
    None,
}

/// The headers of a flow's next segment.
type Headers = [u8; HEADERS];

struct Bench {
    lab: Lab,
    gate: Gate,
    size: usize,
    up: Vec<Headers>,
    down: Vec<Headers>,
    frames: Vec<[u8; ROOM]>,
    later: Vec<(usize, Segment, u64)>,
    random: u64,
    forwarded: u64,
}

impl Bench {
    fn new(flows: u32, size: usize) -> Bench {
        let mut lab = Lab::new(flows, SCALE);
        let payload = vec![0x5a; size];
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for n in 0..flows {
            let session = lab.open(n);
            // Both windows open wide: those of a SYN and a SYN-ACK are not scaled.
            lab.forwarded(session.up(0).build(), true);
            lab.forwarded(session.down(0).build(), false);
            // The upstream's timestamp is heard by now.
            let stamps = [Opt::Nop, Opt::Nop, Opt::Timestamp(session.client_stamp, session.our_stamp)];
            let headers = |frame: &[u8]| *frame.first_chunk().unwrap();
            up.push(headers(&session.up(0).options(stamps).payload(&payload).build()));
            down.push(headers(&session.down(0).payload(&payload).build()));
        }
        let config = spliced::config(flows, SCALE, spliced::UPSTREAMS);
        Bench {
            lab,
            gate: Gate::new(&config, []),
            size,
            up,
            down,
            frames: vec![[0x5a; ROOM]; FRAMES],
            later: Vec::with_capacity(BURST),
            random: 1,
            forwarded: 0,
        }
    }

    /// Writes the next segments of random flows into all frames.
    #[inline(never)]
    fn write_frames(&mut self, kind: Kind) {
        let flows = if kind == Kind::Down { &mut self.down } else { &mut self.up };
        for frame in &mut self.frames {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (self.random >> 33) as usize % flows.len();
            let headers = &mut flows[at];
            frame[..HEADERS].copy_from_slice(headers);
            advance(headers, self.size as u32);
        }
    }

    /// What a worker does with them.
    #[inline(never)]
    fn work(&mut self, kind: Kind) {
        let len = HEADERS + self.size;
        for burst in self.frames.chunks_mut(BURST) {
            let (stack, later) = (&self.lab.stack, &mut self.later);
            for (index, frame) in burst.iter().enumerate() {
                parse_then(
                    &frame[..len],
                    RxChecksums::default(),
                    #[inline(always)]
                    |_, parsed| {
                        if let Ok(Parsed::Tcp(segment)) = parsed {
                            later.push((index, segment, stack.hash(&segment.key)));
                        }
                    },
                );
            }
            for (_, _, hash) in &self.later {
                self.lab.stack.touch(*hash);
            }
            for (_, segment, hash) in &self.later {
                self.lab.stack.touch_session(*hash, &segment.key);
            }
            for (index, segment, hash) in self.later.drain(..) {
                let frame = &mut burst[index];
                let port = PortId(u8::from(kind == Kind::Down));
                let came = Came { port: Some(port), frame, now: self.lab.now };
                let service = match self.gate.judge(&mut self.lab.stack.filters, &segment, came, &mut Unseen) {
                    Ok(Addressee::Service(service)) => Some(service),
                    Ok(Addressee::Dialler) => None,
                    Err(_) => continue,
                };
                let arrival = Arrival { port, mac: PEER_MAC, unfinished: false };
                let (now, wire) = (self.lab.now, &mut self.lab.wire);
                let outcome = self.lab.stack.segment(&segment, &mut frame[..len], hash, arrival, service, now, wire);
                if let Ok(Outcome::Forward) = outcome {
                    black_box(write_ip(self.lab.stack.forward(), frame));
                    self.forwarded += 1;
                }
            }
        }
    }

    /// Works on `count` segments, rounded up to all frames; the time that the work took.
    fn run(&mut self, kind: Kind, count: usize) -> (usize, Duration) {
        let (mut done, mut took) = (0, Duration::ZERO);
        while done < count {
            self.write_frames(kind);
            done += FRAMES;
            if kind == Kind::None {
                black_box(&mut self.frames);
                continue;
            }
            let begun = Instant::now();
            self.work(kind);
            took += begun.elapsed();
        }
        (done, took)
    }

    /// Nanoseconds a segment: the best of a few rounds, the one least disturbed.
    fn nanos(&mut self, kind: Kind) -> f64 {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let (done, took) = self.run(kind, SEGMENTS / ROUNDS);
            best = best.min(took.as_nanos() as f64 / done as f64);
        }
        best
    }
}

/// Moves the sequence number on.
fn advance(headers: &mut Headers, octets: u32) {
    let old = u32::from_be_bytes([headers[TCP + 4], headers[TCP + 5], headers[TCP + 6], headers[TCP + 7]]);
    let new = old.wrapping_add(octets);
    let check = u16::from_be_bytes([headers[TCP + 16], headers[TCP + 17]]);
    let check = Sum::ZERO.word(!check).dword(!old).dword(new).finish();
    headers[TCP + 4..TCP + 8].copy_from_slice(&new.to_be_bytes());
    headers[TCP + 16..TCP + 18].copy_from_slice(&check.to_be_bytes());
}

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: splice_path [up|down|none SIZE FLOWS COUNT]";
    let mut args = std::env::args().skip(1);
    if let Some(kind) = args.next() {
        let kind = match kind.as_str() {
            "up" => Kind::Up,
            "down" => Kind::Down,
            "none" => Kind::None,
            _ => return Err(usage.into()),
        };
        let mut number = || args.next().ok_or(usage);
        let (size, flows, count) = (number()?.parse::<u16>()?, number()?.parse::<u32>()?.max(1), number()?.parse()?);
        let mut bench = Bench::new(flows, usize::from(size));
        let (done, took) = bench.run(kind, count);
        let nanos = took.as_nanos() as f64 / done.max(1) as f64;
        println!("{done} segments, {} forwarded, {nanos:.1} ns each", bench.forwarded);
        return Ok(());
    }
    println!("{:<6} {:>6} {:>8} {:>8}", "", "octets", "flows", "ns");
    for flows in FLOWS {
        for size in SIZES {
            let mut bench = Bench::new(flows, size);
            for (name, kind) in [("up", Kind::Up), ("down", Kind::Down)] {
                println!("{name:<6} {size:>6} {flows:>8} {:>8.1}", bench.nanos(kind));
            }
            assert_eq!(
                bench.forwarded as usize,
                2 * ROUNDS * (SEGMENTS / ROUNDS).next_multiple_of(FRAMES),
                "forwarded"
            );
        }
    }
    Ok(())
}
