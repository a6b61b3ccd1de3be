//! What values have to do with each other: names that must differ, addresses that must be reachable, lists that must agree.
//! Turns a [`Draft`] into a [`Config`] when nothing is wrong.
//!
//! Checks that conclude from something's absence (no route, no such port) are left out while the list they would search was
//! read with mistakes: their verdict would be a consequence, not a mistake.

mod rules;

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::address;
use crate::error::{Diagnostics, Located, nearest, quoted};
use crate::model::{
    Bans, Config, ConnectionLog, Filters, Limits, Metrics, Mode, Port, ProxyProtocol, Route, Sample, Service, Upstream,
};
use crate::schema::{Draft, PortDraft, RouteDraft, ServiceDraft};

/// Checks the draft; the configuration, if `diag` holds no mistake afterwards.
pub(crate) fn check(draft: Draft, diag: &mut Diagnostics<'_>) -> Option<Config> {
    for (index, port) in draft.ports.iter().enumerate() {
        device(port, diag);
        addresses(port, diag);
        for gateway in 0..port.gateways.len() {
            check_gateway(&draft, index, gateway, diag);
        }
    }
    distinct_ports(&draft.ports, diag);
    for route in &draft.routes {
        check_route(&draft, route, diag);
    }
    distinct(draft.routes.iter().map(|route| &route.to), "route", "keep one of the two", diag);

    distinct(draft.services.iter().map(|s| &s.name), "service", "give each service a name of its own", diag);
    let listen = draft.services.iter().flat_map(|s| &s.listen);
    distinct(listen, "listen address", "let one service have it, or use another port", diag);
    for service in &draft.services {
        check_service(&draft, service, diag);
    }
    check_source_pairs(&draft, diag);
    rules::check(&draft, diag);
    contradicting_filters(&draft, diag);
    sample_file(&draft, diag);
    if let Some(metrics) = &draft.metrics
        && is_ours(&draft, metrics.value.ip())
    {
        let found = format!("{} is an address of the appliance's own ports or services", metrics.value.ip());
        diag.wrong(metrics, found, "write an address of the host: the exporter runs on the host's network");
    }
    if diag.count() > 0 {
        return None;
    }
    let warnings = diag.take_warnings();
    finish(draft).map(|config| Config { warnings, ..config })
}

/// Notes every value that stands twice.
fn distinct<'d, T: Eq + Hash + std::fmt::Display + 'd>(
    values: impl Iterator<Item = &'d Located<T>>,
    what: &str,
    remedy: &str,
    diag: &mut Diagnostics<'_>,
) {
    let mut seen: HashMap<&T, usize> = HashMap::new();
    for value in values {
        if let Some(first) = seen.get(&value.value) {
            let line = diag.line(*first);
            let shown = quoted(&value.value.to_string());
            diag.wrong(value, format!("the {what} {shown} stands on line {line} already"), remedy);
        } else {
            seen.insert(&value.value, value.at);
        }
    }
}

/// Whether a virtual device drives a kernel interface named in its arguments.
fn needs_interface(device: &str) -> bool {
    device.starts_with("net_af_packet") || device.starts_with("net_af_xdp")
}

fn interface(args: &str) -> Option<&str> {
    args.split(',').find_map(|arg| arg.strip_prefix("iface=")).filter(|name| !name.is_empty())
}

fn device(port: &PortDraft, diag: &mut Diagnostics<'_>) {
    let args = port.args.as_ref().filter(|args| !args.value.is_empty());
    if port.is_pci() {
        if let Some(args) = args {
            let found = format!("{} is set, but {} is a PCI device", quoted(&args.value), port.device.value);
            diag.wrong(args, found, "remove it; args are for virtual devices");
        }
    } else if needs_interface(&port.device.value) && args.is_none_or(|args| interface(&args.value).is_none()) {
        let place = port.args.as_ref().map_or(port.device.at, |args| args.at);
        let key = port.device.key.trim_end_matches("device").to_owned() + "args";
        let found = format!("{} has no kernel interface to work on", quoted(&port.device.value));
        diag.report(place, key, found, "write args = \"iface=NAME\"");
    }
}

fn addresses(port: &PortDraft, diag: &mut Diagnostics<'_>) {
    if let Some(mtu) = &port.mtu
        && mtu.value < 1280
        && port.addresses.iter().any(|a| a.value.address.is_ipv6())
    {
        let found = format!("{} is less than IPv6 needs, and the port has an IPv6 address", mtu.value);
        diag.wrong(mtu, found, "write 1280 or more (RFC 8200 section 5)");
    }
}

fn distinct_ports(ports: &[PortDraft], diag: &mut Diagnostics<'_>) {
    distinct(ports.iter().map(|p| &p.name), "port", "give each port a name of its own", diag);
    distinct(ports.iter().map(|p| &p.device), "device", "give each port a device of its own", diag);
    let interfaces: Vec<_> = ports
        .iter()
        .filter(|port| needs_interface(&port.device.value))
        .filter_map(|port| port.args.as_ref())
        .filter_map(|args| interface(&args.value).map(|name| args.with(name.to_owned())))
        .collect();
    distinct(interfaces.iter(), "interface", "give each port an interface of its own", diag);

    let mut hosts: Vec<Located<IpAddr>> = Vec::new();
    let mut networks: HashMap<IpNet, &PortDraft> = HashMap::new();
    for port in ports {
        for address in &port.addresses {
            hosts.push(address.with(address.value.address));
            let owner = *networks.entry(address.value.network).or_insert(port);
            if !std::ptr::eq(owner, port) && !hosts.iter().rev().skip(1).any(|h| h.value == address.value.address) {
                let found = format!("{} is on-link on port {} too", address.value.network, quoted(&owner.name.value));
                diag.wrong(address, found, "let one port have the network, or give them different prefix lengths");
            }
        }
    }
    distinct(hosts.iter(), "address", "let one port have it, once", diag);
}

/// Whether `ip` can be asked for on the port's link.
fn on_link(port: &PortDraft, ip: IpAddr) -> bool {
    let mut networks = port.addresses.iter().map(|a| &a.value.network);
    match ip {
        // A link-local neighbour needs no common prefix, only an IPv6 address of ours.
        IpAddr::V6(v6) if v6.is_unicast_link_local() => networks.any(|n| n.addr().is_ipv6()),
        _ => networks.any(|n| n.contains(&ip)),
    }
}

/// What a next hop has to be, whether it serves as gateway or in a route; true when nothing was wrong.
fn next_hop(draft: &Draft, port: &PortDraft, hop: &Located<IpAddr>, diag: &mut Diagnostics<'_>) -> bool {
    let ip = hop.value;
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if !link_local && let Err(wrong) = address::unicast(ip) {
        diag.wrong(hop, format!("\"{ip}\" {}", wrong.found), "write the router's address");
        return false;
    }
    if is_ours(draft, ip) {
        diag.wrong(hop, format!("\"{ip}\" is one of the appliance's own addresses"), "write the router's address");
        return false;
    }
    if !on_link(port, ip) {
        // An unread address may be the one that puts it on-link.
        if draft.ports_sound {
            let networks =
                port.addresses.iter().map(|a| a.value.network).filter(|n| n.addr().is_ipv4() == ip.is_ipv4());
            let networks: Vec<String> = networks.map(|n| n.to_string()).collect();
            let remedy = if networks.is_empty() {
                format!("add an {} address to the port, or remove this", family(ip))
            } else {
                format!("write an address within {}", networks.join(" or "))
            };
            diag.wrong(hop, format!("\"{ip}\" is not on-link on port {}", quoted(&port.name.value)), remedy);
        }
        return false;
    }
    for address in &port.addresses {
        if let Err(wrong) = address::not_reserved_in(ip, &address.value.network) {
            // The subnet-router anycast address is a router's by definition (RFC 4291 section 2.6.1).
            if ip.is_ipv4() {
                diag.wrong(hop, format!("\"{ip}\" {}", wrong.found), "write the router's address");
                return false;
            }
        }
    }
    true
}

fn check_gateway(draft: &Draft, port: usize, index: usize, diag: &mut Diagnostics<'_>) {
    let Some(port) = draft.ports.get(port) else { return };
    let (before, rest) = port.gateways.split_at(index);
    let Some(gateway) = rest.first() else { return };
    next_hop(draft, port, gateway, diag);
    if let Some(first) = before.iter().find(|g| g.value.is_ipv4() == gateway.value.is_ipv4()) {
        let found =
            format!("\"{}\" is a second {} gateway beside {}", gateway.value, family(gateway.value), first.value);
        diag.wrong(gateway, found, "keep one per family; write a [[route]] for what goes another way");
    }
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn check_route(draft: &Draft, route: &RouteDraft, diag: &mut Diagnostics<'_>) {
    let to = &route.to.value;
    if to.addr().is_multicast() || (to.addr().is_loopback() && to.prefix_len() > 0) {
        diag.wrong(
            &route.to,
            format!("\"{to}\" is not a unicast prefix"),
            "write the prefix of a network behind a router",
        );
    }
    if to.addr().is_ipv4() != route.via.value.is_ipv4() {
        let found = format!("\"{}\" is {}, but the route leads to {to}", route.via.value, family(route.via.value));
        diag.wrong(&route.via, found, format!("write an {} address", family(to.addr())));
        return;
    }
    let Some(port) = draft.ports.iter().find(|p| p.name.value == route.port.value) else {
        unknown_port(draft, &route.port, diag);
        return;
    };
    next_hop(draft, port, &route.via, diag);
    if port.addresses.iter().any(|a| a.value.network == *to) {
        let found = format!("\"{to}\" is on-link on port {}", quoted(&port.name.value));
        diag.wrong(&route.to, found, "remove the route: an on-link network needs none");
    }
}

fn unknown_port(draft: &Draft, port: &Located<String>, diag: &mut Diagnostics<'_>) {
    if draft.ports_sound {
        unknown(port, "port", draft.ports.iter().map(|p| p.name.value.as_str()), diag);
    }
}

/// Notes a name that none of the `known` ones is; they are what the file calls `what`.
fn unknown<'d>(
    name: &Located<String>,
    what: &str,
    known: impl Iterator<Item = &'d str> + Clone,
    diag: &mut Diagnostics<'_>,
) {
    /// Names listed in a message.
    const LISTED: usize = 20;
    let mut listed: Vec<String> = known.clone().take(LISTED).map(quoted).collect();
    let more = known.clone().count().saturating_sub(LISTED);
    if more > 0 {
        listed.push(format!("{more} more"));
    }
    let listed = listed.join(", ");
    let remedy = match nearest(&name.value, known) {
        _ if listed.is_empty() => format!("add a [[{what}]] with name = {}", quoted(&name.value)),
        Some(meant) => format!("did you mean {}? The {what}s are {listed}", quoted(meant)),
        None => format!("the {what}s are {listed}"),
    };
    diag.wrong(name, format!("there is no {what} {}", quoted(&name.value)), remedy);
}

/// Whether the appliance answers for `ip`.
fn is_ours(draft: &Draft, ip: IpAddr) -> bool {
    draft.ports.iter().any(|p| p.addresses.iter().any(|a| a.value.address == ip)) || is_listened_on(draft, ip)
}

fn is_listened_on(draft: &Draft, ip: IpAddr) -> bool {
    draft.claimed().listens.contains(&ip)
}

/// The index of the port that leads to `ip`: longest prefix; on-link before routes before gateways; then file order.
fn leads_to(draft: &Draft, ip: IpAddr) -> Option<usize> {
    let on_link =
        draft.ports.iter().enumerate().flat_map(|(i, p)| p.addresses.iter().map(move |a| (a.value.network, i)));
    let routed = draft
        .routes
        .iter()
        .filter_map(|r| draft.ports.iter().position(|p| p.name.value == r.port.value).map(|port| (r.to.value, port)));
    let mut best: Option<(u8, usize)> = None;
    for (network, port) in on_link.chain(routed).filter(|(network, _)| network.contains(&ip)) {
        if best.is_none_or(|(longest, _)| network.prefix_len() > longest) {
            best = Some((network.prefix_len(), port));
        }
    }
    best.map(|(_, port)| port)
        .or_else(|| draft.ports.iter().position(|p| p.gateways.iter().any(|g| g.value.is_ipv4() == ip.is_ipv4())))
}

fn check_service(draft: &Draft, service: &ServiceDraft, diag: &mut Diagnostics<'_>) {
    for listen in &service.listen {
        check_listen(draft, listen, diag);
    }
    distinct(service.source.iter(), "source", "write it once", diag);
    for source in &service.source {
        check_source(draft, service, source, diag);
    }
    let upstreams = service.upstreams.iter().map(|u| &u.address);
    distinct(upstreams, "upstream", "keep one, with the sum of their weights", diag);
    for upstream in &service.upstreams {
        check_upstream(draft, &upstream.address, diag);
    }
    check_proxy_header(draft, service, diag);
    check_accept_proxy(&service.accept_proxy, service.mode, diag);
    if let Some(limit) = &service.connections_per_source
        && limit.value > service.connections
    {
        let found = format!("{} is more than limits.connections, {}", limit.value, service.connections);
        diag.wrong(limit, found, "write less, or 0 for no limit per source");
    }
}

/// Pairs of a source address and an upstream that a spliced connection can name: two bytes. Next hops, which it names so too, are no more
/// than upstreams.
const SOURCE_PAIRS_MAX: usize = 1 << 16;

/// Notes the first upstream with which there are more pairs than a spliced connection can name. Terminated services' pairs are numbered among
/// them.
fn check_source_pairs(draft: &Draft, diag: &mut Diagnostics<'_>) {
    if draft.services.iter().all(|service| service.mode != Mode::Splice) {
        return;
    }
    let mut pairs = HashSet::new();
    for service in &draft.services {
        for address in service.upstreams.iter().map(|upstream| &upstream.address) {
            let own = service.source.iter().map(|source| source.value);
            let mut sources = own.filter(|source| source.is_ipv4() == address.value.is_ipv4()).peekable();
            if sources.peek().is_none() {
                // That of the port that the route points to.
                pairs.insert((None, address.value));
            }
            pairs.extend(sources.map(|source| (Some(source), address.value)));
            if pairs.len() > SOURCE_PAIRS_MAX {
                let found = format!("makes more than {SOURCE_PAIRS_MAX} pairs of a source address and an upstream");
                diag.wrong(address, found, "write fewer of either, or mode = \"terminate\" in every service");
                return;
            }
        }
    }
}

fn check_proxy_header(draft: &Draft, service: &ServiceDraft, diag: &mut Diagnostics<'_>) {
    let header = &service.proxy_header;
    if service.proxy_protocol != ProxyProtocol::V2 {
        for key in &header.asked {
            let found =
                format!("asks for what only version 2 carries, but proxy_protocol is \"{}\"", service.proxy_protocol);
            diag.wrong(key, found, "write proxy_protocol = \"v2\" in this service, or remove the key");
        }
    } else if let Some(authenticate) = &header.authenticate
        && !draft.has_proxy_keys
    {
        let remedy = "add a section [proxy_keys] with file = \"/etc/sluice/proxy.keys\"";
        diag.wrong(authenticate, "asks for signatures, but there are no keys", remedy);
    }
}

/// What proxies in front need of the service's mode.
fn check_accept_proxy(proxies: &[Located<IpNet>], mode: Mode, diag: &mut Diagnostics<'_>) {
    if mode == Mode::Splice
        && let Some(first) = proxies.first()
    {
        let found = "a header can be taken off a connection only where the connection ends, but mode is \"splice\"";
        diag.wrong(first, found, "write mode = \"terminate\" in this service, or remove accept_proxy");
    }
    distinct(proxies.iter(), "prefix", "write it once", diag);
}

/// Notes an address that a link reserves, or that is a router's.
fn check_host(draft: &Draft, value: &Located<IpAddr>, diag: &mut Diagnostics<'_>) {
    let ip = value.value;
    for port in &draft.ports {
        for address in &port.addresses {
            if let Err(wrong) = address::not_reserved_in(ip, &address.value.network) {
                diag.wrong(value, format!("\"{ip}\" {}", wrong.found), wrong.remedy);
                return;
            }
        }
    }
}

/// Notes an address of ours that is a router's too.
fn check_not_a_router(draft: &Draft, value: &Located<IpAddr>, diag: &mut Diagnostics<'_>) {
    let ip = value.value;
    let gateways = draft.ports.iter().flat_map(|p| &p.gateways);
    if gateways.chain(draft.routes.iter().map(|r| &r.via)).any(|hop| hop.value == ip) {
        let found = format!("\"{ip}\" is a router's address here, for which the appliance must not answer");
        diag.wrong(value, found, "write an address that nobody else has");
    }
}

fn check_listen(draft: &Draft, listen: &Located<SocketAddr>, diag: &mut Diagnostics<'_>) {
    let ip = listen.value.ip();
    check_host(draft, &listen.with(ip), diag);
    let has_family = draft.ports.iter().any(|p| p.addresses.iter().any(|a| a.value.address.is_ipv4() == ip.is_ipv4()));
    if draft.ports_sound && !has_family {
        let found = format!("\"{}\" is {}, but no port has an {} address", listen.value, family(ip), family(ip));
        diag.wrong(listen, found, format!("add an {} address to a port, or remove this", family(ip)));
    }
}

fn check_source(draft: &Draft, service: &ServiceDraft, source: &Located<IpAddr>, diag: &mut Diagnostics<'_>) {
    let ip = source.value;
    check_host(draft, source, diag);
    check_not_a_router(draft, source, diag);
    if service.upstreams_sound && !service.upstreams.iter().any(|u| u.address.value.is_ipv4() == ip.is_ipv4()) {
        let found = format!("\"{ip}\" is {}, but no upstream of this service is", family(ip));
        diag.wrong(source, found, format!("remove it, or add an {} upstream", family(ip)));
    }
    // Answers find their way to a source address because we answer for it on a link, or because it is listened on and so is
    // routed to us anyway. Any other address would leave and never hear back.
    let owned = draft.ports.iter().any(|p| on_link(p, ip)) || is_listened_on(draft, ip);
    if draft.ports_sound && !owned {
        let found = format!("\"{ip}\" is neither on-link on a port nor listened on: answers would not come back");
        diag.wrong(source, found, "write an address within a port's network, or one that a service listens on");
    }
}

fn check_upstream(draft: &Draft, upstream: &Located<SocketAddr>, diag: &mut Diagnostics<'_>) {
    let ip = upstream.value.ip();
    let sourced = draft.claimed().sources.contains(&ip);
    if draft.claimed().sockets.contains(&upstream.value) {
        let found = format!("\"{}\" is a listen address of the appliance itself: a loop", upstream.value);
        diag.wrong(upstream, found, "write the real server's address");
    } else if is_ours(draft, ip) || sourced {
        let found = format!("\"{}\" is at the appliance's own address {ip}, where no server is", upstream.value);
        diag.wrong(upstream, found, "write the real server's address");
    } else {
        check_host(draft, &upstream.with(ip), diag);
        if draft.ports_sound && draft.routes_sound && leads_to(draft, ip).is_none() {
            let found = format!("no port, route or gateway leads to \"{}\"", upstream.value);
            let remedy = format!("add a [[route]] for it, or an {} gateway to a port", family(ip));
            diag.wrong(upstream, found, remedy);
        }
    }
}

fn contradicting_filters(draft: &Draft, diag: &mut Diagnostics<'_>) {
    let allowed: HashMap<&IpNet, usize> = draft.filters.allow.iter().map(|net| (&net.value, net.at)).collect();
    for deny in &draft.filters.deny {
        if let Some(allow) = allowed.get(&deny.value) {
            let line = diag.line(*allow);
            let found = format!("\"{}\" stands in filters.allow too (line {line}), which wins", deny.value);
            diag.wrong(deny, found, "keep one of the two");
        }
    }
}

/// Notes a sample file that something else uses.
fn sample_file(draft: &Draft, diag: &mut Diagnostics<'_>) {
    let Some(sample) = &draft.sample else { return };
    let file = &sample.file;
    let full = sample_of_before(&file.value);
    let bans = draft.bans.as_ref().and_then(|bans| bans.file.as_ref()).map(|bans| (&bans.value, "bans.file"));
    let log = match &draft.log.connections {
        ConnectionLog::File(path) => Some((path, "log.connections")),
        ConnectionLog::Stdout | ConnectionLog::Off => None,
    };
    let sets = draft.sets.iter().flat_map(|set| &set.files).map(|path| (&path.value, "a list of a [[set]]"));
    for (path, what) in bans.into_iter().chain(log).chain(sets) {
        if *path == file.value {
            diag.wrong(file, format!("is {what} too"), "write a file of its own: it is overwritten");
            return;
        } else if *path == full {
            let found = format!("is renamed to {} when it is full, which is {what}", full.display());
            diag.wrong(file, found, "write another name");
            return;
        }
    }
}

/// Where a full sample file goes.
fn sample_of_before(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// The draft without its places. `None` only if a rule or a route names something unknown, which a check has noted by then.
fn finish(draft: Draft) -> Option<Config> {
    let port_of = |name: &str| draft.ports.iter().position(|p| p.name.value == name);
    let routes = draft
        .routes
        .iter()
        .map(|route| Some(Route { to: route.to.value, via: route.via.value, port: port_of(&route.port.value)? }));
    let routes = routes.collect::<Option<Vec<_>>>()?;
    let strip = |nets: Vec<Located<IpNet>>| nets.into_iter().map(|net| net.value).collect();
    let rules = draft.rules.iter().map(|rule| rules::finish(rule, &draft)).collect::<Option<Vec<_>>>()?;
    let shortest = draft.filters.rest.shortest_prefix;
    Some(Config {
        runtime: draft.runtime,
        routes,
        ports: draft.ports.into_iter().map(finish_port).collect(),
        services: draft.services.into_iter().map(finish_service).collect(),
        sets: draft.sets.into_iter().map(|set| rules::finish_set(set, shortest)).collect(),
        rules,
        filters: Filters { deny: strip(draft.filters.deny), allow: strip(draft.filters.allow), ..draft.filters.rest },
        bans: draft.bans.map(|bans| Bans {
            file: bans.file.map(|file| file.value),
            on_error: bans.on_error,
            shortest,
            capacity: bans.capacity,
        }),
        sample: draft.sample.map(|sample| Sample {
            file: sample.file.value,
            rate: sample.rate,
            snap: sample.snap,
            max_size: sample.max_size,
        }),
        cookies: draft.cookies,
        peace: draft.peace,
        proxy_keys: draft.proxy_keys,
        metrics: draft.metrics.map(|listen| Metrics { listen: listen.value }),
        log: draft.log,
        warnings: Vec::new(),
    })
}

fn finish_port(port: PortDraft) -> Port {
    Port {
        name: port.name.value,
        device: port.device.value,
        args: port.args.map(|args| args.value).unwrap_or_default(),
        addresses: port.addresses.into_iter().map(|a| a.value).collect(),
        gateways: port.gateways.into_iter().map(|g| g.value).collect(),
        vlan: port.vlan,
        mtu: port.mtu.map_or(1500, |mtu| mtu.value),
        promiscuous: port.promiscuous,
        source_check: port.source_check,
    }
}

fn finish_service(service: ServiceDraft) -> Service {
    Service {
        name: service.name.value,
        listen: service.listen.into_iter().map(|l| l.value).collect(),
        mode: service.mode,
        proxy_protocol: service.proxy_protocol,
        proxy_header: service.proxy_header.extras,
        accept_proxy: service.accept_proxy.into_iter().map(|net| net.value).collect(),
        connect: service.connect,
        balance: service.balance,
        source: service.source.into_iter().map(|s| s.value).collect(),
        congestion: service.congestion,
        upstream_congestion: service.upstream_congestion,
        buffer: service.buffer,
        timeouts: service.timeouts,
        keepalive: service.keepalive,
        limits: Limits {
            connections: service.connections,
            connections_per_source: service.connections_per_source.map_or(0, |n| n.value),
            share: service.share,
        },
        promise: service.promise,
        upstreams: service
            .upstreams
            .into_iter()
            .map(|u| Upstream { address: u.address.value, weight: u.weight })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_in_front_need_mode_terminate() {
        let key = "service \"web\": accept_proxy[0]".to_owned();
        let proxies = [Located { value: "10.0.0.0/8".parse().unwrap(), at: 0, key }];
        let mistakes = |mode, proxies: &[Located<IpNet>]| {
            let mut diag = Diagnostics::new("f", "");
            check_accept_proxy(proxies, mode, &mut diag);
            diag.into_mistakes()
        };
        assert!(mistakes(Mode::Terminate, &proxies).is_empty());
        assert!(mistakes(Mode::Splice, &[]).is_empty());
        let shown = mistakes(Mode::Splice, &proxies)[0].to_string();
        assert!(shown.starts_with("f:1: service \"web\": accept_proxy[0]: ") && shown.contains("mode"), "{shown}");
    }
}
