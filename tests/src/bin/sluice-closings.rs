//! Short connections through sluice and through HAProxy over links that lose, as one table (docs/testing.md). `scripts/night.sh` runs it.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use sluice_tests::appliance::Mode;
use sluice_tests::closings::{Cell, Closing, Header, Load, Report};
use sluice_tests::trial::{Between, Outcome, Trial};

/// Who is put to each trial, and in which order. The last is the measure.
const BETWEEN: [Between; 3] = [Between::Sluice(Mode::Terminate), Between::Sluice(Mode::Splice), Between::Haproxy];

/// Puts sluice and HAProxy to the same short connections over links that lose, and prints a table in Markdown.
///
/// Needs root, and the environment variable SLUICE_BIN: the path of sluice. What the links carried of connections that fail is left in the
/// directory SLUICE_CAPTURES. Exit code 1 when sluice fails what docs/testing.md asks of it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Connections in each cell.
    #[arg(long, default_value_t = 3000)]
    count: usize,
    /// Connections at once, all cells of a trial together.
    #[arg(long, default_value_t = 400)]
    at_once: usize,
    /// Percent of the packets that each link loses in either direction; 0 = none, and rings that overflow.
    #[arg(long, value_delimiter = ',', default_value = "0,1,3,10")]
    loss: Vec<u16>,
    /// Seconds that a connection may take.
    #[arg(long, default_value_t = 150)]
    patience: u64,
}

/// What is compared between those who stand between.
type Row = (u16, Cell);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut reports: HashMap<(Row, Between), Report> = HashMap::new();
    let mut rows: Vec<Row> = Vec::new();
    let mut fallbacks = 0;
    for percent in &arguments.loss {
        let cells = match percent {
            0 => Cell::all(&[Closing::Echo], &Header::BOTH),
            _ => Cell::all(&Closing::SHORT, &Header::BOTH),
        };
        rows.extend(cells.iter().map(|cell| (*percent, *cell)));
        for between in BETWEEN {
            for outcome in trials(&arguments, *percent, between, &cells) {
                fallbacks += outcome.fallbacks;
                let found = outcome.reports.into_iter().map(|report| (((*percent, report.cell), between), report));
                reports.extend(found);
            }
        }
    }
    print_table(&rows, &reports);
    let broken: Vec<_> = rows.iter().filter(|row| !holds(**row, &reports)).collect();
    for (percent, cell) in &broken {
        eprintln!("sluice fails at {percent}%: {cell}");
    }
    if fallbacks > 0 {
        eprintln!("sluice served {fallbacks} spliced connections in terminate mode");
    }
    if broken.is_empty() && fallbacks == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn trials(arguments: &Arguments, percent: u16, between: Between, cells: &[Cell]) -> Vec<Outcome> {
    let (count, patience) = (arguments.count, Duration::from_secs(arguments.patience));
    // Connections that echo are all there at once, one kind after the other; the others are mixed.
    let batches: Vec<_> = if percent == 0 { cells.chunks(1).collect() } else { vec![cells] };
    let mut outcomes = Vec::new();
    for cells in batches {
        let began = Instant::now();
        let trial = Trial {
            between,
            cells: cells.to_vec(),
            load: Load { count, at_once: if percent == 0 { count } else { arguments.at_once }, patience },
            per_mille: percent * 10,
            ring: if percent == 0 { 256 } else { Trial::RING },
        };
        let outcome = trial.run();
        eprintln!("{percent}% loss, {} between, {:.0?}:", between.as_str(), began.elapsed());
        for lost in &outcome.lost {
            eprintln!("  lost at {}: {}", lost.at, lost.packets);
        }
        eprintln!("  segments sent again by the hosts: {}", outcome.repeated);
        for report in &outcome.reports {
            eprintln!("  {report}");
            for failure in report.failures.iter().take(3) {
                eprintln!("    {failure}");
            }
        }
        if let Some(kept) = &outcome.kept {
            eprintln!("  recorded in {}", kept.display());
        }
        outcomes.push(outcome);
    }
    outcomes
}

/// Up to 3% loss every connection completes; with more, no more fail than through HAProxy.
fn holds((percent, cell): Row, reports: &HashMap<(Row, Between), Report>) -> bool {
    let failed = |between| reports[&((percent, cell), between)].failures.len();
    let allowed = if percent <= 3 { 0 } else { failed(Between::Haproxy) };
    BETWEEN.into_iter().filter(|between| *between != Between::Haproxy).all(|between| failed(between) <= allowed)
}

fn print_table(rows: &[Row], reports: &HashMap<(Row, Between), Report>) {
    println!("| loss | connections | terminate | splice | HAProxy |");
    println!("| --- | --- | --- | --- | --- |");
    for (percent, cell) in rows {
        let of = |between| &reports[&((*percent, *cell), between)];
        let measure = of(Between::Haproxy);
        let columns = BETWEEN.map(|between| {
            let report = of(between);
            let times = [0.5, 0.99, 0.999, 1.0].map(|share| seconds(report.quantile(share))).join(" / ");
            let ratios = [0.999, 1.0].map(|share| ratio(report.quantile(share), measure.quantile(share))).join(" / ");
            let failed = match report.failures.len() {
                0 => "0 failed".to_owned(),
                failed => format!("**{failed} failed**"),
            };
            if between == Between::Haproxy {
                format!("{failed}; {times}")
            } else {
                format!("{failed}; {times} ({ratios})")
            }
        });
        println!("| {percent}% | {cell} | {} |", columns.join(" | "));
    }
}

fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 { format!("{seconds:.3}") } else { format!("{seconds:.1}") }
}

fn ratio(ours: Duration, theirs: Duration) -> String {
    if theirs.is_zero() { "-".to_owned() } else { format!("{:.2}", ours.as_secs_f64() / theirs.as_secs_f64()) }
}
