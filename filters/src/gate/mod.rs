//! The first verdict on a TCP segment: whether its source may have sent it here, whom it is for, and what the filters say.
//!
//! One function, [`Gate::judge`], which the running appliance, `sluice explain` and `sluice replay` ask; what comes after it is the
//! stack's. In this order: for a segment to a service the source's validity, then the filters; for any other one whether it comes from
//! an upstream's own address and port, on the port that the route to it leaves by, and goes to an address of ours; if not, its source's
//! validity, what the filters think of its source, and `not_a_service`.
//!
//! Source validity (RFC 2827, RFC 3704): nobody sends from an address of ours or from a broadcast address of our networks (the parser
//! has refused the other broadcast, multicast, unspecified and loopback addresses); an upstream's address is a source only on the port
//! that the route to it leaves by; every other one as `port.source_check` says.
//!
//! Immutable, and the same for all workers. The tables grow with the configuration only, and no look-up in them does: a hash's probe, or
//! a binary search over the routes.

mod marks;
mod routes;
#[cfg(test)]
mod tests;

use sluice_config::{Config, SourceCheck};

use self::marks::{Mark, Marks};
use self::routes::{Ports, networks};
use crate::addr::Addr;
use crate::engine::{Engine, Trace};
use crate::rules::Facts;
use crate::services::{EndpointMap, ServiceMap};
use crate::units::{Micros, PortId, ServiceId};
use crate::{DropReason, Segment};

pub use self::routes::{Prefix, Routes};

/// Whom a segment is for that may go on.
#[must_use = "a segment that may go on has to"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressee {
    /// This service; the filters have let it pass.
    Service(ServiceId),
    /// Us, from an upstream: an answer to a dial of ours, or a rest of one. Filters are for clients, and were not asked.
    Dialler,
}

/// How a segment came.
#[derive(Clone, Copy, Debug)]
pub struct Came<'a> {
    /// Through this port; none when nobody knows: then what depends on it is taken to be right.
    pub port: Option<PortId>,
    /// Its frame.
    pub frame: &'a [u8],
    /// When.
    pub now: Micros,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Gate {
    services: ServiceMap,
    /// Upstreams' addresses and ports, and the port that the route to each leaves by.
    upstreams: EndpointMap<PortId>,
    marks: Marks,
    routes: Routes,
    checks: Vec<SourceCheck>,
    /// IPv4, IPv6: the ports on which not every source is right.
    choosy: [Ports; 2],
}

impl Gate {
    /// The gate of a configuration. `ours` are addresses of ours beyond those that it names: link-local ones.
    #[must_use]
    pub fn new(config: &Config, ours: impl IntoIterator<Item = Addr>) -> Gate {
        let routes = Routes::new(config);
        let mut marked: Vec<(Addr, Mark)> = Vec::new();
        let configured = config.ports.iter().flat_map(|port| port.addresses.iter().map(|a| a.address));
        let of_services =
            config.services.iter().flat_map(|s| s.listen.iter().map(|l| l.ip()).chain(s.source.iter().copied()));
        let own = configured.chain(of_services).map(Addr::from).chain(ours);
        marked.extend(own.map(|addr| (addr, Mark::Ours)));
        let edges = config.ports.iter().flat_map(networks).filter_map(|network| network.edges());
        marked.extend(edges.flatten().map(|addr| (addr, Mark::Broadcast)));
        let mut upstreams = Vec::new();
        for upstream in config.services.iter().flat_map(|service| &service.upstreams) {
            let addr = Addr::from(upstream.address.ip());
            if let Some((port, _)) = routes.find(addr) {
                upstreams.push((addr, upstream.address.port(), port));
                marked.push((addr, Mark::Upstream(port)));
            }
        }
        let checks: Vec<SourceCheck> = config.ports.iter().map(|port| port.source_check).collect();
        let choosy = [true, false].map(|v4| {
            let wrong_on = |(check, port): (&SourceCheck, PortId)| match check {
                SourceCheck::Off => None,
                SourceCheck::Loose => (!routes.all(v4, |_| true)).then_some(port),
                SourceCheck::Strict => (!routes.all(v4, |ports| ports.has(port))).then_some(port),
            };
            let choosy = checks.iter().zip((0..).map(PortId)).filter_map(wrong_on);
            choosy.map(Ports::one).fold(Ports::default(), Ports::with)
        });
        Gate {
            services: ServiceMap::new(&config.services),
            upstreams: EndpointMap::new(&upstreams, PortId(0)),
            marks: Marks::new(&marked),
            routes,
            checks,
            choosy,
        }
    }

    /// Which service listens where.
    #[must_use]
    pub fn services(&self) -> &ServiceMap {
        &self.services
    }

    /// The verdict on a segment that the parser accepted.
    ///
    /// # Errors
    /// Why it is dropped.
    // Inlined: a SYN's segment stays in the caller's registers.
    #[inline(always)]
    pub fn judge<T: Trace>(
        &self,
        engine: &mut Engine,
        segment: &Segment,
        came: Came<'_>,
        trace: &mut T,
    ) -> Result<Addressee, DropReason> {
        let key = &segment.key;
        if let Some(service) = self.services.get(key.dst, key.dst_port) {
            self.source(key.src, came.port)?;
            engine.check_traced(&Facts { segment, frame: came.frame, service }, came.now, trace)?;
            return Ok(Addressee::Service(service));
        }
        // Nobody dials us but to a service.
        if !segment.flags.is_initial_syn()
            && let Some(port) = self.upstreams.get(key.src, key.src_port)
            && self.is_ours(key.dst)
        {
            if came.port.is_some_and(|here| here != port) {
                return Err(DropReason::UpstreamSource);
            }
            engine.resume(None);
            return Ok(Addressee::Dialler);
        }
        self.source(key.src, came.port)?;
        engine.check_source(segment, came.now, trace)?;
        Err(DropReason::NotAService)
    }

    /// Whether a packet from `source` may come in by `port`. The parser has refused what nobody may send from anywhere.
    ///
    /// # Errors
    /// [`DropReason::OwnSource`], [`DropReason::MartianSource`], [`DropReason::UpstreamSource`], [`DropReason::SourceRoute`].
    #[inline(always)]
    pub fn source(&self, source: Addr, port: Option<PortId>) -> Result<(), DropReason> {
        let [v4, v6] = self.choosy;
        let choosy = if source.is_v4() { v4 } else { v6 };
        if port.is_some_and(|port| !choosy.has(port)) && !self.marks.may_hold(source) {
            return Ok(());
        }
        self.look_closer(source, port)
    }

    #[inline(never)]
    fn look_closer(&self, source: Addr, port: Option<PortId>) -> Result<(), DropReason> {
        match self.marks.get(source) {
            Some(Mark::Ours) => return Err(DropReason::OwnSource),
            Some(Mark::Broadcast) => return Err(DropReason::MartianSource),
            Some(Mark::Upstream(at)) => {
                return if port.is_none_or(|port| port == at) { Ok(()) } else { Err(DropReason::UpstreamSource) };
            }
            None => {}
        }
        let leads = |port: Option<PortId>| {
            let ways = self.routes.ports(source);
            ways.is_some_and(|ways| port.is_none_or(|port| ways.has(port)))
        };
        let valid = match port.and_then(|port| self.checks.get(usize::from(port.0))) {
            Some(SourceCheck::Off) => true,
            Some(SourceCheck::Loose) => leads(None),
            Some(SourceCheck::Strict) => leads(port),
            // Of no known port: right if it is on some.
            None => self.checks.contains(&SourceCheck::Off) || leads(None),
        };
        if valid { Ok(()) } else { Err(DropReason::SourceRoute) }
    }

    /// Whether an address is one of ours.
    #[inline]
    #[must_use]
    pub fn is_ours(&self, addr: Addr) -> bool {
        self.marks.get(addr) == Some(Mark::Ours)
    }

    /// Whether an ICMP error from `source` that came in by `port` may be about a segment of ours to `peer`. Routers on the way may have
    /// any address but ours; one that tells of an upstream stands where the upstream is.
    ///
    /// # Errors
    /// [`DropReason::OwnSource`], [`DropReason::MartianSource`], [`DropReason::UpstreamSource`].
    pub fn error_about(&self, source: Addr, peer: (Addr, u16), port: PortId) -> Result<(), DropReason> {
        match self.marks.get(source) {
            Some(Mark::Ours) => return Err(DropReason::OwnSource),
            Some(Mark::Broadcast) => return Err(DropReason::MartianSource),
            Some(Mark::Upstream(at)) if at != port => return Err(DropReason::UpstreamSource),
            _ => {}
        }
        match self.upstreams.get(peer.0, peer.1) {
            Some(at) if at != port => Err(DropReason::UpstreamSource),
            _ => Ok(()),
        }
    }
}
