//! `sluice replay`: what would become of a capture's packets.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sluice_control::capture::{Capture, PcapWriter};
use sluice_control::packet;
use sluice_control::replay::{Diff, Outcome, Replay, Report};
use sluice_filters::{Parsed, RxChecksums, parse};

use crate::args::{self, Fate};
use crate::exit::{BAD_CONFIG, DIFFERENT, FAILED, complain, print};
use crate::load::load;

/// Packets between two looks at the progress bar.
const STEP: u64 = 4_096;
/// Captures below this many octets are over before a bar would be read.
const LONG: u64 = 16 << 20;

/// Replays the capture that is asked for.
pub fn replay(wanted: &args::Replay) -> ExitCode {
    run(wanted).unwrap_or_else(|code| code)
}

fn run(wanted: &args::Replay) -> Result<ExitCode, ExitCode> {
    let mut ours = appliance(&wanted.config)?;
    let mut other = wanted.diff.as_deref().map(appliance).transpose()?;
    let mut capture = Capture::open(&wanted.capture).map_err(|error| complain(&error, BAD_CONFIG))?;
    apart(wanted)?;
    let create = |file: &Option<_>| file.as_deref().map(PcapWriter::create).transpose();
    let failed = |error| complain(&error, FAILED);
    let mut passed = create(&wanted.write_passed).map_err(failed)?;
    let mut dropped = create(&wanted.write_dropped).map_err(failed)?;
    let bar = bar(wanted, capture.size());

    let (mut report, mut other_report, mut diff) = (Report::default(), Report::default(), Diff::default());
    let broken = loop {
        let position = capture.position();
        let packet = match capture.next() {
            Ok(Some(packet)) => packet,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        let (time, frame, len) = (packet.time, packet.frame, packet.wire_len);
        let outcome = ours.packet(time, frame, len);
        report.add(outcome, time, len);
        if let Some(other) = &mut other {
            let theirs = other.packet(time, frame, len);
            other_report.add(theirs, time, len);
            diff.add([ours.config(), other.config()], [outcome, theirs], packet.number, || describe(frame));
        }
        let writer = match outcome {
            Outcome::FromService => None,
            outcome if outcome.is_drop() => dropped.as_mut(),
            _ => passed.as_mut(),
        };
        writer.map_or(Ok(()), |writer| writer.write(time, frame, len)).map_err(failed)?;
        if packet.number % STEP == 0 {
            bar.set_position(position);
        }
    };
    bar.finish_and_clear();
    for writer in [passed, dropped].into_iter().flatten() {
        writer.finish().map_err(failed)?;
    }

    let text = match (&other, wanted.json) {
        (None, false) => report.table(&ours),
        (None, true) => pretty(&report.json(&ours)),
        (Some(_), false) => diff.table(),
        (Some(other), true) => pretty(&serde_json::json!({
            "now": report.json(&ours),
            "then": other_report.json(other),
            "changes": diff.changes(),
        })),
    };
    let printed = print(&text);
    if let Some(error) = broken {
        // What came before was replayed and is counted above.
        return Err(complain(&error, BAD_CONFIG));
    }
    let unexpected = match wanted.expect {
        Some(Fate::Passed) => report.dropped(),
        Some(Fate::Dropped) => report.passed(),
        None => 0,
    };
    if unexpected > 0 {
        let fate = if wanted.expect == Some(Fate::Passed) { "dropped" } else { "passed" };
        return Err(complain(&format_args!("sluice: {unexpected} packets {fate}, none should"), DIFFERENT));
    }
    Ok(if diff.is_empty() { printed } else { ExitCode::from(DIFFERENT) })
}

/// Complains when a file that is to be written is the capture, or is to be written twice.
fn apart(wanted: &args::Replay) -> Result<(), ExitCode> {
    let written = [wanted.write_passed.as_deref(), wanted.write_dropped.as_deref()];
    let mut taken = vec![id(&wanted.capture)];
    for file in written.into_iter().flatten() {
        let own = id(file);
        if taken.contains(&own) {
            let why = format!("sluice: {} is in use for other packets; name another file", file.display());
            return Err(complain(&why, BAD_CONFIG));
        }
        taken.push(own);
    }
    Ok(())
}

/// What two names of one file have in common: the file's own path or, before there is one, the name.
fn id(file: &Path) -> PathBuf {
    file.canonicalize().unwrap_or_else(|_| file.to_owned())
}

/// The appliance of a configuration, without ports. Its cookies' seed, if it has none of its own, is nobody's secret.
fn appliance(path: &Path) -> Result<Replay, ExitCode> {
    let whole = load(path)?;
    let seed = whole.seed()?.unwrap_or([1; 32]);
    Ok(Replay::new(whole.config, whole.filters.plan, seed, whole.bans))
}

fn bar(wanted: &args::Replay, size: u64) -> ProgressBar {
    if wanted.quiet || size < LONG || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr_with_hz(4));
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// A packet in words.
fn describe(frame: &[u8]) -> String {
    match parse(frame, RxChecksums::GOOD) {
        Ok(Parsed::Tcp(segment)) => packet::describe(&segment, frame),
        Ok(_) => "ARP or ICMP".into(),
        Err(reason) => format!("not TCP that could be accepted ({})", reason.as_str()),
    }
}

fn pretty(json: &serde_json::Value) -> String {
    format!("{json:#}\n")
}
