//! Prefixes as they are written in configurations, lists and files of bans: one rule for all of them.
//!
//! An address alone is a prefix of one address. Bits set after the prefix's length do not matter, but are most often a slip: whoever
//! reads says what is covered. An IPv4-mapped prefix is refused, since no packet's address is in it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// The shortest prefixes that a list or a ban may have: one that is shorter is most often an accident that cuts half the Internet off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortest {
    /// IPv4, bits. Default 8.
    pub v4: u8,
    /// IPv6, bits. Default 19.
    pub v6: u8,
}

impl Shortest {
    /// Nothing is too short.
    pub const NONE: Shortest = Shortest { v4: 0, v6: 0 };

    /// The least length for a prefix of this one's family, if this one is shorter.
    #[inline]
    #[must_use]
    pub fn refuses(self, net: IpNet) -> Option<u8> {
        let least = if matches!(net, IpNet::V4(_)) { self.v4 } else { self.v6 };
        (net.prefix_len() < least).then_some(least)
    }
}

impl Default for Shortest {
    fn default() -> Shortest {
        Shortest { v4: 8, v6: 19 }
    }
}

/// A prefix that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Host bits clear.
    pub net: IpNet,
    /// The address that stood there, if it had host bits.
    pub host: Option<IpAddr>,
}

impl Prefix {
    /// An address and so many bits of it.
    #[must_use]
    pub fn of(net: IpNet) -> Prefix {
        let trunc = net.trunc();
        Prefix { net: trunc, host: (trunc.addr() != net.addr()).then(|| net.addr()) }
    }

    /// What to say of host bits, to follow the prefix in a message, and what would be right.
    #[must_use]
    pub fn warning(&self) -> Option<(String, String)> {
        let Prefix { net, host } = self;
        host.map(|host| {
            let found = format!("has bits set after its first {}: it covers {net}", net.prefix_len());
            (found, format!("write \"{net}\", or \"{host}\" for the one address"))
        })
    }
}

/// Why a text is no prefix. Displayed as what is wrong, to follow the text in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixError {
    /// Nothing like it.
    NoPrefix,
    /// A slash, and no number behind it.
    NoLength,
    /// More bits than an address has; so many has it.
    TooLong(u8),
    /// IPv4 addresses in IPv6's clothes.
    Mapped(Ipv4Net),
    /// Shorter than so many bits.
    TooShort(u8),
}

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrefixError::NoPrefix => f.write_str("is no address or prefix"),
            PrefixError::NoLength => f.write_str("has no prefix length after the slash"),
            PrefixError::TooLong(32) => f.write_str("has a prefix longer than an IPv4 address"),
            PrefixError::TooLong(_) => f.write_str("has a prefix longer than an IPv6 address"),
            PrefixError::Mapped(_) => f.write_str("is IPv4-mapped, and no packet has such an address"),
            PrefixError::TooShort(least) => write!(f, "holds more addresses than a prefix of {least} bits"),
        }
    }
}

impl std::error::Error for PrefixError {}

impl PrefixError {
    /// What would be right.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            PrefixError::NoPrefix | PrefixError::NoLength => {
                "write an address, or an address and a prefix length: 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
                    .to_owned()
            }
            PrefixError::TooLong(most) => format!("use /{most} at most"),
            PrefixError::Mapped(net) if net.prefix_len() == 32 => format!("write the IPv4 address, {}", net.addr()),
            PrefixError::Mapped(net) => format!("write it as IPv4, {net}"),
            PrefixError::TooShort(_) => "write what is meant, or lower filters.shortest_prefix_v4 or _v6".to_owned(),
        }
    }
}

/// Reads an address or a prefix.
///
/// # Errors
/// [`PrefixError`], all but `TooShort`.
pub fn read_prefix(text: &str) -> Result<Prefix, PrefixError> {
    let (addr, len) = text.split_once('/').map_or((text, None), |(addr, len)| (addr, Some(len)));
    let addr: IpAddr = addr.parse().map_err(|_| PrefixError::NoPrefix)?;
    let most = if addr.is_ipv4() { 32 } else { 128 };
    let len = match len {
        None => most,
        Some(digits) if (1..=3).contains(&digits.len()) && digits.bytes().all(|octet| octet.is_ascii_digit()) => {
            digits.parse().map_err(|_| PrefixError::TooLong(most))?
        }
        Some(_) => return Err(PrefixError::NoLength),
    };
    let net = IpNet::new(addr, len).map_err(|_| PrefixError::TooLong(most))?;
    match mapped(net) {
        Some(v4) => Err(PrefixError::Mapped(v4)),
        None => Ok(Prefix::of(net)),
    }
}

fn mapped(net: IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(net) = net else { return None };
    let len = net.prefix_len().checked_sub(96)?;
    let v4: Ipv4Addr = net.addr().to_ipv4_mapped()?;
    Ipv4Net::new(v4, len).ok().map(|net| net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_alone_is_a_prefix_of_one_and_host_bits_are_told() {
        for (text, net, host) in [
            ("192.0.2.7", "192.0.2.7/32", None),
            ("192.0.2.7/32", "192.0.2.7/32", None),
            ("192.0.2.0/024", "192.0.2.0/24", None),
            ("192.0.2.7/24", "192.0.2.0/24", Some("192.0.2.7")),
            ("2001:db8::7", "2001:db8::7/128", None),
            ("2001:db8::7/64", "2001:db8::/64", Some("2001:db8::7")),
            ("0.0.0.0/0", "0.0.0.0/0", None),
            ("::/0", "::/0", None),
        ] {
            let read = read_prefix(text).unwrap();
            assert_eq!((read.net, read.host), (net.parse().unwrap(), host.map(|host| host.parse().unwrap())), "{text}");
        }
        let (found, remedy) = read_prefix("192.0.2.7/24").unwrap().warning().unwrap();
        assert_eq!(found, "has bits set after its first 24: it covers 192.0.2.0/24");
        assert_eq!(remedy, "write \"192.0.2.0/24\", or \"192.0.2.7\" for the one address");
    }

    #[test]
    fn what_is_no_prefix_is_refused_with_the_remedy() {
        for (text, error, remedy) in [
            ("", PrefixError::NoPrefix, "write an address, or"),
            ("192.0.2.01", PrefixError::NoPrefix, "write an address, or"),
            ("fe80::1%eth0", PrefixError::NoPrefix, "write an address, or"),
            ("192.0.2.0/", PrefixError::NoLength, "write an address, or"),
            ("192.0.2.0/+8", PrefixError::NoLength, "write an address, or"),
            ("192.0.2.0/1000", PrefixError::NoLength, "write an address, or"),
            ("192.0.2.0/33", PrefixError::TooLong(32), "use /32 at most"),
            ("192.0.2.0/999", PrefixError::TooLong(32), "use /32 at most"),
            ("2001:db8::/129", PrefixError::TooLong(128), "use /128 at most"),
            (
                "::ffff:192.0.2.7",
                PrefixError::Mapped("192.0.2.7/32".parse().unwrap()),
                "write the IPv4 address, 192.0.2.7",
            ),
            (
                "::ffff:192.0.2.7/120",
                PrefixError::Mapped("192.0.2.0/24".parse().unwrap()),
                "write it as IPv4, 192.0.2.0/24",
            ),
        ] {
            assert_eq!(read_prefix(text), Err(error), "{text:?}");
            assert!(error.remedy().starts_with(remedy), "{text:?}: {}", error.remedy());
        }
    }

    #[test]
    fn prefixes_of_more_addresses_than_eight_or_nineteen_bits_leave_are_too_short() {
        for (text, least) in [
            ("0.0.0.0/0", Some(8)),
            ("10.0.0.0/7", Some(8)),
            ("10.0.0.0/8", None),
            ("::/0", Some(19)),
            ("2000::/18", Some(19)),
            ("2000::/19", None),
        ] {
            let net = text.parse().unwrap();
            assert_eq!(Shortest::default().refuses(net), least, "{text}");
            assert_eq!(Shortest::NONE.refuses(net), None);
        }
    }
}
