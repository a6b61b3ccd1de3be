//! The runtime: DPDK, ports, pools, and one worker thread per core, built on capsule. The only file that knows capsule.
//!
//! Life of an appliance: [`Runtime::build`] starts DPDK and the ports; [`Runtime::install`] gives each worker its work;
//! [`Runtime::run`] runs them until a signal says stop, then ends the workers on their own threads, stops and closes the
//! ports, frees the pools and ends DPDK, in this order.
//!
//! What capsule contributes: pools per NUMA node, port set-up, pinned threads with an executor each, signals. A worker is one
//! capsule pipeline that makes many turns per poll, so the executor costs nothing per packet. Queues are used through
//! [`crate::dpdk`], never through capsule's `PortQueue`.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use capsule::UnixSignal;
use capsule::batch::Pipeline;
use capsule::config::RuntimeConfig;
use serde_json::json;
use sluice_config::Config;
use sluice_filters::units::WorkerId;

use crate::dpdk::eal::{self, Lifetime, POOL_CACHE, Registered};
use crate::dpdk::port::Found;
use crate::dpdk::seat::{self, Seat};
use crate::dpdk::{PoolMonitor, PortInfo, PortMonitor, RssInfo, WorkerQueues, signal};
use crate::error::StartError;

/// Turns a worker makes before the executor looks for a reason to stop.
const TURNS_PER_POLL: usize = 64;

/// How often the control thread looks for held signals and requests to stop.
const CONTROL_TICK: Duration = Duration::from_millis(20);

/// The control thread's number in capsule's terms, see `capsule_ffi::eal::set_cpus`.
const CONTROL: usize = 0;

/// A worker's number in capsule's terms.
fn core_of(worker: usize) -> usize {
    worker.saturating_add(1)
}

/// A worker's work.
pub trait Turn {
    /// One turn: a bounded amount of work. Called again and again, without pause.
    fn turn(&mut self);

    /// The runtime stops: called once, on the worker's thread. All frames must be sent, freed or handed back by the end.
    fn finish(self);
}

/// A Unix signal the runtime hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP
    Hangup,
    /// SIGINT
    Interrupt,
    /// SIGTERM
    Terminate,
}

impl From<UnixSignal> for Signal {
    fn from(signal: UnixSignal) -> Signal {
        match signal {
            UnixSignal::SIGHUP => Signal::Hangup,
            UnixSignal::SIGINT => Signal::Interrupt,
            UnixSignal::SIGTERM => Signal::Terminate,
        }
    }
}

/// Stops a running runtime from any thread, without asking its signal handler.
#[derive(Clone, Debug, Default)]
pub struct Stopper(Arc<AtomicBool>);

impl Stopper {
    /// Makes [`Runtime::run`] stop the workers and return; at once, or as soon as it is called.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// DPDK with its ports started, and the workers' threads, which wait for their work.
pub struct Runtime {
    capsule: capsule::Runtime,
    /// Declared after `capsule`, so dropped after it: removes what DPDK's end leaves behind.
    _files: RemoveFiles,
    cores: Vec<u16>,
    devices: Vec<Found>,
    ports: Vec<PortInfo>,
    rss: Vec<Option<RssInfo>>,
    seats: Vec<Option<Seat>>,
    pools: Vec<PoolMonitor>,
    lifetime: Lifetime,
    stopper: Stopper,
    /// Workers may be running: nothing that they use may go.
    executing: bool,
}

/// Ends DPDK if nobody else did, and removes its files.
#[derive(Debug)]
struct RemoveFiles;

impl Drop for RemoveFiles {
    fn drop(&mut self) {
        eal::end();
    }
}

impl Runtime {
    /// Starts DPDK and the ports as configured. SIGHUP, SIGINT and SIGTERM are held from here on until [`Self::run`].
    ///
    /// # Errors
    /// Anything that keeps them from starting; then nothing stays behind but memory, and the process should exit.
    pub fn build(config: &Config) -> Result<Runtime, StartError> {
        signal::hold();
        eal::start(config)?;
        let files = RemoveFiles;
        let workers = u16::try_from(config.runtime.cores.len()).unwrap_or(u16::MAX);
        let devices: Vec<Found> =
            config.ports.iter().map(|port| Found::new(port, workers)).collect::<Result<_, StartError>>()?;
        check_mbufs(config, &devices)?;
        for device in &devices {
            capsule_ffi::port::set_profile(device.id, device.profile);
        }

        eal::forget_log();
        let setup = |reason: String| StartError::Setup { reason, log: eal::recent_log() };
        let cpus: Vec<u16> =
            [config.runtime.control_core].into_iter().chain(config.runtime.cores.iter().copied()).collect();
        capsule_ffi::eal::set_cpus(&cpus);
        let capsule_config: RuntimeConfig =
            serde_json::from_value(capsule_config(config)).map_err(|error| setup(error.to_string()))?;
        let capsule = capsule::Runtime::build(capsule_config).map_err(|error| setup(format!("{error:#}")))?;

        let lifetime = Lifetime::begin();
        let mut runtime = Runtime {
            capsule,
            _files: files,
            cores: config.runtime.cores.clone(),
            devices,
            ports: Vec::new(),
            rss: Vec::new(),
            seats: Vec::new(),
            pools: Vec::new(),
            lifetime,
            stopper: Stopper::default(),
            executing: false,
        };
        // capsule starts the ports when it runs; started here, they can be described before.
        for (device, port) in runtime.devices.iter().zip(&config.ports) {
            device.start(port)?;
            runtime.ports.push(device.describe(port)?);
            runtime.rss.push(device.rss());
        }
        let (seats, pools) = seat::assign(&runtime.cores, &runtime.ports, config.runtime.mbufs, &runtime.lifetime);
        runtime.seats = seats.into_iter().map(Some).collect();
        runtime.pools = pools;
        Ok(runtime)
    }

    /// The ports, in the configuration's order.
    #[must_use]
    pub fn ports(&self) -> &[PortInfo] {
        &self.ports
    }

    /// How a port's device spreads frames over the workers: receive queue `i` is worker `i`'s. `None` if it has one queue,
    /// or fills several by a rule that cannot be computed.
    #[must_use]
    pub fn rss(&self, port: usize) -> Option<&RssInfo> {
        self.rss.get(port)?.as_ref()
    }

    /// The ports' counters, for the control plane, in the configuration's order.
    #[must_use]
    pub fn port_monitors(&self) -> Vec<PortMonitor> {
        self.ports.iter().map(|port| PortMonitor::new(port.id, self.lifetime.clone())).collect()
    }

    /// The packet pools' usage, for the control plane; one pool per NUMA node in use.
    #[must_use]
    pub fn pool_monitors(&self) -> Vec<PoolMonitor> {
        self.pools.clone()
    }

    /// A handle to stop the runtime with.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Gives a worker its work: `make` is called on the worker's thread when the runtime runs.
    ///
    /// # Errors
    /// No such worker, or it has its work already.
    pub fn install<W, F>(&mut self, worker: WorkerId, make: F) -> Result<(), StartError>
    where
        W: Turn + 'static,
        F: FnOnce(WorkerQueues) -> W + Send + 'static,
    {
        let index = usize::from(worker.0);
        let seat = self.seats.get_mut(index).and_then(Option::take).ok_or(StartError::Worker(worker))?;
        // capsule wants the closure to be Sync, which a mutex makes of anything.
        let job = Mutex::new((seat, make));
        let start = move |_| {
            let (seat, make) = job.into_inner().unwrap_or_else(PoisonError::into_inner);
            WorkerPipeline::start(worker, seat, make)
        };
        self.capsule
            .add_pipeline_to_core(core_of(index), start)
            .map_err(|error| StartError::Run { reason: format!("{error:#}") })?;
        Ok(())
    }

    /// Has the control thread call `task` every `period` while the runtime runs. It must not wait for anything.
    ///
    /// # Errors
    /// capsule's refusal.
    pub fn every(&mut self, period: Duration, task: impl Fn() + Send + Sync + 'static) -> Result<(), StartError> {
        self.capsule
            .add_periodic_task_to_core(CONTROL, task, period)
            .map_err(|error| StartError::Run { reason: format!("{error:#}") })?;
        Ok(())
    }

    /// Runs the workers until `on_signal` answers a signal with true, or a [`Stopper`] is used; then ends everything.
    /// `on_signal` is called on the control thread, which is this one. To drain, answer false, and stop later.
    ///
    /// # Errors
    /// capsule's refusal. Workers may run then, and go on: ports, pools and DPDK stay for them, and the process should exit.
    pub fn run(mut self, on_signal: impl Fn(Signal) -> bool + 'static) -> Result<(), StartError> {
        let stopper = self.stopper.clone();
        self.capsule.set_on_signal(move |unix| {
            let received = Signal::from(unix);
            signal::delivered(received);
            stopper.is_stopped() || on_signal(received)
        });
        let stopper = self.stopper.clone();
        let tick = move || {
            signal::repeat_held();
            if stopper.is_stopped() {
                signal::terminate_self();
            }
        };
        self.every(CONTROL_TICK, tick)?;
        self.executing = true;
        let Err(error) = self.capsule.execute() else {
            self.executing = false;
            return Ok(());
        };
        self.lifetime.end();
        eal::remove_files();
        std::mem::forget(self);
        Err(StartError::Run { reason: format!("{error:#}") })
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if self.executing {
            // A panic came out of capsule, past workers that run on these ports and pools.
            std::process::abort();
        }
        // Monitors first, then the ports; capsule's own drop, which follows, closes ports, frees pools and ends DPDK.
        self.lifetime.end();
        for device in &self.devices {
            device.stop();
        }
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("cores", &self.cores).field("ports", &self.ports).finish_non_exhaustive()
    }
}

/// The configuration in capsule's words. capsule's types cannot be constructed from outside, only deserialized. Devices'
/// arguments are not repeated: by then the EAL runs and the devices exist.
fn capsule_config(config: &Config) -> serde_json::Value {
    let runtime = &config.runtime;
    let cores: Vec<usize> = (0..runtime.cores.len()).map(core_of).collect();
    let port = |port: &sluice_config::Port| {
        json!({
            "name": port.name,
            "device": port.device,
            "cores": cores,
            "rxd": runtime.rx_descriptors,
            "txd": runtime.tx_descriptors,
            "promiscuous": port.promiscuous,
            // IPv6 neighbours are asked for by multicast.
            "multicast": true,
        })
    };
    json!({
        "app_name": "sluice",
        "master_core": CONTROL,
        "cores": cores,
        "mempool": { "capacity": runtime.mbufs, "cache_size": POOL_CACHE },
        "ports": config.ports.iter().map(port).collect::<Vec<_>>(),
    })
}

/// Checks that the pool can fill the receive queues, with some to spare.
fn check_mbufs(config: &Config, devices: &[Found]) -> Result<(), StartError> {
    let queues: u32 = devices.iter().map(|device| u32::from(device.profile.rx_queues)).sum();
    let needed = queues.saturating_mul(u32::from(config.runtime.rx_descriptors));
    if needed < config.runtime.mbufs {
        return Ok(());
    }
    Err(StartError::TooFewMbufs { mbufs: config.runtime.mbufs, needed })
}

/// A worker as capsule sees it: a future that is never done and is dropped at the end, on the worker's thread.
struct WorkerPipeline<W: Turn> {
    worker: Option<W>,
    registered: Option<Registered>,
}

impl<W: Turn> WorkerPipeline<W> {
    fn start(id: WorkerId, seat: Seat, make: impl FnOnce(WorkerQueues) -> W) -> WorkerPipeline<W> {
        // First of all: the pool's per-thread cache depends on it.
        let registered = Registered::this_thread(&format!("sluice-worker{}", id.0));
        let worker = seat.take().map(make);
        tracing::debug!(worker = id.0, "worker runs");
        WorkerPipeline { worker, registered }
    }
}

// Nothing in it is pinned.
impl<W: Turn> Unpin for WorkerPipeline<W> {}

impl<W: Turn> Future for WorkerPipeline<W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(worker) = &mut self.worker {
            for _ in 0..TURNS_PER_POLL {
                worker.turn();
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<W: Turn> Pipeline for WorkerPipeline<W> {
    fn name(&self) -> &str {
        "worker"
    }

    fn run_once(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.turn();
        }
    }
}

impl<W: Turn> Drop for WorkerPipeline<W> {
    fn drop(&mut self) {
        if thread::panicking() {
            // As in release builds, where a panic aborts: a worker that panicked holds half-updated flows, and an appliance
            // that goes on without one of its workers is worse than one that restarts.
            std::process::abort();
        }
        if let Some(worker) = self.worker.take() {
            worker.finish();
        }
        // Only now, so that the worker's last frames went to this thread's pool cache.
        self.registered = None;
    }
}
