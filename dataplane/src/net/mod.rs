//! Layers 2 and 3 of one worker: our addresses, ARP and NDP, ICMP echo, routes and neighbours.
//!
//! Pure logic over octets. No I/O, no clock, no DPDK: the worker hands in received frames and the time, and sends what
//! comes back. One [`Net`] belongs to each worker; what one learns is told to the others as [`Learned`].
//!
//! Invariants: no octet of a frame can make it panic; every table has a bound; nobody off-link can change a neighbour;
//! someone on-link can change one only as the protocols allow, and creates one only by asking for an address of ours.
//!
//! Implements RFC 826, RFC 5227 (announcing, and defending without giving up), RFC 792 echo, RFC 1122 sections 2.3.2
//! and 3.2.2, RFC 4861 and RFC 4862 as far as they concern a node with static addresses that is no router, RFC 4443
//! echo, RFC 3810 reports. Addresses are used from the start, as RFC 4429 does, with the probes of RFC 5227 and RFC 4862
//! sent along: an appliance that takes over from another must not wait for seconds, and a clash is reported.

mod announce;
mod arp;
mod bucket;
mod icmp;
mod ndp;
mod neighbor;
mod route;
#[cfg(test)]
mod script;
mod wire;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};
use sluice_config::Config;
use sluice_filters::addr::Addr;
use sluice_filters::gate::{Prefix, Routes};
use sluice_filters::units::{Micros, PortId};
use sluice_filters::{DropReason, L2, dst_mac};

use announce::Announcer;
use bucket::{Bucket, Throttle};
use neighbor::{Heard, Table};
use wire::{Draft, MacAddr};

pub use neighbor::{Claim, Learned, Mac, NeighborId};
pub use route::Route;

/// Octets a received frame's buffer must offer so that every answer fits: the longest is a neighbour advertisement
/// behind a tag.
pub const REPLY_ROOM: usize = 18 + ndp::ADVERTISEMENT;

/// Neighbours per worker.
const NEIGHBORS: usize = 4096;
/// Solicitations and announcements per [`Net::poll`].
const POLL_BUDGET: usize = 16;
/// ICMP errors looked at, per second: each is about a segment of ours, so honest routers send few.
const ERRORS_RATE: u32 = 1000;
const ERRORS_BURST: u32 = 100;
/// Answers to ARP and NDP requests, per second. A router that has lost its table asks for every service address at once, and asks again
/// for those it did not hear of.
const ANSWERS_RATE: u32 = 10_000;
const ANSWERS_BURST: u32 = 10_000;
/// What is told to the other workers, per second.
const LEARNED_RATE: u32 = 2000;
const LEARNED_BURST: u32 = 500;
/// RFC 5227 section 1.1: DEFEND_INTERVAL. Also the least time between two reported conflicts.
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// What to do with a frame that was for us.
#[must_use = "the frame still has to be sent or freed"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetAction {
    /// The frame was rewritten in place: send its first so many octets back out of the port.
    Reply(usize),
    /// It was used up: free the frame.
    Consumed,
}

/// Someone else uses an address of ours (RFC 5227 section 2.4, RFC 4862 section 5.4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Where it was seen.
    pub port: PortId,
    /// Our address.
    pub addr: Addr,
    /// The other's MAC address.
    pub mac: [u8; 6],
    /// Conflicts since start, this one included.
    pub total: u64,
}

/// An address of ours on a port.
#[derive(Clone, Copy, Debug)]
pub struct LocalAddress {
    /// The address.
    pub addr: Addr,
    network: Prefix,
}

/// One port as layers 2 and 3 see it.
#[derive(Debug)]
pub struct PortNet {
    /// Its index in the configuration.
    pub id: PortId,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// 802.1Q tag of all frames here; 0 = untagged.
    pub vlan: u16,
    /// Largest IP packet.
    pub mtu: u16,
    /// The port's own addresses; with any IPv6 address also a link-local one (RFC 4862 section 5.3).
    pub addresses: Vec<LocalAddress>,
    /// What ARP and NDP answer for here: the above and the services' that are on-link here.
    answers: Vec<Addr>,
    answer_set: HashSet<Addr>,
    /// Answers to ARP and NDP requests. Each port's own: a station floods its own link only.
    requests: Bucket,
    /// ICMP errors that are looked at.
    errors: Bucket,
    /// Ethernet headers of our IP packets, but for the destination.
    header4: [u8; 18],
    header6: [u8; 18],
}

/// Layers 2 and 3 of one worker. See the module.
#[derive(Debug)]
pub struct Net {
    ports: Vec<PortNet>,
    local: HashSet<Addr>,
    routes: Routes,
    table: Table,
    icmp: Bucket,
    telling: Bucket,
    announcer: Announcer,
    /// By port and claimed address, each with a throttle of its own: whoever claims one address on one link leaves the rest defended.
    /// No more than our addresses on each port.
    defences: HashMap<(PortId, Addr), Throttle>,
    reporting: Throttle,
    conflicts: u64,
    conflict: Option<Conflict>,
}

impl Net {
    /// The addresses and routes of `config`. `macs` are the ports' MAC addresses, in the configuration's order; ports
    /// without one are left out.
    #[must_use]
    pub fn new(config: &Config, macs: &[[u8; 6]]) -> Net {
        let service_addresses =
            || config.services.iter().flat_map(|s| s.listen.iter().map(|l| l.ip()).chain(s.source.iter().copied()));
        let mut ports = Vec::new();
        for ((id, port), &mac) in (0_u8..).zip(&config.ports).zip(macs) {
            ports.push(PortNet::new(PortId(id), port, mac, service_addresses().map(Addr::from)));
        }
        let own = ports.iter().flat_map(|p| p.addresses.iter().map(|a| a.addr));
        let rate = config.filters.icmp_rate;
        Net {
            local: own.chain(service_addresses().map(Addr::from)).collect(),
            routes: Routes::new(config),
            ports,
            table: Table::new(NEIGHBORS),
            icmp: Bucket::new(rate, rate.div_ceil(10)),
            telling: Bucket::new(LEARNED_RATE, LEARNED_BURST),
            announcer: Announcer::default(),
            defences: HashMap::new(),
            reporting: Throttle::new(DEFEND_INTERVAL),
            conflicts: 0,
            conflict: None,
        }
    }

    /// A port, if there is one of this id.
    #[must_use]
    pub fn port(&self, port: PortId) -> Option<&PortNet> {
        self.ports.get(usize::from(port.0))
    }

    /// Whether this is an address of ours, on any port.
    #[must_use]
    pub fn is_local(&self, addr: Addr) -> bool {
        self.local.contains(&addr)
    }

    /// Whether a received frame is for this port: the right tag, and our MAC address, a group's or everyone's.
    ///
    /// # Errors
    /// [`DropReason::WrongVlan`], [`DropReason::NotOurMac`], [`DropReason::Truncated`].
    #[inline]
    pub fn accepts(&self, port: PortId, frame: &[u8], l2: L2) -> Result<(), DropReason> {
        let port = self.port(port).ok_or(DropReason::NotOurs)?;
        if l2.vlan != port.vlan {
            return Err(DropReason::WrongVlan);
        }
        let to = dst_mac(frame).ok_or(DropReason::Truncated)?;
        if to == port.mac || to[0] & 1 == 1 { Ok(()) } else { Err(DropReason::NotOurMac) }
    }

    /// Where a packet to `dst` goes. `None` when there is no route, the port has no address of that family, or `dst` is
    /// a group, a broadcast address or our own.
    #[must_use]
    pub fn route(&self, dst: Addr) -> Option<Route> {
        if self.is_local(dst) || !is_destination(dst) {
            return None;
        }
        let (port, next_hop) = self.routes.find(dst)?;
        let port = self.port(port)?;
        let source = port.source_for(dst, next_hop)?;
        Some(Route { port: port.id, next_hop, source, mtu: port.mtu })
    }

    /// The neighbour to send to as `next_hop` on `port`, as [`Net::route`] names them; solicited by the next
    /// [`Net::poll`] if new. `None` when the table is full of neighbours in use, or we could not ask (no address of that
    /// family on the port).
    pub fn neighbor(&mut self, port: PortId, next_hop: Addr, now: Micros) -> Option<NeighborId> {
        self.port(port)?.source_for(next_hop, next_hop)?;
        self.table.want(port, next_hop, now)
    }

    /// A neighbour's MAC address. Call it for each frame: that is how use is noticed. Constant time.
    #[inline]
    pub fn mac(&mut self, neighbor: NeighborId, now: Micros) -> Mac {
        self.table.mac(neighbor, now)
    }

    /// Neighbours known or being resolved.
    #[must_use]
    pub fn neighbors(&self) -> usize {
        self.table.len()
    }

    /// Takes in what another worker learned.
    pub fn apply(&mut self, learned: &Learned, now: Micros) {
        let _: Heard = self.table.hear(learned, now);
    }

    /// Starts announcing our addresses and multicast groups; [`Net::poll`] sends the frames. For one of the workers, at
    /// start-up and when a link comes up.
    pub fn announce(&mut self, now: Micros) {
        self.announcer.start(now);
    }

    /// Emits what is due: solicitations, announcements. A bounded number of frames per call; cheap when nothing is due.
    pub fn poll(&mut self, now: Micros, emit: &mut impl FnMut(PortId, &[u8])) {
        let ports = &self.ports;
        self.table.poll(now, POLL_BUDGET, |solicit| {
            if let Some(port) = ports.get(usize::from(solicit.port.0)) {
                port.solicit(solicit.addr, solicit.mac, emit);
            }
        });
        self.announcer.poll(&self.ports, now, emit);
    }

    /// Conflicts seen since start.
    #[must_use]
    pub fn conflicts(&self) -> u64 {
        self.conflicts
    }

    /// The latest conflict, once, and not more often than every ten seconds: for the log.
    pub fn take_conflict(&mut self) -> Option<Conflict> {
        self.conflict.take()
    }

    /// Writes the Ethernet header of a frame we originate on `port` to the front of `frame`, with its tag if it has one. Returns the
    /// header's length: 14 or 18; 0, and nothing is written, when there is no such port or the frame is too short.
    #[inline]
    pub fn ethernet(&self, port: PortId, dst_mac: [u8; 6], ipv6: bool, frame: &mut [u8]) -> usize {
        let Some(port) = self.port(port) else { return 0 };
        let header = if ipv6 { &port.header6 } else { &port.header4 };
        // Of a length that is known here, or copying it would be a call.
        let written =
            if port.vlan == 0 { put::<14>(header, dst_mac, frame) } else { put::<18>(header, dst_mac, frame) };
        written.unwrap_or(0)
    }

    /// Someone else claims `addr`. Whether to answer with an announcement now.
    fn conflict(&mut self, port: PortId, addr: Addr, mac: MacAddr, now: Micros) -> bool {
        self.conflicts = self.conflicts.saturating_add(1);
        if self.reporting.pass(now) {
            self.conflict = Some(Conflict { port, addr, mac, total: self.conflicts });
        }
        self.defences.entry((port, addr)).or_insert_with(|| Throttle::new(DEFEND_INTERVAL)).pass(now)
    }

    /// Takes in what a frame said, and tells the other workers what may be new to them.
    fn hear(&mut self, learned: Learned, now: Micros, tell: &mut impl FnMut(Learned)) -> Heard {
        let heard = self.table.hear(&learned, now);
        // Unasked evidence that changes nothing here was told before. An answer may be to another worker's question.
        let news =
            heard != Heard::Same || matches!(learned.claim, Claim::Reply | Claim::Advert { solicited: true, .. });
        if news && self.telling.take(now) {
            tell(learned);
        }
        heard
    }

    /// Whether another ARP or NDP request may be answered on this port.
    fn may_answer(&mut self, port: PortId, now: Micros) -> Result<(), DropReason> {
        let port = self.ports.get_mut(usize::from(port.0)).ok_or(DropReason::NotOurs)?;
        if port.requests.take(now) { Ok(()) } else { Err(DropReason::NeighborRate) }
    }

    /// Addresses of ours that no configuration names: the link-local ones, which come from the MAC addresses.
    pub fn link_locals(&self) -> impl Iterator<Item = Addr> + '_ {
        self.ports.iter().flat_map(|port| &port.addresses).map(|a| a.addr).filter(|addr| wire::is_link_local(*addr))
    }

    /// Whether one of our ports has this MAC address: such a frame is our own, come back, or another port's.
    fn is_our_mac(&self, mac: MacAddr) -> bool {
        self.ports.iter().any(|p| p.mac == mac)
    }
}

/// Writes the first `N` octets of an Ethernet header to the front of `frame`, with another destination.
#[inline(always)]
fn put<const N: usize>(header: &[u8; 18], dst_mac: MacAddr, frame: &mut [u8]) -> Option<usize> {
    let frame = frame.first_chunk_mut::<N>()?;
    *frame = *header.first_chunk::<N>()?;
    *frame.first_chunk_mut()? = dst_mac;
    Some(N)
}

impl PortNet {
    fn new(
        id: PortId,
        port: &sluice_config::Port,
        mac: MacAddr,
        service_addresses: impl Iterator<Item = Addr>,
    ) -> PortNet {
        let mut addresses: Vec<LocalAddress> =
            port.addresses.iter().map(|a| LocalAddress { addr: a.address.into(), network: a.network.into() }).collect();
        if addresses.iter().any(|a| !a.addr.is_v4()) {
            addresses.push(link_local(mac));
        }
        let mut answers: Vec<Addr> = addresses.iter().map(|a| a.addr).collect();
        answers.extend(service_addresses.filter(|&s| addresses.iter().any(|a| a.network.contains(s))));
        let mut answer_set = HashSet::new();
        answers.retain(|&a| answer_set.insert(a));
        let vlan = port.vlan;
        PortNet {
            id,
            mac,
            vlan,
            mtu: port.mtu,
            addresses,
            answers,
            answer_set,
            requests: Bucket::new(ANSWERS_RATE, ANSWERS_BURST),
            errors: Bucket::new(ERRORS_RATE, ERRORS_BURST),
            header4: ethernet([0; 6], mac, vlan, wire::IPV4).into_bytes(),
            header6: ethernet([0; 6], mac, vlan, wire::IPV6).into_bytes(),
        }
    }

    /// Whether ARP and NDP answer for this address here.
    #[must_use]
    pub fn answers_for(&self, addr: Addr) -> bool {
        self.answer_set.contains(&addr)
    }

    /// Whether this address is in one of the port's networks, and could be a station's.
    fn on_link(&self, addr: Addr) -> bool {
        is_destination(addr) && self.addresses.iter().any(|a| a.network.contains(addr) && !a.network.is_edge(addr))
    }

    /// Whether this is the broadcast address of one of the port's networks.
    fn is_broadcast(&self, addr: Addr) -> bool {
        self.addresses.iter().any(|a| a.network.is_edge(addr))
    }

    /// Our address to reach `dst` from through `next_hop`: one in the next hop's network, else the first of its family.
    /// Link-local ones serve link-local destinations only.
    fn source_for(&self, dst: Addr, next_hop: Addr) -> Option<Addr> {
        let scope = wire::is_link_local(dst);
        let mut candidates = self
            .addresses
            .iter()
            .filter(|a| a.addr.is_v4() == dst.is_v4() && (dst.is_v4() || wire::is_link_local(a.addr) == scope));
        let first = candidates.clone().next()?;
        Some(candidates.find(|a| a.network.contains(next_hop)).unwrap_or(first).addr)
    }

    /// The start of a frame we originate.
    fn ethernet<const N: usize>(&self, to: MacAddr, ether_type: u16) -> Draft<N> {
        ethernet(to, self.mac, self.vlan, ether_type)
    }

    /// Asks who has `addr`: the station `mac`, or everyone.
    fn solicit(&self, addr: Addr, mac: Option<MacAddr>, emit: &mut impl FnMut(PortId, &[u8])) {
        let Some(source) = self.source_for(addr, addr) else { return };
        if addr.is_v4() { self.arp_request(source, addr, mac, emit) } else { self.ndp_solicit(source, addr, mac, emit) }
    }
}

fn ethernet<const N: usize>(to: MacAddr, from: MacAddr, vlan: u16, ether_type: u16) -> Draft<N> {
    let mut draft = Draft::new();
    draft.push(&to);
    draft.push(&from);
    if vlan != 0 {
        draft.push(&wire::VLAN.to_be_bytes());
        draft.push(&vlan.to_be_bytes());
    }
    draft.push(&ether_type.to_be_bytes());
    draft
}

/// fe80::/64 with the interface identifier made from the MAC address (RFC 4291 appendix A).
fn link_local(mac: MacAddr) -> LocalAddress {
    let [a, b, c, d, e, f] = mac;
    let lo = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    let addr = Addr { hi: 0xfe80_0000_0000_0000, lo };
    let network = Ipv6Net::new_assert(std::net::Ipv6Addr::from(addr.octets()), 64);
    LocalAddress { addr, network: IpNet::V6(network.trunc()).into() }
}

/// Whether a packet may be sent to this address: no group, not unspecified, not loopback, not broadcast.
fn is_destination(addr: Addr) -> bool {
    if addr.is_v4() {
        let [first, ..] = addr.v4_bits().to_be_bytes();
        first != 0 && first != 127 && first < 224
    } else {
        !(wire::is_multicast6(addr) || addr.hi == 0 && addr.lo <= 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sluice_filters::{Datagram, Parsed, RxChecksums, parse, testkit};

    use super::script::*;
    use super::*;

    #[test]
    fn ethernet_headers_carry_the_ports_address_and_tag() {
        let t = Script::two_arm();
        let mut buf = [0xee; 18];
        assert_eq!(t.net.ethernet(WAN, PEER, false, &mut buf), 14);
        assert_eq!((&buf[..6], &buf[6..12], &buf[12..14]), (&PEER[..], &WAN_MAC[..], &[8, 0][..]));
        assert_eq!(t.net.ethernet(LAN, OTHER, true, &mut buf), 18);
        assert_eq!((&buf[..6], &buf[6..12]), (&OTHER[..], &LAN_MAC[..]));
        assert_eq!(buf[12..], [0x81, 0, 0, 5, 0x86, 0xdd]);
        assert_eq!(t.net.ethernet(PortId(2), OTHER, true, &mut buf), 0);
        assert_eq!(t.net.ethernet(LAN, OTHER, true, &mut buf[..17]), 0);
    }

    #[test]
    fn frames_are_accepted_with_our_tag_and_to_us_or_a_group() {
        let t = Script::two_arm();
        let frame = |to| testkit::ethernet(to, PEER, None, 0x0800, &[]);
        let untagged = L2 { len: 14, vlan: 0 };
        for to in [WAN_MAC, ALL, [0x33, 0x33, 0xff, 0, 0, 2]] {
            assert_eq!(t.net.accepts(WAN, &frame(to), untagged), Ok(()));
        }
        assert_eq!(t.net.accepts(WAN, &frame(LAN_MAC), untagged), Err(DropReason::NotOurMac));
        assert_eq!(t.net.accepts(LAN, &frame(LAN_MAC), untagged), Err(DropReason::WrongVlan));
        assert_eq!(t.net.accepts(LAN, &frame(LAN_MAC), L2 { len: 18, vlan: 5 }), Ok(()));
        assert_eq!(t.net.accepts(PortId(9), &frame(WAN_MAC), untagged), Err(DropReason::NotOurs));
        assert_eq!(t.net.accepts(WAN, &[], untagged), Err(DropReason::Truncated));
    }

    #[test]
    fn a_neighbour_that_cannot_be_asked_is_none() {
        let mut t = Script::one_arm();
        assert_eq!(t.net.neighbor(WAN, ip("2001:db8::1"), t.now), None);
        assert_eq!(t.net.neighbor(PortId(1), ip("10.0.0.5"), t.now), None);
        assert!(t.net.neighbor(WAN, ip("10.0.0.5"), t.now).is_some());
        assert_eq!(t.net.neighbors(), 1);
    }

    #[test]
    fn a_link_local_gateway_is_asked_from_our_link_local_address() {
        let config = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["2001:db8::2/64"]
gateway = ["fe80::1"]
[[service]]
name = "web"
listen = ["[2001:db8::10]:443"]
[[service.upstream]]
address = "[2001:db8::5]:443"
"#;
        let mut t = Script::of(config, &[WAN_MAC]);
        let route = t.net.route(ip("2001:db8:7::7")).unwrap();
        assert_eq!((route.next_hop, route.source), (ip("fe80::1"), ip("2001:db8::2")));
        let id = t.net.neighbor(route.port, route.next_hop, t.now).unwrap();
        let ours = "fe80::ff:fe00:2";
        assert_eq!(Nd::read(&t.poll()[0].1).src, ip(ours));
        let answer = icmp6("fe80::1", ours, 255, WAN_MAC, &nd(136, 0x60, "fe80::1", Some((2, PEER))));
        assert_eq!(t.rx(WAN, &answer), Ok(None));
        assert_eq!(t.net.mac(id, t.now), Mac::Known(PEER));
    }

    #[test]
    fn ports_and_addresses_are_as_configured() {
        let t = Script::two_arm();
        let lan = t.net.port(LAN).unwrap();
        assert_eq!((lan.mac, lan.vlan, lan.mtu), (LAN_MAC, 5, 9000));
        assert!(lan.answers_for(ip("10.0.0.20")) && !lan.answers_for(ip("198.51.100.2")));
        assert!(t.net.is_local(ip("203.0.113.10")) && t.net.is_local(ip("10.0.0.20")));
        assert!(!t.net.is_local(ip("10.0.0.5")));
        assert!(t.net.port(PortId(2)).is_none());
    }

    #[test]
    fn a_flood_of_requests_is_not_told_without_bound() {
        let mut t = Script::two_arm();
        for n in 0..5_000_u32 {
            let mut arp = Arp::request("198.51.100.7", "198.51.100.2");
            arp.spa = Addr::v4(0xc633_6420 + n % 200); // 198.51.100.32 and on
            arp.sha = [2, 1, 0, 0, 0, 0];
            arp.sha[2..].copy_from_slice(&n.to_be_bytes());
            assert!(t.rx(WAN, &arp.frame(ALL)).is_ok());
        }
        assert_eq!(t.told.len(), LEARNED_BURST as usize);
        assert!(t.net.neighbors() <= NEIGHBORS / 4);
        assert_eq!(NEIGHBORS, 4_096);
    }

    /// Frames of each kind these layers serve, for mutation.
    fn samples() -> Vec<Vec<u8>> {
        let ns = nd(135, 0, "2001:db8::2", Some((1, PEER)));
        let na = nd(136, 0x60, "2001:db8::1", Some((2, PEER)));
        let ping6 = [128, 0, 0, 0, 0, 1, 0, 1, 9, 9, 9];
        let ping4 = testkit::ip("192.0.2.7", "198.51.100.2", 1).payload([8, 0, 0xf7, 0xfe, 0, 0, 0, 1]).build();
        let plain = vec![
            Arp::request("198.51.100.7", "198.51.100.2").frame(ALL),
            Arp::reply("198.51.100.1", "198.51.100.2", WAN_MAC).frame(WAN_MAC),
            icmp6("2001:db8::7", "2001:db8::2", 255, WAN_MAC, &ns),
            icmp6("2001:db8::1", "2001:db8::2", 255, WAN_MAC, &na),
            icmp6("::", "ff02::1:ff00:2", 255, [0x33, 0x33, 0xff, 0, 0, 2], &ns[..24]),
            icmp6("2001:db8::7", "2001:db8::2", 64, WAN_MAC, &ping6),
            ping4,
        ];
        let tagged: Vec<_> = plain.iter().map(|f| tag(f, 5)).collect();
        [plain, tagged].concat()
    }

    /// Makes an ICMPv6 checksum right again, so that mutations get past it.
    fn reseal(frame: &mut [u8]) {
        if let Ok(Parsed::Icmp6(p)) = parse(frame, RxChecksums::default()) {
            let check = sluice_filters::checksum::icmp6_checksum(p.message(frame), p.src, p.dst);
            frame[usize::from(p.l4) + 2..][..2].copy_from_slice(&check.to_be_bytes());
        }
    }

    fn exercise(port: PortId, frame: &[u8]) {
        let mut t = Script::two_arm();
        t.net.neighbor(WAN, ip("198.51.100.1"), t.now);
        t.net.neighbor(WAN, ip("2001:db8::1"), t.now);
        if let Ok(parsed @ (Parsed::Arp(_) | Parsed::Icmp(_) | Parsed::Icmp6(_))) = parse(frame, RxChecksums::GOOD) {
            let reply = t.rx(port, frame);
            assert!(matches!(reply, Err(_) | Ok(None)) || reply.is_ok_and(|r| r.unwrap()[6..12] != PEER));
            // A buffer with no room beyond the frame.
            let _ = t.serve(port, frame, frame.len(), parsed);
        }
        assert!(t.net.neighbors() <= 3);
        t.poll();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn mutated_frames_never_panic(
            which in 0..14_usize,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            whole in any::<bool>(),
            sealed in any::<bool>(),
            port in 0..3_u8,
        ) {
            let mut frame = samples().swap_remove(which);
            for (at, value) in changes {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            if !whole {
                frame.truncate(cut.index(frame.len() + 1));
            }
            if sealed {
                reseal(&mut frame);
            }
            exercise(PortId(port), &frame);
        }

        #[test]
        fn random_octets_never_panic_whatever_the_parser_claims(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            len in any::<u8>(),
            (l4, end, hop_limit) in (any::<u8>(), any::<u8>(), any::<u8>()),
            arp in any::<bool>(),
            v4 in any::<bool>(),
            port in 0..3_u8,
        ) {
            let mut t = Script::two_arm();
            let l2 = L2 { len, vlan: 0 };
            let (src, dst) = if v4 { ("192.0.2.7", "198.51.100.2") } else { ("2001:db8::7", "2001:db8::2") };
            let d = Datagram { l2, src: ip(src), dst: ip(dst), l4: l4.into(), end: end.into(), hop_limit };
            let mut frame = bytes;
            if let Some(to) = frame.get_mut(..6) {
                to.copy_from_slice(&WAN_MAC);
            }
            let parsed = if arp { Parsed::Arp(l2) } else if v4 { Parsed::Icmp(d) } else { Parsed::Icmp6(d) };
            let _ = t.serve(PortId(port), &frame, frame.len(), parsed);
        }
    }
}
