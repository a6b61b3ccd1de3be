//! Where a packet to an address goes, and so where one from it may come from: longest prefix first, among the ports' on-link networks,
//! `[[route]]` and the default gateways (RFC 1122 section 3.3.1, RFC 4861 section 5.2).
//!
//! Among equally long prefixes on-link networks come first, then static routes, then gateways, each in the configuration's order. A
//! link-local destination belongs to no port in particular: the first one that speaks IPv6 gets it.
//!
//! The prefixes are cut into ranges that do not overlap, sorted: a look-up is one binary search, however they nest.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use sluice_config::{Config, Port};

use crate::addr::Addr;
use crate::units::PortId;

/// A prefix in the packet path's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    bits: u128,
    mask: u128,
    v4: bool,
}

impl Prefix {
    /// Whether `addr` lies in it. Never across families: `::/0` holds no IPv4 address.
    #[must_use]
    pub fn contains(&self, addr: Addr) -> bool {
        addr.is_v4() == self.v4 && bits(addr) & self.mask == self.bits
    }

    /// Whether `addr` is the IPv4 network's own or its broadcast address (RFC 1122 section 3.2.1.3; RFC 3021 frees /31).
    #[must_use]
    pub fn is_edge(&self, addr: Addr) -> bool {
        self.edges().is_some_and(|edges| edges.contains(&addr))
    }

    /// Those two addresses; none where both are stations'.
    #[must_use]
    pub fn edges(&self) -> Option<[Addr; 2]> {
        let host = !self.mask;
        (self.v4 && host > 1).then(|| [self.bits, self.bits | host].map(|bits| Addr::v4(bits as u32)))
    }

    /// Length in bits; IPv4 prefixes count their 96 mapped ones.
    fn len(&self) -> u32 {
        self.mask.count_ones()
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Prefix {
        let (v4, host) = match net {
            IpNet::V4(net) => (true, 32_u32.saturating_sub(net.prefix_len().into())),
            IpNet::V6(net) => (false, 128_u32.saturating_sub(net.prefix_len().into())),
        };
        let mask = u128::MAX.checked_shl(host).unwrap_or(0);
        Prefix { bits: bits(Addr::from(net.addr())) & mask, mask, v4 }
    }
}

fn bits(addr: Addr) -> u128 {
    u128::from_be_bytes(addr.octets())
}

/// Ports, of which there are at most 32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports(u32);

impl Ports {
    pub(super) fn one(port: PortId) -> Ports {
        Ports(1_u32.checked_shl(port.0.into()).unwrap_or(0))
    }

    pub(super) fn with(self, other: Ports) -> Ports {
        Ports(self.0 | other.0)
    }

    #[inline(always)]
    pub(super) fn has(self, port: PortId) -> bool {
        self.0.wrapping_shr(port.0.into()) & 1 == 1
    }
}

/// The way to a prefix.
#[derive(Clone, Copy, Debug)]
struct Way {
    port: PortId,
    /// None where the prefix is on-link.
    via: Option<Addr>,
    prefix: Prefix,
    /// Every port through which a way leads there that is as good.
    ports: Ports,
}

/// From here to the next range's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u128,
    /// Index of its way; none where nothing leads.
    way: Option<usize>,
}

/// Prefix to port and next hop. Built at start, read only.
#[derive(Clone, Debug)]
pub struct Routes {
    ways: Vec<Way>,
    v4: Vec<Range>,
    v6: Vec<Range>,
}

impl Routes {
    /// The routes of `config`; a port's id is its index.
    #[must_use]
    pub fn new(config: &Config) -> Routes {
        let mut ways: Vec<Way> = Vec::new();
        let mut add = |prefix: Prefix, port: usize, via: Option<IpAddr>| {
            let Ok(port) = u8::try_from(port).map(PortId) else { return };
            ways.push(Way { port, via: via.map(Addr::from), prefix, ports: Ports::one(port) });
        };
        for (index, port) in config.ports.iter().enumerate() {
            for network in networks(port) {
                add(network, index, None);
            }
        }
        for route in &config.routes {
            add(route.to.into(), route.port, Some(route.via));
        }
        for (index, port) in config.ports.iter().enumerate() {
            for &gateway in &port.gateways {
                add(everything(gateway), index, Some(gateway));
            }
        }
        Routes::of(ways)
    }

    fn of(mut ways: Vec<Way>) -> Routes {
        // Stable: the order of the ways decides among equals.
        ways.sort_by_key(|way| (way.prefix.v4, way.prefix.bits, way.prefix.len()));
        let mut distinct: Vec<Way> = Vec::new();
        for way in ways {
            match distinct.last_mut() {
                Some(first) if first.prefix == way.prefix => first.ports = first.ports.with(way.ports),
                _ => distinct.push(way),
            }
        }
        let family = |v4| ranges(distinct.iter().enumerate().filter(move |(_, way)| way.prefix.v4 == v4));
        let (v4, v6) = (family(true), family(false));
        Routes { ways: distinct, v4, v6 }
    }

    /// The port and next hop towards `dst`; none for an address that is a network's own or its broadcast address.
    #[must_use]
    pub fn find(&self, dst: Addr) -> Option<(PortId, Addr)> {
        let way = self.way(dst)?;
        if way.via.is_none() && way.prefix.is_edge(dst) {
            return None; // a broadcast address is nobody's
        }
        Some((way.port, way.via.unwrap_or(dst)))
    }

    /// The ports through which the best ways to `addr` lead; none without a way.
    pub(super) fn ports(&self, addr: Addr) -> Option<Ports> {
        self.way(addr).map(|way| way.ports)
    }

    /// Whether for every address of the family there is a way, and each is `good`.
    pub(super) fn all(&self, v4: bool, good: impl Fn(Ports) -> bool) -> bool {
        let (ranges, first) = if v4 { (&self.v4, bits(Addr::v4(0))) } else { (&self.v6, 0) };
        let good = |range: &Range| range.way.and_then(|way| self.ways.get(way)).is_some_and(|way| good(way.ports));
        let last = |range: &Range| v4 && range.start > bits(Addr::v4(u32::MAX));
        ranges.first().is_some_and(|range| range.start == first)
            && ranges.iter().take_while(|range| !last(range)).all(good)
    }

    fn way(&self, addr: Addr) -> Option<&Way> {
        let (ranges, bits) = (if addr.is_v4() { &self.v4 } else { &self.v6 }, bits(addr));
        let at = ranges.partition_point(|range| range.start <= bits).checked_sub(1)?;
        self.ways.get(ranges.get(at)?.way?)
    }
}

/// The networks on a port's link: with any IPv6 address also fe80::/64 (RFC 4862 section 5.3).
pub(super) fn networks(port: &Port) -> impl Iterator<Item = Prefix> {
    let link_local = port.addresses.iter().any(|a| a.address.is_ipv6()).then(|| {
        let net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64);
        Prefix::from(IpNet::V6(net))
    });
    port.addresses.iter().map(|a| a.network.into()).chain(link_local)
}

/// The default route's prefix in the family of `gateway`.
fn everything(gateway: IpAddr) -> Prefix {
    match gateway {
        IpAddr::V4(_) => Prefix { bits: bits(Addr::v4(0)), mask: u128::MAX << 32, v4: true },
        IpAddr::V6(_) => Prefix { bits: 0, mask: 0, v4: false },
    }
}

/// Nested prefixes, sorted by their start and then from the widest to the narrowest, as ranges side by side.
fn ranges<'a>(ways: impl Iterator<Item = (usize, &'a Way)>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    // Those that the current place lies in, the narrowest last, with their last addresses.
    let mut around: Vec<(u128, usize)> = Vec::new();
    for (index, way) in ways {
        let start = way.prefix.bits;
        while around.last().is_some_and(|(last, _)| *last < start) {
            leave(&mut around, &mut ranges);
        }
        put(&mut ranges, start, Some(index));
        around.push((start | !way.prefix.mask, index));
    }
    while !around.is_empty() {
        leave(&mut around, &mut ranges);
    }
    ranges
}

/// Goes on behind the narrowest prefix.
fn leave(around: &mut Vec<(u128, usize)>, ranges: &mut Vec<Range>) {
    if let Some((last, _)) = around.pop()
        && let Some(next) = last.checked_add(1)
    {
        put(ranges, next, around.last().map(|(_, way)| *way));
    }
}

/// Begins a range; one that begins at the same place takes the place of the one before.
fn put(ranges: &mut Vec<Range>, start: u128, way: Option<usize>) {
    if ranges.last().is_some_and(|range| range.start == start) {
        ranges.pop();
    }
    ranges.push(Range { start, way });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> Addr {
        Addr::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn both_ends_of_a_31_are_stations() {
        let prefix = Prefix::from("198.51.100.0/31".parse::<IpNet>().unwrap());
        assert!(!prefix.is_edge(ip("198.51.100.0")) && !prefix.is_edge(ip("198.51.100.1")));
        let prefix = Prefix::from("198.51.100.0/30".parse::<IpNet>().unwrap());
        assert!(prefix.is_edge(ip("198.51.100.0")) && prefix.is_edge(ip("198.51.100.3")));
        assert!(!prefix.is_edge(ip("198.51.100.1")) && !prefix.is_edge(ip("198.51.100.4")));
    }

    fn way(net: &str, port: u8) -> Way {
        let port = PortId(port);
        Way { port, via: None, prefix: net.parse::<IpNet>().unwrap().into(), ports: Ports::one(port) }
    }

    #[test]
    fn equal_prefixes_are_one_way_by_the_first_port_and_good_through_both() {
        let routes = Routes::of(vec![way("0.0.0.0/0", 3), way("10.0.0.0/8", 1), way("0.0.0.0/0", 2)]);
        let ports = routes.ports(ip("192.0.2.1")).unwrap();
        assert!(ports.has(PortId(3)) && ports.has(PortId(2)) && !ports.has(PortId(1)));
        assert_eq!(routes.find(ip("192.0.2.1")).unwrap().0, PortId(3));
        assert!(routes.all(true, |_| true) && !routes.all(false, |_| true));
        assert!(!routes.all(true, |ports| ports.has(PortId(3))), "10/8 leads elsewhere");
        assert!(routes.all(true, |ports| ports.has(PortId(1)) || ports.has(PortId(2))));
    }

    #[test]
    fn a_gap_is_a_gap_wherever_it_is() {
        for nets in [&["0.0.0.0/1"][..], &["128.0.0.0/1"], &["0.0.0.0/2", "128.0.0.0/1"], &[]] {
            let routes = Routes::of(nets.iter().map(|net| way(net, 0)).collect());
            assert!(!routes.all(true, |_| true), "{nets:?}");
        }
        let halves = Routes::of(vec![way("0.0.0.0/1", 0), way("128.0.0.0/1", 0), way("::/1", 0), way("8000::/1", 1)]);
        assert!(halves.all(true, |_| true) && halves.all(false, |_| true));
    }

    proptest! {
        #[test]
        fn prefixes_agree_with_ipnet(net in any::<u32>(), len in 0..=32_u8, near in any::<u8>(), addr in any::<u32>()) {
            let net: IpNet = ipnet::Ipv4Net::new(net.into(), len).unwrap().trunc().into();
            let IpNet::V4(v4) = net else { unreachable!() };
            // As likely inside as outside.
            let addr = std::net::Ipv4Addr::from(u32::from(v4.network()) ^ addr.checked_shr(near.into()).unwrap_or(0));
            prop_assert_eq!(Prefix::from(net).contains(Addr::from(IpAddr::V4(addr))), v4.contains(&addr));
            prop_assert!(!Prefix::from(net).contains(ip("2001:db8::1")));
        }

        #[test]
        fn ipv6_prefixes_agree_with_ipnet(net in any::<u128>(), len in 0..=128_u8, near in 0..130_u32, addr in any::<u128>()) {
            let v6 = ipnet::Ipv6Net::new(net.into(), len).unwrap().trunc();
            let addr = Ipv6Addr::from(u128::from(v6.network()) ^ addr.checked_shr(near).unwrap_or(0));
            prop_assume!(addr.to_ipv4_mapped().is_none());
            prop_assert_eq!(Prefix::from(IpNet::V6(v6)).contains(Addr::from(IpAddr::V6(addr))), v6.contains(&addr));
            prop_assert!(!Prefix::from(IpNet::V6(v6)).contains(ip("192.0.2.1")));
        }

        #[test]
        fn a_look_up_finds_the_longest_prefix_and_the_first_of_equals(
            nets in prop::collection::vec((any::<u8>(), 0..=8_u8, 0..4_u8, any::<bool>()), 0..12),
            addrs in prop::collection::vec((any::<u8>(), any::<u8>(), any::<bool>()), 1..20),
        ) {
            // Few bits, so that prefixes nest and repeat, at both ends of both families' spaces.
            let net = |bits: u8, len, v4| -> Prefix {
                let net: IpNet = if v4 {
                    ipnet::Ipv4Net::new(u32::from(bits).checked_shl(24).unwrap().into(), len).unwrap().into()
                } else {
                    Ipv6Net::new((u128::from(bits) << 120).into(), len).unwrap().into()
                };
                net.into()
            };
            let ways: Vec<Way> = nets.iter().map(|&(bits, len, port, v4)| {
                Way { port: PortId(port), via: None, prefix: net(bits, len, v4), ports: Ports::one(PortId(port)) }
            }).collect();
            let routes = Routes::of(ways.clone());
            for (high, low, v4) in addrs {
                let addr = if v4 {
                    Addr::v4(u32::from_be_bytes([high, low, low, low]))
                } else {
                    Addr { hi: u64::from_be_bytes([high, low, low, low, low, low, low, low]), lo: u64::MAX }
                };
                let holding = || ways.iter().filter(|way| way.prefix.contains(addr));
                let longest = holding().map(|way| way.prefix.len()).max();
                let best: Vec<&Way> = holding().filter(|way| Some(way.prefix.len()) == longest).collect();
                prop_assert_eq!(routes.way(addr).map(|way| way.port), best.first().map(|way| way.port));
                let ports = best.iter().map(|way| way.ports).reduce(Ports::with);
                prop_assert_eq!(routes.ports(addr), ports);
            }
        }
    }
}
