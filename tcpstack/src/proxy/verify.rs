//! Tells whether one of our keys signed a header, and when.

use std::ops::Range;
use std::time::Duration;

use super::auth::{self, Keys, MAC_AT, MAC_LEN, UnixMillis};
use super::read::{Read, ReadError, read};
use super::tlv;

/// A header that one of the keys signed.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'a> {
    /// What it says.
    pub read: Read<'a>,
    /// The key's number.
    pub key: u32,
    /// When it was signed, by the signer's clock.
    pub signed: UnixMillis,
}

/// Why a header is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// There is no header to verify, or not yet.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It has no authentication TLV: version 1, or sent without `authenticate`.
    #[error("the header is not signed")]
    Unsigned,
    /// It has several.
    #[error("the header is signed twice")]
    SignedTwice,
    /// Its authentication TLV is of another layout or length.
    #[error("the header's signature is of an unknown layout")]
    Layout,
    /// None of the keys has this number.
    #[error("the header is signed with key {0}, which is not among the keys")]
    UnknownKey(u32),
    /// Another key, or not the octets that were signed.
    #[error("the header's signature is wrong: it was changed, or signed with another key of number {0}")]
    WrongMac(u32),
    /// It was signed too long ago.
    #[error("the header was signed {} ms ago, more than the {} ms allowed", age.as_millis(), most.as_millis())]
    TooOld {
        /// How long ago.
        age: Duration,
        /// How long would do.
        most: Duration,
    },
    /// It was signed too far ahead of this clock.
    #[error(
        "the header was signed {} ms in the future, more than the {} ms allowed: compare the clocks",
        ahead.as_millis(),
        most.as_millis()
    )]
    FromTheFuture {
        /// How far ahead.
        ahead: Duration,
        /// How far would do.
        most: Duration,
    },
}

/// Reads the header at the beginning of `octets` and believes it only if one of `keys` signed it, at most `max_age` before or
/// after `now`.
///
/// A header is good for everybody who holds it as long as it is young: who wants each to count once remembers the unique
/// ids of the last `max_age`.
///
/// # Errors
/// [`VerifyError`] says what is missing. The age is looked at only once the MAC is right.
///
/// ```
/// # use std::time::Duration;
/// use sluice_tcpstack::proxy::{Extras, Header, Keys, UnixMillis, VerifyError, verify};
///
/// let text = b"7 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
/// let keys = Keys::new(&sluice_config::ProxyKeys::parse("keys".as_ref(), text)?);
/// let (client, listen) = ("203.0.113.7:51000".parse()?, "198.51.100.10:443".parse()?);
/// let now = UnixMillis(1_767_323_045_000);
/// let header = Header::v2_with(client, listen, &Extras { sign: Some((&keys, now)), ..Extras::default() });
///
/// let later = UnixMillis(now.0 + 250);
/// let verified = verify(header.as_slice(), &keys, later, Duration::from_secs(30))?;
/// assert_eq!(verified.read.addresses.map(|ends| ends.client), Some(client));
/// assert_eq!((verified.key, verified.signed), (7, now));
///
/// let nobody = verify(header.as_slice(), &Keys::default(), later, Duration::from_secs(30));
/// assert_eq!(nobody.unwrap_err(), VerifyError::UnknownKey(7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn verify<'a>(
    octets: &'a [u8],
    keys: &Keys,
    now: UnixMillis,
    max_age: Duration,
) -> Result<Verified<'a>, VerifyError> {
    let read = read(octets)?;
    let header = octets.get(..read.len).unwrap_or_default();
    let mut authentications = read.places().filter(|(kind, ..)| *kind == tlv::AUTHENTICATION);
    let (_, at, value) = authentications.next().ok_or(VerifyError::Unsigned)?;
    if authentications.next().is_some() {
        return Err(VerifyError::SignedTwice);
    }
    let signed = auth::decode(value).ok_or(VerifyError::Layout)?;
    let mac = at.saturating_add(MAC_AT)..at.saturating_add(MAC_AT).saturating_add(MAC_LEN);
    let checksum = read.places().find(|(kind, ..)| *kind == tlv::CRC32C).map(|(_, at, value)| place(at, value));
    let right = match checksum {
        None => keys.verify(signed.key, header, &[mac], signed.mac),
        Some(checksum) if checksum.start < mac.start => keys.verify(signed.key, header, &[checksum, mac], signed.mac),
        Some(checksum) => keys.verify(signed.key, header, &[mac, checksum], signed.mac),
    };
    match right {
        None => return Err(VerifyError::UnknownKey(signed.key)),
        Some(false) => return Err(VerifyError::WrongMac(signed.key)),
        Some(true) => {}
    }
    let (age, ahead) = (now.since(signed.at), signed.at.since(now));
    if age > max_age {
        return Err(VerifyError::TooOld { age, most: max_age });
    }
    if ahead > max_age {
        return Err(VerifyError::FromTheFuture { ahead, most: max_age });
    }
    Ok(Verified { read, key: signed.key, signed: signed.at })
}

fn place(at: usize, value: &[u8]) -> Range<usize> {
    at..at.saturating_add(value.len())
}
