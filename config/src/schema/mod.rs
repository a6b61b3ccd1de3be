//! The file's sections and keys, their defaults and ranges: from a TOML tree to a [`Draft`]. What values must have to do with
//! each other is `check`'s matter.

mod conditions;
mod filters;
mod port;
mod rules;
mod service;

use std::cell::OnceCell;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::address;
use crate::error::{Diagnostics, Located, Wrong};
use crate::model::{ConnectionLog, Cookies, Hugepages, Idle, Level, Log, Peace, Runtime};
use crate::read::Section;

pub(crate) use conditions::{FLAGS, OPTIONS, show_hex};
pub(crate) use filters::{BansDraft, FiltersDraft, SampleDraft};
pub(crate) use port::{PortDraft, RouteDraft};
pub(crate) use rules::{RuleDraft, SetDraft, SourceDraft};
pub(crate) use service::ServiceDraft;

/// Every section and its keys; the first is the file itself. `docs/configuration.md` describes each, which a test sees to.
pub(crate) const SCHEMA: [(&str, &[&str]); 26] = [
    ("", FILE),
    ("runtime", RUNTIME),
    ("port", port::PORT),
    ("route", port::ROUTE),
    ("service", service::SERVICE),
    ("service.proxy_header", service::PROXY_HEADER),
    ("service.timeouts", service::TIMEOUTS),
    ("service.keepalive", service::KEEPALIVE),
    ("service.keepalive.client", service::KEEPALIVE_SIDE),
    ("service.limits", service::LIMITS),
    ("service.promise", service::PROMISE),
    ("service.upstream", service::UPSTREAM),
    ("set", rules::SET),
    ("rule", rules::RULE),
    ("rule.payload", conditions::PAYLOAD),
    ("filters", filters::FILTERS),
    ("filters.per_address", filters::SOURCE_LIMITS),
    ("filters.per_subnet", filters::SOURCE_LIMITS),
    ("filters.per_site", filters::SOURCE_LIMITS),
    ("bans", filters::BANS),
    ("sample", filters::SAMPLE),
    ("cookies", COOKIES),
    ("peace", filters::PEACE),
    ("proxy_keys", PROXY_KEYS),
    ("metrics", METRICS),
    ("log", LOG),
];

const FILE: &[&str] = &[
    "runtime",
    "port",
    "route",
    "service",
    "set",
    "rule",
    "filters",
    "bans",
    "sample",
    "cookies",
    "peace",
    "proxy_keys",
    "metrics",
    "log",
];
const RUNTIME: &[&str] = &[
    "cores",
    "control_core",
    "hugepages",
    "dpdk_args",
    "drain",
    "mbufs",
    "rx_descriptors",
    "tx_descriptors",
    "idle",
    "state",
];
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
const SECOND: Duration = Duration::from_secs(1);

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
    /// The same of `[[service]]`.
    pub(crate) services_sound: bool,
    pub(crate) sets: Vec<SetDraft>,
    /// The same of `[[set]]`.
    pub(crate) sets_sound: bool,
    pub(crate) rules: Vec<RuleDraft>,
    pub(crate) filters: FiltersDraft,
    pub(crate) bans: Option<BansDraft>,
    pub(crate) sample: Option<SampleDraft>,
    pub(crate) cookies: Cookies,
    pub(crate) peace: Peace,
    /// `[proxy_keys]` stands in the file, whether it is right or not.
    pub(crate) has_proxy_keys: bool,
    pub(crate) proxy_keys: Option<PathBuf>,
    pub(crate) metrics: Option<Located<SocketAddr>>,
    pub(crate) log: Log,
    claimed: OnceCell<Claimed>,
}

/// The addresses that the file's services claim.
pub(crate) struct Claimed {
    pub(crate) sockets: HashSet<SocketAddr>,
    /// Those of the sockets.
    pub(crate) listens: HashSet<IpAddr>,
    pub(crate) sources: HashSet<IpAddr>,
}

impl Draft {
    /// What all services claim, looked up once: there may be thousands of them.
    pub(crate) fn claimed(&self) -> &Claimed {
        self.claimed.get_or_init(|| {
            let listens = || self.services.iter().flat_map(|service| &service.listen);
            let sources = self.services.iter().flat_map(|service| &service.source);
            Claimed {
                sockets: listens().map(|listen| listen.value).collect(),
                listens: listens().map(|listen| listen.value.ip()).collect(),
                sources: sources.map(|source| source.value).collect(),
            }
        })
    }
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
    let ports = sections.iter().filter_map(|section| port::port(section, diag)).collect();
    let ports_sound = diag.count() == before;

    let before = diag.count();
    let routes = root.tables("route", "route", diag);
    let routes = routes.iter().filter_map(|section| port::route(section, diag)).collect();
    let routes_sound = diag.count() == before;

    let before = diag.count();
    let sections = root.tables("service", "service", diag);
    if sections.is_empty() && diag.count() == before {
        diag.report(0, "service", "is missing", "add a [[service]] with name, listen and a [[service.upstream]]");
    }
    if let Some(excess) = sections.get(MAX_SERVICES) {
        diag.report(excess.at, "service", format!("there are more than {MAX_SERVICES} services"), "remove some");
    }
    let services = sections.iter().filter_map(|section| service::service(section, diag)).collect();
    let services_sound = diag.count() == before;

    let before = diag.count();
    let sets = rules::sets(root, diag);
    let sets_sound = diag.count() == before;

    Draft {
        runtime,
        ports,
        ports_sound,
        routes,
        routes_sound,
        services,
        services_sound,
        sets,
        sets_sound,
        rules: rules::rules(root, diag),
        filters: filters::filters(root, diag),
        bans: filters::bans(root, diag),
        sample: filters::sample(root, diag),
        cookies: cookies(root, diag),
        peace: filters::peace(root, diag),
        has_proxy_keys: root.get("proxy_keys").is_some(),
        proxy_keys: proxy_keys(root, diag),
        metrics: metrics(root, diag),
        log: log(root, diag),
        claimed: OnceCell::new(),
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
        state: section.parsed("state", diag, absolute_path).map_or(default.state, |path| path.value),
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
    // DPDK takes an option's first letters for all of it, and no other begins with these.
    if text.split_whitespace().any(|arg| arg.starts_with("--mb")) {
        return Err(Wrong::new(
            "chooses the kind of packet pools",
            "take --mbuf-pool-ops-name out: workers share pools, for which DPDK's default kind is made",
        ));
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
mod tests;
