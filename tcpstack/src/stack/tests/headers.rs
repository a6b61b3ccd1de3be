//! PROXY headers: what upstreams are told, in both modes, and what trusted senders tell us.

use sluice_filters::Flags;

use super::super::*;
use super::lab::*;
use crate::proxy::{self, Header, ReadError, UnixMillis};
use crate::record::EndCause;

const EXTRAS: &str = "proxy_protocol = \"v2\"\nproxy_header = { unique_id = true, crc32c = true, authority = \"mt5.example.com\", \
                      evidence = true, authenticate = true }";
const ACCEPT: &str = "proxy_protocol = \"v2\"\naccept_proxy = [\"203.0.113.0/24\"]";

/// What a server reads until `enough`.
fn received(lab: &mut Lab, server: smoltcp::iface::SocketHandle, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut got = Vec::new();
    assert!(
        lab.run(3_000, |lab| {
            lab.server.read(server, &mut got);
            enough(&got)
        }),
        "{}",
        got.escape_ascii()
    );
    got
}

#[test]
fn headers_with_everything_are_authentic_in_both_modes() {
    let mut ids = Vec::new();
    for mode in ["", "mode = \"splice\"\npromise = { probe = \"0s\" }\n"] {
        let mut lab = Lab::new(&format!("{mode}{EXTRAS}"));
        let (client, server) = established(&mut lab);
        lab.client.get(client).send_slice(b"hello").unwrap();
        let got = received(&mut lab, server, |got| got.ends_with(b"hello"));
        let verified = proxy::verify(&got, &keys().current(), UnixMillis(lab.now.0 / 1_000), Duration::from_secs(10))
            .expect("authentic");
        let read = verified.read;
        assert_eq!(read.len + 5, got.len());
        assert_eq!(read.authority(), Some("mt5.example.com"));
        assert_eq!(verified.key, 7);
        let addresses = read.addresses.unwrap();
        assert_eq!(
            (addresses.client.to_string().as_str(), addresses.listen.to_string().as_str()),
            ("203.0.113.7:40000", "198.51.100.10:443")
        );
        let evidence = read.evidence().unwrap();
        assert_eq!((evidence.hop_limit, evidence.under_attack, evidence.tsval), (64, false, None));
        ids.push(read.unique_id().unwrap().to_vec());
    }
    assert_eq!(ids.len(), 2);
}

#[test]
fn every_connection_has_an_id_of_its_own() {
    let mut lab = Lab::new(EXTRAS);
    let ids: std::collections::HashSet<[u8; 16]> = (0..1_000).map(|_| lab.stack.unique_id()).collect();
    assert_eq!(ids.len(), 1_000);
}

#[test]
fn a_flood_of_syns_shows_in_the_evidence() {
    let mut lab = Lab::new(EXTRAS);
    lab.stack.publish(lab.now);
    for source in 0..3_000_u32 {
        let from = format!("203.0.{}.{}:1024", source / 250, source % 250 + 1);
        lab.receive(&sluice_filters::testkit::tcp(&*from, SERVICE).flags(Flags::SYN).seq(source).build());
    }
    lab.below.sent.clear();
    lab.idle(1_000);
    lab.stack.publish(lab.now);
    assert_eq!(lab.counters.services[0].under_attack.get(), 1);
    let (client, server) = established(&mut lab);
    lab.client.get(client).send_slice(b"hello").unwrap();
    let got = received(&mut lab, server, |got| got.ends_with(b"hello"));
    assert!(proxy::read(&got).unwrap().evidence().unwrap().under_attack);
    lab.idle(1_100);
    lab.stack.publish(lab.now);
    assert_eq!(lab.counters.services[0].under_attack.get(), 0);
}

/// A connection of a balancer's that says `first`.
fn balanced(extra: &str, first: &[u8]) -> (Lab, smoltcp::iface::SocketHandle, smoltcp::iface::SocketHandle) {
    let mut lab = Lab::new(extra);
    let server = lab.server.listen(80);
    let client = lab.dial();
    assert!(lab.run(2_000, |lab| lab.client.get(client).may_send()));
    lab.client.get(client).send_slice(first).unwrap();
    (lab, client, server)
}

#[test]
fn a_trusted_senders_header_names_the_client_everywhere() {
    let named = Header::v1("192.0.2.55:999".parse().unwrap(), "192.0.2.1:443".parse().unwrap());
    let (mut lab, client, server) = balanced(ACCEPT, &[named.as_slice(), b"hello"].concat());
    let got = received(&mut lab, server, |got| got.ends_with(b"hello"));
    let read = proxy::read(&got).unwrap();
    let addresses = read.addresses.unwrap();
    assert_eq!((addresses.client, addresses.listen.port()), ("192.0.2.55:999".parse().unwrap(), 443));
    assert_eq!(&got[read.len..], b"hello", "the header is not payload");
    lab.client.get(client).close();
    lab.server.get(server).close();
    assert!(lab.run(1_000, |lab| lab.ended(EndCause::Closed) == 1));
    let record = lab.record();
    assert_eq!(record.client, "192.0.2.55:999".parse().unwrap());
    assert_eq!(record.via, Some("203.0.113.7:40000".parse().unwrap()));
    assert_eq!(record.bytes_to_upstream, 5);
}

#[test]
fn a_header_in_pieces_is_waited_for_and_nothing_is_dialled_before() {
    let named = Header::v2("192.0.2.55:999".parse().unwrap(), "192.0.2.1:443".parse().unwrap());
    let (mut lab, client, server) = balanced(ACCEPT, &named.as_slice()[..20]);
    lab.idle(300);
    assert!(!lab.server.get(server).may_send());
    lab.client.get(client).send_slice(&named.as_slice()[20..]).unwrap();
    let got = received(&mut lab, server, |got| got.len() >= 28);
    assert_eq!(proxy::read(&got).unwrap().addresses.unwrap().client, "192.0.2.55:999".parse().unwrap());
}

#[test]
fn a_local_header_leaves_the_connections_own_addresses() {
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let (mut lab, client, server) = balanced(ACCEPT, &[&local[..], b"hello"].concat());
    let got = received(&mut lab, server, |got| got.ends_with(b"hello"));
    assert_eq!(proxy::read(&got).unwrap().addresses.unwrap().client, "203.0.113.7:40000".parse().unwrap());
    lab.client.get(client).abort();
}

#[test]
fn a_trusted_sender_without_a_header_is_refused() {
    for first in [&b"GET / HTTP/1.1\r\n"[..], b"PROXY TCP4 nonsense\r\n"] {
        let (mut lab, client, _) = balanced(ACCEPT, first);
        assert!(lab.run(1_000, |lab| lab.ended(EndCause::ProxyHeader) == 1));
        lab.idle(5);
        assert!(!lab.client.get(client).is_open());
        assert_eq!(lab.record().via, None);
    }
}

#[test]
fn a_header_that_does_not_come_in_time_is_refused() {
    let (mut lab, _, _) = balanced(&format!("{ACCEPT}\n[service.timeouts]\nconnect = \"1s\""), b"PROXY TCP4 ");
    assert!(lab.run(2_000, |lab| lab.ended(EndCause::ProxyHeader) == 1));
    assert!(lab.now.0 >= 2_000_000);
}

#[test]
fn an_untrusted_senders_header_is_refused_and_its_payload_is_not() {
    let untrusted = "proxy_protocol = \"v2\"\naccept_proxy = [\"10.0.0.0/8\"]";
    let forged = Header::v1("192.0.2.55:999".parse().unwrap(), "192.0.2.1:443".parse().unwrap());
    for first in [forged.as_slice(), &Header::v2(forged_client(), forged_client()).as_slice()[..12]] {
        let (mut lab, client, server) = balanced(untrusted, first);
        assert!(lab.run(1_000, |lab| lab.ended(EndCause::ProxyHeader) == 1));
        lab.idle(5);
        assert!(!lab.client.get(client).is_open());
        let mut got = Vec::new();
        lab.server.read(server, &mut got);
        assert!(got.len() <= 28, "no payload of the client's: {}", got.escape_ascii());
    }
    for first in [&b"PRO"[..], b"PROPFIND / HTTP/1.1\r\n"] {
        let (mut lab, client, server) = balanced(untrusted, first);
        lab.client.get(client).close();
        let got = received(&mut lab, server, |got| got.ends_with(first));
        assert_eq!(proxy::read(&got).unwrap().addresses.unwrap().client, "203.0.113.7:40000".parse().unwrap());
    }
}

fn forged_client() -> std::net::SocketAddr {
    "192.0.2.55:999".parse().unwrap()
}

#[test]
fn limits_per_source_count_the_named_client() {
    let limited = format!("{ACCEPT}\n[service.limits]\nconnections_per_source = 1");
    let named = Header::v1("192.0.2.55:999".parse().unwrap(), "192.0.2.1:443".parse().unwrap());
    let (mut lab, _, server) = balanced(&limited, named.as_slice());
    received(&mut lab, server, |got| got.len() >= 28);
    // The balancer's second connection, for the same client and then for another.
    for (port, client, refused) in [(40_001, "192.0.2.55:998", 1), (40_002, "192.0.2.56:998", 1)] {
        lab.server.listen(80);
        let handle = lab.client.connect(("203.0.113.7", port), ("198.51.100.10", 443));
        assert!(lab.run(2_000, |lab| lab.client.get(handle).may_send()));
        let named = Header::v1(client.parse().unwrap(), "192.0.2.1:443".parse().unwrap());
        lab.client.get(handle).send_slice(named.as_slice()).unwrap();
        lab.idle(100);
        assert_eq!(lab.ended(EndCause::SourceLimit), refused);
        assert_eq!(lab.client.get(handle).is_open(), client.starts_with("192.0.2.56"));
    }
}

#[test]
fn what_the_reader_cannot_tell_yet_is_incomplete() {
    // The two tellers of signatures agree.
    for octets in [&b""[..], b"P", b"PROXY", b"\r\n\r\n\0\r\nQUIT"] {
        assert_eq!(proxy::begins_header(octets), None);
        assert!(matches!(proxy::read(octets), Err(ReadError::Incomplete)));
    }
    assert_eq!(proxy::begins_header(b"PROXY "), Some(true));
    assert_eq!(proxy::begins_header(b"PUT"), Some(false));
    assert!(matches!(proxy::read(b"PUT"), Err(ReadError::NotAHeader)));
}
