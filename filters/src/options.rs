//! TCP options (RFC 9293 section 3.1, RFC 7323, RFC 2018).
//!
//! A tolerant reader: it stops at the first malformed option and keeps what it has; it never fails. A known option of the
//! wrong size is skipped; the last of several equal options counts, as in Linux.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use crate::units::Seq;

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
    #[must_use]
    pub fn read(bytes: &[u8], offset: usize) -> TcpOptions {
        let mut options = TcpOptions::default();
        let mut rest = bytes;
        loop {
            // Where this option's data would stand.
            let at = offset.wrapping_add(bytes.len()).wrapping_sub(rest.len()).wrapping_add(2) as u16;
            rest = match *rest {
                [] | [0, ..] => return options,
                [1, ref tail @ ..] => tail,
                [kind, len, ref tail @ ..] => {
                    let Some(data) = usize::from(len).checked_sub(2) else { return options };
                    let Some((data, tail)) = tail.split_at_checked(data) else { return options };
                    options.take(kind, data, at);
                    tail
                }
                [_] => return options,
            };
        }
    }

    #[inline]
    fn take(&mut self, kind: u8, data: &[u8], at: u16) {
        match (kind, data) {
            (2, &[a, b]) => self.mss = Some(u16::from_be_bytes([a, b])).filter(|&mss| mss != 0),
            (3, &[shift]) => self.wscale = Some(shift.min(14)),
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
