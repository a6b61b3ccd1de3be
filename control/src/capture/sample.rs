//! The sample of dropped packets: a pcapng file whose packets carry the verdict as their comment.
//!
//! Every packet is one `write` of one whole block at the file's end, so that a reader may follow the file and never sees half
//! a block for long; after a failed write the file is cut back to its last whole block. The file never passes its size by
//! more than one packet, and there are never more than two. Only regular files are written: no reader can make us wait.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{PcapNgBlock as _, PcapNgWriter};
use pcap_file::{DataLink, Endianness, PcapError};
use sluice_config::Sample;
use thiserror::Error;

use super::write::io_error;

/// How long a failed write rests.
const RETRY: Duration = Duration::from_secs(5);
/// How often the file is compared with its path.
const PATH_CHECK: Duration = Duration::from_secs(1);
/// The packets are other people's: the owner writes, the group may read.
const MODE: u32 = 0o640;
/// Longest comment, octets.
const MAX_COMMENT: usize = 1024;
/// `if_tsresol`: nanoseconds.
const NANOSECONDS: u8 = 9;

/// A packet that was dropped.
#[derive(Clone, Copy, Debug)]
pub struct DroppedPacket<'a> {
    /// Index of the port it came in through.
    pub port: usize,
    /// When, since 1970.
    pub time: Duration,
    /// Its frame, or the beginning of it.
    pub frame: &'a [u8],
    /// Octets of the whole frame.
    pub wire_len: u32,
    /// Why, for the comment: `drop: bad_cookie`.
    pub verdict: &'a str,
}

/// The sample cannot be written.
#[derive(Debug, Error)]
#[error(
    "sample.file: cannot write {}: {cause}; name a regular file in an existing directory with room that this user may write",
    file.display()
)]
pub struct SampleError {
    /// The file.
    pub file: PathBuf,
    /// The kernel's answer.
    #[source]
    pub cause: io::Error,
}

/// Writes the sample.
#[derive(Debug)]
pub struct SampleWriter {
    file: PathBuf,
    snap: usize,
    max_size: u64,
    ports: Vec<String>,
    application: String,
    encoder: Encoder,
    output: Option<Output>,
    retry_at: Option<Instant>,
    check_at: Option<Instant>,
    written: u64,
    lost: u64,
}

#[derive(Debug)]
struct Output {
    file: File,
    /// Octets of whole blocks.
    len: u64,
    /// Whether there is a packet among them.
    packets: bool,
}

/// Blocks on their way from `pcap-file` to the file, in memory.
struct Encoder(PcapNgWriter<Vec<u8>>);

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl SampleWriter {
    /// Begins the sample file. One that is there and not empty becomes `FILE.1` first, in place of the `FILE.1` before.
    /// `ports` are the names of the appliance's ports, in order; `version` is sluice's.
    ///
    /// # Errors
    /// [`SampleError`] when the file cannot be written.
    pub fn open(sample: &Sample, ports: &[String], version: &str) -> Result<SampleWriter, SampleError> {
        let application = format!("sluice {version}");
        let failed = |cause| SampleError { file: sample.file.clone(), cause };
        let encoder = Encoder::new(&application, ports, sample.snap).map_err(failed)?;
        let mut writer = SampleWriter {
            file: sample.file.clone(),
            snap: sample.snap.into(),
            max_size: sample.max_size,
            ports: ports.to_vec(),
            application,
            encoder,
            output: None,
            retry_at: None,
            check_at: None,
            written: 0,
            lost: 0,
        };
        writer.begin().map_err(failed)?;
        Ok(writer)
    }

    /// Appends a packet, cut to `sample.snap`. While the file cannot be written, packets are lost and counted; another try is
    /// made every five seconds. So is a packet of a port that [`SampleWriter::open`] was not told of.
    ///
    /// # Errors
    /// [`SampleError`] once for a row of failures: the next is an error again only after a packet was written.
    pub fn write(&mut self, packet: &DroppedPacket<'_>, now: Instant) -> Result<(), SampleError> {
        if self.retry_at.is_some_and(|at| now < at) || packet.port >= self.ports.len() {
            self.lost += 1;
            return Ok(());
        }
        match self.try_write(packet, now) {
            Ok(()) => {
                self.retry_at = None;
                self.written += 1;
                Ok(())
            }
            Err(cause) => {
                self.lost += 1;
                match self.retry_at.replace(now + RETRY) {
                    Some(_) => Ok(()),
                    None => Err(SampleError { file: self.file.clone(), cause }),
                }
            }
        }
    }

    /// Packets written.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Packets that could not be written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn try_write(&mut self, packet: &DroppedPacket<'_>, now: Instant) -> io::Result<()> {
        self.follow_path(now);
        let block = self.encoder.packet(packet, self.snap)?;
        let octets = block.len() as u64;
        let full = |output: &Output| output.packets && output.len + octets > self.max_size;
        if self.output.as_ref().is_none_or(full) {
            self.begin()?;
        }
        let Some(output) = &mut self.output else { return Err(io::ErrorKind::NotFound.into()) };
        if output.append(self.encoder.octets())? {
            output.packets = true;
            Ok(())
        } else {
            // Half a block is stuck in it: only a new file can follow.
            self.output = None;
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    /// Begins a new file where the path says; one that is there and has something in it makes room.
    fn begin(&mut self) -> io::Result<()> {
        self.output = None;
        match std::fs::metadata(&self.file) {
            Ok(metadata) if !metadata.is_file() => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
            }
            Ok(metadata) if metadata.len() > 0 => std::fs::rename(&self.file, rotated(&self.file))?,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = OpenOptions::new().append(true).create(true).mode(MODE).open(&self.file)?;
        let mut output = Output { file, len: 0, packets: false };
        let header = Encoder::new(&self.application, &self.ports, self.snap as u16)?;
        if !output.append(header.octets())? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.output = Some(output);
        Ok(())
    }

    /// Lets go of the file when it is no longer what the path names, or no longer as long as we made it: somebody moved,
    /// removed or emptied it.
    fn follow_path(&mut self, now: Instant) {
        if self.check_at.is_some_and(|at| now < at) {
            return;
        }
        self.check_at = Some(now + PATH_CHECK);
        let Some(output) = &self.output else { return };
        let ours = match (output.file.metadata(), std::fs::metadata(&self.file)) {
            (Ok(held), Ok(named)) => {
                (held.dev(), held.ino(), held.len()) == (named.dev(), named.ino(), named.len())
                    && held.len() == output.len
            }
            _ => false,
        };
        if !ours {
            self.output = None;
        }
    }
}

impl Output {
    /// Writes whole blocks, or nothing: true; or an error with the file as it was; or false when a part of them is stuck.
    fn append(&mut self, octets: &[u8]) -> io::Result<bool> {
        let result = self.file.write_all(octets);
        match result {
            Ok(()) => {
                self.len += octets.len() as u64;
                Ok(true)
            }
            Err(cause) => match self.file.set_len(self.len) {
                Ok(()) => Err(cause),
                Err(_) => Ok(false),
            },
        }
    }
}

impl Encoder {
    /// An encoder with the file's header as its octets.
    fn new(application: &str, ports: &[String], snap: u16) -> io::Result<Encoder> {
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication(Cow::Owned(application.to_owned()))],
            ..SectionHeaderBlock::default()
        };
        let mut blocks = PcapNgWriter::with_section_header(Vec::new(), section).map_err(io_error)?;
        for port in ports {
            let mut interface = InterfaceDescriptionBlock::new(DataLink::ETHERNET, snap.into());
            interface.options = vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(port)),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ];
            blocks.write_block(&interface.into_block()).map_err(io_error)?;
        }
        Ok(Encoder(blocks))
    }

    /// The packet's block, in place of the octets before.
    fn packet(&mut self, packet: &DroppedPacket<'_>, snap: usize) -> io::Result<&[u8]> {
        let interface_id = u32::try_from(packet.port).map_err(|_| io_error(PcapError::InvalidInterfaceId(u32::MAX)))?;
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: packet.time,
            original_len: packet.wire_len.max(u32::try_from(packet.frame.len()).unwrap_or(u32::MAX)),
            data: Cow::Borrowed(&packet.frame[..packet.frame.len().min(snap)]),
            options: vec![EnhancedPacketOption::Comment(Cow::Borrowed(shortened(packet.verdict)))],
        };
        self.0.get_mut().clear();
        self.0.write_block(&block.into_block()).map_err(io_error)?;
        Ok(self.octets())
    }

    fn octets(&self) -> &[u8] {
        self.0.get_ref()
    }
}

/// `FILE.1`
fn rotated(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn shortened(comment: &str) -> &str {
    let end = (0..=comment.len().min(MAX_COMMENT)).rev().find(|at| comment.is_char_boundary(*at));
    &comment[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use pcap_file::pcapng::{Block, PcapNgReader};
    use sluice_config::{Rate, Sample};
    use sluice_filters::testkit;
    use tempfile::TempDir;

    use super::super::Capture;
    use super::*;

    const VERDICT: &str = "drop: rule \"botnet\" (rule)";

    struct Bench {
        directory: TempDir,
        sample: Sample,
        now: Instant,
    }

    impl Bench {
        fn new(snap: u16, max_size: u64) -> Bench {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("drops.pcapng");
            let sample = Sample { file, rate: Rate::per_second(100), snap, max_size };
            Bench { directory, sample, now: Instant::now() }
        }

        fn open(&self) -> SampleWriter {
            SampleWriter::open(&self.sample, &["wan".to_owned(), "lan".to_owned()], "1.2.3").unwrap()
        }

        /// Writes a packet so many seconds after the start.
        fn write(&self, writer: &mut SampleWriter, seconds: u64, seq: u32) -> Result<(), SampleError> {
            let frame = frame(seq);
            let (time, wire_len) = (Duration::new(1_700_000_000, seq), frame.len() as u32);
            let packet = DroppedPacket { port: 1, time, frame: &frame, wire_len, verdict: VERDICT };
            writer.write(&packet, self.now + Duration::from_secs(seconds))
        }

        fn old(&self) -> PathBuf {
            rotated(&self.sample.file)
        }
    }

    fn frame(seq: u32) -> Vec<u8> {
        testkit::tcp("192.0.2.7:40000", "198.51.100.10:443").seq(seq).build()
    }

    /// The nanoseconds of the packets' times, which are the tests' numbers.
    fn numbers(file: &Path) -> Vec<u32> {
        let mut capture = Capture::open(file).unwrap();
        let mut numbers = Vec::new();
        while let Some(packet) = capture.next().unwrap() {
            numbers.push(packet.time.subsec_nanos());
        }
        numbers
    }

    #[test]
    fn packets_carry_their_port_time_length_and_verdict() {
        let bench = Bench::new(64, 1 << 20);
        let mut writer = bench.open();
        let whole = testkit::tcp("192.0.2.7:1", "198.51.100.10:443").payload([7; 200]).build();
        for (port, wire_len) in [(0, 254), (1, 254)] {
            let packet = DroppedPacket { port, time: Duration::new(9, 123), frame: &whole, wire_len, verdict: VERDICT };
            writer.write(&packet, bench.now).unwrap();
        }
        let octets = std::fs::read(&bench.sample.file).unwrap();
        let mut reader = PcapNgReader::new(&octets[..]).unwrap();
        let application = SectionHeaderOption::UserApplication(Cow::Borrowed("sluice 1.2.3"));
        assert_eq!(reader.section().options, [application]);
        let mut packets = Vec::new();
        while let Some(block) = reader.next_block() {
            match block.unwrap().into_owned() {
                Block::EnhancedPacket(packet) => packets.push(packet),
                Block::InterfaceDescription(interface) => assert_eq!(interface.snaplen, 64),
                other => panic!("{other:?}"),
            }
        }
        let names: Vec<_> = reader.interfaces().iter().map(|interface| interface.options[0].clone()).collect();
        assert_eq!(names, ["wan", "lan"].map(|name| InterfaceDescriptionOption::IfName(Cow::Borrowed(name))));
        for (index, packet) in packets.iter().enumerate() {
            assert_eq!((packet.interface_id, packet.original_len), (index as u32, 254));
            assert_eq!((packet.timestamp, &packet.data[..]), (Duration::new(9, 123), &whole[..64]));
            assert_eq!(packet.options, [EnhancedPacketOption::Comment(Cow::Borrowed(VERDICT))]);
        }
        let mut capture = Capture::open(&bench.sample.file).unwrap();
        let packet = capture.next().unwrap().unwrap();
        assert_eq!((packet.time, packet.frame, packet.wire_len), (Duration::new(9, 123), &whole[..64], 254));
        assert!(packet.truncated);
    }

    #[test]
    fn a_reader_can_follow() {
        let bench = Bench::new(256, 1 << 20);
        let mut writer = bench.open();
        assert!(numbers(&bench.sample.file).is_empty());
        for seq in 1..4 {
            bench.write(&mut writer, 0, seq).unwrap();
            assert_eq!(numbers(&bench.sample.file), (1..=seq).collect::<Vec<u32>>());
        }
        assert_eq!((writer.written(), writer.lost()), (3, 0));
    }

    #[test]
    fn tcpdump_reads_it() {
        let bench = Bench::new(256, 1 << 20);
        let mut writer = bench.open();
        bench.write(&mut writer, 0, 7).unwrap();
        // Not everybody has tcpdump.
        let Ok(output) = Command::new("tcpdump").args(["-n", "-r"]).arg(&bench.sample.file).output() else { return };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("192.0.2.7.40000 > 198.51.100.10.443: Flags [.], ack 1"), "{output:?}");
    }

    #[test]
    fn a_file_with_something_in_it_makes_room_at_the_start() {
        let bench = Bench::new(256, 1 << 20);
        std::fs::write(&bench.sample.file, "of last year").unwrap();
        std::fs::write(bench.old(), "of the year before").unwrap();
        let mut writer = bench.open();
        bench.write(&mut writer, 0, 1).unwrap();
        assert_eq!(std::fs::read(bench.old()).unwrap(), b"of last year");
        drop(writer);
        std::fs::write(&bench.sample.file, "").unwrap();
        drop(bench.open());
        assert_eq!(std::fs::read(bench.old()).unwrap(), b"of last year", "an empty file is used as it is");
    }

    #[test]
    fn a_full_file_makes_room_and_two_files_are_the_most() {
        let bench = Bench::new(256, 700);
        let mut writer = bench.open();
        for seq in 1..=20 {
            bench.write(&mut writer, 0, seq).unwrap();
            assert!(std::fs::metadata(&bench.sample.file).unwrap().len() <= 700);
        }
        let (old, new) = (numbers(&bench.old()), numbers(&bench.sample.file));
        assert!(old.len() > 2, "{old:?}");
        assert_eq!([old, new.clone()].concat().last(), Some(&20));
        assert_eq!(numbers(&bench.old()).last().unwrap() + 1, new[0]);
        assert_eq!(std::fs::read_dir(bench.directory.path()).unwrap().count(), 2);
        assert_eq!((writer.written(), writer.lost()), (20, 0));
    }

    #[test]
    fn a_file_too_small_for_a_packet_holds_one() {
        let bench = Bench::new(256, 1);
        let mut writer = bench.open();
        for seq in 1..=3 {
            bench.write(&mut writer, 0, seq).unwrap();
        }
        assert_eq!((numbers(&bench.old()), numbers(&bench.sample.file)), (vec![2], vec![3]));
    }

    #[test]
    fn a_vanished_directory_is_an_error_once_and_tried_again_later() {
        let bench = Bench::new(256, 1 << 20);
        let mut writer = bench.open();
        bench.write(&mut writer, 0, 1).unwrap();
        let elsewhere = bench.directory.path().with_extension("elsewhere");
        std::fs::rename(bench.directory.path(), &elsewhere).unwrap();
        let error = bench.write(&mut writer, 2, 2).unwrap_err().to_string();
        assert!(error.starts_with("sample.file: cannot write /"), "{error}");
        assert!(error.contains("No such file"), "{error}");
        for seconds in [3, 6, 8, 12] {
            bench.write(&mut writer, seconds, 3).unwrap();
        }
        assert_eq!((writer.written(), writer.lost()), (1, 5));
        std::fs::rename(&elsewhere, bench.directory.path()).unwrap();
        bench.write(&mut writer, 12, 4).unwrap();
        assert_eq!((writer.written(), writer.lost()), (1, 6), "the last try is too recent");
        bench.write(&mut writer, 18, 5).unwrap();
        bench.write(&mut writer, 18, 6).unwrap();
        assert_eq!((writer.written(), writer.lost()), (3, 6));
        assert_eq!((numbers(&bench.old()), numbers(&bench.sample.file)), (vec![1], vec![5, 6]));
        std::fs::rename(bench.directory.path(), &elsewhere).unwrap();
        assert!(bench.write(&mut writer, 20, 7).is_err(), "a new row of failures");
        std::fs::rename(&elsewhere, bench.directory.path()).unwrap();
    }

    #[test]
    fn a_file_moved_or_emptied_by_somebody_else_is_begun_again() {
        let bench = Bench::new(256, 1 << 20);
        let mut writer = bench.open();
        bench.write(&mut writer, 0, 1).unwrap();
        let moved = bench.directory.path().join("moved");
        std::fs::rename(&bench.sample.file, &moved).unwrap();
        bench.write(&mut writer, 2, 2).unwrap();
        assert_eq!((numbers(&moved), numbers(&bench.sample.file)), (vec![1], vec![2]));
        std::fs::write(&bench.sample.file, "").unwrap();
        bench.write(&mut writer, 4, 3).unwrap();
        assert_eq!(numbers(&bench.sample.file), [3]);
        assert!(!bench.old().exists());
    }

    #[test]
    fn a_disk_that_takes_nothing_is_left_alone_until_the_next_try() {
        let bench = Bench::new(256, 1 << 20);
        let mut writer = bench.open();
        bench.write(&mut writer, 0, 1).unwrap();
        // Neither can be written nor cut back.
        writer.output.as_mut().unwrap().file = File::open("/dev/null").unwrap();
        assert!(bench.write(&mut writer, 0, 2).is_err());
        bench.write(&mut writer, 1, 3).unwrap();
        bench.write(&mut writer, 6, 4).unwrap();
        assert_eq!((numbers(&bench.old()), numbers(&bench.sample.file)), (vec![1], vec![4]));
        assert_eq!((writer.written(), writer.lost()), (2, 2));
    }

    #[test]
    fn only_a_regular_file_is_written() {
        for file in ["/dev/null", "/dev", "/nonexistent/drops"] {
            let sample = Sample { file: file.into(), rate: Rate::per_second(100), snap: 256, max_size: 1 };
            let error = SampleWriter::open(&sample, &[], "1").unwrap_err().to_string();
            let expected = format!("sample.file: cannot write {file}: ");
            assert!(error.starts_with(&expected) && error.contains("name a regular file"), "{error}");
        }
        assert!(Path::new("/dev/null").exists());
    }

    #[test]
    fn a_stranger_among_ports_is_lost_and_a_long_verdict_cut() {
        let bench = Bench::new(256, 1 << 20);
        let mut writer = bench.open();
        let verdict = "ä".repeat(1000);
        let frame = frame(1);
        let mut packet = DroppedPacket { port: 2, time: Duration::ZERO, frame: &frame, wire_len: 0, verdict: &verdict };
        writer.write(&packet, bench.now).unwrap();
        assert_eq!((writer.written(), writer.lost()), (0, 1));
        packet.port = 0;
        writer.write(&packet, bench.now).unwrap();
        let octets = std::fs::read(&bench.sample.file).unwrap();
        assert_eq!(octets.iter().filter(|octet| **octet == 0xc3).count(), MAX_COMMENT / 2);
    }
}
