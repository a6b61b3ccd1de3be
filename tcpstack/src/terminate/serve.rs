//! What sessions do: dial, relay, emit, wait, end.

use std::net::SocketAddr;
use std::time::Duration;

use sluice_config::{Connect, Service};
use sluice_filters::Flags;
use sluice_filters::units::{Micros, Seq};
use smoltcp::socket::tcp::State;

use super::endpoint::{Endpoint, Making};
use super::session::{Dialled, Greeting, Phase, Relayed, Session};
use crate::counters::DialFailure;
use crate::limits::Refusal;
use crate::net::{Lower, Reach};
use crate::ports::Rest;
use crate::record::EndCause;
use crate::stack::ending::{Ended, Numbers, Target};
use crate::stack::linger::{Left, Lingers};
use crate::stack::{FlowRef, Side, Stack, send_bare, session_timer};

/// While a dial waits for its next hop, it looks again this often.
const DIAL_LOOK: Duration = Duration::from_millis(100);
/// A session whose device had no room looks again this soon.
const ROOM_LOOK: Duration = Duration::from_micros(200);

impl Stack {
    /// One session's step: dial, relay, emit.
    pub(crate) fn advance<N: Lower>(&mut self, index: u32, session: &mut Session, now: Micros, net: &mut N) -> Relayed {
        let config = self.config.clone();
        let Some(settings) = config.services.get(usize::from(session.service.0)) else {
            return Relayed::Over(EndCause::Internal);
        };
        if session.client.reset && !matches!(session.phase, Phase::Relaying | Phase::Delivering { .. }) {
            return Relayed::Over(EndCause::ClientReset);
        }
        match self.greet(session, settings) {
            Ok(true) => {}
            Ok(false) => {
                if session.client.emit(&mut self.interfaces, now, net) {
                    session.mark(index, &mut self.dirty);
                }
                return Relayed::Goes;
            }
            Err(cause) => return Relayed::Over(cause),
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
                counters.bytes_to_upstream.add(session.to_upstream.saturating_sub(before.0));
                counters.bytes_to_client.add(session.to_client.saturating_sub(before.1));
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

    /// Looks for the PROXY header that the client's first octets must be, or must not be. Whether the session may go on.
    fn greet(&mut self, session: &mut Session, settings: &Service) -> Result<bool, EndCause> {
        let evidence = match &session.greeting {
            Greeting::Over => return Ok(true),
            Greeting::Forbidden => return session.refuse_header().map(|()| true),
            Greeting::Expected(evidence) => **evidence,
        };
        let Some(addresses) = session.take_header()? else { return Ok(false) };
        session.greeting = Greeting::Over;
        let key = session.client.leg.key;
        let client = addresses.map_or(key.remote(), |named| {
            session.named = Some(SocketAddr::new(named.client.ip().to_canonical(), named.client.port()));
            session.named.unwrap_or(named.client)
        });
        let listen = addresses.map_or(key.local(), |named| named.listen);
        let source = client.ip().into();
        if let Err(refusal) = self.shared.limits.name(session.service, source) {
            if let Some(counters) = self.counters.services.get(usize::from(session.service.0)) {
                match refusal {
                    Refusal::Share => counters.refused_share.bump(),
                    Refusal::Connections | Refusal::Source => counters.refused_source_limit.bump(),
                }
            }
            return Err(EndCause::SourceLimit);
        }
        session.counted = Some(source);
        session.header = self.header(settings, client, listen, evidence);
        Ok(true)
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
        let Some(target) = self.next_upstream(session.service, settings, &mut session.tried, Numbers::Ours, now, net)
        else {
            return Err(Relayed::Over(EndCause::DialFailed));
        };
        let Target { index: upstream, route, lease, key, hash } = target;
        let making = Making {
            key,
            way: route.way,
            mtu: route.mtu,
            path: self.path_mtus.get(key.src, now),
            buffer: settings.buffer,
            promised: 0,
            congestion: settings.upstream_congestion,
            isn: self.initial_sequence_number(&key, now),
            timestamp_offset: self.timestamp_offset(&key),
            timestamps: true,
            window_shift: 0,
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
        Ok(())
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
        } else if dialled.endpoint.unreachable || net.reach(dialled.endpoint.leg.way) == Reach::Failed {
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
    pub(crate) fn end<N: Lower>(
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
                Left::Reset | Left::Told => Rest::Brief,
                Left::Closed if dialled.endpoint.leg.timestamps() => Rest::Brief,
                Left::Closed => Rest::TimeWait(dialled.endpoint.leg.last_numbers()),
            };
            let ours = left == Left::Closed && dialled.endpoint.state() == State::TimeWait;
            let reset = left == Left::Reset && dialled.endpoint.leg.guard.synchronized();
            let entry = (ours || reset).then(|| Lingers::entry(&dialled.endpoint, left, hash, now));
            self.hang_up(&mut session, rest, now);
            if let Some(entry) = entry {
                self.keep_linger(entry);
            }
        }
        self.give_back(session.client.leased);
        self.sessions.release(index);
        if session.fell_back {
            self.count_fallen(session.service, -1);
        }
        let ended = Ended {
            service: session.service,
            client: client_key,
            named: session.named,
            counted: session.counted,
            target,
            opened: session.opened,
            connected: session.connected,
            to_upstream: session.to_upstream,
            to_client: session.to_client,
        };
        self.report(&ended, cause, now);
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

    /// When an endpoint's socket wants to emit; one that waits for an answer always does.
    fn emit_at<N: Lower>(&mut self, endpoint: &mut Endpoint, now: Micros, net: &mut N) -> Option<Micros> {
        endpoint.emit_at(&mut self.interfaces, now).or_else(|| {
            endpoint.rouse(&mut self.interfaces, now, net);
            endpoint.emit_at(&mut self.interfaces, now)
        })
    }

    /// Arms the session's timer for the first thing that can happen without a segment; the cause when a limit of it has passed.
    pub(crate) fn wake_later<N: Lower>(
        &mut self,
        index: u32,
        session: &mut Session,
        now: Micros,
        net: &mut N,
    ) -> Option<EndCause> {
        let Some(settings) = self.config.services.get(usize::from(session.service.0)) else {
            return Some(EndCause::Internal);
        };
        let deadline = session.deadline(settings);
        if let Some((_, cause)) = deadline.filter(|(at, _)| now >= *at) {
            return Some(cause);
        }
        if session.dirty {
            return None;
        }
        let mut at = deadline.map(|(at, _)| at);
        let mut sooner = |moment: Micros| at = Some(at.map_or(moment, |at| at.min(moment)));
        if let Some(moment) = session.ask(settings, now, net) {
            sooner(moment);
        }
        let emits = self.emit_at(&mut session.client, now, net);
        let upstream_emits =
            session.upstream.as_mut().and_then(|dialled| self.emit_at(&mut dialled.endpoint, now, net));
        for moment in [emits, upstream_emits].into_iter().flatten() {
            // "Now" after everything was emitted means that the device had no room.
            sooner(moment.max(now.after(ROOM_LOOK)));
        }
        match session.phase {
            Phase::Dialing { until } => sooner(until.min(now.after(DIAL_LOOK))),
            Phase::Delivering { until, .. } => sooner(until),
            Phase::Waiting | Phase::Relaying => {}
        }
        if let Some(at) = at.filter(|at| session.wakes.is_none_or(|armed| *at < armed)) {
            session.wakes = Some(at);
            self.wheel.arm(session_timer(index), at);
        }
        None
    }
}
