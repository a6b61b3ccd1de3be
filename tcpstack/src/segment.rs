//! Segments of our own making, without payload: RST, bare ACK, and the SYN that wakes the userspace stack.
//!
//! They are written as whole IP packets (no Ethernet) into a buffer of the caller's: IPv4 without options, DF set and ID 0
//! (RFC 6864 section 4.1), or IPv6 without extension headers; no DSCP, no ECN. What to answer a stray segment with follows
//! RFC 9293 section 3.10.7.1; challenge ACKs are RFC 5961's.

use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::checksum::{self, Sum, TCP};
use sluice_filters::units::Seq;
use sluice_filters::{Flags, Segment};

use crate::options::{SynOptions, Words};

/// TTL and hop limit of our packets (RFC 1700's default, and what Linux sends).
pub const TTL: u8 = 64;

/// The longest packet written here: IPv6, TCP and every SYN option.
pub const PACKET_MAX: usize = 40 + 20 + 20;

/// Which way a segment travels along its [`FlowKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From us to the peer: the key reversed.
    ToPeer,
    /// From the peer to us, as the key reads: what we feed a stack in the peer's name.
    FromPeer,
}

/// The largest segment that an MTU has room for, IP and TCP headers without options taken off (RFC 9293 section 3.7.1).
#[inline(always)]
pub(crate) fn mss_of(mtu: u16, v4: bool) -> u16 {
    mtu.saturating_sub(if v4 { 40 } else { 60 })
}

/// Who finishes the TCP checksum. The IPv4 header's is always written in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpChecksum {
    /// Computed here.
    Full,
    /// Left to the device: the field holds the pseudo-header's sum, as DPDK's and Linux's offloads want it.
    Offload,
}

/// A segment without payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareSegment {
    /// The flow, `src` being the peer.
    pub key: FlowKey,
    /// Which end sends it.
    pub direction: Direction,
    /// Sequence number.
    pub seq: Seq,
    /// Acknowledgment number; write zero when `flags` has no ACK.
    pub ack: Seq,
    /// Flags.
    pub flags: Flags,
    /// The window field, unscaled.
    pub window: u16,
    /// TSval and TSecr, when the connection uses timestamps (RFC 7323 section 3.2 wants them on every segment but RST).
    pub timestamp: Option<(u32, u32)>,
    /// TTL or hop limit, usually [`TTL`].
    pub ttl: u8,
}

impl BareSegment {
    /// Octets that [`BareSegment::write`] writes: 40 to 72.
    #[must_use]
    pub fn len(&self) -> usize {
        let headers: usize = if self.key.src.is_v4() { 40 } else { 60 };
        headers.wrapping_add(usize::from(self.options().len).wrapping_mul(4))
    }

    /// Never: every segment has headers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the IP packet to the front of `out` and returns its length; none, and nothing written, when `out` is too short.
    pub fn write(&self, out: &mut [u8], tcp_checksum: TcpChecksum) -> Option<usize> {
        let mut head = Head::between(&self.key, self.direction);
        head.seq = self.seq;
        head.ack = self.ack;
        head.flags = self.flags;
        head.window = self.window;
        head.ttl = self.ttl;
        head.write(out, &self.options(), tcp_checksum)
    }

    /// Writes the IP packet with `payload` behind the headers to the front of `out`, checksums in full, and returns its length; none
    /// when `out` is too short.
    pub fn write_with(&self, payload: &[u8], out: &mut [u8]) -> Option<usize> {
        let headers = self.write(out, TcpChecksum::Offload)?;
        let len = headers.checked_add(payload.len())?;
        let packet = out.get_mut(..len)?;
        packet.get_mut(headers..)?.copy_from_slice(payload);
        let l3 = if self.key.src.is_v4() { 20 } else { 40 };
        let (ip, tcp) = packet.split_at_mut_checked(l3)?;
        set_ip_length(ip, tcp.len());
        // The pseudo-header's sum does not care which address comes first.
        checksum::fill_tcp(tcp, self.key.src, self.key.dst);
        Some(len)
    }

    fn options(&self) -> Words {
        self.timestamp.map_or(Words::NONE, |(value, echo)| Words::timestamp(value, echo))
    }
}

/// Writes the length fields of an IP header without options or extensions for `len` octets behind it, and IPv4's checksum.
fn set_ip_length(ip: &mut [u8], len: usize) {
    // Callers' packets are frames': they fit 16 bits.
    let len = len as u16;
    if let Ok(header) = <&mut [u8; 20]>::try_from(&mut *ip) {
        let [_, _, a, b, ..] = header;
        [*a, *b] = len.wrapping_add(20).to_be_bytes();
        checksum::fill_ipv4_header(header);
    } else if let Some([a, b]) = ip.get_mut(4..6) {
        [*a, *b] = len.to_be_bytes();
    }
}

/// The IP header of a forwarded segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// Source address.
    pub src: Addr,
    /// Destination address, of the same family.
    pub dst: Addr,
    /// TOS or traffic class.
    pub tos: u8,
    /// Octets behind the header.
    pub len: u16,
}

impl IpHeader {
    /// Octets that [`IpHeader::write`] writes.
    #[inline]
    #[must_use]
    pub fn size(&self) -> usize {
        if self.src.is_v4() { 20 } else { 40 }
    }

    /// Writes the header for a TCP segment to the front of `out`: as packets of our own have it, with a fresh time to live. Nothing is
    /// written when `out` is too short.
    #[inline]
    pub fn write(&self, out: &mut [u8]) {
        let mut head =
            Head::between(&FlowKey { src: self.src, dst: self.dst, src_port: 0, dst_port: 0 }, Direction::FromPeer);
        head.tos = self.tos;
        if self.src.is_v4() {
            if let Some(header) = out.first_chunk_mut() {
                let addresses = Sum::ZERO.dwords([self.src.v4_bits(), self.dst.v4_bits()]);
                head.fill_ipv4(header, addresses, u32::from(self.len));
            }
        } else if let Some(header) = out.first_chunk_mut() {
            head.fill_ipv6(header, u32::from(self.len));
        }
    }
}

/// The RST that answers `segment` when no connection wants it (RFC 9293 section 3.10.7.1); none in answer to a RST.
#[must_use]
pub fn reset_for(segment: &Segment) -> Option<BareSegment> {
    if segment.flags.rst() {
        return None;
    }
    let (seq, ack, flags) = if segment.flags.ack() {
        (segment.ack, Seq(0), Flags::RST)
    } else {
        (Seq(0), segment.seq_end(), Flags::RST | Flags::ACK)
    };
    Some(BareSegment {
        key: segment.key,
        direction: Direction::ToPeer,
        seq,
        ack,
        flags,
        window: 0,
        timestamp: None,
        ttl: TTL,
    })
}

/// A SYN: the peer's, rebuilt from what its cookie remembers, or ours to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynSegment {
    /// The flow, `src` being the peer.
    pub key: FlowKey,
    /// Which end sends it.
    pub direction: Direction,
    /// The sender's initial sequence number.
    pub isn: Seq,
    /// The sender's MSS option.
    pub mss: u16,
    /// The sender's window scale, when it offers one.
    pub wscale: Option<u8>,
    /// Whether the sender permits SACK.
    pub sack: bool,
    /// The sender's TSval, when it offers timestamps.
    pub timestamp: Option<u32>,
    /// The window field (never scaled in a SYN, RFC 7323 section 2.2).
    pub window: u16,
}

/// Writes the SYN as an IP packet to the front of `out` ([`PACKET_MAX`] always suffices) and returns its length; none, and
/// nothing written, when `out` is too short.
pub fn synthesize_syn(syn: &SynSegment, out: &mut [u8], tcp_checksum: TcpChecksum) -> Option<usize> {
    let mut head = Head::between(&syn.key, syn.direction);
    head.seq = syn.isn;
    head.flags = Flags::SYN;
    head.window = syn.window;
    let options = SynOptions {
        mss: syn.mss,
        wscale: syn.wscale,
        sack: syn.sack,
        timestamp: syn.timestamp.map(|value| (value, 0)),
    };
    head.write(out, &options.words(), tcp_checksum)
}

/// Writes a SYN-ACK that acknowledges up to `ack` and, with timestamps, echoes `echo`, as [`synthesize_syn`] writes a
/// SYN.
pub(crate) fn synthesize_syn_ack(
    syn: &SynSegment,
    ack: Seq,
    echo: u32,
    out: &mut [u8],
    tcp_checksum: TcpChecksum,
) -> Option<usize> {
    let mut head = Head::between(&syn.key, syn.direction);
    head.seq = syn.isn;
    head.ack = ack;
    head.flags = Flags::SYN | Flags::ACK;
    head.window = syn.window;
    let options = SynOptions {
        mss: syn.mss,
        wscale: syn.wscale,
        sack: syn.sack,
        timestamp: syn.timestamp.map(|value| (value, echo)),
    };
    head.write(out, &options.words(), tcp_checksum)
}

/// The fields of a segment without payload, addresses in the order of the packet.
pub(crate) struct Head {
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) flags: Flags,
    pub(crate) window: u16,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
}

impl Head {
    #[inline(always)]
    pub(crate) fn between(key: &FlowKey, direction: Direction) -> Head {
        let (src, dst, src_port, dst_port) = match direction {
            Direction::ToPeer => (key.dst, key.src, key.dst_port, key.src_port),
            Direction::FromPeer => (key.src, key.dst, key.src_port, key.dst_port),
        };
        Head {
            src,
            dst,
            src_port,
            dst_port,
            seq: Seq(0),
            ack: Seq(0),
            flags: Flags::default(),
            window: 0,
            ttl: TTL,
            tos: 0,
        }
    }

    /// Writes the IP packet to the front of `out` and returns its length; none, and nothing written, when `out` is too short.
    fn write(&self, out: &mut [u8], options: &Words, tcp_checksum: TcpChecksum) -> Option<usize> {
        let mut packet = [0; PACKET_MAX];
        let len = if self.src.is_v4() {
            self.fill::<true>(&mut packet, options, tcp_checksum)
        } else {
            self.fill::<false>(&mut packet, options, tcp_checksum)
        };
        out.get_mut(..len)?.copy_from_slice(packet.get(..len)?);
        Some(len)
    }

    /// Writes the IP packet to the front of `packet` and returns its length. What follows it in `packet` is undefined.
    #[inline(always)]
    pub(crate) fn fill<const V4: bool>(
        &self,
        packet: &mut [u8; PACKET_MAX],
        options: &Words,
        tcp_checksum: TcpChecksum,
    ) -> usize {
        let tcp_len = u32::from(options.len).wrapping_mul(4).wrapping_add(20);
        let ip_len: u32 = if V4 { 20 } else { 40 };
        let (ip, tcp) = packet.split_at_mut(ip_len as usize);
        let addresses = if V4 {
            Sum::ZERO.dwords([self.src.v4_bits(), self.dst.v4_bits()])
        } else {
            checksum::pseudo_header(self.src, self.dst, 0, 0)
        };
        // The packet has room for both headers: the branches vanish.
        if let Some(tcp) = tcp.first_chunk_mut() {
            self.fill_tcp(tcp, options, addresses, tcp_len, tcp_checksum);
        }
        if V4 && let Some(header) = ip.first_chunk_mut() {
            self.fill_ipv4(header, addresses, tcp_len);
        }
        if !V4 && let Some(header) = ip.first_chunk_mut() {
            self.fill_ipv6(header, tcp_len);
        }
        tcp_len.wrapping_add(ip_len) as usize
    }

    #[inline(always)]
    fn fill_ipv4(&self, header: &mut [u8; 20], addresses: Sum, tcp_len: u32) {
        let first = 0x4500_0000 | u32::from(self.tos) << 16 | tcp_len.wrapping_add(20);
        let dont_fragment: u32 = 0x4000;
        let ttl_protocol = u32::from(self.ttl) << 24 | u32::from(TCP) << 16;
        let check = addresses.dwords([first, dont_fragment, ttl_protocol]).finish();
        header[..4].copy_from_slice(&first.to_be_bytes());
        header[4..8].copy_from_slice(&dont_fragment.to_be_bytes());
        header[8..12].copy_from_slice(&(ttl_protocol | u32::from(check)).to_be_bytes());
        header[12..16].copy_from_slice(&self.src.v4_bits().to_be_bytes());
        header[16..].copy_from_slice(&self.dst.v4_bits().to_be_bytes());
    }

    #[inline(always)]
    fn fill_ipv6(&self, header: &mut [u8; 40], tcp_len: u32) {
        let second = tcp_len << 16 | u32::from(TCP) << 8 | u32::from(self.ttl);
        let first = 0x6000_0000 | u32::from(self.tos) << 20;
        header[..4].copy_from_slice(&first.to_be_bytes());
        header[4..8].copy_from_slice(&second.to_be_bytes());
        header[8..24].copy_from_slice(&self.src.octets());
        header[24..].copy_from_slice(&self.dst.octets());
    }

    /// `addresses` is the sum of both addresses.
    #[inline(always)]
    fn fill_tcp(&self, tcp: &mut [u8; 40], options: &Words, addresses: Sum, len: u32, tcp_checksum: TcpChecksum) {
        let ports = u32::from(self.src_port) << 16 | u32::from(self.dst_port);
        // The data offset counts words: a quarter of `len`, in the word's upper four bits.
        let offset_window = len << 26 | u32::from(self.flags.0) << 16 | u32::from(self.window);
        let pseudo_header = addresses.dword(len.wrapping_add(u32::from(TCP)));
        let [a, b, c, d, e] = options.words;
        let check = match tcp_checksum {
            TcpChecksum::Offload => pseudo_header.fold(),
            TcpChecksum::Full => {
                pseudo_header.dwords([ports, self.seq.0, self.ack.0, offset_window, a, b, c, d, e]).finish()
            }
        };
        tcp[..4].copy_from_slice(&ports.to_be_bytes());
        tcp[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        tcp[12..16].copy_from_slice(&offset_window.to_be_bytes());
        tcp[16..20].copy_from_slice(&(u32::from(check) << 16).to_be_bytes());
        tcp[20..24].copy_from_slice(&a.to_be_bytes());
        tcp[24..28].copy_from_slice(&b.to_be_bytes());
        tcp[28..32].copy_from_slice(&c.to_be_bytes());
        tcp[32..36].copy_from_slice(&d.to_be_bytes());
        tcp[36..].copy_from_slice(&e.to_be_bytes());
    }
}

/// Writes a segment's number and length into its frame; its checksums are wrong then.
pub(crate) fn renumber(segment: &Segment, frame: &mut [u8]) -> Option<()> {
    let Seq(seq) = segment.seq;
    let (l3, l4) = (segment.l3(), segment.l4());
    frame.get_mut(l4..)?.get_mut(4..8)?.copy_from_slice(&seq.to_be_bytes());
    // IPv4's total length, IPv6's payload length.
    let (at, from) = if segment.is_v4() { (2, l3) } else { (4, l4) };
    let len = u16::try_from(segment.end().checked_sub(from)?).ok()?;
    frame.get_mut(l3..)?.get_mut(at..)?.get_mut(..2)?.copy_from_slice(&len.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use sluice_filters::{Parsed, RxChecksums, testkit};

    use super::*;

    const V4: (&str, &str) = ("192.0.2.7:40000", "198.51.100.10:443");
    const V6: (&str, &str) = ("[2001:db8:1::7]:40000", "[2001:db8::10]:443");

    fn read(packet: &[u8]) -> (Segment, sluice_filters::TcpOptions) {
        let ether_type = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
        let frame = testkit::ethernet(testkit::OUR_MAC, testkit::PEER_MAC, None, ether_type, packet);
        match sluice_filters::parse(&frame, RxChecksums::default()) {
            Ok(Parsed::Tcp(segment)) => (segment, segment.options(&frame)),
            other => panic!("{other:?}"),
        }
    }

    fn received(ends: (&str, &str), flags: Flags, payload: &[u8]) -> Segment {
        let frame = testkit::tcp(ends.0, ends.1).flags(flags).seq(u32::MAX).ack(0x1234_5678).payload(payload).build();
        match sluice_filters::parse(&frame, RxChecksums::default()) {
            Ok(Parsed::Tcp(segment)) => segment,
            other => panic!("{other:?}"),
        }
    }

    fn bare(ends: (&str, &str)) -> BareSegment {
        BareSegment {
            key: received(ends, Flags::ACK, b"").key,
            direction: Direction::ToPeer,
            seq: Seq(0xffff_fff0),
            ack: Seq(7),
            flags: Flags::ACK,
            window: 0xabcd,
            timestamp: Some((0x0102_0304, 0xffff_ffff)),
            ttl: 61,
        }
    }

    #[test]
    fn bare_segments_parse_with_every_field_and_valid_checksums() {
        for ends in [V4, V6] {
            for direction in [Direction::ToPeer, Direction::FromPeer] {
                for timestamp in [None, Some((1, 0xdead_beef))] {
                    let segment = BareSegment { direction, timestamp, ..bare(ends) };
                    let mut out = [0xee; PACKET_MAX + 4];
                    let len = segment.write(&mut out, TcpChecksum::Full).unwrap();
                    assert_eq!(len, segment.len());
                    assert!(out[len..].iter().all(|octet| *octet == 0xee), "wrote past its end");
                    let (parsed, options) = read(&out[..len]);
                    let key = match direction {
                        Direction::FromPeer => segment.key,
                        Direction::ToPeer => FlowKey {
                            src: segment.key.dst,
                            dst: segment.key.src,
                            src_port: segment.key.dst_port,
                            dst_port: segment.key.src_port,
                        },
                    };
                    assert_eq!(parsed.key, key);
                    assert_eq!((parsed.seq, parsed.ack), (segment.seq, segment.ack));
                    assert_eq!((parsed.flags, parsed.window), (segment.flags, segment.window));
                    assert_eq!((parsed.hop_limit, parsed.tos, parsed.payload_len), (61, 0, 0));
                    assert_eq!(options.timestamp, timestamp);
                }
            }
        }
    }

    #[test]
    fn a_buffer_too_short_is_left_alone() {
        for ends in [V4, V6] {
            let segment = bare(ends);
            let mut out = vec![0xee; segment.len() - 1];
            assert_eq!(segment.write(&mut out, TcpChecksum::Full), None);
            assert!(out.iter().all(|octet| *octet == 0xee));
        }
    }

    #[test]
    fn an_offloaded_checksum_is_the_pseudo_headers_sum() {
        for ends in [V4, V6] {
            let segment = bare(ends);
            let (mut full, mut offloaded) = ([0; PACKET_MAX], [0; PACKET_MAX]);
            let len = segment.write(&mut full, TcpChecksum::Full).unwrap();
            segment.write(&mut offloaded, TcpChecksum::Offload).unwrap();
            // The device sums the segment, that field included, and writes the complement.
            let tcp = len - 32..len;
            let finished = checksum::sum(&offloaded[tcp.clone()]).finish();
            offloaded[tcp.start + 16..tcp.start + 18].copy_from_slice(&finished.to_be_bytes());
            assert_eq!(offloaded, full);
        }
    }

    #[test]
    fn reset_for_an_ack_takes_its_acknowledgment_number() {
        for flags in [Flags::ACK, Flags::ACK | Flags::FIN, Flags::SYN | Flags::ACK] {
            let reset = reset_for(&received(V4, flags, b"abc")).unwrap();
            assert_eq!((reset.flags, reset.seq), (Flags::RST, Seq(0x1234_5678)));
        }
    }

    #[test]
    fn reset_for_a_segment_without_ack_acknowledges_all_of_it() {
        let reset = reset_for(&received(V6, Flags::SYN, b"abc")).unwrap();
        assert_eq!(reset.flags, Flags::RST | Flags::ACK);
        // The SYN takes u32::MAX, the data 0 to 2.
        assert_eq!((reset.seq, reset.ack), (Seq(0), Seq(3)));
        assert_eq!(reset.direction, Direction::ToPeer);
    }

    #[test]
    fn a_reset_is_never_answered() {
        assert_eq!(reset_for(&received(V4, Flags::RST, b"")), None);
        assert_eq!(reset_for(&received(V4, Flags::RST | Flags::ACK, b"")), None);
    }

    #[test]
    fn a_reset_is_as_short_as_a_segment_can_be() {
        for flags in [Flags::ACK, Flags::SYN, Flags::FIN | Flags::ACK] {
            let lengths = [V4, V6].map(|ends| reset_for(&received(ends, flags, b"")).unwrap().len());
            assert_eq!(lengths, [40, 60]);
        }
    }

    #[test]
    fn synthesized_syn_says_what_the_peers_did() {
        for ends in [V4, V6] {
            for bits in 0..8_u8 {
                let syn = SynSegment {
                    key: bare(ends).key,
                    direction: Direction::FromPeer,
                    isn: Seq(u32::MAX),
                    mss: 48,
                    wscale: (bits & 1 != 0).then_some(14),
                    sack: bits & 2 != 0,
                    timestamp: (bits & 4 != 0).then_some(0xffff_fffe),
                    window: 64_240,
                };
                let mut out = [0; PACKET_MAX];
                let len = synthesize_syn(&syn, &mut out, TcpChecksum::Full).unwrap();
                let (parsed, options) = read(&out[..len]);
                assert_eq!(parsed.key, syn.key);
                assert_eq!((parsed.seq, parsed.ack, parsed.flags), (syn.isn, Seq(0), Flags::SYN));
                assert_eq!((parsed.window, options.mss), (64_240, Some(48)));
                assert_eq!((options.wscale, options.sack_permitted), (syn.wscale, syn.sack));
                assert_eq!(options.timestamp, syn.timestamp.map(|value| (value, 0)));
            }
        }
    }
}
