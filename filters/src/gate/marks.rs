//! The few source addresses of which more is known than where they are: our own, broadcast addresses, upstreams'.
//!
//! Nearly every source is none of them. One bit of a table that stays near says so; for the others the exact table is asked. Neither hash
//! has a secret: only the operator's own addresses are ever inserted, and both tables are sparse, so whoever looks for addresses that
//! collide makes a look-up a few steps longer.

use crate::addr::Addr;
use crate::services::EndpointMap;
use crate::units::PortId;

/// What an address is known as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// The appliance's own.
    Ours,
    /// An IPv4 network's own or its broadcast address.
    Broadcast,
    /// An upstream's, which is reached through this port.
    Upstream(PortId),
}

/// Two to this are the bits: 2 KiB. With 200 addresses one in eighty others needs a second look, with 3,000 one in six.
const LOG_BITS: u32 = 14;
const WORDS: usize = (1 << LOG_BITS) / 64;
/// The exact table knows ports too; all addresses stand under this one.
const ANY: u16 = 1;

#[derive(Clone, Debug)]
pub(super) struct Marks {
    bits: [u64; WORDS],
    exact: EndpointMap<Mark>,
}

impl Marks {
    /// Of equal addresses the first counts.
    pub(super) fn new(marked: &[(Addr, Mark)]) -> Marks {
        let entries: Vec<(Addr, u16, Mark)> = marked.iter().map(|&(addr, mark)| (addr, ANY, mark)).collect();
        let mut marks = Marks { bits: [0; WORDS], exact: EndpointMap::new(&entries, Mark::Ours) };
        for (addr, _) in marked {
            let (word, bit) = Marks::place(*addr);
            if let Some(word) = marks.bits.get_mut(word) {
                *word |= bit;
            }
        }
        marks
    }

    /// Whether the address may be a marked one; false is certain.
    #[inline(always)]
    pub(super) fn may_hold(&self, addr: Addr) -> bool {
        let (word, bit) = Marks::place(addr);
        self.bits.get(word).is_none_or(|word| word & bit != 0)
    }

    #[inline]
    pub(super) fn get(&self, addr: Addr) -> Option<Mark> {
        self.exact.get(addr, ANY)
    }

    #[inline(always)]
    fn place(addr: Addr) -> (usize, u64) {
        let key = addr.hi.rotate_left(29) ^ addr.lo;
        let at = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> const { 64 - LOG_BITS };
        ((at >> 6) as usize, 1_u64.wrapping_shl((at & 63) as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_addresses_are_found_and_few_others_looked_at_twice() {
        for count in [1, 20, 3_000_u32] {
            let marked: Vec<(Addr, Mark)> = (0..count).map(|n| (Addr::v4(0x0a00_0000 + n), Mark::Ours)).collect();
            let marks = Marks::new(&marked);
            for (addr, mark) in &marked {
                assert!(marks.may_hold(*addr));
                assert_eq!(marks.get(*addr), Some(*mark));
            }
            let others = (0..100_000_u32).map(|n| Addr::v4(n.wrapping_mul(0x9e37_79b9) | 0x8000_0000));
            let twice = others.filter(|addr| marks.may_hold(*addr)).count();
            assert!(twice <= 100 + 2 * 100_000 * count as usize / (WORDS * 64), "{count}: {twice}");
            assert_eq!(marks.get(Addr { hi: 0x2001_0db8 << 32, lo: 1 }), None);
        }
    }

    #[test]
    fn of_equal_addresses_the_first_counts() {
        let addr = Addr::v4(1);
        let marks = Marks::new(&[(addr, Mark::Ours), (addr, Mark::Broadcast)]);
        assert_eq!(marks.get(addr), Some(Mark::Ours));
    }
}
