//! Which 4-tuples had a SYN answered lately: Bloom filters (Bloom 1970), so that nobody who may still prove a cookie is
//! reset.
//!
//! A client whose handshake's last ACK was lost goes on: its second segment of data may come first, and says nothing
//! that a cookie could be checked by. A RST would end an honest connection that only has to repeat its first segment.
//! So no 4-tuple is reset whose SYN was answered while its cookie can still be good: less than two epochs ago.
//!
//! One filter takes in what an epoch brings, on the monotonic clock; it and the two before it are asked. So what is
//! noted is known for two epochs at least, three at most, whatever the wall clock is set to. A filter errs on the safe
//! side only: it may take a stranger for known, who is then not reset. One that is more than half full says of nobody
//! that it is a stranger.

use std::time::Duration;

use sluice_filters::units::Micros;

/// Filters: the one that takes in, and those that are only asked.
const FILTERS: usize = 3;
/// Bits that one entry sets.
const BITS: u64 = 4;
/// Bits of a filter for each entry that an epoch may bring; with four of them set, a stranger is known in one case of
/// 420.
const SPACE: u64 = 16;
/// Bits of a filter, at least and at most: 16 KiB and 1 MiB.
const LEAST: u64 = 1 << 17;
const MOST: u64 = 1 << 23;

/// What is known of a 4-tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// A SYN of its was answered, or it looks as if.
    Answered,
    /// No SYN of its was answered.
    Stranger,
}

struct Bloom {
    words: Box<[u64]>,
    set: usize,
}

/// The filters. One worker's.
pub(crate) struct Answered {
    filters: [Bloom; FILTERS],
    /// Which of them takes in.
    current: usize,
    epoch: Duration,
    turns: Micros,
}

/// Spreads a keyed hash whose bits others have used: the finaliser of SplitMix64.
fn spread(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// The bits of an entry in a filter of `words` words, by double hashing (Kirsch and Mitzenmacher 2006): the word, and a
/// mask.
fn bits(hash: u64, words: usize) -> impl Iterator<Item = (usize, u64)> {
    let hash = spread(hash);
    let (start, step) = (hash & 0xffff_ffff, hash >> 32 | 1);
    let mask = (words as u64).wrapping_mul(64).wrapping_sub(1);
    (0..BITS).map(move |n| {
        let bit = start.wrapping_add(step.wrapping_mul(n)) & mask;
        ((bit >> 6) as usize, 1 << (bit & 63))
    })
}

impl Bloom {
    fn note(&mut self, hash: u64) {
        for (word, bit) in bits(hash, self.words.len()) {
            if let Some(word) = self.words.get_mut(word) {
                self.set = self.set.wrapping_add(usize::from(*word & bit == 0));
                *word |= bit;
            }
        }
    }

    fn has(&self, hash: u64) -> bool {
        // Half of its bits set: of sixteen strangers it would know one.
        self.set > self.words.len().wrapping_mul(32)
            || bits(hash, self.words.len()).all(|(word, bit)| self.words.get(word).is_none_or(|word| word & bit != 0))
    }

    fn clear(&mut self) {
        self.words.fill(0);
        self.set = 0;
    }
}

impl Answered {
    /// Empty filters for epochs of this length, each with as many as `entries` SYNs. Zero entries: without memory, and
    /// everybody is known.
    pub(crate) fn new(entries: u64, epoch: Duration, now: Micros) -> Answered {
        let bits = entries.saturating_mul(SPACE).clamp(LEAST, MOST).next_power_of_two();
        let words = if entries == 0 { 0 } else { (bits >> 6) as usize };
        let filters = std::array::from_fn(|_| Bloom { words: vec![0; words].into_boxed_slice(), set: 0 });
        Answered { filters, current: 0, epoch, turns: now.after(epoch) }
    }

    /// Begins another filter when its time has come. Cheap otherwise.
    pub(crate) fn tick(&mut self, now: Micros) {
        if now < self.turns {
            return;
        }
        self.turns = now.after(self.epoch);
        self.current = self.current.wrapping_add(1) % FILTERS;
        if let Some(filter) = self.filters.get_mut(self.current) {
            filter.clear();
        }
    }

    /// Notes the flow with this keyed hash.
    pub(crate) fn note(&mut self, hash: u64) {
        if let Some(filter) = self.filters.get_mut(self.current) {
            filter.note(hash);
        }
    }

    /// What is known of it.
    pub(crate) fn knows(&self, hash: u64) -> Known {
        if self.filters.iter().any(|filter| filter.has(hash)) { Known::Answered } else { Known::Stranger }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Duration = Duration::from_secs(64);

    fn second(n: u64) -> Micros {
        Micros(n * 1_000_000)
    }

    #[test]
    fn what_is_noted_is_known_for_two_epochs_and_not_for_more_than_three() {
        for noted in [0, 1, 63, 64, 100] {
            let mut answered = Answered::new(1_000, EPOCH, second(0));
            for now in 0..noted + 300 {
                answered.tick(second(now));
                if now == noted {
                    answered.note(5);
                }
                let age = now.checked_sub(noted);
                match age {
                    Some(0..=128) => assert_eq!(answered.knows(5), Known::Answered, "{noted} {now}"),
                    Some(193..) | None => assert_eq!(answered.knows(5), Known::Stranger, "{noted} {now}"),
                    Some(_) => {}
                }
            }
        }
    }

    #[test]
    fn strangers_are_seldom_taken_for_known_while_no_more_comes_than_was_said() {
        let mut answered = Answered::new(50_000, EPOCH, second(0));
        // As workers' hashes are: those of one worker agree in a bit.
        (0..50_000_u64).for_each(|n| answered.note(spread(n) | 1 << 32));
        assert!((0..50_000_u64).all(|n| answered.knows(spread(n) | 1 << 32) == Known::Answered));
        let known = (1 << 32..(1 << 32) + 100_000_u64)
            .filter(|n| answered.knows(spread(*n) | 1 << 32) == Known::Answered)
            .count();
        assert!(known < 500, "{known} of 100,000");
    }

    #[test]
    fn a_filter_that_is_too_full_calls_nobody_a_stranger() {
        let mut answered = Answered::new(1, EPOCH, second(0));
        (0..40_000_u64).for_each(|n| answered.note(n));
        assert!((1 << 40..(1 << 40) + 10_000_u64).all(|n| answered.knows(n) == Known::Answered));
        for now in [64, 128, 192] {
            answered.tick(second(now));
        }
        assert_eq!(answered.knows(1 << 40), Known::Stranger, "three epochs later it is empty");
    }

    #[test]
    fn without_memory_everybody_is_known() {
        let mut answered = Answered::new(0, EPOCH, second(0));
        answered.note(1);
        assert_eq!(answered.knows(2), Known::Answered);
    }

    #[test]
    fn three_filters_have_a_mebibyte_each_at_most() {
        let answered = Answered::new(u64::MAX, EPOCH, second(0));
        assert_eq!(answered.filters.map(|filter| size_of_val(&*filter.words)), [1 << 20; 3]);
    }
}
