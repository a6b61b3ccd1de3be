//! The command line.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand, ValueEnum};

/// sluice's version and the DPDK it runs on.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} ({})", env!("CARGO_PKG_VERSION"), sluice_dataplane::dpdk_version()));

const AFTER: &str = "\
Examples:
  sluice check -c /etc/sluice/sluice.toml     say what a configuration means, or what is wrong with it
  sluice run -c /etc/sluice/sluice.toml       serve until SIGINT or SIGTERM, then drain and exit
  SLUICE_LOG=debug sluice run -c lab.toml     the same with a talkative log
  sluice explain -c sluice.toml '192.0.2.7:40000 > 198.51.100.10:443 flags=S ttl=52'
                                              say what would become of a packet, and why
  sluice replay -c sluice.toml attack.pcap    count what would become of a capture's packets
  sluice proxy-header verify --keys /etc/sluice/proxy.keys header.bin
                                              say what a signed PROXY header says, if it is authentic

Exit codes:
  0  done: the configuration is right; the appliance was asked to stop and has drained
  1  the appliance could not start (device, memory, port in use), or stopped on a fault; the header is not authentic
  2  the configuration, the command line or a capture is wrong
  3  sluice replay: something would change (--diff), or not every packet fared as expected (--expect)";

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
    /// is left then is reset. A second one resets it at once. Needs root, or the rights DPDK needs for the devices.
    Run(File),
    /// Check a configuration and say what it means.
    ///
    /// Prints what was understood, or every mistake with its file, line, key and remedy. Needs neither root nor devices.
    Check(File),
    /// Say what would become of a packet, and why.
    ///
    /// Prints the packet's whole way through the filters: service, sets, bans, every rule with the condition that fails,
    /// limits, cookie, upstream. Nothing is remembered from other packets: limits stand as if it were the first. Needs neither
    /// root nor devices.
    #[command(after_help = EXPLAIN)]
    Explain(Explain),
    /// Count what would become of a capture's packets.
    ///
    /// Sends a capture (pcap or pcapng) through the parser, filters, limits and cookies of a configuration, on the capture's own
    /// clock, and prints packets and octets by what became of them and by rule. MAC addresses and VLANs are not compared, and there
    /// are no upstreams. Needs neither root nor devices.
    #[command(after_help = REPLAY)]
    Replay(Replay),
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

const EXPLAIN: &str = "\
A packet is written as sources and destination with ports, then facts in any order; what is not said is as a Linux client has it:
  flags=S (tcpdump's letters, or names: flags=syn,ack)   seq= ack= win= ttl= len= vlan=
  mss= wscale= sack ts=VALUE:ECHO options=mss,sack-permitted,ts,nop,wscale   payload=TEXT or payload=hex:474554

Examples:
  sluice explain -c sluice.toml '192.0.2.7:40000 > 198.51.100.10:443 flags=S ttl=52 mss=1460'
  sluice explain -c sluice.toml '[2001:db8:7::1]:40000 > [2001:db8::10]:443 flags=. seq=8 ack=1'
  sluice explain -c sluice.toml first-packet-of.pcap
  sluice explain -c sluice.toml --number 17 dropped.pcapng";

const REPLAY: &str = "\
Examples:
  sluice replay -c sluice.toml attack.pcap
  sluice replay -c sluice.toml --json attack.pcap | jq .rules
  sluice replay -c sluice.toml --diff candidate.toml yesterday.pcapng    what the candidate would change
  sluice replay -c sluice.toml --expect passed customers.pcap            exit 3 if any packet is dropped
  sluice replay -c sluice.toml --write-dropped dropped.pcap mixed.pcap

Exit codes:
  0  done
  1  an output cannot be written
  2  a configuration, the command line or the capture is wrong
  3  --diff found changes, or a packet fared otherwise than --expect says";

/// A packet to explain.
#[derive(Debug, clap::Args)]
pub struct Explain {
    /// The configuration file (TOML).
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// When the packet is received, in RFC 3339 (2026-12-01T00:00:00Z): for bans and cookies. Default: now, or the capture's time.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub time: Option<SystemTime>,
    /// Which packet of the capture is explained, counted from 1 as tcpdump and `sluice replay --diff` do. Default: 1.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub number: Option<u64>,
    /// The port that the packet comes in by: what depends on it (`port.source_check`) is checked, too. Default: the capture's
    /// interface, if a port has its name; otherwise that is taken to be right.
    #[arg(long, value_name = "NAME")]
    pub port: Option<String>,
    /// The packet, in one word or several, or the file of a capture; - is standard input.
    #[arg(value_name = "PACKET", required = true, num_args = 1..)]
    pub packet: Vec<String>,
}

/// A capture to replay.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// The configuration file (TOML).
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Print JSON instead of tables.
    #[arg(long)]
    pub json: bool,
    /// Another configuration: print what it would change.
    #[arg(long, value_name = "OTHER.toml")]
    pub diff: Option<PathBuf>,
    /// Write the packets that pass to this file (pcap).
    #[arg(long, value_name = "FILE")]
    pub write_passed: Option<PathBuf>,
    /// Write the packets that are dropped to this file (pcap).
    #[arg(long, value_name = "FILE")]
    pub write_dropped: Option<PathBuf>,
    /// What every packet must be, or the exit code is 3; what a service sent is not judged.
    #[arg(long, value_enum, value_name = "FATE")]
    pub expect: Option<Fate>,
    /// The port that the packets come in by, all of them: what depends on it (`port.source_check`) is checked, too. Default: each
    /// packet's interface, if a port has its name; otherwise that is taken to be right.
    #[arg(long, value_name = "NAME")]
    pub port: Option<String>,
    /// Show no progress bar.
    #[arg(long)]
    pub quiet: bool,
    /// The capture; - is standard input.
    #[arg(value_name = "CAPTURE")]
    pub capture: PathBuf,
}

/// What may become of a packet, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fate {
    /// Not dropped.
    Passed,
    /// Dropped.
    Dropped,
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
    fn a_packet_may_be_several_words() {
        let words = ["sluice", "explain", "-c", "a.toml", "192.0.2.7:1", ">", "198.51.100.10:443", "flags=S"];
        let Ok(Command::Explain(explain)) = Args::try_parse_from(words).map(|args| args.command) else { panic!() };
        assert_eq!(explain.packet.join(" "), "192.0.2.7:1 > 198.51.100.10:443 flags=S");
        assert!(Args::try_parse_from(["sluice", "explain", "-c", "a.toml"]).is_err());
    }

    #[test]
    fn commands_need_a_file() {
        for command in ["run", "check"] {
            assert!(Args::try_parse_from(["sluice", command]).is_err());
            assert!(Args::try_parse_from(["sluice", command, "-c", "a.toml"]).is_ok());
            assert!(Args::try_parse_from(["sluice", command, "--config", "a.toml"]).is_ok());
        }
    }
}
