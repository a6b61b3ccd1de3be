//! Many connections, one after the other: what a closed connection leaves must be gone before the next needs it.

use sluice_tests::appliance::{Service, Setup, Sluice};
use sluice_tests::crowd::{Echo, visit};
use sluice_tests::lab::{Family, Lab};

use crate::basics::SOON;

#[test]
fn twenty_rounds_of_five_hundred_use_fresh_source_ports_each() {
    let lab = Lab::two_arms();
    let _echo = Echo::start(&lab.server, Family::V4.server(7));
    let sluice = Sluice::start(&lab, &Setup::of([Service::new("echo", 7)]));
    for _ in 0..20 {
        visit(&lab.client, Family::V6.service(7), 500, 200, || ());
    }
    let metrics = sluice.metrics_when("all end", SOON, |metrics| metrics.sum("sluice_sessions_active", &[]) == 0);
    assert_eq!(metrics.sum("sluice_sessions_ended_total", &[("cause", "closed")]), 10_000, "{metrics}");
    assert_eq!(metrics.sum("sluice_upstream_dial_failures_total", &[]), 0);
    let sources: std::collections::BTreeSet<_> = sluice.records().iter().filter_map(|record| record.source).collect();
    assert_eq!(sources.len(), 10_000, "no source port is used again before TIME-WAIT has passed");
}
