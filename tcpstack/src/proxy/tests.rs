//! Whole headers: written, read back, signed, tampered with.

use std::time::Duration;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::evidence::tests::{evidence, linux};
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

const KEY: &str = "7 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
const NOW: UnixMillis = UnixMillis(1_767_323_045_678);
const AGE: Duration = Duration::from_secs(30);

fn key() -> Keys {
    Keys::new(&sluice_config::ProxyKeys::parse("keys".as_ref(), KEY.as_bytes()).unwrap())
}

/// Everything there is, over IPv4.
fn signed(keys: &Keys) -> Header {
    let extras = Extras {
        authority: Some("trade.example"),
        unique_id: Some(*b"0123456789abcdef"),
        evidence: Some(linux()),
        sign: Some((keys, NOW)),
        crc32c: true,
    };
    Header::v2_with(at("203.0.113.7:51000"), at("198.51.100.10:443"), &extras)
}

fn error(octets: &[u8], keys: &Keys, now: UnixMillis) -> VerifyError {
    verify(octets, keys, now, AGE).unwrap_err()
}

/// RFC 3720 appendix B.4's polynomial, bit by bit.
fn slow_crc32c(octets: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for octet in octets {
        crc ^= u32::from(*octet);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// RFC 2104 section 2, word for word.
fn slow_hmac(key: &[u8; 32], octets: &[u8]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(octet, key)| *octet ^= key);
        block
    };
    let inner = Sha256::digest([&pad(0x36)[..], octets].concat());
    Sha256::digest([&pad(0x5c)[..], &inner[..]].concat()).into()
}

#[test]
fn signed_header_is_the_documented_one() {
    let mut expected = SIGNATURE.to_vec();
    expected.extend([0x21, 0x11, 0, 125]);
    expected.extend([203, 0, 113, 7, 198, 51, 100, 10, 0xc7, 0x38, 0x01, 0xbb]);
    expected.extend(b"\x02\x00\x0dtrade.example");
    expected.extend(b"\x05\x00\x100123456789abcdef");
    expected.extend([0xe3, 0, 20]);
    expected.extend([1, 0x1f, 7, 57, 0x05, 0xb4, 0x01, 0xf6, 1, 2, 3, 4, 0, 0, 0, 31, 3, 1, 1, 8]);
    expected.extend([0xe4, 0, 45]);
    expected.extend([1, 0, 0, 0, 7, 0, 0, 0x01, 0x9b, 0x7c, 0xa9, 0x8f, 0x2e]);
    let mac_at = expected.len();
    expected.extend([0; 32]);
    expected.extend([3, 0, 4, 0, 0, 0, 0]);
    let mac = slow_hmac(&std::array::from_fn(|i| i as u8), &expected);
    expected[mac_at..mac_at + 32].copy_from_slice(&mac);
    let checksum = slow_crc32c(&expected);
    let len = expected.len();
    expected[len - 4..].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(signed(&key()).as_slice(), expected);
    assert_eq!(len, 16 + 125);

    let hex: String = expected.iter().map(|octet| format!("{octet:02x}")).collect();
    let document = include_str!("../../../docs/proxy-protocol.md");
    assert!(document.replace(['"', '\n', ' '], "").contains(&hex), "docs/proxy-protocol.md shows {hex}");
}

#[test]
fn documentation_names_every_limit_and_type() {
    let document = include_str!("../../../docs/proxy-protocol.md");
    for said in [
        format!("at most {HEADER_MAX} octets"),
        format!("at most {V1_MAX} octets"),
        format!("| `{:02x}` `PP2_TYPE_AUTHORITY` | `authority` | 1 to {} |", tlv::AUTHORITY, tlv::AUTHORITY_MAX),
        format!("| `{:02x}` `PP2_TYPE_UNIQUE_ID` | `unique_id` | {} |", tlv::UNIQUE_ID, tlv::UNIQUE_ID_LEN),
        format!("| `{:02x}` | `evidence` | 17 to {} |", tlv::EVIDENCE, evidence::ENCODED_MAX),
        format!("| `{:02x}` | `authenticate` | {} |", tlv::AUTHENTICATION, auth::ENCODED),
        format!("| `{:02x}` `PP2_TYPE_CRC32C` | `crc32c` | {} |", tlv::CRC32C, tlv::CRC32C_LEN),
    ] {
        assert!(document.contains(&said), "{said}");
    }
}

#[test]
fn checksums_are_crc32cs() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(slow_crc32c(b"123456789"), 0xe306_9283);
    let header =
        Header::v2_with(at("192.0.2.1:5"), at("198.51.100.10:443"), &Extras { crc32c: true, ..Extras::default() });
    let mut octets = header.as_slice().to_vec();
    let sent: [u8; 4] = octets[31..].try_into().unwrap();
    octets[31..].fill(0);
    assert_eq!((octets.len(), u32::from_be_bytes(sent)), (35, slow_crc32c(&octets)));
}

#[test]
fn without_extras_a_header_is_the_plain_one() {
    let (client, listen) = (at("[2001:db8::1]:56324"), at("[2001:db8::10]:443"));
    assert_eq!(Header::v2_with(client, listen, &Extras::default()), Header::v2(client, listen));
    let nothing_to_say = Extras { authority: Some(""), sign: Some((&Keys::default(), NOW)), ..Extras::default() };
    assert_eq!(Header::v2_with(client, listen, &nothing_to_say), Header::v2(client, listen));
    let long = "a".repeat(256);
    let too_long = Extras { authority: Some(&long), ..Extras::default() };
    assert_eq!(Header::v2_with(client, listen, &too_long), Header::v2(client, listen));
}

#[test]
fn the_longest_header_fits() {
    let authority = "a".repeat(tlv::AUTHORITY_MAX);
    let kinds = OptionKinds::new([1; OPTION_KINDS_MAX]);
    let keys = key();
    let extras = Extras {
        authority: Some(&authority),
        unique_id: Some([7; 16]),
        evidence: Some(Evidence { options: kinds, ..linux() }),
        sign: Some((&keys, NOW)),
        crc32c: true,
    };
    let header = Header::v2_with(at("[2001:db8::1]:1"), at("192.0.2.1:2"), &extras);
    assert_eq!(header.as_slice().len(), 444);
    assert!(header.as_slice().len() <= HEADER_MAX);
    let read = verify(header.as_slice(), &keys, NOW, AGE).unwrap().read;
    assert_eq!(read.authority(), Some(authority.as_str()));
    assert_eq!(read.evidence().unwrap().options, kinds);
}

#[test]
fn a_signed_header_says_what_was_put_into_it() {
    let keys = key();
    let header = signed(&keys);
    let stream = [header.as_slice(), b"payload"].concat();
    let verified = verify(&stream, &keys, NOW, AGE).unwrap();
    assert_eq!((verified.key, verified.signed), (7, NOW));
    let read = verified.read;
    let expected = Addresses { client: at("203.0.113.7:51000"), listen: at("198.51.100.10:443") };
    assert_eq!((read.version, read.command, read.addresses), (Version::V2, Command::Proxy, Some(expected)));
    assert_eq!(read.len, header.as_slice().len());
    assert_eq!(read.authority(), Some("trade.example"));
    assert_eq!(read.unique_id(), Some(&b"0123456789abcdef"[..]));
    assert_eq!(read.evidence(), Some(linux()));
    let kinds: Vec<u8> = read.tlvs.map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [tlv::AUTHORITY, tlv::UNIQUE_ID, tlv::EVIDENCE, tlv::AUTHENTICATION, tlv::CRC32C]);
}

#[test]
fn every_octet_is_under_the_signature() {
    let keys = key();
    for crc32c in [false, true] {
        let sign = Some((&keys, NOW));
        let extras = Extras { authority: Some("a"), evidence: Some(linux()), sign, crc32c, ..Extras::default() };
        let header = Header::v2_with(at("203.0.113.7:51000"), at("198.51.100.10:443"), &extras);
        let sent = header.as_slice();
        assert!(verify(sent, &keys, NOW, AGE).is_ok());
        for at in 0..sent.len() {
            for bit in 0..8 {
                let mut changed = sent.to_vec();
                changed[at] ^= 1 << bit;
                let outcome = verify(&changed, &keys, NOW, AGE);
                assert!(outcome.is_err(), "bit {bit} of octet {at}");
            }
        }
    }
}

#[test]
fn a_repaired_checksum_does_not_hide_a_change() {
    let keys = key();
    let mut changed = signed(&keys).as_slice().to_vec();
    let last = changed.len() - 4;
    changed[16] ^= 1;
    changed[last..].fill(0);
    let checksum = slow_crc32c(&changed).to_be_bytes();
    changed[last..].copy_from_slice(&checksum);
    assert!(read(&changed).is_ok());
    assert_eq!(error(&changed, &keys, NOW), VerifyError::WrongMac(7));
}

#[test]
fn a_tlv_appended_to_a_signed_header_is_noticed() {
    let keys = key();
    let extras = Extras { sign: Some((&keys, NOW)), ..Extras::default() };
    let header = Header::v2_with(at("203.0.113.7:51000"), at("198.51.100.10:443"), &extras);
    let longer = |tlv: &[u8]| {
        let mut octets = [header.as_slice(), tlv].concat();
        tlv::set_length(&mut octets);
        octets
    };
    assert_eq!(error(&longer(&[tlv::AUTHORITY, 0, 1, b'a']), &keys, NOW), VerifyError::WrongMac(7));
    let mut second = vec![tlv::AUTHENTICATION, 0, 45];
    second.extend([1; 45]);
    assert_eq!(error(&longer(&second), &keys, NOW), VerifyError::SignedTwice);
}

#[test]
fn a_header_is_believed_under_the_right_key_only() {
    let keys = key();
    let header = signed(&keys);
    let of = |text: String| Keys::new(&sluice_config::ProxyKeys::parse("keys".as_ref(), text.as_bytes()).unwrap());
    let other_secret = of(KEY.replace("0001", "ff01"));
    assert_eq!(error(header.as_slice(), &other_secret, NOW), VerifyError::WrongMac(7));
    let other_number = of(KEY.replace("7 ", "8 "));
    assert_eq!(error(header.as_slice(), &other_number, NOW), VerifyError::UnknownKey(7));
    assert_eq!(error(header.as_slice(), &Keys::default(), NOW), VerifyError::UnknownKey(7));
}

#[test]
fn a_header_is_believed_for_its_age_in_both_directions() {
    let keys = key();
    let header = signed(&keys);
    for (now, outcome) in [
        (NOW.0 + 30_000, Ok(())),
        (NOW.0 - 30_000, Ok(())),
        (NOW.0 + 30_001, Err(VerifyError::TooOld { age: Duration::from_millis(30_001), most: AGE })),
        (NOW.0 - 30_001, Err(VerifyError::FromTheFuture { ahead: Duration::from_millis(30_001), most: AGE })),
        (0, Err(VerifyError::FromTheFuture { ahead: Duration::from_millis(NOW.0), most: AGE })),
        (u64::MAX, Err(VerifyError::TooOld { age: Duration::from_millis(u64::MAX - NOW.0), most: AGE })),
    ] {
        assert_eq!(verify(header.as_slice(), &keys, UnixMillis(now), AGE).map(drop), outcome, "{now}");
    }
}

#[test]
fn keys_rotate_without_a_gap() {
    let of = |text: &str| Keys::new(&sluice_config::ProxyKeys::parse("keys".as_ref(), text.as_bytes()).unwrap());
    let next = KEY.replace("7 00", "8 ff");
    let (old, added, swapped, new) = (of(KEY), of(&format!("{KEY}{next}")), of(&format!("{next}{KEY}")), of(&next));
    // The receivers learn the new key, then the appliance signs with it, then all forget the old one.
    let believed = |sender: &Keys, receiver: &Keys| verify(signed(sender).as_slice(), receiver, NOW, AGE).is_ok();
    for (sender, receiver) in
        [(&old, &old), (&old, &added), (&added, &added), (&swapped, &added), (&swapped, &new), (&new, &new)]
    {
        assert!(believed(sender, receiver), "{sender:?} to {receiver:?}");
    }
    assert!(!believed(&new, &old));
}

#[test]
fn headers_without_a_signature_are_not_believed() {
    let (client, listen) = (at("203.0.113.7:51000"), at("198.51.100.10:443"));
    for header in [Header::v1(client, listen), Header::v2(client, listen)] {
        assert_eq!(error(header.as_slice(), &key(), NOW), VerifyError::Unsigned);
    }
    let mut local = [SIGNATURE, &[0x20, 0, 0, 0]].concat();
    tlv::put(&mut local, tlv::AUTHENTICATION, &[1; 45]);
    tlv::set_length(&mut local);
    assert_eq!(error(&local, &key(), NOW), VerifyError::Unsigned);
    let mut other_layout = Header::v2(client, listen).as_slice().to_vec();
    tlv::put(&mut other_layout, tlv::AUTHENTICATION, &[2; 45]);
    tlv::set_length(&mut other_layout);
    assert_eq!(error(&other_layout, &key(), NOW), VerifyError::Layout);
    assert_eq!(error(b"GET /", &key(), NOW), VerifyError::Read(ReadError::NotAHeader));
}

#[test]
fn every_beginning_of_a_header_is_incomplete() {
    let (client, listen) = (at("[2001:db8::1]:56324"), at("198.51.100.10:443"));
    for header in [Header::v1(client, listen), Header::v2(client, listen), signed(&key())] {
        let octets = header.as_slice();
        for len in 0..octets.len() {
            assert_eq!(read(&octets[..len]).unwrap_err(), ReadError::Incomplete, "{len} of {header:?}");
        }
        assert_eq!(read(octets).unwrap().len, octets.len());
    }
    for line in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN x\ry\r\n"] {
        for len in 0..line.len() {
            assert_eq!(read(&line[..len]).unwrap_err(), ReadError::Incomplete, "{len}");
        }
    }
}

/// A header's octets, whole or nearly so.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let whole = prop_oneof![
        Just(signed(&key()).as_slice().to_vec()),
        Just(Header::v2(at("[2001:db8::1]:1"), at("[2001:db8::2]:2")).as_slice().to_vec()),
        Just(Header::v1(at("192.0.2.1:1"), at("192.0.2.2:2")).as_slice().to_vec()),
        Just(b"PROXY UNKNOWN 1 2\r\n".to_vec()),
        Just([SIGNATURE, &[0x20, 0, 0, 0]].concat()),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|rest| [SIGNATURE, &rest].concat()),
        prop::collection::vec(any::<u8>(), 0..120).prop_map(|rest| [&b"PROXY TCP4 "[..], &rest].concat()),
        "PROXY (TCP4|TCP6|UNKNOWN) [0-9a-f:. ]{0,60}(\r\n)?".prop_map(String::into_bytes),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (whole, changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(|(mut octets, changes, end, cut)| {
        for (at, octet) in changes {
            let at = at.index(octets.len());
            octets[at] = octet;
        }
        if cut {
            octets.truncate(end.index(octets.len()));
        }
        octets
    })
}

/// Reads `octets` in every way there is, and checks what is promised of the outcome.
fn outcome_is_sound(octets: &[u8]) {
    let keys = key();
    let _ = verify(octets, &keys, NOW, AGE);
    match read(octets) {
        Ok(header) => {
            assert!(header.len <= octets.len() && header.len <= READ_MAX);
            let values: usize = header.tlvs.map(|(_, value)| tlv::HEAD + value.len()).sum();
            assert_eq!(header.tlvs_at + values, header.len);
            let _ = (header.authority(), header.unique_id(), header.evidence());
            // What follows changes nothing, and nothing less was enough.
            let longer = [octets, b"\r\n"].concat();
            assert_eq!(read(&longer).map(|header| header.len), Ok(header.len));
            assert_eq!(read(&octets[..header.len - 1]).map(|header| header.len), Err(ReadError::Incomplete));
        }
        Err(ReadError::Incomplete) => assert!(octets.len() < READ_MAX),
        Err(verdict) => {
            let longer = [octets, b"\r\n"].concat();
            assert_eq!(read(&longer).map(|header| header.len), Err(verdict), "final verdicts stay");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reading_mutated_headers_never_panics(octets in nearly()) {
        outcome_is_sound(&octets);
    }

    #[test]
    fn reading_arbitrary_octets_never_panics(octets in prop::collection::vec(any::<u8>(), 0..200)) {
        outcome_is_sound(&octets);
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        client: IpAddr, listen: IpAddr, ports: (u16, u16),
        authority in prop::option::of("[a-z.]{1,255}"),
        unique_id: Option<[u8; 16]>, evidence in prop::option::of(evidence()), sign: bool, crc32c: bool,
    ) {
        let (client, listen) = (SocketAddr::new(client, ports.0), SocketAddr::new(listen, ports.1));
        let keys = key();
        let sign = sign.then_some((&keys, NOW));
        let extras = Extras { authority: authority.as_deref(), unique_id, evidence, sign, crc32c };
        let header = Header::v2_with(client, listen, &extras);
        prop_assert!(header.as_slice().len() <= HEADER_MAX);
        let read = read(header.as_slice()).unwrap();
        let ends = read.addresses.unwrap();
        prop_assert_eq!(ends.client.ip().to_canonical(), client.ip().to_canonical());
        prop_assert_eq!(ends.listen.ip().to_canonical(), listen.ip().to_canonical());
        prop_assert_eq!((ends.client.port(), ends.listen.port()), ports);
        prop_assert_eq!(read.authority(), authority.as_deref());
        prop_assert_eq!(read.unique_id(), unique_id.as_ref().map(|id| &id[..]));
        prop_assert_eq!(read.evidence(), evidence);
        prop_assert_eq!(verify(header.as_slice(), &keys, NOW, AGE).is_ok(), sign.is_some());
        prop_assert_eq!(read.tlvs.find(tlv::CRC32C).is_some(), crc32c);
    }
}
