//! What must work however the appliance is attached.

use std::thread;
use std::time::{Duration, Instant};

use sluice_tests::appliance::{Mode, Service, Sluice};
use sluice_tests::crowd::{Echo, visit};
use sluice_tests::flood::{Flood, Kind, Report, resolve};
use sluice_tests::lab::{Family, Lab, SERVICE4};
use sluice_tests::link::Link;
use sluice_tests::metrics::Metrics;
use sluice_tests::peer::{
    DOWN, Ending, Pattern, Route, Seen, UP, both_send, client_closes_first, client_resets, server_closes_first,
    server_resets,
};
use sluice_tests::servers::{curl, iperf3, iperf3_run, nginx, ssh, sshd, url};

use crate::Bench;

const MIB: u64 = 1 << 20;
pub const SOON: Duration = Duration::from_secs(5);

/// Both families of clients, both families of upstreams.
pub fn http_works_over_ipv4_and_ipv6(bench: Bench) {
    let lab = bench.lab();
    let _nginx = nginx(&lab, 8080, 8081);
    let services = Family::BOTH.map(|family| {
        let port = if family == Family::V4 { 8181 } else { 8182 };
        Service::new(&format!("http-{port}"), port).upstreams(&[family.server(8081)])
    });
    let sluice = Sluice::start(&lab, &bench.setup(services));
    lab.write("hello", "hello through sluice\n");
    for port in [8181, 8182] {
        for v6 in [false, true] {
            for _ in 0..10 {
                let fetched = curl(&lab, &url(v6, port, "/files/hello"), &[]);
                assert_eq!((fetched.exit, fetched.text().as_str()), (0, "hello through sluice\n"), "{port} v6={v6}");
            }
        }
    }
    let metrics = sluice.metrics_when("forty sessions end", SOON, |metrics| {
        metrics.sum("sluice_sessions_ended_total", &[("cause", "closed")]) == 40
    });
    assert_eq!(metrics.sum("sluice_sessions_opened_total", &[]), 40);
    assert_eq!(metrics.sum("sluice_sessions_active", &[]), 0);
    if bench.workers > 1 {
        let workers: std::collections::BTreeSet<u32> = sluice.records().iter().map(|record| record.worker).collect();
        assert_eq!(workers.len(), usize::from(bench.workers), "every worker has had sessions");
    }
}

pub fn a_gibibyte_up_then_down_arrives_intact(bench: Bench) {
    transfer(bench, 1024 * MIB, &Service::new("raw", 7001));
}

pub fn a_gibibyte_arrives_intact_when_dialled_on_data(bench: Bench) {
    transfer(bench, 1024 * MIB, &Service::new("raw", 7001).key("connect", "\"on-data\""));
}

fn transfer(bench: Bench, octets: u64, service: &Service) {
    let lab = bench.lab();
    let sluice = Sluice::start(&lab, &bench.setup([service.clone()]));
    let began = Instant::now();
    let seen = client_closes_first(&Route::v4(&lab, 7001), octets);
    let rate = (2 * octets * 8) as f64 / began.elapsed().as_secs_f64() / 1e6;
    eprintln!("{} MiB up, then down: {rate:.0} Mbit/s", octets / MIB);
    assert_eq!(seen.by_server, Pattern::heard(UP, octets, Ending::Eof));
    assert_eq!(seen.by_client, Pattern::heard(DOWN, octets, Ending::Eof));
    expect_record(&sluice, &seen, octets, "closed", "nobody");
}

/// The log says of this conversation that it ended so, and counted its octets (and the client's first one).
fn expect_record(sluice: &Sluice<'_>, seen: &Seen, octets: u64, cause: &str, blame: &str) {
    let record = sluice.record_of(seen.client.0, SOON);
    assert_eq!((record.cause.as_str(), record.blame.as_str()), (cause, blame), "{record:?}");
    assert_eq!((record.bytes_to_upstream, record.bytes_to_client), (octets + 1, octets), "{record:?}");
    assert!(record.connect_ms.is_some() && record.upstream.is_some() && record.source.is_some(), "{record:?}");
}

pub fn ssh_works_though_the_server_speaks_first(bench: Bench) {
    let lab = bench.lab();
    let (_sshd, key) = sshd(&lab, 2222);
    let _sluice = Sluice::start(&lab, &bench.setup([Service::new("ssh", 2222)]));
    let expected: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    let printed = ssh(&lab, &key, SERVICE4, 2222, "seq 1 300000");
    assert!(printed == expected.as_bytes(), "{} octets of {} came over ssh", printed.len(), expected.len());
}

pub fn iperf3_runs_both_ways(bench: Bench) {
    let lab = bench.lab();
    let _iperf3 = iperf3(&lab, 5201);
    let _sluice = Sluice::start(&lab, &bench.setup([Service::new("iperf3", 5201)]));
    for reverse in [false, true] {
        let rate = iperf3_run(&lab, 5201, 2, reverse) / 1e6;
        eprintln!("iperf3 {}: {rate:.0} Mbit/s", if reverse { "down" } else { "up" });
        assert!(rate > 50.0, "{rate} Mbit/s");
    }
}

pub fn half_closes_and_simultaneous_data_arrive_as_over_a_cable(bench: Bench) {
    let octets = 3 * MIB;
    let conversations = [client_closes_first, server_closes_first, both_send];
    let expected = {
        let lab = Lab::cable();
        conversations.map(|converse| converse(&Route::v4(&lab, 7001), octets))
    };
    let lab = bench.lab();
    let sluice = Sluice::start(&lab, &bench.setup([Service::new("raw", 7001)]));
    for family in Family::BOTH {
        for (converse, expected) in conversations.iter().zip(&expected) {
            let seen = converse(&Route::of(&lab, family, 7001), octets);
            assert_eq!(&seen, expected);
            expect_record(&sluice, &seen, octets, "closed", "nobody");
        }
    }
}

pub fn resets_travel_to_the_other_side(bench: Bench) {
    let lab = bench.lab();
    let sluice = Sluice::start(&lab, &bench.setup([Service::new("raw", 7001)]));
    for family in Family::BOTH {
        let route = Route::of(&lab, family, 7001);
        let (by_client, by_server) = (client_resets(&route), server_resets(&route));
        for (seen, cause, blame) in [(by_client, "client_reset", "client"), (by_server, "upstream_reset", "upstream")] {
            assert_eq!(seen.by_other, Ending::Reset);
            let record = sluice.record_of(seen.client.0, SOON);
            assert_eq!((record.cause.as_str(), record.blame.as_str()), (cause, blame), "{record:?}");
            assert_eq!((record.bytes_to_upstream, record.bytes_to_client), (1001, 2000), "{record:?}");
        }
    }
}

/// What a session holds, in the metrics: all of it must be given back.
#[derive(Debug, PartialEq, Eq)]
pub struct Holdings {
    sessions: u64,
    flows: u64,
    buffers: u64,
    frames: u64,
}

impl Holdings {
    pub fn of(metrics: &Metrics) -> Holdings {
        let sum = |name| {
            assert!(metrics.has(name, &[]), "{name} is missing:\n{metrics}");
            metrics.sum(name, &[])
        };
        Holdings {
            sessions: sum("sluice_sessions_active"),
            flows: sum("sluice_flow_entries")
                .checked_sub(sum("sluice_time_wait"))
                .unwrap_or_else(|| panic!("{metrics}")),
            buffers: sum("sluice_buffer_bytes"),
            frames: sum("sluice_pool_frames_in_use"),
        }
    }
}

pub fn five_thousand_connections_come_and_leave_nothing_behind(bench: Bench) {
    const COUNT: u64 = 5_000;
    let lab = bench.lab();
    let _echo = Echo::start(&lab.server, Family::V4.server(7));
    let sluice = Sluice::start(&lab, &bench.setup([Service::new("echo", 7)]));
    // Once, so that neighbours are known and every cache has what it keeps.
    visit(&lab.client, Family::V4.service(7), 50, 100, || ());
    let before = sluice.metrics_when("the first visitors leave", SOON, |metrics| {
        let now = Holdings::of(metrics);
        (now.sessions, now.flows, now.buffers) == (0, 0, 0)
    });
    let before = Holdings::of(&before);

    let began = Instant::now();
    visit(&lab.client, Family::V4.service(7), COUNT as usize, 1000, || {
        eprintln!("{COUNT} connections stand after {:?}", began.elapsed());
        let metrics = sluice.metrics();
        assert_eq!(metrics.sum("sluice_sessions_active", &[]), COUNT);
        assert!(metrics.sum("sluice_flow_entries", &[]) >= 2 * COUNT, "two sides each");
        if bench.mode == Mode::Splice {
            assert_eq!(metrics.sum("sluice_buffer_bytes", &[]), 0, "the end hosts' buffers serve");
        }
    });
    let after = sluice.metrics_when("five thousand leave nothing behind", Duration::from_secs(20), |metrics| {
        let now = Holdings::of(metrics);
        // Frames may lie anywhere between two rings and the per-core caches; a leak is one for every connection.
        Holdings { frames: before.frames, ..now } == before && now.frames.abs_diff(before.frames) < COUNT / 4
    });
    assert_eq!(after.sum("sluice_sessions_ended_total", &[("cause", "closed")]), COUNT + 50);
    assert_eq!(after.sum("sluice_relayed_bytes_total", &[("direction", "to_upstream")]), COUNT * 3000 + 50 * 300);
    assert_eq!(after.sum("sluice_relayed_bytes_total", &[("direction", "to_client")]), COUNT * 3000 + 50 * 300);
    assert_eq!(after.sum("sluice_pool_empty_total", &[]), 0);
    // The log is written behind the sessions' backs: a moment later all lines are there, and none twice.
    sluice.metrics_when("one line a connection", SOON, |metrics| {
        metrics.sum("sluice_connection_log_lines_total", &[]) == COUNT + 50
    });
    assert_eq!(sluice.records().len() as u64, COUNT + 50, "one line a connection");
}

/// A flood towards service `port` at a rate that leaves room for a transfer.
pub fn flood(lab: &Lab, kind: Kind, family: Family, port: u16, count: u64, rate: u32) -> Report {
    let to = family.service(port);
    let to_mac = lab.client.run(|| resolve(to.ip())).expect("sluice answers for its services");
    let mut link = Link::open(&lab.client, "c0");
    Flood { kind, to, from_mac: lab.client.mac_of("c0"), to_mac, count, rate, seed: 42 }.run(&mut link)
}

pub fn a_transfer_survives_a_syn_flood(bench: Bench) {
    let lab = bench.lab();
    let sluice = Sluice::start(&lab, &bench.setup([Service::new("raw", 7001)]));
    let octets = 64 * MIB;
    let (seen, report) = thread::scope(|scope| {
        let transfer = scope.spawn(|| client_closes_first(&Route::v4(&lab, 7001), octets));
        let report = flood(&lab, Kind::Syn, Family::V4, 7001, 100_000, 50_000);
        (transfer.join().expect("the transfer's thread"), report)
    });
    assert_eq!(seen.by_server, Pattern::heard(UP, octets, Ending::Eof));
    assert_eq!(seen.by_client, Pattern::heard(DOWN, octets, Ending::Eof));
    expect_record(&sluice, &seen, octets, "closed", "nobody");
    let metrics = sluice.metrics();
    assert_eq!(metrics.sum("sluice_sessions_opened_total", &[]), 1, "the flood opens nothing");
    let answered = metrics.sum("sluice_syn_cookies_sent_total", &[]);
    eprintln!("{report:?}, {answered} answered");
    assert!(answered > 1, "SYNs were answered");
}
