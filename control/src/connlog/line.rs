//! The shape of a connection's line. docs/operations.md explains it to those who parse it; the golden test holds it.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use sluice_config::Config;
use sluice_filters::units::Micros;
use sluice_tcpstack::record::SessionRecord;

/// One ended connection as it is written. Fields appear in this order; absent ones are `null`.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    #[serde(serialize_with = "rfc3339")]
    opened: SystemTime,
    #[serde(serialize_with = "rfc3339")]
    ended: SystemTime,
    service: &'a str,
    worker: u8,
    client: SocketAddr,
    via: Option<SocketAddr>,
    listen: SocketAddr,
    source: Option<SocketAddr>,
    upstream: Option<SocketAddr>,
    bytes_to_upstream: u64,
    bytes_to_client: u64,
    connect_ms: Option<f64>,
    duration_ms: f64,
    cause: &'static str,
    blame: &'static str,
}

impl<'a> Line<'a> {
    pub(crate) fn new(record: &SessionRecord, config: &'a Config, clock: impl Fn(Micros) -> SystemTime) -> Line<'a> {
        let after_opened = |at: Micros| at.since(record.opened).as_micros() as f64 / 1e3;
        // The clock is asked once: it may be set at any moment.
        let opened = clock(record.opened);
        Line {
            opened,
            ended: opened + record.ended.since(record.opened),
            service: config.services.get(usize::from(record.service.0)).map_or("", |service| &service.name),
            worker: record.worker.0,
            client: record.client,
            via: record.via,
            listen: record.listen,
            source: record.source,
            upstream: record.target,
            bytes_to_upstream: record.bytes_to_upstream,
            bytes_to_client: record.bytes_to_client,
            connect_ms: record.connected.map(after_opened),
            duration_ms: after_opened(record.ended),
            cause: record.cause.as_str(),
            blame: record.cause.blame().as_str(),
        }
    }
}

/// UTC with microseconds. A clock set before 1970 is shown as 1970, which the format can express.
fn rfc3339<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_micros((*at).max(UNIX_EPOCH)))
}
