//! Link types that are not Ethernet, turned into Ethernet.
//!
//! <https://www.tcpdump.org/linktypes.html>. The stations' addresses are made up (locally administered), except that a
//! packet captured as broadcast or multicast goes to a group address, which the filters look at.

use sluice_filters::testkit::{OUR_MAC, PEER_MAC};

/// What [`Link`] knows, for messages.
pub(super) const SUPPORTED: &str = "Ethernet (1), raw IP (101), Linux cooked (113, 276) and loopback (0, 108)";

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// An EtherType nobody has.
const NONE: u16 = 0xffff;

/// A link type we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Ethernet,
    /// IPv4 or IPv6, by the version in the packet.
    Ip,
    Ipv4,
    Ipv6,
    /// The capturing machine's `AF_` number in its byte order (BSD's `lo0`), or in network order (OpenBSD's).
    Loopback,
    /// Linux's cooked header, as `-i any` gives it.
    Cooked,
    /// Its second version.
    Cooked2,
}

impl Link {
    pub(super) fn from_number(number: u32) -> Option<Link> {
        Some(match number {
            1 => Link::Ethernet,
            // 12 and 14 are what some systems write instead of 101.
            12 | 14 | 101 => Link::Ip,
            228 => Link::Ipv4,
            229 => Link::Ipv6,
            0 | 108 => Link::Loopback,
            113 => Link::Cooked,
            276 => Link::Cooked2,
            _ => return None,
        })
    }

    /// The Ethernet header to put in place of the packet's own, and the length of that; none when the packet ends inside it.
    /// Not for Ethernet.
    pub(super) fn ethernet_header(self, packet: &[u8]) -> Option<([u8; 14], usize)> {
        match self {
            Link::Ip if packet.first()? >> 4 == 6 => Some((header(OUR_MAC, IPV6), 0)),
            Link::Ethernet | Link::Ip | Link::Ipv4 => Some((header(OUR_MAC, IPV4), 0)),
            Link::Ipv6 => Some((header(OUR_MAC, IPV6), 0)),
            Link::Loopback => {
                let family = u32::from_be_bytes(*packet.first_chunk()?);
                let family = if family > 0xffff { family.swap_bytes() } else { family };
                let ether_type = match family {
                    2 => IPV4,
                    // Linux, NetBSD and OpenBSD, FreeBSD, macOS.
                    10 | 24 | 28 | 30 => IPV6,
                    _ => NONE,
                };
                Some((header(OUR_MAC, ether_type), 4))
            }
            Link::Cooked => {
                let &[_, kind, hardware0, hardware1, .., protocol0, protocol1] = packet.first_chunk::<16>()?;
                let hardware = u16::from_be_bytes([hardware0, hardware1]);
                Some((cooked(kind, hardware, u16::from_be_bytes([protocol0, protocol1])), 16))
            }
            Link::Cooked2 => {
                let &[protocol0, protocol1, _, _, _, _, _, _, hardware0, hardware1, kind, ..] =
                    packet.first_chunk::<20>()?;
                let hardware = u16::from_be_bytes([hardware0, hardware1]);
                Some((cooked(kind, hardware, u16::from_be_bytes([protocol0, protocol1])), 20))
            }
        }
    }
}

fn cooked(kind: u8, hardware: u16, protocol: u16) -> [u8; 14] {
    let to = match kind {
        1 => [0xff; 6],
        2 => [0x03, 0, 0, 0, 0, 0x01],
        _ => OUR_MAC,
    };
    // Frame relay, 802.11 with radiotap and netlink: their protocol is no EtherType.
    header(to, if matches!(hardware, 770 | 803 | 824) { NONE } else { protocol })
}

fn header(to: [u8; 6], ether_type: u16) -> [u8; 14] {
    let mut header = [0; 14];
    header[..6].copy_from_slice(&to);
    header[6..12].copy_from_slice(&PEER_MAC);
    header[12..].copy_from_slice(&ether_type.to_be_bytes());
    header
}

/// `127 (802.11 with radiotap)`
pub(super) fn name(number: u32) -> String {
    let name = match number {
        3 => "AX.25",
        6 => "token ring",
        8 => "SLIP",
        9 | 50 => "PPP",
        51 => "PPPoE",
        104 => "Cisco HDLC",
        105 => "802.11",
        119 | 163 => "802.11 with another header",
        127 => "802.11 with radiotap",
        147..=162 => "reserved for private use",
        187 | 201 => "Bluetooth",
        189 | 220 | 249 => "USB",
        192 => "PPI",
        195 | 230 => "802.15.4",
        227 => "CAN",
        239 => "NFLOG",
        240 => "NetAnalyzer",
        247 => "InfiniBand",
        253 => "netlink",
        _ => return number.to_string(),
    };
    format!("{number} ({name})")
}
