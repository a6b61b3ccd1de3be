//! The filters' side off the hot path: sets and rules from files to what workers run, bans, the sample of dropped packets.
//!
//! [`load`] is for everybody who wants to know what a configuration does: `run`, `check`, `explain`, `replay`. [`watch`] keeps a
//! running appliance's sets and bans as their files are; a file that cannot be used leaves in force what was, across starts too.

pub mod bans;
mod copies;
mod sample;
mod watch;

use std::fmt;
use std::time::{Duration, SystemTime};

use sluice_config::{Config, Mistake, Set};
use sluice_filters::engine::Plan;
use sluice_filters::sets::{AddressSet, SetError, load_set};

use self::copies::Copies;
pub(crate) use self::sample::{SampleCounters, SampleFile, SampleThread};
pub use self::watch::{FilterWatch, SetGauges, watch};

/// A configuration's filters, ready to be used.
#[derive(Debug)]
pub struct Loaded {
    /// What its sets hold, in its order.
    pub sets: Vec<AddressSet>,
    /// How each of them was come by.
    pub notes: Vec<SetNote>,
    /// Its rules and limits, compiled.
    pub plan: Plan,
}

/// How a set was come by.
#[derive(Clone, Debug, Default)]
pub struct SetNote {
    /// What an operator should be told.
    pub warnings: Vec<String>,
    /// Lines of its lists that were skipped.
    pub skipped: usize,
    /// When its copy was made, if its files cannot be used now.
    pub copied: Option<SystemTime>,
}

/// Why filters cannot be used: every mistake there is. One line each.
#[derive(Debug)]
pub struct LoadError {
    sets: Vec<SetError>,
    mistakes: Vec<Mistake>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sets = self.sets.iter().map(ToString::to_string);
        let mistakes = self.mistakes.iter().map(ToString::to_string);
        f.write_str(&sets.chain(mistakes).collect::<Vec<_>>().join("\n"))
    }
}

impl std::error::Error for LoadError {}

/// Reads the sets of `config` and compiles its rules, for so many workers to share its limits. `file` is what messages call the
/// configuration. A set whose files cannot be used is as it was when they could be, if a copy of that was kept.
///
/// # Errors
/// Every set that cannot be read, nor has a copy, and every rule that cannot be compiled.
pub fn load(file: &str, config: &Config, workers: usize) -> Result<Loaded, LoadError> {
    let copies = Copies::of(config);
    let (mut sets, mut notes, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for set in &config.sets {
        let (addresses, note) = match load_set(set) {
            Ok(read) => (read.addresses, SetNote { warnings: read.warnings, skipped: read.skipped, copied: None }),
            Err(error) => fall_back(&copies, set, &error).unwrap_or_else(|| {
                wrong.push(error);
                Default::default()
            }),
        };
        sets.push(addresses);
        notes.push(note);
    }
    match Plan::compile(file, config, &sets, workers) {
        Ok(plan) if wrong.is_empty() => Ok(Loaded { sets, notes, plan }),
        Ok(_) => Err(LoadError { sets: wrong, mistakes: Vec::new() }),
        Err(mistakes) => Err(LoadError { sets: wrong, mistakes }),
    }
}

/// The copy of a set that cannot be read.
fn fall_back(copies: &Copies, set: &Set, error: &SetError) -> Option<(AddressSet, SetNote)> {
    let (addresses, copied) = Copies::is_kept(set).then(|| copies.read(set).ok()).flatten()?;
    let time = humantime::format_rfc3339_seconds(copied);
    let path = copies.path(set);
    let warning = format!("{error} (until then the set is what it was at {time}, from {})", path.display());
    Some((addresses, SetNote { warnings: vec![warning], skipped: 0, copied: Some(copied) }))
}

/// Seconds since 1970.
fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
