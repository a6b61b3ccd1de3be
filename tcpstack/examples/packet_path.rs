//! One packet kind through everything a worker does with it but the device: parse, the gate's verdict (service, source, filters), then the cookie's
//! answer or the cookie check. `packet_path KIND COUNT`, KIND being `syn`, `syn-bare`, `ack`, `drop` or `none` (the loop itself).
//!
//! Run under an instruction counter with two counts, the difference divided by the difference of counts is one packet's cost;
//! `scripts/bench.sh` does.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_filters::addr::Addr;
use sluice_filters::engine::{Engine, Unseen};
use sluice_filters::gate::{Addressee, Came, Gate};
use sluice_filters::testkit::{Opt, tcp};
use sluice_filters::units::{Micros, PortId, ServiceId, WorkerId};
use sluice_filters::{Flags, Parsed, RxChecksums, parse, parse_then};
use sluice_tcpstack::cookie::Jar;
use sluice_tcpstack::counters::StackCounters;
use sluice_tcpstack::net::{Division, Lower, Owner, Reach, Route, Way};
use sluice_tcpstack::stack::{Arrival, Setup, Shared, Stack};

const CONFIG: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24"]
gateway = "198.51.100.1"
[[service]]
name = "s"
listen = ["198.51.100.10:443"]
proxy_protocol = "off"
[[service.upstream]]
address = "198.51.100.20:443"
"#;

/// Frames of one kind, more than the first-level cache holds.
const FRAMES: u32 = 1024;

/// No packet of these kinds reaches the layers below.
struct Nothing;

impl Lower for Nothing {
    fn room(&self, _: Way) -> bool {
        false
    }
    fn send<R>(&mut self, _: Way, _: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        fill(&mut [0; 128])
    }
    fn route(&mut self, _: Addr) -> Option<Route> {
        None
    }
    fn reach(&mut self, _: Way) -> Reach {
        Reach::Failed
    }
    fn division(&self, _: (Addr, u16), _: Addr) -> Division {
        Division { port: PortId(0), v4: true, word: 0 }
    }

    fn owner(&self, _: &Division, _: u16) -> Owner {
        Owner { node: 0, worker: WorkerId(0) }
    }
}

/// A frame with room behind it.
/// The clock stands still.
const NOW: Micros = Micros(0);

struct Buffer<'a> {
    octets: &'a mut [u8; 256],
    len: usize,
}

impl AsRef<[u8]> for Buffer<'_> {
    fn as_ref(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: packet_path syn|syn-bare|ack|drop|none COUNT";
    let mut args = std::env::args().skip(1);
    let kind = args.next().ok_or(usage)?;
    let count: u64 = args.next().ok_or(usage)?.parse()?;

    let config = Arc::new(sluice_config::parse("packet_path.toml", CONFIG)?);
    let gate = Gate::new(&config, []);
    let counters = Arc::new(StackCounters::new(&config));
    let mut stack = Stack::new(Setup {
        filters: Engine::of(&config).expect("no rules"),
        jar: Jar::new([7; 32], config.cookies.epoch),
        worker: WorkerId(0),
        counters,
        shared: Arc::new(Shared::new(&config, [1, 2], 16, Arc::default())),
        entropy: [3; 48],
        mtus: vec![1500],
        now: Micros(0),
        config,
    });
    stack.begin_turn(Micros(0), Duration::from_secs(1));

    let frames: Vec<Vec<u8>> = (0..FRAMES)
        .map(|n| {
            let source = format!("203.0.{}.{}:{}", n >> 8, n & 0xff, 1024 + n);
            let syn = |port: u16| tcp(&*source, &*format!("198.51.100.10:{port}")).flags(Flags::SYN).seq(n * 7919);
            let builder = match kind.as_str() {
                "syn" => syn(443).options([
                    Opt::Mss(1460),
                    Opt::SackPermitted,
                    Opt::Timestamp(n, 0),
                    Opt::Nop,
                    Opt::WindowScale(7),
                ]),
                "ack" => syn(443).flags(Flags::ACK).ack(n * 104_729),
                "drop" => syn(81),
                _ => syn(443),
            };
            builder.pad_to(60).build()
        })
        .collect();

    let mut lower = Nothing;
    let mut buffer = [0; 256];
    // An epoch's first SYN makes its promise, which the next turn takes up.
    let first = tcp("203.0.113.1:1024", "198.51.100.10:443").flags(Flags::SYN).build();
    buffer[..first.len()].copy_from_slice(&first);
    if let Ok(Parsed::Tcp(segment)) = parse(&buffer[..first.len()], RxChecksums::default()) {
        stack.answer_syn(&mut buffer, &segment, ServiceId(0), PortId(0), [2, 0, 0, 0, 0, 9]).expect("a cookie");
    }
    stack.begin_turn(Micros(0), Duration::from_secs(1));
    let mut later = Vec::with_capacity(1);
    let (mut answered, mut dropped) = (0_u64, 0_u64);
    let begun = Instant::now();
    for n in 0..count {
        let frame = &frames[(n % u64::from(FRAMES)) as usize];
        buffer[..frame.len()].copy_from_slice(frame);
        if kind == "none" {
            black_box(&mut buffer);
            continue;
        }
        let len = frame.len();
        // As the worker does: an opening SYN is judged where it was parsed, other segments a little later.
        parse_then(
            Buffer { octets: &mut buffer, len },
            RxChecksums::default(),
            #[inline(always)]
            |buffer, parsed| {
                let Ok(Parsed::Tcp(segment)) = parsed else {
                    dropped += 1;
                    return;
                };
                if !segment.flags.is_initial_syn() {
                    return later.push((segment, stack.hash(&segment.key)));
                }
                let came = Came { port: Some(PortId(0)), frame: &buffer.octets[..buffer.len], now: NOW };
                let judged = gate.judge(&mut stack.filters, &segment, came, &mut Unseen);
                let Ok(Addressee::Service(service)) = judged else {
                    dropped += 1;
                    return;
                };
                if stack.filters.answer(segment.key.src, NOW).is_err() {
                    dropped += 1;
                    return;
                }
                let answer = stack.answer_syn(buffer.octets, &segment, service, PortId(0), [2, 0, 0, 0, 0, 9]);
                answered += u64::from(black_box(answer).is_ok());
            },
        );
        for (segment, hash) in later.drain(..) {
            stack.touch(hash);
            let came = Came { port: Some(PortId(0)), frame: &buffer[..len], now: NOW };
            let judged = gate.judge(&mut stack.filters, &segment, came, &mut Unseen);
            let Ok(Addressee::Service(service)) = judged else {
                dropped += 1;
                continue;
            };
            let arrival = Arrival { port: PortId(0), mac: [2, 0, 0, 0, 0, 1], unfinished: false };
            let result = stack.segment(&segment, &mut buffer[..len], hash, arrival, Some(service), NOW, &mut lower);
            dropped += u64::from(black_box(result).is_err());
        }
    }
    let nanos = begun.elapsed().as_nanos() as f64 / count.max(1) as f64;
    println!("{kind}: {count} packets, {answered} answered, {dropped} dropped, {nanos:.1} ns each");
    Ok(())
}
