//! Captures as files: what every format gives, and what a broken one says.

use std::borrow::Cow;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket};
use pcap_file::{DataLink, Endianness, TsResolution};
use proptest::prelude::*;
use sluice_filters::{DropReason, Parsed, RxChecksums, parse, testkit};

use super::*;

/// A packet as a test has it: time, frame, wire length.
type Kept = (Duration, Vec<u8>, u32);

fn open(octets: &[u8]) -> Result<Capture, CaptureError> {
    let size = octets.len() as u64;
    Capture::from_reader(Box::new(Cursor::new(octets.to_vec())), Path::new("t.pcap"), size)
}

/// Everything in a capture, and the error it ends with.
fn read_all(mut capture: Capture) -> (Vec<Kept>, Option<CaptureError>) {
    let mut packets = Vec::new();
    loop {
        match capture.next() {
            Ok(Some(packet)) => {
                packets.push((packet.time, packet.frame.to_vec(), packet.wire_len));
                assert_eq!(packet.number, packets.len() as u64);
                assert_eq!(packet.truncated, packet.frame.len() < packet.wire_len as usize);
            }
            Ok(None) => {
                assert_eq!(capture.position(), capture.size());
                return (packets, None);
            }
            Err(error) => {
                assert!(capture.next().unwrap().is_none(), "an error ends the capture");
                return (packets, Some(error));
            }
        }
    }
}

fn read_whole(octets: &[u8]) -> Vec<Kept> {
    match read_all(open(octets).unwrap()) {
        (packets, None) => packets,
        (_, Some(error)) => panic!("{error}"),
    }
}

/// The error of a capture that has one, at its opening or later.
fn fault(octets: &[u8]) -> String {
    let error = match open(octets) {
        Ok(capture) => read_all(capture).1.expect("an error"),
        Err(error) => error,
    };
    error.to_string()
}

fn frame(seq: u32) -> Vec<u8> {
    testkit::tcp("192.0.2.7:40000", "198.51.100.10:443").seq(seq).build()
}

/// The IP packet of a frame.
fn ip(seq: u32) -> Vec<u8> {
    frame(seq).split_off(14)
}

/// A pcap file with its header's fields and records as they are.
struct Pcap {
    big: bool,
    octets: Vec<u8>,
}

impl Pcap {
    fn new(big: bool, magic: u32, link: u32) -> Pcap {
        let mut pcap = Pcap { big, octets: Vec::new() };
        pcap.words(&[magic]);
        // 2.4
        pcap.octets.extend(if big { [0, 2, 0, 4] } else { [2, 0, 4, 0] });
        pcap.words(&[0, 0, 0x40000, link]);
        pcap
    }

    fn words(&mut self, words: &[u32]) {
        for word in words {
            self.octets.extend(if self.big { word.to_be_bytes() } else { word.to_le_bytes() });
        }
    }

    fn record(mut self, seconds: u32, fraction: u32, wire_len: u32, data: &[u8]) -> Pcap {
        self.words(&[seconds, fraction, data.len() as u32, wire_len]);
        self.octets.extend(data);
        self
    }

    fn packet(self, data: &[u8]) -> Pcap {
        self.record(1, 0, data.len() as u32, data)
    }
}

fn ethernet_pcap(packets: u32) -> Vec<u8> {
    (0..packets).fold(Pcap::new(false, 0xa1b2_c3d4, 1), |pcap, seq| pcap.packet(&frame(seq))).octets
}

/// A pcapng file, block by block.
struct Ng {
    big: bool,
    octets: Vec<u8>,
}

impl Ng {
    fn new(big: bool) -> Ng {
        Ng { big, octets: Vec::new() }.section(big)
    }

    fn word(&self, word: u32) -> [u8; 4] {
        if self.big { word.to_be_bytes() } else { word.to_le_bytes() }
    }

    fn half(&self, half: u16) -> [u8; 2] {
        if self.big { half.to_be_bytes() } else { half.to_le_bytes() }
    }

    fn block(mut self, kind: u32, body: &[u8]) -> Ng {
        let padded = body.len().next_multiple_of(4);
        let total = self.word(12 + padded as u32);
        self.octets.extend(self.word(kind));
        self.octets.extend(total);
        self.octets.extend(body);
        self.octets.resize(self.octets.len() + padded - body.len(), 0);
        self.octets.extend(total);
        self
    }

    fn section(mut self, big: bool) -> Ng {
        self.big = big;
        let mut body = self.word(0x1a2b_3c4d).to_vec();
        body.extend(self.half(1));
        body.extend([0; 2]);
        body.extend([0xff; 8]);
        self.block(0x0a0d_0d0a, &body)
    }

    fn option(&self, code: u16, value: &[u8]) -> Vec<u8> {
        let mut option = [self.half(code), self.half(value.len() as u16)].concat();
        option.extend(value);
        option.resize(option.len().next_multiple_of(4), 0);
        option
    }

    fn interface(self, link: u16, snap: u32, options: &[(u16, &[u8])]) -> Ng {
        let mut body = [self.half(link), [0; 2]].concat();
        body.extend(self.word(snap));
        for (code, value) in options {
            body.extend(self.option(*code, value));
        }
        self.block(1, &body)
    }

    fn enhanced(self, interface: u32, time: u64, wire_len: u32, data: &[u8]) -> Ng {
        let mut body = Vec::new();
        for word in [interface, (time >> 32) as u32, time as u32, data.len() as u32, wire_len] {
            body.extend(self.word(word));
        }
        body.extend(data);
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(self.option(1, b"a comment"));
        self.block(6, &body)
    }

    fn obsolete(self, interface: u16, time: u64, data: &[u8]) -> Ng {
        let mut body = [self.half(interface), self.half(77)].concat();
        for word in [(time >> 32) as u32, time as u32, data.len() as u32, data.len() as u32] {
            body.extend(self.word(word));
        }
        body.extend(data);
        self.block(2, &body)
    }

    fn simple(self, wire_len: u32, data: &[u8]) -> Ng {
        let body = [&self.word(wire_len)[..], data].concat();
        self.block(3, &body)
    }
}

/// A bit of everything, in both byte orders.
fn mixed_pcapng() -> Vec<u8> {
    Ng::new(false)
        .interface(1, 0, &[(2, b"eth0"), (9, &[9])])
        .interface(101, 0, &[(9, &[0x80 | 10]), (14, &5_i64.to_le_bytes()), (0, &[])])
        .enhanced(0, 1_500_000_001, 54, &frame(1))
        .block(5, &[0; 16])
        .enhanced(1, 1536, 40, &ip(2))
        .simple(54, &frame(3))
        .block(0x8000_1234, b"of somebody else")
        .section(true)
        .interface(1, 60, &[])
        .obsolete(0, 2_000_003, &frame(4))
        .enhanced(0, u64::from(u32::MAX) + 1, 1500, &frame(5)[..33])
        .octets
}

#[test]
fn classic_files_of_every_order_and_resolution_read_alike() {
    for big in [false, true] {
        for (magic, fraction) in [(0xa1b2_c3d4, 1_500), (0xa1b2_3c4d, 1_500_000)] {
            let pcap =
                Pcap::new(big, magic, 1).record(9, fraction, 54, &frame(1)).record(10, fraction, 1500, &frame(2));
            let time = Duration::from_micros(1_500);
            let expected =
                [(Duration::from_secs(9) + time, frame(1), 54), (Duration::from_secs(10) + time, frame(2), 1500)];
            assert_eq!(read_whole(&pcap.octets), expected);
        }
        let mut modified = Pcap::new(big, 0xa1b2_cd34, 1);
        modified.words(&[9, 7, 54, 54, 1, 2]);
        modified.octets.extend(frame(1));
        assert_eq!(read_whole(&modified.octets), [(Duration::new(9, 7000), frame(1), 54)]);
    }
}

#[test]
fn a_frame_check_sequence_does_not_hide_the_link_type() {
    assert_eq!(read_whole(&Pcap::new(false, 0xa1b2_c3d4, 0x2400_0001).packet(&frame(1)).octets).len(), 1);
}

#[test]
fn a_pcapng_file_has_sections_interfaces_and_blocks_to_skip() {
    let packets = read_whole(&mixed_pcapng());
    let times: Vec<Duration> = packets.iter().map(|(time, ..)| *time).collect();
    let expected = [
        Duration::from_nanos(1_500_000_001),
        Duration::from_millis(6_500),
        Duration::from_millis(6_500),
        Duration::from_micros(2_000_003),
        Duration::from_micros(1 << 32),
    ];
    assert_eq!(times, expected);
    let frames = [frame(1), frame(2), frame(3), frame(4), frame(5)[..33].to_vec()];
    assert!(packets.iter().map(|(_, frame, _)| frame).eq(&frames));
    assert!(packets.iter().map(|(.., wire_len)| *wire_len).eq([54, 54, 54, 54, 1500]));
}

#[test]
fn a_simple_packet_is_as_long_as_its_interface_keeps() {
    let file = Ng::new(false).interface(1, 42, &[]).simple(54, &frame(1)[..42]).octets;
    assert_eq!(read_whole(&file), [(Duration::ZERO, frame(1)[..42].to_vec(), 54)]);
}

#[test]
fn a_time_may_be_moved_before_1970_and_stays_there() {
    let file = Ng::new(true).interface(1, 0, &[(14, &(-5_i64).to_be_bytes())]).enhanced(0, 7, 54, &frame(1)).octets;
    assert_eq!(read_whole(&file)[0].0, Duration::from_micros(7));
}

#[test]
fn pcap_files_own_captures_are_read() {
    for endianness in [Endianness::Big, Endianness::Little] {
        for ts_resolution in [TsResolution::MicroSecond, TsResolution::NanoSecond] {
            let header = PcapHeader { endianness, ts_resolution, datalink: DataLink::RAW, ..PcapHeader::default() };
            let mut writer = pcap_file::pcap::PcapWriter::with_header(Vec::new(), header).unwrap();
            let time = Duration::from_micros(3_000_007);
            writer.write_packet(&PcapPacket::new(time, 40, &ip(1))).unwrap();
            assert_eq!(read_whole(&writer.into_writer()), [(time, frame(1), 54)]);
        }
        let mut writer = pcap_file::pcapng::PcapNgWriter::with_endianness(Vec::new(), endianness).unwrap();
        let interface = pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0xffff,
            options: vec![
                pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption::IfTsResol(9),
                pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption::IfTsOffset(2),
            ],
        };
        writer.write_pcapng_block(interface).unwrap();
        let packet = pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_nanos(3_000_000_007),
            original_len: 54,
            data: Cow::Owned(frame(1)),
            options: vec![],
        };
        writer.write_pcapng_block(packet).unwrap();
        assert_eq!(read_whole(&writer.into_inner()), [(Duration::from_nanos(5_000_000_007), frame(1), 54)]);
    }
}

#[test]
fn other_link_types_become_ethernet() {
    let v6 = testkit::tcp("[2001:db8::7]:1", "[2001:db8::8]:2").build();
    let with = |header: &[u8], frame: &[u8]| [header, &frame[14..]].concat();
    let cooked = [0, 0, 0, 1, 0, 6, 2, 2, 2, 2, 2, 2, 0, 0, 8, 0];
    let cooked2 = [0x86, 0xdd, 0, 0, 0, 0, 0, 3, 0, 1, 0, 6, 2, 2, 2, 2, 2, 2, 0, 0];
    for (link, data, expected) in [
        (101, ip(1), frame(1)),
        (12, ip(1), frame(1)),
        (101, with(&[], &v6), v6.clone()),
        (228, ip(1), frame(1)),
        (229, with(&[], &v6), v6.clone()),
        (0, with(&[2, 0, 0, 0], &frame(1)), frame(1)),
        (0, with(&[0, 0, 0, 30], &v6), v6.clone()),
        (108, with(&[0, 0, 0, 24], &v6), v6.clone()),
        (113, with(&cooked, &frame(1)), frame(1)),
        (276, with(&cooked2, &v6), v6.clone()),
    ] {
        let file = Pcap::new(false, 0xa1b2_c3d4, link).packet(&data).octets;
        let packets = read_whole(&file);
        assert_eq!(packets, [(Duration::from_secs(1), expected.clone(), expected.len() as u32)], "link type {link}");
        assert!(matches!(parse(&packets[0].1, RxChecksums::default()), Ok(Parsed::Tcp(_))));
        // Cut anywhere, it is a truncated frame and no more.
        for len in 0..data.len() {
            let file = Pcap::new(false, 0xa1b2_c3d4, link).record(1, 0, data.len() as u32, &data[..len]).octets;
            let packets = read_whole(&file);
            assert!(parse(&packets[0].1, RxChecksums::default()).is_err(), "link type {link}, {len} octets");
        }
    }
}

#[test]
fn a_cooked_broadcast_stays_one_and_unknown_families_are_unknown() {
    let verdict = |link, header: &[u8]| {
        let file = Pcap::new(false, 0xa1b2_c3d4, link).packet(&[header, &ip(1)].concat()).octets;
        parse(&read_whole(&file)[0].1, RxChecksums::default()).unwrap_err()
    };
    for kind in [1, 2] {
        let header = [0, kind, 0, 1, 0, 6, 2, 2, 2, 2, 2, 2, 0, 0, 8, 0];
        assert_eq!(verdict(113, &header), DropReason::EthernetMulticast);
    }
    assert_eq!(verdict(113, &[0, 0, 0x03, 0x38, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0]), DropReason::UnknownEtherType);
    assert_eq!(verdict(0, &[99, 0, 0, 0]), DropReason::UnknownEtherType);
}

#[test]
fn what_is_no_capture_says_what_it_is_and_what_to_do() {
    assert_eq!(fault(b""), "t.pcap: is empty; capture again: even a capture without packets has a header");
    assert_eq!(
        fault(b"\x1f\x8b\x08\0\0\0\0\0"),
        "t.pcap: is compressed with gzip; unpack it first, or into standard input: zcat FILE | sluice replay ... -"
    );
    assert_eq!(
        fault(b"[[service]]\nname = \"x\"\n"),
        "t.pcap: is no capture: it begins with the text \"[[service]]\"; a pcap or pcapng file is needed, as tcpdump -w \
         writes it"
    );
    assert!(fault(b"\x7fELF\x02\x01\x01\0\0\0").contains("it begins with the octets 7f 45 4c 46 02 01 01 00;"));
    assert_eq!(
        fault(&[0xd4, 0xc3, 0xb2, 0xa1, 2, 0]),
        "t.pcap: truncated in the header at octet 0: 6 of 24 octets are there; capture again, or cut the file with editcap"
    );
    assert!(fault(&[0xd4]).contains("truncated in the header at octet 0: 1 of 24 octets"));
    assert!(fault(&[0x0a, 0x0d]).contains("truncated in the header at octet 0: 2 of 24 octets"));
    let mut old = ethernet_pcap(0);
    old[6] = 2;
    assert_eq!(fault(&old), "t.pcap: has version 2.2 of pcap; rewrite it with editcap -F pcap");
    let missing = Capture::open(Path::new("/nonexistent/t.pcap")).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/t.pcap: cannot be opened: No such file"), "{missing}");
    let directory = Capture::open(Path::new("/")).unwrap_err().to_string();
    assert!(directory.starts_with("/: cannot be opened: is a directory; name a capture"), "{directory}");
}

#[test]
fn a_link_type_we_cannot_read_is_named_with_the_remedy() {
    let reads = "and sluice reads Ethernet (1), raw IP (101), Linux cooked (113, 276) and loopback (0, 108); capture with \
                 tcpdump -i IFACE -y EN10MB";
    let radio = Pcap::new(true, 0xa1b2_c3d4, 127).octets;
    assert_eq!(fault(&radio), format!("t.pcap: has link type 127 (802.11 with radiotap), {reads}"));
    let file = Ng::new(true).interface(1, 0, &[]).interface(9999, 0, &[]).enhanced(0, 0, 54, &frame(1));
    assert_eq!(read_whole(&file.octets).len(), 1, "an interface without packets does no harm");
    let file = file.enhanced(1, 0, 54, &frame(1)).octets;
    assert_eq!(fault(&file), format!("t.pcap: packet 2 has link type 9999, {reads}"));
    assert!(
        fault(&Ng::new(false).enhanced(3, 0, 54, &frame(1)).octets).contains("packet 1 at octet 28: interface 3 of 0")
    );
}

#[test]
fn a_truncated_capture_gives_its_whole_packets_first() {
    let octets = ethernet_pcap(1042);
    assert_eq!(octets.len(), 24 + 1042 * 70);
    let cut = &octets[..octets.len() - 42];
    let (packets, error) = read_all(open(cut).unwrap());
    assert_eq!(packets.len(), 1041);
    assert_eq!(
        error.unwrap().to_string(),
        "t.pcap: truncated in packet 1042 at octet 72,910: 12 of 54 octets are there; capture again, or cut the file with \
         editcap"
    );
    for len in 24..24 + 3 * 70 {
        let (packets, error) = read_all(open(&octets[..len]).unwrap());
        assert_eq!((packets.len(), error.is_none()), ((len - 24) / 70, (len - 24) % 70 == 0), "cut at {len}");
    }
}

#[test]
fn a_truncated_pcapng_file_gives_its_whole_packets_first() {
    let octets = mixed_pcapng();
    let whole = read_whole(&octets);
    for len in 1..octets.len() {
        let Ok(capture) = open(&octets[..len]) else {
            assert!(len < 28, "cut at {len}");
            continue;
        };
        let (packets, error) = read_all(capture);
        assert_eq!(packets, whole[..packets.len()], "cut at {len}");
        if let Some(error) = error {
            assert!(error.to_string().starts_with("t.pcap: truncated in "), "{error}");
        }
    }
}

#[test]
fn a_packet_has_256_kib_at_most() {
    let largest = Pcap::new(false, 0xa1b2_c3d4, 1).packet(&vec![7; MAX_PACKET]).packet(&vec![8; MAX_PACKET]).octets;
    assert!(read_whole(&largest).iter().all(|(_, frame, _)| frame.len() == MAX_PACKET));
    let file = Pcap::new(false, 0xa1b2_c3d4, 1).packet(&frame(1)).packet(&vec![7; MAX_PACKET + 1]).octets;
    let damaged = "262145 octets, and 262144 are the most; the file is damaged: capture again, or cut it with editcap";
    assert_eq!(fault(&file), format!("t.pcap: packet 2 at octet 94: {damaged}"));
    let file = Ng::new(false).interface(1, 0, &[]).enhanced(0, 0, 9, &vec![7; MAX_PACKET + 1]).octets;
    assert_eq!(fault(&file), format!("t.pcap: packet 1 at octet 48: {damaged}"));
}

#[test]
fn a_block_that_contradicts_itself_is_named() {
    let file = Ng::new(false).interface(1, 0, &[]).enhanced(0, 0, 54, &frame(1)).octets;
    let at = file.len() - 4;
    let with = |at: usize, word: u32| {
        let mut file = file.clone();
        file[at..at + 4].copy_from_slice(&word.to_le_bytes());
        fault(&file)
    };
    assert!(
        with(at, 7).contains("packet 1 at octet 48: a block of 104 octets that ends with the length 7; the file is")
    );
    assert!(with(52, 102).contains("a block length of 102, which is no multiple of 4"));
    assert!(with(52, 28).contains("a block length of 28, where 32 is the least"));
    assert!(with(52, 8).contains("a block length of 8, where 12 is the least"));
    assert!(with(68, 90).contains("90 octets in a block of 104"));
    assert!(with(8, 9).contains("a section with the byte-order mark"));
    assert!(with(12, 9).contains("has version 9.0 of pcapng"));
    let file = Ng::new(false).block(1, &[1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 50, 0]).octets;
    assert!(
        fault(&file).contains("a block of type 0x1 at octet 28: an option of 50 octets, which the block has no room")
    );
}

/// Gives one octet at a time, with interruptions, as a slow pipe may.
struct Trickle(Cursor<Vec<u8>>, bool);

impl Read for Trickle {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.0.read(&mut into[..1])
    }
}

#[test]
fn a_stream_may_come_in_pieces() {
    let octets = mixed_pcapng();
    let size = octets.len() as u64;
    let input = Trickle(Cursor::new(octets.clone()), false);
    let capture = Capture::from_reader(Box::new(input), Path::new("-"), size).unwrap();
    let (packets, error) = read_all(capture);
    assert!(error.is_none());
    assert_eq!(packets, read_whole(&octets));
}

/// Fails after its octets.
struct Failing(Cursor<Vec<u8>>);

impl Read for Failing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.read(into)? {
            0 => Err(io::ErrorKind::ConnectionReset.into()),
            read => Ok(read),
        }
    }
}

#[test]
fn a_failing_device_is_no_end_of_the_file() {
    let input = Failing(Cursor::new(ethernet_pcap(2)));
    let (packets, error) = read_all(Capture::from_reader(Box::new(input), Path::new("-"), 0).unwrap());
    assert_eq!(packets.len(), 2);
    let error = error.unwrap().to_string();
    assert!(error.starts_with("standard input: cannot be read at octet 164: connection reset; "), "{error}");
}

#[test]
fn position_and_size_measure_progress() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.pcap");
    std::fs::write(&path, ethernet_pcap(3)).unwrap();
    let mut capture = Capture::open(&path).unwrap();
    assert_eq!((capture.position(), capture.size()), (24, 24 + 3 * 70));
    for number in 1..=3 {
        assert!(capture.next().unwrap().is_some());
        assert_eq!(capture.position(), 24 + number * 70);
    }
    assert!(capture.next().unwrap().is_none());
}

fn any_packets() -> impl Strategy<Value = Vec<(u64, Vec<u8>, u32)>> {
    let data = prop_oneof![8 => 0_usize..200, 1 => 60_000_usize..70_000].prop_flat_map(|len| {
        any::<u8>().prop_map(move |fill| (0..len).map(|index| fill.wrapping_add(index as u8)).collect::<Vec<u8>>())
    });
    let packet = (0..u64::from(u32::MAX) * 1_000_000, data, 0_u32..2000);
    proptest::collection::vec(packet, 0..12)
}

proptest! {
    #[test]
    fn what_was_written_is_read_again(packets in any_packets(), big in any::<bool>(), resolution in 6_u8..=9) {
        let unit = 10_u64.pow(9 - u32::from(resolution));
        let expected: Vec<Kept> = packets
            .iter()
            .map(|(micros, data, more)| (Duration::from_micros(*micros), data.clone(), data.len() as u32 + more))
            .collect();

        let (magic, fraction) = if resolution < 9 { (0xa1b2_c3d4, 1000) } else { (0xa1b2_3c4d, 1) };
        let classic = expected.iter().fold(Pcap::new(big, magic, 1), |pcap, (time, data, wire_len)| {
            pcap.record(time.as_secs() as u32, time.subsec_nanos() / fraction, *wire_len, data)
        });
        prop_assert_eq!(&read_whole(&classic.octets), &expected);

        let ng = Ng::new(big).interface(1, 0, &[(2, b"x"), (9, &[resolution])]);
        let ng = expected.iter().fold(ng, |ng, (time, data, wire_len)| {
            ng.enhanced(0, time.as_nanos() as u64 / unit, *wire_len, data)
        });
        prop_assert_eq!(&read_whole(&ng.octets), &expected);

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.pcap");
        let mut writer = PcapWriter::create(&path).unwrap();
        for (time, data, wire_len) in &expected {
            writer.write(*time, data, *wire_len).unwrap();
        }
        prop_assert_eq!(writer.packets(), expected.len() as u64);
        writer.finish().unwrap();
        prop_assert_eq!(&read_all(Capture::open(&path).unwrap()).0, &expected);
    }

    #[test]
    fn damage_never_panics_nor_lasts(
        which in 0..4,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut octets = match which {
            0 => ethernet_pcap(6),
            1 => (0..6).fold(Pcap::new(true, 0xa1b2_3c4d, 113), |pcap, seq| pcap.packet(&frame(seq))).octets,
            _ => mixed_pcapng(),
        };
        for (at, value) in flips {
            let at = at.index(octets.len());
            octets[at] = value;
        }
        if !whole {
            octets.truncate(cut.index(octets.len()) + 1);
        }
        if let Ok(capture) = open(&octets) {
            let (packets, error) = read_all(capture);
            // Each takes 16 octets of the file at least, and none is longer than the file but for its made-up header.
            prop_assert!(packets.len() <= octets.len() / 16);
            prop_assert!(packets.iter().all(|(_, frame, _)| frame.len() <= octets.len() + 14));
            if let Some(error) = error {
                prop_assert!(error.to_string().starts_with("t.pcap: "), "{}", error);
            }
        }
    }

    #[test]
    fn noise_is_no_capture_and_does_no_harm(start in 0..7, noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        let start: &[u8] = match start {
            0 => b"\xd4\xc3\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\x04\0\x01\0\0\0",
            1 => b"\xa1\xb2\x3c\x4d\0\x02\0\x04\0\0\0\0\0\0\0\0\0\x04\0\0\0\0\0\x65",
            2 => b"\x0a\x0d\x0d\x0a\x1c\0\0\0\x4d\x3c\x2b\x1a\x01\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x1c\0\0\0",
            3 => b"\x0a\x0d\x0d\x0a",
            4 => b"\xd4\xc3\xb2\xa1",
            _ => b"",
        };
        if let Ok(capture) = open(&[start, &noise].concat()) {
            let _ = read_all(capture);
        }
    }
}
