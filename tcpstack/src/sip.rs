//! SipHash-1-3 over a few words (Aumasson and Bernstein 2012), the keyed hash of the packet path: cookies, timestamp offsets
//! and the flow table.
//!
//! Written here and not taken from a crate because of its speed: messages are whole words of a length known to the compiler,
//! a key is kept as the state it leads to, and all of it runs in registers, in half the instructions that a hasher fed
//! piece by piece takes. The tests compare it with crate `siphasher`, which hashes everything that is not per packet.

use sluice_filters::addr::FlowKey;
use zeroize::Zeroize;

/// A key, as the state a hash starts from. Secret; erased when dropped.
pub(crate) struct Key([u64; 4]);

impl Key {
    /// From the key's two halves.
    pub(crate) const fn new(halves: [u64; 2]) -> Key {
        let [k0, k1] = halves;
        Key([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    /// Hashes both addresses, then `words`, then the low `tail_len` (at most 7) octets of `tail`, whose others are zero. `V4`
    /// says that the flow is IPv4's. An IPv4 flow and an IPv6 flow never have one message: SipHash covers the length.
    #[inline(always)]
    pub(crate) fn of_flow<const V4: bool, const N: usize>(
        &self,
        flow: &FlowKey,
        words: [u64; N],
        tail: u64,
        tail_len: u64,
    ) -> u64 {
        let mut state = State(self.0);
        let mut len = tail_len;
        let mut word = |state: &mut State, word| {
            state.absorb(word);
            len = len.wrapping_add(8);
        };
        if V4 {
            word(&mut state, u64::from(flow.src.v4_bits()) << 32 | u64::from(flow.dst.v4_bits()));
        } else {
            for octets in [flow.src.hi, flow.src.lo, flow.dst.hi, flow.dst.lo] {
                word(&mut state, octets);
            }
        }
        for octets in words {
            word(&mut state, octets);
        }
        state.absorb(len << 56 | tail);
        state.finish()
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

struct State([u64; 4]);

impl State {
    #[inline(always)]
    fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }

    #[inline(always)]
    fn finish(mut self) -> u64 {
        self.0[2] ^= 0xff;
        self.round();
        self.round();
        self.round();
        let [a, b, c, d] = self.0;
        a ^ b ^ c ^ d
    }

    #[inline(always)]
    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.0;
        a = a.wrapping_add(b);
        c = c.wrapping_add(d);
        b = b.rotate_left(13) ^ a;
        d = d.rotate_left(16) ^ c;
        a = a.rotate_left(32).wrapping_add(d);
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        d = d.rotate_left(21) ^ a;
        self.0 = [a, b, c.rotate_left(32), d];
    }
}

/// Both ports in one word.
#[inline(always)]
pub(crate) fn ports(key: &FlowKey) -> u32 {
    u32::from(key.src_port) << 16 | u32::from(key.dst_port)
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;

    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;
    use sluice_filters::addr::Addr;

    use super::*;

    proptest! {
        #[test]
        fn hashes_are_those_of_siphash_1_3(
            halves: [u64; 2],
            (src, dst) in any::<([u64; 2], [u64; 2])>(),
            words: [u64; 2],
            tail: [u8; 7],
            tail_len in 0_usize..=7,
            v4: bool,
        ) {
            let address = |[hi, lo]: [u64; 2]| if v4 { Addr::v4(lo as u32) } else { Addr { hi, lo } };
            let flow = FlowKey { src: address(src), dst: address(dst), src_port: 1, dst_port: 2 };
            let mut octets = [0; 8];
            octets[..tail_len].copy_from_slice(&tail[..tail_len]);
            let (last, last_len) = (u64::from_le_bytes(octets), tail_len as u64);
            let [none, one, two] = if v4 {
                [
                    Key::new(halves).of_flow::<true, 0>(&flow, [], last, last_len),
                    Key::new(halves).of_flow::<true, 1>(&flow, [words[0]], last, last_len),
                    Key::new(halves).of_flow::<true, 2>(&flow, words, last, last_len),
                ]
            } else {
                [
                    Key::new(halves).of_flow::<false, 0>(&flow, [], last, last_len),
                    Key::new(halves).of_flow::<false, 1>(&flow, [words[0]], last, last_len),
                    Key::new(halves).of_flow::<false, 2>(&flow, words, last, last_len),
                ]
            };
            let addresses = if v4 {
                vec![u64::from(src[1] as u32) << 32 | u64::from(dst[1] as u32)]
            } else {
                [src, dst].concat()
            };
            for (count, hash) in [none, one, two].into_iter().enumerate() {
                let mut sip = SipHasher13::new_with_keys(halves[0], halves[1]);
                for word in addresses.iter().chain(&words[..count]) {
                    sip.write(&word.to_le_bytes());
                }
                sip.write(&tail[..tail_len]);
                prop_assert_eq!(hash, sip.finish(), "{} words", count);
            }
        }
    }
}
