//! The class of an IPv4 address: a table by its leading 16 bits, then one small search within that /16.
//!
//! A /16 that is one class needs no more than its table entry. Else its segments (first address and class) lie in leaves
//! of 32, a leaf being one cache line of keys and the line after it of classes, which are read side by side: the class is
//! the XOR of the differences up to the key, so no load waits for the comparison's outcome. Up to two levels of pivots, a
//! line each, find the leaf among many; a /16 of more segments than that is a table of 65,536 classes.
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

/// Entries of the top table: one per /16.
const TOP: usize = 1 << 16;

/// Segments in a leaf.
const LEAF: usize = 32;

/// Pivots in a line; they part one child more.
const PIVOTS: usize = 30;
const CHILDREN: usize = PIVOTS + 1;

/// A /16 of more segments is a table: 8 octets a segment at most, about twice what leaves take. Two levels of pivots
/// reach `CHILDREN * CHILDREN * LEAF` segments, which is more.
const DENSE: usize = 16_384;

/// A top entry's upper bits say what its lower bits index; below `LEAVES` the entry is the class itself.
const KIND: u32 = 7 << INDEX_BITS;
const INDEX_BITS: u32 = 29;
const LEAVES: u32 = 1 << INDEX_BITS;
const PIVOTS_OF_LEAVES: u32 = 2 << INDEX_BITS;
const PIVOTS_OF_PIVOTS: u32 = 3 << INDEX_BITS;
const TABLES: u32 = 4 << INDEX_BITS;

/// Up to 32 segments of a /16. The first key is at or below every address that gets here. Unused places change nothing.
#[derive(Clone, Debug)]
#[repr(C, align(128))]
struct Leaf {
    /// The low 16 bits of each segment's first address, ascending.
    keys: [u16; LEAF],
    /// The first segment's class, then each class XOR the one before.
    changes: [u16; LEAF],
}

impl Leaf {
    #[inline]
    fn find(&self, low: u16) -> u16 {
        self.keys
            .iter()
            .zip(&self.changes)
            .fold(0, |class, (&key, &change)| class ^ if key <= low { change } else { 0 })
    }
}

/// Parts up to 31 children, which lie side by side.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Pivots {
    /// The address before the second and each later child's first, ascending; unused ones are 0xffff, below no address.
    keys: [u16; PIVOTS],
    /// The index of the first child.
    first: u32,
}

impl Pivots {
    #[inline]
    fn child(&self, low: u16) -> u32 {
        let before = self.keys.iter().fold(0u16, |before, &key| before.wrapping_add(u16::from(key < low)));
        self.first.wrapping_add(before.into())
    }
}

/// The compiled IPv4 half of a map.
#[derive(Clone, Debug)]
pub(super) struct LookupV4 {
    top: Box<[u32; TOP]>,
    leaves: Vec<Leaf>,
    pivots: Vec<Pivots>,
    tables: Vec<u16>,
}

impl LookupV4 {
    /// The class of the address `bits`.
    #[inline]
    pub(super) fn find(&self, bits: u32) -> u16 {
        let entry = self.entry(bits);
        // Most of the space is one class by the /16.
        if entry < LEAVES { entry as u16 } else { self.find_below(entry, bits as u16) }
    }

    #[inline]
    fn entry(&self, bits: u32) -> u32 {
        self.top.get((bits >> 16) as usize).copied().unwrap_or(0)
    }

    #[inline]
    fn find_below(&self, entry: u32, low: u16) -> u16 {
        let index = entry & !KIND;
        let leaf = match entry & KIND {
            LEAVES => index,
            PIVOTS_OF_LEAVES => self.child(index, low),
            PIVOTS_OF_PIVOTS => self.child(self.child(index, low), low),
            _ => return self.tables.get((index as usize) << 16 | usize::from(low)).copied().unwrap_or(0),
        };
        self.leaves.get(leaf as usize).map_or(0, |leaf| leaf.find(low))
    }

    #[inline]
    fn child(&self, index: u32, low: u16) -> u32 {
        self.pivots.get(index as usize).map_or(0, |pivots| pivots.child(low))
    }

    /// Brings near what [`LookupV4::find`] will read first.
    #[inline]
    pub(super) fn touch(&self, bits: u32) {
        // A plain load nobody uses would be removed; this one is kept, and its latency is hidden by the loads after it.
        std::hint::black_box(self.entry(bits));
    }

    /// Octets of memory.
    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.top)
            .saturating_add(size_of_val(&*self.leaves))
            .saturating_add(size_of_val(&*self.pivots))
            .saturating_add(size_of_val(&*self.tables))
    }

    /// From segments: the first address of each and its class, ascending, the first at address 0. There are fewer than
    /// 2^27, so every index fits into an entry.
    pub(super) fn build(segments: &[(u32, u16)]) -> LookupV4 {
        let mut lookup =
            LookupV4 { top: Box::new([0; TOP]), leaves: Vec::new(), pivots: Vec::new(), tables: Vec::new() };
        let mut rest = segments;
        let mut class = 0;
        let mut chunk: Vec<(u16, u16)> = Vec::new();
        let mut top = Box::new([0; TOP]);
        for (high, entry) in (0u32..).zip(top.iter_mut()) {
            let (inside, after) = rest.split_at(rest.iter().take_while(|(first, _)| first >> 16 == high).count());
            rest = after;
            chunk.clear();
            if inside.first().is_none_or(|(first, _)| *first as u16 != 0) {
                chunk.push((0, class));
            }
            chunk.extend(inside.iter().map(|&(first, class)| (first as u16, class)));
            *entry = lookup.add(&chunk);
            class = chunk.last().map_or(class, |&(_, class)| class);
        }
        lookup.top = top;
        lookup.leaves.shrink_to_fit();
        lookup.pivots.shrink_to_fit();
        lookup.tables.shrink_to_fit();
        lookup
    }

    /// The top entry for the segments of one /16, the first of which is at its first address.
    fn add(&mut self, chunk: &[(u16, u16)]) -> u32 {
        match chunk {
            [] => 0,
            [(_, class)] => (*class).into(),
            dense if dense.len() > DENSE => {
                let index = self.tables.len() >> 16;
                let ends = dense.iter().skip(1).map(|&(first, _)| u32::from(first)).chain([1 << 16]);
                for (&(first, class), end) in dense.iter().zip(ends) {
                    self.tables.extend((u32::from(first)..end).map(|_| class));
                }
                TABLES | index as u32
            }
            sparse => {
                let leaves: Vec<u16> =
                    sparse.chunks(LEAF).filter_map(|leaf| leaf.first()).map(|first| first.0).collect();
                let index = self.leaves.len() as u32;
                self.leaves.extend(sparse.chunks(LEAF).map(leaf));
                if leaves.len() == 1 {
                    return LEAVES | index;
                }
                let (index, parents) = self.part(index, &leaves);
                if parents.len() == 1 {
                    return PIVOTS_OF_LEAVES | index;
                }
                PIVOTS_OF_PIVOTS | self.part(index, &parents).0
            }
        }
    }

    /// Pivots over children that lie side by side from index `child` and start at `firsts`: their index, and where each starts.
    fn part(&mut self, child: u32, firsts: &[u16]) -> (u32, Vec<u16>) {
        let index = self.pivots.len() as u32;
        let starts = (child..).step_by(CHILDREN);
        for (firsts, first) in firsts.chunks(CHILDREN).zip(starts) {
            let mut keys = [u16::MAX; PIVOTS];
            for (key, first) in keys.iter_mut().zip(firsts.iter().skip(1)) {
                *key = first.saturating_sub(1);
            }
            self.pivots.push(Pivots { keys, first });
        }
        (index, firsts.chunks(CHILDREN).filter_map(|firsts| firsts.first().copied()).collect())
    }
}

/// A leaf of up to 32 segments.
fn leaf(segments: &[(u16, u16)]) -> Leaf {
    let mut leaf = Leaf { keys: [u16::MAX; LEAF], changes: [0; LEAF] };
    let mut before = 0;
    for ((key, change), &(first, class)) in leaf.keys.iter_mut().zip(&mut leaf.changes).zip(segments) {
        (*key, *change) = (first, class ^ before);
        before = class;
    }
    leaf
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_kind_of_chunk_finds_every_segment() {
        assert!(DENSE <= CHILDREN * CHILDREN * LEAF);
        // Distances that make leaves, one level of pivots, two levels, a table, and a table of single addresses.
        for step in [4096u32, 2049, 2048, 67, 66, 65, 4, 3, 1] {
            let segments: Vec<(u32, u16)> = (0x000a_0000..0x000b_0000)
                .step_by(step as usize)
                .map(|first| (first, (first % 65_521) as u16 + 1))
                .collect();
            let with_ends: Vec<_> =
                [(0, 9)].into_iter().chain(segments.iter().copied()).chain([(0x000b_0000, 7)]).collect();
            let lookup = LookupV4::build(&with_ends);
            for bits in 0x0009_fff0..0x000b_0010 {
                let class = with_ends[with_ends.partition_point(|(first, _)| *first <= bits) - 1].1;
                assert_eq!(lookup.find(bits), class, "{bits:x} by steps of {step}");
            }
            assert_eq!((lookup.find(0), lookup.find(u32::MAX)), (9, 7));
        }
    }

    proptest! {
        #[test]
        fn the_lookup_is_the_last_segment_at_or_before(
            firsts in proptest::collection::btree_map(
                prop_oneof![0u32..3000, 0xffff_f000..=u32::MAX, 0x1_0000u32..0x1_9000, any::<u32>()], any::<u16>(), 0..3000),
            asked in proptest::collection::vec(any::<u32>(), 100),
        ) {
            let mut firsts = firsts;
            firsts.entry(0).or_insert(0);
            let segments: Vec<_> = firsts.iter().map(|(&first, &class)| (first, class)).collect();
            let lookup = LookupV4::build(&segments);
            let edges = firsts.keys().flat_map(|&first| [first.wrapping_sub(1), first, first.wrapping_add(1)]);
            for bits in edges.chain(asked) {
                prop_assert_eq!(lookup.find(bits), *firsts.range(..=bits).next_back().unwrap().1, "{:x}", bits);
            }
        }
    }
}
