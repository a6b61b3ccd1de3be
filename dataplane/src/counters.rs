//! What a worker counts, stack included. One writer; the control plane reads.

use std::sync::Arc;

use sluice_config::Config;
use sluice_filters::DropReason;
use sluice_filters::counter::Counter;
use sluice_filters::engine::FilterCounters;
use sluice_tcpstack::counters::StackCounters;

/// One worker's counters. Aligned so that two workers never share a cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// By port, in the configuration's order.
    pub ports: Vec<PortCounters>,
    /// Frames dropped, by [`DropReason`]'s index.
    pub drops: [Counter; DropReason::ALL.len()],
    /// Octets of those that were received, by the same index.
    pub dropped_bytes: [Counter; DropReason::ALL.len()],
    /// The filters' own.
    pub filters: Arc<FilterCounters>,
    /// The stack's own.
    pub stack: Arc<StackCounters>,
    /// ARP and NDP answers, ICMP echo replies.
    pub local_replies: Counter,
    /// Frames handed to the worker that owns the flow.
    pub handed_over: Counter,
    /// Frames lost because the owner's queue was full.
    pub handover_full: Counter,
    /// Gauge: frames waiting in this worker's mailbox.
    pub mailbox_occupancy: Counter,
    /// Times the packet pool had no frame for us.
    pub pool_empty: Counter,
    /// Turns in which at least one frame or timer was served.
    pub busy_turns: Counter,
    /// All turns.
    pub turns: Counter,
    /// How long those took in which something was served.
    pub turn_times: TurnTimes,
    /// Gauge: busy share of the last second, in millionths.
    pub busy_ppm: Counter,
    /// Gauge: neighbours known or being resolved.
    pub neighbors: Counter,
}

/// How long turns took: how many no longer than 16 microseconds, how many of the others no longer than four times that, and so on; the
/// last is for all that took longer.
#[derive(Debug, Default)]
pub struct TurnTimes {
    /// By their upper bounds.
    pub counts: [Counter; TurnTimes::BOUNDS.len() + 1],
    /// All together, microseconds.
    pub sum: Counter,
}

impl TurnTimes {
    /// Microseconds.
    pub const BOUNDS: [u64; 8] = [16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144];

    /// Counts a turn.
    #[inline]
    pub fn note(&self, micros: u64) {
        // The bounds are powers of four, from two to the fourth on.
        let bits = u64::BITS.saturating_sub(micros.saturating_sub(1).leading_zeros());
        let index = bits.saturating_sub(3).saturating_div(2) as usize;
        if let Some(count) = self.counts.get(index.min(TurnTimes::BOUNDS.len())) {
            count.bump();
        }
        self.sum.add(micros);
    }
}

/// One worker's share of a port.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Frames received.
    pub rx_packets: Counter,
    /// Octets received, without the Ethernet FCS.
    pub rx_bytes: Counter,
    /// Frames the device took.
    pub tx_packets: Counter,
    /// Octets of those.
    pub tx_bytes: Counter,
    /// Frames the device's queue had no room for.
    pub tx_full: Counter,
}

impl WorkerCounters {
    /// Zeroed counters with the shape of `config`.
    #[must_use]
    pub fn new(config: &Config) -> WorkerCounters {
        WorkerCounters {
            ports: config.ports.iter().map(|_| PortCounters::default()).collect(),
            drops: std::array::from_fn(|_| Counter::default()),
            dropped_bytes: std::array::from_fn(|_| Counter::default()),
            filters: Arc::new(FilterCounters::new(config)),
            stack: Arc::new(StackCounters::new(config)),
            local_replies: Counter::default(),
            handed_over: Counter::default(),
            handover_full: Counter::default(),
            mailbox_occupancy: Counter::default(),
            pool_empty: Counter::default(),
            busy_turns: Counter::default(),
            turns: Counter::default(),
            turn_times: TurnTimes::default(),
            busy_ppm: Counter::default(),
            neighbors: Counter::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_counted_below_the_first_bound_that_it_does_not_exceed() {
        for (index, bound) in TurnTimes::BOUNDS.into_iter().enumerate() {
            for (micros, expected) in [(bound - 1, index), (bound, index), (bound + 1, index + 1)] {
                let times = TurnTimes::default();
                times.note(micros);
                let counted: Vec<usize> = (0..=8).filter(|at| times.counts[*at].get() == 1).collect();
                assert_eq!((counted, times.sum.get()), (vec![expected], micros), "{micros}");
            }
        }
        let times = TurnTimes::default();
        times.note(0);
        times.note(u64::MAX / 2);
        assert_eq!((times.counts[0].get(), times.counts[8].get()), (1, 1));
    }
}
