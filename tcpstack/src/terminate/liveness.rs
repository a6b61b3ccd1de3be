//! Whether a peer is there: when it was heard, what it owes an answer to, and when to ask it.
//!
//! - A peer owes an answer from the first segment on that asks for one after it was heard last. Whoever answers is alive, whatever
//!   it acknowledges: a closed window may stay closed (RFC 9293 section 3.8.6.1).
//! - What asks is repeated at growing intervals, and a single answer can be lost. So a peer that owes one is asked in between, with
//!   keep-alive probes (RFC 9293 section 3.8.4), before it counts as gone.
//! - A silent peer is asked as `keepalive` says; and, before it would be cut for its silence, when the session's other end has spoken since:
//!   the keep-alives of that end would have reached it, were we not between.

use std::time::Duration;

use sluice_config::KeepAlive;
use sluice_filters::units::Micros;

/// A peer is asked so often in the time after which it counts as gone, less one.
const ASKS: u32 = 4;

fn part(time: Duration) -> Duration {
    time.checked_div(ASKS).unwrap_or_default()
}

/// What one peer's silence means, by configuration and by the session's other end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For an answer that it owes.
    pub(crate) unacknowledged: Duration,
    /// For any segment.
    pub(crate) idle: Option<Duration>,
    pub(crate) keepalive: Option<KeepAlive>,
    /// When the other end last spoke of its own accord.
    pub(crate) other_spoke: Option<Micros>,
}

/// What is known of a peer's presence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Liveness {
    heard: Micros,
    /// The newest segment that was no answer to a probe of ours.
    spoke: Micros,
    /// Since when it owes an answer.
    owes: Option<Micros>,
    /// When it was asked last, since it was heard.
    asked: Option<Micros>,
}

impl Liveness {
    /// A peer that was heard now, or that is about to be addressed.
    pub(crate) fn new(now: Micros) -> Liveness {
        Liveness { heard: now, spoke: now, owes: None, asked: None }
    }

    /// The newest segment that passed the guard.
    pub(crate) fn heard_at(&self) -> Micros {
        self.heard
    }

    /// The newest segment that was no answer to a probe of ours.
    pub(crate) fn spoke_at(&self) -> Micros {
        self.spoke
    }

    /// A segment passed the guard; `bare` when it says nothing but what the peer has said before.
    pub(crate) fn heard(&mut self, bare: bool, now: Micros) {
        if !(bare && self.asked.is_some()) {
            self.spoke = now;
        }
        self.heard = now;
        (self.owes, self.asked) = (None, None);
    }

    /// A segment was sent that asks for an answer.
    pub(crate) fn addressed(&mut self, now: Micros) {
        self.owes.get_or_insert(now);
    }

    /// A probe was sent.
    pub(crate) fn asked(&mut self, now: Micros) {
        self.asked = Some(now);
    }

    /// When it counts as gone, if nothing is heard.
    pub(crate) fn gone_at(&self, patience: &Patience) -> Option<Micros> {
        let owed = self.owes.map(|since| since.after(patience.unacknowledged));
        let silent = patience.keepalive.map(|keepalive| self.heard.after(keepalive.patience()));
        [owed, silent].into_iter().flatten().min()
    }

    /// When it counts as idle, if nothing is heard.
    pub(crate) fn idle_at(&self, patience: &Patience) -> Option<Micros> {
        patience.idle.map(|idle| self.heard.after(idle))
    }

    /// When to ask it next.
    pub(crate) fn ask_at(&self, patience: &Patience) -> Option<Micros> {
        let last = self.asked.unwrap_or(self.heard);
        let owed = self.owes.map(|since| since.max(last).after(part(patience.unacknowledged)));
        let silent = patience.keepalive.map(|keepalive| last.after(keepalive.interval));
        // The last word of a conversation is not one into its silence.
        let idle = patience
            .idle
            .map(part)
            .filter(|pause| patience.other_spoke.is_some_and(|spoke| spoke >= self.heard.after(*pause)));
        let idle = idle.map(|pause| last.after(pause));
        [owed, silent, idle].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn patience() -> Patience {
        Patience { unacknowledged: 8 * SECOND, idle: Some(40 * SECOND), keepalive: None, other_spoke: None }
    }

    fn at(seconds: u64) -> Micros {
        Micros(seconds * 1_000_000)
    }

    #[test]
    fn whoever_answers_owes_nothing_until_it_is_addressed_again() {
        let mut peer = Liveness::new(at(0));
        assert_eq!((peer.gone_at(&patience()), peer.ask_at(&patience())), (None, None));
        peer.addressed(at(10));
        peer.addressed(at(12));
        assert_eq!((peer.gone_at(&patience()), peer.ask_at(&patience())), (Some(at(18)), Some(at(12))));
        peer.asked(at(12));
        assert_eq!(peer.ask_at(&patience()), Some(at(14)), "asked three times before it is gone");
        peer.heard(true, at(15));
        assert_eq!((peer.gone_at(&patience()), peer.ask_at(&patience())), (None, None));
        assert_eq!(peer.idle_at(&patience()), Some(at(55)));
    }

    #[test]
    fn a_silent_peer_is_asked_while_the_other_end_speaks_and_its_answers_are_no_words_of_its_own() {
        let mut peer = Liveness::new(at(0));
        assert_eq!(peer.ask_at(&Patience { other_spoke: Some(at(0)), ..patience() }), None);
        assert_eq!(peer.ask_at(&Patience { other_spoke: Some(at(1)), ..patience() }), None, "the last word");
        let spoken = Patience { other_spoke: Some(at(12)), ..patience() };
        assert_eq!(peer.ask_at(&spoken), Some(at(10)));
        peer.asked(at(12));
        assert_eq!(peer.ask_at(&spoken), Some(at(22)));
        peer.heard(true, at(13));
        assert_eq!((peer.heard_at(), peer.spoke_at()), (at(13), at(0)));
        assert_eq!(peer.ask_at(&spoken), None, "it was heard after the other end");
        peer.heard(true, at(14));
        assert_eq!(peer.spoke_at(), at(14), "nobody asked");
    }

    #[test]
    fn keep_alives_find_a_peer_gone_after_as_many_as_configured() {
        let asked = Patience { keepalive: Some(KeepAlive { interval: 5 * SECOND, count: 3 }), ..patience() };
        let mut peer = Liveness::new(at(0));
        let mut asks = Vec::new();
        while let Some(ask) = peer.ask_at(&asked).filter(|ask| Some(*ask) < peer.gone_at(&asked)) {
            peer.asked(ask);
            asks.push(ask);
        }
        assert_eq!((asks, peer.gone_at(&asked)), (vec![at(5), at(10), at(15)], Some(at(20))));
    }
}
