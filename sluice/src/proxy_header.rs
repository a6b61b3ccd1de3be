//! `sluice proxy-header`: what a PROXY header says, and whether one of our keys signed it. Touches no device.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_config::KeyError;
use sluice_tcpstack::proxy::{self, Evidence, Keys, UnixMillis, Verified, Version};
use thiserror::Error;

use crate::args::Verify;
use crate::exit::{BAD_CONFIG, FAILED, complain};

/// Octets read at most: a header in hexadecimal digits, however they are laid out.
const LONGEST: u64 = 64 << 10;

/// The first moment of the year 10000, milliseconds: beyond, RFC 3339 has no date.
const DATES_END: u64 = 253_402_300_800_000;

/// Why nothing could be verified.
#[derive(Debug, Error)]
enum InputError {
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error("{file}: cannot be read: {cause}; name a file with a header, or - for standard input")]
    Unreadable { file: String, cause: io::Error },
    #[error("{file}: does not hold pairs of hexadecimal digits; leave --hex out for raw octets")]
    Hex { file: String },
}

/// Verifies one header: prints what it says when it is authentic, complains otherwise.
pub fn verify(wanted: &Verify) -> ExitCode {
    let (keys, octets) = match input(wanted) {
        Ok(input) => input,
        Err(error) => return complain(&format_args!("sluice: {error}"), BAD_CONFIG),
    };
    let now = wanted.at.map_or_else(|| SystemTime::now().into(), UnixMillis);
    let verified = match proxy::verify(&octets, &keys, now, wanted.max_age) {
        Ok(verified) => verified,
        Err(error) => return complain(&format_args!("sluice: not authentic: {error}"), FAILED),
    };
    let mut out = io::stdout().lock();
    match out.write_all(facts(&verified, now).as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => complain(&format_args!("sluice: cannot write to standard output: {error}"), FAILED),
    }
}

fn input(wanted: &Verify) -> Result<(Keys, Vec<u8>), InputError> {
    let keys = Keys::new(&sluice_config::read_proxy_keys(&wanted.keys)?);
    let mut octets = Vec::new();
    let read = if wanted.header == Path::new("-") {
        io::stdin().lock().take(LONGEST).read_to_end(&mut octets)
    } else {
        File::open(&wanted.header).and_then(|file| file.take(LONGEST).read_to_end(&mut octets))
    };
    let file =
        || if wanted.header == Path::new("-") { "standard input".into() } else { wanted.header.display().to_string() };
    read.map_err(|cause| InputError::Unreadable { file: file(), cause })?;
    if wanted.hex {
        octets = hex(&octets).ok_or_else(|| InputError::Hex { file: file() })?;
    }
    Ok((keys, octets))
}

/// The octets that hexadecimal digits write, with white space and colons anywhere between.
fn hex(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.iter().filter(|octet| !octet.is_ascii_whitespace() && **octet != b':');
    let digits = digits.map(|digit| char::from(*digit).to_digit(16)).collect::<Option<Vec<u32>>>()?;
    let octet = |pair: &[u32]| u8::try_from(pair[0] << 4 | pair[1]).ok();
    if digits.len().is_multiple_of(2) { digits.chunks_exact(2).map(octet).collect() } else { None }
}

/// One fact a line.
fn facts(verified: &Verified<'_>, now: UnixMillis) -> String {
    let header = &verified.read;
    let mut lines = Lines(String::new());
    lines.add(
        "version",
        match header.version {
            Version::V1 => 1,
            Version::V2 => 2,
        },
    );
    if let Some(ends) = header.addresses {
        lines.add("client", ends.client);
        lines.add("destination", ends.listen);
    }
    if let Some(name) = header.authority() {
        lines.add("authority", name.escape_debug());
    }
    if let Some(id) = header.unique_id() {
        lines.add("unique id", id.iter().fold(String::new(), |text, octet| format!("{text}{octet:02x}")));
    }
    if let Some(evidence) = header.evidence() {
        lines.evidence(&evidence);
    }
    lines.add("key", verified.key);
    lines.add("signed", moment(verified.signed));
    let (age, ahead) = (now.since(verified.signed), verified.signed.since(now));
    let sign = if ahead.is_zero() { "" } else { "-" };
    lines.add("age", format_args!("{sign}{} ms", age.max(ahead).as_millis()));
    lines.0
}

/// A moment as people and tools write it.
fn moment(at: UnixMillis) -> String {
    if at.0 < DATES_END {
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(at.0)).to_string()
    } else {
        format!("{} ms after 1970", at.0)
    }
}

struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        // Writing to memory does not fail.
        let _ = writeln!(self.0, "{name}: {value}");
    }

    fn evidence(&mut self, evidence: &Evidence) {
        fn or(value: Option<impl ToString>, otherwise: &str) -> String {
            value.map_or_else(|| otherwise.to_owned(), |value| value.to_string())
        }
        let yes = |is: bool| if is { "yes" } else { "no" };
        let kinds: Vec<String> = evidence.options.as_slice().iter().map(u8::to_string).collect();
        self.add("mss", evidence.mss);
        self.add("window scale", or(evidence.wscale, "none"));
        self.add("sack permitted", yes(evidence.sack));
        self.add("timestamp", or(evidence.tsval, "none"));
        self.add("ttl", evidence.hop_limit);
        self.add("window", evidence.window);
        self.add("options", if kinds.is_empty() { "none".to_owned() } else { kinds.join(" ") });
        self.add("round trip", or(evidence.rtt_ms.map(|ms| format!("{ms} ms")), "unknown"));
        self.add("under attack", yes(evidence.under_attack));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_may_be_laid_out_anyhow() {
        assert_eq!(hex(b"0d 0A:0d\n0a"), Some(vec![13, 10, 13, 10]));
        assert_eq!(hex(b""), Some(vec![]));
        for text in [&b"0"[..], b"0d0", b"0x0d", b"\xff\xff"] {
            assert_eq!(hex(text), None);
        }
    }

    #[test]
    fn moments_without_a_date_are_numbers() {
        assert_eq!(moment(UnixMillis(1_767_323_045_678)), "2026-01-02T03:04:05.678Z");
        assert_eq!(moment(UnixMillis(DATES_END - 1)), "9999-12-31T23:59:59.999Z");
        assert_eq!(moment(UnixMillis(u64::MAX)), "18446744073709551615 ms after 1970");
    }
}
