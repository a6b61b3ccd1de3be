//! What a flow lookup costs: a random flow among many, with and without the worker's two passes over a burst.
//!
//! `cargo run --release -p sluice-tcpstack --example flow_speed [flows]` (500,000 by default)

use std::hint::black_box;
use std::time::Instant;

use sluice_filters::addr::{Addr, FlowKey};
use sluice_tcpstack::flow::FlowTable;

const BURST: usize = 32;
const LOOKUPS: usize = 1_600_000;

/// Distinct keys; a multiplicative step so that neighbours in time are not neighbours in the table.
fn key(n: u32) -> FlowKey {
    let n = n.wrapping_mul(0x9e37_79b1);
    FlowKey {
        src: Addr::v4(0x0a00_0000 | n >> 12),
        dst: Addr::v4(0xc633_640a),
        src_port: n as u16 & 0xfff,
        dst_port: 443,
    }
}

fn main() {
    let flows = std::env::args().nth(1).and_then(|flows| flows.parse().ok()).unwrap_or(500_000_u32).max(1);
    let mut table = FlowTable::new(flows as usize, [7; 16]);
    let started = Instant::now();
    for n in 0..flows {
        let key = key(n);
        table.insert(table.hash(&key), &key, n).expect("the table was built for as many");
    }
    println!("{:<36} {:>8.1} ns", "insert", started.elapsed().as_nanos() as f64 / f64::from(flows));

    let mut state = 1_u64;
    let mut bursts = |flows: u32| -> Vec<FlowKey> {
        (0..LOOKUPS)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                key((state >> 33) as u32 % flows)
            })
            .collect()
    };
    let present = bursts(flows);
    let absent: Vec<FlowKey> = present.iter().map(|key| FlowKey { dst_port: 80, ..*key }).collect();
    let report = |name: &str, keys: &[FlowKey], found: bool, pass: &dyn Fn(&[FlowKey]) -> usize| {
        let started = Instant::now();
        let hits: usize = keys.chunks(BURST).map(pass).sum();
        let nanos = started.elapsed().as_nanos() as f64 / keys.len() as f64;
        assert_eq!(hits, if found { keys.len() } else { 0 });
        println!("{name:<36} {nanos:>8.1} ns");
    };
    let one_pass = |burst: &[FlowKey]| {
        // Each lookup waits for the last one's result, as it waits for the work on the last packet in a worker.
        let mut hits = 0;
        let mut nothing = 0;
        for key in burst {
            let key = FlowKey { src_port: key.src_port ^ nothing, ..*key };
            let found = black_box(table.find(table.hash(&key), &key));
            hits += usize::from(found.is_some());
            nothing = found.unwrap_or(0) as u16 & black_box(0);
        }
        hits
    };
    let two_passes = |burst: &[FlowKey]| {
        let mut hashes = [0; BURST];
        for (hash, key) in hashes.iter_mut().zip(burst) {
            *hash = table.hash(key);
        }
        for hash in &hashes {
            table.touch(*hash);
        }
        burst.iter().zip(hashes).filter(|(key, hash)| black_box(table.find(*hash, key)).is_some()).count()
    };
    for round in 0..3 {
        println!("round {round}");
        report("hash alone", &present, false, &|burst| {
            for key in burst {
                black_box(table.hash(key));
            }
            0
        });
        report("present, one pass", &present, true, &one_pass);
        report("present, hash all, touch all, find", &present, true, &two_passes);
        report("absent, one pass", &absent, false, &one_pass);
        report("absent, hash all, touch all, find", &absent, false, &two_passes);
    }
}
