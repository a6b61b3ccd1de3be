//! TIME-WAIT without a socket (RFC 9293 section 3.10.7.8): what it takes to acknowledge a FIN again, and nothing more.

use std::time::Duration;

use sluice_filters::Segment;
use sluice_filters::addr::FlowKey;
use sluice_filters::units::Micros;

use super::endpoint::Endpoint;
use crate::net::Way;
use crate::segment::BareSegment;
use crate::slab::Slab;

/// Connections in TIME-WAIT one worker keeps; what comes beyond is forgotten at once.
pub(super) const MAX: usize = 1 << 16;
/// How long a FIN whose ACK was lost finds an answer. The port's own rest is longer, and kept elsewhere.
const TIME_WAIT: Duration = Duration::from_secs(10);

/// A connection that is over, though its peer may not know.
pub(super) struct Linger {
    ack: BareSegment,
    way: Way,
    pub(super) hash: u64,
    pub(super) until: Micros,
}

impl Linger {
    /// The flow, as received.
    pub(super) fn key(&self) -> FlowKey {
        self.ack.key
    }
}

/// The connections in TIME-WAIT.
pub(super) struct Lingers {
    entries: Slab<Linger>,
}

impl Lingers {
    pub(super) fn new() -> Lingers {
        Lingers { entries: Slab::new() }
    }

    /// What must be kept of `endpoint`.
    pub(super) fn entry(endpoint: &Endpoint, hash: u64, now: Micros) -> Linger {
        Linger { ack: endpoint.leg.bare_ack(now), way: endpoint.leg.way, hash, until: now.after(TIME_WAIT) }
    }

    /// Keeps an entry; none when there are too many.
    pub(super) fn keep(&mut self, entry: Linger) -> Option<u32> {
        if self.entries.len() >= MAX {
            return None;
        }
        let index = self.entries.reserve();
        self.entries.put(index, Box::new(entry));
        Some(index)
    }

    /// Drops an entry.
    pub(super) fn forget(&mut self, index: u32) -> Option<Box<Linger>> {
        let entry = self.entries.take(index)?;
        self.entries.release(index);
        Some(entry)
    }

    /// The ACK that `segment` asks for again: it carries payload or FIN from before the end. None for anything else.
    pub(super) fn answer(&mut self, index: u32, segment: &Segment) -> Option<(BareSegment, Way)> {
        let entry = self.entries.get_mut(index)?;
        let old = !entry.ack.ack.precedes(segment.seq_end());
        let asks = segment.seq_len() > 0 && old && !segment.flags.rst() && !segment.flags.syn();
        asks.then_some((entry.ack, entry.way))
    }

    /// Entries kept.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
