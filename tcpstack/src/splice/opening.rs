//! From a valid cookie to a connected upstream.
//!
//! The dial's first sequence number is the client's, less the length of the PROXY header: the SYN takes one number, the header the
//! following ones, and the client's first octet stands where the client put it. What the client sends before the upstream has
//! accepted is held, within bounds, and follows the header; what finds no room the client sends again. The header is repeated
//! until it is acknowledged, then forgotten; until then acknowledgments of its octets stay here.
//!
//! The upstream must not take the handshake with us for the way to the client: a sender that goes by the least round trip it ever
//! saw (BBR's, RACK's) would hold back for it. When the client is far, the SYN is therefore sent once more as soon as it was
//! answered, so that the answer's round trip counts for nothing (Karn's algorithm, RFC 6298 section 3), and the ACK that completes the
//! handshake carries no timestamp to measure by. It costs no time; the second answer is acknowledged again.
//!
//! A SYN-ACK that accepts less than was promised to the client ends the attempt: the session goes on in terminate mode.

use std::num::NonZeroU16;
use std::time::Duration;

use sluice_config::{Connect, Service};
use sluice_filters::addr::FlowKey;
use sluice_filters::checksum::{self, Sum, TCP};
use sluice_filters::units::{Micros, Seq, ServiceId};
use sluice_filters::{DropReason, Flags, Parsed, RxChecksums, Segment, TcpOptions, parse};

use super::forward::{Forward, Marks, Received, forward, without_garbage};
use super::promise::{Accepted, SynOffers};
use super::window::{Gate, Half, Start};
use super::{End, NOT_CONNECTED, Splice, State, coarse};
use crate::cookie::Offer;
use crate::counters::{DialFailure, Missing};
use crate::net::{Lower, Reach, Way};
use crate::path_mtu::{MIN_V6, PackedPath, Path, PathMtu, PathSource, Whole};
use crate::ports::Rest;
use crate::proxy::Header;
use crate::record::EndCause;
use crate::segment::{self, BareSegment, PACKET_MAX, SynSegment, TcpChecksum};
use crate::stack::ending::{Numbers, Target};
use crate::stack::ingress::{Inbound, Validated};
use crate::stack::{Arrival, FlowRef, Outcome, Side, Stack, count, send_bare};
use crate::translate::Patch;

/// Segments held for one session: an initial window of ten (RFC 6928), and what its retransmission may add.
const HELD_MAX: usize = 16;
/// Octets held for all of a worker's sessions together.
pub(crate) const HELD_OCTETS_MAX: usize = 32 << 20;
/// When only a quarter of them is left, it is for services that hold less than this.
const HELD_SHARE: usize = HELD_OCTETS_MAX / 16;
/// The first pause before a SYN or a header is repeated; each next one is twice as long.
const RESEND_FIRST: Duration = Duration::from_millis(200);
const RESEND_MAX: Duration = Duration::from_secs(3);
/// After an old connection of the upstream's was reset, the SYN is repeated this soon, but not without end.
const RESEND_AFTER_RESET: Duration = Duration::from_millis(5);
const QUICK_RESENDS: u8 = 2;
/// While a dial waits for its next hop, it looks again this often.
const DIAL_LOOK: Duration = Duration::from_millis(100);
/// A client whose round trip is no longer than this is as near as its upstream may believe, milliseconds.
const NEAR: u32 = 5;
/// Acknowledgments that do not cover the header after which it is repeated at once (RFC 5681 section 3.2).
const DUPLICATES: u8 = 3;

/// Octets of clients' segments that wait for an upstream to accept.
pub(crate) struct HeldOctets {
    all: usize,
    by_service: Vec<usize>,
}

impl HeldOctets {
    /// None, of so many services.
    pub(crate) fn none(services: usize) -> HeldOctets {
        HeldOctets { all: 0, by_service: vec![0; services] }
    }

    /// All of them.
    pub(crate) fn all(&self) -> usize {
        self.all
    }

    /// Takes room for so many of a service's, if there is any: a silent upstream's clients leave some to the others'.
    fn take(&mut self, service: ServiceId, octets: usize) -> bool {
        let Some(own) = self.by_service.get_mut(usize::from(service.0)) else { return false };
        let scarce = self.all > HELD_OCTETS_MAX / 4 * 3;
        if self.all.saturating_add(octets) > HELD_OCTETS_MAX || (scarce && own.saturating_add(octets) > HELD_SHARE) {
            return false;
        }
        *own = own.saturating_add(octets);
        self.all = self.all.saturating_add(octets);
        true
    }

    /// Others hold so many.
    #[cfg(test)]
    pub(crate) fn fill(&mut self, octets: usize) {
        self.all = octets;
    }

    fn give_back(&mut self, service: ServiceId, octets: usize) {
        self.all = self.all.saturating_sub(octets);
        if let Some(own) = self.by_service.get_mut(usize::from(service.0)) {
            *own = own.saturating_sub(octets);
        }
    }
}

/// What is known until the upstream has acknowledged all that comes from us.
pub(crate) struct Opening {
    stage: Stage,
    offer: Offer,
    promise: SynOffers,
    ts_offset: u32,
    arrival: Arrival,
    header: Option<Header>,
    held: Vec<Held>,
    /// Upstreams tried, by index.
    tried: u64,
    resend_at: Micros,
    pause: Duration,
    /// When the upstream accepted, once it did.
    accepted: Micros,
    /// How often the SYN of this dial was repeated after a reset.
    quick: u8,
    /// The client has payload to send.
    spoke: bool,
    /// The client is far, as far as anybody knows.
    far: bool,
    /// The SYN was sent twice on purpose: another answer is on its way.
    twice: bool,
    duplicates: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// `connect = "on-data"`: nothing dialled yet.
    Waiting,
    /// A SYN is on its way.
    Dialing { target: Target, until: Micros },
    /// The upstream has accepted, and has not acknowledged the header.
    Greeting,
}

/// A client's segment that waits for the upstream.
struct Held {
    segment: Segment,
    frame: Box<[u8]>,
}

impl Opening {
    fn header_len(&self) -> u32 {
        self.header.as_ref().map_or(0, |header| header.as_slice().len() as u32)
    }

    fn held_octets(&self) -> usize {
        self.held.iter().map(|held| held.frame.len()).sum()
    }

    /// Our SYN's number towards the upstream, of a client that began with `isn`.
    fn dial_isn(&self, isn: Seq) -> Seq {
        Seq(isn.0.wrapping_sub(self.header_len()))
    }
}

impl Splice {
    /// Our SYN's timestamp towards the upstream.
    fn timestamp(&self) -> Option<u32> {
        self.state.has(State::TIMESTAMPS).then_some(self.client.timestamp)
    }

    /// Our SYN's number towards the upstream while it is being dialled.
    pub(super) fn dialling(&self) -> Option<Seq> {
        let opening = self.opening.as_ref()?;
        matches!(opening.stage, Stage::Dialing { .. }).then(|| opening.dial_isn(self.isn))
    }

    /// A held segment leaves after the header, whose timestamp is that of the client's newest: it must not look older.
    fn freshen(&self, marks: &Marks, tcp: &mut [u8]) {
        let Some((value, _)) = marks.timestamp.filter(|_| self.state.has(State::TIMESTAMPS)) else { return };
        let behind = self.client.timestamp.wrapping_sub(value);
        if (behind as i32) > 0 {
            let mut patch = Patch::new(tcp);
            patch.add(marks.timestamp_at, behind);
            patch.finish();
        }
    }

    /// The frame that completed the client's handshake, as far as it matters: terminate mode begins with it. `echo` is a timestamp
    /// of ours.
    fn first_ack(&self, key: FlowKey, echo: u32) -> Vec<u8> {
        let ack = BareSegment {
            key,
            direction: segment::Direction::FromPeer,
            seq: self.isn.plus(1),
            ack: self.cookie.plus(1),
            flags: Flags::ACK,
            window: self.client.window_field(),
            timestamp: self.state.has(State::TIMESTAMPS).then_some((self.client.timestamp, echo)),
            ttl: segment::TTL,
        };
        let ether_type: [u8; 2] = if key.src.is_v4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        let mut frame = [&[0; 12][..], &ether_type, &[0; PACKET_MAX]].concat();
        if let Some(packet) = frame.get_mut(14..) {
            let len = ack.write(packet, TcpChecksum::Full).unwrap_or(0);
            frame.truncate(len.saturating_add(14));
        }
        frame
    }

    /// Our first number towards the upstream, as far as late segments of its may acknowledge it.
    pub(super) fn dial_isn(&self) -> Seq {
        self.opening.as_ref().map_or(self.isn, |opening| opening.dial_isn(self.isn))
    }

    /// Whether an upstream has accepted.
    pub(super) fn is_connected(&self) -> bool {
        self.connected != NOT_CONNECTED
    }
}

impl Stack {
    /// The session a valid cookie opens.
    pub(crate) fn open_spliced<N: Lower>(
        &mut self,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        service: ServiceId,
        validated: Validated,
        now: Micros,
        net: &mut N,
    ) -> Option<()> {
        let config = self.config.clone();
        let settings = config.services.get(usize::from(service.0))?;
        let Inbound { segment, hash, arrival, .. } = inbound;
        let Validated { offer, ts_offset, promise } = validated;
        let options = segment.options(frame);
        let evidence = self.evidence(service, segment, &options, segment.option_octets(frame), validated);
        let header = self.header(settings, segment.key.remote(), segment.key.local(), evidence);
        let isn = Seq(segment.seq.0.wrapping_sub(1));
        let cookie = Seq(segment.ack.0.wrapping_sub(1));
        let listen = u16::try_from(*self.listen_index.get(&(segment.key.dst, segment.key.dst_port))?).ok()?;
        let shift = offer.wscale.unwrap_or(0);
        let timestamp = options.timestamp.map(|(value, _)| value);
        let clock = coarse(now);
        let mut state = State::default();
        if timestamp.is_some() {
            state.set(State::TIMESTAMPS);
            state.set(State::ECHOES_OURS);
        }
        let opening = Opening {
            stage: Stage::Waiting,
            offer,
            promise,
            ts_offset,
            arrival,
            header,
            held: Vec::new(),
            tried: 0,
            resend_at: now,
            pause: RESEND_FIRST,
            accepted: now,
            quick: 0,
            spoke: false,
            far: evidence.rtt_ms.is_none_or(|elapsed| elapsed > NEAR),
            twice: false,
            duplicates: 0,
        };
        let window = u32::from(segment.window) << shift;
        let stamp = timestamp.unwrap_or(0);
        let index = self.splices.insert(Splice {
            client_addr: segment.key.src,
            client_port: NonZeroU16::new(segment.key.src_port)?,
            our_port: 0,
            listen,
            pair: 0,
            service,
            seq_delta: 0,
            // Until the upstream's clock is known, its timestamp of 0 is ours of now.
            ts_delta: self.timestamp_ms.wrapping_add(ts_offset),
            change: 0,
            state,
            promised_shift: validated.window_shift(),
            mac: arrival.mac,
            hop: 0,
            client: Half::new(
                Start { first: isn.plus(1), ack: cookie.plus(1), window, shift, timestamp: stamp },
                arrival.port,
                clock,
            ),
            upstream: Half::new(
                Start {
                    first: cookie.plus(1),
                    ack: isn.plus(1),
                    window: u32::from(promise.window),
                    shift: 0,
                    timestamp: 0,
                },
                arrival.port,
                clock,
            ),
            client_path: cut_for(self.path_mtus.get(segment.key.src, now)),
            upstream_path: PackedPath::UNKNOWN,
            isn,
            cookie,
            opened: now.into(),
            connected: NOT_CONNECTED,
            moved: clock,
            waiting: clock,
            challenged: 0,
            opening: Some(Box::new(opening)),
        })?;
        if self.flows.insert(hash, &segment.key, FlowRef::Splice(Side::Client, index).value()).is_err() {
            self.splices.take(index);
            return None;
        }
        // Payload that came with the cookie is the first to be held. The segment itself needs no other answer than the dial.
        let _: Result<Outcome, DropReason> = self.spliced_opening(Side::Client, index, inbound, frame, now, net);
        self.advance_opening(index, now, net);
        Some(())
    }

    /// A segment of a session's whose upstream has not acknowledged all that comes from us.
    #[cold]
    pub(super) fn spliced_opening<N: Lower>(
        &mut self,
        side: Side,
        index: u32,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        let Some(splice) = self.splices.get(index) else { return Err(DropReason::NoFlow) };
        let isn = splice.isn;
        let Some(opening) = splice.opening.as_deref() else { return Err(DropReason::NoFlow) };
        match (side, opening.stage) {
            (Side::Client, _) if writes_before(inbound.segment, isn.plus(1)) => {
                // A keep-alive may have a byte of garbage, which is no part of the stream (RFC 9293 section 3.8.4).
                if inbound.segment.seq == isn
                    && let Some((bare, arrival)) = without_garbage(&inbound, frame)
                {
                    let inbound = Inbound { segment: &bare, arrival, ..inbound };
                    return self.spliced_opening(side, index, inbound, frame, now, net);
                }
                // Who sends it waits for an answer.
                self.challenge(Side::Client, index, now, net);
                Err(DropReason::OutOfWindow)
            }
            (Side::Client, Stage::Greeting) => self.spliced_connected(side, index, inbound, frame, now, net),
            (Side::Client, Stage::Waiting | Stage::Dialing { .. }) => self.early(index, inbound, frame, now, net),
            (Side::Upstream, Stage::Waiting) => Err(DropReason::NoFlow),
            (Side::Upstream, Stage::Dialing { target, .. }) => {
                let options = inbound.segment.options(frame);
                self.answered(index, target, inbound, &options, now, net)
            }
            (Side::Upstream, Stage::Greeting) => self.greeted(index, inbound, frame, now, net),
        }
    }

    /// A client's segment before the upstream has accepted.
    fn early<N: Lower>(
        &mut self,
        index: u32,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        let Inbound { segment, arrival, .. } = inbound;
        let Some(splice) = self.splices.get_mut(index) else { return Err(DropReason::NoFlow) };
        let marks = Marks::of(segment, frame);
        let passing = splice.passing(Side::Client, segment, &marks);
        match splice.judge(Side::Client, &passing) {
            Gate::Pass => {}
            // Nobody judges it yet. The client that sent it answers a challenge with a RST that fits.
            Gate::DoubtfulReset => {
                return self.unfit(Side::Client, index, Gate::Challenge(DropReason::BadRst), inbound, frame, now, net);
            }
            Gate::Reset => {
                self.end_spliced(index, EndCause::ClientReset, now, net);
                return Ok(Outcome::Consumed);
            }
            gate => return self.unfit(Side::Client, index, gate, inbound, frame, now, net),
        }
        (splice.client.port, splice.mac) = (arrival.port, arrival.mac);
        if !passing.occupies() {
            let _ = splice.note(Side::Client, &passing, coarse(now));
            if passing.seq == splice.isn {
                // A keep-alive, which there is nobody else to answer (RFC 9293 section 3.8.4).
                self.challenge(Side::Client, index, now, net);
            }
            return Ok(Outcome::Consumed);
        }
        let Some(opening) = &mut splice.opening else { return Err(DropReason::NoFlow) };
        opening.spoke = true;
        let same = |held: &Held| held.segment.seq == segment.seq && held.segment.seq_end() == segment.seq_end();
        if !opening.held.iter().any(same) {
            let octets = frame.get(..segment.end()).unwrap_or_default();
            if opening.held.len() >= HELD_MAX || !self.held.take(splice.service, octets.len()) {
                // Not noted: the client sends it again.
                self.advance_opening(index, now, net);
                return Err(DropReason::DialBacklog);
            }
            let mut octets: Box<[u8]> = octets.into();
            if arrival.unfinished
                && let Some(tcp) = octets.get_mut(segment.l4()..segment.end())
            {
                checksum::fill_tcp(tcp, segment.key.src, segment.key.dst);
            }
            opening.held.push(Held { segment: *segment, frame: octets });
        }
        let _ = splice.note(Side::Client, &passing, coarse(now));
        self.advance_opening(index, now, net);
        Ok(Outcome::Consumed)
    }

    /// Dials, when it is time to.
    fn advance_opening<N: Lower>(&mut self, index: u32, now: Micros, net: &mut N) {
        let config = self.config.clone();
        let Some(splice) = self.splices.get_mut(index) else { return };
        let Some(settings) = config.services.get(usize::from(splice.service.0)) else { return };
        let Some(opening) = &splice.opening else { return };
        if opening.stage != Stage::Waiting {
            return;
        }
        if settings.connect == Connect::OnAccept || opening.spoke {
            self.dial_spliced(index, settings, now, net);
        } else {
            self.wait_for_splice(index, settings, now);
        }
    }

    /// Dials the next upstream that the session has not tried; ends it when there is none.
    fn dial_spliced<N: Lower>(&mut self, index: u32, settings: &Service, now: Micros, net: &mut N) {
        let Some(splice) = self.splices.get_mut(index) else { return };
        let service = splice.service;
        let Some(opening) = splice.opening.as_ref() else { return };
        let (mut tried, isn) = (opening.tried, opening.dial_isn(splice.isn));
        let numbers = Numbers::Clients { isn, timestamp: splice.timestamp() };
        let target = self.next_upstream(service, settings, &mut tried, numbers, now, net);
        let Some(splice) = self.splices.get_mut(index) else { return };
        let Some(opening) = &mut splice.opening else { return };
        opening.tried = tried;
        let Some(target) = target else {
            self.end_spliced(index, EndCause::DialFailed, now, net);
            return;
        };
        let place = |index: u32| u16::try_from(index).ok();
        let (port, hop) = match target.route.way {
            Way::Neighbor { port, id } => (port, id),
            Way::Reply { port, .. } => (port, 0),
        };
        let (Some(pair), Some(hop)) = (place(target.lease.space.0), place(hop)) else {
            // More pairs of addresses, or next hops, than a session can name. Nothing was sent that the port has to rest for.
            self.source_ports.release(target.lease, Rest::None, now);
            self.end_spliced(index, EndCause::Internal, now, net);
            return;
        };
        opening.stage = Stage::Dialing { target, until: now.after(settings.timeouts.connect) };
        opening.pause = RESEND_FIRST;
        opening.quick = 0;
        splice.our_port = target.lease.port;
        (splice.pair, splice.hop, splice.upstream.port) = (pair, hop, port);
        splice.upstream_path = cut_for(self.path_mtus.get(target.key.src, now));
        if self.flows.insert(target.hash, &target.key, FlowRef::Splice(Side::Upstream, index).value()).is_err() {
            self.end_spliced(index, EndCause::Internal, now, net);
            return;
        }
        self.send_syn(index, now, net);
    }

    /// Sends the dial's SYN, again or for the first time, and says when to look again.
    fn send_syn<N: Lower>(&mut self, index: u32, now: Micros, net: &mut N) {
        self.emit_syn(index, net);
        let Some(opening) = self.splices.get_mut(index).and_then(|splice| splice.opening.as_deref_mut()) else {
            return;
        };
        let Stage::Dialing { until, .. } = opening.stage else { return };
        opening.resend_at = now.after(opening.pause);
        opening.pause = opening.pause.saturating_mul(2).min(RESEND_MAX);
        let look = opening.resend_at.min(until).min(now.after(DIAL_LOOK));
        self.splice_wheel.arm(index, look);
    }

    fn emit_syn<N: Lower>(&mut self, index: u32, net: &mut N) {
        let mtus = &self.mtus;
        let Some(splice) = self.splices.get_mut(index) else { return };
        let window = splice.client.window();
        let timestamp = splice.timestamp();
        let Some(opening) = splice.opening.as_deref_mut() else { return };
        let Stage::Dialing { target, .. } = opening.stage else { return };
        // What the upstream sends has to fit both ports, whatever the families.
        let client_mtu = mtus.get(usize::from(splice.client.port.0)).copied().unwrap_or(1500);
        let mss = opening
            .offer
            .mss
            .min(segment::mss_of(client_mtu, splice.client_addr.is_v4()))
            .min(segment::mss_of(target.route.mtu, target.key.src.is_v4()));
        let syn = SynSegment {
            key: target.key,
            direction: segment::Direction::ToPeer,
            isn: opening.dial_isn(splice.isn),
            mss,
            wscale: opening.offer.wscale,
            sack: opening.offer.sack,
            timestamp,
            window: u16::try_from(window).unwrap_or(u16::MAX),
        };
        let mut packet = [0; PACKET_MAX];
        if let Some(octets) =
            segment::synthesize_syn(&syn, &mut packet, TcpChecksum::Full).and_then(|len| packet.get(..len))
        {
            net.send(target.route.way, octets.len(), |out| out.copy_from_slice(octets));
        }
    }

    /// What the dialled upstream answered.
    fn answered<N: Lower>(
        &mut self,
        index: u32,
        target: Target,
        inbound: Inbound<'_>,
        options: &TcpOptions,
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        let Inbound { segment, arrival, .. } = inbound;
        let Some(splice) = self.splices.get_mut(index) else { return Err(DropReason::NoFlow) };
        let isn = splice.isn;
        let Some(opening) = splice.opening.as_deref_mut() else { return Err(DropReason::NoFlow) };
        let flags = segment.flags;
        let acknowledges_syn = flags.ack() && segment.ack == opening.dial_isn(isn).plus(1);
        if flags.rst() {
            if !acknowledges_syn {
                return Err(DropReason::BadRst);
            }
            self.dial_denied(index, target, DialFailure::Refused, now, net);
            return Ok(Outcome::Consumed);
        }
        if flags.ack() && !acknowledges_syn {
            // What is left of an older connection (RFC 9293 section 3.10.7.3): a RST ends it, and then our SYN is new.
            if opening.quick < QUICK_RESENDS {
                opening.quick = opening.quick.saturating_add(1);
                opening.resend_at = now.after(RESEND_AFTER_RESET);
                let at = opening.resend_at;
                self.splice_wheel.arm_sooner(index, at);
            }
            self.refuse(segment, Way::Reply { port: arrival.port, mac: arrival.mac }, net);
            return Err(DropReason::BadAck);
        }
        if !flags.syn() {
            return Err(DropReason::BadAck);
        }
        if !flags.ack() {
            return Err(DropReason::SynOnFlow);
        }
        self.accepted(index, target, segment, options, now, net);
        Ok(Outcome::Consumed)
    }

    /// The upstream accepted.
    fn accepted<N: Lower>(
        &mut self,
        index: u32,
        target: Target,
        segment: &Segment,
        options: &TcpOptions,
        now: Micros,
        net: &mut N,
    ) {
        let Some(splice) = self.splices.get_mut(index) else { return };
        let service = splice.service;
        let Some(opening) = splice.opening.as_deref_mut() else { return };
        let offered = Accepted::offered(&opening.offer, splice.state.has(State::TIMESTAMPS));
        let mut got = Accepted::of(segment, options, &offered);
        let (promise, port, v4) = (opening.promise, splice.client.port, splice.client_addr.is_v4());
        let header_len = opening.header_len();
        let unit = 1_u32 << splice.promised_shift;
        let promised_mss = self.mss_on(&promise, port, v4);
        got.fit(target.route, target.key.src.is_v4());
        let board = &self.shared.board;
        let told = board.told(target.key.src, now).map(|mtu| segment::mss_of(mtu, target.key.src.is_v4()));
        if let Some(missing) = got.missing(&offered, promised_mss, told, header_len, unit) {
            // The number it answered was the client's choice, so this is no news yet.
            board.want_probe(service, target.index);
            self.fall_back(index, target, segment, missing, now, net);
            return;
        }
        let forgets = board.may_forget(service, target.index, now);
        let Some((client, listen, ours, upstream)) = self.ends(index) else { return };
        let clock = coarse(now);
        let Some(splice) = self.splices.get_mut(index) else { return };
        let Some(opening) = splice.opening.as_deref_mut() else { return };
        // To an upstream that keeps nothing of a SYN the last ACK must say all, and to a second SYN it says no other thing.
        let far = opening.far && !forgets;
        if far {
            opening.twice = true;
            self.emit_syn(index, net);
        }
        let Some(splice) = self.splices.get_mut(index) else { return };
        let Some(opening) = splice.opening.as_deref_mut() else { return };
        splice.connected =
            u32::try_from(now.since(splice.opened.get()).as_micros()).unwrap_or(u32::MAX - 1).min(u32::MAX - 1);
        splice.moved = clock;
        // What the client sent before goes out now.
        splice.waiting = clock;
        splice.seq_delta = splice.cookie.minus(segment.seq);
        let theirs = options.timestamp.map_or(0, |(value, _)| value);
        if options.timestamp.is_none() {
            splice.state.clear(State::TIMESTAMPS);
        }
        splice.ts_delta = self.timestamp_ms.wrapping_add(opening.ts_offset).wrapping_sub(theirs);
        splice.change = change(client, listen, ours, upstream);
        // The header takes its share of the window, and a SYN's window is not scaled.
        let window = u32::from(segment.window).saturating_sub(header_len);
        let shift = if opening.offer.wscale.is_some() { options.wscale.unwrap_or(0) } else { 0 };
        let port = splice.upstream.port;
        splice.upstream = Half::new(
            Start { first: splice.cookie.plus(1), ack: splice.isn.plus(1), window, shift, timestamp: theirs },
            port,
            clock,
        );
        opening.stage = Stage::Greeting;
        opening.accepted = now;
        opening.pause = RESEND_FIRST;
        let held = std::mem::take(&mut opening.held);
        self.held.give_back(splice.service, held.iter().map(|held| held.frame.len()).sum());
        if far || (header_len == 0 && held.is_empty()) {
            let mut ack = splice.bare_ack(Side::Upstream, (upstream, ours));
            ack.seq = splice.dial_isn().plus(1);
            ack.timestamp = ack.timestamp.filter(|_| !far);
            send_bare(&ack, splice.way(Side::Upstream), net);
        }
        if header_len > 0 {
            self.send_header(index, now, net);
        }
        let Some(splice) = self.splices.get_mut(index) else { return };
        let path = splice.path(Side::Upstream).unpack(now).limit().min(target.route.mtu);
        for Held { segment, mut frame } in held {
            let marks = Marks::of(&segment, &frame);
            let received = Received { segment: &segment, marks, unfinished: false };
            let Some(tcp) = frame.get_mut(segment.l4()..segment.end()) else { continue };
            splice.freshen(&marks, tcp);
            splice.rewrite(Side::Client, &received, tcp, (ours, upstream));
            let Forward { way, ip, .. } = forward(splice, Side::Client, &segment, (ours, upstream));
            // Nobody looked yet whether it fits where it goes now.
            Whole { way, ip, tcp, header_len: usize::from(segment.tcp_len) }.send_in_pieces(path, net);
        }
        if header_len == 0 {
            self.opened_spliced(index, now);
        }
    }

    /// Nothing of ours is waiting for the upstream any more.
    fn opened_spliced(&mut self, index: u32, now: Micros) {
        let config = self.config.clone();
        let Some(splice) = self.splices.get_mut(index) else { return };
        splice.opening = None;
        if let Some(settings) = config.services.get(usize::from(splice.service.0)) {
            self.wait_for_splice(index, settings, now);
        }
    }

    /// Sends the PROXY header, again or for the first time.
    fn send_header<N: Lower>(&mut self, index: u32, now: Micros, net: &mut N) {
        let Some((_, _, ours, upstream)) = self.ends(index) else { return };
        let Some(splice) = self.splices.get_mut(index) else { return };
        let mut ack = splice.bare_ack(Side::Upstream, (upstream, ours));
        // What the client acknowledged meanwhile it says itself: what a forger says in its name is not repeated in ours.
        ack.ack = splice.upstream_isn().plus(1);
        let (isn, way) = (splice.isn, splice.way(Side::Upstream));
        let Some(opening) = splice.opening.as_deref_mut() else { return };
        ack.seq = opening.dial_isn(isn).plus(1);
        ack.flags = Flags::ACK | Flags::PSH;
        let header = opening.header.as_ref().map_or(&[][..], Header::as_slice);
        net.send(way, ack.len().saturating_add(header.len()), |out| ack.write_with(header, out));
        opening.duplicates = 0;
        opening.resend_at = now.after(opening.pause);
        opening.pause = opening.pause.saturating_mul(2).min(RESEND_MAX);
        self.splice_wheel.arm(index, opening.resend_at);
    }

    /// A segment of the upstream's while our header may be unacknowledged.
    fn greeted<N: Lower>(
        &mut self,
        index: u32,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        now: Micros,
        net: &mut N,
    ) -> Result<Outcome, DropReason> {
        let Inbound { segment, .. } = inbound;
        let Some(splice) = self.splices.get_mut(index) else { return Err(DropReason::NoFlow) };
        let first = splice.isn.plus(1);
        if segment.flags.syn() && segment.flags.ack() && segment.seq == splice.upstream_isn() {
            let Some((_, _, ours, upstream)) = self.ends(index) else { return Err(DropReason::NoFlow) };
            let Some(splice) = self.splices.get_mut(index) else { return Err(DropReason::NoFlow) };
            splice.upstream.note_syn_ack_again(Marks::of(segment, frame).timestamp.map(|(value, _)| value));
            let mut ack = splice.bare_ack(Side::Upstream, (upstream, ours));
            ack.seq = splice.dial_isn().plus(1);
            match splice.opening.as_deref_mut() {
                Some(opening) if opening.twice => {
                    opening.twice = false;
                    send_bare(&ack, splice.way(Side::Upstream), net);
                }
                // Our first segment was lost, or its SYN-ACK was slow.
                _ => self.send_header(index, now, net),
            }
            return Ok(Outcome::Consumed);
        }
        if segment.flags.rst() {
            let mut raised = *segment;
            // The client knows nothing of the header.
            if segment.flags.ack() && segment.ack.precedes(first) {
                raised.ack = first;
                if let Some(tcp) = frame.get_mut(segment.l4()..segment.end()) {
                    let mut patch = Patch::new(tcp);
                    patch.set(8, first.0);
                    patch.finish();
                }
            }
            return self.spliced_connected(
                Side::Upstream,
                index,
                Inbound { segment: &raised, ..inbound },
                frame,
                now,
                net,
            );
        }
        if !segment.ack.precedes(first) {
            let passing = splice.passing(Side::Upstream, segment, &Marks::default());
            if splice.judge(Side::Upstream, &passing) == Gate::Pass {
                self.opened_spliced(index, now);
            }
            return self.spliced_connected(Side::Upstream, index, inbound, frame, now, net);
        }
        let missing = first.minus(segment.ack);
        let Some(opening) = splice.opening.as_deref_mut() else { return Err(DropReason::NoFlow) };
        if !segment.flags.ack() || missing > opening.header_len() {
            return Err(DropReason::OldAck);
        }
        // As if everything of ours had been acknowledged: the client knows nothing of it.
        let mut raised = *segment;
        raised.ack = first;
        let short = missing.div_ceil(1 << splice.upstream.shift);
        raised.window = u16::try_from(u32::from(segment.window).saturating_sub(short)).unwrap_or(0);
        let marks = Marks::of(segment, frame);
        let passing = splice.passing(Side::Upstream, &raised, &marks);
        if splice.judge(Side::Upstream, &passing) == Gate::Pass && !passing.occupies() {
            let _ = splice.note(Side::Upstream, &passing, coarse(now));
            if let Some(opening) = splice.opening.as_deref_mut() {
                opening.duplicates = opening.duplicates.saturating_add(1);
                if opening.duplicates == DUPLICATES {
                    self.send_header(index, now, net);
                }
            }
            return Ok(Outcome::Consumed);
        }
        if let Some(tcp) = frame.get_mut(segment.l4()..segment.end()) {
            let mut patch = Patch::new(tcp);
            patch.set(8, raised.ack.0);
            patch.set_window(raised.window);
            patch.finish();
        }
        self.spliced_connected(Side::Upstream, index, Inbound { segment: &raised, ..inbound }, frame, now, net)
    }

    /// A timer of a session that is still opening.
    pub(super) fn opening_due<N: Lower>(&mut self, index: u32, settings: &Service, now: Micros, net: &mut N) {
        let Some(splice) = self.splices.get_mut(index) else { return };
        let Some(opening) = splice.opening.as_deref_mut() else { return };
        match opening.stage {
            Stage::Waiting => self.wait_for_splice(index, settings, now),
            Stage::Dialing { target, until } => {
                if now >= until {
                    self.dial_failed_spliced(index, target, DialFailure::Timeout, now, net);
                } else if net.reach(target.route.way) == Reach::Failed {
                    self.dial_failed_spliced(index, target, DialFailure::Unreachable, now, net);
                } else if now >= opening.resend_at {
                    if opening.quick == 0 && net.reach(target.route.way) == Reach::Known {
                        self.shared.board.strain(splice.service, target.index, now);
                    }
                    self.send_syn(index, now, net);
                } else {
                    let look = opening.resend_at.min(until).min(now.after(DIAL_LOOK));
                    self.splice_wheel.arm(index, look);
                }
            }
            Stage::Greeting => {
                if now >= opening.accepted.after(settings.timeouts.unacknowledged) {
                    self.end_spliced(index, EndCause::UpstreamTimeout, now, net);
                } else if now >= opening.resend_at {
                    self.send_header(index, now, net);
                } else {
                    let at = opening.resend_at;
                    self.splice_wheel.arm(index, at);
                }
            }
        }
    }

    /// One upstream did not become a connection: the next one's turn.
    pub(super) fn dial_failed_spliced<N: Lower>(
        &mut self,
        index: u32,
        target: Target,
        failure: DialFailure,
        now: Micros,
        net: &mut N,
    ) {
        let Some(service) = self.splices.get_mut(index).map(|splice| splice.service) else { return };
        self.shun(service, target.index, now);
        self.dial_denied(index, target, failure, now, net);
    }

    /// The same by somebody's word, who may only know the client's number: that is between the two of them, and no other client's dial
    /// goes another way for it.
    pub(super) fn dial_denied<N: Lower>(
        &mut self,
        index: u32,
        target: Target,
        failure: DialFailure,
        now: Micros,
        net: &mut N,
    ) {
        let config = self.config.clone();
        let Some(service) = self.splices.get_mut(index).map(|splice| splice.service) else { return };
        let Some(settings) = config.services.get(usize::from(service.0)) else { return };
        self.count_dial_failure(service, target.index, failure);
        let rest = if failure == DialFailure::Refused { Rest::None } else { Rest::Brief };
        self.let_go(index, target, rest, now);
        self.dial_spliced(index, settings, now, net);
    }

    /// The dial in progress, for an ICMP error about its SYN.
    pub(super) fn dialled(&self, index: u32) -> Option<Target> {
        match self.splices.get(index)?.opening.as_ref()?.stage {
            Stage::Dialing { target, .. } => Some(target),
            Stage::Waiting | Stage::Greeting => None,
        }
    }

    /// Gives back what a dial occupied.
    fn let_go(&mut self, index: u32, target: Target, rest: Rest, now: Micros) {
        self.flows.remove(target.hash, &target.key);
        self.source_ports.release(target.lease, rest, now);
        if let Some(splice) = self.splices.get_mut(index) {
            splice.our_port = 0;
        }
    }

    /// What a session that ends before all was opened still holds of the client's.
    pub(super) fn forget_held(&mut self, splice: &Splice) {
        if let Some(opening) = &splice.opening {
            self.held.give_back(splice.service, opening.held_octets());
        }
    }

    /// The upstream accepts less than the client was promised: the session goes on in terminate mode, with a dial of its own.
    fn fall_back<N: Lower>(
        &mut self,
        index: u32,
        target: Target,
        answer: &Segment,
        missing: Missing,
        now: Micros,
        net: &mut N,
    ) {
        if let Some(reset) = segment::reset_for(answer) {
            send_bare(&reset, target.route.way, net);
        }
        self.let_go(index, target, Rest::Brief, now);
        let Some(mut splice) = self.splices.take(index) else { return };
        self.splice_wheel.cancel(index);
        self.forget_held(&splice);
        if let Some(counters) = self.counters.services.get(usize::from(splice.service.0)) {
            count(&counters.fallbacks, missing as usize);
        }
        let Some(opening) = splice.opening.take() else { return };
        let Opening { offer, promise, ts_offset, arrival, held, header, .. } = *opening;
        let validated = Validated { offer, ts_offset, promise };
        let key = super::flow(
            splice.client_end(),
            self.listens.get(usize::from(splice.listen)).copied().unwrap_or(End { addr: splice.client_addr, port: 0 }),
        );
        let hash = self.flows.hash(&key);
        let service = Some(splice.service);
        let mut first = splice.first_ack(key, self.timestamp_ms.wrapping_add(ts_offset));
        let session = match parse(&first[..], RxChecksums::GOOD) {
            Ok(Parsed::Tcp(segment)) => {
                let inbound = Inbound { segment: &segment, hash, arrival, service };
                self.open_terminated(inbound, &mut first, splice.service, validated, now, net)
            }
            _ => None,
        };
        let Some(session) = session else {
            self.abandon(&splice, key, hash, EndCause::Internal, now, net);
            return;
        };
        if let Some(session) = self.sessions.get_mut(session) {
            session.opened = splice.opened.get();
            // The same header: it speaks of the ACK that returned the cookie, and has its id.
            session.header = header;
        }
        for Held { segment, mut frame } in held {
            let marks = Marks::of(&segment, &frame);
            if let Some(tcp) = frame.get_mut(segment.l4()..segment.end()) {
                splice.freshen(&marks, tcp);
            }
            let inbound = Inbound { segment: &segment, hash, arrival, service };
            let _: Result<(), DropReason> = self.terminated(Side::Client, session, inbound, &mut frame, now, net);
        }
    }
}

/// The path that a session's segments are cut for from the start: one that its sender cannot be told of, or that no router tells.
fn cut_for(known: Option<PathMtu>) -> PackedPath {
    Path::new(known.filter(|path| path.source == PathSource::Silence || path.mtu < MIN_V6)).into()
}

/// Whether a client's segment has octets that stand before its first: there is the PROXY header's place.
fn writes_before(segment: &Segment, first: Seq) -> bool {
    segment.seq_len() > 0 && segment.seq.precedes(first)
}

/// What exchanging one pair of addresses for the other adds to a checksum, from client to upstream.
pub(super) fn change(client: End, listen: End, ours: End, upstream: End) -> u16 {
    let before = checksum::pseudo_header(client.addr, listen.addr, TCP, 0).fold();
    let after = checksum::pseudo_header(ours.addr, upstream.addr, TCP, 0).fold();
    Sum::ZERO.word(!before).word(after).fold()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_silent_upstream_holds_back_leaves_room_for_the_others() {
        let mut held = HeldOctets::none(20);
        let mut fill = |service| (0..1 << 20).take_while(|_| held.take(ServiceId(service), 1_500)).count() * 1_500;
        let first = fill(0);
        assert!((HELD_OCTETS_MAX / 4 * 3..HELD_OCTETS_MAX / 4 * 3 + 3_000).contains(&first), "{first}");
        for service in 1..5 {
            let others = fill(service);
            assert!((HELD_SHARE - 2_000..=HELD_SHARE).contains(&others), "{others}");
        }
        assert!(fill(5) < 40_000, "nothing is left");
        held.give_back(ServiceId(0), first);
        assert!(held.take(ServiceId(0), 1_500));
        assert!(!held.take(ServiceId(99), 1));
    }
}
