//! The options of a SYN or SYN-ACK, as we write them (RFC 9293 section 3.2, RFC 7323, RFC 2018).
//!
//! One layout, Linux's: MSS, then SACK-permitted in the timestamps' padding, then window scale. Every option starts on a word,
//! so the list is built, summed and written word by word. Reading is [`sluice_filters::TcpOptions`]'s job.

/// Most words a list takes.
pub(crate) const MAX_WORDS: usize = 5;

const MSS: u32 = 0x0204_0000;
const WINDOW_SCALE: u32 = 0x0103_0300;
const SACK_PERMITTED: u32 = 0x0101_0402;
const TIMESTAMP: u32 = 0x0101_080a;
const SACK_PERMITTED_TIMESTAMP: u32 = 0x0402_080a;

/// What a SYN or SYN-ACK of ours says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SynOptions {
    pub(crate) mss: u16,
    pub(crate) wscale: Option<u8>,
    pub(crate) sack: bool,
    pub(crate) timestamp: Option<(u32, u32)>,
}

/// Up to [`MAX_WORDS`] big-endian words of options; those after `len` are zero, which no sum notices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    pub(crate) words: [u32; MAX_WORDS],
    pub(crate) len: u8,
}

impl Words {
    pub(crate) const NONE: Words = Words { words: [0; MAX_WORDS], len: 0 };

    /// A timestamp alone, on a segment without SYN (RFC 7323 appendix A).
    #[inline]
    pub(crate) fn timestamp(value: u32, echo: u32) -> Words {
        Words { words: [TIMESTAMP, value, echo, 0, 0], len: 3 }
    }
}

impl SynOptions {
    #[inline(always)]
    pub(crate) fn words(&self) -> Words {
        let mss = MSS | u32::from(self.mss);
        let (scale, scaled) = self.wscale.map_or((0, 0), |shift| (WINDOW_SCALE | u32::from(shift), 1_u8));
        match (self.timestamp, self.sack) {
            (Some((value, echo)), sack) => {
                let kind = if sack { SACK_PERMITTED_TIMESTAMP } else { TIMESTAMP };
                Words { words: [mss, kind, value, echo, scale], len: scaled.wrapping_add(4) }
            }
            (None, true) => Words { words: [mss, SACK_PERMITTED, scale, 0, 0], len: scaled.wrapping_add(2) },
            (None, false) => Words { words: [mss, scale, 0, 0, 0], len: scaled.wrapping_add(1) },
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_filters::TcpOptions;

    use super::*;

    #[test]
    fn every_combination_reads_back() {
        for bits in 0..8_u8 {
            let written = SynOptions {
                mss: 1_460,
                wscale: (bits & 1 != 0).then_some(14),
                sack: bits & 2 != 0,
                timestamp: (bits & 4 != 0).then_some((0xdead_beef, 0x0102_0304)),
            };
            let words = written.words();
            let octets: Vec<u8> = words.words.iter().flat_map(|word| word.to_be_bytes()).collect();
            let (octets, unused) = octets.split_at(4 * usize::from(words.len));
            assert!(unused.iter().all(|octet| *octet == 0));
            let read = TcpOptions::read(octets, 0);
            assert_eq!(read.mss, Some(1_460));
            assert_eq!(read.wscale, written.wscale);
            assert_eq!(read.sack_permitted, written.sack);
            assert_eq!(read.timestamp, written.timestamp);
        }
    }
}
