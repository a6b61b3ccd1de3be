//! `sluice check`: what a configuration means, or every mistake in it. Touches no device.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use sluice_control::memory::{self, Need};

use crate::exit::print;
use crate::load::{Whole, load};

/// Prints the summary of the configuration at `path`, with what its sets hold, or its mistakes.
pub fn check(path: &Path) -> ExitCode {
    // Whatever `run` refuses of the files that the configuration names.
    let checked = load(path).and_then(|whole| {
        whole.seed()?;
        whole.proxy_keys()?;
        whole.outputs()?;
        whole.memory(path)?;
        Ok(whole)
    });
    match checked {
        Ok(whole) => print(&describe(&whole)),
        Err(code) => code,
    }
}

fn describe(whole: &Whole) -> String {
    let mut text = whole.config.summary();
    for (set, held) in whole.config.sets.iter().zip(&whole.filters.sets) {
        let _ = writeln!(text, "set {}: {} prefixes in {} ranges", set.name, held.prefixes(), held.ranges());
    }
    if !whole.config.sets.is_empty() {
        let _ = writeln!(text, "sources: {} KiB to look them up", whole.filters.plan.memory().div_ceil(1 << 10));
    }
    if !whole.bans.is_empty() {
        let _ = writeln!(text, "bans: {} in the file", whole.bans.len());
    }
    let need = Need::of(&whole.config, &whole.filters);
    let there_is = memory::available().map(|octets| format!(" of {} MiB", octets >> 20)).unwrap_or_default();
    let _ = writeln!(text, "memory{there_is}: {need}");
    text
}
