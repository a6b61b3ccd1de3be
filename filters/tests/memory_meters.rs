//! What a limit is: exactly its rate and its burst, for each source alone, at any time and any rate.

use std::net::IpAddr;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use sluice_config::Rate;
use sluice_filters::addr::Addr;
use sluice_filters::memory::{Bucket, Key, Meters, Quota, STANDING_MAX, prefix};
use sluice_filters::units::Micros;

const SECOND: u64 = 1_000_000;

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn rate(amount: u64, secs: u64, burst: u64) -> Rate {
    Rate { amount, every: Duration::from_secs(secs), burst }
}

/// A table, a key in it, and the quota.
fn one(rate: &Rate) -> (Meters, Key, Quota) {
    let meters = Meters::new(64, [1, 2]);
    let key = meters.key(0, addr("192.0.2.1"));
    (meters, key, Quota::new(rate))
}

/// How many of `attempts` packets of `amount`, `gap` microseconds apart from `start` on, pass.
fn passed(rate: &Rate, start: u64, gap: u64, attempts: u64, amount: u64) -> u64 {
    let (mut meters, key, quota) = one(rate);
    (0..attempts).map(|n| u64::from(meters.charge(key, &quota, amount, Micros(start + n * gap)))).sum()
}

/// The textbook's leaky bucket in exact numbers: `level` in units times `every`, in microseconds.
struct Exact {
    amount: u128,
    every: u128,
    burst: u128,
    level: u128,
    at: u128,
}

impl Exact {
    fn new(rate: &Rate) -> Exact {
        let (amount, every) = (u128::from(rate.amount), rate.every.as_micros());
        Exact { amount, every, burst: u128::from(rate.burst) * every, level: 0, at: 0 }
    }

    fn charge(&mut self, amount: u64, now: u64) -> bool {
        self.level = self.level.saturating_sub((u128::from(now) - self.at) * self.amount);
        self.at = now.into();
        let cost = u128::from(amount) * self.every;
        let within = self.level + cost <= self.burst || self.level == 0;
        if within {
            self.level += cost;
        }
        within
    }
}

/// Rates whose cost is a whole number of ticks, where the arithmetic has nothing to round.
fn whole_rates() -> impl Strategy<Value = Rate> {
    let amount = prop_oneof![(0u32..=16).prop_map(|bits| 1 << bits), Just(100), Just(1_000), Just(500_000), Just(10)];
    (amount, prop_oneof![Just(1), Just(60), Just(3600)], 1u64..200)
        .prop_filter_map("whole ticks", |(a, every, burst)| {
            (every * SECOND * 65_536).is_multiple_of(a).then(|| rate(a, every, burst))
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn one_key_alone_obeys_its_limit_exactly(
        rate in whole_rates(),
        start in prop_oneof![Just(0), 0..u64::from(u32::MAX) * 64],
        arrivals in vec((0u64..2000, 1u64..4), 1..300),
    ) {
        let (mut meters, key, quota) = one(&rate);
        let (mut bucket, mut exact) = (Bucket::new(quota), Exact::new(&rate));
        let interval = rate.every.as_micros() as u64 / rate.amount;
        let mut now = start;
        for (gap, amount) in arrivals {
            // Thousandths of the time that one unit takes.
            now += u64::try_from(u128::from(gap) * u128::from(interval.max(1)) / 1000).unwrap();
            let expected = exact.charge(amount, now);
            prop_assert_eq!(meters.peek(key, &quota, amount, Micros(now)), expected);
            prop_assert_eq!(bucket.peek(amount, Micros(now)), expected);
            prop_assert_eq!(meters.charge(key, &quota, amount, Micros(now)), expected);
            prop_assert_eq!(bucket.charge(amount, Micros(now)), expected);
        }
    }

    #[test]
    fn rounding_never_refuses_what_conforms_and_never_passes_much_more(
        amount in 1u64..20_000_000_000,
        burst in 1u64..100_000_000,
        arrivals in vec((0u64..2000, 1u64..9000), 1..300),
    ) {
        let rate = rate(amount, 1, burst);
        let (mut meters, key, quota) = one(&rate);
        let mut exact = Exact::new(&rate);
        let (mut now, mut total, mut largest, mut charges) = (0, 0u64, 0, 0u64);
        for (gap, amount) in arrivals {
            now += gap;
            let within = meters.charge(key, &quota, amount, Micros(now));
            // The model is only asked about what passed, so that both have the same history.
            if within {
                charges += 1;
                total += amount;
                largest = largest.max(amount);
                exact.charge(amount, now);
            } else {
                let refused = Exact { ..exact }.charge(amount, now);
                prop_assert!(!refused, "refused what conforms: {} of {:?} at {}", amount, rate, now);
            }
        }
        // A tick for each charge.
        let slack = charges as f64 / 65_536.0 / 1e6 * rate.amount as f64;
        let most = (burst.max(largest) + largest) as f64 + now as f64 * 1e-6 * rate.amount as f64 * 1.0001 + slack + 1.0;
        prop_assert!(total as f64 <= most, "{} of at most {}", total, most);
    }
}

#[test]
fn a_burst_passes_at_once_and_then_the_rate() {
    assert_eq!(passed(&rate(100, 1, 100), 0, 0, 1000, 1), 100);
    assert_eq!(passed(&rate(100, 1, 5), 77, 1000, 10_000, 1), 5 + 999);
    assert_eq!(passed(&rate(30, 60, 10), 0, 100_000, 6000, 1), 10 + 299);
}

#[test]
fn one_an_hour_is_one_an_hour() {
    let hourly = rate(1, 3600, 1);
    let (mut meters, key, quota) = one(&hourly);
    for hour in 0..24 {
        let start = hour * 3600 * SECOND;
        assert!(meters.charge(key, &quota, 1, Micros(start)), "hour {hour}");
        for second in (1..3600).step_by(60) {
            assert!(!meters.charge(key, &quota, 1, Micros(start + second * SECOND)));
        }
        assert!(!meters.charge(key, &quota, 1, Micros(start + 3600 * SECOND - 1)));
    }
}

#[test]
fn a_hundred_million_packets_a_second_are_kept_to_a_thousandth() {
    // 300 attempts in each microsecond.
    let (mut meters, key, quota) = one(&rate(100_000_000, 1, 1000));
    let mut passed = 0u64;
    for micro in 0..20_000 {
        for _ in 0..300 {
            passed += u64::from(meters.charge(key, &quota, 1, Micros(micro)));
        }
    }
    let exact = 1000 + 19_999 * 100;
    assert!((exact - 1..exact + exact / 1000).contains(&passed), "{passed} of {exact}");
}

#[test]
fn octets_at_a_hundred_gigabits_are_kept_to_half_a_percent() {
    for size in [64, 576, 1500] {
        let (mut meters, key, quota) = one(&rate(12_500_000_000, 1, 1_000_000));
        let mut octets = 0;
        for micro in 0..5_000 {
            for _ in 0..25_000 / size {
                octets += if meters.charge(key, &quota, size, Micros(micro)) { size } else { 0 };
            }
        }
        let exact = 1_000_000 + 4_999 * 12_500;
        assert!((exact - 1500..exact + exact / 200).contains(&octets), "{octets} of {exact} in packets of {size}");
    }
}

#[test]
fn a_packet_larger_than_the_burst_passes_when_nothing_is_owed() {
    let slow = rate(1000, 1, 1000);
    let (mut meters, key, quota) = one(&slow);
    let mut bucket = Bucket::new(quota);
    for (at, within) in [(0, true), (1_499_999, false), (1_500_000, true), (1_600_000, false), (3_000_000, true)] {
        assert_eq!(meters.charge(key, &quota, 1500, Micros(at)), within, "at {at}");
        assert_eq!(bucket.charge(1500, Micros(at)), within, "at {at}");
    }
}

#[test]
fn nothing_costs_nothing() {
    let (mut meters, key, quota) = one(&rate(1, 3600, 1));
    assert!(meters.charge(key, &quota, 1, Micros(0)));
    assert!(meters.charge(key, &quota, 0, Micros(1)));
    assert!(!meters.charge(key, &quota, 1, Micros(2)));
}

#[test]
fn a_burst_below_one_is_one() {
    assert_eq!(passed(&rate(10, 1, 0), 5, 0, 10, 1), 1);
    assert_eq!(passed(&rate(0, 1, 1), 5, SECOND, 10, 1), 10);
}

#[test]
fn the_largest_numbers_neither_overflow_nor_refuse_falsely() {
    for every in [0, 1, 3600, u64::MAX] {
        for amount in [1, u64::MAX] {
            for burst in [1, u64::MAX] {
                let (mut meters, key, quota) = one(&rate(amount, every, burst));
                for now in [0, 1, u64::from(u32::MAX), 1 << 47, u64::MAX - 1, u64::MAX] {
                    let _ = meters.charge(key, &quota, u64::MAX, Micros(now));
                    let _ = meters.charge(key, &quota, 1, Micros(now));
                }
                assert!(meters.charge(key, &quota, 1, Micros(u64::MAX)), "after the end of time everything passes");
            }
        }
    }
}

#[test]
fn kinds_and_addresses_are_apart() {
    let (mut meters, _, quota) = one(&rate(1, 3600, 1));
    let mut keys = Vec::new();
    for kind in [0, 1, u32::MAX] {
        for text in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "::c000:201"] {
            keys.push(meters.key(kind, addr(text)));
        }
    }
    for &key in &keys {
        assert!(meters.peek(key, &quota, 1, Micros(9)));
        assert!(meters.charge(key, &quota, 1, Micros(9)));
    }
    assert!(keys.iter().all(|&key| !meters.charge(key, &quota, 1, Micros(10)) && meters.knows(key, Micros(10))));
}

#[test]
fn a_prefix_shares_one_limit() {
    let (mut meters, _, quota) = one(&rate(2, 1, 2));
    let mut from = |text| {
        let key = meters.key(0, prefix(addr(text), 24, 64));
        meters.charge(key, &quota, 1, Micros(1))
    };
    assert!(from("198.51.100.1") && from("198.51.100.255") && !from("198.51.100.7") && from("198.51.101.7"));
    assert!(from("2001:db8::1") && from("2001:db8::ffff:0:0:1") && !from("2001:db8::2") && from("2001:db8:0:1::2"));
}

#[test]
fn limits_hold_across_every_wrap_of_the_clocks_inside() {
    // Standing wraps at 2^32 units of 16 us; 32-bit microseconds would at 2^32.
    for wrap in [1 << 32, 1 << 36, 1 << 37, 5 << 36, 1 << 47] {
        for before in [0, 1, 15, 16, SECOND, 299 * SECOND] {
            assert_eq!(passed(&rate(100, 1, 5), wrap - before, 1000, 10_000, 1), 5 + 999, "{wrap} - {before}");
        }
    }
}

#[test]
fn a_source_that_was_away_for_long_starts_afresh() {
    let (mut meters, key, quota) = one(&rate(10, 1, 10));
    let mut now = 0;
    for away in [1, 3600, 19 * 3600, 365 * 86_400] {
        now += away * SECOND;
        let passed: u64 = (0..30).map(|_| u64::from(meters.charge(key, &quota, 1, Micros(now)))).sum();
        assert_eq!(passed, 10, "after {away} s");
    }
}

/// Fills a table of one line with sources that were each refused `refusals` times at `now`.
fn full_line(quota: &Quota, refusals: u32, now: Micros) -> (Meters, Vec<Key>) {
    let mut meters = Meters::new(4, [3, 4]);
    let keys: Vec<Key> = (0..4).map(|n| meters.key(0, Addr::v4(n))).collect();
    for &key in &keys {
        assert!(meters.charge(key, quota, 1, now));
        for _ in 0..refusals {
            assert!(!meters.charge(key, quota, 1, now));
        }
    }
    (meters, keys)
}

#[test]
fn a_newcomer_takes_nobodys_record_while_all_of_them_stand_and_passes() {
    let quota = Quota::new(&rate(1, 1, 1));
    let start = Micros(1 << 40);
    let (mut meters, keys) = full_line(&quota, 1, start);
    let newcomer = meters.key(0, Addr::v4(77));
    // One packet passed, one was refused: they stand for three seconds, two of them owing nothing.
    let at = start.after(Duration::from_millis(2_990));
    for _ in 0..10 {
        assert!(meters.charge(newcomer, &quota, 1, at));
    }
    assert!(keys.iter().all(|&key| meters.knows(key, at)) && !meters.knows(newcomer, at));
    assert_eq!((meters.unrecorded(), meters.displaced(), meters.occupied(at)), (10, 0, 4));
    let later = start.after(Duration::from_millis(3_010));
    assert!(meters.charge(newcomer, &quota, 1, later) && !meters.charge(newcomer, &quota, 1, later));
    assert_eq!((meters.unrecorded(), meters.displaced(), meters.occupied(later)), (10, 0, 1));
}

#[test]
fn the_record_that_owes_least_is_given_up_first() {
    let quota = Quota::new(&rate(1, 60, 10));
    let mut meters = Meters::new(4, [3, 4]);
    let keys: Vec<Key> = (0..4).map(|n| meters.key(0, Addr::v4(n))).collect();
    for (n, &key) in keys.iter().enumerate() {
        assert!(meters.charge(key, &quota, [3, 2, 1, 4][n], Micros(0)));
    }
    let later = Micros(10 * SECOND);
    assert!(meters.charge(meters.key(0, Addr::v4(9)), &quota, 1, later));
    let known: Vec<bool> = keys.iter().map(|&key| meters.knows(key, later)).collect();
    assert_eq!(known, [true, true, false, true]);
    assert_eq!(meters.displaced(), 1);
}

#[test]
fn a_past_abuser_gives_way_in_time() {
    let quota = Quota::new(&rate(1, 1, 1));
    let start = Micros(SECOND);
    let (mut meters, keys) = full_line(&quota, 10_000, start);
    let newcomers: Vec<Key> = (10..14).map(|n| meters.key(0, Addr::v4(n))).collect();
    let before = start.after(STANDING_MAX - Duration::from_secs(1));
    assert!(meters.charge(newcomers[0], &quota, 1, before) && !meters.knows(newcomers[0], before));
    assert!(keys.iter().all(|&key| meters.knows(key, before)));
    let after = start.after(STANDING_MAX + Duration::from_secs(1));
    for &key in &newcomers {
        assert!(meters.charge(key, &quota, 1, after) && meters.knows(key, after));
    }
}

#[test]
fn a_client_within_its_limit_stands_no_longer_than_it_owes() {
    let quota = Quota::new(&rate(100, 1, 100));
    let mut meters = Meters::new(4, [3, 4]);
    let key = meters.key(0, Addr::v4(1));
    for n in 0..5_000 {
        assert!(meters.charge(key, &quota, 1, Micros(n * 20_000)));
        assert!(!meters.knows(key, Micros(n * 20_000 + 10_050)));
    }
}

#[test]
fn records_are_sixteen_octets_and_come_in_powers_of_two() {
    for (asked, records) in [(0, 4), (1, 4), (5, 8), (262_144, 262_144), (300_000, 524_288)] {
        let meters = Meters::new(asked, [0, 0]);
        assert_eq!((meters.records(), meters.memory()), (records, records * 16));
    }
}
