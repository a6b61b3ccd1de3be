//! What one connection knows of the path to one of its ends, when no router tells (RFC 4821, RFC 8899).
//!
//! Rules:
//! - A packet that was acknowledged got through, and so does every one that is no larger, for as long as the connection lives: what is lost of
//!   those is lost to congestion or to an outage. On a path that has proved nothing, silence is all that a black hole ever shows.
//! - A larger packet that is sent again twice in vain is cut for a smaller path from then on. Repeats within the least RTO count as one: a
//!   sender may repeat a segment as often as it likes, and no path answers sooner.
//! - What this connection found so, and proved by an acknowledgment, is worth knowing for others. What it was told is not its to repeat.
//! - Ten minutes after the pieces got through, the larger size is tried again (RFC 8899 section 5.3.3).

use std::time::Duration;

use sluice_filters::units::Micros;

use super::{LIFE, PathMtu, PathSource, attempt_below};

/// The least time between two repeats of which both count: the least RTO of common kernels.
const REPEAT_PAUSE: Duration = Duration::from_millis(200);
/// A packet on trial ends no further behind what is acknowledged, bytes.
const AHEAD_MAX: u32 = 63 << LEFT_LOG;
/// Headers of a piece have no more bytes: IPv6's and TCP's with all its options.
const HEADERS_MAX: u16 = 100;

/// Why packets are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// They are not.
    Not,
    /// A router said so, or another connection found out.
    Told,
    /// This connection found out.
    Found,
}

/// How far the size in question is known to get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was sent yet that could tell.
    Untried,
    /// A packet of the size is on its way, and so many bytes are to be acknowledged until it has arrived.
    Trial { left: u16 },
    /// It gets through, which is known since then.
    Proven { since: Micros },
    /// A packet that may be too large was sent again, last at this moment. Where nothing is cut, the size is the largest one proven.
    Doubt { at: Micros },
}

/// What one connection knows of the path to one of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// Packets are cut to it or, where they are not, the largest one that is known to get through or is on trial; bytes.
    size: u16,
    cut: Cut,
    phase: Phase,
}

impl Path {
    /// Of which nothing is known.
    const UNKNOWN: Path = Path { size: 0, cut: Cut::Not, phase: Phase::Untried };

    /// With what is known of the peer.
    pub(crate) fn new(known: Option<PathMtu>) -> Path {
        known.map_or(Path::UNKNOWN, |path| Path { size: path.mtu, cut: Cut::Told, phase: Phase::Untried })
    }

    /// The largest IP packet that is sent in one piece, bytes; more than any port's where none is cut.
    #[inline]
    pub(crate) fn limit(&self) -> u16 {
        if self.is_cut() { self.size } else { u16::MAX }
    }

    /// Whether packets are cut.
    #[inline]
    pub(crate) fn is_cut(&self) -> bool {
        self.cut != Cut::Not
    }

    /// Whether a packet of `len` bytes is worth a word: it may be the first of its size, or one that is cut.
    #[inline]
    pub(crate) fn is_exceeded_by(&self, len: usize) -> bool {
        len > usize::from(self.size)
    }

    /// Whether a packet of `len` bytes may have to leave in pieces, should it be one sent again.
    #[inline]
    pub(crate) fn may_cut(&self, len: usize) -> bool {
        len > usize::from(self.limit()) || matches!(self.phase, Phase::Doubt { .. })
    }

    /// The largest packet that is known to get through.
    fn proven(&self) -> u16 {
        match (self.phase, self.cut) {
            (Phase::Proven { .. }, _) | (Phase::Doubt { .. }, Cut::Not) => self.size,
            _ => 0,
        }
    }

    /// The path may have become a larger one by `now`.
    pub(crate) fn lapse(&mut self, now: Micros) {
        if let Phase::Proven { since } = self.phase
            && self.is_cut()
            && now >= since.after(LIFE)
        {
            *self = Path::UNKNOWN;
        }
    }

    /// A packet of `len` bytes is sent, cut if it has to be; its last byte is the `ahead`th behind what is acknowledged. It is `fresh` when
    /// nobody sent that byte before: only then its acknowledgment is this packet's, uncut.
    pub(crate) fn sent(&mut self, len: usize, ahead: u32, fresh: bool) {
        let untried = match self.phase {
            Phase::Untried => fresh || self.is_cut(),
            // The first packets of a connection are often small; the largest among them is on trial.
            Phase::Proven { .. } | Phase::Trial { .. } => fresh && !self.is_cut(),
            Phase::Doubt { .. } => false,
        };
        if !untried || !self.is_exceeded_by(len) || ahead > AHEAD_MAX {
            return;
        }
        if !self.is_cut() {
            self.size = u16::try_from(len).unwrap_or(SIZE_MAX).min(SIZE_MAX);
        }
        self.phase = Phase::Trial { left: u16::try_from(ahead).unwrap_or(u16::MAX) };
    }

    /// The oldest packet on its way, of `len` bytes, is sent again, in pieces if it has to be cut.
    pub(crate) fn sent_again(&mut self, len: usize, v4: bool, now: Micros) {
        let len = self.limit().min(u16::try_from(len).unwrap_or(u16::MAX));
        if let Phase::Trial { .. } = self.phase
            && len < self.size
        {
            // What was on trial is sent in other segments now.
            self.untry();
        }
        let proven = self.proven();
        let Some(smaller) = attempt_below(len, v4).filter(|_| len > proven) else { return };
        match self.phase {
            Phase::Doubt { at } if now < at.after(REPEAT_PAUSE) => {}
            Phase::Doubt { .. } if proven > smaller => {
                *self = Path { size: proven, cut: Cut::Found, phase: Phase::Proven { since: now } };
            }
            Phase::Doubt { .. } => *self = Path { size: smaller, cut: Cut::Found, phase: Phase::Doubt { at: now } },
            Phase::Untried | Phase::Trial { .. } | Phase::Proven { .. } => {
                if !self.is_cut() {
                    self.size = proven;
                }
                self.phase = Phase::Doubt { at: now };
            }
        }
    }

    /// A router told.
    pub(crate) fn told(&mut self, mtu: u16) {
        if mtu < self.limit() {
            *self = Path { size: mtu, cut: Cut::Told, phase: Phase::Untried };
        }
    }

    /// So many bytes more were acknowledged; what that tells others of the path, if anything.
    pub(crate) fn acknowledged(&mut self, bytes: u32, now: Micros) -> Option<PathMtu> {
        let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
        let (arrived, otherwise) = match self.phase {
            Phase::Untried | Phase::Proven { .. } => return None,
            Phase::Trial { left } => (bytes >= left, Phase::Trial { left: left.saturating_sub(bytes) }),
            // A full piece at least.
            Phase::Doubt { .. } if self.is_cut() => (bytes >= self.size.saturating_sub(HEADERS_MAX), Phase::Untried),
            Phase::Doubt { .. } => (self.size > 0, Phase::Untried),
        };
        self.phase = if arrived { Phase::Proven { since: now } } else { otherwise };
        (arrived && self.cut == Cut::Found).then_some(PathMtu { mtu: self.size, source: PathSource::Silence })
    }

    /// Nothing is on trial any more.
    fn untry(&mut self) {
        if !self.is_cut() {
            self.size = 0;
        }
        self.phase = Phase::Untried;
    }
}

/// A [`Path`] in three bytes, for sessions of which there are very many: its size in 14 bits, its phase in two, why it cuts in two, and in six
/// how far the phase has come. Moments are kept to a tick, whose end they become: nothing happens too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackedPath([u8; 3]);

/// No packet is larger, bytes: configuration's largest MTU is 9,000.
const SIZE_MAX: u16 = (1 << 14) - 1;
const CLOCK_MAX: u8 = (1 << 6) - 1;
/// How phases are packed: those that listen to acknowledgments are the last.
const UNTRIED: u16 = 0;
const PROVEN: u16 = 1;
const TRIAL: u16 = 2;
const DOUBT: u16 = 3;
/// Ticks of [`Phase::Trial`], bytes to the power of two; of [`Phase::Doubt`] and [`Phase::Proven`], microseconds: 131 ms and 67 s.
const LEFT_LOG: u32 = 9;
const DOUBT_LOG: u32 = 17;
const PROVEN_LOG: u32 = 26;

impl PackedPath {
    /// Nothing is known.
    pub(crate) const UNKNOWN: PackedPath = PackedPath([0; 3]);

    /// Whether a packet of `len` bytes is worth a word.
    #[inline]
    pub(crate) fn is_exceeded_by(self, len: usize) -> bool {
        len > usize::from(self.word() & SIZE_MAX)
    }

    /// Whether an acknowledgment can tell anything.
    #[inline]
    pub(crate) fn listens(self) -> bool {
        self.word() >= TRIAL << 14
    }

    #[inline]
    fn word(self) -> u16 {
        let PackedPath([low, high, _]) = self;
        u16::from_le_bytes([low, high])
    }

    /// What was packed before `now`. A moment longer ago than the clock can tell may be taken for a newer one: eight seconds for a repeat, an
    /// hour for a size.
    pub(crate) fn unpack(self, now: Micros) -> Path {
        let PackedPath([_, _, rest]) = self;
        let (word, clock) = (self.word(), rest & CLOCK_MAX);
        let moment = |log: u32| {
            let ticks = now.0.wrapping_shr(log);
            let age = (ticks as u8).wrapping_sub(clock) & CLOCK_MAX;
            let end = ticks.saturating_sub(u64::from(age)).wrapping_add(1).wrapping_shl(log);
            Micros(end.saturating_sub(1))
        };
        let cut = match rest >> 6 {
            0 => Cut::Not,
            1 => Cut::Told,
            _ => Cut::Found,
        };
        let phase = match word >> 14 {
            UNTRIED => Phase::Untried,
            PROVEN => Phase::Proven { since: moment(PROVEN_LOG) },
            TRIAL => Phase::Trial { left: u16::from(clock).wrapping_shl(LEFT_LOG) },
            _ => Phase::Doubt { at: moment(DOUBT_LOG) },
        };
        Path { size: word & SIZE_MAX, cut, phase }
    }
}

impl From<Path> for PackedPath {
    fn from(path: Path) -> PackedPath {
        let Path { size, cut, phase } = path;
        let tick = |at: Micros, log: u32| at.0.wrapping_shr(log) as u8 & CLOCK_MAX;
        let (phase, clock) = match phase {
            Phase::Untried => (UNTRIED, 0),
            Phase::Proven { since } => (PROVEN, tick(since, PROVEN_LOG)),
            // No trial ends too early either.
            Phase::Trial { left } => {
                let ticks = u32::from(left).div_ceil(1 << LEFT_LOG);
                (TRIAL, u8::try_from(ticks).unwrap_or(CLOCK_MAX).min(CLOCK_MAX))
            }
            Phase::Doubt { at } => (DOUBT, tick(at, DOUBT_LOG)),
        };
        let [low, high] = (size.min(SIZE_MAX) | phase << 14).to_le_bytes();
        let cut = match cut {
            Cut::Not => 0,
            Cut::Told => 1,
            Cut::Found => 2,
        };
        PackedPath([low, high, cut << 6 | clock])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FULL: usize = 1_500;
    const MS: u64 = 1_000;
    const SECOND: u64 = 1_000 * MS;

    fn at(micros: u64) -> Micros {
        Micros(1_000 * SECOND + micros)
    }

    /// A path that a packet of `len` bytes got through.
    fn proved(len: usize) -> Path {
        let mut path = Path::new(None);
        path.sent(len, 2_000, true);
        assert_eq!(path.acknowledged(2_000, at(0)), None);
        path
    }

    /// Repeats of a packet of `len` bytes at these milliseconds, and the limit after each.
    fn repeated(path: &mut Path, len: usize, v4: bool, times: &[u64]) -> Vec<u16> {
        times.iter().map(|ms| (path.sent_again(len, v4, at(ms * MS)), path.limit()).1).collect()
    }

    #[test]
    fn a_packet_sent_again_twice_in_vain_on_a_path_that_proved_nothing_is_tried_in_smaller_pieces() {
        let times = [200, 600, 1_400, 3_000, 6_200];
        assert_eq!(repeated(&mut Path::new(None), FULL, true, &times), [u16::MAX, 1_280, 576, 576, 576]);
        assert_eq!(repeated(&mut Path::new(None), FULL, false, &times[..3]), [u16::MAX, 1_280, 1_280]);
        // Progress between the two: the wire loses, and takes the size.
        let mut path = Path::new(None);
        for second in 0..5 {
            path.sent_again(FULL, true, at(second * SECOND));
            assert_eq!((path.acknowledged(1_460, at(second * SECOND)), path.limit()), (None, u16::MAX));
        }
    }

    #[test]
    fn repeats_within_the_least_rto_count_once() {
        let limits = repeated(&mut Path::new(None), FULL, true, &[0, 1, 2, 199, 200]);
        assert_eq!(limits, [u16::MAX, u16::MAX, u16::MAX, u16::MAX, 1_280]);
    }

    #[test]
    fn what_got_through_once_is_not_narrowed_by_silence() {
        let times: Vec<u64> = (0..20).map(|n| n * 1_000).collect();
        for len in [577, 1_280, FULL] {
            assert!(repeated(&mut proved(FULL), len, true, &times).iter().all(|limit| *limit == u16::MAX), "{len}");
        }
        // Larger ones may still be too large, and no smaller size is tried than the one that is known to do.
        assert_eq!(repeated(&mut proved(600), FULL, true, &times[..3]), [u16::MAX, 1_280, 576]);
        assert_eq!(repeated(&mut proved(1_350), FULL, true, &times[..4]), [u16::MAX, 1_350, 1_350, 1_350]);
    }

    #[test]
    fn a_packet_is_proven_by_the_acknowledgment_of_its_own_last_byte_alone() {
        let doubted = |path: &mut Path| repeated(path, FULL, true, &[0, 1_000]) == [u16::MAX, 1_280];
        let mut path = Path::new(None);
        path.sent(FULL, 3_000, true);
        assert_eq!(path.acknowledged(2_999, at(0)), None);
        assert!(doubted(&mut path.clone()));
        assert_eq!(path.acknowledged(1, at(0)), None);
        assert!(!doubted(&mut path));
        // The largest of a flight, behind smaller ones.
        let mut path = Path::new(None);
        path.sent(300, 260, true);
        path.sent(FULL, 1_720, true);
        path.acknowledged(260, at(0));
        assert!(doubted(&mut path.clone()));
        path.acknowledged(1_460, at(0));
        assert!(!doubted(&mut path));
        // Its bytes were sent before, in whatever segments.
        let mut path = Path::new(None);
        path.sent(FULL, 1_460, false);
        path.acknowledged(1_460, at(0));
        assert!(doubted(&mut path));
        // They are sent again in smaller ones.
        let mut path = Path::new(None);
        path.sent(FULL, 1_460, true);
        path.sent_again(700, true, at(0));
        path.acknowledged(1_460, at(0));
        assert!(doubted(&mut path));
    }

    #[test]
    fn a_size_that_this_connection_found_is_told_to_others_when_a_piece_was_acknowledged() {
        let found = PathMtu { mtu: 1_280, source: PathSource::Silence };
        let mut path = Path::new(None);
        repeated(&mut path, FULL, true, &[0, 1_000]);
        assert_eq!(path.acknowledged(1_240, at(0)), Some(found));
        assert_eq!(path.acknowledged(1_240, at(0)), None, "once");
        // One that it was told is not, or whoever connects within ten minutes would make it last for good.
        for source in PathSource::ALL {
            let mut path = Path::new(Some(PathMtu { mtu: 1_280, source }));
            path.sent(FULL, 1_460, true);
            assert_eq!((path.acknowledged(1_460, at(0)), path.limit()), (None, 1_280));
        }
    }

    #[test]
    fn a_size_that_is_cut_to_lapses_ten_minutes_after_it_was_proven() {
        let mut path = Path::new(None);
        repeated(&mut path, FULL, true, &[0, 1_000]);
        path.lapse(at(900 * SECOND));
        assert_eq!(path.limit(), 1_280, "nothing got through yet");
        path.acknowledged(1_240, at(0));
        path.lapse(at(600 * SECOND - 1));
        assert_eq!(path.limit(), 1_280);
        path.lapse(at(600 * SECOND));
        assert_eq!(path, Path::new(None));
    }

    fn phase() -> impl Strategy<Value = Phase> {
        prop_oneof![
            Just(Phase::Untried),
            (1_u16..=AHEAD_MAX as u16).prop_map(|left| Phase::Trial { left }),
            (0_u64..2_000 * SECOND).prop_map(|ago| Phase::Proven { since: Micros(10_000 * SECOND - ago) }),
            (0_u64..7 * SECOND).prop_map(|ago| Phase::Doubt { at: Micros(10_000 * SECOND - ago) }),
        ]
    }

    proptest! {
        #[test]
        fn a_packed_path_is_the_same_but_for_moments_that_may_seem_a_tick_later(
            size in 0..=SIZE_MAX, phase in phase(),
            cut in prop_oneof![Just(Cut::Not), Just(Cut::Told), Just(Cut::Found)],
        ) {
            let (path, now) = (Path { size, cut, phase }, Micros(10_000 * SECOND));
            let packed = PackedPath::from(path);
            let out = packed.unpack(now);
            let listens = matches!(phase, Phase::Trial { .. } | Phase::Doubt { .. });
            prop_assert_eq!((out.size, out.cut, packed.listens()), (size, cut, listens));
            prop_assert_eq!(PackedPath::from(out), packed);
            prop_assert_eq!(packed.is_exceeded_by(1_400), path.is_exceeded_by(1_400));
            match (phase, out.phase) {
                (Phase::Untried, Phase::Untried) => {}
                (Phase::Trial { left: a }, Phase::Trial { left: b }) => prop_assert!(b >= a && b - a < 1 << LEFT_LOG),
                (Phase::Proven { since: a }, Phase::Proven { since: b }) => prop_assert!(b >= a && b.0 - a.0 < 1 << PROVEN_LOG),
                (Phase::Doubt { at: a }, Phase::Doubt { at: b }) => prop_assert!(b >= a && b.0 - a.0 < 1 << DOUBT_LOG),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
