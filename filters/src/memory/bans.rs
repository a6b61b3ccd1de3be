//! Banned addresses and prefixes, each until a time of its own: up to a million, asked for every packet.
//!
//! Longest prefix first, one probe for each prefix length in use of the packet's family: a handful in practice, 33 and 129 at
//! most. A probe reads eight one-octet tags at once from an array of 2 octets a ban; an address that is not banned
//! ends there but for once in some 200 probes. The bans themselves lie in an array of their own, in the same order.
//!
//! Invariants:
//! - All memory is reserved at construction. A full table refuses; it forgets nobody.
//! - Open addressing, half full at most, with backward-shift deletion: no tombstones, so nothing rots.
//! - A tag is zero in an empty slot only; the first tags are repeated behind the last, so that a probe may read past the end.
//! - The hash is keyed: nobody chooses bans that crowd together. Bans are compared whole, so none covers a stranger.
//! - A ban that has ended bans nobody, swept or not. Families are apart: `::/0` holds no IPv4 address.

use ipnet::IpNet;

use super::hash::{Secret, prefix};
use crate::addr::Addr;
use crate::units::Micros;

/// There is no room for another ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for another ban")]
pub struct Full;

/// The ban that covers an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Length of the banned prefix, bits.
    pub prefix_len: u8,
    /// When it ends.
    pub until: Micros,
    /// Why, in the numbers of whoever banned it.
    pub reason: u32,
}

/// A prefix as the table compares it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Prefix {
    addr: Addr,
    len: u8,
    v4: bool,
}

impl Prefix {
    fn of(net: IpNet) -> Prefix {
        let (addr, v4) = match net {
            IpNet::V4(net) => (Addr::v4(net.network().to_bits()), true),
            IpNet::V6(net) => (Addr::v6(net.network().octets()), false),
        };
        Prefix { addr, len: net.prefix_len(), v4 }
    }

    /// What sets prefixes of one network address apart in the hash.
    #[inline]
    fn kind(&self) -> u32 {
        u32::from(self.len) | u32::from(self.v4) << 8
    }
}

/// Half a cache line.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Entry {
    addr: Addr,
    until: Micros,
    reason: u32,
    len: u8,
    v4: bool,
}

const _: () = assert!(size_of::<Entry>() == 32);

impl Entry {
    const NONE: Entry = Entry { addr: Addr { hi: 0, lo: 0 }, until: Micros(0), reason: 0, len: 0, v4: false };

    #[inline]
    fn prefix(&self) -> Prefix {
        Prefix { addr: self.addr, len: self.len, v4: self.v4 }
    }
}

/// How many bans there are of each prefix length of a family, and which lengths that makes.
struct Lengths<const N: usize> {
    bans: [u32; N],
    /// The lengths in use, longest first: the first `count`.
    used: [u8; N],
    count: usize,
}

impl<const N: usize> Lengths<N> {
    const NONE: Lengths<N> = Lengths { bans: [0; N], used: [0; N], count: 0 };

    #[inline]
    fn used(&self) -> &[u8] {
        self.used.get(..self.count).unwrap_or_default()
    }

    fn change(&mut self, len: u8, by: i32) {
        let Some(bans) = self.bans.get_mut(usize::from(len)) else { return };
        let before = *bans;
        *bans = before.saturating_add_signed(by);
        if (before == 0) != (*bans == 0) {
            let longest_first = self.bans.iter().enumerate().rev();
            let lengths = longest_first.filter(|&(_, &n)| n > 0).map(|(len, _)| len as u8);
            self.count = self.used.iter_mut().zip(lengths).map(|(slot, len)| *slot = len).count();
        }
    }
}

/// Tags that one probe reads.
const GROUP: usize = 8;

/// Every octet 1, and every octet's highest bit.
const ONES: u64 = u64::from_ne_bytes([1; GROUP]);
const HIGHS: u64 = ONES << 7;

/// The highest bit of each octet of `group` that is zero. Octets above the lowest zero one may be wrong.
#[inline]
fn zeros(group: u64) -> u64 {
    group.wrapping_sub(ONES) & !group & HIGHS
}

fn slots(capacity: usize) -> usize {
    capacity.clamp(1, 1 << 30).saturating_mul(2).max(GROUP)
}

/// The table. One worker's.
pub struct Bans {
    tags: Box<[u8]>,
    /// One for each tag, what it says being meaningless where that is zero.
    entries: Box<[Entry]>,
    len: usize,
    capacity: usize,
    secret: Secret,
    v4: Lengths<33>,
    v6: Lengths<129>,
    /// Where the next sweep begins.
    swept: usize,
}

impl std::fmt::Debug for Bans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bans").field("len", &self.len()).field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl Bans {
    /// An empty table for up to `capacity` bans (at least 1, at most 2^30), with 128 random bits that are its own.
    #[must_use]
    pub fn new(capacity: usize, secret: [u64; 2]) -> Bans {
        let capacity = capacity.clamp(1, 1 << 30);
        let slots = slots(capacity);
        Bans {
            tags: vec![0; slots.saturating_add(GROUP)].into_boxed_slice(),
            entries: vec![Entry::NONE; slots].into_boxed_slice(),
            len: 0,
            capacity,
            secret: Secret::new(secret),
            v4: Lengths::NONE,
            v6: Lengths::NONE,
            swept: 0,
        }
    }

    /// Bans `net` (its host bits do not matter) until `until`, for `reason`. Replaces a ban of the same prefix.
    ///
    /// # Errors
    ///
    /// [`Full`] when there are as many others as there is room for, those that have ended and are not yet swept included.
    pub fn ban(&mut self, net: IpNet, until: Micros, reason: u32) -> Result<(), Full> {
        let prefix = Prefix::of(net);
        let hash = self.hash(&prefix);
        if let Some(at) = self.find(hash, &prefix) {
            if let Some(entry) = self.entries.get_mut(at) {
                (entry.until, entry.reason) = (until, reason);
            }
            return Ok(());
        }
        if self.len >= self.capacity {
            return Err(Full);
        }
        let mut at = self.home(hash);
        // Ends: half of the slots are empty.
        while self.tag_at(at) != 0 {
            at = self.on(at, 1);
        }
        self.set(at, tag(hash), Entry { addr: prefix.addr, until, reason, len: prefix.len, v4: prefix.v4 });
        self.len = self.len.saturating_add(1);
        self.count(&prefix, 1);
        Ok(())
    }

    /// Lifts the ban of exactly this prefix; false when there is none.
    pub fn unban(&mut self, net: IpNet) -> bool {
        let prefix = Prefix::of(net);
        let found = self.find(self.hash(&prefix), &prefix);
        if let Some(at) = found {
            self.remove(at);
        }
        found.is_some()
    }

    /// The longest banned prefix that covers `addr` and has not ended by `now`.
    #[inline]
    #[must_use]
    pub fn lookup(&self, addr: Addr, now: Micros) -> Option<Ban> {
        for prefix in self.covering(addr) {
            if let Some(at) = self.find(self.hash(&prefix), &prefix)
                && let Some(entry) = self.entries.get(at)
                && entry.until > now
            {
                return Some(Ban { prefix_len: prefix.len, until: entry.until, reason: entry.reason });
            }
        }
        None
    }

    /// The prefixes of `addr` that may be banned, longest first.
    #[inline]
    fn covering(&self, addr: Addr) -> impl Iterator<Item = Prefix> + '_ {
        let v4 = addr.is_v4();
        let lengths = if v4 { self.v4.used() } else { self.v6.used() };
        lengths.iter().map(move |&len| Prefix { addr: prefix(addr, len, len), len, v4 })
    }

    /// Removes bans that have ended by `now`, looking at no more than `budget` slots; there are two for every ban that there
    /// is room for. Goes on where it stopped the time before: two rounds find every one. Returns how many it removed.
    pub fn sweep(&mut self, now: Micros, budget: usize) -> usize {
        let before = self.len;
        for _ in 0..budget.min(self.entries.len()) {
            let ended = self.entries.get(self.swept).is_some_and(|entry| entry.until <= now);
            if ended && self.tag_at(self.swept) != 0 {
                // Another one may move into its place, and is the next to be looked at.
                self.remove(self.swept);
            } else {
                self.swept = self.on(self.swept, 1);
            }
        }
        before.saturating_sub(self.len)
    }

    /// Bans held, those that have ended and are not yet swept included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no ban.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Octets reserved: for a million bans 66 million.
    #[must_use]
    pub fn memory(&self) -> usize {
        Bans::memory_of(self.capacity)
    }

    /// Octets that a table for `capacity` bans reserves.
    #[must_use]
    pub fn memory_of(capacity: usize) -> usize {
        let slots = slots(capacity);
        slots.saturating_add(GROUP).saturating_add(slots.saturating_mul(size_of::<Entry>()))
    }

    #[inline]
    fn hash(&self, prefix: &Prefix) -> u64 {
        self.secret.hash(prefix.kind(), prefix.addr)
    }

    /// The first slot of a hash: its upper half, scaled to the number of slots.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        ((hash >> 32).wrapping_mul(self.entries.len() as u64) >> 32) as usize
    }

    /// The slot `by` slots further on; `by` is no more than there are.
    #[inline]
    fn on(&self, at: usize, by: usize) -> usize {
        let at = at.wrapping_add(by);
        if at < self.entries.len() { at } else { at.wrapping_sub(self.entries.len()) }
    }

    /// How far `at` lies behind `from`, going on from there.
    fn distance(&self, from: usize, at: usize) -> usize {
        let distance = at.wrapping_sub(from);
        if at >= from { distance } else { distance.wrapping_add(self.entries.len()) }
    }

    #[inline]
    fn tag_at(&self, at: usize) -> u8 {
        self.tags.get(at).copied().unwrap_or(0)
    }

    fn set_tag(&mut self, at: usize, tag: u8) {
        let repeated = if at < GROUP { self.entries.len().wrapping_add(at) } else { at };
        for at in [at, repeated] {
            if let Some(slot) = self.tags.get_mut(at) {
                *slot = tag;
            }
        }
    }

    fn set(&mut self, at: usize, tag: u8, entry: Entry) {
        self.set_tag(at, tag);
        if let Some(slot) = self.entries.get_mut(at) {
            *slot = entry;
        }
    }

    fn count(&mut self, prefix: &Prefix, by: i32) {
        if prefix.v4 {
            self.v4.change(prefix.len, by);
        } else {
            self.v6.change(prefix.len, by);
        }
    }

    /// Of the group of slots at `at`: which may hold what has this hash, in front of the first empty one (the highest bit of
    /// each octet, lowest first), and whether one is empty.
    #[inline]
    fn probe(&self, at: usize, hash: u64) -> Option<(u64, bool)> {
        let group = u64::from_le_bytes(*self.tags.get(at..)?.first_chunk::<GROUP>()?);
        let empty = zeros(group);
        let equal = zeros(group ^ ONES.wrapping_mul(u64::from(tag(hash))));
        Some((equal & (empty & empty.wrapping_neg()).wrapping_sub(1), empty != 0))
    }

    /// The slot of `prefix`, whose hash is `hash`.
    #[inline]
    fn find(&self, hash: u64, prefix: &Prefix) -> Option<usize> {
        let mut at = self.home(hash);
        // Ends: half of the slots are empty.
        loop {
            let (mut matches, ends) = self.probe(at, hash)?;
            while matches != 0 {
                let slot = self.on(at, first(matches));
                if self.entries.get(slot).is_some_and(|entry| entry.prefix() == *prefix) {
                    return Some(slot);
                }
                matches &= matches.wrapping_sub(1);
            }
            if ends {
                return None;
            }
            at = self.on(at, GROUP);
        }
    }

    /// Empties slot `hole` and moves back whatever its being full had pushed on.
    fn remove(&mut self, mut hole: usize) {
        let Some(entry) = self.entries.get(hole).copied() else { return };
        self.count(&entry.prefix(), -1);
        self.len = self.len.saturating_sub(1);
        let mut at = hole;
        loop {
            at = self.on(at, 1);
            let tag = self.tag_at(at);
            if tag == 0 {
                break;
            }
            let Some(entry) = self.entries.get(at).copied() else { break };
            let home = self.home(self.hash(&entry.prefix()));
            // It may move if its home does not lie behind the hole.
            if self.distance(home, at) >= self.distance(hole, at) {
                self.set(hole, tag, entry);
                hole = at;
            }
        }
        self.set_tag(hole, 0);
    }
}

/// The tag of a hash: never zero.
#[inline]
fn tag(hash: u64) -> u8 {
    (hash as u8).max(1)
}

/// Which octet the lowest of `matches` stands for.
#[inline]
fn first(matches: u64) -> usize {
    (matches.trailing_zeros() >> 3) as usize
}
