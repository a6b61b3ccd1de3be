//! SYN-ACKs that no ACK has answered yet: a fixed table of them, so that a few can be sent again while memory is cheap.
//!
//! The handshake's last ACK can be lost. A client whose server speaks first then waits for ever: it holds a connection
//! that nobody else knows of. So, in peace, a SYN-ACK is repeated 1, 3, 7, 15 and 31 s after the SYN, as kernels do
//! (RFC 9293 section 3.8.1, RFC 6298 section 5). When, and to whom, is [`crate::stack`]'s matter.
//!
//! Each pause is an eighth longer than that, by which Linux's timers may be late. A client whose SYN-ACK was lost repeats its SYN at those times: its
//! SYN comes first and is answered, and its round trip is measured from there. A repeat of ours that came first would
//! tell it that a round trip takes a second, and its every retransmission would then wait for three.
//!
//! A record is one cache line. It is found through the flow's keyed hash in a set of eight; a newcomer to a full set
//! takes the place of a record that the ceiling of repeats withheld, else of the one that was repeated most often, of
//! several the one that is due first. It waits in the
//! list of its stage: all records of a stage wait equally long, so each list is in the order of its ends, and nothing
//! is ever searched or sorted.
//!
//! Invariants:
//! - The memory is allocated once. A record admits nobody: the cookie does.
//! - One record for a 4-tuple: a new SYN replaces it.

use std::cmp::Reverse;
use std::ops::{Deref, DerefMut};

use sluice_filters::addr::Addr;
use sluice_filters::units::{Micros, PortId, Seq};
use sluice_filters::{Segment, TcpOptions};

use crate::splice::End;

/// Records of one worker.
pub(crate) const RECORDS: usize = 1 << 14;
/// Records that one place of the hash has room for.
const WAYS: usize = 8;
const SETS: usize = RECORDS / WAYS;
/// How often a SYN-ACK is repeated at most.
pub(crate) const REPEATS: usize = 5;
const LAST_STAGE: u8 = REPEATS as u8 - 1;
/// No record.
const NONE: u16 = u16::MAX;
/// The stage of an empty place.
const EMPTY: u8 = u8::MAX;
/// No window scale.
const SCALE_NONE: u8 = 15;

/// One SYN-ACK: what it takes to send the same again. The port implies the VLAN.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Record {
    client: Addr,
    /// Where in the list of the places that services listen at.
    listen: u32,
    isn: Seq,
    cookie: Seq,
    /// The client's timestamp, which the SYN-ACK echoes.
    echo: u32,
    /// When it is repeated next, milliseconds; wraps.
    due: u32,
    client_port: u16,
    mss: u16,
    window: u16,
    /// Its neighbours in the list of its stage.
    before: u16,
    behind: u16,
    mac: [u8; 6],
    port: PortId,
    /// [`SCALE_NONE`] or the window scale.
    wscale: u8,
    sack: bool,
    timestamps: bool,
    /// How often it was repeated.
    stage: u8,
    /// It was due, and the ceiling of repeats withheld it.
    withheld: bool,
}

const _: () = assert!(size_of::<Record>() == 64 && size_of::<Slot>() == 64);

const NOTHING: Record = Record {
    client: Addr { hi: 0, lo: 0 },
    listen: 0,
    isn: Seq(0),
    cookie: Seq(0),
    echo: 0,
    due: 0,
    client_port: 0,
    mss: 0,
    window: 0,
    before: NONE,
    behind: NONE,
    mac: [0; 6],
    port: PortId(0),
    wscale: SCALE_NONE,
    sack: false,
    timestamps: false,
    stage: EMPTY,
    withheld: false,
};

impl Record {
    /// Of the SYN-ACK in `frame`, which answers `segment`, a SYN to the place `listen` that came by `port`. Everything
    /// is read from the answer itself, so that what is repeated is what was said.
    #[must_use]
    pub(crate) fn of(frame: &[u8], segment: &Segment, listen: u32, port: PortId) -> Option<Record> {
        let tcp = frame.get(segment.l4()..)?;
        let &[_, _, _, _, s, e, q, n, _, _, _, _, words, _, w, x, _, _, _, _] = tcp.first_chunk::<20>()?;
        let options = TcpOptions::read(tcp.get(20..usize::from(words >> 4).wrapping_mul(4))?, 0);
        Some(Record {
            client: segment.key.src,
            listen,
            isn: segment.seq,
            cookie: Seq(u32::from_be_bytes([s, e, q, n])),
            echo: options.timestamp.map_or(0, |(_, echo)| echo),
            client_port: segment.key.src_port,
            mss: options.mss?,
            window: u16::from_be_bytes([w, x]),
            mac: *frame.first_chunk()?,
            port,
            wscale: options.wscale.unwrap_or(SCALE_NONE),
            sack: options.sack_permitted,
            timestamps: options.timestamp.is_some(),
            ..NOTHING
        })
    }

    /// The client's end.
    pub(crate) fn client(&self) -> End {
        End { addr: self.client, port: self.client_port }
    }

    /// Where in the list of the places that services listen at.
    pub(crate) fn listen(&self) -> u32 {
        self.listen
    }

    /// The client's first sequence number.
    pub(crate) fn isn(&self) -> Seq {
        self.isn
    }

    /// Ours.
    pub(crate) fn cookie(&self) -> Seq {
        self.cookie
    }

    /// The port, and the Ethernet address, that the SYN came from.
    pub(crate) fn origin(&self) -> (PortId, [u8; 6]) {
        (self.port, self.mac)
    }

    /// The MSS and the window that were promised.
    pub(crate) fn promised(&self) -> (u16, u16) {
        (self.mss, self.window)
    }

    /// The window scale that was promised.
    pub(crate) fn wscale(&self) -> Option<u8> {
        (self.wscale != SCALE_NONE).then_some(self.wscale)
    }

    /// Whether SACK was permitted.
    pub(crate) fn sack(&self) -> bool {
        self.sack
    }

    /// The timestamp that the SYN-ACK echoes, if it has timestamps.
    pub(crate) fn echo(&self) -> Option<u32> {
        self.timestamps.then_some(self.echo)
    }

    fn is(&self, client: End, listen: u32) -> bool {
        self.stage != EMPTY && self.client == client.addr && self.client_port == client.port && self.listen == listen
    }
}

/// A record in the table: one cache line. (In a letter between workers it needs no line of its own.)
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Slot(Record);

impl Deref for Slot {
    type Target = Record;
    fn deref(&self) -> &Record {
        &self.0
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut Record {
        &mut self.0
    }
}

/// A list of records that wait equally long.
#[derive(Clone, Copy)]
struct List {
    first: u16,
    last: u16,
}

/// The records. One worker's.
pub(crate) struct Table {
    records: Box<[Slot]>,
    /// By stage.
    lists: [List; REPEATS],
    len: usize,
    displaced: u64,
}

/// Milliseconds, as records count them.
fn coarse(now: Micros) -> u32 {
    now.0.div_euclid(1_000) as u32
}

/// How long a record waits for its next repeat: 1, 2, 4, 8 and 16 s, and an eighth more.
fn pause(stage: u8) -> u32 {
    1_125_u32.checked_shl(u32::from(stage)).unwrap_or(u32::MAX)
}

impl Table {
    /// Without records; `used` says whether there will be any, and memory for them.
    pub(crate) fn new(used: bool) -> Table {
        let records = if used { RECORDS } else { 0 };
        Table {
            records: vec![Slot(NOTHING); records].into_boxed_slice(),
            lists: [List { first: NONE, last: NONE }; REPEATS],
            len: 0,
            displaced: 0,
        }
    }

    /// Records kept.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Records that gave way to others.
    pub(crate) fn displaced(&self) -> u64 {
        self.displaced
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.records.fill(Slot(NOTHING));
        self.lists = [List { first: NONE, last: NONE }; REPEATS];
        self.len = 0;
    }

    /// Keeps a record of a flow with this keyed hash, in place of an older one of the same flow. The answer to a SYN that was sent
    /// again counts as a repeat.
    pub(crate) fn keep(&mut self, hash: u64, record: Record, now: Micros) {
        let older = self.find(hash, record.client(), record.listen).filter(|older| older.isn == record.isn);
        let stage = older.map_or(0, |older| {
            // A copy that the network made comes at once.
            let left = older.due.wrapping_sub(coarse(now));
            older.stage.saturating_add(u8::from(left < pause(older.stage) / 2)).min(LAST_STAGE)
        });
        self.put(hash, Record { stage, ..record }, now);
    }

    /// Keeps a record that was repeated, for its next repeat; lets it go after the last one.
    pub(crate) fn keep_on(&mut self, hash: u64, record: Record, now: Micros) {
        let stage = record.stage.saturating_add(1);
        if usize::from(stage) < REPEATS {
            self.put(hash, Record { stage, withheld: false, ..record }, now);
        }
    }

    /// Keeps a record that was due and could not be repeated: it is due again after another such pause. It gives way first, for it may be one
    /// of many in a victim's name.
    pub(crate) fn keep_waiting(&mut self, hash: u64, record: Record, now: Micros) {
        self.put(hash, Record { withheld: true, ..record }, now);
    }

    fn put(&mut self, hash: u64, record: Record, now: Micros) {
        let first = place(hash);
        let Some(set) = self.records.get(first..first.wrapping_add(WAYS)) else { return };
        // The same flow's record, else an empty place, else one that was withheld, else the one that was repeated most often.
        let rank = |held: &Slot| {
            if held.is(record.client(), record.listen) {
                (3, 0, Reverse(0))
            } else if held.stage == EMPTY {
                (2, 0, Reverse(0))
            } else {
                (u8::from(held.withheld), held.stage, Reverse(held.due.wrapping_sub(coarse(now)) as i32))
            }
        };
        let Some((way, held)) = set.iter().enumerate().max_by_key(|(_, held)| rank(held)) else { return };
        let at = first.wrapping_add(way) as u16;
        if held.stage != EMPTY {
            if !held.is(record.client(), record.listen) {
                self.displaced = self.displaced.wrapping_add(1);
            }
            self.remove(at);
        }
        let Some(list) = self.lists.get_mut(usize::from(record.stage)) else { return };
        let before = std::mem::replace(&mut list.last, at);
        if before == NONE {
            list.first = at;
        }
        let due = coarse(now).wrapping_add(pause(record.stage));
        if let Some(last) = self.records.get_mut(usize::from(before)) {
            last.behind = at;
        }
        if let Some(free) = self.records.get_mut(usize::from(at)) {
            **free = Record { due, before, behind: NONE, ..record };
            self.len = self.len.saturating_add(1);
        }
    }

    /// The record of the flow from `client` to the place `listen`, whose keyed hash is `hash`.
    pub(crate) fn find(&self, hash: u64, client: End, listen: u32) -> Option<&Record> {
        let first = place(hash);
        self.records
            .get(first..first.wrapping_add(WAYS))?
            .iter()
            .map(|slot| &slot.0)
            .find(|record| record.is(client, listen))
    }

    /// Forgets the flow's record; whether there was one.
    pub(crate) fn forget(&mut self, hash: u64, client: End, listen: u32) -> bool {
        let first = place(hash);
        let Some(set) = self.records.get(first..first.wrapping_add(WAYS)) else { return false };
        let Some(way) = set.iter().position(|record| record.is(client, listen)) else { return false };
        self.remove(first.wrapping_add(way) as u16);
        true
    }

    /// Takes out a record that is due.
    pub(crate) fn take_due(&mut self, now: Micros) -> Option<Record> {
        let now = coarse(now);
        for list in self.lists {
            if let Some(&Slot(record)) = self.records.get(usize::from(list.first))
                && now.wrapping_sub(record.due) as i32 >= 0
            {
                self.remove(list.first);
                return Some(record);
            }
        }
        None
    }

    /// When the next record is due at the earliest; `now` for one that already is. Never, without records.
    pub(crate) fn next_due(&self, now: Micros) -> Micros {
        let firsts = self.lists.iter().filter_map(|list| self.records.get(usize::from(list.first)));
        let waits = firsts.map(|record| record.due.wrapping_sub(coarse(now)) as i32);
        let wait = waits.min().map(|ms| u64::try_from(ms).unwrap_or(0));
        // Records count whole milliseconds.
        wait.map_or(Micros(u64::MAX), |ms| Micros(now.0.saturating_add(ms.saturating_mul(1_000))))
    }

    fn remove(&mut self, at: u16) {
        let Some(record) = self.records.get_mut(usize::from(at)) else { return };
        let Record { before, behind, stage, .. } = std::mem::replace(&mut **record, NOTHING);
        self.len = self.len.saturating_sub(1);
        match self.records.get_mut(usize::from(before)) {
            Some(record) => record.behind = behind,
            None => {
                if let Some(list) = self.lists.get_mut(usize::from(stage)) {
                    list.first = behind;
                }
            }
        }
        match self.records.get_mut(usize::from(behind)) {
            Some(record) => record.before = before,
            None => {
                if let Some(list) = self.lists.get_mut(usize::from(stage)) {
                    list.last = before;
                }
            }
        }
    }
}

/// The first of the places that a flow's record can have.
fn place(hash: u64) -> usize {
    (hash as usize & SETS.wrapping_sub(1)).wrapping_mul(WAYS)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn record(n: u32) -> Record {
        Record { client: Addr::v4(n), client_port: 1, cookie: Seq(n), ..NOTHING }
    }

    fn hash(n: u32) -> u64 {
        let word = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word ^ word >> 29
    }

    fn client(n: u32) -> End {
        End { addr: Addr::v4(n), port: 1 }
    }

    fn second(n: u64) -> Micros {
        Micros(n * 1_000_000)
    }

    #[test]
    fn a_record_is_due_after_1_3_7_15_and_31_seconds_and_then_gone() {
        let mut table = Table::new(true);
        table.keep(hash(7), record(7), second(10));
        for after in [1_125, 3_375, 7_875, 16_875, 34_875] {
            let at = Micros(second(10).0 + after * 1_000);
            let just_before = Micros(at.0 - 1_000);
            assert!(table.take_due(just_before).is_none(), "{after}");
            assert_eq!(table.next_due(just_before), at);
            let due = table.take_due(at).expect("due");
            assert_eq!(due.cookie(), Seq(7));
            table.keep_on(hash(7), due, at);
        }
        assert_eq!((table.len(), table.next_due(second(50))), (0, Micros(u64::MAX)));
    }

    #[test]
    fn a_new_syn_replaces_its_record() {
        let mut table = Table::new(true);
        table.keep(hash(7), record(7), second(0));
        table.keep(hash(7), Record { isn: Seq(1), cookie: Seq(8), ..record(7) }, second(1));
        assert_eq!((table.len(), table.displaced()), (1, 0));
        assert!(table.take_due(second(2)).is_none(), "its time begins anew");
        assert_eq!(table.take_due(Micros(2_125_000)).map(|record| record.cookie()), Some(Seq(8)));
    }

    /// A client repeats its SYN after 1, 3 and 7 s: ours come after them, and never first.
    #[test]
    fn the_answer_to_a_syn_that_was_sent_again_counts_as_a_repeat() {
        let mut table = Table::new(true);
        for (at, due) in [(0, 1_125), (1_000, 3_250), (3_000, 7_500), (7_000, 16_000)] {
            // Of the first SYN the network makes a copy.
            for at in [at, at + 3 * u64::from(at == 0)] {
                table.keep(hash(7), record(7), Micros(at * 1_000));
            }
            let due = due + 3 * u64::from(at == 0);
            assert_eq!(table.next_due(Micros(at * 1_000)).0, due * 1_000);
        }
        for n in 0..20 {
            table.keep(hash(7), record(7), second(15 + 16 * n));
            assert_eq!(table.len(), 1);
        }
    }

    #[test]
    fn another_port_or_place_is_another_flow() {
        let mut table = Table::new(true);
        table.keep(hash(7), record(7), second(0));
        assert!(!table.forget(hash(7), End { port: 2, ..client(7) }, 0));
        assert!(!table.forget(hash(7), client(7), 1));
        assert!(table.forget(hash(7), client(7), 0));
        assert!(!table.forget(hash(7), client(7), 0), "once");
    }

    #[test]
    fn a_newcomer_to_a_full_set_takes_the_place_of_the_one_repeated_most() {
        let mut table = Table::new(true);
        // All in one set; the fifth has been repeated.
        for n in (0..8).filter(|n| *n != 4) {
            table.keep(0, record(n), Micros(u64::from(n) * 1_000));
        }
        table.keep_on(0, Record { stage: 0, ..record(4) }, second(0));
        table.keep(0, record(8), second(0));
        assert_eq!((table.len(), table.displaced()), (8, 1));
        assert!(table.find(0, client(4), 0).is_none() && table.find(0, client(8), 0).is_some());
        // None repeated: the one that is due first.
        table.keep(0, record(9), second(0));
        assert!(table.find(0, client(9), 0).is_some() && table.find(0, client(1), 0).is_some());
        assert_eq!((table.len(), table.displaced()), (8, 2));
    }

    #[test]
    fn a_flood_fills_the_table_and_no_more() {
        let mut table = Table::new(true);
        for n in 0..200_000 {
            table.keep(hash(n), record(n), Micros(u64::from(n)));
        }
        assert!(table.len() <= RECORDS && table.len() > RECORDS * 9 / 10, "{}", table.len());
        assert_eq!(table.displaced() + table.len() as u64, 200_000);
        table.clear();
        assert_eq!((table.len(), table.next_due(second(9))), (0, Micros(u64::MAX)));
    }

    /// Two thousand SYNs a second, of which every 500th is an honest one; what becomes of a forged one that is due is `forged`'s matter.
    /// How many honest ones were repeated for the first time, the second, ..., of 80 that came once the table was as full as it gets.
    fn honest_repeats_in_a_flood(forged: impl Fn(&mut Table, u64, Record, Micros)) -> [u32; REPEATS] {
        let mut table = Table::new(true);
        let mut came = [0; REPEATS];
        for n in 0..80_000_u32 {
            let now = Micros(u64::from(n) * 500);
            table.keep(hash(n), record(n), now);
            while let Some(due) = table.take_due(now) {
                let n = due.client.v4_bits();
                if n % 500 != 0 {
                    forged(&mut table, hash(n), due, now);
                    continue;
                }
                if (20_000..60_000).contains(&n) {
                    came[usize::from(due.stage)] += 1;
                }
                table.keep_on(hash(n), due, now);
            }
        }
        came
    }

    #[test]
    fn two_thousand_forged_syns_a_second_leave_an_honest_one_its_first_repeats() {
        let came @ [first, second, third, ..] = honest_repeats_in_a_flood(Table::keep_on);
        assert!(first == 80 && second >= 68 && third >= 24, "{came:?} of 80");
    }

    #[test]
    fn two_thousand_forged_syns_a_second_in_one_victim_s_name_take_nobody_s_repeats() {
        // What is due in the victim's name is over its ceiling.
        let came @ [first, second, third, ..] = honest_repeats_in_a_flood(Table::keep_waiting);
        assert!(first == 80 && second >= 76 && third >= 68, "{came:?} of 80");
    }

    #[test]
    fn without_memory_nothing_is_kept() {
        let mut table = Table::new(false);
        table.keep(hash(1), record(1), second(0));
        assert_eq!(table.len(), 0);
        assert!(table.take_due(second(9)).is_none());
    }

    /// Against a map that does the same without bounds.
    #[test]
    fn whatever_comes_in_whatever_order_each_record_is_due_in_its_time() {
        let mut table = Table::new(true);
        let mut model: HashMap<u32, (u64, u8)> = HashMap::new();
        let pause = |stage: u8| 1_125 << stage;
        let mut random = 0x1234_5678_9abc_def1_u64;
        let mut now = u64::from(u32::MAX) - 5_000;
        for _ in 0..60_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Few enough that no set is ever full.
            let n = (random >> 8) as u32 % 512;
            match random % 4 {
                0 | 1 => {
                    table.keep(hash(n), record(n), Micros(now * 1_000));
                    let again = |(at, stage): &(u64, u8)| (stage + u8::from(at - now < pause(*stage) / 2)).min(4);
                    let stage = model.get(&n).map_or(0, again);
                    model.insert(n, (now + pause(stage), stage));
                }
                2 => assert_eq!(table.forget(hash(n), client(n), 0), model.remove(&n).is_some()),
                _ => now += random >> 32 & 31,
            }
            while let Some(due) = table.take_due(Micros(now * 1_000)) {
                let n = due.client.v4_bits();
                let (at, stage) = model.remove(&n).expect("kept");
                assert!(at <= now, "{n} is due at {at}, not at {now}");
                table.keep_on(hash(n), due, Micros(now * 1_000));
                if usize::from(stage) + 1 < REPEATS {
                    model.insert(n, (now + pause(stage + 1), stage + 1));
                }
            }
            assert!(model.values().all(|(at, _)| *at > now), "nothing is forgotten");
            assert_eq!((table.len(), table.displaced()), (model.len(), 0));
        }
    }
}
