//! Octets in and out: bounds-checked reads and writes, drafts of the frames we originate, the addresses that mean something
//! (RFC 4291 section 2.7.1, RFC 2464 section 7).
//!
//! Nothing here can panic, whatever the octets are.

use sluice_filters::addr::Addr;

/// A MAC address.
pub(super) type MacAddr = [u8; 6];

/// To every station of the link.
pub(super) const BROADCAST: MacAddr = [0xff; 6];
/// ff02::1
pub(super) const ALL_NODES: Addr = Addr { hi: 0xff02_0000_0000_0000, lo: 1 };
/// ::
pub(super) const UNSPECIFIED: Addr = Addr { hi: 0, lo: 0 };

/// EtherType of IPv4.
pub(super) const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub(super) const ARP: u16 = 0x0806;
/// EtherType of an 802.1Q tag.
pub(super) const VLAN: u16 = 0x8100;
/// EtherType of IPv6.
pub(super) const IPV6: u16 = 0x86dd;
/// Shortest Ethernet frame, without its FCS.
pub(super) const MIN_FRAME: usize = 60;

/// Whether a station may have this address: neither a group's nor all zeros.
pub(super) fn is_station(mac: MacAddr) -> bool {
    let [first, ..] = mac;
    first & 1 == 0 && mac != [0; 6]
}

/// Whether this is an IPv6 multicast address.
pub(super) fn is_multicast6(addr: Addr) -> bool {
    addr.hi >> 56 == 0xff
}

/// Whether this address lies in fe80::/10.
pub(super) fn is_link_local(addr: Addr) -> bool {
    addr.hi >> 54 == 0xfe80 >> 6
}

/// The solicited-node group of an IPv6 address (RFC 4291 section 2.7.1).
pub(super) fn solicited_node(addr: Addr) -> Addr {
    Addr { hi: 0xff02_0000_0000_0000, lo: 0x0000_0001_ff00_0000 | addr.lo & 0xff_ffff }
}

/// The MAC address of an IPv6 group (RFC 2464 section 7).
pub(super) fn group_mac(group: Addr) -> MacAddr {
    let [a, b, c, d] = (group.lo as u32).to_be_bytes();
    [0x33, 0x33, a, b, c, d]
}

/// `N` octets from `at` on.
pub(super) fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Writes `value` at `at`; `None`, and nothing written, where it does not fit.
pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value;
    Some(())
}

/// A frame under construction. Its capacity is a constant, and so are its parts' lengths.
pub(super) struct Draft<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Draft<N> {
    /// Empty.
    pub(super) fn new() -> Draft<N> {
        Draft { bytes: [0; N], len: 0 }
    }

    /// Appends; what does not fit is lost.
    pub(super) fn push(&mut self, more: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..).and_then(|room| room.get_mut(..more.len())) {
            room.copy_from_slice(more);
            self.len = self.len.saturating_add(more.len());
        }
    }

    /// Zeros up to the shortest Ethernet frame.
    pub(super) fn pad(&mut self) {
        self.len = self.len.max(MIN_FRAME).min(N);
    }

    /// Replaces octets that were pushed.
    pub(super) fn put<const M: usize>(&mut self, at: usize, value: [u8; M]) {
        let _: Option<()> = put(&mut self.bytes, at, value);
    }

    /// All of it, zeros where nothing was written.
    pub(super) fn into_bytes(self) -> [u8; N] {
        self.bytes
    }

    /// What was written so far.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
