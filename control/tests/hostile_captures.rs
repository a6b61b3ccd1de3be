//! Damaged captures, read and replayed: whatever they hold ends in packets or an error, never in a panic.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use sluice_control::capture::Capture;
use sluice_control::filters::load;
use sluice_control::replay::{Replay, Report};
use sluice_filters::Flags;
use sluice_filters::testkit::tcp;

const CONFIG: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24"]
gateway = "198.51.100.1"
[[service]]
name = "web"
listen = ["198.51.100.10:443"]
[[service.upstream]]
address = "198.51.100.5:80"
[bans]
capacity = 1
[filters]
records = 1024
[filters.per_address]
syns = "2/s"
[[rule]]
name = "low"
hop_limit = "-9"
action = "limit"
limit = "1/h"
"#;

fn frames() -> Vec<Vec<u8>> {
    let (client, web) = ("203.0.113.7:40000", "198.51.100.10:443");
    vec![
        tcp(client, web).flags(Flags::SYN).seq(100).build(),
        tcp(web, client).flags(Flags::SYN | Flags::ACK).seq(500).ack(101).build(),
        tcp(client, web).flags(Flags::ACK).seq(101).ack(501).hop_limit(3).payload([7; 30]).build(),
    ]
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let total = (padded as u32 + 12).to_le_bytes();
    [&kind.to_le_bytes(), &total, body, &vec![0; padded - body.len()], &total].concat()
}

/// A pcapng file with these units of time and this offset.
fn pcapng(resolution: u8, offset: i64, time: u64) -> Vec<u8> {
    let section = [&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
    let options = [&[9, 0, 1, 0, resolution, 0, 0, 0, 14, 0, 8, 0][..], &offset.to_le_bytes(), &[0; 4]].concat();
    let interface = [&[1, 0, 0, 0, 0, 0, 4, 0][..], &options].concat();
    let mut file = [block(0x0a0d_0d0a, &section), block(1, &interface)].concat();
    for (frame, n) in frames().iter().zip(0..) {
        let at = time.wrapping_add(n);
        let len = (frame.len() as u32).to_le_bytes();
        let (high, low) = ((at >> 32) as u32, at as u32);
        let head = [&[0; 4][..], &high.to_le_bytes(), &low.to_le_bytes(), &len, &len].concat();
        file.extend(block(6, &[&head[..], frame].concat()));
    }
    file
}

fn pcap(seconds: u32) -> Vec<u8> {
    let mut file = [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1].map(u32::to_le_bytes).concat();
    for frame in frames() {
        let len = frame.len() as u32;
        file.extend([seconds, u32::MAX, len, len].map(u32::to_le_bytes).concat());
        file.extend(frame);
    }
    file
}

/// Replays a file; how many packets it had.
fn replay(file: Vec<u8>) -> u64 {
    let config = Arc::new(sluice_config::parse("t", CONFIG).unwrap());
    let filters = load("t", &config, 1).unwrap();
    let mut replay = Replay::new(config, filters, [7; 32], Vec::new());
    let mut report = Report::default();
    let size = file.len() as u64;
    if let Ok(mut capture) = Capture::from_reader(Box::new(Cursor::new(file)), Path::new("t"), size) {
        while let Ok(Some(packet)) = capture.next() {
            let outcome = replay.packet(packet.time, packet.frame, packet.wire_len);
            report.add(outcome, packet.time, (packet.frame.len(), packet.wire_len));
        }
    }
    let json = report.json(&replay);
    assert_eq!(json["packets"], report.packets());
    assert!(report.table(&replay).contains("packets"));
    report.packets()
}

#[test]
fn captures_of_the_ends_of_time_are_replayed() {
    assert_eq!(replay(pcapng(6, 0, 1_767_323_045_000_000)), 3);
    for (resolution, offset, time) in [(0, 0, u64::MAX - 9), (0, i64::MAX, u64::MAX), (0, i64::MIN, 5), (0xff, 0, 1)] {
        assert_eq!(replay(pcapng(resolution, offset, time)), 3);
    }
    assert_eq!(replay(pcap(u32::MAX)), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_captures_end_in_packets_or_an_error(
        of_any_time in any::<(u8, i64, u64)>(),
        classic in any::<bool>(),
        damage in vec((any::<Index>(), any::<u8>()), 0..6),
        cut in any::<Index>(),
        short in any::<bool>(),
    ) {
        let (resolution, offset, time) = of_any_time;
        let mut file = if classic { pcap(time as u32) } else { pcapng(resolution, offset, time) };
        for (at, octet) in &damage {
            *at.get_mut(&mut file) = *octet;
        }
        if short {
            file.truncate(cut.index(file.len()));
        }
        replay(file);
    }

    #[test]
    fn a_damaged_wire_length_costs_no_more_than_the_longest_frame(wire_len in any::<u32>(), seconds in any::<u64>()) {
        let config = Arc::new(sluice_config::parse("t", CONFIG).unwrap());
        let filters = load("t", &config, 1).unwrap();
        let mut replay = Replay::new(config, filters, [7; 32], Vec::new());
        for frame in frames() {
            replay.packet(Duration::from_secs(seconds), &frame, wire_len);
        }
    }
}
