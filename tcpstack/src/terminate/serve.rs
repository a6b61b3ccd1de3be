//! What sessions do: dial, relay, emit, wait, end.

use std::net::SocketAddr;
use std::time::Duration;

use siphasher::sip::SipHasher13;
use sluice_config::{Connect, Service};
use sluice_filters::Flags;
use sluice_filters::addr::FlowKey;
use sluice_filters::units::{Micros, Seq, ServiceId};
use smoltcp::socket::tcp::State;

use super::dial::Rest;
use super::endpoint::{Endpoint, Making};
use super::linger::{self, Left, Lingers};
use super::session::{Dialled, Phase, Relayed, Session, Side};
use super::{FlowRef, Stack, count, linger_timer, send_bare, session_timer};
use crate::counters::DialFailure;
use crate::net::{Lower, Reach};
use crate::record::{EndCause, SessionRecord};

/// Sessions served a turn.
const SERVED: usize = 1024;
/// While a dial waits for its next hop, it looks again this often.
const DIAL_LOOK: Duration = Duration::from_millis(100);
/// A session whose device had no room looks again this soon.
const ROOM_LOOK: Duration = Duration::from_micros(200);

impl Stack {
    /// Serves the sessions that the turn's segments and timers concern, 1,024 of them at most: relays, emits, ends.
    pub fn serve<N: Lower>(&mut self, now: Micros, net: &mut N) {
        let mut round = std::mem::take(&mut self.dirty);
        let served = round.len().min(SERVED);
        for index in round.drain(..served) {
            let Some(mut session) = self.sessions.take(index) else { continue };
            session.dirty = false;
            let over = match self.advance(index, &mut session, now, net) {
                Relayed::Goes => self.wake_later(index, &mut session, now),
                Relayed::Over(cause) => Some(cause),
            };
            match over {
                None => self.sessions.put(index, session),
                Some(cause) => self.end(index, session, cause, now, net),
            }
        }
        // Sessions with more to emit were put on the list anew: they come next turn, after those that had no turn yet.
        round.append(&mut self.dirty);
        self.dirty = round;
    }

    /// Marks the sessions whose timers are due, `budget` of them at most, for the next [`Stack::serve`].
    pub fn run_timers(&mut self, now: Micros, budget: usize) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now, budget, &mut due);
        for id in due.drain(..) {
            let index = id >> 1;
            if id & 1 == 1 {
                self.forget_linger(index);
            } else if let Some(session) = self.sessions.get_mut(index) {
                session.wakes = None;
                session.mark(index, &mut self.dirty);
            }
        }
        self.due = due;
    }

    /// One session's step: dial, relay, emit.
    fn advance<N: Lower>(&mut self, index: u32, session: &mut Session, now: Micros, net: &mut N) -> Relayed {
        let config = self.config.clone();
        let Some(settings) = config.services.get(usize::from(session.service.0)) else {
            return Relayed::Over(EndCause::Internal);
        };
        if session.client.reset && !matches!(session.phase, Phase::Relaying | Phase::Delivering { .. }) {
            return Relayed::Over(EndCause::ClientReset);
        }
        if let Phase::Waiting = session.phase
            && (settings.connect == Connect::OnAccept || session.client_spoke())
            && let Err(over) = self.dial(index, session, settings, now, net)
        {
            return over;
        }
        if let Phase::Dialing { until } = session.phase
            && let Err(over) = self.dialing(index, session, settings, until, now, net)
        {
            return over;
        }
        if let Phase::Relaying | Phase::Delivering { .. } = session.phase {
            let before = (session.to_upstream, session.to_client);
            let relayed = session.relay(now);
            if let Some(counters) = self.counters.services.get(usize::from(session.service.0)) {
                counters.bytes_to_upstream.add(session.to_upstream - before.0);
                counters.bytes_to_client.add(session.to_client - before.1);
            }
            if let Relayed::Over(_) = relayed {
                return relayed;
            }
        }
        let mut more = session.client.emit(&mut self.interfaces, now, net);
        if let Some(dialled) = &mut session.upstream {
            more |= dialled.endpoint.emit(&mut self.interfaces, now, net);
        }
        if more {
            session.mark(index, &mut self.dirty);
        }
        Relayed::Goes
    }

    /// Dials the next upstream that this session has not tried.
    fn dial<N: Lower>(
        &mut self,
        index: u32,
        session: &mut Session,
        settings: &Service,
        now: Micros,
        net: &mut N,
    ) -> Result<(), Relayed> {
        let service = usize::from(session.service.0);
        loop {
            let Some((upstream, address)) =
                self.balancers.get_mut(service).and_then(|balancer| balancer.choose(session.tried, now))
            else {
                return Err(Relayed::Over(EndCause::DialFailed));
            };
            session.tried |= 1 << upstream;
            let Some(route) = net.route(address.ip().into()) else {
                self.dial_failed(session.service, upstream, DialFailure::Unreachable, now);
                continue;
            };
            let Some(balancer) = self.balancers.get_mut(service) else {
                return Err(Relayed::Over(EndCause::Internal));
            };
            let (ports, config) = (&mut self.source_ports, &self.config);
            let leased = balancer.sources(settings, address, route.source).find_map(|source| {
                // A port that a service listens on at the same address is the clients'.
                let listened = |port| {
                    let end = SocketAddr::new(source.to_ip(), port);
                    config.services.iter().any(|service| service.listen.contains(&end))
                };
                Some((source, ports.lease(source, address, now, net, listened)?))
            });
            let Some((source, lease)) = leased else {
                self.dial_failed(session.service, upstream, DialFailure::NoSourcePort, now);
                continue;
            };
            let key = FlowKey { src: address.ip().into(), dst: source, src_port: address.port(), dst_port: lease.port };
            let hash = self.flows.hash(&key);
            if let Some(FlowRef::Linger(old)) = self.flows.find(hash, &key).map(FlowRef::from_value) {
                self.forget_linger(old);
            }
            let making = Making {
                key,
                way: route.way,
                mtu: route.mtu,
                buffer: settings.buffer,
                congestion: settings.upstream_congestion,
                isn: self.initial_sequence_number(&key, now),
                timestamp_offset: self.keyed(&key, 1) as u32,
                timestamps: true,
            };
            let endpoint = Endpoint::dial(&making, &mut self.interfaces, now);
            let inserted = self.flows.insert(hash, &key, FlowRef::Session(Side::Upstream, index).value());
            let (Some(endpoint), Ok(())) = (endpoint, inserted) else {
                self.flows.remove(hash, &key);
                self.source_ports.release(lease, Rest::None, now);
                return Err(Relayed::Over(EndCause::Internal));
            };
            self.counters.buffer_bytes.add(endpoint.leased as u64);
            session.upstream = Some(Dialled { endpoint, index: upstream, lease, hash });
            session.phase = Phase::Dialing { until: now.after(settings.timeouts.connect) };
            return Ok(());
        }
    }

    /// Looks whether a dial has come to anything.
    fn dialing<N: Lower>(
        &mut self,
        index: u32,
        session: &mut Session,
        settings: &Service,
        until: Micros,
        now: Micros,
        net: &mut N,
    ) -> Result<(), Relayed> {
        let Some(dialled) = &session.upstream else { return Err(Relayed::Over(EndCause::Internal)) };
        let state = dialled.endpoint.state();
        let failure = if dialled.endpoint.reset || state == State::Closed {
            DialFailure::Refused
        } else if state != State::SynSent {
            session.phase = Phase::Relaying;
            session.connected = Some(now);
            session.moved = now;
            if let Some(balancer) = self.balancers.get_mut(usize::from(session.service.0)) {
                balancer.connected(dialled.index);
            }
            return Ok(());
        } else if net.reach(dialled.endpoint.leg.way) == Reach::Failed {
            DialFailure::Unreachable
        } else if now >= until {
            DialFailure::Timeout
        } else {
            return Ok(());
        };
        let upstream = dialled.index;
        self.dial_failed(session.service, upstream, failure, now);
        let rest = if failure == DialFailure::Refused { Rest::None } else { Rest::Brief };
        self.hang_up(session, rest, now);
        self.dial(index, session, settings, now, net)
    }

    fn dial_failed(&mut self, service: ServiceId, upstream: u16, failure: DialFailure, now: Micros) {
        if let Some(balancer) = self.balancers.get_mut(usize::from(service.0)) {
            balancer.failed(upstream, now);
        }
        if let Some(counters) = self.counters.services.get(usize::from(service.0))
            && let Some(failures) = counters.dial_failures.get(usize::from(upstream))
        {
            count(failures, failure as usize);
        }
    }

    /// Lets go of the upstream's endpoint: its flow, its source port, its buffers. Nothing is sent.
    fn hang_up(&mut self, session: &mut Session, rest: Rest, now: Micros) {
        if let Some(Dialled { endpoint, lease, hash, .. }) = session.upstream.take() {
            self.flows.remove(hash, &endpoint.leg.key);
            self.source_ports.release(lease, rest, now);
            self.give_back(endpoint.leased);
        }
    }

    fn give_back(&self, octets: usize) {
        let gauge = &self.counters.buffer_bytes;
        gauge.set(gauge.get().saturating_sub(octets as u64));
    }

    /// Ends a session: resets what is still open, keeps what TIME-WAIT needs, counts and reports.
    pub(super) fn end<N: Lower>(
        &mut self,
        index: u32,
        mut session: Box<Session>,
        cause: EndCause,
        now: Micros,
        net: &mut N,
    ) {
        self.wheel.cancel(session_timer(index));
        let client_key = session.client.leg.key;
        let client_hash = self.flows.hash(&client_key);
        let left = self.part(&mut session.client, now, net);
        self.flows.remove(client_hash, &client_key);
        // A client that came back from the same port takes this very place.
        if cause != EndCause::ClientRestarted {
            self.keep_linger(Lingers::entry(&session.client, left, client_hash, now));
        }
        let mut target = None;
        if let Some(dialled) = &mut session.upstream {
            let (key, hash) = (dialled.endpoint.leg.key, dialled.hash);
            target = Some((dialled.index, key));
            let left = self.part(&mut dialled.endpoint, now, net);
            let rest = match left {
                Left::Silent => Rest::None,
                // No TIME-WAIT follows a RST; a later timestamp ends it early (RFC 6191).
                Left::Reset => Rest::Brief,
                Left::Closed if dialled.endpoint.leg.timestamps() => Rest::Brief,
                Left::Closed => Rest::TimeWait,
            };
            let ours = left == Left::Closed && dialled.endpoint.state() == State::TimeWait;
            let entry = ours.then(|| Lingers::entry(&dialled.endpoint, left, hash, now));
            self.hang_up(&mut session, rest, now);
            if let Some(entry) = entry {
                self.keep_linger(entry);
            }
        }
        self.give_back(session.client.leased);
        self.sessions.release(index);
        self.shared.limits.close(session.service, client_key.src);
        if let Some(counters) = self.counters.services.get(usize::from(session.service.0)) {
            counters.active.set(counters.active.get().saturating_sub(1));
            count(&counters.ended, cause as usize);
        }
        let record = SessionRecord {
            worker: self.worker,
            service: session.service,
            upstream: target.map(|(upstream, _)| upstream),
            client: client_key.remote(),
            listen: client_key.local(),
            source: target.map(|(_, key)| key.local()),
            target: target.map(|(_, key)| key.remote()),
            opened: session.opened,
            connected: session.connected,
            ended: now,
            bytes_to_upstream: session.to_upstream,
            bytes_to_client: session.to_client,
            cause,
        };
        if self.shared.records.push(record).is_err() {
            self.counters.records_lost.bump();
        }
    }

    /// Takes leave of a peer: with a RST, unless it knows that the connection is over.
    fn part<N: Lower>(&mut self, endpoint: &mut Endpoint, now: Micros, net: &mut N) -> Left {
        if endpoint.reset {
            return Left::Silent;
        }
        if endpoint.finished() {
            return Left::Closed;
        }
        self.counters.resets_sent.bump();
        if endpoint.leg.guard.synchronized() {
            endpoint.abort();
            endpoint.emit_last(&mut self.interfaces, now, net);
        } else if endpoint.leg.guard.outstanding() {
            // The upstream may hold a half-open connection, which the number after our SYN ends.
            let mut reset = endpoint.leg.bare_ack(now);
            (reset.ack, reset.flags, reset.window, reset.timestamp) = (Seq(0), Flags::RST, 0, None);
            send_bare(&reset, endpoint.leg.way, net);
        }
        Left::Reset
    }

    fn keep_linger(&mut self, entry: linger::Linger) {
        let (hash, key, until) = (entry.hash, entry.key(), entry.until);
        if let Some(index) = self.lingers.keep(entry) {
            if self.flows.insert(hash, &key, FlowRef::Linger(index).value()).is_ok() {
                self.wheel.arm(linger_timer(index), until);
            } else {
                self.lingers.forget(index);
            }
        }
    }

    pub(super) fn forget_linger(&mut self, index: u32) {
        if let Some(entry) = self.lingers.forget(index) {
            self.wheel.cancel(linger_timer(index));
            // A new connection between the same two ends may have taken its place.
            if self.flows.find(entry.hash, &entry.key()) == Some(FlowRef::Linger(index).value()) {
                self.flows.remove(entry.hash, &entry.key());
            }
        }
    }

    /// Arms the session's timer for the first thing that can happen without a segment; the cause when a limit of it has passed.
    fn wake_later(&mut self, index: u32, session: &mut Session, now: Micros) -> Option<EndCause> {
        let Some(settings) = self.config.services.get(usize::from(session.service.0)) else {
            return Some(EndCause::Internal);
        };
        let (mut at, cause) = session.deadline(&settings.timeouts);
        if now >= at {
            return Some(cause);
        }
        if session.dirty {
            return None;
        }
        let mut sooner = |moment: Micros| at = at.min(moment);
        let emits = session.client.emit_at(&mut self.interfaces, now);
        let upstream_emits =
            session.upstream.as_mut().and_then(|dialled| dialled.endpoint.emit_at(&mut self.interfaces, now));
        for moment in [emits, upstream_emits].into_iter().flatten() {
            // "Now" after everything was emitted means that the device had no room.
            sooner(moment.max(now.after(ROOM_LOOK)));
        }
        match session.phase {
            Phase::Dialing { until } => sooner(until.min(now.after(DIAL_LOOK))),
            Phase::Delivering { until, .. } => sooner(until),
            Phase::Waiting | Phase::Relaying => {}
        }
        if session.wakes.is_none_or(|armed| at < armed) {
            session.wakes = Some(at);
            self.wheel.arm(session_timer(index), at);
        }
        None
    }

    /// Our first sequence number towards an upstream (RFC 6528): a clock of 4 us ticks plus a keyed hash of the 4-tuple.
    fn initial_sequence_number(&self, key: &FlowKey, now: Micros) -> Seq {
        Seq((now.0 / 4) as u32).plus(self.keyed(key, 0) as u32)
    }

    fn keyed(&self, key: &FlowKey, purpose: u8) -> u64 {
        let mut octets = [0; 37];
        octets[..16].copy_from_slice(&key.src.octets());
        octets[16..32].copy_from_slice(&key.dst.octets());
        octets[32..34].copy_from_slice(&key.src_port.to_be_bytes());
        octets[34..36].copy_from_slice(&key.dst_port.to_be_bytes());
        octets[36] = purpose;
        SipHasher13::new_with_keys(self.isn_key[0], self.isn_key[1]).hash(&octets)
    }
}
