//! Which sources may speak to us: address sets, and the operator's `deny` and `allow`.
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

use ipnet::IpNet;

use crate::DropReason;
use crate::addr::Addr;

/// A set of addresses, built from prefixes once, asked often. The families are apart: `::/0` holds no IPv4 address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSet {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl AddressSet {
    /// The addresses that any of `prefixes` covers.
    #[must_use]
    pub fn new(prefixes: &[IpNet]) -> AddressSet {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        AddressSet { v4: Ranges::new(v4), v6: Ranges::new(v6) }
    }

    /// Whether no prefix was given.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.first.is_empty() && self.v6.first.is_empty()
    }

    /// Whether `addr` is in the set. Logarithmic in the number of disjoint ranges.
    #[inline]
    #[must_use]
    pub fn contains(&self, addr: Addr) -> bool {
        if addr.is_v4() {
            self.v4.contains(addr.v4_bits())
        } else {
            self.v6.contains(u128::from(addr.hi) << 64 | u128::from(addr.lo))
        }
    }
}

/// Sorted disjoint inclusive ranges. First and last apart, so that the search touches half the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges<T> {
    first: Vec<T>,
    last: Vec<T>,
}

impl<T: Copy + Ord> Ranges<T> {
    /// Sorts and joins overlapping ranges.
    fn new(mut ranges: Vec<(T, T)>) -> Ranges<T> {
        ranges.sort_unstable();
        let mut disjoint: Vec<(T, T)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match disjoint.last_mut() {
                Some(open) if first <= open.1 => open.1 = open.1.max(last),
                _ => disjoint.push((first, last)),
            }
        }
        let (first, last) = disjoint.into_iter().unzip();
        Ranges { first, last }
    }

    #[inline]
    fn contains(&self, key: T) -> bool {
        if self.first.is_empty() {
            return false;
        }
        // The last range that starts at or before the key.
        let after = self.first.partition_point(|&first| first <= key);
        after.checked_sub(1).and_then(|i| self.last.get(i)).is_some_and(|&last| key <= last)
    }
}

/// `[filters] deny` and `allow`: a source that `allow` covers passes; else one that `deny` covers is dropped; else it passes,
/// unless there is an `allow` without any `deny`, which is a closed list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFilter {
    deny: AddressSet,
    allow: AddressSet,
    /// Whether there is anything to ask: the one branch that the common case pays.
    active: bool,
}

impl SourceFilter {
    /// A filter for these prefixes.
    #[must_use]
    pub fn new(deny: &[IpNet], allow: &[IpNet]) -> SourceFilter {
        let (deny, allow) = (AddressSet::new(deny), AddressSet::new(allow));
        let active = !(deny.is_empty() && allow.is_empty());
        SourceFilter { deny, allow, active }
    }

    /// Whether `source` may send to us.
    ///
    /// # Errors
    /// [`DropReason::DenyList`] or [`DropReason::NotAllowed`].
    #[inline]
    pub fn check(&self, source: Addr) -> Result<(), DropReason> {
        if self.active { self.look_up(source) } else { Ok(()) }
    }

    fn look_up(&self, source: Addr) -> Result<(), DropReason> {
        if self.allow.contains(source) {
            Ok(())
        } else if self.deny.is_empty() {
            Err(DropReason::NotAllowed)
        } else if self.deny.contains(source) {
            Err(DropReason::DenyList)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn addr(addr: &str) -> Addr {
        addr.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_set_holds_its_edges_and_not_its_neighbours() {
        let set = AddressSet::new(&nets(&["192.0.2.64/26", "203.0.113.9/32", "2001:db8:1::/48"]));
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
        let six = AddressSet::new(&nets(&["::/0"]));
        assert!(six.contains(addr("2001:db8::1")));
        assert!(!six.contains(addr("192.0.2.1")));
        let four = AddressSet::new(&nets(&["0.0.0.0/0"]));
        assert!(four.contains(addr("255.255.255.255")));
        assert!(four.contains(addr("0.0.0.0")));
        assert!(!four.contains(addr("2001:db8::1")));
    }

    #[test]
    fn host_bits_in_a_prefix_do_not_matter() {
        assert!(AddressSet::new(&nets(&["192.0.2.77/24"])).contains(addr("192.0.2.1")));
    }

    #[test]
    fn a_prefix_inside_another_does_not_shorten_it() {
        let set = AddressSet::new(&nets(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"]));
        assert!(set.contains(addr("10.200.0.1")));
    }

    #[test]
    fn without_lists_everybody_passes() {
        let filter = SourceFilter::new(&[], &[]);
        assert_eq!(filter, SourceFilter::default());
        assert_eq!(filter.check(addr("192.0.2.1")), Ok(()));
        assert_eq!(filter.check(addr("2001:db8::1")), Ok(()));
    }

    #[test]
    fn deny_drops_what_it_covers() {
        let filter = SourceFilter::new(&nets(&["192.0.2.0/24"]), &[]);
        assert_eq!(filter.check(addr("192.0.2.1")), Err(DropReason::DenyList));
        assert_eq!(filter.check(addr("192.0.3.1")), Ok(()));
        assert_eq!(filter.check(addr("2001:db8::1")), Ok(()));
    }

    #[test]
    fn allow_wins_over_deny() {
        let filter = SourceFilter::new(&nets(&["192.0.2.0/24"]), &nets(&["192.0.2.7/32"]));
        assert_eq!(filter.check(addr("192.0.2.7")), Ok(()));
        assert_eq!(filter.check(addr("192.0.2.8")), Err(DropReason::DenyList));
        assert_eq!(filter.check(addr("192.0.3.1")), Ok(()));
    }

    #[test]
    fn allow_without_deny_is_a_closed_list() {
        let filter = SourceFilter::new(&[], &nets(&["192.0.2.0/24"]));
        assert_eq!(filter.check(addr("192.0.2.7")), Ok(()));
        assert_eq!(filter.check(addr("192.0.3.1")), Err(DropReason::NotAllowed));
        assert_eq!(filter.check(addr("2001:db8::1")), Err(DropReason::NotAllowed));
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
