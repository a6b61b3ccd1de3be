//! Exit codes and complaints.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

/// The appliance could not start, or stopped on a fault.
pub const FAILED: u8 = 1;
/// The configuration is wrong; also what a wrong command line ends with.
pub const BAD_CONFIG: u8 = 2;

/// Says why on standard error and ends with `code`. A closed standard error changes nothing.
pub fn complain(why: &dyn Display, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{why}");
    code.into()
}
