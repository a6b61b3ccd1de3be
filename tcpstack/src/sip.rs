//! SipHash-1-3 over a few words, the keyed hash of the packet path: cookies, timestamp offsets and the flow table.
//!
//! The hashing is crate `siphasher`'s. What matters here is that message lengths are constants (hence the family as a constant)
//! and everything is inlined: the hash then runs in registers.

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

use std::hash::Hasher;

use siphasher::sip::SipHasher13;
use sluice_filters::addr::FlowKey;

/// Hashes both addresses, then what `rest` writes. Ten octets of one IPv4 flow never equal those of an IPv6 flow: SipHash
/// covers the length.
#[inline(always)]
pub(crate) fn of_flow<const V4: bool>(secret: [u64; 2], key: &FlowKey, rest: impl Fn(&mut SipHasher13)) -> u64 {
    let mut sip = SipHasher13::new_with_keys(secret[0], secret[1]);
    if V4 {
        sip.write_u64(u64::from(key.src.v4_bits()) << 32 | u64::from(key.dst.v4_bits()));
    } else {
        sip.write_u64(key.src.hi);
        sip.write_u64(key.src.lo);
        sip.write_u64(key.dst.hi);
        sip.write_u64(key.dst.lo);
    }
    rest(&mut sip);
    sip.finish()
}

/// Both ports in one word.
#[inline(always)]
pub(crate) fn ports(key: &FlowKey) -> u32 {
    u32::from(key.src_port) << 16 | u32::from(key.dst_port)
}
