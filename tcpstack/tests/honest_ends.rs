//! Every honest connection gets through, whatever the network loses, repeats, delays and reorders; and what a forger sends changes
//! nothing.
//!
//! `SLUICE_MODEL_CONNECTIONS` says how many connections a run has, `SLUICE_MODEL_SEED=<seed>` repeats one world, and
//! `SLUICE_MODEL_SEED=<seed>:<connection>` one connection alone, traced.

mod model;

use std::time::Instant;

use self::model::plan::{Modes, Settings};
use self::model::world::{Report, World};

/// Connections of one test, unless the environment says otherwise.
const CONNECTIONS: u64 = 20_000;

const SLUICE: Settings = Settings { plain: false, forger: false, repeats: false, modes: Modes::Both, hook: None };

/// Runs worlds until there were connections enough; fails when one of them did.
fn run(name: &str, settings: Settings) {
    if let Ok(seed) = std::env::var("SLUICE_MODEL_SEED") {
        let (seed, only) = match seed.split_once(':') {
            Some((seed, only)) => (seed, Some(only.parse().expect("a connection's number"))),
            None => (&*seed, None),
        };
        let report = World::new(seed.parse().expect("a seed"), settings, only).run();
        finish(name, &report, seed.parse().expect("a seed"), 1);
        return;
    }
    let wanted = std::env::var("SLUICE_MODEL_CONNECTIONS").map_or(CONNECTIONS, |text| text.parse().expect("a number"));
    let begun = Instant::now();
    let mut all = Report::default();
    let mut failed: Vec<(u64, usize, String, String)> = Vec::new();
    let mut seed = 0;
    while all.connections < wanted {
        seed += 1;
        let report = World::new(seed, settings, None).run();
        all.connections += report.connections;
        all.segments += report.segments;
        all.bytes += report.bytes;
        all.gave_up += report.gave_up;
        all.forged += report.forged;
        failed
            .extend(report.failures.into_iter().map(|failure| (seed, failure.connection, failure.what, failure.plan)));
    }
    println!(
        "{name}: {} connections, {} segments, {} bytes, {} forged, {} gave up on the last ACK, {} failed, {:.1?}",
        all.connections,
        all.segments,
        all.bytes,
        all.forged,
        all.gave_up,
        failed.len(),
        begun.elapsed()
    );
    for (seed, connection, what, plan) in failed.iter().take(40) {
        println!("SLUICE_MODEL_SEED={seed}:{connection}: {what}\n    {plan}");
    }
    assert!(failed.is_empty(), "{} of {} connections failed", failed.len(), all.connections);
}

fn finish(name: &str, report: &Report, seed: u64, worlds: u64) {
    println!("{name}: {worlds} world, seed {seed}: {} connections, {} segments", report.connections, report.segments);
    for failure in &report.failures {
        println!("connection {}: {}\n    {}", failure.connection, failure.what, failure.plan);
    }
    assert!(report.failures.is_empty());
}

#[test]
fn two_ends_alone_complete_every_connection() {
    run("plain", Settings { plain: true, ..SLUICE });
}

#[test]
fn two_ends_alone_survive_the_forger() {
    run("plain, forger", Settings { plain: true, forger: true, ..SLUICE });
}

#[test]
fn every_terminated_connection_completes() {
    run("terminate", Settings { modes: Modes::Terminate, ..SLUICE });
}

#[test]
fn every_spliced_connection_completes() {
    run("splice", Settings { modes: Modes::Splice, ..SLUICE });
}

#[test]
fn a_forger_changes_nothing_in_terminate_mode() {
    run("terminate, forger", Settings { forger: true, modes: Modes::Terminate, ..SLUICE });
}

#[test]
fn a_forger_changes_nothing_in_splice_mode() {
    run("splice, forger", Settings { forger: true, modes: Modes::Splice, ..SLUICE });
}
