//! Metrics: the workers' counters as Prometheus text.
//!
//! Workers count into plain memory of their own ([`sluice_dataplane::counters`]). A scrape copies those values into a
//! `metrics` recorder and renders it, so a scrape shows the moment it was made and costs the workers nothing but
//! shared cache lines. Every series exists from the first scrape, at zero: label values come from the configuration and
//! from closed enums, never from packets.

mod families;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use metrics::{Key, Label, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use sluice_config::Config;
use sluice_dataplane::counters::{PortCounters, TurnTimes, WorkerCounters};
use sluice_dataplane::{PoolUse, PortStats};
use sluice_filters::DropReason;
use sluice_filters::counter::Counter;
use sluice_filters::engine::RuleCounters;
use sluice_filters::units::Micros;
use sluice_tcpstack::counters::{
    AckResult, DialFailure, Missing, OfferGauges, PathSource, ProbeResult, ServiceCounters, StackCounters, Withheld,
};
use sluice_tcpstack::record::EndCause;

pub use families::{ALL, Family, Kind};

use crate::Source;
use crate::connlog::LogCounters;
use crate::filters::bans::BanGauges;
use crate::filters::{SampleCounters, SetGauges};
use families as f;

/// The labels of `sluice_build_info`.
#[derive(Clone, Debug)]
pub struct BuildInfo {
    /// sluice's version.
    pub version: String,
    /// DPDK's version.
    pub dpdk: String,
}

/// What one scrape reads.
struct Reading<'a> {
    workers: &'a [Arc<WorkerCounters>],
    ports: Vec<PortStats>,
    pool: PoolUse,
    records_waiting: usize,
    source: &'a dyn Source,
    log: &'a LogCounters,
    side: &'a FilterSide,
}

/// What is counted of the filters off the hot path.
#[derive(Clone, Debug)]
pub(crate) struct FilterSide {
    pub(crate) sets: Arc<SetGauges>,
    /// Zeroed without `[bans]`.
    pub(crate) bans: Arc<BanGauges>,
    pub(crate) sample: Arc<SampleCounters>,
}

#[cfg(test)]
impl FilterSide {
    /// Zeroed counts for the sets of `config`.
    pub(crate) fn of(config: &Config) -> FilterSide {
        FilterSide { sets: Arc::new(SetGauges::new(config)), bans: Arc::default(), sample: Arc::default() }
    }
}

type Read<T> = Box<dyn Fn(&Reading<'_>) -> T + Send + Sync>;

/// Every series of this configuration, each with the way to read it.
pub(crate) struct Exporter {
    source: Arc<dyn Source>,
    log: Arc<LogCounters>,
    side: FilterSide,
    ports: usize,
    series: Series,
    handle: PrometheusHandle,
}

impl Exporter {
    pub(crate) fn new(
        config: &Config,
        source: Arc<dyn Source>,
        log: Arc<LogCounters>,
        side: FilterSide,
        build: BuildInfo,
    ) -> Exporter {
        let recorder = PrometheusBuilder::new().build_recorder();
        for family in ALL {
            let (name, help) = (family.name.into(), family.help.into());
            match family.kind {
                Kind::Counter => recorder.describe_counter(name, None, help),
                Kind::Gauge => recorder.describe_gauge(name, None, help),
                // Written by hand: the recorder wants to see each value.
                Kind::Histogram => {}
            }
        }
        let handle = recorder.handle();
        let mut series = Series { recorder, counters: Vec::new(), gauges: Vec::new() };
        series.process(build);
        for (index, port) in config.ports.iter().enumerate() {
            series.port(index, &port.name, source.workers().len());
        }
        for index in 0..source.workers().len() {
            series.worker(index);
        }
        for (index, service) in config.services.iter().enumerate() {
            let upstreams: Vec<SocketAddr> = service.upstreams.iter().map(|upstream| upstream.address).collect();
            series.service(index, &service.name, &upstreams);
        }
        series.appliance();
        series.filters(config);
        series.connection_log();
        Exporter { source, log, side, ports: config.ports.len(), series, handle }
    }

    /// Copies every value and renders the text exposition format, version 0.0.4.
    pub(crate) fn render(&self) -> String {
        let reading = Reading {
            workers: self.source.workers(),
            ports: (0..self.ports).map(|port| self.source.port_stats(port)).collect(),
            pool: self.source.pool(),
            records_waiting: self.source.records_waiting(),
            source: &*self.source,
            log: &self.log,
            side: &self.side,
        };
        for (counter, read) in &self.series.counters {
            counter.absolute(read(&reading));
        }
        for (gauge, read) in &self.series.gauges {
            gauge.set(read(&reading));
        }
        let mut text = self.handle.render();
        write_turn_times(&mut text, reading.workers);
        text
    }
}

/// The workers' turns, as a histogram of the text exposition format.
fn write_turn_times(out: &mut String, workers: &[Arc<WorkerCounters>]) {
    let Family { name, help, .. } = f::WORKER_TURN_SECONDS;
    // Writing into a string does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
    for (worker, counters) in workers.iter().enumerate() {
        let TurnTimes { counts, sum } = &counters.turn_times;
        let mut so_far = 0;
        let bounds = TurnTimes::BOUNDS.iter().map(|micros| (*micros as f64 / 1e6).to_string());
        for (count, bound) in counts.iter().zip(bounds.chain(["+Inf".to_owned()])) {
            so_far += count.get();
            let _ = writeln!(out, "{name}_bucket{{worker=\"{worker}\",le=\"{bound}\"}} {so_far}");
        }
        let _ = writeln!(out, "{name}_sum{{worker=\"{worker}\"}} {}", sum.get() as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{{worker=\"{worker}\"}} {so_far}");
    }
}

/// The series under construction, then at work.
struct Series {
    recorder: PrometheusRecorder,
    counters: Vec<(metrics::Counter, Read<u64>)>,
    gauges: Vec<(metrics::Gauge, Read<f64>)>,
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), metrics::Level::INFO, Some(module_path!()));

impl Series {
    fn counter<const N: usize>(
        &mut self,
        family: &Family,
        values: [&str; N],
        read: impl Fn(&Reading<'_>) -> u64 + Send + Sync + 'static,
    ) {
        let counter = self.recorder.register_counter(&key(family, values), &METADATA);
        self.counters.push((counter, Box::new(read)));
    }

    fn gauge<const N: usize>(
        &mut self,
        family: &Family,
        values: [&str; N],
        read: impl Fn(&Reading<'_>) -> f64 + Send + Sync + 'static,
    ) {
        let gauge = self.recorder.register_gauge(&key(family, values), &METADATA);
        self.gauges.push((gauge, Box::new(read)));
    }

    fn process(&mut self, build: BuildInfo) {
        self.gauge(&f::BUILD_INFO, [&build.version, &build.dpdk], |_| 1.0);
        self.gauge(&f::START_TIME, [], |r| r.unix_seconds(Micros(0)));
        self.counter(&f::CLOCK_STEPS, [], |r| r.source.clock_steps());
    }

    fn port(&mut self, index: usize, name: &str, workers: usize) {
        type Field = fn(&PortCounters) -> &Counter;
        const PER_WORKER: [(Family, Field); 5] = [
            (f::PORT_RX_PACKETS, |port| &port.rx_packets),
            (f::PORT_RX_BYTES, |port| &port.rx_bytes),
            (f::PORT_TX_PACKETS, |port| &port.tx_packets),
            (f::PORT_TX_BYTES, |port| &port.tx_bytes),
            (f::PORT_TX_FULL, |port| &port.tx_full),
        ];
        for worker in 0..workers {
            for (family, field) in PER_WORKER {
                let label = worker.to_string();
                self.counter(&family, [name, &label], move |r| field(&r.workers[worker].ports[index]).get());
            }
        }
        self.counter(&f::PORT_MISSED, [name], move |r| r.ports[index].rx_missed);
        self.counter(&f::PORT_RX_ERRORS, [name], move |r| r.ports[index].rx_errors);
        self.counter(&f::PORT_RX_NO_BUFFER, [name], move |r| r.ports[index].rx_no_buffer);
        self.counter(&f::PORT_TX_ERRORS, [name], move |r| r.ports[index].tx_errors);
    }

    fn worker(&mut self, index: usize) {
        type Field = fn(&WorkerCounters) -> &Counter;
        const COUNTERS: [(Family, Field); 20] = [
            (f::BANS_REFUSED, |worker| &worker.filters.bans_refused),
            (f::LIMIT_DISPLACED, |worker| &worker.filters.records_displaced),
            (f::LIMIT_REFUSED, |worker| &worker.filters.records_refused),
            (f::LOCAL_REPLIES, |worker| &worker.local_replies),
            (f::SYN_COOKIES, |worker| &worker.stack.cookies_sent),
            (f::CHALLENGE_ACKS, |worker| &worker.stack.challenge_acks),
            (f::RESETS, |worker| &worker.stack.resets_sent),
            (f::UNANSWERED_DISPLACED, |worker| &worker.stack.unanswered_displaced),
            (f::REPEATS, |worker| &worker.stack.syn_acks_repeated),
            (f::REPEATS_WITHHELD, |worker| &worker.stack.repeats_withheld),
            (f::KEEP_ALIVES, |worker| &worker.stack.keep_alives),
            (f::STRANGERS_RESET, |worker| &worker.stack.strangers_reset),
            (f::ANSWERS_WITHHELD, |worker| &worker.stack.answers_withheld),
            (f::SOURCE_PORTS_REUSED, |worker| &worker.stack.ports_reused),
            (f::SOURCE_PORT_RESTS_CUT, |worker| &worker.stack.rests_cut_short),
            (f::WORKER_TURNS, |worker| &worker.turns),
            (f::WORKER_BUSY_TURNS, |worker| &worker.busy_turns),
            (f::HANDOVER_PACKETS, |worker| &worker.handed_over),
            (f::HANDOVER_FULL, |worker| &worker.handover_full),
            (f::POOL_EMPTY, |worker| &worker.pool_empty),
        ];
        const GAUGES: [(Family, Field); 12] = [
            (f::BANS, |worker| &worker.filters.bans),
            (f::LIMIT_RECORDS, |worker| &worker.filters.records),
            (f::PEACE, |worker| &worker.stack.peace),
            (f::UNANSWERED, |worker| &worker.stack.unanswered),
            (f::FLOW_ENTRIES, |worker| &worker.stack.flow_entries),
            (f::TIME_WAIT, |worker| &worker.stack.time_wait),
            (f::SOURCE_PORTS, |worker| &worker.stack.source_ports),
            (f::TIMERS, |worker| &worker.stack.timers),
            (f::BUFFER_BYTES, |worker| &worker.stack.buffer_bytes),
            (f::HELD_BYTES, |worker| &worker.stack.held_bytes),
            (f::NEIGHBORS, |worker| &worker.neighbors),
            (f::MAILBOX_OCCUPANCY, |worker| &worker.mailbox_occupancy),
        ];
        let label = index.to_string();
        for (family, field) in COUNTERS {
            self.counter(&family, [&label], move |r| field(&r.workers[index]).get());
        }
        for (family, field) in GAUGES {
            self.gauge(&family, [&label], move |r| field(&r.workers[index]).get() as f64);
        }
        self.gauge(&f::WORKER_BUSY_RATIO, [&label], move |r| r.workers[index].busy_ppm.get() as f64 / 1e6);
    }

    fn service(&mut self, index: usize, name: &str, upstreams: &[SocketAddr]) {
        let sum = move |r: &Reading<'_>, field: fn(&ServiceCounters) -> &Counter| {
            r.sum(|worker| field(&worker.stack.services[index]).get())
        };
        self.counter(&f::SERVICE_SYNS, [name], move |r| sum(r, |service| &service.syns));
        self.gauge(&f::UNDER_ATTACK, [name], move |r| sum(r, |service| &service.under_attack) as f64);
        self.counter(&f::SESSIONS_OPENED, [name], move |r| sum(r, |service| &service.opened));
        self.gauge(&f::SESSIONS_ACTIVE, [name], move |r| sum(r, |service| &service.active) as f64);
        for (at, cause) in EndCause::ALL.into_iter().enumerate() {
            self.counter(&f::SESSIONS_ENDED, [name, cause.as_str()], move |r| {
                r.sum(|worker| worker.stack.services[index].ended[at].get())
            });
        }
        self.counter(&f::SESSION_REFUSALS, [name, "connections"], move |r| sum(r, |service| &service.refused_limit));
        self.counter(&f::SESSION_REFUSALS, [name, "connections_per_source"], move |r| {
            sum(r, |service| &service.refused_source_limit)
        });
        self.counter(&f::SESSION_REFUSALS, [name, "share"], move |r| sum(r, |service| &service.refused_share));
        self.counter(&f::RELAYED_BYTES, [name, "to_upstream"], move |r| sum(r, |service| &service.bytes_to_upstream));
        self.counter(&f::RELAYED_BYTES, [name, "to_client"], move |r| sum(r, |service| &service.bytes_to_client));
        for (at, missing) in Missing::ALL.into_iter().enumerate() {
            self.counter(&f::SPLICE_FALLBACKS, [name, missing.as_str()], move |r| {
                r.sum(|worker| worker.stack.services[index].fallbacks[at].get())
            });
        }
        // All workers promise alike.
        let offer = move |r: &Reading<'_>, field: fn(&OfferGauges) -> &Counter| {
            r.workers.first().map_or(0.0, |worker| field(&worker.stack.services[index].offers).get() as f64)
        };
        self.gauge(&f::SYN_ACK_MSS, [name], move |r| offer(r, |offers| &offers.mss));
        self.gauge(&f::SYN_ACK_WINDOW, [name], move |r| offer(r, |offers| &offers.window));
        self.gauge(&f::SYN_ACK_WINDOW_SCALE, [name], move |r| offer(r, |offers| &offers.window_scale) - 1.0);
        self.gauge(&f::SYN_ACK_SACK, [name], move |r| offer(r, |offers| &offers.sack));
        self.gauge(&f::SYN_ACK_TIMESTAMPS, [name], move |r| offer(r, |offers| &offers.timestamps));
        for (upstream, address) in upstreams.iter().enumerate() {
            for (at, reason) in DialFailure::ALL.into_iter().enumerate() {
                let values = [name, &address.to_string(), reason.as_str()];
                self.counter(&f::DIAL_FAILURES, values, move |r| {
                    r.sum(|worker| worker.stack.services[index].dial_failures[upstream][at].get())
                });
            }
            for (at, result) in ProbeResult::ALL.into_iter().enumerate() {
                let values = [name, &address.to_string(), result.as_str()];
                self.counter(&f::PROBES, values, move |r| {
                    r.sum(|worker| worker.stack.services[index].probes[upstream][at].get())
                });
            }
            self.gauge(&f::UPSTREAM_SYN_COOKIES, [name, &address.to_string()], move |r| {
                // One worker sends the probes.
                r.workers.first().map_or(0.0, |worker| worker.stack.services[index].syn_cookies[upstream].get() as f64)
            });
        }
    }

    fn appliance(&mut self) {
        for (at, reason) in DropReason::ALL.into_iter().enumerate() {
            self.counter(&f::DROPPED, [reason.as_str()], move |r| r.sum(|worker| worker.drops[at].get()));
            self.counter(&f::DROPPED_BYTES, [reason.as_str()], move |r| r.sum(|w| w.dropped_bytes[at].get()));
        }
        for (at, result) in AckResult::ALL.into_iter().enumerate() {
            self.counter(&f::COOKIE_ACKS, [result.as_str()], move |r| r.stack(|stack| stack.cookie_acks[at].get()));
        }
        for (at, reason) in Withheld::ALL.into_iter().enumerate() {
            self.counter(&f::RESETS_WITHHELD, [reason.as_str()], move |r| {
                r.stack(|stack| stack.resets_withheld[at].get())
            });
        }
        for (at, source) in PathSource::ALL.into_iter().enumerate() {
            self.counter(&f::PATHS_NARROWED, [source.as_str()], move |r| {
                r.stack(|stack| stack.paths_narrowed[at].get())
            });
        }
        self.gauge(&f::POOL_IN_USE, [], |r| r.pool.in_use as f64);
        self.gauge(&f::POOL_CAPACITY, [], |r| r.pool.capacity as f64);
    }

    fn filters(&mut self, config: &Config) {
        for (index, rule) in config.rules.iter().enumerate() {
            let sum = move |r: &Reading<'_>, field: fn(&RuleCounters) -> &Counter| {
                r.sum(|worker| field(&worker.filters.rules[index]).get())
            };
            let (name, dry) = (rule.name.as_str(), if rule.dry_run { "true" } else { "false" });
            self.counter(&f::RULE_MATCHED_PACKETS, [name], move |r| sum(r, |rule| &rule.matched_packets));
            self.counter(&f::RULE_MATCHED_BYTES, [name], move |r| sum(r, |rule| &rule.matched_bytes));
            self.counter(&f::RULE_CUT_PACKETS, [name, dry], move |r| sum(r, |rule| &rule.cut_packets));
            self.counter(&f::RULE_CUT_BYTES, [name, dry], move |r| sum(r, |rule| &rule.cut_bytes));
            self.counter(&f::RULE_CUT_CLIENTS, [name], move |r| sum(r, |rule| &rule.clients));
        }
        for (index, set) in config.sets.iter().enumerate() {
            self.gauge(&f::SET_PREFIXES, [&set.name], move |r| r.side.sets.sets[index].prefixes.get() as f64);
            self.gauge(&f::SET_LOADED, [&set.name], move |r| match r.side.sets.sets[index].copied.get() {
                0 => r.unix_seconds(Micros(r.side.sets.sets[index].loaded.get())).trunc(),
                copied => copied as f64,
            });
            self.gauge(&f::SET_STALE, [&set.name], move |r| r.side.sets.sets[index].stale.get() as f64);
            self.gauge(&f::SET_SKIPPED, [&set.name], move |r| r.side.sets.sets[index].skipped.get() as f64);
            self.counter(&f::SET_FAILURES, [&set.name], move |r| r.side.sets.sets[index].failures.get());
        }
        self.counter(&f::BANS_REFUSED, ["file"], |r| r.side.bans.refused.get());
        self.gauge(&f::BANS_STALE, [], |r| r.side.bans.stale.get() as f64);
        self.gauge(&f::SETS_MEMORY, [], |r| r.side.sets.memory.get() as f64);
        self.counter(&f::SAMPLE_WRITTEN, [], |r| r.side.sample.written.get());
        self.counter(&f::SAMPLE_LOST, [], |r| r.side.sample.lost.get());
    }

    fn connection_log(&mut self) {
        self.counter(&f::CONNECTION_LOG_LINES, [], |r| r.log.written.get());
        self.counter(&f::CONNECTION_LOG_LOST, ["queue_full"], |r| r.stack(|stack| stack.records_lost.get()));
        self.counter(&f::CONNECTION_LOG_LOST, ["write_failed"], |r| r.log.lost.get());
        self.counter(&f::CONNECTION_LOG_ERRORS, [], |r| r.log.write_errors.get());
        self.gauge(&f::CONNECTION_LOG_WAITING, [], |r| r.records_waiting as f64 + r.log.waiting.get() as f64);
    }
}

impl Reading<'_> {
    fn sum(&self, field: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.workers.iter().map(|worker| field(worker)).sum()
    }

    /// A moment of the workers' clock, by the wall clock as it is now.
    fn unix_seconds(&self, at: Micros) -> f64 {
        self.source.wall_clock(at).duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }

    fn stack(&self, field: impl Fn(&StackCounters) -> u64) -> u64 {
        self.sum(|worker| field(&worker.stack))
    }
}

fn key<const N: usize>(family: &Family, values: [&str; N]) -> Key {
    debug_assert_eq!(family.labels.len(), N, "{}", family.name);
    let labels = family.labels.iter().zip(values);
    Key::from_parts(family.name, labels.map(|(name, value)| Label::new(*name, value.to_owned())).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
