//! Where a packet to an address goes: longest prefix first, among the ports' on-link networks, `[[route]]` and the
//! default gateways (RFC 1122 section 3.3.1, RFC 4861 section 5.2).
//!
//! Among equally long prefixes on-link networks come first, then static routes, then gateways, each in the
//! configuration's order. A link-local destination belongs to no port in particular: the first one that speaks IPv6
//! gets it.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use std::net::IpAddr;

use ipnet::IpNet;
use sluice_config::Config;
use sluice_filters::addr::Addr;
use sluice_filters::units::PortId;

use super::PortNet;

/// A prefix in the packet path's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    bits: u128,
    mask: u128,
    v4: bool,
}

impl Prefix {
    /// Whether `addr` lies in it. Never across families: `::/0` holds no IPv4 address.
    pub(super) fn contains(&self, addr: Addr) -> bool {
        addr.is_v4() == self.v4 && bits(addr) & self.mask == self.bits
    }

    /// Whether `addr` is the IPv4 network's own or its broadcast address (RFC 1122 section 3.2.1.3; RFC 3021 frees /31).
    pub(super) fn is_edge(&self, addr: Addr) -> bool {
        let host = !self.mask;
        self.v4 && host > 1 && self.contains(addr) && (bits(addr) & host == 0 || bits(addr) & host == host)
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

/// Answer of [`super::Net::route`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The port to leave by.
    pub port: PortId,
    /// Whose MAC address the frame carries: the destination itself when on-link, else a gateway.
    pub next_hop: Addr,
    /// Our address of that family on the port, nearest to the next hop.
    pub source: Addr,
    /// Largest IP packet on the way out.
    pub mtu: u16,
}

/// Prefix to port and gateway.
#[derive(Debug)]
pub(super) struct Routes(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    prefix: Prefix,
    port: PortId,
    via: Option<Addr>,
}

impl Routes {
    /// The routes of `config` over `ports`.
    pub(super) fn new(config: &Config, ports: &[PortNet]) -> Routes {
        let mut entries = Vec::new();
        for port in ports {
            let on_link = |a: &super::LocalAddress| Entry { prefix: a.network, port: port.id, via: None };
            entries.extend(port.addresses.iter().map(on_link));
        }
        for route in &config.routes {
            let Ok(port) = u8::try_from(route.port) else { continue };
            entries.push(Entry { prefix: route.to.into(), port: PortId(port), via: Some(route.via.into()) });
        }
        for (port, gateways) in ports.iter().zip(config.ports.iter().map(|p| &p.gateways)) {
            for &gateway in gateways {
                entries.push(Entry { prefix: everything(gateway), port: port.id, via: Some(gateway.into()) });
            }
        }
        // Stable: the order above decides among equals.
        entries.sort_by_key(|e| std::cmp::Reverse(e.prefix.len()));
        Routes(entries)
    }

    /// The port and next hop towards `dst`.
    pub(super) fn find(&self, dst: Addr) -> Option<(PortId, Addr)> {
        let entry = self.0.iter().find(|e| e.prefix.contains(dst))?;
        if entry.via.is_none() && entry.prefix.is_edge(dst) {
            return None; // a broadcast address is nobody's
        }
        Some((entry.port, entry.via.unwrap_or(dst)))
    }
}

/// The default route's prefix in the family of `gateway`.
fn everything(gateway: IpAddr) -> Prefix {
    match gateway {
        IpAddr::V4(_) => Prefix { bits: bits(Addr::v4(0)), mask: u128::MAX << 32, v4: true },
        IpAddr::V6(_) => Prefix { bits: 0, mask: 0, v4: false },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::script::*;
    use super::*;

    fn to(t: &Script, dst: &str) -> Option<(PortId, Addr, Addr)> {
        t.net.route(ip(dst)).map(|r| (r.port, r.next_hop, r.source))
    }

    fn via(port: PortId, next_hop: &str, source: &str) -> Option<(PortId, Addr, Addr)> {
        Some((port, ip(next_hop), ip(source)))
    }

    #[test]
    fn an_on_link_destination_is_its_own_next_hop() {
        let t = Script::two_arm();
        assert_eq!(to(&t, "10.0.0.5"), via(LAN, "10.0.0.5", "10.0.0.2"));
        assert_eq!(to(&t, "198.51.100.7"), via(WAN, "198.51.100.7", "198.51.100.2"));
        assert_eq!(to(&t, "fd00::5"), via(LAN, "fd00::5", "fd00::2"));
        assert_eq!(t.net.route(ip("10.0.0.5")).unwrap().mtu, 9000);
        assert_eq!(t.net.route(ip("198.51.100.7")).unwrap().mtu, 1500);
    }

    #[test]
    fn a_static_route_is_preferred_to_the_gateway() {
        let t = Script::two_arm();
        assert_eq!(to(&t, "10.9.1.1"), via(LAN, "10.0.0.1", "10.0.0.2"));
        assert_eq!(to(&t, "10.10.1.1"), via(WAN, "198.51.100.1", "198.51.100.2"));
    }

    #[test]
    fn everything_else_goes_to_its_familys_gateway() {
        let t = Script::two_arm();
        assert_eq!(to(&t, "192.0.2.7"), via(WAN, "198.51.100.1", "198.51.100.2"));
        assert_eq!(to(&t, "2001:db8:7::7"), via(WAN, "2001:db8::1", "2001:db8::2"));
    }

    #[test]
    fn one_arm_sources_from_the_next_hops_network() {
        let t = Script::one_arm();
        assert_eq!(to(&t, "10.0.0.5"), via(WAN, "10.0.0.5", "10.0.0.2"));
        assert_eq!(to(&t, "192.0.2.7"), via(WAN, "198.51.100.1", "198.51.100.2"));
        // No IPv6 here at all.
        assert_eq!(to(&t, "2001:db8::1"), None);
        assert_eq!(to(&t, "fe80::1"), None);
    }

    #[test]
    fn a_link_local_destination_has_a_link_local_source() {
        let t = Script::two_arm();
        assert_eq!(to(&t, "fe80::1"), via(WAN, "fe80::1", "fe80::ff:fe00:2"));
    }

    #[test]
    fn there_is_no_route_to_ourselves_to_groups_or_broadcast() {
        let t = Script::two_arm();
        for dst in [
            "198.51.100.2",
            "203.0.113.10",
            "2001:db8::10",
            "10.0.0.20",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "127.0.0.1",
            "10.0.0.255",
            "10.0.0.0",
            "ff02::1",
            "::",
            "::1",
        ] {
            assert_eq!(to(&t, dst), None, "{dst}");
        }
    }

    #[test]
    fn both_ends_of_a_31_are_stations() {
        let prefix = Prefix::from("198.51.100.0/31".parse::<IpNet>().unwrap());
        assert!(!prefix.is_edge(ip("198.51.100.0")) && !prefix.is_edge(ip("198.51.100.1")));
        let prefix = Prefix::from("198.51.100.0/30".parse::<IpNet>().unwrap());
        assert!(prefix.is_edge(ip("198.51.100.0")) && prefix.is_edge(ip("198.51.100.3")));
        assert!(!prefix.is_edge(ip("198.51.100.1")) && !prefix.is_edge(ip("198.51.100.4")));
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
            let addr = std::net::Ipv6Addr::from(u128::from(v6.network()) ^ addr.checked_shr(near).unwrap_or(0));
            prop_assume!(addr.to_ipv4_mapped().is_none());
            prop_assert_eq!(Prefix::from(IpNet::V6(v6)).contains(Addr::from(IpAddr::V6(addr))), v6.contains(&addr));
            prop_assert!(!Prefix::from(IpNet::V6(v6)).contains(ip("192.0.2.1")));
        }
    }
}
