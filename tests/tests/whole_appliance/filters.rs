//! Rules and limits of sources in front of real connections and floods. Sets, bans and samples, which live in files, are in
//! [`crate::filter_files`].

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use sluice_filters::DropReason;
use sluice_tests::appliance::{Mode, Service, Setup, Sluice};
use sluice_tests::flood::{Kind, resolve};
use sluice_tests::frames::{Segment, flags};
use sluice_tests::lab::{CLIENT4, FAR_CLIENT4, Family, Lab};
use sluice_tests::link::Link;
use sluice_tests::metrics::Metrics;
use sluice_tests::peer::{DOWN, Ending, Pattern, Route, UP, accept, client_closes_first, exchange, reset};

use crate::basics::{SOON, flood};
use crate::floods::{accounted, arrived, received};

both_modes![
    rules_cut_floods_and_spare_a_transfer_beside_them,
    a_rule_on_trial_drops_nothing_and_counts_each_client_once,
    the_first_rule_that_drops_or_passes_decides,
    a_payload_rule_drops_the_segment_each_time_it_is_sent,
    connections_over_a_rules_limit_are_reset_and_those_before_stay,
    limits_per_address_hold_for_each_address_and_not_for_whom_a_rule_passes,
];

const MIB: u64 = 1 << 20;

/// The reasons for which filters drop what the header checks let pass.
const BY_FILTERS: [DropReason; 11] = [
    DropReason::DenyList,
    DropReason::NotAllowed,
    DropReason::Banned,
    DropReason::Rule,
    DropReason::RuleLimit,
    DropReason::SourceSyns,
    DropReason::SourceFlowlessAcks,
    DropReason::SourceConnections,
    DropReason::SourcePackets,
    DropReason::SourceBytes,
    DropReason::SynAckCeiling,
];

/// What filters have dropped.
fn cut_by_filters(metrics: &Metrics) -> u64 {
    BY_FILTERS.iter().map(|reason| metrics.dropped(*reason)).sum()
}

/// The rules say that they dropped what was dropped because of rules.
fn rules_add_up(metrics: &Metrics) {
    let cut = metrics.sum("sluice_rule_cut_packets_total", &[("dry_run", "false")]);
    let dropped = metrics.dropped(DropReason::Rule) + metrics.dropped(DropReason::RuleLimit);
    assert_eq!(cut, dropped, "{metrics}");
}

/// A client's address that no ARP is needed for.
fn at(address: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(address.into(), 0)
}

/// A connection from `from` on which both sides have been heard.
pub fn connect_from(route: &Route<'_>, listener: &TcpListener, from: impl Into<IpAddr>) -> (TcpStream, TcpStream) {
    let from = at(from);
    let client = route.lab.client.connect_from(from, route.dial);
    let client = client.unwrap_or_else(|error| panic!("connect from {from} to {}: {error}", route.dial));
    let server = accept(listener);
    exchange(&client, &server);
    (client, server)
}

/// Whether a SYN from `from` to service `port` is answered. Somebody has to listen at the server, or the answer is a RST.
pub fn is_answered(lab: &Lab, from: impl Into<IpAddr>, port: u16) -> bool {
    match lab.client.connect_within(at(from), Family::V4.service(port), Duration::from_millis(1200)) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::TimedOut => false,
        Err(error) => panic!("port {port}: {error}"),
    }
}

/// Sends a SYN from each of `sources` to service `port` over IPv4.
fn send_syns(lab: &Lab, sources: impl Iterator<Item = Ipv4Addr>, port: u16) -> u64 {
    let to = Family::V4.service(port);
    let to_mac = lab.client.run(|| resolve(to.ip())).expect("sluice answers for its services");
    let from_mac = lab.client.mac_of("c0");
    let mut link = Link::open(&lab.client, "c0");
    let mut sent = 0;
    for (number, source) in (0_u16..).zip(sources) {
        let from = SocketAddr::new(source.into(), 10_000 + number % 50_000);
        let (flags, options) = (flags::SYN, &[2, 4, 5, 180][..]);
        let syn = Segment { from_mac, to_mac, from, to, seq: 7, ack: 0, flags, window: 8192, options, payload: &[] };
        assert!(link.send(&syn.frame()), "the ring has room");
        sent += 1;
        // No faster than a busy machine reads.
        if number % 32 == 31 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    sent
}

fn rules_cut_floods_and_spare_a_transfer_beside_them(mode: Mode) {
    const COUNT: u64 = 20_000;
    let lab = Lab::two_arms();
    let blocklist = lab.write("blocklist", "# as published\n64.0.0.0/3\n2001:db8:f:0:8000::/65 ; half of a network\n");
    let rules = format!(
        r#"
[[set]]
name = "friends"
prefixes = ["{FAR_CLIENT4}/32"]
[[set]]
name = "blocklist"
files = ["{blocklist}"]
[[rule]]
name = "friends"
action = "pass"
source = "@friends"
[[rule]]
name = "blocklist"
action = "drop"
source = "@blocklist"
[[rule]]
name = "syn-tool"
action = "drop"
ip_version = 4
flags = "syn !ack"
window = 64240
options = "mss sack-permitted nop window-scale end"
[[rule]]
name = "rst-tool"
action = "drop"
pcap = "(tcp[tcpflags] & tcp-rst != 0 and tcp[14:2] = 64240) or (ip6 and ip6[6] = 6 and ip6[53] & 4 != 0 and ip6[54:2] = 64240)"
[[rule]]
name = "trial"
action = "drop"
dry_run = true
flags = "ack !syn"
window = 64240
payload_length = 0
[[rule]]
name = "acks-per-network"
action = "limit"
flags = "ack !syn"
window = 64240
limit = "100/s"
per = "prefix"
prefix_v4 = 8
prefix_v6 = 48
"#
    );
    // A quarter of the flood's sources: short, and meant.
    let limits = "shortest_prefix_v4 = 3\n[filters.per_address]\nsyns = \"50/s burst 100\"\nflowless_acks = \"50/s\"\nconnections = \"50/s\"\n\
                  packets = \"1000000/s\"\nbytes = \"10GiB/s\"\n[filters.per_site]\nsyns = \"100/s burst 200\"";
    let setup = Setup::of([Service::new("raw", 7001), Service::new("friends", 7002)]).mode(mode);
    let sluice = Sluice::start(&lab, &setup.filters(limits).tables(&rules));
    let friend_route = Route::v4(&lab, 7002);
    let friend_listener = friend_route.listen();
    let octets = 8 * MIB;
    let mut sessions = 0;
    let mut serve = |family: Family| {
        sessions += 2;
        let seen = client_closes_first(&Route::of(&lab, family, 7001), octets);
        connect_from(&friend_route, &friend_listener, FAR_CLIENT4);
        assert_eq!(seen.by_server, Pattern::heard(UP, octets, Ending::Eof), "{family:?}");
        assert_eq!(seen.by_client, Pattern::heard(DOWN, octets, Ending::Eof), "{family:?}");
        sessions
    };
    for family in Family::BOTH {
        serve(family);
    }
    let quiet = sluice.metrics();
    assert_eq!(cut_by_filters(&quiet), 0, "clients were cut\n{quiet}");
    assert_eq!(quiet.cut("trial"), 0, "clients would be cut\n{quiet}");
    // The connections' own segments: nothing else has passed a rule.
    assert!(quiet.matched("friends") > 0, "{quiet}");

    for (kind, family, rules) in [
        (Kind::Syn, Family::V4, &["blocklist", "syn-tool"][..]),
        (Kind::Syn, Family::V6, &["blocklist"]),
        (Kind::Ack, Family::V4, &["blocklist", "trial", "acks-per-network"]),
        (Kind::Ack, Family::V6, &["blocklist", "trial", "acks-per-network"]),
        (Kind::Rst, Family::V4, &["blocklist", "rst-tool"]),
        (Kind::Rst, Family::V6, &["blocklist", "rst-tool"]),
        (Kind::Malformed, Family::V4, &[]),
    ] {
        let what = format!("{kind:?} {family:?}");
        let (before, arrived_before) = (sluice.metrics(), arrived(&lab));
        let sessions = thread::scope(|scope| {
            let serving = scope.spawn(|| serve(family));
            assert_eq!(flood(&lab, kind, family, 7001, COUNT, 40_000).sent, COUNT);
            serving.join().expect("the transfer's thread")
        });
        let after =
            sluice.metrics_when("the sessions end", SOON, |metrics| metrics.sum("sluice_sessions_active", &[]) == 0);
        assert_eq!(after.sum("sluice_sessions_opened_total", &[]), sessions, "{what} opens nothing");
        // What the kernel's ring had no room for never reached sluice.
        let overrun = (arrived(&lab) - arrived_before)
            .saturating_sub(received(&after, Some("wan")) - received(&before, Some("wan")));
        let counted = accounted(&after) - accounted(&before);
        let cut = cut_by_filters(&after) - cut_by_filters(&before);
        eprintln!("{what}: {counted} accounted for, {cut} cut by filters, {overrun} lost in the kernel's ring");
        assert!(counted + overrun >= COUNT, "{what}: {counted} accounted for, {overrun} overrun\n{after}");
        assert!(counted < COUNT + 2_000, "{what}: {counted} accounted for, far more than were sent\n{after}");
        assert!(cut <= COUNT, "{what}: {cut} cut, more than were sent\n{after}");
        if overrun == 0 && kind == Kind::Rst {
            assert_eq!(cut, COUNT, "{what}: each of them and nothing else\n{after}");
        }
        rules_add_up(&after);
        for rule in ["friends", "blocklist", "syn-tool", "rst-tool", "trial", "acks-per-network"] {
            let grown = after.cut(rule) - before.cut(rule);
            assert_eq!(grown > 0, rules.contains(&rule), "{what}: rule {rule:?} cut {grown}\n{after}");
        }
        let sites = after.dropped(DropReason::SourceSyns) - before.dropped(DropReason::SourceSyns);
        // Among the malformed there are one source's SYNs to where nobody listens, which count towards its limits, too.
        if kind != Kind::Malformed {
            assert_eq!(sites > 0, kind == Kind::Syn && family == Family::V6, "{what}: {sites} over a site's limit");
        }
    }
    let after = sluice.metrics();
    assert_eq!(after.cut_clients("trial"), 0, "no client sends such ACKs\n{after}");
}

fn a_rule_on_trial_drops_nothing_and_counts_each_client_once(mode: Mode) {
    const COUNT: u64 = 1_000;
    let lab = Lab::two_arms();
    let rules = r#"
[[rule]]
name = "third-connection"
action = "limit"
dry_run = true
limit = "1/h burst 2"
of = "connections"
[[rule]]
name = "everybody"
action = "drop"
dry_run = true
"#;
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).mode(mode).tables(rules));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let connect = |from: Ipv4Addr| connect_from(&route, &listener, from);
    let mut standing: Vec<_> = (0..3).map(|_| connect(CLIENT4)).collect();
    let metrics = sluice.metrics();
    assert_eq!((metrics.cut_clients("everybody"), metrics.cut_clients("third-connection")), (1, 1), "{metrics}");
    assert_eq!((metrics.matched("third-connection"), metrics.cut("third-connection")), (3, 1), "{metrics}");
    // A SYN, an ACK and a segment with data each, at the least.
    assert!(metrics.cut("everybody") >= 9, "{metrics}");
    standing.extend((0..3).map(|_| connect(FAR_CLIENT4)));
    let before = sluice.metrics();
    assert_eq!((before.cut_clients("everybody"), before.cut_clients("third-connection")), (2, 2), "{before}");

    // Sources that prove nothing are no clients.
    assert_eq!(flood(&lab, Kind::Syn, Family::V4, 7001, COUNT, 20_000).sent, COUNT);
    let metrics = sluice.metrics_when("the flood is through", SOON, |metrics| {
        metrics.cut("everybody") >= before.cut("everybody") + COUNT
    });
    assert_eq!(metrics.cut_clients("everybody"), 2, "{metrics}");
    assert_eq!(metrics.cut("everybody"), metrics.matched("everybody"), "{metrics}");
    assert_eq!(cut_by_filters(&metrics), 0, "{metrics}");
    for (client, server) in &standing {
        exchange(client, server);
    }
}

fn the_first_rule_that_drops_or_passes_decides(mode: Mode) {
    let lab = Lab::two_arms();
    let rules = format!(
        r#"
[[set]]
name = "strangers"
prefixes = ["203.0.113.0/24"]
[[rule]]
name = "public"
action = "pass"
service = "public"
[[rule]]
name = "strangers"
action = "drop"
source = "@strangers"
[[rule]]
name = "closed"
action = "drop"
destination_port = 7003
not_source = "{}/128"
[[rule]]
name = "never-reached"
action = "drop"
source = "@strangers"
service = "private"
"#,
        Family::V6.client()
    );
    let services = [Service::new("private", 7001), Service::new("public", 7002), Service::new("closed", 7003)];
    let sluice = Sluice::start(&lab, &Setup::of(services).mode(mode).tables(&rules));
    let routes = [7001, 7002, 7003].map(|port| Route::v4(&lab, port));
    let listeners = routes.each_ref().map(Route::listen);
    connect_from(&routes[0], &listeners[0], CLIENT4);
    connect_from(&routes[1], &listeners[1], CLIENT4);
    connect_from(&routes[1], &listeners[1], FAR_CLIENT4);
    connect_from(&Route::of(&lab, Family::V6, 7003), &listeners[2], Family::V6.client());
    let before = sluice.metrics();
    assert_eq!(cut_by_filters(&before), 0, "{before}");
    assert!(!is_answered(&lab, FAR_CLIENT4, 7001), "a stranger to the private service");
    assert!(!is_answered(&lab, CLIENT4, 7003), "IPv4 to the closed service");
    let metrics = sluice.metrics();
    assert!(metrics.cut("strangers") >= 1 && metrics.cut("closed") >= 1, "{metrics}");
    assert_eq!(metrics.dropped(DropReason::Rule), metrics.cut("strangers") + metrics.cut("closed"), "{metrics}");
    assert_eq!((metrics.matched("never-reached"), metrics.cut("public")), (0, 0), "{metrics}");
    assert!(metrics.matched("public") >= 6, "{metrics}");
    assert_eq!(metrics.sum("sluice_sessions_opened_total", &[]), 4);
}

fn a_payload_rule_drops_the_segment_each_time_it_is_sent(mode: Mode) {
    let lab = Lab::two_arms();
    let rules = "[[rule]]\nname = \"get\"\naction = \"drop\"\nservice = \"raw\"\n\
                 payload = [{ text = \"GET \" }, { offset = 4, hex = \"2f\" }]\n";
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).mode(mode).tables(rules));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    for (request, passes) in [(&b"PUT /"[..], true), (b"GET *", true), (b"GET /", false)] {
        let mut client = route.dial();
        let mut server = accept(&listener);
        client.write_all(request).expect("a request fits");
        if !passes {
            // The first time and when its sender tries again.
            sluice.metrics_when("the segment is repeated", SOON, |metrics| metrics.cut("get") >= 3);
        }
        let patience = if passes { SOON } else { Duration::from_millis(300) };
        server.set_read_timeout(Some(patience)).expect("a timeout can be set");
        let mut heard = [0; 5];
        match server.read_exact(&mut heard) {
            Ok(()) => assert!(passes && heard == request, "{heard:?} came through"),
            Err(error) => assert!(!passes && error.kind() == ErrorKind::WouldBlock, "{request:?}: {error}"),
        }
        // Its end is not what the rule is about.
        reset(client);
        assert_eq!(sluice_tests::peer::ending(&server), Ending::Reset);
    }
    let metrics = sluice.metrics();
    rules_add_up(&metrics);
    assert_eq!(metrics.matched("get"), metrics.cut("get"), "{metrics}");
    let octets = metrics.sum("sluice_rule_cut_bytes_total", &[("rule", "get")]);
    assert_eq!(octets, metrics.cut("get") * (20 + 32 + 5), "headers with timestamps, and the request\n{metrics}");
}

fn connections_over_a_rules_limit_are_reset_and_those_before_stay(mode: Mode) {
    let lab = Lab::two_arms();
    let rules = "[[rule]]\nname = \"two-each\"\naction = \"limit\"\nservice = \"limited\"\nlimit = \"1/h burst 2\"\n\
                 of = \"connections\"\n";
    let services = [Service::new("limited", 7001), Service::new("free", 7002)];
    let sluice = Sluice::start(&lab, &Setup::of(services).mode(mode).tables(rules));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let mut standing: Vec<_> = (0..2).map(|_| connect_from(&route, &listener, CLIENT4)).collect();
    for _ in 0..3 {
        assert_eq!(route.dial_in_vain().1, Ending::Reset, "one more than two");
    }
    // Another source has a limit of its own, and another service has none.
    standing.extend((0..2).map(|_| connect_from(&route, &listener, FAR_CLIENT4)));
    let free = Route::v4(&lab, 7002);
    let free_listener = free.listen();
    standing.extend((0..4).map(|_| connect_from(&free, &free_listener, CLIENT4)));
    for (client, server) in &standing {
        exchange(client, server);
    }
    let metrics = sluice.metrics();
    assert_eq!((metrics.matched("two-each"), metrics.cut("two-each")), (7, 3), "{metrics}");
    assert_eq!(metrics.dropped(DropReason::RuleLimit), 3, "{metrics}");
    assert_eq!(metrics.sum("sluice_cookie_acks_total", &[("result", "limit")]), 3, "{metrics}");
    assert_eq!(metrics.sum("sluice_sessions_opened_total", &[]), 8, "{metrics}");
    assert_eq!(metrics.sum("sluice_session_refusals_total", &[]), 0, "that is for limits of the service\n{metrics}");
    rules_add_up(&metrics);
}

fn limits_per_address_hold_for_each_address_and_not_for_whom_a_rule_passes(mode: Mode) {
    let lab = Lab::two_arms();
    lab.client.sh("ip addr add 198.51.100.30/24 dev c0");
    let (denied, exempt) = (Ipv4Addr::new(198, 51, 100, 30), Family::V6.client());
    let rules = format!("[[rule]]\nname = \"ours\"\naction = \"pass\"\nsource = [\"{exempt}/128\", \"{denied}/32\"]\n");
    let limits = format!(
        "deny = [\"{denied}/32\"]\n[filters.per_address]\nsyns = \"1/h burst 4\"\nconnections = \"1/h burst 2\"\n"
    );
    let setup = Setup::of([Service::new("raw", 7001)]).mode(mode);
    let sluice = Sluice::start(&lab, &setup.filters(&limits).tables(&rules));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let mut standing: Vec<_> = (0..2).map(|_| connect_from(&route, &listener, CLIENT4)).collect();
    for _ in 0..2 {
        assert_eq!(route.dial_in_vain().1, Ending::Reset, "a third connection");
    }
    assert!(!is_answered(&lab, CLIENT4, 7001), "a fifth SYN");
    assert!(!is_answered(&lab, denied, 7001), "a rule passes nobody who is denied");
    standing.extend((0..2).map(|_| connect_from(&route, &listener, FAR_CLIENT4)));
    let exempt_route = Route::of(&lab, Family::V6, 7001);
    standing.extend((0..6).map(|_| connect_from(&exempt_route, &listener, exempt)));
    for (client, server) in &standing {
        exchange(client, server);
    }
    let metrics = sluice.metrics();
    assert_eq!(metrics.dropped(DropReason::SourceConnections), 2, "{metrics}");
    assert!(metrics.dropped(DropReason::SourceSyns) >= 1, "{metrics}");
    assert!(metrics.dropped(DropReason::DenyList) >= 1, "{metrics}");
    assert_eq!(metrics.sum("sluice_sessions_opened_total", &[]), 10, "{metrics}");
}

#[test]
fn no_prefix_gets_more_syn_acks_than_the_ceiling_and_proved_clients_in_it_still_connect() {
    const COUNT: u64 = 2_000;
    const BURST: u64 = 50;
    let lab = Lab::two_arms();
    let newcomer = Ipv4Addr::new(203, 0, 113, 8);
    lab.client.sh(&format!("ip addr add {newcomer}/32 dev c0"));
    let ceiling = format!("syn_ack_ceiling = \"1/h burst {BURST}\"");
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).filters(&ceiling));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    connect_from(&route, &listener, FAR_CLIENT4);
    let before = sluice.metrics();
    let answered = |metrics: &Metrics| metrics.sum("sluice_syn_cookies_sent_total", &[]);
    assert_eq!(answered(&before), 1, "{before}");

    let forged = (0..COUNT).map(|number| Ipv4Addr::new(203, 0, 113, 20 + (number % 200) as u8));
    assert_eq!(send_syns(&lab, forged, 7001), COUNT);
    let judged = |metrics: &Metrics| answered(metrics) + metrics.dropped(DropReason::SynAckCeiling);
    let metrics = sluice.metrics_when("every SYN is judged", SOON, |metrics| judged(metrics) > COUNT);
    assert_eq!(judged(&metrics), COUNT + 1, "{metrics}");
    assert_eq!(answered(&metrics), BURST, "{metrics}");

    assert!(!is_answered(&lab, newcomer, 7001), "nobody knows the newcomer");
    for client in [FAR_CLIENT4, CLIENT4] {
        connect_from(&route, &listener, client);
    }

    // An IPv6 prefix is a /48.
    let before = sluice.metrics();
    assert_eq!(flood(&lab, Kind::Syn, Family::V6, 7001, COUNT, 20_000).sent, COUNT);
    let metrics =
        sluice.metrics_when("every SYN is judged", SOON, |metrics| judged(metrics) >= judged(&before) + COUNT);
    assert_eq!(answered(&metrics) - answered(&before), BURST, "{metrics}");
    connect_from(&Route::of(&lab, Family::V6, 7001), &listener, Family::V6.client());
}

#[test]
fn rules_and_their_exemption_hold_across_a_hand_over() {
    const COUNT: u64 = 2_000;
    const ATTEMPTS: u64 = 12;
    let lab = Lab::two_arms();
    let rules = format!(
        r#"
[[rule]]
name = "ours"
action = "pass"
source = "{CLIENT4}/32"
[[rule]]
name = "flood"
action = "drop"
dry_run = true
flags = "ack !syn"
window = 64240
payload_length = 0
"#
    );
    // A quarter of the flood's sources: short, and meant.
    let limits = "shortest_prefix_v4 = 3\n[filters.per_address]\nconnections = \"1/h burst 2\"\nflowless_acks = \"1/h burst 40\"\n";
    let setup = Setup::of([Service::new("raw", 7001)]).workers(2);
    let sluice = Sluice::start(&lab, &setup.filters(limits).tables(&rules));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let standing: Vec<_> = (0..ATTEMPTS).map(|_| connect_from(&route, &listener, CLIENT4)).collect();
    for (client, server) in &standing {
        exchange(client, server);
    }
    let before = sluice.metrics();
    assert!(before.sum("sluice_handover_packets_total", &[]) > 0, "{before}");
    assert_eq!(before.sum("sluice_sessions_opened_total", &[]), ATTEMPTS, "{before}");
    assert_eq!(cut_by_filters(&before), 0, "{before}");

    // Each worker knows its own connections only.
    let far = |_| lab.client.connect_from(at(FAR_CLIENT4), route.dial).ok();
    let clients: Vec<_> = (0..ATTEMPTS).filter_map(far).collect();
    let refused = |metrics: &Metrics| metrics.dropped(DropReason::SourceConnections);
    let opened = |metrics: &Metrics| metrics.sum("sluice_sessions_opened_total", &[]) - ATTEMPTS;
    let metrics =
        sluice.metrics_when("every attempt is judged", SOON, |metrics| opened(metrics) + refused(metrics) >= ATTEMPTS);
    assert_eq!(opened(&metrics) + refused(&metrics), ATTEMPTS, "{metrics}");
    assert!((2..=4).contains(&opened(&metrics)), "two for each worker at the most\n{metrics}");
    drop(clients);

    // Whoever receives a packet asks the rules, and nobody else does.
    let before = sluice.metrics();
    assert_eq!(flood(&lab, Kind::Ack, Family::V4, 7001, COUNT, 20_000).sent, COUNT);
    let judged = |metrics: &Metrics| {
        metrics.dropped(DropReason::BadCookie) + metrics.dropped(DropReason::HandoverFull)
            - before.dropped(DropReason::BadCookie)
            - before.dropped(DropReason::HandoverFull)
    };
    let metrics = sluice.metrics_when("the flood is through", SOON, |metrics| judged(metrics) >= COUNT);
    assert_eq!(judged(&metrics), COUNT, "{metrics}");
    assert_eq!((metrics.matched("flood"), metrics.cut("flood")), (COUNT, COUNT), "{metrics}");
    assert_eq!(metrics.cut_clients("flood"), 0, "{metrics}");
    assert_eq!(metrics.dropped(DropReason::Rule), 0, "{metrics}");
    let handed = |metrics: &Metrics| metrics.sum("sluice_handover_packets_total", &[]);
    assert!(handed(&metrics) > handed(&before), "{metrics}");
}

/// A client's segments may all be received by one worker and all its connections belong to another.
#[test]
fn clients_that_a_rule_on_trial_would_cut_are_found_across_a_hand_over() {
    let lab = Lab::two_arms();
    let rules = "[[rule]]\nname = \"everybody\"\naction = \"drop\"\ndry_run = true\n";
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).workers(2).tables(rules));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let clients: Vec<Ipv4Addr> = (1..=16).map(|number| Ipv4Addr::new(198, 51, 100, 100 + number)).collect();
    for client in &clients {
        lab.client.sh(&format!("ip addr add {client}/24 dev c0"));
        connect_from(&route, &listener, *client);
    }
    let metrics = sluice.metrics();
    assert!(metrics.sum("sluice_handover_packets_total", &[]) > 0, "{metrics}");
    assert_eq!(metrics.cut_clients("everybody"), clients.len() as u64, "one connection each\n{metrics}");
}
