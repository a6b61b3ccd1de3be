//! What stands between the ends: the stack, driven as a worker drives it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_config::Config;
use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::engine::Engine;
use sluice_filters::icmp::{IcmpError, IcmpKind};
use sluice_filters::testkit::{OUR_MAC, PEER_MAC};
use sluice_filters::units::{Micros, PortId, Seq, ServiceId, WorkerId};
use sluice_filters::{DropReason, Parsed, RxChecksums, parse};
use sluice_tcpstack::cookie::{Jar, SYN_ACK_MAX};
use sluice_tcpstack::counters::StackCounters;
use sluice_tcpstack::net::{Division, Lower, Owner, Reach, Route, Way};
use sluice_tcpstack::record::SessionRecord;
use sluice_tcpstack::stack::{Arrival, Forward, Outcome, Setup, Shared, Stack};

use super::Time;
use super::plan::Modes;
use super::random::Random;
use super::wire::L3;

/// A service of the stack's, and the only upstream it has.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub splice: bool,
    pub header: HeaderKind,
    pub client_v4: bool,
    pub upstream_v4: bool,
    pub timestamps: bool,
    pub on_data: bool,
    pub scale: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderKind {
    Off,
    V1,
    V2,
}

/// Services of one stack. Few, since the first dial of each upstream looks at every port for every service.
pub const PLACES: usize = 8;

/// Services of all kinds; each seed has others.
pub fn places(random: &mut Random, modes: Modes) -> Vec<Place> {
    (0..PLACES)
        .map(|n| Place {
            splice: match modes {
                Modes::Both => n % 2 == 0,
                Modes::Splice => true,
                Modes::Terminate => false,
            },
            header: random.pick(&[HeaderKind::Off, HeaderKind::V1, HeaderKind::V2]),
            client_v4: random.percent(50),
            upstream_v4: random.percent(50),
            timestamps: random.percent(60),
            on_data: random.percent(15),
            scale: random.pick(&[0, 7, 7, 10, 14]),
        })
        .collect()
}

impl Place {
    /// Where the service that is number `n` listens.
    pub fn service(&self, n: usize) -> (Addr, u16) {
        (if self.client_v4 { Addr::v4(0xc633_640a) } else { v6(0x2001_0db8_0000_0000, 0x10) }, 1_000 + n as u16)
    }

    /// Where client number `n` connects from.
    pub fn client(&self, n: usize) -> (Addr, u16) {
        let address = if self.client_v4 { Addr::v4(0xcb00_7107) } else { v6(0x2001_0db8_0000_0001, 7) };
        (address, 10_000 + n as u16)
    }

    pub fn upstream(&self, n: usize) -> (Addr, u16) {
        let address = if self.upstream_v4 {
            Addr::v4(0x0a01_0000 + n as u32)
        } else {
            v6(0xfd00_0000_0000_0000, 0x1_0000 + n as u64)
        };
        (address, 80)
    }

    /// What the upstream finds in front of client `n`'s payload.
    pub fn header(&self, n: usize) -> Vec<u8> {
        let socket = |(address, port): (Addr, u16)| SocketAddr::new(address.to_ip(), port);
        let (client, service) = (socket(self.client(n)), socket(self.service(n % PLACES)));
        match self.header {
            HeaderKind::Off => Vec::new(),
            HeaderKind::V1 => {
                let family = if self.client_v4 { "TCP4" } else { "TCP6" };
                let (from, to) = (client.ip(), service.ip());
                format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), service.port()).into_bytes()
            }
            HeaderKind::V2 => {
                let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
                header.push(if self.client_v4 { 0x11 } else { 0x21 });
                header.extend(if self.client_v4 { 12_u16 } else { 36 }.to_be_bytes());
                for end in [client, service] {
                    match end.ip() {
                        std::net::IpAddr::V4(ip) => header.extend(ip.octets()),
                        std::net::IpAddr::V6(ip) => header.extend(ip.octets()),
                    }
                }
                header.extend(client.port().to_be_bytes());
                header.extend(service.port().to_be_bytes());
                header
            }
        }
    }
}

fn v6(hi: u64, lo: u64) -> Addr {
    Addr { hi, lo }
}

fn config(places: &[Place]) -> Arc<Config> {
    let mut text = String::from(
        r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24", "2001:db8::2/64"]
gateway = ["198.51.100.1", "2001:db8::1"]
[[port]]
name = "lan"
device = "net_null1"
addresses = ["10.0.0.2/8", "fd00::2/64"]
"#,
    );
    for (n, place) in places.iter().enumerate() {
        let socket = |(address, port): (Addr, u16)| SocketAddr::new(address.to_ip(), port);
        let header = match place.header {
            HeaderKind::Off => "off",
            HeaderKind::V1 => "v1",
            HeaderKind::V2 => "v2",
        };
        let mode = if place.splice { "splice" } else { "terminate" };
        let connect = if place.on_data { "on-data" } else { "on-accept" };
        text += &format!(
            "[[service]]\nname = \"s{n}\"\nlisten = [\"{}\"]\nmode = \"{mode}\"\nproxy_protocol = \"{header}\"\n\
             connect = \"{connect}\"\nlimits = {{ connections = 1000 }}\ntimeouts = {{ connect = \"1h\", \
             client_idle = \"5m\", upstream_idle = \"5m\", half_closed = \"10m\", unacknowledged = \"10m\" }}\n",
            socket(place.service(n))
        );
        if place.splice {
            text += &format!(
                "promise = {{ probe = \"0s\", mss = 1400, window_scale = {}, sack = true, timestamps = {} }}\n",
                place.scale, place.timestamps
            );
        }
        text += &format!("[[service.upstream]]\naddress = \"{}\"\n", socket(place.upstream(n)));
    }
    Arc::new(sluice_config::parse("model.toml", &text).unwrap_or_else(|errors| panic!("{errors}")))
}

/// Records that wait to be read.
const RECORDS: usize = 4096;

/// The layers below: everything is reachable, and what was sent is kept for the legs.
#[derive(Default)]
struct Below {
    sent: Vec<(Way, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
}

impl Below {
    /// A frame with room for `len` bytes of packet behind its Ethernet header.
    fn frame(&mut self, len: usize, v4: bool) -> Vec<u8> {
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.clear();
        frame.extend_from_slice(&OUR_MAC);
        frame.extend_from_slice(&PEER_MAC);
        frame.extend_from_slice(if v4 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
        frame.resize(L3 + len, 0xaa);
        frame
    }
}

impl Lower for Below {
    fn room(&self, _: Way) -> bool {
        true
    }

    fn send<R>(&mut self, way: Way, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut frame = self.frame(len, true);
        let result = fill(&mut frame[L3..]);
        if frame[L3] >> 4 == 6 {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        }
        self.sent.push((way, frame));
        result
    }

    fn route(&mut self, dst: Addr) -> Option<Route> {
        let source = if dst.is_v4() { Addr::v4(0x0a00_0002) } else { v6(0xfd00_0000_0000_0000, 2) };
        Some(Route { way: Way::Neighbor { port: PortId(1), id: 0 }, source, mtu: 1500 })
    }

    fn reach(&mut self, _: Way) -> Reach {
        Reach::Known
    }

    fn division(&self, _: (Addr, u16), _: Addr) -> Division {
        Division { port: PortId(0), v4: true, word: 0 }
    }

    fn owner(&self, _: &Division, _: u16) -> Owner {
        Owner { node: 0, worker: WorkerId(0) }
    }
}

/// The stack, and what it shares with the control plane.
pub struct Sluice {
    pub stack: Stack,
    shared: Arc<Shared>,
    below: Below,
    services: HashMap<(Addr, u16), ServiceId>,
    now: Micros,
}

impl Sluice {
    pub fn new(now: Time, places: &[Place]) -> Sluice {
        let config = config(places);
        let services = places.iter().enumerate().map(|(n, place)| (place.service(n), ServiceId(n as u16))).collect();
        let shared = Arc::new(Shared::new(&config, [1, 2], RECORDS, Arc::default()));
        let now = Micros(now);
        let stack = Stack::new(Setup {
            filters: Engine::of(&config).expect("no rules"),
            jar: Jar::new([7; 32], config.cookies.epoch),
            worker: WorkerId(0),
            counters: Arc::new(StackCounters::new(&config)),
            shared: shared.clone(),
            entropy: [3; 48],
            mtus: vec![1500, 1500],
            now,
            config,
        });
        Sluice { stack, shared, below: Below::default(), services, now }
    }

    /// Begins a turn, and does what time asks for.
    pub fn turn(&mut self, now: Time) {
        let now = Micros(now);
        if now.0 / 1_000 != self.now.0 / 1_000 {
            self.stack.begin_turn(now, Duration::from_micros(now.0));
            self.stack.run_timers(now, 256, &mut self.below);
            self.stack.serve(now, &mut self.below);
        }
        self.now = now;
    }

    /// Gives a frame to the stack, as a worker does.
    pub fn receive(&mut self, frame: &mut Vec<u8>, from_client: bool) -> Result<(), DropReason> {
        let segment = match parse(frame, RxChecksums::GOOD)? {
            Parsed::Tcp(segment) => segment,
            other => panic!("the model sends only TCP, not {other:?}"),
        };
        let key = segment.key;
        let service = self.services.get(&(key.dst, key.dst_port)).copied();
        let port = PortId(u8::from(!from_client));
        if let (Some(service), true) = (service, segment.flags.is_initial_syn()) {
            frame.resize(frame.len().max(SYN_ACK_MAX), 0);
            let len = self.stack.answer_syn(frame, &segment, service, port, OUR_MAC)?;
            frame.truncate(len);
            let answer = std::mem::take(frame);
            self.below.sent.push((Way::Reply { port, mac: PEER_MAC }, answer));
            return Ok(());
        }
        let hash = self.stack.hash(&key);
        let arrival = Arrival { port, mac: PEER_MAC, unfinished: false };
        let outcome = self.stack.segment(&segment, frame, hash, arrival, service, self.now, &mut self.below)?;
        if outcome == Outcome::Forward {
            let Forward { way, l4, ip } = *self.stack.forward();
            let size = ip.size();
            let mut out = self.below.frame(size, size == 20);
            ip.write(&mut out[L3..]);
            out.extend_from_slice(&frame[l4..l4 + usize::from(ip.len)]);
            self.below.sent.push((way, out));
        }
        Ok(())
    }

    /// Gives an ICMP error about a segment that the stack sent along the reverse of `key`.
    pub fn icmp(&mut self, key: FlowKey, kind: IcmpKind, number: u32, len: u16) -> Result<(), DropReason> {
        let hash = self.stack.hash(&key);
        let error = IcmpError { kind, key, seq: Seq(number), len };
        let port = PortId(u8::from(!self.services.contains_key(&(key.dst, key.dst_port))));
        self.stack.icmp_error(&error, hash, port, self.now, &mut self.below)
    }

    /// Serves the sessions that were touched, and hands out what was sent: whether towards a client, and the frame.
    pub fn sent(&mut self, out: &mut Vec<(bool, Vec<u8>)>) {
        self.stack.serve(self.now, &mut self.below);
        out.extend(
            self.below.sent.drain(..).map(|(way, frame)| (matches!(way, Way::Reply { port: PortId(0), .. }), frame)),
        );
    }

    /// Takes a frame's buffer back.
    pub fn recycle(&mut self, frame: Vec<u8>) {
        if self.below.spare.len() < 64 {
            self.below.spare.push(frame);
        }
    }

    pub fn record(&mut self) -> Option<SessionRecord> {
        self.shared.records.pop()
    }
}
