//! Both legs of a spliced connection, recorded and checked against each other.
//!
//! A [`Tap`] records what passes the interface next to the appliance: what it sends before the lossy wire touches it, what
//! it receives after. [`Legs::check`] replays both records in the order of their times and names every packet that breaks a
//! [`Rule`]. No offloads on a tapped interface (the lab switches them off), or the kernel would show segments that were
//! never on the wire, with checksums nobody computed.

mod rules;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TcpOptionElement, TransportSlice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pcap::{Active, Capture, Linktype, Packet, PacketHeader, Precision};

use crate::appliance::Record;
use crate::frames::checksum;
use crate::lab::Lab;
use crate::netns::Ns;

/// A recorded frame.
#[derive(Clone, Debug)]
pub struct Captured {
    /// When, since 1970.
    pub at: Duration,
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
}

/// A running record of one interface, both directions.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    recording: Option<JoinHandle<Vec<Captured>>>,
}

impl Tap {
    /// Records TCP to and from `port` on `interface` of `ns` from now on.
    ///
    /// # Panics
    /// Without root, or when there is no such interface.
    #[must_use]
    pub fn start(ns: &Ns, interface: &str, port: u16) -> Tap {
        Tap::filtered(ns, interface, &format!("tcp port {port}"))
    }

    fn filtered(ns: &Ns, interface: &str, filter: &str) -> Tap {
        let opened = ns.run(|| {
            let capture = Capture::from_device(interface)?.promisc(true).snaplen(2_000).immediate_mode(true);
            let mut capture = capture.precision(Precision::Nano).buffer_size(256 << 20).open()?;
            capture.filter(filter, true)?;
            capture.setnonblock()
        });
        let capture = opened.unwrap_or_else(|error: pcap::Error| panic!("cannot record {interface}: {error}"));
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        Tap { stop, recording: Some(std::thread::spawn(move || record(capture, &told))) }
    }

    /// Everything recorded, in the order of the record.
    ///
    /// # Panics
    /// When frames are missing because we read too slowly.
    #[must_use]
    pub fn finish(mut self) -> Vec<Captured> {
        // What is on its way through the kernel still counts.
        std::thread::sleep(Duration::from_millis(50));
        self.stop.store(true, Ordering::Relaxed);
        let recording = self.recording.take().expect("only we take it");
        recording.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(recording) = self.recording.take() {
            let _ = recording.join();
        }
    }
}

fn record(mut capture: Capture<Active>, stop: &AtomicBool) -> Vec<Captured> {
    let mut frames = Vec::new();
    loop {
        match capture.next_packet() {
            Ok(packet) => frames.push(Captured { at: time_of(packet.header), frame: packet.data.to_vec() }),
            Err(pcap::Error::TimeoutExpired | pcap::Error::NoMorePackets) => {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let mut waiting = [PollFd::new(capture.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut waiting, PollTimeout::from(20_u8));
            }
            Err(error) => panic!("cannot read a tapped interface: {error}"),
        }
    }
    let dropped = capture.stats().map_or(0, |stats| stats.dropped);
    assert_eq!(dropped, 0, "frames are missing from the record");
    frames
}

/// The record was made with nanoseconds in the place of microseconds.
fn time_of(header: &PacketHeader) -> Duration {
    let nanos = u32::try_from(header.ts.tv_usec).expect("less than a second");
    Duration::new(u64::try_from(header.ts.tv_sec).expect("after 1970"), nanos)
}

/// Taps on both sides of the appliance.
#[derive(Debug)]
pub struct Taps {
    client: Tap,
    server: Tap,
}

impl Taps {
    /// Records service `service_port` and what goes to upstreams' `upstream_port`. From now on the lab's links keep the
    /// order of what they carry, so that what is recorded is the order in which the appliance received it.
    #[must_use]
    pub fn start(lab: &Lab, service_port: u16, upstream_port: u16) -> Taps {
        lab.keep_order();
        let (ns, interface) = lab.beside_wan();
        Taps { client: Tap::start(ns, interface, service_port), server: Tap::start(&lab.server, "s0", upstream_port) }
    }

    /// Records all TCP.
    #[must_use]
    pub fn all_tcp(lab: &Lab) -> Taps {
        let (ns, interface) = lab.beside_wan();
        Taps { client: Tap::filtered(ns, interface, "tcp"), server: Tap::filtered(&lab.server, "s0", "tcp") }
    }

    /// What they recorded.
    #[must_use]
    pub fn finish(self) -> Legs {
        Legs { client: self.client.finish(), server: self.server.finish() }
    }
}

/// Records of both legs.
#[derive(Clone, Debug, Default)]
pub struct Legs {
    /// Between client and appliance.
    pub client: Vec<Captured>,
    /// Between appliance and upstream.
    pub server: Vec<Captured>,
}

impl Legs {
    /// Every breach of a rule by the connection `conversation`, in the order of time.
    #[must_use]
    pub fn check(&self, conversation: &Conversation) -> Vec<Violation> {
        rules::check(self, conversation)
    }

    /// Segments of the connection on the client's leg and on the server's that carry SACK blocks.
    #[must_use]
    pub fn sack_blocks(&self, conversation: &Conversation) -> (usize, usize) {
        let count = |frames, ends| segments(frames, ends).iter().filter(|segment| !segment.sack.is_empty()).count();
        (count(&self.client, conversation.client_leg()), count(&self.server, conversation.server_leg()))
    }

    /// The frames of connections whose ends are wanted: on the client's leg client and service, on the server's sluice and upstream.
    #[must_use]
    pub fn only(
        &self,
        client: impl Fn(SocketAddr, SocketAddr) -> bool,
        server: impl Fn(SocketAddr, SocketAddr) -> bool,
    ) -> Legs {
        let kept = |frames: &[Captured], wanted: &dyn Fn(SocketAddr, SocketAddr) -> bool| {
            let either = |frame: &&Captured| ends(&frame.frame).is_some_and(|(a, b)| wanted(a, b) || wanted(b, a));
            frames.iter().filter(either).cloned().collect()
        };
        Legs { client: kept(&self.client, &client), server: kept(&self.server, &server) }
    }

    /// Writes both records as `NAME-client.pcap` and `NAME-server.pcap`.
    ///
    /// # Panics
    /// When the disk refuses.
    pub fn save(&self, directory: &Path, name: &str) {
        for (leg, frames) in [("client", &self.client), ("server", &self.server)] {
            save(&directory.join(format!("{name}-{leg}.pcap")), frames);
        }
    }

    /// Checks, and leaves both records as files in `SLUICE_CAPTURES`, where that is set, when something is wrong.
    ///
    /// # Panics
    /// When a rule is broken; the message names the packets.
    pub fn expect_clean(&self, conversation: &Conversation) {
        let violations = self.check(conversation);
        if violations.is_empty() {
            return;
        }
        if let Some(directory) = std::env::var_os("SLUICE_CAPTURES") {
            self.save(Path::new(&directory), "legs");
        }
        let first: String = violations.iter().take(40).map(|violation| format!("\n  {violation}")).collect();
        panic!("{} breaches of {conversation:?}; the first:{first}", violations.len());
    }
}

fn save(path: &Path, frames: &[Captured]) {
    let file = Capture::dead_with_precision(Linktype::ETHERNET, Precision::Nano).and_then(|dead| dead.savefile(path));
    let mut file = file.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    for Captured { at, frame } in frames {
        let len = u32::try_from(frame.len()).expect("a frame is short");
        let mut header = PacketHeader { ts: nix::libc::timeval { tv_sec: 0, tv_usec: 0 }, caplen: len, len };
        header.ts.tv_sec = i64::try_from(at.as_secs()).expect("before the sun goes out");
        header.ts.tv_usec = at.subsec_nanos().into();
        file.write(&Packet::new(&header, frame));
    }
}

/// Which connection of a record, and what sluice puts in front of the client's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The client.
    pub client: SocketAddr,
    /// Where it connected to.
    pub service: SocketAddr,
    /// Sluice towards the upstream.
    pub source: SocketAddr,
    /// The upstream.
    pub upstream: SocketAddr,
    /// Octets of the PROXY header.
    pub header: u32,
}

impl Conversation {
    /// The connection of a line of the log.
    ///
    /// # Panics
    /// When it was never dialled.
    #[must_use]
    pub fn of(record: &Record, header: u32) -> Conversation {
        Conversation {
            client: record.client,
            service: record.listen,
            source: record.source.expect("a dialled connection"),
            upstream: record.upstream.expect("a dialled connection"),
            header,
        }
    }

    /// The end on the client's side, the end on the server's side.
    fn client_leg(&self) -> (SocketAddr, SocketAddr) {
        (self.client, self.service)
    }

    fn server_leg(&self) -> (SocketAddr, SocketAddr) {
        (self.source, self.upstream)
    }
}

/// One of the two connections a spliced connection consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// Between client and appliance.
    Client,
    /// Between appliance and upstream.
    Server,
}

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A TCP segment inside an IP packet.
    Parses,
    /// The IPv4 header checksum is right.
    IpChecksum,
    /// The TCP checksum is right.
    TcpChecksum,
    /// SYN and SYN-ACK come before everything else, with one initial sequence number each.
    Handshake,
    /// The dial's sequence number is the client's less the length of the PROXY header.
    ClientNumbers,
    /// What is missing in a stream comes later, and what came in on one leg goes out on the other.
    NoGap,
    /// An octet of a stream is the same each time and on both legs.
    SameOctets,
    /// Nothing goes out that did not come in before: no octet, and no RST.
    NothingInvented,
    /// The PROXY header does not reach the client.
    HeaderStaysInside,
    /// Both legs' streams end with the same octet.
    SameEnd,
    /// The clock an end sees does not go back (RFC 7323 section 5).
    ClockForward,
    /// An echoed timestamp is one the other end of this leg has sent (RFC 7323 section 3).
    EchoKnown,
    /// SACK blocks lie between the acknowledgment and what was sent; the first may report an older duplicate (RFC 2883), and what
    /// the far end repeats of old ones may be repeated.
    SackInWindow,
    /// A window ends no later than the far end's does.
    WindowOfFarEnd,
    /// Only what was sent on this leg is acknowledged.
    AckOfSent,
    /// Only what the far end acknowledged is acknowledged: sluice keeps nothing it could repeat.
    AckOfFarEnd,
}

/// A packet that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// In which record.
    pub leg: Leg,
    /// Its number there, as other tools count, from 1; 0 when no single packet is to blame.
    pub packet: usize,
    /// The rule.
    pub rule: Rule,
    /// The numbers.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} leg, packet {}: {:?}: {}", self.leg, self.packet, self.rule, self.detail)
    }
}

/// A segment of a connection, as recorded.
#[derive(Clone, Debug)]
struct Heard<'a> {
    number: usize,
    at: Duration,
    /// Sent by the end on the client's side.
    up: bool,
    seq: u32,
    ack: Option<u32>,
    syn: bool,
    fin: bool,
    rst: bool,
    window: u16,
    scale: Option<u8>,
    clock: Option<(u32, u32)>,
    sack: Vec<(u32, u32)>,
    payload: &'a [u8],
    ip_sum_wrong: bool,
    tcp_sum_wrong: bool,
}

/// Source and destination of a TCP segment.
fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (from, to): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
    Some((SocketAddr::new(from, tcp.source_port()), SocketAddr::new(to, tcp.destination_port())))
}

/// The segments between `ends` in a record.
fn segments(frames: &[Captured], ends: (SocketAddr, SocketAddr)) -> Vec<Heard<'_>> {
    let numbered = frames.iter().zip(1..);
    numbered.filter_map(|(captured, number)| heard(captured, number, ends)).collect()
}

/// Frames of a record that hold no TCP segment.
fn unreadable(frames: &[Captured]) -> impl Iterator<Item = usize> + '_ {
    let readable = |captured: &Captured| {
        SlicedPacket::from_ethernet(&captured.frame)
            .is_ok_and(|packet| matches!(packet.transport, Some(TransportSlice::Tcp(_))))
    };
    frames.iter().zip(1..).filter(move |(captured, _)| !readable(captured)).map(|(_, number)| number)
}

fn heard<'a>(captured: &'a Captured, number: usize, ends: (SocketAddr, SocketAddr)) -> Option<Heard<'a>> {
    let packet = SlicedPacket::from_ethernet(&captured.frame).ok()?;
    let TransportSlice::Tcp(tcp) = packet.transport? else { return None };
    let protocol = |length: usize| (6 + u32::try_from(length).expect("a frame is short")).to_be_bytes();
    let (from, to, ip_sum, pseudo): (IpAddr, IpAddr, [u8; 2], [&[u8]; 2]) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let addresses = [&header.slice()[12..16], &header.slice()[16..20]];
            (header.source_addr().into(), header.destination_addr().into(), checksum(&[header.slice()]), addresses)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let addresses = [&header.slice()[8..24], &header.slice()[24..40]];
            (header.source_addr().into(), header.destination_addr().into(), [0; 2], addresses)
        }
        NetSlice::Arp(_) => return None,
    };
    let (from, to) = (SocketAddr::new(from, tcp.source_port()), SocketAddr::new(to, tcp.destination_port()));
    let up = (from, to) == ends;
    if !up && (to, from) != ends {
        return None;
    }
    let tcp_sum = checksum(&[pseudo[0], pseudo[1], &protocol(tcp.slice().len()), tcp.slice()]);
    let mut segment = Heard {
        number,
        at: captured.at,
        up,
        seq: tcp.sequence_number(),
        ack: tcp.ack().then(|| tcp.acknowledgment_number()),
        syn: tcp.syn(),
        fin: tcp.fin(),
        rst: tcp.rst(),
        window: tcp.window_size(),
        scale: None,
        clock: None,
        sack: Vec::new(),
        payload: tcp.payload(),
        ip_sum_wrong: ip_sum != [0; 2],
        tcp_sum_wrong: tcp_sum != [0; 2],
    };
    for option in tcp.options_iterator().flatten() {
        match option {
            TcpOptionElement::WindowScale(scale) => segment.scale = Some(scale.min(14)),
            TcpOptionElement::Timestamp(value, echo) => segment.clock = Some((value, echo)),
            TcpOptionElement::SelectiveAcknowledgement(first, rest) => {
                segment.sack.push(first);
                segment.sack.extend(rest.into_iter().flatten());
            }
            _ => {}
        }
    }
    Some(segment)
}
