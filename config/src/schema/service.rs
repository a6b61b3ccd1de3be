//! `[[service]]` and what belongs to it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::{LONGEST, MILLISECOND, SECOND, name, optional};
use crate::address;
use crate::error::{Diagnostics, Located, Wrong};
use crate::model::{
    Balance, Congestion, Connect, KeepAlive, KeepAlives, Limits, Mode, Promise, ProxyHeaderExtras, ProxyProtocol,
    Timeouts,
};
use crate::read::Section;
use crate::units;

pub(super) const SERVICE: &[&str] = &[
    "name",
    "listen",
    "mode",
    "proxy_protocol",
    "accept_proxy",
    "connect",
    "balance",
    "source",
    "congestion",
    "upstream_congestion",
    "buffer",
    "proxy_header",
    "timeouts",
    "keepalive",
    "limits",
    "promise",
    "upstream",
];
pub(super) const PROXY_HEADER: &[&str] = &["unique_id", "crc32c", "authority", "evidence", "authenticate"];
pub(super) const TIMEOUTS: &[&str] =
    &["connect", "client_idle", "upstream_idle", "half_closed", "first_data", "unacknowledged"];
pub(super) const KEEPALIVE: &[&str] = &["client", "upstream"];
pub(super) const KEEPALIVE_SIDE: &[&str] = &["interval", "count"];
pub(super) const LIMITS: &[&str] = &["connections", "connections_per_source", "share"];
pub(super) const PROMISE: &[&str] = &["mss", "window_scale", "sack", "timestamps", "probe"];
pub(super) const UPSTREAM: &[&str] = &["address", "weight"];

/// One `[[service]]`.
pub(crate) struct ServiceDraft {
    pub(crate) name: Located<String>,
    pub(crate) listen: Vec<Located<SocketAddr>>,
    pub(crate) mode: Mode,
    pub(crate) proxy_protocol: ProxyProtocol,
    pub(crate) proxy_header: ProxyHeaderDraft,
    pub(crate) accept_proxy: Vec<Located<IpNet>>,
    pub(crate) connect: Connect,
    pub(crate) balance: Balance,
    pub(crate) source: Vec<Located<IpAddr>>,
    pub(crate) congestion: Congestion,
    pub(crate) upstream_congestion: Congestion,
    pub(crate) buffer: usize,
    pub(crate) timeouts: Timeouts,
    pub(crate) keepalive: KeepAlives,
    pub(crate) connections: u32,
    pub(crate) connections_per_source: Option<Located<u32>>,
    pub(crate) share: u8,
    pub(crate) promise: Promise,
    pub(crate) upstreams: Vec<UpstreamDraft>,
    /// Every `[[service.upstream]]` was read without a mistake.
    pub(crate) upstreams_sound: bool,
}

/// `[service.proxy_header]`.
#[derive(Default)]
pub(crate) struct ProxyHeaderDraft {
    pub(crate) extras: ProxyHeaderExtras,
    /// Where each key stands that asks for something.
    pub(crate) asked: Vec<Located<()>>,
    /// Where `authenticate = true` stands.
    pub(crate) authenticate: Option<Located<()>>,
}

/// One `[[service.upstream]]`.
pub(crate) struct UpstreamDraft {
    pub(crate) address: Located<SocketAddr>,
    pub(crate) weight: u16,
}

pub(super) fn service(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<ServiceDraft> {
    section.deny_unknown(SERVICE, diag);
    let name = name(section, "\"web\"", diag);
    let before = diag.count();
    let listen = match section.require("listen", "[\"198.51.100.10:443\"]", diag) {
        Some(entry) => {
            let items = entry.items(diag);
            if items.is_empty() && diag.count() == before {
                let found = "is empty: no client could connect";
                diag.wrong(&entry.located(()), found, "write at least one, as in [\"198.51.100.10:443\"]");
            }
            items.iter().filter_map(|item| item.parsed(diag, listen_socket)).collect()
        }
        None => Vec::new(),
    };
    let mode = section
        .choice("mode", &[("terminate", Mode::Terminate), ("splice", Mode::Splice)], diag)
        .unwrap_or(Mode::Terminate);
    let proxy = [("off", ProxyProtocol::Off), ("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)];
    let congestions = [("none", Congestion::None), ("reno", Congestion::Reno)];
    let source = section.list("source", diag);
    let source = source
        .iter()
        .filter_map(|item| {
            item.parsed(diag, |text| {
                let ip = address::host(text)?;
                address::unicast(ip)?;
                Ok(ip)
            })
        })
        .collect();
    let accept_proxy = section.list("accept_proxy", diag);
    let accept_proxy = accept_proxy.iter().filter_map(|item| item.prefix(diag)).collect();
    let limits = optional(section, "limits", LIMITS, diag);
    let connections = limits.as_ref().and_then(|l| l.integer("connections", 1..=16_000_000_u32, diag));
    let connections_per_source =
        limits.as_ref().and_then(|l| l.integer("connections_per_source", 0..=16_000_000_u32, diag));

    let share = limits.as_ref().and_then(|l| l.integer("share", 1..=100_u8, diag));

    let before = diag.count();
    let sections = section.tables("upstream", "service.upstream", diag);
    if sections.is_empty() && diag.count() == before {
        let remedy = "add a [[service.upstream]] with address = \"10.0.0.5:443\" below this service";
        diag.report(section.at, section.path("upstream"), "is missing", remedy);
    }
    let upstreams = sections.iter().filter_map(|section| upstream(section, diag)).collect();
    let upstreams_sound = diag.count() == before;

    Some(ServiceDraft {
        listen,
        mode,
        proxy_protocol: section.choice("proxy_protocol", &proxy, diag).unwrap_or(ProxyProtocol::Off),
        proxy_header: proxy_header(section, diag),
        accept_proxy,
        connect: section
            .choice("connect", &[("on-accept", Connect::OnAccept), ("on-data", Connect::OnData)], diag)
            .unwrap_or(Connect::OnAccept),
        balance: section
            .choice("balance", &[("round-robin", Balance::RoundRobin)], diag)
            .unwrap_or(Balance::RoundRobin),
        source,
        congestion: section.choice("congestion", &congestions, diag).unwrap_or(Congestion::Reno),
        upstream_congestion: section.choice("upstream_congestion", &congestions, diag).unwrap_or(Congestion::None),
        buffer: section
            .size("buffer", 4_096..=65_535, diag)
            .and_then(|octets| usize::try_from(octets).ok())
            .unwrap_or(65_535),
        timeouts: timeouts(section, diag),
        keepalive: keepalive(section, diag),
        connections: connections.map_or(Limits::of(mode).connections, |n| n.value),
        connections_per_source,
        share: share.map_or(Limits::default().share, |n| n.value),
        promise: promise(section, mode, diag),
        upstreams,
        upstreams_sound,
        name: name?,
    })
}

fn promise(service: &Section<'_>, mode: Mode, diag: &mut Diagnostics<'_>) -> Promise {
    let default = Promise::default();
    let Some(section) = optional(service, "promise", PROMISE, diag) else { return default };
    if mode == Mode::Terminate
        && PROMISE.iter().any(|key| section.get(key).is_some())
        && let Some(entry) = service.get("promise")
    {
        let found = "is for spliced services; a terminated one promises what the appliance itself can do";
        diag.wrong(&entry.located(()), found, "remove it, or write mode = \"splice\"");
    }
    Promise {
        mss: section.integer("mss", 536..=8_960_u16, diag).map(|n| n.value),
        window_scale: section.integer("window_scale", 0..=14_u8, diag).map(|n| n.value),
        sack: section.boolean("sack", diag),
        timestamps: section.boolean("timestamps", diag),
        probe: section.duration("probe", Duration::ZERO..=LONGEST, diag).unwrap_or(default.probe),
    }
}

/// A socket that clients outside can reach.
fn listen_socket(text: &str) -> Result<SocketAddr, Wrong> {
    let socket = address::socket(text)?;
    if socket.ip().is_unspecified() {
        return Err(Wrong::new(
            "is the unspecified address",
            "there is no wildcard; list the addresses the appliance answers for",
        ));
    }
    address::unicast(socket.ip())?;
    Ok(socket)
}

fn proxy_header(service: &Section<'_>, diag: &mut Diagnostics<'_>) -> ProxyHeaderDraft {
    let Some(section) = optional(service, "proxy_header", PROXY_HEADER, diag) else {
        return ProxyHeaderDraft::default();
    };
    let mut asked = Vec::new();
    let mut flag = |key: &str| {
        let entry = section.get(key).filter(|_| section.boolean(key, diag) == Some(true));
        asked.extend(entry.as_ref().map(|entry| entry.located(())));
        entry
    };
    let (unique_id, crc32c, evidence) = (flag("unique_id"), flag("crc32c"), flag("evidence"));
    let authenticate = flag("authenticate");
    let authority = section.parsed("authority", diag, authority);
    asked.extend(authority.as_ref().map(|authority| authority.with(())));
    ProxyHeaderDraft {
        extras: ProxyHeaderExtras {
            unique_id: unique_id.is_some(),
            crc32c: crc32c.is_some(),
            authority: authority.map(|authority| authority.value),
            evidence: evidence.is_some(),
            authenticate: authenticate.is_some(),
        },
        asked,
        authenticate: authenticate.map(|entry| entry.located(())),
    }
}

/// A host name, as TLS clients name theirs.
fn authority(text: &str) -> Result<String, Wrong> {
    const EXAMPLE: &str = "write a host name, as in \"www.example.com\"";
    match text {
        "" => Err(Wrong::new("is empty", EXAMPLE)),
        _ if text.len() > 255 => Err(Wrong::new("is too long", "write 255 octets at most")),
        _ if text.chars().any(|c| c.is_whitespace() || c.is_control()) => {
            Err(Wrong::new("holds white space or control characters", EXAMPLE))
        }
        _ => Ok(text.to_owned()),
    }
}

fn timeouts(service: &Section<'_>, diag: &mut Diagnostics<'_>) -> Timeouts {
    let default = Timeouts::default();
    let Some(section) = optional(service, "timeouts", TIMEOUTS, diag) else { return default };
    let mut required = |key: &str, default| section.duration(key, MILLISECOND..=LONGEST, diag).unwrap_or(default);
    let (connect, unacknowledged) =
        (required("connect", default.connect), required("unacknowledged", default.unacknowledged));
    let mut patience =
        |key: &str, default| section.duration_or_off(key, MILLISECOND..=LONGEST, diag).unwrap_or(default);
    let client_idle = patience("client_idle", default.client_idle);
    let upstream_idle = patience("upstream_idle", default.upstream_idle);
    // A slow answer to a client that has said all it had to say is as honest as one to a client that has not.
    let longer = client_idle.zip(upstream_idle).map(|(client, upstream)| client.max(upstream));
    Timeouts {
        connect,
        client_idle,
        upstream_idle,
        half_closed: patience("half_closed", longer),
        unacknowledged,
        first_data: section.duration("first_data", Duration::ZERO..=LONGEST, diag).unwrap_or(default.first_data),
    }
}

/// How long an end may be silent before it counts as gone.
const LONGEST_SILENCE: Duration = Duration::from_secs(30 * 86_400);

fn keepalive(service: &Section<'_>, diag: &mut Diagnostics<'_>) -> KeepAlives {
    let Some(section) = optional(service, "keepalive", KEEPALIVE, diag) else { return KeepAlives::default() };
    let mut side = |key: &str| {
        let side = optional(&section, key, KEEPALIVE_SIDE, diag)?;
        let entry = side.require("interval", "\"60s\"", diag)?;
        let interval = side.duration("interval", SECOND..=LONGEST, diag)?;
        let count = side.integer("count", 1..=100_u8, diag).map_or(4, |n| n.value);
        let all = interval.saturating_mul(u32::from(count) + 1);
        if all > LONGEST_SILENCE {
            let found = format!("times {count}, and once more, is {}", units::show_duration(all));
            diag.wrong(&entry.located(()), found, "write less: no end may be silent for more than 30 days");
            return None;
        }
        Some(KeepAlive { interval, count })
    };
    KeepAlives { client: side("client"), upstream: side("upstream") }
}

fn upstream(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<UpstreamDraft> {
    section.deny_unknown(UPSTREAM, diag);
    let address = section.require("address", "\"10.0.0.5:443\"", diag).and_then(|entry| {
        entry.parsed(diag, |text| {
            let socket = address::socket(text)?;
            address::unicast(socket.ip())?;
            Ok(socket)
        })
    });
    let weight = section.integer("weight", 1..=256_u16, diag).map_or(1, |n| n.value);
    Some(UpstreamDraft { address: address?, weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_a_name_without_spaces() {
        for text in ["a", "www.example.com", "münchen.example", &"a".repeat(255)] {
            assert_eq!(authority(text), Ok(text.to_owned()));
        }
        for text in ["", " a", "a b", "a\u{a0}b", "a\u{7f}", "a\0", &"a".repeat(256), &"é".repeat(128)] {
            assert!(authority(text).is_err(), "{text:?}");
        }
    }
}
