//! Neighbours: which MAC address an on-link IP address has, and whether that is still true (RFC 4861 sections 5.1,
//! 7.2 and 7.3; ARP gets the same treatment, RFC 1122 section 2.3.2.1).
//!
//! Invariants: at most `limit` entries, and at most a quarter of them created by others' requests; an entry used within
//! the last minute is never evicted unless it failed; each entry has at most one timer; a [`NeighborId`] of an entry that is gone is
//! recognised as such. An entry that keeps failing is solicited at most once a second.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use sluice_filters::addr::Addr;
use sluice_filters::units::{Micros, PortId};

use super::wire::MacAddr;

/// RFC 4861 section 10: RETRANS_TIMER.
const RETRANSMIT: Duration = Duration::from_secs(1);
/// DELAY_FIRST_PROBE_TIME
const DELAY: Duration = Duration::from_secs(5);
/// REACHABLE_TIME, of which 0.5 to 1.5 apply.
const REACHABLE_MICROS: u64 = 30_000_000;
/// MAX_MULTICAST_SOLICIT
const MULTICAST_TRIES: u8 = 3;
/// MAX_UNICAST_SOLICIT
const UNICAST_TRIES: u8 = 3;
/// How long a failed resolution is believed before the next use tries again.
const HOLD: Duration = Duration::from_secs(1);
/// An entry used this recently belongs to a living flow.
const IN_USE: Duration = Duration::from_secs(60);
/// Unused this long, an entry is freed.
const FORGET: Duration = Duration::from_secs(600);
/// Unused this long, a failed entry is freed.
const FORGET_FAILED: Duration = Duration::from_secs(60);
/// Entries looked at for one eviction.
const EVICTION_SCAN: usize = 256;
/// Entries looked at per [`SWEEP_EVERY`] in search of forgotten ones.
const SWEEP: usize = 64;
const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// Names one neighbour of one worker. Keeps its meaning, or is recognised as outdated ([`Mac::Gone`]); never names
/// another neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighborId {
    index: u32,
    generation: u32,
}

/// Answer of [`super::Net::mac`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mac {
    /// Send to this one.
    Known(MacAddr),
    /// Solicited, no answer yet: try again later.
    Resolving,
    /// Nobody answered. The next use from a second later on asks again.
    Failed,
    /// The id is outdated (its entry was unused for minutes): ask [`super::Net::neighbor`] for a new one.
    Gone,
}

/// What one worker heard about a neighbour, for the others' tables. Send it to them; they
/// [`super::Net::apply`] it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Where it was heard.
    pub port: PortId,
    /// The neighbour.
    pub addr: Addr,
    /// Its MAC address; `None` when an advertisement only confirmed the one we asked.
    pub mac: Option<MacAddr>,
    /// How far it may be trusted.
    pub claim: Claim,
}

/// The kinds of evidence for a neighbour's MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The sender of a request for one of our addresses.
    Request,
    /// An ARP reply to one of our addresses.
    Reply,
    /// ARP not meant for us: may change an entry, never create one.
    Overheard,
    /// A neighbour advertisement with these flags (RFC 4861 section 7.2.5).
    Advert {
        /// S: answers a solicitation.
        solicited: bool,
        /// O: replaces a differing address.
        overrides: bool,
    },
}

/// What became of a [`Learned`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// No such entry, none created.
    Absent,
    /// Nothing new.
    Same,
    /// Created, changed or confirmed.
    Updated,
}

/// A solicitation to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Solicit {
    pub(super) port: PortId,
    pub(super) addr: Addr,
    /// To this station only; `None` = to all.
    pub(super) mac: Option<MacAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Incomplete,
    Reachable,
    Stale,
    Delay,
    Probe,
    Failed,
}

#[derive(Debug)]
struct Entry {
    addr: Addr,
    /// Last use, or creation.
    used: Micros,
    /// End of Reachable or of Failed's hold.
    until: Micros,
    timer: Option<Micros>,
    generation: u32,
    mac: MacAddr,
    port: PortId,
    state: State,
    /// Solicitations sent in this state.
    tries: u8,
    /// Created by the neighbour's own request and not used since.
    passive: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    entries: Vec<Entry>,
    index: HashMap<(PortId, Addr), u32>,
    free: Vec<u32>,
    timers: BTreeSet<(Micros, u32)>,
    limit: usize,
    passive: usize,
    /// Where the next eviction starts to look.
    hand: usize,
    /// Where the next sweep starts to look.
    broom: usize,
    sweep_at: Micros,
}

impl Table {
    /// An empty table of at most `limit` entries.
    pub(super) fn new(limit: usize) -> Table {
        Table {
            entries: Vec::new(),
            index: HashMap::new(),
            free: Vec::new(),
            timers: BTreeSet::new(),
            limit,
            passive: 0,
            hand: 0,
            broom: 0,
            sweep_at: Micros(0),
        }
    }

    /// Entries in use.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// The id of a neighbour we want to send to; new ones are solicited by the next [`Table::poll`]. `None` when the
    /// table is full of entries in use.
    pub(super) fn want(&mut self, port: PortId, addr: Addr, now: Micros) -> Option<NeighborId> {
        if let Some(&i) = self.index.get(&(port, addr)) {
            let e = self.entries.get_mut(i as usize)?;
            e.used = now;
            if std::mem::take(&mut e.passive) {
                self.passive = self.passive.saturating_sub(1);
            }
            let id = NeighborId { index: i, generation: e.generation };
            if e.state == State::Failed && now >= e.until {
                self.enter(i, State::Incomplete, now);
            }
            return Some(id);
        }
        let i = self.create(port, addr, false, now)?;
        self.enter(i, State::Incomplete, now);
        Some(NeighborId { index: i, generation: self.entries.get(i as usize)?.generation })
    }

    /// The MAC address behind an id, now being used. Constant time.
    pub(super) fn mac(&mut self, id: NeighborId, now: Micros) -> Mac {
        let Some(e) = self.entries.get_mut(id.index as usize) else { return Mac::Gone };
        if e.generation != id.generation {
            return Mac::Gone;
        }
        e.used = now;
        let mac = e.mac;
        match e.state {
            State::Reachable if now < e.until => Mac::Known(mac),
            State::Reachable | State::Stale => {
                self.enter(id.index, State::Delay, now);
                Mac::Known(mac)
            }
            State::Delay | State::Probe => Mac::Known(mac),
            State::Incomplete => Mac::Resolving,
            State::Failed if now < e.until => Mac::Failed,
            State::Failed => {
                self.enter(id.index, State::Incomplete, now);
                Mac::Resolving
            }
            State::Free => Mac::Gone,
        }
    }

    /// Takes in what was heard, here or by another worker.
    pub(super) fn hear(&mut self, heard: &Learned, now: Micros) -> Heard {
        let Some(&i) = self.index.get(&(heard.port, heard.addr)) else {
            let (Claim::Request, Some(mac)) = (heard.claim, heard.mac) else { return Heard::Absent };
            let Some(i) = self.create(heard.port, heard.addr, true, now) else { return Heard::Absent };
            return self.settle(i, mac, State::Stale, now);
        };
        let Some(e) = self.entries.get(i as usize) else { return Heard::Absent };
        let unknown = matches!(e.state, State::Incomplete | State::Failed);
        let asked = matches!(e.state, State::Incomplete | State::Probe);
        let reachable = e.state == State::Reachable && now < e.until;
        let mac = match heard.mac {
            Some(mac) => mac,
            None if unknown => return Heard::Same, // nothing to confirm
            None => e.mac,
        };
        let differs = unknown || mac != e.mac;
        match heard.claim {
            Claim::Reply if asked => self.settle(i, mac, State::Reachable, now),
            Claim::Request | Claim::Reply | Claim::Overheard => {
                if differs {
                    self.settle(i, mac, State::Stale, now)
                } else {
                    Heard::Same
                }
            }
            Claim::Advert { solicited, .. } if unknown => {
                self.settle(i, mac, if solicited { State::Reachable } else { State::Stale }, now)
            }
            Claim::Advert { overrides: false, .. } if differs => {
                // Another station claims it too, without insisting: keep ours, but ask.
                let old = e.mac;
                if reachable { self.settle(i, old, State::Stale, now) } else { Heard::Same }
            }
            Claim::Advert { solicited: true, .. } => self.settle(i, mac, State::Reachable, now),
            Claim::Advert { solicited: false, .. } => {
                if differs {
                    self.settle(i, mac, State::Stale, now)
                } else {
                    Heard::Same
                }
            }
        }
    }

    /// Runs what is due: at most `budget` timers, and a slice of the sweep.
    pub(super) fn poll(&mut self, now: Micros, budget: usize, mut send: impl FnMut(Solicit)) {
        for _ in 0..budget {
            let Some(&(due, i)) = self.timers.first() else { break };
            if due > now {
                break;
            }
            self.set_timer(i, None);
            if let Some(solicit) = self.expire(i, now) {
                send(solicit);
            }
        }
        if now >= self.sweep_at {
            self.sweep_at = now.after(SWEEP_EVERY);
            self.sweep(now);
        }
    }

    /// The station's MAC address as last heard, without using the entry.
    pub(super) fn peek(&self, port: PortId, addr: Addr) -> Option<MacAddr> {
        let e = self.entries.get(*self.index.get(&(port, addr))? as usize)?;
        matches!(e.state, State::Reachable | State::Stale | State::Delay | State::Probe).then_some(e.mac)
    }

    /// The timer of entry `i` has run out.
    fn expire(&mut self, i: u32, now: Micros) -> Option<Solicit> {
        if self.entries.get(i as usize)?.state == State::Delay {
            self.enter(i, State::Probe, now);
        }
        let e = self.entries.get_mut(i as usize)?;
        let (unicast, all) = match e.state {
            State::Incomplete => (0, MULTICAST_TRIES),
            // Asked in vain, the station may have moved to another MAC address: ask everyone before giving up.
            State::Probe => (UNICAST_TRIES, UNICAST_TRIES.saturating_add(MULTICAST_TRIES)),
            _ => return None,
        };
        if e.tries >= all {
            self.enter(i, State::Failed, now);
            return None;
        }
        let mac = (e.tries < unicast).then_some(e.mac);
        e.tries = e.tries.saturating_add(1);
        let solicit = Solicit { port: e.port, addr: e.addr, mac };
        self.set_timer(i, Some(now.after(RETRANSMIT)));
        Some(solicit)
    }

    fn settle(&mut self, i: u32, mac: MacAddr, state: State, now: Micros) -> Heard {
        if let Some(e) = self.entries.get_mut(i as usize) {
            e.mac = mac;
        }
        self.enter(i, state, now);
        Heard::Updated
    }

    fn enter(&mut self, i: u32, state: State, now: Micros) {
        let timer = match state {
            State::Incomplete | State::Probe => Some(now),
            State::Delay => Some(now.after(DELAY)),
            _ => None,
        };
        if let Some(e) = self.entries.get_mut(i as usize) {
            e.state = state;
            e.tries = 0;
            e.until = match state {
                State::Failed => now.after(HOLD),
                State::Reachable => Micros(now.0.saturating_add(reachable_time(i, now))),
                _ => now,
            };
        }
        self.set_timer(i, timer);
    }

    fn set_timer(&mut self, i: u32, at: Option<Micros>) {
        let Some(e) = self.entries.get_mut(i as usize) else { return };
        if let Some(old) = std::mem::replace(&mut e.timer, at) {
            self.timers.remove(&(old, i));
        }
        if let Some(at) = at {
            self.timers.insert((at, i));
        }
    }

    fn create(&mut self, port: PortId, addr: Addr, passive: bool, now: Micros) -> Option<u32> {
        let i = self.allot(passive, now)?;
        let e = self.entries.get_mut(i as usize)?;
        e.addr = addr;
        e.port = port;
        e.used = now;
        e.passive = passive;
        e.mac = [0; 6];
        self.passive = self.passive.saturating_add(passive.into());
        self.index.insert((port, addr), i);
        Some(i)
    }

    /// A free entry; others' requests (`passive`) get theirs within their share, and evict only each other.
    fn allot(&mut self, passive: bool, now: Micros) -> Option<u32> {
        if passive && self.passive >= self.limit / 4 {
            self.evict(true, now)?;
        }
        if let Some(i) = self.free.pop() {
            return Some(i);
        }
        if self.entries.len() >= self.limit {
            self.evict(passive, now)?;
            return self.free.pop();
        }
        let i = u32::try_from(self.entries.len()).ok()?;
        self.entries.push(Entry {
            addr: Addr::v4(0),
            used: now,
            until: now,
            timer: None,
            generation: 0,
            mac: [0; 6],
            port: PortId(0),
            state: State::Free,
            tries: 0,
            passive: false,
        });
        Some(i)
    }

    /// Frees one of the next [`EVICTION_SCAN`] entries: the first never used or failed, else the one unused for longest.
    fn evict(&mut self, passive_only: bool, now: Micros) -> Option<()> {
        let mut best: Option<(Micros, u32)> = None;
        for _ in 0..EVICTION_SCAN.min(self.entries.len()) {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let (at, e) = (self.hand, self.entries.get(self.hand)?);
            self.hand = self.hand.saturating_add(1);
            let idle = now.since(e.used) >= IN_USE;
            if e.state == State::Free || !e.passive && (passive_only || !idle) {
                continue;
            }
            let i = u32::try_from(at).ok()?;
            if e.passive || e.state == State::Failed {
                best = Some((e.used, i));
                break;
            }
            if best.is_none_or(|(used, _)| e.used < used) {
                best = Some((e.used, i));
            }
        }
        let (_, i) = best?;
        self.release(i);
        Some(())
    }

    fn release(&mut self, i: u32) {
        self.set_timer(i, None);
        let Some(e) = self.entries.get_mut(i as usize) else { return };
        e.state = State::Free;
        e.generation = e.generation.wrapping_add(1);
        if std::mem::take(&mut e.passive) {
            self.passive = self.passive.saturating_sub(1);
        }
        self.index.remove(&(e.port, e.addr));
        self.free.push(i);
    }

    fn sweep(&mut self, now: Micros) {
        for _ in 0..SWEEP.min(self.entries.len()) {
            if self.broom >= self.entries.len() {
                self.broom = 0;
            }
            let Some(e) = self.entries.get(self.broom) else { return };
            let unused = now.since(e.used);
            let forget = match e.state {
                State::Free => false,
                State::Failed => unused >= FORGET_FAILED,
                _ => unused >= FORGET,
            };
            if let (true, Ok(i)) = (forget, u32::try_from(self.broom)) {
                self.release(i);
            }
            self.broom = self.broom.saturating_add(1);
        }
    }
}

/// 0.5 to 1.5 of REACHABLE_TIME, so that a thousand entries made at once are not probed at once (RFC 4861 section 6.3.2).
fn reachable_time(i: u32, now: Micros) -> u64 {
    let mixed = (u64::from(i) ^ now.0).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (REACHABLE_MICROS / 2).saturating_add(mixed % REACHABLE_MICROS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PORT: PortId = PortId(0);
    const A: MacAddr = [2, 0, 0, 0, 0, 0xa];
    const B: MacAddr = [2, 0, 0, 0, 0, 0xb];

    fn host(n: u32) -> Addr {
        Addr::v4(0x0a00_0000 + n)
    }

    fn secs(s: u64) -> Micros {
        Micros(s * 1_000_000)
    }

    fn heard(n: u32, mac: MacAddr, claim: Claim) -> Learned {
        Learned { port: PORT, addr: host(n), mac: Some(mac), claim }
    }

    fn advert(solicited: bool, overrides: bool) -> Claim {
        Claim::Advert { solicited, overrides }
    }

    fn poll(t: &mut Table, now: Micros) -> Vec<Option<MacAddr>> {
        let mut sent = Vec::new();
        t.poll(now, 1000, |s| sent.push(s.mac));
        sent
    }

    /// A table in which host 1 answered at `now`.
    fn reachable(now: Micros) -> (Table, NeighborId) {
        let mut t = Table::new(64);
        let id = t.want(PORT, host(1), now).unwrap();
        poll(&mut t, now);
        assert_eq!(t.hear(&heard(1, A, Claim::Reply), now), Heard::Updated);
        assert_eq!(t.mac(id, now), Mac::Known(A));
        (t, id)
    }

    #[test]
    fn a_new_neighbour_is_solicited_three_times_a_second_apart_and_then_failed() {
        let mut t = Table::new(64);
        let id = t.want(PORT, host(1), secs(0)).unwrap();
        assert_eq!(t.want(PORT, host(1), secs(0)), Some(id));
        for s in 0..3 {
            assert_eq!(poll(&mut t, secs(s)), [None], "second {s}");
            assert_eq!(poll(&mut t, Micros(secs(s).0 + 999_999)), []);
            assert_eq!(t.mac(id, secs(s)), Mac::Resolving);
        }
        assert_eq!(poll(&mut t, secs(3)), []);
        assert_eq!(t.mac(id, secs(3)), Mac::Failed);
    }

    #[test]
    fn a_failed_neighbour_is_asked_again_on_use_a_second_later_and_keeps_its_id() {
        let mut t = Table::new(64);
        let id = t.want(PORT, host(1), secs(0)).unwrap();
        for s in 0..4 {
            poll(&mut t, secs(s));
        }
        assert_eq!((t.mac(id, secs(3)), poll(&mut t, secs(3))), (Mac::Failed, vec![]));
        assert_eq!(t.want(PORT, host(1), Micros(3_999_999)), Some(id));
        assert_eq!(t.mac(id, Micros(3_999_999)), Mac::Failed);
        assert_eq!((t.mac(id, secs(4)), poll(&mut t, secs(4))), (Mac::Resolving, vec![None]));
        t.hear(&heard(1, A, Claim::Reply), secs(4));
        assert_eq!(t.mac(id, secs(4)), Mac::Known(A));
        // Through want() as well.
        let other = t.want(PORT, host(2), secs(10)).unwrap();
        for s in 10..14 {
            poll(&mut t, secs(s));
        }
        t.want(PORT, host(2), secs(14)).unwrap();
        assert_eq!(t.mac(other, secs(14)), Mac::Resolving);
    }

    #[test]
    fn a_failed_neighbour_that_announces_itself_is_known_at_once() {
        let mut t = Table::new(64);
        let id = t.want(PORT, host(1), secs(0)).unwrap();
        for s in 0..4 {
            poll(&mut t, secs(s));
        }
        assert_eq!(t.hear(&heard(1, A, Claim::Overheard), secs(3)), Heard::Updated);
        assert_eq!(t.mac(id, secs(3)), Mac::Known(A));
    }

    #[test]
    fn an_idle_neighbour_is_not_probed() {
        let (mut t, _) = reachable(secs(0));
        for s in 1..500 {
            assert_eq!(poll(&mut t, secs(s)), [], "second {s}");
        }
    }

    #[test]
    fn a_stale_neighbour_in_use_is_probed_after_the_delay_alone_and_then_among_all() {
        let (mut t, id) = reachable(secs(0));
        // Stale 45 s after its answer at the latest.
        assert_eq!(t.mac(id, secs(50)), Mac::Known(A));
        assert_eq!(poll(&mut t, Micros(54_999_999)), []);
        for (s, to) in [Some(A), Some(A), Some(A), None, None, None].into_iter().enumerate() {
            let now = secs(55 + s as u64);
            assert_eq!(poll(&mut t, now), [to], "probe {s}");
            assert_eq!(t.mac(id, now), Mac::Known(A)); // traffic goes on meanwhile
        }
        assert_eq!(poll(&mut t, secs(61)), []);
        assert_eq!(t.mac(id, secs(61)), Mac::Failed);
    }

    #[test]
    fn a_reachable_neighbour_in_use_is_left_alone_for_fifteen_seconds_at_least() {
        let (mut t, id) = reachable(secs(0));
        for s in 1..15 {
            assert_eq!(t.mac(id, secs(s)), Mac::Known(A));
            assert_eq!(poll(&mut t, secs(s + 5)), [], "second {s}");
        }
    }

    #[test]
    fn a_neighbour_that_moved_silently_is_found_again_by_the_probes_to_all() {
        let (mut t, id) = reachable(secs(0));
        t.mac(id, secs(50));
        for s in 55..59 {
            poll(&mut t, secs(s));
        }
        assert_eq!(t.hear(&heard(1, B, Claim::Reply), secs(58)), Heard::Updated);
        assert_eq!(t.mac(id, secs(58)), Mac::Known(B));
        for s in 59..70 {
            assert_eq!(poll(&mut t, secs(s)), []);
        }
    }

    #[test]
    fn a_reply_while_we_do_not_ask_is_taken_but_verified() {
        let (mut t, id) = reachable(secs(0));
        assert_eq!(t.hear(&heard(1, A, Claim::Reply), secs(1)), Heard::Same);
        assert_eq!(t.hear(&heard(1, B, Claim::Reply), secs(1)), Heard::Updated);
        assert_eq!(t.mac(id, secs(1)), Mac::Known(B));
        assert_eq!(poll(&mut t, secs(6)), [Some(B)]);
        t.hear(&heard(1, A, Claim::Reply), secs(6)); // the true one answers
        assert_eq!(t.mac(id, secs(6)), Mac::Known(A));
    }

    #[test]
    fn only_requests_create_entries() {
        let mut t = Table::new(64);
        for claim in [Claim::Reply, Claim::Overheard, advert(true, true), advert(false, true)] {
            assert_eq!(t.hear(&heard(1, A, claim), secs(0)), Heard::Absent);
        }
        assert_eq!(t.hear(&Learned { mac: None, ..heard(1, A, Claim::Request) }, secs(0)), Heard::Absent);
        assert_eq!(t.len(), 0);
        assert_eq!(t.hear(&heard(1, A, Claim::Request), secs(0)), Heard::Updated);
        assert_eq!(t.peek(PORT, host(1)), Some(A));
        assert_eq!(t.peek(PortId(1), host(1)), None);
    }

    /// RFC 4861 section 7.2.5 and appendix C, from Reachable with address A.
    #[test]
    fn advertisements_follow_the_override_rules() {
        // solicited, override, address -> address kept, still reachable (no probe after 5 s of use)
        let table = [
            (false, false, Some(A), A, true),
            (false, false, Some(B), A, false),
            (true, false, Some(A), A, true),
            (true, false, Some(B), A, false),
            (false, true, Some(A), A, true),
            (false, true, Some(B), B, false),
            (true, true, Some(A), A, true),
            (true, true, Some(B), B, true),
            (true, true, None, A, true),
            (false, false, None, A, true),
        ];
        for (solicited, overrides, mac, kept, still) in table {
            let (mut t, id) = reachable(secs(0));
            t.hear(&Learned { mac, ..heard(1, A, advert(solicited, overrides)) }, secs(1));
            assert_eq!(t.mac(id, secs(1)), Mac::Known(kept), "{solicited} {overrides} {mac:?}");
            let probes = if still { vec![] } else { vec![Some(kept)] };
            assert_eq!(poll(&mut t, secs(6)), probes, "{solicited} {overrides} {mac:?}");
        }
    }

    #[test]
    fn a_solicited_advertisement_ends_probing_and_an_unsolicited_one_does_not() {
        let (mut t, id) = reachable(secs(0));
        t.mac(id, secs(50));
        assert_eq!(poll(&mut t, secs(55)), [Some(A)]);
        t.hear(&heard(1, A, advert(false, true)), secs(55));
        assert_eq!(poll(&mut t, secs(56)), [Some(A)]);
        t.hear(&Learned { mac: None, ..heard(1, A, advert(true, false)) }, secs(56));
        assert_eq!((poll(&mut t, secs(57)), t.mac(id, secs(57))), (vec![], Mac::Known(A)));
    }

    #[test]
    fn an_unsolicited_advertisement_resolves_without_proving_reachability() {
        let mut t = Table::new(64);
        let id = t.want(PORT, host(1), secs(0)).unwrap();
        poll(&mut t, secs(0));
        t.hear(&heard(1, A, advert(false, true)), secs(0));
        assert_eq!(t.mac(id, secs(0)), Mac::Known(A));
        assert_eq!(poll(&mut t, secs(5)), [Some(A)]);
    }

    #[test]
    fn one_poll_sends_no_more_than_its_budget() {
        let mut t = Table::new(64);
        for n in 0..40 {
            t.want(PORT, host(n), secs(0)).unwrap();
        }
        let mut sent = Vec::new();
        t.poll(secs(0), 16, |_| sent.push(()));
        assert_eq!(sent.len(), 16);
        assert_eq!(poll(&mut t, secs(0)).len(), 24);
    }

    #[test]
    fn requests_of_others_get_a_quarter_and_evict_only_each_other() {
        let mut t = Table::new(64);
        let mine: Vec<_> = (0..8).map(|n| t.want(PORT, host(n), secs(0)).unwrap()).collect();
        for n in 100..10_000 {
            t.hear(&heard(n, A, Claim::Request), secs(100));
            assert!(t.len() <= 8 + 16);
        }
        assert_eq!(t.len(), 24);
        for id in mine {
            assert_ne!(t.mac(id, secs(100)), Mac::Gone);
        }
    }

    #[test]
    fn an_entry_others_made_becomes_ours_when_wanted() {
        let mut t = Table::new(64);
        t.hear(&heard(1, A, Claim::Request), secs(0));
        let id = t.want(PORT, host(1), secs(0)).unwrap();
        for n in 100..1_000 {
            t.hear(&heard(n, A, Claim::Request), secs(0));
        }
        assert_eq!(t.mac(id, secs(0)), Mac::Known(A));
        assert_eq!(t.len(), 17);
    }

    #[test]
    fn a_full_table_evicts_unused_entries_and_never_those_in_use() {
        let mut t = Table::new(16);
        let ids: Vec<_> = (0..16).map(|n| t.want(PORT, host(n), secs(0)).unwrap()).collect();
        for (n, mac) in (0..16).zip(std::iter::repeat(A)) {
            t.hear(&heard(n, mac, Claim::Reply), secs(0));
        }
        assert_eq!(t.want(PORT, host(99), secs(59)), None);
        assert_eq!(t.hear(&heard(98, A, Claim::Request), secs(59)), Heard::Absent);
        for &id in &ids[1..] {
            t.mac(id, secs(30));
        }
        let new = t.want(PORT, host(99), secs(60)).unwrap();
        assert_eq!((t.mac(ids[0], secs(60)), t.len()), (Mac::Gone, 16));
        assert_eq!(t.mac(new, secs(60)), Mac::Resolving);
        assert_eq!(t.want(PORT, host(97), secs(60)), None);
    }

    #[test]
    fn an_outdated_id_never_names_another_neighbour() {
        let mut t = Table::new(1);
        let old = t.want(PORT, host(1), secs(0)).unwrap();
        let new = t.want(PORT, host(2), secs(60)).unwrap();
        assert_eq!(old.index, new.index);
        t.hear(&heard(2, B, Claim::Reply), secs(60));
        assert_eq!((t.mac(old, secs(60)), t.mac(new, secs(60))), (Mac::Gone, Mac::Known(B)));
        assert_eq!(Table::new(1).mac(old, secs(60)), Mac::Gone);
    }

    #[test]
    fn unused_entries_are_forgotten() {
        let (mut t, id) = reachable(secs(0));
        t.hear(&heard(2, A, Claim::Request), secs(0));
        t.want(PORT, host(3), secs(0)).unwrap();
        for s in 0..599 {
            poll(&mut t, secs(s));
        }
        assert_eq!(t.len(), 2); // the failed one went after a minute
        poll(&mut t, secs(600));
        assert_eq!((t.len(), t.mac(id, secs(600))), (0, Mac::Gone));
        assert_eq!(t.timers.len(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Want(u32),
        Use(u32),
        Hear(u32, u8, Option<bool>, Claim),
        Poll,
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let claim = prop_oneof![
            Just(Claim::Request),
            Just(Claim::Reply),
            Just(Claim::Overheard),
            (any::<bool>(), any::<bool>()).prop_map(|(s, o)| advert(s, o)),
        ];
        let n = 0..24_u32;
        let step = prop_oneof![
            n.clone().prop_map(Step::Want),
            n.clone().prop_map(Step::Use),
            (n, 0..3_u8, any::<Option<bool>>(), claim).prop_map(|(n, m, has, c)| Step::Hear(n, m, has, c)),
            Just(Step::Poll),
            (0..90_000_u64).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        #[test]
        fn the_table_keeps_its_invariants(steps in steps()) {
            let mut t = Table::new(16);
            let mut now = secs(0);
            let mut ids: HashMap<u32, NeighborId> = HashMap::new();
            for step in steps {
                let in_use = |e: &Entry| {
                    !e.passive && !matches!(e.state, State::Free | State::Failed) && now.since(e.used) < IN_USE
                };
                let before: Vec<_> = t.entries.iter().map(|e| in_use(e).then_some(e.generation)).collect();
                match step {
                    Step::Want(n) => {
                        if let Some(id) = t.want(PORT, host(n), now) {
                            ids.insert(n, id);
                        }
                    }
                    Step::Use(n) => {
                        if let Some(&id) = ids.get(&n) {
                            let _ = t.mac(id, now);
                        }
                    }
                    Step::Hear(n, m, has, claim) => {
                        let mac = (has != Some(false)).then_some([2, 0, 0, 0, 1, m]);
                        let _ = t.hear(&Learned { port: PORT, addr: host(n), mac, claim }, now);
                    }
                    Step::Poll => drop(poll(&mut t, now)),
                    Step::Wait(ms) => now.0 += ms * 1000,
                }
                for (e, before) in t.entries.iter().zip(before) {
                    prop_assert!(before.is_none_or(|generation| generation == e.generation), "evicted while in use");
                }
                let live = t.entries.iter().filter(|e| e.state != State::Free).count();
                prop_assert_eq!(live, t.index.len());
                prop_assert!(t.entries.len() <= 16);
                prop_assert_eq!(live + t.free.len(), t.entries.len());
                prop_assert_eq!(t.entries.iter().filter(|e| e.passive).count(), t.passive);
                prop_assert!(t.passive <= 4);
                prop_assert_eq!(t.entries.iter().filter(|e| e.timer.is_some()).count(), t.timers.len());
                for (i, e) in t.entries.iter().enumerate() {
                    if let Some(at) = e.timer {
                        prop_assert!(t.timers.contains(&(at, i as u32)));
                    }
                    if e.state != State::Free {
                        prop_assert_eq!(t.index.get(&(e.port, e.addr)), Some(&(i as u32)));
                    }
                    if matches!(e.state, State::Incomplete | State::Delay | State::Probe) {
                        prop_assert!(e.timer.is_some());
                    }
                }
            }
        }
    }
}
