//! Every honest connection gets through, whatever the network loses, repeats, delays and reorders; and what a forger sends changes
//! nothing.
//!
//! A test runs worlds of 320 connections, one after another, each from its own seed: the same worlds in every run. What fails is named
//! by its seed, with the last segments that the stack dropped. The environment says otherwise:
//!
//! - `SLUICE_MODEL_SEED=<seed>` runs one world, `SLUICE_MODEL_SEED=<seed>:<connection>` one of its connections alone, each segment
//!   printed (with `--nocapture`). A connection's fate on the legs is its own, so it is the same alone.
//! - `SLUICE_MODEL_CONNECTIONS=<n>` is how many connections each test has, `SLUICE_MODEL_FIRST=<seed>` where its seeds begin: for
//!   long runs at night.

mod model;

use std::time::Instant;

use self::model::plan::{Hook, Modes, Settings};
use self::model::world::{Report, World};

/// Both modes, nobody forges.
///
/// `repeats` is for the day on which the stack repeats a SYN-ACK whose ACK is lost: until then that ACK is spared where the client
/// waits for its server's first word. `hook` is for whatever has to hold at any moment, such as a tracker that forgets all it knows.
const HONEST: Settings = Settings { plain: false, forger: false, repeats: true, modes: Modes::Both, hook: None };

/// Failures that are told of.
const TOLD: usize = 20;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Runs worlds until there were `connections`; fails when one of them did.
fn run(name: &str, settings: Settings, connections: u64) {
    if let Ok(text) = std::env::var("SLUICE_MODEL_SEED") {
        let (seed, only) = match text.split_once(':') {
            Some((seed, only)) => (seed, Some(only.parse().expect("a connection's number"))),
            None => (&*text, None),
        };
        let seed = seed.parse().expect("a seed");
        let report = World::new(seed, settings, only).run();
        conclude(name, &[(seed, report)], Instant::now());
        return;
    }
    let wanted = number("SLUICE_MODEL_CONNECTIONS", connections);
    let first = number("SLUICE_MODEL_FIRST", 1);
    let begun = Instant::now();
    let mut reports = Vec::new();
    let mut had = 0;
    for seed in first.. {
        let report = World::new(seed, settings, None).run();
        had += report.connections;
        reports.push((seed, report));
        if had >= wanted {
            break;
        }
    }
    conclude(name, &reports, begun);
}

/// Says what was seen.
fn conclude(name: &str, reports: &[(u64, Report)], begun: Instant) {
    let sum = |of: fn(&Report) -> u64| reports.iter().map(|(_, report)| of(report)).sum::<u64>();
    let failures = sum(|report| report.failures.len() as u64);
    println!(
        "{name}: {} connections, {} segments, {} bytes, {} forged, {} left without the last ACK, {failures} failed, {:.1?}",
        sum(|report| report.connections),
        sum(|report| report.segments),
        sum(|report| report.bytes),
        sum(|report| report.forged),
        sum(|report| report.gave_up),
        begun.elapsed(),
    );
    let told = reports.iter().flat_map(|(seed, report)| report.failures.iter().map(move |failure| (seed, failure)));
    for (seed, failure) in told.take(TOLD) {
        println!("SLUICE_MODEL_SEED={seed}:{}: {}\n    {}", failure.connection, failure.what, failure.plan);
        failure.drops.iter().for_each(|dropped| println!("    {dropped}"));
    }
    assert_eq!(failures, 0, "connections that failed");
    let gave_up = sum(|report| report.gave_up);
    assert!(gave_up * 400 <= sum(|report| report.connections) + 400, "{gave_up} connections that may fail did");
}

#[test]
fn two_ends_alone_complete_every_connection() {
    run("plain", Settings { plain: true, ..HONEST }, 20_000);
}

#[test]
fn two_ends_alone_survive_the_forger() {
    run("plain, forger", Settings { plain: true, forger: true, ..HONEST }, 20_000);
}

#[test]
fn every_terminated_connection_completes() {
    run("terminate", Settings { modes: Modes::Terminate, ..HONEST }, 40_000);
}

#[test]
fn every_spliced_connection_completes() {
    run("splice", Settings { modes: Modes::Splice, ..HONEST }, 60_000);
}

#[test]
fn a_forger_changes_nothing_in_terminate_mode() {
    run("terminate, forger", Settings { forger: true, modes: Modes::Terminate, ..HONEST }, 40_000);
}

#[test]
fn a_forger_changes_nothing_in_splice_mode() {
    run("splice, forger", Settings { forger: true, modes: Modes::Splice, ..HONEST }, 60_000);
}

/// Both modes in one stack: one's connections do nothing to the other's.
#[test]
fn both_modes_complete_side_by_side() {
    run("both", HONEST, 10_000);
}

/// What is known of a connection is discarded at random moments, as when another process takes it over: one segment is enough to go on.
#[test]
fn a_spliced_connection_completes_though_its_tracker_starts_anew() {
    let hook = Some::<Hook>(|stack, key, random| {
        if random.percent(4) && stack.lose_tracking(key) && std::env::var_os("SLUICE_MODEL_SEED").is_some() {
            eprintln!("the tracker forgets, before a segment from {}", key.remote());
        }
    });
    run("splice, forgetting", Settings { modes: Modes::Splice, hook, ..HONEST }, 20_000);
}
