//! The class of an IPv6 address: interpolation by its upper eight octets, and by its lower eight where those decide.
//!
//! IPv6 space is used in a few dense spots far from each other, so no fixed table of leading bits serves. A node looks
//! only at the span from its first boundary to its last, cuts that into equal power-of-two slots, about as many as it has
//! boundaries, and each slot is a class, a leaf, or a node of its own. Leaves are sorted boundaries: up to 5 in one cache
//! line, or up to 15 in three. A node has at least eight slots, each at most an eighth of its span or a single key, so
//! lookups end after few steps whatever the prefixes. What a node leads to lies behind it, mostly on the same page of memory.

use std::mem::size_of_val;
use std::ops::Range;

/// Boundaries in a leaf of one cache line, and in one of three.
const LEAF: usize = 5;
const WIDE_LEAF: usize = 15;

/// A node has at most 2^this + 1 slots: the table of the first one stays near.
const MAX_SLOT_BITS: u32 = 16;

/// An entry is a class, or the index of the line to ask next; with `LOWER`, to be asked for the lower eight octets.
const LOWER: u32 = 1 << 31;
const KIND: u32 = 3 << INDEX_BITS;
const INDEX_BITS: u32 = 29;
const LEAVES: u32 = 1 << INDEX_BITS;
const WIDE_LEAVES: u32 = 2 << INDEX_BITS;
const NODES: u32 = 3 << INDEX_BITS;
const INDEX: u32 = LEAVES - 1;

/// A cache line. Entries are two to a word, the lesser half first.
///
/// A leaf is 5 keys, ascending, and 6 entries: before the first key, then from each on. Unused keys are the greatest, and
/// unused entries repeat the last, since the greatest address meets unused keys. A wide leaf is 15 keys and an unused word in two
/// lines, and 16 entries in the next. A node is where the first slot starts, a multiple of a slot's size; then the
/// logarithm of that size and, in the upper half, the number of the last slot; then the slots' entries, in as many lines as they take. Its
/// first slot reaches down to the least key, its last up to the greatest.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// Entries that a node's first two words take the place of.
const HEAD: usize = 4;

/// The entry `at` of these.
#[inline]
fn entry<const WORDS: usize>(words: &[u64; WORDS], at: usize) -> u32 {
    words.get(at >> 1).map_or(0, |word| (word >> ((at & 1) << 5)) as u32)
}

/// How many of `keys` are at or before `key`.
#[inline]
fn rank(keys: &[u64], key: u64) -> usize {
    keys.iter().fold(0usize, |rank, &first| rank.wrapping_add(usize::from(first <= key)))
}

/// The compiled IPv6 half of a map.
#[derive(Clone, Debug)]
pub(super) struct LookupV6 {
    root: u32,
    lines: Vec<Line>,
}

impl LookupV6 {
    /// The class of the address with the upper octets `hi` and the lower `lo`.
    #[inline]
    pub(super) fn find(&self, hi: u64, lo: u64) -> u16 {
        let mut at = self.root;
        let mut key = hi;
        // Ends: what an entry leads to lies behind it. No `match`: a jump table would be one branch for all steps, and be
        // guessed worse than the branch of each kind.
        loop {
            if at & KIND == 0 {
                return at as u16;
            }
            if at & LOWER != 0 {
                key = lo;
            }
            let index = (at & INDEX) as usize;
            if at & KIND == NODES {
                at = self.node(index, key);
            } else if at & KIND == LEAVES {
                at = self.leaf(index, key);
            } else {
                at = self.wide_leaf(index, key);
            }
        }
    }

    #[inline]
    fn node(&self, index: usize, key: u64) -> u32 {
        let Some(&Line([base, shape, ..])) = self.lines.get(index) else { return 0 };
        let slot = key.saturating_sub(base).wrapping_shr(shape as u32).min(shape >> 32) as usize;
        let at = slot.wrapping_add(HEAD);
        self.lines.get(index.wrapping_add(at >> 4)).map_or(0, |line| entry(&line.0, at & 15))
    }

    #[inline]
    fn leaf(&self, index: usize, key: u64) -> u32 {
        let Some(Line([keys @ .., a, b, c])) = self.lines.get(index) else { return 0 };
        entry(&[*a, *b, *c], rank(keys, key))
    }

    #[inline]
    fn wide_leaf(&self, index: usize, key: u64) -> u32 {
        let Some([Line(low), Line([high @ .., _]), Line(entries)]) =
            self.lines.get(index..).and_then(|lines| lines.first_chunk())
        else {
            return 0;
        };
        entry(entries, rank(low, key).wrapping_add(rank(high, key)))
    }

    /// Brings near what [`LookupV6::find`] will read first that depends on the address.
    #[inline]
    pub(super) fn touch(&self, hi: u64) {
        if self.root & KIND == NODES {
            // A plain load nobody uses would be removed; this one is kept, and its latency is hidden by the loads after it.
            std::hint::black_box(self.node((self.root & INDEX) as usize, hi));
        }
    }

    /// Octets of memory.
    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// From segments: the first address of each and its class, ascending, the first at address 0. There are fewer than
    /// 2^27, so every index fits into an entry.
    pub(super) fn build(segments: &[(u128, u16)]) -> LookupV6 {
        let mut builder = Builder { segments, lines: Vec::new(), lower: Vec::new() };
        let mut upper: Vec<(u64, u32)> = Vec::with_capacity(segments.len());
        let mut class = 0;
        let mut start = 0usize;
        let mut runs = segments.chunk_by(|a, b| a.0 >> 64 == b.0 >> 64).peekable();
        while let Some(run) = runs.next() {
            let hi = run.first().map_or(0, |(first, _)| (first >> 64) as u64);
            let end = start.saturating_add(run.len());
            let (before, inside) = match run.first() {
                Some(&(first, class)) if first as u64 == 0 => (class, start.saturating_add(1)..end),
                _ => (class, start..end),
            };
            start = end;
            class = run.last().map_or(class, |&(_, class)| class);
            if inside.is_empty() {
                upper.push((hi, before.into()));
                continue;
            }
            upper.push((hi, LOWER | builder.lower.len() as u32));
            builder.lower.push(Lower { before, inside, built: None });
            let next = runs.peek().and_then(|run| run.first()).map(|(first, _)| (first >> 64) as u64);
            if let Some(after) = hi.checked_add(1).filter(|after| next != Some(*after)) {
                upper.push((after, class.into()));
            }
        }
        let root = upper.split_first().map_or(0, |(&(_, before), inside)| builder.add(before, inside));
        builder.lines.shrink_to_fit();
        LookupV6 { root, lines: builder.lines }
    }
}

/// The lower octets under upper ones that do not decide.
struct Lower {
    before: u16,
    /// Of the builder's segments, those that start past the first address.
    inside: Range<usize>,
    built: Option<u32>,
}

struct Builder<'a> {
    segments: &'a [(u128, u16)],
    lines: Vec<Line>,
    lower: Vec<Lower>,
}

impl Builder<'_> {
    /// The entry for keys that meet `before` below the first of `boundaries`, and from each boundary on its own. Where an
    /// entry has `LOWER`, its index still is one of `self.lower`.
    fn add(&mut self, before: u32, boundaries: &[(u64, u32)]) -> u32 {
        if boundaries.is_empty() {
            self.resolve(before)
        } else if boundaries.len() <= LEAF {
            LEAVES | self.add_leaf::<LEAF, 8>(before, boundaries)
        } else if boundaries.len() <= WIDE_LEAF {
            WIDE_LEAVES | self.add_leaf::<WIDE_LEAF, 24>(before, boundaries)
        } else {
            NODES | self.add_node(before, boundaries)
        }
    }

    /// The entry with the index of a line, for which lower octets are built right here, behind what leads to them.
    fn resolve(&mut self, entry: u32) -> u32 {
        if entry & LOWER == 0 {
            return entry;
        }
        let at = (entry & !LOWER) as usize;
        let Some(Lower { before, inside, built }) = self.lower.get(at) else { return 0 };
        if let Some(built) = built {
            return *built;
        }
        let before = u32::from(*before);
        let inside = self.segments.get(inside.clone()).unwrap_or(&[]);
        let boundaries: Vec<_> = inside.iter().map(|&(first, class)| (first as u64, class.into())).collect();
        let built = LOWER | self.add(before, &boundaries);
        if let Some(lower) = self.lower.get_mut(at) {
            lower.built = Some(built);
        }
        built
    }

    /// The index of a new leaf of `WORDS` words, the last of which are for entries.
    fn add_leaf<const KEYS: usize, const WORDS: usize>(&mut self, before: u32, boundaries: &[(u64, u32)]) -> u32 {
        let index = self.reserve(WORDS);
        let mut entries: Vec<u32> = [before].into_iter().chain(boundaries.iter().map(|&(_, entry)| entry)).collect();
        for entry in &mut entries {
            *entry = self.resolve(*entry);
        }
        entries.resize(KEYS.saturating_add(1), entries.last().copied().unwrap_or(0));
        let mut words = [u64::MAX; WORDS];
        let (keys, rest) = words.split_at_mut(WORDS.saturating_sub(entries.len().div_ceil(2)));
        keys.iter_mut().zip(boundaries).for_each(|(place, &(key, _))| *place = key);
        pack(rest, &entries);
        self.write(index, &words);
        index
    }

    /// The index of a new node.
    fn add_node(&mut self, before: u32, boundaries: &[(u64, u32)]) -> u32 {
        // The first and the last boundary differ, and end in different slots, so every slot has fewer boundaries than this.
        let first = boundaries.first().map_or(0, |&(key, _)| key);
        let last = boundaries.last().map_or(0, |&(key, _)| key);
        let bits = boundaries.len().checked_ilog2().unwrap_or(0).min(MAX_SLOT_BITS);
        let shift = u64::BITS.saturating_sub(last.saturating_sub(first).leading_zeros()).saturating_sub(bits);
        let base = first >> shift << shift;
        let slot_of = |key: u64| key.saturating_sub(base) >> shift;
        let last = slot_of(last);

        let mut words = vec![base, last << 32 | u64::from(shift)];
        words.resize((last as usize).saturating_add(HEAD).div_euclid(2).saturating_add(1).next_multiple_of(8), 0);
        let index = self.reserve(words.len());
        let mut entries = Vec::with_capacity(last.saturating_add(1) as usize);
        let (mut before, mut rest) = (before, boundaries);
        for slot in 0..=last {
            let (inside, after) = rest.split_at(rest.partition_point(|&(key, _)| slot_of(key) == slot));
            rest = after;
            // A boundary at the slot's start leaves no key before it, except below the whole node.
            let (start, inside) = match inside.split_first() {
                Some((&(key, entry), inside)) if slot > 0 && key == base.saturating_add(slot << shift) => {
                    (entry, inside)
                }
                _ => (before, inside),
            };
            entries.push(self.add(start, inside));
            before = inside.last().map_or(start, |&(_, entry)| entry);
        }
        if let [_, _, slots @ ..] = words.as_mut_slice() {
            pack(slots, &entries);
        }
        self.write(index, &words);
        index
    }

    /// Makes room for `words`, whole lines, and says from which line on.
    fn reserve(&mut self, words: usize) -> u32 {
        let index = self.lines.len();
        self.lines.resize(index.saturating_add(words.div_euclid(8)), Line([0; 8]));
        index as u32
    }

    fn write(&mut self, index: u32, words: &[u64]) {
        let lines = self.lines.iter_mut().skip(index as usize);
        lines.zip(words.as_chunks().0).for_each(|(line, words)| line.0 = *words);
    }
}

/// Entries into words.
fn pack(words: &mut [u64], entries: &[u32]) {
    for (word, pair) in words.iter_mut().zip(entries.chunks(2)) {
        *word = pair.iter().rev().fold(0, |word, &entry| word << 32 | u64::from(entry));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Keys that meet at every level: dense spots in the upper and in the lower half, powers of two, the ends of the space.
    fn key() -> impl Strategy<Value = u128> {
        let spot = 0x2001_0db8_0000_0000_u128 << 64;
        prop_oneof![
            0u128..200,
            (u128::MAX - 200)..=u128::MAX,
            spot..spot + 300,
            (0u128..300).prop_map(move |i| spot + (i << 64)),
            (0u128..300).prop_map(move |i| spot + (i << 80)),
            (0u128..40, 0u128..3).prop_map(move |(i, j)| spot + (i << 64) + j),
            (0u32..128).prop_map(|i| 1 << i),
            (0u32..128).prop_map(|i| u128::MAX << i),
            any::<u128>(),
        ]
    }

    proptest! {
        #[test]
        fn the_lookup_is_the_last_segment_at_or_before(
            firsts in proptest::collection::btree_map(key(), any::<u16>(), 0..1000),
            asked in proptest::collection::vec(key(), 100),
        ) {
            let mut firsts = firsts;
            firsts.entry(0).or_insert(0);
            let segments: Vec<_> = firsts.iter().map(|(&first, &class)| (first, class)).collect();
            let lookup = LookupV6::build(&segments);
            let edges = firsts.keys().flat_map(|&first| [first.wrapping_sub(1), first, first.wrapping_add(1)]);
            for bits in edges.chain(asked) {
                let class = *firsts.range(..=bits).next_back().unwrap().1;
                prop_assert_eq!(lookup.find((bits >> 64) as u64, bits as u64), class, "{:x}", bits);
            }
        }
    }

    #[test]
    fn boundaries_at_every_power_of_two_take_few_steps_and_little_memory() {
        let segments: Vec<(u128, u16)> = [(0, 0)].into_iter().chain((0..128).map(|i| (1u128 << i, i + 1))).collect();
        let lookup = LookupV6::build(&segments);
        for i in 0..128u16 {
            let bits = 1u128 << i;
            assert_eq!(lookup.find((bits >> 64) as u64, bits as u64), i + 1);
        }
        assert!(lookup.memory() < 16 << 10, "{}", lookup.memory());
    }
}
