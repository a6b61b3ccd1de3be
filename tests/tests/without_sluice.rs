//! The lab itself, without sluice: clients and servers joined by a cable. What fails here is the harness's fault; what is seen
//! here is what peers must see through sluice.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use sluice_tests::capture::{Conversation, Legs, Tap};
use sluice_tests::closings::{Cell, Closing, Header, Load};
use sluice_tests::crowd::{Echo, visit};
use sluice_tests::echo::answers;
use sluice_tests::flood::{Flood, Kind, resolve};
use sluice_tests::frames::flags;
use sluice_tests::lab::{Arms, Family, Lab, SERVICE4, Side};
use sluice_tests::link::Link;
use sluice_tests::loss::Losses;
use sluice_tests::peer::{
    DOWN, Ending, Pattern, Route, UP, both_send, client_closes_first, client_resets, client_stalls,
    server_closes_first, server_resets, server_stalls,
};
use sluice_tests::rawtcp::{RawTcp, SERVER_MAC, Shape};
use sluice_tests::servers::{curl, haproxy, iperf3, iperf3_run, nginx, nginx_log, ssh, sshd, url};
use sluice_tests::station::Station;
use sluice_tests::trial::{Between, Trial};
use sluice_tests::wire::Impairment;

const MIB: u64 = 1 << 20;

#[test]
fn conversations_over_a_cable_end_as_tcp_says() {
    let lab = Lab::cable();
    for family in Family::BOTH {
        let route = Route::of(&lab, family, 7001);
        let (up, down) = (Pattern::heard(UP, MIB, Ending::Eof), Pattern::heard(DOWN, MIB, Ending::Eof));
        for converse in [client_closes_first, server_closes_first, both_send] {
            let seen = converse(&route, MIB);
            assert_eq!((&seen.by_server, &seen.by_client), (&up, &down));
            assert_eq!(seen.client.0.ip(), family.client());
        }
        assert_eq!(client_resets(&route).by_other, Ending::Reset);
        assert_eq!(server_resets(&route).by_other, Ending::Reset);
    }
}

#[test]
fn a_stalled_reader_holds_the_sender_back() {
    let lab = Lab::cable();
    let octets = 64 * MIB;
    let pause = Duration::from_secs(1);
    let seen = server_stalls(&Route::v4(&lab, 7001), octets, pause);
    assert!(seen.sender_waited);
    assert_eq!(seen.heard, Pattern::heard(UP, octets, Ending::Eof));
    let seen = client_stalls(&Route::v4(&lab, 7002), octets, pause);
    assert!(seen.sender_waited);
    assert_eq!(seen.heard, Pattern::heard(DOWN, octets, Ending::Eof));
}

#[test]
fn nginx_and_haproxy_tell_the_address_of_a_proxy_header() {
    let lab = Lab::cable();
    let _nginx = nginx(&lab, 8080, 8081);
    let _haproxy = haproxy(&lab, 8090);
    for v6 in [false, true] {
        // curl writes the v1 header itself.
        let fetched = curl(&lab, &url(v6, 8080, "/who"), &["--haproxy-protocol"]);
        let local = fetched.local.expect("curl connected");
        assert_eq!(fetched.text(), format!("{} {}\n", local.ip(), local.port()));
        assert!(nginx_log(&lab).contains(&format!("/who {} {} ", local.ip(), local.port())));
        let plain = curl(&lab, &url(v6, 8081, "/"), &[]);
        assert_eq!(plain.text(), format!("{} {}\n", plain.local.unwrap().ip(), plain.local.unwrap().port()));
        assert_ne!(curl(&lab, &url(v6, 8080, "/"), &[]).exit, 0, "nginx insists on the header");
    }
    for v6 in [false, true] {
        let fetched = curl(&lab, &url(v6, 8090, "/"), &["--haproxy-protocol"]);
        let local = fetched.local.expect("curl connected");
        assert_eq!(fetched.text(), format!("{} {}\n", local.ip(), local.port()));
    }
}

#[test]
fn kernels_answer_echo() {
    let lab = Lab::cable();
    for family in Family::BOTH {
        assert_eq!(answers(&lab.client, family.service(0).ip(), 5, Duration::from_millis(5)), 5);
    }
}

#[test]
fn a_router_tells_the_server_of_a_smaller_link_to_the_host_behind_it() {
    let lab = Lab::cable();
    let far = lab.host_behind(Side::Client, 1300);
    for family in Family::BOTH {
        let (address, router) = (family.behind(Side::Client), family.client());
        lab.server.sh(&format!("ip route add {address} via {router}"));
        let at = family.service(7001);
        let listener = lab.server.listen(at);
        let client = far.connect(at).expect("the router forwards");
        let server = sluice_tests::peer::accept(&listener);
        assert_eq!(lab.server.path_mtu(address), None);
        let sending = thread::spawn(move || drop(sluice_tests::peer::send(&server, DOWN, MIB)));
        assert_eq!(sluice_tests::peer::hear(&client), Pattern::heard(DOWN, MIB, Ending::Eof));
        sending.join().unwrap();
        assert_eq!(lab.server.path_mtu(address), Some(1300), "{family:?}");
    }
}

#[test]
fn ssh_and_iperf3_work_over_a_cable() {
    let lab = Lab::cable();
    let (_sshd, key) = sshd(&lab, 2222);
    assert_eq!(ssh(&lab, &key, SERVICE4, 2222, "echo hello"), b"hello\n");
    let _iperf3 = iperf3(&lab, 5201);
    for reverse in [false, true] {
        let rate = iperf3_run(&lab, 5201, 1, reverse);
        assert!(rate > 50e6, "{rate} bit/s");
    }
}

#[test]
fn a_crowd_of_five_thousand_gets_its_echoes() {
    let lab = Lab::cable();
    let _echo = Echo::start(&lab.server, Family::V4.service(7));
    let began = Instant::now();
    let mut stood = 0;
    visit(&lab.client, Family::V4.service(7), 5000, 1024, || {
        let listed = lab.client.sh("ss -Htn state established | wc -l");
        stood = listed.trim().parse().unwrap();
    });
    assert_eq!(stood, 5000, "all stand at once");
    eprintln!("5,000 visitors took {:?}", began.elapsed());
}

/// As on a wire. A sender that is told of a loss has not sent the segment, and numbers what follows as if it had never been.
#[test]
fn what_a_link_loses_its_sender_has_sent() {
    let lab = Lab::cable();
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let (mut client, _server, _) = route.connect(&listener);
    let losses = Losses::start(&lab, 1000);
    client.write_all(&[0; 100]).expect("it fits");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let seen = lab.client.sh("ss -Htin state established dport = :7001");
        if seen.contains("unacked:1 ") {
            assert!(!seen.contains("notsent:"), "{seen}");
            break;
        }
        assert!(Instant::now() < deadline, "nothing was sent: {seen}");
        thread::sleep(Duration::from_millis(10));
    }
    let lost = losses.counts();
    assert!(lost.iter().any(|lost| lost.at == "client egress" && lost.packets > 0), "{lost:?}");
}

/// The trial that sluice is put to in `whole_appliance::closings`, with somebody else between.
fn over_links_that_lose_one_percent(between: Between, headers: &[Header]) {
    let trial = Trial {
        between,
        cells: Cell::all(&Closing::SHORT, headers),
        load: Load { count: 300, at_once: 300, patience: Duration::from_secs(90) },
        per_mille: 10,
        ring: Trial::RING,
    };
    trial.run().expect_all(between.as_str());
}

#[test]
fn short_connections_complete_over_a_cable_that_loses() {
    over_links_that_lose_one_percent(Between::Nobody, &[Header::None]);
}

#[test]
fn short_connections_complete_through_haproxy_over_links_that_lose() {
    over_links_that_lose_one_percent(Between::Haproxy, &Header::BOTH);
}

#[test]
fn three_thousand_that_echo_at_once_complete_through_haproxy() {
    let trial = Trial {
        between: Between::Haproxy,
        cells: Cell::all(&[Closing::Echo], &Header::BOTH),
        load: Load { count: 3000, at_once: 3000, patience: Duration::from_secs(90) },
        per_mille: 0,
        ring: Trial::RING,
    };
    trial.run().expect_all("HAProxy");
}

/// What a trial is for.
#[test]
fn connections_that_fail_are_named_with_their_reason_and_their_packets_are_kept() {
    // Nobody writes the header that these servers read first.
    let trial = Trial {
        between: Between::Nobody,
        cells: Cell::all(&Closing::SHORT, &[Header::V2]),
        load: Load { count: 20, at_once: 80, patience: Duration::from_secs(3) },
        per_mille: 0,
        ring: Trial::RING,
    };
    let outcome = trial.run();
    for report in &outcome.reports {
        assert_eq!((report.durations.len(), report.failures.len(), report.strays.len()), (0, 20, 20), "{report}");
        for failure in &report.failures {
            let known = |client: SocketAddr| Family::BOTH.iter().any(|family| family.client() == client.ip());
            assert!(failure.client.is_some_and(known), "{failure}");
            // Where the client is silent, the ends wait for each other.
            let silent = report.cell.closing == Closing::Greeting;
            assert!(!silent || failure.reason.starts_with("waiting for the end: not done after 3s"), "{failure}");
        }
        assert!(report.strays.iter().all(|stray| stray.contains(": reading the header: ")), "{:?}", report.strays);
    }
    let kept = outcome.kept.expect("failures are recorded");
    let listed = std::fs::read_to_string(kept.join("server-speaks-first-proxy-v2.txt")).unwrap();
    assert_eq!(listed.lines().count(), 40, "{listed}");
    for leg in ["client", "server"] {
        let record = kept.join(format!("server-speaks-first-proxy-v2-{leg}.pcap"));
        let mut record = pcap::Capture::from_file(&record).unwrap();
        let mut dials = 0;
        while let Ok(packet) = record.next_packet() {
            let tcp = if packet.data[12] == 0x08 { 14 + 20 } else { 14 + 40 };
            dials += usize::from(packet.data[tcp + 13] & (flags::SYN | flags::ACK) == flags::SYN);
        }
        assert_eq!(dials, 20, "{leg}");
    }
}

#[test]
fn the_raw_client_is_understood_by_a_kernel() {
    let lab = Lab::cable();
    for (number, (family, shape)) in [
        (Family::V4, Shape::plain()),
        (Family::V4, Shape::usual()),
        (Family::V6, Shape::usual()),
        (Family::V4, Shape { mss: Some(88), ..Shape::plain() }),
        (Family::V4, Shape { wscale: Some(14), window: 4, ..Shape::usual() }),
        (Family::V4, Shape { payload: b"GET".to_vec(), flags: flags::ECE | flags::CWR, ..Shape::usual() }),
    ]
    .into_iter()
    .enumerate()
    {
        let port = 7100 + u16::try_from(number).unwrap();
        let listener = Route::of(&lab, family, port).listen();
        let serving = thread::spawn(move || {
            let server = sluice_tests::peer::accept(&listener);
            let mut ear = sluice_tests::peer::Ear::default();
            assert_eq!(ear.hear(&server, 3 + 10), None);
            sluice_tests::peer::send(&server, DOWN, 40_000).unwrap();
            drop(listener);
        });
        let on_syn = shape.payload.len();
        let me = (family.raw_client(), 33_000).into();
        let mss = shape.mss.unwrap_or(536);
        let mut tcp = RawTcp::connect(&lab.client, "c0", me, family.service(port), shape)
            .unwrap_or_else(|error| panic!("shape {number}: {error}"));
        let answer =
            tcp.ask(&b"GET0123456789"[on_syn..], 40_000).unwrap_or_else(|error| panic!("shape {number}: {error}"));
        assert_eq!(answer.len(), 40_000);
        assert!(tcp.largest_segment() <= usize::from(mss));
        tcp.close().unwrap();
        serving.join().unwrap();
    }
}

#[test]
fn the_raw_server_is_understood_by_a_kernel() {
    let lab = Lab::cable();
    for family in Family::BOTH {
        let me = (family.raw_client(), 443).into();
        let mut station = Station::listen(&lab.server, "s0", SERVER_MAC, me);
        let talking = lab.client.spawn(move || {
            let mut client = std::net::TcpStream::connect(me).expect("the raw server answers");
            client.write_all(b"hello").expect("a few octets fit");
            let mut heard = [0; 7];
            client.read_exact(&mut heard).expect("the raw server speaks");
            (heard, sluice_tests::peer::ending(&client))
        });
        let syn = station.next_syn(Duration::from_secs(3)).expect("the client dials");
        let mut server = RawTcp::accept(station, syn, Shape::usual());
        assert!(server.offer().sack && server.offer().timestamps && server.offer().wscale.is_some());
        assert_eq!(server.wait_for(5).unwrap(), b"hello");
        server.tell(b"welcome").unwrap();
        server.close().unwrap();
        assert_eq!(talking.join().unwrap(), (*b"welcome", Ending::Eof));
    }
}

#[test]
fn the_lossy_wire_loses_and_reorders_and_tcp_survives_it() {
    let lab = Lab::new(Arms::Cable, Some(Impairment::LOSSY));
    let octets = 20 * MIB;
    let began = Instant::now();
    let seen = both_send(&Route::v4(&lab, 7001), octets);
    eprintln!("20 MiB each way over the lossy wire took {:?}", began.elapsed());
    assert_eq!(seen.by_server, Pattern::heard(UP, octets, Ending::Eof));
    assert_eq!(seen.by_client, Pattern::heard(DOWN, octets, Ending::Eof));
    let counts = lab.wire().expect("a wire").counts();
    let (received, lost, held) = (
        counts.received.load(Ordering::Relaxed),
        counts.lost.load(Ordering::Relaxed),
        counts.held.load(Ordering::Relaxed),
    );
    let share = |count: u64| count as f64 / received as f64;
    assert!((0.007..0.013).contains(&share(lost)), "{lost} of {received} lost");
    assert!((0.007..0.013).contains(&share(held)), "{held} of {received} held back");
    assert_eq!(counts.refused.load(Ordering::Relaxed), 0);
}

/// A wire that loses and forwards the rest as it came is what splice mode does, without its translations.
#[test]
fn the_checker_finds_nothing_wrong_with_kernels_on_a_losing_wire() {
    let lab = Lab::new(Arms::Cable, Some(Impairment { loss: 0.01, ..Impairment::NONE }));
    lab.keep_order();
    for family in Family::BOTH {
        let taps = [Tap::start(&lab.client, "c0", 7001), Tap::start(&lab.server, "s0", 7001)];
        let route = Route::of(&lab, family, 7001);
        let seen = both_send(&route, 4 * MIB);
        assert_eq!(seen.by_server, Pattern::heard(UP, 4 * MIB, Ending::Eof));
        let [client, server] = taps.map(Tap::finish);
        let legs = Legs { client, server };
        let (client, service) = (seen.client.0, route.dial);
        let conversation = Conversation { client, service, source: client, upstream: service, header: 0 };
        let (on_client, on_server) = legs.sack_blocks(&conversation);
        eprintln!("{} frames, SACK blocks in {on_client} and {on_server}", legs.client.len() + legs.server.len());
        assert!(on_client > 10 && on_server > 10, "losses are repaired by SACK");
        legs.expect_clean(&conversation);
    }
}

#[test]
fn a_wire_without_impairment_is_a_cable() {
    let lab = Lab::new(Arms::Cable, Some(Impairment::NONE));
    let _iperf3 = iperf3(&lab, 5201);
    let rate = iperf3_run(&lab, 5201, 2, false);
    eprintln!("{:.0} Mbit/s over the wire", rate / 1e6);
    assert!(rate > 100e6, "{rate} bit/s");
    assert_eq!(lab.wire().expect("a wire").counts().lost.load(Ordering::Relaxed), 0);
}

#[test]
fn a_flood_sends_what_it_says() {
    let lab = Lab::cable();
    let received =
        || -> u64 { lab.server.sh("cat /proc/net/dev | grep s0: | awk '{print $3}'").trim().parse().unwrap() };
    let to_mac = lab.client.run(|| resolve(SERVICE4.into())).unwrap();
    assert_eq!(to_mac, lab.server.mac_of("s0"));
    let mut link = Link::open(&lab.client, "c0");
    for kind in [Kind::Syn, Kind::Ack, Kind::Rst, Kind::Malformed] {
        let before = received();
        let flood = Flood {
            kind,
            to: Family::V4.service(443),
            from_mac: lab.client.mac_of("c0"),
            to_mac,
            count: 20_000,
            rate: 100_000,
            seed: 7,
        };
        let report = flood.run(&mut link);
        eprintln!("{report:?}");
        assert_eq!((report.sent, report.refused), (20_000, 0));
        assert!((0.19..1.0).contains(&report.seconds));
        let arrived = received() - before;
        assert!((20_000..20_100).contains(&arrived), "{arrived} arrived");
    }
}
