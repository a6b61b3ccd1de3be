//! The appliance's clock: microseconds since it started, the same for all workers. Read once a turn.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sluice_filters::units::Micros;

/// When the appliance started, on both of the system's clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_wall: SystemTime,
    started_unix: Duration,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Clock {
        let started_wall = SystemTime::now();
        let started_unix = started_wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { started: Instant::now(), started_wall, started_unix }
    }

    /// Now.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Micros {
        Micros(self.started.elapsed().as_micros() as u64)
    }

    /// Unix time at `now`, undisturbed by later steps of the system's clock.
    #[inline]
    #[must_use]
    pub fn unix_time(&self, now: Micros) -> Duration {
        self.started_unix + Duration::from_micros(now.0)
    }

    /// The moment of a wall-clock time; the start, when it lies before.
    #[must_use]
    pub fn at(&self, wall: SystemTime) -> Micros {
        let since = wall.duration_since(self.started_wall).unwrap_or_default();
        Micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// The wall-clock time at `now`.
    #[must_use]
    pub fn wall_clock(&self, now: Micros) -> SystemTime {
        self.started_wall + Duration::from_micros(now.0)
    }
}
