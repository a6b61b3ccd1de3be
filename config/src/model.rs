//! The validated configuration: what the rest of sluice is handed. Every value here has passed [`crate::load`]'s checks,
//! so addresses, names and numbers may be used without asking again.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

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
    /// `[filters]`
    pub filters: Filters,
    /// `[cookies]`
    pub cookies: Cookies,
    /// `proxy_keys.file`: the keys that sign PROXY headers; there when a service authenticates.
    pub proxy_keys: Option<PathBuf>,
    /// `[metrics]`; absent = no exporter.
    pub metrics: Option<Metrics>,
    /// `[log]`
    pub log: Log,
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
    /// `[service.limits]`
    pub limits: Limits,
    /// `[service.promise]`
    pub promise: Promise,
    /// `[[service.upstream]]`, at least one.
    pub upstreams: Vec<Upstream>,
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

/// `[service.timeouts]`; zero = off for `first_data` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// One dial. Default 5 s.
    pub connect: Duration,
    /// No segment from the client. Default 5 min.
    pub client_idle: Duration,
    /// No segment from the upstream. Default 5 min.
    pub upstream_idle: Duration,
    /// One direction closed and nothing moving in the other. Default 30 s.
    pub half_closed: Duration,
    /// A client that never speaks. Default 0 = off.
    pub first_data: Duration,
    /// Sent data that is never acknowledged (RFC 5482's user timeout). Default 60 s.
    pub unacknowledged: Duration,
}

/// `[service.limits]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, all workers together. Default 100,000.
    pub connections: u32,
    /// Connections at once from one source address; 0 = no limit.
    pub connections_per_source: u32,
}

/// `[service.promise]`: what SYN-ACKs of a spliced service promise in its upstreams' name. What is not pinned is learned from them.
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
    /// How often each upstream is asked for what it accepts. Default 10 s; zero = only by the connections themselves.
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

/// `[filters]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filters {
    /// Client sources that are dropped.
    pub deny: Vec<IpNet>,
    /// Client sources that pass even when `deny` covers them. Without any `deny`, only these pass.
    pub allow: Vec<IpNet>,
    /// ICMP and ICMPv6 echo replies per second, per worker. Default 1,000.
    pub icmp_rate: u32,
}

/// `[cookies]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookies {
    /// 32 octets as 64 hex digits, shared by several appliances; absent = from the OS.
    pub seed_file: Option<PathBuf>,
    /// Length of a key's epoch. Default 64 s; a cookie is good for one to two of them.
    pub epoch: Duration,
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
        }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(5),
            client_idle: Duration::from_secs(300),
            upstream_idle: Duration::from_secs(300),
            half_closed: Duration::from_secs(30),
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

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: 100_000, connections_per_source: 0 }
    }
}

impl Default for Filters {
    fn default() -> Filters {
        Filters { deny: Vec::new(), allow: Vec::new(), icmp_rate: 1_000 }
    }
}

impl Default for Cookies {
    fn default() -> Cookies {
        Cookies { seed_file: None, epoch: Duration::from_secs(64) }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { level: Level::Info, connections: ConnectionLog::Stdout }
    }
}
