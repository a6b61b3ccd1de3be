//! The PROXY header: the first octets an upstream reads, naming the client.
//!
//! After HAProxy's specification, version 1 (text, section 2.1) and version 2 (binary, section 2.2), command PROXY over TCP.
//! The address block is encoded and parsed by the crate `proxy-protocol`; the TLVs behind it are ours ([`tlv`]): a host
//! name, a unique id, what the handshake showed of the client ([`Evidence`]), a MAC that tells who wrote the header
//! ([`Keys`]), a checksum. `docs/proxy-protocol.md` has the layouts for those who read them elsewhere.
//!
//! A header is encoded once per session, then copied from where it is held. [`read()`] and [`verify()`] are the other side,
//! for headers that come to us and for tools.
//!
//! Invariants: a header is at most [`HEADER_MAX`] octets long; no input makes a reader panic.

mod auth;
mod evidence;
mod read;
pub mod tlv;
mod verify;

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use proxy_protocol::{ProxyHeader, version1, version2};

pub use auth::{KeyRing, Keys, UnixMillis};
pub use evidence::{Evidence, OPTION_KINDS_MAX, OptionKinds};
pub use read::{Addresses, Command, Malformed, READ_MAX, Read, ReadError, Version, begins_header, read};
pub use verify::{Verified, VerifyError, verify};

/// The longest header that is written.
pub const HEADER_MAX: usize = 512;

/// The longest version 1 header, line end included (specification section 2.1).
pub const V1_MAX: usize = 107;

/// The version 2 header of an IPv6 connection, without extensions.
pub const V2_MAX: usize = 52;

// All extensions at their longest.
const _: () = assert!(
    V2_MAX
        + (tlv::HEAD + tlv::AUTHORITY_MAX)
        + (tlv::HEAD + tlv::UNIQUE_ID_LEN)
        + (tlv::HEAD + evidence::ENCODED_MAX)
        + (tlv::HEAD + auth::ENCODED)
        + (tlv::HEAD + tlv::CRC32C_LEN)
        <= HEADER_MAX
);

/// What a version 2 sender writes when the encoder gives nothing, which it never does: PROXY, unspecified.
const UNSPECIFIED: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0";

/// What a version 1 sender writes when it cannot name the client (specification section 2.1).
const UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

/// A PROXY header's octets, at most [`HEADER_MAX`].
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    octets: Box<[u8]>,
}

/// What a version 2 header says besides the addresses. TLVs stand in the order of these fields; the default has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras<'a> {
    /// A host name, 1 to [`tlv::AUTHORITY_MAX`] octets; others are left out.
    pub authority: Option<&'a str>,
    /// A name of this connection that no other has.
    pub unique_id: Option<[u8; tlv::UNIQUE_ID_LEN]>,
    /// What the handshake showed of the client.
    pub evidence: Option<Evidence>,
    /// The keys to sign with, and the time. Keys without a first one sign nothing.
    pub sign: Option<(&'a Keys, UnixMillis)>,
    /// Whether a checksum follows, for receivers that verify it.
    pub crc32c: bool,
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

impl Header {
    /// The version 1 header for a connection from `client` to `listen`.
    #[must_use]
    pub fn v1(client: SocketAddr, listen: SocketAddr) -> Header {
        let addresses = match ends(client, listen) {
            Ends::V4(source, destination) => version1::ProxyAddresses::Ipv4 { source, destination },
            Ends::V6(source, destination) => version1::ProxyAddresses::Ipv6 { source, destination },
        };
        Header { octets: encode(ProxyHeader::Version1 { addresses }, UNKNOWN).into() }
    }

    /// The version 2 header for a connection from `client` to `listen`.
    #[must_use]
    pub fn v2(client: SocketAddr, listen: SocketAddr) -> Header {
        Header { octets: v2_octets(client, listen).into() }
    }

    /// The version 2 header with TLVs. A checksum is over the signed header, since receivers verify it first and know
    /// nothing of signatures.
    #[must_use]
    pub fn v2_with(client: SocketAddr, listen: SocketAddr, extras: &Extras<'_>) -> Header {
        let mut octets = v2_octets(client, listen);
        if let Some(authority) = extras.authority
            && (1..=tlv::AUTHORITY_MAX).contains(&authority.len())
        {
            tlv::put(&mut octets, tlv::AUTHORITY, authority.as_bytes());
        }
        if let Some(id) = &extras.unique_id {
            tlv::put(&mut octets, tlv::UNIQUE_ID, id);
        }
        if let Some(evidence) = &extras.evidence {
            tlv::put(&mut octets, tlv::EVIDENCE, &evidence.encode());
        }
        let signature = extras.sign.and_then(|(keys, at)| Some((keys, auth::unsigned(keys, at)?)));
        let signature = signature.map(|(keys, value)| (keys, tlv::put(&mut octets, tlv::AUTHENTICATION, &value)));
        let checksum_at = extras.crc32c.then(|| tlv::put(&mut octets, tlv::CRC32C, &[0; tlv::CRC32C_LEN]));
        tlv::set_length(&mut octets);
        if let Some((keys, at)) = signature
            && let Some(mac) = keys.sign(&octets)
        {
            tlv::patch(&mut octets, at.saturating_add(auth::MAC_AT), mac);
        }
        if let Some(at) = checksum_at {
            let checksum = crc32c::crc32c(&octets);
            tlv::patch(&mut octets, at, checksum.to_be_bytes());
        }
        Header { octets: octets.into() }
    }

    /// The octets to send.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.octets
    }
}

fn v2_octets(client: SocketAddr, listen: SocketAddr) -> Vec<u8> {
    let addresses = match ends(client, listen) {
        Ends::V4(source, destination) => version2::ProxyAddresses::Ipv4 { source, destination },
        Ends::V6(source, destination) => version2::ProxyAddresses::Ipv6 { source, destination },
    };
    let header = ProxyHeader::Version2 {
        command: version2::ProxyCommand::Proxy,
        transport_protocol: version2::ProxyTransportProtocol::Stream,
        addresses,
    };
    encode(header, UNSPECIFIED)
}

/// The header's octets. The encoder fails only as a writer could, and it writes to memory.
fn encode(header: ProxyHeader, otherwise: &[u8]) -> Vec<u8> {
    let encoded = proxy_protocol::encode(header);
    encoded.as_deref().ok().filter(|octets| octets.len() <= V1_MAX).unwrap_or(otherwise).to_vec()
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Header({})", self.as_slice().escape_ascii())
    }
}

#[cfg(test)]
mod tests;
