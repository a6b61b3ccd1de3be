//! ICMP and ICMPv6 errors about TCP segments of ours (RFC 792, RFC 1191, RFC 4443).
//!
//! A router that cannot forward a segment sends its beginning back. [`IcmpError::read`] says which segment that was and what was wrong
//! with it; whether we ever sent it is for the owner of its flow to judge (RFC 5927). Errors that no connection reacts to are
//! not read.

use crate::addr::{Addr, FlowKey};
use crate::checksum::{self, ICMP6, TCP};
use crate::packet::Datagram;
use crate::units::Seq;

const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const UNREACHABLE6: u8 = 1;
const PACKET_TOO_BIG: u8 = 2;

/// What a router says of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpKind {
    /// It is larger than the next link's MTU, octets; 0 where the router does not say (RFC 1191 section 5).
    TooBig(u32),
    /// Its destination cannot be reached.
    Unreachable(Unreachable),
}

/// Why a destination cannot be reached, as far as both families say so (RFC 7915 sections 4.2 and 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// Network or host: no route, or nobody there.
    Host,
    /// Nobody listens at the port.
    Port,
    /// A filter forbids it.
    Prohibited,
}

/// An error about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// What was wrong.
    pub kind: IcmpKind,
    /// The flow of the segment's answers: `dst` is who sent it.
    pub key: FlowKey,
    /// The segment's sequence number.
    pub seq: Seq,
    /// The length of its IP packet, octets, as the router tells it.
    pub len: u16,
}

impl IcmpError {
    /// Reads an error from a parsed ICMP packet, checksum included; none when it is another message, or none about TCP from the
    /// address that the error was sent to.
    #[must_use]
    pub fn read(frame: &[u8], packet: &Datagram) -> Option<IcmpError> {
        let message = packet.message(frame);
        let (header, quoted) = message.split_first_chunk::<8>()?;
        let &[kind, code, _, _, a, b, c, d] = header;
        let v4 = packet.src.is_v4();
        let kind = if v4 {
            match (kind, code) {
                (UNREACHABLE, FRAGMENTATION_NEEDED) => IcmpKind::TooBig(u32::from(u16::from_be_bytes([c, d]))),
                (UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => IcmpKind::Unreachable(Unreachable::Host),
                (UNREACHABLE, 3) => IcmpKind::Unreachable(Unreachable::Port),
                (UNREACHABLE, 9 | 10 | 13) => IcmpKind::Unreachable(Unreachable::Prohibited),
                _ => return None,
            }
        } else {
            match (kind, code) {
                (PACKET_TOO_BIG, _) => IcmpKind::TooBig(u32::from_be_bytes([a, b, c, d])),
                (UNREACHABLE6, 0 | 2 | 3) => IcmpKind::Unreachable(Unreachable::Host),
                (UNREACHABLE6, 4) => IcmpKind::Unreachable(Unreachable::Port),
                (UNREACHABLE6, 1 | 5 | 6) => IcmpKind::Unreachable(Unreachable::Prohibited),
                _ => return None,
            }
        };
        let (sender, receiver, len, tcp) = if v4 { quoted4(quoted)? } else { quoted6(quoted)? };
        let &[p, q, r, s, e, f, g, h] = tcp.first_chunk::<8>()?;
        let valid = if v4 {
            checksum::sum(message).is_valid()
        } else {
            checksum::pseudo_header(packet.src, packet.dst, ICMP6, message.len()).bytes(message).is_valid()
        };
        if sender != packet.dst || !valid {
            return None;
        }
        let key = FlowKey {
            src: receiver,
            dst: sender,
            src_port: u16::from_be_bytes([r, s]),
            dst_port: u16::from_be_bytes([p, q]),
        };
        Some(IcmpError { kind, key, seq: Seq(u32::from_be_bytes([e, f, g, h])), len })
    }
}

/// Source, destination, length and what follows the header of a quoted IPv4 packet with TCP, as ours are: no options.
fn quoted4(packet: &[u8]) -> Option<(Addr, Addr, u16, &[u8])> {
    let (header, tcp) = packet.split_first_chunk::<20>()?;
    let &[version, _, m, n, _, _, _, _, _, protocol, _, _, a, b, c, d, e, f, g, h] = header;
    (version == 0x45 && protocol == TCP).then_some((
        Addr::v4(u32::from_be_bytes([a, b, c, d])),
        Addr::v4(u32::from_be_bytes([e, f, g, h])),
        u16::from_be_bytes([m, n]),
        tcp,
    ))
}

/// The same of an IPv6 packet, which has no extension headers.
fn quoted6(packet: &[u8]) -> Option<(Addr, Addr, u16, &[u8])> {
    let (header, tcp) = packet.split_first_chunk::<40>()?;
    let (first, addresses) = header.split_first_chunk::<8>()?;
    let (src, rest) = addresses.split_first_chunk::<16>()?;
    let dst = rest.first_chunk::<16>()?;
    let len = u16::from_be_bytes([first[4], first[5]]).saturating_add(40);
    (first[0] >> 4 == 6 && first[6] == TCP).then_some((Addr::v6(*src), Addr::v6(*dst), len, tcp))
}

/// Octets of an error that [`write_error`] writes.
#[must_use]
pub fn error_len(v4: bool) -> usize {
    if v4 { 20 + 8 + 20 + 8 } else { 40 + 8 + 40 + 8 }
}

/// Writes an error of the family of `key` as an IP packet to the front of `out`, which must have [`error_len`] octets: to `key.src`,
/// from `key.dst`, about a segment numbered `seq` that `key.src` sent along `key` in a packet of `len` octets.
pub fn write_error(out: &mut [u8], key: &FlowKey, seq: Seq, len: u16, kind: IcmpKind) {
    let v4 = key.src.is_v4();
    let (kind, code, value) = match kind {
        IcmpKind::TooBig(mtu) if v4 => (UNREACHABLE, FRAGMENTATION_NEEDED, mtu.min(0xffff)),
        IcmpKind::TooBig(mtu) => (PACKET_TOO_BIG, 0, mtu),
        IcmpKind::Unreachable(why) => {
            let code = match (why, v4) {
                (Unreachable::Host, true) => 1,
                (Unreachable::Host, false) => 0,
                (Unreachable::Port, true) => 3,
                (Unreachable::Port, false) => 4,
                (Unreachable::Prohibited, true) => 13,
                (Unreachable::Prohibited, false) => 1,
            };
            (if v4 { UNREACHABLE } else { UNREACHABLE6 }, code, 0)
        }
    };
    let mut at = 0_usize;
    let mut put = |octets: &[u8]| {
        if let Some(slot) = out.get_mut(at..).and_then(|rest| rest.get_mut(..octets.len())) {
            slot.copy_from_slice(octets);
        }
        at = at.wrapping_add(octets.len());
    };
    let message_len = error_len(v4).wrapping_sub(if v4 { 20 } else { 40 });
    put_ip(&mut put, key.dst, key.src, if v4 { checksum::ICMP } else { ICMP6 }, message_len as u16);
    put(&[kind, code, 0, 0]);
    put(&value.to_be_bytes());
    put_ip(&mut put, key.src, key.dst, TCP, len.wrapping_sub(if v4 { 20 } else { 40 }));
    put(&key.src_port.to_be_bytes());
    put(&key.dst_port.to_be_bytes());
    put(&seq.0.to_be_bytes());
    let l3 = if v4 { 20 } else { 40 };
    if let Some((_, message)) = out.split_at_mut_checked(l3)
        && let Some(message) = message.get_mut(..message_len)
    {
        let check =
            if v4 { checksum::icmp_checksum(message) } else { checksum::icmp6_checksum(message, key.src, key.dst) };
        if let Some(field) = message.get_mut(2..4) {
            field.copy_from_slice(&check.to_be_bytes());
        }
    }
}

fn put_ip(put: &mut impl FnMut(&[u8]), src: Addr, dst: Addr, protocol: u8, len: u16) {
    if src.is_v4() {
        let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header[2..4].copy_from_slice(&len.wrapping_add(20).to_be_bytes());
        header[12..16].copy_from_slice(&src.v4_bits().to_be_bytes());
        header[16..].copy_from_slice(&dst.v4_bits().to_be_bytes());
        checksum::fill_ipv4_header(&mut header);
        put(&header);
    } else {
        put(&[0x60, 0, 0, 0]);
        put(&len.to_be_bytes());
        put(&[protocol, 64]);
        put(&src.octets());
        put(&dst.octets());
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::packet::{Parsed, RxChecksums};
    use crate::{parse, testkit};

    fn key(v4: bool) -> FlowKey {
        let addr = |text: &str| text.parse::<IpAddr>().unwrap().into();
        let (src, dst) = if v4 { ("192.0.2.7", "198.51.100.10") } else { ("2001:db8:7::7", "2001:db8::10") };
        FlowKey { src: addr(src), dst: addr(dst), src_port: 40_000, dst_port: 443 }
    }

    /// A router's error about a segment we sent along the reverse of `key`: what the peer of `key` would be told, turned round.
    fn frame(v4: bool, kind: IcmpKind) -> Vec<u8> {
        let ours = key(v4);
        let reversed = FlowKey { src: ours.dst, dst: ours.src, src_port: ours.dst_port, dst_port: ours.src_port };
        let mut packet = vec![0; error_len(v4)];
        write_error(&mut packet, &reversed, Seq(77), 1_400, kind);
        let ether_type = if v4 { 0x0800 } else { 0x86dd };
        testkit::ethernet(testkit::OUR_MAC, testkit::PEER_MAC, None, ether_type, &packet)
    }

    fn read(frame: &[u8]) -> Option<IcmpError> {
        match parse(frame, RxChecksums::default()) {
            Ok(Parsed::Icmp(packet) | Parsed::Icmp6(packet)) => IcmpError::read(frame, &packet),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_kind_reads_back_in_both_families() {
        let kinds = [
            IcmpKind::TooBig(1_400),
            IcmpKind::TooBig(0),
            IcmpKind::Unreachable(Unreachable::Host),
            IcmpKind::Unreachable(Unreachable::Port),
            IcmpKind::Unreachable(Unreachable::Prohibited),
        ];
        for v4 in [true, false] {
            for kind in kinds {
                assert_eq!(read(&frame(v4, kind)), Some(IcmpError { kind, key: key(v4), seq: Seq(77), len: 1_400 }));
            }
        }
    }

    #[test]
    fn an_error_with_a_wrong_checksum_or_cut_short_is_none() {
        for v4 in [true, false] {
            let whole = frame(v4, IcmpKind::TooBig(1_400));
            let l4 = if v4 { 34 } else { 54 };
            for at in l4 + 2..whole.len() {
                let mut broken = whole.clone();
                broken[at] ^= 1;
                assert_eq!(read(&broken), None, "octet {at}");
            }
        }
    }

    #[test]
    fn an_error_about_somebody_elses_segment_is_none() {
        let ours = key(true);
        let reversed = FlowKey { src: ours.dst, dst: ours.src, src_port: 443, dst_port: 40_000 };
        let mut packet = vec![0; error_len(true)];
        write_error(&mut packet, &reversed, Seq(77), 1_400, IcmpKind::TooBig(1_400));
        // Sent to us all the same.
        packet[16..20].copy_from_slice(&[198, 51, 100, 11]);
        let mut header: [u8; 20] = packet[..20].try_into().unwrap();
        checksum::fill_ipv4_header(&mut header);
        packet[..20].copy_from_slice(&header);
        let frame = testkit::ethernet(testkit::OUR_MAC, testkit::PEER_MAC, None, 0x0800, &packet);
        assert_eq!(read(&frame), None);
    }

    #[test]
    fn other_messages_are_none() {
        for message in [[8, 0], [0, 0], [11, 0], [3, 2], [5, 0]] {
            let mut octets = vec![message[0], message[1], 0, 0, 0, 0, 0, 0];
            let check = checksum::icmp_checksum(&octets);
            octets[2..4].copy_from_slice(&check.to_be_bytes());
            assert_eq!(read(&testkit::ip("192.0.2.1", "198.51.100.10", 1).payload(octets).build()), None);
        }
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(octets in prop::collection::vec(any::<u8>(), 0..120), l4: u8, end: u8, v4: bool) {
            let key = key(v4);
            let packet = Datagram {
                l2: crate::L2 { len: 14, vlan: 0 }, src: key.src, dst: key.dst, l4: l4.into(), end: end.into(), hop_limit: 1,
            };
            let _ = IcmpError::read(&octets, &packet);
            let mut out = octets;
            write_error(&mut out, &key, Seq(0), 0, IcmpKind::TooBig(u32::MAX));
        }
    }
}
