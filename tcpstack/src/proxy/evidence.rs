//! What the handshake showed of a client: TLV type 0xE3, layout version 1.
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 1 | layout version, 1 |
//! | 1 | 1 | flags: 0x01 SACK permitted, 0x02 timestamps, 0x04 window scale, 0x08 round-trip time, 0x10 under attack |
//! | 2 | 1 | window scale; 0 without its flag |
//! | 3 | 1 | TTL or hop limit |
//! | 4 | 2 | MSS |
//! | 6 | 2 | window |
//! | 8 | 4 | TSval; 0 without its flag |
//! | 12 | 4 | round-trip time, milliseconds; 0 without its flag |
//! | 16 | 1 | n, how many option kinds follow |
//! | 17 | n | option kinds, in their order |
//!
//! Numbers are in network order. Flags that are not named are sent as zero and ignored. A layout that changes any of this
//! has another version.

use std::fmt;

/// The layout's version.
const LAYOUT: u8 = 1;

/// Octets before the option kinds.
const FIXED: usize = 17;

/// A TCP header has room for this many options of one octet (RFC 9293 section 3.1).
pub const OPTION_KINDS_MAX: usize = 40;

/// The longest encoding.
pub(super) const ENCODED_MAX: usize = FIXED + OPTION_KINDS_MAX;

const SACK: u8 = 0x01;
const TIMESTAMPS: u8 = 0x02;
const WINDOW_SCALE: u8 = 0x04;
const ROUND_TRIP: u8 = 0x08;
const UNDER_ATTACK: u8 = 0x10;

/// What the handshake showed of a client. All but `under_attack` is in the client's hands, so a hint at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The client's MSS as the cookie remembers it: rounded down.
    pub mss: u16,
    /// The client's window scale; none when it offered none.
    pub wscale: Option<u8>,
    /// Whether the client permitted SACK.
    pub sack: bool,
    /// TSval of the ACK that returned the cookie; none without timestamps.
    pub tsval: Option<u32>,
    /// TTL (IPv4) or hop limit (IPv6) of that ACK, as it arrived.
    pub hop_limit: u8,
    /// Window field of that ACK, not scaled.
    pub window: u16,
    /// Option kinds of that ACK.
    pub options: OptionKinds,
    /// From our SYN-ACK to that ACK, where timestamps tell.
    pub rtt_ms: Option<u32>,
    /// Whether the service was under attack.
    pub under_attack: bool,
}

/// The kinds of a segment's TCP options in their order, NOP (1) and end of list (0) included.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OptionKinds {
    kinds: [u8; OPTION_KINDS_MAX],
    len: u8,
}

impl OptionKinds {
    /// Those of `kinds` that a TCP header has room for.
    #[must_use]
    pub fn new(kinds: impl IntoIterator<Item = u8>) -> OptionKinds {
        let mut list = OptionKinds { kinds: [0; OPTION_KINDS_MAX], len: 0 };
        for (slot, kind) in list.kinds.iter_mut().zip(kinds) {
            *slot = kind;
            list.len = list.len.saturating_add(1);
        }
        list
    }

    /// The kinds.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.kinds.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl fmt::Debug for OptionKinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

impl Evidence {
    /// The TLV's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = flag(self.sack, SACK)
            | flag(self.tsval.is_some(), TIMESTAMPS)
            | flag(self.wscale.is_some(), WINDOW_SCALE)
            | flag(self.rtt_ms.is_some(), ROUND_TRIP)
            | flag(self.under_attack, UNDER_ATTACK);
        let mut value = Vec::with_capacity(ENCODED_MAX);
        value.extend([LAYOUT, flags, self.wscale.unwrap_or(0), self.hop_limit]);
        value.extend(self.mss.to_be_bytes());
        value.extend(self.window.to_be_bytes());
        value.extend(self.tsval.unwrap_or(0).to_be_bytes());
        value.extend(self.rtt_ms.unwrap_or(0).to_be_bytes());
        value.push(self.options.len);
        value.extend(self.options.as_slice());
        value
    }

    /// Reads a TLV's value. None when it is of another layout, too short or too long.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Evidence> {
        let (head, kinds) = value.split_first_chunk::<FIXED>()?;
        let [layout, flags, wscale, hop_limit, m1, m0, w1, w0, t3, t2, t1, t0, r3, r2, r1, r0, count] = *head;
        if layout != LAYOUT || kinds.len() != usize::from(count) || kinds.len() > OPTION_KINDS_MAX {
            return None;
        }
        let has = |bit: u8| flags & bit != 0;
        Some(Evidence {
            mss: u16::from_be_bytes([m1, m0]),
            wscale: has(WINDOW_SCALE).then_some(wscale),
            sack: has(SACK),
            tsval: has(TIMESTAMPS).then_some(u32::from_be_bytes([t3, t2, t1, t0])),
            hop_limit,
            window: u16::from_be_bytes([w1, w0]),
            options: OptionKinds::new(kinds.iter().copied()),
            rtt_ms: has(ROUND_TRIP).then_some(u32::from_be_bytes([r3, r2, r1, r0])),
            under_attack: has(UNDER_ATTACK),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What Linux shows over Ethernet, 31 ms away.
    pub(in super::super) fn linux() -> Evidence {
        Evidence {
            mss: 1_460,
            wscale: Some(7),
            sack: true,
            tsval: Some(0x0102_0304),
            hop_limit: 57,
            window: 502,
            options: OptionKinds::new([1, 1, 8]),
            rtt_ms: Some(31),
            under_attack: true,
        }
    }

    #[test]
    fn layout_is_the_documented_one() {
        assert_eq!(
            linux().encode(),
            [
                1, 0x1f, 7, 57, // layout version, flags, window scale, TTL
                0x05, 0xb4, 0x01, 0xf6, // MSS, window
                1, 2, 3, 4, // TSval
                0, 0, 0, 31, // round-trip time
                3, 1, 1, 8, // option kinds
            ]
        );
        let bare = Evidence {
            mss: 536,
            wscale: None,
            sack: false,
            tsval: None,
            hop_limit: 128,
            window: 64_240,
            options: OptionKinds::new([]),
            rtt_ms: None,
            under_attack: false,
        };
        assert_eq!(bare.encode(), [1, 0, 0, 128, 0x02, 0x18, 0xfa, 0xf0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn other_layouts_and_lengths_are_not_guessed_at() {
        let sound = linux().encode();
        for (at, octet) in [(0, 0), (0, 2), (16, 2), (16, 4)] {
            let mut value = sound.clone();
            value[at] = octet;
            assert_eq!(Evidence::decode(&value), None, "{octet} at {at}");
        }
        for len in 0..sound.len() {
            assert_eq!(Evidence::decode(&sound[..len]), None, "{len}");
        }
        let mut long = vec![1; FIXED + 41];
        long[16] = 41;
        assert_eq!(Evidence::decode(&long), None);
    }

    #[test]
    fn flags_to_come_are_ignored() {
        let mut value = linux().encode();
        value[1] |= 0xe0;
        assert_eq!(Evidence::decode(&value), Some(linux()));
    }

    #[test]
    fn more_kinds_than_a_tcp_header_holds_are_cut() {
        let kinds = OptionKinds::new(std::iter::repeat_n(1, 60));
        assert_eq!(kinds.as_slice(), [1; OPTION_KINDS_MAX]);
    }

    pub(in super::super) fn evidence() -> impl Strategy<Value = Evidence> {
        let kinds = prop::collection::vec(any::<u8>(), 0..=OPTION_KINDS_MAX);
        (any::<(u16, Option<u8>, bool, Option<u32>, u8, u16)>(), kinds, any::<(Option<u32>, bool)>()).prop_map(
            |((mss, wscale, sack, tsval, hop_limit, window), kinds, (rtt_ms, under_attack))| Evidence {
                mss,
                wscale,
                sack,
                tsval,
                hop_limit,
                window,
                options: OptionKinds::new(kinds),
                rtt_ms,
                under_attack,
            },
        )
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(evidence in evidence()) {
            let value = evidence.encode();
            prop_assert!(value.len() <= ENCODED_MAX);
            prop_assert_eq!(Evidence::decode(&value), Some(evidence));
        }

        #[test]
        fn decoding_never_panics(value in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Evidence::decode(&value);
        }
    }
}
