//! Exit codes, complaints, and what was asked for.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// The appliance could not start, or stopped on a fault.
pub const FAILED: u8 = 1;
/// The configuration is wrong; also what a wrong command line ends with.
pub const BAD_CONFIG: u8 = 2;

/// A replay found other fates than were asked for.
pub const DIFFERENT: u8 = 3;

/// Prints what was asked for. A reader that has heard enough (`| head -1`) is no fault.
pub fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => complain(&format_args!("sluice: cannot write to standard output: {error}"), FAILED),
    }
}

/// Says why on standard error and ends with `code`. A closed standard error changes nothing.
pub fn complain(why: &dyn Display, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{why}");
    code.into()
}
