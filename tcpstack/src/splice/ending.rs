//! How sessions end: by FINs and RSTs that went by, by timeouts, by our own doing.

use std::time::Duration;

use sluice_config::{KeepAlive, KeepAlives, Service};
use sluice_filters::Flags;
use sluice_filters::addr::FlowKey;
use sluice_filters::units::{Micros, Seq, ServiceId};

use super::forward::reset_by;
use super::window::Half;
use super::{COARSE, COARSE_LOG, Certain, End, NOT_CONNECTED, Splice, State, coarse, flow};
use crate::net::Lower;
use crate::ports::{Memory, Rest};
use crate::record::EndCause;
use crate::segment::BareSegment;
use crate::stack::ending::Ended;
use crate::stack::linger::{Left, Lingers};
use crate::stack::{Side, Stack, send_bare};

/// A session looks after itself at least four times in the time it takes to notice that an end is gone.
const LOOKS: u32 = 4;
/// Both ends closed, but a forged segment makes it doubtful: over when nothing is heard for so long.
const DOUBTFUL_CLOSE: Duration = Duration::from_secs(2);
/// A RST went by that may be a forger's: its sender is asked after so long, and again ...
const DOUBT_PAUSE: Duration = Duration::from_secs(1);
/// ... until it is not heard for so long. A living end answers, and one that is gone sends a RST that fits; both can be lost.
const DOUBT_LAST: Duration = Duration::from_secs(30);

/// When `limit` has passed since the coarse moment `since`, which lies before `now`.
fn after(since: u32, limit: Duration, now: Micros) -> Micros {
    let elapsed = u64::from(coarse(now).wrapping_sub(since)) << COARSE_LOG;
    // A coarse moment may lie up to one unit before the moment it stands for.
    Micros(now.0.saturating_sub(elapsed)).after(COARSE).after(limit)
}

/// The later of two coarse moments before `now`.
fn later(a: u32, b: u32, now: Micros) -> u32 {
    if coarse(now).wrapping_sub(a) < coarse(now).wrapping_sub(b) { a } else { b }
}

fn sides(keepalive: &KeepAlives) -> [(Side, Option<KeepAlive>); 2] {
    [(Side::Client, keepalive.client), (Side::Upstream, keepalive.upstream)]
}

impl Splice {
    /// The first limit this session would break, and when, if nothing more is heard.
    fn deadline(&self, settings: &Service, now: Micros) -> Option<(Micros, EndCause)> {
        let Service { timeouts, keepalive, .. } = settings;
        let mut first: Option<(Micros, EndCause)> = None;
        let mut consider = |at: Micros, cause| {
            if first.is_none_or(|(sooner, _)| at < sooner) {
                first = Some((at, cause));
            }
        };
        let mut heard = |half: &Half, limit: Option<Duration>, cause| {
            if let Some(limit) = limit {
                consider(after(half.heard, limit, now), cause);
            }
        };
        heard(&self.client, timeouts.client_idle, EndCause::ClientIdle);
        if self.is_connected() {
            heard(&self.upstream, timeouts.upstream_idle, EndCause::UpstreamIdle);
            heard(&self.client, keepalive.client.map(|client| client.patience()), EndCause::ClientTimeout);
            heard(&self.upstream, keepalive.upstream.map(|upstream| upstream.patience()), EndCause::UpstreamTimeout);
        }
        // While nobody has accepted yet, what is held for the upstream is data.
        let spoke = self.upstream.acknowledged_since(self.base(Side::Client)) > 0
            || (!self.is_connected() && self.state.has(State::CLIENT_WAITS));
        if !timeouts.first_data.is_zero() && !spoke {
            consider(self.opened.get().after(timeouts.first_data), EndCause::FirstData);
        }
        if !self.is_connected() {
            return first;
        }
        for (side, gone) in [(Side::Client, EndCause::UpstreamTimeout), (Side::Upstream, EndCause::ClientTimeout)] {
            let (me, _) = self.ends_of(side);
            // Its sender repeats what waits for an answer: what a forger made us believe, nobody repeats.
            if self.state.has(State::waits(side)) && me.heard != self.waiting {
                consider(after(self.waiting, timeouts.unacknowledged, now), gone);
            }
            if self.ends_of(side).0.reset_seen() {
                consider(after(me.heard, DOUBT_LAST, now), reset_by(side));
            }
        }
        if let Some(limit) = timeouts.half_closed
            && (self.client.finished() || self.upstream.finished())
        {
            consider(after(self.moved, limit, now), EndCause::HalfClosed);
        }
        if self.closed() == Some(Certain(false)) {
            consider(after(later(self.client.heard, self.upstream.heard, now), DOUBTFUL_CLOSE, now), EndCause::Closed);
        }
        first
    }

    /// How long the end of `side` was not heard.
    fn silent(&self, side: Side, now: Micros) -> Duration {
        let (me, _) = self.ends_of(side);
        COARSE.saturating_mul(coarse(now).wrapping_sub(me.heard))
    }

    /// Whether the end of `side` is asked whether it is there, when the session looks after itself: a RST went by that may have been its
    /// own, it owes an answer that may have been lost, or it is time for a keep-alive.
    fn is_to_be_asked(&self, side: Side, settings: &Service, now: Micros) -> bool {
        let (me, _) = self.ends_of(side);
        let since = |moment: u32| COARSE.saturating_mul(coarse(now).wrapping_sub(moment));
        let look = settings.timeouts.unacknowledged.checked_div(LOOKS).unwrap_or_default();
        let doubtful = me.reset_seen() && since(me.heard).saturating_add(COARSE) >= DOUBT_PAUSE;
        let owes = self.state.has(State::waits(side.other()))
            && since(self.waiting).saturating_add(COARSE.saturating_mul(2)) >= look;
        let [(_, client), (_, upstream)] = sides(&settings.keepalive);
        let keepalive = if side == Side::Client { client } else { upstream };
        let quiet = keepalive.is_some_and(|keepalive| {
            let silent = since(me.heard).saturating_add(COARSE).as_micros();
            let interval = keepalive.interval.as_micros().max(1);
            // Once in an interval, though the session looks after itself more often.
            let just_now = silent.checked_rem(interval) < Some(interval.min(look.as_micros()) / 2);
            let times = silent.checked_div(interval).unwrap_or(0);
            (1..=u128::from(keepalive.count)).contains(&times) && just_now
        });
        doubtful || owes || quiet
    }

    /// The RST that tells `side` that the connection is over.
    fn reset_towards(&self, side: Side, ends: (End, End)) -> BareSegment {
        let mut reset = self.bare_ack(side, ends);
        (reset.flags, reset.window, reset.timestamp) = (Flags::RST | Flags::ACK, 0, None);
        reset
    }

    /// What the end of `side` still has to hear when the session ends for `cause`.
    fn left(&self, side: Side, cause: EndCause) -> Left {
        if cause == EndCause::Closed {
            Left::Closed
        } else if cause == reset_by(side) && !self.ends_of(side).0.reset_seen() {
            Left::Silent
        } else if cause == reset_by(side.other()) && !self.ends_of(side).1.reset_seen() {
            Left::Told
        } else {
            Left::Reset
        }
    }

    /// Where the other end was, for what is left of the connection with the end of `side`. After a reset `side` may acknowledge
    /// anything that went by.
    fn last_word(&self, side: Side, ends: (End, End), left: Left) -> BareSegment {
        let mut ack = self.bare_ack(side, ends);
        if left != Left::Closed {
            let (_, peer) = self.ends_of(side);
            ack.seq = peer.snd_max;
        }
        ack
    }
}

impl Stack {
    /// When the session has to look after itself next.
    fn next_look(&self, index: u32, settings: &Service, now: Micros) -> Option<Micros> {
        self.splices.get(index).map(|splice| {
            let mut at = splice.deadline(settings, now).map_or(Micros(u64::MAX), |(at, _)| at);
            if splice.is_connected() {
                let look = settings.timeouts.unacknowledged.checked_div(LOOKS).unwrap_or_default();
                at = at.min(now.after(look));
                for (side, keepalive) in sides(&settings.keepalive) {
                    if let Some(keepalive) = keepalive {
                        let interval = keepalive.interval.as_micros();
                        let since = splice.silent(side, now).as_micros().checked_rem(interval).unwrap_or(0);
                        let rest = interval.saturating_sub(since);
                        at = at.min(now.after(Duration::from_micros(u64::try_from(rest).unwrap_or(u64::MAX))));
                    }
                }
            }
            if splice.client.reset_seen() || splice.upstream.reset_seen() {
                at = at.min(now.after(DOUBT_PAUSE));
            }
            at
        })
    }

    /// Arms the session's timer for the first limit it would break.
    pub(super) fn wait_for_splice(&mut self, index: u32, settings: &Service, now: Micros) {
        if let Some(at) = self.next_look(index, settings, now) {
            self.splice_wheel.arm(index, at);
        }
    }

    /// Something happened that may make the session look after itself sooner than it would. What it waits for now still comes in time.
    pub(super) fn wait_no_longer(&mut self, index: u32, settings: &Service, now: Micros) {
        if let Some(at) = self.next_look(index, settings, now) {
            self.splice_wheel.arm_sooner(index, at);
        }
    }

    /// A RST went by in the name of `side` that may be a forger's: it will be asked.
    pub(super) fn doubt(&mut self, side: Side, index: u32, now: Micros) {
        let config = self.config.clone();
        let Some(splice) = self.splices.get_mut(index) else { return };
        let (me, _) = splice.halves(side);
        me.note_reset(coarse(now));
        if let Some(settings) = config.services.get(usize::from(splice.service.0)) {
            self.wait_no_longer(index, settings, now);
        }
    }

    /// Asks silent ends whether they are there: with a keep-alive in the other one's name, which a living end acknowledges and a dead
    /// one answers with a RST (RFC 9293 sections 3.8.4 and 3.10.7.1).
    fn ask_silent<N: Lower>(&mut self, index: u32, settings: &Service, now: Micros, net: &mut N) {
        let Some((client, listen, ours, upstream)) = self.ends(index) else { return };
        let Some(splice) = self.splices.get(index).filter(|splice| !splice.is_unsure()) else { return };
        for (side, ends) in [(Side::Client, (client, listen)), (Side::Upstream, (upstream, ours))] {
            if splice.is_to_be_asked(side, settings, now) {
                let mut probe = splice.bare_ack(side, ends);
                probe.seq = Seq(probe.seq.0.wrapping_sub(1));
                send_bare(&probe, splice.way(side), net);
            }
        }
    }

    /// A session's timer.
    pub(crate) fn splice_due<N: Lower>(&mut self, index: u32, now: Micros, net: &mut N) {
        let config = self.config.clone();
        let Some(splice) = self.splices.get(index) else { return };
        let Some(settings) = config.services.get(usize::from(splice.service.0)) else { return };
        let deadline = splice.deadline(settings, now);
        let opening = splice.opening.is_some();
        if let Some((_, cause)) = deadline.filter(|(at, _)| now >= *at) {
            self.end_spliced(index, cause, now, net);
        } else if opening {
            self.opening_due(index, settings, now, net);
        } else {
            self.ask_silent(index, settings, now, net);
            self.wait_for_splice(index, settings, now);
        }
    }

    /// Ends a session: tells who does not know yet, keeps what late segments need, gives everything back, counts and reports.
    pub(crate) fn end_spliced<N: Lower>(&mut self, index: u32, cause: EndCause, now: Micros, net: &mut N) {
        let Some((client, listen, ours, upstream)) = self.ends(index) else { return };
        let Some(splice) = self.splices.take(index) else { return };
        self.splice_wheel.cancel(index);
        self.forget_held(&splice);
        let client_key = flow(client, listen);
        let client_hash = self.flows.hash(&client_key);

        if let Some(lease) = splice.lease() {
            let key = flow(upstream, ours);
            let hash = self.flows.hash(&key);
            self.flows.remove(hash, &key);
            let left = splice.left(Side::Upstream, cause);
            if let Some(isn) = splice.dialling() {
                // The upstream may hold a half-open connection, which the number after our SYN ends.
                let mut reset = splice.reset_towards(Side::Upstream, (upstream, ours));
                (reset.seq, reset.ack, reset.flags) = (isn.plus(1), Seq(0), Flags::RST);
                self.counters.resets_sent.bump();
                send_bare(&reset, splice.way(Side::Upstream), net);
            } else if left == Left::Reset {
                self.reset_end(&splice, Side::Upstream, (upstream, ours), net);
            }
            let rest = match left {
                Left::Silent => Rest::None,
                // Our numbers and timestamps are the clients': nothing says that the next ones come later than these.
                Left::Closed if splice.state.has(State::UPSTREAM_FIRST) => Rest::TimeWait(Memory {
                    end: splice.upstream.ack,
                    timestamp: splice.client.newest_timestamp().filter(|_| splice.state.has(State::TIMESTAMPS)),
                }),
                Left::Closed | Left::Reset | Left::Told => Rest::Brief,
            };
            self.source_ports.release(lease, rest, now);
            if left != Left::Silent && splice.is_connected() {
                let ack = splice.last_word(Side::Upstream, (upstream, ours), left);
                let numbers = (splice.dial_isn(), splice.upstream.ack);
                let entry = Lingers::made(ack, numbers, left, splice.way(Side::Upstream), (hash, now));
                self.keep_linger(entry);
            }
        }
        self.flows.remove(client_hash, &client_key);
        // A client that came back from the same port takes this very place.
        if cause != EndCause::ClientRestarted {
            let left = splice.left(Side::Client, cause);
            if left == Left::Reset {
                self.reset_end(&splice, Side::Client, (client, listen), net);
            }
            let ack = splice.last_word(Side::Client, (client, listen), left);
            let numbers = (splice.cookie, splice.client.ack);
            let entry = Lingers::made(ack, numbers, left, splice.way(Side::Client), (client_hash, now));
            self.keep_linger(entry);
        }
        self.report_splice(&splice, client_key, Some(flow(upstream, ours)), cause, now);
    }

    /// Tells the end of `side` that the connection is over. A RST must have the very number it waits for (RFC 5961 section 3.2): the one
    /// it acknowledged, or the one behind what is on its way to it.
    fn reset_end<N: Lower>(&mut self, splice: &Splice, side: Side, ends: (End, End), net: &mut N) {
        let (me, peer) = splice.ends_of(side);
        let mut reset = splice.reset_towards(side, ends);
        self.counters.resets_sent.bump();
        send_bare(&reset, splice.way(side), net);
        if me.ack != peer.snd_max {
            reset.seq = peer.snd_max;
            send_bare(&reset, splice.way(side), net);
        }
    }

    /// Ends a session that could not go on in terminate mode, and whose dial is already given back.
    pub(super) fn abandon<N: Lower>(
        &mut self,
        splice: &Splice,
        client_key: FlowKey,
        client_hash: u64,
        cause: EndCause,
        now: Micros,
        net: &mut N,
    ) {
        self.flows.remove(client_hash, &client_key);
        let ends = (
            End { addr: client_key.src, port: client_key.src_port },
            End { addr: client_key.dst, port: client_key.dst_port },
        );
        self.reset_end(splice, Side::Client, ends, net);
        self.report_splice(splice, client_key, None, cause, now);
    }

    fn report_splice(
        &mut self,
        splice: &Splice,
        client: FlowKey,
        target: Option<FlowKey>,
        cause: EndCause,
        now: Micros,
    ) {
        let ended = Ended {
            service: splice.service,
            client,
            named: None,
            counted: Some(client.src),
            target: target.filter(|_| splice.our_port != 0).map(|key| (self.upstream_index(splice.service, &key), key)),
            opened: splice.opened.get(),
            connected: (splice.connected != NOT_CONNECTED)
                .then(|| Micros(splice.opened.get().0.saturating_add(u64::from(splice.connected)))),
            // What was held for an upstream that never accepted went nowhere.
            to_upstream: if splice.is_connected() { splice.acknowledged(Side::Client) } else { 0 },
            to_client: splice.acknowledged(Side::Upstream),
        };
        self.report(&ended, cause, now);
    }

    /// Which of the service's upstreams a flow comes from.
    fn upstream_index(&self, service: ServiceId, key: &FlowKey) -> u16 {
        let upstreams = self.config.services.get(usize::from(service.0)).map(|settings| &settings.upstreams);
        let at = upstreams.and_then(|list| list.iter().position(|upstream| upstream.address == key.remote()));
        at.and_then(|index| u16::try_from(index).ok()).unwrap_or(u16::MAX)
    }
}
