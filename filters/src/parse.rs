//! The header parser: one pass from frame to [`Parsed`], or to the reason for the drop.
//!
//! Implements what RFC 1122 section 3.2.1, RFC 8200, RFC 9293 section 3.1 and 3.10 and IEEE 802.1Q ask of a receiver, and is
//! stricter where no honest sender notices: no IP options, no fragments, no extension headers, no flags that no TCP sends.
//! Cheap checks come first and the TCP checksum last, so a damaged segment may be counted under another reason.
//!
//! Invariants: an accepted TCP segment or ICMP message lies inside the frame; its IPv4 header checksum and TCP checksum hold
//! (or the NIC vouched for them); its addresses are unicast and differ (ICMPv6: see [`Parsed::Icmp6`]); no IPv6 packet
//! carries an IPv4-mapped address, so [`Addr`] is unambiguous. Whether the frame is for our MAC is the port's to ask: it may
//! be promiscuous.

use crate::DropReason;
use crate::addr::{Addr, FlowKey};
use crate::checksum::{ICMP, ICMP6, Sum, TCP};
use crate::packet::{ChecksumState, Datagram, Flags, L2, Parsed, RxChecksums, Segment};
use crate::units::Seq;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
/// The service tag's number before 802.1ad settled on another.
const OLD_SERVICE_VLAN: u16 = 0x9100;

/// What an IPv4 header's first eight octets must say: version 4 and five words; no fragment offset, no "more fragments" and
/// no reserved flag. Of the flags, only "don't fragment" is free.
const FIRST: u64 = 0x4500_0000_0000_0000;
const FIRST_MASK: u64 = 0xff00_0000_0000_bfff;

/// ICMP and ICMPv6: type, code, checksum and four octets that depend on them (RFC 792; RFC 4443 has no shorter message).
const ICMP_HEADER: usize = 8;

/// What a frame seems to be before it is parsed: nothing of it is verified. Should the parser accept the frame, it will find the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glimpse {
    /// IP source.
    pub src: Addr,
    /// IP destination.
    pub dst: Addr,
    /// TCP destination port.
    pub dst_port: u16,
    /// Length of the IP packet, octets.
    pub ip_length: u16,
    /// Whether it opens a connection: SYN without ACK.
    pub opens: bool,
}

/// Glances at a frame, for what may be decided or called near without its whole headers. None for what is not worth a look: a VLAN
/// tag, IPv4 options, anything but TCP right behind its IP header.
#[inline(always)]
#[must_use]
pub fn glance(frame: &[u8]) -> Option<Glimpse> {
    let h = frame.first_chunk::<54>()?;
    match (u16::from_be_bytes([h[12], h[13]]), h[14]) {
        (IPV4, 0x45) if h[23] == TCP => Some(Glimpse {
            src: Addr::v4(u32::from_be_bytes([h[26], h[27], h[28], h[29]])),
            dst: Addr::v4(u32::from_be_bytes([h[30], h[31], h[32], h[33]])),
            dst_port: u16::from_be_bytes([h[36], h[37]]),
            ip_length: u16::from_be_bytes([h[16], h[17]]),
            opens: Flags(h[47]).is_initial_syn(),
        }),
        (IPV6, _) if h[20] == TCP => {
            let tcp = frame.get(54..)?.first_chunk::<14>()?;
            Some(Glimpse {
                src: Addr::v6(*h.get(22..)?.first_chunk()?),
                dst: Addr::v6(*h.get(38..)?.first_chunk()?),
                dst_port: u16::from_be_bytes([tcp[2], tcp[3]]),
                ip_length: u16::from_be_bytes([h[18], h[19]]).saturating_add(40),
                opens: Flags(tcp[13]).is_initial_syn(),
            })
        }
        _ => None,
    }
}

/// Parses a frame, from the Ethernet header and without FCS. Octets after the IP packet are padding.
///
/// # Errors
/// The reason to drop the frame under.
#[inline]
pub fn parse(frame: &[u8], checksums: RxChecksums) -> Result<Parsed, DropReason> {
    parse_then(frame, checksums, |_, parsed| parsed)
}

/// [`parse`] that hands its result, and the frame, on to `then`. Inlined with it, once for each family: what `then` does not
/// look at is not computed, and a [`Segment`] that stays in its hands never goes through memory. (A segment is written in
/// small pieces; copied as a whole right after, it would make the processor wait for them.)
#[inline(always)]
pub fn parse_then<F: AsRef<[u8]>, R>(
    frame: F,
    checksums: RxChecksums,
    then: impl FnOnce(F, Result<Parsed, DropReason>) -> R,
) -> R {
    let Some((ethernet, packet)) = frame.as_ref().split_first_chunk::<14>() else {
        return then(frame, Err(DropReason::Truncated));
    };
    if ethernet[6] & 1 != 0 {
        return then(frame, Err(DropReason::BadEthernetSource));
    }
    let to_group = ethernet[0] & 1 != 0;
    let ether_type = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    let (l2, ether_type, packet) = if ether_type == VLAN {
        let Some((tag, packet)) = packet.split_first_chunk::<4>() else {
            return then(frame, Err(DropReason::Truncated));
        };
        let l2 = L2 { len: 18, vlan: u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff };
        (l2, u16::from_be_bytes([tag[2], tag[3]]), packet)
    } else {
        (L2 { len: 14, vlan: 0 }, ether_type, packet)
    };
    match ether_type {
        IPV4 => {
            let parsed = ipv4(packet, l2, to_group, checksums);
            then(frame, parsed)
        }
        IPV6 => {
            let parsed = ipv6(packet, l2, to_group, checksums);
            then(frame, parsed)
        }
        ARP => then(frame, Ok(Parsed::Arp(l2))),
        VLAN | SERVICE_VLAN | OLD_SERVICE_VLAN => then(frame, Err(DropReason::VlanStacked)),
        _ => then(frame, Err(DropReason::UnknownEtherType)),
    }
}

#[inline(always)]
fn ipv4(packet: &[u8], l2: L2, to_group: bool, checksums: RxChecksums) -> Result<Parsed, DropReason> {
    let Some((header, rest)) = packet.split_first_chunk::<20>() else { return Err(DropReason::Truncated) };
    let &[a, b, c, d, e, f, g, h, ttl, protocol, ..] = header;
    let first = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    if first & FIRST_MASK != FIRST || ttl == 0 {
        return Err(bad_ipv4(first));
    }
    // A total below 20 wraps and is too long for any frame.
    let total = (first >> 32) as u16;
    let Some(l4) = rest.get(..usize::from(total).wrapping_sub(20)) else {
        return Err(if total < 20 { DropReason::BadIpLength } else { DropReason::Truncated });
    };
    let addresses = word(header, 12).wrapping_add(word(header, 16));
    if checksums.ip != ChecksumState::Good {
        let rest = word(header, 0).wrapping_add(word(header, 4)).wrapping_add(word(header, 8));
        if !Sum::of_ne(addresses.wrapping_add(rest)).is_valid() {
            return Err(DropReason::BadIpChecksum);
        }
    }
    let is_tcp = protocol == TCP;
    if !is_tcp && protocol != ICMP {
        return Err(DropReason::NotTcp);
    }
    let (src, dst) = (u32::from_be(word(header, 12) as u32), u32::from_be(word(header, 16) as u32));
    if not_unicast_v4(src) | not_unicast_v4(dst) | (src == dst) | to_group {
        return Err(bad_ipv4_address(src, dst, to_group));
    }
    let (src, dst) = (Addr::v4(src), Addr::v4(dst));
    if is_tcp {
        let ip = Ip { l2, src, dst, header_len: 20, hop_limit: ttl, tos: b };
        tcp(l4, ip, addresses, checksums)
    } else {
        datagram(l4, l2, src, dst, 20, ttl).map(Parsed::Icmp)
    }
}

#[inline(always)]
fn ipv6(packet: &[u8], l2: L2, to_group: bool, checksums: RxChecksums) -> Result<Parsed, DropReason> {
    let Some((header, rest)) = packet.split_first_chunk::<40>() else { return Err(DropReason::Truncated) };
    let &[v0, v1, _, _, l0, l1, next, hop_limit, ref addresses @ ..] = header;
    if v0 >> 4 != 6 {
        return Err(DropReason::BadIpHeader);
    }
    let Some(l4) = rest.get(..usize::from(u16::from_be_bytes([l0, l1]))) else { return Err(DropReason::Truncated) };
    let &[s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, sa, sb, sc, sd, se, sf, ref to @ ..] = addresses;
    let src = Addr::v6([s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, sa, sb, sc, sd, se, sf]);
    let dst = Addr::v6(*to);
    let to_multicast = to[0] == 0xff;
    if next == TCP {
        // ::/64 holds the unspecified, the loopback, the IPv4-mapped and the IPv4-compatible addresses, and nobody else.
        if (src.hi == 0) | (s0 == 0xff) | (dst.hi == 0) | to_multicast | (src == dst) | to_group {
            return Err(bad_ipv6_address(src, dst, to_group));
        }
        let ip = Ip { l2, src, dst, header_len: 40, hop_limit, tos: v0 << 4 | v1 >> 4 };
        // Eight words of 32 bits.
        let mut sum = 0u64;
        for at in (8..40).step_by(4) {
            sum = sum.wrapping_add(word(header, at));
        }
        tcp(l4, ip, sum, checksums)
    } else {
        icmp6_or_drop(l4, l2, next, src, dst, hop_limit)
    }
}

/// What TCP needs to know of the IP header.
struct Ip {
    l2: L2,
    src: Addr,
    dst: Addr,
    header_len: u8,
    hop_limit: u8,
    tos: u8,
}

#[inline(always)]
fn tcp(segment: &[u8], ip: Ip, addresses: u64, checksums: RxChecksums) -> Result<Parsed, DropReason> {
    let Some((header, rest)) = segment.split_first_chunk::<20>() else { return Err(DropReason::BadTcpLength) };
    let &[p0, p1, p2, p3, s0, s1, s2, s3, a0, a1, a2, a3, offset, flags, w0, w1, _, _, _, _] = header;
    let tcp_len = offset >> 2 & 0x3c;
    // Below 5 words this wraps and no segment is long enough.
    let Some(payload_len) = rest.len().checked_sub(usize::from(tcp_len).wrapping_sub(20)) else {
        return Err(DropReason::BadTcpLength);
    };
    let (src_port, dst_port) = (u16::from_be_bytes([p0, p1]), u16::from_be_bytes([p2, p3]));
    if src_port == 0 || dst_port == 0 {
        return Err(DropReason::ZeroPort);
    }
    let flags = Flags(flags);
    if !flags.is_legal() {
        return Err(DropReason::BadFlags);
    }
    if checksums.l4 != ChecksumState::Good {
        // At most fifteen words of 32 bits: no carry leaves the 64.
        let mut sum =
            addresses.wrapping_add((segment.len() as u32).to_be().into()).wrapping_add(u16::from(TCP).to_be().into());
        for at in (0..20).step_by(4) {
            sum = sum.wrapping_add(word(header, at));
        }
        // Nothing follows the header of most floods' SYNs, and Linux's options that of most others.
        let sum = if rest.is_empty() {
            Sum::of_ne(sum)
        } else if let Ok(options) = <&[u8; 20]>::try_from(rest) {
            Sum::of_ne(sum).fixed(options)
        } else {
            Sum::of_ne(sum).bytes(rest)
        };
        if !sum.is_valid() {
            return Err(DropReason::BadTcpChecksum);
        }
    }
    Ok(Parsed::Tcp(Segment {
        key: FlowKey { src: ip.src, dst: ip.dst, src_port, dst_port },
        seq: Seq(u32::from_be_bytes([s0, s1, s2, s3])),
        ack: Seq(u32::from_be_bytes([a0, a1, a2, a3])),
        l2: ip.l2,
        // The IP length fields have 16 bits: nothing is lost.
        payload_len: payload_len as u16,
        window: u16::from_be_bytes([w0, w1]),
        l3_len: ip.header_len,
        tcp_len,
        flags,
        hop_limit: ip.hop_limit,
        tos: ip.tos,
    }))
}

/// The fragment header's number (RFC 8200 section 4.5).
const FRAGMENT: u8 = 44;

/// Octets of an IPv6 fragment header.
pub const FRAGMENT_HEADER: usize = 8;

/// Takes the fragment header out of an atomic fragment, a whole TCP packet that bears one for no reason: it is an ordinary packet
/// (RFC 6946 section 4; translators made them, RFC 6145 section 4). Whether this was one; then the frame begins [`FRAGMENT_HEADER`]
/// octets later, and its checksums are as right as they were.
#[cold]
#[must_use]
pub fn unwrap_atomic(frame: &mut [u8]) -> bool {
    open_atomic(frame).is_some()
}

fn open_atomic(frame: &mut [u8]) -> Option<()> {
    let l3 = if *frame.get(12..14)? == VLAN.to_be_bytes() { 18_usize } else { 14 };
    let (ethernet, packet) = frame.split_at_mut_checked(l3)?;
    let headers = packet.first_chunk_mut::<{ 40 + FRAGMENT_HEADER }>()?;
    // Thirteen bits of offset, two that do not matter, "more fragments".
    let part = u16::from_be_bytes([headers[42], headers[43]]) & 0xfff9;
    if *ethernet.last_chunk::<2>()? != IPV6.to_be_bytes() || headers[6] != FRAGMENT || headers[40] != TCP || part != 0 {
        return None;
    }
    let length = u16::from_be_bytes([headers[4], headers[5]]).checked_sub(FRAGMENT_HEADER as u16)?;
    [headers[4], headers[5]] = length.to_be_bytes();
    headers[6] = TCP;
    frame.copy_within(..l3.saturating_add(40), FRAGMENT_HEADER);
    Some(())
}

#[cold]
fn icmp6_or_drop(l4: &[u8], l2: L2, next: u8, src: Addr, dst: Addr, hop_limit: u8) -> Result<Parsed, DropReason> {
    match next {
        ICMP6 => {}
        FRAGMENT => return Err(DropReason::Fragment),
        // IANA's list of extension headers: hop-by-hop (jumbograms too), routing, ESP, AH, destination options, mobility,
        // HIP, shim6 and the two for experiments.
        0 | 43 | 50 | 51 | 60 | 135 | 139 | 140 | 253 | 254 => return Err(DropReason::Ipv6Extension),
        _ => return Err(DropReason::NotTcp),
    }
    // Neighbour discovery speaks from the unspecified address (duplicate detection) and to groups.
    let from_nobody = src.hi == 0 && src.lo == 0;
    let to_group = is_multicast_v6(dst);
    if is_multicast_v6(src) || (src.hi == 0 && !from_nobody) || (dst.hi == 0) || src == dst {
        return Err(bad_ipv6_address(src, dst, false));
    }
    if from_nobody && !to_group {
        return Err(DropReason::MartianSource);
    }
    datagram(l4, l2, src, dst, 40, hop_limit).map(Parsed::Icmp6)
}

#[cold]
fn datagram(l4: &[u8], l2: L2, src: Addr, dst: Addr, l3_len: u16, hop_limit: u8) -> Result<Datagram, DropReason> {
    if l4.len() < ICMP_HEADER {
        return Err(DropReason::BadIcmp);
    }
    let start = u16::from(l2.len).wrapping_add(l3_len);
    // Possible only in frames past 64 KiB, which no port can hand us.
    let Some(end) = u16::try_from(l4.len()).ok().and_then(|len| start.checked_add(len)) else {
        return Err(DropReason::BadIpLength);
    };
    Ok(Datagram { l2, src, dst, l4: start, end, hop_limit })
}

/// Four octets of a header as the checksum adds them. `at` is a constant below `N - 3` wherever this is called.
#[inline(always)]
fn word<const N: usize>(header: &[u8; N], at: usize) -> u64 {
    match header.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        Some(&octets) => u32::from_ne_bytes(octets).into(),
        None => 0,
    }
}

/// Whether an address is no unicast address on the wire: 0/8, 127/8, 224/4, 240/4.
#[inline(always)]
fn not_unicast_v4(addr: u32) -> bool {
    let first = addr >> 24;
    (first.wrapping_sub(1) >= 223) | (first == 127)
}

#[inline(always)]
fn is_multicast_v6(addr: Addr) -> bool {
    addr.hi >> 56 == 0xff
}

#[cold]
fn bad_ipv4(first: u64) -> DropReason {
    match first >> 56 {
        0x45 if first & 0x3fff != 0 => DropReason::Fragment,
        0x45 if first & 0x8000 != 0 => DropReason::BadIpHeader,
        0x45 => DropReason::TtlExceeded,
        0x46..=0x4f => DropReason::IpOptions,
        _ => DropReason::BadIpHeader,
    }
}

#[cold]
fn bad_ipv4_address(src: u32, dst: u32, to_group: bool) -> DropReason {
    if not_unicast_v4(src) {
        if src >> 28 == 14 { DropReason::MulticastSource } else { DropReason::MartianSource }
    } else if not_unicast_v4(dst) {
        DropReason::BadDestination
    } else if to_group {
        DropReason::EthernetMulticast
    } else {
        DropReason::Land
    }
}

#[cold]
fn bad_ipv6_address(src: Addr, dst: Addr, to_group: bool) -> DropReason {
    if is_multicast_v6(src) {
        DropReason::MulticastSource
    } else if src.hi == 0 {
        DropReason::MartianSource
    } else if dst.hi == 0 || is_multicast_v6(dst) {
        DropReason::BadDestination
    } else if to_group {
        DropReason::EthernetMulticast
    } else {
        DropReason::Land
    }
}
