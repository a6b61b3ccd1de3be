//! What is done only while little comes: SYN-ACKs are repeated, keep-alive probes may prove a cookie, and segments of
//! no connection get a RST.
//!
//! A kernel does all of it always, and pays with memory and answers. Here a flood must not be able to ask for either,
//! so there is peace or pressure, each worker's own. Two gauges tell: SYNs that are answered, and segments of no
//! connection. What comes beyond a gauge's rate and burst ends the peace at once, within the burst of frames that
//! brings it; it returns when no more than half the rate came for two seconds. Under pressure a SYN's way is the same,
//! instruction for instruction, as if nothing of this existed.
//!
//! SYNs are answered by the worker that receives them, and everything else is its flow's owner's: so what is noted of
//! an answered SYN goes to the owner ([`Stack::next_answered`], [`Stack::keep_answered`]). Whatever is not noted, for
//! pressure or for a full letterbox, is told to all workers by its time: for two epochs from then on none of them
//! resets anybody.

use std::sync::atomic::Ordering;
use std::time::Duration;

use siphasher::sip::SipHasher13;
use sluice_config::{Config, Rate};
use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::icmp::{IcmpError, IcmpKind};
use sluice_filters::memory::{Ceiling, Quota, prefix};
use sluice_filters::units::{Micros, PortId, ServiceId};
use sluice_filters::{DropReason, Glimpse, Segment};

use super::{Arrival, FlowRef, Stack, count, send_bare};
use crate::answered::{Answered, Known};
use crate::cookie::Offer;
use crate::counters::Withheld;
use crate::net::{Lower, Way};
use crate::segment::{self, Direction, PACKET_MAX, SynSegment, TcpChecksum};
use crate::splice::End;
use crate::unanswered::{Record, Table};

/// SYN-ACKs repeated a turn at most.
const REPEATED: usize = 32;
/// Records that wait for their owners between two turns at most: what bursts of 32 frames from 32 ports bring.
const OUTBOX: usize = 1_024;
/// How long little has to come before pressure ends.
const CALM: Duration = Duration::from_secs(2);
/// An address that nobody has proved may have a tenth of what its prefix may.
const ADDRESS_SHARE: u64 = 10;

/// Tells peace from pressure by how much comes of one thing.
struct Gauge {
    /// So many in `every` microseconds.
    amount: u64,
    every: u64,
    /// What is left until pressure, in units of one `every`th of one; at most `most`.
    left: u64,
    most: u64,
    pressed: bool,
    /// How many had come when it was last looked at.
    seen: u64,
    looked: Micros,
    /// How many were taken back since.
    taken_back: u64,
}

impl Gauge {
    fn new(rate: &Rate, now: Micros) -> Gauge {
        let every = u64::try_from(rate.every.as_micros()).unwrap_or(u64::MAX).max(1);
        let most = rate.burst.saturating_mul(every);
        Gauge { amount: rate.amount, every, left: most, most, pressed: false, seen: 0, looked: now, taken_back: 0 }
    }

    /// One more; whether there is peace still.
    fn spend(&mut self) -> bool {
        match self.left.checked_sub(self.every) {
            Some(left) if !self.pressed => self.left = left,
            _ => self.pressed = true,
        }
        !self.pressed
    }

    /// One of those that came was none of what makes pressure.
    fn take_back(&mut self) {
        self.left = self.left.saturating_add(self.every).min(self.most);
        self.taken_back = self.taken_back.saturating_add(1);
    }

    /// Looks how many have come in all.
    fn look(&mut self, count: u64, now: Micros) {
        let elapsed = u64::try_from(now.since(self.looked).as_micros()).unwrap_or(u64::MAX);
        if self.pressed {
            if now.since(self.looked) < CALM {
                return;
            }
            let came = count.wrapping_sub(self.seen).saturating_sub(self.taken_back);
            if came.saturating_mul(2).saturating_mul(self.every) <= self.amount.saturating_mul(elapsed) {
                self.pressed = false;
                self.left = self.most;
            }
        } else {
            self.left = self.left.saturating_add(self.amount.saturating_mul(elapsed)).min(self.most);
        }
        (self.seen, self.looked, self.taken_back) = (count, now, 0);
    }
}

/// See the module.
pub(crate) struct Peace {
    repeats: bool,
    resets: bool,
    syns: Gauge,
    flowless: Gauge,
    /// Segments of no connection, ever.
    flowless_seen: u64,
    unanswered: Table,
    answered: Answered,
    repeats_by_prefix: Ceiling,
    repeats_by_address: Ceiling,
    resets_by_prefix: Ceiling,
    /// Flows may be another worker's: their records wait here.
    shared: bool,
    outbox: Vec<(u64, Record)>,
    /// When a record may be due.
    next: Micros,
    now: Micros,
}

impl Peace {
    /// As the configuration wants it. `key` is secret and this worker's own.
    pub(crate) fn new(config: &Config, key: [u64; 2], now: Micros) -> Peace {
        let peace = &config.peace;
        let own = |purpose: &[u8]| {
            let sip = SipHasher13::new_with_keys(key[0], key[1]);
            [sip.hash(purpose), sip.hash(&[purpose, purpose].concat())]
        };
        // Without a rate nobody is asked.
        let ceiling = |rate: Option<Rate>, purpose: &[u8]| {
            Ceiling::new(Quota::new(&rate.unwrap_or(const { Rate::per_second(1) })), own(purpose))
        };
        let share = peace.repeats.map(|rate| Rate {
            amount: rate.amount,
            every: rate.every.saturating_mul(ADDRESS_SHARE as u32),
            burst: (rate.burst / ADDRESS_SHARE).max(1),
        });
        let epoch = config.cookies.epoch;
        let all = peace.syns.amount.saturating_mul(epoch.as_secs());
        let an_epoch_s = all.checked_div(peace.syns.every.as_secs().max(1)).unwrap_or(all);
        Peace {
            repeats: peace.repeats.is_some(),
            resets: peace.resets.is_some(),
            syns: Gauge::new(&peace.syns, now),
            flowless: Gauge::new(&peace.flowless, now),
            flowless_seen: 0,
            unanswered: Table::new(peace.repeats.is_some()),
            answered: Answered::new(if peace.resets.is_some() { an_epoch_s.max(1) } else { 0 }, epoch, now),
            repeats_by_prefix: ceiling(peace.repeats, b"repeats of a prefix"),
            repeats_by_address: ceiling(share, b"repeats of an address"),
            resets_by_prefix: ceiling(peace.resets, b"resets of a prefix"),
            shared: false,
            outbox: Vec::new(),
            next: Micros(u64::MAX),
            now,
        }
    }

    /// Whether answered SYNs are noted.
    pub(crate) fn notes(&self) -> bool {
        (self.repeats || self.resets) && !self.syns.pressed
    }
}

impl Stack {
    /// Says that segments may be another worker's, so that what is noted of a SYN goes to its flow's owner.
    pub fn share_answered(&mut self) {
        self.peace.shared = true;
        self.peace.outbox.reserve(OUTBOX);
    }

    /// A SYN that was answered, for its flow's owner to [`Stack::keep_answered`]: the flow's keyed hash, and the
    /// record.
    pub fn next_answered(&mut self) -> Option<(u64, Record)> {
        self.peace.outbox.pop()
    }

    /// Notes a SYN that a worker has answered.
    pub fn keep_answered(&mut self, record: Record) {
        let Some(key) = self.key_of(&record) else { return };
        if !self.peace.notes() {
            return self.miss_answered();
        }
        self.note(self.flows.hash(&key), record);
    }

    /// Says that a SYN was answered and not noted: nobody is reset until its cookie is void.
    pub fn miss_answered(&self) {
        self.shared.unnoted.fetch_max(self.peace.now.0, Ordering::Relaxed);
    }

    /// The wall clock was set: a cookie of before it may be good for longer than its 4-tuple is remembered, by up to an epoch.
    pub(super) fn clock_was_set(&self, now: Micros) {
        self.shared.unnoted.fetch_max(now.after(self.config.cookies.epoch).0, Ordering::Relaxed);
    }

    fn note(&mut self, hash: u64, record: Record) {
        let now = self.peace.now;
        if self.peace.resets {
            self.peace.answered.note(hash);
        }
        if self.peace.repeats {
            self.peace.unanswered.keep(hash, record, now);
            self.peace.next = self.peace.next.min(self.peace.unanswered.next_due(now));
        }
    }

    /// A record's flow, as received.
    fn key_of(&self, record: &Record) -> Option<FlowKey> {
        let listen = self.listens.get(record.listen() as usize)?;
        let client = record.client();
        Some(FlowKey { src: client.addr, dst: listen.addr, src_port: client.port, dst_port: listen.port })
    }

    /// Answers a SYN while a note is to be made of it, or no answer is wanted.
    #[cold]
    #[inline(never)]
    pub(super) fn answer_with_care(
        &mut self,
        frame: &mut [u8],
        segment: &Segment,
        service: ServiceId,
        port: PortId,
        our_mac: [u8; 6],
    ) -> Result<usize, DropReason> {
        if self.draining {
            return Err(DropReason::Draining);
        }
        let len = self.answer(frame, segment, service, port, our_mac)?;
        if !self.peace.syns.spend() {
            // A flood: from the next SYN on none is noted.
            self.careful = false;
            self.miss_answered();
            return Ok(len);
        }
        let listen = self.listen_index.get(&(segment.key.dst, segment.key.dst_port)).copied();
        let record = frame.get(..len).zip(listen).and_then(|(answer, at)| Record::of(answer, segment, at, port));
        match record {
            Some(record) => {
                let hash = self.flows.hash(&segment.key);
                if !self.peace.shared {
                    self.note(hash, record);
                } else if self.peace.outbox.len() < OUTBOX {
                    self.peace.outbox.push((hash, record));
                } else {
                    self.miss_answered();
                }
            }
            None => self.miss_answered(),
        }
        Ok(len)
    }

    /// The beginning of a turn.
    pub(super) fn begin_peaceful_turn(&mut self, now: Micros) {
        self.peace.now = now;
    }

    /// Looks whether there is peace. A few times a second is enough.
    pub(super) fn feel_peace(&mut self, now: Micros) {
        let before = self.peace.syns.pressed;
        self.peace.answered.tick(now);
        self.peace.syns.look(self.counters.cookies_sent.get(), now);
        self.peace.flowless.look(self.peace.flowless_seen, now);
        let pressed = self.peace.syns.pressed;
        if before {
            // Up to now nothing was noted, and what was kept before is as old as the flood.
            self.shared.unnoted.fetch_max(now.0, Ordering::Relaxed);
            if !pressed {
                self.peace.unanswered.clear();
            }
        }
        if pressed {
            self.peace.next = Micros(u64::MAX);
        }
        self.careful = self.draining || self.peace.notes();
        let counters = &self.counters;
        counters.peace.set(u64::from(!self.draining && self.peace.notes()));
        counters.unanswered.set(if pressed { 0 } else { self.peace.unanswered.len() as u64 });
        counters.unanswered_displaced.set(self.peace.unanswered.displaced());
    }

    /// Repeats SYN-ACKs whose time has come. Cheap when there are none.
    pub(super) fn repeat_syn_acks<N: Lower>(&mut self, now: Micros, net: &mut N) {
        if now < self.peace.next {
            return;
        }
        if self.draining || self.peace.syns.pressed {
            self.peace.next = Micros(u64::MAX);
            return;
        }
        for _ in 0..REPEATED {
            let Some(record) = self.peace.unanswered.take_due(now) else { break };
            let Some(key) = self.key_of(&record) else { continue };
            let hash = self.flows.hash(&key);
            if !self.still_waits(hash, &key, &record, now) {
                continue;
            }
            let (port, mac) = record.origin();
            let way = Way::Reply { port, mac };
            if net.room(way) && self.may_repeat(key.src, now) {
                self.repeat(&key, &record, way, net);
                self.peace.unanswered.keep_on(hash, record, now);
            } else {
                self.counters.repeats_withheld.bump();
                self.peace.unanswered.keep_waiting(hash, record, now);
            }
        }
        self.peace.next = self.peace.unanswered.next_due(now);
    }

    /// Whether the ceilings of repeats allow one more. An address that nobody proved may be a victim's, whom a forger wrote into its SYNs; one
    /// that was proved may be many clients' (a NAT), who may have as many as their prefix.
    fn may_repeat(&mut self, source: Addr, now: Micros) -> bool {
        (self.filters.is_verified(source, now) || self.peace.repeats_by_address.charge(source, now))
            && self.peace.repeats_by_prefix.charge(prefix(source, 24, 48), now)
    }

    /// Whether nobody has proved or condemned the client since, and its cookie is good.
    fn still_waits(&self, hash: u64, key: &FlowKey, record: &Record, now: Micros) -> bool {
        let source = Glimpse { src: key.src, dst: key.dst, dst_port: key.dst_port, ip_length: 40, opens: true };
        // An older connection, or what is left of it, proves nothing of this one: its client may have lost its state.
        let flow = self.flows.find(hash, key).map(FlowRef::from_value);
        let proved = flow.is_some_and(|flow| self.first_number(flow).is_none_or(|first| first == record.cookie()));
        !proved
            && self.jar.check(key, record.isn(), record.cookie().plus(1)).is_some()
            && self.filters.foresee(&source, now).is_none()
    }

    /// Sends a SYN-ACK again: the same, but for the time.
    fn repeat<N: Lower>(&self, key: &FlowKey, record: &Record, way: Way, net: &mut N) {
        let (mss, window) = record.promised();
        let ahead = self.jar.ts_offset(key, record.isn(), record.cookie());
        let syn = SynSegment {
            key: *key,
            direction: Direction::ToPeer,
            isn: record.cookie(),
            mss,
            wscale: record.wscale(),
            sack: record.sack(),
            timestamp: record.echo().map(|_| self.timestamp_ms.wrapping_add(ahead)),
            window,
        };
        let mut packet = [0; PACKET_MAX];
        let (ack, echo) = (record.isn().plus(1), record.echo().unwrap_or(0));
        let len = segment::synthesize_syn_ack(&syn, ack, echo, &mut packet, TcpChecksum::Full);
        if let Some(bytes) = len.and_then(|len| packet.get(..len)) {
            net.send(way, bytes.len(), |out| out.copy_from_slice(bytes));
            self.counters.syn_acks_repeated.bump();
        }
    }

    /// A SYN that this worker may have answered was an honest one: its cookie came back. However many do, they are no flood.
    pub fn syn_was_honest(&mut self) {
        self.peace.syns.take_back();
    }

    /// The client of this flow has proved itself, or is gone: its SYN-ACK is not repeated.
    pub(super) fn forget_answered(&mut self, hash: u64, key: &FlowKey) {
        if let Some(listen) = self.listen_index.get(&(key.dst, key.dst_port)) {
            self.peace.unanswered.forget(hash, End { addr: key.src, port: key.src_port }, *listen);
        }
    }

    /// An ICMP error about a segment of no flow: about a SYN-ACK, or somebody's invention.
    ///
    /// # Errors
    /// [`DropReason::BadIcmp`] when no SYN-ACK of that number is kept.
    pub(crate) fn syn_ack_unreachable(&mut self, error: &IcmpError, hash: u64) -> Result<(), DropReason> {
        let key = &error.key;
        let listen = self.listen_index.get(&(key.dst, key.dst_port)).copied().ok_or(DropReason::BadIcmp)?;
        let record = self.peace.unanswered.find(hash, End { addr: key.src, port: key.src_port }, listen);
        let quoted = record.is_some_and(|record| record.cookie() == error.seq);
        if !quoted || !matches!(error.kind, IcmpKind::Unreachable(_)) {
            return Err(DropReason::BadIcmp);
        }
        self.forget_answered(hash, key);
        Ok(())
    }

    /// A client's RST without a flow: it does not want the SYN-ACK that it quotes by its number (RFC 9293 section
    /// 3.10.7.3).
    pub(super) fn unwanted(&mut self, hash: u64, segment: &Segment) {
        let key = &segment.key;
        let Some(listen) = self.listen_index.get(&(key.dst, key.dst_port)).copied() else { return };
        let record = self.peace.unanswered.find(hash, End { addr: key.src, port: key.src_port }, listen);
        if record.is_some_and(|record| segment.seq == record.isn().plus(1)) {
            self.forget_answered(hash, key);
        }
    }

    /// Counts a segment to a service that no connection and no cookie explains; whether there is peace.
    pub(super) fn count_flowless(&mut self) -> bool {
        self.peace.flowless_seen = self.peace.flowless_seen.wrapping_add(1);
        !self.peace.flowless.pressed && self.peace.flowless.spend()
    }

    /// What a keep-alive probe's cookie says: the segment is numbered one before what its sender sends next, which is
    /// still its first byte, and may carry one byte of no meaning (RFC 9293 section 3.8.4).
    pub(super) fn check_keep_alive(&self, segment: &Segment) -> Option<Offer> {
        let bare = segment.payload_len <= 1 && !segment.flags.fin();
        bare.then(|| self.jar.check(&segment.key, segment.seq, segment.ack)).flatten()
    }

    /// Resets who wrote to a service and belongs to no connection (RFC 9293 section 3.10.7.1), where that is safe.
    /// `peace` says that little of the kind comes.
    pub(super) fn reset_stranger<N: Lower>(
        &mut self,
        hash: u64,
        segment: &Segment,
        arrival: Arrival,
        peace: bool,
        net: &mut N,
    ) {
        if segment.flags.rst() || !self.peace.resets {
            return;
        }
        let now = self.peace.now;
        let unnoted = Micros(self.shared.unnoted.load(Ordering::Relaxed));
        let cookies_live = self.config.cookies.epoch.saturating_mul(2);
        let withheld = if !peace || self.peace.syns.pressed || self.draining {
            Some(Withheld::Pressure)
        } else if now < unnoted.after(cookies_live) {
            Some(Withheld::Unknown)
        } else if self.peace.answered.knows(hash) == Known::Answered {
            Some(Withheld::Answered)
        } else if !self.peace.resets_by_prefix.charge(prefix(segment.key.src, 24, 48), now) {
            Some(Withheld::Ceiling)
        } else {
            None
        };
        match withheld {
            Some(reason) => count(&self.counters.resets_withheld, reason as usize),
            None => {
                if let Some(reset) = segment::reset_for(segment) {
                    self.counters.resets_sent.bump();
                    self.counters.strangers_reset.bump();
                    send_bare(&reset, Way::Reply { port: arrival.port, mac: arrival.mac }, net);
                }
            }
        }
    }
}

/// A keep-alive probe as the ACK it stands for: numbered as its sender's next byte, without the byte of no meaning.
/// The frame says the same afterwards, checksums aside.
pub(super) fn as_ack(segment: &Segment, frame: &mut [u8]) -> Option<Segment> {
    let mut ack = *segment;
    ack.seq = segment.seq.plus(1);
    ack.payload_len = 0;
    segment::renumber(&ack, frame)?;
    Some(ack)
}
