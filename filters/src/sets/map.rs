//! All sets in one lookup: an address has a class, and a class is the combination of sets that hold it.

use std::collections::HashMap;
use std::mem::size_of_val;

use super::AddressSet;
use super::address_set::{Bits, Ranges};
use super::lookup_v4::LookupV4;
use super::lookup_v6::LookupV6;
use crate::addr::Addr;

/// The most sets of a [`SetMap`].
pub const MAX_SETS: usize = 4096;

/// The most disjoint ranges of one address family, all sets together, of a [`SetMap`].
pub const MAX_RANGES: usize = 1 << 25;

/// Why sets cannot be compiled into a [`SetMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetMapError {
    /// More distinct combinations of sets than a class can number.
    #[error(
        "the sets overlap in more than 65535 different combinations; \
         use fewer sets, or sets that do not overlap each other in so many ways"
    )]
    TooManyClasses,
    /// More than [`MAX_SETS`].
    #[error("{0} sets; use {MAX_SETS} at most")]
    TooManySets(usize),
    /// More than [`MAX_RANGES`].
    #[error("the sets have {0} separate ranges of one address family together; use {MAX_RANGES} at most")]
    TooManyRanges(usize),
}

/// Says which of many sets hold an address, with one lookup. Immutable; built when the configuration or a list changes.
#[derive(Clone, Debug)]
pub struct SetMap {
    v4: LookupV4,
    v6: LookupV6,
    /// By class, [`SetMap::words`] each.
    members: Vec<u64>,
    words: usize,
}

impl SetMap {
    /// Compiles `sets`; a set's place in the slice is its index in [`SetMap::members`].
    ///
    /// # Errors
    /// More sets, ranges or combinations of sets than the map can number.
    pub fn build(sets: &[AddressSet]) -> Result<SetMap, SetMapError> {
        if sets.len() > MAX_SETS {
            return Err(SetMapError::TooManySets(sets.len()));
        }
        let mut classes = Classes::new(sets.len());
        let v4 = segments(sets, AddressSet::v4, &mut classes)?;
        let v6 = segments(sets, AddressSet::v6, &mut classes)?;
        Ok(SetMap {
            v4: LookupV4::build(&v4),
            v6: LookupV6::build(&v6),
            words: classes.words(),
            members: classes.members,
        })
    }

    /// The class of `addr`: 0 when no set holds it, else an index below [`SetMap::classes`].
    #[inline]
    #[must_use]
    pub fn class(&self, addr: Addr) -> u16 {
        if addr.is_v4() { self.v4.find(addr.v4_bits()) } else { self.v6.find(addr.hi, addr.lo) }
    }

    /// Brings near what [`SetMap::class`] will read first for `addr`, so that the misses of several lookups overlap.
    #[inline]
    pub fn touch(&self, addr: Addr) {
        if addr.is_v4() {
            self.v4.touch(addr.v4_bits());
        } else {
            self.v6.touch(addr.hi);
        }
    }

    /// How many classes there are, the class 0 of addresses in no set included.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.members.len().checked_div(self.words).unwrap_or(1)
    }

    /// The sets that hold the addresses of `class`: bit `i % 64` of word `i / 64` is set `i`. Empty for no class of this map.
    #[inline]
    #[must_use]
    pub fn members(&self, class: u16) -> &[u64] {
        let start = usize::from(class).wrapping_mul(self.words);
        self.members.get(start..).and_then(|rest| rest.get(..self.words)).unwrap_or(&[])
    }

    /// Whether set `set` holds the addresses of `class`.
    #[inline]
    #[must_use]
    pub fn is_member(&self, class: u16, set: usize) -> bool {
        self.members(class).get(set >> 6).is_some_and(|word| word >> (set & 63) & 1 == 1)
    }

    /// Octets of memory.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.v4.memory().saturating_add(self.v6.memory()).saturating_add(size_of_val(&*self.members))
    }
}

/// The combinations of sets found so far, and the one the sweep is in.
struct Classes {
    current: Vec<u64>,
    numbers: HashMap<Box<[u64]>, u16>,
    members: Vec<u64>,
}

impl Classes {
    /// With class 0: no set. At least one word, so that members have a length even without sets.
    fn new(sets: usize) -> Classes {
        let current = vec![0; sets.div_ceil(64).max(1)];
        let numbers = HashMap::from([(current.clone().into_boxed_slice(), 0)]);
        Classes { members: current.clone(), current, numbers }
    }

    fn words(&self) -> usize {
        self.current.len()
    }

    /// Enters or leaves a set.
    fn toggle(&mut self, set: u32) {
        if let Some(word) = self.current.get_mut((set >> 6) as usize) {
            *word ^= 1 << (set & 63);
        }
    }

    /// The class of the current combination.
    fn class(&mut self) -> Result<u16, SetMapError> {
        if let Some(&class) = self.numbers.get(&*self.current) {
            return Ok(class);
        }
        let class = u16::try_from(self.numbers.len()).map_err(|_| SetMapError::TooManyClasses)?;
        self.numbers.insert(self.current.clone().into_boxed_slice(), class);
        self.members.extend_from_slice(&self.current);
        Ok(class)
    }
}

/// One family cut where the class changes: the first address of each segment and its class, the first at address 0.
fn segments<T: Bits>(
    sets: &[AddressSet],
    ranges: impl Fn(&AddressSet) -> &Ranges<T>,
    classes: &mut Classes,
) -> Result<Vec<(T, u16)>, SetMapError> {
    let total = sets.iter().fold(0usize, |total, set| total.saturating_add(ranges(set).len()));
    if total > MAX_RANGES {
        return Err(SetMapError::TooManyRanges(total));
    }
    // A set's ranges do not touch, so it is entered or left at most once at any address.
    let mut turns: Vec<(T, u32)> = Vec::with_capacity(total.saturating_mul(2));
    for (set, index) in sets.iter().zip(0u32..) {
        for (first, last) in ranges(set).iter() {
            turns.push((first, index));
            turns.extend(last.next().map(|after| (after, index)));
        }
    }
    // One sorted run per set, which the stable sort merges.
    turns.sort_by_key(|&(at, _)| at);

    let mut segments = vec![(T::default(), 0)];
    classes.current.fill(0);
    for turn in turns.chunk_by(|a, b| a.0 == b.0) {
        turn.iter().for_each(|&(_, set)| classes.toggle(set));
        let class = classes.class()?;
        match (turn.first(), segments.last_mut()) {
            (Some(&(at, _)), Some(last)) if last.0 == at => last.1 = class,
            (Some(&(at, _)), _) => segments.push((at, class)),
            (None, _) => {}
        }
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use ipnet::{IpNet, Ipv4Net, Ipv6Net};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn set(nets: &[&str]) -> AddressSet {
        AddressSet::new(&nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>())
    }

    fn addr(addr: &str) -> Addr {
        addr.parse::<IpAddr>().unwrap().into()
    }

    fn holders(map: &SetMap, at: &str) -> Vec<usize> {
        (0..MAX_SETS).filter(|&set| map.is_member(map.class(addr(at)), set)).collect()
    }

    #[test]
    fn an_address_in_no_set_is_class_0() {
        for sets in [vec![], vec![AddressSet::default()], vec![set(&["192.0.2.0/24", "2001:db8::/32"])]] {
            let map = SetMap::build(&sets).unwrap();
            for at in ["0.0.0.0", "192.0.3.0", "255.255.255.255", "::", "2001:db9::", "ffff::"] {
                assert_eq!(map.class(addr(at)), 0, "{at}");
                map.touch(addr(at));
            }
            assert!(map.members(0).iter().all(|&word| word == 0));
        }
        assert_eq!(SetMap::build(&[]).unwrap().classes(), 1);
    }

    #[test]
    fn one_lookup_names_all_sets() {
        let sets = [
            set(&["10.0.0.0/8", "2001:db8::/32"]),
            set(&["10.1.0.0/16", "2001:db8:1::/48", "2001:db8:1::7/128"]),
            set(&["10.1.2.3/32", "2001:db8:1::7/128", "0.0.0.0/0"]),
        ];
        let map = SetMap::build(&sets).unwrap();
        assert_eq!(holders(&map, "10.2.0.0"), [0, 2]);
        assert_eq!(holders(&map, "10.1.2.3"), [0, 1, 2]);
        assert_eq!(holders(&map, "11.0.0.0"), [2]);
        assert_eq!(holders(&map, "2001:db8::"), [0]);
        assert_eq!(holders(&map, "2001:db8:1::6"), [0, 1]);
        assert_eq!(holders(&map, "2001:db8:1::7"), [0, 1, 2]);
        assert_eq!(holders(&map, "2001:db8:1::8"), [0, 1]);
    }

    #[test]
    fn equal_combinations_of_both_families_share_a_class() {
        let map = SetMap::build(&[set(&["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"])]).unwrap();
        assert_eq!(map.classes(), 2);
        assert_eq!(map.class(addr("192.0.2.1")), map.class(addr("2001:db8::1")));
    }

    #[test]
    fn more_combinations_than_classes_is_an_error() {
        // 17 sets, one for each bit of a number: one combination for each of 2^17 addresses.
        let bit = |bit: u32| (0..1u32 << 17).filter(move |i| i >> bit & 1 == 1).map(|i| (i, i)).collect::<Vec<_>>();
        let sets = |bits: u32| (0..bits).map(|i| AddressSet::from_ranges(bit(i), vec![])).collect::<Vec<_>>();
        assert_eq!(SetMap::build(&sets(17)).unwrap_err(), SetMapError::TooManyClasses);
        let map = SetMap::build(&sets(16)).unwrap();
        assert_eq!(map.classes(), 65_536);
        assert_eq!(map.members(map.class(addr("0.0.255.255"))), [0xffff]);
    }

    #[test]
    fn more_sets_than_the_map_can_number_is_an_error() {
        let sets = vec![AddressSet::default(); MAX_SETS + 1];
        assert_eq!(SetMap::build(&sets).unwrap_err(), SetMapError::TooManySets(MAX_SETS + 1));
        assert_eq!(SetMap::build(&sets[1..]).unwrap().classes(), 1);
    }

    #[test]
    fn a_thousand_sets_find_their_own_addresses() {
        let sets: Vec<_> = (0..1000u32)
            .map(|i| {
                let six = u128::from(0x2001_0db8u32) << 96 | u128::from(i) << 70;
                AddressSet::from_ranges(vec![(i << 16, (i << 16) + i)], vec![(six, six + u128::from(i))])
            })
            .collect();
        let map = SetMap::build(&sets).unwrap();
        for i in 0..1000u32 {
            let six = u128::from(0x2001_0db8u32) << 96 | u128::from(i) << 70;
            for at in
                [Addr::v4((i << 16) + i), Addr::v6(six.to_be_bytes()), Addr::v6((six + u128::from(i)).to_be_bytes())]
            {
                let holders: Vec<_> = (0..1000).filter(|&set| map.is_member(map.class(at), set)).collect();
                assert_eq!(holders, [i as usize]);
            }
            assert_eq!(map.class(Addr::v4((i << 16) + i + 1)), 0);
        }
    }

    /// Spots where prefixes nest, touch and crowd, the ends of the space, and anywhere.
    fn any_v4() -> impl Strategy<Value = u32> {
        prop_oneof![0u32..64, (u32::MAX - 64)..=u32::MAX, 0x0a01_0000u32..0x0a01_4000, any::<u32>()]
    }

    fn any_v6() -> impl Strategy<Value = u128> {
        let far = 0x2001_0db8_u128 << 96;
        prop_oneof![
            0u128..64,
            far..far + 64,
            (0u128..300).prop_map(move |i| far + (i << 62)),
            (u128::MAX - 64)..=u128::MAX,
            any::<u128>()
        ]
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        let len4 = prop_oneof![Just(32u8), 24u8..=32, 0u8..=32];
        let len6 = prop_oneof![Just(128u8), Just(64u8), 60u8..=68, 120u8..=128, 0u8..=128];
        prop_oneof![
            (any_v4(), len4).prop_map(|(bits, len)| Ipv4Net::new(Ipv4Addr::from(bits), len).unwrap().into()),
            (any_v6(), len6).prop_map(|(bits, len)| Ipv6Net::new(Ipv6Addr::from(bits), len).unwrap().into()),
        ]
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_the_sets_asked_one_by_one(
            lists in prop_oneof![vec(vec(any_net(), 0..12), 0..10), vec(vec(any_net(), 0..400), 1..3), vec(vec(any_net(), 0..3), 60..140)],
            asked in vec((any_v4(), any_v6()), 60),
        ) {
            let sets: Vec<_> = lists.iter().map(|list| AddressSet::new(list)).collect();
            let map = SetMap::build(&sets).unwrap();
            let edges = lists.iter().flatten().flat_map(|net| match net {
                IpNet::V4(net) => {
                    let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                    [first, last, first.wrapping_sub(1), last.wrapping_add(1)].map(Addr::v4)
                }
                IpNet::V6(net) => {
                    let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                    [first, last, first.wrapping_sub(1), last.wrapping_add(1)].map(|bits| Addr::v6(bits.to_be_bytes()))
                }
            });
            let asked = asked.into_iter().flat_map(|(four, six)| [Addr::v4(four), Addr::v6(six.to_be_bytes())]);
            for at in asked.chain(edges) {
                let class = map.class(at);
                prop_assert!(usize::from(class) < map.classes());
                let holders: Vec<_> = (0..sets.len()).map(|set| map.is_member(class, set)).collect();
                let expected: Vec<_> = sets.iter().map(|set| set.contains(at)).collect();
                prop_assert_eq!(class == 0, !expected.contains(&true));
                prop_assert_eq!(holders, expected, "{:?}", at);
            }
        }
    }
}
