//! ARP over Ethernet: RFC 826, with RFC 5227's announcements, probes and defence, and RFC 1122 section 2.3.2.
//!
//! Invariants: only a request for an address of ours creates a neighbour; a reply counts as an answer only while we ask;
//! everything else may at most change a neighbour we have, which is then asked itself before it is trusted for long.

use sluice_filters::addr::Addr;
use sluice_filters::units::{Micros, PortId};
use sluice_filters::{DropReason, L2, src_mac};

use super::neighbor::{Claim, Heard, Learned};
use super::wire::{self, Draft, MacAddr};
use super::{Net, NetAction, PortNet};

/// Length of an ARP packet for IPv4 over Ethernet.
const LEN: usize = 28;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// Hardware type Ethernet, protocol type IPv4, their address lengths.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const NOBODY: Addr = Addr::v4(0);

/// The fields that vary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    op: u16,
    sender_mac: MacAddr,
    sender: Addr,
    target_mac: MacAddr,
    target: Addr,
}

impl Packet {
    fn read(bytes: &[u8]) -> Option<Packet> {
        if wire::get(bytes, 0)? != ETHERNET_IPV4 {
            return None;
        }
        Some(Packet {
            op: u16::from_be_bytes(wire::get(bytes, 6)?),
            sender_mac: wire::get(bytes, 8)?,
            sender: Addr::v4(u32::from_be_bytes(wire::get(bytes, 14)?)),
            target_mac: wire::get(bytes, 18)?,
            target: Addr::v4(u32::from_be_bytes(wire::get(bytes, 24)?)),
        })
    }

    fn bytes(&self) -> [u8; LEN] {
        let mut draft = Draft::<LEN>::new();
        draft.push(&ETHERNET_IPV4);
        draft.push(&self.op.to_be_bytes());
        draft.push(&self.sender_mac);
        draft.push(&self.sender.v4_bits().to_be_bytes());
        draft.push(&self.target_mac);
        draft.push(&self.target.v4_bits().to_be_bytes());
        draft.into_bytes()
    }
}

impl Net {
    /// Serves a received ARP frame. `frame` is what was received and no more: the buffer behind it holds an older frame's
    /// octets, which would complete a truncated packet. The reply needs no more room; it is padded as the request was.
    /// `learned` is told what the other workers should [`Net::apply`].
    ///
    /// # Errors
    /// [`DropReason::BadArp`], [`DropReason::Truncated`], [`DropReason::WrongVlan`], [`DropReason::NotOurMac`], and
    /// [`DropReason::NotOurs`] for ARP among others; [`DropReason::NeighborRate`] when there were too many requests.
    pub fn arp(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        l2: L2,
        now: Micros,
        learned: &mut impl FnMut(Learned),
    ) -> Result<NetAction, DropReason> {
        self.accepts(port, frame, l2)?;
        let body = frame.get(usize::from(l2.len)..).filter(|b| b.len() >= LEN).ok_or(DropReason::Truncated)?;
        let arp = Packet::read(body).ok_or(DropReason::BadArp)?;
        let from = src_mac(frame).ok_or(DropReason::Truncated)?;
        let known_op = matches!(arp.op, REQUEST | REPLY);
        if !known_op || !wire::is_station(from) || !wire::is_station(arp.sender_mac) {
            return Err(DropReason::BadArp);
        }
        if self.is_our_mac(arp.sender_mac) {
            return Err(DropReason::BadArp); // our own, come back
        }
        let here = self.port(port).ok_or(DropReason::NotOurs)?;
        let mac = here.mac;
        let for_us = here.answers_for(arp.target);
        let claims_ours = here.answers_for(arp.sender);
        let neighbor = here.on_link(arp.sender);
        if claims_ours {
            // RFC 5227 section 2.4 (c): defend, but not against every frame of a misconfigured station.
            let defend = self.conflict(port, arp.sender, arp.sender_mac, now);
            if !defend {
                return Ok(NetAction::Consumed);
            }
            return rewrite(frame, l2, mac, wire::BROADCAST, &Packet::announcement(mac, arp.sender));
        }
        if arp.sender == NOBODY {
            // RFC 5227 section 1.1: a probe. There is nothing to learn from it.
            if !(for_us && arp.op == REQUEST) {
                return Err(if arp.op == REQUEST { DropReason::NotOurs } else { DropReason::BadArp });
            }
        } else if neighbor {
            let claim = match (for_us, arp.op) {
                (true, REQUEST) => Claim::Request,
                (true, _) => Claim::Reply,
                (false, _) => Claim::Overheard,
            };
            let news = Learned { port, addr: arp.sender, mac: Some(arp.sender_mac), claim };
            let heard = self.hear(news, now, learned);
            if !for_us {
                return if heard == Heard::Updated { Ok(NetAction::Consumed) } else { Err(DropReason::NotOurs) };
            }
        } else if !for_us {
            return Err(DropReason::NotOurs);
        }
        if arp.op == REPLY {
            return if neighbor { Ok(NetAction::Consumed) } else { Err(DropReason::BadArp) };
        }
        self.may_answer(port, now)?;
        let reply =
            Packet { op: REPLY, sender_mac: mac, sender: arp.target, target_mac: arp.sender_mac, target: arp.sender };
        rewrite(frame, l2, mac, arp.sender_mac, &reply)
    }
}

impl Packet {
    /// RFC 5227 section 1.1: a request for one's own address, from it.
    fn announcement(mac: MacAddr, addr: Addr) -> Packet {
        Packet { op: REQUEST, sender_mac: mac, sender: addr, target_mac: [0; 6], target: addr }
    }
}

/// Turns the received frame into an answer, its tag kept.
fn rewrite(frame: &mut [u8], l2: L2, own: MacAddr, to: MacAddr, arp: &Packet) -> Result<NetAction, DropReason> {
    let start = usize::from(l2.len);
    let end = start.saturating_add(LEN);
    wire::put(frame, start, arp.bytes()).ok_or(DropReason::Truncated)?;
    wire::put(frame, 0, to).ok_or(DropReason::Truncated)?;
    wire::put(frame, 6, own).ok_or(DropReason::Truncated)?;
    let Some(padding) = frame.get_mut(end..wire::MIN_FRAME) else { return Ok(NetAction::Reply(end)) };
    padding.fill(0);
    Ok(NetAction::Reply(wire::MIN_FRAME))
}

impl PortNet {
    /// Asks `mac`, or everyone, who has `target`.
    pub(super) fn arp_request(
        &self,
        source: Addr,
        target: Addr,
        mac: Option<MacAddr>,
        emit: &mut impl FnMut(PortId, &[u8]),
    ) {
        let arp = Packet { op: REQUEST, sender_mac: self.mac, sender: source, target_mac: [0; 6], target };
        self.emit_arp(&arp, mac.unwrap_or(wire::BROADCAST), emit);
    }

    /// Asks whether anyone else uses `addr` (RFC 5227 section 2.1.1).
    pub(super) fn arp_probe(&self, addr: Addr, emit: &mut impl FnMut(PortId, &[u8])) {
        self.arp_request(NOBODY, addr, None, emit);
    }

    /// Says that `addr` is ours (RFC 5227 section 2.3).
    pub(super) fn arp_announce(&self, addr: Addr, emit: &mut impl FnMut(PortId, &[u8])) {
        self.emit_arp(&Packet::announcement(self.mac, addr), wire::BROADCAST, emit);
    }

    fn emit_arp(&self, arp: &Packet, to: MacAddr, emit: &mut impl FnMut(PortId, &[u8])) {
        let mut draft = self.ethernet::<{ wire::MIN_FRAME }>(to, wire::ARP);
        draft.push(&arp.bytes());
        draft.pad();
        emit(self.id, draft.bytes());
    }
}

#[cfg(test)]
mod tests {
    use sluice_filters::Parsed;

    use super::super::script::*;
    use super::super::{Mac, NeighborId};
    use super::*;

    const GATEWAY: &str = "198.51.100.1";

    #[test]
    fn a_flood_of_requests_is_answered_up_to_a_rate() {
        let mut t = Script::two_arm();
        let answered = |t: &mut Script, count: usize| {
            let request = Arp::request("198.51.100.7", "198.51.100.10").frame(ALL);
            (0..count).filter(|_| matches!(t.rx(WAN, &request), Ok(Some(_)))).count()
        };
        assert_eq!(answered(&mut t, 30_000), 10_000);
        let request = Arp::request("198.51.100.7", "198.51.100.10").frame(ALL);
        assert_eq!(t.rx(WAN, &request), Err(DropReason::NeighborRate));
        let solicitation =
            icmp6("2001:db8::7", "2001:db8::10", 255, WAN_MAC, &nd(135, 0, "2001:db8::10", Some((1, PEER))));
        assert_eq!(t.rx(WAN, &solicitation), Err(DropReason::NeighborRate), "NDP has the same");
        let other = Arp::request("10.0.0.5", "10.0.0.2").tagged(ALL, 5);
        assert!(matches!(t.rx(LAN, &other), Ok(Some(_))), "the other link has its own");
        t.wait_ms(100);
        assert_eq!(answered(&mut t, 30_000), 1_000);
    }

    /// A neighbour on the WAN that answered.
    fn known(t: &mut Script, addr: &str, mac: MacAddr) -> NeighborId {
        let id = t.net.neighbor(WAN, ip(addr), t.now).unwrap();
        assert_eq!(t.rx(WAN, &Arp::reply(addr, "198.51.100.2", WAN_MAC).from(mac).frame(WAN_MAC)), Ok(None));
        assert_eq!(t.net.mac(id, t.now), Mac::Known(mac));
        t.told.clear();
        id
    }

    #[test]
    fn a_request_for_our_address_is_answered_in_place() {
        let mut t = Script::two_arm();
        for ours in ["198.51.100.2", "198.51.100.10"] {
            for to in [ALL, WAN_MAC] {
                let reply = t.rx(WAN, &Arp::request("198.51.100.7", ours).frame(to)).unwrap().unwrap();
                assert_eq!((&reply[..6], &reply[6..12], reply.len()), (&PEER[..], &WAN_MAC[..], 60));
                let expected = Arp { op: 2, sha: WAN_MAC, spa: ip(ours), tha: PEER, tpa: ip("198.51.100.7") };
                assert_eq!(Arp::read(&reply, 14), expected);
            }
        }
    }

    #[test]
    fn a_reply_carries_the_ports_tag() {
        let mut t = Script::two_arm();
        let reply = t.rx(LAN, &Arp::request("10.0.0.5", "10.0.0.20").tagged(ALL, 5)).unwrap().unwrap();
        assert_eq!(reply[12..18], [0x81, 0, 0, 5, 8, 6]);
        let expected = Arp { op: 2, sha: LAN_MAC, spa: ip("10.0.0.20"), tha: PEER, tpa: ip("10.0.0.5") };
        assert_eq!(Arp::read(&reply, 18), expected);
    }

    #[test]
    fn a_request_with_another_tag_or_none_is_dropped() {
        let mut t = Script::two_arm();
        let request = Arp::request("10.0.0.5", "10.0.0.2");
        assert_eq!(t.rx(LAN, &request.frame(ALL)), Err(DropReason::WrongVlan));
        assert_eq!(t.rx(LAN, &request.tagged(ALL, 6)), Err(DropReason::WrongVlan));
        let request = Arp::request("198.51.100.7", "198.51.100.2");
        assert_eq!(t.rx(WAN, &request.tagged(ALL, 5)), Err(DropReason::WrongVlan));
        assert_eq!(t.net.neighbors(), 0);
    }

    #[test]
    fn a_priority_tag_is_no_tag_and_is_kept() {
        let mut t = Script::two_arm();
        let request = Arp::request("198.51.100.7", "198.51.100.2").tagged(ALL, 0xe000);
        let reply = t.rx(WAN, &request).unwrap().unwrap();
        assert_eq!(reply[12..18], [0x81, 0, 0xe0, 0, 8, 6]);
        assert_eq!(Arp::read(&reply, 18).op, 2);
    }

    #[test]
    fn a_service_address_is_answered_for_only_where_it_is_on_link() {
        let mut t = Script::two_arm();
        // The WAN's service and address asked for on the LAN, and the reverse.
        let foreign = Arp::request("10.0.0.5", "198.51.100.10").tagged(ALL, 5);
        assert_eq!(t.rx(LAN, &foreign), Err(DropReason::NotOurs));
        assert_eq!(t.rx(WAN, &Arp::request(GATEWAY, "10.0.0.20").frame(ALL)), Err(DropReason::NotOurs));
        // Routed to us: nobody needs to ask.
        assert_eq!(t.rx(WAN, &Arp::request(GATEWAY, "203.0.113.10").frame(ALL)), Err(DropReason::NotOurs));
    }

    #[test]
    fn one_arm_answers_for_both_networks_on_its_port() {
        let mut t = Script::one_arm();
        for (asker, ours) in
            [("198.51.100.7", "198.51.100.10"), ("10.0.0.5", "10.0.0.2"), ("198.51.100.7", "198.51.100.2")]
        {
            let reply = t.rx(WAN, &Arp::request(asker, ours).frame(ALL)).unwrap().unwrap();
            assert_eq!(Arp::read(&reply, 14).spa, ip(ours));
        }
    }

    #[test]
    fn a_request_for_another_host_is_not_ours() {
        let mut t = Script::two_arm();
        assert_eq!(t.rx(WAN, &Arp::request(GATEWAY, "198.51.100.3").frame(ALL)), Err(DropReason::NotOurs));
        assert_eq!(t.net.neighbors(), 0);
    }

    #[test]
    fn a_frame_to_another_station_is_dropped() {
        let mut t = Script::two_arm();
        let request = Arp::request("198.51.100.7", "198.51.100.2").frame(OTHER);
        assert_eq!(t.rx(WAN, &request), Err(DropReason::NotOurMac));
    }

    #[test]
    fn a_request_to_us_makes_its_sender_known_and_is_told() {
        let mut t = Script::two_arm();
        t.rx(WAN, &Arp::request("198.51.100.7", "198.51.100.2").frame(ALL)).unwrap().unwrap();
        let learned = Learned { port: WAN, addr: ip("198.51.100.7"), mac: Some(PEER), claim: Claim::Request };
        assert_eq!(t.told, [learned]);
        let id = t.net.neighbor(WAN, ip("198.51.100.7"), t.now).unwrap();
        assert_eq!(t.net.mac(id, t.now), Mac::Known(PEER));
        // The same again is no news.
        t.rx(WAN, &Arp::request("198.51.100.7", "198.51.100.2").frame(ALL)).unwrap().unwrap();
        assert_eq!(t.told.len(), 1);
    }

    #[test]
    fn an_off_link_sender_is_answered_but_not_learned() {
        let mut t = Script::two_arm();
        for sender in ["192.0.2.7", "198.51.100.255", "198.51.100.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            assert!(t.rx(WAN, &Arp::request(sender, "198.51.100.2").frame(ALL)).unwrap().is_some(), "{sender}");
        }
        assert_eq!((t.net.neighbors(), t.told.len()), (0, 0));
    }

    #[test]
    fn a_probe_of_our_address_is_answered_and_teaches_nothing() {
        let mut t = Script::two_arm();
        let reply = t.rx(WAN, &Arp::request("0.0.0.0", "198.51.100.10").frame(ALL)).unwrap().unwrap();
        let expected = Arp { op: 2, sha: WAN_MAC, spa: ip("198.51.100.10"), tha: PEER, tpa: ip("0.0.0.0") };
        assert_eq!(Arp::read(&reply, 14), expected);
        assert_eq!((t.net.neighbors(), t.net.conflicts()), (0, 0));
        assert_eq!(t.rx(WAN, &Arp::request("0.0.0.0", "198.51.100.9").frame(ALL)), Err(DropReason::NotOurs));
        let reply = Arp::reply("0.0.0.0", "198.51.100.10", WAN_MAC).frame(WAN_MAC);
        assert_eq!(t.rx(WAN, &reply), Err(DropReason::BadArp));
    }

    #[test]
    fn a_reply_resolves_the_neighbour_we_asked_for() {
        let mut t = Script::two_arm();
        let id = t.net.neighbor(WAN, ip(GATEWAY), t.now).unwrap();
        assert_eq!(t.net.mac(id, t.now), Mac::Resolving);
        let sent = t.poll();
        assert_eq!(sent.len(), 1);
        let (port, frame) = &sent[0];
        assert_eq!((*port, &frame[..6], &frame[6..12]), (WAN, &ALL[..], &WAN_MAC[..]));
        let asked = Arp { op: 1, sha: WAN_MAC, spa: ip("198.51.100.2"), tha: [0; 6], tpa: ip(GATEWAY) };
        assert_eq!(Arp::read(frame, 14), asked);
        assert_eq!(t.rx(WAN, &Arp::reply(GATEWAY, "198.51.100.2", WAN_MAC).frame(WAN_MAC)), Ok(None));
        assert_eq!(t.net.mac(id, t.now), Mac::Known(PEER));
        assert_eq!(t.told.len(), 1);
    }

    #[test]
    fn a_solicitation_on_a_tagged_port_is_tagged() {
        let mut t = Script::two_arm();
        t.net.neighbor(LAN, ip("10.0.0.5"), t.now).unwrap();
        let sent = t.poll();
        assert_eq!((sent[0].0, &sent[0].1[12..18]), (LAN, &[0x81, 0, 0, 5, 8, 6][..]));
        assert_eq!(Arp::read(&sent[0].1, 18).spa, ip("10.0.0.2"));
    }

    #[test]
    fn a_reply_nobody_asked_for_creates_nothing_but_is_told() {
        let mut t = Script::two_arm();
        // Another worker may have asked.
        assert_eq!(t.rx(WAN, &Arp::reply(GATEWAY, "198.51.100.2", WAN_MAC).frame(WAN_MAC)), Ok(None));
        assert_eq!((t.net.neighbors(), t.told.len()), (0, 1));
        // From off-link nobody did.
        let reply = Arp::reply("192.0.2.1", "198.51.100.2", WAN_MAC).frame(WAN_MAC);
        assert_eq!(t.rx(WAN, &reply), Err(DropReason::BadArp));
        assert_eq!(t.told.len(), 1);
    }

    #[test]
    fn what_one_worker_learned_resolves_another_workers_neighbour() {
        let (mut a, mut b) = (Script::two_arm(), Script::two_arm());
        let id = b.net.neighbor(WAN, ip(GATEWAY), b.now).unwrap();
        a.rx(WAN, &Arp::reply(GATEWAY, "198.51.100.2", WAN_MAC).frame(WAN_MAC)).unwrap();
        b.net.apply(&a.told[0], b.now);
        assert_eq!(b.net.mac(id, b.now), Mac::Known(PEER));
    }

    #[test]
    fn a_gratuitous_arp_moves_a_known_neighbour_and_creates_none() {
        for gratuitous in [Arp::request(GATEWAY, GATEWAY), Arp::reply(GATEWAY, GATEWAY, ALL)] {
            let mut t = Script::two_arm();
            assert_eq!(t.rx(WAN, &gratuitous.from(OTHER).frame(ALL)), Err(DropReason::NotOurs));
            assert_eq!(t.net.neighbors(), 0);
            let id = known(&mut t, GATEWAY, PEER);
            assert_eq!(t.rx(WAN, &gratuitous.from(OTHER).frame(ALL)), Ok(None));
            assert_eq!(t.net.mac(id, t.now), Mac::Known(OTHER));
            assert_eq!(t.told.len(), 1);
            // Now it is asked itself: nobody took the announcement's word for long.
            let asked = t.wait_ms(5_000).poll();
            assert_eq!((asked.len(), &asked[0].1[..6]), (1, &OTHER[..]));
        }
    }

    #[test]
    fn a_frame_whose_source_cannot_be_a_station_is_bad_arp() {
        let mut t = Script::two_arm();
        let request = Arp::request("198.51.100.7", "198.51.100.2");
        for bad in [[0; 6], [0x01, 0, 0x5e, 0, 0, 1], ALL] {
            assert_eq!(t.rx(WAN, &testkit_frame(&request.from(bad), PEER)), Err(DropReason::BadArp), "sender {bad:?}");
        }
        assert_eq!(t.rx(WAN, &testkit_frame(&request, [0; 6])), Err(DropReason::BadArp));
        // The parser already refuses group sources; these layers would too.
        let frame = testkit_frame(&request, ALL);
        let l2 = Parsed::Arp(L2 { len: 14, vlan: 0 });
        assert_eq!(t.serve(WAN, &frame, 64, l2), Err(DropReason::BadArp));
        assert_eq!(t.net.neighbors(), 0);
    }

    fn testkit_frame(arp: &Arp, from: MacAddr) -> Vec<u8> {
        sluice_filters::testkit::ethernet(ALL, from, None, 0x0806, &arp.packet())
    }

    #[test]
    fn our_own_frames_come_back_are_no_conflict() {
        let mut t = Script::two_arm();
        let announcement = Arp::request("198.51.100.2", "198.51.100.2").from(WAN_MAC).frame(ALL);
        assert_eq!(t.rx(WAN, &announcement), Err(DropReason::BadArp));
        // Two ports on one link: the other one's.
        let other = Arp::request("198.51.100.2", "198.51.100.2").from(LAN_MAC).frame(ALL);
        assert_eq!(t.rx(WAN, &other), Err(DropReason::BadArp));
        assert_eq!(t.net.conflicts(), 0);
    }

    #[test]
    fn a_conflict_is_reported_and_defended_once_per_interval() {
        let mut t = Script::two_arm();
        let claim = Arp::request("198.51.100.10", "198.51.100.1").from(OTHER).frame(ALL);
        let defence = t.rx(WAN, &claim).unwrap().unwrap();
        assert_eq!((&defence[..6], &defence[6..12]), (&ALL[..], &WAN_MAC[..]));
        let ours = ip("198.51.100.10");
        assert_eq!(Arp::read(&defence, 14), Arp { op: 1, sha: WAN_MAC, spa: ours, tha: [0; 6], tpa: ours });
        let conflict = super::super::Conflict { port: WAN, addr: ours, mac: OTHER, total: 1 };
        assert_eq!((t.net.take_conflict(), t.net.take_conflict()), (Some(conflict), None));
        for _ in 0..5 {
            assert_eq!(t.wait_ms(1_000).rx(WAN, &claim), Ok(None));
        }
        assert_eq!((t.net.conflicts(), t.net.take_conflict()), (6, None));
        assert!(t.wait_ms(5_000).rx(WAN, &claim).unwrap().is_some());
        assert_eq!(t.net.take_conflict().unwrap().total, 7);
        assert_eq!(t.net.neighbors(), 0);
    }

    #[test]
    fn whoever_claims_one_address_leaves_all_others_defended_on_every_port() {
        let mut t = Script::two_arm();
        let claim = |addr: &str| Arp::request(addr, "203.0.113.1").from(OTHER);
        let wan = |addr: &str| (WAN, claim(addr).frame(ALL), 14, ip(addr));
        let lan = (LAN, claim("10.0.0.2").tagged(ALL, 5), 18, ip("10.0.0.2"));
        for (port, frame, at, addr) in [lan, wan("198.51.100.2"), wan("198.51.100.10")] {
            let defence = t.rx(port, &frame).unwrap().unwrap_or_else(|| panic!("{addr:?} is defended"));
            assert_eq!(Arp::read(&defence, at).spa, addr);
            assert_eq!(t.rx(port, &frame), Ok(None), "{addr:?}: once per interval");
        }
    }

    #[test]
    fn a_reply_that_claims_our_address_is_a_conflict_too() {
        let mut t = Script::two_arm();
        let reply = Arp::reply("198.51.100.2", "0.0.0.0", WAN_MAC).from(OTHER).frame(WAN_MAC);
        assert!(t.rx(WAN, &reply).unwrap().is_some());
        assert_eq!(t.net.conflicts(), 1);
    }

    #[test]
    fn arp_that_is_not_ipv4_over_ethernet_is_bad_arp() {
        let good = Arp::request("198.51.100.7", "198.51.100.2").frame(ALL);
        for (at, value) in [(14, 1), (15, 6), (16, 0x86), (17, 0xdd), (18, 8), (19, 16), (20, 1), (21, 0), (21, 3)] {
            let mut t = Script::two_arm();
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(t.rx(WAN, &bad), Err(DropReason::BadArp), "octet {at} = {value}");
            assert_eq!(t.net.neighbors(), 0);
        }
    }

    #[test]
    fn truncated_arp_is_dropped() {
        let mut t = Script::two_arm();
        let request = Arp::request("198.51.100.7", "198.51.100.2").frame(ALL);
        let l2 = Parsed::Arp(L2 { len: 14, vlan: 0 });
        for len in 0..42 {
            assert_eq!(t.serve(WAN, &request[..len], len, l2), Err(DropReason::Truncated), "{len}");
        }
        // Unpadded, as virtual devices deliver it: so is the reply.
        assert_eq!(t.rx(WAN, &request[..42]).unwrap().unwrap().len(), 42);
    }

    #[test]
    fn a_request_that_gives_our_own_address_on_another_port_is_no_neighbour_of_it() {
        let mut t = Script::one_arm();
        let claim = Arp::request("10.0.0.2", "198.51.100.10").from(OTHER).frame(ALL);
        assert!(t.rx(WAN, &claim).unwrap().is_some());
        assert_eq!((t.net.conflicts(), t.net.neighbors()), (1, 0));
    }
}
