//! Many connections, one after the other: what a closed connection leaves must be gone before the next needs it.

use std::collections::{HashMap, HashSet};
use std::thread;
use std::time::Duration;

use sluice_tests::appliance::{Mode, Service, Setup, Sluice};
use sluice_tests::crowd::{Echo, Greeter, hear_greetings, visit};
use sluice_tests::lab::{Family, Lab};

use crate::basics::SOON;

both_modes![
    twenty_rounds_of_five_hundred_find_rested_source_ports,
    a_connection_on_a_source_port_used_before_outlives_the_time_wait_of_the_first,
    a_source_port_whose_last_connection_the_upstream_closed_serves_the_next_client,
];

fn twenty_rounds_of_five_hundred_find_rested_source_ports(mode: Mode) {
    let lab = Lab::two_arms();
    let _echo = Echo::start(&lab.server, Family::V4.server(7));
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("echo", 7)]).mode(mode));
    for _ in 0..20 {
        visit(&lab.client, Family::V6.service(7), 500, 200, || ());
    }
    let metrics = sluice.metrics_when("all end", SOON, |metrics| metrics.sum("sluice_sessions_active", &[]) == 0);
    assert_eq!(metrics.sum("sluice_sessions_ended_total", &[("cause", "closed")]), 10_000, "{metrics}");
    assert_eq!(metrics.sum("sluice_upstream_dial_failures_total", &[]), 0);
    // Linux sends timestamps, so a later connection may take the place of one in TIME-WAIT a second after its end.
    let mut records = sluice.records();
    records.sort_by_key(|record| record.opened);
    let mut last_use = HashMap::new();
    for record in records {
        let source = record.source.expect("every session dialled");
        if let Some(ended) = last_use.insert(source, record.ended) {
            let rested = record.opened.duration_since(ended).unwrap_or_default();
            assert!(rested >= Duration::from_millis(990), "{source} was used again after {rested:?}");
        }
    }
}

fn a_connection_on_a_source_port_used_before_outlives_the_time_wait_of_the_first(mode: Mode) {
    let lab = Lab::two_arms();
    let _echo = Echo::start(&lab.server, Family::V4.server(7));
    let _sluice = Sluice::start(&lab, &Setup::of([Service::new("echo", 7)]).mode(mode));
    // Of some 64,000 ports, the second crowd is bound to meet dozens of the first one's.
    visit(&lab.client, Family::V4.service(7), 3000, 200, || ());
    thread::sleep(Duration::from_millis(1500));
    visit(&lab.client, Family::V4.service(7), 3000, 200, || thread::sleep(Duration::from_secs(12)));
}

/// The upstream keeps the TIME-WAIT of what it closed first, and knows numbers and clock of a client that is gone.
fn a_source_port_whose_last_connection_the_upstream_closed_serves_the_next_client(mode: Mode) {
    let lab = Lab::two_arms();
    let _greeter = Greeter::start(&lab.server, Family::V4.server(7));
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("greeter", 7)]).mode(mode));
    for family in [Family::V4, Family::V6, Family::V4] {
        hear_greetings(&lab.client, family.service(7), 3000, Duration::from_secs(4));
        thread::sleep(Duration::from_millis(1200));
    }
    let metrics = sluice.metrics_when("all end", SOON, |metrics| metrics.sum("sluice_sessions_active", &[]) == 0);
    assert_eq!(metrics.sum("sluice_sessions_ended_total", &[("cause", "closed")]), 9_000, "{metrics}");
    assert_eq!(metrics.sum("sluice_upstream_dial_failures_total", &[]), 0, "{metrics}");
    let sources: HashSet<_> = sluice.records().into_iter().filter_map(|record| record.source).collect();
    eprintln!("{} source ports for 9,000 connections", sources.len());
}
