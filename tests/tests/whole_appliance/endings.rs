//! How sessions end: the other side sees what it would see without sluice, and the log says why and whose doing it was.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sluice_tests::appliance::{Mode, NOBODY, Record, Service, Setup, Sluice};
use sluice_tests::lab::{ABSENT4, Family, Lab, SILENT4};
use sluice_tests::peer::{
    DOWN, Ear, Ending, Pattern, Route, UP, accept, accept_within, client_stalls, ending, exchange, send, server_stalls,
};
use sluice_tests::process::Process;

use crate::basics::SOON;

both_modes![
    a_reader_that_stops_for_five_seconds_holds_the_sender_and_loses_nothing,
    a_client_whose_upstreams_are_all_down_is_reset,
    the_next_upstream_is_tried_and_nothing_is_lost,
    on_data_dials_when_the_client_has_spoken,
    an_upstream_killed_in_the_middle_of_a_transfer_looks_killed_to_the_client,
    an_upstream_host_that_vanishes_ends_the_session,
    a_silent_upstream_that_vanishes_is_found_out_by_keep_alives,
    a_clients_keep_alives_keep_its_connection_to_a_silent_upstream,
];

const MIB: u64 = 1 << 20;

fn expect(record: &Record, cause: &str, blame: &str) {
    assert_eq!((record.cause.as_str(), record.blame.as_str()), (cause, blame), "{record:?}");
}

fn a_reader_that_stops_for_five_seconds_holds_the_sender_and_loses_nothing(mode: Mode) {
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("up", 7001), Service::new("down", 7002)]).mode(mode));
    let (octets, pause) = (64 * MIB, Duration::from_secs(5));
    let (up, down, held) = thread::scope(|scope| {
        let up = scope.spawn(|| server_stalls(&Route::v4(&lab, 7001), octets, pause));
        let down = scope.spawn(|| client_stalls(&Route::of(&lab, Family::V6, 7002), octets, pause));
        thread::sleep(Duration::from_secs(3));
        let held = sluice.metrics().sum("sluice_buffer_bytes", &[]);
        (up.join().expect("a conversation"), down.join().expect("a conversation"), held)
    });
    assert!(up.sender_waited && down.sender_waited);
    // Spliced, the window is closed by the reader's own host and sluice holds nothing.
    let allowed = if mode == Mode::Splice { 0 } else { 8 * 65_536 };
    assert!(held <= allowed, "{held} octets held for two stalled sessions");
    assert_eq!(up.heard, Pattern::heard(UP, octets, Ending::Eof));
    assert_eq!(down.heard, Pattern::heard(DOWN, octets, Ending::Eof));
    for seen in [up, down] {
        expect(&sluice.record_of(seen.client.0, SOON), "closed", "nobody");
    }
}

/// Where the client of a dead upstream stands: connected, then reset.
fn dial_the_dead(lab: &Lab, port: u16) -> (SocketAddr, Duration) {
    let began = Instant::now();
    let (address, seen) = Route::v4(lab, port).dial_in_vain();
    assert_eq!(seen, Ending::Reset, "never silence");
    (address, began.elapsed())
}

fn a_client_whose_upstreams_are_all_down_is_reset(mode: Mode) {
    let lab = Lab::two_arms();
    let refusing = [Family::V4.server(NOBODY), Family::V6.server(NOBODY)];
    let sluice = Sluice::start(
        &lab,
        &Setup::of([
            Service::new("refusing", 7001).upstreams(&refusing),
            Service::new("silent", 7002).upstreams(&[(SILENT4, NOBODY).into()]).timeout("connect", "1s"),
            Service::new("absent", 7003).upstreams(&[(ABSENT4, NOBODY).into()]).timeout("connect", "1s"),
        ])
        .mode(mode),
    );
    let failures = |service: &str, reason: &str| {
        let metrics = sluice.metrics();
        metrics.sum("sluice_upstream_dial_failures_total", &[("service", service), ("reason", reason)])
    };

    let (client, took) = dial_the_dead(&lab, 7001);
    assert!(took < Duration::from_millis(800), "refused is known at once, not after {took:?}");
    let record = sluice.record_of(client, SOON);
    expect(&record, "dial_failed", "upstream");
    assert_eq!((record.bytes_to_upstream, record.bytes_to_client, record.connect_ms), (0, 0, None));
    assert_eq!(failures("refusing", "refused"), 2, "each upstream was tried once");

    let (client, took) = dial_the_dead(&lab, 7002);
    assert!((Duration::from_millis(900)..Duration::from_millis(2500)).contains(&took), "{took:?}");
    expect(&sluice.record_of(client, SOON), "dial_failed", "upstream");
    assert_eq!(failures("silent", "timeout"), 1);

    let (client, took) = dial_the_dead(&lab, 7003);
    assert!(took < Duration::from_millis(5000), "{took:?}");
    expect(&sluice.record_of(client, SOON), "dial_failed", "upstream");
    assert_eq!(failures("absent", "unreachable") + failures("absent", "timeout"), 1);
    assert_eq!(sluice.metrics().sum("sluice_sessions_active", &[]), 0);
}

fn the_next_upstream_is_tried_and_nothing_is_lost(mode: Mode) {
    let lab = Lab::two_arms();
    let good = Family::V4.server(7001);
    let sluice = Sluice::start(
        &lab,
        &Setup::of([
            Service::new("refused-first", 7001).upstreams(&[Family::V4.server(NOBODY), good]),
            Service::new("silent-first", 7002).upstreams(&[(SILENT4, NOBODY).into(), good]).timeout("connect", "500ms"),
            Service::new("on-data", 7003).upstreams(&[Family::V4.server(NOBODY), good]).key("connect", "\"on-data\""),
        ])
        .mode(mode),
    );
    let listener = lab.server.listen(good);
    for port in [7001, 7002, 7003] {
        let service = sluice_service(port);
        for _ in 0..4 {
            let route = Route { serve: good, ..Route::v4(&lab, port) };
            let mut client = route.dial();
            client.write_all(b"early").expect("the client is served");
            let server = accept(&listener);
            let mut ear = Ear::default();
            assert_eq!(ear.hear(&server, 5), None);
            exchange(&client, &server);
            let address = client.local_addr().expect("a connected socket has an address");
            drop(client);
            drop(server);
            let record = sluice.record_of(address, SOON);
            expect(&record, "closed", "nobody");
            assert_eq!((record.upstream, record.bytes_to_upstream), (Some(good), 1005), "{record:?}");
        }
        let failed = sluice.metrics().sum("sluice_upstream_dial_failures_total", &[("service", service)]);
        // It is met at least once; afterwards it may be left alone for a while.
        assert!((1..=4).contains(&failed), "the dead upstream of {service} failed {failed} times");
    }
}

fn sluice_service(port: u16) -> &'static str {
    match port {
        7001 => "refused-first",
        7002 => "silent-first",
        _ => "on-data",
    }
}

fn on_data_dials_when_the_client_has_spoken(mode: Mode) {
    let lab = Lab::two_arms();
    let _sluice = Sluice::start(
        &lab,
        &Setup::of([Service::new("on-data", 7001).key("connect", "\"on-data\""), Service::new("on-accept", 7002)])
            .mode(mode),
    );
    let (on_data, on_accept) = (Route::v4(&lab, 7001), Route::v4(&lab, 7002));
    let (silent_listener, eager_listener) = (on_data.listen(), on_accept.listen());
    let _eager = on_accept.dial();
    assert!(accept_within(&eager_listener, SOON).is_some(), "on-accept dials at once");
    let mut client = on_data.dial();
    assert!(accept_within(&silent_listener, Duration::from_millis(700)).is_none(), "no dial before data");
    client.write_all(b"x").expect("the client is served");
    let server = accept(&silent_listener);
    let mut ear = Ear::default();
    assert_eq!(ear.hear(&server, 1), None);
    exchange(&client, &server);
}

/// An upstream in a process of its own is killed; what the client sees.
fn killed(route: &Route<'_>, task: &str) -> (Ending, SocketAddr) {
    let listen = route.serve.to_string();
    let mut server = Process::start(&route.lab.server, env!("CARGO_BIN_EXE_sluice-peer"), &[&listen, task]);
    server.wait_for_line("listening", SOON).expect("the server listens");
    let client = route.dial();
    let address = client.local_addr().expect("a connected socket has an address");
    let writer = client.try_clone().expect("a socket can be cloned");
    let sending = (task == "stall").then(|| thread::spawn(move || send(&writer, UP, 64 * MIB)));
    let mut ear = Ear::default();
    if task == "source" {
        assert_eq!(ear.hear(&client, 4 * MIB), None, "the transfer runs");
    } else {
        server.wait_for_line("stalled", SOON).expect("the server reads");
        // Until its buffers are full of what it will never read.
        thread::sleep(Duration::from_millis(500));
    }
    server.signal(Signal::SIGKILL);
    let mut ended = ear.finish(&client).ending;
    drop(client);
    // A reset is told once, to the reader or to the writer; the other one then finds the stream at its end.
    let told_writer = sending.map(|sending| sending.join().expect("the sender's thread"));
    if told_writer.is_some_and(|sent| sent.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)) {
        ended = Ending::Reset;
    }
    (ended, address)
}

fn an_upstream_killed_in_the_middle_of_a_transfer_looks_killed_to_the_client(mode: Mode) {
    let expected = {
        let lab = Lab::cable();
        ["source", "stall"].map(|task| killed(&Route::v4(&lab, 7001), task).0)
    };
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).mode(mode));
    for (task, expected) in ["source", "stall"].into_iter().zip(expected) {
        let (seen, address) = killed(&Route::v4(&lab, 7001), task);
        assert_eq!(seen, expected, "{task}");
        let record = sluice.record_of(address, SOON);
        if expected == Ending::Reset {
            expect(&record, "upstream_reset", "upstream");
        } else {
            expect(&record, "closed", "nobody");
        }
    }
}

fn an_upstream_host_that_vanishes_ends_the_session(mode: Mode) {
    let lab = Lab::two_arms();
    let service = Service::new("raw", 7001).timeout("unacknowledged", "2s");
    let sluice = Sluice::start(&lab, &Setup::of([service]).mode(mode));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    exchange(&client, &server);
    lab.server.sh("ip link set s0 down");
    send(&client, UP, 1000).expect("sluice takes it");
    let began = Instant::now();
    assert_eq!(ending(&client), Ending::Reset);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    expect(&sluice.record_of(address, SOON), "upstream_timeout", "upstream");
}

fn a_silent_upstream_that_vanishes_is_found_out_by_keep_alives(mode: Mode) {
    let lab = Lab::two_arms();
    let service = Service::new("raw", 7001)
        .keepalive("upstream", "1s", 1)
        .timeout("client_idle", "off")
        .timeout("upstream_idle", "off");
    let sluice = Sluice::start(&lab, &Setup::of([service]).mode(mode));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    exchange(&client, &server);
    // Twice as long as it takes to be given up: the kernel answers.
    thread::sleep(Duration::from_secs(5));
    exchange(&client, &server);
    lab.server.sh("ip link set s0 down");
    assert_eq!(ending(&client), Ending::Reset);
    expect(&sluice.record_of(address, SOON), "upstream_timeout", "upstream");
}

fn a_clients_keep_alives_keep_its_connection_to_a_silent_upstream(mode: Mode) {
    let lab = Lab::two_arms();
    let service = Service::new("raw", 7001).timeout("client_idle", "2s").timeout("upstream_idle", "2s");
    let sluice = Sluice::start(&lab, &Setup::of([service]).mode(mode));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    let every = Duration::from_secs(1);
    let keepalive = socket2::TcpKeepalive::new().with_time(every).with_interval(every).with_retries(9);
    socket2::SockRef::from(&client).set_tcp_keepalive(&keepalive).expect("a kernel has keep-alives");
    exchange(&client, &server);
    thread::sleep(Duration::from_secs(5));
    exchange(&client, &server);
    lab.server.sh("ip link set s0 down");
    assert_eq!(ending(&client), Ending::Reset);
    expect(&sluice.record_of(address, SOON), "upstream_idle", "upstream");
}
