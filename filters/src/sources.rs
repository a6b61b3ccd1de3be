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
