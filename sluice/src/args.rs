//! The command line.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Parser, Subcommand};

/// sluice's version and the DPDK it runs on.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} ({})", env!("CARGO_PKG_VERSION"), sluice_dataplane::dpdk_version()));

const AFTER: &str = "\
Examples:
  sluice check -c /etc/sluice/sluice.toml     say what a configuration means, or what is wrong with it
  sluice run -c /etc/sluice/sluice.toml       serve until SIGINT or SIGTERM, then drain and exit
  SLUICE_LOG=debug sluice run -c lab.toml     the same with a talkative log

Exit codes:
  0  done: the configuration is right; the appliance was asked to stop and has drained
  1  the appliance could not start (device, memory, port in use), or stopped on a fault
  2  the configuration or the command line is wrong";

/// A dedicated TCP scrubbing appliance on DPDK.
///
/// Answers SYNs with cookies, drops what is not TCP to a configured service, and hands upstreams only connections of
/// clients that exist.
#[derive(Debug, Parser)]
#[command(name = "sluice", version = VERSION.as_str(), after_help = AFTER)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGINT or SIGTERM.
    ///
    /// Checks the configuration, starts the ports and workers, prints one line for each port, service and worker and then
    /// "sluice: ready". The first SIGINT or SIGTERM stops accepting and lets connections finish for `runtime.drain`; what
    /// is left then is reset. A second one ends at once. Needs root, or the rights DPDK needs for the devices.
    Run(File),
    /// Check a configuration and say what it means.
    ///
    /// Prints what was understood, or every mistake with its file, line, key and remedy. Needs neither root nor devices.
    Check(File),
}

/// The configuration file.
#[derive(Debug, clap::Args)]
pub struct File {
    /// The configuration file (TOML).
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn both_commands_need_a_file() {
        for command in ["run", "check"] {
            assert!(Args::try_parse_from(["sluice", command]).is_err());
            assert!(Args::try_parse_from(["sluice", command, "-c", "a.toml"]).is_ok());
            assert!(Args::try_parse_from(["sluice", command, "--config", "a.toml"]).is_ok());
        }
    }
}
