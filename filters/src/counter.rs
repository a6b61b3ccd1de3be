//! A counter with one writer. The owning worker adds, anyone may read; no locked instruction on the packet path.

use std::sync::atomic::{AtomicU64, Ordering};

/// Monotonic counter (or gauge, through [`Counter::set`]) of one worker. Two writers would lose counts, never memory safety.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one. Owner only.
    #[inline]
    pub fn bump(&self) {
        self.add(1);
    }

    /// Adds `n`. Owner only.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Replaces the value, for gauges. Owner only.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The current value.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
