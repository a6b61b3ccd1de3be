//! Timeouts, limits and address lists of the configuration, on real connections.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use sluice_tests::appliance::{Mode, Service, Setup, Sluice};
use sluice_tests::lab::{CLIENT4, FAR_CLIENT4, Family, Lab, SERVICE4};
use sluice_tests::peer::{Ending, Route, ending, exchange};

use crate::basics::SOON;

both_modes![
    each_timeout_ends_a_session_under_its_own_cause,
    connections_past_a_limit_are_refused_and_those_before_stay,
    denied_sources_get_no_answer_and_allowed_ones_within_do,
];

/// Runs out of patience with a session that does not end by itself.
fn ends_after(client: &TcpStream, at_least: Duration, at_most: Duration) -> Ending {
    let began = Instant::now();
    let ending = ending(client);
    let took = began.elapsed();
    assert!((at_least..at_most).contains(&took), "ended with {ending:?} after {took:?}");
    ending
}

fn each_timeout_ends_a_session_under_its_own_cause(mode: Mode) {
    let lab = Lab::two_arms();
    let sluice = Sluice::start(
        &lab,
        &Setup::of([
            Service::new("first-data", 7001).timeout("first_data", "1s"),
            Service::new("client-idle", 7002).timeout("client_idle", "1s"),
            Service::new("upstream-idle", 7003).timeout("upstream_idle", "1s"),
            Service::new("half-closed", 7004).timeout("half_closed", "1s"),
        ])
        .mode(mode),
    );
    let (at_least, at_most) = (Duration::from_millis(700), Duration::from_secs(4));
    let expect = |address: SocketAddr, cause: &str, blame: &str| {
        let record = sluice.record_of(address, SOON);
        assert_eq!((record.cause.as_str(), record.blame.as_str()), (cause, blame), "{record:?}");
    };

    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let client = route.dial();
    let server = sluice_tests::peer::accept(&listener);
    ends_after(&client, at_least, at_most);
    assert_ne!(ending(&server), Ending::Silent, "the upstream is told too");
    expect(client.local_addr().expect("an address"), "first_data", "client");

    for (port, cause, blame) in [(7002, "client_idle", "client"), (7003, "upstream_idle", "upstream")] {
        let route = Route::v4(&lab, port);
        let listener = route.listen();
        let (client, server, address) = route.connect(&listener);
        exchange(&client, &server);
        ends_after(&client, at_least, at_most);
        assert_ne!(ending(&server), Ending::Silent);
        expect(address, cause, blame);
    }

    let route = Route::v4(&lab, 7004);
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    client.shutdown(std::net::Shutdown::Write).expect("the client closes its direction");
    ends_after(&client, at_least, at_most);
    assert_ne!(ending(&server), Ending::Silent);
    expect(address, "half_closed", "nobody");
}

fn connections_past_a_limit_are_refused_and_those_before_stay(mode: Mode) {
    let lab = Lab::two_arms();
    let sluice = Sluice::start(
        &lab,
        &Setup::of([
            Service::new("total", 7001).limit("connections", 3),
            Service::new("per-source", 7002).limit("connections_per_source", 2),
        ])
        .mode(mode),
    );
    for (port, limit) in [(7001, 3), (7002, 2)] {
        let route = Route::v4(&lab, port);
        let listener = route.listen();
        let mut standing: Vec<_> = (0..limit).map(|_| route.connect(&listener)).collect();
        assert_eq!(route.dial_in_vain().1, Ending::Reset, "one more than {limit} is refused");
        for (client, server, _) in &standing {
            exchange(client, server);
        }
        if port == 7002 {
            let other = lab.client.connect_from((FAR_CLIENT4, 0).into(), route.dial).expect("another source");
            let mut other = other;
            other.write_all(b"!").expect("another source is served");
            let server = sluice_tests::peer::accept(&listener);
            assert_eq!(sluice_tests::peer::Ear::default().hear(&server, 1), None);
        }
        // One leaves, one may come.
        drop(standing.pop());
        thread::sleep(Duration::from_millis(300));
        let (client, server, _) = route.connect(&listener);
        exchange(&client, &server);
    }
    let metrics = sluice.metrics();
    assert_eq!(metrics.sum("sluice_session_refusals_total", &[]), 2, "{metrics}");
    assert_eq!(metrics.sum("sluice_cookie_acks_total", &[("result", "limit")]), 2);
}

fn denied_sources_get_no_answer_and_allowed_ones_within_do(mode: Mode) {
    let lab = Lab::two_arms();
    let near = "198.51.100.0/24";
    let setup = Setup::of([Service::new("raw", 7001)])
        .mode(mode)
        .filters(&format!("deny = [\"{near}\"]\nallow = [\"{CLIENT4}/32\"]"));
    lab.client.sh("ip addr add 198.51.100.30/24 dev c0");
    let sluice = Sluice::start(&lab, &setup);
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    for source in [CLIENT4, FAR_CLIENT4] {
        let client = lab.client.connect_from((source, 0).into(), route.dial).expect("allowed");
        let server = sluice_tests::peer::accept(&listener);
        exchange(&client, &server);
    }
    let denied = lab.client.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let from: SocketAddr = "198.51.100.30:0".parse().expect("an address");
        socket.bind(&from.into()).expect("the address is ours");
        socket.connect_timeout(&Family::V4.service(7001).into(), Duration::from_millis(1500))
    });
    assert_eq!(denied.expect_err("denied").kind(), std::io::ErrorKind::TimedOut);
    let metrics = sluice.metrics();
    assert!(metrics.sum("sluice_dropped_packets_total", &[("reason", "deny_list")]) >= 1);
    assert_eq!(metrics.sum("sluice_sessions_opened_total", &[]), 2);
    assert_eq!(route.dial.ip(), SERVICE4);
}
