//! What the commands that touch no device read of a configuration: the file, its sets and rules, its bans.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use sluice_config::Config;
use sluice_control::filters::bans::{Ban, configured_bans};
use sluice_control::filters::{self, Loaded};
use sluice_control::memory::{self, Need};

use crate::exit::{BAD_CONFIG, complain};

/// A configuration with everything that decides about packets.
pub struct Whole {
    pub config: Arc<Config>,
    pub filters: Loaded,
    pub bans: Vec<Ban>,
}

impl Whole {
    /// The cookies' seed; none when it is drawn at each start. Complains when there is one that cannot be read.
    pub fn seed(&self) -> Result<Option<[u8; 32]>, ExitCode> {
        let file = self.config.cookies.seed_file.as_deref();
        file.map(sluice_config::read_seed).transpose().map_err(|error| complain(&error, BAD_CONFIG))
    }

    /// Complains when there are keys for PROXY headers that cannot be read.
    pub fn proxy_keys(&self) -> Result<(), ExitCode> {
        let keys = self.config.proxy_keys.as_deref().map(sluice_config::read_proxy_keys).transpose();
        keys.map(|_| ()).map_err(|error| complain(&error, BAD_CONFIG))
    }

    /// Complains when the configuration at `path` can take more memory than there is.
    pub fn memory(&self, path: &Path) -> Result<(), ExitCode> {
        let need = Need::of(&self.config, &self.filters);
        let checked = memory::check(&path.display().to_string(), &self.config, &need, memory::available());
        checked.map_err(|error| complain(&error, BAD_CONFIG))
    }

    /// Complains when a file that `run` writes to could not be opened; none is made.
    pub fn outputs(&self) -> Result<(), ExitCode> {
        sluice_control::check_outputs(&self.config).map_err(|error| complain(&error, BAD_CONFIG))
    }
}

/// Reads the configuration at `path` and every file that its filters need, or complains.
pub fn load(path: &Path) -> Result<Whole, ExitCode> {
    let wrong = |error: &dyn std::fmt::Display| complain(error, BAD_CONFIG);
    let config = Arc::new(sluice_config::load(path).map_err(|mistakes| wrong(&mistakes))?);
    // One stands for all workers here, and has the whole of what they share.
    let filters = filters::load(&path.display().to_string(), &config, 1).map_err(|error| wrong(&error))?;
    let read = configured_bans(&config).map_err(|error| wrong(&error))?;
    let notes = filters.notes.iter().flat_map(|note| note.warnings.iter().cloned());
    for warning in config.warnings.iter().map(ToString::to_string).chain(notes).chain(read.warnings) {
        eprintln!("sluice: warning: {warning}");
    }
    Ok(Whole { config, filters, bans: read.bans })
}

/// The index of the port called `name`, if one is asked for, or complains.
pub fn port(config: &Config, name: Option<&str>) -> Result<Option<usize>, ExitCode> {
    let Some(name) = name else { return Ok(None) };
    let port = config.ports.iter().position(|port| port.name == name);
    port.map(Some).ok_or_else(|| {
        let names: Vec<&str> = config.ports.iter().map(|port| port.name.as_str()).collect();
        complain(
            &format_args!("sluice: --port {name}: no port has this name; the ports are {}", names.join(", ")),
            BAD_CONFIG,
        )
    })
}
