//! Moves segments between the number spaces of a peer and of the stack that stands in for another.
//!
//! The peer agreed on one initial sequence number (the cookie), the stack behind us uses another. The difference is constant
//! for the life of the connection, so a segment is mapped by adding it: to the sequence number on the way out, and off the
//! acknowledgment number and the SACK blocks on the way in (RFC 9293 section 3.4, RFC 2018 section 3). Timestamps likewise:
//! TSval out, TSecr in (RFC 7323 section 3.2). All arithmetic is modulo 2^32.
//!
//! Invariants:
//! - Lengths and all other octets stay as they are.
//! - With `CHECKSUM`, a right TCP checksum stays right and a wrong one stays wrong (RFC 1624); without, the field is left
//!   alone for whoever computes it anew.
//! - Options are those [`TcpOptions`] sees: of several equal ones the last, nothing after a malformed one.

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

use sluice_filters::checksum::Sum;
use sluice_filters::{Flags, TcpOptions};

/// The differences between the two spaces. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translator {
    /// Sequence number on the wire minus the stack's.
    pub seq_delta: u32,
    /// TSval on the wire minus the stack's.
    pub ts_delta: u32,
}

/// The first word of the timestamps option as nearly every segment has it: NOP, NOP, kind 8, length 10.
const ALIGNED_TIMESTAMP: [u8; 4] = [1, 1, 8, 10];

/// A TCP header under change, and the sum of what changed.
struct Patch<'a> {
    tcp: &'a mut [u8],
    change: Sum,
}

impl Patch<'_> {
    /// Adds `delta` to the 32-bit number at `at`; nothing when it lies outside.
    #[inline]
    fn add(&mut self, at: usize, delta: u32) {
        let Some(field) = self.tcp.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) else { return };
        let old = u32::from_be_bytes(*field);
        let new = old.wrapping_add(delta);
        *field = new.to_be_bytes();
        let change = Sum::ZERO.dword(!old).dword(new);
        // Across two words, the sum's octets change places (RFC 1071 section 2 (B)).
        self.change = self.change.plus(if at & 1 == 0 { change } else { Sum::ZERO.word(change.fold().swap_bytes()) });
    }

    /// Updates the checksum field (RFC 1624 equation 3).
    #[inline]
    fn finish(self) {
        if let Some(field) = self.tcp.get_mut(16..).and_then(<[u8]>::first_chunk_mut::<2>) {
            let check = u16::from_be_bytes(*field);
            *field = self.change.word(!check).finish().to_be_bytes();
        }
    }
}

/// The options' length, when `tcp` starts with a whole TCP header.
#[inline]
fn options_len(tcp: &[u8]) -> Option<usize> {
    let header = tcp.first_chunk::<20>()?;
    let len = usize::from(header[12] >> 4).wrapping_mul(4);
    (len <= tcp.len()).then(|| len.checked_sub(20)).flatten()
}

#[inline]
fn read_options(tcp: &[u8], len: usize) -> TcpOptions {
    TcpOptions::read(tcp.get(20..len.wrapping_add(20)).unwrap_or_default(), 20)
}

#[inline]
fn is_aligned_timestamp(tcp: &[u8], len: usize) -> bool {
    len == 12 && tcp.get(20..24).is_some_and(|word| *word == ALIGNED_TIMESTAMP)
}

impl Translator {
    /// Maps a segment from the stack to the wire. `tcp` starts at the TCP header and may go on with the payload; one that does
    /// not hold a whole header is left alone.
    #[inline]
    pub fn outgoing<const CHECKSUM: bool>(&self, tcp: &mut [u8]) {
        let Some(options) = options_len(tcp) else { return };
        let timestamp_at = if options == 0 || self.ts_delta == 0 {
            None
        } else if is_aligned_timestamp(tcp, options) {
            Some(24)
        } else {
            let options = read_options(tcp, options);
            options.timestamp.map(|_| usize::from(options.timestamp_at))
        };
        let mut patch = Patch { tcp, change: Sum::ZERO };
        patch.add(4, self.seq_delta);
        if let Some(at) = timestamp_at {
            patch.add(at, self.ts_delta);
        }
        if CHECKSUM {
            patch.finish();
        }
    }

    /// Maps a segment from the wire to the stack. `tcp` as in [`Translator::outgoing`]. Without ACK there is nothing to map:
    /// acknowledgment number and TSecr then mean nothing.
    #[inline]
    pub fn incoming<const CHECKSUM: bool>(&self, tcp: &mut [u8]) {
        let Some(options) = options_len(tcp) else { return };
        if !tcp.get(13).is_some_and(|flags| Flags(*flags).ack()) {
            return;
        }
        let (seq_delta, ts_delta) = (self.seq_delta.wrapping_neg(), self.ts_delta.wrapping_neg());
        let aligned = is_aligned_timestamp(tcp, options);
        let read = (options != 0 && !aligned).then(|| read_options(tcp, options));
        let mut patch = Patch { tcp, change: Sum::ZERO };
        patch.add(8, seq_delta);
        if aligned {
            patch.add(28, ts_delta);
        }
        if let Some(read) = read {
            if read.timestamp.is_some() {
                patch.add(usize::from(read.timestamp_at).wrapping_add(4), ts_delta);
            }
            for edge in 0..read.sack_blocks().len().wrapping_mul(2) {
                patch.add(usize::from(read.sack_at).wrapping_add(edge.wrapping_mul(4)), seq_delta);
            }
        }
        if CHECKSUM {
            patch.finish();
        }
    }
}
