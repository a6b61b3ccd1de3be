//! What comes in: to a session, to what is left of one, or, with a cookie of ours, to a new one.

use std::time::Duration;

use sluice_config::Mode;
use sluice_filters::addr::Addr;
use sluice_filters::rules::Facts;
use sluice_filters::units::{Micros, Seq, ServiceId};
use sluice_filters::{DropReason, Segment};

use super::peace::as_ack;
use super::{Arrival, FlowRef, Outcome, Side, Stack, count, send_bare};
use crate::cookie::Offer;
use crate::counters::{AckResult, Missing};
use crate::limits::Refusal;
use crate::net::{Lower, Way};
use crate::record::EndCause;
use crate::segment;
use crate::splice::promise::SynOffers;

/// One segment, and what is known of it.
#[derive(Clone, Copy)]
pub(crate) struct Inbound<'a> {
    pub(crate) segment: &'a Segment,
    pub(crate) hash: u64,
    pub(crate) arrival: Arrival,
    /// What its destination names.
    pub(crate) service: Option<ServiceId>,
}

/// A client that spoke so recently has not been replaced by another behind its address and port.
const IN_USE: Duration = Duration::from_secs(1);
/// Clients whose MSS is smaller are terminated, whatever their service's mode: the least that every host takes (RFC 9293 section 3.7.1).
const SPLICED_MSS_MIN: u16 = 536;

/// What a client's valid cookie tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validated {
    /// What the handshake agreed on.
    pub(crate) offer: Offer,
    /// What our timestamps towards this client are ahead of the clock.
    pub(crate) ts_offset: u32,
    /// What the SYN-ACK promised.
    pub(crate) promise: SynOffers,
}

impl Validated {
    /// The shift that our windows were promised to be scaled by.
    pub(crate) fn window_shift(&self) -> u8 {
        self.offer.wscale.map_or(0, |_| self.promise.shift())
    }
}

/// Whether a segment refused for this reason may belong to a later connection between the same ends.
fn may_be_another(reason: DropReason) -> bool {
    matches!(reason, DropReason::BadAck | DropReason::OldAck | DropReason::OutOfWindow | DropReason::StaleTimestamp)
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
    ) -> Result<Outcome, DropReason> {
        let inbound = Inbound { segment, hash, arrival, service };
        match self.flows.find(hash, &segment.key).map(FlowRef::from_value) {
            Some(FlowRef::Session(side, index)) => {
                let result = self.terminated(side, index, inbound, frame, now, net).map(|()| Outcome::Consumed);
                match result {
                    // A client that lost its state may come back from the same port, with a cookie of today.
                    Err(reason) if side == Side::Client && may_be_another(reason) => {
                        self.restarted(FlowRef::Session(side, index), reason, inbound, frame, now, net)
                    }
                    result => result,
                }
            }
            Some(FlowRef::Splice(side, index)) => {
                let result = self.spliced(side, index, inbound, frame, now, net);
                match result {
                    Err(reason) if side == Side::Client && may_be_another(reason) => {
                        self.restarted(FlowRef::Splice(side, index), reason, inbound, frame, now, net)
                    }
                    result => result,
                }
            }
            Some(FlowRef::Probe(index)) => {
                let options = segment.options(frame);
                self.probed(index, inbound, &options, now, net)
            }
            Some(FlowRef::Linger(index)) => self.lingering(index, inbound, frame, now, net),
            None => {
                // An upstream's late segments are no client's.
                if service.is_some() {
                    self.filters.flowless(segment.key.src, now)?;
                }
                self.unknown(inbound, frame, now, net)
            }
        }
    }

    /// A client's segment that does not fit its session, which is `reason` to drop it, unless it brings a valid cookie of another
    /// handshake.
    fn restarted<N: Lower>(
        &mut self,
        flow: FlowRef,
        reason: DropReason,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        let cookie = Seq(inbound.segment.ack.0.wrapping_sub(1));
        let silent = match flow {
            FlowRef::Session(_, index) => {
                self.sessions.get(index).map(|session| now.since(session.client.live.heard_at()))
            }
            FlowRef::Splice(_, index) => self.splices.get(index).map(|splice| splice.client_silent(now)),
            FlowRef::Linger(_) | FlowRef::Probe(_) => None,
        };
        // A cookie can be guessed in 2^23 tries, which is not to end a session in use. A client that is really back tries again.
        if self.first_number(flow) == Some(cookie) || silent.is_none_or(|silent| silent < IN_USE) {
            return Err(reason);
        }
        // Nor to be tried at any other pace than where there is no flow.
        self.filters.flowless(inbound.segment.key.src, now)?;
        if self.check(inbound.segment).is_none() {
            return Err(reason);
        }
        match flow {
            FlowRef::Session(_, index) => {
                if let Some(mut session) = self.sessions.take(index) {
                    // Its peer is gone; a RST would hit the new connection.
                    session.client.reset = true;
                    self.end(index, session, EndCause::ClientRestarted, now, net);
                }
            }
            FlowRef::Splice(_, index) => self.end_spliced(index, EndCause::ClientRestarted, now, net),
            FlowRef::Linger(_) | FlowRef::Probe(_) => {}
        }
        self.unknown(inbound, frame, now, net)
    }

    /// Our first number towards the client of this flow: its handshake's cookie. None for what has no client.
    pub(super) fn first_number(&self, flow: FlowRef) -> Option<Seq> {
        match flow {
            FlowRef::Session(Side::Client, index) => Some(self.sessions.get(index)?.client.leg.isn()),
            FlowRef::Splice(Side::Client, index) => Some(self.splices.get(index)?.cookie()),
            FlowRef::Linger(index) => self.lingers.first_number(index),
            FlowRef::Session(..) | FlowRef::Splice(..) | FlowRef::Probe(_) => None,
        }
    }

    fn lingering<N: Lower>(
        &mut self,
        index: u32,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        // The cookie first: by its number alone, a new connection's first ACK may as well be a late one of the old.
        let cookie = Seq(inbound.segment.ack.0.wrapping_sub(1));
        if inbound.service.is_some() && self.lingers.first_number(index) != Some(cookie) {
            self.filters.flowless(inbound.segment.key.src, now)?;
            if self.check(inbound.segment).is_some() {
                self.forget_linger(index);
                return self.unknown(inbound, frame, now, net);
            }
        }
        if inbound.segment.flags.rst() {
            // The next connection's client may not want its SYN-ACK.
            self.unwanted(inbound.hash, inbound.segment);
        }
        let Some(answer) = self.lingers.answer(index, inbound.segment) else { return Err(DropReason::NoFlow) };
        if self.may_answer(inbound.segment.key.src, now) {
            send_bare(&answer.0, answer.1, net);
        }
        Ok(Outcome::Consumed)
    }

    fn unknown<N: Lower>(
        &mut self,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        let Inbound { segment, arrival, service, .. } = inbound;
        let Some(service) = service else { return self.stray(segment, arrival, now, net) };
        let flags = segment.flags;
        if flags.rst() {
            self.unwanted(inbound.hash, segment);
            return Err(DropReason::NoFlow);
        }
        if !flags.ack() || flags.syn() {
            let peace = self.count_flowless();
            self.reset_stranger(inbound.hash, segment, arrival, peace, net);
            return Err(DropReason::NoFlow);
        }
        let ack;
        let (inbound, segment, offer) = match self.check(segment) {
            Some(offer) => (inbound, segment, offer),
            None => {
                let peace = self.count_flowless();
                let probed = if peace { self.check_keep_alive(segment) } else { None };
                let Some((offer, standing)) = probed.and_then(|offer| Some((offer, as_ack(segment, frame)?))) else {
                    self.count_ack(AckResult::BadCookie);
                    self.reset_stranger(inbound.hash, segment, arrival, peace, net);
                    return Err(DropReason::BadCookie);
                };
                self.counters.keep_alives.bump();
                ack = standing;
                (Inbound { segment: &ack, ..inbound }, &ack, offer)
            }
        };
        self.forget_answered(inbound.hash, &segment.key);
        self.syn_was_honest();
        let way = Way::Reply { port: arrival.port, mac: arrival.mac };
        if self.draining {
            self.count_ack(AckResult::Draining);
            self.refuse_within(segment, way, now, net);
            return Err(DropReason::Draining);
        }
        self.filters.verified(segment.key.src, now);
        if let Err(reason) = self.filters.open(&Facts { segment, frame, service }, now) {
            self.count_ack(AckResult::Limit);
            self.refuse_within(segment, way, now, net);
            return Err(reason);
        }
        // Behind a proxy stand many clients; its header tells which.
        let counted = (!self.trusts(service, segment.key.src)).then_some(segment.key.src);
        if let Err(refusal) = self.shared.limits.open(service, counted) {
            self.count_ack(AckResult::Limit);
            if let Some(counters) = self.counters.services.get(usize::from(service.0)) {
                match refusal {
                    Refusal::Connections => counters.refused_limit.bump(),
                    Refusal::Source => counters.refused_source_limit.bump(),
                    Refusal::Share => counters.refused_share.bump(),
                }
            }
            self.refuse_within(segment, way, now, net);
            return Err(match refusal {
                Refusal::Connections => DropReason::ConnectionLimit,
                Refusal::Source | Refusal::Share => DropReason::SourceLimit,
            });
        }
        let cookie = Seq(segment.ack.0.wrapping_sub(1));
        let isn = Seq(segment.seq.0.wrapping_sub(1));
        let ts_offset = self.jar.ts_offset(&segment.key, isn, cookie);
        let epoch = self.jar.epoch_of(&segment.key, isn, cookie);
        let promise = self.promised(service, epoch).unwrap_or(SynOffers::OPEN);
        let validated = Validated { offer, ts_offset, promise };
        if let Some(counters) = self.counters.services.get(usize::from(service.0)) {
            counters.opened.bump();
            counters.active.add(1);
        }
        let opened = match self.config.services.get(usize::from(service.0)).map(|settings| settings.mode) {
            // Upstreams are not to make segments that are mostly headers (CVE-2019-11479).
            Some(Mode::Splice) if offer.mss < SPLICED_MSS_MIN => {
                if let Some(counters) = self.counters.services.get(usize::from(service.0)) {
                    count(&counters.fallbacks, Missing::Mss as usize);
                }
                self.open_terminated(inbound, frame, service, validated, now, net).map(|_| ())
            }
            Some(Mode::Splice) => self.open_spliced(inbound, frame, service, validated, now, net),
            _ => self.open_terminated(inbound, frame, service, validated, now, net).map(|_| ()),
        };
        if opened.is_none() {
            if let Some(counters) = self.counters.services.get(usize::from(service.0)) {
                counters.opened.set(counters.opened.get().saturating_sub(1));
                counters.active.set(counters.active.get().saturating_sub(1));
            }
            self.shared.limits.close(service, counted);
            self.count_ack(AckResult::Limit);
            self.refuse_within(segment, way, now, net);
            return Err(DropReason::ConnectionLimit);
        }
        self.count_ack(AckResult::Accepted);
        Ok(Outcome::Consumed)
    }

    /// Whether `source` is a proxy that names the service's clients.
    pub(crate) fn trusts(&self, service: ServiceId, source: Addr) -> bool {
        let settings = self.config.services.get(usize::from(service.0));
        settings.is_some_and(|settings| {
            !settings.accept_proxy.is_empty() && {
                let ip = source.to_ip();
                settings.accept_proxy.iter().any(|net| net.contains(&ip))
            }
        })
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

    /// A segment from an upstream (`sluice_filters::gate` says so) that is of no flow: it gets a RST, so that it does not hold for long what
    /// we no longer know.
    fn stray<N: Lower>(
        &mut self,
        segment: &Segment,
        arrival: Arrival,
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        self.refuse_within(segment, Way::Reply { port: arrival.port, mac: arrival.mac }, now, net);
        Err(DropReason::NoFlow)
    }

    /// Whether a segment of no connection may be answered; counts what may not.
    fn may_answer(&mut self, source: Addr, now: Micros) -> bool {
        let may = self.filters.may_answer(source, now);
        if !may {
            self.counters.answers_withheld.bump();
        }
        may
    }

    /// [`Stack::refuse`] within the ceiling of such answers.
    fn refuse_within<N: Lower>(&mut self, segment: &Segment, way: Way, now: Micros, net: &mut N) {
        if !segment.flags.rst() && self.may_answer(segment.key.src, now) {
            self.refuse(segment, way, net);
        }
    }

    /// Answers with the RST that RFC 9293 section 3.10.7.1 gives to a segment without a connection. For a segment that only the other end
    /// of a dial can have sent; others are [`Stack::refuse_within`]'s.
    pub(crate) fn refuse<N: Lower>(&self, segment: &Segment, way: Way, net: &mut N) {
        if let Some(reset) = segment::reset_for(segment) {
            self.counters.resets_sent.bump();
            send_bare(&reset, way, net);
        }
    }
}
