//! An appliance for tests: counters and records that the test sets itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_config::{
    Balance, Config, Congestion, Connect, ConnectionLog, Cookies, Filters, Hugepages, Idle, Level, Limits, Log, Mode,
    Port, ProxyProtocol, Runtime, Service, Timeouts, Upstream,
};
use sluice_dataplane::counters::WorkerCounters;
use sluice_dataplane::{PoolUse, PortStats};
use sluice_filters::units::{Micros, ServiceId, WorkerId};
use sluice_tcpstack::record::{EndCause, SessionRecord};

use crate::Source;

/// 2026-01-02T03:04:05Z, the fake workers' time zero.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_767_323_045);

#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) workers: Vec<Arc<WorkerCounters>>,
    pub(crate) records: Mutex<VecDeque<SessionRecord>>,
    pub(crate) missed: u64,
}

impl Fake {
    pub(crate) fn new(config: &Config) -> Fake {
        let workers = config.runtime.cores.iter().map(|_| Arc::new(WorkerCounters::new(config))).collect();
        Fake { workers, records: Mutex::default(), missed: 0 }
    }

    pub(crate) fn end(&self, record: SessionRecord) {
        self.records.lock().unwrap().push_back(record);
    }
}

impl Source for Fake {
    fn workers(&self) -> &[Arc<WorkerCounters>] {
        &self.workers
    }

    fn next_record(&self) -> Option<SessionRecord> {
        self.records.lock().unwrap().pop_front()
    }

    fn records_waiting(&self) -> usize {
        self.records.lock().unwrap().len()
    }

    fn pool(&self) -> PoolUse {
        PoolUse { in_use: 2_048, capacity: 65_535 }
    }

    fn port_stats(&self, port: usize) -> PortStats {
        PortStats { rx_missed: self.missed + port as u64, rx_errors: 2, tx_errors: 3, rx_no_mbuf: 4 }
    }

    fn wall_clock(&self, at: Micros) -> SystemTime {
        UNIX_EPOCH + EPOCH + Duration::from_micros(at.0)
    }
}

/// Two workers, ports `wan` and `lan`, services `trading` (two upstreams) and `mail`; no metrics, no connection log.
pub(crate) fn config() -> Config {
    Config {
        runtime: Runtime {
            cores: vec![1, 2],
            control_core: 0,
            hugepages: Hugepages::Off,
            dpdk_args: String::new(),
            drain: Duration::from_secs(5),
            mbufs: 65_535,
            rx_descriptors: 1_024,
            tx_descriptors: 1_024,
            idle: Idle::Sleep,
        },
        ports: vec![port("wan"), port("lan")],
        routes: Vec::new(),
        services: vec![service("trading", &["10.0.0.5:443", "[2001:db8::5]:443"]), service("mail", &["10.0.0.6:25"])],
        filters: Filters::default(),
        cookies: Cookies { seed_file: None, epoch: Duration::from_secs(64) },
        metrics: None,
        log: Log { level: Level::Info, connections: ConnectionLog::Off },
    }
}

fn port(name: &str) -> Port {
    Port {
        name: name.into(),
        device: "net_null0".into(),
        args: String::new(),
        addresses: Vec::new(),
        gateways: Vec::new(),
        vlan: 0,
        mtu: 1_500,
        promiscuous: false,
    }
}

fn service(name: &str, upstreams: &[&str]) -> Service {
    Service {
        name: name.into(),
        listen: Vec::new(),
        mode: Mode::Terminate,
        proxy_protocol: ProxyProtocol::V2,
        connect: Connect::OnAccept,
        balance: Balance::RoundRobin,
        source: Vec::new(),
        congestion: Congestion::Reno,
        upstream_congestion: Congestion::None,
        buffer: 65_535,
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            client_idle: Duration::from_secs(300),
            upstream_idle: Duration::from_secs(300),
            half_closed: Duration::from_secs(30),
            first_data: Duration::ZERO,
            unacknowledged: Duration::from_secs(60),
        },
        limits: Limits { connections: 100_000, connections_per_source: 0 },
        upstreams: upstreams.iter().map(|at| Upstream { address: at.parse().unwrap(), weight: 1 }).collect(),
    }
}

/// A connection of 2.5 s to `trading` that the client reset.
pub(crate) fn record() -> SessionRecord {
    SessionRecord {
        worker: WorkerId(1),
        service: ServiceId(0),
        upstream: Some(0),
        client: "203.0.113.7:51000".parse().unwrap(),
        listen: "198.51.100.10:443".parse().unwrap(),
        source: Some("10.0.0.2:40001".parse().unwrap()),
        target: Some("10.0.0.5:443".parse().unwrap()),
        opened: Micros(1_000_250),
        connected: Some(Micros(1_001_000)),
        ended: Micros(3_500_250),
        bytes_to_upstream: 517,
        bytes_to_client: 90_210,
        cause: EndCause::ClientReset,
    }
}
