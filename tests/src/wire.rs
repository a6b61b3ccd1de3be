//! A wire in user space between two interfaces: it loses, repeats, delays and reorders frames, by a seeded generator.
//!
//! One thread per direction, each with its own generator, so a seed gives the same decisions for the same frames in the
//! same order. Reordering holds a frame back for a time instead of swapping neighbours: frames behind it overtake it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::link::Link;
use crate::netns::Ns;

/// How often a silent wire looks whether it shall stop.
const IDLE: Duration = Duration::from_millis(20);

/// The queue in front of a wire with a rate, as the time its last frame waits.
pub const QUEUE: Duration = Duration::from_millis(50);

/// What a wire does to each frame, in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Impairment {
    /// Share of frames lost, 0 to 1.
    pub loss: f64,
    /// Share of frames sent twice.
    pub duplicate: f64,
    /// Share of frames held back for `hold`.
    pub reorder: f64,
    /// How long a frame is held back.
    pub hold: Duration,
    /// Delay of every frame.
    pub delay: Duration,
    /// What the wire carries each way, bits a second; 0 = whatever comes. What does not fit waits, for [`QUEUE`] at most.
    pub rate: u64,
    /// Seed of the decisions.
    pub seed: u64,
}

impl Impairment {
    /// A wire that does nothing.
    pub const NONE: Impairment = Impairment {
        loss: 0.0,
        duplicate: 0.0,
        reorder: 0.0,
        hold: Duration::ZERO,
        delay: Duration::ZERO,
        rate: 0,
        seed: 1,
    };

    /// 1 % loss, 1 % reordering by 2 ms.
    pub const LOSSY: Impairment =
        Impairment { loss: 0.01, reorder: 0.01, hold: Duration::from_millis(2), ..Impairment::NONE };
}

/// What a wire has done, both directions together.
#[derive(Debug, Default)]
pub struct WireCounts {
    /// Frames taken in.
    pub received: AtomicU64,
    /// Frames sent on, repetitions included.
    pub sent: AtomicU64,
    /// Frames lost on purpose, for want of room in the queue of a wire with a rate too.
    pub lost: AtomicU64,
    /// Frames held back.
    pub held: AtomicU64,
    /// Frames sent twice.
    pub repeated: AtomicU64,
    /// Frames the far interface had no room for: lost, but not on purpose.
    pub refused: AtomicU64,
    /// Frames that came faster than they were read: the same. Known when the wire has stopped.
    pub overrun: AtomicU64,
}

/// A running wire. Stops when dropped.
#[derive(Debug)]
pub struct Wire {
    counts: Arc<WireCounts>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Joins interfaces `a` and `b` of `ns`.
    ///
    /// # Panics
    /// When an interface cannot be opened.
    #[must_use]
    pub fn start(ns: &Ns, a: &str, b: &str, impairment: Impairment) -> Wire {
        Wire::join(|interface| Link::open(ns, interface), a, b, impairment)
    }

    /// Joins interfaces `a` and `b` of the calling thread's namespace.
    ///
    /// # Panics
    /// When an interface cannot be opened.
    #[must_use]
    pub fn start_here(a: &str, b: &str, impairment: Impairment) -> Wire {
        Wire::join(Link::open_here, a, b, impairment)
    }

    fn join(open: impl Fn(&str) -> Link, a: &str, b: &str, impairment: Impairment) -> Wire {
        let counts = Arc::new(WireCounts::default());
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [(a, b, impairment.seed), (b, a, !impairment.seed)]
            .map(|(from, to, seed)| {
                let (from, to) = (open(from), open(to));
                let direction = OneWay {
                    impairment,
                    random: Rng::with_seed(seed),
                    counts: Arc::clone(&counts),
                    to,
                    waiting: BinaryHeap::new(),
                    free: Instant::now(),
                    order: 0,
                };
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || direction.run(from, &stop))
            })
            .into();
        Wire { counts, stop, threads }
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> &WireCounts {
        &self.counts
    }

    /// Takes the wire down; all it has done.
    #[must_use]
    pub fn stop(self) -> Arc<WireCounts> {
        let counts = Arc::clone(&self.counts);
        drop(self);
        counts
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct OneWay {
    impairment: Impairment,
    random: Rng,
    counts: Arc<WireCounts>,
    to: Link,
    /// Frames not yet due: (due, order of arrival, frame), earliest first.
    waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    order: u64,
    /// When the wire has carried what it took so far.
    free: Instant,
}

impl OneWay {
    fn run(mut self, mut from: Link, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let next_due =
                self.waiting.peek().map(|Reverse((due, _, _))| due.saturating_duration_since(Instant::now()));
            if let Some(frame) = from.receive(next_due.unwrap_or(IDLE).min(IDLE)) {
                self.take(frame);
            }
            let now = Instant::now();
            while self.waiting.peek().is_some_and(|Reverse((due, _, _))| *due <= now) {
                if let Some(Reverse((_, _, frame))) = self.waiting.pop() {
                    self.forward(&frame);
                }
            }
        }
        self.counts.overrun.fetch_add(from.overruns(), Ordering::Relaxed);
    }

    fn take(&mut self, frame: &[u8]) {
        let Impairment { loss, duplicate, reorder, hold, mut delay, rate, .. } = self.impairment;
        self.counts.received.fetch_add(1, Ordering::Relaxed);
        if self.random.f64() < loss {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let repeat = self.random.f64() < duplicate;
        if self.random.f64() < reorder {
            self.counts.held.fetch_add(1, Ordering::Relaxed);
            delay += hold;
        }
        if repeat {
            self.counts.repeated.fetch_add(1, Ordering::Relaxed);
            self.forward(frame);
        }
        let now = Instant::now();
        let bits = 8 * frame.len() as u64;
        if let Some(nanos) = (bits * 1_000_000_000).checked_div(rate) {
            let waits = self.free.saturating_duration_since(now);
            if waits > QUEUE {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            self.free = self.free.max(now) + Duration::from_nanos(nanos);
            delay += self.free.saturating_duration_since(now);
        }
        if delay.is_zero() {
            self.forward(frame);
        } else {
            self.order += 1;
            self.waiting.push(Reverse((now + delay, self.order, frame.to_vec())));
        }
    }

    fn forward(&mut self, frame: &[u8]) {
        let counter = if self.to.send(frame) { &self.counts.sent } else { &self.counts.refused };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
