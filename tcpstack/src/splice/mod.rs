//! Splice mode: the client's own segments, rewritten and forwarded with the appliance as their sender, and the upstream's back.
//!
//! The two end hosts' TCPs talk to each other: their windows, their loss recovery, their congestion control. A connection costs
//! the appliance one [`Splice`], two flow table entries and a timer. One frame in, the same frame out.
//!
//! - [`opening`]: from a valid cookie to a connected upstream. The dial's first number is the client's less the PROXY header's
//!   length, so the client's numbers need no translation ever after.
//! - [`window`]: which segments fit.
//! - [`forward`]: how they change on their way.
//! - [`promise`]: what a SYN-ACK promises in the upstreams' name, by epoch; [`probe`]: what they were seen to accept.
//! - [`ending`]: timeouts, closes, resets.
//! - [`icmp`]: errors about either leg, passed on to the host whose segment they are about.

mod ending;
mod forward;
mod icmp;
mod opening;
pub(crate) mod probe;
pub(crate) mod promise;
pub(crate) mod window;

use std::num::NonZeroU16;
use std::time::Duration;

use sluice_filters::addr::{Addr, FlowKey};
use sluice_filters::units::{Micros, Seq, ServiceId};

use self::opening::Opening;
use self::window::Half;
use crate::net::Way;
use crate::path_mtu::{PackedPath, Path};
use crate::ports::SpaceId;
use crate::stack::Side;
use crate::stack::dial::Lease;

pub(crate) use self::opening::{HELD_OCTETS_MAX, HeldOctets};

pub use self::forward::Forward;

/// A session's coarse time counts units of two to this microseconds, modulo 2^32, which is 50 days. Timeouts end at a week.
const COARSE_LOG: u32 = 10;
/// Its unit.
const COARSE: Duration = Duration::from_micros(1 << COARSE_LOG);

/// `now` in coarse time.
#[inline]
fn coarse(now: Micros) -> u32 {
    (now.0 >> COARSE_LOG) as u32
}

/// A moment in six bytes: microseconds modulo 2^48, which is nine years.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment([u16; 3]);

impl Moment {
    /// The moment itself.
    fn get(self) -> Micros {
        let Moment([low, middle, high]) = self;
        Micros(u64::from(high) << 32 | u64::from(middle) << 16 | u64::from(low))
    }
}

impl From<Micros> for Moment {
    fn from(moment: Micros) -> Moment {
        Moment([moment.0 as u16, (moment.0 >> 16) as u16, (moment.0 >> 32) as u16])
    }
}

/// No upstream has accepted yet.
const NOT_CONNECTED: u32 = u32::MAX;

/// Whether something is beyond doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Certain(bool);

/// One spliced connection. Numbers are the client's; the upstream's own lie `seq_delta` and `ts_delta` behind.
pub(crate) struct Splice {
    client_addr: Addr,
    /// Never 0, which the parser sees to.
    client_port: NonZeroU16,
    /// Our source port towards the upstream; 0 while there is none.
    our_port: u16,
    /// Index into the stack's listening ends.
    listen: u16,
    /// Index into the stack's pairs of source and upstream address.
    pair: u16,
    service: ServiceId,
    /// What the client sees of the upstream's sequence numbers, less the upstream's own.
    seq_delta: u32,
    /// The same of timestamps.
    ts_delta: u32,
    /// What exchanging the client's addresses and ports for ours adds to a segment's checksum.
    change: u16,
    state: State,
    /// The window shift our SYN-ACK promised.
    promised_shift: u8,
    /// The station behind the client's port that its newest segment came from.
    mac: [u8; 6],
    /// The neighbour behind the upstream's port.
    hop: u16,
    client: Half,
    upstream: Half,
    /// What is known of the path to the client, as far as its sender cannot be told.
    client_path: PackedPath,
    /// The same of the path to the upstream.
    upstream_path: PackedPath,
    /// The client's first number.
    isn: Seq,
    /// Our first number towards the client.
    cookie: Seq,
    opened: Moment,
    /// Microseconds from then until the upstream accepted.
    connected: u32,
    /// When payload was last acknowledged, or an end closed, in coarse time.
    moved: u32,
    /// When the end that [`State`] says is waiting first sent what has had no answer, in coarse time.
    waiting: u32,
    /// When a challenge last went out, in coarse time modulo a minute.
    challenged: u16,
    /// Until the upstream has acknowledged all that comes from us.
    opening: Option<Box<Opening>>,
}

/// What has happened to a session, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State(u8);

impl State {
    /// The client sent what must be answered, and the upstream has not been heard since.
    const CLIENT_WAITS: State = State(1);
    /// The same with the ends exchanged.
    const UPSTREAM_WAITS: State = State(2);
    /// The upstream closed before the client's FIN was acknowledged: it keeps the TIME-WAIT.
    const UPSTREAM_FIRST: State = State(4);
    /// Both ends send timestamps.
    const TIMESTAMPS: State = State(8);
    /// The client may still echo a timestamp of our SYN-ACK's, which the upstream never sent.
    const ECHOES_OURS: State = State(16);
    /// An end was challenged once at least.
    const CHALLENGED: State = State(32);

    #[inline]
    fn has(self, bit: State) -> bool {
        self.0 & bit.0 != 0
    }

    #[inline]
    fn set(&mut self, bit: State) {
        self.0 |= bit.0;
    }

    #[inline]
    fn clear(&mut self, bit: State) {
        self.0 &= !bit.0;
    }

    /// Of `side`: what it sent waits for an answer.
    #[inline]
    fn waits(side: Side) -> State {
        match side {
            Side::Client => State::CLIENT_WAITS,
            Side::Upstream => State::UPSTREAM_WAITS,
        }
    }
}

impl Splice {
    /// The end of `side`, then the other one.
    #[inline]
    fn halves(&mut self, side: Side) -> (&mut Half, &mut Half) {
        match side {
            Side::Client => (&mut self.client, &mut self.upstream),
            Side::Upstream => (&mut self.upstream, &mut self.client),
        }
    }

    /// The number of `side`'s first octet of payload.
    #[inline]
    fn base(&self, side: Side) -> Seq {
        match side {
            Side::Client => self.isn.plus(1),
            Side::Upstream => self.cookie.plus(1),
        }
    }

    /// The number of the upstream's SYN-ACK, in its own numbers.
    fn upstream_isn(&self) -> Seq {
        Seq(self.cookie.0.wrapping_sub(self.seq_delta))
    }

    /// Bytes of `side`'s payload that the other end has acknowledged.
    fn acknowledged(&self, side: Side) -> u64 {
        let (me, peer) = self.ends_of(side);
        peer.acknowledged_since(self.base(side)).saturating_sub(u64::from(me.finished()))
    }

    /// The end of `side`, then the other one, to look at.
    fn ends_of(&self, side: Side) -> (&Half, &Half) {
        match side {
            Side::Client => (&self.client, &self.upstream),
            Side::Upstream => (&self.upstream, &self.client),
        }
    }

    /// What is known of the path to the end of `side`.
    #[inline]
    fn path(&self, side: Side) -> PackedPath {
        match side {
            Side::Client => self.client_path,
            Side::Upstream => self.upstream_path,
        }
    }

    /// Takes in what happened to the path to the end of `side` by `now`; what `change` says of it.
    #[cold]
    fn change_path<R>(&mut self, side: Side, now: Micros, change: impl FnOnce(&mut Path) -> R) -> R {
        let packed = match side {
            Side::Client => &mut self.client_path,
            Side::Upstream => &mut self.upstream_path,
        };
        let mut path = packed.unpack(now);
        path.lapse(now);
        let said = change(&mut path);
        *packed = path.into();
        said
    }

    /// Both FINs were acknowledged; whether beyond doubt.
    #[inline]
    fn closed(&self) -> Option<Certain> {
        let both = self.client.finished() && self.upstream.finished();
        let doubtful = self.client.finish_is_doubtful() || self.upstream.finish_is_doubtful();
        both.then_some(Certain(!doubtful))
    }

    /// How long the client has been silent, as far as coarse time tells.
    pub(crate) fn client_silent(&self, now: Micros) -> Duration {
        Duration::from_micros(u64::from(coarse(now).wrapping_sub(self.client.heard)) << 10)
    }

    /// The client's end.
    #[inline]
    fn client_end(&self) -> End {
        End { addr: self.client_addr, port: self.client_port.get() }
    }

    /// Our first number towards the client.
    pub(crate) fn cookie(&self) -> Seq {
        self.cookie
    }

    fn way(&self, side: Side) -> Way {
        match side {
            Side::Client => Way::Reply { port: self.client.port, mac: self.mac },
            Side::Upstream => Way::Neighbor { port: self.upstream.port, id: u32::from(self.hop) },
        }
    }

    /// The pair of source and upstream address that its source port belongs to.
    fn space(&self) -> SpaceId {
        SpaceId(u32::from(self.pair))
    }

    /// The source port, while the session has one.
    fn lease(&self) -> Option<Lease> {
        (self.our_port != 0).then_some(Lease { space: self.space(), port: self.our_port })
    }
}

/// The sessions of one worker, side by side in memory. Its address space is taken at once and its memory as it fills, so it never
/// moves.
pub(crate) struct Splices {
    entries: Vec<Option<Splice>>,
    free: Vec<u32>,
    capacity: usize,
}

impl Splices {
    /// Room for `capacity` sessions.
    pub(crate) fn new(capacity: usize) -> Splices {
        Splices { entries: Vec::with_capacity(capacity), free: Vec::new(), capacity }
    }

    /// Enters a session; its index, or none when there are too many.
    fn insert(&mut self, splice: Splice) -> Option<u32> {
        if let Some(index) = self.free.pop() {
            *self.entries.get_mut(index as usize)? = Some(splice);
            return Some(index);
        }
        if self.entries.len() >= self.capacity {
            return None;
        }
        let index = u32::try_from(self.entries.len()).ok()?;
        self.entries.push(Some(splice));
        Some(index)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Splice> {
        self.entries.get_mut(index as usize)?.as_mut()
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Splice> {
        self.entries.get(index as usize)?.as_ref()
    }

    fn take(&mut self, index: u32) -> Option<Splice> {
        let splice = self.entries.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(splice)
    }

    /// Live sessions.
    pub(crate) fn len(&self) -> usize {
        self.entries.len().saturating_sub(self.free.len())
    }

    /// The indices of live sessions from `start` on.
    pub(crate) fn indices_from(&self, start: u32) -> impl Iterator<Item = u32> + '_ {
        let entries = self.entries.get(start as usize..).unwrap_or_default();
        (start..).zip(entries).filter(|(_, entry)| entry.is_some()).map(|(index, _)| index)
    }

    /// Brings the session's cache lines in, all of them, for a segment soon to come.
    #[inline]
    pub(crate) fn touch(&self, index: u32) {
        if let Some(Some(splice)) = self.entries.get(index as usize) {
            let Splice { client_addr, client, upstream, upstream_path, .. } = splice;
            std::hint::black_box((client_addr.hi, client.heard, upstream.port, upstream_path));
        }
    }
}

/// A listening end, and both ends towards an upstream: what sessions refer to by an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) addr: Addr,
    pub(crate) port: u16,
}

/// The flow of segments that come from `from` to `to`.
fn flow(from: End, to: End) -> FlowKey {
    FlowKey { src: from.addr, dst: to.addr, src_port: from.port, dst_port: to.port }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn touching_a_session_brings_all_of_its_cache_lines_in() {
        let touched = [
            offset_of!(Splice, client_addr.hi),
            offset_of!(Splice, client.heard),
            offset_of!(Splice, upstream.port),
            offset_of!(Splice, upstream_path),
        ];
        for start in (0..64).step_by(align_of::<Option<Splice>>()) {
            for line in start / 64..=(start + size_of::<Option<Splice>>() - 1) / 64 {
                assert!(touched.iter().any(|at| (start + at) / 64 == line), "from {start}, line {line}: {touched:?}");
            }
        }
    }

    #[test]
    fn a_session_takes_no_more_than_its_share_of_256_octets() {
        // Beside it: two flow table entries of 16 octets at a load of three eighths at least, and a timer of 24.
        assert!(size_of::<Option<Splice>>() <= 144, "{} octets", size_of::<Option<Splice>>());
    }
}
