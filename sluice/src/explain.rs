//! `sluice explain`: what would become of a packet.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_control::capture::Capture;
use sluice_control::explain::{self, Circumstances};
use sluice_control::packet;

use crate::args::Explain;
use crate::exit::{BAD_CONFIG, complain, print};
use crate::load::{load, port};

/// Prints the way of the packet that is asked for.
pub fn explain(wanted: &Explain) -> ExitCode {
    run(wanted).unwrap_or_else(|code| code)
}

fn run(wanted: &Explain) -> Result<ExitCode, ExitCode> {
    let whole = load(&wanted.config)?;
    let packet = packet(wanted).map_err(|error| complain(&format_args!("sluice: {error}"), BAD_CONFIG))?;
    let asked_port = port(&whole.config, wanted.port.as_deref())?;
    let interface = |name: &String| whole.config.ports.iter().position(|port| port.name == *name);
    let port = asked_port.or(packet.interface.as_ref().and_then(interface));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let asked = wanted.time.map(|time| time.duration_since(UNIX_EPOCH).unwrap_or_default());
    let circumstances = Circumstances {
        config: &whole.config,
        sets: &whole.filters.sets,
        bans: &whole.bans,
        seed: whole.seed()?,
        time: asked.or(packet.time).unwrap_or_else(now),
        port,
    };
    Ok(print(&explain::explain(&circumstances, whole.filters.plan, &packet.frame, packet.wire_len)))
}

/// What is explained.
struct Packet {
    frame: Vec<u8>,
    /// Octets of the whole frame.
    wire_len: u32,
    /// When it was captured, if it was.
    time: Option<Duration>,
    /// Where, if the capture says so.
    interface: Option<String>,
}

fn packet(wanted: &Explain) -> Result<Packet, String> {
    if let [file] = wanted.packet.as_slice()
        && (Path::new(file).exists() || file == "-")
    {
        return captured(Path::new(file), wanted.number.unwrap_or(1));
    }
    if let [text] = wanted.packet.as_slice()
        && !text.contains('>')
    {
        let remedy = "name a capture, or write a packet as in '192.0.2.7:40000 > 198.51.100.10:443 flags=S'";
        return Err(format!("{text}: neither a file nor a packet; {remedy}"));
    }
    if wanted.number.is_some() {
        return Err("--number counts the packets of a capture; name one".into());
    }
    let frame = packet::parse_words(&wanted.packet).map_err(|error| format!("the packet: {error}"))?;
    let wire_len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    Ok(Packet { frame, wire_len, time: None, interface: None })
}

/// Packet `number`, from 1, of a capture.
fn captured(file: &Path, number: u64) -> Result<Packet, String> {
    let mut capture = Capture::open(file).map_err(|error| error.to_string())?;
    let mut count = 0;
    while let Some(packet) = capture.next().map_err(|error| error.to_string())? {
        count = packet.number;
        if count == number {
            return Ok(Packet {
                frame: packet.frame.to_vec(),
                wire_len: packet.wire_len,
                time: Some(packet.time),
                interface: packet.interface.map(str::to_owned),
            });
        }
    }
    let file = file.display();
    Err(match count {
        0 => format!("{file}: holds no packet; name a capture with at least one"),
        _ => format!("{file}: has {count} packets and no packet {number}; give a --number from 1 to {count}"),
    })
}
