//! A set of addresses in its build-time form: sorted disjoint ranges.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::addr::Addr;

/// A set of addresses. The families are apart: `::/0` holds no IPv4 address.
///
/// Two sets are equal when they hold the same addresses, however these were written.
#[derive(Clone, Debug, Default)]
pub struct AddressSet {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    prefixes: usize,
}

impl AddressSet {
    /// The addresses that any of `prefixes` covers. Host bits do not matter.
    #[must_use]
    pub fn new(prefixes: &[IpNet]) -> AddressSet {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        AddressSet::from_ranges(v4, v6)
    }

    /// The addresses of inclusive ranges, given as the bits of their first and last address. A range that ends before it
    /// starts holds nothing. Each range counts as one prefix in [`AddressSet::prefixes`].
    #[must_use]
    pub fn from_ranges(v4: Vec<(u32, u32)>, v6: Vec<(u128, u128)>) -> AddressSet {
        let prefixes = v4.len().saturating_add(v6.len());
        AddressSet { v4: Ranges::new(v4), v6: Ranges::new(v6), prefixes }
    }

    /// The addresses of either set.
    #[must_use]
    pub fn union(self, other: AddressSet) -> AddressSet {
        let prefixes = self.prefixes.saturating_add(other.prefixes);
        AddressSet { v4: self.v4.union(other.v4), v6: self.v6.union(other.v6), prefixes }
    }

    /// Whether it holds no address.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.first.is_empty() && self.v6.first.is_empty()
    }

    /// How many prefixes it was given, those inside others and repeated ones included.
    #[must_use]
    pub fn prefixes(&self) -> usize {
        self.prefixes
    }

    /// How many disjoint ranges are left of them, adjacent ones joined.
    #[must_use]
    pub fn ranges(&self) -> usize {
        self.v4.first.len().saturating_add(self.v6.first.len())
    }

    /// Whether `addr` is in the set. Logarithmic in the number of ranges; per packet ask a [`super::SetMap`].
    #[inline]
    #[must_use]
    pub fn contains(&self, addr: Addr) -> bool {
        if addr.is_v4() {
            self.v4.contains(addr.v4_bits())
        } else {
            self.v6.contains(u128::from(addr.hi) << 64 | u128::from(addr.lo))
        }
    }

    /// Its IPv4 addresses as disjoint ranges, first and last, in order.
    pub fn v4_ranges(&self) -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> + '_ {
        self.v4.first.iter().zip(&self.v4.last).map(|(first, last)| (Ipv4Addr::from(*first), Ipv4Addr::from(*last)))
    }

    /// Its IPv6 addresses likewise.
    pub fn v6_ranges(&self) -> impl Iterator<Item = (Ipv6Addr, Ipv6Addr)> + '_ {
        self.v6.first.iter().zip(&self.v6.last).map(|(first, last)| (Ipv6Addr::from(*first), Ipv6Addr::from(*last)))
    }

    pub(super) fn v4(&self) -> &Ranges<u32> {
        &self.v4
    }

    pub(super) fn v6(&self) -> &Ranges<u128> {
        &self.v6
    }
}

impl PartialEq for AddressSet {
    fn eq(&self, other: &AddressSet) -> bool {
        self.v4 == other.v4 && self.v6 == other.v6
    }
}

impl Eq for AddressSet {}

/// An address as a number.
pub(super) trait Bits: Copy + Ord + Default {
    /// The next address; nothing after the last.
    fn next(self) -> Option<Self>;
}

impl Bits for u32 {
    fn next(self) -> Option<u32> {
        self.checked_add(1)
    }
}

impl Bits for u128 {
    fn next(self) -> Option<u128> {
        self.checked_add(1)
    }
}

/// Sorted disjoint inclusive ranges that do not touch. First and last apart, so that the search touches half the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges<T> {
    first: Vec<T>,
    last: Vec<T>,
}

impl<T: Bits> Ranges<T> {
    /// Sorts, and joins ranges that overlap or touch.
    fn new(mut ranges: Vec<(T, T)>) -> Ranges<T> {
        ranges.retain(|(first, last)| first <= last);
        // Lists come sorted, or as several sorted ones: the stable sort makes use of runs.
        ranges.sort();
        let mut disjoint: Vec<(T, T)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match disjoint.last_mut() {
                Some(open) if open.1.next().is_none_or(|next| first <= next) => open.1 = open.1.max(last),
                _ => disjoint.push((first, last)),
            }
        }
        let (first, last) = disjoint.into_iter().unzip();
        Ranges { first, last }
    }

    fn union(self, other: Ranges<T>) -> Ranges<T> {
        if other.first.is_empty() {
            self
        } else if self.first.is_empty() {
            other
        } else {
            Ranges::new(self.iter().chain(other.iter()).collect())
        }
    }

    /// The ranges in order, first and last address.
    pub(super) fn iter(&self) -> impl Iterator<Item = (T, T)> {
        self.first.iter().copied().zip(self.last.iter().copied())
    }

    pub(super) fn len(&self) -> usize {
        self.first.len()
    }

    #[inline]
    fn contains(&self, key: T) -> bool {
        // The last range that starts at or before the key.
        let after = self.first.partition_point(|&first| first <= key);
        after.checked_sub(1).and_then(|i| self.last.get(i)).is_some_and(|&last| key <= last)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn set(nets: &[&str]) -> AddressSet {
        AddressSet::new(&nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>())
    }

    fn addr(addr: &str) -> Addr {
        addr.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_set_holds_its_edges_and_not_its_neighbours() {
        let set = set(&["192.0.2.64/26", "203.0.113.9/32", "2001:db8:1::/48"]);
        for inside in
            ["192.0.2.64", "192.0.2.127", "203.0.113.9", "2001:db8:1::", "2001:db8:1:ffff:ffff:ffff:ffff:ffff"]
        {
            assert!(set.contains(addr(inside)), "{inside}");
        }
        for outside in ["192.0.2.63", "192.0.2.128", "203.0.113.8", "203.0.113.10", "2001:db8:2::", "2001:db8:0:ffff::"]
        {
            assert!(!set.contains(addr(outside)), "{outside}");
        }
    }

    #[test]
    fn families_are_apart() {
        let six = set(&["::/0"]);
        assert!(six.contains(addr("2001:db8::1")));
        assert!(!six.contains(addr("192.0.2.1")));
        let four = set(&["0.0.0.0/0"]);
        assert!(four.contains(addr("255.255.255.255")));
        assert!(four.contains(addr("0.0.0.0")));
        assert!(!four.contains(addr("2001:db8::1")));
    }

    #[test]
    fn host_bits_in_a_prefix_do_not_matter() {
        assert!(set(&["192.0.2.77/24"]).contains(addr("192.0.2.1")));
    }

    #[test]
    fn a_prefix_inside_another_does_not_shorten_it() {
        assert!(set(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"]).contains(addr("10.200.0.1")));
    }

    #[test]
    fn adjacent_prefixes_are_one_range() {
        let halves = set(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]);
        assert_eq!(halves, set(&["0.0.0.0/0", "::/0"]));
        assert_eq!((halves.prefixes(), halves.ranges()), (4, 2));
    }

    #[test]
    fn a_union_holds_both_and_counts_both() {
        let both = set(&["192.0.2.0/25", "2001:db8::/32"]).union(set(&["192.0.2.128/25", "192.0.2.7/32"]));
        assert_eq!(both, set(&["192.0.2.0/24", "2001:db8::/32"]));
        assert_eq!((both.prefixes(), both.ranges()), (4, 2));
        assert_eq!(set(&[]).union(set(&[])), AddressSet::default());
    }

    #[test]
    fn a_range_that_ends_before_it_starts_holds_nothing() {
        assert!(AddressSet::from_ranges(vec![(7, 6)], vec![]).is_empty());
        assert!(AddressSet::from_ranges(vec![(7, 7)], vec![]).contains(addr("0.0.0.7")));
    }

    /// Prefixes and addresses close to each other, so that they meet, and at the ends of the space.
    fn any_v4() -> impl Strategy<Value = u32> {
        prop_oneof![0u32..64, (u32::MAX - 64)..=u32::MAX, any::<u32>()]
    }

    fn any_v6() -> impl Strategy<Value = u128> {
        let far = 0x2001_0db8_u128 << 96;
        prop_oneof![far..far + 64, (u128::MAX - 64)..=u128::MAX, any::<u128>()]
    }

    proptest! {
        #[test]
        fn a_set_agrees_with_its_prefixes_asked_one_by_one(
            four in vec((any_v4(), prop_oneof![24u8..=32, 0u8..=32]), 0..20),
            six in vec((any_v6(), prop_oneof![120u8..=128, 0u8..=128]), 0..20),
            asked in vec((any_v4(), any_v6()), 50),
        ) {
            let nets: Vec<IpNet> = four
                .into_iter()
                .map(|(bits, len)| Ipv4Net::new(Ipv4Addr::from(bits), len).unwrap().into())
                .chain(six.into_iter().map(|(bits, len)| Ipv6Net::new(Ipv6Addr::from(bits), len).unwrap().into()))
                .collect();
            let set = AddressSet::new(&nets);
            prop_assert_eq!(set.is_empty(), nets.is_empty());
            let edges = nets.iter().flat_map(|net| [net.network(), net.broadcast()]);
            let asked = asked.into_iter().flat_map(|(four, six)| [Ipv4Addr::from(four).into(), Ipv6Addr::from(six).into()]);
            for ip in asked.chain(edges) {
                prop_assert_eq!(set.contains(ip.into()), nets.iter().any(|net| net.contains(&ip)), "{}", ip);
            }
        }
    }
}
