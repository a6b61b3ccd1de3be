//! One worker's TCP: cookies, the flow table, and what both modes share around their sessions.
//!
//! A segment is looked up in the flow table and handed to its session's mode: [`crate::terminate`] feeds it to a socket and serves the
//! session at the end of the burst, [`crate::splice`] rewrites it and sends it on. Without a flow, a valid cookie opens a session.
//! State exists only for clients that returned one. No clock, no random source, no I/O: time, seeds and the [`Lower`] below
//! are handed in.

pub(crate) mod dial;
pub(crate) mod ending;
pub(crate) mod ingress;
pub(crate) mod linger;
mod serve;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use sluice_config::Config;
use sluice_filters::addr::FlowKey;
use sluice_filters::counter::Counter;
use sluice_filters::units::{Micros, PortId, ServiceId, WorkerId};
use sluice_filters::{DropReason, Segment};

use self::dial::{Balancer, SourcePorts};
use self::linger::Lingers;
use crate::cookie::{Jar, SynAckProfile};
use crate::counters::StackCounters;
use crate::flow::FlowTable;
use crate::limits::SharedLimits;
use crate::net::{Lower, Way};
use crate::record::{EndCause, SessionRecord};
use crate::segment::{BareSegment, TcpChecksum};
use crate::slab::Slab;
use crate::terminate::clock;
use crate::terminate::endpoint::Interfaces;
use crate::terminate::session::Session;
use crate::wheel::Wheel;

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
}

/// One worker's TCP.
pub struct Stack {
    // A copy of this worker's own: its count of owners is touched for every session served.
    pub(crate) config: Rc<Config>,
    pub(crate) worker: WorkerId,
    pub(crate) counters: Arc<StackCounters>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) jar: Jar,
    pub(crate) flows: FlowTable,
    pub(crate) sessions: Slab<Session>,
    pub(crate) lingers: Lingers,
    pub(crate) wheel: Wheel,
    pub(crate) interfaces: Interfaces,
    pub(crate) source_ports: SourcePorts,
    pub(crate) balancers: Vec<Balancer>,
    pub(crate) mtus: Vec<u16>,
    pub(crate) isn_key: [u64; 2],
    /// The timestamp clock of this turn.
    pub(crate) timestamp_ms: u32,
    pub(crate) dirty: Vec<u32>,
    pub(crate) due: Vec<u32>,
    pub(crate) draining: bool,
}

/// Which end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Upstream,
}

/// What a flow table value points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowRef {
    Session(Side, u32),
    Linger(u32),
}

impl FlowRef {
    pub(crate) fn value(self) -> u32 {
        match self {
            FlowRef::Session(Side::Client, index) => index << 2,
            FlowRef::Session(Side::Upstream, index) => index << 2 | 1,
            FlowRef::Linger(index) => index << 2 | 2,
        }
    }

    pub(crate) fn from_value(value: u32) -> FlowRef {
        match value & 3 {
            0 => FlowRef::Session(Side::Client, value >> 2),
            1 => FlowRef::Session(Side::Upstream, value >> 2),
            _ => FlowRef::Linger(value >> 2),
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
    pub fn new(setup: Setup) -> Stack {
        let Setup { config, worker, counters, shared, jar, entropy, mtus, now } = setup;
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
        let balancers = config.services.iter().map(Balancer::new).collect();
        Stack {
            worker,
            counters,
            shared,
            jar,
            flows: FlowTable::new(flows + linger::MAX, half(0)),
            sessions: Slab::new(),
            lingers: Lingers::new(),
            wheel: Wheel::new(now),
            // No secret: the numbers smoltcp draws are translated before anyone sees them.
            interfaces: Interfaces::new(u64::from(worker.0)),
            source_ports: SourcePorts::new(half(16)),
            balancers,
            mtus,
            isn_key: [word(4), word(5)],
            timestamp_ms: clock::timestamp_ms(now),
            dirty: Vec::with_capacity(256),
            due: Vec::with_capacity(256),
            draining: false,
            config: Rc::new(Config::clone(&config)),
        }
    }

    /// Starts a turn: the clock's reading for all that follows in it. `wall` is Unix time, for the cookies' epochs.
    pub fn begin_turn(&mut self, now: Micros, wall: Duration) {
        self.timestamp_ms = clock::timestamp_ms(now);
        clock::set_timestamp_clock(now);
        self.jar.tick(wall);
    }

    /// The flow table's hash of `key`.
    #[inline]
    #[must_use]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        self.flows.hash(key)
    }

    /// Brings the flow's table entry into the cache, for a [`Stack::segment`] soon to come.
    #[inline]
    pub fn touch(&self, hash: u64) {
        self.flows.touch(hash);
    }

    /// Answers a SYN to a service with a cookie, in the same frame; keeps nothing. The frame's buffer must reach to
    /// [`crate::cookie::SYN_ACK_MAX`] octets or further; returns the answer's length.
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
        if self.draining {
            return Err(DropReason::Draining);
        }
        let mtu = self.mtus.get(usize::from(port.0)).copied().unwrap_or(1500);
        let Some(buffer) = self.config.services.get(usize::from(service.0)).map(|service| service.buffer) else {
            return Err(DropReason::NotAService);
        };
        let headers = if segment.is_v4() { 40 } else { 60 };
        let profile = SynAckProfile {
            mss: mtu.saturating_sub(headers),
            wscale: Some(0),
            window: advertised(buffer),
            sack: true,
            timestamps: true,
            src_mac: our_mac,
            tcp_checksum: TcpChecksum::Full,
        };
        let len = self.jar.answer_syn(frame, segment, &profile, self.timestamp_ms).ok_or(DropReason::Truncated)?;
        self.counters.cookies_sent.bump();
        Ok(len)
    }

    /// From now on nobody new is let in (`SIGTERM`).
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Live sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Resets connections, 128 of them at most: the end of the drain. To be called until there are none.
    pub fn reset_some<N: Lower>(&mut self, now: Micros, net: &mut N) {
        let indices: Vec<u32> = self.sessions.indices().take(RESETS).collect();
        for index in indices {
            if let Some(session) = self.sessions.take(index) {
                self.end(index, session, EndCause::Shutdown, now, net);
            }
        }
    }

    /// Brings the gauges up to date; a few times a second is enough.
    pub fn publish(&mut self, now: Micros) {
        self.source_ports.reap(now);
        self.counters.flow_entries.set(self.flows.len() as u64);
        self.counters.time_wait.set(self.lingers.len() as u64);
        self.counters.timers.set(self.wheel.armed() as u64);
        self.counters.source_ports.set(self.source_ports.occupied() as u64);
    }
}

/// Connections reset a turn when the drain is over: as many as a device's queue takes.
const RESETS: usize = 128;
/// Most flow entries of live connections one worker's table is made for.
const FLOWS_MAX: usize = 1 << 23;

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
