//! A sample of the dropped packets, for the control plane to write down: so many a second, the first octets of each.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use sluice_config as config;
use sluice_filters::DropReason;
use sluice_filters::memory::{Bucket, Quota};
use sluice_filters::units::{Micros, PortId};

/// Octets kept of a packet, at most.
pub const SNAP_MAX: usize = 1_600;
/// Packets that may wait to be written, all workers together.
const WAITING: usize = 1_024;

/// A dropped packet.
#[derive(Clone, Debug)]
pub struct DroppedPacket {
    /// When it was dropped.
    pub at: Micros,
    /// The port it came through.
    pub port: PortId,
    /// Why it was dropped.
    pub reason: DropReason,
    /// The rule that dropped it.
    pub rule: Option<u16>,
    /// Its length, octets.
    pub wire_len: u32,
    len: u16,
    octets: [u8; SNAP_MAX],
}

impl DroppedPacket {
    /// What was kept of it: its first octets.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        self.octets.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The packets that wait to be written.
pub(crate) type Samples = Arc<ArrayQueue<DroppedPacket>>;

/// An empty queue; without `[sample]` one that nobody fills.
pub(crate) fn queue(config: &config::Config) -> Samples {
    Arc::new(ArrayQueue::new(if config.sample.is_some() { WAITING } else { 1 }))
}

/// One worker's sampler.
#[derive(Debug)]
pub(crate) struct Sampler {
    bucket: Bucket,
    snap: usize,
    queue: Samples,
}

impl Sampler {
    pub(crate) fn new(sample: &config::Sample, queue: Samples) -> Sampler {
        let snap = usize::from(sample.snap).min(SNAP_MAX);
        Sampler { bucket: Bucket::new(Quota::new(&sample.rate)), snap, queue }
    }

    /// Takes a sample, if it is time for one and there is room.
    #[inline]
    pub(crate) fn offer(&mut self, frame: &[u8], port: PortId, reason: DropReason, rule: Option<u16>, now: Micros) {
        if self.bucket.charge(1, now) {
            self.take(frame, port, reason, rule, now);
        }
    }

    #[cold]
    fn take(&mut self, frame: &[u8], port: PortId, reason: DropReason, rule: Option<u16>, now: Micros) {
        if self.queue.is_full() {
            return;
        }
        let kept = frame.get(..self.snap).unwrap_or(frame);
        let mut packet = DroppedPacket {
            at: now,
            port,
            reason,
            rule,
            wire_len: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            len: u16::try_from(kept.len()).unwrap_or(0),
            octets: [0; SNAP_MAX],
        };
        for (to, from) in packet.octets.iter_mut().zip(kept) {
            *to = *from;
        }
        // Another worker may have taken the last place since.
        let _ = self.queue.push(packet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(per_second: u64, snap: u16) -> (Sampler, Samples) {
        let sample = config::Sample {
            file: "/tmp/sample".into(),
            rate: config::Rate { burst: 1, ..config::Rate::per_second(per_second) },
            snap,
            max_size: 1 << 20,
        };
        let queue: Samples = Arc::new(ArrayQueue::new(4));
        (Sampler::new(&sample, queue.clone()), queue)
    }

    #[test]
    fn a_sample_keeps_the_first_octets_and_the_length() {
        let (mut sampler, queue) = sampler(1, 64);
        sampler.offer(&[7; 100], PortId(1), DropReason::Rule, Some(3), Micros(5));
        let packet = queue.pop().unwrap();
        assert_eq!((packet.octets(), packet.wire_len), (&[7; 64][..], 100));
        assert_eq!(
            (packet.at, packet.port, packet.reason, packet.rule),
            (Micros(5), PortId(1), DropReason::Rule, Some(3))
        );
    }

    #[test]
    fn no_more_are_taken_than_the_rate_allows_or_the_queue_holds() {
        let (mut sampler, queue) = sampler(10, 64);
        for ms in 0..1_000 {
            sampler.offer(&[0; 60], PortId(0), DropReason::Land, None, Micros(ms * 1_000));
            if ms == 300 {
                assert_eq!(queue.len(), 4, "the queue is full");
                while queue.pop().is_some() {}
            }
        }
        assert_eq!(queue.len(), 4);
        assert_eq!(WAITING, 1_024);
    }
}
