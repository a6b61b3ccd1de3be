//! One end of a terminated connection: a smoltcp socket of its own, and the leg that carries its packets. The socket counts
//! in numbers of its own; the translator turns them into the wire's, where our first number is the cookie (towards the
//! client) or a keyed one (RFC 6528, towards the upstream).

use std::time::Duration;

use sluice_config::Congestion;
use sluice_filters::addr::FlowKey;
use sluice_filters::units::{Micros, Seq};
use sluice_filters::{Flags, Segment, TcpOptions, checksum};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpAddress, IpEndpoint, IpListenEndpoint};

use super::clock;
use super::device::{Blueprint, Wire};
use super::guard::Guard;
use super::liveness::Liveness;
use crate::net::{Lower, Way};
use crate::path_mtu::{Path, PathMtu, Whole};
use crate::ports::Memory;
use crate::segment::{self, BareSegment, Direction, IpHeader, SynSegment, TcpChecksum};
use crate::stack::send_bare;
use crate::translate::Translator;

/// Rule 1 of the guard: a larger receive buffer would need a window shift.
const BUFFER_MAX: usize = 65_535;
/// How long a peer's timestamp can be compared (RFC 7323 section 5.5).
const TIMESTAMP_LIFE: Duration = Duration::from_secs(24 * 24 * 3600);
/// Packets one endpoint may emit in a row before others have their turn.
const EGRESS_BURST: usize = 48;

/// smoltcp interfaces, one for each MTU: smoltcp fixes the MTU when an interface is made.
pub(crate) struct Interfaces {
    list: Vec<(u16, Interface)>,
    seed: u64,
    /// Room for one packet of the largest MTU.
    scratch: Vec<u8>,
}

impl Interfaces {
    pub(crate) fn new(seed: u64) -> Interfaces {
        Interfaces { list: Vec::new(), seed, scratch: Vec::new() }
    }

    /// The index of the interface for `mtu`; made when it is new. Ports are few, so their MTUs are.
    pub(crate) fn index(&mut self, mtu: u16) -> usize {
        if let Some(index) = self.list.iter().position(|(known, _)| *known == mtu) {
            return index;
        }
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = self.seed;
        let mut interface = Interface::new(config, &mut Blueprint(usize::from(mtu)), clock::stack_time(Micros(0)));
        interface.set_any_ip(true);
        self.list.push((mtu, interface));
        self.scratch.resize(self.scratch.len().max(usize::from(mtu)), 0);
        self.list.len().saturating_sub(1)
    }

    #[allow(
        clippy::indexing_slicing,
        reason = "an index is given out when its interface is made, and none is ever removed"
    )]
    fn get(&mut self, index: usize) -> (&mut Interface, Bench<'_>) {
        let (mtu, interface) = &mut self.list[index];
        (interface, Bench { mtu: usize::from(*mtu), scratch: &mut self.scratch })
    }
}

/// What an interface's device needs besides its wire.
struct Bench<'a> {
    mtu: usize,
    scratch: &'a mut [u8],
}

impl<'a> Bench<'a> {
    /// The device that emits along `leg`, and feeds `received`.
    fn wire<N>(self, net: &'a mut N, leg: &'a mut Leg, received: Option<&'a [u8]>) -> Wire<'a, N> {
        Wire { net, leg, received, swallow: false, mtu: self.mtu, scratch: self.scratch }
    }
}

/// Where an endpoint's packets go, and how their numbers change on the way.
pub(crate) struct Leg {
    /// As received: `src` is the peer.
    pub(crate) key: FlowKey,
    pub(crate) way: Way,
    pub(crate) guard: Guard,
    pub(crate) path: Path,
    /// Our first sequence number on the wire.
    isn: Seq,
    translator: Option<Translator>,
    timestamp_offset: u32,
    /// The peer scales our windows by this; the socket does not know.
    window_shift: u8,
    /// The newest TSval of the peer, to echo in segments built without smoltcp.
    peer_timestamp: Option<u32>,
    /// Something was sent that asks for an answer.
    asks: bool,
    /// The moment of the poll that it is used in.
    now: Micros,
}

impl Leg {
    /// A packet of smoltcp's on its way out: translated, noted, checksummed.
    pub(crate) fn outgoing(&mut self, packet: &mut [u8]) {
        let Some((header, tcp)) = split_ip(packet) else { return };
        let Some(emitted) = Emitted::read(tcp) else { return };
        let (isn, offset) = (self.isn, self.timestamp_offset);
        let translator =
            self.translator.get_or_insert(Translator { seq_delta: isn.minus(emitted.seq), ts_delta: offset });
        translator.outgoing::<false>(tcp);
        if self.window_shift > 0 {
            scale_window(tcp, self.window_shift);
        }
        if let Some(emitted) = Emitted::read(tcp)
            && !emitted.flags.rst()
        {
            let payload = u32::try_from(tcp.len().saturating_sub(emitted.header_len)).unwrap_or(0);
            self.note_size(emitted.seq, payload, header.len().saturating_add(tcp.len()));
            self.asks |= payload > 0 || emitted.flags.syn() || emitted.flags.fin();
            let ack = emitted.flags.ack().then_some(emitted.ack);
            let window = emitted.window << self.window_shift;
            self.guard.sent(emitted.seq, ack, window, emitted.flags.syn(), emitted.flags.fin(), payload);
        }
        checksum::fill_tcp(tcp, self.key.dst, self.key.src);
        if let Ok(header) = header.try_into() {
            checksum::fill_ipv4_header(header);
        }
    }

    /// Notes for the path that `payload` bytes from `seq` on leave, in an IP packet of `len` bytes.
    fn note_size(&mut self, seq: Seq, payload: u32, len: usize) {
        if self.guard.is_sent_again(seq, payload) {
            self.path.sent_again(len, self.key.src.is_v4(), self.now);
        }
        if payload > 0 && self.path.is_exceeded_by(len) {
            self.path.lapse(self.now);
            let end = seq.plus(payload);
            self.path.sent(len, end.minus(self.guard.snd_una()), self.guard.snd_max().precedes(end));
        }
    }

    /// Sends a finished packet, in pieces if the path takes no larger ones.
    pub(crate) fn send_within_path<N: Lower>(&self, packet: &[u8], net: &mut N) {
        let (FlowKey { src, dst, .. }, path) = (self.key, self.path.limit());
        if packet.len() <= usize::from(path) {
            return net.send(self.way, packet.len(), |out| out.copy_from_slice(packet));
        }
        let ip = IpHeader { src: dst, dst: src, tos: 0, len: 0 };
        let Some(tcp) = packet.get(ip.size()..) else { return };
        let Some(header_len) = tcp.get(12).map(|offset| usize::from(offset >> 4) * 4) else { return };
        Whole { way: self.way, ip, tcp, header_len }.send_in_pieces(path, net);
    }

    /// smoltcp's SYN-ACK, which nobody sends: it tells smoltcp's first number, and so the translation.
    pub(crate) fn swallowed(&mut self, packet: &mut [u8]) {
        if let Some((_, tcp)) = split_ip(packet)
            && let Some(emitted) = Emitted::read(tcp)
        {
            self.translator =
                Some(Translator { seq_delta: self.isn.minus(emitted.seq), ts_delta: self.timestamp_offset });
        }
    }

    /// Our first sequence number.
    pub(crate) fn isn(&self) -> Seq {
        self.isn
    }

    /// What the peer's TIME-WAIT remembers of us.
    pub(crate) fn last_numbers(&self) -> Memory {
        Memory { end: self.guard.snd_max(), timestamp: None }
    }

    /// Whether both ends send timestamps.
    pub(crate) fn timestamps(&self) -> bool {
        self.peer_timestamp.is_some()
    }

    /// Whether a segment is older than one already seen, by its timestamp (PAWS, RFC 7323 section 5.3). RSTs are not asked.
    pub(crate) fn is_stale(&self, segment: &Segment, options: &TcpOptions, silent_for: Duration) -> bool {
        let (Some(recent), Some((value, _))) = (self.peer_timestamp, options.timestamp) else { return false };
        let older = (value.wrapping_sub(recent) as i32) < 0;
        // Section 5.5: after so long a silence the peer's clock may have wrapped.
        older && !segment.flags.rst() && !segment.flags.syn() && silent_for < TIMESTAMP_LIFE
    }

    /// Keeps the timestamp to echo: the peer's newest that spans what we acknowledged last (RFC 7323 section 4.3). A segment that lies
    /// before that is no part of the window any more: anyone can send one, with any timestamp (step R3 before R2 there).
    fn note_timestamp(&mut self, segment: &Segment, options: &TcpOptions, opening: bool) {
        let Some((value, _)) = options.timestamp else { return };
        let newer = self.peer_timestamp.is_some_and(|recent| value.wrapping_sub(recent) as i32 >= 0);
        let expected = self.guard.rcv_ack();
        let spans = !expected.precedes(segment.seq) && !segment.seq_end().precedes(expected);
        // Nor does an old ACK prove anything: its number need not be known to anyone who may send it (as Linux has it).
        let current = !segment.ack.precedes(self.guard.snd_una());
        if opening || (newer && spans && current) {
            self.peer_timestamp = Some(value);
        }
    }

    /// The peer's very SYN-ACK came again, since what answered it was lost: it is answered with its own timestamp, or the peer would
    /// measure a round trip of a second (RFC 7323 section 4.3: it stands where our last acknowledgment began).
    pub(crate) fn note_syn_ack_again(&mut self, segment: &Segment, options: &TcpOptions) {
        let first = segment.seq.plus(1) == self.guard.rcv_ack() && segment.ack == self.isn().plus(1);
        if segment.flags.ack() && segment.flags.syn() && first {
            self.note_timestamp(segment, options, false);
        }
    }

    /// An ACK that says where we are (RFC 5961), built without smoltcp.
    pub(crate) fn bare_ack(&self, now: Micros) -> BareSegment {
        BareSegment {
            key: self.key,
            direction: Direction::ToPeer,
            seq: self.guard.snd_max(),
            ack: self.guard.rcv_ack(),
            flags: Flags::ACK,
            window: self.guard.rcv_window() >> self.window_shift,
            ttl: segment::TTL,
            timestamp: self
                .peer_timestamp
                .map(|echo| (clock::timestamp_ms(now).wrapping_add(self.timestamp_offset), echo)),
        }
    }
}

/// Scales the window field of a segment without SYN: what does not divide is not advertised.
fn scale_window(tcp: &mut [u8], shift: u8) {
    if let Some([a, b]) = tcp.get_mut(14..16) {
        [*a, *b] = (u16::from_be_bytes([*a, *b]) >> shift).to_be_bytes();
    }
}

/// The header fields of an emitted segment that the guard wants to know.
struct Emitted {
    seq: Seq,
    ack: Seq,
    header_len: usize,
    flags: Flags,
    window: u16,
}

impl Emitted {
    fn read(tcp: &[u8]) -> Option<Emitted> {
        let ([_, _, _, _, s0, s1, s2, s3, a0, a1, a2, a3, offset, flags, w0, w1, ..], _) =
            tcp.split_first_chunk::<20>()?;
        Some(Emitted {
            seq: Seq(u32::from_be_bytes([*s0, *s1, *s2, *s3])),
            ack: Seq(u32::from_be_bytes([*a0, *a1, *a2, *a3])),
            header_len: usize::from(offset >> 4) * 4,
            flags: Flags(*flags),
            window: u16::from_be_bytes([*w0, *w1]),
        })
    }
}

/// Splits a packet of smoltcp's (no IP options, no extension headers) into IP header and TCP segment.
fn split_ip(packet: &mut [u8]) -> Option<(&mut [u8], &mut [u8])> {
    let header = if packet.first()? >> 4 == 4 { 20 } else { 40 };
    packet.split_at_mut_checked(header)
}

/// What both kinds of endpoint are made with.
pub(crate) struct Making {
    pub(crate) key: FlowKey,
    pub(crate) way: Way,
    pub(crate) mtu: u16,
    /// What is known of the path to the peer.
    pub(crate) path: Option<PathMtu>,
    /// Octets of each buffer.
    pub(crate) buffer: usize,
    /// Octets that the peer was told it may send: the receive buffer holds as many.
    pub(crate) promised: u16,
    pub(crate) congestion: Congestion,
    /// Our first number on the wire.
    pub(crate) isn: Seq,
    pub(crate) timestamp_offset: u32,
    /// Use timestamps when the peer does.
    pub(crate) timestamps: bool,
    /// By how much our windows are scaled on the wire.
    pub(crate) window_shift: u8,
}

/// What the cookie remembered of the client's SYN.
pub(crate) struct ClientOffer {
    pub(crate) isn: Seq,
    pub(crate) mss: u16,
    pub(crate) window_scale: Option<u8>,
    pub(crate) sack: bool,
    /// TSval of the ACK that brought the cookie back.
    pub(crate) timestamp: Option<u32>,
    /// The window in our SYN-ACK.
    pub(crate) advertised: u16,
}

/// Whether room below is asked for, or taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Asked,
    Taken,
}

/// One end of a connection.
pub(crate) struct Endpoint {
    pub(crate) leg: Leg,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    interface: usize,
    /// Octets of both buffers, for the gauge.
    pub(crate) leased: usize,
    pub(crate) live: Liveness,
    /// The peer reset the connection: nothing may be sent any more.
    pub(crate) reset: bool,
    /// A router says that our SYN cannot reach the peer.
    pub(crate) unreachable: bool,
    /// When the last challenge ACK went out.
    pub(crate) challenged: Option<Micros>,
    /// When the peer last acknowledged something new.
    pub(crate) progress: Micros,
    acknowledged: Seq,
    /// When the socket entered TIME-WAIT.
    parted: Option<Micros>,
}

impl Endpoint {
    fn new(making: &Making, guard: Guard, interfaces: &mut Interfaces, now: Micros) -> Endpoint {
        let buffer = making.buffer.min(BUFFER_MAX);
        let receive = buffer.max(usize::from(making.promised));
        let mut socket = Socket::new(SocketBuffer::new(vec![0; receive]), SocketBuffer::new(vec![0; buffer]));
        socket.set_nagle_enabled(false);
        // ACKs are emitted once a burst, which merges more of them than a timer would, and sooner.
        socket.set_ack_delay(None);
        socket.set_congestion_control(match making.congestion {
            Congestion::None => CongestionControl::None,
            Congestion::Reno => CongestionControl::Reno,
        });
        if making.timestamps {
            socket.set_tsval_generator(Some(clock::timestamp));
        }
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Endpoint {
            leg: Leg {
                key: making.key,
                way: making.way,
                guard,
                path: Path::new(making.path),
                isn: making.isn,
                translator: None,
                timestamp_offset: making.timestamp_offset,
                window_shift: making.window_shift,
                peer_timestamp: None,
                asks: false,
                now,
            },
            sockets,
            handle,
            interface: interfaces.index(making.mtu),
            leased: receive.saturating_add(buffer),
            live: Liveness::new(now),
            reset: false,
            unreachable: false,
            challenged: None,
            progress: now,
            acknowledged: making.isn,
            parted: None,
        }
    }

    /// The client's end, from a valid cookie. The segment that brought it is fed next, like any other.
    pub(crate) fn accept<N: Lower>(
        making: &Making,
        offer: &ClientOffer,
        interfaces: &mut Interfaces,
        now: Micros,
        net: &mut N,
    ) -> Option<Endpoint> {
        let guard = Guard::accepted(making.isn, offer.isn, offer.advertised, offer.window_scale.unwrap_or(0));
        let mut endpoint = Endpoint::new(making, guard, interfaces, now);
        endpoint.leg.peer_timestamp = offer.timestamp;
        let local = address(making.key.dst);
        endpoint.socket_mut().listen(IpListenEndpoint { addr: Some(local), port: making.key.dst_port }).ok()?;

        let mut room = [0; segment::PACKET_MAX];
        let len = segment::synthesize_syn(
            &SynSegment {
                key: making.key,
                direction: Direction::FromPeer,
                isn: offer.isn,
                mss: offer.mss,
                wscale: offer.window_scale,
                sack: offer.sack,
                timestamp: offer.timestamp.filter(|_| making.timestamps),
                window: u16::MAX,
            },
            &mut room,
            TcpChecksum::Full,
        )?;
        let (interface, bench) = interfaces.get(endpoint.interface);
        let time = clock::stack_time(now);
        let Endpoint { leg, sockets, .. } = &mut endpoint;
        let mut wire = Wire { swallow: true, ..bench.wire(net, leg, room.get(..len)) };
        interface.poll_ingress_single(time, &mut wire, sockets);
        interface.poll_egress(time, &mut wire, sockets);
        (endpoint.state() == State::SynReceived && endpoint.leg.translator.is_some()).then_some(endpoint)
    }

    /// The upstream's end: a SYN leaves with the next [`Endpoint::emit`].
    pub(crate) fn dial(making: &Making, interfaces: &mut Interfaces, now: Micros) -> Option<Endpoint> {
        let mut endpoint = Endpoint::new(making, Guard::opening(making.isn), interfaces, now);
        let remote = IpEndpoint::new(address(making.key.src), making.key.src_port);
        let local = IpEndpoint::new(address(making.key.dst), making.key.dst_port);
        let (interface, _) = interfaces.get(endpoint.interface);
        let Endpoint { sockets, handle, .. } = &mut endpoint;
        sockets.get_mut::<Socket<'_>>(*handle).connect(interface.context(), remote, local).ok()?;
        Some(endpoint)
    }

    /// Feeds a segment the guard let pass. `frame` is what it came in, changed on the way. Returns what it proved of the path to the peer.
    pub(crate) fn feed<N: Lower>(
        &mut self,
        segment: &Segment,
        options: &TcpOptions,
        frame: &mut [u8],
        interfaces: &mut Interfaces,
        now: Micros,
        net: &mut N,
    ) -> Option<PathMtu> {
        let opening = !self.leg.guard.synchronized() && segment.flags.syn();
        if let Some(tcp) = frame.get_mut(segment.l4()..segment.end()) {
            if opening {
                self.leg.guard.peer_shift(options.wscale.unwrap_or(0));
            }
            self.leg.note_timestamp(segment, options, opening);
            if let Some(translator) = &self.leg.translator {
                translator.incoming::<false>(tcp);
            }
        }
        self.leg.now = now;
        let (guard, acknowledged) = (&self.leg.guard, self.leg.guard.snd_una() != self.acknowledged);
        let bare = segment.seq_len() == 0 && segment.seq == guard.rcv_ack() && !acknowledged;
        self.live.heard(bare, now);
        let mut proved = None;
        if acknowledged {
            let more = self.leg.guard.snd_una().minus(self.acknowledged);
            self.acknowledged = self.leg.guard.snd_una();
            self.progress = now;
            proved = self.leg.path.acknowledged(more, now);
        }
        let (interface, bench) = interfaces.get(self.interface);
        let mut wire = bench.wire(net, &mut self.leg, frame.get(segment.ip_range()));
        match interface.poll_ingress_single(clock::stack_time(now), &mut wire, &mut self.sockets) {
            PollIngressSingleResult::None
            | PollIngressSingleResult::PacketProcessed
            | PollIngressSingleResult::SocketStateChanged => {}
        }
        self.note_addressed(now);
        proved
    }

    /// Emits what the socket has to say, as far as there is room. True when it has more.
    pub(crate) fn emit<N: Lower>(&mut self, interfaces: &mut Interfaces, now: Micros, net: &mut N) -> bool {
        self.emit_as(Room::Asked, interfaces, now, net)
    }

    /// Emits whether or not there is room: the last words of a connection, which nobody will repeat.
    pub(crate) fn emit_last<N: Lower>(&mut self, interfaces: &mut Interfaces, now: Micros, net: &mut N) {
        self.emit_as(Room::Taken, interfaces, now, net);
    }

    fn emit_as<N: Lower>(&mut self, room: Room, interfaces: &mut Interfaces, now: Micros, net: &mut N) -> bool {
        if self.reset {
            return false;
        }
        // smoltcp's TIME-WAIT ends with its buffers emptied, unread payload included. Its clock stands still there; the session
        // decides when it is over.
        let at = if self.state() == State::TimeWait { *self.parted.get_or_insert(now) } else { now };
        let time = clock::stack_time(at);
        self.leg.now = now;
        let (interface, bench) = interfaces.get(self.interface);
        let mut more = false;
        let mut wire = bench.wire(net, &mut self.leg, None);
        for _ in 0..EGRESS_BURST {
            if room == Room::Asked && !wire.net.room(wire.leg.way) {
                more = interface.poll_at(time, &self.sockets).is_some_and(|at| at <= time);
                break;
            }
            more = interface.poll_egress(time, &mut wire, &mut self.sockets) != PollResult::None;
            if !more {
                break;
            }
        }
        self.note_addressed(now);
        more
    }

    /// When the socket wants [`Endpoint::emit`] next.
    pub(crate) fn emit_at(&mut self, interfaces: &mut Interfaces, now: Micros) -> Option<Micros> {
        if self.reset || self.state() == State::TimeWait {
            return None;
        }
        let (interface, _) = interfaces.get(self.interface);
        interface.poll_at(clock::stack_time(now), &self.sockets).map(clock::wall_time)
    }

    /// Wakes a socket that has something on its way and no timer. smoltcp's runs out when the window is closed by the time it fires, and
    /// only a segment starts the window probes: a late ACK that closed the window without need may have been the last to come.
    pub(crate) fn rouse<N: Lower>(&mut self, interfaces: &mut Interfaces, now: Micros, net: &mut N) {
        if self.reset || self.state() == State::TimeWait || !self.leg.guard.outstanding() {
            return;
        }
        let again = BareSegment {
            key: self.leg.key,
            direction: Direction::FromPeer,
            seq: self.leg.guard.rcv_ack(),
            ack: self.leg.guard.snd_una(),
            flags: Flags::ACK,
            window: self.leg.guard.peer_window(),
            ttl: segment::TTL,
            timestamp: None,
        };
        let mut room = [0; segment::PACKET_MAX];
        let Some(packet) = again.write(&mut room, TcpChecksum::Full).and_then(|len| room.get_mut(..len)) else {
            return;
        };
        if let (Some((_, tcp)), Some(translator)) = (split_ip(packet), &self.leg.translator) {
            translator.incoming::<false>(tcp);
        }
        self.leg.now = now;
        let (interface, bench) = interfaces.get(self.interface);
        let mut wire = bench.wire(net, &mut self.leg, Some(packet));
        interface.poll_ingress_single(clock::stack_time(now), &mut wire, &mut self.sockets);
    }

    fn note_addressed(&mut self, now: Micros) {
        if std::mem::take(&mut self.leg.asks) {
            self.live.addressed(now);
        }
    }

    /// Asks the peer whether it is there: it acknowledges again what it acknowledged (RFC 9293 section 3.8.4).
    pub(crate) fn ask<N: Lower>(&mut self, now: Micros, net: &mut N) {
        self.live.asked(now);
        if self.reset || !self.leg.guard.synchronized() || self.finished() {
            return;
        }
        let mut probe = self.leg.bare_ack(now);
        probe.seq = Seq(self.leg.guard.snd_una().0.wrapping_sub(1));
        send_bare(&probe, self.leg.way, net);
    }

    /// Stops sending after what is queued (FIN).
    pub(crate) fn close(&mut self) {
        self.leg.guard.closing();
        self.socket_mut().close();
    }

    /// Ends the connection with a RST, sent by the next [`Endpoint::emit`].
    pub(crate) fn abort(&mut self) {
        self.socket_mut().abort();
    }

    /// smoltcp's state.
    pub(crate) fn state(&self) -> State {
        self.socket().state()
    }

    /// The peer sent FIN.
    pub(crate) fn finished_sending(&self) -> bool {
        let state = self.state();
        matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait)
            || (state == State::Closed && self.leg.guard.fin_acknowledged())
    }

    /// The peer sent FIN, and everything before it was read.
    pub(crate) fn drained(&self) -> bool {
        self.finished_sending() && self.socket().recv_queue() == 0
    }

    /// Both directions ended with FIN and were acknowledged as far as we must see it.
    pub(crate) fn finished(&self) -> bool {
        match self.state() {
            State::TimeWait => true,
            State::Closed => self.leg.guard.fin_acknowledged(),
            _ => false,
        }
    }

    /// The socket.
    pub(crate) fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    /// The socket.
    pub(crate) fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

/// Moves what fits from one socket's receive buffer into the other's send buffer; the number of octets moved.
pub(crate) fn relay(from: &mut Endpoint, to: &mut Endpoint) -> u64 {
    let mut moved = 0_u64;
    let target = to.socket_mut();
    let source = from.socket_mut();
    // Twice, since each ring buffer gives one contiguous piece at a time, or a little more often when both wrap.
    for _ in 0..4 {
        if !target.can_send() || !source.can_recv() {
            break;
        }
        let Ok(sent) = source.recv(|octets| {
            let sent = target.send_slice(octets).unwrap_or(0);
            (sent, sent)
        }) else {
            break;
        };
        moved = moved.saturating_add(sent as u64);
    }
    moved
}

fn address(addr: sluice_filters::addr::Addr) -> IpAddress {
    addr.to_ip().into()
}
