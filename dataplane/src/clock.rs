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

    /// The moment at which the system's clock will show `wall`, unless it is set meanwhile; now, when that is past. What it was set by
    /// since the start does not matter.
    #[must_use]
    pub fn at(&self, wall: SystemTime) -> Micros {
        self.now().after(wall.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// The wall-clock time at `now`.
    #[must_use]
    pub fn wall_clock(&self, now: Micros) -> SystemTime {
        self.started_wall + Duration::from_micros(now.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_is_as_far_off_as_it_was_said_to_be_though_the_system_s_clock_was_set() {
        // It stood at 1970 when the appliance started.
        let clock = Clock { started: Instant::now(), started_wall: UNIX_EPOCH, started_unix: Duration::ZERO };
        let minute = Duration::from_secs(60);
        assert!(clock.at(SystemTime::now() + minute) <= clock.now().after(minute));
        assert!(clock.at(UNIX_EPOCH) <= clock.now());
    }
}
