//! Probes: what an upstream accepts, asked with numbers that nobody else knows.
//!
//! A probe is a handshake of our own that ends in a RST. Its first number and its timestamp are keyed (RFC 6528), its source port is
//! random, and its answer counts only on the port that the route points to; so no client, whose dials begin with numbers of its own
//! choice, can answer in the upstream's name. The first worker asks every upstream at start and then every `promise.probe`, and at
//! once, but at most once a second, when a worker's dial found less than was promised.
//!
//! The answer is left unanswered until the upstream repeats it. One that does not within [`LISTEN`] keeps nothing of a SYN: it
//! answers with cookies, and reads window scale and SACK out of the timestamp that the handshake's last ACK echoes.

use std::time::Duration;

use sluice_config::{Config, Mode, Service};
use sluice_filters::units::{Micros, Seq, ServiceId};
use sluice_filters::{DropReason, Flags, TcpOptions};

use super::promise::{Accepted, Offered};
use crate::counters::{DialFailure, ProbeResult};
use crate::net::Lower;
use crate::ports::Rest;
use crate::segment::{self, BareSegment, Direction, PACKET_MAX, SynSegment, TcpChecksum};
use crate::stack::ending::{Numbers, Target};
use crate::stack::ingress::Inbound;
use crate::stack::{FlowRef, Outcome, Stack, count, send_bare};
use crate::wheel::Wheel;

/// SYNs of one probe, and the pause between them.
const SYNS: u8 = 3;
const PAUSE: Duration = Duration::from_millis(300);
/// The window shift that probes offer; any will do.
const SCALE: u8 = 7;
/// An upstream that keeps a connection's beginning repeats its SYN-ACK sooner: Linux after one second, others after three at most.
const LISTEN: Duration = Duration::from_millis(3_200);
/// No upstream is asked more often.
const EVERY_MIN: Duration = Duration::from_secs(1);
/// Upstreams asked in one turn, and wishes heard: at the start all of a configuration's are due.
const ASKED: usize = 8;

/// A probe of one upstream.
pub(crate) struct Probe {
    service: ServiceId,
    upstream: u16,
    /// When it was asked last.
    begun: Option<Micros>,
    asked: Option<Asked>,
}

/// A probe's handshake.
#[derive(Clone, Copy)]
struct Asked {
    target: Target,
    isn: Seq,
    /// TSval of its SYNs.
    stamp: u32,
    syns: u8,
    /// The upstream's first number, and the RST that will end it.
    answer: Option<(Seq, BareSegment)>,
}

/// The probes of one worker.
pub(crate) struct Probes {
    all: Vec<Probe>,
    /// By service: where its upstreams' begin.
    first: Vec<Option<u32>>,
    /// When each is due, by its index.
    due: Wheel,
}

impl Probes {
    /// Of a configuration: every upstream of every spliced service that does not forgo them.
    pub(crate) fn of(config: &Config, now: Micros) -> Probes {
        let mut probes = Probes::none(now);
        for (service, id) in config.services.iter().zip(0_u16..) {
            let probed = service.mode == Mode::Splice && !service.promise.probe.is_zero();
            probes.first.push(probed.then_some(probes.all.len() as u32));
            if probed {
                let upstreams = (0_u16..).take(service.upstreams.len());
                probes.all.extend(upstreams.map(|upstream| Probe {
                    service: ServiceId(id),
                    upstream,
                    begun: None,
                    asked: None,
                }));
            }
        }
        for index in 0..probes.all.len() {
            probes.due.arm(index as u32, now);
        }
        probes
    }

    /// Somebody else's.
    pub(crate) fn none(now: Micros) -> Probes {
        Probes { all: Vec::new(), first: Vec::new(), due: Wheel::new(now) }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    fn get(&self, index: usize) -> Option<&Probe> {
        self.all.get(index)
    }

    fn get_mut(&mut self, index: usize) -> Option<&mut Probe> {
        self.all.get_mut(index)
    }

    /// That of an upstream.
    fn index(&self, service: ServiceId, upstream: u16) -> Option<usize> {
        let first = (*self.first.get(usize::from(service.0))?)? as usize;
        Some(first.saturating_add(usize::from(upstream))).filter(|index| *index < self.all.len())
    }

    /// The probe has something to do at `at`.
    fn wake(&mut self, index: usize, at: Micros) {
        self.due.arm(index as u32, at);
    }
}

impl Stack {
    /// Asks a few upstreams whose turn it is. Cheap when it is nobody's.
    pub fn probe<N: Lower>(&mut self, now: Micros, net: &mut N) {
        if self.probes.all.is_empty() {
            return;
        }
        for _ in 0..ASKED {
            let Some((service, upstream)) = self.shared.board.wish() else { break };
            if let Some(index) = self.probes.index(service, upstream) {
                self.hear_wish(index, now, net);
            }
        }
        let config = self.config.clone();
        let mut due = std::mem::take(&mut self.due);
        self.probes.due.advance(now, ASKED, &mut due);
        for index in due.drain(..) {
            let index = index as usize;
            if let Some(probe) = self.probes.get(index)
                && let Some(settings) = config.services.get(usize::from(probe.service.0))
            {
                self.ask(index, settings, now, net);
            }
        }
        self.due = due;
    }

    /// Brings forward a probe that was wanted.
    fn hear_wish<N: Lower>(&mut self, index: usize, now: Micros, net: &mut N) {
        // A SYN that is on its way will tell.
        let asking = |probe: &Probe| probe.asked.is_some_and(|asked| asked.answer.is_none());
        if self.probes.get(index).is_none_or(asking) {
            return;
        }
        self.hang_up_probe(index, now, net);
        let begun = self.probes.get(index).and_then(|probe| probe.begun);
        self.probes.wake(index, begun.map_or(now, |begun| begun.after(EVERY_MIN).max(now)));
    }

    fn ask<N: Lower>(&mut self, index: usize, settings: &Service, now: Micros, net: &mut N) {
        let Some(probe) = self.probes.get(index) else { return };
        let (service, upstream) = (probe.service, probe.upstream);
        let asked = match probe.asked {
            Some(Asked { answer: Some(_), .. }) => {
                self.probe_heard(index, true, settings, now, net);
                return;
            }
            Some(asked) if asked.syns >= SYNS => {
                self.probe_over(index, ProbeResult::Silent, settings, Rest::Brief, now);
                return;
            }
            Some(asked) => asked,
            None => {
                let Some(address) = settings.upstreams.get(usize::from(upstream)).map(|upstream| upstream.address)
                else {
                    return;
                };
                // Not counted as a failed dial: no client was waiting.
                let aimed: Result<Target, DialFailure> =
                    self.aim(service, settings, (upstream, address), Numbers::Ours, now, net);
                let Ok(target) = aimed else {
                    self.put_off(index, settings, now);
                    return;
                };
                let value = FlowRef::Probe(index as u32).value();
                if self.flows.insert(target.hash, &target.key, value).is_err() {
                    self.source_ports.release(target.lease, Rest::None, now);
                    self.put_off(index, settings, now);
                    return;
                }
                if let Some(probe) = self.probes.get_mut(index) {
                    probe.begun = Some(now);
                }
                let isn = self.initial_sequence_number(&target.key, now);
                let stamp = self.timestamp_ms.wrapping_add(self.timestamp_offset(&target.key));
                Asked { target, isn, stamp, syns: 0, answer: None }
            }
        };
        let Target { route, key, .. } = asked.target;
        let syn = SynSegment {
            key,
            direction: Direction::ToPeer,
            isn: asked.isn,
            mss: segment::mss_of(route.mtu, key.src.is_v4()),
            wscale: Some(SCALE),
            sack: true,
            timestamp: Some(asked.stamp),
            window: u16::MAX,
        };
        let mut packet = [0; PACKET_MAX];
        if let Some(bytes) =
            segment::synthesize_syn(&syn, &mut packet, TcpChecksum::Full).and_then(|len| packet.get(..len))
        {
            net.send(route.way, bytes.len(), |out| out.copy_from_slice(bytes));
        }
        if let Some(probe) = self.probes.get_mut(index) {
            probe.asked = Some(Asked { syns: asked.syns.saturating_add(1), ..asked });
        }
        self.probes.wake(index, now.after(PAUSE));
    }

    /// A segment to a probe's source port.
    pub(crate) fn probed<N: Lower>(
        &mut self,
        index: u32,
        inbound: Inbound<'_>,
        options: &TcpOptions,
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        let Inbound { segment, arrival, .. } = inbound;
        let index = index as usize;
        let config = self.config.clone();
        let Some(probe) = self.probes.get_mut(index) else { return Err(DropReason::NoFlow) };
        let (service, upstream) = (probe.service, probe.upstream);
        let (Some(asked), Some(settings)) = (&mut probe.asked, config.services.get(usize::from(service.0))) else {
            return Err(DropReason::NoFlow);
        };
        if asked.target.route.way.port() != arrival.port {
            return Err(DropReason::WrongPort);
        }
        let echoed = options.timestamp.is_none_or(|(_, echo)| echo == asked.stamp || segment.flags.rst());
        if !segment.flags.ack() || segment.ack != asked.isn.plus(1) || !echoed {
            return Err(DropReason::BadAck);
        }
        if segment.flags.rst() {
            self.probe_over(index, ProbeResult::Refused, settings, Rest::None, now);
            return Ok(Outcome::Consumed);
        }
        if !segment.flags.contains(Flags::SYN) {
            return Err(DropReason::BadAck);
        }
        if let Some((theirs, _)) = asked.answer {
            if theirs == segment.seq {
                self.probe_heard(index, false, settings, now, net);
            }
            return Ok(Outcome::Consumed);
        }
        let Target { route, key, .. } = asked.target;
        asked.answer = segment::reset_for(segment).map(|reset| (segment.seq, reset));
        // Two SYNs have two answers; only a third one is a repetition.
        let repeated = asked.syns > 1;
        let offered = Offered { wscale: true, sack: true, timestamps: true };
        let mut accepted = Accepted::of(segment, options, &offered);
        accepted.fit(route, key.src.is_v4());
        // Our own word about a path to us, which it takes for one that it has: for ten minutes, and for all clients.
        let told = self.shared.board.told(key.src, now).map(|mtu| segment::mss_of(mtu, key.src.is_v4()));
        if let (Some(told), Some(before)) = (told, self.shared.board.note(service, upstream))
            && accepted.mss >= told
        {
            accepted.mss = accepted.mss.max(before.mss);
        }
        self.shared.board.learn(service, upstream, accepted);
        self.shared.board.grant(service, upstream);
        self.show_offer(service);
        self.count_probe(index, ProbeResult::Answered);
        if repeated {
            self.hang_up_probe(index, now, net);
            self.put_off(index, settings, now);
        } else {
            self.probes.wake(index, now.after(LISTEN));
        }
        Ok(Outcome::Consumed)
    }

    /// The upstream has repeated its answer, or has not and `forgets`.
    fn probe_heard<N: Lower>(&mut self, index: usize, forgets: bool, settings: &Service, now: Micros, net: &mut N) {
        if let Some(&Probe { service, upstream, .. }) = self.probes.get(index) {
            self.shared.board.learn_forgets(service, upstream, forgets);
            if let Some(counters) = self.counters.services.get(usize::from(service.0))
                && let Some(gauge) = counters.syn_cookies.get(usize::from(upstream))
            {
                gauge.set(u64::from(forgets));
            }
        }
        self.hang_up_probe(index, now, net);
        self.put_off(index, settings, now);
    }

    /// Ends a probe's handshake, if it has one.
    fn hang_up_probe<N: Lower>(&mut self, index: usize, now: Micros, net: &mut N) {
        let Some(Asked { target, answer, .. }) = self.let_probe_go(index, Rest::Brief, now) else { return };
        if let Some((_, reset)) = answer {
            send_bare(&reset, target.route.way, net);
        }
    }

    fn let_probe_go(&mut self, index: usize, rest: Rest, now: Micros) -> Option<Asked> {
        let asked = self.probes.get_mut(index)?.asked.take()?;
        self.flows.remove(asked.target.hash, &asked.target.key);
        self.source_ports.release(asked.target.lease, rest, now);
        Some(asked)
    }

    /// No connection came of a probe.
    fn probe_over(&mut self, index: usize, result: ProbeResult, settings: &Service, rest: Rest, now: Micros) {
        let answered = self.let_probe_go(index, rest, now).is_some_and(|asked| asked.answer.is_some());
        // An upstream may well reset what it has waited for.
        if !answered {
            self.count_probe(index, result);
        }
        self.put_off(index, settings, now);
    }

    fn count_probe(&self, index: usize, result: ProbeResult) {
        if let Some(probe) = self.probes.get(index)
            && let Some(counters) = self.counters.services.get(usize::from(probe.service.0))
            && let Some(results) = counters.probes.get(usize::from(probe.upstream))
        {
            count(results, result as usize);
        }
    }

    fn put_off(&mut self, index: usize, settings: &Service, now: Micros) {
        if let Some(probe) = self.probes.get(index) {
            // Until something is known, or known anew, an upstream is asked more often.
            let board = &self.shared.board;
            let known = board.note(probe.service, probe.upstream).is_some();
            let pause = settings.promise.probe;
            let rests = known && !board.is_wanted(probe.service, probe.upstream);
            let pause = if rests { pause } else { pause.min(EVERY_MIN) };
            self.probes.wake(index, now.after(pause));
        }
    }
}
