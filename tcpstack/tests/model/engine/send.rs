//! Sending: what goes out and when, and what goes out again.

use sluice_filters::Flags;

use super::super::Time;
use super::{Chunk, Emitted, End, MS, RTO_MIN, Repack, State, Tcp};

/// Segments above one that were selectively acknowledged before it counts as lost.
const DUP_THRESHOLD: usize = 3;

/// Timeouts without progress after which segments are made smaller, as Linux does with `net.ipv4.tcp_mtu_probing` on.
const BLACK_HOLE: u32 = 3;

impl Tcp {
    fn in_flight(&self) -> i64 {
        self.sent.iter().filter(|chunk| !chunk.sacked && !chunk.lost).map(Chunk::len).sum()
    }

    /// Sends all that may be sent: what was lost, then what is new.
    pub(super) fn push(&mut self, now: Time) {
        if self.state != State::Open {
            return;
        }
        let mut flight = self.in_flight();
        while let Some(index) = self.sent.iter().position(|chunk| chunk.lost && !chunk.sacked) {
            if flight > 0 && flight + self.sent[index].len() > self.cwnd {
                break;
            }
            self.resend(index, now);
            flight = self.in_flight();
        }
        let behind = self.written + i64::from(self.closing);
        while self.nxt < behind {
            let mss = self.mss();
            let left = self.written - self.nxt;
            let room = self.window_edge - self.nxt;
            let len = left.min(mss).min(room).max(0);
            let whole = len == left.min(mss);
            // Part of a segment waits for the window, unless that never was wide (RFC 9293 section 3.8.6.2.1).
            if !whole && len < (self.window_max / 2).max(1) {
                break;
            }
            let last = len == left;
            if last && len < mss && self.habits.nagle && !self.closing && !self.sent.is_empty() {
                break;
            }
            let fin = self.closing && last && room > len;
            if len == 0 && !fin {
                break;
            }
            if flight > 0 && flight + len > self.cwnd {
                break;
            }
            self.emit_new(len, fin, now);
            flight += len + i64::from(fin);
        }
        if self.sent.is_empty() && self.nxt < behind {
            if self.persist_at.is_none() {
                self.persist_at = Some(now + self.pause());
            }
        } else {
            self.persist_at = None;
        }
        if self.sent.is_empty() {
            (self.rto_at, self.tlp_at) = (None, None);
        }
    }

    fn emit_new(&mut self, len: i64, fin: bool, now: Time) {
        let start = self.nxt;
        let end = start + len + i64::from(fin);
        let times = 1;
        self.sent.push_back(Chunk { start, end, fin, sent_at: now, times, sacked: false, lost: false });
        self.nxt = end;
        self.emit(start, len, fin, now);
        if self.rto_at.is_none() {
            self.rto_at = Some(now + self.pause());
        }
        self.arm_tail_probe(now);
    }

    fn emit(&mut self, start: i64, len: i64, fin: bool, now: Time) {
        let mut flags = Flags::ACK;
        if fin {
            flags = flags | Flags::FIN;
        }
        if len > 0 && start + len == self.written {
            flags = flags | Flags::PSH;
        }
        // Options may have grown since the cut was made.
        let seg = self.segment(flags, start, len, now);
        self.out.push(Emitted { seg, from: Some((start - 1) as u64) });
    }

    /// Sends a chunk again, cut as this end repacks and as its segments' size is now.
    fn resend(&mut self, index: usize, now: Time) {
        let mss = self.mss();
        let payload = |chunk: &Chunk| chunk.len() - i64::from(chunk.fin);
        if payload(&self.sent[index]) > mss {
            self.split(index, mss);
        }
        while self.habits.repack != Repack::Never && index + 1 < self.sent.len() {
            let (this, next) = (self.sent[index], self.sent[index + 1]);
            let room = mss - payload(&this);
            if next.sacked || this.fin || next.end > self.window_edge || (room <= 0 && payload(&next) > 0) {
                break;
            }
            if payload(&next) > room {
                if self.habits.repack == Repack::Whole {
                    break;
                }
                self.split(index + 1, room);
            }
            let next = self.sent.remove(index + 1).expect("there is a next one");
            let this = &mut self.sent[index];
            this.end = next.end;
            this.fin = next.fin;
            this.times = this.times.max(next.times);
        }
        let chunk = &mut self.sent[index];
        chunk.lost = false;
        chunk.sent_at = now;
        chunk.times += 1;
        let (start, len, fin) = (chunk.start, payload(chunk), chunk.fin);
        self.emit(start, len, fin, now);
        if self.rto_at.is_none() {
            self.rto_at = Some(now + self.pause());
        }
    }

    /// Splits a chunk after so many bytes; a FIN stays with the second part.
    fn split(&mut self, index: usize, len: i64) {
        let chunk = self.sent[index];
        let at = chunk.start + len;
        self.sent[index] = Chunk { end: at, fin: false, ..chunk };
        self.sent.insert(index + 1, Chunk { start: at, ..chunk });
    }

    /// What to wait before the next retransmission or probe.
    pub(super) fn pause(&self) -> Time {
        (self.rto << self.backoff.min(16)).min(self.habits.rto_max.max(self.rto))
    }

    fn arm_tail_probe(&mut self, now: Time) {
        if !self.sacks || self.srtt == 0 || self.recover.is_some() || self.backoff > 0 || self.probed {
            self.tlp_at = None;
            return;
        }
        // RFC 8985 section 7.2; Linux allows a lone segment's ACK its least delay.
        let mut pause = (2 * self.srtt).max(2 * MS);
        if self.sent.len() == 1 {
            pause += RTO_MIN;
        }
        self.tlp_at = Some(now + pause).filter(|at| self.rto_at.is_none_or(|rto| *at < rto));
    }

    pub(super) fn probe_tail(&mut self, now: Time) {
        if self.state != State::Open || self.sent.is_empty() {
            return;
        }
        self.probed = true;
        let mss = self.mss();
        let left = (self.written - self.nxt).min(mss);
        if left > 0 && self.nxt + left <= self.window_edge {
            let fin = self.closing && self.nxt + left == self.written && self.nxt + left < self.window_edge;
            self.emit_new(left, fin, now);
        } else if let Some(index) = self.sent.iter().rposition(|chunk| !chunk.sacked) {
            self.resend(index, now);
        }
        self.rto_at = Some(now + self.pause());
    }

    pub(super) fn retransmission_due(&mut self, now: Time) {
        self.retries += 1;
        if self.retries > self.habits.retries {
            self.end(End::Timeout);
            return;
        }
        self.backoff += 1;
        if matches!(self.state, State::SynSent | State::SynReceived) {
            self.send_syn(now);
            return;
        }
        if self.state != State::Open || self.sent.is_empty() {
            return;
        }
        let (times, since) = self.stuck;
        self.stuck = if since == self.una { (times + 1, since) } else { (1, self.una) };
        if self.stuck.0 >= BLACK_HOLE {
            self.path_mss = self.path_mss.min(1_000);
        }
        let mss = self.mss();
        if self.recover.is_none() {
            self.ssthresh = (self.in_flight() / 2).max(2 * mss);
        }
        self.recover = Some(self.nxt);
        self.cwnd = mss;
        self.duplicates = 0;
        self.probed = false;
        self.tlp_at = None;
        // What was selectively acknowledged may have been given up again (RFC 2018 section 8).
        for chunk in &mut self.sent {
            (chunk.sacked, chunk.lost) = (false, true);
        }
        self.resend(0, now);
        self.push(now);
        self.rto_at = Some(now + self.pause());
    }

    pub(super) fn probe_window(&mut self, now: Time) {
        if self.state != State::Open || !self.sent.is_empty() {
            return;
        }
        self.retries += 1;
        if self.retries > self.habits.retries {
            self.end(End::Timeout);
            return;
        }
        self.backoff += 1;
        let room = self.window_edge - self.nxt;
        let left = self.written - self.nxt;
        if left > 0 && room > 0 {
            let len = left.min(room).min(self.mss());
            let fin = self.closing && len == left && room > len;
            self.emit_new(len, fin, now);
        } else if room > 0 && self.closing && left == 0 {
            self.emit_new(0, true, now);
        } else if self.habits.probe_with_byte && left > 0 {
            self.emit_new(1, false, now);
        } else {
            let at = self.una - 1;
            let seg = self.segment(Flags::ACK, at, 0, now);
            self.out.push(Emitted { seg, from: None });
        }
        if self.sent.is_empty() {
            self.persist_at = Some(now + self.pause());
        }
    }

    /// Takes an acknowledgment in.
    pub(super) fn acknowledge(&mut self, ack: i64, seg: &super::super::wire::Seg, seq: i64, now: Time) {
        let advanced = ack > self.una;
        let window = i64::from(seg.window) << self.peer_shift;
        let mut sample = None;
        let mut delivered = 0;
        if advanced {
            self.retries = 0;
            self.una = ack;
            while let Some(chunk) = self.sent.front_mut() {
                if chunk.end > ack {
                    if chunk.start < ack {
                        chunk.start = ack;
                    }
                    break;
                }
                let chunk = *chunk;
                self.sent.pop_front();
                if !chunk.sacked {
                    delivered += chunk.len();
                    sample = self.delivered(&chunk, now).or(sample);
                }
            }
        }
        // RFC 9293 section 3.10.7.4: the newest segment tells the window.
        let duplicate = !advanced
            && window == self.window
            && seg.len == 0
            && !seg.flags.fin()
            && !self.sent.is_empty()
            && ack == self.una;
        if ack >= self.una && (advanced || seq > self.window_seq || (seq == self.window_seq && window > self.window)) {
            self.set_window(window, seq);
        }
        if !advanced && ack == self.una {
            // A peer that answers is there.
            self.retries = 0;
        }
        if self.sacks {
            for &(left, right) in seg.sacks.as_slice() {
                let left = Tcp::position(self.isn, left, self.una);
                let right = Tcp::position(self.isn, right, self.una);
                if left <= self.una || right <= left || right > self.nxt {
                    continue;
                }
                for index in 0..self.sent.len() {
                    let chunk = self.sent[index];
                    if !chunk.sacked && left <= chunk.start && chunk.end <= right {
                        self.sent[index].sacked = true;
                        self.sent[index].lost = false;
                        delivered += chunk.len();
                        sample = self.delivered(&chunk, now).or(sample);
                    }
                }
            }
        }
        if let Some(rtt) = sample {
            self.measure(rtt);
        }
        if advanced {
            self.backoff = 0;
            self.probed = false;
            self.rto_at = (!self.sent.is_empty()).then(|| now + self.pause());
            match self.recover {
                Some(recover) if ack >= recover => {
                    self.recover = None;
                    self.duplicates = 0;
                    self.cwnd = self.cwnd.max(self.ssthresh.min(10 * self.mss()));
                }
                Some(_) => {
                    // A partial acknowledgment: what comes next is lost too (RFC 6582).
                    if !self.sacks
                        && let Some(first) = self.sent.front_mut()
                        && first.sent_at + self.srtt <= now
                    {
                        first.lost = true;
                    }
                    if self.cwnd < self.ssthresh {
                        self.cwnd += delivered;
                    }
                }
                None => {
                    self.duplicates = 0;
                    let mss = self.mss();
                    self.cwnd += if self.cwnd < self.ssthresh { delivered } else { mss * delivered / self.cwnd.max(1) };
                    self.cwnd = self.cwnd.min(1 << 24);
                }
            }
            self.arm_tail_probe(now);
        } else if duplicate {
            self.duplicates += 1;
            if !self.sacks && self.duplicates == 3 && self.recover.is_none() {
                if let Some(first) = self.sent.front_mut() {
                    first.lost = true;
                }
                self.recovery();
            }
        }
        if self.sacks && !self.sent.is_empty() {
            self.find_losses(now);
        }
        if self.persist_at.is_some() && self.window_edge > self.nxt {
            self.backoff = 0;
        }
    }

    /// A chunk arrived: what it tells of the round trip, and of those sent before it.
    fn delivered(&mut self, chunk: &Chunk, now: Time) -> Option<Time> {
        let rtt = now - chunk.sent_at;
        if chunk.times > 1 && rtt < self.min_rtt {
            return None;
        }
        self.rack_sent_at = self.rack_sent_at.max(chunk.sent_at);
        // One that was given up may have arrived long ago.
        (chunk.times == 1 && !chunk.lost).then_some(rtt)
    }

    pub(super) fn measure(&mut self, rtt: Time) {
        let rtt = rtt.max(1);
        self.min_rtt = self.min_rtt.min(rtt);
        if self.srtt == 0 {
            (self.srtt, self.rttvar) = (rtt, rtt / 2);
        } else {
            self.rttvar = (3 * self.rttvar + self.srtt.abs_diff(rtt)) / 4;
            self.srtt = (7 * self.srtt + rtt) / 8;
        }
        self.rto = (self.srtt + (4 * self.rttvar).max(RTO_MIN)).min(self.habits.rto_max.max(RTO_MIN));
    }

    fn recovery(&mut self) {
        if self.recover.is_none() {
            let mss = self.mss();
            self.ssthresh = (self.cwnd / 2).max(2 * mss);
            self.cwnd = self.ssthresh;
            self.recover = Some(self.nxt);
            self.tlp_at = None;
        }
    }

    /// Says which chunks are lost: three later ones arrived, or one that was sent long enough after (RFC 8985).
    pub(super) fn find_losses(&mut self, now: Time) {
        let reorder = (self.min_rtt.min(self.srtt) / 4).max(MS);
        let mut above = self.sent.iter().filter(|chunk| chunk.sacked).count();
        self.reorder_at = None;
        let mut found = false;
        for chunk in &mut self.sent {
            if chunk.sacked {
                above -= 1;
                continue;
            }
            if chunk.lost {
                continue;
            }
            let late = chunk.sent_at + self.srtt + reorder;
            let older = chunk.sent_at < self.rack_sent_at;
            if (chunk.times == 1 && above >= DUP_THRESHOLD) || (older && late <= now) {
                chunk.lost = true;
                found = true;
            } else if older {
                self.reorder_at = Some(self.reorder_at.map_or(late, |at| at.min(late)));
            }
        }
        if found {
            self.recovery();
        }
    }

    /// A router says that segments are too big for it.
    pub fn too_big(&mut self, mss: i64, number: u32, now: Time) {
        let at = Tcp::position(self.isn, number, self.una);
        if self.state != State::Open || at < self.una || at > self.nxt || mss >= self.path_mss {
            return;
        }
        self.path_mss = mss.max(500);
        let most = self.mss();
        for chunk in &mut self.sent {
            if !chunk.sacked && chunk.len() > most {
                chunk.lost = true;
            }
        }
        self.push(now);
    }
}
