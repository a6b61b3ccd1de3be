//! Which upstream a session dials, from which address and port.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use sluice_config::{Config, Service};
use sluice_filters::addr::Addr;
use sluice_filters::units::{Micros, WorkerId};

use crate::net::{Division, Lower, Owner};
use crate::ports::{Allocated, Fit, Memory, Ports, Rest, SpaceId};
use crate::splice::End;

/// An upstream that failed is dialled last for this long.
const SHUNNED: Duration = Duration::from_secs(5);

/// One service's turn-taking among its upstreams.
pub(crate) struct Balancer {
    upstreams: Vec<Candidate>,
    next_source: usize,
}

struct Candidate {
    address: SocketAddr,
    weight: i64,
    /// Smooth weighted round-robin's running credit.
    credit: i64,
    shunned_until: Micros,
}

impl Balancer {
    pub(crate) fn new(service: &Service) -> Balancer {
        let upstreams = service
            .upstreams
            .iter()
            .map(|upstream| Candidate {
                address: upstream.address,
                weight: i64::from(upstream.weight),
                credit: 0,
                shunned_until: Micros(0),
            })
            .collect();
        Balancer { upstreams, next_source: 0 }
    }

    /// The next upstream that is not in the set `tried` (one bit an index, so the first 64 count); failed ones last.
    pub(crate) fn choose(&mut self, tried: u64, now: Micros) -> Option<(u16, SocketAddr)> {
        let open = |index: usize| index < 64 && tried >> index & 1 == 0;
        let healthy = |candidate: &Candidate| candidate.shunned_until <= now;
        let any_healthy = self.upstreams.iter().enumerate().any(|(index, c)| open(index) && healthy(c));
        let mut total = 0_i64;
        let mut best: Option<(usize, i64)> = None;
        for (index, candidate) in self.upstreams.iter_mut().enumerate() {
            if !open(index) || (any_healthy && !healthy(candidate)) {
                continue;
            }
            total = total.saturating_add(candidate.weight);
            candidate.credit = candidate.credit.saturating_add(candidate.weight);
            if best.is_none_or(|(_, credit)| candidate.credit > credit) {
                best = Some((index, candidate.credit));
            }
        }
        let (index, _) = best?;
        let chosen = self.upstreams.get_mut(index)?;
        chosen.credit = chosen.credit.saturating_sub(total);
        Some((index as u16, chosen.address))
    }

    /// Notes a failed dial.
    pub(crate) fn failed(&mut self, index: u16, now: Micros) {
        if let Some(candidate) = self.upstreams.get_mut(usize::from(index)) {
            candidate.shunned_until = now.after(SHUNNED);
        }
    }

    /// Notes a connection: the upstream is dialled in its turn again.
    pub(crate) fn connected(&mut self, index: u16) {
        if let Some(candidate) = self.upstreams.get_mut(usize::from(index)) {
            candidate.shunned_until = Micros(0);
        }
    }

    /// The addresses to dial `upstream` from, in turn: the service's own of its family, or `default`.
    pub(crate) fn sources(
        &mut self,
        service: &Service,
        upstream: SocketAddr,
        default: Addr,
    ) -> impl Iterator<Item = Addr> {
        let own = service.sources_of(upstream.is_ipv4());
        let len = own.clone().count();
        self.next_source = self.next_source.wrapping_add(1);
        let turn = self.next_source.checked_rem(len).unwrap_or(0);
        let listed = own.clone().skip(turn).chain(own.take(turn)).map(Addr::from);
        listed.chain((len == 0).then_some(default))
    }
}

const NOBODY: Addr = Addr { hi: 0, lo: 0 };

/// A source port in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) space: SpaceId,
    pub(crate) port: u16,
}

/// A set of ports, one bit each.
type PortBits = Box<[u64; 1024]>;

/// What stands against a port towards one upstream from one of our addresses, besides that it is taken.
struct Pair {
    division: Division,
    /// The ports that services listen on at our address, if any: those are the clients'. An index.
    listened: Option<usize>,
}

/// The source ports of all (source address, upstream) pairs, of which configuration bounds the number.
pub(crate) struct SourcePorts {
    ports: Ports,
    known: HashMap<(Addr, SocketAddr), SpaceId>,
    pairs: Vec<Pair>,
    /// The same pairs, close together, for the packet path.
    ends: Vec<(Addr, End)>,
    listened: Vec<(Addr, PortBits)>,
    us: Owner,
}

impl SourcePorts {
    /// For the dials that `config` may lead to, made by `worker`. `seed` is random.
    pub(crate) fn new(config: &Config, worker: WorkerId, seed: [u8; 16]) -> SourcePorts {
        let ports = config.ports.iter().flat_map(|port| &port.addresses).map(|address| Addr::from(address.address));
        let own = config.services.iter().flat_map(|service| &service.source).map(|source| Addr::from(*source));
        let sources: HashSet<Addr> = ports.chain(own).collect();
        let mut listened: Vec<(Addr, PortBits)> = Vec::new();
        for listen in config.services.iter().flat_map(|service| &service.listen) {
            let addr = listen.ip().into();
            if !sources.contains(&addr) {
                continue;
            }
            let at = listened.iter().position(|(known, _)| *known == addr).unwrap_or_else(|| {
                listened.push((addr, Box::new([0; 1024])));
                listened.len().saturating_sub(1)
            });
            let bits = listened.get_mut(at).and_then(|(_, bits)| bits.get_mut(usize::from(listen.port() >> 6)));
            *bits.unwrap_or(&mut 0) |= 1_u64.wrapping_shl(u32::from(listen.port()));
        }
        // All there can be, so that nothing grows in a turn; upstreams that services share are counted too often.
        let pairs = config.services.iter().map(sluice_config::Service::source_pairs).sum();
        let mut all = Ports::new(seed);
        all.reserve(pairs);
        SourcePorts {
            ports: all,
            known: HashMap::with_capacity(pairs),
            pairs: Vec::with_capacity(pairs),
            ends: Vec::with_capacity(pairs),
            listened,
            us: Owner { node: 0, worker },
        }
    }

    /// A port from which `upstream` may be dialled now, such that its answers come to this worker, and which no service listens on at
    /// `source`; none when all are taken. With it, what the upstream's TIME-WAIT remembers if it has to be ended first, since the SYN does
    /// not fit it as `fits` says.
    pub(crate) fn lease<N: Lower>(
        &mut self,
        (source, upstream): (Addr, SocketAddr),
        now: Micros,
        net: &N,
        fits: impl Fn(u16, &Memory) -> Fit,
    ) -> Option<(Lease, Option<Memory>)> {
        let end = End { addr: upstream.ip().into(), port: upstream.port() };
        let space = *self.known.entry((source, upstream)).or_insert_with(|| {
            let listened = self.listened.iter().position(|(addr, _)| *addr == source);
            self.pairs.push(Pair { division: net.division((end.addr, end.port), source), listened });
            self.ends.push((source, end));
            self.ports.open()
        });
        let Pair { division, listened } = self.pairs.get(space.0 as usize)?;
        let listened = listened.and_then(|at| self.listened.get(at));
        let us = self.us;
        let wanted = |port: u16| {
            net.owner(division, port) == us
                && listened
                    .and_then(|(_, bits)| bits.get(usize::from(port >> 6)))
                    .is_none_or(|word| word.wrapping_shr(u32::from(port)) & 1 == 0)
        };
        let Allocated { port, remembered } = self.ports.allocate(space, now, wanted, fits)?;
        Some((Lease { space, port }, remembered))
    }

    /// Gives a port back. It rests first when the upstream may still remember the connection.
    pub(crate) fn release(&mut self, lease: Lease, rest: Rest, now: Micros) {
        self.ports.release(lease.space, lease.port, rest, now);
    }

    /// Lets ports go that have rested long enough; a bounded number.
    pub(crate) fn reap(&mut self, now: Micros) {
        self.ports.reap(now);
    }

    /// The source address and the upstream of the pair that a lease's `space` names; zeroes where there is none.
    #[inline]
    pub(crate) fn pair(&self, space: SpaceId) -> (Addr, End) {
        self.ends.get(space.0 as usize).copied().unwrap_or((NOBODY, End { addr: NOBODY, port: 0 }))
    }

    /// The ports and what became of them, to be counted.
    pub(crate) fn ports(&self) -> &Ports {
        &self.ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balancer(weights: &[i64]) -> Balancer {
        let upstreams = weights
            .iter()
            .enumerate()
            .map(|(index, weight)| Candidate {
                address: SocketAddr::from(([10, 0, 0, 1], 8000 + index as u16)),
                weight: *weight,
                credit: 0,
                shunned_until: Micros(0),
            })
            .collect();
        Balancer { upstreams, next_source: 0 }
    }

    #[test]
    fn upstreams_take_turns_by_weight() {
        let mut balancer = balancer(&[3, 1]);
        let turns: Vec<u16> = (0..8).map(|_| balancer.choose(0, Micros(0)).unwrap().0).collect();
        assert_eq!(turns.iter().filter(|index| **index == 0).count(), 6);
        assert_eq!(turns.iter().filter(|index| **index == 1).count(), 2);
        assert_ne!(turns[..4], [0, 0, 0, 1], "spread, not in runs");
    }

    #[test]
    fn an_upstream_is_tried_once_a_session() {
        let mut balancer = balancer(&[1, 1]);
        let (first, _) = balancer.choose(0, Micros(0)).unwrap();
        let (second, _) = balancer.choose(1 << first, Micros(0)).unwrap();
        assert_ne!(first, second);
        assert_eq!(balancer.choose(0b11, Micros(0)), None);
    }

    #[test]
    fn a_failed_upstream_comes_last_for_a_while_and_alone_if_it_must() {
        let mut balancer = balancer(&[1, 1]);
        balancer.failed(0, Micros(0));
        for _ in 0..4 {
            assert_eq!(balancer.choose(0, Micros(1)).unwrap().0, 1);
        }
        assert_eq!(balancer.choose(0b10, Micros(1)).unwrap().0, 0);
        let later = Micros(0).after(SHUNNED);
        let turns: Vec<u16> = (0..2).map(|_| balancer.choose(0, later).unwrap().0).collect();
        assert!(turns.contains(&0));
    }
}
