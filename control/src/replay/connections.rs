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
/// Open connections remembered; more are not, until others have gone silent.
const OPEN: usize = 1 << 20;
/// How often silent ones are looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// A handshake in the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// The client's initial sequence number.
    pub(super) isn: Seq,
    /// The server's, if its SYN-ACK was captured.
    pub(super) answer: Option<Seq>,
    /// When its SYN was answered.
    at: Micros,
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
            if let Some((at, key)) = self.order.pop_front()
                // A later one from the same port has a place of its own in the order.
                && self.handshakes.get(&key).is_some_and(|known| known.at == at)
            {
                self.handshakes.remove(&key);
            }
        }
        let known = Known { isn: segment.seq, answer: None, at: now };
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
            self.open(key, now);
        }
    }

    pub(super) fn handshake(&self, key: &FlowKey) -> Option<Known> {
        self.handshakes.get(key).copied()
    }

    /// A connection opens.
    pub(super) fn opened(&mut self, segment: &Segment, now: Micros) {
        self.open(segment.key, now);
    }

    fn open(&mut self, key: FlowKey, now: Micros) {
        self.sweep(now);
        if self.open.len() < OPEN || self.open.contains_key(&key) {
            self.open.insert(key, now);
        }
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

#[cfg(test)]
mod tests {
    use sluice_filters::addr::Addr;
    use sluice_filters::testkit::tcp;
    use sluice_filters::{Flags, Parsed, RxChecksums, parse};

    use super::*;

    const SERVICE: &str = "198.51.100.10:443";
    const CLIENT: &str = "203.0.113.7:40000";

    fn segment(from: &str, to: &str, flags: Flags, seq: u32) -> Segment {
        let Ok(Parsed::Tcp(segment)) = parse(&tcp(from, to).flags(flags).seq(seq).build(), RxChecksums::default())
        else {
            panic!()
        };
        segment
    }

    fn seconds(n: u64) -> Micros {
        Micros(n * 1_000_000)
    }

    #[test]
    fn a_second_handshake_from_one_port_outlives_the_first() {
        let mut known = Connections::new();
        known.answered(&segment(CLIENT, SERVICE, Flags::SYN, 1), seconds(0));
        let second = segment(CLIENT, SERVICE, Flags::SYN, 2);
        known.answered(&second, seconds(100));
        known.answered(&segment("203.0.113.8:1", SERVICE, Flags::SYN, 3), seconds(130));
        assert_eq!(known.handshake(&second.key).map(|known| known.isn), Some(Seq(2)));
        known.answered(&segment("203.0.113.8:1", SERVICE, Flags::SYN, 4), seconds(230));
        assert_eq!(known.handshake(&second.key), None);
    }

    #[test]
    fn what_services_send_takes_bounded_memory_and_silent_connections_make_room() {
        let mut known = Connections::new();
        let mut said = segment(SERVICE, CLIENT, Flags::ACK, 1);
        for n in 0..(OPEN as u32 + 1_000) {
            said.key.dst = Addr::v4(0x0a00_0000 + n);
            known.heard_service(&said, seconds(1));
        }
        assert_eq!(known.open.len(), OPEN);
        known.heard_service(&said, seconds(1 + IDLE.as_secs()));
        assert_eq!(known.open.len(), 1);
    }
}
