//! Neighbour discovery: RFC 4861 section 7 and RFC 4862 section 5.4 for a node with static addresses that is no router.
//!
//! Invariants: a message with a hop limit below 255 came from off-link and changes nothing (RFC 4861 section 11.2); only a
//! solicitation of an address of ours creates a neighbour; advertisements change only what we have.

use sluice_filters::addr::Addr;
use sluice_filters::units::{Micros, PortId};
use sluice_filters::{Datagram, DropReason, L2, checksum, src_mac};

use super::icmp::{ipv6_header, valid6};
use super::neighbor::{Claim, Learned};
use super::wire::{self, Draft, MacAddr};
use super::{Net, NetAction, PortNet};

/// Length of our neighbour advertisements and solicitations, IPv6 header included.
pub(super) const ADVERTISEMENT: usize = 40 + MESSAGE;
/// Type to target, and one link-layer address option.
const MESSAGE: usize = 24 + 8;
/// A probe carries no option.
const PROBE: usize = 24;

/// ICMPv6 type of a neighbour solicitation.
pub(super) const SOLICIT: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
pub(super) const ADVERTISE: u8 = 136;
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const MAX_HOPS: u8 = 255;

/// A solicitation or advertisement, checked as RFC 4861 sections 7.1.1 and 7.1.2 ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    kind: u8,
    flags: u8,
    target: Addr,
    /// The link-layer address option of its kind.
    mac: Option<MacAddr>,
}

impl Message {
    fn read(bytes: &[u8]) -> Option<Message> {
        let [kind, code, _, _, flags, ..] = wire::get::<8>(bytes, 0)?;
        let target = Addr::v6(wire::get(bytes, 8)?);
        let wanted = match kind {
            SOLICIT => SOURCE_OPTION,
            ADVERTISE => TARGET_OPTION,
            _ => return None,
        };
        let mac = read_options(bytes.get(24..)?, wanted)?;
        (code == 0 && !wire::is_multicast6(target)).then_some(Message { kind, flags, target, mac })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The link-layer address in the option of type `wanted`. `None` when an option is malformed (RFC 4861 section 4.6) or names
/// an address no station can have.
fn read_options(mut options: &[u8], wanted: u8) -> Option<Option<MacAddr>> {
    let mut found = None;
    while !options.is_empty() {
        let [kind, eights] = wire::get(options, 0)?;
        let (option, rest) = options.split_at_checked(usize::from(eights).saturating_mul(8))?;
        if option.is_empty() {
            return None;
        }
        if kind == wanted {
            let mac: MacAddr = wire::get(option, 2)?;
            if !wire::is_station(mac) {
                return None;
            }
            found.get_or_insert(mac);
        }
        options = rest;
    }
    Some(found)
}

impl Net {
    /// Serves solicitations and advertisements.
    pub(super) fn ndp(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        packet: &Datagram,
        now: Micros,
        learned: &mut impl FnMut(Learned),
    ) -> Result<NetAction, DropReason> {
        if packet.hop_limit != MAX_HOPS || !valid6(frame, packet) {
            return Err(DropReason::BadNdp);
        }
        let message = Message::read(packet.message(frame)).ok_or(DropReason::BadNdp)?;
        let from = src_mac(frame).ok_or(DropReason::Truncated)?;
        // One of our MAC addresses: our own, come back.
        if !wire::is_station(from) || self.is_our_mac(from) || message.mac.is_some_and(|m| self.is_our_mac(m)) {
            return Err(DropReason::BadNdp);
        }
        if message.kind == SOLICIT {
            self.solicitation(port, frame, packet, message, from, now, learned)
        } else {
            self.advertisement(port, frame, packet, message, from, now, learned)
        }
    }

    #[allow(clippy::too_many_arguments)] // one caller, and each is a fact about the same frame
    fn solicitation(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        packet: &Datagram,
        message: Message,
        from: MacAddr,
        now: Micros,
        learned: &mut impl FnMut(Learned),
    ) -> Result<NetAction, DropReason> {
        let probe = packet.src == wire::UNSPECIFIED;
        if probe && (message.mac.is_some() || packet.dst != wire::solicited_node(message.target)) {
            return Err(DropReason::BadNdp);
        }
        let here = self.port(port).ok_or(DropReason::NotOurs)?;
        let own = here.mac;
        if !here.answers_for(message.target) {
            return Err(DropReason::NotOurs);
        }
        if probe {
            self.may_answer(port, now)?;
            // RFC 4861 section 7.2.4: whoever probes cannot be addressed yet.
            let na = advertise(message.target, wire::ALL_NODES, OVERRIDE, own);
            return rewrite(frame, packet.l2, own, wire::group_mac(wire::ALL_NODES), &na);
        }
        if here.answers_for(packet.src) {
            return self.defend(port, frame, packet.l2, packet.src, message.mac.unwrap_or(from), now);
        }
        let neighbor = here.on_link(packet.src);
        if !neighbor && !super::is_destination(packet.src) {
            return Err(DropReason::BadNdp);
        }
        if let (true, Some(mac)) = (neighbor, message.mac) {
            let news = Learned { port, addr: packet.src, mac: Some(mac), claim: Claim::Request };
            self.hear(news, now, learned);
        }
        self.may_answer(port, now)?;
        // The option may be missing when we alone are asked; then we may know the station, and the frame came from it.
        let to = message.mac.or_else(|| self.table.peek(port, packet.src)).unwrap_or(from);
        let na = advertise(message.target, packet.src, SOLICITED | OVERRIDE, own);
        rewrite(frame, packet.l2, own, to, &na)
    }

    #[allow(clippy::too_many_arguments)] // as above
    fn advertisement(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        packet: &Datagram,
        message: Message,
        from: MacAddr,
        now: Micros,
        learned: &mut impl FnMut(Learned),
    ) -> Result<NetAction, DropReason> {
        let solicited = message.has(SOLICITED);
        if solicited && wire::is_multicast6(packet.dst) {
            return Err(DropReason::BadNdp);
        }
        let here = self.port(port).ok_or(DropReason::NotOurs)?;
        if here.answers_for(message.target) {
            return self.defend(port, frame, packet.l2, message.target, message.mac.unwrap_or(from), now);
        }
        let for_us = wire::is_multicast6(packet.dst) || here.answers_for(packet.dst);
        if !for_us || !here.on_link(message.target) {
            return Err(DropReason::NotOurs);
        }
        let claim = Claim::Advert { solicited, overrides: message.has(OVERRIDE) };
        self.hear(Learned { port, addr: message.target, mac: message.mac, claim }, now, learned);
        Ok(NetAction::Consumed)
    }

    /// Someone else uses our `addr`: tell all nodes whose it is, though not for every frame (as RFC 5227 section 2.4 (c);
    /// RFC 4862 leaves it to us).
    fn defend(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        l2: L2,
        addr: Addr,
        mac: MacAddr,
        now: Micros,
    ) -> Result<NetAction, DropReason> {
        if !self.conflict(port, addr, mac, now) {
            return Ok(NetAction::Consumed);
        }
        let own = self.port(port).ok_or(DropReason::NotOurs)?.mac;
        let na = advertise(addr, wire::ALL_NODES, OVERRIDE, own);
        rewrite(frame, l2, own, wire::group_mac(wire::ALL_NODES), &na)
    }
}

/// An advertisement of `target`, from its IPv6 header on.
fn advertise(target: Addr, dst: Addr, flags: u8, own: MacAddr) -> [u8; ADVERTISEMENT] {
    message([ADVERTISE, flags], target, dst, target, (TARGET_OPTION, own))
}

/// A solicitation or advertisement with a link-layer address option, from its IPv6 header on.
fn message(
    [kind, flags]: [u8; 2],
    src: Addr,
    dst: Addr,
    target: Addr,
    (option, own): (u8, MacAddr),
) -> [u8; ADVERTISEMENT] {
    let mut body = Draft::<MESSAGE>::new();
    body.push(&[kind, 0, 0, 0, flags, 0, 0, 0]);
    body.push(&target.octets());
    body.push(&[option, 1]);
    body.push(&own);
    let mut draft = Draft::<ADVERTISEMENT>::new();
    draft.push(&ipv6_header(src, dst, checksum::ICMP6, MESSAGE as u16, MAX_HOPS));
    draft.push(&sealed(body.into_bytes(), src, dst));
    draft.into_bytes()
}

/// The message with its checksum.
pub(super) fn sealed<const N: usize>(mut message: [u8; N], src: Addr, dst: Addr) -> [u8; N] {
    let check = checksum::icmp6_checksum(&message, src, dst);
    let _: Option<()> = wire::put(&mut message, 2, check.to_be_bytes());
    message
}

/// Turns the received frame into an answer, its tag kept.
fn rewrite(
    frame: &mut [u8],
    l2: L2,
    own: MacAddr,
    to: MacAddr,
    packet: &[u8; ADVERTISEMENT],
) -> Result<NetAction, DropReason> {
    let start = usize::from(l2.len);
    wire::put(frame, start, *packet).ok_or(DropReason::Truncated)?;
    wire::put(frame, 0, to).ok_or(DropReason::Truncated)?;
    wire::put(frame, 6, own).ok_or(DropReason::Truncated)?;
    Ok(NetAction::Reply(start.saturating_add(ADVERTISEMENT)))
}

impl PortNet {
    /// Asks `mac`, or the target's solicited-node group, for `target` (RFC 4861 section 7.2.2).
    pub(super) fn ndp_solicit(
        &self,
        source: Addr,
        target: Addr,
        mac: Option<MacAddr>,
        emit: &mut impl FnMut(PortId, &[u8]),
    ) {
        let group = wire::solicited_node(target);
        let (dst, to) = mac.map_or((group, wire::group_mac(group)), |mac| (target, mac));
        self.emit_ipv6(to, &message([SOLICIT, 0], source, dst, target, (SOURCE_OPTION, self.mac)), emit);
    }

    /// Asks whether anyone else uses `addr` (RFC 4862 section 5.4.2).
    pub(super) fn ndp_probe(&self, addr: Addr, emit: &mut impl FnMut(PortId, &[u8])) {
        let group = wire::solicited_node(addr);
        let mut body = Draft::<PROBE>::new();
        body.push(&[SOLICIT, 0, 0, 0, 0, 0, 0, 0]);
        body.push(&addr.octets());
        let mut packet = Draft::<{ 40 + PROBE }>::new();
        packet.push(&ipv6_header(wire::UNSPECIFIED, group, checksum::ICMP6, PROBE as u16, MAX_HOPS));
        packet.push(&sealed(body.into_bytes(), wire::UNSPECIFIED, group));
        self.emit_ipv6(wire::group_mac(group), packet.bytes(), emit);
    }

    /// Says that `addr` is ours (RFC 4861 section 7.2.6).
    pub(super) fn ndp_announce(&self, addr: Addr, emit: &mut impl FnMut(PortId, &[u8])) {
        let na = advertise(addr, wire::ALL_NODES, OVERRIDE, self.mac);
        self.emit_ipv6(wire::group_mac(wire::ALL_NODES), &na, emit);
    }

    fn emit_ipv6(&self, to: MacAddr, packet: &[u8], emit: &mut impl FnMut(PortId, &[u8])) {
        let mut draft = self.ethernet::<{ 18 + ADVERTISEMENT }>(to, wire::IPV6);
        draft.push(packet);
        emit(self.id, draft.bytes());
    }
}

#[cfg(test)]
mod tests {
    use sluice_filters::{RxChecksums, parse};

    use super::super::Mac;
    use super::super::script::*;
    use super::*;

    const GATEWAY: &str = "2001:db8::1";
    const OURS: &str = "2001:db8::2";
    const HOST: &str = "2001:db8::7";
    const NODES: MacAddr = [0x33, 0x33, 0, 0, 0, 1];
    const GROUP: MacAddr = [0x33, 0x33, 0xff, 0, 0, 2];

    /// A solicitation as a host sends it to our group.
    fn ns(src: &str, target: &str) -> Vec<u8> {
        let group = wire::solicited_node(ip(target));
        let message = nd(135, 0, target, Some((1, PEER)));
        icmp6(src, &group.to_ip().to_string(), 255, wire::group_mac(group), &message)
    }

    fn na(flags: u8, target: &str, mac: Option<MacAddr>) -> Vec<u8> {
        icmp6(target, OURS, 255, WAN_MAC, &nd(136, flags, target, mac.map(|m| (2, m))))
    }

    fn ours() -> Nd {
        Nd {
            to: PEER,
            from: WAN_MAC,
            src: ip(OURS),
            dst: ip(HOST),
            kind: 136,
            flags: 0x60,
            target: ip(OURS),
            option: Some((2, WAN_MAC)),
        }
    }

    #[test]
    fn a_solicitation_is_answered_with_a_solicited_advertisement_that_overrides() {
        let mut t = Script::two_arm();
        let reply = t.rx(WAN, &ns(HOST, OURS)).unwrap().unwrap();
        assert_eq!(Nd::read(&reply), ours());
        let service = ip("2001:db8::10");
        let reply = t.rx(WAN, &ns(HOST, "2001:db8::10")).unwrap().unwrap();
        assert_eq!(Nd::read(&reply), Nd { src: service, target: service, ..ours() });
        assert!(t.net.neighbor(WAN, ip(HOST), t.now).is_some_and(|id| t.net.mac(id, t.now) == Mac::Known(PEER)));
        assert_eq!(t.told.len(), 1);
    }

    #[test]
    fn a_tagged_solicitation_is_answered_with_the_tag() {
        let mut t = Script::two_arm();
        let reply = t.rx(LAN, &tag(&ns("fd00::7", "fd00::2"), 5)).unwrap().unwrap();
        assert_eq!((&reply[12..18], reply.len()), (&[0x81, 0, 0, 5, 0x86, 0xdd][..], 18 + ADVERTISEMENT));
        assert_eq!(Nd::read(&reply).option, Some((2, LAN_MAC)));
        assert_eq!(t.rx(LAN, &ns("fd00::7", "fd00::2")), Err(DropReason::WrongVlan));
    }

    #[test]
    fn our_link_local_address_is_answered_for() {
        let mut t = Script::two_arm();
        // fe80:: with the MAC address 02:00:00:00:00:02 in it.
        let reply = t.rx(WAN, &ns("fe80::7", "fe80::ff:fe00:2")).unwrap().unwrap();
        assert_eq!(Nd::read(&reply).target, ip("fe80::ff:fe00:2"));
        assert_eq!(t.rx(WAN, &ns("fe80::7", "fe80::ff:fe00:3")), Err(DropReason::NotOurs));
    }

    #[test]
    fn a_unicast_solicitation_without_option_is_answered_to_the_frames_source() {
        let mut t = Script::two_arm();
        let frame = icmp6(HOST, OURS, 255, WAN_MAC, &nd(135, 0, OURS, None));
        assert_eq!(Nd::read(&t.rx(WAN, &frame).unwrap().unwrap()), ours());
        assert_eq!(t.net.neighbors(), 0);
    }

    #[test]
    fn a_duplicate_address_probe_is_answered_to_all_nodes() {
        let mut t = Script::two_arm();
        let frame = icmp6("::", "ff02::1:ff00:2", 255, GROUP, &nd(135, 0, OURS, None));
        assert_eq!(frame.len(), 78); // shorter than the answer
        let reply = t.rx(WAN, &frame).unwrap().unwrap();
        assert_eq!(Nd::read(&reply), Nd { to: NODES, dst: ip("ff02::1"), flags: 0x20, ..ours() });
        assert_eq!((t.net.neighbors(), t.net.conflicts()), (0, 0));
        // RFC 4861 section 7.1.1: to the group, and without an option.
        let option = icmp6("::", "ff02::1:ff00:2", 255, GROUP, &nd(135, 0, OURS, Some((1, PEER))));
        assert_eq!(t.rx(WAN, &option), Err(DropReason::BadNdp));
        let unicast = icmp6("::", OURS, 255, WAN_MAC, &nd(135, 0, OURS, None));
        assert_eq!(t.rx(WAN, &unicast), Err(DropReason::MartianSource)); // by the parser
        let elsewhere = icmp6("::", "ff02::1:ff00:3", 255, [0x33, 0x33, 0xff, 0, 0, 3], &nd(135, 0, OURS, None));
        assert_eq!(t.rx(WAN, &elsewhere), Err(DropReason::BadNdp));
    }

    #[test]
    fn an_answer_that_does_not_fit_the_buffer_is_not_made() {
        let mut t = Script::two_arm();
        let frame = icmp6("::", "ff02::1:ff00:2", 255, GROUP, &nd(135, 0, OURS, None));
        let parsed = parse(&frame, RxChecksums::default()).unwrap();
        assert_eq!(t.serve(WAN, &frame, 85, parsed), Err(DropReason::Truncated));
        assert_eq!(t.serve(WAN, &frame, 86, parsed).unwrap().unwrap().len(), 86);
    }

    #[test]
    fn a_solicitation_for_another_address_is_not_ours() {
        let mut t = Script::two_arm();
        for target in ["2001:db8::3", "fd00::2", "2001:db8:f::10"] {
            assert_eq!(t.rx(WAN, &ns(HOST, target)), Err(DropReason::NotOurs), "{target}");
        }
        assert_eq!(t.net.neighbors(), 0);
    }

    #[test]
    fn an_off_link_source_is_answered_but_not_learned() {
        let mut t = Script::two_arm();
        assert!(t.rx(WAN, &ns("2001:db8:7::7", OURS)).unwrap().is_some());
        assert_eq!((t.net.neighbors(), t.told.len()), (0, 0));
    }

    #[test]
    fn a_hop_limit_below_255_is_bad_ndp() {
        let mut t = Script::two_arm();
        for hops in [0, 1, 64, 254] {
            let frame = icmp6(HOST, OURS, hops, WAN_MAC, &nd(135, 0, OURS, Some((1, PEER))));
            assert_eq!(t.rx(WAN, &frame).unwrap_err(), DropReason::BadNdp, "{hops}");
            let frame = icmp6(HOST, OURS, hops, WAN_MAC, &nd(136, 0x60, HOST, Some((2, PEER))));
            assert_eq!(t.rx(WAN, &frame).unwrap_err(), DropReason::BadNdp, "{hops}");
        }
        assert_eq!(t.net.neighbors(), 0);
    }

    #[test]
    fn a_wrong_checksum_is_bad_ndp() {
        let mut t = Script::two_arm();
        let mut frame = ns(HOST, OURS);
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(t.rx(WAN, &frame), Err(DropReason::BadNdp));
    }

    #[test]
    fn malformed_solicitations_are_bad_ndp() {
        let good = nd(135, 0, OURS, Some((1, PEER)));
        let change = |at: usize, value: u8| {
            let mut bad = good.clone();
            bad[at] = value;
            bad
        };
        let bad = [
            ("code", change(1, 1)),
            ("multicast target", nd(135, 0, "ff02::1:ff00:2", Some((1, PEER)))),
            ("option of length zero", change(25, 0)),
            ("option past the end", change(25, 2)),
            ("group as source address", nd(135, 0, OURS, Some((1, NODES)))),
            ("zeros as source address", nd(135, 0, OURS, Some((1, [0; 6])))),
            ("short target", good[..20].to_vec()),
            ("half an option", good[..28].to_vec()),
            ("an octet of an option", good[..25].to_vec()),
        ];
        let mut t = Script::two_arm();
        for (what, message) in bad {
            assert_eq!(t.rx(WAN, &icmp6(HOST, OURS, 255, WAN_MAC, &message)), Err(DropReason::BadNdp), "{what}");
        }
        assert_eq!(t.net.neighbors(), 0);
    }

    #[test]
    fn unknown_options_are_skipped() {
        let mut t = Script::two_arm();
        let mut message = nd(135, 0, OURS, None);
        message.extend([14, 1, 1, 2, 3, 4, 5, 6]); // a nonce (RFC 3971)
        message.extend([1, 1]);
        message.extend(PEER);
        assert_eq!(Nd::read(&t.rx(WAN, &icmp6(HOST, OURS, 255, WAN_MAC, &message)).unwrap().unwrap()), ours());
        assert_eq!(t.net.neighbors(), 1);
    }

    #[test]
    fn an_advertisement_resolves_the_neighbour_we_asked_for() {
        let mut t = Script::two_arm();
        let id = t.net.neighbor(WAN, ip(GATEWAY), t.now).unwrap();
        let sent = t.poll();
        let asked = Nd {
            to: [0x33, 0x33, 0xff, 0, 0, 1],
            from: WAN_MAC,
            src: ip(OURS),
            dst: ip("ff02::1:ff00:1"),
            kind: 135,
            flags: 0,
            target: ip(GATEWAY),
            option: Some((1, WAN_MAC)),
        };
        assert_eq!((sent.len(), sent[0].0, Nd::read(&sent[0].1)), (1, WAN, asked));
        assert_eq!(t.rx(WAN, &na(0x60, GATEWAY, None)), Ok(None)); // RFC 4861 section 7.2.5: says nothing
        assert_eq!(t.net.mac(id, t.now), Mac::Resolving);
        assert_eq!(t.rx(WAN, &na(0x60, GATEWAY, Some(PEER))), Ok(None));
        assert_eq!(t.net.mac(id, t.now), Mac::Known(PEER));
    }

    #[test]
    fn an_advertisement_nobody_asked_for_creates_nothing() {
        let mut t = Script::two_arm();
        assert_eq!(t.rx(WAN, &na(0x60, GATEWAY, Some(PEER))), Ok(None));
        assert_eq!(t.net.neighbors(), 0);
        assert_eq!(t.rx(WAN, &na(0x60, "2001:db8:7::7", Some(PEER))), Err(DropReason::NotOurs));
        assert_eq!(t.told.len(), 1);
    }

    #[test]
    fn an_advertisement_without_override_does_not_move_a_neighbour() {
        let mut t = Script::two_arm();
        let id = t.net.neighbor(WAN, ip(GATEWAY), t.now).unwrap();
        t.rx(WAN, &na(0x60, GATEWAY, Some(PEER))).unwrap();
        for flags in [0, 0x40] {
            t.rx(WAN, &na(flags, GATEWAY, Some(OTHER))).unwrap();
            assert_eq!(t.net.mac(id, t.now), Mac::Known(PEER), "{flags}");
        }
        // With it, it does: here unasked, to all nodes.
        let moved = icmp6(GATEWAY, "ff02::1", 255, NODES, &nd(136, 0x20, GATEWAY, Some((2, OTHER))));
        assert_eq!(t.rx(WAN, &moved), Ok(None));
        assert_eq!(t.net.mac(id, t.now), Mac::Known(OTHER));
    }

    #[test]
    fn a_solicited_advertisement_to_a_group_is_bad_ndp() {
        let mut t = Script::two_arm();
        let frame = icmp6(GATEWAY, "ff02::1", 255, NODES, &nd(136, 0x60, GATEWAY, Some((2, PEER))));
        assert_eq!(t.rx(WAN, &frame), Err(DropReason::BadNdp));
    }

    #[test]
    fn a_claim_to_our_address_is_a_conflict_and_defended_once_per_interval() {
        let mut t = Script::two_arm();
        let claim = icmp6(OURS, "ff02::1", 255, NODES, &nd(136, 0x20, OURS, Some((2, OTHER))));
        let defence = Nd { to: NODES, dst: ip("ff02::1"), flags: 0x20, ..ours() };
        assert_eq!(Nd::read(&t.rx(WAN, &claim).unwrap().unwrap()), defence);
        assert_eq!(t.rx(WAN, &claim), Ok(None));
        let conflict = super::super::Conflict { port: WAN, addr: ip(OURS), mac: OTHER, total: 1 };
        assert_eq!((t.net.conflicts(), t.net.take_conflict()), (2, Some(conflict)));
        // A solicitation from our address is one too.
        let claim = icmp6(OURS, "ff02::1:ff00:10", 255, NODES, &nd(135, 0, "2001:db8::10", Some((1, OTHER))));
        assert_eq!(Nd::read(&t.wait_ms(10_000).rx(WAN, &claim).unwrap().unwrap()), defence);
        assert_eq!((t.net.conflicts(), t.net.neighbors()), (3, 0));
    }

    #[test]
    fn our_own_frames_come_back_are_dropped() {
        let mut t = Script::two_arm();
        t.net.announce(t.now);
        let mut back = 0;
        for _ in 0..10 {
            for (port, frame) in t.wait_ms(1).poll() {
                back += 1;
                assert!(t.rx(port, &frame).is_err(), "{frame:02x?}");
            }
        }
        assert!(back > 10);
        assert_eq!((t.net.conflicts(), t.net.neighbors()), (0, 0));
    }

    #[test]
    fn a_source_that_cannot_be_a_station_is_bad_ndp() {
        let mut t = Script::two_arm();
        let mut frame = ns(HOST, OURS);
        frame[6..12].fill(0);
        assert_eq!(t.rx(WAN, &frame), Err(DropReason::BadNdp));
        assert_eq!(t.net.neighbors(), 0);
    }
}
