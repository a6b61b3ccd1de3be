use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::fake::{self, Fake};

fn exporter(fake: Fake) -> Exporter {
    let build = BuildInfo { version: "0.1.0".into(), dpdk: "22.11.7".into() };
    Exporter::new(&fake::config(), Arc::new(fake), Arc::default(), FilterSide::of(&fake::config()), build)
}

/// Every sample of a scrape: name and labels as written, and the value.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let samples = lines.map(|line| line.rsplit_once(' ').unwrap());
    samples.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

/// The family of a series.
fn name(series: &str) -> &str {
    let name = series.split('{').next().unwrap();
    let parts = ["_bucket", "_sum", "_count"];
    parts.into_iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name)
}

#[test]
fn every_family_is_there_from_the_first_scrape_with_help_type_and_its_labels() {
    let text = exporter(Fake::new(&fake::config())).render();
    let samples = samples(&text);
    for family in ALL {
        assert!(text.contains(&format!("# HELP {} {}\n", family.name, family.help)), "{}", family.name);
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert!(text.contains(&format!("# TYPE {} {kind}\n", family.name)), "{}", family.name);
        let mut series = samples.keys().filter(|series| name(series) == family.name).peekable();
        assert!(series.peek().is_some(), "{} has no series", family.name);
        for series in series {
            let labels: Vec<&str> = series
                .split_once('{')
                .map(|(_, labels)| labels.split(',').map(|label| label.split('=').next().unwrap()).collect())
                .unwrap_or_default();
            let labels: Vec<&str> = labels.into_iter().filter(|label| *label != "le").collect();
            assert_eq!(labels, family.labels, "{series}");
        }
    }
    let known: BTreeSet<&str> = ALL.iter().map(|family| family.name).collect();
    assert!(samples.keys().all(|series| known.contains(name(series))));
}

/// A machine that starts in 1970 and is told the time a minute later: nothing it did happened in 1970.
#[test]
fn moments_before_the_clock_was_set_are_told_by_the_clock_put_right() {
    let mut fake = Fake::new(&fake::config());
    fake.clock = sluice_dataplane::Clock::start_at(UNIX_EPOCH);
    let clock = fake.clock.clone();
    let exporter = exporter(fake);
    exporter.side.sets.sets[0].loaded.set(30_000_000);
    let told = || {
        let samples = samples(&exporter.render());
        [
            "sluice_start_time_seconds",
            "sluice_set_loaded_timestamp_seconds{set=\"strangers\"}",
            "sluice_clock_steps_total",
        ]
        .map(|series| samples[series])
    };
    assert_eq!(told(), [0.0, 30.0, 0.0]);
    clock.follow(Micros(60_000_000), UNIX_EPOCH + fake::EPOCH);
    let right = fake::EPOCH.as_secs() as f64;
    assert_eq!(told(), [right - 60.0, right - 30.0, 1.0]);
}

#[test]
fn counters_end_in_total_and_gauges_do_not() {
    for family in ALL {
        assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
        assert!(family.name.starts_with("sluice_") && family.help.ends_with('.'), "{}", family.name);
    }
}

#[test]
fn names_that_others_rely_on_are_these() {
    let text = exporter(Fake::new(&fake::config())).render();
    let samples = samples(&text);
    for series in [
        r#"sluice_port_rx_packets_total{port="wan",worker="0"}"#,
        r#"sluice_port_tx_packets_total{port="lan",worker="1"}"#,
        r#"sluice_port_rx_bytes_total{port="wan",worker="1"}"#,
        r#"sluice_port_tx_bytes_total{port="wan",worker="0"}"#,
        r#"sluice_dropped_packets_total{reason="truncated"}"#,
        r#"sluice_syn_cookies_sent_total{worker="1"}"#,
        r#"sluice_cookie_acks_total{result="accepted"}"#,
        r#"sluice_cookie_acks_total{result="bad_cookie"}"#,
        r#"sluice_sessions_opened_total{service="mail"}"#,
        r#"sluice_sessions_active{service="trading"}"#,
        r#"sluice_sessions_ended_total{service="trading",cause="client_reset"}"#,
        r#"sluice_upstream_dial_failures_total{service="trading",upstream="[2001:db8::5]:443",reason="refused"}"#,
        r#"sluice_relayed_bytes_total{service="trading",direction="to_upstream"}"#,
        r#"sluice_relayed_bytes_total{service="trading",direction="to_client"}"#,
        r#"sluice_worker_busy_ratio{worker="0"}"#,
    ] {
        assert_eq!(samples.get(series), Some(&0.0), "{series}\n{text}");
    }
}

#[test]
fn each_drop_reason_cause_and_result_has_a_series() {
    let samples = samples(&exporter(Fake::new(&fake::config())).render());
    let count = |family: &Family| samples.keys().filter(|series| name(series) == family.name).count();
    assert_eq!(count(&f::DROPPED), DropReason::ALL.len());
    assert_eq!(count(&f::COOKIE_ACKS), AckResult::ALL.len());
    assert_eq!(count(&f::SESSIONS_ENDED), 2 * EndCause::ALL.len());
    assert_eq!(count(&f::DIAL_FAILURES), 3 * DialFailure::ALL.len());
}

#[test]
fn values_are_the_workers_own_or_their_sum_at_the_moment_of_the_scrape() {
    let fake = Fake::new(&fake::config());
    let workers = fake.workers.clone();
    let exporter = exporter(fake);
    exporter.render();
    for (index, worker) in workers.iter().enumerate() {
        let n = index as u64 + 1;
        worker.ports[0].rx_packets.add(10 * n);
        worker.ports[1].tx_full.add(n);
        worker.drops[DropReason::Truncated as usize].add(100 * n);
        worker.busy_ppm.set(250_000 * n);
        worker.stack.cookie_acks[AckResult::BadCookie as usize].add(n);
        let service = &worker.stack.services[1];
        service.active.set(5 * n);
        service.ended[EndCause::ClientIdle as usize].add(n);
        service.dial_failures[0][DialFailure::Timeout as usize].add(n);
        service.bytes_to_client.add(1 << 40);
        worker.stack.records_lost.add(n);
    }
    let samples = samples(&exporter.render());
    for (series, value) in [
        (r#"sluice_port_rx_packets_total{port="wan",worker="0"}"#, 10.0),
        (r#"sluice_port_rx_packets_total{port="wan",worker="1"}"#, 20.0),
        (r#"sluice_port_rx_packets_total{port="lan",worker="1"}"#, 0.0),
        (r#"sluice_port_tx_full_total{port="lan",worker="1"}"#, 2.0),
        (r#"sluice_port_missed_packets_total{port="lan"}"#, 1.0),
        (r#"sluice_dropped_packets_total{reason="truncated"}"#, 300.0),
        (r#"sluice_worker_busy_ratio{worker="1"}"#, 0.5),
        (r#"sluice_cookie_acks_total{result="bad_cookie"}"#, 3.0),
        (r#"sluice_sessions_active{service="mail"}"#, 15.0),
        (r#"sluice_sessions_active{service="trading"}"#, 0.0),
        (r#"sluice_sessions_ended_total{service="mail",cause="client_idle"}"#, 3.0),
        (r#"sluice_upstream_dial_failures_total{service="mail",upstream="10.0.0.6:25",reason="timeout"}"#, 3.0),
        (r#"sluice_relayed_bytes_total{service="mail",direction="to_client"}"#, (1_u64 << 41) as f64),
        (r#"sluice_connection_log_lost_total{reason="queue_full"}"#, 3.0),
        (r#"sluice_pool_frames_in_use"#, 2_048.0),
        (r#"sluice_pool_frames_capacity"#, 65_535.0),
        (r#"sluice_build_info{version="0.1.0",dpdk="22.11.7"}"#, 1.0),
    ] {
        assert_eq!(samples.get(series), Some(&value), "{series}");
    }
}

#[test]
fn gauges_fall_again() {
    let fake = Fake::new(&fake::config());
    let worker = Arc::clone(&fake.workers[0]);
    let exporter = exporter(fake);
    worker.stack.flow_entries.set(9);
    assert_eq!(samples(&exporter.render())[r#"sluice_flow_entries{worker="0"}"#], 9.0);
    worker.stack.flow_entries.set(0);
    assert_eq!(samples(&exporter.render())[r#"sluice_flow_entries{worker="0"}"#], 0.0);
}

#[test]
fn counters_never_fall_while_workers_count() {
    let fake = Fake::new(&fake::config());
    let worker = Arc::clone(&fake.workers[0]);
    let exporter = exporter(fake);
    let counting = std::thread::spawn(move || {
        for _ in 0..2_000_000 {
            worker.turns.bump();
        }
    });
    let mut last = 0.0;
    while !counting.is_finished() {
        let now = samples(&exporter.render())[r#"sluice_worker_turns_total{worker="0"}"#];
        assert!(now >= last);
        last = now;
    }
    counting.join().unwrap();
    assert_eq!(samples(&exporter.render())[r#"sluice_worker_turns_total{worker="0"}"#], 2_000_000.0);
}

#[test]
fn documentation_names_every_metric_and_no_other() {
    let text = include_str!("../../../docs/metrics.md");
    let known: BTreeSet<&str> = ALL.iter().map(|family| family.name).collect();
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let named: BTreeSet<&str> = text.split(word).filter(|word| word.starts_with("sluice_")).collect();
    assert_eq!(named, known);
}

#[test]
fn documentation_explains_every_drop_reason() {
    let text = include_str!("../../../docs/metrics.md");
    for reason in DropReason::ALL {
        assert!(text.contains(&format!("\n| `{}` | ", reason.as_str())), "{}", reason.as_str());
    }
}

#[test]
fn turns_are_told_as_a_histogram_whose_counts_add_up() {
    let fake = Fake::new(&fake::config());
    let workers = fake.workers().to_vec();
    let exporter = exporter(fake);
    for micros in [1, 16, 17, 2_000, 10_000_000] {
        workers[0].turn_times.note(micros);
    }
    let samples = samples(&exporter.render());
    let bucket = |le: &str| samples[format!(r#"sluice_worker_turn_seconds_bucket{{worker="0",le="{le}"}}"#).as_str()];
    let told = ["0.000016", "0.000064", "0.000256", "0.004096", "0.262144", "+Inf"].map(bucket);
    assert_eq!(told, [2.0, 3.0, 3.0, 4.0, 4.0, 5.0]);
    assert_eq!(samples[r#"sluice_worker_turn_seconds_count{worker="0"}"#], 5.0);
    assert_eq!(samples[r#"sluice_worker_turn_seconds_sum{worker="0"}"#], 10.002_034);
}
