//! SYN cookies: half-open connections that live in the sequence number instead of in memory (RFC 4987 section 3.6).
//!
//! The SYN-ACK's initial sequence number is
//! `epoch parity (1 bit) | MSS index (3) | client's window scale (4; 15 = none) | SACK (1) | MAC (23)`,
//! the same for clients with and without timestamps, so neither loses window scaling and SACK.
//!
//! The MAC is SipHash-1-3 over both addresses, both ports, the client's ISN, the epoch's number and the eight option bits, under
//! a key derived per epoch from one seed. Epochs are counted on the wall clock, so appliances that share a seed
//! accept each other's cookies. The parity bit says which of two live epochs to check: a wrong ACK costs one hash.
//!
//! Which epochs are live: this one, and the one before it; in the last eighth of an epoch the next one takes the place of
//! the one before (by then at least seven eighths of an epoch old), so that a sibling appliance whose clock runs ahead is understood.
//!
//! A clock that is set takes the epochs along ([`Jar::step`]): cookies are minted in the new one at once, as siblings with a right
//! clock do, and for one epoch more the cookies of the two epochs that were live before are good too; an ACK with a wrong cookie costs
//! a second hash meanwhile. Of several steps within an epoch the last that took all live epochs away counts, or else the first.
//!
//! Invariants:
//! - Nothing that is remembered between SYN and ACK admits anybody, and nothing is derived per packet but the hash.
//!   What the stack notes of an answered SYN in peace ([`crate::unanswered`]) serves to send the same answer again.
//! - A forged ACK passes with probability 2^-23; with twice that in the epoch after a step; one that may as well be a
//!   keep-alive probe is looked at twice while few such come.
//! - The answer is at most [`AMPLIFICATION`] octets longer than the SYN. Under pressure it is sent once and never
//!   retransmitted: a reflected SYN flood grows by less than a tenth. In peace it may be sent six times, under a
//!   ceiling of its own.
//! - The answer asserts only what both sides can do: an option the client did not offer is not in it (RFC 7323 sections 2.2
//!   and 3.2). ECN is not negotiated, and data on the SYN is not acknowledged, so the client sends it again.

use std::hash::Hasher;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher24};
use sluice_filters::addr::FlowKey;
use sluice_filters::units::Seq;
use sluice_filters::{Flags, Segment, SynOffer};
use zeroize::{Zeroize, Zeroizing};

use crate::options::SynOptions;
use crate::segment::{Direction, Head, PACKET_MAX, TcpChecksum};
use crate::sip;

/// Room [`Jar::answer_syn`] needs in the frame's buffer: a tagged Ethernet header, IPv6, TCP and every option.
pub const SYN_ACK_MAX: usize = 18 + PACKET_MAX;

/// Octets by which an answer can be longer than its SYN: our MSS option, when the client sent none.
pub const AMPLIFICATION: usize = 4;

/// The lowest MSS served, and the lowest a cookie can remember: a client that asks for less gets segments of this. Linux's own
/// minimum (`tcp_min_snd_mss`), and what it does: smaller segments would be mostly headers, a way to make a server work
/// (CVE-2019-11479).
pub const MSS_MIN: u16 = 48;

/// MSS of a client that sent no MSS option (RFC 9293 section 3.7.1).
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1_220;

/// What a cookie can remember of the client's MSS, rounded down. For IPv4: Linux's minimum, the default, small tunnels,
/// nested tunnels, WireGuard, PPPoE and 1480-octet tunnels, Ethernet, jumbo frames.
const MSS_V4: [u16; 8] = [MSS_MIN, MSS_DEFAULT_V4, 1_200, 1_360, 1_380, 1_440, 1_460, 8_960];

/// For IPv6: as IPv4, with the minimum MTU's 1220, and 20 octets less from Ethernet on.
const MSS_V6: [u16; 8] = [MSS_MIN, 536, MSS_DEFAULT_V6, 1_360, 1_400, 1_420, 1_440, 8_940];

const PARITY_SHIFT: u32 = 31;
const OPTIONS_SHIFT: u32 = 23;
const MAC_MASK: u32 = (1 << OPTIONS_SHIFT) - 1;
const SCALE_NONE: u8 = 15;
/// RFC 7323 section 2.3: larger shifts count as this one.
const SCALE_MAX: u8 = 14;

/// What client and appliance agreed on, as far as the cookie remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The client's MSS; from a cookie, rounded down to what the cookie can say.
    pub mss: u16,
    /// The client's window scale, 0 to 14. None: neither side scales.
    pub wscale: Option<u8>,
    /// Whether both sides may send SACK.
    pub sack: bool,
}

/// How a service answers a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynAckProfile {
    /// The MSS option we send.
    pub mss: u16,
    /// The window scale we send when the client offers one; none switches scaling off.
    pub wscale: Option<u8>,
    /// The window field.
    pub window: u16,
    /// Whether SACK is permitted when the client permits it.
    pub sack: bool,
    /// Whether timestamps are used when the client offers them.
    pub timestamps: bool,
    /// The Ethernet source of the answer.
    pub src_mac: [u8; 6],
    /// Who finishes the TCP checksum.
    pub tcp_checksum: TcpChecksum,
}

/// One epoch's number and key.
struct Live {
    epoch: u64,
    key: sip::Key,
}

impl Live {
    /// Before the first [`Jar::tick`].
    const NONE: Live = Live { epoch: 0, key: sip::Key::new([0; 2]) };

    fn derive(seed: &[u8; 32], epoch: u64) -> Live {
        Live { epoch, key: sip::Key::new(derive(seed, b"cookie  ", epoch)) }
    }

    /// One hash gives both: the cookie's MAC, and the timestamp offset.
    #[inline(always)]
    fn mac<const V4: bool>(&self, key: &FlowKey, client_isn: Seq, options: u8) -> (u32, u32) {
        let word = u64::from(sip::ports(key)) << 32 | u64::from(client_isn.0);
        // Seven octets, so that with SipHash's length octet they fill the last block: three blocks in all for IPv4.
        let tail = self.epoch << 16 >> 8 | u64::from(options);
        let hash = self.key.of_flow::<V4, 1>(key, [word], tail, 7);
        (hash as u32 & MAC_MASK, (hash >> 32) as u32)
    }
}

/// Nanoseconds, good until the year 2554.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A key for one purpose: SipHash-2-4-128 under the seed's first half, over its second half, the purpose and a number.
fn derive(seed: &[u8; 32], purpose: &[u8; 8], number: u64) -> [u64; 2] {
    let (key, rest) = seed.split_at(16);
    let mut sip = SipHasher24::new_with_key(key.first_chunk().unwrap_or(&[0; 16]));
    sip.write(rest);
    sip.write(purpose);
    sip.write(&number.to_le_bytes());
    let hash = sip.finish128();
    [hash.h1, hash.h2]
}

/// Mints and checks cookies. One worker's; workers and appliances with the same seed accept each other's cookies.
pub struct Jar {
    seed: Zeroizing<[u8; 32]>,
    /// The even epoch, then the odd one.
    live: [Live; 2],
    /// Whether the epoch that mints is the odd one.
    mints_odd: bool,
    epoch: Duration,
    /// The span of wall-clock time in which `live` is right, and `before` too.
    from: Duration,
    until: Duration,
    /// What was live before the clock was set.
    before: Option<Before>,
}

/// The epochs from before a step of the clock.
struct Before {
    /// The even one, then the odd one.
    live: [Live; 2],
    /// Until when their cookies are good, on the clock as it is after the step.
    until: Duration,
}

impl Jar {
    /// A jar with a seed from a good random source, shared by whoever is to accept these cookies, and the length of its
    /// epochs (at least a second). Call [`Jar::tick`] before the first cookie.
    #[must_use]
    pub fn new(mut seed: [u8; 32], epoch: Duration) -> Jar {
        let kept = Zeroizing::new(seed);
        seed.zeroize();
        let mut jar = Jar {
            live: [Live::NONE; 2],
            mints_odd: false,
            seed: kept,
            epoch: epoch.max(Duration::from_secs(1)),
            from: Duration::MAX,
            until: Duration::ZERO,
            before: None,
        };
        jar.enter(Duration::ZERO);
        // No time yet.
        (jar.from, jar.until) = (Duration::MAX, Duration::ZERO);
        jar
    }

    /// Moves to the epoch of `wall`, the time since 1970 on the wall clock. Cheap unless an epoch ends; call it every turn.
    /// Whether other cookies are minted or accepted from now on.
    #[inline]
    pub fn tick(&mut self, wall: Duration) -> bool {
        let rolls = !(self.from..self.until).contains(&wall);
        if rolls {
            self.roll(wall);
        }
        rolls
    }

    /// The epoch that mints, and the other one whose cookies are accepted.
    pub(crate) fn epochs(&self) -> (u64, u64) {
        (self.live(self.mints_odd).epoch, self.live(!self.mints_odd).epoch)
    }

    /// The epoch that minted a cookie which [`Jar::check`] accepts.
    #[must_use]
    pub(crate) fn epoch_of(&self, key: &FlowKey, client_isn: Seq, cookie: Seq) -> u64 {
        let odd = cookie.0 >> PARITY_SHIFT == 1;
        let options = (cookie.0 >> OPTIONS_SHIFT) as u8;
        let minted = |live: &Live| {
            let (mac, _) = if key.src.is_v4() {
                live.mac::<true>(key, client_isn, options)
            } else {
                live.mac::<false>(key, client_isn, options)
            };
            mac == cookie.0 & MAC_MASK
        };
        let now = self.live(odd);
        let before = self.before.as_ref().and_then(|before| before.live.get(usize::from(odd)));
        before.filter(|before| !minted(now) && minted(before)).unwrap_or(now).epoch
    }

    #[cold]
    fn roll(&mut self, wall: Duration) {
        self.enter(wall);
        self.before = self.before.take().filter(|before| wall < before.until);
        if let Some(before) = &self.before {
            self.until = self.until.min(before.until);
        }
    }

    /// As [`Jar::tick`], when the wall clock was set since the last call, forth or back, `by` so much: cookies minted until now stay good
    /// for at least as long as a cookie always is. Whether some may then be good for longer; a step of no more than the eighth of an
    /// epoch by which siblings' clocks may differ is not worth it.
    #[cold]
    pub fn step(&mut self, wall: Duration, by: Duration) -> bool {
        let minted = self.live(self.mints_odd).epoch;
        let begun = self.from < self.until;
        let live = std::mem::replace(&mut self.live, [Live::NONE; 2]);
        self.enter(wall);
        let lives = self.live.iter().any(|live| live.epoch == minted);
        let matters = begun && (by.saturating_mul(8) > self.epoch || !lives);
        if matters && (self.before.is_none() || !lives) {
            self.before = Some(Before { live, until: wall.saturating_add(self.epoch) });
        }
        self.roll(wall);
        matters
    }

    /// Derives the live epochs' keys at `wall`.
    fn enter(&mut self, wall: Duration) {
        let length = nanos(self.epoch).max(1);
        let epoch = nanos(wall).div_euclid(length);
        let start = Duration::from_nanos(epoch.wrapping_mul(length));
        // From here on the next epoch's cookies are accepted in place of the last one's.
        let turn = start.saturating_add(Duration::from_nanos(length.wrapping_sub(length.div_euclid(8))));
        let other = if wall < turn {
            (self.from, self.until) = (start, turn);
            epoch.wrapping_sub(1)
        } else {
            (self.from, self.until) = (turn, start.saturating_add(self.epoch));
            epoch.wrapping_add(1)
        };
        self.mints_odd = epoch & 1 == 1;
        for number in [epoch, other] {
            if let Some(live) = self.live.get_mut((number & 1) as usize) {
                *live = Live::derive(&self.seed, number);
            }
        }
    }

    #[inline]
    fn live(&self, odd: bool) -> &Live {
        self.live.get(usize::from(odd)).unwrap_or(&self.live[0])
    }

    /// The timestamp offset of the connection whose SYN-ACK had this cookie; none when it is none of ours.
    #[inline(always)]
    fn recognise<const V4: bool>(&self, key: &FlowKey, client_isn: Seq, cookie: u32) -> Option<u32> {
        let (odd, options) = (cookie >> PARITY_SHIFT == 1, (cookie >> OPTIONS_SHIFT) as u8);
        let (mac, ts_offset) = self.live(odd).mac::<V4>(key, client_isn, options);
        if mac == cookie & MAC_MASK {
            return Some(ts_offset);
        }
        let before = self.before.as_ref()?;
        let (mac, ts_offset) = before.live.get(usize::from(odd))?.mac::<V4>(key, client_isn, options);
        (mac == cookie & MAC_MASK).then_some(ts_offset)
    }

    /// The cookie for a SYN: our initial sequence number. `offer.mss` is taken for at least [`MSS_MIN`].
    #[inline]
    #[must_use]
    pub fn mint(&self, key: &FlowKey, client_isn: Seq, offer: Offer) -> Seq {
        if key.src.is_v4() {
            self.mint_in::<true>(key, client_isn, offer).0
        } else {
            self.mint_in::<false>(key, client_isn, offer).0
        }
    }

    #[inline(always)]
    fn mint_in<const V4: bool>(&self, key: &FlowKey, client_isn: Seq, offer: Offer) -> (Seq, u32) {
        let options = encode::<V4>(offer);
        let (mac, ts_offset) = self.live(self.mints_odd).mac::<V4>(key, client_isn, options);
        let cookie = u32::from(self.mints_odd) << PARITY_SHIFT | u32::from(options) << OPTIONS_SHIFT | mac;
        (Seq(cookie), ts_offset)
    }

    /// What a client's first ACK says the SYN-ACK agreed on; none when its cookie is not ours or too old. `client_isn` is the
    /// segment's sequence number minus one, `ack` its acknowledgment number, which is the cookie plus one.
    #[inline]
    #[must_use]
    pub fn check(&self, key: &FlowKey, client_isn: Seq, ack: Seq) -> Option<Offer> {
        if key.src.is_v4() {
            self.check_in::<true>(key, client_isn, ack)
        } else {
            self.check_in::<false>(key, client_isn, ack)
        }
    }

    #[inline(always)]
    fn check_in<const V4: bool>(&self, key: &FlowKey, client_isn: Seq, ack: Seq) -> Option<Offer> {
        let cookie = ack.0.wrapping_sub(1);
        self.recognise::<V4>(key, client_isn, cookie).map(|_| decode::<V4>((cookie >> OPTIONS_SHIFT) as u8))
    }

    /// What our timestamps in the connection that `cookie` opened are ahead of the millisecond clock: the same at accept time as
    /// in the SYN-ACK (RFC 7323 section 5.4). Means something only for a cookie that [`Jar::check`] accepts.
    #[must_use]
    pub fn ts_offset(&self, key: &FlowKey, client_isn: Seq, cookie: Seq) -> u32 {
        let ts_offset = if key.src.is_v4() {
            self.recognise::<true>(key, client_isn, cookie.0)
        } else {
            self.recognise::<false>(key, client_isn, cookie.0)
        };
        ts_offset.unwrap_or(0)
    }

    /// Turns the frame of a SYN into its SYN-ACK and returns the new length. `frame` is the whole buffer, at least
    /// [`SYN_ACK_MAX`] octets: the answer may be longer or shorter than the SYN, and what follows it is undefined. `segment` is
    /// that frame, parsed; `now_ms` the millisecond clock of our timestamps.
    ///
    /// Ethernet goes back where it came from, in the same VLAN. Everything above is written anew from `segment`.
    /// An MSS below [`MSS_MIN`] counts as that. None, and nothing written, when the buffer is too short.
    #[inline(always)]
    pub fn answer_syn(
        &self,
        frame: &mut [u8],
        segment: &Segment,
        profile: &SynAckProfile,
        now_ms: u32,
    ) -> Option<usize> {
        if segment.key.src.is_v4() {
            self.answer_syn_in::<true>(frame, segment, profile, now_ms)
        } else {
            self.answer_syn_in::<false>(frame, segment, profile, now_ms)
        }
    }

    #[inline(always)]
    fn answer_syn_in<const V4: bool>(
        &self,
        frame: &mut [u8],
        segment: &Segment,
        profile: &SynAckProfile,
        now_ms: u32,
    ) -> Option<usize> {
        let options = segment.option_octets(frame);
        // The usual floods, Linux's SYN and the bare one, each get their own copy of what follows, with all that is known of
        // them folded in.
        if let Some(offered) = SynOffer::of_linux(options) {
            self.answer_offer::<V4>(frame, segment, offered, profile, now_ms)
        } else if options.is_empty() {
            self.answer_offer::<V4>(frame, segment, SynOffer::default(), profile, now_ms)
        } else {
            self.answer_offer::<V4>(frame, segment, SynOffer::read(options), profile, now_ms)
        }
    }

    #[inline(always)]
    fn answer_offer<const V4: bool>(
        &self,
        frame: &mut [u8],
        segment: &Segment,
        offered: SynOffer,
        profile: &SynAckProfile,
        now_ms: u32,
    ) -> Option<usize> {
        let offer = Offer {
            mss: offered.mss.unwrap_or(if V4 { MSS_DEFAULT_V4 } else { MSS_DEFAULT_V6 }),
            wscale: offered.wscale.filter(|_| profile.wscale.is_some()),
            sack: offered.sack_permitted && profile.sack,
        };
        let (cookie, ts_offset) = self.mint_in::<V4>(&segment.key, segment.seq, offer);
        let answer = SynOptions {
            mss: profile.mss,
            wscale: profile.wscale.filter(|_| offer.wscale.is_some()),
            sack: offer.sack,
            timestamp: offered
                .tsval
                .filter(|_| profile.timestamps)
                .map(|value| (now_ms.wrapping_add(ts_offset), value)),
        };
        let mut head = Head::between(&segment.key, Direction::ToPeer);
        head.seq = cookie;
        head.ack = segment.seq.plus(1);
        head.flags = Flags::SYN | Flags::ACK;
        head.window = profile.window;

        let l3 = segment.l3();
        let (link, packet) = frame.split_at_mut_checked(l3)?;
        let (ethernet, packet) = (link.first_chunk_mut::<12>()?, packet.first_chunk_mut::<PACKET_MAX>()?);
        let [.., a, b, c, d, e, f] = *ethernet;
        let client = [a, b, c, d, e, f];
        ethernet[..6].copy_from_slice(&client);
        ethernet[6..].copy_from_slice(&profile.src_mac);
        Some(l3.wrapping_add(head.fill::<V4>(packet, &answer.words(), profile.tcp_checksum)))
    }
}

/// The eight option bits.
#[inline(always)]
fn encode<const V4: bool>(offer: Offer) -> u8 {
    let table = if V4 { &MSS_V4 } else { &MSS_V6 };
    let [_, above @ ..] = table;
    // Comparisons side by side: a search would be a chain of eight loads and decisions in front of the hash.
    let mut index = 0_u8;
    for mss in above {
        index = index.wrapping_add(u8::from(*mss <= offer.mss));
    }
    let wscale = offer.wscale.map_or(SCALE_NONE, |shift| shift.min(SCALE_MAX));
    index << 5 | wscale << 1 | u8::from(offer.sack)
}

#[inline(always)]
fn decode<const V4: bool>(options: u8) -> Offer {
    let table = if V4 { &MSS_V4 } else { &MSS_V6 };
    let wscale = options >> 1 & 0xf;
    Offer {
        mss: table.get(usize::from(options >> 5)).copied().unwrap_or(MSS_MIN),
        wscale: (wscale != SCALE_NONE).then_some(wscale),
        sack: options & 1 != 0,
    }
}

impl std::fmt::Debug for Jar {
    /// Without the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let epochs = (self.live[0].epoch, self.live[1].epoch);
        f.debug_struct("Jar").field("epoch", &self.epoch).field("live", &epochs).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
