//! Many connections on one virtual clock: an event queue, the ends, the legs, the stack between; and what is to be said of each
//! connection when it is over.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::icmp::{IcmpError, IcmpKind};
use sluice_filters::{DropReason, Parsed, RxChecksums, parse};
use sluice_tcpstack::record::{EndCause, SessionRecord};

use super::Time;
use super::app::App;
use super::engine::{Emitted, End, MS, SECOND, State, Tcp, reset_for};
use super::forger::{Forged, Forger, Message};
use super::leg::{Kind, Leg};
use super::middle::{PLACES, Place, Sluice, places};
use super::plan::{Plan, Settings, Welcome};
use super::random::Random;
use super::wire::{L3, Pattern, Seg, shown};

/// Connections of one world.
pub const CONNECTIONS: usize = 320;
/// Client number 0's port.
const FIRST_PORT: usize = 10_000;
/// When the stack is made.
const BEGIN: Time = SECOND;
/// A connection that has not ended by then never will.
const PATIENCE: Time = 900 * SECOND;
/// Dropped segments that a failure tells of.
const DROPS: usize = 5;
/// The stack's timers are looked at so often when nothing else happens.
const TICK: Time = 5 * MS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Start(u32),
    /// A frame at the end of a leg.
    Frame {
        connection: u32,
        leg: u8,
        frame: u32,
    },
    Wake {
        connection: u32,
        server: bool,
    },
    Forge(u32),
    /// A router says that it had to drop a frame on a leg.
    TooBig {
        connection: u32,
        leg: u8,
        frame: u32,
    },
    Tick,
}

struct Connection {
    plan: Plan,
    place: Place,
    client: Option<Tcp>,
    server: Option<Tcp>,
    apps: (App, App),
    /// Whom the server talks to.
    server_peer: (Addr, u16),
    syns: u32,
    /// Times it fell back to terminate mode.
    falls: u32,
    legs: [Leg; 4],
    wakes: [Option<Time>; 2],
    forger: Option<Forger>,
    /// For the hook.
    random: Random,
    record: Option<SessionRecord>,
    faults: Vec<String>,
    /// What the stack dropped last of it, and why.
    drops: VecDeque<String>,
    done: bool,
}

/// What became of a connection that was not as it should be.
#[derive(Clone, Debug)]
pub struct Failure {
    pub connection: usize,
    pub what: String,
    pub plan: String,
    /// The last segments of it that the stack dropped, and why.
    pub drops: Vec<String>,
}

/// What a run has seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub connections: u64,
    pub segments: u64,
    pub bytes: u64,
    /// How many ended by giving up on the last acknowledgment, payload and both FINs delivered.
    pub gave_up: u64,
    pub forged: u64,
    pub failures: Vec<Failure>,
}

pub struct World {
    settings: Settings,
    sluice: Option<Sluice>,
    connections: Vec<Option<Connection>>,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    order: u64,
    frames: Vec<Vec<u8>>,
    free: Vec<u32>,
    spare: Vec<Vec<u8>>,
    now: Time,
    open: usize,
    last_start: Time,
    trace: bool,
    report: Report,
    scratch: Vec<(bool, Vec<u8>)>,
    /// Whose segment the stack has before it.
    current: Option<usize>,
    /// Whose dial an upstream's port of ours belongs to.
    dials: HashMap<FlowKey, usize>,
}

/// Connection `n`'s own seed.
fn seed_of(seed: u64, n: usize) -> u64 {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

impl World {
    /// A run, or of `only` one of its connections, which is traced.
    pub fn new(seed: u64, settings: Settings, only: Option<usize>) -> World {
        let places = places(&mut Random::new(seed), settings.modes);
        let mut world = World {
            settings,
            sluice: (!settings.plain).then(|| Sluice::new(BEGIN, &places)),
            connections: Vec::with_capacity(CONNECTIONS),
            events: BinaryHeap::new(),
            order: 0,
            frames: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            now: BEGIN,
            open: 0,
            last_start: 0,
            trace: only.is_some(),
            report: Report::default(),
            scratch: Vec::new(),
            current: None,
            dials: HashMap::new(),
        };
        for n in 0..CONNECTIONS {
            let place = places[n % PLACES];
            if only.is_some_and(|only| only != n) {
                world.connections.push(None);
                continue;
            }
            let plan = Plan::draw(seed_of(seed, n), &place, &settings);
            let legs = [0, 1, 2, 3].map(|at| Leg::new(plan.legs[at].clone(), plan.random.fork(10 + at as u64)));
            world.at(plan.starts, Event::Start(n as u32));
            world.last_start = world.last_start.max(plan.starts);
            world.open += 1;
            world.connections.push(Some(Connection {
                place,
                client: None,
                server: None,
                apps: (App::new(plan.scripts.0.clone()), App::new(plan.scripts.1.clone())),
                server_peer: (Addr::v4(0), 0),
                syns: 0,
                falls: 0,
                legs,
                wakes: [None; 2],
                forger: settings.forger.then(|| Forger::new(plan.random.fork(20))),
                random: plan.random.fork(30),
                record: None,
                faults: Vec::new(),
                drops: VecDeque::new(),
                done: false,
                plan,
            }));
        }
        world
    }

    /// Runs until every connection has ended; what was seen.
    pub fn run(mut self) -> Report {
        self.report.connections = self.open as u64;
        if self.sluice.is_some() {
            self.at(BEGIN + TICK, Event::Tick);
        }
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = time;
            if let Some(sluice) = &mut self.sluice {
                sluice.turn(time);
                self.collect();
            }
            match event {
                Event::Start(n) => self.start(n as usize),
                Event::Frame { connection, leg, frame } => self.arrive(connection as usize, leg, frame),
                Event::Wake { connection, server } => self.wake(connection as usize, server),
                Event::Forge(n) => self.forge(n as usize),
                Event::TooBig { connection, leg, frame } => self.too_big(connection as usize, leg, frame),
                Event::Tick => self.at(time + TICK, Event::Tick),
            }
            if self.open == 0 || time > self.last_start + PATIENCE {
                break;
            }
        }
        self.judge_all();
        self.report
    }

    fn at(&mut self, time: Time, event: Event) {
        self.order += 1;
        self.events.push(Reverse((time, self.order, event)));
    }

    fn start(&mut self, n: usize) {
        let now = self.now;
        let Some(connection) = &mut self.connections[n] else { return };
        let plan = &connection.plan;
        let streams = (2 * n as u64, 2 * n as u64 + 1);
        connection.client = Some(Tcp::connect(plan.habits.0.clone(), streams, plan.isns.0, plan.clocks.0, now));
        if let Some(forger) = &mut connection.forger {
            let at = now + forger.pause();
            self.at(at, Event::Forge(n as u32));
        }
        self.tend(n, false);
    }

    fn wake(&mut self, n: usize, server: bool) {
        let now = self.now;
        let Some(connection) = &mut self.connections[n] else { return };
        let wakes = &mut connection.wakes[usize::from(server)];
        if *wakes != Some(now) {
            return;
        }
        *wakes = None;
        if let Some(tcp) = if server { &mut connection.server } else { &mut connection.client } {
            tcp.wake(now);
        }
        self.tend(n, server);
    }

    /// Lets an end's program run, sends what is to be sent, and says when to look again.
    fn tend(&mut self, n: usize, server: bool) {
        let now = self.now;
        let Some(connection) = &mut self.connections[n] else { return };
        let (tcp, app) = if server {
            (&mut connection.server, &mut connection.apps.1)
        } else {
            (&mut connection.client, &mut connection.apps.0)
        };
        let Some(tcp) = tcp else { return };
        let mut wakes = app.run(tcp, now);
        if let Some(at) = tcp.wakes_at().filter(|_| tcp.state != State::TimeWait) {
            wakes = Some(wakes.map_or(at, |wakes| wakes.min(at)));
        }
        let emitted = std::mem::take(&mut tcp.out);
        for emitted in &emitted {
            self.emit(n, server, emitted);
        }
        let Some(connection) = &mut self.connections[n] else { return };
        if let Some(tcp) = if server { &mut connection.server } else { &mut connection.client } {
            tcp.out = emitted;
            tcp.out.clear();
        }
        let known = &mut connection.wakes[usize::from(server)];
        if let Some(at) = wakes.map(|at| at.max(now + 1))
            && known.is_none_or(|known| at < known || known <= now)
        {
            *known = Some(at);
            self.at(at, Event::Wake { connection: n as u32, server });
        }
        self.look(n);
    }

    /// An end's segment onto its first leg.
    fn emit(&mut self, n: usize, server: bool, emitted: &Emitted) {
        let Some(connection) = &self.connections[n] else { return };
        let Connection { place, .. } = connection;
        let (src, dst) = match (server, self.settings.plain) {
            (false, _) => (place.client(n), place.service(n % PLACES)),
            (true, true) => (place.service(n % PLACES), place.client(n)),
            (true, false) => (place.upstream(n % PLACES), connection.server_peer),
        };
        let stream = 2 * n as u64 + u64::from(server);
        let payload = emitted.from.map_or(&[0][..], |from| Pattern::at(stream, from));
        let mut frame = self.buffer();
        emitted.seg.frame(src, dst, payload, &mut frame);
        self.carry(n, if server { 3 } else { 0 }, &emitted.seg, frame);
    }

    fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Keeps a frame's buffer for another.
    fn keep(&mut self, frame: Vec<u8>) {
        match &mut self.sluice {
            Some(sluice) if self.spare.len() >= 64 => sluice.recycle(frame),
            _ => self.spare.push(frame),
        }
    }

    /// Puts a frame on a leg.
    fn carry(&mut self, n: usize, leg: u8, seg: &Seg, frame: Vec<u8>) {
        let now = self.now;
        let repeats = self.settings.repeats || self.settings.plain;
        let Some(connection) = &mut self.connections[n] else { return };
        if let Some(hop) = connection.plan.hop.filter(|hop| hop.client_side == (leg < 2))
            && frame.len() - L3 > usize::from(hop.mtu)
        {
            if self.trace {
                eprintln!("{:>12.6} TOO BIG on leg {leg} for {hop:?}: {}", now as f64 / 1e6, shown(seg));
            }
            if hop.silent {
                return self.keep(frame);
            }
            let frame = self.store(frame);
            return self.at(now + 50, Event::TooBig { connection: n as u32, leg, frame });
        }
        // What nobody repeats today: the ACK with the cookie of a client that waits for its server's first word.
        let spared = leg == 0
            && !repeats
            && Kind::of(seg) == Kind::Bare
            && connection.server.is_none()
            && connection.plan.client_waits();
        let arrivals = connection.legs[usize::from(leg)].carry(seg, now, spared);
        self.report.segments += 1;
        if self.trace {
            let lost = if arrivals[0].is_none() { "  LOST" } else { "" };
            let name = ["client -> ", "        -> client", "        -> server", "server -> "][usize::from(leg)];
            eprintln!("{:>12.6} {name:<18} {}{lost}", now as f64 / 1e6, shown(seg));
        }
        let [first, second] = arrivals;
        if let (Some(at), Some(_)) = (second, first) {
            let copy = frame.clone();
            self.fly(n, leg, copy, at);
        }
        if let Some(at) = first.or(second) {
            self.fly(n, leg, frame, at);
        } else {
            self.keep(frame);
        }
    }

    fn fly(&mut self, n: usize, leg: u8, frame: Vec<u8>, at: Time) {
        let frame = self.store(frame);
        self.at(at, Event::Frame { connection: n as u32, leg, frame });
    }

    fn store(&mut self, frame: Vec<u8>) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.frames[index as usize] = frame;
                index
            }
            None => {
                self.frames.push(frame);
                (self.frames.len() - 1) as u32
            }
        }
    }

    fn taken(&mut self, index: u32) -> Vec<u8> {
        self.free.push(index);
        std::mem::take(&mut self.frames[index as usize])
    }

    fn arrive(&mut self, n: usize, leg: u8, index: u32) {
        let frame = self.taken(index);
        match leg {
            0 => self.reach_middle(n, frame, true),
            3 => self.reach_middle(n, frame, false),
            _ => {
                self.reach_end(n, &frame, leg == 2);
                self.keep(frame);
            }
        }
    }

    fn reach_middle(&mut self, n: usize, mut frame: Vec<u8>, from_client: bool) {
        let Some(sluice) = &mut self.sluice else {
            let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::GOOD) else { return };
            let seg = Seg::of(&segment, &frame);
            self.carry(n, if from_client { 2 } else { 1 }, &seg, frame);
            return;
        };
        if let (Some(hook), Some(connection), Ok(Parsed::Tcp(segment))) =
            (self.settings.hook, &mut self.connections[n], parse(&frame, RxChecksums::GOOD))
        {
            hook(&mut sluice.stack, &segment.key, &mut connection.random);
        }
        self.current = Some(n);
        // What is dropped was not rewritten.
        if let Err(reason) = sluice.receive(&mut frame, from_client)
            && let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::GOOD)
        {
            let from = if from_client { "client" } else { "server" };
            let seg = shown(&Seg::of(&segment, &frame));
            let said = format!("{:>12.6} DROPPED of {from}: {reason:?}: {seg}", self.now as f64 / 1e6);
            if self.trace {
                eprintln!("{said}");
            }
            if let Some(connection) = &mut self.connections[n] {
                if connection.drops.len() == DROPS {
                    connection.drops.pop_front();
                }
                connection.drops.push_back(said);
            }
        }
        self.keep(frame);
        self.collect();
        self.current = None;
    }

    /// Puts what the stack sent on its legs, and files the records.
    fn collect(&mut self) {
        let Some(sluice) = &mut self.sluice else { return };
        let mut sent = std::mem::take(&mut self.scratch);
        sluice.sent(&mut sent);
        let records: Vec<SessionRecord> = std::iter::from_fn(|| sluice.record()).collect();
        for record in records {
            self.file(record);
        }
        for (to_client, frame) in sent.drain(..) {
            self.leave(to_client, frame);
        }
        self.scratch = sent;
    }

    fn file(&mut self, record: SessionRecord) {
        let n = usize::from(record.client.port()).wrapping_sub(FIRST_PORT);
        if self.trace {
            eprintln!("{:>12.6} RECORD {record:?}", self.now as f64 / 1e6);
        }
        let Some(Some(connection)) = self.connections.get_mut(n) else { return };
        if connection.record.is_some() {
            connection.faults.push(format!("a second record: {record:?}"));
        }
        connection.record = Some(record);
        self.look(n);
    }

    /// A frame of the stack's onto the leg it belongs to.
    fn leave(&mut self, to_client: bool, frame: Vec<u8>) {
        match parse(&frame, RxChecksums::GOOD) {
            Ok(Parsed::Tcp(segment)) => {
                let key = segment.key;
                let seg = Seg::of(&segment, &frame);
                if !to_client
                    && seg.flags.is_initial_syn()
                    && let Some(current) = self.current
                {
                    self.dials.insert(key, current);
                }
                let Some(n) = self.whose(to_client, &key) else { panic!("nobody's: {key:?}") };
                self.carry(n, if to_client { 1 } else { 2 }, &seg, frame);
            }
            Ok(Parsed::Icmp(packet) | Parsed::Icmp6(packet)) => {
                let Some(error) = IcmpError::read(&frame, &packet) else { panic!("an ICMP message nobody reads") };
                let Some(n) = self.whose(to_client, &error.key) else { return };
                self.tell(n, !to_client, error.kind, error.seq.0);
            }
            other => panic!("the stack sent {other:?}"),
        }
    }

    /// Whose a packet is that leaves along `key`.
    fn whose(&self, to_client: bool, key: &FlowKey) -> Option<usize> {
        if to_client { usize::from(key.dst_port).checked_sub(FIRST_PORT) } else { self.dials.get(key).copied() }
    }

    /// An ICMP error reaches the end whose segment it is about.
    fn tell(&mut self, n: usize, server: bool, kind: IcmpKind, number: u32) {
        let now = self.now;
        let Some(Some(connection)) = self.connections.get_mut(n) else { return };
        let v4 = match (server, self.settings.plain) {
            (true, false) => connection.place.upstream_v4,
            _ => connection.place.client_v4,
        };
        let Some(tcp) = (if server { &mut connection.server } else { &mut connection.client }) else { return };
        // Unreachable is a hint to what is connected (RFC 5927 section 6).
        if let IcmpKind::TooBig(mtu) = kind {
            tcp.too_big(i64::from(mtu) - if v4 { 40 } else { 60 }, number, now);
            self.tend(n, server);
        }
    }

    /// The sender of a segment that was too big for a router hears of it.
    fn too_big(&mut self, n: usize, leg: u8, index: u32) {
        let frame = self.taken(index);
        let hop = self.connections[n].as_ref().and_then(|connection| connection.plan.hop);
        let (Ok(Parsed::Tcp(segment)), Some(hop)) = (parse(&frame, RxChecksums::GOOD), hop) else { return };
        let kind = IcmpKind::TooBig(u32::from(hop.mtu));
        match (leg, &mut self.sluice) {
            (1 | 2, Some(sluice)) => {
                let FlowKey { src, dst, src_port, dst_port } = segment.key;
                let key = FlowKey { src: dst, dst: src, src_port: dst_port, dst_port: src_port };
                // Of a connection that is over, nobody wants to know.
                let _: Result<(), DropReason> = sluice.icmp(key, kind, segment.seq.0, (frame.len() - L3) as u16);
                self.collect();
            }
            _ => self.tell(n, leg == 1 || leg == 3, kind, segment.seq.0),
        }
        self.keep(frame);
    }

    fn reach_end(&mut self, n: usize, frame: &[u8], server: bool) {
        let now = self.now;
        let segment = match parse(frame, RxChecksums::default()) {
            Ok(Parsed::Tcp(segment)) => segment,
            other => panic!("the stack sent {other:?}"),
        };
        let seg = Seg::of(&segment, frame);
        let payload = segment.payload(frame);
        if self.trace {
            let name = if server { "server" } else { "client" };
            eprintln!("{:>12.6}          {name} gets {}", now as f64 / 1e6, shown(&seg));
        }
        let Some(connection) = &mut self.connections[n] else { return };
        if !server {
            if let Some(tcp) = &mut connection.client {
                tcp.receive(&seg, payload, now);
            }
            self.tend(n, false);
            return;
        }
        let peer = (segment.key.src, segment.key.src_port);
        let initial = seg.flags.is_initial_syn();
        let known = connection.server.is_some() && connection.server_peer == peer;
        if known {
            if let Some(tcp) = &mut connection.server {
                tcp.receive(&seg, payload, now);
            }
            self.tend(n, true);
            return;
        }
        // A dial that found less than was promised is reset, and another one follows.
        let unused = connection.place.splice
            && connection.server.as_ref().is_some_and(|tcp| {
                tcp.received() == 0 && matches!(tcp.state, State::SynReceived | State::Open | State::Closed(End::Reset))
            });
        if initial && unused {
            connection.server = None;
            connection.apps.1 = App::new(connection.plan.scripts.1.clone());
            connection.falls += 1;
        }
        if initial && connection.server.is_none() && connection.falls <= 1 {
            connection.server_peer = peer;
            connection.syns += 1;
            match connection.plan.welcome {
                Welcome::Late(deaf) if connection.syns <= deaf => return,
                Welcome::Refuses => {}
                Welcome::Late(_) | Welcome::Accepts => {
                    let plan = &connection.plan;
                    let streams = (2 * n as u64 + 1, 2 * n as u64);
                    let mut tcp = Tcp::accept(plan.habits.1.clone(), streams, plan.isns.1, plan.clocks.1, &seg, now);
                    if !self.settings.plain {
                        tcp.expect(connection.place.header(n));
                    }
                    connection.server = Some(tcp);
                    self.tend(n, true);
                    return;
                }
            }
        } else if initial {
            connection.faults.push(format!("a second connection to the server, from port {}", peer.1));
        }
        if let Some(seg) = reset_for(&seg) {
            let before = std::mem::replace(&mut connection.server_peer, peer);
            self.emit(n, true, &Emitted { seg, from: None });
            if let Some(connection) = &mut self.connections[n]
                && connection.server.is_some()
            {
                connection.server_peer = before;
            }
        }
    }

    fn forge(&mut self, n: usize) {
        let now = self.now;
        let plain = self.settings.plain;
        let Some(connection) = &mut self.connections[n] else { return };
        if connection.done {
            return;
        }
        let Some(forger) = &mut connection.forger else { return };
        let next = now + forger.pause();
        let (Some(client), server) = (&connection.client, &connection.server) else { return };
        let messages = forger.forge(&connection.plan, client, server.as_ref(), connection.place.header(n).len(), now);
        let place = connection.place;
        let peer = connection.server_peer;
        self.at(next, Event::Forge(n as u32));
        for Forged { from_client, message } in messages {
            self.report.forged += 1;
            match message {
                Message::Segment(seg) => {
                    let (src, dst) = match (from_client, plain) {
                        (true, _) => (place.client(n), place.service(n % PLACES)),
                        (false, true) => (place.service(n % PLACES), place.client(n)),
                        (false, false) if peer.1 == 0 => continue,
                        (false, false) => (place.upstream(n % PLACES), peer),
                    };
                    if self.trace {
                        let name = if from_client { "client" } else { "server" };
                        eprintln!("{:>12.6} FORGED as {name}: {}", now as f64 / 1e6, shown(&seg));
                    }
                    let mut frame = Vec::new();
                    seg.frame(src, dst, &[0xf0; 1500], &mut frame);
                    self.reach_middle(n, frame, from_client);
                }
                Message::Icmp { kind, number, len } => {
                    if self.trace {
                        eprintln!("{:>12.6} FORGED {kind:?} about {number}, to client {from_client}", now as f64 / 1e6);
                    }
                    let Some(sluice) = &mut self.sluice else {
                        // It is about the segments of the other end.
                        self.tell(n, from_client, kind, number);
                        continue;
                    };
                    let (src, dst) = if from_client {
                        (place.client(n), place.service(n % PLACES))
                    } else {
                        (place.upstream(n % PLACES), peer)
                    };
                    let key = FlowKey { src: src.0, dst: dst.0, src_port: src.1, dst_port: dst.1 };
                    let _: Result<(), DropReason> = sluice.icmp(key, kind, number, len);
                    self.collect();
                }
            }
        }
    }

    /// Whether a connection is over.
    fn look(&mut self, n: usize) {
        let plain = self.settings.plain;
        let Some(Some(connection)) = self.connections.get_mut(n) else { return };
        let ends =
            connection.client.as_ref().is_some_and(Tcp::is_over) && connection.server.as_ref().is_none_or(Tcp::is_over);
        if !connection.done && ends && (plain || connection.record.is_some()) {
            connection.done = true;
            self.open -= 1;
        }
    }

    fn judge_all(&mut self) {
        for (n, connection) in self.connections.iter_mut().enumerate() {
            let Some(connection) = connection else { continue };
            let mut faults = std::mem::take(&mut connection.faults);
            connection.judge(&self.settings, &mut faults, &mut self.report);
            if self.trace {
                eprintln!("{faults:?}\n{:?}", connection.plan);
            }
            if !faults.is_empty() {
                let failure = Failure {
                    connection: n,
                    what: faults.join("; "),
                    plan: format!("{:?} {:?}", connection.place, connection.plan.scripts),
                    drops: connection.drops.iter().cloned().collect(),
                };
                self.report.failures.push(failure);
            }
        }
        if let Some(sluice) = &self.sluice
            && self.report.failures.is_empty()
            && sluice.stack.sessions() > 0
        {
            let what = format!("{} sessions are left", sluice.stack.sessions());
            self.report.failures.push(Failure { connection: usize::MAX, what, plan: String::new(), drops: Vec::new() });
        }
    }
}

impl Connection {
    fn judge(&self, settings: &Settings, faults: &mut Vec<String>, report: &mut Report) {
        let Some(client) = &self.client else { return };
        let (up, down) = (self.plan.scripts.0.says, self.plan.scripts.1.says);
        if client.corrupt {
            faults.push("the client took foreign bytes".into());
        }
        let silent = !self.plan.scripts.0.first || self.plan.scripts.0.says == 0;
        if self.server.is_none() && self.record.is_none() && settings.repeats && !settings.plain && silent {
            // The last ACK was lost, and every SYN-ACK that was sent again: a client with nothing to say waits, as before any kernel.
            report.gave_up += 1;
            return;
        }
        if !client.is_over() {
            faults.push(format!("the client never ends: {:?}, {} of {down} bytes", client.state, client.received()));
        }
        if self.plan.welcome == Welcome::Refuses {
            if !matches!(client.state, State::Closed(_)) {
                faults.push(format!("refused, and the client is {:?}", client.state));
            }
            self.judge_record(settings, &[EndCause::DialFailed, EndCause::ClientReset], (0, 0), (0, 0), faults);
            return;
        }
        let Some(server) = &self.server else {
            let resets = self.plan.scripts.0.leave.resets();
            if !resets {
                faults
                    .push(format!("the server never heard of it; client {:?}, record {:?}", client.state, self.record));
            }
            return;
        };
        if server.corrupt {
            faults.push("the server took foreign bytes".into());
        }
        if !server.is_over() {
            faults.push(format!("the server never ends: {:?}, {} of {up} bytes", server.state, server.received()));
        }
        report.bytes += (client.received() + server.received()) as u64;
        let resets = (self.plan.scripts.0.leave.resets(), self.plan.scripts.1.leave.resets());
        if resets == (false, false) {
            for (name, tcp, whole) in [("server", server, up), ("client", client, down)] {
                if tcp.received() != whole || !tcp.eof {
                    faults.push(format!(
                        "the {name} got {} of {whole} bytes{}, and is {:?}",
                        tcp.received(),
                        if tcp.eof { " and FIN" } else { "" },
                        tcp.state
                    ));
                }
                match tcp.state {
                    State::Closed(End::Timeout | End::Reset) => report.gave_up += 1,
                    State::Closed(End::Done) | State::TimeWait => {}
                    other => faults.push(format!("the {name} is {other:?}")),
                }
            }
            self.judge_record(settings, &[EndCause::Closed], (up, up), (down, down), faults);
        } else {
            // Counted is at least what its sender knows to have arrived, and at most what it sent.
            let up = (client.acknowledged().min(server.received()), client.sent());
            let down = (server.acknowledged().min(client.received()), server.sent());
            // A lost RST leaves the other end to its timeouts, or to a RST of its own.
            let mut causes = vec![EndCause::Closed];
            if resets.0 {
                causes.extend([EndCause::ClientReset, EndCause::ClientIdle, EndCause::ClientTimeout]);
            }
            if resets.1 {
                causes.extend([EndCause::UpstreamReset, EndCause::UpstreamIdle, EndCause::UpstreamTimeout]);
            }
            self.judge_record(settings, &causes, up, down, faults);
        }
    }

    fn judge_record(
        &self,
        settings: &Settings,
        causes: &[EndCause],
        up: (i64, i64),
        down: (i64, i64),
        faults: &mut Vec<String>,
    ) {
        if settings.plain {
            return;
        }
        let Some(record) = &self.record else {
            faults.push("the stack's session never ends".into());
            return;
        };
        if settings.hook.is_some() {
            // Who forgets cannot tell.
            return;
        }
        // Of two resets in the same moment, one of them forged, nobody in the middle can tell which came first.
        let reset = |cause: &EndCause| matches!(cause, EndCause::ClientReset | EndCause::UpstreamReset);
        let either = settings.forger && reset(&record.cause) && causes.iter().any(reset);
        if !causes.contains(&record.cause) && !either {
            faults.push(format!("the session ended as {:?}", record.cause));
        }
        for (name, bytes, (least, most)) in
            [("upstream", record.bytes_to_upstream, up), ("client", record.bytes_to_client, down)]
        {
            if (bytes as i64) < least || bytes as i64 > most {
                faults.push(format!("the record says {bytes} bytes to the {name}, which got {least} to {most}"));
            }
        }
    }
}
