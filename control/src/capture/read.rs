//! The reader: which format a file has, and its packets as Ethernet frames.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::MAX_PACKET;
use super::classic::Classic;
use super::error::{CaptureError, CaptureFault};
use super::link::Link;
use super::pcapng::{self, PcapNg};
use super::source::Source;

/// One packet of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Its place in the capture, from 1, as tcpdump and Wireshark count.
    pub number: u64,
    /// When it was captured, since 1970. A packet without a time has that of the one before.
    pub time: Duration,
    /// The Ethernet frame, as far as it was captured. Captures of other link types get a made-up Ethernet header.
    pub frame: &'a [u8],
    /// Octets of the whole frame.
    pub wire_len: u32,
    /// Whether octets are missing at its end.
    pub truncated: bool,
    /// The name of the interface it came in by, if the file says so.
    pub interface: Option<&'a str>,
}

/// Where a format found a packet: its octets are the source's next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) time: Duration,
    pub(super) captured: usize,
    pub(super) wire_len: u32,
    pub(super) link: Link,
    /// Which of the file's interfaces.
    pub(super) interface: u32,
}

#[derive(Debug)]
enum Format {
    Classic(Classic),
    PcapNg(PcapNg),
}

/// An open pcap or pcapng file. Reads in order, in memory that does not depend on the file.
#[derive(Debug)]
pub struct Capture {
    file: PathBuf,
    size: u64,
    source: Source,
    format: Format,
    packets: u64,
    ended: bool,
    /// A frame that is not in the file as it is.
    frame: Vec<u8>,
}

impl Capture {
    /// Opens a capture file and reads its header. `-` is standard input.
    ///
    /// # Errors
    /// [`CaptureError`] when there is no such file or it is no capture we can read.
    pub fn open(file: &Path) -> Result<Capture, CaptureError> {
        if file == Path::new("-") {
            return Capture::from_reader(Box::new(io::stdin()), file, 0);
        }
        let failed = |cause| CaptureError { file: file.to_owned(), fault: CaptureFault::Open(cause) };
        let input = File::open(file).map_err(failed)?;
        let metadata = input.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        Capture::from_reader(Box::new(input), file, metadata.len())
    }

    /// Reads a capture from anything, under a name for messages; `size` as for [`Capture::size`].
    ///
    /// # Errors
    /// [`CaptureError`] when it is no capture we can read.
    pub fn from_reader(input: Box<dyn Read + Send>, name: &Path, size: u64) -> Result<Capture, CaptureError> {
        let mut source = Source::new(input);
        match open_format(&mut source) {
            Ok(format) => {
                let file = name.to_owned();
                Ok(Capture { file, size, source, format, packets: 0, ended: false, frame: Vec::new() })
            }
            Err(fault) => Err(CaptureError { file: name.to_owned(), fault }),
        }
    }

    /// Octets read so far, for a progress bar.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.source.at()
    }

    /// Octets of the file when it was opened; 0 when nobody knows, as for a pipe.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next packet; none at the end, and after an error.
    ///
    /// # Errors
    /// [`CaptureError`] once, after all the packets before the fault.
    #[expect(
        clippy::should_implement_trait,
        reason = "the packet borrows from the reader, which an Iterator cannot say"
    )]
    pub fn next(&mut self) -> Result<Option<Packet<'_>>, CaptureError> {
        if self.ended {
            return Ok(None);
        }
        let number = self.packets + 1;
        let record = match &mut self.format {
            Format::Classic(classic) => classic.advance(&mut self.source, number),
            Format::PcapNg(pcapng) => pcapng.advance(&mut self.source, number),
        };
        let record = match record {
            Ok(Some(record)) => record,
            Ok(None) => {
                self.ended = true;
                return Ok(None);
            }
            Err(fault) => {
                self.ended = true;
                return Err(CaptureError { file: self.file.clone(), fault });
            }
        };
        self.packets = number;
        let interface = match &self.format {
            Format::Classic(_) => None,
            Format::PcapNg(pcapng) => pcapng.interface_name(record.interface),
        };
        let octets = self.source.take(record.captured);
        // What was captured was on the wire, whatever a careless writer says.
        let wire_len = record.wire_len.max(record.captured as u32);
        if record.link == Link::Ethernet {
            let truncated = octets.len() < wire_len as usize;
            return Ok(Some(Packet { number, time: record.time, frame: octets, wire_len, truncated, interface }));
        }
        self.frame.clear();
        self.frame.reserve_exact(MAX_PACKET + 14);
        let own = match record.link.ethernet_header(octets) {
            Some((header, own)) => {
                self.frame.extend_from_slice(&header);
                self.frame.extend_from_slice(octets.get(own..).unwrap_or_default());
                own
            }
            // It ends inside its own link header: a frame that is too short for one, too.
            None => octets.len(),
        };
        let wire_len = (wire_len - own as u32).saturating_add(14);
        let truncated = self.frame.len() < wire_len as usize;
        Ok(Some(Packet { number, time: record.time, frame: &self.frame, wire_len, truncated, interface }))
    }
}

fn open_format(source: &mut Source) -> Result<Format, CaptureFault> {
    let start = source.peek(32)?;
    if start.is_empty() {
        return Err(CaptureFault::Empty);
    }
    let magic = &start[..start.len().min(4)];
    if Classic::begins(magic) {
        return Classic::open(source).map(Format::Classic);
    }
    if pcapng::MAGIC.starts_with(magic) {
        return PcapNg::open(source).map(Format::PcapNg);
    }
    let compressions: [(&[u8], &str, &str); 6] = [
        (b"\x1f\x8b", "gzip", "zcat"),
        (b"\x28\xb5\x2f\xfd", "zstd", "zstdcat"),
        (b"\xfd7zXZ", "xz", "xzcat"),
        (b"BZh", "bzip2", "bzcat"),
        (b"\x04\x22\x4d\x18", "lz4", "lz4cat"),
        (b"PK\x03\x04", "zip", "unzip -p"),
    ];
    let compression = compressions.into_iter().find(|(magic, ..)| start.starts_with(magic));
    if let Some((_, with, unpack)) = compression {
        return Err(CaptureFault::Compressed { with, unpack });
    }
    Err(CaptureFault::NotACapture { found: excerpt(start) })
}

/// The first octets of a file in a message: text as text.
fn excerpt(start: &[u8]) -> String {
    let line = start.split(|octet| *octet == b'\n').next().unwrap_or_default();
    match std::str::from_utf8(line) {
        Ok(text) if !text.trim().is_empty() && !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => {
            format!("the text {:?}", text.trim())
        }
        _ => {
            let octets: Vec<String> = start.iter().take(8).map(|octet| format!("{octet:02x}")).collect();
            format!("the octets {}", octets.join(" "))
        }
    }
}
