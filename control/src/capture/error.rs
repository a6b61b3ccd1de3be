//! What can be wrong with a capture: the file, the packet and the octet, what was found, and the remedy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::MAX_PACKET;
use super::link::{self, SUPPORTED};

/// Why a capture cannot be read, or no further.
#[derive(Debug, Error)]
#[error("{}: {fault}", shown(file))]
pub struct CaptureError {
    /// The file; `-` is standard input.
    pub file: PathBuf,
    /// What is wrong with it.
    #[source]
    pub fault: CaptureFault,
}

/// What is wrong with a capture. Octets count from 0, packets from 1.
#[derive(Debug, Error)]
pub enum CaptureFault {
    /// It cannot be opened.
    #[error("cannot be opened: {0}; name a capture that this user may read, or - for standard input")]
    Open(#[source] io::Error),
    /// Reading fails.
    #[error("cannot be read at octet {}: {cause}; name a capture file, or - for standard input", grouped(*at))]
    Read {
        /// Where.
        at: u64,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// Nothing is in it.
    #[error("is empty; capture again: even a capture without packets has a header")]
    Empty,
    /// It is compressed.
    #[error("is compressed with {with}; unpack it first, or into standard input: {unpack} FILE | sluice replay ... -")]
    Compressed {
        /// By what.
        with: &'static str,
        /// What unpacks it to standard output.
        unpack: &'static str,
    },
    /// It is something else.
    #[error("is no capture: it begins with {found}; a pcap or pcapng file is needed, as tcpdump -w writes it")]
    NotACapture {
        /// Its first octets, as text or hexadecimal.
        found: String,
    },
    /// A version of the format that we do not know.
    #[error("has version {major}.{minor} of {format}; rewrite it with editcap -F {format}")]
    Version {
        /// `pcap` or `pcapng`
        format: &'static str,
        /// The number before the point.
        major: u16,
        /// And the one after it.
        minor: u16,
    },
    /// It ends in the middle of something.
    #[error(
        "truncated in {part} at octet {}: {there} of {needed} octets are there; capture again, or cut the file with \
         editcap",
        grouped(*at)
    )]
    Truncated {
        /// In the middle of what.
        part: Part,
        /// Where the incomplete piece begins.
        at: u64,
        /// Its octets in the file.
        there: u64,
        /// Its octets.
        needed: u64,
    },
    /// The link type of its packets is not one we can make Ethernet of.
    #[error(
        "{}link type {}, and sluice reads {SUPPORTED}; capture with tcpdump -i IFACE -y EN10MB",
        packet.map_or("has ".to_owned(), |number| format!("packet {number} has ")),
        link::name(*number)
    )]
    LinkType {
        /// The first packet that has it; none when the whole file has it.
        packet: Option<u64>,
        /// tcpdump.org's number.
        number: u32,
    },
    /// A packet that nothing can have sent.
    #[error(
        "packet {packet} at octet {}: {octets} octets, and {MAX_PACKET} are the most; the file is damaged: capture again, \
         or cut it with editcap",
        grouped(*at)
    )]
    TooLong {
        /// Which.
        packet: u64,
        /// Where its record begins.
        at: u64,
        /// Its length as recorded.
        octets: u32,
    },
    /// Its fields contradict one another.
    #[error("{part} at octet {}: {found}; the file is damaged: capture again, or cut it with editcap", grouped(*at))]
    Corrupt {
        /// In what.
        part: Part,
        /// Where that begins.
        at: u64,
        /// The contradiction.
        found: String,
    },
}

/// A part of a capture file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What stands before the packets.
    Header,
    /// A packet and what belongs to it.
    Packet(u64),
    /// A pcapng block of this type that holds no packet.
    Block(u32),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Header => f.write_str("the header"),
            Part::Packet(number) => write!(f, "packet {number}"),
            Part::Block(kind) => write!(f, "a block of type {kind:#x}"),
        }
    }
}

/// The file's name in messages.
pub(super) fn shown(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() }
}

/// `88,123`
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
