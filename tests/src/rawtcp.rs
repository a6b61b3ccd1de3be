//! A TCP in user space, for SYNs and segments no kernel would send.
//!
//! It stands on a [`Station`], takes data in order only, acknowledges each segment and repeats what is not acknowledged. It has no
//! congestion control: what it sends is short. Where a test wants each segment for itself, [`RawTcp::say`] and [`RawTcp::hear`]
//! leave everything to it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::frames::flags;
use crate::link::Link;
use crate::netns::Ns;
use crate::station::{Arrived, Say, Station};

/// How often unacknowledged segments are repeated.
const REPEAT: Duration = Duration::from_millis(250);

/// How long one look for a segment takes.
const POLL: Duration = Duration::from_millis(5);

/// How long any one step may take.
const PATIENCE: Duration = Duration::from_secs(8);

/// The raw client's MAC address.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
/// The raw server's MAC address.
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x78];

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
    /// Every IPv6 packet bears a fragment header, though it is whole.
    pub atomic: bool,
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
            atomic: false,
        }
    }

    /// As Linux: MSS 1460, SACK, timestamps, scale 7.
    #[must_use]
    pub fn usual() -> Shape {
        Shape { mss: Some(1460), wscale: Some(7), sack: true, timestamps: true, window: 502, ..Shape::plain() }
    }

    /// The options of its SYN, or of its SYN-ACK to one whose TSval is `echo`.
    fn options(&self, clock: u32, echo: u32) -> Vec<u8> {
        let mut options = Vec::new();
        if let Some(mss) = self.mss {
            options.extend_from_slice(&[2, 4]);
            options.extend_from_slice(&mss.to_be_bytes());
        }
        if self.sack {
            options.extend_from_slice(&[4, 2]);
        }
        if self.timestamps {
            options.extend_from_slice(&timestamps(clock, echo));
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

impl Offer {
    fn of(syn: &Arrived, took: u32) -> Offer {
        Offer { mss: syn.mss, wscale: syn.wscale, sack: syn.sack, timestamps: syn.clock.is_some(), ecn: syn.ece, took }
    }
}

/// An established connection.
pub struct RawTcp {
    station: Station,
    shape: Shape,
    born: Instant,
    /// Next number to send, all before it acknowledged or being repeated.
    next: u32,
    /// Oldest unacknowledged number.
    unacked: u32,
    /// Next number expected from the peer.
    expected: u32,
    peer_clock: u32,
    /// The peer's SYN or SYN-ACK.
    syn: Arrived,
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
        RawTcp::dial(Station::towards(ns, interface, MAC, me, peer)?, shape)
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
        RawTcp::dial(Station::over(link, MAC, me, (peer, peer_mac)), shape)
    }

    fn dial(station: Station, shape: Shape) -> Result<RawTcp, String> {
        let mut tcp = RawTcp::new(station, shape);
        tcp.handshake()?;
        Ok(tcp)
    }

    /// Answers `syn`, which `station` has just heard. Of the window scale, SACK and timestamps, it accepts what both know.
    #[must_use]
    pub fn accept(station: Station, syn: Arrived, shape: Shape) -> RawTcp {
        let shape = Shape {
            wscale: shape.wscale.filter(|_| syn.wscale.is_some()),
            sack: shape.sack && syn.sack,
            timestamps: shape.timestamps && syn.clock.is_some(),
            ..shape
        };
        let mut tcp = RawTcp::new(station, shape);
        tcp.offer = Offer::of(&syn, 0);
        tcp.expected = syn.seq.wrapping_add(1);
        tcp.peer_clock = syn.clock.map_or(0, |(value, _)| value);
        tcp.unacked = tcp.next.wrapping_add(1);
        tcp.syn = syn;
        tcp.say_syn_ack();
        tcp.next = tcp.unacked;
        tcp
    }

    /// Repeats the SYN-ACK of an accepted connection that has sent nothing yet.
    pub fn say_syn_ack(&mut self) {
        let options = self.shape.options(self.clock(), self.peer_clock);
        self.emit(flags::SYN | flags::ACK, self.unacked.wrapping_sub(1), self.syn.seq.wrapping_add(1), &options, &[]);
    }

    fn new(station: Station, shape: Shape) -> RawTcp {
        RawTcp {
            station,
            born: Instant::now(),
            next: fastrand::u32(..),
            unacked: 0,
            expected: 0,
            peer_clock: 0,
            syn: Arrived::default(),
            offer: Offer::default(),
            received: Vec::new(),
            largest: 0,
            closed: false,
            shape,
        }
    }

    /// The peer's SYN or SYN-ACK.
    #[must_use]
    pub fn syn(&self) -> &Arrived {
        &self.syn
    }

    /// Its own address and its peer's.
    #[must_use]
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.station.me(), self.station.peer())
    }

    /// The next number it sends, and the next it expects.
    #[must_use]
    pub fn numbers(&self) -> (u32, u32) {
        (self.next, self.expected)
    }

    /// Says one segment, and remembers nothing of it. Its timestamps, where they are in use, lie `clock_behind` milliseconds in
    /// the past.
    pub fn say(&mut self, flags: u8, seq: u32, ack: u32, payload: &[u8], clock_behind: u32) {
        let mut options = Vec::new();
        if self.shape.timestamps && self.syn.clock.is_some() {
            options.extend_from_slice(&[1, 1]);
            options.extend_from_slice(&timestamps(self.clock().wrapping_sub(clock_behind), self.peer_clock));
        }
        self.emit(flags, seq, ack, &options, payload);
    }

    /// Sends `payload` (one segment's worth) once and does not wait.
    pub fn push(&mut self, payload: &[u8]) {
        let seq = self.next;
        self.next = seq.wrapping_add(u32::try_from(payload.len()).expect("short"));
        self.send(flags::PSH | flags::ACK, seq, payload);
    }

    /// The next segment of its peer, which is not answered. Only its timestamp is remembered.
    pub fn hear(&mut self, patience: Duration) -> Option<Arrived> {
        let arrived = self.station.next(patience)?;
        if let Some((value, _)) = arrived.clock {
            self.peer_clock = value;
        }
        Some(arrived)
    }

    /// Sends `payload` (one segment's worth) and waits until it is acknowledged.
    ///
    /// # Errors
    /// What came instead.
    pub fn tell(&mut self, payload: &[u8]) -> Result<(), String> {
        self.deliver(flags::PSH | flags::ACK, payload, |_| true)
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

    /// Takes what comes for a time, answers it, sends nothing else.
    ///
    /// # Panics
    /// When the peer resets.
    pub fn say_nothing_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.step().unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// What it stands on, for the next connection.
    #[must_use]
    pub fn into_station(self) -> Station {
        self.station
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
                let options = self.shape.options(self.clock(), 0);
                let (flags, payload) = (flags::SYN | self.shape.flags, self.shape.payload.clone());
                self.emit(flags, isn, 0, &options, &payload);
            }
            let Some(arrived) = self.station.next(POLL) else { continue };
            if arrived.rst {
                return Err("the SYN was answered with RST".to_owned());
            }
            let took = arrived.ack.wrapping_sub(isn.wrapping_add(1));
            if !arrived.syn || took as usize > self.shape.payload.len() {
                continue;
            }
            self.offer = Offer::of(&arrived, took);
            self.unacked = arrived.ack;
            self.expected = arrived.seq.wrapping_add(1);
            self.peer_clock = arrived.clock.map_or(0, |(value, _)| value);
            self.syn = arrived;
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
        let Some(arrived) = self.station.next(POLL) else { return Ok(()) };
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
            if let Some((clock, _)) = arrived.clock {
                self.peer_clock = clock;
            }
        }
        if occupies {
            self.send(flags::ACK, self.next, &[]);
        }
        Ok(())
    }

    fn send(&mut self, flags: u8, seq: u32, payload: &[u8]) {
        self.say(flags, seq, self.expected, payload, 0);
    }

    fn emit(&mut self, flags: u8, seq: u32, ack: u32, options: &[u8], payload: &[u8]) {
        let Shape { window, atomic, .. } = self.shape;
        self.station.say(&Say { flags, seq, ack, window, options, payload, atomic });
    }

    fn clock(&self) -> u32 {
        1_000_000 + u32::try_from(self.born.elapsed().as_millis()).unwrap_or(u32::MAX / 2)
    }
}
