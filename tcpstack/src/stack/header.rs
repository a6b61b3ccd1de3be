//! The PROXY header of a session: the client, and what its handshake showed of it.

use std::net::SocketAddr;
use std::time::Duration;

use sluice_config::{ProxyProtocol, Service};
use sluice_filters::units::{Micros, ServiceId};
use sluice_filters::{Segment, TcpOptions};

use super::Stack;
use super::ingress::Validated;
use crate::proxy::{Evidence, Extras, HEADER_MAX, Header, OptionKinds, UnixMillis, V1_MAX, V2_MAX};

/// A round trip longer than this is none: the echo was not of the SYN-ACK.
const ROUND_TRIP_MAX: u32 = 120_000;
/// How long SYNs and clients are counted before they are compared.
const ATTACK_SPAN: Duration = Duration::from_secs(1);
/// Services looked at together.
const FELT: usize = 512;
/// SYNs a second and worker below which nothing counts as an attack.
const ATTACK_SYNS: u64 = 1_000;
/// Under attack is a service whose SYNs are so many times its clients.
const ATTACK_RATIO: u64 = 10;

/// Octets that a service's header takes at most; none when it has none.
pub(crate) fn longest(settings: &Service) -> Option<u16> {
    match settings.proxy_protocol {
        ProxyProtocol::Off => None,
        ProxyProtocol::V1 => Some(V1_MAX as u16),
        ProxyProtocol::V2 if settings.proxy_header.is_empty() => Some(V2_MAX as u16),
        ProxyProtocol::V2 => Some(HEADER_MAX as u16),
    }
}

/// One service's SYNs and clients of this worker, as they were when last compared.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pressure {
    at: Micros,
    syns: u64,
    clients: u64,
    under_attack: bool,
}

impl Stack {
    /// What the ACK that returned a cookie shows of its client.
    pub(crate) fn evidence(
        &self,
        service: ServiceId,
        segment: &Segment,
        options: &TcpOptions,
        octets: &[u8],
        validated: Validated,
    ) -> Evidence {
        let Validated { offer, ts_offset, .. } = validated;
        let echoed = options.timestamp.map(|(_, echo)| self.timestamp_ms.wrapping_add(ts_offset).wrapping_sub(echo));
        Evidence {
            mss: offer.mss,
            wscale: offer.wscale,
            sack: offer.sack,
            tsval: options.timestamp.map(|(value, _)| value),
            hop_limit: segment.hop_limit,
            window: segment.window,
            options: OptionKinds::new(sluice_filters::option_kinds(octets)),
            rtt_ms: echoed.filter(|elapsed| *elapsed <= ROUND_TRIP_MAX),
            under_attack: self.pressures.get(usize::from(service.0)).is_some_and(|pressure| pressure.under_attack),
        }
    }

    /// The header that names `client` to the service's upstreams; none where they get none.
    pub(crate) fn header(
        &mut self,
        settings: &Service,
        client: SocketAddr,
        listen: SocketAddr,
        evidence: Evidence,
    ) -> Option<Header> {
        let asked = &settings.proxy_header;
        match settings.proxy_protocol {
            ProxyProtocol::Off => None,
            ProxyProtocol::V1 => Some(Header::v1(client, listen)),
            ProxyProtocol::V2 if asked.is_empty() => Some(Header::v2(client, listen)),
            ProxyProtocol::V2 => {
                let keys = asked.authenticate.then(|| self.shared.keys.current());
                let at = UnixMillis(u64::try_from(self.wall.as_millis()).unwrap_or(u64::MAX));
                Some(Header::v2_with(
                    client,
                    listen,
                    &Extras {
                        authority: asked.authority.as_deref(),
                        unique_id: asked.unique_id.then(|| self.unique_id()),
                        evidence: asked.evidence.then_some(evidence),
                        sign: keys.as_deref().map(|keys| (keys, at)),
                        crc32c: asked.crc32c,
                    },
                ))
            }
        }
    }

    /// A name that no other connection of this appliance has, nor, but by a chance of 2^-64, one of another: this worker's random
    /// half, then its number and a count.
    pub(crate) fn unique_id(&mut self) -> [u8; 16] {
        self.named = self.named.wrapping_add(1);
        let mut id = [0; 16];
        let count = u64::from(self.worker.0) << 56 | self.named & (u64::MAX >> 8);
        id[..8].copy_from_slice(&self.id_prefix.to_be_bytes());
        id[8..].copy_from_slice(&count.to_be_bytes());
        id
    }

    /// Looks which services are under attack. A few times a second is enough.
    pub(crate) fn feel_pressure(&mut self, now: Micros) {
        for _ in 0..self.pressures.len().min(FELT) {
            let index = self.next_pressure;
            self.next_pressure = index.wrapping_add(1).checked_rem(self.pressures.len()).unwrap_or(0);
            let (Some(pressure), Some(counters)) = (self.pressures.get_mut(index), self.counters.services.get(index))
            else {
                continue;
            };
            if now.since(pressure.at) < ATTACK_SPAN {
                continue;
            }
            let (syns, clients) = (counters.syns.get(), counters.opened.get());
            let span = now.since(pressure.at).as_millis().max(1) as u64;
            let new = syns.wrapping_sub(pressure.syns);
            let rate = new.saturating_mul(1_000).checked_div(span).unwrap_or(0);
            let opened = clients.wrapping_sub(pressure.clients);
            let under_attack = rate >= ATTACK_SYNS && new >= opened.saturating_mul(ATTACK_RATIO);
            *pressure = Pressure { at: now, syns, clients, under_attack };
            counters.under_attack.set(u64::from(under_attack));
        }
    }
}
