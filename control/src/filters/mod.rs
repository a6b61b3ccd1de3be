//! The filters' side off the hot path: sets and rules from files to what workers run, bans, the sample of dropped packets.
//!
//! [`load`] is for everybody who wants to know what a configuration does: `run`, `check`, `explain`, `replay`. [`watch`] keeps a
//! running appliance's sets and bans as their files are; a file that cannot be used leaves in force what was.

pub mod bans;
mod sample;
mod watch;

use std::fmt;

use sluice_config::{Config, Mistake};
use sluice_filters::engine::Plan;
use sluice_filters::sets::{AddressSet, SetError, load_set};

pub(crate) use self::sample::{SampleCounters, SampleFile, SampleThread};
pub use self::watch::{FilterWatch, SetGauges, watch};

/// A configuration's filters, ready to be used.
#[derive(Debug)]
pub struct Loaded {
    /// What its sets hold, in its order.
    pub sets: Vec<AddressSet>,
    /// Its rules and limits, compiled.
    pub plan: Plan,
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
/// configuration.
///
/// # Errors
/// Every set that cannot be read and every rule that cannot be compiled.
pub fn load(file: &str, config: &Config, workers: usize) -> Result<Loaded, LoadError> {
    let (mut sets, mut wrong) = (Vec::new(), Vec::new());
    for set in &config.sets {
        match load_set(set) {
            Ok(set) => sets.push(set),
            Err(error) => {
                wrong.push(error);
                sets.push(AddressSet::default());
            }
        }
    }
    match Plan::compile(file, config, &sets, workers) {
        Ok(plan) if wrong.is_empty() => Ok(Loaded { sets, plan }),
        Ok(_) => Err(LoadError { sets: wrong, mistakes: Vec::new() }),
        Err(mistakes) => Err(LoadError { sets: wrong, mistakes }),
    }
}
