//! What comes in: to a session, to what is left of one, or, with a cookie of ours, to a new one.

use sluice_config::ProxyProtocol;
use sluice_filters::units::{Micros, Seq, ServiceId};
use sluice_filters::{DropReason, Segment};

use super::endpoint::{ClientOffer, Endpoint, Making};
use super::guard::Gate;
use super::session::{Session, Side};
use super::{Arrival, CHALLENGE_PAUSE, FlowRef, Stack, advertised, count, send_bare};
use crate::cookie::Offer;
use crate::counters::AckResult;
use crate::limits::Refusal;
use crate::net::{Lower, Way};
use crate::proxy::Header;
use crate::record::EndCause;
use crate::segment;

/// One segment, and what is known of it.
#[derive(Clone, Copy)]
struct Inbound<'a> {
    segment: &'a Segment,
    hash: u64,
    arrival: Arrival,
    /// What its destination names.
    service: Option<ServiceId>,
}

impl Stack {
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
        let inbound = Inbound { segment, hash, arrival, service };
        match self.flows.find(hash, &segment.key).map(FlowRef::from_value) {
            Some(FlowRef::Session(side, index)) => {
                match self.known(side, index, inbound, frame, now, net) {
                    // A client that lost its state may come back from the same port, with a cookie of today.
                    Err(
                        reason @ (DropReason::BadAck
                        | DropReason::OldAck
                        | DropReason::OutOfWindow
                        | DropReason::StaleTimestamp),
                    ) if side == Side::Client => self.restarted(index, reason, inbound, frame, now, net),
                    result => result,
                }
            }
            Some(FlowRef::Linger(index)) => self.lingering(index, inbound, frame, now, net),
            None => self.unknown(inbound, frame, now, net),
        }
    }

    fn known<N: Lower>(
        &mut self,
        side: Side,
        index: u32,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        let Inbound { segment, arrival, .. } = inbound;
        let Some(session) = self.sessions.get_mut(index) else { return Err(DropReason::NoFlow) };
        let Some(endpoint) = session.endpoint(side) else { return Err(DropReason::NoFlow) };
        if endpoint.reset {
            return Err(DropReason::NoFlow);
        }
        if segment.flags.rst() {
            // So that the guard knows the newest ACK: a RST must match it exactly.
            endpoint.emit(&mut self.interfaces, now, net);
        }
        let options = segment.options(frame);
        let range = segment.l4()..segment.end();
        let Some(tcp) = frame.get_mut(range) else { return Err(DropReason::Truncated) };
        let gate = if endpoint.leg.is_stale(segment, &options, now.since(endpoint.heard)) {
            Gate::Challenge(DropReason::StaleTimestamp)
        } else {
            endpoint.leg.guard.judge(segment, tcp)
        };
        match gate {
            Gate::Feed => {
                if side == Side::Client {
                    endpoint.leg.way = Way::Reply { port: arrival.port, mac: arrival.mac };
                }
                let trimmed = without_old_payload(segment, endpoint.leg.guard.rcv_ack(), frame);
                let segment = trimmed.as_ref().unwrap_or(segment);
                endpoint.feed(segment, &options, frame, &mut self.interfaces, now, net);
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
        session.mark(index, &mut self.dirty);
        Ok(())
    }

    /// A client's segment that does not fit its session, which is `reason` to drop it, unless it brings a valid cookie of another
    /// handshake.
    fn restarted<N: Lower>(
        &mut self,
        index: u32,
        reason: DropReason,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        let cookie = Seq(inbound.segment.ack.0.wrapping_sub(1));
        let same_handshake = self.sessions.get_mut(index).is_some_and(|session| session.client.leg.isn() == cookie);
        if same_handshake || self.check(inbound.segment).is_none() {
            return Err(reason);
        }
        if let Some(mut session) = self.sessions.take(index) {
            // Its peer is gone; a RST would hit the new connection.
            session.client.reset = true;
            self.end(index, session, EndCause::ClientRestarted, now, net);
        }
        self.unknown(inbound, frame, now, net)
    }

    fn lingering<N: Lower>(
        &mut self,
        index: u32,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        let Some(answer) = self.lingers.answer(index, inbound.segment) else {
            if inbound.service.is_some()
                && !self.lingers.same_handshake(index, inbound.segment)
                && self.check(inbound.segment).is_some()
            {
                self.forget_linger(index);
                return self.unknown(inbound, frame, now, net);
            }
            return Err(DropReason::NoFlow);
        };
        send_bare(&answer.0, answer.1, net);
        Ok(())
    }

    fn unknown<N: Lower>(
        &mut self,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<(), DropReason> {
        let Inbound { segment, arrival, service, .. } = inbound;
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
        let opened = self.open(inbound, frame, service, offer, now, net);
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

    fn check(&self, segment: &Segment) -> Option<Offer> {
        let flags = segment.flags;
        if !flags.ack() || flags.syn() || flags.rst() {
            return None;
        }
        self.jar.check(&segment.key, Seq(segment.seq.0.wrapping_sub(1)), segment.ack)
    }

    /// The session a valid cookie opens. The only place where a client gets memory.
    fn open<N: Lower>(
        &mut self,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        service: ServiceId,
        offer: Offer,
        now: Micros,
        net: &mut N,
    ) -> Option<()> {
        let settings = self.config.services.get(usize::from(service.0))?;
        let Inbound { segment, hash, arrival: Arrival { port, mac }, .. } = inbound;
        let options = segment.options(frame);
        let making = Making {
            key: segment.key,
            way: Way::Reply { port, mac },
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
        client.feed(segment, &options, frame, &mut self.interfaces, now, net);
        let (remote, local) = (segment.key.remote(), segment.key.local());
        let header = match settings.proxy_protocol {
            ProxyProtocol::Off => None,
            ProxyProtocol::V1 => Some(Header::v1(remote, local)),
            ProxyProtocol::V2 => Some(Header::v2(remote, local)),
        };
        self.counters.buffer_bytes.add(client.leased as u64);
        let mut session = Session::new(service, client, header, now);
        session.mark(index, &mut self.dirty);
        self.sessions.put(index, Box::new(session));
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
}

/// A FIN behind nothing but payload that was received before, made a segment of its own: smoltcp measures segments without their
/// FIN, and would take this one for a copy (RFC 9293 section 3.4 counts the FIN).
fn without_old_payload(segment: &Segment, expected: Seq, frame: &mut [u8]) -> Option<Segment> {
    let end = segment.seq.plus(u32::from(segment.payload_len));
    if !segment.flags.fin() || segment.payload_len == 0 || end != expected {
        return None;
    }
    let mut bare = *segment;
    bare.seq = end;
    bare.payload_len = 0;
    let (l3, l4) = (bare.l3(), bare.l4());
    frame.get_mut(l4 + 4..l4 + 8)?.copy_from_slice(&end.0.to_be_bytes());
    // IPv4's total length, IPv6's payload length.
    let (at, len) = if bare.is_v4() { (l3 + 2, bare.end() - l3) } else { (l3 + 4, bare.end() - l4) };
    frame.get_mut(at..at + 2)?.copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
    Some(bare)
}
