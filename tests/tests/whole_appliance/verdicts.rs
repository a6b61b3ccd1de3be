//! What the running appliance says of a TCP segment from a station on either link, whatever it claims to come from, and that `explain`
//! and `replay` say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::{Block, PcapNgReader, PcapNgWriter};
use sluice_filters::DropReason;
use sluice_tests::appliance::{Service, Setup, Sluice, binary};
use sluice_tests::frames::{Segment, flags};
use sluice_tests::lab::{Arms, Family, LAN4, Lab, SERVER4, SERVICE4};
use sluice_tests::link::Link;
use sluice_tests::metrics::Metrics;
use sluice_tests::peer::{Route, accept, exchange};

use crate::basics::SOON;
use crate::floods::{arrived, received};

/// The sequence number of the first frame; each has its own.
const FIRST: u32 = 0x5100_0000;
/// A service's port, and one where nobody listens.
const OPEN: u16 = 7001;
const CLOSED: u16 = 7999;

/// The client's link and the server's, by the names of sluice's ports.
const PORTS: [&str; 2] = ["wan", "lan"];

/// Who a segment claims to be from, in either family.
const SOURCES: [(&str, &str, &str); 14] = [
    ("a client on the link", "198.51.100.77", "2001:db8:1::77"),
    ("a client far away", "203.0.113.99", "2001:db8:7::99"),
    ("a host beside the upstream", "10.0.0.78", "fd00:5::78"),
    ("the upstream", "10.0.0.5", "fd00:5::5"),
    ("our port", "198.51.100.2", "2001:db8:1::2"),
    ("our service", "198.51.100.10", "2001:db8:1::10"),
    ("everybody", "255.255.255.255", "fe80::77"),
    ("everybody on the link", "198.51.100.255", "ff02::1"),
    ("everybody on the other link", "10.0.0.255", "ff0e::5"),
    ("a group", "224.0.0.5", "ff02::5"),
    ("nobody", "0.0.0.0", "::"),
    ("a loop", "127.0.0.1", "::1"),
    ("whom deny names", "192.0.2.7", "2001:db8:d::7"),
    ("whom a ban names", "192.0.2.8", "2001:db8:b::8"),
];
/// And one that sends more packets than any address may; all others send less.
const LIMITED: (&str, &str) = ("192.0.2.9", "2001:db8:a::9");
const LIMIT: usize = 45;

/// One frame.
struct Shot {
    port: usize,
    what: String,
    octets: Vec<u8>,
    /// It comes from an upstream's own address and port, to an address of ours.
    dialled: bool,
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// Every source, to every kind of destination, with every kind of segment, on both ports.
fn shots(to_macs: [[u8; 6]; 2], from_macs: [[u8; 6]; 2], wan_vlan: u16) -> Vec<Shot> {
    let mut shots: Vec<Shot> = Vec::new();
    let kinds: [(&str, u8, &[u8]); 5] = [
        ("SYN", flags::SYN, b""),
        ("SYN-ACK", flags::SYN | flags::ACK, b""),
        ("ACK", flags::ACK, b""),
        ("RST", flags::RST, b""),
        ("data", flags::ACK | flags::PSH, b"GET / HTTP/1.0\r\n"),
    ];
    let destinations = [
        ("the service", SERVICE4.to_string(), "2001:db8:1::10".to_owned(), OPEN),
        ("a closed port", SERVICE4.to_string(), "2001:db8:1::10".to_owned(), CLOSED),
        ("our other address", LAN4.to_string(), "fd00:5::2".to_owned(), 50_000),
        ("somebody else", "198.51.100.99".to_owned(), "2001:db8:1::99".to_owned(), OPEN),
    ];
    for port in [0, 1] {
        for family in Family::BOTH {
            let pick = |v4: &str, v6: &str| if family == Family::V4 { v4.to_owned() } else { v6.to_owned() };
            let limited = (0..3).map(|_| ("one over its limit", pick(LIMITED.0, LIMITED.1), None));
            let upstream = ("the upstream's port", pick("10.0.0.5", "fd00:5::5"), Some(OPEN));
            let sources = SOURCES.iter().map(|(what, v4, v6)| (*what, pick(v4, v6), None)).chain(limited);
            for (source, address, source_port) in sources.chain([upstream]) {
                for (destination, v4, v6, to_port) in &destinations {
                    for (kind, flags, payload) in kinds {
                        let number = u32::try_from(shots.len()).expect("few");
                        // A port of its own, so that none is part of another's handshake.
                        let own_port = 10_000 + u16::try_from(number).expect("few");
                        let segment = Segment {
                            from_mac: from_macs[port],
                            to_mac: to_macs[port],
                            from: at(&address, source_port.unwrap_or(own_port)),
                            to: at(&pick(v4, v6), *to_port),
                            // Even: a kernel that resets what it did not ask for takes the next one.
                            seq: FIRST + 2 * number,
                            ack: 1,
                            flags,
                            window: 8192,
                            options: &[],
                            payload,
                        };
                        let mut octets = segment.frame();
                        if port == 0 && wan_vlan != 0 {
                            let [high, low] = wan_vlan.to_be_bytes();
                            octets.splice(12..12, [0x81, 0, high, low]);
                        }
                        let ours = !matches!(*destination, "the service" | "somebody else");
                        let dialled = source_port.is_some() && ours && kind != "SYN";
                        let what = format!("{kind} on {} from {source} ({address}) to {destination}", PORTS[port]);
                        shots.push(Shot { port, what, octets, dialled });
                    }
                }
            }
        }
    }
    shots
}

/// The place of a frame of ours among the shots.
fn number(frame: &[u8]) -> Option<usize> {
    // What the parser refuses has its sequence number, too.
    let tag = if frame.get(12..14)? == [0x81, 0] { 4 } else { 0 };
    let header = if frame.get(12 + tag..14 + tag)? == [0x86, 0xdd] { 40 } else { 20 };
    let seq = frame.get(14 + tag + header + 4..)?.first_chunk()?;
    let number = u32::from_be_bytes(*seq).checked_sub(FIRST)?;
    usize::try_from(number / 2).ok().filter(|_| number % 2 == 0 && number < 1 << 17)
}

/// Why each frame of ours was dropped, by its place: what the sample says.
fn sampled(file: &str) -> BTreeMap<usize, String> {
    let octets = fs::read(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let mut reader = PcapNgReader::new(&octets[..]).expect("a pcapng file");
    let mut reasons = BTreeMap::new();
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block.expect("whole blocks") else { continue };
        let Some(number) = number(&packet.data) else { continue };
        let comment = packet.options.iter().find_map(|option| match option {
            EnhancedPacketOption::Comment(comment) => comment.strip_prefix("drop: "),
            _ => None,
        });
        assert_eq!(reasons.insert(number, comment.expect("a verdict").to_owned()), None, "dropped twice");
    }
    reasons
}

/// Writes all frames into a capture that says by which port each came.
fn write_capture(file: &str, shots: &[Shot]) {
    let mut writer = PcapNgWriter::new(File::create(file).expect("the directory can be written")).expect("a header");
    for port in PORTS {
        let options = vec![InterfaceDescriptionOption::IfName(port.into())];
        let block = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options };
        writer.write_pcapng_block(block).expect("an interface");
    }
    for (shot, time) in shots.iter().zip(0_u64..) {
        let packet = EnhancedPacketBlock {
            interface_id: shot.port as u32,
            timestamp: Duration::from_secs(1_767_323_045) + Duration::from_millis(time),
            original_len: shot.octets.len() as u32,
            data: shot.octets.as_slice().into(),
            options: vec![],
        };
        writer.write_pcapng_block(packet).expect("a packet");
    }
}

fn sluice(arguments: &[&str]) -> String {
    let output = Command::new(binary()).args(arguments).output().expect("sluice runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The drop reason in what `explain` prints, if the packet is dropped.
fn explained(said: &str) -> Option<String> {
    let verdict = said.lines().find_map(|line| line.strip_prefix("verdict    ")).expect("a verdict");
    let reason =
        verdict.strip_prefix("dropped: ").or(verdict.split_once("it is dropped: ").map(|(_, reason)| reason))?;
    Some(reason.split([',', ' ']).next().unwrap_or_default().to_owned())
}

#[test]
fn the_appliance_explain_and_replay_agree_on_every_segment_untagged_and_loose() {
    agree(0, "loose", &["own_source", "upstream_source", "martian_source", "multicast_source", "land", "no_flow"]);
}

#[test]
fn the_appliance_explain_and_replay_agree_on_every_segment_tagged_and_strict() {
    agree(5, "strict", &["own_source", "upstream_source", "source_route", "martian_source", "bad_cookie"]);
}

fn agree(vlan: u16, check: &str, seen: &[&str]) {
    let lab = Lab::two_arms();
    let (sample, capture) = (lab.path("dropped.pcapng"), lab.path("shots.pcapng"));
    let bans = lab.write("bans", "192.0.2.8 never\n2001:db8:b::8 never\n");
    let service = Service::new("raw", OPEN).upstreams(&Family::BOTH.map(|family| family.server(OPEN)));
    // Small memories: each time that a packet is explained they are made anew.
    let tables = format!(
        "[filters.per_address]\npackets = \"1/h burst {LIMIT}\"\n[bans]\nfile = \"{bans}\"\ncapacity = 1024\n\
         [sample]\nfile = \"{sample}\"\nrate = \"1000000/s\"\nsnap = 128\n"
    );
    let setup = Setup::of([service])
        .wan_vlan(vlan)
        .source_check(check)
        .filters("deny = [\"192.0.2.7/32\", \"2001:db8:d::7/128\"]\nrecords = 4096")
        .tables(&tables);
    let appliance = Sluice::start(&lab, &setup);
    let macs = ["p0", "p1"].map(|interface| lab.appliance.mac_of(interface));
    let stations = [lab.client.mac_of("c0"), lab.server.mac_of("s0")];
    let shots = shots(macs, stations, vlan);
    write_capture(&capture, &shots);

    let mut links = [Link::open(&lab.client, "c0"), Link::open(&lab.server, "s0")];
    for (index, shot) in shots.iter().enumerate() {
        assert!(links[shot.port].send(&shot.octets), "the ring has room");
        // One by one: of a burst, a worker judges the SYNs first, and the limit's order shows. The other port's come when this one's
        // are judged.
        let last = shots.get(index + 1).is_none_or(|next| next.port != shot.port);
        thread::sleep(Duration::from_millis(if last { 500 } else { 1 }));
    }
    // The last to come of each port is dropped.
    let deadline = Instant::now() + 4 * SOON;
    let running = loop {
        let running = sampled(&sample);
        let last_of = |port| shots.iter().rposition(|shot| shot.port == port).expect("some");
        if [0, 1].into_iter().all(|port| running.contains_key(&last_of(port))) {
            break running;
        }
        assert!(
            Instant::now() < deadline,
            "{} of {} were dropped\n{}",
            running.len(),
            shots.len(),
            appliance.metrics()
        );
        thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(appliance.metrics().sum("sluice_sample_lost_total", &[]), 0);

    let config = lab.path("sluice.toml");
    let written = lab.path("replayed.pcap");
    let replayed = sluice(&["replay", "-c", &config, "--json", "--write-dropped", &written, &capture]);
    let replayed: serde_json::Value = serde_json::from_str(&replayed).expect("JSON");
    let mut by_replay: BTreeMap<String, u64> = BTreeMap::new();
    for line in replayed["outcomes"].as_array().expect("a list") {
        let Some(reason) = line["reason"].as_str() else { continue };
        by_replay.insert(reason.to_owned(), line["packets"].as_u64().expect("a number"));
    }
    let octets = fs::read(&written).expect("replay wrote it");
    let mut reader = pcap_file::pcap::PcapReader::new(&octets[..]).expect("a pcap file");
    let mut dropped_by_replay = BTreeSet::new();
    while let Some(packet) = reader.next_packet() {
        dropped_by_replay.extend(number(&packet.expect("whole packets").data));
    }

    let explain = |numbers: std::ops::Range<usize>| -> Vec<Option<String>> {
        let number = |index: usize| (index + 1).to_string();
        numbers.map(|index| explained(&sluice(&["explain", "-c", &config, "-n", &number(index), &capture]))).collect()
    };
    // Two cores are there.
    let explained = thread::scope(|scope| {
        let first = scope.spawn(|| explain(0..shots.len() / 2));
        let rest = explain(shots.len() / 2..shots.len());
        [first.join().expect("the explaining thread"), rest].concat()
    });
    let mut by_appliance: BTreeMap<String, u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (index, shot) in shots.iter().enumerate() {
        let ran = running.get(&index);
        let explained = &explained[index];
        // To explain, every packet is its source's first.
        let over = ran.is_some_and(|reason| reason == "source_packets");
        if explained.as_ref() != ran && !over {
            wrong.push(format!("{}: {ran:?}, explained as {explained:?}", shot.what));
        }
        if shot.dialled && ran.is_some_and(|reason| reason == "no_flow") {
            // A replay knows no connections of the appliance's, and passes what may be theirs.
            assert!(!dropped_by_replay.contains(&index), "{}", shot.what);
            continue;
        }
        if dropped_by_replay.contains(&index) != ran.is_some() {
            wrong.push(format!("{}: {ran:?}, replayed otherwise", shot.what));
        }
        if let Some(reason) = ran {
            *by_appliance.entry(reason.clone()).or_default() += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), shots.len(), wrong.join("\n"));
    assert_eq!(by_appliance, by_replay);
    let filtered = ["deny_list", "banned", "source_packets", "not_a_service", "bad_cookie"];
    for reason in seen.iter().chain(&filtered) {
        assert!(running.values().any(|ran| ran == reason), "{reason} is missing in {by_appliance:?}");
    }
    assert!(running.len() < shots.len(), "clients are answered");
}

#[test]
fn nobody_on_the_clients_side_answers_a_dial_in_an_upstreams_name() {
    let lab = Lab::two_arms();
    let appliance = Sluice::start(&lab, &Setup::of([Service::new("raw", OPEN).splice()]));
    let learned = |name: &str| appliance.metrics().sum(name, &[("service", "raw")]);
    let promise = || ["sluice_syn_ack_mss_bytes", "sluice_syn_ack_window_scale"].map(learned);
    let before = promise();
    let (to_mac, from_mac) = (lab.appliance.mac_of("p0"), lab.client.mac_of("c0"));
    let mut link = Link::open(&lab.client, "c0");
    let quiet = appliance.metrics();
    let resets = quiet.sum("sluice_resets_sent_total", &[]);
    // What the kernel's ring had no room for never reached sluice.
    let arrived_before = arrived(&lab);
    let overrun = |metrics: &Metrics| {
        (arrived(&lab) - arrived_before).saturating_sub(received(metrics, Some("wan")) - received(&quiet, Some("wan")))
    };
    let mut sent = 0;
    // A sweep over all ports of ours: SYN-ACKs that promise little, and RSTs.
    for port in (1024..=u16::MAX).step_by(3) {
        for (flags, options) in [(flags::SYN | flags::ACK, &[2, 4, 0, 1][..]), (flags::RST | flags::ACK, &[])] {
            let (from, to) = (SocketAddr::new(SERVER4.into(), OPEN), SocketAddr::new(LAN4.into(), port));
            let segment =
                Segment { from_mac, to_mac, from, to, seq: 1, ack: 1, flags, window: 1, options, payload: &[] };
            assert!(link.send(&segment.frame()), "the ring has room");
            sent += 1;
            if sent % 64 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
    let metrics = appliance.metrics_when("all are refused", 4 * SOON, |metrics| {
        metrics.dropped(DropReason::UpstreamSource) + overrun(metrics) >= sent
    });
    assert!(metrics.dropped(DropReason::UpstreamSource) > sent / 2, "{metrics}");
    assert_eq!(metrics.dropped(DropReason::NoFlow), 0, "{metrics}");
    assert_eq!(metrics.sum("sluice_resets_sent_total", &[]), resets, "none is answered\n{metrics}");
    assert_eq!(promise(), before, "nothing was learned from them");
    let route = Route::v4(&lab, OPEN);
    let listener = route.listen();
    let (client, server, _) = route.connect(&listener);
    exchange(&client, &server);
}

#[test]
fn an_upstream_with_many_dead_connections_gets_a_bounded_number_of_resets() {
    const COUNT: u64 = 40_000;
    let lab = Lab::two_arms();
    let appliance = Sluice::start(&lab, &Setup::of([Service::new("raw", OPEN)]));
    let (to_mac, from_mac) = (lab.appliance.mac_of("p1"), lab.server.mac_of("s0"));
    let mut link = Link::open(&lab.server, "s0");
    let begun = Instant::now();
    for number in 0..COUNT {
        let to = SocketAddr::new(SERVICE4.into(), 20_000 + (number % 40_000) as u16);
        let (from, flags) = (SocketAddr::new(SERVER4.into(), OPEN), flags::ACK);
        let segment =
            Segment { from_mac, to_mac, from, to, seq: 1, ack: 1, flags, window: 1, options: &[], payload: b"late" };
        assert!(link.send(&segment.frame()), "the ring has room");
        if number % 64 == 63 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    // What the kernel's ring had no room for never reached sluice.
    let mut known = 0;
    let metrics = loop {
        let metrics = appliance.metrics();
        let dropped = metrics.dropped(DropReason::NoFlow);
        if dropped == COUNT || (dropped == known && dropped > COUNT / 2) {
            break metrics;
        }
        assert!(begun.elapsed() < 6 * SOON, "{metrics}");
        known = dropped;
        thread::sleep(Duration::from_millis(300));
    };
    let count = metrics.dropped(DropReason::NoFlow);
    let took = begun.elapsed().as_secs() + 1;
    let (sent, withheld) =
        (metrics.sum("sluice_resets_sent_total", &[]), metrics.sum("sluice_answers_withheld_total", &[]));
    assert_eq!(sent + withheld, count, "{metrics}");
    assert!((4_000..=4_000 + 1_000 * took).contains(&sent), "{sent} in {took} s");
    assert_eq!(metrics.dropped(DropReason::NotAService), 0, "{metrics}");
}

#[test]
fn an_upstream_may_call_the_service_by_its_public_name() {
    for arms in [Arms::Two, Arms::One] {
        let lab = Lab::new(arms, None);
        let appliance = Sluice::start(&lab, &Setup::of([Service::new("raw", OPEN)]).source_check("strict"));
        let listener = lab.server.listen(Family::V4.server(OPEN));
        lab.server.sh(&format!("ip route add {SERVICE4}/32 via {LAN4} dev s0"));
        let from = SocketAddr::new(SERVER4.into(), 0);
        let client = lab.server.connect_from(from, Family::V4.service(OPEN)).expect("a connection");
        let server = accept(&listener);
        exchange(&client, &server);
        let metrics = appliance.metrics();
        assert_eq!(
            metrics.dropped(DropReason::UpstreamSource) + metrics.dropped(DropReason::SourceRoute),
            0,
            "{metrics}"
        );
    }
}
