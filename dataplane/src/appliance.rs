//! The whole data plane: ports, workers and what they share, from start to drained.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use sluice_config::{Config, Idle};
use sluice_filters::engine::{Engine, Plan as Filters};
use sluice_filters::gate::Gate;
use sluice_filters::units::{Micros, WorkerId};
use sluice_tcpstack::cookie::Jar;
use sluice_tcpstack::proxy::KeyRing;
use sluice_tcpstack::record::SessionRecord;
use sluice_tcpstack::stack::{Setup, Shared, Stack};

use crate::clock::Clock;
use crate::counters::WorkerCounters;
use crate::dpdk::{PoolMonitor, PortMonitor, PortStats, WorkerQueues};
use crate::egress::{self, Egress};
use crate::error::StartError;
use crate::mailbox::Mailboxes;
use crate::net::Net;
use crate::orders::Orders;
use crate::runtime::{Runtime, Signal};
use crate::sample::{self, DroppedPacket, Sampler, Samples};
use crate::steer::Steer;
use crate::worker::{self, Stage, Worker};

/// Ended connections that may wait for the connection log.
const RECORDS: usize = 1 << 16;
/// How often the control thread looks whether the system's clock was set.
const CLOCK_LOOK: Duration = Duration::from_millis(200);
/// How often the drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// How long the resets at the end of a drain may take to leave.
const RESET_TIME: Duration = Duration::from_secs(1);

/// DPDK with its ports up and its workers ready to run.
#[derive(Debug)]
pub struct Appliance {
    runtime: Runtime,
    config: Arc<Config>,
    view: View,
    stage: Arc<Stage>,
    drained: Vec<Arc<AtomicBool>>,
}

/// A port, for the start-up lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSummary {
    /// Name in the configuration.
    pub name: String,
    /// Device in the configuration.
    pub device: String,
    /// DPDK driver.
    pub driver: String,
    /// MAC address.
    pub mac: [u8; 6],
    /// Receive queues in use.
    pub queues: u16,
    /// Largest IP packet.
    pub mtu: u16,
    /// Our addresses, as text.
    pub addresses: String,
}

/// Use of the packet pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Frames held by devices and workers.
    pub in_use: usize,
    /// All frames.
    pub capacity: usize,
}

/// What the control plane may look at while the workers run. Cheap to clone.
#[derive(Clone, Debug)]
pub struct View {
    workers: Arc<[Arc<WorkerCounters>]>,
    shared: Arc<Shared>,
    pools: Arc<[PoolMonitor]>,
    ports: Arc<[PortMonitor]>,
    orders: Orders,
    samples: Samples,
    clock: Clock,
}

impl View {
    /// The workers' counters, in `runtime.cores`' order.
    #[must_use]
    pub fn workers(&self) -> &[Arc<WorkerCounters>] {
        &self.workers
    }

    /// The next ended connection.
    #[must_use]
    pub fn next_record(&self) -> Option<SessionRecord> {
        self.shared.records.pop()
    }

    /// Ended connections waiting.
    #[must_use]
    pub fn records_waiting(&self) -> usize {
        self.shared.records.len()
    }

    /// The next dropped packet of the sample.
    #[must_use]
    pub fn next_sample(&self) -> Option<DroppedPacket> {
        self.samples.pop()
    }

    /// The way to tell workers of bans and sets.
    #[must_use]
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Frames of all packet pools together.
    #[must_use]
    pub fn pool(&self) -> PoolUse {
        self.pools.iter().filter_map(PoolMonitor::usage).fold(PoolUse::default(), |sum, pool| PoolUse {
            in_use: sum.in_use + pool.in_use,
            capacity: sum.capacity + pool.capacity,
        })
    }

    /// A port's device counters; zeroes once the appliance has stopped.
    #[must_use]
    pub fn port_stats(&self, port: usize) -> PortStats {
        self.ports.get(port).and_then(PortMonitor::stats).unwrap_or_default()
    }

    /// A moment of the workers' clock as wall-clock time.
    #[must_use]
    pub fn wall_clock(&self, at: Micros) -> SystemTime {
        self.clock.wall_clock(at)
    }

    /// How often the system's clock was set since the start.
    #[must_use]
    pub fn clock_steps(&self) -> u64 {
        self.clock.steps()
    }
}

impl Appliance {
    /// Starts DPDK and the ports of `config`, and prepares its workers. `filters` are its rules and sets, compiled, `seed` is the SYN
    /// cookies', `keys` sign PROXY headers.
    ///
    /// # Errors
    /// Whatever keeps devices, memory or threads from starting.
    pub fn build(
        config: Arc<Config>,
        filters: Filters,
        seed: [u8; 32],
        keys: Arc<KeyRing>,
    ) -> Result<Appliance, StartError> {
        let mut runtime = Runtime::build(&config)?;
        let mut entropy = [0; 48 * 2 + 16];
        getrandom::fill(&mut entropy)
            .map_err(|error| StartError::Run { reason: format!("no random octets: {error}") })?;
        let clock = Clock::start();
        let count = config.runtime.cores.len();
        let workers: Arc<[Arc<WorkerCounters>]> = (0..count).map(|_| Arc::new(WorkerCounters::new(&config))).collect();
        let shared = Arc::new(Shared::new(&config, [word(&entropy, 0), word(&entropy, 1)], RECORDS, keys));
        let macs: Vec<[u8; 6]> = runtime.ports().iter().map(|port| port.mac).collect();
        let spreads = |port| runtime.rss(port).filter(|rss| rss.hash_types.tcp4 && rss.hash_types.tcp6).cloned();
        let rss = (0..config.ports.len()).map(spreads).collect();
        let steer = Arc::new(Steer::new(u8::try_from(count).unwrap_or(u8::MAX), rss));
        let mailboxes = Arc::new(Mailboxes::new(count));
        let filters = Arc::new(filters);
        let orders = Orders::new(count, filters.clone(), clock.clone());
        let samples = sample::queue(&config);
        let stage = Arc::new(Stage::default());
        let drained: Vec<Arc<AtomicBool>> = (0..count).map(|_| Arc::default()).collect();
        let tx_queues: Vec<u16> = runtime.ports().iter().map(|port| port.tx_queues).collect();

        for (index, counters) in workers.iter().enumerate() {
            let id = WorkerId(u8::try_from(index).unwrap_or(u8::MAX));
            let plan = Plan {
                id,
                clock: clock.clone(),
                config: config.clone(),
                seed,
                entropy: worker_entropy(&entropy, id),
                counters: counters.clone(),
                shared: shared.clone(),
                macs: macs.clone(),
                senders: tx_queues
                    .iter()
                    .map(|queues| WorkerId(id.0 % u8::try_from(*queues).unwrap_or(1).max(1)))
                    .collect(),
                steer: steer.clone(),
                mailboxes: mailboxes.clone(),
                filters: filters.clone(),
                filters_secret: [word(&entropy, 12), word(&entropy, 13)],
                orders: orders.clone(),
                samples: samples.clone(),
                stage: stage.clone(),
                drained: drained[index].clone(),
            };
            runtime.install(id, move |queues| plan.start(queues))?;
        }
        let view = View {
            workers,
            shared,
            pools: runtime.pool_monitors().into(),
            ports: runtime.port_monitors().into(),
            orders,
            samples,
            clock,
        };
        Ok(Appliance { runtime, config, view, stage, drained })
    }

    /// The ports, for the start-up lines.
    #[must_use]
    pub fn ports(&self) -> Vec<PortSummary> {
        let addresses = |port: &sluice_config::Port| {
            let text = port.addresses.iter().map(|a| format!("{}/{}", a.address, a.network.prefix_len()));
            text.collect::<Vec<_>>().join(", ")
        };
        let summary = |(info, port): (&crate::dpdk::PortInfo, &sluice_config::Port)| PortSummary {
            name: info.name.clone(),
            device: info.device.clone(),
            driver: info.driver.clone(),
            mac: info.mac,
            queues: info.rx_queues,
            mtu: info.mtu,
            addresses: addresses(port),
        };
        self.runtime.ports().iter().zip(&self.config.ports).map(summary).collect()
    }

    /// A view for the control plane.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Runs until SIGINT or SIGTERM, then drains: nobody new is let in, connections get `runtime.drain` to finish, what is left is
    /// reset. A second signal resets it at once, and a third ends without. SIGHUP is taken and ignored.
    ///
    /// # Errors
    /// When the workers could not be started.
    pub fn run(self) -> Result<(), StartError> {
        let Appliance { mut runtime, config, view, stage, drained } = self;
        let stopper = runtime.stopper();
        let clock = view.clock;
        runtime.every(CLOCK_LOOK, move || {
            if let Some(micros) = clock.follow_system() {
                let seconds = micros as f64 / 1e6;
                tracing::warn!(seconds, "the system's clock was set by so much; wall times follow it from now on");
            }
        })?;
        let (signals, hurry) = (AtomicU8::new(0), Arc::new(AtomicBool::new(false)));
        runtime.run(move |signal| match signal {
            Signal::Hangup => {
                tracing::info!("SIGHUP: this version reads its configuration at start only");
                false
            }
            Signal::Interrupt | Signal::Terminate => {
                match signals.fetch_add(1, Ordering::Relaxed) {
                    0 => {}
                    1 => {
                        tracing::warn!("second signal: what is open is reset now");
                        hurry.store(true, Ordering::Release);
                        return false;
                    }
                    _ => {
                        tracing::warn!("third signal: ending at once");
                        return true;
                    }
                }
                tracing::info!(drain = ?config.runtime.drain, "draining");
                let (stage, drained, hurry) = (stage.clone(), drained.clone(), hurry.clone());
                let leaving = Leaving { stage, drained, limit: config.runtime.drain, hurry };
                let stopper = stopper.clone();
                let spawned = thread::Builder::new().name("drain".into()).spawn(move || {
                    leaving.wait();
                    stopper.stop();
                });
                if let Err(error) = &spawned {
                    tracing::error!(%error, "no thread for the drain: ending at once");
                }
                spawned.is_err()
            }
        })
    }
}

/// How the appliance takes its leave.
struct Leaving {
    stage: Arc<Stage>,
    drained: Vec<Arc<AtomicBool>>,
    /// How long connections may finish.
    limit: Duration,
    /// Somebody does not want to wait for that.
    hurry: Arc<AtomicBool>,
}

impl Leaving {
    /// Drains, then resets.
    fn wait(&self) {
        self.stage.drain();
        self.wait_for(self.limit, || self.hurry.load(Ordering::Acquire));
        if !self.all() {
            self.stage.reset();
            self.wait_for(RESET_TIME, || false);
        }
        // The last frames are staged, and leave with the next turns.
        thread::sleep(DRAIN_LOOK);
    }

    fn all(&self) -> bool {
        self.drained.iter().all(|worker| worker.load(Ordering::Acquire))
    }

    fn wait_for(&self, limit: Duration, enough: impl Fn() -> bool) {
        let until = Instant::now() + limit;
        while !self.all() && !enough() && Instant::now() < until {
            thread::sleep(DRAIN_LOOK);
        }
    }
}

/// What one worker's thread needs to make its worker.
struct Plan {
    id: WorkerId,
    clock: Clock,
    config: Arc<Config>,
    seed: [u8; 32],
    entropy: [u8; 48],
    counters: Arc<WorkerCounters>,
    shared: Arc<Shared>,
    macs: Vec<[u8; 6]>,
    senders: Vec<WorkerId>,
    steer: Arc<Steer>,
    mailboxes: Arc<Mailboxes>,
    filters: Arc<Filters>,
    filters_secret: [u64; 2],
    orders: Orders,
    samples: Samples,
    stage: Arc<Stage>,
    drained: Arc<AtomicBool>,
}

impl Plan {
    fn start(self, queues: WorkerQueues) -> Worker {
        let Plan {
            id,
            clock,
            config,
            seed,
            entropy,
            counters,
            shared,
            macs,
            senders,
            steer,
            mailboxes,
            filters,
            filters_secret,
            orders,
            samples,
            stage,
            drained,
        } = self;
        let now = clock.now();
        let (rx, tx) = queues.ports.into_iter().map(|port| (port.rx, port.tx)).unzip();
        let mut net = Net::new(&config, &macs);
        if id == WorkerId(0) {
            net.announce(now);
        }
        let gate = Gate::new(&config, net.link_locals());
        let egress = Egress::new(egress::Parts {
            worker: id,
            net,
            pool: queues.pool,
            queues: tx,
            senders,
            steer: steer.clone(),
            mailboxes: mailboxes.clone(),
            counters: counters.clone(),
        });
        let stack = Stack::new(Setup {
            filters: Engine::new(filters, filters_secret, counters.filters.clone()),
            jar: Jar::new(seed, config.cookies.epoch),
            config: config.clone(),
            worker: id,
            counters: counters.stack.clone(),
            shared,
            entropy,
            mtus: config.ports.iter().map(|port| port.mtu).collect(),
            now,
        });
        Worker::new(worker::Parts {
            id,
            clock,
            rx,
            gate,
            stack,
            egress,
            steer,
            mailboxes,
            orders,
            sampler: config.sample.as_ref().map(|sample| Sampler::new(sample, samples)),
            counters,
            stage,
            drained,
            nap: config.runtime.idle == Idle::Sleep,
        })
    }
}

fn word(octets: &[u8], index: usize) -> u64 {
    octets.chunks_exact(8).nth(index).and_then(|chunk| chunk.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// A worker's secret octets: the first 16, the flow table's, are the same for all, since owners are computed with them
/// (`steer`); the rest differ.
fn worker_entropy(entropy: &[u8], id: WorkerId) -> [u8; 48] {
    let mut own = [0; 48];
    for (to, from) in own.iter_mut().zip(entropy.iter().skip(16)) {
        *to = *from;
    }
    let purpose = [word(entropy, 10), word(entropy, 11)];
    for (chunk, index) in own.chunks_exact_mut(8).zip(0_u64..).skip(2) {
        use std::hash::Hasher;
        let mut sip = siphasher::sip::SipHasher24::new_with_keys(purpose[0], purpose[1]);
        sip.write_u8(id.0);
        sip.write_u64(index);
        chunk.copy_from_slice(&sip.finish().to_le_bytes());
    }
    own
}
