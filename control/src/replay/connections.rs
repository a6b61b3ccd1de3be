//! The connections in a capture, as far as their first segments and the server's tell.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use sluice_filters::Segment;
use sluice_filters::addr::FlowKey;
use sluice_filters::units::{Micros, Seq};

/// How long an answered SYN may wait for its ACK: the longest life of a cookie with epochs of the usual length.
const HANDSHAKE: Duration = Duration::from_secs(128);
/// SYNs remembered; the oldest give way.
const HANDSHAKES: usize = 1 << 20;
/// How long a silent connection is remembered.
const IDLE: Duration = Duration::from_secs(300);
/// How often silent ones are looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// A handshake in the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// The client's initial sequence number.
    pub(super) isn: Seq,
    /// The server's, if its SYN-ACK was captured.
    pub(super) answer: Option<Seq>,
}

/// See the module.
pub(super) struct Connections {
    handshakes: HashMap<FlowKey, Known>,
    order: VecDeque<(Micros, FlowKey)>,
    open: HashMap<FlowKey, Micros>,
    swept: Micros,
}

/// The key of the same connection, seen from the client's side.
fn turned(key: &FlowKey) -> FlowKey {
    FlowKey { src: key.dst, dst: key.src, src_port: key.dst_port, dst_port: key.src_port }
}

impl Connections {
    pub(super) fn new() -> Connections {
        Connections { handshakes: HashMap::new(), order: VecDeque::new(), open: HashMap::new(), swept: Micros(0) }
    }

    /// A SYN was answered.
    pub(super) fn answered(&mut self, segment: &Segment, now: Micros) {
        while self.order.len() >= HANDSHAKES || self.order.front().is_some_and(|(at, _)| now.since(*at) > HANDSHAKE) {
            if let Some((_, key)) = self.order.pop_front() {
                self.handshakes.remove(&key);
            }
        }
        let known = Known { isn: segment.seq, answer: None };
        // A repeated SYN changes nothing.
        if self.handshakes.get(&segment.key).is_none_or(|old| old.isn != known.isn) {
            self.handshakes.insert(segment.key, known);
            self.order.push_back((now, segment.key));
        }
    }

    /// A segment of the server's: its SYN-ACK, or proof that the connection is open.
    pub(super) fn heard_service(&mut self, segment: &Segment, now: Micros) {
        let key = turned(&segment.key);
        if segment.flags.rst() {
            self.open.remove(&key);
        } else if segment.flags.syn() {
            if let Some(known) = self.handshakes.get_mut(&key) {
                known.answer = Some(segment.seq);
            }
        } else if !self.handshakes.contains_key(&key) {
            // Its handshake was before the capture.
            self.open.insert(key, now);
        }
    }

    pub(super) fn handshake(&self, key: &FlowKey) -> Option<Known> {
        self.handshakes.get(key).copied()
    }

    /// A connection opens.
    pub(super) fn opened(&mut self, segment: &Segment, now: Micros) {
        self.sweep(now);
        self.open.insert(segment.key, now);
    }

    /// Whether a client's segment belongs to an open connection.
    pub(super) fn take(&mut self, segment: &Segment, now: Micros) -> bool {
        let Some(heard) = self.open.get_mut(&segment.key) else { return false };
        *heard = now;
        if segment.flags.rst() {
            self.open.remove(&segment.key);
        }
        true
    }

    fn sweep(&mut self, now: Micros) {
        if now.since(self.swept) >= SWEEP {
            self.swept = now;
            self.open.retain(|_, heard| now.since(*heard) < IDLE);
        }
    }
}
