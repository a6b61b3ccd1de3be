//! The packets of a capture through parser and filters, as a worker does it, without a device and without the stack:
//! `filter_path CONFIG CAPTURE COUNT [none]`. Sets and bans are those that the configuration names.
//!
//! Prints nanoseconds a packet and what became of them. Under callgrind with `--toggle-collect='*replay*'` only the packets are
//! counted; with `none` nothing is done with them. `scripts/bench.sh --filters` does both and takes the difference.

use std::collections::BTreeMap;
use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use sluice_config::Config;
use sluice_filters::engine::{Engine, FilterCounters, Plan};
use sluice_filters::rules::Facts;
use sluice_filters::sets::load_set;
use sluice_filters::units::Micros;
use sluice_filters::{DropReason, Parsed, RxChecksums, Segment, ServiceMap, parse_then};

/// Frames looked at together, as a worker receives them.
const BURST: usize = 32;
/// Packets in a microsecond of the filters' time.
const PACE: usize = 15;

type Frame = [u8; 256];

/// What became of packets; the first entry are those that passed.
type Fates = Vec<u64>;

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: filter_path CONFIG CAPTURE COUNT [none]";
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [config, capture, count, idle @ ..] = &*args else { return Err(usage.into()) };
    let count: usize = count.parse()?;
    let config = sluice_config::load(Path::new(config))?;
    let services = ServiceMap::new(&config.services);
    let mut engine = engine(&config)?;
    let frames = read_capture(&std::fs::read(capture)?)?;

    let begun = Instant::now();
    let fates =
        if idle.is_empty() { replay(&frames, count, &services, &mut engine) } else { idle_replay(&frames, count) };
    let nanos = begun.elapsed().as_nanos() as f64 / count.max(1) as f64;
    let named: BTreeMap<&str, u64> = std::iter::once("passed")
        .chain(DropReason::ALL.iter().map(|reason| reason.as_str()))
        .zip(fates)
        .filter(|(_, packets)| *packets > 0)
        .collect();
    println!("{count} packets, {nanos:.1} ns each: {named:?}");
    Ok(())
}

fn engine(config: &Config) -> Result<Engine, Box<dyn Error>> {
    let sets = config.sets.iter().map(|set| load_set(set).map(|set| set.addresses)).collect::<Result<Vec<_>, _>>()?;
    let plan = Plan::compile("configuration", config, &sets, 1).map_err(|mistakes| format!("{mistakes:?}"))?;
    let mut engine = Engine::new(Arc::new(plan), [7, 11], Arc::new(FilterCounters::new(config)));
    if let Some(file) = config.bans.as_ref().and_then(|bans| bans.file.as_ref()) {
        for line in std::fs::read_to_string(file)?.lines() {
            let prefix = line.split_whitespace().next().unwrap_or_default().parse()?;
            engine.ban(prefix, Micros(u64::MAX), 0)?;
        }
    }
    Ok(engine)
}

/// The frames of a capture in the classic format that is not longer than buffers are, each with its length.
fn read_capture(mut octets: &[u8]) -> Result<Vec<(Frame, usize)>, Box<dyn Error>> {
    octets = octets.get(24..).ok_or("not a capture")?;
    let mut frames = Vec::new();
    while let Some((header, rest)) = octets.split_first_chunk::<16>() {
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let (frame, rest) = rest.split_at_checked(len).ok_or("the capture is cut short")?;
        let mut buffer = [0; 256];
        buffer.get_mut(..len).ok_or("a frame is too long")?.copy_from_slice(frame);
        frames.push((buffer, len));
        octets = rest;
    }
    if frames.is_empty() { Err("the capture is empty".into()) } else { Ok(frames) }
}

/// A received frame.
struct Received<'a> {
    octets: &'a Frame,
    len: usize,
}

impl AsRef<[u8]> for Received<'_> {
    fn as_ref(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

#[inline(never)]
fn replay(frames: &[(Frame, usize)], count: usize, services: &ServiceMap, engine: &mut Engine) -> Fates {
    let mut fates = vec![0; DropReason::ALL.len() + 1];
    let mut buffers = [[0; 256]; BURST];
    let mut later: Vec<(usize, usize, Segment)> = Vec::with_capacity(BURST);
    let mut at = 0;
    for begin in (0..count).step_by(BURST) {
        let now = Micros((1_000_000 + begin / PACE) as u64);
        for (slot, buffer) in buffers.iter_mut().enumerate() {
            let (frame, len) = &frames[at];
            at = if at + 1 < frames.len() { at + 1 } else { 0 };
            buffer[..*len].copy_from_slice(&frame[..*len]);
            parse_then(
                Received { octets: buffer, len: *len },
                RxChecksums::default(),
                #[inline(always)]
                |received, parsed| {
                    let frame = &received.octets[..received.len];
                    match parsed {
                        Ok(Parsed::Tcp(segment)) if segment.flags.is_initial_syn() => {
                            fates[fate(judge(frame, &segment, services, engine, now))] += 1;
                        }
                        Ok(Parsed::Tcp(segment)) => later.push((slot, received.len, segment)),
                        Ok(_) => fates[0] += 1,
                        Err(reason) => fates[fate(Err(reason))] += 1,
                    }
                },
            );
        }
        for (slot, len, segment) in later.drain(..) {
            fates[fate(judge(&buffers[slot][..len], &segment, services, engine, now))] += 1;
        }
    }
    fates
}

/// The same without anything done.
#[inline(never)]
fn idle_replay(frames: &[(Frame, usize)], count: usize) -> Fates {
    let mut buffer = [0; 256];
    for at in 0..count {
        let (frame, len) = &frames[at % frames.len()];
        buffer[..*len].copy_from_slice(&frame[..*len]);
        black_box(&mut buffer);
    }
    vec![count as u64]
}

#[inline(always)]
fn judge(
    frame: &[u8],
    segment: &Segment,
    services: &ServiceMap,
    engine: &mut Engine,
    now: Micros,
) -> Result<(), DropReason> {
    let service = services.get(segment.key.dst, segment.key.dst_port).ok_or(DropReason::NotAService)?;
    engine.check(&Facts { segment, frame, service }, now)?;
    if segment.flags.is_initial_syn() {
        engine.answer(segment.key.src, now)
    } else {
        engine.flowless(segment.key.src, now)
    }
}

/// The place among [`Fates`].
fn fate(verdict: Result<(), DropReason>) -> usize {
    verdict.map_or_else(|reason| reason.index() + 1, |()| 0)
}
