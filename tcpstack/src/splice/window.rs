//! What segments passing by show of a connection: each end's sequence variables (RFC 9293 section 3.3.1), and which segments fit
//! them.
//!
//! All numbers are the client's: what the upstream sends is judged after translation. Nothing here is certain, since segments
//! are lost behind us, so the rules are those that hold for whatever the receiver may have seen; it judges again. What they
//! refuse is what no sender in this connection would send:
//!
//! - payload beyond the window the other end has opened, or further behind its acknowledgments than any window reached (RFC 9293
//!   section 3.10.7.4);
//! - an acknowledgment of what was never sent, or older than any window reached (RFC 5961 section 5.2);
//! - a RST that is neither the next octet the other end waits for nor the next its sender sends (RFC 5961 section 3.2);
//! - a SYN (RFC 5961 section 4.2), and payload behind a FIN;
//! - payload with a timestamp older than the newest in sequence (PAWS, RFC 7323 section 5.3).
//!
//! What is let through may still be a forger's, so it must not bind the true sender: a first FIN counts only at the end of what was
//! sent, and is forgotten when payload takes its place; a timestamp counts only at the very number the other end waits for.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use sluice_filters::units::Seq;
use sluice_filters::{DropReason, Flags};

/// A window that every TCP may reach, as a power of two: old segments are let through at least so far back.
const REACH_MIN: u8 = 16;
/// A timestamp so far behind the newest in sequence or less is old; further away it is a clock that ran on unseen.
const STALE: u32 = 1 << 30;
/// A newest timestamp so far behind is replaced by one that comes in order, if not in sequence.
const OUTDATED: u32 = 1 << 29;

/// What to do with a segment.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Forward it.
    Pass,
    /// Forward it: it ends the connection, provably.
    Reset,
    /// Drop it.
    Drop(DropReason),
    /// Drop it and tell the sender where the other end is.
    Challenge(DropReason),
}

/// A segment, in the client's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passing {
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    /// Octets of payload.
    pub(crate) payload: u16,
    pub(crate) flags: Flags,
    /// The window field as its sender wrote it.
    pub(crate) window: u16,
    /// TSval in its sender's own numbers.
    pub(crate) timestamp: Option<u32>,
}

impl Passing {
    /// The number behind the segment's last.
    #[inline]
    pub(crate) fn end(&self) -> Seq {
        self.seq.plus(u32::from(self.payload).wrapping_add(u32::from(self.flags.fin())))
    }

    /// Whether it takes sequence space.
    #[inline]
    pub(crate) fn occupies(&self) -> bool {
        self.payload > 0 || self.flags.fin()
    }
}

/// One end, as its own segments show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Half {
    /// The number behind the last it sent.
    pub(crate) snd_max: Seq,
    /// Its newest acknowledgment.
    pub(crate) ack: Seq,
    /// The right edge of the widest window it opened: the limit for the other end.
    pub(crate) edge: Seq,
    /// Its newest TSval in sequence (RFC 7323's TS.Recent, of its peer).
    pub(crate) timestamp: u32,
    /// When it was heard last, in the session's coarse time.
    pub(crate) heard: u32,
    /// Since when something it sent waits for an acknowledgment; means something only while something does.
    pub(crate) waiting: u32,
    /// Times `snd_max` went round, so that octets can be counted past 4 GiB.
    wraps: u16,
    /// The widest window it opened was below two to this power.
    reach: u8,
    /// Its window shift.
    pub(crate) shift: u8,
}

impl Half {
    /// An end that has sent its SYN, numbered just before `next`, acknowledged `ack`, and opened a window of `window` octets.
    pub(crate) fn new(next: Seq, ack: Seq, window: u32, shift: u8, timestamp: u32, now: u32) -> Half {
        let mut half = Half {
            snd_max: next,
            ack,
            edge: ack.plus(window),
            timestamp,
            heard: now,
            waiting: now,
            wraps: 0,
            reach: REACH_MIN,
            shift,
        };
        half.reached(window);
        half
    }

    fn reached(&mut self, window: u32) {
        let bits = u32::BITS.wrapping_sub(window.leading_zeros()) as u8;
        self.reach = self.reach.max(bits);
    }

    /// Whether `older` lies no further behind `newer` than this end's windows ever reached.
    #[inline]
    fn within_reach(&self, older: Seq, newer: Seq) -> bool {
        newer.minus(older) <= 1_u32.wrapping_shl(u32::from(self.reach))
    }

    /// Whether something this end sent waits for `peer`'s acknowledgment.
    #[inline]
    pub(crate) fn outstanding(&self, peer: &Half) -> bool {
        self.snd_max != peer.ack
    }

    /// The window that stands open beyond its newest acknowledgment, octets.
    pub(crate) fn window(&self) -> u32 {
        self.edge.minus(self.ack)
    }

    /// Octets sent since the number `base`, retransmissions not counted, a FIN included.
    pub(crate) fn octets_since(&self, base: Seq) -> u64 {
        u64::from(self.wraps) << 32 | u64::from(self.snd_max.minus(base))
    }

    /// Judges a segment of this end's. `finished` says that it has sent its FIN.
    #[inline]
    pub(crate) fn judge(&self, peer: &Half, segment: &Passing, finished: bool) -> Gate {
        let flags = segment.flags;
        if flags.rst() {
            return self.judge_reset(peer, segment.seq);
        }
        if flags.syn() {
            return Gate::Challenge(DropReason::SynOnFlow);
        }
        if !flags.ack() {
            return Gate::Drop(DropReason::BadAck);
        }
        let end = segment.end();
        // One octet past the edge: the probe of a closed window (RFC 9293 section 3.8.6.1).
        let beyond = peer.edge.plus(1).precedes(end)
            // Behind a FIN that was acknowledged.
            || (finished && self.snd_max.precedes(end) && !self.outstanding(peer))
            // A first FIN among what was sent before.
            || (flags.fin() && !finished && !self.snd_max.precedes(end));
        let behind = segment.seq.precedes(peer.ack) && !peer.within_reach(segment.seq, peer.ack);
        if beyond | behind {
            return Gate::Challenge(DropReason::OutOfWindow);
        }
        if peer.snd_max.precedes(segment.ack) {
            return Gate::Challenge(DropReason::BadAck);
        }
        if segment.ack.precedes(self.ack) && !self.within_reach(segment.ack, self.ack) {
            return Gate::Challenge(DropReason::OldAck);
        }
        // Bare ACKs may overtake one another; a receiver tells (RFC 7323 section 5.3 asks only for what it can use).
        if let Some(value) = segment.timestamp
            && segment.occupies()
            && self.timestamp.wrapping_sub(value).wrapping_sub(1) < STALE
        {
            // Most are late copies: nobody waits for an answer.
            return Gate::Drop(DropReason::StaleTimestamp);
        }
        Gate::Pass
    }

    #[cold]
    fn judge_reset(&self, peer: &Half, seq: Seq) -> Gate {
        if seq == peer.ack || seq == self.snd_max {
            Gate::Reset
        } else if seq.minus(peer.ack) < peer.window() {
            Gate::Challenge(DropReason::BadRst)
        } else {
            Gate::Drop(DropReason::BadRst)
        }
    }

    /// Takes in a segment of this end's that passed; returns the octets of sequence space that are new. `base` as in
    /// [`Half::octets_since`].
    #[inline]
    pub(crate) fn note(&mut self, peer: &Half, segment: &Passing, base: Seq, now: u32) -> u32 {
        self.heard = now;
        if let Some(value) = segment.timestamp {
            let ahead = value.wrapping_sub(self.timestamp);
            // A keep-alive repeats the number before.
            let awaited = segment.seq == peer.ack || segment.seq.plus(1) == peer.ack;
            let outdated = segment.seq == self.snd_max && ahead >= OUTDATED;
            if ahead.wrapping_add(STALE) > STALE && (awaited || outdated) {
                self.timestamp = value;
            }
        }
        if !segment.ack.precedes(self.ack) {
            let window = u32::from(segment.window).wrapping_shl(u32::from(self.shift));
            self.ack = segment.ack;
            let edge = segment.ack.plus(window);
            if self.edge.precedes(edge) {
                self.edge = edge;
                self.reached(window);
            }
        }
        let end = segment.end();
        if !self.snd_max.precedes(end) {
            return 0;
        }
        if !self.outstanding(peer) {
            self.waiting = now;
        }
        if end.minus(base) < self.snd_max.minus(base) {
            self.wraps = self.wraps.wrapping_add(1);
        }
        let new = end.minus(self.snd_max);
        self.snd_max = end;
        new
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A client that may send 1000 octets from 101, and an upstream that may send 2000 from 501.
    fn pair() -> (Half, Half) {
        (Half::new(Seq(101), Seq(501), 2_000, 0, 50, 0), Half::new(Seq(501), Seq(101), 1_000, 0, 70, 0))
    }

    fn segment(seq: u32, ack: u32, payload: u16) -> Passing {
        Passing { seq: Seq(seq), ack: Seq(ack), payload, flags: Flags::ACK, window: 1_000, timestamp: None }
    }

    #[test]
    fn payload_passes_up_to_the_open_windows_edge_and_a_probe_one_past_it() {
        let (client, upstream) = pair();
        assert_eq!(client.judge(&upstream, &segment(101, 501, 1_000), false), Gate::Pass);
        assert_eq!(client.judge(&upstream, &segment(1_101, 501, 1), false), Gate::Pass);
        let beyond = Gate::Challenge(DropReason::OutOfWindow);
        assert_eq!(client.judge(&upstream, &segment(101, 501, 1_002), false), beyond);
        assert_eq!(client.judge(&upstream, &segment(1_102, 501, 1), false), beyond);
    }

    #[test]
    fn retransmissions_pass_as_far_back_as_windows_reached() {
        let (client, mut upstream) = pair();
        upstream.ack = Seq(101).plus(200_000);
        upstream.edge = upstream.ack.plus(1_000);
        let at = |back: u32| segment(upstream.ack.0.wrapping_sub(back), 501, 10);
        assert_eq!(client.judge(&upstream, &at(65_536), false), Gate::Pass);
        assert_eq!(client.judge(&upstream, &at(65_537), false), Gate::Challenge(DropReason::OutOfWindow));
    }

    #[test]
    fn an_ack_of_what_was_never_sent_and_one_too_old_are_challenged() {
        let (mut client, mut upstream) = pair();
        assert_eq!(client.judge(&upstream, &segment(101, 502, 0), false), Gate::Challenge(DropReason::BadAck));
        upstream.snd_max = Seq(501).plus(300_000);
        client.ack = upstream.snd_max;
        let at = |back: u32| segment(101, upstream.snd_max.0.wrapping_sub(back), 0);
        assert_eq!(client.judge(&upstream, &at(65_536), false), Gate::Pass);
        assert_eq!(client.judge(&upstream, &at(65_537), false), Gate::Challenge(DropReason::OldAck));
    }

    #[test]
    fn a_reset_needs_the_exact_number() {
        let (mut client, upstream) = pair();
        client.snd_max = Seq(301);
        let reset = |seq| Passing { flags: Flags::RST, ..segment(seq, 0, 0) };
        // What the upstream waits for, and what the client sends next.
        assert_eq!(client.judge(&upstream, &reset(101), false), Gate::Reset);
        assert_eq!(client.judge(&upstream, &reset(301), false), Gate::Reset);
        for inside in [102, 300, 302, 1_100] {
            assert_eq!(client.judge(&upstream, &reset(inside), false), Gate::Challenge(DropReason::BadRst));
        }
        for outside in [100, 1_101, 0x8000_0000] {
            assert_eq!(client.judge(&upstream, &reset(outside), false), Gate::Drop(DropReason::BadRst));
        }
    }

    #[test]
    fn a_syn_is_challenged_and_a_segment_without_ack_dropped() {
        let (client, upstream) = pair();
        let with = |flags| Passing { flags, ..segment(101, 501, 0) };
        assert_eq!(client.judge(&upstream, &with(Flags::SYN), false), Gate::Challenge(DropReason::SynOnFlow));
        assert_eq!(client.judge(&upstream, &with(Flags::PSH), false), Gate::Drop(DropReason::BadAck));
    }

    #[test]
    fn nothing_new_comes_behind_an_acknowledged_fin() {
        let (mut client, mut upstream) = pair();
        let fin = Passing { flags: Flags::ACK | Flags::FIN, ..segment(101, 501, 9) };
        assert_eq!(client.note(&upstream, &fin, Seq(101), 1), 10);
        assert_eq!(client.judge(&upstream, &fin, true), Gate::Pass);
        assert_eq!(client.judge(&upstream, &segment(111, 501, 0), true), Gate::Pass);
        assert_eq!(
            client.judge(&upstream, &segment(110, 501, 2), true),
            Gate::Pass,
            "the FIN may have been a forger's"
        );
        upstream.note(&client, &segment(501, 111, 0), Seq(501), 2);
        assert_eq!(client.judge(&upstream, &segment(110, 501, 2), true), Gate::Challenge(DropReason::OutOfWindow));
    }

    #[test]
    fn a_first_fin_counts_only_at_the_end() {
        let (mut client, upstream) = pair();
        client.note(&upstream, &segment(101, 501, 100), Seq(101), 1);
        let fin = |seq| Passing { flags: Flags::ACK | Flags::FIN, ..segment(seq, 501, 0) };
        for old in [50, 101, 200] {
            assert_eq!(client.judge(&upstream, &fin(old), false), Gate::Challenge(DropReason::OutOfWindow), "{old}");
        }
        assert_eq!(client.judge(&upstream, &fin(201), false), Gate::Pass);
        assert_eq!(client.judge(&upstream, &fin(201), true), Gate::Pass);
    }

    #[test]
    fn payload_with_an_old_timestamp_is_stale_and_a_bare_ack_is_not() {
        let (client, upstream) = pair();
        let stamped = |payload, value| Passing { timestamp: Some(value), ..segment(101, 501, payload) };
        assert_eq!(client.judge(&upstream, &stamped(1, 49), false), Gate::Drop(DropReason::StaleTimestamp));
        let gone_round = 50_u32.wrapping_sub(STALE + 1);
        assert_eq!(client.judge(&upstream, &stamped(1, gone_round), false), Gate::Pass, "days later");
        assert_eq!(client.judge(&upstream, &stamped(1, 50), false), Gate::Pass);
        assert_eq!(client.judge(&upstream, &stamped(0, 49), false), Gate::Pass);
    }

    #[test]
    fn only_a_segment_in_sequence_moves_the_recent_timestamp() {
        let (mut client, upstream) = pair();
        let stamped = |seq, value| Passing { timestamp: Some(value), ..segment(seq, 501, 10) };
        client.note(&upstream, &stamped(201, 90), Seq(101), 1);
        assert_eq!(client.timestamp, 50, "a gap before it: the missing one may be older");
        client.note(&upstream, &stamped(101, 60), Seq(101), 1);
        assert_eq!(client.timestamp, 60);
        client.note(&upstream, &stamped(101, 55), Seq(101), 1);
        assert_eq!(client.timestamp, 60);
        client.note(&upstream, &stamped(51, 99), Seq(101), 1);
        assert_eq!(client.timestamp, 60, "old numbers prove nothing");
        client.note(&upstream, &stamped(211, 61), Seq(101), 1);
        assert_eq!(client.timestamp, 60);
        client.note(&upstream, &stamped(221, 60 + OUTDATED), Seq(101), 1);
        assert_eq!(client.timestamp, 60 + OUTDATED, "or a stream that never rests would keep it for ever");
    }

    #[test]
    fn windows_are_scaled_and_their_edge_never_moves_back() {
        let (_, mut upstream) = pair();
        let client = Half::new(Seq(101), Seq(501), 2_000, 0, 0, 0);
        upstream.shift = 7;
        upstream.note(&client, &Passing { window: 512, ..segment(501, 101, 0) }, Seq(501), 1);
        assert_eq!(upstream.edge, Seq(101 + 65_536));
        upstream.note(&client, &Passing { window: 1, ..segment(501, 101, 0) }, Seq(501), 1);
        assert_eq!(upstream.edge, Seq(101 + 65_536));
        assert_eq!(upstream.window(), 65_536);
    }

    #[test]
    fn waiting_begins_when_something_is_first_outstanding() {
        let (mut client, mut upstream) = pair();
        client.note(&upstream, &segment(101, 501, 10), Seq(101), 5);
        client.note(&upstream, &segment(111, 501, 10), Seq(101), 6);
        assert!(client.outstanding(&upstream));
        assert_eq!(client.waiting, 5);
        upstream.note(&client, &segment(501, 121, 0), Seq(501), 7);
        assert!(!client.outstanding(&upstream));
        client.note(&upstream, &segment(121, 501, 10), Seq(101), 8);
        assert_eq!(client.waiting, 8);
    }

    proptest! {
        /// A sender that keeps the rules, at any place of the space: everything it sends passes, and every octet is counted.
        #[test]
        fn an_honest_sender_always_passes(
            isn: u32, other: u32, shift in 0_u8..15,
            steps in prop::collection::vec((0_u16..=65_535, any::<u16>(), any::<bool>()), 1..200),
        ) {
            let (base, far) = (Seq(isn).plus(1), Seq(other).plus(1));
            let mut sender = Half::new(base, far, 65_535, 0, 0, 0);
            let mut receiver = Half::new(far, base, 65_535, shift, 0, 0);
            let mut sent = 0_u64;
            for (len, window, acknowledges) in steps {
                // No more than the receiver lets it.
                let room = receiver.edge.minus(sender.snd_max);
                let payload = u32::from(len).min(room) as u16;
                let segment = Passing {
                    seq: sender.snd_max, ack: far, payload, flags: Flags::ACK, window: 65_535, timestamp: None,
                };
                prop_assert_eq!(sender.judge(&receiver, &segment, false), Gate::Pass);
                prop_assert_eq!(sender.note(&receiver, &segment, base, 1), u32::from(payload));
                sent += u64::from(payload);
                prop_assert_eq!(sender.octets_since(base), sent);
                // Its copy passes too and counts nothing.
                prop_assert_eq!(sender.judge(&receiver, &segment, false), Gate::Pass);
                prop_assert_eq!(sender.note(&receiver, &segment, base, 1), 0);
                if acknowledges {
                    let ack = Passing {
                        seq: far, ack: sender.snd_max, payload: 0, flags: Flags::ACK, window, timestamp: None,
                    };
                    prop_assert_eq!(receiver.judge(&sender, &ack, false), Gate::Pass);
                    receiver.note(&sender, &ack, far, 1);
                }
            }
        }

        #[test]
        fn octets_are_counted_past_four_gibibytes(isn: u32, steps in 1_u32..40) {
            let base = Seq(isn);
            let receiver_at = |ack: Seq| Half::new(Seq(9), ack, 1 << 30, 14, 0, 0);
            let mut sender = Half::new(base, Seq(9), 65_535, 0, 0, 0);
            let mut sent = 0_u64;
            for _ in 0..steps {
                // As after 2^29 octets in segments of their own.
                for _ in 0..8 {
                    let receiver = receiver_at(sender.snd_max);
                    let before = sender.snd_max;
                    let jump = 1 << 26;
                    let segment = Passing {
                        seq: before.plus(jump - 100), ack: Seq(9), payload: 100, flags: Flags::ACK, window: 0, timestamp: None,
                    };
                    prop_assert_eq!(sender.judge(&receiver, &segment, false), Gate::Pass);
                    sender.note(&receiver, &segment, base, 0);
                    sent += u64::from(jump);
                }
            }
            prop_assert_eq!(sender.octets_since(base), sent);
        }

        #[test]
        fn no_numbers_make_it_panic(seq: u32, ack: u32, payload: u16, bits: u8, window: u16, stamp: Option<u32>, a: u32, b: u32, shift in 0_u8..15) {
            let mut me = Half::new(Seq(a), Seq(b), 65_535, shift, 0, 0);
            let peer = Half::new(Seq(b), Seq(a), 1_000, shift, 0, 0);
            let segment = Passing { seq: Seq(seq), ack: Seq(ack), payload, flags: Flags(bits), window, timestamp: stamp };
            let _ = me.judge(&peer, &segment, bits & 1 == 1);
            me.note(&peer, &segment, Seq(a), 9);
        }
    }
}
