//! A worker's way out: frames for the stack, Ethernet headers, next hops, the transmit queues.
//!
//! Each port has a staging buffer that is offered to the device after the received frames and after the stack. What the device
//! does not take stays staged for the next turn; while the buffer is nearly full the stack keeps its payload
//! ([`Lower::room`]), so a slow device slows senders down instead of losing their segments. Answers to received frames, floods
//! among them, get half of the buffer at most; what finds no room is dropped and counted.

use std::sync::Arc;
use std::time::Duration;

use sluice_filters::DropReason;
use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::units::{Micros, PortId, WorkerId};
use sluice_tcpstack::net::{Division, Lower, Owner, Reach, Route, Way};
use sluice_tcpstack::stack::Forward;

use crate::counters::WorkerCounters;
use crate::dpdk::{Frame, Pool, TX_BUFFER, TxBuffer, TxQueue};
use crate::mailbox::{Letter, Mailboxes};
use crate::net::{Learned, Mac, NeighborId, Net};
use crate::steer::Steer;

/// Frames that may wait for a neighbour's answer, all neighbours together.
const WAITING_MAX: usize = 64;
/// Staged frames up to which an answer to a received frame is staged too: a full burst's.
const ANSWERS: usize = TX_BUFFER / 2;
/// Staged frames up to which the stack may emit payload; the rest is for what it must not lose.
const PAYLOAD: usize = TX_BUFFER - 8;
/// Staged frames of the stack's that are worth an offer in the middle of a turn.
const OFFERED: usize = TX_BUFFER / 2;
/// How long they wait.
const WAITING_TIME: Duration = Duration::from_secs(3);
/// Largest IP packet there is room for when the pool is empty.
const SCRATCH: usize = 9216;
/// Letters in a peer's box from which on the stack keeps its payload.
const PEER_BUSY: usize = 1024;

/// One worker's egress.
pub(crate) struct Egress {
    worker: WorkerId,
    /// Layers 2 and 3.
    pub(crate) net: Net,
    pool: Pool,
    ports: Vec<PortOut>,
    /// Next hops towards upstreams: [`Way::Neighbor`]'s `id` is an index. As many as configuration names, at most.
    hops: Vec<Hop>,
    waiting: Vec<Waiting>,
    scratch: Box<[u8]>,
    steer: Arc<Steer>,
    mailboxes: Arc<Mailboxes>,
    counters: Arc<WorkerCounters>,
    now: Micros,
}

struct PortOut {
    tx: Exit,
    l2_len: usize,
    /// Largest IP packet, octets.
    mtu: usize,
    /// The device took less than it was offered this turn.
    full: bool,
}

#[allow(clippy::large_enum_variant, reason = "one a port, side by side in one vector")]
enum Exit {
    /// A queue of our own.
    Queue(TxQueue, TxBuffer),
    /// The device has too few: this worker sends for us.
    Peer(WorkerId),
}

struct Hop {
    port: PortId,
    next_hop: Addr,
    id: Option<NeighborId>,
}

struct Waiting {
    hop: usize,
    frame: Frame,
    until: Micros,
}

/// What an [`Egress`] is made of.
pub(crate) struct Parts {
    pub(crate) worker: WorkerId,
    pub(crate) net: Net,
    pub(crate) pool: Pool,
    /// By port: this worker's transmit queue, if it has one.
    pub(crate) queues: Vec<Option<TxQueue>>,
    /// By port: the worker that sends for those without.
    pub(crate) senders: Vec<WorkerId>,
    pub(crate) steer: Arc<Steer>,
    pub(crate) mailboxes: Arc<Mailboxes>,
    pub(crate) counters: Arc<WorkerCounters>,
}

impl Egress {
    pub(crate) fn new(parts: Parts) -> Egress {
        let Parts { worker, net, pool, queues, senders, steer, mailboxes, counters } = parts;
        let ports = queues
            .into_iter()
            .zip(senders)
            .zip(0..)
            .map(|((queue, sender), id)| {
                let port = net.port(PortId(id));
                PortOut {
                    tx: match queue {
                        Some(queue) => Exit::Queue(queue, TxBuffer::new()),
                        None => Exit::Peer(sender),
                    },
                    l2_len: if port.is_some_and(|port| port.vlan != 0) { 18 } else { 14 },
                    mtu: port.map_or(0, |port| usize::from(port.mtu)),
                    full: false,
                }
            })
            .collect();
        Egress {
            worker,
            net,
            pool,
            ports,
            hops: Vec::new(),
            waiting: Vec::with_capacity(WAITING_MAX),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            steer,
            mailboxes,
            counters,
            now: Micros(0),
        }
    }

    /// Starts a turn.
    pub(crate) fn begin_turn(&mut self, now: Micros) {
        self.now = now;
        for out in &mut self.ports {
            out.full = false;
        }
    }

    /// Counts a frame that was dropped.
    #[inline]
    pub(crate) fn count_drop(&self, reason: DropReason) {
        if let Some(counter) = self.counters.drops.get(reason as usize) {
            counter.bump();
        }
    }

    /// Stages an answer to a received frame, which nobody will miss: it leaves half of the buffer to the stack.
    #[inline(always)]
    pub(crate) fn answer(&mut self, port: PortId, frame: Frame) {
        match self.ports.get_mut(usize::from(port.0)) {
            Some(PortOut { tx: Exit::Queue(_, staged), .. }) if staged.len() < ANSWERS => {
                if let Err(frame) = staged.push(frame) {
                    drop(frame);
                }
            }
            Some(PortOut { tx: Exit::Queue(..), .. }) => self.answer_behind_others(port, frame),
            _ => self.stage_elsewhere(port, frame),
        }
    }

    /// Stages an answer once the device took some of those before it, or drops it.
    #[cold]
    fn answer_behind_others(&mut self, port: PortId, frame: Frame) {
        let Some(PortOut { tx: Exit::Queue(queue, staged), .. }) = self.ports.get_mut(usize::from(port.0)) else {
            return;
        };
        offer(queue, staged, port, &self.counters);
        if staged.len() >= ANSWERS || staged.push(frame).is_err() {
            self.count_full(port);
        }
    }

    fn count_full(&self, port: PortId) {
        self.count_drop(DropReason::TxFull);
        if let Some(counters) = self.counters.ports.get(usize::from(port.0)) {
            counters.tx_full.bump();
        }
    }

    /// Stages a frame of the stack's, and offers what is staged when it is a good part, unless the device is full this turn.
    fn stage_payload(&mut self, port: PortId, frame: Frame) {
        self.stage(port, frame);
        if let Some(PortOut { tx: Exit::Queue(queue, staged), full, .. }) = self.ports.get_mut(usize::from(port.0))
            && staged.len() >= OFFERED
            && !*full
        {
            offer(queue, staged, port, &self.counters);
            *full = !staged.is_empty();
        }
    }

    /// Sends a received frame on whose TCP segment was rewritten for another connection: link and IP header are written in front of
    /// it, wherever those it came with stood. What the way has no room for is dropped: the sender repeats it.
    #[inline]
    pub(crate) fn forward(&mut self, mut frame: Frame, forward: &Forward) {
        let (port, hop, mac) = self.address(forward.way);
        let Some((l2_len, mtu)) = self.ports.get(usize::from(port.0)).map(|out| (out.l2_len, out.mtu)) else {
            return self.count_drop(DropReason::NoRoute);
        };
        let (l3_len, len) = (forward.ip.size(), usize::from(forward.ip.len));
        let packet_len = l3_len.saturating_add(len);
        if packet_len > mtu {
            return self.count_drop(DropReason::TooBig);
        }
        let headers = l2_len.saturating_add(l3_len);
        let moved = match forward.l4.checked_sub(headers) {
            Some(shorter) => frame.adj(shorter),
            None => frame.prepend(headers.saturating_sub(forward.l4)).is_some(),
        };
        if !moved || !frame.set_len(l2_len.saturating_add(packet_len)) {
            return self.count_drop(DropReason::Truncated);
        }
        if let Some(packet) = frame.data_mut().get_mut(l2_len..) {
            forward.ip.write(packet);
        }
        self.launch(port, hop, mac, !forward.ip.src.is_v4(), frame);
    }

    /// Where a way leads: the port, the next hop's place if it has one, its MAC address.
    #[inline]
    fn address(&mut self, way: Way) -> (PortId, Option<usize>, Mac) {
        match way {
            Way::Reply { port, mac } => (port, None, Mac::Known(mac)),
            Way::Neighbor { port, id } => (port, Some(id as usize), self.neighbor(id as usize)),
        }
    }

    /// Writes the link header of a frame that is finished otherwise, and stages it, or lets it wait for its next hop.
    #[inline]
    fn launch(&mut self, port: PortId, hop: Option<usize>, mac: Mac, ipv6: bool, mut frame: Frame) {
        let destination = if let Mac::Known(mac) = mac { mac } else { [0; 6] };
        self.net.ethernet(port, destination, ipv6, frame.data_mut());
        match (mac, hop) {
            (Mac::Known(_), _) => self.stage_payload(port, frame),
            (Mac::Resolving, Some(hop)) if self.waiting.len() < WAITING_MAX => {
                self.waiting.push(Waiting { hop, frame, until: self.now.after(WAITING_TIME) });
            }
            _ => self.count_drop(DropReason::NeighborUnresolved),
        }
    }

    /// Stages a finished frame for `port`.
    #[inline(always)]
    pub(crate) fn stage(&mut self, port: PortId, frame: Frame) {
        if let Some(PortOut { tx: Exit::Queue(_, staged), .. }) = self.ports.get_mut(usize::from(port.0)) {
            if let Err(frame) = staged.push(frame) {
                self.stage_full(port, frame);
            }
        } else {
            self.stage_elsewhere(port, frame);
        }
    }

    /// Stages a frame behind a full buffer: once more after an offer, or it is dropped.
    #[cold]
    fn stage_full(&mut self, port: PortId, frame: Frame) {
        let Some(PortOut { tx: Exit::Queue(queue, staged), .. }) = self.ports.get_mut(usize::from(port.0)) else {
            return;
        };
        offer(queue, staged, port, &self.counters);
        if staged.push(frame).is_err() {
            self.count_full(port);
        }
    }

    /// Stages a frame for a port we have no queue of.
    #[cold]
    fn stage_elsewhere(&mut self, port: PortId, frame: Frame) {
        let Some(PortOut { tx: Exit::Peer(sender), .. }) = self.ports.get(usize::from(port.0)) else {
            return self.count_drop(DropReason::NoRoute);
        };
        let letter = Letter::Transmit(frame.into(), port);
        if self.mailboxes.post(*sender, letter).is_err() {
            self.count_drop(DropReason::HandoverFull);
            self.counters.handover_full.bump();
        }
    }

    /// Offers every port's staged frames to its device, once.
    pub(crate) fn flush(&mut self) {
        if !self.waiting.is_empty() {
            self.release_waiting();
        }
        for (out, id) in self.ports.iter_mut().zip(0..) {
            if let Exit::Queue(queue, staged) = &mut out.tx
                && !staged.is_empty()
            {
                offer(queue, staged, PortId(id), &self.counters);
            }
        }
    }

    /// ARP and NDP of our own: solicitations, announcements.
    pub(crate) fn poll_neighbors(&mut self) {
        let mut frames: Vec<(PortId, Frame)> = Vec::new();
        let (net, pool) = (&mut self.net, &mut self.pool);
        net.poll(self.now, &mut |port, octets| {
            if let Some(mut frame) = pool.alloc()
                && frame.set_len(octets.len())
            {
                frame.data_mut().copy_from_slice(octets);
                frames.push((port, frame));
            }
        });
        for (port, frame) in frames {
            self.stage(port, frame);
        }
    }

    /// Takes in a neighbour's news from another worker.
    pub(crate) fn learn(&mut self, learned: &Learned) {
        self.net.apply(learned, self.now);
    }

    /// Brings the gauges up to date, and tells of address conflicts, which the net reports seldom.
    pub(crate) fn publish(&mut self) {
        self.counters.neighbors.set(self.net.neighbors() as u64);
        if let Some(conflict) = self.net.take_conflict() {
            let [a, b, c, d, e, f] = conflict.mac;
            tracing::warn!(
                port = conflict.port.0,
                address = ?conflict.addr,
                mac = format_args!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
                seen = conflict.total,
                "somebody else uses an address of ours"
            );
        }
    }

    fn neighbor(&mut self, hop: usize) -> Mac {
        let now = self.now;
        let Some(hop) = self.hops.get_mut(hop) else { return Mac::Failed };
        let mac = hop.id.map_or(Mac::Gone, |id| self.net.mac(id, now));
        if mac != Mac::Gone {
            return mac;
        }
        hop.id = self.net.neighbor(hop.port, hop.next_hop, now);
        hop.id.map_or(Mac::Failed, |id| self.net.mac(id, now))
    }

    fn release_waiting(&mut self) {
        let mut kept = Vec::with_capacity(WAITING_MAX);
        for Waiting { hop, mut frame, until } in std::mem::take(&mut self.waiting) {
            match self.neighbor(hop) {
                Mac::Known(mac) => {
                    if let Some(destination) = frame.data_mut().first_chunk_mut::<6>() {
                        *destination = mac;
                    }
                    if let Some(port) = self.hops.get(hop).map(|hop| hop.port) {
                        self.stage(port, frame);
                    }
                }
                Mac::Resolving if self.now < until => kept.push(Waiting { hop, frame, until }),
                Mac::Resolving | Mac::Failed | Mac::Gone => self.count_drop(DropReason::NeighborUnresolved),
            }
        }
        self.waiting = kept;
    }
}

/// One try: what the device does not take stays staged.
fn offer(queue: &mut TxQueue, staged: &mut TxBuffer, port: PortId, counters: &WorkerCounters) {
    let sent = queue.offer(staged);
    if let Some(counters) = counters.ports.get(usize::from(port.0)) {
        counters.tx_packets.add(sent.frames as u64);
        counters.tx_bytes.add(sent.bytes as u64);
    }
}

impl Lower for Egress {
    fn room(&self, way: Way) -> bool {
        let (Way::Reply { port, .. } | Way::Neighbor { port, .. }) = way;
        match self.ports.get(usize::from(port.0)).map(|out| &out.tx) {
            Some(Exit::Queue(_, staged)) => staged.len() < PAYLOAD,
            Some(Exit::Peer(sender)) => self.mailboxes.waiting(*sender) < PEER_BUSY,
            None => true,
        }
    }

    fn send<R>(&mut self, way: Way, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let (port, hop, mac) = self.address(way);
        let l2_len = self.ports.get(usize::from(port.0)).map_or(14, |out| out.l2_len);
        let Some(mut frame) = of_length(self.pool.alloc(), l2_len.saturating_add(len)) else {
            self.counters.pool_empty.bump();
            self.count_drop(DropReason::PoolEmpty);
            return fill(self.scratch.get_mut(..len).unwrap_or_default());
        };
        let packet = frame.data_mut().get_mut(l2_len..).unwrap_or_default();
        let result = fill(packet);
        let ipv6 = packet.first().is_some_and(|octet| octet >> 4 == 6);
        self.launch(port, hop, mac, ipv6, frame);
        result
    }

    fn route(&mut self, dst: Addr) -> Option<Route> {
        let route = self.net.route(dst)?;
        let same = |hop: &Hop| hop.port == route.port && hop.next_hop == route.next_hop;
        let hop = self.hops.iter().position(same).unwrap_or_else(|| {
            self.hops.push(Hop { port: route.port, next_hop: route.next_hop, id: None });
            self.hops.len().saturating_sub(1)
        });
        Some(Route { way: Way::Neighbor { port: route.port, id: hop as u32 }, source: route.source, mtu: route.mtu })
    }

    fn reach(&mut self, way: Way) -> Reach {
        match way {
            Way::Reply { .. } => Reach::Known,
            Way::Neighbor { id, .. } => match self.neighbor(id as usize) {
                Mac::Known(_) => Reach::Known,
                Mac::Resolving => Reach::Resolving,
                Mac::Failed | Mac::Gone => Reach::Failed,
            },
        }
    }

    fn division(&self, (upstream, port): (Addr, u16), source: Addr) -> Division {
        let arrives = self.net.route(upstream).map_or(PortId(0), |route| route.port);
        self.steer.division(&FlowKey { src: upstream, dst: source, src_port: port, dst_port: 0 }, arrives)
    }

    fn owner(&self, division: &Division, port: u16) -> Owner {
        Owner { node: 0, worker: self.steer.port_owner(division, port, self.worker) }
    }
}

/// The frame, made so long; none when it cannot be.
fn of_length(frame: Option<Frame>, len: usize) -> Option<Frame> {
    let mut frame = frame?;
    frame.set_len(len).then_some(frame)
}
