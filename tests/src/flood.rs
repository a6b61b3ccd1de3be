//! Bounded floods of SYNs, ACKs, RSTs or malformed frames out of one interface, counted and paced.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use fastrand::Rng;
use serde::Serialize;

use crate::frames::{Segment, flags};
use crate::link::Link;
use crate::malformed;

/// Different frames in a flood; they are built before it begins and repeat after that many.
const VARIETY: usize = 16_384;

/// What a flood consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// SYNs as a kernel sends them.
    Syn,
    /// ACKs that belong to nothing.
    Ack,
    /// RSTs that belong to nothing.
    Rst,
    /// The corpus of broken frames, over and over.
    Malformed,
}

/// A flood to send.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// What it consists of.
    pub kind: Kind,
    /// The service it is aimed at.
    pub to: SocketAddr,
    /// Ethernet source.
    pub from_mac: [u8; 6],
    /// Ethernet destination.
    pub to_mac: [u8; 6],
    /// Frames.
    pub count: u64,
    /// Frames per second; 0 = as fast as they go.
    pub rate: u32,
    /// Seed of sources, ports and numbers.
    pub seed: u64,
}

/// What a flood did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What it consisted of.
    pub kind: Kind,
    /// Frames the interface took.
    pub sent: u64,
    /// Frames it refused.
    pub refused: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Flood {
    /// Sends it out of `link`.
    #[must_use]
    pub fn run(&self, link: &mut Link) -> Report {
        let frames = self.frames();
        let mut report = Report { kind: self.kind, sent: 0, refused: 0, seconds: 0.0 };
        let began = Instant::now();
        for (number, frame) in (0..self.count).zip(frames.iter().cycle()) {
            if self.rate > 0 && number % 32 == 0 {
                let due = Duration::from_secs_f64(number as f64 / f64::from(self.rate));
                thread::sleep(due.saturating_sub(began.elapsed()));
            }
            if link.send(frame) {
                report.sent += 1;
            } else {
                report.refused += 1;
            }
        }
        report.seconds = began.elapsed().as_secs_f64();
        report
    }

    fn frames(&self) -> Vec<Vec<u8>> {
        let mut random = Rng::with_seed(self.seed);
        let flags = match self.kind {
            Kind::Syn => flags::SYN,
            Kind::Ack => flags::ACK,
            Kind::Rst => flags::RST,
            Kind::Malformed => return self.malformed(),
        };
        let variety = usize::try_from(self.count).unwrap_or(VARIETY).min(VARIETY);
        (0..variety).map(|_| self.segment(flags, &mut random)).collect()
    }

    fn segment(&self, flags: u8, random: &mut Rng) -> Vec<u8> {
        let source: IpAddr = match self.to {
            // 11/8 to 126/8: unicast, not private, not this lab's.
            SocketAddr::V4(_) => Ipv4Addr::from(random.u32(11 << 24..126 << 24)).into(),
            SocketAddr::V6(_) => Ipv6Addr::from((0x2001_0db8_000f_u128 << 80) | u128::from(random.u64(1..))).into(),
        };
        let syn = flags == flags::SYN;
        Segment {
            from_mac: self.from_mac,
            to_mac: self.to_mac,
            from: SocketAddr::new(source, random.u16(1024..)),
            to: self.to,
            seq: random.u32(..),
            ack: if syn { 0 } else { random.u32(..) },
            flags,
            window: 64_240,
            options: if syn { &[2, 4, 5, 180, 4, 2, 1, 3, 3, 7] } else { &[] },
            payload: &[],
        }
        .frame()
    }

    fn malformed(&self) -> Vec<Vec<u8>> {
        let port = self.to.port();
        let (v4, v6) = match self.to.ip() {
            IpAddr::V4(v4) => (v4, v4.to_ipv6_compatible()),
            IpAddr::V6(v6) => (Ipv4Addr::new(192, 0, 2, 1), v6),
        };
        let v6 = if self.to.is_ipv4() { crate::lab::SERVICE6 } else { v6 };
        malformed::corpus(self.from_mac, self.to_mac, (v4, port).into(), (v6, port).into(), Ipv4Addr::new(192, 0, 2, 9))
            .into_iter()
            .map(|broken| broken.frame)
            .collect()
    }
}

/// The MAC address behind `address`, as the kernel of the calling thread's namespace resolves it.
///
/// # Errors
/// When nobody answers within three seconds.
pub fn resolve(address: IpAddr) -> Result<[u8; 6], String> {
    let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0".parse() } else { "[::]:0".parse() }.expect("an address");
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        // One datagram to the discard port makes the kernel ask.
        UdpSocket::bind(any)
            .and_then(|socket| socket.send_to(&[0], (address, 9)))
            .map_err(|error| format!("cannot reach {address}: {error}"))?;
        let shown = Command::new("ip").args(["neigh", "show", &address.to_string()]).output();
        let shown = shown.map_err(|error| format!("cannot run ip: {error}"))?;
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        if let Some(mac) = text.split_once("lladdr ").and_then(|(_, rest)| rest.split_whitespace().next()) {
            return parse_mac(mac).ok_or_else(|| format!("not a MAC address: {mac}"));
        }
        if Instant::now() >= deadline {
            return Err(format!("nobody answers for {address}"));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Reads `aa:bb:cc:dd:ee:ff`.
#[must_use]
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let octets: Vec<u8> = text.split(':').map(|octet| u8::from_str_radix(octet, 16).ok()).collect::<Option<_>>()?;
    octets.try_into().ok()
}
