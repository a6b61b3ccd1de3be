//! Source ports for connections to upstreams.
//!
//! A *space* is one (source address, upstream address and port): within it a port names one connection, so it may be used again only when
//! the old one has left TIME-WAIT (RFC 9293 section 3.6.1), or when that TIME-WAIT must accept the new SYN. Whose a port is and what else
//! stands against it is asked when it is tried. The next one is the first free port at or after a random one (RFC 6056 section 3.3.1), so
//! that an off-path attacker cannot tell which.
//!
//! Invariants:
//! - A port is free, in use or resting. A free one is handed out; when there is none, one that rests in TIME-WAIT: of the `FITS` that have
//!   rested longest one whose TIME-WAIT must accept the SYN, or else the oldest, whose TIME-WAIT then has to be ended. (Whoever uses up
//!   all ports chooses what their TIME-WAITs remember, and can choose what an honest client's numbers do not fit.)
//! - Most free ports may be nobody's who asks here: they are other workers'. Whether one is wanted is asked once in a space's life.
//! - A space holds memory only for the pages of 512 ports in which any was ever asked about: 136 octets each. A resting port takes 40 octets
//!   more; at most `RESTS_MAX` rest, and the next one ends the rest of the one that has rested longest.
//! - [`Ports::allocate`] takes bounded time: a space in which nothing was found is not searched again until `FREED` of its ports were
//!   freed, which are looked at first; of those that rest, `FITS` are asked about. `REAP` rested ports of each kind are freed per call, of
//!   its space and of all: one that has rested enough is never missed. Nothing ever moves in memory in a piece.

use std::time::Duration;

use siphasher::sip::SipHasher13;
use sluice_filters::units::{Micros, Seq};

/// The lowest port handed out: those below are for services.
pub const FIRST: u16 = 1024;
/// Ports of one space.
pub const COUNT: u32 = 65_536 - FIRST as u32;
/// Rested ports of each kind freed per call of [`Ports::allocate`]: of the space that is asked, and of all.
pub const REAP: usize = 8;
/// Ports of an exhausted space that are remembered when they are freed.
const FREED: usize = 64;
/// Resting ports that one allocation asks about: about every second one fits a random SYN.
const FITS: usize = 32;
/// Ports that rest at once, all spaces together.
pub const RESTS_MAX: usize = 1 << 20;

/// TIME-WAIT of a kernel (RFC 9293 section 3.4.2; Linux waits 60 s).
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Where no TIME-WAIT stands in the way, long enough for what is still on the wire. With timestamps it does not: a SYN with a later
/// one takes its place (RFC 6191).
const BRIEF_REST: Duration = Duration::from_secs(1);

/// What an upstream's TIME-WAIT remembers of a connection of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The number it waits for: the one after our FIN.
    pub end: Seq,
    /// Our newest timestamp that it saw, if both ends used them.
    pub timestamp: Option<u32>,
}

/// How well a SYN fits a TIME-WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It is answered like a late segment of the old connection.
    No,
    /// It opens a connection with Linux, which goes by a later timestamp alone.
    Timestamp,
    /// It opens a connection with everybody: its number is later, and its timestamp no earlier.
    Number,
}

impl Memory {
    /// How a SYN numbered `isn` with this timestamp fits (RFC 1122 section 4.2.2.13, RFC 6191). An older timestamp never does (PAWS, RFC
    /// 7323 section 5.3).
    #[must_use]
    pub fn fits(&self, isn: Seq, timestamp: Option<u32>) -> Fit {
        let later = self.end.precedes(isn);
        let newer = self.timestamp.zip(timestamp).map(|(old, new)| new.wrapping_sub(old) as i32);
        match newer {
            Some(..0) => Fit::No,
            None | Some(0) if later => Fit::Number,
            None | Some(0) => Fit::No,
            Some(_) if later => Fit::Number,
            Some(_) => Fit::Timestamp,
        }
    }
}

/// How long a port rests: by what the upstream may remember of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It remembers nothing: it refused, or reset.
    None,
    /// What it remembers does not stand in the way of a new connection.
    Brief,
    /// A TIME-WAIT that only a fitting SYN overrides.
    TimeWait(Memory),
}

/// A port that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The port.
    pub port: u16,
    /// What the upstream's TIME-WAIT remembers, where it does not accept the SYN: a RST with that number ends it.
    pub remembered: Option<Memory>,
}

/// Which space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceId(pub u32);

/// Ports of a page, and the words of one set of them.
const PAGE: usize = 512;
const WORDS: usize = PAGE / 64;
const PAGES: usize = 65_536 / PAGE;

/// What is taken of 512 ports.
#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// In use or resting.
    taken: [u64; WORDS],
    /// Resting or, of those that are not taken, unwanted.
    resting: [u64; WORDS],
}

impl Page {
    /// Of the 64 ports of a word, those that are in use, rest or are unwanted.
    fn excluded(&self, word: usize) -> u64 {
        self.taken.get(word).copied().unwrap_or(0) | self.resting.get(word).copied().unwrap_or(0)
    }
}

/// Word of its page and bit of a port.
fn split(port: u16) -> (usize, u64) {
    (usize::from(port).wrapping_shr(6) & (WORDS - 1), 1_u64.wrapping_shl(u32::from(port) & 63))
}

/// One space.
#[derive(Debug, Default)]
struct Space {
    /// By page: its place among `pages`, plus one.
    places: Option<Box<[u8; PAGES]>>,
    pages: Vec<Page>,
    /// The ports of each kind that rest, in the order in which they are free again: the first and the last record.
    resting: [Ends; 2],
    /// Nothing was found in it: free are those that were freed since, all of which are listed.
    exhausted: Option<Vec<u16>>,
}

impl Space {
    fn page(&self, port: u16) -> Option<&Page> {
        let place = self.places.as_ref()?.get(usize::from(port).wrapping_div(PAGE))?;
        self.pages.get(usize::from(*place).checked_sub(1)?)
    }

    fn page_mut(&mut self, port: u16) -> Option<&mut Page> {
        let places = self.places.get_or_insert_with(|| Box::new([0; PAGES]));
        let place = places.get_mut(usize::from(port).wrapping_div(PAGE))?;
        if *place == 0 {
            self.pages.push(Page::default());
            *place = u8::try_from(self.pages.len()).ok()?;
        }
        self.pages.get_mut(usize::from(*place).wrapping_sub(1))
    }

    fn is_used(&self, port: u16) -> bool {
        let (word, bit) = split(port);
        self.page(port).is_some_and(|page| {
            let has = |set: &[u64; WORDS]| set.get(word).is_some_and(|word| word & bit != 0);
            has(&page.taken) && !has(&page.resting)
        })
    }

    /// Makes a port free.
    fn free(&mut self, port: u16) {
        self.set(port, false, false);
        match &mut self.exhausted {
            Some(freed) if freed.len() < FREED => freed.push(port),
            Some(_) => self.exhausted = None,
            None => {}
        }
    }

    /// Makes a port in use, or resting.
    fn set(&mut self, port: u16, taken: bool, resting: bool) {
        let (word, bit) = split(port);
        let Some(page) = self.page_mut(port) else { return };
        for (set, on) in [(&mut page.taken, taken), (&mut page.resting, resting)] {
            if let Some(word) = set.get_mut(word) {
                *word = if on { *word | bit } else { *word & !bit };
            }
        }
    }

    /// A free port that `wanted` takes, which says the same of each port every time: the first at or after `start`, around the end if need
    /// be.
    fn next_free(&mut self, start: u16, wanted: impl Fn(u16) -> bool) -> Option<u16> {
        if let Some(freed) = &mut self.exhausted {
            let port = freed.iter().position(|port| wanted(*port)).map(|at| freed.swap_remove(at));
            // Those that nobody wants now, nobody will.
            if port.is_none() {
                freed.clear();
            }
            return port;
        }
        let found = self.search(start, wanted);
        if found.is_none() {
            self.exhausted = Some(Vec::with_capacity(FREED));
        }
        found
    }

    fn search(&mut self, start: u16, wanted: impl Fn(u16) -> bool) -> Option<u16> {
        let first = usize::from(FIRST).wrapping_shr(6);
        let words = 1_024_usize.wrapping_sub(first);
        let begin = usize::from(start.max(FIRST)).wrapping_shr(6).wrapping_sub(first);
        let (_, bit) = split(start);
        // The word of `start` twice: what lies before it comes last.
        for step in 0..=words {
            let index = begin.wrapping_add(step).checked_rem(words).unwrap_or(0).wrapping_add(first);
            let base = index.wrapping_shl(6) as u16;
            let (word, _) = split(base);
            let mut free = !self.page(base).map_or(0, |page| page.excluded(word));
            if step == 0 {
                free &= bit.wrapping_neg();
            }
            let asked = free;
            let mut found = None;
            while free != 0 && found.is_none() {
                let port = base.wrapping_add(free.trailing_zeros() as u16);
                if wanted(port) {
                    found = Some(port);
                } else {
                    free &= free.wrapping_sub(1);
                }
            }
            self.leave_out(base, asked & !free);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Of the 64 ports from `base` on these are unwanted.
    fn leave_out(&mut self, base: u16, ports: u64) {
        let (word, _) = split(base);
        if ports != 0
            && let Some(unwanted) = self.page_mut(base).and_then(|page| page.resting.get_mut(word))
        {
            *unwanted |= ports;
        }
    }
}

/// No record.
const NIL: u32 = u32::MAX;

/// The first and the last record of a list.
#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
}

impl Default for Ends {
    fn default() -> Ends {
        Ends { first: NIL, last: NIL }
    }
}

/// The neighbours of a record in a list.
#[derive(Clone, Copy, Debug)]
struct Links {
    before: u32,
    after: u32,
}

/// A resting port.
#[derive(Clone, Copy, Debug)]
struct Record {
    until: Micros,
    space: SpaceId,
    memory: Memory,
    port: u16,
    kind: Kind,
    /// Among all of its kind, which is the order in which they are free again.
    of_kind: Links,
    /// The same among those of its space.
    of_space: Links,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Brief,
    TimeWait,
}

/// Records of one chunk: what is allocated at once.
const CHUNK: usize = 1_024;

/// The list of a kind.
fn of(lists: &mut [Ends; 2], kind: Kind) -> &mut Ends {
    let [brief, time_wait] = lists;
    match kind {
        Kind::Brief => brief,
        Kind::TimeWait => time_wait,
    }
}

/// The records of resting ports.
#[derive(Debug, Default)]
struct Rests {
    chunks: Vec<Box<[Record]>>,
    /// Records that were used and are free, chained by `of_kind.after`.
    free: u32,
    /// Records of the chunks that were ever used.
    begun: u32,
    kinds: [Ends; 2],
    len: usize,
}

const UNUSED: Record = Record {
    until: Micros(0),
    space: SpaceId(0),
    memory: Memory { end: Seq(0), timestamp: None },
    port: 0,
    kind: Kind::Brief,
    of_kind: Links { before: NIL, after: NIL },
    of_space: Links { before: NIL, after: NIL },
};

impl Rests {
    fn get(&self, index: u32) -> Option<&Record> {
        let index = index as usize;
        self.chunks.get(index.wrapping_div(CHUNK))?.get(index % CHUNK)
    }

    fn get_mut(&mut self, index: u32) -> Option<&mut Record> {
        let index = index as usize;
        self.chunks.get_mut(index.wrapping_div(CHUNK))?.get_mut(index % CHUNK)
    }

    /// A record that nobody uses.
    fn reserve(&mut self) -> u32 {
        if let Some(record) = self.get(self.free) {
            let index = self.free;
            self.free = record.of_kind.after;
            return index;
        }
        let index = self.begun;
        if index as usize >= self.chunks.len().saturating_mul(CHUNK) {
            self.chunks.push(vec![UNUSED; CHUNK].into_boxed_slice());
        }
        self.begun = index.wrapping_add(1);
        index
    }

    /// Links a record behind the last one of a list; `links` picks which.
    fn append(&mut self, mut ends: Ends, index: u32, links: fn(&mut Record) -> &mut Links) -> Ends {
        if let Some(record) = self.get_mut(index) {
            *links(record) = Links { before: ends.last, after: NIL };
        }
        match self.get_mut(ends.last) {
            Some(last) => links(last).after = index,
            None => ends.first = index,
        }
        ends.last = index;
        ends
    }

    /// Takes a record out of a list.
    fn unlink(&mut self, mut ends: Ends, index: u32, links: fn(&mut Record) -> &mut Links) -> Ends {
        let Some(&mut Links { before, after }) = self.get_mut(index).map(links) else { return ends };
        match self.get_mut(before) {
            Some(record) => links(record).after = after,
            None => ends.first = after,
        }
        match self.get_mut(after) {
            Some(record) => links(record).before = before,
            None => ends.last = before,
        }
        ends
    }

    fn kind(&mut self, kind: Kind) -> &mut Ends {
        of(&mut self.kinds, kind)
    }

    /// The record of `kind` that has rested longest.
    fn oldest(&mut self, kind: Kind) -> Option<(u32, Record)> {
        let index = self.kind(kind).first;
        self.get(index).map(|record| (index, *record))
    }
}

/// The source ports of all spaces of one worker.
pub struct Ports {
    spaces: Vec<Space>,
    rests: Rests,
    random: SipHasher13,
    draws: u64,
    in_use: usize,
    reused: u64,
    cut_short: u64,
}

impl Ports {
    /// No space yet. `seed` is random; the order of allocation follows from it.
    #[must_use]
    pub fn new(seed: [u8; 16]) -> Ports {
        Ports {
            spaces: Vec::new(),
            rests: Rests { free: NIL, ..Rests::default() },
            random: SipHasher13::new_with_key(&seed),
            draws: 0,
            in_use: 0,
            reused: 0,
            cut_short: 0,
        }
    }

    /// Room for so many spaces.
    pub fn reserve(&mut self, spaces: usize) {
        self.spaces.reserve_exact(spaces);
    }

    /// A new space, all of whose ports are free.
    pub fn open(&mut self) -> SpaceId {
        self.spaces.push(Space::default());
        SpaceId(self.spaces.len().wrapping_sub(1) as u32)
    }

    /// A port of `space`, now in use: a free one that `wanted` takes, or else one in TIME-WAIT, if possible such that it accepts the SYN, as
    /// `fits` says. None when there is none. `wanted` says the same of each port of a space every time.
    #[must_use = "a port that nobody releases is lost"]
    pub fn allocate(
        &mut self,
        space: SpaceId,
        now: Micros,
        wanted: impl Fn(u16) -> bool,
        fits: impl Fn(u16, &Memory) -> Fit,
    ) -> Option<Allocated> {
        self.reap(now);
        self.reap_space(space, now);
        self.draws = self.draws.wrapping_add(1);
        let draw = self.random.hash(&self.draws.to_le_bytes()) as u32;
        let start = (u64::from(draw).wrapping_mul(u64::from(COUNT)) >> 32) as u16;
        let this = self.spaces.get_mut(space.0 as usize)?;
        if let Some(port) = this.next_free(start.wrapping_add(FIRST), wanted) {
            this.set(port, true, false);
            self.in_use = self.in_use.wrapping_add(1);
            return Some(Allocated { port, remembered: None });
        }
        let (index, fit) = self.fitting(space, fits)?;
        let remembered = self.rests.get(index).map(|record| record.memory).filter(|_| fit == Fit::No);
        let port = self.wake(index)?;
        self.spaces.get_mut(space.0 as usize)?.set(port, true, false);
        self.in_use = self.in_use.wrapping_add(1);
        self.reused = self.reused.wrapping_add(1);
        Some(Allocated { port, remembered })
    }

    /// Of the ports of `space` that have rested longest, the record of one that fits best.
    fn fitting(&self, space: SpaceId, fits: impl Fn(u16, &Memory) -> Fit) -> Option<(u32, Fit)> {
        let [_, time_wait] = self.spaces.get(space.0 as usize)?.resting;
        let mut index = time_wait.first;
        let mut best: Option<(u32, Fit)> = None;
        for _ in 0..FITS {
            let Some(record) = self.rests.get(index) else { break };
            let fit = fits(record.port, &record.memory);
            if best.is_none_or(|(_, so_far)| fit > so_far) {
                best = Some((index, fit));
            }
            if fit == Fit::Number {
                break;
            }
            index = record.of_space.after;
        }
        best
    }

    /// Gives back a port that was allocated. Ports not in use are left as they are.
    pub fn release(&mut self, space: SpaceId, port: u16, rest: Rest, now: Micros) {
        let Some(this) = self.spaces.get_mut(space.0 as usize).filter(|this| this.is_used(port)) else { return };
        self.in_use = self.in_use.wrapping_sub(1);
        let (kind, pause, memory) = match rest {
            Rest::None => return this.free(port),
            Rest::Brief => (Kind::Brief, BRIEF_REST, Memory { end: Seq(0), timestamp: None }),
            Rest::TimeWait(memory) => (Kind::TimeWait, TIME_WAIT, memory),
        };
        this.set(port, true, true);
        if self.rests.len >= RESTS_MAX {
            self.cut_short(kind);
        }
        let index = self.rests.reserve();
        if let Some(record) = self.rests.get_mut(index) {
            *record = Record { until: now.after(pause), space, memory, port, kind, ..UNUSED };
        }
        self.rests.len = self.rests.len.wrapping_add(1);
        *self.rests.kind(kind) = {
            let ends = *self.rests.kind(kind);
            self.rests.append(ends, index, |record| &mut record.of_kind)
        };
        if let Some(this) = self.spaces.get_mut(space.0 as usize) {
            let ends = of(&mut this.resting, kind);
            *ends = self.rests.append(*ends, index, |record| &mut record.of_space);
        }
    }

    /// Too many rest: the one that has rested longest is free, one of `kind` if there is any.
    fn cut_short(&mut self, kind: Kind) {
        let other = if kind == Kind::Brief { Kind::TimeWait } else { Kind::Brief };
        if let Some((index, record)) = self.rests.oldest(kind).or_else(|| self.rests.oldest(other)) {
            self.wake(index);
            if let Some(space) = self.spaces.get_mut(record.space.0 as usize) {
                space.free(record.port);
            }
            self.cut_short = self.cut_short.wrapping_add(1);
        }
    }

    /// Ends a port's rest; the port. What it is from then on is the caller's to say.
    fn wake(&mut self, index: u32) -> Option<u16> {
        let Record { space, port, kind, .. } = *self.rests.get(index)?;
        let ends = *self.rests.kind(kind);
        *self.rests.kind(kind) = self.rests.unlink(ends, index, |record| &mut record.of_kind);
        if let Some(this) = self.spaces.get_mut(space.0 as usize) {
            let ends = of(&mut this.resting, kind);
            *ends = self.rests.unlink(*ends, index, |record| &mut record.of_space);
        }
        let free = self.rests.free;
        if let Some(record) = self.rests.get_mut(index) {
            record.of_kind.after = free;
        }
        self.rests.free = index;
        self.rests.len = self.rests.len.wrapping_sub(1);
        Some(port)
    }

    /// Lets ports go that have rested long enough, [`REAP`] of each kind at most. [`Ports::allocate`] does so too; this is for times when
    /// nobody allocates.
    pub fn reap(&mut self, now: Micros) {
        for kind in [Kind::Brief, Kind::TimeWait] {
            for _ in 0..REAP {
                let Some((index, record)) = self.rests.oldest(kind).filter(|(_, record)| record.until <= now) else {
                    break;
                };
                self.wake(index);
                if let Some(space) = self.spaces.get_mut(record.space.0 as usize) {
                    space.free(record.port);
                }
            }
        }
    }

    /// The same for the ports of one space, however many others have rested longer.
    fn reap_space(&mut self, space: SpaceId, now: Micros) {
        for kind in [Kind::Brief, Kind::TimeWait] {
            for _ in 0..REAP {
                let Some(this) = self.spaces.get_mut(space.0 as usize) else { return };
                let index = of(&mut this.resting, kind).first;
                if self.rests.get(index).is_none_or(|record| record.until > now) {
                    break;
                }
                let Some(port) = self.wake(index) else { break };
                if let Some(this) = self.spaces.get_mut(space.0 as usize) {
                    this.free(port);
                }
            }
        }
    }

    /// Ports in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// Ports released and not yet free. A port that has rested enough is counted until an allocation frees it.
    #[must_use]
    pub fn resting(&self) -> usize {
        self.rests.len
    }

    /// Ports that were taken out of TIME-WAIT.
    #[must_use]
    pub fn reused(&self) -> u64 {
        self.reused
    }

    /// Rests that ended early for want of room.
    #[must_use]
    pub fn rests_cut_short(&self) -> u64 {
        self.cut_short
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    const LONG: Rest = Rest::TimeWait(Memory { end: Seq(0), timestamp: None });

    fn never(_: u16, _: &Memory) -> Fit {
        Fit::No
    }

    fn port(ports: &mut Ports, space: SpaceId, now: Micros) -> Option<u16> {
        ports.allocate(space, now, |_| true, never).map(|allocated| allocated.port)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate { space: u32, isn: u32 },
        Release { n: usize, rest: Option<Option<u32>> },
        Wait(u64),
        ReleaseStray(u32, u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u32..3, any::<u32>()).prop_map(|(space, isn)| Step::Allocate { space, isn }),
            3 => (any::<usize>(), prop::option::of(prop::option::of(any::<u32>())))
                .prop_map(|(n, rest)| Step::Release { n, rest }),
            1 => (0_u64..40_000_000).prop_map(Step::Wait),
            1 => (0_u32..3, any::<u16>()).prop_map(|(space, port)| Step::ReleaseStray(space, port)),
        ]
    }

    /// A port of a space, since when it rests, and what its upstream remembers.
    type Resting = HashMap<(u32, u16), (Micros, Option<u32>)>;

    proptest! {
        #[test]
        fn no_port_is_handed_out_that_is_in_use_or_whose_rest_does_not_fit(
            seed: [u8; 16],
            modulus in 1_u16..2_000,
            steps in prop::collection::vec(step(), 1..400),
        ) {
            let wanted = |port: u16| port % modulus == modulus / 2 && port < 8_192;
            let total = (FIRST..=u16::MAX).filter(|port| wanted(*port)).count();
            let mut ports = Ports::new(seed);
            for id in 0..3 {
                prop_assert_eq!(ports.open(), SpaceId(id));
            }
            let mut now = Micros(0);
            let mut used: Vec<(u32, u16)> = Vec::new();
            let mut resting = Resting::new();
            for step in steps {
                match step {
                    Step::Allocate { space, isn } => {
                        let fits = |_: u16, memory: &Memory| memory.fits(Seq(isn), None);
                        // What has rested enough is freed a few at a time.
                        for _ in 0..100 {
                            ports.reap(now);
                        }
                        resting.retain(|_, (until, _)| *until > now);
                        let allocated = ports.allocate(SpaceId(space), now, wanted, fits);
                        let port = allocated.map(|allocated| allocated.port);
                        let busy = used.iter().filter(|(s, _)| *s == space).count()
                            + resting.keys().filter(|(s, _)| *s == space).count();
                        if busy < total {
                            prop_assert!(port.is_some_and(|port| !resting.contains_key(&(space, port))));
                        }
                        if let Some(port) = port {
                            prop_assert!(wanted(port) && port >= FIRST);
                            prop_assert!(!used.contains(&(space, port)));
                            if let Some((_, memory)) = resting.remove(&(space, port)) {
                                prop_assert_eq!(busy, total);
                                let end = memory.map(Seq);
                                prop_assert!(end.is_some(), "a brief rest was cut short");
                                let unfit = end.filter(|end| !end.precedes(Seq(isn)));
                                let remembered = allocated.and_then(|allocated| allocated.remembered);
                                prop_assert_eq!(remembered.map(|memory| memory.end), unfit);
                            }
                            used.push((space, port));
                        }
                    }
                    Step::Release { n, rest } if !used.is_empty() => {
                        let (space, port) = used.swap_remove(n % used.len());
                        let (rest, until) = match rest {
                            None => (Rest::None, None),
                            Some(None) => (Rest::Brief, Some(now.after(BRIEF_REST))),
                            Some(Some(end)) => {
                                (Rest::TimeWait(Memory { end: Seq(end), timestamp: None }), Some(now.after(TIME_WAIT)))
                            }
                        };
                        ports.release(SpaceId(space), port, rest, now);
                        if let Some(until) = until {
                            let end = match rest {
                                Rest::TimeWait(memory) => Some(memory.end.0),
                                _ => None,
                            };
                            resting.insert((space, port), (until, end));
                        }
                    }
                    Step::Release { .. } => {}
                    Step::Wait(micros) => now = Micros(now.0 + micros),
                    Step::ReleaseStray(space, port) => {
                        if !used.contains(&(space, port)) {
                            ports.release(SpaceId(space), port, Rest::None, now);
                        }
                    }
                }
                prop_assert_eq!(ports.in_use(), used.len());
                prop_assert!(ports.resting() >= resting.values().filter(|(until, _)| *until > now).count());
            }
        }

        #[test]
        fn a_time_wait_accepts_what_linux_says_it_does(end: u32, isn: u32, old: Option<u32>, new: Option<u32>) {
            let fit = Memory { end: Seq(end), timestamp: old }.fits(Seq(isn), new);
            let after = (end.wrapping_sub(isn) as i32) < 0;
            // net/ipv4/tcp_minisocks.c, tcp_timewait_state_process().
            let rejected = matches!((old, new), (Some(old), Some(new)) if (old.wrapping_sub(new) as i32) > 0);
            let newer = matches!((old, new), (Some(old), Some(new)) if (old.wrapping_sub(new) as i32) < 0);
            prop_assert_eq!(fit != Fit::No, !rejected && (after || newer));
            prop_assert_eq!(fit == Fit::Number, !rejected && after);
        }
    }

    #[test]
    fn every_port_is_handed_out_once_then_none() {
        let mut ports = Ports::new([7; 16]);
        let space = ports.open();
        let all: HashSet<u16> = std::iter::from_fn(|| port(&mut ports, space, Micros(0))).collect();
        assert_eq!(all.len() as u32, COUNT);
        assert!(all.iter().all(|port| *port >= FIRST));
        assert_eq!(ports.in_use(), all.len());
        assert_eq!(port(&mut ports, space, Micros(0)), None);
        ports.release(space, 40_000, Rest::None, Micros(0));
        assert_eq!(port(&mut ports, space, Micros(0)), Some(40_000));
        let other = ports.open();
        assert!(port(&mut ports, other, Micros(0)).is_some());
    }

    #[test]
    fn a_released_port_rests_before_it_is_used_again() {
        let mut ports = Ports::new([7; 16]);
        let space = ports.open();
        let only = |port| port == 2_000;
        let expected = |remembered| Some(Allocated { port: 2_000, remembered });
        let memory = Memory { end: Seq(0), timestamp: None };
        for (rest, pause, early) in [(Rest::Brief, 1_000_000, None), (LONG, 60_000_000, expected(Some(memory)))] {
            assert_eq!(ports.allocate(space, Micros(0), only, never), expected(None));
            ports.release(space, 2_000, rest, Micros(10));
            // A second time is none.
            ports.release(space, 2_000, Rest::None, Micros(10));
            assert_eq!((ports.in_use(), ports.resting()), (0, 1));
            assert_eq!(ports.allocate(space, Micros(9 + pause), only, never), early);
            if early.is_some() {
                ports.release(space, 2_000, rest, Micros(10));
            }
            assert_eq!(ports.allocate(space, Micros(10 + pause), only, never), expected(None));
            ports.release(space, 2_000, Rest::None, Micros(10));
        }
    }

    #[test]
    fn a_port_that_has_rested_is_found_at_once_though_those_of_others_have_rested_longer() {
        for rest in [Rest::Brief, LONG] {
            let mut ports = Ports::new([7; 16]);
            let (others, space) = (ports.open(), ports.open());
            let taken: Vec<u16> = (0..100).map_while(|_| port(&mut ports, others, Micros(0))).collect();
            let only = |port| port == 2_000;
            assert!(ports.allocate(space, Micros(0), only, never).is_some());
            for port in taken {
                ports.release(others, port, rest, Micros(0));
            }
            ports.release(space, 2_000, rest, Micros(1));
            let later = Micros(60_000_001);
            assert_eq!(
                ports.allocate(space, later, only, never),
                Some(Allocated { port: 2_000, remembered: None }),
                "{rest:?}"
            );
        }
    }

    /// As one of eight workers has them.
    fn is_an_eighth(port: u16) -> bool {
        port.wrapping_mul(40_503) >> 13 == 3
    }

    #[test]
    fn whether_a_port_is_another_workers_is_asked_once_and_a_bounded_number_of_times_a_turn() {
        use std::cell::Cell;

        let mut ports = Ports::new([7; 16]);
        let asked = Cell::new(0_u32);
        let wanted = |port: u16| {
            asked.set(asked.get() + 1);
            is_an_eighth(port)
        };
        // So many leases are tried in a turn: from a service's sources, to its upstreams.
        let spaces: Vec<SpaceId> = (0..16).map(|_| ports.open()).collect();
        let ours = (FIRST..=u16::MAX).filter(|port| is_an_eighth(*port)).count();
        let mut held: Vec<Vec<u16>> = vec![Vec::new(); spaces.len()];
        let (mut longest, mut all) = (0, 0);
        for turn in 0..=ours as u64 {
            asked.set(0);
            for (space, held) in spaces.iter().zip(&mut held) {
                held.extend(ports.allocate(*space, Micros(turn), wanted, never).map(|allocated| allocated.port));
            }
            (longest, all) = (longest.max(asked.get()), all + asked.get());
        }
        assert!(held.iter().all(|held| held.len() == ours), "every one of ours is found");
        assert!(all <= spaces.len() as u32 * COUNT, "{all} times");
        assert!(longest < 16 * 512, "{longest} times in a turn");
        // More come back than are remembered: no more is asked than which of them are ours, and when all are taken again, nothing.
        for (space, held) in spaces.iter().zip(&held) {
            for port in held.iter().take(2 * FREED) {
                ports.release(*space, *port, Rest::None, Micros(0));
            }
        }
        asked.set(0);
        for _ in 0..2 * FREED + 10 {
            for space in &spaces {
                let _ = ports.allocate(*space, Micros(0), wanted, never);
            }
        }
        assert_eq!(ports.in_use(), spaces.len() * ours);
        assert_eq!(asked.get() as usize, spaces.len() * 2 * FREED);
    }

    #[test]
    fn order_depends_on_the_seed() {
        let draws = |seed| {
            let mut ports = Ports::new([seed; 16]);
            let space = ports.open();
            (0..8).map_while(|_| port(&mut ports, space, Micros(0))).collect::<Vec<u16>>()
        };
        assert_ne!(draws(1), draws(2));
        let mut sorted = draws(1);
        sorted.sort_unstable();
        assert_ne!(sorted, draws(1));
    }

    /// One host had every port of a service rest: 1,075 connections a second, each closed by the upstream first.
    #[test]
    fn where_all_ports_rest_every_syn_finds_one_that_it_fits() {
        let mut ports = Ports::new([7; 16]);
        let space = ports.open();
        let mut random = SipHasher13::new_with_keys(1, 2);
        let mut draw = || {
            random = SipHasher13::new_with_keys(random.hash(b"next"), 3);
            random.hash(b"now") as u32
        };
        let mut held = Vec::new();
        while let Some(port) = port(&mut ports, space, Micros(0)) {
            held.push(port);
        }
        for port in held {
            let memory = Memory { end: Seq(draw()), timestamp: Some(draw()) };
            ports.release(space, port, Rest::TimeWait(memory), Micros(0));
        }
        assert_eq!(ports.resting() as u32, COUNT);
        for _ in 0..10_000 {
            let (isn, stamp) = (Seq(draw()), Some(draw()));
            let port = ports.allocate(space, Micros(1), |_| true, |_, memory| memory.fits(isn, stamp));
            let Some(Allocated { port, remembered: None }) = port else { panic!("one in two fits") };
            ports.release(space, port, Rest::TimeWait(Memory { end: isn.plus(9), timestamp: stamp }), Micros(1));
        }
        assert_eq!(ports.reused(), 10_000);
    }

    #[test]
    fn more_rests_than_there_is_room_for_end_the_oldest() {
        let mut ports = Ports::new([7; 16]);
        let spaces: Vec<SpaceId> = (0..18).map(|_| ports.open()).collect();
        for (at, space) in spaces.iter().enumerate() {
            let now = Micros(at as u64);
            let taken: Vec<u16> = std::iter::from_fn(|| port(&mut ports, *space, now)).collect();
            for port in taken {
                ports.release(*space, port, LONG, now);
            }
        }
        assert_eq!(ports.resting(), RESTS_MAX);
        assert_eq!(ports.rests_cut_short(), 18 * u64::from(COUNT) - RESTS_MAX as u64);
        // The first space's are free, the last one's rest.
        let remembered = |ports: &mut Ports, space| ports.allocate(space, Micros(99), |_| true, never)?.remembered;
        assert_eq!(remembered(&mut ports, spaces[0]), None);
        assert!(remembered(&mut ports, spaces[17]).is_some());
    }
}
