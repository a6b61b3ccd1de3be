//! Terminate mode: the client's TCP ends here, its payload is relayed over a connection of ours.
//!
//! [`Stack`] is one worker's TCP. A segment is looked up in the flow table, judged by the guard, fed to the connection's own
//! smoltcp socket; its session is then served once at the end of the burst: payload moves, both sockets emit, the timer
//! wheel is told. State exists only for clients that returned a valid cookie. No clock, no random source, no I/O: time, seeds
//! and the [`Lower`] below are handed in.

mod clock;
mod device;
mod dial;
mod endpoint;
mod guard;
mod linger;
mod session;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use siphasher::sip::SipHasher13;
use sluice_config::{Config, Connect, ProxyProtocol, Service};
use sluice_filters::addr::FlowKey;
use sluice_filters::counter::Counter;
use sluice_filters::units::{Micros, PortId, Seq, ServiceId, WorkerId};
use sluice_filters::{DropReason, Segment};
use smoltcp::socket::tcp::State;

use self::dial::{Balancer, Ended, SourcePorts};
use self::endpoint::{ClientOffer, Endpoint, Interfaces, Making};
use self::guard::Gate;
use self::linger::Lingers;
use self::session::{Dialled, Phase, Relayed, Session, Side};
use crate::cookie::{Jar, SynAckProfile};
use crate::counters::{AckResult, DialFailure, StackCounters};
use crate::flow::FlowTable;
use crate::limits::{Refusal, SharedLimits};
use crate::net::{Lower, Reach, Way};
use crate::proxy::Header;
use crate::record::{EndCause, SessionRecord};
use crate::segment::{self, BareSegment, TcpChecksum};
use crate::slab::Slab;
use crate::wheel::Wheel;

pub use self::clock::timestamp_ms;

/// A challenge ACK goes to one connection at most this often (RFC 5961 section 7).
const CHALLENGE_PAUSE: Duration = Duration::from_millis(500);
/// While a dial waits for its next hop, it looks again this often.
const DIAL_LOOK: Duration = Duration::from_millis(100);
/// A session whose device had no room looks again this soon.
const ROOM_LOOK: Duration = Duration::from_micros(200);

/// What all workers' stacks share.
#[derive(Debug)]
pub struct Shared {
    /// Connection limits.
    pub limits: SharedLimits,
    /// Ended connections, on their way to the connection log.
    pub records: ArrayQueue<SessionRecord>,
}

/// What a stack is made with.
pub struct Setup {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// Whose stack it is.
    pub worker: WorkerId,
    /// Where it counts.
    pub counters: Arc<StackCounters>,
    /// What it shares with the other workers.
    pub shared: Arc<Shared>,
    /// The cookies' key ring.
    pub jar: Jar,
    /// Secret octets of this worker's own.
    pub entropy: [u8; 48],
    /// The port MTUs, by [`PortId`].
    pub mtus: Vec<u16>,
    /// When it was made.
    pub now: Micros,
}

/// How a received segment came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Through this port.
    pub port: PortId,
    /// From this Ethernet address.
    pub mac: [u8; 6],
}

/// One worker's TCP.
pub struct Stack {
    // A copy of this worker's own: its count of owners is touched for every session served.
    config: Rc<Config>,
    worker: WorkerId,
    counters: Arc<StackCounters>,
    shared: Arc<Shared>,
    jar: Jar,
    flows: FlowTable,
    sessions: Slab<Session>,
    lingers: Lingers,
    wheel: Wheel,
    interfaces: Interfaces,
    source_ports: SourcePorts,
    balancers: Vec<Balancer>,
    mtus: Vec<u16>,
    isn_key: [u64; 2],
    dirty: Vec<u32>,
    due: Vec<u32>,
    draining: bool,
}

/// What a flow table value points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlowRef {
    Session(Side, u32),
    Linger(u32),
}

impl FlowRef {
    fn value(self) -> u32 {
        match self {
            FlowRef::Session(Side::Client, index) => index << 2,
            FlowRef::Session(Side::Upstream, index) => index << 2 | 1,
            FlowRef::Linger(index) => index << 2 | 2,
        }
    }

    fn from_value(value: u32) -> FlowRef {
        match value & 3 {
            0 => FlowRef::Session(Side::Client, value >> 2),
            1 => FlowRef::Session(Side::Upstream, value >> 2),
            _ => FlowRef::Linger(value >> 2),
        }
    }
}

/// The wheel's ids: sessions even, lingering connections odd.
fn session_timer(index: u32) -> u32 {
    index << 1
}

fn linger_timer(index: u32) -> u32 {
    index << 1 | 1
}

impl Stack {
    /// A stack without connections.
    #[must_use]
    pub fn new(setup: Setup) -> Stack {
        let Setup { config, worker, counters, shared, jar, entropy, mtus, now } = setup;
        let word = |at: usize| {
            let mut octets = [0; 8];
            octets.copy_from_slice(&entropy[at * 8..at * 8 + 8]);
            u64::from_le_bytes(octets)
        };
        let half = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&entropy[at..at + 16]);
            octets
        };
        // Two entries a connection, and room for as many in TIME-WAIT.
        let connections: u64 = config.services.iter().map(|service| u64::from(service.limits.connections)).sum();
        let flows = usize::try_from(connections.saturating_mul(2)).unwrap_or(usize::MAX).min(FLOWS_MAX);
        let balancers = config.services.iter().map(Balancer::new).collect();
        Stack {
            worker,
            counters,
            shared,
            jar,
            flows: FlowTable::new(flows + linger::MAX, half(0)),
            sessions: Slab::new(),
            lingers: Lingers::new(),
            wheel: Wheel::new(now),
            interfaces: Interfaces::new(word(2)),
            source_ports: SourcePorts::new(half(24)),
            balancers,
            mtus,
            isn_key: [word(3), word(5)],
            dirty: Vec::with_capacity(256),
            due: Vec::with_capacity(256),
            draining: false,
            config: Rc::new(Config::clone(&config)),
        }
    }

    /// Starts a turn: the clock's reading for all that follows in it. `wall` is Unix time, for the cookies' epochs.
    pub fn begin_turn(&mut self, now: Micros, wall: Duration) {
        clock::set_timestamp_clock(now);
        self.jar.tick(wall);
    }

    /// The flow table's hash of `key`.
    #[inline]
    #[must_use]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        self.flows.hash(key)
    }

    /// Brings the flow's table entry into the cache, for a [`Stack::segment`] soon to come.
    #[inline]
    pub fn touch(&self, hash: u64) {
        self.flows.touch(hash);
    }

    /// Answers a SYN to a service with a cookie, in the same frame; keeps nothing. The frame's buffer must reach to
    /// [`crate::cookie::SYN_ACK_MAX`] octets or further; returns the answer's length.
    ///
    /// # Errors
    /// [`DropReason::Draining`] while no new connections are wanted.
    #[inline]
    pub fn answer_syn(
        &mut self,
        frame: &mut [u8],
        segment: &Segment,
        service: ServiceId,
        port: PortId,
        our_mac: [u8; 6],
        now: Micros,
    ) -> Result<usize, DropReason> {
        if self.draining {
            return Err(DropReason::Draining);
        }
        let mtu = self.mtus.get(usize::from(port.0)).copied().unwrap_or(1500);
        let Some(buffer) = self.config.services.get(usize::from(service.0)).map(|service| service.buffer) else {
            return Err(DropReason::NotAService);
        };
        let headers = if segment.is_v4() { 40 } else { 60 };
        let profile = SynAckProfile {
            mss: mtu.saturating_sub(headers),
            wscale: Some(0),
            window: advertised(buffer),
            sack: true,
            timestamps: true,
            src_mac: our_mac,
            tcp_checksum: TcpChecksum::Full,
        };
        let len =
            self.jar.answer_syn(frame, segment, &profile, clock::timestamp_ms(now)).ok_or(DropReason::Truncated)?;
        self.counters.cookies_sent.bump();
        Ok(len)
    }

    /// Takes a segment that is not an opening SYN: of a known flow, or with a cookie of ours. `service` is what its destination
    /// names, if anything. Sessions it concerns are served by [`Stack::serve`].
    ///
    /// # Errors
    /// Why it was dropped.
    #[allow(clippy::too_many_arguments, reason = "one packet's facts, each from another place")]
    pub fn segment<N: Lower>(
        &mut self,
        segment: &Segment,
        frame: &mut [u8],
        hash: u64,
        arrival: Arrival,
        service: Option<ServiceId>,
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        match self.flows.find(hash, &segment.key).map(FlowRef::from_value) {
            Some(FlowRef::Session(side, index)) => {
                match self.known(side, index, segment, frame, arrival, now, net) {
                    // A client that lost its state may come back from the same port, with a cookie of today.
                    Err(DropReason::BadAck | DropReason::OldAck) if side == Side::Client => {
                        self.restarted(index, segment, frame, hash, arrival, service, now, net)
                    }
                    result => result,
                }
            }
            Some(FlowRef::Linger(index)) => self.lingering(index, segment, frame, hash, arrival, service, now, net),
            None => self.unknown(segment, frame, hash, arrival, service, now, net),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one packet's facts, each from another place")]
    fn known<N: Lower>(
        &mut self,
        side: Side,
        index: u32,
        segment: &Segment,
        frame: &mut [u8],
        arrival: Arrival,
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        let Some(session) = self.sessions.get_mut(index) else { return Err(DropReason::NoFlow) };
        let Some(endpoint) = session.endpoint(side) else { return Err(DropReason::NoFlow) };
        if endpoint.reset {
            return Err(DropReason::NoFlow);
        }
        if segment.flags.rst() {
            // So that the guard knows the newest ACK: a RST must match it exactly.
            endpoint.emit(&mut self.interfaces, now, net);
        }
        let range = segment.l4()..segment.end();
        let Some(tcp) = frame.get_mut(range) else { return Err(DropReason::Truncated) };
        match endpoint.leg.guard.judge(segment, tcp) {
            Gate::Feed => {
                if side == Side::Client {
                    endpoint.leg.way = Way::Reply { port: arrival.port, mac: arrival.mac };
                }
                endpoint.feed(segment, frame, &mut self.interfaces, now, net);
            }
            Gate::Reset => {
                endpoint.reset = true;
                endpoint.heard = now;
            }
            Gate::Drop(reason) => return Err(reason),
            Gate::Challenge(reason) => {
                if endpoint.challenged.is_none_or(|at| now >= at.after(CHALLENGE_PAUSE)) {
                    endpoint.challenged = Some(now);
                    let (ack, way) = (endpoint.leg.bare_ack(now), endpoint.leg.way);
                    self.counters.challenge_acks.bump();
                    send_bare(&ack, way, net);
                }
                return Err(reason);
            }
        }
        if !session.dirty {
            session.dirty = true;
            self.dirty.push(index);
        }
        Ok(())
    }

    /// A client's segment that does not fit its session, yet brings a valid cookie of another handshake.
    #[allow(clippy::too_many_arguments, reason = "one packet's facts, each from another place")]
    fn restarted<N: Lower>(
        &mut self,
        index: u32,
        segment: &Segment,
        frame: &mut [u8],
        hash: u64,
        arrival: Arrival,
        service: Option<ServiceId>,
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        let cookie = Seq(segment.ack.0.wrapping_sub(1));
        let same_handshake =
            self.sessions.get_mut(index).is_some_and(|session| session.client.leg.is_first_number(cookie));
        if same_handshake || self.check(segment).is_none() {
            return Err(DropReason::BadAck);
        }
        if let Some(mut session) = self.sessions.take(index) {
            // Its peer is gone; a RST would hit the new connection.
            session.client.reset = true;
            self.end(index, session, EndCause::ClientRestarted, now, net);
        }
        self.unknown(segment, frame, hash, arrival, service, now, net)
    }

    #[allow(clippy::too_many_arguments, reason = "one packet's facts, each from another place")]
    fn lingering<N: Lower>(
        &mut self,
        index: u32,
        segment: &Segment,
        frame: &mut [u8],
        hash: u64,
        arrival: Arrival,
        service: Option<ServiceId>,
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        let Some(answer) = self.lingers.answer(index, segment) else {
            if service.is_some() && self.check(segment).is_some() {
                self.forget_linger(index);
                return self.unknown(segment, frame, hash, arrival, service, now, net);
            }
            return Err(DropReason::NoFlow);
        };
        send_bare(&answer.0, answer.1, net);
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one packet's facts, each from another place")]
    fn unknown<N: Lower>(
        &mut self,
        segment: &Segment,
        frame: &mut [u8],
        hash: u64,
        arrival: Arrival,
        service: Option<ServiceId>,
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        let Some(service) = service else { return self.stray(segment, arrival, net) };
        let flags = segment.flags;
        if !flags.ack() || flags.syn() || flags.rst() {
            return Err(DropReason::NoFlow);
        }
        let Some(offer) = self.check(segment) else {
            self.count_ack(AckResult::BadCookie);
            return Err(DropReason::BadCookie);
        };
        let way = Way::Reply { port: arrival.port, mac: arrival.mac };
        if self.draining {
            self.count_ack(AckResult::Draining);
            self.refuse(segment, way, net);
            return Err(DropReason::Draining);
        }
        if let Err(refusal) = self.shared.limits.open(service, segment.key.src) {
            self.count_ack(AckResult::Limit);
            if let Some(counters) = self.counters.services.get(usize::from(service.0)) {
                match refusal {
                    Refusal::Connections => counters.refused_limit.bump(),
                    Refusal::Source => counters.refused_source_limit.bump(),
                }
            }
            self.refuse(segment, way, net);
            return Err(match refusal {
                Refusal::Connections => DropReason::ConnectionLimit,
                Refusal::Source => DropReason::SourceLimit,
            });
        }
        let opened = self.open(segment, frame, hash, way, service, offer, now, net);
        if opened.is_none() {
            self.shared.limits.close(service, segment.key.src);
            self.count_ack(AckResult::Limit);
            self.refuse(segment, way, net);
            return Err(DropReason::ConnectionLimit);
        }
        self.count_ack(AckResult::Accepted);
        Ok(())
    }

    fn count_ack(&self, result: AckResult) {
        count(&self.counters.cookie_acks, result as usize);
    }

    fn check(&self, segment: &Segment) -> Option<crate::cookie::Offer> {
        let flags = segment.flags;
        if !flags.ack() || flags.syn() || flags.rst() {
            return None;
        }
        self.jar.check(&segment.key, Seq(segment.seq.0.wrapping_sub(1)), segment.ack)
    }

    /// The session a valid cookie opens. The only place where a client gets memory.
    #[allow(clippy::too_many_arguments, reason = "one packet's facts, each from another place")]
    fn open<N: Lower>(
        &mut self,
        segment: &Segment,
        frame: &mut [u8],
        hash: u64,
        way: Way,
        service: ServiceId,
        offer: crate::cookie::Offer,
        now: Micros,
        net: &mut N,
    ) -> Option<()> {
        let settings = self.config.services.get(usize::from(service.0))?;
        let Way::Reply { port, .. } = way else { return None };
        let options = segment.options(frame);
        let making = Making {
            key: segment.key,
            way,
            mtu: self.mtus.get(usize::from(port.0)).copied()?,
            buffer: settings.buffer,
            congestion: settings.congestion,
            isn: Seq(segment.ack.0.wrapping_sub(1)),
            timestamp_offset: self.jar.ts_offset(
                &segment.key,
                Seq(segment.seq.0.wrapping_sub(1)),
                Seq(segment.ack.0.wrapping_sub(1)),
            ),
            timestamps: options.timestamp.is_some(),
        };
        let offer = ClientOffer {
            isn: Seq(segment.seq.0.wrapping_sub(1)),
            mss: offer.mss,
            window_scale: offer.wscale,
            sack: offer.sack,
            timestamp: options.timestamp.map(|(value, _)| value),
            advertised: advertised(settings.buffer),
        };
        let mut client = Endpoint::accept(&making, &offer, &mut self.interfaces, now, net)?;
        let Gate::Feed = client.leg.guard.judge(segment, frame.get_mut(segment.l4()..segment.end())?) else {
            return None;
        };
        let index = self.sessions.reserve();
        if self.flows.insert(hash, &segment.key, FlowRef::Session(Side::Client, index).value()).is_err() {
            self.sessions.release(index);
            return None;
        }
        client.feed(segment, frame, &mut self.interfaces, now, net);
        let (remote, local) = (segment.key.remote(), segment.key.local());
        let header = match settings.proxy_protocol {
            ProxyProtocol::Off => None,
            ProxyProtocol::V1 => Some(Header::v1(remote, local)),
            ProxyProtocol::V2 => Some(Header::v2(remote, local)),
        };
        self.counters.buffer_bytes.add(client.leased as u64);
        let mut session = Session::new(service, client, header, now);
        session.dirty = true;
        self.sessions.put(index, Box::new(session));
        self.dirty.push(index);
        if let Some(counters) = self.counters.services.get(usize::from(service.0)) {
            counters.opened.bump();
            counters.active.add(1);
        }
        Some(())
    }

    /// A segment to an address of ours that is no service and no flow: from an upstream that still holds a connection we no longer
    /// know it gets a RST, so that it does not hold it for long; from anyone else nothing.
    fn stray<N: Lower>(&mut self, segment: &Segment, arrival: Arrival, net: &mut N) -> Result<(), DropReason> {
        let remote = segment.key.remote();
        let upstream = self.config.services.iter().flat_map(|s| &s.upstreams).any(|u| u.address == remote);
        if upstream && !segment.flags.rst() {
            self.refuse(segment, Way::Reply { port: arrival.port, mac: arrival.mac }, net);
        }
        Err(DropReason::NoFlow)
    }

    /// Answers with the RST that RFC 9293 section 3.10.7.1 gives to a segment without a connection.
    fn refuse<N: Lower>(&self, segment: &Segment, way: Way, net: &mut N) {
        if let Some(reset) = segment::reset_for(segment) {
            self.counters.resets_sent.bump();
            send_bare(&reset, way, net);
        }
    }

    /// Serves every session that the turn's segments and timers concern: relays, emits, ends.
    pub fn serve<N: Lower>(&mut self, now: Micros, net: &mut N) {
        let mut round = std::mem::take(&mut self.dirty);
        for index in round.drain(..) {
            let Some(mut session) = self.sessions.take(index) else { continue };
            session.dirty = false;
            match self.advance(index, &mut session, now, net) {
                Relayed::Goes => {
                    self.wake_later(index, &mut session, now);
                    self.sessions.put(index, session);
                }
                Relayed::Over(cause) => self.end(index, session, cause, now, net),
            }
        }
        // Sessions with more to emit were put on the list anew: they come next turn, after the others' segments.
        if self.dirty.is_empty() {
            self.dirty = round;
        }
    }

    /// Runs timers that are due, `budget` of them at most.
    pub fn run_timers<N: Lower>(&mut self, now: Micros, budget: usize, net: &mut N) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now, budget, &mut due);
        for id in due.drain(..) {
            let index = id >> 1;
            if id & 1 == 1 {
                self.forget_linger(index);
            } else if let Some(session) = self.sessions.get_mut(index) {
                session.wakes = None;
                if !session.dirty {
                    session.dirty = true;
                    self.dirty.push(index);
                }
            }
        }
        self.due = due;
        self.serve(now, net);
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
        if more && !session.dirty {
            session.dirty = true;
            self.dirty.push(index);
        }
        let (at, cause) = session.deadline(&settings.timeouts);
        if now >= at { Relayed::Over(cause) } else { Relayed::Goes }
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
            let ports = &mut self.source_ports;
            let leased = balancer
                .sources(settings, address, route.source)
                .find_map(|source| Some((source, ports.lease(source, address, now, net)?)));
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
                self.source_ports.release(lease, Ended::Refused, now);
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
        let ended = if failure == DialFailure::Refused { Ended::Refused } else { Ended::Otherwise };
        self.hang_up(session, ended, now);
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
    fn hang_up(&mut self, session: &mut Session, ended: Ended, now: Micros) {
        if let Some(Dialled { endpoint, lease, hash, .. }) = session.upstream.take() {
            self.flows.remove(hash, &endpoint.leg.key);
            self.source_ports.release(lease, ended, now);
            self.give_back(endpoint.leased);
        }
    }

    fn give_back(&self, octets: usize) {
        let gauge = &self.counters.buffer_bytes;
        gauge.set(gauge.get().saturating_sub(octets as u64));
    }

    /// Ends a session: resets what is still open, keeps what TIME-WAIT needs, counts and reports.
    fn end<N: Lower>(&mut self, index: u32, mut session: Box<Session>, cause: EndCause, now: Micros, net: &mut N) {
        self.wheel.cancel(session_timer(index));
        let client_key = session.client.leg.key;
        let client_hash = self.flows.hash(&client_key);
        let linger = self.part(&mut session.client, now, net);
        self.flows.remove(client_hash, &client_key);
        if linger {
            self.linger(&session.client, client_hash, now);
        }
        let mut target = None;
        if let Some(dialled) = &mut session.upstream {
            let key = dialled.endpoint.leg.key;
            target = Some((dialled.index, key));
            let refused = dialled.endpoint.reset;
            let timestamps = dialled.endpoint.leg.timestamps();
            let (hash, linger) = (dialled.hash, self.part(&mut dialled.endpoint, now, net));
            let ended = match (refused, timestamps) {
                (true, _) => Ended::Refused,
                (false, true) => Ended::WithTimestamps,
                (false, false) => Ended::Otherwise,
            };
            let lingering = linger.then(|| Lingers::entry(&dialled.endpoint, hash, now));
            self.hang_up(&mut session, ended, now);
            if let Some(entry) = lingering {
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

    /// Takes leave of a peer: a RST unless it knows that the connection is over. True when TIME-WAIT must follow.
    fn part<N: Lower>(&mut self, endpoint: &mut Endpoint, now: Micros, net: &mut N) -> bool {
        if endpoint.reset || !endpoint.leg.guard.synchronized() {
            return false;
        }
        if endpoint.finished() {
            return endpoint.state() == State::TimeWait;
        }
        if endpoint.state() != State::Closed {
            endpoint.abort();
            self.counters.resets_sent.bump();
        }
        endpoint.emit(&mut self.interfaces, now, net);
        false
    }

    fn linger(&mut self, endpoint: &Endpoint, hash: u64, now: Micros) {
        let entry = Lingers::entry(endpoint, hash, now);
        self.keep_linger(entry);
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

    fn forget_linger(&mut self, index: u32) {
        if let Some(entry) = self.lingers.forget(index) {
            self.wheel.cancel(linger_timer(index));
            // A new connection between the same two ends may have taken its place.
            if self.flows.find(entry.hash, &entry.key()) == Some(FlowRef::Linger(index).value()) {
                self.flows.remove(entry.hash, &entry.key());
            }
        }
    }

    /// Arms the session's timer for the first thing that can happen without a segment.
    fn wake_later(&mut self, index: u32, session: &mut Session, now: Micros) {
        if session.dirty {
            return;
        }
        let config = &self.config;
        let Some(settings) = config.services.get(usize::from(session.service.0)) else { return };
        let (mut at, _) = session.deadline(&settings.timeouts);
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
    }

    /// From now on nobody new is let in (`SIGTERM`).
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Live sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Resets every connection: the end of the drain.
    pub fn reset_all<N: Lower>(&mut self, now: Micros, net: &mut N) {
        let indices: Vec<u32> = self.sessions.indices().collect();
        for index in indices {
            if let Some(session) = self.sessions.take(index) {
                self.end(index, session, EndCause::Shutdown, now, net);
            }
        }
    }

    /// Brings the gauges up to date; a few times a second is enough.
    pub fn publish(&mut self, now: Micros) {
        self.source_ports.reap(now);
        self.counters.flow_entries.set(self.flows.len() as u64);
        self.counters.time_wait.set(self.lingers.len() as u64);
        self.counters.timers.set(self.wheel.armed() as u64);
        self.counters.source_ports.set(self.source_ports.occupied() as u64);
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

/// Most flow entries of live connections one worker's table is made for.
const FLOWS_MAX: usize = 1 << 23;

/// The window in a SYN-ACK of a service with buffers of `buffer` octets.
fn advertised(buffer: usize) -> u16 {
    u16::try_from(buffer).unwrap_or(u16::MAX)
}

fn send_bare<N: Lower>(bare: &BareSegment, way: Way, net: &mut N) {
    net.send(way, bare.len(), |packet| bare.write(packet, TcpChecksum::Full));
}

fn count(counters: &[Counter], index: usize) {
    if let Some(counter) = counters.get(index) {
        counter.bump();
    }
}
