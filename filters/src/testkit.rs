//! Frames for tests, tools and benchmarks: valid unless told otherwise. Not for the packet path: it allocates and panics.
//!
//! ```
//! use sluice_filters::{Flags, testkit};
//!
//! let frame = testkit::tcp("192.0.2.7:40000", "198.51.100.10:443")
//!     .flags(Flags::SYN)
//!     .seq(7)
//!     .options([testkit::Opt::Mss(1460), testkit::Opt::SackPermitted])
//!     .build();
//! assert_eq!(frame.len(), 14 + 20 + 20 + 8);
//! ```

pub mod mmdb;

use std::net::{IpAddr, SocketAddr};

use crate::addr::Addr;
use crate::checksum;
use crate::packet::Flags;

/// The Ethernet source of built frames.
pub const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// The Ethernet destination of built frames.
pub const OUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

/// An address and port, from whatever a test has at hand.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint(SocketAddr);

impl From<SocketAddr> for Endpoint {
    fn from(at: SocketAddr) -> Endpoint {
        Endpoint(at)
    }
}

impl From<(IpAddr, u16)> for Endpoint {
    fn from(at: (IpAddr, u16)) -> Endpoint {
        Endpoint(at.into())
    }
}

impl From<(Addr, u16)> for Endpoint {
    fn from((addr, port): (Addr, u16)) -> Endpoint {
        Endpoint((addr.to_ip(), port).into())
    }
}

impl From<&str> for Endpoint {
    /// # Panics
    /// On anything but `address:port`.
    fn from(at: &str) -> Endpoint {
        Endpoint(at.parse().unwrap_or_else(|_| panic!("not an address and port: {at}")))
    }
}

/// A TCP option to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opt {
    /// Maximum segment size.
    Mss(u16),
    /// Window scale.
    WindowScale(u8),
    /// SACK permitted.
    SackPermitted,
    /// TSval and TSecr.
    Timestamp(u32, u32),
    /// SACK blocks, left and right edge each.
    Sack(Vec<(u32, u32)>),
    /// No operation.
    Nop,
    /// End of the list.
    End,
    /// Octets as they are.
    Raw(Vec<u8>),
}

impl Opt {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Opt::Mss(mss) => {
                out.extend([2, 4]);
                out.extend(mss.to_be_bytes());
            }
            Opt::WindowScale(shift) => out.extend([3, 3, *shift]),
            Opt::SackPermitted => out.extend([4, 2]),
            Opt::Timestamp(value, echo) => {
                out.extend([8, 10]);
                out.extend(value.to_be_bytes());
                out.extend(echo.to_be_bytes());
            }
            Opt::Sack(blocks) => {
                out.extend([5, 2 + 8 * blocks.len() as u8]);
                for (left, right) in blocks {
                    out.extend(left.to_be_bytes());
                    out.extend(right.to_be_bytes());
                }
            }
            Opt::Nop => out.push(1),
            Opt::End => out.push(0),
            Opt::Raw(raw) => out.extend(raw),
        }
    }
}

/// Link and IP header of a frame to build.
#[derive(Clone, Debug)]
struct Envelope {
    dst_mac: [u8; 6],
    src_mac: [u8; 6],
    vlan: Option<u16>,
    src: IpAddr,
    dst: IpAddr,
    hop_limit: u8,
    tos: u8,
    min_len: usize,
}

impl Envelope {
    fn new(src: IpAddr, dst: IpAddr) -> Envelope {
        assert_eq!(src.is_ipv4(), dst.is_ipv4(), "{src} and {dst} are of different families");
        let (dst_mac, src_mac) = (OUR_MAC, PEER_MAC);
        Envelope { dst_mac, src_mac, vlan: None, src, dst, hop_limit: 64, tos: 0, min_len: 0 }
    }

    /// The frame around `l4`, and where `l4` starts in it.
    fn wrap(&self, protocol: u8, l4: &[u8]) -> (Vec<u8>, usize) {
        let ether_type: u16 = if self.src.is_ipv4() { 0x0800 } else { 0x86dd };
        let mut frame = ethernet(self.dst_mac, self.src_mac, self.vlan, ether_type, &[]);
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header = [0; 20];
                header[0] = 0x45;
                header[1] = self.tos;
                header[2..4].copy_from_slice(&u16::try_from(20 + l4.len()).expect("fits IPv4").to_be_bytes());
                header[6] = 0x40; // don't fragment
                header[8] = self.hop_limit;
                header[9] = protocol;
                header[12..16].copy_from_slice(&src.octets());
                header[16..20].copy_from_slice(&dst.octets());
                checksum::fill_ipv4_header(&mut header);
                frame.extend(header);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend([0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
                frame.extend(u16::try_from(l4.len()).expect("fits IPv6").to_be_bytes());
                frame.extend([protocol, self.hop_limit]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
            }
            _ => unreachable!("new() checked the families"),
        }
        let at = frame.len();
        frame.extend(l4);
        frame.resize(frame.len().max(self.min_len), 0);
        (frame, at)
    }
}

/// The builders' common methods.
macro_rules! envelope_methods {
    () => {
        /// Puts an 802.1Q tag with this VLAN id (and priority bits) in front. Default none.
        pub fn vlan(mut self, tag: u16) -> Self {
            self.envelope.vlan = Some(tag);
            self
        }

        /// TTL or hop limit. Default 64.
        pub fn hop_limit(mut self, hop_limit: u8) -> Self {
            self.envelope.hop_limit = hop_limit;
            self
        }

        /// IPv4 TOS or IPv6 traffic class. Default 0.
        pub fn tos(mut self, tos: u8) -> Self {
            self.envelope.tos = tos;
            self
        }

        /// Ethernet source. Default [`PEER_MAC`].
        pub fn src_mac(mut self, mac: [u8; 6]) -> Self {
            self.envelope.src_mac = mac;
            self
        }

        /// Ethernet destination. Default [`OUR_MAC`].
        pub fn dst_mac(mut self, mac: [u8; 6]) -> Self {
            self.envelope.dst_mac = mac;
            self
        }

        /// Pads the frame with zeros to at least this length, as Ethernet does (60). Default no padding.
        pub fn pad_to(mut self, len: usize) -> Self {
            self.envelope.min_len = len;
            self
        }
    };
}

/// Builds a TCP frame; see [`tcp`].
#[derive(Clone, Debug)]
#[must_use]
pub struct TcpBuilder {
    envelope: Envelope,
    src_port: u16,
    dst_port: u16,
    flags: Flags,
    seq: u32,
    ack: u32,
    window: u16,
    urgent: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

/// A TCP segment from `src` to `dst`: ACK, seq 1, ack 1, window 65,535, no options, no payload, no padding.
///
/// # Panics
/// When the two are of different families.
pub fn tcp(src: impl Into<Endpoint>, dst: impl Into<Endpoint>) -> TcpBuilder {
    let (Endpoint(src), Endpoint(dst)) = (src.into(), dst.into());
    TcpBuilder {
        envelope: Envelope::new(src.ip(), dst.ip()),
        src_port: src.port(),
        dst_port: dst.port(),
        flags: Flags::ACK,
        seq: 1,
        ack: 1,
        window: 65_535,
        urgent: 0,
        options: Vec::new(),
        payload: Vec::new(),
    }
}

impl TcpBuilder {
    envelope_methods!();

    /// The flags, all of them. Default ACK.
    pub fn flags(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    /// Sequence number.
    pub fn seq(mut self, seq: u32) -> Self {
        self.seq = seq;
        self
    }

    /// Acknowledgment number; the flag is set by [`TcpBuilder::flags`].
    pub fn ack(mut self, ack: u32) -> Self {
        self.ack = ack;
        self
    }

    /// Window field.
    pub fn window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }

    /// Urgent pointer.
    pub fn urgent(mut self, urgent: u16) -> Self {
        self.urgent = urgent;
        self
    }

    /// Options, in this order; padded with zeros to whole words.
    pub fn options(mut self, options: impl AsRef<[Opt]>) -> Self {
        self.options.clear();
        options.as_ref().iter().for_each(|option| option.write(&mut self.options));
        self.options.resize(self.options.len().next_multiple_of(4), 0);
        self
    }

    /// Octets of options so far, padding included; TCP has room for 40.
    #[must_use]
    pub fn options_len(&self) -> usize {
        self.options.len()
    }

    /// Payload.
    pub fn payload(mut self, payload: impl AsRef<[u8]>) -> Self {
        self.payload = payload.as_ref().to_vec();
        self
    }

    /// The frame, checksums filled.
    ///
    /// # Panics
    /// When the options are longer than 40 octets, or the packet longer than IP allows.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        assert!(self.options.len() <= 40, "TCP options of {} octets", self.options.len());
        let mut segment = Vec::with_capacity(20 + self.options.len() + self.payload.len());
        segment.extend(self.src_port.to_be_bytes());
        segment.extend(self.dst_port.to_be_bytes());
        segment.extend(self.seq.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.extend([(20 + self.options.len() as u8) << 2, self.flags.0]);
        segment.extend(self.window.to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(self.urgent.to_be_bytes());
        segment.extend(&self.options);
        segment.extend(&self.payload);
        checksum::fill_tcp(&mut segment, self.envelope.src.into(), self.envelope.dst.into());
        self.envelope.wrap(checksum::TCP, &segment).0
    }
}

/// Builds an IP frame with any protocol; see [`ip`].
#[derive(Clone, Debug)]
#[must_use]
pub struct IpBuilder {
    envelope: Envelope,
    protocol: u8,
    payload: Vec<u8>,
}

/// An IP packet with `protocol` (for IPv6: next header) and no payload. ICMP and ICMPv6 checksums are filled in.
///
/// # Panics
/// On anything but two addresses of one family.
pub fn ip(src: &str, dst: &str, protocol: u8) -> IpBuilder {
    let parse = |addr: &str| addr.parse::<IpAddr>().unwrap_or_else(|_| panic!("not an address: {addr}"));
    IpBuilder { envelope: Envelope::new(parse(src), parse(dst)), protocol, payload: Vec::new() }
}

impl IpBuilder {
    envelope_methods!();

    /// What follows the IP header.
    pub fn payload(mut self, payload: impl AsRef<[u8]>) -> Self {
        self.payload = payload.as_ref().to_vec();
        self
    }

    /// The frame.
    ///
    /// # Panics
    /// When the packet is longer than IP allows.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut payload = self.payload.clone();
        let check = match self.protocol {
            checksum::ICMP if self.envelope.src.is_ipv4() => Some(checksum::icmp_checksum(&payload)),
            checksum::ICMP6 if self.envelope.src.is_ipv6() => {
                Some(checksum::icmp6_checksum(&payload, self.envelope.src.into(), self.envelope.dst.into()))
            }
            _ => None,
        };
        if let (Some(check), Some(field)) = (check, payload.get_mut(2..4)) {
            field.copy_from_slice(&check.to_be_bytes());
        }
        self.envelope.wrap(self.protocol, &payload).0
    }
}

/// An Ethernet frame around `payload`, with an 802.1Q tag when there is a `vlan`.
#[must_use]
pub fn ethernet(dst: [u8; 6], src: [u8; 6], vlan: Option<u16>, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(18 + payload.len());
    frame.extend(dst);
    frame.extend(src);
    if let Some(tag) = vlan {
        frame.extend([0x81, 0]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Makes the checksums of an IPv4 or IPv6 frame right again after a test changed its octets, as far as its lengths still make
/// sense: IPv4's without options, and TCP's when TCP follows the IP header directly.
pub fn fix_checksums(frame: &mut [u8]) {
    let Some(kind) = frame.get(12..14) else { return };
    let (at, kind) = match *kind {
        [0x81, 0] => (18, frame.get(16..18)),
        _ => (14, Some(kind)),
    };
    let kind = kind.map(<[u8]>::to_vec);
    let Some(packet) = frame.get_mut(at..) else { return };
    match kind.as_deref() {
        Some([0x08, 0x00]) => {
            let Some((header, rest)) = packet.split_first_chunk_mut::<20>() else { return };
            checksum::fill_ipv4_header(header);
            let addr =
                |at: usize| Addr::v4(u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
            let len = usize::from(u16::from_be_bytes([header[2], header[3]])).saturating_sub(20);
            if let (checksum::TCP, Some(segment)) = (header[9], rest.get_mut(..len)) {
                checksum::fill_tcp(segment, addr(12), addr(16));
            }
        }
        Some([0x86, 0xdd]) => {
            let Some((header, rest)) = packet.split_first_chunk_mut::<40>() else { return };
            let addr = |at: usize| Addr::v6(std::array::from_fn(|i| header[at + i]));
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            if let (checksum::TCP, Some(segment)) = (header[6], rest.get_mut(..len)) {
                checksum::fill_tcp(segment, addr(8), addr(24));
            }
        }
        _ => {}
    }
}
