//! `[[port]]` and `[[route]]`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::name;
use crate::address;
use crate::error::{Diagnostics, Located, Wrong, quoted};
use crate::model::{PortAddress, SourceCheck};
use crate::read::{Entry, Section};

pub(super) const PORT: &[&str] =
    &["name", "device", "args", "addresses", "gateway", "vlan", "mtu", "promiscuous", "source_check"];
pub(super) const ROUTE: &[&str] = &["to", "via", "port"];

/// One `[[port]]`.
pub(crate) struct PortDraft {
    pub(crate) name: Located<String>,
    pub(crate) device: Located<String>,
    pub(crate) args: Option<Located<String>>,
    pub(crate) addresses: Vec<Located<PortAddress>>,
    pub(crate) gateways: Vec<Located<IpAddr>>,
    pub(crate) vlan: u16,
    pub(crate) mtu: Option<Located<u16>>,
    pub(crate) promiscuous: bool,
    pub(crate) source_check: SourceCheck,
}

/// One `[[route]]`.
pub(crate) struct RouteDraft {
    pub(crate) to: Located<IpNet>,
    pub(crate) via: Located<IpAddr>,
    pub(crate) port: Located<String>,
}

pub(super) fn port(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<PortDraft> {
    section.deny_unknown(PORT, diag);
    let name = name(section, "\"wan\"", diag);
    let device = section.require("device", "\"0000:03:00.0\"", diag).and_then(|entry| entry.parsed(diag, device));
    let args = section.parsed("args", diag, |text| {
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(Wrong::new("holds white space", "write KEY=VALUE pairs with commas between, without spaces"));
        }
        Ok(text.to_owned())
    });
    let before = diag.count();
    let addresses: Vec<_> = match section.require("addresses", "[\"198.51.100.2/24\"]", diag) {
        Some(entry) => {
            let items = entry.items(diag);
            if items.is_empty() && diag.count() == before {
                let found = "is empty: the port could neither answer nor ask for addresses";
                diag.wrong(&entry.located(()), found, "write at least one, as in [\"198.51.100.2/24\"]");
            }
            items.iter().filter_map(|item| item.parsed(diag, address::port_address)).collect()
        }
        None => Vec::new(),
    };
    let gateways: Vec<Entry<'_>> = section.get("gateway").map(|entry| entry.items_or_self(diag)).unwrap_or_default();
    let gateways = gateways.iter().filter_map(|item| item.parsed(diag, address::host)).collect();
    let vlan = section.integer("vlan", 0..=4_094_u16, diag).map_or(0, |n| n.value);
    let mtu = section.integer("mtu", 576..=9_000_u16, diag);
    let promiscuous = section.boolean("promiscuous", diag).unwrap_or(false);
    let checks = [("off", SourceCheck::Off), ("loose", SourceCheck::Loose), ("strict", SourceCheck::Strict)];
    let source_check = section.choice("source_check", &checks, diag).unwrap_or_default();
    Some(PortDraft { name: name?, device: device?, args, addresses, gateways, vlan, mtu, promiscuous, source_check })
}

/// A PCI address in DPDK's spelling, or the name of a virtual device.
fn device(text: &str) -> Result<String, Wrong> {
    const FORMS: &str = "write a PCI address as in \"0000:03:00.0\" or a DPDK virtual device as in \"net_af_packet0\"";
    if let Some((device, args)) = text.split_once(',') {
        let remedy = format!("write device = {} and args = {}", quoted(device), quoted(args));
        return Err(Wrong::new("holds arguments", remedy));
    }
    if is_pci(text) {
        // DPDK names devices in lower case.
        return Ok(text.to_ascii_lowercase());
    }
    if is_pci(&format!("0000:{text}")) {
        return Err(Wrong::new("lacks the PCI domain", format!("write \"0000:{text}\"")));
    }
    let name_like = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    if text.strip_prefix("net_").is_some_and(|rest| !rest.is_empty() && rest.chars().all(name_like)) && text.len() < 64
    {
        return Ok(text.to_owned());
    }
    if !text.is_empty() && text.len() < 16 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
        return Err(Wrong::new(
            "looks like a kernel interface, which is not a DPDK device",
            format!("write its PCI address (ethtool -i {text}), or \"net_af_packet0\" and args = \"iface={text}\""),
        ));
    }
    Err(Wrong::new("is not a DPDK device", FORMS))
}

/// `DDDD:BB:dd.f`
fn is_pci(text: &str) -> bool {
    let hex = |s: &str, digits: std::ops::RangeInclusive<usize>| {
        digits.contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let parts: Vec<&str> = text.split(':').collect();
    let [domain, bus, rest] = parts.as_slice() else { return false };
    let Some((device, function)) = rest.split_once('.') else { return false };
    hex(domain, 4..=8)
        && hex(bus, 2..=2)
        && hex(device, 2..=2)
        && u8::from_str_radix(device, 16).is_ok_and(|d| d < 32)
        && matches!(function.as_bytes(), [b'0'..=b'7'])
}

impl PortDraft {
    /// Whether the device is a PCI function, not a virtual device.
    pub(crate) fn is_pci(&self) -> bool {
        is_pci(&self.device.value)
    }
}

pub(super) fn route(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<RouteDraft> {
    section.deny_unknown(ROUTE, diag);
    let to = section.require("to", "\"10.0.0.0/8\"", diag).and_then(|entry| entry.prefix(diag));
    let via = section.require("via", "\"10.0.0.1\"", diag).and_then(|entry| entry.parsed(diag, address::host));
    let port = section.require("port", "\"lan\"", diag).and_then(|entry| entry.text(diag));
    Some(RouteDraft { to: to?, via: via?, port: port.map(|p| p.with(p.value.to_owned()))? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_pci_addresses_or_virtual_devices() {
        assert_eq!(device("0000:AF:1f.7"), Ok("0000:af:1f.7".into()), "as DPDK spells it");
        assert_eq!(device("net_virtio_user0"), Ok("net_virtio_user0".into()));
        for text in ["", "net_", "0000:03:20.0", "0000:03:00.8", "0000:03:00", "net_pcap 0", "net_Tap0", "mlx5_0", "é"]
        {
            assert!(device(text).is_err(), "{text}");
        }
    }
}
