//! Ethernet frames with TCP inside, built octet by octet where tests want them odd.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader};

/// TCP flags as in the header's fourteenth octet.
pub mod flags {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// PSH.
    pub const PSH: u8 = 0x08;
    /// ACK.
    pub const ACK: u8 = 0x10;
    /// ECE, RFC 3168.
    pub const ECE: u8 = 0x40;
    /// CWR, RFC 3168.
    pub const CWR: u8 = 0x80;
}

/// A TCP segment to be framed.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// Ethernet source.
    pub from_mac: [u8; 6],
    /// Ethernet destination.
    pub to_mac: [u8; 6],
    /// Source.
    pub from: SocketAddr,
    /// Destination, of the same family.
    pub to: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number; on the wire even without the ACK flag.
    pub ack: u32,
    /// Flags, see [`flags`].
    pub flags: u8,
    /// Window field.
    pub window: u16,
    /// Options, padded to a multiple of four by us.
    pub options: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// The frame, with right lengths and checksums.
    ///
    /// # Panics
    /// When the families differ, or options or payload are too long for their headers.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mut tcp = TcpHeader::new(self.from.port(), self.to.port(), self.seq, self.window);
        tcp.acknowledgment_number = self.ack;
        tcp.set_options_raw(self.options).expect("at most 40 octets of options");
        let length = tcp.header_len() + self.payload.len();
        let mut frame = Vec::with_capacity(14 + 40 + length);
        let ether_type = if self.from.is_ipv4() { etherparse::EtherType::IPV4 } else { etherparse::EtherType::IPV6 };
        let ethernet = Ethernet2Header { source: self.from_mac, destination: self.to_mac, ether_type };
        frame.extend_from_slice(&ethernet.to_bytes());
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let length = u16::try_from(length).expect("fits an IPv4 packet");
                let mut ip = Ipv4Header::new(length, 64, IpNumber::TCP, from.octets(), to.octets())
                    .expect("fits an IPv4 packet");
                ip.dont_fragment = true;
                ip.header_checksum = ip.calc_header_checksum();
                frame.extend_from_slice(&ip.to_bytes());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let ip = Ipv6Header {
                    payload_length: u16::try_from(length).expect("fits an IPv6 packet"),
                    next_header: IpNumber::TCP,
                    hop_limit: 64,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                frame.extend_from_slice(&ip.to_bytes());
            }
            (from, to) => panic!("{from} and {to} are of different families"),
        }
        let start = frame.len();
        frame.extend_from_slice(&tcp.to_bytes());
        frame.extend_from_slice(self.payload);
        frame[start + 13] = self.flags;
        seal(&mut frame);
        frame
    }
}

/// A frame whose IPv6 packet bears a fragment header for no reason: it is whole (RFC 6946). Other frames as they are.
///
/// # Panics
/// For a frame without an IP header.
#[must_use]
pub fn atomic_fragment(frame: &[u8]) -> Vec<u8> {
    const IP: usize = 14;
    let mut frame = frame.to_vec();
    if frame[12..14] == [0x86, 0xdd] {
        let length = u16::from_be_bytes([frame[IP + 4], frame[IP + 5]]) + 8;
        frame[IP + 4..IP + 6].copy_from_slice(&length.to_be_bytes());
        let next = std::mem::replace(&mut frame[IP + 6], 44);
        frame.splice(IP + 40..IP + 40, [next, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef]);
    }
    frame
}

/// An ICMP or ICMPv6 message to the sender of the IP packet `quoted`: it was too big for the next link, which takes `mtu` octets.
///
/// # Panics
/// When `quoted` is no IP packet, or of another family than `reporter`.
#[must_use]
pub fn too_big(from_mac: [u8; 6], to_mac: [u8; 6], reporter: IpAddr, quoted: &[u8], mtu: u16) -> Vec<u8> {
    let [high, low] = mtu.to_be_bytes();
    let builder = PacketBuilder::ethernet2(from_mac, to_mac);
    let mut frame = Vec::new();
    let written = match reporter {
        IpAddr::V4(reporter) => {
            let sender = quoted[12..16].try_into().expect("four octets");
            builder.ipv4(reporter.octets(), sender, 64).icmpv4_raw(3, 4, [0, 0, high, low]).write(&mut frame, quoted)
        }
        IpAddr::V6(reporter) => {
            let sender = quoted[8..24].try_into().expect("sixteen octets");
            builder.ipv6(reporter.octets(), sender, 64).icmpv6_raw(2, 0, [0, 0, high, low]).write(&mut frame, quoted)
        }
    };
    written.expect("a Vec takes it");
    frame
}

/// Makes the checksums of an untagged IPv4 or IPv6 frame right: the IPv4 header's, and TCP's where there is a TCP header.
/// Lengths are taken from the frame, not from its headers: those may be wrong on purpose.
pub fn seal(frame: &mut [u8]) {
    let (l4, addresses) = match frame.get(12..14) {
        Some([0x08, 0x00]) => {
            let l4 = 14 + usize::from(frame[14] & 0x0f).max(5) * 4;
            frame[24..26].fill(0);
            let sum = checksum(&[&frame[14..l4.min(frame.len())]]);
            frame[24..26].copy_from_slice(&sum);
            if frame[23] != 6 {
                return;
            }
            (l4, 26..34)
        }
        Some([0x86, 0xdd]) if frame[20] == 6 => (54, 22..54),
        _ => return,
    };
    if frame.len() < l4 + 20 {
        return;
    }
    frame[l4 + 16..l4 + 18].fill(0);
    let length = u16::try_from(frame.len() - l4).expect("frames are short").to_be_bytes();
    let sum = checksum(&[&frame[addresses], &[0, 6], &length, &frame[l4..]]);
    frame[l4 + 16..l4 + 18].copy_from_slice(&sum);
}

/// The Internet checksum (RFC 1071) over `parts`, all but the last of even length.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0u64;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{SlicedPacket, TransportSlice};

    #[test]
    fn a_built_frame_parses_back_with_right_checksums() {
        for (from, to) in [("192.0.2.1:9", "192.0.2.2:80"), ("[2001:db8::1]:9", "[2001:db8::2]:80")] {
            let segment = Segment {
                from_mac: [2; 6],
                to_mac: [4; 6],
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                seq: 7,
                ack: 8,
                flags: flags::SYN | flags::ECE,
                window: 99,
                options: &[2, 4, 5, 180, 4, 2],
                payload: b"odd",
            };
            let frame = segment.frame();
            let parsed = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = parsed.transport else { panic!("not TCP") };
            assert!(tcp.syn() && tcp.ece() && !tcp.ack());
            assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number(), tcp.payload()), (7, 8, &b"odd"[..]));
            assert_eq!(tcp.options(), [2, 4, 5, 180, 4, 2, 0, 0]);
            let mut sealed = frame.clone();
            seal(&mut sealed);
            assert_eq!(frame, sealed);
            sluice_filters::parse(&frame, sluice_filters::RxChecksums::default()).unwrap();
        }
    }
}
