//! Keys, and the MAC that tells a receiver which appliance wrote a header: TLV type 0xE4, layout version 1.
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 1 | layout version, 1 |
//! | 1 | 4 | the key's number |
//! | 5 | 8 | when it was signed, milliseconds since 1970-01-01T00:00:00Z |
//! | 13 | 32 | HMAC-SHA256 (RFC 2104, FIPS 180-4) |
//!
//! The MAC is over the whole header as it is sent, signature and length included, with the MAC's own 32 octets and the 4 of
//! a CRC32C's value taken as zero. So every octet is under the MAC but the checksum's value, which the CRC32C itself
//! covers; the checksum is computed last, over the signed header.
//!
//! Invariants: secrets are wiped when the last user of a set of keys lets go of it; MACs are compared in constant time.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sluice_config::ProxyKeys;

/// The layout's version.
const LAYOUT: u8 = 1;

/// Octets of an HMAC-SHA256.
pub(super) const MAC_LEN: usize = 32;

/// Where the MAC stands in the value.
pub(super) const MAC_AT: usize = 13;

/// Octets of the value.
pub(super) const ENCODED: usize = MAC_AT + MAC_LEN;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// How much later `self` is than `earlier`; zero when it is not.
    #[must_use]
    pub fn since(self, earlier: UnixMillis) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl From<SystemTime> for UnixMillis {
    /// A moment before 1970 is taken as 1970.
    fn from(at: SystemTime) -> UnixMillis {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Keys ready for use: the first signs, every one verifies. The default has none, so it signs and verifies nothing.
#[derive(Default)]
pub struct Keys(Vec<Key>);

struct Key {
    id: u32,
    /// HMAC with the key taken in: two states of SHA-256, which wipe themselves when dropped.
    keyed: Hmac<Sha256>,
}

impl Keys {
    /// Takes in a file's keys.
    #[must_use]
    pub fn new(keys: &ProxyKeys) -> Keys {
        // HMAC takes keys of every length.
        let key = |(id, secret): (u32, &[u8])| Some(Key { id, keyed: Hmac::new_from_slice(secret).ok()? });
        Keys(keys.iter().filter_map(key).collect())
    }

    /// The number of the key that signs.
    #[must_use]
    pub fn signer(&self) -> Option<u32> {
        self.0.first().map(|key| key.id)
    }

    /// The numbers of the keys that verify, the one that signs first.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|key| key.id)
    }

    /// The MAC of these octets under the key that signs.
    pub(super) fn sign(&self, octets: &[u8]) -> Option<[u8; MAC_LEN]> {
        let mut mac = self.0.first()?.keyed.clone();
        mac.update(octets);
        Some(mac.finalize().into_bytes().into())
    }

    /// Whether `mac` is that of `octets` with `blanks` taken as zero, under the key of this number. None when there is no
    /// such key.
    pub(super) fn verify(&self, id: u32, octets: &[u8], blanks: &[Range<usize>], mac: &[u8]) -> Option<bool> {
        let key = self.0.iter().find(|key| key.id == id)?;
        let mut computed = key.keyed.clone();
        blanked(octets, blanks, |piece| computed.update(piece));
        Some(computed.verify_slice(mac).is_ok())
    }
}

impl fmt::Debug for Keys {
    /// The numbers, without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.ids().collect::<Vec<_>>()).finish()
    }
}

/// The keys in force, for workers to share and the control plane to replace. Nobody waits for anybody.
#[derive(Debug, Default)]
pub struct KeyRing(ArcSwap<Keys>);

impl KeyRing {
    /// A ring with these keys in force.
    #[must_use]
    pub fn new(keys: Keys) -> KeyRing {
        KeyRing(ArcSwap::from_pointee(keys))
    }

    /// The keys in force.
    #[must_use]
    pub fn current(&self) -> Arc<Keys> {
        self.0.load_full()
    }

    /// Puts `keys` in force. What is being signed or verified at this moment ends with the old ones.
    pub fn replace(&self, keys: Keys) {
        self.0.store(Arc::new(keys));
    }
}

/// Who signed a header, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Authentication<'a> {
    pub(super) key: u32,
    pub(super) at: UnixMillis,
    pub(super) mac: &'a [u8; MAC_LEN],
}

/// The TLV's value for the key that signs, its MAC zero; none without a key.
pub(super) fn unsigned(keys: &Keys, at: UnixMillis) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(ENCODED);
    value.push(LAYOUT);
    value.extend(keys.signer()?.to_be_bytes());
    value.extend(at.0.to_be_bytes());
    value.extend([0; MAC_LEN]);
    Some(value)
}

/// Reads the TLV's value. None when it is of another layout or length.
pub(super) fn decode(value: &[u8]) -> Option<Authentication<'_>> {
    let ([layout], rest) = value.split_first_chunk()?;
    let (key, rest) = rest.split_first_chunk()?;
    let (at, rest) = rest.split_first_chunk()?;
    let mac = rest.try_into().ok()?;
    (*layout == LAYOUT).then_some(Authentication {
        key: u32::from_be_bytes(*key),
        at: UnixMillis(u64::from_be_bytes(*at)),
        mac,
    })
}

/// Hands over `octets` piece by piece, those of `blanks` as zeros. `blanks` are in order, apart, and no longer than a MAC.
pub(super) fn blanked(octets: &[u8], blanks: &[Range<usize>], mut take: impl FnMut(&[u8])) {
    const ZEROS: [u8; MAC_LEN] = [0; MAC_LEN];
    let mut at = 0;
    for blank in blanks {
        take(octets.get(at..blank.start).unwrap_or_default());
        take(ZEROS.get(..blank.len()).unwrap_or_default());
        at = blank.end;
    }
    take(octets.get(at..).unwrap_or_default());
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Keys in the manner of a file.
    pub(in super::super) fn keys(lines: &[(u32, u8)]) -> Keys {
        let line = |(id, first): &(u32, u8)| {
            let digits: String = (0..32).map(|i| format!("{:02x}", first.wrapping_add(i))).collect();
            format!("{id} {digits}\n")
        };
        let text: String = lines.iter().map(line).collect();
        Keys::new(&ProxyKeys::parse("keys".as_ref(), text.as_bytes()).unwrap())
    }

    #[test]
    fn the_primitive_is_rfc_4231s() {
        let mac = |key: &[u8], data: &[u8]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
            mac.update(data);
            <[u8; 32]>::from(mac.finalize().into_bytes())
        };
        let hex = |octets: [u8; 32]| octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
        assert_eq!(
            hex(mac(&[0x0b; 20], b"Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            hex(mac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn the_first_key_signs_and_every_key_verifies() {
        let (old, both, new) = (keys(&[(1, 0)]), keys(&[(2, 9), (1, 0)]), keys(&[(2, 9)]));
        assert_eq!((both.signer(), both.ids().collect::<Vec<_>>()), (Some(2), vec![2, 1]));
        let by_old = old.sign(b"octets").unwrap();
        let by_both = both.sign(b"octets").unwrap();
        assert_eq!(both.verify(1, b"octets", &[], &by_old), Some(true));
        assert_eq!(new.verify(2, b"octets", &[], &by_both), Some(true));
        assert_eq!(both.verify(2, b"octets", &[], &by_old), Some(false));
        assert_eq!(new.verify(1, b"octets", &[], &by_old), None);
    }

    #[test]
    fn without_keys_nothing_is_signed_or_verified() {
        let none = Keys::default();
        assert_eq!((none.signer(), none.sign(b"octets")), (None, None));
        assert_eq!(unsigned(&none, UnixMillis(0)), None);
        assert_eq!(none.verify(0, b"octets", &[], &[0; 32]), None);
    }

    #[test]
    fn a_cut_or_empty_mac_is_wrong() {
        let keys = keys(&[(1, 0)]);
        let mac = keys.sign(b"octets").unwrap();
        for len in 0..MAC_LEN {
            assert_eq!(keys.verify(1, b"octets", &[], &mac[..len]), Some(false), "{len}");
        }
    }

    #[test]
    fn replaced_keys_are_in_force_at_once_and_old_ones_stay_with_their_users() {
        let ring = KeyRing::new(keys(&[(1, 0)]));
        let before = ring.current();
        ring.replace(keys(&[(2, 9), (1, 0)]));
        assert_eq!((before.signer(), ring.current().signer()), (Some(1), Some(2)));
        assert_eq!(KeyRing::default().current().signer(), None);
    }

    #[test]
    fn secrets_are_not_shown_and_are_wiped() {
        // A keyed HMAC is two of these.
        fn is_wiped<T: zeroize::ZeroizeOnDrop>() {}
        is_wiped::<Sha256>();
        assert_eq!(format!("{:?}", KeyRing::new(keys(&[(7, 0)])).current()), "Keys([7])");
    }

    #[test]
    fn layout_is_the_documented_one() {
        let mut value = unsigned(&keys(&[(0x0102_0304, 0)]), UnixMillis(0x0000_019b_7ccb_2d08)).unwrap();
        let mut expected = vec![1, 1, 2, 3, 4, 0, 0, 0x01, 0x9b, 0x7c, 0xcb, 0x2d, 0x08];
        expected.extend([0; 32]);
        assert_eq!(value, expected);
        value[13] = 9;
        let read = decode(&value).unwrap();
        assert_eq!((read.key, read.at, read.mac[0]), (0x0102_0304, UnixMillis(0x0000_019b_7ccb_2d08), 9));
        value[0] = 2;
        assert_eq!(decode(&value), None);
        value[0] = 1;
        for len in 0..ENCODED {
            assert_eq!(decode(&value[..len]), None, "{len}");
        }
        value.push(0);
        assert_eq!(decode(&value), None);
    }

    #[test]
    fn blanks_are_zeros_and_the_rest_is_as_it_was() {
        let mut seen: Vec<u8> = Vec::new();
        blanked(&[1, 2, 3, 4, 5, 6, 7], &[1..3, 4..6], |piece| seen.extend(piece));
        assert_eq!(seen, [1, 0, 0, 4, 0, 0, 7]);
    }

    #[test]
    fn moments_before_1970_are_1970() {
        assert_eq!(UnixMillis::from(UNIX_EPOCH - Duration::from_secs(1)), UnixMillis(0));
        assert_eq!(UnixMillis::from(UNIX_EPOCH + Duration::from_millis(1_500)), UnixMillis(1_500));
        assert_eq!(UnixMillis(5).since(UnixMillis(7)), Duration::ZERO);
    }
}
