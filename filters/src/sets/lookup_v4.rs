//! The class of an IPv4 address: a table by its leading 16 bits, then one small search within that /16.
//!
//! A /16 that is one class needs no more than its table entry. Else its segments (first address and class) lie in leaves
//! of 32, a leaf being one cache line of keys and the line after it of classes, which are read side by side: the class is
//! the XOR of the differences up to the key, so no load waits for the comparison's outcome. A line of pivots finds the leaf
//! among up to 31; a /16 of more segments than those hold is split by the next 8 bits, and a /24 of many by the last 8.

use std::mem::size_of_val;

/// Entries of the top table: one per /16.
const TOP: usize = 1 << 16;

/// Segments in a leaf.
const LEAF: usize = 32;

/// Pivots in a line; they part one child more.
const PIVOTS: usize = 30;
const CHILDREN: usize = PIVOTS + 1;

/// A /16 of more segments is split: at most 33 octets a segment.
const SPLIT_ABOVE: usize = CHILDREN * LEAF;

/// An entry's upper bits say what its lower bits index; below `LEAVES` the entry is the class itself.
const KIND: u32 = 3 << INDEX_BITS;
const INDEX_BITS: u32 = 30;
const LEAVES: u32 = 1 << INDEX_BITS;
const PIVOTED: u32 = 2 << INDEX_BITS;
const SPLITS: u32 = 3 << INDEX_BITS;

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
    /// The last two are the halves of the first child's index: a whole line is compared faster than a part.
    keys: [u16; PIVOTS + 2],
}

impl Pivots {
    fn new(keys: impl Iterator<Item = u16>, first: u32) -> Pivots {
        let mut pivots = Pivots { keys: [u16::MAX; PIVOTS + 2] };
        let [line @ .., high, low] = &mut pivots.keys;
        line.iter_mut().zip(keys).for_each(|(place, key)| *place = key);
        (*high, *low) = ((first >> 16) as u16, first as u16);
        pivots
    }

    #[inline]
    fn child(&self, low: u16) -> u32 {
        let [.., first_high, first_low] = self.keys;
        // Not `key < low`, for which there is no vector instruction.
        let below = |key: u16| u16::from(low.saturating_sub(key) != 0);
        let before = self.keys.iter().fold(0u16, |before, &key| before.wrapping_add(below(key)));
        let no_pivots = below(first_high).wrapping_add(below(first_low));
        let first = u32::from(first_high) << 16 | u32::from(first_low);
        first.wrapping_add(before.wrapping_sub(no_pivots).into())
    }
}

/// The compiled IPv4 half of a map.
#[derive(Clone, Debug)]
pub(super) struct LookupV4 {
    top: Box<[u32; TOP]>,
    leaves: Vec<Leaf>,
    pivots: Vec<Pivots>,
    /// Entries by the next 8 bits, for a /16 or a /24.
    splits: Vec<[u32; 256]>,
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
        let mut entry = entry;
        if entry & KIND == SPLITS {
            let [third, fourth] = low.to_be_bytes();
            entry = self.split(entry, third);
            if entry & KIND == SPLITS {
                entry = self.split(entry, fourth);
            }
            if entry < LEAVES {
                return entry as u16;
            }
        }
        let index = (entry & !KIND) as usize;
        let leaf = if entry & KIND == PIVOTED {
            self.pivots.get(index).map_or(0, |pivots| pivots.child(low)) as usize
        } else {
            index
        };
        self.leaves.get(leaf).map_or(0, |leaf| leaf.find(low))
    }

    #[inline]
    fn split(&self, entry: u32, by: u8) -> u32 {
        self.splits.get((entry & !KIND) as usize).and_then(|split| split.get(usize::from(by))).copied().unwrap_or(0)
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
            .saturating_add(size_of_val(&*self.splits))
    }

    /// From segments: the first address of each and its class, ascending, the first at address 0. There are fewer than
    /// 2^27, so every index fits into an entry.
    pub(super) fn build(segments: &[(u32, u16)]) -> LookupV4 {
        let mut lookup =
            LookupV4 { top: Box::new([0; TOP]), leaves: Vec::new(), pivots: Vec::new(), splits: Vec::new() };
        let mut rest = segments;
        let mut class = 0;
        let mut top = Box::new([0; TOP]);
        for (high, entry) in (0u32..).zip(top.iter_mut()) {
            let (inside, after) = rest.split_at(rest.iter().take_while(|(first, _)| first >> 16 == high).count());
            rest = after;
            let inside: Vec<_> = inside.iter().map(|&(first, class)| (first as u16, class)).collect();
            *entry = lookup.add_chunk(class, &inside);
            class = inside.last().map_or(class, |&(_, class)| class);
        }
        lookup.top = top;
        lookup.leaves.shrink_to_fit();
        lookup.pivots.shrink_to_fit();
        lookup.splits.shrink_to_fit();
        lookup
    }

    /// The entry for a /16 that begins in the class `before` and has these segments.
    fn add_chunk(&mut self, before: u16, inside: &[(u16, u16)]) -> u32 {
        if inside.len() < SPLIT_ABOVE {
            return self.add(before, 0, inside);
        }
        self.add_split(
            before,
            inside,
            |first| (first >> 8) as u8,
            |lookup, before, third, inside| {
                if inside.len() < LEAF {
                    return lookup.add(before, u16::from(third) << 8, inside);
                }
                lookup.add_split(
                    before,
                    inside,
                    |first| first as u8,
                    |_, before, _, inside| inside.last().map_or(before, |&(_, class)| class).into(),
                )
            },
        )
    }

    /// The entry of a split: `part` says where among its 256 an address belongs, `add` makes the entry for each.
    fn add_split(
        &mut self,
        before: u16,
        inside: &[(u16, u16)],
        part: impl Fn(u16) -> u8,
        mut add: impl FnMut(&mut LookupV4, u16, u8, &[(u16, u16)]) -> u32,
    ) -> u32 {
        let mut split = [0; 256];
        let (mut before, mut rest) = (before, inside);
        for (at, entry) in (0..=u8::MAX).zip(&mut split) {
            let (inside, after) = rest.split_at(rest.iter().take_while(|(first, _)| part(*first) == at).count());
            rest = after;
            *entry = add(self, before, at, inside);
            before = inside.last().map_or(before, |&(_, class)| class);
        }
        let index = self.splits.len() as u32;
        self.splits.push(split);
        SPLITS | index
    }

    /// The entry for addresses from `start` on, which begin in the class `before` and have these segments.
    fn add(&mut self, before: u16, start: u16, inside: &[(u16, u16)]) -> u32 {
        let begins = inside.first().is_some_and(|&(first, _)| first == start);
        let all: Vec<_> = Some((start, before)).filter(|_| !begins).into_iter().chain(inside.iter().copied()).collect();
        if let [(_, class)] = all.as_slice() {
            return (*class).into();
        }
        let first = self.leaves.len() as u32;
        self.leaves.extend(all.chunks(LEAF).map(leaf));
        if all.len() <= LEAF {
            return LEAVES | first;
        }
        let index = self.pivots.len() as u32;
        let starts = all.iter().step_by(LEAF).skip(1).map(|&(start, _)| start.saturating_sub(1));
        self.pivots.push(Pivots::new(starts, first));
        PIVOTED | index
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
        // Distances that make a leaf, pivots, a split into leaves, and a split twice.
        for step in [4096u32, 2115, 2114, 2113, 2049, 2048, 68, 67, 66, 65, 9, 8, 7, 3, 1] {
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
