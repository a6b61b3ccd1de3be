//! Where a packet to an address goes, as a dial needs to know it. The table is [`sluice_filters::gate::Routes`], which also says where
//! packets may come from.

use sluice_filters::addr::Addr;
use sluice_filters::units::PortId;

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

#[cfg(test)]
mod tests {
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
}
