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
    /// Gauge: busy share of the last second, in millionths.
    pub busy_ppm: Counter,
    /// Gauge: neighbours known or being resolved.
    pub neighbors: Counter,
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
            busy_ppm: Counter::default(),
            neighbors: Counter::default(),
        }
    }
}
