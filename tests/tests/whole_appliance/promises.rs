//! What SYN-ACKs of spliced services promise, and what becomes of a promise the upstream does not keep.

use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use sluice_tests::appliance::{NOBODY, Service, Setup, Sluice};
use sluice_tests::lab::{Arms, Family, Lab};
use sluice_tests::metrics::Sample;
use sluice_tests::peer::{DOWN, Ending, Pattern, Route, UP, accept, client_closes_first, hear, send};
use sluice_tests::rawtcp::{Offer, RawTcp, Shape};
use sluice_tests::wire::Impairment;

use crate::basics::SOON;

const MIB: u64 = 1 << 20;

/// What the SYN-ACK of service `port` offers a client that knows everything.
fn offer(lab: &Lab, from: u16, port: u16) -> Offer {
    let me = (Family::V4.raw_client(), from).into();
    let tcp = RawTcp::connect(&lab.client, "c0", me, Family::V4.service(port), Shape::usual());
    tcp.unwrap_or_else(|error| panic!("port {port}: {error}")).offer().clone()
}

#[test]
fn a_syn_ack_promises_what_all_upstreams_were_seen_to_accept() {
    let lab = Lab::two_arms();
    let nobody = Family::V4.server(NOBODY);
    // As large as Linux's default, which makes its window scale 7.
    lab.server.sh("sysctl -qw net.ipv4.tcp_rmem='4096 131072 6291456'");
    let _listeners = [7001, 7002].map(|port| lab.server.listen(Family::V4.server(port)));
    let setup = Setup::of([
        Service::new("learned", 7001).splice(),
        Service::new("pinned", 7002).splice_pinned().promise("window_scale", "3"),
        Service::new("part", 7003).upstreams(&[nobody]).splice().promise("sack", "false"),
        Service::new("unknown", 7004).upstreams(&[nobody]).splice(),
    ]);
    let sluice = Sluice::start(&lab, &setup);
    let all = Offer { mss: Some(1460), wscale: Some(7), sack: true, timestamps: true, ecn: false, took: 0 };
    assert_eq!(offer(&lab, 43_001, 7001), all, "{}", sluice.metrics());
    assert_eq!(offer(&lab, 43_002, 7002), Offer { mss: Some(1440), wscale: Some(3), ..all.clone() });
    // Nobody answers there: what is not pinned is what nearly every host accepts.
    for (from, port, sack) in [(43_003, 7003, false), (43_004, 7004, true)] {
        assert_eq!(offer(&lab, from, port), Offer { sack, ..all.clone() }, "port {port}");
    }
}

/// Waits until SYN-ACKs of `service` say so: with the next epoch.
fn wait_for(sluice: &Sluice<'_>, service: &str, metric: &str, value: f64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let metrics = sluice.metrics();
        let says = |sample: &Sample| {
            sample.name == metric
                && sample.labels.get("service").is_some_and(|name| name == service)
                && sample.value == value
        };
        if metrics.samples().iter().any(says) {
            return;
        }
        assert!(Instant::now() < deadline, "{metric} of {service} is not {value}\n{metrics}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Short epochs: a test waits for the next one.
fn with_short_epochs(services: impl IntoIterator<Item = Service>) -> Setup {
    Setup::of(services).tables("[cookies]\nepoch = \"4s\"")
}

#[test]
fn probes_notice_what_an_upstream_gains_and_loses() {
    let lab = Lab::two_arms();
    lab.server.sh("sysctl -qw net.ipv4.tcp_sack=0");
    let _listener = lab.server.listen(Family::V4.server(7001));
    let setup = with_short_epochs([Service::new("raw", 7001).splice().promise("probe", "\"500ms\"")]);
    let sluice = Sluice::start(&lab, &setup);
    let first = offer(&lab, 43_001, 7001);
    assert!(!first.sack && first.timestamps && first.wscale.is_some(), "{first:?}");
    for (from, setting, sack, timestamps) in
        [(43_010, "tcp_sack=1", true, true), (43_020, "tcp_timestamps=0", true, false)]
    {
        lab.server.sh(&format!("sysctl -qw net.ipv4.{setting}"));
        wait_for(&sluice, "raw", "sluice_syn_ack_sack", f64::from(u8::from(sack)));
        wait_for(&sluice, "raw", "sluice_syn_ack_timestamps", f64::from(u8::from(timestamps)));
        let offered = offer(&lab, from, 7001);
        assert_eq!(
            (offered.sack, offered.timestamps),
            (sack, timestamps),
            "{setting}: {offered:?}\n{}",
            sluice.metrics()
        );
    }
    assert_eq!(sluice.metrics().sum("sluice_sessions_opened_total", &[]), 3, "probes are no sessions");
}

#[test]
fn a_connection_whose_upstream_accepts_less_than_promised_is_terminated_and_intact() {
    let lab = Lab::two_arms();
    let missing = [
        ("sack", "tcp_sack", 7001, "sluice_syn_ack_sack", 0.0),
        ("timestamps", "tcp_timestamps", 7002, "sluice_syn_ack_timestamps", 0.0),
        ("window_scale", "tcp_window_scaling", 7003, "sluice_syn_ack_window_scale", -1.0),
    ];
    let services = missing.map(|(name, _, port, ..)| Service::new(name, port).splice().promise("probe", "\"1h\""));
    let sluice = Sluice::start(&lab, &with_short_epochs(services)).may_fall_back();
    for (name, setting, port, metric, without) in missing {
        let fallbacks = |label: &str| {
            let labels = [("service", name), ("missing", label)];
            sluice.metrics().sum("sluice_splice_fallbacks_total", &labels)
        };
        let transfer = |fallen: bool| {
            let seen = client_closes_first(&Route::v4(&lab, port), 4 * MIB);
            assert_eq!(seen.by_server, Pattern::heard(UP, 4 * MIB, Ending::Eof), "{name}, fallen back {fallen}");
            assert_eq!(seen.by_client, Pattern::heard(DOWN, 4 * MIB, Ending::Eof), "{name}, fallen back {fallen}");
            let record = sluice.record_of(seen.client.0, SOON);
            assert_eq!((record.cause.as_str(), record.bytes_to_upstream), ("closed", 4 * MIB + 1), "{record:?}");
        };
        transfer(false);
        assert_eq!(fallbacks(name), 0, "{name} is kept");
        lab.server.sh(&format!("sysctl -qw net.ipv4.{setting}=0"));
        transfer(true);
        assert_eq!(fallbacks(name), 1, "{name} is missing\n{}", sluice.metrics());
        // It had the upstream probed, at once and then until it answers: the next epoch's are promised less and are spliced.
        let listener = lab.server.listen(Family::V4.server(port));
        wait_for(&sluice, name, metric, without);
        drop(listener);
        transfer(false);
        assert_eq!(fallbacks(name), 1, "{name} was promised again\n{}", sluice.metrics());
        lab.server.sh(&format!("sysctl -qw net.ipv4.{setting}=1"));
    }
}

#[test]
fn a_server_that_speaks_first_is_heard_after_a_fallback() {
    let lab = Lab::two_arms();
    lab.server.sh("sysctl -qw net.ipv4.tcp_sack=0");
    let service = |name, port| Service::new(name, port).upstreams(&[Family::V6.server(port)]).splice_pinned();
    let services = [
        // IPv6's segments are 20 octets smaller.
        service("mss", 7001).promise("mss", "1460").promise("sack", "false"),
        service("sack", 7002),
    ];
    let sluice = Sluice::start(&lab, &Setup::of(services)).may_fall_back();
    // What is pinned stands.
    for (missing, port, fallbacks) in [("mss", 7001, 2), ("sack", 7002, 2)] {
        let route = Route { serve: Family::V6.server(port), ..Route::v4(&lab, port) };
        let listener = route.listen();
        for octets in [10, 4 * MIB] {
            let client = route.dial();
            let server = accept(&listener);
            let serving = thread::spawn(move || {
                let _ = send(&server, DOWN, octets);
                let _ = server.shutdown(Shutdown::Write);
                hear(&server)
            });
            let heard = hear(&client);
            assert_eq!(heard, Pattern::heard(DOWN, octets, Ending::Eof), "{missing}\n{}", sluice.metrics());
            send(&client, UP, octets).expect("the server takes it");
            client.shutdown(Shutdown::Write).expect("the connection stands");
            let heard = serving.join().expect("the server's thread");
            assert_eq!(heard, Pattern::heard(UP, octets, Ending::Eof), "{missing}");
        }
        assert_eq!(sluice.metrics().sum("sluice_splice_fallbacks_total", &[("missing", missing)]), fallbacks);
    }
}

/// A client 40 ms away, and a kernel that answers every SYN with a cookie: it knows of window scale and SACK only what the timestamp in
/// the handshake's last ACK says.
#[test]
fn an_upstream_that_answers_with_syn_cookies_keeps_window_scale_and_sack_for_far_clients() {
    let impairment = Impairment { delay: Duration::from_millis(20), ..Impairment::NONE };
    let lab = Lab::new(Arms::Two, Some(impairment));
    lab.server.sh("sysctl -qw net.ipv4.tcp_syncookies=2");
    let services = [Service::new("raw", 7001).splice(), Service::new("headed", 7002).splice().proxy_protocol("v1")];
    let listeners = [7001, 7002].map(|port| lab.server.listen(Family::V4.server(port)));
    let sluice = Sluice::start(&lab, &Setup::of(services));
    wait_for(&sluice, "raw", "sluice_upstream_syn_cookies", 1.0);
    wait_for(&sluice, "headed", "sluice_upstream_syn_cookies", 1.0);
    for (port, listener) in [7001, 7002].into_iter().zip(&listeners) {
        let client = lab.client.connect(Family::V4.service(port)).expect("sluice answers");
        let server = accept(listener);
        if port == 7002 {
            let mut header = String::new();
            BufReader::new(&server).read_line(&mut header).expect("a header");
            assert!(header.starts_with("PROXY TCP4 "), "{header}");
        }
        let sockets = lab.server.sh(&format!("ss -Htino state established sport = :{port}"));
        for option in [" ts ", " sack ", " wscale:"] {
            assert!(sockets.contains(option), "without{option}: {sockets}\n{}", sluice.metrics());
        }
        let sending = thread::spawn(move || drop(send(&server, DOWN, MIB)));
        assert_eq!(hear(&client), Pattern::heard(DOWN, MIB, Ending::Eof), "port {port}");
        sending.join().expect("the server's thread");
    }
    // A kernel that keeps what it was told repeats its answer.
    lab.server.sh("sysctl -qw net.ipv4.tcp_syncookies=1");
    wait_for(&sluice, "raw", "sluice_upstream_syn_cookies", 0.0);
}

/// Everything and the FIN in a first flight, as long as the window allows.
#[test]
fn a_fallback_with_small_buffers_delivers_what_its_client_was_promised_it_may_send() {
    let lab = Lab::two_arms();
    lab.server.sh("sysctl -qw net.ipv4.tcp_sack=0");
    let service = Service::new("raw", 7001).splice_pinned().key("buffer", "\"4KiB\"");
    let sluice = Sluice::start(&lab, &Setup::of([service])).may_fall_back();
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let sizes = [4_096, 4_320, 8_192, 65_535, MIB];
    for octets in sizes {
        let client = route.dial();
        let sending = thread::spawn(move || {
            send(&client, UP, octets).expect("sluice takes it");
            client.shutdown(Shutdown::Write).expect("the connection stands");
            hear(&client)
        });
        let server = accept(&listener);
        assert_eq!(hear(&server), Pattern::heard(UP, octets, Ending::Eof), "{octets}\n{}", sluice.metrics());
        send(&server, DOWN, octets).expect("the client hears");
        drop(server);
        let heard = sending.join().expect("the client's thread");
        assert_eq!(heard, Pattern::heard(DOWN, octets, Ending::Eof), "{octets}");
    }
    let fallbacks = sluice.metrics().sum("sluice_splice_fallbacks_total", &[("missing", "sack")]);
    assert_eq!(fallbacks, sizes.len() as u64);
}
