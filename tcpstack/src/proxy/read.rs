//! Reads a PROXY header from the beginning of a connection, as far as it has arrived.
//!
//! Both versions (specification sections 2.1 and 2.2). What can be refused is refused at its first wrong octet, so nobody is
//! waited for in vain; the addresses themselves are parsed by the crate `proxy-protocol`, which sees complete headers
//! only.
//!
//! Invariants: no input makes it panic; at most [`V1_MAX`] octets of version 1 and [`READ_MAX`] of version 2 are asked
//! for; nothing is allocated.

use std::net::SocketAddr;

use proxy_protocol::{ProxyHeader, version1, version2};

use super::evidence::Evidence;
use super::tlv::{self, Tlvs};
use super::{V1_MAX, auth};

/// The longest version 2 header that is read: the fixed part and 2048 octets.
pub const READ_MAX: usize = tlv::FIXED + FOLLOWING_MAX;

/// The most that may follow the fixed part.
const FOLLOWING_MAX: usize = 2_048;

/// How version 1 begins, and version 2.
const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Whether a connection begins with a header's signature; none while its first octets could still become one.
#[must_use]
pub fn begins_header(octets: &[u8]) -> Option<bool> {
    let mut open = false;
    for signature in [V1_SIGNATURE, V2_SIGNATURE] {
        if octets.starts_with(signature) {
            return Some(true);
        }
        open |= signature.starts_with(octets);
    }
    (!open).then_some(false)
}

/// Octets of two Unix socket paths.
const UNIX_ADDRESSES: usize = 216;

/// A header's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// Whom a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The proxy itself, as in a health check: the connection's own addresses count.
    Local,
    /// A client.
    Proxy,
}

/// Both ends of the client's connection to the proxy, as the header writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Who connected.
    pub client: SocketAddr,
    /// Where to.
    pub listen: SocketAddr,
}

/// A complete header.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// Its version.
    pub version: Version,
    /// Its command.
    pub command: Command,
    /// The client's addresses; none when the sender did not know them, when they are not IP addresses, and with
    /// [`Command::Local`].
    pub addresses: Option<Addresses>,
    /// Octets of the header. What follows is the client's.
    pub len: usize,
    /// Its TLVs. None in version 1, nor behind addresses that the specification has a receiver ignore.
    pub tlvs: Tlvs<'a>,
    /// Where the first TLV begins.
    pub(super) tlvs_at: usize,
}

/// Why there is no header to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Everything so far is a header's beginning.
    #[error("the header is not complete")]
    Incomplete,
    /// The first octets are no PROXY header's.
    #[error("this is not a PROXY header")]
    NotAHeader,
    /// It begins as a header, but is none.
    #[error("the PROXY header is malformed: {0}")]
    Malformed(Malformed),
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is longer than is read.
    #[error("it is too long")]
    TooLong,
    /// A version 1 line that the specification does not allow.
    #[error("its line does not name a protocol, two addresses and two ports")]
    Line,
    /// Binary, but not version 2.
    #[error("its version is not 2")]
    Version,
    /// Neither LOCAL nor PROXY.
    #[error("its command is neither LOCAL nor PROXY")]
    Command,
    /// An address family or transport that the specification does not know.
    #[error("its address family is unknown")]
    Family,
    /// It speaks of UDP.
    #[error("it is for datagrams")]
    Datagram,
    /// Its length leaves no room for its addresses.
    #[error("it is too short for its addresses")]
    TooShort,
    /// A TLV does not fit.
    #[error("a TLV reaches beyond its end")]
    Tlv,
    /// The CRC32C is wrong, of a wrong length or there twice.
    #[error("its CRC32C is wrong")]
    Checksum,
}

impl<'a> Read<'a> {
    /// The host name the client asked for, if the header has one in UTF-8.
    #[must_use]
    pub fn authority(&self) -> Option<&'a str> {
        self.tlvs.find(tlv::AUTHORITY).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The connection's unique id.
    #[must_use]
    pub fn unique_id(&self) -> Option<&'a [u8]> {
        self.tlvs.find(tlv::UNIQUE_ID)
    }

    /// What the handshake showed of the client, if the header says so in a layout known here.
    #[must_use]
    pub fn evidence(&self) -> Option<Evidence> {
        self.tlvs.find(tlv::EVIDENCE).and_then(Evidence::decode)
    }

    /// The TLVs with the place of each value.
    pub(super) fn places(&self) -> impl Iterator<Item = (u8, usize, &'a [u8])> + use<'a> {
        tlv::places(self.tlvs, self.tlvs_at)
    }
}

/// Reads the header at the beginning of `octets`, which may end anywhere. After [`ReadError::Incomplete`] ask again with
/// more; every other answer is final.
///
/// # Errors
/// [`ReadError`] says whether more octets would help.
pub fn read(octets: &[u8]) -> Result<Read<'_>, ReadError> {
    if octets.starts_with(V1_SIGNATURE) {
        read_v1(octets)
    } else if octets.starts_with(V2_SIGNATURE) {
        read_v2(octets)
    } else if V1_SIGNATURE.starts_with(octets) || V2_SIGNATURE.starts_with(octets) {
        Err(ReadError::Incomplete)
    } else {
        Err(ReadError::NotAHeader)
    }
}

fn malformed<T>(what: Malformed) -> Result<T, ReadError> {
    Err(ReadError::Malformed(what))
}

fn read_v1(octets: &[u8]) -> Result<Read<'_>, ReadError> {
    let reach = octets.get(..V1_MAX).unwrap_or(octets);
    let body = reach.windows(2).position(|pair| pair == b"\r\n");
    // A carriage return at the end may be half of the line's end.
    let so_far = reach.get(..body.unwrap_or(reach.len())).unwrap_or_default();
    let so_far = if body.is_none() { so_far.strip_suffix(b"\r").unwrap_or(so_far) } else { so_far };
    if !plausible(so_far.get(V1_SIGNATURE.len()..).unwrap_or_default()) {
        return malformed(Malformed::Line);
    }
    let Some(line) = body.and_then(|body| reach.get(..body.saturating_add(2))) else {
        return if octets.len() >= V1_MAX { malformed(Malformed::TooLong) } else { Err(ReadError::Incomplete) };
    };
    let addresses = match proxy_protocol::parse(&mut &*line) {
        Ok(ProxyHeader::Version1 { addresses }) => addresses,
        _ => return malformed(Malformed::Line),
    };
    let addresses = match addresses {
        version1::ProxyAddresses::Ipv4 { source, destination } => {
            Some(Addresses { client: source.into(), listen: destination.into() })
        }
        version1::ProxyAddresses::Ipv6 { source, destination } => {
            Some(Addresses { client: source.into(), listen: destination.into() })
        }
        version1::ProxyAddresses::Unknown => None,
    };
    let (version, command, len) = (Version::V1, Command::Proxy, line.len());
    Ok(Read { version, command, addresses, len, tlvs: Tlvs::new(&[]), tlvs_at: len })
}

/// Whether a version 1 line can go on like this after its signature. The crate is more lenient: it takes other letters
/// between `T` and `4`, and signs before ports.
fn plausible(rest: &[u8]) -> bool {
    const UNKNOWN: &[u8] = b"UNKNOWN";
    if UNKNOWN.starts_with(rest) {
        return true;
    }
    if let Some(ignored) = rest.strip_prefix(UNKNOWN) {
        // The rest of such a line means nothing (specification section 2.1).
        return ignored.starts_with(b" ");
    }
    let (family, addresses) = rest.split_at_checked(5).unwrap_or((rest, &[]));
    (b"TCP4 ".starts_with(family) || b"TCP6 ".starts_with(family))
        && addresses.iter().all(|octet| octet.is_ascii_hexdigit() || b":. ".contains(octet))
}

fn read_v2(octets: &[u8]) -> Result<Read<'_>, ReadError> {
    let after_signature = octets.get(V2_SIGNATURE.len()..).unwrap_or_default();
    let command = match after_signature.first() {
        None => return Err(ReadError::Incomplete),
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(other) if other >> 4 == 2 => return malformed(Malformed::Command),
        Some(_) => return malformed(Malformed::Version),
    };
    // A receiver discards what comes with LOCAL, its family included, and cannot tell what follows an unspecified one.
    let known = match (command, after_signature.get(1)) {
        (_, None) => return Err(ReadError::Incomplete),
        (Command::Local, _) | (Command::Proxy, Some(0x00)) => None,
        (Command::Proxy, Some(0x11)) => Some(12),
        (Command::Proxy, Some(0x21)) => Some(36),
        (Command::Proxy, Some(0x31)) => Some(UNIX_ADDRESSES),
        (Command::Proxy, Some(0x12 | 0x22 | 0x32)) => return malformed(Malformed::Datagram),
        (Command::Proxy, Some(_)) => return malformed(Malformed::Family),
    };
    let Some([_, _, high, low]) = after_signature.first_chunk() else { return Err(ReadError::Incomplete) };
    let following = usize::from(u16::from_be_bytes([*high, *low]));
    if following > FOLLOWING_MAX {
        return malformed(Malformed::TooLong);
    }
    if known.is_some_and(|known| following < known) {
        return malformed(Malformed::TooShort);
    }
    let len = tlv::FIXED.saturating_add(following);
    let header = octets.get(..len).ok_or(ReadError::Incomplete)?;
    let tlvs_at = known.map_or(len, |known| tlv::FIXED.saturating_add(known));
    let tlvs = Tlvs::new(header.get(tlvs_at..).unwrap_or_default());
    let addresses = if known.is_some() { v2_addresses(header)? } else { None };
    let read = Read { version: Version::V2, command, addresses, len, tlvs, tlvs_at };
    if !tlvs.sound() {
        return malformed(Malformed::Tlv);
    }
    if !checksum_holds(header, &read) {
        return malformed(Malformed::Checksum);
    }
    Ok(read)
}

fn v2_addresses(header: &[u8]) -> Result<Option<Addresses>, ReadError> {
    match proxy_protocol::parse(&mut &*header) {
        Ok(ProxyHeader::Version2 { addresses: version2::ProxyAddresses::Ipv4 { source, destination }, .. }) => {
            Ok(Some(Addresses { client: source.into(), listen: destination.into() }))
        }
        Ok(ProxyHeader::Version2 { addresses: version2::ProxyAddresses::Ipv6 { source, destination }, .. }) => {
            Ok(Some(Addresses { client: source.into(), listen: destination.into() }))
        }
        Ok(ProxyHeader::Version2 { .. }) => Ok(None),
        _ => malformed(Malformed::Family),
    }
}

/// Whether the header's CRC32C is right, or there is none.
fn checksum_holds(header: &[u8], read: &Read<'_>) -> bool {
    let mut checksums = read.places().filter(|(kind, ..)| *kind == tlv::CRC32C);
    let Some((_, at, value)) = checksums.next() else { return true };
    let Ok(value) = <[u8; tlv::CRC32C_LEN]>::try_from(value) else { return false };
    let mut computed = 0;
    let blank = at..at.saturating_add(tlv::CRC32C_LEN);
    auth::blanked(header, std::slice::from_ref(&blank), |piece| computed = crc32c::crc32c_append(computed, piece));
    checksums.next().is_none() && computed == u32::from_be_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(octets: &[u8]) -> ReadError {
        read(octets).unwrap_err()
    }

    fn wrong(octets: &[u8], what: Malformed) {
        assert_eq!(error(octets), ReadError::Malformed(what), "{}", octets.escape_ascii());
    }

    fn v2(rest: &[u8]) -> Vec<u8> {
        [V2_SIGNATURE, rest].concat()
    }

    fn addresses(client: &str, listen: &str) -> Option<Addresses> {
        Some(Addresses { client: client.parse().unwrap(), listen: listen.parse().unwrap() })
    }

    #[test]
    fn version_1_lines_end_at_their_line_end() {
        let header = read(b"PROXY TCP4 192.0.2.1 198.51.100.10 56324 443\r\nGET / HTTP/1.1\r\n").unwrap();
        assert_eq!((header.version, header.command, header.len), (Version::V1, Command::Proxy, 46));
        assert_eq!(header.addresses, addresses("192.0.2.1:56324", "198.51.100.10:443"));
        assert_eq!(header.tlvs.count(), 0);
        let header = read(b"PROXY TCP6 ::ffff:192.0.2.1 2001:DB8::10 0 65535\r\n").unwrap();
        assert_eq!(header.addresses, addresses("[::ffff:192.0.2.1]:0", "[2001:db8::10]:65535"));
    }

    #[test]
    fn an_unknown_client_has_no_address_whatever_else_the_line_says() {
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN 1.2.3.4 \u{1} \r\r\n"] {
            let header = read(line.as_bytes()).unwrap();
            assert_eq!((header.addresses, header.len), (None, line.len()));
        }
    }

    #[test]
    fn wrong_version_1_lines_are_refused_at_the_first_wrong_octet() {
        for line in [
            "PROXY X",
            "PROXY TCP5",
            "PROXY TXX4 ",
            "PROXY tcp4",
            "PROXY UNKNOWNS",
            "PROXY TCP4  \n",
            "PROXY TCP4 192.0.2.1 198.51.100.10 1 2\n",
            "PROXY TCP4 192.0.2.1 198.51.100.10 +",
            "PROXY TCP4 192.0.2.1\t",
            "PROXY TCP4 192.0.2.1\r192",
        ] {
            wrong(line.as_bytes(), Malformed::Line);
        }
        for line in [
            "PROXY TCP4 192.0.2.1 198.51.100.10 1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.10 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.10 01 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.10 1 2 \r\n",
            "PROXY TCP4 192.0.2.1  198.51.100.10 1 2\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.10 1 2\r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP4 \r\n",
            "PROXY \r\n",
        ] {
            if !matches!(line, "PROXY \r\n" | "PROXY TCP4\r\n") {
                assert_eq!(error(&line.as_bytes()[..line.len() - 2]), ReadError::Incomplete, "{line}");
            }
            wrong(line.as_bytes(), Malformed::Line);
        }
    }

    #[test]
    fn a_version_1_line_of_107_octets_is_read_and_a_longer_one_refused() {
        let line = |len: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(len - 16));
        assert_eq!(read(line(V1_MAX).as_bytes()).unwrap().len, V1_MAX);
        wrong(line(V1_MAX + 1).as_bytes(), Malformed::TooLong);
        wrong(&line(300).as_bytes()[..V1_MAX], Malformed::TooLong);
        assert_eq!(error(&line(300).as_bytes()[..V1_MAX - 1]), ReadError::Incomplete);
    }

    #[test]
    fn what_begins_otherwise_is_not_a_header() {
        for octets in ["GET / HTTP/1.1\r\n", "PROXY\t", "PRI * HTTP/2.0", "\r\n\r\nQ", "\u{16}\u{3}\u{1}", "SSH-2.0-"] {
            assert_eq!(error(octets.as_bytes()), ReadError::NotAHeader, "{octets:?}");
        }
    }

    #[test]
    fn local_headers_are_discarded_whole() {
        let header = v2(&[0x20, 0x7f, 0, 5, 1, 2, 3, 4, 5, b'x']);
        let header = read(&header).unwrap();
        assert_eq!((header.version, header.command, header.len), (Version::V2, Command::Local, 21));
        assert_eq!((header.addresses, header.tlvs.count()), (None, 0));
    }

    #[test]
    fn unspecified_and_unix_clients_have_no_address() {
        let header = v2(&[0x21, 0x00, 0, 3, 9, 9, 9]);
        let header = read(&header).unwrap();
        assert_eq!((header.command, header.addresses, header.len), (Command::Proxy, None, 19));
        let header = v2(&[&[0x21, 0x31, 0, 220][..], &[b'/'; 216], &[tlv::AUTHORITY, 0, 1, b'a']].concat());
        let header = read(&header).unwrap();
        assert_eq!((header.addresses, header.authority(), header.len), (None, Some("a"), 236));
    }

    #[test]
    fn wrong_version_2_headers_are_refused_at_the_first_wrong_octet() {
        wrong(&v2(&[0x11]), Malformed::Version);
        wrong(&v2(&[0x31]), Malformed::Version);
        wrong(&v2(&[0x22]), Malformed::Command);
        for family in [0x01, 0x10, 0x13, 0x20, 0x41, 0xff] {
            wrong(&v2(&[0x21, family]), Malformed::Family);
        }
        for family in [0x12, 0x22, 0x32] {
            wrong(&v2(&[0x21, family]), Malformed::Datagram);
        }
        wrong(&v2(&[0x21, 0x11, 0x08, 0x01]), Malformed::TooLong);
        wrong(&v2(&[0x20, 0x00, 0xff, 0xff]), Malformed::TooLong);
        for (family, short) in [(0x11, 11), (0x21, 35), (0x31, 215)] {
            wrong(&v2(&[0x21, family, 0, short]), Malformed::TooShort);
        }
        assert_eq!(error(&v2(&[0x21, 0x11, 0x08, 0x00])), ReadError::Incomplete);
        wrong(&v2(&[&[0x21, 0x11, 0, 15][..], &[0; 12], &[1, 0, 1]].concat()), Malformed::Tlv);
    }

    #[test]
    fn a_header_of_haproxy_with_its_crc32c_is_read() {
        // haproxy 2.6.12, `send-proxy-v2 proxy-v2-options crc32c,unique-id`, without an id.
        let sent = v2(&[
            0x21, 0x11, 0, 22, 127, 0, 0, 1, 127, 0, 0, 1, 0xe6, 0x10, 0x46, 0x51, 3, 0, 4, 0x12, 0x5c, 0xaa, 0x41, 5,
            0, 0,
        ]);
        let header = read(&sent).unwrap();
        assert_eq!(header.addresses, addresses("127.0.0.1:58896", "127.0.0.1:18001"));
        assert_eq!((header.unique_id(), header.len), (Some(&[][..]), sent.len()));
        for at in 16..sent.len() {
            let mut changed = sent.clone();
            changed[at] ^= 1;
            assert!(read(&changed).is_err() || (28..35).contains(&at), "{at}");
        }
    }

    #[test]
    fn a_checksum_is_four_octets_and_there_once() {
        let with = |tlvs: &[u8]| {
            let length = u8::try_from(12 + tlvs.len()).unwrap();
            let mut header = v2(&[&[0x21, 0x11, 0, length][..], &[7; 12], tlvs].concat());
            let checksum = crc32c::crc32c(&header);
            tlv::patch(&mut header, 31, checksum.to_be_bytes());
            header
        };
        assert!(read(&with(&[3, 0, 4, 0, 0, 0, 0])).is_ok());
        wrong(&with(&[3, 0, 3, 0, 0, 0]), Malformed::Checksum);
        wrong(&with(&[3, 0, 5, 0, 0, 0, 0, 0]), Malformed::Checksum);
        wrong(&with(&[3, 0, 4, 0, 0, 0, 0, 3, 0, 4, 0, 0, 0, 0]), Malformed::Checksum);
    }
}
