//! The appliance's clock: one for everything that tells time.
//!
//! - **Durations** are counted on the monotonic clock: microseconds since the appliance started, the same for all workers, read once
//!   a turn ([`Clock::now`]). Timers, timeouts, limits and rates know nothing else.
//! - **Wall time** is that and an offset. The control core measures the offset several times a second
//!   ([`Clock::follow_system`]), so a clock that is set while the appliance runs is right for it too. Workers load the offset
//!   once a turn. Cookie epochs, the ends of bans, and the times in signed PROXY headers, in the connection log, in the sample of
//!   dropped packets and in metrics are wall time.
//!
//! On a machine that was suspended the monotonic clock stood still: waking up is a step of the wall clock, and no timer ran.
//!
//! A moment is kept as the monotonic clock's and told as wall time when somebody asks. Moments from before the clock was set
//! are then told by the clock as it is now: what lies between two of them never changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sluice_filters::units::Micros;

/// Smaller differences are not followed: two readings of two clocks are never of one moment.
const NOTICED: i64 = 1_000;
/// How long a reading of both clocks may take to be good. A thread that was interrupted between the two takes longer.
const TOGETHER: Duration = Duration::from_micros(200);
/// How often they are read for want of a good reading.
const TRIES: usize = 5;

/// A handle to the clock; all that are made from one by cloning tell the same time.
#[derive(Clone, Debug)]
pub struct Clock {
    started: Instant,
    wall: Arc<Wall>,
}

#[derive(Debug)]
struct Wall {
    /// Unix time at [`Micros`] zero, microseconds.
    offset: AtomicI64,
    steps: AtomicU64,
}

impl Clock {
    /// A clock that starts now, with the system's wall time.
    #[must_use]
    pub fn start() -> Clock {
        let clock = Clock::start_at(SystemTime::now());
        clock.follow_system();
        clock.wall.steps.store(0, Ordering::Relaxed);
        clock
    }

    /// A clock that starts now, when it is `wall`.
    #[must_use]
    pub fn start_at(wall: SystemTime) -> Clock {
        let offset = AtomicI64::new(unix_micros(wall));
        Clock { started: Instant::now(), wall: Arc::new(Wall { offset, steps: AtomicU64::new(0) }) }
    }

    /// Now.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Micros {
        Micros(self.started.elapsed().as_micros() as u64)
    }

    /// Unix time at `now`; zero before 1970.
    #[inline]
    #[must_use]
    pub fn unix_time(&self, now: Micros) -> Duration {
        Duration::from_micros(u64::try_from(self.unix_micros(now)).unwrap_or(0))
    }

    /// The wall time at `at`, as far as the clock knows by now.
    #[must_use]
    pub fn wall_clock(&self, at: Micros) -> SystemTime {
        let unix = self.unix_micros(at);
        let distance = Duration::from_micros(unix.unsigned_abs());
        if unix < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
    }

    /// How often the wall clock was set since the start.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.wall.steps.load(Ordering::Relaxed)
    }

    /// Reads the system's clocks and follows the wall clock if it was set; then says by how many microseconds. To be called several
    /// times a second, by one thread.
    pub fn follow_system(&self) -> Option<i64> {
        let (at, wall) = self.read_system()?;
        self.follow(at, wall)
    }

    /// Follows a wall clock that shows `wall` at `at`, if it differs by more than readings do; then says by how many microseconds.
    pub fn follow(&self, at: Micros, wall: SystemTime) -> Option<i64> {
        let step = unix_micros(wall).saturating_sub(self.unix_micros(at));
        if step.saturating_abs() <= NOTICED {
            return None;
        }
        // One thread writes; what is read in between is right before or after.
        let offset = self.wall.offset.load(Ordering::Relaxed);
        self.wall.offset.store(offset.saturating_add(step), Ordering::Relaxed);
        self.wall.steps.fetch_add(1, Ordering::Relaxed);
        Some(step)
    }

    fn unix_micros(&self, at: Micros) -> i64 {
        let since_start = i64::try_from(at.0).unwrap_or(i64::MAX);
        self.wall.offset.load(Ordering::Relaxed).saturating_add(since_start)
    }

    /// Both clocks, read at the same moment; none when this thread was interrupted every time.
    fn read_system(&self) -> Option<(Micros, SystemTime)> {
        (0..TRIES).find_map(|_| {
            let before = self.now();
            let wall = SystemTime::now();
            let took = self.now().since(before);
            (took <= TOGETHER).then(|| (before.after(took / 2), wall))
        })
    }
}

/// Microseconds since 1970, negative before.
fn unix_micros(at: SystemTime) -> i64 {
    let micros = |distance: Duration| i64::try_from(distance.as_micros()).unwrap_or(i64::MAX);
    match at.duration_since(UNIX_EPOCH) {
        Ok(since) => micros(since),
        Err(before) => micros(before.duration()).saturating_neg(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: u64 = 1_000_000;

    /// 2026-01-02T03:04:05Z.
    fn begin() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_323_045)
    }

    #[test]
    fn a_clock_that_is_set_while_it_runs_is_followed_either_way() {
        let clock = Clock::start_at(begin());
        let worker = clock.clone();
        let at = Micros(10 * SECOND);
        assert_eq!(worker.wall_clock(at), begin() + Duration::from_secs(10));
        for (wall, step) in [(begin() + HOUR, 3_590), (begin() - HOUR, -7_200), (begin(), 3_600)] {
            assert_eq!(clock.follow(at, wall), Some(step * 1_000_000));
            assert_eq!((worker.wall_clock(at), worker.unix_time(at)), (wall, wall.duration_since(UNIX_EPOCH).unwrap()));
        }
        assert_eq!(worker.steps(), 3);
    }

    #[test]
    fn the_time_between_two_moments_is_not_changed_by_a_step() {
        let clock = Clock::start_at(begin());
        let (opened, ended) = (Micros(SECOND), Micros(5 * SECOND));
        let before = clock.wall_clock(opened);
        clock.follow(Micros(3 * SECOND), begin() + HOUR);
        assert_eq!(clock.wall_clock(ended), clock.wall_clock(opened) + Duration::from_secs(4));
        assert_eq!(clock.wall_clock(opened), before + HOUR - Duration::from_secs(3));
    }

    #[test]
    fn readings_that_differ_by_what_reading_takes_are_no_steps() {
        let clock = Clock::start_at(begin());
        for micros in [0, 1, 999, 1_000] {
            assert_eq!(clock.follow(Micros(0), begin() + Duration::from_micros(micros)), None);
            assert_eq!(clock.follow(Micros(0), begin() - Duration::from_micros(micros)), None);
        }
        assert_eq!(clock.follow(Micros(0), begin() + Duration::from_micros(1_001)), Some(1_001));
        assert_eq!(clock.steps(), 1);
    }

    /// Boards without a clock of their own start in 1970; a clock may be set to before that.
    #[test]
    fn a_clock_may_begin_in_1970_and_be_set_to_before_it() {
        let clock = Clock::start_at(UNIX_EPOCH);
        assert_eq!(clock.follow(Micros(SECOND), begin()), Some(1_767_323_044_000_000));
        assert!(clock.follow(Micros(2 * SECOND), UNIX_EPOCH - HOUR).is_some());
        assert_eq!(clock.wall_clock(Micros(2 * SECOND)), UNIX_EPOCH - HOUR);
        assert_eq!(clock.unix_time(Micros(2 * SECOND)), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_was_wrong_when_the_appliance_started_is_the_system_s_after_one_look() {
        let clock = Clock::start_at(SystemTime::now() - HOUR);
        let step = std::iter::repeat_with(|| clock.follow_system()).find_map(|step| step).unwrap();
        assert!((step / 1_000_000).abs_diff(3_600) <= 1, "{step}");
        let off = match SystemTime::now().duration_since(clock.wall_clock(clock.now())) {
            Ok(behind) => behind,
            Err(ahead) => ahead.duration(),
        };
        assert!(off < Duration::from_secs(1), "{off:?}");
    }
}
