//! The PROXY header: the first octets an upstream reads, naming the client.
//!
//! Encoded by the crate `proxy-protocol` after HAProxy's specification, version 1 (text, section 2.1) and version 2
//! (binary, section 2.2), command PROXY over TCP. Encoded once per session, then held in a fixed buffer and copied from
//! there; nothing is allocated afterwards.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use proxy_protocol::{ProxyHeader, version1, version2};
use sluice_config::ProxyProtocol;

/// The longest version 1 header, line end included (specification section 2.1).
pub const V1_MAX: usize = 107;

/// The version 2 header of an IPv6 connection, without extensions.
pub const V2_MAX: usize = 52;

/// What a version 1 sender writes when it cannot name the client (specification section 2.1).
const UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

/// A PROXY header's octets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header {
    octets: [u8; V1_MAX],
    len: u8,
}

/// Both ends of a connection in one family.
enum Ends {
    V4(SocketAddrV4, SocketAddrV4),
    V6(SocketAddrV6, SocketAddrV6),
}

fn ends(client: SocketAddr, listen: SocketAddr) -> Ends {
    match (client.ip().to_canonical(), listen.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            Ends::V4(SocketAddrV4::new(from, client.port()), SocketAddrV4::new(to, listen.port()))
        }
        // A header has one family: beside an IPv6 address an IPv4 one is written mapped (RFC 4291 section 2.5.5.2).
        (from, to) => {
            let mapped = |ip: IpAddr, port| {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                SocketAddrV6::new(ip, port, 0, 0)
            };
            Ends::V6(mapped(from, client.port()), mapped(to, listen.port()))
        }
    }
}

/// The longest header of a version, octets; none without header.
#[must_use]
pub fn longest(version: ProxyProtocol) -> Option<u16> {
    match version {
        ProxyProtocol::Off => None,
        ProxyProtocol::V1 => Some(V1_MAX as u16),
        ProxyProtocol::V2 => Some(V2_MAX as u16),
    }
}

impl Header {
    /// The header of a configured version; none where there is none.
    #[must_use]
    pub fn of(version: ProxyProtocol, client: SocketAddr, listen: SocketAddr) -> Option<Header> {
        match version {
            ProxyProtocol::Off => None,
            ProxyProtocol::V1 => Some(Header::v1(client, listen)),
            ProxyProtocol::V2 => Some(Header::v2(client, listen)),
        }
    }

    /// The version 1 header for a connection from `client` to `listen`.
    #[must_use]
    pub fn v1(client: SocketAddr, listen: SocketAddr) -> Header {
        let addresses = match ends(client, listen) {
            Ends::V4(source, destination) => version1::ProxyAddresses::Ipv4 { source, destination },
            Ends::V6(source, destination) => version1::ProxyAddresses::Ipv6 { source, destination },
        };
        Header::encode(ProxyHeader::Version1 { addresses })
    }

    /// The version 2 header for a connection from `client` to `listen`.
    #[must_use]
    pub fn v2(client: SocketAddr, listen: SocketAddr) -> Header {
        let addresses = match ends(client, listen) {
            Ends::V4(source, destination) => version2::ProxyAddresses::Ipv4 { source, destination },
            Ends::V6(source, destination) => version2::ProxyAddresses::Ipv6 { source, destination },
        };
        Header::encode(ProxyHeader::Version2 {
            command: version2::ProxyCommand::Proxy,
            transport_protocol: version2::ProxyTransportProtocol::Stream,
            addresses,
        })
    }

    /// The octets to send.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.octets.get(..usize::from(self.len)).unwrap_or_default()
    }

    fn encode(header: ProxyHeader) -> Header {
        // The encoder fails only as a writer could, and it writes to memory.
        let encoded = proxy_protocol::encode(header);
        let written = encoded.as_deref().ok().filter(|octets| octets.len() <= V1_MAX).unwrap_or(UNKNOWN);
        let mut header = Header { octets: [0; V1_MAX], len: 0 };
        for (slot, octet) in header.octets.iter_mut().zip(written) {
            *slot = *octet;
            header.len = header.len.saturating_add(1);
        }
        header
    }
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Header({})", self.as_slice().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn v1_lines_are_as_the_specification_writes_them() {
        let line = |client, listen| Header::v1(at(client), at(listen)).as_slice().to_vec();
        assert_eq!(
            line("255.255.255.255:65535", "255.255.255.255:65535"),
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"
        );
        assert_eq!(line("192.168.0.1:56324", "192.168.0.11:443"), b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
        assert_eq!(line("[2001:db8::1]:1", "[2001:db8::10]:22"), b"PROXY TCP6 2001:db8::1 2001:db8::10 1 22\r\n");
    }

    #[test]
    fn longest_v1_line_fits() {
        let longest = "[1111:2222:3333:4444:5555:6666:7777:8888]:65535";
        let header = Header::v1(at(longest), at(longest));
        assert_eq!(header.as_slice().len(), 104);
        assert!(header.as_slice().ends_with(b" 65535 65535\r\n"));
    }

    #[test]
    fn v2_ipv4_header_is_28_octets_of_the_specified_layout() {
        let header = Header::v2(at("192.0.2.1:56324"), at("198.51.100.10:443"));
        let mut expected = SIGNATURE.to_vec();
        expected.extend([0x21, 0x11, 0, 12]);
        expected.extend([192, 0, 2, 1, 198, 51, 100, 10]);
        expected.extend([0xdc, 0x04, 0x01, 0xbb]);
        assert_eq!(header.as_slice(), expected);
        assert_eq!(expected.len(), 28);
    }

    #[test]
    fn v2_ipv6_header_is_52_octets_of_the_specified_layout() {
        let header = Header::v2(at("[2001:db8::1]:56324"), at("[2001:db8::10]:443"));
        let mut expected = SIGNATURE.to_vec();
        expected.extend([0x21, 0x21, 0, 36]);
        expected.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        expected.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10]);
        expected.extend([0xdc, 0x04, 0x01, 0xbb]);
        assert_eq!(header.as_slice(), expected);
        assert_eq!(expected.len(), V2_MAX);
    }

    #[test]
    fn mixed_families_are_written_as_ipv6() {
        let (client, listen) = (at("192.0.2.1:5"), at("[2001:db8::10]:443"));
        assert_eq!(Header::v1(client, listen).as_slice(), b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::10 5 443\r\n");
        let v2 = Header::v2(client, listen);
        assert_eq!(v2.as_slice()[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(v2.as_slice()[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
    }

    proptest! {
        #[test]
        fn the_crates_own_parser_reads_both_versions(
            client: IpAddr, listen: IpAddr, client_port: u16, listen_port: u16,
        ) {
            let (client, listen) = (SocketAddr::new(client, client_port), SocketAddr::new(listen, listen_port));
            for header in [Header::v1(client, listen), Header::v2(client, listen)] {
                let mut octets = header.as_slice();
                let read = match proxy_protocol::parse(&mut octets).unwrap() {
                    ProxyHeader::Version1 { addresses: version1::ProxyAddresses::Ipv4 { source, destination } }
                    | ProxyHeader::Version2 {
                        command: version2::ProxyCommand::Proxy,
                        transport_protocol: version2::ProxyTransportProtocol::Stream,
                        addresses: version2::ProxyAddresses::Ipv4 { source, destination },
                    } => (SocketAddr::V4(source), SocketAddr::V4(destination)),
                    ProxyHeader::Version1 { addresses: version1::ProxyAddresses::Ipv6 { source, destination } }
                    | ProxyHeader::Version2 {
                        command: version2::ProxyCommand::Proxy,
                        transport_protocol: version2::ProxyTransportProtocol::Stream,
                        addresses: version2::ProxyAddresses::Ipv6 { source, destination },
                    } => (SocketAddr::V6(source), SocketAddr::V6(destination)),
                    other => panic!("{other:?}"),
                };
                prop_assert!(octets.is_empty());
                prop_assert_eq!(read.0.ip().to_canonical(), client.ip().to_canonical());
                prop_assert_eq!(read.1.ip().to_canonical(), listen.ip().to_canonical());
                prop_assert_eq!((read.0.port(), read.1.port()), (client_port, listen_port));
            }
        }
    }
}
