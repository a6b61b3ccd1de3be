//! A flood from ten million random sources against the default table: nobody who keeps to a limit is refused anything, and
//! nobody who breaks it is forgotten.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::Ipv6Addr;
use std::time::Duration;

use sluice_config::{Filters, Rate};
use sluice_filters::addr::Addr;
use sluice_filters::memory::{Bucket, Key, Meters, Quota, STANDING_PER_PACKET};
use sluice_filters::units::Micros;

const SECOND: u64 = 1_000_000;
const KIND: u32 = 3;
const FLOOD: u32 = 10_000_000;

/// When the flood begins: those known by then have sent for five seconds.
const BEGINS: u64 = 5 * SECOND;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// A bijection of the 32-bit numbers: distinct `n` are distinct random-looking IPv4 addresses.
fn random_source(n: u32) -> Addr {
    let n = (n ^ n >> 16).wrapping_mul(0x7feb_352d);
    let n = (n ^ n >> 15).wrapping_mul(0x846c_a68b);
    Addr::v4(n ^ n >> 16)
}

/// The IPv6 address of a named source.
fn named(n: usize) -> Addr {
    Addr::from(std::net::IpAddr::from(Ipv6Addr::from(0x2001_0db8 << 96 | n as u128)))
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Role {
    /// Sends when an exact bucket of its own says that it may.
    WellBehaved,
    /// Sends several times the limit since before the flood.
    Abuser,
    /// Sends several times the limit from the flood's midst on.
    LateAbuser,
}

struct Source {
    key: Key,
    role: Role,
    /// Average microseconds between attempts.
    gap: u64,
    model: Bucket,
    started: u64,
    sent: u64,
    passed: u64,
    /// Since the first packet that was refused.
    refused: u64,
    /// Late abusers: packets that passed unrecorded, and when the first record was made.
    unrecorded: u64,
    known: Option<u64>,
    passed_since_known: u64,
}

struct Run {
    rate: Rate,
    flood_per_second: u64,
    packets_each: u32,
}

fn flood(run: &Run) {
    let context = format!("{:?}, {} a second, {} each", run.rate, run.flood_per_second, run.packets_each);
    let quota = Quota::new(&run.rate);
    let mut meters = Meters::new(Filters::default().records as usize, [0x5eed, run.flood_per_second]);
    assert_eq!(meters.records(), 262_144);
    let mut random = Random(u64::from(run.packets_each) << 32 | run.rate.amount);
    let interval = SECOND / run.rate.amount;
    let packets = FLOOD * run.packets_each;
    let ends = BEGINS + u64::from(packets) * SECOND / run.flood_per_second;

    let mut sources = Vec::new();
    let mut add = |role, started: u64, gap: u64, random: &mut Random, meters: &Meters| {
        sources.push(Source {
            key: meters.key(KIND, named(sources.len())),
            role,
            gap,
            model: Bucket::new(quota),
            started: started + random.below(gap.min(SECOND)),
            sent: 0,
            passed: 0,
            refused: 0,
            unrecorded: 0,
            known: None,
            passed_since_known: 0,
        });
    };
    for n in 0..100 {
        // From twice to a hundred times the limit.
        let gap = (interval * 100 / (200 + 98 * n)).max(1);
        add(Role::Abuser, 0, gap, &mut random, &meters);
        add(Role::LateAbuser, BEGINS + (ends - BEGINS) / 4, gap, &mut random, &meters);
    }
    for n in 0..1_000 {
        // Four in five keep well below the limit; the others, at it all the time, owe nearly a burst.
        let gap = if n % 5 == 0 { (interval / 4).max(1) } else { interval * 2 };
        add(Role::WellBehaved, if n % 2 == 0 { 0 } else { BEGINS }, gap, &mut random, &meters);
    }
    let mut next: BinaryHeap<_> = sources.iter().enumerate().map(|(n, s)| Reverse((s.started, n))).collect();

    let mut sent = 0;
    while sent < packets {
        let flood_at = BEGINS + u64::from(sent) * SECOND / run.flood_per_second;
        if let Some(&Reverse((at, n))) = next.peek()
            && at <= flood_at
        {
            next.pop();
            attempt(&mut sources[n], &mut meters, &quota, at, &context);
            let gap = sources[n].gap;
            next.push(Reverse((at + (gap / 2 + random.below(gap)).max(1), n)));
            continue;
        }
        let key = meters.key(KIND, random_source(sent / run.packets_each));
        let within = meters.charge(key, &quota, 1, Micros(flood_at));
        // The first packet of a source is never refused.
        assert!(within || sent % run.packets_each != 0, "{context}: false refusal");
        sent += 1;
    }
    judge(run, &sources, &meters, ends, &context);
}

fn attempt(source: &mut Source, meters: &mut Meters, quota: &Quota, at: u64, context: &str) {
    let now = Micros(at);
    if source.role == Role::WellBehaved {
        if source.model.charge(1, now) {
            source.sent += 1;
            assert!(
                meters.charge(source.key, quota, 1, now),
                "{context}: a client below the limit was refused at {at}"
            );
        }
        return;
    }
    if source.refused > 0 {
        assert!(meters.knows(source.key, now), "{context}: an abuser's record is gone at {at}");
    }
    source.sent += 1;
    if !meters.charge(source.key, quota, 1, now) {
        source.refused += 1;
        return;
    }
    source.passed += 1;
    if source.known.is_none() && meters.knows(source.key, now) {
        source.known = Some(at);
    }
    if source.known.is_some() {
        source.passed_since_known += 1;
    } else {
        source.unrecorded += 1;
    }
}

fn judge(run: &Run, sources: &[Source], meters: &Meters, ends: u64, context: &str) {
    let most = |from: u64| {
        let allowed = (ends - from) as f64 / SECOND as f64 * run.rate.amount as f64;
        (run.rate.burst as f64 + allowed * 1.01).ceil() as u64
    };
    for abuser in sources.iter().filter(|s| s.role == Role::Abuser) {
        assert!(abuser.refused > 0, "{context}");
        assert!(abuser.passed <= most(abuser.started), "{context}: {} of {} passed", abuser.passed, abuser.sent);
    }
    // What each source of the flood stands for, seconds, and with it the packets that it takes to be recorded, on average.
    let cost = STANDING_PER_PACKET.as_secs_f64().min(1.0 / run.rate.amount as f64);
    let again = if run.rate.burst == 1 { STANDING_PER_PACKET.as_secs_f64() } else { cost };
    let stands = cost + again * f64::from(run.packets_each - 1);
    let newcomers = run.flood_per_second as f64 / f64::from(run.packets_each);
    let average = |s: &Source| newcomers * stands / meters.records() as f64 + 1e6 / s.gap as f64 * stands / 4.0;
    let late = || sources.iter().filter(|s| s.role == Role::LateAbuser);
    for abuser in late() {
        let most_unrecorded = 1.0 + 6.0 * average(abuser);
        assert!((abuser.unrecorded as f64) < most_unrecorded, "{context}: {} unrecorded", abuser.unrecorded);
        if let Some(known) = abuser.known {
            assert!(abuser.passed_since_known <= most(known), "{context}: {} passed", abuser.passed_since_known);
        }
    }
    let unrecorded: u64 = late().map(|s| s.unrecorded).sum();
    let expected: f64 = late().map(average).sum();
    assert!(unrecorded as f64 <= 1.3 * expected, "{context}: {unrecorded} unrecorded, {expected} expected");
    if newcomers * stands < meters.records() as f64 / 2.0 {
        // Most lines have a free record.
        assert!(unrecorded <= 2 * late().count() as u64, "{context}: {unrecorded} unrecorded");
    }
    // All records here stand for as long as they owe.
    assert_eq!(meters.displaced(), 0, "{context}");
    let well = sources.iter().filter(|s| s.role == Role::WellBehaved);
    assert!(well.map(|s| s.sent).sum::<u64>() > 500, "{context}");
}

const HUNDRED: Rate = Rate::per_second(100);
const ONE: Rate = Rate::per_second(1);

#[test]
fn ten_million_random_sources_neither_displace_an_abuser_nor_starve_anyone() {
    for rate in [HUNDRED, ONE] {
        for flood_per_second in [SECOND, 10 * SECOND] {
            flood(&Run { rate, flood_per_second, packets_each: 1 });
        }
    }
}

#[test]
fn nor_do_they_with_two_packets_each() {
    for rate in [HUNDRED, ONE] {
        flood(&Run { rate, flood_per_second: 10 * SECOND, packets_each: 2 });
    }
}

/// Sources that owe an hour each do not lock the table: what they stand for passes long before what they owe.
#[test]
fn a_flood_of_long_debts_leaves_room_for_abusers_of_every_limit() {
    let slow = Quota::new(&Rate { amount: 1, every: Duration::from_secs(3600), burst: 1 });
    let fast = Quota::new(&HUNDRED);
    let mut meters = Meters::new(1024, [7, 8]);
    let (abuser, mut passed, mut known) = (meters.key(1, named(0)), 0, None);
    // 10,000 a second for ten seconds: 20 newcomers for each record that falls free.
    for n in 0..100_000 {
        let now = Micros(u64::from(n) * 100);
        assert!(meters.charge(meters.key(0, random_source(n)), &slow, 1, now));
        // The abuser sends 1,000 a second from the first second on.
        if n >= 10_000 && n % 10 == 0 {
            passed += u64::from(meters.charge(abuser, &fast, 1, now));
            if known.is_none() && meters.knows(abuser, now) {
                known = Some((n, passed));
            }
        }
    }
    let (at, unrecorded) = known.expect("the abuser is found");
    // All records of its line were taken within the first moments, and stand for two seconds.
    assert!(at <= 10_000 + 2 * 10_000 && unrecorded <= 2_000, "found at {at}, after {unrecorded} packets");
    let seconds = u64::from(100_000 - at).div_ceil(10_000);
    assert!(passed <= unrecorded + 100 + 100 * seconds, "{passed} passed, {unrecorded} of them unrecorded");
    assert!(meters.displaced() > 1_000, "{}", meters.displaced());
    assert!(meters.unrecorded() > 50_000, "{}", meters.unrecorded());
    assert!(meters.occupied(Micros(10 * SECOND)) >= 1000);
}
