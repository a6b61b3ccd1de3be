//! One exact leaky bucket, for limits that are not per source: of a service, of everything, of sampling.

use super::meters::{Quota, ticks};
use crate::units::Micros;

/// A bucket with its quota: the same arithmetic as [`super::Meters`], without anybody to share memory with.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    quota: Quota,
    /// From when on nothing is owed, ticks.
    clear: u64,
}

impl Bucket {
    /// A bucket that owes nothing.
    #[must_use]
    pub const fn new(quota: Quota) -> Bucket {
        Bucket { quota, clear: 0 }
    }

    /// Whether `amount` at `now` is within the limit; what is within it is charged. More than the burst passes when nothing is owed.
    #[inline]
    #[must_use = "what is over the limit is to be dropped"]
    pub fn charge(&mut self, amount: u64, now: Micros) -> bool {
        let Some(now) = ticks(now) else { return true };
        let admitted = self.quota.admit(self.clear, amount, now);
        self.clear = admitted.unwrap_or(self.clear);
        admitted.is_some()
    }

    /// What [`Bucket::charge`] would say, without charging.
    #[inline]
    #[must_use]
    pub fn peek(&self, amount: u64, now: Micros) -> bool {
        ticks(now).is_none_or(|now| self.quota.admit(self.clear, amount, now).is_some())
    }
}
