//! Splice mode's own rules, most of them with a TCP in user space at either end, which sees every number.
//!
//! Promises are pinned, so that no probe meets a server in user space; [`promises`](crate::promises) are tested apart.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use sluice_tests::appliance::{NOBODY, Service, Setup, Sluice};
use sluice_tests::frames::flags;
use sluice_tests::lab::{Family, Lab, SILENT4};
use sluice_tests::metrics::Metrics;
use sluice_tests::peer::{DOWN, Ending, Pattern, Route, UP, client_closes_first, server_closes_first, sha256};
use sluice_tests::rawtcp::{RawTcp, SERVER_MAC, Shape};
use sluice_tests::servers::{curl, nginx, url};
use sluice_tests::station::{Arrived, Station};

use crate::basics::SOON;
use crate::legs::{V2_IPV4, V2_IPV6};

const MIB: u64 = 1 << 20;
const PORT: u16 = 7001;
/// Long enough for what was sent to have arrived, if it does.
const A_MOMENT: Duration = Duration::from_millis(300);

/// A spliced service whose upstream is in user space.
fn service() -> Service {
    Service::new("raw", PORT).upstreams(&[Family::V4.raw_server(PORT)]).splice_pinned()
}

fn station(lab: &Lab) -> Station {
    Station::listen(&lab.server, "s0", SERVER_MAC, Family::V4.raw_server(PORT))
}

fn client(lab: &Lab, port: u16, shape: Shape) -> RawTcp {
    let (me, peer) = ((Family::V4.raw_client(), port).into(), Family::V4.service(PORT));
    RawTcp::connect(&lab.client, "c0", me, peer, shape).unwrap_or_else(|error| panic!("no connection: {error}"))
}

/// The dial in the name of the client whose first octet has the number `first`, behind a header of `header` octets.
fn dial_of(station: &mut Station, first: u32, header: usize) -> Arrived {
    let isn = first.wrapping_sub(1).wrapping_sub(u32::try_from(header).expect("short"));
    let deadline = Instant::now() + SOON;
    let mut others = Vec::new();
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        match station.next_syn(left) {
            Some(syn) if syn.seq == isn => return syn,
            // Repetitions of dials for other clients.
            Some(syn) => others.push(syn.seq),
            None => break,
        }
    }
    panic!("no dial with number {isn}; other numbers: {others:?}")
}

/// A connection from `port` with a TCP in user space at either end, over which nothing has gone yet.
fn connection(lab: &Lab, port: u16) -> (RawTcp, RawTcp) {
    let mut station = station(lab);
    let client = client(lab, port, Shape::usual());
    let syn = dial_of(&mut station, client.numbers().0, 0);
    let mut server = RawTcp::accept(station, syn, Shape::usual());
    let accepted = server.hear(SOON).expect("sluice takes the SYN-ACK");
    assert_eq!((accepted.seq, accepted.ack), (client.numbers().0, server.numbers().0));
    (client, server)
}

/// Octets both ways, all heard.
fn exchange(client: &mut RawTcp, server: &mut RawTcp) {
    client.push(b"a question");
    assert_eq!(server.wait_for(10).expect("the question arrives"), b"a question");
    server.push(b"and its answer");
    assert_eq!(client.wait_for(14).expect("the answer arrives"), b"and its answer");
    // Its acknowledgment, so that nothing is under way.
    server.say_nothing_for(Duration::from_millis(50));
}

/// The next segment that carries payload.
fn payload(tcp: &mut RawTcp, patience: Duration) -> Option<Arrived> {
    heard(tcp, patience, |arrived| !arrived.payload.is_empty())
}

fn reset(tcp: &mut RawTcp, patience: Duration) -> Option<Arrived> {
    heard(tcp, patience, |arrived| arrived.rst)
}

fn heard(tcp: &mut RawTcp, patience: Duration, wanted: impl Fn(&Arrived) -> bool) -> Option<Arrived> {
    let deadline = Instant::now() + patience;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        if let Some(arrived) = tcp.hear(left).filter(&wanted) {
            return Some(arrived);
        }
    }
    None
}

fn dropped(metrics: &Metrics, reason: &str) -> u64 {
    metrics.sum("sluice_dropped_packets_total", &[("reason", reason)])
}

#[test]
fn the_header_is_repeated_until_it_is_acknowledged() {
    let lab = Lab::two_arms();
    let _sluice = Sluice::start(&lab, &Setup::of([service().proxy_protocol("v2")]));
    let mut station = station(&lab);
    let mut client = client(&lab, 40_000, Shape::usual());
    let syn = dial_of(&mut station, client.numbers().0, V2_IPV4);
    let first = syn.seq.wrapping_add(1);
    let mut server = RawTcp::accept(station, syn, Shape::usual());
    let mut copies = Vec::new();
    for _ in 0..3 {
        let copy = payload(&mut server, SOON).expect("the header, again and again");
        assert_eq!(copy.seq, first);
        copies.push(copy.payload);
    }
    // Only now does the server take one.
    let taken = server.wait_for(V2_IPV4).expect("the header");
    assert!(copies.iter().all(|copy| *copy == taken), "{copies:?}");
    assert_eq!(taken[..12], *b"\r\n\r\n\0\r\nQUIT\n");
    let SocketAddr::V4(address) = client.ends().0 else { unreachable!("it is IPv4's") };
    assert_eq!((&taken[16..20], &taken[24..26]), (&address.ip().octets()[..], &address.port().to_be_bytes()[..]));
    assert_eq!(payload(&mut server, Duration::from_secs(2)), None, "it is forgotten when it is acknowledged");
    exchange(&mut client, &mut server);
}

#[test]
fn early_data_of_the_client_arrives_once_and_in_order_behind_the_header() {
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of([service().proxy_protocol("v2")]));
    let mut station = station(&lab);
    let mut client = client(&lab, 40_000, Shape::usual());
    let first = client.numbers().0;
    for early in [&b"one "[..], b"two ", b"three"] {
        client.push(early);
    }
    let syn = dial_of(&mut station, first, V2_IPV4);
    assert_eq!(client.hear(A_MOMENT), None, "nobody has what the client sent, so nobody acknowledges it");
    let mut expected = syn.seq.wrapping_add(1);
    let mut server = RawTcp::accept(station, syn, Shape::usual());
    let mut stream = Vec::new();
    while stream.len() < V2_IPV4 + 13 {
        let arrived = payload(&mut server, SOON).expect("all of it");
        assert_eq!(arrived.seq, expected, "after {} octets", stream.len());
        expected = arrived.end();
        stream.extend(arrived.payload);
        let next = server.numbers().0;
        server.say(flags::ACK, next, expected, &[], 0);
    }
    assert_eq!(expected, first.wrapping_add(13));
    assert_eq!(stream[V2_IPV4..], *b"one two three");
    assert_eq!(payload(&mut server, Duration::from_secs(1)), None, "each octet once");
    let acknowledged = heard(&mut client, SOON, |arrived| arrived.ack == expected);
    assert!(acknowledged.is_some(), "the server's acknowledgment reaches the client");
    assert_eq!(sluice.metrics().sum("sluice_sessions_active", &[]), 1);
}

#[test]
fn data_of_the_server_reaches_the_client_though_the_header_is_not_acknowledged() {
    let lab = Lab::two_arms();
    let _sluice = Sluice::start(&lab, &Setup::of([service().proxy_protocol("v2")]));
    let mut station = station(&lab);
    let mut client = client(&lab, 40_000, Shape::usual());
    let (first, expected) = client.numbers();
    let syn = dial_of(&mut station, first, V2_IPV4);
    let dialled = syn.seq;
    let mut server = RawTcp::accept(station, syn, Shape::usual());
    payload(&mut server, SOON).expect("the header");
    let next = server.numbers().0;
    // Nothing, then a part of the header, then all of it is acknowledged.
    for (octets, sent, acknowledged) in [(&b"wel"[..], 0, 1), (b"come", 3, 11), (b"!", 7, 1 + V2_IPV4 as u32)] {
        let seq = next.wrapping_add(sent);
        server.say(flags::PSH | flags::ACK, seq, dialled.wrapping_add(acknowledged), octets, 0);
        let arrived = payload(&mut client, SOON).expect("the server's data");
        assert_eq!(arrived.payload, octets);
        assert_eq!(arrived.seq, expected.wrapping_add(sent));
        assert_eq!(arrived.ack, first, "the header is nothing to the client");
        client.say(flags::ACK, first, arrived.end(), &[], 0);
        let end = seq.wrapping_add(octets.len() as u32);
        assert!(heard(&mut server, SOON, |arrived| arrived.ack == end).is_some(), "the client's acknowledgment");
    }
    client.push(b"thanks");
    let thanks = heard(&mut server, SOON, |arrived| arrived.payload == b"thanks").expect("the client's data");
    assert_eq!(thanks.seq, first);
}

#[test]
fn the_dial_offers_what_the_client_offered_with_the_clients_numbers() {
    let lab = Lab::two_arms();
    let _sluice = Sluice::start(&lab, &Setup::of([service().proxy_protocol("v2")]));
    let mut station = station(&lab);
    let usual = Shape::usual();
    let shapes = [
        ("as Linux", usual.clone()),
        ("as Windows", Shape { timestamps: false, wscale: Some(8), ..usual.clone() }),
        ("a small MSS", Shape { mss: Some(1000), ..usual.clone() }),
        ("a scale of 3", Shape { wscale: Some(3), ..usual.clone() }),
        ("no SACK", Shape { sack: false, ..usual.clone() }),
        ("timestamps only", Shape { sack: false, wscale: None, ..usual }),
        ("nothing", Shape::plain()),
    ];
    for ((what, shape), port) in shapes.into_iter().zip(41_000..) {
        let client = client(&lab, port, shape.clone());
        let syn = dial_of(&mut station, client.numbers().0, V2_IPV4);
        let mss = syn.mss.expect("an MSS");
        // The cookie knows eight sizes.
        let client_mss = shape.mss.unwrap_or(536);
        assert!(mss <= client_mss && mss >= client_mss.min(536), "{what}: MSS {mss} of {client_mss}");
        assert!(client_mss != 1460 || mss == 1460, "{what}: MSS {mss}");
        let offered = (syn.wscale, syn.sack, syn.clock.is_some());
        assert_eq!(offered, (shape.wscale, shape.sack, shape.timestamps), "{what}: {syn:?}");
        if let Some((value, echo)) = syn.clock {
            // A raw client's clock began at a million.
            assert!((1_000_000..1_060_000).contains(&value) && echo == 0, "{what}: {value} {echo}");
        }
        assert_ne!(syn.window, 0, "{what}");
    }
}

#[test]
fn the_next_upstream_gets_the_same_numbers_and_the_clients_data() {
    let lab = Lab::two_arms();
    let good = Family::V4.raw_server(PORT);
    let silent = SocketAddr::from((SILENT4, NOBODY));
    for (bad, reason) in [(Family::V4.server(NOBODY), "refused"), (silent, "timeout")] {
        // By weight the bad one comes first at least once.
        let service = service().proxy_protocol("v1").upstreams(&[bad, good]).timeout("connect", "700ms");
        let sluice = Sluice::start(&lab, &Setup::of([service]));
        let mut station = station(&lab);
        for port in [42_000, 42_001, 42_002] {
            let mut client = client(&lab, port, Shape::usual());
            client.push(b"early");
            let (me, listen) = client.ends();
            let header = format!("PROXY TCP4 {} {} {} {}\r\n", me.ip(), listen.ip(), me.port(), listen.port());
            let first = client.numbers().0.wrapping_sub(5);
            let syn = dial_of(&mut station, first, header.len());
            let mut server = RawTcp::accept(station, syn, Shape::usual());
            let stream = server.wait_for(header.len() + 5).expect("the header and the early data");
            assert_eq!(String::from_utf8_lossy(&stream), format!("{header}early"));
            exchange(&mut client, &mut server);
            station = server.into_station();
        }
        let failures = sluice.metrics().sum("sluice_upstream_dial_failures_total", &[("reason", reason)]);
        assert!(failures >= 1, "{reason}: the bad upstream was never dialled");
    }
}

#[test]
fn half_closes_travel_with_a_mebibyte_behind_them_and_a_header_in_front() {
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", PORT).proxy_protocol("v2").splice()]));
    for (family, header) in [(Family::V4, V2_IPV4), (Family::V6, V2_IPV6)] {
        let route = Route::of(&lab, family, PORT).behind_header(header);
        for converse in [client_closes_first, server_closes_first] {
            let seen = converse(&route, MIB);
            assert_eq!(seen.by_server, Pattern::heard(UP, MIB, Ending::Eof));
            assert_eq!(seen.by_client, Pattern::heard(DOWN, MIB, Ending::Eof));
            let record = sluice.record_of(seen.client.0, SOON);
            assert_eq!((record.cause.as_str(), record.blame.as_str()), ("closed", "nobody"), "{record:?}");
            assert_eq!((record.bytes_to_upstream, record.bytes_to_client), (MIB + 1, MIB), "{record:?}");
        }
    }
}

#[test]
fn a_reset_reaches_the_other_end_with_the_number_it_waits_for() {
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of([service()]));
    for (cause, port) in [("client_reset", 40_000), ("upstream_reset", 40_001)] {
        let (mut client, mut server) = connection(&lab, port);
        exchange(&mut client, &mut server);
        let (from, to) = if cause == "client_reset" { (&mut client, &mut server) } else { (&mut server, &mut client) };
        let (next, expected) = from.numbers();
        from.say(flags::RST | flags::ACK, next, expected, &[], 0);
        let arrived = reset(to, SOON).expect("the reset travels");
        assert_eq!(arrived.seq, to.numbers().1, "{cause}");
        let record = sluice.record_of(client.ends().0, SOON);
        assert_eq!((record.cause.as_str(), record.bytes_to_upstream, record.bytes_to_client), (cause, 10, 14));
    }
}

#[test]
fn blind_resets_data_and_acknowledgments_are_refused_and_the_connection_lives() {
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of([service()]));
    let (mut client, mut server) = connection(&lab, 40_000);
    exchange(&mut client, &mut server);
    let far = 0x4000_0000_u32;
    // What, reason, flags, number beyond the next one, acknowledgment beyond the right one, payload.
    type Attack = (&'static str, &'static str, u8, u32, u32, &'static [u8]);
    let attacks: [Attack; 7] = [
        ("a reset in the window", "bad_rst", flags::RST, 100, 0, b""),
        ("a reset in the window with an ACK", "bad_rst", flags::RST | flags::ACK, 1, 0, b""),
        ("a reset anywhere", "bad_rst", flags::RST, far, 0, b""),
        ("data far ahead", "out_of_window", flags::ACK, 10_000_000, 0, b"evil"),
        ("data far behind", "out_of_window", flags::ACK, 10_000_000_u32.wrapping_neg(), 0, b"evil"),
        ("an acknowledgment of what was never sent", "bad_ack", flags::ACK, 0, 1000, b"evil"),
        ("an acknowledgment from long ago", "old_ack", flags::ACK, 0, 10_000_000_u32.wrapping_neg(), b"evil"),
    ];
    for by_client in [true, false] {
        let (attacker, victim) = if by_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
        for (what, reason, flags, beyond, acked, payload) in attacks {
            let before = dropped(&sluice.metrics(), reason);
            let (next, expected) = attacker.numbers();
            attacker.say(flags, next.wrapping_add(beyond), expected.wrapping_add(acked), payload, 0);
            let got = heard(victim, Duration::from_millis(100), |it| it.rst || !it.payload.is_empty());
            assert_eq!(got, None, "{what} came through, by client {by_client}");
            let after = sluice.metrics();
            assert_eq!(dropped(&after, reason), before + 1, "{what}, by client {by_client}:\n{after}");
        }
    }
    exchange(&mut client, &mut server);
    assert_eq!(sluice.metrics().sum("sluice_sessions_active", &[]), 1);
    // What a timestamp says is for the end hosts: they know better.
    let (next, expected) = client.numbers();
    client.say(flags::ACK, next, expected, b"from the past", 100_000);
    let passed = heard(&mut server, SOON, |it| !it.payload.is_empty()).expect("data with an old clock travels");
    assert_eq!(passed.payload, b"from the past");
}

#[test]
fn timeouts_reset_both_ends_with_the_numbers_they_wait_for() {
    let lab = Lab::two_arms();
    for (cause, port) in
        [("client_idle", 40_000), ("upstream_idle", 40_001), ("first_data", 40_002), ("half_closed", 40_003)]
    {
        let sluice = Sluice::start(&lab, &Setup::of([service().timeout(cause, "1s")]));
        let (mut client, mut server) = connection(&lab, port);
        if cause != "first_data" {
            exchange(&mut client, &mut server);
        }
        let (mut next, expected) = client.numbers();
        if cause == "half_closed" {
            client.say(flags::FIN | flags::ACK, next, expected, &[], 0);
            let fin = heard(&mut server, SOON, |arrived| arrived.fin).expect("the FIN travels");
            assert_eq!(fin.seq, next);
            next = next.wrapping_add(1);
            let seq = server.numbers().0;
            server.say(flags::ACK, seq, next, &[], 0);
        }
        let (to_client, to_server) = thread::scope(|scope| {
            let waiting = scope.spawn(|| reset(&mut client, SOON));
            let to_server = reset(&mut server, SOON);
            (waiting.join().expect("the client's thread"), to_server)
        });
        assert_eq!(to_client.map(|it| it.seq), Some(expected), "{cause}: the client is told");
        assert_eq!(to_server.map(|it| it.seq), Some(next), "{cause}: the upstream is told");
        assert_eq!(sluice.record_of(client.ends().0, SOON).cause, cause);
    }
}

#[test]
fn a_hundred_mebibytes_arrive_intact_between_the_families() {
    let lab = Lab::two_arms();
    let _nginx = nginx(&lab, 8080, 8081);
    let services = Family::BOTH.map(|family| {
        let port = if family == Family::V4 { 8181 } else { 8182 };
        Service::new(&format!("http-{port}"), port).upstreams(&[family.server(8080)]).proxy_protocol("v2").splice()
    });
    let _sluice = Sluice::start(&lab, &Setup::of(services));
    let mut body = vec![0; 100 << 20];
    fastrand::Rng::with_seed(7).fill(&mut body);
    std::fs::write(lab.path("large"), &body).expect("the lab's directory takes it");
    let expected = sha256(&body);
    for (v6, port) in [(true, 8181), (false, 8182)] {
        let fetched = curl(&lab, &url(v6, port, "/files/large"), &[]);
        assert_eq!((fetched.exit, fetched.body.len()), (0, body.len()), "v6 client {v6}");
        assert_eq!(sha256(&fetched.body), expected, "v6 client {v6}");
        let fetched = curl(&lab, &url(v6, port, "/who"), &[]);
        let local = fetched.local.expect("curl connected");
        assert_eq!(fetched.text(), format!("{} {}\n", local.ip(), local.port()));
    }
}
