//! Both hosts' side of spliced sessions, for tests and benchmarks at scale: one stack, many clients, a layer below that keeps only
//! the last packet.

#![allow(dead_code, reason = "each user needs a part of it")]

use std::sync::Arc;
use std::time::Duration;

use sluice_config::Config;
use sluice_filters::addr::Addr;
use sluice_filters::engine::Engine;
use sluice_filters::testkit::{OUR_MAC, Opt, PEER_MAC, TcpBuilder, ethernet, tcp};
use sluice_filters::units::{Micros, PortId, ServiceId, WorkerId};
use sluice_filters::{DropReason, Flags, Parsed, RxChecksums, Segment, TcpOptions, parse};
use sluice_tcpstack::cookie::{Jar, SYN_ACK_MAX};
use sluice_tcpstack::counters::StackCounters;
use sluice_tcpstack::net::{Division, Lower, Owner, Reach, Route, Way};
use sluice_tcpstack::stack::{Arrival, Forward, Outcome, Setup, Shared, Stack};

/// Where clients connect.
pub const SERVICE: (Addr, u16) = (Addr::v4(0xc633_640a), 443);
/// Our address towards the upstreams.
const SOURCE: Addr = Addr::v4(0x0a00_0002);
/// Upstreams enough for a million source ports.
pub const UPSTREAMS: u32 = 20;
/// Clients that share an address.
const PORTS: u32 = 32;
/// Where the IP packet starts in a frame.
const L3: usize = 14;
/// Sessions that begin within one turn of the clock.
const PER_TURN: u32 = 256;
/// The longest frame.
const FRAME_MAX: usize = 1514;

/// The layer below: everything is reachable, and only the last packet is kept, behind an Ethernet header.
pub struct Wire {
    frame: [u8; FRAME_MAX],
    len: usize,
    pub sent: u64,
}

impl Wire {
    fn new() -> Wire {
        let mut frame = [0; FRAME_MAX];
        frame[..L3].copy_from_slice(&ethernet(PEER_MAC, OUR_MAC, None, 0x0800, &[]));
        Wire { frame, len: 0, sent: 0 }
    }

    /// The last packet, which must be the only one since `before`.
    fn only_since(&self, before: u64) -> (Segment, TcpOptions) {
        assert_eq!(self.sent, before + 1, "packets sent");
        self.last()
    }

    /// The last packet.
    fn last(&self) -> (Segment, TcpOptions) {
        read(&self.frame[..L3 + self.len])
    }
}

impl Lower for Wire {
    fn room(&self, _: Way) -> bool {
        true
    }

    fn send<R>(&mut self, _: Way, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        (self.sent, self.len) = (self.sent + 1, len);
        fill(&mut self.frame[L3..L3 + len])
    }

    fn route(&mut self, _: Addr) -> Option<Route> {
        Some(Route { way: Way::Neighbor { port: PortId(1), id: 0 }, source: SOURCE, mtu: 1500 })
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

/// A frame's segment and options; its checksums hold.
pub fn read(frame: &[u8]) -> (Segment, TcpOptions) {
    match parse(frame, RxChecksums::default()) {
        Ok(Parsed::Tcp(segment)) => (segment, segment.options(frame)),
        other => panic!("{other:?}"),
    }
}

/// What both ends of a session know. Each one's numbers are its own.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    pub client: (Addr, u16),
    pub client_isn: u32,
    pub client_stamp: u32,
    /// Our numbers towards the client.
    pub cookie: u32,
    pub our_stamp: u32,
    /// Where the upstream was dialled from.
    pub source: (Addr, u16),
    pub upstream: (Addr, u16),
    pub upstream_isn: u32,
    pub upstream_stamp: u32,
}

impl Session {
    /// A segment of the client's, its first payload octet's number `offset` octets into the connection.
    pub fn up(&self, offset: u32) -> TcpBuilder {
        tcp(self.client, SERVICE)
            .seq(self.client_isn.wrapping_add(1).wrapping_add(offset))
            .ack(self.cookie.wrapping_add(1))
            .options([Opt::Nop, Opt::Nop, Opt::Timestamp(self.client_stamp, self.our_stamp)])
    }

    /// A segment of the upstream's.
    pub fn down(&self, offset: u32) -> TcpBuilder {
        tcp(self.upstream, self.source)
            .seq(self.upstream_isn.wrapping_add(1).wrapping_add(offset))
            .ack(self.client_isn.wrapping_add(1))
            .options([Opt::Nop, Opt::Nop, Opt::Timestamp(self.upstream_stamp, self.client_stamp)])
    }
}

/// The configuration: everything spliced, everything promised, many upstreams. `scale` is the promised window scale.
pub fn config(connections: u32, scale: u8, upstreams: u32) -> Arc<Config> {
    let upstreams: String =
        (0..upstreams).map(|n| format!("[[service.upstream]]\naddress = \"10.0.1.{}:80\"\n", n + 1)).collect();
    let text = format!(
        r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24"]
gateway = "198.51.100.1"
[[port]]
name = "lan"
device = "net_null1"
addresses = ["10.0.0.2/8"]
[[service]]
name = "s"
listen = ["198.51.100.10:443"]
mode = "splice"
limits = {{ connections = {connections}, share = 100 }}
promise = {{ probe = "0s", mss = 1460, window_scale = {scale}, sack = true, timestamps = true }}
{upstreams}"#
    );
    Arc::new(sluice_config::parse("spliced.toml", &text).unwrap_or_else(|errors| panic!("{errors}")))
}

/// One worker's stack, and its layers below.
pub struct Lab {
    pub stack: Stack,
    pub counters: Arc<StackCounters>,
    pub wire: Wire,
    pub now: Micros,
}

impl Lab {
    /// With [`config`].
    pub fn new(connections: u32, scale: u8) -> Lab {
        Lab::with(config(connections, scale, UPSTREAMS))
    }

    /// With this configuration.
    pub fn with(config: Arc<Config>) -> Lab {
        let counters = Arc::new(StackCounters::new(&config));
        let now = Micros(1_000_000);
        let stack = Stack::new(Setup {
            filters: Engine::of(&config).expect("no rules"),
            jar: Jar::new([7; 32], config.cookies.epoch),
            worker: WorkerId(0),
            counters: counters.clone(),
            shared: Arc::new(Shared::new(&config, [1, 2], 16, Arc::default())),
            entropy: [3; 48],
            mtus: vec![1500, 1500],
            now,
            config,
        });
        Lab { stack, counters, wire: Wire::new(), now }
    }

    /// A turn of the worker's, a millisecond later.
    pub fn turn(&mut self) {
        self.now.0 += 1_000;
        self.stack.begin_turn(self.now, Duration::from_micros(self.now.0));
        self.stack.run_timers(self.now, 256, &mut self.wire);
        self.stack.publish(self.now);
    }

    /// Gives a frame to the stack.
    pub fn receive(&mut self, frame: &mut [u8], service: bool) -> Result<Outcome, DropReason> {
        let (segment, _) = read(frame);
        let hash = self.stack.hash(&segment.key);
        let arrival = Arrival { port: PortId(u8::from(!service)), mac: PEER_MAC, unfinished: false };
        let service = service.then_some(ServiceId(0));
        self.stack.segment(&segment, frame, hash, arrival, service, self.now, &mut self.wire)
    }

    /// A frame's way through its session; what leaves, as a frame.
    pub fn forwarded(&mut self, mut frame: Vec<u8>, from_client: bool) -> Vec<u8> {
        match self.receive(&mut frame, from_client) {
            Ok(Outcome::Forward) => {
                let start = write_ip(self.stack.forward(), &mut frame);
                assert_eq!(start, L3);
                frame
            }
            other => panic!("{other:?}"),
        }
    }

    /// The whole handshake of client number `n`, up to its ACK with the cookie.
    pub fn knock(&mut self, n: u32) -> (Session, Vec<u8>) {
        if n.is_multiple_of(PER_TURN) {
            self.turn();
        }
        self.knock_from((Addr::v4(0x0b00_0000 + n / PORTS), (40_000 + n % PORTS) as u16), n)
    }

    /// The same from this address, with the numbers of client number `n`.
    pub fn knock_from(&mut self, client: (Addr, u16), n: u32) -> (Session, Vec<u8>) {
        let client_isn = n.wrapping_mul(0x9e37_79b1);
        let client_stamp = n.wrapping_mul(7_919);
        let syn = tcp(client, SERVICE).flags(Flags::SYN).seq(client_isn).options([
            Opt::Mss(1460),
            Opt::SackPermitted,
            Opt::Timestamp(client_stamp, 0),
            Opt::Nop,
            Opt::WindowScale(14),
        ]);
        let mut frame = syn.build();
        let (segment, _) = read(&frame);
        frame.resize(frame.len().max(SYN_ACK_MAX), 0);
        let len = self.stack.answer_syn(&mut frame, &segment, ServiceId(0), PortId(0), OUR_MAC).unwrap();
        let (answer, options) = read(&frame[..len]);
        let session = Session {
            client,
            client_isn,
            client_stamp,
            cookie: answer.seq.0,
            our_stamp: options.timestamp.unwrap().0,
            source: (SOURCE, 0),
            upstream: (SOURCE, 0),
            upstream_isn: n.wrapping_mul(0x85eb_ca6b),
            upstream_stamp: n.wrapping_mul(104_729),
        };
        (session, session.up(0).build())
    }

    /// Opens the session of client number `n`: the client's handshake, the dial, and its answer.
    pub fn open(&mut self, n: u32) -> Session {
        let knocked = self.knock(n);
        self.dialled(knocked)
    }

    /// Opens the session of a client that has knocked.
    pub fn dialled(&mut self, (mut session, mut ack): (Session, Vec<u8>)) -> Session {
        assert_eq!(self.receive(&mut ack, true), Ok(Outcome::Consumed));
        // A RST may have gone before it.
        let (dial, offered) = self.wire.last();
        assert!(dial.flags.is_initial_syn() && dial.seq.0 == session.client_isn, "{dial:?}");
        assert_eq!((offered.mss, offered.wscale, offered.sack_permitted), (Some(1460), Some(14), true));
        session.source = (dial.key.src, dial.key.src_port);
        session.upstream = (dial.key.dst, dial.key.dst_port);
        let mut accepts = tcp(session.upstream, session.source)
            .flags(Flags::SYN | Flags::ACK)
            .seq(session.upstream_isn)
            .ack(dial.seq.0.wrapping_add(1))
            .options([
                Opt::Mss(1460),
                Opt::SackPermitted,
                Opt::Timestamp(session.upstream_stamp, session.client_stamp),
                Opt::Nop,
                Opt::WindowScale(14),
            ])
            .build();
        let before = self.wire.sent;
        assert_eq!(self.receive(&mut accepts, false), Ok(Outcome::Consumed));
        let (ack, _) = self.wire.only_since(before);
        assert_eq!((ack.seq.0, ack.ack.0), (dial.seq.0.wrapping_add(1), session.upstream_isn.wrapping_add(1)));
        session
    }
}

/// Writes a forwarded segment's IP header in front of it; where that begins.
pub fn write_ip(forward: &Forward, frame: &mut [u8]) -> usize {
    let start = forward.l4 - forward.ip.size();
    forward.ip.write(&mut frame[start..]);
    start
}
