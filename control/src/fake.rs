//! An appliance for tests: counters and records that the test sets itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_config::Config;
use sluice_dataplane::counters::WorkerCounters;
use sluice_dataplane::{Clock, DroppedPacket, PoolUse, PortStats};
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
    /// Begins at [`EPOCH`].
    pub(crate) clock: Clock,
}

impl Fake {
    pub(crate) fn new(config: &Config) -> Fake {
        let workers = config.runtime.cores.iter().map(|_| Arc::new(WorkerCounters::new(config))).collect();
        Fake { workers, records: Mutex::default(), missed: 0, clock: Clock::start_at(UNIX_EPOCH + EPOCH) }
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

    fn next_sample(&self) -> Option<DroppedPacket> {
        None
    }

    fn pool(&self) -> PoolUse {
        PoolUse { in_use: 2_048, capacity: 65_535 }
    }

    fn port_stats(&self, port: usize) -> PortStats {
        PortStats { rx_missed: self.missed + port as u64, ..PortStats::default() }
    }

    fn wall_clock(&self, at: Micros) -> SystemTime {
        self.clock.wall_clock(at)
    }

    fn clock_steps(&self) -> u64 {
        self.clock.steps()
    }
}

/// Two workers, ports `wan` and `lan`, services `trading` (two upstreams) and `mail`.
pub(crate) fn config() -> Config {
    let text = r#"
[runtime]
cores = [1, 2]
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24", "2001:db8::2/64"]
[[port]]
name = "lan"
device = "net_null1"
addresses = ["10.0.0.2/24"]
[[service]]
name = "trading"
listen = ["198.51.100.10:443"]
[[service.upstream]]
address = "10.0.0.5:443"
[[service.upstream]]
address = "[2001:db8::5]:443"
[[service]]
name = "mail"
listen = ["198.51.100.10:25"]
[[service.upstream]]
address = "10.0.0.6:25"
[[set]]
name = "strangers"
prefixes = ["192.0.2.0/24"]
[[rule]]
name = "strangers"
source = "@strangers"
action = "drop"
[[rule]]
name = "trial"
hop_limit = "1-9"
action = "drop"
dry_run = true
"#;
    sluice_config::parse("fake.toml", text).unwrap()
}

/// A connection of 2.5 s to `trading` that the client reset.
pub(crate) fn record() -> SessionRecord {
    SessionRecord {
        worker: WorkerId(1),
        service: ServiceId(0),
        upstream: Some(0),
        via: None,
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
