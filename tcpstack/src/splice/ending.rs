//! How sessions end: by FINs and RSTs that went by, by timeouts, by our own doing.

use std::time::Duration;

use sluice_config::{Service, Timeouts};
use sluice_filters::Flags;
use sluice_filters::addr::FlowKey;
use sluice_filters::units::{Micros, Seq, ServiceId};

use super::window::Half;
use super::{End, NOT_CONNECTED, Splice, State, coarse, flow};
use crate::net::Lower;
use crate::record::EndCause;
use crate::segment::BareSegment;
use crate::stack::dial::Rest;
use crate::stack::ending::Ended;
use crate::stack::linger::{Left, Lingers};
use crate::stack::{Side, Stack, send_bare};

/// A session looks after itself at least four times in the time it takes to notice that an end is gone.
const LOOKS: u32 = 4;

/// When `limit` has passed since the coarse moment `since`, which lies before `now`.
fn after(since: u32, limit: Duration, now: Micros) -> Micros {
    let elapsed = u64::from(coarse(now).wrapping_sub(since)) << 10;
    // A coarse moment may lie up to one unit before the moment it stands for.
    Micros(now.0.saturating_sub(elapsed).saturating_add(1 << 10)).after(limit)
}

/// The later of two coarse moments before `now`.
fn later(a: u32, b: u32, now: Micros) -> u32 {
    if coarse(now).wrapping_sub(a) < coarse(now).wrapping_sub(b) { a } else { b }
}

impl Splice {
    /// The first limit this session would break, and when, if nothing more is heard.
    fn deadline(&self, timeouts: &Timeouts, now: Micros) -> (Micros, EndCause) {
        let mut first = (after(self.client.heard, timeouts.client_idle, now), EndCause::ClientIdle);
        let mut consider = |at: Micros, cause| {
            if at < first.0 {
                first = (at, cause);
            }
        };
        if !timeouts.first_data.is_zero() && self.client.octets_since(self.base(Side::Client)) == 0 {
            consider(self.opened.after(timeouts.first_data), EndCause::FirstData);
        }
        if !self.is_connected() {
            return first;
        }
        consider(after(self.upstream.heard, timeouts.upstream_idle, now), EndCause::UpstreamIdle);
        // Something waits for its acknowledgment, and its sender repeats it: what a forger made us believe, nobody repeats.
        let repeats = |sender: &Half, peer: &Half| {
            sender.outstanding(peer)
                && sender.heard != peer.heard
                && later(sender.heard, peer.heard, now) == sender.heard
        };
        let gone =
            |sender: &Half, peer: &Half| after(later(sender.waiting, peer.heard, now), timeouts.unacknowledged, now);
        if repeats(&self.upstream, &self.client) {
            consider(gone(&self.upstream, &self.client), EndCause::ClientTimeout);
        }
        if repeats(&self.client, &self.upstream) {
            consider(gone(&self.client, &self.upstream), EndCause::UpstreamTimeout);
        }
        let half_closed = (self.state.fin(Side::Client) && !self.client.outstanding(&self.upstream))
            || (self.state.fin(Side::Upstream) && !self.upstream.outstanding(&self.client));
        if half_closed {
            consider(after(self.moved, timeouts.half_closed, now), EndCause::HalfClosed);
        }
        first
    }

    /// The RST that tells `side` that the connection is over.
    fn reset_towards(&self, side: Side, ends: (End, End)) -> BareSegment {
        let mut reset = self.bare_ack(side, ends);
        (reset.flags, reset.window, reset.timestamp) = (Flags::RST | Flags::ACK, 0, None);
        reset
    }
}

impl Stack {
    /// Arms the session's timer for the first limit it would break.
    pub(super) fn wait_for_splice(&mut self, index: u32, settings: &Service, now: Micros) {
        if let Some(splice) = self.splices.get(index) {
            let (at, _) = splice.deadline(&settings.timeouts, now);
            let look = if splice.is_connected() { now.after(settings.timeouts.unacknowledged / LOOKS) } else { at };
            self.splice_wheel.arm(index, at.min(look));
        }
    }

    /// A session's timer.
    pub(crate) fn splice_due<N: Lower>(&mut self, index: u32, now: Micros, net: &mut N) {
        let config = self.config.clone();
        let Some(splice) = self.splices.get(index) else { return };
        let Some(settings) = config.services.get(usize::from(splice.service.0)) else { return };
        let (at, cause) = splice.deadline(&settings.timeouts, now);
        let opening = splice.opening.is_some();
        if now >= at {
            self.end_spliced(index, cause, now, net);
        } else if opening {
            self.opening_due(index, settings, now, net);
        } else {
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
            let left = match cause {
                EndCause::Closed => Left::Closed,
                EndCause::UpstreamReset => Left::Silent,
                _ => Left::Reset,
            };
            if let Some(isn) = splice.dialling() {
                // The upstream may hold a half-open connection, which the number after our SYN ends.
                let mut reset = splice.reset_towards(Side::Upstream, (upstream, ours));
                (reset.seq, reset.ack, reset.flags) = (isn.plus(1), Seq(0), Flags::RST);
                self.counters.resets_sent.bump();
                send_bare(&reset, splice.way(Side::Upstream), net);
            } else if left == Left::Reset && cause != EndCause::ClientReset {
                self.counters.resets_sent.bump();
                send_bare(&splice.reset_towards(Side::Upstream, (upstream, ours)), splice.way(Side::Upstream), net);
            }
            let rest = match left {
                Left::Silent => Rest::None,
                // Our numbers and timestamps are the clients': nothing says that the next ones come later than these.
                Left::Closed if splice.state.has(State::UPSTREAM_FIRST) => Rest::TimeWait,
                Left::Closed | Left::Reset => Rest::Brief,
            };
            self.source_ports.release(lease, rest, now);
            if left != Left::Silent && splice.is_connected() {
                let ack = splice.bare_ack(Side::Upstream, (upstream, ours));
                let entry = Lingers::made(ack, splice.dial_isn(), left, splice.way(Side::Upstream), hash, now);
                self.keep_linger(entry);
            }
        }
        self.flows.remove(client_hash, &client_key);
        // A client that came back from the same port takes this very place.
        if cause != EndCause::ClientRestarted {
            let left = match cause {
                EndCause::Closed => Left::Closed,
                EndCause::ClientReset => Left::Silent,
                _ => Left::Reset,
            };
            if left == Left::Reset && cause != EndCause::UpstreamReset {
                self.counters.resets_sent.bump();
                send_bare(&splice.reset_towards(Side::Client, (client, listen)), splice.way(Side::Client), net);
            }
            let ack = splice.bare_ack(Side::Client, (client, listen));
            let entry = Lingers::made(ack, splice.cookie, left, splice.way(Side::Client), client_hash, now);
            self.keep_linger(entry);
        }
        self.report_splice(&splice, client_key, Some(flow(upstream, ours)), cause, now);
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
        self.counters.resets_sent.bump();
        send_bare(&splice.reset_towards(Side::Client, ends), splice.way(Side::Client), net);
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
            opened: splice.opened,
            connected: (splice.connected != NOT_CONNECTED)
                .then(|| Micros(splice.opened.0.saturating_add(u64::from(splice.connected)))),
            // What was held for an upstream that never accepted went nowhere.
            to_upstream: if splice.is_connected() { splice.octets(Side::Client) } else { 0 },
            to_client: splice.octets(Side::Upstream),
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
