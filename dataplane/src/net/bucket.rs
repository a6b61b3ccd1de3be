//! A token bucket over whole events: at most `rate` a second, at most `burst` at once.
//!
//! Invariant: in any span of `t` seconds no more than `burst + rate * t` tokens are given out.

use std::time::Duration;

use sluice_filters::units::Micros;

/// Parts of a token: a bucket of `rate` per second gains `rate` of them each microsecond.
const TOKEN: u64 = 1_000_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: u64,
    full: u64,
    level: u64,
    filled: Micros,
}

impl Bucket {
    /// A full bucket. A `rate` of zero never gives anything.
    pub(super) fn new(rate: u32, burst: u32) -> Bucket {
        let full = if rate == 0 { 0 } else { u64::from(burst).saturating_mul(TOKEN) };
        Bucket { rate: rate.into(), full, level: full, filled: Micros(0) }
    }

    /// Whether [`Bucket::take`] would succeed.
    pub(super) fn ready(&mut self, now: Micros) -> bool {
        let gained = u64::try_from(now.since(self.filled).as_micros()).unwrap_or(u64::MAX).saturating_mul(self.rate);
        self.level = self.level.saturating_add(gained).min(self.full);
        self.filled = self.filled.max(now);
        self.level >= TOKEN
    }

    /// Takes one token, if there is one.
    pub(super) fn take(&mut self, now: Micros) -> bool {
        let ready = self.ready(now);
        if ready {
            self.level = self.level.saturating_sub(TOKEN);
        }
        ready
    }
}

/// Lets the first of many pass, then one per `gap`.
#[derive(Debug)]
pub(super) struct Throttle {
    gap: Duration,
    open: Micros,
}

impl Throttle {
    /// Open from the start.
    pub(super) fn new(gap: Duration) -> Throttle {
        Throttle { gap, open: Micros(0) }
    }

    /// Whether this one passes.
    pub(super) fn pass(&mut self, now: Micros) -> bool {
        let pass = now >= self.open;
        if pass {
            self.open = now.after(self.gap);
        }
        pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(bucket: &mut Bucket, tries: u32, now: Micros) -> usize {
        (0..tries).filter(|_| bucket.take(now)).count()
    }

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(1000, 10);
        assert_eq!(given(&mut bucket, 100, Micros(0)), 10);
        assert_eq!(given(&mut bucket, 100, Micros(999)), 0);
        assert_eq!(given(&mut bucket, 100, Micros(3_000)), 3);
        assert_eq!(given(&mut bucket, 100, Micros(1_000_000_000)), 10);
    }

    #[test]
    fn a_bucket_of_rate_zero_gives_nothing() {
        let mut bucket = Bucket::new(0, 10);
        assert_eq!(given(&mut bucket, 10, Micros(u64::MAX)), 0);
    }

    #[test]
    fn a_clock_that_stands_still_or_steps_back_gives_nothing_more() {
        let mut bucket = Bucket::new(1000, 1);
        assert!(bucket.take(Micros(5_000)));
        assert!(!bucket.take(Micros(5_000)));
        assert!(!bucket.take(Micros(0)));
        assert!(!bucket.take(Micros(5_999)));
        assert!(bucket.take(Micros(6_000)));
    }

    #[test]
    fn a_throttle_passes_the_first_and_one_per_gap() {
        let mut throttle = Throttle::new(Duration::from_secs(10));
        assert!(throttle.pass(Micros(0)));
        assert!(!throttle.pass(Micros(9_999_999)));
        assert!(throttle.pass(Micros(10_000_000)));
        assert!(!throttle.pass(Micros(10_000_001)));
    }
}
