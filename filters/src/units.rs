//! Units that travel through the packet path: time, ids and TCP sequence numbers.

use std::time::Duration;

/// Microseconds since the appliance started. Read once per turn by the worker, handed down everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub u64);

impl Micros {
    /// This moment and `d` later; saturates.
    #[must_use]
    pub fn after(self, d: Duration) -> Micros {
        Micros(self.0.saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Time since `earlier`; zero when that lies ahead.
    #[must_use]
    pub fn since(self, earlier: Micros) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// Index into the configuration's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortId(pub u8);

/// Index into the configuration's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceId(pub u16);

/// Index of a worker (and of its core in `runtime.cores`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(pub u8);

/// TCP sequence number, modulo 2^32 (RFC 9293 section 3.4). Not `Ord`: it wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seq(pub u32);

impl Seq {
    /// Whether this number lies before `other` in the half of the space that precedes it.
    #[must_use]
    pub fn precedes(self, other: Seq) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// `self + n`, modulo 2^32.
    #[must_use]
    pub fn plus(self, n: u32) -> Seq {
        Seq(self.0.wrapping_add(n))
    }

    /// `self - other`, modulo 2^32.
    #[must_use]
    pub fn minus(self, other: Seq) -> u32 {
        self.0.wrapping_sub(other.0)
    }
}
