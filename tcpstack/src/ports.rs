//! Source ports for connections to one upstream from one of our addresses.
//!
//! A space is one (source address, upstream address and port): within it a port names one connection, so it may be used
//! again only when the old connection has left TIME-WAIT (RFC 9293 section 3.6.1). The ports are those this worker owns, so
//! that the upstream's replies come back to it. The next one is the first free port at or after a random one (RFC 6056
//! section 3.3.1), so that an off-path attacker cannot tell which.
//!
//! Invariants:
//! - A port is free, in use or resting, and only a free one is handed out.
//! - [`PortSpace::allocate`] takes bounded time however full the space is: a two-level bitmap finds the next free port in at
//!   most 19 words, and at most [`REAP`] rested ports are freed per call.
//! - Memory: 16 KiB of bitmaps, and 16 octets for each resting port.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use siphasher::sip::SipHasher13;
use sluice_filters::units::Micros;

/// The lowest port handed out: those below are for services.
pub const FIRST: u16 = 1024;

/// Rested ports freed per call of [`PortSpace::allocate`].
pub const REAP: usize = 8;

const WORDS: usize = 1024;
const SUMMARY: usize = 16;

/// A set of ports with a summary of its non-empty words.
#[derive(Debug)]
struct PortSet {
    words: Box<[u64; WORDS]>,
    summary: [u64; SUMMARY],
    len: u32,
}

/// Word index and bit of a number in an array of 64-bit words.
fn split(n: usize) -> (usize, u64) {
    (n.wrapping_shr(6), 1_u64.wrapping_shl(n as u32 & 63))
}

impl PortSet {
    fn new() -> PortSet {
        PortSet { words: Box::new([0; WORDS]), summary: [0; SUMMARY], len: 0 }
    }

    fn contains(&self, port: u16) -> bool {
        let (word, bit) = split(usize::from(port));
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Whether the port was not yet there.
    fn insert(&mut self, port: u16) -> bool {
        let (index, bit) = split(usize::from(port));
        let Some(word) = self.words.get_mut(index) else { return false };
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        let (index, bit) = split(index);
        if let Some(summary) = self.summary.get_mut(index) {
            *summary |= bit;
        }
        self.len = self.len.wrapping_add(1);
        true
    }

    /// Whether the port was there.
    fn remove(&mut self, port: u16) -> bool {
        let (index, bit) = split(usize::from(port));
        let Some(word) = self.words.get_mut(index) else { return false };
        if *word & bit == 0 {
            return false;
        }
        *word &= !bit;
        if *word == 0 {
            let (index, bit) = split(index);
            if let Some(summary) = self.summary.get_mut(index) {
                *summary &= !bit;
            }
        }
        self.len = self.len.wrapping_sub(1);
        true
    }

    /// The first port of the set at or after `start`, around the end if need be.
    fn next(&self, start: u16) -> Option<u16> {
        let (word, bit) = split(usize::from(start));
        self.first_in(word, bit.wrapping_neg())
            .or_else(|| self.first_word(word.wrapping_add(1)).and_then(|word| self.first_in(word, u64::MAX)))
            .or_else(|| self.first_word(0).and_then(|word| self.first_in(word, u64::MAX)))
    }

    fn first_in(&self, index: usize, mask: u64) -> Option<u16> {
        let word = self.words.get(index)? & mask;
        (word != 0).then(|| index.wrapping_shl(6).wrapping_add(word.trailing_zeros() as usize) as u16)
    }

    /// The first non-empty word at or after word `from`.
    fn first_word(&self, from: usize) -> Option<usize> {
        let (start, bit) = split(from);
        let mut mask = bit.wrapping_neg();
        for (index, summary) in self.summary.iter().enumerate().skip(start) {
            if summary & mask != 0 {
                return Some(index.wrapping_shl(6).wrapping_add((summary & mask).trailing_zeros() as usize));
            }
            mask = u64::MAX;
        }
        None
    }
}

/// The ports of one (source address, upstream) on one worker.
#[derive(Debug)]
pub struct PortSpace {
    free: PortSet,
    used: PortSet,
    /// Ports in TIME-WAIT, the first to leave it on top.
    resting: BinaryHeap<Reverse<(Micros, u16)>>,
    random: SipHasher13,
    draws: u64,
}

impl PortSpace {
    /// All ports from [`FIRST`] up that `owned` says are this worker's, free. `seed` is random; the order of allocation
    /// follows from it.
    #[must_use]
    pub fn new(seed: [u8; 16], owned: impl Fn(u16) -> bool) -> PortSpace {
        let mut free = PortSet::new();
        for port in (FIRST..=u16::MAX).filter(|port| owned(*port)) {
            free.insert(port);
        }
        PortSpace {
            free,
            used: PortSet::new(),
            resting: BinaryHeap::new(),
            random: SipHasher13::new_with_key(&seed),
            draws: 0,
        }
    }

    /// A free port, now in use; none when all are in use or resting.
    #[must_use = "a port that nobody releases is lost"]
    pub fn allocate(&mut self, now: Micros) -> Option<u16> {
        self.reap(now);
        self.draws = self.draws.wrapping_add(1);
        let start = self.random.hash(&self.draws.to_le_bytes()) as u16;
        let port = self.free.next(start)?;
        self.free.remove(port);
        self.used.insert(port);
        Some(port)
    }

    /// Gives back a port that was allocated: free again at `now + rest` (at once when `rest` is zero, as after a refused
    /// dial). Ports not in use are left as they are.
    pub fn release(&mut self, port: u16, now: Micros, rest: Duration) {
        if !self.used.remove(port) {
            return;
        }
        if rest.is_zero() {
            self.free.insert(port);
        } else {
            self.resting.push(Reverse((now.after(rest), port)));
        }
    }

    /// Whether the port is in use.
    #[must_use]
    pub fn is_used(&self, port: u16) -> bool {
        self.used.contains(port)
    }

    /// Ports in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.used.len as usize
    }

    /// Ports released and not yet free. A port that has rested enough is counted until an allocation frees it.
    #[must_use]
    pub fn resting(&self) -> usize {
        self.resting.len()
    }

    /// Ports free for allocation.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len as usize
    }

    /// Lets ports go that have rested long enough, [`REAP`] of them at most. [`PortSpace::allocate`] does so too; this is for
    /// times when nobody allocates.
    pub fn reap(&mut self, now: Micros) {
        for _ in 0..REAP {
            let Some(Reverse((until, port))) = self.resting.peek().copied() else { return };
            if until > now {
                return;
            }
            self.resting.pop();
            self.free.insert(port);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    const REST: Duration = Duration::from_secs(60);

    #[derive(Clone, Debug)]
    enum Step {
        Allocate,
        Release(usize, u64),
        Wait(u64),
        ReleaseStray(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Allocate),
            2 => (any::<usize>(), 0_u64..50).prop_map(|(n, rest)| Step::Release(n, rest)),
            1 => (0_u64..40).prop_map(Step::Wait),
            1 => any::<u16>().prop_map(Step::ReleaseStray),
        ]
    }

    proptest! {
        #[test]
        fn never_hands_out_a_port_in_use_or_resting(
            seed: [u8; 16],
            modulus in 1_u16..9_000,
            steps in prop::collection::vec(step(), 1..400),
        ) {
            let owned = |port: u16| port % modulus == modulus / 2;
            let mut space = PortSpace::new(seed, owned);
            let total = (FIRST..=u16::MAX).filter(|port| owned(*port)).count();
            let mut now = Micros(0);
            let mut used: Vec<u16> = Vec::new();
            let mut resting: HashMap<u16, Micros> = HashMap::new();
            for step in steps {
                match step {
                    Step::Allocate => {
                        resting.retain(|_, until| *until > now);
                        let port = space.allocate(now);
                        prop_assert_eq!(port.is_some(), used.len() + resting.len() < total);
                        if let Some(port) = port {
                            prop_assert!(owned(port) && port >= FIRST);
                            prop_assert!(!used.contains(&port) && !resting.contains_key(&port));
                            used.push(port);
                        }
                    }
                    Step::Release(n, rest) if !used.is_empty() => {
                        let port = used.swap_remove(n % used.len());
                        let rest = Duration::from_micros(rest);
                        space.release(port, now, rest);
                        resting.insert(port, now.after(rest));
                    }
                    Step::Release(..) => {}
                    Step::Wait(micros) => now = Micros(now.0 + micros),
                    Step::ReleaseStray(port) => {
                        if !used.contains(&port) {
                            space.release(port, now, Duration::ZERO);
                        }
                    }
                }
                prop_assert_eq!(space.in_use(), used.len());
                prop_assert_eq!(space.in_use() + space.resting() + space.available(), total);
            }
        }
    }

    #[test]
    fn every_owned_port_is_handed_out_once_then_none() {
        let mut space = PortSpace::new([7; 16], |_| true);
        let ports: HashSet<u16> = std::iter::from_fn(|| space.allocate(Micros(0))).collect();
        assert_eq!(ports.len(), 65_536 - 1_024);
        assert!(ports.iter().all(|port| *port >= FIRST));
        assert_eq!(space.in_use(), ports.len());
        assert_eq!(space.allocate(Micros(0)), None);
        space.release(40_000, Micros(0), Duration::ZERO);
        assert_eq!(space.allocate(Micros(0)), Some(40_000));
    }

    #[test]
    fn a_released_port_rests_before_it_is_used_again() {
        let mut space = PortSpace::new([7; 16], |port| port == 2_000);
        assert_eq!(space.allocate(Micros(0)), Some(2_000));
        space.release(2_000, Micros(10), REST);
        assert_eq!((space.in_use(), space.resting()), (0, 1));
        assert_eq!(space.allocate(Micros(60_000_009)), None);
        assert_eq!(space.allocate(Micros(60_000_010)), Some(2_000));
    }

    #[test]
    fn a_second_release_does_not_free_the_port_twice() {
        let mut space = PortSpace::new([7; 16], |port| port == 2_000);
        assert_eq!(space.allocate(Micros(0)), Some(2_000));
        space.release(2_000, Micros(0), REST);
        space.release(2_000, Micros(0), Duration::ZERO);
        assert_eq!(space.allocate(Micros(1)), None);
        assert_eq!(space.resting(), 1);
    }

    #[test]
    fn order_depends_on_the_seed() {
        let draws = |seed| {
            let mut space = PortSpace::new([seed; 16], |_| true);
            (0..8).map_while(|_| space.allocate(Micros(0))).collect::<Vec<u16>>()
        };
        assert_ne!(draws(1), draws(2));
        let mut sorted = draws(1);
        sorted.sort_unstable();
        assert_ne!(sorted, draws(1));
    }
}
