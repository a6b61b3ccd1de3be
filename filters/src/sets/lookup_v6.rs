//! The class of an IPv6 address: interpolation by its upper eight octets, and by its lower eight where those decide.
//!
//! IPv6 space is used in a few dense spots far from each other, so no fixed table of leading bits serves. A node looks
//! only at the span from its first boundary to its last, cuts that into equal power-of-two slots, about as many as it has
//! boundaries, and each slot is a class, a leaf, or a node of its own. Leaves are sorted boundaries: up to 5 in one cache
//! line, or up to 15 in three. A node has at least eight slots, each at most an eighth of its span or a single key, so
//! lookups end after few steps whatever the prefixes.
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

use std::mem::size_of_val;

/// Boundaries in a leaf of one cache line, and in one of three.
const LEAF: usize = 5;
const WIDE_LEAF: usize = 15;

/// A node has at most 2^this + 1 slots: the table of the first one stays near.
const MAX_SLOT_BITS: u32 = 16;

/// An entry is a class, or the index of what to ask next; with `LOWER`, to be asked for the lower eight octets.
const LOWER: u32 = 1 << 31;
const KIND: u32 = 3 << INDEX_BITS;
const INDEX_BITS: u32 = 29;
const LEAVES: u32 = 1 << INDEX_BITS;
const WIDE_LEAVES: u32 = 2 << INDEX_BITS;
const NODES: u32 = 3 << INDEX_BITS;
const INDEX: u32 = LEAVES - 1;

/// Up to five boundaries and the entries between them.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Leaf {
    /// Ascending; unused ones are the greatest key.
    keys: [u64; LEAF],
    /// Before the first boundary, then from each on; unused ones repeat the last, since the greatest key meets unused keys.
    entries: [u32; LEAF + 1],
}

/// Up to 15 boundaries, likewise.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct WideLeaf {
    keys: [u64; WIDE_LEAF],
    entries: [u32; WIDE_LEAF + 1],
}

/// How many of `keys` are at or before `key`.
#[inline]
fn rank(keys: &[u64], key: u64) -> usize {
    keys.iter().fold(0usize, |rank, &first| rank.wrapping_add(usize::from(first <= key)))
}

/// Words of a line. A node starts with one.
const LINE: usize = 16;

/// What a node starts with, before its slots: where the first slot starts, a multiple of a slot's size (two words); the
/// number of the last slot; the logarithm of a slot's size. The first slot reaches down to the least key, the last up to
/// the greatest.
const HEAD: usize = 4;

/// The compiled IPv6 half of a map.
#[derive(Clone, Debug)]
pub(super) struct LookupV6 {
    root: u32,
    nodes: Vec<[u32; LINE]>,
    leaves: Vec<Leaf>,
    wide_leaves: Vec<WideLeaf>,
}

impl LookupV6 {
    /// The class of the address with the upper octets `hi` and the lower `lo`.
    #[inline]
    pub(super) fn find(&self, hi: u64, lo: u64) -> u16 {
        let mut entry = self.root;
        let mut key = hi;
        // Ends: what an entry leads to was built before it, so every step goes to a lesser index of its kind or to another kind.
        loop {
            if entry & LOWER != 0 {
                key = lo;
            }
            let index = (entry & INDEX) as usize;
            entry = match entry & KIND {
                NODES => self.node(index, key),
                LEAVES => self
                    .leaves
                    .get(index)
                    .and_then(|leaf| leaf.entries.get(rank(&leaf.keys, key)))
                    .copied()
                    .unwrap_or(0),
                WIDE_LEAVES => self
                    .wide_leaves
                    .get(index)
                    .and_then(|leaf| leaf.entries.get(rank(&leaf.keys, key)))
                    .copied()
                    .unwrap_or(0),
                _ => return entry as u16,
            }
        }
    }

    #[inline]
    fn node(&self, index: usize, key: u64) -> u32 {
        let Some((&[high, low, last, shift], slots)) =
            self.nodes.get(index..).and_then(|lines| lines.as_flattened().split_first_chunk::<HEAD>())
        else {
            return 0;
        };
        let base = u64::from(high) << 32 | u64::from(low);
        let slot = key.saturating_sub(base).wrapping_shr(shift).min(last.into());
        slots.get(slot as usize).copied().unwrap_or(0)
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
        size_of_val(&*self.nodes)
            .saturating_add(size_of_val(&*self.leaves))
            .saturating_add(size_of_val(&*self.wide_leaves))
    }

    /// From segments: the first address of each and its class, ascending, the first at address 0. There are fewer than
    /// 2^27, so every index fits into an entry.
    pub(super) fn build(segments: &[(u128, u16)]) -> LookupV6 {
        let mut lookup = LookupV6 { root: 0, nodes: Vec::new(), leaves: Vec::new(), wide_leaves: Vec::new() };
        let mut upper: Vec<(u64, u32)> = Vec::with_capacity(segments.len());
        let mut class = 0;
        let mut runs = segments.chunk_by(|a, b| a.0 >> 64 == b.0 >> 64).peekable();
        let mut lower: Vec<(u64, u32)> = Vec::new();
        while let Some(run) = runs.next() {
            let hi = run.first().map_or(0, |(first, _)| (first >> 64) as u64);
            lower.clear();
            lower.extend(run.iter().map(|&(first, class)| (first as u64, class.into())));
            let (before, inside) = match lower.split_first() {
                Some((&(0, class), inside)) => (class, inside),
                _ => (u32::from(class), &*lower),
            };
            class = run.last().map_or(class, |&(_, class)| class);
            if inside.is_empty() {
                upper.push((hi, before));
                continue;
            }
            upper.push((hi, LOWER | lookup.add(before, inside)));
            let next = runs.peek().and_then(|run| run.first()).map(|(first, _)| (first >> 64) as u64);
            if let Some(after) = hi.checked_add(1).filter(|after| next != Some(*after)) {
                upper.push((after, class.into()));
            }
        }
        if let Some((&(_, before), inside)) = upper.split_first() {
            lookup.root = lookup.add(before, inside);
        }
        lookup.nodes.shrink_to_fit();
        lookup.leaves.shrink_to_fit();
        lookup.wide_leaves.shrink_to_fit();
        lookup
    }

    /// The entry for keys that meet `before` below the first of `boundaries`, and from each boundary on its own entry.
    fn add(&mut self, before: u32, boundaries: &[(u64, u32)]) -> u32 {
        let (Some(&(first, _)), Some(&(last, _))) = (boundaries.first(), boundaries.last()) else { return before };
        if boundaries.len() <= LEAF {
            let index = self.leaves.len() as u32;
            let (keys, entries) = leaf(before, boundaries);
            self.leaves.push(Leaf { keys, entries });
            return LEAVES | index;
        }
        if boundaries.len() <= WIDE_LEAF {
            let index = self.wide_leaves.len() as u32;
            let (keys, entries) = leaf(before, boundaries);
            self.wide_leaves.push(WideLeaf { keys, entries });
            return WIDE_LEAVES | index;
        }
        // The first and the last boundary differ, and end in different slots, so every slot has fewer boundaries than this.
        let span = last.saturating_sub(first);
        let bits = boundaries.len().ilog2().min(MAX_SLOT_BITS);
        let shift = u64::BITS.saturating_sub(span.leading_zeros()).saturating_sub(bits);
        let base = first >> shift << shift;
        let slot_of = |key: u64| key.saturating_sub(base) >> shift;
        let last = slot_of(last);

        let mut words = Vec::with_capacity((last as usize).saturating_add(HEAD).saturating_add(LINE));
        words.extend([(base >> 32) as u32, base as u32, last as u32, shift]);
        let mut rest = boundaries;
        let mut before = before;
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
            words.push(self.add(start, inside));
            before = inside.last().map_or(start, |&(_, entry)| entry);
        }
        words.resize(words.len().next_multiple_of(LINE), 0);
        let index = self.nodes.len() as u32;
        self.nodes.extend(words.as_chunks::<LINE>().0);
        NODES | index
    }
}

/// The keys and entries of a leaf of either size.
fn leaf<const KEYS: usize, const ENTRIES: usize>(
    before: u32,
    boundaries: &[(u64, u32)],
) -> ([u64; KEYS], [u32; ENTRIES]) {
    let last = boundaries.last().map_or(before, |&(_, entry)| entry);
    let (mut keys, mut entries) = ([u64::MAX; KEYS], [last; ENTRIES]);
    keys.iter_mut().zip(boundaries).for_each(|(place, &(key, _))| *place = key);
    let from_each = boundaries.iter().map(|&(_, entry)| entry);
    entries.iter_mut().zip([before].into_iter().chain(from_each)).for_each(|(place, entry)| *place = entry);
    (keys, entries)
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
