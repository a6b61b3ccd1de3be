//! Floods while a transfer runs: no session is created, the transfer completes intact, every packet is accounted for.

use std::thread;
use std::time::Duration;

use sluice_tests::appliance::{Mode, Service, Setup, Sluice};
use sluice_tests::flood::{Kind, resolve};
use sluice_tests::lab::{Family, Lab};
use sluice_tests::link::Link;
use sluice_tests::malformed::corpus;
use sluice_tests::metrics::Metrics;
use sluice_tests::peer::{DOWN, Ending, Pattern, Route, UP, client_closes_first};

use crate::basics::flood;

both_modes![
    every_packet_of_a_flood_is_accounted_for_while_a_transfer_runs,
    a_quiet_appliance_accounts_for_each_flood_packet_exactly,
];

const MIB: u64 = 1 << 20;

/// Frames that reached the appliance's interface on the client's side, whether sluice was quick enough for them or not.
pub fn arrived(lab: &Lab) -> u64 {
    let shown = lab.appliance.sh("cat /proc/net/dev");
    let line = shown.lines().find_map(|line| line.trim().strip_prefix("p0:")).expect("p0 is there");
    line.split_whitespace().nth(1).and_then(|packets| packets.parse().ok()).expect("a number of packets")
}

/// Frames sluice received on one port, or on all.
pub fn received(metrics: &Metrics, port: Option<&str>) -> u64 {
    let port: Vec<_> = port.map(|port| ("port", port)).into_iter().collect();
    metrics.sum("sluice_port_rx_packets_total", &port)
}

/// What sluice says became of packets that belong to no session.
pub fn accounted(metrics: &Metrics) -> u64 {
    metrics.sum("sluice_dropped_packets_total", &[])
        + metrics.sum("sluice_syn_cookies_sent_total", &[])
        + metrics.sum("sluice_local_replies_total", &[])
}

fn every_packet_of_a_flood_is_accounted_for_while_a_transfer_runs(mode: Mode) {
    const COUNT: u64 = 60_000;
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]).mode(mode));
    let octets = 32 * MIB;
    let mut sessions = 0;
    for (kind, family) in [
        (Kind::Syn, Family::V4),
        (Kind::Syn, Family::V6),
        (Kind::Ack, Family::V4),
        (Kind::Rst, Family::V6),
        (Kind::Malformed, Family::V4),
    ] {
        let (metrics_before, arrived_before) = (sluice.metrics(), arrived(&lab));
        let (seen, report) = thread::scope(|scope| {
            let transfer = scope.spawn(|| client_closes_first(&Route::of(&lab, family, 7001), octets));
            let report = flood(&lab, kind, family, 7001, COUNT, 60_000);
            (transfer.join().expect("the transfer's thread"), report)
        });
        sessions += 1;
        assert_eq!(seen.by_server, Pattern::heard(UP, octets, Ending::Eof), "{kind:?}");
        assert_eq!(seen.by_client, Pattern::heard(DOWN, octets, Ending::Eof), "{kind:?}");
        let metrics = sluice.metrics_when("the session ends", Duration::from_secs(5), |metrics| {
            metrics.sum("sluice_sessions_active", &[]) == 0
        });
        assert_eq!(metrics.sum("sluice_sessions_opened_total", &[]), sessions, "{kind:?} opens nothing");
        // What the kernel's ring had no room for never reached sluice.
        let overrun = (arrived(&lab) - arrived_before)
            .saturating_sub(received(&metrics, Some("wan")) - received(&metrics_before, Some("wan")));
        let counted = accounted(&metrics) - accounted(&metrics_before);
        eprintln!("{report:?}: {counted} accounted for, {overrun} lost in the kernel's ring");
        assert_eq!(report.sent, COUNT);
        assert!(counted + overrun >= COUNT, "{kind:?}: {counted} accounted for, {overrun} overrun\n{metrics}");
        assert!(counted < COUNT + 2_000, "{kind:?}: {counted} accounted for, far more than were sent\n{metrics}");
    }
}

fn a_quiet_appliance_accounts_for_each_flood_packet_exactly(mode: Mode) {
    const COUNT: u64 = 20_000;
    let lab = Lab::two_arms();
    let service = Service::new("raw", 7001);
    // The answers to probes are packets too.
    let service = if mode == Mode::Splice { service.splice_pinned() } else { service };
    let sluice = Sluice::start(&lab, &Setup::of([service]));
    for (kind, metric, labels) in [
        (Kind::Syn, "sluice_syn_cookies_sent_total", &[][..]),
        (Kind::Ack, "sluice_dropped_packets_total", &[("reason", "bad_cookie")][..]),
        (Kind::Rst, "sluice_dropped_packets_total", &[("reason", "no_flow")][..]),
    ] {
        for family in Family::BOTH {
            let before = sluice.metrics();
            let report = flood(&lab, kind, family, 7001, COUNT, 20_000);
            assert_eq!(report.sent, COUNT);
            let delta = |metrics: &Metrics, name: &str, labels: &[(&str, &str)]| {
                metrics.sum(name, labels) - before.sum(name, labels)
            };
            let metrics = sluice.metrics_when("the flood is through", Duration::from_secs(3), |metrics| {
                delta(metrics, metric, labels) >= COUNT
            });
            assert_eq!(delta(&metrics, metric, labels), COUNT, "{kind:?} {family:?}\n{metrics}");
            // The other port has the server's own chatter.
            assert_eq!(
                accounted(&metrics) - accounted(&before),
                received(&metrics, None) - received(&before, None),
                "{kind:?}\n{metrics}"
            );
            assert_eq!(metrics.sum("sluice_sessions_opened_total", &[]), 0);
            assert_eq!(metrics.sum("sluice_flow_entries", &[]), 0, "no state for {kind:?}");
        }
    }
}

#[test]
fn each_malformed_frame_is_dropped_under_its_own_reason() {
    const TIMES: u64 = 25;
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("raw", 7001)]));
    let (v4, v6) = (Family::V4.service(7001), Family::V6.service(7001));
    let to_mac = lab.client.run(|| resolve(v4.ip())).expect("sluice answers for its services");
    let corpus = corpus(lab.client.mac_of("c0"), to_mac, v4, v6, "198.51.100.200".parse().expect("an address"));
    let mut link = Link::open(&lab.client, "c0");
    let mut wrong = Vec::new();
    for broken in &corpus {
        let before = sluice.metrics();
        for _ in 0..TIMES {
            assert!(link.send(&broken.frame), "{}", broken.what);
        }
        // Each burst is through when as many frames have been counted, under whatever reason.
        let after = sluice.metrics_when(broken.what, Duration::from_secs(3), |metrics| {
            received(metrics, Some("wan")) >= received(&before, Some("wan")) + TIMES
        });
        let reason = broken.reason.as_str();
        let counted = |metrics: &Metrics| metrics.sum("sluice_dropped_packets_total", &[("reason", reason)]);
        // The kernel's own multicast reports may come between: as many more than ours as were received.
        let strangers = received(&after, Some("wan")) - received(&before, Some("wan")) - TIMES;
        if !(TIMES..=TIMES + strangers).contains(&(counted(&after) - counted(&before))) {
            let (before, after) = [&before, &after].map(|m| m.by("sluice_dropped_packets_total", "reason")).into();
            wrong.push(format!("{}: expected {reason}; before {before:?}, after {after:?}", broken.what));
        }
    }
    assert!(wrong.is_empty(), "{} of {} frames:\n{}", wrong.len(), corpus.len(), wrong.join("\n"));
    assert_eq!(sluice.metrics().sum("sluice_sessions_opened_total", &[]), 0);
}
