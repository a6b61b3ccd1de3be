//! The command line.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// sluice's version and the DPDK it runs on.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} ({})", env!("CARGO_PKG_VERSION"), sluice_dataplane::dpdk_version()));

const AFTER: &str = "\
Examples:
  sluice check -c /etc/sluice/sluice.toml     say what a configuration means, or what is wrong with it
  sluice run -c /etc/sluice/sluice.toml       serve until SIGINT or SIGTERM, then drain and exit
  SLUICE_LOG=debug sluice run -c lab.toml     the same with a talkative log
  sluice proxy-header verify --keys /etc/sluice/proxy.keys header.bin
                                              say what a signed PROXY header says, if it is authentic

Exit codes:
  0  done: the configuration is right; the appliance was asked to stop and has drained
  1  the appliance could not start (device, memory, port in use), or stopped on a fault; the header is not authentic
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
    /// Look into PROXY headers.
    #[command(subcommand)]
    ProxyHeader(ProxyHeader),
}

/// What to do with a PROXY header.
#[derive(Debug, Subcommand)]
pub enum ProxyHeader {
    /// Tell whether one of the appliance's keys signed a header.
    ///
    /// Prints what an authentic header says, one fact a line, and exits 0. Otherwise says why not on standard error and
    /// exits 1. What follows the header is ignored, so a captured stream will do.
    #[command(after_help = VERIFY)]
    Verify(Verify),
}

const VERIFY: &str = "\
Examples:
  sluice proxy-header verify --keys proxy.keys header.bin
  sluice proxy-header verify --keys proxy.keys --max-age 1h < header.bin
  xxd -p header.bin | sluice proxy-header verify --keys proxy.keys --hex --at 1767323045678

Exit codes:
  0  authentic
  1  not authentic
  2  the command line is wrong, or names files that cannot be read";

/// A header to verify.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The keys: the file of `[proxy_keys]`, or one with the keys that may verify.
    #[arg(long, value_name = "FILE")]
    pub keys: PathBuf,
    /// How long before or after now the header may have been signed.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub max_age: Duration,
    /// The time to take as now, in milliseconds since 1970: for headers kept from earlier.
    #[arg(long, value_name = "UNIX_MS")]
    pub at: Option<u64>,
    /// The header is in hexadecimal digits.
    #[arg(long)]
    pub hex: bool,
    /// The file with the header; - is standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    pub header: PathBuf,
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
    fn a_header_to_verify_needs_keys() {
        let parse = |arguments: &[&str]| {
            Args::try_parse_from([&["sluice", "proxy-header", "verify"], arguments].concat()).map(|args| args.command)
        };
        assert!(parse(&[]).is_err());
        assert!(parse(&["--keys", "k", "--max-age", "5"]).is_err());
        assert!(parse(&["--keys", "k", "--at", "-1"]).is_err());
        let Ok(Command::ProxyHeader(ProxyHeader::Verify(verify))) = parse(&["--keys", "k"]) else { panic!() };
        assert_eq!((verify.max_age, verify.header), (Duration::from_secs(30), "-".into()));
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
