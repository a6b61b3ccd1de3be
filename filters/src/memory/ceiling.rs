//! A limit per prefix for answers that anybody can ask for, cheap enough for every SYN.
//!
//! Each prefix has a cell in each of two rows, found through a keyed hash and shared with whatever else falls there; it is over
//! its limit when both its cells are (a count-min sketch of leaky buckets). What is let through raises both cells to what the emptier
//! one then owes, so that neither ever owes less than the prefix itself does. So a prefix never gets more than its limit, and is
//! refused for others' sake only when both its cells are used up by others: with n prefixes over their limit at once,
//! (n / 4,096)^2 of all others: with 50, one in 6,700. A 10 GbE link carries SYNs enough for some 700 at the usual limit of 20,000 a
//! second; then it is one in 34. More cells would be fairer, and would not stay in the second-level cache beside a flood's frames.
//! No record is looked for, kept or given up, which is what sets it apart from [`super::Meters`].

use super::hash::Secret;
use super::meters::{Quota, ticks};
use crate::addr::Addr;
use crate::units::Micros;

/// Cells of a row.
const CELLS: usize = 1 << 12;

/// The limit. One worker's.
pub struct Ceiling {
    /// By cell: from when on nothing is owed, ticks; of either row.
    cells: Box<[[u64; 2]; CELLS]>,
    quota: Quota,
    secret: Secret,
}

impl std::fmt::Debug for Ceiling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ceiling").field("quota", &self.quota).finish_non_exhaustive()
    }
}

impl Ceiling {
    /// Of `quota` for each prefix, with 128 random bits that are its own. Takes 64 KiB.
    #[must_use]
    pub fn new(quota: Quota, secret: [u64; 2]) -> Ceiling {
        let cells = vec![[0; 2]; CELLS].into_boxed_slice();
        let cells = cells.try_into().unwrap_or_else(|_| Box::new([[0; 2]; CELLS]));
        Ceiling { cells, quota, secret: Secret::new(secret) }
    }

    /// Whether one more for `prefix` (an address with its host bits zero) at `now` is within its limit; if so it is charged.
    #[inline]
    #[must_use = "what is over the limit is not to be sent"]
    pub fn charge(&mut self, prefix: Addr, now: Micros) -> bool {
        self.charge_kind(0, prefix, now)
    }

    /// The same for a single address, which may have as much again as its prefix.
    #[must_use = "what is over the limit is not to be sent"]
    pub fn charge_address(&mut self, addr: Addr, now: Micros) -> bool {
        self.charge_kind(1, addr, now)
    }

    #[inline(always)]
    fn charge_kind(&mut self, kind: u32, addr: Addr, now: Micros) -> bool {
        let Some(now) = ticks(now) else { return true };
        let hash = self.secret.hash(kind, addr);
        let places = [hash as usize % CELLS, (hash >> 32) as usize % CELLS];
        let cell = |row: usize| Some(*self.cells.get(*places.get(row)?)?.get(row)?);
        let (Some(one), Some(other)) = (cell(0), cell(1)) else { return true };
        let Some(paid) = self.quota.admit(one.min(other), 1, now) else { return false };
        for (row, place) in places.into_iter().enumerate() {
            if let Some(clear) = self.cells.get_mut(place).and_then(|cell| cell.get_mut(row)) {
                *clear = paid.max(*clear);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use sluice_config::Rate;

    use super::*;

    fn ceiling(per_second: u64) -> Ceiling {
        Ceiling::new(Quota::new(&Rate::per_second(per_second)), [1, 2])
    }

    /// The `n`th /24.
    fn prefix(n: u32) -> Addr {
        Addr::v4(n << 8)
    }

    #[test]
    fn a_prefix_gets_its_limit_and_no_more() {
        let mut ceiling = ceiling(1_000);
        let mut passed = 0;
        for us in 0..3_000_000 {
            passed += u64::from(ceiling.charge(prefix(7), Micros(us)));
        }
        // A burst and three seconds' worth, less the one that the last microsecond falls short of.
        assert_eq!(passed, 3_999);
        assert!(ceiling.charge(prefix(8), Micros(3_000_000)), "another prefix has its own");
    }

    #[test]
    fn neighbours_in_its_cells_do_not_raise_a_prefix_s_limit() {
        let mut ceiling = ceiling(1_000);
        // At any moments: the two cells of a prefix then owe until different ones.
        for n in 0..200_000 {
            let _ = ceiling.charge(prefix(1_000 + n), Micros(u64::from(n) / 200));
        }
        let passed = (1_000..3_001_000).filter(|us| ceiling.charge(prefix(7), Micros(*us))).count();
        assert!((3_950..=4_001).contains(&passed), "{passed}");
    }

    #[test]
    fn prefixes_over_their_limit_leave_nearly_all_others_alone() {
        let mut ceiling = ceiling(20_000);
        assert_eq!(ceiling.cells.as_flattened().len(), 8_192);
        // 700 victims at twice their limit each, for a second of bursts and one more.
        for ms in 0..2_000 {
            for victim in 0..700 {
                for _ in 0..40 {
                    let _ = ceiling.charge(prefix(victim), Micros(ms * 1_000));
                }
            }
        }
        let now = Micros(1_999_000);
        let refused = (1_000..101_000).filter(|n| !ceiling.charge(prefix(*n), now)).count();
        let expected = 700 * 700 * 100_000 / CELLS / CELLS;
        assert!((expected / 2..expected * 2).contains(&refused), "{refused} of 100,000");
        assert!((0..700).all(|victim| !ceiling.charge(prefix(victim), now)));
    }

    #[test]
    fn a_flood_from_everywhere_is_within() {
        let mut ceiling = ceiling(20_000);
        // Ten million a second over all prefixes.
        let refused = (0..10_000_000u32).filter(|n| {
            let source = n.wrapping_mul(2_654_435_761) >> 8;
            !ceiling.charge(prefix(source), Micros(u64::from(n / 10)))
        });
        assert_eq!(refused.count(), 0);
    }

    #[test]
    fn after_the_end_of_time_everything_passes() {
        let mut ceiling = ceiling(1);
        assert!((0..9).all(|_| ceiling.charge(prefix(1), Micros(u64::MAX))));
    }
}
