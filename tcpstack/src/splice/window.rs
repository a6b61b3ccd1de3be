//! What segments passing by show of a connection: each end's sequence variables (RFC 9293 section 3.3.1), and which segments fit
//! them.
//!
//! All numbers are the client's: what the upstream sends is judged after translation. The tracker stands in the middle, so it
//! keeps apart what it knows and what it was told (van Rooij, "Real Stateful TCP Packet Filtering in IP Filter"):
//!
//! - **Facts** are acknowledgments: what an end acknowledged, it has. Bytes are counted by them, a FIN counts when it is
//!   acknowledged, and a RST ends the session at the acknowledged number.
//! - **Claims** are all other numbers. A segment that passes may be a forger's, and one that its sender sent may have been lost before
//!   us. So payload and FIN move [`Half::snd_max`], which only says how far the other end may acknowledge; a bare ACK's number
//!   moves nothing; and no rule that a true sender can break leans on a claim.
//!
//! What is refused is what no sender in this connection would send, whatever was lost, repeated or reordered before us or behind
//! us; the receiver judges the rest:
//!
//! - payload beyond the widest window that the other end ever opened, counted from its newest acknowledgment, or further
//!   behind that than such a window (RFC 9293 section 3.10.7.4);
//! - payload in front of the first byte, where the PROXY header stands;
//! - payload behind a FIN that was acknowledged with nothing seen behind it;
//! - an acknowledgment of what did not pass, or older than any window reached (RFC 5961 section 5.2);
//! - a RST that is neither the number the other end waits for nor the one behind the last payload seen (RFC 5961 section 3.2);
//! - a SYN (RFC 5961 section 4.2).
//!
//! Timestamps are not compared: both ends do it exactly (PAWS, RFC 7323 section 5.3), and the tracker cannot.
//!
//! A tracker can start from any one segment ([`Half::resume`]): what it did not see may have been sent.

use sluice_filters::units::{PortId, Seq};
use sluice_filters::{DropReason, Flags};

use super::COARSE_LOG;

/// A window that every TCP may reach, as a power of two: old segments are let through at least so far back.
const REACH_MIN: u8 = 16;
/// No numbers further apart are compared: the widest window there is (RFC 7323 section 2.3).
const MARGIN_MAX: u32 = 1 << 30;

/// Segments that overtake one another are not further apart, coarse time: half a second.
const LATE: u32 = 500_000 >> COARSE_LOG;

/// What to do with a segment.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Forward it.
    Pass,
    /// Forward it: it ends the connection, provably.
    Reset,
    /// Forward it: it is a RST that may be its sender's, which the receiver judges (RFC 5961 section 3.2).
    DoubtfulReset,
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
    /// Bytes of payload.
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
        self.payload_end().plus(u32::from(self.flags.fin()))
    }

    /// The number behind its last byte of payload.
    #[inline]
    fn payload_end(&self) -> Seq {
        self.seq.plus(u32::from(self.payload))
    }

    /// Whether it takes sequence space.
    #[inline]
    pub(crate) fn occupies(&self) -> bool {
        self.payload > 0 || self.flags.fin()
    }
}

/// What is known of an end's stream. One bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known(u8);

impl Known {
    /// A FIN went by: a claim.
    const SEEN: u8 = 1;
    /// The other end acknowledged it: a fact.
    const ACKNOWLEDGED: u8 = 2;
    /// Payload was seen at its number or behind it: a forger sent the one or the other.
    const DOUBTFUL: u8 = 4;
    /// The tracker began in the middle of the stream: how much came before is not known.
    const MIDSTREAM: u8 = 8;
    /// Nothing is known of either end: the next segment starts the tracker anew.
    const LOST: u8 = 16;
    /// The last number that went by was a FIN's.
    const LAST_IS_FIN: u8 = 64;
    /// A RST in its name went by that may have been its own.
    const RESET: u8 = 32;
    /// The tracker started from a segment of this end's, and none of the other end's has agreed with it yet.
    const UNCONFIRMED: u8 = 128;

    #[inline]
    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// One end, as its own segments show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Half {
    /// The number behind the last payload or FIN that went by. A claim.
    pub(crate) snd_max: Seq,
    /// Its newest acknowledgment. A fact about the other end's stream.
    pub(crate) ack: Seq,
    /// Its newest TSval at the number the other end waited for.
    pub(crate) timestamp: u32,
    /// When it was heard last, in the session's coarse time.
    pub(crate) heard: u32,
    /// The number behind its FIN, once one was seen. A claim, until it is acknowledged.
    fin_end: Seq,
    /// Its newest window, as the header says it.
    window: u16,
    /// Times `ack` went round, so that bytes can be counted past 4 GiB.
    wraps: u16,
    /// The widest window it opened was below two to this power.
    reach: u8,
    /// Its window shift.
    pub(crate) shift: u8,
    known: Known,
    /// The port it is reached through.
    pub(crate) port: PortId,
}

/// What an end's first segment says, for [`Half::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// The number of its first byte.
    pub(crate) first: Seq,
    /// What it has acknowledged: the number of the other end's first byte.
    pub(crate) ack: Seq,
    /// The window it opened, bytes.
    pub(crate) window: u32,
    /// Its window shift.
    pub(crate) shift: u8,
    /// Its TSval.
    pub(crate) timestamp: u32,
}

/// What a segment that passed has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    /// Bytes of the other end's payload that it acknowledged.
    pub(crate) acknowledged: u32,
    /// A FIN was seen or acknowledged, or proved to be none, of whichever end.
    pub(crate) fin: bool,
}

impl Half {
    /// An end whose SYN went by, at the coarse moment `now`; it is reached through `port`.
    pub(crate) fn new(start: Start, port: PortId, now: u32) -> Half {
        let Start { first, ack, window, shift, timestamp } = start;
        let shift = shift.min(14);
        let mut half = Half {
            snd_max: first,
            ack,
            timestamp,
            heard: now,
            fin_end: first,
            window: u16::try_from(window.wrapping_shr(u32::from(shift))).unwrap_or(u16::MAX),
            wraps: 0,
            reach: REACH_MIN,
            shift,
            known: Known::default(),
            port,
        };
        half.reached(window);
        half
    }

    fn reached(&mut self, window: u32) {
        let bits = u32::BITS.wrapping_sub(window.leading_zeros()) as u8;
        self.reach = self.reach.max(bits);
    }

    /// Bytes that none of its windows exceeded.
    #[inline]
    fn widest(&self) -> u32 {
        1_u32.wrapping_shl(u32::from(self.reach))
    }

    /// Forgets all but the window shift, as if another process or node had tracked the connection so far.
    pub(crate) fn lose(&mut self) {
        let nothing = Start { first: Seq(0), ack: Seq(0), window: 0, shift: self.shift, timestamp: 0 };
        *self = Half { known: Known(Known::LOST), heard: self.heard, ..Half::new(nothing, self.port, 0) };
    }

    /// Whether the tracker has yet to start anew.
    pub(crate) fn is_lost(&self) -> bool {
        self.known.has(Known::LOST)
    }

    /// Its newest TSval; none where the tracker started anew and saw none since. A wrong one would freeze its peer (PAWS).
    #[inline]
    pub(crate) fn newest_timestamp(&self) -> Option<u32> {
        (self.timestamp != 0 || !self.known.has(Known::MIDSTREAM | Known::LOST)).then_some(self.timestamp)
    }

    /// Whether the tracker has yet to start anew, or only started.
    #[inline]
    pub(crate) fn is_unsure(&self) -> bool {
        self.known.has(Known::LOST | Known::UNCONFIRMED)
    }

    /// A segment of this end's agrees with the one of the other's that the tracker started from. What this end acknowledges was assumed;
    /// now it is known.
    pub(crate) fn confirm(&mut self, other: &mut Half, segment: &Passing) {
        other.known.0 &= !Known::UNCONFIRMED;
        if self.known.0 & Known::UNCONFIRMED == 0 && segment.ack.precedes(self.ack) {
            // Less than was assumed; more is for [`Half::note`].
            (self.ack, self.window) = (segment.ack, segment.window);
        }
    }

    /// Starts anew from one segment of this end's: nothing but the window shifts is known of what came before.
    pub(crate) fn resume(&mut self, peer: &mut Half, segment: &Passing) {
        // Windows may have been as wide as they can be told.
        for half in [&mut *self, &mut *peer] {
            half.reach = half.shift.wrapping_add(REACH_MIN);
            half.known = Known(Known::MIDSTREAM);
            half.wraps = 0;
        }
        self.known.0 |= Known::UNCONFIRMED;
        self.ack = segment.ack;
        self.window = segment.window;
        // The segment may be one sent again, from the beginning of the window that the other end opened, or the last in it.
        peer.ack = segment.seq;
        peer.window = 0;
        // Either end may have sent a window more than it says, and the segment may be a late one.
        let margin = |half: &Half| half.widest().wrapping_shl(1).min(MARGIN_MAX);
        self.snd_max = segment.end().plus(margin(peer));
        peer.snd_max = segment.ack.plus(margin(self));
        if let Some(value) = segment.timestamp {
            self.timestamp = value;
        }
    }

    /// The window it opened last, bytes.
    pub(crate) fn window(&self) -> u32 {
        u32::from(self.window).wrapping_shl(u32::from(self.shift))
    }

    /// The window it opened last, as its headers say it.
    pub(crate) fn window_field(&self) -> u16 {
        self.window
    }

    /// Bytes of the other end's stream, which begins at `base`, that it has acknowledged; a FIN counts as one.
    #[inline]
    pub(crate) fn acknowledged_since(&self, base: Seq) -> u64 {
        u64::from(self.wraps) << 32 | u64::from(self.ack.minus(base))
    }

    /// Its very SYN-ACK came again, since what answered it was lost: it is answered with its own timestamp, or its sender would measure a
    /// round trip of a second (RFC 7323 section 4.3: it stands where our last acknowledgment began).
    #[cold]
    pub(crate) fn note_syn_ack_again(&mut self, timestamp: Option<u32>) {
        if let (Some(value), Some(recent)) = (timestamp, self.newest_timestamp())
            && value.wrapping_sub(recent) as i32 > 0
        {
            self.timestamp = value;
        }
    }

    /// A RST in its name was forwarded.
    #[cold]
    pub(crate) fn note_reset(&mut self, now: u32) {
        self.heard = now;
        self.known.0 |= Known::RESET;
    }

    /// It is over, one way or the other.
    pub(crate) fn forget_reset(&mut self) {
        self.known.0 &= !Known::RESET;
    }

    /// A segment of its came after a RST in its name, and after so much coarse time of silence. What the network delayed comes soon; later
    /// on, one that only a living end sends (with the number that the other end waits for, or acknowledging more) shows that the RST was a
    /// forger's. Others only put the end off.
    #[cold]
    pub(crate) fn heard_after_reset(&mut self, alive: bool, silent: u32) {
        if silent < LATE {
            self.heard = self.heard.wrapping_sub(silent);
        } else if alive {
            self.forget_reset();
        }
    }

    /// Whether such a RST went by, and its sender has not shown itself since.
    pub(crate) fn reset_seen(&self) -> bool {
        self.known.has(Known::RESET)
    }

    /// A FIN of its went by, and nothing contradicted it.
    #[inline]
    pub(crate) fn fin_seen(&self) -> bool {
        self.known.has(Known::SEEN)
    }

    /// Its FIN was acknowledged.
    #[inline]
    pub(crate) fn finished(&self) -> bool {
        self.known.has(Known::ACKNOWLEDGED)
    }

    /// Its FIN was acknowledged, though payload had been seen behind it.
    #[inline]
    pub(crate) fn finish_is_doubtful(&self) -> bool {
        self.known.has(Known::DOUBTFUL)
    }

    /// Judges a segment of this end's, whose first byte has the number `base`.
    #[inline]
    pub(crate) fn judge(&self, peer: &Half, segment: &Passing, base: Seq) -> Gate {
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
        // One byte past the window: the probe of a closed one (RFC 9293 section 3.8.6.1).
        let beyond = peer.ack.plus(peer.widest()).plus(1).precedes(end)
            || (self.known.0 & (Known::ACKNOWLEDGED | Known::DOUBTFUL) == Known::ACKNOWLEDGED
                && peer.ack.precedes(end));
        let behind = segment.seq.precedes(peer.ack) && {
            // The stream's first byte is the oldest that is ever sent again. A bare segment may have the number before.
            let sent = peer.acknowledged_since(base);
            let whole = !segment.occupies() | self.known.has(Known::MIDSTREAM) | (sent >= u64::from(peer.widest()));
            peer.ack.minus(segment.seq) > if whole { peer.widest() } else { sent as u32 }
        };
        if beyond | behind {
            return Gate::Challenge(DropReason::OutOfWindow);
        }
        if peer.snd_max.precedes(segment.ack) {
            return Gate::Challenge(DropReason::BadAck);
        }
        if segment.ack.precedes(self.ack) && self.ack.minus(segment.ack) > self.widest() {
            return Gate::Challenge(DropReason::OldAck);
        }
        Gate::Pass
    }

    #[cold]
    fn judge_reset(&self, peer: &Half, seq: Seq) -> Gate {
        if seq == peer.ack {
            Gate::Reset
        } else if seq == self.snd_max {
            // Payload and then a RST: the payload is not acknowledged yet, or its acknowledgment was lost before us.
            Gate::DoubtfulReset
        } else if seq.minus(peer.ack) < peer.widest() {
            Gate::Challenge(DropReason::BadRst)
        } else {
            Gate::Drop(DropReason::BadRst)
        }
    }

    /// Takes in a segment of this end's that passed. `peer_base` is the number of the other end's first byte.
    #[inline]
    pub(crate) fn note(&mut self, peer: &mut Half, segment: &Passing, peer_base: Seq, now: u32) -> Noted {
        self.heard = now;
        if let Some(value) = segment.timestamp
            // A keep-alive repeats the number before.
            && (segment.seq == peer.ack || segment.seq.plus(1) == peer.ack)
            && (self.newest_timestamp().is_none() || (self.timestamp.wrapping_sub(value) as i32) < 0)
        {
            self.timestamp = value;
        }
        let mut noted = Noted::default();
        if !segment.ack.precedes(self.ack) {
            self.window = segment.window;
            self.reached(u32::from(segment.window).wrapping_shl(u32::from(self.shift)));
            if segment.ack != self.ack {
                noted = self.acknowledge(peer, segment.ack, peer_base);
            }
        }
        if segment.occupies() {
            noted.fin |= self.claim(peer, segment);
        }
        noted
    }

    /// This end has acknowledged more of the other's stream.
    #[inline]
    fn acknowledge(&mut self, peer: &mut Half, ack: Seq, peer_base: Seq) -> Noted {
        let mut acknowledged = ack.minus(self.ack);
        if ack.minus(peer_base) < self.ack.minus(peer_base) {
            self.wraps = self.wraps.wrapping_add(1);
        }
        self.ack = ack;
        let fin = peer.fin_seen() && !ack.precedes(peer.fin_end);
        if fin {
            acknowledged = acknowledged.wrapping_sub(peer.settle_fin(ack));
        }
        Noted { acknowledged, fin }
    }

    /// The other end acknowledged the number behind this one's FIN, or more. Returns what the FIN takes of what was acknowledged.
    #[cold]
    fn settle_fin(&mut self, ack: Seq) -> u32 {
        let was = u32::from(self.finished());
        if ack != self.fin_end {
            // There is something behind what was said to be the last number. What was said last may be true.
            self.known.0 &= !(Known::SEEN | Known::ACKNOWLEDGED | Known::DOUBTFUL);
            if self.known.has(Known::LAST_IS_FIN) {
                self.known.0 |= Known::SEEN;
                self.fin_end = self.snd_max;
            }
        }
        if self.fin_seen() && ack == self.fin_end {
            self.known.0 |= Known::ACKNOWLEDGED | if self.snd_max == ack { 0 } else { Known::DOUBTFUL };
        }
        u32::from(self.finished()).wrapping_sub(was)
    }

    /// This end says that it sent something; whether that is news of a FIN. Claims do not refute claims: acknowledgments do.
    #[inline]
    fn claim(&mut self, peer: &Half, segment: &Passing) -> bool {
        let end = segment.end();
        let ahead = self.snd_max.precedes(end);
        if ahead {
            self.snd_max = end;
            self.known.0 &= !Known::LAST_IS_FIN;
        }
        // Payload at the FIN's number or behind it. Once the FIN is acknowledged, a keep-alive may have a byte of garbage at its number.
        let last = self.fin_end.plus(u32::from(self.finished()));
        if self.fin_seen() && segment.payload > 0 && !segment.payload_end().precedes(last) {
            self.known.0 |= Known::DOUBTFUL;
            if segment.payload_end() == self.snd_max {
                self.known.0 &= !Known::LAST_IS_FIN;
            }
        }
        segment.flags.fin() && peer.ack.precedes(end) && self.claim_fin(end)
    }

    /// A FIN that is not acknowledged. Of several the first counts until more is acknowledged.
    #[cold]
    fn claim_fin(&mut self, end: Seq) -> bool {
        if end == self.snd_max {
            self.known.0 |= Known::LAST_IS_FIN;
        }
        let new = !self.fin_seen() || end.precedes(self.fin_end);
        if new {
            self.known.0 |= Known::SEEN;
            self.known.0 &= !Known::DOUBTFUL;
            self.fin_end = end;
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: Seq = Seq(101);
    const FAR: Seq = Seq(501);

    fn start(first: u32, ack: u32, window: u32, timestamp: u32) -> Half {
        Half::new(Start { first: Seq(first), ack: Seq(ack), window, shift: 0, timestamp }, PortId(0), 0)
    }

    /// A client whose bytes begin at 101, and an upstream whose bytes begin at 501.
    fn pair() -> (Half, Half) {
        (start(101, 501, 2_000, 50), start(501, 101, 1_000, 70))
    }

    fn segment(seq: u32, ack: u32, payload: u16) -> Passing {
        Passing { seq: Seq(seq), ack: Seq(ack), payload, flags: Flags::ACK, window: 1_000, timestamp: None }
    }

    fn fin(seq: u32, ack: u32, payload: u16) -> Passing {
        Passing { flags: Flags::ACK | Flags::FIN, ..segment(seq, ack, payload) }
    }

    fn reset(seq: u32) -> Passing {
        Passing { flags: Flags::RST, ..segment(seq, 0, 0) }
    }

    /// Judges and takes in a client's segment; it must pass.
    fn passes(client: &mut Half, upstream: &mut Half, segment: Passing) -> Noted {
        assert_eq!(client.judge(upstream, &segment, BASE), Gate::Pass, "{segment:?}");
        client.note(upstream, &segment, FAR, 1)
    }

    /// The same of the upstream.
    fn answers(client: &mut Half, upstream: &mut Half, segment: Passing) -> Noted {
        assert_eq!(upstream.judge(client, &segment, FAR), Gate::Pass, "{segment:?}");
        upstream.note(client, &segment, BASE, 1)
    }

    #[test]
    fn payload_passes_up_to_the_widest_window_and_a_probe_one_past_it() {
        let (client, mut upstream) = pair();
        upstream.reach = 16;
        let edge = 101 + (1 << 16);
        assert_eq!(client.judge(&upstream, &segment(edge - 1_000, 501, 1_000), BASE), Gate::Pass);
        assert_eq!(client.judge(&upstream, &segment(edge, 501, 1), BASE), Gate::Pass);
        let beyond = Gate::Challenge(DropReason::OutOfWindow);
        assert_eq!(client.judge(&upstream, &segment(edge, 501, 2), BASE), beyond);
        assert_eq!(client.judge(&upstream, &segment(edge + 1, 501, 1), BASE), beyond);
    }

    #[test]
    fn retransmissions_pass_as_far_back_as_windows_reached() {
        let (client, mut upstream) = pair();
        upstream.ack = Seq(101).plus(200_000);
        let at = |back: u32| segment(upstream.ack.0.wrapping_sub(back), 501, 10);
        assert_eq!(client.judge(&upstream, &at(65_536), BASE), Gate::Pass);
        assert_eq!(client.judge(&upstream, &at(65_537), BASE), Gate::Challenge(DropReason::OutOfWindow));
    }

    #[test]
    fn payload_in_front_of_the_first_byte_is_refused_and_a_keep_alive_is_not() {
        let (client, mut upstream) = pair();
        let refused = Gate::Challenge(DropReason::OutOfWindow);
        assert_eq!(client.judge(&upstream, &segment(100, 501, 0), BASE), Gate::Pass, "a keep-alive");
        assert_eq!(client.judge(&upstream, &segment(100, 501, 1), BASE), refused, "with a byte of garbage");
        assert_eq!(client.judge(&upstream, &segment(60, 501, 50), BASE), refused);
        upstream.ack = Seq(121);
        assert_eq!(client.judge(&upstream, &segment(101, 501, 30), BASE), Gate::Pass);
        assert_eq!(client.judge(&upstream, &segment(100, 501, 30), BASE), refused);
        assert_eq!(client.judge(&upstream, &fin(100, 501, 0), BASE), refused);
    }

    #[test]
    fn an_ack_of_what_did_not_pass_and_one_too_old_are_challenged() {
        let (mut client, mut upstream) = pair();
        assert_eq!(client.judge(&upstream, &segment(101, 502, 0), BASE), Gate::Challenge(DropReason::BadAck));
        upstream.snd_max = Seq(501).plus(300_000);
        client.ack = upstream.snd_max;
        let at = |back: u32| segment(101, upstream.snd_max.0.wrapping_sub(back), 0);
        assert_eq!(client.judge(&upstream, &at(65_536), BASE), Gate::Pass);
        assert_eq!(client.judge(&upstream, &at(65_537), BASE), Gate::Challenge(DropReason::OldAck));
    }

    #[test]
    fn a_bare_acks_number_says_nothing_of_what_was_sent() {
        let (mut client, mut upstream) = pair();
        // The FIN with the last payload was lost before us; the bare ACK behind it was not.
        passes(&mut client, &mut upstream, segment(101, 501, 100));
        passes(&mut client, &mut upstream, segment(302, 501, 0));
        assert_eq!(client.snd_max, Seq(201));
        assert!(passes(&mut client, &mut upstream, fin(201, 501, 100)).fin);
        answers(&mut client, &mut upstream, segment(501, 302, 0));
        assert!(client.finished() && !client.finish_is_doubtful());
    }

    #[test]
    fn a_reset_ends_the_session_at_the_acknowledged_number_only() {
        let (mut client, mut upstream) = pair();
        passes(&mut client, &mut upstream, segment(101, 501, 200));
        assert_eq!(client.judge(&upstream, &reset(101), BASE), Gate::Reset);
        assert_eq!(client.judge(&upstream, &reset(301), BASE), Gate::DoubtfulReset);
        for inside in [102, 300, 302, 1_100] {
            assert_eq!(client.judge(&upstream, &reset(inside), BASE), Gate::Challenge(DropReason::BadRst));
        }
        for outside in [100, 101 + (1 << 16), 0x8000_0000] {
            assert_eq!(client.judge(&upstream, &reset(outside), BASE), Gate::Drop(DropReason::BadRst));
        }
        answers(&mut client, &mut upstream, segment(501, 301, 0));
        assert_eq!(client.judge(&upstream, &reset(301), BASE), Gate::Reset);
    }

    #[test]
    fn a_forged_number_ahead_makes_no_reset_exact() {
        let (mut client, mut upstream) = pair();
        passes(&mut client, &mut upstream, segment(700, 501, 0));
        assert_eq!(client.judge(&upstream, &reset(700), BASE), Gate::Challenge(DropReason::BadRst));
        passes(&mut client, &mut upstream, segment(699, 501, 1));
        assert_eq!(client.judge(&upstream, &reset(700), BASE), Gate::DoubtfulReset, "the receiver judges");
    }

    #[test]
    fn a_syn_is_challenged_and_a_segment_without_ack_dropped() {
        let (client, upstream) = pair();
        let with = |flags| Passing { flags, ..segment(101, 501, 0) };
        assert_eq!(client.judge(&upstream, &with(Flags::SYN), BASE), Gate::Challenge(DropReason::SynOnFlow));
        assert_eq!(client.judge(&upstream, &with(Flags::PSH), BASE), Gate::Drop(DropReason::BadAck));
    }

    #[test]
    fn nothing_new_comes_behind_an_acknowledged_fin() {
        let (mut client, mut upstream) = pair();
        let last = fin(101, 501, 9);
        assert!(passes(&mut client, &mut upstream, last).fin);
        assert!(!passes(&mut client, &mut upstream, last).fin, "again");
        passes(&mut client, &mut upstream, segment(111, 501, 0));
        let noted = answers(&mut client, &mut upstream, segment(501, 111, 0));
        assert_eq!(noted, Noted { acknowledged: 9, fin: true });
        assert_eq!(client.judge(&upstream, &last, BASE), Gate::Pass, "its acknowledgment may be lost behind us");
        assert_eq!(client.judge(&upstream, &segment(110, 501, 2), BASE), Gate::Challenge(DropReason::OutOfWindow));
    }

    #[test]
    fn a_fin_behind_forged_payload_passes_and_its_acknowledgment_counts_with_doubt() {
        let (mut client, mut upstream) = pair();
        passes(&mut client, &mut upstream, segment(60_000, 501, 1));
        assert!(passes(&mut client, &mut upstream, fin(101, 501, 50)).fin);
        answers(&mut client, &mut upstream, segment(501, 152, 0));
        assert!(client.finished() && client.finish_is_doubtful());
        // The FIN was the forged one: the stream goes on.
        passes(&mut client, &mut upstream, segment(152, 501, 100));
        answers(&mut client, &mut upstream, segment(501, 252, 0));
        assert!(!client.finished() && !client.fin_seen());
    }

    #[test]
    fn payload_in_the_place_of_a_fin_makes_it_doubtful_and_its_acknowledgment_no_fact() {
        for forged in [150, 201, 300] {
            let (mut client, mut upstream) = pair();
            passes(&mut client, &mut upstream, segment(101, 501, 100));
            passes(&mut client, &mut upstream, fin(forged, 501, 0));
            passes(&mut client, &mut upstream, segment(201, 501, 100));
            answers(&mut client, &mut upstream, segment(501, forged + 1, 0));
            assert!(client.finish_is_doubtful(), "{forged}");
            // Nothing that the client sends is refused for it.
            passes(&mut client, &mut upstream, segment(301, 501, 100));
            answers(&mut client, &mut upstream, segment(501, 401, 0));
            assert!(!client.finished(), "{forged}");
        }
    }

    #[test]
    fn a_true_fin_is_acknowledged_whatever_fins_a_forger_adds() {
        for forged in [120, 350, 5_000] {
            for first in [false, true] {
                let (mut client, mut upstream) = pair();
                passes(&mut client, &mut upstream, segment(101, 501, 100));
                if first {
                    passes(&mut client, &mut upstream, fin(forged, 501, 0));
                }
                passes(&mut client, &mut upstream, fin(201, 501, 50));
                if !first {
                    passes(&mut client, &mut upstream, fin(forged, 501, 0));
                }
                let noted = answers(&mut client, &mut upstream, segment(501, 252, 0));
                assert!(client.finished(), "{forged} {first}");
                assert_eq!(noted.acknowledged, 150);
            }
        }
    }

    #[test]
    fn forged_payload_behind_a_true_fin_takes_nothing_back() {
        let (mut client, mut upstream) = pair();
        passes(&mut client, &mut upstream, fin(101, 501, 50));
        passes(&mut client, &mut upstream, segment(4_000, 501, 10));
        assert_eq!(answers(&mut client, &mut upstream, segment(501, 152, 0)).acknowledged, 50);
        assert!(client.finished() && client.finish_is_doubtful());
    }

    #[test]
    fn a_keep_alive_with_a_byte_of_garbage_at_the_fins_number_takes_nothing_back() {
        let (mut client, mut upstream) = pair();
        passes(&mut client, &mut upstream, fin(101, 501, 9));
        answers(&mut client, &mut upstream, segment(501, 111, 0));
        passes(&mut client, &mut upstream, segment(110, 501, 1));
        assert!(client.finished());
    }

    #[test]
    fn an_acknowledgment_behind_a_fin_takes_the_fin_back() {
        let (mut client, mut upstream) = pair();
        passes(&mut client, &mut upstream, segment(101, 501, 200));
        // Among what was sent before, and acknowledged by chance.
        passes(&mut client, &mut upstream, fin(150, 501, 0));
        assert_eq!(answers(&mut client, &mut upstream, segment(501, 151, 0)).acknowledged, 49);
        assert!(client.finish_is_doubtful());
        let noted = answers(&mut client, &mut upstream, segment(501, 301, 0));
        assert_eq!(noted, Noted { acknowledged: 151, fin: true });
        assert!(!client.finished());
    }

    #[test]
    fn timestamps_refuse_nothing_and_only_the_awaited_ones_are_kept() {
        let (mut client, mut upstream) = pair();
        let stamped = |seq, payload, value| Passing { timestamp: Some(value), ..segment(seq, 501, payload) };
        passes(&mut client, &mut upstream, stamped(101, 1, 49));
        assert_eq!(client.timestamp, 50);
        passes(&mut client, &mut upstream, stamped(5_000, 0, 50 + (1 << 30)));
        passes(&mut client, &mut upstream, stamped(5_000, 1, 50 + (1 << 30)));
        assert_eq!(client.timestamp, 50, "a number ahead binds nobody");
        passes(&mut client, &mut upstream, stamped(101, 10, 60));
        assert_eq!(client.timestamp, 60);
        passes(&mut client, &mut upstream, stamped(100, 0, 61));
        assert_eq!(client.timestamp, 61, "a keep-alive");
    }

    #[test]
    fn windows_are_scaled_and_the_widest_counts() {
        let (mut client, _) = pair();
        let start = Start { first: Seq(501), ack: Seq(101), window: 1_000, shift: 7, timestamp: 0 };
        let mut upstream = Half::new(start, PortId(0), 0);
        answers(&mut client, &mut upstream, Passing { window: 1_024, ..segment(501, 101, 0) });
        assert_eq!((upstream.window(), upstream.widest()), (131_072, 1 << 18));
        answers(&mut client, &mut upstream, Passing { window: 1, ..segment(501, 101, 0) });
        assert_eq!((upstream.window(), upstream.widest()), (128, 1 << 18));
    }

    /// An honest connection's numbers: `isn` and `other` anywhere in the space.
    fn honest(isn: u32, other: u32, shift: u8) -> (Seq, Seq, Half, Half) {
        let (base, far) = (Seq(isn).plus(1), Seq(other).plus(1));
        let start = |first, ack, shift| Start { first, ack, window: 65_535, shift, timestamp: 0 };
        let sender = Half::new(start(base, far, 0), PortId(0), 0);
        let receiver = Half::new(start(far, base, shift), PortId(0), 0);
        (base, far, sender, receiver)
    }

    proptest! {
        /// A sender that keeps to the window, whatever is lost before us: all it sends passes, also when the tracker forgot everything
        /// and starts anew; and every byte is counted when it is acknowledged, where nothing was forgotten.
        #[test]
        fn an_honest_sender_always_passes(
            isn: u32, other: u32, shift in 0_u8..15, forgets in prop::option::of(0_usize..200),
            steps in prop::collection::vec((0_u16..=65_535, any::<u16>(), any::<bool>(), any::<bool>(), any::<u16>()), 1..200),
        ) {
            let (base, far, mut sender, mut receiver) = honest(isn, other, shift);
            // What is true: the sender's next number, its limit, and what the receiver has.
            let (mut next, mut edge, mut has) = (base, base.plus(65_535), base);
            let mut acknowledged = 0_u64;
            for (step, (len, window, acknowledges, lost, back)) in steps.into_iter().enumerate() {
                let room = edge.minus(next).min(1 << 30);
                let payload = u32::from(len).min(room) as u16;
                let new = Passing { seq: next, ack: far, payload, flags: Flags::ACK, window: 65_535, timestamp: None };
                next = next.plus(u32::from(payload));
                if !lost {
                    if forgets == Some(step) {
                        sender.resume(&mut receiver, &new);
                    }
                    prop_assert_eq!(sender.judge(&receiver, &new, base), Gate::Pass);
                    let _ = sender.note(&mut receiver, &new, far, 1);
                }
                // Sent again, cut differently: from anywhere in what is not acknowledged.
                let from = has.plus(u32::from(back) % next.minus(has).max(1));
                let again = next.minus(from).min(60_000) as u16;
                let repeated = Passing { seq: from, payload: again, ..new };
                prop_assert_eq!(sender.judge(&receiver, &repeated, base), Gate::Pass);
                let _ = sender.note(&mut receiver, &repeated, far, 1);
                if acknowledges {
                    // What arrived may reach as far as what passed.
                    let reached = from.plus(u32::from(again));
                    if has.precedes(reached) {
                        has = reached;
                    }
                    let ack = Passing { seq: far, ack: has, payload: 0, flags: Flags::ACK, window, timestamp: None };
                    prop_assert_eq!(receiver.judge(&sender, &ack, far), Gate::Pass);
                    acknowledged += u64::from(receiver.note(&mut sender, &ack, base, 1).acknowledged);
                    let opened = has.plus(u32::from(window) << shift);
                    if edge.precedes(opened) {
                        edge = opened;
                    }
                }
            }
            if forgets.is_none() {
                prop_assert_eq!(receiver.acknowledged_since(base), acknowledged);
            }
        }

        #[test]
        fn bytes_are_counted_past_four_gibibytes(isn: u32, steps in 1_u32..40) {
            let (base, far, mut sender, mut receiver) = honest(isn, 8, 14);
            let mut sent = 0_u64;
            for _ in 0..steps * 8 {
                let jump = 1 << 26;
                let payload = Passing {
                    seq: sender.snd_max.plus(jump - 100), ack: far, payload: 100, flags: Flags::ACK, window: 0, timestamp: None,
                };
                receiver.reach = 30;
                prop_assert_eq!(sender.judge(&receiver, &payload, base), Gate::Pass);
                let _ = sender.note(&mut receiver, &payload, far, 0);
                let ack = Passing { seq: far, ack: sender.snd_max, payload: 0, ..payload };
                prop_assert_eq!(receiver.judge(&sender, &ack, far), Gate::Pass);
                let _ = receiver.note(&mut sender, &ack, base, 0);
                sent += u64::from(jump);
                prop_assert_eq!(receiver.acknowledged_since(base), sent);
            }
        }

        #[test]
        fn no_numbers_make_it_panic(seq: u32, ack: u32, payload: u16, bits: u8, window: u16, stamp: Option<u32>, a: u32, b: u32, shift: u8) {
            let start = |first, ack| Start { first: Seq(first), ack: Seq(ack), window: 65_535, shift, timestamp: 0 };
            let mut me = Half::new(start(a, b), PortId(0), 0);
            let mut peer = Half::new(start(b, a), PortId(0), 0);
            let segment = Passing { seq: Seq(seq), ack: Seq(ack), payload, flags: Flags(bits), window, timestamp: stamp };
            for _ in 0..2 {
                let _ = me.judge(&peer, &segment, Seq(a));
                let _ = me.note(&mut peer, &segment, Seq(b), 9);
                let _ = peer.judge(&me, &segment, Seq(b));
                let _ = peer.note(&mut me, &segment, Seq(a), 9);
                me.resume(&mut peer, &segment);
            }
        }
    }
}
