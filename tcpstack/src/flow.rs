//! The flow table: from a segment's 4-tuple to the index of its session.
//!
//! Open addressing with robin hood ordering (Celis 1986) and backward-shift deletion, so lookups of absent flows (an ACK
//! flood) stop as early as lookups of present ones, and nothing rots after millions of removals. A slot is 16 octets, four
//! to a cache line: a hit costs one miss, which [`FlowTable::touch`] lets the worker overlap over a burst.
//!
//! Invariants:
//! - The capacity is fixed at construction; the table never grows, and at most [`FlowTable::capacity`] flows fit (house
//!   style section 8). The memory is zeroed lazily by the operating system.
//! - The hash is SipHash-1-3 under a secret key: senders cannot aim at one slot.
//! - A slot holds all 64 bits of the hash and both ports. Two live flows are taken for one another only if both agree, which
//!   for a million flows happens by accident about once in 10^18 lookups; the segment then still has to pass the session's
//!   sequence checks (RFC 9293 section 3.10.7.4). An attacker gains nothing: whoever can choose addresses freely
//!   reaches the flow by its own.

use sluice_filters::addr::FlowKey;
use zeroize::Zeroize;

use crate::sip;

/// The table has no room for another flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A slot: the hash, then the ports (high half) and the value plus one (low half; zero marks an empty slot).
type Slot = [u64; 2];

const EMPTY: Slot = [0, 0];

/// Maps flows to `u32` values. One worker's.
pub struct FlowTable {
    slots: Box<[Slot]>,
    mask: usize,
    len: usize,
    capacity: usize,
    secret: sip::Key,
}

#[inline]
fn ports(key: &FlowKey) -> u64 {
    u64::from(sip::ports(key))
}

#[inline]
fn is_empty(slot: &Slot) -> bool {
    slot[1] == 0
}

/// Whether `slot` belongs to the flow.
#[inline]
fn holds(slot: &Slot, hash: u64, ports: u64) -> bool {
    slot[0] == hash && slot[1] >> 32 == ports && !is_empty(slot)
}

impl FlowTable {
    /// An empty table for up to `capacity` flows (at least 1, at most 2^31), with a secret of 16 random octets.
    #[must_use]
    pub fn new(capacity: usize, mut secret: [u8; 16]) -> FlowTable {
        let capacity = capacity.clamp(1, 1 << 31);
        // Three quarters full at most: longer chains would cost a second cache line too often. And one slot always stays empty.
        let slots = capacity.saturating_mul(4).div_euclid(3).max(capacity.saturating_add(1)).next_power_of_two();
        let whole = u128::from_le_bytes(secret);
        secret.zeroize();
        FlowTable {
            slots: vec![EMPTY; slots].into_boxed_slice(),
            mask: slots.wrapping_sub(1),
            len: 0,
            capacity,
            secret: sip::Key::new([whole as u64, (whole >> 64) as u64]),
        }
    }

    /// The flow's keyed hash. IPv4 keys take two blocks of SipHash, IPv6 keys five.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        if key.src.is_v4() {
            self.secret.of_flow::<true, 0>(key, [], ports(key), 4)
        } else {
            self.secret.of_flow::<false, 0>(key, [], ports(key), 4)
        }
    }

    /// Pulls the flow's slot into the cache. Called over a burst before the first [`FlowTable::find`], it lets the misses
    /// overlap. First hash the whole burst, then touch it in a loop of its own: the processor looks only a few hundred
    /// instructions ahead of a missing load, and a hash takes a hundred of them.
    #[inline]
    pub fn touch(&self, hash: u64) {
        // A plain load nobody uses would be removed; this one is kept, and its latency is hidden by the loads after it.
        std::hint::black_box(self.slots.get(self.home(hash)).map(|slot| slot[1]));
    }

    /// The value of the flow `key`, whose [`FlowTable::hash`] is `hash`.
    #[inline]
    #[must_use]
    pub fn find(&self, hash: u64, key: &FlowKey) -> Option<u32> {
        let (_, slot) = self.locate(hash, ports(key))?;
        Some((slot[1] as u32).wrapping_sub(1))
    }

    /// Enters the flow, or replaces its value. `value` is at most `u32::MAX - 1`.
    ///
    /// # Errors
    ///
    /// [`Full`] when the table holds [`FlowTable::capacity`] flows already.
    pub fn insert(&mut self, hash: u64, key: &FlowKey, value: u32) -> Result<(), Full> {
        let mut entry: Slot = [hash, ports(key) << 32 | u64::from(value.saturating_add(1))];
        if let Some((at, _)) = self.locate(hash, ports(key)) {
            if let Some(slot) = self.slots.get_mut(at) {
                *slot = entry;
            }
            return Ok(());
        }
        if self.len >= self.capacity {
            return Err(Full);
        }
        let mut at = self.home(hash);
        let mut distance = 0;
        // Ends at an empty slot: a quarter of them always is.
        loop {
            let theirs = self.slots.get(at).map_or(0, |slot| self.distance(at, slot));
            let Some(slot) = self.slots.get_mut(at) else { return Err(Full) };
            if is_empty(slot) {
                *slot = entry;
                break;
            }
            if theirs < distance {
                std::mem::swap(slot, &mut entry);
                distance = theirs;
            }
            at = self.next(at);
            distance = distance.wrapping_add(1);
        }
        self.len = self.len.wrapping_add(1);
        Ok(())
    }

    /// Removes the flow and returns its value.
    pub fn remove(&mut self, hash: u64, key: &FlowKey) -> Option<u32> {
        let (mut at, found) = self.locate(hash, ports(key))?;
        // The chain after it moves up by one, until a slot that is empty or already at home.
        loop {
            let next = self.next(at);
            let follower = *self.slots.get(next)?;
            let moves = !is_empty(&follower) && self.distance(next, &follower) > 0;
            *self.slots.get_mut(at)? = if moves { follower } else { EMPTY };
            if !moves {
                break;
            }
            at = next;
        }
        self.len = self.len.wrapping_sub(1);
        Some((found[1] as u32).wrapping_sub(1))
    }

    /// Flows in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the table holds no flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Flows that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        hash as usize & self.mask
    }

    #[inline]
    fn next(&self, at: usize) -> usize {
        at.wrapping_add(1) & self.mask
    }

    /// How far the entry in slot `at` lies from its home.
    #[inline]
    fn distance(&self, at: usize, slot: &Slot) -> usize {
        at.wrapping_sub(self.home(slot[0])) & self.mask
    }

    #[inline]
    fn locate(&self, hash: u64, ports: u64) -> Option<(usize, Slot)> {
        let mut at = self.home(hash);
        let mut distance = 0;
        loop {
            let slot = self.slots.get(at)?;
            if holds(slot, hash, ports) {
                return Some((at, *slot));
            }
            // Robin hood: had the flow been entered, it would have taken this slot.
            if is_empty(slot) || self.distance(at, slot) < distance {
                return None;
            }
            at = self.next(at);
            distance = distance.wrapping_add(1);
        }
    }
}

impl std::fmt::Debug for FlowTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowTable").field("len", &self.len).field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use sluice_filters::addr::Addr;

    use super::*;

    fn flow(n: u32, v6: bool) -> FlowKey {
        let address = |x: u32| {
            if v6 { Addr { hi: 0x2001_0db8 << 32, lo: u64::from(x) } } else { Addr::v4(0x0a00_0000 | x) }
        };
        FlowKey { src: address(n >> 4), dst: address(7), src_port: (n & 15) as u16, dst_port: 443 }
    }

    fn longest_chain(table: &FlowTable) -> usize {
        let entries = table.slots.iter().enumerate().filter(|(_, slot)| !is_empty(slot));
        entries.map(|(at, slot)| table.distance(at, slot)).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn behaves_like_a_hash_map(
            capacity in 1_usize..80,
            secret: [u8; 16],
            steps in prop::collection::vec((0_u8..4, 0_u32..96, any::<bool>(), 0_u32..u32::MAX), 1..600),
        ) {
            let mut table = FlowTable::new(capacity, secret);
            let mut model = HashMap::new();
            for (step, n, v6, value) in steps {
                let key = flow(n, v6);
                let hash = table.hash(&key);
                table.touch(hash);
                match step {
                    0 | 1 => {
                        let fits = model.len() < capacity || model.contains_key(&key);
                        prop_assert_eq!(table.insert(hash, &key, value).is_ok(), fits);
                        if fits {
                            model.insert(key, value);
                        }
                    }
                    2 => prop_assert_eq!(table.remove(hash, &key), model.remove(&key)),
                    _ => prop_assert_eq!(table.find(hash, &key), model.get(&key).copied()),
                }
                prop_assert_eq!(table.len(), model.len());
            }
            for (key, value) in &model {
                prop_assert_eq!(table.find(table.hash(key), key), Some(*value));
                table.remove(table.hash(key), key);
            }
            prop_assert!(table.slots.iter().all(|slot| *slot == EMPTY));
        }
    }

    #[test]
    fn chains_with_a_common_home_keep_all_their_flows() {
        // Hashes chosen by the test: all in one home, at the end of the table so that the chain wraps.
        let mut table = FlowTable::new(12, [1; 16]);
        let home = table.mask as u64;
        let hash = |n: u32| u64::from(n) << 32 | home;
        for n in 0..12 {
            table.insert(hash(n), &flow(n, false), n).unwrap();
        }
        assert_eq!(table.insert(hash(12), &flow(12, false), 12), Err(Full));
        for n in (0..12).step_by(2) {
            assert_eq!(table.remove(hash(n), &flow(n, false)), Some(n));
        }
        for n in 0..12 {
            assert_eq!(table.find(hash(n), &flow(n, false)), (n % 2 == 1).then_some(n));
        }
    }

    #[test]
    fn same_hash_with_other_ports_is_another_flow() {
        let mut table = FlowTable::new(4, [1; 16]);
        table.insert(99, &flow(1, false), 10).unwrap();
        assert_eq!(table.find(99, &flow(2, false)), None);
        table.insert(99, &flow(2, false), 20).unwrap();
        assert_eq!(table.find(99, &flow(1, false)), Some(10));
        assert_eq!(table.find(99, &flow(2, false)), Some(20));
    }

    #[test]
    fn chains_stay_short_after_a_million_removals() {
        let mut table = FlowTable::new(3_000, [3; 16]);
        for n in 0..1_003_000_u32 {
            let key = flow(n, false);
            table.insert(table.hash(&key), &key, n).unwrap();
            if let Some(old) = n.checked_sub(2_999) {
                let key = flow(old, false);
                assert_eq!(table.remove(table.hash(&key), &key), Some(old));
            }
        }
        assert_eq!(table.len(), 2_999);
        assert!(longest_chain(&table) < 24, "longest chain {}", longest_chain(&table));
    }

    #[test]
    fn hash_depends_on_secret_direction_and_family() {
        let table = FlowTable::new(1, [1; 16]);
        let key = flow(5, false);
        let reversed = FlowKey { src: key.dst, dst: key.src, src_port: key.dst_port, dst_port: key.src_port };
        let hashes = [
            table.hash(&key),
            table.hash(&reversed),
            table.hash(&flow(5, true)),
            FlowTable::new(1, [2; 16]).hash(&key),
        ];
        for (i, a) in hashes.iter().enumerate() {
            assert!(hashes.iter().skip(i + 1).all(|b| a != b));
        }
    }
}
