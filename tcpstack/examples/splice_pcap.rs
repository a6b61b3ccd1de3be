//! Writes two captures that put a spliced service under load, for two ports of `net_pcap` and nobody behind them:
//! `splice_pcap SEED_FILE FLOWS SIZE FRAMES REPLAY OPEN`.
//!
//! OPEN, for the upstreams' port and to be played once, opens the sessions: the ACKs of FLOWS clients' handshakes, in random order and
//! with cookies of this hour's under the seed; what ARP answers for the gateway; and then a SYN-ACK to every source port that the
//! appliance may have dialled from. The clients all begin with one sequence number, so each dial finds its answer among them.
//!
//! REPLAY, for the clients' port and `infinite_rx=1`, holds FRAMES segments with SIZE octets of payload and timestamps, of random clients,
//! or one of each when there are as many. Each lies in its session's first window, so its copies pass as retransmissions for as long as
//! the upstream acknowledges nothing. None opens a session, since its number is not the handshake's.
//!
//! `scripts/bench.sh` has the configuration that goes with it.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_filters::Flags;
use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::testkit::{self, Opt, TcpBuilder, tcp};
use sluice_filters::units::Seq;
use sluice_tcpstack::cookie::{Jar, Offer};

/// 198.51.100.10
const SERVICE: (Addr, u16) = (Addr::v4(0xc633_640a), 443);
/// 10.0.0.2 dials, by the gateway 10.0.0.1, 172.16.0.1 and those that follow it.
const SOURCE: [u8; 4] = [10, 0, 0, 2];
const GATEWAY: [u8; 4] = [10, 0, 0, 1];
const FIRST_UPSTREAM: u32 = 0xac10_0001;
const UPSTREAM_PORT: u16 = 80;
/// Sessions of one upstream's: a few less than there are source ports.
const SESSIONS_MAX: u32 = 62_500;
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 1_024..=u16::MAX;
/// What DPDK gives to `net_pcap0` and `net_pcap1`.
const CLIENTS_MAC: [u8; 6] = [0x02, 0x70, 0x63, 0x61, 0x70, 0x00];
const UPSTREAMS_MAC: [u8; 6] = [0x02, 0x70, 0x63, 0x61, 0x70, 0x01];
/// `cookies.epoch`
const EPOCH: Duration = Duration::from_secs(3_600);
/// The clients' first number, and how far the payload lies from where a handshake ends.
const ISN: Seq = Seq(0x1234_5678);
const AHEAD: u32 = 1_000;
/// ARP answers once in so many frames, and SYN-ACKs so many times.
const ARP_EVERY: usize = 64;
const TIMES: usize = 2;

/// A small generator with a fixed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as u32 % limit.max(1)
    }

    /// The numbers below `limit`, in random order.
    fn shuffled(&mut self, limit: u32) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..limit).collect();
        for last in (1..limit).rev() {
            numbers.swap(last as usize, self.below(last + 1) as usize);
        }
        numbers
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: splice_pcap SEED_FILE FLOWS SIZE FRAMES REPLAY OPEN";
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or(usage);
    let mut jar = Jar::new(sluice_config::read_seed(Path::new(&next()?))?, EPOCH);
    jar.tick(SystemTime::now().duration_since(UNIX_EPOCH)?);
    let (flows, size, frames): (u32, u16, u32) = (next()?.parse()?, next()?.parse()?, next()?.parse()?);
    let (replay, open) = (File::create(next()?)?, File::create(next()?)?);

    let mut random = Random(1);
    let mut out = Capture::begin(open)?;
    for (n, sent) in random.shuffled(flows).into_iter().zip(1..) {
        out.write(&from_client(&jar, n, 0).dst_mac(UPSTREAMS_MAC).build())?;
        if sent % ARP_EVERY == 0 || sent == flows as usize {
            out.write(&arp_answer())?;
        }
    }
    for _ in 0..TIMES {
        for upstream in 0..flows.div_ceil(SESSIONS_MAX) {
            for port in SOURCE_PORTS {
                out.write(&syn_ack(Addr::v4(FIRST_UPSTREAM + upstream), port))?;
            }
        }
    }
    out.end()?;

    let replayed =
        if frames == flows { random.shuffled(flows) } else { (0..frames).map(|_| random.below(flows)).collect() };
    let payload = vec![0x5a; usize::from(size)];
    let mut out = Capture::begin(replay)?;
    for n in replayed {
        out.write(&from_client(&jar, n, AHEAD).payload(&payload).dst_mac(CLIENTS_MAC).pad_to(60).build())?;
    }
    out.end()
}

/// A segment of client number `n`, `ahead` octets behind its handshake.
fn from_client(jar: &Jar, n: u32, ahead: u32) -> TcpBuilder {
    let client = (Addr::v4(0x0b00_0000 + n / 32), (40_000 + n % 32) as u16);
    let key = FlowKey { src: client.0, dst: SERVICE.0, src_port: client.1, dst_port: SERVICE.1 };
    let cookie = jar.mint(&key, ISN, Offer { mss: 1460, wscale: Some(7), sack: true });
    tcp(client, SERVICE).flags(Flags::ACK).seq(ISN.plus(1).plus(ahead).0).ack(cookie.plus(1).0).window(512).options([
        Opt::Nop,
        Opt::Nop,
        Opt::Timestamp(n, 1),
    ])
}

/// An upstream's SYN-ACK to the source port `port`.
fn syn_ack(upstream: Addr, port: u16) -> Vec<u8> {
    let ours = std::net::Ipv4Addr::from(SOURCE);
    tcp((upstream, UPSTREAM_PORT), (std::net::IpAddr::from(ours), port))
        .flags(Flags::SYN | Flags::ACK)
        .seq(0x8765_4321)
        .ack(ISN.plus(1).0)
        .options([Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(1, 1), Opt::Nop, Opt::WindowScale(7)])
        .dst_mac(UPSTREAMS_MAC)
        .build()
}

/// Where the gateway is (RFC 826).
fn arp_answer() -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 2];
    body.extend(testkit::PEER_MAC);
    body.extend(GATEWAY);
    body.extend(UPSTREAMS_MAC);
    body.extend(SOURCE);
    testkit::ethernet(UPSTREAMS_MAC, testkit::PEER_MAC, None, 0x0806, &body)
}

/// A capture in the classic format.
struct Capture(BufWriter<File>);

impl Capture {
    fn begin(file: File) -> Result<Capture, Box<dyn Error>> {
        let mut out = BufWriter::new(file);
        // Magic, version 2.4, UTC, no accuracy, snap length, Ethernet.
        for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65_535, 1_u32] {
            out.write_all(&word.to_le_bytes())?;
        }
        Ok(Capture(out))
    }

    fn write(&mut self, frame: &[u8]) -> Result<(), Box<dyn Error>> {
        let len = u32::try_from(frame.len())?;
        for word in [0, 0, len, len] {
            self.0.write_all(&word.to_le_bytes())?;
        }
        Ok(self.0.write_all(frame)?)
    }

    fn end(mut self) -> Result<(), Box<dyn Error>> {
        Ok(self.0.flush()?)
    }
}
