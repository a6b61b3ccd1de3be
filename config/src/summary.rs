//! What a configuration means, in lines for people: `sluice check` prints them.

use std::fmt::{self, Display};
use std::time::Duration;

use crate::model::{
    Balance, Config, Congestion, Connect, ConnectionLog, Hugepages, Idle, Level, Measure, Mode, Promise,
    ProxyHeaderExtras, ProxyProtocol, Rate, SourceCheck,
};
use crate::units::{show_duration, show_size};

impl Config {
    /// What was understood: lines for the runtime, each port, route, service, upstream, set, rule, the filters, bans,
    /// sample, cookies, peace, keys, metrics and log, each ending in a newline.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut out = Lines(String::new());
        self.runtime_lines(&mut out);
        self.network_lines(&mut out);
        self.service_lines(&mut out);
        for index in 0..self.sets.len() {
            out.line(format_args!("{}", self.describe_set(index)));
        }
        for index in 0..self.rules.len() {
            out.line(format_args!("{}", self.describe_rule(index)));
        }
        self.filter_lines(&mut out);
        let seed = self.cookies.seed_file.as_ref().map_or("the system".to_owned(), |path| path.display().to_string());
        let peace = &self.peace;
        let shared = match (&self.cookies.seed_file, peace.resets) {
            (Some(_), Some(_)) => {
                " (appliances that share it reset each other's clients unless peace.resets is \"off\")"
            }
            _ => "",
        };
        out.line(format_args!("cookies: seed from {seed}, epoch {}{shared}", show_duration(self.cookies.epoch)));
        let towards = |rate: Option<Rate>| rate.map_or("off".to_owned(), |rate| rate.show(Measure::Packets));
        out.line(format_args!(
            "peace: up to {} SYNs and {} segments of no connection per worker; SYN-ACK repeats {}, RSTs {} per prefix",
            peace.syns.show(Measure::Packets),
            peace.flowless.show(Measure::Packets),
            towards(peace.repeats),
            towards(peace.resets),
        ));
        if let Some(path) = &self.proxy_keys {
            out.line(format_args!("proxy keys: {}, read again when it changes", path.display()));
        }
        match &self.metrics {
            Some(metrics) => out.line(format_args!("metrics: http://{}/metrics", metrics.listen)),
            None => out.line(format_args!("metrics: off")),
        }
        out.line(format_args!("log: level {}, connections {}", self.log.level, self.log.connections));
        out.0
    }

    fn filter_lines(&self, out: &mut Lines) {
        let filters = &self.filters;
        out.line(format_args!(
            "filters: deny {}, allow {}{}, an IPv6 source is a /{}, {} echo replies/s per worker",
            prefixes(filters.deny.len()),
            prefixes(filters.allow.len()),
            if filters.deny.is_empty() && !filters.allow.is_empty() { " and nobody else" } else { "" },
            filters.source_prefix_v6,
            filters.icmp_rate,
        ));
        let ceiling = filters.syn_ack_ceiling;
        let ceiling =
            ceiling.map_or("any number".to_owned(), |rate| format!("at most {}", rate.show(Measure::Packets)));
        out.line(format_args!(
            "filters: SYN-ACKs per prefix (IPv4 /24, IPv6 /48) {ceiling}, limits of {} sources remembered, per worker",
            filters.records,
        ));
        for (whose, limits) in [
            ("address", &filters.per_address),
            ("subnet (IPv4 /24, IPv6 /64)", &filters.per_subnet),
            ("site (IPv6 /48)", &filters.per_site),
        ] {
            if !limits.is_empty() {
                out.line(format_args!("limits per {whose}: {limits}"));
            }
        }
        if let Some(bans) = &self.bans {
            let file = bans.file.as_ref().map_or("no file".to_owned(), |path| path.display().to_string());
            out.line(format_args!("bans: {file}, room for {} per worker", bans.capacity));
        }
        if let Some(sample) = &self.sample {
            out.line(format_args!(
                "sample: dropped packets to {}, {} per worker, {} octets of each, {} at most",
                sample.file.display(),
                sample.rate.show(Measure::Packets),
                sample.snap,
                show_size(sample.max_size),
            ));
        }
    }

    fn runtime_lines(&self, out: &mut Lines) {
        let rt = &self.runtime;
        out.line(format_args!(
            "runtime: workers on CPU {}, control on CPU {}, hugepages {}, {} mbufs, {}/{} rx/tx descriptors, idle {}, \
             drain {}{}",
            list(&rt.cores),
            rt.control_core,
            rt.hugepages,
            rt.mbufs,
            rt.rx_descriptors,
            rt.tx_descriptors,
            rt.idle,
            show_duration(rt.drain),
            option(", DPDK arguments ", &rt.dpdk_args),
        ));
    }

    fn network_lines(&self, out: &mut Lines) {
        for port in &self.ports {
            let addresses: Vec<String> =
                port.addresses.iter().map(|a| format!("{}/{}", a.address, a.network.prefix_len())).collect();
            let vlan = if port.vlan == 0 { "untagged".to_owned() } else { format!("VLAN {}", port.vlan) };
            out.line(format_args!(
                "port {}: {}{}, {}{}, {vlan}, MTU {}{}, source check {}{}",
                port.name,
                port.device,
                option(" ", &port.args),
                list(&addresses),
                option(", gateway ", &list(&port.gateways)),
                port.mtu,
                if port.promiscuous { ", promiscuous" } else { "" },
                port.source_check,
                self.said_of_gateways(port.source_check),
            ));
        }
        for route in &self.routes {
            let port = self.ports.get(route.port).map_or("?", |port| port.name.as_str());
            out.line(format_args!("route {}: via {} on port {port}", route.to, route.via));
        }
    }

    /// What a source check without a default route comes to: whoever has none forgets that sources need one.
    fn said_of_gateways(&self, check: SourceCheck) -> String {
        let families = self.families_without_gateway().filter(|_| check != SourceCheck::Off);
        families.map(|family| format!(" (no {family} gateway: sources on links and behind routes only)")).collect()
    }

    /// The families that ports speak and for which there is neither a gateway nor a default route: where sources are checked, clients of
    /// other networks are refused.
    pub fn families_without_gateway(&self) -> impl Iterator<Item = &'static str> + '_ {
        let missing = |is_v4: bool| {
            let spoken = self.ports.iter().any(|port| port.addresses.iter().any(|a| a.address.is_ipv4() == is_v4));
            let gateway = self.ports.iter().any(|port| port.gateways.iter().any(|g| g.is_ipv4() == is_v4));
            let route =
                self.routes.iter().any(|route| route.to.prefix_len() == 0 && route.to.addr().is_ipv4() == is_v4);
            spoken && !gateway && !route
        };
        [("IPv4", true), ("IPv6", false)]
            .into_iter()
            .filter(move |(_, is_v4)| missing(*is_v4))
            .map(|(family, _)| family)
    }

    fn service_lines(&self, out: &mut Lines) {
        for service in &self.services {
            let source =
                if service.source.is_empty() { "the port's address".to_owned() } else { list(&service.source) };
            out.line(format_args!(
                "service {}: listens on {}, mode {}, PROXY protocol {}, connects {}, balances {}, from {source}",
                service.name,
                list(&service.listen),
                service.mode,
                service.proxy_protocol,
                service.connect,
                service.balance,
            ));
            if !service.proxy_header.is_empty() {
                out.line(format_args!("service {}: PROXY headers carry {}", service.name, service.proxy_header));
            }
            if !service.accept_proxy.is_empty() {
                let proxies = list(&service.accept_proxy);
                out.line(format_args!("service {}: PROXY headers are expected from {proxies}", service.name));
            }
            let (t, limits) = (&service.timeouts, &service.limits);
            let first_data = if t.first_data.is_zero() { "off".to_owned() } else { show_duration(t.first_data) };
            out.line(format_args!(
                "service {}: timeouts connect {}, client idle {}, upstream idle {}, half-closed {}, first data \
                 {first_data}, unacknowledged {}",
                service.name,
                show_duration(t.connect),
                show_patience(t.client_idle),
                show_patience(t.upstream_idle),
                show_patience(t.half_closed),
                show_duration(t.unacknowledged),
            ));
            for (end, keepalive) in [("client", service.keepalive.client), ("upstream", service.keepalive.upstream)] {
                if let Some(keepalive) = keepalive {
                    out.line(format_args!(
                        "service {}: a silent {end} is asked every {}, and gone when {} in a row had no answer",
                        service.name,
                        show_duration(keepalive.interval),
                        keepalive.count,
                    ));
                }
            }
            let per_source = match limits.connections_per_source {
                0 => "no limit".to_owned(),
                n => n.to_string(),
            };
            out.line(format_args!(
                "service {}: at most {} connections ({per_source} per source, {}% of scarce ones), buffers {}, congestion control {} towards \
                 clients, {} towards upstreams",
                service.name,
                limits.connections,
                limits.share,
                show_size(service.buffer as u64),
                service.congestion,
                service.upstream_congestion,
            ));
            if service.mode == Mode::Splice {
                out.line(format_args!("service {}: promises {}", service.name, service.promise));
            }
            for upstream in &service.upstreams {
                out.line(format_args!("upstream {} of {}: weight {}", upstream.address, service.name, upstream.weight));
            }
        }
    }
}

struct Lines(String);

impl Lines {
    fn line(&mut self, args: fmt::Arguments<'_>) {
        self.0.push_str(&args.to_string());
        self.0.push('\n');
    }
}

fn show_patience(patience: Option<Duration>) -> String {
    patience.map_or_else(|| "off".to_owned(), show_duration)
}

/// `a, b, c`
fn list<T: Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// `text` with what goes before it, or nothing.
fn option(before: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{before}{text}") }
}

fn prefixes(n: usize) -> String {
    match n {
        0 => "nobody".to_owned(),
        1 => "1 prefix".to_owned(),
        n => format!("{n} prefixes"),
    }
}

/// Displays a choice as the file spells it.
macro_rules! spelled {
    ($($choice:ident { $($variant:ident = $name:literal),+ $(,)? })+) => {$(
        impl Display for $choice {
            /// As the configuration file spells it.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($choice::$variant => $name),+ })
            }
        }
    )+};
}

spelled! {
    Hugepages { Auto = "auto", Require = "require", Off = "off" }
    Idle { Spin = "spin", Sleep = "sleep" }
    Mode { Terminate = "terminate", Splice = "splice" }
    ProxyProtocol { Off = "off", V1 = "v1", V2 = "v2" }
    Connect { OnAccept = "on-accept", OnData = "on-data" }
    Balance { RoundRobin = "round-robin" }
    Congestion { None = "none", Reno = "reno" }
    SourceCheck { Off = "off", Loose = "loose", Strict = "strict" }
    Level { Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace" }
}

impl Display for Promise {
    /// What SYN-ACKs promise: the pinned values, and where the others come from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other = if self.probe.is_zero() { "assumed" } else { "learned" };
        fn said<T: Display>(pinned: Option<T>, other: &str) -> String {
            pinned.map_or(other.to_owned(), |value| value.to_string())
        }
        let switch = |pinned: Option<bool>| said(pinned.map(|on| if on { "on" } else { "off" }), other);
        write!(
            f,
            "MSS {}, window scale {}, SACK {}, timestamps {}",
            said(self.mss, other),
            said(self.window_scale, other),
            switch(self.sack),
            switch(self.timestamps),
        )?;
        match self.probe {
            Duration::ZERO => f.write_str(", without probes"),
            every => write!(f, ", probed every {}", show_duration(every)),
        }
    }
}

impl Display for ConnectionLog {
    /// As the configuration file spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionLog::Stdout => f.write_str("stdout"),
            ConnectionLog::Off => f.write_str("off"),
            ConnectionLog::File(path) => path.display().fmt(f),
        }
    }
}

impl Display for ProxyHeaderExtras {
    /// `authority www.example.com, unique id`: in the order of the header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.authority.as_ref().map(|name| format!("authority {}", name.escape_debug()));
        let said = [
            (self.unique_id, "unique id"),
            (self.evidence, "handshake evidence"),
            (self.authenticate, "signature"),
            (self.crc32c, "CRC32C"),
        ];
        let said = said.into_iter().filter(|(asked, _)| *asked).map(|(_, what)| what.to_owned());
        f.write_str(&list(&authority.into_iter().chain(said).collect::<Vec<_>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_pinned_is_learned_or_without_probes_assumed() {
        let probed = Promise {
            mss: Some(1_400),
            window_scale: None,
            sack: Some(true),
            timestamps: None,
            probe: Duration::from_secs(10),
        };
        let expected = "MSS 1400, window scale learned, SACK on, timestamps learned, probed every 10s";
        assert_eq!(probed.to_string(), expected);
        let silent = Promise { probe: Duration::ZERO, ..probed };
        assert_eq!(silent.to_string(), "MSS 1400, window scale assumed, SACK on, timestamps assumed, without probes");
    }

    #[test]
    fn extensions_are_listed_in_the_headers_order() {
        let extras = ProxyHeaderExtras {
            unique_id: true,
            crc32c: true,
            authority: Some("www.example.com".into()),
            evidence: true,
            authenticate: true,
        };
        assert_eq!(extras.to_string(), "authority www.example.com, unique id, handshake evidence, signature, CRC32C");
    }
}
