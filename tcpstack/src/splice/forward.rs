//! A segment's way through a connected session: judged, noted, rewritten in place.

use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::checksum::{self, Sum};
use sluice_filters::units::{Micros, PortId, Seq};
use sluice_filters::{DropReason, Flags, Segment};

use super::window::{Gate, Noted, Passing};
use super::{Certain, End, Splice, State, coarse};
use crate::net::{Lower, Way};
use crate::path_mtu::Whole;
use crate::record::EndCause;
use crate::segment::{self, BareSegment, Direction, IpHeader};
use crate::stack::dial::SourcePorts;
use crate::stack::ingress::Inbound;
use crate::stack::{Arrival, CHALLENGE_PAUSE, FlowRef, Outcome, Side, Stack, send_bare};
use crate::translate::{Patch, Translator};

/// What the congestion bits of TOS and traffic class are called: ECN is never negotiated by a cookie.
const ECN: u8 = 0b11;

/// A frame to be sent on: its TCP segment was rewritten in place, link and IP header are to be written in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The way it leaves.
    pub way: Way,
    /// Where TCP starts in the frame.
    pub l4: usize,
    /// The IP header; its `len` says where the segment ends. Its family may be another than the received header's.
    pub ip: IpHeader,
}

impl Forward {
    /// Bytes of the IP packet.
    #[inline]
    fn packet_len(&self) -> usize {
        self.ip.size().wrapping_add(usize::from(self.ip.len))
    }

    /// Before anything was forwarded.
    pub(crate) const NONE: Forward = Forward {
        way: Way::Neighbor { port: PortId(0), id: 0 },
        l4: 0,
        ip: IpHeader { src: Addr::v4(0), dst: Addr::v4(0), tos: 0, len: 0 },
    };
}

/// What a rewrite has to know of a segment's options. Offsets count from the TCP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// TSval and TSecr, and where TSval stands.
    pub(super) timestamp: Option<(u32, u32)>,
    pub(super) timestamp_at: usize,
    /// Where the first SACK block stands, and how many there are.
    sack_at: usize,
    sack_blocks: usize,
}

impl Marks {
    /// Those of a segment in its frame.
    #[inline]
    pub(super) fn of(segment: &Segment, frame: &[u8]) -> Marks {
        // Nearly every segment has no options or these (RFC 7323 appendix A): then all of it stays in registers.
        match *segment.option_octets(frame) {
            [] => Marks::default(),
            [1, 1, 8, 10, a, b, c, d, e, f, g, h] => Marks {
                timestamp: Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))),
                timestamp_at: 24,
                ..Marks::default()
            },
            _ => Marks::read(segment, frame),
        }
    }

    #[inline(never)]
    fn read(segment: &Segment, frame: &[u8]) -> Marks {
        let options = segment.options(frame);
        let l4 = segment.l4();
        Marks {
            timestamp: options.timestamp,
            timestamp_at: usize::from(options.timestamp_at).wrapping_sub(l4),
            sack_at: usize::from(options.sack_at).wrapping_sub(l4),
            sack_blocks: options.sack_blocks().len(),
        }
    }
}

/// Where a segment stands in its frame, and what a rewrite has to know of it.
pub(super) struct Received<'a> {
    pub(super) segment: &'a Segment,
    pub(super) marks: Marks,
    /// The frame's checksum was never computed.
    pub(super) unfinished: bool,
}

/// A segment of one byte without that byte, in its frame too; and how it came, for its checksum is wrong now. None for any other segment.
pub(super) fn without_garbage(inbound: &Inbound<'_>, frame: &mut [u8]) -> Option<(Segment, Arrival)> {
    if inbound.segment.payload_len != 1 || inbound.segment.flags.fin() {
        return None;
    }
    let bare = Segment { payload_len: 0, ..*inbound.segment };
    segment::renumber(&bare, frame)?;
    Some((bare, Arrival { unfinished: true, ..inbound.arrival }))
}

impl Splice {
    /// A number of `side`'s stream in those that the client and we use.
    #[inline]
    fn in_client_numbers(&self, side: Side, seq: Seq) -> Seq {
        match side {
            Side::Client => seq,
            Side::Upstream => seq.plus(self.seq_delta),
        }
    }

    /// A received segment in the client's numbers.
    #[inline]
    pub(super) fn passing(&self, side: Side, segment: &Segment, marks: &Marks) -> Passing {
        Passing {
            seq: self.in_client_numbers(side, segment.seq),
            ack: segment.ack,
            payload: segment.payload_len,
            flags: segment.flags,
            window: segment.window,
            timestamp: marks.timestamp.filter(|_| self.state.has(State::TIMESTAMPS)).map(|(value, _)| value),
        }
    }

    /// Judges a segment of `side`'s.
    #[inline]
    pub(super) fn judge(&mut self, side: Side, passing: &Passing) -> Gate {
        if self.is_unsure() {
            return self.judge_unsure(side, passing);
        }
        let base = self.base(side);
        let (me, peer) = self.ends_of(side);
        me.judge(peer, passing, base)
    }

    /// Whether what an end has acknowledged is only assumed. Nothing is said in its name then: an acknowledgment that is not true loses
    /// payload.
    #[inline]
    pub(super) fn is_unsure(&self) -> bool {
        self.client.is_unsure() | self.upstream.is_unsure()
    }

    /// Judges a segment of a connection of which little more is known than its ends and constants. What it started from may have been a late
    /// copy or a forger's, so a segment that does not fit starts it anew, until both ends agree.
    #[cold]
    fn judge_unsure(&mut self, side: Side, passing: &Passing) -> Gate {
        let lost = self.client.is_lost();
        let (base, cookie) = (self.base(side), self.cookie);
        let (me, peer) = self.halves(side);
        let flags = passing.flags;
        if flags.rst() {
            // Who knows the numbers judges it.
            return if lost { Gate::DoubtfulReset } else { me.judge(peer, passing, base) };
        }
        if flags.syn() {
            let repeated = side == Side::Upstream && flags.ack() && passing.seq == cookie;
            return if repeated { Gate::Challenge(DropReason::SynOnFlow) } else { Gate::Drop(DropReason::SynOnFlow) };
        }
        if !flags.ack() {
            return Gate::Drop(DropReason::BadAck);
        }
        if lost || me.judge(peer, passing, base) != Gate::Pass {
            me.resume(peer, passing);
        } else {
            if peer.is_unsure() {
                me.confirm(peer, passing);
            }
        }
        Gate::Pass
    }

    /// Takes in a segment that passed; what it changed.
    #[inline]
    pub(super) fn note(&mut self, side: Side, passing: &Passing, now: u32) -> Noted {
        let other = side.other();
        let peer_base = self.base(other);
        let (me, peer) = self.halves(side);
        let silent = now.wrapping_sub(me.heard);
        let noted = me.note(peer, passing, peer_base, now);
        if me.reset_seen() {
            me.heard_after_reset(passing.seq == peer.ack || noted.acknowledged > 0, silent);
        }
        self.state.clear(State::waits(other));
        if passing.occupies() && !self.state.has(State::waits(side)) {
            self.state.set(State::waits(side));
            self.waiting = now;
        }
        if noted.acknowledged > 0 {
            self.moved = now;
        }
        if noted.fin {
            self.note_fin(side, now);
        }
        noted
    }

    /// Whether a segment of `side`'s with payload went by before and the other end waits for it.
    #[inline]
    fn is_sent_again(&self, side: Side, passing: &Passing) -> bool {
        let (me, peer) = self.ends_of(side);
        passing.seq == peer.ack && passing.payload > 0 && !me.snd_max.precedes(passing.end())
    }

    /// A segment for `receiver` is sent again, in an IP packet of `len` bytes: the second time in vain, it may be cut for a smaller path from
    /// now on. Its sender is not told: it would believe it of all paths to us.
    #[cold]
    fn note_repeat(&mut self, receiver: Side, len: usize, v4: bool, now: Micros) {
        self.change_path(receiver, now, |path| path.sent_again(len, v4, now));
    }

    /// A segment for `receiver` that ends before the number `end` leaves in an IP packet of `len` bytes, and of the path no so large one is
    /// known to get through; the size to cut it for.
    #[cold]
    fn note_large(&mut self, receiver: Side, len: usize, end: Seq, now: Micros) -> u16 {
        let (to, from) = self.ends_of(receiver);
        let (ahead, newest) = (end.minus(to.ack), end == from.snd_max);
        self.change_path(receiver, now, |path| {
            path.sent(len, ahead, newest);
            path.limit()
        })
    }

    /// A FIN was seen, acknowledged or taken back.
    #[cold]
    fn note_fin(&mut self, side: Side, now: u32) {
        self.moved = now;
        if !self.upstream.fin_seen() {
            self.state.clear(State::UPSTREAM_FIRST);
        } else if side == Side::Upstream && !self.client.finished() && !self.upstream.finished() {
            self.state.set(State::UPSTREAM_FIRST);
        }
    }

    /// Rewrites a segment of `side`'s, from its TCP header on, for the other end. `ends` are where it goes from and to.
    #[inline]
    pub(super) fn rewrite(&mut self, side: Side, received: &Received<'_>, tcp: &mut [u8], ends: (End, End)) {
        let Received { segment, marks, unfinished } = *received;
        let (from, to) = ends;
        let timestamp_at = marks.timestamp.map(|_| marks.timestamp_at);
        let translator = Translator { seq_delta: self.seq_delta, ts_delta: self.ts_delta };
        let mut patch = Patch::new(tcp);
        patch.set(0, u32::from(from.port) << 16 | u32::from(to.port));
        match side {
            Side::Client => {
                patch.changed(Sum::ZERO.word(self.change));
                if segment.flags.ack() {
                    translator.back(&mut patch, timestamp_at, marks.sack_at, marks.sack_blocks);
                    if self.state.has(State::ECHOES_OURS) {
                        self.mend_echo(&marks, &mut patch);
                    }
                }
            }
            Side::Upstream => {
                patch.changed(Sum::ZERO.word(!self.change));
                translator.out(&mut patch, timestamp_at);
                if self.upstream.shift != self.promised_shift {
                    patch.set_window(self.rescaled(segment.window));
                }
            }
        }
        patch.finish();
        if unfinished {
            checksum::fill_tcp(tcp, from.addr, to.addr);
        }
    }

    /// An upstream's window field as the client will scale it: never more than was meant.
    #[inline]
    fn rescaled(&self, window: u16) -> u16 {
        let octets = u32::from(window).wrapping_shl(u32::from(self.upstream.shift));
        u16::try_from(octets.wrapping_shr(u32::from(self.promised_shift))).unwrap_or(u16::MAX)
    }

    /// Until the client has heard a timestamp of the upstream's it echoes our SYN-ACK's. The upstream is told its own SYN-ACK's, which
    /// came after.
    #[cold]
    fn mend_echo(&mut self, marks: &Marks, patch: &mut Patch<'_>) {
        let Some((_, echo)) = marks.timestamp else { return };
        let theirs = echo.wrapping_sub(self.ts_delta);
        if (theirs.wrapping_sub(self.upstream.timestamp) as i32) < 0 {
            patch.add(marks.timestamp_at.wrapping_add(4), self.upstream.timestamp.wrapping_sub(theirs));
        } else {
            self.state.clear(State::ECHOES_OURS);
        }
    }

    /// An ACK in the name of the other end that tells `side` where it is. Its number is the one that `side` has acknowledged: one that
    /// was only seen may be a forger's.
    pub(super) fn bare_ack(&self, side: Side, ends: (End, End)) -> BareSegment {
        let (me, peer) = self.ends_of(side);
        let (to, from) = ends;
        let (ack, ahead, shift) = match side {
            Side::Client => (peer.ack, self.ts_delta, self.promised_shift),
            Side::Upstream => (Seq(peer.ack.0.wrapping_sub(self.seq_delta)), 0, peer.shift),
        };
        let stamps = peer.newest_timestamp().zip(me.newest_timestamp());
        let mut window = peer.window().wrapping_shr(u32::from(shift));
        if side == Side::Client && !self.is_connected() {
            // The window of our SYN-ACK stands, whatever its scale can say: told of none, the client would wait for more.
            window = window.max(1);
        }
        BareSegment {
            key: super::flow(to, from),
            direction: Direction::ToPeer,
            seq: me.ack,
            ack,
            flags: Flags::ACK,
            window: u16::try_from(window).unwrap_or(u16::MAX),
            ttl: segment::TTL,
            timestamp: stamps
                .filter(|_| self.state.has(State::TIMESTAMPS))
                .map(|(value, echo)| (value.wrapping_add(ahead), echo)),
        }
    }
}

impl Stack {
    /// A segment of a spliced session's.
    ///
    /// # Errors
    /// Why it is dropped.
    #[inline]
    pub(crate) fn spliced<N: Lower>(
        &mut self,
        side: Side,
        index: u32,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        let Some(splice) = self.splices.get_mut(index) else { return Err(DropReason::NoFlow) };
        // What is on the other side of the route cannot be a forger on this one.
        if side == Side::Upstream && splice.upstream.port != inbound.arrival.port {
            return Err(DropReason::WrongPort);
        }
        if splice.opening.is_some() {
            return self.spliced_opening(side, index, inbound, frame, now, net);
        }
        self.spliced_connected(side, index, inbound, frame, now, net)
    }

    /// A segment of a session's whose ends are both connected.
    #[inline]
    pub(super) fn spliced_connected<N: Lower>(
        &mut self,
        side: Side,
        index: u32,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        let Inbound { segment, arrival, .. } = inbound;
        let Some(splice) = self.splices.get_mut(index) else { return Err(DropReason::NoFlow) };
        let marks = Marks::of(segment, frame);
        let passing = splice.passing(side, segment, &marks);
        let gate = splice.judge(side, &passing);
        if gate != Gate::Pass {
            return self.unfit(side, index, gate, inbound, frame, now, net);
        }
        let Some(tcp) = frame.get_mut(segment.l4()..segment.end()) else { return Err(DropReason::Truncated) };
        let again = splice.is_sent_again(side, &passing);
        let noted = splice.note(side, &passing, coarse(now));
        if noted.acknowledged > 0 && splice.path(side).listens() {
            let found = splice.change_path(side, now, |path| path.acknowledged(noted.acknowledged, now));
            // A client makes the upstream look as if its path were small by what it sends again; of itself it may say so.
            if side == Side::Client
                && let Some(path) = found
            {
                self.path_mtus.learn(segment.key.src, path, now);
            }
        }
        if side == Side::Client {
            (splice.client.port, splice.mac) = (arrival.port, arrival.mac);
        }
        let ends = match side {
            Side::Client => upstream_ends(&self.source_ports, splice),
            Side::Upstream => (listen_end(&self.listens, splice), splice.client_end()),
        };
        let received = Received { segment, marks, unfinished: arrival.unfinished };
        splice.rewrite(side, &received, tcp, ends);
        self.forward = forward(splice, side, segment, ends);
        if again {
            splice.note_repeat(side.other(), self.forward.packet_len(), ends.1.addr.is_v4(), now);
        }
        if let Some(counters) = self.counters.services.get(usize::from(splice.service.0)) {
            // What one end acknowledges, the other has sent.
            match side {
                Side::Client => counters.bytes_to_client.add(u64::from(noted.acknowledged)),
                Side::Upstream => counters.bytes_to_upstream.add(u64::from(noted.acknowledged)),
            }
        }
        let (len, mut path) = (self.forward.packet_len(), u16::MAX);
        if splice.path(side.other()).is_exceeded_by(len) && passing.payload > 0 {
            path = splice.note_large(side.other(), len, passing.end(), now);
        }
        if noted.fin {
            self.closing(index, now, net);
        }
        if len > usize::from(path) {
            let Forward { way, l4, ip } = self.forward;
            let tcp = frame.get(l4..l4.wrapping_add(usize::from(ip.len))).unwrap_or_default();
            Whole { way, ip, tcp, header_len: usize::from(segment.tcp_len) }.send_in_pieces(path, net);
            return Ok(Outcome::Consumed);
        }
        Ok(Outcome::Forward)
    }

    /// A segment that did not just pass: the RST that ends the session, or one that is refused.
    #[cold]
    #[allow(clippy::too_many_arguments, reason = "one packet's facts, each from another place")]
    pub(super) fn unfit<N: Lower>(
        &mut self,
        side: Side,
        index: u32,
        gate: Gate,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        let Inbound { segment, arrival, .. } = inbound;
        let Some((client, listen, ours, upstream)) = self.ends(index) else { return Err(DropReason::NoFlow) };
        let Some(splice) = self.splices.get_mut(index) else { return Err(DropReason::NoFlow) };
        // A keep-alive of an end that has sent nothing may have a byte of garbage, which is no part of the stream (RFC 9293 section 3.8.4).
        if gate == Gate::Challenge(DropReason::OutOfWindow)
            && splice.in_client_numbers(side, segment.seq).plus(1) == splice.base(side)
            && let Some((bare, arrival)) = without_garbage(&inbound, frame)
        {
            let inbound = Inbound { segment: &bare, arrival, ..inbound };
            return self.spliced_connected(side, index, inbound, frame, now, net);
        }
        let (reason, challenge) = match gate {
            Gate::Pass => return Ok(Outcome::Consumed),
            Gate::Drop(reason) => (reason, false),
            // The upstream's very SYN-ACK again: what answered it was lost, and no pause stands in the way.
            Gate::Challenge(DropReason::SynOnFlow)
                if side == Side::Upstream && segment.seq == splice.upstream_isn() =>
            {
                splice.upstream.note_syn_ack_again(Marks::of(segment, frame).timestamp.map(|(value, _)| value));
                let mut ack = splice.bare_ack(side, (upstream, ours));
                // An upstream that repeats it has sent nothing else.
                (ack.seq, ack.ack) = (segment.ack, segment.seq.plus(1));
                send_bare(&ack, splice.way(side), net);
                return Ok(Outcome::Consumed);
            }
            Gate::Challenge(reason) => (reason, true),
            Gate::Reset | Gate::DoubtfulReset => {
                let marks = Marks::of(segment, frame);
                let ends = match side {
                    Side::Client => (ours, upstream),
                    Side::Upstream => (listen, client),
                };
                let received = Received { segment, marks, unfinished: arrival.unfinished };
                let Some(tcp) = frame.get_mut(segment.l4()..segment.end()) else { return Err(DropReason::Truncated) };
                splice.rewrite(side, &received, tcp, ends);
                self.forward = forward(splice, side, segment, ends);
                if gate == Gate::Reset {
                    // A RST without ACK answers a segment that found no connection (RFC 9293 section 3.10.7.1): the other end's came first.
                    let (me, other) = splice.ends_of(side);
                    let answers = other.reset_seen() && !me.reset_seen() && !segment.flags.ack();
                    let first = if answers { side.other() } else { side };
                    for half in [&mut splice.client, &mut splice.upstream] {
                        half.forget_reset();
                    }
                    // Where both FINs are acknowledged, an end that forgot the connection answers a late segment.
                    let cause = if splice.closed().is_some() { EndCause::Closed } else { reset_by(first) };
                    self.end_spliced(index, cause, now, net);
                } else {
                    self.doubt(side, index, now);
                }
                return Ok(Outcome::Forward);
            }
        };
        if challenge {
            self.challenge(side, index, now, net);
        }
        Err(reason)
    }

    /// Tells `side` where the other end is, unless it, or the other, was told a moment ago.
    pub(super) fn challenge<N: Lower>(&mut self, side: Side, index: u32, now: Micros, net: &mut N) {
        let Some((client, listen, ours, upstream)) = self.ends(index) else { return };
        let Some(splice) = self.splices.get_mut(index) else { return };
        let ends = match side {
            Side::Client => (client, listen),
            Side::Upstream => (upstream, ours),
        };
        let clock = coarse(now) as u16;
        let pause = coarse(Micros(0).after(CHALLENGE_PAUSE)) as u16;
        if splice.is_unsure() || (splice.state.has(State::CHALLENGED) && clock.wrapping_sub(splice.challenged) < pause)
        {
            return;
        }
        splice.state.set(State::CHALLENGED);
        splice.challenged = clock;
        let (ack, way) = (splice.bare_ack(side, ends), splice.way(side));
        self.counters.challenge_acks.bump();
        send_bare(&ack, way, net);
    }

    /// Discards what the tracker knows of the connected spliced session that segments with `key` belong to, all but its ends and constants,
    /// as another process that takes it over would find it. It starts anew from the next segment. Whether there is such a session.
    pub fn lose_tracking(&mut self, key: &FlowKey) -> bool {
        let hash = self.flows.hash(key);
        let Some(FlowRef::Splice(_, index)) = self.flows.find(hash, key).map(FlowRef::from_value) else { return false };
        let Some(splice) = self.splices.get_mut(index).filter(|splice| splice.opening.is_none()) else { return false };
        splice.client.lose();
        splice.upstream.lose();
        splice.state.clear(State::ECHOES_OURS);
        true
    }

    /// The client, where it connected to, and our end and the upstream's of the session.
    pub(super) fn ends(&self, index: u32) -> Option<(End, End, End, End)> {
        let splice = self.splices.get(index)?;
        let (ours, upstream) = upstream_ends(&self.source_ports, splice);
        Some((splice.client_end(), listen_end(&self.listens, splice), ours, upstream))
    }

    /// Something is new of a FIN: the connection may be over, or the time for the other end's begins.
    #[cold]
    fn closing<N: Lower>(&mut self, index: u32, now: Micros, net: &mut N) {
        let config = self.config.clone();
        let Some(splice) = self.splices.get(index) else { return };
        if splice.closed() == Some(Certain(true)) {
            self.end_spliced(index, EndCause::Closed, now, net);
        } else if let Some(settings) = config.services.get(usize::from(splice.service.0)) {
            self.wait_no_longer(index, settings, now);
        }
    }
}

/// Why a session ends that `side` reset.
pub(super) fn reset_by(side: Side) -> EndCause {
    match side {
        Side::Client => EndCause::ClientReset,
        Side::Upstream => EndCause::UpstreamReset,
    }
}

/// Where the client connected to.
#[inline]
fn listen_end(listens: &[End], splice: &Splice) -> End {
    listens.get(usize::from(splice.listen)).copied().unwrap_or(End { addr: splice.client_addr, port: 0 })
}

/// Our end towards the upstream, and the upstream.
#[inline]
fn upstream_ends(pairs: &SourcePorts, splice: &Splice) -> (End, End) {
    let (source, upstream) = pairs.pair(splice.space());
    (End { addr: source, port: splice.our_port }, upstream)
}

#[inline]
pub(super) fn forward(splice: &Splice, side: Side, segment: &Segment, ends: (End, End)) -> Forward {
    let (way, tos) = match side {
        // What strangers ask of our network does not count.
        Side::Client => (splice.way(Side::Upstream), 0),
        Side::Upstream => (splice.way(Side::Client), segment.tos & !ECN),
    };
    let len = u16::from(segment.tcp_len).wrapping_add(segment.payload_len);
    Forward { way, l4: segment.l4(), ip: IpHeader { src: ends.0.addr, dst: ends.1.addr, tos, len } }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use proptest::prelude::*;
    use sluice_filters::testkit::{self, Opt};
    use sluice_filters::units::ServiceId;
    use sluice_filters::{Parsed, RxChecksums, TcpOptions, parse};

    use super::super::NOT_CONNECTED;
    use super::super::opening::change;
    use super::super::window::{Half, Start};
    use super::*;
    use crate::path_mtu::PackedPath;

    const ENDS: [[&str; 4]; 4] = [
        ["192.0.2.7:40000", "198.51.100.10:443", "10.0.0.2:2000", "10.0.0.5:80"],
        ["[2001:db8:1::7]:40000", "[2001:db8::10]:443", "[fd00::2]:2000", "[fd00::5]:80"],
        ["192.0.2.7:40000", "198.51.100.10:443", "[fd00::2]:2000", "[fd00::5]:80"],
        ["[2001:db8:1::7]:40000", "[2001:db8::10]:443", "10.0.0.2:2000", "10.0.0.5:80"],
    ];

    fn end(text: &str) -> End {
        let socket: std::net::SocketAddr = text.parse().unwrap();
        End { addr: socket.ip().into(), port: socket.port() }
    }

    /// A connected session between these ends.
    fn splice(ends: [&str; 4], seq_delta: u32, ts_delta: u32) -> Splice {
        let [client, listen, ours, upstream] = ends.map(end);
        let start = Start { first: Seq(0), ack: Seq(0), window: 65_535, shift: 7, timestamp: 0 };
        let half = Half::new(start, PortId(0), 0);
        Splice {
            client_addr: client.addr,
            client_port: NonZeroU16::new(client.port).unwrap(),
            our_port: ours.port,
            listen: 0,
            pair: 0,
            service: ServiceId(0),
            seq_delta,
            ts_delta,
            change: change(client, listen, ours, upstream),
            state: State::default(),
            promised_shift: 7,
            mac: [0; 6],
            hop: 0,
            client: half,
            upstream: half,
            client_path: PackedPath::UNKNOWN,
            upstream_path: PackedPath::UNKNOWN,
            isn: Seq(0),
            cookie: Seq(0),
            opened: Micros(0).into(),
            connected: NOT_CONNECTED,
            moved: 0,
            waiting: 0,
            challenged: 0,
            opening: None,
        }
    }

    /// Every layout of options that fits, NOPs anywhere.
    fn options() -> impl Strategy<Value = Vec<Opt>> {
        let option = prop_oneof![
            3 => Just(Opt::Nop),
            2 => (any::<u32>(), any::<u32>()).prop_map(|(value, echo)| Opt::Timestamp(value, echo)),
            2 => prop::collection::vec((any::<u32>(), any::<u32>()), 1..5).prop_map(Opt::Sack),
            1 => Just(Opt::Raw(vec![253, 5, 1, 2, 3])),
            1 => Just(Opt::Raw(vec![5, 9, 1, 2, 3, 4, 5, 6, 7])),
        ];
        let length = |option: &Opt| match option {
            Opt::Timestamp(..) => 10,
            Opt::Sack(blocks) => 2 + 8 * blocks.len(),
            Opt::Raw(raw) => raw.len(),
            _ => 1,
        };
        prop::collection::vec(option, 0..8).prop_map(move |mut options| {
            while options.iter().map(length).sum::<usize>() > 40 {
                options.pop();
            }
            options
        })
    }

    fn flags() -> impl Strategy<Value = Flags> {
        prop_oneof![
            Just(Flags::ACK),
            Just(Flags::ACK | Flags::PSH),
            Just(Flags::ACK | Flags::FIN),
            Just(Flags::RST),
            Just(Flags::RST | Flags::ACK),
        ]
    }

    fn delta() -> impl Strategy<Value = u32> {
        prop_oneof![Just(0), Just(1), Just(u32::MAX), Just(1 << 31), any::<u32>()]
    }

    fn read(frame: &[u8]) -> (Segment, TcpOptions) {
        // Verifies the checksum.
        match parse(frame, RxChecksums::default()) {
            Ok(Parsed::Tcp(segment)) => (segment, segment.options(frame)),
            other => panic!("{other:?}"),
        }
    }

    /// The frame as it is sent on: rewritten, with new headers in front.
    fn forwarded(splice: &mut Splice, side: Side, frame: &[u8], ends: (End, End), unfinished: bool) -> Vec<u8> {
        let mut frame = frame.to_vec();
        let segment = match parse(&frame, RxChecksums::GOOD) {
            Ok(Parsed::Tcp(segment)) => segment,
            other => panic!("{other:?}"),
        };
        let received = Received { segment: &segment, marks: Marks::of(&segment, &frame), unfinished };
        splice.rewrite(side, &received, &mut frame[segment.l4()..segment.end()], ends);
        let Forward { l4, ip, .. } = forward(splice, side, &segment, ends);
        let mut packet = vec![0; ip.size()];
        ip.write(&mut packet);
        packet.extend_from_slice(&frame[l4..l4 + usize::from(ip.len)]);
        let ether_type = if ip.src.is_v4() { 0x0800 } else { 0x86dd };
        testkit::ethernet(testkit::OUR_MAC, testkit::PEER_MAC, None, ether_type, &packet)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn a_segment_translated_and_translated_back_is_unchanged(
            which in 0_usize..4, side in prop_oneof![Just(Side::Client), Just(Side::Upstream)],
            flags in flags(), seq in delta(), ack in delta(), window: u16, options in options(),
            payload in prop::collection::vec(any::<u8>(), 0..70),
            seq_delta in delta(), ts_delta in delta(),
        ) {
            let [client, listen, ours, upstream] = ENDS[which];
            let there = match side {
                Side::Client => (client, listen, end(ours), end(upstream)),
                Side::Upstream => (upstream, ours, end(listen), end(client)),
            };
            let frame = testkit::tcp(there.0, there.1)
                .flags(flags).seq(seq).ack(ack).window(window).options(options).payload(payload).build();
            let (before, options_before) = read(&frame);

            let mut session = splice(ENDS[which], seq_delta, ts_delta);
            let out = forwarded(&mut session, side, &frame, (there.2, there.3), false);
            let (after, options_after) = read(&out);
            prop_assert_eq!(after.key, FlowKey {
                src: there.2.addr, dst: there.3.addr, src_port: there.2.port, dst_port: there.3.port,
            });
            prop_assert_eq!((after.flags, after.window, after.payload(&out)), (flags, window, before.payload(&frame)));
            let minus = |seq: Seq, by: u32| Seq(seq.0.wrapping_sub(by));
            match side {
                Side::Client => {
                    let by = if flags.ack() { seq_delta } else { 0 };
                    prop_assert_eq!((after.seq, after.ack), (before.seq, minus(before.ack, by)));
                    let by_ts = if flags.ack() { ts_delta } else { 0 };
                    let expected = options_before.timestamp.map(|(value, echo)| (value, echo.wrapping_sub(by_ts)));
                    prop_assert_eq!(options_after.timestamp, expected);
                    let blocks: Vec<_> =
                        options_before.sack_blocks().iter().map(|(a, b)| (minus(*a, by), minus(*b, by))).collect();
                    prop_assert_eq!(options_after.sack_blocks(), blocks);
                }
                Side::Upstream => {
                    prop_assert_eq!((after.seq, after.ack), (before.seq.plus(seq_delta), before.ack));
                    let expected = options_before.timestamp.map(|(value, echo)| (value.wrapping_add(ts_delta), echo));
                    prop_assert_eq!(options_after.timestamp, expected);
                    prop_assert_eq!(options_after.sack_blocks(), options_before.sack_blocks());
                }
            }

            // The same way back: the inverse session between the exchanged ends.
            let inverse = [ours, upstream, client, listen];
            let back_ends = match side {
                Side::Client => (end(client), end(listen)),
                Side::Upstream => (end(upstream), end(ours)),
            };
            let mut inverse = splice(inverse, seq_delta.wrapping_neg(), ts_delta.wrapping_neg());
            let back = forwarded(&mut inverse, side, &out, back_ends, false);
            let (again, _) = read(&back);
            prop_assert_eq!(&back[again.l4()..again.end()], &frame[before.l4()..before.end()]);
        }

        #[test]
        fn an_unfinished_checksum_is_finished(
            which in 0_usize..4, garbage: u16, options in options(), payload in prop::collection::vec(any::<u8>(), 0..70),
        ) {
            let [client, listen, ours, upstream] = ENDS[which];
            let mut frame = testkit::tcp(client, listen).options(options).payload(payload).build();
            let (segment, _) = read(&frame);
            frame[segment.l4() + 16..segment.l4() + 18].copy_from_slice(&garbage.to_be_bytes());
            let mut session = splice(ENDS[which], 77, 99);
            let out = forwarded(&mut session, Side::Client, &frame, (end(ours), end(upstream)), true);
            read(&out);
        }

        #[test]
        fn a_rescaled_window_is_never_larger_than_what_was_meant(window: u16, theirs in 0_u8..15, promised in 0_u8..15) {
            let mut session = splice(ENDS[0], 0, 0);
            session.upstream.shift = theirs;
            session.promised_shift = promised;
            let rescaled = u64::from(session.rescaled(window)) << promised;
            let meant = u64::from(window) << theirs;
            prop_assert!(rescaled <= meant);
            // No more is lost than the scale cannot say.
            let most = u64::from(u16::MAX) << promised;
            prop_assert!(meant.min(most) - rescaled < 1 << promised);
        }
    }

    #[test]
    fn the_echo_of_our_own_timestamp_becomes_the_upstreams_first() {
        let [client, listen, ours, upstream] = ENDS[0];
        let mut session = splice(ENDS[0], 0, 1_000);
        session.state.set(State::ECHOES_OURS);
        // The upstream's SYN-ACK said 5000, which the client would see as 6000; ours had said 5990.
        session.upstream.timestamp = 5_000;
        let mut echoed = |echo| {
            let frame = testkit::tcp(client, listen).options([Opt::Nop, Opt::Nop, Opt::Timestamp(7, echo)]).build();
            let out = forwarded(&mut session, Side::Client, &frame, (end(ours), end(upstream)), false);
            read(&out).1.timestamp
        };
        assert_eq!(echoed(5_990), Some((7, 5_000)));
        assert_eq!(echoed(6_000), Some((7, 5_000)));
        // From then on echoes are the upstream's own.
        assert_eq!(echoed(5_999), Some((7, 4_999)));
    }
}
