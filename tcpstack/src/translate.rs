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
pub(crate) struct Patch<'a> {
    tcp: &'a mut [u8],
    change: Sum,
}

impl<'a> Patch<'a> {
    /// Nothing changed yet. `tcp` starts at the TCP header.
    #[inline]
    pub(crate) fn new(tcp: &'a mut [u8]) -> Patch<'a> {
        Patch { tcp, change: Sum::ZERO }
    }

    /// Replaces the 32-bit number at the even offset `at`; nothing when it lies outside.
    #[inline]
    pub(crate) fn set(&mut self, at: usize, new: u32) {
        let Some(field) = self.tcp.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) else { return };
        let old = u32::from_be_bytes(*field);
        *field = new.to_be_bytes();
        self.change = self.change.dword(!old).dword(new);
    }

    /// Replaces the window field.
    #[inline]
    pub(crate) fn set_window(&mut self, new: u16) {
        let Some(field) = self.tcp.get_mut(14..).and_then(<[u8]>::first_chunk_mut::<2>) else { return };
        let old = u16::from_be_bytes(*field);
        *field = new.to_be_bytes();
        self.change = self.change.word(!old).word(new);
    }

    /// Takes in a change outside the segment, the pseudo-header's.
    #[inline]
    pub(crate) fn changed(&mut self, change: Sum) {
        self.change = self.change.plus(change);
    }

    /// Adds `delta` to the 32-bit number at `at`; nothing when it lies outside.
    #[inline]
    pub(crate) fn add(&mut self, at: usize, delta: u32) {
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
    pub(crate) fn finish(self) {
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
        let mut patch = Patch::new(tcp);
        self.out(&mut patch, timestamp_at);
        if CHECKSUM {
            patch.finish();
        }
    }

    /// The numbers of a segment from the stack to the wire; `timestamp_at` is TSval's offset in it, if it has one.
    #[inline]
    pub(crate) fn out(&self, patch: &mut Patch<'_>, timestamp_at: Option<usize>) {
        patch.add(4, self.seq_delta);
        if let Some(at) = timestamp_at {
            patch.add(at, self.ts_delta);
        }
    }

    /// The numbers of a segment with ACK from the wire to the stack; TSval's offset in it, if it has one, the offset of the first
    /// SACK block and their number.
    #[inline]
    pub(crate) fn back(&self, patch: &mut Patch<'_>, timestamp_at: Option<usize>, sack_at: usize, blocks: usize) {
        let seq_delta = self.seq_delta.wrapping_neg();
        patch.add(8, seq_delta);
        if let Some(at) = timestamp_at {
            patch.add(at.wrapping_add(4), self.ts_delta.wrapping_neg());
        }
        for edge in 0..blocks.wrapping_mul(2) {
            patch.add(sack_at.wrapping_add(edge.wrapping_mul(4)), seq_delta);
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
        let aligned = is_aligned_timestamp(tcp, options);
        let read = (options != 0 && !aligned).then(|| read_options(tcp, options));
        let mut patch = Patch::new(tcp);
        match read {
            None => self.back(&mut patch, aligned.then_some(24), 0, 0),
            Some(read) => {
                let timestamp_at = read.timestamp.map(|_| usize::from(read.timestamp_at));
                self.back(&mut patch, timestamp_at, usize::from(read.sack_at), read.sack_blocks().len());
            }
        }
        if CHECKSUM {
            patch.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sluice_filters::testkit::{self, Opt};
    use sluice_filters::units::Seq;
    use sluice_filters::{Parsed, RxChecksums, Segment, checksum};

    use super::*;

    const ENDS: [(&str, &str); 2] =
        [("192.0.2.7:40000", "198.51.100.10:443"), ("[2001:db8:1::7]:40000", "[2001:db8::10]:443")];

    /// Options in any order, anywhere: NOPs shift the others off their words.
    fn options() -> impl Strategy<Value = Vec<Opt>> {
        let option = prop_oneof![
            3 => Just(Opt::Nop),
            2 => (any::<u32>(), any::<u32>()).prop_map(|(value, echo)| Opt::Timestamp(value, echo)),
            2 => prop::collection::vec((any::<u32>(), any::<u32>()), 1..4).prop_map(Opt::Sack),
            1 => any::<u16>().prop_map(Opt::Mss),
            1 => Just(Opt::Raw(vec![253, 5, 1, 2, 3])),
            1 => Just(Opt::Raw(vec![8, 9, 1, 2, 3, 4, 5, 6, 7])),
        ];
        let length = |option: &Opt| match option {
            Opt::Timestamp(..) => 10,
            Opt::Sack(blocks) => 2 + 8 * blocks.len(),
            Opt::Mss(_) => 4,
            Opt::Raw(raw) => raw.len(),
            _ => 1,
        };
        prop::collection::vec(option, 0..8).prop_map(move |mut options| {
            while options.iter().map(length).sum::<usize>() > 40 {
                options.pop();
            }
            options
        })
    }

    fn delta() -> impl Strategy<Value = u32> {
        prop_oneof![Just(0), Just(1), Just(u32::MAX), Just(1 << 31), any::<u32>()]
    }

    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let flags = prop_oneof![
            Just(Flags::ACK),
            Just(Flags::SYN),
            Just(Flags::SYN | Flags::ACK),
            Just(Flags::RST),
            Just(Flags::FIN | Flags::ACK),
        ];
        (0_usize..2, flags, delta(), delta(), options(), prop::collection::vec(any::<u8>(), 0..70)).prop_map(
            |(family, flags, seq, ack, options, payload)| {
                let (from, to) = ENDS[family];
                testkit::tcp(from, to).flags(flags).seq(seq).ack(ack).options(options).payload(payload).build()
            },
        )
    }

    fn parse(frame: &[u8]) -> (Segment, TcpOptions) {
        match sluice_filters::parse(frame, RxChecksums::default()) {
            Ok(Parsed::Tcp(segment)) => (segment, segment.options(frame)),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn outgoing_moves_seq_and_tsval_and_keeps_the_checksum_valid(
            frame in frames(), seq_delta in delta(), ts_delta in delta(),
        ) {
            let (before, options_before) = parse(&frame);
            let translator = Translator { seq_delta, ts_delta };
            let mut moved = frame.clone();
            translator.outgoing::<true>(&mut moved[before.l4()..]);
            // `parse` verifies the checksum.
            let (after, options_after) = parse(&moved);
            prop_assert_eq!(after, Segment { seq: before.seq.plus(seq_delta), ..before });
            let expected = options_before.timestamp.map(|(value, echo)| (value.wrapping_add(ts_delta), echo));
            prop_assert_eq!(options_after.timestamp, expected);
            prop_assert_eq!(options_after.sack_blocks(), options_before.sack_blocks());
            let tcp = &moved[after.l4()..];
            let full = checksum::tcp_checksum(tcp, after.key.src, after.key.dst);
            prop_assert_eq!(&tcp[16..18], &full.to_be_bytes());

            let back = Translator { seq_delta: seq_delta.wrapping_neg(), ts_delta: ts_delta.wrapping_neg() };
            back.outgoing::<true>(&mut moved[before.l4()..]);
            prop_assert_eq!(moved, frame);
        }

        #[test]
        fn incoming_moves_ack_sack_and_tsecr_and_keeps_the_checksum_valid(
            frame in frames(), seq_delta in delta(), ts_delta in delta(),
        ) {
            let (before, options_before) = parse(&frame);
            let translator = Translator { seq_delta, ts_delta };
            let mut moved = frame.clone();
            translator.incoming::<true>(&mut moved[before.l4()..]);
            let (after, options_after) = parse(&moved);
            if before.flags.ack() {
                let minus = |seq: Seq| Seq(seq.0.wrapping_sub(seq_delta));
                prop_assert_eq!(after, Segment { ack: minus(before.ack), ..before });
                let expected = options_before.timestamp.map(|(value, echo)| (value, echo.wrapping_sub(ts_delta)));
                prop_assert_eq!(options_after.timestamp, expected);
                let blocks: Vec<(Seq, Seq)> =
                    options_before.sack_blocks().iter().map(|(left, right)| (minus(*left), minus(*right))).collect();
                prop_assert_eq!(options_after.sack_blocks(), blocks);
            } else {
                prop_assert_eq!(&moved, &frame);
            }
            let back = Translator { seq_delta: seq_delta.wrapping_neg(), ts_delta: ts_delta.wrapping_neg() };
            back.incoming::<true>(&mut moved[before.l4()..]);
            prop_assert_eq!(moved, frame);
        }

        #[test]
        fn an_acknowledgment_of_what_went_out_comes_back_in_the_stacks_numbers(
            seq: u32, seq_delta in delta(), value: u32, ts_delta in delta(),
        ) {
            let translator = Translator { seq_delta, ts_delta };
            let (ours, theirs) = (ENDS[0].1, ENDS[0].0);
            let mut out = testkit::tcp(ours, theirs).seq(seq).options([Opt::Timestamp(value, 0)]).payload("abc").build();
            let (segment, _) = parse(&out);
            translator.outgoing::<true>(&mut out[segment.l4()..]);
            let (sent, options) = parse(&out);
            let echo = options.timestamp.map_or(0, |(value, _)| value);
            let end = sent.seq_end().0;
            let sack = Opt::Sack(vec![(sent.seq.0, end)]);
            let mut answer =
                testkit::tcp(theirs, ours).ack(end).options([Opt::Nop, Opt::Timestamp(9, echo), sack]).build();
            translator.incoming::<true>(&mut answer[segment.l4()..]);
            let (received, options) = parse(&answer);
            prop_assert_eq!(received.ack, Seq(seq).plus(3));
            prop_assert_eq!(options.sack_blocks(), [(Seq(seq), Seq(seq).plus(3))]);
            prop_assert_eq!(options.timestamp, Some((9, value)));
        }

        #[test]
        fn a_wrong_checksum_stays_wrong(
            mut frame in frames(), flip in 1_u16.., seq_delta in delta(), ts_delta in delta(),
        ) {
            let (segment, _) = parse(&frame);
            let tcp = &mut frame[segment.l4()..];
            let check = u16::from_be_bytes([tcp[16], tcp[17]]) ^ flip;
            // Zero and all ones are one number in this arithmetic.
            prop_assume!(flip != 0xffff);
            tcp[16..18].copy_from_slice(&check.to_be_bytes());
            let translator = Translator { seq_delta, ts_delta };
            translator.outgoing::<true>(tcp);
            translator.incoming::<true>(tcp);
            prop_assert!(!checksum::tcp_is_valid(tcp, segment.key.src, segment.key.dst));
        }

        #[test]
        fn without_checksum_the_field_is_left_alone(frame in frames(), seq_delta in 1_u32.., ts_delta: u32) {
            let (segment, _) = parse(&frame);
            let translator = Translator { seq_delta, ts_delta };
            let (mut with, mut without) = (frame.clone(), frame.clone());
            translator.outgoing::<true>(&mut with[segment.l4()..]);
            translator.outgoing::<false>(&mut without[segment.l4()..]);
            translator.incoming::<true>(&mut with[segment.l4()..]);
            translator.incoming::<false>(&mut without[segment.l4()..]);
            let check = segment.l4() + 16;
            prop_assert_eq!(&without[check..check + 2], &frame[check..check + 2]);
            without[check..check + 2].copy_from_slice(&with[check..check + 2]);
            prop_assert_eq!(with, without);
        }

        #[test]
        fn any_octets_are_safe(mut tcp in prop::collection::vec(any::<u8>(), 0..100), seq_delta: u32, ts_delta: u32) {
            let translator = Translator { seq_delta, ts_delta };
            let len = tcp.len();
            translator.outgoing::<true>(&mut tcp);
            translator.incoming::<true>(&mut tcp);
            prop_assert_eq!(tcp.len(), len);
        }
    }

    #[test]
    fn numbers_wrap_at_the_end_of_the_space() {
        let mut frame = testkit::tcp(ENDS[0].0, ENDS[0].1)
            .seq(u32::MAX)
            .ack(0)
            .options([Opt::Nop, Opt::Nop, Opt::Timestamp(u32::MAX, 0)])
            .build();
        let (segment, _) = parse(&frame);
        let translator = Translator { seq_delta: 2, ts_delta: 3 };
        translator.outgoing::<true>(&mut frame[segment.l4()..]);
        translator.incoming::<true>(&mut frame[segment.l4()..]);
        let (segment, options) = parse(&frame);
        assert_eq!((segment.seq, segment.ack), (Seq(1), Seq(u32::MAX - 1)));
        assert_eq!(options.timestamp, Some((2, u32::MAX - 2)));
    }
}
