//! The validated configuration: what the rest of sluice is handed. Every value here has passed [`crate::load`]'s checks,
//! so addresses, names and numbers may be used without asking again.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::{Mistake, Place, Shortest};

/// A whole configuration file, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[runtime]`
    pub runtime: Runtime,
    /// `[[port]]`, at least one, in file order; the index is the port's id everywhere.
    pub ports: Vec<Port>,
    /// `[[route]]`
    pub routes: Vec<Route>,
    /// `[[service]]`, at least one, in file order; the index is the service's id everywhere.
    pub services: Vec<Service>,
    /// `[[set]]`: named sets of addresses, in file order; the index is the set's id everywhere.
    pub sets: Vec<Set>,
    /// `[[rule]]`, in the order in which they are asked; the index is the rule's id everywhere.
    pub rules: Vec<Rule>,
    /// `[filters]`
    pub filters: Filters,
    /// `[bans]`; absent = nobody can be banned.
    pub bans: Option<Bans>,
    /// `[sample]`; absent = dropped packets are counted and not kept.
    pub sample: Option<Sample>,
    /// `[cookies]`
    pub cookies: Cookies,
    /// `[peace]`
    pub peace: Peace,
    /// `proxy_keys.file`: the keys that sign PROXY headers; there when a service authenticates.
    pub proxy_keys: Option<PathBuf>,
    /// `[metrics]`; absent = no exporter.
    pub metrics: Option<Metrics>,
    /// `[log]`
    pub log: Log,
    /// What the file says that may not be meant, in file order.
    pub warnings: Vec<Mistake>,
}

/// `[runtime]`: cores, memory, DPDK.
#[derive(Clone, Debug, PartialEq)]
pub struct Runtime {
    /// CPU ids, one worker each; the index in this list is the worker's id. Default `[1]`.
    pub cores: Vec<u16>,
    /// CPU of everything that is not a worker. Default 0. A worker may share it, at a cost.
    pub control_core: u16,
    /// How DPDK gets its memory. Default `auto`.
    pub hugepages: Hugepages,
    /// Appended to the EAL's arguments, split at white space.
    pub dpdk_args: String,
    /// How long `run` lets connections finish after SIGTERM. Default 5 s.
    pub drain: Duration,
    /// Frames in the packet pool. Default 65,535; from 4,095 to 4,194,303.
    pub mbufs: u32,
    /// Descriptors per receive queue. Default 1,024; 64 to 32,768.
    pub rx_descriptors: u16,
    /// Descriptors per transmit queue. Default 1,024; 64 to 32,768.
    pub tx_descriptors: u16,
    /// What a worker does when its ports are silent. Default `spin`.
    pub idle: Idle,
    /// The directory for what outlives the process: the last good copies of sets. Default `/var/lib/sluice`.
    pub state: PathBuf,
}

/// `runtime.hugepages`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hugepages {
    /// Hugepages when enough are free, else ordinary memory with a warning.
    Auto,
    /// Start only on hugepages.
    Require,
    /// Ordinary memory (`--no-huge`).
    Off,
}

/// `runtime.idle`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Poll without pause: lowest latency, the core is always busy.
    Spin,
    /// After a thousand empty polls, sleep for some 50 us at a time: for labs that share cores.
    Sleep,
}

/// One `[[port]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Unique name, used in routes, logs and metrics.
    pub name: String,
    /// PCI address (`0000:03:00.0`) or DPDK virtual device name (`net_af_packet0`).
    pub device: String,
    /// The virtual device's arguments.
    pub args: String,
    /// Our addresses here, each with its on-link prefix.
    pub addresses: Vec<PortAddress>,
    /// At most one default gateway per address family, each on-link on this port.
    pub gateways: Vec<IpAddr>,
    /// 802.1Q tag of all our frames here; 0 = untagged.
    pub vlan: u16,
    /// Largest IP packet. Default 1500; 576 (1280 with IPv6 addresses) to 9000.
    pub mtu: u16,
    /// Receive frames for all MAC addresses. Default false.
    pub promiscuous: bool,
    /// What is asked of the sources of what comes in here. Default `loose`.
    pub source_check: SourceCheck,
}

/// `port.source_check`: whether a packet's source may be where the packet came from (RFC 3704). The appliance's own addresses and
/// broadcast addresses are no sources, and an upstream's address is one only where its route leads, whatever is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceCheck {
    /// Nothing more.
    Off,
    /// Some route leads to it, through whatever port.
    #[default]
    Loose,
    /// The best route to it, or one as good, leads through this port.
    Strict,
}

/// An interface address: the host part and the prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAddress {
    /// The address itself.
    pub address: IpAddr,
    /// The prefix around it that is on-link, host bits cleared.
    pub network: IpNet,
}

/// One `[[route]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix, host bits cleared.
    pub to: IpNet,
    /// Next hop, on-link on `port`, same family as `to`.
    pub via: IpAddr,
    /// Index into [`Config::ports`].
    pub port: usize,
}

/// `service.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The client's TCP ends here; payload is relayed.
    Terminate,
    /// The client's segments are rewritten and forwarded.
    Splice,
}

/// `service.proxy_protocol`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// Raw TCP: the upstream does not learn the client's address.
    Off,
    /// Text header.
    V1,
    /// Binary header.
    V2,
}

/// `service.connect`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Dial as soon as the client is validated.
    OnAccept,
    /// Dial when the client has sent payload.
    OnData,
}

/// `service.balance`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Weighted round-robin.
    RoundRobin,
}

/// `service.congestion` and `service.upstream_congestion`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// No congestion window: for the operator's own network.
    None,
    /// RFC 5681.
    Reno,
}

/// One `[[service]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique name, used in logs and metrics.
    pub name: String,
    /// Where clients connect; no two services share one.
    pub listen: Vec<SocketAddr>,
    /// Default `terminate`.
    pub mode: Mode,
    /// Default `off`.
    pub proxy_protocol: ProxyProtocol,
    /// `[service.proxy_header]`; asks for something only with [`ProxyProtocol::V2`].
    pub proxy_header: ProxyHeaderExtras,
    /// Proxies in front of the appliance, whose connections begin with a PROXY header; only with [`Mode::Terminate`].
    pub accept_proxy: Vec<IpNet>,
    /// Default `on-accept`.
    pub connect: Connect,
    /// Default `round-robin`.
    pub balance: Balance,
    /// Addresses to dial upstreams from; empty = the address of the port that leads there.
    pub source: Vec<IpAddr>,
    /// Towards clients. Default `reno`.
    pub congestion: Congestion,
    /// Towards upstreams. Default `none`.
    pub upstream_congestion: Congestion,
    /// Receive and send buffer of each side, octets. Default 65,535 (`"65535B"`); 4 KiB to 65,535.
    pub buffer: usize,
    /// `[service.timeouts]`
    pub timeouts: Timeouts,
    /// `[service.keepalive]`
    pub keepalive: KeepAlives,
    /// `[service.limits]`
    pub limits: Limits,
    /// `[service.promise]`
    pub promise: Promise,
    /// `[[service.upstream]]`, at least one.
    pub upstreams: Vec<Upstream>,
}

impl Service {
    /// [`Service::source`] of one family.
    pub fn sources_of(&self, v4: bool) -> impl Iterator<Item = IpAddr> + Clone {
        self.source.iter().copied().filter(move |ip| ip.is_ipv4() == v4)
    }

    /// How many connections of a spliced service, all workers together, may go on in terminate mode at once, where each takes four buffers:
    /// clients can bring that about.
    #[must_use]
    pub fn fallbacks_max(&self) -> u32 {
        (self.limits.connections / 32).clamp(64, 4_096)
    }

    /// How many pairs of a source address and an upstream connections can be dialled between.
    #[must_use]
    pub fn source_pairs(&self) -> usize {
        let sources = |upstream: &Upstream| self.sources_of(upstream.address.is_ipv4()).count().max(1);
        self.upstreams.iter().map(sources).sum()
    }
}

/// `[service.proxy_header]`: what the header says besides the addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyHeaderExtras {
    /// A name of each connection.
    pub unique_id: bool,
    /// A checksum.
    pub crc32c: bool,
    /// A host name; 1 to 255 octets.
    pub authority: Option<String>,
    /// What the handshake showed of the client.
    pub evidence: bool,
    /// A signature; [`Config::proxy_keys`] is there then.
    pub authenticate: bool,
}

impl ProxyHeaderExtras {
    /// Whether the header says nothing but the addresses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == ProxyHeaderExtras::default()
    }
}

/// `[service.timeouts]`; none, and zero of `first_data`, is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// One dial. Default 5 s.
    pub connect: Duration,
    /// No segment from the client. Default 5 min.
    pub client_idle: Option<Duration>,
    /// No segment from the upstream. Default 5 min.
    pub upstream_idle: Option<Duration>,
    /// One direction closed and nothing moving in the other. Default: the longer of the two above.
    pub half_closed: Option<Duration>,
    /// A client that never speaks. Default 0 = off.
    pub first_data: Duration,
    /// Sent data that finds no answer (RFC 5482's user timeout). Default 60 s.
    pub unacknowledged: Duration,
}

/// `[service.keepalive]`: ends that are asked whether they are there when they say nothing (RFC 9293 section 3.8.4); by default none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepAlives {
    /// The client.
    pub client: Option<KeepAlive>,
    /// The upstream.
    pub upstream: Option<KeepAlive>,
}

/// How an end is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// After so long a silence, and as long after each probe; 1 s or more.
    pub interval: Duration,
    /// It is gone when so many in a row had no answer; 1 to 100.
    pub count: u8,
}

impl KeepAlive {
    /// How long a silence means that the end is gone.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.interval.saturating_mul(u32::from(self.count).saturating_add(1))
    }
}

/// `[service.limits]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, all workers together. Default 100,000 for a spliced service, 10,000 for a terminated one.
    pub connections: u32,
    /// Connections at once from one source; 0 = no limit.
    pub connections_per_source: u32,
    /// Percent of the connections there can be at once that one source, or one prefix (IPv4 /24, IPv6 /48), may hold when only a quarter is
    /// left. Default 10; 100 = all.
    pub share: u8,
}

/// `[service.promise]`: what SYN-ACKs of a spliced service promise in its upstreams' name. What is not pinned is learned from them by probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Maximum segment size, octets; 536 to 8,960.
    pub mss: Option<u16>,
    /// Window scale, 0 to 14.
    pub window_scale: Option<u8>,
    /// Selective acknowledgments.
    pub sack: Option<bool>,
    /// Timestamps.
    pub timestamps: Option<bool>,
    /// How often each upstream is asked for what it accepts. Default 10 s; zero = never.
    pub probe: Duration,
}

/// One `[[service.upstream]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where to dial.
    pub address: SocketAddr,
    /// Share of new connections, 1 to 256. Default 1.
    pub weight: u16,
}

/// One `[[set]]`: what its prefixes, its files and its database say, all together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Unique name, used in rules and metrics.
    pub name: String,
    /// Prefixes in the configuration itself.
    pub prefixes: Vec<IpNet>,
    /// Lists, one prefix a line; read again when they change.
    pub files: Vec<PathBuf>,
    /// What becomes of the set when a file or the database cannot be used. Default `keep-last`.
    pub on_error: OnError,
    /// The shortest prefixes that its lists may have.
    pub shortest: Shortest,
    /// Countries or networks of a database; read again when it changes.
    pub geo: Option<Geo>,
}

/// `set.on_error`: what becomes of a set whose files cannot be used as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// It stays as it was when they last could be, across starts too.
    #[default]
    KeepLast,
    /// Lines that are no entries are skipped; for anything worse it stays as it was.
    SkipLine,
    /// It stays as it was while the appliance runs; no start without them.
    Refuse,
}

/// What a set takes from a MaxMind database; at least one country or autonomous system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geo {
    /// The database file (`.mmdb`).
    pub database: PathBuf,
    /// ISO 3166-1 codes, two capital letters each.
    pub countries: Vec<String>,
    /// Autonomous system numbers.
    pub asns: Vec<u32>,
}

/// One `[[rule]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique name, used in logs and metrics.
    pub name: String,
    /// What it applies to.
    pub matches: Matches,
    /// What becomes of that.
    pub action: Action,
    /// Only count. Default false. At most 63 rules have it.
    pub dry_run: bool,
}

/// What a rule applies to: segments to a service for which every condition holds; the default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matches {
    /// `source`: within any of these; empty = from anywhere.
    pub source: Sources,
    /// `not_source`: within none of these.
    pub not_source: Sources,
    /// `ip_version`: 4 or 6.
    pub ip_version: Option<u8>,
    /// `service`: to one of these, indices into [`Config::services`]; empty = to any.
    pub services: Vec<usize>,
    /// `source_port`; empty = any.
    pub source_ports: Vec<RangeInclusive<u16>>,
    /// `destination_port`; empty = any.
    pub destination_ports: Vec<RangeInclusive<u16>>,
    /// `flags`.
    pub flags: Option<FlagMatch>,
    /// `hop_limit`: TTL or hop limit.
    pub hop_limit: Option<RangeInclusive<u8>>,
    /// `ip_length`: the IP packet's length with its header, octets.
    pub ip_length: Option<RangeInclusive<u16>>,
    /// `payload_length`: TCP payload, octets.
    pub payload_length: Option<RangeInclusive<u16>>,
    /// `window`: the window field, unscaled.
    pub window: Option<RangeInclusive<u16>>,
    /// `mss`
    pub mss: Option<OptionMatch<u16>>,
    /// `window_scale`
    pub window_scale: Option<OptionMatch<u8>>,
    /// `sack`: whether SACK is permitted by an option.
    pub sack: Option<bool>,
    /// `timestamps`: whether there is a timestamp option.
    pub timestamps: Option<bool>,
    /// `options`: the option kinds, in exactly this order, NOP and end of list included.
    pub option_order: Option<Vec<u8>>,
    /// `payload`: octets of the TCP payload; all of them have to be there.
    pub payload: Vec<PayloadMatch>,
    /// `pcap`: a tcpdump expression.
    pub pcap: Option<Expression>,
}

/// Sets and prefixes, any of which may hold an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Indices into [`Config::sets`].
    pub sets: Vec<usize>,
    /// Prefixes in the rule itself.
    pub prefixes: Vec<IpNet>,
}

impl Sources {
    /// Whether nothing is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.prefixes.is_empty()
    }
}

/// TCP flags that must be there and that must not; bits as in the header's octet 13.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlagMatch {
    /// Set, all of them.
    pub set: u8,
    /// Clear, all of them.
    pub clear: u8,
}

impl FlagMatch {
    /// Whether a segment with such flags passes the header checks that come before rules. Those look at the low six flags and
    /// take a SYN, SYN-ACK, RST, ACK or FIN-ACK, with or without PSH and, where no RST is, URG; a bare SYN-ACK has no URG.
    #[must_use]
    pub fn is_possible(self) -> bool {
        const LEGAL: [u8; 9] = [0x02, 0x22, 0x12, 0x04, 0x14, 0x10, 0x30, 0x11, 0x31];
        let meets = |flags: u8| flags & self.set & 0x3f == self.set & 0x3f && flags & self.clear == 0;
        self.set & self.clear == 0 && LEGAL.iter().any(|flags| meets(*flags) || meets(flags | 0x08))
    }
}

/// A condition on a TCP option with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionMatch<T> {
    /// The option is not there.
    Absent,
    /// It is there, with a value in this range.
    Within(RangeInclusive<T>),
}

/// A condition on the payload: `payload[offset + i] & mask[i] == value[i]` for every `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadMatch {
    /// Where it begins, octets.
    pub offset: u16,
    /// What is there, masked; 1 to 64 octets.
    pub value: Vec<u8>,
    /// As long as `value`.
    pub mask: Vec<u8>,
}

/// A tcpdump expression, not compiled yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// The expression.
    pub text: String,
    /// Where it stands in the configuration file.
    pub place: Place,
}

/// `rule.action`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Drop the segment; no further rule is asked.
    Drop,
    /// Let it pass; no further rule and no limit of `[filters]` is asked.
    Pass,
    /// Drop what is over the limit; what is within goes on to the next rule.
    Limit(Limit),
}

impl Action {
    /// Whether it limits connections: then its rule is asked when one opens, not when a segment arrives.
    #[must_use]
    pub fn is_on_connections(&self) -> bool {
        matches!(self, Action::Limit(limit) if limit.of == Measure::Connections)
    }
}

/// A rule's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How much.
    pub rate: Rate,
    /// Of what. Default packets.
    pub of: Measure,
    /// For whom. Default each source address.
    pub per: Per,
}

/// `rule.of`: what a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Packets.
    Packets,
    /// Octets of IP packets.
    Bytes,
    /// Connections that open: clients that answered a cookie.
    Connections,
}

/// `rule.per`: what shares one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Each source address has its own.
    Source,
    /// Each source prefix has its own.
    Prefix {
        /// Prefix length for IPv4; default 24.
        v4: u8,
        /// Prefix length for IPv6; default 64.
        v6: u8,
    },
    /// Each service has its own.
    Service,
    /// All together.
    Global,
}

/// So much in a time, and so much at once. Written `"100/s"`, `"30/min burst 10"`, `"10MiB/s burst 20MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How much, at least 1: packets, connections or octets.
    pub amount: u64,
    /// In which time: a second, a minute or an hour.
    pub every: Duration,
    /// How much at once, at least 1. Default: what a second brings, or 1.
    pub burst: u64,
}

impl Rate {
    /// So much a second, and as much at once.
    #[must_use]
    pub const fn per_second(amount: u64) -> Rate {
        Rate { amount, every: Duration::from_secs(1), burst: amount }
    }
}

/// `[filters]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filters {
    /// Client sources that are dropped.
    pub deny: Vec<IpNet>,
    /// Client sources that pass even when `deny` covers them or a ban does. Without any `deny`, only these pass.
    pub allow: Vec<IpNet>,
    /// ICMP and ICMPv6 echo replies per second, per worker. Default 1,000.
    pub icmp_rate: u32,
    /// What one source is: an IPv4 address, or an IPv6 prefix of this length. Default 64.
    pub source_prefix_v6: u8,
    /// `shortest_prefix_v4` and `shortest_prefix_v6`: the shortest prefixes that lists and bans may have.
    pub shortest_prefix: Shortest,
    /// SYN-ACKs towards one prefix (IPv4 /24, IPv6 /48), per worker; none = no ceiling. Default 20,000 a second, 40,000 at once.
    pub syn_ack_ceiling: Option<Rate>,
    /// Sources and prefixes whose limits each worker remembers. Default 262,144, of 16 octets each.
    pub records: u32,
    /// `[filters.per_address]`: each address.
    pub per_address: SourceLimits,
    /// `[filters.per_subnet]`: each IPv4 /24, each IPv6 /64.
    pub per_subnet: SourceLimits,
    /// `[filters.per_site]`: each IPv6 /48.
    pub per_site: SourceLimits,
}

/// `[filters.per_address]`, `[filters.per_subnet]` and `[filters.per_site]`; none = no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceLimits {
    /// Opening SYNs.
    pub syns: Option<Rate>,
    /// ACKs that belong to no connection.
    pub flowless_acks: Option<Rate>,
    /// Connections that open.
    pub connections: Option<Rate>,
    /// TCP packets of any kind.
    pub packets: Option<Rate>,
    /// Octets of IP packets.
    pub bytes: Option<Rate>,
}

impl SourceLimits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == SourceLimits::default()
    }
}

/// `[bans]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bans {
    /// A list of bans, read again when it changes.
    pub file: Option<PathBuf>,
    /// What becomes of the bans when the file cannot be used. Default `keep-last`.
    pub on_error: OnError,
    /// The shortest prefixes that bans may have.
    pub shortest: Shortest,
    /// Bans that each worker has room for. Default 1,000,000.
    pub capacity: u32,
}

/// `[sample]`: which dropped packets are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The capture file (pcapng).
    pub file: PathBuf,
    /// How many, per worker. Default 100 a second.
    pub rate: Rate,
    /// Octets kept of each. Default 256; 64 to 1,600.
    pub snap: u16,
    /// Largest file, octets; a full one is renamed to `FILE.1`, in place of the one before. Default 64 MiB.
    pub max_size: u64,
}

/// `[cookies]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookies {
    /// 32 octets as 64 hex digits, shared by several appliances; absent = from the OS.
    pub seed_file: Option<PathBuf>,
    /// Length of a key's epoch. Default 64 s; a cookie is good for one to two of them.
    pub epoch: Duration,
}

/// `[peace]`: what is done only while little comes. All of it holds for each worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peace {
    /// Answered SYNs up to which there is peace. Default 2,000 a second, 8,000 at once.
    pub syns: Rate,
    /// Segments of no connection up to which there is. Default 1,000 a second, 2,000 at once.
    pub flowless: Rate,
    /// SYN-ACKs sent again towards one prefix (IPv4 /24, IPv6 /48), a tenth of it towards an address that nobody has proved; none = never.
    /// Default 100 a second.
    pub repeats: Option<Rate>,
    /// RSTs in answer to segments of no connection towards one prefix; none = never. Default 100 a second.
    pub resets: Option<Rate>,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Where Prometheus scrapes, on the host's own network. Default `127.0.0.1:9150`.
    pub listen: SocketAddr,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Default `info`.
    pub level: Level,
    /// Where ended connections go. Default stdout.
    pub connections: ConnectionLog,
}

/// `log.level`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Faults that end something.
    Error,
    /// Faults that do not.
    Warn,
    /// Start-up, shut-down, changes of state.
    Info,
    /// For operators in search of a fault.
    Debug,
    /// For developers.
    Trace,
}

/// `log.connections`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionLog {
    /// One JSON line per ended connection to standard output.
    Stdout,
    /// The same, appended to a file.
    File(PathBuf),
    /// None.
    Off,
}

impl Default for Runtime {
    fn default() -> Runtime {
        Runtime {
            cores: vec![1],
            control_core: 0,
            hugepages: Hugepages::Auto,
            dpdk_args: String::new(),
            drain: Duration::from_secs(5),
            mbufs: 65_535,
            rx_descriptors: 1_024,
            tx_descriptors: 1_024,
            idle: Idle::Spin,
            state: PathBuf::from("/var/lib/sluice"),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(5),
            client_idle: Some(Duration::from_secs(300)),
            upstream_idle: Some(Duration::from_secs(300)),
            half_closed: Some(Duration::from_secs(300)),
            first_data: Duration::ZERO,
            unacknowledged: Duration::from_secs(60),
        }
    }
}

impl Default for Promise {
    fn default() -> Promise {
        Promise { mss: None, window_scale: None, sack: None, timestamps: None, probe: Duration::from_secs(10) }
    }
}

impl Limits {
    /// Those of a service that names none.
    #[must_use]
    pub fn of(mode: Mode) -> Limits {
        let connections = if mode == Mode::Splice { 100_000 } else { 10_000 };
        Limits { connections, connections_per_source: 0, share: 10 }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::of(Mode::Terminate)
    }
}

impl Default for Filters {
    fn default() -> Filters {
        Filters {
            deny: Vec::new(),
            allow: Vec::new(),
            icmp_rate: 1_000,
            source_prefix_v6: 64,
            shortest_prefix: Shortest::default(),
            syn_ack_ceiling: Some(Rate { burst: 40_000, ..Rate::per_second(20_000) }),
            records: 262_144,
            per_address: SourceLimits::default(),
            per_subnet: SourceLimits::default(),
            per_site: SourceLimits::default(),
        }
    }
}

impl Default for Cookies {
    fn default() -> Cookies {
        Cookies { seed_file: None, epoch: Duration::from_secs(64) }
    }
}

impl Default for Peace {
    fn default() -> Peace {
        Peace {
            syns: Rate { burst: 8_000, ..Rate::per_second(2_000) },
            flowless: Rate { burst: 2_000, ..Rate::per_second(1_000) },
            repeats: Some(Rate::per_second(100)),
            resets: Some(Rate::per_second(100)),
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { level: Level::Info, connections: ConnectionLog::Stdout }
    }
}
