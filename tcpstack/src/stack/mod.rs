//! One worker's TCP: cookies, the flow table, and what both modes share around their sessions.
//!
//! A segment is looked up in the flow table and handed to its session's mode: `terminate` feeds it to a socket and serves the
//! session at the end of the burst, `splice` rewrites it and sends it on. Without a flow, a valid cookie opens a session.
//! State exists only for clients that returned one. No clock, no random source, no I/O: time, seeds and the [`Lower`] below
//! are handed in.

pub(crate) mod dial;
pub(crate) mod ending;
pub(crate) mod header;
mod icmp;
pub(crate) mod ingress;
pub(crate) mod linger;
mod peace;
mod serve;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use siphasher::sip::SipHasher13;
use sluice_config::{Config, Mode};
use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::counter::Counter;
use sluice_filters::engine::Engine;
use sluice_filters::units::{Micros, PortId, ServiceId, WorkerId};
use sluice_filters::{DropReason, Segment};

use self::dial::{Balancer, SourcePorts};
use self::header::Pressure;
use self::linger::Lingers;
use self::peace::Peace;
use crate::cookie::{Jar, SynAckProfile};
use crate::counters::StackCounters;
use crate::flow::FlowTable;
use crate::limits::SharedLimits;
use crate::net::{Lower, Way};
use crate::path_mtu::PathMtus;
use crate::proxy::KeyRing;
use crate::record::{EndCause, SessionRecord};
use crate::segment::{BareSegment, TcpChecksum};
use crate::slab::Slab;
use crate::splice::HeldOctets;
use crate::splice::probe::Probes;
use crate::splice::promise::{Board, Shown, SynOffers};
use crate::splice::{End, Splices};
use crate::terminate::clock;
use crate::terminate::endpoint::Interfaces;
use crate::terminate::session::Session;
use crate::wheel::Wheel;

pub use crate::splice::Forward;
pub use crate::terminate::clock::timestamp_ms;

/// A challenge ACK goes to one connection at most this often (RFC 5961 section 7).
pub(crate) const CHALLENGE_PAUSE: Duration = Duration::from_millis(500);

/// What all workers' stacks share.
#[derive(Debug)]
pub struct Shared {
    /// Connection limits.
    pub limits: SharedLimits,
    /// Ended connections, on their way to the connection log.
    pub records: ArrayQueue<SessionRecord>,
    /// What is known of spliced services' upstreams, and what SYN-ACKs promised.
    pub(crate) board: Board,
    /// The keys that sign PROXY headers.
    pub(crate) keys: Arc<KeyRing>,
    /// When a SYN was last answered that its flow's owner did not note, microseconds.
    pub(crate) unnoted: AtomicU64,
}

impl Shared {
    /// For workers with `config`, up to `records` ended connections waiting. `secret` keys the limits' map of sources, `keys` sign
    /// PROXY headers.
    #[must_use]
    pub fn new(config: &Config, secret: [u64; 2], records: usize, keys: Arc<KeyRing>) -> Shared {
        Shared {
            limits: SharedLimits::new(config, secret),
            records: ArrayQueue::new(records),
            board: Board::new(config),
            keys,
            unnoted: AtomicU64::new(0),
        }
    }
}

/// What a stack is made with.
pub struct Setup {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// Whose stack it is.
    pub worker: WorkerId,
    /// Where it counts.
    pub counters: Arc<StackCounters>,
    /// What it shares with the other workers.
    pub shared: Arc<Shared>,
    /// What is asked of clients before memory is spent on them.
    pub filters: Engine,
    /// The cookies' key ring.
    pub jar: Jar,
    /// Secret octets of this worker's own.
    pub entropy: [u8; 48],
    /// The port MTUs, by [`PortId`].
    pub mtus: Vec<u16>,
    /// When it was made.
    pub now: Micros,
}

/// How a received segment came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Through this port.
    pub port: PortId,
    /// From this Ethernet address.
    pub mac: [u8; 6],
    /// The frame's checksum was never computed, since it did not cross a wire; its contents are intact.
    pub unfinished: bool,
}

/// What becomes of a segment that was taken.
#[must_use = "a frame to forward still has to be sent"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its content was taken.
    Consumed,
    /// It was rewritten: send it on as [`Stack::forward`] says.
    Forward,
}

/// One worker's TCP.
pub struct Stack {
    /// What is asked of clients: by the worker when a segment arrives, by the stack before it opens a session.
    pub filters: Engine,
    // A copy of this worker's own: its count of owners is touched for every session served.
    pub(crate) config: Rc<Config>,
    pub(crate) worker: WorkerId,
    pub(crate) counters: Arc<StackCounters>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) jar: Jar,
    pub(crate) flows: FlowTable,
    pub(crate) sessions: Slab<Session>,
    /// By service: how many of its connections fell back to terminate mode, and how many may at once.
    pub(crate) fallen: Vec<(u32, u32)>,
    pub(crate) splices: Splices,
    pub(crate) splice_wheel: Wheel,
    /// Where the resets at the end of the drain go on: of terminated sessions, and of spliced ones.
    reset_next: (u32, u32),
    pub(crate) held: HeldOctets,
    /// Where services listen, each once, and the places in that list.
    pub(crate) listens: Vec<End>,
    pub(crate) listen_index: HashMap<(Addr, u16), u32>,
    /// By service: what SYN-ACKs say in the epoch that mints, and said or will say in the other one. Open until somebody asks.
    pub(crate) offers: Vec<Cell<SynOffers>>,
    pub(crate) other_offers: Vec<Cell<SynOffers>>,
    /// What is shown of them, and the services that it changed for.
    pub(crate) shown: Shown,
    pub(crate) changed: Vec<ServiceId>,
    pub(crate) probes: Probes,
    pub(crate) lingers: Lingers,
    pub(crate) wheel: Wheel,
    pub(crate) interfaces: Interfaces,
    pub(crate) path_mtus: PathMtus,
    pub(crate) source_ports: SourcePorts,
    pub(crate) balancers: Vec<Balancer>,
    pub(crate) mtus: Vec<u16>,
    pub(crate) isn_key: [u64; 2],
    /// The first half of this worker's unique ids, and how many there were.
    pub(crate) id_prefix: u64,
    pub(crate) named: u64,
    /// By service: whether it is under attack.
    pub(crate) pressures: Vec<Pressure>,
    /// The one that is looked at next.
    pub(crate) next_pressure: usize,
    /// Unix time of this turn.
    pub(crate) wall: Duration,
    /// How far that is ahead of our own clock, microseconds, modulo 2^64.
    wall_ahead: u64,
    /// The timestamp clock of this turn.
    pub(crate) timestamp_ms: u32,
    pub(crate) dirty: Vec<u32>,
    pub(crate) due: Vec<u32>,
    pub(crate) draining: bool,
    /// SYNs are noted when they are answered, or are not answered at all.
    pub(crate) careful: bool,
    pub(crate) peace: Peace,
    /// How the last forwarded segment leaves. Kept here and not returned: handed up through several calls, its small fields would be
    /// copied in larger pieces than they were written in, for which the processor waits.
    pub(crate) forward: Forward,
}

/// Which end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Upstream,
}

impl Side {
    #[inline]
    pub(crate) fn other(self) -> Side {
        match self {
            Side::Client => Side::Upstream,
            Side::Upstream => Side::Client,
        }
    }
}

/// What a flow table value points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowRef {
    Session(Side, u32),
    Splice(Side, u32),
    Linger(u32),
    Probe(u32),
}

impl FlowRef {
    pub(crate) fn value(self) -> u32 {
        match self {
            FlowRef::Session(Side::Client, index) => index << 3,
            FlowRef::Session(Side::Upstream, index) => index << 3 | 1,
            FlowRef::Splice(Side::Client, index) => index << 3 | 2,
            FlowRef::Splice(Side::Upstream, index) => index << 3 | 3,
            FlowRef::Linger(index) => index << 3 | 4,
            FlowRef::Probe(index) => index << 3 | 5,
        }
    }

    pub(crate) fn from_value(value: u32) -> FlowRef {
        match value & 7 {
            0 => FlowRef::Session(Side::Client, value >> 3),
            1 => FlowRef::Session(Side::Upstream, value >> 3),
            2 => FlowRef::Splice(Side::Client, value >> 3),
            3 => FlowRef::Splice(Side::Upstream, value >> 3),
            4 => FlowRef::Linger(value >> 3),
            _ => FlowRef::Probe(value >> 3),
        }
    }
}

/// The wheel's ids: sessions even, lingering connections odd.
pub(crate) fn session_timer(index: u32) -> u32 {
    index << 1
}

pub(crate) fn linger_timer(index: u32) -> u32 {
    index << 1 | 1
}

impl Stack {
    /// A stack without connections.
    #[must_use]
    #[allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "places known here in an array of known length"
    )]
    pub fn new(setup: Setup) -> Stack {
        let Setup { config, worker, counters, shared, filters, jar, entropy, mtus, now } = setup;
        let word = |at: usize| {
            let mut octets = [0; 8];
            octets.copy_from_slice(&entropy[at * 8..at * 8 + 8]);
            u64::from_le_bytes(octets)
        };
        let half = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&entropy[at..at + 16]);
            octets
        };
        // Two entries a connection, and one for what is left of an ended one.
        let connections: u64 = config.services.iter().map(|service| u64::from(service.limits.connections)).sum();
        let flows = usize::try_from(connections.saturating_mul(2)).unwrap_or(usize::MAX).min(FLOWS_MAX);
        let spliced = config.services.iter().filter(|service| service.mode == Mode::Splice);
        let spliced: u64 = spliced.map(|service| u64::from(service.limits.connections)).sum();
        let spliced = usize::try_from(spliced).unwrap_or(usize::MAX).min(FLOWS_MAX / 2);
        let mut listens = Vec::new();
        let mut listen_index = HashMap::new();
        for listen in config.services.iter().flat_map(|service| &service.listen) {
            let end = End { addr: listen.ip().into(), port: listen.port() };
            listen_index.insert((end.addr, end.port), listens.len() as u32);
            listens.push(end);
        }
        let open = vec![Cell::new(SynOffers::OPEN); config.services.len()];
        // One worker's probes are enough.
        let probes = if worker == WorkerId(0) { Probes::of(&config, now) } else { Probes::none(now) };
        let terminated = config.services.iter().filter(|service| service.mode == Mode::Terminate);
        let terminated: u64 = terminated.map(|service| u64::from(service.limits.connections)).sum();
        let fallbacks = config.services.iter().filter(|service| service.mode == Mode::Splice);
        let fallbacks: u64 = fallbacks.map(|service| u64::from(service.fallbacks_max())).sum();
        let sessions = usize::try_from(terminated.saturating_add(fallbacks)).unwrap_or(usize::MAX).min(FLOWS_MAX / 2);
        let workers = config.runtime.cores.len().max(1) as u32;
        let fallen = config.services.iter().map(|service| (0, service.fallbacks_max().div_ceil(workers))).collect();
        let mut wheel = Wheel::new(now);
        wheel.reserve(sessions.max(linger::MAX).saturating_mul(2));
        let mut splice_wheel = Wheel::new(now);
        splice_wheel.reserve(spliced);
        let balancers = config.services.iter().map(Balancer::new).collect();
        let peace = Peace::new(&config, [word(4), word(5)], now);
        // Whoever answered SYNs before did not say to whom.
        shared.unnoted.fetch_max(now.0, Ordering::Relaxed);
        let mut stack = Stack {
            filters,
            worker,
            counters,
            shared,
            jar,
            flows: FlowTable::new(flows.saturating_add(linger::MAX).saturating_add(probes.len()), half(0)),
            sessions: Slab::new(sessions),
            fallen,
            splices: Splices::new(spliced),
            splice_wheel,
            reset_next: (0, 0),
            held: HeldOctets::none(config.services.len()),
            listens,
            listen_index,
            offers: open.clone(),
            other_offers: open,
            shown: Shown::nothing(config.services.len()),
            changed: Vec::new(),
            probes,
            lingers: Lingers::new(),
            wheel,
            // No secret: the numbers smoltcp draws are translated before anyone sees them.
            interfaces: Interfaces::new(u64::from(worker.0)),
            path_mtus: PathMtus::new([word(2), word(3)]),
            source_ports: SourcePorts::new(&config, worker, half(16)),
            balancers,
            mtus,
            isn_key: [word(4), word(5)],
            id_prefix: SipHasher13::new_with_keys(word(4), word(5)).hash(b"unique id"),
            named: 0,
            pressures: vec![Pressure::default(); config.services.len()],
            next_pressure: 0,
            wall: Duration::ZERO,
            wall_ahead: 0,
            timestamp_ms: clock::timestamp_ms(now),
            dirty: Vec::with_capacity(256),
            due: Vec::with_capacity(256),
            draining: false,
            careful: peace.notes(),
            peace,
            forward: Forward::NONE,
            config: Rc::new(Config::clone(&config)),
        };
        stack.refresh_offers();
        stack
    }

    /// Starts a turn: the clocks' readings for all that follows in it. `wall` is Unix time, for the cookies' epochs, the ends of bans
    /// and the times in signed headers; unlike `now` it may step either way.
    pub fn begin_turn(&mut self, now: Micros, wall: Duration) {
        self.timestamp_ms = clock::timestamp_ms(now);
        clock::set_timestamp_clock(now);
        self.wall = wall;
        // Before 1970 nothing is ahead, and the clock stands still.
        let ahead = u64::try_from(wall.as_micros()).unwrap_or(u64::MAX).saturating_sub(now.0);
        let rolls = if self.wall_ahead == ahead {
            self.jar.tick(wall)
        } else {
            let step = Duration::from_micros(self.wall_ahead.abs_diff(ahead));
            self.wall_ahead = ahead;
            self.filters.set_wall_ahead(ahead);
            if self.jar.step(wall, step) {
                self.clock_was_set(now);
            }
            true
        };
        if rolls {
            self.forget_promises();
        }
        self.begin_peaceful_turn(now);
    }

    /// The flow table's hash of `key`.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        self.flows.hash(key)
    }

    /// Brings the flow's table entry into the cache, for a [`Stack::segment`] soon to come.
    #[inline]
    pub fn touch(&self, hash: u64) {
        self.flows.touch(hash);
    }

    /// Brings the flow's session into the cache, once its table entry is there.
    #[inline]
    pub fn touch_session(&self, hash: u64, key: &FlowKey) {
        if let Some(FlowRef::Splice(_, index)) = self.flows.find(hash, key).map(FlowRef::from_value) {
            self.splices.touch(index);
        }
    }

    /// Answers a SYN to a service with a cookie, in the same frame; keeps nothing but, in peace, a note of it. The
    /// frame's buffer must reach to [`crate::cookie::SYN_ACK_MAX`] octets or further; returns the answer's length.
    ///
    /// # Errors
    /// [`DropReason::Draining`] while no new connections are wanted.
    // Called once, in the middle of a worker's first pass: there the segment stays in registers.
    #[inline(always)]
    pub fn answer_syn(
        &mut self,
        frame: &mut [u8],
        segment: &Segment,
        service: ServiceId,
        port: PortId,
        our_mac: [u8; 6],
    ) -> Result<usize, DropReason> {
        if self.careful {
            // A copy: the original stays in registers.
            return self.answer_with_care(frame, &segment.aside(), service, port, our_mac);
        }
        self.answer(frame, segment, service, port, our_mac)
    }

    #[inline(always)]
    fn answer(
        &mut self,
        frame: &mut [u8],
        segment: &Segment,
        service: ServiceId,
        port: PortId,
        our_mac: [u8; 6],
    ) -> Result<usize, DropReason> {
        let Some(offers) = self.offers.get(usize::from(service.0)).map(Cell::get) else {
            return Err(DropReason::NotAService);
        };
        let len = match offers.wscale {
            // What terminate mode and nearly every upstream can do is compiled by itself.
            Some(shift) if offers.sack & offers.timestamps => {
                let profile = SynAckProfile {
                    wscale: Some(shift),
                    sack: true,
                    timestamps: true,
                    ..self.profile(&offers, segment, port, our_mac)
                };
                self.jar.answer_syn(frame, segment, &profile, self.timestamp_ms)
            }
            _ => self.answer_sparingly(frame, &segment.aside(), service, port, our_mac),
        };
        let len = len.ok_or(DropReason::Truncated)?;
        self.counters.cookies_sent.bump();
        if let Some(counters) = self.counters.services.get(usize::from(service.0)) {
            counters.syns.bump();
        }
        Ok(len)
    }

    #[inline(always)]
    fn profile(&self, offers: &SynOffers, segment: &Segment, port: PortId, our_mac: [u8; 6]) -> SynAckProfile {
        SynAckProfile {
            mss: self.mss_on(offers, port, segment.is_v4()),
            wscale: offers.wscale,
            window: offers.window,
            sack: offers.sack,
            timestamps: offers.timestamps,
            src_mac: our_mac,
            tcp_checksum: TcpChecksum::Full,
        }
    }

    /// For an epoch's first SYN, and for upstreams that cannot do everything.
    #[inline(never)]
    fn answer_sparingly(
        &self,
        frame: &mut [u8],
        segment: &Segment,
        service: ServiceId,
        port: PortId,
        our_mac: [u8; 6],
    ) -> Option<usize> {
        let offers = match self.offers.get(usize::from(service.0))?.get() {
            SynOffers::OPEN => self.fix_promise(service, true)?,
            offers => offers,
        };
        let profile = self.profile(&offers, segment, port, our_mac);
        self.jar.answer_syn(frame, segment, &profile, self.timestamp_ms)
    }

    /// How the segment leaves for which [`Stack::segment`] has just said [`Outcome::Forward`].
    #[inline]
    #[must_use]
    pub fn forward(&self) -> &Forward {
        &self.forward
    }

    /// From now on nobody new is let in (`SIGTERM`).
    pub fn drain(&mut self) {
        self.draining = true;
        self.careful = true;
    }

    /// Live sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len().saturating_add(self.splices.len())
    }

    /// Resets connections, 128 of them at most: the end of the drain. To be called until there are none.
    pub fn reset_some<N: Lower>(&mut self, now: Micros, net: &mut N) {
        // On from where the last turn ended: nobody new is let in.
        let indices: Vec<u32> = self.sessions.indices_from(self.reset_next.0).take(RESETS).collect();
        self.reset_next.0 = indices.last().map_or(0, |last| last.saturating_add(1));
        for index in indices {
            if let Some(session) = self.sessions.take(index) {
                self.end(index, session, EndCause::Shutdown, now, net);
            }
        }
        let indices: Vec<u32> = self.splices.indices_from(self.reset_next.1).take(RESETS).collect();
        self.reset_next.1 = indices.last().map_or(0, |last| last.saturating_add(1));
        for index in indices {
            self.end_spliced(index, EndCause::Shutdown, now, net);
        }
    }

    /// Brings the gauges up to date; a few times a second is enough.
    pub fn publish(&mut self, now: Micros) {
        self.source_ports.reap(now);
        self.filters.publish(now);
        self.counters.flow_entries.set(self.flows.len() as u64);
        self.counters.time_wait.set(self.lingers.len() as u64);
        self.refresh_offers();
        self.feel_pressure(now);
        self.feel_peace(now);
        self.counters.timers.set(self.wheel.armed().saturating_add(self.splice_wheel.armed()) as u64);
        for (counter, learned) in self.counters.paths_narrowed.iter().zip(self.path_mtus.learned()) {
            counter.set(learned);
        }
        self.counters.held_bytes.set(self.held.all() as u64);
        let ports = self.source_ports.ports();
        self.counters.source_ports.set(ports.in_use().saturating_add(ports.resting()) as u64);
        self.counters.ports_reused.set(ports.reused());
        self.counters.rests_cut_short.set(ports.rests_cut_short());
    }
}

/// Connections reset a turn when the drain is over: as many as a device's queue takes.
const RESETS: usize = 128;
/// Most flow entries of live connections one worker's table is made for.
pub(crate) const FLOWS_MAX: usize = 1 << 23;

/// The window in a SYN-ACK of a service with buffers of `buffer` octets.
pub(crate) fn advertised(buffer: usize) -> u16 {
    u16::try_from(buffer).unwrap_or(u16::MAX)
}

pub(crate) fn send_bare<N: Lower>(bare: &BareSegment, way: Way, net: &mut N) {
    net.send(way, bare.len(), |packet| bare.write(packet, TcpChecksum::Full));
}

pub(crate) fn count(counters: &[Counter], index: usize) {
    if let Some(counter) = counters.get(index) {
        counter.bump();
    }
}
