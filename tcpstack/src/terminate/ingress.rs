//! A terminated connection's segments: judged by the guard, fed to the socket; and the session that a cookie opens.

use sluice_config::Mode;
use sluice_filters::units::{Micros, Seq, ServiceId};
use sluice_filters::{DropReason, Segment};

use super::endpoint::{ClientOffer, Endpoint, Making};
use super::guard::Gate;
use super::session::{Greeting, Session};
use crate::net::{Lower, Way};
use crate::path_mtu::PathMtu;
use crate::stack::ingress::{Inbound, Validated};
use crate::stack::{Arrival, CHALLENGE_PAUSE, FlowRef, Side, Stack, send_bare};

impl Stack {
    /// A segment of a session's.
    pub(crate) fn terminated<N: Lower>(
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
        if side == Side::Upstream && endpoint.leg.way.port() != arrival.port {
            return Err(DropReason::WrongPort);
        }
        if segment.flags.rst() && endpoint.finished() {
            // Both FINs are acknowledged. The peer forgot the connection, and answers a late segment of ours (RFC 1337).
            return Err(DropReason::BadRst);
        }
        if segment.flags.rst() {
            // So that the guard knows the newest ACK: a RST must match it exactly.
            endpoint.emit(&mut self.interfaces, now, net);
        }
        let options = segment.options(frame);
        let range = segment.l4()..segment.end();
        let Some(tcp) = frame.get_mut(range) else { return Err(DropReason::Truncated) };
        let gate = if endpoint.leg.is_stale(segment, &options, now.since(endpoint.live.heard_at())) {
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
                if let Some(path) = endpoint.feed(segment, &options, frame, &mut self.interfaces, now, net) {
                    self.path_mtus.learn(segment.key.src, path, now);
                }
            }
            Gate::Reset => {
                endpoint.reset = true;
                endpoint.live.heard(false, now);
            }
            Gate::Drop(reason) => return Err(reason),
            Gate::Challenge(reason) => {
                if side == Side::Upstream {
                    endpoint.leg.note_syn_ack_again(segment, &options);
                }
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

    /// Of a spliced service's connections, so many more went on in terminate mode.
    pub(crate) fn count_fallen(&mut self, service: ServiceId, more: i32) {
        if let Some((fallen, _)) = self.fallen.get_mut(usize::from(service.0)) {
            *fallen = fallen.saturating_add_signed(more);
        }
    }

    /// The session a valid cookie opens; its index. None where there is no room for it, or no more of a spliced service's may be terminated.
    pub(crate) fn open_terminated<N: Lower>(
        &mut self,
        inbound: Inbound<'_>,
        frame: &mut [u8],
        service: ServiceId,
        validated: Validated,
        now: Micros,
        net: &mut N,
    ) -> Option<u32> {
        let config = self.config.clone();
        let settings = config.services.get(usize::from(service.0))?;
        let fell_back = settings.mode == Mode::Splice;
        if fell_back {
            let (fallen, most) = self.fallen.get_mut(usize::from(service.0))?;
            if *fallen >= *most {
                return None;
            }
        }
        let Inbound { segment, hash, arrival: Arrival { port, mac, .. }, .. } = inbound;
        let Validated { offer, ts_offset, promise } = validated;
        let options = segment.options(frame);
        let making = Making {
            key: segment.key,
            way: Way::Reply { port, mac },
            mtu: self.mtus.get(usize::from(port.0)).copied()?,
            path: self.path_mtus.get(segment.key.src, now),
            buffer: settings.buffer,
            // Whoever was promised a window may fill it, whatever the configuration says by now.
            promised: promise.window,
            congestion: settings.congestion,
            isn: Seq(segment.ack.0.wrapping_sub(1)),
            timestamp_offset: ts_offset,
            window_shift: validated.window_shift(),
            timestamps: options.timestamp.is_some(),
        };
        let offer = ClientOffer {
            isn: Seq(segment.seq.0.wrapping_sub(1)),
            mss: offer.mss,
            window_scale: offer.wscale,
            sack: offer.sack,
            timestamp: options.timestamp.map(|(value, _)| value),
            advertised: promise.window,
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
        // Nothing was sent yet that could prove anything.
        let _: Option<PathMtu> = client.feed(segment, &options, frame, &mut self.interfaces, now, net);
        let evidence = self.evidence(service, segment, &options, segment.option_octets(frame), validated);
        let greeting = if self.trusts(service, segment.key.src) {
            Greeting::Expected(Box::new(evidence))
        } else if settings.accept_proxy.is_empty() {
            Greeting::Over
        } else {
            Greeting::Forbidden
        };
        let header = match greeting {
            Greeting::Expected(_) => None,
            _ => self.header(settings, segment.key.remote(), segment.key.local(), evidence),
        };
        self.counters.buffer_bytes.add(client.leased as u64);
        let mut session = Session::new(service, client, greeting, header, now);
        if fell_back {
            session.fell_back = true;
            self.count_fallen(service, 1);
        }
        session.mark(index, &mut self.dirty);
        self.sessions.put(index, Box::new(session));
        Some(index)
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
    *frame.get_mut(l4.checked_add(4)?..)?.first_chunk_mut()? = end.0.to_be_bytes();
    // IPv4's total length, IPv6's payload length.
    let (field, from) = if bare.is_v4() { (2, l3) } else { (4, l4) };
    let len = u16::try_from(bare.end().checked_sub(from)?).ok()?;
    *frame.get_mut(l3.checked_add(field)?..)?.first_chunk_mut()? = len.to_be_bytes();
    Some(bare)
}
