//! What is left of a connection: TIME-WAIT without a socket (RFC 9293 section 3.10.7.8), an answer for a peer that missed our RST,
//! and the memory that a handshake was used, so that a late copy of a client's first segment does not open a second session and
//! bring its payload to the upstream twice.

use std::time::Duration;

use sluice_filters::Segment;
use sluice_filters::addr::FlowKey;
use sluice_filters::units::{Micros, Seq};

use crate::net::Way;
use crate::segment::{BareSegment, reset_for};
use crate::slab::Slab;
use crate::terminate::endpoint::Endpoint;

/// Connections in TIME-WAIT one worker keeps; what comes beyond is forgotten at once.
pub(crate) const MAX: usize = 1 << 17;
/// How long a FIN whose ACK was lost finds an answer. The port's own rest is longer, and kept elsewhere.
const TIME_WAIT: Duration = Duration::from_secs(10);

/// How we took leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Both FINs were exchanged; a late one is acknowledged again.
    Closed,
    /// We reset it: whoever does not know it yet is told again.
    Reset,
    /// The peer reset it: there is nothing to say.
    Silent,
}

/// A connection that is over, though its peer may not know.
pub(crate) struct Linger {
    /// Our last word: where we were.
    ack: BareSegment,
    /// Our first number, which the handshake's last segment acknowledges.
    isn: Seq,
    end: Left,
    way: Way,
    pub(crate) hash: u64,
    pub(crate) until: Micros,
}

impl Linger {
    /// The flow, as received.
    pub(crate) fn key(&self) -> FlowKey {
        self.ack.key
    }

    /// Whether a segment's ACK lies among the numbers this connection sent.
    fn plausible(&self, segment: &Segment) -> bool {
        segment.ack.minus(self.isn) <= self.ack.seq.minus(self.isn)
    }
}

/// The connections in TIME-WAIT.
pub(crate) struct Lingers {
    entries: Slab<Linger>,
}

impl Lingers {
    pub(crate) fn new() -> Lingers {
        Lingers { entries: Slab::new() }
    }

    /// What must be kept of `endpoint`.
    pub(crate) fn entry(endpoint: &Endpoint, end: Left, hash: u64, now: Micros) -> Linger {
        Lingers::made(endpoint.leg.bare_ack(now), endpoint.leg.isn(), end, endpoint.leg.way, hash, now)
    }

    /// An entry for a connection whose last word would be `ack`, and whose first number was `isn`.
    pub(crate) fn made(ack: BareSegment, isn: Seq, end: Left, way: Way, hash: u64, now: Micros) -> Linger {
        Linger { ack, isn, end, way, hash, until: now.after(TIME_WAIT) }
    }

    /// Keeps an entry; none when there are too many.
    pub(crate) fn keep(&mut self, entry: Linger) -> Option<u32> {
        if self.entries.len() >= MAX {
            return None;
        }
        let index = self.entries.reserve();
        self.entries.put(index, Box::new(entry));
        Some(index)
    }

    /// Drops an entry.
    pub(crate) fn forget(&mut self, index: u32) -> Option<Box<Linger>> {
        let entry = self.entries.take(index)?;
        self.entries.release(index);
        Some(entry)
    }

    /// The answer that `segment` asks for: to payload or FIN from before an orderly end the ACK again, to anything after our RST
    /// another RST. None for anything else.
    pub(crate) fn answer(&mut self, index: u32, segment: &Segment) -> Option<(BareSegment, Way)> {
        let entry = self.entries.get_mut(index)?;
        if segment.flags.rst() || segment.flags.syn() {
            return None;
        }
        match entry.end {
            Left::Closed => {
                let old = !entry.ack.ack.precedes(segment.seq_end());
                (segment.seq_len() > 0 && old).then_some((entry.ack, entry.way))
            }
            // A new connection of the client's acknowledges other numbers.
            Left::Reset if !entry.plausible(segment) => None,
            Left::Reset => reset_for(segment).map(|reset| (reset, entry.way)),
            Left::Silent => None,
        }
    }

    /// Whether `segment` acknowledges the very handshake that this connection began with.
    pub(crate) fn same_handshake(&mut self, index: u32, segment: &Segment) -> bool {
        self.entries.get_mut(index).is_some_and(|entry| segment.ack == entry.isn.plus(1))
    }

    /// Entries kept.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
