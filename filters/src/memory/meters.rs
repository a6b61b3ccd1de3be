//! Limits per source in fixed memory: a set-associative table of leaky buckets under a secret hash.
//!
//! # The bucket
//! Virtual scheduling (the generic cell rate algorithm, ITU-T I.371): a record keeps the time at which its source will owe
//! nothing any more. A packet is within the limit when what is owed and its own cost fit in the burst; it then adds its cost.
//! A refused packet adds nothing, so a source that keeps sending too much still passes its rate. A packet larger than the
//! burst passes when nothing is owed, and is paid off like any other. What is owed is a time, so records of any limit can
//! share the table, and drain without knowing their rate. Ticks are 2^-16 microseconds; costs are rounded down to whole ticks
//! per packet, so a conforming packet is never refused, and a limit is exceeded by no more than 0.06% at 100 M packets a
//! second, 0.2% for packets of 64 octets at 100 Gbit/s, 10^-6 below 60,000 packets a second. Time ends after eight years of
//! running: then everything passes.
//!
//! # The table, and who keeps a record
//! A cache line holds four records of 16 octets. A key has one line; a record of a source that owes nothing says no more
//! than no record. A newcomer to a full line must take another's record or stay unrecorded. What decides is *standing*, a
//! time until which a record is kept:
//! - a packet that passes adds its cost, at most [`STANDING_PER_PACKET`], and never beyond the time at which the source owes
//!   nothing (unless refusals brought it there);
//! - a refused packet adds [`STANDING_PER_PACKET`];
//! - standing passes with time, and is never more than [`STANDING_MAX`] ahead.
//!
//! A newcomer takes the record that owes least among those whose standing has passed: an empty or drained one if there is any.
//! When all four stand, it stays unrecorded and passes. Hence:
//! - **No false refusal.** Only a source's own record refuses it (or one with an equal tag in the same line: probability
//!   2^-32 for each record compared). Losing a record, or not getting one, only ever lets packets pass: neither a flood nor a full
//!   table starves anyone.
//! - **No eviction of an abuser.** No number of newcomers shortens a record's standing: it depends on the source's own
//!   packets alone. A source whose packets are refused at least once in [`STANDING_PER_PACKET`] stands for as long as it goes
//!   on, even while it owes nothing, and gives way at most [`STANDING_MAX`] later. So does one below its burst that sends at
//!   least one packet in that time or in the time its limit allows it one, whichever is shorter.
//! - **Learning is bounded, whatever the flood.** A one-packet source stands for the cost of its packet at most, and
//!   standing is not handed on: records fall free at a pace that no flood slows, and the next newcomer takes the next. With F
//!   newcomers a second that stand for S seconds each among R records, a source that sends r packets a second is recorded
//!   after F x S / R of its packets on average, and S / 4 seconds of waiting for a record to fall free (at most S), or at
//!   once while there is a free one. Ten million a second among 262,144 records: mostly at once for limits above 100 a
//!   second; after 38 packets for a limit of 1 a second, after 76 for slower ones, and half a second (a flood whose
//!   sources each have a packet refused has them stand 2 s longer). Once recorded, the burst and the rate hold.
//!
//! What the table cannot do: limit more sources at once than it has records. A line whose four records all stand leaves a
//! fifth source unlimited: 0.4% of the lines when a quarter as many abusers stand as there are records, more than a third
//! when as many do. An attacker who spoofs that many sources, R / 2 packets a second to keep all of them standing, blinds the
//! limits for newcomers, not for those it knows. Limits that only verified clients can charge (connections) are safe from
//! that in a table of their own.
//!
//! Why debt alone does not decide: records that owe an hour (a limit of 1 an hour) would fill the table within a second of
//! flood and shut everybody else out for that hour, and random replacement instead would give an abuser's first record
//! away before its second packet.

use std::time::Duration;

use sluice_config::Rate;

use super::LINE;
use super::hash::Secret;
use crate::addr::Addr;
use crate::units::Micros;

/// What a refused packet adds to its record's standing, and the most that one that passes adds.
pub const STANDING_PER_PACKET: Duration = Duration::from_secs(2);

/// The longest that a record stands after its source's last packet.
pub const STANDING_MAX: Duration = Duration::from_secs(300);

/// Records of one line.
const WAYS: usize = LINE / 16;

/// Binary digits of a tick below the microsecond.
const TICK_BITS: u32 = 16;

/// Binary digits of a unit's cost below the tick.
const COST_BITS: u32 = 16;

/// The most that anybody can owe, ticks: 203 days. Larger bursts and costs are cut to it.
const DEBT_MAX: u64 = 1 << 60;

/// The last moment at which time plus debts fits: some eight years.
const TIME_MAX: u64 = (u64::MAX - DEBT_MAX) >> TICK_BITS;

/// A unit of standing is 2^20 ticks or 16 microseconds. Standing wraps after 19 hours; more than [`STAND_MAX`] ahead is past.
/// A record nobody asked for in all that time may so be kept [`STANDING_MAX`] longer.
const STAND_BITS: u32 = 20;

const fn stand_units(d: Duration) -> u32 {
    (d.as_micros() << TICK_BITS >> STAND_BITS) as u32
}

const STAND_STEP: u32 = stand_units(STANDING_PER_PACKET);
const STAND_MAX: u32 = stand_units(STANDING_MAX);

/// A rate in the form that meters and buckets use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// What one unit costs, 2^-16 ticks.
    unit: u64,
    /// What a burst costs, ticks.
    burst: u64,
}

impl Quota {
    /// `rate.amount` in each `rate.every` in the long run, `rate.burst` at once (both at least 1). Rates above 6 x 10^10
    /// units a second may pass without limit.
    #[must_use]
    pub fn new(rate: &Rate) -> Quota {
        // Nanoseconds times 2^32 fit: 2^64 seconds are 2^94 nanoseconds.
        let every = rate.every.as_nanos() << (TICK_BITS + COST_BITS);
        let unit = every.div_euclid(1000).div_euclid(u128::from(rate.amount.max(1)));
        let quota = Quota { unit: u64::try_from(unit).unwrap_or(u64::MAX), burst: 0 };
        Quota { burst: quota.cost(rate.burst.max(1)), ..quota }
    }

    /// What `amount` costs, ticks.
    #[inline]
    fn cost(&self, amount: u64) -> u64 {
        let cost = u128::from(self.unit).wrapping_mul(u128::from(amount)) >> COST_BITS;
        if cost < u128::from(DEBT_MAX) { cost as u64 } else { DEBT_MAX }
    }

    /// When a source that owes nothing from `clear` on will owe nothing if it also sends `amount` at `now`; none when that is
    /// over the limit. All in ticks.
    #[inline]
    pub(super) fn admit(&self, clear: u64, amount: u64, now: u64) -> Option<u64> {
        let debt = clear.saturating_sub(now);
        let owed = debt.saturating_add(self.cost(amount));
        (owed <= self.burst || debt == 0).then(|| now.saturating_add(owed))
    }
}

/// `now` in ticks; none after the end of time.
#[inline]
pub(super) fn ticks(now: Micros) -> Option<u64> {
    (now.0 <= TIME_MAX).then_some(now.0 << TICK_BITS)
}

/// One metered source in one table: its line and its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

/// Four records, field by field so that the tags are compared together.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line {
    /// The low half of the key.
    tags: [u32; WAYS],
    /// Until when the record stands, units of standing modulo 2^32.
    keep: [u32; WAYS],
    /// From when on the source owes nothing, ticks; zero in an empty record.
    clear: [u64; WAYS],
}

const _: () = assert!(size_of::<Line>() == LINE && STAND_MAX < u32::MAX / 2);

/// How many units of standing are left.
#[inline]
fn standing(keep: u32, now: u32) -> u32 {
    let left = keep.wrapping_sub(now);
    if left <= STAND_MAX { left } else { 0 }
}

/// The table. One worker's.
pub struct Meters {
    lines: Box<[Line]>,
    mask: usize,
    secret: Secret,
    displaced: u64,
    unrecorded: u64,
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").field("records", &self.records()).finish_non_exhaustive()
    }
}

impl Meters {
    /// A table of `records` records of 16 octets (rounded up to a power of two of lines of four; at most 2^32), with 128
    /// random bits that are its own.
    #[must_use]
    pub fn new(records: usize, secret: [u64; 2]) -> Meters {
        let lines = records.clamp(1, 1 << 32).div_ceil(WAYS).next_power_of_two();
        Meters {
            lines: vec![Line::default(); lines].into_boxed_slice(),
            mask: lines.wrapping_sub(1),
            secret: Secret::new(secret),
            displaced: 0,
            unrecorded: 0,
        }
    }

    /// How many sources it can remember.
    #[must_use]
    pub fn records(&self) -> usize {
        self.lines.len().saturating_mul(WAYS)
    }

    /// Octets of the table.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// The key of what shares one limit: `kind` is the limit's or rule's own number, `addr` the source or its [`super::prefix`].
    /// A limit that changes takes a new number, or sources go on owing what they owed by the old one.
    #[inline]
    #[must_use]
    pub fn key(&self, kind: u32, addr: Addr) -> Key {
        Key(self.secret.hash(kind, addr))
    }

    #[inline]
    fn home(&self, key: Key) -> usize {
        (key.0 >> 32) as usize & self.mask
    }

    /// Pulls the key's line into the cache. Called over a burst before the first [`Meters::charge`], in a loop of its own, it
    /// lets the misses overlap.
    #[inline]
    pub fn touch(&self, key: Key) {
        // A plain load nobody uses would be removed; this one is kept.
        std::hint::black_box(self.lines.get(self.home(key)).map(|line| line.tags[0]));
    }

    /// Whether `amount` (packets or octets) at `now` is within the limit; what is within it is charged. A source that got no
    /// record is within its limit. `quota` is the one of the key's kind.
    #[inline]
    #[must_use = "what is over the limit is to be dropped"]
    pub fn charge(&mut self, key: Key, quota: &Quota, amount: u64, now: Micros) -> bool {
        let (home, tag) = (self.home(key), key.0 as u32);
        let (Some(now), Some(line)) = (ticks(now), self.lines.get_mut(home)) else { return true };
        let moment = (now >> STAND_BITS) as u32;
        if let Some(way) = line.tags.iter().position(|&t| t == tag)
            && let (Some(keep), Some(clear)) = (line.keep.get_mut(way), line.clear.get_mut(way))
        {
            let left = standing(*keep, moment);
            let admitted = quota.admit(*clear, amount, now);
            *keep = moment.wrapping_add(match admitted {
                Some(paid) => left.max(earned(left, paid, *clear, now)),
                None => left.saturating_add(STAND_STEP).min(STAND_MAX),
            });
            *clear = admitted.unwrap_or(*clear);
            return admitted.is_some();
        }
        let paid = now.saturating_add(quota.cost(amount));
        let records = line.tags.iter_mut().zip(&mut line.keep).zip(&mut line.clear);
        let yielding = records.filter(|((_, keep), clear)| **clear == 0 || standing(**keep, moment) == 0);
        match yielding.min_by_key(|(_, clear)| **clear) {
            Some(((their_tag, keep), clear)) => {
                if *clear > now {
                    self.displaced = self.displaced.wrapping_add(1);
                }
                *keep = moment.wrapping_add(earned(0, paid, now, now));
                (*their_tag, *clear) = (tag, paid);
            }
            None => self.unrecorded = self.unrecorded.wrapping_add(1),
        }
        true
    }

    /// What [`Meters::charge`] would say, without charging.
    #[must_use]
    pub fn peek(&self, key: Key, quota: &Quota, amount: u64, now: Micros) -> bool {
        let Some(now) = ticks(now) else { return true };
        self.record(key).is_none_or(|(_, clear)| quota.admit(clear, amount, now).is_some())
    }

    /// Whether the source has a record that says something: it owes, or it stands.
    #[must_use]
    pub fn knows(&self, key: Key, now: Micros) -> bool {
        let Some(now) = ticks(now) else { return false };
        self.record(key).is_some_and(|(keep, clear)| says_something(keep, clear, now))
    }

    fn record(&self, key: Key) -> Option<(u32, u64)> {
        let line = self.lines.get(self.home(key))?;
        let way = line.tags.iter().position(|&t| t == key.0 as u32)?;
        Some((*line.keep.get(way)?, *line.clear.get(way)?))
    }

    /// About how many records say something. Reads 256 lines, evenly spaced.
    #[must_use]
    pub fn occupied(&self, now: Micros) -> usize {
        const SAMPLES: usize = 256;
        let Some(now) = ticks(now) else { return 0 };
        let apart = self.lines.len().div_ceil(SAMPLES).max(1);
        let sampled = self.lines.iter().step_by(apart);
        let records = sampled.flat_map(|line| line.keep.iter().zip(&line.clear));
        let occupied = records.filter(|&(&keep, &clear)| says_something(keep, clear, now)).count();
        occupied.saturating_mul(apart)
    }

    /// Records given up while their sources still owed something.
    #[must_use]
    pub fn displaced(&self) -> u64 {
        self.displaced
    }

    /// Packets that passed unrecorded, because every record of their line stood.
    #[must_use]
    pub fn unrecorded(&self) -> u64 {
        self.unrecorded
    }
}

#[inline]
fn says_something(keep: u32, clear: u64, now: u64) -> bool {
    clear > now || clear > 0 && standing(keep, (now >> STAND_BITS) as u32) > 0
}

/// The standing of a record that has `left` and admits a packet, after which its source owes until `paid`, before until
/// `clear`: its cost more, but neither more than a step, nor beyond `paid` (rounded up), nor beyond the maximum.
#[inline]
fn earned(left: u32, paid: u64, clear: u64, now: u64) -> u32 {
    let cost = paid.saturating_sub(clear.max(now)) >> STAND_BITS;
    // Both ends rounded outwards: what stands to its end is not given up while it owes.
    let step = cost.saturating_add(2).min(u64::from(STAND_STEP)) as u32;
    let owed = (paid >> STAND_BITS).saturating_add(1).saturating_sub(now >> STAND_BITS);
    left.saturating_add(step).min(owed.min(u64::from(STAND_MAX)) as u32)
}
