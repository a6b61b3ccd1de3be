//! Addresses and flow keys in the form the packet path uses: 16 octets, IPv4 as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IPv4 or IPv6 address, IPv4 mapped into IPv6. Real IPv6 packets that carry mapped addresses are dropped by the parser,
/// so the two never meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Addr {
    /// The first eight octets, big-endian.
    pub hi: u64,
    /// The last eight octets, big-endian.
    pub lo: u64,
}

const MAPPED: u64 = 0xffff;

impl Addr {
    /// From the 32 bits of an IPv4 address.
    #[inline]
    #[must_use]
    pub const fn v4(bits: u32) -> Addr {
        Addr { hi: 0, lo: MAPPED << 32 | bits as u64 }
    }

    /// From the 16 octets of an IPv6 address.
    #[inline]
    #[must_use]
    pub const fn v6(octets: [u8; 16]) -> Addr {
        let bits = u128::from_be_bytes(octets);
        Addr { hi: (bits >> 64) as u64, lo: bits as u64 }
    }

    /// Whether this is an IPv4 address.
    #[inline]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.hi == 0 && self.lo >> 32 == MAPPED
    }

    /// The low 32 bits: the IPv4 address when [`Addr::is_v4`].
    #[inline]
    #[must_use]
    pub const fn v4_bits(self) -> u32 {
        self.lo as u32
    }

    /// The 16 octets, IPv4 mapped.
    #[inline]
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        ((self.hi as u128) << 64 | self.lo as u128).to_be_bytes()
    }

    /// The prefix of `v4` bits of an IPv4 address, of `v6` bits of an IPv6 address, the rest zero.
    #[inline]
    #[must_use]
    pub const fn prefix(self, v4: u8, v6: u8) -> Addr {
        // An IPv4 address stands behind 96 bits.
        let kept = if self.is_v4() { (v4 as u32).saturating_add(96) } else { v6 as u32 };
        let bits = (self.hi as u128) << 64 | self.lo as u128;
        let kept = if kept >= 128 { bits } else { bits & !(u128::MAX >> kept) };
        Addr { hi: (kept >> 64) as u64, lo: kept as u64 }
    }

    /// What counts as one source (`filters.source_prefix_v6`): an IPv4 address, or an IPv6 prefix of `v6` bits.
    #[inline]
    #[must_use]
    pub const fn source(self, v6: u8) -> Addr {
        self.prefix(32, v6)
    }

    /// The standard library's form.
    #[must_use]
    pub fn to_ip(self) -> IpAddr {
        if self.is_v4() { Ipv4Addr::from(self.v4_bits()).into() } else { Ipv6Addr::from(self.octets()).into() }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Addr {
        match ip {
            IpAddr::V4(ip) => Addr::v4(ip.into()),
            IpAddr::V6(ip) => Addr::v6(ip.octets()),
        }
    }
}

impl std::fmt::Debug for Addr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_ip().fmt(f)
    }
}

/// The 4-tuple of a received segment, as the packet has it: `src` is the peer, `dst` is us.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// The peer's address.
    pub src: Addr,
    /// Our address.
    pub dst: Addr,
    /// The peer's port.
    pub src_port: u16,
    /// Our port.
    pub dst_port: u16,
}

impl FlowKey {
    /// The peer.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.src.to_ip(), self.src_port)
    }

    /// Our end.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(self.dst.to_ip(), self.dst_port)
    }
}
