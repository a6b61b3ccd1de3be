//! ICMP and ICMPv6 echo: RFC 792, RFC 4443 section 4, RFC 1122 section 3.2.2.6; and where ICMPv6 messages go.
//!
//! Invariants: one reply per request, no longer than it, to its sender by the way it came; none to or from a group or
//! broadcast address; together at most `filters.icmp_rate` a second and worker.

use sluice_filters::addr::Addr;
use sluice_filters::units::{Micros, PortId};
use sluice_filters::{Datagram, DropReason, checksum, src_mac};

use super::ndp;
use super::neighbor::Learned;
use super::wire;
use super::{Net, NetAction};

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;
/// What our replies start with.
const HOP_LIMIT: u8 = 64;

impl Net {
    /// Serves a received ICMP message that is no error about a segment of ours: echo requests to our addresses are answered in place.
    ///
    /// # Errors
    /// [`DropReason::BadIcmp`], [`DropReason::NotOurs`], [`DropReason::IcmpRate`], [`DropReason::MartianSource`],
    /// [`DropReason::WrongVlan`], [`DropReason::NotOurMac`], [`DropReason::Truncated`].
    pub fn icmp(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        packet: &Datagram,
        now: Micros,
    ) -> Result<NetAction, DropReason> {
        self.accepts(port, frame, packet.l2)?;
        if packet.message(frame).first_chunk() != Some(&[ECHO_REQUEST, 0]) {
            return Err(DropReason::BadIcmp);
        }
        self.may_echo(port, frame, packet, now)?;
        if !checksum::sum(packet.message(frame)).is_valid() {
            return Err(DropReason::BadIcmp);
        }
        self.icmp.take(now);
        self.echo4(port, frame, packet).ok_or(DropReason::Truncated)
    }

    /// Serves a received ICMPv6 message: neighbour discovery (see [`Net::arp`] for `learned`), and echo requests to our
    /// addresses, answered in place. `frame` should have [`REPLY_ROOM`](super::REPLY_ROOM) octets, received ones included; an
    /// advertisement that does not fit is not made. Errors, router advertisements, redirects and what only routers serve are
    /// dropped: routes are the operator's.
    ///
    /// # Errors
    /// [`DropReason::BadNdp`], [`DropReason::NeighborRate`] and those of [`Net::icmp`].
    pub fn icmp6(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        packet: &Datagram,
        now: Micros,
        learned: &mut impl FnMut(Learned),
    ) -> Result<NetAction, DropReason> {
        self.accepts(port, frame, packet.l2)?;
        let kind: [u8; 2] = wire::get(packet.message(frame), 0).ok_or(DropReason::Truncated)?;
        match kind {
            [ndp::SOLICIT | ndp::ADVERTISE, _] => self.ndp(port, frame, packet, now, learned),
            [ECHO_REQUEST6, 0] => {
                self.may_echo(port, frame, packet, now)?;
                if !valid6(frame, packet) {
                    return Err(DropReason::BadIcmp);
                }
                self.icmp.take(now);
                self.echo6(port, frame, packet).ok_or(DropReason::Truncated)
            }
            _ => Err(DropReason::BadIcmp),
        }
    }

    /// Whether another ICMP error that came in by this port may be looked at now. Apart from echo replies: a flood of pings is not to
    /// hide "too big", and nor is one of errors on another link.
    pub fn may_hear_error(&mut self, port: PortId, now: Micros) -> bool {
        self.ports.get_mut(usize::from(port.0)).is_some_and(|port| port.errors.take(now))
    }

    /// Whether an echo request is for us, from someone who can be answered, and within the rate. Asked before its checksum is
    /// computed: that is what a flood of big ones would cost.
    fn may_echo(&mut self, port: PortId, frame: &[u8], packet: &Datagram, now: Micros) -> Result<(), DropReason> {
        let here = self.port(port).ok_or(DropReason::NotOurs)?;
        let to: [u8; 6] = wire::get(frame, 0).ok_or(DropReason::Truncated)?;
        // RFC 1122 section 3.3.6: a unicast packet in a frame to everyone was not meant for us alone.
        if !self.is_local(packet.dst) || to != here.mac {
            return Err(DropReason::NotOurs);
        }
        let from = src_mac(frame).ok_or(DropReason::Truncated)?;
        let broadcast = self.ports.iter().any(|port| port.is_broadcast(packet.src));
        let answerable = super::is_destination(packet.src) && !broadcast;
        if !answerable || self.is_local(packet.src) || !wire::is_station(from) {
            return Err(DropReason::MartianSource);
        }
        if self.icmp.ready(now) { Ok(()) } else { Err(DropReason::IcmpRate) }
    }

    fn echo4(&self, port: PortId, frame: &mut [u8], packet: &Datagram) -> Option<NetAction> {
        self.turn_round(port, frame)?;
        let header = frame.get_mut(usize::from(packet.l2.len)..)?.first_chunk_mut::<20>()?;
        // A fresh time to live; addresses swapped.
        wire::put(header, 8, [HOP_LIMIT])?;
        wire::put(header, 12, packet.dst.v4_bits().to_be_bytes())?;
        wire::put(header, 16, packet.src.v4_bits().to_be_bytes())?;
        checksum::fill_ipv4_header(header);
        let message = frame.get_mut(usize::from(packet.l4)..usize::from(packet.end))?;
        wire::put(message, 0, [ECHO_REPLY])?;
        // Anew, not by difference: a reply can be all zeros, where the difference gives the wrong zero.
        let check = checksum::icmp_checksum(message);
        wire::put(message, 2, check.to_be_bytes())?;
        Some(NetAction::Reply(reply_len(frame, packet)))
    }

    fn echo6(&self, port: PortId, frame: &mut [u8], packet: &Datagram) -> Option<NetAction> {
        self.turn_round(port, frame)?;
        let header = frame.get_mut(usize::from(packet.l2.len)..)?;
        wire::put(header, 7, [HOP_LIMIT])?;
        wire::put(header, 8, packet.dst.octets())?;
        wire::put(header, 24, packet.src.octets())?;
        let message = frame.get_mut(usize::from(packet.l4)..usize::from(packet.end))?;
        let old = u16::from_be_bytes(wire::get(message, 2)?);
        // The pseudo-header's sum does not care which address comes first.
        let check = checksum::update16(old, 0, u16::from(ECHO_REQUEST6) << 8, u16::from(ECHO_REPLY6) << 8);
        wire::put(message, 0, [ECHO_REPLY6])?;
        wire::put(message, 2, check.to_be_bytes())?;
        Some(NetAction::Reply(reply_len(frame, packet)))
    }

    /// Sends a frame back to the station it came from.
    fn turn_round(&self, port: PortId, frame: &mut [u8]) -> Option<()> {
        let to = src_mac(frame)?;
        wire::put(frame, 0, to)?;
        wire::put(frame, 6, self.port(port)?.mac)
    }
}

/// The reply without what followed the IP packet, but not below Ethernet's minimum if the request reached it.
fn reply_len(frame: &mut [u8], packet: &Datagram) -> usize {
    let end = usize::from(packet.end);
    let Some(padding) = frame.get_mut(end..wire::MIN_FRAME) else { return end };
    padding.fill(0);
    wire::MIN_FRAME
}

/// Whether an ICMPv6 message's checksum is right.
pub(super) fn valid6(frame: &[u8], packet: &Datagram) -> bool {
    let message = packet.message(frame);
    checksum::pseudo_header(packet.src, packet.dst, checksum::ICMP6, message.len()).bytes(message).is_valid()
}

/// An IPv6 header, 40 octets, for `len` octets of `next`.
pub(super) fn ipv6_header(src: Addr, dst: Addr, next: u8, len: u16, hop_limit: u8) -> [u8; 40] {
    let mut draft = wire::Draft::<40>::new();
    draft.push(&[0x60, 0, 0, 0]);
    draft.push(&len.to_be_bytes());
    draft.push(&[next, hop_limit]);
    draft.push(&src.octets());
    draft.push(&dst.octets());
    draft.into_bytes()
}

#[cfg(test)]
mod tests {
    use sluice_filters::{RxChecksums, parse, testkit};

    use super::super::script::*;
    use super::*;

    const CLIENT: &str = "192.0.2.7";
    const CLIENT6: &str = "2001:db8:7::7";

    /// An echo request with this payload, checksum right.
    fn request4(payload: &[u8]) -> Vec<u8> {
        let mut m = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
        m.extend(payload);
        sealed4(m)
    }

    fn sealed4(mut m: Vec<u8>) -> Vec<u8> {
        let check = checksum::icmp_checksum(&m);
        m[2..4].copy_from_slice(&check.to_be_bytes());
        m
    }

    fn ping4(src: &str, dst: &str, message: &[u8]) -> Vec<u8> {
        testkit::ip(src, dst, 1).hop_limit(3).payload(message).build()
    }

    fn ping6(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
        let mut m = vec![128, 0, 0, 0, 0x12, 0x34, 0, 1];
        m.extend(payload);
        icmp6(src, dst, 3, WAN_MAC, &m)
    }

    #[test]
    fn an_echo_request_to_our_addresses_is_answered_in_place() {
        let mut t = Script::two_arm();
        // The port's, a service's, one that is routed to us, and the other port's.
        for ours in ["198.51.100.2", "198.51.100.10", "203.0.113.10", "10.0.0.2"] {
            let request = ping4(CLIENT, ours, &request4(&[0x5a; 57]));
            let reply = t.wait_ms(50).rx(WAN, &request).unwrap().unwrap();
            assert_eq!((&reply[..6], &reply[6..12], reply.len()), (&PEER[..], &WAN_MAC[..], request.len()));
            // The parser verifies the header's checksum.
            let Ok(sluice_filters::Parsed::Icmp(p)) = parse(&reply, RxChecksums::default()) else { panic!("{ours}") };
            assert_eq!((p.src, p.dst, p.hop_limit), (ip(ours), ip(CLIENT), 64));
            let m = p.message(&reply);
            assert!(checksum::sum(m).is_valid());
            assert_eq!((m[0], m[1], &m[4..]), (0, 0, &request4(&[0x5a; 57])[4..]));
        }
    }

    #[test]
    fn an_ipv6_echo_request_to_our_addresses_is_answered_in_place() {
        let mut t = Script::two_arm();
        for ours in ["2001:db8::2", "2001:db8::10", "2001:db8:f::10", "fd00::2"] {
            let request = ping6(CLIENT6, ours, &[0x5a; 57]);
            let reply = t.wait_ms(50).rx(WAN, &request).unwrap().unwrap();
            assert_eq!((&reply[..6], &reply[6..12], reply.len()), (&PEER[..], &WAN_MAC[..], request.len()));
            let Ok(sluice_filters::Parsed::Icmp6(p)) = parse(&reply, RxChecksums::default()) else { panic!("{ours}") };
            assert_eq!((p.src, p.dst, p.hop_limit), (ip(ours), ip(CLIENT6), 64));
            assert!(valid6(&reply, &p));
            assert_eq!((&p.message(&reply)[..2], &p.message(&reply)[4..]), (&[129, 0][..], &request[14 + 40 + 4..]));
        }
    }

    #[test]
    fn replies_keep_the_tag() {
        let mut t = Script::two_arm();
        let request = tag(&ping4("10.0.0.5", "10.0.0.2", &request4(&[])), 5);
        let mut request = request;
        request[..6].copy_from_slice(&LAN_MAC);
        let reply = t.rx(LAN, &request).unwrap().unwrap();
        assert_eq!((&reply[12..18], reply.len()), (&[0x81, 0, 0, 5, 8, 0][..], 60));
        assert_eq!(t.rx(LAN, &ping4("10.0.0.5", "10.0.0.2", &request4(&[]))), Err(DropReason::WrongVlan));
    }

    #[test]
    fn a_reply_is_padded_with_zeros_whatever_followed_the_request() {
        let mut t = Script::two_arm();
        let mut request = ping4(CLIENT, "198.51.100.2", &request4(&[]));
        assert_eq!(request.len(), 42);
        request.resize(64, 0x77);
        let reply = t.rx(WAN, &request).unwrap().unwrap();
        assert_eq!((reply.len(), &reply[42..]), (60, &[0; 18][..]));
    }

    #[test]
    fn the_all_zero_reply_has_the_positive_zero_checksum() {
        let mut t = Script::two_arm();
        let message = sealed4(vec![8, 0, 0, 0, 0, 0, 0, 0]);
        let reply = t.rx(WAN, &ping4(CLIENT, "198.51.100.2", &message)).unwrap().unwrap();
        assert_eq!(reply[34..42], [0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn echo_is_limited_over_both_families_together() {
        let mut t = Script::two_arm(); // 20 a second, 2 at once
        let four = ping4(CLIENT, "198.51.100.2", &request4(&[]));
        let six = ping6(CLIENT6, "2001:db8::2", &[]);
        assert!(t.rx(WAN, &four).is_ok());
        assert!(t.rx(WAN, &six).is_ok());
        assert_eq!(t.rx(WAN, &four), Err(DropReason::IcmpRate));
        assert_eq!(t.rx(WAN, &six), Err(DropReason::IcmpRate));
        assert!(t.wait_ms(50).rx(WAN, &six).is_ok());
        assert_eq!(t.rx(WAN, &four), Err(DropReason::IcmpRate));
    }

    #[test]
    fn a_thousand_errors_a_second_are_looked_at_a_hundred_at_once() {
        let mut t = Script::two_arm();
        let heard = |t: &mut Script, port| (0..1_000).filter(|_| t.net.may_hear_error(port, t.now)).count();
        assert_eq!(heard(&mut t, WAN), 100);
        t.wait_ms(50);
        assert_eq!(heard(&mut t, WAN), 50);
        assert_eq!(heard(&mut t, LAN), 100, "a flood on one link hides nothing on the other");
    }

    #[test]
    fn what_is_not_answered_does_not_use_up_the_rate() {
        let mut t = Script::two_arm();
        let mut bad = ping4(CLIENT, "198.51.100.2", &request4(b"abcd"));
        *bad.last_mut().unwrap() ^= 1;
        for _ in 0..10 {
            assert_eq!(t.rx(WAN, &bad), Err(DropReason::BadIcmp));
            let foreign = ping4(CLIENT, "198.51.100.3", &request4(&[]));
            assert_eq!(t.rx(WAN, &foreign), Err(DropReason::NotOurs));
        }
        assert!(t.rx(WAN, &ping4(CLIENT, "198.51.100.2", &request4(&[]))).is_ok());
    }

    #[test]
    fn a_bad_checksum_is_bad_icmp() {
        let mut t = Script::two_arm();
        let mut bad = ping6(CLIENT6, "2001:db8::2", b"abcd");
        *bad.last_mut().unwrap() ^= 1;
        assert_eq!(t.rx(WAN, &bad), Err(DropReason::BadIcmp));
    }

    #[test]
    fn echo_to_a_group_or_broadcast_address_is_not_answered() {
        let mut t = Script::two_arm();
        for dst in ["198.51.100.255", "198.51.100.0"] {
            assert_eq!(t.rx(WAN, &ping4(CLIENT, dst, &request4(&[]))), Err(DropReason::NotOurs), "{dst}");
        }
        let all_nodes = icmp6("fe80::7", "ff02::1", 64, [0x33, 0x33, 0, 0, 0, 1], &[128, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(t.rx(WAN, &all_nodes), Err(DropReason::NotOurs));
        // Our address, but everyone's frame.
        let to_group = icmp6(CLIENT6, "2001:db8::2", 64, [0x33, 0x33, 0, 0, 0, 1], &[128, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(t.rx(WAN, &to_group), Err(DropReason::NotOurs));
        let to_all = testkit::ip(CLIENT, "198.51.100.2", 1).dst_mac(ALL).payload(request4(&[])).build();
        assert_eq!(t.rx(WAN, &to_all), Err(DropReason::EthernetMulticast)); // by the parser
    }

    #[test]
    fn echo_from_a_group_broadcast_or_own_address_is_not_answered() {
        let mut t = Script::two_arm();
        for src in ["198.51.100.255", "198.51.100.0", "198.51.100.10", "10.0.0.255"] {
            let request = ping4(src, "198.51.100.2", &request4(&[]));
            assert_eq!(t.rx(WAN, &request), Err(DropReason::MartianSource), "{src}");
        }
        for src in ["::", "2001:db8::10"] {
            assert_eq!(t.rx(WAN, &ping6(src, "2001:db8::2", &[])), Err(DropReason::MartianSource), "{src}");
        }
        let nobody = testkit::ip(CLIENT, "198.51.100.2", 1).src_mac([0; 6]).payload(request4(&[])).build();
        assert_eq!(t.rx(WAN, &nobody), Err(DropReason::MartianSource));
    }

    #[test]
    fn other_icmp_is_dropped() {
        let mut t = Script::two_arm();
        for (kind, code) in [(0, 0), (3, 1), (3, 4), (5, 0), (8, 1), (11, 0), (12, 0), (13, 0), (17, 0), (255, 255)] {
            let message = sealed4(vec![kind, code, 0, 0, 0, 0, 0, 0]);
            let frame = ping4(CLIENT, "198.51.100.2", &message);
            assert_eq!(t.rx(WAN, &frame), Err(DropReason::BadIcmp), "{kind}/{code}");
        }
        for (kind, code) in
            [(1, 0), (2, 0), (3, 0), (4, 0), (128, 1), (129, 0), (130, 0), (133, 0), (134, 0), (137, 0), (143, 0)]
        {
            let frame = icmp6(CLIENT6, "2001:db8::2", 64, WAN_MAC, &[kind, code, 0, 0, 0, 0, 5, 0]);
            assert_eq!(t.rx(WAN, &frame), Err(DropReason::BadIcmp), "{kind}/{code}");
        }
    }

    #[test]
    fn a_buffer_that_ends_before_the_packet_does_is_truncated() {
        let request = ping4(CLIENT, "198.51.100.2", &request4(b"abcdefgh"));
        let parsed = parse(&request, RxChecksums::default()).unwrap();
        for len in 0..request.len() {
            let mut t = Script::two_arm();
            assert!(t.serve(WAN, &request[..len], len, parsed).is_err(), "{len}");
        }
    }
}
