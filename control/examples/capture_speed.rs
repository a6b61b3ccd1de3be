//! How fast captures are read: `cargo run --release --example capture_speed -p sluice-control`.

use std::hint::black_box;
use std::io::Cursor;
use std::path::Path;
use std::time::{Duration, Instant};

use sluice_control::capture::Capture;
use sluice_filters::testkit;

const PACKETS: usize = 1_000_000;

/// A pcap file with that many packets of 60 octets of this link type.
fn pcap(link: u8) -> Vec<u8> {
    let frame = testkit::tcp("192.0.2.7:40000", "198.51.100.10:443").pad_to(60).build();
    let data = if link == 1 { &frame[..] } else { &frame[14..] };
    let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, link, 0, 0, 0];
    for _ in 0..PACKETS {
        for word in [1, 2, data.len() as u32, data.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(data);
    }
    file
}

fn main() {
    for (name, link) in [("Ethernet", 1), ("raw IP", 101)] {
        let file = pcap(link);
        let best = (0..5).map(|_| read(&file)).min().unwrap_or_default();
        println!("{name}: {:.1} ns a packet", best.as_nanos() as f64 / PACKETS as f64);
    }
}

fn read(file: &[u8]) -> Duration {
    let input = Box::new(Cursor::new(file.to_vec()));
    let start = Instant::now();
    let mut capture = Capture::from_reader(input, Path::new("speed.pcap"), file.len() as u64).expect("a capture");
    let mut packets = 0;
    while let Some(packet) = capture.next().expect("a whole capture") {
        black_box(packet);
        packets += 1;
    }
    assert_eq!(packets, PACKETS);
    start.elapsed()
}
