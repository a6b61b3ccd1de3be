//! smoltcp's clock, which runs [`SPEED`] times as fast as the wall clock: its smallest retransmission timeout of 1 s becomes
//! 200 ms. Every time and duration that crosses into smoltcp or back goes through here. Congestion control must count
//! ACKs (Reno), not seconds.

use std::cell::Cell;

use sluice_filters::units::Micros;
use smoltcp::time::Instant;

/// How much faster smoltcp's clock runs.
const SPEED: u64 = 5;

thread_local! {
    // smoltcp asks for timestamps through a plain `fn() -> u32`, which can carry no state of its own. A worker owns its
    // thread, so this is the worker's clock, set once a turn.
    static TIMESTAMP_CLOCK: Cell<u32> = const { Cell::new(0) };
}

/// `now` on smoltcp's clock.
pub(crate) fn stack_time(now: Micros) -> Instant {
    Instant::from_micros(i64::try_from(now.0.saturating_mul(SPEED)).unwrap_or(i64::MAX))
}

/// A moment of smoltcp's clock on ours, rounded up so that a timer never fires early.
pub(crate) fn wall_time(at: Instant) -> Micros {
    Micros(u64::try_from(at.total_micros()).unwrap_or(0).div_ceil(SPEED))
}

/// Sets what [`timestamp`] returns: milliseconds, modulo 2^32 (RFC 7323 section 5.4).
pub(crate) fn set_timestamp_clock(now: Micros) {
    TIMESTAMP_CLOCK.set(timestamp_ms(now));
}

/// The timestamp clock before any per-flow offset.
#[must_use]
pub fn timestamp_ms(now: Micros) -> u32 {
    (now.0 / 1000) as u32
}

/// smoltcp's timestamp generator.
pub(crate) fn timestamp() -> u32 {
    TIMESTAMP_CLOCK.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_never_lies_before_the_stack_time_it_came_from() {
        for us in [0, 1, 7, 999_999, 86_400_000_000] {
            assert_eq!(wall_time(stack_time(Micros(us))), Micros(us));
            let later = stack_time(Micros(us)) + smoltcp::time::Duration::from_micros(1);
            assert_eq!(wall_time(later), Micros(us + 1));
        }
    }
}
