//! Timers for millions of sessions: a hierarchical timing wheel (Varghese and Lauck 1987).
//!
//! Six levels of 64 slots, one millisecond at the lowest: 2.1 years of range, later deadlines wait in the top level and are
//! sorted in again. Arming, moving and cancelling are O(1); firing costs at most one move per level. Lists are intrusive
//! in one `Vec` indexed by timer, which grows with the caller's slab and then never again.
//!
//! Invariants:
//! - A timer is in one slot's list or in none. A level's occupancy bit says whether the slot's list is non-empty.
//! - A timer never fires early. It fires in the first [`Wheel::advance`] whose `now` lies a resolution or more past the
//!   deadline, as far as budgets allow.
//! - Work per call is bounded by its budget, also when a slot with a million timers is sorted into the level below.

use sluice_filters::units::Micros;

const LEVELS: usize = 6;
/// Bits of a tick that choose the slot of one level.
const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const SLOT_MASK: u64 = (1 << BITS) - 1;
/// The furthest a timer is placed ahead: one slot short of the top level's turn, so its slot is never the current one.
const HORIZON: u64 = (1 << (BITS * LEVELS as u32)) - (1 << (BITS * (LEVELS as u32 - 1)));
const TICK_MICROS: u64 = 1_000;
/// End of a list.
const NIL: u32 = u32::MAX;
/// The slot number of a timer that is not armed.
const IDLE: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
struct Timer {
    /// Due at the start of this tick.
    tick: u64,
    next: u32,
    prev: u32,
    /// `level * SLOTS + slot`, or [`IDLE`].
    slot: u16,
}

const UNARMED: Timer = Timer { tick: 0, next: NIL, prev: NIL, slot: IDLE };

/// One worker's timers. A timer's id is an index chosen by the caller; each id has one deadline at most.
#[derive(Debug)]
pub struct Wheel {
    timers: Vec<Timer>,
    heads: Box<[u32; LEVELS * SLOTS]>,
    occupied: [u64; LEVELS],
    /// Every tick before this one is dealt with; timers of this very tick may be waiting in its slot.
    elapsed: u64,
    armed: usize,
}

impl Wheel {
    /// A wheel without timers that starts at `now`.
    #[must_use]
    pub fn new(now: Micros) -> Wheel {
        Wheel {
            timers: Vec::new(),
            heads: Box::new([NIL; LEVELS * SLOTS]),
            occupied: [0; LEVELS],
            elapsed: now.0.div_euclid(TICK_MICROS),
            armed: 0,
        }
    }

    /// Takes address space for ids below `most`, so that the timers need not move when more are used: memory is taken as they are.
    pub fn reserve(&mut self, most: usize) {
        self.timers.reserve_exact(most.saturating_sub(self.timers.len()));
    }

    /// Arms timer `id` (below `u32::MAX`) for `at`, or moves it there. A deadline in the past fires in the next
    /// [`Wheel::advance`]. Allocates only when `id` is larger than any before.
    pub fn arm(&mut self, id: u32, at: Micros) {
        self.cancel(id);
        let index = id as usize;
        if id == NIL {
            return;
        }
        if index >= self.timers.len() {
            self.timers.resize(index.saturating_add(1), UNARMED);
        }
        self.place(id, at.0.div_ceil(TICK_MICROS));
        self.armed = self.armed.wrapping_add(1);
    }

    /// Arms timer `id` for `at`, unless it fires before that anyway.
    pub fn arm_sooner(&mut self, id: u32, at: Micros) {
        let tick = at.0.div_ceil(TICK_MICROS);
        if self.timers.get(id as usize).is_none_or(|timer| timer.slot == IDLE || tick < timer.tick) {
            self.arm(id, at);
        }
    }

    /// Disarms timer `id`; whether it was armed.
    pub fn cancel(&mut self, id: u32) -> bool {
        let was_armed = self.unlink(id);
        if was_armed {
            self.armed = self.armed.wrapping_sub(1);
        }
        was_armed
    }

    /// Whether timer `id` is armed.
    #[must_use]
    pub fn is_armed(&self, id: u32) -> bool {
        self.timers.get(id as usize).is_some_and(|timer| timer.slot != IDLE)
    }

    /// Timers armed.
    #[must_use]
    pub fn armed(&self) -> usize {
        self.armed
    }

    /// Moves the wheel to `now` and appends the ids of due timers, now disarmed, to `due`. At most `budget` timers are fired
    /// or sorted; true when work is left for the next call. Ids of one millisecond come in no particular order.
    pub fn advance(&mut self, now: Micros, budget: usize, due: &mut Vec<u32>) -> bool {
        let target = now.0.div_euclid(TICK_MICROS);
        let mut budget = budget;
        while let Some((level, slot, start)) = self.earliest() {
            if start > target {
                break;
            }
            self.elapsed = self.elapsed.max(start);
            while let Some(id) = self.head(level, slot) {
                if budget == 0 {
                    return true;
                }
                budget = budget.wrapping_sub(1);
                self.unlink(id);
                let tick = self.timers.get(id as usize).map_or(0, |timer| timer.tick);
                if tick <= self.elapsed {
                    self.armed = self.armed.wrapping_sub(1);
                    due.push(id);
                } else {
                    self.place(id, tick);
                }
            }
        }
        self.elapsed = self.elapsed.max(target);
        false
    }

    /// The first non-empty slot in time: level, slot and the tick at which it starts (not before `elapsed`).
    fn earliest(&self) -> Option<(usize, usize, u64)> {
        let mut best: Option<(usize, usize, u64)> = None;
        for (level, occupied) in self.occupied.iter().enumerate() {
            if *occupied == 0 {
                continue;
            }
            let shift = BITS.wrapping_mul(level as u32);
            let unit = self.elapsed.wrapping_shr(shift);
            let ahead = u64::from(occupied.rotate_right((unit & SLOT_MASK) as u32).trailing_zeros());
            let first = unit.wrapping_add(ahead);
            let start = first.wrapping_shl(shift).max(self.elapsed);
            if best.is_none_or(|(_, _, other)| start < other) {
                best = Some((level, (first & SLOT_MASK) as usize, start));
            }
        }
        best
    }

    /// Puts an unlinked timer into the slot for `tick`: the level is that of the highest group of bits in which it differs from now.
    fn place(&mut self, id: u32, tick: u64) {
        let place = tick.clamp(self.elapsed, self.elapsed.saturating_add(HORIZON));
        let differing = (place ^ self.elapsed) | SLOT_MASK;
        let level = (differing.ilog2().wrapping_div(BITS) as usize).min(LEVELS.wrapping_sub(1));
        let slot = place.wrapping_shr(BITS.wrapping_mul(level as u32)) & SLOT_MASK;
        let index = level.wrapping_mul(SLOTS).wrapping_add(slot as usize);
        let Some(head) = self.heads.get_mut(index) else { return };
        let next = std::mem::replace(head, id);
        if let Some(timer) = self.timers.get_mut(id as usize) {
            *timer = Timer { tick, next, prev: NIL, slot: index as u16 };
        }
        if let Some(timer) = self.timers.get_mut(next as usize) {
            timer.prev = id;
        }
        if let Some(occupied) = self.occupied.get_mut(level) {
            *occupied |= 1_u64.wrapping_shl(slot as u32);
        }
    }

    fn head(&self, level: usize, slot: usize) -> Option<u32> {
        self.heads.get(level.wrapping_mul(SLOTS).wrapping_add(slot)).copied().filter(|id| *id != NIL)
    }

    /// Takes the timer out of its list; whether it was in one.
    fn unlink(&mut self, id: u32) -> bool {
        let Some(timer) = self.timers.get_mut(id as usize) else { return false };
        let Timer { next, prev, slot, .. } = *timer;
        if slot == IDLE {
            return false;
        }
        timer.slot = IDLE;
        if let Some(timer) = self.timers.get_mut(next as usize) {
            timer.prev = prev;
        }
        if let Some(timer) = self.timers.get_mut(prev as usize) {
            timer.next = next;
        } else if let Some(head) = self.heads.get_mut(slot as usize) {
            *head = next;
            if next == NIL
                && let Some(occupied) = self.occupied.get_mut((slot as usize).wrapping_shr(BITS))
            {
                *occupied &= !1_u64.wrapping_shl(u32::from(slot) & SLOT_MASK as u32);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 3_600_000_000;

    fn due(wheel: &mut Wheel, now: u64) -> Vec<u32> {
        let mut due = Vec::new();
        assert!(!wheel.advance(Micros(now), usize::MAX, &mut due));
        due.sort_unstable();
        due
    }

    /// Delays of every magnitude, up to twice the wheel's range.
    fn delay() -> impl Strategy<Value = u64> {
        (0_u32..48, any::<u64>()).prop_map(|(bits, value)| value & ((1 << bits) - 1))
    }

    proptest! {
        #[test]
        fn behaves_like_an_ordered_map(
            start in delay(),
            steps in prop::collection::vec((0_u8..4, 0_u32..40, delay(), 0_usize..50), 1..300),
        ) {
            let mut now = start;
            let mut wheel = Wheel::new(Micros(now));
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for (step, id, delay, budget) in steps {
                match step {
                    0 | 1 => {
                        wheel.arm(id, Micros(now + delay));
                        model.insert(id, now + delay);
                    }
                    2 => prop_assert_eq!(wheel.cancel(id), model.remove(&id).is_some()),
                    _ => {
                        now += delay;
                        let mut due = Vec::new();
                        let mut calls = 0;
                        // A bounded budget reaches the same end in more calls, and never fires early on the way.
                        while wheel.advance(Micros(now), budget + 1, &mut due) {
                            calls += 1;
                            prop_assert!(calls <= 40 * (LEVELS + 3));
                        }
                        let fired: BTreeSet<u32> = due.iter().copied().collect();
                        prop_assert_eq!(fired.len(), due.len());
                        for id in &fired {
                            let at = model.remove(id);
                            prop_assert!(at.is_some_and(|at| at <= now), "{id} due {at:?} fired at {now}");
                        }
                        for (id, at) in &model {
                            prop_assert!(*at + TICK_MICROS > now, "{id} due {at} is late at {now}");
                        }
                    }
                }
                prop_assert_eq!(wheel.armed(), model.len());
                for id in 0..40 {
                    prop_assert_eq!(wheel.is_armed(id), model.contains_key(&id));
                }
            }
        }
    }

    #[test]
    fn never_fires_early_and_at_most_a_resolution_late() {
        let mut wheel = Wheel::new(Micros(500));
        wheel.arm(1, Micros(10_001));
        assert_eq!(due(&mut wheel, 10_000), []);
        assert_eq!(due(&mut wheel, 10_999), []);
        assert_eq!(due(&mut wheel, 11_000), [1]);
        assert_eq!(wheel.armed(), 0);
    }

    #[test]
    fn deadline_in_the_past_fires_in_the_next_turn() {
        let mut wheel = Wheel::new(Micros(HOUR));
        wheel.arm(1, Micros(5));
        assert_eq!(due(&mut wheel, HOUR), [1]);
    }

    #[test]
    fn a_day_and_a_year_ahead_fire_on_time() {
        let mut wheel = Wheel::new(Micros(123));
        wheel.arm(1, Micros(24 * HOUR));
        wheel.arm(2, Micros(24 * 365 * HOUR));
        wheel.arm(3, Micros(24 * 3_650 * HOUR));
        for (id, at) in [(1, 24 * HOUR), (2, 24 * 365 * HOUR), (3, 24 * 3_650 * HOUR)] {
            assert_eq!(due(&mut wheel, at - 1), []);
            assert_eq!(due(&mut wheel, at), [id]);
        }
    }

    #[test]
    fn rearming_moves_the_timer() {
        let mut wheel = Wheel::new(Micros(0));
        wheel.arm(7, Micros(5_000));
        wheel.arm(7, Micros(500_000));
        assert_eq!(wheel.armed(), 1);
        assert_eq!(due(&mut wheel, 499_000), []);
        wheel.arm(7, Micros(499_500));
        assert_eq!(due(&mut wheel, 500_000), [7]);
        assert!(!wheel.cancel(7));
    }

    #[test]
    fn arming_sooner_never_puts_a_timer_off() {
        let mut wheel = Wheel::new(Micros(0));
        wheel.arm_sooner(7, Micros(50_000));
        wheel.arm_sooner(7, Micros(90_000));
        wheel.arm_sooner(7, Micros(20_000));
        assert_eq!(due(&mut wheel, 19_999), []);
        assert_eq!(due(&mut wheel, 20_000), [7]);
        assert_eq!(wheel.armed(), 0);
    }

    #[test]
    fn a_crowded_slot_is_served_within_the_budget() {
        let mut wheel = Wheel::new(Micros(0));
        for id in 0..10_000 {
            wheel.arm(id, Micros(5_000_000));
        }
        let mut fired = Vec::new();
        let mut calls = 0;
        while wheel.advance(Micros(5_000_000), 64, &mut fired) {
            calls += 1;
            assert!(fired.len() <= calls * 64);
        }
        assert_eq!(fired.len(), 10_000);
        // Each timer was sorted into level 1, then level 0, then fired.
        assert!(calls <= 3 * 10_000 / 64 + 3, "{calls} calls");
    }

    #[test]
    fn timers_armed_while_a_slot_is_half_served_are_kept() {
        let mut wheel = Wheel::new(Micros(0));
        for id in 0..100 {
            wheel.arm(id, Micros(5_000_000 + u64::from(id) * 1_000));
        }
        let mut fired = Vec::new();
        assert!(wheel.advance(Micros(5_050_000), 10, &mut fired));
        for id in 100..200 {
            wheel.arm(id, Micros(5_000_000 + u64::from(id) * 1_000));
        }
        while wheel.advance(Micros(5_300_000), 10, &mut fired) {}
        fired.sort_unstable();
        assert_eq!(fired, (0..200).collect::<Vec<u32>>());
    }
}
