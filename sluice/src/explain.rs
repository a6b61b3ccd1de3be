//! `sluice explain`: what would become of a packet.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_control::capture::Capture;
use sluice_control::explain::{self, Circumstances};
use sluice_control::packet;

use crate::args::Explain;
use crate::exit::{BAD_CONFIG, complain, print};
use crate::load::load;

/// Prints the way of the packet that is asked for.
pub fn explain(wanted: &Explain) -> ExitCode {
    run(wanted).unwrap_or_else(|code| code)
}

fn run(wanted: &Explain) -> Result<ExitCode, ExitCode> {
    let whole = load(&wanted.config)?;
    let (frame, captured) = frame(&wanted.packet).map_err(|error| complain(&error, BAD_CONFIG))?;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let asked = wanted.time.map(|time| time.duration_since(UNIX_EPOCH).unwrap_or_default());
    let circumstances = Circumstances {
        config: &whole.config,
        sets: &whole.filters.sets,
        bans: &whole.bans,
        seed: whole.seed()?,
        time: asked.or(captured).unwrap_or_else(now),
    };
    Ok(print(&explain::explain(&circumstances, whole.filters.plan, &frame)))
}

/// The frame, and when it was captured, if it was.
fn frame(words: &[String]) -> Result<(Vec<u8>, Option<Duration>), String> {
    if let [file] = words
        && Path::new(file).is_file()
    {
        let mut capture = Capture::open(Path::new(file)).map_err(|error| error.to_string())?;
        return match capture.next().map_err(|error| error.to_string())? {
            Some(packet) => Ok((packet.frame.to_vec(), Some(packet.time))),
            None => Err(format!("{file}: holds no packet; name a capture with at least one")),
        };
    }
    packet::parse(&words.join(" ")).map(|frame| (frame, None)).map_err(|error| error.to_string())
}
