//! What the parser hands on: positions inside a frame and the header fields that verdicts need.
//!
//! Values of these types come from [`crate::parse`], which has proved for one frame that every offset lies inside it:
//! `l2 + l3 + tcp + payload <= frame.len()`. Methods that take a frame want that same frame; given a shorter one they return
//! empty slices, never panic. RFC 791, RFC 8200, RFC 9293 section 3.1, RFC 3168, IEEE 802.1Q.

use std::ops::{BitOr, Range};

use crate::addr::{Addr, FlowKey};
use crate::options::TcpOptions;
use crate::units::Seq;

/// What the NIC said about one checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksumState {
    /// Nothing: verified in software.
    #[default]
    Unknown,
    /// Verified by the device, or never computed because the frame did not cross a wire. Not verified again.
    Good,
    /// The device finds it wrong. Verified in software all the same: devices err (padding, tags they do not know), and a
    /// packet with a bad checksum costs no more than one the device said nothing about.
    Bad,
}

/// What the NIC said about a frame's checksums. The default is "nothing".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxChecksums {
    /// The IPv4 header's.
    pub ip: ChecksumState,
    /// TCP's.
    pub l4: ChecksumState,
}

impl RxChecksums {
    /// Both verified by the device.
    pub const GOOD: RxChecksums = RxChecksums { ip: ChecksumState::Good, l4: ChecksumState::Good };
}

/// The link header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2 {
    /// Its length: 14 octets, or 18 with an 802.1Q tag.
    pub len: u8,
    /// The VLAN id of the tag; 0 = untagged (or priority-tagged, which 802.1Q treats alike).
    pub vlan: u16,
}

/// A frame the appliance has a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A valid TCP segment between unicast addresses.
    Tcp(Segment),
    /// An ARP frame; only its link header was looked at. The ARP packet starts at `len`.
    Arp(L2),
    /// ICMP in a valid IPv4 packet between unicast addresses. At least 8 octets; its checksum was not verified.
    Icmp(Datagram),
    /// ICMPv6 in a valid IPv6 packet. At least 8 octets; its checksum was not verified. The source may be unspecified and
    /// the destination multicast, as neighbour discovery needs.
    Icmp6(Datagram),
}

/// An ICMP or ICMPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The link header.
    pub l2: L2,
    /// IP source.
    pub src: Addr,
    /// IP destination.
    pub dst: Addr,
    /// Where ICMP starts in the frame.
    pub l4: u16,
    /// Where the IP packet ends in the frame; Ethernet padding may follow.
    pub end: u16,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

impl Datagram {
    /// The ICMP message.
    #[inline]
    #[must_use]
    pub fn message<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(usize::from(self.l4)..usize::from(self.end)).unwrap_or_default()
    }

    /// The IP packet, header included.
    #[inline]
    #[must_use]
    pub fn packet<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(usize::from(self.l2.len)..usize::from(self.end)).unwrap_or_default()
    }
}

/// A TCP segment. One cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Addresses and ports, as the packet has them.
    pub key: FlowKey,
    /// Sequence number of the first octet (of the SYN when there is one).
    pub seq: Seq,
    /// Acknowledgment number; means something only with [`Flags::ACK`].
    pub ack: Seq,
    /// The link header.
    pub l2: L2,
    /// Octets of payload, Ethernet padding excluded.
    pub payload_len: u16,
    /// The window field, unscaled.
    pub window: u16,
    /// IP header length, extension headers included: 20 (IPv4) or 40 (IPv6).
    pub l3_len: u8,
    /// TCP header length with options, 20 to 60.
    pub tcp_len: u8,
    /// The flags, without AE.
    pub flags: Flags,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// IPv4 TOS or IPv6 traffic class: DSCP and ECN.
    pub tos: u8,
}

impl Segment {
    /// A copy in memory of its own, to be handed to what is not inlined. The original is then never asked for its address, and stays
    /// in registers. (Of a plain copy the compiler sees that nobody would notice, and hands on the original.)
    #[inline(always)]
    #[must_use]
    pub fn aside(&self) -> Segment {
        std::hint::black_box(*self)
    }

    /// Offset of the IP header in the frame.
    #[inline]
    #[must_use]
    pub fn l3(&self) -> usize {
        usize::from(self.l2.len)
    }

    /// Offset of the TCP header in the frame.
    #[inline]
    #[must_use]
    pub fn l4(&self) -> usize {
        self.l3().wrapping_add(usize::from(self.l3_len))
    }

    /// Offset of the payload in the frame.
    #[inline]
    #[must_use]
    pub fn payload_start(&self) -> usize {
        self.l4().wrapping_add(usize::from(self.tcp_len))
    }

    /// Where the IP packet ends in the frame; Ethernet padding may follow.
    #[inline]
    #[must_use]
    pub fn end(&self) -> usize {
        self.payload_start().wrapping_add(usize::from(self.payload_len))
    }

    /// The IP packet's place in the frame, header included.
    #[inline]
    #[must_use]
    pub fn ip_range(&self) -> Range<usize> {
        self.l3()..self.end()
    }

    /// The TCP options' place in the frame.
    #[inline]
    #[must_use]
    pub fn options_range(&self) -> Range<usize> {
        self.l4().wrapping_add(20)..self.payload_start()
    }

    /// The payload's place in the frame.
    #[inline]
    #[must_use]
    pub fn payload_range(&self) -> Range<usize> {
        self.payload_start()..self.end()
    }

    /// The payload.
    #[inline]
    #[must_use]
    pub fn payload<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.payload_range()).unwrap_or_default()
    }

    /// The IP packet, header included, without link header and padding.
    #[inline]
    #[must_use]
    pub fn packet<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.ip_range()).unwrap_or_default()
    }

    /// The TCP options, read tolerantly.
    #[inline]
    #[must_use]
    pub fn options(&self, frame: &[u8]) -> TcpOptions {
        TcpOptions::read(self.option_octets(frame), self.options_range().start)
    }

    /// The TCP options' octets.
    #[inline]
    #[must_use]
    pub fn option_octets<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.options_range()).unwrap_or_default()
    }

    /// Whether the segment travelled in IPv4.
    #[inline]
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.l3_len == 20
    }

    /// How much sequence space it takes: payload, and one each for SYN and FIN (RFC 9293 section 3.4).
    #[inline]
    #[must_use]
    pub fn seq_len(&self) -> u32 {
        u32::from(self.payload_len).wrapping_add(u32::from(self.flags.syn())).wrapping_add(u32::from(self.flags.fin()))
    }

    /// The sequence number after the segment's last.
    #[inline]
    #[must_use]
    pub fn seq_end(&self) -> Seq {
        self.seq.plus(self.seq_len())
    }
}

/// TCP flags, the low eight (RFC 9293 section 3.1).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Flags = Flags(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Flags = Flags(0x02);
    /// Reset the connection.
    pub const RST: Flags = Flags(0x04);
    /// Push.
    pub const PSH: Flags = Flags(0x08);
    /// The acknowledgment number is significant.
    pub const ACK: Flags = Flags(0x10);
    /// The urgent pointer is significant.
    pub const URG: Flags = Flags(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Flags = Flags(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Flags = Flags(0x80);

    /// Whether every flag of `other` is set.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags without `other`'s.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Flags) -> Flags {
        Flags(self.0 & !other.0)
    }

    /// Whether FIN is set.
    #[inline]
    #[must_use]
    pub const fn fin(self) -> bool {
        self.contains(Flags::FIN)
    }

    /// Whether SYN is set.
    #[inline]
    #[must_use]
    pub const fn syn(self) -> bool {
        self.contains(Flags::SYN)
    }

    /// Whether RST is set.
    #[inline]
    #[must_use]
    pub const fn rst(self) -> bool {
        self.contains(Flags::RST)
    }

    /// Whether PSH is set.
    #[inline]
    #[must_use]
    pub const fn psh(self) -> bool {
        self.contains(Flags::PSH)
    }

    /// Whether ACK is set.
    #[inline]
    #[must_use]
    pub const fn ack(self) -> bool {
        self.contains(Flags::ACK)
    }

    /// Whether URG is set.
    #[inline]
    #[must_use]
    pub const fn urg(self) -> bool {
        self.contains(Flags::URG)
    }

    /// Whether ECE is set.
    #[inline]
    #[must_use]
    pub const fn ece(self) -> bool {
        self.contains(Flags::ECE)
    }

    /// Whether CWR is set.
    #[inline]
    #[must_use]
    pub const fn cwr(self) -> bool {
        self.contains(Flags::CWR)
    }

    /// A SYN that opens: SYN without ACK.
    #[inline]
    #[must_use]
    pub const fn is_initial_syn(self) -> bool {
        self.0 & (Flags::SYN.0 | Flags::ACK.0) == Flags::SYN.0
    }

    /// Whether some TCP sends this combination: linux's conntrack's table (`tcp_valid_flags`), where PSH, ECE and CWR go with
    /// anything. SYN, SYN+URG, SYN+ACK, RST, RST+ACK, and ACK with any of FIN and URG.
    #[inline]
    #[must_use]
    pub const fn is_legal(self) -> bool {
        LEGAL >> (self.0 & 0x3f) & 1 == 1
    }
}

/// One bit for each value of the low six flags.
const LEGAL: u64 = {
    const F: u32 = 0x01;
    const S: u32 = 0x02;
    const R: u32 = 0x04;
    const P: u32 = 0x08;
    const A: u32 = 0x10;
    const U: u32 = 0x20;
    let plain = 1 << S | 1 << (S | U) | 1 << (S | A) | 1 << R | 1 << (R | A) | 1 << A | 1 << (A | U) | 1 << (A | F);
    let plain: u64 = plain | 1 << (A | F | U);
    plain | plain << P
};

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl std::fmt::Debug for Flags {
    /// `SYN|ACK`; `-` for none.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [
            (Flags::SYN, "SYN"),
            (Flags::FIN, "FIN"),
            (Flags::RST, "RST"),
            (Flags::PSH, "PSH"),
            (Flags::ACK, "ACK"),
            (Flags::URG, "URG"),
            (Flags::ECE, "ECE"),
            (Flags::CWR, "CWR"),
        ];
        let mut separator = "";
        for (_, name) in names.into_iter().filter(|(flag, _)| self.contains(*flag)) {
            write!(f, "{separator}{name}")?;
            separator = "|";
        }
        if separator.is_empty() { f.write_str("-") } else { Ok(()) }
    }
}

/// The frame's Ethernet destination; none when it is shorter than that.
#[inline]
#[must_use]
pub fn dst_mac(frame: &[u8]) -> Option<[u8; 6]> {
    frame.first_chunk::<6>().copied()
}

/// The frame's Ethernet source; none when it is shorter than that.
#[inline]
#[must_use]
pub fn src_mac(frame: &[u8]) -> Option<[u8; 6]> {
    frame.get(6..)?.first_chunk::<6>().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{parse, testkit};

    #[test]
    fn a_segment_fills_one_cache_line_at_most() {
        assert!(size_of::<Segment>() <= 64);
        assert!(size_of::<Result<Parsed, crate::DropReason>>() <= 72);
    }

    #[test]
    fn flags_are_printed_by_name() {
        assert_eq!(format!("{:?}", Flags::SYN | Flags::ACK), "SYN|ACK");
        assert_eq!(format!("{:?}", Flags(0)), "-");
    }

    #[test]
    fn syn_and_fin_take_sequence_space() {
        let len = |flags, payload: &[u8]| {
            let frame = testkit::tcp("192.0.2.7:1", "192.0.2.8:2").flags(flags).seq(u32::MAX).payload(payload).build();
            let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!("{flags:?}") };
            (segment.seq_len(), segment.seq_end())
        };
        assert_eq!(len(Flags::SYN, b""), (1, Seq(0)));
        assert_eq!(len(Flags::SYN, b"abc"), (4, Seq(3)));
        assert_eq!(len(Flags::ACK, b""), (0, Seq(u32::MAX)));
        assert_eq!(len(Flags::ACK | Flags::FIN, b"abc"), (4, Seq(3)));
        assert_eq!(len(Flags::RST, b""), (0, Seq(u32::MAX)));
    }

    #[test]
    fn only_a_syn_without_ack_opens() {
        assert!(Flags::SYN.is_initial_syn());
        assert!((Flags::SYN | Flags::ECE | Flags::CWR | Flags::PSH).is_initial_syn());
        assert!(!(Flags::SYN | Flags::ACK).is_initial_syn());
        assert!(!Flags::ACK.is_initial_syn());
    }

    #[test]
    fn a_frame_that_is_not_the_one_parsed_gives_nothing_and_no_panic() {
        let frame = testkit::tcp("192.0.2.7:1", "192.0.2.8:2").payload(b"abc").build();
        let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!() };
        assert_eq!(segment.payload(&frame), b"abc");
        for len in 0..frame.len() {
            assert!(segment.payload(&frame[..len]).is_empty());
            assert!(segment.packet(&frame[..len]).is_empty());
            let _ = segment.options(&frame[..len]);
        }
    }

    #[test]
    fn macs_are_read_from_whole_headers_only() {
        let frame = testkit::tcp("192.0.2.7:1", "192.0.2.8:2").build();
        assert_eq!((dst_mac(&frame), src_mac(&frame)), (Some(testkit::OUR_MAC), Some(testkit::PEER_MAC)));
        assert_eq!((dst_mac(&frame[..5]), src_mac(&frame[..11]), src_mac(&frame[..3])), (None, None, None));
    }
}
