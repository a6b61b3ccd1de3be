//! A classic pcap file of Ethernet frames with nanosecond times, which everything reads.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};
use thiserror::Error;

use super::MAX_PACKET;

/// Packets on their way into a capture file.
#[derive(Debug)]
pub struct PcapWriter {
    file: PathBuf,
    output: pcap_file::pcap::PcapWriter<BufWriter<File>>,
    packets: u64,
}

/// A capture file cannot be written.
#[derive(Debug, Error)]
#[error("{}: cannot be written: {cause}; name a file in an existing directory with room that this user may write", file.display())]
pub struct WriteError {
    /// The file.
    pub file: PathBuf,
    /// The kernel's answer.
    #[source]
    pub cause: io::Error,
}

impl PcapWriter {
    /// Begins the file, in place of one that is there.
    ///
    /// # Errors
    /// [`WriteError`] when it cannot be written.
    pub fn create(file: &Path) -> Result<PcapWriter, WriteError> {
        let failed = |cause| WriteError { file: file.to_owned(), cause };
        let output = BufWriter::with_capacity(1 << 18, File::create(file).map_err(failed)?);
        let header = PcapHeader {
            snaplen: MAX_PACKET as u32,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            endianness: Endianness::Little,
            ..PcapHeader::default()
        };
        let output =
            pcap_file::pcap::PcapWriter::with_header(output, header).map_err(|error| failed(io_error(error)))?;
        Ok(PcapWriter { file: file.to_owned(), output, packets: 0 })
    }

    /// Adds a packet: its time since 1970 (until 2106), its Ethernet frame as far as it is there (at most [`MAX_PACKET`]
    /// octets), and the whole frame's length.
    ///
    /// # Errors
    /// [`WriteError`] when the disk takes nothing; the file is then of no use past that packet.
    pub fn write(&mut self, time: Duration, frame: &[u8], wire_len: u32) -> Result<(), WriteError> {
        let frame = &frame[..frame.len().min(MAX_PACKET)];
        // Lengths and times the format has no room for are made the nearest that fit.
        let time = if time.as_secs() > u32::MAX.into() { Duration::from_secs(u32::MAX.into()) } else { time };
        let wire_len = wire_len.max(frame.len() as u32);
        let packet = PcapPacket::new(time, wire_len, frame);
        self.output.write_packet(&packet).map_err(|error| self.failed(io_error(error)))?;
        self.packets += 1;
        Ok(())
    }

    /// Packets written.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Ends the file: what is still in memory is written.
    ///
    /// # Errors
    /// [`WriteError`] when the disk takes nothing.
    pub fn finish(self) -> Result<(), WriteError> {
        let failed = |cause| WriteError { file: self.file.clone(), cause };
        self.output.into_writer().flush().map_err(failed)
    }

    fn failed(&self, cause: io::Error) -> WriteError {
        WriteError { file: self.file.clone(), cause }
    }
}

pub(super) fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(cause) => cause,
        other => io::Error::new(io::ErrorKind::InvalidInput, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_file() {
        let error = PcapWriter::create(Path::new("/nonexistent/out.pcap")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/out.pcap: cannot be written: No such file"), "{error}");
    }

    #[test]
    fn a_full_disk_is_noticed_at_the_end_at_the_latest() {
        let mut writer = PcapWriter::create(Path::new("/dev/full")).unwrap();
        writer.write(Duration::ZERO, &[0; 60], 60).unwrap();
        let error = writer.finish().unwrap_err().to_string();
        assert!(error.starts_with("/dev/full: cannot be written: No space left"), "{error}");
    }

    #[test]
    fn what_the_format_has_no_room_for_is_cut_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.pcap");
        let mut writer = PcapWriter::create(&path).unwrap();
        writer.write(Duration::MAX, &[0; MAX_PACKET + 1], 1).unwrap();
        writer.finish().unwrap();
        let mut capture = super::super::Capture::open(&path).unwrap();
        let packet = capture.next().unwrap().unwrap();
        assert_eq!((packet.frame.len(), packet.wire_len), (MAX_PACKET, MAX_PACKET as u32));
        assert_eq!(packet.time, Duration::from_secs(u32::MAX.into()));
    }
}
