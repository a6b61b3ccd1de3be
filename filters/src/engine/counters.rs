//! What a worker's filters count. One writer; the control plane reads.

use sluice_config::Config;

use crate::counter::Counter;

/// One worker's counters of its filters.
#[derive(Debug, Default)]
pub struct FilterCounters {
    /// By rule, in the configuration's order.
    pub rules: Vec<RuleCounters>,
    /// Gauge: sources and prefixes whose limits are remembered, estimated.
    pub records: Counter,
    /// Records given up before they had drained.
    pub records_displaced: Counter,
    /// Sources let through unremembered, since all records in their place were worth more.
    pub records_refused: Counter,
    /// Gauge: bans in force.
    pub bans: Counter,
    /// Bans there was no room for.
    pub bans_refused: Counter,
}

/// One rule's counters.
#[derive(Debug, Default)]
pub struct RuleCounters {
    /// Segments it matched.
    pub matched_packets: Counter,
    /// Octets of their IP packets.
    pub matched_bytes: Counter,
    /// Segments it dropped, or, with `dry_run`, would have dropped.
    pub cut_packets: Counter,
    /// Octets of their IP packets.
    pub cut_bytes: Counter,
    /// With `dry_run`: clients it would have cut that proved themselves with a cookie, each counted once.
    pub clients: Counter,
}

impl FilterCounters {
    /// Zeroed counters with the shape of `config`.
    #[must_use]
    pub fn new(config: &Config) -> FilterCounters {
        let rules = config.rules.iter().map(|_| RuleCounters::default()).collect();
        FilterCounters { rules, ..FilterCounters::default() }
    }
}
