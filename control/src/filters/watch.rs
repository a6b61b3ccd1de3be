//! Keeps a running appliance's sets and bans as their files are.
//!
//! A thread of its own looks at the files once a second. Changed sets are read and compiled here, on the control core; workers get the
//! finished plan and put it in force between two bursts. A file that cannot be used costs a warning: what was in force stays so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluice_config::{Config, Set};
use sluice_dataplane::Orders;
use sluice_filters::counter::Counter;
use sluice_filters::sets::{AddressSet, LoadedSet, load_set};

use super::bans::{BanBook, BanFile};
use super::copies::Copies;
use super::{SetNote, unix_seconds};
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
    /// When it was last read, on the workers' clock, microseconds.
    pub loaded: Counter,
    /// When its copy was made, seconds since 1970, if that is what is in force; or 0.
    pub copied: Counter,
    /// 1 while it is not what its files are, since they cannot be used.
    pub stale: Counter,
    /// Lines of its lists that were skipped when it was last read.
    pub skipped: Counter,
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

/// Watches the files of `config`'s sets and bans, and tells the workers through `orders` what changes. `sets` are what is in force, and
/// `notes` how they were come by.
///
/// # Errors
/// [`StartError::Thread`] when the kernel gives no thread.
pub fn watch(
    config: Arc<Config>,
    sets: Vec<AddressSet>,
    notes: &[SetNote],
    orders: Orders,
) -> Result<FilterWatch, StartError> {
    let bans = config.bans.as_ref().map(|bans| Arc::new(BanBook::new(bans, orders.clone())));
    let gauges = Arc::new(SetGauges::new(&config));
    let mut keeper = Keeper {
        stamps: config.sets.iter().map(stamps).collect(),
        copies: Copies::of(&config),
        ban_file: config
            .bans
            .as_ref()
            .zip(bans.clone())
            .and_then(|(bans, book)| BanFile::new(bans, Copies::of(&config), book)),
        config,
        sets,
        orders,
        gauges: Arc::clone(&gauges),
        pending: false,
    };
    for (index, note) in notes.iter().enumerate() {
        keeper.note(index, note);
    }
    let good: Vec<usize> =
        notes.iter().enumerate().filter(|(_, note)| note.copied.is_none()).map(|(index, _)| index).collect();
    let (stop, stopped) = channel::<()>();
    let thread = std::thread::Builder::new()
        .name(THREAD.into())
        .spawn(move || keeper.run(&good, &stopped))
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
    copies: Copies,
    ban_file: Option<BanFile>,
    orders: Orders,
    gauges: Arc<SetGauges>,
    /// Workers have not been told of the newest sets.
    pending: bool,
}

impl Keeper {
    /// `good` sets were read from their files.
    fn run(&mut self, good: &[usize], stopped: &Receiver<()>) {
        good.iter().for_each(|index| self.keep(*index));
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
                let LoadedSet { addresses, warnings, skipped } = read;
                tracing::info!(set = set.name, prefixes = addresses.prefixes(), took = ?began.elapsed(), "a set was read again");
                if let Some(old) = self.sets.get_mut(index) {
                    *old = addresses;
                    self.pending = true;
                }
                self.note(index, &SetNote { warnings, skipped, copied: None });
                self.keep(index);
            }
            Err(error) => {
                tracing::warn!(%error, "the set stays as it was");
                if let Some(gauge) = self.gauges.sets.get(index) {
                    gauge.failures.bump();
                    gauge.stale.set(1);
                }
            }
        }
    }

    /// Tells how a set was come by.
    fn note(&self, index: usize, note: &SetNote) {
        for warning in &note.warnings {
            tracing::warn!("{warning}");
        }
        if let (Some(gauge), Some(set)) = (self.gauges.sets.get(index), self.sets.get(index)) {
            gauge.prefixes.set(set.prefixes() as u64);
            gauge.loaded.set(self.orders.clock().now().0);
            gauge.copied.set(note.copied.map_or(0, unix_seconds));
            gauge.stale.set(u64::from(note.copied.is_some()));
            gauge.skipped.set(note.skipped as u64);
        }
        self.gauges.memory.set(self.orders.plan().map_or(0, |plan| plan.memory()) as u64);
    }

    /// Keeps a copy of a set that was read from its files.
    fn keep(&self, index: usize) {
        let (Some(set), Some(addresses)) = (self.config.sets.get(index), self.sets.get(index)) else { return };
        if Copies::is_kept(set)
            && let Err(error) = self.copies.write(set, addresses)
        {
            let path = self.copies.path(set);
            tracing::warn!(
                set = set.name, path = %path.display(), %error,
                "no copy of the set is kept, so no start without its files; let sluice write to runtime.state"
            );
        }
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

#[cfg(test)]
mod tests {
    use std::fs;

    use sluice_dataplane::Clock;
    use sluice_filters::engine::{Engine, FilterCounters};
    use sluice_filters::rules::Facts;
    use sluice_filters::testkit::tcp;
    use sluice_filters::units::{Micros, ServiceId};
    use sluice_filters::{Parsed, RxChecksums, parse};

    use super::*;
    use crate::filters::load;

    /// A keeper of a set `bad` of one list, whose members a rule drops.
    struct Desk {
        dir: tempfile::TempDir,
        keeper: Keeper,
    }

    impl Desk {
        fn new(list: &str) -> Desk {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("list");
            fs::write(&path, list).unwrap();
            let state = dir.path().join("state");
            let text = format!(
                r#"
[runtime]
state = {state:?}
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24"]
[[service]]
name = "web"
listen = ["198.51.100.10:443"]
[[service.upstream]]
address = "198.51.100.5:80"
[[set]]
name = "bad"
files = {path:?}
[[rule]]
name = "bad"
source = "@bad"
action = "drop"
"#
            );
            let config = Arc::new(sluice_config::parse("test.toml", &text).unwrap());
            let loaded = load("test.toml", &config, 1).unwrap();
            let keeper = Keeper {
                stamps: config.sets.iter().map(stamps).collect(),
                copies: Copies::of(&config),
                ban_file: None,
                orders: Orders::new(1, Arc::new(loaded.plan), Clock::start()),
                gauges: Arc::new(SetGauges::new(&config)),
                pending: false,
                sets: loaded.sets,
                config,
            };
            Desk { dir, keeper }
        }

        /// Puts a list in the old one's place, as an operator should, and lets the keeper look.
        fn put(&mut self, list: &str) {
            let path = self.dir.path().join("list");
            fs::write(path.with_extension("new"), list).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
            self.keeper.look();
        }

        /// Whether the newest plan drops what comes from there.
        fn drops(&self, source: &str) -> bool {
            let plan = self.keeper.orders.plan().unwrap();
            let counters = Arc::new(FilterCounters::new(&self.keeper.config));
            let frame = tcp(&*format!("{source}:1"), "198.51.100.10:443").build();
            let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!() };
            let facts = Facts { segment: &segment, frame: &frame, service: ServiceId(0) };
            Engine::new(plan, [1, 2], counters).check(&facts, Micros(1)).is_err()
        }

        fn gauge(&self) -> (u64, u64) {
            let gauge = &self.keeper.gauges.sets[0];
            (gauge.prefixes.get(), gauge.failures.get())
        }
    }

    #[test]
    fn a_changed_list_is_put_in_force() {
        let mut desk = Desk::new("192.0.2.0/24\n");
        assert!(desk.drops("192.0.2.7") && !desk.drops("203.0.113.7"));
        desk.put("203.0.113.0/24\n203.0.114.0/24\n");
        assert!(!desk.drops("192.0.2.7") && desk.drops("203.0.113.7"));
        assert_eq!(desk.gauge(), (2, 0));
        assert!(desk.keeper.gauges.memory.get() > 0);
    }

    #[test]
    fn an_unchanged_list_is_left_alone() {
        let mut desk = Desk::new("192.0.2.0/24\n");
        let before = desk.keeper.orders.plan().unwrap();
        desk.keeper.look();
        assert!(Arc::ptr_eq(&before, &desk.keeper.orders.plan().unwrap()));
    }

    #[test]
    fn a_list_that_cannot_be_used_changes_nothing_and_is_counted_once() {
        let mut desk = Desk::new("192.0.2.0/24\n");
        for (wrong, failures) in [("203.0.113.0/24\nnonsense\n", 1), ("", 2)] {
            desk.put(wrong);
            desk.keeper.look();
            assert!(desk.drops("192.0.2.7") && !desk.drops("203.0.113.7"), "{wrong:?}");
            assert_eq!(desk.gauge().1, failures);
        }
        fs::remove_file(desk.dir.path().join("list")).unwrap();
        desk.keeper.look();
        assert!(desk.drops("192.0.2.7"));
        desk.put("203.0.113.0/24\n");
        assert!(desk.drops("203.0.113.7"));
        assert_eq!(desk.gauge(), (1, 3));
    }

    #[test]
    fn workers_that_are_busy_hear_of_it_later() {
        let mut desk = Desk::new("192.0.2.0/24\n");
        let nobody = "10.0.0.0/8".parse().unwrap();
        while desk.keeper.orders.unban(nobody).is_ok() {}
        desk.put("203.0.113.0/24\n");
        assert!(desk.keeper.pending && !desk.drops("203.0.113.7"));
        // The keeper tries again at each look.
        desk.keeper.look();
        assert!(desk.keeper.pending);
    }

    #[test]
    fn a_set_whose_list_was_spoilt_starts_as_it_was_and_is_stale_until_the_list_is_good() {
        let mut desk = Desk::new("192.0.2.0/24\n");
        let list = desk.dir.path().join("list");
        fs::write(&list, "<html>\n").unwrap();
        let config = Arc::clone(&desk.keeper.config);
        let error = load("test.toml", &config, 1).unwrap_err().to_string();
        assert!(error.contains("list:1: \"<html>\" is no address or prefix"), "it was never good: {error}");

        desk.put("203.0.113.0/24\n");
        desk.keeper.look();
        fs::write(&list, "<html>\n").unwrap();
        let loaded = load("test.toml", &config, 1).unwrap();
        assert_eq!(loaded.sets, desk.keeper.sets);
        assert!(loaded.notes[0].copied.is_some());
        let warning = &loaded.notes[0].warnings[0];
        assert!(
            warning.starts_with("set \"bad\": ") && warning.contains("(until then the set is what it was at 2"),
            "{warning}"
        );

        let gauge = |desk: &Desk| desk.keeper.gauges.sets[0].stale.get();
        desk.keeper.note(0, &loaded.notes[0]);
        assert_eq!(gauge(&desk), 1);
        desk.put("203.0.113.0/24\n198.18.0.0/15\n");
        assert_eq!(gauge(&desk), 0);
        desk.put("<html>\n");
        assert_eq!(gauge(&desk), 1);
        assert_eq!(load("test.toml", &config, 1).unwrap().sets[0].prefixes(), 2, "the newest good list was kept");
    }

    #[test]
    fn the_thread_ends_when_its_watch_is_dropped() {
        let desk = Desk::new("192.0.2.0/24\n");
        let (config, orders) = (desk.keeper.config.clone(), desk.keeper.orders.clone());
        let watch = watch(config.clone(), desk.keeper.sets.clone(), &[SetNote::default()], orders).unwrap();
        assert_eq!(watch.gauges().sets[0].prefixes.get(), 1);
        assert!(watch.bans().is_none());
        drop(watch);
        assert_eq!(Arc::strong_count(&config), 2, "the desk's and ours");
    }
}
