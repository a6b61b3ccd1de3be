//! One worker: the packet's way. Receive, parse, filter, answer or hand to the stack, apply; then timers, letters from other
//! workers, and one offer to the devices. Everything here belongs to one core.
//!
//! A burst is walked twice. First every frame is parsed; what cannot belong to a flow (broken frames, opening SYNs) is judged
//! and done with, and of everything else the flow is hashed. Then the flows' cache lines are called for, and the rest is judged,
//! in the order of its arrival. A received frame is sent, handed over or freed in [`Worker::reply`], [`Worker::discard`] or
//! [`Worker::apply`], nowhere else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use sluice_filters::engine::Unseen;
use sluice_filters::gate::{Addressee, Came, Gate};
use sluice_filters::icmp::IcmpError;
use sluice_filters::units::{Micros, PortId, ServiceId, WorkerId};
use sluice_filters::{
    Datagram, DropReason, FRAGMENT_HEADER, L2, Parsed, RxChecksums, Segment, glance, parse, parse_then, src_mac,
    unwrap_atomic,
};
use sluice_tcpstack::stack::{Arrival, Outcome, Stack};

use crate::clock::Clock;
use crate::counters::WorkerCounters;
use crate::dpdk::{BURST, Burst, Frame, FreeList, RxQueue};
use crate::egress::Egress;
use crate::mailbox::{Letter, Mailboxes};
use crate::net::{NetAction, REPLY_ROOM};
use crate::orders::{Order, Orders};
use crate::runtime::Turn;
use crate::sample::Sampler;
use crate::steer::Steer;

/// Frames ahead whose first cache line is called for while one is parsed.
const PREFETCH: usize = 4;
/// Timers run a turn.
const TIMER_BUDGET: usize = 256;
/// Letters read a turn.
const MAILBOX_BUDGET: usize = 128;
/// Orders of the control plane followed a turn.
const ORDER_BUDGET: usize = 32;
/// Services whose changed promises are named at once.
const NEWS: usize = 16;
/// Turns without work before an idle worker naps.
const IDLE_TURNS: u32 = 1000;
/// How long it naps.
const NAP: Duration = Duration::from_micros(50);
/// How often gauges are brought up to date, microseconds.
const PUBLISH_EVERY: u64 = 50_000;

/// How the appliance as a whole stands; workers look once a turn.
#[derive(Debug, Default)]
pub(crate) struct Stage(AtomicU8);

impl Stage {
    const DRAINING: u8 = 1;
    const RESETTING: u8 = 2;

    /// No new connections.
    pub(crate) fn drain(&self) {
        self.0.fetch_max(Stage::DRAINING, Ordering::Relaxed);
    }

    /// Reset what is left.
    pub(crate) fn reset(&self) {
        self.0.fetch_max(Stage::RESETTING, Ordering::Relaxed);
    }
}

/// What to do with a received frame.
#[must_use = "an unapplied verdict leaks the frame"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It was rewritten: send its first so many octets back out of its port.
    Reply(usize),
    /// Its segment was rewritten: send it on, as the stack says.
    Forward,
    /// Its content was taken.
    Consumed,
    /// Its flow belongs to another worker.
    HandOver(WorkerId),
    /// Drop it.
    Drop(DropReason),
}

/// One worker. See the module.
pub(crate) struct Worker {
    id: WorkerId,
    clock: Clock,
    rx: Vec<Option<RxQueue>>,
    burst: Burst,
    later: Vec<Later>,
    free: FreeList,
    gate: Gate,
    stack: Stack,
    egress: Egress,
    steer: Arc<Steer>,
    mailboxes: Arc<Mailboxes>,
    orders: Orders,
    sampler: Option<Sampler>,
    counters: Arc<WorkerCounters>,
    stage: Arc<Stage>,
    drained: Arc<AtomicBool>,
    nap: bool,
    idle_turns: u32,
    published: Micros,
    busy: u64,
    last_turn: Micros,
    last_was_busy: bool,
}

/// A frame that the first pass leaves to the second.
struct Later {
    frame: Frame,
    parsed: Parsed,
    /// The flow's hash, where there may be a flow.
    hash: u64,
}

/// What a [`Worker`] is made of.
pub(crate) struct Parts {
    pub(crate) id: WorkerId,
    pub(crate) clock: Clock,
    pub(crate) rx: Vec<Option<RxQueue>>,
    pub(crate) gate: Gate,
    pub(crate) stack: Stack,
    pub(crate) egress: Egress,
    pub(crate) steer: Arc<Steer>,
    pub(crate) mailboxes: Arc<Mailboxes>,
    pub(crate) orders: Orders,
    pub(crate) sampler: Option<Sampler>,
    pub(crate) counters: Arc<WorkerCounters>,
    pub(crate) stage: Arc<Stage>,
    pub(crate) drained: Arc<AtomicBool>,
    pub(crate) nap: bool,
}

impl Turn for Worker {
    fn turn(&mut self) {
        let now = self.clock.now();
        self.egress.begin_turn(now);
        self.stack.begin_turn(now, self.clock.unix_time(now));

        let mut work = 0;
        for port in 0..self.rx.len() {
            work = self.receive(PortId(port as u8), now).saturating_add(work);
        }
        self.pass_on_answered();
        work = self.read_letters(now).saturating_add(work);
        work = self.follow_orders().saturating_add(work);
        self.stack.probe(now, &mut self.egress);
        self.stack.run_timers(now, TIMER_BUDGET, &mut self.egress);
        // A flood's answers leave first, so that they do not stand in the payload's way.
        self.egress.flush();
        self.stack.serve(now, &mut self.egress);
        self.egress.poll_neighbors();
        self.egress.flush();
        self.free.flush();

        self.follow_stage(now);
        self.account(now, work > 0);
    }

    fn finish(self) {}
}

impl Worker {
    pub(crate) fn new(parts: Parts) -> Worker {
        let now = parts.clock.now();
        let mut stack = parts.stack;
        if parts.steer.in_software() {
            stack.share_answered();
        }
        Worker {
            id: parts.id,
            clock: parts.clock,
            rx: parts.rx,
            burst: Burst::new(),
            later: Vec::with_capacity(BURST),
            free: FreeList::new(),
            gate: parts.gate,
            stack,
            egress: parts.egress,
            steer: parts.steer,
            mailboxes: parts.mailboxes,
            orders: parts.orders,
            sampler: parts.sampler,
            counters: parts.counters,
            stage: parts.stage,
            drained: parts.drained,
            nap: parts.nap,
            idle_turns: 0,
            published: now,
            busy: 0,
            last_turn: now,
            last_was_busy: false,
        }
    }

    /// One burst from `port`; the number of frames.
    fn receive(&mut self, port: PortId, now: Micros) -> usize {
        let Some(Some(rx)) = self.rx.get_mut(usize::from(port.0)) else { return 0 };
        let received = rx.burst(&mut self.burst);
        if received == 0 {
            return 0;
        }
        let octets = self.look(port, received, now);
        if let Some(counters) = self.counters.ports.get(usize::from(port.0)) {
            counters.rx_packets.add(received as u64);
            counters.rx_bytes.add(octets);
        }
        if self.later.is_empty() {
            return received;
        }
        // In a loop of its own: loads overlap only when nothing long stands between them.
        for later in &self.later {
            self.stack.touch(later.hash);
        }
        for later in &self.later {
            if let Parsed::Tcp(segment) = &later.parsed {
                self.stack.touch_session(later.hash, &segment.key);
            }
        }
        let mut later = std::mem::take(&mut self.later);
        for Later { mut frame, parsed, hash } in later.drain(..) {
            let verdict = self.judge(port, &mut frame, &parsed, hash, now);
            self.apply(port, frame, verdict);
        }
        self.later = later;
        received
    }

    /// The first pass; returns the octets received.
    fn look(&mut self, port: PortId, received: usize, now: Micros) -> u64 {
        let mut octets = 0;
        if self.stack.filters.looks_far() {
            octets = self.look_ahead(port, received, now);
        } else {
            for index in 0..received.min(PREFETCH) {
                self.burst.prefetch(index);
            }
        }
        for index in 0..received {
            self.burst.prefetch(index.wrapping_add(PREFETCH));
            let Some(frame) = self.burst.take(index) else { continue };
            octets = octets.wrapping_add(frame.len() as u64);
            if !frame.is_whole() {
                let reason = if frame.is_single_segment() { DropReason::Truncated } else { DropReason::MultiSegment };
                self.discard(port, frame, reason);
                continue;
            }
            let checksums = frame.checksums();
            parse_then(
                frame,
                checksums,
                // A segment that is judged here stays in registers.
                #[inline(always)]
                |mut frame, parsed| match parsed {
                    Ok(Parsed::Tcp(segment)) if segment.flags.is_initial_syn() => {
                        match self.syn(port, &mut frame, &segment, now) {
                            Ok(len) => self.reply(port, frame, len),
                            Err(reason) => self.discard(port, frame, reason),
                        }
                    }
                    Ok(parsed) => {
                        let hash = self.flow_hash(&parsed);
                        self.later.push(Later { frame, parsed, hash });
                    }
                    Err(DropReason::Fragment) => self.fragment(port, frame, now),
                    Err(reason) => self.discard(port, frame, reason),
                },
            );
        }
        octets
    }

    /// A fragment: one that is the whole packet is an ordinary one.
    #[cold]
    fn fragment(&mut self, port: PortId, mut frame: Frame, now: Micros) {
        if !unwrap_atomic(frame.data_mut()) || !frame.adj(FRAGMENT_HEADER) {
            return self.discard(port, frame, DropReason::Fragment);
        }
        match parse(frame.data(), frame.checksums()) {
            Ok(Parsed::Tcp(segment)) if segment.flags.is_initial_syn() => {
                match self.syn(port, &mut frame, &segment, now) {
                    Ok(len) => self.reply(port, frame, len),
                    Err(reason) => self.discard(port, frame, reason),
                }
            }
            Ok(Parsed::Tcp(segment)) => {
                let hash = self.stack.hash(&segment.key);
                let verdict = self.unfragmented(port, &mut frame, &segment, hash, now).unwrap_or_else(Verdict::Drop);
                self.apply(port, frame, verdict);
            }
            Ok(_) => self.discard(port, frame, DropReason::Fragment),
            Err(reason) => self.discard(port, frame, reason),
        }
    }

    /// As [`Worker::tcp`], but devices spread fragments by their addresses alone: the owner may be another worker.
    fn unfragmented(
        &mut self,
        port: PortId,
        frame: &mut Frame,
        segment: &Segment,
        hash: u64,
        now: Micros,
    ) -> Result<Verdict, DropReason> {
        let service = match self.admit(port, frame, segment, now)? {
            Addressee::Service(service) => Some(service),
            Addressee::Dialler => None,
        };
        let owner = self.steer.owner(&segment.key, hash, port, service.is_some(), self.id);
        self.deliver(owner, port, frame, segment, hash, service, now)
    }

    /// Drops what its source alone condemns, and calls near what the verdicts on the rest will look at; returns the octets dropped.
    fn look_ahead(&mut self, port: PortId, received: usize, now: Micros) -> u64 {
        let mut octets = 0_u64;
        for index in 0..received {
            self.burst.prefetch(index);
        }
        // In a loop of its own: loads overlap only when nothing long stands between them.
        for index in 0..received {
            let Some(glimpse) = self.burst.get(index).and_then(|frame| glance(frame.data())) else { continue };
            if let Some(foregone) = self.stack.filters.foresee(&glimpse, now)
                && self.gate.services().get(glimpse.dst, glimpse.dst_port).is_some()
                && self.gate.source(glimpse.src, Some(port)).is_ok()
                && let Some(frame) = self.burst.take(index)
            {
                octets = octets.wrapping_add(frame.len() as u64);
                let reason = self.stack.filters.forego(foregone, glimpse.ip_length);
                self.discard(port, frame, reason);
            }
        }
        octets
    }

    /// The hash of a segment's flow; 0 for what has none.
    #[inline]
    fn flow_hash(&self, parsed: &Parsed) -> u64 {
        if let Parsed::Tcp(segment) = parsed { self.stack.hash(&segment.key) } else { 0 }
    }

    /// What a frame is, and what becomes of it.
    fn judge(&mut self, port: PortId, frame: &mut Frame, parsed: &Parsed, hash: u64, now: Micros) -> Verdict {
        match parsed {
            Parsed::Tcp(segment) => match self.tcp(port, frame, segment, hash, now) {
                Ok(verdict) => verdict,
                Err(reason) => Verdict::Drop(reason),
            },
            Parsed::Arp(l2) => self.arp(port, frame, *l2, now),
            Parsed::Icmp(packet) => match IcmpError::read(frame.data(), packet) {
                Some(error) => self.icmp_error(port, frame, packet, &error, now),
                None => self.local(frame, |egress, octets, _| egress.net.icmp(port, octets, packet, now)),
            },
            Parsed::Icmp6(packet) => match IcmpError::read(frame.data(), packet) {
                Some(error) => self.icmp_error(port, frame, packet, &error, now),
                None => self.icmp6(port, frame, packet, now),
            },
        }
    }

    /// An opening SYN: filters, then the cookie's SYN-ACK in the same frame; returns its length.
    #[inline(always)]
    fn syn(&mut self, port: PortId, frame: &mut Frame, segment: &Segment, now: Micros) -> Result<usize, DropReason> {
        let Addressee::Service(service) = self.admit(port, frame, segment, now)? else {
            return Err(DropReason::NotAService);
        };
        self.stack.filters.answer(segment.key.src, now)?;
        let mac = self.egress.net.port(port).ok_or(DropReason::NotOurs)?.mac;
        self.stack.answer_syn(frame.buffer_mut(), segment, service, port, mac)
    }

    /// Other TCP: filters, or that it is an upstream's, then the stack.
    #[inline]
    fn tcp(
        &mut self,
        port: PortId,
        frame: &mut Frame,
        segment: &Segment,
        hash: u64,
        now: Micros,
    ) -> Result<Verdict, DropReason> {
        let (service, owner) = match self.admit(port, frame, segment, now)? {
            Addressee::Service(service) => (Some(service), self.steer.client(hash, self.id)),
            Addressee::Dialler => (None, self.steer.upstream(segment.key.dst_port, self.id)),
        };
        self.deliver(owner, port, frame, segment, hash, service, now)
    }

    /// Whom a segment is for, if it comes by the right way and the filters let it through.
    #[inline(always)]
    fn admit(&mut self, port: PortId, frame: &Frame, segment: &Segment, now: Micros) -> Result<Addressee, DropReason> {
        self.egress.net.accepts(port, frame.data(), segment.l2)?;
        let came = Came { port: Some(port), frame: frame.data(), now };
        self.gate.judge(&mut self.stack.filters, segment, came, &mut Unseen)
    }

    /// Gives a segment to its owner's stack.
    #[inline]
    #[allow(clippy::too_many_arguments, reason = "one packet's facts, each from another place")]
    fn deliver(
        &mut self,
        owner: WorkerId,
        port: PortId,
        frame: &mut Frame,
        segment: &Segment,
        hash: u64,
        service: Option<ServiceId>,
        now: Micros,
    ) -> Result<Verdict, DropReason> {
        if owner != self.id {
            return Ok(Verdict::HandOver(owner));
        }
        let arrival = Arrival {
            port,
            mac: src_mac(frame.data()).ok_or(DropReason::Truncated)?,
            unfinished: frame.tcp_checksum_unfinished(),
        };
        match self.stack.segment(segment, frame.data_mut(), hash, arrival, service, now, &mut self.egress)? {
            Outcome::Consumed => Ok(Verdict::Consumed),
            Outcome::Forward => Ok(Verdict::Forward),
        }
    }

    /// An ICMP error about a segment of ours: for the owner of that segment's flow.
    fn icmp_error(
        &mut self,
        port: PortId,
        frame: &Frame,
        packet: &Datagram,
        error: &IcmpError,
        now: Micros,
    ) -> Verdict {
        if let Err(reason) = self.egress.net.accepts(port, frame.data(), packet.l2) {
            return Verdict::Drop(reason);
        }
        if let Err(reason) = self.gate.error_about(packet.src, (error.key.src, error.key.src_port), port) {
            return Verdict::Drop(reason);
        }
        if !self.egress.net.may_hear_error(port, now) {
            return Verdict::Drop(DropReason::IcmpRate);
        }
        let hash = self.stack.hash(&error.key);
        let service = self.gate.services().get(error.key.dst, error.key.dst_port).is_some();
        let owner = self.steer.owner(&error.key, hash, port, service, self.id);
        if owner == self.id { self.heed_error(port, error, hash, now) } else { Verdict::HandOver(owner) }
    }

    /// An ICMP error about a segment of a flow of this worker's.
    fn heed_error(&mut self, port: PortId, error: &IcmpError, hash: u64, now: Micros) -> Verdict {
        match self.stack.icmp_error(error, hash, port, now, &mut self.egress) {
            Ok(()) => Verdict::Consumed,
            Err(reason) => Verdict::Drop(reason),
        }
    }

    fn arp(&mut self, port: PortId, frame: &mut Frame, l2: L2, now: Micros) -> Verdict {
        let (mailboxes, id) = (self.mailboxes.clone(), self.id);
        self.local(frame, |egress, octets, received| {
            // Only what was received: behind it stands what an earlier frame left in the buffer.
            let octets = octets.get_mut(..received).unwrap_or_default();
            egress.net.arp(port, octets, l2, now, &mut |learned| mailboxes.tell_others(id, learned))
        })
    }

    fn icmp6(&mut self, port: PortId, frame: &mut Frame, packet: &Datagram, now: Micros) -> Verdict {
        let (mailboxes, id) = (self.mailboxes.clone(), self.id);
        self.local(frame, |egress, octets, _| {
            egress.net.icmp6(port, octets, packet, now, &mut |learned| mailboxes.tell_others(id, learned))
        })
    }

    /// Lets layers 2 and 3 answer in the frame, with room for the longest answer.
    fn local(
        &mut self,
        frame: &mut Frame,
        serve: impl FnOnce(&mut Egress, &mut [u8], usize) -> Result<NetAction, DropReason>,
    ) -> Verdict {
        let received = frame.len();
        if !frame.set_len(received.max(REPLY_ROOM)) {
            return Verdict::Drop(DropReason::Truncated);
        }
        match serve(&mut self.egress, frame.data_mut(), received) {
            Ok(NetAction::Reply(len)) => {
                self.counters.local_replies.bump();
                Verdict::Reply(len)
            }
            Ok(NetAction::Consumed) => Verdict::Consumed,
            Err(reason) => {
                // The room behind what was received holds earlier frames' octets, which are none of a sample's.
                let _ = frame.set_len(received);
                Verdict::Drop(reason)
            }
        }
    }

    /// Sends a frame that was rewritten back out of its port.
    #[inline(always)]
    fn reply(&mut self, port: PortId, mut frame: Frame, len: usize) {
        // An answer that does not fit its frame was not written.
        if frame.set_len(len) {
            self.egress.answer(port, frame);
        }
    }

    /// Counts a received frame of so many octets as dropped.
    #[inline]
    fn count_drop(&self, reason: DropReason, len: usize) {
        self.egress.count_drop(reason);
        if let Some(octets) = self.counters.dropped_bytes.get(reason.index()) {
            octets.add(len as u64);
        }
    }

    /// Drops a frame.
    #[inline]
    fn discard(&mut self, port: PortId, frame: Frame, reason: DropReason) {
        self.count_drop(reason, frame.len());
        if let Some(sampler) = &mut self.sampler {
            let by_rule = matches!(reason, DropReason::Rule | DropReason::RuleLimit);
            let rule = self.stack.filters.rule().filter(|_| by_rule);
            sampler.offer(frame.data(), port, reason, rule, self.last_turn);
        }
        self.free.push(frame);
    }

    /// Sends, hands over or frees a received frame.
    fn apply(&mut self, port: PortId, frame: Frame, verdict: Verdict) {
        match verdict {
            Verdict::Reply(len) => self.reply(port, frame, len),
            Verdict::Forward => self.egress.forward(frame, self.stack.forward()),
            Verdict::Consumed => self.free.push(frame),
            Verdict::HandOver(owner) => {
                self.counters.handed_over.bump();
                let len = frame.len();
                let exempt = self.stack.filters.exempt();
                let letter = Letter::Received { frame: frame.into(), port, exempt, by: self.id };
                if self.mailboxes.post(owner, letter).is_err() {
                    self.counters.handover_full.bump();
                    self.count_drop(DropReason::HandoverFull, len);
                }
            }
            Verdict::Drop(reason) => self.discard(port, frame, reason),
        }
    }

    /// What there is to note of answered SYNs goes to their flows' owners, where all that follows a SYN will be.
    fn pass_on_answered(&mut self) {
        while let Some((hash, record)) = self.stack.next_answered() {
            let owner = self.steer.client(hash, self.id);
            if owner == self.id {
                self.stack.keep_answered(record);
            } else if self.mailboxes.post(owner, Letter::Answered(record)).is_err() {
                self.stack.miss_answered();
            }
        }
    }

    /// Letters from other workers.
    fn read_letters(&mut self, now: Micros) -> usize {
        let mut read = 0;
        while read < MAILBOX_BUDGET {
            let Some(letter) = self.mailboxes.next(self.id) else { break };
            read = read.wrapping_add(1);
            match letter {
                Letter::Received { frame, port, exempt, by } => {
                    let mut frame = Frame::from(frame);
                    let verdict = match parse(frame.data(), RxChecksums::GOOD) {
                        Ok(parsed) => self.resume(port, &mut frame, &parsed, exempt, by, now),
                        Err(reason) => Verdict::Drop(reason),
                    };
                    self.apply(port, frame, verdict);
                }
                Letter::Transmit(transfer, port) => self.egress.stage(port, Frame::from(transfer)),
                Letter::Learned(learned) => self.egress.learn(&learned),
                Letter::Answered(record) => self.stack.keep_answered(record),
                Letter::Proved(client) => {
                    self.stack.filters.verified(client, now);
                    self.stack.syn_was_honest();
                }
            }
        }
        read
    }

    /// Goes on with a frame that its receiver has looked at and its filters have let through.
    fn resume(
        &mut self,
        port: PortId,
        frame: &mut Frame,
        parsed: &Parsed,
        exempt: Option<u16>,
        by: WorkerId,
        now: Micros,
    ) -> Verdict {
        let segment = match parsed {
            Parsed::Tcp(segment) => segment,
            // Its receiver has looked at its source, and counted it.
            Parsed::Icmp(packet) | Parsed::Icmp6(packet) => {
                return match IcmpError::read(frame.data(), packet) {
                    Some(error) => self.heed_error(port, &error, self.stack.hash(&error.key), now),
                    None => Verdict::Drop(DropReason::BadIcmp),
                };
            }
            Parsed::Arp(_) => return Verdict::Drop(DropReason::NotOurs),
        };
        let hash = self.stack.hash(&segment.key);
        self.stack.filters.resume(exempt);
        let service = self.gate.services().get(segment.key.dst, segment.key.dst_port);
        let delivered = self.deliver(self.id, port, frame, segment, hash, service, now);
        if let Some(client) = self.stack.filters.proved_client() {
            let _ = self.mailboxes.post(by, Letter::Proved(client));
        }
        match delivered {
            Ok(verdict) => verdict,
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// What the control plane wants.
    fn follow_orders(&mut self) -> usize {
        let mut followed = 0;
        while followed < ORDER_BUDGET
            && let Some(order) = self.orders.next(self.id)
        {
            followed = followed.wrapping_add(1);
            match order {
                // One there is no room for is counted.
                Order::Ban { prefix, until, reason } => _ = self.stack.filters.ban(prefix, until, reason),
                Order::Unban(prefix) => _ = self.stack.filters.unban(prefix),
                // The control plane holds the old one too, and frees it.
                Order::Replace(plan) => drop(self.stack.filters.replace(plan)),
            }
        }
        followed
    }

    /// Drain and reset, when the appliance stops.
    fn follow_stage(&mut self, now: Micros) {
        let stage = self.stage.0.load(Ordering::Relaxed);
        if stage == 0 {
            return;
        }
        self.stack.drain();
        if stage == Stage::RESETTING && self.stack.sessions() > 0 {
            self.stack.reset_some(now, &mut self.egress);
            self.egress.flush();
        }
        if self.stack.sessions() == 0 {
            self.drained.store(true, Ordering::Release);
        }
    }

    /// Says whose SYN-ACKs promise something else now: of many services the first, and how many more.
    fn tell_changed_offers(&mut self) {
        // All workers learn the same; one says so.
        let silent = self.id != WorkerId(0);
        for _ in 0..if silent { 0 } else { NEWS } {
            let Some((service, promise)) = self.stack.changed_offer() else { return };
            tracing::info!(service, promise, "what SYN-ACKs promise has changed");
        }
        let more = self.stack.forget_changed_offers();
        if more > 0 && !silent {
            tracing::info!(
                more,
                "what SYN-ACKs promise has changed for more services; sluice_syn_ack_mss and others show it"
            );
        }
    }

    /// Gauges, the busy ratio, and the nap of an idle worker in a lab.
    fn account(&mut self, now: Micros, worked: bool) {
        let counters = &self.counters;
        counters.turns.bump();
        self.stack.filters.sweep(now);
        if self.last_was_busy {
            let took = now.0.saturating_sub(self.last_turn.0);
            self.busy = self.busy.saturating_add(took);
            counters.turn_times.note(took);
        }
        self.last_turn = now;
        self.last_was_busy = worked;
        if worked {
            counters.busy_turns.bump();
            self.idle_turns = 0;
        } else {
            self.idle_turns = self.idle_turns.saturating_add(1);
        }
        let elapsed = now.0.saturating_sub(self.published.0);
        if elapsed >= PUBLISH_EVERY {
            counters.busy_ppm.set(self.busy.saturating_mul(1_000_000).checked_div(elapsed).unwrap_or(0));
            counters.mailbox_occupancy.set(self.mailboxes.waiting(self.id) as u64);
            self.busy = 0;
            self.published = now;
            self.stack.publish(now);
            self.tell_changed_offers();
            self.egress.publish();
        }
        if self.nap && self.idle_turns > IDLE_TURNS {
            std::thread::sleep(NAP);
        }
    }
}
