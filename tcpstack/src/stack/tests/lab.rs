//! A client, the stack and a server: hosts are smoltcp's own, on a wire that loses, or made by hand where a rule needs a peer that
//! breaks it.

use std::collections::VecDeque;

use sluice_filters::addr::Addr;

use sluice_filters::icmp::{IcmpError, IcmpKind};
use sluice_filters::rules::Facts;
use sluice_filters::testkit::{Opt, tcp};
use sluice_filters::{Flags, Parsed, RxChecksums, parse};
use smoltcp::iface::{Config as IfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use super::super::*;
use crate::cookie::SYN_ACK_MAX;
use crate::net::{Division, Owner, Reach, Route};

pub(super) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// The layers below: what was sent, in order, and how the next hops stand.
pub(super) struct Below {
    pub(super) sent: VecDeque<(Way, Vec<u8>)>,
    pub(super) room: bool,
    pub(super) reach: Reach,
    pub(super) routed: bool,
    /// The next hop towards every upstream.
    pub(super) hop: u32,
    /// The source ports that are ours, if not all are.
    pub(super) only_ports: Option<std::ops::Range<u16>>,
}

impl Lower for Below {
    fn room(&self, _: Way) -> bool {
        self.room
    }

    fn send<R>(&mut self, way: Way, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0xaa; len];
        let result = fill(&mut packet);
        self.sent.push_back((way, packet));
        result
    }

    fn route(&mut self, dst: Addr) -> Option<Route> {
        let source = if dst.is_v4() { "10.0.0.2" } else { "fd00::2" };
        self.routed.then(|| Route {
            way: Way::Neighbor { port: PortId(0), id: self.hop },
            source: source.parse::<std::net::IpAddr>().unwrap().into(),
            mtu: 1500,
        })
    }

    fn reach(&mut self, _: Way) -> Reach {
        self.reach
    }

    fn division(&self, upstream: (Addr, u16), _: Addr) -> Division {
        Division { port: PortId(0), v4: upstream.0.is_v4(), word: 0 }
    }

    fn owner(&self, _: &Division, port: u16) -> Owner {
        let ours = self.only_ports.as_ref().is_none_or(|ports| ports.contains(&port));
        Owner { node: 0, worker: WorkerId(u8::from(!ours)) }
    }
}

/// A kernel's stand-in with one address of each family.
pub(super) struct Host {
    pub(super) interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) wire: Queue,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) incoming: VecDeque<Vec<u8>>,
    pub(super) outgoing: VecDeque<Vec<u8>>,
}

pub(super) struct Incoming(Vec<u8>);
pub(super) struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Queue {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        Some((Incoming(self.incoming.pop_front()?), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

impl Host {
    pub(super) fn new(address: &str) -> Host {
        let mut wire = Queue::default();
        let mut config = IfaceConfig::new(HardwareAddress::Ip);
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.set_any_ip(true);
        let cidr: IpCidr = address.parse().unwrap();
        interface.update_ip_addrs(|list| list.push(cidr).unwrap());
        Host { interface, sockets: SocketSet::new(Vec::new()), wire }
    }

    pub(super) fn socket(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 20_000]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        self.sockets.add(socket)
    }

    pub(super) fn get(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(super) fn connect(&mut self, from: (&str, u16), to: (&str, u16)) -> SocketHandle {
        let handle = self.socket();
        let endpoint = |(ip, port): (&str, u16)| IpEndpoint::new(ip.parse::<IpAddress>().unwrap(), port);
        let Host { interface, sockets, .. } = self;
        sockets.get_mut::<Socket<'_>>(handle).connect(interface.context(), endpoint(to), endpoint(from)).unwrap();
        handle
    }

    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.socket();
        self.get(handle).listen(port).unwrap();
        handle
    }

    pub(super) fn poll(&mut self, now: Micros) {
        self.interface.poll(Instant::from_micros(now.0 as i64), &mut self.wire, &mut self.sockets);
    }

    pub(super) fn read(&mut self, handle: SocketHandle, into: &mut Vec<u8>) {
        let socket = self.get(handle);
        while socket.can_recv() {
            socket
                .recv(|octets| {
                    into.extend_from_slice(octets);
                    (octets.len(), ())
                })
                .unwrap();
        }
    }
}

/// A router before an end whose next link takes no larger packets than this.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop {
    pub(super) mtu: usize,
    /// It does not say so.
    pub(super) silent: bool,
}

/// A client, the stack, a server.
pub(super) struct Lab {
    pub(super) stack: Stack,
    pub(super) below: Below,
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Arc<StackCounters>,
    pub(super) client: Host,
    pub(super) server: Host,
    pub(super) now: Micros,
    /// Unix time when `now` was zero.
    pub(super) unix: Duration,
    pub(super) drops: Vec<DropReason>,
    /// Of a thousand packets, how many the wires lose.
    pub(super) loss: u64,
    pub(super) random: u64,
    pub(super) services: Vec<std::net::SocketAddr>,
    pub(super) server_answers: bool,
    /// The port that frames come in by.
    pub(super) port: PortId,
    /// Off where the client is made by hand.
    pub(super) client_answers: bool,
    /// The client's address.
    pub(super) client_address: &'static str,
    /// The router before the client, and the one before the server.
    pub(super) hops: [Option<Hop>; 2],
    /// Packets that were too big for them.
    pub(super) too_big: usize,
    /// The largest packet that was sent towards the client, and the largest towards the server.
    pub(super) largest: [usize; 2],
}

pub(super) fn config(extra: &str, upstreams: &[&str]) -> Arc<Config> {
    let upstreams: String =
        upstreams.iter().map(|address| format!("[[service.upstream]]\naddress = \"{address}\"\n")).collect();
    let text = format!(
        r#"
[[port]]
name = "p"
device = "net_null0"
addresses = ["198.51.100.2/24", "10.0.0.2/8", "2001:db8::2/64", "fd00::2/64"]

[proxy_keys]
file = "/etc/sluice/proxy.keys"

[[service]]
name = "s"
listen = ["198.51.100.10:443", "[2001:db8::10]:443"]
{extra}
{upstreams}"#
    );
    Arc::new(sluice_config::parse("test.toml", &text).unwrap_or_else(|errors| panic!("{errors}")))
}

impl Lab {
    pub(super) fn new(extra: &str) -> Lab {
        Lab::with(extra, &["10.0.0.5:80"])
    }

    pub(super) fn with(extra: &str, upstreams: &[&str]) -> Lab {
        let config = config(extra, upstreams);
        let counters = Arc::new(StackCounters::new(&config));
        let shared = Arc::new(Shared::new(&config, [1, 2], 1024, keys()));
        let now = Micros(1_000_000);
        let services = config.services.iter().flat_map(|s| s.listen.clone()).collect();
        let stack = Stack::new(Setup {
            filters: Engine::of(&config).unwrap(),
            jar: Jar::new([7; 32], config.cookies.epoch),
            config,
            worker: WorkerId(0),
            counters: counters.clone(),
            shared: shared.clone(),
            entropy: [3; 48],
            mtus: vec![1500],
            now,
        });
        Lab {
            stack,
            below: Below {
                sent: VecDeque::new(),
                room: true,
                reach: Reach::Known,
                routed: true,
                hop: 0,
                only_ports: None,
            },
            shared,
            counters,
            client: Host::new("203.0.113.7/24"),
            server: Host::new("10.0.0.5/8"),
            now,
            unix: Duration::ZERO,
            drops: Vec::new(),
            loss: 0,
            random: 0x1234_5678_9abc_def1,
            services,
            server_answers: true,
            port: PortId(0),
            client_answers: true,
            client_address: "203.0.113.7",
            hops: [None; 2],
            too_big: 0,
            largest: [0; 2],
        }
    }

    /// A lab whose hosts have addresses of IPv6.
    pub(super) fn of_ipv6(extra: &str) -> Lab {
        let mut lab = Lab::with(extra, &["[fd00::5]:80"]);
        lab.client_address = "2001:db8:7::7";
        lab.client = Host::new("2001:db8:7::7/64");
        lab.server = Host::new("fd00::5/64");
        lab
    }

    pub(super) fn lost(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000 < self.loss
    }

    /// Hands one frame to the stack as a worker would.
    pub(super) fn receive(&mut self, frame: &[u8]) {
        let mut buffer = frame.to_vec();
        let segment = match parse(&buffer, RxChecksums::default()) {
            Ok(Parsed::Tcp(segment)) => segment,
            Ok(_) => return,
            Err(reason) => return self.drops.push(reason),
        };
        let service = self.services.contains(&segment.key.local()).then_some(ServiceId(0));
        if let Some(service) = service
            && let Err(reason) =
                self.stack.filters.check(&Facts { segment: &segment, frame: &buffer, service }, self.now)
        {
            return self.drops.push(reason);
        }
        if let (Some(service), true) = (service, segment.flags.is_initial_syn()) {
            buffer.resize(buffer.len().max(SYN_ACK_MAX), 0);
            match self.stack.answer_syn(&mut buffer, &segment, service, PortId(0), OUR_MAC) {
                Ok(len) => {
                    buffer.truncate(len);
                    assert_eq!(buffer[6..12], OUR_MAC);
                    let Ok(Parsed::Tcp(_)) = parse(&buffer, RxChecksums::default()) else { panic!("bad SYN-ACK") };
                    let way = Way::Reply { port: PortId(0), mac: CLIENT_MAC };
                    self.below.sent.push_back((way, buffer[14..].to_vec()));
                }
                Err(reason) => self.drops.push(reason),
            }
            return;
        }
        let hash = self.stack.hash(&segment.key);
        let arrival = Arrival { port: self.port, mac: CLIENT_MAC, unfinished: false };
        match self.stack.segment(&segment, &mut buffer, hash, arrival, service, self.now, &mut self.below) {
            Ok(Outcome::Consumed) => {}
            Ok(Outcome::Forward) => {
                let Forward { way, l4, ip } = *self.stack.forward();
                let size = ip.size();
                let mut packet = vec![0; size];
                ip.write(&mut packet);
                packet.extend_from_slice(&buffer[l4..l4 + usize::from(ip.len)]);
                self.below.sent.push_back((way, packet));
            }
            Err(reason) => self.drops.push(reason),
        }
    }

    /// A packet of a host's in an Ethernet frame.
    pub(super) fn framed(packet: &[u8]) -> Vec<u8> {
        let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        [&OUR_MAC[..], &CLIENT_MAC, &kind, packet].concat()
    }

    /// One turn of everything.
    pub(super) fn turn(&mut self) {
        self.stack.begin_turn(self.now, self.unix + Duration::from_micros(self.now.0));
        if self.client_answers {
            self.client.poll(self.now);
        }
        if self.server_answers {
            self.server.poll(self.now);
        }
        let mut frames: Vec<Vec<u8>> = self.client.wire.outgoing.drain(..).collect();
        frames.extend(self.server.wire.outgoing.drain(..));
        for packet in frames {
            if !self.lost() {
                self.receive(&Lab::framed(&packet));
            }
        }
        self.stack.probe(self.now, &mut self.below);
        self.stack.run_timers(self.now, 256, &mut self.below);
        self.stack.serve(self.now, &mut self.below);
        self.deliver();
    }

    pub(super) fn deliver(&mut self) {
        for (way, packet) in std::mem::take(&mut self.below.sent) {
            let framed = Lab::framed(&packet);
            let segment = match parse(&framed, RxChecksums::default()) {
                Ok(Parsed::Tcp(segment)) => segment,
                // As hosts behind a firewall that lets no ICMP through.
                Ok(Parsed::Icmp(_) | Parsed::Icmp6(_)) => continue,
                other => panic!("the stack sent {other:?}"),
            };
            if self.lost() {
                continue;
            }
            let towards = usize::from(matches!(way, Way::Neighbor { .. }));
            self.largest[towards] = self.largest[towards].max(packet.len());
            let hop = self.hops[towards];
            if let Some(Hop { mtu, silent }) = hop.filter(|hop| packet.len() > hop.mtu) {
                self.too_big += 1;
                if !silent {
                    let FlowKey { src, dst, src_port, dst_port } = segment.key;
                    let key = FlowKey { src: dst, dst: src, src_port: dst_port, dst_port: src_port };
                    let kind = IcmpKind::TooBig(mtu as u32);
                    let error = IcmpError { kind, key, seq: segment.seq, len: packet.len() as u16 };
                    let hash = self.stack.hash(&key);
                    let heard = self.stack.icmp_error(&error, hash, PortId(0), self.now, &mut self.below);
                    assert_eq!(heard, Ok(()), "{error:?}");
                }
                continue;
            }
            match way {
                Way::Reply { .. } => self.client.wire.incoming.push_back(packet),
                Way::Neighbor { .. } if self.server_answers => self.server.wire.incoming.push_back(packet),
                Way::Neighbor { .. } => {}
            }
        }
    }

    /// Turns of one millisecond until `done`, or `limit` milliseconds.
    pub(super) fn run(&mut self, limit: u64, mut done: impl FnMut(&mut Lab) -> bool) -> bool {
        for _ in 0..limit {
            self.turn();
            if done(self) {
                return true;
            }
            self.now.0 += 1000;
        }
        false
    }

    pub(super) fn idle(&mut self, ms: u64) {
        self.run(ms, |_| false);
    }

    pub(super) fn dial(&mut self) -> SocketHandle {
        self.dial_from(40_000)
    }

    pub(super) fn dial_from(&mut self, port: u16) -> SocketHandle {
        let address = self.client_address;
        let service = if address.contains(':') { "2001:db8::10" } else { "198.51.100.10" };
        self.client.connect((address, port), (service, 443))
    }

    pub(super) fn ended(&self, cause: EndCause) -> u64 {
        self.counters.services[0].ended[cause as usize].get()
    }

    pub(super) fn record(&self) -> SessionRecord {
        self.shared.records.pop().expect("an ended connection")
    }
}

/// Keys as a file would have them.
pub(super) fn keys() -> Arc<KeyRing> {
    let text = format!("7 {}\n", "00112233445566778899aabbccddeeff".repeat(2));
    let keys = sluice_config::ProxyKeys::parse(std::path::Path::new("keys"), text.as_bytes()).unwrap();
    Arc::new(KeyRing::new(crate::proxy::Keys::new(&keys)))
}

pub(super) const RAW: &str = "proxy_protocol = \"off\"";

pub(super) fn established(lab: &mut Lab) -> (SocketHandle, SocketHandle) {
    established_from(lab, 40_000)
}

pub(super) fn established_from(lab: &mut Lab, port: u16) -> (SocketHandle, SocketHandle) {
    let server = lab.server.listen(80);
    let client = lab.dial_from(port);
    assert!(lab.run(2000, |lab| lab.client.get(client).may_send() && lab.server.get(server).may_send()));
    (client, server)
}

pub(super) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

/// Sends `up` from the client and `down` from the server, closes each side after its own, and expects all to arrive.
pub(super) fn exchange(lab: &mut Lab, up: &[u8], down: &[u8], limit: u64) {
    exchange_as(lab, up, up, down, limit);
}

/// The same where the server gets `expected`, a header in front.
pub(super) fn exchange_as(lab: &mut Lab, up: &[u8], expected: &[u8], down: &[u8], limit: u64) {
    let ends = established(lab);
    exchange_between(lab, ends, up, expected, down, limit);
}

/// The same between the sockets of client and server.
#[allow(clippy::too_many_arguments, reason = "two ends, two streams")]
pub(super) fn exchange_between(
    lab: &mut Lab,
    (client, server): (SocketHandle, SocketHandle),
    up: &[u8],
    expected: &[u8],
    down: &[u8],
    limit: u64,
) {
    let closed = lab.ended(EndCause::Closed);
    let (mut sent_up, mut sent_down) = (0, 0);
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let done = lab.run(limit, |lab| {
        let socket = lab.client.get(client);
        if socket.can_send() && sent_up < up.len() {
            sent_up += socket.send_slice(&up[sent_up..]).unwrap();
        } else if sent_up == up.len() && socket.may_send() {
            socket.close();
        }
        let socket = lab.server.get(server);
        if socket.can_send() && sent_down < down.len() {
            sent_down += socket.send_slice(&down[sent_down..]).unwrap();
        } else if sent_down == down.len() && socket.may_send() {
            socket.close();
        }
        lab.client.read(client, &mut got_down);
        lab.server.read(server, &mut got_up);
        lab.stack.sessions() == 0
    });
    assert!(done, "up {}/{} down {}/{}", got_up.len(), up.len(), got_down.len(), down.len());
    assert!(got_up == expected, "client's payload arrives as it was");
    assert!(got_down == down, "server's payload arrives as it was");
    assert_eq!(lab.ended(EndCause::Closed), closed + 1);
}

/// A client made by hand: it has completed its handshake, and `next`/`ack` are its SND.NXT and RCV.NXT.
pub(super) struct Hand {
    pub(super) next: u32,
    pub(super) ack: u32,
}

/// A flow as the packets from one end to the other have it.
pub(super) fn flow(from: &str, to: &str) -> FlowKey {
    let [src, dst] = [from, to].map(|end| end.parse::<std::net::SocketAddr>().unwrap());
    FlowKey { src: src.ip().into(), dst: dst.ip().into(), src_port: src.port(), dst_port: dst.port() }
}

/// A segment of the hand's with a timestamp.
pub(super) fn stamped(flags: Flags, seq: u32, ack: u32, value: u32, payload: &[u8]) -> Vec<u8> {
    let options = [Opt::Nop, Opt::Nop, Opt::Timestamp(value, 0)];
    tcp(HAND, SERVICE).flags(flags).seq(seq).ack(ack).options(options).payload(payload).build()
}

/// A lab in which the hand, numbered from `isn`, has said `first`, with timestamps that count from 1,000: with the server's socket, and
/// what the hand acknowledges.
pub(super) fn with_stamped_hand(isn: u32, first: &[u8]) -> (Lab, SocketHandle, u32) {
    let mut lab = Lab::new(RAW);
    lab.client_answers = false;
    let server = lab.server.listen(80);
    lab.stack.begin_turn(lab.now, Duration::from_micros(lab.now.0));
    lab.receive(&stamped(Flags::SYN, isn, 0, 1_000, b""));
    let ack = read(&lab.below.sent.pop_back().unwrap().1).0.seq.0.wrapping_add(1);
    lab.receive(&stamped(Flags::ACK, isn.wrapping_add(1), ack, 1_001, first));
    lab.stack.serve(lab.now, &mut lab.below);
    (lab, server, ack)
}

pub(super) const HAND: &str = "203.0.113.99:5000";
pub(super) const SERVICE: &str = "198.51.100.10:443";

impl Hand {
    pub(super) fn shake(lab: &mut Lab) -> Hand {
        Hand::shake_from(lab, u32::MAX - 10)
    }

    pub(super) fn shake_from(lab: &mut Lab, isn: u32) -> Hand {
        Hand::shake_with(lab, isn, 1_000)
    }

    pub(super) fn shake_with(lab: &mut Lab, isn: u32, mss: u16) -> Hand {
        lab.stack.begin_turn(lab.now, Duration::from_micros(lab.now.0));
        let syn = tcp(HAND, SERVICE).flags(Flags::SYN).seq(isn).options([Opt::Mss(mss)]).build();
        lab.receive(&syn);
        let (_, packet) = lab.below.sent.pop_back().unwrap();
        let Ok(Parsed::Tcp(answer)) = parse(&Lab::framed(&packet), RxChecksums::default()) else { panic!() };
        let hand = Hand { next: isn.wrapping_add(1), ack: answer.seq.0.wrapping_add(1) };
        hand.says(lab, Flags::ACK, 0, 0, b"");
        hand
    }

    /// Sends a segment whose numbers are off by so much.
    pub(super) fn says(&self, lab: &mut Lab, flags: Flags, seq_off: u32, ack_off: u32, payload: &[u8]) {
        let frame = tcp(HAND, SERVICE)
            .flags(flags)
            .seq(self.next.wrapping_add(seq_off))
            .ack(self.ack.wrapping_add(ack_off))
            .window(1000)
            .payload(payload)
            .build();
        lab.receive(&frame);
        lab.stack.serve(lab.now, &mut lab.below);
    }
}

/// A packet the stack sent.
pub(super) fn read(packet: &[u8]) -> (Segment, sluice_filters::TcpOptions) {
    let frame = Lab::framed(packet);
    match parse(&frame, RxChecksums::default()) {
        Ok(Parsed::Tcp(segment)) => (segment, segment.options(&frame)),
        other => panic!("{other:?}"),
    }
}

pub(super) fn with_hand() -> (Lab, Hand, SocketHandle) {
    let mut lab = Lab::new(RAW);
    lab.client_answers = false;
    let server = lab.server.listen(80);
    let hand = Hand::shake(&mut lab);
    assert!(lab.run(100, |lab| lab.server.get(server).may_send()));
    lab.client.wire.incoming.clear();
    lab.drops.clear();
    (lab, hand, server)
}
