//! Keeps a running appliance's sets and bans as their files are.
//!
//! A thread of its own looks at the files once a second. Changed sets are read and compiled here, on the control core; workers get the
//! finished plan and put it in force between two bursts. A file that cannot be used costs a warning: what was in force stays so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sluice_config::{Config, Set};
use sluice_dataplane::Orders;
use sluice_filters::counter::Counter;
use sluice_filters::sets::{AddressSet, load_set};

use super::bans::{BanBook, BanFile};
use crate::StartError;
use crate::stamp::Stamp;

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(1);
/// How long workers may take to read their orders before a plan is offered again.
const AGAIN: Duration = Duration::from_millis(20);
const THREAD: &str = "sluice-filters";

/// What is known of the sets in force; written by the thread that watches them.
#[derive(Debug)]
pub struct SetGauges {
    /// By set, in the configuration's order.
    pub sets: Vec<SetGauge>,
    /// Octets of the table in which all sets are looked up.
    pub memory: Counter,
}

impl SetGauges {
    /// Zeroed gauges for the sets of `config`.
    #[must_use]
    pub fn new(config: &Config) -> SetGauges {
        SetGauges { sets: config.sets.iter().map(|_| SetGauge::default()).collect(), memory: Counter::default() }
    }
}

/// One set.
#[derive(Debug, Default)]
pub struct SetGauge {
    /// Prefixes it was made of.
    pub prefixes: Counter,
    /// When it was last read, Unix seconds.
    pub loaded: Counter,
    /// How often it could not be read.
    pub failures: Counter,
}

/// The thread that watches sets and bans; dropping it ends the thread.
#[derive(Debug)]
pub struct FilterWatch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    gauges: Arc<SetGauges>,
    bans: Option<Arc<BanBook>>,
}

impl FilterWatch {
    /// What is known of the sets in force.
    #[must_use]
    pub fn gauges(&self) -> Arc<SetGauges> {
        Arc::clone(&self.gauges)
    }

    /// The bans; none without `[bans]`.
    #[must_use]
    pub fn bans(&self) -> Option<Arc<BanBook>> {
        self.bans.clone()
    }
}

/// Watches the files of `config`'s sets and bans, and tells the workers through `orders` what changes. `sets` are what is in force.
///
/// # Errors
/// [`StartError::Thread`] when the kernel gives no thread.
pub fn watch(config: Arc<Config>, sets: Vec<AddressSet>, orders: Orders) -> Result<FilterWatch, StartError> {
    let bans = config.bans.as_ref().map(|bans| Arc::new(BanBook::new(bans.capacity, orders.clone())));
    let gauges = Arc::new(SetGauges::new(&config));
    let mut keeper = Keeper {
        stamps: config.sets.iter().map(stamps).collect(),
        ban_file: config
            .bans
            .as_ref()
            .and_then(|bans| bans.file.clone())
            .zip(bans.clone())
            .map(|(file, book)| BanFile::new(file, book)),
        config,
        sets,
        orders,
        gauges: Arc::clone(&gauges),
        pending: false,
    };
    for index in 0..keeper.sets.len() {
        keeper.note(index);
    }
    let (stop, stopped) = channel::<()>();
    let thread = std::thread::Builder::new()
        .name(THREAD.into())
        .spawn(move || keeper.run(&stopped))
        .map_err(|cause| StartError::Thread { name: THREAD, cause })?;
    Ok(FilterWatch { stop: Some(stop), thread: Some(thread), gauges, bans })
}

impl Drop for FilterWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that watches sets and bans ended with a panic");
        }
    }
}

type Stamps = Vec<Result<Stamp, io::ErrorKind>>;

/// The files a set is read from.
fn files(set: &Set) -> impl Iterator<Item = &Path> {
    set.files.iter().chain(set.geo.as_ref().map(|geo| &geo.database)).map(PathBuf::as_path)
}

fn stamps(set: &Set) -> Stamps {
    files(set).map(Stamp::of).collect()
}

/// The sets as they were last read, and what is watched besides.
struct Keeper {
    config: Arc<Config>,
    sets: Vec<AddressSet>,
    /// By set: its files as they were when it was last read.
    stamps: Vec<Stamps>,
    ban_file: Option<BanFile>,
    orders: Orders,
    gauges: Arc<SetGauges>,
    /// Workers have not been told of the newest sets.
    pending: bool,
}

impl Keeper {
    fn run(&mut self, stopped: &Receiver<()>) {
        loop {
            self.look();
            let wait = if self.pending { AGAIN } else { POLL };
            if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// Reads what has changed, and tells the workers.
    fn look(&mut self) {
        self.orders.tidy();
        for index in 0..self.sets.len() {
            self.look_at(index);
        }
        if self.pending {
            self.publish();
        }
        if let Some(file) = &mut self.ban_file {
            file.look();
        }
    }

    fn look_at(&mut self, index: usize) {
        let (Some(set), Some(seen)) = (self.config.sets.get(index), self.stamps.get_mut(index)) else { return };
        // Taken before reading: a change in between shows at the next look.
        let now = stamps(set);
        if *seen == now {
            return;
        }
        *seen = now;
        let began = Instant::now();
        match load_set(set) {
            Ok(read) => {
                tracing::info!(set = set.name, prefixes = read.prefixes(), took = ?began.elapsed(), "a set was read again");
                if let Some(old) = self.sets.get_mut(index) {
                    *old = read;
                    self.pending = true;
                }
                self.note(index);
            }
            Err(error) => {
                tracing::warn!(%error, "the set stays as it was");
                if let Some(gauge) = self.gauges.sets.get(index) {
                    gauge.failures.bump();
                }
            }
        }
    }

    fn note(&self, index: usize) {
        if let (Some(gauge), Some(set)) = (self.gauges.sets.get(index), self.sets.get(index)) {
            gauge.prefixes.set(set.prefixes() as u64);
            gauge.loaded.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        }
        self.gauges.memory.set(self.orders.plan().map_or(0, |plan| plan.memory()) as u64);
    }

    fn publish(&mut self) {
        let Some(plan) = self.orders.plan() else { return };
        match plan.with_sets(&self.config, &self.sets) {
            Ok(plan) => {
                self.gauges.memory.set(plan.memory() as u64);
                // Busy workers are told at the next look.
                self.pending = self.orders.replace(plan).is_err();
            }
            Err(error) => {
                self.pending = false;
                tracing::warn!(error, "the new sets cannot be used together; the old ones stay in force");
            }
        }
    }
}
