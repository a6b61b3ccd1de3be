//! Towards upstreams and away from connections: what both modes do alike when they dial and when they end.

use std::net::SocketAddr;

use siphasher::sip::SipHasher13;
use sluice_config::Service;
use sluice_filters::Flags;
use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::units::{Micros, Seq, ServiceId};

use super::dial::Lease;
use super::linger::Linger;
use super::{FlowRef, Stack, count, linger_timer, send_bare};
use crate::counters::DialFailure;
use crate::net::{Lower, Route};
use crate::ports::Memory;
use crate::record::{EndCause, SessionRecord};
use crate::segment::{self, BareSegment, Direction};

/// An upstream about to be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its index among the service's.
    pub(crate) index: u16,
    pub(crate) route: Route,
    /// The source port, to be released.
    pub(crate) lease: Lease,
    /// The flow of its answers.
    pub(crate) key: FlowKey,
    /// That flow's hash.
    pub(crate) hash: u64,
}

/// Whose numbers a dial's SYN has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// Ours: a clock of the 4-tuple's own.
    Ours,
    /// A client's.
    Clients { isn: Seq, timestamp: Option<u32> },
}

/// What there is to say of a connection that ended.
pub(crate) struct Ended {
    pub(crate) service: ServiceId,
    pub(crate) client: FlowKey,
    /// The client, where a proxy named it.
    pub(crate) named: Option<SocketAddr>,
    /// The source that the connection counts for, if any.
    pub(crate) counted: Option<Addr>,
    /// The upstream dialled last, and the flow of its answers.
    pub(crate) target: Option<(u16, FlowKey)>,
    pub(crate) opened: Micros,
    pub(crate) connected: Option<Micros>,
    pub(crate) to_upstream: u64,
    pub(crate) to_client: u64,
}

impl Stack {
    /// The next upstream to dial for a connection that has `tried` some already: a route to it, and a source port whose answers come
    /// here. Those that cannot be dialled are counted as failures. None when there is no other.
    pub(crate) fn next_upstream<N: Lower>(
        &mut self,
        service: ServiceId,
        settings: &Service,
        tried: &mut u64,
        numbers: Numbers,
        now: Micros,
        net: &mut N,
    ) -> Option<Target> {
        loop {
            let balancer = self.balancers.get_mut(usize::from(service.0))?;
            let (index, address) = balancer.choose(*tried, now)?;
            *tried |= 1 << index;
            match self.aim(service, settings, (index, address), numbers, now, net) {
                Ok(target) => return Some(target),
                Err(failure) => self.dial_failed(service, index, failure, now),
            }
        }
    }

    /// A route and a source port towards one upstream.
    pub(crate) fn aim<N: Lower>(
        &mut self,
        service: ServiceId,
        settings: &Service,
        (index, address): (u16, SocketAddr),
        numbers: Numbers,
        now: Micros,
        net: &mut N,
    ) -> Result<Target, DialFailure> {
        let route = net.route(address.ip().into()).ok_or(DialFailure::Unreachable)?;
        let balancer = self.balancers.get_mut(usize::from(service.0)).ok_or(DialFailure::Unreachable)?;
        let (ports, secret, stamp) = (&mut self.source_ports, self.isn_key, self.timestamp_ms);
        let (source, (lease, remembered)) = balancer
            .sources(settings, address, route.source)
            .find_map(|source| {
                let fits = |port: u16, memory: &Memory| {
                    let key =
                        FlowKey { src: address.ip().into(), dst: source, src_port: address.port(), dst_port: port };
                    let (isn, timestamp) = match numbers {
                        Numbers::Clients { isn, timestamp } => (isn, timestamp),
                        Numbers::Ours => {
                            (first_number(secret, &key, now), Some(stamp.wrapping_add(keyed(secret, &key, 1) as u32)))
                        }
                    };
                    memory.fits(isn, timestamp)
                };
                Some((source, ports.lease((source, address), now, net, fits)?))
            })
            .ok_or(DialFailure::NoSourcePort)?;
        let key = FlowKey { src: address.ip().into(), dst: source, src_port: address.port(), dst_port: lease.port };
        let hash = self.flows.hash(&key);
        if let Some(FlowRef::Linger(old)) = self.flows.find(hash, &key).map(FlowRef::from_value) {
            self.forget_linger(old);
        }
        if let Some(Memory { end, .. }) = remembered {
            // The connection was ours, and so is its end (RFC 1337 section 2.1). Where a TIME-WAIT heeds no RST, the dial may fail.
            let reset = BareSegment {
                key,
                direction: Direction::ToPeer,
                seq: end,
                ack: Seq(0),
                flags: Flags::RST,
                window: 0,
                ttl: segment::TTL,
                timestamp: None,
            };
            send_bare(&reset, route.way, net);
        }
        Ok(Target { index, route, lease, key, hash })
    }

    pub(crate) fn dial_failed(&mut self, service: ServiceId, upstream: u16, failure: DialFailure, now: Micros) {
        self.shun(service, upstream, now);
        self.count_dial_failure(service, upstream, failure);
    }

    /// Lets other upstreams of the service go first for a while.
    pub(crate) fn shun(&mut self, service: ServiceId, upstream: u16, now: Micros) {
        if let Some(balancer) = self.balancers.get_mut(usize::from(service.0)) {
            balancer.failed(upstream, now);
        }
    }

    pub(crate) fn count_dial_failure(&self, service: ServiceId, upstream: u16, failure: DialFailure) {
        if let Some(counters) = self.counters.services.get(usize::from(service.0))
            && let Some(failures) = counters.dial_failures.get(usize::from(upstream))
        {
            count(failures, failure as usize);
        }
    }

    /// Counts and reports a connection that ended, and gives its place among the limits back.
    pub(crate) fn report(&mut self, ended: &Ended, cause: EndCause, now: Micros) {
        self.shared.limits.close(ended.service, ended.counted);
        if let Some(counters) = self.counters.services.get(usize::from(ended.service.0)) {
            counters.active.set(counters.active.get().saturating_sub(1));
            count(&counters.ended, cause as usize);
        }
        let record = SessionRecord {
            worker: self.worker,
            service: ended.service,
            upstream: ended.target.map(|(upstream, _)| upstream),
            client: ended.named.unwrap_or(ended.client.remote()),
            via: ended.named.map(|_| ended.client.remote()),
            listen: ended.client.local(),
            source: ended.target.map(|(_, key)| key.local()),
            target: ended.target.map(|(_, key)| key.remote()),
            opened: ended.opened,
            connected: ended.connected,
            ended: now,
            bytes_to_upstream: ended.to_upstream,
            bytes_to_client: ended.to_client,
            cause,
        };
        if self.shared.records.push(record).is_err() {
            self.counters.records_lost.bump();
        }
    }

    pub(crate) fn keep_linger(&mut self, entry: Linger) {
        let (hash, key) = (entry.hash, entry.key());
        if let Some(index) = self.lingers.keep(entry) {
            if self.flows.insert(hash, &key, FlowRef::Linger(index).value()).is_ok() {
                if let Some(at) = self.lingers.due(index) {
                    self.wheel.arm(linger_timer(index), at);
                }
            } else {
                self.lingers.forget(index);
            }
        }
    }

    /// The timer of what is left of a connection: a RST is sent again, or its time is over.
    pub(crate) fn linger_due<N: Lower>(&mut self, index: u32, now: Micros, net: &mut N) {
        let Some((resets, way)) = self.lingers.repeat(index, now) else {
            self.forget_linger(index);
            return;
        };
        for reset in resets.iter().flatten() {
            self.counters.resets_sent.bump();
            send_bare(reset, way, net);
        }
        if let Some(at) = self.lingers.due(index) {
            self.wheel.arm(linger_timer(index), at);
        }
    }

    pub(crate) fn forget_linger(&mut self, index: u32) {
        if let Some(entry) = self.lingers.forget(index) {
            self.wheel.cancel(linger_timer(index));
            // A new connection between the same two ends may have taken its place.
            if self.flows.find(entry.hash, &entry.key()) == Some(FlowRef::Linger(index).value()) {
                self.flows.remove(entry.hash, &entry.key());
            }
        }
    }

    /// Our first sequence number towards an upstream (RFC 6528): a clock of 4 us ticks plus a keyed hash of the 4-tuple.
    pub(crate) fn initial_sequence_number(&self, key: &FlowKey, now: Micros) -> Seq {
        first_number(self.isn_key, key, now)
    }

    /// What our timestamps towards an upstream are ahead of the clock.
    pub(crate) fn timestamp_offset(&self, key: &FlowKey) -> u32 {
        keyed(self.isn_key, key, 1) as u32
    }
}

fn first_number(secret: [u64; 2], key: &FlowKey, now: Micros) -> Seq {
    Seq((now.0 / 4) as u32).plus(keyed(secret, key, 0) as u32)
}

fn keyed(secret: [u64; 2], key: &FlowKey, purpose: u8) -> u64 {
    let mut octets = [0; 37];
    octets[..16].copy_from_slice(&key.src.octets());
    octets[16..32].copy_from_slice(&key.dst.octets());
    octets[32..34].copy_from_slice(&key.src_port.to_be_bytes());
    octets[34..36].copy_from_slice(&key.dst_port.to_be_bytes());
    octets[36] = purpose;
    SipHasher13::new_with_keys(secret[0], secret[1]).hash(&octets)
}
