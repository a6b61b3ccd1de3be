//! A fast keyed hash of an address or prefix, and prefixes in the packet path's form.
//!
//! Two folded multiplications (the low half of the 128-bit product XORed with the high half, as in wyhash and ahash), each
//! with secret operands, in place of SipHash: some 2 ns, and every packet may need several. That is enough because the
//! hash guards only the spread over a table whose contents nobody is shown: no output leaves the worker, and what a sender
//! can observe of it, whether a packet passed, depends on the rate of that one source. Without outputs, aiming many addresses at
//! one line means guessing a 128-bit secret; a pattern of differences that collides whatever the key would need the product by
//! an unknown 64-bit number to forget it. It is no message authentication code, and cookies do not use it.

use crate::addr::Addr;

/// The key of the hash, made of 128 secret bits.
#[derive(Clone)]
pub struct Secret([u64; 4]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The low half of the product XORed with the high half.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a).wrapping_mul(u128::from(b));
    product as u64 ^ (product >> 64) as u64
}

/// One step of SplitMix64, a bijection: spreads a secret whose bits are uneven.
fn spread(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

impl Secret {
    /// From 128 random bits.
    #[must_use]
    pub fn new(secret: [u64; 2]) -> Secret {
        let [a, b] = secret.map(spread);
        // A multiplier is odd, so that no secret makes it zero.
        Secret([a, b, spread(a ^ b.rotate_left(32)), spread(b.wrapping_add(a.rotate_left(17))) | 1])
    }

    /// Hashes an address or masked prefix under `kind`: equal addresses of different kinds are strangers.
    #[inline]
    #[must_use]
    pub fn hash(&self, kind: u32, addr: Addr) -> u64 {
        let [k0, k1, k2, k3] = self.0;
        let inner = fold(addr.hi ^ k0, addr.lo ^ k1);
        // Both halves of the word carry the kind, so that small kinds reach the whole product.
        let kind = u64::from(kind);
        fold(inner ^ kind ^ kind << 32 ^ k2, k3)
    }
}

/// The prefix of `addr`, its host bits zero: `v4_len` bits of an IPv4 address (at most 32), `v6_len` of an IPv6 address (at
/// most 128).
#[inline]
#[must_use]
pub fn prefix(addr: Addr, v4_len: u8, v6_len: u8) -> Addr {
    if addr.is_v4() {
        let mask = u32::MAX.checked_shl(32u32.saturating_sub(u32::from(v4_len))).unwrap_or(0);
        Addr::v4(addr.v4_bits() & mask)
    } else {
        let host = 128u32.saturating_sub(u32::from(v6_len));
        let mask = u128::MAX.checked_shl(host).unwrap_or(0);
        Addr { hi: addr.hi & (mask >> 64) as u64, lo: addr.lo & mask as u64 }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use ipnet::IpNet;

    use super::*;

    fn secret() -> Secret {
        Secret::new([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210])
    }

    #[test]
    fn a_prefix_is_the_network_of_the_address() {
        for addr in
            ["198.51.100.213", "255.255.255.255", "2001:db8:1:2:3:4:5:6", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        {
            let addr: IpAddr = addr.parse().unwrap();
            for len in 0..=if addr.is_ipv4() { 32 } else { 128 } {
                let network = IpNet::new(addr, len).unwrap().network();
                let (v4, v6) = if addr.is_ipv4() { (len, 0) } else { (0, len) };
                assert_eq!(prefix(addr.into(), v4, v6), network.into(), "{addr}/{len}");
            }
        }
    }

    #[test]
    fn a_prefix_longer_than_the_address_is_the_address() {
        let (v4, v6) = (Addr::v4(7), Addr::v6([9; 16]));
        assert_eq!((prefix(v4, 33, 0), prefix(v6, 0, 255)), (v4, v6));
    }

    /// The populations that networks have: neighbours that differ in few bits, at either end of the address.
    fn populations() -> Vec<Vec<Addr>> {
        let v6 = |hi: u64, lo: u64| Addr { hi, lo };
        vec![
            (0..1 << 16).map(|i| Addr::v4(0x0a00_0000 + i)).collect(),
            (0..1 << 16).map(|i| Addr::v4(i << 16)).collect(),
            (0..1 << 16).map(|i| v6(0x2001_0db8_0000_0000 + i, 0)).collect(),
            (0..1 << 16).map(|i| v6(0x2001_0db8_0000_0000 + (i << 16), 1)).collect(),
            (0..1 << 16).map(|i| v6(0x2001_0db8_0000_0001, i << 48)).collect(),
            (0..1 << 16).map(|i| v6(i << 48, i << 48)).collect(),
        ]
    }

    #[test]
    fn neighbours_spread_evenly_over_lines_and_tags() {
        for secret in [secret(), Secret::new([0, 0]), Secret::new([1, 0]), Secret::new([0, u64::MAX])] {
            for (n, addrs) in populations().iter().enumerate() {
                for shift in [0, 20, 52] {
                    let mut bins = vec![0u32; 4096];
                    for &addr in addrs {
                        bins[(secret.hash(1, addr) >> shift) as usize & 4095] += 1;
                    }
                    // Sixteen to a bin on average: chi-square over 4,095 degrees of freedom, which deviates by 90.
                    let chi: f64 = bins.iter().map(|&n| (f64::from(n) - 16.0).powi(2) / 16.0).sum();
                    assert!((3500.0..4700.0).contains(&chi), "population {n}, bits from {shift}: {chi}");
                }
            }
        }
    }

    #[test]
    fn each_bit_of_the_input_changes_half_of_the_output() {
        let flips = |kind: u32, addr: Addr| {
            let (mut total, mut least) = (0, u32::MAX);
            for n in 0..256u64 {
                let secret = Secret::new([n, !n]);
                let base = Addr { hi: 0x2001_0db8 << 32, lo: n };
                let other = Addr { hi: base.hi ^ addr.hi, lo: base.lo ^ addr.lo };
                let changed = (secret.hash(5, base) ^ secret.hash(5 ^ kind, other)).count_ones();
                total += changed;
                least = least.min(changed);
            }
            (f64::from(total) / 256.0, least)
        };
        for bit in 0..64 {
            for (kind, hi, lo) in [(0, 1 << bit, 0), (0, 0, 1 << bit), (1u32.checked_shl(bit).unwrap_or(1), 0, 0)] {
                let (mean, least) = flips(kind, Addr { hi, lo });
                assert!((30.0..34.0).contains(&mean) && least > 8, "bit {bit} of {kind} {hi} {lo}: {mean}, {least}");
            }
        }
    }

    #[test]
    fn another_secret_is_another_hash_and_none_is_shown() {
        let addr = Addr::from(IpAddr::from(Ipv6Addr::LOCALHOST));
        assert_ne!(secret().hash(0, addr), Secret::new([1, 2]).hash(0, addr));
        assert_ne!(secret().hash(0, addr), secret().hash(1, addr));
        assert_eq!(format!("{:?}", secret()), "Secret(..)");
    }
}
