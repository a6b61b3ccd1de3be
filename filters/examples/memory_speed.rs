//! What it costs to ask a worker's memory of sources: meters, clients, bans.
//!
//! `cargo run --release -p sluice-filters --example memory_speed` prints nanoseconds per operation, the best of many rounds.
//! "Touched" means as a worker does it: first the keys of a burst of 32, then their lines, then the work.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net};
use sluice_config::Rate;
use sluice_filters::addr::Addr;
use sluice_filters::memory::{Bans, Bucket, Clients, Key, Meters, Quota, Secret, prefix};
use sluice_filters::units::Micros;

const OPERATIONS: u32 = 1 << 16;
const ROUNDS: u32 = 150;
const BURST: u32 = 32;
const RECORDS: u32 = 262_144;
const SECRET: [u64; 2] = [0x0123_4567_89ab_cdef, 0x0f1e_2d3c_4b5a_6978];

/// A bijection of the 32-bit numbers.
fn mix(n: u32) -> u32 {
    let n = (n ^ n >> 16).wrapping_mul(0x7feb_352d);
    let n = (n ^ n >> 15).wrapping_mul(0x846c_a68b);
    n ^ n >> 16
}

/// Runs `round`, which does so many operations, several times with its number; prints the best nanoseconds per operation.
fn report(what: &str, mut round: impl FnMut(u32)) {
    let mut best = f64::INFINITY;
    for number in 0..ROUNDS {
        let start = Instant::now();
        round(number);
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(OPERATIONS));
    }
    println!("{what:<58} {best:>7.1}");
}

fn main() {
    println!("{:<58} {:>7}", "", "ns");
    let secret = Secret::new(SECRET);
    report("hash, IPv4", |_| {
        for n in 0..OPERATIONS {
            black_box(secret.hash(1, black_box(Addr::v4(n))));
        }
    });
    report("prefix and hash, IPv6 /64", |_| {
        for n in 0..OPERATIONS {
            let addr = black_box(Addr { hi: 0x2001_0db8 << 32, lo: n.into() });
            black_box(secret.hash(1, prefix(addr, 24, 64)));
        }
    });
    buckets();
    meters();
    clients();
    bans();
}

fn quota() -> Quota {
    Quota::new(&Rate::per_second(100))
}

fn buckets() {
    let mut bucket = Bucket::new(Quota::new(&Rate::per_second(1_000_000)));
    report("bucket, charge", |round| {
        for n in 0..OPERATIONS {
            black_box(bucket.charge(1, Micros(u64::from(round * OPERATIONS + n))));
        }
    });
}

fn charge_all(meters: &mut Meters, touched: bool, now: impl Fn(u32) -> Micros, source: impl Fn(u32) -> u32) {
    let quota = quota();
    let mut keys: [Key; BURST as usize] = [meters.key(0, Addr::v4(0)); BURST as usize];
    for start in (0..OPERATIONS).step_by(BURST as usize) {
        for (n, key) in (start..).zip(&mut keys) {
            *key = meters.key(1, Addr::v4(source(n)));
        }
        if touched {
            keys.iter().for_each(|&key| meters.touch(key));
        }
        for &key in &keys {
            black_box(meters.charge(key, &quota, 1, now(start)));
        }
    }
}

fn meters() {
    let mut meters = Meters::new(RECORDS as usize, SECRET);
    // A packet each microsecond.
    let now = |round: u32, n: u32| Micros(u64::from(round * OPERATIONS + n));
    for (what, source) in [("one key", (|_| 7) as fn(u32) -> u32), ("32 keys", |n| n % 32)] {
        report(&format!("meters, {what}, key and charge"), |round| {
            charge_all(&mut meters, false, |n| now(round, n), source);
        });
    }
    for touched in [false, true] {
        let how = if touched { "touched" } else { "not touched" };
        let mut meters = Meters::new(RECORDS as usize, SECRET);
        report(&format!("meters, random among 131,072 known, {how}"), |round| {
            charge_all(&mut meters, touched, |n| now(round, n), |n| mix(n) % 131_072);
        });
        let mut meters = Meters::new(RECORDS as usize, SECRET);
        report(&format!("meters, flood of new sources, {how}"), |round| {
            charge_all(&mut meters, touched, |n| now(round, n), |n| mix(round * OPERATIONS + n));
        });
        let mut meters = Meters::new(RECORDS as usize, SECRET);
        report(&format!("meters, flood of new sources, 10 M/s, {how}"), |round| {
            let now = |n| Micros(u64::from(round * OPERATIONS + n) / 10);
            charge_all(&mut meters, touched, now, |n| mix(round * OPERATIONS + n));
        });
    }
}

fn clients() {
    let mut clients = Clients::new(RECORDS as usize, SECRET);
    let now = Micros(1_000_000);
    for n in 0..131_072 {
        clients.verified(Addr::v4(mix(n)), now);
    }
    report("clients, is verified, random among 131,072", |_| {
        for n in 0..OPERATIONS {
            black_box(clients.is_verified(Addr::v4(mix(mix(n) % 131_072)), now));
        }
    });
    report("clients, verified again, random", |_| {
        for n in 0..OPERATIONS {
            black_box(clients.verified(Addr::v4(mix(mix(n) % 131_072)), now));
        }
    });
    report("clients, would cut, flood of new sources", |round| {
        for n in 0..OPERATIONS {
            black_box(clients.would_cut(Addr::v4(mix(200_000 + round * OPERATIONS + n)), 5, now));
        }
    });
}

fn bans() {
    const BANS: u32 = 1_000_000;
    let forever = Micros(u64::MAX);
    let mut bans = Bans::new(BANS as usize, SECRET);
    report("bans, none, asked", |_| {
        for n in 0..OPERATIONS {
            black_box(bans.lookup(black_box(Addr::v4(mix(n))), Micros(0)));
        }
    });
    let start = Instant::now();
    for n in 0..BANS - 2_000 {
        let _ = bans.ban(IpAddr::from(Ipv4Addr::from(mix(n))).into(), forever, 1);
    }
    println!("{:<58} {:>7.1}", "bans, a million entered, each", start.elapsed().as_nanos() as f64 / f64::from(BANS));
    let miss = |bans: &Bans| {
        for n in 2 * BANS..2 * BANS + OPERATIONS {
            black_box(bans.lookup(Addr::v4(mix(n)), Micros(0)));
        }
    };
    report("bans, a million of /32, not banned", |_| miss(&bans));
    for n in 0..2_000 {
        let len = if n % 2 == 0 { 24 } else { 16 };
        let net = Ipv4Net::new(Ipv4Addr::from(0xe000_0000 | n << 12), len).map(|net| IpNet::from(net.trunc()));
        let _ = net.map(|net| bans.ban(net, forever, 2));
    }
    report("bans, a million of /32, /24 and /16, not banned", |_| miss(&bans));
    report("bans, a million, random banned addresses", |round| {
        for n in round * OPERATIONS..(round + 1) * OPERATIONS {
            black_box(bans.lookup(Addr::v4(mix(mix(n) % (BANS - 2_000))), Micros(0)));
        }
    });
    report("bans, a million, the same banned address", |_| {
        for _ in 0..OPERATIONS {
            black_box(bans.lookup(black_box(Addr::v4(mix(77))), Micros(0)));
        }
    });
    let start = Instant::now();
    let swept = bans.sweep(Micros(0), usize::MAX);
    println!("{:<58} {:>7.1}", "bans, swept, none ended, each", start.elapsed().as_nanos() as f64 / f64::from(BANS));
    assert_eq!(swept, 0);
    let start = Instant::now();
    let swept = bans.sweep(forever, usize::MAX);
    println!("{:<58} {:>7.1}", "bans, swept, all ended, each", start.elapsed().as_nanos() as f64 / swept as f64);
}
