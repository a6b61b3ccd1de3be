//! The file's sections and keys, their defaults and ranges: from a TOML tree to a [`Draft`]. What values must have to do with
//! each other is `check.rs`'s matter.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::address;
use crate::error::{Diagnostics, Located, Wrong, quoted};
use crate::model::{
    Balance, Congestion, Connect, ConnectionLog, Cookies, Hugepages, Idle, Level, Limits, Log, Mode, PortAddress,
    Promise, ProxyHeaderExtras, ProxyProtocol, Runtime, Timeouts,
};
use crate::read::{Entry, Section};

/// Every section and its keys; the first is the file itself. `docs/configuration.md` describes each, which a test sees to.
pub(crate) const SCHEMA: [(&str, &[&str]); 15] = [
    ("", &["runtime", "port", "route", "service", "filters", "cookies", "proxy_keys", "metrics", "log"]),
    ("runtime", RUNTIME),
    ("port", PORT),
    ("route", ROUTE),
    ("service", SERVICE),
    ("service.proxy_header", PROXY_HEADER),
    ("service.timeouts", TIMEOUTS),
    ("service.limits", LIMITS),
    ("service.promise", PROMISE),
    ("service.upstream", UPSTREAM),
    ("filters", FILTERS),
    ("cookies", COOKIES),
    ("proxy_keys", PROXY_KEYS),
    ("metrics", METRICS),
    ("log", LOG),
];

const RUNTIME: &[&str] =
    &["cores", "control_core", "hugepages", "dpdk_args", "drain", "mbufs", "rx_descriptors", "tx_descriptors", "idle"];
const PORT: &[&str] = &["name", "device", "args", "addresses", "gateway", "vlan", "mtu", "promiscuous"];
const ROUTE: &[&str] = &["to", "via", "port"];
const SERVICE: &[&str] = &[
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
    "limits",
    "promise",
    "upstream",
];
const PROXY_HEADER: &[&str] = &["unique_id", "crc32c", "authority", "evidence", "authenticate"];
const TIMEOUTS: &[&str] = &["connect", "client_idle", "upstream_idle", "half_closed", "first_data", "unacknowledged"];
const LIMITS: &[&str] = &["connections", "connections_per_source"];
const PROMISE: &[&str] = &["mss", "window_scale", "sack", "timestamps", "probe"];
const UPSTREAM: &[&str] = &["address", "weight"];
const FILTERS: &[&str] = &["deny", "allow", "icmp_rate"];
const COOKIES: &[&str] = &["seed_file", "epoch"];
const PROXY_KEYS: &[&str] = &["file"];
const METRICS: &[&str] = &["listen"];
const LOG: &[&str] = &["level", "connections"];

/// Highest CPU id of Linux's `cpu_set_t`.
const MAX_CORE: u16 = 1023;

/// DPDK's lcores (128), less the control core's.
const MAX_WORKERS: usize = 127;

/// DPDK's `RTE_MAX_ETHPORTS`.
const MAX_PORTS: usize = 32;

/// More than an operator writes by hand; the ids are 16 bits wide.
const MAX_SERVICES: usize = 4_096;

/// A week: no timer needs to reach further.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3_600);

const MILLISECOND: Duration = Duration::from_millis(1);

/// A file's content, each value sound by itself.
pub(crate) struct Draft {
    pub(crate) runtime: Runtime,
    pub(crate) ports: Vec<PortDraft>,
    /// Every `[[port]]` was read without a mistake, so absence among `ports` means something.
    pub(crate) ports_sound: bool,
    pub(crate) routes: Vec<RouteDraft>,
    /// The same of `[[route]]`.
    pub(crate) routes_sound: bool,
    pub(crate) services: Vec<ServiceDraft>,
    pub(crate) deny: Vec<Located<IpNet>>,
    pub(crate) allow: Vec<Located<IpNet>>,
    pub(crate) icmp_rate: u32,
    pub(crate) cookies: Cookies,
    /// `[proxy_keys]` stands in the file, whether it is right or not.
    pub(crate) has_proxy_keys: bool,
    pub(crate) proxy_keys: Option<PathBuf>,
    pub(crate) metrics: Option<Located<SocketAddr>>,
    pub(crate) log: Log,
}

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
}

/// One `[[route]]`.
pub(crate) struct RouteDraft {
    pub(crate) to: Located<IpNet>,
    pub(crate) via: Located<IpAddr>,
    pub(crate) port: Located<String>,
}

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
    pub(crate) connections: u32,
    pub(crate) connections_per_source: Option<Located<u32>>,
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

/// Reads the whole file. An item whose indispensable keys are wrong is left out; its mistakes are in `diag`.
pub(crate) fn draft(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Draft {
    root.deny_unknown(SCHEMA[0].1, diag);
    let runtime = runtime(root, diag);

    let before = diag.count();
    let sections = root.tables("port", "port", diag);
    if sections.is_empty() && diag.count() == before {
        diag.report(0, "port", "is missing", "add a [[port]] with name, device and addresses");
    }
    if let Some(excess) = sections.get(MAX_PORTS) {
        diag.report(excess.at, "port", format!("there are more than {MAX_PORTS} ports"), "remove some");
    }
    let ports = sections.iter().filter_map(|section| port(section, diag)).collect();
    let ports_sound = diag.count() == before;

    let before = diag.count();
    let routes = root.tables("route", "route", diag).iter().filter_map(|section| route(section, diag)).collect();
    let routes_sound = diag.count() == before;

    let before = diag.count();
    let sections = root.tables("service", "service", diag);
    if sections.is_empty() && diag.count() == before {
        diag.report(0, "service", "is missing", "add a [[service]] with name, listen and a [[service.upstream]]");
    }
    if let Some(excess) = sections.get(MAX_SERVICES) {
        diag.report(excess.at, "service", format!("there are more than {MAX_SERVICES} services"), "remove some");
    }
    let services = sections.iter().filter_map(|section| service(section, diag)).collect();

    let filters = optional(root, "filters", FILTERS, diag);
    let prefixes = |key: &str, diag: &mut Diagnostics<'_>| -> Vec<Located<IpNet>> {
        let items = filters.as_ref().map(|f| f.list(key, diag)).unwrap_or_default();
        items.iter().filter_map(|item| item.parsed(diag, address::prefix)).collect()
    };
    let deny = prefixes("deny", diag);
    let allow = prefixes("allow", diag);
    let icmp_rate = filters.as_ref().and_then(|f| f.integer("icmp_rate", 0..=1_000_000_u32, diag));

    Draft {
        runtime,
        ports,
        ports_sound,
        routes,
        routes_sound,
        services,
        deny,
        allow,
        icmp_rate: icmp_rate.map_or(crate::model::Filters::default().icmp_rate, |n| n.value),
        cookies: cookies(root, diag),
        has_proxy_keys: root.get("proxy_keys").is_some(),
        proxy_keys: proxy_keys(root, diag),
        metrics: metrics(root, diag),
        log: log(root, diag),
    }
}

/// The table `[key]`, its keys checked.
fn optional<'t>(parent: &Section<'t>, key: &str, known: &[&str], diag: &mut Diagnostics<'_>) -> Option<Section<'t>> {
    let section = parent.table(key, diag)?;
    section.deny_unknown(known, diag);
    Some(section)
}

fn runtime(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Runtime {
    let default = Runtime::default();
    let Some(section) = optional(root, "runtime", RUNTIME, diag) else { return default };
    let hugepages = section.choice(
        "hugepages",
        &[("auto", Hugepages::Auto), ("require", Hugepages::Require), ("off", Hugepages::Off)],
        diag,
    );
    let hugepages = hugepages.unwrap_or(default.hugepages);
    Runtime {
        cores: cores(&section, diag).unwrap_or(default.cores),
        control_core: section.integer("control_core", 0..=MAX_CORE, diag).map_or(default.control_core, |c| c.value),
        hugepages,
        dpdk_args: section
            .parsed("dpdk_args", diag, |text| dpdk_args(text, hugepages))
            .map_or(default.dpdk_args, |args| args.value),
        drain: section.duration("drain", Duration::ZERO..=Duration::from_secs(3_600), diag).unwrap_or(default.drain),
        mbufs: section.integer("mbufs", 4_095..=4_194_303, diag).map_or(default.mbufs, |n| n.value),
        rx_descriptors: section
            .integer("rx_descriptors", 64..=32_768_u16, diag)
            .map_or(default.rx_descriptors, |n| n.value),
        tx_descriptors: section
            .integer("tx_descriptors", 64..=32_768_u16, diag)
            .map_or(default.tx_descriptors, |n| n.value),
        idle: section.choice("idle", &[("spin", Idle::Spin), ("sleep", Idle::Sleep)], diag).unwrap_or(default.idle),
    }
}

fn cores(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<Vec<u16>> {
    let entry = section.get("cores")?;
    let before = diag.count();
    let items = entry.items(diag);
    let list = entry.located(());
    if items.is_empty() && diag.count() == before {
        diag.wrong(&list, "names no CPU", "write at least one, as in cores = [1]");
    }
    if items.len() > MAX_WORKERS {
        diag.wrong(&list, format!("names {} CPUs", items.len()), format!("write {MAX_WORKERS} at most"));
    }
    let mut cores: Vec<u16> = Vec::new();
    for item in &items {
        let Some(core) = item.integer(0..=MAX_CORE, diag) else { continue };
        if cores.contains(&core.value) {
            diag.wrong(&core, format!("CPU {} stands here twice", core.value), "name each CPU once: one worker each");
        } else {
            cores.push(core.value);
        }
    }
    Some(cores)
}

fn dpdk_args(text: &str, hugepages: Hugepages) -> Result<String, Wrong> {
    if text.contains(['"', '\'', '\\']) {
        return Err(Wrong::new(
            "holds quotes or backslashes, which nobody interprets",
            "write the arguments bare; they are split at white space",
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Wrong::new("holds control characters", "write the arguments on one line, with spaces between"));
    }
    if hugepages != Hugepages::Off && text.split_whitespace().any(|arg| arg == "--no-huge") {
        return Err(Wrong::new("contradicts runtime.hugepages", "take --no-huge out and write hugepages = \"off\""));
    }
    Ok(text.to_owned())
}

/// A name for logs and metrics.
fn name(section: &Section<'_>, example: &str, diag: &mut Diagnostics<'_>) -> Option<Located<String>> {
    section.require("name", example, diag)?.parsed(diag, |text| {
        let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match text {
            "" => Err(Wrong::new("is empty", format!("write a name, as in {example}"))),
            _ if text.len() > 63 => Err(Wrong::new("is too long", "write 63 characters at most")),
            _ if !text.chars().all(sound) => Err(Wrong::new(
                "is no name for logs and metrics",
                "write letters, digits, \"-\", \"_\" and \".\" only, without spaces",
            )),
            _ => Ok(text.to_owned()),
        }
    })
}

fn port(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<PortDraft> {
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
    Some(PortDraft { name: name?, device: device?, args, addresses, gateways, vlan, mtu, promiscuous })
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

fn route(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<RouteDraft> {
    section.deny_unknown(ROUTE, diag);
    let to = section.require("to", "\"10.0.0.0/8\"", diag).and_then(|entry| entry.parsed(diag, address::prefix));
    let via = section.require("via", "\"10.0.0.1\"", diag).and_then(|entry| entry.parsed(diag, address::host));
    let port = section.require("port", "\"lan\"", diag).and_then(|entry| entry.text(diag));
    Some(RouteDraft { to: to?, via: via?, port: port.map(|p| p.with(p.value.to_owned()))? })
}

fn service(section: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<ServiceDraft> {
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
    let accept_proxy = accept_proxy.iter().filter_map(|item| item.parsed(diag, address::prefix)).collect();
    let limits = optional(section, "limits", LIMITS, diag);
    let connections = limits.as_ref().and_then(|l| l.integer("connections", 1..=16_000_000_u32, diag));
    let connections_per_source =
        limits.as_ref().and_then(|l| l.integer("connections_per_source", 0..=16_000_000_u32, diag));

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
        connections: connections.map_or(Limits::default().connections, |n| n.value),
        connections_per_source,
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
    Timeouts {
        connect: required("connect", default.connect),
        client_idle: required("client_idle", default.client_idle),
        upstream_idle: required("upstream_idle", default.upstream_idle),
        half_closed: required("half_closed", default.half_closed),
        unacknowledged: required("unacknowledged", default.unacknowledged),
        first_data: section.duration("first_data", Duration::ZERO..=LONGEST, diag).unwrap_or(default.first_data),
    }
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

fn cookies(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Cookies {
    let default = Cookies::default();
    let Some(section) = optional(root, "cookies", COOKIES, diag) else { return default };
    Cookies {
        seed_file: section.parsed("seed_file", diag, absolute_path).map(|path| path.value),
        epoch: section
            .duration("epoch", Duration::from_secs(4)..=Duration::from_secs(3_600), diag)
            .unwrap_or(default.epoch),
    }
}

fn proxy_keys(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<PathBuf> {
    let section = optional(root, "proxy_keys", PROXY_KEYS, diag)?;
    let file = section.require("file", "\"/etc/sluice/proxy.keys\"", diag)?;
    file.parsed(diag, absolute_path).map(|path| path.value)
}

/// A path that means the same file wherever the appliance is started.
fn absolute_path(text: &str) -> Result<PathBuf, Wrong> {
    if text.is_empty() {
        return Err(Wrong::new("is empty", "write a path that begins with \"/\""));
    }
    if !text.starts_with('/') {
        return Err(Wrong::new("is not an absolute path", "write a path that begins with \"/\""));
    }
    if text.ends_with('/') {
        return Err(Wrong::new("is a directory's path", "write the path of a file"));
    }
    if text.chars().any(char::is_control) {
        return Err(Wrong::new("holds control characters", "write a path without them"));
    }
    Ok(PathBuf::from(text))
}

fn metrics(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<Located<SocketAddr>> {
    let section = optional(root, "metrics", METRICS, diag)?;
    let default =
        Located { value: SocketAddr::from((Ipv4Addr::LOCALHOST, 9150)), at: section.at, key: section.path("listen") };
    if section.get("listen").is_none() {
        return Some(default);
    }
    section.parsed("listen", diag, address::socket)
}

fn log(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Log {
    let default = Log::default();
    let Some(section) = optional(root, "log", LOG, diag) else { return default };
    let levels = [
        ("error", Level::Error),
        ("warn", Level::Warn),
        ("info", Level::Info),
        ("debug", Level::Debug),
        ("trace", Level::Trace),
    ];
    let connections = section.parsed("connections", diag, |text| match text {
        "stdout" => Ok(ConnectionLog::Stdout),
        "off" => Ok(ConnectionLog::Off),
        path => absolute_path(path).map(ConnectionLog::File).map_err(|wrong| {
            Wrong::new(wrong.found, "write \"stdout\", \"off\" or a file's path that begins with \"/\"")
        }),
    });
    Log {
        level: section.choice("level", &levels, diag).unwrap_or(default.level),
        connections: connections.map_or(default.connections, |c| c.value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Config, Filters, Port, Service, Upstream};
    use crate::parse;

    const DOCUMENT: &str = include_str!("../../docs/configuration.md");

    const MINIMAL: &str = r#"
[[port]]
name = "wan"
device = "0000:03:00.0"
addresses = ["198.51.100.2/24"]

[[service]]
name = "web"
listen = ["198.51.100.10:443"]

[[service.upstream]]
address = "198.51.100.50:443"
"#;

    fn spliced(text: &str) -> String {
        text.replace("[[service]]\n", "[[service]]\nmode = \"splice\"\n")
    }

    /// The documented keys of a section with their defaults, from the table below its heading.
    fn documented(section: &str) -> Vec<(String, String)> {
        let headings = [format!("\n## [{section}]\n"), format!("\n## [[{section}]]\n")];
        let (_, after) = headings.iter().find_map(|h| DOCUMENT.split_once(h.as_str())).expect(section);
        let body = after.split("\n## ").next().unwrap();
        let rows = body.lines().filter_map(|line| line.strip_prefix("| `"));
        rows.map(|row| {
            let cells: Vec<&str> = row.split(" | ").collect();
            (cells[0].trim_end_matches('`').to_owned(), cells[2].to_owned())
        })
        .collect()
    }

    #[test]
    fn document_and_schema_name_the_same_keys() {
        for (section, keys) in &SCHEMA[1..] {
            let documented: Vec<String> = documented(section).into_iter().map(|(key, _)| key).collect();
            assert_eq!(documented, *keys, "docs/configuration.md, {section}");
        }
    }

    #[test]
    fn writing_a_documented_default_changes_nothing() {
        for (section, _) in &SCHEMA[1..] {
            for (key, default) in documented(section) {
                let Some(default) = default.strip_prefix('`').and_then(|d| d.strip_suffix('`')) else { continue };
                let (header, reference) = match *section {
                    "port" => ("[[port]]\n", MINIMAL.to_owned()),
                    "service" => ("[[service]]\n", MINIMAL.to_owned()),
                    "service.upstream" => ("[[service.upstream]]\n", MINIMAL.to_owned()),
                    "service.promise" => ("", format!("{}[service.promise]\n", spliced(MINIMAL))),
                    other => ("", format!("{MINIMAL}[{other}]\n")),
                };
                let line = format!("{key} = {default}\n");
                let written = match header {
                    "" => format!("{reference}{line}"),
                    header => reference.replace(header, &format!("{header}{line}")),
                };
                let written = parse("written", &written).unwrap_or_else(|e| panic!("{e}\n{written}"));
                assert_eq!(written, parse("reference", &reference).unwrap(), "{section}.{key}");
            }
        }
    }

    #[test]
    fn minimal_file_has_every_default() {
        let secs = Duration::from_secs;
        let expected = Config {
            runtime: Runtime {
                cores: vec![1],
                control_core: 0,
                hugepages: Hugepages::Auto,
                dpdk_args: String::new(),
                drain: secs(5),
                mbufs: 65_535,
                rx_descriptors: 1_024,
                tx_descriptors: 1_024,
                idle: Idle::Spin,
            },
            ports: vec![Port {
                name: "wan".into(),
                device: "0000:03:00.0".into(),
                args: String::new(),
                addresses: vec![PortAddress {
                    address: "198.51.100.2".parse().unwrap(),
                    network: "198.51.100.0/24".parse().unwrap(),
                }],
                gateways: vec![],
                vlan: 0,
                mtu: 1500,
                promiscuous: false,
            }],
            routes: vec![],
            services: vec![Service {
                name: "web".into(),
                listen: vec!["198.51.100.10:443".parse().unwrap()],
                mode: Mode::Terminate,
                proxy_protocol: ProxyProtocol::Off,
                proxy_header: ProxyHeaderExtras::default(),
                accept_proxy: vec![],
                connect: Connect::OnAccept,
                balance: Balance::RoundRobin,
                source: vec![],
                congestion: Congestion::Reno,
                upstream_congestion: Congestion::None,
                buffer: 65_535,
                timeouts: Timeouts {
                    connect: secs(5),
                    client_idle: secs(300),
                    upstream_idle: secs(300),
                    half_closed: secs(30),
                    first_data: Duration::ZERO,
                    unacknowledged: secs(60),
                },
                limits: Limits { connections: 100_000, connections_per_source: 0 },
                promise: Promise { mss: None, window_scale: None, sack: None, timestamps: None, probe: secs(10) },
                upstreams: vec![Upstream { address: "198.51.100.50:443".parse().unwrap(), weight: 1 }],
            }],
            sets: vec![],
            rules: vec![],
            filters: Filters { deny: vec![], allow: vec![], icmp_rate: 1_000, ..Filters::default() },
            bans: None,
            sample: None,
            cookies: Cookies { seed_file: None, epoch: secs(64) },
            proxy_keys: None,
            metrics: None,
            log: Log { level: Level::Info, connections: ConnectionLog::Stdout },
        };
        assert_eq!(parse("minimal.toml", MINIMAL), Ok(expected));
        let config = parse("minimal.toml", &format!("{MINIMAL}[metrics]\n")).unwrap();
        assert_eq!(config.metrics.unwrap().listen, "127.0.0.1:9150".parse().unwrap());
    }

    #[test]
    fn gateway_is_a_text_or_a_list() {
        for gateway in [r#""198.51.100.1""#, r#"["198.51.100.1"]"#] {
            let text = MINIMAL.replace("[[service]]", &format!("gateway = {gateway}\n[[service]]"));
            assert_eq!(parse("f", &text).unwrap().ports[0].gateways, ["198.51.100.1".parse::<IpAddr>().unwrap()]);
        }
    }

    #[test]
    fn first_data_is_switched_off_by_any_zero() {
        for zero in [r#""0""#, r#""0s""#, "0", r#""0ms""#] {
            let text = format!("{MINIMAL}[service.timeouts]\nfirst_data = {zero}\n");
            assert_eq!(parse("f", &text).unwrap().services[0].timeouts.first_data, Duration::ZERO);
            let text = format!("{MINIMAL}[service.timeouts]\nhalf_closed = {zero}\n");
            assert!(parse("f", &text).is_err());
        }
    }

    #[test]
    fn devices_are_pci_addresses_or_virtual_devices() {
        assert_eq!(device("0000:AF:1f.7"), Ok("0000:af:1f.7".into()), "as DPDK spells it");
        assert_eq!(device("net_virtio_user0"), Ok("net_virtio_user0".into()));
        for text in ["", "net_", "0000:03:20.0", "0000:03:00.8", "0000:03:00", "net_pcap 0", "net_Tap0", "mlx5_0", "é"]
        {
            assert!(device(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dpdk_arguments_may_map_cores() {
        assert!(dpdk_args("--lcores 0@1,1@1 --log-level=8", Hugepages::Auto).is_ok());
        assert!(dpdk_args("--no-huge", Hugepages::Off).is_ok());
        assert!(dpdk_args("--no-huge", Hugepages::Auto).is_err());
        assert!(dpdk_args("a\0b", Hugepages::Off).is_err());
    }

    #[test]
    fn a_link_local_gateway_is_on_link_with_any_ipv6_address() {
        let six = MINIMAL.replace("/24\"]", "/24\", \"2001:db8::2/64\"]");
        let with = |text: &str| text.replace("[[service]]", "gateway = \"fe80::1\"\n[[service]]");
        assert!(parse("f", &with(&six)).is_ok());
        assert!(parse("f", &with(MINIMAL)).is_err());
    }

    #[test]
    fn a_routed_listen_address_may_be_a_source() {
        let text = MINIMAL.replace("198.51.100.10:443\"]", "192.0.2.10:443\"]\nsource = [\"192.0.2.10\"]");
        assert!(parse("f", &text).is_ok());
        assert!(parse("f", &text.replace("source = [\"192.0.2.10\"]", "source = [\"192.0.2.11\"]")).is_err());
    }

    /// A service that asks for every extension.
    const EXTRAS: &str = r#"
[service.proxy_header]
unique_id = true
crc32c = true
authority = "www.example.com"
evidence = true
authenticate = true
[proxy_keys]
file = "/etc/sluice/proxy.keys"
"#;

    #[test]
    fn header_extensions_are_for_version_2() {
        let v2 = MINIMAL.replace("[[service]]", "[[service]]\nproxy_protocol = \"v2\"");
        let config = parse("f", &format!("{v2}{EXTRAS}")).unwrap();
        let extras = ProxyHeaderExtras {
            unique_id: true,
            crc32c: true,
            authority: Some("www.example.com".into()),
            evidence: true,
            authenticate: true,
        };
        assert_eq!((&config.services[0].proxy_header, extras.is_empty()), (&extras, false));
        assert_eq!(config.proxy_keys, Some("/etc/sluice/proxy.keys".into()));
        for version in ["off", "v1"] {
            let errors = parse("f", &format!("{v2}{EXTRAS}").replace("\"v2\"", &format!("{version:?}"))).unwrap_err();
            assert_eq!(errors.mistakes().len(), 5, "{errors}");
        }
        let off = EXTRAS.replace("true", "false").replace("authority", "# authority");
        assert!(parse("f", &format!("{MINIMAL}{off}")).unwrap().services[0].proxy_header.is_empty());
    }

    #[test]
    fn a_wrong_key_file_is_one_mistake() {
        let v2 = MINIMAL.replace("[[service]]", "[[service]]\nproxy_protocol = \"v2\"");
        let errors = parse("f", &format!("{v2}{EXTRAS}").replace("/etc", "etc")).unwrap_err();
        assert_eq!(errors.mistakes().len(), 1, "{errors}");
    }

    #[test]
    fn an_authority_is_a_name_without_spaces() {
        for text in ["a", "www.example.com", "münchen.example", &"a".repeat(255)] {
            assert_eq!(authority(text), Ok(text.to_owned()));
        }
        for text in ["", " a", "a b", "a\u{a0}b", "a\u{7f}", "a\0", &"a".repeat(256), &"é".repeat(128)] {
            assert!(authority(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn proxies_in_front_are_prefixes() {
        let text = MINIMAL.replace("[[service]]", "[[service]]\naccept_proxy = [\"10.0.0.0/8\", \"2001:db8::7\"]");
        let config = parse("f", &text).unwrap();
        let expected: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::7/128".parse().unwrap()];
        assert_eq!(config.services[0].accept_proxy, expected);
    }

    #[test]
    fn consequences_of_a_mistake_are_not_reported() {
        // The port's address is wrong, so nothing is on-link; only the address is to blame.
        let text = MINIMAL.replace("198.51.100.2/24", "198.51.100.2/33");
        let errors = parse("f", &text).unwrap_err();
        assert_eq!(errors.mistakes().len(), 1, "{errors}");
    }
}
