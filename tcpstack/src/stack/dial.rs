//! Which upstream a session dials, from which address and port.

use std::net::SocketAddr;
use std::time::Duration;

use sluice_config::Service;
use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::units::Micros;

use crate::net::Lower;
use crate::ports::PortSpace;
use crate::splice::End;

/// An upstream that failed is dialled last for this long.
const SHUNNED: Duration = Duration::from_secs(5);
/// TIME-WAIT of a kernel (RFC 9293 section 3.4.2; Linux waits 60 s): before that a source port is not used again.
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Where no TIME-WAIT stands in the way, long enough for what is still on the wire. With timestamps it does not: a SYN with a later
/// one takes its place (RFC 6191).
const BRIEF_REST: Duration = Duration::from_secs(1);

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
        let mut total = 0;
        let mut best: Option<(usize, i64)> = None;
        for (index, candidate) in self.upstreams.iter_mut().enumerate() {
            if !open(index) || (any_healthy && !healthy(candidate)) {
                continue;
            }
            total += candidate.weight;
            candidate.credit += candidate.weight;
            if best.is_none_or(|(_, credit)| candidate.credit > credit) {
                best = Some((index, candidate.credit));
            }
        }
        let (index, _) = best?;
        let chosen = &mut self.upstreams[index];
        chosen.credit -= total;
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
        let own: Vec<Addr> =
            service.source.iter().filter(|ip| ip.is_ipv4() == upstream.is_ipv4()).map(|ip| Addr::from(*ip)).collect();
        let list = if own.is_empty() { vec![default] } else { own };
        self.next_source = self.next_source.wrapping_add(1);
        let (turn, len) = (self.next_source, list.len());
        (0..len).map(move |step| list[(turn + step) % len])
    }
}

const NOBODY: Addr = Addr { hi: 0, lo: 0 };

/// A source port in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) space: usize,
    pub(crate) port: u16,
}

/// The source ports of all (source address, upstream) pairs, of which configuration bounds the number.
pub(crate) struct SourcePorts {
    spaces: Vec<(Addr, SocketAddr, PortSpace)>,
    /// The same pairs, close together, for the packet path.
    ends: Vec<(Addr, End)>,
    seed: [u8; 16],
}

impl SourcePorts {
    pub(crate) fn new(seed: [u8; 16]) -> SourcePorts {
        SourcePorts { spaces: Vec::new(), ends: Vec::new(), seed }
    }

    /// A port from which `upstream` may be dialled now, such that its answers come to this worker, and which is not `listened` on at
    /// `source`; none when all are taken.
    pub(crate) fn lease<N: Lower>(
        &mut self,
        source: Addr,
        upstream: SocketAddr,
        now: Micros,
        net: &N,
        listened: impl Fn(u16) -> bool,
    ) -> Option<Lease> {
        let found = self.spaces.iter().position(|(s, u, _)| *s == source && *u == upstream);
        let space = found.unwrap_or_else(|| {
            let key =
                |port| FlowKey { src: upstream.ip().into(), dst: source, src_port: upstream.port(), dst_port: port };
            let ports = PortSpace::new(self.seed, |port| !listened(port) && net.owns(&key(port)));
            self.spaces.push((source, upstream, ports));
            self.ends.push((source, End { addr: upstream.ip().into(), port: upstream.port() }));
            self.spaces.len() - 1
        });
        let port = self.spaces[space].2.allocate(now)?;
        Some(Lease { space, port })
    }

    /// Gives a port back. It rests first when the upstream may still remember the connection.
    pub(crate) fn release(&mut self, lease: Lease, rest: Rest, now: Micros) {
        let rest = match rest {
            Rest::None => Duration::ZERO,
            Rest::Brief => BRIEF_REST,
            Rest::TimeWait => TIME_WAIT,
        };
        if let Some((_, _, ports)) = self.spaces.get_mut(lease.space) {
            ports.release(lease.port, now, rest);
        }
    }

    /// Lets ports go that have rested long enough; a bounded number.
    pub(crate) fn reap(&mut self, now: Micros) {
        for (_, _, ports) in &mut self.spaces {
            ports.reap(now);
        }
    }

    /// The source address and the upstream of the pair that a lease's `space` names; zeroes where there is none.
    #[inline]
    pub(crate) fn pair(&self, space: u32) -> (Addr, End) {
        self.ends.get(space as usize).copied().unwrap_or((NOBODY, End { addr: NOBODY, port: 0 }))
    }

    /// Ports in use or resting.
    pub(crate) fn occupied(&self) -> usize {
        self.spaces.iter().map(|(_, _, ports)| ports.in_use() + ports.resting()).sum()
    }
}

/// How long a source port rests: by what the upstream may remember of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It remembers nothing: it refused, or reset.
    None,
    /// What it remembers does not stand in the way of a new connection.
    Brief,
    /// A TIME-WAIT that nothing overrides.
    TimeWait,
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
