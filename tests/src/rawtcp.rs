//! A TCP client in user space, for SYNs and segments no kernel would send.
//!
//! It has an address and a MAC of its own that no kernel knows, answers ARP and NDP for them, takes data in order only, acknowledges
//! each segment and repeats what is not acknowledged. It has no congestion control: its requests are short.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{
    EtherType, Ethernet2Header, NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice,
};

use crate::flood::resolve;
use crate::frames::{Segment, flags};
use crate::link::Link;
use crate::netns::Ns;

/// How often unacknowledged segments are repeated.
const REPEAT: Duration = Duration::from_millis(250);

/// How long any one step may take.
const PATIENCE: Duration = Duration::from_secs(8);

/// The raw client's MAC address.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

/// What the SYN looks like, and the client after it.
#[derive(Clone, Debug)]
pub struct Shape {
    /// MSS option.
    pub mss: Option<u16>,
    /// Window scale option.
    pub wscale: Option<u8>,
    /// SACK-permitted option.
    pub sack: bool,
    /// Timestamps option.
    pub timestamps: bool,
    /// More options, raw.
    pub extra: Vec<u8>,
    /// More flags on the SYN.
    pub flags: u8,
    /// Payload on the SYN.
    pub payload: Vec<u8>,
    /// The window field of every segment.
    pub window: u16,
}

impl Shape {
    /// No options at all.
    #[must_use]
    pub fn plain() -> Shape {
        Shape {
            mss: None,
            wscale: None,
            sack: false,
            timestamps: false,
            extra: Vec::new(),
            flags: 0,
            payload: Vec::new(),
            window: 60_000,
        }
    }

    /// As Linux: MSS 1460, SACK, timestamps, scale 7.
    #[must_use]
    pub fn usual() -> Shape {
        Shape { mss: Some(1460), wscale: Some(7), sack: true, timestamps: true, window: 502, ..Shape::plain() }
    }

    fn options(&self, clock: u32) -> Vec<u8> {
        let mut options = Vec::new();
        if let Some(mss) = self.mss {
            options.extend_from_slice(&[2, 4]);
            options.extend_from_slice(&mss.to_be_bytes());
        }
        if self.sack {
            options.extend_from_slice(&[4, 2]);
        }
        if self.timestamps {
            options.extend_from_slice(&timestamps(clock, 0));
        }
        if let Some(scale) = self.wscale {
            options.extend_from_slice(&[3, 3, scale]);
        }
        options.extend_from_slice(&self.extra);
        options
    }
}

fn timestamps(value: u32, echo: u32) -> [u8; 10] {
    let mut option = [8, 10, 0, 0, 0, 0, 0, 0, 0, 0];
    option[2..6].copy_from_slice(&value.to_be_bytes());
    option[6..].copy_from_slice(&echo.to_be_bytes());
    option
}

/// What the SYN-ACK offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// MSS.
    pub mss: Option<u16>,
    /// Window scale.
    pub wscale: Option<u8>,
    /// SACK permitted.
    pub sack: bool,
    /// Timestamps.
    pub timestamps: bool,
    /// ECE: ECN accepted.
    pub ecn: bool,
    /// Octets of the SYN's payload that were acknowledged.
    pub took: u32,
}

/// An established connection.
pub struct RawTcp {
    link: Link,
    shape: Shape,
    me: SocketAddr,
    peer: SocketAddr,
    mac: [u8; 6],
    peer_mac: [u8; 6],
    born: Instant,
    /// Next number to send, all before it acknowledged or being repeated.
    next: u32,
    /// Oldest unacknowledged number.
    unacked: u32,
    /// Next number expected from the peer.
    expected: u32,
    peer_clock: u32,
    offer: Offer,
    received: Vec<u8>,
    largest: usize,
    closed: bool,
}

impl RawTcp {
    /// Connects from `me`, which no kernel may own, out of `interface` of `ns`.
    ///
    /// # Errors
    /// What happened instead of a handshake.
    pub fn connect(ns: &Ns, interface: &str, me: SocketAddr, peer: SocketAddr, shape: Shape) -> Result<RawTcp, String> {
        let peer_mac = ns.run(|| resolve(peer.ip()))?;
        RawTcp::over(Link::open(ns, interface), peer_mac, me, peer, shape)
    }

    /// Connects over an open link to a peer whose MAC address is known.
    ///
    /// # Errors
    /// As [`RawTcp::connect`].
    pub fn over(
        link: Link,
        peer_mac: [u8; 6],
        me: SocketAddr,
        peer: SocketAddr,
        shape: Shape,
    ) -> Result<RawTcp, String> {
        let mut tcp = RawTcp {
            link,
            me,
            peer,
            mac: MAC,
            peer_mac,
            born: Instant::now(),
            next: fastrand::u32(..),
            unacked: 0,
            expected: 0,
            peer_clock: 0,
            offer: Offer::default(),
            received: Vec::new(),
            largest: 0,
            closed: false,
            shape,
        };
        tcp.handshake()?;
        Ok(tcp)
    }

    /// What the SYN-ACK offered.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The largest payload of one segment so far.
    #[must_use]
    pub fn largest_segment(&self) -> usize {
        self.largest
    }

    /// Sends `request` (one segment's worth) and waits for `octets` of answer in all.
    ///
    /// # Errors
    /// What came instead.
    pub fn ask(&mut self, request: &[u8], octets: usize) -> Result<Vec<u8>, String> {
        self.deliver(flags::PSH | flags::ACK, request, |tcp| tcp.received.len() >= octets)?;
        Ok(self.received.drain(..octets).collect())
    }

    /// Waits for data without sending any.
    ///
    /// # Errors
    /// What came instead.
    pub fn wait_for(&mut self, octets: usize) -> Result<Vec<u8>, String> {
        self.until("data", |tcp| tcp.received.len() >= octets)?;
        Ok(self.received.drain(..octets).collect())
    }

    /// Closes and waits for the other side's FIN.
    ///
    /// # Errors
    /// What came instead.
    pub fn close(mut self) -> Result<(), String> {
        self.deliver(flags::FIN | flags::ACK, &[], |tcp| tcp.closed)
    }

    /// Sends a segment as often as needed until it is acknowledged and `done`.
    fn deliver(&mut self, flags: u8, payload: &[u8], done: impl Fn(&RawTcp) -> bool) -> Result<(), String> {
        let seq = self.next;
        let length = u32::try_from(payload.len()).expect("short") + u32::from(flags & flags::FIN != 0);
        self.next = seq.wrapping_add(length);
        let deadline = Instant::now() + PATIENCE;
        while self.unacked != self.next || !done(self) {
            if Instant::now() >= deadline {
                return Err(format!(
                    "no answer: {} of {length} octets acknowledged, {} octets received, closed {}",
                    self.unacked.wrapping_sub(seq),
                    self.received.len(),
                    self.closed
                ));
            }
            if self.unacked != self.next {
                self.send(flags, seq, payload);
            }
            let repeat = Instant::now() + REPEAT;
            while Instant::now() < repeat && (self.unacked != self.next || !done(self)) {
                self.step()?;
            }
        }
        Ok(())
    }

    fn until(&mut self, what: &str, done: impl Fn(&RawTcp) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            if Instant::now() >= deadline {
                return Err(format!("no {what}; {} octets received", self.received.len()));
            }
            self.step()?;
        }
        Ok(())
    }

    fn handshake(&mut self) -> Result<(), String> {
        let isn = self.next;
        let deadline = Instant::now() + PATIENCE;
        let mut due = Instant::now();
        loop {
            if Instant::now() >= deadline {
                return Err("no SYN-ACK".to_owned());
            }
            if Instant::now() >= due {
                due = Instant::now() + REPEAT;
                let options = self.shape.options(self.clock());
                let (flags, payload) = (flags::SYN | self.shape.flags, self.shape.payload.clone());
                self.emit(flags, isn, 0, &options, &payload);
            }
            let Some(arrived) = self.receive() else { continue };
            if arrived.rst {
                return Err("the SYN was answered with RST".to_owned());
            }
            let took = arrived.ack.wrapping_sub(isn.wrapping_add(1));
            if !arrived.syn || took as usize > self.shape.payload.len() {
                continue;
            }
            self.offer = Offer { took, ..arrived.offer };
            self.unacked = arrived.ack;
            self.expected = arrived.seq.wrapping_add(1);
            break;
        }
        let rest = self.shape.payload.split_off(self.offer.took as usize);
        self.next = self.unacked;
        if rest.is_empty() {
            self.send(flags::ACK, self.next, &[]);
            return Ok(());
        }
        // The payload travels again, now on an established connection.
        self.deliver(flags::PSH | flags::ACK, &rest, |_| true)
    }

    /// Takes one frame and answers it.
    fn step(&mut self) -> Result<(), String> {
        let Some(arrived) = self.receive() else { return Ok(()) };
        if arrived.rst {
            return Err(format!("RST after {} octets", self.received.len()));
        }
        if self.next.wrapping_sub(arrived.ack) <= self.next.wrapping_sub(self.unacked) {
            self.unacked = arrived.ack;
        }
        self.largest = self.largest.max(arrived.payload.len());
        let occupies = !arrived.payload.is_empty() || arrived.fin || arrived.syn;
        if arrived.seq == self.expected && !arrived.syn {
            self.expected = self.expected.wrapping_add(arrived.payload.len() as u32 + u32::from(arrived.fin));
            self.received.extend_from_slice(&arrived.payload);
            self.closed |= arrived.fin;
            if let Some(clock) = arrived.clock {
                self.peer_clock = clock;
            }
        }
        if occupies {
            self.send(flags::ACK, self.next, &[]);
        }
        Ok(())
    }

    fn send(&mut self, flags: u8, seq: u32, payload: &[u8]) {
        let mut options = Vec::new();
        if self.shape.timestamps && self.offer.timestamps {
            options.extend_from_slice(&[1, 1]);
            options.extend_from_slice(&timestamps(self.clock(), self.peer_clock));
        }
        self.emit(flags, seq, self.expected, &options, payload);
    }

    fn emit(&mut self, flags: u8, seq: u32, ack: u32, options: &[u8], payload: &[u8]) {
        let segment = Segment {
            from_mac: self.mac,
            to_mac: self.peer_mac,
            from: self.me,
            to: self.peer,
            seq,
            ack,
            flags,
            window: self.shape.window,
            options,
            payload,
        };
        self.link.send(&segment.frame());
    }

    fn clock(&self) -> u32 {
        1_000_000 + u32::try_from(self.born.elapsed().as_millis()).unwrap_or(u32::MAX / 2)
    }

    /// The next segment of this connection, if one comes soon. Answers neighbours who ask for our MAC.
    fn receive(&mut self) -> Option<Arrived> {
        let frame = self.link.receive(Duration::from_millis(5))?.to_vec();
        let packet = SlicedPacket::from_ethernet(&frame).ok()?;
        if let Some(answer) = neighbour_answer(&packet, &frame, self.me.ip(), self.mac) {
            self.link.send(&answer);
            return None;
        }
        let (from, to): (IpAddr, IpAddr) = match &packet.net {
            Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            _ => return None,
        };
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
        let ours = SocketAddr::new(from, tcp.source_port()) == self.peer
            && SocketAddr::new(to, tcp.destination_port()) == self.me;
        ours.then(|| Arrived::new(tcp))
    }
}

/// A received segment.
struct Arrived {
    seq: u32,
    ack: u32,
    syn: bool,
    fin: bool,
    rst: bool,
    payload: Vec<u8>,
    offer: Offer,
    clock: Option<u32>,
}

impl Arrived {
    fn new(tcp: &TcpSlice<'_>) -> Arrived {
        let mut offer = Offer { ecn: tcp.ece(), ..Offer::default() };
        let mut clock = None;
        for option in tcp.options_iterator().flatten() {
            match option {
                TcpOptionElement::MaximumSegmentSize(mss) => offer.mss = Some(mss),
                TcpOptionElement::WindowScale(scale) => offer.wscale = Some(scale),
                TcpOptionElement::SelectiveAcknowledgementPermitted => offer.sack = true,
                TcpOptionElement::Timestamp(value, _) => {
                    offer.timestamps = true;
                    clock = Some(value);
                }
                _ => {}
            }
        }
        Arrived {
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            syn: tcp.syn(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            payload: tcp.payload().to_vec(),
            offer,
            clock,
        }
    }
}

/// The answer to "who has `me`?" in ARP or NDP; none when the frame asks something else.
fn neighbour_answer(packet: &SlicedPacket<'_>, frame: &[u8], me: IpAddr, mac: [u8; 6]) -> Option<Vec<u8>> {
    let asker: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    match (&packet.net, me) {
        (Some(NetSlice::Arp(arp)), IpAddr::V4(me)) => {
            if arp.operation().0 != 1 || arp.target_protocol_addr() != me.octets() {
                return None;
            }
            let header = Ethernet2Header { source: mac, destination: asker, ether_type: EtherType::ARP };
            let mut answer = header.to_bytes().to_vec();
            answer.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
            answer.extend_from_slice(&mac);
            answer.extend_from_slice(&me.octets());
            answer.extend_from_slice(arp.sender_hw_addr());
            answer.extend_from_slice(arp.sender_protocol_addr());
            Some(answer)
        }
        (Some(NetSlice::Ipv6(ip)), IpAddr::V6(me)) => {
            let message = frame.get(54..78)?;
            if frame[20] != 58 || message[0] != 135 || message[8..24] != me.octets() {
                return None;
            }
            let mut body = me.octets().to_vec();
            body.extend_from_slice(&[2, 1]);
            body.extend_from_slice(&mac);
            let builder = PacketBuilder::ethernet2(mac, asker).ipv6(me.octets(), ip.header().source(), 255).icmpv6_raw(
                136,
                0,
                [0x60, 0, 0, 0],
            );
            let mut answer = Vec::new();
            builder.write(&mut answer, &body).ok()?;
            Some(answer)
        }
        _ => None,
    }
}
