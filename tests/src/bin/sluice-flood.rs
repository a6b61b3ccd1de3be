//! Sends a bounded flood out of an interface and prints one JSON line: what was sent, how much, how fast.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use sluice_tests::flood::{Flood, Kind, parse_mac, resolve};
use sluice_tests::link::Link;

/// Sends a bounded flood of SYNs, ACKs, RSTs or malformed frames from random sources. For labs: run it only in a network of your own.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What to send.
    #[arg(long, value_enum)]
    kind: Kind,
    /// Interface to send from.
    #[arg(long)]
    iface: String,
    /// Address and port of the service, such as `198.51.100.10:443` or `[2001:db8::10]:443`.
    #[arg(long)]
    to: SocketAddr,
    /// MAC address of the service or of the gateway to it; resolved when left out.
    #[arg(long, value_parser = mac)]
    to_mac: Option<[u8; 6]>,
    /// MAC address to send from.
    #[arg(long, value_parser = mac, default_value = "02:00:00:00:00:0f")]
    from_mac: [u8; 6],
    /// Frames to send.
    #[arg(long, default_value_t = 100_000)]
    count: u64,
    /// Frames per second; 0 = as fast as they go.
    #[arg(long, default_value_t = 50_000)]
    rate: u32,
    /// Seed of sources, ports and sequence numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    parse_mac(text).ok_or_else(|| format!("{text:?} is not six hex octets with colons between"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let to_mac = match arguments.to_mac.map_or_else(|| resolve(arguments.to.ip()), Ok) {
        Ok(to_mac) => to_mac,
        Err(error) => {
            eprintln!("sluice-flood: {error}; --to-mac says it without asking");
            return ExitCode::FAILURE;
        }
    };
    let flood = Flood {
        kind: arguments.kind,
        to: arguments.to,
        from_mac: arguments.from_mac,
        to_mac,
        count: arguments.count,
        rate: arguments.rate,
        seed: arguments.seed,
    };
    let report = flood.run(&mut Link::open_here(&arguments.iface));
    println!("{}", serde_json::to_string(&report).expect("a report is plain data"));
    ExitCode::SUCCESS
}
