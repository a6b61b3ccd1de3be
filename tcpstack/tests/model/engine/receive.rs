//! Receiving: what an end makes of a segment, in the order of RFC 9293 section 3.10.7.

use sluice_filters::Flags;

use super::super::Time;
use super::super::wire::Seg;
use super::{Emitted, End, Island, State, Tcp};

/// What a peer that has no connection answers (RFC 9293 section 3.10.7.1).
pub fn reset_for(seg: &Seg) -> Option<Seg> {
    if seg.flags.rst() {
        return None;
    }
    let len = u32::from(seg.len) + u32::from(seg.flags.syn()) + u32::from(seg.flags.fin());
    Some(if seg.flags.ack() {
        Seg { seq: seg.ack, flags: Flags::RST, ..Seg::default() }
    } else {
        Seg { ack: seg.seq.wrapping_add(len), flags: Flags::RST | Flags::ACK, ..Seg::default() }
    })
}

impl Tcp {
    /// Takes a segment in.
    pub fn receive(&mut self, seg: &Seg, payload: &[u8], now: Time) {
        match self.state {
            State::SynSent => self.syn_sent(seg, now),
            State::SynReceived => self.syn_received(seg, payload, now),
            State::Open => self.open(seg, payload, now),
            State::TimeWait => self.time_wait(seg, now),
            State::Closed(_) => {
                if let Some(seg) = reset_for(seg) {
                    self.out.push(Emitted { seg, from: None });
                }
            }
        }
    }

    fn syn_sent(&mut self, seg: &Seg, now: Time) {
        if seg.flags.ack() && seg.ack != self.number(1) {
            self.out.extend(reset_for(seg).map(|seg| Emitted { seg, from: None }));
            return;
        }
        // Linux: an echo of what was never sent is no answer to us.
        if seg.flags.ack()
            && let Some((_, echo)) = seg.timestamp
            && echo != 0
            && (echo.wrapping_sub(self.syn_stamps.0) as i32) < 0
        {
            self.out.extend(reset_for(seg).map(|seg| Emitted { seg, from: None }));
            return;
        }
        if seg.flags.rst() {
            if seg.flags.ack() {
                self.end(End::Refused);
            }
            return;
        }
        if !seg.flags.syn() || !seg.flags.ack() {
            return;
        }
        self.agree(seg);
        self.una = 1;
        self.set_window(i64::from(seg.window), 0);
        if let Some(sent_at) = self.syn_sent_at.filter(|_| self.backoff == 0) {
            self.measure(now - sent_at);
        }
        self.established(now);
        self.ack(now);
        self.push(now);
    }

    fn established(&mut self, now: Time) {
        self.state = State::Open;
        (self.backoff, self.retries) = (0, 0);
        self.rto_at = None;
        // What the SYN said is not scaled; from here on it is.
        self.rcv_edge = self.rcv_nxt + self.habits.receive_buffer.min(65_535);
        self.keep_at = self.habits.keep_alive.map(|pause| now + pause);
    }

    fn syn_received(&mut self, seg: &Seg, payload: &[u8], now: Time) {
        let seq = Tcp::position(self.peer_isn, seg.seq, self.rcv_nxt);
        if seg.flags.syn() && !seg.flags.ack() && seg.seq == self.peer_isn {
            self.send_syn_again(now);
            return;
        }
        let old = self.stamps
            && seg.timestamp.is_some_and(|(value, echo)| {
                // Linux 6.14 and later: an echo of no SYN-ACK of ours.
                let (first, last) = self.syn_stamps;
                let strange =
                    echo != 0 && ((echo.wrapping_sub(first) as i32) < 0 || (last.wrapping_sub(echo) as i32) < 0);
                (value.wrapping_sub(self.recent) as i32) < 0 || strange
            });
        let end = seq + i64::from(seg.len);
        let fits = end >= self.rcv_nxt && seq <= self.rcv_edge;
        if old || !fits {
            if !seg.flags.rst() {
                self.dup_ack(now);
            }
            return;
        }
        if seg.flags.rst() {
            if seq == self.rcv_nxt {
                self.end(End::Reset);
            }
            return;
        }
        if seg.flags.syn() || !seg.flags.ack() {
            return;
        }
        if seg.ack != self.number(1) {
            self.out.extend(reset_for(seg).map(|seg| Emitted { seg, from: None }));
            return;
        }
        self.una = 1;
        if let Some(sent_at) = self.syn_sent_at.filter(|_| self.backoff == 0) {
            self.measure(now - sent_at);
        }
        self.established(now);
        self.open(seg, payload, now);
    }

    fn send_syn_again(&mut self, now: Time) {
        let rto_at = self.rto_at;
        self.send_syn(now);
        self.rto_at = rto_at;
        // Which of the two is answered, nobody can tell (RFC 6298 section 3).
        self.syn_sent_at = None;
    }

    fn time_wait(&mut self, seg: &Seg, now: Time) {
        let seq = Tcp::position(self.peer_isn, seg.seq, self.rcv_nxt);
        if seg.flags.rst() {
            if seq == self.rcv_nxt {
                self.end(End::Done);
            }
            return;
        }
        if seg.len > 0 || seg.flags.fin() || seg.flags.syn() || seq != self.rcv_nxt {
            self.dup_ack(now);
        }
    }

    fn open(&mut self, seg: &Seg, payload: &[u8], now: Time) {
        let seq = Tcp::position(self.peer_isn, seg.seq, self.rcv_nxt);
        let len = i64::from(seg.len);
        let end = seq + len + i64::from(seg.flags.fin()) + i64::from(seg.flags.syn());
        if let Some((value, _)) = seg.timestamp
            && self.stamps
            && !seg.flags.rst()
            && (value.wrapping_sub(self.recent) as i32) < 0
        {
            // PAWS. Old bare ACKs that were overtaken want no answer.
            if end > seq {
                self.note_duplicate(seq, end);
                self.ack(now);
            } else if seq != self.rcv_nxt {
                self.dup_ack(now);
            }
            return;
        }
        if end < self.acked || seq > self.rcv_edge.max(self.rcv_nxt) {
            if seg.flags.rst() {
                return;
            }
            if len > 0 || seg.flags.fin() {
                self.note_duplicate(seq, end);
                self.ack(now);
            } else {
                self.dup_ack(now);
            }
            return;
        }
        if seg.flags.rst() {
            // RFC 5961 section 3.2.
            if seq == self.rcv_nxt {
                self.end(End::Reset);
            } else {
                self.dup_ack(now);
            }
            return;
        }
        if seg.flags.syn() {
            self.dup_ack(now);
            return;
        }
        if !seg.flags.ack() {
            return;
        }
        let ack = Tcp::position(self.isn, seg.ack, self.una);
        if ack > self.nxt {
            return;
        }
        if ack < self.una - self.window_max.max(1) {
            self.dup_ack(now);
            return;
        }
        if let Some((value, _)) = seg.timestamp
            && self.stamps
            && seq <= self.acked
            && ack >= self.una
        {
            self.recent = value;
        }
        self.keep_tries = 0;
        if self.habits.keep_alive.is_some() {
            self.keep_at = self.habits.keep_alive.map(|pause| now + pause);
        }
        self.acknowledge(ack, seg, seq, now);
        // After close() nobody reads what comes (RFC 9293 section 3.6.1).
        if self.deaf && len > 0 && seq + len > self.rcv_nxt {
            self.abort(now);
            return;
        }
        if len > 0 || seg.flags.fin() {
            self.take(seq, payload, seg.flags.fin(), now);
        } else if seq < self.rcv_nxt && seq + 1 >= self.rcv_nxt {
            // A keep-alive or a probe of the window.
            self.ack_now = true;
        }
        self.step(now);
        if self.state == State::Open {
            self.push(now);
            if self.ack_now {
                self.ack(now);
            }
        } else if self.ack_now {
            self.ack(now);
        }
    }

    fn note_duplicate(&mut self, start: i64, end: i64) {
        if self.sacks && end <= self.rcv_nxt && start >= 1 && end > start {
            self.duplicate = Some((start, end));
        }
    }

    /// Takes payload, and a FIN behind it.
    fn take(&mut self, seq: i64, payload: &[u8], fin: bool, now: Time) {
        let end = seq + payload.len() as i64;
        self.largest = self.largest.max(payload.len() as i64);
        let edge = self.rcv_edge.max(self.rcv_nxt);
        if fin && end <= edge && !self.eof {
            self.fin_at = Some(self.fin_at.map_or(end, |at| at.min(end)));
        }
        let (from, to) = (seq.max(self.rcv_nxt), end.min(edge));
        if self.eof || (to <= from && !(fin && end >= self.rcv_nxt)) {
            self.note_duplicate(seq, end + i64::from(fin));
            self.ack_now = true;
            return;
        }
        if to > from {
            let cut = &payload[(from - seq) as usize..(to - seq) as usize];
            let true_bytes = self.is_true(from, cut);
            if from == self.rcv_nxt {
                self.corrupt |= !true_bytes;
                self.rcv_nxt = to;
            } else {
                self.keep(Island { start: from, end: to, true_bytes });
                self.newest_island = from;
                self.ack_now = true;
            }
        }
        self.join();
        if fin && end > self.rcv_nxt {
            self.ack_now = true;
        }
        if self.fin_at == Some(self.rcv_nxt) {
            self.rcv_nxt += 1;
            self.eof = true;
            self.eof_first = !self.fin_sent();
            self.islands.clear();
            self.ack_now = true;
        } else if self.fin_at.is_some_and(|at| at < self.rcv_nxt) {
            self.fin_at = None;
        }
        if !self.islands.is_empty() {
            self.ack_now = true;
        }
        if self.quick > 0 {
            self.quick -= 1;
            self.ack_now = true;
        }
        if self.rcv_nxt - self.acked >= 2 * self.largest {
            self.ack_now = true;
        } else if !self.ack_now && self.delack_at.is_none() {
            self.delack_at = Some(now + self.habits.delayed_ack);
        }
    }

    /// Keeps what is not kept yet of an island.
    fn keep(&mut self, island: Island) {
        let mut start = island.start;
        let mut gaps = Vec::new();
        for known in &self.islands {
            if known.end <= start {
                continue;
            }
            if known.start >= island.end {
                break;
            }
            if known.start > start {
                gaps.push(Island { start, end: known.start, ..island });
            }
            start = known.end;
        }
        if start < island.end {
            gaps.push(Island { start, ..island });
        }
        self.islands.extend(gaps);
        self.islands.sort_unstable_by_key(|island| island.start);
        // Neighbours become one.
        self.islands.dedup_by(|next, before| {
            let joined = before.end == next.start && before.true_bytes == next.true_bytes;
            if joined {
                before.end = next.end;
            }
            joined
        });
    }

    /// Takes islands that are in order now.
    fn join(&mut self) {
        while let Some(first) = self.islands.first().copied() {
            if first.start > self.rcv_nxt {
                break;
            }
            if first.end > self.rcv_nxt {
                self.corrupt |= !first.true_bytes;
                self.rcv_nxt = first.end;
            }
            self.islands.remove(0);
        }
    }
}
