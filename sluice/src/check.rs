//! `sluice check`: what a configuration means, or every mistake in it. Touches no device.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::exit::{BAD_CONFIG, FAILED, complain};

/// Prints the summary of the configuration at `path`, or its mistakes.
pub fn check(path: &Path) -> ExitCode {
    let config = match sluice_config::load(path) {
        Ok(config) => config,
        Err(mistakes) => return complain(&mistakes, BAD_CONFIG),
    };
    let mut out = io::stdout().lock();
    match out.write_all(config.summary().as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // `sluice check ... | head -1`
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => complain(&format_args!("sluice: cannot write to standard output: {error}"), FAILED),
    }
}
