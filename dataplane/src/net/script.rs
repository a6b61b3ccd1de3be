//! What the tests of this directory share: a two-arm and a one-arm appliance, a clock, frames to hand in, readers for
//! frames that come out.

use sluice_filters::addr::Addr;
use sluice_filters::testkit::{self, OUR_MAC, PEER_MAC};
use sluice_filters::units::{Micros, PortId};
use sluice_filters::{DropReason, Parsed, RxChecksums, checksum, parse};

use super::{Learned, Net, NetAction, REPLY_ROOM};

pub const WAN: PortId = PortId(0);
pub const LAN: PortId = PortId(1);
pub const WAN_MAC: [u8; 6] = OUR_MAC;
pub const LAN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x03];
pub const PEER: [u8; 6] = PEER_MAC;
pub const OTHER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
pub const ALL: [u8; 6] = [0xff; 6];

/// `wan` is untagged and holds two services, 203.0.113.10 and 2001:db8:f::10 are routed to us; `lan` has tag 5.
const TWO_ARM: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24", "2001:db8::2/64"]
gateway = ["198.51.100.1", "2001:db8::1"]
[[port]]
name = "lan"
device = "net_null1"
addresses = ["10.0.0.2/24", "fd00::2/64"]
vlan = 5
mtu = 9000
[[route]]
to = "10.9.0.0/16"
via = "10.0.0.1"
port = "lan"
[[service]]
name = "web"
listen = ["198.51.100.10:443", "[2001:db8::10]:443", "203.0.113.10:443", "[2001:db8:f::10]:443"]
source = ["10.0.0.20"]
[[service.upstream]]
address = "10.0.0.5:443"
[filters]
icmp_rate = 20
"#;

const ONE_ARM: &str = r#"
[[port]]
name = "one"
device = "net_null0"
addresses = ["198.51.100.2/24", "10.0.0.2/24"]
gateway = ["198.51.100.1"]
[[service]]
name = "web"
listen = ["198.51.100.10:443"]
[[service.upstream]]
address = "10.0.0.5:443"
"#;

pub fn ip(text: &str) -> Addr {
    Addr::from(text.parse::<std::net::IpAddr>().unwrap())
}

pub struct Script {
    pub net: Net,
    pub now: Micros,
    /// What the other workers would be told.
    pub told: Vec<Learned>,
}

impl Script {
    pub fn two_arm() -> Script {
        Script::of(TWO_ARM, &[WAN_MAC, LAN_MAC])
    }

    pub fn one_arm() -> Script {
        Script::of(ONE_ARM, &[WAN_MAC])
    }

    pub fn of(config: &str, macs: &[[u8; 6]]) -> Script {
        let config = sluice_config::parse("test.toml", config).unwrap_or_else(|e| panic!("{e}"));
        Script { net: Net::new(&config, macs), now: Micros(1_000_000), told: Vec::new() }
    }

    pub fn wait_ms(&mut self, ms: u64) -> &mut Script {
        self.now.0 += ms * 1000;
        self
    }

    /// Hands in a frame as the worker would: ARP as it came, others with room for any answer. The reply, if there is one.
    pub fn rx(&mut self, port: PortId, frame: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
        let parsed = parse(frame, RxChecksums::default())?;
        let room = if matches!(parsed, Parsed::Arp(_)) { 0 } else { REPLY_ROOM };
        self.serve(port, frame, frame.len().max(room), parsed)
    }

    /// The same with a buffer of `room` octets.
    pub fn serve(
        &mut self,
        port: PortId,
        frame: &[u8],
        room: usize,
        parsed: Parsed,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let mut buffer = vec![0xee; room]; // what was in the buffer before
        buffer[..frame.len()].copy_from_slice(frame);
        let told = &mut self.told;
        let mut learned = |l| told.push(l);
        let action = match parsed {
            Parsed::Arp(l2) => self.net.arp(port, &mut buffer, l2, self.now, &mut learned),
            Parsed::Icmp(packet) => self.net.icmp(port, &mut buffer, &packet, self.now),
            Parsed::Icmp6(packet) => self.net.icmp6(port, &mut buffer, &packet, self.now, &mut learned),
            Parsed::Tcp(_) => panic!("not for these layers"),
        };
        action.map(|action| match action {
            NetAction::Reply(len) => Some(buffer[..len].to_vec()),
            NetAction::Consumed => None,
        })
    }

    pub fn poll(&mut self) -> Vec<(PortId, Vec<u8>)> {
        let mut sent = Vec::new();
        self.net.poll(self.now, &mut |port, frame| sent.push((port, frame.to_vec())));
        sent
    }
}

/// An ARP packet's variable fields, in wire order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    pub op: u16,
    pub sha: [u8; 6],
    pub spa: Addr,
    pub tha: [u8; 6],
    pub tpa: Addr,
}

impl Arp {
    pub fn request(spa: &str, tpa: &str) -> Arp {
        Arp { op: 1, sha: PEER, spa: ip(spa), tha: [0; 6], tpa: ip(tpa) }
    }

    pub fn reply(spa: &str, tpa: &str, tha: [u8; 6]) -> Arp {
        Arp { op: 2, sha: PEER, spa: ip(spa), tha, tpa: ip(tpa) }
    }

    pub fn from(mut self, mac: [u8; 6]) -> Arp {
        self.sha = mac;
        self
    }

    pub fn packet(&self) -> Vec<u8> {
        let mut p = vec![0, 1, 8, 0, 6, 4];
        p.extend(self.op.to_be_bytes());
        p.extend(self.sha);
        p.extend(self.spa.v4_bits().to_be_bytes());
        p.extend(self.tha);
        p.extend(self.tpa.v4_bits().to_be_bytes());
        p
    }

    pub fn frame(&self, to: [u8; 6]) -> Vec<u8> {
        padded(testkit::ethernet(to, self.sha, None, 0x0806, &self.packet()))
    }

    pub fn tagged(&self, to: [u8; 6], vlan: u16) -> Vec<u8> {
        padded(testkit::ethernet(to, self.sha, Some(vlan), 0x0806, &self.packet()))
    }

    /// Reads a frame; `at` is where ARP starts.
    pub fn read(frame: &[u8], at: usize) -> Arp {
        assert_eq!(frame[at - 2..at], [8, 6], "not ARP");
        assert!(frame.len() >= 60, "shorter than Ethernet allows: {}", frame.len());
        assert!(frame[at + 28..].iter().all(|&b| b == 0), "padding is not zero");
        let p = &frame[at..];
        assert_eq!(p[..6], [0, 1, 8, 0, 6, 4]);
        let word = |i: usize| Addr::v4(u32::from_be_bytes(p[i..i + 4].try_into().unwrap()));
        Arp {
            op: u16::from_be_bytes([p[6], p[7]]),
            sha: p[8..14].try_into().unwrap(),
            spa: word(14),
            tha: p[18..24].try_into().unwrap(),
            tpa: word(24),
        }
    }
}

/// To Ethernet's minimum, with octets that are not zero.
fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(60, 0xdd);
    frame
}

/// An ICMPv6 frame with the right checksum; destination MAC as given.
pub fn icmp6(src: &str, dst: &str, hops: u8, to: [u8; 6], message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let check = checksum::icmp6_checksum(&message, ip(src), ip(dst));
    message[2..4].copy_from_slice(&check.to_be_bytes());
    testkit::ip(src, dst, 58).hop_limit(hops).dst_mac(to).payload(message).build()
}

/// A neighbour solicitation (135) or advertisement (136) without its checksum.
pub fn nd(kind: u8, flags: u8, target: &str, option: Option<(u8, [u8; 6])>) -> Vec<u8> {
    let mut m = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    m.extend(ip(target).octets());
    if let Some((kind, mac)) = option {
        m.extend([kind, 1]);
        m.extend(mac);
    }
    m
}

/// Puts a tag into an untagged frame.
pub fn tag(frame: &[u8], vlan: u16) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend([0x81, 0x00]);
    tagged.extend(vlan.to_be_bytes());
    tagged.extend(&frame[12..]);
    tagged
}

/// A neighbour discovery frame that came out, its checksum and hop limit verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nd {
    pub to: [u8; 6],
    pub from: [u8; 6],
    pub src: Addr,
    pub dst: Addr,
    pub kind: u8,
    pub flags: u8,
    pub target: Addr,
    pub option: Option<(u8, [u8; 6])>,
}

impl Nd {
    pub fn read(frame: &[u8]) -> Nd {
        let Ok(Parsed::Icmp6(packet)) = parse(frame, RxChecksums::default()) else { panic!("not ICMPv6: {frame:?}") };
        let m = packet.message(frame);
        assert!(
            checksum::pseudo_header(packet.src, packet.dst, 58, m.len()).bytes(m).is_valid(),
            "the checksum is wrong"
        );
        assert_eq!(packet.hop_limit, 255);
        assert_eq!(usize::from(packet.end), frame.len());
        let option = (m.len() > 24).then(|| {
            assert_eq!((m.len(), m[25]), (32, 1));
            (m[24], m[26..32].try_into().unwrap())
        });
        Nd {
            to: frame[..6].try_into().unwrap(),
            from: frame[6..12].try_into().unwrap(),
            src: packet.src,
            dst: packet.dst,
            kind: m[0],
            flags: m[4],
            target: Addr::v6(m[8..24].try_into().unwrap()),
            option,
        }
    }
}
