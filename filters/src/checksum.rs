//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are kept in the machine's byte order and unfolded: the ones' complement sum does not care about byte order as long as
//! all words share it (RFC 1071 section 2 (B)), so bytes are swapped once, at the end. Values that go in and out are numbers
//! as the packet means them (`to_be_bytes` writes them).

use crate::addr::Addr;

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of ICMPv6.
pub const ICMP6: u8 = 58;

/// A ones' complement sum in the making. Pieces may be added in any order; each must start at an even offset of what is
/// summed, and only the last may have odd length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Sum = Sum(0);

    /// A sum of words that are already in the machine's byte order, carries above them.
    #[inline]
    pub(crate) const fn of_ne(words: u64) -> Sum {
        Sum(words)
    }

    /// Adds another sum.
    #[inline]
    pub const fn plus(self, other: Sum) -> Sum {
        let (sum, carry) = self.0.overflowing_add(other.0);
        // A carry leaves `sum` at most u64::MAX - 1.
        Sum(sum.wrapping_add(carry as u64))
    }

    /// Adds a 16-bit number.
    #[inline]
    pub const fn word(self, word: u16) -> Sum {
        self.plus(Sum(word.to_be() as u64))
    }

    /// Adds a 32-bit number.
    #[inline]
    pub const fn dword(self, dword: u32) -> Sum {
        self.plus(Sum(dword.to_be() as u64))
    }

    /// Adds 32-bit numbers, fewer than 2^32 of them, with one carry for all.
    #[inline(always)]
    pub fn dwords<const N: usize>(self, dwords: [u32; N]) -> Sum {
        self.plus(Sum(dwords.into_iter().fold(0, |sum, dword| sum.wrapping_add(u64::from(dword.to_be())))))
    }

    /// Adds octets.
    #[inline]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        let (blocks, rest) = bytes.as_chunks::<32>();
        // Two carry chains, add and add-with-carry: the carries gather in the upper halves.
        let (mut even, mut odd) = (u128::from(self.0), 0u128);
        for block in blocks {
            let (words, _) = block.as_chunks::<8>();
            if let &[a, b, c, d] = words {
                even = even.wrapping_add(u128::from(u64::from_ne_bytes(a)));
                odd = odd.wrapping_add(u128::from(u64::from_ne_bytes(b)));
                even = even.wrapping_add(u128::from(u64::from_ne_bytes(c)));
                odd = odd.wrapping_add(u128::from(u64::from_ne_bytes(d)));
            }
        }
        let mut sum = even.wrapping_add(odd);
        let (words, rest) = rest.as_chunks::<8>();
        for &word in words {
            sum = sum.wrapping_add(u128::from(u64::from_ne_bytes(word)));
        }
        let (halves, rest) = rest.as_chunks::<4>();
        for &half in halves {
            sum = sum.wrapping_add(u128::from(u32::from_ne_bytes(half)));
        }
        let (words, rest) = rest.as_chunks::<2>();
        for &word in words {
            sum = sum.wrapping_add(u128::from(u16::from_ne_bytes(word)));
        }
        if let &[last] = rest {
            sum = sum.wrapping_add(u128::from(u16::from_ne_bytes([last, 0])));
        }
        Sum(sum as u64).plus(Sum((sum >> 64) as u64))
    }

    /// Adds the options of Linux's SYN.
    #[inline(always)]
    pub(crate) fn fixed(self, bytes: &[u8; 20]) -> Sum {
        let &[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ref last @ ..] = bytes;
        self.plus(Sum(u64::from_ne_bytes([a, b, c, d, e, f, g, h])))
            .plus(Sum(u64::from_ne_bytes([i, j, k, l, m, n, o, p])))
            .plus(Sum(u32::from_ne_bytes(*last).into()))
    }

    /// The sum in 16 bits, not complemented: what a device that finishes checksums wants in the field, given a pseudo-header.
    #[inline]
    #[must_use]
    pub const fn fold(self) -> u16 {
        u16::from_be(self.fold_ne())
    }

    /// The checksum: the complement of the sum.
    #[inline]
    #[must_use]
    pub const fn finish(self) -> u16 {
        !self.fold()
    }

    /// Whether the sum, taken over data that holds its own checksum, says that the data is intact.
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.fold_ne() == 0xffff
    }

    #[inline]
    const fn fold_ne(self) -> u16 {
        // Adding the halves to each other leaves their sum, end-around carry included, in the upper half.
        let sum = (self.0.wrapping_add(self.0.rotate_left(32)) >> 32) as u32;
        (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
    }
}

/// The sum of `bytes`.
#[inline]
pub fn sum(bytes: &[u8]) -> Sum {
    Sum::ZERO.bytes(bytes)
}

/// The sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) for `len` octets of `protocol`.
#[inline]
pub fn pseudo_header(src: Addr, dst: Addr, protocol: u8, len: usize) -> Sum {
    // A mapped IPv4 address adds ::ffff:0:0 twice, which would be 2 * 0xffff: nothing, in this arithmetic. So one formula
    // would serve both families; the branch is cheaper than the two words more.
    let addresses = if src.is_v4() {
        Sum::ZERO.dword(src.v4_bits()).dword(dst.v4_bits())
    } else {
        Sum(src.hi.to_be()).plus(Sum(src.lo.to_be())).plus(Sum(dst.hi.to_be())).plus(Sum(dst.lo.to_be()))
    };
    addresses.dword(len as u32).word(u16::from(protocol))
}

/// The checksum for a TCP segment (header and payload), whatever its checksum field holds now.
#[inline]
#[must_use]
pub fn tcp_checksum(segment: &[u8], src: Addr, dst: Addr) -> u16 {
    without_field::<16>(segment, pseudo_header(src, dst, TCP, segment.len()))
}

/// Whether a TCP segment's checksum is right.
#[inline]
#[must_use]
pub fn tcp_is_valid(segment: &[u8], src: Addr, dst: Addr) -> bool {
    pseudo_header(src, dst, TCP, segment.len()).bytes(segment).is_valid()
}

/// Writes the checksum into a TCP segment; does nothing to one shorter than its checksum field's end.
#[inline]
pub fn fill_tcp(segment: &mut [u8], src: Addr, dst: Addr) {
    let check = tcp_checksum(segment, src, dst);
    write_field::<16>(segment, check);
}

/// Writes the header checksum into an IPv4 header without options.
#[inline]
pub fn fill_ipv4_header(header: &mut [u8; 20]) {
    let check = without_field::<10>(header, Sum::ZERO);
    write_field::<10>(header, check);
}

/// The checksum for an ICMP message, whatever its checksum field holds now.
#[inline]
#[must_use]
pub fn icmp_checksum(message: &[u8]) -> u16 {
    without_field::<2>(message, Sum::ZERO)
}

/// The checksum for an ICMPv6 message, whatever its checksum field holds now.
#[inline]
#[must_use]
pub fn icmp6_checksum(message: &[u8], src: Addr, dst: Addr) -> u16 {
    without_field::<2>(message, pseudo_header(src, dst, ICMP6, message.len()))
}

/// The checksum after the 16-bit field at offset `at` of the summed data went from `old` to `new` (RFC 1624, equation 3).
/// Only `at`'s parity counts: at an odd offset the field lies across two words.
///
/// The new data must not be all zero. TCP's (through its pseudo-header) and IPv4 headers never are; an ICMP echo reply can be:
/// compute its checksum anew.
#[inline]
#[must_use]
pub fn update16(check: u16, at: usize, old: u16, new: u16) -> u16 {
    let change = Sum::ZERO.word(!old).word(new);
    update(check, at, change)
}

/// The checksum after the 32-bit field at offset `at` of the summed data went from `old` to `new`; as [`update16`].
#[inline]
#[must_use]
pub fn update32(check: u16, at: usize, old: u32, new: u32) -> u16 {
    let change = Sum::ZERO.dword(!old).dword(new);
    update(check, at, change)
}

#[inline]
fn update(check: u16, at: usize, change: Sum) -> u16 {
    let change = change.fold();
    let change = if at & 1 == 1 { change.swap_bytes() } else { change };
    Sum::ZERO.word(!check).word(change).finish()
}

/// The checksum of `bytes` and `seed` with the (even) field at `AT` left out. Not by adding the field's complement: over data
/// that is all zero, such as the smallest echo reply, that would give the zero with the wrong sign.
#[inline]
fn without_field<const AT: usize>(bytes: &[u8], seed: Sum) -> u16 {
    let (head, rest) = bytes.split_at_checked(AT).unwrap_or((bytes, &[]));
    seed.bytes(head).bytes(rest.get(2..).unwrap_or_default()).finish()
}

#[inline]
fn write_field<const AT: usize>(bytes: &mut [u8], check: u16) {
    if let Some(field) = bytes.get_mut(AT..).and_then(|b| b.first_chunk_mut::<2>()) {
        *field = check.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 section 4.1, word by word.
    fn naive(octets: &[u8]) -> u16 {
        let mut sum: u64 = 0;
        for pair in octets.chunks(2) {
            sum += u64::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u64::from);
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn naive_pseudo(src: Addr, dst: Addr, protocol: u8, len: usize) -> Vec<u8> {
        let octets = |addr: Addr| {
            if addr.is_v4() { addr.v4_bits().to_be_bytes().to_vec() } else { addr.octets().to_vec() }
        };
        [octets(src), octets(dst), (len as u32).to_be_bytes().to_vec(), vec![0, protocol]].concat()
    }

    fn any_pair() -> impl Strategy<Value = (Addr, Addr)> {
        let v4 = any::<(u32, u32)>().prop_map(|(src, dst)| (Addr::v4(src), Addr::v4(dst)));
        let v6 = any::<([u8; 16], [u8; 16])>()
            .prop_map(|(src, dst)| (Addr::v6(src), Addr::v6(dst)))
            .prop_filter("no mapped addresses", |(src, dst)| !src.is_v4() && !dst.is_v4());
        prop_oneof![v4, v6]
    }

    /// Octets with long runs of the values that carries like.
    fn any_octets(len: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            vec(any::<u8>(), len.clone()),
            vec(Just(0xff_u8), len.clone()),
            vec(prop_oneof![Just(0u8), Just(0xff), Just(0xfe), Just(1)], len)
        ]
    }

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).fold(), 0xddf2);
    }

    #[test]
    fn a_known_ipv4_header_gets_its_checksum() {
        let mut header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xaa, 0xaa, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        fill_ipv4_header(&mut header);
        assert_eq!(header[10..12], [0xb8, 0x61]);
        assert!(sum(&header).is_valid());
    }

    #[test]
    fn carries_survive_any_number_of_full_words() {
        for len in 0..300 {
            assert_eq!(sum(&vec![0xff; len]).finish(), naive(&vec![0xff; len]), "{len}");
        }
        let full = Sum(u64::MAX);
        assert_eq!(full.plus(full).plus(full).fold(), 0xffff);
        assert_eq!(full.bytes(&[0xff; 64]).fold(), 0xffff);
        assert_eq!(full.word(1).fold(), 1);
    }

    #[test]
    fn the_smallest_echo_reply_gets_the_zero_that_receivers_accept() {
        let mut reply = [0; 8];
        let check = icmp_checksum(&reply);
        assert_eq!(check, 0xffff);
        reply[2..4].copy_from_slice(&check.to_be_bytes());
        assert!(sum(&reply).is_valid());
        assert_eq!(icmp_checksum(&reply), 0xffff);
    }

    #[test]
    fn short_input_is_left_alone() {
        let (src, dst) = (Addr::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST)), Addr::v4(1));
        for len in 0..18 {
            let mut segment = vec![9; len];
            fill_tcp(&mut segment, src, dst);
            assert_eq!(segment, vec![9; len]);
        }
        assert_eq!(icmp_checksum(&[]), 0xffff);
        assert_eq!(icmp_checksum(&[1]), naive(&[1]));
    }

    #[test]
    fn mapped_addresses_add_up_as_ipv4() {
        let (src, dst) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 7));
        let mapped = |ip: Ipv4Addr| Addr::from(std::net::IpAddr::from(Ipv6Addr::from(ip.to_ipv6_mapped().octets())));
        assert_eq!(mapped(src), Addr::v4(src.into()));
        assert_eq!(
            pseudo_header(mapped(src), mapped(dst), TCP, 20),
            pseudo_header(Addr::v4(src.into()), Addr::v4(dst.into()), TCP, 20)
        );
    }

    proptest! {
        #[test]
        fn sums_agree_with_the_naive_one(octets in any_octets(0..=2000)) {
            prop_assert_eq!(sum(&octets).finish(), naive(&octets));
            if let Some(first) = octets.first_chunk() {
                prop_assert_eq!(Sum(7).fixed(first).fold(), Sum(7).bytes(first).fold());
            }
        }

        #[test]
        fn a_sum_in_pieces_is_the_sum(octets in any_octets(0..=300), at in 0usize..150) {
            let (head, tail) = octets.split_at((at * 2).min(octets.len() & !1));
            prop_assert_eq!(sum(head).bytes(tail).fold(), sum(&octets).fold());
            prop_assert_eq!(sum(tail).plus(sum(head)).fold(), sum(&octets).fold());
        }

        #[test]
        fn words_and_dwords_are_their_octets(word in any::<u16>(), dword in any::<u32>()) {
            prop_assert_eq!(Sum::ZERO.word(word), sum(&word.to_be_bytes()));
            prop_assert_eq!(Sum::ZERO.dword(dword), sum(&dword.to_be_bytes()));
            let all = [dword, u32::MAX, word.into()];
            prop_assert_eq!(Sum::ZERO.dword(dword).dwords(all).fold(), sum(&[all[0], all[0], all[1], all[2]].map(u32::to_be_bytes).concat()).fold());
        }

        #[test]
        fn tcp_checksums_agree_with_the_naive_one((src, dst) in any_pair(), mut segment in any_octets(20..=200)) {
            segment[16..18].copy_from_slice(&[0, 0]);
            let expected = naive(&[&naive_pseudo(src, dst, 6, segment.len())[..], &segment].concat());
            segment[16..18].copy_from_slice(&[0xab, 0xcd]);
            prop_assert_eq!(tcp_checksum(&segment, src, dst), expected);
            fill_tcp(&mut segment, src, dst);
            prop_assert_eq!(&segment[16..18], &expected.to_be_bytes()[..]);
            prop_assert!(tcp_is_valid(&segment, src, dst));
            segment[3] ^= 0x40;
            prop_assert!(!tcp_is_valid(&segment, src, dst));
        }

        #[test]
        fn icmp_checksums_agree_with_the_naive_one((src, dst) in any_pair(), mut message in any_octets(8..=200)) {
            message[2..4].copy_from_slice(&[0, 0]);
            let (four, six) = (naive(&message), naive(&[&naive_pseudo(src, dst, 58, message.len())[..], &message].concat()));
            message[2..4].copy_from_slice(&[0x12, 0x34]);
            prop_assert_eq!(icmp_checksum(&message), four);
            prop_assert_eq!(icmp6_checksum(&message, src, dst), six);
        }

        #[test]
        fn an_update_is_what_a_new_sum_would_be(
            mut octets in any_octets(8..=64),
            at in 0usize..61,
            new in prop_oneof![any::<u32>(), Just(0), Just(u32::MAX), Just(0xffff), Just(0xffff_0000)],
        ) {
            // As in TCP: something besides the field is never zero.
            let octets = { octets.push(0); octets.extend([0, 6]); octets };
            let at = at.min(octets.len() - 7);
            let before = naive(&octets);
            let old = u32::from_be_bytes(octets[at..at + 4].try_into().unwrap());
            let mut after = octets.clone();
            after[at..at + 4].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update32(before, at, old, new), naive(&after), "32 bits at {}", at);
            let mut after = octets.clone();
            after[at..at + 2].copy_from_slice(&(new as u16).to_be_bytes());
            prop_assert_eq!(update16(before, at, (old >> 16) as u16, new as u16), naive(&after), "16 bits at {}", at);
        }

        #[test]
        fn an_update_back_restores_the_checksum(check in 0u16..0xffff, at in 0usize..2, old in any::<u32>(), new in any::<u32>()) {
            prop_assert_eq!(update32(update32(check, at, old, new), at, new, old), check);
            prop_assert_eq!(update32(check, at, old, old), check);
        }
    }
}
