//! What stands between the wire and smoltcp. It keeps, in the wire's sequence numbers, what smoltcp does not tell (RFC 9293
//! section 3.3.1's variables, as far as segments show them), refuses what smoltcp 0.14 would take wrongly, and mends what
//! it would lose. Each rule has a test named after it:
//!
//! 1. receive buffers stay below 65,536 octets (`Endpoint::new`), so the window shift is 0;
//! 2. a zero window after we closed is fed as 1, or smoltcp would emit without end;
//! 3. an ACK of data never sent is refused with a challenge ACK (RFC 5961 section 5.2);
//! 4. an old ACK is raised to the newest, with the newest window, or smoltcp would drop the payload it comes with;
//! 5. a RST counts only with the exact sequence number; another one inside the window gets a challenge ACK (RFC 5961 section 3.2);
//! 6. a FIN beyond the advertised window is stripped with the payload it follows;
//! 8. a SYN on a connection gets a challenge ACK (RFC 5961 section 4.2);
//! 9. while nothing but our FIN waits for its acknowledgment, no ACK counts as a duplicate: at the third, smoltcp would stop its timer
//!    and send nothing, ever;
//! 10. a segment outside the window changes nothing here: one beyond it, or from long ago, gets a challenge ACK (RFC 9293 section
//!     3.10.7.4), one that was received already is fed only so that smoltcp acknowledges it again.

use sluice_filters::units::Seq;
use sluice_filters::{DropReason, Segment};

/// How far back a retransmission may lie behind what we acknowledged, octets: further than any window we advertise.
const OLD_MAX: u32 = 1 << 17;

/// What to do with a segment.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Hand it to smoltcp.
    Feed,
    /// Drop it.
    Drop(DropReason),
    /// Drop it and tell the peer where we are.
    Challenge(DropReason),
    /// The peer ended the connection, provably.
    Reset,
}

/// One connection's send and receive state as seen on the wire (RFC 9293 section 3.3.1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    /// SND.UNA: the newest ACK taken.
    snd_una: Seq,
    /// The highest sequence number sent, SYN and FIN counted.
    snd_max: Seq,
    /// The newest ACK we sent.
    rcv_ack: Seq,
    /// The right edge of the widest window we advertised.
    rcv_edge: Seq,
    /// The peer's newest window, as it stood in the header.
    peer_window: u16,
    /// The widest window the peer ever advertised, octets (RFC 5961's MAX.SND.WND).
    max_window: u32,
    /// The peer's window shift.
    peer_shift: u8,
    /// The number after our FIN, once sent.
    fin_end: Option<Seq>,
    /// Both ends' SYNs were exchanged.
    synchronized: bool,
    /// We called for the close of our sending half.
    closing: bool,
    /// Rule 9: the last bit of the window that was fed last.
    fed: bool,
}

impl Guard {
    /// A connection we are about to open with sequence number `isn`.
    pub(crate) fn opening(isn: Seq) -> Guard {
        Guard {
            snd_una: isn,
            snd_max: isn,
            rcv_ack: Seq(0),
            rcv_edge: Seq(0),
            peer_window: 0,
            max_window: 0,
            peer_shift: 0,
            fin_end: None,
            synchronized: false,
            closing: false,
            fed: false,
        }
    }

    /// A connection whose SYN-ACK, with our `isn` and `window`, was answered by a valid cookie. `peer_isn` is the SYN's.
    pub(crate) fn accepted(isn: Seq, peer_isn: Seq, window: u16, peer_shift: u8) -> Guard {
        let rcv_ack = peer_isn.plus(1);
        Guard {
            snd_una: isn.plus(1),
            snd_max: isn.plus(1),
            rcv_ack,
            rcv_edge: rcv_ack.plus(u32::from(window)),
            peer_window: 0,
            max_window: u32::from(u16::MAX),
            peer_shift,
            fin_end: None,
            synchronized: true,
            closing: false,
            fed: false,
        }
    }

    /// Notes a segment on its way out, in the wire's numbers.
    pub(crate) fn sent(&mut self, seq: Seq, ack: Option<Seq>, window: u16, syn: bool, fin: bool, payload: u32) {
        let end = seq.plus(payload).plus(u32::from(syn)).plus(u32::from(fin));
        if self.snd_max.precedes(end) {
            self.snd_max = end;
        }
        if fin {
            self.fin_end = Some(end);
        }
        if let Some(ack) = ack {
            if !self.synchronized {
                self.synchronized = true;
                self.rcv_edge = ack;
            }
            self.rcv_ack = ack;
            // No window scale of ours: rule 1. smoltcp forgets the window it advertises in a probe of the peer's zero window.
            let probe = payload == 1 && self.peer_window == 0;
            let edge = if probe { ack } else { ack.plus(u32::from(window)) };
            if self.rcv_edge.precedes(edge) {
                self.rcv_edge = edge;
            }
        }
    }

    /// From now on our sending half is closing: rule 2 applies.
    pub(crate) fn closing(&mut self) {
        self.closing = true;
    }

    /// Learns the peer's window shift from its SYN-ACK.
    pub(crate) fn peer_shift(&mut self, shift: u8) {
        self.peer_shift = shift.min(14);
    }

    /// Judges a received segment; may mend `tcp`, the segment's octets from its TCP header on, before it is fed.
    pub(crate) fn judge(&mut self, segment: &Segment, tcp: &mut [u8]) -> Gate {
        if self.synchronized { self.judge_synchronized(segment, tcp) } else { self.judge_opening(segment) }
    }

    /// RFC 9293 section 3.10.7.3, SYN-SENT; simultaneous open is refused.
    fn judge_opening(&mut self, segment: &Segment) -> Gate {
        let flags = segment.flags;
        let acknowledges_syn = flags.ack() && segment.ack == self.snd_max && self.snd_max != self.snd_una;
        if flags.rst() {
            return if acknowledges_syn { Gate::Reset } else { Gate::Drop(DropReason::BadRst) };
        }
        if flags.syn() && !flags.ack() {
            return Gate::Drop(DropReason::SynOnFlow);
        }
        if flags.syn() && acknowledges_syn {
            self.snd_una = segment.ack;
            self.peer_window = segment.window;
            self.max_window = u32::from(segment.window);
        }
        // smoltcp answers any other ACK with the RST that RFC 9293 asks for.
        Gate::Feed
    }

    fn judge_synchronized(&mut self, segment: &Segment, tcp: &mut [u8]) -> Gate {
        let flags = segment.flags;
        if flags.rst() {
            return self.judge_reset(segment);
        }
        if flags.syn() {
            return Gate::Challenge(DropReason::SynOnFlow);
        }
        if !flags.ack() {
            return Gate::Drop(DropReason::BadAck);
        }
        let end = segment.seq.plus(u32::from(segment.payload_len));
        let old =
            if segment.payload_len == 0 { segment.seq.precedes(self.rcv_ack) } else { !self.rcv_ack.precedes(end) };
        if self.rcv_edge.precedes(segment.seq) || (old && self.rcv_ack.minus(end) > OLD_MAX) {
            return Gate::Challenge(DropReason::OutOfWindow);
        }
        if self.snd_max.precedes(segment.ack) {
            return Gate::Challenge(DropReason::BadAck);
        }
        if segment.ack.precedes(self.snd_una)
            && self.snd_una.minus(segment.ack) > self.max_window.max(u32::from(u16::MAX))
        {
            return Gate::Challenge(DropReason::OldAck);
        }
        if old || segment.ack.precedes(self.snd_una) {
            set_ack_and_window(tcp, self.snd_una, self.peer_window);
        } else {
            self.snd_una = segment.ack;
            self.peer_window = segment.window;
            self.max_window = self.max_window.max(u32::from(segment.window) << self.peer_shift);
        }
        if self.closing && self.peer_window == 0 {
            set_ack_and_window(tcp, self.snd_una, 1);
        }
        if self.fin_end == Some(self.snd_una.plus(1)) && self.snd_una != self.snd_max {
            // An ACK with another window than before is no duplicate (RFC 5681 section 2), and there is nothing left that it would limit.
            self.fed = !self.fed;
            set_ack_and_window(tcp, self.snd_una, 2 | u16::from(self.fed));
        }
        if flags.fin() && self.rcv_edge.precedes(end) {
            clear_fin(tcp);
        }
        Gate::Feed
    }

    fn judge_reset(&self, segment: &Segment) -> Gate {
        if segment.seq == self.rcv_ack {
            return Gate::Reset;
        }
        let window = self.rcv_edge.minus(self.rcv_ack);
        if segment.seq.minus(self.rcv_ack) < window {
            Gate::Challenge(DropReason::BadRst)
        } else {
            Gate::Drop(DropReason::BadRst)
        }
    }

    /// The peer's newest window, as it stood in the header and rule 2 feeds it.
    pub(crate) fn peer_window(&self) -> u16 {
        if self.closing { self.peer_window.max(1) } else { self.peer_window }
    }

    /// SND.UNA.
    pub(crate) fn snd_una(&self) -> Seq {
        self.snd_una
    }

    /// The highest sequence number sent.
    pub(crate) fn snd_max(&self) -> Seq {
        self.snd_max
    }

    /// The newest ACK sent.
    pub(crate) fn rcv_ack(&self) -> Seq {
        self.rcv_ack
    }

    /// The window that stands advertised beyond [`Guard::rcv_ack`].
    pub(crate) fn rcv_window(&self) -> u16 {
        u16::try_from(self.rcv_edge.minus(self.rcv_ack)).unwrap_or(u16::MAX)
    }

    /// Whether a segment numbered `seq` may be on its way now.
    pub(crate) fn is_on_its_way(&self, seq: Seq) -> bool {
        !seq.precedes(self.snd_una) && !self.snd_max.precedes(seq) && self.outstanding()
    }

    /// Whether a segment with `payload` bytes from `seq` on was sent before, and is the oldest that the peer has not acknowledged.
    pub(crate) fn is_sent_again(&self, seq: Seq, payload: u32) -> bool {
        seq == self.snd_una && payload > 0 && !self.snd_max.precedes(seq.plus(payload))
    }

    /// Whether anything sent waits for its ACK.
    pub(crate) fn outstanding(&self) -> bool {
        self.snd_una != self.snd_max
    }

    /// Whether the peer acknowledged our FIN.
    pub(crate) fn fin_acknowledged(&self) -> bool {
        self.fin_end == Some(self.snd_una)
    }

    /// Whether both SYNs were exchanged.
    pub(crate) fn synchronized(&self) -> bool {
        self.synchronized
    }
}

fn set_ack_and_window(tcp: &mut [u8], ack: Seq, window: u16) {
    if let Some((header, _)) = tcp.split_first_chunk_mut::<20>() {
        let [_, _, _, _, _, _, _, _, a, b, c, d, _, _, w, x, ..] = header;
        [*a, *b, *c, *d] = ack.0.to_be_bytes();
        [*w, *x] = window.to_be_bytes();
    }
}

fn clear_fin(tcp: &mut [u8]) {
    if let Some(flags) = tcp.get_mut(13) {
        *flags &= !0x01;
    }
}
