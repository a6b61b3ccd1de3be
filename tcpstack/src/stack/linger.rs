//! What is left of a connection: TIME-WAIT without a socket (RFC 9293 section 3.10.7.8), an answer for a peer that missed our RST,
//! and the memory that a handshake was used, so that a late copy of a client's first segment does not open a second session and
//! bring its payload to the upstream twice.

use std::time::Duration;

use sluice_filters::addr::FlowKey;
use sluice_filters::units::{Micros, Seq};
use sluice_filters::{Flags, Segment};

use crate::net::Way;
use crate::segment::{BareSegment, reset_for};
use crate::slab::Slab;
use crate::terminate::endpoint::Endpoint;

/// Connections in TIME-WAIT one worker keeps; what comes beyond is forgotten at once.
pub(crate) const MAX: usize = 1 << 17;
/// How long a FIN whose ACK was lost finds an answer. The port's own rest is longer, and kept elsewhere.
const TIME_WAIT: Duration = Duration::from_secs(10);

/// A RST of ours is sent again so long after the first, and so long after that. Its receiver may be waiting for our word, and
/// nothing else would tell it that the RST was lost.
const RESET_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// How we took leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Both FINs were exchanged; a late one is acknowledged again.
    Closed,
    /// We reset it: whoever does not know it yet is told again.
    Reset,
    /// Its other end reset it, and that RST was passed on: whoever does not know it yet is told.
    Told,
    /// The peer reset it: there is nothing to say.
    Silent,
}

/// A connection that is over, though its peer may not know.
pub(crate) struct Linger {
    /// Our last word: where we were.
    ack: BareSegment,
    /// Our first number, which the handshake's last segment acknowledges.
    isn: Seq,
    /// The number that the peer has acknowledged: what it waits for, unless more has arrived.
    awaited: Seq,
    /// How often our RST was sent again.
    again: u8,
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
        Lingers { entries: Slab::new(MAX) }
    }

    /// What must be kept of `endpoint`.
    pub(crate) fn entry(endpoint: &Endpoint, end: Left, hash: u64, now: Micros) -> Linger {
        let leg = &endpoint.leg;
        Lingers::made(leg.bare_ack(now), (leg.isn(), leg.guard.snd_una()), end, leg.way, (hash, now))
    }

    /// An entry for a connection whose last word would be `ack`, whose first number was `isn`, and of which the peer has acknowledged
    /// what comes before `awaited`; with its flow's hash and the time.
    pub(crate) fn made(
        ack: BareSegment,
        (isn, awaited): (Seq, Seq),
        end: Left,
        way: Way,
        (hash, now): (u64, Micros),
    ) -> Linger {
        Linger { ack, isn, awaited, again: 0, end, way, hash, until: now.after(TIME_WAIT) }
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

    /// When an entry has something to do next.
    pub(crate) fn due(&self, index: u32) -> Option<Micros> {
        let entry = self.entries.get(index)?;
        let pause = RESET_AGAIN.get(usize::from(entry.again)).filter(|_| entry.end == Left::Reset);
        // From the first RST on.
        let begun = Micros(entry.until.0.saturating_sub(TIME_WAIT.as_micros() as u64));
        Some(pause.map_or(entry.until, |pause| begun.after(*pause)))
    }

    /// The RSTs to send again, with the numbers that the peer may be waiting for; none when the entry's time is over.
    pub(crate) fn repeat(&mut self, index: u32, now: Micros) -> Option<([Option<BareSegment>; 2], Way)> {
        let entry = self.entries.get_mut(index).filter(|entry| now < entry.until && entry.end == Left::Reset)?;
        entry.again = entry.again.saturating_add(1);
        let reset = |seq| BareSegment { seq, flags: Flags::RST | Flags::ACK, window: 0, timestamp: None, ..entry.ack };
        let further = (entry.awaited != entry.ack.seq).then(|| reset(entry.ack.seq));
        Some(([Some(reset(entry.awaited)), further], entry.way))
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
            Left::Reset | Left::Told if !entry.plausible(segment) => None,
            Left::Reset | Left::Told => reset_for(segment).map(|reset| (reset, entry.way)),
            Left::Silent => None,
        }
    }

    /// Our first number of the connection, which its handshake's last segment acknowledged.
    pub(crate) fn first_number(&self, index: u32) -> Option<Seq> {
        self.entries.get(index).map(|entry| entry.isn)
    }

    /// Entries kept.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
