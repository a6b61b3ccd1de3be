//! TCP options (RFC 9293 section 3.1, RFC 7323, RFC 2018).
//!
//! A tolerant reader: it stops at the first malformed option and keeps what it has; it never fails. A known option of the
//! wrong size is skipped; the last of several equal options counts, as in Linux.

use crate::units::Seq;

/// RFC 7323 section 2.3.
const MAX_SHIFT: u8 = 14;

/// What a segment's options say. Offsets count from the start of the frame, for rewriting in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// Maximum segment size; an MSS of 0 counts as none.
    pub mss: Option<u16>,
    /// Window scale, at most 14 (RFC 7323 section 2.3).
    pub wscale: Option<u8>,
    /// Whether SACK is permitted.
    pub sack_permitted: bool,
    /// TSval and TSecr.
    pub timestamp: Option<(u32, u32)>,
    /// Offset of TSval (TSecr follows) in the frame; means something only with `timestamp`.
    pub timestamp_at: u16,
    /// Offset of the first SACK block in the frame; means something only when there are blocks.
    pub sack_at: u16,
    sack_len: u8,
    sack: [(Seq, Seq); 4],
}

impl TcpOptions {
    /// The SACK blocks, left and right edge each, at most four.
    #[inline]
    #[must_use]
    pub fn sack_blocks(&self) -> &[(Seq, Seq)] {
        self.sack.get(..usize::from(self.sack_len)).unwrap_or_default()
    }

    /// Reads the options in `bytes`, which stand at `offset` in their frame.
    #[inline]
    #[must_use]
    pub fn read(bytes: &[u8], offset: usize) -> TcpOptions {
        // Nearly every segment after the handshake has nothing, or just a timestamp in the layout of RFC 7323 appendix A; and
        // Linux's SYN (Android's too) is the most common one. The rest goes the long way.
        match *bytes {
            [] => TcpOptions::default(),
            [1, 1, 8, 10, a, b, c, d, e, f, g, h] => TcpOptions {
                timestamp: Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))),
                timestamp_at: offset.wrapping_add(4) as u16,
                ..TcpOptions::default()
            },
            [2, 4, mss0, mss1, 4, 2, 8, 10, a, b, c, d, e, f, g, h, 1, 3, 3, shift] => TcpOptions {
                mss: nonzero(u16::from_be_bytes([mss0, mss1])),
                wscale: Some(shift.min(MAX_SHIFT)),
                sack_permitted: true,
                timestamp: Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))),
                timestamp_at: offset.wrapping_add(8) as u16,
                ..TcpOptions::default()
            },
            _ => {
                let mut options = TcpOptions::default();
                options.fill(bytes, offset);
                options
            }
        }
    }

    /// The general case. Not inlined, so that it writes straight into the caller's value: built on the stack and copied, the
    /// copy waits for the small writes before it (a store that cannot be forwarded, some 5 ns).
    #[inline(never)]
    fn fill(&mut self, bytes: &[u8], offset: usize) {
        let mut rest = bytes;
        loop {
            // Where this option's data would stand.
            let at = offset.wrapping_add(bytes.len()).wrapping_sub(rest.len()).wrapping_add(2) as u16;
            rest = match *rest {
                [] | [0, ..] | [_] => return,
                [1, ref tail @ ..] => tail,
                [kind, len, ref tail @ ..] => {
                    let Some(data) = usize::from(len).checked_sub(2) else { return };
                    let Some((data, tail)) = tail.split_at_checked(data) else { return };
                    self.take(kind, data, at);
                    tail
                }
            };
        }
    }

    #[inline(always)]
    fn take(&mut self, kind: u8, data: &[u8], at: u16) {
        match (kind, data) {
            (2, &[a, b]) => self.mss = nonzero(u16::from_be_bytes([a, b])),
            (3, &[shift]) => self.wscale = Some(shift.min(MAX_SHIFT)),
            (4, []) => self.sack_permitted = true,
            (5, data) => {
                let (blocks, rest) = data.as_chunks::<8>();
                if rest.is_empty() && !blocks.is_empty() {
                    self.sack_len = 0;
                    self.sack_at = at;
                    for (slot, &[a, b, c, d, e, f, g, h]) in self.sack.iter_mut().zip(blocks) {
                        *slot = (Seq(u32::from_be_bytes([a, b, c, d])), Seq(u32::from_be_bytes([e, f, g, h])));
                        self.sack_len = self.sack_len.saturating_add(1);
                    }
                }
            }
            (8, &[a, b, c, d, e, f, g, h]) => {
                self.timestamp = Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])));
                self.timestamp_at = at;
            }
            _ => {}
        }
    }
}

/// What a SYN offers: the options that its SYN-ACK answers, and nothing of where they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynOffer {
    /// As [`TcpOptions::mss`].
    pub mss: Option<u16>,
    /// As [`TcpOptions::wscale`].
    pub wscale: Option<u8>,
    /// As [`TcpOptions::sack_permitted`].
    pub sack_permitted: bool,
    /// TSval.
    pub tsval: Option<u32>,
}

/// The words that the usual systems' SYNs are made of; the last octet of some is a value.
const MSS: u32 = 0x0204_0000;
const SCALE: u32 = 0x0103_0300;
const SACK: u32 = 0x0101_0402;
const SACK_TIMESTAMP: u32 = 0x0402_080a;
const TIMESTAMP: u32 = 0x0101_080a;
const SACK_END: u32 = 0x0402_0000;

impl SynOffer {
    /// Reads a SYN's options; finds what [`TcpOptions::read`] finds.
    #[inline]
    #[must_use]
    pub fn read(bytes: &[u8]) -> SynOffer {
        SynOffer::of_linux(bytes).unwrap_or_else(|| SynOffer::read_words(bytes))
    }

    /// Reads the options of a SYN of Linux or Android with everything switched on, the most common one; none for any other.
    #[inline(always)]
    #[must_use]
    pub fn of_linux(bytes: &[u8]) -> Option<SynOffer> {
        // A word at a time: nine octets compared one by one would cost as much as all the rest.
        let Ok(&[m0, m1, m2, m3, k0, k1, k2, k3, t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3]) =
            <&[u8; 20]>::try_from(bytes)
        else {
            return None;
        };
        let mss = u32::from_be_bytes([m0, m1, m2, m3]);
        let scale = u32::from_be_bytes([s0, s1, s2, s3]);
        let kinds = u32::from_be_bytes([k0, k1, k2, k3]);
        let as_usual = (mss & 0xffff_0000 ^ MSS) | (kinds ^ SACK_TIMESTAMP) | (scale & 0xffff_ff00 ^ SCALE) == 0;
        as_usual.then(
            #[inline(always)]
            || SynOffer {
                mss: nonzero(mss as u16),
                wscale: Some(MAX_SHIFT.min(scale as u8)),
                sack_permitted: true,
                tsval: Some(u32::from_be_bytes([t0, t1, t2, t3])),
            },
        )
    }

    /// Windows, macOS, BSD: whole words again. Anything else goes the tolerant reader's way.
    #[inline(never)]
    fn read_words(bytes: &[u8]) -> SynOffer {
        let mut offer = SynOffer::default();
        let (mut words, rest) = bytes.as_chunks::<4>();
        while let &[word, ref tail @ ..] = words {
            words = tail;
            match u32::from_be_bytes(word) {
                mss if mss & 0xffff_0000 == MSS => offer.mss = nonzero(mss as u16),
                scale if scale & 0xffff_ff00 == SCALE => offer.wscale = Some(MAX_SHIFT.min(scale as u8)),
                SACK => offer.sack_permitted = true,
                kinds @ (TIMESTAMP | SACK_TIMESTAMP) => {
                    let &[value, _, ref tail @ ..] = words else { return SynOffer::from(TcpOptions::read(bytes, 0)) };
                    words = tail;
                    offer.sack_permitted |= kinds == SACK_TIMESTAMP;
                    offer.tsval = Some(u32::from_be_bytes(value));
                }
                SACK_END if words.is_empty() => offer.sack_permitted = true,
                _ => return SynOffer::from(TcpOptions::read(bytes, 0)),
            }
        }
        if rest.is_empty() { offer } else { SynOffer::from(TcpOptions::read(bytes, 0)) }
    }
}

impl From<TcpOptions> for SynOffer {
    fn from(options: TcpOptions) -> SynOffer {
        SynOffer {
            mss: options.mss,
            wscale: options.wscale,
            sack_permitted: options.sack_permitted,
            tsval: options.timestamp.map(|(value, _)| value),
        }
    }
}

/// The kinds of the options in `bytes` in their order, NOP (1) and end of list (0) included, up to the first malformed one.
pub fn option_kinds(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (kind, tail) = rest.split_first()?;
        rest = match kind {
            0 => &[],
            1 => tail,
            _ => {
                let len = usize::from(*tail.first()?).checked_sub(2)?;
                tail.get(1..)?.get(len..)?
            }
        };
        Some(*kind)
    })
}

fn nonzero(mss: u16) -> Option<u16> {
    (mss != 0).then_some(mss)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Options as systems send them, with anything in between.
    fn any_options() -> impl Strategy<Value = Vec<u8>> {
        let word = |word: u32| Just(word.to_be_bytes().to_vec());
        let piece = prop_oneof![
            any::<u16>().prop_map(|mss| (MSS | u32::from(mss)).to_be_bytes().to_vec()),
            any::<u8>().prop_map(|shift| (SCALE | u32::from(shift)).to_be_bytes().to_vec()),
            word(SACK),
            word(SACK_TIMESTAMP),
            word(TIMESTAMP),
            word(SACK_END),
            any::<[u8; 8]>().prop_map(|octets| octets.to_vec()),
            prop::collection::vec(0_u8..12, 0..5),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| {
            let mut octets = pieces.concat();
            octets.truncate(40);
            octets
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn a_syns_offer_is_what_its_options_say(octets in any_options()) {
            prop_assert_eq!(SynOffer::read(&octets), SynOffer::from(TcpOptions::read(&octets, 0)));
        }
    }

    #[test]
    fn the_usual_systems_offers_are_read() {
        let offer = |mss, wscale, sack_permitted, tsval| SynOffer { mss, wscale, sack_permitted, tsval };
        let mss = [2, 4, 5, 0xb4];
        let stamp = [0, 0, 0, 9, 0, 0, 0, 0];
        for (octets, expected) in [
            (vec![], SynOffer::default()),
            ([&mss[..], &[4, 2, 8, 10], &stamp, &[1, 3, 3, 7]].concat(), offer(Some(1460), Some(7), true, Some(9))),
            ([&mss[..], &[1, 3, 3, 8, 1, 1, 4, 2]].concat(), offer(Some(1460), Some(8), true, None)),
            (
                [&mss[..], &[1, 3, 3, 6, 1, 1, 8, 10], &stamp, &[4, 2, 0, 0]].concat(),
                offer(Some(1460), Some(6), true, Some(9)),
            ),
            ([&mss[..], &[1, 3, 3, 15, 4, 2, 8, 10], &stamp].concat(), offer(Some(1460), Some(14), true, Some(9))),
            (vec![2, 4, 0, 0], SynOffer::default()),
        ] {
            assert_eq!(SynOffer::read(&octets), expected, "{octets:?}");
        }
    }

    #[test]
    fn kinds_come_in_order_up_to_a_malformed_option() {
        let kinds = |octets: &[u8]| option_kinds(octets).collect::<Vec<u8>>();
        assert_eq!(kinds(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]), [1, 1, 8]);
        assert_eq!(kinds(&[2, 4, 5, 0xb4, 4, 2, 0, 3, 3, 7]), [2, 4, 0]);
        for malformed in [&[4, 2, 8, 1][..], &[4, 2, 8, 11, 0, 0], &[4, 2, 8]] {
            assert_eq!(kinds(malformed), [4], "{malformed:?}");
        }
        assert_eq!(kinds(&[]), []);
    }

    #[test]
    fn linux_and_windows_syns_are_read() {
        let linux = TcpOptions::read(&[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3, 7], 34);
        assert_eq!((linux.mss, linux.wscale, linux.sack_permitted), (Some(1460), Some(7), true));
        assert_eq!((linux.timestamp, linux.timestamp_at), (Some((9, 0)), 34 + 8));
        let windows = TcpOptions::read(&[2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2], 34);
        assert_eq!((windows.mss, windows.wscale, windows.sack_permitted), (Some(1460), Some(8), true));
        assert_eq!(windows.timestamp, None);
    }

    #[test]
    fn no_options_are_no_options() {
        assert_eq!(TcpOptions::read(&[], 34), TcpOptions::default());
        assert_eq!(TcpOptions::read(&[0, 2, 4, 5, 0xb4], 34), TcpOptions::default());
    }

    #[test]
    fn a_malformed_option_ends_the_reading_and_spoils_nothing() {
        for tail in [&[8, 1, 0, 0][..], &[8, 0], &[8], &[8, 11, 0, 0, 0, 9, 0, 0, 0, 0], &[2, 4, 1]] {
            let options = TcpOptions::read(&[&[2, 4, 5, 0xb4, 4, 2], tail].concat(), 34);
            assert_eq!((options.mss, options.sack_permitted, options.timestamp), (Some(1460), true, None), "{tail:?}");
        }
    }

    #[test]
    fn a_known_option_of_the_wrong_size_is_skipped() {
        let options = TcpOptions::read(
            &[2, 3, 5, 3, 2, 4, 3, 1, 8, 9, 0, 0, 0, 0, 0, 0, 0, 5, 9, 1, 2, 3, 4, 5, 6, 7, 2, 4, 2, 0],
            34,
        );
        assert_eq!(options, TcpOptions { mss: Some(512), ..TcpOptions::default() });
    }

    #[test]
    fn window_scales_past_14_count_as_14_and_an_mss_of_0_as_none() {
        let options = TcpOptions::read(&[3, 3, 15, 2, 4, 0, 0], 34);
        assert_eq!((options.wscale, options.mss), (Some(14), None));
    }

    #[test]
    fn sack_blocks_come_with_their_place() {
        let block = |n: u8| [0, 0, 0, n, 0, 0, 1, n];
        let four = [&[1, 1, 5, 34][..], &block(1), &block(2), &block(3), &block(4)].concat();
        let options = TcpOptions::read(&four, 54);
        assert_eq!(options.sack_at, 58);
        assert_eq!(options.sack_blocks().len(), 4);
        assert_eq!(options.sack_blocks()[3], (Seq(4), Seq(260)));
        let with_timestamp = [&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 5, 10][..], &block(7)].concat();
        let options = TcpOptions::read(&with_timestamp, 34);
        assert_eq!((options.timestamp, options.timestamp_at), (Some((1, 2)), 38));
        assert_eq!((options.sack_blocks(), options.sack_at), (&[(Seq(7), Seq(263))][..], 50));
    }

    #[test]
    fn unknown_options_are_skipped() {
        let options = TcpOptions::read(&[34, 4, 1, 2, 254, 2, 3, 3, 2], 34);
        assert_eq!(options.wscale, Some(2));
    }
}
