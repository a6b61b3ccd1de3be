//! Addresses, sockets and prefixes as an operator writes them, and which of them a host can have.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::error::{Wrong, quoted};
use crate::model::PortAddress;

/// An address without port or prefix.
pub(crate) fn host(text: &str) -> Result<IpAddr, Wrong> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        unmapped(ip)?;
        return Ok(ip);
    }
    Err(match text.split_once('/') {
        Some((ip, _)) if ip.parse::<IpAddr>().is_ok() => {
            Wrong::new("has a prefix length, but one address is meant", format!("write {}", quoted(ip)))
        }
        _ => Wrong::new("is not an IP address", r#"write one as in "198.51.100.1" or "2001:db8::1""#),
    })
}

/// An address and a port other than 0.
pub(crate) fn socket(text: &str) -> Result<SocketAddr, Wrong> {
    let Ok(socket) = text.parse::<SocketAddr>() else { return Err(not_a_socket(text)) };
    unmapped(socket.ip())?;
    if let SocketAddr::V6(v6) = socket
        && v6.scope_id() != 0
    {
        return Err(Wrong::new("has a zone", "write the address without %zone"));
    }
    if socket.port() == 0 {
        return Err(Wrong::new("has port 0", "write a port from 1 to 65535"));
    }
    Ok(socket)
}

fn not_a_socket(text: &str) -> Wrong {
    const EXAMPLE: &str = r#"write an address and a port, as in "198.51.100.10:443" or "[2001:db8::10]:443""#;
    if let Ok(ip) = text.parse::<IpAddr>() {
        return match ip {
            IpAddr::V4(_) => Wrong::new("has no port", format!(r#"write it as in "{ip}:443""#)),
            IpAddr::V6(_) => {
                // It may end like a port.
                let remedy = match text.rsplit_once(':') {
                    Some((host, port))
                        if host.parse::<IpAddr>().is_ok() && port.parse::<u16>().is_ok_and(|port| port > 0) =>
                    {
                        format!(
                            r#"write it as in "[{host}]:{port}" if {port} is the port, as in "[{ip}]:443" if it is not"#
                        )
                    }
                    _ => format!(r#"write it as in "[{ip}]:443""#),
                };
                Wrong::new("lacks a port, or brackets around the address", remedy)
            }
        };
    }
    let Some((host, port)) = text.rsplit_once(':') else { return Wrong::new("is not an address and a port", EXAMPLE) };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if bare.is_empty() || bare == "*" {
        return Wrong::new("names no address", "there is no wildcard; list the addresses the appliance answers for");
    }
    if bare.parse::<IpAddr>().is_ok() {
        return Wrong::new(
            format!("has the port {}, which is not a number from 1 to 65535", quoted(port)),
            "write a port from 1 to 65535",
        );
    }
    let like_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if bare.chars().all(like_a_name) && bare.chars().any(|c| c.is_ascii_alphabetic()) {
        return Wrong::new("is a host name", "names are not looked up; write the host's IP address and port");
    }
    Wrong::new("is not an address and a port", EXAMPLE)
}

/// An interface address: `198.51.100.2/24`.
pub(crate) fn port_address(text: &str) -> Result<PortAddress, Wrong> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let bits = if ip.is_ipv4() { 24 } else { 64 };
        return Err(Wrong::new("has no prefix length", format!(r#"write it with its link's, as in "{ip}/{bits}""#)));
    }
    let net: IpNet = text.parse().map_err(|_| {
        Wrong::new("is not an address with a prefix length", r#"write one as in "198.51.100.2/24" or "2001:db8::2/64""#)
    })?;
    unmapped(net.addr())?;
    unicast(net.addr())?;
    if net.prefix_len() == 0 {
        return Err(Wrong::new("says that every address is on-link", "write the link's own prefix length"));
    }
    let network = net.trunc();
    not_reserved_in(net.addr(), &network)?;
    Ok(PortAddress { address: net.addr(), network })
}

fn unmapped(ip: IpAddr) -> Result<(), Wrong> {
    match ip {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(Wrong::new("is an IPv4-mapped IPv6 address", format!("write the IPv4 address, {v4}"))),
            None => Ok(()),
        },
        IpAddr::V4(_) => Ok(()),
    }
}

/// Whether `ip` can be the address of a host beyond this machine and, for IPv6, beyond one link.
pub(crate) fn unicast(ip: IpAddr) -> Result<(), Wrong> {
    let class = match ip {
        _ if ip.is_unspecified() => "the unspecified address",
        _ if ip.is_loopback() => "a loopback address",
        _ if ip.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(v4) if v4.octets()[0] == 0 => "an address of \"this network\" (0.0.0.0/8)",
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => "a reserved address (240.0.0.0/4)",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        _ => return Ok(()),
    };
    Err(Wrong::new(format!("is {class}"), "write a unicast address that the network can reach"))
}

/// Whether `ip` is free for a host in `network`: not its network, broadcast or (RFC 4291 section 2.6.1) subnet-router address.
pub(crate) fn not_reserved_in(ip: IpAddr, network: &IpNet) -> Result<(), Wrong> {
    // RFC 3021 and RFC 6164: point-to-point prefixes have no reserved addresses.
    if network.max_prefix_len() - network.prefix_len() <= 1 || !network.contains(&ip) {
        return Ok(());
    }
    let class = match network {
        _ if ip == network.network() && ip.is_ipv4() => "network",
        _ if ip == network.network() => "subnet-router anycast",
        IpNet::V4(v4) if ip == v4.broadcast() => "broadcast",
        _ => return Ok(()),
    };
    Err(Wrong::new(format!("is the {class} address of {network}"), format!("write a host's address in {network}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_need_address_and_port() {
        assert_eq!(socket("198.51.100.10:443"), Ok("198.51.100.10:443".parse().unwrap()));
        assert_eq!(socket("[2001:db8::10]:443"), Ok("[2001:db8::10]:443".parse().unwrap()));
        for (text, fragment) in [
            ("198.51.100.10", "has no port"),
            ("2001:db8::10", "brackets"),
            ("198.51.100.10:0", "port 0"),
            ("198.51.100.10:70000", "\"70000\""),
            ("198.51.100.10:http", "\"http\""),
            (":443", "no address"),
            ("*:443", "no address"),
            ("example.com:443", "host name"),
            ("[::ffff:192.0.2.1]:443", "IPv4-mapped"),
            ("[2001:db8::1%3]:443", "zone"),
            ("", "not an address"),
            ("300.1.1.1:80", "not an address"),
        ] {
            let wrong = socket(text).expect_err(text);
            assert!(wrong.found.contains(fragment), "{text}: {wrong:?}");
        }
    }

    #[test]
    fn port_addresses_are_hosts_with_a_prefix() {
        let a = port_address("198.51.100.2/24").unwrap();
        assert_eq!((a.address.to_string(), a.network.to_string()), ("198.51.100.2".into(), "198.51.100.0/24".into()));
        for ok in ["192.0.2.0/31", "192.0.2.1/32", "2001:db8::/127", "2001:db8::1/128", "10.0.0.1/8"] {
            assert!(port_address(ok).is_ok(), "{ok}");
        }
        for (text, fragment) in [
            ("198.51.100.2", "no prefix length"),
            ("198.51.100.0/24", "network address"),
            ("198.51.100.255/24", "broadcast address"),
            ("2001:db8::/64", "anycast"),
            ("127.0.0.1/8", "loopback"),
            ("224.0.0.1/4", "multicast"),
            ("0.0.0.0/0", "unspecified"),
            ("0.1.2.3/8", "this network"),
            ("250.1.2.3/8", "reserved"),
            ("198.51.100.2/0", "every address"),
            ("fe80::1/64", "link-local"),
            ("::ffff:10.0.0.1/104", "mapped"),
            ("wan/24", "not an address"),
        ] {
            let wrong = port_address(text).expect_err(text);
            assert!(wrong.found.contains(fragment), "{text}: {wrong:?}");
        }
    }
}
