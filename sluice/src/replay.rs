//! `sluice replay`: what would become of a capture's packets.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sluice_control::capture::{Capture, PcapWriter};
use sluice_control::packet;
use sluice_control::replay::{Diff, Outcome, Replay, Report};
use sluice_filters::{Parsed, RxChecksums, parse};

use crate::args::{self, Fate};
use crate::exit::{BAD_CONFIG, DIFFERENT, FAILED, complain, print};
use crate::load::{load, port};

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
    let ours_port = port(ours.config(), wanted.port.as_deref())?;
    let other_port = other.as_ref().map(|other| port(other.config(), wanted.port.as_deref())).transpose()?;
    let mut capture = Capture::open(&wanted.capture).map_err(|error| complain(&error, BAD_CONFIG))?;
    outputs_are_apart(wanted).map_err(|error| complain(&error, BAD_CONFIG))?;
    let create = |file: &Option<_>| file.as_deref().map(PcapWriter::create).transpose();
    let failed = |error| complain(&error, FAILED);
    let mut passed = create(&wanted.write_passed).map_err(failed)?;
    let mut dropped = create(&wanted.write_dropped).map_err(failed)?;
    let bar = bar(wanted, capture.size());

    let (mut report, mut other_report, mut diff) = (Report::default(), Report::default(), Diff::default());
    let mut unexpected: Option<String> = None;
    let broken = loop {
        let position = capture.position();
        let packet = match capture.next() {
            Ok(Some(packet)) => packet,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        let (time, frame, len) = (packet.time, packet.frame, packet.wire_len);
        let interface = packet.interface;
        come_by(&mut ours, ours_port, interface);
        let outcome = ours.packet(time, frame, len);
        report.add(outcome, time, (frame.len(), len));
        if let Some(other) = &mut other {
            come_by(other, other_port.flatten(), interface);
            let theirs = other.packet(time, frame, len);
            other_report.add(theirs, time, (frame.len(), len));
            diff.add([ours.config(), other.config()], [outcome, theirs], packet.number, || describe(frame));
        }
        if unexpected.is_none() && is_unexpected(outcome, wanted.expect) {
            let (number, fate) = (packet.number, outcome.describe(ours.config()));
            unexpected = Some(format!("#{number} {}: {fate}", describe(frame)));
        }
        let writer = match outcome {
            Outcome::FromService | Outcome::CannotTell(_) => None,
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
    if let Some(warning) = report.warning() {
        eprintln!("sluice: {warning}");
    }
    let printed = print(&text);
    if let Some(error) = broken {
        // What came before was replayed and is counted above.
        return Err(complain(&error, BAD_CONFIG));
    }
    if let Some(first) = unexpected {
        let (packets, fate) = match wanted.expect {
            Some(Fate::Passed) => (report.dropped(), "dropped"),
            _ => (report.passed(), "passed"),
        };
        let untold = report.untold();
        let untold = if untold > 0 { format!(", of {untold} it cannot be told") } else { String::new() };
        return Err(complain(
            &format_args!("sluice: {packets} packets {fate}{untold}, none should; the first is {first}"),
            DIFFERENT,
        ));
    }
    Ok(if diff.is_empty() { printed } else { ExitCode::from(DIFFERENT) })
}

/// Tells a replay where the next packet comes in: by the port that was asked for, or by the one of its interface's name.
fn come_by(replay: &mut Replay, asked: Option<usize>, interface: Option<&str>) {
    let named = |name: &str| replay.config().ports.iter().position(|port| port.name == name);
    let port = asked.or(interface.and_then(named));
    replay.come_by(port);
}

fn is_unexpected(outcome: Outcome, expected: Option<Fate>) -> bool {
    match (expected, outcome) {
        (None, _) | (_, Outcome::FromService) => false,
        // Whoever expects something wants to know.
        (Some(_), Outcome::CannotTell(_)) => true,
        (Some(Fate::Passed), outcome) => outcome.is_drop(),
        (Some(Fate::Dropped), outcome) => !outcome.is_drop(),
    }
}

/// Refuses to write over what is read, or twice into one file.
fn outputs_are_apart(wanted: &args::Replay) -> Result<(), String> {
    let outputs = [("--write-passed", &wanted.write_passed), ("--write-dropped", &wanted.write_dropped)];
    let outputs: Vec<(&str, &Path)> =
        outputs.into_iter().filter_map(|(key, file)| Some((key, file.as_deref()?))).collect();
    let inputs = [Some(&wanted.capture), Some(&wanted.config), wanted.diff.as_ref()];
    for (index, (key, file)) in outputs.iter().enumerate() {
        let shown = file.display();
        if *file == Path::new("-") {
            return Err(format!("sluice: {key} -: the report goes to standard output; name a file"));
        }
        if inputs.into_iter().flatten().any(|input| same_file(input, file)) {
            return Err(format!("sluice: {key} {shown}: would overwrite what is read; name another file"));
        }
        if outputs.iter().take(index).any(|(_, other)| same_file(other, file)) {
            return Err(format!("sluice: {key} {shown}: is written already; name another file"));
        }
    }
    Ok(())
}

/// Whether two paths lead to one regular file, which need not be there yet.
fn same_file(a: &Path, b: &Path) -> bool {
    let of =
        |file: &Path| std::fs::metadata(file).ok().filter(|meta| meta.is_file()).map(|meta| (meta.dev(), meta.ino()));
    let absolute = |file: &Path| std::path::absolute(file).ok();
    match (of(a), of(b)) {
        (Some(a), Some(b)) => a == b,
        (None, None) => !a.exists() && absolute(a) == absolute(b),
        _ => false,
    }
}

/// The appliance of a configuration, without ports. Its cookies' seed, if it has none of its own, is nobody's secret.
fn appliance(path: &Path) -> Result<Replay, ExitCode> {
    let whole = load(path)?;
    let seed = whole.seed()?.unwrap_or([1; 32]);
    Ok(Replay::new(whole.config, whole.filters, seed, whole.bans))
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
