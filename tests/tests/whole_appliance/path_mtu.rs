//! Links that take smaller packets than the appliance's ports, and the ICMP messages about them: a router that tells one leg's sender is
//! heard by the host whose segment it was, and what nobody tells is found out.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use sluice_tests::appliance::{Mode, Service, Setup, Sluice};
use sluice_tests::frames::{Segment, flags, too_big};
use sluice_tests::lab::{Family, LAN4, LAN6, Lab, Side};
use sluice_tests::link::Link;
use sluice_tests::peer::{DOWN, Ending, Pattern, UP, accept, hear, send};
use sluice_tests::rawtcp::{RawTcp, SERVER_MAC, Shape};
use sluice_tests::small_paths::passages;
use sluice_tests::station::{Arrived, Station};
use sluice_tests::trial::Between;

use crate::basics::SOON;

const MIB: u64 = 1 << 20;
const LINK: u16 = 1300;
const PORTS: [(Family, u16); 2] = [(Family::V4, 7004), (Family::V6, 7006)];

/// The same link for packets of the other family, whose headers are 20 octets shorter or longer.
fn as_of(mtu: u16, on: Family, at: Family) -> u16 {
    match (on, at) {
        (Family::V4, Family::V6) => mtu + 20,
        (Family::V6, Family::V4) => mtu - 20,
        _ => mtu,
    }
}

/// A spliced service for each family of upstreams, on a port of its own.
fn services(address: impl Fn(Family, u16) -> SocketAddr) -> [Service; 2] {
    PORTS.map(|(upstream, port)| {
        Service::new(&format!("to-{port}"), port).upstreams(&[address(upstream, port)]).splice_pinned()
    })
}

fn lan(family: Family) -> IpAddr {
    match family {
        Family::V4 => LAN4.into(),
        Family::V6 => LAN6.into(),
    }
}

#[test]
fn a_small_link_before_the_client_lowers_the_servers_path_mtu() {
    let lab = Lab::two_arms();
    let far = lab.host_behind(Side::Client, LINK);
    let sluice = Sluice::start(&lab, &Setup::of(services(Family::server)));
    for (upstream, port) in PORTS {
        let listener = lab.server.listen(upstream.server(port));
        for family in Family::BOTH {
            lab.server.sh("ip route flush cache; ip -6 route flush cache");
            assert_eq!(lab.server.path_mtu(lan(upstream)), None);
            let client = far.connect(family.service(port)).expect("sluice answers");
            let server = accept(&listener);
            let sending = thread::spawn(move || drop(send(&server, DOWN, 4 * MIB)));
            assert_eq!(hear(&client), Pattern::heard(DOWN, 4 * MIB, Ending::Eof), "{family:?} to {upstream:?}");
            sending.join().expect("the server's thread");
            let expected = as_of(LINK, family, upstream);
            assert_eq!(
                lab.server.path_mtu(lan(upstream)),
                Some(expected),
                "{family:?} to {upstream:?}\n{}",
                sluice.metrics()
            );
        }
    }
}

#[test]
fn a_small_link_before_the_upstream_lowers_the_clients_path_mtu() {
    let lab = Lab::two_arms();
    let far = lab.host_behind(Side::Server, LINK);
    let setup = Setup::of(services(|upstream, port| (upstream.behind(Side::Server), port).into()))
        .route("10.9.0.0/24", Family::V4.server(0).ip())
        .route("fd00:9::/64", Family::V6.server(0).ip());
    let sluice = Sluice::start(&lab, &setup);
    for (upstream, port) in PORTS {
        let listener = far.listen((upstream.behind(Side::Server), port).into());
        for family in Family::BOTH {
            lab.client.sh("ip route flush cache; ip -6 route flush cache");
            let service = family.service(port);
            assert_eq!(lab.client.path_mtu(service.ip()), None);
            let client = lab.client.connect(service).expect("sluice answers");
            let server = accept(&listener);
            let sending = thread::spawn(move || drop(send(&client, UP, 4 * MIB)));
            assert_eq!(hear(&server), Pattern::heard(UP, 4 * MIB, Ending::Eof), "{family:?} to {upstream:?}");
            sending.join().expect("the client's thread");
            let expected = as_of(LINK, upstream, family);
            assert_eq!(
                lab.client.path_mtu(service.ip()),
                Some(expected),
                "{family:?} to {upstream:?}\n{}",
                sluice.metrics()
            );
        }
    }
}

/// The client's segment that begins with number `seq`.
fn data_of(server: &mut RawTcp, seq: u32) -> Arrived {
    let deadline = Instant::now() + SOON;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        if let Some(data) = server.hear(left).filter(|it| it.seq == seq && !it.payload.is_empty()) {
            return data;
        }
    }
    panic!("no data with number {seq}");
}

/// Somebody who cannot see the connection does not know a number under way; somebody who can, does, and is believed.
#[test]
fn a_forged_report_is_dropped_and_one_about_a_segment_under_way_is_believed() {
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of(services(Family::raw_server)));
    let refused = || sluice.metrics().sum("sluice_dropped_packets_total", &[("reason", "bad_icmp")]);
    let to_mac = lab.appliance.mac_of("p1");
    for (family, port) in PORTS {
        let service = family.service(port);
        let mut station = Station::listen(&lab.server, "s0", SERVER_MAC, family.raw_server(port));
        let dialling = lab.client.spawn(move || std::net::TcpStream::connect(service));
        let syn = station.next_syn(SOON).expect("a dial");
        let client_first = syn.seq.wrapping_add(1);
        let mut server = RawTcp::accept(station, syn, Shape::usual());
        let client = dialling.join().expect("the client's thread").expect("sluice answers");
        send(&client, UP, 1400).expect("it fits");
        let data = data_of(&mut server, client_first);
        let (me, source) = server.ends();
        let mut link = Link::open(&lab.server, "s0");
        let mut report = |seq: u32| {
            let quoted = Segment {
                from_mac: [2; 6],
                to_mac: [4; 6],
                from: source,
                to: me,
                seq,
                ack: data.ack,
                flags: flags::ACK,
                window: 500,
                options: &[],
                payload: &[0; 1400],
            };
            let reporter = family.server(0).ip();
            // As much as a report may hold (RFC 1812 section 4.3.2.3).
            assert!(link.send(&too_big(SERVER_MAC, to_mac, reporter, &quoted.frame()[14..14 + 528], LINK)));
            thread::sleep(Duration::from_millis(100));
        };
        // Long before, just before, just behind (the next number to send may be quoted) and long behind what is under way.
        let wrongs = [10_000_000_u32.wrapping_neg(), 1_u32.wrapping_neg(), 1_401, 10_000_000];
        for (number, wrong) in wrongs.into_iter().enumerate() {
            let before = refused();
            report(data.seq.wrapping_add(wrong));
            assert_eq!(lab.client.path_mtu(service.ip()), None, "report {number} was believed");
            assert_eq!(refused(), before + 1, "report {number}\n{}", sluice.metrics());
        }
        report(data.seq);
        assert_eq!(lab.client.path_mtu(service.ip()), Some(LINK), "{family:?}\n{}", sluice.metrics());
        // The transfer goes on: the kernel repeats what the server has not acknowledged.
        assert_eq!(server.wait_for(1400).expect("the data, repeated").len(), 1400);
        send(&client, UP, 1400).expect("it fits");
        let more = data_of(&mut server, data.end());
        let largest = usize::from(LINK) - if family == Family::V4 { 40 } else { 60 };
        assert!(more.payload.len() <= largest, "a segment of {} octets", more.payload.len());
        assert_eq!(server.wait_for(1400).expect("more data, repeated").len(), 1400);
    }
}

/// A kernel that was told of a small link says so in its SYN-ACKs, to all clients. It is the way to one of them that is small, and
/// the server takes what it took before. (That no connection falls back is seen when sluice ends.)
#[test]
fn a_path_mtu_that_one_client_taught_the_server_makes_no_other_connection_fall_back() {
    let lab = Lab::two_arms();
    let far = lab.host_behind(Side::Client, LINK);
    let sluice = Sluice::start(&lab, &Setup::of(services(Family::server)));
    for (upstream, port) in PORTS {
        let listener = lab.server.listen(upstream.server(port));
        let transfer = |client: std::net::TcpStream| {
            let server = accept(&listener);
            let sending = thread::spawn(move || drop(send(&server, DOWN, MIB)));
            assert_eq!(hear(&client), Pattern::heard(DOWN, MIB, Ending::Eof), "{upstream:?}\n{}", sluice.metrics());
            sending.join().expect("the server's thread");
        };
        transfer(far.connect(Family::V4.service(port)).expect("sluice answers"));
        assert_eq!(lab.server.path_mtu(lan(upstream)), Some(as_of(LINK, Family::V4, upstream)));
        for family in Family::BOTH {
            transfer(lab.client.connect(family.service(port)).expect("sluice answers"));
        }
        assert_eq!(sluice.metrics().sum("sluice_splice_fallbacks_total", &[]), 0);
    }
}

#[test]
fn small_links_before_either_end_carry_terminated_connections_whether_or_not_their_routers_say_so() {
    every_hop_is_passed(Mode::Terminate);
}

#[test]
fn small_links_before_either_end_carry_spliced_connections_whether_or_not_their_routers_say_so() {
    every_hop_is_passed(Mode::Splice);
}

fn every_hop_is_passed(mode: Mode) {
    for (mtu, silent) in [(1_400, false), (1_400, true), (1_280, false), (1_280, true)] {
        for (hop, took) in passages(Between::Sluice(mode), mtu, silent) {
            assert!(took.is_some(), "{mode:?} {hop:?}");
            println!("{mode:?} {hop:?}: {took:?}");
        }
    }
}
