//! Conversations with a whole stack on a virtual clock: clients and servers are smoltcp's own, on a wire that loses, or hand-made
//! segments where a rule needs a peer that breaks it.

use std::collections::VecDeque;

use proptest::prelude::*;
use sluice_filters::addr::Addr;
use sluice_filters::testkit::{Opt, tcp};
use sluice_filters::{Flags, Parsed, RxChecksums, parse};
use smoltcp::iface::{Config as IfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use super::*;
use crate::cookie::SYN_ACK_MAX;
use crate::net::Route;

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// The layers below: what was sent, in order, and how the next hops stand.
struct Below {
    sent: VecDeque<(Way, Vec<u8>)>,
    room: bool,
    reach: Reach,
    routed: bool,
    /// The one source port that is ours, if not all are.
    only_port: Option<u16>,
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
            way: Way::Neighbor { port: PortId(0), id: 0 },
            source: source.parse::<std::net::IpAddr>().unwrap().into(),
            mtu: 1500,
        })
    }

    fn reach(&mut self, _: Way) -> Reach {
        self.reach
    }

    fn owns(&self, key: &FlowKey) -> bool {
        self.only_port.is_none_or(|port| key.dst_port == port)
    }

    fn mtu(&self, _: PortId) -> u16 {
        1500
    }
}

/// A kernel's stand-in with one address of each family.
struct Host {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Queue,
}

#[derive(Default)]
struct Queue {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

struct Incoming(Vec<u8>);
struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

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
    fn new(address: &str) -> Host {
        let mut wire = Queue::default();
        let mut config = IfaceConfig::new(HardwareAddress::Ip);
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.set_any_ip(true);
        let cidr: IpCidr = address.parse().unwrap();
        interface.update_ip_addrs(|list| list.push(cidr).unwrap());
        Host { interface, sockets: SocketSet::new(Vec::new()), wire }
    }

    fn socket(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 20_000]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        self.sockets.add(socket)
    }

    fn get(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn connect(&mut self, from: (&str, u16), to: (&str, u16)) -> SocketHandle {
        let handle = self.socket();
        let endpoint = |(ip, port): (&str, u16)| IpEndpoint::new(ip.parse::<IpAddress>().unwrap(), port);
        let Host { interface, sockets, .. } = self;
        sockets.get_mut::<Socket<'_>>(handle).connect(interface.context(), endpoint(to), endpoint(from)).unwrap();
        handle
    }

    fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.socket();
        self.get(handle).listen(port).unwrap();
        handle
    }

    fn poll(&mut self, now: Micros) {
        self.interface.poll(Instant::from_micros(now.0 as i64), &mut self.wire, &mut self.sockets);
    }

    fn read(&mut self, handle: SocketHandle, into: &mut Vec<u8>) {
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

/// A client, the stack, a server.
struct Lab {
    stack: Stack,
    below: Below,
    shared: Arc<Shared>,
    counters: Arc<StackCounters>,
    client: Host,
    server: Host,
    now: Micros,
    drops: Vec<DropReason>,
    /// Of a thousand packets, how many the wires lose.
    loss: u64,
    random: u64,
    services: Vec<std::net::SocketAddr>,
    server_answers: bool,
    /// Off where the client is made by hand.
    client_answers: bool,
}

fn config(extra: &str, upstreams: &[&str]) -> Arc<Config> {
    let upstreams: String =
        upstreams.iter().map(|address| format!("[[service.upstream]]\naddress = \"{address}\"\n")).collect();
    let text = format!(
        r#"
[[port]]
name = "p"
device = "net_null0"
addresses = ["198.51.100.2/24", "10.0.0.2/8", "2001:db8::2/64", "fd00::2/64"]

[[service]]
name = "s"
listen = ["198.51.100.10:443", "[2001:db8::10]:443"]
{extra}
{upstreams}"#
    );
    Arc::new(sluice_config::parse("test.toml", &text).unwrap_or_else(|errors| panic!("{errors}")))
}

impl Lab {
    fn new(extra: &str) -> Lab {
        Lab::with(extra, &["10.0.0.5:80"])
    }

    fn with(extra: &str, upstreams: &[&str]) -> Lab {
        let config = config(extra, upstreams);
        let counters = Arc::new(StackCounters::new(&config));
        let shared = Arc::new(Shared { limits: SharedLimits::new(&config, [1, 2]), records: ArrayQueue::new(1024) });
        let now = Micros(1_000_000);
        let services = config.services.iter().flat_map(|s| s.listen.clone()).collect();
        let stack = Stack::new(Setup {
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
            below: Below { sent: VecDeque::new(), room: true, reach: Reach::Known, routed: true, only_port: None },
            shared,
            counters,
            client: Host::new("203.0.113.7/24"),
            server: Host::new("10.0.0.5/8"),
            now,
            drops: Vec::new(),
            loss: 0,
            random: 0x1234_5678_9abc_def1,
            services,
            server_answers: true,
            client_answers: true,
        }
    }

    fn lost(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000 < self.loss
    }

    /// Hands one frame to the stack as a worker would.
    fn receive(&mut self, frame: &[u8]) {
        let mut buffer = frame.to_vec();
        let segment = match parse(&buffer, RxChecksums::default()) {
            Ok(Parsed::Tcp(segment)) => segment,
            Ok(_) => return,
            Err(reason) => return self.drops.push(reason),
        };
        let service = self.services.contains(&segment.key.local()).then_some(ServiceId(0));
        if let (Some(service), true) = (service, segment.flags.is_initial_syn()) {
            buffer.resize(buffer.len().max(SYN_ACK_MAX), 0);
            match self.stack.answer_syn(&mut buffer, &segment, service, PortId(0), OUR_MAC, self.now) {
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
        let arrival = Arrival { port: PortId(0), mac: CLIENT_MAC };
        let result = self.stack.segment(&segment, &mut buffer, hash, arrival, service, self.now, &mut self.below);
        if let Err(reason) = result {
            self.drops.push(reason);
        }
    }

    /// A packet of a host's in an Ethernet frame.
    fn framed(packet: &[u8]) -> Vec<u8> {
        let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        [&OUR_MAC[..], &CLIENT_MAC, &kind, packet].concat()
    }

    /// One turn of everything.
    fn turn(&mut self) {
        self.stack.begin_turn(self.now, Duration::from_micros(self.now.0));
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
        self.stack.serve(self.now, &mut self.below);
        self.stack.run_timers(self.now, 256, &mut self.below);
        self.deliver();
    }

    fn deliver(&mut self) {
        for (way, packet) in std::mem::take(&mut self.below.sent) {
            let framed = Lab::framed(&packet);
            match parse(&framed, RxChecksums::default()) {
                Ok(Parsed::Tcp(_)) => {}
                other => panic!("the stack sent {other:?}"),
            }
            if self.lost() {
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
    fn run(&mut self, limit: u64, mut done: impl FnMut(&mut Lab) -> bool) -> bool {
        for _ in 0..limit {
            self.turn();
            if done(self) {
                return true;
            }
            self.now.0 += 1000;
        }
        false
    }

    fn idle(&mut self, ms: u64) {
        self.run(ms, |_| false);
    }

    fn dial(&mut self) -> SocketHandle {
        self.client.connect(("203.0.113.7", 40_000), ("198.51.100.10", 443))
    }

    fn ended(&self, cause: EndCause) -> u64 {
        self.counters.services[0].ended[cause as usize].get()
    }

    fn record(&self) -> SessionRecord {
        self.shared.records.pop().expect("an ended connection")
    }
}

const RAW: &str = "proxy_protocol = \"off\"";

fn established(lab: &mut Lab) -> (SocketHandle, SocketHandle) {
    let server = lab.server.listen(80);
    let client = lab.dial();
    assert!(lab.run(2000, |lab| lab.client.get(client).may_send() && lab.server.get(server).may_send()));
    (client, server)
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

/// Sends `up` from the client and `down` from the server, closes each side after its own, and expects all to arrive.
fn exchange(lab: &mut Lab, up: &[u8], down: &[u8], limit: u64) {
    let (client, server) = established(lab);
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
    assert!(got_up == up, "client's payload arrives as it was");
    assert!(got_down == down, "server's payload arrives as it was");
    assert_eq!(lab.ended(EndCause::Closed), 1);
}

#[test]
fn payload_and_close_travel_both_ways() {
    let mut lab = Lab::new(RAW);
    exchange(&mut lab, &bytes(300_000), &bytes(200_000), 20_000);
    let record = lab.record();
    assert_eq!((record.bytes_to_upstream, record.bytes_to_client), (300_000, 200_000));
    assert_eq!(record.client.to_string(), "203.0.113.7:40000");
    assert_eq!(record.target.unwrap().to_string(), "10.0.0.5:80");
}

#[test]
fn payload_survives_a_wire_that_loses_one_in_thirty() {
    let mut lab = Lab::new(RAW);
    lab.loss = 33;
    exchange(&mut lab, &bytes(200_000), &bytes(200_000), 600_000);
}

#[test]
fn everything_an_ended_connection_held_is_given_back() {
    let mut lab = Lab::new(RAW);
    exchange(&mut lab, b"up", b"down", 5_000);
    lab.stack.publish(lab.now);
    assert_eq!(lab.counters.buffer_bytes.get(), 0);
    assert_eq!(lab.counters.services[0].active.get(), 0);
    lab.idle(11_000);
    lab.stack.publish(lab.now);
    assert_eq!(lab.counters.flow_entries.get(), 0);
    assert_eq!(lab.counters.time_wait.get(), 0);
    assert_eq!(lab.counters.timers.get(), 0);
}

#[test]
fn the_proxy_header_comes_first_and_once() {
    for (version, start) in
        [("v1", &b"PROXY TCP4 203.0.113.7 198.51.100.10 40000 443\r\n"[..]), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11")]
    {
        let mut lab = Lab::new(&format!("proxy_protocol = \"{version}\""));
        let (client, server) = established(&mut lab);
        lab.client.get(client).send_slice(b"hello").unwrap();
        let mut got = Vec::new();
        lab.run(100, |lab| {
            lab.server.read(server, &mut got);
            false
        });
        assert!(got.starts_with(start), "{}", got.escape_ascii());
        assert!(got.ends_with(b"hello"));
        let header = if version == "v1" { start.len() } else { 28 };
        assert_eq!(got.len(), header + 5);
    }
}

#[test]
fn a_syn_keeps_no_state() {
    let mut lab = Lab::new(RAW);
    for source in 0..1000_u32 {
        let from = format!("203.0.{}.{}:1024", source / 250, source % 250 + 1);
        lab.receive(&tcp(&*from, "198.51.100.10:443").flags(Flags::SYN).seq(source).build());
    }
    lab.stack.publish(lab.now);
    assert_eq!(lab.below.sent.len(), 1000);
    assert_eq!(lab.counters.cookies_sent.get(), 1000);
    assert_eq!((lab.stack.sessions(), lab.counters.flow_entries.get()), (0, 0));
}

#[test]
fn an_ack_without_our_cookie_opens_nothing() {
    let mut lab = Lab::new(RAW);
    for ack in 0..1000 {
        lab.receive(&tcp("203.0.113.7:1024", "198.51.100.10:443").flags(Flags::ACK).ack(ack * 77_777).build());
    }
    assert_eq!(lab.stack.sessions(), 0);
    assert_eq!(lab.counters.cookie_acks[AckResult::BadCookie as usize].get(), 1000);
    assert!(lab.below.sent.is_empty(), "no answer to a flood");
}

#[test]
fn a_client_reset_reaches_the_upstream() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    lab.client.get(client).abort();
    assert!(lab.run(1000, |lab| lab.stack.sessions() == 0 && !lab.server.get(server).is_open()));
    assert_eq!(lab.ended(EndCause::ClientReset), 1);
}

#[test]
fn an_upstream_reset_reaches_the_client_after_what_came_before_it() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    lab.server.get(server).send_slice(b"last words").unwrap();
    lab.idle(2);
    lab.server.get(server).abort();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.client.read(client, &mut got);
        !lab.client.get(client).is_open()
    }));
    assert_eq!(got, b"last words");
    assert_eq!(lab.ended(EndCause::UpstreamReset), 1);
}

#[test]
fn half_close_by_the_client_leaves_the_other_direction_open() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    lab.client.get(client).send_slice(b"question").unwrap();
    lab.client.get(client).close();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.server.read(server, &mut got);
        !lab.server.get(server).may_recv()
    }));
    assert_eq!(got, b"question");
    lab.server.get(server).send_slice(b"answer").unwrap();
    lab.server.get(server).close();
    let mut answer = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.client.read(client, &mut answer);
        lab.stack.sessions() == 0
    }));
    assert_eq!(answer, b"answer");
    assert_eq!(lab.ended(EndCause::Closed), 1);
}

#[test]
fn a_refused_dial_goes_to_the_next_upstream_with_nothing_lost() {
    let mut lab = Lab::with(RAW, &["10.0.0.5:81", "10.0.0.5:80"]);
    let server = lab.server.listen(80);
    let client = lab.dial();
    assert!(lab.run(1000, |lab| lab.client.get(client).may_send()));
    lab.client.get(client).send_slice(b"early").unwrap();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.server.read(server, &mut got);
        got == b"early"
    }));
    let refused: u64 =
        lab.counters.services[0].dial_failures.iter().map(|f| f[DialFailure::Refused as usize].get()).sum();
    assert!(refused <= 1);
}

#[test]
fn a_client_whose_upstreams_are_all_down_gets_a_reset() {
    let mut lab = Lab::with(RAW, &["10.0.0.5:81", "10.0.0.5:82"]);
    let client = lab.dial();
    assert!(lab.run(1000, |lab| lab.ended(EndCause::DialFailed) == 1 && !lab.client.get(client).is_open()));
    lab.stack.publish(lab.now);
    assert_eq!(lab.counters.source_ports.get(), 0, "a refused port need not rest");
}

#[test]
fn a_silent_upstream_is_given_up_after_the_connect_timeout() {
    let mut lab = Lab::new("proxy_protocol = \"off\"\n[service.timeouts]\nconnect = \"2s\"");
    lab.server_answers = false;
    let client = lab.dial();
    let begun = lab.now;
    assert!(lab.run(5000, |lab| lab.ended(EndCause::DialFailed) == 1 && !lab.client.get(client).is_open()));
    let took = lab.now.since(begun);
    assert!((Duration::from_secs(2)..Duration::from_millis(2100)).contains(&took), "{took:?}");
    assert_eq!(lab.counters.services[0].dial_failures[0][DialFailure::Timeout as usize].get(), 1);
}

#[test]
fn an_upstream_without_route_or_neighbour_is_unreachable() {
    for routed in [false, true] {
        let mut lab = Lab::new(RAW);
        lab.below.routed = routed;
        lab.below.reach = Reach::Failed;
        lab.server_answers = false;
        let client = lab.dial();
        assert!(lab.run(1000, |lab| lab.ended(EndCause::DialFailed) == 1 && !lab.client.get(client).is_open()));
        assert_eq!(lab.counters.services[0].dial_failures[0][DialFailure::Unreachable as usize].get(), 1);
    }
}

#[test]
fn connect_on_data_dials_with_the_first_payload_and_not_before() {
    let mut lab = Lab::new("proxy_protocol = \"off\"\nconnect = \"on-data\"");
    let server = lab.server.listen(80);
    let client = lab.dial();
    lab.idle(500);
    assert!(lab.client.get(client).may_send());
    assert!(lab.server.get(server).is_listening());
    lab.client.get(client).send_slice(b"now").unwrap();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.server.read(server, &mut got);
        got == b"now"
    }));
}

#[test]
fn a_client_that_never_speaks_is_cut() {
    let mut lab = Lab::new("proxy_protocol = \"off\"\n[service.timeouts]\nfirst_data = \"1s\"");
    let (client, server) = established(&mut lab);
    assert!(lab.run(1200, |lab| !lab.client.get(client).is_open() && !lab.server.get(server).is_open()));
    assert_eq!(lab.ended(EndCause::FirstData), 1);
}

#[test]
fn idle_sides_and_forgotten_half_closes_are_cut_in_their_time() {
    for (keys, close, cause) in [
        ("client_idle = \"2s\"", false, EndCause::ClientIdle),
        ("upstream_idle = \"2s\"", false, EndCause::UpstreamIdle),
        ("half_closed = \"2s\"", true, EndCause::HalfClosed),
    ] {
        let mut lab = Lab::new(&format!("proxy_protocol = \"off\"\n[service.timeouts]\n{keys}"));
        let (client, _) = established(&mut lab);
        if close {
            lab.client.get(client).close();
        }
        lab.idle(1900);
        assert_eq!(lab.ended(cause), 0, "{keys}");
        lab.idle(300);
        assert_eq!(lab.ended(cause), 1, "{keys}");
        assert_eq!(lab.stack.sessions(), 0);
    }
}

#[test]
fn a_peer_that_stops_acknowledging_is_gone_in_its_time() {
    let mut lab = Lab::new("proxy_protocol = \"off\"\n[service.timeouts]\nunacknowledged = \"3s\"");
    let (client, _) = established(&mut lab);
    lab.server_answers = false;
    lab.client.get(client).send_slice(b"into the void").unwrap();
    lab.idle(2800);
    assert_eq!(lab.ended(EndCause::UpstreamTimeout), 0);
    assert!(lab.run(400, |lab| lab.ended(EndCause::UpstreamTimeout) == 1));
}

#[test]
fn a_reader_that_stops_holds_the_writer_and_loses_nothing() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    let data = bytes(500_000);
    let mut sent = 0;
    lab.run(5000, |lab| {
        let socket = lab.client.get(client);
        if socket.can_send() && sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        false
    });
    assert!(sent < data.len(), "the writer is held: {sent}");
    let mut got = Vec::new();
    assert!(lab.run(60_000, |lab| {
        let socket = lab.client.get(client);
        if socket.can_send() && sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        lab.server.read(server, &mut got);
        got.len() == data.len()
    }));
    assert!(got == data);
}

#[test]
fn a_device_without_room_delays_payload_and_loses_none() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    lab.below.room = false;
    lab.client.get(client).send_slice(b"patience").unwrap();
    let mut got = Vec::new();
    lab.run(50, |lab| {
        lab.server.read(server, &mut got);
        false
    });
    assert!(got.is_empty());
    lab.below.room = true;
    assert!(lab.run(50, |lab| {
        lab.server.read(server, &mut got);
        got == b"patience"
    }));
}

#[test]
fn limits_refuse_with_a_reset_and_are_counted() {
    let mut lab = Lab::new("proxy_protocol = \"off\"\n[service.limits]\nconnections = 1");
    established(&mut lab);
    let second = lab.client.connect(("203.0.113.7", 40_001), ("198.51.100.10", 443));
    assert!(lab.run(1000, |lab| lab.counters.services[0].refused_limit.get() == 1));
    assert!(lab.run(1000, |lab| !lab.client.get(second).is_open()));
    assert_eq!(lab.stack.sessions(), 1);
}

#[test]
fn draining_lets_nobody_in_and_lets_the_rest_finish() {
    let mut lab = Lab::new(RAW);
    let (client, server) = established(&mut lab);
    lab.stack.drain();
    let late = lab.client.connect(("203.0.113.7", 40_001), ("198.51.100.10", 443));
    lab.client.get(client).send_slice(b"still").unwrap();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.server.read(server, &mut got);
        got == b"still"
    }));
    assert!(!lab.client.get(late).may_send());
    lab.stack.reset_all(lab.now, &mut lab.below);
    lab.deliver();
    assert!(lab.run(1000, |lab| !lab.client.get(client).is_open() && !lab.server.get(server).is_open()));
    assert_eq!(lab.ended(EndCause::Shutdown), 1);
}

#[test]
fn ipv6_clients_reach_ipv4_upstreams() {
    let mut lab = Lab::new("proxy_protocol = \"v2\"");
    lab.client = Host::new("2001:db8:7::7/64");
    let server = lab.server.listen(80);
    let client = lab.client.connect(("2001:db8:7::7", 40_000), ("2001:db8::10", 443));
    assert!(lab.run(1000, |lab| lab.client.get(client).may_send()));
    lab.client.get(client).send_slice(b"six").unwrap();
    let mut got = Vec::new();
    assert!(lab.run(1000, |lab| {
        lab.server.read(server, &mut got);
        got.ends_with(b"six")
    }));
    assert_eq!(got[12..16], [0x21, 0x21, 0, 36]);
}

/// A client made by hand: it has completed its handshake, and `next`/`ack` are its SND.NXT and RCV.NXT.
struct Hand {
    next: u32,
    ack: u32,
}

const HAND: &str = "203.0.113.99:5000";
const SERVICE: &str = "198.51.100.10:443";

impl Hand {
    fn shake(lab: &mut Lab) -> Hand {
        lab.stack.begin_turn(lab.now, Duration::from_micros(lab.now.0));
        let syn = tcp(HAND, SERVICE).flags(Flags::SYN).seq(u32::MAX - 10).options([Opt::Mss(1000)]).build();
        lab.receive(&syn);
        let (_, packet) = lab.below.sent.pop_back().unwrap();
        let Ok(Parsed::Tcp(answer)) = parse(&Lab::framed(&packet), RxChecksums::default()) else { panic!() };
        let hand = Hand { next: u32::MAX - 9, ack: answer.seq.0.wrapping_add(1) };
        hand.says(lab, Flags::ACK, 0, 0, b"");
        hand
    }

    /// Sends a segment whose numbers are off by so much.
    fn says(&self, lab: &mut Lab, flags: Flags, seq_off: u32, ack_off: u32, payload: &[u8]) {
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

fn with_hand() -> (Lab, Hand, SocketHandle) {
    let mut lab = Lab::new(RAW);
    lab.client_answers = false;
    let server = lab.server.listen(80);
    let hand = Hand::shake(&mut lab);
    assert!(lab.run(100, |lab| lab.server.get(server).may_send()));
    lab.client.wire.incoming.clear();
    lab.drops.clear();
    (lab, hand, server)
}

#[test]
fn a_reset_must_match_exactly() {
    let (mut lab, hand, _) = with_hand();
    hand.says(&mut lab, Flags::RST, 1, 0, b"");
    assert_eq!(lab.drops, [DropReason::BadRst]);
    assert_eq!(lab.counters.challenge_acks.get(), 1, "one inside the window is challenged");
    hand.says(&mut lab, Flags::RST, 0x4000_0000, 0, b"");
    assert_eq!(lab.counters.challenge_acks.get(), 1, "one outside is not");
    assert_eq!(lab.stack.sessions(), 1);
    hand.says(&mut lab, Flags::RST, 0, 0, b"");
    assert_eq!(lab.stack.sessions(), 0);
    assert_eq!(lab.ended(EndCause::ClientReset), 1);
}

#[test]
fn a_reset_right_behind_data_of_the_same_burst_is_exact_too() {
    let (mut lab, hand, _) = with_hand();
    let data = tcp(HAND, SERVICE).flags(Flags::ACK).seq(hand.next).ack(hand.ack).payload(b"data").build();
    let reset = tcp(HAND, SERVICE).flags(Flags::RST).seq(hand.next.wrapping_add(4)).build();
    lab.receive(&data);
    lab.receive(&reset);
    lab.stack.serve(lab.now, &mut lab.below);
    assert_eq!(lab.drops, []);
    assert!(lab.run(1000, |lab| lab.ended(EndCause::ClientReset) == 1));
}

#[test]
fn an_ack_of_data_never_sent_is_challenged() {
    let (mut lab, hand, server) = with_hand();
    hand.says(&mut lab, Flags::ACK, 0, 500, b"evil");
    assert_eq!(lab.drops, [DropReason::BadAck]);
    assert_eq!(lab.counters.challenge_acks.get(), 1);
    let mut got = Vec::new();
    lab.run(20, |lab| {
        lab.server.read(server, &mut got);
        false
    });
    assert!(got.is_empty());
}

#[test]
fn a_segment_with_an_older_ack_keeps_its_payload() {
    let (mut lab, mut hand, server) = with_hand();
    lab.server.get(server).send_slice(b"0123456789").unwrap();
    lab.idle(5);
    // The client has taken all ten octets, then a segment it sent before that arrives.
    hand.ack = hand.ack.wrapping_add(10);
    hand.says(&mut lab, Flags::ACK, 0, 0, b"");
    hand.says(&mut lab, Flags::ACK, 0, 0_u32.wrapping_sub(10), b"delayed");
    let mut got = Vec::new();
    lab.run(20, |lab| {
        lab.server.read(server, &mut got);
        false
    });
    assert_eq!(got, b"delayed");
    assert_eq!(lab.drops, []);
}

#[test]
fn a_syn_ack_on_a_connection_is_challenged_and_challenges_are_few() {
    let (mut lab, hand, _) = with_hand();
    for _ in 0..100 {
        hand.says(&mut lab, Flags::SYN | Flags::ACK, 0, 0, b"");
    }
    assert_eq!(lab.drops.len(), 100);
    assert_eq!(lab.counters.challenge_acks.get(), 1);
    assert_eq!(lab.stack.sessions(), 1);
}

#[test]
fn a_fin_beyond_the_window_is_not_taken() {
    let (mut lab, hand, server) = with_hand();
    // 60,000 octets fit the window; a FIN right at its far edge plus one segment does not.
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 65_000, 0, &[1; 900]);
    lab.idle(20);
    assert!(lab.server.get(server).may_recv());
    assert_eq!(lab.stack.sessions(), 1);
}

#[test]
fn a_zero_window_after_our_close_does_not_make_us_talk_without_end() {
    let (mut lab, hand, server) = with_hand();
    lab.server.get(server).send_slice(&[7; 3000]).unwrap();
    lab.server.get(server).close();
    lab.idle(10);
    let zero = tcp(HAND, SERVICE).flags(Flags::ACK).seq(hand.next).ack(hand.ack.wrapping_add(1000)).window(0).build();
    lab.receive(&zero);
    let before = lab.client.wire.incoming.len();
    for _ in 0..200 {
        lab.turn();
        lab.client.wire.outgoing.clear();
        lab.now.0 += 1000;
    }
    let talked = lab.client.wire.incoming.len() - before;
    assert!(talked < 50, "{talked} packets in 200 ms");
}

#[test]
fn a_client_back_from_a_crash_replaces_its_old_connection() {
    let (mut lab, _, _) = with_hand();
    lab.server.listen(80);
    let syn = tcp(HAND, SERVICE).flags(Flags::SYN).seq(77).build();
    lab.receive(&syn);
    let (_, packet) = lab.below.sent.pop_back().unwrap();
    let Ok(Parsed::Tcp(answer)) = parse(&Lab::framed(&packet), RxChecksums::default()) else { panic!() };
    let hand = Hand { next: 78, ack: answer.seq.0.wrapping_add(1) };
    hand.says(&mut lab, Flags::ACK, 0, 0, b"");
    assert_eq!(lab.ended(EndCause::ClientRestarted), 1);
    assert_eq!(lab.stack.sessions(), 1);
    assert_eq!(lab.counters.cookie_acks[AckResult::Accepted as usize].get(), 2);
}

#[test]
fn a_fin_whose_ack_was_lost_is_acknowledged_from_time_wait() {
    let (mut lab, mut hand, server) = with_hand();
    lab.server.get(server).close();
    lab.idle(5);
    hand.ack = hand.ack.wrapping_add(1);
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 0, 0, b"");
    assert!(lab.run(1000, |lab| lab.stack.sessions() == 0));
    lab.below.sent.clear();
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 0, 0, b"");
    let (_, packet) = lab.below.sent.pop_front().expect("an ACK");
    let Ok(Parsed::Tcp(answer)) = parse(&Lab::framed(&packet), RxChecksums::default()) else { panic!() };
    assert_eq!(answer.ack.0, hand.next.wrapping_add(1));
    assert_eq!(answer.seq.0, hand.ack);
    // Ten seconds later nobody remembers.
    lab.idle(11_000);
    hand.says(&mut lab, Flags::FIN | Flags::ACK, 0, 0, b"");
    assert!(lab.below.sent.is_empty());
}

#[test]
fn a_connection_on_a_source_port_used_before_outlives_the_time_wait_of_the_first() {
    let mut lab = Lab::new(RAW);
    lab.below.only_port = Some(5000);
    for round in 0..2 {
        let server = lab.server.listen(80);
        lab.server.get(server).set_tsval_generator(Some(|| 7));
        let client = lab.client.connect(("203.0.113.7", 40_000 + round), ("198.51.100.10", 443));
        assert!(lab.run(2000, |lab| lab.client.get(client).may_send() && lab.server.get(server).may_send()));
        if round == 0 {
            lab.client.get(client).close();
            lab.idle(20);
            lab.server.get(server).close();
            assert!(lab.run(2000, |lab| lab.stack.sessions() == 0));
            assert_eq!(lab.record().source.unwrap().port(), 5000);
            lab.idle(1100);
            continue;
        }
        lab.idle(12_000);
        lab.server.get(server).send_slice(b"still here").unwrap();
        let mut got = Vec::new();
        assert!(lab.run(1000, |lab| {
            lab.client.read(client, &mut got);
            got == b"still here"
        }));
    }
}

#[test]
fn an_upstream_with_a_connection_we_do_not_know_gets_a_reset() {
    let mut lab = Lab::new(RAW);
    let stray = tcp("10.0.0.5:80", "10.0.0.2:2000").flags(Flags::ACK).seq(5).ack(9).payload("old").build();
    lab.receive(&stray);
    let (_, packet) = lab.below.sent.pop_front().expect("a RST");
    let Ok(Parsed::Tcp(answer)) = parse(&Lab::framed(&packet), RxChecksums::default()) else { panic!() };
    assert!(answer.flags.rst());
    let stranger = tcp("10.0.0.6:80", "10.0.0.2:2000").flags(Flags::ACK).seq(5).ack(9).build();
    lab.receive(&stranger);
    assert!(lab.below.sent.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever a peer that knows the connection's numbers says, nothing panics and memory stays bounded.
    #[test]
    fn no_conversation_panics(steps in prop::collection::vec(
        (0_u8..64, prop::num::i32::ANY, -70_000_i32..70_000, prop::num::u16::ANY, 0_usize..1400, 0_u64..400, 0_u8..8), 1..60)) {
        let (mut lab, hand, server) = with_hand();
        for (flags, wild, near, window, len, wait, kind) in steps {
            // Mostly near the connection's own numbers, now and then anywhere.
            let (seq, ack) = match kind {
                0 => (wild as u32, near as u32),
                1 => (near as u32, wild as u32),
                2..=4 => (0, near.rem_euclid(3000) as u32),
                _ => (near as u32, 0),
            };
            let frame = tcp(HAND, SERVICE)
                .flags(Flags(flags & 0x3f))
                .seq(hand.next.wrapping_add(seq))
                .ack(hand.ack.wrapping_add(ack))
                .window(window)
                .payload(vec![kind; len])
                .build();
            lab.receive(&frame);
            if kind == 5 {
                let _ = lab.server.get(server).send_slice(&vec![1; len]);
            }
            if kind == 6 && flags & 1 == 1 {
                lab.server.get(server).close();
            }
            let mut got = Vec::new();
            lab.server.read(server, &mut got);
            for _ in 0..wait.min(3) {
                lab.turn();
                lab.now.0 += 1000;
            }
            lab.now.0 += wait * 1000;
            lab.turn();
            prop_assert!(lab.below.sent.len() < 1000);
            prop_assert!(lab.stack.sessions() <= 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Frames of a live conversation with octets changed, cut or repaired, in any order: parser, cookies, guard, translator and smoltcp
    /// with overflow checks.
    #[test]
    fn no_frame_panics(frames in prop::collection::vec(
        (0_u8..6, any::<u8>(), any::<u32>(), any::<u16>(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
         prop::option::of(0_usize..120), any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 1..40)) {
        let (mut lab, hand, _) = with_hand();
        for (kind, flags, wild, window, changes, cut, repair, options) in frames {
            let (from, to) = match kind {
                0 => ("203.0.113.99:5000", "198.51.100.10:443"),
                1 => ("[2001:db8::77]:5000", "[2001:db8::10]:443"),
                2 => ("10.0.0.5:80", "10.0.0.2:2000"),
                _ => (HAND, SERVICE),
            };
            let near = u32::from(window % 64);
            let mut frame = tcp(from, to)
                .flags(Flags(flags))
                .seq(hand.next.wrapping_add(if kind == 3 { wild } else { near }))
                .ack(hand.ack.wrapping_add(if kind == 4 { wild } else { 0 }))
                .window(window)
                .options([Opt::Raw(options)])
                .payload(vec![kind; usize::from(window % 1200)])
                .build();
            for (at, octet) in changes {
                let at = at.index(frame.len());
                frame[at] = octet;
            }
            if repair {
                sluice_filters::testkit::fix_checksums(&mut frame);
            }
            if let Some(cut) = cut {
                frame.truncate(cut);
            }
            lab.receive(&frame);
            lab.turn();
            lab.now.0 += u64::from(wild % 5000);
        }
        prop_assert!(lab.stack.sessions() <= 2);
    }
}
