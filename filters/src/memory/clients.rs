//! Which sources answered a cookie lately, and which of them a dry-run rule would have cut.
//!
//! A cache line holds four records of 16 octets. Invariants:
//! - A verified record gives way to another verified one only, the oldest first, or when [`VERIFIED_FOR`] has passed since
//!   its source was last verified. A flood of sources that never answer takes the place of its own kind alone.
//! - Unverified records hold what rules matched a source before its first answer, so that a client whose SYN matched is
//!   counted when its ACK proves that it is one. The oldest gives way first; a lost one is a client not counted, and so is one
//!   whose line is full of verified records.
//! - Packets with a spoofed source neither verify it nor prolong its being verified.
//! - Sources are told apart by 32 bits of a keyed hash and the line: two are taken for one another with a probability of
//!   2^-32 for each record compared. That spoils a count, never a verdict of the cookie.

use std::time::Duration;

use super::LINE;
use super::hash::Secret;
use crate::addr::Addr;
use crate::units::Micros;

/// How long a source counts as verified after it last was, and an unverified one's notes are kept.
pub const VERIFIED_FOR: Duration = Duration::from_secs(3600);

/// How many dry-run rules can be told apart.
pub const DRY_RUN_RULES: u32 = 63;

/// Set in the marks of a verified source; the bits below are those of dry-run rules.
const VERIFIED: u64 = 1 << DRY_RUN_RULES;

const WAYS: usize = LINE / 16;

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line {
    /// The low half of the source's hash.
    tags: [u32; WAYS],
    /// Seconds since the start when the source was last verified or, before that, last matched a rule.
    seen: [u32; WAYS],
    /// Zero in an empty record.
    marks: [u64; WAYS],
}

const _: () = assert!(size_of::<Line>() == LINE);

/// The order in which records give way: empty and past ones, then unverified ones, then verified ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Past,
    Unverified,
    Verified,
}

#[inline]
fn standing(seen: u32, marks: u64, now: u32) -> Standing {
    if marks == 0 || u64::from(now.saturating_sub(seen)) > VERIFIED_FOR.as_secs() {
        Standing::Past
    } else if marks & VERIFIED == 0 {
        Standing::Unverified
    } else {
        Standing::Verified
    }
}

#[inline]
fn seconds(now: Micros) -> u32 {
    u32::try_from(now.0.div_euclid(1_000_000)).unwrap_or(u32::MAX)
}

/// The table. One worker's.
pub struct Clients {
    lines: Box<[Line]>,
    mask: usize,
    secret: Secret,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").field("lines", &self.lines.len()).finish_non_exhaustive()
    }
}

/// A live record of one source: when it was seen, its marks and whether it is verified.
struct Found<'a> {
    seen: &'a mut u32,
    marks: &'a mut u64,
    verified: bool,
}

impl Clients {
    /// A table of `records` records of 16 octets (rounded up to a power of two of lines of four; at most 2^32), with 128
    /// random bits that are its own.
    #[must_use]
    pub fn new(records: usize, secret: [u64; 2]) -> Clients {
        let lines = records.clamp(1, 1 << 32).div_ceil(WAYS).next_power_of_two();
        Clients {
            lines: vec![Line::default(); lines].into_boxed_slice(),
            mask: lines.wrapping_sub(1),
            secret: Secret::new(secret),
        }
    }

    /// Octets of the table.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// Notes that `addr` proved to receive what is sent to it. Returns the bits of the dry-run rules that matched it before it
    /// was verified: each would have cut one client more.
    pub fn verified(&mut self, addr: Addr, now: Micros) -> u64 {
        let now = seconds(now);
        let Some((line, tag)) = self.line(addr) else { return 0 };
        if let Some(found) = find(line, tag, now) {
            let before = if found.verified { 0 } else { *found.marks };
            *found.marks |= VERIFIED;
            *found.seen = now;
            return before;
        }
        enter(line, tag, VERIFIED, now, Standing::Verified);
        0
    }

    /// Notes that dry-run rule number `rule` (below [`DRY_RUN_RULES`]; others are ignored) matched a packet from `addr`. True
    /// when that is one client more that the rule would have cut: a verified source that had not matched it before.
    pub fn would_cut(&mut self, addr: Addr, rule: u32, now: Micros) -> bool {
        let now = seconds(now);
        if rule >= DRY_RUN_RULES {
            return false;
        }
        let bit = 1 << rule;
        let Some((line, tag)) = self.line(addr) else { return false };
        let Some(found) = find(line, tag, now) else {
            enter(line, tag, bit, now, Standing::Unverified);
            return false;
        };
        let first = *found.marks & bit == 0;
        *found.marks |= bit;
        if !found.verified {
            *found.seen = now;
        }
        first && found.verified
    }

    /// Whether `addr` was verified within [`VERIFIED_FOR`].
    #[must_use]
    pub fn is_verified(&self, addr: Addr, now: Micros) -> bool {
        let (home, tag) = self.place(addr);
        let now = seconds(now);
        self.lines.get(home).is_some_and(|line| {
            let records = line.tags.iter().zip(&line.seen).zip(&line.marks);
            let mut own = records.filter(|&((&t, _), _)| t == tag);
            own.any(|((_, &seen), &marks)| standing(seen, marks, now) == Standing::Verified)
        })
    }

    /// Forgets what every rule matched, and nobody's being verified: for when rules change their numbers. Walks the table.
    pub fn forget_rules(&mut self) {
        for marks in self.lines.iter_mut().flat_map(|line| &mut line.marks) {
            *marks &= VERIFIED;
        }
    }

    /// The number of the line and the tag of `addr`.
    #[inline]
    fn place(&self, addr: Addr) -> (usize, u32) {
        let hash = self.secret.hash(0, addr);
        ((hash >> 32) as usize & self.mask, hash as u32)
    }

    #[inline]
    fn line(&mut self, addr: Addr) -> Option<(&mut Line, u32)> {
        let (home, tag) = self.place(addr);
        Some((self.lines.get_mut(home)?, tag))
    }
}

/// The live record with `tag`.
#[inline]
fn find(line: &mut Line, tag: u32, now: u32) -> Option<Found<'_>> {
    let records = line.tags.iter().zip(&mut line.seen).zip(&mut line.marks);
    for ((&their_tag, seen), marks) in records {
        let standing = standing(*seen, *marks, now);
        if their_tag == tag && standing != Standing::Past {
            return Some(Found { seen, marks, verified: standing == Standing::Verified });
        }
    }
    None
}

/// Enters a record in place of the one that gives way first, if that stands no higher than `most`.
#[inline]
fn enter(line: &mut Line, tag: u32, new_marks: u64, now: u32, most: Standing) {
    let records = line.tags.iter_mut().zip(&mut line.seen).zip(&mut line.marks);
    let order = |seen: u32, marks| (standing(seen, marks, now) as u64) << 32 | u64::from(seen);
    let first = records.min_by_key(|((_, seen), marks)| order(**seen, **marks));
    if let Some(((their_tag, seen), marks)) = first
        && standing(*seen, *marks, now) <= most
    {
        (*their_tag, *seen, *marks) = (tag, now, new_marks);
    }
}
