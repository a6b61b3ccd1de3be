//! What may follow a version 2 header's addresses: type (1 octet), length (2), value (specification section 2.2.7).
//!
//! Whoever reads walks them; whoever writes appends them and patches the header's length afterwards.

/// The length of a version 2 header's fixed part: signature, version and command, family, length.
pub(super) const FIXED: usize = 16;

/// Where the fixed part has the length of what follows it.
const LENGTH: usize = 14;

/// A TLV's type and length.
pub(super) const HEAD: usize = 3;

/// `PP2_TYPE_AUTHORITY`: the host name the client asked for, or what the operator set in its place. UTF-8.
pub const AUTHORITY: u8 = 0x02;
/// `PP2_TYPE_CRC32C`: the checksum over the whole header, taken with its own value zero.
pub const CRC32C: u8 = 0x03;
/// `PP2_TYPE_UNIQUE_ID`: an opaque name of this connection.
pub const UNIQUE_ID: u8 = 0x05;
/// [`Evidence`](super::Evidence), from the range for custom types (`PP2_TYPE_MIN_CUSTOM` to `PP2_TYPE_MAX_CUSTOM`).
pub const EVIDENCE: u8 = 0xe3;
/// Who signed the header, when, and the MAC, from the same range.
pub const AUTHENTICATION: u8 = 0xe4;

/// The longest authority that is written, octets.
pub const AUTHORITY_MAX: usize = 255;
/// The octets of a unique id that we write.
pub const UNIQUE_ID_LEN: usize = 16;
/// The octets of a CRC32C.
pub(super) const CRC32C_LEN: usize = 4;

/// Appends a TLV; says where its value begins.
pub(super) fn put(header: &mut Vec<u8>, kind: u8, value: &[u8]) -> usize {
    // Every value's length is bounded far below this.
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    header.push(kind);
    header.extend(length.to_be_bytes());
    let at = header.len();
    header.extend(value.iter().take(usize::from(length)));
    at
}

/// Writes the length of what follows the fixed part into it.
pub(super) fn set_length(header: &mut [u8]) {
    let length = u16::try_from(header.len().saturating_sub(FIXED)).unwrap_or(u16::MAX);
    patch(header, LENGTH, length.to_be_bytes());
}

/// Overwrites the octets from `at` on, if they are there.
pub(super) fn patch<const N: usize>(header: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(field) = header.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *field = value;
    }
}

/// TLVs one after the other, as (type, value). Ends at the first that does not fit; a header that was read has none such.
#[derive(Clone, Copy, Debug)]
pub struct Tlvs<'a> {
    rest: &'a [u8],
}

impl<'a> Tlvs<'a> {
    pub(super) fn new(octets: &'a [u8]) -> Tlvs<'a> {
        Tlvs { rest: octets }
    }

    /// Whether every TLV fits and nothing is left over.
    pub(super) fn sound(mut self) -> bool {
        self.by_ref().for_each(drop);
        self.rest.is_empty()
    }

    /// The first value of this type.
    #[must_use]
    pub fn find(self, kind: u8) -> Option<&'a [u8]> {
        let mut tlvs = self;
        tlvs.find_map(|(found, value)| (found == kind).then_some(value))
    }
}

impl<'a> Iterator for Tlvs<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let ([kind, high, low], rest) = self.rest.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))?;
        self.rest = rest;
        Some((*kind, value))
    }
}

/// A header's TLVs with the place of each value in it. `at` is where the first TLV begins.
pub(super) fn places(tlvs: Tlvs<'_>, at: usize) -> impl Iterator<Item = (u8, usize, &[u8])> {
    tlvs.scan(at, |at, (kind, value)| {
        let begins = at.saturating_add(HEAD);
        *at = begins.saturating_add(value.len());
        Some((kind, begins, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_tlvs_are_read_back_with_their_places() {
        let mut header = vec![0; FIXED];
        assert_eq!(put(&mut header, AUTHORITY, b"example.com"), 19);
        assert_eq!(put(&mut header, UNIQUE_ID, &[]), 33);
        set_length(&mut header);
        assert_eq!(header[14..], *b"\x00\x11\x02\x00\x0bexample.com\x05\x00\x00");
        let tlvs = Tlvs::new(&header[FIXED..]);
        assert!(tlvs.sound());
        let read: Vec<_> = places(tlvs, FIXED).collect();
        assert_eq!(read, [(AUTHORITY, 19, &b"example.com"[..]), (UNIQUE_ID, 33, &[])]);
        assert_eq!(tlvs.find(UNIQUE_ID), Some(&[][..]));
        assert_eq!(tlvs.find(CRC32C), None);
    }

    #[test]
    fn a_tlv_that_does_not_fit_is_unsound() {
        for octets in [&[2][..], &[2, 0], &[2, 0, 1], &[2, 0, 0, 5], &[2, 0, 0, 5, 0, 2, 1]] {
            assert!(!Tlvs::new(octets).sound(), "{octets:?}");
        }
        assert!(Tlvs::new(&[]).sound());
    }
}
